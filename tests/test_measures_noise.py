"""The gradient noise scale against gradients of single samples, and how sure it says that it is."""

import math
from typing import Any

import pytest
import torch
from cases import MADE, made, snapshot_of
from oracles import flat_parameters, loss_of_flat

from landscope.losses import cross_entropy, squared_error
from landscope.measures import noise
from landscope.measures._objective import objective
from landscope.measures.noise import gradient_noise
from landscope.models import mlp, seeded
from landscope.types import Estimate

NAMES = ("gradient_variance", "gradient_norm_squared", "gradient_noise_scale")


@pytest.fixture(autouse=True)
def _forked():
    with seeded(0):
        yield


def single_gradients(model, data) -> torch.Tensor:
    """The gradient of every sample's loss, one by one, ``[n, dim]``."""
    inputs, targets = data
    rows = []
    for i in range(len(inputs)):
        point = flat_parameters(model).requires_grad_()
        value = loss_of_flat(model, cross_entropy(), (inputs[i : i + 1], targets[i : i + 1]))(point)
        rows.append(torch.autograd.grad(value, point)[0])
    return torch.stack(rows)


def truth(gradients: torch.Tensor) -> dict[str, float]:
    variance = gradients.var(0, correction=1).sum().item()
    norm = gradients.mean(0).square().sum().item()
    return dict(zip(NAMES, (variance, norm, variance / norm), strict=True))


def estimate(value: Any) -> Estimate:
    assert isinstance(value, Estimate)
    return value


@pytest.mark.parametrize("which", MADE)
def test_single_samples_give_the_covariance_of_their_gradients_exactly(which: str):
    model, data = made(which)
    model.eval()
    true, values = truth(single_gradients(model, data)), gradient_noise(snapshot_of(model, data), batch=1)
    for name in NAMES:
        assert estimate(values[name]).mean == pytest.approx(true[name], rel=1e-6)
        assert estimate(values[name]).sem == 0


def test_a_mean_of_numbers_in_closed_form():
    """L = mean (w − y)²/2 at w = 0: the gradients are −y; the scale is their variance over their squared mean."""
    model = torch.nn.Linear(1, 1, bias=False).double()
    torch.nn.init.zeros_(model.weight)
    y = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64)[:, None]
    of = snapshot_of(model, (torch.ones_like(y), y), test=None)
    object.__setattr__(of, "loss", squared_error())
    values = gradient_noise(of, batch=1)
    factor = values["gradient_norm_squared"].mean / 9  # type: ignore[union-attr]  # squared_error's own factor, squared
    assert factor in (pytest.approx(1), pytest.approx(4))
    assert estimate(values["gradient_variance"]).mean == pytest.approx(factor * 14 / 3)
    assert estimate(values["gradient_noise_scale"]).mean == pytest.approx(14 / 27)


def batch_means(gradients: torch.Tensor, batch: int, samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of a random cut of some samples into batches, and how many samples each has."""
    parts = gradients[torch.randperm(len(gradients))[:samples]].split(batch)
    return torch.stack([part.mean(0) for part in parts]), torch.tensor([float(len(part)) for part in parts]).double()


def estimates(means: torch.Tensor, counts: torch.Tensor, whole: int) -> tuple[torch.Tensor, torch.Tensor]:
    mean = counts @ means / counts.sum()
    return noise._estimates(counts, means.square().sum(1), means @ mean, float(mean @ mean), whole)


def test_what_is_left_without_a_batch_is_what_the_other_batches_give():
    means, counts = batch_means(torch.randn(17, 6).double() + 1, 3, 17)
    _, without = estimates(means, counts, 40)
    for k in range(len(counts)):
        rest = [i for i in range(len(counts)) if i != k]
        torch.testing.assert_close(without[:, k], estimates(means[rest], counts[rest], 40)[0])


@pytest.mark.parametrize(("batch", "samples"), [(4, 23), (2, 11), (3, 14)])
def test_the_estimates_are_unbiased_over_ways_to_cut_the_samples(batch: int, samples: int):
    gradients = torch.randn(23, 5).double() * torch.tensor([3.0, 1.0, 1.0, 0.5, 0.1]) + 0.5
    true = truth(gradients)
    found, errors = [], []
    for _ in range(1000):
        value, without = estimates(*batch_means(gradients, batch, samples), 23)
        found.append(value)
        errors.append([noise._jackknifed(v, w).sem for v, w in zip(value, without, strict=True)])
    means, spread = torch.stack(found).mean(0), torch.stack(found).std(0)
    stated = torch.tensor(errors).square().mean(0).sqrt()
    for i, name in enumerate(NAMES[:2]):
        assert abs(means[i].item() - true[name]) <= 4 * spread[i].item() / math.sqrt(1000) + 1e-9
        assert stated[i] >= 0.95 * spread[i]  # as if drawn with replacement: never below the real error


def test_batches_are_cut_at_random_and_all_samples_are_in_one():
    model, data = made("mlp")
    of = snapshot_of(model, data)
    gradients, parts = single_gradients(model, data), objective(of, batch=4).problem.data
    rows = [[next(i for i, x in enumerate(data[0]) if torch.equal(x, y)) for y in inputs] for inputs, _ in parts]
    assert sorted(i for row in rows for i in row) == list(range(23))
    assert rows != sorted(rows)
    means = torch.stack([gradients[row].mean(0) for row in rows])
    counts = torch.tensor([float(len(row)) for row in rows]).double()
    expected, _ = estimates(means, counts, 23)
    values = gradient_noise(of, batch=4)
    for i, name in enumerate(NAMES[:2]):
        assert estimate(values[name]).mean == pytest.approx(expected[i].item())
    assert estimate(values["gradient_norm_squared"]).sem == 0
    scale = estimate(values["gradient_noise_scale"])
    assert scale.mean == pytest.approx((expected[0] / expected[1]).item())
    assert scale.sem == pytest.approx(estimate(values["gradient_variance"]).sem / expected[1].item())


def test_a_gradient_that_cannot_be_told_from_zero_has_no_scale():
    """Two kinds of sample that pull in opposite directions: a subset's gradient is noise alone."""
    model = torch.nn.Linear(1, 1, bias=False).double()
    torch.nn.init.zeros_(model.weight)
    y = torch.tensor([1.0, -1.0] * 20, dtype=torch.float64)[:, None]
    of = snapshot_of(model, (torch.ones_like(y), y), test=None)
    object.__setattr__(of, "loss", squared_error())
    values = gradient_noise(of, batch=4, samples=20)
    assert math.isnan(float(values["gradient_noise_scale"]))
    assert estimate(values["gradient_variance"]).mean > 0
    assert math.isnan(float(gradient_noise(of, batch=1)["gradient_noise_scale"]))  # exactly 0


def test_the_network_is_left_as_it_was_and_bad_settings_are_named():
    model, data = made("noisy")
    before = {name: t.clone() for name, t in model.state_dict().items()}
    of = snapshot_of(model, data)
    gradient_noise(of, batch=5)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert gradient_noise(of, batch=2000) == gradient_noise(of, batch=7)  # a third of 23
    for settings, said in (
        ({"samples": 2}, "at least 3 samples, not 2"),
        ({"batch": 0}, "at least 1 sample"),
        ({"samples": 24}, "between 2 and the training set's 23"),
    ):
        with pytest.raises(ValueError, match=said):
            gradient_noise(of, **settings)  # type: ignore[arg-type]


def test_weights_that_are_not_finite_are_an_error():
    model = mlp((5,), 3, widths=(4,))
    torch.nn.init.constant_(next(model.parameters()), math.nan)
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        gradient_noise(snapshot_of(model, made("mlp", torch.float32)[1]), batch=4)
