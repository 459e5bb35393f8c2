"""Measured values as people read them: each with its name in words, its unit, and how sure it is."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from landscope.types import Estimate

LAYER = "layer."
# What a measure returns beside a value, by the ending of its name: (ending, what it is).
BESIDE = (
    ("_data_sem", "data_sem"),
    ("_sem", "sem"),
    ("_residuals", "residual"),
    ("_residual", "residual"),
    ("_converged", "converged"),
    ("_low", "low"),
    ("_high", "high"),
    ("_grid", "at"),
    ("_radii", "at"),
    ("_epsilons", "at"),
)
SHARED = "_magnitudes"  # what all arrays of a prefix are over
COST = re.compile(r"(^|_)(products|passes)$")


@dataclass(frozen=True)
class Quantity:
    """A measured value with what belongs to it.

    Args:
        name: As the measure calls it.
        value: A float, an Estimate, an array or a text.
        beside: What the measure returns about it: its ``sem``, ``data_sem``, ``residual``, ``converged``, ``low``,
            ``high``, and ``at``, where an array was measured.
    """

    name: str
    value: Any
    beside: Mapping[str, Any] = field(default_factory=dict)

    @property
    def array(self) -> np.ndarray | None:
        """The numbers in one dimension, or None for a single one."""
        listed = self.value.tolist() if hasattr(self.value, "tolist") else self.value
        if not isinstance(listed, (list, tuple)):
            return None
        return np.asarray(listed, dtype=np.float64).reshape(-1)

    def of(self, what: str) -> np.ndarray | None:
        """What is beside the value as an array, or None."""
        found = self.beside.get(what)
        return None if found is None else np.asarray(_listed(found), dtype=np.float64).reshape(-1)


def _listed(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def quantities(named: Mapping[str, Any]) -> dict[str, Quantity]:
    """What a measure returned, with errors, residuals, flags and places put beside the values that they are of.

    >>> {n: dict(q.beside) for n, q in quantities({"a": 2.0, "a_residual": 0.1, "b": 1.0}).items()}
    {'a': {'residual': 0.1}, 'b': {}}
    """
    owners = {name: owner for name in named if (owner := _owner(name, named)) is not None}
    found = {name: Quantity(name, value, {}) for name, value in named.items() if name not in owners}
    for name, (base, what) in owners.items():
        for owner in [n for n in found if n.startswith(base)] if name.endswith(SHARED) else [base]:
            if owner in found:
                found[owner] = Quantity(owner, found[owner].value, {**found[owner].beside, what: named[name]})
    return found


def _owner(name: str, named: Mapping[str, Any]) -> tuple[str, str] | None:
    """The name of the value that a value is about, and what it is of it."""
    if name.endswith(SHARED):
        return name.removesuffix(SHARED.removeprefix("_")), "at"
    for ending, what in BESIDE:
        if name.endswith(ending):
            base = name.removesuffix(ending)
            for owner in (base, f"{base}s"):  # eigenvalue_residuals are those of eigenvalues
                if owner in named:
                    return owner, what
    return None


def layers(found: Mapping[str, Quantity]) -> dict[str, dict[str, Quantity]]:
    """The quantities of single layers, by layer and by what they are, in their order.

    >>> list(layers(quantities({"layer.0.conv.trace": 2.0, "layer.fc.trace": 1.0})))
    ['0.conv', 'fc']
    """
    by_layer: dict[str, dict[str, Quantity]] = {}
    for name, quantity in found.items():
        if name.startswith(LAYER):
            layer, _, what = name.removeprefix(LAYER).rpartition(".")
            by_layer.setdefault(layer, {})[what] = quantity
    return by_layer


# --- words ---------------------------------------------------------------------------------------------------------

CURVED, RELATIVE = "loss per squared weight", "loss per squared relative change"
# The first pattern that fits a whole name gives its words and its unit.
WORDS = (
    (r"(train|valid|test)_loss", r"{set} loss", "loss"),
    (r"(train|valid|test)_accuracy", r"{set} accuracy", "share"),
    (r"generalization_gap", "Training less test accuracy", "share"),
    (r"loss_gap", "Test less training loss", "loss"),
    (r"top_eigenvalue", "Largest eigenvalue λ_max", CURVED),
    (r"largest_eigenvalues|eigenvalues", "Largest eigenvalues", CURVED),
    (r"smallest_eigenvalues", "Smallest eigenvalues", CURVED),
    (r"hessian_trace|trace", "Trace Tr(H)", CURVED),
    (r"hessian_trace_squared|trace_squared", "Squared Frobenius norm Tr(H²)", f"({CURVED})²"),
    (r"hessian_absolute_trace", "Nuclear norm Tr|H|", CURVED),
    (r"hessian_effective_rank", "Effective rank (Tr|H|)² / Tr(H²)", "eigenvalues"),
    (r"density", "Spectral density", "share per unit of eigenvalue"),
    (r"(filter|weight)_top_eigenvalue", "Largest eigenvalue, relative to each {set}", RELATIVE),
    (r"(filter|weight)_trace", "Trace, relative to each {set}", RELATIVE),
    (r"(filter|weight)_trace_squared", "Squared Frobenius norm, relative to each {set}", f"({RELATIVE})²"),
    (r"gradient_norm", "Norm of the gradient", "loss per weight"),
    (r"gradient_curvature", "Curvature along the gradient gᵀHg / gᵀg", CURVED),
    (r"gradient_curvature_squared", "gᵀH²g / gᵀg", f"({CURVED})²"),
    (r"gradient_alignment", "Cosine between g and Hg", ""),
    (r"sam_sharpness", "Rise by one ascent step (SAM)", "loss"),
    (r"(filter|weight|none)_l2_sharpness", "Worst case within an l2 ball, relative to each {set}", "loss"),
    (r"(filter|weight|none)_linf_sharpness", "Worst case within an l∞ ball, relative to each {set}", "loss"),
    (r"(filter|weight|none)_average_sharpness", "Average case, noise relative to each {set}", "loss"),
    (r"keskar_sharpness", "Keskar's ε-sharpness", "% of 1 + loss"),
    (r"critical_sharpness", "Critical sharpness 2 / η_c", CURVED),
    (r"critical_learning_rate", "Critical learning rate η_c", "weight per loss per weight"),
    (r"(absolute|filter)_loss", "Loss under {set} noise", "loss"),
    (r"(absolute|filter)_loss_increase", "Rise of the loss under {set} noise", "loss"),
    (r"(absolute|filter)_loss_increase_percent", "Rise of the loss under {set} noise", "% of the loss"),
    (r"(absolute|filter)_accuracy", "Training accuracy under {set} noise", "share"),
    (r"(absolute|filter)_flipped", "Labels flipped by {set} noise", "share"),
)
SETS = {"train": "Training", "valid": "Validation", "test": "Test", "none": "nothing", "filter": "filter"}
BOUNDS = re.compile(r".*_l(2|inf)_sharpness|keskar_sharpness")
EXACT = re.compile(r"train_loss|train_accuracy|gradient_.*|sam_sharpness|parameters")
TO = {"critical_sharpness": 0.01, "critical_learning_rate": 0.01}  # determined to that share of themselves


def words(name: str) -> tuple[str, str]:
    """A value's name in words, and its unit.

    >>> words("test_accuracy"), words("my_own_number")
    (('Test accuracy', 'share'), ('My own number', ''))
    """
    for pattern, text, unit in WORDS:
        fits = re.fullmatch(pattern, name)
        if fits:
            held = next((g for g in fits.groups() if g), "")
            return text.replace("{set}", SETS.get(held, held)), unit
    return spoken(name), ""


def spoken(name: str) -> str:
    """A name of code as words.

    >>> spoken("sam_sharpness"), spoken("hessian_spectrum")
    ('SAM sharpness', 'Hessian spectrum')
    """
    spaced = re.sub(r"[_.]+", " ", name).strip() or name
    return re.sub(r"^Sam\b", "SAM", spaced[:1].upper() + spaced[1:])


def number(value: float | int) -> str:
    """A number in five significant digits, with a minus sign that is one.

    >>> number(12345.678), number(-0.00012), number(float("nan")), number(1e-9)
    ('12,346', '−0.00012', 'not defined', '1×10⁻⁹')
    """
    if math.isnan(value):
        return "not defined"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if size >= 1e4 and size < 1e9:
        return f"{value:,.0f}".replace("-", "−")
    text = f"{value:.5g}"
    front, _, exponent = text.partition("e")
    if exponent:
        raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        text = f"{front}×10{raised}"
    return text.replace("-", "−")


def rough(value: float | int) -> str:
    """An error, in two significant digits.

    >>> rough(0.012345), rough(1234.5)
    ('0.012', '1,234')
    """
    return f"{value:,.0f}" if 100 <= abs(value) < 1e9 else number(float(f"{value:.2g}"))


def within(value: float | int, error: float | int) -> str:
    """A number in as many digits as its error of two significant digits leaves it.

    >>> within(0.980556, 0.0073), within(648.2719, 12.4), within(5.0, 0.0)
    ('0.9806', '648', '5')
    """
    if not (math.isfinite(value) and math.isfinite(error) and error > 0) or abs(value) >= 1e9 or error < 1e-6:
        return number(value)
    places = max(0, 1 - math.floor(math.log10(error)))
    return number(value) if places > 6 else f"{value:,.{places}f}".replace("-", "−")


def percent(unit: str) -> tuple[float, str]:
    """By what numbers of a unit are multiplied to be shown, and the unit that is shown: shares are percentages."""
    return (100.0, "%") if unit == "share" else (1.0, unit)


def interval(estimate: Estimate, scale: float = 1.0) -> str:
    """An Estimate's 95 % interval in words, empty where it has none."""
    if not (estimate.sem > 0 and estimate.freedom > 0):
        return ""
    low, high = (within(scale * end, scale * estimate.sem) for end in estimate.interval())
    return f"{low} to {high}"


def is_bound(quantity: Quantity) -> bool:
    """Whether a value is a lower bound: the highest that a search for a maximum has met."""
    return BOUNDS.fullmatch(_last(quantity.name)) is not None


def is_exact(quantity: Quantity) -> bool:
    """Whether a value is exact up to rounding: nothing was drawn, searched for, iterated or left out.

    >>> [is_exact(q) for q in quantities({"train_loss": 0.5, "hessian_trace": Estimate(2.0), "mine": 1.0}).values()]
    [True, True, False]
    """
    value = quantity.value
    if isinstance(value, Estimate):
        return value.sem == 0 and value.n < 2  # many equal samples are not
    if quantity.beside or quantity.array is not None or isinstance(value, str) or math.isnan(float(value)):
        return False
    return is_cost(quantity.name) or EXACT.fullmatch(_last(quantity.name)) is not None


def relative_error(quantity: Quantity) -> float | None:
    """To which share of itself a value was determined, where that is what is known of its error."""
    return TO.get(_last(quantity.name))


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def sureness(quantity: Quantity) -> str:
    """How sure a single value is: exact, its standard error, or the residual within which it is known."""
    value, name = quantity.value, _last(quantity.name)
    scale, to, said = percent(words(name)[1])[0], relative_error(quantity), []
    if is_exact(quantity):
        said.append("exact")
    elif isinstance(value, Estimate):
        said.append(f"± {rough(scale * value.sem)} (n = {value.n})")
    elif "residual" in quantity.beside:
        said.append(f"within {rough(float(quantity.beside['residual']))}")
        if not bool(quantity.beside.get("converged", True)):
            said.append("not converged")
    elif "sem" in quantity.beside and quantity.array is None:
        said.append(f"± {rough(float(quantity.beside['sem']))}")
    elif is_bound(quantity):
        said.append("lower bound")
    elif to is not None:
        said.append(f"to {100 * to:g} %")
    if "data_sem" in quantity.beside and quantity.array is None:
        said.append(f"± {rough(float(quantity.beside['data_sem']))} for the samples left out")
    return ", ".join(said)


def cost(found: Mapping[str, Quantity], seconds: float | None = None) -> str:
    """What a measure took, in words."""
    said = []
    for name, quantity in found.items():
        fits = COST.search(name)
        if fits and isinstance(quantity.value, (int, float)):
            count = f"{int(quantity.value):,}"
            what = "Hessian-vector products" if fits[2] == "products" else "forward passes over the training set"
            said.append(f"{count} {what}")
    if seconds is not None:
        said.append(f"{seconds:.2g} s" if seconds < 10 else f"{seconds:,.0f} s")
    return ", ".join(said)


def is_cost(name: str) -> bool:
    """Whether a value says what a measure took."""
    return COST.search(name) is not None


def listed(values: Sequence[float] | np.ndarray) -> list[str]:
    """Numbers as texts, at most a thousand."""
    return [number(float(v)) for v in list(values)[:1000]]
