"""The reproduction record: a report's tables as one Markdown file that is kept with the project.

A file holds one experiment, with a section for each scale and data set; writing one section leaves the others as they
are. `docs/scoreboard.py` reads the tables of verdicts again, so their form is fixed here: a row a claim, a column a
protocol, and in a cell the word in bold, what kind of verdict it is, the effect and the interval that decides.
"""

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from landscope.report.effects import deciding
from landscope.report.facts import Report
from landscope.report.held import held_equal
from landscope.report.page import APART, LOSS, claim_cards, headline
from landscope.report.texts import clean, compact, paper_number
from landscope.spec import step_name
from landscope.stats import Verdict, shown, shown_interval

TIMES = ("wall time", "predicted", "processor time", "training alone")  # in this order
_SECTION = re.compile(r"^## .+, \w+ scale$")


def to_markdown(report: Report, before: str = "") -> str:
    """The record of an experiment: the report's tables, and what ``before`` says of other data sets and scales.

    Args:
        report: What to write.
        before: The file as it is, "" where there is none.

    Returns:
        The file as it should be; the same for the same facts.

    Raises:
        ValueError: where ``before`` is something else than a record of this experiment.
    """
    own, experiment = _title(report), report.experiment
    if before.strip() and _mark(report) not in before:
        raise ValueError(f"the file is no record of {report.name}: name another, or one that is not there yet")
    sections = {title: text for title, text in _sections(before).items() if _SECTION.match(title)} | {
        own: _body(report)
    }
    first = {f"## {data}, {scale} scale": i for i, (scale, data) in enumerate(experiment.data.items())}
    order = sorted(sections, key=lambda title: (title not in first, -first.get(title, 0), title))
    paper = experiment.paper
    head = (
        f"# {_line(experiment.title)}",
        _mark(report),
        _wrapped(
            f"{paper.authors}, *{paper.title}*, [{paper.key}]({paper.url}), {paper.year}. Experiment `{report.name}`. "
            f"{experiment.summary}"
        ),
        _wrapped(
            "In brackets stands the interval that decides, corrected for the number of claims, and the 95 % one where "
            "that is another; verdicts are reached as [written down](../statistics.md). The paper's number is *inside* "
            "where as many runs of ours as it is of would be expected to give it (95 % prediction interval); at a "
            "smaller scale that does not test the number."
        ),
    )
    listed = (_wrapped(f"{i}. {text}", "   ") for i, text in enumerate(experiment.deviations, 1))
    deviations = "\n".join(listed) or "None is known."
    parts = [*head, *(f"{title}\n\n{sections[title].strip()}" for title in order)]
    return "\n\n".join([*parts, "## Deviations from the paper", deviations]) + "\n"


def _mark(report: Report) -> str:
    return f"<!-- record of {report.name}: written by landscope report, not by hand -->"


def _title(report: Report) -> str:
    return f"## {_line(report.data)}, {report.scale} scale"


def _sections(text: str) -> dict[str, str]:
    """What stands under each heading of the second level."""
    parts = re.split(r"^(## .*)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _body(report: Report) -> str:
    """All that is said of one scale and data set."""
    held = held_equal(report.tables, report.arms)
    apart = {name: h[LOSS].factor for name, h in held.items() if LOSS in h and h[LOSS].factor > APART}
    blocks = [_wrapped(headline(report.verdicts, apart)), _made(report), "### Verdicts", _verdicts(report)]
    blocks += _block("### Positive controls", _listed([v for v in report.verdicts if v.claim.positive], "protocol"))
    explored = [v for v in report.verdicts if not v.claim.primary and not v.claim.positive]
    blocks += _block("### Explored, not judged", _listed(explored, "protocol"))
    post_hoc = "; ".join(_line(text) for text in report.post_hoc)
    blocks.append(_wrapped(f"Post hoc, changed since it was declared: {post_hoc or 'nothing'}."))
    if report.replication:
        blocks.append(f"### Replication, judged alone: {_line(report.replication_seeds)}")
        blocks.append(_listed(report.replication, "protocol"))
    blocks += _block("### Runs", _runs(report))
    blocks += _block("### What was held equal", _held(held))
    arms = _arms(report)
    if arms:
        blocks += ["### Means of the arms", "With 95 % Student t intervals over the seeds."]
        blocks += [block for name, table in arms for block in (f"**{_line(name)}**", table)]
    return "\n\n".join(blocks)


def _block(title: str, table: str) -> list[str]:
    return [title, table] if table else []


def _made(report: Report) -> str:
    """Command, seeds, data, versions and times as a list."""
    seeds = f"0 to {report.seeds - 1}" if report.seeds > 1 else "0"
    networks = len({run for keys in report.runs.values() for run in keys})
    # The kernel's name says nothing that a number could depend on, and much of one machine.
    there = {name: value for name, value in report.environment.items() if name != "system"}
    facts = {"command": f"`{report.command}`", "date": there.pop("date", "not noted"), "seeds": seeds}
    took = {name: there.pop(name) for name in TIMES if name in there}
    facts |= {"networks": f"{networks:,}"} | took | dict(report.plan)
    facts |= {name: value for name, value in there.items() if name not in facts}  # the plan's words say more
    return "\n".join(_wrapped(f"- {name}: {value}", "  ") for name, value in facts.items())


def _verdicts(report: Report) -> str:
    """A row a claim, a column a protocol."""
    cards = [card for card in claim_cards(report) if card["claim"].primary and not card["claim"].positive]
    if not cards:
        return "No claim is judged."
    published = next(iter(report.experiment.runs), "published")
    controls = list(dict.fromkeys(v.control for card in cards for v in card["verdicts"] if v.control is not None))
    rows = []
    for card in cards:
        by_control = card["by_control"]
        claim = card["claim"].text + (" (post hoc)" if card["post_hoc"] else "")
        said = (_cell(by_control[c]) if c in by_control else "not judged" for c in (None, *controls))
        rows.append([claim, _paper(card["verdicts"][0]), *said])
    return _table(["claim", "paper", published, *controls], rows)


def _paper(verdict: Verdict) -> str:
    """The paper's number, of how many runs it is, and whether as many of ours would be expected to give it."""
    claim = verdict.claim
    if not claim.paper:
        return "–"
    where = "" if verdict.prediction is None else f", {'inside' if verdict.prediction[2] else 'outside'}"
    return f"{paper_number(claim)} (n = {claim.paper.n}{where})"


def _cell(verdict: Verdict) -> str:
    """Word, kind, effect, deciding interval, number of units; why, where there is nothing to show."""
    kind = f" ({verdict.why})" if verdict.why else ""
    word = f"**{verdict.word}**{kind}"
    if verdict.effect is None or verdict.word == "not testable":
        return f"{word}: {verdict.reason}"
    low, high = deciding(verdict)
    held = "" if low is None or high is None else f" ({shown_interval(verdict.weakest, low, high)}{_plain(verdict)})"
    others = [f"{v.word} at {step}" for step, v in verdict.other_steps.items() if v.word != verdict.word]
    elsewhere = f"; {', '.join(others)}" if others else ""
    return f"{word} {shown(verdict.weakest, verdict.effect)}{held}, n = {verdict.n}{elsewhere}"


def _plain(verdict: Verdict) -> str:
    """The 95 % interval, where another one decides; and of a trend how many neighbouring levels are in order."""
    said, low, high, level = "", verdict.low, verdict.high, verdict.holm_level or 0.95
    if low is not None and high is not None and abs(level - 0.95) > 1e-9:
        said = f"; 95 %: {shown_interval(verdict.weakest, low, high)}"
    way = {"trend_up": "rising", "trend_down": "falling"}.get(verdict.claim.expect, "")
    share = verdict.extra.get(f"share {way}")
    return said + (f"; {share:.0%} of neighbours {way}" if share is not None else "")


def _listed(verdicts: Sequence[Verdict], first: str) -> str:
    """Verdicts as a table with a row for each."""
    rows = [[v.claim.text, _paper(v), v.protocol, _cell(v)] for v in verdicts]
    return _table(["claim", "paper", first, "ours"], rows) if rows else ""


def _runs(report: Report) -> str:
    kinds = list(dict.fromkeys(kind for counts in report.counts.values() for kind in counts))
    if not kinds:
        return ""
    judged = {name: step_name(protocol.judged) for name, protocol in report.experiment.runs.items()}
    rows = [
        [name, judged.get(name, ""), *(str(counts.get(kind, 0)) for kind in kinds)]
        for name, counts in report.counts.items()
    ]
    return _table(["protocol", "judged at", *kinds], rows)


def _held(held: Mapping[str, Mapping[str, Any]]) -> str:
    """By protocol and quantity, the means of the two arms that lie furthest apart, and how far."""
    names = list(dict.fromkeys(name for found in held.values() for name in found))
    rows = []
    for protocol, found in ((name, found) for name, found in held.items() if found):
        cells = []
        for name in names:
            h = found.get(name)
            ends = "" if h is None else " and ".join(f"{compact(h.values[i])} ({h.arms[i]})" for i in (0, 1))
            cells.append("" if h is None else f"{'equal' if h.equal else f'×{compact(h.factor)} apart'}: {ends}")
        rows.append([protocol, *cells])
    return _table(["protocol", *names], rows) if names else ""


# --- means of the arms ----------------------------------------------------------------------------------------------


def _arms(report: Report) -> list[tuple[str, str]]:
    """By protocol, a table with a row an arm and a column a quantity: what the figures draw as means with intervals."""
    drawn: dict[tuple[str, str], dict[tuple[str, float], dict[str, str]]] = {}
    ticks: dict[tuple[str, str], dict[float, str]] = {}
    for figure in report.figures:
        for panel in figure.panels:
            place = (panel.title, panel.x.label)
            means = [s for s in panel.series if s.mode == "line+points" and s.low is not None and not s.faint]
            if panel.title not in report.experiment.runs or not means:
                continue
            ticks.setdefault(place, {}).update(zip(*panel.x.ticks, strict=True) if panel.x.ticks else ())
            name = panel.y.label + (", geometric mean" if panel.y.log else "")
            for s in means:
                kind = "" if s.legend == panel.title else s.legend
                for i, x in enumerate(s.x):
                    ends = () if s.low is None or s.high is None else (s.low[i], s.high[i])
                    arms = drawn.setdefault(place, {})
                    arms.setdefault((kind, float(x)), {})[name] = _mean(s.y[i], ends)
    return [(f"{place[0]}, by {place[1]}", _arm_table(place[1], arms, ticks[place])) for place, arms in drawn.items()]


def _mean(mean: float, ends: Sequence[float]) -> str:
    numbers = [_number(end) for end in ends if end == end]
    if mean != mean:
        return "–"
    return _number(mean) + (f" ({numbers[0]} to {numbers[1]})" if len(numbers) > 1 else "")


def _number(value: float) -> str:
    return compact(float(value)).replace("-", "−")


def _arm_table(level: str, arms: Mapping[tuple[str, float], Mapping[str, str]], ticks: Mapping[float, str]) -> str:
    names = list(dict.fromkeys(name for found in arms.values() for name in found))
    kinds = any(kind for kind, _ in arms)
    order = list(dict.fromkeys(kind for kind, _ in arms))
    percent = bool(ticks) and all(text == f"{100 * x:.3g} %" for x, text in ticks.items())  # then of all, ticks or not

    def place(x: float) -> str:
        return f"{100 * x:.3g} %" if percent else ticks.get(x, _number(x))

    rows = [
        [*([kind] if kinds else []), place(x), *(found.get(name, "") for name in names)]
        for (kind, x), found in sorted(arms.items(), key=lambda item: (order.index(item[0][0]), item[0][1]))
    ]
    return _table([*(["network"] if kinds else []), level, *names], rows)


# --- Markdown -------------------------------------------------------------------------------------------------------


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(_line(text).replace("|", "\\|") for text in line) + " |" for line in lines)


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(_line(text), 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _line(text: str) -> str:
    """Text on one line, without control characters and without what would begin HTML."""
    return " ".join(clean(str(text)).split()).replace("<", "&lt;")
