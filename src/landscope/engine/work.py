"""What a sweep's workers call, and what they are given."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from landscope.engine.measuring import measure_cell, missing
from landscope.engine.training import Control, Interrupted, train_run
from landscope.spec import Call, Recipe, Step, at, canonical, from_canonical


def payload(recipe: Recipe, steps: Iterable[Step], measures: Sequence[Call], device: str = "cpu") -> dict[str, Any]:
    """What `work` needs to know, as JSON values."""
    return {
        "recipe": canonical(recipe),
        "steps": [canonical(step) for step in dict.fromkeys(steps)],
        "measures": [canonical(measure) for measure in measures],
        "device": device,
    }


def _read(task: Mapping[str, Any]) -> tuple[Recipe, tuple[Step, ...], tuple[Call, ...]]:
    return (
        from_canonical(task["recipe"]),
        tuple(from_canonical(step) for step in task["steps"]),
        tuple(from_canonical(measure) for measure in task["measures"]),
    )


def work(task: Mapping[str, Any], root: str, control: Control) -> dict[str, Any]:
    """Train a run unless it is finished, and measure on it what is missing.

    Args:
        task: As `payload` gives it.
        root: The store.
        control: See `Control`.

    Returns:
        ``{"status": "done" or "diverged", "steps": …}``, or ``{"stopped": True}`` where the sweep asked to stop.
    """
    recipe, steps, measures = _read(task)
    place, device = Path(root), torch.device(task["device"])
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        record = train_run(recipe, steps, place, device, control)
    except Interrupted:
        return {"stopped": True}
    for step in steps:
        if control.stopping:
            return {"stopped": True}
        measure_cell(at(recipe, step), measures, place, device)
    return {"status": record["status"], "steps": record["steps"]}


def finished(task: Mapping[str, Any], root: Path) -> bool:
    """Whether everything that a task is for lies in the store, undamaged."""
    recipe, steps, measures = _read(task)
    return not any(missing(root, at(recipe, step), measures) for step in steps)
