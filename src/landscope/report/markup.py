"""Templates filled in: text escaped, figures drawn, and a security policy that names the page's own two scripts."""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

import numpy as np

from landscope import render
from landscope.figures import REFERENCE, SLOTS, Figure, slot
from landscope.report.effects import deciding
from landscope.report.held import Held
from landscope.report.texts import cell, clean, compact, paper_number, slug
from landscope.stats import Verdict, shown, shown_interval

TABLE_ROWS = 200  # of a figure's data shown in the page; `export` writes all


def filled(template: str, drawn: Sequence[Figure], **values: Any) -> str:
    """A template filled in with the figures ``drawn`` and ``values``; its policy allows its own two scripts alone."""
    from jinja2 import DictLoader, Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=DictLoader(
            {f"{n}.html": _text(f"templates/{n}.html") for n in ("page", "parts", "report", "measures", "ranking")}
        ),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: clean(value) if type(value) is str else value,
    )
    environment.filters |= {
        "slug": slug,
        "address": lambda url: url if re.match(r"https?://[^\s]+$", url) else "",
        "deciding": lambda v: _shown_deciding(v),
        "agreeing": lambda v: _agreeing(v),
    }
    names = ("vendor/plotly-cartesian.min.js", "templates/page.js", "templates/print.js")
    scripts = [_text(name) for name in names] if drawn else []
    return environment.get_template(template).render(
        **values,
        policy=_policy(scripts),
        style=Markup(_style()),  # noqa: S704 - our own text
        scripts=[Markup(s) for s in scripts],  # noqa: S704 - our own text
        data=Markup(_data(drawn)),  # noqa: S704 - escaped there
        static=lambda figure: Markup(_themed(render.svg(figure))),  # noqa: S704 - escaped by Matplotlib's XML writer
        data_table=data_table,
        shown=shown,
        shown_interval=shown_interval,
        cell=cell,
        bar=_bar,
        compact=compact,
        paper=paper_number,
    )


def _policy(scripts: Sequence[str]) -> str:
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    return "; ".join(
        [
            "default-src 'none'",
            "script-src " + (" ".join(f"'sha256-{h}'" for h in hashes) or "'none'"),
            # plotly.js sets style attributes, which hashes cannot name.
            "style-src 'unsafe-inline'",
            "img-src data: blob:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _agreeing(verdict: Verdict) -> str:
    differ = [f"{other.word} at {step}" for step, other in verdict.other_steps.items() if other.word != verdict.word]
    return ", ".join(differ) or "the same at all levels"


def _shown_deciding(verdict: Verdict) -> str:
    low, high = deciding(verdict)
    return "" if low is None or high is None else shown_interval(verdict.weakest, low, high)


def _text(name: str) -> str:
    return resources.files("landscope").joinpath(name).read_text(encoding="utf-8")


def _data(figures: Sequence[Figure]) -> str:
    """The figures for the page's script; no text in it can end the script element that holds it."""
    looks = {
        figure.name: {
            "panels": [{"title": clean(p.title), **d} for p, d in zip(figure.panels, drawn, strict=True)],
            "legend": [
                {
                    "name": clean(text),
                    "group": render.escaped(text),
                    "slot": number,
                    "mode": mode,
                    "marker": slot(number).marker,
                }
                for text, number, mode in render.legend(figure)
            ],
        }
        for figure in figures
        for drawn in [render.plotly_json(figure)]
    }
    content = {"figures": looks, "paints": render.paints()}
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"), sort_keys=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _variables(theme: str) -> str:
    colours = render.theme_of(theme)
    named = {"ink": colours.ink, "muted": colours.muted, "grid": colours.grid, "paper": colours.paper}
    named |= {f"slot-{n}": render.colour(n, theme) for n in range(len(SLOTS))}
    named["slot-reference"] = render.colour(REFERENCE, theme)
    return "".join(f"--{name}:{value};" for name, value in named.items())


def _style() -> str:
    """The style sheet; the colours come from where the figures take theirs."""
    style = _text("templates/page.css")
    return style.replace("/*light*/", _variables("light")).replace("/*dark*/", _variables("dark"))


def _themed(svg: str) -> str:
    """An SVG whose colours and font are the page's: one drawing serves light, dark and print."""
    names = dict(re.findall(r"--([\w-]+):(#\w{6});", _variables("light")))
    back = {value: f"var(--{name})" for name, value in reversed(names.items())}
    svg = re.sub(r"<[^<>]*>", lambda tag: re.sub(r"#[0-9a-f]{6}\b", lambda c: back.get(c[0], c[0]), tag[0]), svg)
    return svg.replace("font-family: 'DejaVu Sans'", "font-family: var(--sans)")


def data_table(figure: Figure) -> dict[str, Any]:
    """A figure's data for the page: its columns, at most `TABLE_ROWS` rows, evenly chosen, and how many there are."""
    table = figure.table()
    rows = [[cell(value) for value in row.values()] for row in table.rows()]
    chosen = (
        np.unique(np.linspace(0, len(rows) - 1, TABLE_ROWS).astype(int)) if len(rows) > TABLE_ROWS else range(len(rows))
    )
    return {"columns": list(table.columns), "rows": [rows[i] for i in chosen], "total": len(rows)}


def _bar(held: Held, which: int) -> int:
    """The length of an arm's bar, out of 100: proportional, yet never too short to be seen."""
    return max(2, round(100 * held.values[which] / max(held.values)))
