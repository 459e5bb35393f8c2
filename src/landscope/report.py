"""What an experiment found, as one self-contained HTML file, as JSON for programs, and as files for a paper.

A report is made of facts that somebody else gathered (`Report`): nothing here reads a store, trains or judges, and
nothing imports PyTorch. The page opens offline, asks for nothing, runs only the two scripts whose hashes its own
security policy names, and works without them. The same facts give the same bytes.
"""

import base64
import hashlib
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from landscope import render
from landscope.figures import REFERENCE, SLOTS, Axis, Figure, Panel, Series, slot
from landscope.spec import Claim, Experiment, step_name
from landscope.stats import Verdict, shown, shown_interval
from landscope.types import Estimate, Table

TABLE_ROWS = 200  # of a figure's data shown in the page; `export` writes all
EQUAL = 1.1  # arms whose means differ by less than this factor are called equal


@dataclass(frozen=True, eq=False)
class Report:
    """Everything that a report says.

    Args:
        name: The experiment's name on the command line.
        experiment: The experiment.
        scale: smoke, laptop or paper.
        data: The data set, as it was named.
        seeds: How many seeds were planned: 0 to ``seeds - 1``.
        verdicts: What `landscope.stats.judge` said, the published protocol first.
        tables: By protocol, the results at the judged step: what `judge` was given.
        figures: What the experiment draws.
        runs: By protocol, the keys of the runs behind its numbers.
        counts: By protocol, how many runs are planned, done, diverged, censored, missing.
        command: The exact command that makes these numbers again.
        environment: Versions, processor, operating system: for people, not part of the JSON.
        plan: What was planned (executor, checks), in words.
        post_hoc: Texts of claims that changed after the first judging run.
        replication: Verdicts on a second block of seeds, judged alone.
        replication_seeds: Which seeds those are, in words.
        version: Landscope's.
        arms: The column whose values are the arms that claims compare.
    """

    name: str
    experiment: Experiment
    scale: str
    data: str
    seeds: int
    verdicts: Sequence[Verdict]
    tables: Mapping[str, Table] = field(default_factory=dict)
    figures: Sequence[Figure] = ()
    runs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    command: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    plan: Mapping[str, str] = field(default_factory=dict)
    post_hoc: Collection[str] = ()
    replication: Sequence[Verdict] = ()
    replication_seeds: str = ""
    version: str = ""
    arms: str = "batch_size"

    def __post_init__(self) -> None:
        """Refuse two figures of one name: their files would overwrite each other."""
        names = [figure.name for figure in self.figures]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"figures have different names; there are several called {', '.join(twice)}")


# --- for programs ------------------------------------------------------------------------------------------------


def to_json(report: Report) -> dict[str, Any]:
    """The facts as JSON values; numbers are on the scale of each claim's statistic (``unit`` says how to show them).

    ``claims`` has one entry per primary claim and protocol with at least ``text, effect, low, high, p_adjusted,
    verdict, paper, n, control``; low and high are the 95 % interval, and the verdict is supported, contradicted,
    inconclusive or not testable (results that are only described are not testable, and their reason says why).
    ``exploratory`` and ``positive_controls`` hold those claims alike. What differs between machines is left out.
    """
    paper = report.experiment.paper
    claimed = [v for v in report.verdicts if v.claim.primary and not v.claim.positive]
    exploratory = [v for v in report.verdicts if not v.claim.primary]
    positive = [v for v in report.verdicts if v.claim.primary and v.claim.positive]
    return {
        "experiment": report.name,
        "title": report.experiment.title,
        "scale": report.scale,
        "data": report.data,
        "seeds": report.seeds,
        "paper": {k: getattr(paper, k) for k in ("key", "title", "authors", "year", "url")},
        "claims": [_claim_json(v, report) for v in claimed],
        "exploratory": [_claim_json(v, report) for v in exploratory],
        "positive_controls": [_claim_json(v, report) for v in positive],
        "replication": [_claim_json(v, report) for v in report.replication],
        "counts": {protocol: dict(counts) for protocol, counts in report.counts.items()},
        "runs": {protocol: list(keys) for protocol, keys in report.runs.items()},
        "figures": [{"name": f.name, "title": f.title, "finding": f.finding} for f in report.figures],
        "command": report.command,
    }


def _claim_json(verdict: Verdict, report: Report) -> dict[str, Any]:
    facts = verdict.to_json() | {"post_hoc": verdict.claim.text in report.post_hoc}
    return facts | {"verdict": "not testable"} if verdict.word == "descriptive" else facts


# --- what is held equal ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Held:
    """One quantity under one protocol, by arm: the geometric mean over the runs.

    Args:
        arms: The first and the last arm's names.
        values: The first and the last arm's means.
        factor: The largest arm's mean by the smallest's.
    """

    arms: tuple[str, str]
    values: tuple[float, float]
    factor: float

    @property
    def equal(self) -> bool:
        """Whether all arms agree within 10 %."""
        return self.factor <= EQUAL


QUANTITIES = (
    ("training loss", "at the moment of measuring", lambda r: r["train_loss"]),
    ("optimizer steps", "updates of the weights", lambda r: r["steps_made"]),
    ("samples seen", "steps × batch size: passes over the data", lambda r: r["steps_made"] * r["batch_size"]),
    (
        "learning rate ÷ batch size",
        "sets the noise of the gradients",
        lambda r: r["optimizer.lr"] / r["batch_size"],
    ),
)


def held_equal(tables: Mapping[str, Table], arms: str = "batch_size") -> dict[str, dict[str, Held]]:
    """What each protocol did hold equal between its arms, as measured: by protocol and quantity.

    Args:
        tables: By protocol, the results at the judged step.
        arms: The column whose values are the arms.

    Returns:
        By protocol, those of the `QUANTITIES` whose columns are there; nothing where there are not two arms.
    """
    return {protocol: _held(table, arms) for protocol, table in tables.items()}


def _held(table: Table, arms: str) -> dict[str, Held]:
    found: dict[str, Held] = {}
    if arms not in table.columns or len(table.distinct(arms)) < 2:
        return found
    for name, _, value in QUANTITIES:
        means = []
        for arm in table.distinct(arms):
            numbers = [_positive(value, row) for row in table.where(**{arms: arm}).rows()]
            logs = [math.log(n) for n in numbers if n is not None]
            if logs:
                means.append(
                    (f"{arm:g}" if isinstance(arm, (int, float)) else str(arm), math.exp(sum(logs) / len(logs)))
                )
        if len(means) > 1:
            values = [m for _, m in means]
            ends = (means[0][1], means[-1][1])
            found[name] = Held((means[0][0], means[-1][0]), ends, max(values) / min(values))
    return found


def _positive(value: Any, row: Mapping[str, Any]) -> float | None:
    try:
        number = float(value(row))
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return number if math.isfinite(number) and number > 0 else None


# --- effects as a figure -----------------------------------------------------------------------------------------


def forest(verdicts: Sequence[Verdict], name: str) -> Figure | None:
    """One claim's effect under every protocol: interval, every unit's value, null, smallest effect, paper's number.

    Args:
        verdicts: The verdicts on one claim, the published protocol first.
        name: The figure's name.

    Returns:
        The figure, or None where no protocol has an effect to show.
    """
    kept = [v for v in verdicts if v.effect is not None and v.units is not None and math.isfinite(v.effect)]
    if not kept:
        return None
    claim = kept[0].weakest
    x = np.concatenate([_scaled(claim, [v.effect, *_deciding(v), *_values(v)]) for v in kept])
    marks = [claim.null] + [m for m in (claim.smallest, claim.paper and claim.paper.value) if m is not None]
    shown_there = np.concatenate([x[np.isfinite(x)], _scaled(claim, marks)])
    log = claim.unit == "ratio" and float(shown_there.min()) > 0
    rows = (-0.6, len(kept) - 0.4)
    series = [*_reference(claim, rows), *(s for i, v in enumerate(kept) for s in _effect(v, i, len(kept)))]
    names = [v.control or "published protocol" for v in kept]
    ticks = (tuple(float(len(kept) - 1 - i) for i in range(len(kept))), tuple(names))
    labels = {"ratio": "ratio", "points": "difference (percentage points)", "tau": "Kendall’s τ"}
    panel = Panel(
        claim.text,
        Axis("effect: " + labels.get(claim.unit, "on the statistic’s scale"), log=log),
        Axis("protocol", ticks=ticks, limits=rows),
        tuple(series),
    )
    note = (
        "Bars: the interval that decides the verdict. Small points: one for each unit. Shaded: effects too small to "
        "matter, from no effect to the smallest of interest."
    )
    return Figure(name, f"Effect under each protocol: {claim.text}", _told(kept), (panel,), note)


def _scaled(claim: Claim, values: Sequence[float | None]) -> np.ndarray:
    array = np.array([math.nan if v is None else v for v in values], dtype=np.float64)
    if claim.unit == "ratio":
        array = np.exp(np.clip(array, -300, 300))
    scaled = array * 100 if claim.unit == "points" else array
    return np.where(np.isfinite(scaled), scaled, np.nan)


def _deciding(verdict: Verdict) -> tuple[float | None, float | None]:
    """The interval that decides the verdict; the 95 % one where nothing is decided."""
    if verdict.holm_low is not None and verdict.holm_high is not None:
        return verdict.holm_low, verdict.holm_high
    return verdict.low, verdict.high


def _values(verdict: Verdict) -> Sequence[float]:
    return () if verdict.units is None else [float(v) for v in verdict.units.values]


def _reference(claim: Claim, rows: tuple[float, float]) -> list[Series]:
    ends = np.array(rows)
    null = _scaled(claim, [claim.null] * 2)
    drawn = []
    if claim.smallest is not None:
        near, far = sorted((null[0], _scaled(claim, [claim.smallest])[0]))
        nowhere = np.full(2, np.nan)
        low, high = np.full(2, near), np.full(2, far)
        drawn.append(Series("too small to matter", nowhere, ends, low, high, slot=REFERENCE, along="x"))
    drawn.append(Series("no effect", null, ends, slot=REFERENCE))
    return drawn


def _effect(verdict: Verdict, i: int, rows: int) -> list[Series]:
    claim, y = verdict.weakest, float(rows - 1 - i)
    values = _scaled(claim, _values(verdict))
    low, high = (_scaled(claim, [end]) for end in _deciding(verdict))
    number = 0 if verdict.control is None else 1
    unit = verdict.units.unit if verdict.units else "unit"
    ids = tuple(f"{unit} {i}" for i in verdict.units.ids) if verdict.units else ()
    group = "controls" if verdict.control else "published protocol"
    name = verdict.control or "published protocol"
    drawn = [
        Series(
            f"{name}, each {unit}",
            values,
            np.full(len(values), y - 0.22),
            mode="points",
            slot=number,
            hover=ids if len(ids) == len(values) else None,
            group=group,
            faint=True,
        ),
        Series(
            name,
            _scaled(claim, [verdict.effect]),
            np.array([y]),
            low,
            high,
            "points",
            number,
            (f"{verdict.word}, n = {verdict.n}",),
            group,
            along="x",
        ),
    ]
    if verdict.control is None and claim.paper is not None:
        paper = _scaled(claim, [claim.paper.value])
        drawn.append(Series("the paper’s number", paper, np.array([y + 0.22]), mode="points", slot=4))
    return drawn


def _told(verdicts: Sequence[Verdict]) -> str:
    """The finding of a forest plot, with its numbers."""
    told = [
        f"{v.control or 'published protocol'} {shown(v.weakest, v.effect or 0.0)} ({v.word}, n = {v.n})"
        for v in verdicts
    ]
    return f"{verdicts[0].claim.text.rstrip('.')}: " + "; ".join(told) + "."


# --- the page ----------------------------------------------------------------------------------------------------


def to_html(report: Report) -> str:
    """The report as one HTML file that needs nothing else."""
    cards = _cards(report)
    figures = [card["figure"] for card in cards if card["figure"] is not None]
    held = held_equal(report.tables, report.arms)
    return _page(
        "report.html",
        [*figures, *report.figures],
        report=report,
        experiment=report.experiment,
        published=next(iter(report.experiment.runs), "published"),
        controls=list(
            dict.fromkeys(v.control for v in report.verdicts if v.control is not None and not v.claim.positive)
        ),
        cards=cards,
        headline=headline(report.verdicts),
        held=held,
        quantities=[(name, why) for name, why, _ in QUANTITIES if any(name in h for h in held.values())],
        step_name=step_name,
        judged=sorted({step_name(p.judged) for p in report.experiment.runs.values()}),
    )


def headline(verdicts: Sequence[Verdict]) -> str:
    """The answer in two sentences: what holds as published, and what survives the controls."""
    known = [v for v in verdicts if v.claim.positive]
    verdicts = [v for v in verdicts if not v.claim.positive]
    published = [v for v in verdicts if v.control is None]
    if known:
        found = "found" if all(v.word == "supported" for v in known) else "not found"
        return f"{headline(verdicts)} The positive control is {found}."
    words = [v.word for v in published]
    counts = [(words.count(w), w) for w in dict.fromkeys(words)]
    if not published:
        return "Nothing has been judged yet."
    total = len(published)
    if len(counts) == 1:
        all_of = "The claim is" if total == 1 else f"All {total} claims are"
        said = f"{all_of} {words[0]} under the paper’s own protocol"
    else:
        parts = [f"{n} {_is(n)} {word}" for n, word in counts]
        said = f"Of {total} claims, {_listed(parts)} under the paper’s own protocol"
    held = [v.claim.text for v in published if v.word == "supported"]
    controls = {v.control for v in verdicts if v.control is not None}
    if not held or not controls:
        return f"{said}."
    kept = sum(all(v.word == "supported" for v in verdicts if v.claim.text == text) for text in held)
    every = "the control" if len(controls) == 1 else f"all {len(controls)} controls"
    if len(held) == 1:
        one = "it" if total == 1 else "the supported one"
        return f"{said}; {one} {'survives' if kept else 'does not survive'} {every}."
    fate = "none of them survives" if not kept else "all of them survive" if kept == len(held) else None
    return (
        f"{said}; {fate or f'{kept} of the {len(held)} supported ' + ('survives' if kept == 1 else 'survive')} {every}."
    )


def _is(n: int) -> str:
    return "is" if n == 1 else "are"


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _cards(report: Report) -> list[dict[str, Any]]:
    """What the page says of each claim, in the experiment's order."""
    cards = []
    for text in dict.fromkeys(v.claim.text for v in report.verdicts):
        verdicts = [v for v in report.verdicts if v.claim.text == text]
        verdicts.sort(key=lambda v: v.control is not None)
        number = len(cards) + 1
        claim = verdicts[0].claim
        cards.append(
            {
                "id": f"claim-{number}",
                "claim": claim,
                "weakest": verdicts[0].weakest,
                "verdicts": verdicts,
                "by_control": {v.control: v for v in verdicts},
                "figure": forest(verdicts, f"effect-{number}"),
                "post_hoc": text in report.post_hoc,
                "replication": [v for v in report.replication if v.claim.text == text],
            }
        )
    return cards


def measures_html(
    title: str,
    facts: Mapping[str, str],
    values: Mapping[str, Mapping[str, Any]],
    *,
    figures: Sequence[Figure] = (),
    command: str = "",
    environment: Mapping[str, str] | None = None,
    notes: Mapping[str, str] | None = None,
    version: str = "",
) -> str:
    """The measures of one network as an HTML file in the look of the reports.

    Args:
        title: What was measured.
        facts: The network and its data: ``{"parameters": "9,610", …}``.
        values: By measure, by name: a float, an `Estimate`, or an array (a tensor too).
        figures: Figures of arrays, if there are any.
        command: The command that measures this again.
        environment: Versions, processor, operating system.
        notes: By measure, what it is, in a sentence or two.
        version: Landscope's.
    """
    rows = [
        (measure, [(name, *_measured(value)) for name, value in named.items()]) for measure, named in values.items()
    ]
    return _page(
        "measures.html",
        list(figures),
        title=title,
        facts=facts,
        rows=rows,
        figures=figures,
        command=command,
        environment=environment or {},
        notes=notes or {},
        version=version,
    )


def _measured(value: Any) -> tuple[str, str, str, list[str]]:
    """A measured value as (number, standard error, interval, further numbers)."""
    if isinstance(value, Estimate):
        error = "exact" if value.sem == 0 else f"{value.sem:.2g} (n = {value.n})"
        spans = value.sem > 0 and value.freedom > 0
        interval = "{:.5g} to {:.5g}".format(*value.interval()) if spans else ""
        return f"{value.mean:.5g}", error, interval, []
    listed = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(listed, (list, tuple)):
        flat = [f"{v:.5g}" for v in np.asarray(listed, dtype=np.float64).reshape(-1)]
        shape = " × ".join(map(str, np.shape(listed)))
        return f"{shape} numbers", "", "", flat[:1000]
    return f"{listed:.5g}" if isinstance(listed, float) else str(listed), "", "", []


def _page(template: str, drawn: Sequence[Figure], **values: Any) -> str:
    """A template filled in, with the policy that allows its own two scripts and nothing else."""
    from jinja2 import DictLoader, Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=DictLoader(
            {n: _text(f"templates/{n}") for n in ("page.html", "parts.html", "report.html", "measures.html")}
        ),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: _clean(value) if type(value) is str else value,
    )
    environment.filters |= {
        "slug": _slug,
        "address": lambda url: url if re.match(r"https?://[^\s]+$", url) else "",
        "deciding": lambda v: _shown_deciding(v),
    }
    scripts = [_text("vendor/plotly-cartesian.min.js"), _text("templates/page.js")] if drawn else []
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    policy = "; ".join(
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
    return environment.get_template(template).render(
        **values,
        policy=policy,
        style=Markup(_style()),  # noqa: S704 - our own text
        scripts=[Markup(s) for s in scripts],  # noqa: S704 - our own text
        data=Markup(_data(drawn)),  # noqa: S704 - escaped there
        static=lambda figure: Markup(_themed(render.svg(figure))),  # noqa: S704 - escaped by Matplotlib's XML writer
        data_table=data_table,
        shown=shown,
        shown_interval=shown_interval,
        cell=_cell,
        bar=_bar,
        compact=compact,
        paper=_paper,
    )


def _shown_deciding(verdict: Verdict) -> str:
    low, high = _deciding(verdict)
    return "" if low is None or high is None else shown_interval(verdict.weakest, low, high)


def _text(name: str) -> str:
    return resources.files("landscope").joinpath(name).read_text(encoding="utf-8")


def _clean(text: str) -> str:
    """Text without control characters and without those that turn the direction of writing."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]", "\ufffd", text)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "none"


def _data(figures: Sequence[Figure]) -> str:
    """The figures for the page's script; no text in it can end the script element that holds it."""
    looks = {
        figure.name: {
            "panels": [{"title": _clean(p.title), **d} for p, d in zip(figure.panels, drawn, strict=True)],
            "legend": [
                {
                    "name": _clean(text),
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
    rows = [[_cell(value) for value in row.values()] for row in table.rows()]
    chosen = (
        np.unique(np.linspace(0, len(rows) - 1, TABLE_ROWS).astype(int)) if len(rows) > TABLE_ROWS else range(len(rows))
    )
    return {"columns": list(table.columns), "rows": [rows[i] for i in chosen], "total": len(rows)}


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.5g}".replace("-", "−")
    return str(value)


def compact(value: float | int) -> str:
    """A number in three significant digits without an exponent where that is readable.

    >>> compact(12000.0), compact(0.000625), compact(9.77e-6)
    ('12,000', '0.000625', '9.77e-06')
    """
    return f"{float(f'{value:.3g}'):,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"


def _paper(claim: Claim) -> str:
    """The paper's number in as many digits as it was given with: it is a quotation, not an estimate."""
    if claim.paper is None:
        return ""
    if claim.unit == "ratio" and abs(claim.paper.value) < math.log(1e4):
        return f"×{math.exp(claim.paper.value):.4g}"
    return shown(claim, claim.paper.value)


def _bar(held: Held, which: int) -> int:
    """The length of an arm's bar, out of 100: proportional, yet never too short to be seen."""
    return max(2, round(100 * held.values[which] / max(held.values)))


# --- files for a paper -------------------------------------------------------------------------------------------


def export(report: Report, folder: Path | str) -> list[Path]:
    """Write every figure as PDF (3.25 and 6.75 inches wide) and PNG, and every table as CSV and LaTeX (booktabs).

    Args:
        report: What to write.
        folder: Made where it is missing; files of the same names are replaced.

    Returns:
        The files written, in order.
    """
    folder = Path(folder)
    forests = [card["figure"] for card in _cards(report) if card["figure"] is not None]
    files: dict[str, bytes] = {}
    tables = {"verdicts": verdict_table(report.verdicts)}
    for figure in [*forests, *report.figures]:
        for width in render.WIDTHS:
            files[f"figures/{figure.name}-{width:g}in.pdf"] = render.pdf(figure, width)
        files[f"figures/{figure.name}.png"] = render.png(figure)
        tables[f"figure-{figure.name}"] = figure.table()
    for i, (protocol, table) in enumerate(report.tables.items()):
        tables[f"results-{i}-{_slug(protocol)}"] = table
    for name, table in tables.items():
        files[f"tables/{name}.csv"] = to_csv(table).encode()
        files[f"tables/{name}.tex"] = to_latex(table).encode()
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return [folder / name for name in files]


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """The verdicts as a table, numbers on the scale of each claim's statistic."""
    return Table.of(
        {
            "claim": v.claim.text,
            "protocol": v.control or "published",
            "verdict": v.word,
            "effect": v.effect,
            "low": v.low,
            "high": v.high,
            "p adjusted": v.p_adjusted,
            "n": v.n,
            "paper": v.claim.paper.value if v.claim.paper and v.control is None else None,
        }
        for v in verdicts
    )


def to_csv(table: Table) -> str:
    r"""A table as comma-separated values, numbers in full.

    Text that a spreadsheet would run as a formula gets an apostrophe in front.

    >>> to_csv(Table.of([{"a": "=1+1", "b": 0.1}]))
    "a,b\n'=1+1,0.1\n"
    """
    import csv
    import io

    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([_unformula(name) for name in table.columns])
    writer.writerows([_unformula(v) for v in row.values()] for row in table.rows())
    return buffer.getvalue()


def _unformula(value: Any) -> Any:
    if isinstance(value, str):
        return ("'" if re.match(r"[=+@\t\r-]", value) else "") + _clean(value)
    return "" if value is None else repr(value) if isinstance(value, float) else value


def to_latex(table: Table) -> str:
    r"""A table as a LaTeX ``tabular`` with booktabs rules (``\usepackage{booktabs}``).

    >>> print(to_latex(Table.of([{"share_%": 0.5}])))
    \begin{tabular}{r}
    \toprule
    share\_\% \\
    \midrule
    0.5 \\
    \bottomrule
    \end{tabular}
    <BLANKLINE>
    """
    numeric = ["r" if all(isinstance(v, (int, float, type(None))) for v in c) else "l" for c in table.columns.values()]
    lines = [f"\\begin{{tabular}}{{{''.join(numeric)}}}", "\\toprule"]
    lines += [" & ".join(map(_tex, table.columns)) + " \\\\", "\\midrule"]
    lines += [" & ".join(_tex(_cell(v)) for v in row.values()) + " \\\\" for row in table.rows()]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "×": r"$\times$",
    "÷": r"$\div$",
    "±": r"$\pm$",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "∞": r"$\infty$",
    "…": r"\ldots{}",
    "λ": r"$\lambda$",
    "σ": r"$\sigma$",
    "τ": r"$\tau$",
    "·": r"$\cdot$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
} | {c: "\\" + c for c in "&%$#_{}"}


def _tex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in " ".join(_clean(str(text)).split()))
