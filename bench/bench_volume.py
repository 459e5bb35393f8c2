"""Basin volumes: the swiss roll's network, 3,000 rays bisected to a relative 1e-7."""

import math
import time
from collections.abc import Iterator

import torch
from torch import nn

from bench.harness import Goal, Row, attempted
from landscope.basins import basin_volumes, identity, loss_along
from landscope.data import swiss_roll
from landscope.losses import cross_entropy
from landscope.models import mlp

RAYS, TOLERANCE, HEIGHT = 3000, 1e-7, 0.1
WIDTHS = (23, 16, 26, 32, 28, 31)  # of Huang et al.'s code
ROUNDS = 3


def network() -> tuple[nn.Module, float]:
    """The network after 1,500 steps of Adam on the whole training set, and its loss."""
    torch.manual_seed(0)
    model, data = mlp((2,), 2, widths=WIDTHS), swiss_roll(10_000).train
    optimizer, loss = torch.optim.Adam(model.parameters(), lr=0.005), cross_entropy()
    for _ in range(1500):
        optimizer.zero_grad()
        value = loss(model(data.inputs), data.targets)
        value.backward()
        optimizer.step()
    return model, value.item()


def volume() -> Iterator[Row]:
    """Seconds for one volume, and evaluations of the loss a second."""
    model, loss = network()
    names = [name for name, p in model.named_parameters() if p.dim() > 1]
    known = dict(model.named_parameters())
    centre = torch.cat([known[name].detach().double().reshape(-1) for name in names])
    along = loss_along(model, cross_entropy(), swiss_roll(10_000).train, names)

    def once() -> tuple[float, int]:
        start = time.perf_counter()
        (found,) = basin_volumes(along, centre, identity(), cutoffs=[loss + HEIGHT], rays=RAYS, tolerance=TOLERANCE)
        return time.perf_counter() - start, found.passes

    seconds, passes = min(once() for _ in range(ROUNDS))
    note = (
        f"{passes:,} evaluations of the loss on 200 samples, {passes / seconds:,.0f} a second, in float64; "
        f"narrowing by bisection would take {math.ceil(math.log2(math.log(1.25) / TOLERANCE))} a ray"
    )
    yield Row(
        f"{RAYS:,} rays of the swiss-roll network to a relative {TOLERANCE:g}", "s", seconds, goal=Goal(at_most=20.0),
        notes=[note],
    )  # fmt: skip


def rows() -> Iterator[Row]:
    """All rows of this benchmark."""
    return attempted(volume)
