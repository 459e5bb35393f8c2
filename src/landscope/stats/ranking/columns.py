"""What of a table is ranked: which columns are measures, which runs count, which measures share their runs."""

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from landscope.stats.ranking.configurations import LEAST, Configurations, absent, described, is_setting, size
from landscope.stats.units import Untestable
from landscope.types import Table

OUTCOMES = ("generalization_gap", "loss_gap", "test_loss", "test_accuracy", "valid_loss", "valid_accuracy")
OURS = {"run", "status", "seed", "order_seed", "steps_made", "gradient_evaluations", "protocol", "step"}


def candidates(table: Table) -> list[str]:
    """The columns that can be ranked: numbers that are neither settings nor outcomes nor training's own."""
    return [
        name
        for name in table.columns
        if not (name in OURS or name in OUTCOMES or is_setting(name) or name.startswith(("train_", "valid_", "test_")))
        and any(isinstance(v, (int, float)) and not isinstance(v, bool) for v in table[name])
    ]


def wanted(table: Table, outcome: str, measures: Sequence[str]) -> list[str]:
    """The measures to rank: those named, else all `candidates`.

    Raises:
        LookupError: for a name that is no column, with the nearest.
        Untestable: where there is none.
    """
    known = [name for name in table.columns if not (name in OURS or is_setting(name))]
    for name in (outcome, *measures):
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            listed = ", ".join(dict.fromkeys(column.partition("[")[0] for column in known)) or "none"
            hint = f"did you mean {near[0]!r}?" if near else f"there are {listed}"
            kind = "outcome" if name == outcome else "measure"
            raise LookupError(f"no {kind} is called {name!r} in these runs: {hint}")
    names = [name for name in dict.fromkeys(measures or candidates(table)) if name != outcome]
    if not names:
        raise Untestable(f"there is no measure to rank beside the outcome {outcome}: measure the runs first")
    return names


def column_of(table: Table, name: str) -> np.ndarray:
    """A column as numbers; what is none, or not finite, is NaN."""
    given = [v if isinstance(v, (int, float)) and not isinstance(v, bool) else math.nan for v in table[name]]
    values = np.array(given, dtype=np.float64).reshape(-1)
    return np.where(np.isfinite(values), values, np.nan)


def usable(table: Table, outcome: str) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Which runs are used, which diverged, and how many are left out, by reason."""
    status = np.array(table["status"] if "status" in table.columns else ["done"] * len(table), dtype=object)
    diverged, censored = status == "diverged", status == "censored"
    used = ~diverged & ~censored & np.isfinite(column_of(table, outcome))
    lost = {
        "diverged": int(diverged.sum()),
        "never reached the step or level at which they are compared": int(censored.sum()),
        f"without {outcome}": int((~used & ~diverged & ~censored).sum()),
    }
    return used, diverged, lost


def without(table: Table, grid: Configurations, names: Sequence[str]) -> dict[str, int]:
    """How many of the runs have no finite value of a measure, for those of which some have none."""
    runs = [i for run in grid.runs for i in run]
    counts = {name: int((~np.isfinite(column_of(table, name)[runs])).sum()) for name in names}
    return {name: count for name, count in counts.items() if count}


def means_of(table: Table, grid: Configurations, name: str) -> np.ndarray:
    """A column's mean over the runs of each configuration, shape ``[n]``."""
    values = column_of(table, name)
    return np.array([values[list(run)].mean() for run in grid.runs])


def check(grid: Configurations, table: Table, outcome: str, left_out: Mapping[str, int]) -> None:
    """Refuse what nothing can be concluded from.

    Raises:
        Untestable: for fewer than 12 configurations, with what is missing, or an outcome that does not vary.
    """
    if grid.n < LEAST:
        lost = "; ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
        lacking = absent(grid)
        raise Untestable(
            f"a ranking needs at least {LEAST} configurations with {outcome}, and there are {grid.n} "
            f"({described(grid)}): train at least {LEAST - grid.n} more, or ask for other runs"
            + (f"; {lacking}" if lacking else "")
            + (f"; left out: {lost}" if lost else "")
        )
    if np.ptp(means_of(table, grid, outcome)) == 0:
        raise Untestable(f"{outcome} is the same for all {grid.n} configurations: there is nothing to predict")


def test_size(table: Table, outcome: str, grid: Configurations, given: int | None) -> int:
    """How many test samples are behind a configuration's outcome; 0 where it is not known or not asked for."""
    if given is not None:
        if given < 0:
            raise ValueError(f"a test set holds at least 1 sample (0 turns the weights off), not {given}")
        return given
    bounded = outcome == "generalization_gap" or outcome.endswith("accuracy")
    if not bounded or "data.test" not in table.columns:
        return 0
    rows = [i for run in grid.runs for i in run]
    sizes = [int(size(table["data.test"][i])) if table["data.test"][i] is not None else 0 for i in rows]
    return min(sizes) * min(len(run) for run in grid.runs)


def together(
    table: Table, whole: Configurations, names: Sequence[str], unranked: dict[str, str]
) -> Iterator[tuple[Configurations, list[str]]]:
    """The measures that the same runs have, with the configurations of those runs."""
    groups: dict[bytes, list[str]] = {}
    for name in names:
        groups.setdefault(np.isfinite(column_of(table, name)).tobytes(), []).append(name)
    for key, columns in groups.items():
        there = np.frombuffer(key, dtype=bool)
        runs = tuple(tuple(i for i in run if there[i]) for run in whole.runs)
        grid = replace(whole, runs=runs).select(np.array([bool(run) for run in runs]))
        for name in columns:
            if grid.n < LEAST:
                unranked[name] = f"only {grid.n} configurations have it, fewer than {LEAST}"
            elif np.ptp(means_of(table, grid, name)) == 0:
                unranked[name] = "it is the same for all configurations"
        kept = [name for name in columns if name not in unranked]
        if kept:
            yield grid, kept
