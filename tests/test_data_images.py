# pyright: reportOptionalMemberAccess=false
# Most sets here have all three parts, and a missing one fails the test anyway.

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pictures
import pytest
import torch
from pictures import alone as alone  # used by every test here
from pictures import parquet, png, rows, same
from PIL import Image

from landscope.data import Source, find, images
from landscope.data.cache import held
from landscope.data.stored import _normalisation
from landscope.spec import call, key


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return pictures.folder(tmp_path)


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
    held.cache_clear()
    assert same(source.call(0, tmp_path / "cache"), drawn)


def test_a_damaged_cache_is_found_out_and_rebuilt(folder: Path, tmp_path: Path):
    source = find(str(folder), tmp_path)
    place = tmp_path / "data" / f"{source.content}.safetensors"
    whole = place.read_bytes()
    for at in (9, len(whole) // 2, len(whole) - 1):
        place.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        held.cache_clear()
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


@pytest.fixture(scope="session")
def mnist(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Source, Path]:
    cache = tmp_path_factory.mktemp("mnist")
    return find(str(data_folder / "mnist"), cache), cache


@pytest.mark.data
def test_mnist_is_mnist(mnist: tuple[Source, Path]):
    source, cache = mnist
    assert (source.name, source.shape, source.outputs) == ("mnist", (1, 28, 28), 10)
    assert (source.n_train, source.n_test) == (60_000, 10_000)
    tensors, _ = held(cache / "data" / f"{source.content}.safetensors")
    assert tensors["train_labels"][:5].tolist() == [5, 0, 4, 1, 9]
    mean, std = _normalisation(tensors["train_inputs"], np.arange(60_000), None, None)
    assert (mean.round(4).tolist(), std.round(4).tolist()) == ([0.1307], [0.3081])
    assert np.bincount(tensors["test_labels"]).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.mark.data
def test_mnist_subsets_are_drawn(mnist: tuple[Source, Path]):
    source, cache = mnist
    drawn = source.draw(train=5000, valid=1000, test=2000)(0, cache)
    assert drawn.train.inputs.shape == (5000, 1, 28, 28)
    share = 5000 * np.bincount(held(cache / "data" / f"{source.content}.safetensors")[0]["train_labels"]) / 60_000
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
