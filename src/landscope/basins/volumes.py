"""Volumes of star-shaped basins from rays, in logarithms and float64, with what it takes to judge them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from landscope.basins.crossings import Along, first_crossings, starting_radius
from landscope.basins.preconditioning import Preconditioner
from landscope.basins.prior import log_radial_mass
from landscope.spec import derive
from landscope.types import Estimate

BLOCK = 64  # rays that are drawn together
NUMBERS, MOST = 2**21, 1024  # of directions, and rays, that are followed together
PILOTS = 16  # rays that tell where the scans begin
DELTA = 0.05  # of Markov's bound: with probability 1 − δ the volume is above it


def log_unit_ball(dim: int) -> float:
    """The volume of the unit ball as ln ω_n = (n/2) ln π − ln Γ(n/2 + 1).

    >>> round(math.exp(log_unit_ball(3)) / (4 / 3 * math.pi), 12)
    1.0
    """
    return dim / 2 * math.log(math.pi) - math.lgamma(dim / 2 + 1)


@dataclass(frozen=True, eq=False)
class Volume:
    """What rays say of one basin's volume: V = |det P| ω_n E[t^n], t the first crossing along P z, z on the sphere.

    Exact for every P in expectation. From finitely many rays the estimate is low where ln t varies by more than a few
    times 1/n: `effective_rays` near 1 says that it is one ray's. V̂ is unbiased and not negative, so that by Markov's
    inequality ln V ≥ ln V̂ + ln δ with probability 1 − δ however few the effective rays are; there is no upper bound.

    Args:
        cutoff: The level of the loss.
        centre_loss: The loss at the centre.
        dim: n, the number of coordinates.
        preconditioner: P in words.
        log_det: ln |det P|.
        log_t: ln t of each ray, shape ``[rays]``; of a censored one that of the farthest point.
        lengths: ‖P z‖ of each ray: t·‖P z‖ is the radius.
        inner: v·θ for the unit vector v along each ray and the centre θ.
        norm: ‖θ‖.
        censored: Rays that do not cross as far as they were followed. They count with that radius, so that the volume
            is a lower bound.
        tolerance: The brackets' width in ln t; n·tolerance/2 is the most that it moves ln V.
        passes: Evaluations of the loss, for all cutoffs measured together.
        seed: Of the rays.
        counted: Which coordinates these are, in words.
        data: A hash of the data that the loss is over.
    """

    cutoff: float
    centre_loss: float
    dim: int
    preconditioner: str
    log_det: float
    log_t: Float[Tensor, " rays"]
    lengths: Float[Tensor, " rays"]
    inner: Float[Tensor, " rays"]
    norm: float
    censored: Bool[Tensor, " rays"]
    tolerance: float
    passes: int
    seed: int
    counted: str = "all coordinates"
    data: str = ""

    @property
    def log_volumes(self) -> Float[Tensor, " rays"]:
        """For each ray ln |det P| + ln ω_n + n ln t: the volume's logarithm, were all rays like it."""
        return self.log_det + log_unit_ball(self.dim) + self.dim * self.log_t

    @property
    def log_volume(self) -> float:
        """The estimate ln V̂, V̂ the mean over rays."""
        return float(torch.logsumexp(self.log_volumes, 0)) - math.log(len(self.log_t))

    @property
    def log10_volume(self) -> float:
        """log₁₀ V̂."""
        return self.log_volume / math.log(10)

    @property
    def mean_log_volume(self) -> Estimate:
        """The mean of ln |det P| + ln ω_n + n ln t, with its error over rays; by Jensen's inequality at most ln V."""
        return Estimate.of(self.log_volumes.cpu().numpy(), draws=f"rays {self.seed}")

    @property
    def effective_rays(self) -> float:
        """(Σ w)² / Σ w² for w = t^n: how many rays the estimate rests on."""
        return _effective(self.log_volumes)

    @property
    def spread(self) -> float:
        """The standard deviation of n ln t over rays, in nats."""
        return float((self.dim * self.log_t).std())

    @property
    def extent(self) -> float:
        """The largest less the smallest n ln t."""
        return float(self.dim * (self.log_t.max() - self.log_t.min()))

    @property
    def radii(self) -> Float[Tensor, " rays"]:
        """The distance from the centre at which each ray crosses."""
        return self.log_t.exp() * self.lengths

    def lower_bound(self, delta: float = DELTA) -> float:
        """Markov's bound ln V̂ + ln δ, below ln V with probability 1 − δ.

        Raises:
            ValueError: for a δ outside (0, 1].
        """
        if not 0 < delta <= 1:
            raise ValueError(f"delta is a probability above 0, not {delta}")
        return self.log_volume + math.log(delta)

    def log_prior_masses(self, sigma: float) -> Float[Tensor, " rays"]:
        """For each ray the logarithm of the prior's share of the basin, were all rays like it.

        ln n + ln ω_n − (n/2) ln 2πσ² − ‖θ‖²/(2σ²) + ln I + ln |det P| − n ln ‖P z‖, I from `log_radial_mass`.

        Args:
            sigma: σ of the prior N(0, σ²) on each coordinate, centred on 0.
        """
        radial = log_radial_mass(self.radii, self.inner, self.dim, sigma)
        density = -self.dim / 2 * math.log(2 * math.pi * sigma**2) - self.norm**2 / (2 * sigma**2)
        sphere = math.log(self.dim) + log_unit_ball(self.dim)
        return sphere + density + radial + self.log_det - self.dim * self.lengths.log()

    def log_prior_mass(self, sigma: float) -> float:
        """The logarithm of the share of a Gaussian prior N(0, σ²) that lies in the basin, from `log_prior_masses`.

        It is finite where the volume is not, and does not grow with the units of the weights.

        Args:
            sigma: σ of the prior on each coordinate, centred on 0.
        """
        return float(torch.logsumexp(self.log_prior_masses(sigma), 0)) - math.log(len(self.log_t))

    def prior_effective_rays(self, sigma: float) -> float:
        """How many rays `log_prior_mass` rests on: (Σ w)² / Σ w² of their masses w.

        Args:
            sigma: σ of the prior on each coordinate.
        """
        return _effective(self.log_prior_masses(sigma))

    def __str__(self) -> str:
        """All that a reader needs to judge it."""
        return self.described()

    def described(self, sigma: float | None = None) -> str:
        """All that a reader needs to judge it, a line each; with σ also the Gaussian prior's mass in the basin.

        Args:
            sigma: σ of the prior on each coordinate, or None.
        """
        mean, many = self.mean_log_volume, int(self.censored.sum())
        lines = [
            f"log10 V = {self.log10_volume:,.1f} (ln V = {self.log_volume:,.1f}; above {self.lower_bound():,.1f} with "
            f"probability {1 - DELTA:.0%}; no upper bound)",
            f"at the geometric mean radius ln V = {mean.mean:,.1f} ± {mean.sem:.1f}",
            f"preconditioner {self.preconditioner}, ln |det P| = {self.log_det:,.1f}; n = {self.dim:,}: {self.counted}",
            f"cutoff {self.cutoff:g}, {self.cutoff - self.centre_loss:.3g} above the centre's loss of "
            f"{self.centre_loss:.3g}" + (f"; data {self.data}" if self.data else ""),
            f"{len(self.log_t):,} rays (seed {self.seed}), {many:,} censored{' (a lower bound)' if many else ''}, "
            f"{self.passes:,} evaluations",
            f"effective rays {self.effective_rays:.3g}; n ln r has sd {self.spread:.3g} and a range of "
            f"{self.extent:.3g} nats; n x tolerance {self.dim * self.tolerance:.2g} nats",
        ]
        if sigma is not None:
            masses = self.log_prior_masses(sigma)
            lines.append(
                f"prior N(0, {sigma:.3g}²): ln of its mass in the basin {self.log_prior_mass(sigma):,.1f}; effective "
                f"rays {self.prior_effective_rays(sigma):.3g}; over rays sd {float(masses.std()):.3g} and a range of "
                f"{float(masses.max() - masses.min()):.3g} nats"
            )
        return "\n".join(lines)


def _effective(log_weights: Tensor) -> float:
    """(Σ w)² / Σ w² of weights given as logarithms."""
    return math.exp(2 * float(torch.logsumexp(log_weights, 0)) - float(torch.logsumexp(2 * log_weights, 0)))


def _unit_rays(dim: int, rays: int, seed: int, device: torch.device) -> Iterator[Tensor]:
    """Directions uniform on the sphere, some at a time; ray i of a seed is the same however many there are."""
    together = max(1, min(MOST, NUMBERS // dim) // BLOCK)
    blocks = range(-(-rays // BLOCK))
    for first in blocks[::together]:
        generators = [torch.Generator().manual_seed(derive(seed, "rays", b)) for b in blocks[first : first + together]]
        z = torch.cat([torch.randn(BLOCK, dim, generator=g, dtype=torch.float64) for g in generators])
        z = z[: rays - first * BLOCK]
        yield (z / z.norm(dim=1, keepdim=True)).to(device)


@torch.no_grad()
def basin_volumes(
    along: Along,
    centre: Float[Tensor, " dim"],
    preconditioner: Preconditioner,
    *,
    cutoffs: Sequence[float],
    rays: int = 3000,
    seed: int = 0,
    reach: float = 10.0,
    growth: float = 1.25,
    tolerance: float = 1e-7,
    counted: str = "all coordinates",
    data: str = "",
) -> tuple[Volume, ...]:
    """The volume around a point below each of several cutoffs, along the same rays.

    Args:
        along: The loss (`loss_along`, or any function of distances along rays).
        centre: θ, the point in the coordinates that count.
        preconditioner: P.
        cutoffs: Levels of the loss.
        rays: How many, at least 2.
        seed: Of the rays: networks of one dimension are compared along the same z.
        reach: How far rays are followed, in units of ‖θ‖ (of 1 where that is 0).
        growth: Of the scan, see `first_crossings`.
        tolerance: Of ln t.
        counted: Which coordinates these are, in words.
        data: A hash of the data that the loss is over.

    Returns:
        A Volume for each cutoff, in ascending order.

    Raises:
        ValueError: for a cutoff that is not above the loss at the centre, a loss there that is not finite, fewer than
            2 rays, or a reach that is not finite and above 0.

    Cost: about 15 evaluations of the loss a ray and cutoff.

    The ellipse x²/4 + y² < 1 has the area 2π, found without error by P = diag(2, 1):

    >>> from landscope.basins.preconditioning import scaled
    >>> bowl = lambda d: lambda t: (d.square() @ torch.tensor([0.25, 1.0]).double()) * t**2
    >>> P = scaled(torch.tensor([2.0, 1.0]).double())
    >>> (found,) = basin_volumes(bowl, torch.zeros(2).double(), P, cutoffs=[1.0], rays=2)
    >>> round(math.exp(found.log_volume) / (2 * math.pi), 6), round(found.effective_rays, 6)
    (1.0, 2.0)
    """
    levels = sorted(set(map(float, cutoffs)))
    centre_loss = loss_at_centre(along, centre)
    check_cutoffs(levels, centre_loss)
    if rays < 2:
        raise ValueError(f"a spread over rays needs at least 2 of them, not {rays}")
    if not 0 < reach < math.inf:
        raise ValueError(f"rays are followed to a finite reach above 0, not reach={reach}")
    norm = float(centre.double().norm())
    start, passes, parts = None, 1, []
    for z in _unit_rays(len(centre), rays, seed, centre.device):
        directions = preconditioner.apply(z)
        lengths = directions.norm(dim=1)
        farthest = reach * (norm or 1.0) / lengths
        if start is None:
            start, tried = starting_radius(along, directions[:PILOTS], levels[0], farthest[:PILOTS])
            passes += tried
        found = first_crossings(
            along, directions, levels, start=start, farthest=farthest, growth=growth, tolerance=tolerance
        )
        passes += found.passes
        parts.append((found.log_radii, found.censored, lengths, directions @ centre.double() / lengths))
    log_t, censored = (torch.cat([part[i] for part in parts], 1) for i in (0, 1))
    lengths, inner = (torch.cat([part[i] for part in parts]) for i in (2, 3))
    said = (preconditioner.name, preconditioner.log_det)
    return tuple(
        Volume(
            *(level, centre_loss, len(centre), *said, log_t[i], lengths, inner, norm, censored[i]),
            *(tolerance, passes, seed, counted, data),
        )
        for i, level in enumerate(levels)
    )


def loss_at_centre(along: Along, centre: Float[Tensor, " dim"]) -> float:
    """The loss at the centre itself.

    Raises:
        ValueError: where it is not finite.
    """
    loss = float(along(torch.zeros_like(centre, dtype=torch.float64)[None])(centre.new_zeros(1).double())[0])
    if not math.isfinite(loss):
        raise ValueError(f"the loss at the centre is {loss}: there is no basin around it")
    return loss


def check_cutoffs(cutoffs: Sequence[float], centre_loss: float) -> None:
    """Refuse cutoffs that leave no basin.

    Raises:
        ValueError: for none, one that is no number, or one that is not above the loss at the centre.
    """
    if not cutoffs or not all(math.isfinite(level) for level in cutoffs):
        raise ValueError(f"cutoffs are levels of the loss, at least one, not {list(cutoffs)}")
    low = [level for level in cutoffs if level <= centre_loss]
    if low:
        raise ValueError(
            f"the cutoff {low[0]:g} is not above the loss at the centre, {centre_loss:.4g}: no point around it is in "
            f"the basin; train further, or give cutoffs above {centre_loss:.4g}"
        )


def best_preconditioner(
    along: Along,
    centre: Float[Tensor, " dim"],
    candidates: Sequence[Preconditioner],
    *,
    cutoff: float,
    rays: int = BLOCK,
    seed: int = 0,
    reach: float = 10.0,
) -> Preconditioner:
    """The candidate with the largest geometric-mean volume, which bounds the volume from below for every P.

    Choose with one seed and measure with another: rays that chose would flatter the choice.

    Args:
        along: The loss.
        centre: θ.
        candidates: Preconditioners.
        cutoff: The level.
        rays: How many.
        seed: Of the rays that choose.
        reach: How far they are followed.

    Raises:
        ValueError: for no candidates, or as `basin_volumes` does.

    Cost: about 8 evaluations of the loss a ray and candidate.
    """
    if not candidates:
        raise ValueError("there are no preconditioners to choose from")
    if len(candidates) == 1:
        return candidates[0]

    def height(of: Preconditioner) -> float:
        own = basin_volumes(along, centre, of, cutoffs=[cutoff], rays=rays, seed=seed, reach=reach, tolerance=1e-4)
        return own[0].mean_log_volume.mean

    return max(candidates, key=height)
