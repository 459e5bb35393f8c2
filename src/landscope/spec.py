"""What is to be done, as data: calls not yet made, recipes of runs, cells of measuring, experiments and their claims.

A recipe holds everything that determines a run's weights and nothing else, so its key, a hash of its canonical JSON,
is the run's name in the store. Device, workers and logging are not part of it.
"""

import functools
import hashlib
import importlib
import inspect
import json
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

OURS = "landscope."
Step = int | str | tuple[Any, ...]  # a step, "start", "end", or first_below(...)


@dataclass(frozen=True)
class Call:
    """A function and its settings, not yet called: ``call_(*arguments)`` calls it.

    Make one with `call`, which checks the settings. What a function needs at run time (a model's parameters for an
    optimizer, a snapshot for a measure) are its positional arguments and never part of a Call.
    """

    target: str
    kwargs: tuple[tuple[str, Any], ...] = ()
    revision: int = 0

    def bind(self, **replaced: Any) -> Callable[..., Any]:
        """The target with its settings; ``replaced`` stands in for those that only the engine can provide."""
        function = resolve(self.target)
        return functools.partial(function, **(_bound(function, self.target, dict(self.kwargs)) | replaced))

    def __call__(self, *args: Any) -> Any:
        """Call the target with its settings."""
        return self.bind()(*args)

    def __getitem__(self, name: str) -> Any:
        """One setting."""
        return dict(self.kwargs)[name]

    @property
    def name(self) -> str:
        """The function's own name, without its module."""
        return self.target.rpartition(".")[2]

    def __repr__(self) -> str:
        """As one would write it."""
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.kwargs)})"


def call(function: Callable[..., Any], **kwargs: Any) -> Call:
    """Bind settings to a function now, so that a misspelt one fails here and not an hour later.

    Landscope's own functions have their defaults filled in, so that a changed default is a changed key; settings that
    are None are left out (None always means *off*). Functions of other libraries keep just what is given.

    Raises:
        TypeError: for a setting that the function does not have, or lacks.
        ValueError: for a function that has no importable name (lambdas, closures, ``__main__``).

    >>> import math
    >>> call(math.isclose, rel_tol=1e-3)
    isclose(rel_tol=0.001)
    """
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "<lambda>")
    if module is None or "<" in name or module == "__main__":
        raise ValueError(
            f"{module}.{name} has no name that another process could import: "
            "put the function at the top level of a module (no lambda, no closure, not __main__)"
        )
    for package in ("landscope.measures", "landscope.stats"):
        if module.startswith(f"{package}."):
            module = package  # the public name, so that a function may move between topics
    target = f"{module}.{name}"
    settings = _bound(function, target, kwargs)
    return Call(target, tuple(sorted(settings.items())), getattr(function, "revision", 0))


def resolve(target: str) -> Any:
    """The function or class that a dotted name stands for.

    Raises:
        LookupError: where there is none.
    """
    parts = target.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError as error:
            if error.name is not None and not ".".join(parts[:cut]).startswith(error.name):
                raise  # the module is there; something that it needs is not
            continue
        try:
            for part in parts[cut:]:
                found = getattr(found, part)
        except AttributeError:
            break
        return found
    raise LookupError(f"nothing importable is called {target!r}")


def _bound(function: Any, target: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, checked, coerced by annotation and (for our own functions) complete; None is left out."""
    ours = target.startswith(OURS)
    try:
        parameters = inspect.signature(function).parameters
    except (ValueError, TypeError):  # some built-ins have no signature
        return {k: _plain(v) for k, v in kwargs.items() if v is not None}
    named = {p.name: p for p in parameters.values() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    if ours:
        named = {n: p for n, p in named.items() if p.kind is p.KEYWORD_ONLY}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name in kwargs:
        if name not in named and not takes_any:
            raise TypeError(f"{target} has no setting {name!r}; it has {', '.join(named) or 'none'}")
    hints = _hints(function)
    settings = {name: _coerced(value, hints.get(name), f"{target}({name})") for name, value in kwargs.items()}
    for name, parameter in named.items():
        if ours and name not in settings:
            if parameter.default is parameter.empty:
                raise TypeError(f"{target} needs the setting {name!r}")
            settings[name] = _coerced(parameter.default, hints.get(name), f"{target}({name})")
    return {name: value for name, value in settings.items() if value is not None}


def _hints(function: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)
    except Exception:  # other libraries' annotations may not resolve: then nothing is coerced
        return {}


def _coerced(value: Any, hint: Any, where: str) -> Any:
    """``value`` as its annotation says (1 becomes 1.0 for a float); anything not representable is refused."""
    value = _plain(value, where)
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if isinstance(value, int) and not isinstance(value, bool) and float in options and int not in options:
        return float(value)
    if isinstance(value, float) and int in options and float not in options:
        if not value.is_integer():
            raise TypeError(f"{where} takes a whole number, not {value}")
        return int(value)
    if isinstance(value, tuple):
        inner = [typing.get_args(option) for option in options if typing.get_origin(option) is tuple]
        if inner and inner[0][-1:] == (...,):
            return tuple(_coerced(item, inner[0][0], where) for item in value)
    return value


def _plain(value: Any, where: str = "a setting") -> Any:
    """``value`` out of the types that a key can be made of: lists become tuples, NumPy scalars Python's."""
    if value is None or isinstance(value, (bool, int, str, Call, At)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where}: {value} has no canonical form; give a finite number or None")
        return value
    if isinstance(value, (list, tuple)):
        return tuple(_plain(item, where) for item in value)
    if callable(getattr(value, "item", None)) and getattr(value, "ndim", None) == 0:
        return _plain(value.item(), where)
    raise TypeError(
        f"{where}: {type(value).__name__} cannot be part of a key; "
        "give numbers, strings, booleans, sequences of them, a Call or at(...)"
    )


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a run's weights.

    Args:
        data: Gives the data sets: called with ``(seed, cache)``.
        model: Gives the module: called with ``(input shape, outputs)``.
        loss: Gives the loss: called with nothing, it returns ``loss(outputs, targets)``.
        optimizer: Gives the optimizer: called with the parameters.
        steps: Optimizer steps at the most.
        batch_size: Samples in a training batch; the training set's size or more means full batches.
        seed: Draws data splits, initialisation and everything else that is random.
        regularizers: Terms added to the loss: each called with ``(model, inputs, outputs, targets)``.
        schedule: Gives a learning-rate schedule, stepped after every optimizer step: called with the optimizer.
        order_seed: Draws the order of the batches; None takes it from ``seed``.
        stop: Ends the run early: called as ``stop.every`` and ``stop.level`` say (see `train.loss_below`).
        start: Gives the initial state instead of the model's own initialisation.
        constraint: Applied to the model after every optimizer step.
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

    def __post_init__(self) -> None:
        """Coerce whole numbers and refuse impossible ones."""
        for name, least in (("steps", 0), ("batch_size", 1), ("seed", 0), ("order_seed", 0)):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or value != int(value) or value < least:
                raise ValueError(f"a Recipe's {name} is a whole number of at least {least}, not {value!r}")
            object.__setattr__(self, name, int(value))
        object.__setattr__(self, "regularizers", tuple(self.regularizers))


@dataclass(frozen=True)
class At:
    """A run's state at a step: make it with `at`. ``run`` is the recipe or its key."""

    run: Recipe | str
    step: Step

    @property
    def key(self) -> str:
        """The run's key."""
        return self.run if isinstance(self.run, str) else key(self.run)


def at(recipe: Recipe | str, step: Step) -> At:
    """The state of a run at ``step``: a number, ``"start"``, ``"end"`` or `first_below`.

    It may stand in any Call's settings and is hashed as the run's key and the step.
    """
    if isinstance(step, bool) or not (
        (isinstance(step, int) and step >= 0) or step in ("start", "end") or isinstance(step, tuple)
    ):
        raise ValueError(f'a step is a number from 0, "start", "end" or first_below(...), not {step!r}')
    return At(recipe, step)


def first_below(metric: str, level: float) -> tuple[str, str, float]:
    """The first checked step at which a metric of the run's history lies below ``level``.

    Where the check is made is the recipe's to say (``stop=call(loss_below, level=…, every=…)``), because it must be
    the same number of steps for every run that is compared.
    """
    return ("first_below", metric, float(level))


def step_name(step: Step) -> str:
    """A step in words, for tables: ``"end"``, ``"120"``, ``"train_loss<0.01"``."""
    return f"{step[1]}<{step[2]:g}" if isinstance(step, tuple) else str(step)


@dataclass(frozen=True)
class Cell:
    """The unit of measuring: what is measured on one run's state at one step (or on several); one file in the store."""

    state: At | tuple[At, ...]
    measures: tuple[Call, ...]


def canonical(x: Any) -> Any:
    """``x`` as JSON values in a form that is equal exactly for equal things; None and empty fields are left out."""
    if isinstance(x, Call):
        return {"call": x.target, "revision": x.revision, "settings": {k: canonical(v) for k, v in x.kwargs}}
    if isinstance(x, At):
        return {"run": x.key, "step": canonical(x.step)}
    if isinstance(x, (Recipe, Cell)):
        kept = {f.name: getattr(x, f.name) for f in fields(x)}
        return {type(x).__name__.lower(): {k: canonical(v) for k, v in kept.items() if v is not None and v != ()}}
    if isinstance(x, Mapping):
        return {str(k): canonical(v) for k, v in x.items() if v is not None}
    if isinstance(x, (list, tuple)):
        return [canonical(item) for item in x]
    x = _plain(x)
    return int(x) if isinstance(x, float) and x.is_integer() and abs(x) < 2**53 else x


def canonical_json(x: Any) -> str:
    """Canonical JSON: sorted keys, no spaces, ASCII, shortest numbers that read back the same."""
    return json.dumps(canonical(x), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def key(x: Any) -> str:
    """The name of ``x`` in the store: the first 16 hexadecimal digits of the SHA-256 of its canonical JSON."""
    return hashlib.sha256(canonical_json(x).encode()).hexdigest()[:16]


def derive(*parts: Any) -> int:
    """A seed of 63 bits for one purpose, such as ``derive(recipe.seed, "order", epoch)``: streams do not overlap."""
    return int.from_bytes(hashlib.sha256(canonical_json(parts).encode()).digest()[:8], "big") >> 1


def from_canonical(value: Any) -> Any:
    """The Recipe, Cell, Call or plain value that `canonical` made ``value`` from (`At` holds the run's key).

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
            return At(str(value["run"]), from_canonical(value["step"]))
        if "recipe" in value:
            return Recipe(**{k: from_canonical(v) for k, v in value["recipe"].items()})
        if "cell" in value:
            return Cell(**{k: from_canonical(v) for k, v in value["cell"].items()})
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not a specification of Landscope's: {error}") from error
    raise ValueError(f"not a specification of Landscope's: it has the fields {', '.join(map(str, value))}")


# --- papers, claims, experiments ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Paper:
    """The paper that an experiment tests."""

    key: str
    title: str
    authors: str
    year: int
    url: str


@dataclass(frozen=True)
class Published:
    """A number that a paper prints, on the claim's own scale, with where it comes from.

    Args:
        value: The effect, on the scale of the claim's statistic (a log ratio, not the ratio).
        n: Independent runs (or pairs of runs) behind it.
        source: Where it stands and how it was obtained.
    """

    value: float
    n: int
    source: str


EXPECTATIONS = ("greater", "less", "at_least", "at_most", "within", "trend_up", "trend_down", "all_of")


@dataclass(frozen=True)
class Claim:
    """A falsifiable statement, fixed before anything runs.

    Args:
        text: The claim in words.
        statistic: Called with a Table (one protocol, one step), gives one number per unit (`stats.Units`).
        expect: One of greater, less, at_least, at_most, within, trend_up, trend_down, all_of.
        null: The value at which the claim is false.
        smallest: The smallest effect of interest, in the statistic's unit.
        reason: Why ``smallest`` (or ``margin``) is what it is.
        margin: The half-width of equivalence, for ``within``.
        unit: How the effect is shown: ``"ratio"`` (the statistic is a natural logarithm), ``"points"``
            (hundredths), ``"tau"`` or ``""``.
        paper: What the paper printed, compared under the published protocol only.
        expectation: What we expect, said before the run.
        primary: Whether a verdict is given; exploratory claims show an interval only.
        parts: For all_of: the claims of which every one must hold.
    """

    text: str
    statistic: Call | None
    expect: str
    null: float = 0.0
    smallest: float | None = None
    reason: str = ""
    margin: float | None = None
    unit: str = ""
    paper: Published | None = None
    expectation: str = ""
    primary: bool = True
    parts: tuple["Claim", ...] = ()

    def __post_init__(self) -> None:
        """Refuse a claim that could not be judged."""
        if self.expect not in EXPECTATIONS:
            raise ValueError(f"{self.text!r}: expect is one of {', '.join(EXPECTATIONS)}, not {self.expect!r}")
        if self.expect == "within" and not (self.margin is not None and self.margin > 0):
            raise ValueError(f"{self.text!r}: within needs a margin above 0")
        if (self.expect == "all_of") != bool(self.parts) or (self.statistic is None) != bool(self.parts):
            raise ValueError(f"{self.text!r}: all_of has parts and no statistic, every other claim a statistic")
        if self.expect in ("greater", "trend_up") and self.smallest is not None and self.smallest <= self.null:
            raise ValueError(f"{self.text!r}: the smallest effect of interest lies above null")
        if self.expect in ("less", "trend_down") and self.smallest is not None and self.smallest >= self.null:
            raise ValueError(f"{self.text!r}: the smallest effect of interest lies below null")
        if self.smallest is not None and not self.reason:
            raise ValueError(f"{self.text!r}: say why {self.smallest:g} is the smallest effect of interest")


Grid = Callable[..., Sequence[Recipe]]


@dataclass(frozen=True)
class Protocol:
    """One way to train the arms that a claim compares: the published one, or a control of it.

    Args:
        grid: ``grid(scale, data, seeds) -> recipes``; the same recipe in two protocols is trained once.
        holds: What is held equal between the arms, in words for someone who has never thought about it.
        steps: At which steps the runs are measured.
        judged: The step whose measurements decide the verdict.
    """

    grid: Grid
    holds: str
    steps: tuple[Step, ...] = ("end",)
    judged: Step = "end"

    def __post_init__(self) -> None:
        """Check that the judged step is among those measured."""
        if self.judged not in self.steps:
            raise ValueError(f"the judged step {self.judged!r} is not among the measured ones {self.steps!r}")


@dataclass(frozen=True)
class Experiment:
    """A paper's experiment as data: what is trained, what is measured, what is claimed, what is drawn.

    Args:
        paper: The paper.
        title: The question in a line.
        summary: What the experiment does, in two or three sentences.
        runs: Protocols by name; the first is the published one, every other a control.
        seeds: The number of seeds by scale; verdicts use exactly seeds 0 to n - 1.
        data: The default data set by scale.
        measures: What is measured on every run.
        claims: What the paper says.
        figures: ``figures(Table, scale) -> figures``; called by the report.
        deviations: What differs from the paper, each with both values.
        varied: Sources of variation that a seed redraws.
        fixed: Sources that it does not.
    """

    paper: Paper
    title: str
    summary: str
    runs: Mapping[str, Protocol]
    seeds: Mapping[str, int]
    data: Mapping[str, str]
    measures: tuple[Call, ...]
    claims: tuple[Claim, ...]
    figures: Callable[..., Sequence[Any]]
    deviations: tuple[str, ...] = ()
    varied: tuple[str, ...] = ()
    fixed: tuple[str, ...] = field(default=())


def planned(experiment: Experiment, scale: str, data: Any, seeds: Sequence[int]) -> list[tuple[str, Recipe]]:
    """Every (protocol, recipe) of an experiment, in order; a recipe shared by two protocols stands under both."""
    return [
        (name, recipe) for name, protocol in experiment.runs.items() for recipe in protocol.grid(scale, data, seeds)
    ]
