"""Huang et al.'s networks against a linear model: what is trained, how settings are chosen, verdicts, figures."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from landscope.data import Source, find
from landscope.data.stored import images
from landscope.experiments import _huang2020_linear as shared
from landscope.experiments import huang2020_linear_vs_net as pair
from landscope.experiments import huang2020_optimizers as many
from landscope.experiments._tuning import chosen
from landscope.losses import cross_entropy
from landscope.spec import Recipe, call, key
from landscope.stats import Untestable, judge
from landscope.store.tables import settings
from landscope.train import advance, begin, evaluate
from landscope.types import Table

CIFAR = Source("cifar10", call(images, content="0" * 16), (3, 32, 32), 10, "classification", 50_000, 10_000, "0" * 16)
SIGNALS = find("mnist1d", Path())
BOTH = (pair, many)

# --- networks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "settings_", "size"),
    [((40,), {}, 320), ((3, 32, 32), {"shrink": 2, "channels": 4}, 64), ((1, 9, 8), {}, 64)],
)
def test_small_networks_pool_down_to_a_linear_layer(shape, settings_, size):
    net = shared.small_vgg(shape, 7, **settings_)
    assert [m.in_features for m in net if isinstance(m, nn.Linear)] == [size]
    assert net(torch.randn(5, *shape)).shape == (5, 7)


def test_shrunk_networks_see_the_means_of_neighbours():
    net = shared.shrunk((1, 4, 4), 3, model=call(shared.small_vgg, channels=2, stages=1))
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert net[0](x).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert net(x).shape == (1, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: shared.small_vgg((7,), 2), "at least 8 long on every side, not"),
        (lambda: shared.small_vgg((1, 2, 3, 4), 2), r"signals \(length,\)"),
        (lambda: shared.shrunk((40,), 2, model=call(shared.small_vgg)), "takes images"),
        (lambda: pair.setup("laptop", find("digits", Path())), "give mnist1d, or images such as cifar10"),
        (lambda: many.setup("paper", SIGNALS), "give cifar10"),
        (lambda: many.setup("laptop", find("noisy_polynomial", Path())), "noisy_polynomial has no classes"),
        (
            lambda: pair.setup("laptop", Source("few", CIFAR.call, (1, 28, 28), 10, "classification", 900, 9)),
            "a larger",
        ),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_keeps_gradients_from_being_subnormal_keeps_all_else():
    """The gradient at the outputs is that of cross-entropy, but where that is too small to be a normal number."""
    outputs = torch.tensor([[0.0, 95.0, 3.0], [1.0, 0.0, 2.0]], requires_grad=True)
    plain = torch.autograd.grad(cross_entropy()(outputs, torch.tensor([1, 2])), outputs)[0]
    assert 0 < plain[0, 0] < torch.finfo(torch.float32).tiny
    term = shared.no_subnormal_gradients()
    value = cross_entropy()(outputs, torch.tensor([1, 2])) + term(nn.Identity(), (outputs, outputs), outputs=outputs)
    found = torch.autograd.grad(value, outputs)[0]
    assert found[0, 0] > torch.finfo(torch.float32).tiny
    assert torch.equal(found[1], plain[1])
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-29)


# --- grids ----------------------------------------------------------------------------------------------------------


SCALES = (("smoke", SIGNALS), ("smoke", CIFAR), ("laptop", SIGNALS), ("laptop", CIFAR), ("paper", CIFAR))


@pytest.mark.parametrize("experiment", BOTH)
@pytest.mark.parametrize(("scale", "data"), SCALES)
def test_every_arm_has_as_many_settings(experiment, scale, data):
    runs = {name: p.grid(scale, data, [0]) for name, p in experiment.RUNS.items()}
    for recipes in runs.values():
        assert all(isinstance(recipe, Recipe) for recipe in recipes)
        assert len({key(recipe) for recipe in recipes}) == len(recipes)
    counts: dict[str, int] = {}
    for recipe in runs["equally tuned"]:
        name = shared.arm(settings(recipe))
        counts[name] = counts.get(name, 0) + 1
    if scale != "smoke":
        assert len(set(counts.values())) == 1
    wanted = {shared.LINEAR, pair.NETWORK} if experiment is pair else {shared.LINEAR, *many.METHODS}
    assert set(counts) == wanted
    if scale != "paper" or experiment is many:  # the published settings are one of those that are chosen of
        assert {key(r) for r in runs["published"]} < {key(r) for r in runs["equally tuned"]}


def test_the_published_settings_are_the_codes():
    """Reference: the published script's lines for VGG-13 on CIFAR-10, 150 epochs in batches of 128."""
    own = {shared.arm(settings(r)): r for r in many.published("paper", CIFAR, [0])}
    per_epoch = -(-45_000 // 128)
    assert {own[name].steps for name in own if name not in (shared.LINEAR, "LBFGS", "SAM", "EntropySGD")} == {
        150 * per_epoch
    }
    assert own[shared.LINEAR].steps == 1_000 * per_epoch
    rates = {name: own[name].optimizer["lr"] for name in many.PUBLISHED}
    assert rates == {
        "momentum": 0.01, "SGD": 0.05, "Nesterov": 0.01, "Adam": 0.01, "Adadelta": 5.0, "Adagrad": 0.025,
        "Adamax": 0.0005, "ASGD": 0.1, "RMSprop": 0.0005, "AMSGrad": 0.0005, "LBFGS": 0.9, "ProxProp": 0.001,
    }  # fmt: skip
    assert own["momentum"].optimizer["momentum"] == 0.9
    assert own["ProxProp"].optimizer["tau"] == 0.5
    assert all((r.augmentation is None) == (name == shared.LINEAR) for name, r in own.items())
    net = own["SGD"].model((3, 32, 32), 10)
    assert sum(isinstance(m, nn.Conv2d) for m in net.modules()) == 10
    linear, residual = pair.published("paper", CIFAR, [0])
    assert linear.steps == residual.steps == 1_000 * per_epoch
    assert linear.optimizer == residual.optimizer
    assert sum(p.numel() for p in linear.model((3, 32, 32), 1).parameters()) == 298_369
    small = pair.in_words("paper", CIFAR, [0])[1]
    assert sum(p.numel() for p in small.model((3, 32, 32), 10).parameters()) == 269_722


def test_everyone_gets_as_many_gradients():
    of = many.setup("smoke", SIGNALS)
    for name, method in many.METHODS.items():
        recipe = many.trained_by(of, SIGNALS, 10_000, method)
        *_, training = advance(begin(recipe, recipe.data(10_000, None)))
        assert training.status == "done"
        assert training.gradient_evaluations == of.gradients, name


def test_the_linear_model_fits_in_the_steps_that_it_has():
    """Of the smoke scale: 861 features, 64 samples."""
    recipe = many.linear(many.SMOKE, SIGNALS, 10_000)
    data = recipe.data(10_000, None)
    *_, training = advance(begin(recipe, data))
    assert evaluate(training.model, training.loss, data.train)["accuracy"] == 1


# --- choosing and judging -------------------------------------------------------------------------------------------


@functools.cache
def planned(experiment, protocol, seeds):
    recipes = experiment.RUNS[protocol].grid("laptop", SIGNALS, range(seeds))
    return [(recipe.seed, settings(recipe)) for recipe in recipes]


def made_up(experiment, protocol="published", *, change=lambda row: row, gap=0.3, seeds=8):
    """A row for every run, as the store would give it; the linear model at 0.4, networks ahead by the gap."""
    rows, random = [], np.random.default_rng(0)
    for n, (seed, of_recipe) in enumerate(planned(experiment, protocol, seeds)):
        row = of_recipe | {"seed": seed, "run": f"{n}", "status": "done", "protocol": protocol}
        ahead = 0.0 if shared.arm(row) == shared.LINEAR else gap
        share = 0.4 + ahead - 0.2 * row["data.label_noise"] + random.normal(0, 0.005)
        share = 0.1 + random.normal(0, 0.005) if row["data.label_noise"] == 1 else share
        values = {"train_accuracy": 1.0, "valid_accuracy": share, "valid_loss": 1.0, "test_accuracy": share}
        rows.append(change(row | values))
    return Table.of(rows)


def verdict(experiment, table):
    return judge([c for c in experiment.claims("laptop", SIGNALS) if not c.positive], {"published": table}, 8)[0]


@pytest.mark.parametrize("experiment", BOTH)
@pytest.mark.parametrize("protocol", ["published", "equally tuned"])
def test_networks_that_are_ahead_are_found_ahead(experiment, protocol):
    assert verdict(experiment, made_up(experiment, protocol)).word == "supported"
    assert verdict(experiment, made_up(experiment, protocol, gap=-0.1)).word == "contradicted"


def test_one_optimizer_that_is_behind_is_enough():
    def behind(row: dict[str, Any]) -> dict[str, Any]:
        return row | ({"test_accuracy": 0.3} if shared.arm(row) == "Adagrad" else {})

    found = verdict(many, made_up(many, change=behind))
    assert found.word == "contradicted"
    assert [p.claim.text.split()[0] for p in found.parts if p.effect is not None and p.effect < 0] == ["Adagrad"]


@pytest.mark.parametrize("experiment", BOTH)
def test_a_linear_model_that_does_not_fit_gives_no_verdict(experiment):
    def unfit(row: dict[str, Any]) -> dict[str, Any]:
        return row | ({"train_accuracy": 0.98} if shared.arm(row) == shared.LINEAR else {})

    found = verdict(experiment, made_up(experiment, change=unfit))
    assert found.word == "descriptive"
    assert "0 seeds are too few" in found.reason


def test_a_network_that_does_not_fit_counts_among_optimizers_and_not_beside_a_model_that_fits():
    def unfit(row: dict[str, Any]) -> dict[str, Any]:
        return row | ({"train_accuracy": 0.9} if shared.arm(row) == "momentum" else {})

    assert verdict(many, made_up(many, change=unfit)).word == "supported"
    assert verdict(pair, made_up(pair, change=unfit)).word == "descriptive"


def test_the_linear_model_is_chosen_among_its_runs_that_fit():
    def early(row: dict[str, Any]) -> dict[str, Any]:
        stopped = shared.arm(row) == shared.LINEAR and row["optimizer.lr"] == 0.001
        better = {"train_accuracy": 0.8, "valid_accuracy": 0.9, "test_accuracy": 0.9}
        return row | (better if stopped else {})

    table = made_up(many, "equally tuned", change=early)
    fitted = shared.tuned(table, shared.LINEAR, fitted=True)
    assert {row["optimizer.lr"] for row in fitted} <= {0.1, 0.01}
    assert {row["optimizer.lr"] for row in shared.tuned(table, shared.LINEAR)} == {0.001}
    told = {c.text: c for c in many.claims("laptop", SIGNALS)}
    free = next(c for text, c in told.items() if "whether or not that fits" in text)
    assert free.statistic is not None
    assert free.statistic(table).mean < -0.1
    assert free.statistic(made_up(many, "equally tuned")).mean == pytest.approx(0.3, abs=0.03)


def test_runs_that_diverged_count_as_chance_where_nothing_else_is_to_choose():
    def lost(row: dict[str, Any]) -> dict[str, Any]:
        gone = dict.fromkeys(("train_accuracy", "valid_accuracy", "valid_loss", "test_accuracy")) | {
            "status": "diverged"
        }
        return row | (gone if row["optimizer.lr"] in (20.0, 5.0, 1.25) and row["seed"] == 0 else {})

    table = made_up(many, change=lost)
    units = shared.tuned_difference(table, first="Adadelta", second=shared.LINEAR, worst=0.1)
    assert units.values[0] == pytest.approx(0.1 - 0.4, abs=0.02)
    assert verdict(many, table).word != "supported"
    with pytest.raises(Untestable, match="no finished runs of the arm 'SAM'"):
        shared.tuned_difference(made_up(pair), first="SAM", second=shared.LINEAR)


def test_a_seed_without_one_of_its_settings_is_left_out():
    rows = made_up(many, "equally tuned").rows()
    whole = [row for row in rows if shared.arm(row) == "Adam"]
    assert len(chosen(whole)) == 8
    assert [row["seed"] for row in chosen(whole[1:])] == list(range(1, 8))
    assert verdict(many, Table.of(row for row in rows if row is not whole[0])).word == "not testable"


@pytest.mark.parametrize("experiment", BOTH)
def test_known_answers_are_found(experiment):
    known = [c for c in experiment.claims("laptop", SIGNALS) if c.positive]
    found = judge(known, {"positive control": made_up(experiment, "positive control")}, 8)
    assert [v.word for v in found] == ["supported", "supported"]


@pytest.mark.parametrize("experiment", BOTH)
def test_figures_say_what_they_find(experiment):
    rows = [row for name in experiment.RUNS for row in made_up(experiment, name, seeds=2).rows()]
    drawn = experiment.draw(Table.of(rows), Table.of([]))
    assert [figure.name for figure in drawn] == ["test", "fit", "rates"]
    for figure in drawn:
        assert "nan" not in figure.finding
        assert "positive" not in figure.finding
        assert len(figure.table()) > 0
    assert experiment.draw(Table.of([]), Table.of([])) == []
