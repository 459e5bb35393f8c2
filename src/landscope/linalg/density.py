"""Spectral densities from Gauss quadratures, with a band over the probes, and traces of functions of an operator."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from landscope.linalg.probes import Deflation, Probe
from landscope.types import Estimate

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Curve:
    """A function of the eigenvalue with its band over probes.

    Args:
        grid: Where, shape ``[g]``.
        mean: Shape ``[g]``.
        low: The band's lower end at each point (a pointwise interval, not one for the whole curve), shape ``[g]``.
        high: Its upper end.
    """

    grid: Float[Tensor, " g"]
    mean: Float[Tensor, " g"]
    low: Float[Tensor, " g"]
    high: Float[Tensor, " g"]


@dataclass(frozen=True, eq=False)
class Density:
    """The distribution of an operator's eigenvalues: exact outliers, and a quadrature of the bulk from each probe.

    φ(x) = (1/dim) Σᵢ δ(x − λᵢ) ≈ (1/dim) Σⱼ δ(x − λⱼ of the outliers) + mean over probes of Σ weight·δ(x − node).

    Args:
        nodes: Eigenvalues' places in the bulk, by probe; shape ``[p, m]``, float64.
        weights: The share of all eigenvalues that each stands for, shape ``[p, m]``; 0 where a probe has fewer nodes.
        outliers: Eigenvalues that are known one by one, shape ``[u]``; each weighs 1/dim.
        dim: How many eigenvalues there are.
    """

    nodes: Float[Tensor, " p m"]
    weights: Float[Tensor, " p m"]
    outliers: Float[Tensor, " u"]
    dim: int

    def on(self, grid: Float[Tensor, " g"], sigma: float, level: float = 0.95) -> Curve:
        """The density smoothed by a Gaussian of standard deviation ``sigma``, with a pointwise t band over probes."""
        if not sigma > 0:
            raise ValueError(f"the smoothing needs a standard deviation sigma > 0, not {sigma}")

        def bump(x: Tensor) -> Tensor:
            z = (grid.double()[:, None] - x.reshape(-1)) / sigma
            return torch.exp(-z.square() / 2) / (sigma * math.sqrt(2 * math.pi))

        return self._curve(grid, bump, level, 0.0, math.inf)

    def cdf(self, grid: Float[Tensor, " g"], level: float = 0.95) -> Curve:
        """The share of eigenvalues up to each point, with a pointwise t band over probes."""
        return self._curve(grid, lambda x: (x.reshape(-1) <= grid.double()[:, None]).double(), level, 0.0, 1.0)

    def _curve(self, grid: Tensor, kernel: Function, level: float, least: float, most: float) -> Curve:
        from scipy.special import stdtrit

        probes = len(self.nodes)
        exact = kernel(self.outliers).sum(1) / self.dim
        by_probe = torch.stack([kernel(x) @ w for x, w in zip(self.nodes, self.weights, strict=True)]) + exact
        mean, half = by_probe.mean(0), torch.zeros_like(exact)
        if probes > 1:
            half = by_probe.std(0) / math.sqrt(probes) * float(stdtrit(probes - 1, 0.5 + level / 2))
        return Curve(grid, mean, (mean - half).clamp(least, most), (mean + half).clamp(least, most))

    def grid(self, points: int = 400, *, symlog: bool = False) -> Float[Tensor, " g"]:
        """Points over the whole spectrum with a margin, evenly spaced, or on both sides of 0 in equal ratios."""
        held = self.nodes[self.weights > 0]
        every = torch.cat([held, self.outliers])
        low, high = every.min().item(), every.max().item()
        margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        if not symlog:
            return torch.linspace(low - margin, high + margin, points, dtype=torch.float64)
        large = max(abs(low), abs(high)) or 1.0
        arms = torch.logspace(math.log10(large) - 5, math.log10(large * 1.1), points // 2, dtype=torch.float64)
        grid = torch.cat([-arms.flip(0), arms.new_zeros(1), arms])
        return grid[(grid >= low - margin) & (grid <= high + margin)]

    def __repr__(self) -> str:
        """How it is held."""
        probes, nodes = self.nodes.shape
        return f"Density of {self.dim:,} eigenvalues: {len(self.outliers)} one by one, {probes} probes of {nodes} nodes"


def density_of(deflation: Deflation, probes: Sequence[Probe], dim: int) -> Density:
    """The density of what the probes and the deflation hold."""
    most = max(len(probe.alpha) for probe in probes)
    nodes, weights = (torch.zeros(len(probes), most, dtype=torch.float64) for _ in range(2))
    share = (dim - len(deflation.values)) / dim
    for i, probe in enumerate(probes):
        x, w = probe.quadrature()
        nodes[i, : len(x)], weights[i, : len(x)] = x, w * share
        nodes[i, len(x) :] = x[-1]
    return Density(nodes, weights, deflation.values.clone(), dim)


def estimated(exact: float, samples: Sequence[float], systematic: float, draws: str | None) -> Estimate:
    """A number of which a part is known: exact + mean of samples, with an error that is not the probes' added."""
    values = exact + np.asarray(samples, dtype=np.float64)
    plain = Estimate.of(values, draws)
    # Spread far below the sum's own rounding is none.
    spread = plain.sem if plain.sem > 1e-14 * max(abs(exact), float(np.abs(values).max())) else 0.0
    if not spread and not systematic:
        return Estimate(plain.mean)
    return Estimate(plain.mean, math.hypot(spread, systematic), len(values), values, draws)


def functional(
    deflation: Deflation,
    probes: Sequence[Probe],
    dim: int,
    function: Function,
    draws: str,
    rough: float = 0.0,
    extra: float = 0.0,
) -> Estimate:
    """Tr f(A) = Σ f(λ) over U + (dim − u)·mean of wᵀf(A)w, by quadrature.

    The systematic part of its error is the mean change from three quarters of the steps to all of them, and ``rough``;
    ``extra`` is added to the exact part.
    """
    scale = dim - len(deflation.values)
    full, fewer = [], []
    for probe in probes:
        for steps, values in ((len(probe.alpha), full), (_three_quarters(probe), fewer)):
            nodes, weights = probe.quadrature(steps)
            values.append(scale * float((weights * function(nodes)).sum()))
    exact = float(function(deflation.values).sum()) + extra
    change = 0.0 if all(probe.exhausted for probe in probes) else abs(float(np.mean(full) - np.mean(fewer)))
    return estimated(exact, full, math.hypot(change, rough), draws)


def _three_quarters(probe: Probe) -> int:
    return max(1, 3 * len(probe.alpha) // 4)


def absolute_bounds(deflation: Deflation) -> tuple[float, float]:
    """The middle of uᵀ|A|u ∈ [|θ|, √(θ² + ρ²)], less |θ|, summed over U; and how far it may be off."""
    gap = float((torch.hypot(deflation.values, deflation.residuals) - deflation.values.abs()).sum())
    return gap / 2, gap / 2
