"""From a cell to its values: the only module that knows training, measuring and the store.

`work` is what a sweep's workers call: it trains one run unless that is done, then measures what is missing.
"""

import difflib
import functools
import importlib.metadata
import math
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import landscope.measures as all_measures
import landscope.store as store
from landscope.data import Data
from landscope.losses import check_mean
from landscope.spec import At, Call, Cell, Recipe, Step, at, call, canonical, derive, from_canonical, key
from landscope.train import CHECK_DIVERGENCE, Training, advance, begin, checkpoint, evaluate, restore, state_of
from landscope.types import Batches, Estimate, Snapshot, Table

CHECKPOINT_SECONDS = 120.0  # between mid-run checkpoints; it decides nothing about the results
CURVE_POINTS_PER_DECADE = 8
EVALUATION_NUMBERS = 2**20  # input numbers in an evaluation batch, which bounds its memory


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


# --- the work of a sweep -------------------------------------------------------------------------------------------


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


def missing(root: Path, state: At, measures: Sequence[Call]) -> tuple[Call, ...]:
    """The measures that a state still lacks; none for a state that its run never came to."""
    run = state.key
    record = store.run_record(root, run)
    if record is None:
        return tuple(measures)
    if record["status"] == "diverged":
        return ()
    try:
        history = store.history(root, run)
    except store.Damaged:
        return tuple(measures)
    if store.resolve_step(state.step, record, history) is None:
        return ()
    found = store.values(root, run)
    return tuple(measure for measure in measures if (state.step, key(measure)) not in found)


# --- training ------------------------------------------------------------------------------------------------------


def train_run(
    recipe: Recipe, steps: Sequence[Step], root: Path, device: torch.device, control: Control
) -> dict[str, Any]:
    """Train a run, keeping its state at the steps named, unless the store has them; returns the run's record.

    Raises:
        Interrupted: where the control asked to stop; the checkpoint is in the store.
    """
    run = store.write_spec(root, recipe)
    record = store.run_record(root, run)
    if record is not None and _kept(root, run, record, steps):
        return record
    started = time.perf_counter()
    training = begin(recipe, load_data(recipe, root), device=device, start=_start_state(recipe, root))
    rows: list[dict[str, Any]] = []
    kept: dict[int, dict[str, Tensor]] = {}
    _resume(training, rows, kept, root, run, device)
    # A run that is done again because a state is missing keeps the states that it had, too.
    wanted = [*steps, *(record["states"] if record else ())]
    observe = _observer(training, rows, kept, wanted)
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
    seconds = time.perf_counter() - started
    store.finish_run(
        root,
        run,
        record={
            "status": training.status,
            "steps": training.step,
            "gradient_evaluations": training.gradient_evaluations,
            **({"reason": training.reason} if training.reason else {}),
        },
        history=rows,
        states=kept if training.status == "done" else {},
        environment=environment() | {"training_seconds": round(seconds, 3), "device": str(device)},
    )
    finished_record = store.run_record(root, run)
    if finished_record is None:
        raise RuntimeError(f"the record of {run} in {root} cannot be read back: is the disk failing?")
    return finished_record


def _kept(root: Path, run: str, record: Mapping[str, Any], steps: Sequence[Step]) -> bool:
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


def _observer(
    training: Training, rows: list[dict[str, Any]], kept: dict[int, dict[str, Tensor]], wanted: Sequence[Step]
) -> Callable[[], None]:
    """A function that, called after every step, records the learning curve and keeps the states that are wanted.

    The stopping rule's checks are recorded where the training loss is lower than at every check before: that is
    enough to say at which check it first was below any level.
    """
    recipe = training.recipe
    every = recipe.stop["every"] if recipe.stop else 1
    curve = curve_steps(recipe.steps, every)
    numbers = {0 if step == "start" else step for step in wanted if isinstance(step, int) or step == "start"}
    levels = {step[2] for step in wanted if isinstance(step, tuple)}
    lowest = min((row["train_loss"] for row in rows if "train_loss" in row), default=math.inf)

    def observe() -> None:
        nonlocal lowest
        done, checked, row = training.status == "done", training.train_loss, None
        if training.step in curve or done:
            row = _curve_row(training)
            checked = row["train_loss"]
        elif checked is not None and checked < lowest:
            row = {"step": training.step, "train_loss": checked, "gradient_evaluations": training.gradient_evaluations}
        if row is not None and (not rows or rows[-1]["step"] < training.step):
            rows.append(row)
        crossed = checked is not None and any(checked < level <= lowest for level in levels)
        if crossed or training.step in numbers or (done and "end" in wanted):
            kept.setdefault(training.step, state_of(training.model))
        if checked is not None:
            lowest = min(lowest, checked)

    return observe


def curve_steps(steps: int, every: int) -> set[int]:
    """Steps at equal ratios, the first and the last among them, as multiples of the stopping rule's interval."""
    count = math.ceil(CURVE_POINTS_PER_DECADE * math.log10(max(steps, 1))) + 1
    spaced = (10 ** (i / CURVE_POINTS_PER_DECADE) for i in range(count))
    return {0, steps} | {min(steps, math.ceil(x / every) * every) for x in spaced}


def _curve_row(training: Training) -> dict[str, Any]:
    row: dict[str, Any] = {"step": training.step, "gradient_evaluations": training.gradient_evaluations}
    for name in ("train", "valid", "test"):
        batches: Batches | None = getattr(training.data, name)
        if batches is not None:
            score = evaluate(training.model, training.loss, batches)
            row |= {f"{name}_{kind}": value for kind, value in score.items()}
    return row


def _save(training: Training, rows: list[Any], kept: Mapping[int, Mapping[str, Tensor]], root: Path, run: str) -> None:
    tensors, meta = checkpoint(training)
    tensors |= {f"kept/{step}/{name}": t for step, state in kept.items() for name, t in state.items()}
    store.save_partial(root, run, tensors, meta | {"rows": rows})


def _resume(
    training: Training,
    rows: list[dict[str, Any]],
    kept: dict[int, dict[str, Tensor]],
    root: Path,
    run: str,
    device: torch.device,
) -> None:
    partial = store.load_partial(root, run)
    if partial is None:
        return
    tensors, meta = partial
    for name in [name for name in tensors if name.startswith("kept/")]:
        _, step, inner = name.split("/", 2)
        kept.setdefault(int(step), {})[inner] = tensors.pop(name)
    restore(training, {name: t.to(device) for name, t in tensors.items()}, meta)
    rows.extend(meta["rows"])


def _start_state(recipe: Recipe, root: Path) -> Mapping[str, Tensor] | None:
    """The initial state that a recipe asks for, computed from the states of the runs that its settings name."""
    if recipe.start is None:
        return None
    states = {name: load_at(value, root) for name, value in recipe.start.kwargs if isinstance(value, At)}
    return recipe.start.bind(**states)()


def load_at(state: At, root: Path) -> dict[str, Tensor]:
    """The parameters and buffers at a step of a finished run.

    Raises:
        LookupError: where the run is not finished, or never came to the step.
        store.Damaged: where the file is not what was written.
    """
    record = store.run_record(root, state.key)
    if record is None:
        raise LookupError(f"the run {state.key} is not finished in {root}: train it first")
    step = store.resolve_step(state.step, record, store.history(root, state.key))
    if step is None:
        raise LookupError(f"the run {state.key} never came to the step {state.step!r}")
    return store.load_state(root, state.key, step)


@functools.lru_cache(maxsize=2)
def _load_data(data: Call, seed: int, root: Path) -> Data:
    return sized(data(seed, root / ".cache"))


def load_data(recipe: Recipe, root: Path) -> Data:
    """A recipe's data sets."""
    return _load_data(recipe.data, recipe.seed, root)


def sized(data: Data) -> Data:
    """The same data in evaluation batches whose size follows from the size of one input alone."""
    size = max(64, min(4096, EVALUATION_NUMBERS // max(1, data.train.inputs[0].numel())))
    train, valid, test = (b and Batches(b.inputs, b.targets, size) for b in (data.train, data.valid, data.test))
    return replace(data, train=train, valid=valid, test=test)


# --- measuring -----------------------------------------------------------------------------------------------------


def measure_cell(state: At, measures: Sequence[Call], root: Path, device: torch.device) -> None:
    """Measure on a state what it lacks, and publish the values as one cell."""
    todo = missing(root, state, measures)
    if not todo:
        return
    recipe = state.run if isinstance(state.run, Recipe) else store.read_spec(root, state.run)
    data = load_data(recipe, root)
    fresh = begin(recipe, data, device=device, start=_start_state(recipe, root))
    start_state = state_of(fresh.model)
    fresh.model.load_state_dict(load_at(state, root))
    record = store.run_record(root, state.key)
    step = store.resolve_step(state.step, record or {}, store.history(root, state.key))
    values = {
        key(measure): measure(snapshot(fresh.model, start_state, fresh.loss, vars(fresh.data), step or 0, measure))
        for measure in todo
    }
    store.write_values(root, Cell(state, todo), values)


def snapshot(
    model: nn.Module,
    start_state: Mapping[str, Tensor] | None,
    loss: Any,
    sets: Mapping[str, Any],
    step: int,
    measure: Call,
) -> Snapshot:
    """What a measure looks at; the model is put into eval mode."""
    model.eval()
    train, valid, test = (sets[name] for name in ("train", "valid", "test"))
    # The seed follows from the measure alone, so that every network meets the same draws.
    seed = derive("measure", key(measure))
    return Snapshot(model, model.state_dict(), start_state, loss, train, valid, test, step, seed)


def measure(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    train: Any,
    valid: Any = None,
    test: Any = None,
    measures: Sequence[str | Call] | None = None,
) -> Table:
    """Measure a network of your own.

    Args:
        model: The network. Its mode, weights and buffers are afterwards as they were.
        loss: ``loss(outputs, targets)``, the mean over a batch.
        train: The training set: a pair of tensors (inputs, targets), `Batches`, or an iterable of such pairs.
        valid: The validation set, or None.
        test: The test set, or None.
        measures: Names (``landscope list`` has them) or Calls with settings; None: all, as they are.

    Returns:
        A Table with the columns measure, name, value, sem and n (None where the value is exact); arrays have one row
        an element, named ``name[i]``. `measured` gives the values themselves.

    Raises:
        LookupError: for a measure that does not exist; the message suggests the nearest name.
        ValueError: for data that are empty or not finite, or a loss that is not a plain mean.
    """
    values = measured(model, loss, train=train, valid=valid, test=test, measures=measures)
    return Table.of(row for name, part in values.items() for item in part.items() for row in _value_rows(name, *item))


def measured(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    train: Any,
    valid: Any = None,
    test: Any = None,
    measures: Sequence[str | Call] | None = None,
    on_measure: Callable[[str], None] | None = None,
) -> dict[str, Mapping[str, Any]]:
    """What `measure` measures, as the measures return it: by measure, floats, Estimates and tensors by name.

    ``on_measure`` is called with each measure's name before it starts; the other arguments are `measure`'s.
    """
    check_mean(loss)
    calls = [m if isinstance(m, Call) else find_measure(m) for m in measures or sorted(all_measures.names())]
    given = {"train": train, "valid": valid, "test": test}
    sets = {name: None if part is None else _batches(part, name) for name, part in given.items()}
    modes = [(module, module.training) for module in model.modules()]
    values: dict[str, Mapping[str, Any]] = {}
    try:
        for one in calls:
            if on_measure is not None:
                on_measure(one.name)
            values[repr(one) if one.name in values else one.name] = one(snapshot(model, None, loss, sets, 0, one))
    finally:
        for module, mode in modes:
            module.training = mode
    return values


def find_measure(name: str) -> Call:
    """The measure of that name with its default settings.

    Raises:
        LookupError: where there is none; the message suggests the nearest.
    """
    known = all_measures.names()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(known))}"
        raise LookupError(f"no measure is called {name!r}: {hint}")
    return call(getattr(all_measures, name))


def _batches(data: Any, name: str) -> Batches:
    """A user's data as batches in memory, checked."""
    if isinstance(data, Batches):
        batches = data
    else:
        pair = isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(x, Tensor) for x in data)
        parts = [data] if pair else [(x, y) for x, y in data]
        if not parts:
            raise ValueError(f"the {name} data are empty: at least one sample is needed")
        batches = Batches(torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts]))
    for what, tensor in (("inputs", batches.inputs), ("targets", batches.targets)):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            row = int((~torch.isfinite(tensor)).reshape(len(tensor), -1).any(1).nonzero()[0])
            raise ValueError(f"the {name} {what} hold NaN or infinity, first in row {row}: clean the data first")
    return batches


def _value_rows(measure: str, name: str, value: Any) -> list[dict[str, Any]]:
    if isinstance(value, Tensor) and value.dim():
        flat = [float(x) for x in value.reshape(-1)]
        return [{"measure": measure, "name": f"{name}[{i}]", "value": x} for i, x in enumerate(flat)]
    estimate = value if isinstance(value, Estimate) else Estimate(float(value))
    error = {"sem": estimate.sem, "n": estimate.n} if estimate.sem else {"sem": None, "n": None}
    return [{"measure": measure, "name": name, "value": estimate.mean, **error}]


def environment() -> dict[str, Any]:
    """Versions and machine, for the record; nothing of it decides a result."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "numpy", "scipy", "scikit-learn")}
    return {
        "landscope": importlib.metadata.version("landscope"),
        "python": platform.python_version(),
        **versions,
        "system": platform.platform(),
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
    }
