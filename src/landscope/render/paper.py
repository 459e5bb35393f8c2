"""Figures with Matplotlib: SVG for the page without scripts and its print, PDF and PNG for a paper."""

import functools
import io
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

import numpy as np

from landscope.figures import REFERENCE, Axis, Figure, Panel, Series, slot
from landscope.render.look import (
    BAND,
    FEW,
    FILLED,
    MARKS,
    bands,
    bars,
    colour,
    crowd,
    in_plain_numbers,
    legend,
    ordered,
    plain,
    rectangles,
    theme_of,
    wrapped,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas


WIDTHS = (3.25, 6.75)  # inches: one and two columns of a paper
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
        "axes.titley": 1.0,  # above the axes: to look for ticks in its way would cost a tenth of the time to draw
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
    crowded = 0.18 * max(crowd(panel) for panel in figure.panels)
    height = rows * (each * (0.66 if columns > 1 or width < 5 else 0.48) + 0.45 + crowded) + 0.2 * lines
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
        lines = wrapped(panel.title, int(width * 15), 2)
        axes.set_title("\n".join(map(_printable, lines)), color=colours.ink, loc="left")
    for i, series in enumerate(ordered(panel)):
        _draw(axes, series, theme, f"{ids}series-{i}")
    limits = panel.limits()
    for which, axis, room in (("x", panel.x, int(width * 14)), ("y", panel.y, 32)):
        text = "\n".join(_printable(line) for line in wrapped(axis.label, room, 3))
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
    for i, (x, y) in enumerate(rectangles(series)):
        bar = Polygon(np.column_stack([x, y]), closed=True, facecolor=paint, alpha=FILLED, linewidth=0)
        bar.set_gid(f"{name}-bar-{i}")
        axes.add_patch(bar)
    broken = bars(series)
    if broken is not None:
        axes.plot(*broken, color=paint, linewidth=1.1, gid=f"{name}-bars")
    points = series.mode != "line"
    marked = points or (series.marks and not series.faint and series.slot != REFERENCE)
    axes.plot(
        series.x,
        series.y,
        color=paint,
        linestyle="none" if series.mode in ("points", "bars") else (0, look.dash) if look.dash else "solid",
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
        texts = ["\n".join(_printable(line) for line in wrapped(text, room, 3)) for text in of.ticks[1]]
        axis.set_major_locator(FixedLocator(list(of.ticks[0])))
        axis.set_major_formatter(FixedFormatter(texts))
        axis.set_minor_locator(FixedLocator([]))
    elif of.log:
        wide = math.log10(limits[1] / limits[0]) > FEW
        axis.set_major_locator(LogLocator(numticks=7) if wide else LogLocator(subs=(1, 2, 5), numticks=9))
        written = in_plain_numbers(limits)
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if written else _power(value)))
        axis.set_minor_locator(FixedLocator([]))  # unlabelled ticks would cost a third of the time to draw
    else:
        axis.set_major_locator(MaxNLocator(5))


def _power(value: float | int) -> str:
    """A tick of a log axis as a power of ten, as plotly.js writes it: 1 and 10 stand as they are.

    >>> _power(10.0), _power(0.1), _power(2e-7)
    ('10', '10⁻¹', '2×10⁻⁷')
    """
    if value <= 0:
        return ""
    if value in (1.0, 10.0):
        return f"{value:g}"
    exponent = math.floor(math.log10(value) + 1e-9)
    front = f"{value / 10.0**exponent:.3g}"
    raised = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return ("" if front == "1" else front + "×") + f"10{raised}"


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
    element = _saved(figure, theme, width, "svg", metadata={"Date": None}, facecolor="none").decode()
    element = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", element[element.index("<svg") :], flags=re.DOTALL)
    prefix = f"{figure.name}-{theme}-"
    element = re.sub(r"<[^<>]*>", lambda tag: _own_ids(tag[0], prefix), element)
    # Matplotlib's style sheet would hold for the whole page: what it says stands on the root instead.
    element = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", element, count=1, flags=re.DOTALL)
    root, rest = element.split(">", 1)
    root = re.sub(r' (?:width|height|version)="[^"]*"', "", root)
    return f'{root} style="stroke-linejoin: round; stroke-linecap: butt">{rest}'.strip()


def svg_file(figure: Figure, theme: str = "light", width: float | int = 6.75) -> str:
    """The figure as a whole SVG file with the page's colour behind it; its finding is its description."""
    element = svg(figure, theme, width)
    root, rest = element.split(">", 1)
    said = f"<title>{escape(plain(figure.title))}</title><desc>{escape(plain(figure.finding))}</desc>"
    behind = f'<rect width="100%" height="100%" fill="{theme_of(theme).paper}"/>'
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{root} role="img">{said}{behind}{rest}\n'


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


def _saved(figure: Figure, theme: str, width: float | int, form: str, dpi: int = 72, **options: Any) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.BytesIO()
    with _context(figure):
        canvas = _canvas(figure, theme, width)
        {"png": FigureCanvasAgg, "pdf": FigureCanvasPdf, "svg": FigureCanvasSVG}[form](canvas)
        canvas.set_dpi(dpi)
        # The panels are put in their places here: `savefig` would draw everything twice for it.
        layout = canvas.get_layout_engine()
        if layout is not None:
            layout.execute(canvas)
        canvas.set_layout_engine(None)
        canvas.savefig(buffer, format=form, dpi=dpi, **options)
    return buffer.getvalue()
