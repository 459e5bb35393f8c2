"""The Bregman family: losses with their potentials, means and output metrics, in the Fenchel–Young form.

With a strictly convex potential Φ of the targets y and its conjugate Ψ of the outputs θ,

    loss(θ, y) = Ψ(θ) + Φ(y) − ⟨θ, y⟩ = d_Φ(y, ∇Ψ(θ)) = d_Ψ(θ, ∇Φ(y)),

d_Φ(y, z) = Φ(y) − Φ(z) − ⟨y − z, ∇Φ(z)⟩. It is the negative log-likelihood of the exponential family with natural
parameter θ, up to what does not depend on θ; its gradient is ∇Ψ(θ) − y and its Hessian the Fisher information ∇²Ψ(θ).
Logarithms are natural. Source: Banerjee et al., "Clustering with Bregman divergences", 2005; Taborsky and Hansen,
"Generalization by design", 2021, appendix B, whose equation 21 has the arguments in the other order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional

from landscope.losses.plain import check_inside, one_hot

FAMILIES = ("squared", "categorical", "bernoulli", "poisson")

Potential = Callable[[Tensor], Tensor]  # [n, k] -> [n]
Map = Callable[[Tensor], Tensor]  # [n, k] -> [n, k] or [n, k, k]
SUM = 1e-3  # by how much the sum of a target's probabilities may miss 1: they may have been rounded


@final
@dataclass(frozen=True, eq=False)
class Bregman:
    """A loss ``loss(outputs, targets) -> scalar``, the mean over samples of Ψ(θ) + Φ(y) − ⟨θ, y⟩, with its geometry.

    Make one with `bregman` or `from_potential`. All maps act sample by sample on tensors ``[n, k]``.

    Args:
        name: Its name.
        phi: Φ(y), ``[n]``.
        psi: Ψ(θ), ``[n]``.
        natural: ∇Φ(y), the natural parameter of a mean, ``[n, k]``.
        mean: ∇Ψ(θ), the mean of an output, ``[n, k]``.
        metric: ∇²Ψ(θ), the Fisher information at an output, ``[n, k, k]``.
        metric_factor: S(θ) with S Sᵀ = metric, ``[n, k, k]``.
        direct: loss(θ, y) of each sample where a formula of its own is more exact, else None.
        domain: What targets have to be, in words, and whether they are, ``[n]`` or ``[n, k]``.
    """

    name: str
    phi: Potential
    psi: Potential
    natural: Map
    mean: Map
    metric: Map
    metric_factor: Map
    direct: Callable[[Tensor, Tensor], Tensor] | None = None
    domain: tuple[str, Map] | None = None

    def __call__(self, outputs: Float[Tensor, " n k"], targets: Shaped[Tensor, " n *k"]) -> Float[Tensor, ""]:
        """The mean over the samples of a batch."""
        return self.each(outputs, targets).mean()

    def each(self, outputs: Float[Tensor, " n k"], targets: Shaped[Tensor, " n *k"]) -> Float[Tensor, " n"]:
        """The loss of each sample: 0 where the target is the output's mean, to rounding, which may leave it just below.

        Targets are ``[n, k]`` (or ``[n]`` for one output); class indices ``[n]`` are taken as one-hot vectors by the
        categorical and the squared loss, and as 0 and 1 by the Bernoulli loss of one output.

        Raises:
            ValueError: for targets of another shape, or outside of Φ's domain (in transforms of the targets and in
                compiled code these are not looked at).
        """
        if self.name == "categorical" and not targets.is_floating_point() and targets.dim() == 1:
            k = outputs.shape[1]
            check_inside(targets, f"class indices from 0 to {k - 1}", lambda y: (y >= 0) & (y < k))
            return functional.cross_entropy(outputs, targets, reduction="none")
        y = self._means(outputs, targets)
        if self.direct is not None:
            return self.direct(outputs, y)
        return self.psi(outputs) + self.phi(y) - (outputs * y).sum(1)

    def divergence(self, y: Float[Tensor, " n k"], z: Float[Tensor, " n k"]) -> Float[Tensor, " n"]:
        """d_Φ(y, z) = Φ(y) − Φ(z) − ⟨y − z, ∇Φ(z)⟩ between means."""
        return self.phi(y) - self.phi(z) - ((y - z) * self.natural(z)).sum(1)

    def dual_divergence(self, theta: Float[Tensor, " n k"], eta: Float[Tensor, " n k"]) -> Float[Tensor, " n"]:
        """d_Ψ(θ, η) = Ψ(θ) − Ψ(η) − ⟨θ − η, ∇Ψ(η)⟩ between natural parameters."""
        return self.psi(theta) - self.psi(eta) - ((theta - eta) * self.mean(eta)).sum(1)

    def _means(self, outputs: Tensor, targets: Tensor) -> Tensor:
        k = outputs.shape[1]
        if not targets.is_floating_point() and targets.dim() == 1 and self.name == "squared" and k > 1:
            return one_hot(targets, k).to(outputs)
        if targets.shape != outputs.shape and not (k == 1 and targets.dim() == 1):
            raise ValueError(
                f"the {self.name} loss of outputs {list(outputs.shape)} needs targets of the same shape, "
                f"not {list(targets.shape)}"
            )
        targets = targets.reshape(outputs.shape)
        if self.domain is not None:
            check_inside(targets, *self.domain)
        return targets.to(outputs)

    def __repr__(self) -> str:
        """Its name."""
        return f"Bregman loss ({self.name})"


def bregman(*, family: str) -> Bregman:
    """The Bregman loss of a family, summed over outputs and averaged over samples.

    - ``"squared"``: ½‖θ − y‖² (torch's ``mse_loss`` of k outputs is 2/k of it; `squared_error` is 2 of it);
    - ``"categorical"``: torch's ``cross_entropy`` for classes; for a distribution y, KL(y ‖ softmax θ), which is
      torch's with −Σ y log y subtracted;
    - ``"bernoulli"``: Σ over outputs of KL(y ‖ sigmoid θ): k times torch's ``binary_cross_entropy_with_logits`` for
      y of 0 and 1;
    - ``"poisson"``: Σ e^θ − θ y + y log y − y: k times torch's ``poisson_nll_loss`` without ``full``, plus Φ(y).

    Potentials, metrics and their factors: ½‖y‖², I, I; Σ y log y on the simplex, diag(p) − p pᵀ,
    diag(√p) − p √pᵀ; Σ y log y + (1 − y) log(1 − y), diag(p (1 − p)), its root; Σ y log y − y, diag(e^θ), its root.

    Raises:
        ValueError: for another family.

    >>> loss = bregman(family="bernoulli")
    >>> round(loss(torch.tensor([[0.0]]), torch.tensor([1])).item(), 4)  # log 2
    0.6931
    """
    if family not in FAMILIES:
        raise ValueError(f"family is one of {', '.join(map(repr, FAMILIES))}, not {family!r}; or use from_potential")
    return {"squared": _SQUARED, "categorical": _CATEGORICAL, "bernoulli": _BERNOULLI, "poisson": _POISSON}[family]


def _identity(theta: Tensor) -> Tensor:
    return torch.eye(theta.shape[1], dtype=theta.dtype, device=theta.device).expand(len(theta), -1, -1)


def _half_square(x: Tensor) -> Tensor:
    return x.square().sum(1) / 2


_SQUARED = Bregman(
    "squared",
    phi=_half_square,
    psi=_half_square,
    natural=torch.clone,
    mean=torch.clone,
    metric=_identity,
    metric_factor=_identity,
    direct=lambda theta, y: _half_square(theta - y),
    domain=("finite", torch.isfinite),
)


def _probable(y: Tensor) -> Tensor:
    return (y >= 0).all(1) & ((y.sum(1, dtype=torch.float32) - 1).abs() <= SUM)


def _categorical_metric(theta: Tensor) -> Tensor:
    p = theta.softmax(1)
    return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]


def _categorical_factor(theta: Tensor) -> Tensor:
    p = theta.softmax(1)
    return torch.diag_embed(p.sqrt()) - p[:, :, None] * p.sqrt()[:, None, :]


_CATEGORICAL = Bregman(
    "categorical",
    phi=lambda y: torch.xlogy(y, y).sum(1),
    psi=lambda theta: theta.logsumexp(1),
    natural=torch.log,  # on the simplex natural parameters are equal up to a constant; this one has Ψ = 0
    mean=lambda theta: theta.softmax(1),
    metric=_categorical_metric,
    metric_factor=_categorical_factor,
    direct=lambda theta, y: (torch.xlogy(y, y) - y * theta.log_softmax(1)).sum(1),
    domain=("probabilities that add up to 1, or class indices", _probable),
)


def _bernoulli_variance(theta: Tensor) -> Tensor:
    return theta.sigmoid() * (-theta).sigmoid()


_BERNOULLI = Bregman(
    "bernoulli",
    phi=lambda y: (torch.xlogy(y, y) + torch.xlogy(1 - y, 1 - y)).sum(1),
    psi=lambda theta: functional.softplus(theta).sum(1),
    natural=torch.logit,
    mean=torch.sigmoid,
    metric=lambda theta: torch.diag_embed(_bernoulli_variance(theta)),
    metric_factor=lambda theta: torch.diag_embed(_bernoulli_variance(theta).sqrt()),
    # −y log p − (1 − y) log(1 − p): no difference of large numbers, as softplus(θ) − θ y would be
    direct=lambda theta, y: (
        torch.xlogy(y, y)
        + torch.xlogy(1 - y, 1 - y)
        - y * functional.logsigmoid(theta)
        - (1 - y) * functional.logsigmoid(-theta)
    ).sum(1),
    domain=("between 0 and 1", lambda y: (y >= 0) & (y <= 1)),
)

_POISSON = Bregman(
    "poisson",
    phi=lambda y: (torch.xlogy(y, y) - y).sum(1),
    psi=lambda theta: theta.exp().sum(1),
    natural=torch.log,
    mean=torch.exp,
    metric=lambda theta: torch.diag_embed(theta.exp()),
    metric_factor=lambda theta: torch.diag_embed((theta / 2).exp()),
    domain=("finite and not negative", lambda y: (y >= 0) & y.isfinite()),
)
