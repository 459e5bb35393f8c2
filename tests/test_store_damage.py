"""Nothing that is not what was written is ever believed, and what fails while writing leaves no half file."""

import errno
import math
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import MEASURE, content, recipe
from stores import made

from landscope import files, store
from landscope.files import Damaged, StoreFull, publish, seal, tensor_bytes, tensor_meta, unseal
from landscope.spec import canonical_json, key

# --- damage -------------------------------------------------------------------------------------------------------


def _flips(data: bytes) -> list[bytes]:
    places = [(at, bit) for at in range(len(data)) for bit in range(8)]
    return [data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :] for at, bit in places]


def test_every_flipped_bit_and_every_cut_of_a_sealed_file_is_seen() -> None:
    data = seal({"a": [1.5, math.nan], "b": "text"})
    for torn in [*_flips(data), *(data[:n] for n in range(len(data))), data + b"\n", bytes(len(data))]:
        with pytest.raises(Damaged, match=r"x\.json"):
            unseal("x.json", torn)


def test_every_flipped_bit_and_every_cut_of_a_tensor_file_is_seen() -> None:
    data = tensor_bytes({"w": np.arange(5.0)}, {"run": "r"})
    for torn in [*_flips(data), *(data[:n] for n in range(len(data))), data + b"\0", bytes(len(data))]:
        with pytest.raises(Damaged, match=r"w\.safetensors"):
            tensor_meta(Path("w.safetensors"), torn)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small store with every kind of file."""
    root = tmp_path_factory.mktemp("store")
    made(root, 0)
    made(root, 1)
    unfinished = store.write_spec(root, recipe(2))
    store.save_partial(root, unfinished, {"w": np.arange(9.0)}, {"step": 5})
    store.declare(root, {"experiment": "e"}, {"claims": ["c"]})
    return root


def _read_all(root: Path) -> dict[str, Any]:
    """Everything that a reader may believe, by what it is; what is damaged or absent is left out."""
    found: dict[str, Any] = {}

    def take(name: str, reader: Callable[[], Any]) -> None:
        try:
            value = reader()
        except (Damaged, LookupError, FileNotFoundError):
            return
        if value is not None:
            found[name] = value

    for index in range(3):
        run = key(recipe(index))
        take(f"spec {index}", lambda run=run: canonical_json(store.read_spec(root, run)))
        take(f"record {index}", lambda run=run: store.run_record(root, run))
        take(f"history {index}", lambda run=run: repr(store.history(root, run)))
        take(f"environment {index}", lambda run=run: store.environment(root, run))
        take(f"partial {index}", lambda run=run: store.load_partial(root, run, numpy=True))
        for step in (0, 100):
            take(f"state {index} {step}", lambda run=run, s=step: store.load_state(root, run, s, numpy=True))
        found |= {f"value {index} {at}": value for at, value in store.values(root, run).items()}
    take("plans", lambda: store.plans(root))
    pairs = [("published", recipe(index)) for index in range(3)]
    rows = store.results(root, pairs, {"published": ("end",)}, (MEASURE,)).rows()
    found |= {f"row {row['run']}": row for row in rows}
    return {name: repr(value) for name, value in found.items()}


def _damage(data: bytes, how: str, draw: random.Random) -> bytes:
    torn = bytearray(data)
    if how == "flip":
        torn[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif how == "cut":
        del torn[draw.randrange(len(data)) :]
    elif how == "zero":
        start = draw.randrange(0, len(data), 512)
        torn[start : start + 512] = bytes(len(torn[start : start + 512]))
    return bytes(torn)


def _never_believed(sound: Path, root: Path, times: int) -> None:
    shutil.copytree(sound, root)
    true = _read_all(root)
    draw = random.Random(1)
    for _ in range(times):
        path = root / draw.choice(sorted(content(root)))
        data = path.read_bytes()
        torn = _damage(data, draw.choice(["flip", "flip", "cut", "zero"]), draw)
        path.write_bytes(torn)
        found = _read_all(root)
        assert found.items() <= true.items(), path
        if torn != data:
            assert path in [damage.path for damage in store.verify(root)]
        path.write_bytes(data)
    assert _read_all(root) == true
    assert store.verify(root) == []


def test_a_damaged_file_gives_no_number_and_is_named(sound: Path, tmp_path: Path) -> None:
    _never_believed(sound, tmp_path / "store", 40)


@pytest.mark.soak
def test_ten_thousand_damaged_files(sound: Path, tmp_path: Path) -> None:
    _never_believed(sound, tmp_path / "store", 10_000)


def test_a_file_of_another_run_is_not_believed(sound: Path, tmp_path: Path) -> None:
    root = tmp_path / "store"
    shutil.copytree(sound, root)
    true = _read_all(root)
    one, two = root / key(recipe(0)), root / key(recipe(1))
    (cell_of_one,) = (path for path in (one / "values").glob("*.json"))
    copies = [(one / name, two / name) for name in ("spec.json", "run.json", "history.jsonl", "weights.safetensors")]
    for source, target in [*copies, (cell_of_one, two / "values" / cell_of_one.name)]:
        before = target.read_bytes() if target.exists() else None
        shutil.copy(source, target)
        assert _read_all(root).items() <= true.items(), target
        assert target in [damage.path for damage in store.verify(root)]
        target.unlink() if before is None else target.write_bytes(before)


def test_lost_weights_are_seen_when_they_are_needed_and_come_back(tmp_path: Path) -> None:
    run = made(tmp_path)
    before = content(tmp_path)
    (tmp_path / run / "weights.safetensors").unlink()
    assert store.run_record(tmp_path, run) is not None
    assert (100, key(MEASURE)) in store.values(tmp_path, run)
    with pytest.raises(Damaged, match="missing"):
        store.load_state(tmp_path, run, 100, numpy=True)
    made(tmp_path)
    assert content(tmp_path) == before


def test_a_damaged_specification_is_written_again(tmp_path: Path) -> None:
    run = store.write_spec(tmp_path, recipe(0))
    path = tmp_path / run / "spec.json"
    path.write_bytes(path.read_bytes().replace(b"100", b"101"))
    with pytest.raises(Damaged, match="does not hash"):
        store.read_spec(tmp_path, run)
    store.write_spec(tmp_path, recipe(0))
    assert store.read_spec(tmp_path, run) == recipe(0)


# --- publishing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["write", "fsync", "replace", "close"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_failed_write_leaves_the_old_file_and_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    path = tmp_path / "x.json"
    publish(path, b"old")
    real = getattr(os, name)

    def fails(*given: Any) -> None:
        if name == "close":
            real(*given)
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, name, fails)
        with pytest.raises(OSError, match="5,000 bytes") as caught:
            publish(path, bytes(5000))
    assert caught.value.errno == number
    assert isinstance(caught.value, StoreFull) == (number != errno.EIO)
    assert str(path) in str(caught.value)
    assert "same command" in str(caught.value)
    assert content(tmp_path) == {"x.json": b"old"}


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ESTALE])
def test_a_rename_that_acts_and_then_fails_has_acted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real = os.replace

    def acts_and_fails(source: Any, target: Any) -> None:
        real(source, target)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", acts_and_fails)
    assert publish(tmp_path / "x", b"data")
    assert content(tmp_path) == {"x": b"data"}


def test_a_stale_handle_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path / "x", b"data")
    real, stale = os.open, [True]

    def stale_once(path: Any, *given: Any, **more: Any) -> int:
        if stale and not Path(path).is_dir():
            stale.clear()
            raise OSError(errno.ESTALE, "stale")
        return real(path, *given, **more)

    monkeypatch.setattr(os, "open", stale_once)
    assert files.read(tmp_path / "x") == b"data"
    assert not stale
    stale.append(True)
    assert publish(tmp_path / "y", b"more")
    assert not stale
    assert files.read(tmp_path / "y") == b"more"


def test_a_temporary_that_somebody_removed_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, removed = os.replace, []

    def loses_the_first(source: Any, target: Any) -> None:
        if not removed:
            removed.append(source)
            os.unlink(source)
        real(source, target)

    monkeypatch.setattr(os, "replace", loses_the_first)
    publish(tmp_path / "x", b"data")
    assert content(tmp_path) == {"x": b"data"}


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        publish(tmp_path / "nowhere" / "x", b"data")


def test_only_the_first_writes_where_nothing_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert publish(tmp_path / "x", b"first", replace=False)
    assert not publish(tmp_path / "x", b"second", replace=False)
    monkeypatch.setattr(os, "link", lambda *_, **__: (_ for _ in ()).throw(PermissionError(errno.EPERM, "no links")))
    assert not publish(tmp_path / "x", b"third", replace=False)
    assert publish(tmp_path / "y", b"first", replace=False)
    assert content(tmp_path) == {"x": b"first", "y": b"first"}
