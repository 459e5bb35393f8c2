"""The update rules against torch's own optimizers, in float64, for members with settings of their own."""

from typing import Any

import pytest
import torch
from torch import Tensor

from landscope.optimizers.updates import UPDATES
from landscope.spec import resolve

STEPS, MEMBERS, SIZE = 50, 3, 7
CASES: dict[str, list[dict[str, Any]]] = {
    "torch.optim.sgd.SGD": [
        {"lr": 0.1},
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
        {"lr": 0.1, "momentum": 0.9, "nesterov": True},
        {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "maximize": True},
    ],
    "torch.optim.adam.Adam": [
        {"lr": 0.01},
        {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1},
        {"lr": 0.01, "amsgrad": True, "maximize": True},
    ],
    "torch.optim.adamw.AdamW": [{"lr": 0.01}, {"lr": 0.01, "weight_decay": 0.3, "amsgrad": True, "maximize": True}],
    "torch.optim.adamax.Adamax": [{"lr": 0.01}, {"lr": 0.01, "weight_decay": 0.1, "eps": 1e-3, "maximize": True}],
    "torch.optim.adadelta.Adadelta": [{"lr": 1.0}, {"lr": 0.5, "rho": 0.8, "weight_decay": 0.1, "maximize": True}],
    "torch.optim.adagrad.Adagrad": [
        {"lr": 0.1},
        {"lr": 0.1, "lr_decay": 0.01, "initial_accumulator_value": 0.1, "weight_decay": 0.1, "maximize": True},
    ],
    "torch.optim.asgd.ASGD": [{"lr": 0.1}, {"lr": 0.1, "t0": 10, "lambd": 0.01, "alpha": 0.6, "weight_decay": 0.1}],
    "torch.optim.rmsprop.RMSprop": [
        {"lr": 0.01},
        {"lr": 0.01, "momentum": 0.8, "centered": True, "weight_decay": 0.1, "maximize": True},
    ],
}
EACH = [(name, settings) for name, cases in CASES.items() for settings in cases]


def gradient(theta: Tensor, step: int) -> Tensor:
    """Of a bowl that shakes: signs and sizes change."""
    return theta * torch.linspace(0.1, 2.0, SIZE, dtype=torch.float64) + torch.cos(torch.arange(SIZE) * step).double()


def column(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


@pytest.mark.parametrize(("name", "settings"), EACH)
def test_members_with_rates_of_their_own_move_as_torchs_optimizer_moves_each(name: str, settings: dict[str, Any]):
    start = torch.linspace(-1, 1, MEMBERS * SIZE, dtype=torch.float64).reshape(MEMBERS, SIZE)
    scales = [0.5, 1.0, 1.5]
    expected, defaults = [], {}
    for k, scale in enumerate(scales):
        theta = start[k].clone().requires_grad_()
        optimizer = resolve(name)([theta], **(settings | {"lr": settings["lr"] * scale}))
        for step in range(STEPS):
            theta.grad = gradient(theta.detach(), step)
            optimizer.step()
        expected.append(theta.detach())
        defaults = {n: v for n, v in optimizer.defaults.items() if v is not None}
    theta, state = start.clone(), {}
    given = defaults | {"lr": column([settings["lr"] * scale for scale in scales])}
    given = {n: column([v] * MEMBERS) if isinstance(v, float) and v else v for n, v in given.items()}
    for step in range(STEPS):
        UPDATES[name](theta, gradient(theta, step), state, step + 1, given)
    torch.testing.assert_close(theta, torch.stack(expected), rtol=1e-12, atol=1e-12)
    assert all(len(t) == MEMBERS for t in state.values())


@pytest.mark.parametrize(("name", "settings"), EACH)
def test_one_network_needs_no_members(name: str, settings: dict[str, Any]):
    expected = torch.linspace(-1, 1, SIZE, dtype=torch.float64).requires_grad_()
    theta, state = expected.detach().clone(), {}
    optimizer = resolve(name)([expected], **settings)
    for step in range(STEPS):
        expected.grad = gradient(expected.detach(), step)
        optimizer.step()
        UPDATES[name](theta, gradient(theta, step), state, step + 1, optimizer.defaults)
    torch.testing.assert_close(theta, expected.detach(), rtol=1e-12, atol=1e-12)


def test_a_member_without_dampening_has_the_same_bits_beside_one_with_it():
    start = torch.linspace(-1, 1, 2 * SIZE).reshape(2, SIZE)
    fixed = {"lr": 0.1, "momentum": 0.9}
    together, one, states = start.clone(), start[:1].clone(), ({}, {})
    for step in range(STEPS):
        moves = [gradient(theta.double(), step).float() for theta in (together, one)]
        mixed = fixed | {"dampening": column([0.0, 0.5])}
        UPDATES["torch.optim.sgd.SGD"](together, moves[0], states[0], step + 1, mixed)
        UPDATES["torch.optim.sgd.SGD"](one, moves[1], states[1], step + 1, fixed | {"dampening": 0.0})
    assert torch.equal(together[:1], one)


def test_a_member_without_momentum_has_no_dampening():
    start = torch.linspace(-1, 1, 2 * SIZE, dtype=torch.float64).reshape(2, SIZE)
    together, states = start.clone(), {}
    given = {"lr": 0.1, "momentum": column([0.0, 0.9]), "dampening": 0.5}
    alone = start[0].clone().requires_grad_()
    optimizer = torch.optim.SGD([alone], lr=0.1, momentum=0.0, dampening=0.5)
    for step in range(STEPS):
        alone.grad = gradient(alone.detach(), step)
        optimizer.step()
        UPDATES["torch.optim.sgd.SGD"](together, gradient(together, step), states, step + 1, given)
    torch.testing.assert_close(together[0], alone.detach(), rtol=1e-12, atol=1e-12)


def test_adamw_decouples_its_weight_decay_whatever_its_settings_say():
    """Those of PyTorch before 2.7 say nothing."""
    settings = {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.3}
    alone = torch.linspace(-1, 1, SIZE, dtype=torch.float64).requires_grad_()
    theta, state = alone.detach().clone(), {}
    optimizer = torch.optim.AdamW([alone], **settings)
    for step in range(STEPS):
        alone.grad = gradient(alone.detach(), step)
        optimizer.step()
        UPDATES["torch.optim.adamw.AdamW"](theta, gradient(theta, step), state, step + 1, settings)
    torch.testing.assert_close(theta, alone.detach(), rtol=1e-12, atol=1e-12)
