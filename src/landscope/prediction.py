"""What a run will cost, before it is spent: a few steps and a few samples are timed, and the rest is arithmetic."""

import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from landscope import population
from landscope.engine import curve_steps, load_data, snapshot
from landscope.models import evaluating
from landscope.spec import Call, Recipe, canonical_json, key
from landscope.train import Training, advance, begin, evaluate
from landscope.types import Batches

PILOT_SEED = 10_000  # seeds from here on are never judged
TIMED_MEMBERS = 16  # of a population; more cost little more
TIMED_BATCH = 256  # larger batches are extrapolated from smaller ones
FIRST_SAMPLES, ENOUGH_SECONDS, LONG_SECONDS = 32, 0.3, 1.8
DOUBLE_BACKWARD = 4.0  # memory of a Hessian product over that of a forward pass: graph, gradient and their graph
LANCZOS_VECTORS = 40


@dataclass(frozen=True)
class Cost:
    """What one run is predicted to take on this machine.

    Args:
        steps: Optimizer steps expected (fewer than the recipe's where a stopping rule is expected to end it).
        training: Seconds of training, the learning curves and the stopping rule's checks included.
        measuring: Seconds of measuring.
        memory: Bytes of the process at its largest.
    """

    steps: int
    training: float
    measuring: float
    memory: int

    @property
    def seconds(self) -> float:
        """Seconds in all."""
        return self.training + self.measuring


def predict(
    runs: Sequence[tuple[Recipe, int, float]],
    measures: Sequence[Call],
    root: Path,
    device: torch.device | str = "cpu",
    on_group: Callable[[int, int], None] | None = None,
    members: Mapping[str, int] | None = None,
) -> dict[str, Cost]:
    """The cost of each run, by its key; runs that differ only in numbers are timed once.

    A run that is trained in a population costs its share of it.

    A few optimizer steps are timed for every batch size up to 256 (larger ones are extrapolated), and the measures on
    a growing share of the training set until they take long enough to be extrapolated. The pilot uses a seed that is
    never judged.

    Args:
        runs: (recipe, number of states to be measured, expected share of the recipe's steps).
        measures: What is measured on each state.
        root: The store, for decoded data.
        device: Where it will run.
        on_group: Called with how many groups have been timed, of how many.
        members: By key, how many runs are trained together with this one, itself included; others are trained alone.
    """
    groups: dict[str, list[tuple[Recipe, int, float]]] = {}
    for recipe, states, share in runs:
        groups.setdefault(_kind(recipe), []).append((recipe, states, share))
    costs: dict[str, Cost] = {}
    networks: dict[str, _Network] = {}
    threads = torch.get_num_threads()
    try:
        if torch.device(device).type == "cpu":
            torch.set_num_threads(1)
        for i, runs_alike in enumerate(groups.values()):
            if on_group is not None:
                on_group(i, len(groups))
            recipe = replace(runs_alike[0][0], seed=PILOT_SEED)
            name = canonical_json([_timed_data(recipe), recipe.model])
            if name not in networks:
                networks[name] = _time_network(recipe, measures, root, device)
            together = max((members or {}).get(key(run), 0) for run, _, _ in runs_alike)
            of = networks[name]
            if together:
                step, look = _together_seconds(recipe, min(together, TIMED_MEMBERS), root, device)
                whole = of.evaluate_all / max(of.evaluate_train, 1e-9)
                of = replace(of, evaluate_train=look, evaluate_all=look * whole)
            else:
                step = _step_seconds(recipe, root, device)
            for run, states, share in runs_alike:
                costs[key(run)] = _cost(run, states, share, step, of)
    finally:
        torch.set_num_threads(threads)
    return costs


@dataclass(frozen=True)
class _Network:
    evaluate_train: float
    evaluate_all: float
    measuring: float
    parameters: int
    samples: int
    data_bytes: int
    sample_bytes: int  # of the activations that a backward pass needs, per sample
    evaluation_batch: int


def _kind(recipe: Recipe) -> str:
    """What the time of a step depends on: everything but the numbers that leave it alone."""
    optimizer, data = recipe.optimizer.target, _timed_data(recipe)
    return canonical_json([data, recipe.model, recipe.loss, optimizer, recipe.batch_size, recipe.regularizers])


def _timed_data(recipe: Recipe) -> tuple[str, dict[str, Any]]:
    """What a data set's size and shape depend on: wrong labels take no longer."""
    return recipe.data.target, {name: value for name, value in recipe.data.kwargs if name != "label_noise"}


def _pilot(recipe: Recipe, root: Path, device: torch.device | str) -> Training:
    return begin(replace(recipe, start=None, constraint=None, stop=None), load_data(recipe, root), device=device)


def _step_seconds(recipe: Recipe, root: Path, device: torch.device | str) -> float:
    """Seconds of an optimizer step at the recipe's batch size."""
    n = load_data(recipe, root).train.n
    size = min(recipe.batch_size, n)
    if size <= TIMED_BATCH:
        return _timed_steps(recipe, root, device)
    small, large = (_timed_steps(replace(recipe, batch_size=b), root, device) for b in (TIMED_BATCH // 4, TIMED_BATCH))
    slope = max(0.0, large - small) / (TIMED_BATCH - TIMED_BATCH // 4)
    return large + slope * (size - TIMED_BATCH)


def _timed_steps(recipe: Recipe, root: Path, device: torch.device | str) -> float:
    times: list[float] = []
    steps: Iterator[Training] = iter(())
    while len(times) < 25 and (len(times) < 3 or sum(times) < ENOUGH_SECONDS):
        began = time.perf_counter()
        if next(steps, None) is not None:
            times.append(time.perf_counter() - began)
            continue
        # At first, or where the pilot has diverged: its steps take as long as any, from the start again.
        steps = advance(_pilot(replace(recipe, steps=max(recipe.steps, 30)), root, device))
        for _ in range(3):  # the state before the first step, and two to warm up
            next(steps)
    return statistics.median(times)


def _together_seconds(recipe: Recipe, members: int, root: Path, device: torch.device | str) -> tuple[float, float]:
    """Seconds of a step, and of a look at the training set's loss, of one member of a population."""
    plain = replace(recipe, start=None, constraint=None, stop=None, steps=10**6, schedule=None)
    recipes = [replace(plain, seed=PILOT_SEED + i) for i in range(members)]
    pilot = population.begin(recipes, [load_data(r, root) for r in recipes], device=device)
    steps, looks, turns = [], [], population.advance(pilot)
    for _ in range(3):
        next(turns)
    while len(steps) < 25 and (len(steps) < 3 or sum(steps) < ENOUGH_SECONDS):
        began = time.perf_counter()
        if next(turns, None) is None:  # all have diverged: their steps took as long as any
            break
        steps.append(time.perf_counter() - began)
    for _ in range(2 if pilot.running else 0):
        began = time.perf_counter()
        population.evaluate(pilot, "train", accuracy=False)
        looks.append(time.perf_counter() - began)
    if not steps or not looks:
        alone = _step_seconds(recipe, root, device)
        return alone, alone
    return statistics.median(steps) / members, min(looks) / members


def _time_network(recipe: Recipe, measures: Sequence[Call], root: Path, device: torch.device | str) -> _Network:
    training = _pilot(recipe, root, device)
    data, model = training.data, training.model
    sets = [batches for batches in (data.train, data.valid, data.test) if batches is not None]
    per_sample = _seconds_per_sample(lambda part: evaluate(model, training.loss, part), data.train)

    def measure_all(part: Batches) -> None:
        for measure in measures:
            measure(snapshot(model, None, training.loss, {"train": part, "valid": None, "test": None}, 0, measure))

    return _Network(
        evaluate_train=per_sample(data.train.n),
        evaluate_all=per_sample(sum(batches.n for batches in sets)),
        measuring=_seconds_per_sample(measure_all, data.train)(data.train.n),
        parameters=sum(p.numel() * p.element_size() for p in model.parameters()),
        samples=data.train.n,
        data_bytes=sum(b.inputs.numel() * b.inputs.element_size() + b.targets.numel() * 8 for b in sets),
        sample_bytes=_saved_bytes(training, data.train),
        evaluation_batch=min(data.train.size, data.train.n),
    )


def _seconds_per_sample(work: Callable[[Batches], Any], batches: Batches) -> Callable[[int], float]:
    """Seconds as a function of the number of samples: a straight line through the last two sizes timed.

    Two sizes are timed however long they take: much of what a measure costs does not grow with the samples.
    """

    def timed(n: int) -> float:
        began = time.perf_counter()
        work(Batches(batches.inputs[:n], batches.targets[:n], batches.size))
        return time.perf_counter() - began

    n = min(FIRST_SAMPLES, batches.n)
    cold = timed(n)
    points = [(n, cold if cold > LONG_SECONDS else timed(n))]  # warming up matters little to what takes long
    if cold > 10 * LONG_SECONDS and n > 1:  # such as a plane of thousands of points: rather fewer than more
        points.insert(0, (n // 2, timed(n // 2)))
    while n < batches.n and (len(points) == 1 or sum(t for _, t in points) <= LONG_SECONDS):
        n = min((2 if points[-1][1] > LONG_SECONDS else 4) * n, batches.n)  # the costly grow slowly
        points.append((n, timed(n)))
    (n1, t1), (n2, t2) = points[-2] if len(points) > 1 else (0, 0.0), points[-1]
    slope = max(0.0, t2 - t1) / (n2 - n1)
    return lambda samples: max(0.0, t2 + slope * (samples - n2)) if samples >= n2 else t2 * samples / n2


def _saved_bytes(training: Training, batches: Batches) -> int:
    """Bytes that a forward pass keeps for the backward one, per sample."""
    seen: dict[int, int] = {}
    parameters = {p.data_ptr() for p in training.model.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in parameters:
            seen[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    n = min(8, batches.n)
    with evaluating(training.model), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        training.loss(training.model(batches.inputs[:n]), batches.targets[:n])
    return sum(seen.values()) // n


def _cost(recipe: Recipe, states: int, share: float, step: float, network: _Network) -> Cost:
    steps = max(1, round(recipe.steps * share))
    every = recipe.stop["every"] if recipe.stop else 1
    curve = sum(1 for s in curve_steps(recipe.steps, every) if s <= steps) + 1
    checks = steps / every if recipe.stop else 0
    training = steps * step + curve * network.evaluate_all + checks * network.evaluate_train
    batch = max(
        2 * min(recipe.batch_size, network.samples) * network.sample_bytes,
        math.ceil(DOUBLE_BACKWARD * network.evaluation_batch * network.sample_bytes),
    )
    memory = resting_memory() + 2 * network.data_bytes + batch + (8 + LANCZOS_VECTORS) * network.parameters
    return Cost(steps, training, states * network.measuring, memory)


def resting_memory() -> int:
    """Bytes of this process now: what a worker needs for Python and PyTorch alone."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 400 * 2**20


def wall_seconds(costs: Mapping[str, Cost], jobs: int, start: float = 6.0) -> float:
    """Seconds on the clock with ``jobs`` processes that each need ``start`` seconds to begin: longest run first."""
    loads = [start] * jobs
    for seconds in sorted((cost.seconds for cost in costs.values()), reverse=True):
        least = loads.index(min(loads))
        loads[least] += seconds
    return max(loads)


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(4.2), duration(95.0), duration(7300.0), duration(400000.0)
    ('4 s', '1 min 35 s', '2 h 1 min', '4 d 15 h')
    """
    whole = round(seconds)
    for unit, name, smaller, below in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit:
            return f"{whole // unit:,} {name} {whole % unit // smaller} {below}"
    return f"{whole} s"
