"""The members' data in memory: batches by index, each member's in the order in which it would meet them alone."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from landscope.data import Data
from landscope.spec import Recipe, derive
from landscope.types import Batches

EPOCH_BYTES = 2**28  # an epoch's batches are gathered at once up to this size
LOOK = 400  # samples looked at together in an evaluation: a function of nothing, so that members do not matter


class Samples:
    """Batches and evaluation sets of some members.

    Args:
        recipes: The members' recipes, of one batch size.
        data: Their data sets, on the device; members may share one.
    """

    def __init__(self, recipes: Sequence[Recipe], data: Sequence[Data]) -> None:
        self._recipes, self._data = list(recipes), list(data)
        first = self._data[0].train
        self._n, self._size = first.n, min(recipes[0].batch_size, first.n)
        self.per_epoch: int = math.ceil(self._n / self._size)
        self._stacked: dict[str, tuple[Tensor, Tensor]] = {}
        self._epoch: tuple[int, Tensor, Tensor] | None = None  # its number, inputs and targets (or indices twice)

    def keep(self, rows: Sequence[int]) -> None:
        """Leave out all members but these."""
        self._recipes, self._data = [self._recipes[r] for r in rows], [self._data[r] for r in rows]
        self._stacked = {name: (_members(x, rows), _members(y, rows)) for name, (x, y) in self._stacked.items()}
        if self._epoch is not None:
            number, x, y = self._epoch
            self._epoch = number, x[rows], y[rows]

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs ``[members, batch, ...]`` and targets ``[members, batch, ...]`` of the step that follows ``step``."""
        x, y = self._whole("train")
        if self.per_epoch == 1:
            return x, y
        epoch, place = divmod(step, self.per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            order = torch.stack([self._order(recipe, epoch) for recipe in self._recipes]).to(x.device)
            gathered = x.numel() // len(x) * len(order) * x.element_size() <= EPOCH_BYTES
            self._epoch = (epoch, *(_chosen(x, y, order) if gathered else (order, order)))
            self._gathered = gathered
        _, first, second = self._epoch
        part = slice(place * self._size, (place + 1) * self._size)
        if self._gathered:
            return first[:, part], second[:, part]
        return _chosen(x, y, first[:, part])

    def _order(self, recipe: Recipe, epoch: int) -> Tensor:
        seed = recipe.seed if recipe.order_seed is None else recipe.order_seed
        generator = torch.Generator().manual_seed(derive(seed, "order", epoch))
        return torch.randperm(self._n, generator=generator)

    def has(self, name: str) -> bool:
        """Whether there is such a set: train, valid or test."""
        return getattr(self._data[0], name) is not None

    def looks(self, name: str, rows: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """A whole set of these members, a part at a time."""
        x, y = self._whole(name)
        if len(rows) < len(x):
            x, y = _members(x, rows), _members(y, rows)
        for start in range(0, x.shape[1], LOOK):
            yield x[:, start : start + LOOK], y[:, start : start + LOOK]

    def chosen(self, name: str, rows: Sequence[int], order: Tensor) -> tuple[Tensor, Tensor]:
        """The samples of these numbers, ``[rows, k]``, of a set of these members."""
        x, y = self._whole(name)
        return _chosen(_members(x, rows), _members(y, rows), order)

    def samples(self, name: str) -> int:
        """How many samples a set has."""
        return getattr(self._data[0], name).n

    def _whole(self, name: str) -> tuple[Tensor, Tensor]:
        """A set of all members, stacked; one that all share takes no more memory."""
        if name not in self._stacked:
            sets: list[Batches] = [getattr(data, name) for data in self._data]
            if len({_where(s) for s in sets}) == 1:
                x, y = (t.unsqueeze(0).expand(len(sets), *t.shape) for t in (sets[0].inputs, sets[0].targets))
            else:
                x, y = torch.stack([s.inputs for s in sets]), torch.stack([s.targets for s in sets])
            self._stacked[name] = x, y
        return self._stacked[name]


def _where(batches: Batches) -> tuple[Any, ...]:
    """Where in memory a set is: what is at one place is one set."""
    return tuple((t.data_ptr(), t.shape, t.stride(), t.dtype, t.device) for t in (batches.inputs, batches.targets))


def _members(stacked: Tensor, rows: Sequence[int]) -> Tensor:
    """The sets of these members; one that all share is not copied."""
    return stacked[:1].expand(len(rows), *stacked.shape[1:]) if stacked.stride(0) == 0 else stacked[list(rows)]


def _chosen(x: Tensor, y: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """The samples of these numbers, ``[members, k]``, from each member's own."""
    members, n = x.shape[:2]
    if x.stride(0) == 0:  # one set for all
        return x[0][order], y[0][order]
    flat = (order + n * torch.arange(members, device=order.device).unsqueeze(1)).reshape(-1)
    inputs, targets = (t.reshape(members * n, *t.shape[2:]).index_select(0, flat) for t in (x, y))
    return inputs.view(*order.shape, *x.shape[2:]), targets.view(*order.shape, *y.shape[2:])
