"""Spectral measures against dense float64 Hessians, and what rescaling units does to them."""

import math
from typing import Any

import pytest
import torch
from cases import MADE, made, snapshot_of
from oracles import dense_hessian, flat_parameters, loss_of_flat
from rescaled import rescale_units
from torch import nn

from landscope.directions import relative_scales
from landscope.losses import cross_entropy, squared_error
from landscope.measures.sharpness import critical_sharpness
from landscope.measures.spectrum import (
    gradient_curvature,
    hessian_spectrum,
    per_layer_curvature,
    relative_spectrum,
    top_eigenvalues,
)
from landscope.models import cnn, mlp, seeded
from landscope.types import Batches, Estimate


@pytest.fixture(autouse=True)
def _forked():
    with seeded(0):
        yield


def covered(value: Any, true: float) -> bool:
    """Whether the truth lies in an Estimate's 99.99 % interval (and rounding)."""
    assert isinstance(value, Estimate)
    low, high = value.interval(0.9999)
    return low - 1e-6 * abs(true) - 1e-9 <= true <= high + 1e-6 * abs(true) + 1e-9


@pytest.mark.parametrize("which", MADE)
def test_the_spectrum_is_that_of_the_dense_hessian(which: str):
    model, data = made(which)
    values = hessian_spectrum(snapshot_of(model, data), top=3, bottom=2, rtol=1e-6, probes=6, steps=8)
    true = torch.linalg.eigvalsh(dense_hessian(model, cross_entropy(), data))
    torch.testing.assert_close(values["largest_eigenvalues"], true.flip(0)[:3], rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(values["smallest_eigenvalues"], true[:2], rtol=1e-5, atol=1e-9)
    for end in ("largest", "smallest"):
        assert bool((torch.as_tensor(values[f"{end}_eigenvalues_converged"]) == 1).all())
    assert covered(values["hessian_trace"], true.sum().item())
    assert covered(values["hessian_trace_squared"], true.square().sum().item())
    assert covered(values["hessian_absolute_trace"], true.abs().sum().item())
    rank = (true.abs().sum().square() / true.square().sum()).item()
    assert covered(values["hessian_effective_rank"], rank)
    assert 1 < values["hessian_effective_rank"].mean < len(true)  # type: ignore[union-attr]


def test_the_density_is_one_in_all_and_has_the_spectrums_mean_and_spread():
    model, data = made("noisy")  # smooth: its trace is not known exactly, but by the density's own probes
    values = hessian_spectrum(snapshot_of(model, data), points=2000, probes=4, steps=12)
    grid, density, low, high = (
        torch.as_tensor(values[n]) for n in ("density_grid", "density", "density_low", "density_high")
    )
    true = torch.linalg.eigvalsh(dense_hessian(model, cross_entropy(), data))
    assert torch.trapezoid(density, grid).item() == pytest.approx(1, abs=1e-3)
    trace = values["hessian_trace"]
    assert isinstance(trace, Estimate)
    assert torch.trapezoid(density * grid, grid).item() == pytest.approx(trace.mean / len(true), rel=0.01)
    assert bool((low <= density).all())
    assert bool((density <= high).all())
    assert grid[0] < true[0] < true[-1] < grid[-1]


def test_a_spectrum_may_have_fewer_eigenvalues_than_asked_for():
    model = nn.Linear(2, 1, bias=False).double()
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    snapshot = snapshot_of(model, (x, torch.zeros(2, 1, dtype=torch.float64)), test=None)
    object.__setattr__(snapshot, "loss", squared_error())
    values = hessian_spectrum(snapshot)
    torch.testing.assert_close(values["largest_eigenvalues"], torch.tensor([4.0, 1.0]).double())  # of 2 xᵀx / 2
    assert torch.as_tensor(values["smallest_eigenvalues"]).shape == (0,)
    assert covered(values["hessian_trace"], 5.0)
    assert covered(values["hessian_trace_squared"], 17.0)


@pytest.mark.parametrize("scale", ["filter", "weight", "none"])
@pytest.mark.parametrize("which", MADE)
def test_relative_curvature_is_that_of_the_scaled_dense_hessian(which: str, scale: str):
    model, data = made(which)
    values = relative_spectrum(snapshot_of(model, data), scale=scale, rtol=1e-6, probes=8)
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    s = torch.cat([t.reshape(-1) for t in relative_scales(named, scale).values()])
    true = torch.linalg.eigvalsh(s[:, None] * dense_hessian(model, cross_entropy(), data) * s)
    assert values[f"{scale}_top_eigenvalue"] == pytest.approx(true[-1].item(), rel=1e-5)
    assert covered(values[f"{scale}_trace"], true.sum().item())
    assert covered(values[f"{scale}_trace_squared"], true.square().sum().item())


@pytest.mark.parametrize("which", ["mlp", "cnn"])
def test_relative_curvature_does_not_move_when_units_are_rescaled_and_raw_curvature_does(which: str):
    if which == "mlp":
        model, data = mlp((5,), 3, widths=(6, 4)).double(), made("mlp")[1]
    else:
        model, data = cnn((1, 8, 8), 3, channels=2, hidden=5, batchnorm=False).double(), made("cnn")[1]
    scales = ("filter", "weight", "none")
    before = {s: relative_spectrum(snapshot_of(model, data), scale=s, rtol=1e-6, probes=2) for s in scales}
    rescale_units(model, seed=1)
    for scale in scales:
        after = relative_spectrum(snapshot_of(model, data), scale=scale, rtol=1e-6, probes=2)
        for name in ("top_eigenvalue", "trace", "trace_squared"):
            a, b = float(after[f"{scale}_{name}"]), float(before[scale][f"{scale}_{name}"])
            assert (a == pytest.approx(b, rel=1e-5)) == (scale != "none"), (scale, name)
    raw = top_eigenvalues(snapshot_of(model, data))["top_eigenvalue"]
    assert raw == pytest.approx(float(after["none_top_eigenvalue"]), rel=1e-3)  # pyright: ignore[reportPossiblyUnboundVariable]


def test_one_filters_norm_alone_would_move():
    """Why a filter's scale takes the outgoing side into account: rows of the next layer mix units."""
    weights = {"w": torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=torch.float64)}
    factors = torch.tensor([5.0, 0.1], dtype=torch.float64)
    moved = {"w": weights["w"] / factors}
    scales, scaled = (relative_scales(w, "filter")["w"] for w in (weights, moved))
    torch.testing.assert_close(scaled * factors, scales)
    norms, after = (w["w"].norm(dim=1, keepdim=True) for w in (weights, moved))
    assert not torch.allclose(after * factors, norms.expand(2, 2), rtol=0.1)


@pytest.mark.parametrize("shape", [(4, 7), (6, 3, 3, 3), (5, 1), (1, 5), (5, 4, 2)])
def test_balanced_scales_leave_every_filter_with_mean_square_one(shape: tuple[int, ...]):
    w = torch.randn(*shape, dtype=torch.float64)
    relative = (w / relative_scales({"w": w}, "filter")["w"]).square().reshape(*shape[:2], -1)
    torch.testing.assert_close(relative.mean((1, 2)), torch.ones(shape[0], dtype=torch.float64), rtol=1e-9, atol=0)
    torch.testing.assert_close(relative.mean((0, 2)), torch.ones(shape[1], dtype=torch.float64), rtol=1e-9, atol=0)


def test_filters_of_zeros_have_no_scale_and_disturb_no_other():
    w = torch.randn(4, 5, dtype=torch.float64)
    wide = torch.zeros(6, 7, dtype=torch.float64)
    wide[1:5, 2:] = w
    scales = relative_scales({"w": wide}, "filter")["w"]
    torch.testing.assert_close(scales[1:5, 2:], relative_scales({"w": w}, "filter")["w"])
    assert not scales[0].any()
    assert not scales[:, :2].any()
    assert not relative_scales({"w": torch.zeros(3, 2)}, "filter")["w"].any()


@pytest.mark.parametrize("which", MADE)
def test_every_layer_has_its_block_of_the_dense_hessian(which: str):
    model, data = made(which)
    values = per_layer_curvature(snapshot_of(model, data), steps=30, probes=6)
    h, at = dense_hessian(model, cross_entropy(), data), 0
    owners: dict[str, int] = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            owner = name.rpartition(".")[0] or "(model)"
            owners[owner] = owners.get(owner, 0) + p.numel()
    for owner, size in owners.items():
        true = torch.linalg.eigvalsh(h[at : at + size, at : at + size])
        at += size
        found = {n: values[f"layer.{owner}.{n}"] for n in ("trace", "trace_squared", "top_eigenvalue", "parameters")}
        assert found["parameters"] == size
        assert covered(found["trace"], true.sum().item())
        assert covered(found["trace_squared"], true.square().sum().item())
        residual = float(values[f"layer.{owner}.top_eigenvalue_residual"])
        assert abs(float(found["top_eigenvalue"]) - true[-1].item()) <= residual + 1e-9
    assert at == len(h)
    assert len(values) == 6 * len(owners) + 1
    assert 0 < float(values["per_layer_products"]) <= (30 + 6) * len(owners)  # type: ignore[arg-type]


@pytest.mark.parametrize("which", MADE)
def test_curvature_along_the_gradient(which: str):
    model, data = made(which)
    values = gradient_curvature(snapshot_of(model, data))
    theta = flat_parameters(model).requires_grad_()
    (g,) = torch.autograd.grad(loss_of_flat(model, cross_entropy(), data)(theta), theta)
    h = dense_hessian(model, cross_entropy(), data)
    assert values["gradient_norm"] == pytest.approx(g.norm().item())
    assert values["gradient_curvature"] == pytest.approx((g @ h @ g / (g @ g)).item())
    assert values["gradient_curvature_squared"] == pytest.approx((g @ h @ h @ g / (g @ g)).item())
    assert values["gradient_alignment"] == pytest.approx((g @ h @ g / (g.norm() * (h @ g).norm())).item())


def test_on_a_quadratic_it_is_the_critical_sharpness():
    x = torch.randn(30, 4, dtype=torch.float64)
    snapshot = snapshot_of(nn.Linear(4, 2).double(), (x, torch.randn(30, 2, dtype=torch.float64)), test=None)
    object.__setattr__(snapshot, "loss", squared_error())
    values = gradient_curvature(snapshot)
    assert critical_sharpness(snapshot, rtol=1e-4)["critical_sharpness"] == pytest.approx(
        values["gradient_curvature"], rel=1e-4
    )


def test_a_stationary_point_has_no_direction():
    snapshot = snapshot_of(nn.Linear(3, 1, bias=False), (torch.zeros(5, 3), torch.zeros(5, 1)), test=None)
    object.__setattr__(snapshot, "loss", squared_error())
    values = gradient_curvature(snapshot)
    assert values["gradient_norm"] == 0
    assert all(math.isnan(v) for name, v in values.items() if name != "gradient_norm")


def test_a_subset_has_an_error_of_its_own_and_says_nothing_about_probes():
    model, (x, y) = made("mlp")
    snapshot = snapshot_of(model, (x, y), train=Batches(x.repeat(4, 1), y.repeat(4), 12))
    fewer = {"top": 2, "bottom": 1, "probes": 2, "steps": 2}
    part = hessian_spectrum(snapshot, samples=60, **fewer)
    whole = hessian_spectrum(snapshot, **fewer)
    off = torch.as_tensor(part["largest_eigenvalues"]) - torch.as_tensor(whole["largest_eigenvalues"])
    error = torch.as_tensor(part["largest_eigenvalues_data_sem"])
    assert error.shape == (2,)
    assert bool((error > 0).all())
    assert bool((off.abs() < 6 * error).all())
    assert not any("data_sem" in name for name in whole)
    everything = hessian_spectrum(snapshot, samples=92, **fewer)
    assert not torch.as_tensor(everything["largest_eigenvalues_data_sem"]).any()


@pytest.mark.parametrize(
    ("measure", "wrong", "message"),
    [
        (hessian_spectrum, {"points": 1}, "points >= 2"),
        (hessian_spectrum, {"smoothing": 0.0}, "smoothing > 0"),
        (hessian_spectrum, {"samples": 1}, "between 2 and"),
        (hessian_spectrum, {"top": -1}, "top is at least 0"),
        (relative_spectrum, {"scale": "layer"}, "none, weight, filter"),
        (relative_spectrum, {"probes": 1}, "probes is at least 2"),
    ],
)
def test_impossible_settings_are_refused(measure: Any, wrong: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        measure(snapshot_of(*made("mlp")), **wrong)
