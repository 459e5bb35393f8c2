import base64
import math
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from typing import Any

import made_up
import matplotlib
import numpy as np
import plotly.graph_objects
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from landscope import render
from landscope.figures import REFERENCE, Axis, Figure, Panel, Series
from landscope.render.paper import _power

FINDING = "Batch 8 ends at 0.5, batch 512 at 1.5 after 40 epochs."
HOSTILE = (
    '<b onmouseover=alert(1)>$\\frac{1}{0}$ & "]]> \x00\x1b[31m \u2028\u202e 漢字 🙂 _^%#\\ '
    "</svg><script>alert(1)</script>"
)

SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example)
UNSHRUNK = (Phase.explicit, Phase.generate)  # each example draws: shrinking one would take minutes
texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=60).filter(lambda t: t.strip())
numbers = st.floats(-1e6, 1e6) | st.just(math.nan)
above = st.floats(1e-9, 1e9) | st.just(math.nan)


@st.composite
def some_series(draw, log: tuple[bool, bool]) -> dict[str, Any]:
    n = draw(st.integers(1, 12))
    along = draw(st.sampled_from(["x", "y"]))

    def column(is_log: bool) -> np.ndarray:
        return np.array(draw(st.lists(above if is_log else numbers, min_size=n, max_size=n)))

    ends = None
    if draw(st.booleans()):
        pair = [column(log[along == "y"]), column(log[along == "y"])]
        ends = np.fmin(*pair), np.fmax(*pair)
    low, high = ends or (None, None)
    return {
        "name": draw(texts),
        "x": column(log[0]),
        "y": column(log[1]),
        "low": low,
        "high": high,
        "mode": draw(st.sampled_from(["line", "points", "line+points"])),
        "slot": draw(st.integers(REFERENCE, 9)),
        "hover": tuple(draw(texts) for _ in range(n)) if draw(st.booleans()) else None,
        "faint": draw(st.booleans()),
        "along": along,
    }


@st.composite
def some_panel(draw) -> tuple[Any, ...]:
    log = draw(st.booleans()), draw(st.booleans())
    series = [draw(some_series(log)) for _ in range(draw(st.integers(1, 3)))]
    return draw(texts), [(draw(texts), is_log) for is_log in log], series


# The figure itself is built in the test: run-time type checks draw random numbers, which strategies must not.
some_panels = st.lists(some_panel(), min_size=1, max_size=3)


def built(panels: list[tuple[Any, ...]]) -> Figure:
    made = [
        Panel(
            title,
            Axis(axes[0][0], log=axes[0][1]),
            Axis(axes[1][0], log=axes[1][1]),
            tuple(Series(**s) for s in series),
        )
        for title, axes, series in panels
    ]
    return Figure("f", panels[0][0], FINDING, tuple(made))


def unpacked(typed: dict[str, str]) -> np.ndarray:
    assert typed["dtype"] == "f8"
    return np.frombuffer(base64.b64decode(typed["bdata"]), dtype="<f8")


def same(one, two) -> None:
    np.testing.assert_array_equal(np.asarray(one).view(np.int64), np.asarray(two).view(np.int64))


@settings(max_examples=20, deadline=None, phases=UNSHRUNK, suppress_health_check=SLOW)
@given(some_panels)
def test_both_renderers_show_the_same_to_the_last_bit(panels):
    figure = built(panels)
    interactive = render.plotly_json(figure)
    static = render.matplotlib_figure(figure)
    assert len(interactive) == len(static.axes) == len(figure.panels)
    for k, (panel, shown, axes) in enumerate(zip(figure.panels, interactive, static.axes, strict=True)):
        lines = {line.get_gid(): line for line in axes.lines}
        traces = iter(shown["data"])
        for i, series in enumerate(render.ordered(panel)):
            outlines = render.bands(series)
            if outlines:
                trace = next(traces)
                assert trace["meta"] == "band"
                patches = [p for p in axes.patches if str(p.get_gid()).startswith(f"panel-{k}-series-{i}-band-")]
                assert len(patches) == len(outlines)
                for (x, y), patch in zip(outlines, patches, strict=True):
                    np.testing.assert_array_equal(
                        np.asarray(patch.get_path().vertices)[: len(x)], np.column_stack([x, y])
                    )
                pieces = [unpacked(trace[c])[~np.isnan(unpacked(trace["x"]))] for c in "xy"]
                same(pieces[0], np.concatenate([x for x, _ in outlines]))
                same(pieces[1], np.concatenate([y for _, y in outlines]))
            broken = render.bars(series)
            if broken is not None:
                trace = next(traces)
                for c, expected in zip("xy", broken, strict=True):
                    same(unpacked(trace[c]), expected)
                same(lines[f"panel-{k}-series-{i}-bars"].get_xdata(orig=True), broken[0])
                same(lines[f"panel-{k}-series-{i}-bars"].get_ydata(orig=True), broken[1])
            trace = next(traces)
            same(unpacked(trace["x"]), series.x)
            same(unpacked(trace["y"]), series.y)
            same(lines[f"panel-{k}-series-{i}"].get_xdata(orig=True), series.x)
            same(lines[f"panel-{k}-series-{i}"].get_ydata(orig=True), series.y)
        assert next(traces, None) is None
        for which, axis, limits in zip("xy", (panel.x, panel.y), panel.limits(), strict=True):
            plotly_axis = shown["layout"][which + "axis"]
            assert plotly_axis["type"] == getattr(axes, f"get_{which}scale")() == ("log" if axis.log else "linear")
            assert getattr(axes, f"get_{which}lim")() == pytest.approx(limits, rel=1e-12)
            shown_limits = np.power(10.0, plotly_axis["range"]) if axis.log else plotly_axis["range"]
            assert shown_limits == pytest.approx(limits, rel=1e-12)
            drawn = getattr(axes, f"get_{which}label")()
            assert not axis.label.isascii() or len(axis.label) > 30 or drawn == (render.plain(axis.label) or " ")


@settings(max_examples=10, deadline=None, phases=UNSHRUNK, suppress_health_check=SLOW)
@given(some_panels)
def test_plotly_accepts_every_panel(panels):
    for panel in render.plotly_json(built(panels)):
        plotly.graph_objects.Figure(panel)  # raises on any property that plotly.js does not have


def hostile() -> Figure:
    x = np.array([1.0, 2.0])
    axis = Axis(HOSTILE, ticks=((1, 2), (HOSTILE, "$x$")))
    series = (Series(HOSTILE, x, x, x / 2, x * 2, hover=(HOSTILE, HOSTILE)), Series("_hidden", x, x))
    return Figure("hostile", HOSTILE, FINDING + HOSTILE, (Panel(HOSTILE, axis, axis, series),) * 2)


def test_hostile_texts_are_drawn_as_texts(recwarn):
    for width in render.WIDTHS:
        element = render.svg(hostile(), width=width)
        ElementTree.fromstring(element)  # noqa: S314 - our own
        assert "<script" not in element
        assert "onmouseover=alert" not in re.sub(r">[^<]*<", "><", element)
        assert render.pdf(hostile(), width).startswith(b"%PDF")
    texts_drawn = str(render.plotly_json(hostile()))
    assert "<script" not in texts_drawn
    assert "<b on" not in texts_drawn
    assert not recwarn.list


def test_several_drawings_share_a_page():
    drawings = [render.svg(f, theme) for f in made_up.drawn(made_up.tables()) for theme in ("light", "dark")]
    listed = [re.findall(r'\bid="([^"]+)"', drawing) for drawing in drawings]
    ids = [set(found) for found in listed]
    assert sum(map(len, listed)) == len(set().union(*ids))
    for drawing, own in zip(drawings, ids, strict=True):
        used = set(re.findall(r'xlink:href="#([^"]+)"|url\(#([^)]+)\)', drawing))
        assert {a or b for a, b in used} <= own


def test_no_global_setting_is_left_changed():
    matplotlib.rcParams["font.size"] = 23
    try:
        before = dict(matplotlib.rcParams)
        small = render.svg(hostile())
        assert dict(matplotlib.rcParams) == before
        matplotlib.rcParams["font.size"] = 5
        assert render.svg(hostile()) == small
    finally:
        matplotlib.rcParams["font.size"] = 10
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


ONCE = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
import made_up
from landscope import render
from landscope.report import to_html
report = made_up.report()
parts = [to_html(report).encode()]  # with every figure as SVG
for figure in report.figures:
    parts += [render.pdf(figure), render.png(figure, dpi=60)]
print([hashlib.sha256(part).hexdigest() for part in parts])
"""


def test_the_same_figures_give_the_same_bytes(root):
    running = []
    for number, (language, zone) in enumerate([("C", "UTC"), ("de_DE.UTF-8", "Asia/Tokyo")]):
        changed = {"PYTHONHASHSEED": str(number), "LC_ALL": language, "TZ": zone, "SOURCE_DATE_EPOCH": str(number)}
        command = [sys.executable, "-c", ONCE, str(root / "tests")]
        running.append(subprocess.Popen(command, env=os.environ | changed, stdout=subprocess.PIPE, text=True))
    outcomes = {process.communicate()[0] for process in running}
    assert all(process.returncode == 0 for process in running)
    assert len(outcomes) == 1


def poppler(tool: str) -> str:
    found = shutil.which(tool)
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{tool} is missing: install poppler-utils")
    return str(found)


@pytest.mark.parametrize("width", render.WIDTHS)
def test_papers_take_the_pdf(width, tmp_path):
    for figure in (*made_up.drawn(made_up.tables()), hostile()):
        path = tmp_path / f"{figure.name}.pdf"
        path.write_bytes(render.pdf(figure, width))
        assert path.stat().st_size <= 500_000
        fonts = subprocess.run([poppler("pdffonts"), path], capture_output=True, text=True, check=True).stdout
        rows = fonts.splitlines()[2:]
        assert rows
        assert "Type 3" not in fonts
        assert all(re.search(r"\syes\s+(yes|no)\s+(yes|no)\s", row) for row in rows)
        info = subprocess.run([poppler("pdfinfo"), path], capture_output=True, text=True, check=True).stdout
        assert float(re.findall(r"Page size:\s+([\d.]+)", info)[0]) == pytest.approx(72 * width, abs=0.1)
        assert "CreationDate" not in info


@pytest.mark.parametrize("width", render.WIDTHS)
def test_text_can_be_read_in_print(width):
    from matplotlib.text import Text

    for figure in (*made_up.drawn(made_up.tables()), hostile()):
        canvas = render.matplotlib_figure(figure, width=width)
        canvas.draw_without_rendering()
        written = [t for t in canvas.findobj(Text) if t.get_text().strip()]
        assert min(float(t.get_fontsize()) for t in written) >= 7
        page = canvas.bbox
        for text in (t for t in written if t.get_visible() and figure.name != "hostile"):
            box = text.get_window_extent()
            inside = page.x0 - 1 <= box.x0 and box.x1 <= page.x1 + 1 and page.y0 - 1 <= box.y0 and box.y1 <= page.y1 + 1
            outside_of_axes = not any(text in a.get_xticklabels() + a.get_yticklabels() for a in canvas.axes)
            assert inside or not outside_of_axes, text.get_text()


@pytest.mark.parametrize(("lowest", "tick"), [(0.02, "0.1"), (1e-7, r"10⁻\d")])
def test_both_renderers_write_the_ticks_of_a_log_axis_alike(lowest, tick):
    """Plain numbers where all are short, else powers of ten, which is how plotly.js writes them without a format."""
    line = Series("a", np.array([1.0, 2.0]), np.array([lowest, 30.0]))
    panel = Panel("", Axis("x"), Axis("y", log=True), (line,))
    figure = Figure("f", "F", "It rises from 1 to 2, as every line of two points does.", (panel,))
    (drawn,) = render.plotly_json(figure)
    plainly = lowest > 1e-4
    assert drawn["layout"]["yaxis"].get("tickformat") == ("~g" if plainly else None)
    assert drawn["layout"]["yaxis"]["exponentformat"] == "power"
    texts = re.findall(r">([^<>]+)</text>", render.svg(figure))
    raised = [text.translate(str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")) for text in texts]
    assert any(re.fullmatch(tick, text) for text in raised), texts
    assert any(text.startswith("10⁻") for text in texts) != plainly
    assert any(re.fullmatch(r"0\.0*1", text) for text in texts) == plainly


def test_powers_and_widths():
    assert [_power(v) for v in (1e-5, 0.001, 1, 2000, 3e6)] == ["10⁻⁵", "10⁻³", "1", "2×10³", "3×10⁶"]
    with pytest.raises(ValueError, match="between 2 and 20"):
        render.pdf(hostile(), 1)
    with pytest.raises(ValueError, match="light or dark"):
        render.svg(hostile(), "blue")
