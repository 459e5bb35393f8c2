"""A Krylov decomposition A Q = Q T + P B that grows, is cut back and can be stored: the state of every Lanczos run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from landscope.spec import derive
from landscope.types import Operator

# A pass of Gram-Schmidt is repeated where it took more than half of a vector's length: it then also took what the
# basis lacks in orthogonality, which would otherwise grow from step to step.
ENOUGH_LEFT, PASSES = 0.5, 4
ASYMMETRY = 1e-2  # of the largest Ritz value; beyond it A is not a symmetric matrix
CHUNK = 1 << 16  # elements of a basis vector that are rotated at a time: what that takes besides is small


@dataclass(frozen=True, eq=False)
class Ritz:
    """The eigenpairs (θ, s) of T, ascending, with what P adds: A Q s = θ Q s + P r.

    Args:
        values: θ, shape ``[m]``, float64.
        vectors: s in columns, shape ``[m, m]``.
        outside: r = B s in columns, shape ``[p, m]``; ‖r‖ is the residual of the pair.
        scale: The largest |θ|.
    """

    values: Float[Tensor, " m"]
    vectors: Float[Tensor, " m m"]
    outside: Float[Tensor, " p m"]
    scale: float

    @property
    def residuals(self) -> Float[Tensor, " m"]:
        """‖A x − θ x‖ of every Ritz vector x = Q s."""
        return self.outside.norm(dim=0)


class Krylov:
    """The decomposition A Q = Q T + P B, with Q [m, dim] and P [p, dim] in rows that are orthonormal together.

    Q are the vectors that A has been applied to, P those that are still to be. Both live in one array of a fixed
    number of rows, in any order; T and B are read from H, H[i, j] = vᵢ·A vⱼ, in float64.

    Args:
        op: The symmetric operator A.
        capacity: How many vectors are held at the most.
        seed: For all random directions.
        device: Where the basis lies; the operator's own device if None.
    """

    op: Operator
    seed: int
    dtype: torch.dtype
    device: torch.device
    rows: Tensor
    h: Tensor
    done: list[int]
    pending: list[int]
    products: int
    draws: int
    restarted: int

    def __init__(self, op: Operator, capacity: int, seed: int, device: torch.device | str | None = None) -> None:
        self.op, self.seed = op, seed
        self.dtype = basis_dtype(op)
        self.device = torch.device(device) if device is not None else op.device
        self.rows = torch.zeros(capacity, op.dim, dtype=self.dtype, device=self.device)
        self.h = torch.zeros(capacity, capacity, dtype=torch.float64)
        self.done, self.pending = [], []
        self.products, self.draws, self.restarted = 0, 0, 0

    @property
    def used(self) -> int:
        """How many rows are taken; they come first."""
        return len(self.done) + len(self.pending)

    @property
    def capacity(self) -> int:
        """How many rows there are."""
        return len(self.rows)

    def ritz(self) -> Ritz:
        """The Ritz pairs of what has been multiplied so far."""
        t = self.h[self.done][:, self.done]
        values, vectors = torch.linalg.eigh((t + t.T) / 2)
        outside = self.h[self.pending][:, self.done] @ vectors
        return Ritz(values, vectors, outside, values.abs().max().item() if len(values) else 0.0)

    def rounding(self, scale: float) -> float:
        """What rounding leaves of a product's length when the largest eigenvalue is of this magnitude."""
        return 10 * torch.finfo(self.op.dtype).eps * scale

    def draw(self) -> int | None:
        """Add a random direction to P and return its row; None where the basis already spans the space."""
        if self.used == self.op.dim:
            return None
        for _ in range(3):  # a direction that lies inside the basis to working precision is bad luck, or a full basis
            self.draws += 1
            w = gaussian(self.op.dim, derive(self.seed, "direction", self.draws), self.dtype).to(self.device)
            w, _ = orthogonalised(w / w.norm(), self.rows[: self.used], always=True)
            length = w.norm().item()
            if length > math.sqrt(torch.finfo(self.dtype).eps):
                return self._append(orthogonalised(w / length, self.rows[: self.used], always=True)[0])
        return None

    def _append(self, w: Tensor) -> int:
        slot = self.used
        self.rows[slot] = w / w.norm()
        self.pending.append(slot)
        return slot

    def multiply(self, chosen: Sequence[int]) -> Tensor:
        """Apply A to some rows of P: they move to Q, and what is new in their images joins P.

        Returns the images, ``[len(chosen), dim]``, as they were before orthogonalisation: for quadrature.
        """
        images = self.product(self.rows[list(chosen)])
        known = self.done
        for x, image in zip(chosen, images, strict=True):
            rest, column = self._new_part(x, image, known)
            self.h[: len(column), x] = column
            self.done, self.pending = [*self.done, x], [i for i in self.pending if i != x]
            length, scale = rest.norm().item(), max(image.norm().item(), self.h.abs().max().item())
            if length > self.rounding(scale) and self.used < self.op.dim:
                self.h[self._append(rest), x] = length
        self._symmetrise(chosen, known)
        return images

    def _new_part(self, x: int, image: Tensor, known: Sequence[int]) -> tuple[Tensor, Tensor]:
        """A x less its components along the basis, and these.

        What is large goes first: the components that are known by symmetry (most are next to nothing: a Lanczos vector
        leans on two others), then those along x and what is pending. A single pass over the whole basis then finds
        next to nothing, and leaves orthogonality to working precision.
        """
        column, rest = torch.zeros(self.used, dtype=torch.float64), image
        row = self.h[x].abs()
        for i in (i for i in known if row[i] > math.sqrt(torch.finfo(self.dtype).eps) * row.max()):
            column[i] = self.h[x, i]
            rest = torch.add(rest, self.rows[i], alpha=-column[i].item())
        for i in [x, *(i for i in range(self.used) if i != x and i not in known)]:
            c = torch.dot(self.rows[i], rest).item()
            rest = torch.add(rest, self.rows[i], alpha=-c)
            column[i] += c
        rest, c = orthogonalised(rest, self.rows[: self.used])
        return rest, column + c.double().cpu()

    def _symmetrise(self, chosen: Sequence[int], known: Sequence[int]) -> None:
        """Both ways of reading xᵢ·A xⱼ must agree; take their mean."""
        new, old = list(chosen), [*known, *chosen]
        there, back = self.h[old][:, new], self.h[new][:, old].T
        gap = (there - back).abs().max().item()
        scale = self.h.abs().max().item()
        allowed = max(ASYMMETRY, 100 * torch.finfo(self.op.dtype).eps) * scale
        if gap > allowed:
            raise ValueError(
                f"the operator is not symmetric: u·Av and v·Au differ by {gap:.3g}, its entries reach {scale:.3g}; "
                "is the loss the same whenever it is read (no dropout, no shuffled batch statistics), and is A = Aᵀ?"
            )
        mean = (there + back) / 2
        rows, columns = torch.tensor(old), torch.tensor(new)
        self.h[rows[:, None], columns[None]] = mean
        self.h[columns[:, None], rows[None]] = mean.T

    def product(self, rows: Float[Tensor, " k dim"]) -> Float[Tensor, " k dim"]:
        """A times each row, on the basis's device and in its type; counted."""
        columns = rows.T.to(device=self.op.device, dtype=self.op.dtype)
        images = finite(multiplied(self.op, columns))
        self.products += columns.shape[1]  # afterwards: an interrupted product is made again
        return images.T.to(device=self.device, dtype=self.dtype).contiguous()

    def restart(self, ritz: Ritz, keep: Sequence[int]) -> None:
        """Cut Q back to some Ritz vectors (thick restart); A Q = Q T + P B stays exact."""
        s, outside = ritz.vectors[:, list(keep)], ritz.outside[:, list(keep)]
        felt = [i for i, share in enumerate(outside.norm(dim=1).tolist()) if share > self.rounding(ritz.scale)]
        rotation, old, waiting = s.T.to(self.rows), self.done, [self.pending[i] for i in felt]
        k, p = s.shape[1], len(waiting)
        for a in range(0, self.op.dim, CHUNK):
            part = self.rows[:, a : a + CHUNK]
            part[: k + p] = torch.cat([rotation @ part[old], part[waiting]])
        h = torch.zeros_like(self.h)
        h[range(k), range(k)] = ritz.values[list(keep)]
        h[k : k + p, :k] = outside[felt]
        self.h, self.done, self.pending = h, list(range(k)), list(range(k, k + p))
        self.restarted += 1

    def vectors(self, s: Float[Tensor, " m k"]) -> Float[Tensor, " dim k"]:
        """Q s as unit columns."""
        taken = torch.zeros(s.shape[1], self.used, dtype=s.dtype)
        taken[:, self.done] = s.T.cpu()
        x = (taken.to(self.rows) @ self.rows[: self.used]).T
        return x.div_(x.norm(dim=0))


def orthogonalised(w: Tensor, rows: Tensor, *, always: bool = False) -> tuple[Tensor, Tensor]:
    """A vector less its components along orthonormal rows, and the components ``[k]``.

    Classical Gram-Schmidt, repeated where it took much of the vector (Daniel et al. 1976), or ``always`` once.
    """
    total = w.new_zeros(len(rows))
    for passes in range(1, PASSES + 1 if len(rows) else 1):
        before, c = w.norm(), rows @ w
        w, total = torch.addmv(w, rows.T, c, alpha=-1), total + c
        if not (always and passes == 1) and bool(w.norm() >= ENOUGH_LEFT * before):
            break
    return w, total


def basis_dtype(op: Operator) -> torch.dtype:
    """The type of basis vectors: the operator's, but at least float32."""
    return op.dtype if op.dtype == torch.float64 else torch.float32


def gaussian(dim: int, seed: int, dtype: torch.dtype) -> Float[Tensor, " dim"]:
    """Standard normal numbers that follow from the seed alone, drawn on the CPU so that every device gets the same."""
    return torch.randn(dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def signs(dim: int, seed: int, dtype: torch.dtype) -> Float[Tensor, " dim"]:
    """Independent ±1 that follow from the seed alone."""
    return torch.randint(0, 2, (dim,), generator=torch.Generator().manual_seed(seed)).to(dtype) * 2 - 1


def multiplied(op: Operator, columns: Float[Tensor, " dim k"]) -> Float[Tensor, " dim k"]:
    """A times columns; one column goes as a vector, which some operators do faster."""
    if columns.shape[1] == 1:
        return (op @ columns[:, 0].contiguous()).unsqueeze(1)
    return op @ columns.contiguous()


def finite(x: Tensor) -> Tensor:
    """The tensor, or an error where it holds NaN or infinity."""
    if not math.isfinite(x.sum().item()) and not bool(torch.isfinite(x).all()):
        raise FloatingPointError(
            "a product with the operator is NaN or infinite: are the weights and the data finite, "
            "and is the loss twice differentiable there?"
        )
    return x
