"""How well a network does: losses, accuracies and the gap between training and test."""

import functools

import torch
from torch import Tensor

from landscope.landscapes.scoring import score
from landscope.train import evaluate
from landscope.types import Estimate, Snapshot


def performance(
    snapshot: Snapshot, *, examples: bool | None = None, errors: bool | None = None
) -> dict[str, float | Estimate | Tensor]:
    """Loss and accuracy on the training, validation and test sets, and the generalization gap.

    All are exact means over whole sets, in eval mode. ``generalization_gap`` is the training accuracy less the test
    accuracy (equivalently: test error less training error), ``loss_gap`` the test loss less the training loss.
    Accuracies are shares between 0 and 1; a set that is not there, or has no classes, gives no value.

    As values for the distribution that a validation or test set was drawn from, they have the sampling error of its
    examples. That of an accuracy p of n examples is sqrt(p (1 − p) / n); ``errors`` gives that of the losses.

    Args:
        snapshot: The network and its data.
        examples: Whether to keep ``test_correct`` too, shape ``[test samples]``: for each test sample, in the set's
            order, whether its predicted label is right; ``test_accuracy`` is its mean.
        errors: Whether ``valid_loss``, ``test_loss`` and ``loss_gap`` are Estimates, with the standard error s/√n, s
            the standard deviation of the n examples' own losses. The gap has that of its test loss, the training set
            being what it is. A set of one example has none. A loss is known as a mean over a batch: that of one example
            is the loss of a batch of it alone.

    Cost: one forward pass over each set.
    """
    values: dict[str, float] = {}
    losses: dict[str, list[Tensor]] = {"valid": [], "test": []}
    right: list[Tensor] = []

    def seen(name: str, outputs: Tensor, targets: Tensor) -> None:
        if errors and name != "train":
            each = score(snapshot.loss, outputs[None], targets, each=True, accuracy=False).each
            losses[name] += [] if each is None else [each[0].double().cpu()]
        if examples and name == "test" and not targets.is_floating_point():
            right.append((outputs.argmax(1) == targets).cpu())

    for name in ("train", "valid", "test"):
        batches = getattr(snapshot, name)
        if batches is not None:
            found = evaluate(snapshot.model, snapshot.loss, batches, seen=functools.partial(seen, name))
            values |= {f"{name}_{kind}": value for kind, value in found.items()}
    if "test_loss" in values:
        values["loss_gap"] = values["test_loss"] - values["train_loss"]
    if "test_accuracy" in values:
        values["generalization_gap"] = values["train_accuracy"] - values["test_accuracy"]
    uncertain: dict[str, float | Estimate | Tensor] = {}
    for name, of in (("valid_loss", "valid"), ("test_loss", "test"), ("loss_gap", "test")):
        if (each := torch.cat([torch.zeros(0), *losses[of]])).numel() > 1:
            uncertain[name] = Estimate(values[name], Estimate.of(each.numpy()).sem, len(each))
    return values | uncertain | ({"test_correct": torch.cat(right)} if right else {})
