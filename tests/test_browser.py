"""The reports as people meet them: in a real browser, offline, on paper, without scripts, by keyboard, under attack."""

import dataclasses
import math
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import made_up
import numpy as np
import pytest

from landscope import stats
from landscope.figures import Axis, Figure, Panel, Series
from landscope.report import measures_html, to_html
from landscope.spec import Claim, Paper, Protocol, Published
from landscope.types import Estimate

pytestmark = pytest.mark.browser

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


def missing(what: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        missing("no Chromium: install chromium and fonts-liberation")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright is not installed")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="module")
def report_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(to_html(made_up.report()), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def short_file(tmp_path_factory) -> Path:
    """Every kind of part that a report has, few of each: axe takes its time."""
    full = made_up.report()
    texts = {made_up.claims()[0].text, made_up.POSITIVE.text}
    kept = [v for v in full.verdicts if v.claim.text in texts]
    path = tmp_path_factory.mktemp("report") / "short.html"
    short = dataclasses.replace(full, verdicts=kept, figures=full.figures[1:], replication=kept[:1], post_hoc=texts)
    path.write_text(to_html(short), encoding="utf-8")
    return path


class Visit:
    """A page that is open, with all it asked for and complained about."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.context = browser.new_context(**({"viewport": {"width": 1280, "height": 720}, "offline": True} | options))
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.dialogs: list[str] = []
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.on("dialog", lambda d: (self.dialogs.append(d.message), d.dismiss()))
        self.page.goto(path.as_uri())

    def draw_all(self) -> None:
        """Scroll through the page, so that every figure is drawn."""
        for figure in self.page.query_selector_all("[data-figure]"):
            figure.scroll_into_view_if_needed()
        self.until("[...document.querySelectorAll('[data-figure]')].every(f => f.matches('.live'))")
        self.page.evaluate("scrollTo(0, 0)")

    def until(self, condition: str) -> None:
        """Wait for a condition; Playwright's own way evaluates strings in the page, which the policy forbids."""
        for _ in range(600):
            if self.page.evaluate(condition):
                return
            self.page.wait_for_timeout(50)
        pytest.fail(f"this never came true: {condition}")

    def __enter__(self) -> "Visit":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


def test_it_is_offline_interactive_and_without_complaints(browser, report_file):
    with Visit(browser, report_file) as visit:
        visit.draw_all()
        outside = [url for url in visit.requests if not url.startswith(("file:", "data:", "blob:"))]
        assert outside == []
        assert (
            visit.requests.count(report_file.as_uri()) == len([u for u in visit.requests if u.startswith("file:")]) == 1
        )
        assert visit.complaints == []
        # every panel drew its points, and the policy holds: a script that is not named does not run
        panels = visit.page.evaluate("document.querySelectorAll('.plot .main-svg').length")
        assert panels >= len(made_up.claims()) + 3
        visit.page.evaluate(
            """() => { const s = document.createElement('script');
                       s.textContent = 'window.pwned = 1'; document.body.append(s) }"""
        )
        assert visit.page.evaluate("window.pwned") is None


def test_the_first_screen_answers(browser, report_file):
    report = made_up.report()
    with Visit(browser, report_file) as visit:
        rows = visit.page.query_selector_all(".matrix tbody tr:not(.positive)")
        assert len(rows) == len(made_up.claims())
        for row, claim in zip(rows, made_up.claims(), strict=True):
            box = row.bounding_box()
            assert box["y"] >= 0
            assert box["y"] + box["height"] <= 720
            text = " ".join(row.inner_text().split())
            first = next(v for v in report.verdicts if v.claim.text == claim.text and v.control is None)
            assert first.effect is not None
            assert first.holm_low is not None
            assert first.holm_high is not None
            assert claim.text in text
            assert first.word in text
            assert stats.shown(claim, first.effect) in text
            assert stats.shown_interval(claim, first.holm_low, first.holm_high) in text
            assert text.count(f"n = {first.n}") >= len(made_up.PROTOCOLS)
            if claim.paper:
                assert claim.paper.source in text
        assert visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("width", [390, 320])
def test_a_phone_needs_no_sideways_scrolling(browser, report_file, width):
    with Visit(browser, report_file, viewport={"width": width, "height": 844}) as visit:
        visit.draw_all()
        assert visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


VIEWS = {
    "light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light"},
    "phone, dark": {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"},
    "forced colours": {"viewport": {"width": 1280, "height": 900}, "forced_colors": "active"},
    "zoom 200 %": {"viewport": {"width": 640, "height": 450}, "device_scale_factor": 2},
}


@pytest.mark.parametrize("view", list(VIEWS))
def test_axe_finds_nothing(browser, report_file, short_file, root, view):
    axe = (root / "tests" / "vendor" / "axe.min.js").read_text(encoding="utf-8")
    with Visit(browser, report_file if view == "light" else short_file, **VIEWS[view]) as visit:
        visit.draw_all()
        if view == "light":  # the tables are long, and the same in every view
            visit.page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
        visit.page.evaluate(axe)
        found = visit.page.evaluate(
            "axe.run().then(r => r.violations.map(v => [v.id, v.impact, v.nodes[0].html.slice(0, 200)]))"
        )
        assert found == []


def test_the_measures_page_is_accessible_too(browser, root, tmp_path):
    axe = (root / "tests" / "vendor" / "axe.min.js").read_text(encoding="utf-8")
    path = tmp_path / "measures.html"
    values = {"perturbation": {"loss": Estimate.of([1.0, 2.0]), "curve": np.arange(3.0), "exact": 2.0}}
    figures = made_up.drawn(made_up.tables())[:1]
    path.write_text(measures_html("A network", {"parameters": "12"}, values, figures=figures), encoding="utf-8")
    with Visit(browser, path) as visit:
        visit.draw_all()
        visit.page.evaluate(axe)
        assert visit.page.evaluate("axe.run().then(r => r.violations.map(v => v.id))") == []
        assert visit.complaints == []


def test_every_figure_says_its_finding_and_has_its_data(browser, report_file):
    with Visit(browser, report_file) as visit:
        visit.draw_all()
        figures = visit.page.evaluate(
            """[...document.querySelectorAll('figure')].map(f => ({
                role: f.getAttribute('role'), label: f.getAttribute('aria-label'),
                rows: f.querySelectorAll('details table tbody tr').length,
                caption: f.querySelector('figcaption').innerText,
                inner: [...f.querySelectorAll('[role=img]')].map(i => i.getAttribute('aria-label'))}))"""
        )
        assert len(figures) == len(made_up.claims()) + 3
        for figure in figures:
            assert figure["role"] == "figure"
            assert len(figure["label"]) >= 40
            assert re.search(r"\d", figure["label"])
            assert figure["label"] in " ".join(figure["caption"].split())
            assert figure["rows"] > 0
            assert all(figure["inner"])
        badges = visit.page.evaluate(
            "[...document.querySelectorAll('.badge')].map(b => [b.innerText.trim(), !!b.querySelector('svg')])"
        )
        assert badges
        assert all(word and icon for word, icon in badges)


def test_everything_is_reached_by_keyboard(browser, report_file):
    with Visit(browser, report_file) as visit:
        visit.draw_all()
        button = visit.page.query_selector("#figure-learning-curves .legend button")
        button.focus()
        count = "document.querySelector('#figure-learning-curves .plot').data.filter(t => t.visible === false).length"
        visit.page.keyboard.press("Enter")
        visit.until(f"{count} > 0")
        assert button.get_attribute("aria-pressed") == "false"
        visit.page.keyboard.press("Space")
        visit.until(f"{count} === 0")
        unreachable = visit.page.evaluate(
            """[...document.querySelectorAll('a[href], button, summary, [tabindex]')]
               .filter(e => e.tabIndex < 0 && e.getClientRects().length).map(e => e.outerHTML.slice(0, 100))"""
        )
        assert unreachable == []


def test_the_theme_can_change_while_it_is_open(browser, report_file):
    colour = "document.querySelector('#figure-learning-curves .plot')._fullLayout.font.color"
    with Visit(browser, report_file, color_scheme="light") as visit:
        visit.draw_all()
        light = visit.page.evaluate(colour)
        visit.page.emulate_media(color_scheme="dark")
        visit.until(f"{colour} !== '{light}'")
        assert visit.complaints == []


def printed(visit: Visit, path: Path) -> str:
    if shutil.which("pdftotext") is None:
        missing("pdftotext is missing: install poppler-utils")
    visit.page.pdf(path=path, prefer_css_page_size=True)
    done = subprocess.run(["pdftotext", "-layout", path, "-"], capture_output=True, text=True, check=True)
    return " ".join(done.stdout.split())


@pytest.mark.parametrize("scripts", [False, True])
def test_it_works_on_paper_and_without_scripts(browser, report_file, tmp_path, scripts):
    report = made_up.report()
    with Visit(browser, report_file, java_script_enabled=scripts) as visit:
        if scripts:
            visit.draw_all()
        else:
            for drawing in visit.page.query_selector_all("figure .static svg"):
                box = drawing.bounding_box()
                assert box["width"] > 300
                assert box["height"] > 150
            assert visit.page.query_selector(".interactive").is_hidden()
        text = printed(visit, tmp_path / "printed.pdf")
        for claim in made_up.claims():
            assert claim.text in text
        for verdict in report.verdicts:
            assert verdict.word in text
        # findings are set in narrow columns: their words stand in order
        for figure in report.figures:
            assert figure.finding[:60] in text
            assert figure.panels[0].x.label in text
        for keys in report.runs.values():
            assert keys[-1] in text


# --- S3 ----------------------------------------------------------------------------------------------------------

DO = "window.pwned=1;alert(1)"
PAYLOADS = [
    *(
        f"<script>{DO}</script>",
        f"</script><script>{DO}</script>",
        f"--><script>{DO}</script>",
        f"]]><script>{DO}</script>",
    ),
    *(f"</title><script>{DO}</script>", f"</style><script>{DO}</script>", f"</textarea><script>{DO}</script>"),
    *(f"</svg><script>{DO}</script>", f"</noscript><script>{DO}</script>", f"</template><script>{DO}</script>"),
    *(
        f"<ScRiPt>{DO}</sCrIpT>",
        f"<script >{DO}</script >",
        f"<script/x>{DO}</script>",
        f"<scr<script>ipt>{DO}</script>",
    ),
    *(f"<img src=x onerror={DO}>", f'"><img src=x onerror="{DO}">', f"'><img src=x onerror='{DO}'>"),
    *(f"<img src=https://evil.invalid/{i}.png>" for i in range(2)),
    *(f"<svg onload={DO}>", f"<svg/onload={DO}>", f"<svg><script>{DO}</script></svg>", f"<svg><g onload={DO}></svg>"),
    *(
        f"<svg><animate onbegin={DO} attributeName=x dur=1s>",
        f"<svg><a href='javascript:{DO}'><text y=9>x</text></a></svg>",
    ),
    *(f"<math><maction actiontype=statusline xlink:href=javascript:{DO}>x</maction></math>", f"<body onload={DO}>"),
    *(f"<iframe src=javascript:{DO}></iframe>", f"<iframe srcdoc='<script>parent.{DO}</script>'></iframe>"),
    *(
        f"<object data=javascript:{DO}>",
        f"<embed src=javascript:{DO}>",
        "<link rel=stylesheet href=https://evil.invalid/x.css>",
    ),
    *("<base href=https://evil.invalid/>", "<meta http-equiv=refresh content='0;url=https://evil.invalid/'>"),
    *(
        f"<a href=javascript:{DO}>x</a>",
        f"<a href='&#106;avascript:{DO}'>x</a>",
        f"[x](javascript:{DO})",
        f"javascript:{DO}",
    ),
    *(f"<details open ontoggle={DO}>", f"<input autofocus onfocus={DO}>", f"<select autofocus onfocus={DO}>"),
    *(f"<video><source onerror={DO}></video>", f"<audio src=x onerror={DO}>", f"<marquee onstart={DO}>"),
    *(
        f'" onmouseover="{DO}',
        f"' onmouseover='{DO}",
        f"` onmouseover=`{DO}",
        f'" autofocus onfocus="{DO}',
        f"x onclick={DO}",
    ),
    *('" style="background:url(https://evil.invalid/s)" x="', "</style><style>@import 'https://evil.invalid/i.css';"),
    *(f"{{{{ {DO} }}}}", "{% print(1/0) %}", "{{ config.__class__ }}", f"${{{DO}}}", f"<%= {DO} %>", "#{7*7}"),
    *(
        f"\\u003cscript\\u003e{DO}\\u003c/script\\u003e",
        f"&lt;script&gt;{DO}&lt;/script&gt;",
        f"%3Cscript%3E{DO}%3C/script%3E",
    ),
    *(
        f'";{DO}//',
        f"';{DO}//",
        f"\\';{DO}//",
        f"\u2028{DO}//",
        f"\u2029{DO}\n//",
        f"*/{DO}/*",
        f"-->{DO}",
        "<!--",
        "<![CDATA[",
    ),
    *(
        f"+ADw-script+AD4-{DO}+ADw-/script+AD4-",
        f"\x00<script>{DO}</script>",
        f"<\x00script>{DO}</script>",
        "\u202e<b>\u202c",
    ),
    *(
        f'x" id="main" onload="{DO}',
        "$\\href{javascript:alert(1)}{x}$",
        f"<b><a href='https://evil.invalid/{DO}'>x</a></b>",
    ),
    *(
        "<form action=https://evil.invalid/><button>x</button></form>",
        "\ud800<script>",
        "<plaintext>",
        "<noscript><p title='",
    ),
]


def attacked(payloads: list[str]) -> str:
    """A report in which each payload stands in every kind of text, and all of them wherever there is but one text."""
    everything = " ".join(payloads)
    honest = made_up.report()
    effect = honest.verdicts[0]
    claims = [
        Claim(
            p,
            made_up.claims()[0].statistic,
            "greater",
            smallest=0.1,
            reason=p,
            unit=p,
            paper=Published(1.0, 1, p),
            expectation=p,
        )
        for p in payloads
    ]
    assert effect.units is not None
    units = dataclasses.replace(effect.units, unit=everything, ids=(everything, *effect.units.ids[1:]), note=everything)
    verdicts = [
        dataclasses.replace(
            effect, claim=c, control=control, protocol=c.text, word="not testable", reason=c.text, effect=None
        )
        for c in claims[1:]
        for control in (None, payloads[0])
    ]
    verdicts += [
        dataclasses.replace(
            effect, claim=claims[0], control=c, seeds_note=everything, units=units, extra={everything: 1.0}
        )
        for c in (None, payloads[-1])
    ]
    x = np.array([1.0, 2.0])
    panels = tuple(
        Panel(p, Axis(p, ticks=((1, 2), (p, q))), Axis(q), (Series(q, x, x, mode="points", hover=(p, q), group=p),))
        for p, q in zip(payloads[::2], payloads[1::2], strict=False)
    )
    lines = tuple(Series(p, x, x, hover=(p, p)) for p in payloads)
    figures = (
        Figure(
            "attack",
            everything,
            everything + " 1" + "." * 40,
            (*panels, Panel("p", Axis("x"), Axis("y"), lines)),
            everything,
        ),
    )
    experiment = made_up.experiment(
        paper=Paper(everything, everything, everything, 2026, payloads[-1]),
        title=everything,
        summary=everything,
        runs={p: Protocol(made_up.grid, p) for p in payloads},
        claims=lambda scale, data: tuple(claims),
        deviations=tuple(payloads),
        varied=tuple(payloads),
        fixed=tuple(payloads),
    )
    texts = {p: p for p in payloads}
    return to_html(
        made_up.report(
            name=everything,
            experiment=experiment,
            scale=everything,
            data=everything,
            verdicts=verdicts,
            tables={p: next(iter(honest.tables.values())) for p in payloads},
            figures=figures,
            runs={p: (p,) for p in payloads},
            counts={p: {p: 1} for p in payloads},
            command=everything,
            environment=texts,
            plan=texts,
            post_hoc=tuple(payloads),
            replication=verdicts[:1],
            replication_seeds=everything,
            version=everything,
        )
    )


def test_there_are_enough_attacks():
    assert len(set(PAYLOADS)) >= 60
    assert math.ceil(len(PAYLOADS) / 12) <= 8


@pytest.mark.parametrize("part", range(math.ceil(len(PAYLOADS) / 12)))
def test_no_text_becomes_markup(browser, tmp_path, part):
    path = tmp_path / "report.html"
    path.write_text(attacked(PAYLOADS[12 * part : 12 * part + 12]), encoding="utf-8")
    # The policy is switched off: escaping alone must hold.
    with Visit(browser, path, bypass_csp=True, offline=False) as visit:
        visit.page.route(re.compile("^https?:"), lambda route: route.abort())
        visit.draw_all()
        visit.page.evaluate(
            """document.querySelectorAll('.plot').forEach(p => {
                 for (let i = 0; i < p.data.length; i++) Plotly.Fx.hover(p, [{curveNumber: i, pointNumber: 0}]) })"""
        )
        visit.page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
        visit.page.mouse.move(200, 200)
        assert visit.page.evaluate("window.pwned") is None
        assert visit.dialogs == []
        assert [u for u in visit.requests if not u.startswith(("file:", "data:", "blob:"))] == []
        foreign = visit.page.evaluate(
            """({
                links: [...document.querySelectorAll('a')]
                         .map(a => a.getAttribute('href') || a.getAttribute('xlink:href') || '')
                         .filter(h => !/^(#|https:[/][/]arxiv)/.test(h)),
                scripts: document.scripts.length,
                alien: [...document.querySelectorAll('iframe,object,embed,base,link,form,video,audio,img,math')]
                         .map(e => e.outerHTML),
                handlers: [...document.querySelectorAll('*')]
                            .filter(e => [...e.attributes].some(a => /^on/i.test(a.name))).length,
                twice: [...document.querySelectorAll('[id]')].map(e => e.id)
                         .filter((id, i, all) => all.indexOf(id) < i),
                mains: document.querySelectorAll('#main').length,
            })"""
        )
        assert foreign == {"links": [], "scripts": 3, "alien": [], "handlers": 0, "twice": [], "mains": 1}
