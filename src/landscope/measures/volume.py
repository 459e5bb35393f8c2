"""The volume of the basin around a network's weights, by rays to where the loss first crosses a cutoff."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from landscope.basins import (
    Along,
    Preconditioner,
    Volume,
    basin_volumes,
    best_preconditioner,
    filter_norms,
    identity,
    inverse_root,
    inverse_root_low_rank,
    loss_along,
    whitening,
)
from landscope.basins.volumes import loss_at_centre
from landscope.curvature import hessian
from landscope.landscapes.samples import bytes_of
from landscope.linalg import diagonal, spectrum
from landscope.spec import derive
from landscope.types import Batches, Snapshot

PRECONDITIONERS = ("identity", "filter", "diagonal", "low_rank", "full")
TENSORS = ("weights", "all")
DENSEST = 5000  # coordinates of a full Hessian
RANK = 20  # eigenpairs of the low-rank part
DAMPINGS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
CHOOSING = 32  # rays that choose the damping; others measure


def basin_volume(
    snapshot: Snapshot,
    *,
    preconditioner: str = "identity",
    cutoffs: tuple[float, ...] = (0.1,),
    absolute: bool = False,
    rays: int = 10,
    tensors: str = "weights",
    dampings: tuple[float, ...] = DAMPINGS,
    reach: float = 10.0,
    tolerance: float = 1e-7,
    samples: int | None = None,
) -> dict[str, float | Tensor]:
    """The volume of the basin in which the training loss stays below a cutoff, in logarithms, and how far to trust it.

    V = |det P| ω_n E[t^n] over z uniform on the unit sphere of dimension n, t the first crossing of the cutoff along
    θ + t P z: for P = 1 the estimator of Huang et al. 2020, section 5. It is exact for every P, and from any number of
    rays low unless P makes the basin nearly round: ``effective_rays`` near 1 says that one ray is all there is to the
    estimate. What rays do tell is n·E[ln t] (``mean_log_volume``). Every value is in nats unless its name says
    otherwise, of the whole training set in eval mode, BatchNorm's statistics frozen, in float64.

    Args:
        snapshot: The network and its data.
        preconditioner: ``"identity"``; ``"filter"`` (each filter's norm, Li et al. 2018); ``"diagonal"`` of the
            Hessian, estimated; ``"low_rank"``: its top 20 eigenpairs and the diagonal; ``"full"``: its inverse square
            root, for up to 5,000 coordinates.
        cutoffs: Levels of the loss.
        absolute: Whether they are levels themselves, as in the paper, or heights above the network's own loss.
        rays: Directions, the same for all networks of one shape.
        tensors: ``"weights"``: parameters with two axes or more move, biases and normalisations stay, as in the
            paper's code; ``"all"`` that are trained move.
        dampings: Of the Hessian's preconditioners, as shares of the mean curvature; the best is chosen on 32 other
            rays at the lowest cutoff.
        reach: How far rays are followed, in units of the norm of the weights that move. A ray that has not crossed by
            then is counted, and kept with that radius.
        tolerance: Of ln t.
        samples: None for the whole training set; else its first so many, or all where it has fewer.

    Returns:
        With the preconditioner and ``_`` before each name: ``cutoffs``, ascending, and of the same shape
        ``log_volume``, ``log10_volume``, ``log_volume_bound`` (above it with probability 95 %), ``mean_log_volume`` and
        ``mean_log_volume_sem``, ``effective_rays``, ``log_volume_spread`` (sd of n ln t), ``log_volume_extent``
        (largest less smallest), ``censored_rays``, ``radius_mean``, ``radius_smallest``, ``radius_largest``
        (distances), ``mean_log_radius``; where the start is known ``log_prior_mass`` and ``prior_effective_rays``, of a
        Gaussian prior with the variance that the moving weights had then. Besides ``cutoff_heights`` above the
        network's loss, ``coordinates`` n, ``log_det``, ``rounding`` n·tolerance, ``damping`` and the cost in
        ``passes``. Where the loss is not below a cutoff the basin is empty: its height is 0 or less, and the values are
        not numbers. Networks without such weights have no values.

    Raises:
        ValueError: for another preconditioner or kind of tensors, cutoffs that are no levels, filters of zeros (for
            ``"filter"``), too many coordinates (for ``"full"``), or fewer than 2 rays.

    Cost: about 15 forward passes over the training set a ray and cutoff; of the Hessian's preconditioners besides some
    40 (``diagonal``), 300 (``low_rank``) or n (``full``) products, and 8 passes for each of 32 rays and damping.
    """
    _check(preconditioner, tensors, cutoffs, absolute)
    found = _basin(snapshot, tensors=tensors, samples=samples)
    if found is None:
        return {}
    heights = sorted(set(cutoffs))
    height = [level - found.loss if absolute else level for level in heights]
    open_ = [found.loss + h for h in height if h > 0]
    values: dict[str, float | Tensor] = {"cutoffs": _array(heights), "cutoff_heights": _array(height)}
    values |= {"coordinates": float(len(found.centre)), "rounding": len(found.centre) * tolerance}
    volumes: Sequence[Volume] = ()
    if open_:
        P, damping = found.preconditioner(preconditioner, open_[0], dampings, snapshot.seed, reach)
        seed, given = derive(snapshot.seed, "rays"), {"counted": tensors, "data": found.data}
        volumes = basin_volumes(
            *(found.along, found.centre, P),
            **{"cutoffs": open_, "rays": rays, "seed": seed, "reach": reach, "tolerance": tolerance, **given},
        )
        values |= {"log_det": P.log_det, "damping": damping, "passes": float(volumes[0].passes)}
    sigma = found.spread_at_start(snapshot)
    for name, of in (_NUMBERS | _prior(sigma)).items():
        values[name] = _array([math.nan] * (len(heights) - len(volumes)) + [of(v) for v in volumes])
    return {f"{preconditioner}_{name}": value for name, value in values.items()}


_NUMBERS: dict[str, Callable[[Volume], float]] = {
    "log_volume": lambda v: v.log_volume,
    "log10_volume": lambda v: v.log10_volume,
    "log_volume_bound": lambda v: v.lower_bound(),
    "mean_log_volume": lambda v: v.mean_log_volume.mean,
    "mean_log_volume_sem": lambda v: v.mean_log_volume.sem,
    "effective_rays": lambda v: v.effective_rays,
    "log_volume_spread": lambda v: v.spread,
    "log_volume_extent": lambda v: v.extent,
    "censored_rays": lambda v: float(v.censored.sum()),
    "radius_mean": lambda v: float(v.radii.mean()),
    "radius_smallest": lambda v: float(v.radii.min()),
    "radius_largest": lambda v: float(v.radii.max()),
    "mean_log_radius": lambda v: float(v.radii.log().mean()),
}


def _prior(sigma: float) -> dict[str, Callable[[Volume], float]]:
    """The prior's numbers; none where its standard deviation is not known."""
    if not sigma:
        return {}
    return {
        "log_prior_mass": lambda v: v.log_prior_mass(sigma),
        "prior_effective_rays": lambda v: v.prior_effective_rays(sigma),
    }


def _array(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _check(preconditioner: str, tensors: str, cutoffs: tuple[float, ...], absolute: bool) -> None:
    if preconditioner not in PRECONDITIONERS:
        raise ValueError(f"a preconditioner is one of {', '.join(PRECONDITIONERS)}, not {preconditioner!r}")
    if tensors not in TENSORS:
        raise ValueError(f"tensors are {' or '.join(TENSORS)}, not {tensors!r}")
    if not cutoffs or not all(math.isfinite(level) and (absolute or level > 0) for level in cutoffs):
        what = "levels of the loss" if absolute else "positive heights above the network's loss"
        raise ValueError(f"cutoffs are {what}, at least one, not {cutoffs}")


@dataclass(frozen=True, eq=False)
class Basin:
    """The surroundings of a network's weights.

    Args:
        snapshot: The network.
        along: Its training loss on rays.
        centre: The weights that move, in one vector, float64.
        names: Their parameters.
        train: The samples that the loss is over.
        loss: The loss at the centre.
        data: A hash of the samples.
    """

    snapshot: Snapshot
    along: Along
    centre: Tensor
    names: tuple[str, ...]
    train: Batches
    loss: float
    data: str

    def preconditioner(
        self, kind: str, cutoff: float, dampings: Sequence[float], seed: int, reach: float = 10.0
    ) -> tuple[Preconditioner, float]:
        """The map of a kind, and the damping chosen for it (0 where it takes none).

        Args:
            kind: One of `PRECONDITIONERS`.
            cutoff: The level at which the damping is chosen.
            dampings: Those to choose from.
            seed: Of the rays that choose.
            reach: How far they are followed.
        """
        if kind == "identity":
            return identity(), 0.0
        if kind == "filter":
            known = dict(self.snapshot.model.named_parameters())
            return filter_norms({name: known[name] for name in self.names}), 0.0
        made = self._curved(kind, seed)
        candidates = [made(damping) for damping in dampings]
        choosing = derive(seed, "damping")
        best = best_preconditioner(
            self.along, self.centre, candidates, cutoff=cutoff, rays=CHOOSING, seed=choosing, reach=reach
        )
        return best, dampings[candidates.index(best)]

    def _curved(self, kind: str, seed: int) -> Callable[[float], Preconditioner]:
        n = len(self.centre)
        if kind == "full" and n > DENSEST:
            raise ValueError(
                f"a full Hessian of {n:,} coordinates is {8 * n**2 / 2**30:.1f} GB and its eigenvectors as much again: "
                f"take preconditioner='low_rank' above {DENSEST:,}"
            )
        H = hessian(self.snapshot.model, self.snapshot.loss, self.train, params=self.names, dtype=torch.float64)
        if kind == "full":
            dense = H.dense()
            values, vectors = torch.linalg.eigh((dense + dense.T) / 2)
            return lambda damping: whitening(values, vectors, damping=damping)
        d = diagonal(H, seed=derive(seed, "diagonal")).mean.double()
        if kind == "diagonal":
            return lambda damping: inverse_root(d, damping=damping)
        pairs = spectrum(H, min(RANK, n), density=False, seed=derive(seed, "pairs"))
        return lambda damping: inverse_root_low_rank(pairs, d, damping=damping)

    def spread_at_start(self, snapshot: Snapshot) -> float:
        """The root mean square of the moving weights at the start of training; 0 where that is not known."""
        if snapshot.start_state is None:
            return 0.0
        start = torch.cat([snapshot.start_state[name].detach().double().reshape(-1) for name in self.names])
        return float(start.square().mean().sqrt())


def _basin(snapshot: Snapshot, *, tensors: str = "weights", samples: int | None = None) -> Basin | None:
    """The surroundings of a snapshot's weights; None for a network without weights that move.

    Args:
        snapshot: The network and its data.
        tensors: ``"weights"`` or ``"all"``, see `basin_volume`.
        samples: None for the whole training set; else its first so many, or all where it has fewer.

    Raises:
        ValueError: for a loss that is not finite, or less than one sample.
    """
    train: Any = snapshot.train
    if samples is not None:
        if samples < 1:
            raise ValueError(f"samples is at least 1 (None takes the whole training set), not {samples}")
        train = Batches(train.inputs[:samples], train.targets[:samples], train.size)
    moving = {
        name: p.detach().double().reshape(-1)
        for name, p in snapshot.model.named_parameters()
        if p.requires_grad and (tensors == "all" or p.dim() > 1)
    }
    if not moving:
        return None
    names, centre = tuple(moving), torch.cat(list(moving.values()))
    along = loss_along(snapshot.model, snapshot.loss, train, names)
    digest = hashlib.sha256()
    for part in (train.inputs, train.targets):
        digest.update(bytes_of(part))
    return Basin(snapshot, along, centre, names, train, loss_at_centre(along, centre), digest.hexdigest()[:16])
