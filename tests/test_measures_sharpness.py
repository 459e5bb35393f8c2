"""Sharpness: closed forms on losses linear and quadratic in the weights, identities, and what must not move."""

import math
from typing import Any

import pytest
import torch
from cases import MADE, made, points, snapshot_of
from oracles import dense_hessian, flat_parameters, loss_of_flat
from rescaled import rescale_units
from torch import Tensor, nn

from landscope.directions import relative_scales
from landscope.losses import cross_entropy, squared_error
from landscope.measures._objective import objective
from landscope.measures.sharpness import (
    average_case_sharpness,
    critical_sharpness,
    keskar_sharpness,
    sam_sharpness,
    worst_case_sharpness,
)
from landscope.models import cnn, mlp, seeded
from landscope.types import Snapshot


@pytest.fixture(autouse=True)
def _forked():
    with seeded(0):
        yield


def with_loss(model: nn.Module, data: tuple[Tensor, Tensor], loss: Any, **settings: Any) -> Snapshot:
    snapshot = snapshot_of(model.double(), (data[0].double(), data[1]), **settings)
    object.__setattr__(snapshot, "loss", loss)
    return snapshot


def linear(**settings: Any) -> tuple[Snapshot, Tensor, Tensor]:
    """A loss that is linear in the weights (the mean output), with its parameters θ and gradient g."""
    model, (x, y) = nn.Linear(4, 1).double(), points(features=4)
    snapshot = with_loss(model, (x, y), lambda outputs, targets: outputs.mean(), **settings)
    return snapshot, flat_parameters(model), torch.cat([x.double().mean(0), torch.ones(1)])


def quadratic(at_minimum: bool) -> tuple[Snapshot, Tensor, Tensor, Tensor]:
    """Linear regression, with θ, gradient g and Hessian H; at its minimum or not."""
    model, (x, _) = nn.Linear(4, 1, bias=False).double(), points(features=4)
    x, y = x.double(), torch.randn(len(x), 1, dtype=torch.float64)
    if at_minimum:
        model.weight.data = torch.linalg.lstsq(x, y).solution.T.contiguous()
    theta, h = flat_parameters(model), 2 * x.T @ x / len(x)
    return with_loss(model, (x, y), squared_error()), theta, h @ theta - 2 * (x.T @ y)[:, 0] / len(x), h


def test_on_a_linear_loss_every_sharpness_is_a_norm_of_the_gradient():
    snapshot, theta, g = linear()
    assert sam_sharpness(snapshot, radius=0.3)["sam_sharpness"] == pytest.approx(0.3 * g.norm().item())
    worst = worst_case_sharpness(snapshot, l2=(0.1, 0.2), linf=(0.01, 0.04), steps=2)
    radii = torch.tensor([[0.1, 0.2], [0.01, 0.04]], dtype=torch.float64)
    torch.testing.assert_close(worst["weight_l2_sharpness"], radii[0] * (theta * g).norm())
    torch.testing.assert_close(worst["weight_linf_sharpness"], radii[1] * (theta * g).abs().sum())
    assert torch.equal(torch.as_tensor(worst["weight_linf_sharpness_radii"]), radii[1])
    plain = worst_case_sharpness(snapshot, scale="none", l2=(0.1, 0.2), linf=(), steps=1)
    torch.testing.assert_close(plain["none_l2_sharpness"], radii[0] * g.norm())
    assert list(plain) == ["none_l2_sharpness", "none_l2_sharpness_radii"]
    average = average_case_sharpness(snapshot, radii=(0.5, 1.0))
    torch.testing.assert_close(average["weight_average_sharpness"], torch.zeros(2, dtype=torch.float64))


def test_keskars_sharpness_of_a_linear_loss_is_reached_in_a_corner_of_the_box():
    snapshot, theta, g = linear()
    base = objective(snapshot).loss(theta)
    values = keskar_sharpness(snapshot, epsilons=(0.01, 0.02))
    expected = torch.tensor([0.01, 0.02]).double() * 100 * ((theta.abs() + 1) * g.abs()).sum() / (1 + base)
    torch.testing.assert_close(values["keskar_sharpness"], expected)
    # In a subspace of full dimension A is invertible: z ranges over |z_i| <= ε(|(A⁻¹θ)_i| + 1).
    from landscope.directions import gaussian
    from landscope.spec import derive

    columns = [gaussian({"": theta}, seed=derive(snapshot.seed, "subspace", j))[""] for j in range(5)]
    a = torch.stack(columns, 1)
    box = torch.linalg.solve(a, theta).abs() + 1
    within = keskar_sharpness(snapshot, epsilons=(0.01,), directions=5)["keskar_sharpness"]
    torch.testing.assert_close(within, (0.01 * 100 * (box * (a.T @ g).abs()).sum() / (1 + base)).reshape(1))


def test_keskars_sharpness_of_one_weight_at_a_minimum():
    x = torch.tensor([[1.0], [2.0]])
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(3.0)
    snapshot = with_loss(model, (x, 3 * x), squared_error())  # L(w) = 2.5 (w − 3)²
    values = keskar_sharpness(snapshot, epsilons=(0.1,))
    assert float(values["keskar_sharpness"]) == pytest.approx(100 * 2.5 * (0.1 * 4) ** 2)


def test_on_a_quadratic_one_step_follows_taylor_and_the_critical_step_is_twice_over_the_curvature():
    snapshot, _, g, h = quadratic(at_minimum=False)
    along = (g @ h @ g / (g @ g)).item()
    expected = 0.2 * g.norm().item() + 0.02 * along
    assert sam_sharpness(snapshot, radius=0.2)["sam_sharpness"] == pytest.approx(expected)
    values = critical_sharpness(snapshot, rtol=1e-4)
    assert values["critical_sharpness"] == pytest.approx(along, rel=1e-4)
    assert values["critical_learning_rate"] == pytest.approx(2 / along, rel=1e-4)
    assert values["critical_passes"] <= 3
    assert along < torch.linalg.eigvalsh(h)[-1]


@pytest.mark.parametrize("first_step", [1e-6, 1e5])
def test_the_critical_step_is_found_from_far_away(first_step: float):
    snapshot, _, g, h = quadratic(at_minimum=False)
    values = critical_sharpness(snapshot, first_step=first_step)
    assert values["critical_sharpness"] == pytest.approx((g @ h @ g / (g @ g)).item(), rel=1e-2)


@pytest.mark.parametrize("which", MADE)
def test_the_critical_step_lies_where_the_loss_of_a_network_comes_up_again(which: str):
    model, data = made(which)
    values = critical_sharpness(snapshot_of(model, data), rtol=0.01)
    theta = flat_parameters(model).requires_grad_()
    loss = loss_of_flat(model, cross_entropy(), data)
    base = loss(theta)
    (g,) = torch.autograd.grad(base, theta)
    step = values["critical_learning_rate"]
    assert loss(theta - 0.99 * step * g) <= base < loss(theta - 1.01 * step * g)
    assert values["critical_passes"] < 15


def test_a_loss_that_never_rises_or_is_stationary_has_no_critical_step():
    snapshot, _, _ = linear()
    values = critical_sharpness(snapshot)
    assert values["critical_sharpness"] == 0
    assert values["critical_learning_rate"] == math.inf
    model = nn.Linear(3, 1, bias=False)
    still = with_loss(model, (torch.zeros(5, 3), torch.zeros(5, 1)), squared_error())
    assert math.isnan(critical_sharpness(still)["critical_sharpness"])
    assert sam_sharpness(still)["sam_sharpness"] == 0


@pytest.mark.parametrize("scale", ["none", "weight", "filter"])
def test_at_the_minimum_of_a_quadratic_the_worst_case_is_half_the_top_eigenvalue_and_the_average_half_the_trace(scale):
    snapshot, theta, _, h = quadratic(at_minimum=True)
    s = relative_scales({"weight": theta.reshape(1, -1)}, scale)["weight"][0]
    relative = s[:, None] * h * s
    worst = worst_case_sharpness(snapshot, scale=scale, l2=(0.1, 0.3), linf=(0.2,), steps=40)
    radii = torch.tensor([0.1, 0.3], dtype=torch.float64)
    top = torch.linalg.eigvalsh(relative)[-1]
    torch.testing.assert_close(worst[f"{scale}_l2_sharpness"], radii**2 / 2 * top, rtol=1e-5, atol=0)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 4)
    # The gradient at the minimum is rounding, so that any corner out of which no gradient leads may be the one reached.
    kept = signs[(signs * (signs @ relative) > 0).all(1)]
    corners = 0.02 * torch.einsum("ci,ij,cj->c", kept, relative, kept)
    reached = float(worst[f"{scale}_linf_sharpness"])
    assert reached == pytest.approx(corners[(corners - reached).abs().argmin()].item())
    average = average_case_sharpness(snapshot, scale=scale, radii=(0.1, 0.3), draws=150)
    difference = average[f"{scale}_average_sharpness"] - radii**2 / 2 * relative.trace()
    sem = average[f"{scale}_average_sharpness_sem"]
    assert bool((difference.abs() < 4 * sem).all())
    assert bool((sem < 0.25 * radii**2 / 2 * relative.trace()).all())


@pytest.mark.parametrize("which", MADE)
def test_near_zero_radius_a_network_follows_its_gradient_and_hessian(which: str):
    model, data = made(which)
    snapshot = snapshot_of(model, data)
    theta = flat_parameters(model).requires_grad_()
    (g,) = torch.autograd.grad(loss_of_flat(model, cross_entropy(), data)(theta), theta)
    worst = worst_case_sharpness(snapshot, scale="none", l2=(1e-5,), linf=(1e-6,), steps=2)
    assert float(worst["none_l2_sharpness"]) == pytest.approx(1e-5 * g.norm().item(), rel=1e-3)
    assert float(worst["none_linf_sharpness"]) == pytest.approx(1e-6 * g.abs().sum().item(), rel=1e-3)


def test_on_a_smooth_network_the_average_is_half_the_relative_trace():
    model, data = made("noisy")
    average = average_case_sharpness(snapshot_of(model, data), radii=(1e-3,), draws=100)
    weights = flat_parameters(model)
    h = dense_hessian(model, cross_entropy(), data)
    expected = 0.5e-6 * (weights.square() * h.diagonal()).sum().item()
    got, sem = (float(average[f"weight_average_sharpness{end}"]) for end in ("", "_sem"))
    assert abs(got - expected) < 4 * sem
    assert sem < 0.3 * abs(expected)


def test_logistic_regression_of_two_samples():
    model = nn.Linear(1, 2, bias=False)
    model.weight.data = torch.tensor([[0.0], [1.0]])
    x, y = torch.tensor([[1.0], [-2.0]]), torch.tensor([1, 1])
    snapshot = with_loss(model, (x, y), cross_entropy())
    # With margin m = (w₁ − w₀)x the loss is log(1 + e^{−m}); its gradient by w₁ is −x·σ(−m), by w₀ the opposite.
    g = (-math.exp(-1) / (1 + math.exp(-1)) + 2 * math.exp(2) / (1 + math.exp(2))) / 2
    moved = 1 + math.sqrt(2) * 0.5 * math.copysign(1, g)  # both weights move by 0.5/√2, apart or together
    mean = (math.log1p(math.exp(-moved)) + math.log1p(math.exp(2 * moved))) / 2
    base = (math.log1p(math.exp(-1)) + math.log1p(math.exp(2))) / 2
    assert sam_sharpness(snapshot, radius=0.5)["sam_sharpness"] == pytest.approx(mean - base)


def test_one_step_in_each_batch_is_the_mean_over_batches():
    snapshot, _, g = linear()
    x = snapshot.train.inputs
    norms = torch.cat([x, torch.ones(len(x), 1)], 1).norm(dim=1)
    one_each = sam_sharpness(snapshot, radius=0.1, batch=1)["sam_sharpness"]
    assert one_each == pytest.approx(0.1 * norms.mean().item())
    assert sam_sharpness(snapshot, radius=0.1, batch=23)["sam_sharpness"] == pytest.approx(0.1 * g.norm().item())
    ragged = sam_sharpness(snapshot, radius=0.1, batch=9)["sam_sharpness"]
    assert 0.1 * g.norm().item() < ragged < one_each


def test_batches_do_not_matter():
    model, data = made("cnn")
    settings: dict[Any, dict[str, Any]] = {
        sam_sharpness: {},
        worst_case_sharpness: {"steps": 3, "l2": (0.5,), "linf": (0.001,)},
        average_case_sharpness: {"draws": 2},
        keskar_sharpness: {"epsilons": (0.001,)},
        critical_sharpness: {},
    }
    for measure, given in settings.items():
        ragged, whole = (measure(snapshot_of(model, data, size=size), **given) for size in (5, 23))
        for name, value in whole.items():
            if "passes" not in name:
                a, b = (torch.as_tensor(v, dtype=torch.float64) for v in (ragged[name], value))
                torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-12)


# --- what must not move, and what moves -----------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["mlp", "cnn"])
def test_relative_sharpness_does_not_move_when_units_are_rescaled_and_raw_sharpness_does(which: str):
    if which == "mlp":
        model, data = mlp((5,), 3, widths=(6, 4)).double(), made("mlp")[1]
    else:
        model, data = cnn((1, 8, 8), 3, channels=2, hidden=5, batchnorm=False).double(), made("cnn")[1]
    settings: dict[str, Any] = {"l2": (0.2, 0.8), "linf": (0.002,), "steps": 6}
    before = {s: worst_case_sharpness(snapshot_of(model, data), scale=s, **settings) for s in SCALES}
    critical = critical_sharpness(snapshot_of(model, data))["critical_sharpness"]
    outputs = model(data[0]).detach()
    rescale_units(model, seed=1)
    torch.testing.assert_close(model(data[0]), outputs)
    for scale in SCALES:
        after = worst_case_sharpness(snapshot_of(model, data), scale=scale, **settings)
        for name in (f"{scale}_l2_sharpness", f"{scale}_linf_sharpness"):
            a, b = torch.as_tensor(after[name]), torch.as_tensor(before[scale][name])
            if scale == "none":
                assert not torch.allclose(a, b, rtol=0.05)
            else:
                torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-10)
    assert critical_sharpness(snapshot_of(model, data))["critical_sharpness"] != pytest.approx(critical, rel=0.05)


SCALES = ("weight", "filter", "none")


def test_average_sharpness_of_few_draws_follows_the_same_noise():
    model, data = mlp((5,), 3, widths=(6, 4)).double(), made("mlp")[1]
    before = average_case_sharpness(snapshot_of(model, data), scale="filter")
    rescale_units(model, seed=1)
    after = average_case_sharpness(snapshot_of(model, data), scale="filter")
    torch.testing.assert_close(after["filter_average_sharpness"], before["filter_average_sharpness"])
    assert bool((before["filter_average_sharpness_sem"] > 0).all())


def test_normalised_logits_are_blind_to_the_outputs_scale():
    model, data = mlp((5,), 3, widths=(6,)).double(), made("mlp")[1]
    measured = []
    for factor in (1, 10):
        with torch.no_grad():
            for p in list(model.parameters())[-2:]:
                p.mul_(factor)
        snapshot = snapshot_of(model, data)
        measured.append([worst_case_sharpness(snapshot, normalise_logits=n, linf=(), steps=4) for n in (True, False)])
    (normalised, raw), (normalised_10, raw_10) = measured
    torch.testing.assert_close(normalised["weight_l2_sharpness"], normalised_10["weight_l2_sharpness"])
    assert not torch.allclose(*(torch.as_tensor(v["weight_l2_sharpness"]) for v in (raw, raw_10)), rtol=0.1)


def test_more_steps_and_larger_radii_never_find_less():
    model, data = made("mlp")
    few, many = (
        worst_case_sharpness(snapshot_of(model, data), l2=(0.2, 0.5, 1.0, 2.0), linf=(), steps=steps)
        for steps in (1, 8)
    )
    a, b = (torch.as_tensor(values["weight_l2_sharpness"]) for values in (few, many))
    assert bool((b >= a).all())
    assert bool((b.diff() >= 0).all())


# --- a part of the data ---------------------------------------------------------------------------------------------


def test_the_error_of_a_subset_is_what_subsets_differ_by():
    torch.manual_seed(3)
    x = torch.randn(400, 3, dtype=torch.float64)
    model = nn.Linear(3, 1, bias=False).double()
    data = (x, x.sum(1, keepdim=True) + torch.randn(400, 1, dtype=torch.float64))
    whole = objective(with_loss(model, data, squared_error(), size=100))
    point = whole.start + 0.5
    true = whole.loss(point) - whole.loss(whole.start)
    z = []
    for seed in range(60):
        part = objective(with_loss(model, data, squared_error(), size=100, seed=seed), samples=128)
        z.append((part.loss(point) - part.loss(part.start) - true) / part.data_sem(point))
    assert 0.7 < math.sqrt(sum(x * x for x in z) / len(z)) < 1.35
    assert whole.data_sem(point) == 0


def test_subsets_carry_their_error_and_the_whole_set_none():
    model, data = made("mlp")
    snapshot = snapshot_of(model, data)
    cases: list[tuple[Any, str, dict[str, Any]]] = [
        (sam_sharpness, "sam_sharpness", {}),
        (worst_case_sharpness, "weight_l2_sharpness", {"linf": (), "steps": 2}),
        (average_case_sharpness, "weight_average_sharpness", {"draws": 2, "radii": (0.1,)}),
        (keskar_sharpness, "keskar_sharpness", {"epsilons": (0.001,), "iterations": 2}),
    ]
    for measure, name, fewer in cases:
        part, whole = measure(snapshot, samples=15, **fewer), measure(snapshot, **fewer)
        assert bool((torch.as_tensor(part[f"{name}_data_sem"]) > 0).all())
        assert not any("data_sem" in key for key in whole)
        all_of_it = measure(snapshot, samples=23, **fewer)
        torch.testing.assert_close(
            *(torch.as_tensor(v[name], dtype=torch.float64) for v in (all_of_it, whole)), rtol=1e-6, atol=1e-9
        )


@pytest.mark.parametrize(
    ("measure", "wrong", "message"),
    [
        (sam_sharpness, {"radius": 0.0}, "positive"),
        (sam_sharpness, {"batch": 0}, "at least 1 sample"),
        (sam_sharpness, {"samples": 24}, "training set's 23"),
        (worst_case_sharpness, {"scale": "layer"}, "none, weight, filter"),
        (worst_case_sharpness, {"steps": 0}, "at least 1 step"),
        (worst_case_sharpness, {"l2": (0.5, 0.2)}, "ascending"),
        (worst_case_sharpness, {"linf": (-0.5,)}, "positive"),
        (average_case_sharpness, {"draws": 1}, "at least 2"),
        (average_case_sharpness, {"radii": ()}, "positive"),
        (average_case_sharpness, {"radii": (0.1, math.inf)}, "positive"),
        (keskar_sharpness, {"directions": 0}, "at least 1"),
        (keskar_sharpness, {"epsilons": ()}, "positive"),
        (critical_sharpness, {"rtol": 0.0}, "positive"),
        (critical_sharpness, {"first_step": math.nan}, "positive"),
    ],
)
def test_impossible_settings_are_refused(measure: Any, wrong: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        measure(snapshot_of(*made("mlp")), **wrong)


def test_a_box_in_which_the_loss_is_not_finite_is_named():
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    snapshot = with_loss(model, (torch.ones(4, 1), torch.zeros(4, 1)), lambda o, t: o.pow(60).mean())
    with pytest.raises(FloatingPointError, match="within the box"):
        keskar_sharpness(snapshot, epsilons=(1e12,))
