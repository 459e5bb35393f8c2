"""The flatness penalty with losses of PyTorch's own, against dense float64 matrices of the losses written out."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from landscope.losses import bregman, squared_error
from landscope.regularizers import chain, flatness, products
from landscope.regularizers.flatness import chosen
from landscope.regularizers.outputs import derivatives

Loss = Callable[[Tensor, Tensor], Tensor]


def square(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean()


def huber(outputs: Tensor, targets: Tensor) -> Tensor:
    r = (outputs - targets).abs()
    return torch.where(r < 1, r.square() / 2, r - 0.5).mean()


TORCHS: dict[str, tuple[Loss, Loss]] = {
    "MSELoss": (nn.MSELoss(), square),
    "mse_loss": (F.mse_loss, square),
    "HuberLoss": (nn.HuberLoss(), huber),
}


def network(kind: str) -> nn.Module:
    torch.manual_seed(1)
    bend = nn.Tanh() if kind == "chain" else nn.GELU()
    return nn.Sequential(nn.Linear(3, 3), bend, nn.Linear(3, 2)).double()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x, y = (torch.randn(5, k, dtype=torch.float64, generator=generator) for k in (3, 2))
    return x, 2 * y


def dense_penalty(model: nn.Module, x: Tensor, y: Tensor, loss: Loss, matrix: str) -> Callable[[Tensor], Tensor]:
    """Tr(M²)/n of all weights, flat."""
    weights = {name: w.detach() for name, w in model.named_parameters()}

    def outputs(flat: Tensor) -> Tensor:
        parts = flat.split([w.numel() for w in weights.values()])
        state = {name: part.view(w.shape) for (name, w), part in zip(weights.items(), parts, strict=True)}
        return functional_call(model, state, (x,))

    def penalty(flat: Tensor) -> Tensor:
        if matrix == "hessian":
            return torch.func.hessian(lambda w: loss(outputs(w), y))(flat).square().sum() / len(x)
        out, j = outputs(flat), torch.func.jacrev(outputs)(flat).reshape(-1, len(flat))
        middle = torch.func.hessian(lambda o: loss(o.view_as(out), y))(out.reshape(-1))
        return (j.T @ middle @ j).square().sum() / len(x)

    return penalty


@pytest.mark.parametrize("name", TORCHS)
@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
@pytest.mark.parametrize("kind", ["chain", "general", "transforms"])
def test_value_and_gradient_are_those_of_the_dense_matrix(name, matrix, kind, monkeypatch):
    (loss, by_hand), model, (x, y) = TORCHS[name], network(kind), batch()
    assert (chain.chain_of(model, chosen(model, None)) is not None) == (kind == "chain")
    if kind == "transforms":
        monkeypatch.setattr(products, "watchable", lambda *_: False)
    reg = flatness(strength=1.0, every=1, matrix=matrix, loss=loss)
    drawn = reg.draw(model, (x, y), torch.Generator().manual_seed(0))
    sizes = [d.numel() for d in drawn]
    reg.probes = sum(sizes)  # the penalty is quadratic in what is drawn: its mean is the sum over unit directions
    units = [one.split(sizes) for one in torch.eye(reg.probes, dtype=torch.float64)]
    given = [part.view(d.shape) for parts in units for part, d in zip(parts, drawn, strict=True)]
    value = reg.probes * reg(model, (x, y), drawn=given)
    value.backward()
    flat = torch.cat([w.detach().reshape(-1) for w in model.parameters()])
    slope, expected = torch.func.grad_and_value(dense_penalty(model, x, y, by_hand, matrix))(flat)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
    grads = [torch.zeros_like(w) if w.grad is None else w.grad for w in model.parameters()]
    found = torch.cat([g.reshape(-1) for g in grads])
    torch.testing.assert_close(found, slope, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", ["chain", "general"])
@pytest.mark.parametrize("name", ["mse_loss", "HuberLoss"])
def test_members_of_a_stack_have_the_gradients_of_single_networks(name, kind):
    model, at = network(kind), batch()
    reg = flatness(strength=1.0, every=1, loss=TORCHS[name][0])
    drawn = copy.deepcopy(reg).draw(model, at, torch.Generator().manual_seed(0))
    alone = torch.autograd.grad(reg(model, at, drawn=drawn), list(model.parameters()), materialize_grads=True)

    def penalty(weights: dict[str, Tensor]) -> Tensor:
        class Penalised(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = model

            def forward(self) -> Tensor:
                return reg(model, at, drawn=drawn)

        return functional_call(Penalised(), {f"inner.{n}": w for n, w in weights.items()}, ())

    stacked = {n: torch.stack([w.detach(), 0.5 * w.detach()]) for n, w in model.named_parameters()}
    together = torch.func.vmap(torch.func.grad(penalty))(stacked)
    for one, many in zip(alone, together.values(), strict=True):
        torch.testing.assert_close(many[0], one, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (F.cross_entropy, torch.tensor([0, 2, 1])),
        (nn.CrossEntropyLoss(), torch.tensor([0, 2, 1])),
        (nn.CrossEntropyLoss(label_smoothing=0.2), torch.tensor([0, 2, 1])),
        (squared_error(), torch.tensor([0, 2, 1])),
        (squared_error(), torch.eye(3)),
        (F.mse_loss, torch.eye(3, dtype=torch.float64)),
        (nn.L1Loss(), torch.eye(3, dtype=torch.float64)),
        (nn.SmoothL1Loss(), torch.eye(3, dtype=torch.float64)),
        (F.soft_margin_loss, 2 * torch.eye(3, dtype=torch.float64) - 1),
        (bregman(family="poisson"), torch.eye(3, dtype=torch.float64)),
    ],
)
def test_the_derivatives_at_the_outputs_are_finite_differences(loss, targets):
    generator = torch.Generator().manual_seed(3)
    z, u = (torch.randn(3, 3, dtype=torch.float64, generator=generator) for _ in range(2))

    def slope(at: Tensor) -> Tensor:
        return torch.autograd.grad(loss(at.requires_grad_(), targets), at)[0]

    delta, moved = derivatives(loss, z.clone(), targets, u)
    torch.testing.assert_close(delta.detach(), slope(z.clone()), rtol=1e-9, atol=1e-12)
    step = 1e-5
    torch.testing.assert_close(
        moved.detach(), (slope(z + step * u) - slope(z - step * u)) / (2 * step), rtol=1e-6, atol=1e-9
    )
