"""Landscape pages as people meet them: a surface to turn and a slider of decision boundaries, in a real browser."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from visits import Visit, opened

from landscope.landscapes import COMPUTED, MISSING, Boundaries, Directions, Landscape, Trajectory
from landscope.render import write_boundaries, write_landscape

pytestmark = pytest.mark.browser
AXIS = np.linspace(-1, 1, 5)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from opened()


@pytest.fixture(scope="module")
def surface_file(tmp_path_factory) -> Path:
    """A bowl with a gap and a path of two checkpoints above it."""
    bowl = 0.1 + AXIS[:, None] ** 2 + 2 * AXIS**2
    values = {"train_loss": bowl.copy(), "train_accuracy": 1 / (1 + bowl)}
    status = np.full(bowl.shape, COMPUTED, dtype=np.uint8)
    status[0, 0], values["train_loss"][0, 0], values["train_accuracy"][0, 0] = MISSING, np.nan, np.nan
    values["train_loss"][0, 4] = np.inf
    true = {"train_loss": np.array([3.0, 0.1]), "train_accuracy": np.array([0.2, 0.9])}
    there = {"train_loss": np.array([0.6, 0.1]), "train_accuracy": np.array([0.6, 0.9])}
    places, off = np.array([[0.5, 0.0], [0.0, 0.0]]), np.array([2.0, 2.0])
    path = Trajectory("training", ("start", "end"), places, off, off + 0.1, true, there)
    directions = Directions(torch.eye(3)[:, :2], ("a <b>", "b"), "made up")
    found = Landscape(
        "plane", (AXIS, AXIS), directions.labels, values, status, directions, {"directions": "made up"}, (path,)
    )
    return write_landscape(found, tmp_path_factory.mktemp("surface") / "surface.html")


@pytest.fixture(scope="module")
def slider_file(tmp_path_factory) -> Path:
    classes = np.stack([np.broadcast_to(AXIS > offset, (5, 5)) for offset in (-0.5, 0.0, 0.5)]).astype(np.uint8)
    inputs, targets = np.array([[0.0, -0.7], [0.0, 0.7]]), np.array([0, 1])
    three = np.array([0.2, 0.1, 0.3])
    found = Boundaries(
        AXIS, AXIS, classes, three - 0.2, three, 1 - three, inputs, targets, np.ones((3, 2), bool), "made up"
    )
    return write_boundaries(found, tmp_path_factory.mktemp("slider") / "slider.html", width=2.5)


def test_lines_show_checkpoints_with_what_is_known_of_them(browser, tmp_path):
    values = {"train_loss": 0.1 + AXIS**2, "train_accuracy": 1 - AXIS**2}
    true = {name: there[[4, 2]] + 0.5 for name, there in values.items()}
    there = {name: found[[4, 2]] for name, found in values.items()}
    off = np.array([2.0, 0.0])
    path = Trajectory("training", ("start <b>", "end"), AXIS[[4, 2], None], off, off + 1, true, there)
    directions, status = Directions(torch.eye(3)[:, :1], ("a <b>",), "made up"), np.full(5, COMPUTED, dtype=np.uint8)
    found = Landscape("line", (AXIS,), ("a <b>",), values, status, directions, {"directions": "made up"}, (path,))
    file = write_landscape(found, tmp_path / "line.html")
    with Visit(browser, file) as visit:
        visit.until("document.querySelectorAll('#lines .js-plotly-plot .legend').length === 3")
        assert visit.requests == [file.as_uri()]
        assert [text for text in visit.complaints if "Content Security" in text or "Error" in text] == []
        shown = visit.page.evaluate("[...document.querySelectorAll('#lines > div')].map(d => d.data.at(-1).text[0])")
        assert shown[0] == shown[2] == "start &lt;b&gt;: 2 off the line, which has 1.1 there"
        assert visit.page.query_selector(".modebar") is None  # which would cover the legend
        visit.page.click("summary >> nth=0")
        assert visit.page.is_visible("details.static svg")
        visit.page.emulate_media(media="print")
        assert visit.page.is_visible("details.static svg")
        assert visit.page.is_hidden("#lines")


HEIGHTS = "document.getElementById('surface').data[0].z"


def test_the_surface_shows_what_was_found_follows_its_controls_and_asks_for_nothing(browser, surface_file):
    with Visit(browser, surface_file) as visit:
        visit.until("document.getElementById('surface').data !== undefined")
        assert visit.requests == [surface_file.as_uri()]
        assert [text for text in visit.complaints if "Content Security" in text or "Error" in text] == []
        heights = np.array(visit.page.evaluate(HEIGHTS), float)
        assert np.isnan(heights[0, 0])
        assert np.isnan(heights[4, 0])
        assert np.isnan(heights).sum() == 2
        assert heights[4, 2] == pytest.approx(np.log10(2.1))  # rows are b
        texts = visit.page.evaluate("document.getElementById('surface').data.map(trace => trace.text.flat())")
        assert "not computed" in texts[0][0]
        assert all("2.000 off the plane" in trace[0] for trace in texts[1:])
        assert "true 3.0000" in texts[2][0]
        assert "a <b>" in visit.page.inner_text("dl")  # a label is text
        visit.page.focus("#which")
        visited = []
        for _ in range(5):
            visited.append(visit.page.evaluate("document.activeElement.id"))
            visit.page.keyboard.press("Tab")
        assert visited == ["which", "log", "cap", "above", "aside"]
        visit.page.uncheck("#log")
        assert visit.page.evaluate(f"{HEIGHTS}[4][2]") == pytest.approx(2.1)
        visit.page.fill("#cap", "1.5")
        assert np.nanmax(np.array(visit.page.evaluate(HEIGHTS), float)) == 1.5
        assert visit.page.evaluate(f"{HEIGHTS}[4][0]") == 1.5  # infinite
        visit.page.fill("#cap", "")
        assert visit.page.evaluate(f"{HEIGHTS}[4][0]") is None
        visit.page.select_option("#which", "train_accuracy")
        assert visit.page.is_disabled("#log")
        assert visit.page.evaluate(f"{HEIGHTS}[2][2]") == pytest.approx(1 / 1.1)


CAMERA = "document.getElementById('surface')._fullLayout.scene.camera.eye.z"


def test_the_surface_is_seen_from_above_or_the_side_and_nothing_covers_its_legend(browser, surface_file):
    with Visit(browser, surface_file) as visit:
        visit.until("document.getElementById('surface').data !== undefined")
        assert visit.page.query_selector(".modebar") is None
        visit.page.click("#above")
        visit.until(f"{CAMERA} === 1.9")
        visit.page.uncheck("#log")
        assert visit.page.evaluate(CAMERA) == 1.9
        visit.page.click("#aside")
        visit.until(f"{CAMERA} === 1.25")


def test_a_phone_shows_the_whole_surface(browser, surface_file):
    bar = "document.querySelector('.cbbg').getBoundingClientRect()"
    with Visit(browser, surface_file, viewport={"width": 390, "height": 844}) as visit:
        visit.until("document.querySelector('.cbbg') !== null")
        assert visit.page.evaluate(CAMERA) > 1.25
        assert visit.page.evaluate(f"{bar}.top") >= visit.page.evaluate(
            "document.querySelector('#surface canvas').getBoundingClientRect().bottom"
        )
        assert visit.page.evaluate("document.querySelector('#surface canvas').clientWidth") > 350
        assert visit.page.evaluate("document.documentElement.scrollWidth") == 390
        visit.page.set_viewport_size({"width": 1280, "height": 844})  # as a phone that is turned
        visit.until(f"{CAMERA} === 1.25")


@pytest.mark.parametrize("scripts", [True, False])
def test_paper_has_the_contours_in_place_of_the_surface(browser, surface_file, scripts):
    with Visit(browser, surface_file, java_script_enabled=scripts) as visit:
        assert not visit.page.is_visible("details.static svg")
        visit.page.emulate_media(media="print")
        assert visit.page.is_visible("details.static svg")
        assert visit.page.is_hidden("#surface")
        assert visit.page.is_hidden(".controls")


def test_what_is_printed_is_opened_for_it_and_closed_after(browser, surface_file):
    which = "[...document.querySelectorAll('details')].map(part => part.open)"
    with Visit(browser, surface_file) as visit:
        visit.page.evaluate("addEventListener('beforeprint', () => { window.met = " + which + " })")
        visit.page.pdf()
        assert visit.page.evaluate("window.met") == [True, False]  # the contours, the table of the trajectory
        assert visit.page.evaluate(which) == [False, False]


def test_without_scripts_the_contours_are_there(browser, surface_file):
    with Visit(browser, surface_file, java_script_enabled=False) as visit:
        visit.page.click("summary >> nth=0")
        assert visit.page.is_visible("details.static svg")
        assert "least, 0.1" in visit.page.inner_text("main")


def test_the_slider_goes_through_the_frames_by_keyboard(browser, slider_file):
    shown = "[...document.querySelectorAll('.frame')].map(f => !f.hidden && f.naturalWidth > 0)"
    with Visit(browser, slider_file) as visit:
        assert visit.complaints == []
        visit.until(f"{shown}[1]")
        assert visit.page.evaluate(shown) == [False, True, False]
        visit.page.focus("#offset")
        visit.page.keyboard.press("ArrowRight")
        assert visit.page.evaluate(shown) == [False, False, True]
        visit.page.keyboard.press("Home")
        assert visit.page.evaluate(shown) == [True, False, False]
        assert visit.page.get_attribute(".frame:not([hidden])", "alt") == "offset 0: accuracy 80.0%"
