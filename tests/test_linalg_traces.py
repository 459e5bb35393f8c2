"""Traces, diagonals, blocks and the data's error: exact identities, tolerances that are kept, peers' defects."""

import warnings
from typing import Any

import pytest
import torch
from oracles import Matrix, with_spectrum
from torch import Tensor

from landscope.linalg import (
    absolute_trace,
    block_spectra,
    data_error,
    diagonal,
    log_determinant,
    spectrum,
    trace,
    trace_squared,
    trace_squared_minibatch,
)

N = 120
VALUES = torch.cat([torch.linspace(-1, 2, N - 5).double(), torch.linspace(10, 50, 5).double()])


def held(estimate: Any, truth: float) -> bool:
    return abs(estimate.mean - truth) <= 4.5 * estimate.sem + 1e-9 * abs(truth)


@pytest.mark.parametrize("method", ["hutchinson", "hutch++", "xtrace", "deflated", "auto"])
def test_every_method_finds_the_trace_and_counts_its_products(method: Any):
    op = Matrix(with_spectrum(VALUES))
    found = trace(op, method=method)
    assert held(found, VALUES.sum().item())
    assert op.products == 60
    if method in ("xtrace", "hutch++"):
        with pytest.raises(ValueError, match="take method"):
            trace_squared(op, method=method)
    else:
        assert held(trace_squared(op, method=method), VALUES.square().sum().item())


@pytest.mark.parametrize("method", ["hutch++", "xtrace", "deflated"])
def test_a_matrix_of_low_rank_is_known_exactly(method: Any):
    values = torch.cat([torch.zeros(N - 4).double(), torch.tensor([-3.0, 1.0, 7.0, 8.0]).double()])
    found = trace(Matrix(with_spectrum(values)), method=method)
    assert found.mean == pytest.approx(13.0, rel=1e-9)
    assert found.sem <= 1e-9


class Stretched:
    """A large diagonal matrix in float32."""

    def __init__(self, values: Tensor) -> None:
        self.values, self.dim, self.dtype, self.device = values, len(values), values.dtype, values.device

    def __matmul__(self, v: Tensor) -> Tensor:
        return (self.values[:, None] * v.reshape(self.dim, -1)).reshape(v.shape)


@pytest.mark.parametrize("dim", [10**5])
def test_a_flat_bulk_below_rounding_sized_pivots_is_not_taken_for_a_low_rank(dim: int):
    values = torch.full((dim,), 1e-3)
    values[:10] = 100
    found = trace(Stretched(values), method="xtrace")
    truth = values.double().sum().item()
    assert found.sem > 0
    assert abs(found.mean - truth) <= 4.5 * found.sem + 1e-4 * truth


def test_an_operator_that_knows_its_trace_is_believed_and_says_so():
    op = Matrix(with_spectrum(VALUES))
    op.exact_trace = lambda: 12.5  # type: ignore[attr-defined]
    assert repr(trace(op)) == "12.5 (exact)"
    assert op.products == 0
    op.exact_trace = lambda: None  # type: ignore[attr-defined]
    assert trace(op).sem > 0


def test_a_tolerance_on_the_zero_operator_is_met_at_once():
    op = Matrix(torch.zeros(300, 300, dtype=torch.float64))
    assert repr(trace(op, rtol=0.1)) == "0 (exact)"
    assert op.products <= 40


def test_eigenpairs_found_before_are_deflated_at_the_one_product_that_tells_whose_they_are():
    op = Matrix(with_spectrum(VALUES))
    pairs = spectrum(op, density=False)
    op.products = 0
    found = trace(op, deflate=pairs, products=40, seed=1)
    assert op.products == 40
    assert held(found, VALUES.sum().item())
    assert found.sem < 0.3 * trace(op, method="hutchinson", products=40).sem
    other = Matrix(with_spectrum(VALUES.where(VALUES < 10, VALUES * 0.7)))
    for estimate in (trace, trace_squared):
        with pytest.raises(ValueError, match=r"in deflate= are not this operator's.*leave deflate= out"):
            estimate(other, deflate=pairs)
    with pytest.raises(ValueError, match="have 120 coordinates, and the operator 3"):
        trace(Matrix(torch.eye(3, dtype=torch.float64)), deflate=pairs)


def test_a_tolerance_is_kept_with_its_confidence_and_costs_less_than_hutchinson():
    op, truth = Matrix(with_spectrum(VALUES + 1)), (VALUES + 1).sum().item()
    missed = 0
    for seed in range(60):
        found = trace(op, rtol=0.05, seed=seed)
        low, high = found.interval()
        assert high - low <= 2 * 0.05 * abs(found.mean) * 1.05
        missed += abs(found.mean - truth) > 0.05 * abs(truth)
    assert missed <= 7  # binomial(60, .05): above 7 with probability .01
    op.products = 0
    trace(op, rtol=0.05)
    ours, op.products = op.products, 0
    trace(op, rtol=0.05, method="hutchinson")
    assert op.products > 2.5 * ours


def test_a_walk_that_pauses_does_not_stop_the_estimate():
    """A running mean moves by less than 1e-3 between two probes by chance: no reason to stop (PyHessian does)."""
    op = Matrix(with_spectrum(VALUES + 1))
    found = trace(op, rtol=0.05, method="hutchinson", seed=3)
    needed = 1.96**2 * 2 * (VALUES + 1).square().sum().item() / (0.05 * (VALUES + 1).sum().item()) ** 2
    assert found.n > 0.3 * needed


def test_too_small_a_budget_warns():
    op = Matrix(with_spectrum(VALUES))
    with pytest.warns(UserWarning, match="fewer than 20"):
        trace(op, products=10)
    with pytest.warns(UserWarning, match="fewer than 40"):
        trace(op, products=30, method="xtrace")
    with pytest.warns(UserWarning, match="more than the budget"):
        trace(op, rtol=1e-6, products=100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trace(op, products=20)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"products": 3}, "at least 6"),
        ({"rtol": -1.0}, "positive"),
        ({"confidence": 1.0}, "between 0 and 1"),
        ({"rtol": 0.1, "method": "xtrace"}, "budget"),
    ],
)
def test_impossible_requests_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        trace(Matrix(with_spectrum(VALUES)), **settings)


def test_functionals_of_the_spectrum():
    op = Matrix(with_spectrum(VALUES))
    assert held(absolute_trace(op), VALUES.abs().sum().item())
    psd = VALUES.clamp_min(0)
    assert held(log_determinant(Matrix(with_spectrum(psd)), 0.1), (psd + 0.1).log().sum().item())
    with pytest.raises(ValueError, match="negative eigenvalue"):
        log_determinant(op, 0.1)


def test_the_diagonal():
    a = with_spectrum(VALUES)
    found = diagonal(Matrix(a), 100)
    off = (found.mean - a.diagonal()).abs()
    assert bool((off <= 5 * found.sem + 1e-9).all())
    torch.testing.assert_close(diagonal(Matrix(a), N).mean, a.diagonal())


def blocks_of(a: Tensor) -> dict[str, slice]:
    return {"first": slice(0, 60), "second": slice(60, 72), "third": slice(72, len(a))}


def test_every_block_has_its_own_spectrum_in_the_same_products():
    a = with_spectrum(VALUES)
    op = Matrix(a)
    found = block_spectra(op, blocks_of(a), top=2, steps=30, rtol=1e-3)
    for name, place in blocks_of(a).items():
        block = a[place, place]
        assert held(found[name].trace, block.trace().item())
        assert held(found[name].trace_squared, block.square().sum().item())
        exact = torch.linalg.eigvalsh(block).flip(0)[:2]
        assert bool(
            (found[name].eigenvalues[found[name].converged] - exact[found[name].converged]).abs().le(1e-2).all()
        )
        assert bool(found[name].converged[0])
    assert found["second"].trace.sem == 0
    assert op.products <= 3 * (30 + 20)


def batches(count: int, seed: int = 0) -> list[tuple[float, Matrix]]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, 4, 20, dtype=torch.float64, generator=generator)
    return [(1.0, Matrix(x.T @ x / 4)) for x in rows]  # the population's mean is the identity


def test_squared_traces_of_mini_batches_are_unbiased_where_plugging_in_is_not():
    found = [trace_squared_minibatch(batches(12, seed), probes=6, seed=seed) for seed in range(60)]
    means = torch.tensor([f.mean for f in found])
    assert abs(means.mean() - 20) < 4 * means.std() / 60**0.5
    plugged = torch.stack([sum(m.a for _, m in batches(12, s)) / 12 for s in range(60)])  # type: ignore[misc]
    assert plugged.square().sum((1, 2)).mean() > 25
    assert sum(low <= 20 <= high for low, high in (f.interval() for f in found)) >= 53


def test_the_error_over_batches_is_that_of_their_mean():
    v = torch.eye(20, dtype=torch.float64)[:, :2]
    parts = batches(40)
    forms = torch.stack([m.a.diagonal()[:2] for _, m in parts])
    for estimate, column in zip(data_error(parts, v), forms.T, strict=True):
        assert estimate.mean == pytest.approx(column.mean().item())
        assert estimate.sem == pytest.approx((column.std() / 40**0.5).item(), rel=0.15)
    with pytest.raises(ValueError, match="at least 2"):
        data_error(parts[:1], v)
