"""Draws figures: as JSON for plotly.js (interactive, in reports) and with Matplotlib (SVG, PDF, PNG).

Both show the same arrays, bit for bit, with the same labels, scales and limits. Nothing is read from or left in global
state, no clock and no random number is asked: the same figure gives the same bytes.
"""

import base64
import functools
import io
import math
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from landscope.figures import REFERENCE, SLOTS, Axis, Figure, Panel, Series, slot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

WIDTHS = (3.25, 6.75)  # inches: one and two columns of a paper
MARKS = 8  # markers along a line without points of its own
BAND = 0.16  # opacity
FEW = 2.2  # decades of a log axis up to which 2 and 5 are marked, too


@dataclass(frozen=True)
class Theme:
    """The colours around the data: text, secondary text, grid and page."""

    ink: str
    muted: str
    grid: str
    paper: str


THEMES: Mapping[str, Theme] = {
    "light": Theme("#1b1f24", "#555c64", "#dfe3e7", "#ffffff"),
    "dark": Theme("#e8eaed", "#a9b1ba", "#343b43", "#15181c"),
}


def theme_of(name: str) -> Theme:
    """The theme called ``name``: light or dark."""
    if name not in THEMES:
        raise ValueError(f"a theme is {' or '.join(THEMES)}, not {name!r}")
    return THEMES[name]


def colour(number: int, theme: str) -> str:
    """The colour of a slot in a theme, ``#rrggbb``."""
    theme_of(theme)
    return slot(number).light if theme == "light" else slot(number).dark


# --- what both renderers draw ------------------------------------------------------------------------------------


def bands(series: Series) -> list[tuple[np.ndarray, np.ndarray]]:
    """The closed outlines ``(x, y)`` of a line's band, one for each stretch without a gap."""
    if series.mode != "line" or series.low is None or series.high is None:
        return []
    base = series.x if series.along == "y" else series.y
    known = np.isfinite(base) & np.isfinite(series.low) & np.isfinite(series.high)
    cuts = np.flatnonzero(np.diff(np.concatenate([[False], known, [False]]).astype(int)))
    outlines = []
    for start, stop in cuts.reshape(-1, 2):
        there = np.concatenate([base[start:stop], base[start:stop][::-1]])
        ends = np.concatenate([series.high[start:stop], series.low[start:stop][::-1]])
        outlines.append((there, ends) if series.along == "y" else (ends, there))
    return outlines


def bars(series: Series) -> tuple[np.ndarray, np.ndarray] | None:
    """The interval bars of points as one broken line: low, high, NaN for each point that has both ends."""
    if series.mode == "line" or series.low is None or series.high is None:
        return None
    base = series.x if series.along == "y" else series.y
    known = np.isfinite(base) & np.isfinite(series.low) & np.isfinite(series.high)
    gap = np.full(int(known.sum()), np.nan)
    there = np.stack([base[known], base[known], gap], axis=1).reshape(-1)
    ends = np.stack([series.low[known], series.high[known], gap], axis=1).reshape(-1)
    return (there, ends) if series.along == "y" else (ends, there)


def ordered(panel: Panel) -> list[Series]:
    """The series from back to front: faint ones first."""
    return sorted(panel.series, key=lambda s: not s.faint)


def legend(figure: Figure) -> list[tuple[str, int, str]]:
    """The legend entries ``(text, slot, mode)`` in order: one for each group over all panels.

    A group looks as its first series that is not faint; the mode is ``"band"`` for a band without a line.
    """
    entries: dict[str, tuple[str, int, str]] = {}
    for faint in (False, True):
        for series in (s for panel in figure.panels for s in panel.series if s.faint == faint):
            empty = not np.any(np.isfinite(series.x) & np.isfinite(series.y))
            mode = "band" if bands(series) and empty else series.mode
            entries.setdefault(series.legend, (series.legend, series.slot, mode))
    order = list(dict.fromkeys(s.legend for panel in figure.panels for s in panel.series))
    return [entries[name] for name in order]


def plain(text: str) -> str:
    """One line without control characters."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]+|\s+", " ", text).strip()


# --- plotly.js ---------------------------------------------------------------------------------------------------


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
    marked = points or not (series.faint or series.slot == REFERENCE)
    size = (6 if series.faint else 8) if points else 6
    drawn: dict[str, Any] = {
        "mode": {"line": "lines", "points": "markers", "line+points": "lines+markers"}[series.mode],
        "line": {
            "color": _rgba(paint, 0.35) if series.faint else paint,
            "width": 1 if series.faint else 2,
            "dash": ",".join(f"{d * 1.5:g}px" for d in look.dash) if look.dash else "solid",
        },
    }
    if marked:
        drawn["mode"] = "markers" if series.mode == "points" else "lines+markers"
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
    return {
        "xaxis": _plotly_axis(panel.x, limits[0], colours, 44),
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
        "title": {"text": "<br>".join(escaped(line) for line in _wrapped(axis.label, width, 3)), "standoff": 8},
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
        texts = ["<br>".join(escaped(line) for line in _wrapped(text, 16, 3)) for text in axis.ticks[1]]
        drawn |= {"tickmode": "array", "tickvals": list(axis.ticks[0]), "ticktext": texts}
    elif axis.log:
        decades = math.log10(limits[1] / limits[0])
        drawn |= {"dtick": math.ceil(decades / 6)} if decades > FEW else {"dtick": "D2"} if decades > 0.7 else {}
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


# --- Matplotlib --------------------------------------------------------------------------------------------------

_MARKERS = {
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "triangle-up": "^",
    "triangle-down": "v",
    "cross": "P",
    "x": "X",
    "pentagon": "p",
    "star": "*",
    "hexagon": "h",
}


def _settings(salt: str) -> dict[str, Any]:
    return {
        "font.family": ["DejaVu Sans"],  # comes with Matplotlib: the same everywhere
        "font.size": 8,
        "axes.titlesize": 8.5,
        "axes.labelsize": 8,
        "xtick.labelsize": 7.5,
        "ytick.labelsize": 7.5,
        "legend.fontsize": 7.5,
        "text.parse_math": False,  # a dollar sign in a text is a dollar sign
        "axes.unicode_minus": True,
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "pdf.fonttype": 42,
        "lines.linewidth": 1.3,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }


def matplotlib_figure(figure: Figure, theme: str = "light", width: float | int = 6.75) -> "Canvas":
    """The figure as a Matplotlib figure, without pyplot. To save it as the files of a paper use `pdf`, `png`, `svg`.

    Args:
        figure: What to draw.
        theme: light or dark.
        width: In inches. Panels stand side by side in pairs from 5 inches up, below each other in less.
    """
    with _context(figure):
        return _canvas(figure, theme, width)


def _context(figure: Figure) -> Any:
    """Matplotlib's own defaults with our settings, until the block ends: no matplotlibrc has a say."""
    import matplotlib

    ours: dict[Any, Any] = {
        k: v for k, v in matplotlib.rcParamsDefault.items() if k not in ("backend", "backend_fallback")
    }
    ours.update(_settings(f"landscope {figure.name}"))
    return matplotlib.rc_context(ours)


def _canvas(figure: Figure, theme: str, width: float | int) -> "Canvas":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    if not 2 <= width <= 20:
        raise ValueError(f"a width in inches lies between 2 and 20, not {width}")
    columns = min(len(figure.panels), 2 if width >= 5 else 1)
    rows = math.ceil(len(figure.panels) / columns)
    entries = legend(figure)
    per_row = max(1, int(width / (0.45 + 0.075 * max(len(_cut(e[0], 40)) for e in entries))))
    lines = math.ceil(len(entries) / per_row) if len(entries) > 1 else 0
    each = width / columns
    height = rows * (each * (0.66 if columns > 1 or width < 5 else 0.48) + 0.45) + 0.2 * lines
    colours = theme_of(theme)
    canvas = Canvas(figsize=(width, height), layout="constrained", facecolor=colours.paper)
    FigureCanvasAgg(canvas)
    for i, panel in enumerate(figure.panels):
        axes = canvas.add_subplot(rows, columns, i + 1)
        _panel(axes, panel, theme, each, len(figure.panels) > 1, f"panel-{i}-")
    if lines:
        _legend(canvas, entries, theme, per_row)
    return canvas


def _panel(axes: "Axes", panel: Panel, theme: str, width: float | int, titled: bool, ids: str) -> None:
    colours = theme_of(theme)
    axes.set_facecolor(colours.paper)
    if titled:
        lines = _wrapped(panel.title, int(width * 15), 2)
        axes.set_title("\n".join(map(_printable, lines)), color=colours.ink, loc="left")
    for i, series in enumerate(ordered(panel)):
        _draw(axes, series, theme, f"{ids}series-{i}")
    limits = panel.limits()
    for which, axis, room in (("x", panel.x, int(width * 14)), ("y", panel.y, 32)):
        text = "\n".join(_printable(line) for line in _wrapped(axis.label, room, 3))
        getattr(axes, f"set_{which}label")(text, color=colours.ink)
        getattr(axes, f"set_{which}scale")("log" if axis.log else "linear")
        getattr(axes, f"set_{which}lim")(*limits[which == "y"])
        _ticks(getattr(axes, f"{which}axis"), axis, limits[which == "y"], 16 if width < 5 else 26)
    axes.tick_params(which="both", colors=colours.muted, labelcolor=colours.ink)
    axes.grid(True, color=colours.grid, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(colours.muted)


def _draw(axes: "Axes", series: Series, theme: str, name: str) -> None:
    from matplotlib.patches import Polygon

    paint, look = colour(series.slot, theme), slot(series.slot)
    for i, (x, y) in enumerate(bands(series)):
        outline = Polygon(np.column_stack([x, y]), closed=True, facecolor=paint, alpha=BAND, linewidth=0)
        outline.set_gid(f"{name}-band-{i}")
        axes.add_patch(outline)
    broken = bars(series)
    if broken is not None:
        axes.plot(*broken, color=paint, linewidth=1.1, gid=f"{name}-bars")
    points = series.mode != "line"
    marked = points or not (series.faint or series.slot == REFERENCE)
    axes.plot(
        series.x,
        series.y,
        color=paint,
        linestyle="none" if series.mode == "points" else (0, look.dash) if look.dash else "solid",
        linewidth=0.6 if series.faint else 1.3,
        alpha=(0.55 if points else 0.35) if series.faint else 1,
        marker=_MARKERS[look.marker] if marked else "none",
        markersize=(3 if series.faint else 4.5) if points else 3.5,
        markeredgewidth=0,
        markevery=1 if points else max(1, len(series.x) // MARKS),
        gid=name,
    )


def _legend(canvas: "Canvas", entries: Sequence[tuple[str, int, str]], theme: str, columns: int) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = []
    for _, number, mode in entries:
        paint, look = colour(number, theme), slot(number)
        if mode == "band":
            handles.append(Patch(facecolor=paint, alpha=BAND, linewidth=0))
            continue
        line = "none" if mode == "points" else (0, look.dash) if look.dash else "solid"
        marker = "none" if number == REFERENCE and mode == "line" else _MARKERS[look.marker]
        handles.append(Line2D([], [], color=paint, linestyle=line, marker=marker, markersize=4.5, markeredgewidth=0))
    # A label that starts with an underscore is hidden unless it is given beside its handle.
    labels = [_printable(_cut(text, 40)) for text, _, _ in entries]
    canvas.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=min(columns, len(entries)),
        frameon=False,
        labelcolor=theme_of(theme).ink,
    )


def _ticks(axis: Any, of: Axis, limits: tuple[float, float], room: int) -> None:
    from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, LogLocator, MaxNLocator

    if of.ticks is not None:
        texts = ["\n".join(_printable(line) for line in _wrapped(text, room, 3)) for text in of.ticks[1]]
        axis.set_major_locator(FixedLocator(list(of.ticks[0])))
        axis.set_major_formatter(FixedFormatter(texts))
        axis.set_minor_locator(FixedLocator([]))
    elif of.log:
        wide = math.log10(limits[1] / limits[0]) > FEW
        axis.set_major_locator(LogLocator(numticks=7) if wide else LogLocator(subs=(1, 2, 5), numticks=9))
        axis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))
        axis.set_minor_locator(FixedLocator([]))  # unlabelled ticks would cost a third of the time to draw
    else:
        axis.set_major_locator(MaxNLocator(5))


def _power(value: float | int) -> str:
    """A tick of a log axis: plain where that is short, else a power of ten.

    >>> _power(100.0), _power(2e-7)
    ('100', '2×10⁻⁷')
    """
    if value <= 0:
        return ""
    if 1e-3 <= value < 1e4:
        return f"{value:g}"
    exponent = math.floor(math.log10(value) + 1e-9)
    front = f"{value / 10.0**exponent:.3g}"
    raised = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return ("" if front == "1" else front + "×") + f"10{raised}"


def _wrapped(text: str, width: int, lines: int) -> list[str]:
    wrapped = textwrap.wrap(plain(text), max(width, 8), max_lines=lines, placeholder=" …")
    return wrapped or [" "]


def _cut(text: str, most: int) -> str:
    text = plain(text)
    return text if len(text) <= most else text[: most - 1] + "…"


@functools.cache
def _glyphs() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(findfont(FontProperties(family="DejaVu Sans"))).get_charmap())


def _printable(text: str) -> str:
    """``text`` in the characters of the font; others would be empty boxes and warnings."""
    return "".join(c if ord(c) in _glyphs() else "\ufffd" for c in text)


def svg(figure: Figure, theme: str = "light", width: float | int = 6.75) -> str:
    """The figure as an ``<svg>`` element to stand in HTML: text as text, every id prefixed by the figure's name.

    It has no XML header, no metadata, no fixed size; it scales with the page.
    """
    buffer = io.StringIO()
    with _context(figure):
        canvas = _canvas(figure, theme, width)
        canvas.savefig(buffer, format="svg", metadata={"Date": None}, facecolor="none")
    element = buffer.getvalue()
    element = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", element[element.index("<svg") :], flags=re.DOTALL)
    prefix = f"{figure.name}-{theme}-"
    element = re.sub(r"<[^<>]*>", lambda tag: _own_ids(tag[0], prefix), element)
    # Matplotlib's style sheet would hold for the whole page: what it says stands on the root instead.
    element = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", element, count=1, flags=re.DOTALL)
    root, rest = element.split(">", 1)
    root = re.sub(r' (?:width|height|version)="[^"]*"', "", root)
    return f'{root} style="stroke-linejoin: round; stroke-linecap: butt">{rest}'.strip()


def _own_ids(tag: str, prefix: str) -> str:
    """One tag with its ids and references prefixed, so that several figures can stand in one page."""
    tag = re.sub(r'\bid="', f'id="{prefix}', tag)
    return re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{prefix}", tag)


def pdf(figure: Figure, width: float | int = 6.75, theme: str = "light") -> bytes:
    """The figure as a PDF with embedded TrueType fonts and no date in it."""
    return _saved(figure, theme, width, "pdf", metadata={"CreationDate": None, "Producer": None, "Creator": None})


def png(figure: Figure, width: float | int = 6.75, theme: str = "light", dpi: int = 300) -> bytes:
    """The figure as a PNG."""
    return _saved(figure, theme, width, "png", dpi=dpi, metadata={"Software": None})


def _saved(figure: Figure, theme: str, width: float | int, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with _context(figure):
        _canvas(figure, theme, width).savefig(buffer, format=form, **options)
    return buffer.getvalue()
