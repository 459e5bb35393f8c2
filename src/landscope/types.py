"""The data that every part of Landscope exchanges: estimates, operators, snapshots, batches, tables.

Nothing here imports PyTorch, so that command lines, reports and stores start quickly.
"""

import html
import math
import operator
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
            ``draws`` share them, sample by sample, so that their difference or ratio is taken in pairs. None says
            that nothing else shares them: an estimate that enters a formula twice needs a name for its draws.
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
        """Check the fields and hold a copy of the samples as float64."""
        if not self.sem >= 0:
            raise ValueError(f"an Estimate needs sem >= 0 (0 = exact), not {self.sem}")
        if self.samples is not None:
            samples = np.array(self.samples, dtype=np.float64).reshape(-1)
            if samples.size != self.n:
                raise ValueError(f"an Estimate of n={self.n} samples was given {samples.size} of them")
            object.__setattr__(self, "samples", samples)

    @classmethod
    def of(cls, samples: "Iterable[float] | np.ndarray", draws: str | None = None) -> "Estimate":
        """The mean of independent samples (shape ``[n]``, n >= 2) with sem = sd / sqrt(n), sd with n - 1."""
        values = np.asarray(list(samples) if not isinstance(samples, np.ndarray) else samples, dtype=np.float64)
        values = values.reshape(-1)
        if values.size < 2:
            raise ValueError(f"a standard error needs at least 2 samples, not {values.size}")
        if not np.isfinite(values).all():
            wrong = int((~np.isfinite(values)).sum())
            raise ValueError(
                f"{wrong} of {values.size} samples are not finite: a mean needs numbers, leave them out or say so"
            )
        sem = float(values.std(ddof=1) / math.sqrt(values.size))
        return cls(float(values.mean()), sem, values.size, values, draws)

    @property
    def freedom(self) -> float:
        """Degrees of freedom of the standard error."""
        return float(self.df if self.df is not None else max(self.n - 1, 0))

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The two-sided Student t interval of the mean at ``level``."""
        if not 0 < level < 1:
            raise ValueError(f"a confidence level lies between 0 and 1, not {level}")
        if self.sem == 0:
            return self.mean, self.mean
        if self.freedom <= 0:
            raise ValueError("one sample has no interval: an Estimate needs n >= 2 or sem = 0")
        from scipy.special import stdtrit  # what scipy.stats.t.ppf calls; its import takes a second less

        half = float(stdtrit(self.freedom, 0.5 + level / 2)) * self.sem
        return self.mean - half, self.mean + half

    def __add__(self, other: "Estimate | float | int") -> "Estimate":
        """Sum; paired where both share their draws, else of independent estimates."""
        return _combine(self, other, operator.add, lambda a, b: (1.0, 1.0))

    def __sub__(self, other: "Estimate | float | int") -> "Estimate":
        """Difference; paired where both share their draws, else of independent estimates."""
        return _combine(self, other, operator.sub, lambda a, b: (1.0, -1.0))

    def __mul__(self, other: "Estimate | float | int") -> "Estimate":
        """Product; paired (jackknife) where both share their draws, else the delta method."""
        return _combine(self, other, operator.mul, lambda a, b: (b, a))

    def __truediv__(self, other: "Estimate | float | int") -> "Estimate":
        """Ratio; paired (jackknife) where both share their draws, else the delta method.

        Both are first-order: trust them where the denominator lies many standard errors from 0.
        """
        return _combine(self, other, operator.truediv, lambda a, b: (1 / b, -a / b**2))

    def __radd__(self, other: float | int) -> "Estimate":
        """``other + self``."""
        return self + other

    def __rmul__(self, other: float | int) -> "Estimate":
        """``other * self``."""
        return self * other

    def __neg__(self) -> "Estimate":
        """``-self``."""
        return self * -1.0

    def __rsub__(self, other: float | int) -> "Estimate":
        """``other - self``."""
        return Estimate(float(other)) - self

    def __rtruediv__(self, other: float | int) -> "Estimate":
        """``other / self``."""
        return Estimate(float(other)) / self

    def __float__(self) -> float:
        """The mean alone."""
        return float(self.mean)

    def __repr__(self) -> str:
        """Mean and standard error, or the mean alone where it is exact (many equal samples are not)."""
        if self.sem == 0 and self.n < 2:
            return f"{self.mean:.4g} (exact)"
        return f"{self.mean:.4g} ± {self.sem:.2g} (n={self.n})"

    def _repr_html_(self) -> str:
        if self.sem == 0 and self.n < 2:
            return f"<span class='landscope-estimate'>{self.mean:.4g} <small>(exact)</small></span>"
        text = f"{self.mean:.4g} ± {self.sem:.2g}"
        if self.freedom > 0:
            low, high = self.interval()
            text += f" <small>(95 % interval {low:.4g} to {high:.4g}, n={self.n})</small>"
        return f"<span class='landscope-estimate'>{text}</span>"


def _combine(a: Estimate, b: "Estimate | float | int", function: Any, slopes: Any) -> Estimate:
    """``function(a, b)`` with its standard error: jackknife over shared draws, else first-order propagation."""
    if not isinstance(b, Estimate):
        b = Estimate(float(b))
    if function is operator.truediv and b.mean == 0:
        raise ValueError(f"{a!r} cannot be divided by {b!r}: the ratio is not defined")
    names_a, names_b = _draw_names(a), _draw_names(b)
    # A constant has no samples of its own, so that what it is combined with keeps its draws.
    if a.samples is not None and a.n > 1 and _constant(b):
        return _jackknife(a, Estimate(b.mean, n=a.n, samples=np.full(a.n, b.mean)), function, a.draws)
    if b.samples is not None and b.n > 1 and _constant(a):
        return _jackknife(Estimate(a.mean, n=b.n, samples=np.full(b.n, a.mean)), b, function, b.draws)
    if names_a & names_b:
        if names_a != names_b or a.samples is None or b.samples is None or a.n != b.n or a.n < 2:
            raise ValueError(
                f"the estimates share the draws {' and '.join(sorted(names_a & names_b))!r}, so they are "
                "not independent, and without samples in pairs they cannot be combined: keep the samples, or combine "
                "them where they are drawn"
            )
        return _jackknife(a, b, function, a.draws)
    names = AND.join(sorted(names_a | names_b)) or None
    return _propagated(a, b, function(a.mean, b.mean), slopes(a.mean, b.mean), function is operator.mul, names)


AND = " & "  # joins the names of draws that were combined


def _draw_names(a: Estimate) -> set[str]:
    return set(a.draws.split(AND)) if a.draws is not None else set()


def _constant(a: Estimate) -> bool:
    return a.sem == 0 and a.samples is None and a.draws is None


def _propagated(
    a: Estimate, b: Estimate, mean: float, slopes: tuple[float, float], product: bool, draws: str | None
) -> Estimate:
    """First-order propagation of independent errors, with Welch and Satterthwaite's degrees of freedom."""
    parts = [(abs(slopes[0]) * a.sem, a.freedom), (abs(slopes[1]) * b.sem, b.freedom)]
    if product:  # exact for independent factors, and all there is where both means are 0
        parts.append((a.sem * b.sem, min(a.freedom, b.freedom)))
    parts = [(sem, freedom) for sem, freedom in parts if sem > 0]  # exact parts have no say
    n = min((e.n for e in (a, b) if e.sem > 0), default=max(a.n, b.n))
    if not parts:
        return Estimate(mean, 0.0, n, draws=draws)
    variance = sum(sem**2 for sem, _ in parts)
    known = all(freedom > 0 for _, freedom in parts)  # one unknown error leaves the whole without an interval
    freedom = variance**2 / sum(sem**4 / nu for sem, nu in parts) if known else 0.0
    return Estimate(mean, math.sqrt(variance), n, draws=draws, df=freedom)


def _jackknife(a: Estimate, b: Estimate, function: Any, draws: str | None) -> Estimate:
    """``function`` of paired samples: exact for sums, first-order for products and ratios."""
    n = a.n
    whole = function(a.mean, b.mean)
    # From the mean rather than the samples' sum: what is combined again is the jackknife of the whole formula.
    without_a, without_b = ((n * e.mean - e.samples) / (n - 1) for e in (a, b) if e.samples is not None)
    with np.errstate(divide="ignore", invalid="ignore"):
        pseudo = n * whole - (n - 1) * np.asarray(function(without_a, without_b))
    if not np.isfinite(pseudo).all():
        raise ValueError("the ratio is not defined for every sample left out: its denominator reaches 0")
    return Estimate(float(whole), float(pseudo.std(ddof=1) / math.sqrt(n)), n, pseudo, draws)


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

    def __repr__(self) -> str:
        """How many samples of which shape."""
        shape = "×".join(map(str, self.inputs.shape[1:])) or "scalar"
        return f"Batches of {self.n:,} samples ({shape}), {self.size:,} at a time"

    def to(self, device: "torch.device | str") -> "Batches":
        """The same samples on another device; these themselves where they are there already."""
        inputs, targets = self.inputs.to(device), self.targets.to(device)
        if inputs is self.inputs and targets is self.targets:
            return self
        return Batches(inputs, targets, self.size)


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
        names = list(self.columns)[:MOST_COLUMNS]
        head = "".join(f"<th>{_cell(name)}</th>" for name in names)
        rows: list[str] = []
        room = MOST_BYTES - len(head.encode())
        for i in range(min(len(self), MOST_ROWS)):
            row = "<tr>" + "".join(f"<td>{_cell(self.columns[name][i])}</td>" for name in names) + "</tr>"
            room -= len(row.encode())
            if room < 0:
                break
            rows.append(row)
        cut = [f"{len(rows)} of {len(self)} rows"] if len(rows) < len(self) else []
        cut += [f"{len(names)} of {len(self.columns)} columns"] if len(names) < len(self.columns) else []
        more = f"<caption>{', '.join(cut)}</caption>" if cut else ""
        body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
        return f"<table class='landscope-table'>{more}{body}</table>"


# What a notebook shows of a table stays below 20 kB, whatever is in it.
MOST_ROWS, MOST_COLUMNS, MOST_BYTES = 30, 20, 16_000


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return html.escape(text if len(text) <= 60 else text[:59] + "…")
