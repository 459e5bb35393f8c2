"""What a sweep's workers call, and what they are given."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import landscope.store as store
from landscope.engine.measuring import measure_cell, missing
from landscope.engine.populations import train_runs
from landscope.engine.training import Control, Interrupted, has_states, train_run
from landscope.spec import Call, Recipe, Step, at, canonical, from_canonical, key


def payload(
    recipe: Recipe, steps: Iterable[Step], measures: Sequence[Call], device: str = "cpu", kept: Iterable[Step] = ()
) -> dict[str, Any]:
    """What `work` needs to know, as JSON values; the states at the steps ``kept`` are what other runs come from."""
    more = [canonical(step) for step in dict.fromkeys(kept)]
    return ({"kept": more} if more else {}) | {
        "recipe": canonical(recipe),
        "steps": [canonical(step) for step in dict.fromkeys(steps)],
        "measures": [canonical(measure) for measure in measures],
        "device": device,
    }


def together(payloads: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The payload of runs that are trained as one population."""
    return {"members": [dict(payload) for payload in payloads], "device": payloads[0]["device"]}


def _read(task: Mapping[str, Any]) -> tuple[Recipe, tuple[Step, ...], tuple[Call, ...], tuple[Step, ...]]:
    lists = (task["steps"], task["measures"], task.get("kept", ()))
    steps, measures, kept = (tuple(from_canonical(item) for item in items) for items in lists)
    return from_canonical(task["recipe"]), steps, measures, kept


def work(task: Mapping[str, Any], root: str, control: Control) -> dict[str, Any]:
    """Train a run, or a population of them, unless it is finished, and measure on it what is missing.

    Args:
        task: As `payload` or `together` gives it.
        root: The store.
        control: See `Control`.

    Returns:
        ``{"status": "done" or "diverged" (all of it), "steps": the most made, "diverged": how many runs}``, or
        ``{"stopped": True}`` where the sweep asked to stop.
    """
    place, device = Path(root), torch.device(task["device"])
    if device.type == "cpu":
        torch.set_num_threads(1)
    parts = [_read(member) for member in task.get("members", [task])]
    try:
        if "members" in task:
            records = train_runs([(r, [*steps, *kept]) for r, steps, _, kept in parts], place, device, control)
        else:
            recipe, steps, _, kept = parts[0]
            records = [train_run(recipe, [*steps, *kept], place, device, control)]
    except Interrupted:
        return {"stopped": True}
    for recipe, steps, measures, _ in parts:
        for step in steps:
            if control.stopping:
                return {"stopped": True}
            measure_cell(at(recipe, step), measures, place, device)
    diverged = sum(record["status"] == "diverged" for record in records)
    status = "diverged" if diverged == len(records) else "done"
    return {"status": status, "steps": max(record["steps"] for record in records), "diverged": diverged}


def finished(task: Mapping[str, Any], root: Path) -> bool:
    """Whether everything that a task is for lies in the store, undamaged."""
    if "members" in task:
        return all(finished(member, root) for member in task["members"])
    recipe, steps, measures, kept = _read(task)
    record = store.run_record(root, key(recipe))
    if record is None or (kept and not has_states(root, key(recipe), record, kept)):
        return False
    return not any(missing(root, at(recipe, step), measures) for step in steps)
