"""Peaks, such as double descent's: found on one half of the units, measured on the other."""

from dataclasses import replace
from typing import Any

import numpy as np

from landscope.stats.arms import Arms, read_arms
from landscope.stats.statistics import logarithms
from landscope.stats.units import Units, Untestable
from landscope.types import Table

SIDES = ("smaller", "largest")


def peak_height(
    table: Table,
    /,
    *,
    value: str,
    over: str,
    above: str,
    levels: tuple[Any, ...] = (),
    dip: bool = False,
    log: bool = False,
    peak: Any = None,
    valley: Any = None,
    threshold: tuple[str, float] | None = None,
    unit: str = "seed",
    worst: str | float | None = None,
    index: int | None = None,
    where: tuple[tuple[str, Any], ...] = (),
    given: tuple[tuple[str, float | int], ...] = (),
) -> Units:
    """How far a curve's peak lies above its lowest point before it, or above its end: value(peak) − value(other).

    The largest less the smallest of some noisy means is above 0 whether there is a peak or not. So where the peak or
    the valley is not fixed beforehand, they are chosen on every second unit, in their order from the first, and the
    heights are those of the *other* units, which had no part in the choice. The peak chosen is the level, neither the
    first nor the last, of the largest prominence in the means of the choosing half: the smaller of its height above
    the lowest point before it and its height above the last level. The valley is the lowest point before the peak.
    Where both are fixed, all units measure. Where all units are tested on the same examples, it speaks of new units on
    these examples: their sampling error is not added, as `difference` can.

    Args:
        table: One protocol's results at one step.
        value: The column.
        over: The column of the ordered levels (widths, numbers of steps).
        above: ``"smaller"``: above the valley; ``"largest"``: above the last level.
        levels: The levels, in any order, at least 3; all that the table has if left empty.
        dip: Whether a dip is looked for, as accuracy has where the error has a peak: the values count negatively.
        log: Whether heights are those of ln value, that is ratios.
        peak: The peak's level, where it is fixed beforehand.
        valley: The valley's, likewise.
        threshold: (column, least mean), another way to fix the peak: the first level but one or later at which the mean
            over all units reaches it; the interpolation threshold is ``("train_accuracy", 0.95)``.
        unit: As for `log_ratio`, like the settings below.
        worst: What stands for a diverged run.
        index: Which element of the column.
        where: Further (column, value) that a run must have.
        given: (column, least value) that every run of a unit must reach.

    Raises:
        Untestable: where no level reaches the threshold before the last one.
        ValueError: for fewer than 3 levels, a peak at the first or last one, or a valley that does not lie before it.

    >>> errors = {8: 0.4, 16: 0.2, 32: 0.3, 64: 0.1}
    >>> table = Table.of({"seed": s, "width": w, "error": e} for s in range(4) for w, e in errors.items())
    >>> found = peak_height(table, value="error", over="width", above="smaller")
    >>> found.ids, found.values.round(4).tolist(), found.extra
    ((1, 3), [0.1, 0.1], {'peak': 32.0, 'valley': 16.0})
    """
    if above not in SIDES:
        raise ValueError(f"above is one of {', '.join(SIDES)}, not {above!r}")
    if peak is not None and threshold is not None:
        raise ValueError("the peak is fixed by its level or by a threshold, not by both")
    arms = read_arms(table, value, over, sorted(levels), unit, worst, index, where, given)
    if not arms.ids:
        return arms.units(np.empty(0))
    if len(arms.levels) < 3:
        raise ValueError(f"a peak needs at least 3 levels of {over}, not {len(arms.levels)}")
    top, bottom = (_place(arms.levels, level, over) for level in (peak, valley))
    if threshold is not None:
        column, least = threshold
        reached = read_arms(table, column, over, arms.levels, unit, "min", None, where, given)
        top = _reached(reached, column, over, least)
    _check_order(arms.levels, top, bottom, over)
    values = logarithms(arms, value, over) if log else arms.values
    values = -values if dip else values
    measuring, how = slice(None), "fixed beforehand"
    if top is None or (bottom is None and above == "smaller" and top > 1):
        top, bottom = _chosen(values[::2].mean(axis=0), top, bottom)
        measuring, how = slice(1, None, 2), f"chosen on the other {len(values[::2])} {unit}s"
    other = len(arms.levels) - 1 if above == "largest" else bottom or 0
    units = _heights(arms, values[:, top] - values[:, other], (top, other), above, f"at {over} = ", how)
    return replace(
        units, ids=units.ids[measuring], values=units.values[measuring], complete=units.whole_marks[measuring]
    )


def _heights(arms: Arms, values: np.ndarray, places: tuple[int, int], above: str, at: str, how: str) -> Units:
    """The heights of all units, with the places in words and, where they are numbers, as numbers."""
    top, other = (arms.levels[place] for place in places)
    said = f"the peak {at}{top} above {other}, {how}"
    named = {"peak": top, "largest" if above == "largest" else "valley": other}
    return arms.units(
        values,
        note="; ".join(filter(None, (arms.shared["note"], said))),
        extra={name: float(level) for name, level in named.items() if isinstance(level, int | float)},
    )


def _place(levels: tuple[Any, ...], level: Any, over: str) -> int | None:
    if level is None:
        return None
    if level not in levels:
        raise ValueError(f"{over} = {level} is none of the levels: {', '.join(map(str, levels))}")
    return levels.index(level)


def _reached(arms: Arms, column: str, over: str, least: float) -> int:
    """The first level, neither the first nor the last, at which a column's mean is ``least``."""
    means = arms.values.mean(axis=0)[1:-1]
    if not (means >= least).any():
        raise Untestable(f"{column} does not reach {least:g} before the last level of {over}")
    return 1 + int(np.argmax(means >= least))


def _check_order(levels: tuple[Any, ...], top: int | None, bottom: int | None, over: str) -> None:
    last = len(levels) - 1
    if top is not None and not 0 < top < last:
        raise ValueError(f"the peak lies between the first and the last level of {over}, not at {levels[top]}")
    if bottom is not None and not bottom < (last - 1 if top is None else top):
        raise ValueError(f"the valley, at {over} = {levels[bottom]}, leaves no level for a peak before the last one")


def _chosen(means: np.ndarray, top: int | None, bottom: int | None) -> tuple[int, int]:
    """The places of the most prominent peak and of its valley."""

    def lowest(at: int) -> int:
        return int(np.argmin(means[:at])) if bottom is None else bottom

    def prominence(at: int) -> float:
        return float(means[at] - max(means[lowest(at)], means[-1]))

    if top is None:
        top = max(range(1 if bottom is None else bottom + 1, len(means) - 1), key=prominence)
    return top, lowest(top)
