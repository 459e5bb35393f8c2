"""The ways a Hessian product can be made, and which of them is the fastest here that gives the same numbers."""

import math
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from landscope.curvature.problem import Problem
from landscope.curvature.products import Made, Product, differences, double_backward, forward_over_reverse, rewritten

Maker = Callable[[Problem, tuple[Tensor, ...], Any], Made]


class Mode(NamedTuple):
    """A way to make products.

    Args:
        make: It, on one batch.
        keeps: Whether what is made of a batch serves more than one product, at the cost of its graph's memory.
    """

    make: Maker
    keeps: bool


COMPILED, DIFFERENCES = "compiled forward over reverse", "central differences"
PLAIN, ONE_BY_ONE = "double backward", "one column at a time"
MODES: Mapping[str, Mode] = {
    PLAIN: Mode(partial(double_backward, batched=False), True),
    "batched double backward": Mode(partial(double_backward, batched=True), True),
    "rewritten double backward": Mode(partial(rewritten, batched=False), True),
    "batched rewritten double backward": Mode(partial(rewritten, batched=True), True),
    "forward over reverse": Mode(partial(forward_over_reverse, batched=False), False),
    "batched forward over reverse": Mode(partial(forward_over_reverse, batched=True), False),
    COMPILED: Mode(partial(forward_over_reverse, batched=False, compiled=True), False),
    DIFFERENCES: Mode(differences, False),
}
TOGETHER = "batched"  # what the names of modes that take several columns at once begin with
SELDOM = ("batched double backward", "forward over reverse", "batched forward over reverse")  # seldom the fastest,
REPAYING = 200  # and so tried where the others fail, or from this many planned columns on
COMPILING = 60.0  # seconds that compiling takes, about; it took 10 to 130
COMPILED_SHARE = 0.6  # what a compiled product takes of an eager one, about
_remembered: dict[Any, str] = {}


class Choice(NamedTuple):
    """The mode that was chosen.

    Args:
        name: It.
        key: What it is remembered by.
        remembered: Whether it was chosen on another network that looks alike, and not tried on this one.
        reason: Why there is no other way, for central differences.
    """

    name: str
    key: Any
    remembered: bool = False
    reason: str | None = None


def forget(choice: Choice) -> None:
    """Choose anew next time: what was remembered failed on a network that looks alike."""
    _remembered.pop(choice.key, None)


def choose(
    problem: Problem, batch: Any, k: int, modes: Mapping[str, Mode], planned: int | None = None, batches: int = 1
) -> Choice:
    """The fastest mode for products with k columns on one batch, of those that pass the check.

    Modes that seldom win are tried where the others fail or where many columns are planned, compiling where it repays.
    The check: the products with up to four random columns (with one where k is 1, which takes the memory of one)
    agree with the plain double backward pass, and are symmetric, to the root of the type's precision in the global
    relative difference. A mode that fails is not used.
    The choice is remembered for networks of the same classes, shapes and block size in this process.

    Args:
        problem: The loss.
        batch: The batch to try on.
        k: The columns of a product.
        modes: What there is to choose from; the first is the one that the others have to agree with.
        planned: How many columns will be multiplied, or None where it is not known.
        batches: How many such batches a product takes.

    Raises:
        ValueError: where the products of the first mode are NaN or infinite.
    """
    key = (tuple(modes), _signature(problem, batch, k, planned))
    if key in _remembered:
        return Choice(_remembered[key], key, remembered=True)
    probes = _probes(problem, min(k, 4))
    times: dict[str, float] = {}
    expected: Tensor | None = None
    reason: str | None = None
    for name in modes:
        if name in (COMPILED, DIFFERENCES) or (k == 1 and name.startswith(TOGETHER)):
            continue
        if name in SELDOM and times and (planned or 0) < REPAYING:
            continue
        seconds, found, failure = _tried(modes[name], name, problem, batch, probes)
        reason = reason or failure
        if found is None or (expected is not None and not _agree(found, expected)):
            continue
        expected, times[name] = found if expected is None else expected, seconds
        del found  # what is expected stays, and no more
    if expected is None and DIFFERENCES not in modes:
        raise RuntimeError(f"no way to make products works here: {reason}")
    if expected is None:
        return Choice(DIFFERENCES, key, reason=reason)
    best = min(times, key=times.__getitem__)
    saved = (1 - COMPILED_SHARE) * times[best] / max(len(probes), 2) * batches * (planned or 0)
    if COMPILED in modes and saved > COMPILING:
        seconds, found, _ = _tried(modes[COMPILED], COMPILED, problem, batch, probes)
        if found is not None and _agree(found, expected) and seconds < times[best]:
            best = COMPILED
    _remembered[key] = best
    return Choice(best, key)


def _agree(found: Tensor, expected: Tensor) -> bool:
    """Whether products are the expected ones."""
    apart = math.hypot(*((f - e).norm().item() for f, e in zip(found, expected, strict=True)))  # a row at a time
    return apart <= torch.finfo(found.dtype).eps ** 0.5 * expected.norm().item()


def _used(product: Product, probes: Tensor) -> tuple[Tensor, bool]:
    """The products, and whether they are symmetric: u·Hv = v·Hu; with a single probe u, v = Hu."""
    found = product(probes)
    v, image = (probes, found) if len(probes) > 1 else (found, product(found))
    tolerance = torch.finfo(found.dtype).eps ** 0.5 * image.norm().item() * probes.norm().item()
    return found, (found @ v.T - probes @ image.T).norm().item() <= tolerance


def _tried(
    mode: Mode, name: str, problem: Problem, batch: Any, probes: Tensor
) -> tuple[float, Tensor | None, str | None]:
    """Seconds of one use (the second where the first is quick) and the products; None and why where there are none.

    There are none either where they are not symmetric, which is a reason for no error.
    """
    seconds, found, symmetric = math.inf, None, False
    try:
        product = mode.make(problem, problem.weights(), batch)[1]  # not timed: graphs are kept from product to product
        for _ in range(2):
            found, start = None, time.perf_counter()  # what was found before makes room
            with warnings.catch_warnings():  # that vmap goes one by one through some function is seen in the time
                warnings.filterwarnings("ignore", "There is a performance drop")
                found, symmetric = _used(product, probes)
            seconds = time.perf_counter() - start
            if seconds > 0.1 and name != COMPILED:
                break
    except torch.cuda.OutOfMemoryError as error:
        return math.inf, None, str(error)
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        if name in (PLAIN, ONE_BY_ONE) and not _lacks_derivative(error):
            raise
        if name == COMPILED:
            warnings.warn(f"compiling the product failed; it is made without: {str(error)[:200]}", stacklevel=2)
        return math.inf, None, str(error)
    except Exception as error:  # what a compiler raises is of its own classes
        if name != COMPILED:
            raise
        warnings.warn(f"compiling the product failed; it is made without: {str(error)[:200]}", stacklevel=2)
        return math.inf, None, str(error)
    if found is not None and bool(torch.isfinite(found).all()):
        return seconds, found if symmetric or name in (PLAIN, ONE_BY_ONE) else None, None
    if name in (PLAIN, ONE_BY_ONE):  # what another mode would make of it is no better
        raise ValueError(
            "the products with the curvature matrix are NaN or infinite on the first batch: are the weights and the "
            "data finite, has the loss a second derivative here (norms and square roots at 0 have none)?"
        )
    return math.inf, None, None


def _lacks_derivative(error: Exception) -> bool:
    text = str(error)
    return "derivative for" in text or "is not implemented" in text or "once_differentiable" in text


def _probes(problem: Problem, k: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    dtype = torch.promote_types(problem.space.dtype, torch.float32)
    rows = torch.randn(k, problem.space.dim, generator=generator, dtype=dtype)
    return rows.to(problem.space.device, problem.space.dtype)


def _signature(problem: Problem, batch: Any, k: int, planned: int | None) -> tuple[Any, ...]:
    model, space = problem.space.model, problem.space
    layers = tuple((_named(type(m)), m.extra_repr(), _functions(m)) for m in model.modules())
    functions = tuple(_named(f) for f in (problem.loss, problem.batch_loss, problem.batch_outputs))
    return layers, space.names, space.dtype, space.device, functions, problem.frozen, _shapes(batch), k, planned


def _named(thing: Any) -> str:
    of = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{of.__module__}.{of.__qualname__}"


def _functions(module: torch.nn.Module) -> tuple[str, ...]:
    """The functions among a module's attributes, such as its activation."""
    return tuple(f"{name}={_named(f)}" for name, f in vars(module).items() if callable(f))


def _shapes(batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return batch.shape
    if isinstance(batch, Mapping):
        return tuple((name, _shapes(part)) for name, part in batch.items())
    return tuple(_shapes(part) for part in batch) if isinstance(batch, (tuple, list)) else type(batch).__qualname__
