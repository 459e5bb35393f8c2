"""Which runs are trained together: decided from the recipes and the data's sizes alone, never from the clock."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from landscope.models import seeded
from landscope.population import alone_because, structure_key, unstackable
from landscope.spec import Recipe, key, lineage

# Stacking saves what each operation costs before it calculates. Above this many multiplications of a step's forward
# pass (parameters times samples in a batch) that is little, and two processes of single networks are as fast.
MOST_WORK = 10_000_000
MOST_MEMBERS = 64
MOST_NUMBERS = 2**18  # of parameters in a population: weights, gradients and momenta stay in a core's cache
MOST_INPUTS = 2**28  # of the members' own training inputs: a gigabyte, and as much again for them stacked
LEAST_MEMBERS = 8  # of the populations that are split to give every process one

_LAYERS_ALONE = (nn.modules.conv._ConvNd, nn.RNNBase, nn.SyncBatchNorm, nn.MultiheadAttention)


@dataclass(frozen=True)
class Sizes:
    """Of a data set.

    Args:
        shape: The shape of one input.
        outputs: Classes, or the dimension of a regression target.
        samples: Training samples at the most.
    """

    shape: tuple[int, ...]
    outputs: int
    samples: int


@dataclass(frozen=True)
class Group:
    """Recipes that are trained in the same way.

    Args:
        executor: "population" (as one program) or "solo" (one after another).
        recipes: Which; in a population they differ in numbers alone.
        parameters: Of each network; 0 where that is not known.
        why: Why they are trained alone, else "".
        inputs: Numbers in the training inputs that each has for its own; 0 where all share one data set.
    """

    executor: str
    recipes: tuple[Recipe, ...]
    parameters: int
    why: str = ""
    inputs: int = 0

    def to_json(self) -> dict[str, Any]:
        """For the plan: the executor, the runs' keys and the reason."""
        said = {"executor": self.executor, "runs": [key(recipe) for recipe in self.recipes]}
        return said | ({"why": self.why} if self.why else {})


def groups(recipes: Sequence[Recipe], sizes: Sizes) -> list[Group]:
    """The recipes and all that they come from, each once, in the groups that are trained in the same way.

    Runs that come from others are in groups of their own, after those of the others.

    A recipe's executor depends on that recipe and the sizes alone, so that more seeds or another order change none.
    """
    alike: dict[tuple[int, str], list[Recipe]] = {}
    for recipe, place in lineage(recipes).values():
        alike.setdefault((place, structure_key(recipe)), []).append(recipe)
    ordered = sorted(alike, key=lambda kind: kind[0])
    return [_group(tuple(alike[kind]), sizes) for kind in ordered]


def _group(recipes: tuple[Recipe, ...], sizes: Sizes) -> Group:
    recipe = recipes[0]
    why = unstackable(recipe)
    if why is not None:
        return Group("solo", recipes, 0, why)
    try:
        with seeded(0), torch.device("meta"):
            model = recipe.model(sizes.shape, sizes.outputs)
            terms = [term() for term in recipe.regularizers]
    except Exception as error:  # whatever it is, the run itself will say it
        why = f"no network can be made for the set's own inputs of shape {sizes.shape} ({type(error).__name__})"
        return Group("solo", recipes, 0, why)
    parameters = sum(p.numel() for p in model.parameters()) if isinstance(model, nn.Module) else 0
    work = parameters * min(recipe.batch_size, sizes.samples)
    why = _reason(recipe, model, terms)
    if why is None and work > MOST_WORK:
        why = f"{work:,} multiplications a step are too many for stacking to help"
    shared = len({(r.data, r.seed) for r in recipes}) == 1
    inputs = 0 if shared else math.prod(sizes.shape) * sizes.samples
    return Group("population" if why is None else "solo", recipes, parameters, why or "", inputs)


def _reason(recipe: Recipe, model: Any, terms: Sequence[Callable[..., Any]]) -> str | None:
    """Why a network is trained alone; None where nothing speaks against a population."""
    if not isinstance(model, nn.Module):
        return "its model gives no module"
    for name, layer in model.named_modules():
        kind = type(layer)
        if isinstance(layer, _LAYERS_ALONE):
            return f"{kind.__name__} ({name}) is as fast alone"
        if not kind.__module__.startswith(("torch.nn.", "landscope.")):
            return f"{kind.__name__} ({name}) is not known to be safe to stack"
    why = alone_because(model)
    if why is not None:
        return why
    parameters = list(model.parameters())
    if any(not p.requires_grad for p in parameters) or len({p.dtype for p in parameters}) != 1:
        return "some parameters are frozen or of another type"
    if not recipe.loss.target.startswith(("landscope.", "torch.")):
        return f"the loss {recipe.loss.name} is not known to be safe to stack"
    for part, term in zip(recipe.regularizers, terms, strict=True):
        if not part.target.startswith("landscope.") or getattr(term, "stackable", True) is False:
            return f"the regularizer {part.name} is not known to be safe to stack"
    return None


def split(group: Group, jobs: int, runs: int) -> list[tuple[Recipe, ...]]:
    """A group's recipes in the populations that processes are given; a solo group's one by one.

    How they are split changes no number: a member does not depend on the others. Runs that end together, and whose
    stopping rules are looked at together, stay together.

    Args:
        group: The group.
        jobs: Processes.
        runs: Runs to be done in all.
    """
    if group.executor == "solo":
        return [(recipe,) for recipe in group.recipes]
    fitting = MOST_NUMBERS // max(1, group.parameters), MOST_INPUTS // max(1, group.inputs)
    most = max(1, min(MOST_MEMBERS, *fitting))
    most = max(min(most, LEAST_MEMBERS), min(most, -(-runs // jobs)))
    ordered = sorted(group.recipes, key=lambda r: (r.stop["every"] if r.stop else 0, r.steps))
    parts = -(-len(ordered) // most)
    cuts = [len(ordered) * i // parts for i in range(parts + 1)]
    return [tuple(ordered[a:b]) for a, b in itertools.pairwise(cuts)]
