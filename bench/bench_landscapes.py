"""Planes of losses: a grid of 51 × 51 points against loss-landscapes, and ResNet-20 against a bare loop over points."""

import copy
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.bench_population import interval
from bench.harness import Contender, Goal, Row, Timing, attempted, interleaved, row_of
from bench.peers import findable, named
from bench.workloads import resnet20

POINTS, ROUNDS = 51, 5
PEER = "loss-landscapes"
PAIRS, IMAGES, SIDE = 20, 128, 4  # of ResNet-20: repeats, images, points along each axis
Data = tuple[Tensor, Tensor]


def swiss_roll() -> tuple[nn.Sequential, Any, Data]:
    """The network of Huang et al. 2020 for the swiss roll, one logit, on 200 points."""
    widths = (2, 23, 16, 26, 32, 28, 31)
    hidden = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
    x = 5 * torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    return nn.Sequential(*hidden, nn.Linear(31, 1)), nn.BCEWithLogitsLoss(), (x, (x.prod(1, keepdim=True) > 0).float())


def images() -> tuple[nn.Sequential, Any, Data]:
    """The network 784-128-10 on 1,000 inputs."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 784, generator=generator)
    net = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    return net, nn.CrossEntropyLoss(), (x, torch.randint(10, (1000,), generator=generator))


CASES = {"swiss-roll net, 200 points": swiss_roll, "MLP 784-128-10, 1,000 inputs": images}


def planes() -> Iterator[Row]:
    """A plane through three networks, the same points for both tools."""
    findable()
    for title, make in CASES.items():
        torch.manual_seed(0)
        start, loss, data = make()
        one, two = make()[0], make()[0]
        runs = {
            "ours": Contender(ours(start, one, two, loss, data)),
            named(PEER): Contender(theirs(start, one, two, loss, data)),
        }
        found = interleaved(runs, lambda net=start, x=data[0]: net(x), repeats=ROUNDS)
        timings = {
            name: Timing(units=[1e3 * s / POINTS**2 for s in t.seconds], failed=t.failed) for name, t in found.items()
        }
        if timings[named(PEER)].failed:
            notes = []
        else:
            notes = [differences(found["ours"].result, found[named(PEER)].result)]
        case = f"plane of {POINTS} × {POINTS} points, {title}"
        yield row_of(case, "ms a point", timings, Goal(ratio_at_least=8), notes)


def ours(start: nn.Module, one: nn.Module, two: nn.Module, loss: Any, data: Data) -> Callable[[], Any]:
    """Our plane: at i/51 of the way to one network and (j + 1)/51 of that to the other."""
    from landscope.curvature import flatten
    from landscope.landscapes import Directions, plane

    origin = flatten(start)
    axes = Directions(
        torch.stack([flatten(one) - origin, flatten(two) - origin], 1), ("one", "two"), "between networks"
    )
    spans = ((0, (POINTS - 1) / POINTS), (1 / POINTS, 1))
    return lambda: plane(start, loss, data, directions=axes, span=spans, points=POINTS, accuracy=False)


def theirs(start: nn.Module, one: nn.Module, two: nn.Module, loss: Any, data: Data) -> Callable[[], Any]:
    """Theirs, on copies: it leaves the network where its last point was."""
    nets = [copy.deepcopy(net) for net in (start, one, two)]

    def run() -> np.ndarray:
        from loss_landscapes import planar_interpolation
        from loss_landscapes.metrics import Loss

        return planar_interpolation(*nets, Loss(loss, *data), steps=POINTS, deepcopy_model=True)

    return run


def differences(found: Any, peer: np.ndarray) -> str:
    """How far the values are apart; every other row of the peer's is shifted by a step, and compared so."""
    mine = found.values["train_loss"]
    even = np.abs(mine[::2] / peer[::2] - 1).max()
    odd = np.abs(mine[1::2, :-1] / peer[1::2, 1:] - 1).max()
    shifted = np.abs(mine[1::2] / peer[1::2] - 1).max()
    return (
        f"largest relative difference {max(even, odd):.1g}; every other row of {PEER} is shifted by one step (as it "
        f"stands up to {shifted:.1g} off); ours: {found.facts['evaluated']}"
    )


def alone() -> Iterator[Row]:
    """ResNet-20: our plane against a bare forward loop over the same points."""
    from landscope.landscapes import plane, random_axes

    torch.manual_seed(0)
    net = resnet20().eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(IMAGES, 3, 32, 32, generator=generator)
    data, loss = (x, torch.randint(10, (IMAGES,), generator=generator)), nn.CrossEntropyLoss()
    axes = random_axes(net)

    def mine() -> None:
        plane(net, loss, data, directions=axes, points=SIDE, accuracy=False)

    runs = mine, bare_loop(net, axes.columns, loss, data)
    for run in runs:
        run()
    ratios = [_seconds(runs[0]) / _seconds(runs[1]) for _ in range(PAIRS)]
    mean, low, high = interval(ratios)
    note = f"{mean:.3f} times the loop's time, 95 % interval {low:.3f} to {high:.3f}, {PAIRS} interleaved pairs"
    more = f"median {statistics.median(ratios):.3f}; {SIDE} × {SIDE} points, {IMAGES} images"
    title = "ResNet-20, plane: upper end of the 95 % interval"
    yield Row(title, "times a bare loop of forward passes", high, goal=Goal(at_most=1.05), notes=[note, more])


def bare_loop(net: nn.Module, columns: Tensor, loss: Any, data: Data) -> Callable[[], None]:
    """What one would write: weights set, one forward pass, for each point."""
    own = copy.deepcopy(net)
    origin = [p.detach().clone() for p in own.parameters()]
    steps = [
        [part.view_as(p) for part, p in zip(c.split([p.numel() for p in origin]), origin, strict=True)]
        for c in columns.T
    ]

    @torch.no_grad()
    def run() -> None:
        for a in np.linspace(-1, 1, SIDE):
            for b in np.linspace(-1, 1, SIDE):
                for p, w, d1, d2 in zip(own.parameters(), origin, *steps, strict=True):
                    p.copy_(w).add_(d1, alpha=a).add_(d2, alpha=b)
                loss(own(data[0]), data[1]).item()

    return run


def _seconds(run: Callable[[], None]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def rows() -> Iterator[Row]:
    """All rows of this benchmark."""
    yield from attempted(planes, alone)
