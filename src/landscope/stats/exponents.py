"""How a value grows or falls with a level: the exponent of a power law in each unit."""

from typing import Any

import numpy as np

from landscope.stats.arms import read_arms
from landscope.stats.units import Units, Untestable
from landscope.types import Table


def exponent(
    table: Table,
    /,
    *,
    value: str,
    over: str,
    levels: tuple[int | float, ...] = (),
    unit: str = "seed",
    worst: str | float | None = None,
    index: int | None = None,
    where: tuple[tuple[str, Any], ...] = (),
    given: tuple[tuple[str, float | int], ...] = (),
) -> Units:
    """The exponent k of value ∝ levelᵏ in each unit: the least-squares slope of ln value against ln level.

    Beside it, in ``extra``: the share of the variance of ln value that it explains, averaged over units. The settings
    are `trend`'s.

    Raises:
        Untestable: for fewer than 3 levels, where a value is not positive, or where a run diverged and ``worst`` does
            not say what it counts for.
        ValueError: for a level that is not a positive number.

    >>> rows = [{"seed": s, "width": w, "drift": (2.0 + s) / w} for s in range(2) for w in (8, 16, 64)]
    >>> exponent(Table.of(rows), value="drift", over="width").values.round(6).tolist()
    [-1.0, -1.0]
    """
    arms = read_arms(table, value, over, sorted(levels), unit, worst, index, where, given)
    if not arms.ids:
        return arms.units(np.empty(0))
    if not all(isinstance(x, int | float) and x > 0 for x in arms.levels):
        raise ValueError(f"an exponent needs positive levels of {over}, not {', '.join(map(str, arms.levels))}")
    if len(arms.levels) < 3:
        raise Untestable(f"an exponent needs at least 3 levels of {over}, and there are {len(arms.levels)}")
    place = np.log(np.array(arms.levels, np.float64))
    place = place - place.mean()
    if (arms.values <= 0).any():
        i, j = np.argwhere(arms.values <= 0)[0]
        raise Untestable(
            f"{value} is {arms.values[i, j]:g} at {unit} {arms.ids[i]}, {over} = {arms.levels[j]}, and has no logarithm"
        )
    logs = np.log(arms.values)
    centred = logs - logs.mean(axis=1, keepdims=True)
    slopes = centred @ place / (place @ place)
    explained = slopes**2 * (place @ place) / np.maximum(np.square(centred).sum(axis=1), 1e-300)
    return arms.units(slopes, extra={"variance explained": float(explained.mean())})
