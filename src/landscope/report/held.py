"""What each protocol did hold equal between its arms, as measured."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from landscope.types import Table

EQUAL = 1.1  # arms whose means differ by less than this factor are called equal


@dataclass(frozen=True)
class Held:
    """One quantity under one protocol, by arm: the geometric mean over the runs.

    Args:
        arms: The two arms that lie furthest apart, by name, in the arms' order.
        values: Their means.
        factor: The largest arm's mean by the smallest's.
    """

    arms: tuple[str, str]
    values: tuple[float, float]
    factor: float

    @property
    def equal(self) -> bool:
        """Whether all arms agree within 10 %."""
        return self.factor <= EQUAL


# Name, what it is, and how to read it from a row of results.
QUANTITIES: tuple[tuple[str, str, Callable[[Mapping[str, Any]], float]], ...] = (
    ("training loss", "at the moment of measuring", lambda r: r["train_loss"]),
    ("optimizer steps", "updates of the weights", lambda r: r["steps_made"]),
    ("samples seen", "steps × batch size: passes over the data", lambda r: r["steps_made"] * r["batch_size"]),
    (
        "learning rate ÷ batch size",
        "sets the noise of the gradients",
        lambda r: r["optimizer.lr"] / r["batch_size"],
    ),
)


def held_equal(tables: Mapping[str, Table], arms: str = "batch_size") -> dict[str, dict[str, Held]]:
    """What each protocol did hold equal between its arms, as measured: by protocol and quantity.

    Args:
        tables: By protocol, the results at the judged step.
        arms: The column whose values are the arms.

    Returns:
        By protocol, those of the `QUANTITIES` whose columns are there; nothing where there are not two arms.
    """
    return {protocol: _held(table, arms) for protocol, table in tables.items()}


def _held(table: Table, arms: str) -> dict[str, Held]:
    found: dict[str, Held] = {}
    if arms not in table.columns or len(table.distinct(arms)) < 2:
        return found
    for name, _, value in QUANTITIES:
        means = []
        for arm in table.distinct(arms):
            numbers = [_positive(value, row) for row in table.where(**{arms: arm}).rows()]
            logs = [math.log(n) for n in numbers if n is not None]
            if logs:
                means.append(
                    (f"{arm:g}" if isinstance(arm, (int, float)) else str(arm), math.exp(sum(logs) / len(logs)))
                )
        if len(means) > 1:
            values = [m for _, m in means]
            least, most = sorted((values.index(min(values)), values.index(max(values))))  # in the order of the arms
            first, last = (means[least], means[most]) if least != most else (means[0], means[-1])
            found[name] = Held((first[0], last[0]), (first[1], last[1]), max(values) / min(values))
    return found


def _positive(value: Any, row: Mapping[str, Any]) -> float | None:
    try:
        number = float(value(row))
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return number if math.isfinite(number) and number > 0 else None
