"""The reports under attack: no text that comes from outside becomes markup or runs."""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import made_up
import numpy as np
import pytest
from visits import Visit, opened

from landscope.figures import Axis, Figure, Panel, Series
from landscope.report import to_html
from landscope.spec import Claim, Paper, Protocol, Published

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from opened()


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
        assert foreign == {"links": [], "scripts": 4, "alien": [], "handlers": 0, "twice": [], "mains": 1}
