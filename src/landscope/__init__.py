"""Landscope: why does this deep network generalize?"""

__version__ = "0.1.0"
