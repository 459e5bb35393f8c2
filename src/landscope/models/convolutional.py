"""Convolutional networks without skips."""

from collections import OrderedDict
from itertools import pairwise

from torch import nn

from landscope.models.checks import check_choice, check_image, check_sizes, check_widths, initialise

VGG_STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


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
    check_sizes(shape, outputs, channels, hidden)
    check_image("cnn", shape, 8)
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


def cnn5(shape: tuple[int, ...], outputs: int, /, *, channels: int = 64, batchnorm: bool = True) -> nn.Sequential:
    """The 5-layer network of width k of double-descent studies (Nakkiran et al., "Deep double descent", 2019).

    Four 3×3 convolutions (with biases) of k, 2k, 4k and 8k maps, each with BatchNorm and ReLU, 2×2 max-pooling after
    the second, third and fourth, then the maximum of what is left of each map, and a linear layer.

    Args:
        shape: (channels, height, width) of one image, height and width at least 8.
        outputs: Classes.
        channels: The width k.
        batchnorm: Whether a BatchNorm follows every convolution.

    Raises:
        ValueError: for inputs that are not images, or too small to be pooled three times.

    >>> sum(p.numel() for p in cnn5((3, 32, 32), 10).parameters())
    1558026
    """
    check_sizes(shape, outputs, channels)
    check_image("cnn5", shape, 8)
    layers: list[nn.Module] = []
    widths = (shape[0], channels, 2 * channels, 4 * channels, 8 * channels)
    for stage, (into, maps) in enumerate(pairwise(widths)):
        layers += [*_convolution(into, maps, batchnorm), *([nn.MaxPool2d(2)] if stage else [])]
    left = (shape[1] // 8, shape[2] // 8)
    return nn.Sequential(*layers, nn.MaxPool2d(left), nn.Flatten(), nn.Linear(widths[-1], outputs))


def cnn1d(shape: tuple[int, ...], outputs: int, /, *, channels: int = 25) -> nn.Sequential:
    """The 1-D convolutional network of MNIST-1D (Greydanus and Kobak, "Scaling down deep learning", 2020).

    Three convolutions of stride 2 and padding 1, kernels 5, 3 and 3, each followed by ReLU, and a linear layer.

    Args:
        shape: ``(length,)`` or ``(channels, length)`` of one signal, at least 3 long.
        outputs: Classes.
        channels: Maps of every convolution.

    Raises:
        ValueError: for another shape, or a shorter signal.

    >>> sum(p.numel() for p in cnn1d((40,), 10).parameters())
    5210
    """
    check_sizes(shape, outputs, channels)
    into, length = (1, *shape)[-2:]
    if len(shape) > 2 or length < 3:
        raise ValueError(f"cnn1d takes signals of shape (length >= 3,) or (channels, length >= 3), not {shape}")
    layers: list[nn.Module] = [nn.Unflatten(1, (1, length))] if len(shape) == 1 else []
    for kernel in (5, 3, 3):
        layers += [nn.Conv1d(into, channels, kernel, stride=2, padding=1), nn.ReLU()]
        into, length = channels, (length + 2 - kernel) // 2 + 1
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * length, outputs))


def vgg(
    shape: tuple[int, ...],
    outputs: int,
    /,
    *,
    depth: int = 16,
    channels: int = 64,
    batchnorm: bool = True,
    hidden: tuple[int, ...] = (),
    dropout: float = 0.0,
    initialisation: str = "he",
) -> nn.Sequential:
    """VGG-11, 13, 16 or 19 (Simonyan and Zisserman, "Very deep convolutional networks", 2014, configurations A B D E).

    Five stages of 3×3 convolutions (with biases, also beside BatchNorm) with k, 2k, 4k, 8k and 8k maps, each stage
    followed by 2×2 max-pooling, then linear layers: the part ``features``, then ``classifier``. A pooling that would
    leave nothing is left out, so that 28-pixel images end as single pixels after the fourth (28, 14, 7, 3, 1) and
    32-pixel images after the fifth. Small images are classified by one linear layer, as is usual for CIFAR-10; the
    published network for 224 pixels has ``hidden=(4096, 4096)``.

    Args:
        shape: (channels, height, width) of one image.
        outputs: Classes.
        depth: 11, 13, 16 or 19: layers with weights, of which the published network has three linear ones.
        channels: Maps k of the first stage.
        batchnorm: Whether a BatchNorm follows every convolution.
        hidden: Widths of hidden linear layers.
        dropout: The probability that a hidden node is dropped.
        initialisation: ``"he"`` or ``"pytorch"``, with which activations shrink by √6 a layer where no BatchNorm
            restores them.

    Raises:
        ValueError: for another depth or initialisation, sizes below 1, inputs that are not images, or dropout outside
            [0, 1] or without hidden layers.

    >>> sum(p.numel() for p in vgg((3, 32, 32), 10).parameters())
    14728266
    """
    check_widths("hidden", hidden)
    check_sizes(shape, outputs, channels, *hidden)
    check_choice("depth", depth, tuple(VGG_STAGES))
    if not 0 <= dropout <= 1 or (dropout and not hidden):
        raise ValueError(
            f"dropout={dropout}: the probability, between 0 and 1, of dropping a hidden node, needs hidden=(…)"
        )
    check_image("vgg", shape, 1)
    layers: list[nn.Module] = []
    into, size = shape[0], shape[1:]
    for convolutions, factor in zip(VGG_STAGES[depth], (1, 2, 4, 8, 8), strict=True):
        for _ in range(convolutions):
            layers += _convolution(into, factor * channels, batchnorm)
            into = factor * channels
        if min(size) >= 2:
            layers.append(nn.MaxPool2d(2))
            size = (size[0] // 2, size[1] // 2)
    classifier: list[nn.Module] = [nn.Flatten()]
    width = into * size[0] * size[1]
    for nodes in hidden:
        classifier += [nn.Linear(width, nodes), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
        width = nodes
    parts = {"features": nn.Sequential(*layers), "classifier": nn.Sequential(*classifier, nn.Linear(width, outputs))}
    model = nn.Sequential(OrderedDict(parts))
    initialise(model, initialisation)
    return model


def _convolution(into: int, maps: int, batchnorm: bool) -> list[nn.Module]:
    return [nn.Conv2d(into, maps, 3, padding=1), *([nn.BatchNorm2d(maps)] if batchnorm else []), nn.ReLU()]
