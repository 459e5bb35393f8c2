"""Terms that put another loss in the place of a share of the loss: the loss under noise, the local entropy."""

import abc
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from landscope.regularizers.draws import Batch, Draws, Loss, passed


class Replacing(nn.Module, abc.ABC):
    """The term s·(L' − L) of a loss L and another one L', which makes the objective (1 − s)·L + s·L'.

    Args:
        strength: s.
        loss: L of outputs and targets.
        draws: Where L' gets its random numbers from.
    """

    def __init__(self, strength: float, loss: Loss, draws: Draws) -> None:
        super().__init__()
        self.strength: float = strength
        self.loss: Loss = loss
        self.draws: Draws = draws

    def forward(
        self,
        model: nn.Module,
        batch: Batch,
        *,
        outputs: Tensor | None = None,
        drawn: Sequence[Tensor] | None = None,
    ) -> Float[Tensor, ""]:
        """The term, s·(L' − L).

        Args:
            model: The network; its buffers are left alone.
            batch: Inputs and targets.
            outputs: The network's outputs on the batch with their graph, where they are already computed. A
                network with dropout needs them: another pass has another mask.
            drawn: What ``draw`` gave; drawn here if None.

        Raises:
            LookupError: for layers that the model does not have.
        """
        clean = passed(model, batch[0]) if outputs is None else outputs
        return self.strength * (self._other(model, batch, drawn) - self.loss(clean, batch[1]))

    def objective(self, model: nn.Module, batch: Batch, *, drawn: Sequence[Tensor] | None = None) -> Float[Tensor, ""]:
        """The objective, (1 − s)·L + s·L'; at strength 1 L' alone is computed.

        BatchNorm's running statistics are moved once: by the first pass of L' where L is not computed (of the local
        entropy not inside `torch.func` transforms).
        """
        if isinstance(self.strength, (int, float)) and self.strength == 1:
            return self._other(model, batch, drawn, alone=True)
        other = self._other(model, batch, drawn)
        return (1 - self.strength) * self.loss(model(batch[0]), batch[1]) + self.strength * other

    @abc.abstractmethod
    def _other(
        self, model: nn.Module, batch: Batch, drawn: Sequence[Tensor] | None, *, alone: bool = False
    ) -> Float[Tensor, ""]:
        """L', with random numbers drawn here if None; ``alone``: its first pass moves the model's buffers."""
