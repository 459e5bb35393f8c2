"""Lines, planes, rays and interpolations: the loss on a grid of points in weight space."""

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack

import numpy as np
from torch import Tensor, nn

from landscope.curvature.making import Data, Loss
from landscope.curvature.restoring import bare
from landscope.landscapes.axes import Directions, State, axes_between, named_state, random_axes
from landscope.landscapes.keeping import computed, keeper_of
from landscope.landscapes.refining import refined
from landscope.landscapes.result import COMPUTED, Landscape
from landscope.landscapes.samples import bytes_of
from landscope.landscapes.settings import Settings, facts_of, surface_of
from landscope.landscapes.ways import Surface
from landscope.models.checks import check_whole

Span = Sequence[float | int]
FEWEST = 2


def plane(
    model: nn.Module,
    loss: Loss | None,
    train: Data,
    test: Data | None = None,
    /,
    *,
    directions: Directions | None = None,
    span: Span | Sequence[Span] = (-1.0, 1.0),
    points: int | Sequence[int] = 51,
    **settings: Unpack[Settings],
) -> Landscape:
    """The loss on a plane through a network's weights: L(θ + a·d₁ + b·d₂) on a grid of a and b.

    The network is not changed, whatever happens. Every point is computed from θ anew, so that no rounding adds up.

    Args:
        model: The network, at θ; BatchNorm and Dropout are evaluated in eval mode.
        loss: ``loss(outputs, targets)``, the mean over a batch; None where ``batch_loss`` is given.
        train: Training data: inputs and targets, Batches, a DataLoader or a list of batches.
        test: Test data, or None.
        directions: Two directions; None: `random_axes`, filter-normalised, seed 0.
        span: The range ``(low, high)`` of a and b, or a pair of ranges.
        points: The number of points along both, or a pair of numbers.
        settings: See `Settings`.

    Returns:
        A Landscape, ``values[name][i, j]`` at a = ``axes[0][i]``, b = ``axes[1][j]``.

    Raises:
        TypeError: for what is no network, or an unknown setting.
        ValueError: for a grid of one point, another number of directions than two, directions of another network, and
            settings or data that cannot be had.

    Cost: a forward pass over the data a point, fewer with ``refine`` and ``cap``; with BatchNorm recomputed one more
    over the training data.

    On a linear model the squared loss is a parabola:

    >>> import torch
    >>> from landscope.landscapes import Directions
    >>> net = nn.Linear(2, 1, bias=False)
    >>> net.weight.data.zero_()
    tensor([[0., 0.]])
    >>> axes = Directions(torch.eye(2), ("a", "b"), "the two weights")
    >>> found = plane(net, nn.MSELoss(), (torch.eye(2), torch.zeros(2, 1)), directions=axes, points=3)
    >>> found.values["train_loss"].tolist()
    [[1.0, 0.5, 1.0], [0.5, 0.0, 0.5], [1.0, 0.5, 1.0]]
    """
    chosen = random_axes(model, dtype=settings.get("dtype")) if directions is None else directions
    if len(chosen) != 2:
        raise ValueError(f"a plane has two directions, not {len(chosen)}: see line, ray and interpolation for one")
    spans = pair("span", span, np.ndim(span) < 2)
    counts = pair("points", points, np.ndim(points) == 0)
    axes = [grid_axis(s, n) for s, n in zip(spans, counts, strict=True)]
    return _made("plane", model, loss, train, test, chosen, axes, settings)


def line(
    model: nn.Module,
    loss: Loss | None,
    train: Data,
    test: Data | None = None,
    /,
    *,
    direction: Directions | None = None,
    span: Span = (-1.0, 1.0),
    points: int = 101,
    **settings: Unpack[Settings],
) -> Landscape:
    """The loss on a line through a network's weights: L(θ + a·d).

    Args:
        model: The network, at θ.
        loss: As in `plane`.
        train: As in `plane`.
        test: As in `plane`.
        direction: One direction; None: `random_axes`, filter-normalised, seed 0.
        span: The range of a.
        points: How many points.
        settings: See `Settings`.

    Raises:
        TypeError, ValueError: as `plane` does.
    """
    chosen = random_axes(model, count=1, dtype=settings.get("dtype")) if direction is None else direction
    return _made("line", model, loss, train, test, _one(chosen), [grid_axis(span, points)], settings)


def ray(
    model: nn.Module,
    loss: Loss | None,
    train: Data,
    test: Data | None = None,
    /,
    *,
    direction: Directions | None = None,
    reach: float | int = 1.0,
    points: int = 51,
    power: float | int = 1.0,
    **settings: Unpack[Settings],
) -> Landscape:
    """The loss on a ray that starts at a network's weights: L(θ + r·d) at r = reach · (i / (points − 1))^power.

    Args:
        model: The network, at θ.
        loss: As in `plane`.
        train: As in `plane`.
        test: As in `plane`.
        direction: As in `line`.
        reach: The end of the ray, above 0.
        points: How many points, the start included.
        power: Above 1 more points lie near the start (Huang et al. 2020 take 5, and 2).
        settings: See `Settings`.

    Raises:
        TypeError, ValueError: as `plane` does, and for a reach or power that is not above 0.
    """
    if not (0 < reach < np.inf and 0 < power < np.inf):
        raise ValueError(f"a ray needs a reach and a power above 0, both finite, not {reach} and {power}")
    chosen = random_axes(model, count=1, dtype=settings.get("dtype")) if direction is None else direction
    axis = reach * grid_axis((0.0, 1.0), points) ** power
    return _made("ray", model, loss, train, test, _one(chosen), [axis], settings)


def interpolation(
    model: nn.Module,
    first: State,
    second: State,
    loss: Loss | None,
    train: Data,
    test: Data | None = None,
    /,
    *,
    span: Span = (-0.5, 1.5),
    points: int = 81,
    **settings: Unpack[Settings],
) -> Landscape:
    """The loss on the straight line between two networks: L((1 − t)·θ₁ + t·θ₂).

    BatchNorm's running statistics belong to neither network between the two, so that they are computed anew at every
    point unless ``batchnorm="frozen"`` (then they are the first's).

    Args:
        model: A network of the same kind; its own weights do not matter.
        first: The state (or network) at t = 0.
        second: The one at t = 1.
        loss: As in `plane`.
        train: As in `plane`.
        test: As in `plane`.
        span: The range of t; beyond 0 and 1 the line goes on (Goodfellow et al. 2015).
        points: How many points.
        settings: See `Settings`.

    Raises:
        TypeError, ValueError: as `plane` does, and for networks of other shapes or twice the same.
    """
    start = at_state(model, first)
    chosen = replace(
        axes_between(start, [second], dtype=settings.get("dtype")),
        labels=("t: 0 is the first network, 1 the second",),
    )
    return _made("interpolation", start, loss, train, test, chosen, [grid_axis(span, points)], settings, "recomputed")


def at_state(model: nn.Module, state: State) -> nn.Module:
    """A copy of a network with the parameters and buffers of a state.

    Raises:
        ValueError: where these do not fit.
    """
    net = copy.deepcopy(bare(model))
    held: Mapping[str, object] = named_state(state)
    try:
        net.load_state_dict(held, strict=True)  # type: ignore[arg-type]
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"the checkpoint does not fit the network: {str(error)[:300]}") from error
    return net


def origin_of(model: nn.Module, renewed: bool) -> str:
    """The SHA-256 that tells the network at the origin from others, whatever type it is held in.

    Args:
        model: The network.
        renewed: Whether BatchNorm's statistics are computed anew at each point: buffers do not count then.
    """
    digest, net = hashlib.sha256(), bare(model)
    buffers = [b for name, b in net.named_buffers() if not renewed and not name.endswith("num_batches_tracked")]
    for tensor in (*net.parameters(), *buffers):
        held = tensor.detach().cpu()
        digest.update(bytes_of(held.double() if held.is_floating_point() else held))
    return digest.hexdigest()


def _one(direction: Directions) -> Directions:
    if len(direction) != 1:
        raise ValueError(f"a line has one direction, not {len(direction)}: see plane for two")
    return direction


def pair(name: str, given: Any, single: bool) -> tuple[Any, Any]:
    """What holds for the two axes, of a single thing or a pair."""
    if single:
        return given, given
    if not isinstance(given, (tuple, list, np.ndarray, Tensor)) or len(given) != 2:
        raise ValueError(f"{name} holds for both axes, or is a pair, one for each, not {given}")
    return given[0], given[1]


def grid_axis(span: Span, points: int) -> np.ndarray:
    """Equally distant values from low to high, 0 exactly where they come to it."""
    if np.shape(span) != (2,):
        raise ValueError(f"a span is (low, high), not {span}")
    low, high = float(span[0]), float(span[1])
    if not (np.isfinite([low, high]).all() and low < high):
        raise ValueError(f"a span is (low, high) with low < high, both finite, not {span}")
    check_whole("points", points)
    if points < FEWEST:
        raise ValueError(
            f"a grid of {points} point{'' if points == 1 else 's'} along an axis shows nothing: take {FEWEST} or more"
        )
    axis = np.linspace(low, high, points)
    if low < 0 < high:  # the network itself exactly, where the grid goes through it
        axis[np.abs(axis) < 1e-12 * (high - low)] = 0.0
    return axis


def _made(
    kind: str,
    model: nn.Module,
    loss: Loss | None,
    train: Data,
    test: Data | None,
    directions: Directions,
    axes: Sequence[np.ndarray],
    settings: Settings,
    statistics: str = "frozen",
) -> Landscape:
    surface = surface_of(model, loss, train, test, directions, settings, statistics)
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    values = on_grid(surface, grid, settings)
    return landscape_of(kind, model, surface, axes, directions.labels, values, directions, settings)


def on_grid(surface: Surface, grid: np.ndarray, settings: Settings) -> dict[str, np.ndarray]:
    """Values and status at the points ``[*shape, k]`` of a grid, each of its shape."""
    keeper = keeper_of(surface, settings.get("folder"), settings.get("shard"))
    shape, report, tolerance = grid.shape[:-1], settings.get("progress"), settings.get("refine")
    if tolerance is None:
        found = computed(surface, grid.reshape(-1, grid.shape[-1]), keeper, report)
        return {name: array.reshape(shape) for name, array in found.items()}
    return refined(
        lambda places: computed(surface, grid[tuple(places.T)], keeper, report), shape, tolerance, surface.cap
    )


def landscape_of(
    kind: str,
    model: nn.Module,
    surface: Surface,
    axes: Sequence[np.ndarray],
    labels: tuple[str, ...],
    values: Mapping[str, np.ndarray],
    directions: Directions,
    settings: Settings,
) -> Landscape:
    """A Landscape of what was found, with the facts."""
    rest = dict(values)
    status = rest.pop("status")
    way = surface.found.get("way", ("loop", 1))
    facts = facts_of(surface, directions, settings) | {"evaluated": f"{way[0]}, {way[1]} points a pass"}
    wrong = int((~np.isfinite(rest["train_loss"]) & (status == COMPUTED)).sum())
    if wrong:
        facts["not finite"] = f"the training loss of {wrong} of {status.size} points is NaN or infinite"
    origin = origin_of(model, surface.renewed)
    return Landscape(kind, tuple(axes), labels, rest, status, directions, facts, origin=origin)
