"""Gradients of many plain chains of layers at once, written out: the fast way for small networks.

Every operation is on ``[members, batch, …]``. Each member's numbers are a function of its own rows alone, to the bit,
however many members there are: batched products work member by member, and buffers are padded so that no element ever
falls into the shorter code at the end of a vector loop.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from landscope.population.layout import ALIGNED, Layout

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
        torch.bmm(x, run.parameters[f"{self.name}.weight"].transpose(1, 2), out=y)
        return y.add_(run.parameters[f"{self.name}.bias"].unsqueeze(1)) if self.bias else y

    def backward(self, d: Tensor, run: Pass, first: bool) -> Tensor | None:
        """The gradient of the inputs, unless these are the data."""
        x, weight = run.kept[self], run.parameters[f"{self.name}.weight"]
        self._gradients(run, d.transpose(1, 2), d, 1, x)
        if first:
            return None
        return torch.bmm(d, weight, out=run.scratch((self, "d"), len(d), d.shape[1], x.shape[2]))

    def _gradients(self, run: Pass, left: Tensor, summed: Tensor, over: int, x: Tensor) -> None:
        m = len(x)
        name, made = f"{self.name}.weight", run.scratch((self, "w"), m, self.outputs, x.shape[2])
        run.gradients[name] = torch.bmm(left, x, out=made)
        if self.bias:
            run.gradients[f"{self.name}.bias"] = torch.sum(summed, over, out=run.scratch((self, "b"), m, self.outputs))

    def head(self, x: Tensor, run: Pass) -> Tensor:
        """The outputs with the classes before the samples: a softmax over the last dimension costs 30 times as much."""
        run.kept[self] = x
        y = run.scratch((self, "head"), len(x), self.outputs, x.shape[1])
        torch.bmm(run.parameters[f"{self.name}.weight"], x.transpose(1, 2), out=y)
        return y.add_(run.parameters[f"{self.name}.bias"].unsqueeze(2)) if self.bias else y

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
Layer = Linear | Activation | Norm


def layers_of(model: nn.Module, dims: int = 2) -> list[Layer] | None:
    """The layers of a plain chain; None for a network that is none, or has a layer that is not written out here.

    Args:
        model: The network.
        dims: Of a batch of inputs. The layers are those of flat inputs, which more than two need to be made first.
    """
    if type(model) is not nn.Sequential or (dims > 2 and type(_leaves(model)[0][1]) is not nn.Flatten):
        return None
    found: list[Layer] = []
    shared: set[int] = set()
    for i, (name, layer) in enumerate(_leaves(model)):
        kind = type(layer)
        if id(layer) in shared or layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks:
            return None
        shared.add(id(layer))
        if kind is nn.Identity or (kind is nn.Flatten and i == 0 and layer.start_dim == 1 and layer.end_dim == -1):
            continue
        if kind in _ACTIVATIONS:
            found.append(Activation(i, *_ACTIVATIONS[kind]))
        elif kind is nn.Linear:
            found.append(Linear(name, layer.out_features, layer.bias is not None))
        elif kind is nn.BatchNorm1d and layer.momentum is not None:
            found.append(Norm(name, layer.eps, layer.momentum, layer.affine, layer.track_running_stats))
        else:
            return None
    covered = sum(p.numel() for p in {id(p): p for _, layer in _leaves(model) for p in layer.parameters()}.values())
    if covered != sum(p.numel() for p in model.parameters()):
        return None
    return found if found and isinstance(found[-1], Linear) and isinstance(found[0], Linear) else None


def _leaves(model: nn.Module, prefix: str = "") -> list[tuple[str, Any]]:
    if type(model) is nn.Sequential:
        return [leaf for name, child in model._modules.items() for leaf in _leaves(child, f"{prefix}{name}.")]
    return [(prefix.removesuffix("."), model)]


class Chain:
    """Gradients and losses of many chains of the same layers.

    Args:
        layers: As `layers_of` gives them; the last is linear.
        layout: Where the parameters lie.
        loss: The loss of one member.
        device: Where.
    """

    def __init__(
        self, layers: Sequence[Layer], layout: Layout, loss: Callable[[Tensor, Tensor], Tensor], device: torch.device
    ) -> None:
        *self._layers, last = layers
        if not isinstance(last, Linear):
            raise ValueError(f"a chain ends with a linear layer, not with {type(last).__name__}")
        self._last = last
        self._layout, self._loss, self._device = layout, loss, device
        self.forget()

    def forget(self) -> None:
        """Give back the scratch space, whose shapes go with the number of members."""
        self._scratch = Buffers(self._layout.dtype, self._device)
        self._views: tuple[Tensor, dict[str, Tensor]] | None = None

    def gradient(
        self,
        rows: Tensor,
        buffers: dict[str, Tensor],
        batch: tuple[Tensor, Tensor],
        out: Tensor,
        update: bool = True,
        **_: Any,
    ) -> Tensor:
        """The loss of each member on its batch, ``[members]``; its gradient goes to its row of ``out``.

        Args:
            rows: All parameters, ``[members, width]``.
            buffers: By name, ``[members, ...]``, changed where ``update``.
            batch: Inputs ``[members, batch, ...]`` and targets ``[members, batch, ...]``.
            out: The gradients, ``[members, width]``.
            update: Whether running statistics are updated.
        """
        run = self._pass(rows, buffers, training=True, update=update)
        x, targets = self._before_last(batch[0], run), batch[1]
        first = not self._layers
        if self._indexed(targets):
            losses, d = self._cross_entropy(self._last.head(x, run), targets)
            d = self._last.head_backward(d, run, first)
        else:
            outputs = self._last.forward(x, run)
            d, losses = torch.func.vmap(torch.func.grad_and_value(self._loss))(outputs, targets)
            d = self._last.backward(d, run, first)
        for i in reversed(range(len(self._layers))):
            if d is not None:
                d = self._layers[i].backward(d, run, i == 0)
        parts = [run.gradients[name].reshape(len(rows), -1) for name in self._layout.names]
        rest = self._layout.width - self._layout.used
        torch.cat([*parts, self._scratch("rest", len(rows), rest)], 1, out=out)
        return losses

    def _indexed(self, targets: Tensor) -> bool:
        """Whether the loss is the cross-entropy of class indices (not of probabilities), which is written out."""
        return self._loss is functional.cross_entropy and not targets.is_floating_point()

    def _cross_entropy(self, z: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Losses of the members and the gradient of the outputs, both of means over the batch."""
        chosen = targets.unsqueeze(1)
        logs = aten._log_softmax.out(z, 1, False, out=self._scratch("logs", *z.shape))
        losses = logs.gather(1, chosen).mean((1, 2)).neg_()
        d = logs.exp_().scatter_add_(1, chosen, self._minus_ones(chosen)).mul_(1 / z.shape[2])
        return losses, d

    def _minus_ones(self, like: Tensor) -> Tensor:
        return self._scratch("ones", *like.shape).fill_(-1)

    @torch.no_grad()
    def evaluate(
        self, rows: Tensor, buffers: dict[str, Tensor], batch: tuple[Tensor, Tensor], accuracy: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The summed loss of each member in eval mode, how many samples it gets right, ``[members]`` each.

        Third come the losses of all samples, ``[members, batch]``, for the cross-entropy alone; none is below 0.
        """
        run = self._pass(rows, buffers, training=False)
        x, targets = self._before_last(batch[0], run), batch[1]
        if self._indexed(targets):
            z = self._last.head(x, run)
            logs = aten._log_softmax.out(z, 1, False, out=self._scratch("logs", *z.shape))
            losses = logs.gather(1, targets.unsqueeze(1)).squeeze(1).neg_()
            right = (z.argmax(1) == targets).sum(1) if accuracy else None
            return losses.sum(1), right, losses
        outputs = self._last.forward(x, run)
        losses = torch.func.vmap(self._loss)(outputs, targets) * x.shape[1]
        right = (outputs.argmax(2) == targets).sum(1) if accuracy else None
        return losses, right, None

    def _before_last(self, inputs: Tensor, run: Pass) -> Tensor:
        x = inputs.flatten(2) if inputs.dim() > 2 else inputs.unsqueeze(2)
        for layer in self._layers:
            x = layer.forward(x, run)
        return x

    def _pass(self, rows: Tensor, buffers: Mapping[str, Tensor], training: bool, update: bool = False) -> Pass:
        if self._views is None or self._views[0] is not rows:
            self._views = rows, self._layout.views(rows)
        return Pass(self._views[1], buffers, self._scratch, training, update)
