"""Runs that begin from other runs: what a recipe comes from, and in which order a chain of them is trained."""

from collections.abc import Iterable
from typing import Any

from landscope.spec.calls import At, Call, key
from landscope.spec.recipes import Recipe


def sources(recipe: Recipe) -> tuple[At, ...]:
    """The states of other runs that the settings of a recipe's parts name (`at`), each once."""
    parts = (recipe.start, recipe.constraint, *recipe.regularizers)
    return tuple(dict.fromkeys(state for part in parts if part for state in _named(part)))


def _named(value: Any) -> list[At]:
    if isinstance(value, At):
        return [value]
    inner = [setting for _, setting in value.kwargs] if isinstance(value, Call) else value
    return [state for item in inner for state in _named(item)] if isinstance(inner, (tuple, list)) else []


def lineage(recipes: Iterable[Recipe]) -> dict[str, tuple[Recipe, int]]:
    """The recipes and all that they come from, by key, each after what it comes from, with its place in its chain.

    The place is 0 for a recipe that needs no other run, else one more than the highest of what it comes from. A run
    that is named by its key alone is not part of it: its store has to have it.
    """
    found: dict[str, tuple[Recipe, int]] = {}

    def add(recipe: Recipe, name: str) -> int:
        if name not in found:
            before = [add(state.run, state.key) for state in sources(recipe) if isinstance(state.run, Recipe)]
            found[name] = recipe, 1 + max(before, default=-1)
        return found[name][1]

    for recipe in recipes:
        add(recipe, key(recipe))
    return found
