"""Measures: a contract over every one that is discovered, and each one's own numbers."""

import contextlib
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import MADE, everything, made, same, snapshot_of
from checks import unchecked
from oracles import dense_hessian
from torch import Tensor, nn
from torch.nn import functional

import landscope.measures as measures
from landscope.directions import filter_normalised, gaussian
from landscope.losses import cross_entropy, squared_error
from landscope.measures.outcomes import performance
from landscope.measures.sharpness import weight_perturbation
from landscope.measures.spectrum import top_eigenvalues
from landscope.models import mlp, seeded
from landscope.spec import call, derive
from landscope.spec import key as key_of
from landscope.types import Batches, Estimate

NAMES = sorted(measures.names())
FEWER: dict[str, dict[str, Any]] = {  # for speed alone
    "weight_perturbation": {"draws": 2, "magnitudes": (0.01, 0.1)},
    "worst_case_sharpness": {"l2": (0.5,), "linf": (0.002,), "steps": 2},
    "average_case_sharpness": {"draws": 2, "radii": (0.1,)},
    "keskar_sharpness": {"epsilons": (0.001,), "iterations": 3},
    "hessian_spectrum": {"top": 2, "bottom": 1, "probes": 3, "steps": 4},
    "relative_spectrum": {"probes": 3},
    "basin_volume": {"rays": 4, "cutoffs": (0.1, 0.3)},
    "per_layer_curvature": {"steps": 36, "probes": 2},
}


@pytest.fixture(autouse=True)
def _forked():
    with seeded(0):
        yield


def take(name: str, snapshot: Any) -> Any:
    return dict(getattr(measures, name)(snapshot, **FEWER.get(name, {})))


# --- the contract ---------------------------------------------------------------------------------------------------


def test_measures_are_found_and_described():
    assert {"performance", "top_eigenvalues", "weight_perturbation"} <= set(NAMES)
    assert all(line.endswith(".") for line in measures.names().values())


@pytest.mark.parametrize("which", MADE)
def test_measures_leave_everything_as_it_was_and_give_the_same_in_any_order(which: str):
    model, data = made(which, torch.float32)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    snapshot = snapshot_of(model, data)
    next(model.children()).train()
    before, first = everything(model), {}
    for name in NAMES:
        first[name] = take(name, snapshot)
        assert same(everything(model), before), name
    torch.rand(3)
    with unchecked():  # the first time was checked
        for name in reversed(NAMES):
            assert same(take(name, snapshot), first[name]), name


class InsideTheLoss(RuntimeError):
    pass


@pytest.mark.parametrize("name", NAMES)
def test_a_measure_that_fails_leaves_everything_as_it_was(name: str):
    model, data = made("noisy", torch.float32)
    snapshot = snapshot_of(model, data)
    calls: list[int] = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > 3:
            raise InsideTheLoss
        return functional.cross_entropy(outputs, targets)

    object.__setattr__(snapshot, "loss", loss)
    model.train()
    before = everything(model)
    with contextlib.suppress(InsideTheLoss):
        take(name, snapshot)
        assert len(calls) <= 3  # a measure of the weights alone asks for no loss
    assert same(everything(model), before)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("which", ["mlp", "noisy"])
def test_a_measure_works_in_float64_and_agrees_with_float32(name: str, which: str):
    double, data = made(which, torch.float64)
    exact = take(name, snapshot_of(double, data))
    single, data = made(which, torch.float32)
    rough = take(name, snapshot_of(single, data))
    for key, value in exact.items():
        if any(word in key for word in ("product", "residual", "passes")):
            continue
        if isinstance(value, Estimate):  # probes of another precision are other probes
            other = rough[key]
            assert abs(value.mean - other.mean) < 5 * math.hypot(value.sem, other.sem) + 2e-3 * (1 + abs(value.mean))
        elif not key.startswith("density"):
            a, b = (torch.as_tensor(v, dtype=torch.float64) for v in (value, rough[key]))
            torch.testing.assert_close(b, a, rtol=2e-3, atol=2e-3)


# --- performance, spectrum ------------------------------------------------------------------------------------------


def test_performance_is_exact_over_ragged_batches():
    model, (x, y) = made("mlp")
    values = performance(snapshot_of(model, (x, y), test=Batches(x[:9], y[:9], 4)))
    assert values["train_loss"] == pytest.approx(functional.cross_entropy(model(x), y).item(), rel=1e-12)
    right = (model(x).argmax(1) == y).double()
    assert values["generalization_gap"] == pytest.approx(right.mean().item() - right[:9].mean().item())
    train, test, gap = (float(values[name]) for name in ("train_loss", "test_loss", "loss_gap"))
    assert gap == test - train
    assert "valid_loss" not in values


def test_performance_says_which_test_samples_are_right():
    model, (x, y) = made("mlp")
    snapshot = snapshot_of(model, (x, y), test=Batches(x[3:12], y[3:12], 4))
    values = performance(snapshot, examples=True)
    right = values.pop("test_correct")
    assert torch.equal(torch.as_tensor(right), model(x[3:12]).argmax(1) == y[3:12])
    assert values == performance(snapshot)
    assert values["test_accuracy"] == torch.as_tensor(right).double().mean().item()
    assert "test_correct" not in performance(snapshot_of(model, (x, y), test=None), examples=True)
    # Off, it is the measure that it was before there was the setting: what is in a store stays measured.
    off, on = (key_of(call(performance, examples=examples)) for examples in (None, True))
    assert key_of(call(performance)) == off != on


@pytest.mark.parametrize("loss", [functional.cross_entropy, squared_error(), nn.CrossEntropyLoss(label_smoothing=0.1)])
def test_losses_of_held_out_examples_have_their_sampling_error(loss):
    model, (x, y) = made("mlp")
    sets = {"valid": Batches(x[:7], y[:7], 3), "test": Batches(x[3:12], y[3:12], 4)}
    snapshot = replace(snapshot_of(model, (x, y), test=sets["test"]), valid=sets["valid"], loss=loss)
    values, plain = performance(snapshot, errors=True, examples=True), performance(snapshot, examples=True)
    assert list(values) == list(plain)
    for name, part in sets.items():
        each = torch.stack([loss(model(a[None]), b[None]) for a, b in zip(part.inputs, part.targets, strict=True)])
        found = values[f"{name}_loss"]
        assert isinstance(found, Estimate)
        assert (found.mean, found.n) == (plain[f"{name}_loss"], part.n)
        assert found.sem == pytest.approx(each.std().item() / part.n**0.5, rel=1e-9)
    gap, test = values["loss_gap"], values["test_loss"]
    assert isinstance(gap, Estimate)
    assert isinstance(test, Estimate)
    assert (gap.mean, gap.sem, gap.n) == (plain["loss_gap"], test.sem, test.n)
    for name in ("train_loss", "train_accuracy", "test_accuracy", "generalization_gap"):
        assert values[name] == plain[name]
    one = replace(snapshot, test=Batches(x[:1], y[:1], 1))
    assert isinstance(performance(one, errors=True)["test_loss"], float)
    assert key_of(call(performance, errors=None)) == key_of(call(performance))


@pytest.mark.parametrize("which", MADE)
def test_the_top_eigenvalues_are_those_of_the_dense_hessian(which: str):
    model, data = made(which)
    values = top_eigenvalues(snapshot_of(model, data), k=3, rtol=1e-5)
    expected = torch.linalg.eigvalsh(dense_hessian(model, cross_entropy(), data)).flip(0)[:3]
    torch.testing.assert_close(values["eigenvalues"], expected, rtol=1e-5, atol=1e-9)
    assert values["top_eigenvalue_converged"] == 1.0
    assert values["top_eigenvalue"] == float(values["eigenvalues"][0])  # type: ignore[index]


def test_regression_with_three_outputs_has_every_eigenvalue_three_times():
    x = torch.randn(30, 4, dtype=torch.float64)
    model = nn.Linear(4, 3, bias=False).double()
    snapshot = snapshot_of(model, (x, torch.randn(30, 3, dtype=torch.float64)), test=None)
    object.__setattr__(snapshot, "loss", squared_error())
    top = torch.linalg.eigvalsh(2 * x.T @ x / 30)[-1]
    values = top_eigenvalues(snapshot, k=3)
    torch.testing.assert_close(values["eigenvalues"], top.expand(3), rtol=1e-5, atol=0)


# --- perturbation ---------------------------------------------------------------------------------------------------


def test_on_a_linear_model_the_mean_increase_is_the_variance_times_the_inputs_second_moment():
    x = torch.randn(12, 3, dtype=torch.float64)
    model = nn.Linear(3, 2, bias=False).double()
    snapshot = snapshot_of(model, (x, model(x).detach()), test=None)
    object.__setattr__(snapshot, "loss", squared_error())
    values = weight_perturbation(snapshot, magnitudes=(0.1, 0.3), draws=100)
    for i, sigma in enumerate((0.1, 0.3)):
        expected = sigma**2 * 2 * x.square().sum(1).mean().item()  # sigma² · outputs · E‖x‖²
        got, sem = (float(values[f"absolute_loss_increase{end}"][i]) for end in ("", "_sem"))
        assert abs(got - expected) < 4 * sem
        assert sem < 0.2 * expected
    assert "absolute_flipped" not in values


def test_every_draw_is_what_it_says():
    model, data = made("mlp")
    snapshot = snapshot_of(model, data)
    values = weight_perturbation(snapshot, magnitudes=(0.02, 0.4), draws=3)
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    losses, flips, base = torch.zeros(2, 3).double(), torch.zeros(2, 3).double(), model(data[0])
    for d in range(3):
        noise = gaussian(weights, seed=derive(snapshot.seed, "perturbation", d))
        for i, sigma in enumerate((0.02, 0.4)):
            model.load_state_dict({n: w + sigma * noise[n] for n, w in weights.items()})
            outputs = model(data[0])
            losses[i, d] = functional.cross_entropy(outputs, data[1]).item()
            flips[i, d] = (outputs.argmax(1) != base.argmax(1)).double().mean().item()
    start = functional.cross_entropy(base, data[1]).item()
    sem = losses.std(1) / math.sqrt(3)
    torch.testing.assert_close(values["absolute_loss"], losses.mean(1))
    torch.testing.assert_close(values["absolute_loss_sem"], sem)
    torch.testing.assert_close(values["absolute_loss_increase"], losses.mean(1) - start)
    torch.testing.assert_close(values["absolute_loss_increase_percent"], 100 * (losses.mean(1) / start - 1))
    torch.testing.assert_close(values["absolute_loss_increase_percent_sem"], 100 * sem / start)
    torch.testing.assert_close(values["absolute_flipped"], flips.mean(1))
    assert values["absolute_magnitudes"].tolist() == [0.02, 0.4]


def test_filter_noise_is_blind_to_rescaling_two_layers_and_absolute_noise_is_not():
    model = mlp((5,), 3, widths=(6,)).double()
    _, data = made("mlp")
    plain = {
        k: weight_perturbation(snapshot_of(model, data), kind=k, draws=2, magnitudes=(0.02, 0.2))
        for k in ("filter", "absolute")
    }
    first, last = model[1], model[3]
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    before = model(data[0]).detach()
    with torch.no_grad():
        first.weight.mul_(20)
        first.bias.mul_(20)
        last.weight.div_(20)
    torch.testing.assert_close(model(data[0]), before)
    scaled = {
        k: weight_perturbation(snapshot_of(model, data), kind=k, draws=2, magnitudes=(0.02, 0.2))
        for k in ("filter", "absolute")
    }
    torch.testing.assert_close(scaled["filter"]["filter_loss"], plain["filter"]["filter_loss"])
    assert not torch.allclose(scaled["absolute"]["absolute_loss"], plain["absolute"]["absolute_loss"], rtol=1e-3)


def test_all_networks_of_one_shape_meet_the_same_noise():
    a, b = (dict(mlp((5,), 3, widths=(4,)).named_parameters()) for _ in range(2))
    assert same(gaussian(a, seed=3), gaussian(b, seed=3))
    assert not same(gaussian(a, seed=3), gaussian(a, seed=4))
    scaled = filter_normalised(gaussian(a, seed=3), a)
    torch.testing.assert_close(scaled["1.weight"].norm(dim=1), a["1.weight"].norm(dim=1))
    assert not scaled["1.bias"].any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "relative"}, "not 'relative'"),
        ({"draws": 1}, "at least 2"),
        ({"magnitudes": ()}, "positive numbers"),
        ({"magnitudes": (0.1, 0.0)}, "positive numbers"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        weight_perturbation(snapshot_of(*made("mlp")), **wrong)
