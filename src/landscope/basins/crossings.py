"""Where a function along rays first crosses a level: a scan outwards brackets it, then the bracket is narrowed."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# Binds directions [rays, dim]; what it gives is called with a distance for each of them, [rays], and returns as many
# values. The distance is in units of each direction's own length.
Along = Callable[[Tensor], Callable[[Tensor], Tensor]]

FINEST = 1e-12  # a bracket in float64 cannot be much narrower
MOST_HALVINGS = 1000
SMALLEST_SHARE, DOUBLING = 1e-12, 2.0  # of the farthest distance, where the search for a start begins; its steps


@dataclass(frozen=True, eq=False)
class Crossings:
    """Where rays first cross each of several levels.

    Args:
        log_radii: ln t of the crossing, shape ``[levels, rays]``, float64; of a censored ray that of the farthest
            distance.
        censored: Whether the ray stays below the level as far as it was followed.
        passes: Points at which the function was evaluated.
    """

    log_radii: Float[Tensor, " levels rays"]
    censored: Bool[Tensor, " levels rays"]
    passes: int


@torch.no_grad()
def first_crossings(
    along: Along,
    directions: Float[Tensor, " rays dim"],
    levels: Sequence[float],
    *,
    start: float,
    farthest: Float[Tensor, " rays"],
    growth: float = 1.25,
    tolerance: float = 1e-7,
) -> Crossings:
    """The first t > 0 at which a function along each ray reaches a level, for ascending levels.

    From ``start`` outwards t grows by the factor ``growth`` until the level is reached; a ray that is above it at
    ``start`` is first halved inwards. Then the bracket is narrowed in ln t to ``tolerance``, all rays together, by the
    ITP method (Oliveira and Takahashi, "An enhancement of the bisection method", ACM TOMS 47, 2021): never more than
    one evaluation above bisection's number, commonly a third of it. A crossing and return between two points of the
    scan, or below ``start``, is not seen. Values that are NaN count as above every level.

    Args:
        along: The function.
        directions: The rays, of any length; t is in units of it.
        levels: Ascending; the function lies below the first at t = 0.
        start: Where the scan begins (`starting_radius`).
        farthest: How far each ray is followed; beyond it is censored.
        growth: Factor between two points of the scan, above 1.
        tolerance: The final bracket's width in ln t.

    Raises:
        ValueError: for levels that do not ascend, or a growth, tolerance, start or distance that is none.
        ArithmeticError: where the function stays above the level however near to the centre it is evaluated.

    Cost: about 15 evaluations a ray and level at the defaults.

    >>> bowl = lambda directions: lambda t: directions.square().sum(1) * t**2
    >>> found = first_crossings(bowl, torch.eye(2).double(), [4.0, 9.0], start=0.1, farthest=torch.tensor([2.5, 9.0]))
    >>> found.log_radii.exp().round(decimals=5).tolist(), found.censored.tolist()
    ([[2.0, 2.0], [2.5, 3.0]], [[False, False], [True, False]])
    """
    if list(levels) != sorted(set(levels)) or not levels:
        raise ValueError(f"levels ascend, and there is at least one, not {list(levels)}")
    if not growth > 1:
        raise ValueError(f"the scan's growth is a factor above 1, not {growth}")
    if not FINEST <= tolerance < 1:
        raise ValueError(f"the tolerance is a relative width between {FINEST} and 1, not {tolerance}")
    far = farthest.double()
    if not (math.isfinite(start) and start > 0 and bool((far > 0).all())):
        raise ValueError(f"start and farthest are positive distances, not {start} and {far.min().item()}")
    inside = torch.full_like(far, -math.inf)
    value, found, censored, passes = torch.full_like(far, math.nan), [], [], 0
    for level in levels:
        hunt = _Hunt(level, inside, value - level, far.log(), math.log(growth), tolerance)
        log_radii, beyond = hunt.run(along, directions, math.log(start))
        found.append(log_radii)
        censored.append(beyond)
        passes += hunt.passes
        inside, value = log_radii.clone(), torch.full_like(far, level)
    return Crossings(torch.stack(found), torch.stack(censored), passes)


class _Hunt:
    """One level: for each ray a point below it, a point above it, and what the function is there less the level.

    A ray without a point above it is scanned outwards, one without a point below it is halved inwards.
    """

    def __init__(
        self, level: float, inside: Tensor, value: Tensor, farthest: Tensor, growth: float, tolerance: float
    ) -> None:
        self.level, self.growth, self.tolerance = level, growth, tolerance
        self.low, self.low_value = inside.clone(), value.clone()
        self.high, self.high_value = torch.full_like(inside, math.inf), torch.full_like(inside, math.nan)
        self.farthest, self.width, self.turn = farthest, torch.full_like(inside, math.nan), torch.zeros_like(inside)
        self.passes = 0

    def run(self, along: Along, directions: Tensor, start: float) -> tuple[Tensor, Tensor]:
        """The logarithm of t at every crossing, and which rays are censored."""
        radii, censored = self.low.clone(), torch.zeros_like(self.low, dtype=torch.bool)
        left, here = torch.arange(len(radii), device=radii.device), along(directions)
        for _ in range(MOST_HALVINGS):
            at = self._next(start)
            value = here(at.exp()).double() - self.level
            self.passes += len(at)
            self._saw(at, torch.where(value.isnan(), math.inf, value))
            beyond = (self.low >= self.farthest) & self.high.isinf()
            done = beyond | (self.high - self.low <= self.tolerance)
            if bool(done.any()):
                radii[left[done]] = torch.where(beyond, self.farthest, (self.low + self.high) / 2)[done]
                censored[left[done]] = beyond[done]
                left = left[~done]
                if not len(left):
                    return radii, censored
                self._keep(~done)
                here = along(directions[left])
        raise ArithmeticError(
            f"{len(left)} rays stay above the level {self.level:g} down to {self.high.min().exp().item():.1g} from the "
            "centre, where the function is below it: it jumps there"
        )

    def _next(self, start: float) -> Tensor:
        """The next point of every ray."""
        scanned = torch.minimum(torch.where(self.low.isinf(), start, self.low + self.growth), self.farthest)
        halved = self.high - math.log(2)
        outside = self.high.isinf()
        return torch.where(outside, scanned, torch.where(self.low.isinf(), halved, self._narrowed()))

    def _narrowed(self) -> Tensor:
        """The ITP method's point inside each bracket."""
        low, high, width = self.low, self.high, self.high - self.low
        middle, half = (low + high) / 2, self.tolerance / 2
        secant = (self.high_value * low - self.low_value * high) / (self.high_value - self.low_value)
        secant = torch.where(secant.isfinite(), secant, middle)
        towards = torch.sign(middle - secant)
        pushed = secant + towards * torch.minimum(0.2 * width.square() / self.width, (middle - secant).abs())
        most = torch.ceil(torch.log2(self.width / self.tolerance).clamp(min=0)) + 1
        reach = (half * torch.exp2(most - self.turn) - width / 2).clamp(min=0)
        return torch.where((pushed - middle).abs() <= reach, pushed, middle - towards * reach)

    def _saw(self, at: Tensor, value: Tensor) -> None:
        narrowing = self.high.isfinite() & self.low.isfinite()
        below = value < 0
        # A ray that was halved inwards is scanned again from there: its first crossing may lie before the point known.
        lost = below & self.low.isinf()
        self.low, self.low_value = torch.where(below, at, self.low), torch.where(below, value, self.low_value)
        self.high = torch.where(below, torch.where(lost, math.inf, self.high), at)
        self.high_value = torch.where(below, self.high_value, value)
        self.turn = torch.where(narrowing, self.turn + 1, 0.0)
        self.width = torch.where(narrowing, self.width, self.high - self.low)

    def _keep(self, kept: Tensor) -> None:
        for name in ("low", "low_value", "high", "high_value", "farthest", "width", "turn"):
            setattr(self, name, getattr(self, name)[kept])


@torch.no_grad()
def starting_radius(
    along: Along, directions: Float[Tensor, " rays dim"], level: float, farthest: Float[Tensor, " rays"]
) -> tuple[float, int]:
    """Where to begin a scan: a half to a quarter of the smallest of these rays' radii, and the points it took.

    From 10⁻¹² of the farthest distance outwards in doublings, until every ray has reached the level.

    Args:
        along: The function.
        directions: Some rays.
        level: The level.
        farthest: How far each is followed.
    """
    far, here, passes = farthest.double(), along(directions), 0
    smallest = float(far.min())
    t = smallest * SMALLEST_SHARE
    while t < smallest:
        value = here(torch.full_like(far, t))
        passes += len(far)
        if not bool((value < level).all()):
            break
        t *= DOUBLING
    return min(t, smallest) / DOUBLING**2, passes
