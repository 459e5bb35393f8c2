"""The kernels of infinitely wide ReLU networks in closed form."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from landscope.models import check_variances


def infinite_ntk(
    x1: Float[Tensor, " n1 *shape"],
    x2: Float[Tensor, " n2 *others"] | None = None,
    /,
    *,
    depth: int,
    weight_variance: float = 2.0,
    bias_variance: float = 0.0,
) -> Float[Tensor, " n1 n2"]:
    """The neural tangent kernel of a fully connected ReLU network whose hidden widths tend to infinity.

    In the NTK parametrisation, for each output alone (different outputs are independent: the whole kernel is this one
    times the identity over outputs):

        Σ⁰ = σ_w² x·x'/d + σ_b²,  Θ⁰ = Σ⁰,  θ = arccos(Σ(x, x') / √(Σ(x, x) Σ(x', x'))),
        Σˡ⁺¹ = σ_w² √(Σ(x, x) Σ(x', x')) (sin θ + (π − θ) cos θ) / 2π + σ_b²,
        Θˡ⁺¹ = Σˡ⁺¹ + Θˡ σ_w² (π − θ) / 2π.

    Sources: Jacot, Gabriel and Hongler, "Neural tangent kernel", 2018, theorem 1; the arc-cosine kernel of Cho and
    Saul, "Kernel methods for deep learning", 2009, equations 5 and 6.

    Args:
        x1: Inputs; every one is flattened to d numbers.
        x2: Others; None means the same.
        depth: Hidden layers, at least 1.
        weight_variance: σ_w².
        bias_variance: σ_b².

    Returns:
        Shape ``[n1, n2]``, computed in float64 and given in the inputs' type.

    Raises:
        ValueError: for a depth below 1, impossible variances, or inputs of different sizes.

    Cost: n1 · n2 · (d + depth) operations; nothing is drawn.

    For x' = x of mean square 1 and σ_w² = 2 every layer adds 2:

    >>> infinite_ntk(torch.ones(1, 4), depth=3).item()
    8.0
    """
    return _recursion(x1, x2, depth, weight_variance, bias_variance)[1]


def nngp(
    x1: Float[Tensor, " n1 *shape"],
    x2: Float[Tensor, " n2 *others"] | None = None,
    /,
    *,
    depth: int,
    weight_variance: float = 2.0,
    bias_variance: float = 0.0,
) -> Float[Tensor, " n1 n2"]:
    """The covariance of an output of an infinitely wide ReLU network over its initialisation: Σ of `infinite_ntk`.

    Source: Lee et al., "Deep neural networks as Gaussian processes", 2018, equation 5.

    Args:
        x1: Inputs.
        x2: Others; None means the same.
        depth: Hidden layers, at least 1.
        weight_variance: σ_w².
        bias_variance: σ_b².

    Returns:
        Shape ``[n1, n2]``.

    Raises:
        ValueError: as `infinite_ntk`.

    >>> nngp(torch.ones(1, 4), depth=3).item()
    2.0
    """
    return _recursion(x1, x2, depth, weight_variance, bias_variance)[0]


def _recursion(
    x1: Tensor, x2: Tensor | None, depth: int, weight_variance: float, bias_variance: float
) -> tuple[Tensor, Tensor]:
    if depth < 1:
        raise ValueError(f"an infinitely wide network has at least 1 hidden layer, not depth={depth}")
    check_variances(weight_variance, bias_variance)
    a = x1.reshape(len(x1), -1).to(torch.float64)
    b = a if x2 is None else x2.reshape(len(x2), -1).to(torch.float64)
    if a.shape[1] != b.shape[1] or not a.shape[1]:
        raise ValueError(f"both sets of inputs have the same number of values, not {a.shape[1]} and {b.shape[1]}")
    scale = weight_variance / a.shape[1]
    covariance = scale * a @ b.T + bias_variance
    first = scale * a.square().sum(1) + bias_variance  # Σ(x, x), and below Σ(x', x')
    second = scale * b.square().sum(1) + bias_variance
    tangent = covariance
    for _ in range(depth):
        size = (first[:, None] * second[None]).sqrt()
        # An input of zeros has no angle, and without biases the network is 0 on it.
        cosine = torch.where(size > 0, covariance / size.clamp_min(1e-300), 0.0).clamp(-1, 1)
        angle = torch.arccos(cosine)
        moment = size * (torch.sin(angle) + (math.pi - angle) * cosine) / (2 * math.pi)
        slopes = torch.where(size > 0, (math.pi - angle) / (2 * math.pi), 0.0)
        covariance = weight_variance * moment + bias_variance
        tangent = covariance + tangent * weight_variance * slopes
        first, second = (weight_variance * own / 2 + bias_variance for own in (first, second))
    return covariance.to(x1.dtype), tangent.to(x1.dtype)
