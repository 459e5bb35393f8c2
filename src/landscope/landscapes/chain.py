"""Plain chains of layers at many points at once, the samples side by side in memory.

The first layer is affine in its weights: at θ + Σ c_j d_j its outputs are A(θ) + Σ c_j A(d_j), with A(w) = X Wᵀ + b.
The few A are made once, so that the largest matrix product of most such networks is not made at any point.
"""

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


@final
@dataclass(frozen=True, eq=False)
class Chain:
    """A network as a first linear layer and what follows it.

    Args:
        space: All its parameters.
        layers: Linear layers, BatchNorm and activations in order; the first is linear.
        places: Where each parameter lies in a vector of all, by its identity.
        images: A of the origin and of the directions on each batch that has been seen, ``[1 + k, outputs, n]``.
    """

    space: Space
    layers: tuple[nn.Module, ...]
    places: Mapping[int, slice]
    images: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """The widest layer's outputs."""
        return max(layer.out_features for layer in self.layers if isinstance(layer, nn.Linear))

    def outputs(
        self, rows: Tensor, coefficients: Tensor, origin: Tensor, columns: Tensor, inputs: Tensor, keep: bool
    ) -> Tensor:
        """The outputs ``[points, n, classes]`` (a view of ``[points, classes, n]``).

        Args:
            rows: The parameters at each point, ``[points, dim]``.
            coefficients: Its coordinates, ``[points, k]``.
            origin: The parameters at 0, ``[dim]``.
            columns: The directions, ``[k, dim]``.
            inputs: ``[n, …]``.
            keep: Whether the first layer's images of these inputs may stay in memory.
        """
        base, along = self.first(origin, columns, inputs, keep)
        x = torch.addmm(base.reshape(1, -1), coefficients, along).view(len(rows), *base.shape)
        for layer in self.layers[1:]:
            x = self._through(layer, x, rows)
        return x.transpose(1, 2)

    def first(self, origin: Tensor, columns: Tensor, inputs: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
        """A(θ) ``[outputs, n]``, and the A(d_j) in a row each."""
        key = inputs.data_ptr()
        if key in self.images:
            return self.images[key]
        flat = inputs.flatten(1).T
        made = [self._image(self.layers[0], vector, flat) for vector in (origin, *columns)]
        found = made[0], torch.stack(made[1:]).flatten(1)
        if keep:
            self.images[key] = found
        return found

    def _image(self, layer: Any, vector: Tensor, flat: Tensor) -> Tensor:
        weight = vector[self.places[id(layer.weight)]].view(layer.weight.shape)
        image = weight @ flat
        return image if layer.bias is None else image + vector[self.places[id(layer.bias)]][:, None]

    def _through(self, layer: Any, x: Tensor, rows: Tensor) -> Tensor:
        if type(layer) is nn.ReLU:
            return x.relu_()
        if isinstance(layer, nn.Linear):
            held, places = layer._parameters, self.places
            weight, bias = held["weight"], held["bias"]
            product = torch.bmm(rows[:, places[id(weight)]].view(len(rows), *weight.shape), x)  # type: ignore[union-attr]
            return product if bias is None else product.add_(rows[:, places[id(bias)]].unsqueeze(2))
        if isinstance(layer, NORMS):
            scale = (layer.running_var + layer.eps).rsqrt().to(x.dtype)  # type: ignore[operator, union-attr]
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
    if not isinstance(inputs, Tensor) or type(space.model) is not nn.Sequential or _hooked(space.model):
        return None
    parts = list(_flat(space.model))
    flattened = inputs.dim() == 2
    while parts and isinstance(parts[0], (nn.Flatten, *NOTHING)):
        flatten = parts.pop(0)
        if isinstance(flatten, nn.Flatten):
            if (flatten.start_dim, flatten.end_dim) != (1, -1):
                return None
            flattened = True
    layers = [part for part in parts if not isinstance(part, NOTHING)]
    known = all(type(layer) in (nn.Linear, *NORMS, *ELEMENTWISE) and not _hooked(layer) for layer in layers)
    if not (known and flattened and layers and type(layers[0]) is nn.Linear):
        return None
    if any(isinstance(layer, NORMS) and layer.running_mean is None for layer in layers):
        return None
    places = {id(p): at for p, at in zip(space.parameters(), space.blocks.values(), strict=True)}
    return Chain(space, tuple(layers), places)


def _flat(model: nn.Sequential) -> Iterator[nn.Module]:
    for child in model:
        if type(child) is nn.Sequential and not _hooked(child):
            yield from _flat(child)
        else:
            yield child


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
