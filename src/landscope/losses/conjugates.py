"""Bregman losses of any strictly convex potential: its conjugate by Newton's method."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.func import grad, hessian, vmap

from landscope.losses.bregman import Bregman

HALVINGS = 60  # of a Newton step before it is given up


def from_potential(
    phi: Callable[[Tensor], Tensor],
    /,
    *,
    gradient: Callable[[Tensor], Tensor] | None = None,
    interior: float = 0.0,
    iterations: int = 100,
    name: str = "potential",
) -> Bregman:
    """The Bregman loss of a strictly convex, twice differentiable Φ, with Ψ(θ) = max_μ ⟨θ, μ⟩ − Φ(μ).

    The mean ∇Ψ(θ) = μ solves ∇Φ(μ) = θ: damped Newton steps on the strictly convex Φ(μ) − ⟨θ, μ⟩, each halved until
    it stays in the domain (where Φ is finite) and lowers the value. Two more steps are taken with a graph, so that
    first and second derivatives of Ψ are exact. The metric is [∇²Φ(μ)]⁻¹, its factor a Cholesky factor.

    ∇²Φ may be singular at single points, as y⁴'s is at 0. On the way there the steps are damped; where the mean itself
    is such a point, Ψ and its gradient are right, and the metric, which is infinite, is refused.

    Args:
        phi: Φ of one sample: a tensor ``[k]`` to a scalar, made of PyTorch's functions; not finite outside its domain.
        gradient: ∇Φ of one sample, ``[k]`` to ``[k]``; None takes it from autograd.
        interior: A number such that the vector of k of them lies inside the domain (0.5 for (0, ∞)).
        iterations: Newton steps at most.
        name: What it is called.

    Raises:
        ValueError: (when called) where an output is no value of ∇Φ, or the steps do not suffice; for targets where Φ
            is not finite; for the metric where ∇²Φ is singular.

    Cost: a Hessian ``[k, k]`` of Φ and a solve for each sample and step, about ten steps.

    >>> loss = from_potential(lambda y: y.pow(4).sum() / 4)
    >>> loss.mean(torch.tensor([[8.0]], dtype=torch.float64))  # the cube root
    tensor([[2.]], dtype=torch.float64)
    """
    slope = grad(phi) if gradient is None else gradient
    values, slopes, curvatures = vmap(phi), vmap(slope), vmap(hessian(phi))

    def mean(theta: Tensor) -> Tensor:
        start = torch.full_like(theta, interior, requires_grad=False)
        mu = _newton(theta.detach(), start, (values, slopes, curvatures), iterations)
        for _ in range(2):
            mu = mu + torch.linalg.solve(_damped(curvatures(mu)), (theta - slopes(mu))[:, :, None])[:, :, 0]
        return mu

    def psi(theta: Tensor) -> Tensor:
        mu = mean(theta)
        return (theta * mu).sum(1) - values(mu)

    def metric(theta: Tensor) -> Tensor:
        found = curvatures(mean(theta))
        if bool((flat := _singular(found)).any()):
            raise ValueError(
                f"the metric is infinite at the output {theta[int(flat.int().argmax())].tolist()}: the potential's "
                "Hessian is singular at its mean"
            )
        return torch.linalg.inv(found)

    def factor(theta: Tensor) -> Tensor:
        return torch.linalg.cholesky(metric(theta))

    domain = "where the potential is finite", lambda y: values(y if y.is_floating_point() else y.float()).isfinite()
    return Bregman(name, values, psi, slopes, mean, metric, factor, domain=domain)


@torch.no_grad()
def _newton(
    theta: Float[Tensor, " n k"],
    mu: Float[Tensor, " n k"],
    maps: tuple[Callable[[Tensor], Tensor], ...],
    iterations: int,
) -> Float[Tensor, " n k"]:
    """The μ with ∇Φ(μ) = θ."""
    values, slopes, curvatures = maps

    def value(mu: Tensor) -> Tensor:
        found = values(mu) - (theta * mu).sum(1)
        return found.where(found.isfinite(), torch.inf)

    if not bool(value(mu).isfinite().all()):
        raise ValueError(
            f"the potential is not finite at {mu.flatten()[0].item():.6g}: give another point as interior="
        )
    eps = torch.finfo(theta.dtype).eps
    for _ in range(iterations):
        residual = theta - slopes(mu)
        scale = 1 + theta.abs().amax(1)
        if bool((residual.abs().amax(1) <= eps**0.75 * scale).all()):
            return mu
        direction = torch.linalg.solve_ex(_damped(curvatures(mu)), residual[:, :, None])[0][:, :, 0]
        direction = torch.where(direction.isfinite().all(1, keepdim=True), direction, residual)
        mu = mu + _length(value, mu, direction, residual) * direction
    if bool(((theta - slopes(mu)).abs().amax(1) <= eps**0.5 * (1 + theta.abs().amax(1))).all()):
        return mu
    worst = int((theta - slopes(mu)).abs().amax(1).nan_to_num(torch.inf).argmax())
    raise ValueError(
        f"no mean was found for the output {theta[worst].tolist()} in {iterations} Newton steps: it lies outside the "
        "range of the potential's gradient, or the potential is not strictly convex"
    )


@torch.no_grad()
def _singular(matrices: Float[Tensor, " n k k"]) -> Bool[Tensor, " n"]:
    """Which Hessians are singular to rounding, whatever the units of the single outputs."""
    roots = matrices.diagonal(dim1=1, dim2=2).sqrt()
    scaled = (matrices / (roots[:, :, None] * roots[:, None, :])).nan_to_num(0.0, 0.0, 0.0)
    return torch.linalg.eigvalsh(scaled)[:, 0] <= 8 * matrices.shape[1] * torch.finfo(matrices.dtype).eps


def _damped(matrices: Float[Tensor, " n k k"]) -> Float[Tensor, " n k k"]:
    """The Hessians, those that are singular with a little added to their diagonal."""
    mean = matrices.detach().diagonal(dim1=1, dim2=2).mean(1)
    added = _singular(matrices) * torch.finfo(matrices.dtype).eps ** 0.5 * (1 + mean)
    return matrices + torch.diag_embed(added[:, None].expand(matrices.shape[:2]))


def _length(
    value: Callable[[Tensor], Tensor], mu: Tensor, direction: Tensor, residual: Tensor
) -> Float[Tensor, " n 1"]:
    """How far to go, sample by sample: halved until the value falls by a thousandth of what the slope promises."""
    here, promised = value(mu), (direction * residual).sum(1)
    slack = 4 * torch.finfo(mu.dtype).eps * (1 + here.abs())  # rounding, near the solution
    length = torch.ones_like(here)
    for _ in range(HALVINGS):
        short = value(mu + length[:, None] * direction) > here - 1e-3 * length * promised + slack
        if not bool(short.any()):
            break
        length = torch.where(short, length / 2, length)
    return length[:, None]
