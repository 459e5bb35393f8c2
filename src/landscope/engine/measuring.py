"""Measuring: a state of a run, or a network of the user's own."""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import landscope.measures as all_measures
import landscope.store as store
from landscope.engine.training import evaluation_size, load_at, load_data, named_states
from landscope.engine.trying import tried
from landscope.losses import check_additive, check_mean, check_targets
from landscope.models import evaluating, seeded
from landscope.spec import At, Call, Cell, Recipe, call, derive, key
from landscope.train import begin, state_of
from landscope.types import Batches, Estimate, Snapshot, Table


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


def measure_cell(state: At, measures: Sequence[Call], root: Path, device: torch.device) -> None:
    """Measure on a state what it lacks, and publish the values as one cell."""
    todo = missing(root, state, measures)
    if not todo:
        return
    recipe = state.run if isinstance(state.run, Recipe) else store.read_spec(root, state.run)
    data = load_data(recipe, root)
    fresh = begin(recipe, data, device=device, states=named_states(recipe, root))
    initial = state_of(fresh.model)
    fresh.model.load_state_dict(load_at(state, root))
    record = store.run_record(root, state.key)
    step = store.resolve_step(state.step, record or {}, store.history(root, state.key))
    values = {
        key(measure): taken(measure, snapshot(fresh.model, initial, fresh.loss, vars(fresh.data), step or 0, measure))
        for measure in todo
    }
    store.write_values(root, Cell(state, todo), values)


def taken(measure: Callable[[Snapshot], Mapping[str, Any]], of: Snapshot) -> Mapping[str, Any]:
    """What a measure returns on a snapshot, with PyTorch's global generators seeded by the snapshot's seed."""
    with seeded(of.seed):  # a network that draws random numbers of its own meets the same ones every time
        return measure(of)


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
        train: The training set: a pair of tensors (inputs, targets), `Batches`, or an iterable of such pairs, whose
            size is then the size of the batches measured with.
        valid: The validation set, or None.
        test: The test set, or None.
        measures: Names of measures (``landscope list`` has them) or of topics, or Calls with settings; None: all.

    Returns:
        A Table with the columns measure, name, value, sem and n (None where no error is known); arrays have one row
        an element, named ``name[i]``. `measured` gives the values themselves.

    Raises:
        LookupError: for a measure that does not exist; the message suggests the nearest name.
        ValueError: for data that are empty or not finite, a loss that is not a plain mean, or no measures at all.
    """
    values = measured(model, loss, train=train, valid=valid, test=test, measures=measures)
    return Table.of(row for name, part in values.items() for item in part.items() for row in value_rows(name, *item))


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
    chosen = sorted(all_measures.names()) if measures is None else [measures] if isinstance(measures, str) else measures
    if not chosen:
        raise ValueError(
            "there is nothing to measure: give the name of at least one measure (landscope list), or None for all"
        )
    calls = [one for m in chosen for one in ([m] if isinstance(m, Call) else find_measures([m]))]
    values: dict[str, Mapping[str, Any]] = {}
    with evaluating(model), seeded(0):  # reading a DataLoader draws random numbers
        sets = in_memory(train=train, valid=valid, test=test)
        check_loss(model, loss, sets)
        for one in calls:
            if on_measure is not None:
                on_measure(one.name)
            name = repr(one) if one.name in values else one.name
            values[name] = taken(one, snapshot(model, None, loss, sets, 0, one))
    return values


def in_memory(**sets: Any) -> dict[str, Batches | None]:
    """A user's data sets by name as batches in memory, checked; None stays None. See `measure` for what they may be."""
    return {name: None if part is None else _batches(part, name) for name, part in sets.items()}


def check_loss(model: nn.Module, loss: Any, sets: Mapping[str, Batches | None]) -> None:
    """Refuse a loss that is not the plain mean over the samples of these data; the model is in eval mode.

    Raises:
        ValueError: where it is not, where network, loss and data do not fit, or where there are no training data.
    """
    for batches in sets.values():
        if batches is not None:
            check_targets(loss, batches.targets)
    if sets["train"] is None:
        raise ValueError("there are no training data: give train=(inputs, targets)")
    found = {name: tried(model, loss, part, name) for name, part in sets.items() if part is not None}
    check_additive(loss, *found["train"])


def find_measures(names: Iterable[str]) -> list[Call]:
    """The measures of these names with their default settings, each once; a topic's name means all of its file's.

    Raises:
        LookupError: where there is none; the message suggests the nearest.
    """
    return [find_measure(name) for name in all_measures.expanded(names)]


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
    expected = f"the {name} data are a pair of tensors (inputs, targets), or an iterable of such pairs"
    if isinstance(data, Batches):
        batches = data
    elif _is_pair(data):
        batches = Batches(*data, size=evaluation_size(data[0]) if len(data[0]) else 1)
    elif isinstance(data, Iterable):
        parts = list(data)
        if not parts:
            raise ValueError(f"the {name} data are empty: at least one sample is needed")
        wrong = next((part for part in parts if not _is_pair(part)), None)
        if wrong is not None:
            raise TypeError(f"{expected}, not of {type(wrong).__name__} (torch.as_tensor makes tensors of arrays)")
        size = max(1, *(len(x) for x, _ in parts))
        batches = Batches(torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts]), size)
    else:
        raise TypeError(f"{expected}, not {type(data).__name__}")
    for what, tensor in (("inputs", batches.inputs), ("targets", batches.targets)):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            row = int((~torch.isfinite(tensor)).reshape(len(tensor), -1).any(1).nonzero()[0])
            raise ValueError(f"the {name} {what} hold NaN or infinity, first in row {row}: clean the data first")
    return batches


def _is_pair(data: Any) -> bool:
    return isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)


def value_rows(measure: str, name: str, value: Any) -> list[dict[str, Any]]:
    """One measured value as rows of measure, name, value, sem and n (None where exact); an array has one an element."""
    if isinstance(value, Tensor) and value.dim():
        flat = [float(x) for x in value.reshape(-1)]
        return [{"measure": measure, "name": f"{name}[{i}]", "value": x} for i, x in enumerate(flat)]
    estimate = value if isinstance(value, Estimate) else Estimate(float(value))
    error = {"sem": estimate.sem, "n": estimate.n} if estimate.sem else {"sem": None, "n": None}
    return [{"measure": measure, "name": name, "value": estimate.mean, **error}]
