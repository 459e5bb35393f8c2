"""Figures as data: arrays, labels, axes and the finding in words. What draws them is `landscope.render`.

A figure says what it shows (``finding``) before it shows it, so that whoever cannot see it, or will not look, learns
the same. All text is plain text, never HTML, TeX or mathtext: renderers escape it.
"""

from landscope.figures.contours import contour
from landscope.figures.figure import LEAST_FINDING, Axis, Figure, Panel, Series
from landscope.figures.slots import NEUTRAL, REFERENCE, SLOTS, Slot, slot
from landscope.figures.summaries import by_level, curves, horizontal, mean_interval, vertical

__all__ = [
    "LEAST_FINDING",
    "NEUTRAL",
    "REFERENCE",
    "SLOTS",
    "Axis",
    "Figure",
    "Panel",
    "Series",
    "Slot",
    "by_level",
    "contour",
    "curves",
    "horizontal",
    "mean_interval",
    "slot",
    "vertical",
]
