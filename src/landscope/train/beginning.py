"""A run before its first step, made from its recipe."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from landscope.data import Data
from landscope.losses import Loss, check_mean
from landscope.models import seeded
from landscope.spec import At, Call, Recipe, derive, resolve, sources


@dataclass(eq=False)
class Training:
    """A run in progress.

    Args:
        recipe: What is being done.
        data: The run's data sets, on the device.
        model: The network, changed in place.
        loss: The training loss.
        optimizer: The optimizer.
        schedule: The learning-rate schedule, or None.
        regularizers: The terms added to the loss.
        constraint: What is applied to the model after every step, or None.
        step: Optimizer steps made.
        gradient_evaluations: Gradients of a batch computed (several a step for some optimizers).
        train_loss: The full training loss where the stopping rule was checked at this step, else None.
        status: "running", "done" or "diverged".
        reason: Why the run diverged, and what to try.
    """

    recipe: Recipe
    data: Data
    model: nn.Module
    loss: Loss
    optimizer: torch.optim.Optimizer
    schedule: Any
    regularizers: tuple[Callable[..., Tensor], ...] = ()
    constraint: Callable[[nn.Module], Any] | None = None
    step: int = 0
    gradient_evaluations: int = 0
    train_loss: float | None = None
    status: str = "running"
    reason: str = ""


States = Mapping[At, Mapping[str, Tensor]]


def begin(
    recipe: Recipe,
    data: Data,
    *,
    device: torch.device | str = "cpu",
    start: Mapping[str, Tensor] | None = None,
    states: States | None = None,
) -> Training:
    """A run before its first step; the global random state is left as it was.

    Args:
        recipe: What to train.
        data: Its data sets (``recipe.data(seed, cache)``).
        device: Where to train.
        start: Initial state instead of the recipe's own.
        states: The states of other runs that the recipe's settings name (`spec.sources`).

    Raises:
        LookupError: where a state that the recipe names is not given.
        TypeError: where the recipe's model does not give a module or its optimizer no optimizer.
    """
    with seeded(derive(recipe.seed, "initialisation")):
        model = recipe.model(tuple(data.train.inputs.shape[1:]), data.outputs)
    if not isinstance(model, nn.Module):
        raise TypeError(f"{recipe.model!r} gave {type(model).__name__}, not a torch.nn.Module")
    given = _on(device, recipe, states or {})
    if start is None and recipe.start is not None:
        start = _bound(recipe.start, given)()
    if start is not None:
        model.load_state_dict(start)
    model.to(device)
    loss = recipe.loss()
    check_mean(loss)
    whole = _takes_model(recipe.optimizer)
    optimizer = recipe.optimizer(model if whole else [p for p in model.parameters() if p.requires_grad])
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"{recipe.optimizer!r} gave {type(optimizer).__name__}, not a torch.optim.Optimizer")
    schedule = recipe.schedule(optimizer) if recipe.schedule else None
    terms = regularizers(recipe, device, given)
    constraint = _bound(recipe.constraint, given) if recipe.constraint else None
    training = Training(recipe, data.to(device), model, loss, optimizer, schedule, terms, constraint)
    constrain(training)
    return training


def _on(device: torch.device | str, recipe: Recipe, states: States) -> States:
    missing = [state for state in sources(recipe) if state not in states]
    if missing:
        raise LookupError(f"the recipe needs the state {missing[0].step!r} of the run {missing[0].key}: give states=")
    return {at: {name: t.to(device) for name, t in states[at].items()} for at in sources(recipe)}


def _bound(part: Call, states: States) -> Callable[..., Any]:
    """A part of a recipe with its settings, states of other runs among them."""
    return part.bind(**{name: states[value] for name, value in part.kwargs if isinstance(value, At)})


@torch.no_grad()
def constrain(training: Training) -> None:
    """Apply a run's constraint, if it has one, to its model."""
    if training.constraint is not None:
        training.constraint(training.model)


def regularizers(
    recipe: Recipe, device: torch.device | str = "cpu", states: States | None = None
) -> tuple[Callable[..., Tensor], ...]:
    """A recipe's regularizers, made: each is called as ``term(model, (inputs, targets))`` and gives a scalar.

    A term that has the keyword ``outputs`` is given the forward pass's outputs with their graph. One with a method
    ``draw(model, batch, generator)`` has its random draws made outside, from a generator of the recipe's seed, the
    term's place and the step, and is given them as ``drawn``. One that is a module is part of the run's checkpoints.

    Raises:
        TypeError: where a target does not give something that can be called.
    """
    made: list[Any] = []
    for i, part in enumerate(recipe.regularizers):
        with seeded(derive(recipe.seed, "regularizer", i)):
            term = _bound(part, states or {})()
        if not callable(term):
            raise TypeError(f"{part!r} gave {type(term).__name__}, not a term(model, batch) that can be called")
        made.append(term.to(device) if isinstance(term, nn.Module) else term)
    return tuple(made)


def draws(
    recipe: Recipe, terms: Sequence[Callable[..., Tensor]], model: nn.Module, batch: tuple[Tensor, Tensor], step: int
) -> list[dict[str, Any]]:
    """For each regularizer what it is given as ``drawn`` at a step; nothing for one that draws nothing."""
    found: list[dict[str, Any]] = [{} for _ in terms]
    for i, term in enumerate(terms):
        draw = getattr(term, "draw", None)
        if draw is not None:
            generator = torch.Generator(batch[0].device).manual_seed(derive(recipe.seed, "regularizer", i, step))
            found[i]["drawn"] = draw(model, batch, generator)
    return found


def takes_outputs(term: Callable[..., Any]) -> bool:
    """Whether a regularizer has the keyword ``outputs``."""
    of = inspect.signature(term.forward if isinstance(term, nn.Module) else term).parameters
    return "outputs" in of or any(p.kind is p.VAR_KEYWORD for p in of.values())


def _takes_model(optimizer: Call) -> bool:
    """Whether an optimizer's first run-time argument is the model instead of its parameters."""
    function = resolve(optimizer.target)
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return False
    return names[:1] == ["model"]
