"""A run's state: as others want it, and with all that is needed to go on."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from landscope.train.beginning import Training
from landscope.train.loop import CHECK_DIVERGENCE


def checkpoint(training: Training) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Everything needed to go on bit for bit: tensors by name, and the rest as JSON values.

    The order of the batches and all random draws are functions of the recipe and the step, so no generator's state
    is part of it.

    Raises:
        ValueError: between two looks at the loss, where a resumed run could miss a divergence that this one sees.
    """
    if training.step % CHECK_DIVERGENCE:
        raise ValueError(f"a checkpoint is taken at a multiple of {CHECK_DIVERGENCE} steps, not at {training.step}")
    tensors: dict[str, Tensor] = {}
    schedule = training.schedule.state_dict() if training.schedule is not None else None
    meta = {
        "step": training.step,
        "gradient_evaluations": training.gradient_evaluations,
        "optimizer": _packed(training.optimizer.state_dict(), tensors),
        "schedule": _packed(schedule, tensors),
    }
    tensors |= {f"model/{name}": t.detach().clone() for name, t in training.model.state_dict().items()}
    for i, term in enumerate(training.regularizers):
        if isinstance(term, nn.Module):
            tensors |= {f"term/{i}/{name}": t.detach().clone() for name, t in term.state_dict().items()}
    return tensors, meta


def restore(training: Training, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Put a run that was just begun back to where `checkpoint` found it."""
    training.model.load_state_dict(_named(tensors, "model/"))
    for i, term in enumerate(training.regularizers):
        if isinstance(term, nn.Module):
            term.load_state_dict(_named(tensors, f"term/{i}/"))
    training.optimizer.load_state_dict(_unpacked(meta["optimizer"], tensors))
    if training.schedule is not None:
        training.schedule.load_state_dict(_unpacked(meta["schedule"], tensors))
    training.step, training.gradient_evaluations = meta["step"], meta["gradient_evaluations"]


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy, on the CPU, of a model's parameters and buffers."""
    return {name: t.detach().to("cpu", copy=True) for name, t in model.state_dict().items()}


def _packed(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """``tree`` as JSON values, its tensors set aside under numbered names."""
    if isinstance(tree, Tensor):
        name = f"tensor/{len(tensors)}"
        tensors[name] = tree.detach().clone()
        return {"tensor": name}
    if isinstance(tree, Mapping):
        return {"items": [[_packed(k, tensors), _packed(v, tensors)] for k, v in tree.items()]}
    if isinstance(tree, (list, tuple)):
        return {type(tree).__name__: [_packed(item, tensors) for item in tree]}
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    raise TypeError(f"an optimizer's or schedule's state holds a {type(tree).__name__}, which no checkpoint can keep")


def _unpacked(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(tree, Mapping):
        return tree
    if "tensor" in tree:
        return tensors[tree["tensor"]].clone()
    if "items" in tree:
        return {_unpacked(k, tensors): _unpacked(v, tensors) for k, v in tree["items"]}
    ((kind, items),) = tree.items()
    return (list if kind == "list" else tuple)(_unpacked(item, tensors) for item in items)
