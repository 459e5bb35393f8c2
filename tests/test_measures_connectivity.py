"""The line between two networks, and the count of weights."""

import math
from typing import Any

import pytest
import torch
from cases import everything, made, same, snapshot_of
from torch import nn

from landscope.losses import cross_entropy, squared_error
from landscope.measures.connectivity import Between, between, halfway, linear_connectivity
from landscope.measures.sparsity import weight_density
from landscope.models import mlp, seeded
from landscope.spec import call
from landscope.train import evaluate
from landscope.types import Batches, Snapshot


def net(seed, *, batchnorm=False) -> Any:
    with seeded(seed):
        model = mlp((4,), 3, widths=(6,), batchnorm=batchnorm).double()
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape))
    return model


def line_of(first, second):
    line = between((4,), 3, of=call(mlp, widths=(6,), batchnorm=any(isinstance(m, nn.BatchNorm1d) for m in first)))
    line.double().load_state_dict(halfway(first=first.state_dict(), second=second.state_dict()))
    return line


def samples(n=23, seed=0):
    with seeded(seed):
        return torch.randn(n, 4, dtype=torch.float64), torch.randint(3, (n,))


def taken(line, loss=None, data=None, **settings) -> dict[str, Any]:
    x, y = data or samples()
    train, test = Batches(x, y, 8), Batches(x[:9], y[:9], 4)
    line.eval()
    of = Snapshot(line, line.state_dict(), None, loss or cross_entropy(), train, None, test, 0, 0)
    return linear_connectivity(of, **settings)


def test_the_ends_of_the_line_are_the_two_networks_and_every_point_is_the_one_in_between():
    first, second = net(1), net(2)
    values = taken(line_of(first, second), points=5)
    x, y = samples()
    for i, share in enumerate((0.0, 0.25, 0.5, 0.75, 1.0)):
        own = net(3)
        mixed = {n: (1 - share) * a + share * second.state_dict()[n] for n, a in first.state_dict().items()}
        own.load_state_dict(mixed)
        score = evaluate(own, cross_entropy(), Batches(x, y))
        assert values["line_train_loss"][i].item() == pytest.approx(score["loss"], rel=1e-12)
        assert values["line_train_accuracy"][i].item() == pytest.approx(score["accuracy"], rel=1e-12)
    loss, error = values["line_train_loss"], 1 - values["line_test_accuracy"]
    assert values["train_loss_barrier"] == pytest.approx((loss.max() - (loss[0] + loss[-1]) / 2).item())
    assert values["test_error_midpoint_rise"] == pytest.approx((error[2] - (error[0] + error[-1]) / 2).item())
    apart = [(second.state_dict()[n] - a).square().sum() for n, a in first.state_dict().items()]
    assert values["line_length"] == pytest.approx(math.sqrt(sum(apart)))


def test_a_linear_network_under_the_squared_error_has_a_parabola_on_its_line():
    """L(½) − (L(0) + L(1)) / 2 = −L''/8, with L'' = 2 · mean ‖(W₂ − W₁)x + b₂ − b₁‖² and a mean loss of ‖f − y‖²."""
    x = samples()[0]
    y = torch.randn(len(x), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    with seeded(1):
        first, second = nn.Linear(4, 3).double(), nn.Linear(4, 3).double()
    line = Between(nn.Linear(4, 3).double())
    line.load_state_dict(halfway(first=first.state_dict(), second=second.state_dict()))
    values = taken(line, squared_error(), (x, y))
    bent = (second(x) - first(x)).square().sum(1).mean().item()
    per = (
        taken(line, squared_error(), (x, first(x).detach()))["line_train_loss"][-1].item() / bent
    )  # the loss's own factor
    assert values["train_loss_midpoint_rise"] == pytest.approx(-per * bent / 4, rel=1e-10)
    assert values["train_loss_barrier"] >= 0
    assert "line_train_accuracy" not in values


def test_two_equal_networks_have_no_barrier_and_the_same_network_with_its_units_permuted_has_one():
    first, permuted = net(1), net(1)
    with torch.no_grad():
        for p in first.parameters():
            p.mul_(4)
        order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
        permuted.load_state_dict(first.state_dict())
        permuted[1].weight.copy_(first[1].weight[order])
        permuted[1].bias.copy_(first[1].bias[order])
        permuted[3].weight.copy_(first[3].weight[:, order])
    x = samples()[0]
    labels = first(x).argmax(1)
    assert taken(line_of(first, first), data=(x, labels))["train_loss_barrier"] == 0
    values = taken(line_of(first, permuted), data=(x, labels))
    assert values["line_train_loss"][0].item() == pytest.approx(values["line_train_loss"][-1].item(), rel=1e-10)
    assert values["train_loss_midpoint_rise"] > 0.05


def test_batchnorm_is_renewed_at_every_point_or_mixed():
    first, second = net(1, batchnorm=True), net(2, batchnorm=True)
    x, y = samples(24)
    mixed = taken(line_of(first, second), data=(x, y), renewed=False)
    assert mixed["line_train_loss"][0].item() == pytest.approx(evaluate(first, cross_entropy(), Batches(x, y))["loss"])
    renewed = taken(line_of(first, second), data=(x, y))
    with torch.no_grad():
        hidden = first[1](x).reshape(3, 8, 6)  # batches of 8
        first[2].running_mean.copy_(hidden.mean(1).mean(0))
        first[2].running_var.copy_(hidden.var(1).mean(0))
    own = evaluate(first, cross_entropy(), Batches(x, y))["loss"]
    assert renewed["line_train_loss"][0].item() == pytest.approx(own, rel=1e-10)
    assert not torch.allclose(renewed["line_train_loss"], mixed["line_train_loss"])


def test_measuring_leaves_the_network_as_it_was():
    line = line_of(net(1, batchnorm=True), net(2, batchnorm=True))
    line.eval()
    before = everything(line)
    taken(line)
    assert same(everything(line), before)


def test_the_network_in_the_middle_is_an_ordinary_one_and_holds_its_ends():
    first, second = net(1), net(2)
    line = line_of(first, second)
    x = samples()[0]
    assert torch.equal(line(x), line.net(x))
    assert len(list(line.parameters())) == len(list(first.parameters()))
    assert all(torch.equal(line.end("second")[n], t) for n, t in second.state_dict().items())
    with pytest.raises(LookupError, match="the ends first and second, not 'third'"):
        line.end("third")


def test_another_network_has_no_line():
    assert linear_connectivity(snapshot_of(*made("mlp"))) == {}


@pytest.mark.parametrize("points", [1, 2, 10])
def test_a_line_has_its_midpoint_among_its_points(points):
    with pytest.raises(ValueError, match="points is an odd number of at least 3"):
        taken(line_of(net(1), net(2)), points=points)


def test_networks_of_different_kinds_have_no_line():
    with pytest.raises(ValueError, match=r"they differ in 3\.weight"):
        halfway(first={"3.weight": torch.ones(2)}, second={"3.weight": torch.ones(3)})
    with pytest.raises(ValueError, match=r"they differ in 4\.bias"):
        halfway(first={"3.weight": torch.ones(2)}, second={"3.weight": torch.ones(2), "4.bias": torch.ones(1)})


def test_sparsity_counts_what_is_there_and_what_came_back():
    model: Any = mlp((4,), 2, widths=(3,))
    x, y = samples()
    with torch.no_grad():
        model[1].weight[0] = 0
        start = {n: t.clone() for n, t in model.state_dict().items()}
        model[3].weight[:, 0] = 0
        model[1].weight[0, 1] = 1.0
        model[1].bias.zero_()
    of = Snapshot(model, model.state_dict(), start, cross_entropy(), Batches(x, y), None, None, 0, 0)
    values: dict[str, Any] = dict(weight_density(of))
    assert values["weight_density"] == (9 + 4) / 18
    assert values["layer_densities"].tolist() == [9 / 12, 4 / 6]
    assert values["nonzero_parameters"] == 9 + 4 + 2
    assert values["revived_weights"] == 1
    assert "revived_weights" not in weight_density(
        Snapshot(model, model.state_dict(), None, of.loss, of.train, None, None, 0, 0)
    )
    assert weight_density(snapshot_of(nn.Flatten(), (x, y))) == {}
