"""Regularizers beside a training loop: what logging, BatchNorm, ties, compiling, checkpoints and bad settings do."""

import copy
import inspect
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscope import regularizers
from landscope.regularizers import (
    activation_noise,
    decoupled_weight_decay,
    flatness,
    gradient_noise,
    input_noise,
    label_noise,
    local_entropy,
    path_norm,
    poison,
    spectral_norm,
    spectral_product,
    weight_decay,
    weight_noise,
)
from landscope.regularizers.draws import check_counts
from landscope.regularizers.flatness import chosen


def batch(*shape: int, n: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(n, *(shape or (5,)), generator=generator, dtype=torch.float64)
    return inputs, torch.randint(3, (n,), generator=generator)


def plain(*, seed: int = 1) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def normalised() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)).double()


def convolutional() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)).double()


def slope(value: Tensor, model: nn.Module) -> Tensor:
    if not value.requires_grad:
        return torch.zeros(())
    found = torch.autograd.grad(value, list(model.parameters()), materialize_grads=True)
    return torch.cat([part.reshape(-1) for part in found])


def dense_trace(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Tr(H²)/n of cross-entropy over the parameters as they are, ties included."""
    weights = dict(model.named_parameters())

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([w.numel() for w in weights.values()])
        state = {name: part.view(w.shape) for (name, w), part in zip(weights.items(), parts, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, state, (x,)), y)

    at = torch.cat([w.detach().reshape(-1) for w in weights.values()])
    return torch.func.hessian(loss)(at).square().sum() / len(x)


def mean_over_draws(model: nn.Module, at: tuple[Tensor, Tensor]) -> Tensor:
    """The penalty's exact mean: it is quadratic in what is drawn."""
    reg = flatness(strength=1.0, every=1)
    drawn = reg.draw(model, at, torch.Generator().manual_seed(0))
    sizes = [part.numel() for part in drawn]
    reg.probes = sum(sizes)
    every = [one.split(sizes) for one in torch.eye(reg.probes, dtype=torch.float64)]
    given = [part.view(d.shape) for parts in every for part, d in zip(parts, drawn, strict=True)]
    return reg.probes * reg(model, at, drawn=given).detach()


@pytest.mark.parametrize("made", [plain, convolutional])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("settings", [{"every": 1, "share": 0.5}, {"every": 2}, {"every": 2, "spread": True}])
def test_logging_flatness_gives_the_value_and_changes_no_later_step(made, mode, settings):
    model = made()
    at = batch(*((1, 3, 3) if made is convolutional else (5,)))
    logged, silent = (flatness(strength=0.5, seed=3, **settings) for _ in range(2))
    for _ in range(3):
        with mode():
            seen = logged(model, at, outputs=model(at[0]))
        ours, theirs = logged(model, at), silent(model, at)
        assert not seen.requires_grad
        torch.testing.assert_close(seen, ours.detach(), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(slope(ours, model), slope(theirs, model), rtol=0, atol=0)
    assert {k: v.tolist() for k, v in logged.state_dict().items()} == {
        k: v.tolist() for k, v in silent.state_dict().items()
    }


@pytest.mark.parametrize(
    "make",
    [
        lambda: spectral_norm(strength=0.1),
        lambda: spectral_product(strength=0.1),
        lambda: gradient_noise(sd=0.1, seed=1),
        lambda: weight_noise(sd=0.1, seed=1),
    ],
)
def test_logging_a_term_changes_no_later_step(make):
    model, at, logged, silent = plain(), batch(), make(), make()
    for _ in range(3):
        with torch.no_grad():
            logged(model, at)
        torch.testing.assert_close(slope(logged(model, at), model), slope(silent(model, at), model), rtol=0, atol=0)


TERMS = {
    "input_noise": lambda: input_noise(sd=0.1),
    "activation_noise": lambda: activation_noise(sd=0.1),
    "weight_noise": lambda: weight_noise(sd=0.1),
    "label_noise": lambda: label_noise(p=0.5),
    "local_entropy": lambda: local_entropy(steps=2),
    "poison": lambda: poison(source=batch(5)),
    "flatness": lambda: flatness(every=1),
    "gradient_noise": lambda: gradient_noise(),
    "weight_decay": lambda: weight_decay(),
}


@pytest.mark.parametrize("name", TERMS)
def test_batchnorm_moves_by_the_losss_own_pass_alone(name):
    model, at, reg = normalised(), batch(), TERMS[name]()
    alone = copy.deepcopy(model)
    alone(at[0])
    model(at[0])
    reg(model, at)
    assert {k: v.tolist() for k, v in model.named_buffers()} == {k: v.tolist() for k, v in alone.named_buffers()}


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("name", ["input_noise", "activation_noise", "weight_noise", "local_entropy"])
def test_an_objective_moves_batchnorm_once(name, strength):
    model, at, reg = normalised(), batch(), TERMS[name]()
    reg.strength = strength
    reg.objective(model, at).backward()
    assert dict(model.named_buffers())["1.num_batches_tracked"].item() == 1


def test_the_path_norms_gradient_is_finite_where_all_paths_are_cut():
    for log in (False, True):
        cut = nn.Linear(4, 3)
        nn.init.zeros_(cut.weight)
        nn.init.zeros_(cut.bias)
        model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), cut).double()
        value = path_norm(strength=1.0, log=log)(model, batch())
        assert math.isfinite(value.item())
        assert slope(value, model).abs().max() == 0


def test_tied_weights_have_the_trace_of_their_sum():
    torch.manual_seed(1)
    tied = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    tied[2].weight = tied[0].weight
    again = nn.Linear(3, 3).double()
    repeated = nn.Sequential(again, nn.Tanh(), again)
    for model in (tied, repeated):
        at = batch(3)
        torch.testing.assert_close(mean_over_draws(model, at), dense_trace(model, *at), rtol=1e-9, atol=1e-12)


def test_one_activation_module_between_all_layers_is_met_at_each():
    torch.manual_seed(1)
    tanh = nn.Tanh()
    model = nn.Sequential(nn.Linear(3, 3), tanh, nn.Linear(3, 3), tanh, nn.Linear(3, 3)).double()
    at = batch(3)
    torch.testing.assert_close(mean_over_draws(model, at), dense_trace(model, *at), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("flattens", ["nowhere", "at the end"])
def test_linear_layers_on_sequences_without_flatten(flattens):
    torch.manual_seed(1)
    layers = [nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3)]
    model = nn.Sequential(*layers, *[nn.Flatten()] * (flattens == "at the end")).double()
    x, y = batch(2, 2)
    loss = (lambda o, t: F.cross_entropy(o[:, 0], t)) if flattens == "nowhere" else F.cross_entropy
    value = flatness(every=1, loss=loss, seed=1)(model, (x, y))
    assert slope(value, model).isfinite().all()
    assert value > 0


def test_the_matrix_of_layers_flattened_at_the_end_is_right():
    torch.manual_seed(1)
    model, at = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Flatten()).double(), batch(2, 2)
    torch.testing.assert_close(mean_over_draws(model, at), dense_trace(model, *at), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("made", [plain, convolutional])
def test_compiled_networks_have_the_same_penalty(made):
    model = made()
    at = batch(*((1, 3, 3) if made is convolutional else (5,)))
    compiled = torch.compile(model, backend="aot_eager")
    outputs = compiled(at[0])
    ours = flatness(every=1, seed=1)(compiled, at, outputs=outputs)
    theirs = flatness(every=1, seed=1)(model, at)
    torch.testing.assert_close(
        slope(F.cross_entropy(outputs, at[1]) + ours, model), slope(_loss(model, at) + theirs, model)
    )
    torch._dynamo.reset()


@pytest.mark.parametrize("where", ["whole", "in place", "a part"])
def test_activation_noise_is_put_on_compiled_networks(where):
    model, at = plain(), batch(5)
    term = activation_noise(sd=1.0, seed=1)
    expected = [copy.deepcopy(term)(model, at), copy.deepcopy(term).objective(model, at)]
    compiled: Any = copy.deepcopy(model)
    if where == "whole":
        compiled = torch.compile(compiled, backend="aot_eager")
    elif where == "in place":
        compiled.compile(backend="aot_eager")
    else:
        inside: Any = torch.compile(compiled[:2], backend="aot_eager")
        compiled = nn.Sequential(inside, *compiled[2:])
    outputs = compiled(at[0])  # there is a graph already, which knows of no noise
    found = [copy.deepcopy(term)(compiled, at, outputs=outputs), copy.deepcopy(term).objective(compiled, at)]
    torch.testing.assert_close(found, expected)
    if where == "whole":
        assert activation_noise(sd=1.0, seed=1, layers=("1",))(compiled, at).item() == pytest.approx(expected[0].item())
        with pytest.raises(LookupError, match="no module called '_orig_mod"):
            activation_noise(layers=("_orig_mod.1",))(compiled, at)
    torch._dynamo.reset()


def test_noise_on_a_module_that_is_never_called_is_refused():
    class Unused(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return self[0](input)

    with pytest.raises(LookupError, match="does not call the module '1'"):
        activation_noise()(Unused(nn.Linear(5, 3), nn.ReLU()).double(), batch(5))


def _loss(model: nn.Module, at: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(at[0]), at[1])


@pytest.mark.parametrize("make", [lambda: flatness(every=2, spread=True), lambda: spectral_norm()])
def test_what_is_loaded_is_on_the_modules_device(make):
    reg = make()
    reg(plain(), batch())
    other = make().to("meta")
    with pytest.warns(UserWarning, match="meta parameter"):
        other.load_state_dict(reg.state_dict())
    assert {b.device.type for b in other.buffers()} == {"meta"}
    assert list(other.state_dict()) == list(reg.state_dict())


@pytest.mark.parametrize("name", TERMS)
def test_the_settings_that_may_vary_in_a_population_are_settings_and_no_counts(name):
    names = TERMS[name]().stackable
    assert names
    assert set(names) <= set(inspect.signature(getattr(regularizers, name)).parameters)
    assert not set(names) & {"probes", "every", "samples", "steps", "p" if name == "path_norm" else "", "batch_size"}
    assert all(hasattr(TERMS[name](), setting) for setting in names)


def test_terms_that_write_while_they_run_never_stack():
    assert spectral_norm().stackable is False
    assert flatness(every=2, spread=True).stackable is False
    assert path_norm().stackable == ("strength",)


@pytest.mark.parametrize(
    "make",
    [
        lambda: flatness(layers=()),
        lambda: weight_decay(layers=()),
        lambda: spectral_norm(layers=()),
        lambda: spectral_product(layers=()),
        lambda: gradient_noise(layers=()),
        lambda: weight_noise(layers=()),
        lambda: activation_noise(layers=()),
        lambda: decoupled_weight_decay(plain(), rate=0.1, layers=()),
    ],
)
def test_an_empty_choice_of_layers_is_refused(make):
    with pytest.raises(ValueError, match=r"layers=\(\)\) chooses nothing; name some modules"):
        make()


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: check_counts("flatness", probes=1.5), "probes"),  # where types are not checked at the call
        (lambda: flatness(probes=True), "probes"),
        (lambda: flatness(every=True), "every"),
        (lambda: spectral_norm(steps=True), "steps"),
        (lambda: local_entropy(steps=True), "steps"),
        (lambda: poison(source=batch(), batch_size=True), "batch_size"),
    ],
)
def test_counts_that_are_not_whole_are_refused(make, name):
    with pytest.raises(TypeError, match=f"needs {name} to be a whole number"):
        make()


@pytest.mark.parametrize("make", [flatness, input_noise, label_noise, local_entropy])
def test_a_loss_that_is_a_sum_is_refused(make):
    with pytest.raises(ValueError, match="needs the mean over a batch"):
        make(loss=nn.CrossEntropyLoss(reduction="sum"))


def test_distributed_networks_are_unwrapped():
    inner = plain()
    wrapped = nn.DataParallel(inner)
    ours, theirs = flatness(every=1, seed=1)(wrapped, batch()), flatness(every=1, seed=1)(inner, batch())
    assert list(chosen(inner, None)) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    torch.testing.assert_close(ours, theirs)
