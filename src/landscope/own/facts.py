"""What is said of a checkpoint's measures: on the terminal, for programs, and beside the numbers on the page."""

import hashlib
import math
import shutil
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from landscope.data import Data, Source, generated
from landscope.data.cache import cached, held
from landscope.report.quantities import Quantity, is_bound, is_cost, is_exact, quantities, relative_error
from landscope.spec import resolve
from landscope.terminal import plain
from landscope.types import Batches, Estimate

FEWEST = 5  # right or wrong samples, below which the interval of an accuracy is not symmetric
ERRORS = {"residual": "residual", "sem": "standard error", "data_sem": "standard error for the samples left out"}
LONGEST = 8  # numbers of an array that a terminal shows
NARROWEST = 30  # columns
SAID = ("training and test set", "inputs", "outputs")
LEVEL = 0.95


def data_facts(source: Source, drawn: Data, seed: int, cache: Path) -> dict[str, str]:
    """What was measured on, and what must hold for the numbers to mean what they are called."""
    inputs = drawn.train.inputs
    return {
        "data": f"{source}; seed {seed}",
        "training samples measured on": f"{drawn.train.n:,}",
        "training and test set": split_note(source, drawn, seed, cache),
        "inputs": f"values from {inputs.min():.3g} to {inputs.max():.3g}, mean {inputs.mean():.2f}: "
        "the network must have been trained on inputs scaled like these",
    }


def split_note(source: Source, drawn: Data, seed: int, cache: Path) -> str:
    """What training and test set are, and what has to hold for the test accuracy to be one."""
    if source.content is not None and "test_labels" in held(cached(cache, source.content))[0]:
        n, of = drawn.train.n, source.n_train
        train = (
            f"all {n:,} training samples" if n == of else f"{n:,} of the {of:,} training samples, drawn by seed {seed}"
        )
        note = f" ({source.note})" if source.note else ""
        return f"{train}, and the test split that {source.name} comes with{note}, whatever the seed"
    if resolve(source.call.target).__module__ == generated.__name__:
        return f"drawn by seed {seed}: --seed must be the one used in training"
    return (
        f"the split of {source.name} that seed {seed} draws: --seed must be the one used in training, or the test set "
        "holds samples seen in training"
    )


def sampled(values: Mapping[str, Mapping[str, Any]], drawn: Data) -> dict[str, dict[str, Any]]:
    """The values, accuracies with the sampling error of their set.

    An accuracy p of n samples has the binomial standard error sqrt(p (1 - p) / n); the gap has that of its test
    accuracy, the training set being what it is. At 0 and 1 the formula gives 0, which would pass for exact: none there.
    """
    shown = {name: dict(part) for name, part in values.items()}
    sizes = {name: part.n for name, part in (("valid", drawn.valid), ("test", drawn.test)) if part is not None}
    for measure, part in shown.items():
        if measure.partition("(")[0] == "performance":
            given = dict(part)
            for name, of in (("valid_accuracy",) * 2, ("test_accuracy",) * 2, ("generalization_gap", "test_accuracy")):
                if name in given and 0 < given[of] < 1:
                    part[name] = _sampled(given[name], given[of], sizes[of.partition("_")[0]])
    return shown


def _sampled(value: float, accuracy: float, n: int) -> Estimate:
    sem = math.sqrt(accuracy * (1 - accuracy) / n)
    few = n * min(accuracy, 1 - accuracy) < FEWEST
    return Estimate(value, sem, n, df=0.0 if few else None)  # without degrees of freedom there is no interval


def told(part: Mapping[str, Any]) -> str:
    """What the errors beside the values of a measure are."""
    said = []
    if any(isinstance(part.get(name), Estimate) for name in ("valid_accuracy", "test_accuracy")):
        said.append(
            "Standard errors (±) of accuracies and of the gap are the sampling error of the validation or test "
            "examples, sqrt(p (1 - p) / n), which the network must not have been trained on."
        )
    if any(isinstance(part.get(name), Estimate) for name in ("valid_loss", "test_loss")):
        said.append(
            "Those of losses and of their gap are of the same examples: the standard deviation of their losses over "
            "sqrt(n)."
        )
    if any(name.endswith("_residual") for name in part):
        said.append("An exact eigenvalue lies within the residual.")
    return " ".join(said)


def print_values(values: Mapping[str, Mapping[str, Any]], facts: Mapping[str, str]) -> None:
    """The values measure by measure, and what has to be known about them; wrapped, so that nothing is cut."""
    width = max(NARROWEST, shutil.get_terminal_size().columns)
    for measure, part in values.items():
        lines = {name: shown(quantity) for name, quantity in quantities(part).items()}
        column = min(max(map(len, lines), default=0) + 4, width // 2)
        print(_wrapped(measure, width))
        for name, text in lines.items():
            start = f"  {name}".ljust(column)
            if len(start) > column:  # a name that is too long for its column stands on a line of its own
                print(_wrapped(name, width, "  "))
                start = " " * column
            print(_wrapped(text, width, start, " " * column))
        print()
    notes: dict[str, list[str]] = {}
    for measure, part in values.items():
        notes.setdefault(told(part), []).append(measure)
    said = (f"{', '.join(measures)}: {note}" for note, measures in notes.items() if note)
    for line in (*said, *(f"{name}: {facts[name]}" for name in SAID if name in facts)):
        print(_wrapped(line, width, rest="  "))


def _wrapped(text: str, width: int, first: str = "", rest: str = "") -> str:
    first = "".join(c if c.isprintable() else "?" for c in first)
    return textwrap.fill(
        plain(text), width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False, break_long_words=False
    )


def shown(quantity: Quantity) -> str:
    """A value with what is known of its error, in a line; of an array too long to be read, how long it is.

    >>> shown(Quantity("top_eigenvalue", 2.0, {"residual": 0.5, "converged": 0.0}))
    '2 (residual 0.5, not converged)'
    >>> shown(Quantity("keskar_sharpness", [0.5, 2.0], {"at": [0.001, 0.01]}))
    '0.5 2 at 0.001 0.01 (lower bounds)'
    """
    value, array = quantity.value, quantity.array
    if isinstance(value, Estimate):
        return repr(value)
    if array is None:
        text = value if isinstance(value, str) else f"{float(value):.6g}"
    elif len(array) > LONGEST:
        return f"{len(array)} values, on the page and in --json"
    else:
        at = quantity.of("at")
        text = _listed(array) + ("" if at is None else f" at {_listed(at)}")
    remarks = _remarks(quantity)
    return f"{text} ({', '.join(remarks)})" if remarks else text


def _listed(numbers: Iterable[float]) -> str:
    return " ".join(f"{float(x):.4g}" for x in numbers)


def _remarks(quantity: Quantity) -> list[str]:
    """What is known of the error of a value that is no Estimate."""
    said, many = [], quantity.array is not None
    if is_exact(quantity) and not is_cost(quantity.name):
        said.append("exact")
    for what, name in ERRORS.items():
        errors = quantity.of(what)
        if errors is not None and len(errors):
            said.append(f"{name} at most {errors.max():.2g}" if many else f"{name} {errors.max():.2g}")
    converged, to = quantity.of("converged"), relative_error(quantity)
    if converged is not None and not converged.all():
        said.append("not converged")
    if is_bound(quantity):
        said.append("lower bounds" if many else "lower bound")
    return said if to is None else [*said, f"to {100 * to:g} %"]


# --- for programs --------------------------------------------------------------------------------------------------


def fingerprint(batches: Batches) -> dict[str, Any]:
    """What identifies a set of samples: how many, of which shapes and types, and the SHA-256 of all its numbers.

    The hash is of inputs and targets in their order, each as type, shape and little-endian bytes.
    """
    digest = hashlib.sha256()
    said: dict[str, Any] = {"samples": batches.n}
    for name, tensor in (("inputs", batches.inputs), ("targets", batches.targets)):
        kind = {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
        digest.update(f"{name} {kind['dtype']} {kind['shape']}\n".encode())
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        said[name] = kind
    return said | {"sha256": digest.hexdigest()}


def values_json(values: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The values as JSON values: by measure, by name, each with all that is known of its error.

    A number is ``{"value": …}``; ``"exact": true`` where it is but for rounding; with ``"bound": "lower"`` where it is
    the highest that a search for a maximum has met; with ``rtol`` where it was determined to that share of itself. An
    Estimate has ``sem``, ``n``, ``df`` and its 95 % ``interval`` beside it (null where it has none); an eigenvalue
    ``residual`` and ``converged``; an array ``shape``, and ``at``, where it was measured. What is not finite is null,
    with ``"special"``: ``"nan"``, ``"inf"`` or ``"-inf"``.
    """
    return {
        measure: {name: _value_json(quantity) for name, quantity in quantities(part).items()}
        for measure, part in values.items()
    }


def _value_json(quantity: Quantity) -> dict[str, Any]:
    value = quantity.value
    beside = {what: _plain(part) for what, part in quantity.beside.items()}
    if (converged := quantity.of("converged")) is not None:
        flags = [bool(flag) for flag in converged]
        beside["converged"] = flags if isinstance(beside["converged"], list) else flags[0]
    if isinstance(value, Estimate):
        interval = list(value.interval(LEVEL)) if value.sem == 0 or value.freedom > 0 else None
        error = {"sem": value.sem, "n": value.n, "df": value.freedom, "interval": interval, "level": LEVEL}
        return {"value": _plain(value.mean), "exact": is_exact(quantity), **error, **beside}
    if isinstance(value, str):
        return {"value": value, **beside}
    said: dict[str, Any] = {"value": _plain(value)}
    if isinstance(value, Tensor) and value.dim():
        said["shape"] = list(value.shape)
    elif said["value"] is None:
        said["special"] = f"{float(value)}"
    return said | _certainty_json(quantity) | beside


def _certainty_json(quantity: Quantity) -> dict[str, Any]:
    to = relative_error(quantity)
    return (
        ({"exact": True} if is_exact(quantity) else {})
        | ({"bound": "lower"} if is_bound(quantity) else {})
        | ({} if to is None else {"rtol": to})
    )


def _plain(value: Any) -> Any:
    """Numbers, or nested lists of them; null where one is not finite."""
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return float(value) if math.isfinite(float(value)) else None
