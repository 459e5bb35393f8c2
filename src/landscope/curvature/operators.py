"""Curvature matrices as Operators: what the Hessian, the Gauss-Newton matrix and the Fisher matrix share."""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from landscope.curvature.batches import in_memory, moved, tensors
from landscope.curvature.exact import gauss_newton_trace, layerwise
from landscope.curvature.modes import DIFFERENCES, Choice, Mode, choose, forget
from landscope.curvature.problem import Problem, count
from landscope.curvature.products import Made, loss_and_gradient
from landscope.curvature.reading import TRIED_BYTES, Kept, first_part, groups, joined, saved_bytes

AUTO = "auto"
DENSEST = 2**14  # parameters: 2 GB in float64
JOINED_BYTES = 2**24  # of graph: batches below are put together, which makes larger and faster products


@dataclass
class State:
    """What an operator finds out as it is used."""

    value: float  # the sum of the loss in the first pass over the data
    products: int = 0
    choices: dict[bool, Choice] = field(default_factory=dict)  # of modes, by whether there are several columns
    saved: int | None = None  # bytes of the graph of one group of batches
    kept_bytes: int = 0
    together: int = 1  # batches in a group
    kept: Kept = field(default_factory=Kept)


@dataclass(frozen=True, eq=False, repr=False)
class Curvature(ABC):
    """A symmetric matrix of the mean loss over a data set, in the flat space of the chosen parameters.

    Args:
        problem: The loss, the data and the parameters.
        samples: How many samples (with ``batch_loss``: what its counts add up to) the mean is over, in all processes.
        memory: Bytes that a block product may use for its columns, besides the vectors themselves.
        state: What the operator finds out as it is used.
        asked: The mode that was asked for.
        planned: How many columns will be multiplied in all, or None where that is not known.
        group: The torch.distributed process group whose processes hold shares of the data, or None.
        first: The number of the first batch among all.
    """

    problem: Problem
    samples: float
    memory: int
    state: State
    asked: str = AUTO
    planned: int | None = None
    group: Any = None
    first: int = 0

    title: ClassVar[str] = "curvature matrix"
    joins: ClassVar[bool] = True  # whether batches may be put together without another result

    @property
    def dim(self) -> int:
        """The number of parameters."""
        return self.problem.space.dim

    @property
    def dtype(self) -> torch.dtype:
        """The type of the vectors."""
        return self.problem.space.dtype

    @property
    def device(self) -> torch.device:
        """Where the vectors live: where the parameters are."""
        return self.problem.space.device

    @property
    def shape(self) -> tuple[int, int]:
        """The matrix's rows and columns."""
        return self.dim, self.dim

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters' names, in order."""
        return self.problem.space.names

    @property
    def blocks(self) -> Mapping[str, slice]:
        """Where each parameter tensor lies in the vector."""
        return self.problem.space.blocks

    @property
    def layers(self) -> Mapping[str, slice]:
        """Where the parameters of each module that owns some directly lie."""
        return self.problem.space.layers

    @property
    def products(self) -> int:
        """Columns multiplied so far."""
        return self.state.products

    @property
    def mode(self) -> str:
        """How products are made, in words."""
        if self.asked != AUTO:
            return self.asked
        words = [
            f"{choice.name} for {'blocks' if many else 'one column'}"
            for many, choice in sorted(self.state.choices.items())
        ]
        return ", ".join(words) or "mode not chosen yet"

    def __repr__(self) -> str:
        """What it is, in a line."""
        model = type(self.problem.space.model).__name__
        return f"{self.title} of {model}: {self.dim:,} parameters, mean over {self.samples:,g}, {self.mode}"

    def __matmul__(self, v: Float[Tensor, " dim *k"]) -> Float[Tensor, " dim *k"]:
        """The product with one vector, or with each of k columns; one pass over the data for all columns.

        Raises:
            ValueError: where v is not of shape ``[dim]`` or ``[dim, k]``, or not of the operator's type and device.
        """
        self._check_vector(v)
        with torch.inference_mode(False):
            rows = _usable(v if v.dim() == 2 else v.unsqueeze(1)).detach().T.contiguous()
            result = torch.zeros_like(rows)
            if len(rows):
                with self.problem.quiet():
                    self._pass(rows, result)
            self.state.products += len(rows)
            self._reduce(result)
            return result.div_(self.samples).T.reshape(v.shape)

    def dense(self, columns: int = 64) -> Float[Tensor, " dim dim"]:
        """The whole matrix, for small networks: some columns at a time.

        Raises:
            ValueError: for more than `DENSEST` parameters: the matrix alone would be gigabytes.

        Cost: ``dim`` products.
        """
        if self.dim > DENSEST:
            raise ValueError(
                f"a dense matrix of {self.dim:,} rows has {self.dim**2:,} elements: use products H @ v, "
                f"spectrum(H), or params= to choose at most {DENSEST:,} parameters"
            )
        whole = torch.empty(self.dim, self.dim, dtype=self.dtype, device=self.device)
        for start in range(0, self.dim, columns):
            some = torch.zeros(self.dim, min(columns, self.dim - start), dtype=self.dtype, device=self.device)
            some[start : start + some.shape[1]].fill_diagonal_(1)
            whole[:, start : start + some.shape[1]] = self @ some
        return whole

    def to_scipy(self) -> Any:
        """The same as a ``scipy.sparse.linalg.LinearOperator``, for SciPy's solvers: NumPy vectors in and out."""
        from scipy.sparse.linalg import LinearOperator

        def product(v: Any) -> Any:
            given = torch.as_tensor(v).to(self.device, self.dtype)
            return (self @ given.reshape(self.dim, -1)).cpu().numpy().reshape(v.shape)

        kind = torch.empty(0, dtype=self.dtype).numpy().dtype
        settings: dict[str, Any] = {"matvec": product, "rmatvec": product, "matmat": product, "rmatmat": product}
        return LinearOperator(dtype=kind, shape=self.shape, **settings)

    def named(self, v: Float[Tensor, " dim"]) -> dict[str, Tensor]:
        """A flat vector (an eigenvector, a gradient) as a tensor for each parameter, by its name; views of it.

        Raises:
            ValueError: where it is no vector of ``dim`` numbers.
        """
        if v.shape != (self.dim,):
            raise ValueError(f"a vector of shape [{self.dim}] is split by parameters, not {list(v.shape)}")
        return dict(zip(self.names, self.problem.space.split(v), strict=True))

    def flat(self, parts: Mapping[str, Tensor]) -> Float[Tensor, " dim"]:
        """One vector of a tensor for each parameter: the inverse of `named`, also for ``model.state_dict()``.

        Raises:
            ValueError: where a parameter is missing or has another shape. What belongs to none is left out.
        """
        for name, shape in zip(self.names, self.problem.space.shapes, strict=True):
            if name not in parts or parts[name].shape != shape:
                given = f"{list(parts[name].shape)}" if name in parts else "nothing"
                raise ValueError(f"the parameter {name} is of shape {list(shape)}; given is {given}")
        return self.problem.space.flat(parts[name].detach().to(self.device, self.dtype) for name in self.names)

    def point(self) -> Float[Tensor, " dim"]:
        """A copy of the parameters in one vector, in the operator's type."""
        return self.problem.space.point()

    def gradient(self) -> tuple[float, Float[Tensor, " dim"]]:
        """The mean loss over the data and its gradient, shape ``[dim]``.

        Raises:
            ValueError: as a product does.

        Cost: one gradient over the data.
        """
        total = 0.0
        with torch.inference_mode(False), self.problem.quiet():
            flat, weights = torch.zeros(self.dim, dtype=self.dtype, device=self.device), self.problem.weights()
            for batch in self.problem.batches():
                value, _, gradient = loss_and_gradient(self.problem, weights, batch)
                flat += self.problem.space.flat(gradient)
                total += value
        both = torch.cat([flat.double(), torch.tensor([total], dtype=torch.float64, device=self.device)])
        self._reduce(both)
        both /= self.samples
        return both[-1].item(), both[:-1].to(self.dtype)

    def parts(self) -> Sequence[tuple[float, "Curvature"]]:
        """For each batch its weight and its own matrix H_b: Σ weight·H_b is the whole matrix, the weights sum to 1.

        The batches stay in memory. In a process group these are this process's own batches.
        """
        found: list[tuple[float, Curvature]] = []
        with self.problem.quiet():
            batches = list(self.problem.read())
        for index, batch in enumerate(batches, self.first):
            problem = replace(self.problem, data=[batch], found={})
            of = count(problem)
            if not of.samples:
                continue  # a batch of padding alone has no mean
            own = {"samples": of.samples, "group": None, "first": index, "state": State(of.value)}
            found.append((of.samples / self.samples, replace(self, problem=problem, **own)))
        return found

    def exact_trace(self) -> float | None:
        """The trace without probes, where it can be had; None where not."""
        return None

    def _trace(self, known: bool) -> float | None:
        found = None
        if known and layerwise(self.problem):
            with self.problem.quiet():
                found = gauss_newton_trace(self.problem)
        shared = self._shared([math.nan if found is None else found])
        return None if shared is None else shared[0]

    def _shared(self, sums: Sequence[float]) -> list[float] | None:
        """Sums over this process's samples as means over all; every process takes part, with NaN for none."""
        total = torch.tensor(sums, dtype=torch.float64, device=self.device)
        self._reduce(total)
        return None if bool(total.isnan().any()) else (total / self.samples).tolist()

    def forget(self) -> None:
        """Drop what products keep from one to the next: graphs of batches (their memory is freed) and chosen modes.

        Changes of weights, buffers, batches, of plain attributes of the model's modules and of the loss, and of what
        the loss closes over are seen without it. Not seen are what functions read of their modules' globals, what is
        inside objects of other classes, what writes on batches through ``.data`` or a foreign view of PyTorch's memory,
        and single elements of NumPy's arrays (changes of whole arrays are): call this after such a change.
        """
        self.state.kept, self.state.kept_bytes = Kept(), 0
        self.state.choices.clear()

    @abstractmethod
    def _modes(self, index: int) -> Mapping[str, Mode]:
        """How products can be made on the batches of this index; the first is the one that the others are held to."""

    @property
    def _divisible(self) -> bool:
        """Whether the matrix does not depend on how the data are cut."""
        return self.problem.joinable and self.joins

    def _pass(self, rows: Float[Tensor, " k dim"], result: Float[Tensor, " k dim"]) -> None:
        """Add the products summed over this process's samples to ``result``."""
        try:
            self._swapped(rows, result)
        except (RuntimeError, NotImplementedError, TypeError):
            choice = self.state.choices.get(len(rows) > 1)
            if choice is None or not choice.remembered:
                raise
            forget(choice)  # it served another network that looks alike
            self.forget()
            self._swapped(rows, result.zero_())
        many = len(rows) > 1
        if self.asked == AUTO and many in self.state.choices:  # there is none where this process has no data
            self.state.choices[many] = self.state.choices[many]._replace(remembered=False)

    def _swapped(self, rows: Tensor, result: Tensor) -> None:
        space, weights = self.problem.space, self.problem.weights()
        if any(p.dtype != space.dtype for p in space.model.parameters()):
            # What the backward pass computes anew has to find the weights in the type that is calculated in.
            self.problem.within(weights, lambda: self._accumulate(weights, rows, result))
        else:
            self._accumulate(weights, rows, result)

    def _accumulate(
        self, weights: tuple[Tensor, ...], rows: Float[Tensor, " k dim"], result: Float[Tensor, " k dim"]
    ) -> None:
        state, problem = self.state, self.problem
        value, first, new = 0.0, not state.products, False
        functions = (problem.loss, problem.batch_loss, problem.batch_outputs)
        state.kept.refresh(problem.space.model, functions)
        state.kept_bytes = state.kept_bytes if state.kept.made else 0
        if state.saved is None:
            self._plan()
        for index, batches in enumerate(groups(problem.read(), state.together), self.first):
            for number, batch in enumerate(joined(batches)):
                name = self._chosen(batch, len(rows))
                key = (name.removeprefix("batched "), index, number)
                made = state.kept.find(key, [batch] if state.together == 1 else batches)
                if made is None:
                    made = self._modes(index)[name].make(problem, weights, moved(batch, problem.space))
                    new |= self._keep(key, [batch] if state.together == 1 else batches, made, name)
                for some, to in zip(rows.split(self._width()), result.split(self._width()), strict=True):
                    to += made[1](some)
                value += made[0]() if first else 0.0
        if new:
            state.kept.settle(problem.space.model, functions)
        if first:
            self._check_deterministic(value)

    def _plan(self) -> None:
        """See what one batch takes, and how many small ones go together."""
        state, space = self.state, self.problem.space
        batch = next(self.problem.read(), None)
        if batch is None:
            return  # which the pass reports
        part, times = first_part(batch) if self._divisible else (batch, 1.0)
        here = moved(part, space)
        name = next(iter(self._modes(self.first))) if self.asked == AUTO else self.asked
        mode, weights = self._modes(self.first)[name], self.problem.weights()
        known = (*weights, *space.model.parameters(), *tensors(here))
        seen = saved_bytes(lambda: mode.make(self.problem, weights, here), known)
        state.saved = JOINED_BYTES if seen is None else max(1, round(seen * times))
        if not in_memory(self.problem.data):  # the batches are copies, which are kept with the graphs
            state.saved += sum(t.nbytes for t in tensors(batch))
        if self._divisible:
            state.together = max(1, min(JOINED_BYTES, self.memory // 4) // state.saved)
            state.saved *= state.together

    def _chosen(self, batch: Any, k: int) -> str:
        if self.asked != AUTO:
            return self.asked
        choices = self.state.choices
        if (k > 1) not in choices:
            large = self._divisible and (self.state.saved or 0) > TRIED_BYTES
            here = next(self.problem.read(), batch)  # not joined: a trial costs less
            here = moved(first_part(here)[0] if large else here, self.problem.space)
            choice = choose(self.problem, here, k, self._modes(self.first), self.planned)
            if choice.name == DIFFERENCES and not any(other.name == DIFFERENCES for other in choices.values()):
                warnings.warn(
                    f"Hessian products are made by central differences of the gradient, with a relative error of about "
                    f"{torch.finfo(self.dtype).eps ** (2 / 3):.0e} at best: there is no second derivative here "
                    f"({(choice.reason or 'no other way works')[:200]})",
                    stacklevel=6,
                )
            choices[k > 1] = choice
        return choices[k > 1].name

    def _keep(self, key: Any, batches: list[Any], made: Made, name: str) -> bool:
        state = self.state
        wanted = self._modes(self.first)[name].keeps and state.kept_bytes + (state.saved or 0) <= self.memory // 2
        if wanted:
            state.kept_bytes += state.saved or 0
            state.kept.keep(key, batches, made, self.problem.space.model)
        return wanted

    def _width(self) -> int:
        """Columns that go through together."""
        room = self.memory - self.state.kept_bytes
        return max(1, room // ((self.state.saved or 0) + 4 * self.dim * self.dtype.itemsize))

    def _check_deterministic(self, value: float) -> None:
        before = self.state.value
        tolerance = torch.finfo(self.dtype).eps ** (2 / 3) * max(abs(value), abs(before))
        if math.isfinite(value) and math.isfinite(before) and abs(value - before) > tolerance:
            raise ValueError(
                f"the loss over the data is {before / self.samples:.9g} in one pass and {value / self.samples:.9g} in "
                "the next: it is random (augmentation of the data, noise in the network or the loss?), so it has no "
                "one curvature matrix; fix its randomness, or keep the batches in a list"
            )

    def _check_vector(self, v: Any) -> None:
        if not isinstance(v, Tensor):
            raise TypeError(
                f"a product with this {self.title} takes a tensor, not {type(v).__module__}.{type(v).__name__}: use "
                "torch.as_tensor(v).to(H.device, H.dtype)"
            )
        if v.dim() not in (1, 2) or v.shape[0] != self.dim:
            raise ValueError(
                f"a product with this {self.title} takes a vector of shape [{self.dim}] or [{self.dim}, k], "
                f"not {list(v.shape)}"
            )
        if v.dtype != self.dtype or v.device != self.device:
            raise ValueError(
                f"a product with this {self.title} takes a vector of {self.dtype} on {self.device}, as the parameters "
                f"are, not of {v.dtype} on {v.device}: use v.to(H.device, H.dtype)"
            )

    def _reduce(self, total: Tensor) -> None:
        if self.group is not None:
            torch.distributed.all_reduce(total, group=self.group)


def _usable(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_inference() else tensor
