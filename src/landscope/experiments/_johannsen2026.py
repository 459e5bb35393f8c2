"""What the experiments of Johannsen 2026 share: the paper, and the refusal of data without classes."""

from typing import Any

from landscope.spec import Paper

JOHANNSEN = Paper(
    "johannsen2026",
    "Implicit Regularization and Generalization in Overparameterized Neural Networks",
    "Zeran Johannsen",
    2026,
    "https://arxiv.org/abs/2604.07603",
)


def check_classes(data: Any) -> None:
    """Refuse data that have no classes.

    Raises:
        ValueError: for another task than classification.
    """
    if data.task != "classification":
        raise ValueError(f"this experiment trains classifiers, and {data.name} has no classes: give a labelled set")
