"""Landscapes: closed forms, an independent float64 loop as oracle, ways that agree, and nothing left changed."""

import copy
import functools
import time
from typing import Any

import numpy as np
import pytest
import torch
from cases import CLASSES, FEATURES, MADE, everything, made, points, same
from torch import Tensor, nn
from torch.nn import functional

from landscope.landscapes import (
    COMPUTED,
    INTERPOLATED,
    MISSING,
    STOPPED,
    Directions,
    Settings,
    axes_between,
    curvature_axes,
    curve,
    gradient_axis,
    interpolation,
    line,
    load,
    plane,
    random_axes,
    ray,
    trajectory,
    trajectory_axes,
)
from landscope.losses import cross_entropy, squared_error
from landscope.models import mlp, seeded
from landscope.render import write_landscape
from landscope.types import Batches


@pytest.fixture(autouse=True)
def _forked():
    with seeded(0):
        yield


def oracle(model: nn.Module, directions: Directions, coefficients: Any, loss: Any, data: Any) -> tuple[float, float]:
    """Loss and accuracy at one point: the weights written into a copy, one forward pass over everything."""
    net = copy.deepcopy(model).eval()
    moved = directions.columns.double() @ torch.as_tensor(coefficients, dtype=torch.float64)
    at = 0
    with torch.no_grad():
        for p in net.parameters():
            p += moved[at : at + p.numel()].view(p.shape).to(p)
            at += p.numel()
        outputs = net(data[0])
    return loss(outputs, data[1]).item(), (outputs.argmax(1) == data[1]).double().mean().item()


@pytest.mark.parametrize("which", MADE)
def test_every_point_is_what_the_network_there_gives(which):
    model, data = made(which)
    model.train()
    before = everything(model)
    directions = random_axes(model, biases=True, seed=3)
    found = plane(model, cross_entropy(), data, data, directions=directions, points=(4, 3), span=((-1, 2), (0, 1)))
    assert same(everything(model), before)
    assert found.shape == (4, 3)
    for i, a in enumerate(found.axes[0]):
        for j, b in enumerate(found.axes[1]):
            loss, accuracy = oracle(model, directions, (a, b), cross_entropy(), data)
            for name in ("train", "test"):
                assert found.values[f"{name}_loss"][i, j] == pytest.approx(loss, rel=1e-9)
                assert found.values[f"{name}_accuracy"][i, j] == pytest.approx(accuracy)
    assert found.count(COMPUTED) == 12


CHAINS = {
    "plain": lambda: mlp((FEATURES,), CLASSES, widths=(7, 4)),
    "batchnorm": lambda: mlp((FEATURES,), CLASSES, widths=(7, 4), batchnorm=True),
    "linear": lambda: nn.Sequential(nn.Linear(FEATURES, CLASSES, bias=False)),
    "others": lambda: nn.Sequential(
        nn.Dropout(0.5),
        nn.Linear(FEATURES, 4),
        nn.Sequential(nn.GELU(), nn.Dropout()),
        nn.Linear(4, 4, bias=False),
        nn.BatchNorm1d(4, affine=False),
        nn.Tanh(),
        nn.Linear(4, CLASSES),
    ),
}


LOSSES = {"cross-entropy": cross_entropy(), "squared": squared_error(), "elements": nn.MSELoss()}
LOSSES["smoothed"] = nn.CrossEntropyLoss(label_smoothing=0.1)


@pytest.mark.parametrize(
    ("kind", "name"),
    [*((kind, "cross-entropy") for kind in CHAINS), *(("plain", name) for name in LOSSES if name != "cross-entropy")],
)
def test_all_ways_agree(kind, name):
    loss: Any = LOSSES[name]
    model, data = CHAINS[kind]().double(), points()
    data = (data[0].double(), data[0][:, :CLASSES].double() if type(loss) is nn.MSELoss else data[1])
    model(data[0])
    directions = random_axes(model, biases=True)
    found = {
        way: plane(model, loss, data, directions=directions, points=3, batch_size=10, way=way, samples=samples)
        for way in ("loop", "vmap", "chain")
        for samples in (15,)
    }
    for way in ("vmap", "chain"):
        assert found[way].facts["evaluated"].startswith(way)
        for name, values in found["loop"].values.items():
            np.testing.assert_allclose(found[way].values[name], values, rtol=1e-9, atol=1e-12)


def test_a_layer_used_twice_is_one_layer_in_a_chain():
    relu, shared = nn.ReLU(), nn.Linear(4, 4)
    model = nn.Sequential(nn.Linear(FEATURES, 4), relu, shared, relu, shared, relu, nn.Linear(4, CLASSES))
    before = everything(model)
    found = [plane(model, cross_entropy(), points(), points=3, way=way).values for way in ("loop", "chain")]
    assert same(everything(model), before)
    np.testing.assert_allclose(found[0]["train_loss"], found[1]["train_loss"], rtol=1e-5)


class Doubling(nn.Identity):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * input


class Shifting(nn.Dropout):
    def forward(self, input: Tensor) -> Tensor:
        return input + 1


class Halving(nn.Flatten):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) / 2


def replaced(of: Any) -> nn.Module:
    of.forward = lambda x: 3 * x
    return of


def hooked(of: nn.Module) -> nn.Module:
    def tripled(_module: nn.Module, _inputs: Any, outputs: Any) -> Tensor:
        return 3 * outputs

    of.register_forward_hook(tripled)
    return of


@pytest.mark.parametrize(
    "make",
    [
        *(Doubling, Shifting, Halving, lambda: replaced(nn.ReLU()), lambda: replaced(nn.Sequential(nn.Identity()))),
        *(lambda: hooked(nn.Dropout()), lambda: hooked(nn.Flatten())),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_what_is_no_plain_layer_is_no_part_of_a_chain(make, first, tmp_path):
    ends = nn.Linear(FEATURES, 4), nn.Linear(4, CLASSES)
    model = nn.Sequential(make(), *ends) if first else nn.Sequential(ends[0], make(), ends[1])
    with pytest.raises(ValueError, match="there is loop, vmap"):
        line(model, cross_entropy(), points(), points=2, way="chain")
    found = line(model, cross_entropy(), points(), points=3, folder=tmp_path)
    expected = cross_entropy()(model.eval()(points()[0]), points()[1]).item()
    assert found.values["train_loss"][1] == pytest.approx(expected, rel=1e-5)


def test_a_layer_s_own_forward_has_its_own_chunks(tmp_path):
    model = nn.Sequential(nn.Linear(FEATURES, 4), nn.ReLU(), nn.Linear(4, CLASSES))
    before = line(model, cross_entropy(), points(), points=3, folder=tmp_path)
    replaced(model[1])
    after = line(model, cross_entropy(), points(), points=3, folder=tmp_path)
    assert not np.allclose(before.values["train_loss"], after.values["train_loss"])


def test_a_slow_network_is_passed_once_a_point():
    sizes = []

    class Slow(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            sizes.append(len(input))
            time.sleep(0.01 * len(input))  # far more than what may come between
            return super().forward(input)

    plane(nn.Sequential(Slow(FEATURES, CLASSES), nn.Softsign()), cross_entropy(), points(), points=2)
    assert sizes.count(max(sizes)) == 4


def test_single_precision_differs_by_rounding_alone():
    model = mlp((FEATURES,), CLASSES)
    directions = random_axes(model)
    single = plane(model, cross_entropy(), points(), directions=directions, points=5)
    double = plane(model, cross_entropy(), points(), directions=directions, points=5, dtype=torch.float64)
    np.testing.assert_allclose(single.values["train_loss"], double.values["train_loss"], rtol=1e-5)
    assert model[1].weight.dtype == torch.float32


def test_a_network_of_several_types_has_directions_and_landscapes():
    plain, wide = mlp((FEATURES,), CLASSES, widths=(4,)), Settings(dtype=torch.float64)
    mixed: Any = copy.deepcopy(plain)
    mixed[-1].double()
    data = points()
    makers: list[Any] = [random_axes, lambda net, **more: gradient_axis(net, cross_entropy(), data, **more)]
    makers.append(lambda net, **more: curvature_axes(net, cross_entropy(), data, **more))
    makers.append(lambda net, **more: axes_between(net, [moved(net, 1)], **more))
    makers.append(lambda net, **more: trajectory_axes(net, [moved(net, a, a * a) for a in (0, 1, 2)], **more))
    for make in makers:
        torch.testing.assert_close(make(mixed, **wide).columns, make(plain, **wide).columns, rtol=1e-3, atol=1e-4)
    for draw in (
        *(plane, line, ray, lambda net, *rest, **more: interpolation(net, net, moved(net, 0.1), *rest, **more)),
        lambda net, *rest, **more: curve(net, net, moved(net, 0.1), *rest, steps=2, **more),
    ):
        ours, theirs = (draw(net, cross_entropy(), data, points=3, **wide) for net in (mixed, plain))
        np.testing.assert_allclose(ours.values["train_loss"], theirs.values["train_loss"], rtol=1e-5)
        assert ours.directions.columns.dtype == torch.float64
    bridge = interpolation(mixed, mixed, moved(mixed, 0.1), cross_entropy(), data, points=3, **wide)
    (path,) = trajectory(bridge, mixed, [mixed, moved(mixed, 0.1)], cross_entropy(), data, **wide).trajectories
    np.testing.assert_allclose(path.coordinates[:, 0], [0, 1], atol=1e-6)
    mixed = mixed.bfloat16()
    mixed[-1].float()
    assert np.isfinite(plane(mixed, cross_entropy(), data, points=2, dtype=torch.float32).values["train_loss"]).all()


def moved(net: nn.Module, by: float, scale: float = 0.0) -> dict[str, Tensor]:
    return {name: (1 + scale) * t + by for name, t in net.state_dict().items()}


def test_other_forms_of_data_and_loss():
    model, (inputs, targets) = mlp((FEATURES,), CLASSES), points()
    plain = line(model, cross_entropy(), (inputs, targets), points=3).values["train_loss"]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, targets), batch_size=7)
    forms = [Batches(inputs, targets, 5), loader, [(inputs[:9], targets[:9]), (inputs[9:], targets[9:])]]
    for data in forms:
        np.testing.assert_allclose(line(model, cross_entropy(), data, points=3).values["train_loss"], plain, rtol=1e-5)
    streamed = line(model, cross_entropy(), loader, points=3, memory=1)
    np.testing.assert_allclose(streamed.values["train_loss"], plain, rtol=1e-5)
    part = line(model, cross_entropy(), loader, points=3, samples=12, seed=4).values["train_loss"]
    np.testing.assert_allclose(
        part,
        line(model, cross_entropy(), (inputs, targets), points=3, samples=12, seed=4).values["train_loss"],
        rtol=1e-5,
    )

    def own(net: nn.Module, batch: Any) -> tuple[Tensor, int]:
        return functional.cross_entropy(net(batch["x"]), batch["y"], reduction="sum"), len(batch["y"])

    batches = [{"x": inputs[:9], "y": targets[:9]}, {"x": inputs[9:], "y": targets[9:]}]
    found = line(model, None, batches, points=3, batch_loss=own)
    np.testing.assert_allclose(found.values["train_loss"], plain, rtol=1e-5)
    assert "train_accuracy" not in found.values


def test_the_sign_of_one_logit_is_right_or_wrong():
    model, (inputs, labels) = mlp((FEATURES,), 1), points()
    targets = (labels > 0).float()[:, None]
    found = line(model, nn.BCEWithLogitsLoss(), (inputs, targets), points=3)
    assert found.values["train_accuracy"][1] == pytest.approx(
        ((model(inputs) > 0) == (targets > 0)).double().mean().item()
    )


def test_the_standard_error_of_a_part_is_the_spread_over_parts():
    model, data = mlp((FEATURES,), CLASSES, widths=(4,)), points(400)
    with torch.no_grad():
        for p in model.parameters():
            p *= 3
    kept: dict[str, Any] = {"points": 2, "span": (0, 1), "accuracy": False, "way": "loop"}
    whole = line(model, cross_entropy(), data, **kept).values["train_loss"][0]
    parts = [line(model, cross_entropy(), data, samples=100, seed=seed, **kept) for seed in range(30)]
    errors = np.array([part.values["train_loss"][0] - whole for part in parts])
    sems = np.array([part.values["train_loss_sem"][0] for part in parts])
    z = errors / sems
    assert abs(z.mean()) < 4 / 30**0.5
    assert 0.48 < z.std() < 1.52  # 4 standard errors of a standard deviation of 30
    assert "100 of 400" in parts[0].facts["train samples"]


def test_a_set_of_fewer_samples_than_asked_for_is_taken_whole():
    model, data, few = mlp((FEATURES,), CLASSES), points(40), points(12, seed=1)
    found = line(model, cross_entropy(), data, few, points=3, samples=20)
    assert np.array_equal(
        found.values["test_loss"], line(model, cross_entropy(), data, few, points=3).values["test_loss"]
    )
    assert "train_loss_sem" in found.values
    assert "test_loss_sem" not in found.values
    assert found.facts["test samples"] == "all 12, for there are no more: no standard error"


def test_a_cap_leaves_points_early_and_the_others_alone():
    model, data = mlp((FEATURES,), CLASSES), points(200)
    kept: dict[str, Any] = {"points": 5, "span": (-4, 4), "batch_size": 50}
    whole = plane(model, cross_entropy(), data, data, **kept)
    cap = float(np.median(whole.values["train_loss"]))
    for way in ("loop", "chain"):
        found = plane(model, cross_entropy(), data, data, cap=cap, way=way, **kept)
        left = found.status == STOPPED
        assert np.array_equal(left, whole.values["train_loss"] > cap)
        for name in ("train_loss", "test_loss", "test_accuracy"):
            np.testing.assert_allclose(found.values[name][~left], whole.values[name][~left], rtol=1e-5)
        assert (found.values["train_loss"][left] > cap).all()
        assert (found.values["train_loss"][left] <= whole.values["train_loss"][left] * (1 + 1e-5)).all()
        assert np.isnan(found.values["train_accuracy"][left]).all()
    with pytest.raises(ValueError, match="never negative"):
        line(model, lambda o, t: -functional.cross_entropy(o, t), data, cap=1.0, points=3)


def test_what_a_cap_leaves_is_known_of_each_set(tmp_path):
    model, (inputs, _) = mlp((FEATURES,), CLASSES), points(40)
    outputs = model(inputs)
    data, test = (inputs, outputs.argmax(1)), (inputs, outputs.argmin(1))
    kept: dict[str, Any] = {"points": 9, "span": (-2, 2), "batch_size": 10}
    whole = line(model, cross_entropy(), data, test, **kept)
    cap = 1.01 * float(whole.values["train_loss"].min())
    found = line(model, cross_entropy(), data, test, cap=cap, **kept)
    only_test = (found.status == STOPPED) & (found.values["train_loss"] <= cap)
    assert only_test.any()
    for name in ("train_loss", "train_accuracy"):
        np.testing.assert_allclose(found.values[name][only_test], whole.values[name][only_test], rtol=1e-5)
    assert (found.values["test_loss"][only_test] > cap).all()
    assert (found.values["test_loss"][only_test] <= whole.values["test_loss"][only_test] * (1 + 1e-5)).all()
    assert np.isnan(found.values["test_accuracy"][only_test]).all()
    assert f"lie beyond {cap:g}: losses above that are at least" in found.facts["cap"]
    text = write_landscape(found, tmp_path / "x.csv").read_text()
    assert "a loss above it is at least this" in text


def test_refinement_computes_less_and_is_as_near_as_it_says():
    model, data = mlp((FEATURES,), CLASSES), points(100)
    kept: dict[str, Any] = {"points": 33, "span": (-1.5, 1.5), "accuracy": False}
    whole = plane(model, cross_entropy(), data, **kept).values["train_loss"]
    found = plane(model, cross_entropy(), data, refine=0.01, **kept)
    between = found.status == INTERPOLATED
    assert between.mean() > 0.3
    np.testing.assert_allclose(found.values["train_loss"][~between], whole[~between], rtol=1e-5)
    off = np.abs(np.log(found.values["train_loss"] / whole))
    assert off.max() < 0.03
    assert np.quantile(off, 0.95) < 0.01


def test_beside_points_left_beyond_the_cap_nothing_is_interpolated():
    model, data = mlp((FEATURES,), CLASSES), points(60)
    kept: dict[str, Any] = {"points": 33, "span": (-3, 3)}
    for test in (points(30, seed=1), (data[0], data[1].roll(1))):  # the second passes the cap long before
        whole = plane(model, cross_entropy(), data, test, **kept)
        cap = 1.2 * float(whole.values["train_loss"].min())
        found = plane(model, cross_entropy(), data, test, cap=cap, refine=0.5, **kept)
        between = (found.status == INTERPOLATED) & (found.values["train_loss"] <= cap)
        assert (found.status == STOPPED).any()
        for name, values in found.values.items():
            assert np.isfinite(values[between]).all()
            if name.endswith("_loss"):
                exact = (found.status != INTERPOLATED) & (values <= cap)
                np.testing.assert_allclose(values[exact], whole.values[name][exact], rtol=1e-5)


def test_a_peak_and_what_is_not_finite_are_refined():
    from landscope.landscapes.refining import refined

    asked = []

    def compute(places: np.ndarray) -> dict[str, np.ndarray]:
        asked.append(len(places))
        loss = np.where(np.hypot(*(places - 16).T) < 5, 5.0, 1.0)
        loss[(places == 0).all(1)] = np.nan
        return {"train_loss": loss, "status": np.zeros(len(places), np.uint8)}

    found = refined(compute, (33, 30), 0.01, None)
    truth = compute(np.stack(np.meshgrid(np.arange(33), np.arange(30), indexing="ij"), -1).reshape(-1, 2))
    np.testing.assert_allclose(found["train_loss"], truth["train_loss"].reshape(33, 30), rtol=1e-6)
    assert sum(asked[:-1]) < 33 * 30 * 0.7
    assert np.isnan(found["train_loss"][0, 0])


def test_chunks_are_kept_shared_and_gone_on_from(tmp_path, monkeypatch):
    model, data = mlp((FEATURES,), CLASSES), points()
    whole = plane(model, cross_entropy(), data, points=20, way="chain")
    first = plane(model, cross_entropy(), data, points=20, way="chain", folder=tmp_path, shard=(0, 3))
    assert first.count(MISSING) == 256
    assert np.isnan(first.values["train_loss"][first.status == MISSING]).all()
    plane(model, cross_entropy(), data, points=20, way="chain", folder=tmp_path, shard=(1, 3))
    files = sorted(tmp_path.iterdir())
    assert len(files) == 3
    files[0].write_bytes(files[0].read_bytes()[:100])  # cut off: computed anew
    seen = []
    found = plane(
        model, cross_entropy(), data, points=20, way="chain", folder=tmp_path, progress=lambda *at: seen.append(at)
    )
    assert seen == [(128, 400), (256, 400), (384, 400), (400, 400)]
    assert all(np.array_equal(found.values[name], whole.values[name]) for name in whole.values)
    monkeypatch.setattr("landscope.landscapes.keeping.evaluate", None)  # nothing is left to compute
    assert plane(model, cross_entropy(), data, points=20, folder=tmp_path).count(COMPUTED) == 400
    monkeypatch.undo()
    with torch.no_grad():
        next(model.parameters()).add_(1)
    assert plane(model, cross_entropy(), data, points=20, folder=tmp_path, shard=(2, 3)).count(MISSING) == 272


def test_another_loss_has_other_chunks(tmp_path):
    model, data = mlp((FEATURES,), CLASSES, widths=(4,)), points()

    def scaled(by: float) -> Any:
        return lambda outputs, targets: by * functional.cross_entropy(outputs, targets)

    smoothed = functools.partial(functional.cross_entropy, label_smoothing=0.2)
    losses = [cross_entropy(), nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1), smoothed, scaled(2.0)]
    for count, loss in enumerate([*losses, scaled(3.0)], 1):
        kept = line(model, loss, data, points=2, folder=tmp_path, way="loop")
        assert kept.values["train_loss"][0] == line(model, loss, data, points=2, way="loop").values["train_loss"][0]
        assert len(list(tmp_path.iterdir())) == count


def test_a_landscape_comes_back_from_its_file(tmp_path):
    model, data = mlp((FEATURES,), CLASSES), points()
    found = plane(model, cross_entropy(), data, points=3, samples=10)
    again = load(found.save(tmp_path / "x.safetensors"))
    assert (again.kind, again.labels, again.facts) == (found.kind, found.labels, dict(found.facts))
    assert all(np.array_equal(again.values[name], values) for name, values in found.values.items())
    assert torch.equal(again.directions.columns, found.directions.columns)
    assert "3×3" in repr(again)
    assert "seed 0" in again._repr_html_()


def test_statistics_of_batchnorm_are_frozen_or_those_of_the_point():
    model, data = mlp((FEATURES,), CLASSES, widths=(6,), batchnorm=True).double(), points()
    data = (data[0].double(), data[1])
    before = everything(model)
    directions = random_axes(model)
    found = line(model, cross_entropy(), data, direction=random_axes(model, count=1), points=3, batchnorm="recomputed")
    assert same(everything(model), before)
    for i, a in enumerate(found.axes[0]):
        net: Any = copy.deepcopy(model).train()
        with torch.no_grad():
            at = 0
            for p in net.parameters():
                p += a * directions.columns[at : at + p.numel(), 0].view(p.shape)
                at += p.numel()
            norm: Any = net[2]
            norm.momentum = None
            norm.reset_running_stats()
            net(data[0])
            expected = functional.cross_entropy(net.eval()(data[0]), data[1]).item()
        assert found.values["train_loss"][i] == pytest.approx(expected)
    assert "computed anew" in found.facts["BatchNorm statistics"]
    assert "frozen" in line(model, cross_entropy(), data, points=2).facts["BatchNorm statistics"]


def test_a_ray_has_its_points_near_the_start():
    found = ray(mlp((FEATURES,), CLASSES), cross_entropy(), points(), reach=0.5, points=5, power=2)
    assert found.axes[0].tolist() == [0, 0.03125, 0.125, 0.28125, 0.5]


def test_any_pair_says_what_holds_for_each_axis():
    model, data = mlp((FEATURES,), CLASSES, widths=(4,)), points()
    expected = plane(model, cross_entropy(), data, points=(2, 3), span=((-1, 2), (0, 1)))
    for pair, span in (
        ([2, 3], [[-1, 2], [0, 1]]),
        ([2, 3], [(-1, 2), (0, 1)]),
        (torch.Size([2, 3]), ((-1, 2), [0, 1])),
    ):
        found = plane(model, cross_entropy(), data, points=pair, span=span)
        assert np.array_equal(found.values["train_loss"], expected.values["train_loss"])


def test_an_interpolation_goes_through_both_networks():
    first, second = (mlp((FEATURES,), CLASSES, batchnorm=True) for _ in range(2))
    data = points()
    kept: dict[str, Any] = {"points": 5, "span": (-0.5, 1.5)}
    found = interpolation(first, first.state_dict(), second, cross_entropy(), data, batchnorm="frozen", **kept)
    assert found.values["train_loss"][1] == pytest.approx(cross_entropy()(first.eval()(data[0]), data[1]).item())
    assert found.labels == found.directions.labels == ("t: 0 is the first network, 1 the second",)
    renewed = interpolation(first, first, second, cross_entropy(), data, **kept)
    own = line(second, cross_entropy(), data, points=2, span=(0, 1e-9), batchnorm="recomputed")
    assert renewed.values["train_loss"][3] == pytest.approx(own.values["train_loss"][0], rel=1e-4)


def test_nothing_changes_where_the_loss_fails():
    model, data = mlp((FEATURES,), CLASSES, batchnorm=True), points()
    model.train()
    before, calls = everything(model), []

    def failing(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > 6:
            raise RuntimeError("the loss failed")
        return functional.cross_entropy(outputs, targets)

    for batchnorm in ("frozen", "recomputed"):
        calls.clear()
        with pytest.raises(RuntimeError, match="the loss failed"):
            plane(model, failing, data, points=5, batchnorm=batchnorm)
        assert same(everything(model), before)


def test_what_is_not_finite_is_kept_and_counted():
    model, (inputs, targets) = mlp((FEATURES,), CLASSES), points()
    directions = random_axes(model)
    far = Directions(directions.columns * 1e12, directions.labels, "far")
    found = plane(model, cross_entropy(), (inputs, targets), directions=far, points=3)
    assert not np.isfinite(found.values["train_loss"][0, 0]) or found.not_finite() > 0
    assert np.isfinite(found.values["train_loss"][1, 1])
    assert str(found.not_finite()) in found.facts["not finite"]
    assert "not finite" in repr(found)


WRONG: dict[str, tuple[Any, str]] = {
    "a grid of one point": (lambda m, d: plane(m, cross_entropy(), d, points=1), "a grid of 1 point"),
    "an empty span": (lambda m, d: line(m, cross_entropy(), d, span=(1, 1)), "low < high"),
    "one checkpoint": (lambda m, d: trajectory_axes(m, [m]), "1 checkpoint cannot span"),
    "the same checkpoint": (lambda m, d: trajectory_axes(m, [m, m, m]), "all the same|lie on a line"),
    "twice the same": (lambda m, d: interpolation(m, m, m, cross_entropy(), d), "length 0"),
    "another shape": (lambda m, d: axes_between(m, [mlp((FEATURES,), 2)]), "of another shape"),
    "another network": (lambda m, d: axes_between(m, [nn.Linear(2, 2)]), "lacks 1.weight"),
    "foreign directions": (
        lambda m, d: plane(m, cross_entropy(), d, directions=random_axes(mlp((FEATURES,), 2))),
        "belong to another network",
    ),
    "a zero direction": (lambda m, d: Directions(torch.zeros(3, 1), ("x",), ""), "length 0"),
    "three numbers of points": (lambda m, d: plane(m, cross_entropy(), d, points=[3, 4, 5]), "points holds for both"),
    "three ends": (lambda m, d: plane(m, cross_entropy(), d, span=(0, 1, 2)), r"\(low, high\), not \(0, 1, 2\)"),
    "dead weights": (lambda m, d: random_axes(zeroed(m)), "zero throughout"),
    "one direction": (lambda m, d: plane(m, cross_entropy(), d, directions=random_axes(m, count=1)), "two directions"),
    "three directions": (lambda m, d: line(m, cross_entropy(), d, direction=random_axes(m)), "one direction"),
    "no normalisation": (lambda m, d: random_axes(m, normalisation="channel"), "filter, layer, model, none"),
    "statistics": (lambda m, d: plane(m, cross_entropy(), d, batchnorm="eval"), "frozen or recomputed"),
    "a way": (lambda m, d: plane(m, cross_entropy(), d, way="fast"), "auto, loop, vmap, chain"),
    "a shard": (lambda m, d: plane(m, cross_entropy(), d, folder=".", shard=(2, 2)), "part i of n"),
    "a shard alone": (lambda m, d: plane(m, cross_entropy(), d, shard=(0, 2)), "give folder="),
    "too many samples": (lambda m, d: plane(m, cross_entropy(), d, samples=24), "the training set holds 23: leave"),
    "no loss": (lambda m, d: plane(m, None, d), "give either loss"),
    "a generator": (lambda m, d: plane(m, cross_entropy(), iter([d])), "only once"),
    "a reach": (lambda m, d: ray(m, cross_entropy(), d, reach=0.0), "above 0"),
    "a chain of convolutions": (
        lambda m, d: line(
            nn.Sequential(nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 3, 5), nn.Flatten()), cross_entropy(), d, way="chain"
        ),
        "there is loop, vmap",
    ),
}


def zeroed(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    return model


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_is_said(what):
    ask, said = WRONG[what]
    with pytest.raises(ValueError, match=said):
        ask(mlp((FEATURES,), CLASSES), points())


def test_an_unknown_setting_is_said():
    settings: dict[str, Any] = {"sample": 3}
    with pytest.raises(TypeError, match="no setting sample"):
        plane(mlp((FEATURES,), CLASSES), cross_entropy(), points(), **settings)


def test_a_dead_filter_is_counted():
    model = mlp((FEATURES,), CLASSES)
    with torch.no_grad():
        next(model.parameters())[2] = 0
    directions = random_axes(model)
    assert "1 of 195 filters are 0" in directions.statement
    assert directions.largest_cosine < 1e-6


def test_eigenvectors_and_gradient_are_those_of_the_dense_matrix():
    model, data = mlp((FEATURES,), CLASSES, widths=(4,)).double(), points()
    data = (data[0].double(), data[1])
    model[1].bias.requires_grad_(False)
    found = curvature_axes(model, cross_entropy(), data, which=(1, -1), scale=2.0)
    weights = {n: p.detach() for n, p in model.named_parameters()}
    sizes = [p.numel() for p in weights.values()]

    def total(flat: Tensor) -> Tensor:
        state = {n: part.view(p.shape) for (n, p), part in zip(weights.items(), flat.split(sizes), strict=True)}
        return functional.cross_entropy(torch.func.functional_call(model, state, (data[0],)), data[1])

    origin = torch.cat([p.reshape(-1) for p in weights.values()])
    free = torch.ones_like(origin, dtype=torch.bool)
    free[sizes[0] : sizes[0] + sizes[1]] = False
    matrix = torch.autograd.functional.hessian(total, origin)[free][:, free]
    values, vectors = torch.linalg.eigh(matrix)  # type: ignore[misc]
    assert found.lengths.tolist() == pytest.approx([2, 2])
    for column, exact in zip(found.columns.T, (vectors[:, -1], vectors[:, 0]), strict=True):
        assert abs(float(column[free] @ exact)) == pytest.approx(2, abs=1e-2)
        assert not column[~free].any()
    assert f"{values[-1]:.3g}"[:3] in found.labels[0]
    slope = torch.func.grad(total)(origin)
    slope[~free] = 0
    torch.testing.assert_close(gradient_axis(model, cross_entropy(), data).columns[:, 0], slope / slope.norm())


def test_principal_directions_of_a_trajectory_hold_its_variance():
    model = mlp((FEATURES,), CLASSES)
    base, (u, v) = model.state_dict(), (mlp((FEATURES,), CLASSES).state_dict() for _ in range(2))
    states = [{n: base[n] + a * u[n] + b * v[n] for n in base} for a, b in ((0, 0), (1, 0), (2, 1), (3, 3))]
    found = trajectory_axes(model, states)
    assert found.lengths.tolist() == pytest.approx([1, 1], rel=1e-5)
    shares = [float(label.split("(")[1].split("%")[0]) for label in found.labels]
    assert sum(shares) == pytest.approx(100, abs=0.1)
    assert shares[0] > shares[1]


def test_between_three_networks_the_second_direction_is_what_is_left():
    nets = [mlp((FEATURES,), CLASSES) for _ in range(3)]
    found = axes_between(nets[0], nets[1:])
    assert found.largest_cosine < 1e-6
    first, _ = found.columns.T
    one = torch.cat([(b - a).reshape(-1) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True)])
    torch.testing.assert_close(first, one.detach())


def test_a_loss_just_below_zero_by_rounding_may_be_capped():
    model, data = nn.Linear(2, 2).double(), (torch.ones(8, 2, dtype=torch.float64), torch.zeros(8, dtype=torch.int64))
    line(model, lambda o, t: 0 * functional.cross_entropy(o, t) - 1e-13, data, cap=1.0, points=3)


def test_chunks_of_another_loss_or_of_other_code_are_not_taken(tmp_path, monkeypatch):
    class Scaled(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.scale = torch.tensor(scale)

        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return self.scale * functional.cross_entropy(outputs, targets)

    def scaled(by: Any) -> Any:
        return lambda outputs, targets: by * functional.cross_entropy(outputs, targets)

    def preset(by: float) -> Any:
        return lambda outputs, targets, by=by: by * functional.cross_entropy(outputs, targets)

    model = mlp((FEATURES,), CLASSES)
    for make in (Scaled, lambda by: scaled(torch.tensor(by)), preset):
        first, other = (line(model, make(by), points(), points=3, folder=tmp_path) for by in (1.0, 5.0))
        np.testing.assert_allclose(other.values["train_loss"], 5 * first.values["train_loss"], rtol=1e-5)
    data = points()[0], torch.randn(len(points()[0]), CLASSES)
    mean = line(model, lambda o, t: functional.mse_loss(o, t), data, points=3, folder=tmp_path)
    absolute = line(model, lambda o, t: functional.l1_loss(o, t), data, points=3, folder=tmp_path)
    assert not np.allclose(mean.values["train_loss"], absolute.values["train_loss"])

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(FEATURES, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    net = Net()
    before = line(net, cross_entropy(), points(), points=3, folder=tmp_path)
    monkeypatch.setattr(Net, "forward", lambda self, x: 9 * self.layer(x))
    after = line(net, cross_entropy(), points(), points=3, folder=tmp_path)
    assert not np.allclose(before.values["train_loss"], after.values["train_loss"])


def test_sets_that_begin_in_the_same_memory_are_told_apart():
    model, (x, y) = mlp((FEATURES,), CLASSES), points()
    chain, loop = (
        plane(model, cross_entropy(), (x, y), (x[:5], y[:5]), points=3, way=way).values for way in ("chain", "loop")
    )
    for name, values in loop.items():
        np.testing.assert_allclose(chain[name], values, rtol=1e-5)


def test_recomputed_statistics_count_all_samples_alike_and_take_a_last_one(tmp_path):
    def network() -> nn.Sequential:
        return nn.Sequential(nn.Linear(FEATURES, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, CLASSES))

    model, other = network(), network()
    x, y = (torch.cat([part] * 3)[:41] for part in points())

    def centre(batch_size: int, **more: Any) -> float:
        settings: Any = {"points": 2, "span": (0.0, 1.0), "batch_size": batch_size} | more
        states = model.state_dict(), other.state_dict()
        return interpolation(model, *states, cross_entropy(), (x, y), **settings).values["train_loss"][0]

    first = model[0](x).detach()
    whole = (first - first.mean(0)) / (first.var(0) + 1e-5).sqrt()
    expected = functional.cross_entropy(model[3](whole.relu()), y).item()
    for size in (41, 40):  # with 40 a single one is left
        assert centre(size) == pytest.approx(expected, rel=1e-5)
    for size in (13, 41):
        assert centre(size, folder=tmp_path) == pytest.approx(centre(size), rel=1e-6)
    ends = [net.state_dict() for net in (model, other)]
    bridge = interpolation(model, ends[0], ends[1], cross_entropy(), (x, y), points=2, span=(0.0, 1.0))
    (path,) = trajectory(bridge, model, ends, cross_entropy(), (x, y)).trajectories
    np.testing.assert_allclose(path.on_plane["train_loss"], bridge.values["train_loss"], rtol=1e-6)


def test_a_curve_can_be_trained_on_single_samples():
    model, other = mlp((FEATURES,), CLASSES), mlp((FEATURES,), CLASSES)
    found = curve(model, model.state_dict(), other.state_dict(), cross_entropy(), points(), points=3, steps=2, batch=1)
    assert np.isfinite(found.values["train_loss"]).all()
