"""The experiments on flatness-aware regularization: what is trained, which run is which arm, claims, and measures."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from landscope import study
from landscope.data import Source, find
from landscope.data.stored import images
from landscope.engine import snapshot
from landscope.experiments import _flatness_aware as shared
from landscope.experiments import _penalties as penalties
from landscope.experiments import flatness_aware_lambda as table
from landscope.experiments import flatness_aware_lambda_tumours as tumours
from landscope.losses import cross_entropy
from landscope.models import mlp
from landscope.spec import call, key, resolve
from landscope.stats import Untestable
from landscope.store.tables import settings
from landscope.train import advance, begin
from landscope.types import Batches, Table

CIFAR = Source("cifar10", call(images, content="0" * 16), (3, 32, 32), 10, "classification", 50_000, 10_000, "0" * 16)
LAMBDAS = (0.0, 0.001, 0.01, 0.1, 1.0)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return find("digits", tmp_path_factory.mktemp("none"))


@pytest.fixture(scope="module")
def cancer(tmp_path_factory):
    return find("breast_cancer", tmp_path_factory.mktemp("none"))


# --- runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["laptop", "paper"])
def test_the_network_and_its_training_are_the_papers(scale):
    """512 and 256 units, 30 % dropout, Adam at .01 decayed, batches of 128, 10 epochs, 5 directions, every 10 steps."""
    recipes = table.published(scale, CIFAR, [0])
    (model,) = {recipe.model for recipe in recipes}
    layers = model((3, 32, 32), 10)
    assert [m.out_features for m in layers.modules() if isinstance(m, nn.Linear)] == [512, 256, 10]
    assert [m.p for m in layers.modules() if isinstance(m, nn.Dropout)] == [0.3, 0.3]
    for recipe in recipes:
        assert (recipe.optimizer["lr"], recipe.batch_size) == (0.01, 128)
        assert recipe.schedule is not None
        assert recipe.schedule["T_max"] == 10 * math.ceil(recipe.data["train"] / 128)
    main = [t for r in recipes for t in r.regularizers if (t["every"], t["matrix"]) == (10, "hessian")]
    assert {t["probes"] for t in main} == {5}
    assert {round(t["strength"] * t["every"], 12) for t in main} == set(LAMBDAS[1:])


def test_the_penalty_enters_at_every_tenth_step_with_the_papers_weight():
    """`flatness` makes up for the steps that it leaves out; the paper's penalty does not."""
    torch.manual_seed(0)
    model, batch = mlp((6,), 3, widths=(5,)), (torch.randn(8, 6), torch.randint(3, (8,)))
    once, tenth = (shared.penalty(0.5, every=every)() for every in (1, 10))
    drawn = once.draw(model, batch, torch.Generator().manual_seed(0))
    torch.testing.assert_close(tenth(model, batch, drawn=drawn), once(model, batch, drawn=drawn))
    assert float(once(model, batch, drawn=drawn).detach()) > 0
    assert tenth(model, batch, drawn=()).item() == 0


def test_a_shorter_run_is_the_beginning_of_the_longer_one(digits):
    """So that a look at epoch 1 is one at the run that goes on to epoch 2."""
    of = table.SMOKE
    short, long = (shared.run(of, digits, 10_000, shared.penalty(1.0), epochs=epochs) for epochs in (1, 2))
    data, states = short.data(10_000, None), []
    for recipe in (short, long):
        for training in advance(begin(recipe, data)):
            if training.step == short.steps:
                states.append({name: t.clone() for name, t in training.model.state_dict().items()})
    assert all(torch.equal(t, states[1][name]) for name, t in states[0].items())


def test_what_protocols_share_is_trained_once(digits):
    runs = {name: {key(r) for r in p.grid("laptop", digits, [0])} for name, p in table.RUNS.items()}
    assert len(runs["published"] & runs["at every step"]) == 3  # no penalty, and a tenth of 0.01 and of 1 at every step
    assert len(runs["positive control"] & runs["at every step"]) == 2
    assert len(runs["published"]) == 5 * 5 + 3 * 4 + 2


def test_every_family_has_as_many_settings(digits):
    kinds = {}
    for recipe in table.published("laptop", digits, [0]):
        row = settings(recipe)
        if row["steps"] == row["schedule.T_max"]:
            kind, dose = penalties._kind(row, 10)
            kinds.setdefault(kind, set()).add(dose)
    assert {
        len(kinds[family] | {shared.DECAY if family == "weight decay" else 0.0}) for family in penalties.FAMILIES
    } == {5}
    assert kinds["penalty every 1"] == {0.001, 0.1}


def test_unscaled_measurements_are_the_measurements_themselves(cancer):
    """The fixed layer takes back the scaling by all tumours; standardised by them, the inputs come out raw."""
    from sklearn.datasets import load_breast_cancer

    raw = torch.tensor(load_breast_cancer(return_X_y=True)[0], dtype=torch.float32)
    scaled = (raw - raw.mean(0)) / raw.std(0, correction=0)
    model = tumours.unscaled((30,), 2, model=call(mlp, widths=(4,)))
    torch.testing.assert_close(next(model.children())(scaled), raw, rtol=1e-4, atol=1e-3)
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["0.weight", "0.bias"]


# --- arms and claims ------------------------------------------------------------------------------------------------


def made_up(module, source, seeds=8):
    """A row for every run, as the store would give it: accuracy, curvature and validation known for every arm."""
    rows, random = [], np.random.default_rng(0)
    for protocol, way in module.RUNS.items():
        recipes = way.grid("laptop", source, range(seeds))
        often = max(t["every"] for r in recipes for t in r.regularizers) if any(r.regularizers for r in recipes) else 0
        for recipe in recipes:
            kind, dose = penalties._kind(settings(recipe), often)
            share = recipe.steps / settings(recipe)["schedule.T_max"]
            right = (
                0.5 + 0.1 * share + {"penalty": 0.01, "SAM": 0.03, "wrong labels": -0.2}.get(kind, 0.02) * (dose > 0)
            )
            noisy = right + random.normal(0, 1e-4)
            values = {"test_accuracy": noisy, "valid_accuracy": right - dose / 1e3, "train_loss": 0.1, "test_loss": 0.2}
            values |= {
                "valid_loss": 1.0,
                "hessian_trace_squared": 10.0 / (1 + dose),
                "batch_flatness": share / (1 + dose),
            }
            values |= {"work_of_training": 2.0, "work_of_penalty": 12.0}
            values |= {"work_plain_way": 26.0, "work_plain_way_of_training": 3.5}
            base = {"protocol": protocol, "step": "end", "run": key(recipe), "status": "done", "seed": recipe.seed}
            rows.append(base | settings(recipe) | values)
    return Table.of(rows)


@pytest.fixture(scope="module")
def made(digits):
    return made_up(table, digits)


def of_published(made, change=lambda row: row):
    return Table.of(change(row) for row in made.where(protocol="published").rows())


def statistic(data, words, made):
    (claim,) = (c for c in table.claims("laptop", data) if words in c.text)
    assert claim.statistic is not None
    return claim.statistic(made)


def test_each_arm_is_one_row_with_what_its_looks_say(made):
    rows = penalties.with_arms(of_published(made)).rows()
    assert len(rows) == 8 * (5 + 3 * 4 + 2)
    assert all(row["steps"] == row["schedule.T_max"] for row in rows)
    for row in rows:
        looks = made.where(protocol="published", seed=row["seed"]).rows()
        if row["kind"] == "penalty":
            own = [
                r for r in looks if r.get("regularizers.flatness.strength") == row.get("regularizers.flatness.strength")
            ]
            own = [r for r in own if r.get("regularizers.flatness.every") in (None, 10)]
            own = [r for r in own if r["optimizer"] == "Adam" and r["optimizer.weight_decay"] == shared.DECAY]
            own = [r for r in own if r.get("regularizers.flatness.matrix") in (None, "hessian")]
            assert len(own) == 5
            assert row["best_accuracy"] == max(r["test_accuracy"] for r in own)
            assert row["mean_flatness"] == pytest.approx(0.6 / (1 + row["dose"]))
            assert row["selected_accuracy"] == row["test_accuracy"]  # validation is best at the end
        else:
            assert row["best_accuracy"] is None


def test_the_selected_epoch_is_chosen_on_validation_and_not_on_test(made):
    def change(row):
        first = row["steps"] == 16
        return row | {"valid_accuracy": 0.9 if first else 0.5, "test_accuracy": 0.1 if first else 0.6}

    rows = penalties.with_arms(of_published(made, change)).rows()
    assert {(r["selected_accuracy"], r["best_accuracy"]) for r in rows if r["kind"] == "penalty"} == {(0.1, 0.6)}


def test_a_missing_look_leaves_no_mean(made):
    kept = [r for r in of_published(made).rows() if not (r["steps"] == 16 and r["seed"] == 3)]
    rows = penalties.with_arms(Table.of(kept)).rows()
    assert {r["seed"] for r in rows if r["kind"] == "penalty" and r["mean_flatness"] is None} == {3}
    without_end = [r for r in kept if not (r["seed"] == 3 and r["steps"] == 80)]
    assert {r["seed"] for r in penalties.with_arms(Table.of(without_end)).rows()} == {0, 1, 2, 4, 5, 6, 7}


@pytest.mark.parametrize(
    ("words", "effect"),
    [
        ("the lower Tr(H²) at the end", -1.0),
        ("ends with a lower Tr(H²)", math.log(1 / 1.01)),
        ("tests better than no penalty", 0.01),
        ("λ = 1 tests worse", 0.0),
        ("in the mean over training", -1.0),
        ("at every 10th step, as computed here", math.log(2.0)),
        ("better than SAM", -0.02),
        ("better than weight decay", -0.01),
        ("λ = 1 at every 10th step ends", math.log(1.1 / 2)),
    ],
)
def test_claims_compare_the_arms_that_they_name(made, digits, words, effect):
    units = statistic(digits, words, of_published(made))
    assert units.n == 8
    assert units.mean == pytest.approx(effect, abs=2e-4)


def test_the_best_balance_is_a_conjunction_over_all_other_strengths(digits):
    (claim,) = (c for c in table.claims("laptop", digits) if "best balance" in c.text)
    assert claim.expect == "all_of"
    others = [dict(part.statistic.kwargs)["second"] for part in claim.parts if part.statistic is not None]
    assert others == ["penalty 0", "penalty 0.001", "penalty 0.1", "penalty 1", "penalty 0"]
    assert claim.paper is not None
    assert claim.paper.value == pytest.approx(0.0033, abs=1e-6)
    assert min(table.PEAK, key=lambda s: table.PEAK[s]) == 0.01  # what the paper calls the peak is the lowest of five


def test_the_papers_numbers_are_counts_of_600():
    for value in (*table.FINAL.values(), *table.PEAK.values()):
        assert abs(600 * value - round(600 * value)) < 0.03
    assert 1.96 * math.sqrt(0.26 * 0.74 / 600) == pytest.approx(0.035, abs=5e-4)
    factors = [seconds / table.SECONDS[0.0] for strength, seconds in table.SECONDS.items() if strength]
    assert (round(min(factors)), round(max(factors))) == (36, 40)


def test_tuning_chooses_on_validation_within_each_seed(made):
    def change(row):
        kind, dose = penalties._kind(row, 10)
        chosen = 0.1 if row["seed"] % 2 else 0.01
        return row | {"valid_accuracy": 0.9 if (kind, dose) == ("penalty", chosen) else 0.5, "test_accuracy": dose}

    units = penalties.tuned_difference(of_published(made, change), first="penalty", second="SAM")
    assert sorted(units.values.tolist()) == [0.01] * 4 + [0.1] * 4  # SAM's are all alike: the run without it is taken


def test_diverged_runs_keep_their_pairs_and_are_not_chosen(made):
    gone = dict.fromkeys(("test_accuracy", "valid_accuracy", "valid_loss", "hessian_trace_squared", "batch_flatness"))

    def change(row):
        kind, dose = penalties._kind(row, 10)
        return row | (gone | {"status": "diverged"} if row["seed"] == 0 and kind == "penalty" and dose == 1.0 else {})

    diverged = of_published(made, change)
    units = penalties.arm_difference(diverged, value="test_accuracy", first="penalty 1", second="penalty 0", worst=0.1)
    assert (units.n, units.whole.n) == (8, 7)
    assert units.values[0] == pytest.approx(0.1 - 0.6, abs=1e-3)
    assert penalties.tuned_difference(diverged, first="penalty", second="SAM").n == 8
    with pytest.raises(Untestable, match="runs diverged"):
        penalties.arm_value(diverged, value="test_accuracy", arm="penalty 1")


def test_what_a_protocol_does_not_have_cannot_be_tested(made, digits):
    control = made.where(protocol="at every step")
    with pytest.raises(Untestable, match="at their end alone"):
        statistic(digits, "in the mean over training", control)
    with pytest.raises(Untestable, match="no finished runs with SAM"):
        statistic(digits, "better than SAM", control)
    with pytest.raises(Untestable, match="penalty 7"):
        penalties.arm_value(control, value="test_accuracy", arm="penalty 7")


def test_the_claims_on_tumours_compare_what_they_name(cancer):
    made = made_up(tumours, cancer)
    found = {c.text: c for c in tumours.claims("laptop", cancer)}
    for protocol in ("published", "at every step", "measurements as they are"):
        (better,) = (c for text, c in found.items() if "better than no penalty" in text)
        assert better.statistic is not None
        assert better.statistic(made.where(protocol=protocol)).mean == pytest.approx(0.01, abs=2e-4)
    (wrong,) = (c for text, c in found.items() if "costs" in text)
    assert wrong.statistic is not None
    assert wrong.statistic(made.where(protocol="positive control")).mean == pytest.approx(0.2, abs=2e-4)


def test_figures_say_what_they_show(made):
    figures = table.draw(made, made)
    assert [f.name for f in figures] == [*penalties._DRAWN, "flatness-along-training"]
    assert [p.title for p in next(f for f in figures if f.name == "other-penalties").panels] == list(penalties.FAMILIES)
    assert all("nan" not in f.finding for f in figures)
    (flat,) = (f for f in figures if f.name == "mean-flatness")
    assert "0.6 at 0," in flat.finding  # measured without the penalty, too


# --- measures -------------------------------------------------------------------------------------------------------


def looked_at(model, x, y, measure):
    return measure.bind()(snapshot(model, None, resolve("landscope.losses.cross_entropy")(), {
        "train": Batches(x, y), "valid": None, "test": None,
    }, 0, measure))  # fmt: skip


def exact(model, x, y):
    """‖H‖² of the mean loss, from the whole matrix."""
    names, weights = zip(*model.named_parameters(), strict=True)

    def loss(*parts):
        outputs = torch.func.functional_call(model, dict(zip(names, parts, strict=True)), (x,))
        return nn.functional.cross_entropy(outputs, y)

    rows = torch.autograd.functional.hessian(loss, weights)
    return sum(float(block.square().sum()) for row in rows for block in row)


def test_the_curvature_is_that_of_the_whole_matrix():
    torch.manual_seed(1)
    model, x, y = mlp((6,), 3, widths=(5,)), torch.randn(24, 6), torch.randint(3, (24,))
    found = looked_at(model, x, y, call(shared.curvature, batch=8, probes=100, top=8, rest=20))
    trace = exact(model, x, y)
    assert found["hessian_trace_squared"].mean == pytest.approx(trace, rel=0.05)
    flat = found["batch_flatness"]
    assert flat.n == 3
    generator = torch.Generator().manual_seed(
        snapshot_seed(call(shared.curvature, batch=8, probes=100, top=8, rest=20))
    )
    parts = torch.randperm(24, generator=generator).view(3, 8)
    expected = np.mean([exact(model, x[part], y[part]) / 8 for part in parts])
    assert flat.mean == pytest.approx(expected, rel=0.2)
    assert flat.mean * 8 > trace  # a batch's own Tr(H²) is above that of all samples


def snapshot_seed(measure):
    model = mlp((2,), 2, widths=(2,))
    sets = {"train": Batches(torch.zeros(2, 2), torch.zeros(2, dtype=torch.int64)), "valid": None, "test": None}
    return snapshot(model, None, cross_entropy(), sets, 0, measure).seed


def test_the_work_is_counted_by_hand():
    """A plain step: forward 2·n·Σ in·out, gradients of all weights as much again, of all inputs but the first."""
    torch.manual_seed(0)
    model, x, y = mlp((6,), 3, widths=(5,)), torch.randn(16, 6), torch.randint(3, (16,))
    measure = call(shared.work, batch=16, probes=2, every=10)
    plain, ours, naive = shared._steps(model, cross_entropy(), x, y, 2)
    assert plain == 2 * 16 * (2 * (6 * 5 + 5 * 3) + 5 * 3)
    found = looked_at(model, x, y, measure)
    assert found["work_of_penalty"] == ours / plain
    assert found["work_plain_way"] == naive / plain > 5
    assert found["work_of_training"] == pytest.approx(1 + (ours / plain - 1) / 10)
    assert looked_at(model, x, y, measure) == found  # counted, not timed
    assert all(p.grad is None for p in model.parameters())


def test_measures_refuse_what_cannot_be_estimated():
    model, x, y = mlp((2,), 2, widths=(2,)), torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)
    for changed in ({"probes": 1}, {"rest": 1}, {"batch": 0}):
        with pytest.raises(ValueError, match="probes and rest >= 2 and batch >= 1"):
            looked_at(model, x, y, call(shared.curvature, **changed))


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"strengths": (0.0, -0.1)}, r"λ is a finite number of at least 0, not -0\.1"),
        ({"strengths": (0.0, math.inf)}, "λ is a finite number"),
        ({"strengths": (0.1, 1.0)}, "ascend from 0"),
        ({"strengths": ()}, "ascend from 0"),
        ({"batch": 2_000}, "between 1 and all 1,000 training samples, not 2,000"),
        ({"batch": 0}, "between 1 and all"),
        ({"looks": (2, 4)}, "to the last one, 10"),
        ({"looks": (0, 10)}, "ascend from epoch 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        replace(table.DIGITS, **changed)


def test_data_that_do_not_fit_are_refused_by_name(tmp_path):
    for name, scale, data, message in (
        ("flatness_aware_lambda", "smoke", "noisy_polynomial", "noisy_polynomial has no classes"),
        ("flatness_aware_lambda", "paper", "digits", "trains on 45,000 samples"),
        ("flatness_aware_lambda", "laptop", "rings", "all 98 training samples, not 128"),
        ("flatness_aware_lambda_tumours", "smoke", "digits", "is about breast_cancer, not digits"),
    ):
        with pytest.raises(ValueError, match=message):
            study.begin(name, scale, data, tmp_path)


def test_other_small_sets_are_taken(tmp_path):
    made = study.begin("flatness_aware_lambda", "laptop", "mnist1d", tmp_path)
    recipe = made.runs(1)[-1][1]
    assert recipe.data(0, None).train.n == 3_750
    assert recipe.steps == 10 * math.ceil(3_750 / 128)
