"""Samples of the trace for networks with smooth activations, against dense float64 Hessians."""

import pytest
import torch
from oracles import dense_hessian
from torch import nn

from landscope.curvature import hessian
from landscope.linalg import trace
from landscope.losses import cross_entropy
from landscope.types import Batches

X, Y = torch.randn(20, 6, generator=torch.Generator().manual_seed(0)).double(), torch.arange(20) % 3


def networks() -> dict[str, nn.Module]:
    shared = nn.SiLU()
    return {
        "one layer": nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)),
        "two kinds": nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 3)),
        "kinks too": nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Softplus(), nn.Linear(8, 3)),
        "one activation twice": nn.Sequential(nn.Linear(6, 8), shared, nn.Linear(8, 8), shared, nn.Linear(8, 3)),
        "convolutions": nn.Sequential(
            *(nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 3, 2, padding=1), nn.BatchNorm2d(3), nn.Sigmoid()),
            *(nn.MaxPool2d(2), nn.Conv2d(3, 4, 1), nn.ELU(), nn.Flatten(), nn.Linear(8, 3)),
        ),
        "norm": nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3)),
        "softmax": nn.Sequential(nn.Linear(6, 8), nn.Softmax(1), nn.Linear(8, 3)),
        "positions": nn.Sequential(
            *(nn.Unflatten(1, (2, 3)), nn.Conv1d(2, 4, 2, groups=2, padding=1), nn.LayerNorm([4, 4]), nn.SiLU()),
            *(nn.Linear(4, 3), nn.Tanh(), nn.BatchNorm1d(4), nn.LayerNorm(3), nn.Flatten(), nn.Linear(12, 3)),
        ),
        "attention": Attention(),
    }


class Attention(nn.Module):
    """Each sample is three tokens of two numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out = nn.LayerNorm(4), nn.Linear(4, 3)
        self.embed, self.query, self.key, self.value = nn.Linear(2, 4), *(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.embed(x.view(-1, 3, 2)))
        mixed = nn.functional.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x))
        return self.out((x + mixed).mean(1))


def made(which: str) -> nn.Module:
    torch.manual_seed(1)
    model = networks()[which].double()
    model(X)  # BatchNorm has seen something
    for p in model.parameters():
        p.data *= 2
    return model.eval()


@pytest.mark.parametrize("which", networks())
def test_samples_scatter_around_the_trace_of_the_dense_hessian_much_less_than_probes_do(which: str):
    model = made(which)
    dense = dense_hessian(model, cross_entropy(), (X, Y))
    truth, probe = dense.trace().item(), (2 * dense.square().sum()).sqrt().item()
    found = torch.tensor(hessian(model, cross_entropy(), Batches(X, Y, 13)).sample_trace(30), dtype=torch.float64)
    sem = found.std().item() / 30**0.5
    assert abs(found.mean().item() - truth) <= 4 * sem + 1e-9 * abs(truth)
    # 20 samples in all: where one acts at several positions its signs are products, which are noisier.
    assert found.std().item() < {"positions": 1.2, "attention": 0.7}.get(which, 0.5) * probe
    assert (found.std().item() < 1e-9) == (which == "one layer")


def test_sample_i_is_the_same_however_many_are_asked_for():
    op = hessian(made("two kinds"), cross_entropy(), (X, Y))
    five = op.sample_trace(5, seed=3)
    assert five is not None
    assert five == [*op.sample_trace(2, seed=3), *op.sample_trace(3, seed=3, first=2)]  # type: ignore[misc]
    assert five != op.sample_trace(5, seed=4)


def test_the_trace_is_exact_behind_one_layer_and_has_an_error_behind_more():
    model = made("one layer")
    found = trace(hessian(model, cross_entropy(), (X, Y)))
    assert found.sem == 0
    assert found.mean == pytest.approx(dense_hessian(model, cross_entropy(), (X, Y)).trace().item())
    assert trace(hessian(made("two kinds"), cross_entropy(), (X, Y))).sem > 0


def test_intervals_and_tolerances_hold():
    model = made("two kinds")
    op, truth = hessian(model, cross_entropy(), (X, Y)), dense_hessian(model, cross_entropy(), (X, Y)).trace().item()
    intervals = [trace(op, products=24, seed=seed).interval() for seed in range(12)]
    assert sum(low <= truth <= high for low, high in intervals) >= 9  # fewer of 12 by chance: 0.2 %
    estimates = [trace(op, rtol=0.5, seed=seed) for seed in range(4)]
    assert sum(abs(e.mean - truth) <= 0.5 * abs(truth) for e in estimates) >= 3  # fewer of 4 by chance: 1.4 %
    assert op.products == 0


@pytest.mark.parametrize("which", ["norm", "positions", "attention"])
def test_some_parameters_have_their_part_of_the_trace(which: str):
    model = made(which)
    for chosen in ("*.weight", "*.bias"):
        names = [name for name, _ in model.named_parameters() if name.endswith(chosen[1:])]
        op = hessian(model, cross_entropy(), (X, Y), params=chosen)
        assert list(op.names) == names
        truth = op.dense().trace().item()
        found = torch.tensor(op.sample_trace(40), dtype=torch.float64)
        assert abs(found.mean().item() - truth) <= 4 * found.std().item() / 40**0.5 + 1e-9 * abs(truth)


class Sharing(nn.Module):
    """Each sample looks at the others."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0)


@pytest.mark.parametrize("layer", [nn.PReLU(), Sharing(), nn.Bilinear(8, 8, 8)])
def test_other_networks_have_no_samples(layer: nn.Module):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.layer, self.last = nn.Linear(6, 8), layer, nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z = self.first(x)
            return self.last(self.layer(z, z) if isinstance(layer, nn.Bilinear) else self.layer(z))

    op = hessian(Net().double().eval(), cross_entropy(), (X, Y))
    assert op.sample_trace(3) is None
    assert trace(op, products=30).n == 20


def test_without_a_second_derivative_there_are_no_samples():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.tanh()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, *g):  # type: ignore[override]
            return g[0] * (1 - ctx.saved_tensors[0].tanh() ** 2)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 4), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(Once.apply(self.first(x)))  # type: ignore[no-any-return]

    assert hessian(Net().double(), cross_entropy(), (X, Y)).sample_trace(3) is None
