"""Gradients of many chains of layers at once, written out: the fast way for small networks.

Every operation is on ``[members, batch, …]``. Each member's numbers are a function of its own rows alone, to the bit,
however many members there are: batched products work member by member, and buffers are padded so that no element ever
falls into the shorter code at the end of a vector loop.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from landscope.population.layers import Buffers, Layer, Linear, Pass, aten, backward_through
from landscope.population.layout import Layout


class Chain:
    """Gradients and losses of many chains of the same layers.

    Args:
        layers: As `layers_of` gives them; the last is linear.
        layout: Where the parameters lie.
        loss: The loss of one member.
        device: Where.
    """

    def __init__(
        self, layers: Sequence[Layer], layout: Layout, loss: Callable[[Tensor, Tensor], Tensor], device: torch.device
    ) -> None:
        *self._layers, last = layers
        if not isinstance(last, Linear):
            raise ValueError(f"a chain ends with a linear layer, not with {type(last).__name__}")
        self._last = last
        self._layout, self._loss, self._device = layout, loss, device
        self.forget()

    def forget(self) -> None:
        """Give back the scratch space, whose shapes go with the number of members."""
        self._scratch = Buffers(self._layout.dtype, self._device)
        self._views: tuple[Tensor, dict[str, Tensor]] | None = None

    def gradient(
        self,
        rows: Tensor,
        buffers: dict[str, Tensor],
        batch: tuple[Tensor, Tensor],
        out: Tensor,
        update: bool = True,
        **_: Any,
    ) -> Tensor:
        """The loss of each member on its batch, ``[members]``; its gradient goes to its row of ``out``.

        Args:
            rows: All parameters, ``[members, width]``.
            buffers: By name, ``[members, ...]``, changed where ``update``.
            batch: Inputs ``[members, batch, ...]`` and targets ``[members, batch, ...]``.
            out: The gradients, ``[members, width]``.
            update: Whether running statistics are updated.
        """
        run = self._pass(rows, buffers, training=True, update=update)
        x, targets = self._before_last(batch[0], run), batch[1]
        first = not self._layers
        if self._indexed(targets):
            losses, d = self._cross_entropy(self._last.head(x, run), targets)
            d = self._last.head_backward(d, run, first)
        else:
            outputs = self._last.forward(x, run)
            d, losses = torch.func.vmap(torch.func.grad_and_value(self._loss))(outputs, targets)
            d = self._last.backward(d, run, first)
        if d is not None:
            backward_through(self._layers, d, run, True)
        parts = [run.gradients[name].reshape(len(rows), -1) for name in self._layout.names]
        rest = self._layout.width - self._layout.used
        torch.cat([*parts, self._scratch("rest", len(rows), rest)], 1, out=out)
        return losses

    def _indexed(self, targets: Tensor) -> bool:
        """Whether the loss is the cross-entropy of class indices (not of probabilities), which is written out."""
        return self._loss is functional.cross_entropy and not targets.is_floating_point()

    def _cross_entropy(self, z: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Losses of the members and the gradient of the outputs, both of means over the batch."""
        chosen = targets.unsqueeze(1)
        logs = aten._log_softmax.out(z, 1, False, out=self._scratch("logs", *z.shape))
        losses = logs.gather(1, chosen).mean((1, 2)).neg_()
        d = logs.exp_().scatter_add_(1, chosen, self._minus_ones(chosen)).mul_(1 / z.shape[2])
        return losses, d

    def _minus_ones(self, like: Tensor) -> Tensor:
        return self._scratch("ones", *like.shape).fill_(-1)

    @torch.no_grad()
    def evaluate(
        self, rows: Tensor, buffers: dict[str, Tensor], batch: tuple[Tensor, Tensor], accuracy: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The summed loss of each member in eval mode, how many samples it gets right, ``[members]`` each.

        Third come the losses of all samples, ``[members, batch]``, for the cross-entropy alone; none is below 0.
        """
        run = self._pass(rows, buffers, training=False)
        x, targets = self._before_last(batch[0], run), batch[1]
        if self._indexed(targets):
            z = self._last.head(x, run)
            logs = aten._log_softmax.out(z, 1, False, out=self._scratch("logs", *z.shape))
            losses = logs.gather(1, targets.unsqueeze(1)).squeeze(1).neg_()
            right = (z.argmax(1) == targets).sum(1) if accuracy else None
            return losses.sum(1), right, losses
        outputs = self._last.forward(x, run)
        losses = torch.func.vmap(self._loss)(outputs, targets) * x.shape[1]
        right = (outputs.argmax(2) == targets).sum(1) if accuracy else None
        return losses, right, None

    def _before_last(self, inputs: Tensor, run: Pass) -> Tensor:
        x = inputs.flatten(2) if inputs.dim() > 2 else inputs.unsqueeze(2)
        for layer in self._layers:
            x = layer.forward(x, run)
        return x

    def _pass(self, rows: Tensor, buffers: Mapping[str, Tensor], training: bool, update: bool = False) -> Pass:
        if self._views is None or self._views[0] is not rows:
            self._views = rows, self._layout.views(rows)
        return Pass(self._views[1], buffers, self._scratch, training, update)
