"""Measures of trained networks: one function is one measure; files by topic."""
