"""Pictures as numbers: the class of each point of two inputs, the loss on planes and along rays of weights."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscope.directions import filter_normalised, gaussian
from landscope.landscapes import decision_boundaries, plane, random_axes, wiggle
from landscope.measures._objective import objective
from landscope.models import device_of, evaluating
from landscope.spec import derive
from landscope.types import Snapshot

CELLS = 52  # two-class cells in a number: whole numbers below 2^53 are exact in float64


def decision_map(
    snapshot: Snapshot,
    *,
    points: int | None = None,
    span: float = 18.0,
    frames: int = 1,
    reach: float = 0.25,
    power: float = 1.0,
) -> dict[str, float | Tensor]:
    """Which of two classes a network gives each point of a square of two inputs, also with its weights perturbed.

    Frame j is the network at θ + a_j·d, d a random direction with each filter's norm (biases stay; one direction for
    all networks of a shape), a from −reach to reach as `landscope.landscapes.wiggle` has it. A *region* is a connected
    set of cells of one class, which touch at their sides: two spirals that are told apart make two, every island
    another. The *boundary* is the sides between cells of different classes, times the width of a cell; on a straight
    line that lies askew it is up to √2 too long.

    Args:
        snapshot: A network with two inputs and two classes, and its data.
        points: Along each input; None for no values.
        span: The square is [−span, span]².
        frames: How many perturbations, an odd number; the middle one is the network itself.
        reach: The farthest, in filter norms.
        power: Above 1 more frames lie near the network.

    Returns:
        ``map_offsets``, ``map_train_loss``, ``map_train_accuracy``, ``map_regions`` and ``map_boundary_length`` (in
        units of the inputs), each of shape ``[frames]``; ``map_codes``, shape ``[frames, numbers]``: the classes, which
        `classes_of` reads; ``map_points`` and ``map_span``. No values for other networks.

    Raises:
        ValueError: for fewer than 2 points, an even number of frames, or a span that is not positive.

    Cost: frames × points² forward passes of one sample.

    Source: Huang et al. 2020, Figures 3 and 6; their code has 500 × 500 points of [−18, 18]², and for the animation 101
    frames of reach 0.25 and power 5. Regions and length are ours.
    """
    if points is None:
        return {}
    if points < 2 or frames < 1 or frames % 2 == 0 or not span > 0:
        given = f"{points}, {frames} and {span}"
        raise ValueError(f"points >= 2, an odd number of frames and a span > 0 are needed, not {given}")
    if not _two_of_two(snapshot):
        return {}
    found = decision_boundaries(
        snapshot.model,
        (snapshot.train.inputs, snapshot.train.targets),
        loss=snapshot.loss,
        direction=random_axes(snapshot.model, count=1, seed=derive(snapshot.seed, "wiggle")),
        offsets=wiggle(reach, frames, power),
        span=((-span, span), (-span, span)),
        points=points,
    )
    width = 2 * span / (points - 1)
    signs = found.classes.astype(np.int64)
    sides = sum(np.abs(np.diff(signs, axis=axis)).sum((1, 2)) for axis in (1, 2))
    columns = {
        "offsets": found.offsets,
        "train_loss": found.loss,
        "train_accuracy": found.accuracy,
        "regions": np.array([_regions(classes) for classes in found.classes], float),
        "boundary_length": width * sides,
        "codes": np.stack([_codes(classes) for classes in found.classes]),
    }
    values = {f"map_{name}": torch.from_numpy(column) for name, column in columns.items()}
    return values | {"map_points": float(points), "map_span": span}


def _two_of_two(snapshot: Snapshot) -> bool:
    inputs, targets = snapshot.train.inputs, snapshot.train.targets
    if tuple(inputs.shape[1:]) != (2,) or targets.is_floating_point():
        return False
    with torch.no_grad(), evaluating(snapshot.model):
        return snapshot.model(inputs[:1].to(device_of(snapshot.model))).shape[1] == 2


def _regions(classes: np.ndarray) -> int:
    from scipy.ndimage import label

    find: Any = label
    return sum(int(find(classes == which)[1]) for which in (0, 1))


def _codes(classes: np.ndarray) -> np.ndarray:
    """Two classes, `CELLS` to a number, row by row."""
    bits = classes.reshape(-1).astype(float)
    return np.pad(bits, (0, -len(bits) % CELLS)).reshape(-1, CELLS) @ 2.0 ** np.arange(CELLS)


def classes_of(codes: np.ndarray, points: int) -> np.ndarray:
    """The classes of a frame of `decision_map`, ``[points, points]``: at ``[i, j]`` that of (x_i, y_j).

    >>> classes_of(np.array([6.0]), 2).tolist()
    [[0, 1], [1, 0]]
    """
    bits = np.asarray(codes, np.float64)[:, None] // 2.0 ** np.arange(CELLS) % 2
    return bits.reshape(-1)[: points**2].reshape(points, points).astype(int)


def loss_plane(snapshot: Snapshot, *, points: int | None = None, reach: float = 1.0) -> dict[str, Tensor]:
    """The training loss on a plane through a network's weights, over two random directions with each filter's norm.

    θ + a·d₁ + b·d₂, a and b from −reach to reach; the directions are orthogonal, the same draws for all networks of a
    shape, biases and BatchNorm's parameters and statistics stay (Li et al. 2018; Huang et al. 2020, Figures 3 and 4).

    Args:
        snapshot: The network and its data.
        points: Along each direction, an odd number, so that the network is one of them; None for no values.
        reach: Of both, in filter norms.

    Returns:
        ``plane_positions``, shape ``[points]``, and ``plane_train_loss``, shape ``[points, points]``. No values for a
        network that has no filters.

    Raises:
        ValueError: for an even number of points or fewer than 3, or a reach that is not positive.

    Cost: points² forward passes over the training set.
    """
    if points is None:
        return {}
    if points < 3 or points % 2 == 0 or not reach > 0:
        raise ValueError(f"an odd number of points from 3 and a reach > 0 are needed, not {points} and {reach}")
    if not any(p.dim() > 1 for p in snapshot.model.parameters()):
        return {}
    axes = random_axes(snapshot.model, seed=derive(snapshot.seed, "plane"))
    found = plane(
        snapshot.model,
        snapshot.loss,
        snapshot.train,
        directions=axes,
        span=(-reach, reach),
        points=points,
        accuracy=False,
        way="loop",  # the fastest way is found by timing, and ways differ by rounding
    )
    loss = torch.from_numpy(found.values["train_loss"])
    return {"plane_positions": torch.from_numpy(found.axes[0]), "plane_train_loss": loss}


def loss_rays(
    snapshot: Snapshot, *, rays: int | None = None, points: int = 12, reach: float = 0.75, power: float = 2.0
) -> dict[str, Tensor]:
    """The training loss along random rays from a network's weights, each filter's part with the filter's norm.

    θ + r·d at r = reach·(i/(points − 1))^power. The rays are the same draws for all networks of a shape, biases and
    normalisation stay. The defaults are those of Huang et al.'s code for SVHN (Figure 7).

    Args:
        snapshot: The network and its data.
        rays: How many; None for no values.
        points: On each, the network included.
        reach: How far, in filter norms.
        power: Above 1 more points lie near the network.

    Returns:
        ``rays_distances``, shape ``[points]``, and ``rays_train_loss``, shape ``[rays, points]``. No values for a
        network that has no filters.

    Raises:
        ValueError: for fewer than 1 ray or 2 points, or a reach or power that is not positive.

    Cost: rays × (points − 1) + 1 forward passes over the training set.
    """
    if rays is None:
        return {}
    if rays < 1 or points < 2 or not (reach > 0 and power > 0):
        raise ValueError(
            f"a ray, 2 points on it, a reach and a power > 0 are needed, not {rays}, {points}, {reach}, {power}"
        )
    of = objective(snapshot)
    weights = dict(zip(of.space.names, of.space.split(of.start), strict=True))
    if not any(w.dim() > 1 for w in weights.values()):
        return {}
    distances = reach * torch.linspace(0, 1, points, dtype=torch.float64) ** power
    centre = of.loss(of.start)
    losses = torch.full((rays, points), centre, dtype=torch.float64)
    for number in range(rays):
        drawn = filter_normalised(gaussian(weights, seed=derive(snapshot.seed, "ray", number)), weights)
        step = of.space.flat(drawn[name] for name in of.space.names)
        losses[number, 1:] = torch.tensor([of.loss(of.start + r * step) for r in distances[1:].tolist()])
    return {"rays_distances": distances, "rays_train_loss": losses}
