"""Plain chains of layers at many points at once, the samples side by side in memory.

The first layer is affine in its weights: at θ + Σ c_j d_j its outputs are A(θ) + Σ c_j A(d_j), with A(w) = X Wᵀ + b.
The few A are made once, so that the largest matrix product of most such networks is not made at any point.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn

from landscope.curvature import Space

ELEMENTWISE = (
    *(nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus),
    *(nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.Hardswish, nn.Softsign, nn.LogSigmoid),
)
NOTHING = (nn.Identity, nn.Dropout, nn.AlphaDropout, nn.Dropout1d)  # in eval mode
NORMS = (nn.BatchNorm1d,)
KNOWN = (nn.Linear, nn.Flatten, *NOTHING, *NORMS, *ELEMENTWISE)  # themselves: a class made of one may do anything


@final
@dataclass(frozen=True, eq=False)
class Chain:
    """A network as a first linear layer and what follows it.

    Args:
        space: All its parameters.
        layers: Linear layers, BatchNorm and activations in order; the first is linear.
        places: Where each parameter lies in a vector of all, by its identity.
        skip: How many parameters at the beginning are the first layer's alone, which rows need not hold.
        images: A of the origin and of the directions on each batch that has been seen, ``[1 + k, outputs, n]``.
    """

    space: Space
    layers: tuple[nn.Module, ...]
    places: Mapping[int, slice]
    skip: int = 0
    images: dict[Any, Tensor] = field(default_factory=dict)
    scratch: dict[bool, Tensor] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """The widest layer's outputs."""
        return max(layer.out_features for layer in self.layers if isinstance(layer, nn.Linear))

    def outputs(
        self, rows: Tensor, coefficients: Tensor, origin: Tensor, columns: Tensor, inputs: Tensor, keep: bool
    ) -> Tensor:
        """The outputs ``[points, n, classes]`` (a view of ``[points, classes, n]``), until the next call.

        Args:
            rows: The parameters at each point but the first ``skip``, ``[points, dim − skip]``.
            coefficients: Its coordinates, ``[points, k]``.
            origin: The parameters at 0, ``[dim]``.
            columns: The directions, ``[k, dim]``.
            inputs: ``[n, …]``.
            keep: Whether the first layer's images of these inputs may stay in memory.
        """
        images = self.first(origin, columns, inputs, keep)
        ones = torch.ones_like(coefficients[:, :1])
        x = self._room(rows, None, (rows.shape[0], *images.shape[1:]))
        torch.mm(torch.cat([ones, coefficients], 1), images.flatten(1), out=x.view(rows.shape[0], -1))
        for layer in self.layers[1:]:
            x = self._through(layer, x, rows)
        return x.transpose(1, 2)

    def first(self, origin: Tensor, columns: Tensor, inputs: Tensor, keep: bool) -> Tensor:
        """A(θ) and the A(d_j), ``[1 + k, outputs, n]``."""
        key = inputs.data_ptr(), inputs.shape, inputs.stride()
        if key in self.images:
            return self.images[key]
        flat = inputs.flatten(1).T
        found = torch.stack([self._image(self.layers[0], vector, flat) for vector in (origin, *columns)])
        if keep:
            self.images[key] = found
        return found

    def _image(self, layer: Any, vector: Tensor, flat: Tensor) -> Tensor:
        of = {name: vector[slice(at.start + self.skip, at.stop + self.skip)] for name, at in self._first_places(layer)}
        image = of["weight"].view(layer.weight.shape) @ flat
        return image + of["bias"][:, None] if "bias" in of else image

    def _first_places(self, layer: nn.Module) -> Iterator[tuple[str, slice]]:
        return ((name, self.places[id(p)]) for name, p in layer.named_parameters())

    def _room(self, like: Tensor, x: Tensor | None, shape: tuple[int, ...]) -> Tensor:
        """Memory that ``x`` is not in, used again each time: fresh memory would cost as much as the products."""
        size = math.prod(shape)
        first = self.scratch.get(False)
        other = x is not None and first is not None and x.untyped_storage().data_ptr() == first.data_ptr()
        held = self.scratch.get(other)
        if held is None or len(held) < size:
            held = self.scratch[other] = like.new_empty(size)
        return held[:size].view(shape)

    def _through(self, layer: Any, x: Tensor, rows: Tensor) -> Tensor:
        if type(layer) is nn.ReLU:
            return x.relu_()
        if isinstance(layer, nn.Linear):
            held, places = layer._parameters, self.places
            weight, bias = held["weight"], held["bias"]
            factor = rows[:, places[id(weight)]].view(rows.shape[0], *weight.shape)  # type: ignore[union-attr]
            y = self._room(rows, x, (rows.shape[0], factor.shape[1], x.shape[2]))
            if bias is None:
                return torch.bmm(factor, x, out=y)
            return torch.baddbmm(rows[:, places[id(bias)]].unsqueeze(2), factor, x, out=y)
        if isinstance(layer, NORMS):
            scale = (layer.running_var.to(x.dtype) + layer.eps).rsqrt()  # type: ignore[operator, union-attr]
            scale = scale * rows[:, self.places[id(layer.weight)]] if layer.affine else scale[None]
            shift = rows[:, self.places[id(layer.bias)]] if layer.affine else torch.zeros_like(scale)
            centred = x.sub_(layer.running_mean.to(x.dtype)[:, None])  # type: ignore[union-attr]
            return centred.mul_(scale.unsqueeze(2)).add_(shift.unsqueeze(2))
        return layer(x)


def chain_of(space: Space, inputs: Any) -> Chain | None:
    """The network as a chain, where it is one that begins with a linear layer of flat inputs; else None.

    Args:
        space: The parameters of the network.
        inputs: A batch's inputs.
    """
    if not isinstance(inputs, Tensor) or type(space.model) is not nn.Sequential or _altered(space.model):
        return None
    parts = list(_flat(space.model))
    if any(type(part) not in KNOWN or _altered(part) for part in parts):
        return None
    flattened = inputs.dim() == 2
    while parts and isinstance(parts[0], (nn.Flatten, *NOTHING)):
        flatten = parts.pop(0)
        if isinstance(flatten, nn.Flatten):
            if (flatten.start_dim, flatten.end_dim) != (1, -1):
                return None
            flattened = True
    layers = [part for part in parts if not isinstance(part, NOTHING)]
    if not (flattened and layers and isinstance(layers[0], nn.Linear)) or nn.Flatten in map(type, layers):
        return None
    if any(isinstance(layer, NORMS) and layer.running_mean is None for layer in layers):
        return None
    places = {id(p): at for p, at in zip(space.parameters(), space.blocks.values(), strict=True)}
    own = {id(p) for p in layers[0].parameters()}
    alone = not any(id(p) in own for layer in layers[1:] for p in layer.parameters())
    skip = max(places[i].stop for i in own) if alone else 0
    if skip > sum(places[i].stop - places[i].start for i in own):  # something else lies before them
        skip = 0
    shifted = {i: slice(at.start - skip, at.stop - skip) for i, at in places.items()}
    return Chain(space, tuple(layers), shifted, skip)


def _flat(model: nn.Sequential) -> Iterator[nn.Module]:
    for child in model:
        if type(child) is nn.Sequential and not _altered(child):
            yield from _flat(child)
        else:
            yield child


def _altered(module: nn.Module) -> bool:
    """Whether a module does something else than its type says: by hooks, or a ``forward`` of its own."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))
