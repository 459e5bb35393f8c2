"""The data that every part of Landscope exchanges: estimates, operators, snapshots, batches, tables.

Nothing here imports PyTorch, so that command lines, reports and stores start quickly.
"""

import html
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error.

    Args:
        mean: The estimate.
        sem: Its standard error; 0 means that the value is exact.
        n: How many independent samples are behind it.
        samples: The samples themselves, shape ``[n]``, float64, or None where only the summary is kept.
        draws: Names the random draws (probes, perturbations) behind the samples. Two estimates with the same
            ``draws`` share them, sample by sample, so that their difference or ratio is taken in pairs.
        df: Degrees of freedom of ``sem``; ``n - 1`` unless the estimate was computed from others.

    >>> Estimate.of([1.0, 2.0, 3.0])
    2 ± 0.58 (n=3)
    """

    mean: float
    sem: float = 0.0
    n: int = 1
    samples: np.ndarray | None = field(default=None, compare=False, repr=False)
    draws: str | None = None
    df: float | None = None

    def __post_init__(self) -> None:
        """Check the fields and hold the samples as float64."""
        if not self.sem >= 0:
            raise ValueError(f"an Estimate needs sem >= 0 (0 = exact), not {self.sem}")
        if self.samples is not None:
            object.__setattr__(self, "samples", np.asarray(self.samples, dtype=np.float64).reshape(-1))

    @classmethod
    def of(cls, samples: "Iterable[float] | np.ndarray", draws: str | None = None) -> "Estimate":
        """The mean of independent samples (shape ``[n]``, n >= 2) with sem = sd / sqrt(n), sd with n - 1."""
        values = np.asarray(list(samples) if not isinstance(samples, np.ndarray) else samples, dtype=np.float64)
        values = values.reshape(-1)
        if values.size < 2:
            raise ValueError(f"a standard error needs at least 2 samples, not {values.size}")
        sem = float(values.std(ddof=1) / math.sqrt(values.size))
        return cls(float(values.mean()), sem, values.size, values, draws)

    @property
    def freedom(self) -> float:
        """Degrees of freedom of the standard error."""
        return self.df if self.df is not None else max(self.n - 1, 0)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The two-sided Student t interval of the mean at ``level``."""
        if not 0 < level < 1:
            raise ValueError(f"a confidence level lies between 0 and 1, not {level}")
        if self.sem == 0:
            return self.mean, self.mean
        if self.freedom <= 0:
            raise ValueError("one sample has no interval: an Estimate needs n >= 2 or sem = 0")
        from scipy.stats import t

        half = float(t.ppf(0.5 + level / 2, self.freedom)) * self.sem
        return self.mean - half, self.mean + half

    def __add__(self, other: "Estimate | float") -> "Estimate":
        """Sum; paired where both share their draws, else of independent estimates."""
        return _combine(self, other, lambda a, b: a + b, lambda a, b: (1.0, 1.0))

    def __sub__(self, other: "Estimate | float") -> "Estimate":
        """Difference; paired where both share their draws, else of independent estimates."""
        return _combine(self, other, lambda a, b: a - b, lambda a, b: (1.0, -1.0))

    def __mul__(self, other: "Estimate | float") -> "Estimate":
        """Product; paired (jackknife) where both share their draws, else the delta method."""
        return _combine(self, other, lambda a, b: a * b, lambda a, b: (b, a))

    def __truediv__(self, other: "Estimate | float") -> "Estimate":
        """Ratio; paired (jackknife) where both share their draws, else the delta method."""
        return _combine(self, other, lambda a, b: a / b, lambda a, b: (1 / b, -a / b**2))

    __radd__ = __add__
    __rmul__ = __mul__

    def __rsub__(self, other: float) -> "Estimate":
        """``other - self``."""
        return Estimate(float(other)) - self

    def __rtruediv__(self, other: float) -> "Estimate":
        """``other / self``."""
        return Estimate(float(other)) / self

    def __float__(self) -> float:
        """The mean alone."""
        return float(self.mean)

    def __repr__(self) -> str:
        """Mean and standard error, or the mean alone where it is exact."""
        if self.sem == 0:
            return f"{self.mean:.4g} (exact)"
        return f"{self.mean:.4g} ± {self.sem:.2g} (n={self.n})"

    def _repr_html_(self) -> str:
        if self.sem == 0:
            return f"<span class='landscope-estimate'>{self.mean:.4g} <small>(exact)</small></span>"
        text = f"{self.mean:.4g} ± {self.sem:.2g}"
        if self.freedom > 0:
            low, high = self.interval()
            text += f" <small>(95 % interval {low:.4g} to {high:.4g}, n={self.n})</small>"
        return f"<span class='landscope-estimate'>{text}</span>"


def _combine(a: Estimate, b: "Estimate | float", function: Any, slopes: Any) -> Estimate:
    """``function(a, b)`` with its standard error: jackknife over shared draws, else first-order propagation."""
    if not isinstance(b, Estimate):
        b = Estimate(float(b))
    mean = function(a.mean, b.mean)
    if a.draws is not None and a.draws == b.draws:
        return _jackknife(a, b, function)
    slope_a, slope_b = slopes(a.mean, b.mean)
    parts = [(abs(slope_a) * a.sem, a.freedom), (abs(slope_b) * b.sem, b.freedom)]
    variance = sum(s**2 for s, _ in parts)
    # Welch-Satterthwaite: exact parts have no say in the degrees of freedom.
    below = sum(s**4 / nu for s, nu in parts if s > 0 and nu > 0)
    return Estimate(mean, math.sqrt(variance), max(a.n, b.n), df=variance**2 / below if below else None)


def _jackknife(a: Estimate, b: Estimate, function: Any) -> Estimate:
    if a.samples is None or b.samples is None or len(a.samples) != len(b.samples):
        raise ValueError(
            f"both estimates come from the draws {a.draws!r}, so they are not independent, and without the samples of "
            "both they cannot be combined: keep the samples, or combine them where they were drawn"
        )
    n = len(a.samples)
    left_out_a = (a.samples.sum() - a.samples) / (n - 1)
    left_out_b = (b.samples.sum() - b.samples) / (n - 1)
    whole = function(a.samples.mean(), b.samples.mean())
    pseudo = n * whole - (n - 1) * np.asarray(function(left_out_a, left_out_b))
    # The pseudo-values stand in for the samples: exact for sums, first-order for products and ratios.
    return Estimate(float(whole), float(pseudo.std(ddof=1) / math.sqrt(n)), n, pseudo, a.draws)


@runtime_checkable
class Operator(Protocol):
    """A symmetric linear map on a flat space; its vectors are tensors of shape ``[dim]`` or ``[dim, k]``."""

    @property
    def dim(self) -> int:
        """The dimension of the space."""
        ...

    @property
    def dtype(self) -> "torch.dtype":
        """The floating-point type of its vectors."""
        ...

    @property
    def device(self) -> "torch.device":
        """Where its vectors live."""
        ...

    def __matmul__(self, v: 'Float[Tensor, " dim *k"]') -> 'Float[Tensor, " dim *k"]':
        """The product with one vector, or with each of k columns."""
        ...


@dataclass(frozen=True, eq=False)
class Batches:
    """Samples held in memory, cut into batches in their order: iterate as often as you like, the same each time.

    Args:
        inputs: Shape ``[n, ...]``.
        targets: Shape ``[n]`` (class indices) or ``[n, outputs]`` (regression).
        size: Samples in a batch; the last one may be smaller.
    """

    inputs: "Tensor"
    targets: "Tensor"
    size: int = 2048

    def __post_init__(self) -> None:
        """Refuse sets that nothing can be measured on."""
        if len(self.inputs) != len(self.targets):
            raise ValueError(f"{len(self.inputs)} inputs but {len(self.targets)} targets: each sample needs both")
        if not len(self.inputs):
            raise ValueError("an empty data set: at least one sample is needed")
        if self.size < 1:
            raise ValueError(f"a batch needs at least one sample, not {self.size}")

    @property
    def n(self) -> int:
        """How many samples there are."""
        return len(self.inputs)

    def __len__(self) -> int:
        """How many batches there are."""
        return -(-self.n // self.size)

    def __iter__(self) -> "Iterator[tuple[Tensor, Tensor]]":
        """The batches ``(inputs, targets)`` in order."""
        for i in range(0, self.n, self.size):
            yield self.inputs[i : i + self.size], self.targets[i : i + self.size]

    def to(self, device: "torch.device | str") -> "Batches":
        """The same samples on another device."""
        return Batches(self.inputs.to(device), self.targets.to(device), self.size)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One network at one step of one run: all that a measure may look at.

    Args:
        model: The module; it holds ``state`` and is in eval mode. A measure leaves it as it found it.
        state: Parameters and buffers by name, at ``step``.
        start_state: The same at the start of training, or None where it is not known.
        loss: ``loss(outputs, targets) -> scalar``, the mean over the batch.
        train: The whole training set.
        valid: The validation set, or None.
        test: The test set, or None.
        step: How many optimizer steps the network has made.
        seed: For all random draws of a measure. It is derived from the measure's Call alone, so that every
            network meets the same draws, whatever the order in which they are measured.
    """

    model: "torch.nn.Module"
    state: "Mapping[str, Tensor]"
    start_state: "Mapping[str, Tensor] | None"
    loss: Any
    train: Batches
    valid: Batches | None
    test: Batches | None
    step: int
    seed: int

    def __repr__(self) -> str:
        """What it is, in a line."""
        parameters = sum(p.numel() for p in self.model.parameters())
        return (
            f"Snapshot of {type(self.model).__name__} ({parameters:,} parameters) at step {self.step:,}, "
            f"{self.train.n:,} training samples"
        )

    def _repr_html_(self) -> str:
        return f"<code>{html.escape(repr(self))}</code>"


@dataclass(frozen=True)
class Table:
    """Columns of equal length; None marks a missing value.

    >>> table = Table.of([{"batch_size": 8, "seed": 0}, {"batch_size": 32, "seed": 0}])
    >>> table.where(batch_size=32).rows()
    [{'batch_size': 32, 'seed': 0}]
    """

    columns: Mapping[str, Sequence[Any]]

    def __post_init__(self) -> None:
        """Check that the columns are of one length."""
        lengths = {name: len(column) for name, column in self.columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the columns of a Table are of one length, not {lengths}")

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]]) -> "Table":
        """A table from rows; a column that a row lacks is None there."""
        rows = list(rows)
        names = list(dict.fromkeys(name for row in rows for name in row))
        return cls({name: tuple(row.get(name) for row in rows) for name in names})

    def __len__(self) -> int:
        """How many rows there are."""
        return len(next(iter(self.columns.values()), ()))

    def __getitem__(self, name: str) -> Sequence[Any]:
        """One column."""
        if name not in self.columns:
            raise KeyError(f"no column {name!r}; there are {', '.join(self.columns) or 'none'}")
        return self.columns[name]

    def rows(self) -> list[dict[str, Any]]:
        """The rows as dictionaries."""
        return [dict(zip(self.columns, row, strict=True)) for row in zip(*self.columns.values(), strict=True)]

    def where(self, **equal: Any) -> "Table":
        """The rows whose columns equal the values given; a set, list or tuple means any of them."""
        wanted = {k: v if isinstance(v, (set, frozenset, list, tuple)) else (v,) for k, v in equal.items()}
        for name in wanted:
            self[name]
        kept = [i for i in range(len(self)) if all(self.columns[k][i] in v for k, v in wanted.items())]
        return Table({name: tuple(column[i] for i in kept) for name, column in self.columns.items()})

    def distinct(self, name: str) -> list[Any]:
        """The different values of a column, sorted, None left out."""
        return sorted({value for value in self[name] if value is not None})

    def __repr__(self) -> str:
        """Size and column names."""
        return f"Table of {len(self)} rows: {', '.join(self.columns)}"

    def _repr_html_(self) -> str:
        shown = 30
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(_cell(value))}</td>" for value in row.values()) + "</tr>"
            for row in self.rows()[:shown]
        )
        more = f"<caption>{shown} of {len(self)} rows</caption>" if len(self) > shown else ""
        return f"<table class='landscope-table'>{more}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:200]
