"""How a network does on the parts of a set that was put together from several."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from landscope.spec import Call
from landscope.train import evaluate
from landscope.types import Batches, Snapshot


def performance_of_parts(snapshot: Snapshot, *, train: int | None = None, test: int | None = None) -> dict[str, float]:
    """Loss and accuracy on the first samples of the training and test sets, and on those behind them.

    For sets made of two: clean samples followed by poison, published test samples followed by fresh ones. The values
    are ``first_<set>_loss``, ``first_<set>_accuracy`` and the same with ``rest_``, means over the part in eval mode;
    accuracies are shares of the labels that the set holds, and only classes have them. A set without a number given,
    or that is not there, has no values; a part without samples neither: all of a smaller set is its first part.

    Args:
        snapshot: The network and its data.
        train: Samples of the first part of the training set; None leaves the set out.
        test: Samples of the first part of the test set; None leaves the set out.

    Raises:
        ValueError: for a first part of less than one sample.

    Cost: a forward pass over each set named.
    """
    values: dict[str, float] = {}
    for name, count in (("train", train), ("test", test)):
        whole: Batches | None = getattr(snapshot, name)
        if count is None or whole is None:
            continue
        if count < 1:
            raise ValueError(f"the first part of the {name} set has at least 1 sample, not {count}")
        for part, slice_ in (("first", slice(count)), ("rest", slice(count, None))):
            inputs, targets = whole.inputs[slice_], whole.targets[slice_]
            if len(inputs):
                score = evaluate(snapshot.model, snapshot.loss, Batches(inputs, targets, whole.size))
                values |= {f"{part}_{name}_{kind}": value for kind, value in score.items()}
    return values


def on_first(snapshot: Snapshot, *, measure: Call | None = None, samples: int | None = None) -> Mapping[str, Any]:
    """Any measure, of the first samples of the training set alone: of the clean ones that poison follows.

    Args:
        snapshot: The network and its data.
        measure: The measure, ``call(function, ...)``; None for no values.
        samples: How many; all where the set has fewer. None for no values.

    Returns:
        What the measure gives.

    Raises:
        ValueError: for less than one sample.

    Cost: the measure's.
    """
    if measure is None or samples is None:
        return {}
    if samples < 1:
        raise ValueError(f"a measure needs at least 1 sample, not {samples}")
    train = snapshot.train
    first = Batches(train.inputs[:samples], train.targets[:samples], train.size)
    return measure(replace(snapshot, train=first))
