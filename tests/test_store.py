"""The store: exact round trips, names, links and processes."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness import MEASURE, cell, content, recipe
from stores import OTHER, RECORD, ROWS, made, same

from landscope import files, store
from landscope.files import Damaged, alive, process_name, tensor_bytes
from landscope.spec import Call, Cell, at, canonical_json, key
from landscope.types import Estimate

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
