"""What determines a run's weights, and what is measured on it."""

from dataclasses import dataclass
from typing import Any

from landscope.spec.calls import At, Call, at, canonical_json, plain


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a run's weights.

    Args:
        data: Gives the data sets: called with ``(seed, cache)``.
        model: Gives the module: called with ``(input shape, outputs)``.
        loss: Gives the loss: called with nothing, it returns ``loss(outputs, targets)``.
        optimizer: Gives the optimizer: called with the parameters, or with the model where that is the name of the
            target's first argument.
        steps: Optimizer steps at the most.
        batch_size: Samples in a training batch; the training set's size or more means full batches.
        seed: Draws data splits, initialisation and everything else that is random.
        regularizers: Terms added to the loss: each, called with nothing, gives ``term(model, (inputs, targets))``,
            which returns a scalar (see `train.regularizers`).
        schedule: Gives a learning-rate schedule, stepped after every optimizer step: called with the optimizer.
        order_seed: Draws the order of the batches; None takes it from ``seed``.
        stop: Ends the run early: called as ``stop.every`` and ``stop.level`` say (see `train.loss_below`).
        start: Gives the initial state instead of the model's own initialisation: called with nothing. A setting that is
            another run's state (`at`) is given as that state, parameters and buffers by name; so it is in a constraint
            and in a regularizer.
        constraint: Applied to the model, in place and without gradients, before the first and after every step.
        augmentation: Changes a training batch's inputs: called with ``(inputs, generator)``, it returns the new ones.
    """

    data: Call
    model: Call
    loss: Call
    optimizer: Call
    steps: int
    batch_size: int
    seed: int
    regularizers: tuple[Call, ...] = ()
    schedule: Call | None = None
    order_seed: int | None = None
    stop: Call | None = None
    start: Call | None = None
    constraint: Call | None = None
    augmentation: Call | None = None

    def __post_init__(self) -> None:
        """Coerce whole numbers and refuse impossible ones."""
        for name, least in (("steps", 0), ("batch_size", 1), ("seed", 0), ("order_seed", 0)):
            value = plain(getattr(self, name), f"a Recipe's {name}")
            if value is None and name == "order_seed":
                continue
            if not isinstance(value, (int, float)) or isinstance(value, bool) or value != int(value) or value < least:
                raise ValueError(f"a Recipe's {name} is a whole number of at least {least}, not {value!r}")
            object.__setattr__(self, name, int(value))
        object.__setattr__(self, "regularizers", tuple(self.regularizers))
        may_be_off = (self.schedule, self.stop, self.start, self.constraint, self.augmentation)
        optional = [x for x in may_be_off if x is not None]
        for part in (self.data, self.model, self.loss, self.optimizer, *self.regularizers, *optional):
            if not isinstance(part, Call):
                raise TypeError(f"the parts of a Recipe are made with call(function, ...), not {type(part).__name__}")


@dataclass(frozen=True)
class Cell:
    """The unit of measuring: what is measured on one run's state at one step (or on several); one file in the store."""

    state: At | tuple[At, ...]
    measures: tuple[Call, ...]

    def __post_init__(self) -> None:
        """Put the measures in one order: the cell is the same whichever was named first."""
        object.__setattr__(self, "measures", tuple(sorted(self.measures, key=canonical_json)))


def from_canonical(value: Any) -> Any:
    """The Recipe, Cell, Call or plain value that `canonical` made ``value`` from (`At` holds the run's key).

    Reading imports nothing. A Call that was read from a file is for comparing and showing: the file may come from
    elsewhere, and calling imports and runs whatever it names. It may be called only where a recipe of our own process
    led to it by key, which `store.read_spec` checks.

    Raises:
        ValueError: for JSON that `canonical` cannot have made.
    """
    if isinstance(value, list):
        return tuple(from_canonical(item) for item in value)
    if not isinstance(value, dict):
        return value
    try:
        if "call" in value:
            settings = tuple(sorted((k, from_canonical(v)) for k, v in value["settings"].items()))
            return Call(str(value["call"]), settings, int(value["revision"]))
        if "run" in value:
            return at(str(value["run"]), from_canonical(value["step"]))
        if "recipe" in value:
            return Recipe(**{k: from_canonical(v) for k, v in value["recipe"].items()})
        if "cell" in value:
            return Cell(**{k: from_canonical(v) for k, v in value["cell"].items()})
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not a specification of Landscope's: {error}") from error
    raise ValueError(f"not a specification of Landscope's: it has the fields {', '.join(map(str, value))}")
