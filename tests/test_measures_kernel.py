"""Movement, drift, alignment and agreement with the linearised network: closed forms, oracles, and what is left out."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import everything, made, same, snapshot_of
from torch import Tensor, nn

from landscope.kernels import KernelSystem, alignment, infinite_ntk, ntk
from landscope.losses import squared_error
from landscope.measures.kernel import at_start, linearisation, linearised_training, parameter_movement, tangent_kernel
from landscope.models import mlp, seeded, wide_mlp
from landscope.types import Batches, Snapshot


@pytest.fixture(autouse=True)
def _forked():
    with seeded(0):
        yield


def moved(model: nn.Module, data: tuple[Tensor, Tensor], size: float = 0.1, **sets: Any) -> Snapshot:
    """A snapshot of a network that noise has moved from its start."""
    snapshot = snapshot_of(model, data, **sets)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(size * torch.randn_like(p))
    return replace(snapshot, state=model.state_dict())


def trained(
    model: nn.Module, data: tuple[Tensor, Tensor], rate: float, steps: int, test: tuple[Tensor, Tensor]
) -> Snapshot:
    """A snapshot after full-batch gradient descent on the squared loss."""
    snapshot = snapshot_of(model, data, test=Batches(*test, 12))
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        squared_error()(model(data[0]), data[1]).backward()
        optimizer.step()
    for p in model.parameters():
        p.grad = None
    return replace(snapshot, state=model.state_dict(), loss=squared_error(), step=steps)


# --- movement -------------------------------------------------------------------------------------------------------


def test_movement_is_its_two_parts_of_all_weights_and_of_each_kind():
    model = mlp((5,), 3, widths=(4, 6, 2)).double()
    _, data = made("mlp")
    snapshot = moved(model, data)
    values = parameter_movement(snapshot)
    assert snapshot.start_state is not None
    start, now = snapshot.start_state, model.state_dict()
    kinds = {
        "input_weights": ["1.weight"],
        "hidden_weights": ["3.weight", "5.weight"],
        "output_weights": ["7.weight"],
        "biases": ["1.bias", "3.bias", "5.bias", "7.bias"],
    }
    for kind, names in kinds.items():
        distance = torch.cat([(now[n] - start[n]).flatten() for n in names]).norm().item()
        norm = torch.cat([start[n].flatten() for n in names]).norm().item()
        found = [values[f"{kind}_{part}"] for part in ("distance", "start_norm", "relative")]
        assert found == pytest.approx([distance, norm, distance / norm])
    assert values["distance_moved"] ** 2 == pytest.approx(sum(values[f"{k}_distance"] ** 2 for k in kinds))
    assert values["relative_movement"] == pytest.approx(values["distance_moved"] / values["start_norm"])


def test_movement_of_frozen_and_missing_kinds_and_of_what_starts_at_zero():
    model = nn.Sequential(nn.Linear(5, 3)).double()
    nn.init.zeros_(model[0].bias)  # pyright: ignore[reportArgumentType]
    values = parameter_movement(moved(model, made("mlp")[1]))
    assert "biases_relative" not in values
    assert values["biases_distance"] > 0
    assert values["output_weights_distance"] > 0  # of a single layer
    assert not any(name.startswith(("input", "hidden")) for name in values)
    model[0].requires_grad_(False)
    assert parameter_movement(moved(model, made("mlp")[1])) == {}


def test_the_norm_of_pytorchs_initialisation_grows_as_the_root_of_the_width():
    norms = {}
    for width in (64, 256):
        model = wide_mlp((784,), 10, width=width)
        x = torch.randn(4, 784)
        norms[width] = parameter_movement(snapshot_of(model, (x, torch.zeros(4, dtype=torch.long))))["start_norm"]
    assert norms[64] == pytest.approx(math.sqrt(64 + 4), rel=0.03)
    assert norms[256] == pytest.approx(math.sqrt(256 + 4), rel=0.03)


# --- the kernel -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["mlp", "cnn", "tied"])
def test_the_kernels_drift_and_alignment_are_those_of_the_kernels(which: str):
    model, data = made(which)
    snapshot = moved(model, data)
    values = tangent_kernel(snapshot, samples=100)  # there are fewer: all
    assert snapshot.start_state is not None
    present = ntk(model, data[0])
    with at_start(model, snapshot.start_state):
        start = ntk(model, data[0])
    assert values["kernel_drift"] == pytest.approx(((present - start).norm() / start.norm()).item())
    assert values["kernel_drift"] == pytest.approx(values["kernel_distance_moved"] / values["kernel_start_norm"])
    assert values["kernel_rotation"] == pytest.approx(
        1 - ((present * start).sum() / present.norm() / start.norm()).item(), abs=1e-12
    )
    y = torch.nn.functional.one_hot(data[1], 3).double()
    for prefix, kernel in (("", present), ("start_", start)):
        for centred in (False, True):
            name = f"{prefix}kernel_alignment" + "_centred" * centred
            assert values[name] == pytest.approx(alignment(kernel, y, centred=centred))
    assert "infinite_kernel_drift" not in values


def test_a_network_that_has_not_moved_drifts_by_nothing():
    values = tangent_kernel(snapshot_of(*made("mlp")), samples=7)
    assert values["kernel_drift"] == 0
    assert values["kernel_rotation"] == pytest.approx(0, abs=1e-12)
    unmoved = linearisation(snapshot_of(*made("mlp")))
    assert unmoved["outputs_change"] == 0
    assert "linearisation_error" not in unmoved


def test_all_networks_are_measured_on_the_same_samples():
    model, data = made("mlp")
    few = tangent_kernel(moved(model, data), samples=5)["kernel_start_norm"]
    assert few != tangent_kernel(moved(model, data), samples=6)["kernel_start_norm"]
    again = tangent_kernel(snapshot_of(made("mlp")[0], data), samples=5)["kernel_start_norm"]
    assert again == pytest.approx(few)


def test_a_network_in_the_ntk_parametrisation_is_compared_with_its_limit_and_others_are_not():
    x, y = torch.randn(6, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    model = wide_mlp((5,), 3, width=32, depth=2, parametrisation="ntk", bias_variance=0.2).double()
    values = tangent_kernel(moved(model, (x, y), size=0.01))
    limit = infinite_ntk(x, depth=2, bias_variance=0.2)
    found = ((ntk(model, x) / 3 - limit).norm() / limit.norm()).item()
    assert values["infinite_kernel_drift"] == pytest.approx(found)
    assert values["start_infinite_kernel_drift"] == pytest.approx(found, rel=0.2)
    others = (
        wide_mlp((5,), 3, width=32),
        nn.Sequential(*list(model)[:3], nn.Tanh(), *list(model)[4:]),
        nn.Sequential(model),
    )
    for other in others:
        assert "infinite_kernel_drift" not in tangent_kernel(snapshot_of(other.double(), (x, y)))


def test_a_network_whose_units_are_all_dead_has_no_centred_alignment():
    model, data = mlp((5,), 3, widths=(4,)).double(), made("mlp")[1]
    nn.init.constant_(model[1].bias, -1e3)  # pyright: ignore[reportArgumentType]
    values = tangent_kernel(snapshot_of(model, data))
    assert "kernel_alignment_centred" not in values
    assert values["kernel_alignment"] > 0  # the output's bias is left
    assert values["kernel_drift"] == 0


def test_values_for_regression_and_for_one_output():
    x, y = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 1, dtype=torch.float64)
    model = mlp((5,), 1, widths=(4,)).double()
    snapshot = replace(moved(model, (x, y)), loss=squared_error())
    assert tangent_kernel(snapshot)["kernel_alignment"] == pytest.approx(alignment(ntk(model, x), y))
    assert "linearisation_agreement" not in linearisation(snapshot)
    assert "kernel_regression_accuracy" not in linearised_training(snapshot)
    classes = replace(snapshot, train=Batches(x, (y > 0).long().squeeze(1), 6))
    assert tangent_kernel(classes)["kernel_alignment"] == pytest.approx(alignment(ntk(model, x), (y > 0).double()))


# --- linearisation --------------------------------------------------------------------------------------------------


def test_a_linear_network_is_its_linearisation_and_trains_as_its_kernel_says():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(5, 3)).double()
    x, y, other = (torch.randn(*s, dtype=torch.float64) for s in ((7, 5), (7, 3), (9, 5)))
    test = (other, torch.tensor([0, 1, 2] * 3))
    rate = 0.5 * KernelSystem(ntk(model, x, trace_outputs=False), y, y).largest_rate
    snapshot = trained(model, (x, y), rate, 30, test)
    values = linearisation(snapshot)
    assert values["linearisation_error"] == pytest.approx(0, abs=1e-10)
    assert values["linearisation_agreement"] == 1.0
    exact = linearised_training(snapshot, rate=rate)
    assert exact["linear_training_error"] == pytest.approx(0, abs=1e-8)
    assert "linear_training_time" not in exact
    matched = linearised_training(snapshot)
    assert matched["linear_training_time"] == pytest.approx(rate * 30, rel=0.5)  # of flow, not of steps
    assert 0 < matched["linear_training_error"] < 0.1
    assert matched["kernel_regression_accuracy"] == exact["kernel_regression_accuracy"]


def test_wider_networks_train_more_like_their_linearisation():
    x, other = torch.randn(12, 6, dtype=torch.float64), torch.randn(20, 6, dtype=torch.float64)
    y = torch.randn(12, 2, dtype=torch.float64)
    errors: dict[int, dict[str, float]] = {}
    for width in (16, 1024):
        model = wide_mlp((6,), 2, width=width, depth=2, parametrisation="ntk").double()
        snapshot = trained(model, (x, y), 0.1, 60, (other, torch.zeros(20, dtype=torch.long)))
        errors[width] = linearisation(snapshot) | linearised_training(snapshot, rate=0.1) | tangent_kernel(snapshot)
        errors[width] |= parameter_movement(snapshot)
    for name in ("linearisation_error", "linear_training_error", "kernel_drift", "hidden_weights_relative"):
        assert errors[1024][name] < 0.5 * errors[16][name], name
    assert errors[1024]["linear_training_error"] < 0.2


# --- what is left out, and left as it was ---------------------------------------------------------------------------


MEASURES = (parameter_movement, tangent_kernel, linearisation, linearised_training)


def test_without_a_start_what_needs_it_is_left_out():
    snapshot = replace(snapshot_of(*made("mlp")), start_state=None)
    assert [measure(snapshot) for measure in (MEASURES[0], *MEASURES[2:])] == [{}, {}, {}]
    assert set(tangent_kernel(snapshot)) == {"kernel_alignment", "kernel_alignment_centred"}
    unseen = replace(moved(*made("mlp")), test=None, loss=squared_error())
    assert linearisation(unseen) == linearised_training(unseen) == {}


def test_training_is_compared_for_the_squared_loss_and_few_samples_alone():
    snapshot = moved(*made("mlp"))
    assert linearised_training(snapshot) == {}
    squared = replace(snapshot, loss=squared_error())
    assert "kernel_regression_error" in linearised_training(squared)
    assert linearised_training(squared, most=snapshot.train.n - 1) == {}


@pytest.mark.parametrize("measure", MEASURES[1:])
def test_too_few_samples_are_refused(measure: Any):
    with pytest.raises(ValueError, match="at least 2 samples, not 1"):
        measure(replace(moved(*made("mlp")), loss=squared_error()), samples=1)


def test_a_rate_at_which_training_would_diverge_is_refused():
    with pytest.raises(ValueError, match="diverges on this kernel"):
        linearised_training(replace(moved(*made("mlp")), loss=squared_error()), rate=1e6)


@pytest.mark.parametrize("which", ["cnn", "tied"])
def test_the_network_is_as_it_was_also_after_a_failure(which: str):
    model, data = made(which)
    snapshot = replace(moved(model, data), loss=squared_error())
    model.train()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = everything(model)
    for measure in MEASURES:
        measure(snapshot)
        assert same(everything(model), before), measure.__name__
    assert snapshot.start_state is not None
    inside = at_start(model, snapshot.start_state)
    inside.__enter__()
    assert not same(everything(model)["state"], before["state"])
    assert not inside.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert same(everything(model), before)
