# pyright: reportOptionalMemberAccess=false
# Most sets here have all three parts, and a missing one fails the test anyway.

import io
from pathlib import Path

import numpy as np
import pictures
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import alone as alone  # used by every test here
from pictures import parquet, png
from PIL import Image

from landscope.data import decoding, find, stream


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return pictures.folder(tmp_path)


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
