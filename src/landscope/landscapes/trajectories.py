"""Checkpoints beside a landscape: their projections, how far off they lie, their true loss and the landscape's."""

from collections.abc import Mapping, Sequence
from typing import Unpack

import numpy as np
import torch
from torch import nn

from landscope.curvature.making import Data, Loss
from landscope.landscapes.axes import Directions, State, point_of, space
from landscope.landscapes.grids import at_state
from landscope.landscapes.keeping import Keeper, computed
from landscope.landscapes.result import Landscape, Trajectory
from landscope.landscapes.settings import RENEWED, Settings, surface_of


def coordinates(model: nn.Module, directions: Directions, states: Sequence[State], /) -> tuple[np.ndarray, ...]:
    """Where checkpoints project to, how far from there they lie, and how far from the origin.

    The projection is the nearest point of the plane: c = (DᵀD)⁻¹ Dᵀ(θ − θ₀), in float64, which needs no orthogonality.

    Args:
        model: The network at the origin θ₀.
        directions: D.
        states: State dicts or networks.

    Returns:
        Coordinates ``[m, k]``, off-plane distances ``[m]``, distances from the origin ``[m]``.

    Raises:
        ValueError: for checkpoints of another network.
    """
    of = space(model)
    origin, columns = of.point().double(), directions.columns.to(of.device).double()
    found = []
    for i, state in enumerate(states):
        away = point_of(of, state, f"checkpoint {i + 1}").double() - origin
        place = torch.linalg.lstsq(columns, away[:, None]).solution[:, 0]
        found.append((place.cpu().numpy(), float((away - columns @ place).norm()), float(away.norm())))
    places, off, far = zip(*found, strict=True)
    return np.stack(places), np.array(off), np.array(far)


def trajectory(
    landscape: Landscape,
    model: nn.Module,
    states: Sequence[State],
    loss: Loss | None,
    train: Data,
    test: Data | None = None,
    /,
    *,
    name: str = "trajectory",
    names: Sequence[str] | None = None,
    **settings: Unpack[Settings],
) -> Landscape:
    """A landscape with a trajectory: the plane shows its projections, which are other networks than the checkpoints.

    Two checkpoints far apart may project to one point, and the loss there is the loss of neither. So each checkpoint
    comes with its distance from the plane, its own loss and the landscape's loss where it projects to, evaluated there.

    Args:
        landscape: A plane or a line.
        model: The network that it was made around.
        states: The checkpoints, in order.
        loss: As in `landscope.landscapes.plane`.
        train: As in `landscope.landscapes.plane`, and as the landscape had it.
        test: Test data, or None.
        name: What the trajectory is.
        names: Of the checkpoints; else their numbers.
        settings: Those of the landscape; its BatchNorm statistics unless they say.

    Returns:
        The landscape, with a `Trajectory` more.

    Raises:
        ValueError: for no checkpoints, names of another number, or checkpoints of another network.

    Cost: two passes over the data a checkpoint.
    """
    if not states:
        raise ValueError("a trajectory needs at least one checkpoint")
    called = tuple(map(str, range(len(states)))) if names is None else tuple(names)
    if len(called) != len(states):
        raise ValueError(f"{len(states)} checkpoints but {len(called)} names")
    places, off, far = coordinates(model, landscape.directions, states)
    if landscape.facts.get("BatchNorm statistics") == RENEWED:
        settings = Settings(batchnorm="recomputed") | settings
    alone = settings | Settings(folder=None, shard=None, refine=None, cap=None)
    on_plane = _values(model, loss, train, test, landscape.directions, places, alone)
    still = np.zeros((1, len(landscape.directions)))
    own = alone | Settings(batchnorm="frozen")
    true = [_values(at_state(model, s), loss, train, test, landscape.directions, still, own) for s in states]
    whole = {key: np.concatenate([values[key] for values in true]) for key in true[0]}
    return landscape.with_trajectory(Trajectory(name, called, places, off, far, whole, on_plane))


def _values(
    model: nn.Module,
    loss: Loss | None,
    train: Data,
    test: Data | None,
    directions: Directions,
    places: np.ndarray,
    settings: Settings,
) -> Mapping[str, np.ndarray]:
    found = computed(surface_of(model, loss, train, test, directions, settings), places, Keeper())
    return {name: values for name, values in found.items() if name != "status"}
