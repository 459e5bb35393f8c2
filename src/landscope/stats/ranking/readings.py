"""What may be said of a measure in a word, and what a reader of the ranking must know."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from landscope.stats.inference import holm
from landscope.stats.ranking.columns import column_of, together
from landscope.stats.ranking.configurations import Configurations, absent, configurations
from landscope.stats.ranking.information import LEAST_EFFECTIVE
from landscope.stats.ranking.records import MeasureRecord, Ranged
from landscope.stats.ranking.sampling import LOSS, records_of, sample_of
from landscope.types import Table

FEW = 0.1  # share of runs that may diverge before nothing is concluded

_Readings = Mapping[str, str]


def with_diverged(
    table: Table,
    used: np.ndarray,
    diverged: np.ndarray,
    by: Sequence[str],
    outcome: str,
    records: Sequence[MeasureRecord],
    draws: int,
    seed: int,
) -> list[_Readings] | None:
    """Every measure's reading with the diverged runs put in; None where there are too many of them.

    They get the worst outcome that any run had, and the measure at the top and then at the bottom of its range: which
    end is the worse is not known of every measure.
    """
    if not diverged.any():
        return []
    if diverged.sum() > FEW * (diverged | used).sum():
        return None
    worst = np.nanmin if "accuracy" in outcome else np.nanmax
    found = []
    for end in (np.nanmax, np.nanmin):
        filled = {name: tuple(table[name]) for name in table.columns}
        for name in (outcome, *(r.name for r in records)):
            column = column_of(table, name)
            column[diverged] = (worst if name == outcome else end)(column[used])
            filled[name] = tuple(column.tolist())
        both = Table({name: c for name, c in filled.items() if name != LOSS})
        grid = configurations(both, used | diverged, by)
        readings: dict[str, str] = {}
        for part, columns in together(both, grid, [r.name for r in records], {}):
            sample = sample_of(both, part, outcome, columns)
            readings |= {r.name: _reading(r) for r in _holm(records_of(sample, 0, draws, seed))}
        found.append(readings)
    return found


def _holm(records: Sequence[MeasureRecord]) -> list[MeasureRecord]:
    adjusted, _ = holm([r.p for r in records])
    return [replace(r, p_holm=float(p)) for r, p in zip(records, adjusted, strict=True)]


def _reading(record: MeasureRecord) -> str:
    """A word for what both coefficients say: their intervals exclude 0, tau's also after Holm's correction."""
    tau, along = record.tau, record.granulated
    sides = [_side(tau) if record.p_holm <= 0.05 else 0, 0 if along is None else _side(along)]
    if sides[0] * sides[1] < 0:
        return "confounded"
    if along is None or not sides[0] or not sides[1]:
        return "undecided"
    return "predicts" if sides[0] > 0 else "reversed"


def _side(of: Ranged) -> int:
    return int(of.low > 0) - int(of.high < 0)


def with_readings(records: Sequence[MeasureRecord], others: list[_Readings] | None) -> list[MeasureRecord]:
    """The records, corrected for their number, each with its reading; ``others`` is what `with_diverged` gave."""
    read = []
    for record in _holm(records):
        word, why = _reading(record), record.why
        if word != "undecided" and others is None:
            word, why = "undecided", f"more than {FEW:.0%} of the runs diverged"
        elif any(reading.get(record.name) != word for reading in others or ()):
            word, why = "undecided", f"{word} without the runs that diverged, but not with them"
        read.append(replace(record, reading=word, why=why))
    return read


def notes_on(
    grid: Configurations,
    samples: int,
    counts: Sequence[int],
    left_out: Mapping[str, int],
    controls: Sequence[str],
    without: Mapping[str, int],
) -> tuple[str, ...]:
    """What a reader of the ranking must know, in sentences."""
    notes = []
    if not grid.complete:
        notes.append(
            f"The grid is incomplete: {absent(grid)}. The conditional mutual information needs all of it and is not "
            "given; the coefficients along axes are over the pairs that are there."
        )
    if len(grid.axes) < 2:
        notes.append("Only one setting varies: along it, and over all pairs, is nearly the same.")
    if min(counts) < 2:
        notes.append("Some configurations have a single run: the intervals miss what another seed would change.")
    trusted = _effective_counts(grid)
    if samples:
        notes.append(
            f"In the worst environment, differences of the outcome count by how sure their sign is with {samples:,} "
            "test samples a configuration."
        )
    elif not (trusted >= LEAST_EFFECTIVE).any():
        notes.append(f"No environment has {LEAST_EFFECTIVE} pairs, which a worst one needs.")
    if not controls:
        notes.append("No control varies: the partial correlation is given nothing.")
    lost = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
    if lost:
        notes.append(f"Runs left out: {lost}.")
    if without:
        listed = ", ".join(f"{name} {count:,}" for name, count in without.items())
        notes.append(f"Runs without a finite value of a measure, which it is ranked without: {listed}.")
    return tuple(notes)


def _effective_counts(grid: Configurations) -> np.ndarray:
    return np.bincount(grid.edges.environment, minlength=len(grid.edges.environments))
