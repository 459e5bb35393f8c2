"""The state of a population's members: as others want it, and with all that is needed to go on."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from landscope.population.training import Population, settings_of
from landscope.train import CHECK_DIVERGENCE, Training


def state_of(population: Population, member: int) -> dict[str, Tensor]:
    """A copy, on the CPU, of a running member's parameters and buffers, as its model's state_dict names them."""
    row = population.row(member)
    views = population.layout.views(population.rows[row : row + 1])
    prefix = population.program.prefix
    found: dict[str, Tensor] = {}
    for name in population.members[member].model.state_dict():
        held = views[name][0] if name in views else population.buffers[f"{prefix}{name}"][row]
        found[name] = held.to("cpu", copy=True)
    return found


def checkpoint(population: Population, member: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Everything needed to go on with a member bit for bit: tensors by name, and the rest as JSON values.

    Raises:
        ValueError: between two looks at the loss, where a resumed run could miss a divergence that this one sees.
    """
    if population.step % CHECK_DIVERGENCE:
        raise ValueError(f"a checkpoint is taken at a multiple of {CHECK_DIVERGENCE} steps, not at {population.step}")
    row = population.row(member)
    tensors = {"rows": population.rows[row].clone()}
    tensors |= {f"buffers/{name}": t[row].clone() for name, t in population.buffers.items()}
    tensors |= {f"state/{name}": t[row].clone() for name, t in population.state.items()}
    for i, term in _modules(population.members[member]):  # what its draws count is in the member's own
        tensors |= {f"terms/{i}/{name}": t.clone() for name, t in term.state_dict().items()}
    return tensors, {
        "step": population.step,
        "gradient_evaluations": population.members[member].gradient_evaluations,
        "executor": "population",
    }


def restore(population: Population, saved: Sequence[tuple[Mapping[str, Tensor], Mapping[str, Any]]]) -> None:
    """Put a population that was just begun to where `checkpoint` found each of its members, all at one step.

    Raises:
        ValueError: where the members are at different steps, or there is not one checkpoint for each.
    """
    if len(saved) != len(population.members):
        raise ValueError(f"{len(population.members)} members need a checkpoint each, and {len(saved)} are given")
    steps = {meta["step"] for _, meta in saved}
    if len(steps) != 1:
        raise ValueError(f"members go on together from one step, not from {sorted(steps)}")
    (population.step,) = steps
    population.rows = torch.stack([tensors["rows"] for tensors, _ in saved]).to(population.rows)
    for kind, held in (("buffers/", population.buffers), ("state/", population.state)):
        for name in [n.removeprefix(kind) for n in saved[0][0] if n.startswith(kind)]:
            held[name] = torch.stack([tensors[f"{kind}{name}"] for tensors, _ in saved]).to(population.rows.device)
    for member, (tensors, meta) in zip(population.members, saved, strict=True):
        member.step, member.gradient_evaluations = meta["step"], meta["gradient_evaluations"]
        for i, term in _modules(member):
            term.load_state_dict({name: tensors[f"terms/{i}/{name}"] for name in term.state_dict()})
    recipes = [member.recipe for member in population.members]
    population.settings = settings_of(recipes, population.step, population.rows.device)


def _modules(member: Training) -> list[tuple[int, nn.Module]]:
    """The member's regularizers that have a state, each with its place."""
    return [(i, term) for i, term in enumerate(member.regularizers) if isinstance(term, nn.Module)]
