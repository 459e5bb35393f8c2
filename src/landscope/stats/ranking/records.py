"""What a ranking of measures says: one record a measure, and what all of them rest on."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np


class Ranged(NamedTuple):
    """A statistic with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Worst:
    """The environment in which a measure's order is wrong most often.

    Args:
        axis: The setting in which the pairs differ.
        low: Its one level.
        high: Its other.
        error: The weighted share of wrong signs.
        effective: How many pairs that rests on, in effect.
    """

    axis: str
    low: Any
    high: Any
    error: float
    effective: float


@dataclass(frozen=True)
class MeasureRecord:
    """What one measure's order says of the outcome's.

    Args:
        name: The measure.
        configurations: How many configurations it was there for.
        tau: Kendall's tau-b over configurations.
        p: Two-sided p of tau, from permuting configurations within blocks.
        p_holm: The same, corrected for the number of measures ranked.
        by_axis: Kendall's tau along each axis; None where no pair differs in that axis alone.
        granulated: Its mean over axes.
        partial: Spearman's correlation given the controls; None where it is not defined.
        information: The least normalised conditional mutual information, without sign; None where not defined.
        information_given: The axes given which it is least.
        errors: The share of wrong signs in every environment (of `Ranking.environments`), all pairs alike.
        worst: The worst environment that has enough pairs.
        reading: ``"predicts"``, ``"reversed"``, ``"confounded"`` (tau and its mean along axes have opposite signs) or
            ``"undecided"``.
        why: What stands behind an undecided reading, or what was not defined and why.
    """

    name: str
    configurations: int
    tau: Ranged
    p: float
    p_holm: float
    by_axis: Mapping[str, Ranged | None]
    granulated: Ranged | None
    partial: Ranged | None
    information: float | None
    information_given: tuple[str, ...]
    errors: tuple[float | None, ...]
    worst: Worst | None
    reading: str = "undecided"
    why: str = ""

    @property
    def sign(self) -> int:
        """The sign that belongs to the information, which has none: that of the granulated coefficient, else tau."""
        of = self.tau.value if self.granulated is None else self.granulated.value
        return int(np.sign(of))


@dataclass(frozen=True, eq=False)
class Ranking:
    """All measures, the best predictor first.

    Args:
        outcome: What was to be predicted.
        measures: By granulated coefficient (tau where there is none), descending.
        axes: The settings that vary, with their levels.
        follows: Settings that vary with the axes.
        blocks: The data sets; only configurations of one are compared.
        configurations: How many there are.
        expected: How many the complete grid has.
        missing: In words, what the grid lacks; empty if nothing.
        runs: How many runs are behind it.
        seeds: The fewest and the most runs of a configuration.
        left_out: By reason, how many runs were left out.
        controls: What the partial correlation is given.
        environments: (axis, lower level, higher level, pairs).
        test_samples: By which differences of outcomes were weighted in the worst environment; 0: all alike.
        chance_information: What 95 % of measures without relation stay below; None where it is not defined.
        chance_worst: The median error in the worst environment of a measure without relation.
        unranked: Measures that could not be ranked, with the reason.
        notes: What a reader must know, in sentences.
        draws: Bootstrap draws.
        seed: Of the bootstrap and the permutations.
    """

    outcome: str
    measures: tuple[MeasureRecord, ...]
    axes: Mapping[str, tuple[Any, ...]]
    follows: tuple[str, ...]
    blocks: tuple[str, ...]
    configurations: int
    expected: int
    missing: str
    runs: int
    seeds: tuple[int, int]
    left_out: Mapping[str, int]
    controls: tuple[str, ...]
    environments: tuple[tuple[str, Any, Any, int], ...]
    test_samples: int
    chance_information: float | None
    chance_worst: float | None
    unranked: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    draws: int = 1000
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values, without NaN; ``information_signed`` carries the sign."""
        facts = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "measures"}
        facts["environments"] = [
            {"axis": axis, "low": low, "high": high, "pairs": pairs} for axis, low, high, pairs in self.environments
        ]
        facts["measures"] = [_fields(m) | {"information_signed": _times(m.sign, m.information)} for m in self.measures]
        return _plain(facts)


def _fields(record: MeasureRecord) -> dict[str, Any]:
    named = {name: getattr(record, name) for name in record.__dataclass_fields__}
    return named | {"worst": None if record.worst is None else asdict(record.worst)}


def _times(sign: int, value: float | None) -> float | None:
    return None if value is None else sign * value


def _plain(value: Any) -> Any:
    if isinstance(value, Ranged):
        return {name: _plain(part) for name, part in value._asdict().items()}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
