# pyright: reportOptionalMemberAccess=false
# Most sets here have all three parts, and a missing one fails the test anyway.

import hashlib
import io
import json
import math
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from landscope import data, decoding, generated
from landscope.data import Data, Source, find, images, stream
from landscope.generated import interleaved, stratified_split, with_label_noise
from landscope.spec import call, key

# --- small folders ------------------------------------------------------------------------------------------------


def png(value: int, size: tuple[int, int] = (3, 2), mode: str = "L") -> bytes:
    """A picture of one value; ``size`` is (width, height)."""
    picture = Image.new(
        mode, size, value if mode in ("L", "P", "1") else (value,) * len(Image.new(mode, (1, 1)).getbands())
    )
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def parquet(path: Path, pictures: list, labels: list, classes: int | None = None, column: str = "image") -> Path:
    features = {"label": {"names": [f"c{i}" for i in range(classes or 0)], "_type": "ClassLabel"}}
    note = {"huggingface": json.dumps({"info": {"features": features}})} if classes else None
    image = pa.array(
        [{"bytes": p, "path": None} for p in pictures], pa.struct({"bytes": pa.binary(), "path": pa.string()})
    )
    table = pa.table({column: image, "label": pa.array(labels, pa.int64())})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(note), path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """60 training and 12 test images of 3 classes; every image has its own grey level."""
    place = tmp_path / "set"
    parquet(place / "train-00000-of-00001.parquet", [png(i) for i in range(60)], [i % 3 for i in range(60)])
    parquet(place / "test-00000-of-00001.parquet", [png(100 + i) for i in range(12)], [i % 3 for i in range(12)])
    return place


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory):
    """No test may ask the network or write to HOME."""

    def refused(*args, **kwargs):
        raise AssertionError("the network was asked")

    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    data._held.cache_clear()
    yield
    assert not list(home.rglob("*"))


def same(a: Data, b: Data) -> bool:
    return all(
        (x is None and y is None) or (torch.equal(x.inputs, y.inputs) and torch.equal(x.targets, y.targets))
        for x, y in ((a.train, b.train), (a.valid, b.valid), (a.test, b.test))
    )


def rows(batches) -> set[bytes]:
    return {row.numpy().tobytes() for row in batches.inputs}


# --- streams, splits, label noise ---------------------------------------------------------------------------------


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


# --- scikit-learn's sets ------------------------------------------------------------------------------------------


def test_digits_use_every_sample_once_and_are_redrawn_by_the_seed():
    from sklearn.datasets import load_digits

    raw, labels = load_digits(return_X_y=True)
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


# --- generated ones -----------------------------------------------------------------------------------------------


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


# --- finding ------------------------------------------------------------------------------------------------------


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


def test_folders_that_are_no_data_set_are_refused_saying_what_is_expected(tmp_path: Path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "file.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="holds no data set: expected Parquet files"):
        find(str(empty), tmp_path)
    with pytest.raises(ValueError, match="is no folder"):
        find(str(tmp_path / "file.parquet"), tmp_path)
    parquet(empty / "test.parquet", [png(1)], [0])
    with pytest.raises(ValueError, match="no training split"):
        find(str(empty), tmp_path / "cache")


def test_pixels_and_labels_are_those_of_the_files(folder: Path, tmp_path: Path):
    source = find(str(folder), tmp_path)
    assert (source.name, source.shape, source.outputs, source.task) == ("set", (1, 2, 3), 3, "classification")
    assert (source.n_train, source.n_test, source.note) == (60, 12, "")
    drawn = source.draw(mean=(0.0,), std=(1.0,))(0, tmp_path)
    level = (drawn.train.inputs * 255).round()
    assert (level == level[:, :1, :1, :1]).all()
    assert sorted(level[:, 0, 0, 0].tolist()) == list(range(60))
    assert torch.equal(level[:, 0, 0, 0].long() % 3, drawn.train.targets)
    assert (drawn.test.inputs[:, 0, 0, 0] * 255).round().tolist() == list(range(100, 112))
    assert (drawn.valid, drawn.outputs) == (None, 3)
    assert Source.from_json(source.to_json()) == source


def test_subsets_are_disjoint_stratified_and_drawn_by_the_seed(folder: Path, tmp_path: Path):
    source = find(str(folder), tmp_path)
    drawn = source.draw(train=30, valid=9, test=6)(0, tmp_path)
    assert not rows(drawn.train) & rows(drawn.valid)
    for part, size in ((drawn.train, 10), (drawn.valid, 3), (drawn.test, 2)):
        assert np.bincount(part.targets).tolist() == [size] * 3
    other = source.draw(train=30, valid=9, test=6)(1, tmp_path)
    fixed = {"mean": (0.0,), "std": (1.0,)}
    nested = source.draw(train=20, valid=9, test=3, **fixed)(0, tmp_path)
    whole = source.draw(train=30, valid=9, test=6, **fixed)(0, tmp_path)
    assert torch.equal(nested.train.inputs, whole.train.inputs[:20])
    assert torch.equal(nested.test.inputs, whole.test.inputs[:3])
    assert torch.equal(nested.valid.inputs, whole.valid.inputs)
    assert rows(source.draw(test=6, **fixed)(1, tmp_path).test) != rows(whole.test)
    assert not torch.equal(other.train.inputs, drawn.train.inputs)
    noisy = source.draw(train=30, valid=9, test=6, label_noise=1.0)(0, tmp_path)
    assert torch.equal(noisy.valid.targets, drawn.valid.targets)
    assert not torch.equal(noisy.train.targets, drawn.train.targets)
    for sizes in ({"train": 61}, {"valid": 60}, {"test": 13}):
        with pytest.raises(ValueError, match="cannot draw"):
            source.draw(**sizes)(0, tmp_path)


def test_normalisation_is_that_of_the_training_images_drawn(folder: Path, tmp_path: Path):
    source = find(str(folder), tmp_path)
    drawn = source.draw(train=30, valid=9)(0, tmp_path)
    assert abs(drawn.train.inputs.double().mean()) < 1e-6
    assert abs(drawn.train.inputs.double().std(correction=0) - 1) < 1e-6
    assert drawn.test.inputs.mean() > 1
    with pytest.raises(ValueError, match="both mean and std"):
        source.draw(mean=(0.5,))(0, tmp_path)
    with pytest.raises(ValueError, match="1 values"):
        source.draw(mean=(0.5, 0.5), std=(1.0, 1.0))(0, tmp_path)
    with pytest.raises(ValueError, match="above 0"):
        source.draw(mean=(0.5,), std=(0.0,))(0, tmp_path)


def test_identity_is_content(folder: Path, tmp_path: Path):
    source = find(str(folder), tmp_path)
    odd = tmp_path / "od[d] *na\nme"
    shutil.copytree(folder, odd / "data")
    os.utime(odd / "data" / "train-00000-of-00001.parquet", (0, 0))
    copied = find(str(odd), tmp_path / "other")
    assert copied.content == source.content
    assert key(copied.call) == key(source.call)
    assert str(tmp_path) not in repr(source.call)
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in folder.iterdir():
        (linked / file.name).symlink_to(file)
    assert find(str(linked), tmp_path).content == source.content
    test = odd / "data" / "test-00000-of-00001.parquet"
    parquet(test, [png(100 + i + (i == 11)) for i in range(12)], [i % 3 for i in range(12)])
    assert find(str(odd), tmp_path).content != source.content


def test_the_cache_stands_in_for_the_folder_and_nothing_else_is_written(folder: Path, tmp_path: Path):
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}
    seen = []
    source = find(str(folder), tmp_path / "cache", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(60, 72), (72, 72)]
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()} == before
    assert [p.name for p in (tmp_path / "cache" / "data").iterdir()] == [f"{source.content}.safetensors"]
    assert find(str(folder), tmp_path / "cache", progress=lambda *_: pytest.fail("decoded again")) == source
    drawn = source.call(0, tmp_path / "cache")
    shutil.rmtree(folder)
    data._held.cache_clear()
    assert same(source.call(0, tmp_path / "cache"), drawn)


def test_a_damaged_cache_is_found_out_and_rebuilt(folder: Path, tmp_path: Path):
    source = find(str(folder), tmp_path)
    place = tmp_path / "data" / f"{source.content}.safetensors"
    whole = place.read_bytes()
    for at in (9, len(whole) // 2, len(whole) - 1):
        place.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        data._held.cache_clear()
        with pytest.raises(FileNotFoundError, match=r"damaged in the cache .* give --data FOLDER"):
            source.call(0, tmp_path)
        assert find(str(folder), tmp_path) == source
        assert place.read_bytes() == whole
    place.write_bytes(whole[:-100])
    assert find(str(folder), tmp_path) == source
    place.unlink()
    with pytest.raises(FileNotFoundError, match=r"not in the cache .* give --data FOLDER"):
        source.call(0, tmp_path)
    other = place.with_name("0" * 16 + ".safetensors")
    other.write_bytes(whole)
    with pytest.raises(FileNotFoundError, match="damaged"):
        images(0, tmp_path, content="0" * 16)


def test_content_is_never_a_path(tmp_path: Path):
    for content in ("../../etc/passwd", "0" * 15, "0" * 16 + "\n", "", "G" * 16):
        with pytest.raises(ValueError, match="16 hexadecimal digits"):
            images(0, tmp_path, content=content)
    with pytest.raises(ValueError, match="read from a cache"):
        images(0, None, content="0" * 16)


def test_class_labels_say_how_many_classes_there_are(tmp_path: Path):
    parquet(tmp_path / "set/train.parquet", [png(i) for i in range(10)], [i % 2 for i in range(10)], classes=5)
    parquet(tmp_path / "set/test.parquet", [png(1)], [4], classes=5)
    assert find(str(tmp_path / "set"), tmp_path).outputs == 5


def test_a_missing_test_split_is_held_out_by_the_seed_and_said(tmp_path: Path):
    parquet(tmp_path / "set/images.parquet", [png(i) for i in range(50)], [i % 2 for i in range(50)])
    source = find(str(tmp_path / "set"), tmp_path)
    assert "no test split" in source.note
    assert "no test split" in repr(source)
    assert (source.n_train, source.n_test) == (40, 10)
    fixed = source.draw(mean=(0.0,), std=(1.0,), valid=8)
    drawn = fixed(0, tmp_path)
    assert (drawn.train.n, drawn.valid.n, drawn.test.n) == (32, 8, 10)
    assert len(rows(drawn.train) | rows(drawn.valid) | rows(drawn.test)) == 50
    assert rows(drawn.test) != rows(fixed(1, tmp_path).test)
    parquet(tmp_path / "set/valid/images.parquet", [png(1)], [0])
    (tmp_path / "set/train").mkdir()
    (tmp_path / "set/images.parquet").rename(tmp_path / "set/train/images.parquet")
    source = find(str(tmp_path / "set"), tmp_path)
    assert (source.n_train, source.n_test) == (50, 1)
    assert "validation split" in source.note


@pytest.mark.parametrize(
    ("train", "test", "classes", "message"),
    [
        ([0, 1, 2], [0, 3], None, r"row 1 \(from 0\) of the test split is 3; expected 0 to 2"),
        ([0, 1, 2], [0, 1], 2, r"row 2 \(from 0\) of the train split is 2; expected 0 to 1"),
        ([0, -1, 2], [0, 1], None, r"row 1 \(from 0\) of the train split is -1"),
        ([0, 1, 2], [-1], 3, r"row 0 \(from 0\) of the test split is -1"),
        ([0, None, 2], [0], None, r"row 1 \(from 0\) of the train split is missing"),
        ([0, 2**40], [0], None, r"row 1 \(from 0\) of the train split is 1,099,511,627,776"),
        ([-1, -1], [-1], None, r"row 0 \(from 0\) of the train split is -1"),
        ([], [0], None, "the train split in .* is empty"),
        ([0], [], None, "the test split in .* is empty"),
    ],
)
def test_labels_that_cannot_be_are_refused_by_row(tmp_path: Path, train, test, classes, message):
    parquet(tmp_path / "set/train.parquet", [png(1)] * len(train), train, classes)
    parquet(tmp_path / "set/test.parquet", [png(1)] * len(test), test, classes)
    with pytest.raises(ValueError, match=message):
        find(str(tmp_path / "set"), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def noise_png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(stream(0, "pixels").integers(0, 256, (28, 28), dtype=np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (noise_png()[:300], "row 1 .* cannot be used"),
        (b"not a picture", "row 1 .* cannot be used"),
        (None, "row 1 .* it is missing"),
        (png(1, (5, 5)), "measures 5 x 5 pixels, the first one 28 x 28.* resize or crop"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 28 28\n", "row 1 .* cannot be used"),
    ],
)
def test_pictures_that_cannot_be_used_are_refused_by_row(tmp_path: Path, picture, message):
    parquet(tmp_path / "set/train.parquet", [noise_png(), picture], [0, 1])
    with pytest.raises(ValueError, match=message):
        find(str(tmp_path / "set"), tmp_path / "cache")


def test_pictures_too_many_for_memory_are_refused_before_they_are_unpacked():
    with pytest.raises(ValueError, match="do not fit into memory"):
        decoding._pixels(png(0, (2000, 2000)), 1_000_000, None)


def test_sixteen_bit_pictures_are_refused(tmp_path: Path):
    buffer = io.BytesIO()
    Image.fromarray(np.full((2, 2), 1000, dtype=np.uint16)).save(buffer, format="PNG")
    parquet(tmp_path / "set/train.parquet", [buffer.getvalue()], [0])
    with pytest.raises(ValueError, match="8 bits a channel"):
        find(str(tmp_path / "set"), tmp_path / "cache")


def test_grey_palette_and_colour_pictures_share_a_set(tmp_path: Path):
    colour = Image.new("RGB", (3, 2), (10, 20, 30))
    buffers = [io.BytesIO() for _ in range(3)]
    colour.save(buffers[0], format="PNG")
    colour.convert("P", palette=Image.Palette.ADAPTIVE).save(buffers[1], format="PNG", transparency=b"\x80")
    colour.convert("RGBA").save(buffers[2], format="PNG")
    parquet(
        tmp_path / "set/train.parquet", [png(7), *(b.getvalue() for b in buffers), png(7, mode="LA")], [0] * 5, 1, "pic"
    )
    source = find(str(tmp_path / "set"), tmp_path)
    assert source.shape == (3, 2, 3)
    from landscope import files

    pixels = files.read_tensors(tmp_path / "data" / f"{source.content}.safetensors")[0]["train_inputs"]
    assert pixels[:, :, 0, 0].tolist() == [[7] * 3, [10, 20, 30], [10, 20, 30], [10, 20, 30], [7] * 3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "pointer of Git LFS"),
        (b"", "no readable Parquet"),
        (b"PAR1 but not really PAR1", "no readable Parquet"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, content, message):
    (tmp_path / "set").mkdir()
    (tmp_path / "set/train.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=rf"train\.parquet .*{message}"):
        find(str(tmp_path / "set"), tmp_path / "cache")


def test_flipped_bytes_never_end_in_anything_but_an_error_that_says_so(folder: Path, tmp_path: Path):
    file = folder / "train-00000-of-00001.parquet"
    whole, rng = file.read_bytes(), stream(0, "flips")
    refused = accepted = 0
    for _ in range(60):
        at = int(rng.integers(len(whole)))
        file.write_bytes(whole[:at] + bytes([whole[at] ^ int(rng.integers(1, 256))]) + whole[at + 1 :])
        try:
            find(str(folder), tmp_path / "cache")
        except (ValueError, OSError) as error:
            refused += "train" in str(error)
        else:
            accepted += 1
    assert refused + accepted == 60
    assert refused > 10


def test_columns_have_to_be_recognisable(tmp_path: Path):
    (tmp_path / "set").mkdir()
    for table, message in (
        (pa.table({"a": [b"x"], "b": [b"y"], "label": [0]}), "one column of images"),
        (pa.table({"image": [b"x"], "label": ["cat"]}), "one column of labels"),
        (pa.table({"image": [b"x"], "p": [0], "q": [0]}), "one column of labels"),
    ):
        pq.write_table(table, tmp_path / "set/train.parquet")
        with pytest.raises(ValueError, match=message):
            find(str(tmp_path / "set"), tmp_path / "cache")


def test_a_hub_name_is_asked_for_once_and_is_the_same_set_as_its_folder(folder: Path, tmp_path: Path, monkeypatch):
    asked = []

    def download(name, *, repo_type, revision, local_dir, allow_patterns):
        asked.append((name, repo_type, revision, allow_patterns))
        shutil.copytree(folder, Path(local_dir) / "plain_text")

    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    source = find("cifar10", tmp_path / "cache")
    assert asked == [("uoft-cs/cifar10", "dataset", None, ["*.parquet"])]
    assert source.content == find(str(folder), tmp_path / "other").content
    assert find("cifar10", tmp_path / "cache") == source
    assert find("uoft-cs/cifar10", tmp_path / "cache").content == source.content
    assert len(asked) == 1
    assert {p.name for p in (tmp_path / "cache/data").iterdir()} == {"hub.json", f"{source.content}.safetensors"}
    (tmp_path / "cache/data/hub.json").write_bytes(b"{}")
    assert find("cifar10", tmp_path / "cache") == source
    assert len(asked) == 2


def test_a_hub_that_cannot_be_reached_is_said(tmp_path: Path, monkeypatch):
    import huggingface_hub

    def download(*args, **kwargs):
        raise OSError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ConnectionError, match=r"did you mean 'ylecun/mnist'.* or give a folder"):
        find("ylecun/mnistt", tmp_path)
    assert not list((tmp_path / "data").iterdir())


def test_a_fresh_process_needs_no_network_and_no_home(folder: Path, tmp_path: Path):
    """The libraries that look for folders at import do so here with nothing to look at."""
    program = (
        "import socket, sys\n"
        "def no(*a, **k): raise SystemExit('network')\n"
        "socket.socket.connect = no; socket.getaddrinfo = no\n"
        "import os\n"
        "before = dict(os.environ)\n"
        "from pathlib import Path\n"
        "import landscope.data as data\n"
        "assert not {'torch', 'sklearn', 'datasets', 'scipy'} & set(sys.modules), 'heavy imports'\n"
        "data.names()\n"
        "source = data.find(sys.argv[1], Path(sys.argv[2]))\n"
        "assert dict(os.environ) == before\n"
        "print(source.content, end='')\n"
    )
    (tmp_path / "home").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), str(tmp_path / "cache")],
        env=os.environ | {"HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == find(str(folder), tmp_path / "cache").content
    assert not list((tmp_path / "home").rglob("*"))


def test_a_misspelt_setting_fails_at_once(folder: Path, tmp_path: Path):
    with pytest.raises(TypeError, match="no setting 'trian'"):
        find(str(folder), tmp_path).draw(trian=3)
    assert call(images, content="0" * 16)["label_noise"] == 0.0


# --- the real sets ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def mnist(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Source, Path]:
    cache = tmp_path_factory.mktemp("mnist")
    return find(str(data_folder / "mnist"), cache), cache


@pytest.mark.data
def test_mnist_is_mnist(mnist: tuple[Source, Path]):
    source, cache = mnist
    assert (source.name, source.shape, source.outputs) == ("mnist", (1, 28, 28), 10)
    assert (source.n_train, source.n_test) == (60_000, 10_000)
    tensors, _ = data._held(cache / "data" / f"{source.content}.safetensors")
    assert tensors["train_labels"][:5].tolist() == [5, 0, 4, 1, 9]
    mean, std = data._normalisation(tensors["train_inputs"], np.arange(60_000), None, None)
    assert (mean.round(4).tolist(), std.round(4).tolist()) == ([0.1307], [0.3081])
    assert np.bincount(tensors["test_labels"]).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.mark.data
def test_mnist_subsets_are_drawn(mnist: tuple[Source, Path]):
    source, cache = mnist
    drawn = source.draw(train=5000, valid=1000, test=2000)(0, cache)
    assert drawn.train.inputs.shape == (5000, 1, 28, 28)
    share = 5000 * np.bincount(data._held(cache / "data" / f"{source.content}.safetensors")[0]["train_labels"]) / 60_000
    assert np.abs(np.bincount(drawn.train.targets) - share).max() < 1
    assert not rows(drawn.train) & rows(drawn.valid)


@pytest.mark.data
def test_cifar10_test_images_decode(data_folder: Path, tmp_path: Path):
    """The test split alone stands in for the whole: all 60,000 take more than ten seconds."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set/train.parquet").symlink_to(data_folder / "cifar10" / "test-00000-of-00001.parquet")
    source = find(str(tmp_path / "set"), tmp_path / "cache")
    assert (source.shape, source.outputs) == ((3, 32, 32), 10)
    assert (source.n_train, source.n_test) == (8000, 2000)
    drawn = source.draw(train=1000, test=0)(0, tmp_path / "cache")
    assert np.bincount(drawn.train.targets).tolist() == [100] * 10
    assert torch.allclose(drawn.train.inputs.mean((0, 2, 3)), torch.zeros(3), atol=1e-4)
