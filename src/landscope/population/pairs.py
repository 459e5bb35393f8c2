"""A member that is alone goes through the program beside a copy of itself, and so has the bits that it has in company.

PyTorch multiplies a batch of a single matrix in another way than one of two or more, with other rounding.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from landscope.population.chain import Chain
from landscope.population.functional import Functional

Batch = tuple[Tensor, Tensor]


class Pairs:
    """A program that never sees a single row.

    Args:
        program: What computes gradients and losses.
        prefix: Of the names that it has for the network's buffers.
    """

    def __init__(self, program: Chain | Functional, prefix: str = "") -> None:
        self.program: Chain | Functional = program
        self.prefix: str = prefix

    def forget(self) -> None:
        """Give back the scratch space."""
        self.program.forget()

    def gradient(
        self,
        rows: Tensor,
        buffers: dict[str, Tensor],
        batch: Batch,
        out: Tensor,
        update: bool = True,
        drawn: Sequence[Mapping[str, Any]] = (),
        changed: Sequence[Mapping[str, Tensor]] = (),
    ) -> Tensor:
        """As that of `Functional`."""
        if len(rows) > 1:
            return self.program.gradient(rows, buffers, batch, out, update=update, drawn=drawn, changed=changed)
        own, both = _twice(buffers), _twice(out)
        more = {"drawn": _twice(drawn), "changed": _twice(changed)}
        losses = self.program.gradient(_twice(rows), own, _twice(batch), both, update=update, **more)
        out.copy_(both[:1])
        if update:
            buffers.update({name: tensor[:1].clone() for name, tensor in own.items()})
        return losses[:1]

    def evaluate(
        self, rows: Tensor, buffers: dict[str, Tensor], batch: Batch, accuracy: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """As that of `Chain`."""
        if len(rows) > 1:
            return self.program.evaluate(rows, buffers, batch, accuracy)
        losses, right, each = self.program.evaluate(_twice(rows), _twice(buffers), _twice(batch), accuracy)
        return losses[:1], None if right is None else right[:1], None if each is None else each[:1]


def _twice(thing: Any) -> Any:
    """Tensors with their only row twice, in whatever holds them."""
    if isinstance(thing, Tensor):
        return torch.cat([thing, thing])
    if isinstance(thing, Mapping):
        return {name: _twice(part) for name, part in thing.items()}
    return type(thing)(_twice(part) for part in thing) if isinstance(thing, (tuple, list)) else thing
