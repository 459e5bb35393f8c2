"""The statistics that claims are about, computed from a table of results: one number per independent unit."""

import math
from dataclasses import replace
from typing import Any

import numpy as np

from landscope.stats.arms import Arms, read_arms
from landscope.stats.units import Units, Untestable
from landscope.types import Table


def logarithms(arms: Arms, value: str, over: str) -> np.ndarray:
    """The arms' values in logarithms; Untestable where one is not above 0."""
    if (arms.values <= 0).any():
        i, j = np.argwhere(arms.values <= 0)[0]
        raise Untestable(
            f"{value} is {arms.values[i, j]:g} at {arms.shared['unit']} {arms.ids[i]}, {over} = {arms.levels[j]}, "
            "and has no logarithm: compare with `difference`"
        )
    return np.log(arms.values)


def _paired(arms: Arms, values: np.ndarray, variance: np.ndarray) -> Units:
    """The units, with the share of their variance that is the measurement's own, where that may be more than a tenth.

    It is a bound: networks that a measure gave the same random draws err alike, and that part cancels.
    """
    spread = values.var(ddof=1) if values.size > 1 else 0.0
    share = float(variance.mean() / spread) if spread > 0 else 0.0
    note = (
        f"up to {min(share, 1):.0%} of the variance between {arms.shared['unit']}s is measurement noise, less what the "
        "draws that runs share cancel: a larger budget would help"
    )
    notes = [arms.shared["note"], note if share > 0.1 else ""]
    return arms.units(values, note="; ".join(filter(None, notes)), extra={"measurement share": share} if share else {})


def log_ratio(
    table: Table,
    /,
    *,
    value: str,
    over: str,
    numerator: Any,
    denominator: Any,
    unit: str = "seed",
    worst: str | float | None = None,
    index: int | None = None,
    where: tuple[tuple[str, Any], ...] = (),
    given: tuple[tuple[str, float | int], ...] = (),
) -> Units:
    """ln(value where ``over`` is ``numerator`` / value where it is ``denominator``), paired within each unit.

    Args:
        table: One protocol's results at one step.
        value: The column compared.
        over: The column that tells the arms apart.
        numerator: Its value in the one arm.
        denominator: Its value in the other.
        unit: The column whose values are independent of each other, and pair the arms.
        worst: What stands for a diverged run: ``"max"`` or ``"min"`` of the column, or a number.
        index: Which element, where the column holds several numbers.
        where: Further (column, value) that a run must have.
        given: (column, least value) that both runs of a pair must reach, else the pair is left out and counted.

    Raises:
        Untestable: where a value is not positive, or a run diverged and ``worst`` does not say what it counts for.
        ValueError: where a unit has more than one run in an arm.

    >>> rows = [{"seed": s, "batch_size": b, "sharpness": b * (1.0 + s)} for s in range(3) for b in (8, 16)]
    >>> log_ratio(
    ...     Table.of(rows), value="sharpness", over="batch_size", numerator=16, denominator=8
    ... ).values.round(4).tolist()
    [0.6931, 0.6931, 0.6931]
    """
    arms = read_arms(table, value, over, (numerator, denominator), unit, worst, index, where, given)
    logs = logarithms(arms, value, over)
    return _paired(arms, logs[:, 0] - logs[:, 1], (arms.measured / arms.values**2).sum(axis=1))


def difference(
    table: Table,
    /,
    *,
    value: str,
    over: str,
    first: Any,
    second: Any,
    unit: str = "seed",
    worst: str | float | None = None,
    index: int | None = None,
    where: tuple[tuple[str, Any], ...] = (),
    given: tuple[tuple[str, float | int], ...] = (),
    examples: str | None = None,
) -> Units:
    """Value where ``over`` is ``first`` minus value where it is ``second``, paired within each unit.

    The settings are `log_ratio`'s, and ``examples``: the column with what each run did on every test example, of which
    ``value`` is the mean, where all units are tested on the same examples. Their choice is then no part of the spread
    between units, and its sampling error is added: the variance over examples of the unit-averaged difference, divided
    by their number. Runs that diverged have none; it is taken over the units without.

    Raises:
        Untestable: where a run diverged and ``worst`` does not say what it counts for.
        ValueError: where a unit has more than one run in an arm, or runs were tested on different examples.

    >>> rows = [{"seed": s, "mask": m, "accuracy": 0.8 + 0.1 * (m == "no")} for s in range(2) for m in ("no", "10 %")]
    >>> difference(
    ...     Table.of(rows), value="accuracy", over="mask", first="no", second="10 %"
    ... ).values.round(4).tolist()
    [0.1, 0.1]
    """
    arms = read_arms(table, value, over, (first, second), unit, worst, index, where, given)
    units = _paired(arms, arms.values[:, 0] - arms.values[:, 1], arms.measured.sum(axis=1))
    if examples is None:
        return units
    table[examples]  # a misspelt column is an error, whatever the rows
    return _with_test_error(units, arms, examples)


def _with_test_error(units: Units, arms: Arms, examples: str) -> Units:
    """The units with the sampling error of the test examples that all of them share."""
    whole = [u for u, complete in zip(units.ids, units.whole_marks, strict=True) if complete]
    runs = [[arms.runs[u, level][examples] for level in arms.levels] for u in whole]
    if not runs:
        return units
    if len(sizes := {np.size(run) for pair in runs for run in pair}) > 1 or min(sizes) < 2:
        raise ValueError(f"{examples} holds {sorted(sizes)} numbers: every run needs those of the same test examples")
    first, second = np.moveaxis(np.array(runs, np.float64), 1, 0)  # each [units, examples]
    by_example = (first - second).mean(axis=0)
    n = by_example.size
    added = float(by_example.var(ddof=1)) / n
    note = f"all are tested on the same {n:,} examples, whose sampling error is added"
    return replace(
        units,
        note="; ".join(filter(None, (units.note, note))),
        extra={**units.extra, "test set error": math.sqrt(added)},
        added=added,
        added_freedom=float(n - 1),
    )


def trend(
    table: Table,
    /,
    *,
    value: str,
    over: str,
    levels: tuple[Any, ...] = (),
    log: bool = False,
    unit: str = "seed",
    worst: str | float | None = None,
    index: int | None = None,
    where: tuple[tuple[str, Any], ...] = (),
    given: tuple[tuple[str, float | int], ...] = (),
) -> Units:
    """Kendall's tau-b, in each unit, of a value against the ordered levels of a column.

    Beside it, in ``extra``: the mean slope per doubling of the level (of ln value with ``log``) with its 95 % interval,
    where levels are positive numbers; the share of neighbouring levels that are in rising order; and Page's L test
    of all units together, towards rising and towards falling values. Where all units are tested on the same examples,
    it speaks of new units on these examples: their sampling error is not added, as `difference` can.

    Args:
        table: One protocol's results at one step.
        value: The column.
        over: The column that is the dose.
        levels: Its values, in any order, at least 3; all that the table has if left empty.
        log: Whether the slope is that of ln value (a ratio per doubling). Tau is the same.
        unit: As for `log_ratio`, like the settings below.
        worst: What stands for a diverged run.
        index: Which element of the column.
        where: Further (column, value) that a run must have.
        given: (column, least value) that every run of a unit must reach.

    >>> rows = [{"seed": s, "width": w, "loss": 1 / w} for s in range(2) for w in (8, 16, 32, 64)]
    >>> units = trend(Table.of(rows), value="loss", over="width", log=True)
    >>> units.values.tolist(), round(units.extra["slope"], 4), units.extra["share rising"]
    ([-1.0, -1.0], -0.6931, 0.0)
    """
    arms = read_arms(table, value, over, sorted(levels), unit, worst, index, where, given)
    k = len(arms.levels)
    if k < 3:
        if not arms.ids:
            return arms.units(np.empty(0))
        raise ValueError(f"a trend needs at least 3 levels of {over}, not {k}: compare two with `difference`")
    i, j = np.triu_indices(k, 1)
    order = np.sign(arms.values[:, j] - arms.values[:, i])
    untied = np.abs(order).sum(axis=1)  # levels are distinct, so only values can tie
    tau = order.sum(axis=1) / np.sqrt(np.maximum(untied, 1) * len(i))
    rising = float((np.diff(arms.values, axis=1) > 0).mean()) if arms.ids else 0.0
    falling = float((np.diff(arms.values, axis=1) < 0).mean()) if arms.ids else 0.0
    extra = {"share rising": rising, "share falling": falling} | _page(arms.values)
    if all(isinstance(level, int | float) and level > 0 for level in arms.levels):
        doublings = np.log2(np.array(arms.levels, np.float64))
        weights = (doublings - doublings.mean()) / np.square(doublings - doublings.mean()).sum()
        slopes = Units(arms.ids, (logarithms(arms, value, over) if log else arms.values) @ weights)
        if slopes.n > 1:
            low, high = slopes.interval()
            extra |= {"slope": slopes.mean, "slope low": low, "slope high": high}
    # One exchange of neighbours moves tau by 2 / (k choose 2).
    return arms.units(tau, extra=extra, step=2 / len(i), bounds=(-1.0, 1.0))


def _page(values: np.ndarray) -> dict[str, float]:
    from scipy.stats import page_trend_test

    if len(values) < 2:
        return {}
    # The exact distribution is enumerated: quick up to 8 levels, then the normal approximation is good.
    method = "exact" if values.shape[1] <= 8 and len(values) <= 12 else "asymptotic"
    up, down = (float(page_trend_test(sign * values, method=method).pvalue) for sign in (1, -1))
    return {"page p rising": up, "page p falling": down}


def configuration_correlation(
    table: Table,
    /,
    *,
    x: str,
    y: str,
    by: tuple[str, ...],
    block: str | None = None,
    index: int | None = None,
    where: tuple[tuple[str, Any], ...] = (),
    draws: int = 4999,
) -> Units:
    """Kendall's tau-b of two measures over configurations, each averaged over its seeds first.

    The target is *new configurations*: runs of one configuration are not independent of each other, and counting them
    as if they were finds relations where there are none. The interval is the percentile interval of a two-level
    bootstrap (configurations, then the seeds within each; a configuration drawn twice is a tie and says nothing);
    p comes from permuting configurations. A unit's value is its concordance with the other configurations. Fewer than
    12 configurations describe and decide nothing. Runs that diverged or were not measured are left out and counted;
    where more than a tenth of one configuration's did not reach the level at which all are compared, nothing is tested.

    Args:
        table: One protocol's results at one step.
        x: The one column.
        y: The other.
        by: The columns that make a configuration.
        block: A column (the data set): only configurations of one block are compared and exchanged.
        index: Which element of ``x``, where that column holds several numbers.
        where: Further (column, value) that a run must have.
        draws: Bootstrap draws, and permutations.

    >>> rows = [{"seed": s, "lr": lr, "sharpness": lr + s, "error": -lr} for s in range(3) for lr in range(12)]
    >>> configuration_correlation(Table.of(rows), x="sharpness", y="error", by=("lr",)).mean
    -1.0
    """
    names = (*by, block) if block is not None and block not in by else by
    for name in (x, y, *names, *(name for name, _ in where)):
        table[name]
    rows = [row for row in table.rows() if all(row[name] == wanted for name, wanted in where)]
    groups: dict[tuple[Any, ...], list[tuple[float, float]]] = {}
    seen: dict[tuple[Any, ...], list[Any]] = {}
    for row in rows:
        place = tuple(row[name] for name in names)
        seen.setdefault(place, []).append(row.get("status"))
        if row[x] is not None and row[y] is not None:
            first = row[x] if index is None else row[x][index]
            groups.setdefault(place, []).append((float(first), float(row[y])))
    ids = tuple(sorted(groups, key=repr))
    lost = len(rows) - sum(map(len, groups.values()))
    shared: dict[str, Any] = {"unit": "configuration", "least": 12, "arms": len(seen), "found": len(rows)}
    shared["note"] = f"{lost} of {len(rows)} runs diverged or have no value, and are left out" if lost else ""
    for kind in ("censored", "diverged"):
        shared[kind] = {
            ", ".join(f"{n} = {v}" for n, v in zip(names, place, strict=True) if v is not None): of.count(kind)
            / len(of)
            for place, of in seen.items()
            if kind in of
        }
    if len(ids) < 3:
        return Units(ids, np.zeros(len(ids)), **shared)
    kinds = [place[names.index(block)] if block is not None else None for place in ids]
    blocks = np.array([kinds.index(kind) for kind in kinds])
    return _correlated(ids, [np.array(groups[i]) for i in ids], blocks, draws, shared)


def _correlated(
    ids: tuple[Any, ...], seeds: list[np.ndarray], blocks: np.ndarray, draws: int, shared: dict[str, Any]
) -> Units:
    random, n = np.random.default_rng(0), len(ids)
    same = blocks[:, None] == blocks[None]
    means = np.array([values.mean(axis=0) for values in seeds])
    tau, concordance = _tau(means[None, :, 0], means[None, :, 1], np.ones((1, n)), same)
    members = [np.flatnonzero(blocks == b) for b in np.unique(blocks)]
    resampled, permuted = [], []
    for start in range(0, draws, size := max(1, 2_000_000 // n**2)):
        m = min(size, draws - start)
        weights = np.concatenate([random.multinomial(len(b), np.full(len(b), 1 / len(b)), m) for b in members], axis=1)
        weights = weights[:, np.argsort(np.concatenate(members))].astype(np.float64)
        again = np.stack([v[random.integers(len(v), size=(m, len(v)))].mean(axis=1) for v in seeds], axis=1)
        resampled.append(_tau(again[..., 0], again[..., 1], weights, same)[0])
        shuffled = np.tile(np.arange(n), (m, 1))
        for b in members:
            shuffled[:, b] = random.permuted(shuffled[:, b], axis=1)
        permuted.append(_tau(means[None, :, 0], means[shuffled, 1], np.ones((m, n)), same)[0])
    return Units(
        ids,
        concordance[0],
        effect=float(tau[0]),
        draws=np.concatenate(resampled),
        permuted=np.concatenate(permuted),
        bounds=(-1.0, 1.0),
        **shared,
    )


def _tau(x: np.ndarray, y: np.ndarray, weights: np.ndarray, same: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Kendall's tau-b of weighted points, over pairs in the same block; and each point's mean concordance."""
    a = np.sign(x[:, :, None] - x[:, None, :]) * same
    b = np.sign(y[:, :, None] - y[:, None, :]) * same
    agree = np.einsum("mij,mij,mj->mi", a, b, weights)
    untied = np.sqrt(
        np.einsum("mi,mij,mj->m", weights, np.abs(a), weights) * np.einsum("mi,mij,mj->m", weights, np.abs(b), weights)
    )
    with_any = np.maximum((same.sum(axis=1) - 1), 1)
    return (weights * agree).sum(axis=1) / np.maximum(untied, 1e-300), agree / with_any
