"""Spares the looks at the whole training set whose outcome is known: the loss is above the lowest that was seen.

A stopping rule asks whether the full training loss is below a level, and a run's record keeps a check only where the
loss is lower than at every check before. The losses of single samples are never negative, so the sum over some of them
bounds the sum over all from below. Where that of a member's hardest samples alone exceeds its lowest sum so far, the
check can neither end the run nor be recorded, and the other samples are not looked at. With small batches most checks
are such; a check that is made gives the same number, to the bit, as without this.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from landscope.population.training import Population

PART = 128  # samples looked at together
HARDEST = 4 * PART  # samples that may stand for all
FALLEN = 0.9  # the share of its lowest loss then at which a member's hardest samples are chosen anew
MARGIN = 1.001  # over rounding in sums of float32
KNOWN = "landscope.train.loss_below"  # the rule whose outcome follows from the lowest loss


class Lookout:
    """For each member the lowest sum of losses seen, and the samples that were its hardest then."""

    def __init__(self) -> None:
        self._lowest: dict[int, float] = {}
        self._chosen: dict[int, float] = {}  # the lowest sum when the hardest samples were chosen
        self._then: dict[int, list[float]] = {}  # the sums over them then, part by part
        self._hardest: tuple[Tensor, Tensor] | None = None

    def may_be_lowest(self, population: "Population", members: Sequence[int]) -> list[int]:
        """Those of the members whose full training loss may be the lowest so far, or is not finite."""
        tried = [k for k in members if k in self._lowest and self._then[k][-1] > 0.5 * self._lowest[k]]
        sums, above = dict.fromkeys(tried, 0.0), set[int]()
        for part in range(HARDEST // PART):
            if self._hardest is None or not tried:
                break
            for k, more in zip(tried, self._sums(population, self._hardest, tried, part), strict=True):
                sums[k] += more
                # A sum that is infinite or NaN bounds nothing: then the check says what it is.
                if MARGIN * self._lowest[k] < sums[k] < float("inf"):
                    above.add(k)
            # Gone on with where the rest of the hardest samples would suffice, if they rose as these have.
            tried = [k for k in tried if k not in above and self._hopeful(k, sums[k], part)]
        return [k for k in members if k not in above]

    def _hopeful(self, k: int, so_far: float, part: int) -> bool:
        then = self._then[k]
        return so_far * then[-1] > then[part] * self._lowest[k]

    @staticmethod
    def _sums(population: "Population", hardest: tuple[Tensor, Tensor], members: list[int], part: int) -> list[float]:
        at = [population.row(k) for k in members]
        whole = len(at) == len(population.running)
        rows = population.rows if whole else population.rows[at]
        buffers = population.buffers if whole else {name: t[at] for name, t in population.buffers.items()}
        x, y = (t[members, part * PART : (part + 1) * PART] for t in hardest)
        return population.program.evaluate(rows, buffers, (x, y), False)[0].tolist()

    def saw(self, population: "Population", losses: Mapping[int, float], each: Sequence[Tensor]) -> None:
        """Note the full training losses of these members, and those of the single samples, as far as they are known."""
        n = population.samples.samples("train")
        if not each or n < 2 * HARDEST:
            return
        fallen: list[tuple[int, int]] = []
        for i, k in enumerate(losses):
            rule = population.members[k].recipe.stop
            if rule is not None and rule.target == KNOWN and n * losses[k] < self._lowest.get(k, float("inf")):
                self._lowest[k] = n * losses[k]
                if self._lowest[k] < FALLEN * self._chosen.get(k, float("inf")):  # which are hardest changes slowly
                    fallen.append((i, k))
        if not fallen:
            return
        found = torch.cat(list(each), 1)[[i for i, _ in fallen]].topk(HARDEST, 1)
        members = [k for _, k in fallen]
        x, y = population.samples.chosen("train", [population.row(k) for k in members], found.indices)
        if self._hardest is None:
            total = len(population.members)
            self._hardest = x.new_zeros(total, *x.shape[1:]), y.new_zeros(total, *y.shape[1:])
        self._hardest[0][members], self._hardest[1][members] = x, y
        parts = found.values.double().cumsum(1)[:, PART - 1 :: PART].tolist()
        for k, then in zip(members, parts, strict=True):
            self._chosen[k], self._then[k] = self._lowest[k], then
