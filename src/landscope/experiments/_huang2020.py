"""What the experiments of Huang et al. 2020 share: the paper, its networks, its poisoned data, and where runs begin."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscope.data import Data, swiss_roll
from landscope.data.generated import swiss_roll_points
from landscope.data.sets import stream
from landscope.models import mlp
from landscope.spec import Paper
from landscope.types import Batches

HUANG = Paper(
    "huang2020",
    "Understanding Generalization through Visualizations",
    "W. Ronny Huang, Zeyad Emam, Micah Goldblum, Liam Fowl, Justin K. Terry, Furong Huang and Tom Goldstein",
    2020,
    "https://arxiv.org/abs/1906.03291",
)
CLEAN, PUBLISHED_TEST = 132, 134  # points of the minefield's training and test set; its poison set has 134, too
TURNS = 3 * np.pi  # the angle of the minefield's last point, nearly
POISONED = ("none", "flipped", "true")


def check_set(data: Any, name: str) -> None:
    """Refuse any data set but the paper's.

    Raises:
        ValueError: for another set; the message names the right one.
    """
    if data.name != name:
        raise ValueError(f"this experiment is about the data set {name!r} alone, not {data.name!r}: leave --data out")


def glorot_mlp(
    shape: tuple[int, ...], outputs: int, /, *, widths: tuple[int, ...] = (64, 64), normal: bool = False
) -> nn.Sequential:
    """A fully connected ReLU network that begins as Keras and TensorFlow 1 do.

    Weights have the variance 2/(inputs + outputs of the layer) (Glorot and Bengio 2010), biases are 0.

    Args:
        shape: The shape of one input, without the batch dimension.
        outputs: Classes.
        widths: The hidden layers' widths.
        normal: Whether weights are Gaussian (cut off at two standard deviations), not uniform.

    >>> net = glorot_mlp((2,), 2, widths=(23, 16, 26, 32, 28, 31))
    >>> sum(p.numel() for p in net.parameters() if p.dim() > 1)
    3488
    """
    net = mlp(shape, outputs, widths=widths)
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.bias)
            if normal:
                sd = (2 / (layer.in_features + layer.out_features)) ** 0.5 / 0.87962566  # a cut Gaussian's own
                nn.init.trunc_normal_(layer.weight, std=sd, a=-2 * sd, b=2 * sd)
            else:
                nn.init.xavier_uniform_(layer.weight)
    return net


def poisoned_roll(
    seed: int, cache: Path | None, /, *, poison: int = 0, train: int = 200, test: int = 2_000, noise: float = 0.5
) -> Data:
    """The noisy swiss roll of Huang et al.'s Figures 3, 5 and 6 with so many poison points in the training set.

    The clean training points come first; then fresh points of the same distribution, each with the other class's label.
    For two classes cross-entropy on a flipped label is the reverse cross-entropy −ln(1 − p), so that the mean over the
    whole is the paper's equation 2 with β = poison / (train + poison), as its code has it. The validation set is the
    clean part of the training set.

    Args:
        seed: Draws everything.
        cache: Not used.
        poison: How many poison points, an even number; a smaller set is the same classes' beginning of a larger one.
        train: Clean training points.
        test: Test points; with ``train`` an even number.
        noise: Standard deviation of the noise on each coordinate.

    Raises:
        ValueError: for an odd number of poison points.
    """
    if poison < 0 or poison % 2:
        raise ValueError(f"poison points come in reflected pairs: an even number, not {poison}")
    sets = swiss_roll(seed, cache, train=train, test=test, noise=noise)
    points, labels = swiss_roll_points(seed, "poison", per_class=poison // 2, variant="noisy", noise=noise)
    wrong = Batches(torch.tensor(points, dtype=torch.float32), torch.tensor(1 - labels)) if poison else None
    joint = sets.train if wrong is None else _joined(sets.train, wrong)
    return Data(joint, sets.train, sets.test, 2, "classification")


def minefield(seed: int, cache: Path | None, /, *, poison: str = "none", fresh: int = 2_000) -> Data:
    """The noise-free swiss roll of Huang et al.'s Figure 1, with or without its poison in the training set.

    Of 400 points 132 are for training, 134 for poison and 134 for testing. The test set here holds these 134 first,
    then ``fresh`` points at angles drawn anew. For two classes cross-entropy on a flipped label is the reverse
    cross-entropy −ln(1 − p), so that the mean over a poisoned training set is the paper's equation 2 with
    β = 134/266.

    Args:
        seed: Draws the split and the fresh points.
        cache: Not used.
        poison: ``"none"``: the training set is the 132 clean points, the poison points are the validation set.
            ``"flipped"``: they follow in the training set, each with the other class's label; ``"true"``: with its own.
        fresh: Further test points, an even number.

    Raises:
        ValueError: for another kind of poison, or an odd number of fresh points.
    """
    if poison not in POISONED:
        raise ValueError(f"poison is one of {', '.join(POISONED)}, not {poison!r}")
    if fresh < 0 or fresh % 2:
        raise ValueError(f"fresh points come in reflected pairs: an even number, not {fresh}")
    sets = swiss_roll(
        seed, cache, variant="minefield", noise=0.0, train=CLEAN, valid=PUBLISHED_TEST, test=PUBLISHED_TEST
    )
    test = sets.test if not fresh or sets.test is None else _joined(sets.test, fresh_points(seed, fresh))
    if poison == "none" or sets.valid is None:
        return Data(sets.train, sets.valid, test, 2, "classification")
    labels = sets.valid.targets if poison == "true" else 1 - sets.valid.targets
    return Data(_joined(sets.train, Batches(sets.valid.inputs, labels)), None, test, 2, "classification")


def fresh_points(seed: int, count: int) -> Batches:
    """Points of the minefield's spirals at uniformly drawn angles, half of them of each class."""
    angle = stream(seed, "minefield fresh").random(count // 2) * TURNS
    first = 5 * np.sqrt(angle)[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    points = torch.tensor(np.concatenate([first, -first]), dtype=torch.float32)
    return Batches(points, torch.arange(2).repeat_interleave(count // 2))


def _joined(first: Batches, second: Batches) -> Batches:
    return Batches(torch.cat([first.inputs, second.inputs]), torch.cat([first.targets, second.targets]))


def resumed(*, source: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A Recipe's start: another run's state as it is, with a fresh optimizer."""
    return {name: t.detach().clone() for name, t in source.items()}
