"""What a network says of every point of a two-dimensional input space, and how that changes along a direction."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from landscope.curvature.making import Loss
from landscope.curvature.problem import Problem
from landscope.curvature.restoring import bare
from landscope.landscapes.axes import Directions, space
from landscope.landscapes.grids import grid_axis, pair
from landscope.landscapes.scoring import has_accuracy, score

BLOCK = 65_536  # inputs that go through at a time


@final
@dataclass(frozen=True, eq=False)
class Boundaries:
    """The class that a network gives each point of a grid of inputs, at each of some perturbations of its weights.

    Args:
        x: The grid's first coordinates, ascending.
        y: Its second ones.
        classes: The class at ``(x[i], y[j])``, ``[frames, len(x), len(y)]``.
        offsets: How far along the direction each frame lies, ``[frames]``.
        loss: The mean loss on the samples at each frame, ``[frames]``; NaN without a loss.
        accuracy: The accuracy on the samples, ``[frames]``.
        inputs: The samples, ``[n, 2]``.
        targets: Their classes, ``[n]``.
        right: Whether the network gets them right at each frame, ``[frames, n]``.
        statement: How the direction was made.
    """

    x: np.ndarray
    y: np.ndarray
    classes: np.ndarray
    offsets: np.ndarray
    loss: np.ndarray
    accuracy: np.ndarray
    inputs: np.ndarray
    targets: np.ndarray
    right: np.ndarray
    statement: str

    def __len__(self) -> int:
        """How many frames there are."""
        return len(self.offsets)


def wiggle(reach: float | int = 0.25, frames: int = 21, power: float | int = 5.0) -> np.ndarray:
    """Offsets from −reach to reach, denser about 0: reach · s^power with the sign of s, s from −1 to 1.

    (The published animation of Huang et al. 2020 has 101 of them, reach 0.25 and power 5.)

    >>> wiggle(1.0, 5, 2).tolist()
    [-1.0, -0.25, 0.0, 0.25, 1.0]
    """
    if frames < 1 or not (reach > 0 and power > 0):
        raise ValueError(f"offsets need a frame, a reach and a power above 0, not {frames}, {reach} and {power}")
    s = np.linspace(-1, 1, frames) if frames > 1 else np.zeros(1)
    return reach * np.sign(s) * np.abs(s) ** power


def decision_boundaries(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    /,
    *,
    loss: Loss | None = None,
    direction: Directions | None = None,
    offsets: Sequence[float] | np.ndarray = (0.0,),
    span: tuple[tuple[float, float], tuple[float, float]] | None = None,
    points: int = 200,
) -> Boundaries:
    """The decision boundaries of a network on two inputs, at each offset along a direction in weight space.

    Args:
        model: The network: inputs ``[n, 2]`` to logits ``[n, classes]``, or one logit whose sign is the class. It is
            evaluated in eval mode, and not changed.
        data: Samples: inputs ``[n, 2]`` and classes ``[n]`` (or 0 and 1, ``[n, 1]``).
        loss: ``loss(outputs, targets)``, of which each frame then has the mean, or None.
        direction: One direction; None for the network alone.
        offsets: Where along it; see `wiggle`.
        span: The ranges of the two inputs; None: of the samples, and a tenth more on each side.
        points: Along each input.

    Raises:
        TypeError: for what is no pair of tensors.
        ValueError: for inputs of another dimension or not finite, classes that are none, more than one direction,
            offsets without one, spans that are none, or fewer than 2 points.
    """
    inputs, targets = _samples(data)
    steps = np.asarray(offsets, dtype=np.float64)
    if steps.ndim != 1 or not steps.size or not np.isfinite(steps).all():
        raise ValueError(f"offsets= is a row of finite numbers, (0.0,) for the network itself, not {offsets}")
    if direction is None and steps.any():
        raise ValueError("offsets need a direction to lie along: give direction=, such as random_axes(model, count=1)")
    if direction is not None and len(direction) != 1:
        raise ValueError(f"one direction is needed, not {len(direction)}")
    of = space(model)
    if direction is not None and len(direction.columns) != of.dim:
        raise ValueError(f"the direction is of {len(direction.columns):,} parameters, and the network has {of.dim:,}")
    x, y = (grid_axis(s, points) for s in (pair("span", span, False) if span is not None else map(_range, inputs.T)))
    grid = torch.from_numpy(np.stack(np.meshgrid(x, y, indexing="ij"), -1).reshape(-1, 2)).to(of.device, of.dtype)
    problem, own = Problem(of, loss, None, [data]), (inputs.to(of.device, of.dtype), targets.to(of.device))
    column = torch.zeros(of.dim, device=of.device) if direction is None else direction.columns[:, 0].to(of.device)
    classes, losses, rights = [], [], []
    with problem.quiet(), torch.no_grad():
        _check_classes(problem.tried(problem.weights(), own)[0], own[1])
        origin = of.point()
        for step in steps:
            weights = of.split(origin + step * column.to(origin))
            classes.append(_classes(problem, weights, grid).reshape(points, points))
            found = _scores(problem, weights, own, loss)
            losses.append(found[0])
            rights.append(found[1])
    statement = "the network alone" if direction is None else direction.statement
    shown = targets.reshape(len(targets), -1)[:, 0].long().cpu().numpy()
    right = np.stack(rights)
    return Boundaries(
        x, y, np.stack(classes), steps, np.array(losses), right.mean(1), inputs.cpu().numpy(), shown, right, statement
    )


def _samples(data: Any) -> tuple[Tensor, Tensor]:
    """The inputs ``[n, 2]`` and the classes."""
    if not (isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)):
        raise TypeError("the samples are a pair of tensors: inputs [n, 2] and their classes [n]")
    inputs, targets = data
    if inputs.dim() != 2 or inputs.shape[1] != 2:
        raise ValueError(f"decision boundaries are drawn over two inputs, and these are {list(inputs.shape)}")
    if not len(inputs) or targets.shape not in (inputs.shape[:1], (len(inputs), 1)):
        raise ValueError(
            f"samples and their classes go together, one for each: not {len(inputs)} and {list(targets.shape)}"
        )
    if not bool(inputs.isfinite().all()):
        raise ValueError("some inputs are not finite: leave those samples out")
    if not bool(((targets == targets.long()) & (targets >= 0)).all()):
        low, high = targets.min().item(), targets.max().item()
        raise ValueError(f"classes are whole numbers from 0 on, and these lie between {low:g} and {high:g}")
    return inputs, targets


def _check_classes(outputs: Tensor, targets: Tensor) -> None:
    classes = max(2, outputs[0].numel())
    if bool((targets >= classes).any()):
        raise ValueError(f"the network tells {classes} classes apart, 0 to {classes - 1}, not {int(targets.max())}")


def _range(values: Tensor) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    if not low < high:
        raise ValueError(f"all samples have {low:g} for one of their inputs, which makes no range: give span=")
    margin = 0.1 * (high - low)
    return low - margin, high + margin


def _classes(problem: Problem, weights: tuple[Tensor, ...], grid: Tensor) -> np.ndarray:
    outputs = torch.cat([problem.outputs(weights, (part, part))[0] for part in grid.split(BLOCK)])
    return _predicted(outputs).to(torch.int16).cpu().numpy()


def _predicted(outputs: Tensor) -> Tensor:
    """The classes of outputs: the sign of one logit, or the largest of several."""
    flat = outputs.reshape(len(outputs), -1)
    return (flat[:, 0] > 0).long() if flat.shape[1] == 1 else flat.argmax(1)


def _scores(problem: Problem, weights: tuple[Tensor, ...], data: Any, loss: Loss | None) -> tuple[float, np.ndarray]:
    """The mean loss, and which samples are right."""
    outputs, targets = problem.outputs(weights, data)
    right = (_predicted(outputs) == targets.reshape(len(targets), -1)[:, 0]).cpu().numpy()
    if loss is None:
        return float("nan"), right
    wanted = has_accuracy(loss, outputs, targets)
    return float(score(loss, outputs[None], targets, each=False, accuracy=wanted).loss) / len(targets), right


def weights_of(models: Sequence[nn.Module], /, *, kernels: bool = True) -> np.ndarray:
    """The weights of many networks of one kind, a row each, float64.

    Args:
        models: The networks.
        kernels: Whether to leave out tensors with one axis (biases), as Huang et al. 2020 do for their t-SNE.

    Raises:
        ValueError: for networks of different kinds, or none.
    """
    if not models:
        raise ValueError("no networks were given")
    rows = []
    for model in models:
        parts = [p.detach().double().reshape(-1) for p in bare(model).parameters() if not kernels or p.dim() > 1]
        rows.append(torch.cat(parts).cpu().numpy())
    if len({len(row) for row in rows}) > 1:
        raise ValueError(
            f"networks of different kinds lie in no one space: {sorted({len(row) for row in rows})} weights"
        )
    return np.stack(rows)


def embedding(
    rows: np.ndarray, /, *, method: str = "tsne", components: int = 50, perplexity: float | int = 30.0, seed: int = 0
) -> np.ndarray:
    """Two coordinates for each of many networks: by their first two principal components, or t-SNE of the first 50.

    t-SNE keeps neighbours together; distances between clusters, and their sizes, mean nothing. Its maps depend on
    perplexity and seed: look at several.

    Args:
        rows: Weights, ``[m, n]``, see `weights_of`.
        method: ``"tsne"`` or ``"pca"``.
        components: Principal components before t-SNE (Huang et al. 2020 take 50).
        perplexity: Of t-SNE, below the number of rows.
        seed: Of t-SNE, whose start is random.

    Returns:
        ``[m, 2]``.

    Raises:
        ValueError: for another method, fewer than 3 rows, a perplexity that is too large, or rows that are not finite.
    """
    if method not in ("tsne", "pca"):
        raise ValueError(f'method is "tsne" or "pca", not {method!r}')
    if len(rows) < 3 or not np.isfinite(rows).all():
        raise ValueError(
            f"an embedding needs at least 3 rows of finite weights, not {len(rows)} (or some are not finite)"
        )
    centred = rows - rows.mean(0)
    u, s, _ = np.linalg.svd(centred @ centred.T)
    kept = min(components if method == "tsne" else 2, len(rows) - 1)
    scores = u[:, :kept] * np.sqrt(np.maximum(s[:kept], 0))
    if method == "pca":
        return scores if scores.shape[1] == 2 else np.column_stack([scores, np.zeros(len(rows))])
    if not 0 < perplexity < len(rows):
        raise ValueError(f"the perplexity lies between 0 and the number of rows, {len(rows)}, not {perplexity}")
    from sklearn.manifold import TSNE

    return (
        TSNE(2, perplexity=float(perplexity), init="random", random_state=seed).fit_transform(scores).astype(np.float64)
    )
