"""What the flatness penalty costs: whole training steps with it, in units of plain ones timed beside them.

The goals: at every step at most 2.6 times plain training on MLPs and 4 on anything, the defaults at most 1.4 times.
Whether those that skip steps end where the every-step one does is asked by `bench.flatness_study`, which takes longer.
"""

import math
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from bench import workloads
from bench.harness import Contender, Goal, Row, Timing, attempted, interleaved
from landscope.regularizers import flatness
from landscope.regularizers.draws import rademacher

CYCLE = 4  # steps timed together: whole cycles of the defaults
SECONDS = 9.0  # for each case's rounds
SAMPLES = 1024


def mlp(hidden: int, classes: int) -> nn.Sequential:
    """The network 3072-hidden-classes."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, hidden), nn.ReLU(), nn.Linear(hidden, classes))


def deep(classes: int = 10) -> nn.Sequential:
    """The network 784-512-512-10, on the first 784 numbers of an image."""
    torch.manual_seed(0)
    layers = [nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, classes)]
    return nn.Sequential(nn.Flatten(), *layers)


def convolutional() -> nn.Sequential:
    """Three 3×3 convolutions of 16, 32 and 32 maps, pooled, and a linear layer."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for into, maps in ((3, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(into, maps, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))


def straightforward(model: nn.Module, x: Any, y: Any) -> torch.Tensor:
    """One probe in the ordinary way: a sign drawn for each weight, and two derivatives with their graphs."""
    parameters = list(model.parameters())
    loss = F.cross_entropy(model(x), y)
    gradient = torch.autograd.grad(loss, parameters, create_graph=True)
    signs = [torch.randint(0, 2, p.shape).to(p.dtype) * 2 - 1 for p in parameters]
    image = torch.autograd.grad(gradient, parameters, signs, create_graph=True)
    return loss + 0.01 / len(x) * torch.stack([h.square().sum() for h in image]).sum()


def cycle(make: Callable[[], nn.Module], size: int, flat: bool, objective: Callable[..., Any]) -> Callable[[], None]:
    """A function that trains for a cycle of steps with SGD."""
    model, (inputs, labels) = make(), workloads.generated(SAMPLES)
    inputs = inputs.flatten(1)[:, :784] if flat else inputs
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(0)

    def run() -> None:
        for _ in range(CYCLE):
            chosen = torch.randint(SAMPLES, (size,), generator=generator)
            optimizer.zero_grad()
            objective(model, inputs[chosen], labels[chosen]).backward()
            optimizer.step()

    return run


def plain(model: nn.Module, x: Any, y: Any) -> torch.Tensor:
    """The loss alone."""
    return F.cross_entropy(model(x), y)


def penalised(**settings: Any) -> Callable[..., torch.Tensor]:
    """The loss and the penalty in one pass."""
    reg = flatness(strength=0.01, seed=0, **settings)
    return lambda model, x, y: reg.objective(model, (x, y))


def compared(
    case: str, make: Callable[[], nn.Module], size: int, at_most: float, *, flat: bool = False, seconds: float = SECONDS
) -> Iterator[Row]:
    """Two rows of a network: the penalty at every step, and the defaults."""
    contenders = {
        "every step": Contender(cycle(make, size, flat, penalised(every=1))),
        "defaults": Contender(cycle(make, size, flat, penalised())),
        "straightforward": Contender(cycle(make, size, flat, straightforward)),
        "plain again": Contender(cycle(make, size, flat, plain)),
    }
    found = interleaved(contenders, cycle(make, size, flat, plain), repeats=60, seconds=seconds)
    peers = {"straightforward double backward": found["straightforward"].median}
    control = f"a plain step against itself: {found['plain again'].median or math.nan:.2f}"
    names = (("at every step", "every step", at_most), ("defaults", "defaults", 1.4))
    for words, name, goal in names:
        notes = [control, _spread(found[name])]
        yield Row(
            f"{case}, batch {size}: flatness {words}",
            "plain steps",
            found[name].median,
            peers if name == "every step" else {},
            Goal(at_most=goal),
            {} if found[name].failed is None else {"ours": str(found[name].failed)},
            notes,
        )


def _spread(timing: Timing) -> str:
    if len(timing.units) < 4:
        return f"{len(timing.units)} rounds"
    low, _, high = statistics.quantiles(timing.units, n=4)
    return f"{len(timing.units)} rounds, quartiles {low:.2f} and {high:.2f}"


def networks() -> Iterator[Row]:
    """The two networks of the goals with both batch sizes, a deeper one, and one of convolutions."""
    for hidden, classes in ((256, 10), (512, 100)):
        for size in (64, 128):
            yield from compared(f"MLP 3072-{hidden}-{classes}", lambda h=hidden, c=classes: mlp(h, c), size, 2.6)
    yield from compared("MLP 784-512-512-10", deep, 128, 2.6, flat=True)
    yield from compared("CNN 16-32-32", convolutional, 64, 4.0, seconds=15.0)


def signs() -> Iterator[Row]:
    """Drawing a sign for each weight of the first network, in plain steps of it."""
    n = 3072 * 256
    contenders = {
        "ours": Contender(lambda: [rademacher((n,)) for _ in range(CYCLE)]),
        "randint": Contender(lambda: [torch.randint(0, 2, (n,)).float() * 2 - 1 for _ in range(CYCLE)]),
        "bernoulli": Contender(lambda: [torch.empty(n).bernoulli_(0.5) * 2 - 1 for _ in range(CYCLE)]),
    }
    found = interleaved(contenders, cycle(lambda: mlp(256, 10), 64, False, plain), repeats=15, seconds=SECONDS)
    peers = {name: found[name].median for name in ("randint", "bernoulli")}
    yield Row(f"{n:,} independent random signs", "plain steps", found["ours"].median, peers, Goal(ratio_at_least=1.0))


def rows() -> Iterator[Row]:
    """All rows."""
    yield from attempted(networks, signs)
