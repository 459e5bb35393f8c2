"""What rays are drawn through: maps P with a known determinant that make a basin rounder."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from landscope.linalg import Spectrum


@dataclass(frozen=True, eq=False)
class Preconditioner:
    """An invertible linear map: rays go in the directions P z for z uniform on the unit sphere.

    Args:
        name: What it is, in a word or two.
        log_det: ln |det P|.
        apply: P z for each row z, ``[rays, dim] -> [rays, dim]``.
    """

    name: str
    log_det: float
    apply: Callable[[Tensor], Tensor]


def identity() -> Preconditioner:
    """P = 1: the paper's estimator (Huang et al. 2020, section 5)."""
    return Preconditioner("identity", 0.0, lambda z: z)


def scaled(scales: Float[Tensor, " dim"], name: str = "diagonal") -> Preconditioner:
    """P = diag(scales).

    Args:
        scales: What each coordinate is measured in, above 0.
        name: What the map is called.

    Raises:
        ValueError: for a scale that is not a positive number.

    >>> P = scaled(torch.tensor([2.0, 3.0]).double())
    >>> round(math.exp(P.log_det), 9), P.apply(torch.ones(1, 2).double()).tolist()
    (6.0, [[2.0, 3.0]])
    """
    s = scales.double()
    wrong = ~(s.isfinite() & (s > 0))
    if bool(wrong.any()):
        first = int(wrong.nonzero()[0])
        raise ValueError(
            f"{int(wrong.sum())} of {len(s)} scales are not positive numbers (the first is {s[first].item():g}, at "
            f"{first}): the map would be singular; give a damping above 0, or leave these coordinates out"
        )
    return Preconditioner(name, float(s.log().sum()), lambda z: z * s)


def filter_norms(weights: Mapping[str, Tensor]) -> Preconditioner:
    """P = diag(‖filter‖): filter normalisation (Li et al. 2018) as a change of measure.

    A filter is a slice along the first axis of a tensor with two axes or more; a tensor with one axis is one filter.
    ln |det P| = Σ_f d_f ln ‖w_f‖ for filters of d_f weights turns the volume in these units into the ordinary one. (A
    direction with each filter's block rescaled to its norm, as Huang et al.'s code draws it, is not P z of a uniform z:
    there the formula for the volume is heuristic.)

    Args:
        weights: The tensors by name, in the order of the coordinates.

    Raises:
        ValueError: for filters of zeros, which are named.
    """
    scales = []
    for name, w in weights.items():
        rows = (w.flatten(1) if w.dim() > 1 else w.reshape(1, -1)).detach().double()
        norms = rows.norm(dim=1, keepdim=True)
        if bool((norms == 0).any()):
            dead = (norms[:, 0] == 0).nonzero()[:, 0].tolist()
            raise ValueError(
                f"{len(dead)} filters of {name} are zero (the first is {dead[0]}), so that directions in units of "
                "their norm are none: take preconditioner='identity' or 'diagonal'"
            )
        scales.append(norms.expand_as(rows).reshape(-1))
    return scaled(torch.cat(scales), "filter norms")


def inverse_root(diagonal: Float[Tensor, " dim"], *, damping: float, name: str = "diagonal") -> Preconditioner:
    """P = diag(|d| + ε·mean|d|)^(−½): for the diagonal d of a Hessian.

    Args:
        diagonal: d; estimates will do, for the volume is exact for every P.
        damping: ε.
        name: What the map is called.

    Raises:
        ValueError: for a damping below 0, or one of 0 where an entry is 0.
    """
    return scaled(_damped(diagonal.double(), damping).rsqrt(), name)


def inverse_root_low_rank(pairs: Spectrum, diagonal: Float[Tensor, " dim"], *, damping: float) -> Preconditioner:
    """P with P Pᵀ = (D + U Λ Uᵀ)⁻¹: the top eigenpairs of a Hessian, and a diagonal for the rest.

    D = max(d − diag(U Λ Uᵀ), 0) + ε·mean|d|, of the eigenvalues those above 0. With W = D^(−½) U Λ^½ = Z s Vᵀ it is
    P = D^(−½) (1 + Z ((1 + s²)^(−½) − 1) Zᵀ), and ln |det P| = −½ Σ ln D − ½ Σ ln(1 + s²).

    Args:
        pairs: Eigenpairs (`linalg.spectrum`).
        diagonal: d, the Hessian's diagonal or an estimate.
        damping: ε.

    Raises:
        ValueError: for a damping below 0, or a D that is not positive.

    Cost: two products with a ``[dim, k]`` matrix a ray.
    """
    positive = pairs.eigenvalues > 0
    u, top = pairs.eigenvectors[:, positive].double(), pairs.eigenvalues[positive].double()
    d = diagonal.double()
    rest = (d - u.square() @ top).clamp(min=0) + _checked(damping) * d.abs().mean()
    outer = scaled(rest.rsqrt())
    w = u * top.sqrt() / rest.sqrt()[:, None]
    squares, v = torch.linalg.eigh(w.T @ w)
    squares = squares.clamp(min=0)
    seen = squares > 1e-14 * squares.max() if len(squares) else squares > 0
    z = (w @ v[:, seen]) / squares[seen].sqrt()
    shrink = (1 + squares[seen]).rsqrt() - 1
    log_det = outer.log_det - 0.5 * float(torch.log1p(squares).sum())
    return Preconditioner("low rank and diagonal", log_det, lambda x: outer.apply(x + (x @ z * shrink) @ z.T))


def whitening(
    eigenvalues: Float[Tensor, " dim"], eigenvectors: Float[Tensor, " dim dim"], *, damping: float
) -> Preconditioner:
    """P = V (|Λ| + ε·mean|Λ|)^(−½) for H = V Λ Vᵀ: without damping a quadratic bowl becomes a ball.

    Args:
        eigenvalues: The diagonal of Λ (`torch.linalg.eigh`).
        eigenvectors: V, in columns.
        damping: ε.

    Raises:
        ValueError: for a damping below 0, or one of 0 where an eigenvalue is 0.

    Cost: a product with a ``[dim, dim]`` matrix a ray.
    """
    scales, v = scaled(_damped(eigenvalues.double(), damping).rsqrt()), eigenvectors.double()
    return Preconditioner("full Hessian", scales.log_det, lambda z: scales.apply(z) @ v.T)


def _damped(values: Tensor, damping: float) -> Tensor:
    return values.abs() + _checked(damping) * values.abs().mean()


def _checked(damping: float) -> float:
    if not (math.isfinite(damping) and damping >= 0):
        raise ValueError(f"the damping is a share of the mean, 0 or above, not {damping}")
    return damping
