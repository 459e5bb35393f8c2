"""Would compiling make a population faster? Its steps as they are, against the same steps by `torch.compile`."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value, vmap
from torch.nn import functional
from torch.optim import SGD

from bench.bench_population import CASES, MOMENTUM, RATE, Case, in_process, in_turns, points, together
from bench.harness import Row, attempted, row_of
from landscope.losses import cross_entropy
from landscope.models import residual_mlp
from landscope.spec import Recipe, call

ROUNDS, MEMBERS, STEPS, BLOCKS = 9, 32, 20, 8
Step = Callable[..., tuple[list[Tensor], list[Tensor]]]


def with_momentum(weights: list[Tensor], momenta: list[Tensor], slopes: Sequence[Tensor]) -> Any:
    """The weights and momenta after a step of SGD."""
    momenta = [MOMENTUM * v + g for v, g in zip(momenta, slopes, strict=True)]
    return [w - RATE * v for w, v in zip(weights, momenta, strict=True)], momenta


def chain_step(weights: list[Tensor], momenta: list[Tensor], x: Tensor, y: Tensor) -> Any:
    """A step of stacked ReLU networks, gradients written out: weight and bias by turns."""
    kept, layers = [x], len(weights) // 2
    for i in range(layers):
        z = torch.baddbmm(weights[2 * i + 1].unsqueeze(1), kept[-1], weights[2 * i].transpose(1, 2))
        kept.append(torch.relu(z) if i < layers - 1 else z)
    d = (kept[-1].softmax(2) - functional.one_hot(y, kept[-1].shape[2])) / x.shape[1]
    slopes: list[Tensor] = []
    for i in reversed(range(layers)):
        slopes = [torch.bmm(d.transpose(1, 2), kept[i]), d.sum(1), *slopes]
        d = torch.bmm(d, weights[2 * i]) * (kept[i] > 0)
    return with_momentum(weights, momenta, slopes)


def mapped_step(net: torch.nn.Module) -> Step:
    """A step of stacked networks of any kind, gradients by `torch.func`."""
    names = [name for name, _ in net.named_parameters()]

    def one(weights: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(functional_call(net, dict(zip(names, weights, strict=True)), (x,)), y)

    def step(weights: list[Tensor], momenta: list[Tensor], x: Tensor, y: Tensor) -> Any:
        slopes, _ = vmap(grad_and_value(one))(weights, x, y)
        return with_momentum(weights, momenta, slopes)

    return step


def compiled(step: Step, net: torch.nn.Module, case: Case, members: int) -> tuple[Callable[[int], None], float]:
    """The compiled step, always on the same batch, and the seconds that compiling it took."""
    weights = [torch.stack([p.detach()] * members) for p in net.parameters()]
    momenta = [torch.zeros_like(w) for w in weights]
    x = torch.randn(members, case.batch, case.inputs)
    y = torch.randint(0, case.outputs, (members, case.batch))
    fast, began = torch.compile(step), time.perf_counter()

    def run(count: int) -> None:
        state = weights, momenta
        with torch.no_grad():
            for _ in range(count):
                state = fast(*state, x, y)

    run(1)
    return run, time.perf_counter() - began


def per_network(run: Callable[[int], None], members: int) -> Callable[[int], float]:
    """A function from steps to seconds per network and step, at one thread."""
    timed = in_process(run, 1)
    return lambda steps: timed(steps) / members


def compared(name: str, recipe: Callable[[int], Recipe], case: Case, members: int, written: bool) -> Row:
    """Our steps against the compiled ones, in turns, at one thread."""
    net = recipe(0).model((case.inputs,), case.outputs)
    fast, seconds = compiled(chain_step if written else mapped_step(net), net, case, members)
    both = {"ours": together([recipe(seed) for seed in range(members)]), "compiled": fast}
    timings = in_turns({which: (per_network(run, members), STEPS) for which, run in both.items()}, ROUNDS)
    notes = [
        f"compiling took {seconds:.0f} s; the compiled step is spared the drawing of its batch; {members} networks"
    ]
    return row_of(f"{name}: a step, compiled", "µs per network and step", timings, notes=notes)


def chains() -> Iterator[Row]:
    """Plain chains, whose gradients are written out as ours are."""
    for name, case in CASES.items():
        if case.inputs < 100:  # larger ones are not stacked
            yield compared(name.rpartition(",")[0], case.recipe, case, MEMBERS, True)


def residual() -> Iterator[Row]:
    """A residual network; the compiled step's gradients are `torch.func`'s."""
    case = CASES["40-64-64-10, batch 100, 64 networks"]

    def recipe(seed: int) -> Recipe:
        return Recipe(
            data=call(points, features=case.inputs, classes=case.outputs, samples=case.samples),
            model=call(residual_mlp, width=17, depth=BLOCKS),
            loss=call(cross_entropy),
            optimizer=call(SGD, lr=RATE, momentum=MOMENTUM),
            steps=10**7,
            batch_size=case.batch,
            seed=seed,
        )

    yield compared(f"40-(17 × {BLOCKS} residual)-10, batch 100", recipe, case, MEMBERS, False)


def rows() -> Iterator[Row]:
    """All rows."""
    return attempted(chains, residual)
