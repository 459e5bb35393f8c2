"""Functions with their settings, not yet called; states of runs; and the names of both in the store."""

import difflib
import functools
import hashlib
import importlib
import inspect
import json
import math
import sys
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from landscope.spec.recipes import Recipe

OURS = "landscope."
_SIMPLE_JSON = json.JSONEncoder(separators=(",", ":")).encode
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
        function, settings = resolve(self.target), dict(self.kwargs)
        if self.target.startswith(OURS):  # what is off, and numbers as annotated: 1.0 may have been read back as 1
            hints = _hints(function)
            typed = {n: _coerced(v, hints.get(n), f"{self.target}({n})", True) for n, v in settings.items()}
            settings = dict.fromkeys(_settable(function)) | typed
        return functools.partial(function, **(settings | replaced))

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


def call(function: Callable[..., Any], /, **kwargs: Any) -> Call:
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
    nameless = (
        f"{module}.{name} is no name under which another process could import {function!r}: "
        "put the function at the top level of a module (no lambda, no closure, no method, not __main__)"
    )
    if module in (None, "__main__", "__mp_main__") or "<" in name:
        raise ValueError(nameless)
    target = _public_name(module, name, function)
    if _found(target) is not function:
        raise ValueError(nameless)
    settings = _bound(function, target, kwargs)
    return Call(target, tuple(sorted(settings.items())), getattr(function, "revision", 0))


def _public_name(module: str, name: str, function: Any) -> str:
    """The shortest dotted name of our own functions, so that one may move between the files of a package."""
    parts = module.split(".")
    for cut in range(2, len(parts)) if module.startswith(OURS) else ():
        package = sys.modules.get(".".join(parts[:cut]))
        if getattr(package, name, None) is function:
            return ".".join([*parts[:cut], name])
    return f"{module}.{name}"


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
            if error.name is not None and not f"{'.'.join(parts[:cut])}.".startswith(f"{error.name}."):
                raise  # the module is there; something that it needs is not
            continue
        try:
            for part in parts[cut:]:
                found = getattr(found, part)
        except AttributeError:
            break
        return found
    raise LookupError(f"nothing importable is called {target!r}")


def _found(target: str) -> Any:
    try:
        return resolve(target)
    except LookupError:
        return None


def _settable(function: Any) -> dict[str, inspect.Parameter]:
    """The settings of one of our own functions: its keyword-only parameters."""
    return {n: p for n, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY}


def _bound(function: Any, target: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, checked, coerced by annotation and, for our own functions, complete; what is off is left out."""
    ours = target.startswith(OURS)
    try:
        parameters = inspect.signature(function).parameters
    except (ValueError, TypeError):  # some built-ins have no signature
        return {name: plain(value, f"{target}({name})") for name, value in kwargs.items()}
    named = {p.name: p for p in parameters.values() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    if ours:
        named = _settable(function)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name in kwargs:
        if name not in named and not takes_any:
            near = difflib.get_close_matches(name, named, n=1)
            meant = f" (did you mean {near[0]!r}?)" if near else ""
            raise TypeError(f"{target} has no setting {name!r}{meant}; it has {', '.join(named) or 'none'}")
    given = dict(kwargs)
    if ours:
        missing = [name for name, p in named.items() if name not in given and p.default is p.empty]
        if missing:
            raise TypeError(f"{target} needs the setting {missing[0]!r}")
        given = {name: p.default for name, p in named.items()} | given
    hints = _hints(function)
    settings = {}
    for name, value in given.items():
        hint, default = hints.get(name), named[name].default if name in named else None
        if value is not None:
            settings[name] = _coerced(value, hint, f"{target}({name})", ours)
        elif ours and default is not None and not _may_be_off(hint):
            raise TypeError(f"{target}({name}) cannot be off (None): its type is {hint}")
        elif not ours and default is not None:
            settings[name] = None  # another library's None is a value like any other, unless it is the default
    return settings


def _hints(function: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)
    except Exception:  # other libraries' annotations may not resolve: then nothing is coerced
        return {}


def _options(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _may_be_off(hint: Any) -> bool:
    return hint is None or any(option in (type(None), Any, object) for option in _options(hint))


def _coerced(value: Any, hint: Any, where: str, strict: bool) -> Any:
    """``value`` as its annotation says (1 becomes 1.0 for a float); anything not representable is refused."""
    value, options = plain(value, where), _options(hint)
    if isinstance(value, bool):
        if strict and bool not in options and (int in options or float in options):
            raise TypeError(f"{where} takes a number, not {value}")
        return value
    if isinstance(value, int) and float in options and int not in options:
        return float(value)
    if isinstance(value, float) and int in options and float not in options:
        if not value.is_integer():
            raise TypeError(f"{where} takes a whole number, not {value}")
        return int(value)
    if value in (0, 1) and bool in options and int not in options and float not in options:
        return bool(value)
    if isinstance(value, tuple):
        inner = [typing.get_args(option) for option in options if typing.get_origin(option) is tuple]
        if inner and inner[0][-1:] == (...,):
            return tuple(_coerced(item, inner[0][0], where, strict) for item in value)
    return value


def plain(value: Any, where: str = "a setting") -> Any:
    """``value`` out of the types that a key can be made of: lists become tuples, NumPy scalars Python's."""
    if value is None or isinstance(value, (bool, Call, At)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where}: {value} has no canonical form; give a finite number or None")
        return float(value)  # NumPy's float64 is a float too
    if isinstance(value, (int, str)):
        return value
    if isinstance(value, (list, tuple)):
        return tuple(plain(item, where) for item in value)
    if callable(getattr(value, "item", None)) and getattr(value, "ndim", None) == 0:
        return plain(value.item(), where)
    raise TypeError(
        f"{where}: {type(value).__name__} cannot be part of a key; "
        "give numbers, strings, booleans, sequences of them, a Call or at(...)"
    )


@dataclass(frozen=True, eq=False, repr=False)
class At:
    """A run's state at a step: make it with `at`. ``run`` is the recipe or its key, and the same state either way."""

    run: "Recipe | str"
    step: Step

    @functools.cached_property
    def key(self) -> str:
        """The run's key; remembered, because a chain of runs would else be hashed once for each way through it."""
        return self.run if isinstance(self.run, str) else key(self.run)

    def __repr__(self) -> str:
        """With the run's key, because a chain of recipes would else be written out once for each way through it."""
        return f"at({self.key!r}, {self.step!r})"

    def __eq__(self, other: object) -> bool:
        """Whether both are the same step of the same run."""
        return isinstance(other, At) and (self.key, self.step) == (other.key, other.step)

    def __hash__(self) -> int:
        """By the run's key and the step."""
        return hash((self.key, self.step))


def at(recipe: "Recipe | str", step: Step) -> At:
    """The state of a run at ``step``: a number, ``"start"``, ``"end"`` or `first_below`.

    It may stand in any Call's settings and is hashed as the run's key and the step.
    """
    numbered = isinstance(step, int) and not isinstance(step, bool) and step >= 0
    named = isinstance(step, str) and step in ("start", "end")
    if isinstance(step, tuple):
        named = len(step) == 3 and step[0] == "first_below" and isinstance(step[1], str) and math.isfinite(step[2])
    if not (numbered or named):
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
    return f"{step[1]}<{step[2]:.12g}" if isinstance(step, tuple) else str(step)


def canonical(x: Any) -> Any:
    """``x`` as JSON values in a form that is equal exactly for equal things; None and empty fields are left out."""
    if isinstance(x, Call):
        return {"call": x.target, "revision": x.revision, "settings": {k: canonical(v) for k, v in x.kwargs}}
    if isinstance(x, At):
        return {"run": x.key, "step": canonical(x.step)}
    if is_dataclass(x) and type(x).__module__.startswith("landscope.spec."):  # Recipe, Cell, Claim ...
        kept = {f.name: (getattr(x, f.name), f.default is MISSING) for f in fields(x)}
        off = (None, ())
        return {
            type(x).__name__.lower(): {k: canonical(v) for k, (v, needed) in kept.items() if needed or v not in off}
        }
    if isinstance(x, Mapping):
        return {str(k): canonical(v) for k, v in x.items() if v is not None}
    if isinstance(x, (list, tuple)):
        return [canonical(item) for item in x]
    x = plain(x)
    return int(x) if isinstance(x, float) and x.is_integer() else x


def canonical_json(x: Any) -> str:
    """Canonical JSON: sorted keys, no spaces, ASCII, shortest numbers that read back the same."""
    return json.dumps(canonical(x), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def key(x: Any) -> str:
    """The name of ``x`` in the store: the first 16 hexadecimal digits of the SHA-256 of its canonical JSON."""
    return hashlib.sha256(canonical_json(x).encode()).hexdigest()[:16]


def derive(*parts: Any) -> int:
    """A seed of 63 bits for one purpose, such as ``derive(recipe.seed, "order", epoch)``: streams do not overlap."""
    simple = all(type(part) in (int, str) for part in parts)  # the same text, in a tenth of the time
    text = _SIMPLE_JSON(parts) if simple else canonical_json(parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
