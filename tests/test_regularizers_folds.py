"""The flatness penalty of given draws is ‖S H v‖² in float64, in every kind of layer, order of parts and transform."""

import copy
import functools
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from landscope.regularizers import Flatness, bilinear, chain, flatness, folds, products
from landscope.regularizers.flatness import chosen
from landscope.regularizers.normalising import WrittenOut

At = tuple[Tensor, Tensor]


def batch(*shape: int) -> At:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(*shape, dtype=torch.float64, generator=generator)
    return x, torch.randint(3, (len(x),), generator=generator)


def parts(reg: Flatness, model: nn.Module, at: At) -> tuple[tuple[Tensor, ...], list[dict[str, folds.Part]]]:
    drawn = copy.deepcopy(reg).draw(model, at, torch.Generator().manual_seed(0))
    return drawn, list(folds.parts(model, chosen(model, reg.layers), drawn))


def expected(reg: Flatness, model: nn.Module, at: At, each: list[dict[str, folds.Part]]) -> tuple[Tensor, Tensor]:
    """λ‖S H v‖²/B and its gradient, by forward over reverse mode of torch.func."""
    model = by_formula(model)  # a copy, because functional_call leaves traces in modules that come twice
    state = {n: w.detach() for n, w in model.named_parameters()}
    buffers = {n: b.clone() for n, b in model.named_buffers()}

    def penalty(whole: dict[str, Tensor]) -> Tensor:
        def value(part: dict[str, Tensor]) -> Tensor:
            own = {n: b.clone() for n, b in buffers.items()}
            return reg.loss(functional_call(model, whole | part | own, (at[0],)), at[1])

        some = {n: whole[n] for n in each[0]}
        total = torch.zeros((), dtype=torch.float64)
        for probe in each:
            v = {n: _v(p) for n, p in probe.items()}
            image = torch.func.jvp(torch.func.grad(value), (some,), (v,))[1]
            total = total + sum((_s(probe[n], image[n]).square().sum() for n in some), torch.zeros(()))
        return reg.strength * total / len(each) / len(at[0])

    slope = torch.func.grad(penalty)(state)
    return penalty(state), torch.cat([slope[n].reshape(-1) for n in state])


def _v(part: folds.Part) -> Tensor:
    return part.rows if part.into is None else torch.einsum("ko,k...->o...", part.into, part.rows)


def _s(part: folds.Part, image: Tensor) -> Tensor:
    return image if part.onto is None else torch.einsum("ko,o...->k...", part.onto, image)


def gradient(value: Tensor, model: nn.Module) -> Tensor:
    found = torch.autograd.grad(value, list(model.parameters()), materialize_grads=True)
    return torch.cat([g.reshape(-1) for g in found])


class Residual(nn.Module):
    """A block beside an identity."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class Normalised(nn.BatchNorm2d):
    """BatchNorm on the batch's statistics by its formula: torch's own third derivative is wrong."""

    def forward(self, input: Tensor) -> Tensor:
        z = input - input.mean((0, 2, 3), keepdim=True)
        z = z / (z.square().mean((0, 2, 3), keepdim=True) + self.eps).sqrt()
        return z * self.weight[:, None, None] + self.bias[:, None, None]


def by_formula(model: nn.Module) -> nn.Module:
    """A copy whose BatchNorms in training mode are written out."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d and module.training:
            module.__class__ = Normalised
    return model


class Strange(nn.Module):
    """A linear layer whose weight is used otherwise, too."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 18)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).tanh() @ self.inner.weight


def _conv(**settings: int) -> nn.Module:
    first = nn.Conv2d(2, 18, 3, **settings)  # type: ignore[arg-type]
    return nn.Sequential(first, nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(72, 3))


def _normalised() -> nn.Module:
    block = nn.Sequential(nn.Conv2d(18, 18, 3, padding=1, bias=False), nn.BatchNorm2d(18), nn.Tanh())
    layers = [nn.Conv2d(2, 18, 3, padding=1), nn.BatchNorm2d(18), nn.ReLU(), Residual(block), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(72, 3))


def _chain() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 19), nn.Softplus(), nn.Linear(19, 17), nn.ReLU(), nn.Linear(17, 3))


def _tied() -> nn.Module:
    again = nn.Linear(18, 18)
    return nn.Sequential(nn.Linear(5, 18), nn.Tanh(), again, nn.Tanh(), again, nn.Linear(18, 3))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "chain": (_chain, (4, 5)),
    "bare": (lambda: nn.Sequential(nn.Linear(5, 18, bias=False), nn.Tanh(), nn.Linear(18, 18, bias=False)), (4, 5)),
    "tied": (_tied, (4, 5)),
    "stride": (lambda: _conv(stride=2), (3, 2, 6, 5)),
    "padding": (lambda: _conv(padding=2), (3, 2, 4, 4)),
    "dilation": (lambda: _conv(dilation=2), (3, 2, 6, 6)),
    "groups": (lambda: _conv(groups=2), (3, 2, 5, 5)),
    "one dimension": (lambda: nn.Sequential(nn.Conv1d(2, 18, 3), nn.GELU(), nn.Flatten(), nn.Linear(54, 3)), (3, 2, 5)),
    "normalised": (_normalised, (4, 2, 4, 4)),
    "sequences": (lambda: nn.Sequential(nn.Linear(4, 18), nn.Tanh(), nn.Flatten(), nn.Linear(54, 3)), (3, 3, 4)),
    "strange": (Strange, (4, 4)),
}  # fmt: skip


def made(name: str) -> tuple[nn.Module, At]:
    torch.manual_seed(1)
    make, shape = NETWORKS[name]
    return make().double(), batch(*shape)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_penalty_of_given_draws_and_its_gradient_are_those_of_s_h_v(name):
    model, at = made(name)
    reg = flatness(strength=0.7, every=1)
    drawn, each = parts(reg, model, at)
    value, slope = expected(reg, model, at, each)
    alone = reg(model, at, drawn=drawn)
    torch.testing.assert_close(alone, value, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient(alone, model), slope, rtol=1e-8, atol=1e-11)
    together = reg.objective(model, at, drawn=drawn)
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    whole = slope + gradient(F.cross_entropy(functional_call(model, buffers, (at[0],)), at[1]), model)
    torch.testing.assert_close(gradient(together, model), whole, rtol=1e-8, atol=1e-11)
    assert any(part.into is not None for part in each[0].values()) or name == "groups"


@pytest.mark.parametrize("name", ["chain", "normalised"])
@pytest.mark.parametrize("settings", [{"probes": 2}, {"layers": ("0",)}, {"layers": ("2",)}])
def test_probes_and_layers_choose_what_is_summed(name, settings):
    model, at = made(name)
    if "layers" in settings and name == "normalised":
        settings = {"layers": ("3.block",)}
    reg = flatness(strength=0.7, every=1, **settings)  # type: ignore[arg-type]
    drawn, each = parts(reg, model.eval(), at)
    value, slope = expected(reg, model, at, each)
    for found in (reg(model, at, drawn=drawn), reg.objective(model, at, drawn=drawn) - reg.loss(model(at[0]), at[1])):
        torch.testing.assert_close(found, value, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(gradient(found, model), slope, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
def test_closed_form_watched_layers_and_transforms_agree(matrix, monkeypatch):
    model, at = made("chain")
    reg = flatness(strength=0.7, every=1, matrix=matrix)
    drawn = copy.deepcopy(reg).draw(model, at, torch.Generator().manual_seed(0))
    closed = reg(model, at, drawn=drawn)
    monkeypatch.setattr(chain, "chain_of", lambda *_, **__: None)
    watched = reg(model, at, drawn=drawn)
    monkeypatch.setattr(products, "watchable", lambda *_: False)
    transformed = reg(model, at, drawn=drawn)
    slope = gradient(closed, model)
    for found in (watched, transformed):
        torch.testing.assert_close(found, closed, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(gradient(found, model), slope, rtol=1e-8, atol=1e-11)


NORMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "BatchNorm1d": (lambda: nn.BatchNorm1d(4), (5, 4)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(2), (5, 2, 1, 2)),
    "LayerNorm": (lambda: nn.LayerNorm(4), (5, 4)),
    "InstanceNorm1d": (lambda: nn.InstanceNorm1d(2, eps=0.1, affine=True), (5, 2, 2)),
    "GroupNorm": (lambda: nn.GroupNorm(2, 4, eps=0.1), (5, 4)),
    "RMSNorm": (lambda: nn.RMSNorm(4, eps=0.1), (5, 4)),
    "weight_norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), (5, 4)),
    "weight_norm of a kernel": (lambda: nn.utils.parametrizations.weight_norm(nn.Conv1d(2, 2, 1)), (5, 2, 2)),
    "weight_norm of a whole": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4), dim=-1), (5, 4)),
    "attention": (lambda: nn.TransformerEncoderLayer(4, 2, 5, 0.0, nn.GELU(), batch_first=True), (5, 2, 4)),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("watched", [True, False])
def test_the_gradient_through_normalisations_and_attention_is_that_of_finite_differences(name, watched, monkeypatch):
    if not watched:
        monkeypatch.setattr(products, "watchable", lambda *_: False)
    torch.manual_seed(1)
    make, shape = NORMS[name]
    size = math.prod(shape[1:])
    layers = [nn.Linear(3, size), nn.Unflatten(1, shape[1:]), make(), nn.Flatten(), nn.Tanh(), nn.Linear(size, 3)]
    model, at = nn.Sequential(*layers).double(), batch(5, 3)
    reg = flatness(strength=1.0, every=1)
    drawn, _ = parts(reg, model, at)
    slope = gradient(reg(model, at, drawn=drawn), model)
    along, values = torch.randn(len(slope), dtype=torch.float64, generator=torch.Generator().manual_seed(4)), []
    start = nn.utils.parameters_to_vector(model.parameters()).detach()
    for side in (1e-5, -1e-5):
        nn.utils.vector_to_parameters(start + side * along, model.parameters())
        values.append(reg(model, at, drawn=drawn).item())
    assert (values[0] - values[1]) / 2e-5 == pytest.approx((slope @ along).item(), rel=1e-5, abs=1e-7)


def test_layers_are_watched_where_the_weight_is_used_by_layers_alone():
    for name in ("tied", "normalised", "strange"):
        model, at = made(name)
        weights = chosen(model, None)
        drawn = flatness().draw(model, at, torch.Generator().manual_seed(0))
        each = list(folds.parts(model, weights, drawn))
        watch, _ = products.watched(model, weights, each, functools.partial(model, at[0]))
        assert isinstance(watch, bilinear.Watch)
        assert watch.complete == (name != "strange")


def test_the_objectives_one_pass_moves_batchnorm_once():
    model, at = made("normalised")
    twin = copy.deepcopy(model)
    twin(at[0])
    flatness(every=1, seed=1).objective(model, at).backward()
    for (name, ours), (_, theirs) in zip(model.named_buffers(), twin.named_buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)


def test_folded_draws_have_covariance_one():
    """E vvᵀ = 1 and E SᵀS = 1 to 5 standard errors, and V and S are independent of each other."""
    model, n = nn.Linear(2, 20).double(), 400
    weights, generator = chosen(model, ("weight",)), torch.Generator().manual_seed(3)
    drawn = folds.draw(model, weights, n, generator)
    found = [each["weight"] for each in folds.parts(model, weights, drawn)]
    v = torch.stack([part.direction().reshape(-1) for part in found])
    s = torch.stack([part.onto for part in found if part.onto is not None])
    assert len(s) == n
    bound = 5 / math.sqrt(n)
    assert (v.T @ v / n - torch.eye(40, dtype=torch.float64)).abs().max() < bound
    assert (torch.einsum("nki,nkj->ij", s, s) / n - torch.eye(20, dtype=torch.float64)).abs().max() < bound
    assert v.mean(0).abs().max() < bound
    assert (v[:, :1] * s.sum(1)).mean(0).abs().max() < bound


@pytest.mark.parametrize("closed", [True, False])
def test_a_share_is_unbiased_for_the_whole_batch(closed, monkeypatch):
    """Over all choices of 4 samples of 5 the mean of what they give is the whole batch's own ‖S H v‖²."""
    if not closed:
        monkeypatch.setattr(chain, "chain_of", lambda *_, **__: None)
    model, (x, y) = made("chain")[0], batch(5, 5)
    whole, part = (flatness(strength=1.0, every=1, share=share) for share in (1.0, 0.5))
    drawn = copy.deepcopy(whole).draw(model, (x, y), torch.Generator().manual_seed(0))
    pairs = itertools.combinations(range(5), 2)
    split = [[*a, *b] for a in pairs for b in itertools.combinations(sorted(set(range(5)) - set(a)), 2) if a < b]
    found = torch.stack([part(model, (x, y), drawn=(*drawn, torch.tensor(some))) for some in split]).mean()
    target = whole(model, (x, y), drawn=drawn)
    torch.testing.assert_close(found, target, rtol=1e-9, atol=0)
    torch.testing.assert_close(gradient(found, model), gradient(target, model), rtol=1e-8, atol=1e-11)
    plain = torch.stack([whole(model, (x[some], y[some]), drawn=drawn) * 4 / 5 for some in split]).mean()
    assert plain > 1.01 * target, "H of a part alone has a larger trace"


@pytest.mark.parametrize("closed", [True, False])
def test_a_share_is_of_the_samples_that_were_drawn(closed, monkeypatch):
    if not closed:
        monkeypatch.setattr(chain, "chain_of", lambda *_, **__: None)
    model, at = made("chain")[0], batch(12, 5)
    reg = flatness(every=1, share=0.5)
    generator = torch.Generator().manual_seed(0)
    *directions, some = reg.draw(model, at, generator)
    *_, others = reg.draw(model, at, generator)
    assert len(some.unique()) == 6
    assert set(some.tolist()) != set(others.tolist())
    drawn = *directions, some
    own = reg(model, at, drawn=drawn)
    given = reg(model, at, drawn=drawn, outputs=model(at[0]))
    torch.testing.assert_close(given, own)
    torch.testing.assert_close(gradient(given, model), gradient(own, model))
    rest = torch.ones(12, 1, dtype=torch.float64).index_fill(0, some, 0)
    torch.testing.assert_close(reg(model, (at[0] + rest, at[1]), drawn=drawn), own)
    other = reg(model, at, drawn=(*directions, others))
    assert not torch.isclose(other, own)


def test_a_network_compiled_in_place_has_the_same_penalty():
    for name in ("chain", "stride"):
        model, at = made(name)
        reg = flatness(seed=1, every=1)
        drawn = copy.deepcopy(reg).draw(model, at, torch.Generator().manual_seed(0))
        alone = gradient(reg.objective(model, at, drawn=drawn), model)
        model.compile(backend="aot_eager")
        together = F.cross_entropy(model(at[0]), at[1]) + reg(model, at, outputs=model(at[0]), drawn=drawn)
        torch.testing.assert_close(gradient(together, model), alone)
        torch.testing.assert_close(gradient(reg.objective(model, at, drawn=drawn), model), alone)
        assert model._compiled_call_impl is not None
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["BatchNorm2d", "InstanceNorm1d", "LayerNorm"])
def test_normalisations_written_out_are_pytorchs_in_low_precision_too(name):
    make, shape = NORMS[name]
    x = 3 + torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            theirs, ours = make(), make()
            expected = theirs(x.to(dtype))
            with WrittenOut():
                found = ours(x.to(dtype))
        torch.testing.assert_close(found.float(), expected.float(), rtol=1e-2, atol=1e-2)
        for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)


def test_batchnorm_in_training_mode_works_under_autocast():
    torch.manual_seed(1)
    model, at = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)), batch(32, 5)
    at = at[0].float(), at[1]
    reg = flatness(strength=1.0, every=1)
    drawn, _ = parts(reg, model, at)
    expected = reg(model, at, drawn=drawn).item()
    with torch.autocast("cpu", torch.bfloat16):
        assert reg(model, at, drawn=drawn).item() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("closed", [True, False])
def test_targets_that_the_loss_ignores_and_that_are_no_classes_are_refused(closed, monkeypatch):
    if not closed:
        monkeypatch.setattr(chain, "chain_of", lambda *_, **__: None)
    model, (x, y) = made("chain")
    for wrong, message in ((-100, "-100, which cross_entropy ignores"), (9, "9"), (-1, "-1")):
        with pytest.raises((ValueError, IndexError), match=message):
            flatness(every=1)(model, (x, y.index_fill(0, torch.tensor([1]), wrong)))
    with pytest.raises(RuntimeError, match="dtype"):  # as cross_entropy itself
        flatness(every=1)(model, (x, y.float()))
    with pytest.raises(ValueError, match="at least 1 sample"):
        flatness(every=1)(model, (x[:0], y[:0]))
