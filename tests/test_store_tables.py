"""The store as tables: steps in words, results, SQL."""

import math
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import MEASURE, content, recipe, truth
from stores import OTHER, RECORD, ROWS, made

from landscope import store
from landscope.spec import Call, Cell, Recipe, at, first_below, key
from landscope.types import Estimate

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


@pytest.mark.parametrize(
    ("made_steps", "last", "status"),
    [
        (60, 0.009, "done"),  # the rule ended it
        (100, 0.009, "done"),  # at the last step
        (100, 0.01, "censored"),  # at the level is not below it
        (100, 0.5, "censored"),
        (100, math.nan, "censored"),
    ],
)
def test_a_run_that_its_stopping_rule_did_not_end_has_no_end(
    tmp_path: Path, made_steps: int, last: float, status: str
) -> None:
    own = replace(recipe(0), stop=Call("b.loss_below", (("every", 20), ("level", 0.01))))
    run = store.write_spec(tmp_path, own)
    history = [{"step": 20, "train_loss": 0.2}, {"step": 40, "train_loss": 0.005}]  # below it, between two checks
    history.append({"step": made_steps, "train_loss": last})
    store.finish_run(tmp_path, run, record=RECORD | {"steps": made_steps}, history=history, states={}, environment={})
    level = first_below("train_loss", 0.3)
    for step in ("end", 20, "start"):
        store.write_values(tmp_path, Cell(at(own, step), (MEASURE,)), {key(MEASURE): {"trace": 7.0}})
    rows = store.results(tmp_path, [("p", own)], {"p": ("end", level, "start")}, (MEASURE,)).rows()
    assert [(row["status"], row["trace"]) for row in rows] == [
        (status, 7.0 if status == "done" else None),
        ("done", 7.0),
        ("done", 7.0),
    ]
    # The history, which tells, is lost: there is no row to be mistaken.
    (tmp_path / run / "history.jsonl").unlink()
    assert len(store.results(tmp_path, [("p", own)], {"p": ("end",)}, (MEASURE,))) == 0


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
        "drop table runs; select nope",
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
