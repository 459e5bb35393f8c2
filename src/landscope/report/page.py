"""The page of an experiment: its report as one HTML file that needs nothing else."""

from collections.abc import Mapping, Sequence
from typing import Any

from landscope.report.effects import forest
from landscope.report.facts import Report
from landscope.report.held import QUANTITIES, held_equal
from landscope.report.markup import filled
from landscope.spec import step_name
from landscope.stats import Verdict


def to_html(report: Report) -> str:
    """The report as one HTML file that needs nothing else."""
    cards = claim_cards(report)
    figures = [card["figure"] for card in cards if card["figure"] is not None]
    held = held_equal(report.tables, report.arms)
    apart = {name: h[LOSS].factor for name, h in held.items() if LOSS in h}
    return filled(
        "report.html",
        [*figures, *report.figures],
        report=report,
        experiment=report.experiment,
        published=next(iter(report.experiment.runs), "published"),
        controls=list(
            dict.fromkeys(v.control for v in report.verdicts if v.control is not None and not v.claim.positive)
        ),
        cards=cards,
        some_primary=any(v.claim.primary for v in report.verdicts),
        headline=headline(report.verdicts, apart),
        apart={name: factor for name, factor in apart.items() if factor > APART},
        held=held,
        quantities=[(name, why) for name, why, _ in QUANTITIES if any(name in h for h in held.values())],
        step_name=step_name,
        judged=sorted({step_name(p.judged) for p in report.experiment.runs.values()}),
    )


OPEN = ("descriptive", "not testable")  # verdicts that leave a claim open for want of runs
LOSS, APART = "training loss", 2.0  # a control that leaves the losses further apart than this cannot decide alone


def headline(verdicts: Sequence[Verdict], apart: Mapping[str, float] | None = None) -> str:
    """The answer in a few sentences: what holds as published, and what became of it under each control.

    Args:
        verdicts: All of them.
        apart: By protocol, the factor between its arms' training losses; a large one is said beside the control.
    """
    known = [v for v in verdicts if v.claim.positive]
    if known:
        found, unsaid = (sum(v.word in words for v in known) for words in (("supported",), OPEN))
        rest = headline([v for v in verdicts if not v.claim.positive], apart)
        if len(known) == 1:
            return f"{rest} The positive control is {'found' if found else 'not judged' if unsaid else 'not found'}."
        more = f" and {unsaid} {_is(unsaid)} not judged" if unsaid else ""
        return f"{rest} Of {len(known)} positive controls, {found} {_is(found)} found{more}."
    verdicts = [v for v in verdicts if v.claim.primary]
    published = [v for v in verdicts if v.control is None]
    if not published:
        return "Nothing has been judged yet."
    total, words = len(published), [v.word for v in published]
    if len(set(words)) == 1:
        said = f"{'The claim is' if total == 1 else f'All {total} claims are'} {words[0]} under the published protocol."
    else:
        said = f"Of {total} claims, {_counted(words)} under the published protocol."
    held = {v.claim.text for v in published if v.word == "supported"}
    controls = dict.fromkeys(v.control for v in verdicts if v.control is not None)
    if not held or not controls:
        return said
    fates = [
        f"{name}{_unbalanced((apart or {}).get(name, 1.0))}: "
        f"{_tally([v.word for v in verdicts if v.control == name and v.claim.text in held])}"
        for name in controls
    ]
    return f"{said} Of the supported, {'; '.join(fates)}."


def _unbalanced(factor: float) -> str:
    return " (losses apart)" if factor > APART else ""


def _tally(words: Sequence[str]) -> str:
    return ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))


def _counted(words: Sequence[str]) -> str:
    return _listed([f"{words.count(word)} {_is(words.count(word))} {word}" for word in dict.fromkeys(words)])


def _is(n: int) -> str:
    return "is" if n == 1 else "are"


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def claim_cards(report: Report) -> list[dict[str, Any]]:
    """What the page says of each claim, in the experiment's order: a dictionary each, as the template reads it."""
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
