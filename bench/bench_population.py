"""Training many networks: populations against the fastest of a plain loop at 1 or 2 threads and in 2 processes."""

import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from scipy.stats import t
from torch import nn
from torch.nn import functional
from torch.optim import SGD

from bench.harness import ROOT, Goal, Row, Timing, attempted, row_of
from landscope import engine, population, train
from landscope.data import Data
from landscope.losses import cross_entropy
from landscope.models import mlp
from landscope.spec import Recipe, call
from landscope.types import Batches

SAMPLES, ROUNDS, PAIRS, PROCESSES = 1000, 5, 40, 2
RATE, MOMENTUM = 0.01, 0.9


@dataclass(frozen=True)
class Case:
    """Networks to be trained.

    Args:
        name: The sizes of the layers.
        inputs: Features.
        widths: Of the hidden layers.
        outputs: Classes.
        batch: Samples in a batch.
        samples: In the training set.
        networks: How many networks.
        steps: Optimizer steps that are timed.
        ratio: How many times faster than the fastest loop.
    """

    name: str
    inputs: int
    widths: tuple[int, ...]
    outputs: int
    batch: int
    samples: int
    networks: int
    steps: int
    ratio: float

    def recipe(self, seed: int) -> Recipe:
        """Of one of the networks."""
        return Recipe(
            data=call(points, features=self.inputs, classes=self.outputs, samples=self.samples),
            model=call(mlp, widths=self.widths),
            loss=call(cross_entropy),
            optimizer=call(SGD, lr=RATE, momentum=MOMENTUM),
            steps=10**7,
            batch_size=self.batch,
            seed=seed,
        )


CASES = {
    case.name: case
    for case in (
        Case("2-25×5-2, batch 32, 64 networks", 2, (25,) * 5, 2, 32, SAMPLES, 64, 60, 15.0),
        Case("40-64-64-10, batch 100, 64 networks", 40, (64, 64), 10, 100, SAMPLES, 64, 40, 5.0),
        Case("784-512-512-10, batch 128, 8 networks", 784, (512, 512), 10, 128, SAMPLES, 8, 12, 0.95),
        Case("2-25×4-2, full batch 266, 200 networks", 2, (25,) * 4, 2, 266, 266, 200, 20, 8.0),
    )
}


def points(seed: int, cache: Path | None, /, *, features: int, classes: int, samples: int) -> Data:
    """Random points with random labels."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, features, generator=generator)
    labels = torch.randint(0, classes, (samples,), generator=generator)
    return Data(Batches(inputs, labels), None, None, classes, "classification")


def loop(case: Case) -> Callable[[int], None]:
    """A plain loop as one writes it, for one network: call it with a number of steps."""
    data = points(0, None, features=case.inputs, classes=case.outputs, samples=case.samples).train
    model: nn.Module = mlp((case.inputs,), case.outputs, widths=case.widths)
    optimizer = SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
    batches: list[torch.Tensor] = []

    def run(steps: int) -> None:
        for _ in range(steps):
            if case.batch >= case.samples:
                inputs, targets = data.inputs, data.targets
            else:
                if not batches:
                    batches.extend(torch.randperm(case.samples).split(case.batch))
                chosen = batches.pop()
                inputs, targets = data.inputs[chosen], data.targets[chosen]
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()

    return run


def solo(case: Case) -> Callable[[int], None]:
    """Landscope's loop for one network."""
    recipe = case.recipe(0)
    steps = train.advance(train.begin(recipe, recipe.data(0, None)))
    next(steps)

    def run(count: int) -> None:
        for _ in range(count):
            next(steps)

    return run


def together(recipes: Sequence[Recipe]) -> Callable[[int], None]:
    """Landscope's loop for several networks at once."""
    steps = population.advance(population.begin(recipes, [r.data(r.seed, None) for r in recipes]))
    next(steps)

    def run(count: int) -> None:
        for _ in range(count):
            next(steps)

    return run


def worked(case: Case, process: int) -> tuple[str, int, Callable[[int], None]]:
    """What one of the processes does as the engine would have it: the executor, its networks, and their steps."""
    recipes = [case.recipe(seed) for seed in range(case.networks)]
    (group,) = engine.groups(recipes, engine.Sizes((case.inputs,), case.outputs, case.samples))
    if group.executor == "solo":  # network after network; one does for all
        return "solo", 1, solo(case)
    parts = engine.split(group, PROCESSES, case.networks)[process::PROCESSES]
    begun = [together(part) for part in parts]

    def run(count: int) -> None:
        for make_steps in begun:
            make_steps(count)

    return "population", sum(len(part) for part in parts), run


# --- processes -----------------------------------------------------------------------------------------------------


def serve(kind: str, name: str, process: str) -> None:
    """A process of one thread that makes steps when told to, and says how long they took."""
    torch.set_num_threads(1)
    case = CASES[name]
    executor, networks, run = ("loop", 1, loop(case)) if kind == "loop" else worked(case, int(process))
    run(3)
    print(json.dumps({"executor": executor, "networks": networks}), flush=True)
    for line in sys.stdin:
        steps = int(line)
        began = time.perf_counter()
        run(steps)
        print(json.dumps(time.perf_counter() - began), flush=True)


@contextmanager
def processes(kind: str, case: Case) -> "Iterator[tuple[str, Callable[[int], float]]]":
    """Two processes at work: which executor, and a function from steps to seconds per network and step."""
    code = "import sys; from bench.bench_population import serve; serve(*sys.argv[1:])"  # by its importable name
    command = [sys.executable, "-c", code, kind, case.name]
    started = [
        subprocess.Popen([*command, str(i)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for i in range(PROCESSES)
    ]

    def said(process: "subprocess.Popen[str]") -> str:
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            raise RuntimeError(f"a process for {case.name} ended with {process.wait()}")
        return line

    try:
        facts = [json.loads(said(process)) for process in started]
        networks = sum(fact["networks"] for fact in facts)

        def run(steps: int) -> float:
            began = time.perf_counter()
            for process in started:
                if process.stdin:
                    process.stdin.write(f"{steps}\n")
                    process.stdin.flush()
            for process in started:
                said(process)
            return (time.perf_counter() - began) / (steps * networks)

        yield facts[0]["executor"], run
    finally:
        for process in started:
            process.kill()
            process.communicate()


def in_process(run: Callable[[int], None], threads: int) -> Callable[[int], float]:
    """A function from steps to seconds per step of one network, here, with so many threads."""

    def timed(steps: int) -> float:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            run(1)
            began = time.perf_counter()
            run(steps)
            return (time.perf_counter() - began) / steps
        finally:
            torch.set_num_threads(before)

    return timed


# --- rows ----------------------------------------------------------------------------------------------------------


def populations() -> Iterator[Row]:
    """Each case against the fastest loop."""
    for case in CASES.values():
        plain = loop(case)
        alone = max(case.steps, 100 if case.inputs < 100 else 10)
        with processes("ours", case) as (executor, ours), processes("loop", case) as (_, two):
            runs = {
                "ours": (ours, case.steps),
                "loop, 1 thread": (in_process(plain, 1), alone),
                "loop, 2 threads": (in_process(plain, 2), alone),
                "loop, 2 processes": (two, alone),
            }
            timings = in_turns(runs, ROUNDS)
        note = f"executor: {executor}, on {PROCESSES} processes of one thread; wall time"
        yield row_of(case.name, "µs per network and step", timings, Goal(ratio_at_least=case.ratio), [note])


def in_turns(runs: Mapping[str, tuple[Callable[[int], float], int]], rounds: int) -> dict[str, Timing]:
    """Timings of functions from steps to seconds per network and step, each with its steps; units are µs."""
    timings = {name: Timing() for name in runs}
    for _ in range(rounds):
        for name, (run, steps) in runs.items():
            seconds = run(steps)
            timings[name].seconds.append(seconds)
            timings[name].units.append(1e6 * seconds)
    return timings


def alone() -> Iterator[Row]:
    """Training one network against the loop, at one thread."""
    for name, steps in (("40-64-64-10, batch 100, 64 networks", 300), ("784-512-512-10, batch 128, 8 networks", 40)):
        case = CASES[name]
        ours, theirs = in_process(solo(case), 1), in_process(loop(case), 1)
        ratios: list[float] = []
        for _ in range(PAIRS // 2):  # each as often first as second
            ratios.append(ours(steps) / theirs(steps))
            other = theirs(steps)
            ratios.append(ours(steps) / other)
        mean, low, high = interval(ratios)
        title = f"one network alone, {name.rpartition(',')[0]}: upper end of the 95 % interval"
        note = (
            f"{mean:.3f} times the loop's time, 95 % interval {low:.3f} to {high:.3f}, {len(ratios)} interleaved pairs"
        )
        yield Row(title, "times the loop", high, goal=Goal(at_most=1.05), notes=[note])


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean and its 95 % interval (Student t)."""
    mean, n = statistics.mean(values), len(values)
    half = float(t.ppf(0.975, n - 1)) * statistics.stdev(values) / math.sqrt(n)
    return mean, mean - half, mean + half


def rows() -> Iterator[Row]:
    """All rows."""
    return attempted(populations, alone)
