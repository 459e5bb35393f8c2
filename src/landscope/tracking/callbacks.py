"""The monitor as a callback of PyTorch Lightning and of Hugging Face's Trainer; both are imported on use."""

import copy
import importlib
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from landscope.tracking.monitoring import Log, Measure, Monitor, Settings
from landscope.tracking.restoring import Forward

FRAMEWORKS = ("lightning.pytorch", "pytorch_lightning")

_logger = logging.getLogger(__name__)


def lightning_callback(
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
) -> Any:
    """A `monitor` as a callback of PyTorch Lightning: ``Trainer(callbacks=[lightning_callback(…)])``.

    Works with ``lightning`` and with ``pytorch_lightning``. Steps are the trainer's ``global_step``. Only the process
    of rank zero measures. The callback's ``monitor`` is the `Monitor`, None before the training starts.

    Args:
        loss: As for `monitor`, and so are the other arguments that are not described here.
        train: Measured on.
        valid: Or None.
        test: Or None.
        measures: What to measure.
        every: Steps between measurements.
        budget: Share of the training time.
        log: None: the trainer's own loggers.
        forward: ``forward(module, inputs) -> outputs`` where the LightningModule's ``forward`` does not give them, such
            as ``lambda module, x: module.network(x)``.
        clock: Gives the time in seconds.

    Raises:
        ImportError: where neither is installed.
        LookupError, ValueError: as for `monitor`.
    """
    given = Settings(loss, train, valid, test, measures, every, budget, log, forward, clock)
    return _lightning(given)


def _lightning(given: Settings) -> Any:
    bases = tuple(module.Callback for module in _frameworks())
    return type("LandscopeCallback", (_Lightning, *bases), {})(given)


def _frameworks() -> list[Any]:
    """Those that the user's script has imported, else the first that is installed."""
    imported = [name for name in FRAMEWORKS if name in sys.modules]
    if imported:
        return [importlib.import_module(name) for name in imported]
    for name in FRAMEWORKS:
        try:
            return [importlib.import_module(name)]
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # it is there; something that it needs is not
    raise ImportError("lightning_callback needs PyTorch Lightning: pip install lightning (or pytorch_lightning)")


class _Following:
    """What both callbacks share: a monitor of the network that is being trained."""

    def __init__(self, given: Settings) -> None:
        super().__init__()
        self.given = given
        self.monitor: Monitor | None = None
        self._followed: nn.Module | None = None

    def _follow(self, model: nn.Module, step: int, log: Log | None = None) -> None:
        """Go on with the same network, or begin with another; ``log`` serves where the user gave none."""
        if self.monitor is None or self._followed is not model:
            given = copy.copy(self.given)
            given.log = given.log or log
            self.monitor, self._followed = Monitor(model, given), model
            self.monitor.begin(step)

    def _made(self, step: int) -> None:
        if self.monitor is not None:
            self.monitor.step(step)

    def _ended(self) -> None:
        if self.monitor is not None:
            self.monitor.pause()
            _logger.info("%r", self.monitor)


class _Lightning(_Following):
    def __reduce__(self) -> Any:  # its class has no importable name; processes started by spawn get it pickled
        return _lightning, (self.given,)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._trainer = trainer  # a callback may serve one trainer after the other
        self._follow(pl_module, trainer.global_step, self._to_loggers)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.is_global_zero:
            self._made(trainer.global_step)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._ended()

    def _to_loggers(self, values: dict[str, float], step: int) -> None:
        for logger in self._trainer.loggers:
            logger.log_metrics(values, step=step)


def trainer_callback(
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
) -> Any:
    """A `monitor` as a callback of Hugging Face's Trainer: ``Trainer(…, callbacks=[trainer_callback(…)])``.

    Steps are the trainer's ``global_step``. Only the process of rank zero measures. The callback's ``monitor`` is the
    `Monitor`, None before the training starts.

    Args:
        loss: As for `monitor`, and so are the other arguments that are not described here.
        train: Measured on: pairs of tensors, such as (token ids, labels).
        valid: Or None.
        test: Or None.
        measures: What to measure.
        every: Steps between measurements.
        budget: Share of the training time.
        log: ``log({name: value}, step)``; None: the history alone.
        forward: ``forward(model, inputs) -> outputs``. None: the model is called with the inputs as its first
            argument, and what it returns is the outputs or holds them as ``logits``.
        clock: Gives the time in seconds.

    Raises:
        ImportError: where transformers is not installed.
        LookupError, ValueError: as for `monitor`.
    """
    try:
        base = importlib.import_module("transformers").TrainerCallback
    except ModuleNotFoundError as error:
        raise ImportError(f"trainer_callback needs {error.name}: pip install 'transformers[torch]'") from error
    given = Settings(loss, train, valid, test, measures, every, budget, log, forward or _logits, clock)
    return type("LandscopeCallback", (_Trainer, base), {})(given)


def _logits(model: Any, inputs: Tensor) -> Tensor:
    outputs = model(inputs)
    if isinstance(outputs, Tensor):
        return outputs
    if not isinstance(outputs, Mapping) or "logits" not in outputs:
        raise TypeError(
            f"{type(model).__name__} returns a {type(outputs).__name__} without logits: "
            "give forward=lambda model, inputs: … that returns the outputs"
        )
    return outputs["logits"]


class _Trainer(_Following):
    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self._follow(model, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self._made(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._ended()
