"""What the experiments of Huang et al. 2020 share: the paper, its networks, its poisoned data, and where runs begin."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Adam

from landscope.data import Data, swiss_roll
from landscope.data.generated import swiss_roll_points
from landscope.data.sets import stream
from landscope.figures import Axis, Figure, Panel, Series, contour
from landscope.losses import cross_entropy
from landscope.models import mlp
from landscope.spec import Call, Paper, Recipe, call
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
TRAIN, WIDTHS = 200, (23, 16, 26, 32, 28, 31)  # clean points and hidden layers of Figures 3, 5 and 6
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


def on_roll(
    poison: int, seed: int, *, widths: tuple[int, ...], steps: int, schedule: Call, most: int, noise: float = 0.5
) -> Recipe:
    """Full-batch Adam on the noisy swiss roll and so many poison points, as for Figures 3, 5 and 6.

    Args:
        poison: Poison points beside 200 clean ones.
        seed: Of the run.
        widths: Of the hidden layers.
        steps: Of the run.
        schedule: Of the learning rate.
        most: The most poison points that any run beside this one has: one batch size holds all of them.
        noise: Of the points.
    """
    return Recipe(
        data=call(poisoned_roll, poison=poison, train=TRAIN, noise=noise),
        model=call(glorot_mlp, widths=widths),
        loss=call(cross_entropy),
        optimizer=call(Adam, lr=0.0057945),
        schedule=schedule,
        steps=steps,
        batch_size=TRAIN + most,
        seed=seed,
    )


def poisoned_images(seed: int, cache: Path | None, /, *, source: Call, clean: int, poison: int = 0) -> Data:
    """Images with poison among the training set, for `landscope.regularizers.poisoned_cross_entropy`.

    The first ``clean`` training samples of the source, then the next ``poison`` with the labels −1 − y: the same clean
    ones with and without poison. Inputs in one dimension that fill a square become images of it.

    Args:
        seed: Draws everything.
        cache: Where the source finds its images.
        source: Draws the samples.
        clean: How many of them are clean.
        poison: How many are poison.

    Raises:
        ValueError: for a source that gives fewer, or whose inputs are no images.
    """
    drawn: Data = source(seed, cache)
    if drawn.train.n < clean + poison:
        raise ValueError(f"{clean} clean and {poison} poison samples are needed, and the source has {drawn.train.n}")
    inputs, targets = drawn.train.inputs[: clean + poison], drawn.train.targets[: clean + poison].clone()
    targets[clean:] = -1 - targets[clean:]
    test = drawn.test and Batches(_as_images(drawn.test.inputs), drawn.test.targets, drawn.test.size)
    return Data(Batches(_as_images(inputs), targets, drawn.train.size), None, test, drawn.outputs, drawn.task)


def _as_images(inputs: Tensor) -> Tensor:
    if inputs.dim() == 4:
        return inputs
    side = round(inputs[0].numel() ** 0.5)
    if inputs.dim() != 2 or side**2 != inputs.shape[1]:
        raise ValueError(f"a residual network takes images, and these inputs are {list(inputs.shape[1:])}: give images")
    return inputs.reshape(-1, 1, side, side)


@torch.no_grad()
def fixed_norms(model: nn.Module, /, *, filters: float = 1.0, last: float = 4.0) -> None:
    """A Recipe's constraint: every convolution's filters are rescaled to one norm, rows of linear layers to another.

    Args:
        model: The network.
        filters: The norm of a slice along the first axis of a tensor with more than two axes.
        last: That of a row of a matrix.
    """
    for p in model.parameters():
        if p.dim() > 1:
            norms = p.flatten(1).norm(dim=1).clamp_min(torch.finfo(p.dtype).tiny)
            p.mul_(((filters if p.dim() > 2 else last) / norms).reshape(-1, *[1] * (p.dim() - 1)))


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


def square(label: str, span: float) -> Axis:
    """An axis from −span to span."""
    return Axis(label, limits=(-span, span))


HEIGHTS = (0.1, 0.5, 2.0, 5.0)  # nats; the first is the cutoff of the paper's basins


def contours(row: Mapping[str, Any]) -> tuple[Series, ...]:
    """The lines on which a network's plane of losses (`loss_plane`) has each of some heights, where it comes there."""
    axis = np.array(row["plane_positions"])
    losses = np.array(row["plane_train_loss"]).reshape(len(axis), -1)  # a row of results holds flat arrays
    lines = [(height, contour(axis, axis, losses, height)) for height in HEIGHTS]
    return tuple(
        Series(f"{height:g} nats", *line, slot=slot, marks=False)
        for slot, (height, line) in enumerate(lines)
        if len(line[0])
    )


def surfaces(named: Sequence[tuple[str, Mapping[str, Any]]], name: str) -> Figure | None:
    """A panel of contours for each network that has a plane; None where none has, or is anywhere of these heights.

    Args:
        named: Titles, and rows of results.
        name: The figure's.
    """
    panels, said = [], []
    for title, row in named:
        if row.get("plane_train_loss") is None or not (lines := contours(row)):
            continue
        reach, losses = float(row["plane_positions"][-1]), np.array(row["plane_train_loss"])
        axes = square("direction 1 (filter norms)", reach), square("direction 2 (filter norms)", reach)
        panels.append(Panel(title, *axes, lines))
        below = float((losses < HEIGHTS[0]).mean())
        said.append(f"{title}: {below:.0%} of the plane lies below {HEIGHTS[0]:g} nats, its median at "
                    f"{np.median(losses):.3g}")  # fmt: skip
    if not panels:
        return None
    note = "Training loss on one random plane through each network, the same draws for all; each filter's part has the "
    finding = f"Loss around minima, in units of each filter's norm. {'; '.join(said)}."
    return Figure(name, "Slices through the loss", finding, tuple(panels), f"{note}filter's norm, biases stay.")
