"""Draws figures: as JSON for plotly.js (interactive, in reports) and with Matplotlib (SVG, PDF, PNG).

Both show the same arrays, bit for bit, with the same labels, scales and limits. Nothing is read from or left in global
state, no clock and no random number is asked: the same figure gives the same bytes.
"""

import importlib
from typing import TYPE_CHECKING, Any

from landscope.render.look import THEMES, Theme, bands, bars, colour, legend, ordered, plain, theme_of
from landscope.render.paper import WIDTHS, matplotlib_figure, pdf, png, svg, svg_file
from landscope.render.web import escaped, paints, plotly_json

if TYPE_CHECKING:
    from landscope.render.boundaries import boundary_frames, write_boundaries
    from landscope.render.pages import landscape_html, write_landscape
    from landscope.render.surfaces import landscape_file, lines_figure

_HOME = {  # on use: they import PyTorch
    "boundary_frames": "boundaries",
    "landscape_file": "surfaces",
    "landscape_html": "pages",
    "lines_figure": "surfaces",
    "write_boundaries": "boundaries",
    "write_landscape": "pages",
}

__all__ = [
    "THEMES",
    "WIDTHS",
    "Theme",
    "bands",
    "bars",
    "boundary_frames",
    "colour",
    "escaped",
    "landscape_file",
    "landscape_html",
    "legend",
    "lines_figure",
    "matplotlib_figure",
    "ordered",
    "paints",
    "pdf",
    "plain",
    "plotly_json",
    "png",
    "svg",
    "svg_file",
    "theme_of",
    "write_boundaries",
    "write_landscape",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
