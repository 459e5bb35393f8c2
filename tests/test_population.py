"""A population trains each member as if it were alone: the same numbers up to rounding, whoever else is there."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CLASSES, FEATURES, blobs, noisy_net, points, recipe, same
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import ASGD, LBFGS, SGD, Adagrad, Adam, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from landscope import train
from landscope.data import Data
from landscope.engine import Sizes, groups
from landscope.layers import GeneralizationLayer, Residual
from landscope.losses import squared_error
from landscope.models import mlp, residual_mlp
from landscope.optimizers import ASAM, GSAM, SAM
from landscope.population import advance, begin, checkpoint, evaluate, restore, state_of, structure_key
from landscope.population.layers import layers_of
from landscope.regularizers import flatness, path_norm, spectral_norm, weight_decay, weight_noise
from landscope.spec import Call, Recipe, call
from landscope.train import loss_below
from landscope.types import Batches


def many(seed: int, cache: Path | None, /) -> Data:
    """The blobs, more of them, in float64."""
    return _double(blobs(seed, cache))


def plenty(seed: int, cache: Path | None, /) -> Data:
    """More samples of few numbers each than fit a small batch."""
    inputs, labels = points(90, seed=seed)
    return Data(Batches(inputs.double(), labels), None, None, CLASSES, "classification")


def wide_mlp(shape: tuple[int, ...], outputs: int, /) -> nn.Module:
    return mlp(shape, outputs, widths=(17, 3)).double()


def _double(data: Data) -> Data:
    valid, test = (b and Batches(b.inputs.double(), b.targets) for b in (data.valid, data.test))
    train = Batches(data.train.inputs.double(), data.train.targets)
    return Data(train, valid, test, data.outputs, data.task)


def double_mlp(shape: tuple[int, ...], outputs: int, /, *, batchnorm: bool = False) -> nn.Module:
    return mlp(shape, outputs, widths=(6, 7), batchnorm=batchnorm).double()


def curious(shape: tuple[int, ...], outputs: int, /) -> nn.Module:
    """Every activation that is written out, nested chains, a layer without bias, odd widths."""
    inner = nn.Sequential(nn.Linear(5, 7, bias=False), nn.SiLU(), nn.BatchNorm1d(7, affine=False), nn.Sigmoid())
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0], 5), nn.Tanh(), inner, nn.Linear(7, outputs)).double()


def skips(shape: tuple[int, ...], outputs: int, /) -> nn.Module:
    """Skips around all that is written out, activations first and last, one inside another, one weighted."""
    first = Residual(nn.Sequential(nn.Tanh(), nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5)))
    second = Residual(nn.Sequential(nn.Linear(5, 5, bias=False), Residual(nn.Linear(5, 5)), nn.SiLU()))
    third = [GeneralizationLayer(5, nu=0.7), Residual(nn.BatchNorm1d(5)), nn.ReLU()]
    return nn.Sequential(nn.Linear(shape[0], 5), first, nn.ReLU(), second, *third, nn.Linear(5, outputs)).double()


class Skipping(nn.Module):
    """No chain: it goes through vmap."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(FEATURES, FEATURES), nn.BatchNorm1d(FEATURES)
        self.last = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x + torch.tanh(self.norm(self.first(x))))


def skipping(shape: tuple[int, ...], outputs: int, /) -> nn.Module:
    return Skipping().double()


def softened(seed: int, cache: Path | None, /) -> Data:
    """The blobs with probabilities of the classes for targets."""
    data = many(seed, cache)
    x, y = data.train.inputs, functional.one_hot(data.train.targets, CLASSES).double()
    return Data(Batches(x, 0.7 * y + 0.1), None, None, CLASSES, "classification")


def positions(seed: int, cache: Path | None, /) -> Data:
    """A number is to be given for each of several positions."""
    x = many(seed, cache).train.inputs[:20].reshape(10, 2, FEATURES)
    return Data(Batches(x, x.sum(2, keepdim=True).tanh()), None, None, 1, "regression")


def at_each_position(shape: tuple[int, ...], outputs: int, /) -> nn.Module:
    return nn.Sequential(nn.Linear(shape[-1], 4), nn.Tanh(), nn.Linear(4, outputs)).double()


def planes(shape: tuple[int, ...], outputs: int, /) -> nn.Module:
    """BatchNorm over planes, whose statistics are means of all batches so far."""
    inner = nn.Sequential(nn.Unflatten(1, (2, 2, 2)), nn.BatchNorm2d(2, momentum=None), nn.Flatten())
    return nn.Sequential(nn.Linear(shape[0], 8), inner, nn.Linear(8, outputs)).double()


def together(recipes: list[Recipe]) -> list[dict[str, Tensor]]:
    population = begin(recipes, [r.data(r.seed, None) for r in recipes])
    found: dict[int, dict[str, Tensor]] = {}
    for p in advance(population):
        found |= {k: state_of(p, k) for k in p.running if p.members[k].status != "running"}
    return [found[k] for k in range(len(recipes))]


def alone(r: Recipe) -> train.Training:
    training = train.begin(r, r.data(r.seed, None))
    for _ in train.advance(training):
        pass
    return training


def members(n: int = 3, **changed: Any) -> list[Recipe]:
    """In float64, with rates of their own."""
    settings = {"data": call(many), "model": call(double_mlp), "steps": 24} | changed
    optimizer: Call = settings.pop("optimizer", call(SGD, lr=0.05, momentum=0.9))
    rest = {name: value for name, value in optimizer.kwargs if name != "lr"}
    return [
        recipe(
            seed=s,
            optimizer=Call(optimizer.target, (("lr", optimizer["lr"] * (1 + 0.3 * s)), *rest.items())),
            **settings,
        )
        for s in range(n)
    ]


KINDS: dict[str, dict[str, Any]] = {
    "momentum": {"steps": 300},
    "cosine": {"schedule": call(CosineAnnealingLR, T_max=24)},
    "one cycle": {"schedule": call(OneCycleLR, max_lr=0.1, total_steps=24)},
    "full batch": {"batch_size": 1000},
    "long batches": {"data": call(plenty), "model": call(wide_mlp), "batch_size": 70, "steps": 12},
    "batchnorm": {"model": call(double_mlp, batchnorm=True)},
    "all layers": {"model": call(curious)},
    "squared error": {
        "loss": call(squared_error),
        "optimizer": call(SGD, lr=0.01, weight_decay=0.01, nesterov=True, momentum=0.5),
    },
    "skips": {"model": call(skips)},
    "no chain": {"model": call(skipping), "steps": 12},
    "adam": {"optimizer": call(Adam, lr=0.002)},
    "adamw": {"optimizer": call(AdamW, lr=0.002, amsgrad=True)},
    "averaged": {"optimizer": call(ASGD, lr=0.01)},
    "sam": {"optimizer": call(SAM, lr=0.05, momentum=0.9, rho=0.05), "model": call(double_mlp, batchnorm=True)},
    "sam, maximizing": {"optimizer": call(SAM, lr=0.01, rho=0.05, maximize=True), "steps": 5},
    "sam, no chain": {"optimizer": call(SAM, lr=0.05, rho=0.02), "model": call(skipping), "steps": 10},
    "asam": {"optimizer": call(ASAM, lr=0.05, momentum=0.9, rho=0.3), "model": call(double_mlp, batchnorm=True)},
    "asam, all": {"optimizer": call(ASAM, lr=0.05, rho=0.3, scope="all", eta=0.0), "steps": 10},
    "gsam": {
        "optimizer": call(GSAM, lr=0.05, rho=0.1, rho_min=0.02, lr_min=0.01, momentum=0.9),
        "schedule": call(CosineAnnealingLR, T_max=400),
    },
    "gsam, asam's ball": {"optimizer": call(GSAM, lr=0.05, rho=0.1, scope="matrices", eta=0.01), "steps": 10},
    "adagrad": {"optimizer": call(Adagrad, lr=0.02)},
    "soft targets": {"data": call(softened), "steps": 8},
    "positions": {"data": call(positions), "model": call(at_each_position), "loss": call(nn.MSELoss), "steps": 8},
    "planes": {"model": call(planes), "steps": 8},
    "penalties": {
        "model": call(double_mlp, batchnorm=True),
        "regularizers": (call(flatness, strength=1e-3, every=3), call(path_norm, strength=1e-4)),
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_member_is_what_it_would_be_alone(kind: str):
    recipes = members(**KINDS[kind])
    for r, state in zip(recipes, together(recipes), strict=True):
        expected = train.state_of(alone(r).model)
        assert state.keys() == expected.keys()
        for name, tensor in expected.items():
            error, size = float((state[name] - tensor).double().norm()), float(tensor.double().norm())
            assert error <= 1e-8 * max(size, 1e-3), name


def test_the_running_means_of_batchnorm_are_exact():
    for r, state in zip(*(lambda rs: (rs, together(rs)))(members(steps=10, model=call(curious))), strict=True):
        expected = train.state_of(alone(r).model)
        means = [name for name in expected if "running" in name or "tracked" in name]
        assert len(means) == 3
        for name in means:
            torch.testing.assert_close(state[name], expected[name], rtol=1e-12, atol=1e-14)


def test_in_single_precision_a_hundred_steps_agree_to_five_digits():
    recipes = [recipe(seed=s, steps=100, optimizer=call(SGD, lr=0.02)) for s in range(3)]
    for r, state in zip(recipes, together(recipes), strict=True):
        for name, tensor in train.state_of(alone(r).model).items():
            torch.testing.assert_close(state[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "kind", ["momentum", "long batches", "batchnorm", "all layers", "skips", "no chain", "adam", "squared error", "sam"]
)
@pytest.mark.parametrize("single", [False, True])
def test_eight_members_and_five_give_the_same_bits(kind: str, single: bool):
    recipes = members(8, **(KINDS[kind] | {"steps": 12}))
    if single:
        recipes = [as_single(r) for r in recipes]
    eight = together(recipes)
    for chosen in ([0, 1, 2, 3, 4], [7, 3, 5, 1, 6], [2]):
        assert same(together([recipes[i] for i in chosen]), [eight[i] for i in chosen]), chosen


def as_single(r: Recipe) -> Recipe:
    return replace(r, data=call(single_data, of=r.data), model=call(singly, of=r.model))


def single_data(seed: int, cache: Path | None, /, *, of: Call) -> Data:
    data = of(seed, cache)
    return replace(data, train=Batches(data.train.inputs.float(), data.train.targets), valid=None, test=None)


def singly(shape: tuple[int, ...], outputs: int, /, *, of: Call) -> nn.Module:
    return of(shape, outputs).float()


def test_members_stop_and_diverge_one_by_one():
    stops = [call(loss_below, level=level, every=4) for level in (0.8, 0.4, 0.1)]
    recipes = [recipe(seed=s, steps=200, stop=stop) for s, stop in enumerate(stops)]
    recipes += [recipe(seed=5, steps=n) for n in (0, 7, 33)]
    recipes += [recipe(seed=6, optimizer=call(SGD, lr=1e30, momentum=0.9))]
    population = begin(recipes, [r.data(r.seed, None) for r in recipes])
    checks: dict[int, list[float]] = {k: [] for k in range(len(recipes))}
    for p in advance(population):
        for k in p.running:
            loss = p.members[k].train_loss
            checks[k] += [loss] if loss is not None else []
    for k, (r, member) in enumerate(zip(recipes, population.members, strict=True)):
        expected = train.begin(r, r.data(r.seed, None))
        seen = [t.train_loss for t in train.advance(expected) if t.train_loss is not None]
        got = (member.status, member.step, member.reason, member.gradient_evaluations)
        assert got == (expected.status, expected.step, expected.reason, expected.gradient_evaluations)
        assert checks[k] == pytest.approx(seen, rel=1e-4)
    assert {m.status for m in population.members} == {"done", "diverged"}


def test_evaluation_is_that_of_each_alone():
    recipes = members(steps=10)
    population = begin(recipes, [r.data(r.seed, None) for r in recipes])
    for p in advance(population):
        if p.step == 10:
            for name in ("train", "valid", "test"):
                for k, found in evaluate(p, name).items():
                    t = alone(recipes[k])
                    assert found == pytest.approx(train.evaluate(t.model, t.loss, getattr(t.data, name)))


@pytest.mark.parametrize("kind", ["cosine", "batchnorm", "adam", "no chain", "penalties"])
def test_going_on_from_checkpoints_with_others_gives_the_same_bits(kind: str):
    recipes = members(4, **(KINDS[kind] | {"steps": 40}))
    whole, saved = begin(recipes, [r.data(r.seed, None) for r in recipes]), []
    ends = together(recipes)
    for p in advance(whole):
        if p.step == 20:
            saved = [checkpoint(p, k) for k in (3, 1)]
    later = begin([recipes[3], recipes[1]], [recipes[i].data(recipes[i].seed, None) for i in (3, 1)])
    restore(later, saved)
    for p in advance(later):
        if p.step == 40 and p.running:
            assert same([state_of(p, k) for k in p.running], [ends[3], ends[1]])
    assert [m.step for m in later.members] == [40, 40]


def shrinking(*, strength: float) -> Callable[..., Tensor]:
    return Shrinking(strength)


def undeclared(*, strength: float, probes: int) -> Callable[..., Tensor]:
    return Shrinking(strength * probes)


class Shrinking:
    """Shrinks noisy weights: with a strength of its own and random draws made outside."""

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def draw(self, model: nn.Module, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
        return torch.rand((), generator=generator, dtype=batch[0].dtype)

    def __call__(self, model: nn.Module, batch: tuple[Tensor, Tensor], *, drawn: Tensor) -> Tensor:
        return self.strength * drawn * sum(p.square().sum() for p in model.parameters())


def turned(inputs: Tensor, generator: torch.Generator, /) -> Tensor:
    return inputs + 0.1 * torch.randn(inputs.shape, generator=generator, dtype=inputs.dtype)


def test_regularizers_of_different_strength_and_augmentation_draw_as_alone():
    recipes = [
        recipe(
            seed=s,
            data=call(many),
            model=call(double_mlp),
            regularizers=(call(shrinking, strength=0.01 * s), call(flatness, strength=0.1 * s)),
            augmentation=call(turned),
        )
        for s in range(3)
    ]
    for r, state in zip(recipes, together(recipes), strict=True):
        for name, tensor in train.state_of(alone(r).model).items():
            torch.testing.assert_close(state[name], tensor, rtol=1e-8, atol=1e-10)


def test_what_cannot_be_stacked_is_refused_by_name():
    r = recipe()
    other = [
        ("model", recipe(model=call(mlp, widths=(6, 5)))),
        ("batch_size", recipe(batch_size=6)),
        ("optimizer", recipe(optimizer=call(Adam, lr=0.1))),
        ("loss", recipe(loss=call(squared_error))),
        ("optimizer", recipe(optimizer=call(SGD, lr=0.1, momentum=0.9, nesterov=True))),
        ("regularizers", recipe(regularizers=(call(shrinking, strength=0.1),))),
    ]
    for field, second in other:
        with pytest.raises(ValueError, match=f"members 0 and 1 cannot be stacked: they differ in {field}"):
            begin([r, second], [blobs(0, None)] * 2)
    with pytest.raises(ValueError, match="LBFGS has no update rule"):
        begin([recipe(optimizer=call(LBFGS, lr=0.1))], [blobs(0, None)])
    with pytest.raises(ValueError, match="at least one member"):
        begin([], [])
    small = blobs(0, None)
    cut = Data(Batches(small.train.inputs[:9], small.train.targets[:9]), None, None, CLASSES, "classification")
    with pytest.raises(
        ValueError, match=r"members 0 and 1 have data.train.inputs of different sizes \(\(23, 5\) .*\(9, 5\)"
    ):
        begin([r, recipe(seed=1)], [small, cut])


def tied(shape: tuple[int, ...], outputs: int, /) -> nn.Module:
    one = nn.Linear(shape[0], shape[0])
    return nn.Sequential(one, nn.ReLU(), one, nn.Linear(shape[0], outputs))


@pytest.mark.parametrize(
    ("model", "why"), [(tied, "parameters 0.weight and 2.weight are tied"), (noisy_net, "Dropout")]
)
def test_networks_that_cannot_be_stacked_are_refused_by_name_and_planned_alone(model: Any, why: str):
    r = recipe(model=call(model))
    with pytest.raises(ValueError, match=f"cannot be stacked: .*{why}.*train them alone"):
        begin([r], [blobs(0, None)])
    (group,) = groups([r], Sizes((FEATURES,), CLASSES, 23))
    assert group.executor == "solo"
    assert why in group.why


@pytest.mark.parametrize(("model", "name"), [(call(double_mlp, batchnorm=True), "2"), (call(skipping), "norm")])
def test_a_last_batch_of_one_sample_is_refused_under_batchnorm(model: Call, name: str):
    r = recipe(data=call(many), model=model, batch_size=11, steps=3)
    with pytest.raises(ValueError, match=f"BatchNorm {name} has one value a channel"):
        together([r])


def test_what_there_is_none_of_is_refused():
    data = blobs(0, None)
    with pytest.raises(ValueError, match="data has one entry for each of the 2 recipes, not 1"):
        begin([recipe(), recipe(seed=1)], [data])
    with pytest.raises(ValueError, match="starts has one entry for each of the 1 recipes, not 2"):
        begin([recipe()], [data], starts=[None, None])
    population = begin([recipe(), recipe(seed=1)], [data, data])
    with pytest.raises(LookupError, match="no set 'tset'; they have train, valid, test"):
        evaluate(population, "tset")
    for member in (5, -1):
        with pytest.raises(LookupError, match=f"no member {member}: they are numbered from 0 to 1"):
            state_of(population, member)


def test_clipping_is_named_where_it_is_the_reason():
    with pytest.raises(ValueError, match=r"the optimizer SAM clips gradients \(clip=\)"):
        begin([recipe(optimizer=call(SAM, lr=0.1, clip=1.0))], [blobs(0, None)])


def test_targets_that_the_loss_leaves_out_are_refused():
    data = blobs(0, None)
    data.train.targets[3] = -100
    with pytest.raises(ValueError, match=r"target -100 in data.train.*from 0 on"):
        begin([recipe()], [data])


def test_chains_are_recognised():
    assert layers_of(mlp((FEATURES,), CLASSES, batchnorm=True)) is not None
    assert layers_of(Skipping()) is None
    plain = nn.Sequential(nn.Linear(2, 2))
    assert layers_of(plain, 2) is not None
    assert layers_of(plain, 3) is None
    assert layers_of(nn.Sequential(nn.Flatten(), plain), 3) is not None
    assert layers_of(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.Linear(2, 2))) is None
    tied = nn.Linear(2, 2)
    assert layers_of(nn.Sequential(tied, nn.ReLU(), tied)) is None
    assert layers_of(nn.Sequential(tied, Residual(tied), nn.Linear(2, 2))) is None
    assert layers_of(nn.Sequential(plain, Residual(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Linear(2, 2))) is None
    assert layers_of(nn.Sequential(Residual(nn.Linear(2, 2)), nn.Linear(2, 2))) is None
    assert layers_of(residual_mlp((FEATURES,), CLASSES, width=3, depth=5, generalization=(1,))) is not None
    assert functional.cross_entropy is recipe().loss()


def remade(data: Data, change: Callable[[Tensor], Tensor]) -> Data:
    def sets(b: Batches) -> Batches:
        return Batches(change(b.inputs), change(b.targets))

    valid, test = (b and sets(b) for b in (data.valid, data.test))
    return replace(data, train=sets(data.train), valid=valid, test=test)


@pytest.mark.parametrize("batch_size", [8, 1000])
def test_data_that_members_share_are_held_once_and_change_no_bit(batch_size: int):
    recipes = [recipe(seed=s, batch_size=batch_size, steps=7 + s) for s in range(4)]
    data = blobs(0, None)
    same_place = remade(data, lambda t: t)
    ends: list[dict[int, dict[str, Tensor]]] = []
    for sets in ([data, data, same_place, data], [remade(data, torch.clone) for _ in recipes]):
        found: dict[int, dict[str, Tensor]] = {}
        population = begin(recipes, sets)
        for p in advance(population):
            found |= {k: state_of(p, k) for k in p.running}
            losses = evaluate(p, "train", p.running[-1:]) if p.running else {}
            found |= {-1 - k: {"loss": torch.tensor(value["loss"])} for k, value in losses.items()}
        shared = population.samples._whole("train")[0].stride(0) == 0
        assert shared == (sets[0] is sets[1])
        ends.append(found)
    assert ends[0].keys() == ends[1].keys()
    assert all(same([state], [ends[1][k]]) for k, state in ends[0].items())


def test_a_set_that_is_on_the_device_already_is_not_copied():
    batches = blobs(0, None).train
    assert batches.to("cpu") is batches
    assert batches.to("meta").inputs.device.type == "meta"


def test_members_with_a_schedule_and_without_are_what_they_are_alone():
    recipes = members(3, steps=24)
    schedules = (None, call(OneCycleLR, max_lr=0.1, total_steps=24), call(CosineAnnealingLR, T_max=24))
    for order in ((0, 1, 2), (1, 2, 0)):
        mixed = [replace(r, schedule=schedules[i]) for i, r in zip(order, recipes, strict=True)]
        for r, state in zip(mixed, together(mixed), strict=True):
            assert same(together([r]), [state])
            for name, tensor in train.state_of(alone(r).model).items():
                torch.testing.assert_close(state[name], tensor, rtol=1e-9, atol=1e-11)


def rooted(*, strength: float = 1.0, root: float = 2.0, power: int = 2) -> Callable[..., Tensor]:
    raise ValueError("not to be made")


rooted.stackable = ("strength", "root")  # pyright: ignore[reportFunctionMemberAccess]


@pytest.mark.parametrize(
    ("one", "other", "stacked"),
    [
        (call(shrinking, strength=0.1), call(shrinking, strength=0.2), True),
        (call(undeclared, strength=0.1, probes=1), call(undeclared, strength=0.2, probes=1), True),
        (call(undeclared, strength=0.1, probes=1), call(undeclared, strength=0.1, probes=2), False),
        (call(rooted, root=2.0), call(rooted, root=3.0), True),
        (call(rooted, power=2), call(rooted, power=3), False),
        (call(path_norm, strength=0.1), call(path_norm, strength=0.2), True),
        (call(path_norm, p=2.0), call(path_norm, p=4.0), False),
        (call(weight_noise, sd=0.1), call(weight_noise, sd=0.2), True),
    ],
)
def test_of_a_regularizer_only_what_it_names_may_differ(one: Call, other: Call, stacked: bool):
    first, second = (recipe(regularizers=(term,)) for term in (one, other))
    assert (structure_key(first) == structure_key(second)) == stacked
    if not stacked:
        with pytest.raises(ValueError, match="they differ in regularizers"):
            begin([first, second], [blobs(0, None)] * 2)


def test_a_regularizer_that_is_never_stacked_is_refused():
    r = recipe(regularizers=(call(spectral_norm),))
    assert groups([r], Sizes((FEATURES,), CLASSES, 23))[0].executor == "solo"
    with pytest.raises(ValueError, match="the regularizer spectral_norm is not known to be safe to stack"):
        begin([r], [blobs(0, None)])


@pytest.mark.parametrize(("outputs", "batch", "samples"), [(1, 64, 64), (3, 64, 65), (3, 32, 32)])
@pytest.mark.parametrize("regularized", [False, True])
def test_a_member_alone_has_the_bits_that_it_has_in_company(outputs: int, batch: int, samples: int, regularized: bool):
    """A product of a single pair of matrices goes another way than those of several."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(samples, 5, generator=generator), torch.randn(samples, outputs, generator=generator)
    data = Data(Batches(x, y), None, None, outputs, "regression")
    recipes = [
        replace(
            recipe(seed=s, steps=12 + s, batch_size=batch),
            model=call(mlp, widths=(7,)),
            loss=call(squared_error),
            regularizers=(call(weight_decay, strength=0.01),) if regularized else (),
        )
        for s in range(3)
    ]

    def ends(some: Sequence[int]) -> dict[int, dict[str, Tensor]]:
        found: dict[int, dict[str, Tensor]] = {}
        for population in advance(begin([recipes[s] for s in some], [data for _ in some])):
            found |= {some[k]: state_of(population, k) for k in population.running}
        return found

    together = ends([0, 1, 2])
    for s in range(3):
        assert same([ends([s])[s]], [together[s]])
