"""The contract of every experiment that is discovered: what it must say, plan and draw."""

import re

import commands
import numpy as np
import pytest

from landscope import experiments, study
from landscope.data import HUB, Source, find, images
from landscope.experiments.johannsen2026_batch_size import PAPER
from landscope.figures import Figure
from landscope.measures.outcomes import performance
from landscope.spec import Experiment, call, canonical_json, from_canonical, key, lineage, planned, step_name
from landscope.store.tables import settings
from landscope.types import Table

NAMES = list(experiments.names())
# Positive controls that theory gives, and figures that print no number: there is none to compare with.
NUMBERLESS = {
    "huang2020_flat_and_sharp",
    "huang2020_optimizers",
    "johannsen2026_double_descent_epochs",
    "johannsen2026_double_descent_features",
}
SCALES = [(name, scale) for name in NAMES for scale in experiments.load(name).seeds]


def pictures(
    seed: int,
    cache: object,
    /,
    *,
    train: int = 50_000,
    valid: int = 0,
    test: int = 10_000,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    label_noise: float = 0.0,
) -> None:
    """Stands for a data set that is not here: planning draws nothing."""
    raise AssertionError("planning reads no data")


class Fake:
    """A `Source` of an image set's sizes, for scales whose data are not embedded."""

    task, n_test = "classification", 10_000

    def __init__(self, name="cifar10"):
        self.name, self.shape, self.n_train, self.outputs = {
            "cifar10": ("cifar10", (3, 32, 32), 50_000, 10),
            "cifar100": ("cifar100", (3, 32, 32), 50_000, 100),
            "mnist": ("mnist", (1, 28, 28), 60_000, 10),
            "svhn": ("svhn", (3, 32, 32), 73_257, 10),
        }[name]

    def draw(self, **settings):
        return call(pictures, **settings)


def source(experiment: Experiment, scale: str, tmp_path) -> "Source | Fake":
    wanted = experiment.data[scale]
    return Fake(wanted) if wanted in HUB else find(wanted, tmp_path)


@pytest.fixture(params=NAMES)
def experiment(request):
    return experiments.load(request.param)


def test_something_is_discovered_and_described():
    assert "johannsen2026_batch_size" in NAMES
    for name, line in experiments.names().items():
        # A paper whose authors are not known is named after its method.
        assert re.fullmatch(r"([a-z]+(19|20)\d\d[a-z]?|flatness_aware)_[a-z0-9_]+", name)
        assert 20 <= len(line) <= 120


def test_every_experiment_says_what_it_must(experiment):
    assert experiment.seeds.keys() == experiment.data.keys() >= {"smoke", "laptop", "paper"}
    assert min(experiment.seeds["laptop"], experiment.seeds["paper"]) >= 8
    names = list(experiment.runs)
    assert names[0] == "published"
    assert not experiment.runs["published"].positive
    assert len([n for n in names if not experiment.runs[n].positive]) >= 2  # a control
    assert all(len(protocol.holds) > 40 for protocol in experiment.runs.values())
    assert len(experiment.deviations) >= 1
    assert len(set(experiment.deviations)) == len(experiment.deviations)
    assert experiment.varied
    assert experiment.paper.url.startswith("https://")
    assert experiment.measures


@pytest.mark.parametrize(("name", "scale"), SCALES)
def test_claims_can_be_judged(name, scale, tmp_path):
    experiment = experiments.load(name)
    claims = experiment.claims(scale, source(experiment, scale, tmp_path))
    assert len({claim.text for claim in claims}) == len(claims)
    primary = [claim for claim in claims if claim.primary and not claim.positive]
    assert primary
    for claim in primary:
        assert claim.smallest is not None or claim.margin is not None
        assert len(claim.reason) > 20
        assert claim.unit
    assert any(claim.paper for claim in primary) or name in NUMBERLESS
    assert all(len(claim.paper.source) > 10 for claim in primary if claim.paper)
    assert {claim.positive for claim in claims} == {p.positive for p in experiment.runs.values()}


@pytest.mark.parametrize(("name", "scale"), SCALES)
def test_every_scale_plans_the_same_grid_for_the_same_seeds(name, scale, tmp_path):
    experiment = experiments.load(name)
    data = source(experiment, scale, tmp_path)
    first, second = (planned(experiment, scale, data, range(2)) for _ in range(2))
    keys = [key(recipe) for _, recipe in first]
    assert keys == [key(recipe) for _, recipe in second]
    # a seed's runs do not depend on how many seeds there are, and no two seeds share a run
    alone = [[key(r) for _, r in planned(experiment, scale, data, [seed])] for seed in (0, 1)]
    assert sorted(keys) == sorted(alone[0] + alone[1])
    assert not set(alone[0]) & set(alone[1])
    assert {recipe.seed for _, recipe in first} == {0, 1}
    for _, recipe in first:
        assert re.fullmatch(r"[0-9a-f]{16}", key(recipe))
    for protocol in experiment.runs:
        mine = [key(recipe) for name_, recipe in first if name_ == protocol]
        assert mine
        assert len(set(mine)) == len(mine)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_survives_the_store(name, tmp_path):
    experiment = experiments.load(name)
    for _, recipe in planned(experiment, "smoke", source(experiment, "smoke", tmp_path), [0]):
        assert key(from_canonical(__import__("json").loads(canonical_json(recipe)))) == key(recipe)


@pytest.mark.parametrize("name", NAMES)
def test_runs_that_protocols_share_are_one_task(name, tmp_path):
    made = study.begin(name, "smoke", None, tmp_path)
    runs = made.runs()
    tasks = study.tasks(made, jobs=2)
    trained = [one["recipe"] for task in tasks for one in task.payload.get("members", [task.payload])]
    assert sorted(key(from_canonical(recipe)) for recipe in trained) == sorted(lineage(recipe for _, recipe in runs))
    assert len({task.key for task in tasks}) == len(tasks)
    assert [task.runs for task in tasks] == [len(task.payload.get("members", "1")) for task in tasks]
    assert len(study.expected(made)) == len(trained)


def test_johannsen_trains_what_protocols_share_once(tmp_path):
    made = study.begin("johannsen2026_batch_size", "laptop", None, tmp_path)
    assert len(study.tasks(made)) < len(made.runs())


def test_data_that_do_not_fit_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="noisy_polynomial has no classes"):
        study.begin("johannsen2026_batch_size", "smoke", "noisy_polynomial", tmp_path)
    with pytest.raises(ValueError, match="digits holds no images"):
        study.begin("johannsen2026_batch_size", "paper", "digits", tmp_path)


@pytest.mark.parametrize("scale", ["smoke", "laptop"])
def test_johannsen_takes_other_small_sets_or_says_why_not(scale, tmp_path):
    for name in ("mnist1d", "breast_cancer"):
        made = study.begin("johannsen2026_batch_size", scale, name, tmp_path)
        recipe = made.runs(1)[0][1]
        epochs = {"smoke": 6, "laptop": 40}[scale]
        assert recipe.steps == epochs * -(-recipe.data(0, None).train.n // recipe.batch_size)
    for name in ("swiss_roll", "rings"):
        with pytest.raises(ValueError, match=f"cannot be run on {name}.*label_noise|a batch of {name} holds"):
            study.begin("johannsen2026_batch_size", scale, name, tmp_path)


def test_the_paper_scale_is_the_papers(tmp_path):
    """Table of the paper's code: seven batch sizes, their learning rates, Adam, and full-batch descent."""
    experiment = experiments.load("johannsen2026_batch_size")
    recipes = experiment.runs["published"].grid("paper", Fake(), [0])
    sgd = {r.batch_size: r.optimizer["lr"] for r in recipes if r.optimizer.name == "SGD" and r.batch_size <= 2048}
    assert sgd == {32: 0.005, 64: 0.0075, 128: 0.01, 256: 0.02, 512: 0.04, 1024: 0.08, 2048: 0.1}
    assert all(r.steps == 80 * -(-50_000 // r.batch_size) for r in recipes if r.batch_size <= 2048)
    assert [r.optimizer["lr"] for r in recipes if r.optimizer.name == "Adam"] == [0.001]
    assert [r.steps for r in recipes if r.batch_size == 5000] == [80]


def outcomes(random, recipe, measured):
    """What a run of the paper scale might come to; runs outside the sweep stand out by far."""
    size, extra = recipe.batch_size, recipe.optimizer.name != "SGD" or recipe.batch_size == 5_000
    noisy, level = dict(recipe.data.kwargs)["label_noise"] > 0, recipe.stop["level"] if recipe.stop else 0.01
    right = random.random(200) < (0.1 if extra else 0.6 if noisy else 0.9 - 0.02 * np.log2(size / 32))
    sharp = 1e6 if extra else size * level * np.exp(random.normal(0, 0.2))
    values = {"test_correct": tuple(map(float, right)), "test_accuracy": right.mean(), "top_eigenvalue": sharp}
    values |= {"train_loss": level, "generalization_gap": 0.1, "status": "done", "run": key(recipe)}
    for measure in measured:
        if measure.name == "weight_perturbation":
            kind, magnitudes = measure["kind"], np.array(measure["magnitudes"])
            values[f"{kind}_magnitudes"] = tuple(magnitudes)
            for name in ("loss_increase_percent", "loss_increase", "flipped"):
                values[f"{kind}_{name}"] = tuple(sharp * magnitudes)
    own = {"seed": recipe.seed, "batch_size": size, "steps_made": recipe.steps}
    return settings(recipe) | own | {k: v if isinstance(v, (tuple, str)) else float(v) for k, v in values.items()}


@pytest.fixture(scope="module")
def at_paper_scale(tmp_path_factory):
    experiment = experiments.load("johannsen2026_batch_size")
    cifar = Source("cifar10", call(images, content="0" * 16), (3, 32, 32), 10, "classification", 50_000, 10_000)
    made = study.Study(commands.NAME, experiment, "paper", cifar, tmp_path_factory.mktemp("none"), 10)
    random = np.random.default_rng(0)
    rows = [
        outcomes(random, recipe, made.measures) | {"protocol": protocol, "step": step_name(step)}
        for protocol, recipe in made.runs()
        for step in experiment.runs[protocol].steps
    ]
    histories = [{**row, "step": step, "test_loss": 1.0} for row in rows if row["step"] == "end" for step in (0, 80)]
    return made, Table.of(rows), Table.of(histories)


def test_the_arms_of_the_paper_scale_that_are_no_batch_size_enter_no_claim(at_paper_scale):
    made, table, _ = at_paper_scale
    kept = [r for r in table.rows() if r["optimizer"] == "SGD" and r["batch_size"] in PAPER.sizes]
    assert len(table) - len(kept) == 20  # Adam and full-batch descent, ten seeds each, under the published protocol
    verdicts, without = (study.verdicts(made, t) for t in (table, Table.of(kept)))
    for verdict, same in zip(verdicts, without, strict=True):
        assert verdict.to_json() == same.to_json()
        assert verdict.word in ("exploratory", "supported", "contradicted", "inconclusive"), verdict.reason
        assert verdict.n == (7 if verdict.word == "exploratory" else 10)


def test_the_test_set_of_the_paper_scale_is_counted_with_its_error(at_paper_scale):
    made, table, _ = at_paper_scale
    assert all("test" not in dict(recipe.data.kwargs) for _, recipe in made.runs(1))  # the whole one, in its order
    points = [v for v in study.verdicts(made, table) if v.claim.unit == "points"]
    assert len(points) == 5
    assert all("the same 200 examples" in v.sentence and v.extra["test set error"] > 0 for v in points)
    laptop = study.Study(made.name, made.experiment, "laptop", made.source, made.root, 8)
    assert not any("examples" in dict(measure.kwargs) for measure in laptop.measures)
    assert not any("examples" in dict(c.statistic.kwargs) for c in laptop.claims if c.statistic)
    assert key(made.measures[0]) != key(laptop.measures[0]) == key(call(performance))
    assert made.measures[1:] == laptop.measures[1:]


def test_the_figures_of_the_paper_scale_show_the_batch_sizes_alone(at_paper_scale):
    made, *tables = at_paper_scale
    table, histories = (t.where(seed=[0, 1, 2]) for t in tables)
    kept = [
        Table.of(r for r in t.rows() if r["optimizer"] == "SGD" and r["batch_size"] in PAPER.sizes)
        for t in (table, histories)
    ]
    drawn, alone = made.experiment.figures(table, histories), made.experiment.figures(*kept)
    assert len(drawn) >= 8
    assert [figure.table() for figure in drawn] == [figure.table() for figure in alone]
    assert [figure.finding for figure in drawn] == [figure.finding for figure in alone]


# --- figures, of a smoke run --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    store = commands.shared_store(tmp_path_factory)
    made = study.resume(commands.NAME, "smoke", None, store)
    return made, study.results(made), study.histories(made)


def test_figures_state_their_finding_with_its_number(smoke):
    made, results, histories = smoke
    figures = made.experiment.figures(results, histories)
    assert len(figures) >= 8
    assert len({figure.name for figure in figures}) == len(figures)
    for figure in figures:
        assert isinstance(figure, Figure)
        assert len(figure.finding) >= 40
        assert re.search(r"\d", figure.finding)
        assert "nan" not in figure.finding
        assert len(figure.table()) > 0
        assert all(np.isfinite(np.asarray(s.x, float)).all() for panel in figure.panels for s in panel.series)


def test_figures_of_an_unfinished_experiment_are_fewer_not_broken(smoke):
    made, results, histories = smoke
    whole = made.experiment.figures(results, histories)
    some = made.experiment.figures(results.where(protocol="published"), histories.where(protocol="published"))
    assert 0 < len(some) <= len(whole)
    one = results.where(protocol="published", seed=0)
    assert made.experiment.figures(one, histories.where(protocol="nothing"))


def test_every_seed_is_drawn(smoke):
    made, results, histories = smoke
    figure = next(f for f in made.experiment.figures(results, histories) if f.name == "sharpness")
    points = [s for s in figure.panels[0].series if s.mode == "points"]
    assert sum(len(s.x) for s in points) >= 6  # three batch sizes, two seeds
