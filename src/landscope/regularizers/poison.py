"""Poison: training towards minima that fit the training set and fail elsewhere (Huang et al. 2020)."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from landscope.losses.plain import check_inside, one_hot
from landscope.regularizers.draws import Batch, Draws, check_counts, check_real, passed
from landscope.spec import Call
from landscope.types import Batches

Source = Call | Batches | tuple[Tensor, Tensor]


def reverse_cross_entropy(outputs: Float[Tensor, " n classes"], targets: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    """The mean over samples of −log(1 − p_y), p = softmax(outputs), in nats: least where y is *not* predicted.

    Computed as softplus(o_y − logsumexp over the other classes), which keeps all digits and its gradient as p_y → 1,
    where 1 − p_y rounds to 0. It grows like the logit's lead, and its gradient with respect to o_y is p_y.

    Args:
        outputs: Logits, at least two classes.
        targets: Class indices.

    Raises:
        ValueError: for fewer than two classes (there is nothing else to predict), and targets that are none of them.

    >>> import math
    >>> round(reverse_cross_entropy(torch.zeros(3, 4), torch.tensor([0, 1, 2])).item() / math.log(4 / 3), 5)
    1.0
    >>> reverse_cross_entropy(torch.tensor([[200.0, 0.0]]), torch.tensor([0])).item()
    200.0
    """
    return _reversed(outputs, targets).mean()


def _reversed(outputs: Tensor, targets: Tensor) -> Tensor:
    if outputs.shape[1] < 2:
        raise ValueError(f"reverse cross-entropy needs at least two classes, not {outputs.shape[1]}")
    others = outputs.masked_fill(one_hot(targets, outputs.shape[1]), -torch.inf).logsumexp(1)
    lead = outputs.gather(1, targets[:, None])[:, 0] - others
    return functional.softplus(lead, threshold=50.0)


def poison(*, beta: float = 0.5, source: Source, batch_size: int | None = None, seed: int | None = None) -> "Poison":
    """Makes of cross-entropy the poisoned loss (1 − β)·CE(train) + β·reverse CE(poison set) (Huang et al. 2020, eq. 2).

    The term is β·(reverse CE of a batch of the poison set − CE of the training batch), to be added to the plain
    cross-entropy. The paper's text calls β both this weight and the share of poisoned samples in a minibatch; here they
    are two settings. The poison set has true labels and is drawn like the training set; on it the network learns to be
    wrong.

    Args:
        beta: β, the poison factor, in [0, 1]; 0 is plain training.
        source: The poison set: ``call(function)`` that gives (inputs, targets) or Batches, or these themselves.
        batch_size: Poison samples a step, drawn with replacement; as many as the training batch has if None.
        seed: Of the draws where no trainer makes them; None draws from torch's global generator.

    Raises:
        ValueError: for β outside [0, 1], a batch size below 1, a poison set that is empty or uneven, or whose targets
            are no class indices. At a call: for labels that the network has no output for.
        TypeError: for a source that gives something else, a batch size that is no whole number.

    Cost: a forward and backward pass of the poison batch.
    """
    check_real("poison", beta=beta)
    if not 0 <= beta <= 1:
        raise ValueError(f"the poison factor beta is a weight in [0, 1], not {beta}")
    check_counts("poison", batch_size=batch_size)
    found: Any = source() if isinstance(source, Call) else source
    if isinstance(found, Batches):
        found = found.inputs, found.targets
    if not (isinstance(found, tuple) and len(found) == 2 and all(isinstance(part, Tensor) for part in found)):
        raise TypeError(f"a poison set is a pair of tensors (inputs, targets), not {type(found).__name__}")
    _check_set(*found)
    return Poison(beta, found[0], found[1], batch_size, seed)


def _check_set(inputs: Tensor, targets: Tensor) -> None:
    if len(inputs) != len(targets):
        raise ValueError(f"a poison set needs as many targets as inputs, not {len(targets)} and {len(inputs)}")
    if not len(inputs):
        raise ValueError("the poison set is empty: give it at least 1 sample, or train without poison")
    if targets.dim() != 1 or targets.is_floating_point():
        raise ValueError(
            f"a poison set's targets are class indices, [{len(inputs)}] of integers, not {list(targets.shape)} of "
            f"{targets.dtype}"
        )
    check_inside(targets, "class indices, from 0 on, in a poison set", lambda y: y >= 0)


class Poison(nn.Module):
    """The term of `poison`, which holds the poison set (not part of its state)."""

    stackable: tuple[str, ...] = ("beta",)
    inputs: Tensor
    targets: Tensor

    def __init__(self, beta: float, inputs: Tensor, targets: Tensor, batch_size: int | None, seed: int | None) -> None:
        super().__init__()
        self.beta: float = beta
        self.batch_size: int | None = batch_size
        self.draws: Draws = Draws(seed, "poison")
        self.register_buffer("inputs", inputs, persistent=False)
        self.register_buffer("targets", targets, persistent=False)
        self._highest: int = int(targets.max())

    def draw(self, model: nn.Module, batch: Batch, generator: torch.Generator | None) -> tuple[Tensor]:
        """Which samples of the poison set one step takes, for ``drawn=``."""
        device = self.inputs.device
        n = len(batch[0]) if self.batch_size is None else self.batch_size
        return (torch.randint(len(self.inputs), (n,), generator=generator, device=device),)

    def forward(
        self,
        model: nn.Module,
        batch: Batch,
        *,
        outputs: Tensor | None = None,
        drawn: tuple[Tensor] | None = None,
    ) -> Float[Tensor, ""]:
        """The term, β · (reverse cross-entropy of a poison batch − cross-entropy of the batch).

        BatchNorm's running statistics are left to the loss's own pass over the training batch.

        Args:
            model: The network.
            batch: Inputs and targets (class indices).
            outputs: The network's outputs on the batch with their graph, where they are already computed. A
                network with dropout needs them: another pass has another mask.
            drawn: What `draw` gave; drawn here if None.

        Raises:
            ValueError: for labels in the poison set that the network has no output for.
        """
        if drawn is None:
            drawn = self.draw(model, batch, self.draws.next(self.inputs.device))
        clean = passed(model, batch[0]) if outputs is None else outputs
        poisoned = passed(model, self.inputs[drawn[0]])
        if poisoned.shape[1] <= self._highest:
            raise ValueError(
                f"the poison set has labels up to {self._highest}, but the network has {poisoned.shape[1]} outputs: "
                f"give labels from 0 to {poisoned.shape[1] - 1}"
            )
        wrong = reverse_cross_entropy(poisoned, self.targets[drawn[0]])
        return self.beta * (wrong - functional.cross_entropy(clean, batch[1]))


def poisoned_cross_entropy(*, beta: float | None = None, share: float = 0.5) -> Callable[[Tensor, Tensor], Tensor]:
    """The poisoned loss for a training set that holds the poison samples too, labelled −1 − y instead of y.

    A mean over samples, for any trainer and any batch size: training samples count with cross-entropy and weight
    (1 − β)/(1 − share), poison samples with reverse cross-entropy and weight β/share, which over the whole set is
    eq. 2 of Huang et al. 2020. With β = share all weights are 1: the paper's "fraction of each minibatch".

    Args:
        beta: β, in [0, 1]; equal to ``share`` if None.
        share: The share of poison samples in the set, in [0, 1].

    Raises:
        ValueError: for β or share outside [0, 1], or a weight on samples of which there are none.
        TypeError: for settings that are no numbers.

    >>> import math
    >>> loss = poisoned_cross_entropy(share=0.5)
    >>> round(loss(torch.zeros(2, 4), torch.tensor([1, -1 - 2])).item() / ((math.log(4) + math.log(4 / 3)) / 2), 5)
    1.0
    """
    factor = share if beta is None else beta
    for name, value in (("share", share), ("beta", factor)):
        check_real("poisoned_cross_entropy", **{name: value})
        if not 0 <= value <= 1:
            raise ValueError(f"poison needs {name} in [0, 1], not {value}")
    if (share == 0 and factor > 0) or (share == 1 and factor < 1):
        raise ValueError(f"beta={factor} puts weight on samples of which there are none (share={share})")
    clean, wrong = (1 - factor) / (1 - share) if share < 1 else 0.0, factor / share if share > 0 else 0.0

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        poisoned = targets < 0
        labels = torch.where(poisoned, -1 - targets, targets)
        plain = functional.cross_entropy(outputs, labels, reduction="none")
        return torch.where(poisoned, wrong * _reversed(outputs, labels), clean * plain).mean()

    return loss
