"""Choosing settings on validation data: the same number for every arm, each seed by its own validation set."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any


def chosen(
    rows: Iterable[Mapping[str, Any]], /, *, first: Callable[[Mapping[str, Any]], bool] | None = None
) -> list[dict[str, Any]]:
    """For each seed the one of an arm's runs that validation chooses.

    That is the run with the highest validation accuracy at the end, of equals the one with the lower validation loss; a
    run that diverged only where all of a seed's have. A seed that lacks one of the arm's runs is left out: it had fewer
    to choose from.

    Args:
        rows: One arm's results, a row for each seed and setting.
        first: Runs of which this is true come before all others.

    >>> rows = [{"seed": 0, "status": "done", "valid_accuracy": share, "valid_loss": 1.0} for share in (0.5, 0.75)]
    >>> [row["valid_accuracy"] for row in chosen(rows)]
    [0.75]
    """
    seeds: dict[Any, list[Mapping[str, Any]]] = {}
    for row in rows:
        seeds.setdefault(row["seed"], []).append(row)
    whole, found = max(map(len, seeds.values()), default=0), []
    for runs in seeds.values():
        done = [row for row in runs if row["status"] != "diverged"] or runs
        best = max(done, key=lambda row: (first is None or first(row), *_quality(row)))
        found += [dict(best)] if len(runs) == whole else []
    return found


def _quality(row: Mapping[str, Any]) -> tuple[float, float]:
    return row["valid_accuracy"] or 0.0, -(row["valid_loss"] or 0.0)
