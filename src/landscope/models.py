"""Networks: functions of ``(input shape, outputs)`` that return a module with PyTorch's default initialisation."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def mlp(
    shape: tuple[int, ...], outputs: int, /, *, widths: tuple[int, ...] = (64, 64, 64), batchnorm: bool = False
) -> nn.Sequential:
    """A fully connected ReLU network on flattened inputs.

    Args:
        shape: The shape of one input, without the batch dimension.
        outputs: Classes, or the dimension of a regression target.
        widths: The hidden layers' widths.
        batchnorm: Whether a BatchNorm follows every hidden linear layer.

    Raises:
        ValueError: for a shape or width below 1.

    The MLP(4096) of Johannsen 2026, section III:

    >>> sum(p.numel() for p in mlp((784,), 10, widths=(4096, 4096, 4096)).parameters())
    36818954
    """
    _check(shape, outputs, *widths)
    layers: list[nn.Module] = [nn.Flatten()]
    width = math.prod(shape)
    for hidden in widths:
        layers += [nn.Linear(width, hidden), *([nn.BatchNorm1d(hidden)] if batchnorm else []), nn.ReLU()]
        width = hidden
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def cnn(
    shape: tuple[int, ...], outputs: int, /, *, channels: int = 32, batchnorm: bool = True, hidden: int = 256
) -> nn.Sequential:
    """The six-convolution network of Johannsen 2026.

    Three stages of two 3×3 convolutions with ``channels``, twice and four times as many maps, each convolution
    followed by BatchNorm (or not) and ReLU, each stage by 2×2 max-pooling; then a hidden linear layer and the output.
    The convolutions keep their biases beside BatchNorm, as the paper's code does.

    Args:
        shape: (channels, height, width) of one image, height and width at least 8.
        outputs: Classes.
        channels: Maps of the first stage; the paper's experiments call it the width.
        batchnorm: Whether a BatchNorm follows every convolution.
        hidden: Width of the hidden linear layer.

    Raises:
        ValueError: for inputs that are not images, or too small to be pooled three times.

    >>> sum(p.numel() for p in cnn((3, 32, 32), 10).parameters())
    815018
    """
    _check(shape, outputs, channels, hidden)
    if len(shape) != 3 or min(shape[1:]) < 8:
        raise ValueError(f"cnn takes images of shape (channels, height >= 8, width >= 8), not {shape}")
    layers: list[nn.Module] = []
    into = shape[0]
    for maps in (channels, 2 * channels, 4 * channels):
        for _ in range(2):
            norm = [nn.BatchNorm2d(maps)] if batchnorm else []
            layers += [nn.Conv2d(into, maps, 3, padding=1), *norm, nn.ReLU()]
            into = maps
        layers.append(nn.MaxPool2d(2))
    features = into * (shape[1] // 8) * (shape[2] // 8)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def _check(shape: tuple[int, ...], *sizes: int) -> None:
    if not shape or min(shape) < 1 or min(sizes) < 1:
        raise ValueError(f"a network needs an input shape and sizes of at least 1, not {shape} and {sizes}")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every submodule in eval mode; each is as it was found afterwards, also after an exception."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """PyTorch's global generators seeded inside; as they were found afterwards, also after an exception."""
    # Not torch.manual_seed: where CUDA was never used, that formats a stack trace, at a third of a millisecond a call.
    generators = [torch.default_generator, *(torch.cuda.default_generators if torch.cuda.is_initialized() else ())]
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def device_of(model: nn.Module) -> torch.device:
    """Where a network's first parameter is; the CPU for one without parameters."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))
