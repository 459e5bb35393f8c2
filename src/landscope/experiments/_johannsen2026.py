"""What the experiments of Johannsen 2026 share: the paper, what is trained on which data, and the sizes of batches."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from landscope.experiments._data import check_classes
from landscope.spec import Paper

JOHANNSEN = Paper(
    "johannsen2026",
    "Implicit Regularization and Generalization in Overparameterized Neural Networks",
    "Zeran Johannsen",
    2026,
    "https://arxiv.org/abs/2604.07603",
)
Setup = TypeVar("Setup")


def chosen(scale: str, data: Any, *, paper: Setup, smoke: Setup, grey: Setup, colour: Setup, other: Setup) -> Setup:
    """What is trained at a scale: below the paper's, by whether the data are grey images, colour images or neither.

    Raises:
        ValueError: for data without classes, or without images at the paper's scale.
    """
    check_classes(data)
    image = len(data.shape) == 3
    if scale == "paper":
        if not image:
            raise ValueError(f"the paper's network is convolutional, and {data.name} holds no images: give cifar10")
        return paper
    if scale == "smoke":
        return smoke
    if not image:
        return other
    return colour if data.shape[0] > 1 else grey


def training_samples(data: Any, sizes: Mapping[str, Any]) -> int:
    """How many training samples a draw of these sizes gives."""
    drawn = dict(data.draw(**sizes).kwargs)
    return drawn.get("train") or data.n_train - (drawn.get("valid") or 0)  # by default all that are left


def check_batches(sizes: Sequence[int], samples: int, name: str) -> None:
    """Refuse batch sizes that are none.

    Raises:
        ValueError: for one below 1 or above the number of training samples.
    """
    wrong = [size for size in sizes if not 1 <= size <= samples]
    if wrong:
        raise ValueError(
            f"a batch of {name} holds between 1 and {samples:,} samples, as many as are trained on, not "
            f"{' or '.join(f'{size:,}' for size in wrong)}: give data with more samples, or smaller batches"
        )
