"""Which recipes can be trained as one program: those that differ in numbers alone."""

import functools
from collections.abc import Sequence
from typing import Any

import torch

from landscope.models import seeded
from landscope.optimizers.updates import UPDATES, Update
from landscope.population.ascents import ASCENTS
from landscope.spec import Call, Recipe, canonical_json, resolve

DATA_NUMBERS = ("label_noise",)  # any other number of a data set may decide its size


def structure(recipe: Recipe) -> dict[str, Any]:
    """What members of one population have in common: the recipe without what may differ, by field."""
    data = tuple((name, value) for name, value in recipe.data.kwargs if name not in DATA_NUMBERS)
    return {
        "data": Call(recipe.data.target, data, recipe.data.revision),
        "model": recipe.model,
        "loss": recipe.loss,
        "batch_size": recipe.batch_size,
        "optimizer": _numberless(recipe.optimizer),
        "regularizers": tuple(_numberless(term, free_settings(term)) for term in recipe.regularizers),
        "constraint": recipe.constraint and recipe.constraint.target,
        "augmentation": recipe.augmentation,
    }


def structure_key(recipe: Recipe) -> str:
    """The same as text: equal for recipes that can be members of one population."""
    return canonical_json({name: value for name, value in structure(recipe).items()})


def _numberless(call: Call, free: Sequence[str] | None = None) -> Call:
    """A call with its numbers (of the settings named, or all) replaced by their kind."""
    kept = tuple(
        (name, "number" if _number(value) and (free is None or name in free) else value) for name, value in call.kwargs
    )
    return Call(call.target, kept, call.revision)


def _number(value: Any) -> bool:
    if isinstance(value, tuple):
        return bool(value) and all(_number(part) for part in value)
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@functools.lru_cache(maxsize=4096)
def free_settings(term: Call) -> tuple[str, ...]:
    """The settings of a regularizer that may differ between the members; all else decides what is computed.

    They are named by an attribute ``stackable`` of the target or of the term that it makes; without one it is the
    strength alone.
    """
    declared = _declared(term)
    return declared if isinstance(declared, tuple) else ("strength",)


@functools.lru_cache(maxsize=4096)
def _declared(term: Call) -> Any:
    """What a regularizer says of stacking: names, False for never, or nothing (None)."""
    said = getattr(resolve(term.target), "stackable", None)
    if isinstance(said, tuple) or said is False:
        return said
    try:
        with seeded(0):
            said = getattr(term(), "stackable", None)
    except Exception:  # whatever it is, the run itself will say it
        return None
    return said if isinstance(said, tuple) or said is False else None


def check_stackable(recipes: Sequence[Recipe]) -> None:
    """Refuse recipes that are no population.

    Raises:
        ValueError: for none; where one differs from the first in a field other than numbers, which is named; or where
            a part of them cannot be stacked, which is named.
    """
    if not recipes:
        raise ValueError("a population has at least one member")
    first = structure(recipes[0])
    for i, recipe in enumerate(recipes):
        why = unstackable(recipe)
        if why is not None:
            raise ValueError(f"member {i} cannot be stacked: {why}; train it alone")
        for name, value in structure(recipe).items():
            if canonical_json(value) != canonical_json(first[name]):
                raise ValueError(
                    f"members 0 and {i} cannot be stacked: they differ in {name} "
                    f"({getattr(recipes[0], name)!r} and {getattr(recipe, name)!r}), and members may differ "
                    "in numbers (seeds, rates, strengths) and start alone"
                )


def unstackable(recipe: Recipe) -> str | None:
    """Why a recipe cannot be a member of any population, as far as it says itself; None where it can."""
    if recipe.optimizer.target in ASCENTS and dict(recipe.optimizer.kwargs).get("clip") is not None:
        return f"the optimizer {recipe.optimizer.name} clips gradients (clip=), for which stacked networks have no rule"
    if rule_of(recipe.optimizer) is None:
        return f"the optimizer {recipe.optimizer.name} has no update rule for stacked networks"
    for term in recipe.regularizers:
        if _declared(term) is False:
            return f"the regularizer {term.name} is not known to be safe to stack"
    return None


def rule_of(optimizer: Call) -> Update | None:
    """The rule of an optimizer's steps (for SAM and its like, of the base); None where there is none for stacks."""
    if optimizer.target not in ASCENTS or dict(optimizer.kwargs).get("clip") is not None:
        return UPDATES.get(optimizer.target)
    try:
        base = type(optimizer([torch.nn.Parameter(torch.zeros(1))]).base)
    except (TypeError, ValueError):  # the run itself will say what is wrong with it
        return None
    return UPDATES.get(f"{base.__module__}.{base.__qualname__}")


def differing_settings(recipes: Sequence[Recipe]) -> list[dict[str, list[float]]]:
    """For each regularizer, the settings whose numbers differ between the members."""
    found: list[dict[str, list[float]]] = []
    for terms in zip(*(recipe.regularizers for recipe in recipes), strict=True):
        settings = [dict(term.kwargs) for term in terms]
        names = [n for n in settings[0] if any(own[n] != settings[0][n] for own in settings)]
        found.append({name: [float(own[name]) for own in settings] for name in names})
    return found
