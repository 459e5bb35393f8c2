"""The experiment on wide networks: what is published, planned and refused; and the exponent that it is judged by."""

import math
from dataclasses import replace

import numpy as np
import pytest

from landscope import experiments, study
from landscope.data import Source, images
from landscope.experiments import johannsen2026_ntk as ntk
from landscope.models import mlp, seeded, wide_mlp
from landscope.spec import call
from landscope.stats import Untestable, exponent, judge
from landscope.types import Table

NAME = "johannsen2026_ntk"


MNIST = Source("mnist", call(images, content="0" * 16), (1, 28, 28), 10, "classification", 60_000, 10_000)


def test_the_published_exponents_are_those_of_the_papers_table():
    assert ntk.published_exponent(of="relative") == pytest.approx(-0.499, abs=0.001)
    # The norms of PyTorch's initialisation that the reference names: 6.0, 8.2, 11.5, 16.1, 22.7, 32.1.
    for width, norm in ((32, 6.0), (128, 11.5), (1024, 32.1)):
        with seeded(0):
            square = sum(p.square().sum().item() for p in wide_mlp((784,), 10, width=width).parameters())
        assert math.sqrt(square) == pytest.approx(norm, rel=0.01)
    assert abs(ntk.published_exponent(of="distance")) < 0.02


def test_the_paper_scale_is_the_papers():
    recipes = experiments.load(NAME).runs["published"].grid("paper", MNIST, [0])
    assert [r.model["width"] for r in recipes] == [32, 64, 128, 256, 512, 1024, 2048, 4096]
    assert {r.steps for r in recipes} == {30 * 40}
    assert {(r.batch_size, r.optimizer["lr"], r.optimizer["momentum"]) for r in recipes} == {(128, 0.01, 0.9)}
    assert {r.schedule["T_max"] for r in recipes if r.schedule} == {1200}
    with seeded(1):
        ours = recipes[0].model((784,), 10).state_dict()
    with seeded(1):
        theirs = mlp((784,), 10, widths=(32, 32, 32)).state_dict()
    assert all(bool((ours[name] == theirs[name]).all()) for name in theirs)


@pytest.mark.parametrize("scale", ["smoke", "laptop", "paper"])
def test_the_lazy_protocols_differ_in_the_parametrisation_alone(scale: str):
    runs = experiments.load(NAME).runs
    first, second, control = (
        runs[name].grid(scale, MNIST, [0])
        for name in ("NTK parametrisation", "learning rate ∝ 1/width", "positive control")
    )
    assert first == control
    for a, b in zip(first, second, strict=True):
        assert (a.data, a.steps, a.batch_size, a.loss) == (b.data, b.steps, b.batch_size, b.loss)
        assert a.batch_size == a.data["train"]  # full batches
        assert (a.model["parametrisation"], b.model["parametrisation"]) == ("ntk", "standard")
    assert len({a.optimizer["lr"] for a in first}) == 1
    assert len({round(b.optimizer["lr"] * b.model["width"], 9) for b in second}) == 1


def test_data_that_do_not_fit_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="noisy_polynomial has no classes"):
        study.begin(NAME, "smoke", "noisy_polynomial", tmp_path)
    with pytest.raises(ValueError, match="digits holds no images"):
        study.begin(NAME, "paper", "digits", tmp_path)

    few = replace(MNIST, n_train=4_000)
    for scale, wanted in (("laptop", "6,000"), ("paper", "5,000")):
        with pytest.raises(ValueError, match=f"mnist has 4,000 samples to train on, and this scale draws {wanted}"):
            ntk.arms(scale, few)


def test_the_gain_in_accuracy_is_that_of_the_widths_at_hand():
    gain = next(c for c in ntk.claims("paper", MNIST) if c.unit == "points")
    assert gain.paper is not None
    assert gain.paper.value == pytest.approx(0.013)  # 93.9 % at width 4,096 less 92.6 % at 64
    assert "examples" in dict(gain.statistic.kwargs if gain.statistic else ())
    smoke = next(c for c in ntk.claims("smoke", MNIST) if c.unit == "points")
    assert smoke.paper is None


def fallen(power: float, noise: float = 0.02, positive: bool = True) -> Table:
    random = np.random.default_rng(0)
    rows = [
        {"seed": s, "model.width": w, "status": "done", "kernel_drift": w**power * math.exp(noise * random.normal())}
        for s in range(8)
        for w in (64, 128, 256, 512)
    ]
    return Table.of(rows)


@pytest.mark.parametrize(("power", "word"), [(-0.9, "supported"), (-0.1, "contradicted"), (-1.4, "contradicted")])
def test_the_claim_about_the_drifts_rate_is_judged_by_both_bounds(power: float, word: str):
    claim = ntk.claims("laptop", MNIST)[-1]
    (verdict,) = judge([claim], {"end": fallen(power)}, 8)
    assert verdict.word == word


def test_a_distance_that_does_not_fall_contradicts_that_it_does():
    claim = next(c for c in ntk.claims("laptop", MNIST) if c.text.startswith("The tangent kernel drifts less"))
    words = [judge([claim], {"end": fallen(power)}, 8)[0].word for power in (-0.5, 0.0, 0.5)]
    assert words == ["supported", "contradicted", "contradicted"]


def test_an_exponent_is_found_in_each_unit_and_refused_where_there_is_none():
    table = fallen(-0.75, noise=0.0)
    units = exponent(table, value="kernel_drift", over="model.width")
    assert units.values.tolist() == pytest.approx([-0.75] * 8)
    assert units.extra["variance explained"] == pytest.approx(1)
    noisy = exponent(fallen(-0.75, noise=0.3), value="kernel_drift", over="model.width")
    logs = np.log([[r["kernel_drift"] for r in fallen(-0.75, noise=0.3).rows() if r["seed"] == s] for s in range(8)])
    expected = np.polyfit(np.log([64, 128, 256, 512]), logs.T, 1)[0]
    assert noisy.values.tolist() == pytest.approx(expected.tolist())
    with pytest.raises(Untestable, match=r"at least 3 levels of model\.width, and there are 2"):
        exponent(table.where(**{"model.width": [64, 128]}), value="kernel_drift", over="model.width")
    with pytest.raises(Untestable, match="has no logarithm"):
        exponent(Table.of([r | {"kernel_drift": 0.0} for r in table.rows()]), value="kernel_drift", over="model.width")
    with pytest.raises(ValueError, match=r"needs positive levels of model\.width, not -64"):
        exponent(
            Table.of([r | {"model.width": -r["model.width"]} if r["model.width"] == 64 else r for r in table.rows()]),
            value="kernel_drift",
            over="model.width",
        )
    assert exponent(table.where(seed=[]), value="kernel_drift", over="model.width").n == 0
    assert call(exponent, value="x", over="y").name == "exponent"


def test_figures_of_made_up_results_show_what_is_there():
    random = np.random.default_rng(0)
    names = (
        *("relative_movement", "distance_moved", "start_norm", "hidden_weights_relative", "kernel_drift"),
        *("kernel_rotation", "kernel_alignment_centred", "linearisation_error", "test_accuracy"),
    )
    rows = [
        {"protocol": p, "step": "end", "run": "0" * 16, "status": "done", "seed": s, "model.width": w}
        | {name: float(random.random()) for name in names}
        | ({} if p == "published" else {"linear_training_error": 0.1, "kernel_regression_error": 0.2})
        | ({"start_infinite_kernel_drift": 1 / w} if p == "NTK parametrisation" else {})
        for p in ("published", "NTK parametrisation", "learning rate ∝ 1/width")
        for s in range(2)
        for w in (64, 128, 256)
    ]
    histories = Table.of(r | {"step": step, "train_loss": 1.0} for r in rows for step in (1, 10))
    figures = {f.name: f for f in ntk.draw(Table.of(rows), histories)}
    assert len(figures) == 13
    assert [p.title for p in figures["linear-training"].panels] == ["NTK parametrisation", "learning rate ∝ 1/width"]
    assert [p.title for p in figures["infinite-kernel"].panels] == ["NTK parametrisation"]
    for figure in figures.values():
        assert len(figure.finding) >= 40
        assert "nan" not in figure.finding
    fewer = ntk.draw(Table.of(rows[:6]), Table.of([histories.rows()[0]]))
    assert 0 < len(fewer) < 13
