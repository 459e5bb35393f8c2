"""The statistics of measures over configurations with their bootstrap, and a record of each."""

import math
from dataclasses import dataclass

import numpy as np

from landscope.stats.ranking.columns import column_of, means_of
from landscope.stats.ranking.concordance import (
    granulated,
    kendall,
    multinomial,
    partial,
    permuted,
    resampled,
    signs_along,
)
from landscope.stats.ranking.configurations import Configurations, size
from landscope.stats.ranking.information import (
    LEAST_EFFECTIVE,
    conditional_information,
    effective,
    sign_errors,
    trust,
)
from landscope.stats.ranking.records import MeasureRecord, Ranged, Worst
from landscope.types import Table

CONTROLS = ("optimizer.lr", "batch_size", "model.widths", "model.width", "model.channels")
LOSS = "train_loss"
CHANCE_DRAWS = 99


@dataclass(frozen=True, eq=False)
class Sample:
    """Configurations with their runs' values: outcome, measures, and the training loss where it is a control."""

    grid: Configurations
    columns: list[str]
    values: np.ndarray  # [n, seeds, 1 + measures (+ 1)]
    counts: np.ndarray  # [n]
    given: np.ndarray  # [n, settings given]
    controls: tuple[str, ...]

    @property
    def means(self) -> np.ndarray:
        """Over each configuration's runs, shape ``[n, quantities]``."""
        mine = np.arange(self.values.shape[1])[None] < self.counts[:, None]
        return np.einsum("ns,nsk->nk", mine / self.counts[:, None], self.values)


def sample_of(table: Table, grid: Configurations, outcome: str, columns: list[str]) -> Sample:
    """The runs' values by configuration, and the controls that vary and are numbers."""
    first = [run[0] for run in grid.runs]
    controls: dict[str, np.ndarray] = {}
    for name in CONTROLS:
        if name in table.columns:
            levels = np.array([size(table[name][i]) for i in first])
            if np.isfinite(levels).all() and np.ptp(levels) > 0:
                controls[name] = levels
    loss = (
        [LOSS] if LOSS in table.columns and np.isfinite(column_of(table, LOSS)[np.concatenate(grid.runs)]).all() else []
    )
    loss = [] if loss and np.ptp(means_of(table, grid, LOSS)) == 0 else loss
    names = [outcome, *columns, *loss]
    values = np.zeros((grid.n, max(map(len, grid.runs)), len(names)))
    for k, name in enumerate(names):
        column = column_of(table, name)
        for i, run in enumerate(grid.runs):
            values[i, : len(run), k] = column[list(run)]
    apart = [(grid.blocks == b).astype(float) for b in np.unique(grid.blocks)[1:]]
    given = np.column_stack([*controls.values(), *apart]) if controls or apart else np.zeros((grid.n, 0))
    counts = np.array([len(run) for run in grid.runs])
    return Sample(grid, columns, values, counts, given, (*controls, *loss))


@dataclass(frozen=True, eq=False)
class Found:
    """The statistics in every draw."""

    tau: np.ndarray  # [draws, m]
    by_axis: np.ndarray  # [draws, axes, m]
    partial: np.ndarray  # [draws, m]

    @property
    def granulated(self) -> np.ndarray:
        """The mean over the axes that have pairs, [draws, m]."""
        there = np.isfinite(self.by_axis)
        count = there.sum(axis=1)
        return np.where(count > 0, np.where(there, self.by_axis, 0).sum(axis=1) / np.maximum(count, 1), np.nan)


def statistics(sample: Sample, means: np.ndarray, weights: np.ndarray) -> Found:
    """Of means ``[n, quantities]``, where configurations count ``weights`` ``[draws, n]`` times."""
    grid, m = sample.grid, len(sample.columns)
    y, x = means[:, 0], means[:, 1 : 1 + m]
    same = grid.blocks[:, None] == grid.blocks[None]
    given = np.concatenate([sample.given, means[:, 1 + m :]], axis=1)
    return Found(
        kendall(x, y, weights, same),
        granulated(signs_along(x, y, grid.edges), grid.edges, weights, len(grid.axes)),
        partial(x, y, given, weights),
    )


def bootstrap(sample: Sample, draws: int, random: np.random.Generator) -> Found:
    """The statistics over configurations drawn again, and the seeds within each.

    Seeds are drawn anew for every few draws of configurations, which cost little beside them.
    """
    each = max(8, min(50, sample.grid.n // 10))
    parts = [
        statistics(sample, means, multinomial(sample.grid.blocks, each, random))
        for means in resampled(sample.values, sample.counts, -(-draws // each), random)
    ]
    return Found(*(np.concatenate([getattr(p, name) for p in parts])[:draws] for name in ("tau", "by_axis", "partial")))


def ranged(value: float, draws: np.ndarray, level: float = 0.95) -> Ranged | None:
    """A statistic with the percentiles of its bootstrap draws about their median; None where it is not defined.

    Drawing the seeds again adds their noise a second time, which pulls a correlation towards 0: the draws tell how
    wide the interval is, and not where it lies. It ends at -1 and 1.
    """
    draws = draws[np.isfinite(draws)]
    if not math.isfinite(value) or draws.size < 20:
        return None
    low, middle, high = np.quantile(draws, [(1 - level) / 2, 0.5, (1 + level) / 2])
    return Ranged(float(value), float(max(value + low - middle, -1.0)), float(min(value + high - middle, 1.0)))


def records_of(sample: Sample, samples: int, draws: int, seed: int) -> list[MeasureRecord]:
    """A record of every measure, not yet corrected for their number and without a reading."""
    random = np.random.default_rng(seed)
    grid, means = sample.grid, sample.means
    y, x = means[:, 0], means[:, 1 : 1 + len(sample.columns)]
    seen, drawn = statistics(sample, means, np.ones((1, grid.n))), bootstrap(sample, draws, random)
    p = p_values(x, y, grid, seen.tau[0], draws, random)
    signs, edges = signs_along(x, y, grid.edges), grid.edges
    errors = sign_errors(signs, np.ones(len(signs)), edges)
    worst = _worst(signs, y, grid, samples)
    information, chosen = conditional_information(x, y, grid) if grid.complete else (None, None)
    records = []
    for j, name in enumerate(sample.columns):
        tau = ranged(seen.tau[0, j], drawn.tau[:, j])
        part = ranged(seen.partial[0, j], drawn.partial[:, j])
        axes = list(grid.axes)
        told = None if information is None or not math.isfinite(information[j]) else float(information[j])
        records.append(
            MeasureRecord(
                name,
                grid.n,
                _with_zero(tau or Ranged(float(seen.tau[0, j]), -1.0, 1.0), p[j]),
                float(p[j]),
                float(p[j]),
                {axis: ranged(seen.by_axis[0, k, j], drawn.by_axis[:, k, j]) for k, axis in enumerate(axes)},
                ranged(seen.granulated[0, j], drawn.granulated[:, j]),
                part,
                told,
                tuple(axes[k] for k in chosen[j]) if chosen is not None and told is not None else (),
                tuple(float(e) if math.isfinite(e) else None for e in errors[:, j]),
                worst[j],
                why="" if part is not None else "nothing of it is left given the controls",
            )
        )
    return records


def _with_zero(tau: Ranged, p: float) -> Ranged:
    """An interval that holds 0 unless the permutation test excludes it too."""
    return tau if p <= 0.05 else Ranged(tau.value, min(tau.low, 0.0), max(tau.high, 0.0))


def p_values(
    x: np.ndarray, y: np.ndarray, grid: Configurations, tau: np.ndarray, draws: int, random: np.random.Generator
) -> np.ndarray:
    """Two-sided p of tau; measures that are tied alike share their permutations."""
    null: dict[bytes, np.ndarray] = {}
    found = np.empty(len(tau))
    for j, column in enumerate(x.T):
        ties = b"".join(
            np.sort(np.unique(column[grid.blocks == b], return_counts=True)[1]).tobytes() + b"|"
            for b in np.unique(grid.blocks)
        )
        if len(np.unique(grid.blocks)) > 1 and np.unique(column).size < grid.n:
            ties += bytes([j])
        if ties not in null:
            null[ties] = np.abs(permuted(column, y, grid.blocks, draws, random))
        found[j] = (1 + np.sum(null[ties] >= abs(tau[j]) - 1e-9)) / (1 + draws)
    return found


def comparable(y: np.ndarray, grid: Configurations, samples: int) -> bool:
    """Whether any environment has pairs enough for a worst one."""
    return bool((effective(_weights(y, grid, samples), grid.edges) >= LEAST_EFFECTIVE - 1e-9).any())


def _weights(y: np.ndarray, grid: Configurations, samples: int) -> np.ndarray:
    """How much each pair counts in the worst environment; all alike where their noise is not known."""
    edges = grid.edges
    return trust(y[edges.high] - y[edges.low], samples) if samples else np.ones(len(edges.low))


def _worst(signs: np.ndarray, y: np.ndarray, grid: Configurations, samples: int) -> list[Worst | None]:
    edges = grid.edges
    weights = _weights(y, grid, samples)
    pairs = effective(weights, edges)
    errors = sign_errors(signs, weights, edges)
    kept = np.flatnonzero(pairs >= LEAST_EFFECTIVE - 1e-9)
    if not kept.size:
        return [None] * signs.shape[1]
    at = kept[np.argmax(errors[kept], axis=0)]
    return [
        Worst(*edges.environments[e], error=float(errors[e, j]), effective=float(pairs[e])) for j, e in enumerate(at)
    ]


def chance(grid: Configurations, y: np.ndarray, samples: int, seed: int) -> tuple[float | None, float | None]:
    """What a measure without relation to the outcome gives: information (95 % quantile), worst error (median)."""
    random = np.random.default_rng(seed)
    x = random.random((grid.n, CHANCE_DRAWS))
    information = None
    if grid.complete:
        found = conditional_information(x, y, grid)[0]
        information = float(np.quantile(found, 0.95)) if np.isfinite(found).all() else None
    worst = [w.error for w in _worst(signs_along(x, y, grid.edges), y, grid, samples) if w is not None]
    return information, float(np.median(worst)) if worst else None
