"""How well a network does: losses, accuracies and the gap between training and test."""

from landscope.train import evaluate
from landscope.types import Snapshot


def performance(snapshot: Snapshot) -> dict[str, float]:
    """Loss and accuracy on the training, validation and test sets, and the generalization gap.

    All are exact means over whole sets, in eval mode. ``generalization_gap`` is the training accuracy less the test
    accuracy (equivalently: test error less training error), ``loss_gap`` the test loss less the training loss.
    Accuracies are shares between 0 and 1; a set that is not there, or has no classes, gives no value.

    Cost: one forward pass over each set.
    """
    values: dict[str, float] = {}
    for name in ("train", "valid", "test"):
        batches = getattr(snapshot, name)
        if batches is not None:
            score = evaluate(snapshot.model, snapshot.loss, batches)
            values |= {f"{name}_{kind}": value for kind, value in score.items()}
    if "test_loss" in values:
        values["loss_gap"] = values["test_loss"] - values["train_loss"]
    if "test_accuracy" in values:
        values["generalization_gap"] = values["train_accuracy"] - values["test_accuracy"]
    return values
