"""The experiments beside the sweep over batch sizes: arms and grids, claims on data with known answers, bad input."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from landscope import experiments, study
from landscope.data import Source, find, images
from landscope.experiments import _gradient_noise as arms
from landscope.experiments import johannsen2026_batch_size as sweep
from landscope.experiments import johannsen2026_gradient_noise as noise
from landscope.experiments import johannsen2026_sharpness_grid as grid
from landscope.experiments._johannsen2026 import check_batches
from landscope.figures import Figure
from landscope.spec import call, key, step_name
from landscope.stats import configuration_correlation
from landscope.store.tables import settings
from landscope.types import Table

NOISE, GRID = "johannsen2026_gradient_noise", "johannsen2026_sharpness_grid"
SETS = {
    "mnist": Source("mnist", call(images, content="0" * 16), (1, 28, 28), 10, "classification", 60_000, 10_000),
    "cifar10": Source("cifar10", call(images, content="1" * 16), (3, 32, 32), 10, "classification", 50_000, 10_000),
}


def made(name: str, scale: str, tmp_path, data: str = "digits") -> study.Study:
    experiment = experiments.load(name)
    source = SETS[data] if data in SETS else find(data, tmp_path)
    return study.Study(name, experiment, scale, source, tmp_path, experiment.seeds[scale])


def table(of: study.Study, outcome) -> Table:
    """A table of made-up results: ``outcome(recipe, protocol, random)`` gives the values."""
    rows: list[dict[str, Any]] = []
    random = np.random.default_rng(0)
    for protocol, recipe in of.runs():
        for step in of.experiment.runs[protocol].steps:
            own: dict[str, Any] = {"protocol": protocol, "step": step_name(step), "run": key(recipe), "status": "done"}
            own |= {"seed": recipe.seed, "batch_size": recipe.batch_size, "steps_made": recipe.steps}
            rows.append(own | settings(recipe) | outcome(recipe, protocol, random))
    return Table.of(rows)


def words(of: study.Study, results: Table) -> dict[tuple[str, str], str]:
    return {(v.protocol, v.claim.text): v.word for v in study.verdicts(of, results)}


# --- Adam and full batches ------------------------------------------------------------------------------------------


def test_the_papers_scale_is_the_papers(tmp_path):
    runs = made(NOISE, "paper", tmp_path, "cifar10").runs(1)
    sgd, adam, full = (recipe for protocol, recipe in runs if protocol == "published")
    assert (sgd.batch_size, sgd.optimizer["lr"], sgd.steps) == (32, 0.005, 80 * 1563)
    assert (adam.optimizer.name, adam.batch_size, adam.optimizer["lr"], adam.steps) == ("Adam", 128, 0.001, 80 * 391)
    assert (full.batch_size, full.data["train"], full.optimizer["lr"], full.steps) == (5_000, 5_000, 0.001, 80)


@pytest.mark.parametrize("data", ["digits", "mnist1d", "mnist", "cifar10"])
def test_at_equal_updates_the_noise_of_the_gradient_alone_differs(data: str, tmp_path):
    runs = made(NOISE, "laptop", tmp_path, data).runs(1)
    small, adam, full = (recipe for protocol, recipe in runs if protocol == "equal number of updates")
    assert full.batch_size == full.data["train"]
    assert replace(full, batch_size=small.batch_size) == small
    assert adam.steps == small.steps
    for protocol in experiments.load(NOISE).runs:
        if protocol != "positive control":
            rows = [settings(r) | {"batch_size": r.batch_size} for name, r in runs if name == protocol]
            assert [row["arm"] for row in arms.with_arms(Table.of(rows)).rows()] == [
                "small batch",
                "Adam",
                "full batch",
            ]


def arms_outcome(accuracies: dict[str, float], sharpness: dict[str, float]):
    def outcome(recipe, protocol, random):
        row = {"optimizer": recipe.optimizer.name, "batch_size": recipe.batch_size, "data.train": recipe.data["train"]}
        which = arms.arm(row)
        lost = 0.2 * (recipe.data["label_noise"] > 0) + 0.3 * (recipe.steps == noise.UPDATES)
        values = {"test_accuracy": accuracies[which] - lost + random.normal(0, 0.004), "train_loss": 0.01}
        sharp = sharpness[which] * np.exp(random.normal(0, 0.1))
        columns = ("top_eigenvalue", "gradient_variance", "gradient_noise_scale")
        return values | dict.fromkeys(columns, sharp) | {"filter_loss_increase": (sharp,)}

    return outcome


def test_claims_on_arms_follow_the_arms(tmp_path):
    of = made(NOISE, "laptop", tmp_path)
    adam, better, sharper, *_ = (claim.text for claim in of.claims)
    same = {"Adam": 0.9, "full batch": 0.85, "small batch": 0.9}
    found = words(of, table(of, arms_outcome(same, {"Adam": 1, "full batch": 3, "small batch": 1})))
    controls = [name for name in of.experiment.runs if name != "positive control"]
    for protocol in controls:
        assert [found[protocol, text] for text in (adam, better, sharper)] == ["supported"] * 3
    assert [word for (protocol, _), word in found.items() if protocol == "positive control"] == ["supported"] * 2
    other = {"Adam": 0.8, "full batch": 0.95, "small batch": 0.9}
    results = table(of, arms_outcome(other, {"Adam": 1, "full batch": 0.5, "small batch": 1}))
    one = results.where(protocol="equal number of updates")
    assert of.claims[1].statistic(one).mean == pytest.approx(-0.05, abs=0.005)  # type: ignore[misc]
    assert of.claims[2].statistic(one).mean == pytest.approx(np.log(0.5), abs=0.1)  # type: ignore[misc]


def test_the_arms_are_drawn_side_by_side(tmp_path):
    of = made(NOISE, "laptop", tmp_path)
    same = {"Adam": 0.9, "full batch": 0.85, "small batch": 0.9}
    results = table(of, arms_outcome(same, {"Adam": 1, "full batch": 3, "small batch": 1}))
    kept = ("protocol", "run", "seed", "batch_size", "optimizer")  # as `study.histories` has them
    curves = Table.of(
        {name: row[name] for name in kept} | {"step": step, "train_loss": 1.0, "test_loss": 1.0}
        for row in results.rows()
        for step in (0, 10)
    )
    drawn = noise.draw(results, curves)
    assert len(drawn) == 10
    error = next(figure for figure in drawn if figure.name == "test-error")
    assert error.panels[0].x.ticks == ((0.0, 1.0, 2.0), ("Adam", "full batch", "small batch"))
    assert re.search(r"equal number of updates: \S+ at Adam, 1[45]\S* at full batch, \S+ at small batch", error.finding)
    assert noise.draw(Table.of([]), Table.of([])) == []


# --- the grid -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("data", "count"), [("digits", 18), ("mnist1d", 18), ("mnist", 15), ("cifar10", 15)])
def test_the_grid_has_enough_configurations_to_be_judged(data: str, count: int, tmp_path):
    of = made(GRID, "laptop", tmp_path, data)
    by = grid.grid("laptop", of.source).by
    runs = of.runs(1)
    for protocol in ("published", "equal training loss"):
        rows = [settings(recipe) | {"batch_size": recipe.batch_size} for name, recipe in runs if name == protocol]
        assert len({tuple(row.get(column) for column in by) for row in rows}) == len(rows) == count
    stops = {(r.batch_size, r.stop["level"]) for name, r in runs if name == "positive control" and r.stop}
    assert len(stops) == 12
    assert len(made(GRID, "paper", tmp_path, "cifar10").runs(1)) == 2 * 32 + 16


def grid_outcome(sign: float):
    def outcome(recipe, protocol, random):
        level = recipe.stop["level"] if recipe.stop is not None else 0.01
        model, rate = recipe.model.name == "cnn", recipe.optimizer["lr"]
        wide = sum(dict(recipe.model.kwargs).get("widths", (0,)))
        sharp = level * (recipe.batch_size + 100 * rate + wide / 1000) * np.exp(random.normal(0, 0.01))
        values = {"test_accuracy": 0.8 - sign * 0.02 * np.log(sharp) + 0.5 * model, "train_loss": level}
        single = {c: sharp for _, c, index, _ in grid.SHARPNESS if index is None}
        several = {c: (sharp,) for _, c, index, _ in grid.SHARPNESS if index is not None}
        return values | single | several | {"density": (0.5, 0.5), "density_grid": (0.0, 1.0)}

    return outcome


@pytest.mark.parametrize(("data", "sign", "word"), [("mnist", 1, "supported"), ("digits", -1, "contradicted")])
def test_correlations_over_the_grid_are_judged(data: str, sign: int, word: str, tmp_path):
    of = made(GRID, "laptop", tmp_path, data)
    some = [claim for claim in of.claims if claim.positive or "eigenvalue)" in claim.text]
    of = replace(of, experiment=replace(of.experiment, claims=lambda scale, data: some))
    results = table(of, grid_outcome(sign))
    verdicts = study.verdicts(of, results)
    assert len(verdicts) == 3
    for v in verdicts:
        assert v.word == ("supported" if v.protocol == "positive control" else word), v.reason
        assert v.n == (12 if v.protocol == "positive control" else 15 if data == "mnist" else 18)
    drawn = grid.draw(results, Table.of([]))
    assert len(drawn) == len(grid.SHARPNESS) + 2
    assert all(isinstance(figure, Figure) and "nan" not in figure.finding for figure in drawn)
    assert grid.draw(Table.of([]), Table.of([])) == []


def test_one_element_of_an_array_can_be_correlated():
    rows = [{"seed": s, "lr": lr, "both": (float(lr), -float(lr)), "y": lr} for s in range(3) for lr in range(12)]
    found = [configuration_correlation(Table.of(rows), x="both", y="y", by=("lr",), index=i).mean for i in (0, 1)]
    assert found == [1, -1]


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(0, 8), (-1,), (8, 101)])
def test_batch_sizes_that_are_none_are_refused(sizes):
    with pytest.raises(ValueError, match="between 1 and 100 samples, as many as are trained on, not"):
        check_batches(sizes, 100, "digits")
    check_batches((1, 100), 100, "digits")


@pytest.mark.parametrize(("name", "module"), [("sweep", sweep), (NOISE, noise), (GRID, grid)])
def test_data_that_are_too_small_for_the_batches_are_refused(name: str, module: Any, tmp_path):
    tiny = find("breast_cancer", tmp_path)
    tiny = replace(tiny, call=tiny.draw(train=5, valid=5))
    choose = module.grid if name == GRID else module.arms
    with pytest.raises(ValueError, match="as many as are trained on, not"):
        choose("laptop", tiny)
    with pytest.raises(ValueError, match="has no classes"):
        choose("laptop", find("noisy_polynomial", tmp_path))
    with pytest.raises(ValueError, match="holds no images"):
        choose("paper", find("digits", tmp_path))
