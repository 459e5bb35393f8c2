"""Numerical linear algebra on symmetric Operators; knows no network."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from landscope.types import Operator


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    """Extreme eigenpairs of a symmetric operator.

    Args:
        eigenvalues: Descending, shape ``[k]``, float64.
        eigenvectors: Unit columns, shape ``[dim, k]``.
        residuals: ‖A v − λ v‖ of each pair, shape ``[k]``: some eigenvalue of A lies within this distance of λ.
        converged: Whether each residual is at most ``rtol·|λ|``, or what rounding leaves of the largest magnitude
            (10 eps times it), shape ``[k]``.
        products: How many products of A with a vector were made.
    """

    eigenvalues: Float[Tensor, " k"]
    eigenvectors: Float[Tensor, " dim k"]
    residuals: Float[Tensor, " k"]
    converged: Tensor
    products: int


def lanczos(op: Operator, k: int = 1, *, rtol: float = 1e-3, max_products: int = 300, seed: int = 0) -> Eigenpairs:
    """The k algebraically largest eigenpairs, by the block Lanczos process with full reorthogonalisation.

    It builds an orthonormal Q in blocks of k columns with Qᵀ A Q = T and A Q − Q T = W, W nonzero in the last block
    alone. It stops when the k largest Ritz pairs (θ, s) of T satisfy ‖W s‖ <= rtol·|θ| (Paige 1971 for k = 1), or when
    the budget is used up. Blocks of k find an eigenvalue of multiplicity up to k as often as it is there, which
    one start vector cannot. The residuals returned are computed afresh, one product a pair, and do not rest on the
    recurrence.

    Args:
        op: The operator A.
        k: How many pairs.
        rtol: Residual over the eigenvalue's magnitude at which a pair counts as converged.
        max_products: Products with a vector at the most, the residuals' included.
        seed: Draws the start block.

    Raises:
        ValueError: for k outside 1…dim, or a budget too small for k pairs.
        FloatingPointError: where the operator returns NaN or infinity.

    Cost: k products an iteration, k at the end, memory dim × products.

    >>> class Diagonal:
    ...     dim, dtype, device = 3, torch.float64, torch.device("cpu")
    ...     def __matmul__(self, v):
    ...         return torch.tensor([[1.0], [5.0], [-9.0]], dtype=v.dtype) * v
    >>> round(lanczos(Diagonal()).eigenvalues.item(), 6)
    5.0
    """
    if not 1 <= k <= op.dim:
        raise ValueError(f"between 1 and dim = {op.dim} eigenpairs can be had, not {k}")
    budget = min(op.dim, max_products - k)
    if budget < k:
        raise ValueError(f"{k} eigenpairs with their residuals need max_products >= {2 * k}, not {max_products}")
    generator = torch.Generator().manual_seed(seed)
    basis, t = torch.zeros(0, op.dim, dtype=op.dtype, device=op.device), torch.zeros(0, 0, dtype=torch.float64)
    block = _orthonormal(_random(op, k, generator), basis, op, generator, 0.0)[0]
    while True:
        old, basis = len(basis), torch.cat([basis, block])
        images = _finite((op @ block.T).T)
        t = _extended(t, (images @ basis.T).double().cpu())
        ritz, s = torch.linalg.eigh(t)
        scale = ritz.abs().max().item()
        room = min(k, budget - len(basis))
        block, coupling = _orthonormal(images, basis, op, generator, scale)
        values, errors = ritz[-k:], (coupling.T @ s[old:, -k:]).norm(dim=0)
        tolerance = (rtol * values.abs()).clamp_min(_rounding(op, scale))
        if room <= 0 or (len(values) == k and bool((errors <= tolerance).all())):
            break
        block = block[:room]
    return _checked_pairs(op, basis.T @ s[:, -k:].flip(1).to(basis), values.flip(0), tolerance.flip(0), len(basis))


def _checked_pairs(op: Operator, vectors: Tensor, values: Tensor, tolerance: Tensor, products: int) -> Eigenpairs:
    """Ritz pairs with their true residuals."""
    vectors = vectors / vectors.norm(dim=0)
    images = _finite(op @ vectors).double()
    residuals = (images - vectors.double() * values.to(vectors.device)).norm(dim=0).cpu()
    return Eigenpairs(values, vectors, residuals, residuals <= tolerance, products + len(values))


def _extended(t: Tensor, rows: Tensor) -> Tensor:
    """T with the rows and columns of one more block, symmetric to the last bit."""
    new, size = rows.shape
    whole = torch.zeros(size, size, dtype=torch.float64)
    whole[: size - new, : size - new] = t
    whole[size - new :] = rows
    whole[:, size - new :] = rows.T
    corner = rows[:, size - new :]
    whole[size - new :, size - new :] = (corner + corner.T) / 2
    return whole


def _orthonormal(
    rows: Tensor, basis: Tensor, op: Operator, generator: torch.Generator, scale: float
) -> tuple[Tensor, Tensor]:
    """Orthonormal rows V outside the basis with rows = C V + (the basis's part); V [k, dim], C [k, k] float64.

    Where less than rounding is left of a row (an invariant subspace), V goes on with a random direction and C has
    zeros, so that the process finds what lies outside.
    """
    k = len(rows)
    new: list[Tensor] = []
    coupling = torch.zeros(k, k, dtype=torch.float64)
    rounding = _rounding(op, scale)
    for j, rest in enumerate(_outside(rows, basis)):
        w = rest
        for _ in range(2 if new else 0):
            for i, v in enumerate(new):
                c = torch.dot(w, v)
                coupling[j, i] += c.item()
                w = w - c * v
            w = _outside(w[None], basis)[0]
        length = w.norm().item()
        if length > rounding:
            coupling[j, len(new)] = length
            new.append(w / length)
        elif len(basis) + len(new) < op.dim:
            w = _outside(_random(op, 1, generator), torch.cat([basis, *(v[None] for v in new)]))[0]
            new.append(w / w.norm())
    return torch.stack(new) if new else basis[:0], coupling


def _rounding(op: Operator, scale: float) -> float:
    return 10 * torch.finfo(op.dtype).eps * scale


def _random(op: Operator, k: int, generator: torch.Generator) -> Tensor:
    return torch.randn(k, op.dim, generator=generator, dtype=torch.float64).to(device=op.device, dtype=op.dtype)


def _outside(rows: Tensor, basis: Tensor) -> Tensor:
    """The rows less their components along the basis; twice, which is enough for working precision."""
    for _ in range(2):
        rows = rows - (rows @ basis.T) @ basis
    return rows


def _finite(x: Tensor) -> Tensor:
    if not math.isfinite(x.sum().item()) and not bool(torch.isfinite(x).all()):
        raise FloatingPointError(
            "a product with the operator is NaN or infinite: are the weights and the data finite, "
            "and is the loss twice differentiable there?"
        )
    return x
