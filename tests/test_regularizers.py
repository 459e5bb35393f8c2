"""The flatness penalty against dense Hessians in float64: value, gradient, halves, layers, cycles, other transforms."""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from landscope.losses import squared_error
from landscope.regularizers import Flatness, chain, flatness
from landscope.regularizers.draws import rademacher
from landscope.regularizers.flatness import chosen
from landscope.spec import call

Loss = Callable[[Tensor, Tensor], Tensor]


def network(activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(1)
    layers = [nn.Linear(3, 4), activation(), nn.Linear(4, 3), activation(), nn.Linear(3, 3)]
    return nn.Sequential(nn.Flatten(), *layers).double()


def convolutional() -> nn.Sequential:
    torch.manual_seed(1)
    layers = [nn.Conv2d(1, 2, 2), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 3)]
    return nn.Sequential(*layers).double()


def batch(n: int = 6, *shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return (
        torch.randn(n, *shape, dtype=torch.float64, generator=generator),
        torch.randint(3, (n,), generator=generator),
    )


def dense(
    model: nn.Module, names: list[str], x: Tensor, y: Tensor, loss: Loss, ggn: bool
) -> Callable[[Tensor], Tensor]:
    """The matrix in the named parameters as a function of all of them, flat, by torch.func alone."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def outputs(part: Tensor, whole: Tensor) -> Tensor:
        state = taken_apart(parameters, list(parameters), whole)
        return functional_call(model, state | taken_apart(parameters, names, part), (x,))

    def matrix(whole: Tensor) -> Tensor:
        state = taken_apart(parameters, list(parameters), whole)
        part = torch.cat([state[name].reshape(-1) for name in names])
        if not ggn:
            return torch.func.hessian(lambda w: loss(outputs(w, whole), y))(part)
        j = torch.func.jacrev(lambda w: outputs(w, whole))(part).reshape(-1, len(part))
        out = outputs(part, whole)
        middle = torch.func.hessian(lambda o: loss(o.view_as(out), y))(out.reshape(-1))
        return j.T @ middle @ j

    return matrix


def taken_apart(parameters: dict[str, Tensor], names: list[str], flat: Tensor) -> dict[str, Tensor]:
    parts = flat.split([parameters[name].numel() for name in names])
    return {name: part.view(parameters[name].shape) for name, part in zip(names, parts, strict=True)}


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def directions(reg: Flatness, model: nn.Module, at: tuple[Tensor, Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """One direction for each number that is drawn: what is quadratic in them has the trace as the sum over these."""
    drawn = copy.deepcopy(reg).draw(model, at, torch.Generator().manual_seed(0))
    total = sum(d.numel() for d in drawn)
    for i in range(total):
        one = torch.zeros(total, dtype=drawn[0].dtype)
        one[i] = 1
        yield tuple(part.view(d.shape) for part, d in zip(one.split([d.numel() for d in drawn]), drawn, strict=True))


def expectation(reg: Flatness, model: nn.Module, at: tuple[Tensor, Tensor], outputs: Tensor | None = None) -> Tensor:
    """The exact mean of the penalty over its draws, with its graph: all directions as probes of one call."""
    each, every = list(directions(reg, model, at)), copy.deepcopy(reg)
    every.probes = len(each)
    return len(each) * every(model, at, drawn=[part for d in each for part in d], outputs=outputs)


def gradient(value: Tensor, model: nn.Module) -> Tensor:
    found = torch.autograd.grad(value, list(model.parameters()), materialize_grads=True)
    return torch.cat([g.reshape(-1) for g in found])


def named(model: nn.Module, layers: tuple[str, ...] | None) -> list[str]:
    return list(chosen(model, layers))


def check(model: nn.Module, at: tuple[Tensor, Tensor], loss: Loss = F.cross_entropy, **settings: object) -> None:
    """Mean of the penalty over its draws, and its gradient, equal the dense matrix's, with and without the graph."""
    reg = flatness(strength=0.7, every=1, loss=loss, **settings)  # type: ignore[arg-type]
    names = named(model, reg.layers)
    matrix = dense(model, names, *at, loss, reg.ggn)
    slope, expected = torch.func.grad_and_value(lambda w: 0.7 * matrix(w).square().sum() / len(at[0]))(flat(model))
    for outputs in (None, model(at[0])):
        value = expectation(reg, model, at, outputs)
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(gradient(value, model), slope, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("activation", "matrix"),
    [*[(a, "hessian") for a in (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.Softplus)], (nn.Tanh, "ggn")],
)
def test_the_closed_form_has_the_mean_and_gradient_of_the_dense_matrix(activation, matrix):
    model = network(activation)
    assert chain.chain_of(model, chosen(model, None)) is not None
    check(model, batch(6, 3), matrix=matrix)


@pytest.mark.parametrize(
    ("layers", "matrix"),
    [(("1",), "hessian"), (("3.bias", "5"), "hessian"), (("1.weight",), "ggn"), (("1.bias",), "hessian")],
)
def test_some_layers_give_the_block_of_the_dense_matrix(layers, matrix):
    check(network(nn.Tanh), batch(6, 3), layers=layers, matrix=matrix)


@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
@pytest.mark.parametrize("layers", [None, ("0",)])
def test_any_network_has_the_mean_and_gradient_of_the_dense_matrix(matrix, layers):
    check(convolutional(), batch(4, 1, 3, 3), matrix=matrix, layers=layers)


def test_another_loss():
    x, y = batch(5, 3)
    check(network(nn.Tanh), (x, y), loss=squared_error())
    reg = flatness(every=1, loss=call(squared_error))
    assert reg.loss is squared_error()


def test_the_halves_of_a_batch_give_the_trace_of_the_product_of_their_hessians():
    for model, at in ((network(nn.Tanh), batch(5, 3)), (convolutional(), batch(5, 1, 3, 3))):
        reg = flatness(strength=1.0, every=1, unbiased=True)
        names, cut = named(model, None), len(at[0]) // 2
        a, b = (
            dense(model, names, at[0][s], at[1][s], F.cross_entropy, False) for s in (slice(0, cut), slice(cut, None))
        )
        n = len(at[0])
        slope, expected = torch.func.grad_and_value(lambda w, a=a, b=b, n=n: (a(w) * b(w)).sum() / n)(flat(model))
        value = expectation(reg, model, at)
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(gradient(value, model), slope, rtol=1e-8, atol=1e-10)


def test_halves_are_unbiased_for_the_whole_set_where_batches_are_not():
    """Over all pairs of a small set the mean of halves is that of products of different samples' Hessians."""
    torch.manual_seed(1)
    model, (x, y) = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 3)).double(), batch(4, 2)
    each = [
        dense(model, named(model, None), x[i : i + 1], y[i : i + 1], F.cross_entropy, False)(flat(model))
        for i in range(4)
    ]
    pairs = [[i, j] for i in range(4) for j in range(i)]
    halves, whole = (flatness(strength=2.0, every=1, unbiased=unbiased) for unbiased in (True, False))
    found, biased = (
        torch.stack([expectation(reg, model, (x[p], y[p])).detach() for p in pairs]).mean() for reg in (halves, whole)
    )
    products = torch.stack([(each[i] * each[j]).sum() for i, j in pairs]).mean()
    torch.testing.assert_close(found, products, rtol=1e-8, atol=0)
    assert biased > 1.05 * products
    assert biased > torch.stack(each).mean(0).square().sum()


def test_probes_are_averaged():
    for model, at in ((network(), batch(6, 3)), (convolutional(), batch(4, 1, 3, 3))):
        three, one = flatness(probes=3, every=1), flatness(every=1)
        drawn = three.draw(model, at, torch.Generator().manual_seed(0))
        each = len(drawn) // 3
        parts = [one(model, at, drawn=drawn[i * each : (i + 1) * each]) for i in range(3)]
        torch.testing.assert_close(three(model, at, drawn=drawn), torch.stack(parts).mean())


def test_draws_have_mean_zero_and_covariance_one():
    signs = rademacher((40_001, 5), torch.Generator().manual_seed(1), dtype=torch.float64)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    covariance = signs.T @ signs / len(signs)
    assert (covariance - torch.eye(5, dtype=torch.float64)).abs().max() < 5 / len(signs) ** 0.5
    assert signs.mean(0).abs().max() < 5 / len(signs) ** 0.5
    assert (signs.view(-1)[:-64] * signs.view(-1)[64:]).mean().abs() < 5 / signs.numel() ** 0.5


def test_sampled_penalties_scatter_around_the_dense_trace():
    for model, at in ((network(), batch(6, 3)), (convolutional(), batch(4, 1, 3, 3))):
        matrix = dense(model, named(model, None), *at, F.cross_entropy, False)
        expected = matrix(flat(model)).square().sum().item() / len(at[0])
        reg = flatness(strength=1.0, every=1, seed=3)
        found = torch.tensor([reg(model, at).item() for _ in range(40)])
        assert abs(found.mean() - expected) < 4 * found.std() / 40**0.5


def test_given_outputs_are_not_computed_again_and_share_the_graph():
    model, at = network(), batch(6, 3)
    outputs = model(at[0])
    layers = chain.chain_of(model, chosen(model, None))
    assert layers is not None
    seen = chain.found_in(layers, outputs)
    assert seen is not None
    again, _ = chain.forward(layers, at[0])
    for a, b in zip(seen, again, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    other = copy.deepcopy(model)
    assert chain.found_in(layers, other(at[0])) is None, "another network's outputs"
    assert chain.found_in(layers, outputs * 2) is None
    assert chain.found_in(layers, outputs.detach()) is None


def test_objective_is_loss_plus_penalty():
    model, at = network(), batch(6, 3)
    reg = flatness(strength=0.5, every=1)
    drawn = reg.draw(model, at, torch.Generator().manual_seed(0))
    apart = F.cross_entropy(model(at[0]), at[1]) + reg(model, at, drawn=drawn)
    together = reg.objective(model, at, drawn=drawn)
    torch.testing.assert_close(together, apart)
    torch.testing.assert_close(gradient(together, model), gradient(apart, model))


def test_every_kth_step_counts_k_times():
    model, at = network(), batch(6, 3)
    reg, each = flatness(every=3, spread=False, seed=0), flatness(every=1, seed=0)
    values = [reg(model, at).item() for _ in range(7)]
    assert [value != 0 for value in values] == [True, False, False, True, False, False, True]
    assert values[0] == pytest.approx(3 * each(model, at).item(), rel=1e-12)


def test_a_spread_gradient_is_that_of_the_step_it_was_computed_at():
    for model, at in ((network(nn.Tanh), batch(6, 3)), (convolutional(), batch(4, 1, 3, 3))):
        reg = flatness(strength=0.5, every=3, spread=True, seed=0)
        single = flatness(strength=0.5, every=1)
        twin = copy.deepcopy(reg)
        drawn = twin.draw(model, at, twin.draws.next(at[0].device))
        penalty = single(model, at, drawn=drawn)
        expected = gradient(penalty, model)
        for step in range(3):
            outputs = model(at[0])
            term = reg(model, at, outputs=outputs)
            torch.testing.assert_close(term, penalty)
            torch.testing.assert_close(gradient(F.cross_entropy(outputs, at[1]) * 0 + term, model), expected)
            with torch.no_grad():
                for p in model.parameters():
                    p += 0.01 * (step + 1)
        moved = gradient(reg(model, at), model)
        assert (moved - expected).norm() > 1e-3 * expected.norm()


def test_a_kept_gradient_is_not_handed_out():
    model, at = network(), batch(6, 3)
    reg = flatness(strength=1.0, every=3, spread=True, seed=0)
    for _ in range(2):
        model.zero_grad()
        reg(model, at).backward()
        kept = {n: t.clone() for n, t in reg.state_dict().items()}
        for p in model.parameters():
            assert p.grad is not None
            p.grad.zero_()
        assert all(torch.equal(t, kept[n]) for n, t in reg.state_dict().items())
    doubled = gradient(2 * reg(model, at), model)
    torch.testing.assert_close(doubled, 2 * gradient(reg(model, at, drawn=()), model))


@pytest.mark.parametrize("spread", [True, False])
def test_a_run_continued_from_its_state_goes_on_bit_for_bit(spread):
    at = batch(6, 3)

    def train(model: nn.Module, reg: Flatness, steps: int) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(steps):
            optimizer.zero_grad()
            reg.objective(model, at).backward()
            optimizer.step()

    whole, reg = network(), flatness(strength=0.1, every=4, spread=spread, seed=5)
    train(whole, reg, 6)
    half, first = network(), flatness(strength=0.1, every=4, spread=spread, seed=5)
    train(half, first, 3)
    second = flatness(strength=0.1, every=4, spread=spread, seed=5)
    second.load_state_dict(first.state_dict())
    train(half, second, 3)
    assert torch.equal(flat(whole), flat(half))


def test_it_works_inside_vmap_of_grad():
    """As in a population: per-member gradients equal those taken one by one, in closed form and for any network."""
    cases = (
        (network, batch(6, 3), 1.0),
        (convolutional, batch(5, 1, 3, 3), 0.8),
        (network, batch(6, 3), 0.7),
    )
    for make, at, share in cases:
        reg = flatness(strength=0.3, every=1, share=share)
        models = [make() for _ in range(3)]
        for i, model in enumerate(models):
            with torch.no_grad():
                for p in model.parameters():
                    p.mul_(1 + 0.2 * i)
        drawn = [reg.draw(model, at, torch.Generator().manual_seed(i)) for i, model in enumerate(models)]
        stacked = {
            n: torch.stack([dict(m.named_parameters())[n].detach() for m in models])
            for n, _ in models[0].named_parameters()
        }
        host = make()

        class Objective(nn.Module):
            def __init__(self, net: nn.Module) -> None:
                super().__init__()
                self.net = net

            def forward(self, at: tuple[Tensor, Tensor], own: tuple[Tensor, ...], reg: Flatness = reg) -> Tensor:
                outputs = self.net(at[0])
                return F.cross_entropy(outputs, at[1]) + reg(self.net, at, outputs=outputs, drawn=own)

        objective = Objective(host)

        def value(
            state: dict[str, Tensor],
            at: tuple[Tensor, Tensor],
            own: tuple[Tensor, ...],
            objective: nn.Module = objective,
        ) -> Tensor:
            return functional_call(objective, {f"net.{n}": p for n, p in state.items()}, (at, own))

        batches = [(at[0].roll(i, 0), at[1].roll(2 * i)) for i in range(3)]
        stack = [tuple(torch.stack(part) for part in zip(*parts, strict=True)) for parts in (batches, drawn)]
        together = torch.func.vmap(torch.func.grad(value))(stacked, stack[0], stack[1])  # type: ignore[arg-type]
        for i, model in enumerate(models):
            x, y = batches[i]
            alone = gradient(F.cross_entropy(model(x), y) + reg(model, (x, y), drawn=drawn[i]), model)
            found = torch.cat([together[n][i].reshape(-1) for n, _ in model.named_parameters()])
            torch.testing.assert_close(found, alone, rtol=1e-9, atol=1e-12)


def test_a_spread_gradient_is_refused_inside_transforms():
    model, at = network(), batch(6, 3)
    reg = flatness(every=2, spread=True)
    assert not reg.stackable
    assert flatness().stackable
    drawn = reg.draw(model, at, None)
    parameters = {n: p.detach() for n, p in model.named_parameters()}

    def value(state: dict[str, Tensor]) -> Tensor:
        swapped = copy.deepcopy(model)
        for name, p in state.items():
            layer, _, own = name.rpartition(".")
            del swapped.get_submodule(layer)._parameters[own]
            setattr(swapped.get_submodule(layer), own, p)
        penalty = sum((p.square().sum() for p in state.values()), torch.zeros(()))
        swapped._parameters.clear()
        reg._keep(_Holder(state), penalty)
        return penalty

    with pytest.raises(RuntimeError, match="spread=False"):
        torch.func.grad(value)(parameters)
    assert drawn


class _Holder(nn.Module):
    """A module whose parameters are the given tensors."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.state = state

    def named_parameters(self, *args: object, **kwargs: object) -> Iterator[tuple[str, Tensor]]:  # type: ignore[override]
        yield from self.state.items()


def test_batchnorm_dropout_modes_generators_and_grads_are_left_alone():
    torch.manual_seed(1)
    layers = [nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(8, 3)]
    model, at = nn.Sequential(*layers).double(), batch(4, 1, 3, 3)
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    reg = flatness(strength=1.0, every=1, seed=1)
    drawn = reg.draw(model, at, torch.Generator().manual_seed(0))
    first, second = reg(model, at, drawn=drawn), reg(model, at, drawn=drawn)
    assert torch.equal(first, second), "dropout is off for the penalty"
    assert torch.equal(reg(model, at, drawn=drawn, outputs=model(at[0])), first)
    torch.set_rng_state(random)
    model.load_state_dict(state)
    reg(model, at)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_dropout_in_a_chain_is_passed_over():
    torch.manual_seed(1)
    bare = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    dropped = nn.Sequential(bare[0], nn.Sequential(bare[1], nn.Dropout(0.5)), bare[2])
    at, reg = batch(6, 3), flatness(every=1)
    drawn = reg.draw(bare, at, None)
    torch.testing.assert_close(reg(dropped, at, drawn=drawn, outputs=dropped(at[0])), reg(bare, at, drawn=drawn))


def test_training_with_it_flattens():
    torch.manual_seed(0)
    x = torch.randn(64, 10)
    y = (x[:, 0] > 0).long()
    found = {}
    for strength in (0.0, 1.0):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 2))
        reg, optimizer = flatness(strength=strength, seed=0), torch.optim.SGD(model.parameters(), lr=0.2)
        for _ in range(50):
            optimizer.zero_grad()
            reg.objective(model, (x, y)).backward()
            optimizer.step()
        measure = flatness(strength=1.0, every=1, probes=20)
        with torch.no_grad():
            drawn = measure.draw(model, (x, y), torch.Generator().manual_seed(1))
            found[strength] = measure.trace(model, (x, y), drawn=drawn).item()
    assert found[1.0] < 0.8 * found[0.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"probes": 0}, "probes of at least 1, not 0"),
        ({"every": 0}, "every of at least 1"),
        ({"share": 0.0}, r"share in \(0, 1\] of each batch, not 0"),
        ({"share": 1.5}, "share"),
        ({"strength": -1.0}, "strength of at least 0, not -1"),
        ({"strength": float("nan")}, "strength"),
        ({"strength": float("inf")}, "strength of at least 0 and finite, not inf"),
        ({"matrix": "fisher"}, "'hessian' and 'ggn', not 'fisher'"),
        ({"layers": ()}, "chooses nothing"),
        ({"seed": -1}, "seed"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        flatness(**settings)


def test_unknown_layers_are_named_with_the_nearest():
    with pytest.raises(LookupError, match=r"called '33' \(did you mean '3'\?\); it has 1, 3, 5"):
        flatness(layers=("33",))(network(), batch(6, 3))


def test_one_sample_has_no_halves_and_a_frozen_model_no_hessian():
    with pytest.raises(ValueError, match="at least 2 samples"):
        flatness(unbiased=True)(network(), batch(1, 3))
    with pytest.raises(ValueError, match="no parameters that are trained"):
        flatness()(network().requires_grad_(False), batch(6, 3))


def test_a_kept_gradient_belongs_to_one_model():
    reg = flatness(every=2, spread=True)
    reg(network(), batch(6, 3))
    with pytest.raises(LookupError, match="one regularizer for each model"):
        reg(convolutional(), batch(4, 1, 3, 3))


def test_a_loss_that_is_linear_in_the_weights_has_no_curvature():
    model, at = nn.Linear(2, 1).double(), (torch.ones(3, 2, dtype=torch.float64), torch.ones(3, 1))
    reg = flatness(strength=1.0, every=1, loss=lambda o, y: (o * y).mean())
    assert reg(model, at).item() == 0
    conv = nn.Sequential(nn.Conv1d(2, 1, 1), nn.Flatten()).double()
    assert reg(conv, (torch.ones(3, 2, 1, dtype=torch.float64), at[1])).item() == 0
