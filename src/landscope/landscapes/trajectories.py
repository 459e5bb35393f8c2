"""Checkpoints beside a landscape: their projections, how far off they lie, their true loss and the landscape's."""

from collections.abc import Mapping, Sequence
from typing import Unpack

import numpy as np
import torch
from torch import nn

from landscope.curvature.making import Data, Loss
from landscope.landscapes.axes import Directions, State, point_of, space
from landscope.landscapes.curves import bezier
from landscope.landscapes.grids import at_state, origin_of
from landscope.landscapes.keeping import Keeper, computed
from landscope.landscapes.result import Landscape, Trajectory
from landscope.landscapes.settings import RENEWED, Settings, surface_of

FINE = 10_001  # points of a curve among which the nearest is sought


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
    if not states:
        raise ValueError("there are no checkpoints to project")
    of = space(model, torch.float64)
    origin, columns = of.point(), directions.columns.to(of.device).double()
    found = []
    for i, state in enumerate(states):
        away = point_of(of, state, f"checkpoint {i + 1}") - origin
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
        landscape: A plane, a line, or a curve, beside which the nearest of its points takes the projection's place.
        model: The network at 0 of its axes: what a plane was made around, the first of an interpolation or curve.
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
        ValueError: for no checkpoints, names of another number, checkpoints of another network, or another network at
            the origin than the landscape's.

    Cost: two passes over the data a checkpoint.
    """
    if not states:
        raise ValueError("a trajectory needs at least one checkpoint")
    called = tuple(map(str, range(len(states)))) if names is None else tuple(names)
    if len(called) != len(states):
        raise ValueError(f"{len(states)} checkpoints but {len(called)} names")
    renewed = landscape.facts.get("BatchNorm statistics") == RENEWED
    _check_origin(landscape, model, renewed)
    places, off, far = coordinates(model, landscape.directions, states)
    there = places
    if landscape.kind == "curve":
        places, off = _nearest(landscape.directions, places, off)
        there = bezier(places[:, 0])
    if renewed:
        settings = Settings(batchnorm="recomputed") | settings
    alone = settings | Settings(folder=None, shard=None, refine=None, cap=None)
    on_plane = _values(model, loss, train, test, landscape.directions, there, alone)
    still = np.zeros((1, len(landscape.directions)))
    own = alone | Settings(batchnorm="frozen")
    true = [_values(at_state(model, s), loss, train, test, landscape.directions, still, own) for s in states]
    whole = {key: np.concatenate([values[key] for values in true]) for key in true[0]}
    return landscape.with_trajectory(Trajectory(name, called, places, off, far, whole, on_plane))


def _check_origin(landscape: Landscape, model: nn.Module, renewed: bool) -> None:
    if landscape.origin in ("", origin_of(model, renewed)):
        return
    first = ", the first of the two with its state loaded" if landscape.kind in ("interpolation", "curve") else ""
    raise ValueError(
        f"the {landscape.kind} was made around another network than the one given, whose weights or running statistics "
        f"differ: give the network at 0 of its axes{first}"
    )


def _nearest(directions: Directions, places: np.ndarray, off: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which t of a curve is nearest to places in its plane, ``[m, 1]``, and how far from the checkpoints it lies."""
    t = np.linspace(0, 1, FINE)
    columns = directions.columns.double()
    away = places[:, None] - bezier(t)
    squares = np.einsum("mti,ij,mtj->mt", away, (columns.T @ columns).cpu().numpy(), away)
    least = squares.argmin(1)
    return t[least, None], np.sqrt(off**2 + squares.min(1).clip(0))


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
