"""Networks of one width in the standard or in the neural-tangent parametrisation, for what happens as it grows."""

import math
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from landscope.models.checks import check_choice, check_sizes

PARAMETRISATIONS = ("standard", "ntk")


@final
class ScaledLinear(nn.Module):
    """``y = √(σ_w² / fan-in) W x + √σ_b² b`` with all of W and b drawn from N(0, 1): the NTK parametrisation.

    The scale stands before the weights instead of in their initialisation, so that a step of gradient descent moves
    the outputs of a wide network by as much as those of a narrow one.

    Args:
        inputs: Fan-in.
        outputs: Fan-out.
        weight_variance: σ_w².
        bias_variance: σ_b²; 0 means no bias.

    Source: Jacot, Gabriel and Hongler, "Neural tangent kernel", 2018, section 2.

    Raises:
        ValueError: for sizes below 1, a weight variance that is not positive, or a negative bias variance.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    weight_variance: float
    bias_variance: float

    def __init__(self, inputs: int, outputs: int, *, weight_variance: float = 2.0, bias_variance: float = 0.0) -> None:
        super().__init__()
        check_sizes((inputs,), outputs)
        check_variances(weight_variance, bias_variance)
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.randn(outputs)) if bias_variance > 0 else None
        self.weight_variance, self.bias_variance = weight_variance, bias_variance

    @property
    def weight_scale(self) -> float:
        """√(σ_w² / fan-in)."""
        return math.sqrt(self.weight_variance / self.weight.shape[1])

    @property
    def bias_scale(self) -> float:
        """√σ_b²."""
        return math.sqrt(self.bias_variance)

    def forward(self, x: Float[Tensor, " *n inputs"]) -> Float[Tensor, " *n outputs"]:
        """The layer's outputs."""
        bias = None if self.bias is None else self.bias_scale * self.bias
        return functional.linear(x * self.weight_scale, self.weight, bias)

    def extra_repr(self) -> str:
        """Its sizes and variances, for printing."""
        outputs, inputs = self.weight.shape
        return f"{inputs}, {outputs}, weight_variance={self.weight_variance:g}, bias_variance={self.bias_variance:g}"


def check_variances(weight_variance: float, bias_variance: float) -> None:
    """Refuse variances that no initialisation has.

    Raises:
        ValueError: for a weight variance that is not positive, or a negative bias variance.
    """
    if not (0 < weight_variance < math.inf and 0 <= bias_variance < math.inf):
        raise ValueError(
            f"weight_variance is above 0 and bias_variance at least 0, not {weight_variance} and {bias_variance}"
        )


def wide_mlp(
    shape: tuple[int, ...],
    outputs: int,
    /,
    *,
    width: int,
    depth: int = 3,
    parametrisation: str = "standard",
    weight_variance: float = 2.0,
    bias_variance: float = 0.0,
) -> nn.Sequential:
    """A fully connected ReLU network with ``depth`` hidden layers of one width, in either parametrisation.

    - ``"standard"``: ``nn.Linear`` with PyTorch's initialisation; with three hidden layers it is
      ``mlp(widths=(width,) * 3)`` to the bit. The variances are not used.
    - ``"ntk"``: `ScaledLinear` layers, whose tangent kernel tends to `landscope.kernels.infinite_ntk` with the same
      depth and variances as the width grows.

    Args:
        shape: The shape of one input, without the batch dimension.
        outputs: Classes, or the dimension of a regression target.
        width: Nodes of every hidden layer.
        depth: Hidden layers.
        parametrisation: See above.
        weight_variance: σ_w² of the NTK parametrisation; 2 keeps the size of a ReLU network's signals.
        bias_variance: σ_b² of the NTK parametrisation; 0 means no biases.

    Raises:
        ValueError: for sizes below 1, another parametrisation, or impossible variances.

    >>> sum(p.numel() for p in wide_mlp((784,), 10, width=4096).parameters())
    36818954
    """
    check_sizes(shape, outputs, width, depth)
    check_choice("parametrisation", parametrisation, PARAMETRISATIONS)
    check_variances(weight_variance, bias_variance)
    sizes = [math.prod(shape), *[width] * depth, outputs]
    layers: list[nn.Module] = [nn.Flatten()]
    for i in range(depth + 1):
        if parametrisation == "ntk":
            scaled = {"weight_variance": weight_variance, "bias_variance": bias_variance}
            layers.append(ScaledLinear(sizes[i], sizes[i + 1], **scaled))
        else:
            layers.append(nn.Linear(sizes[i], sizes[i + 1]))
        layers += [nn.ReLU()] if i < depth else []
    return nn.Sequential(*layers)
