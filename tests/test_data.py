# pyright: reportOptionalMemberAccess=false
# Most sets here have all three parts, and a missing one fails the test anyway.

import hashlib
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import alone as alone  # used by every test here
from pictures import rows, same

from landscope import data
from landscope.data import (
    Source,
    find,
    generated,
    interleaved,
    stratified_split,
    stream,
    with_label_noise,
)
from landscope.spec import key


def test_stream_depends_on_seed_and_purpose_and_on_nothing_else():
    state = np.random.get_state(legacy=False)["state"]["key"].copy()
    first = stream(3, "noise").random(4)
    assert (first == stream(3, "noise").random(4)).all()
    assert not np.isin(first, np.concatenate([stream(4, "noise").random(4), stream(3, "noises").random(4)])).any()
    assert (state == np.random.get_state(legacy=False)["state"]["key"]).all()
    words = np.frombuffer(hashlib.sha256(b"noise").digest(), "<u4").tolist()
    expected = np.random.Generator(np.random.PCG64(np.random.SeedSequence(3, spawn_key=tuple(words))))
    assert (first == expected.random(4)).all()


@pytest.mark.parametrize("counts", [(7,), (1, 1), (1, 99), (50, 50, 50), (212, 357), (3, 5, 90, 1, 17), (60,) * 10])
def test_every_stretch_from_either_end_is_stratified_within_one_sample(counts: tuple[int, ...]):
    labels = stream(0, "test").permutation(np.repeat(np.arange(len(counts)), counts))
    n = len(labels)
    order = interleaved(np.arange(n), labels)
    assert sorted(order) == list(range(n))
    assert all((np.diff(order[labels[order] == c]) > 0).all() for c in range(len(counts)))
    onehot = labels[order][:, None] == np.arange(len(counts))
    share = np.arange(1, n + 1)[:, None] * np.array(counts) / n
    assert np.abs(np.cumsum(onehot, 0) - share).max() < 1
    assert np.abs(np.cumsum(onehot[::-1], 0) - share).max() < 1


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_split_is_disjoint_stratified_nested_and_redrawn_by_the_seed(seed: int):
    labels = np.repeat([0, 1, 2], [100, 40, 11])
    train, valid, test = stratified_split(seed, labels, train=70, valid=20, test=30)
    assert len({*train, *valid, *test}) == 120
    rest = np.setdiff1d(np.arange(151), test)
    for chosen, pool in ((test, np.arange(151)), (train, rest), (valid, rest)):
        share = len(chosen) * np.bincount(labels[pool]) / len(pool)
        assert (np.abs(np.bincount(labels[chosen], minlength=3) - share) < 1).all()
    more = stratified_split(seed, labels, train=80, valid=35, test=30)
    assert (more[0][:70] == train).all()
    assert (more[1][-20:] == valid).all()
    assert (more[2] == test).all()
    everything = stratified_split(seed, labels, train=None, valid=20, test=30)
    assert len(everything[0]) == 101
    other = stratified_split(seed + 1, labels, train=70, valid=20, test=30)
    assert all(set(a) != set(b) for a, b in zip(other, (train, valid, test), strict=True))


@pytest.mark.parametrize("sizes", [(0, 0, 0), (8, 2, 1), (None, 6, 4), (5, -1, 0), (5, 0, -1)])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match=r"cannot draw .* from 10"):
        stratified_split(0, np.zeros(10, int), train=sizes[0], valid=sizes[1], test=sizes[2])


def test_label_noise_redraws_exactly_its_fraction_over_all_classes():
    labels = np.arange(20_000) % 10
    noisy = with_label_noise(0, labels, np.arange(20_000), fraction=0.15, classes=10)
    wrong = (noisy != labels).mean()
    assert abs(wrong - 0.135) < 4 * math.sqrt(0.15 * 0.1 * 0.9 / 20_000)
    random = with_label_noise(0, labels, np.arange(20_000), fraction=1.0, classes=10)
    assert np.abs(np.bincount(random, minlength=10) - 2000).max() < 4 * math.sqrt(20_000 * 0.09)
    assert abs((random == labels).mean() - 0.1) < 4 * math.sqrt(0.09 / 20_000)
    changed = noisy != labels
    assert (random[changed] == noisy[changed]).all()
    assert (labels == np.arange(20_000) % 10).all()
    with pytest.raises(ValueError, match=r"from 0 to 1, not 1\.5"):
        with_label_noise(0, labels, np.arange(20_000), fraction=1.5, classes=10)


def test_digits_use_every_sample_once_and_are_redrawn_by_the_seed():
    from sklearn.datasets import load_digits

    raw, labels = load_digits(return_X_y=True)
    read = data.stored._digits()  # from the library's file, without the library
    assert np.array_equal(read[0], raw)
    assert np.array_equal(read[1], labels)
    drawn = data.digits(0)
    parts = [drawn.train, drawn.valid, drawn.test]
    together = torch.cat([part.inputs for part in parts])
    assert sorted(map(bytes, (together * 16).to(torch.uint8).numpy())) == sorted(map(bytes, raw.astype(np.uint8)))
    assert together.min() == 0
    assert together.max() == 1
    assert together.dtype == torch.float32
    for part in parts:
        share = part.n * np.bincount(labels) / 1797
        assert np.abs(np.bincount(part.targets, minlength=10) - share).max() < 2
    assert same(drawn, data.digits(0))
    other = data.digits(1)
    assert all(rows(a) != rows(b) for a, b in zip(parts, (other.train, other.valid, other.test), strict=True))


def test_label_noise_leaves_inputs_validation_and_test_alone():
    clean, noisy = data.digits(5), data.digits(5, label_noise=1.0)
    assert torch.equal(clean.train.inputs, noisy.train.inputs)
    assert torch.equal(clean.valid.targets, noisy.valid.targets)
    assert torch.equal(clean.test.targets, noisy.test.targets)
    kept = (clean.train.targets == noisy.train.targets).float().mean()
    assert abs(kept - 0.1) < 4 * math.sqrt(0.09 / 1257)


def test_breast_cancer_is_standardised_by_its_training_samples_alone():
    drawn = data.breast_cancer(0)
    inputs = drawn.train.inputs.double()
    assert inputs.mean(0).abs().max() < 1e-6
    assert (inputs.std(0, correction=0) - 1).abs().max() < 1e-6
    assert drawn.test.inputs.double().mean(0).abs().max() > 1e-3
    smaller = data.breast_cancer(0, train=100)
    assert torch.equal(smaller.train.targets, drawn.train.targets[:100])
    assert torch.equal(smaller.test.targets, drawn.test.targets)


def test_data_moves_to_a_device():
    moved = data.rings(0).to("meta")
    assert moved.train.inputs.device.type == "meta"
    assert moved.test is None
    assert moved.shape == (2,)


def test_noisy_swiss_roll_lies_on_its_spiral_and_is_its_own_point_reflection():
    points, labels = generated.swiss_roll_points(0, "test", per_class=500, variant="noisy", noise=0.0)
    assert (points[500:] == -points[:500]).all()
    assert labels.tolist() == [0] * 500 + [1] * 500
    radius = np.linalg.norm(points[:500], axis=1)
    angle = radius / 1.5  # radius = 1.5 angle
    assert np.allclose(points[:500], 1.5 * angle[:, None] * np.stack([-np.cos(angle), np.sin(angle)], 1))
    assert angle.max() <= 600 * math.pi / 180
    share = (angle / np.deg2rad(600)) ** 2  # uniform, because the angle is a square root of a uniform number
    assert abs(share.mean() - 0.5) < 4 / math.sqrt(12 * 500)
    noisy, _ = generated.swiss_roll_points(0, "test", per_class=500, variant="noisy", noise=0.5)
    assert abs((noisy - points)[:500].std() - 0.5) < 4 * 0.5 / math.sqrt(2 * 1000)
    assert (noisy[500:] == -noisy[:500]).all()


def test_swiss_roll_splits_all_points_and_their_reflections():
    drawn = data.swiss_roll(0)
    assert (drawn.train.n, drawn.test.n, drawn.valid) == (200, 200, None)
    together = rows(drawn.train) | rows(drawn.test)
    assert together == {(-np.frombuffer(row, np.float32)).tobytes() for row in together}
    assert int(drawn.train.targets.sum() + drawn.test.targets.sum()) == 200
    assert same(drawn, data.swiss_roll(0))
    assert not rows(drawn.train) & rows(data.swiss_roll(1).train)


def test_minefield_is_the_exact_spiral_of_figure_1():
    drawn = find("minefield", Path("unused")).call(0, None)
    assert (drawn.train.n, drawn.valid.n, drawn.test.n) == (132, 134, 134)
    together = torch.cat([drawn.train.inputs, drawn.valid.inputs, drawn.test.inputs]).double()
    label = torch.cat([drawn.train.targets, drawn.valid.targets, drawn.test.targets])
    radius = together[label == 0].norm(dim=1).sort().values
    theta = torch.arange(200, dtype=torch.float64) * (1.5 * 2 * math.pi / 200)
    assert torch.allclose(radius, 5 * theta.sqrt(), atol=1e-5)
    assert abs(radius.max() - 15.31) < 0.01
    assert rows(drawn.train) != rows(find("minefield", Path("unused")).call(1, None).train)


def test_rings_have_their_counts_radii_and_midway_points():
    gap = 0.05
    drawn = data.rings(0, gap=gap, test=1300)
    points, label = drawn.train.inputs.double().numpy(), drawn.train.targets.numpy()
    blue, red = points[label == 0], points[label == 1]
    assert len(blue) == 40
    assert np.allclose(np.linalg.norm(blue, axis=1), 0.4)
    radius = np.linalg.norm(red, axis=1)
    assert (np.isclose(radius, 0.95).sum(), np.isclose(radius, 0.4 + gap).sum()) == (80, 10)
    assert (np.isclose(points, [0, 0.4]).all(1)).sum() == 1  # angle 0 is (r sin 0, r cos 0)
    for point in red[np.isclose(radius, 0.4 + gap)]:
        near = np.sort(np.linalg.norm(blue - point, axis=1))
        half = math.pi / 40
        exact = math.hypot((0.4 + gap) * math.sin(half), (0.4 + gap) * math.cos(half) - 0.4)
        assert np.allclose(near[:2], exact)
        assert near[2] > 1.5 * exact
    assert np.bincount(drawn.test.targets).tolist() == [400, 900]
    assert np.allclose(sorted(set(drawn.test.inputs.norm(dim=1).numpy().round(4))), [0.4, 0.45, 0.95])
    assert torch.equal(drawn.train.inputs, data.rings(1, gap=gap).train.inputs)
    assert torch.equal(data.rings(0, gap=gap, test=130).test.inputs, drawn.test.inputs[:130])


@pytest.mark.parametrize(
    ("variant", "left"),
    [
        ("quadratic", lambda x: 10 + 1.22 * x**2),
        ("cubic", lambda x: 10 + 1.22 * x**2 + 1.22 * (x + 4) ** 3),
        ("continuous", lambda x: 10 + 1.22 * x**2 + 1.22 * (x + 4) ** 3 - 78.08),
    ],
)
def test_polynomials_on_their_grids(variant, left):
    drawn = data.noisy_polynomial(0, variant=variant)
    x, y = drawn.test.inputs.double(), drawn.test.targets.double()
    assert torch.allclose(x[:, 0], torch.linspace(-2, 2, 100, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(y, torch.where(x < 0, left(x), 10 + 1.22 * x**2), atol=1e-4)
    assert torch.allclose(drawn.train.inputs[:, 0], torch.linspace(-8, 8, 100), atol=1e-5)
    assert torch.equal(drawn.train.inputs, drawn.valid.inputs)
    assert drawn.train.targets.shape == (100, 1)
    around = np.array([-1e-12, 1e-12])
    jump = np.diff(data.polynomial(around, variant=variant))[0]
    assert abs(jump - (-78.08 if variant == "cubic" else 0)) < 1e-9


def test_polynomial_noise_has_its_sd_and_differs_between_sets():
    drawn = data.noisy_polynomial(0, train=20_000, valid=20_000, test=20_000, test_noise=3.0)
    residuals = [
        (part.targets.double() - torch.from_numpy(data.polynomial(part.inputs.double().numpy())))[:, 0]
        for part in (drawn.train, drawn.valid, drawn.test)
    ]
    for residual, sd in zip(residuals, (10, 10, 3), strict=True):
        assert abs(residual.std() - sd) < 4 * sd / math.sqrt(40_000)
    assert abs(torch.corrcoef(torch.stack(residuals))[0, 1]) < 4 / math.sqrt(20_000)
    assert same(data.noisy_polynomial(1), data.noisy_polynomial(1))
    assert not torch.equal(data.noisy_polynomial(1).train.targets, data.noisy_polynomial(2).train.targets)
    scattered = data.noisy_polynomial(0, grid=False, train=50)
    assert scattered.train.inputs.abs().max() < 8
    assert torch.equal(scattered.train.inputs[:30], data.noisy_polynomial(0, grid=False, train=30).train.inputs)


def test_mnist1d_is_balanced_standardised_nested_and_reproducible():
    drawn = data.mnist1d(0, train=1005, valid=50, test=100)
    assert np.bincount(drawn.train.targets).tolist() == [101] * 5 + [100] * 5
    assert abs(drawn.train.inputs.double().mean()) < 1e-6
    assert abs(drawn.train.inputs.double().std(correction=0) - 1) < 1e-6
    assert same(drawn, data.mnist1d(0, train=1005, valid=50, test=100))
    smaller = data.mnist1d(0, train=500, valid=0, test=100).train.inputs.double()
    part = drawn.train.inputs[:500].double()
    assert torch.allclose(smaller, (part - part.mean()) / part.std(correction=0), atol=1e-5)
    assert not torch.equal(drawn.train.inputs, data.mnist1d(1, train=1005, valid=50, test=100).train.inputs)


def test_mnist1d_without_noise_is_the_stretched_sheared_template():
    """Undoing nothing but the random roll and scale: what is left of a signal correlates fully with its stroke."""
    signals = generated._signals(0, "test", np.arange(200) % 10, 0.0, 0.0)
    ramp = np.linspace(-0.5, 0.5, 40)
    # The surroundings are exactly 0 before the shear, so most places lie on one line through the middle.
    slope = np.median(signals / ramp, axis=1)
    assert np.abs(slope).max() <= 0.375
    straight = signals + 0 - slope[:, None] * ramp
    assert (np.isclose(straight, 0, atol=1e-9).mean(1) > 0.5).all()
    stroke = np.array(generated._STROKES)
    stroke = (stroke - stroke.mean(1, keepdims=True)) / stroke.std(1, keepdims=True)
    peak = np.abs(stroke - stroke[:, :1]).max(1)[np.arange(200) % 10] / 6
    assert (np.abs(straight).max(1) <= 1.2 * peak + 1e-9).all()
    assert (np.abs(straight).max(1) >= 0.8 * 0.6 * peak).all()


def test_mnist1d_is_as_hard_for_a_linear_model_as_published():
    from sklearn.linear_model import LogisticRegression

    drawn = data.mnist1d(0, valid=0, test=2000)
    model = LogisticRegression(max_iter=300).fit(drawn.train.inputs.numpy(), drawn.train.targets.numpy())
    accuracy = model.score(drawn.test.inputs.numpy(), drawn.test.targets.numpy())
    assert abs(accuracy - 0.32) < 4 * math.sqrt(0.32 * 0.68 / 2000)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: data.swiss_roll(0, train=3, test=0), "even number"),
        (lambda: data.swiss_roll(0, variant="flat"), "one of noisy, minefield"),
        (lambda: data.rings(0, train=100), "multiple of 13"),
        (lambda: data.noisy_polynomial(0, variant="linear"), "one of quadratic, cubic, continuous"),
        (lambda: data.noisy_polynomial(0, interval=(1.0, 1.0)), "low < high"),
        (lambda: data.mnist1d(0, train=0), "train from 1"),
        (lambda: data.mnist1d(-1), "a seed is a whole number from 0"),
    ],
)
def test_impossible_settings_are_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


@pytest.mark.parametrize("name", [n for n in data.names() if n not in data.HUB])
def test_named_sets_are_what_their_source_says(name: str, tmp_path: Path):
    source = find(name, tmp_path)
    assert not list(tmp_path.iterdir())
    drawn = source.call(0, None)
    assert source.content is None
    assert (drawn.shape, drawn.outputs, drawn.task) == (source.shape, source.outputs, source.task)
    assert drawn.train.n + (drawn.valid.n if drawn.valid else 0) == source.n_train
    assert drawn.test.n == source.n_test
    assert Source.from_json(source.to_json()) == source
    assert key(source.call) == key(Source.from_json(source.to_json()).call)
    assert same(drawn, Source.from_json(source.to_json()).call(0, None))


def test_unknown_names_are_refused_with_the_nearest_one_before_any_network(tmp_path: Path):
    with pytest.raises(LookupError, match="did you mean 'mnist'"):
        find("mnistt", tmp_path)
    with pytest.raises(LookupError, match="did you mean 'breast_cancer'"):
        find("breast-cancer", tmp_path)
    hostile = [
        "",
        "..",
        "../..",
        "/nowhere",
        "./nope",
        "~",
        "-rf",
        "a\nb",
        "a\0b",
        "x" * 300,
        "a/../b",
        "a\\b",
        "a/b/c/d",
    ]
    for name in hostile:
        if not os.path.isdir(name):
            with pytest.raises(LookupError, match="neither a folder"):
                find(name, tmp_path)
    assert not list(tmp_path.iterdir())
