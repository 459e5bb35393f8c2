"""Tr(A), Tr(A²), Tr|A| and log-determinants with error bars: by a budget, or to a tolerance at a confidence."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from landscope.linalg.krylov import Krylov, basis_dtype, gaussian
from landscope.linalg.requests import check_operator, check_seed, check_whole
from landscope.linalg.spectra import Spectrum, spectrum
from landscope.linalg.splits import (
    MOST_VECTORS,
    Moment,
    Split,
    applied,
    captured,
    given,
    krylov_basis,
    nothing,
    sketched,
    split_by,
)
from landscope.spec import derive
from landscope.types import Estimate, Operator

Method = Literal["auto", "hutchinson", "hutch++", "xtrace", "deflated"]

PRODUCTS = 60  # the default budget
MOST_PRODUCTS = 5000  # where only a tolerance is given
FEWEST, FEWEST_XTRACE = 20, 40  # below these, intervals cover less than they say
CORRELATED = math.sqrt(2)  # XTrace's leave-one-out estimates: their plain standard error is too small
PILOT = 20  # probes of the first stage
OWN_PILOT, OWN_COST = 8, 3  # of an operator's own samples: those of the first stage, and what one costs in products
BOUND_SHARE = 0.2  # of the failure probability, for the bound on |trace| that makes a relative tolerance absolute


def trace(
    op: Operator,
    rtol: float | None = None,
    confidence: float = 0.95,
    products: int | None = None,
    method: Method = "auto",
    deflate: Spectrum | None = None,
    seed: int = 0,
) -> Estimate:
    """The trace of a symmetric operator, with an error bar.

    - ``"hutchinson"``: the mean of vᵀAv over independent signs v (Hutchinson 1990).
    - ``"hutch++"``: a third of the products sketch the range, a third give its part exactly, the rest probe outside of
      it (Meyer, Musco, Musco and Woodruff 2021; their bound is for A >= 0, the estimate is unbiased for all A).
    - ``"xtrace"``: each vector serves as sketch for the others and as probe (Epperly, Tropp and Webber 2024); the error
      is estimated by √2 times the standard error of the leave-one-out estimates, which are correlated.
    - ``"deflated"``: the part of an orthonormal U is exact, and fresh probes, uniform on the sphere of its complement,
      give the rest. U are the eigenvectors of ``deflate`` (no products), or a Krylov space (one product a vector).
    - ``"auto"``: ``op.exact_trace()`` where the operator knows it: an estimate with sem = 0, which calls itself exact;
      else the mean of ``op.sample_trace(…)`` where it has samples of less spread (see `landscope.hessian`), one for
      three products of the budget; else ``"deflated"``.

    With ``rtol``, |estimate − Tr(A)| <= rtol·|Tr(A)| holds with probability ``confidence``: 20 probes (8 of the
    operator's own samples) bound |Tr(A)| from below and tell the variance, which fixes the number of further ones
    (Stein 1945). Nothing stops because it has stopped moving. Without ``rtol``, the budget is used up.

    Args:
        op: The operator.
        rtol: Relative tolerance.
        confidence: The probability with which it is to hold.
        products: The budget, 60 by default; with ``rtol`` the most that may be spent, 5,000 by default.
        method: See above.
        deflate: Eigenpairs of the same operator that were found before; one product tells whether they are its own.
        seed: For all random vectors.

    Returns:
        The estimate. Coverage of its 95 % interval at 60 products: see the coverage tests; 93 % and more with ten
        outliers over a bulk, an indefinite and a rank-deficient spectrum. A budget below 20 (40 for XTrace) warns.

    Raises:
        ValueError: for a budget that is too small, a tolerance with XTrace, an unknown method, ``deflate`` with another
            one, or with eigenpairs of another operator (the same network before further training, say).
        TypeError: for an ``op`` that is no Operator, and a budget or seed that is no whole number.
        FloatingPointError: where the operator returns NaN or infinity.

    >>> class Diagonal:
    ...     dim, dtype, device = 4, torch.float64, torch.device("cpu")
    ...     def __matmul__(self, v):
    ...         return (torch.tensor([[1.0], [5.0], [-9.0], [2.0]], dtype=v.dtype) * v.reshape(4, -1)).reshape(v.shape)
    >>> trace(Diagonal())
    -1 (exact)
    """
    check_operator(op)
    ask = _Request(rtol, confidence, products, method, deflate, seed)
    known = _known(op) if method == "auto" else None
    if known is not None:
        return Estimate(known)
    first = OWN_PILOT if rtol is not None else max(ask.budget // OWN_COST, 2)
    own = _own_samples(op, first, seed) if method == "auto" and deflate is None else None
    if own is None:
        return _moment(op, 1, ask)
    return _mean(own.ready, None) if rtol is None else _to_tolerance(own, 1, ask, OWN_PILOT)


def trace_squared(
    op: Operator,
    rtol: float | None = None,
    confidence: float = 0.95,
    products: int | None = None,
    method: Method = "auto",
    deflate: Spectrum | None = None,
    seed: int = 0,
) -> Estimate:
    """Tr(A²) = ‖A‖²_F of a symmetric operator, with an error bar.

    For any orthonormal U that is independent of v, Tr(A²) = ‖AU‖² + E‖A(I − UUᵀ)v‖². Arguments and methods are those of
    `trace`, without XTrace and Hutch++ (what a one-pass sketch leaves of outliers is skewed when squared, and its
    intervals held the truth 92.4 % of the time). For the Hessian of a *subsample* of the data it is biased upwards, as
    E‖H_B v‖² >= ‖Hv‖²: see `trace_squared_minibatch`.

    >>> class Diagonal:
    ...     dim, dtype, device = 2, torch.float64, torch.device("cpu")
    ...     def __matmul__(self, v):
    ...         return (torch.tensor([[1.0], [-3.0]], dtype=v.dtype) * v.reshape(2, -1)).reshape(v.shape)
    >>> trace_squared(Diagonal())
    10 (exact)
    """
    check_operator(op)
    if method in ("xtrace", "hutch++"):
        raise ValueError(f"{method!r} estimates Tr(A); for Tr(A²) take method 'deflated' or 'hutchinson'")
    return _moment(op, 2, _Request(rtol, confidence, products, method, deflate, seed))


def absolute_trace(op: Operator, probes: int = 6, steps: int = 24, seed: int = 0) -> Estimate:
    """Tr|A|, the sum of the eigenvalues' magnitudes: by quadrature, see `spectrum`."""
    found = spectrum(op, min(5, op.dim), probes=probes, steps=steps, seed=seed).absolute_trace
    if found is None:
        raise ValueError("a spectrum with its density has an absolute trace")
    return found


def log_determinant(op: Operator, shift: float, probes: int = 6, steps: int = 40, seed: int = 0) -> Estimate:
    """The log-determinant log det(A + ε I) = Σ log(λ + ε) of a positive semidefinite operator, such as Gauss-Newton's.

    By quadrature, see `spectrum`; eigenvalues that rounding made negative count as 0.

    Raises:
        ValueError: where ε is not positive, or A has an eigenvalue below −ε/10 or what rounding leaves.
    """
    if not shift > 0:
        raise ValueError(f"log det(A + ε I) needs ε > 0, not {shift}")

    def log(x: Tensor) -> Tensor:
        lowest, scale = (float(v) for v in (x.min(), x.abs().max())) if x.numel() else (0.0, 0.0)
        if lowest < -max(0.1 * shift, 100 * torch.finfo(op.dtype).eps * scale):
            raise ValueError(
                f"the operator has the negative eigenvalue {lowest:.4g}: log det(A + ε I) is for positive semidefinite "
                "ones, such as a Gauss-Newton matrix"
            )
        return (x.clamp_min(0) + shift).log()

    found = spectrum(op, min(5, op.dim), probes=probes, steps=steps, seed=seed, functionals={"log": log})
    return found.functionals["log"]


@dataclass(frozen=True)
class _Request:
    rtol: float | None
    confidence: float
    products: int | None
    method: Method
    deflate: Spectrum | None
    seed: int
    budget: int = field(init=False)

    def __post_init__(self) -> None:
        budget = self.products if self.products is not None else PRODUCTS if self.rtol is None else MOST_PRODUCTS
        object.__setattr__(self, "budget", budget)
        if self.method not in get_args(Method):
            raise ValueError(f"a method is one of {', '.join(get_args(Method))}, not {self.method!r}")
        check_whole(0, products=budget)
        check_seed(self.seed)
        if not 0 < self.confidence < 1:
            raise ValueError(f"a confidence lies between 0 and 1, not {self.confidence}")
        if self.rtol is not None and not self.rtol > 0:
            raise ValueError(f"a relative tolerance is positive, not {self.rtol}")
        if budget < 6:
            raise ValueError(f"an error bar needs a budget of at least 6 products, not {budget}")
        if self.deflate is not None and self.method not in ("auto", "deflated"):
            raise ValueError(f"deflate= goes with method 'deflated' or 'auto', not {self.method!r}")
        if self.rtol is not None and self.method == "xtrace":
            raise ValueError("XTrace works by a budget: give products= without rtol=, or another method")


def _known(op: Operator) -> float | None:
    exact = getattr(op, "exact_trace", None)
    return exact() if callable(exact) else None  # type: ignore[return-value]


class _OwnSamples:
    """An operator's own samples of its trace, in the place of a `Split` and its probes."""

    products: ClassVar[int] = 0

    def __init__(self, draw: Callable[[int, int, int], list[float]], seed: int, ready: list[float]) -> None:
        self.draw, self.seed, self.ready = draw, seed, ready

    def samples(self, moment: Moment, first: int, count: int, *seed: int | str) -> list[float]:
        if first + count > len(self.ready):
            self.ready += self.draw(first + count - len(self.ready), self.seed, len(self.ready))
        return self.ready[first : first + count]


def _own_samples(op: Operator, count: int, seed: int) -> _OwnSamples | None:
    draw = getattr(op, "sample_trace", None)
    ready = draw(count, seed, 0) if callable(draw) else None
    return None if ready is None else _OwnSamples(draw, seed, ready)  # type: ignore[arg-type]


def _moment(op: Operator, moment: Moment, ask: _Request) -> Estimate:
    if ask.rtol is not None:
        return _to_tolerance(_split(op, ask), moment, ask)
    fewest = FEWEST_XTRACE if ask.method == "xtrace" else FEWEST
    if ask.budget < fewest and ask.budget < op.dim:
        warnings.warn(
            f"{ask.budget} products: with fewer than {fewest}, 95 % intervals hold the truth less often than they say",
            stacklevel=3,
        )
    if ask.method == "xtrace":
        return _xtrace(op, ask.budget, ask.seed)
    split = _split(op, ask)
    if split.whole:
        return Estimate(split.exact(moment))
    samples = split.samples(moment, 0, max(2, ask.budget - split.products), ask.seed, "probe", ask.budget)
    return _mean(samples, f"probes {ask.seed}, {len(samples)}, {op.dim}")


def _mean(samples: list[float], draws: str | None) -> Estimate:
    """The mean; exact where nothing but rounding was left to probe."""
    found = Estimate.of(samples, draws)
    return Estimate(found.mean) if found.sem <= 1e-14 * abs(found.mean) else found


def _split(op: Operator, ask: _Request) -> Split:
    """What is known exactly before probing."""
    if ask.method == "hutchinson":
        return nothing(op)
    if ask.deflate is not None:
        return given(op, ask.deflate.eigenvalues, ask.deflate.eigenvectors, ask.deflate.residuals, ask.seed)
    third = max(1, min(ask.budget // 3, MOST_VECTORS))
    if ask.method == "hutch++":
        return sketched(op, third if ask.rtol is None else PILOT, ask.seed)
    if ask.budget >= op.dim and op.dim <= MOST_VECTORS:
        third = op.dim
    pays = _Pays(op, ask) if ask.rtol is not None else lambda _: True
    return split_by(krylov_basis(op, third, pays, ask.seed))


class _Pays:
    """Whether another vector of the basis saves more probes than it costs: 2 z² (variance it captured) / δ² > 1.

    It sees the projected matrix alone, never a probe, so that the basis stays independent of the probes. The tolerance
    δ = rtol·|Tr(A)| is guessed by the start vector, dim·q·Aq.
    """

    def __init__(self, op: Operator, ask: _Request) -> None:
        self.dim, self.rtol, self.history = op.dim, ask.rtol or 1.0, [0.0]

    def __call__(self, krylov: Krylov) -> bool:
        self.history.append(captured(krylov))
        if len(self.history) < 8:
            return True
        guess = max(abs(self.dim * krylov.h[0, 0].item()), abs(krylov.h.diagonal().sum().item()))
        gain = (self.history[-1] - self.history[-5]) / 4
        return 2 * 1.96**2 * gain > (self.rtol * guess) ** 2


def _to_tolerance(split: Split | _OwnSamples, moment: Moment, ask: _Request, pilot: int = PILOT) -> Estimate:
    """Stein's two stages: the first one's variance sizes the second, and the interval keeps its t quantile."""
    from scipy.special import stdtrit

    if isinstance(split, Split) and split.whole:
        return Estimate(split.exact(moment))
    rtol, failure = ask.rtol or 0.0, 1 - ask.confidence
    samples: list[float] = []
    names, share, count = (ask.seed, "tolerance"), BOUND_SHARE * failure, pilot
    while True:
        samples += split.samples(moment, len(samples), count - len(samples), *names)
        mean, sd, share = float(np.mean(samples)), float(np.std(samples, ddof=1)), share / 2
        least = abs(mean) - float(stdtrit(count - 1, 1 - share)) * sd / math.sqrt(count)
        if not sd:
            return Estimate(mean)  # such as a trace of 0 that every probe sees
        if least > 0.5 * abs(mean) or split.products + count > ask.budget:
            break
        count *= 2  # |trace| is not told from 0 well enough: each further look has half of the last one's share
    sd0, first = sd, count
    quantile = float(stdtrit(first - 1, 1 - (1 - BOUND_SHARE) * failure / 2))
    allowed = max(ask.budget - split.products + len(samples), len(samples))
    needed = math.ceil((quantile * sd0 / (rtol * least)) ** 2) if least > 0 else math.inf
    total = int(min(max(needed, first), allowed))
    samples += split.samples(moment, len(samples), total - len(samples), *names)
    if needed > allowed:
        warnings.warn(
            f"the relative tolerance {rtol:g} needs about {needed:.3g} probes, more than the budget of {ask.budget} "
            "products: the estimate's interval says what was reached",
            stacklevel=4,
        )
    return Estimate(float(np.mean(samples)), sd0 / math.sqrt(total), total, df=float(first - 1))


def _xtrace(op: Operator, products: int, seed: int) -> Estimate:
    """XTrace for a symmetric A, on spheres of the complements.

    With P₍ᵢ₎ the projector on the range of A Ω without its column i, the i-th estimate is
    Tr(P₍ᵢ₎ A) + ωᵢᵀ(I − P₍ᵢ₎)A(I − P₍ᵢ₎)ωᵢ·(dim − m + 1)/‖(I − P₍ᵢ₎)ωᵢ‖², and P₍ᵢ₎ = Q(I − sᵢsᵢᵀ)Qᵀ, sᵢ the i-th column
    of R⁻ᵀ at unit length. They share all columns but one and are positively correlated: their spread over √m covered 82
    to 93 % of the time at 60 products, so that it is taken √2 times.
    """
    m = min(products // 2, op.dim)
    omega = torch.stack([gaussian(op.dim, derive(seed, "xtrace", products, i), basis_dtype(op)) for i in range(m)])
    omega = omega.to(op.device)
    q, r = torch.linalg.qr(applied(op, omega).T)
    pivots = r.diagonal().abs().double().cpu()
    new = pivots > 100 * torch.finfo(op.dtype).eps * pivots.max()
    if m < op.dim and not bool(new.all()):  # A Ω seems to hold the range of A: what is left is probed, not believed
        u = q.T[torch.nonzero(new).flatten()[: m - 2].to(q.device)]
        split = Split(op, u, (u * applied(op, u)).sum(dtype=torch.float64).item(), math.nan, m + len(u))
        return _mean(split.samples(1, 0, m - len(u), seed, "probe", products), None)
    h, r, w = (x.double().cpu() for x in (q.T @ applied(op, q.T).T, r, q.T @ omega.T))
    h = (h + h.T) / 2
    if m == op.dim:
        return Estimate(h.diagonal().sum().item())
    s = torch.linalg.solve_triangular(r.T, torch.eye(m, dtype=torch.float64), upper=False)
    s = s / s.norm(dim=0)
    x = w - s * (s * w).sum(0)
    left = omega.double().square().sum(1).cpu() - x.square().sum(0)
    rest = (w * r).sum(0) - 2 * (x * r).sum(0) + (x * (h @ x)).sum(0)
    values = h.diagonal().sum() - (s * (h @ s)).sum(0) + rest * (op.dim - m + 1) / left
    found = _mean(values.tolist(), None)
    return Estimate(found.mean, CORRELATED * found.sem, m, df=float(m - 1)) if found.sem else found
