"""The other regularizers: closed forms, singular values by SVD, means over the noise, and what each leaves alone."""

import copy
import inspect
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from landscope import norms
from landscope.losses import squared_error
from landscope.models import mlp
from landscope.norms import spectral
from landscope.regularizers import (
    activation_noise,
    decoupled_weight_decay,
    flatness,
    gradient_noise,
    input_noise,
    insert_dropout,
    label_noise,
    local_entropy,
    path_norm,
    poison,
    poisoned_cross_entropy,
    reverse_cross_entropy,
    spectral_norm,
    spectral_product,
    weight_decay,
    weight_noise,
    with_dropout,
)
from landscope.spec import call
from landscope.types import Batches

X = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2])


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double()


def images() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(1)
    layers = [
        *(nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 2, padding=1, padding_mode="circular")),
        *(nn.Flatten(), nn.LazyLinear(3)),
    ]
    model = nn.Sequential(*layers).double()
    x = torch.randn(4, 2, 6, 5, dtype=torch.float64)
    model(x)
    return model, x


def gradient(value: Tensor, model: nn.Module) -> Tensor:
    found = torch.autograd.grad(value, list(model.parameters()), materialize_grads=True)
    return torch.cat([g.reshape(-1) for g in found])


def converged(reg: nn.Module, model: nn.Module, x: Tensor, times: int = 10) -> Tensor:
    for _ in range(times - 1):
        reg(model, (x, torch.zeros(len(x))))
    return reg(model, (x, torch.zeros(len(x))))


def operator_norm(layer: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """By the dense matrix of the layer as a map of its whole input."""
    zero = torch.zeros(1, *shape, dtype=torch.float64)
    dense = torch.autograd.functional.jacobian(lambda v: layer(v).reshape(-1), zero)
    return torch.linalg.matrix_norm(dense.reshape(len(dense), -1), 2)  # type: ignore[arg-type]


def test_spectral_norms_are_the_largest_singular_values():
    model, x = images()
    exact = spectral_norm(strength=1.0, conv="exact", steps=10)
    converged(exact, model, x)
    values = exact.values(model, (x, Y[:4]))
    shapes = spectral.input_shapes(model, x)
    for name, value in values.items():
        expected = operator_norm(model.get_submodule(name), shapes[name])
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=0)
    reshaped = spectral_norm(strength=1.0, steps=10)
    converged(reshaped, model, x)
    for name, value in reshaped.values(model, (x, Y[:4])).items():
        expected = torch.linalg.matrix_norm(model.get_parameter(f"{name}.weight").flatten(1), 2)
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=0)
    found = spectral.singular_values(model, x, steps=150)
    assert found == pytest.approx({name: v.item() for name, v in values.items()}, rel=1e-4)


def test_transposed_convolutions_have_norms_too():
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(2, 3, 3, stride=2).double()
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    found = spectral.singular_values(nn.Sequential(layer), x, steps=200)["0"]
    assert found == pytest.approx(operator_norm(layer, (2, 4, 4)).item(), rel=1e-4)
    reshaped = spectral.singular_values(nn.Sequential(layer), conv="reshape", steps=200)["0"]
    matrix = layer.weight.transpose(0, 1).flatten(1)
    assert reshaped == pytest.approx(torch.linalg.matrix_norm(matrix, 2).item(), rel=1e-6)


def test_the_spectral_penalty_and_its_gradient_by_svd():
    model = network()
    reg = spectral_norm(strength=0.6, steps=20)
    value = converged(reg, model, X)
    weights = [model[0].weight, model[2].weight]
    expected = 0.3 * torch.stack([torch.linalg.matrix_norm(w, 2) ** 2 for w in weights]).sum()
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(gradient(value, model), gradient(expected, model), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("form", ["log", "product"])
def test_the_spectral_product_and_its_gradient_by_svd(form):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)).double()
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm1d)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, -2.0, 1.0, 0.1]))
        norm.running_var.copy_(torch.tensor([1.0, 4.0, 0.25, 1.0]))  # type: ignore[union-attr]
    reg = spectral_product(strength=0.6, form=form, steps=20)
    value = converged(reg, model, X)
    sigmas = [torch.linalg.matrix_norm(model[i].weight, 2) for i in (0, 3)]  # type: ignore[arg-type]
    sigmas.append(norm.weight[2].abs() / math.sqrt(0.25 + norm.eps))
    product = torch.stack(sigmas).square().prod()
    expected = 0.6 * (product.log() if form == "log" else product)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(gradient(value, model), gradient(expected, model), rtol=1e-4, atol=1e-7)
    alone = converged(spectral_product(strength=0.6, form=form, steps=20, batchnorm=False), model, X)
    assert alone.item() != pytest.approx(value.item())


def test_singular_vectors_persist_and_are_part_of_the_state():
    model = network()
    first = spectral_norm(strength=1.0)
    value = first(model, (X, Y))
    second = spectral_norm(strength=1.0)
    second.load_state_dict(first.state_dict())
    assert first.state_dict().keys() == {"vector:0", "vector:2"}
    assert torch.equal(first(model, (X, Y)), second(model, (X, Y)))
    assert abs(first(model, (X, Y)) - value) < 1e-3 * value
    assert not first.stackable


def test_some_layers_alone():
    model = network()
    reg = spectral_norm(strength=2.0, layers=("2",), steps=20)
    expected = torch.linalg.matrix_norm(model[2].weight, 2) ** 2  # type: ignore[arg-type]
    torch.testing.assert_close(converged(reg, model, X), expected)
    with pytest.raises(LookupError, match="called '1'; it has 0, 2"):
        spectral_norm(layers=("1",))(model, (X, Y))
    with pytest.raises(ValueError, match="no linear or convolutional layers"):
        spectral_norm()(nn.Sequential(nn.BatchNorm1d(5)), (X, Y))


def test_a_power_iteration_of_a_known_matrix():
    a = torch.diag(torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64))
    u, v = spectral.power_iteration(lambda x: a @ x, torch.ones(3, dtype=torch.float64), 40)
    torch.testing.assert_close(u.abs(), torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close((u @ a @ v), torch.tensor(5.0, dtype=torch.float64))


def test_path_norm_penalty_and_its_invariance():
    model = network()
    reg = path_norm(strength=0.5)
    value = reg(model, (X, Y))
    torch.testing.assert_close(value, 0.5 * norms.path_norm(model, (5,)) ** 2)
    log = path_norm(strength=0.5, log=True)(model, (X, Y))
    torch.testing.assert_close(log, 0.5 * (value / 0.5).log())
    with torch.no_grad():
        first, last = model[0], model[2]
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        first.weight[1] *= 7
        first.bias[1] *= 7
        last.weight[:, 1] /= 7
    torch.testing.assert_close(reg(model, (X, Y)), value)


def test_weight_decay_coupled_and_decoupled():
    model = network()
    coupled = gradient(weight_decay(strength=0.2)(model, (X, Y)), model)
    whole = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    torch.testing.assert_close(coupled, 0.2 * whole)
    some = gradient(weight_decay(strength=0.2, layers=("0.weight",))(model, (X, Y)), model)
    torch.testing.assert_close(some[:20], 0.2 * whole[:20])
    assert not some[20:].any()
    twin = copy.deepcopy(model)
    for m, decay in ((model, 0.0), (twin, 0.3)):
        optimizer = torch.optim.AdamW(m.parameters(), lr=0.1, weight_decay=decay)
        if not decay:  # AdamW takes its decay off before the step
            decoupled_weight_decay(m, rate=0.1 * 0.3)
        for p, g in zip(m.parameters(), network().parameters(), strict=True):
            p.grad = g.detach().clone()
        optimizer.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: input_noise(sd=0.3, seed=seed),
        lambda seed: activation_noise(sd=0.3, seed=seed),
        lambda seed: weight_noise(sd=0.3, seed=seed),
        lambda seed: weight_noise(sd=0.3, relative=True, seed=seed),
    ],
    ids=["inputs", "activations", "weights", "relative"],
)
def test_a_noise_term_is_the_loss_with_noise_minus_the_loss_without(make):
    model = network()
    reg = make(3)
    drawn = reg.draw(model, (X, Y), torch.Generator().manual_seed(1))
    random = torch.get_rng_state()
    outputs = model(X)
    total = F.cross_entropy(outputs, Y) + reg(model, (X, Y), outputs=outputs, drawn=drawn)
    alone = reg.objective(model, (X, Y), drawn=drawn)
    torch.testing.assert_close(total, alone)
    torch.testing.assert_close(gradient(total, model), gradient(alone, model))
    assert torch.equal(reg(model, (X, Y)), make(3)(model, (X, Y))), "a seed names the draws"
    assert torch.equal(torch.get_rng_state(), random)
    noisy = by_hand(reg.where, model, drawn)
    torch.testing.assert_close(alone, F.cross_entropy(noisy, Y))
    half = copy.deepcopy(reg)
    half.strength = 0.5
    expected = (alone + F.cross_entropy(outputs, Y)) / 2
    torch.testing.assert_close(half.objective(model, (X, Y), drawn=drawn), expected)


def by_hand(where: str, model: nn.Sequential, drawn: tuple[Tensor, ...]) -> Tensor:
    if where == "inputs":
        return model(X + 0.3 * drawn[0])
    if where == "activations":
        return model[2:](model[:2](X) + 0.3 * drawn[0])
    weights = dict(zip(dict(model.named_parameters()), drawn, strict=True))
    scale: Callable[[Tensor], Tensor] = torch.abs if "relative" in where else torch.ones_like
    moved = {name: p + 0.3 * scale(p) * weights[name] for name, p in model.named_parameters()}
    return functional_call(model, moved, (X,))


def test_small_noise_adds_half_the_variance_times_the_trace_of_the_hessian():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2)).double()
    x, y = X[:, :3], torch.randn(6, 2, dtype=torch.float64)
    reg = weight_noise(sd=0.1, loss=call(squared_error))
    # For a loss that is quadratic in the weights the mean over ±ξ is ½ξᵀHξ, and over the axes that is ½ Tr H.
    total = torch.zeros((), dtype=torch.float64)
    for sign in (1.0, -1.0):
        for i in range(8):
            axis = sign * torch.eye(8, dtype=torch.float64)[i]
            total = total + reg(model, (x, y), drawn=(axis[:6].view(2, 3), axis[6:]))
    trace = 2 * 2 * (x.square().sum(1) + 1).mean()
    torch.testing.assert_close(total.detach() / 2, 0.5 * 0.1**2 * trace)


def test_gradient_noise_adds_its_draws_to_the_gradient():
    model, reg = network(), gradient_noise(sd=0.3, seed=1)
    batch = (X, Y)
    shares = []
    for t in range(3):
        drawn = reg.draw(model, batch, torch.Generator().manual_seed(0))
        value = reg(model, batch, drawn=drawn)
        assert value.item() == 0
        torch.testing.assert_close(gradient(value, model), 0.3 * torch.cat([d.reshape(-1) for d in drawn]))
        shares.append(drawn[0][0, 0].item())
        assert shares[t] == pytest.approx(shares[0] * (1 + t) ** -0.275)


def test_label_noise_is_label_smoothing_on_average():
    model, reg = network(), label_noise(p=0.3)
    outputs = model(X)
    uniform = torch.tensor([0.1, 0.9], dtype=torch.float64)  # below and above p, weighted p and 1 − p
    mean = torch.zeros((), dtype=torch.float64)
    for weight, u in zip((0.3, 0.7), uniform, strict=True):
        for c in range(3):
            drawn = (u.expand(6), torch.full((6,), (c + 0.5) / 3, dtype=torch.float64))
            mean = mean + weight / 3 * reg(model, (X, Y), outputs=outputs, drawn=drawn)
    expected = F.cross_entropy(outputs, Y, label_smoothing=0.3) - F.cross_entropy(outputs, Y)
    torch.testing.assert_close(mean, expected)
    share = torch.cat([label_noise(seed=i).draw(model, (X, Y), None)[0] for i in range(1)])
    assert ((share >= 0) & (share < 1)).all()
    with pytest.raises(TypeError, match="class indices"):
        reg(model, (X, torch.zeros(6, 3)))


def test_dropout_is_inserted_without_renaming_parameters():
    model = network()
    names, before = list(model.state_dict()), model(X)
    insert_dropout(model, p=0.25)
    assert list(model.state_dict()) == names
    inner = model[1]
    assert isinstance(inner, nn.Sequential)
    assert isinstance(inner[1], nn.Dropout)
    assert inner[1].p == 0.25
    assert torch.equal(model.eval()(X), before)
    made = with_dropout((5,), 3, model=call(mlp, widths=(4,)), p=0.1, after=("1",))
    assert [type(m) for m in made.modules()].count(nn.Dropout) == 1
    everything = insert_dropout(network(), p=1.0, after=("1",))
    bias = everything[2].bias  # type: ignore[index]
    torch.testing.assert_close(everything(X), bias.expand(6, 3))


def test_local_entropy_of_a_quadratic_is_exact():
    """For L = ½a‖w‖² the density is Gaussian around γw/(a + γ), so the gradient is aγ/(a + γ)·w."""
    a, gamma = 2.0, 0.5
    model = nn.Linear(3, 1, bias=False).double()
    x, y = math.sqrt(a / 2 * 3) * torch.eye(3, dtype=torch.float64), torch.zeros(3, 1, dtype=torch.float64)
    reg = local_entropy(gamma=gamma, steps=200, lr=0.1, noise=0.0, averaging=0.5, loss=call(squared_error), seed=0)
    w = model.weight.detach().reshape(-1)
    expected = a * gamma / (a + gamma) * w
    torch.testing.assert_close(gradient(reg.objective(model, (x, y)), model), expected, rtol=1e-6, atol=1e-9)
    total = squared_error()(model(x), y) + reg(model, (x, y))
    torch.testing.assert_close(gradient(total, model), expected, rtol=1e-6, atol=1e-9)


def test_langevin_steps_by_hand():
    model = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(2.0)
    x, y = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    reg = local_entropy(gamma=0.5, steps=2, lr=0.1, noise=0.3, averaging=0.75, loss=call(squared_error))
    z = torch.tensor([[[1.0]], [[-2.0]]], dtype=torch.float64)
    point, mean = 2.0, 2.0
    for noise in (1.0, -2.0):
        point = point - 0.1 * (2 * point + 0.5 * (point - 2.0)) + 0.3 * math.sqrt(0.2) * noise
        mean = 0.75 * mean + 0.25 * point
    found = gradient(reg.objective(model, (x, y), drawn=(z,)), model)
    assert found.item() == pytest.approx(0.5 * (2.0 - mean), rel=1e-12)


def test_reverse_cross_entropy_keeps_its_digits_as_p_goes_to_one():
    outputs = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    p = outputs.softmax(1)[range(6), Y]
    torch.testing.assert_close(reverse_cross_entropy(outputs, Y), -torch.log1p(-p).mean())
    for lead in (-1000.0, -40.0, 0.0, 15.0, 40.0, 1000.0):
        for dtype in (torch.float32, torch.float64):
            logits = torch.tensor([[lead, 0.0]], dtype=dtype, requires_grad=True)
            value = reverse_cross_entropy(logits, torch.tensor([0]))
            (slope,) = torch.autograd.grad(value, logits)
            exact = max(lead, 0.0) + math.log1p(math.exp(-abs(lead)))
            assert value.item() == pytest.approx(exact, rel=1e-6)
            assert slope[0, 0].item() == pytest.approx(1 / (1 + math.exp(-lead)) if lead > -700 else 0.0, rel=1e-5)
    extreme = torch.full((1, 3), -torch.inf)
    extreme[0, 0] = 0.0
    assert reverse_cross_entropy(extreme[:, :2].nan_to_num(neginf=-1e30), torch.tensor([0])).isfinite()


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_poison_makes_the_papers_loss_of_cross_entropy(beta):
    model, other = network(), torch.randn(4, 5, dtype=torch.float64)
    labels = torch.tensor([2, 1, 0, 0])
    for source in ((other, labels), Batches(other, labels)):
        reg = poison(beta=beta, source=source)
        drawn = (torch.arange(4),)
        total = F.cross_entropy(model(X), Y) + reg(model, (X, Y), drawn=drawn)
        p = model(other).softmax(1)[range(4), labels]
        expected = (1 - beta) * F.cross_entropy(model(X), Y) - beta * torch.log(1 - p).mean()
        torch.testing.assert_close(total, expected)
        torch.testing.assert_close(gradient(total, model), gradient(expected, model), rtol=1e-9, atol=1e-12)
    assert poison(source=(other, labels), batch_size=9).draw(model, (X, Y), None)[0].shape == (9,)
    assert poison(source=(other, labels)).draw(model, (X, Y), None)[0].shape == (6,)
    assert not any("inputs" in name for name in poison(source=(other, labels)).state_dict())


def test_poison_within_a_training_set_is_the_same_loss():
    torch.manual_seed(0)
    outputs = torch.randn(6, 3, dtype=torch.float64)
    coded = torch.where(torch.tensor([0, 0, 1, 1, 1, 1]).bool(), -1 - Y, Y)
    whole = poisoned_cross_entropy(beta=0.2, share=4 / 6)(outputs, coded)
    expected = 0.8 * F.cross_entropy(outputs[:2], Y[:2]) + 0.2 * reverse_cross_entropy(outputs[2:], Y[2:])
    torch.testing.assert_close(whole, expected)
    halves = [poisoned_cross_entropy(beta=0.2, share=4 / 6)(outputs[s], coded[s]) for s in (slice(0, 3), slice(3, 6))]
    torch.testing.assert_close(torch.stack(halves).mean(), whole)


@pytest.mark.parametrize(
    "make",
    [
        lambda: input_noise(sd=0.3),
        lambda: activation_noise(sd=0.3),
        lambda: weight_noise(sd=0.3),
        lambda: gradient_noise(sd=0.3),
        lambda: label_noise(p=0.5),
        lambda: local_entropy(steps=3),
        lambda: path_norm(strength=0.1),
        lambda: weight_decay(strength=0.1),
        lambda: poison(source=(X, Y)),
    ],
    ids=["inputs", "activations", "weights", "gradients", "labels", "entropy", "path", "decay", "poison"],
)
def test_terms_work_inside_vmap_of_grad(make):
    models = [network() for _ in range(2)]
    with torch.no_grad():
        for p in models[1].parameters():
            p.mul_(1.3)
    reg, host = make(), network()
    draw = getattr(reg, "draw", None)
    drawn = [draw(m, (X, Y), torch.Generator().manual_seed(i)) for i, m in enumerate(models)] if draw else None
    stacked = {n: torch.stack([m.get_parameter(n).detach() for m in models]) for n, _ in host.named_parameters()}

    class Objective(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = host

        def forward(self, at: tuple[Tensor, Tensor], own: tuple[Tensor, ...] | None) -> Tensor:
            return reg(self.net, at) if own is None else reg(self.net, at, drawn=own)

    objective = Objective()

    def value(state: dict[str, Tensor], at: tuple[Tensor, Tensor], own: tuple[Tensor, ...] | None) -> Tensor:
        return functional_call(objective, {f"net.{n}": p for n, p in state.items()}, (at, own))

    batches = [(X, Y), (X.flip(0), Y.flip(0).roll(1))]
    at = tuple(torch.stack(d) for d in zip(*batches, strict=True))

    together = tuple(torch.stack(d) for d in zip(*drawn, strict=True)) if drawn else None
    found = torch.func.vmap(torch.func.grad(value), in_dims=(0, 0, None if drawn is None else 0))(stacked, at, together)  # type: ignore[arg-type]
    for i, model in enumerate(models):
        alone = gradient(reg(model, batches[i], **({"drawn": drawn[i]} if drawn else {})), model)
        parts = torch.cat([found[n][i].reshape(-1) for n, _ in model.named_parameters()])
        torch.testing.assert_close(parts, alone, rtol=1e-9, atol=1e-12)


def test_noise_passes_leave_buffers_and_modes_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)).double()
    outputs = model(X)
    state = copy.deepcopy(model.state_dict())
    for reg in (input_noise(), activation_noise(), weight_noise(), local_entropy(steps=2)):
        reg(model, (X, Y), outputs=outputs)
        assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
        assert all(module.training and not module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: poison(beta=1.5, source=(X, Y)), r"beta is a weight in \[0, 1\], not 1.5"),
        (lambda: poison(beta=-0.1, source=(X, Y)), r"\[0, 1\], not -0.1"),
        (lambda: poison(source=(X, Y), batch_size=0), "batch_size of at least 1"),
        (lambda: poison(source=(X, Y[:3])), "3 and 6"),
        (lambda: poison(source=(X[:0], Y[:0])), "the poison set is empty"),
        (lambda: poisoned_cross_entropy(beta=2.0), r"beta in \[0, 1\], not 2"),
        (lambda: poisoned_cross_entropy(share=-1.0), r"in \[0, 1\]"),
        (lambda: poisoned_cross_entropy(beta=0.5, share=0.0), "there are none"),
        (lambda: reverse_cross_entropy(torch.zeros(2, 1), Y[:2] * 0), "at least two classes"),
        (lambda: label_noise(p=1.1), r"p in \[0, 1\] of the labels, not 1.1"),
        (lambda: insert_dropout(network(), p=-0.1), r"p in \[0, 1\] of the units"),
        (lambda: insert_dropout(network(), p=1.5), r"not 1.5"),
        (lambda: input_noise(sd=-1.0), "sd of at least 0"),
        (lambda: weight_noise(strength=-1.0), "strength of at least 0"),
        (lambda: gradient_noise(decay=-1.0), "decay of at least 0"),
        (lambda: input_noise(sd=math.inf), "sd of at least 0 and finite, not inf"),
        (lambda: label_noise(strength=math.inf), "strength of at least 0 and finite"),
        (lambda: local_entropy(lr=math.inf), "lr above 0 and finite, not inf"),
        (lambda: local_entropy(noise=math.inf), "noise of at least 0 and finite"),
        (lambda: path_norm(p=math.inf), "p above 0 and finite"),
        (lambda: weight_decay(strength=math.inf), "strength of at least 0 and finite"),
        (lambda: spectral_product(strength=math.nan), "strength of at least 0, not nan"),
        (lambda: local_entropy(gamma=0.0), "gamma above 0"),
        (lambda: local_entropy(steps=0), "steps of at least 1"),
        (lambda: local_entropy(lr=0.0), "lr above 0"),
        (lambda: local_entropy(noise=-1.0), "noise of at least 0"),
        (lambda: local_entropy(averaging=1.0), r"averaging in \[0, 1\), not 1"),
        (lambda: spectral_norm(strength=-1.0), "strength of at least 0"),
        (lambda: spectral_norm(steps=0), "steps of at least 1"),
        (lambda: spectral_norm(conv="fft"), "'reshape' or 'exact', not 'fft'"),
        (lambda: spectral_product(form="sum"), "'log' and 'product', not 'sum'"),
        (lambda: spectral.singular_values(network(), steps=0), "at least 1 step"),
        (lambda: spectral.singular_values(images()[0]), "needs a batch of inputs"),
        (lambda: path_norm(p=0.0), "p above 0"),
        (lambda: path_norm(strength=-1.0), "strength of at least 0"),
        (lambda: weight_decay(strength=-1.0), "strength of at least 0"),
        (lambda: decoupled_weight_decay(network(), rate=1.5), r"\[0, 1\] of the weights, not 1.5"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (flatness, "strength"),
        (flatness, "share"),
        (path_norm, "p"),
        (weight_decay, "strength"),
        (label_noise, "p"),
        (label_noise, "strength"),
        (gradient_noise, "sd"),
        (local_entropy, "lr"),
        (local_entropy, "averaging"),
        (poisoned_cross_entropy, "share"),
    ],
)
def test_what_is_no_number_is_refused(make, name):
    for given in ("0.1", True, None if name != "share" else "1"):
        with pytest.raises(TypeError, match=f"{make.__name__} needs a number for {name}, not {given!r}"):
            inspect.unwrap(make)(**{name: given})  # the tests' own check of types would speak first


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: insert_dropout(network(), after=("7",)), "no module called '7'; it has 0, 1, 2"),
        (lambda: insert_dropout(nn.Sequential(nn.Linear(2, 2))), "no activation modules"),
        (lambda: insert_dropout(network(), after=("",)), "inside the model"),
        (lambda: activation_noise(layers=("7",))(network(), (X, Y)), "no module called '7'"),
        (lambda: activation_noise()(nn.Sequential(nn.Linear(5, 3).double()), (X, Y)), "no activation modules"),
        (lambda: weight_noise(layers=("7",))(network(), (X, Y)), "called '7'"),
        (lambda: weight_decay(layers=("7",))(network(), (X, Y)), "called '7'"),
    ],
)
def test_unknown_names_are_refused(make, message):
    with pytest.raises(LookupError, match=message):
        make()


def test_what_is_no_poison_set_or_network_is_refused():
    with pytest.raises(TypeError, match="pair of tensors"):
        poison(source=call(squared_error))
    with pytest.raises(TypeError, match="not a Module"):
        with_dropout((5,), 3, model=call(shapes), p=0.1)


def shapes(shape: tuple[int, ...], outputs: int) -> int:
    return outputs
