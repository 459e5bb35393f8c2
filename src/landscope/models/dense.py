"""Networks of linear maps: plain, with skips, and linear in random features or the pixels' pairwise products."""

import math
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from landscope.layers import GeneralizationLayer, Residual
from landscope.models.checks import check_sizes, check_whole, check_widths


def mlp(
    shape: tuple[int, ...], outputs: int, /, *, widths: tuple[int, ...] = (64, 64, 64), batchnorm: bool = False
) -> nn.Sequential:
    """A fully connected ReLU network on flattened inputs.

    Args:
        shape: The shape of one input, without the batch dimension.
        outputs: Classes, or the dimension of a regression target.
        widths: The hidden layers' widths.
        batchnorm: Whether a BatchNorm follows every hidden linear layer.

    Raises:
        TypeError: for a shape or widths that are no tuples of whole numbers.
        ValueError: for a shape or width below 1.

    The MLP(4096) of Johannsen 2026, section III:

    >>> sum(p.numel() for p in mlp((784,), 10, widths=(4096, 4096, 4096)).parameters())
    36818954
    """
    check_widths("widths", widths)
    check_sizes(shape, outputs, *widths)
    layers: list[nn.Module] = [nn.Flatten()]
    width = math.prod(shape)
    for hidden in widths:
        layers += [nn.Linear(width, hidden), *([nn.BatchNorm1d(hidden)] if batchnorm else []), nn.ReLU()]
        width = hidden
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def residual_mlp(
    shape: tuple[int, ...],
    outputs: int,
    /,
    *,
    width: int = 17,
    depth: int = 118,
    every: int = 2,
    generalization: tuple[int, ...] = (),
) -> nn.Sequential:
    """A fully connected ReLU network with an identity skip over every k hidden layers (Taborsky and Hansen 2021).

    A first layer to ``width`` nodes, ``depth`` maps from ``width`` to ``width``, and the output. Every k of these maps
    are a block ``relu(x + W_k relu(… relu(W_1 x + b_1)) + b_k)``; what is left over at the end has no skip. The blocks
    named in ``generalization`` are `GeneralizationLayer` instead, ``relu(ν x + W_2 relu(W_1 x + b_1) + b_2)``.

    The paper's figures: 2 (and 7 for long skips) with 118 maps of 17 nodes (Figs. 2 and 4); 90 maps, three of the 45
    blocks generalization layers (Fig. 7; which three it does not say).

    Args:
        shape: The shape of one input, without the batch dimension.
        outputs: Classes, or the dimension of a regression target.
        width: Nodes of every hidden layer.
        depth: Maps from hidden layer to hidden layer.
        every: The maps that a skip goes around.
        generalization: Numbers of blocks, the first is 0; for blocks of two maps.

    Raises:
        ValueError: for sizes below 1, or generalization layers that do not fit.

    >>> sum(p.numel() for p in residual_mlp((1,), 1).parameters())
    36160
    """
    check_sizes(shape, outputs, width, every)
    check_whole("depth", depth)
    blocks, rest = divmod(depth, every)
    unknown = [b for b in generalization if not 0 <= b < blocks]
    if depth < 0 or unknown:
        raise ValueError(
            f"depth={depth} in blocks of {every} gives {max(blocks, 0)} blocks, numbered from 0, not {unknown}"
        )
    if generalization and every != 2:
        raise ValueError(f"a generalization layer has two maps: it takes the place of a block of 2, not of {every}")
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(math.prod(shape), width), nn.ReLU()]
    for block in range(blocks):
        maps = [nn.Linear(width, width) for _ in range(every)] if block not in generalization else []
        inside = [layer for each in maps for layer in (each, nn.ReLU())][:-1]
        layers += [Residual(nn.Sequential(*inside)) if maps else GeneralizationLayer(width), nn.ReLU()]
    for _ in range(rest):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def random_features(shape: tuple[int, ...], outputs: int, /, *, features: int = 1000) -> nn.Sequential:
    """A linear model, without bias, on random ReLU features: max(0, Vx) with V drawn once from N(0, 1/inputs).

    V is not trained. The last layer starts at 0, so that gradient descent leads to the solution of the smallest norm.

    Args:
        shape: The shape of one input, without the batch dimension.
        outputs: Classes, or the dimension of a regression target.
        features: How many; the double descent of Belkin et al. 2019 has its peak where it is the number of samples.

    Raises:
        ValueError: for sizes below 1.

    >>> sum(p.numel() for p in random_features((784,), 10).parameters() if p.requires_grad)
    10000
    """
    check_sizes(shape, outputs, features)
    first, last = nn.Linear(math.prod(shape), features, bias=False), nn.Linear(features, outputs, bias=False)
    nn.init.normal_(first.weight, std=math.prod(shape) ** -0.5)
    nn.init.zeros_(last.weight)
    first.weight.requires_grad_(False)
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), last)


def pairwise_linear(shape: tuple[int, ...], outputs: int, /, *, side: int | None = 16) -> "PairwiseLinear":
    """A linear model on the pixels and on all products of two pixels of a smaller copy of the image.

    For 32×32 colour images and a copy of 16×16: 3,072 + 768·769/2 = 3,072 + 295,296 features, as Huang et al.
    ("Understanding generalization through visualizations", 2020, Fig. 2) use it, with 298,369 parameters a class.

    Args:
        shape: The shape of one input, without the batch dimension.
        outputs: Classes, or the dimension of a regression target.
        side: The copy's height and width; None takes products of the inputs themselves, whatever their shape.

    Raises:
        ValueError: for sizes below 1, or a copy of something that is no image.

    >>> sum(p.numel() for p in pairwise_linear((3, 32, 32), 1).parameters())
    298369
    """
    return PairwiseLinear(shape, outputs, side)


@final
class PairwiseLinear(nn.Module):
    """``y_k = w_k·x + Σ_{i≤j} u_kij z_i z_j + b_k``, z the smaller copy of x: what `pairwise_linear` makes.

    The copy is bilinear with antialiasing. ``weight`` is ``[outputs, features]``: first the inputs, then the products
    z_i z_j with i ≤ j, row after row of the upper triangle. No feature is ever stored: the products with the weights
    are the quadratic forms zᵀ U_k z, whose backward pass needs z alone. Initialised as ``nn.Linear`` on all features.

    Cost of a forward pass: outputs · m² multiplications a sample for m values of z, and memory for outputs · m²
    numbers beside the weights.
    """

    weight: nn.Parameter
    bias: nn.Parameter
    shape: tuple[int, ...]
    inputs: int
    rows: Tensor
    columns: Tensor
    down: Tensor | None
    across: Tensor | None

    def __init__(self, shape: tuple[int, ...], outputs: int, side: int | None) -> None:
        super().__init__()
        check_sizes(shape, outputs, 1 if side is None else side)
        if side is not None and len(shape) != 3:
            raise ValueError(f"a copy of side={side} needs images (channels, height, width), not {shape}; or side=None")
        self.shape, self.inputs = shape, math.prod(shape)
        m = self.inputs if side is None else shape[0] * side * side
        upper = torch.triu_indices(m, m)
        self.register_buffer("rows", upper[0], persistent=False)
        self.register_buffer("columns", upper[1], persistent=False)
        for name, length in (("down", shape[-2] if side else 0), ("across", shape[-1])):
            self.register_buffer(name, _shrinking(length, side) if side else None, persistent=False)
        features = self.inputs + m * (m + 1) // 2
        self.weight = nn.Parameter(torch.empty(outputs, features).uniform_(-(features**-0.5), features**-0.5))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-(features**-0.5), features**-0.5))

    def copy(self, x: Float[Tensor, " n *shape"]) -> Float[Tensor, " n m"]:
        """The values whose products are features."""
        if self.down is None or self.across is None:
            return x.flatten(1)
        return (self.down @ x.reshape(len(x), *self.shape) @ self.across.T).flatten(1)

    def forward(self, x: Float[Tensor, " n *shape"]) -> Float[Tensor, " n outputs"]:
        """The model's outputs."""
        z = self.copy(x)
        n, m, outputs = len(x), z.shape[1], len(self.bias)
        # Columns of zeros below the diagonal: one matrix product instead of a row of features for every sample.
        forms = self.weight.new_zeros(m, m, outputs).index_put(
            (self.rows, self.columns), self.weight[:, self.inputs :].T
        )
        products = (z @ forms.reshape(m, m * outputs)).reshape(n, m, outputs)
        quadratic = (z[:, :, None] * products).sum(1)
        return functional.linear(x.flatten(1), self.weight[:, : self.inputs], self.bias) + quadratic

    def extra_repr(self) -> str:
        """Its sizes, for printing."""
        return f"shape={self.shape}, outputs={len(self.bias)}, features={self.weight.shape[1]:,}"


def _shrinking(length: int, side: int) -> Tensor:
    """The matrix ``[side, length]`` of bilinear resizing with antialiasing along one dimension.

    A pixel weighs 1 − d / max(s, 1), d its distance from the new pixel's centre in old pixels and s = length / side.
    """
    scale = length / side
    old = torch.arange(length, dtype=torch.float64) + 0.5
    new = (torch.arange(side, dtype=torch.float64) + 0.5) * scale
    weights = (1 - (old - new[:, None]).abs() / max(scale, 1.0)).clamp(min=0)
    return (weights / weights.sum(1, keepdim=True)).to(torch.get_default_dtype())
