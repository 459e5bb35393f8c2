"""A loss over a data set as a function of chosen parameters, whatever the data look like and leaving no trace."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from landscope.curvature.batches import in_memory, logits, moved, owned, taken_apart
from landscope.curvature.restoring import is_compiled, loader_kept, random_state_kept, rewind
from landscope.curvature.space import Space
from landscope.losses import check_additive, check_targets
from landscope.losses.trying import tried_loss, tried_network
from landscope.models import evaluating
from landscope.models.contexts import differentiable_attention, replaced

BatchLoss = Callable[[nn.Module, Any], tuple[Tensor, Any]]
COUNTING = 1  # the seed of the first pass: another than that of products, so that a random loss shows itself
BatchOutputs = Callable[[nn.Module, Any], tuple[Tensor, Tensor, Tensor | None]]


@dataclass(frozen=True, eq=False)
class Problem:
    """What is differentiated: the sum of a loss over a batch, as a function of the parameters of a Space.

    Args:
        space: The parameters.
        loss: ``loss(outputs, targets)``, the mean over a batch; None where ``batch_loss`` is given.
        batch_loss: ``batch_loss(model, batch) -> (sum of the loss, count)``, or None.
        data: The batches, re-iterable.
        frozen: Whether BatchNorm normalises by each batch's own statistics (running ones are left alone).
        batch_outputs: ``batch_outputs(model, batch) -> (outputs, targets, mask)`` in place of calling the model.
        found: What reading the data found: the size of the first pass, and persistent workers that were started.
    """

    space: Space
    loss: Callable[[Any, Any], Tensor] | None
    batch_loss: BatchLoss | None
    data: Iterable[Any]
    frozen: bool = False
    batch_outputs: BatchOutputs | None = None
    found: dict[Any, Any] = field(default_factory=dict)

    def read(self, seed: int = 0) -> Iterator[Any]:
        """The batches as they are given, in the same order each time; copies where a loader may fill them anew.

        Raises:
            ValueError: at the end, where there were not as many as in the first pass.
        """
        rewind(self.data, seed)
        size, copied = 0, not in_memory(self.data)
        for batch in self.data:
            size += self._size(batch)
            yield owned(batch) if copied else batch
        if self.found.setdefault("size", size) != size:
            raise ValueError(
                f"the data gave {self.found['size']} {self._unit} in the first pass and {size} in this one: they can "
                "be read only once (a stream, an IterableDataset that goes on where it was?), or are not the same "
                "each time; every product reads them anew: give a list of batches, or a DataLoader over a fixed set"
            )

    def batches(self) -> Iterator[Any]:
        """The batches on the parameters' device, floating-point parts in the type that is calculated in."""
        for batch in self.read():
            yield moved(batch, self.space)

    def _size(self, batch: Any) -> int:
        """What shows that a pass is a whole one: samples, or batches of a form of the user's own."""
        return len(taken_apart(batch)[1]) if self._unit == "samples" else 1

    @property
    def _unit(self) -> str:
        return "samples" if self.batch_loss is None and self.batch_outputs is None else "batches"

    @property
    def joinable(self) -> bool:
        """Whether the result does not depend on how the data are cut."""
        return self.batch_loss is None and self.batch_outputs is None and not self.frozen

    def weights(self) -> tuple[Tensor, ...]:
        """New leaves that share the parameters' memory (copies where they are of another type)."""
        with torch.inference_mode(False):
            return tuple(_cast(p.detach(), self.space).requires_grad_() for p in self.space.parameters())

    def total(self, weights: tuple[Tensor, ...], batch: Any) -> tuple[Tensor, float]:
        """The sum of the loss over a batch (a scalar), and how much the batch counts.

        What is computed lazily (activation checkpointing) sees these weights in the backward pass only where that
        runs `within` them, too.
        """
        if self.batch_loss is not None:
            value, count = self._called(_Loss(self.space.model, self.batch_loss), weights, batch)
            return _scalar(value), float(count)
        outputs, targets = self.outputs(weights, batch)
        if not len(targets):  # all of a batch may be padding
            return outputs.sum() * 0, 0.0
        return self.loss(outputs, targets) * len(targets), float(len(targets))  # type: ignore[misc]

    def outputs(self, weights: tuple[Tensor, ...], batch: Any) -> tuple[Tensor, Tensor]:
        """The network's outputs on a batch, and the targets."""
        if self.batch_outputs is not None:
            return self._called(_Rows(self.space.model, self.batch_outputs), weights, batch)
        inputs, targets = taken_apart(batch)
        return logits(self._called(_Outputs(self.space.model), weights, inputs)), targets

    def tried(self, weights: tuple[Tensor, ...], batch: Any, which: str = "") -> tuple[Tensor, Tensor]:
        """The same for data that are new, the inputs named (``which``) where the network does not take them.

        Raises:
            ValueError: then.
        """
        if self.batch_outputs is not None:
            return self.outputs(weights, batch)
        inputs, targets = taken_apart(batch)
        call = partial(self._called, _Outputs(self.space.model), weights, inputs)
        return logits(tried_network(call, inputs, self.space.dtype, which)), targets

    def within(self, weights: tuple[Tensor, ...], work: Callable[[], Any]) -> Any:
        """What ``work`` gives while the network's parameters are these, whatever it calls of the network itself."""
        return self._called(_Within(self.space.model), weights, work)

    def _called(self, wrapped: nn.Module, weights: tuple[Tensor, ...], batch: Any) -> Any:
        given = {id(p): w for p, w in zip(self.space.parameters(), weights, strict=True)}
        state = {}
        for name, p in self.space.model.named_parameters():
            state[name] = given[id(p)] if id(p) in given else _cast(p.detach(), self.space)
        for name, buffer in self.space.model.named_buffers():
            # A copy where BatchNorm writes on it, which a graph that is used again could not bear.
            state[name] = _cast(buffer.clone() if self.frozen else buffer, self.space)
        inside = {f"model.{name}": tensor for name, tensor in replaced(self.space.model, state).items()}
        return functional_call(wrapped, inside, (batch,), tie_weights=False)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """The network set for measuring; modes, buffers, generators, workers and kernels as found afterwards.

        Autograd is on and autocast off, whatever surrounds this; nothing compiled runs compiled, for what
        torch.compile makes has one derivative.
        """
        model = self.space.model
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(evaluating(model))
            stack.enter_context(random_state_kept())
            stack.enter_context(loader_kept(self.data, self.found))
            stack.enter_context(differentiable_attention())
            stack.enter_context(torch.autocast(self.space.device.type, enabled=False))
            if is_compiled(model):
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            if self.frozen:
                for module in model.modules():
                    if isinstance(module, _BatchNorm):
                        module.training = True
            stack.enter_context(torch.enable_grad())
            yield


class _Outputs(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Any) -> Any:
        if isinstance(inputs, Mapping):
            return self.model(**inputs)
        return self.model(*inputs) if isinstance(inputs, (tuple, list)) else self.model(inputs)


class _Loss(nn.Module):
    def __init__(self, model: nn.Module, batch_loss: BatchLoss) -> None:
        super().__init__()
        self.model, self.batch_loss = model, batch_loss

    def forward(self, batch: Any) -> Any:
        with torch.enable_grad():  # a loss may differentiate by itself, such as the residual of a differential equation
            found = self.batch_loss(self.model, batch)
        if not (isinstance(found, tuple) and len(found) == 2):
            raise ValueError(
                f"batch_loss(model, batch) returned {type(found).__name__}; it has to return the pair "
                "(sum of the loss over the batch, how many samples or tokens it sums over)"
            )
        return found


class _Rows(nn.Module):
    def __init__(self, model: nn.Module, batch_outputs: BatchOutputs) -> None:
        super().__init__()
        self.model, self.batch_outputs = model, batch_outputs

    def forward(self, batch: Any) -> tuple[Tensor, Tensor]:
        found = self.batch_outputs(self.model, batch)
        if not (isinstance(found, tuple) and len(found) == 3 and all(isinstance(part, Tensor) for part in found[:2])):
            raise ValueError(
                f"batch_outputs(model, batch) returned {type(found).__name__}; it has to return the triple (outputs "
                "[n, c], targets [n], mask [n] of the rows that count or None)"
            )
        outputs, targets, mask = found
        if mask is None:
            return outputs, targets
        if not (isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.shape == outputs.shape[:1]):
            given = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(
                "the mask that batch_outputs gives marks the rows that count: a tensor of bools of shape "
                f"[{len(outputs)}], not {given}"
            )
        return outputs[mask], targets[mask]


class _Within(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[], Any]) -> Any:
        return work()


def _cast(tensor: Tensor, space: Space) -> Tensor:
    if tensor.is_inference():  # autograd cannot save it
        tensor = tensor.clone()
    return tensor.to(space.dtype) if tensor.is_floating_point() else tensor


def _scalar(value: Tensor) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise ValueError(f"batch_loss gave {value!r} as the loss; it has to be one number, the sum over the batch")
    return value.reshape(())


class Counted(NamedTuple):
    """What a first pass over the data finds.

    Args:
        samples: How much the data count.
        value: The sum of the loss.
    """

    samples: float
    value: float


def count(problem: Problem) -> Counted:
    """How much the data count, and the sum of their loss; refuses bad data.

    Cost: one forward pass over the data.
    """
    samples, value = 0.0, 0.0
    with problem.quiet(), torch.no_grad():
        weights = problem.weights()
        for raw in problem.read(COUNTING):
            batch = moved(raw, problem.space)
            if problem.batch_loss is not None:
                part, number = problem.total(weights, batch)
                samples, value = samples + number, value + part.item()
                continue
            outputs, targets = problem.tried(weights, batch)
            check_targets(problem.loss, targets)  # type: ignore[arg-type]
            if not len(targets):
                continue
            mean = tried_loss(problem.loss, outputs, targets)
            if not samples:
                check_additive(problem.loss, outputs, targets)  # type: ignore[arg-type]
            samples, value = samples + len(targets), value + (mean * len(targets)).item()
    return Counted(samples, value)
