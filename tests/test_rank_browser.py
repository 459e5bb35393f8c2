"""The page of a ranking in a real browser: offline, readable in both themes and on paper, accessible."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ranked import related, runs
from visits import Visit, opened

from landscope.report import ranking_html
from landscope.stats import rank_measures
from landscope.types import Table

pytestmark = pytest.mark.browser

VIEWS = {
    "light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light"},
    "forced colours": {"viewport": {"width": 1280, "height": 900}, "forced_colors": "active"},
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from opened()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rank") / "rank.html"
    path.write_text(ranking_html(rank_measures(Table.of(runs(related, seeds=2)), draws=100)), encoding="utf-8")
    return path


@pytest.mark.parametrize("view", list(VIEWS))
def test_the_page_is_accessible_and_asks_for_nothing(browser, page_file, root, view):
    axe = (root / "tests" / "vendor" / "axe.min.js").read_text(encoding="utf-8")
    with Visit(browser, page_file, **VIEWS[view]) as visit:
        visit.draw_all()
        visit.page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
        assert visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        visit.page.evaluate(axe)
        assert visit.page.evaluate("axe.run().then(r => r.violations.map(v => [v.id, v.nodes[0].html]))") == []
        assert visit.complaints == []
        assert [url for url in visit.requests if not url.startswith(("file:", "data:", "blob:"))] == []


def test_the_page_works_without_scripts(browser, page_file):
    with Visit(browser, page_file, java_script_enabled=False) as visit:
        assert len(visit.page.query_selector_all("figure .static svg")) == 1
        cells = visit.page.query_selector_all(".heat td")
        assert len(cells) == 3 * (3 + 1 + 1)
        assert all(cell.inner_text().endswith("%") for cell in cells)
