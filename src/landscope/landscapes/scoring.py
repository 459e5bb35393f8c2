"""Loss and accuracy of many networks' outputs on one batch."""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional

from landscope.losses import Bregman

FEW = 64  # classes up to which the softmax is faster where the samples lie side by side
ELEMENTWISE = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCEWithLogitsLoss)
SIGNS = (nn.BCEWithLogitsLoss,)  # losses for which an output above 0 means 1


@final
@dataclass(frozen=True)
class Scores:
    """What a batch adds to each point.

    Args:
        loss: The sum of the loss over the samples, float64, shape ``[points]``.
        each: The loss of each sample, ``[points, samples]``, where it was asked for.
        right: How many samples are right, ``[points]``, where there is such a thing.
    """

    loss: Tensor
    each: Tensor | None
    right: Tensor | None


def score(loss: Any, outputs: Tensor, targets: Shaped[Tensor, " n *c"], *, each: bool, accuracy: bool) -> Scores:
    """Score the outputs ``[points, n, …]`` of many networks on the same samples.

    Args:
        loss: ``loss(outputs, targets)``, the mean over a batch.
        outputs: Of each point.
        targets: The samples' targets.
        each: Whether the samples' own losses are wanted.
        accuracy: Whether the accuracy is.
    """
    n = len(targets)
    right = _right(loss, outputs, targets) if accuracy else None
    if not n:
        zeros = outputs.new_zeros(len(outputs), dtype=torch.float64)
        return Scores(zeros, outputs.new_zeros(len(outputs), 0) if each else None, right)
    if len(outputs) == 1 and not each and not _is_plain(loss, outputs[0], targets):
        return Scores(loss(outputs[0], targets).double().reshape(1) * n, None, right)
    if _is_plain(loss, outputs[0], targets):
        losses = _cross_entropies(outputs, targets)
        return Scores(losses.mean(1).double() * n, losses if each else None, right)
    if type(loss) in ELEMENTWISE and targets.dim() > 0 and outputs.shape[1:] == targets.shape and _unweighted(loss):
        by_element = copy.copy(loss)
        by_element.reduction = "none"
        losses = by_element(outputs, targets.to(outputs).expand_as(outputs)).reshape(len(outputs), n, -1).mean(2)
        return Scores(losses.mean(1).double() * n, losses if each else None, right)
    losses = _mapped(of_each(loss) if each else loss, outputs, targets)
    means = losses.mean(1) if each else losses
    return Scores(means.double() * n, losses if each else None, right)


def _unweighted(loss: nn.Module) -> bool:
    return all(getattr(loss, name, None) is None for name in ("weight", "pos_weight"))


def _is_plain(loss: Any, outputs: Tensor, targets: Tensor) -> bool:
    """Whether it is cross-entropy of class indices without further settings."""
    plain = loss is functional.cross_entropy or (
        type(loss) is nn.CrossEntropyLoss and loss.weight is None and loss.label_smoothing == 0.0
    )
    return plain and outputs.dim() == 2 and targets.dim() == 1 and not targets.is_floating_point()


def _cross_entropies(outputs: Tensor, targets: Tensor) -> Tensor:
    """−log softmax(outputs)[target], ``[points, n]``."""
    places = targets.expand(len(outputs), 1, -1)
    if outputs.shape[2] <= FEW and outputs.device.type == "cpu":
        logs = torch.log_softmax(outputs.transpose(1, 2).contiguous(), 1)
        return -logs.gather(1, places).squeeze(1)
    return -torch.log_softmax(outputs, 2).gather(2, places.transpose(1, 2)).squeeze(2)


def _mapped(function: Callable[..., Tensor], outputs: Tensor, targets: Tensor) -> Tensor:
    """A function of each point's outputs, at once where it can be, else one after the other."""
    try:
        return vmap(function, in_dims=(0, None))(outputs, targets)
    except (RuntimeError, NotImplementedError):  # what looks at its arguments' values
        return torch.stack([function(one, targets) for one in outputs])


def of_each(loss: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """The losses of single samples, ``[n]``, of a loss that is the mean over a batch.

    >>> of_each(lambda outputs, targets: (outputs - targets).square().mean())(torch.tensor([1.0, 3.0]), torch.zeros(2))
    tensor([1., 9.])
    """
    if isinstance(loss, Bregman):
        return loss.each

    def single(output: Tensor, target: Tensor) -> Tensor:
        return loss(output[None], target[None])

    def every(outputs: Tensor, targets: Tensor) -> Tensor:
        try:
            return vmap(single)(outputs, targets)
        except (RuntimeError, NotImplementedError):
            return torch.stack([single(o, t) for o, t in zip(outputs, targets, strict=True)])

    return every


def has_accuracy(loss: Any, outputs: Tensor, targets: Tensor) -> bool:
    """Whether a network's outputs ``[n, …]`` on a batch are right or wrong: classes, or the sign of one logit."""
    classes = not targets.is_floating_point() and targets.dim() == 1 and outputs.dim() == 2 and outputs.shape[1] > 1
    return classes or (_by_sign(loss) and outputs.numel() == targets.numel() == len(targets))


def _by_sign(loss: Any) -> bool:
    function = loss.func if isinstance(loss, functools.partial) else loss
    named = isinstance(loss, Bregman) and loss.name == "bernoulli"
    return named or isinstance(loss, SIGNS) or function is functional.binary_cross_entropy_with_logits


def _right(loss: Any, outputs: Tensor, targets: Tensor) -> Tensor:
    if _by_sign(loss):
        return ((outputs.reshape(len(outputs), -1) > 0) == (targets.reshape(1, -1) > 0.5)).sum(1)
    # The first of several largest ones, as by argmax, which takes twenty times as long here.
    return (outputs.transpose(1, 2).contiguous().max(1).indices == targets).sum(1)
