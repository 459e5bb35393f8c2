"""Layers of many networks at once, forward and backward written out.

Every operation is on ``[members, batch, …]``. Each member's numbers are a function of its own rows alone, to the bit,
however many members there are: batched products work member by member, and buffers are padded so that no element ever
falls into the shorter code at the end of a vector loop.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from landscope.layers import GeneralizationLayer, Residual
from landscope.population.layout import ALIGNED

NARROW, LONG = 8, 64  # inputs and samples for which the weights' gradient is several times faster turned round

aten: Any = torch.ops.aten
Shape = tuple[int, ...]


class Buffers:
    """Scratch tensors by name and shape, allocated once: allocating anew costs more than most of the arithmetic."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._made: dict[tuple[object, Shape], tuple[Tensor, Tensor]] = {}
        self._dtype, self._device = dtype, device

    def __call__(self, name: object, *shape: int) -> Tensor:
        """A contiguous tensor of that shape; its content is undefined."""
        return self.padded(name, *shape)[0]

    def padded(self, name: object, *shape: int) -> tuple[Tensor, Tensor]:
        """The same, and the flat tensor behind it whose length is a multiple of 64."""
        key = (name, shape)
        if key not in self._made:
            n = math.prod(shape)
            flat = torch.zeros(-(-n // ALIGNED) * ALIGNED, dtype=self._dtype, device=self._device)
            self._made[key] = flat[:n].view(shape), flat
        return self._made[key]


@dataclass(eq=False)
class Pass:
    """What the layers share while a batch goes through: parameters and buffers by name, scratch space, gradients."""

    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    scratch: Buffers
    training: bool
    update: bool = True
    kept: dict[object, Any] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Linear:
    """x Wᵀ + b."""

    name: str
    outputs: int
    bias: bool

    def forward(self, x: Tensor, run: Pass) -> Tensor:
        """The outputs; the inputs are remembered."""
        run.kept[self] = x
        y = run.scratch(self, len(x), x.shape[1], self.outputs)
        weight = run.parameters[f"{self.name}.weight"].transpose(1, 2)
        if self.bias:
            return torch.baddbmm(run.parameters[f"{self.name}.bias"].unsqueeze(1), x, weight, out=y)
        return torch.bmm(x, weight, out=y)

    def backward(self, d: Tensor, run: Pass, first: bool) -> Tensor | None:
        """The gradient of the inputs, unless these are the data."""
        x, weight = run.kept[self], run.parameters[f"{self.name}.weight"]
        self._gradients(run, d.transpose(1, 2), d, 1, x)
        if first:
            return None
        return torch.bmm(d, weight, out=run.scratch((self, "d"), len(d), d.shape[1], x.shape[2]))

    def _gradients(self, run: Pass, left: Tensor, summed: Tensor, over: int, x: Tensor) -> None:
        m, batch, inputs = x.shape
        made = run.scratch((self, "w"), m, self.outputs, inputs)
        if inputs <= NARROW and 3 * inputs <= self.outputs and batch >= LONG:
            turned = run.scratch((self, "turned"), m, inputs, self.outputs)
            made.copy_(torch.bmm(x.transpose(1, 2), left.transpose(1, 2), out=turned).transpose(1, 2))
        else:
            torch.bmm(left, x, out=made)
        run.gradients[f"{self.name}.weight"] = made
        if self.bias:
            run.gradients[f"{self.name}.bias"] = torch.sum(summed, over, out=run.scratch((self, "b"), m, self.outputs))

    def head(self, x: Tensor, run: Pass) -> Tensor:
        """The outputs with the classes before the samples: a softmax over the last dimension costs 30 times as much."""
        run.kept[self] = x
        y = run.scratch((self, "head"), len(x), self.outputs, x.shape[1])
        weight, turned = run.parameters[f"{self.name}.weight"], x.transpose(1, 2)
        if self.bias:
            return torch.baddbmm(run.parameters[f"{self.name}.bias"].unsqueeze(2), weight, turned, out=y)
        return torch.bmm(weight, turned, out=y)

    def head_backward(self, d: Tensor, run: Pass, first: bool) -> Tensor | None:
        """`backward` for `head`."""
        x, weight = run.kept[self], run.parameters[f"{self.name}.weight"]
        self._gradients(run, d, d, 2, x)
        if first:
            return None
        return torch.bmm(d.transpose(1, 2), weight, out=run.scratch((self, "d"), *x.shape))


@dataclass(frozen=True)
class Activation:
    """A function of each element; its gradient is a function of the gradient and of what it ``needs``."""

    number: int
    function: Callable[[Tensor, Tensor], Any]
    gradient: Callable[[Tensor, Tensor], Any]
    needs: str  # "output" or "input"

    def forward(self, x: Tensor, run: Pass) -> Tensor:
        """The outputs; on top of the inputs where these are needed no more."""
        x, flat = _padded(x, run, (self, "x"))
        y, out = (x, flat) if self.needs == "output" else run.scratch.padded(self, *x.shape)
        self.function(flat, out)
        run.kept[self] = out if self.needs == "output" else flat
        return y

    def backward(self, d: Tensor, run: Pass, first: bool) -> Tensor | None:
        """The gradient of the inputs, on top of that of the outputs."""
        if first:
            return None
        d, flat = _padded(d, run, (self, "d"))
        self.gradient(flat, run.kept[self])
        return d


def _padded(x: Tensor, run: Pass, name: object) -> tuple[Tensor, Tensor]:
    """A tensor with the padded flat one behind it: its own, or a copy's."""
    n = x.numel()
    room = -(-n // ALIGNED) * ALIGNED
    if x.is_contiguous() and x.storage_offset() == 0 and x.untyped_storage().nbytes() == room * x.element_size():
        return x, x.as_strided((room,), (1,))
    y, flat = run.scratch.padded(name, *x.shape)
    return y.copy_(x), flat


@dataclass(frozen=True)
class Norm:
    """BatchNorm over the batch, each member with its own statistics."""

    name: str
    eps: float
    momentum: float
    affine: bool
    tracked: bool

    def forward(self, x: Tensor, run: Pass) -> Tensor:
        """Normalised by the batch in training, by the running statistics else."""
        if run.training or not self.tracked:
            n = several(x.shape[1], self.name)
            mean = x.mean(1, keepdim=True)
            centred = x - mean
            variance = centred.square().mean(1, keepdim=True)
            if run.training and run.update and self.tracked:
                keep = 1 - self.momentum
                run.buffers[f"{self.name}.running_mean"].mul_(keep).add_(mean.squeeze(1), alpha=self.momentum)
                unbiased = variance.squeeze(1) * (n / (n - 1))
                run.buffers[f"{self.name}.running_var"].mul_(keep).add_(unbiased, alpha=self.momentum)
                run.buffers[f"{self.name}.num_batches_tracked"].add_(1)
        else:
            centred = x - run.buffers[f"{self.name}.running_mean"].unsqueeze(1)
            variance = run.buffers[f"{self.name}.running_var"].unsqueeze(1)
        scale = (variance + self.eps).rsqrt_()
        y = centred.mul_(scale)
        run.kept[self] = y, scale
        if not self.affine:
            return y
        weight, bias = (run.parameters[f"{self.name}.{which}"].unsqueeze(1) for which in ("weight", "bias"))
        return (y * weight).add_(bias)

    def backward(self, d: Tensor, run: Pass, first: bool) -> Tensor | None:
        """The gradient of the inputs, through the batch's statistics."""
        y, scale = run.kept[self]
        if self.affine:
            run.gradients[f"{self.name}.weight"] = (d * y).sum(1)
            run.gradients[f"{self.name}.bias"] = d.sum(1)
            d = d * run.parameters[f"{self.name}.weight"].unsqueeze(1)
        if first:
            return None
        return (d - d.mean(1, keepdim=True)).sub_(y * (d * y).mean(1, keepdim=True)).mul_(scale)


@dataclass(frozen=True, eq=False)
class Skip:
    """branch(x) + ν x; ν is 1 where the buffer ``weight`` is not named."""

    branch: "tuple[Layer, ...]"
    weight: str = ""

    def forward(self, x: Tensor, run: Pass) -> Tensor:
        """The sum, in memory of its own: what comes next may write on it."""
        y = run.scratch((self, "x"), *x.shape).copy_(x) if isinstance(self.branch[0], Activation) else x
        for layer in self.branch:
            y = layer.forward(y, run)
        return torch.add(y, self._weighted(x, run), out=run.scratch(self, *x.shape))

    def backward(self, d: Tensor, run: Pass, first: bool) -> Tensor | None:
        """The gradient of the inputs, by both ways."""
        own = run.scratch((self, "back"), *d.shape).copy_(d) if isinstance(self.branch[-1], Activation) else d
        back = backward_through(self.branch, own, run, first)
        if back is None:
            return None
        return torch.add(back, self._weighted(d, run), out=run.scratch((self, "d"), *back.shape))

    def _weighted(self, x: Tensor, run: Pass) -> Tensor:
        return x * run.buffers[self.weight].view(-1, 1, 1) if self.weight else x


def backward_through(layers: "Sequence[Layer]", d: Tensor, run: Pass, first: bool) -> Tensor | None:
    """The gradient of the layers' inputs from that of their outputs, unless these inputs are the data (``first``)."""
    back: Tensor | None = d
    for i in reversed(range(len(layers))):
        if back is not None:
            back = layers[i].backward(back, run, first and i == 0)
    return back


def several(n: int, name: str) -> int:
    """The number of values a channel over which BatchNorm takes its statistics.

    Raises:
        ValueError: for one, which has no variance.
    """
    if n < 2:
        raise ValueError(
            f"the BatchNorm {name} has one value a channel in training, and statistics need two: take a batch size "
            "that leaves no last batch of one sample"
        )
    return n


# For each its function, its gradient from that of the outputs and from what it needs, and which that is.
_ACTIVATIONS: dict[type[nn.Module], tuple[Callable[[Tensor, Tensor], Any], Callable[[Tensor, Tensor], Any], str]] = {
    nn.ReLU: (
        lambda x, out: torch.clamp(x, min=0, out=out),
        lambda d, y: aten.threshold_backward.grad_input(d, y, 0, grad_input=d),
        "output",
    ),
    nn.Tanh: (
        lambda x, out: torch.tanh(x, out=out),
        lambda d, y: aten.tanh_backward.grad_input(d, y, grad_input=d),
        "output",
    ),
    nn.Sigmoid: (
        lambda x, out: torch.sigmoid(x, out=out),
        lambda d, y: aten.sigmoid_backward.grad_input(d, y, grad_input=d),
        "output",
    ),
    nn.SiLU: (
        lambda x, out: aten.silu.out(x, out=out),
        lambda d, x: aten.silu_backward.grad_input(d, x, grad_input=d),
        "input",
    ),
}
Layer = Linear | Activation | Norm | Skip


def layers_of(model: nn.Module, dims: int = 2) -> list[Layer] | None:
    """The layers of a chain; None for a network that is none, or has a layer that is not written out here.

    Args:
        model: The network.
        dims: Of a batch of inputs. The layers are those of flat inputs, which more than two need to be made first.
    """
    leaves = list(_leaves(model)) if type(model) is nn.Sequential else []
    if leaves and isinstance(leaves[0][1], nn.Flatten) and (leaves[0][1].start_dim, leaves[0][1].end_dim) == (1, -1):
        del leaves[0]
    elif dims > 2:
        return None
    seen: list[nn.Module] = []
    found = _written(leaves, seen)
    parameters = [id(p) for layer in seen for p in layer.parameters()]
    if found is None or sorted(parameters) != sorted(id(p) for p in model.parameters()):
        return None  # some are shared, or of the containers
    return found if found and isinstance(found[-1], Linear) and isinstance(found[0], Linear) else None


def _written(leaves: Iterable[tuple[str, Any]], seen: list[nn.Module]) -> list[Layer] | None:
    """The layers one after the other; the modules that they are of come to ``seen``."""
    found: list[Layer] = []
    for name, layer in leaves:
        kind = type(layer)
        if layer in seen or layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks:
            return None
        if kind is nn.Identity:
            continue
        if kind in (Residual, GeneralizationLayer):
            way = _around(name, layer, seen)
            if way is None:
                return None
            found.append(way)
            continue
        seen.append(layer)
        if kind in _ACTIVATIONS:
            found.append(Activation(len(seen), *_ACTIVATIONS[kind]))
        elif kind is nn.Linear:
            found.append(Linear(name, layer.out_features, layer.bias is not None))
        elif kind is nn.BatchNorm1d and layer.momentum is not None:
            found.append(Norm(name, layer.eps, layer.momentum, layer.affine, layer.track_running_stats))
        else:
            return None
    return found


def _around(name: str, layer: Any, seen: list[nn.Module]) -> Skip | None:
    """An identity skip around layers that are written out."""
    plain = type(layer) is Residual
    branch, skip = (layer.branch, layer.shortcut) if plain else (layer.block, layer.skip)
    inside = _written(_leaves(branch, f"{name}.{'branch' if plain else 'block'}."), seen)
    if type(skip) is not nn.Identity or not inside:
        return None
    return Skip(tuple(inside), "" if plain else f"{name}.nu")


def _leaves(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if type(model) is nn.Sequential:
        for name, child in model._modules.items():
            yield from _leaves(child, f"{prefix}{name}.")
    else:
        yield prefix.removesuffix("."), model
