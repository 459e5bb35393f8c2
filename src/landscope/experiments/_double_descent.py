"""What the experiments on double descent share: the claim of a peak, and the figures of a sweep."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from landscope.comparisons import against, learning
from landscope.figures import Figure
from landscope.spec import Claim, Protocol, Published, call, step_name
from landscope.stats import peak_height
from landscope.types import Table

MOST_CURVES = 6  # levels of a sweep whose learning curves are drawn


def double_descent(
    text: str,
    statistic: Mapping[str, Any],
    *,
    smallest: float,
    reason: str,
    expectation: str,
    rise: Published | None = None,
    fall: Published | None = None,
    unit: str = "points",
) -> Claim:
    """The claim of a peak: the error rises above its lowest value before, and falls below the peak again.

    Args:
        text: The claim in words.
        statistic: Settings of `peak_height` but ``above``.
        smallest: The smallest effect of interest of either part.
        reason: Why.
        expectation: What we expect.
        rise: The published height above the valley.
        fall: The published height above the last level.
        unit: How heights are shown.
    """
    sides = (("rises before the peak", "smaller", rise), ("falls after the peak", "largest", fall))
    shared: dict[str, Any] = {"smallest": smallest, "reason": reason, "unit": unit}
    parts = tuple(
        Claim(f"{text}: the error {what}", call(peak_height, above=above, **statistic), "greater", paper=of, **shared)
        for what, above, of in sides
    )
    least = min((of for of in (rise, fall) if of), key=lambda of: of.value, default=None)
    return Claim(text, None, "all_of", parts=parts, paper=least, expectation=expectation, **shared)


def no_rise(
    text: str, statistic: Mapping[str, Any], *, smallest: float, reason: str, expectation: str, unit: str = "points"
) -> Claim:
    """The claim that there is no peak: nowhere does the error rise by more than ``smallest`` above what it was."""
    return Claim(
        text,
        call(peak_height, above="smaller", **statistic),
        expect="at_most",
        null=smallest,
        smallest=smallest,
        reason=reason,
        unit=unit,
        expectation=expectation,
    )


def judged(results: Table, runs: Mapping[str, Protocol], over: str, level: str) -> dict[str, Table]:
    """By protocol, the finished runs at the step that decides, with errors in percent and the level as a number."""
    rows = [_with_errors(row, over, level) for row in results.rows() if row["status"] == "done"]
    return {
        name: Table.of(r for r in rows if r["protocol"] == name and r["step"] == step_name(protocol.judged))
        for name, protocol in runs.items()
    }


def _with_errors(row: Mapping[str, Any], over: str, level: str) -> dict[str, Any]:
    at = row.get(over)
    found = {**row, level: at[0] if isinstance(at, tuple) else at}
    for name in ("train", "test"):
        accuracy = row.get(f"{name}_accuracy")
        found[f"{name}_error"] = None if accuracy is None else 100 * (1 - accuracy)
    return found


def sweep(
    tables: Mapping[str, Table], name: str, title: str, column: str, label: str, level: str, *, log: bool = False
) -> Figure | None:
    """A column against the level, every run a point; the finding says where the means have a peak, if they have."""
    figure = against(tables, name, title, column, label, over=level, log=log)
    if figure is None:
        return None
    said = [text for panel in figure.panels if (text := _peak(panel.title, panel.series[-1], level))]
    return replace(figure, finding=" ".join((figure.finding, *said)))


def _peak(protocol: str, mean: Any, level: str) -> str:
    """Where a line of means has its most prominent peak."""
    y = np.asarray(mean.y)
    if len(y) < 3 or not np.isfinite(y).all():
        return ""
    before = np.minimum.accumulate(y)
    prominence = y[1:-1] - np.maximum(before[:-2], y[-1])
    at = 1 + int(prominence.argmax())
    if prominence[at - 1] <= 0:
        return f"{protocol}: the means have no peak, nowhere above both what was before and what is at the end."
    risen = f"the means rise from {before[at - 1]:.3g} to {y[at]:.3g} at {level} {mean.x[at]:g}"
    return f"{protocol}: {risen} before they fall."


def curves(results: Table, histories: Table, over: str, level: str, runs: Sequence[str]) -> list[Figure]:
    """Learning curves of some of the levels, the first and last among them."""
    places = {row["run"]: _with_errors(row, over, level)[level] for row in results.rows()}
    levels = sorted({at for at in places.values() if at is not None})
    chosen = {levels[i] for i in np.linspace(0, len(levels) - 1, min(MOST_CURVES, len(levels))).round().astype(int)}
    rows = [
        _with_errors(row, over, level) | {level: places[row["run"]]}
        for row in histories.rows()
        if places.get(row["run"]) in chosen
    ]
    tables = {name: Table.of(r for r in rows if r["protocol"] == name) for name in runs}
    drawn = (
        learning(tables, "learning-train", "Learning curves: training loss", "train_loss", "training loss", over=level),
        learning(tables, "learning-test", "Learning curves: test loss", "test_loss", "test loss", over=level),
    )
    return [figure for figure in drawn if figure is not None]


def check_sweep(what: str, sizes: Sequence[int]) -> None:
    """Refuse what is no sweep.

    Raises:
        ValueError: for fewer than 3 sizes, one below 1, or sizes that do not ascend.
    """
    if len(sizes) < 3 or sizes[0] < 1 or any(b <= a for a, b in pairwise(sizes)):
        raise ValueError(f"a sweep over {what} has at least 3 sizes from 1, ascending, not {tuple(sizes)}")
