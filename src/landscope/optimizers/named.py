"""PyTorch's own optimizers by name, and the check of parameters that all of ours share."""

import difflib
import functools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

_OWN: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "momentum": functools.partial(torch.optim.SGD, momentum=0.9),
    "nesterov": functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "amsgrad": functools.partial(torch.optim.Adam, amsgrad=True),
    "adamax": torch.optim.Adamax,
    "adadelta": torch.optim.Adadelta,
    "adagrad": torch.optim.Adagrad,
    "asgd": torch.optim.ASGD,
    "rmsprop": torch.optim.RMSprop,
    "lbfgs": torch.optim.LBFGS,
}
NAMES = tuple(_OWN)
_CLASSES = {name: f"{kind}(params, …)" for name, kind in (("sam", "SAM"), ("asam", "ASAM"), ("gsam", "GSAM"))} | {
    "entropysgd": "EntropySGD(params, …)",
    "pathsgd": "PathSGD(model, …)",
    "proxprop": "ProxProp(model, …)",
    "leastsquares": "LeastSquares(model, …)",
}


def optimizer(name: str, params: Any, /, **settings: Any) -> torch.optim.Optimizer:
    """One of PyTorch's own optimizers by its name; ``NAMES`` lists them.

    ``"momentum"`` and ``"nesterov"`` are SGD with momentum 0.9 unless told otherwise, ``"amsgrad"`` is Adam with
    ``amsgrad=True``; the others are the classes of these names with PyTorch's defaults. L-BFGS makes up to 20 gradients
    a step and needs a closure; all others make one.

    Args:
        name: In any case.
        params: Parameters, (name, parameter) pairs or parameter groups.
        settings: The optimizer's own.

    Raises:
        TypeError: for something that is no name.
        LookupError: for another name (the nearest one is suggested, or the class of this name).
        ValueError: without parameters, or for a generator that was walked before.

    >>> opt = optimizer("nesterov", [torch.zeros(2, requires_grad=True)], lr=0.1)
    >>> type(opt).__name__, opt.defaults["momentum"], opt.defaults["nesterov"]
    ('SGD', 0.9, True)
    """
    if not isinstance(name, str):
        raise TypeError(f"optimizer(name, params) needs one of the names {', '.join(NAMES)}, not {name!r}")
    if (own := _CLASSES.get(re.sub("[^a-z]", "", name.lower()))) is not None:
        raise LookupError(f"{name!r} is a class of its own and has no name here: make landscope.optimizers.{own}")
    if name.lower() not in _OWN:
        near = difflib.get_close_matches(name.lower(), NAMES, n=1)
        meant = f" (did you mean {near[0]!r}?)" if near else ""
        raise LookupError(f"there is no optimizer {name!r}{meant}; by name there are {', '.join(NAMES)}")
    return _OWN[name.lower()](parameters_given(params), **settings)


def parameters_given(params: Any) -> list[Any]:
    """The parameters, pairs or groups as a list that can be walked again.

    Raises:
        TypeError: for a module instead of its parameters.
        ValueError: where there are none, or a generator gives none. (Walked a second time, a generator is empty without
            an error: an optimizer that keeps one moves nothing, or skips its own arithmetic.)
    """
    if isinstance(params, nn.Module):
        raise TypeError(f"give the parameters, {type(params).__name__}.parameters(), not the module itself")
    if isinstance(params, torch.Tensor):
        raise TypeError("give a list of parameters, not one tensor")
    given = _walked(params, "the optimizer")
    if isinstance(given[0], dict):
        given = [group | {"params": _group(group, n)} for n, group in enumerate(given)]
        if not any(group["params"] for group in given):
            raise ValueError("none of the parameter groups holds a parameter: there is nothing to optimize")
    return given


def _group(group: dict[str, Any], n: int) -> list[Any]:
    inside = group.get("params")
    if inside is None:
        raise ValueError(f'parameter group {n} has no "params"; it has {", ".join(group) or "nothing"}')
    if isinstance(inside, torch.Tensor):
        return [inside]
    return _walked(inside, f"parameter group {n}") if isinstance(inside, Iterator) else list(inside)


def _walked(params: Iterable[Any], what: str) -> list[Any]:
    given = list(params)
    if not given and isinstance(params, Iterator):
        raise ValueError(
            f"{what} was given a generator that gives no parameters: it was walked before (a generator can be walked "
            "once), or the model has none; give list(model.parameters())"
        )
    if not given:
        raise ValueError(f"{what} was given no parameters: there is nothing to optimize")
    return given
