"""Claims, protocols and experiments; data sources read from a store."""

from dataclasses import replace

import pytest
from recipes import LOSS, RECIPE

from landscope.spec import (
    At,
    Claim,
    Experiment,
    Paper,
    Protocol,
    at,
    key,
    planned,
)

# --- claims and experiments ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed",
    [
        {"expect": "bigger"},
        {"expect": "within"},
        {"expect": "within", "margin": 0.0},
        {"expect": "all_of"},
        {"statistic": None},
        {"smallest": -0.1, "reason": "why"},
        {"smallest": 0.1},
        {"expect": "less", "smallest": 0.1, "reason": "why"},
        {"expect": "trend_up", "smallest": 0.0, "reason": "why"},
    ],
)
def test_claims_that_cannot_be_judged_are_refused(changed):
    with pytest.raises(ValueError, match="flatter"):
        Claim(**({"text": "flatter", "statistic": LOSS, "expect": "greater"} | changed))


def _grid(scale, data, seeds):
    return [replace(RECIPE, seed=seed) for seed in seeds]


def test_a_protocol_is_judged_at_a_step_that_it_measures():
    with pytest.raises(ValueError, match="not among the measured"):
        Protocol(_grid, "epochs", steps=(10,), judged="end")


def test_planned_lists_shared_recipes_under_each_protocol():
    experiment = Experiment(
        paper=Paper("key", "title", "authors", 2026, "https://example.org"),
        title="?",
        summary="",
        runs={"published": Protocol(_grid, "epochs"), "control": Protocol(_grid, "loss")},
        seeds={"smoke": 2},
        data={"smoke": "digits"},
        measures=(),
        claims=lambda *_: (),
        figures=lambda table, scale: [],
    )
    plan = planned(experiment, "smoke", None, range(2))
    assert [(name, recipe.seed) for name, recipe in plan] == [
        ("published", 0),
        ("published", 1),
        ("control", 0),
        ("control", 1),
    ]
    assert len({key(recipe) for _, recipe in plan}) == 2


def test_equal_states_are_one_in_a_set():
    assert len({at(RECIPE, 1), at(key(RECIPE), 1), At(RECIPE, 1)}) == 1


def test_a_data_source_read_from_a_store_imports_nothing_foreign(tmp_path, monkeypatch):
    from landscope.data import Source, find

    (tmp_path / "canary.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("digits", "mnist1d"):
        value = find(name, tmp_path).to_json()
        assert Source.from_json(value).to_json() == value
    for target in ("canary.boom", "os.system", "landscope.dataset.x", "landscope.data.os.system"):
        with pytest.raises(ValueError, match="not a data source"):
            Source.from_json(value | {"call": value["call"] | {"call": target}})
    assert not (tmp_path / "ran").exists()
