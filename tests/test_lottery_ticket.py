"""The experiment on lottery tickets: its chains, its arms, what they come to, and a smoke run in this process."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

import landscope.store as store
from landscope import study
from landscope.data import find
from landscope.engine import finished, work
from landscope.experiments import _lottery as lottery
from landscope.experiments import johannsen2026_lottery_ticket as tickets
from landscope.pruning import prune_and_rewind
from landscope.spec import Recipe, at, key, lineage, sources
from landscope.stats import Untestable
from landscope.store.tables import settings
from landscope.types import Table

NAME = "johannsen2026_lottery_ticket"
KINDS = {*lottery.KINDS, "line"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return {name: find(name, tmp_path_factory.mktemp("none")) for name in ("digits", "mnist1d")}


# --- chains ---------------------------------------------------------------------------------------------------------


def test_every_level_comes_from_the_one_before_and_all_begin_as_the_dense_network(data):
    of = tickets.setup("laptop", data["mnist1d"])
    dense = tickets._dense(of, data["mnist1d"], 0)
    levels = tickets._chain(of, dense)
    assert len(levels) == 16
    assert levels[-1][0] < 0.03
    before = dense
    for density, scores, ticket in levels:
        assert scores == at(before, "end")
        assert ticket.start is not None
        assert ticket.start["source"] == at(dense, "start")
        assert ticket.start["density"] == density
        assert replace(ticket, start=None, constraint=None) == dense
        before = ticket


def test_a_level_is_the_same_run_however_far_the_chain_goes(data):
    """Level 7 never retrains levels 0 to 6: they are the same names in the store."""
    of = tickets.setup("laptop", data["mnist1d"])
    dense = tickets._dense(of, data["mnist1d"], 0)
    long, short = tickets._chain(of, dense), tickets._chain(replace(of, until=0.25), dense)
    assert len(short) == 7
    assert [key(t) for *_, t in long[:7]] == [key(t) for *_, t in short]
    assert list(lineage([long[6][2]])) == [key(dense), *(key(t) for *_, t in long[:7])]


@pytest.mark.parametrize("scale", ["smoke", "laptop"])
def test_what_protocols_share_is_trained_once(scale, data):
    runs = {name: p.grid(scale, data["digits"], [0]) for name, p in tickets.RUNS.items()}
    names = {name: {key(recipe) for recipe in own} for name, own in runs.items()}
    assert names["positive control"] <= names["iterative with rewinding"]
    assert len(names["published"] & names["iterative with rewinding"]) >= 3  # the dense network, its twin, their line
    family = lineage(recipe for own in runs.values() for recipe in own)
    hidden = {name: recipe for name, (recipe, _) in family.items() if name not in set().union(*names.values())}
    assert {recipe.steps for recipe in hidden.values()} == {0}  # other initialisations alone


def test_the_published_protocol_is_the_papers(data):
    class Cifar:
        name, shape, outputs, task, n_train, n_test = "cifar10", (3, 32, 32), 10, "classification", 50_000, 10_000
        draw = data["digits"].draw

    runs = tickets.one_shot("paper", Cifar(), [0])
    dense = runs[0]
    assert (dense.steps, dense.batch_size, dense.optimizer["lr"], dense.model["channels"]) == (23_460, 128, 0.01, 32)
    pruned = [r for r in runs if r.start is not None and r.start.name == prune_and_rewind.__name__]
    starts = [r.start for r in pruned if r.start is not None]
    first = [s for s in starts if s["source"] == at(dense, "start") and "shuffle" not in dict(s.kwargs)]
    assert sorted({s["density"] for s in first}) == [0.05, 0.1, 0.2, 0.3, 0.5, 0.7]
    assert all(s["scores"] == at(dense, "end") for s in starts)
    (other,) = {s.run for r in pruned for s in sources(r) if isinstance(s.run, Recipe) and s.run.seed != 0}
    assert (other.seed, other.steps) == (100, 0)
    assert all(r.constraint is not None and r.steps == dense.steps for r in pruned)


@pytest.mark.parametrize("density", [0.5, 0.107374, 0.028147])
def test_a_small_network_is_the_smallest_that_has_the_tickets_parameters(density):
    of = tickets.GREY_IMAGES
    model = tickets._small(of, (1, 28, 28), 10, density)
    wide, rest = tickets._counts(of.network(), (1, 28, 28), 10)
    assert (wide, rest) == (784 * 300 + 300 * 100 + 100 * 10, 410)
    wanted = density * wide + rest
    assert sum(tickets._counts(model, (1, 28, 28), 10)) >= wanted
    first, second = model["widths"]
    assert second == pytest.approx(first / 3, abs=0.7)
    assert sum(tickets._counts(of.network(widths=(first - 1, second - 1)), (1, 28, 28), 10)) < wanted


# --- arms and claims ------------------------------------------------------------------------------------------------

EFFECTS = {"dense": 0.8, "ticket": 0.79, "reinitialised": 0.7, "random mask": 0.6, "small dense": 0.65}
EFFECTS |= {"fine-tuned": 0.85, "line": 0.5}


def true_kind(recipe, dense):
    """Which arm a recipe is, read off the recipe itself."""
    if recipe.steps == 0:
        return "line"
    if recipe.start is None:
        return "dense" if recipe.model == dense.model else "small dense"
    given = dict(recipe.start.kwargs)
    if given.get("shuffle") is not None:
        return "random mask"
    if given["source"] == at(dense, "start"):
        return "ticket"
    return "fine-tuned" if given["source"] == given["scores"] else "reinitialised"


def made_up(scale, source, seeds=8):
    """A row for every run, as the store would give it, with each arm's accuracy known."""
    of, rows, random = tickets.setup(scale, source), [], np.random.default_rng(0)
    for protocol, way in tickets.RUNS.items():
        for recipe in way.grid(scale, source, range(seeds)):
            dense = tickets._dense(of, source, recipe.seed)
            kind, counts = true_kind(recipe, dense), tickets._counts(of.network(), source.shape, source.outputs)
            density = dict(recipe.start.kwargs).get("density", 1.0) if recipe.start else 1.0
            count = sum(tickets._counts(recipe.model, source.shape, source.outputs)) if recipe.steps else sum(counts)
            right = EFFECTS[kind] + 0.05 * (kind == "ticket" and density < 0.06) + random.normal(0, 1e-4)
            values = {"test_accuracy": right, "nonzero_parameters": float(counts[1] + density * counts[0])}
            values |= {"nonzero_parameters": float(count)} if kind == "small dense" else {}
            values |= {"weight_average_sharpness": (density, 1.0), "train_loss": 0.1, "truth": kind}
            if kind == "line":
                values |= {"test_error_midpoint_rise": 0.1, "line_test_accuracy": (0.8, 0.5, 0.8)}
                values |= {"line_train_loss": (0.1, 1.0, 0.1), "line_positions": (0.0, 0.5, 1.0)}
            base = {"protocol": protocol, "step": "end", "run": key(recipe), "status": "done", "seed": recipe.seed}
            rows.append(base | settings(recipe) | values)
    return Table.of(rows)


@pytest.fixture(scope="module")
def laptop(data):
    return made_up("laptop", data["mnist1d"])


def test_every_run_is_known_for_what_it_is(laptop):
    for protocol in tickets.RUNS:
        rows = lottery.with_arms(laptop.where(protocol=protocol)).rows()
        assert all(row["kind"] == row["truth"] for row in rows)
        assert {row["kind"] for row in rows} == (KINDS if tickets.RUNS[protocol].positive is False else set(ALL_BUT))
        counted = Counter((row["seed"], row["kind"], row["density"], row["twin"]) for row in rows)
        assert max(counted.values()) == 1
    published = lottery.with_arms(laptop.where(protocol="published", seed=0)).rows()
    assert {r["density"] for r in published if r["kind"] == "small dense"} == {0.1}
    assert {r["density"] for r in published if r["kind"] == "line"} == {1.0, 0.1}
    levels = lottery.with_arms(laptop.where(protocol="iterative with rewinding", seed=0)).rows()
    assert {r["density"] for r in levels if r["kind"] == "small dense"} == {0.107374, 0.028147}


def units_of(claim, table):
    assert claim.statistic is not None
    return claim.statistic(table)


ALL_BUT = ("dense", "ticket", "random mask")


def test_claims_compare_the_arms_that_they_name(laptop, data):
    claims = {claim.text: claim for claim in tickets.claims("laptop", data["mnist1d"])}
    expected = {
        "at most 1.15 points below": 0.79 - 0.8,
        "beats the same mask with another": 0.79 - 0.7,
        "beats a random mask": 0.79 - 0.6,
        "beats a dense network": 0.79 - 0.65,
        "no better than training on": 0.79 - 0.85,
    }
    for protocol in ("published", "iterative with rewinding"):
        table = laptop.where(protocol=protocol)
        for words, effect in expected.items():
            (claim,) = (c for text, c in claims.items() if words in text and not c.positive)
            units = units_of(claim, table)
            assert units.n == 8
            assert units.mean == pytest.approx(effect, abs=1e-3), words
        (flat,) = (c for text, c in claims.items() if "flatter" in text)
        assert units_of(flat, table).mean == pytest.approx(math.log(0.1), abs=0.08)
        (line,) = (c for text, c in claims.items() if "Halfway" in text)
        assert units_of(line, table).mean == pytest.approx(0)
    (positive,) = (c for c in claims.values() if c.positive)
    found = units_of(positive, laptop.where(protocol="positive control"))
    assert found.mean == pytest.approx(0.84 - 0.6, abs=1e-3)


def test_a_diverged_run_keeps_its_arm_and_counts_as_chance(laptop, data):
    rows = laptop.where(protocol="published").rows()
    for kind in ("small dense", "ticket"):
        row = next(r for r in rows if r["truth"] == kind and r["start.density"] in (None, 0.1) and not r["order_seed"])
        row |= {"status": "diverged", "test_accuracy": None, "nonzero_parameters": None}
    claims = [c for c in tickets.claims("laptop", data["mnist1d"]) if "beats a dense network" in c.text]
    units = units_of(claims[0], Table.of(rows))
    assert units.n == 8
    assert units.diverged
    assert units.values[0] == pytest.approx(0.1 - 0.1)  # both of seed 0


def test_a_density_that_no_ticket_has_cannot_be_judged(laptop):
    with pytest.raises(Untestable, match=r"no ticket with about 0\.001 of the weights"):
        lottery.arm_difference(
            laptop.where(protocol="published"), value="test_accuracy", first="ticket", second="dense", density=0.001
        )


def test_figures_of_all_protocols_some_or_none(laptop):
    drawn = tickets.draw(laptop, laptop)
    assert [f.name for f in drawn] == [
        "accuracy", "ticket-less-dense", "achieved-loss", "sharpness", "line-error", "line-loss",
    ]  # fmt: skip
    assert all(len(figure.panels) == 2 for figure in drawn)
    accuracy = drawn[0].panels[0]
    points = sum(len(s.x) for s in accuracy.series if s.mode == "points")
    assert points == 8 * (1 + 6 + 4)  # every seed of every arm
    assert "ticket 84 at 5 %" in drawn[0].finding
    assert len(tickets.draw(laptop.where(protocol="published"), laptop)) == 6
    assert tickets.draw(laptop.where(protocol="nothing"), laptop) == []


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"one_shot": (0.1, 0.0)}, r"densities lie between 0 and 1 \(1 is the dense network\), not \[0.0\]"),
        ({"one_shot": (0.1, 1.0)}, "densities lie between 0 and 1"),
        ({"one_shot": (0.5,)}, r"the density 0\.1, which is judged"),
        ({"fraction": 1.0}, "fraction lies between 0 and 1"),
        ({"until": 1e-8, "fraction": 0.5}, "prunes to nothing"),
    ],
)
def test_densities_that_are_none_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        replace(tickets.SMOKE, **changed)


def test_data_that_do_not_fit_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="noisy_polynomial has no classes"):
        study.begin(NAME, "smoke", "noisy_polynomial", tmp_path)
    with pytest.raises(ValueError, match="digits holds no images"):
        study.begin(NAME, "paper", "digits", tmp_path)


# --- a smoke run ----------------------------------------------------------------------------------------------------


class Quiet:
    stopping = False

    def report(self, status):
        pass


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    root = tmp_path_factory.mktemp("lottery")
    made = study.begin(NAME, "smoke", None, root, seeds=1)
    threads = torch.get_num_threads()
    for task in study.tasks(made):
        work(task.payload, str(root), Quiet())
        assert finished(task.payload, root)
    torch.set_num_threads(threads)
    return made, study.results(made)


def test_pruned_weights_end_at_exactly_zero(smoke):
    for row in smoke[1].rows():
        assert row["revived_weights"] == 0
        if row.get("start.density"):
            assert row["start.density"] <= row["weight_density"] < row["start.density"] + 1e-3


def test_masks_are_nested_and_weights_are_the_dense_networks_own(smoke):
    made, _ = smoke
    runs = {key(recipe): recipe for _, recipe in made.runs()}
    dense = next(recipe for recipe in runs.values() if recipe.start is None and recipe.order_seed is None)
    begun = store.load_state(made.root, key(dense), 0)
    chain = tickets._chain(tickets.setup("smoke", made.source), dense)
    before = store.load_state(made.root, key(dense), dense.steps)
    for density, _, ticket in chain[:-1]:
        after = store.load_state(made.root, key(ticket), ticket.steps)
        start = prune_and_rewind(source=begun, scores=before, density=density)
        for name, t in start.items():
            if t.dim() > 1:
                assert torch.equal(t != 0, after[name] != 0)
                assert bool((after[name][before[name] == 0] == 0).all())
                assert torch.equal(t[t != 0], begun[name][t != 0])
        before = after


def test_the_ends_of_a_line_are_the_runs_themselves(smoke):
    _, results = smoke
    rows = lottery.with_arms(results.where(protocol="published")).rows()
    lines = [row for row in rows if row["kind"] == "line"]
    assert len(lines) == 2
    by_run = {row["run"]: row for row in rows}
    for row in lines:
        for end, which in ((0, "first"), (-1, "second")):
            run = by_run[row[f"start.{which}"].partition("@")[0]]
            assert row["line_train_loss"][end] == pytest.approx(run["train_loss"], rel=1e-6)
            assert row["line_test_accuracy"][end] == run["test_accuracy"]


def test_a_smoke_run_gives_every_figure(smoke):
    made, results = smoke
    figures = made.experiment.figures(results, results)
    assert len(figures) == 6
    assert all("nan" not in figure.finding for figure in figures)
