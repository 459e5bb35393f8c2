"""Networks: initialisation, sizes that are refused, and contexts that leave nothing behind."""

import math

import pytest
import torch
from torch import nn

from landscope.basins import loss_along
from landscope.kernels import ntk
from landscope.landscapes import plane
from landscope.models import cnn, device_of, evaluating, mlp, seeded
from landscope.types import Batches


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_the_papers_networks_have_its_numbers_of_parameters():
    assert count(cnn((3, 32, 32), 10)) == 815_018
    assert count(cnn((3, 32, 32), 10, batchnorm=False)) == 814_122
    with torch.device("meta"):
        assert count(mlp((1, 28, 28), 10, widths=(4096, 4096, 4096))) == 36_818_954


def test_batchnorm_adds_gain_and_bias_for_every_hidden_unit():
    assert count(mlp((5,), 3, widths=(4, 6), batchnorm=True)) - count(mlp((5,), 3, widths=(4, 6))) == 2 * (4 + 6)


def test_no_hidden_layer_is_a_linear_map():
    model = mlp((2, 3), 4, widths=())
    x = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
    layer = model[1]
    assert isinstance(layer, nn.Linear)
    torch.testing.assert_close(model(x), x.reshape(5, 6) @ layer.weight.T + layer.bias)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (2, 11, 17)])
def test_cnn_takes_images_of_any_size_from_eight(shape: tuple[int, ...]):
    assert cnn(shape, 7, channels=2, hidden=5).eval()(torch.zeros(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("shape", [(64,), (3, 7, 32), (3, 32, 7), (1, 1, 32, 32)])
def test_cnn_refuses_what_it_cannot_pool_three_times(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match="height >= 8"):
        cnn(shape, 10)


def test_sizes_below_one_are_refused():
    for shape, outputs, widths in (((0,), 2, (3,)), ((), 2, (3,)), ((4,), 0, (3,)), ((4,), 2, (3, 0))):
        with pytest.raises(ValueError, match="at least 1"):
            mlp(shape, outputs, widths=widths)


def test_the_initialisation_is_pytorchs_own():
    with seeded(4):
        ours = mlp((5,), 3, widths=(4,))
    with seeded(4):
        plain = nn.Sequential(nn.Flatten(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), plain.parameters(), strict=True))


def test_evaluating_restores_every_submodules_own_mode_after_an_exception():
    model = mlp((5,), 3, widths=(4, 4), batchnorm=True).train()
    model[2].eval()
    before = [m.training for m in model.modules()]
    seen: list[bool] = []

    def broken() -> None:
        with evaluating(model):
            seen.extend(m.training for m in model.modules())
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        broken()
    assert seen
    assert not any(seen)
    assert [m.training for m in model.modules()] == before


class Keeping(nn.Module):
    """A network that keeps its hidden layer for a later look."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 4), nn.Linear(4, 2)
        self.hidden: torch.Tensor | None = None
        self.all: dict[str, tuple[torch.Tensor, ...]] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.hidden = torch.tanh(self.inner(x))
        self.all["hidden"] = (self.hidden, x)
        return self.outer(self.hidden)


@pytest.mark.parametrize("measured", ["plane", "volume", "kernel"])
def test_what_a_network_keeps_of_a_pass_is_alive_after_a_measurement(measured: str):
    model, data = Keeping(), (torch.randn(6, 3), torch.tensor([0, 1] * 3))

    if measured == "plane":
        plane(model, nn.CrossEntropyLoss(), data, points=3, way="vmap")
    elif measured == "volume":
        along = loss_along(model, nn.CrossEntropyLoss(), Batches(*data), ["inner.weight"])
        along(torch.randn(4, 12).double())(torch.ones(4).double())
    else:
        ntk(model, data[0])

    left = [model.hidden, *model.all.get("hidden", ())]
    assert all(t is None or math.isfinite(t.detach().sum().item()) for t in left)  # a dead tensor has no numbers


class Cached(nn.Module):
    """A network that makes a table once it knows how long its inputs are, and remembers for which length."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.length = nn.Linear(3, 2), 0
        self.table: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.length < len(x):
            self.length, self.table = len(x), torch.arange(len(x), dtype=x.dtype)[:, None] + 1
        assert self.table is not None
        return self.layer(x) / self.table[: len(x)]


def test_a_cache_that_is_filled_while_evaluating_goes_on_being_right():
    model, x = Cached(), torch.randn(5, 3)
    with evaluating(model):
        before = model(x)
    assert torch.equal(model(x), before)
    plane(model, nn.CrossEntropyLoss(), (torch.randn(9, 3), torch.tensor([0, 1, 0] * 3)), points=3)
    ntk(model, x)
    assert torch.equal(model(x), before)


def test_seeded_draws_what_manual_seed_draws_and_restores_the_generator_after_an_exception():
    with torch.random.fork_rng():
        torch.manual_seed(123456789012345)
        expected = torch.rand(4)
    before = torch.get_rng_state()
    drawn: list[torch.Tensor] = []

    def broken() -> None:
        with seeded(123456789012345):
            drawn.append(torch.rand(4))
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        broken()
    assert torch.equal(drawn[0], expected)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_network_without_parameters_is_on_the_cpu():
    assert device_of(nn.ReLU()) == torch.device("cpu")
