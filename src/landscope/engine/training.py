"""Training a run of the store: begun, resumed, observed, finished."""

import functools
import importlib.metadata
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

import landscope.store as store
from landscope.data import Data
from landscope.models import device_of
from landscope.spec import At, Call, Recipe, Step, key, sources
from landscope.train import CHECK_DIVERGENCE, Training, advance, begin, checkpoint, diverge, evaluate, restore, state_of
from landscope.types import Batches

CHECKPOINT_SECONDS = 120.0  # between mid-run checkpoints; it decides nothing about the results
CURVE_POINTS_PER_DECADE = 8
EVALUATION_NUMBERS = 2**20  # input numbers in an evaluation batch, which bounds its memory


@runtime_checkable
class Control(Protocol):
    """What a sweep gives its workers: a way to say how far they are, and the question whether to stop."""

    def report(self, status: Mapping[str, Any], /) -> None:
        """Say how far the task is: ``{"fraction": 0…1}``."""

    @property
    def stopping(self) -> bool:
        """Whether the sweep has been asked to stop: then checkpoint and return."""
        ...


class Interrupted(Exception):
    """The sweep asked to stop; what was done so far is in the store."""


def train_run(
    recipe: Recipe, steps: Sequence[Step], root: Path, device: torch.device, control: Control
) -> dict[str, Any]:
    """Train a run, keeping its state at the steps named, unless the store has them; returns the run's record.

    Raises:
        Interrupted: where the control asked to stop; the checkpoint is in the store.
    """
    run = store.write_spec(root, recipe)
    record = store.run_record(root, run)
    if record is not None and has_states(root, run, record, steps):
        return record
    if give_up(recipe, root, device):
        return read_back(root, run)
    started = time.perf_counter()
    training = begin(recipe, load_data(recipe, root), device=device, states=named_states(recipe, root))
    rows: list[dict[str, Any]] = []
    kept: dict[int, dict[str, Tensor]] = {}
    # A run that is done again because a state is missing keeps the states that it had, too.
    wanted = [*steps, *(record["states"] if record else ())]
    _resume(training, rows, kept, wanted, root, run)
    observe = observer(training, rows, kept, wanted)
    saved = time.perf_counter()
    for _ in advance(training):
        observe()
        if training.step % CHECK_DIVERGENCE == 0 and training.status == "running":
            control.report({"fraction": training.step / max(recipe.steps, 1)})
            if control.stopping or time.perf_counter() - saved > CHECKPOINT_SECONDS:
                _save(training, rows, kept, root, run)
                saved = time.perf_counter()
                if control.stopping:
                    raise Interrupted
    finish(training, rows, kept, root, time.perf_counter() - started, device)
    return read_back(root, run)


def finish(
    training: Training,
    rows: Sequence[Mapping[str, Any]],
    kept: Mapping[int, Mapping[str, Tensor]],
    root: Path,
    seconds: float,
    device: torch.device,
    **facts: Any,
) -> None:
    """Publish a run that is done or has diverged; ``facts`` go into the record of its environment."""
    store.finish_run(
        root,
        key(training.recipe),
        record={
            "status": training.status,
            "steps": training.step,
            "gradient_evaluations": training.gradient_evaluations,
            **({"reason": training.reason} if training.reason else {}),
        },
        history=rows,
        states=kept if training.status == "done" else {},
        environment=environment() | {"training_seconds": round(seconds, 3), "device": str(device)} | facts,
    )


def give_up(recipe: Recipe, root: Path, device: torch.device) -> bool:
    """Whether a run cannot begin because one that it comes from never had the state; it is recorded as diverged."""
    for state in sources(recipe):
        record = store.run_record(root, state.key)
        if record is not None and _step_of(state, record, root) is None:
            why = "diverged" if record["status"] == "diverged" else f"never came to the step {state.step!r}"
            reason = f"the run {state.key}, which it comes from, {why}"
            facts = {"status": "diverged", "steps": 0, "gradient_evaluations": 0, "reason": reason}
            where = environment() | {"training_seconds": 0.0, "device": str(device)}
            store.finish_run(root, key(recipe), record=facts, history=[], states={}, environment=where)
            return True
    return False


def _step_of(state: At, record: Mapping[str, Any], root: Path) -> int | None:
    """The step that is meant; None where the run diverged or never came there."""
    if record["status"] == "diverged":
        return None
    return store.resolve_step(state.step, record, store.history(root, state.key))


def read_back(root: Path, run: str) -> dict[str, Any]:
    """The record of a run that was just finished."""
    record = store.run_record(root, run)
    if record is None:
        raise RuntimeError(f"the record of {run} in {root} cannot be read back: is the disk failing?")
    return record


def has_states(root: Path, run: str, record: Mapping[str, Any], steps: Sequence[Step]) -> bool:
    """Whether a finished run has the states that are asked for (or can have none), all of them readable."""
    if record["status"] == "diverged":
        return True
    try:
        history = store.history(root, run)
        numbers = [store.resolve_step(step, record, history) for step in steps]
        wanted = {number for number in numbers if number is not None}
        if not wanted <= set(record["states"]):
            return False
        for step in sorted(wanted)[:1]:  # the states are one file, verified whole
            store.load_state(root, run, step)
    except store.Damaged:
        return False
    return True


def observer(
    training: Training,
    rows: list[dict[str, Any]],
    kept: dict[int, dict[str, Tensor]],
    wanted: Sequence[Step],
    state: Callable[[], dict[str, Tensor]] | None = None,
) -> Callable[..., None]:
    """A function that, called after every step, records the learning curve and keeps the states that are wanted.

    The stopping rule's checks are recorded where the training loss is lower than at every check before: that is
    enough to say at which check it first was below any level. The function takes the row of the learning curve where
    it has been computed already, and ``state`` gives the network's state where that is not in its model.
    """
    recipe = training.recipe
    curve, numbers = curve_of(recipe), numbered(wanted)
    levels = [step[1:] for step in wanted if isinstance(step, tuple)]
    lowest: dict[str, Any] = {}
    for row in rows:
        _lower(lowest, row)

    def observe(found: dict[str, float] | None = None) -> None:
        done, row = training.status == "done", {}
        if training.step in curve or done:
            row = _curve_row(training) if found is None else found
            if done and not math.isfinite(row["train_loss"]):
                diverge(training)
        elif training.train_loss is not None and training.train_loss < lowest.get("train_loss", math.inf):
            row = {"train_loss": training.train_loss}
        if row and (not rows or rows[-1]["step"] < training.step):
            rows.append({"step": training.step, "gradient_evaluations": training.gradient_evaluations} | row)
        crossed = any(name in row and row[name] < level <= lowest.get(name, math.inf) for name, level in levels)
        if crossed or training.step in numbers or (done and "end" in wanted):
            kept.setdefault(training.step, state() if state else state_of(training.model))
        _lower(lowest, row)

    return observe


def numbered(wanted: Sequence[Step]) -> set[int]:
    """The steps among those wanted that are known beforehand."""
    return {step for step in wanted if isinstance(step, int)} | ({0} if "start" in wanted else set())


def curve_of(recipe: Recipe) -> set[int]:
    """The steps of a run's learning curve."""
    return curve_steps(recipe.steps, recipe.stop["every"] if recipe.stop else 1)


def _lower(lowest: dict[str, Any], row: Mapping[str, Any]) -> None:
    for name, value in row.items():
        if value < lowest.get(name, math.inf):
            lowest[name] = value


def curve_steps(steps: int, every: int) -> set[int]:
    """Steps at equal ratios, the first and the last among them, as multiples of the stopping rule's interval."""
    count = math.ceil(CURVE_POINTS_PER_DECADE * math.log10(max(steps, 1))) + 1
    spaced = (10 ** (i / CURVE_POINTS_PER_DECADE) for i in range(count))
    return {0, steps} | {min(steps, math.ceil(x / every) * every) for x in spaced}


def _curve_row(training: Training) -> dict[str, float]:
    row: dict[str, float] = {}
    for name in ("train", "valid", "test"):
        batches: Batches | None = getattr(training.data, name)
        if batches is not None:
            score = evaluate(training.model, training.loss, batches)
            row |= {f"{name}_{kind}": value for kind, value in score.items()}
    return row


def _save(training: Training, rows: list[Any], kept: Mapping[int, Mapping[str, Tensor]], root: Path, run: str) -> None:
    save_partial(*checkpoint(training), rows, kept, root, run)


def save_partial(
    tensors: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    rows: list[Any],
    kept: Mapping[int, Mapping[str, Tensor]],
    root: Path,
    run: str,
) -> None:
    """Keep a checkpoint in the store with the rows and states that were recorded until then."""
    states = {f"kept/{step}/{name}": t for step, state in kept.items() for name, t in state.items()}
    store.save_partial(root, run, dict(tensors) | states, dict(meta) | {"rows": rows})


def load_partial(
    root: Path, run: str, wanted: Sequence[Step], executor: str
) -> tuple[dict[str, Tensor], dict[str, Any], dict[int, dict[str, Tensor]]] | None:
    """A run's checkpoint with the states recorded until then; None where there is none that can be gone on from.

    That is one that lacks a state that is wanted by now, or was made by another executor.
    """
    partial = store.load_partial(root, run)
    if partial is None or partial[1].get("executor", "solo") != executor:
        return None
    tensors, meta = partial
    found: dict[int, dict[str, Tensor]] = {}
    for name in [name for name in tensors if name.startswith("kept/")]:
        _, step, inner = name.split("/", 2)
        found.setdefault(int(step), {})[inner] = tensors.pop(name)
    passed = {"steps": meta["step"] - 1}
    needed = {store.resolve_step(step, passed, meta["rows"]) for step in wanted if step != "end"} - {None}
    return (tensors, meta, found) if needed <= set(found) else None


def _resume(
    training: Training,
    rows: list[dict[str, Any]],
    kept: dict[int, dict[str, Tensor]],
    wanted: Sequence[Step],
    root: Path,
    run: str,
) -> None:
    """Go on from the mid-run checkpoint, unless there is none or it lacks a state that is wanted by now."""
    partial = load_partial(root, run, wanted, "solo")
    if partial is not None:
        tensors, meta, found = partial
        device = device_of(training.model)
        restore(training, {name: t.to(device) for name, t in tensors.items()}, meta)
        rows.extend(meta["rows"])
        kept.update(found)


def named_states(recipe: Recipe, root: Path) -> dict[At, dict[str, Tensor]]:
    """The states of other runs that a recipe's settings name."""
    return {state: load_at(state, root) for state in sources(recipe)}


def load_at(state: At, root: Path) -> dict[str, Tensor]:
    """The parameters and buffers at a step of a finished run.

    Raises:
        LookupError: where the run is not finished, or never came to the step.
        store.Damaged: where the file is not what was written.
    """
    record = store.run_record(root, state.key)
    if record is None:
        raise LookupError(f"the run {state.key} is not finished in {root}: train it first")
    step = _step_of(state, record, root)
    if step is None:
        raise LookupError(f"the run {state.key} never came to the step {state.step!r}")
    return store.load_state(root, state.key, step)


@functools.lru_cache(maxsize=2)
def _load_data(data: Call, seed: int, root: Path) -> Data:
    return sized(data(seed, root / ".cache"))


def load_data(recipe: Recipe, root: Path) -> Data:
    """A recipe's data sets."""
    return _load_data(recipe.data, recipe.seed, root)


def evaluation_size(inputs: Tensor) -> int:
    """Samples in an evaluation batch: it follows from the size of one input alone."""
    return max(64, min(4096, EVALUATION_NUMBERS // max(1, inputs[0].numel())))


def sized(data: Data) -> Data:
    """The same data in evaluation batches whose size follows from the size of one input alone."""
    size = evaluation_size(data.train.inputs)
    train, valid, test = (b and Batches(b.inputs, b.targets, size) for b in (data.train, data.valid, data.test))
    return replace(data, train=train, valid=valid, test=test)


def environment() -> dict[str, Any]:
    """Versions, machine and date (UTC), for the record; nothing of it decides a result."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "numpy", "scipy", "scikit-learn")}
    return {
        "landscope": importlib.metadata.version("landscope"),
        "python": platform.python_version(),
        **versions,
        "system": platform.platform(),
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }
