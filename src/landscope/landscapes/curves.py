"""Paths of low loss between two networks: a quadratic Bézier curve whose bend is trained."""

import math
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Unpack

import numpy as np
import torch
from torch import Tensor, nn

from landscope.curvature.batches import taken_apart
from landscope.curvature.making import Data, Loss
from landscope.landscapes.axes import Directions, State, point_of
from landscope.landscapes.grids import at_state, landscape_of, on_grid
from landscope.landscapes.result import Landscape
from landscope.landscapes.settings import Settings, surface_of
from landscope.landscapes.ways import Surface
from landscope.models.checks import check_whole
from landscope.spec import derive


def curve(
    model: nn.Module,
    first: State,
    second: State,
    loss: Loss,
    train: Data,
    test: Data | None = None,
    /,
    *,
    steps: int = 1000,
    rate: float | int = 0.01,
    momentum: float | int = 0.9,
    batch: int = 128,
    draw: int = 0,
    points: int = 61,
    **settings: Unpack[Settings],
) -> Landscape:
    """The loss along a curve between two networks, bent so that the loss along it is low (mode connectivity).

    φ(t) = (1 − t)²·w₁ + 2t(1 − t)·θ + t²·w₂; θ begins half-way and is trained on E L(φ(t)), t uniform in [0, 1] and
    drawn for each step (Garipov et al. 2018, section 3), by SGD with momentum; the rate is constant for half of the
    steps and then falls linearly to a hundredth. The curve lies in the plane through w₁, θ and w₂: the directions are
    w₂ − w₁ and θ − w₁, with coordinates t² and 2t(1 − t), and `landscope.landscapes.plane` draws it with them.

    BatchNorm normalises by the batch while θ is trained, and by statistics computed anew at each point of the curve
    unless ``batchnorm="frozen"``.

    Args:
        model: A network of the same kind; its own weights do not matter.
        first: The state (or network) at t = 0.
        second: The one at t = 1.
        loss: ``loss(outputs, targets)``, the mean over a batch.
        train: Training data that fit into memory.
        test: Test data, or None.
        steps: Steps of SGD; 0 leaves the straight line.
        rate: The learning rate.
        momentum: Of SGD.
        batch: Samples in a step.
        draw: The seed of batches and of t.
        points: Points at which the curve is evaluated.
        settings: See `Settings`; ``batch_loss`` is for lines and planes alone.

    Returns:
        A Landscape over t.

    Raises:
        ValueError: as `landscope.landscapes.interpolation` does, for data that cannot be held in memory, and where
            training diverges.

    Cost: a gradient on a batch a step, and a pass over the data a point.
    """
    check_whole("points, steps and batch", points, steps, batch)
    if points < 2 or steps < 0 or batch < 1 or not rate > 0:
        raise ValueError(
            f"a curve needs 2 points, 0 steps, batches of 1 and a rate above 0 at the least, not {points}, {steps}, "
            f"{batch} and {rate}"
        )
    if settings.get("batch_loss") is not None:
        raise ValueError("a curve is trained on loss(outputs, targets): batch_loss= is for lines and planes alone")
    start = at_state(model, first)
    whole = {**settings, "samples": None}
    probe = Directions(torch.ones(sum(p.numel() for p in start.parameters()), 1), ("",), "")
    surface = surface_of(start, loss, train, None, probe, Settings(**whole))  # type: ignore[typeddict-item]
    of = surface.problem.space
    one, two = of.point(), point_of(of, second, "the second checkpoint")
    if torch.equal(one, two):
        raise ValueError("a curve leads from one network to another, and these two have the same weights")
    bend = _trained(surface, one, two, steps, float(rate), float(momentum), batch, draw)
    columns = torch.stack([two - one, bend - one], 1)
    directions = Directions(
        columns,
        ("towards the other network", "towards the bend"),
        f"a Bézier curve with one bend, trained for {steps:,} steps of SGD (rate {rate:g}, momentum {momentum:g}, "
        f"batches of {batch}, seed {draw}); the directions are from the first network to the second and to the bend",
    )
    surface = surface_of(start, loss, train, test, directions, settings, "recomputed")
    t = np.linspace(0, 1, points)
    values = on_grid(surface, bezier(t), settings)
    return landscape_of("curve", start, surface, [t], ("t along the curve",), values, directions, settings)


def bezier(t: np.ndarray) -> np.ndarray:
    """The coordinates of points of a curve on its directions, ``[points, 2]``."""
    return np.stack([t**2, 2 * t * (1 - t)], -1)


def _trained(
    surface: Surface, one: Tensor, two: Tensor, steps: int, rate: float, momentum: float, batch: int, draw: int
) -> Tensor:
    """The bend."""
    problem, bend = surface.problem, ((one + two) / 2).requires_grad_()
    optimizer = torch.optim.SGD([bend], rate, momentum)
    generator = torch.Generator().manual_seed(derive(draw, "curve"))
    norms = [m for m in problem.space.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    with ExitStack() as stack:
        stack.enter_context(problem.quiet())
        for layer in norms:
            layer.training = True
        for step, chosen in zip(range(steps), _batches(surface, batch, generator), strict=False):
            t = float(torch.rand((), generator=generator))
            at = (1 - t) ** 2 * one + 2 * t * (1 - t) * bend + t**2 * two
            outputs, targets = problem.outputs(problem.space.split(at), chosen)
            value = problem.loss(outputs, targets)  # type: ignore[misc]
            if not math.isfinite(value.item()):
                raise ValueError(f"training the bend diverged at step {step}: take a rate below {rate:g}")
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, max(0.01, 2 * (1 - step / steps)))
            (bend.grad,) = torch.autograd.grad(value, bend)
            optimizer.step()
    return bend.detach()


def _batches(surface: Surface, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches for ever, every epoch in a new order."""
    held = surface.sets["train"].held
    pairs = [taken_apart(batch) for batch in held or ()]
    if not pairs or not all(isinstance(inputs, Tensor) for inputs, _ in pairs):
        raise ValueError("a curve is trained on tensors of inputs and targets that fit into memory")
    inputs, targets = (torch.cat([pair[i] for pair in pairs]) for i in (0, 1))
    while True:
        order = torch.randperm(len(inputs), generator=generator).to(inputs.device)
        for part in order.split(size):
            if len(part) > 1 or size == 1 or len(order) == 1:  # BatchNorm needs two
                yield inputs[part], targets[part]
