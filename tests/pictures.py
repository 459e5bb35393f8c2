# pyright: reportOptionalMemberAccess=false
# Sets that are compared are there in both or in neither.

"""Folders of small pictures as the hub holds them, and tests that neither ask the network nor write to HOME."""

import io
import json
import socket
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from landscope.data import Data
from landscope.data.cache import held


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


def folder(tmp_path: Path) -> Path:
    """60 training and 12 test images of 3 classes; every image has its own grey level."""
    place = tmp_path / "set"
    parquet(place / "train-00000-of-00001.parquet", [png(i) for i in range(60)], [i % 3 for i in range(60)])
    parquet(place / "test-00000-of-00001.parquet", [png(100 + i) for i in range(12)], [i % 3 for i in range(12)])
    return place


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory):
    """No test may ask the network or write to HOME."""

    def refused(*args, **kwargs):
        raise AssertionError("the network was asked")

    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    held.cache_clear()
    yield
    assert not list(home.rglob("*"))


def same(a: Data, b: Data) -> bool:
    return all(
        (x is None and y is None) or (torch.equal(x.inputs, y.inputs) and torch.equal(x.targets, y.targets))
        for x, y in ((a.train, b.train), (a.valid, b.valid), (a.test, b.test))
    )


def rows(batches) -> set[bytes]:
    return {row.numpy().tobytes() for row in batches.inputs}
