"""An orthonormal basis whose part of an operator is known exactly, and random probes of the rest: one product each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from landscope.linalg.krylov import Krylov, basis_dtype, finite, gaussian, multiplied, signs
from landscope.spec import derive
from landscope.types import Operator

COLUMNS = 8  # of a product with independent probes
MOST_VECTORS = 64  # of a basis that grows as long as it pays
ROUGH = 1e-3  # of its length that a product may be off by: in float32, and by differences, no residual shows all of it

Moment = Literal[1, 2]


@dataclass(eq=False)
class Split:
    """Tr(A^p) = a known part of U + E over v of what a probe outside of U gives, p = 1 or 2; v independent of U.

    p = 1: Tr(UᵀAU) + E wᵀAw; p = 2: ‖AU‖² + E‖Aw‖², with w = (I − UUᵀ)v. Without U, v has independent signs; with it w
    is uniform on a sphere, which takes the spread of ‖w‖ out.

    Args:
        op: A.
        rows: U in rows, shape ``[u, dim]``.
        first: Tr(UᵀAU).
        second: ‖AU‖².
        products: What U took.
    """

    op: Operator
    rows: Float[Tensor, " u dim"]
    first: float
    second: float
    products: int

    @property
    def whole(self) -> bool:
        """Whether U spans the space, so that nothing is left to probe."""
        return len(self.rows) >= self.op.dim

    def exact(self, moment: Moment) -> float:
        """The known part."""
        return self.first if moment == 1 else self.second

    def samples(self, moment: Moment, first: int, count: int, *seed: int | str) -> list[float]:
        """Independent samples of Tr(A^p), each by one product: the probes number ``first`` to ``first + count − 1``."""
        found: list[float] = []
        for a in range(first, first + count, COLUMNS):
            which = range(a, min(a + COLUMNS, first + count))
            w = self.outside(self._probes(which, *seed))
            images = applied(self.op, w)
            self.products += len(w)
            values = (w * images if moment == 1 else images.square()).sum(1, dtype=torch.float64)
            found += (self.exact(moment) + values.cpu()).tolist()
        return found

    def _probes(self, which: Sequence[int], *seed: int | str) -> Float[Tensor, " k dim"]:
        draw, dtype = (gaussian if len(self.rows) else signs), basis_dtype(self.op)
        return torch.stack([draw(self.op.dim, derive(*seed, i), dtype) for i in which]).to(self.rows.device)

    def outside(self, v: Float[Tensor, " k dim"]) -> Float[Tensor, " k dim"]:
        """Probes outside of U, of the squared length dim − u."""
        if not len(self.rows):
            return v
        for _ in range(2):
            v = v - (v @ self.rows.T) @ self.rows
        return v * ((self.op.dim - len(self.rows)) ** 0.5 / v.norm(dim=1, keepdim=True))


def applied(op: Operator, rows: Float[Tensor, " k dim"]) -> Float[Tensor, " k dim"]:
    """A times each row."""
    return finite(multiplied(op, rows.T.to(device=op.device, dtype=op.dtype))).T.to(rows)


def nothing(op: Operator) -> Split:
    """No deflation."""
    return Split(op, torch.zeros(0, op.dim, dtype=basis_dtype(op), device=op.device), 0.0, 0.0, 0)


def sketched(op: Operator, vectors: int, *seed: int | str) -> Split:
    """U spans A S of a Gaussian S: two products a vector (Meyer, Musco, Musco, Woodruff 2021)."""
    vectors = min(vectors, op.dim)
    s = torch.stack([gaussian(op.dim, derive(*seed, "sketch", i), basis_dtype(op)) for i in range(vectors)])
    u = torch.linalg.qr(applied(op, s.to(op.device)).T).Q.T.contiguous()
    images = applied(op, u)
    return Split(op, u, (u * images).sum(dtype=torch.float64).item(), square(images), 2 * vectors)


def square(x: Tensor) -> float:
    """The sum of the squares."""
    return x.double().square().sum().item()


def given(
    op: Operator,
    values: Float[Tensor, " k"],
    vectors: Float[Tensor, " dim k"],
    residuals: Float[Tensor, " k"],
    seed: int,
) -> Split:
    """U are Ritz vectors that were found before: one product, which tells whether they are this operator's.

    For x = U c with random c, ‖A x − U Λ c‖ is at most Σ|cᵢ|·rᵢ, r the residuals.

    Raises:
        ValueError: where it is more, or the vectors have another length.
    """
    if len(vectors) != op.dim:
        raise ValueError(f"the eigenvectors in deflate= have {len(vectors)} coordinates, and the operator {op.dim}")
    x = vectors.to(op.device, basis_dtype(op))
    c = gaussian(len(values), derive(seed, "given"), torch.float64)
    off = (applied(op, (x @ c.to(x))[None])[0] - x @ (values.cpu() * c).to(x)).norm().item()
    length, scale = c.norm().item(), values.abs().max().item()
    if off > (c.abs() * residuals.cpu()).sum().item() + ROUGH * scale * length:
        raise ValueError(
            f"the eigenpairs in deflate= are not this operator's: a product with their span differs by {off:.3g} of "
            f"{scale * length:.3g} from what they say. Were they found before further training, or on other data? Find "
            "them again with spectrum(op), or leave deflate= out"
        )
    u = torch.linalg.qr(x).Q.T.contiguous()
    return Split(op, u, values.sum().item(), (values.square() + residuals.square()).sum().item(), 1)


def krylov_basis(op: Operator, most: int, goes_on: Callable[[Krylov], bool], seed: int) -> Krylov:
    """A Krylov space U of a random vector: one product a vector, as A U = U T + P B gives its part of A.

    Args:
        op: A.
        most: Vectors at the most.
        goes_on: Asked after each product whether another one pays.
        seed: Of the start.
    """
    krylov = Krylov(op, min(most + 1, op.dim), derive(seed, "deflation"))
    while krylov.products < most and (krylov.pending or krylov.draw() is not None):
        krylov.multiply(krylov.pending[:1])
        if not goes_on(krylov):
            break
    return krylov


def split_by(krylov: Krylov) -> Split:
    """U is all that a Krylov decomposition has multiplied."""
    t, b = krylov.h[krylov.done][:, krylov.done], krylov.h[krylov.pending][:, krylov.done]
    second = t.square().sum().item() + b.square().sum().item()
    return Split(krylov.op, krylov.rows[krylov.done], t.diagonal().sum().item(), second, krylov.products)


def captured(krylov: Krylov) -> float:
    """‖A‖² less ‖(I − UUᵀ)A(I − UUᵀ)‖², which is half the variance of a Gaussian probe of Tr(A) that is left."""
    t, b = krylov.h[krylov.done][:, krylov.done], krylov.h[krylov.pending][:, krylov.done]
    return t.square().sum().item() + 2 * b.square().sum().item()
