"""The loss of a network at many points of parameter space at once: along rays, in float64."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional

from landscope.basins.crossings import Along
from landscope.losses import Loss
from landscope.models import called, device_of, evaluating
from landscope.types import Batches

CACHED = 2**21  # bytes of activations that are worked on at once: more fall out of a core's cache
BYTES = 2**25  # of all activations of a network whose layers are not known here
ELEMENTWISE = (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.Sigmoid, nn.ELU, nn.Softplus, nn.Identity)


def loss_along(model: nn.Module, loss: Loss, data: Batches, names: Sequence[str]) -> Along:
    """The mean loss over data on rays from a network's parameters, computed for many rays at once, in float64.

    A chain of linear layers and activations is written out as batched products; its first layer is affine in the
    distance, x W + t·x D, so that both products are made once for each ray. Any other network goes through
    `torch.func.vmap`, or where that cannot take it, point by point. It is evaluated in eval mode, BatchNorm's
    statistics as they are, and not changed.

    Args:
        model: The network.
        loss: ``loss(outputs, targets)``, the mean over a batch.
        data: The samples.
        names: The parameters that move, in the order of the coordinates; the others stay.

    Returns:
        A function of directions ``[rays, dim]`` that gives a function of distances ``[rays]`` to losses ``[rays]``.

    Raises:
        LookupError: for names of parameters that the network does not have.
        ValueError: for no names, or one twice.

    Cost: a forward pass over the data a point.

    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False))
    >>> data = Batches(torch.ones(1, 1), torch.zeros(1, 1))
    >>> with torch.no_grad():
    ...     _ = model[0].weight.fill_(2.0)
    >>> loss_along(model, functional.mse_loss, data, ["0.weight"])(torch.ones(2, 1).double())(torch.tensor([0.0, 1.0]))
    tensor([4., 9.], dtype=torch.float64)
    """
    known = dict(model.named_parameters())
    unknown = [name for name in names if name not in known]
    if len(set(names)) < len(names) or not names:
        raise ValueError(
            f"the parameters that move are at least one, each named once, not {', '.join(names) or 'none'}"
        )
    if unknown:
        raise LookupError(f"the network has no parameters {', '.join(unknown)}; it has {', '.join(known)}")
    device = device_of(model)
    parts = [(_exact(x.to(device)), _exact(y.to(device))) for x, y in data]
    network, layers = _Any(model, loss, parts, names), _chain(model)
    if layers is not None and all(x.is_floating_point() for x, _ in parts):
        chain = _Chain(layers, loss, parts, names)
        still = torch.zeros(1, sum(known[name].numel() for name in names), dtype=torch.float64, device=device)
        if network.agrees(lambda: chain.along(still)(still.new_zeros(1)), {name: known[name][None] for name in names}):
            return chain.along
    return network.along


def _exact(t: Tensor) -> Tensor:
    return t.detach().double() if t.is_floating_point() else t


def _chain(model: nn.Module) -> list[tuple[str, nn.Module]] | None:
    """The layers of a network that is a chain of linear layers and activations, with their names; else None."""
    found: list[tuple[str, nn.Module]] = []

    def walk(prefix: str, module: nn.Module) -> bool:
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return False
        if type(module) is nn.Sequential:
            return all(walk(f"{prefix}{name}.", child) for name, child in module._modules.items() if child is not None)
        if type(module) is nn.Flatten and not found and (module.start_dim, module.end_dim) == (1, -1):
            return True
        found.append((prefix, module))
        return type(module) is nn.Linear or type(module) in ELEMENTWISE

    if not walk("", model):
        return None
    linear = [layer for _, layer in found if type(layer) is nn.Linear]
    held = [id(p) for layer in linear for p in layer.parameters()]
    starts = bool(found) and type(found[0][1]) is nn.Linear
    return found if starts and len(set(held)) == len(held) else None  # nothing is tied, and no layer used twice


def _split(directions: Tensor, shapes: Sequence[tuple[str, torch.Size]]) -> dict[str, Tensor]:
    sizes = [shape.numel() for _, shape in shapes]
    return {
        name: part.reshape(len(directions), *shape)
        for (name, shape), part in zip(shapes, directions.double().split(sizes, 1), strict=True)
    }


def _in_groups(bind: Along, rays: int, directions: Tensor) -> Callable[[Tensor], Tensor]:
    """The same a few rays at a time."""
    bound = [bind(part) for part in directions.split(rays)]
    if len(bound) == 1:
        return bound[0]
    return lambda t: torch.cat([f(part) for f, part in zip(bound, t.split(rays), strict=True)])


class _Chain:
    """Linear layers and activations, all rays in one batched product a layer."""

    def __init__(
        self, layers: list[tuple[str, Any]], loss: Loss, parts: Sequence[tuple[Tensor, Tensor]], names: Sequence[str]
    ) -> None:
        self.layers, self.loss = layers, loss
        self.parts = [(x.flatten(1), y) for x, y in parts]
        held = {f"{name}{own}": p for name, layer in layers for own, p in layer.named_parameters(recurse=False)}
        self.shapes = [(name, held[name].shape) for name in names]
        self.held = {name: _exact(p) for name, p in held.items()}
        self.samples = sum(len(x) for x, _ in self.parts)
        widths = [layer.out_features for _, layer in layers if type(layer) is nn.Linear]
        at_once = 8 * (widths[0] * self.samples + 2 * max(widths) * max(len(x) for x, _ in self.parts))
        self.rays = max(1, CACHED // at_once)

    def along(self, directions: Tensor) -> Callable[[Tensor], Tensor]:
        return _in_groups(self._bound, self.rays, directions)

    def _bound(self, directions: Tensor) -> Callable[[Tensor], Tensor]:
        moving = _split(directions, self.shapes)
        (name, _), *rest = self.layers
        first = [
            (self._linear(name, x, self.held), self._linear(name, x, moving, len(directions))) for x, _ in self.parts
        ]

        def losses(t: Tensor) -> Tensor:
            moved = {
                name: self.held[name] + t.reshape(-1, *[1] * self.held[name].dim()) * d for name, d in moving.items()
            }
            total = t.new_zeros(len(t))
            for (fixed, slope), (_, y) in zip(first, self.parts, strict=True):
                h = torch.addcmul(fixed, t[:, None, None], slope) if slope is not None else fixed.repeat(len(t), 1, 1)
                total += self._rest(h, rest, moved, y) * len(y)
            return total / self.samples

        return lambda t: losses(t.double())

    def _linear(self, name: str, x: Tensor, weights: dict[str, Tensor], rays: int = 0) -> Any:
        """The first layer, x Wᵀ + b; where the weights are those of directions, for each of them, or None."""
        weight, bias = weights.get(f"{name}weight"), weights.get(f"{name}bias")
        if weight is None and bias is None:
            return None
        if not rays:
            return functional.linear(x, weight, bias)  # type: ignore[arg-type]
        y = x @ weight.transpose(1, 2) if weight is not None else x.new_zeros(rays, len(x), 1)
        return y if bias is None else y + bias[:, None, :]

    def _rest(self, h: Tensor, layers: Sequence[tuple[str, Any]], moved: dict[str, Tensor], y: Tensor) -> Tensor:
        plain = self.loss is functional.cross_entropy and not y.is_floating_point()
        for i, (name, layer) in enumerate(layers):
            if type(layer) is not nn.Linear:
                h = h.relu_() if type(layer) is nn.ReLU else layer(h)  # memory made anew costs more than the product
                continue
            weight = moved.get(f"{name}weight", self.held[f"{name}weight"])
            weight = weight.expand(len(h), *weight.shape[-2:])
            bias = moved.get(f"{name}bias", self.held.get(f"{name}bias"))
            if plain and i == len(layers) - 1:  # classes before samples: a reduction over a short last axis is slow
                out = weight @ h.transpose(1, 2)
                return _cross_entropies(out if bias is None else out + bias.expand(len(h), -1)[..., None], y)
            h = h @ weight.transpose(1, 2)
            h = h if bias is None else h.add_(bias.expand(len(h), -1)[:, None, :])
        return vmap(self.loss, in_dims=(0, None))(h, y)


def _cross_entropies(logits: Float[Tensor, " rays classes n"], targets: Tensor) -> Float[Tensor, " rays"]:
    """The mean cross-entropy of each ray's logits."""
    highest = logits.amax(1, keepdim=True)
    spread = (logits - highest).exp_().sum(1).log_() + highest[:, 0]
    own = logits.gather(1, targets.expand(len(logits), 1, -1))[:, 0]
    return (spread - own).mean(1)


class _Any:
    """Any network: all rays at once by `torch.func`, else one after another."""

    def __init__(
        self, model: nn.Module, loss: Loss, parts: Sequence[tuple[Tensor, Tensor]], names: Sequence[str]
    ) -> None:
        self.model, self.loss, self.parts = model, loss, parts
        known = dict(model.named_parameters())
        self.shapes = [(name, known[name].shape) for name in names]
        self.held = {name: _exact(t) for name, t in (known | dict(model.named_buffers())).items()}
        self.samples = sum(len(x) for x, _ in parts)
        numbers = max(math.prod(x.shape) for x, _ in parts)
        self.rays = max(1, BYTES // (8 * 64 * numbers))
        self.batched: bool | None = None

    def along(self, directions: Tensor) -> Callable[[Tensor], Tensor]:
        return _in_groups(self._bound, self.rays, directions)

    def _bound(self, directions: Tensor) -> Callable[[Tensor], Tensor]:
        moving = _split(directions, self.shapes)

        def losses(t: Tensor) -> Tensor:
            moved = {
                name: self.held[name] + t.double().reshape(-1, *[1] * self.held[name].dim()) * d
                for name, d in moving.items()
            }
            with evaluating(self.model), torch.no_grad():
                if self.batched is None:
                    one = {name: part[:1] for name, part in moved.items()}
                    self.batched = self.agrees(lambda: self._together(one), one)
                return self._together(moved) if self.batched else self._one_by_one(moved)

        return losses

    def agrees(self, way: Callable[[], Tensor], moved: dict[str, Tensor]) -> bool:
        """Whether a way takes this network and loss, and gives what a plain pass gives."""
        try:
            found = way()
        except Exception:  # whatever it is: point by point it comes again, if it is the network's or the loss's own
            return False
        with evaluating(self.model), torch.no_grad():
            plain = self._one_by_one({name: _exact(part) for name, part in moved.items()})
        return bool(torch.allclose(found, plain, rtol=1e-9, atol=1e-12, equal_nan=True))

    def _value(self, moved: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return self.loss(called(self.model, self.held | moved, x), y)

    def _together(self, moved: dict[str, Tensor]) -> Tensor:
        each = vmap(self._value, in_dims=(0, None, None), randomness="error")
        return sum((each(moved, x, y) * len(y) for x, y in self.parts), start=torch.zeros(())) / self.samples

    def _one_by_one(self, moved: dict[str, Tensor]) -> Tensor:
        rays = len(next(iter(moved.values())))
        each = [{name: part[i] for name, part in moved.items()} for i in range(rays)]
        totals = [sum(self._value(own, x, y) * len(y) for x, y in self.parts) / self.samples for own in each]
        return torch.stack([torch.as_tensor(value) for value in totals])
