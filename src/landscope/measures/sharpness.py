"""Sharpness: what a perturbation of the weights does to the loss."""

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call

from landscope.directions import filter_normalised, gaussian
from landscope.models import device_of, evaluating
from landscope.spec import derive
from landscope.types import Snapshot

PUBLISHED_MAGNITUDES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05)


def weight_perturbation(
    snapshot: Snapshot,
    *,
    kind: str = "absolute",
    magnitudes: tuple[float, ...] = PUBLISHED_MAGNITUDES,
    draws: int = 20,
) -> dict[str, Tensor]:
    """Training loss, accuracy and flipped labels when the weights are perturbed at random, over magnitudes.

    For draw d and magnitude m the parameters are θ + m·δ_d, with δ_d one Gaussian vector for all magnitudes and all
    networks of one architecture. The training set is evaluated whole, in eval mode.

    Args:
        snapshot: The network and its data.
        kind: ``"absolute"``: δ is N(0, 1) on every parameter, biases and normalisation included (Johannsen 2026,
            experiment 3). ``"filter"``: δ is rescaled so that each filter's noise has the norm of the filter's
            weights, and is zero on biases and normalisation parameters (Li et al. 2018), so that networks that
            differ only in the scale of their weights are treated alike.
        magnitudes: The standard deviations (absolute), or shares of each filter's norm (filter).
        draws: Random directions, at least 2.

    Returns:
        With the prefix ``absolute_`` or ``filter_``, each of shape ``[magnitudes]``: ``loss``, ``loss_increase``
        (perturbed less base loss), ``loss_increase_percent`` (of the base loss; infinite where that is 0), and, where
        targets are classes, ``accuracy`` and ``flipped`` (the
        share of training samples whose predicted label changes), all means over draws, each with its standard error
        over draws under ``…_sem``; and ``magnitudes``.

    Raises:
        ValueError: for an unknown kind, fewer than 2 draws, or magnitudes that are not positive.

    Cost: magnitudes × draws + 1 forward passes over the training set.
    """
    if kind not in ("absolute", "filter"):
        raise ValueError(f'kind is "absolute" or "filter", not {kind!r}')
    if draws < 2:
        raise ValueError(f"a standard error over draws needs at least 2 of them, not {draws}")
    if not magnitudes or min(magnitudes) <= 0:
        raise ValueError(f"magnitudes are positive numbers, not {magnitudes}")
    model = snapshot.model
    weights = {name: p.detach() for name, p in model.named_parameters()}
    base_loss, labels, base_correct = _predictions(snapshot, weights)
    results = torch.zeros(len(magnitudes), draws, 4, dtype=torch.float64)  # loss, increase, accuracy, flipped
    for d in range(draws):
        direction = gaussian(weights, seed=derive(snapshot.seed, "perturbation", d))
        if kind == "filter":
            direction = filter_normalised(direction, weights)
        for i, magnitude in enumerate(magnitudes):
            moved = {name: w + magnitude * direction[name] for name, w in weights.items()}
            loss, predicted, correct = _predictions(snapshot, moved)
            flipped = (predicted != labels).double().mean().item()
            results[i, d] = torch.tensor([loss, loss - base_loss, correct, flipped], dtype=torch.float64)
    values = {"magnitudes": torch.tensor(magnitudes, dtype=torch.float64)}
    columns = {"loss": results[:, :, 0], "loss_increase": results[:, :, 1]}
    columns["loss_increase_percent"] = 100 * results[:, :, 1] / base_loss
    if not math.isnan(base_correct):
        columns |= {"accuracy": results[:, :, 2], "flipped": results[:, :, 3]}
    for name, column in columns.items():
        values[name] = column.mean(1)
        values[f"{name}_sem"] = column.std(1) / math.sqrt(draws)
    return {f"{kind}_{name}": value for name, value in values.items()}


@torch.no_grad()
def _predictions(snapshot: Snapshot, weights: dict[str, Tensor]) -> tuple[float, Tensor, float]:
    """Mean loss, predicted labels ``[n]`` (none for regression) and accuracy (NaN there) on the training set."""
    model: nn.Module = snapshot.model
    total, predicted, correct = 0.0, [], 0
    classes = not snapshot.train.targets.is_floating_point()
    device = device_of(model)
    with evaluating(model):
        for inputs, targets in snapshot.train:
            inputs, targets = inputs.to(device), targets.to(device)
            outputs = functional_call(model, weights, (inputs,))
            total += snapshot.loss(outputs, targets).item() * len(inputs)
            if classes:
                predicted.append(outputs.argmax(1))
                correct += int((predicted[-1] == targets).sum())
    n = snapshot.train.n
    return total / n, torch.cat(predicted) if classes else torch.zeros(0), correct / n if classes else math.nan
