"""Figures as JSON for plotly.js, which draws them in the page; no library of Python draws here."""

import base64
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from landscope.figures import REFERENCE, SLOTS, Axis, Figure, Panel, Series, slot
from landscope.render.look import (
    BAND,
    FEW,
    FILLED,
    MARKS,
    THEMES,
    Theme,
    bands,
    bars,
    colour,
    crowd,
    in_plain_numbers,
    ordered,
    plain,
    rectangles,
    theme_of,
    wrapped,
)


def plotly_json(figure: Figure, theme: str = "light") -> list[dict[str, Any]]:
    """What ``Plotly.newPlot`` takes: ``{"data": …, "layout": …}`` for each panel, JSON values only.

    Arrays are float64 in base64, so that no digit is lost. Legends are left to the page. Text is escaped: plotly.js
    reads a few HTML tags in its texts.
    """
    return [
        {"data": [t for s in ordered(panel) for t in _traces(s, theme)], "layout": _layout(panel, theme)}
        for panel in figure.panels
    ]


def _traces(series: Series, theme: str) -> Iterator[dict[str, Any]]:
    paint = colour(series.slot, theme)
    shared = {
        "type": "scatter",
        "name": escaped(series.name),
        "legendgroup": escaped(series.legend),
        "showlegend": False,
    }
    quiet = {"hoverinfo": "skip"}
    outlines = bands(series)
    if outlines:
        # One trace for all stretches: plotly.js closes each part of a line that is broken by NaN.
        x, y = (np.concatenate([np.append(outline[i], np.nan) for outline in outlines])[:-1] for i in (0, 1))
        fill = {"fill": "toself", "fillcolor": _rgba(paint, BAND), "line": {"width": 0}, "mode": "lines"}
        yield shared | quiet | fill | {"x": _typed(x), "y": _typed(y), "meta": "band"}
    filled = rectangles(series)
    if filled:
        x, y = (np.concatenate([np.append(outline[i], np.nan) for outline in filled])[:-1] for i in (0, 1))
        fill = {"fill": "toself", "fillcolor": _rgba(paint, FILLED), "line": {"width": 0}, "mode": "lines"}
        yield shared | quiet | fill | {"x": _typed(x), "y": _typed(y), "meta": "bars filled"}
    broken = bars(series)
    if broken is not None:
        line = {"color": paint, "width": 1.6}
        yield (
            shared
            | quiet
            | {"mode": "lines", "line": line, "x": _typed(broken[0]), "y": _typed(broken[1]), "meta": "bars"}
        )
    yield shared | _drawn(series, paint) | {"x": _typed(series.x), "y": _typed(series.y), "meta": "series"}


def _drawn(series: Series, paint: str) -> dict[str, Any]:
    look, points = slot(series.slot), series.mode != "line"
    marked = points or (series.marks and not series.faint and series.slot != REFERENCE)
    size = (6 if series.faint else 8) if points else 6
    drawn: dict[str, Any] = {
        "mode": {"line": "lines", "points": "markers", "line+points": "lines+markers", "bars": "markers"}[series.mode],
        "line": {
            "color": _rgba(paint, 0.35) if series.faint else paint,
            "width": 1 if series.faint else 2,
            "dash": ",".join(f"{d * 1.5:g}px" for d in look.dash) if look.dash else "solid",
        },
    }
    if marked:
        drawn["mode"] = "markers" if series.mode in ("points", "bars") else "lines+markers"
        drawn["marker"] = {
            "symbol": look.marker,
            "size": size,
            "color": _rgba(paint, 0.6) if series.faint else paint,
            "maxdisplayed": 0 if points else MARKS,
        }
    if series.faint and not points:
        return drawn | {"hoverinfo": "skip"}
    return drawn | _hover(series)


def _hover(series: Series) -> dict[str, Any]:
    texts = [escaped(text) for text in series.hover] if series.hover else [""] * len(series.x)
    if series.low is not None and series.high is not None:
        ends = zip(series.low, series.high, strict=True)
        spans = [f"interval {a:.4g} to {b:.4g}" if math.isfinite(a) and math.isfinite(b) else "" for a, b in ends]
        texts = ["<br>".join(part for part in pair if part) for pair in zip(spans, texts, strict=True)]
    more = "<br>%{text}" if any(texts) else ""
    template = f"<b>{escaped(series.name).replace('%', '&#37;')}</b><br>%{{x}}, %{{y:.4~g}}{more}<extra></extra>"
    return {"hovertemplate": template} | ({"text": texts} if any(texts) else {})


def _layout(panel: Panel, theme: str) -> dict[str, Any]:
    colours = theme_of(theme)
    limits = panel.limits()
    tall = {"height": 300 + 20 * crowd(panel)} if crowd(panel) else {}
    return tall | {
        "xaxis": _plotly_axis(panel.x, limits[0], colours, 40),
        "yaxis": _plotly_axis(panel.y, limits[1], colours, 34),
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": colours.ink},
        "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
        "hovermode": "closest",
        "hoverlabel": {"align": "left"},
        "showlegend": False,
        "dragmode": "zoom",
    }


def _plotly_axis(axis: Axis, limits: tuple[float, float], colours: Theme, width: int) -> dict[str, Any]:
    drawn: dict[str, Any] = {
        "title": {"text": "<br>".join(escaped(line) for line in wrapped(axis.label, width, 3)), "standoff": 8},
        "type": "log" if axis.log else "linear",
        "range": [math.log10(v) for v in limits] if axis.log else list(limits),
        "automargin": True,
        "gridcolor": colours.grid,
        "linecolor": colours.muted,
        "tickcolor": colours.muted,
        "showline": True,
        "zeroline": False,
        "ticks": "outside",
        "ticklen": 4,
        "exponentformat": "power",
    }
    if axis.ticks is not None:
        texts = ["<br>".join(escaped(line) for line in wrapped(text, 16, 3)) for text in axis.ticks[1]]
        drawn |= {"tickmode": "array", "tickvals": list(axis.ticks[0]), "ticktext": texts}
    elif axis.log:
        decades = math.log10(limits[1] / limits[0])
        drawn |= {"dtick": math.ceil(decades / 6)} if decades > FEW else {"dtick": "D2"} if decades > 0.7 else {}
        drawn |= {"tickformat": "~g"} if in_plain_numbers(limits) else {}
    return drawn


def _typed(array: np.ndarray) -> dict[str, str]:
    """A float64 array as plotly.js's typed array specification."""
    return {"dtype": "f8", "bdata": base64.b64encode(array.astype("<f8").tobytes()).decode("ascii")}


def _rgba(paint: str, opacity: float) -> str:
    red, green, blue = (int(paint[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"


def escaped(text: str) -> str:
    """Text for plotly.js: one line, with the characters that it would read as tags escaped."""
    return plain(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def paints() -> dict[str, str]:
    """Every light colour that `plotly_json` uses, with the dark one in its place."""
    light, dark = THEMES["light"], THEMES["dark"]
    pairs = {getattr(light, n): getattr(dark, n) for n in ("ink", "muted", "grid", "paper")}
    for number in [REFERENCE, *range(len(SLOTS))]:
        here, there = colour(number, "light"), colour(number, "dark")
        pairs |= {here: there} | {_rgba(here, a): _rgba(there, a) for a in (BAND, 0.35, 0.6)}
    return pairs
