"""The experiments on double descent: the published settings, the claims on data with known answers, and bad input."""

import math
from typing import Any

import numpy as np
import pytest

from landscope import experiments, study
from landscope.data import Source, find, images, two_scales
from landscope.experiments import (
    johannsen2026_double_descent,
    johannsen2026_double_descent_cnn,
    johannsen2026_double_descent_features,
    johannsen2026_double_descent_noise,
)
from landscope.figures import Figure
from landscope.spec import call, key, step_name
from landscope.store.tables import settings
from landscope.types import Table

WIDTH = "johannsen2026_double_descent"
NAMES = [WIDTH, *(f"{WIDTH}_{part}" for part in ("cnn", "epochs", "features", "noise"))]
SETS = {
    "mnist": Source("mnist", call(images, content="0" * 16), (1, 28, 28), 10, "classification", 60_000, 10_000),
    "cifar10": Source("cifar10", call(images, content="1" * 16), (3, 32, 32), 10, "classification", 50_000, 10_000),
}


def made(name: str, scale: str, tmp_path, data: str | None = None) -> study.Study:
    experiment = experiments.load(name)
    wanted = data or experiment.data[scale]
    source = SETS[wanted] if wanted in SETS else find(wanted, tmp_path)
    return study.Study(name, experiment, scale, source, tmp_path, experiment.seeds[scale])


def table(of: study.Study, outcome) -> Table:
    """A table of made-up results: ``outcome(recipe, protocol)`` gives the values."""
    rows: list[dict[str, Any]] = []
    for protocol, recipe in of.runs():
        for step in of.experiment.runs[protocol].steps:
            own: dict[str, Any] = {"protocol": protocol, "step": step_name(step), "run": key(recipe), "status": "done"}
            own |= {"seed": recipe.seed, "batch_size": recipe.batch_size, "steps_made": recipe.steps}
            rows.append(own | settings(recipe) | outcome(recipe, protocol))
    return Table.of(rows)


def words(of: study.Study, results: Table) -> dict[tuple[str, str], str]:
    return {(v.protocol, v.claim.text[:20]): v.word for v in study.verdicts(of, results)}


# --- the published settings ------------------------------------------------------------------------------------------


def test_the_paper_scale_of_the_width_sweep_is_the_papers(tmp_path):
    recipes = [r for name, r in made(WIDTH, "paper", tmp_path).runs(1) if name == "published"]
    assert [r.model["widths"][0] for r in recipes] == [8, 16, 32, 64, 128, 256, 512, 1024]
    assert {(r.batch_size, r.optimizer["lr"], r.optimizer["momentum"], r.steps) for r in recipes} == {
        (128, 0.05, 0.9, 60 * 79)
    }
    assert {r.data["train"] for r in recipes} == {10_000}
    assert all(r.schedule is not None and r.schedule["T_max"] == r.steps for r in recipes)


def test_the_paper_scale_of_the_channels_is_the_papers_code_and_the_control_its_text(tmp_path):
    runs = made(f"{WIDTH}_cnn", "paper", tmp_path).runs(1)
    code, text = ([r for name, r in runs if name == wanted] for wanted in ("published", "as the text says"))
    assert [r.model["channels"] for r in code] == [r.model["channels"] for r in text] == [4, 8, 16, 32, 64, 96]
    assert {(r.optimizer["lr"], r.model["batchnorm"], r.steps) for r in code} == {(0.1, False, 60 * 391)}
    assert {(r.optimizer["lr"], r.model["batchnorm"], r.steps) for r in text} == {(0.01, True, 60 * 391)}


def test_the_published_curve_of_mnist1d_is_run_as_published(tmp_path):
    of = made(f"{WIDTH}_noise", "paper", tmp_path)
    recipes = [r for name, r in of.runs(1) if name == "published"]
    widths = sorted({int(w) for w in np.geomspace(2, 300, 20)})
    assert [r.model["widths"] for r in recipes] == [(w, w) for w in widths]
    assert len(widths) == 19
    assert {(r.batch_size, r.optimizer["lr"], r.steps, r.data["label_noise"]) for r in recipes} == {
        (100, 0.01, 20_000, 0.15)
    }
    parts = of.claims[0].parts
    published = [round(100 * part.paper.value, 2) for part in parts if part.paper is not None]
    assert published == [6.81, 8.58]  # 54.05 % above 47.24 % and 45.47 %


def test_a_shorter_run_along_training_is_the_beginning_of_a_longer_one(tmp_path):
    recipes = [r for name, r in made(f"{WIDTH}_epochs", "laptop", tmp_path).runs(1) if name == "published"]
    assert [r.steps for r in recipes] == [2**k for k in range(14)]
    assert len({(key(r.data), key(r.model), key(r.optimizer), r.batch_size, r.seed) for r in recipes}) == 1
    assert all(r.schedule is None and r.stop is None for r in recipes)


# --- claims on results whose answer is known -------------------------------------------------------------------------


def test_a_run_that_never_trained_makes_the_papers_peak_and_the_trained_ones_do_not(tmp_path):
    """The paper's own accuracies: as they stand nothing is decided, without the dead run the error falls throughout."""
    of, random = made(f"{WIDTH}_cnn", "laptop", tmp_path), np.random.default_rng(0)
    accuracies = {4: 0.33, 8: 0.45, 16: 0.56}

    def outcome(recipe, protocol):
        channels = recipe.model["channels"]
        dead = protocol == "published" and channels == 8 and recipe.seed % 2 == 1
        accuracy = 0.1 if dead else accuracies[channels] + 0.005 * random.standard_normal()
        return {"test_accuracy": accuracy, "train_accuracy": 0.1 if dead else 0.9, "train_loss": 1.0, "test_loss": 1.0}

    found = words(of, table(of, outcome))
    peak, trained = "Test error peaks at ", "Among networks that "
    assert found["published", peak] == "inconclusive"
    assert found["as the text says", peak] == "contradicted"
    assert found["published", trained] == "exploratory"
    (verdict,) = (
        v for v in study.verdicts(of, table(of, outcome)) if v.claim.text.startswith(trained) and not v.control
    )
    assert (verdict.n, round(100 * (verdict.effect or 0))) == (4, -12)
    figures = of.experiment.figures(table(of, outcome), Table.of([]))
    assert "published: 4 of 24 networks never trained" in figures[0].finding


def test_monotone_curves_have_no_peak_and_curves_with_one_do(tmp_path):
    of, random = made(f"{WIDTH}_noise", "laptop", tmp_path), np.random.default_rng(1)
    errors = {4: 0.6, 9: 0.49, 16: 0.47, 27: 0.51, 47: 0.53, 61: 0.54, 104: 0.50, 177: 0.48}

    def outcome(recipe, protocol):
        width = recipe.model["widths"][0]
        error = errors[width] if protocol == "published" else 0.6 - 0.03 * math.log2(width)
        fitted = 0.97 if width >= 61 else 0.8
        noisy = error + 0.01 * random.standard_normal()
        return {"test_accuracy": 1 - noisy, "train_accuracy": fitted, "train_loss": 1.0, "test_loss": 1.0}

    found = words(of, table(of, outcome))
    descent, threshold, none = "Test error falls, ri", "The peak stands wher", "A wider network is n"
    assert [found["published", text] for text in (descent, threshold, none)] == [
        "supported",
        "supported",
        "contradicted",
    ]
    assert [found["clean labels", text] for text in (descent, threshold, none)] == [
        "contradicted",
        "contradicted",
        "supported",
    ]


# --- figures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_figures_state_their_finding_and_draw_every_run(name, tmp_path):
    of, random = made(name, "smoke", tmp_path), np.random.default_rng(2)

    def outcome(recipe, protocol):
        values = {f"{part}_accuracy": float(random.uniform(0.3, 0.9)) for part in ("train", "test")}
        values |= {f"{part}_loss": float(random.uniform(0.1, 1)) for part in ("train", "test")}
        return values | {"top_eigenvalue": 1.0 + random.random(), "filter_loss_increase": (0.1, 0.2, 0.3, 0.4)}

    results = table(of, outcome)
    histories = Table.of([row | {"step": step} for row in results.rows() if row["step"] == "end" for step in (0, 1, 8)])
    figures = of.experiment.figures(results, histories)
    assert len({figure.name for figure in figures}) == len(figures) >= 3
    for figure in figures:
        assert isinstance(figure, Figure)
        assert "nan" not in figure.finding
    runs = [sum(len(s.x) for s in panel.series if s.mode == "points") for panel in figures[0].panels]
    assert runs == [len([1 for protocol, _ in of.runs() if protocol == wanted]) for wanted in of.experiment.runs]
    assert of.experiment.figures(results.where(protocol="published"), Table.of([]))


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: johannsen2026_double_descent_noise.Sweep((0, 2, 4), 9, 9, 1), "at least 3 sizes from 1, ascending"),
        (lambda: johannsen2026_double_descent_noise.Sweep((2, 4), 9, 9, 1), "at least 3 sizes from 1, ascending"),
        (lambda: johannsen2026_double_descent_noise.Sweep((2, 8, 4), 9, 9, 1), "ascending, not \\(2, 8, 4\\)"),
        (lambda: johannsen2026_double_descent.Sweep((2, 4, 8), 8, 2, {"train": 9}), "one of the widths"),
        (lambda: johannsen2026_double_descent_features.Sweep((2, 4, 8), 5, 9), "the 5 training samples lie among"),
        (lambda: johannsen2026_double_descent_features.Sweep((2, 4, 8), 8, 9), "the 8 training samples lie among"),
        (lambda: johannsen2026_double_descent_cnn.Sweep((2, 4, 8), {"train": 9}, 3, 1), "threshold of 8 channels"),
    ],
)
def test_sweeps_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("name", "scale", "data", "message"),
    [
        (WIDTH, "laptop", "noisy_polynomial", "noisy_polynomial has no classes"),
        (f"{WIDTH}_noise", "smoke", "two_scales", "two_scales has no classes"),
        (f"{WIDTH}_features", "laptop", "two_scales", "two_scales has no classes"),
        (f"{WIDTH}_epochs", "laptop", "noisy_polynomial", "takes two_scales or a set with classes"),
        (f"{WIDTH}_epochs", "paper", "digits", "digits holds no images"),
        (f"{WIDTH}_cnn", "paper", "digits", "digits holds none"),
    ],
)
def test_data_that_do_not_fit_are_refused_by_name(name, scale, data, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        study.begin(name, scale, data, tmp_path)


def test_more_training_samples_than_there_are_are_refused_by_the_run(tmp_path):
    recipe = study.begin(f"{WIDTH}_noise", "laptop", "digits", tmp_path).runs(1)[0][1]
    with pytest.raises(ValueError, match="cannot draw 4,000 training"):
        recipe.data(0, None)


# --- the data that a second descent is known of ----------------------------------------------------------------------


def test_features_of_two_scales_share_the_targets_variance():
    drawn = two_scales(0, test=20_000)
    assert drawn.test is not None
    targets = drawn.test.targets
    assert float(targets.var()) == pytest.approx(2.0, rel=0.05)
    assert drawn.test.inputs.std(0)[:40].mean() == pytest.approx(1.0, rel=0.02)
    assert drawn.test.inputs.std(0)[40:].mean() == pytest.approx(0.1, rel=0.02)
    again, other = two_scales(0, test=20_000), two_scales(1)
    assert again.test is not None
    assert bool((again.test.targets == targets).all())
    assert not bool((other.train.inputs == drawn.train.inputs).all())
    refused: list[dict[str, Any]] = [{"fast": 0}, {"slow": 0}, {"scale": 0.0}]
    for wrong in refused:
        with pytest.raises(ValueError, match="two groups have at least 1 feature each"):
            two_scales(0, **wrong)


def test_gradient_descent_on_two_scales_has_two_descents_and_on_one_scale_one():
    """By the closed form of gradient descent on least squares, at the steps 2, 8, 64 and 2,048."""

    def risks(scale):
        found = []
        for seed in range(10_000, 10_008):
            drawn = two_scales(seed, scale=scale)
            assert drawn.test is not None
            x, y = drawn.train.inputs.double().numpy(), drawn.train.targets.double().numpy()
            values, vectors = np.linalg.eigh(x.T @ x / len(x))
            along = vectors.T @ (x.T @ y / len(x))
            test, wanted = drawn.test.inputs.double().numpy(), drawn.test.targets.double().numpy()
            grown = [(1 - (1 - 0.1 * values) ** t) / values for t in (2, 8, 64, 2048)]
            found.append([float(np.mean((test @ (vectors @ (g[:, None] * along)) - wanted) ** 2)) for g in grown])
        return np.mean(found, axis=0)

    start, valley, peak, end = risks(0.1)
    assert start > valley < peak > end
    assert min(peak / valley, peak / end) > 1.1
    one = risks(1.0)
    assert one[1] < one[2] <= one[3] * 1.001  # it never falls again
