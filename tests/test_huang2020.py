"""The experiments on Huang et al. 2020: data, chains, statistics and verdicts on made-up results, and what is drawn."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import made, snapshot_of
from torch import nn

from landscope.data import find, rings, swiss_roll
from landscope.experiments import _huang2020 as shared
from landscope.experiments import huang2020_minefield as minefield
from landscope.experiments import huang2020_rings as pinched
from landscope.experiments import huang2020_volume as volume
from landscope.losses import cross_entropy
from landscope.measures.boundary import circular_boundary, input_margins
from landscope.measures.parts import performance_of_parts
from landscope.measures.weights import projected_weights
from landscope.models import seeded
from landscope.spec import At, Recipe, at, key, lineage
from landscope.stats import Untestable, judge
from landscope.types import Batches, Snapshot, Table

# --- data and networks ----------------------------------------------------------------------------------------------


def test_poison_is_wrongly_labelled_and_follows_the_clean_points():
    clean = swiss_roll(3, train=200, test=2000)
    for poison in (0, 60, 160):
        data = shared.poisoned_roll(3, None, poison=poison)
        assert data.train.n == 200 + poison
        assert torch.equal(data.train.inputs[:200], clean.train.inputs)
        assert data.valid is not None
        assert torch.equal(data.valid.targets, clean.train.targets)
        assert Counter(data.train.targets[200:].tolist()) == +Counter({0: poison // 2, 1: poison // 2})
    wrong = data.train.inputs[200:].double()
    angle, radius = torch.atan2(wrong[:, 1], -wrong[:, 0]), wrong.norm(dim=1)
    turns = (radius / 1.5 - angle) / (2 * math.pi)  # whole for class 0, half for class 1
    nearest = (2 * turns).round().long() % 2
    near = ((2 * turns) - (2 * turns).round()).abs() < 0.25
    assert (nearest != data.train.targets[200:])[near & (radius > 5)].double().mean() > 0.95


def test_the_minefield_is_the_published_one_with_its_poison_and_fresh_points():
    plain, flipped, true = (shared.minefield(1, None, poison=kind, fresh=100) for kind in shared.POISONED)
    assert plain.valid is not None
    assert (plain.train.n, plain.valid.n, flipped.train.n) == (132, 134, 266)
    assert torch.equal(flipped.train.inputs, true.train.inputs)
    assert torch.equal(flipped.train.inputs[132:], plain.valid.inputs)
    assert torch.equal(flipped.train.targets[132:], 1 - true.train.targets[132:])
    assert torch.equal(flipped.train.targets[:132], plain.train.targets)
    for data in (plain, flipped, true):
        assert data.test is not None
        assert data.test.n == 234
        r, angle = data.test.inputs.norm(dim=1), torch.atan2(data.test.inputs[:, 1], data.test.inputs[:, 0])
        along = (r / 5).square() - angle - math.pi * data.test.targets  # the angle's whole turns
        assert ((along / (2 * math.pi)) - (along / (2 * math.pi)).round()).abs().max() < 1e-3


@pytest.mark.parametrize("normal", [True, False])
def test_networks_begin_with_glorots_variance_and_no_bias(normal):
    with seeded(0):
        net = shared.glorot_mlp((200,), 100, widths=(300,), normal=normal)
    layers = [layer for layer in net if isinstance(layer, nn.Linear)]
    for layer in layers:
        assert not layer.bias.any()
        expected = (2 / (layer.in_features + layer.out_features)) ** 0.5
        assert layer.weight.std().item() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: shared.poisoned_roll(0, None, poison=3), "an even number, not 3"),
        (lambda: shared.minefield(0, None, poison="some"), "none, flipped, true"),
        (lambda: shared.minefield(0, None, fresh=3), "an even number, not 3"),
        (lambda: volume.claims("smoke", find("rings", Path())), "'swiss_roll' alone, not 'rings'"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- measures -------------------------------------------------------------------------------------------------------


def test_parts_of_a_set_are_its_first_samples_and_the_rest():
    model, (x, y) = made("mlp")
    snapshot = snapshot_of(model, (x, y))
    values = performance_of_parts(snapshot, train=9, test=23)
    with torch.no_grad():
        assert values["first_train_loss"] == pytest.approx(cross_entropy()(model(x[:9]), y[:9]).item())
        assert values["rest_train_accuracy"] == pytest.approx((model(x[9:]).argmax(1) == y[9:]).double().mean().item())
    assert "rest_test_loss" not in values
    assert performance_of_parts(snapshot) == {}
    with pytest.raises(ValueError, match="at least 1 sample"):
        performance_of_parts(snapshot, train=0)


def test_projected_weights_keep_distances():
    model, data = made("mlp")
    snapshot = snapshot_of(model, data)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    k = 4000
    values = projected_weights(snapshot, dimensions=k)
    moved = sum(
        float((p.detach() - (snapshot.start_state or {})[n]).square().sum())
        for n, p in model.named_parameters()
        if p.dim() > 1
    )
    kept = (values["projected_weights"] - values["projected_start"]).square().sum().item()
    assert abs(kept / moved - 1) < 4 * math.sqrt(2 / k)
    assert projected_weights(snapshot) == {}
    with pytest.raises(ValueError, match="at least 1"):
        projected_weights(snapshot, dimensions=0)


class Disk(nn.Module):
    """Class 1 outside a radius that may depend on the angle."""

    def __init__(self, radius: float, bulge: float = 0.0) -> None:
        super().__init__()
        self.radius, self.bulge = radius, bulge

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        edge = self.radius + self.bulge * (torch.atan2(x[:, 0], x[:, 1]) * 10).cos()
        score = x.norm(dim=1) - edge
        return torch.stack([-score, score], 1)


def on_rings(net: nn.Module, gap: float) -> Snapshot:
    data = rings(0, gap=gap)
    return Snapshot(net, {}, None, cross_entropy(), data.train, None, None, 0, 0)


@pytest.mark.parametrize(
    ("radius", "bulge", "gap", "circular", "separates"),
    [
        (0.6, 0.0, 0.4, 1, 1),
        (0.6, 0.15, 0.4, 1, 1),
        (0.6, 0.34, 0.4, 0, 0),
        (0.4005, 0.0, 0.001, 1, 1),
        (0.45, 0.0, 0.001, 1, 0),
        (0.5, 0.09, 0.001, 0, 0),
    ],
)
def test_circles_are_told_from_what_is_none(radius, bulge, gap, circular, separates):
    values = circular_boundary(on_rings(Disk(radius, bulge), gap))
    assert (values["circular"], values["separates_rings"]) == (circular, separates)
    assert values["inner_radius"] == pytest.approx(radius - bulge, abs=3e-3)
    assert values["outer_radius"] == pytest.approx(min(radius + bulge, 0.95), abs=3e-3)


def test_margins_are_distances_to_the_boundary():
    values = input_margins(on_rings(Disk(0.6), 0.4), directions=120)
    assert values["margin_median_class_0"] == pytest.approx(0.2, rel=0.07)
    assert values["margin_smallest"] == pytest.approx(0.2, rel=0.07)
    assert values["margin_median_class_1"] == pytest.approx(0.35, rel=0.07)
    assert values["margins_open"] == 0
    assert input_margins(on_rings(Disk(0.1), 0.4))["margin_median_class_0"] == 0
    alone = input_margins(on_rings(Disk(99.0), 0.4), farthest=3.0)
    assert alone["margins_open"] == 40
    assert alone["margin_median_class_0"] == 3.0


def test_measures_of_boundaries_have_nothing_to_say_of_other_networks():
    snapshot = snapshot_of(*made("mlp"))
    assert circular_boundary(snapshot) == {}
    assert input_margins(snapshot) == {}
    three = on_rings(nn.Linear(2, 3), 0.4)
    assert circular_boundary(three) == {}
    mixed = Batches(torch.tensor([[1.0, 0.0], [0.0, 0.5]]), torch.tensor([0, 1]))
    inside_out = Snapshot(Disk(0.6), {}, None, cross_entropy(), mixed, None, None, 0, 0)
    assert circular_boundary(inside_out) == {}
    refused: tuple[dict[str, Any], ...] = ({"angles": 0}, {"steps": 1}, {"slack": -1.0})
    for wrong in refused:
        with pytest.raises(ValueError, match="are needed"):
            circular_boundary(three, **wrong)
    with pytest.raises(ValueError, match="directions >= 4"):
        input_margins(three, directions=3)


# --- grids ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    place = tmp_path_factory.mktemp("none")
    return {name: find(name, place) for name in ("swiss_roll", "minefield", "rings")}


def test_every_iterate_of_a_trajectory_begins_a_poisoned_run(sources):
    runs = minefield.published("laptop", sources["minefield"], [0])
    trajectory, bad = runs[0], runs[1:]
    assert len(bad) == 25
    assert trajectory.steps == 2_000 * 5
    steps = [r.start["source"].step for r in bad if r.start is not None]
    assert steps == [5 * epoch for epoch in range(1, 2_000, 80)]
    assert all(r.start is not None and r.start["source"] == at(trajectory, s) for r, s in zip(bad, steps, strict=True))
    assert {(r.steps, r.batch_size, r.seed) for r in bad} == {(40_000, 266, 0)}
    assert len(minefield.published("paper", sources["minefield"], [0])) == 201
    known = minefield.true_labels("laptop", sources["minefield"], [0])
    assert key(known[0]) == key(trajectory)


def test_the_circle_is_taught_step_by_step(sources):
    (found, taught) = pinched.published("laptop", sources["rings"], [0])
    assert found.start is None
    chain = [recipe for recipe, _ in lineage([taught]).values()]
    assert [recipe.data["gap"] for recipe in chain] == [0.1, 0.03, 0.01, 0.003, 0.001, 0.001]
    assert [recipe.data["train"] for recipe in chain] == [1_300] * 5 + [130]
    assert isinstance(taught.start, type(found.data))
    assert isinstance(taught.start["source"], At)
    assert sum(p.numel() for p in found.model((2,), 2).parameters()) == 81_302


def test_every_amount_of_poison_has_a_run_and_the_controls_share_what_they_can(sources):
    of = volume.SCALES["laptop"]
    assert len(of.poison) == 12  # fewer configurations would only be described
    runs = {name: p.grid("laptop", sources["swiss_roll"], [0]) for name, p in volume.RUNS.items()}
    assert [r.data["poison"] for r in runs["published"]] == list(of.poison)
    assert of.judged in of.poison
    shared_key = {key(r) for r in runs["equal training loss"]} & {key(r) for r in runs["positive control"]}
    assert len(shared_key) == 1
    assert all(r.stop is not None and r.stop["every"] == 1 for r in runs["equal training loss"])


# --- statistics and verdicts on made-up results ---------------------------------------------------------------------


def volumes(seeds=12, *, effect=-0.5, rays=1.0, fits=1.0, height=0.1, poison=volume.LEVELS):
    """Results of the published protocol in which E[ln r] falls by ``effect`` from no poison to the most."""
    random, rows = np.random.default_rng(0), []
    for seed in range(seeds):
        for k in poison:
            share = k / max(poison)
            log_radius = effect * share + random.normal(0, 0.02)
            row: dict[str, Any] = {"protocol": "published", "status": "done", "seed": seed, "data.poison": k}
            row |= {"run": f"{seed}-{k}", "first_train_accuracy": fits, "test_accuracy": 0.97 - 0.4 * share}
            for kind in ("identity", "filter", "low_rank"):
                good = height > 0
                for name in ("mean_log_volume", "log_volume", "log_prior_mass"):
                    row[f"{kind}_{name}"] = (3488 * log_radius if good else math.nan, 3488.0 * (log_radius + 1))
                row |= {f"{kind}_cutoffs": (0.1, 0.5), f"{kind}_coordinates": 3488.0}
                row |= {f"{kind}_effective_rays": (rays, rays), f"{kind}_log10_volume": (1.0, 2.0)}
                row |= {f"{kind}_radius_{end}": (size, size) for end, size in zip(ENDS, (1.0, 0.5, 2.0), strict=True)}
            rows.append(row)
    return Table.of(rows)


ENDS = ("mean", "smallest", "largest")


def words(experiment: Any, scale: str, source: Any, table: Table) -> dict[str, Any]:
    claims = [claim for claim in experiment.claims(scale, source) if not claim.positive]
    return {v.claim.text: v for v in judge(claims, {"published": table}, experiment.EXPERIMENT.seeds[scale])}


def test_the_ratio_of_radii_is_judged_and_that_of_volumes_is_not(sources):
    verdicts = list(words(volume, "laptop", sources["swiss_roll"], volumes()).values())
    radius, order, ratio = verdicts[:3]
    assert (radius.word, order.word, ratio.word) == ("supported", "supported", "inconclusive")
    assert radius.effect == pytest.approx(-0.2, abs=0.03)  # from none to 80 of 200
    assert radius.extra["difference in nats"] == pytest.approx(3488 * radius.effect)
    assert "1 effective rays" in ratio.sentence
    assert math.isinf(ratio.high or 0)
    assert all(v.word == "exploratory" for v in verdicts[3:])
    assert volume.volume_ratio(volumes(rays=25.0), over="data.poison", first=80.0, second=0.0).draws is None
    turned = volume.radius_ratio(volumes(effect=0.5), over="data.poison", first=80.0, second=0.0)
    assert turned.interval()[0] > 0


def test_networks_that_do_not_fit_or_have_no_basin_are_left_out_and_said(sources):
    bads: tuple[dict[str, Any], ...] = ({"fits": 0.99}, {"height": -0.1})
    for bad in bads:
        radius, order, *_ = words(volume, "laptop", sources["swiss_roll"], volumes(**bad)).values()
        assert radius.word == "descriptive"
        assert "0 seeds" in radius.reason
        assert order.word == "descriptive"
    rows = volumes().rows()
    rows[0]["first_train_accuracy"] = 0.9
    units = volume.radius_ratio(Table.of(rows), over="data.poison", first=80.0, second=0.0)
    assert units.n == 11
    assert "1 seed left out because a run does not reach fits 1" in units.note


def mined(seeds=8, *, train=1.0, test=0.5, fresh=0.5, far=3.0):
    rows = []
    for seed in range(seeds):
        own: dict[str, Any] = {"protocol": "published", "status": "done", "seed": seed, "run": f"{seed}"}
        scores = {"first_train_accuracy": 1.0, "first_test_accuracy": 0.985, "rest_test_accuracy": 0.98}
        rows.append(own | scores | {"distance_moved": 20.0})
        for epoch in range(1, 2_000, 50):
            found = {"first_train_accuracy": train, "first_test_accuracy": test, "rest_test_accuracy": fresh}
            places = np.random.default_rng(epoch).normal(size=(2, 6))
            found |= {"projected_start": tuple(places[0]), "projected_weights": tuple(places[1])}
            more = {"start": "resumed", "start.source": f"{seed}@{5 * epoch}", "run": f"{seed}-{epoch}"}
            rows.append(own | found | more | {"distance_moved": far})
    return Table.of(rows)


def test_every_iterate_must_have_its_bad_minimum(sources):
    source = sources["minefield"]
    whole, near, end = words(minefield, "laptop", source, mined()).values()
    assert whole.word == "supported"
    assert near.effect == pytest.approx(math.log(3 / 20))
    assert end.effect == pytest.approx(0.985)
    wrongs: tuple[dict[str, Any], ...] = ({"train": 0.95}, {"test": 0.6}, {"fresh": 0.7})
    for wrong in wrongs:
        assert next(iter(words(minefield, "laptop", source, mined(**wrong)).values())).word == "contradicted"
    rows = mined().rows()
    rows[7] = rows[7] | {"status": "diverged", **{k: None for k in rows[7] if "accuracy" in k}}
    with_one = next(iter(words(minefield, "laptop", source, Table.of(rows)).values()))
    assert with_one.word == "inconclusive"  # a run that diverged found no minimum
    few = next(iter(words(minefield, "laptop", source, Table.of(mined().rows()[:-1])).values()))
    assert few.word == "not testable"
    with pytest.raises(Untestable, match="no run from an iterate"):
        minefield.worst_iterate(
            mined(1).where(run="0"), value="first_train_accuracy", worst="min", diverged=0.5, samples=132
        )


def ringed(seeds=10, *, circular=0.0, accuracy=1.0, margin=0.05):
    rows = []
    for seed in range(seeds):
        for taught in (False, True):
            row: dict[str, Any] = {"protocol": "published", "status": "done", "seed": seed, "run": f"{seed}-{taught}"}
            row |= {"train_accuracy": accuracy, "circular": float(taught) or circular, "data.gap": 0.001}
            row |= {"margin_median_class_0": 0.0005 if taught else margin, "inner_radius": 0.4, "outer_radius": 0.7}
            row |= {"identity_mean_log_radius": (-1.0 - taught,), "identity_radius_mean": (0.3,)}
            rows.append(row | ({"start": "resumed"} if taught else {"start": None}))
    return Table.of(rows)


def test_circles_that_are_not_found_are_told_from_those_that_are(sources):
    source = sources["rings"]
    found, margin, basin, nearer = words(pinched, "laptop", source, ringed()).values()
    assert (found.word, margin.word) == ("supported", "supported")
    assert margin.effect == pytest.approx(math.log(100))
    assert (basin.effect, nearer.effect) == (-1.0, pytest.approx(-math.log(100)))
    circles = words(pinched, "laptop", source, ringed(circular=1.0)).values()
    assert next(iter(circles)).word == "contradicted"
    unfit = next(iter(words(pinched, "laptop", source, ringed(accuracy=0.99)).values()))
    assert unfit.word == "descriptive"
    assert "10 of 10 networks do not fit" in pinched.circular_share(ringed(accuracy=0.99)).note


# --- figures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("experiment", "table", "names"),
    [
        (volume, volumes(2), ["radius", "volume", "effective-rays"]),
        (volume, volumes(2, height=-0.1), ["radius", "volume", "effective-rays"]),
        (minefield, mined(1), ["minefield", "accuracies", "distances"]),
        (pinched, ringed(2), ["circles", "margins"]),
        (pinched, ringed(2, accuracy=0.5), []),
    ],
)
def test_figures_say_what_they_find(experiment, table, names):
    drawn = experiment.draw(table, Table.of([]))
    assert [figure.name for figure in drawn] == names
    for figure in drawn:
        assert "nan" not in figure.finding
        assert len(figure.table()) > 0


def test_recipes_are_recipes(sources):
    for experiment, name in ((volume, "swiss_roll"), (minefield, "minefield"), (pinched, "rings")):
        for protocol in experiment.RUNS.values():
            runs = protocol.grid("smoke", sources[name], [0, 1])
            assert all(isinstance(run, Recipe) for run in runs)
            assert len({key(run) for run in runs}) == len(runs)
