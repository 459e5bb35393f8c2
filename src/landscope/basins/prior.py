"""The Gaussian prior's share of a basin, ray by ray."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

NODES, DROP, HALVINGS = 64, 45.0, 80  # of each quadrature; how many nats below its peak an integrand counts as 0


def log_radial_mass(
    radii: Float[Tensor, " rays"], inner: Float[Tensor, " rays"], dim: int, sigma: float
) -> Float[Tensor, " rays"]:
    """The logarithm of ∫₀^R x^(n−1) exp(−x²/(2σ²) − x·v·θ/σ²) dx, for rays of length R along unit vectors v from θ.

    The logarithm of the integrand is concave in x. It is integrated by Gauss and Legendre's rule from its peak (or R)
    to where it is e⁻⁴⁵ of that, on either side; what lies beyond is left out. Relative error below 1e-10.

    Args:
        radii: R, above 0.
        inner: v·θ.
        dim: n.
        sigma: σ of the prior N(0, σ²) on each of the n coordinates.

    Raises:
        ValueError: for a σ or radius that is not positive.

    For n = 2 and θ = 0 it is σ²(1 − exp(−R²/(2σ²))):

    >>> mass = log_radial_mass(torch.tensor([1.0]).double(), torch.zeros(1).double(), 2, 1.0)
    >>> round(mass.exp().item() / (1 - np.exp(-0.5)).item(), 9)
    1.0
    """
    if not sigma > 0:
        raise ValueError(f"the prior's standard deviation is positive, not {sigma}")
    if not bool((radii > 0).all()):
        raise ValueError("every ray has a radius above 0")
    end, power, tilt, precision = radii.double(), dim - 1, -inner.double() / sigma**2, sigma**-2

    def height(x: Tensor) -> Tensor:
        return torch.special.xlogy(torch.full_like(x, power), x) - precision / 2 * x.square() + tilt_of(x) * x

    def tilt_of(x: Tensor) -> Tensor:
        return tilt.reshape(-1, *[1] * (x.dim() - 1))

    root = torch.sqrt(tilt.square() + 4 * precision * power)
    # Two forms of one root: each loses digits where the other does not.
    peak = torch.where(tilt >= 0, (tilt + root) / (2 * precision), 2 * power / (root - tilt).clamp(min=1e-300))
    top = torch.minimum(peak, end)
    highest = height(top)

    def edge(near: Tensor, far: Tensor) -> Tensor:
        """Between the peak and an end: where the integrand has dropped enough, or the end."""
        for _ in range(HALVINGS):
            middle = (near + far) / 2
            low = highest - height(middle) > DROP
            near, far = torch.where(low, near, middle), torch.where(low, middle, far)
        return far

    sides = (edge(top, torch.zeros_like(top)), edge(top, end))
    nodes, weights = (torch.as_tensor(a, dtype=torch.float64) for a in np.polynomial.legendre.leggauss(NODES))
    parts = []
    for side in sides:
        half = ((top - side) / 2).abs()[:, None]
        x = ((top + side) / 2)[:, None] + half * nodes.to(top.device)
        parts.append(height(x) + half.log() + weights.log().to(top.device))
    return torch.logsumexp(torch.cat(parts, 1), 1)
