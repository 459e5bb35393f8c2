"""Trying a network on inputs and a loss on targets, so that what does not fit is said in words."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

MOST = 300  # characters of PyTorch's own message
MISFITS = (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, AssertionError)


def tried_network(call: Callable[[], Any], inputs: Any, weights: torch.dtype, name: str = "") -> Any:
    """What a call of a network gives.

    Args:
        call: Calls it.
        inputs: What it is called with, a tensor or several.
        weights: The type of its weights.
        name: Of the set that the inputs belong to, for the message.

    Raises:
        ValueError: where the network does not take the inputs.
    """
    try:
        return call()
    except Exception as error:
        if type(error) not in MISFITS or "allocate" in str(error):  # a network's own, or no memory
            raise
        other = isinstance(inputs, Tensor) and inputs.dtype != weights
        mend = "convert the inputs or the network, such as with model.float()"
        raise ValueError(
            f"the network does not take the {name}{' ' if name else ''}inputs, {_described(inputs)} ({said(error)})"
            + (f"; the network's weights are {kind(weights)}: {mend}" if other else "")
        ) from error


def _described(inputs: Any) -> str:
    if isinstance(inputs, Tensor):
        return f"{kind(inputs.dtype)} of shape {list(inputs.shape)}"
    if isinstance(inputs, Mapping):
        return ", ".join(f"{name}: {_described(part)}" for name, part in inputs.items())
    return ", ".join(map(_described, inputs)) if isinstance(inputs, (tuple, list)) else f"a {type(inputs).__name__}"


def tried_loss(loss: Any, outputs: Any, targets: Tensor, name: str = "") -> Any:
    """The loss of outputs and targets.

    Args:
        loss: Any function of both.
        outputs: A network's.
        targets: Of the same samples.
        name: Of the set that they belong to, for the message.

    Raises:
        ValueError: where the loss does not take them, such as a class label out of range.
    """
    try:
        return loss(outputs, targets)
    except Exception as error:
        made = f"{list(outputs.shape)}" if isinstance(outputs, Tensor) else f"in a {type(outputs).__name__}"
        span = f", {targets.min().item():g} to {targets.max().item():g}," if targets.numel() else ""
        whose = f"{name} targets" if name else "targets"
        raise ValueError(
            f"the loss does not take the {whose}, {kind(targets.dtype)} of shape {list(targets.shape)}{span} "
            f"with outputs {made} ({said(error)}); where they are classes, they are int64 (targets.long()) from 0 to "
            "one less than there are outputs"
        ) from error


def kind(dtype: torch.dtype) -> str:
    """A type's name without the library's."""
    return str(dtype).removeprefix("torch.")


def said(error: Exception) -> str:
    """What PyTorch says, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:MOST]}"
