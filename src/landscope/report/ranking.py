"""The page of a ranking: which measure predicts an outcome, where it does not, and how sure that is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from landscope.figures import Axis, Figure, Panel, Series, vertical
from landscope.report.markup import filled
from landscope.report.texts import compact
from landscope.stats import MeasureRecord, Ranged, Ranking

BADGES = {
    "predicts": "supported",
    "reversed": "contradicted",
    "confounded": "not testable",
    "undecided": "inconclusive",
}
MOST_DRAWN = 25
MOST_COLUMNS = 10
STRONGEST = 45  # percent of colour in a cell, which leaves its text readable in both themes
COEFFICIENTS = (("τ over all pairs", "tau"), ("τ along axes, mean", "granulated"), ("given the controls", "partial"))


@dataclass(frozen=True)
class Heat:
    """A part of the heat map: its axes, each with its environments (levels, pairs), and every measure's cells."""

    axes: Sequence[tuple[str, int]]
    environments: Sequence[tuple[str, int]]
    rows: Sequence[tuple[str, Sequence[tuple[str, str, int]]]]


def ranking_html(ranking: Ranking, *, command: str = "", version: str = "") -> str:
    """A ranking as one HTML file that needs nothing else, in the look of the reports.

    Args:
        ranking: What `landscope.stats.rank_measures` found.
        command: The command that finds it again.
        version: Landscope's.
    """
    figure = coefficients(ranking)
    return filled(
        "ranking.html",
        [figure],
        ranking=ranking,
        title=f"What predicts {_words(ranking.outcome)}?",
        headline=answer(ranking),
        facts=_facts(ranking),
        badges=BADGES,
        rows=[_row(ranking, record) for record in ranking.measures],
        along=[(r.name, [_shown(r.by_axis[axis]) for axis in ranking.axes]) for r in ranking.measures],
        heat=heat(ranking),
        figure=figure,
        command=command,
        version=version,
    )


def answer(ranking: Ranking) -> str:
    """What the ranking says, in a few sentences."""
    read = {word: [m for m in ranking.measures if m.reading == word] for word in BADGES}
    total, best = len(ranking.measures), ranking.measures[0]
    found = read["predicts"]
    said = (
        f"Of {total} measures, {len(found)} {'orders' if len(found) == 1 else 'order'} the configurations as "
        f"{_words(ranking.outcome)} does, over all pairs and along the axes."
    )
    along = f"{best.granulated.value:+.2f} along the axes, " if best.granulated else ""
    said += f" The highest is {best.name}: {along}τ {_shown(best.tau)}".replace("-", "−")
    if best.worst is not None:
        said += (
            f"; in its worst environment ({_environment(best.worst.axis, best.worst.low, best.worst.high)}) it is "
            f"wrong in {100 * best.worst.error:.0f} % of the pairs"
        )
        if ranking.chance_worst is not None:
            said += f", a measure without relation typically in {100 * ranking.chance_worst:.0f} %"
    said += "."
    for word, what in (("reversed", "order them the other way round"), ("confounded", "change sign along the axes")):
        if read[word]:
            said += f" {len(read[word])} {what}."
    return said


def _words(name: str) -> str:
    known = {"generalization_gap": "the generalization gap", "loss_gap": "the loss gap"}
    return known.get(name, name.replace("_", " "))


def _facts(ranking: Ranking) -> dict[str, str]:
    low, high = ranking.seeds
    facts = {
        "configurations": f"{ranking.configurations} of {ranking.expected} in the grid",
        "runs": f"{ranking.runs:,}; {low if low == high else f'{low} to {high}'} a configuration, averaged first",
        "settings that vary": "; ".join(f"{n}: {', '.join(map(_level, v))}" for n, v in ranking.axes.items()),
        "data": ", ".join(block for block in ranking.blocks if block),
        "controls of the partial correlation": ", ".join(ranking.controls),
        "vary with these": ", ".join(ranking.follows),
        "intervals": f"95 %, bootstrap over configurations and seeds ({ranking.draws:,} draws, seed {ranking.seed})",
    }
    return {name: text for name, text in facts.items() if text}


def _level(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(str, value)) + "]"
    return "off" if value is None else compact(value) if isinstance(value, float) else str(value)


def _environment(axis: str, low: Any, high: Any) -> str:
    return f"{axis} {_level(low)} → {_level(high)}"


def _shown(of: Ranged | None) -> str:
    return "" if of is None else f"{of.value:+.2f} ({of.low:+.2f} to {of.high:+.2f})".replace("-", "−")


def _parts(of: Ranged | None) -> tuple[str, str]:
    """Value and interval."""
    value, _, interval = _shown(of).partition(" ")
    return value, interval.strip("()")


def _row(ranking: Ranking, record: MeasureRecord) -> dict[str, Any]:
    information = "" if record.information is None else f"{record.sign * record.information:+.3f}".replace("-", "−")
    given = f"given {' and '.join(record.information_given) or 'nothing'}" if information else ""
    worst = record.worst
    return {
        "record": record,
        "tau": _parts(record.tau),
        "granulated": _parts(record.granulated),
        "partial": _parts(record.partial),
        "information": information,
        "given": given,
        "worst": "" if worst is None else f"{worst.error * 100:.0f} % wrong",
        "where": "" if worst is None else _environment(worst.axis, worst.low, worst.high),
        "p": f"{record.p_holm:.2g}",
        "fewer": "" if record.configurations == ranking.configurations else f"{record.configurations} configurations",
    }


# --- figures ------------------------------------------------------------------------------------------------------


def coefficients(ranking: Ranking) -> Figure:
    """Every measure's coefficients with their intervals, the first at the top."""
    shown = ranking.measures[:MOST_DRAWN]
    places = np.arange(len(shown), 0, -1, dtype=np.float64)
    series = [vertical("no relation", 0.0, (0.4, len(shown) + 0.6))]
    for i, (name, part) in enumerate(COEFFICIENTS):
        found: list[Ranged | None] = [getattr(record, part) for record in shown]
        x, low, high = (np.array([np.nan if r is None else r[k] for r in found]) for k in range(3))
        if np.isfinite(x).any():
            y = places + 0.24 * (1 - i)
            series.append(Series(name, x, y, low, high, mode="points", slot=i, along="x"))
    best = shown[0]
    finding = (
        f"{best.name} has the highest coefficient, "
        f"{(best.granulated or best.tau).value:.2f}{' along the axes' if best.granulated else ''}, "
        f"and {sum(m.reading == 'predicts' for m in ranking.measures)} of {len(ranking.measures)} measures predict "
        f"{_words(ranking.outcome)}."
    )
    note = "Bars: 95 % intervals." + (
        f" The first {MOST_DRAWN} of {len(ranking.measures)} measures." if len(ranking.measures) > MOST_DRAWN else ""
    )
    panel = Panel(
        "",
        Axis("rank correlation", limits=(-1.05, 1.05)),
        Axis("measure", ticks=(places.tolist(), [r.name for r in shown]), limits=(0.4, len(shown) + 0.6)),
        tuple(series),
    )
    return Figure("rank-coefficients", f"Rank correlation with {_words(ranking.outcome)}", finding, (panel,), note)


def heat(ranking: Ranking) -> list[Heat]:
    """The heat map in parts that fit a page: measures by environments, with the share of wrong signs."""
    parts: list[list[int]] = [[]]
    for axis in ranking.axes:
        own = [i for i, environment in enumerate(ranking.environments) if environment[0] == axis]
        if len(own) > MOST_COLUMNS:  # of many levels, the neighbouring ones
            levels = list(ranking.axes[axis])
            place = {repr(level): k for k, level in enumerate(levels)}
            e = ranking.environments
            own = [i for i in own if place[repr(e[i][2])] - place[repr(e[i][1])] == 1]
        for start in range(0, len(own), MOST_COLUMNS):
            some = own[start : start + MOST_COLUMNS]
            if len(parts[-1]) + len(some) > MOST_COLUMNS:
                parts.append([])
            parts[-1] += some
    return [_heat(ranking, part) for part in parts if part]


def _heat(ranking: Ranking, part: Sequence[int]) -> Heat:
    chosen = [ranking.environments[i] for i in part]
    axes: dict[str, int] = {}
    for environment in chosen:
        axes[environment[0]] = axes.get(environment[0], 0) + 1
    rows = [(r.name, [_cell(r.errors[i]) if r.errors else _cell(None) for i in part]) for r in ranking.measures]
    heads = [(f"{_level(low)} → {_level(high)}", pairs) for _, low, high, pairs in chosen]
    return Heat(list(axes.items()), heads, rows)


def _cell(error: float | None) -> tuple[str, str, int]:
    """Text, class and strength of colour of a cell."""
    if error is None:
        return "", "none", 0
    agreement = 1 - 2 * error
    return f"{100 * error:.0f} %", "agree" if agreement > 0 else "differ", round(STRONGEST * abs(agreement))
