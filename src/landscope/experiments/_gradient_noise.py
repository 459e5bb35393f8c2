"""The arms of the experiment on gradient noise: which run is which, and what is compared."""

from collections.abc import Mapping
from typing import Any

from landscope.stats import Units, difference, log_ratio
from landscope.types import Table


def with_arms(table: Table) -> Table:
    """The results with the column ``arm``: "Adam", "full batch" or "small batch"."""
    return Table.of(row | {"arm": arm(row)} for row in table.rows())


def arm(row: Mapping[str, Any]) -> str:
    """Which arm a run is, by its optimizer, batch size and number of training samples."""
    if row["optimizer"] == "Adam":
        return "Adam"
    return "full batch" if row["batch_size"] >= row["data.train"] else "small batch"


def arm_difference(
    table: Table,
    /,
    *,
    value: str,
    first: str,
    second: str,
    worst: str | float | None = None,
    examples: str | None = None,
) -> Units:
    """`difference` of a value between two of "Adam", "full batch" and "small batch", paired within each seed."""
    return difference(
        with_arms(table), value=value, over="arm", first=first, second=second, worst=worst, examples=examples
    )


def arm_ratio(
    table: Table,
    /,
    *,
    value: str,
    first: str,
    second: str,
    worst: str | float | None = None,
    index: int | None = None,
) -> Units:
    """`log_ratio` of a value between two of "Adam", "full batch" and "small batch", paired within each seed."""
    return log_ratio(
        with_arms(table), value=value, over="arm", numerator=first, denominator=second, worst=worst, index=index
    )
