"""The store: exact round trips, and nothing that is not what was written is ever believed."""

import errno
import json
import math
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness import MEASURE, cell, content, recipe, truth

from landscope import files, store
from landscope.files import Damaged, StoreFull, alive, process_name, publish, seal, tensor_bytes, tensor_meta, unseal
from landscope.spec import Call, Cell, Recipe, at, canonical_json, first_below, key
from landscope.types import Estimate

OTHER = Call("landscope.measures.flatness", (("samples", 3),))
RECORD = {"status": "done", "steps": 100, "gradient_evaluations": 800}
ROWS = [
    {"step": 0, "learning_rate": 0.1},
    {"step": 20, "train_loss": 0.5},
    {"step": 40, "train_loss": math.nan},
    {"step": 60, "train_loss": 0.05, "gradient_evaluations": 480},
    {"step": 80, "train_loss": 0.04},
]


def made(root: Path, index: int = 0, *, record: dict[str, Any] = RECORD, measured: bool = True) -> str:
    """A finished run, with its values at step 100."""
    own = recipe(index)
    run = store.write_spec(root, own)
    weights = {"w": np.random.default_rng(index).normal(size=30)}
    rows = [*ROWS, {"step": 100, "seed": index}]
    environment = {"seconds": 1.5}
    states = {0: weights, 100: weights}
    store.finish_run(root, run, record=record, history=rows, states=states, environment=environment)
    if measured:
        store.write_values(root, cell(own), {key(MEASURE): truth(index)})
    return run


def same(a: Any, b: Any) -> bool:
    """Equal to the bit, NaN included."""
    if isinstance(a, Estimate):
        fields = (a.mean, a.sem, a.n, a.draws, a.df) == (b.mean, b.sem, b.n, b.draws, b.df)
        if a.samples is None or b.samples is None:
            return fields and a.samples is b.samples
        return fields and same(a.samples, b.samples)
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


# --- exactness ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (0.1 + 0.2, 0.30000000000000004),
        (3, 3.0),
        (True, 1.0),
        (-0.0, -0.0),
        (5e-324, 5e-324),
        (math.nan, math.nan),
        (-math.inf, -math.inf),
        (np.float32(0.1), float(np.float32(0.1))),
        (torch.tensor(2.5), 2.5),
        (torch.tensor([1.5, math.inf]), np.array([1.5, math.inf], dtype=np.float32)),
        (torch.tensor([0.1], dtype=torch.bfloat16), torch.tensor([0.1], dtype=torch.bfloat16).float().numpy()),
        ([1.0, 2.0], np.array([1.0, 2.0])),
        (np.arange(6).reshape(2, 3), np.arange(6).reshape(2, 3)),
        (np.zeros((0, 3)), np.zeros((0, 3))),
        (np.array([True, False]), np.array([True, False])),
        (np.random.default_rng(1).normal(size=(50, 50)), np.random.default_rng(1).normal(size=(50, 50))),
        (Estimate(1.0), Estimate(1.0)),
        (Estimate(0.1, 0.2, 7, df=3.7), Estimate(0.1, 0.2, 7, df=3.7)),
        (Estimate.of([1.0, 2.0, 4.0], draws="p"), Estimate.of([1.0, 2.0, 4.0], draws="p")),
        (Estimate.of(np.linspace(0, 1, 5000) ** 2), Estimate.of(np.linspace(0, 1, 5000) ** 2)),
    ],
)
def test_a_value_comes_back_to_the_bit(tmp_path: Path, given: Any, expected: Any) -> None:
    run = made(tmp_path, measured=False)
    store.write_values(tmp_path, cell(recipe(0)), {key(MEASURE): {"x": given}})
    found = store.values(tmp_path, run)[100, key(MEASURE)]["x"]
    assert same(found, expected)
    assert store.verify(tmp_path) == []


@pytest.mark.parametrize("value", ["text", {"a": 1}, None, np.array(["a"]), np.array([1j]), torch.tensor([1j])])
def test_a_value_of_another_kind_is_refused_by_name(tmp_path: Path, value: Any) -> None:
    made(tmp_path, measured=False)
    with pytest.raises(ValueError, match="odd"):
        store.write_values(tmp_path, cell(recipe(0)), {key(MEASURE): {"odd": value}})


def test_values_are_those_of_the_cell(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=key(MEASURE)):
        store.write_values(tmp_path, cell(recipe(0)), {key(OTHER): {"x": 1.0}})


def test_a_run_comes_back(tmp_path: Path) -> None:
    own = recipe(0)
    run = store.write_spec(tmp_path, own)
    assert run == key(own)
    assert (tmp_path / run / "spec.json").read_text() == canonical_json(own)
    assert store.read_spec(tmp_path, run) == own
    assert store.run_record(tmp_path, run) is None
    tied = torch.randn(4, 3)
    state = {"a.weight": tied, "b.weight": tied, "t": tied.T, "n": torch.tensor(3), "h": tied.bfloat16()}
    store.save_partial(tmp_path, run, state, {"step": 7, "loss": math.nan})
    tensors, meta = store.load_partial(tmp_path, run) or ({}, {})
    assert meta["step"] == 7
    assert math.isnan(meta["loss"])
    assert all(torch.equal(tensors[name], state[name]) for name in state)
    store.finish_run(tmp_path, run, record=RECORD, history=ROWS, states={0: state}, environment={"host": "h"})
    assert store.load_partial(tmp_path, run) is None
    assert RECORD.items() <= (store.run_record(tmp_path, run) or {}).items()
    assert store.states(tmp_path, run) == (0,)
    loaded = store.load_state(tmp_path, run, 0)
    assert all(torch.equal(loaded[name], state[name]) and loaded[name].dtype == state[name].dtype for name in state)
    rows = store.history(tmp_path, run)
    assert math.isnan(rows[2].pop("train_loss"))
    assert rows == [row if row["step"] != 40 else {"step": 40} for row in ROWS]
    assert store.environment(tmp_path, run) == {"host": "h"}


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    run = made(tmp_path)
    with pytest.raises(LookupError, match="0, 100"):
        store.load_state(tmp_path, run, 50)
    with pytest.raises(LookupError, match="not finished"):
        store.history(tmp_path, "0" * 16)
    assert store.run_record(tmp_path, "0" * 16) is None
    assert store.values(tmp_path, "0" * 16) == {}
    assert store.runs(tmp_path / "nowhere") == []
    with pytest.raises(ValueError, match="status"):
        store.finish_run(tmp_path, run, record={}, history=[], states={}, environment={})


def test_the_same_bytes_whatever_the_order(tmp_path: Path) -> None:
    state = {"b": torch.ones(3), "a": torch.zeros(2)}
    assert tensor_bytes(state, {"x": 1}) == tensor_bytes(dict(reversed(state.items())), {"x": 1})
    made(tmp_path / "one")
    made(tmp_path / "two")
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_at_most_five_files_a_run_and_one_a_measured_step(tmp_path: Path) -> None:
    measures = tuple(Call("landscope.measures.m", (("k", k),)) for k in range(30))
    for index in range(4):
        own = recipe(index)
        made(tmp_path, index, measured=False)
        for step in (0, 50, 100):
            store.write_values(tmp_path, Cell(at(own, step), measures), {key(m): {"x": 1.0} for m in measures})
    assert len(content(tmp_path)) == 4 * (5 + 3)


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


# --- names and links ----------------------------------------------------------------------------------------------

NAMES = [
    "", ".", "..", "../x", "../../etc/passwd", "/etc/passwd", "a/b", "~", "~root", "-rf", "--", "CON", "NUL", "a\0b",
    "\0", "a\nb", "a\\b", "..\\x", "C:\\x", "\u202eabc", "é" * 16, "x" * 16, "A" * 16, "0" * 15, "0" * 17, "0" * 300,
    "0123456789abcdeg", "0123456789ABCDEF", " 123456789abcde", "0123456789abcde\n", "../.git/config",
    "0123456789abcde ",
    "0123456789abcde\r", "0123456789abcdef\n", "$(touch x)xxx", "`touch x`", ";touch x", "|x", "&", "*", "?", "[a]",
    "{a,b}", "%2e%2e%2f", "..%c0%af", "....//", "....\\/", "./.", "a/../b", "file:///etc", "\\\\server\\x",
    "aux.json", "spec.json", ".git", ".cache", ".working", "plans", "values", "\t", "\r\n", "\x1b[31m", "\ud7ff" * 16,
    "\uff10" * 16, "\u0660" * 16, "\U0001d7ce" * 16,
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_only_keys_name_a_run(tmp_path: Path, name: str) -> None:
    root = tmp_path / "store"
    state: dict[str, Any] = {"record": RECORD, "history": [], "states": {}, "environment": {}}
    cell_of_it = Cell(at(name, 1), (MEASURE,))
    for attempt in (
        lambda: store.save_partial(root, name, {}, {}),
        lambda: store.finish_run(root, name, **state),
        lambda: store.write_values(root, cell_of_it, {key(MEASURE): {}}),
        lambda: store.load_state(root, name, 1),
        lambda: store.drop_partial(root, name),
        lambda: store.read_spec(root, name),
    ):
        with pytest.raises(ValueError, match="16 hexadecimal digits"):
            attempt()
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("linked", ["run", "values", "plans", "plan", ".cache"])
def test_nothing_is_written_through_a_link(tmp_path: Path, linked: str) -> None:
    root, outside = tmp_path / "store", tmp_path / "outside"
    outside.mkdir()
    run = made(root, measured=False) if linked != "run" else key(recipe(0))
    root.mkdir(exist_ok=True)
    plan = {"p": 1}
    place = {"run": run, "values": f"{run}/values", "plans": "plans", "plan": f"plans/{key(plan)}", ".cache": ".cache"}
    (root / place[linked]).parent.mkdir(exist_ok=True)
    (root / place[linked]).symlink_to(outside)
    if linked == ".cache":
        store.table(root)
    else:
        with pytest.raises(ValueError, match="is a link"):
            store.declare(root, plan, {}) if linked.startswith("plan") else made(root)
    store.clean(root)
    assert list(outside.iterdir()) == []


def test_a_linked_file_is_replaced_and_never_read(tmp_path: Path) -> None:
    root, outside = tmp_path / "store", tmp_path / "outside"
    run = made(root)
    shutil.move(root / run / "run.json", outside)
    (root / run / "run.json").symlink_to(outside)
    before = outside.read_bytes()
    assert store.run_record(root, run) is None
    made(root, record=RECORD | {"steps": 99})
    assert (store.run_record(root, run) or {})["steps"] == 99
    assert outside.read_bytes() == before


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "loop"])
def test_what_is_no_file_is_not_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path)
    else:
        path.mkdir()
    with pytest.raises(Damaged, match=str(path)):
        files.read(path)


# --- processes ----------------------------------------------------------------------------------------------------


def test_a_process_is_known_dead_or_alive() -> None:
    mine = process_name()
    assert alive(mine) is True
    host, boot, namespace, pid, start = mine.split("-")
    assert alive(f"{host}-{boot}-{namespace}-{pid}-{int(start) + 1}") is False, "the number was given out again"
    assert alive(f"{host}-{'0' * 8}-{namespace}-{pid}-{start}") is False, "before the last boot"
    assert alive(f"{'0' * 8}-{boot}-{namespace}-{pid}-{start}") is None, "another machine"
    assert alive(f"{host}-{boot}-{'0' * 8}-{pid}-{start}") is None, "another container"
    assert alive("") is None
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    name = process_name(child.pid)
    assert alive(name) is True
    child.kill()
    child.communicate()
    assert alive(name) is False


def test_only_what_dead_processes_left_is_removed(tmp_path: Path) -> None:
    run = made(tmp_path)
    before = content(tmp_path)
    host, boot, namespace, pid, start = process_name().split("-")
    dead, other = f"{host}-{boot}-{namespace}-{pid}-1", f"{'0' * 8}-{boot}-{namespace}-{pid}-{start}"
    (tmp_path / ".working").mkdir()
    kept = {}
    for folder in (".", run, f"{run}/values", ".working"):
        for owner in (process_name(), dead, other):
            path = tmp_path / folder / f".{owner}-00000000.tmp"
            path.write_bytes(b"half")
            os.utime(path, (4e9, 4e9))
            if owner != dead:
                kept[str(path.relative_to(tmp_path))] = b"half"
    for name, owner in (("aa", process_name()), ("bb", dead), ("cc", other)):
        (tmp_path / ".working" / name).write_text(owner)
        if owner != dead:
            kept[f".working/{name}"] = owner.encode()
    (tmp_path / run / "partial.safetensors").write_bytes(b"of a finished run")
    store.clean(tmp_path)
    assert content(tmp_path) == before | kept


# --- steps and results --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ("start", 0),
        ("end", 100),
        (0, 0),
        (100, 100),
        (101, None),
        (first_below("train_loss", 1.0), 20),
        (first_below("train_loss", 0.5), 60),
        (first_below("train_loss", 0.05), 80),
        (first_below("train_loss", 0.04), None),
        (first_below("test_loss", 1.0), None),
    ],
)
def test_a_step_in_words_is_a_number(step: Any, expected: int | None) -> None:
    assert store.resolve_step(step, RECORD, ROWS) == expected


def test_results_are_one_row_per_protocol_run_and_step(tmp_path: Path) -> None:
    own = Recipe(
        Call("a.digits", (("train", 100),)), Call("b.mlp", (("widths", (8, 8)),)), Call("c.mse"),
        Call("torch.optim.SGD", (("lr", 0.005),)), 100, 8, 3, (Call("r.flat", (("rate", 0.5),)),),
        start=Call("p.rewind", (("source", at("0" * 16, "end")),)),
    )  # fmt: skip
    run = store.write_spec(tmp_path, own)
    store.finish_run(tmp_path, run, record=RECORD, history=ROWS, states={}, environment={})
    values = {"top": Estimate(2.0, 0.5, 4), "trace": 7.0, "spectrum": np.array([1.0, 2.0])}
    for step in (60, "end"):
        store.write_values(tmp_path, Cell(at(own, step), (MEASURE,)), {key(MEASURE): values})
    level, missed = first_below("train_loss", 0.5), first_below("train_loss", 0.001)
    steps = {"published": ("end",), "equal loss": (level, missed, "start")}
    rows = store.results(tmp_path, [("published", own), ("equal loss", own)], steps, (MEASURE,)).rows()
    assert [(row["protocol"], row["step"], row["status"], row["steps_made"]) for row in rows] == [
        ("published", "end", "done", 100),
        ("equal loss", "train_loss<0.5", "done", 60),
        ("equal loss", "train_loss<0.001", "censored", 100),
    ], "the start is not measured: no row"
    assert [row["gradient_evaluations"] for row in rows] == [800, 480, 800]
    assert [(row["top"], row["top_sem"], row["trace"], row["spectrum"]) for row in rows] == [
        (2.0, 0.5, 7.0, (1.0, 2.0)),
        (2.0, 0.5, 7.0, (1.0, 2.0)),
        (None, None, None, None),
    ]
    expected = {
        "run": run, "seed": 3, "batch_size": 8, "steps": 100, "data": "digits", "data.train": 100, "model": "mlp",
        "model.widths": (8, 8), "loss": "mse", "optimizer": "SGD", "optimizer.lr": 0.005, "start": "rewind",
        "start.source": "0000000000000000@end", "regularizers": ("flat",), "regularizers.flat.rate": 0.5,
    }  # fmt: skip
    assert expected.items() <= rows[0].items()


def test_a_diverged_run_has_rows_without_values_and_an_unfinished_one_none(tmp_path: Path) -> None:
    made(tmp_path, 0, record=RECORD | {"status": "diverged", "steps": 30})
    store.write_spec(tmp_path, recipe(1))
    made(tmp_path, 2)
    pairs = [("published", recipe(index)) for index in range(4)]
    rows = store.results(tmp_path, pairs, {"published": ("end",)}, (MEASURE,)).rows()
    assert [(row["seed"], row["status"], row["steps_made"]) for row in rows] == [(0, "diverged", 30), (2, "done", 100)]
    assert rows[0]["trace"] is None
    assert rows[1]["trace"] == truth(2)["trace"]


def test_a_row_needs_every_measure(tmp_path: Path) -> None:
    made(tmp_path, 0)
    assert len(store.results(tmp_path, [("p", recipe(0))], {"p": ("end",)}, (MEASURE, OTHER))) == 0


def test_two_measures_with_one_name_are_told_apart(tmp_path: Path) -> None:
    own = recipe(0)
    made(tmp_path, measured=False)
    more = Call(OTHER.target, (("samples", 9),))
    store.write_values(
        tmp_path, Cell(at(own, 100), (OTHER, more)), {key(OTHER): {"x": 1.0, "y": 3.0}, key(more): {"x": 2.0}}
    )
    (row,) = store.results(tmp_path, [("p", own)], {"p": ("end",)}, (OTHER, more)).rows()
    assert (row["flatness(samples=3).x"], row["flatness(samples=9).x"], row["y"]) == (1.0, 2.0, 3.0)


# --- tables and SQL -----------------------------------------------------------------------------------------------


def test_the_long_table_has_every_number_once(tmp_path: Path) -> None:
    made(tmp_path, 1)
    store.write_spec(tmp_path, recipe(2))
    rows = store.table(tmp_path).rows()
    assert sorted((row["name"], row["index"]) for row in rows if row["index"] is None) == [
        ("top", None), ("trace", None), ("undefined", None)
    ]  # fmt: skip
    assert [row["value"] for row in rows if row["name"] == "spectrum"] == [float(x) for x in truth(1)["spectrum"]]
    (top,) = (row for row in rows if row["name"] == "top")
    assert (top["value"], top["sem"], top["n"]) == (truth(1)["top"].mean, truth(1)["top"].sem, 7)
    assert (top["measure"], top["step"], top["run"]) == ("isclose", "100", key(recipe(1)))


def test_the_copy_follows_the_files_and_is_never_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "store"
    made(root, 1)
    one = store.table(root)
    copies = {path: path.read_bytes() for path in (root / ".cache").iterdir()}
    assert len(copies) == 4
    for path in root.rglob("*"):
        os.utime(path, (4e9, 4e9))
    with monkeypatch.context() as patched:
        patched.setattr("landscope.store.database._measured_table", lambda _: pytest.fail("the copy was not used"))
        assert store.table(root).rows()[0] == one.rows()[0]
    for path, data in copies.items():
        for torn in (data[:-5], b"", bytes(len(data)), data[:50] + bytes([data[50] ^ 1]) + data[51:]):
            path.write_bytes(torn)
            assert repr(store.table(root).rows()) == repr(one.rows())
            assert path.read_bytes() == data, "it is made again"
    made(root, 2)
    assert len(store.table(root)) > len(one)
    shutil.rmtree(root / ".cache")
    (root / ".cache").write_text("in the way")
    assert len(store.table(root)) > len(one)


def test_an_empty_store_has_empty_tables(tmp_path: Path) -> None:
    assert len(store.table(tmp_path)) == 0
    assert store.sql(tmp_path, "select count(*) as n from results").rows() == [{"n": 0}]


def test_sql_answers(tmp_path: Path) -> None:
    for index in range(4):
        made(tmp_path, index)
    query = """select "optimizer.lr", avg(value) as mean from results where name = 'trace' group by 1 order by 1"""
    expected: dict[float, list[float]] = {}
    for index in range(4):
        expected.setdefault(recipe(index).optimizer["lr"], []).append(truth(index)["trace"])
    rows = store.sql(tmp_path, query).rows()
    assert {row["optimizer.lr"]: row["mean"] for row in rows} == pytest.approx(
        {rate: sum(v) / len(v) for rate, v in expected.items()}
    )
    assert store.sql(tmp_path, "select 1 as a, 2 as a").rows() == [{"a": 1, "a_1": 2}]
    with pytest.raises(ValueError, match=r'runs\(.*"optimizer\.lr".*measured\('):
        store.sql(tmp_path, "select nonsense from runs")


@pytest.mark.parametrize(
    "query",
    [
        "select * from '/etc/passwd'",
        "select * from read_csv('/etc/passwd')",
        "select * from read_text('/etc/passwd')",
        "select * from glob('/*')",
        "select * from '{root}/.cache/runs.parquet'",
        "copy runs to '{outside}/x.csv'",
        "copy runs to '{root}/x.csv'",
        "export database '{outside}/x'",
        "attach '{outside}/x.db'",
        "install httpfs",
        "load httpfs",
        "select * from 'https://example.com/x.parquet'",
        "set enable_external_access = true",
        "set lock_configuration = false",
        "reset enable_external_access",
        "pragma enable_external_access = true",
        "select * from sys",
        "select 1; copy runs to '{outside}/x.csv'",
    ],
)
def test_sql_reaches_nothing_outside_its_tables(tmp_path: Path, query: str) -> None:
    root, outside = tmp_path / "store", tmp_path / "outside"
    outside.mkdir()
    made(root)
    store.table(root)
    before = content(tmp_path)
    with pytest.raises(ValueError, match="the query failed"):
        store.sql(root, query.format(root=root, outside=outside))
    assert content(tmp_path) == before


# --- plans, writability, imports ----------------------------------------------------------------------------------


def test_the_first_claims_stand(tmp_path: Path) -> None:
    plan = {"experiment": "e", "seeds": 10}
    assert store.declare(tmp_path, plan, {"c": 0.5}) == {"c": 0.5}
    assert store.declare(tmp_path, plan, {"c": 0.1}) == {"c": 0.5}
    assert store.declare(tmp_path, plan | {"seeds": 3}, {"c": 0.1}) == {"c": 0.1}
    found = store.plans(tmp_path)
    assert {entry["key"]: entry["claims"] for entry in found} == {
        key(plan): {"c": 0.5},
        key(plan | {"seeds": 3}): {"c": 0.1},
    }
    path = tmp_path / "plans" / key(plan) / "claims.json"
    path.write_bytes(path.read_bytes().replace(b"0.5", b"0.1"))
    with pytest.raises(Damaged, match=r"claims\.json"):
        store.declare(tmp_path, plan, {"c": 0.1})


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    store.writable(tmp_path / "new" / "store")
    assert content(tmp_path) == {}
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="--runs"):
        store.writable(tmp_path / "file")


def test_nothing_heavy_is_imported_at_the_start() -> None:
    heavy = ["torch", "scipy", "sklearn", "datasets", "duckdb", "pyarrow", "matplotlib", "pandas"]
    code = f"import sys, json, landscope.sweep; print(json.dumps([m for m in {heavy} if m in sys.modules]))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout) == []
