"""Path-SGD: node-wise rescaling commutes with its steps, and what must not be done to keep that true."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from rescaled import rescale_units
from torch import Tensor, nn

from landscope.norms import kappa
from landscope.optimizers import PathSGD, calibration, path_gradient_norm


class Block(nn.Module):
    """A residual net: a convolution, two blocks of which one has BatchNorm, pooling and a head."""

    def __init__(self, batchnorm: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.a, self.b = nn.Conv2d(4, 5, 3, padding=1), nn.Conv2d(5, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(5) if batchnorm else nn.Identity()
        self.c, self.d = nn.Conv2d(4, 3, 1), nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x + self.b(torch.relu(self.norm(self.a(x)))) / 2**0.5
        x = torch.relu(x + self.d(torch.relu(self.c(x))))
        return self.head(nn.functional.adaptive_avg_pool2d(nn.functional.max_pool2d(x, 2), 1).flatten(1))


@torch.no_grad()
def rescale_branches(model: Block, *, seed: int) -> None:
    """Only units inside a branch: the stream is tied by the skips."""
    generator = torch.Generator().manual_seed(seed)
    last: Any = model.a if isinstance(model.norm, nn.Identity) else model.norm
    pairs: list[tuple[Any, nn.Conv2d]] = [(last, model.b), (model.c, model.d)]
    for before, after in pairs:
        into: Tensor = before.weight
        bias: Tensor = before.bias
        factors = torch.randn(len(into), generator=generator, dtype=torch.float64).exp()
        into.mul_(factors.reshape(-1, *[1] * (into.dim() - 1)))
        bias.mul_(factors)
        after.weight.div_(factors.reshape(1, -1, 1, 1))


def mlp() -> nn.Module:
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Dropout(0.0), nn.Linear(8, 7), nn.LeakyReLU(), nn.Linear(7, 3))
    )


def convolutional() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU()),
        *(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)),
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[..., None]]] = {
    "mlp": (mlp, rescale_units),
    "convolutional": (convolutional, rescale_units),
    "residual": (lambda: Block(False), rescale_branches),
    "residual with batchnorm": (lambda: Block(True), rescale_branches),
}


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(10, 1, 4, 4, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(3, (10,), generator=generator)


def made(name: str, *, rescaled: bool) -> Any:
    torch.manual_seed(0)
    maker, rescale = NETWORKS[name]
    model = maker().double()
    if rescaled:
        rescale(model, seed=5)
    return model


def difference_after(name: str, make: Callable[[nn.Module], Any], steps: int = 4) -> float:
    """How far apart a network and its rescaled twin are, as functions, after steps of training."""
    inputs, targets = data()
    outputs = []
    for rescaled in (False, True):
        model = made(name, rescaled=rescaled)
        opt = make(model)
        start = model(inputs)
        for _ in range(steps):
            opt.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            opt.step()
        outputs += [start.detach(), model(inputs).detach()]
    before, after, start, end = outputs
    torch.testing.assert_close(before, start)
    assert (after - before).abs().max() > 1e-3  # it did move
    return (after - end).abs().max().item()


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all": {"momentum": 0.9, "weight_decay": 0.1, "clip": 0.1, "pool": "max", "every": 2},
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_a_nodewise_rescaling_commutes_with_steps(name, settings):
    found = difference_after(name, lambda model: PathSGD(model, lr=0.02, **SETTINGS[settings]))
    assert found < 1e-11


@pytest.mark.parametrize("name", NETWORKS)
def test_it_does_not_commute_with_other_steps(name):
    assert difference_after(name, lambda model: torch.optim.SGD(model.parameters(), lr=0.02)) > 1e-4

    def changed(model: nn.Module, change: Callable[[list[Any]], object]) -> Any:
        def before(*_: object) -> None:
            change(list(model.parameters()))

        opt = PathSGD(model, lr=0.02)
        opt.register_step_pre_hook(before)
        return opt

    def coupled(model: nn.Module) -> Any:
        return changed(model, lambda weights: [w.grad.add_(w.detach(), alpha=0.1) for w in weights])

    def clipped(model: nn.Module) -> Any:
        return changed(model, lambda weights: nn.utils.clip_grad_norm_(weights, 0.1))

    assert difference_after(name, coupled) > 1e-5
    assert difference_after(name, clipped) > 1e-5


def gradients_and_kappas(model: nn.Module) -> tuple[Tensor, Tensor]:
    inputs, targets = data()
    gradients = torch.autograd.grad(nn.functional.cross_entropy(model(inputs), targets), list(model.parameters()))
    kappas = kappa(model, (1, 4, 4)).values()
    return torch.cat([g.flatten() for g in gradients]), torch.cat([k.flatten() for k in kappas])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_gradients_length_is_that_of_the_rescaled_network(name):
    plain, rescaled = (gradients_and_kappas(made(name, rescaled=which)) for which in (False, True))
    torch.testing.assert_close(path_gradient_norm(*plain), path_gradient_norm(*rescaled))
    assert abs(plain[0].norm() - rescaled[0].norm()) > 1e-3


def test_one_step_divides_by_kappa():
    model = made("mlp", rescaled=False)
    before = torch.cat([w.detach().flatten() for w in model.parameters()])
    gradients, kappas = gradients_and_kappas(model)
    opt = PathSGD(model, lr=0.1)
    inputs, targets = data()
    nn.functional.cross_entropy(model(inputs), targets).backward()
    opt.step()
    after = torch.cat([w.detach().flatten() for w in model.parameters()])
    torch.testing.assert_close(after, before - 0.1 * gradients / kappas)


def test_the_calibrated_learning_rate_lowers_the_loss_as_sgd_does():
    model = made("mlp", rescaled=True)
    before = torch.cat([w.detach().flatten() for w in model.parameters()])
    gradients, kappas = gradients_and_kappas(model)
    opt = PathSGD(model, lr=1e-3, calibrate=True, weight_decay=0.0)
    inputs, targets = data()
    nn.functional.cross_entropy(model(inputs), targets).backward()
    opt.step()
    moved = torch.cat([w.detach().flatten() for w in model.parameters()]) - before
    torch.testing.assert_close(gradients @ moved, -1e-3 * gradients @ gradients)
    assert opt.param_groups[0]["scale"] == pytest.approx(calibration(gradients, kappas).item())


def test_calibration_leaves_weight_decay_alone_and_waits_for_a_gradient():
    model = made("mlp", rescaled=False)
    opt = PathSGD(model, lr=0.5, calibrate=True, weight_decay=0.1, shape=(1, 4, 4))
    before = [w.detach().clone() for w in model.parameters()]
    for w in model.parameters():
        w.grad = torch.zeros_like(w)
    opt.step()
    assert opt.param_groups[0]["scale"] is None
    torch.testing.assert_close(list(model.parameters()), [0.95 * w for w in before], check_stride=False)
    inputs, targets = data()
    nn.functional.cross_entropy(model(inputs), targets).backward()
    gradients, kappas = gradients_and_kappas(model)
    middle = torch.cat([w.detach().flatten() for w in model.parameters()])
    opt.step()
    after = torch.cat([w.detach().flatten() for w in model.parameters()])
    scale = calibration(gradients, kappas)
    torch.testing.assert_close(after, 0.95 * middle - 0.5 * scale * gradients / kappas)


def test_clipping_shortens_the_step_to_a_length_of_its_own_geometry():
    model = made("mlp", rescaled=False)
    before = torch.cat([w.detach().flatten() for w in model.parameters()])
    gradients, kappas = gradients_and_kappas(model)
    length = path_gradient_norm(gradients, kappas)
    opt = PathSGD(model, lr=1.0, clip=length.item() / 4)
    inputs, targets = data()
    nn.functional.cross_entropy(model(inputs), targets).backward()
    opt.step()
    after = torch.cat([w.detach().flatten() for w in model.parameters()])
    torch.testing.assert_close(after, before - gradients / kappas / 4)


def test_masked_units_stay_and_the_rest_trains():
    model = made("mlp", rescaled=False)
    with torch.no_grad():
        for w in (model[1].weight, model[1].bias):
            w[3] = 0
        model[4].weight[:, 3] = 0
    opt = PathSGD(model, lr=0.05)
    inputs, targets = data()
    for _ in range(3):
        opt.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        opt.step()
    assert not model[1].weight[3].any()
    assert not model[4].weight[:, 3].any()
    assert all(bool(w.isfinite().all()) for w in model.parameters())


def stepped(model: nn.Module, **settings: Any) -> None:
    inputs, targets = data()
    opt = PathSGD(model, lr=0.1, **settings)
    nn.functional.cross_entropy(model(inputs), targets).backward()
    opt.step()


def test_path_weights_that_are_all_zero_are_refused():
    model = made("mlp", rescaled=False)
    nn.init.zeros_(model[6].weight)
    with pytest.raises(ValueError, match=r"every path weight κ of '1\.weight' is zero.*start it elsewhere"):
        stepped(model)


def test_a_structure_that_cannot_be_followed_is_named():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Sequential(nn.GELU()), nn.Linear(4, 3)).double()
    before = [w.detach().clone() for w in model.parameters()]
    with pytest.raises(ValueError, match=r"module '2\.0' \(GELU\) cannot be followed: it applies gelu"):
        stepped(model)
    assert all(torch.equal(w, old) for w, old in zip(model.parameters(), before, strict=True))


def test_the_model_and_the_shape_of_its_inputs_are_needed():
    unchecked = inspect.unwrap(PathSGD.__init__)  # without the check of types that tests add
    with pytest.raises(TypeError, match="needs the model itself, to follow its paths, not generator"):
        unchecked(object.__new__(PathSGD), made("mlp", rescaled=False).parameters(), lr=0.1)
    model = made("mlp", rescaled=False)
    opt = PathSGD(model, lr=0.1)
    with pytest.raises(ValueError, match=r"seen no forward pass.*give shape="):
        opt.step()
    assert PathSGD(model, lr=0.1, shape=(16,)).kappas()["1.weight"].shape == (8, 16)


def test_the_shape_is_seen_once_and_no_hook_is_left():
    model = made("mlp", rescaled=False)
    opt = PathSGD(model, lr=0.1)
    model(data()[0])
    assert opt.param_groups[0]["shape"] == (1, 4, 4)
    assert not model._forward_pre_hooks


def test_frozen_parameters_stay_where_they_are():
    model = made("mlp", rescaled=False)
    model[1].weight.requires_grad_(False)
    before = model[1].weight.clone()
    stepped(model)
    assert torch.equal(model[1].weight, before)


def test_a_parameter_that_is_trained_later_has_a_kappa_of_that_time():
    model = made("mlp", rescaled=False)
    model[1].weight.requires_grad_(False)
    opt = PathSGD(model, lr=0.01, every=3, params=list(model.parameters()))
    inputs, targets = data()

    def step() -> None:
        opt.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        opt.step()

    step()
    model[1].weight.requires_grad_(True)
    before, expected = model[1].weight.detach().clone(), kappa(model, (1, 4, 4))["1.weight"]
    step()
    torch.testing.assert_close(model[1].weight.detach(), before - 0.01 * model[1].weight.grad / expected)
    model[1].weight.requires_grad_(False)
    before = model[1].weight.detach().clone()
    for _ in range(3):  # among them a step at which κ is computed, without this one
        step()
    assert torch.equal(model[1].weight, before)
    model[1].weight.grad = torch.ones_like(model[1].weight)  # left over from before it was frozen
    opt.step()
    assert torch.equal(model[1].weight, before)
    model[1].weight.requires_grad_(True)
    expected = kappa(model, (1, 4, 4))["1.weight"]
    step()
    torch.testing.assert_close(model[1].weight.detach(), before - 0.01 * model[1].weight.grad / expected)


def deep(scale: float) -> nn.Module:
    layers = [nn.Linear(1, 1, bias=False) for _ in range(3)]
    for layer in layers:
        nn.init.constant_(layer.weight, scale)
    return nn.Sequential(*layers)


def test_path_weights_beyond_a_parameters_type_are_refused():
    model = deep(1e10)
    opt = PathSGD(model, lr=0.1, shape=(1,))
    model(torch.ones(1, 1)).sum().backward()
    before = [w.detach().clone() for w in model.parameters()]
    with pytest.raises(ValueError, match=r"κ of '0\.weight' reach 1\.0e\+40, more than its type torch\.float32 holds"):
        opt.step()
    assert all(torch.equal(w, old) for w, old in zip(model.parameters(), before, strict=True))
    PathSGD(model.double(), lr=0.1, shape=(1,)).kappas()


def test_the_gradients_length_does_not_underflow_where_path_weights_are_large():
    model = deep(1e9)  # κ is 1e36
    opt = PathSGD(model, lr=1.0, shape=(1,), calibrate=True)
    for w in model.parameters():
        w.grad = torch.full_like(w, 1e-5)  # g² / κ is 1e-46
    opt.step()
    assert opt.param_groups[0]["scale"] == pytest.approx(1e36)


def test_kappa_is_computed_as_rarely_as_asked_for(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "landscope.optimizers.path_sgd.kappa", lambda *args, **kwargs: calls.append(1) or kappa(*args, **kwargs)
    )
    model = made("mlp", rescaled=False)
    opt = PathSGD(model, lr=0.01, every=3)
    inputs, targets = data()
    for _ in range(7):
        opt.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        opt.step()
    assert len(calls) == 3
