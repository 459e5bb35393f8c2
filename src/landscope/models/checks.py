"""Checks and initialisations that several networks share."""

from numbers import Integral

import torch
from torch import nn

INITIALISATIONS = ("he", "pytorch")


def check_whole(name: str, *values: object) -> None:
    """Refuse what is no whole number."""
    if not all(isinstance(value, Integral) for value in values):
        raise TypeError(f"{name}: whole numbers are needed, not {', '.join(map(repr, values))}")


def check_widths(name: str, widths: object) -> None:
    """Refuse a number where there has to be one for each layer."""
    if not isinstance(widths, (tuple, list)):
        raise TypeError(f"{name} needs a number for each hidden layer, such as ({widths!r},), not {widths!r}")


def check_sizes(shape: tuple[int, ...], *sizes: int) -> None:
    """Refuse an empty input shape, and sizes that are no whole numbers or below 1."""
    if not isinstance(shape, (tuple, list)):
        raise TypeError(f"a network needs the shape of one input, such as (3, 32, 32) or (784,), not {shape!r}")
    check_whole("a network's input shape and sizes", *shape, *sizes)
    if not shape or min(shape) < 1 or min(sizes) < 1:
        raise ValueError(f"a network needs an input shape and sizes of at least 1, not {shape} and {sizes}")


def check_image(name: str, shape: tuple[int, ...], least: int) -> None:
    """Refuse inputs that are no images, or too small ones."""
    if len(shape) != 3 or min(shape[1:]) < least:
        raise ValueError(f"{name} takes images of shape (channels, height >= {least}, width >= {least}), not {shape}")


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Refuse what is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name} is one of {', '.join(map(repr, choices))}, not {value!r}")


@torch.no_grad()
def initialise(model: nn.Module, initialisation: str) -> None:
    """``"pytorch"`` leaves a network as it is; ``"he"`` draws weights from N(0, 2 / fan-in) and zeroes biases.

    BatchNorm keeps gains of 1. Source: He et al., "Delving deep into rectifiers", 2015, equation 10.
    """
    check_choice("initialisation", initialisation, INITIALISATIONS)
    if initialisation == "pytorch":
        return
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                module.bias.zero_()
