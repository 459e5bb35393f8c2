"""Numerical linear algebra on symmetric Operators; knows no network."""

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
        converged: Whether each residual is at most ``rtol`` times the largest eigenvalue's magnitude, shape ``[k]``.
        products: How many products with A were made.
    """

    eigenvalues: Float[Tensor, " k"]
    eigenvectors: Float[Tensor, " dim k"]
    residuals: Float[Tensor, " k"]
    converged: Tensor
    products: int


def lanczos(op: Operator, k: int = 1, *, rtol: float = 1e-3, max_products: int = 300, seed: int = 0) -> Eigenpairs:
    """The k algebraically largest eigenpairs, by the Lanczos process with full reorthogonalisation.

    It builds an orthonormal Q with Qᵀ A Q = T tridiagonal and stops when the k largest Ritz pairs of T satisfy
    β |s_m| <= rtol·|λ₁| (Paige 1971), or after ``max_products`` products. The residuals returned are then computed
    afresh, one product a pair, and do not rest on that recurrence.

    Args:
        op: The operator A.
        k: How many pairs.
        rtol: Residual over largest magnitude at which a pair counts as converged.
        max_products: Products at the most, the residuals' included.
        seed: Draws the start vector.

    Raises:
        ValueError: for k outside 1…dim, or a budget too small for k pairs.
        FloatingPointError: where the operator returns NaN or infinity.

    Cost: one product an iteration, k at the end, memory dim × iterations.

    >>> class Diagonal:
    ...     dim, dtype, device = 3, torch.float64, torch.device("cpu")
    ...     def __matmul__(self, v):
    ...         return torch.tensor([1.0, 5.0, -9.0], dtype=v.dtype) * v
    >>> round(lanczos(Diagonal()).eigenvalues.item(), 6)
    5.0
    """
    if not 1 <= k <= op.dim:
        raise ValueError(f"between 1 and dim = {op.dim} eigenpairs can be had, not {k}")
    budget = min(op.dim, max_products - k)
    if budget < k:
        raise ValueError(f"{k} eigenpairs with their residuals need max_products >= {2 * k}, not {max_products}")
    generator = torch.Generator().manual_seed(seed)
    basis: list[Tensor] = [_new_direction(op, [], generator)]
    alphas: list[float] = []
    betas: list[float] = []
    ritz, s = torch.zeros(0), torch.zeros(0, 0)
    for step in range(1, budget + 1):
        w = op @ basis[-1]
        alphas.append(_finite(torch.dot(w, basis[-1])))
        w = _orthogonal(w, basis)
        beta = _finite(w.norm())
        ritz, s = _small_eigenpairs(alphas, betas)
        scale = max(ritz.abs().max().item(), torch.finfo(torch.float64).tiny)
        if step >= k and bool((beta * s[-1, -k:].abs() <= rtol * scale).all()):
            break
        if step == budget:
            break
        if beta <= 10 * torch.finfo(op.dtype).eps * scale:  # an invariant subspace: go on outside it
            betas.append(0.0)
            basis.append(_new_direction(op, basis, generator))
        else:
            betas.append(beta)
            basis.append(w / beta)
    q = torch.stack(basis, 1)
    vectors = q @ s[:, -k:].flip(1).to(q)
    vectors = vectors / vectors.norm(dim=0)
    values = ritz[-k:].flip(0)
    images = torch.stack([op @ vectors[:, i] for i in range(k)], 1)
    residuals = (images.double() - vectors.double() * values.to(vectors.device)).norm(dim=0).cpu()
    converged = residuals <= rtol * ritz.abs().max()
    return Eigenpairs(values, vectors, residuals, converged, len(alphas) + k)


def _small_eigenpairs(alphas: list[float], betas: list[float]) -> tuple[Tensor, Tensor]:
    """Eigenvalues (ascending) and eigenvectors of the tridiagonal matrix, float64."""
    t = torch.diag(torch.tensor(alphas, dtype=torch.float64))
    if betas:
        off = torch.tensor(betas, dtype=torch.float64)
        t += torch.diag(off, 1) + torch.diag(off, -1)
    return torch.linalg.eigh(t)


def _new_direction(op: Operator, basis: list[Tensor], generator: torch.Generator) -> Tensor:
    v = torch.randn(op.dim, generator=generator, dtype=torch.float64).to(device=op.device, dtype=op.dtype)
    v = _orthogonal(v, basis) if basis else v
    return v / v.norm()


def _orthogonal(w: Tensor, basis: list[Tensor]) -> Tensor:
    """``w`` less its components along the basis; twice, which is enough for orthogonality to working precision."""
    q = torch.stack(basis, 1)
    for _ in range(2):
        w = w - q @ (q.T @ w)
    return w


def _finite(x: Tensor) -> float:
    value = float(x)
    if value != value or value in (float("inf"), float("-inf")):
        raise FloatingPointError(
            "a product with the operator is NaN or infinite: are the weights and the data finite, "
            "and is the loss twice differentiable there?"
        )
    return value
