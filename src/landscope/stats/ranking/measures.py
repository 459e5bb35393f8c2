"""Which measure orders configurations as their outcome does: a table of runs in, every measure's record out."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from landscope.stats.ranking.columns import check, means_of, test_size, together, usable, wanted, without
from landscope.stats.ranking.configurations import Configurations, absent, configurations
from landscope.stats.ranking.readings import notes_on, with_diverged, with_readings
from landscope.stats.ranking.records import MeasureRecord, Ranking
from landscope.stats.ranking.sampling import chance, comparable, records_of, sample_of
from landscope.stats.units import Untestable
from landscope.types import Table


def rank_measures(
    table: Table,
    /,
    *,
    outcome: str = "generalization_gap",
    measures: Sequence[str] = (),
    by: Sequence[str] = (),
    test_samples: int | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Ranking:
    """Rank measures by how well their order over configurations agrees with that of an outcome.

    The unit is the configuration: everything that was set but the seed. Measure and outcome are averaged over its
    runs first. A *positive* coefficient says that a larger measure goes with a larger outcome; for the generalization
    gap that is what a measure of complexity promises, for an accuracy the reverse.

    - ``tau``: Kendall's tau-b over all pairs of configurations of one data set.
    - ``granulated``: Kendall's tau along each axis, with all others held fixed, and its mean over axes (Jiang et al.
      2020, arXiv 1912.02178, section 3): a measure that only follows one setting, which moves the outcome as well,
      scores on tau and not here.
    - ``partial``: Spearman's correlation given learning rate, batch size, width and training loss.
    - ``information``: the least normalised conditional mutual information given up to two axes (Jiang et al.). It has
      no sign: read it beside that of the granulated coefficient. It needs the complete grid.
    - ``worst``: the environment (two levels of one axis, all else equal) in which the sign is wrong most often
      (Dziugaite et al. 2020, arXiv 2010.11924), of those with at least 12 pairs in effect.

    Intervals are percentiles of a two-level bootstrap (configurations, then the seeds within each), about its median.
    Runs that diverged have no measures. They are left out of what is shown; a reading is kept only if it is the same
    with them put in, with the worst outcome that any run had and each measure at the top or the bottom of its range.

    Args:
        table: A row a run: settings under the names that `landscope.store.results` gives them, ``status`` (else all
            are done), and the outcome and measures.
        outcome: The column to be predicted.
        measures: Columns to rank; if empty, all numeric ones that are neither settings nor outcomes.
        by: Which settings make a configuration; if empty, all that vary.
        test_samples: How many test samples an outcome between 0 and 1 was measured on: differences within their
            sampling error then count less in the worst environment. None: ``data.test``, where the table has it and
            the outcome is an accuracy or the gap between two, times the runs of a configuration, unless too few
            pairs are then left everywhere; 0: all count alike.
        draws: Of the bootstrap and of the permutations.
        seed: Theirs; the same seed gives the same numbers.

    Raises:
        LookupError: for an outcome or measure that is no column.
        Untestable: for fewer than 12 configurations, or an outcome that does not vary.
        ValueError: for fewer than 100 draws.

    Cost: for 1,000 configurations and 30 measures about 20 CPU-seconds, for 100 about 4.

    >>> rows = [
    ...     {"seed": s, "batch_size": b, "optimizer.lr": lr, "sharp": b / lr + s, "generalization_gap": b / lr}
    ...     for s in range(2)
    ...     for b in (8, 16, 32, 64)
    ...     for lr in (0.1, 0.3, 0.9)
    ... ]
    >>> (record,) = rank_measures(Table.of(rows), draws=100).measures
    >>> record.tau.value, record.granulated.value, record.by_axis["optimizer.lr"].value
    (1.0, 1.0, 1.0)
    """
    if draws < 100:
        raise ValueError(f"an interval needs at least 100 draws, not {draws}")
    names = wanted(table, outcome, measures)
    used, diverged, left_out = usable(table, outcome)
    whole = configurations(table, used, by)
    check(whole, table, outcome, left_out)
    y = means_of(table, whole, outcome)
    samples = test_size(table, outcome, whole, test_samples)
    samples = samples if test_samples is not None or comparable(y, whole, samples) else 0
    unranked: dict[str, str] = {}
    parts = [sample_of(table, grid, outcome, own) for grid, own in together(table, whole, names, unranked)]
    if not parts:
        raise Untestable("no measure can be ranked: " + "; ".join(f"{n}: {why}" for n, why in unranked.items()))
    records = [record for part in parts for record in records_of(part, samples, draws, seed)]
    records = with_readings(records, with_diverged(table, used, diverged, by, outcome, records, draws, seed))
    counts = [len(run) for run in whole.runs]
    return Ranking(
        outcome,
        tuple(sorted(records, key=_order)),
        whole.axes,
        whole.follows,
        whole.block_names,
        whole.n,
        whole.expected,
        absent(whole),
        sum(counts),
        (min(counts), max(counts)),
        {reason: count for reason, count in left_out.items() if count},
        parts[0].controls,
        _environments(whole),
        samples,
        *chance(whole, y, samples, seed),
        unranked,
        notes_on(whole, samples, counts, left_out, parts[0].controls, without(table, whole, names)),
        draws,
        seed,
    )


def _environments(grid: Configurations) -> tuple[tuple[str, Any, Any, int], ...]:
    edges = grid.edges
    pairs = np.bincount(edges.environment, minlength=len(edges.environments)).tolist()
    return tuple((*environment, count) for environment, count in zip(edges.environments, pairs, strict=True))


def _order(record: MeasureRecord) -> tuple[float, float, str]:
    of = record.tau.value if record.granulated is None else record.granulated.value
    return -of, -record.tau.value, record.name
