"""Gradient noise: how much the gradients of single samples differ, beside the gradient that they make together."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from landscope.curvature.products import loss_and_gradient
from landscope.measures._objective import Objective, objective
from landscope.types import Estimate, Snapshot


def gradient_noise(snapshot: Snapshot, *, batch: int = 16, samples: int | None = None) -> dict[str, float | Estimate]:
    """The gradient noise scale Tr(Σ)/‖G‖²: the batch size at which noise and gradient are of one size.

    G = ∇L is the gradient of the training loss, Σ the covariance of the gradients of single training samples (divisor
    n − 1), in eval mode, for all trainable parameters. The gradient of a batch of B samples has the squared length
    ‖G‖² + Tr(Σ)/B, so that batches far above the scale hardly differ from full ones (McCandlish et al. 2018,
    arXiv:1812.06162, eq. 2.9 and appendix A.1, who speak of samples without end; here the training set is all that
    there is, as it is for a network trained on it many times).

    The samples are cut at random into K batches of b, with gradients g_k and mean ḡ; for m samples out of n

        Tr(Σ) ≈ m/(K − 1) · (Σ_k (b_k/m) ‖g_k‖² − ‖ḡ‖²),    ‖G‖² ≈ ‖ḡ‖² − (1/m − 1/n) Tr(Σ)

    are unbiased, and the second exact for m = n. Their ratio is not unbiased, but its bias is of the second order in
    the errors. Errors are the jackknife's over the batches, as if these had been drawn with replacement: an upper
    bound where m = n. With ``batch=1`` and all samples everything is exact.

    Args:
        snapshot: The network and its data.
        batch: b, samples in a batch, at most a third of all; the last one may be smaller. Small ones give small errors.
        samples: None for the whole training set; else that many, drawn by the snapshot's seed.

    Returns:
        ``gradient_noise_scale`` (in samples), ``gradient_variance`` Tr(Σ) and ``gradient_norm_squared`` ‖G‖², each an
        Estimate; the scale is NaN where ‖G‖², of these samples or without one of the batches, comes out at 0 or below:
        then the samples cannot tell the gradient from 0.

    Raises:
        ValueError: for fewer than 3 samples, a batch below 1, or more samples than there are.
        FloatingPointError: where a gradient is not finite.

    Cost: two gradients over the samples, one of them in batches of b.
    """
    taken = snapshot.train.n if samples is None else samples
    if taken < 3:
        raise ValueError(f"differences between batches need at least 3 samples, not {taken}")
    batch = min(batch, taken // 3)
    of = objective(snapshot, samples, batch=batch)
    mean = objective(snapshot, samples).gradient(of.start)[1].double()
    counts, squares, dots = _moments(of, mean)
    if not bool(torch.isfinite(squares).all()):
        raise FloatingPointError("a batch's gradient is NaN or infinite: are weights and data finite?")
    whole = of.samples == of.whole
    found, without = _estimates(counts, squares, dots, float(mean @ mean), of.whole)
    exact = (whole and batch == 1, whole)
    values: dict[str, float | Estimate] = {}
    for i, name in enumerate(("gradient_variance", "gradient_norm_squared")):
        values[name] = Estimate(float(found[i])) if exact[i] else _jackknifed(found[i], without[i])
    if float(found[1]) <= 0 or float(without[1].min()) <= 0:
        return values | {"gradient_noise_scale": math.nan}
    scale, others = found[0] / found[1], without[0] / without[1]
    return values | {"gradient_noise_scale": Estimate(float(scale)) if exact[0] else _jackknifed(scale, others)}


def _moments(of: Objective, mean: Float[Tensor, " dim"]) -> tuple[Tensor, Tensor, Tensor]:
    """Of every batch the samples, its gradient's squared length and product with the mean; ``[batches]``, float64."""
    weights = tuple(w.detach().clone().requires_grad_() for w in of.space.split(of.start))
    rows = []
    with of.problem.quiet():
        for batch in of.problem.batches():
            _, count, parts = loss_and_gradient(of.problem, weights, batch)
            g = of.space.flat(parts).double() / count
            rows.append((count, float(g @ g), float(g @ mean)))
    counts, squares, dots = torch.tensor(rows, dtype=torch.float64).T
    return counts, squares, dots


def _estimates(
    counts: Tensor, squares: Tensor, dots: Tensor, square: float, whole: int
) -> tuple[Float[Tensor, " 2"], Float[Tensor, "2 batches"]]:
    """Tr(Σ) and ‖G‖² from all batches, and from all but one; ``square`` is ‖ḡ‖²."""
    m, k = counts.sum(), len(counts)
    shares = counts / m
    rest = 1 - shares
    total = shares @ squares
    left = (square - 2 * shares * dots + shares**2 * squares) / rest**2  # ‖ḡ‖² without each
    variance = (total - square) * m / (k - 1)
    variances = ((total - shares * squares) / rest - left) * (m - counts) / (k - 2)
    if int(m) == whole:  # ḡ is the gradient itself, whichever batches the variance is told from
        norm, norms = torch.as_tensor(square, dtype=torch.float64), torch.full_like(left, square)
    else:
        norm = square - variance * (1 / m - 1 / whole)
        norms = left - variances * (1 / (m - counts) - 1 / whole)
    return torch.stack([variance, norm]), torch.stack([variances, norms])


def _jackknifed(value: Tensor, without: Float[Tensor, " batches"]) -> Estimate:
    k = len(without)
    spread = float(without.std(correction=0)) * math.sqrt(k - 1)
    return Estimate(float(value), spread, k)
