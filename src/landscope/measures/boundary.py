"""Decision boundaries of networks with two inputs and two classes: how far from the samples, and whether a circle."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from landscope.models import device_of, evaluating
from landscope.types import Snapshot

SLACK = 0.1
STEPS = 200  # of the distances that are tried


def circular_boundary(
    snapshot: Snapshot, *, angles: int = 200, steps: int = 1000, slack: float = SLACK
) -> dict[str, float]:
    """Whether the decision boundary is a circle around the origin between the two classes, or how far from one.

    With the samples of class 0 within the radius a of the origin (their largest radius) and those of class 1 outside b
    (their smallest), the network is asked for the class at ``steps`` radii from 0 to the largest sample's on each of
    ``angles`` equally spaced angles. R₀ is the largest radius within which every point is of class 0, R₁ the smallest
    outside which every point is of class 1. The boundary is *circular* if R₀ ≥ a − slack and R₁ ≤ b + slack: some
    circle in between, up to the slack, has one class inside and the other outside. With slack 0 the two rings
    themselves are told apart at every angle (``separates_rings``).

    Args:
        snapshot: A network with two inputs and two classes, and its data.
        angles: Directions.
        steps: Radii on each.
        slack: How far the boundary may lie outside the gap between the classes.

    Returns:
        ``circular`` and ``separates_rings`` (1 or 0), ``inner_radius`` R₀, ``outer_radius`` R₁, ``class_gap`` b − a. No
        values for other networks, or where no circle tells the samples apart.

    Raises:
        ValueError: for fewer than 1 angle or 2 steps, or a slack below 0.

    Cost: angles × steps forward passes of one sample.

    Source: our definition of what Huang et al. 2020 (Figure 8) call a well-behaved circular boundary.
    """
    if angles < 1 or steps < 2 or slack < 0:
        raise ValueError(f"angles >= 1, steps >= 2 and slack >= 0 are needed, not {angles}, {steps}, {slack}")
    classify = _classifier(snapshot)
    if classify is None:
        return {}
    radius = snapshot.train.inputs.double().norm(dim=1)
    first, second = (radius[snapshot.train.targets == label] for label in (0, 1))
    if not len(first) or not len(second) or float(first.max()) >= float(second.min()):
        return {}
    inside, outside = float(first.max()), float(second.min())
    turn = torch.arange(angles, dtype=torch.float64) * (2 * math.pi / angles)
    radii = torch.linspace(0, float(radius.max()), steps, dtype=torch.float64)
    spokes = torch.stack([turn.sin(), turn.cos()], 1)
    labels = classify((radii[:, None, None] * spokes).reshape(-1, 2)).reshape(steps, angles)
    wrong_inside, wrong_outside = (labels != 0).any(1).nonzero()[:, 0], (labels != 1).any(1).nonzero()[:, 0]
    # The radius just before the first that is wrong, and just behind the last.
    r0 = float(radii[max(int(wrong_inside[0]) - 1, 0)]) if len(wrong_inside) else float(radii[-1])
    r1 = float(radii[min(int(wrong_outside[-1]) + 1, steps - 1)]) if len(wrong_outside) else 0.0
    step = float(radii[1])

    def between(slack: float) -> float:
        return float(r0 >= inside - slack - step and r1 <= outside + slack + step)

    edges = {"inner_radius": r0, "outer_radius": r1, "class_gap": outside - inside}
    return {"circular": between(slack), "separates_rings": between(0.0), **edges}


def input_margins(snapshot: Snapshot, *, directions: int = 36, farthest: float | None = None) -> dict[str, float]:
    """How far training samples lie from the decision boundary in input space, for networks with two inputs.

    The distance to the nearest point of another predicted class, over ``directions`` equally spaced directions and 200
    distances in geometric steps from 10⁻⁵ of ``farthest`` to it: never below the true one, and above it by the step of
    6 % and what the directions miss. A sample that is classified wrongly has the margin 0; one without a boundary as
    far as it was looked for has ``farthest``, and is counted.

    Args:
        snapshot: A network with two inputs, and its data.
        directions: How many.
        farthest: How far is looked; None for the samples' diameter.

    Returns:
        ``margin_mean``, ``margin_median`` and ``margin_smallest``, and the median of each class c as
        ``margin_median_class_c``; ``margins_open``, the samples without a boundary. No values for other networks.

    Raises:
        ValueError: for fewer than 4 directions, or a distance that is not positive.

    Cost: up to 200 × directions forward passes of one sample for every sample.
    """
    if directions < 4 or (farthest is not None and not farthest > 0):
        raise ValueError(f"directions >= 4 and a positive distance are needed, not {directions} and {farthest}")
    classify = _classifier(snapshot, classes=None)
    if classify is None:
        return {}
    points, targets = snapshot.train.inputs.double().cpu(), snapshot.train.targets.cpu()
    far = farthest or 2 * float((points - points.mean(0)).norm(dim=1).max()) or 1.0
    turn = torch.arange(directions, dtype=torch.float64) * (2 * math.pi / directions)
    spokes = torch.stack([turn.sin(), turn.cos()], 1)
    own = classify(points)
    margins = torch.full((len(points),), far, dtype=torch.float64)
    margins[own != targets] = 0.0
    open_ = own == targets
    for distance in torch.logspace(-5, 0, STEPS, dtype=torch.float64) * far:
        left = open_.nonzero()[:, 0]
        if not len(left):
            break
        around = (points[left, None] + distance * spokes).reshape(-1, 2)
        crossed = (classify(around).reshape(len(left), -1) != own[left, None]).any(1)
        margins[left[crossed]] = distance
        open_[left[crossed]] = False
    values = {"mean": float(margins.mean()), "median": float(margins.median()), "smallest": float(margins.min())}
    for label in targets.unique().tolist():
        values[f"median_class_{label}"] = float(margins[targets == label].median())
    return {f"margin_{name}": value for name, value in values.items()} | {"margins_open": float(open_.sum())}


def _classifier(snapshot: Snapshot, classes: int | None = 2) -> Callable[[Float[Tensor, " n 2"]], Tensor] | None:
    """A function from points to predicted classes; None for other inputs, regression or another number of classes."""
    inputs, targets = snapshot.train.inputs, snapshot.train.targets
    if tuple(inputs.shape[1:]) != (2,) or targets.is_floating_point():
        return None
    model, device = snapshot.model, device_of(snapshot.model)

    @torch.no_grad()
    def classify(points: Tensor) -> Tensor:
        with evaluating(model):
            found = [model(part.to(device, inputs.dtype)).argmax(1).cpu() for part in points.split(snapshot.train.size)]
        return torch.cat(found)

    with torch.no_grad(), evaluating(model):
        outputs = model(inputs[:1].to(device))
    return classify if classes is None or outputs.shape[1] == classes else None
