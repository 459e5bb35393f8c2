"""A table of runs as configurations: which settings vary, which runs differ by seed alone, what is missing."""

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from landscope.stats.units import Untestable
from landscope.types import Table

LEAST = 12  # configurations below which nothing is concluded
# What makes outcomes incomparable, the data set (and, for images, their content): only those of one are compared.
BLOCK = ("data", "data.content")
# A recipe's settings, those that people call hyperparameters first: a column that follows from those before it (the
# length of a schedule, from the batch size) is no axis of its own.
FIRST = ("batch_size", "optimizer.lr", "model", "data", "optimizer", "regularizers", "loss")
LATER = ("stop", "start", "constraint", "schedule", "steps")


@dataclass(frozen=True, eq=False)
class Configurations:
    """Runs grouped by everything that was set but the seed.

    Args:
        axes: The settings that vary, each with its levels in order.
        follows: Settings that vary but are functions of the axes.
        places: Each configuration's level on each axis, shape ``[n, axes]``.
        blocks: The block (data set) of each configuration, shape ``[n]``, counted from 0.
        block_names: The blocks.
        runs: The rows of the table that each configuration is made of.
    """

    axes: Mapping[str, tuple[Any, ...]]
    follows: tuple[str, ...]
    places: np.ndarray
    blocks: np.ndarray
    block_names: tuple[str, ...]
    runs: tuple[tuple[int, ...], ...]

    @property
    def n(self) -> int:
        """How many configurations there are."""
        return len(self.runs)

    @property
    def expected(self) -> int:
        """How many the full grid of all levels has, in all blocks."""
        return len(self.block_names) * math.prod(len(levels) for levels in self.axes.values())

    @property
    def complete(self) -> bool:
        """Whether every combination of levels is there, in every block."""
        return self.n == self.expected

    def missing(self, most: int = 8) -> list[dict[str, Any]]:
        """Combinations of levels that no run has, the first ``most`` of them."""
        there = {(int(block), *map(int, place)) for block, place in zip(self.blocks, self.places, strict=True)}
        sizes = [len(self.block_names), *(len(levels) for levels in self.axes.values())]
        absent = (place for place in itertools.product(*map(range, sizes)) if place not in there)
        return [self.named(block, place) for block, *place in itertools.islice(absent, most)]

    def named(self, block: int, place: Sequence[int]) -> dict[str, Any]:
        """A combination of levels by name; the block too, where there are several."""
        named = {name: levels[i] for (name, levels), i in zip(self.axes.items(), place, strict=True)}
        return ({BLOCK[0]: self.block_names[block]} if len(self.block_names) > 1 else {}) | named

    def select(self, kept: np.ndarray) -> "Configurations":
        """Some of the configurations, on the same axes; ``kept`` are truth values, shape ``[n]``."""
        runs = tuple(run for run, k in zip(self.runs, kept, strict=True) if k)
        return Configurations(self.axes, self.follows, self.places[kept], self.blocks[kept], self.block_names, runs)

    @cached_property
    def edges(self) -> "Edges":
        """All pairs of configurations of one block that differ in a single axis."""
        return _edges(self)


@dataclass(frozen=True, eq=False)
class Edges:
    """Pairs of configurations that differ in a single axis, each an environment's: the axis and its two levels.

    Args:
        low: The configuration with the lower level, shape ``[e]``.
        high: The one with the higher.
        environment: Which environment the pair is of, shape ``[e]``; ascending.
        environments: (axis, lower level, higher level), by number.
        axis: Which axis each environment is of, shape ``[environments]``.
    """

    low: np.ndarray
    high: np.ndarray
    environment: np.ndarray
    environments: tuple[tuple[str, Any, Any], ...]
    axis: np.ndarray


def configurations(table: Table, kept: Sequence[bool] | np.ndarray, by: Sequence[str] = ()) -> Configurations:
    """The configurations that the ``kept`` rows make; ``by`` names the axes, else they are the settings that vary.

    Raises:
        Untestable: if runs of one configuration differ in a setting that is not in ``by``.
        KeyError: for a name in ``by`` that is no column.
    """
    rows = [i for i, k in enumerate(kept) if k]
    columns = {name: [_setting(table[name][i]) for i in rows] for name in _ordered(table.columns)}
    columns |= {name: [_setting(table[name][i]) for i in rows] for name in by}
    varying = {name: c for name, c in columns.items() if name not in BLOCK and len(set(map(repr, c))) > 1}
    sets = [
        [str(part) for part in parts if part is not None]
        for parts in zip(*(columns[b] for b in BLOCK if b in columns), strict=True)
    ]
    block_codes, block_names = _codes([" ".join(parts) for parts in sets] or [""] * len(rows))
    axes: dict[str, tuple[Any, ...]] = {}
    follows: list[str] = []
    codes: list[np.ndarray] = []
    whole = block_codes
    for name in [*by, *(name for name in varying if name not in by)]:
        if name not in varying:
            continue
        code, levels = _codes(varying[name])
        both = _joined(whole, code)
        if both.max() == whole.max():
            follows.append(name)
            continue
        if by and name not in by:
            raise Untestable(
                f"runs that are alike in {', '.join(by)} differ in {name} ({_listed(levels)}): name it too, or choose "
                "one of them"
            )
        axes[name], whole = levels, both
        codes.append(code)
    return _grouped(axes, follows, codes, whole, block_codes, tuple(map(str, block_names)), rows)


def _grouped(
    axes: dict[str, tuple[Any, ...]],
    follows: list[str],
    codes: list[np.ndarray],
    whole: np.ndarray,
    blocks: np.ndarray,
    block_names: tuple[str, ...],
    rows: list[int],
) -> Configurations:
    first = np.unique(whole, return_index=True)[1] if len(rows) else np.zeros(0, int)
    places = np.stack([code[first] for code in codes], axis=1) if codes else np.zeros((len(first), 0), int)
    order = np.lexsort((*reversed(places.T), blocks[first])) if len(first) else first
    members: list[list[int]] = [[] for _ in first]
    for row, code in zip(rows, whole, strict=True):
        members[code].append(row)
    runs = tuple(tuple(members[i]) for i in order)
    return Configurations(axes, tuple(follows), places[order], blocks[first][order], block_names, runs)


def _ordered(names: Mapping[str, Any]) -> list[str]:
    """The names of columns that are a recipe's settings, the likeliest axes first."""

    def rank(name: str) -> int | None:
        for i, start in enumerate((*FIRST, *LATER)):
            if name == start or name.startswith(f"{start}."):
                return i
        return None

    ranked = [(r, i, name) for i, name in enumerate(names) if (r := rank(name)) is not None]
    return [name for _, _, name in sorted(ranked)]


def is_setting(name: str) -> bool:
    """Whether a column is a recipe's setting."""
    return bool(_ordered({name: None}))


def _setting(value: Any) -> Any:
    """A setting without the run that it may name: ``<key>@end`` is another for every seed."""
    if isinstance(value, list):
        value = tuple(value)
    return re.sub(r"\b[0-9a-f]{16}@", "a run@", value) if isinstance(value, str) else value


def size(value: Any) -> float:
    """A level as a number: that of a list, such as an MLP's widths, is its largest; NaN where there is none.

    >>> size("[512, 256]"), size(0.1), size("relu")
    (512.0, 0.1, nan)
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return math.nan
    if isinstance(value, (list, tuple)):
        return max((size(v) for v in value), default=math.nan)
    return float(value) if isinstance(value, (int, float)) else math.nan


def _codes(column: Sequence[Any]) -> tuple[np.ndarray, tuple[Any, ...]]:
    """Each entry as the number of its level, and the levels in order: numbers by size, all else by name, None first."""
    levels = {repr(value): value for value in column}

    def rank(value: Any) -> tuple[Any, ...]:
        if value is None:
            return (0, 0.0, "")
        number = size(value)
        return (2, 0.0, str(value)) if math.isnan(number) else (1, number, str(value))

    order = sorted(levels.values(), key=rank)
    number = {repr(value): i for i, value in enumerate(order)}
    return np.array([number[repr(value)] for value in column], dtype=np.int64), tuple(order)


def _joined(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The codes of pairs, counted from 0 without gaps."""
    if not a.size:
        return np.full(0, -1)
    return np.unique(np.stack([a, b], axis=1), axis=0, return_inverse=True)[1].reshape(-1)


def _edges(of: Configurations) -> Edges:
    low, high, environment, names, axis = [], [], [], [], []
    for k, (name, levels) in enumerate(of.axes.items()):
        others = of.blocks
        for j in range(of.places.shape[1]):
            others = _joined(others, of.places[:, j]) if j != k else others
        place = of.places[:, k]
        i, j = np.nonzero((others[:, None] == others[None]) & (place[:, None] < place[None]))
        pair = place[i] * len(levels) + place[j]
        order = np.argsort(pair, kind="stable")
        kinds, number = np.unique(pair[order], return_inverse=True)
        low.append(i[order])
        high.append(j[order])
        environment.append(number + len(names))
        names += [(name, levels[p // len(levels)], levels[p % len(levels)]) for p in kinds.tolist()]
        axis += [k] * len(kinds)

    def whole(parts: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(parts) if parts else np.zeros(0, int)

    return Edges(whole(low), whole(high), whole(environment), tuple(names), np.array(axis, int))


def _listed(values: Sequence[Any], most: int = 4) -> str:
    shown = ["off" if v is None else f"{v:g}" if isinstance(v, float) else str(v) for v in values[:most]]
    return ", ".join(shown) + (" …" if len(values) > most else "")


def described(of: Configurations) -> str:
    """The axes with their levels, in a line."""
    said = "; ".join(f"{name}: {_listed(levels, 8)}" for name, levels in of.axes.items())
    return said or "no setting varies"


def absent(of: Configurations, most: int = 4) -> str:
    """What an incomplete grid lacks, in a sentence; nothing where it is complete."""
    if of.complete:
        return ""
    combinations = [
        "(" + ", ".join(f"{name} = {_listed((level,))}" for name, level in one.items()) + ")"
        for one in of.missing(most)
    ]
    lacking = of.expected - of.n
    more = f" and {lacking - len(combinations)} more" if lacking > len(combinations) else ""
    are = "is" if lacking == 1 else "are"
    return f"{lacking} of {of.expected} combinations {are} missing: {', '.join(combinations)}{more}"
