"""What experiments of any paper ask of their data."""

from typing import Any


def check_classes(data: Any) -> None:
    """Refuse data that have no classes.

    Raises:
        ValueError: for another task than classification.
    """
    if data.task != "classification":
        raise ValueError(f"this experiment trains classifiers, and {data.name} has no classes: give a labelled set")
