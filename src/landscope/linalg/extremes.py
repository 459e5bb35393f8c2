"""The extreme eigenpairs: block Lanczos with thick restart, on a basis of bounded size."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from landscope.linalg.checkpoints import Checkpoint
from landscope.linalg.krylov import Krylov, Ritz, gaussian, multiplied
from landscope.linalg.progress import Watch
from landscope.spec import derive
from landscope.types import Operator

MISSED = 1e-2  # the probability, over the random direction, at which a check for missed copies is content
LOOSE = 0.2  # residual over eigenvalue at which a Ritz vector is worth deflating
LEAST_CHECK = 8  # products that a check may take at least; else half of what the pairs took
BLOCKS = (1, 2, 4, 8)
GROWTH = 0.6  # b columns at a time need b^0.6 times the products (measured: 16 at one, 56 at eight)


@dataclass(frozen=True)
class Wanted:
    """Which eigenpairs, how exactly, at what cost.

    Args:
        top: How many of the algebraically largest.
        bottom: How many of the smallest.
        rtol: Residual over the eigenvalue's magnitude.
        max_products: Products at the most.
        block: Columns of a product.
        least: Products to make even where the pairs have converged (a density wants that many).
        check: Whether to look for copies of a multiple eigenvalue when all have converged.
    """

    top: int
    bottom: int
    rtol: float
    max_products: int
    block: int = 1
    least: int = 0
    check: bool = True

    @property
    def count(self) -> int:
        """How many pairs in all."""
        return self.top + self.bottom


class Search:
    """The run: a Krylov decomposition and what it looks for. `run` goes on from wherever it stands."""

    krylov: Krylov
    wanted: Wanted
    checking: int
    chain: int
    finished: bool

    def __init__(self, krylov: Krylov, wanted: Wanted) -> None:
        self.krylov, self.wanted = krylov, wanted
        self.checking = 0  # products made when the check began; 0: none is under way
        self.chain = 0  # the row of the random direction that the check follows; the rows after it follow from it
        self.finished = False
        self.history: list[tuple[int, float]] = []

    def run(self, watch: Watch, checkpoint: Checkpoint) -> None:
        """Make products until everything wanted has converged or the budget is used up."""
        while not self.finished:
            chosen = self._next()
            if chosen:
                self.krylov.multiply(chosen)
                watch.tell("eigenpairs", self.krylov.products, self._expected())
                checkpoint.offer(self.krylov.products)

    def _next(self) -> list[int]:
        """The rows to multiply; none where the run is finished or the basis was only cut back."""
        krylov, wanted = self.krylov, self.wanted
        if not krylov.done and not krylov.pending:
            return self._affordable([slot for _ in range(wanted.block) if (slot := krylov.draw()) is not None])
        if not krylov.done:
            return self._affordable(krylov.pending)
        ritz = krylov.ritz()
        open_ = self._unconverged(ritz)
        if not open_ and len(krylov.done) >= min(wanted.count, krylov.op.dim):
            if len(krylov.done) == krylov.op.dim:
                return self._stop()
            if self.checking or krylov.products >= wanted.least:
                return self._check(ritz)
        elif self.checking:
            self.checking = 0  # a copy has come up: converge it, then look again
        return self._towards(ritz, open_ or range(len(ritz.values)))

    def indices(self, ritz: Ritz) -> list[int]:
        """The wanted pairs among Ritz pairs: the smallest, then the largest, ascending."""
        m = len(ritz.values)
        low = list(range(min(self.wanted.bottom, m)))
        return low + [i for i in range(max(m - self.wanted.top, 0), m) if i not in low]

    def tolerance(self, ritz: Ritz) -> Float[Tensor, " m"]:
        """The residual at which each pair counts as converged: rtol·|θ|, or what rounding leaves."""
        return (self.wanted.rtol * ritz.values.abs()).clamp_min(self.krylov.rounding(ritz.scale))

    def _unconverged(self, ritz: Ritz) -> list[int]:
        bad = ritz.residuals > self.tolerance(ritz)
        open_ = [i for i in self.indices(ritz) if bad[i]]
        if open_:
            worst = max((ritz.residuals[i] / self.tolerance(ritz)[i]).item() for i in open_)
            self.history.append((self.krylov.products, worst))
        return open_

    def _towards(self, ritz: Ritz, open_: Sequence[int]) -> list[int]:
        """The pending rows that carry most of the residuals of these pairs; random ones where none does."""
        krylov = self.krylov
        if self._full(ritz):
            return []
        share = ritz.outside[:, list(open_)].square().sum(1)
        order = sorted(range(len(share)), key=lambda i: -share[i].item())
        floor = krylov.rounding(ritz.scale) ** 2
        rows = [krylov.pending[i] for i in order[: self.wanted.block] if share[i].item() > floor]
        if not rows and (slot := krylov.draw()) is not None:
            rows = [slot]
        return self._affordable(rows or krylov.pending[: self.wanted.block])

    def _full(self, ritz: Ritz) -> bool:
        """Cut the basis back where the next block has no room."""
        krylov, room = self.krylov, self.wanted.block + 1
        if min(krylov.used + room, krylov.op.dim) <= krylov.capacity:
            return False
        m, free = len(ritz.values), krylov.capacity - len(krylov.pending) - room - self.wanted.count
        spare = max(free // 2, 0)
        sides = (self.wanted.top > 0) + (self.wanted.bottom > 0)
        low = self.wanted.bottom + (spare // sides if self.wanted.bottom else 0)
        high = self.wanted.top + (spare // sides if self.wanted.top else 0)
        krylov.restart(ritz, [*range(low), *range(max(m - high, low), m)])
        self.finished = krylov.used + room > krylov.capacity  # nothing was gained: a basis too small for the pairs
        return True

    def _affordable(self, rows: Sequence[int]) -> list[int]:
        """The rows that the budget allows; where there is none left, the end."""
        rows = list(rows)[: self.wanted.max_products - self.krylov.products]
        return rows or self._stop()

    def _stop(self) -> list[int]:
        self.finished = True
        return []

    def _check(self, ritz: Ritz) -> list[int]:
        """Look for copies of the pairs found, from a random direction outside of them (see `missed`)."""
        krylov, wanted = self.krylov, self.wanted
        if not wanted.check:
            return self._stop()
        if not self.checking:
            krylov.restart(ritz, self.nearly_invariant(ritz, krylov.capacity - len(krylov.pending) - LEAST_CHECK))
            self.checking = krylov.products
            return self._random_direction()
        limit = max(LEAST_CHECK, self.checking // 2)
        if krylov.products - self.checking >= limit or self._excluded(ritz) or self._full(ritz):
            return self._stop()
        follows = any(row > self.chain for row in krylov.pending)
        return self._affordable(krylov.pending[-1:]) if follows else self._random_direction()

    def _random_direction(self) -> list[int]:
        slot = self.krylov.draw()
        self.chain = self.krylov.used if slot is None else slot
        return self._affordable(self.krylov.pending[-1:])

    def nearly_invariant(self, ritz: Ritz, most: int) -> list[int]:
        """The wanted pairs, and what else has come close to converging, the largest magnitudes first."""
        wanted = self.indices(ritz)
        others = [i for i in self.near(ritz) if i not in wanted]
        others.sort(key=lambda i: -abs(ritz.values[i].item()))
        return sorted(wanted + others[: max(most - len(wanted), 0)])

    def near(self, ritz: Ritz) -> list[int]:
        """The pairs whose residual is small beside the eigenvalue."""
        good = (ritz.residuals <= LOOSE * ritz.values.abs()) & (ritz.values.abs() > self.krylov.rounding(ritz.scale))
        return torch.nonzero(good).flatten().tolist()

    def _excluded(self, ritz: Ritz) -> bool:
        """Whether a copy at either end would have shown itself by now."""
        krylov, found, values = self.krylov, self.indices(ritz), ritz.values
        rows = [row for row in krylov.done if row >= self.chain]
        if not rows or krylov.op.dim == krylov.capacity:  # in so small a space what is pending may hold much of a copy
            return False
        alpha = krylov.h[rows, rows].tolist()
        least = krylov.rounding(ritz.scale)  # all that is known of what is left where nothing is
        beta = [krylov.h[row + 1, row].item() if row + 1 < krylov.used else least for row in rows]
        chances = []
        if self.wanted.top:
            chances.append(missed(krylov.op.dim, alpha, beta, values[found[-self.wanted.top]].item()))
        if self.wanted.bottom:
            level = -values[found[self.wanted.bottom - 1]].item()
            chances.append(missed(krylov.op.dim, [-a for a in alpha], beta, level))
        return max(chances) <= MISSED

    def _expected(self) -> int:
        """Products in all, by the residuals' geometric decrease so far."""
        now, most = self.krylov.products, self.wanted.max_products
        least = max(self.wanted.least, self.wanted.count + 1, now)
        decreasing = [(n, worst) for n, worst in self.history if worst > 0]
        if not decreasing or decreasing[-1][1] <= 1:
            return min(max(least, now), most)
        (n0, w0), (n1, w1) = decreasing[len(decreasing) // 2], decreasing[-1]
        rate = math.log(w0 / w1) / (n1 - n0) if n1 > n0 and w1 < w0 else 0.0
        return min(most, max(least, now + math.ceil(math.log(w1) / rate))) if rate > 0 else most


def missed(dim: int, alpha: Sequence[float], beta: Sequence[float], level: float) -> float:
    """A bound on the probability that Lanczos from a random direction has overlooked an eigenvalue of at least a level.

    The start vector's squared components along eigenvectors are a measure μ on the eigenvalues. For a level above all
    Ritz values, μ([level, ∞)) <= 1/Σ_{j=0}^{m} p_j(level)², p_j the orthonormal polynomials of μ, which Lanczos'
    coefficients give: β_{j+1} p_{j+1}(x) = (x − α_{j+1}) p_j(x) − β_j p_{j−1}(x) (Chebyshev, Markov and Stieltjes;
    Akhiezer 1965, section 2.5). It is the sharpest bound that these coefficients allow, and asks nothing of the other
    end of the spectrum. An eigenvector's squared component c² in a random direction has P(c² < t) <= sqrt(2 t dim/π).

    Args:
        dim: Dimension of the space.
        alpha: α of the m steps made.
        beta: β of these steps, the last one being what is left of the last product, or its rounding.
        level: The least eigenvalue that would matter.

    >>> round(missed(100, [0.0, 0.0], [1.0, 0.1], 300.0), 9)  # sqrt(200/π / (1 + 300² + 899990²)) = 9e-06
    8.865e-06
    """
    before, value, total, last = 0.0, 1.0, 1.0, 0.0
    for a, b in zip(alpha, beta, strict=True):
        if (level - a) * value <= last * before or not b:
            return 1.0  # a Ritz value lies above
        before, value, last = value, ((level - a) * value - last * before) / b, b
        total += value * value
    return min(1.0, math.sqrt(2 / math.pi * dim / total))


def chosen_block(op: Operator, seed: int, clock: Callable[[], float] = time.perf_counter) -> tuple[int, int]:
    """The block size that finds eigenpairs soonest, and the products that it took to tell: by timing the operator.

    b columns at a time cost t(b) and need about b^0.6 times as many products: the least t(b)·b^(−0.4) wins. On a CPU
    it is 1 without timing, so that results do not depend on the load of the machine; elsewhere give ``block`` where a
    result must be reproducible to the bit. In a process group it is 1, too: each process would find another.

    Args:
        op: The operator.
        seed: Of the vectors that are timed.
        clock: Seconds; a test's own.
    """
    if op.device.type == "cpu" or getattr(op, "group", None) is not None:
        return 1, 0
    return timed_block(op, seed, clock)


def timed_block(op: Operator, seed: int, clock: Callable[[], float]) -> tuple[int, int]:
    """`chosen_block` on any device."""
    x = gaussian(op.dim, derive(seed, "timed"), torch.float32).to(device=op.device, dtype=op.dtype)
    products, costs = 1, {}
    multiplied(op, x[:, None])  # the first one pays for start-up
    for b in (b for b in BLOCKS if b <= op.dim):
        columns = x[:, None].expand(-1, b).contiguous()
        start = clock()
        multiplied(op, columns).sum().item()  # .item() waits for the device
        costs[b], products = (clock() - start) * b ** (GROWTH - 1), products + b
        if costs[b] > 1.5 * min(costs.values()):
            break  # larger ones will not win
    return min(costs, key=lambda b: (costs[b], b)), products
