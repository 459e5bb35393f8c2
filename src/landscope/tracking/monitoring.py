"""The monitor: when to measure, within which budget, and what is kept and logged of it."""

import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from landscope.curvature.restoring import bare, loader_kept, random_state_kept
from landscope.engine import check_loss, find_measure, in_memory, snapshot, taken, value_rows
from landscope.losses import check_mean
from landscope.models import device_of, seeded
from landscope.spec import Call
from landscope.tracking.restoring import Adapted, Forward, refuse_sharded, untouched
from landscope.train import state_of
from landscope.types import Batches, Snapshot, Table

Measure = str | Call | Callable[[Snapshot], Mapping[str, Any]]
Log = Callable[[dict[str, float], int], Any]

LARGEST_ARRAY = 32  # longer arrays are kept in the history and not logged: each element would be a chart of its own
COSTS_KEPT = 3  # the next measurement is expected to cost the most of the last few
_SUCH = {"log": "wandb.log", "forward": "lambda model, inputs: model.network(inputs)"}

_logger = logging.getLogger(__name__)


def monitor(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    train: Any,
    valid: Any = None,
    test: Any = None,
    measures: Measure | Sequence[Measure],
    every: int = 100,
    budget: float | None = 0.05,
    log: Log | None = None,
    forward: Forward | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> "Monitor":
    """Watch a network while a loop of your own trains it: call ``step()`` on what is returned after each step.

    Args:
        model: The network that is trained. Of a network wrapped by DistributedDataParallel or torch.compile the
            module inside is measured: in a distributed run call ``step()`` in one process.
        loss: ``loss(outputs, targets)``, the mean over a batch.
        train: What to measure on: a pair of tensors (inputs, targets), `Batches`, or an iterable of such pairs (a
            DataLoader). It is read once, now, and held in memory: give a part of a large training set.
        valid: The same for measures that look at a validation set.
        test: The same for measures that look at a test set.
        measures: Names (``landscope list`` has them), Calls with settings, or functions ``f(snapshot) -> {name:
            value}`` of your own.
        every: Steps from one measurement to the next.
        budget: The largest share of the training time (seconds measuring over seconds training) that measuring may
            take; what would exceed it is skipped and counted. None: no limit.
        log: ``log({name: value}, step)``, called after each measurement; see `Monitor.step` for the names.
        forward: ``forward(model, inputs) -> outputs`` where calling the model does not give the outputs.
        clock: Gives the time in seconds.

    Raises:
        LookupError: for a measure that does not exist; the message suggests the nearest name.
        ValueError: for data that are empty or not finite, a loss that is not a plain mean, a model whose parameters
            are spread over processes, or settings out of range.
        TypeError: for an ``every`` that is no whole number, or a ``log`` or ``forward`` that cannot be called.

    >>> from landscope.losses import squared_error
    >>> from landscope.models import mlp
    >>> network, data = mlp((3,), 1, widths=()), (torch.ones(8, 3), torch.ones(8, 1))
    >>> watch = monitor(network, squared_error(), train=data, measures="performance", every=2, budget=None)
    >>> for _ in range(4):
    ...     values = watch.step()
    >>> sorted(set(watch.history["step"])), list(values)[:1]
    ([2, 4], ['performance/train_loss'])
    """
    given = Settings(loss, train, valid, test, measures, every, budget, log, forward, clock)
    return Monitor(model, given)


class Settings:
    """What to measure, on what and how often: everything but the network, checked."""

    loss: Any
    log: Log | None
    forward: Forward | None
    clock: Callable[[], float]
    every: int
    budget: float | None
    measures: dict[str, Callable[[Snapshot], Mapping[str, Any]]]

    def __init__(
        self,
        loss: Any,
        train: Any,
        valid: Any,
        test: Any,
        measures: Measure | Sequence[Measure],
        every: int,
        budget: float | None,
        log: Log | None,
        forward: Forward | None,
        clock: Callable[[], float],
    ) -> None:
        if isinstance(every, bool) or not isinstance(every, int):
            raise TypeError(f"every is a whole number of steps from one measurement to the next, not {every!r}")
        if every < 1:
            raise ValueError(f"every is the number of steps from one measurement to the next, at least 1, not {every}")
        if budget is not None and not budget > 0:
            raise ValueError(f"budget is a share of the training time above 0 (0.05: 5 %), or None, not {budget}")
        check_functions(log=log, forward=forward)
        check_mean(loss)
        self.loss, self.log, self.forward, self.clock = loss, log, forward, clock
        self.every, self.budget = every, budget
        self.measures = _labelled(measures)
        with random_state_kept(), seeded(0), ExitStack() as loaders:
            for part in (train, valid, test):
                loaders.enter_context(loader_kept(part))
            self.sets: dict[str, Batches | None] = in_memory(train=train, valid=valid, test=test)


def check_functions(**given: Any) -> None:
    """Refuse what cannot be called, before a training begins in which it would fail each time.

    Raises:
        TypeError: for what is neither a function nor None, by its name.
    """
    for name, function in given.items():
        if function is not None and not callable(function):
            raise TypeError(f"{name} is a function, such as {_SUCH[name]}, or None, not {function!r}")


def _labelled(measures: Measure | Sequence[Measure]) -> dict[str, Callable[[Snapshot], Mapping[str, Any]]]:
    """Measures by the names under which they are recorded."""
    chosen = [measures] if isinstance(measures, (str, Call)) or callable(measures) else list(measures)
    if not chosen:
        raise ValueError("there is nothing to measure: give the name of at least one measure (landscope list)")
    labelled: dict[str, Callable[[Snapshot], Mapping[str, Any]]] = {}
    for one in chosen:
        found = find_measure(one) if isinstance(one, str) else one
        label = found.name if isinstance(found, Call) else getattr(found, "__name__", type(found).__name__)
        if label in labelled and isinstance(found, Call) and found not in labelled.values():
            label = repr(found)
        if label in labelled:
            raise ValueError(f"the measure {label} is given twice: give each once, or with other settings")
        labelled[label] = found
    return labelled


class Monitor:
    """Measures a network at chosen steps of its training; `monitor` makes one.

    Attributes:
        steps: The last step that it was told of.
        taken: How many measurements were taken (a measurement is all the measures at one step).
        skipped: How many were due and skipped to stay within the budget.
        failed: How often a measure, or the function that logs, raised an exception.
        training: Seconds of training so far, measuring left out.
        measuring: Seconds of measuring and logging that count against the budget.
    """

    model: nn.Module
    steps: int
    taken: int
    skipped: int
    failed: int
    training: float
    measuring: float

    def __init__(self, model: nn.Module, given: Settings) -> None:
        """See `monitor`."""
        inside = bare(model)
        refuse_sharded(inside)
        self.model = inside if given.forward is None else Adapted(inside, given.forward)
        self._given = given
        self.steps = self.taken = self.skipped = self.failed = 0
        self.training = self.measuring = 0.0
        self._rows: list[dict[str, Any]] = []
        self._costs: list[float] = []
        self._told: set[str] = set()  # what has already failed once
        self._since: float | None = None  # when training went on
        self._started = False
        self._start_state = state_of(self.model)
        with untouched(self.model):
            self.model.eval()
            check_loss(self.model, given.loss, given.sets)

    def begin(self, step: int) -> None:
        """Say that the training goes on from a step already made: that of a checkpoint, say."""
        self.steps, self._started = step, True

    def step(self, step: int | None = None) -> dict[str, float]:
        """Say that the training has made a step; every so many, and within the budget, this measures.

        The first measurement's cost is not known beforehand: it is taken when it is due, and the next ones wait until
        it is paid for. (`measure_now` before the loop makes the cost known.) Later ones are expected to cost the most
        of the last three, and are taken where seconds measuring would stay within ``budget`` times seconds training.

        Args:
            step: The number of steps made so far, where it is not one more than the last time.

        Returns:
            What was logged, nothing where nothing was measured: ``measure/name`` → value, standard errors under
            ``measure/name_sem``, the elements of arrays (of at most 32) under ``measure/name/0`` and so on; and
            ``landscope/seconds`` (of this measurement), ``landscope/share`` (measuring over training time) and
            ``landscope/skipped``.
        """
        previous = self.steps if self._started or step is None else max(step - 1, 0)
        self.steps = self.steps + 1 if step is None else step
        self._started = True
        due = self.steps // self._given.every > previous // self._given.every
        if due:
            self._settle()
        self._pause()
        try:
            if not due:
                return {}
            if not self._affordable():
                self.skipped += 1
                return {}
            return self._measurement(counted=True)
        finally:
            self._since = self._given.clock()

    def measure_now(self) -> dict[str, float]:
        """Measure whatever the budget is, without counting against it: before the first step, say, or after the last.

        Returns:
            What was logged, as for `step`.
        """
        training = self._since is not None
        self._settle()
        self._pause()
        try:
            return self._measurement(counted=False)
        finally:
            self._since = self._given.clock() if training else None

    def pause(self) -> None:
        """Say that what comes until the next ``step()`` is no training: its time earns no budget."""
        self._pause()

    @property
    def history(self) -> Table:
        """All that was measured: columns step, measure, name, value, sem, n, seconds (of the measure), error.

        One row a value, as from ``landscope.measure``; a measure that failed has one row, with the error alone.
        """
        columns = ("step", "measure", "name", "value", "sem", "n", "seconds", "error")
        return Table({name: tuple(row.get(name) for row in self._rows) for name in columns})

    @property
    def share(self) -> float:
        """Seconds measuring (as far as they count against the budget) over seconds training."""
        return self.measuring / self.training if self.training > 0 else 0.0

    def __repr__(self) -> str:
        """What was done, in a line."""
        budget = self._given.budget
        within = f", {self.skipped} skipped to stay within {budget:.3g} of the training time" if budget else ""
        used = f" ({self.share:.2g} used)" if budget else ""
        failed = f", {self.failed} failures" if self.failed else ""
        return f"Monitor of {', '.join(self._given.measures)}: {self.taken} measurements{within}{used}{failed}"

    def _pause(self) -> None:
        if self._since is not None:
            self.training += max(0.0, self._given.clock() - self._since)
        self._since = None

    def _settle(self) -> None:
        """Wait for what the device still has to do, so that its time is counted where it belongs."""
        device = device_of(self.model)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def _affordable(self) -> bool:
        if self._given.budget is None or not self._costs:
            return True
        return self.measuring + max(self._costs[-COSTS_KEPT:]) <= self._given.budget * self.training

    def _measurement(self, *, counted: bool) -> dict[str, float]:
        begin, values = self._given.clock(), {}
        try:
            for label, measure in self._given.measures.items():
                values |= self._one(label, measure)
            self._settle()
            self.taken += 1
        finally:  # an interrupted measurement has cost its time, too
            cost = max(0.0, self._given.clock() - begin)
            self.measuring += cost if counted else 0.0
        self._costs.append(cost)
        values |= {"landscope/seconds": cost, "landscope/share": self.share, "landscope/skipped": float(self.skipped)}
        if self._given.log is not None:
            self._log(self._given.log, values, counted)
        return values

    def _one(self, label: str, measure: Callable[[Snapshot], Mapping[str, Any]]) -> dict[str, float]:
        """One measure's values as they are logged; none where it fails."""
        begin = self._given.clock()
        try:
            with untouched(self.model):
                seeder = measure if isinstance(measure, Call) else Call(label)
                given = self._given
                of = snapshot(self.model, self._start_state, given.loss, given.sets, self.steps, seeder)
                found = dict(taken(measure, of))
                rows = [row for item in found.items() for row in value_rows(label, *item)]
        except Exception as error:  # whatever it is, it is no reason to stop the training
            self._failure(label, error, self._given.clock() - begin)
            return {}
        took = {"step": self.steps, "seconds": self._given.clock() - begin}
        self._rows += [row | took for row in rows]
        arrays = {name for name, value in found.items() if isinstance(value, Tensor) and value.numel() > LARGEST_ARRAY}
        kept = [row for row in rows if row["name"].partition("[")[0] not in arrays]
        return _log_names(label, kept)

    def _log(self, log: Log, values: dict[str, float], counted: bool) -> None:
        begin = self._given.clock()
        try:
            log(dict(values), self.steps)
        except Exception as error:
            self._failure("log", error, self._given.clock() - begin)
        finally:
            cost = max(0.0, self._given.clock() - begin)
            self._costs[-1] += cost
            self.measuring += cost if counted else 0.0

    def _failure(self, label: str, error: Exception, seconds: float) -> None:
        text = f"{type(error).__name__}: {error}"
        self.failed += 1
        self._rows.append({"step": self.steps, "measure": label, "seconds": seconds, "error": text})
        if label not in self._told:
            self._told.add(label)
            _logger.warning(
                "%s failed at step %d: %s (the training goes on; if it fails again, only the history says so)",
                label,
                self.steps,
                text,
            )


def _log_names(label: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Values by names that every logger takes: letters, digits, ``_ . - /``."""
    group = re.sub(r"[^\w.-]+", "_", label).rstrip("_")
    values: dict[str, float] = {}
    for row in rows:
        name = row["name"].replace("[", "/").replace("]", "")
        values[f"{group}/{name}"] = float(row["value"])
        if row.get("sem") is not None:
            values[f"{group}/{name}_sem"] = float(row["sem"])
    return values
