"""Flat and sharp minima of Huang et al. 2020: pictures as numbers, grids, verdicts on made-up results, figures."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from cases import made, snapshot_of
from torch import nn

from landscope.data import find
from landscope.experiments import _huang2020 as shared
from landscope.experiments import huang2020_flat_and_sharp as roll
from landscope.experiments import huang2020_surfaces as images
from landscope.experiments import huang2020_volume as volume
from landscope.figures import contour
from landscope.losses import cross_entropy, squared_error
from landscope.measures.boundary import input_margins
from landscope.measures.maps import classes_of, decision_map, loss_plane, loss_rays
from landscope.measures.outcomes import performance
from landscope.measures.parts import on_first
from landscope.models import resnet, seeded
from landscope.regularizers import poisoned_cross_entropy
from landscope.spec import Recipe, call, key
from landscope.stats import judge
from landscope.types import Batches, Snapshot, Table

# --- lines of equal height ------------------------------------------------------------------------------------------


def test_a_circle_is_one_closed_line():
    axis = np.linspace(-2, 2, 81)
    height = np.hypot(*np.meshgrid(axis, axis, indexing="ij"))
    x, y = contour(axis, axis, height, 1.0)
    assert not np.isnan(x).any()
    assert (x[0], y[0]) == (x[-1], y[-1])
    assert np.hypot(x, y) == pytest.approx(1.0, abs=1e-3)
    length = np.hypot(np.diff(x), np.diff(y)).sum()
    assert length == pytest.approx(2 * math.pi, rel=1e-2)


def test_lines_end_at_gaps_and_edges_and_are_separated():
    axis = np.linspace(-2, 2, 81)
    height = np.hypot(*np.meshgrid(axis, axis, indexing="ij"))
    height[40, :] = np.nan
    x, y = contour(axis, axis, height, 1.0)
    assert np.isnan(x).sum() == np.isnan(y).sum() == 1  # two halves
    assert np.nanmin(np.abs(x)) == pytest.approx(axis[41])
    edge, _ = contour(np.arange(3.0), np.arange(3.0), np.tile([[0.0], [1.0], [2.0]], 3), 1.5)
    assert edge == pytest.approx(np.full(5, 1.5))
    assert len(contour(axis, axis, np.zeros((81, 81)), 1.0)[0]) == 0
    with pytest.raises(ValueError, match="as many values, not"):
        contour(axis, axis[:3], height, 1.0)


# --- measures -------------------------------------------------------------------------------------------------------


class Islands(nn.Module):
    """Class 1 within a radius of some places; a weight scales the radius."""

    def __init__(self, radius: float, places: tuple[tuple[float, float], ...]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[radius]]))
        self.register_buffer("places", torch.tensor(places))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        near = torch.cdist(x.float(), self.get_buffer("places")).amin(1)
        score = self.weight[0, 0] - near
        return torch.stack([-score, score], 1)


def on_square(net: nn.Module) -> Snapshot:
    inputs = torch.tensor([[0.0, 0.0], [2.0, 0.0], [-2.0, 0.0], [0.0, 3.0]])
    return Snapshot(net, {}, None, cross_entropy(), Batches(inputs, torch.tensor([1, 0, 0, 0])), None, None, 0, 7)


def picture(net: nn.Module, **settings: Any) -> dict[str, Any]:
    return dict(decision_map(on_square(net), **settings))


def test_islands_are_counted_and_their_shores_measured():
    three = picture(Islands(0.5, ((0.0, 0.0), (2.0, 2.0), (-2.5, 1.0))), points=201, span=4.0)
    assert three["map_regions"].tolist() == [4]
    one = picture(Islands(1.01, ((0.0, 0.0),)), points=201, span=4.0)
    assert one["map_regions"].tolist() == [2]
    assert one["map_boundary_length"][0] == pytest.approx(8.08, rel=0.03)  # of the square around it: sides of cells
    assert one["map_train_accuracy"].tolist() == [1.0]
    classes, axis = classes_of(one["map_codes"][0].numpy(), 201), np.linspace(-4, 4, 201)
    assert np.array_equal(classes, np.hypot(axis[:, None], axis) < 1.01)
    x, y = contour(axis, axis, classes, 0.5)
    assert np.hypot(x, y) == pytest.approx(1.01, abs=0.04)


def test_frames_move_the_weights_and_the_middle_one_does_not():
    found = picture(Islands(1.0, ((0.0, 0.0),)), points=81, span=4.0, frames=3, reach=0.5)
    assert found["map_offsets"].tolist() == [-0.5, 0.0, 0.5]
    lengths = sorted(found["map_boundary_length"].tolist())
    assert lengths == pytest.approx([4.0, 8.0, 12.0], rel=0.1)  # radii 0.5, 1 and 1.5, whichever way
    assert found["map_boundary_length"][1] == lengths[1]


def test_planes_and_rays_of_a_parabola_are_known():
    with seeded(0):
        net = nn.Linear(3, 1, bias=False)
    weights = net.weight.detach().double()
    data = Batches(torch.eye(3), (weights.T).float())
    snapshot = Snapshot(net, net.state_dict(), None, squared_error(), data, None, None, 0, 3)
    norm = float(weights.square().sum()) / 3  # of the one filter: the mean loss is t²·norm at distance t
    rays = loss_rays(snapshot, rays=3, points=5, reach=2.0, power=2.0)
    assert rays["rays_distances"].tolist() == [0.0, 0.125, 0.5, 1.125, 2.0]
    assert rays["rays_train_loss"].shape == (3, 5)
    for ray in rays["rays_train_loss"]:
        assert ray.numpy() == pytest.approx(norm * rays["rays_distances"].square().numpy(), rel=1e-4, abs=1e-9)
    plane = loss_plane(snapshot, points=5, reach=1.0)
    a = plane["plane_positions"]
    expected = norm * (a[:, None].square() + a.square())
    assert plane["plane_train_loss"].numpy() == pytest.approx(expected.numpy(), rel=1e-4, abs=1e-9)


def test_on_first_measures_the_first_samples_alone():
    model, (x, y) = made("mlp")
    snapshot = snapshot_of(model, (x, y))
    first = on_first(snapshot, measure=call(performance), samples=9)
    with torch.no_grad():
        assert first["train_loss"] == pytest.approx(cross_entropy()(model(x[:9]), y[:9]).item())
    assert on_first(snapshot, measure=call(performance), samples=10**6) == performance(snapshot)
    assert on_first(snapshot) == {}
    with pytest.raises(ValueError, match="at least 1 sample"):
        on_first(snapshot, measure=call(performance), samples=0)


def test_pictures_are_off_by_default_and_of_networks_that_have_them():
    snapshot = snapshot_of(*made("mlp"))
    assert (decision_map(snapshot), loss_plane(snapshot), loss_rays(snapshot)) == ({}, {}, {})
    assert decision_map(snapshot, points=5) == {}
    assert decision_map(on_square(nn.Linear(2, 3)), points=5) == {}
    flat = Snapshot(nn.BatchNorm1d(5).eval(), {}, None, cross_entropy(), snapshot.train, None, None, 0, 0)
    assert (loss_plane(flat, points=3), loss_rays(flat, rays=1)) == ({}, {})


@pytest.mark.parametrize(
    ("measure", "settings", "message"),
    [
        (decision_map, {"points": 1}, "an odd number of frames"),
        (decision_map, {"points": 5, "frames": 2}, "an odd number of frames"),
        (decision_map, {"points": 5, "span": 0.0}, "span > 0"),
        (loss_plane, {"points": 4}, "an odd number of points"),
        (loss_plane, {"points": 3, "reach": 0.0}, "reach > 0"),
        (loss_rays, {"rays": 0}, "a ray"),
        (loss_rays, {"rays": 1, "power": 0.0}, "power > 0"),
    ],
)
def test_settings_that_give_no_picture_are_refused(measure: Any, settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        measure(on_square(nn.Linear(2, 2)), **settings)


# --- data and networks ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    place = tmp_path_factory.mktemp("none")
    return {name: find(name, place) for name in ("swiss_roll", "digits", "rings", "breast_cancer", "two_scales")}


def test_clean_images_are_the_same_with_and_without_poison(sources):
    source = sources["digits"].draw(train=60, valid=0, test=30)
    clean, poisoned = (shared.poisoned_images(3, None, source=source, clean=40, poison=n) for n in (0, 20))
    drawn = source(3, None)
    assert (clean.train.n, poisoned.train.n) == (40, 60)
    assert poisoned.train.inputs.shape == (60, 1, 8, 8)
    assert torch.equal(poisoned.train.inputs[:40], clean.train.inputs)
    assert torch.equal(poisoned.train.inputs.reshape(60, 64), drawn.train.inputs)
    assert torch.equal(poisoned.train.targets[:40], drawn.train.targets[:40])
    assert torch.equal(-1 - poisoned.train.targets[40:], drawn.train.targets[40:])
    assert poisoned.test is not None
    assert poisoned.test.inputs.shape == (30, 1, 8, 8)
    with pytest.raises(ValueError, match="the source has 60"):
        shared.poisoned_images(3, None, source=source, clean=50, poison=20)
    tumours = sources["breast_cancer"].draw(train=20, valid=0)
    with pytest.raises(ValueError, match=r"takes images, and these inputs are \[30\]"):
        shared.poisoned_images(3, None, source=tumours, clean=5)


def test_norms_are_fixed_filter_by_filter():
    with seeded(0):
        net = resnet((1, 8, 8), 10, depth=8, channels=2, order="pre", shortcut="pool")
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    shared.fixed_norms(net)
    for name, p in net.named_parameters():
        if p.dim() == 1:
            assert torch.equal(p, before[name])
            continue
        assert p.flatten(1).norm(dim=1).tolist() == pytest.approx([1.0 if p.dim() > 2 else 4.0] * len(p), rel=1e-5)
        cosine = nn.functional.cosine_similarity(p.flatten(1), before[name].flatten(1))
        assert cosine.min() > 1 - 1e-5


# --- grids ----------------------------------------------------------------------------------------------------------


def test_the_swiss_roll_s_networks_are_those_of_figure_5(sources):
    for scale in ("laptop", "paper"):
        own, other = (
            {key(r) for r in experiment.published(scale, sources["swiss_roll"], [0, 1])}
            for experiment in (roll, volume)
        )
        assert own < other
    of = roll.SCALES["laptop"]
    assert of.judged in of.poison
    assert set(of.equal) <= set(of.poison)
    assert {0, of.judged} <= set(of.equal)


def test_networks_of_images_differ_in_their_poison_alone(sources):
    good, bad = images.published("laptop", sources["digits"], [0])
    differ = {name for name in vars(good) if getattr(good, name) != getattr(bad, name)}
    assert differ == {"data", "loss"}
    assert (good.data["poison"], bad.data["poison"]) == (0, 108)
    assert bad.loss["share"] == pytest.approx(89 / 256, abs=0.005)
    svhn = images.PAPER.model((3, 32, 32), 10)
    assert sum(p.numel() for p in svhn.parameters()) == 269_722
    assert sum(p.numel() for p in svhn.parameters() if p.dim() > 1) == 268_336


def test_recipes_are_recipes(sources):
    for experiment, name in ((roll, "swiss_roll"), (images, "digits")):
        for protocol in experiment.RUNS.values():
            runs = protocol.grid("smoke", sources[name], [0, 1])
            assert all(isinstance(run, Recipe) for run in runs)
            assert len({key(run) for run in runs}) == len(runs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda of: roll.claims("smoke", of["rings"]), "'swiss_roll' alone, not 'rings'"),
        (lambda of: images.claims("smoke", of["two_scales"]), "has no classes"),
        (lambda of: images.claims("paper", of["digits"]), "holds no images: give svhn"),
    ],
)
def test_data_that_do_not_fit_are_refused(sources, make, message):
    with pytest.raises(ValueError, match=message):
        make(sources)


# --- statistics and verdicts on made-up results ---------------------------------------------------------------------


def rolled(seeds=8, *, poison=roll.LEVELS, effect=1.0, fits=1.0, noise=0.05, picture=False):
    """Results of the published protocol in which poison makes margins smaller and minima sharper."""
    random, rows = np.random.default_rng(0), []
    for seed in range(seeds):
        for k in poison:
            share, jitter = effect * k / max(poison), random.normal(0, noise)
            row: dict[str, Any] = {"protocol": "published", "status": "done", "seed": seed, "run": f"{seed}-{k}"}
            row |= {"data.poison": k, "data.noise": 0.5, "first_train_accuracy": fits}
            row |= {"test_accuracy": 0.97 - 0.4 * share, "margin_median": math.exp(-3 * share + jitter)}
            kept = tuple(1 - 0.3 * share * size for size in roll.SHARES)
            row |= {"filter_loss_increase": tuple(math.exp(2 * share + jitter) * size for size in roll.SHARES)}
            row |= {"filter_accuracy": kept, "filter_magnitudes": roll.SHARES}
            row |= {"map_regions": (2.0 + 20 * share,) * 5, "map_boundary_length": (50.0 * (1 + share),) * 5}
            rows.append(row | (pictured() if picture else {}))
    return Table.of(rows)


def pictured() -> dict[str, Any]:
    """A map of five frames and a plane, flat as results hold them."""
    found = picture(Islands(1.0, ((0.0, 0.0),)), points=11, span=4.0, frames=5)
    axis = np.linspace(-1, 1, 5)
    plane = 3 * np.hypot(axis[:, None], axis)
    flat = {name: tuple(v.reshape(-1).tolist()) if torch.is_tensor(v) else v for name, v in found.items()}
    del flat["map_regions"], flat["map_boundary_length"]
    return flat | {"plane_positions": tuple(axis), "plane_train_loss": tuple(plane.reshape(-1))}


def words(experiment: Any, source: Any, table: Table) -> list[Any]:
    claims = [claim for claim in experiment.claims("laptop", source) if not claim.positive]
    return judge(claims, {"published": table}, 8)


def test_margins_sharpness_and_islands_are_judged(sources):
    source = sources["swiss_roll"]
    margin, order, rise, kept, regions, *rest = words(roll, source, rolled())
    assert [v.word for v in (margin, order, rise, kept, regions)] == ["supported"] * 5
    assert margin.effect == pytest.approx(-2.25, abs=0.1)  # 60 of 80
    assert order.effect == pytest.approx(-1, abs=0.05)
    assert rise.effect == pytest.approx(1.5, abs=0.1)
    assert all(v.word == "exploratory" for v in rest)
    margin, order, rise, *_ = words(roll, source, rolled(effect=-1.0))
    assert [v.word for v in (margin, order, rise)] == ["contradicted"] * 3
    margin, order, *_ = words(roll, source, rolled(fits=0.99))
    assert (margin.word, order.word) == ("descriptive", "descriptive")
    assert roll.trend_over_poison(rolled(poison=(0, 60)), value="margin_median").n == 0


def photographed(seeds=8, *, radius=-0.5, fits=1.0, height=0.1):
    rows, n, shrink = [], 1000.0, math.log(1.1)
    ball = n / 2 * math.log(math.pi) - math.lgamma(n / 2 + 1)
    for seed in range(seeds):
        for poison in (0, 108):
            log_radius = (radius if poison else 0.0) + 0.01 * seed * bool(poison)
            row: dict[str, Any] = {"protocol": "published", "status": "done", "seed": seed, "run": f"{seed}-{poison}"}
            row |= {"data.poison": poison, "first_train_accuracy": fits, "first_test_accuracy": 0.9 - poison / 300}
            volume = n * log_radius + ball + (n * shrink if poison else 7.0) if height > 0 else math.nan
            row |= {"filter_mean_log_volume": (volume,), "filter_log_det": n * shrink if poison else 7.0}
            row |= {"filter_coordinates": n, "filter_magnitudes": images.SHARES}
            row |= {"filter_accuracy": (1.0, 0.95, 0.5 if poison else 0.9, 0.2)}
            row |= {"filter_loss_increase": (0.1, 0.2, 2.0 + 0.1 * seed if poison else 0.5, 3.0)}
            row |= {"rays_distances": (0.0, 0.3, 0.7), "rays_train_loss": (0.01, 0.05, 0.5, 0.01, 0.2, 0.9)}
            axis = np.linspace(-1, 1, 3)
            plane = np.hypot(axis[:, None], axis) + 0.01
            row |= {"plane_positions": tuple(axis), "plane_train_loss": tuple(plane.reshape(-1))}
            rows.append(row)
    return Table.of(rows)


def test_radii_in_units_of_filters_are_judged(sources):
    rise, radius, kept, tests = words(images, sources["digits"], photographed())
    assert [v.word for v in (rise, radius, kept, tests)] == ["supported", "supported", "supported", "exploratory"]
    assert radius.effect == pytest.approx(-0.5 + 0.035)
    assert tests.effect == pytest.approx(0.36)
    assert words(images, sources["digits"], photographed(radius=0.5))[1].word == "contradicted"
    for unfit in (photographed(fits=0.99), photographed(height=-1.0)):
        units = images.radius_ratio(unfit, over="data.poison", first=108.0, second=0.0)
        assert units.n == 0
        assert "8 seeds left out" in units.note


# --- figures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("experiment", "table", "names"),
    [
        (roll, rolled(2, picture=True),
         ["boundaries", "wiggle", "surfaces", "margin-median", "test-accuracy", "perturbation"]),
        (images, photographed(2), ["surfaces", "rays", "noise"]),
        (roll, rolled(0), []),
        (images, photographed(0), []),
    ],
)  # fmt: skip
def test_figures_say_what_they_find(experiment, table, names):
    drawn = experiment.draw(table, Table.of([]))
    assert [figure.name for figure in drawn] == names
    for figure in drawn:
        assert "nan" not in figure.finding
        assert len(figure.table()) > 0


def test_a_plane_without_contours_leaves_the_rays():
    rows = [row | {"plane_train_loss": (100.0,) * 9} for row in photographed(1).rows()]
    titles = [figure.title for figure in images.draw(Table.of(rows), Table.of([]))]
    assert "Loss along random rays: published" in titles
    assert not any(title.startswith("Slices") for title in titles)


def test_a_picture_shows_its_own_training_points():
    (figure, *_) = roll.draw(rolled(1, picture=True), Table.of([]))
    assert len(figure.panels) == len(roll.LEVELS)
    first, second, line = figure.panels[0].series
    train = shared.poisoned_roll(0, None).train
    assert len(second.x) == int(train.targets.sum()) == 200 - len(first.x)
    assert np.allclose(first.x, train.inputs[train.targets == 0, 0])
    assert np.hypot(line.x, line.y).max() < 2


def test_the_poisoned_loss_of_clean_samples_is_the_plain_one():
    with seeded(1):
        outputs, targets = torch.randn(9, 4), torch.randint(4, (9,))
    for share in (0.0, 108 / 308):
        assert poisoned_cross_entropy(share=share)(outputs, targets).item() == pytest.approx(
            cross_entropy()(outputs, targets).item()
        )


def test_margins_of_the_clean_points_leave_the_poison_out():
    data = shared.poisoned_roll(0, None, poison=20, train=20)
    with seeded(0):
        net = shared.glorot_mlp((2,), 2, widths=(8,))
    snapshot = Snapshot(net, {}, None, cross_entropy(), data.train, None, None, 0, 0)
    assert data.valid is not None
    alone = input_margins(Snapshot(net, {}, None, cross_entropy(), data.valid, None, None, 0, 0))
    assert on_first(snapshot, measure=call(input_margins), samples=20) == alone
