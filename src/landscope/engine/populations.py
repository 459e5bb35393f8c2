"""Training runs of the store together: each leaves what it would leave if it were trained alone."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import landscope.engine.training as alone
import landscope.store as store
from landscope.engine.training import Control, Interrupted
from landscope.population import Population, advance, begin, checkpoint, evaluate, restore, state_of
from landscope.spec import Recipe, Step, key
from landscope.train import CHECK_DIVERGENCE


@dataclass
class _Member:
    """A run on its way into the store."""

    recipe: Recipe
    wanted: Sequence[Step]
    rows: list[dict[str, Any]] = field(default_factory=list)
    kept: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    partial: tuple[dict[str, Tensor], dict[str, Any]] | None = None

    @property
    def step(self) -> int:
        """Where it goes on."""
        return self.partial[1]["step"] if self.partial else 0


def train_runs(
    runs: Sequence[tuple[Recipe, Sequence[Step]]], root: Path, device: torch.device, control: Control
) -> list[dict[str, Any]]:
    """Train runs together, keeping their states at the steps named, unless the store has them; their records.

    Args:
        runs: Recipes that can be stacked, each with the steps whose states are wanted.
        root: The store.
        device: Where to train.
        control: See `Control`.

    Raises:
        Interrupted: where the control asked to stop; the checkpoints are in the store.
    """
    missing = [member for recipe, steps in runs if (member := _begun(recipe, steps, root, device)) is not None]
    cohorts: dict[int, list[_Member]] = {}
    for member in missing:  # an interruption between two members' checkpoints leaves them at different steps
        cohorts.setdefault(member.step, []).append(member)
    before = len(runs) - len(missing)
    for _, members in sorted(cohorts.items()):
        n = len(members)
        _train(members, root, device, control, lambda share, b=before, n=n: (b + share * n) / len(runs))
        before += n
    return [alone.read_back(root, key(recipe)) for recipe, _ in runs]


def _begun(recipe: Recipe, steps: Sequence[Step], root: Path, device: torch.device) -> _Member | None:
    """A run with what the store has of it; None where that is all."""
    run = store.write_spec(root, recipe)
    record = store.run_record(root, run)
    if record is not None and alone.has_states(root, run, record, steps):
        return None
    if alone.give_up(recipe, root, device):
        return None
    member = _Member(recipe, [*steps, *(record["states"] if record else ())])
    partial = alone.load_partial(root, run, member.wanted, "population")
    if partial is not None and partial[1]["step"] > 0:  # from the very beginning it goes as well without
        tensors, meta, member.kept = partial
        member.partial, member.rows = (tensors, meta), list(meta["rows"])
    return member


def _train(
    members: Sequence[_Member], root: Path, device: torch.device, control: Control, share: Callable[[float], float]
) -> None:
    started = time.perf_counter()
    recipes = [member.recipe for member in members]
    sets = {(recipe.data, recipe.seed): recipe for recipe in recipes}
    held = {which: alone.load_data(recipe, root) for which, recipe in sets.items()}  # each once, whatever the order
    data = [held[recipe.data, recipe.seed] for recipe in recipes]
    states = [alone.named_states(recipe, root) for recipe in recipes]
    population = begin(recipes, data, device=device, states=states)
    if members[0].partial is not None:
        restore(population, [member.partial for member in members if member.partial is not None])
    observers = [
        alone.observer(population.members[k], m.rows, m.kept, m.wanted, lambda k=k: state_of(population, k))
        for k, m in enumerate(members)
    ]
    curves = [alone.curve_of(recipe) for recipe in recipes]
    looks = set[int]().union(*curves, *(alone.numbered(member.wanted) for member in members))
    total = sum(max(recipe.steps, 1) for recipe in recipes)
    saved = time.perf_counter()
    for _ in advance(population):
        running = [population.members[k] for k in population.running]
        if population.step in looks or any(t.train_loss is not None or t.status != "running" for t in running):
            _observe(population, curves, observers)
            for k in population.running:
                training = population.members[k]
                if training.status != "running":
                    seconds = (time.perf_counter() - started) / len(members)
                    m = members[k]
                    alone.finish(training, m.rows, m.kept, root, seconds, device, executor="population")
        if population.step % CHECK_DIVERGENCE == 0:
            steps = (t.step if t.status == "running" else max(t.recipe.steps, 1) for t in population.members)
            control.report({"fraction": share(sum(steps) / total)})
            if control.stopping or time.perf_counter() - saved > alone.CHECKPOINT_SECONDS:
                _save(population, members, root)
                saved = time.perf_counter()
                if control.stopping:
                    raise Interrupted


def _observe(population: Population, curves: Sequence[set[int]], observers: Sequence[Callable[..., None]]) -> None:
    """Record what is to be recorded at this step; the learning curves are computed for all members at once."""
    step, members = population.step, population.members
    wanted = [k for k in population.running if step in curves[k] or members[k].status == "done"]
    found: dict[int, dict[str, float]] = {k: {} for k in wanted}
    for name in ("train", "valid", "test") if wanted else ():
        if population.samples.has(name):
            for k, score in evaluate(population, name, wanted).items():
                found[k] |= {f"{name}_{kind}": value for kind, value in score.items()}
    for k in population.running:
        observers[k](found.get(k))


def _save(population: Population, members: Sequence[_Member], root: Path) -> None:
    for k in population.running:
        if population.members[k].status == "running":
            member = members[k]
            alone.save_partial(*checkpoint(population, k), member.rows, member.kept, root, key(member.recipe))
