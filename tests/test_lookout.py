"""Looks at the training loss that are spared change nothing that a run leaves."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CLASSES, points, recipe, same
from torch.optim import SGD

from landscope.data import Data
from landscope.models import mlp
from landscope.population import advance, begin, evaluate, state_of
from landscope.population.lookout import HARDEST, Lookout
from landscope.spec import Recipe, call, derive
from landscope.train import loss_below
from landscope.types import Batches


def crowd(seed: int, cache: Path | None, /, *, n: int = 2 * HARDEST) -> Data:
    """As many samples as sparing takes, a twentieth of them with other labels."""
    inputs, labels = points(n, seed=derive(seed, "crowd") % 1000)
    labels[::20] = (labels[::20] + 1) % CLASSES
    return Data(Batches(inputs, labels), None, None, CLASSES, "classification")


def runs(**changed: Any) -> list[Recipe]:
    given: dict[str, Any] = {
        "data": call(crowd),
        "model": call(mlp, widths=(8,)),
        "optimizer": call(SGD, lr=0.3),
        "batch_size": 2,
        "steps": 200,
        "stop": call(loss_below, level=0.35, every=2),
    }
    return [recipe(**(given | {"seed": s} | changed)) for s in range(3)]


def followed(recipes: list[Recipe]) -> dict[str, Any]:
    """How many checks were made, those that were lower than all before, and how each run ended."""
    population = begin(recipes, [r.data(r.seed, None) for r in recipes])
    lowest, checks, records, ends = [float("inf")] * len(recipes), 0, [], {}
    for p in advance(population):
        for k in p.running:
            member = p.members[k]
            if member.train_loss is not None:
                checks += 1
                assert member.train_loss == evaluate(p, "train", [k], accuracy=False)[k]["loss"]
                if member.train_loss < lowest[k]:
                    lowest[k] = member.train_loss
                    records.append((p.step, k, member.train_loss))
            if member.status != "running":
                ends[k] = (p.step, member.status, state_of(p, k))
    return {"checks": checks, "records": records, "ends": ends}


def test_what_is_spared_could_not_have_been_recorded(monkeypatch: pytest.MonkeyPatch):
    spared = followed(runs())
    monkeypatch.setattr(Lookout, "saw", lambda *_: None)
    every = followed(runs())
    assert every["records"] == spared["records"]
    assert spared["checks"] < every["checks"]
    for k, (step, status, state) in every["ends"].items():
        assert spared["ends"][k][:2] == (step, status)
        assert same(spared["ends"][k][2], state)
    few = runs(data=call(crowd, n=HARDEST), steps=20)
    assert followed(few)["checks"] == sum(r.steps // 2 for r in few)


def by_another_rule(training_loss: float, /, *, level: float, every: int) -> bool:
    return 0.4 < training_loss < 0.401


def test_rules_whose_outcome_is_not_known_are_always_asked():
    recipes = [replace(r, stop=call(by_another_rule, level=1.0, every=2), steps=40) for r in runs()]
    assert followed(recipes)["checks"] == 3 * 20


def test_a_loss_that_is_not_finite_is_looked_at():
    recipes = [replace(r, steps=40) for r in runs()]
    population = begin(recipes, [r.data(r.seed, None) for r in recipes])
    for p in advance(population):
        if p.step == 21:
            p.rows[1] = float("nan")
        if p.step == 22:
            break
    assert [member.status for member in population.members] == ["running", "diverged", "running"]
    assert bool(torch.isfinite(population.rows[0]).all())
