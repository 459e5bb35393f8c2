"""Runs trained together leave in the store what they would leave however they were split or interrupted."""

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CLASSES, FEATURES, noisy_net, recipe
from test_engine import Told, contents
from torch import nn
from torch.optim import LBFGS, SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

import landscope.engine.training as engine_training
from landscope import engine, store
from landscope.engine import Sizes, groups, split
from landscope.measures.outcomes import performance
from landscope.models import cnn, mlp
from landscope.spec import Recipe, Step, call, first_below, key
from landscope.train import loss_below

MEASURES = (call(performance),)
STEPS: Sequence[Step] = ("start", 7, first_below("train_loss", 0.6), "end")
SIZES = Sizes((FEATURES,), CLASSES, 23)
RUNS = [
    *(recipe(seed=s, optimizer=call(SGD, lr=0.05 * (s + 1), momentum=0.9)) for s in range(2)),
    recipe(seed=2, schedule=call(CosineAnnealingLR, T_max=30), steps=30),
    recipe(seed=3, stop=call(loss_below, level=0.4, every=3), steps=70),
    recipe(seed=4, optimizer=call(SGD, lr=1e12, momentum=0.9)),
]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


class After:
    """A control that asks to stop after so many reports: one is made before the first step and at every tenth."""

    def __init__(self, reports: int) -> None:
        self.left = reports

    def report(self, status: Any, /) -> None:
        self.left -= 1

    @property
    def stopping(self) -> bool:
        return self.left <= 0


def task(recipes: Sequence[Recipe]) -> dict[str, Any]:
    return engine.together([engine.payload(r, STEPS, MEASURES) for r in recipes])


def do(recipes: Sequence[Recipe], root: Path, stops: Sequence[int] = ()) -> dict[str, Any]:
    for questions in stops:
        engine.work(task(recipes), str(root), Told(questions))
    return engine.work(task(recipes), str(root), Told())


def test_however_they_are_split_or_interrupted_the_store_is_the_same_to_the_byte(tmp_path: Path):
    assert do(RUNS, tmp_path / "whole") == {"status": "done", "steps": 40, "diverged": 1}
    whole, draw = contents(tmp_path / "whole"), random.Random(2)
    assert sum(path.endswith("weights.safetensors") for path in whole) == len(RUNS)
    for parts in ([[0, 1], [2, 3, 4]], [[4, 0, 3], [1], [2]]):
        root = tmp_path / str(parts)
        for part in parts:
            do([RUNS[i] for i in part], root)
        assert contents(root) == whole
    for i in range(3):
        stops = [draw.randrange(0, 5) for _ in range(3)]
        do(RUNS, tmp_path / str(i), stops)
        assert contents(tmp_path / str(i)) == whole, stops
    assert engine.finished(task(RUNS), tmp_path / "whole")


def test_members_left_at_different_steps_go_on_from_there(tmp_path: Path):
    do(RUNS, tmp_path / "whole")
    engine.work(task(RUNS[:2]), str(tmp_path / "parts"), After(2))
    engine.work(task(RUNS), str(tmp_path / "parts"), After(3))
    partial = [store.load_partial(tmp_path / "parts", key(r)) for r in RUNS[:3]]
    assert [p and p[1]["step"] for p in partial] == [10, 10, 20]
    do(RUNS, tmp_path / "parts")
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_the_record_is_that_of_a_run_trained_alone(tmp_path: Path):
    do(RUNS, tmp_path / "together")
    for r in RUNS:
        engine.work(engine.payload(r, STEPS, MEASURES), str(tmp_path / "alone"), Told())
        ours, theirs = (store.run_record(tmp_path / name, key(r)) for name in ("together", "alone"))
        assert ours is not None
        assert theirs is not None
        assert {n: v for n, v in ours.items() if n != "files"} == {n: v for n, v in theirs.items() if n != "files"}
        rows, expected = (store.history(tmp_path / name, key(r)) for name in ("together", "alone"))
        assert [row.keys() for row in rows] == [row.keys() for row in expected]
        for row, other in zip(rows, expected, strict=True):
            assert row == pytest.approx(other, rel=1e-3, abs=1e-6, nan_ok=True)
        place = store.environment(tmp_path / "together", key(r))
        assert place is not None
        assert place["executor"] == "population"


def test_another_executors_checkpoint_is_not_gone_on_from(tmp_path: Path):
    do(RUNS[:2], tmp_path / "whole")
    with pytest.raises(engine.Interrupted):
        engine.train_run(RUNS[0], STEPS, tmp_path / "other", torch.device("cpu"), Told(2))
    do(RUNS[:2], tmp_path / "other")
    assert contents(tmp_path / "other") == contents(tmp_path / "whole")


def test_what_is_finished_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    do(RUNS, tmp_path)
    monkeypatch.setattr(engine_training, "load_data", lambda *_: pytest.fail("it trained"))
    assert len(engine.train_runs([(r, STEPS) for r in RUNS], tmp_path, torch.device("cpu"), Told())) == len(RUNS)


def big(*, seed: int = 0) -> Recipe:
    return recipe(model=call(mlp, widths=(512, 512)), batch_size=128, seed=seed)


def own_net(shape: tuple[int, ...], outputs: int, /) -> nn.Module:
    class Own(nn.Linear):
        pass

    return Own(shape[0], outputs)


def test_the_executor_follows_from_the_recipe_and_the_sizes_alone():
    image = Sizes((1, 28, 28), 10, 60_000)
    cases = [
        (recipe(), SIZES, "population", ""),
        (recipe(model=call(noisy_net)), SIZES, "solo", "Dropout .* draws random numbers"),
        (recipe(model=call(cnn, channels=2)), image, "solo", "Conv2d .* as fast alone"),
        (recipe(optimizer=call(LBFGS, lr=0.1)), SIZES, "solo", "LBFGS has no update rule"),
        (big(), image, "solo", "too many for stacking to help"),
        (recipe(model=call(mlp, widths=(64, 64)), batch_size=100), image, "population", ""),
        (recipe(model=call(own_net)), SIZES, "solo", "Own .* not known to be safe"),
    ]
    for r, sizes, executor, why in cases:
        for others in ([], [replace(r, seed=9)], RUNS):
            found = next(g for g in groups([r, *others], sizes) if r in g.recipes)
            assert found.executor == executor, found
            assert bool(found.why) == bool(why)
            assert re.search(why, found.why), found.why


def test_groups_hold_what_differs_in_numbers_alone_and_are_split_evenly():
    many = [recipe(seed=s) for s in range(150)]
    found = groups([*many, recipe(optimizer=call(Adam, lr=0.1)), recipe(batch_size=7), *many[:3]], SIZES)
    assert [len(g.recipes) for g in found] == [150, 1, 1]
    assert found[0].to_json() == {"executor": "population", "runs": [key(r) for r in many]}
    parts = split(found[0], 2, 152)
    assert sorted(len(part) for part in parts) == [50, 50, 50]
    assert {r for part in parts for r in part} == set(many)
    small = [len(part) for part in split(found[0], 50, 150)]
    assert (len(small), set(small)) == (19, {7, 8})
    large = Sizes((1, 28, 28), 10, 60_000)
    assert {len(part) for part in split(groups(many[:20], large)[0], 2, 20)} == {5}  # 188 MB of images each
    rates = [recipe(optimizer=call(SGD, lr=0.1 + 0.01 * i)) for i in range(20)]  # of one seed: the same images
    assert {len(part) for part in split(groups(rates, large)[0], 2, 20)} == {10}
    mixed = [recipe(seed=s, steps=(100, 10)[s % 2]) for s in range(20)]
    ends = [{r.steps for r in part} for part in split(groups(mixed, SIZES)[0], 2, 20)]
    assert ends == [{10}, {100}]
    alone = groups([recipe(model=call(noisy_net), seed=s) for s in range(3)], SIZES)[0]
    assert [len(part) for part in split(alone, 2, 3)] == [1, 1, 1]
