"""The training loop of many networks at once: `begin` a population, then iterate over `advance`."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from landscope.data import Data
from landscope.optimizers.updates import Update
from landscope.population.ascents import ASCENTS, direction, perturbed
from landscope.population.chain import Chain
from landscope.population.checks import check_members
from landscope.population.constraints import constrain_rows
from landscope.population.functional import NET, TERMS, Functional
from landscope.population.layers import layers_of
from landscope.population.layout import Layout
from landscope.population.lookout import Lookout
from landscope.population.pairs import Pairs
from landscope.population.samples import Samples
from landscope.population.settings import Settings
from landscope.population.structure import check_stackable, differing_settings, rule_of
from landscope.spec import Recipe, derive
from landscope.train import CHECK_DIVERGENCE, States, Training, diverge, draws
from landscope.train import begin as begin_alone

SETS = ("train", "valid", "test")


@dataclass(eq=False)
class Population:
    """Networks in training, as one program; row by row they are what each would be if trained alone.

    Args:
        members: Each network as a `Training` of its own: its recipe, step, status and, where the stopping rule was
            checked at this step, its training loss (where that may be the lowest so far). Its ``model`` serves for
            names, shapes and the constraint alone.
        running: The number of the member in each row of what follows.
        rows: All parameters, ``[rows, width]``.
        buffers: Buffers of networks and regularizers by name, ``[rows, ...]``.
        state: The optimizer's tensors by name, ``[rows, ...]``.
        layout: Where each parameter lies in its row.
        samples: The members' data.
        settings: The optimizer's settings, step by step.
        program: Computes gradients and losses of all rows.
        update: The optimizer's rule.
        ascent: Whether it follows the gradient at the worst point nearby (SAM, ASAM, GSAM).
        changed: The regularizers' settings that differ between the rows.
        step: Optimizer steps made.
        gradients: The gradients at the last step, ``[rows, width]``.
        events: The steps at which a member ends, and the intervals of their stopping rules.
        lookout: Spares the checks of the stopping rules whose outcome is known.
    """

    members: list[Training]
    running: list[int]
    rows: Tensor
    buffers: dict[str, Tensor]
    state: dict[str, Tensor]
    layout: Layout
    samples: Samples
    settings: Settings
    program: Pairs
    update: Update
    ascent: bool
    changed: list[dict[str, Tensor]]
    step: int = 0
    gradients: Tensor = field(default_factory=lambda: torch.zeros(0))
    events: tuple[frozenset[int], frozenset[int]] = (frozenset(), frozenset())
    lookout: Lookout = field(default_factory=Lookout)

    def row(self, member: int) -> int:
        """The row that a member is in.

        Raises:
            LookupError: where it is done or has diverged, or there is none of this number.
        """
        if not 0 <= member < len(self.members):
            raise LookupError(f"there is no member {member}: they are numbered from 0 to {len(self.members) - 1}")
        if member not in self.running:
            raise LookupError(f"member {member} is no longer in training: running are {self.running}")
        return self.running.index(member)


def begin(
    recipes: Sequence[Recipe],
    data: Sequence[Data],
    *,
    device: torch.device | str = "cpu",
    starts: Sequence[Mapping[str, Tensor] | None] | None = None,
    states: Sequence[States] | None = None,
) -> Population:
    """A population before its first step; the global random state is left as it was.

    Args:
        recipes: What to train: alike but for numbers and ``start``.
        data: The data sets of each.
        device: Where to train.
        starts: Initial states instead of the recipes' own, or None for each.
        states: For each the states of other runs that its settings name.

    Raises:
        ValueError: where the recipes cannot be stacked; the message names the field that differs or cannot be. Where
            there is not one data set, start or states for each recipe.
    """
    for what, given in (("data", data), ("starts", starts), ("states", states)):
        if given is not None and len(given) != len(recipes):
            raise ValueError(f"{what} has one entry for each of the {len(recipes)} recipes, not {len(given)}")
    rule = _rule(recipes)
    parts = zip(recipes, data, starts or [None] * len(recipes), states or [{}] * len(recipes), strict=True)
    members = [begin_alone(r, own, device=device, start=start, states=named) for r, own, start, named in parts]
    check_members(members)
    layout = Layout.of(members[0].model)
    rows = layout.stacked([dict(member.model.named_parameters()) for member in members])
    program = _program(members[0], layout, rows.device)
    prefix = program.prefix
    buffers = _stacked([_buffers(member, prefix) for member in members])
    return Population(
        members=members,
        running=list(range(len(members))),
        rows=rows,
        buffers=buffers,
        state={},
        layout=layout,
        samples=Samples(recipes, [member.data for member in members]),
        settings=settings_of(recipes, 0, rows.device),
        program=program,
        update=rule,
        ascent=recipes[0].optimizer.target in ASCENTS,
        changed=_changed(recipes, rows),
        gradients=torch.zeros_like(rows),
        events=(frozenset(r.steps for r in recipes), frozenset(r.stop["every"] for r in recipes if r.stop)),
    )


def _rule(recipes: Sequence[Recipe]) -> Update:
    check_stackable(recipes)
    rule = rule_of(recipes[0].optimizer)
    if rule is None:
        raise ValueError(f"{recipes[0].optimizer!r} has no update rule for stacked networks: train them alone")
    return rule


def _program(first: Training, layout: Layout, device: torch.device) -> Pairs:
    """Written-out layers where the network is a chain of them, torch.func for all else."""
    layers = layers_of(first.model, first.data.train.inputs.dim()) if not first.regularizers else None
    if layers is None:
        return Pairs(Functional(first.model, layout, first.loss, first.regularizers), NET)
    return Pairs(Chain(layers, layout, first.loss, device))


def _changed(recipes: Sequence[Recipe], rows: Tensor) -> list[dict[str, Tensor]]:
    """For each regularizer its settings that differ between the members, one value a row."""
    return [
        {name: torch.tensor(values, dtype=rows.dtype, device=rows.device) for name, values in settings.items()}
        for settings in differing_settings(recipes)
    ]


def settings_of(recipes: Sequence[Recipe], step: int, device: torch.device) -> Settings:
    """The settings of these recipes' optimizers from a step on."""
    return Settings([(r.optimizer, r.schedule) for r in recipes], [r.steps for r in recipes], step, device)


def _buffers(member: Training, prefix: str) -> dict[str, Tensor]:
    found = {f"{prefix}{name}": t for name, t in member.model.named_buffers()}
    for i, term in enumerate(member.regularizers):
        if isinstance(term, torch.nn.Module):
            found |= {f"{TERMS}{i}.{name}": t for name, t in term.named_buffers()}
    return found


def _stacked(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


def advance(population: Population) -> Iterator[Population]:
    """Yields the population as it stands, then after every step until no member is running.

    A member stops, by its own rule or its last step, or diverges, exactly as `train.advance` would have it; it still
    has its row when the population is yielded, and none at the next step.
    """
    for k in population.running:
        member = population.members[k]
        if member.step >= member.recipe.steps:
            member.status = "done"
    so_far = torch.zeros(len(population.running), dtype=population.rows.dtype, device=population.rows.device)
    yield population
    so_far = _left(population, so_far)
    while population.running:
        so_far += _take_step(population)
        population.step += 1
        _look_after(population, so_far)
        yield population
        so_far = _left(population, so_far)


@torch.no_grad()
def _take_step(population: Population) -> Tensor:
    """One optimizer step of all rows; their losses."""
    step, rows = population.step, population.rows
    batch = population.samples.batch(step)
    first = population.members[population.running[0]]
    more: dict[str, Any] = {}
    if first.recipe.augmentation is not None:
        batch = _augmented(population, batch)
    if first.regularizers:
        more = {"drawn": _drawn(population, batch), "changed": population.changed}
    settings, gradients = population.settings.at(step), population.gradients
    losses = population.program.gradient(rows, population.buffers, batch, gradients, **more)
    if population.ascent:  # the gradient that is followed is the one a little uphill
        away, first = perturbed(rows, gradients, settings, population.layout), gradients.clone()
        population.program.gradient(away, population.buffers, batch, gradients, update=False, **more)
        gradients = direction(first, gradients, settings)
    population.update(rows, gradients, population.state, step + 1, settings)
    _constrain(population)
    return losses


def _constrain(population: Population) -> None:
    running = [population.members[k] for k in population.running]
    if any(member.constraint is not None for member in running):
        views = population.layout.views(population.rows)
        constrain_rows(running, views, population.buffers, population.program.prefix)


def _augmented(population: Population, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Each member's batch, changed as its recipe says with draws of its own."""
    parts = []
    for k, inputs in zip(population.running, batch[0], strict=True):
        recipe = population.members[k].recipe
        generator = torch.Generator(inputs.device)
        generator.manual_seed(derive(recipe.seed, "augmentation", population.step))
        parts.append(recipe.augmentation(inputs, generator) if recipe.augmentation else inputs)
    return torch.stack(parts), batch[1]


def _drawn(population: Population, batch: tuple[Tensor, Tensor]) -> list[dict[str, Any]]:
    """What the regularizers are given at this step, stacked over the members."""
    each = []
    for k, x, y in zip(population.running, *batch, strict=True):
        member = population.members[k]
        each.append(draws(member.recipe, member.regularizers, member.model, (x, y), population.step))
    found: list[dict[str, Any]] = []
    for parts in zip(*each, strict=True):
        values = [part["drawn"] for part in parts if "drawn" in part]
        if not values:
            found.append({})
        elif isinstance(values[0], Tensor):
            found.append({"drawn": torch.stack(values)})
        else:
            found.append({"drawn": tuple(torch.stack(same) for same in zip(*values, strict=True))})
    return found


def _look_after(population: Population, so_far: Tensor) -> None:
    """Steps, stops and divergence of every member, as alone."""
    step = population.step
    members = [population.members[k] for k in population.running]
    for member in members:
        member.step, member.train_loss = step, None
        member.gradient_evaluations += 2 if population.ascent else 1
    looked = step % CHECK_DIVERGENCE == 0
    if not (looked or step in population.events[0] or any(step % every == 0 for every in population.events[1])):
        return
    ends = [row for row, member in enumerate(members) if member.recipe.steps == step]
    if looked or ends:
        sums = so_far.tolist()
        for row in range(len(members)) if looked else ends:
            if not math.isfinite(sums[row]):
                diverge(members[row])
        so_far[range(len(members)) if looked else ends] = 0
    running = [(row, k) for row, k in enumerate(population.running) if members[row].status == "running"]
    due = [(row, k, members[row].recipe.stop) for row, k in running]
    _check(population, [k for row, k, stop in due if stop and (step % stop["every"] == 0 or row in ends)])
    for row, member in enumerate(members):
        if row in ends and member.status == "running":
            member.status = "done"
        if member.status == "done" and not _finite(population, row):
            diverge(member)


def _check(population: Population, checked: Sequence[int]) -> None:
    """The stopping rules of these members."""
    may = population.lookout.may_be_lowest(population, checked)
    if not may:
        return
    each: list[Tensor] = []
    losses = evaluate(population, "train", may, accuracy=False, every=each)
    population.lookout.saw(population, {k: found["loss"] for k, found in losses.items()}, each)
    for k, found in losses.items():
        member = population.members[k]
        member.train_loss = found["loss"]
        if not math.isfinite(member.train_loss):
            diverge(member)
        elif member.recipe.stop is not None and member.recipe.stop(member.train_loss):
            member.status = "done"


def _finite(population: Population, row: int) -> bool:
    tensors = [population.rows, *(t for n, t in population.buffers.items() if not n.startswith(TERMS))]
    return all(bool(torch.isfinite(t[row]).all()) for t in tensors if t.is_floating_point())


def _left(population: Population, so_far: Tensor) -> Tensor:
    """Drop the rows of members that are no longer running."""
    keep = [row for row, k in enumerate(population.running) if population.members[k].status == "running"]
    if len(keep) == len(population.running):
        return so_far
    population.running = [population.running[row] for row in keep]
    population.rows = population.rows[keep]
    population.gradients = torch.zeros_like(population.rows)
    population.buffers = {name: t[keep] for name, t in population.buffers.items()}
    population.state = {name: t[keep] for name, t in population.state.items()}
    population.changed = [{name: t[keep] for name, t in settings.items()} for settings in population.changed]
    population.program.forget()
    if keep:
        population.samples.keep(keep)
        population.settings.keep(keep)
    return so_far[keep]


@torch.no_grad()
def evaluate(
    population: Population,
    name: str,
    members: Sequence[int] | None = None,
    *,
    accuracy: bool = True,
    every: list[Tensor] | None = None,
) -> dict[int, dict[str, float]]:
    """The mean loss of running members over a whole set in eval mode, and their accuracy, by member.

    Args:
        population: The population.
        name: train, valid or test.
        members: Which members; None for all that have a row.
        accuracy: Whether the accuracy is wanted, too; it needs targets that are class indices.
        every: Where the losses of the single samples go, ``[members, part of the set]`` each, if the program has them.

    Raises:
        LookupError: for a set that there is none of, or a member that has no row.
    """
    if name not in SETS or not population.samples.has(name):
        held = [known for known in SETS if population.samples.has(known)]
        raise LookupError(f"the members have no set {name!r}; they have {', '.join(held)}")
    wanted = population.running if members is None else list(members)
    at = [population.row(k) for k in wanted]
    whole = len(at) == len(population.running)
    rows = population.rows if whole else population.rows[at]
    buffers = population.buffers if whole else {n: t[at] for n, t in population.buffers.items()}
    total = torch.zeros(len(at), dtype=torch.float64, device=rows.device)
    right = torch.zeros(len(at), dtype=torch.long, device=rows.device)
    for batch in population.samples.looks(name, at):
        classes = accuracy and not batch[1].is_floating_point()
        losses, correct, each = population.program.evaluate(rows, buffers, batch, classes)
        total += losses
        if every is not None and each is not None:
            every.append(each)
        if correct is not None:
            right += correct
    n = population.samples.samples(name)
    found = {k: {"loss": value / n} for k, value in zip(wanted, total.tolist(), strict=True)}
    if accuracy and not getattr(population.members[0].data, name).targets.is_floating_point():
        for k, count in zip(wanted, right.tolist(), strict=True):
            found[k]["accuracy"] = count / n
    return found
