# pyright: reportOptionalMemberAccess=false, reportOperatorIssue=false, reportOptionalIterable=false
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOptionalSubscript=false
# What a record may lack is there in these.

"""Ranking measures: closed forms on made-up grids, other implementations, and what must not change the numbers."""

import json
import math

import numpy as np
import pytest
from ranked import LEVELS, related, runs, table
from scipy.stats import kendalltau, rankdata
from statsmodels.regression.linear_model import OLS

from landscope.stats import Untestable, configuration_correlation, rank_measures
from landscope.stats.ranking.concordance import granulated, kendall, partial, permuted, resampled, signs_along
from landscope.stats.ranking.configurations import configurations
from landscope.stats.ranking.information import conditional_information, effective, sign_errors, trust
from landscope.stats.ranking.sampling import bootstrap, p_values, ranged, sample_of, statistics
from landscope.types import Table

THREE = {"batch_size": (8, 16, 32), "optimizer.lr": (0.01, 0.03, 0.1), "model.width": (16, 64)}


def grid_of(rows):
    made = Table.of(rows)
    return configurations(made, [True] * len(made))


# --- closed forms -------------------------------------------------------------------------------------------------


def perfect(place, seed, random):
    gap = random.normal()
    return {"same": math.exp(gap), "reversed": -gap, "constant": 1.0, "generalization_gap": gap}


def test_a_perfect_measure_scores_one_and_its_reverse_minus_one():
    ranking = rank_measures(table(perfect, THREE), draws=100)
    same, reverse = ranking.measures
    assert (same.name, reverse.name) == ("same", "reversed")
    for record, sign in ((same, 1), (reverse, -1)):
        assert record.tau.value == record.granulated.value == pytest.approx(sign)
        assert {axis: of.value for axis, of in record.by_axis.items()} == dict.fromkeys(THREE, sign)
        assert record.partial.value == pytest.approx(sign)
        assert record.information == pytest.approx(1.0)  # blind to the sign
        assert record.sign == sign
        assert set(record.errors) == {(1 - sign) / 2}
        assert record.p < 0.02
    assert (same.reading, reverse.reading) == ("predicts", "reversed")
    assert same.worst is reverse.worst is None  # no environment has 12 pairs
    assert any("No environment has 12 pairs" in note for note in ranking.notes)
    assert ranking.unranked == {"constant": "it is the same for all configurations"}


def simpson(place, seed, random):
    """One setting moves both; with it fixed, the measure falls as the outcome rises."""
    inside = place[1] + 3 * place[2] + 0.01 * place[0]
    return {"measure": 100 * place[0] - inside, "generalization_gap": 100 * place[0] + inside}


def test_what_only_follows_one_setting_scores_on_tau_and_not_along_the_axes():
    levels = THREE | {"batch_size": (8, 16, 32, 64, 128)}
    (record,) = rank_measures(table(simpson, levels), draws=100).measures
    assert record.tau.low > 0.3
    assert {axis: of.value for axis, of in record.by_axis.items()} == {
        "batch_size": 1.0,
        "optimizer.lr": -1.0,
        "model.width": -1.0,
    }
    assert record.granulated.value == pytest.approx(-1 / 3)
    assert record.worst.error == 1.0
    assert record.worst.axis != "batch_size"
    within = [e for e, name in zip(record.errors, environments(levels), strict=True) if name != "batch_size"]
    assert set(within) == {1.0}
    # given the batch size both orders are known from each other
    assert record.information_given in ((), ("optimizer.lr",), ("model.width",), ("optimizer.lr", "model.width"))


def simpson_of_all(place, seed, random):
    inside = sum((k + 1) * p for k, p in enumerate(place[1:])) + 0.3 * random.random()
    return {"measure": 100 * place[0] - inside, "generalization_gap": 100 * place[0] + inside}


def environments(levels):
    return [axis for axis, own in levels.items() for _ in range(len(own) * (len(own) - 1) // 2)]


def test_opposite_signs_are_read_as_confounded():
    """Five settings against one: the one that moves both wins over all pairs, the others along the axes."""
    levels = THREE | {"batch_size": (8, 16, 32, 64), "optimizer.lr": (0.01, 0.1)}
    levels |= {"model.depth": (1, 2), "data.label_noise": (0.0, 0.4)}
    (record,) = rank_measures(table(simpson_of_all, levels), draws=100).measures
    assert record.tau.low > 0
    assert record.granulated.high < 0
    assert record.reading == "confounded"


def test_independent_measures_score_about_nothing():
    def values(place, seed, random):
        return {f"m{i}": random.normal() for i in range(12)} | {"generalization_gap": random.normal()}

    ranking = rank_measures(table(values, THREE | {"data.label_noise": (0.0, 0.2)}, draw=1), draws=100)
    for part in ("tau", "granulated", "partial"):
        found = np.array([getattr(record, part).value for record in ranking.measures])
        assert abs(found.mean()) < 0.1
    assert sum(record.reading in ("predicts", "reversed") for record in ranking.measures) <= 1
    assert np.mean([record.information < ranking.chance_information for record in ranking.measures]) > 0.7


def test_information_of_a_known_table():
    """Two levels, nothing else: 12 pairs whose signs agree in a known number give the information by hand."""
    rows = runs(lambda p, s, r: {"m": r.random(), "generalization_gap": r.random()}, {"batch_size": tuple(range(12))})
    grid = grid_of(rows)
    y = np.array([row["generalization_gap"] for row in rows])
    x = np.array([row["m"] for row in rows])
    found, chosen = conditional_information(x[:, None], y, grid)
    agree = (1 + kendalltau(x, y).statistic) / 2
    entropy = -sum(p * math.log(p) for p in (agree, 1 - agree))
    assert found[0] == pytest.approx((math.log(2) - entropy) / math.log(2))
    assert chosen == [()]


def brute_information(x, y, places, sets):
    """The definition, pair by pair."""
    best = math.inf
    n = len(y)
    for s in sets:
        cells = {}
        for i in range(n):
            for j in range(n):
                if y[i] != y[j]:
                    u = tuple((places[i][k], places[j][k]) for k in s)
                    table = cells.setdefault(u, np.zeros((2, 2)))
                    if x[i] == x[j]:
                        table[:, int(y[i] > y[j])] += 0.5
                    else:
                        table[int(x[i] > x[j]), int(y[i] > y[j])] += 1
        information, entropy = [], []
        for table in cells.values():
            p = table / table.sum()

            def h(q):
                q = q[q > 0]
                return -(q * np.log(q)).sum()

            information.append(h(p.sum(0)) + h(p.sum(1)) - h(p.ravel()))
            entropy.append(h(p.sum(0)))
        if np.mean(entropy) > 0:
            best = min(best, np.mean(information) / np.mean(entropy))
    return best


def test_information_is_its_definition():
    rows = runs(lambda p, s, r: {"m": float(r.integers(5)), "generalization_gap": float(r.integers(6))}, THREE)
    grid = grid_of(rows)
    x = np.array([rows[run[0]]["m"] for run in grid.runs])
    y = np.array([rows[run[0]]["generalization_gap"] for run in grid.runs])
    sets = [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2)]
    found, chosen = conditional_information(x[:, None], y, grid)
    assert found[0] == pytest.approx(brute_information(x, y, grid.places.tolist(), sets), abs=1e-9)
    assert chosen[0] in sets


# --- other implementations ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", [0, 1, 2])
@pytest.mark.parametrize("ties", [False, True])
def test_tau_is_scipys(draw, ties):
    random = np.random.default_rng(draw)
    x, y = random.normal(size=(25, 3)), random.normal(size=25)
    if ties:
        x, y = np.round(x), np.round(y)
    weights = random.multinomial(25, np.full(25, 1 / 25), 2).astype(float)
    found = kendall(x, y, weights, np.ones((25, 25), bool))
    for w, of in zip(weights, found, strict=True):
        again = np.repeat(np.arange(25), w.astype(int))
        assert of.tolist() == pytest.approx([kendalltau(column[again], y[again]).statistic for column in x.T])


@pytest.mark.parametrize("draw", [0, 1, 2])
def test_the_partial_correlation_is_that_of_regressions_residuals(draw):
    random = np.random.default_rng(draw)
    given = np.column_stack([random.integers(0, 3, 40), random.normal(size=40)])
    y = given[:, 1] + random.normal(size=40)
    x = np.column_stack([y + random.normal(size=40), random.normal(size=40), given[:, 1] ** 3])
    weights = np.stack([np.ones(40), random.multinomial(40, np.full(40, 1 / 40))]).astype(float)
    for w, found in zip(weights, partial(x, y, given, weights), strict=True):
        again = np.repeat(np.arange(40), w.astype(int))
        ranks = rankdata(np.column_stack([x, y, given])[again], axis=0)
        exog = np.column_stack([np.ones(40), ranks[:, 4:]])
        rest = [OLS(ranks[:, k], exog).fit().resid for k in (0, 1, 3)]
        assert found[:2].tolist() == pytest.approx([np.corrcoef(rest[k], rest[2])[0, 1] for k in (0, 1)])
        assert math.isnan(found[2])  # a function of the controls: nothing is left


def test_tau_is_that_of_the_claims():
    made = table(related, seeds=3)
    found = {record.name: record for record in rank_measures(made, draws=100).measures}
    for name, record in found.items():
        claimed = configuration_correlation(made, x=name, y="generalization_gap", by=tuple(LEVELS), draws=199)
        assert record.tau.value == pytest.approx(claimed.mean)


def test_the_coefficient_along_an_axis_is_the_mean_of_its_lines():
    rows = runs(lambda p, s, r: {"m": r.normal(), "generalization_gap": r.normal()}, THREE)
    (record,) = rank_measures(Table.of(rows), draws=100).measures
    names = list(THREE)
    for axis, name in enumerate(names):
        others = [n for n in names if n != name]
        lines = {}
        for row in rows:
            lines.setdefault(tuple(row[n] for n in others), []).append((row["m"], row["generalization_gap"]))
        taus = [kendalltau(*zip(*line, strict=True)).statistic for line in lines.values()]
        assert record.by_axis[name].value == pytest.approx(np.mean(taus)), axis
    assert record.granulated.value == pytest.approx(np.mean([of.value for of in record.by_axis.values()]))


def test_permutations_have_the_spread_of_the_null():
    random = np.random.default_rng(0)
    x, y, n = random.random(20), random.random(20), 20
    found = permuted(x, y, np.zeros(n, int), 4000, random)
    assert found.mean() == pytest.approx(0, abs=4 * found.std() / math.sqrt(4000))
    assert found.var() == pytest.approx(2 * (2 * n + 5) / (9 * n * (n - 1)), rel=0.1)  # Kendall's


def test_resampled_means_are_of_the_seeds_there_are():
    values = np.array([[[1.0], [3.0], [999.0]], [[5.0], [999.0], [999.0]]])
    drawn = np.array(list(resampled(values, np.array([2, 1]), 400, np.random.default_rng(0))))[:, :, 0]
    assert set(drawn[:, 0]) == {1.0, 2.0, 3.0}
    assert set(drawn[:, 1]) == {5.0}
    assert drawn[:, 0].mean() == pytest.approx(2.0, abs=4 * math.sqrt(0.5 / 400))


# --- environments -------------------------------------------------------------------------------------------------


def test_environments_are_pairs_of_levels_all_else_equal():
    rows = runs(lambda p, s, r: {"m": float(p[1] == 2), "generalization_gap": float(p[1])}, THREE)
    grid = grid_of(rows)
    edges = grid.edges
    assert len(edges.environments) == 3 + 3 + 1
    assert np.bincount(edges.environment).tolist() == [6, 6, 6, 6, 6, 6, 9]
    y = np.array([rows[run[0]]["generalization_gap"] for run in grid.runs])
    x = np.array([rows[run[0]]["m"] for run in grid.runs])[:, None]
    errors = sign_errors(signs_along(x, y, edges), np.ones(len(edges.low)), edges)[:, 0]
    by = dict(zip(edges.environments, errors.tolist(), strict=True))
    assert by["optimizer.lr", 0.01, 0.03] == 0.5  # tied
    assert by["optimizer.lr", 0.03, 0.1] == by["optimizer.lr", 0.01, 0.1] == 0.0
    assert by["model.width", 16, 64] == 0.5
    assert effective(np.ones(len(edges.low)), edges).tolist() == [6, 6, 6, 6, 6, 6, 9]
    along = granulated(signs_along(x, y, edges), edges, np.ones((1, grid.n)), 3)
    assert along[0, :, 0].tolist() == pytest.approx([0, 2 / 3, 0])


def test_differences_within_the_test_sets_error_do_not_count():
    difference = np.array([0.0, 0.01, 0.05, 0.5])
    weights = trust(difference, 1000)
    assert weights[:3].tolist() == [0.0, 0.0, 0.0]
    assert weights[3] == pytest.approx((1 - 2 * math.exp(-2 * 1000 * 0.25**2)) ** 2 - 0.5)
    assert (np.diff(trust(np.linspace(0, 1, 50), 200)) >= 0).all()


def test_the_worst_environment_leaves_out_what_the_test_set_cannot_tell():
    def values(place, seed, random):
        """The gap moves by 0.3 with the batch, by 0.001 with the rate; the measure is right on the first alone."""
        gap = 0.3 * place[0] + 0.001 * place[1]
        return {"m": 10 * place[0] - place[1] + 0.1 * place[2], "generalization_gap": gap}

    levels = THREE | {"model.width": (8, 16, 32, 64)}
    alike = rank_measures(table(values, levels), draws=100, test_samples=0)
    told = rank_measures(table(values, levels), draws=100, test_samples=1000)
    assert alike.measures[0].worst.axis == "optimizer.lr"
    assert alike.measures[0].worst.error == 1.0
    assert told.measures[0].worst.axis == "batch_size"
    assert told.measures[0].worst.error == 0.0
    assert told.measures[0].worst.effective == pytest.approx(12.0)
    sized = Table.of([row | {"data.test": 1000} for row in runs(values, levels)])
    assert rank_measures(sized, draws=100).test_samples == 1000
    assert rank_measures(sized, draws=100, outcome="m", measures=["generalization_gap"]).test_samples == 0


# --- what must not change the numbers -----------------------------------------------------------------------------


def test_monotone_transforms_and_the_order_of_rows_change_nothing():
    rows = runs(related, THREE)
    before = rank_measures(Table.of(rows), draws=100)
    stretched = [row | {"follows": math.exp(3 * row["follows"]), "opposes": row["opposes"] ** 3 - 7} for row in rows]
    after = rank_measures(Table.of(stretched[::-1]), draws=100)
    assert before.to_json() == after.to_json()


def test_the_same_seed_gives_the_same_numbers_and_another_one_others():
    made = table(related, seeds=2)
    first, again, other = (rank_measures(made, draws=100, seed=s).to_json() for s in (0, 0, 1))
    assert first == again
    assert first != other
    assert [m["tau"]["value"] for m in first["measures"]] == [m["tau"]["value"] for m in other["measures"]]


def test_seeds_of_one_configuration_are_no_units():
    """Runs repeated ten times over say no more than one of each."""
    few = rank_measures(table(related, THREE), draws=100)
    many = [row | {"seed": s} for row in runs(related, THREE) for s in range(10)]
    more = rank_measures(Table.of(many), draws=100)
    for a, b in zip(few.measures, more.measures, strict=True):
        assert (a.name, a.tau.value, a.granulated.value) == (b.name, b.tau.value, b.granulated.value)
        assert b.tau.high - b.tau.low > 0.6 * (a.tau.high - a.tau.low)  # not 1 / sqrt(10) of it
    assert (few.configurations, more.configurations, more.runs, more.seeds) == (18, 18, 180, (10, 10))


# --- calibration --------------------------------------------------------------------------------------------------


def noisy(place, seed, random, base):
    """A quantity of the configuration, measured by measure and outcome with noise of their own and of the seed."""
    return {
        "m": base[0] + 0.7 * random.normal(),
        "train_loss": base[2],
        "generalization_gap": 0.7 * base[0] + 0.7 * base[1] + 0.7 * random.normal(),
    }


def drawn_sample(levels, seeds, random):
    bases = {place: random.normal(size=3) for place in np.ndindex(*map(len, levels.values()))}
    rows = runs(lambda p, s, r: noisy(p, s, random, bases[p]), levels, seeds)
    made = Table.of(rows)
    return sample_of(made, configurations(made, [True] * len(made)), "generalization_gap", ["m"])


def statistics_of(sample):
    found = statistics(sample, sample.means, np.ones((1, sample.grid.n)))
    return [(found.tau[0, 0], "tau"), (found.granulated[0, 0], "granulated"), (found.partial[0, 0], "partial")]


def test_intervals_cover_what_many_configurations_would_give():
    """At least 90 % of nominally 95 %, for every coefficient with an interval, of a true relation; 100 tables."""
    random = np.random.default_rng(5)
    many = {
        "batch_size": tuple(range(8, 28)),
        "optimizer.lr": tuple(0.1 * k for k in range(1, 7)),
        "model.width": (1, 2),
    }
    truth = np.mean([[value for value, _ in statistics_of(drawn_sample(many, 3, random))] for _ in range(4)], axis=0)
    assert (truth > 0.25).all()  # a relation, so that the interval must follow it
    levels = {"batch_size": (8, 16, 32), "optimizer.lr": (0.01, 0.1), "model.width": (16, 64, 256)}
    covered = np.zeros(3)
    for _ in range(100):
        sample = drawn_sample(levels, 3, random)
        again = bootstrap(sample, 160, random)
        for k, (value, name) in enumerate(statistics_of(sample)):
            draws = getattr(again, name)
            of = ranged(value, draws[:, 0])
            covered[k] += of.low <= truth[k] <= of.high
    assert (covered >= 90).all(), covered


def test_p_is_below_five_percent_in_five_percent_of_measures_without_relation():
    """Configurations differ in both quantities, and have eight seeds each: as the outcome, so the measures."""
    random = np.random.default_rng(2)
    rows = runs(lambda p, s, r: {"m": r.random(), "generalization_gap": r.random()}, THREE)
    grid = grid_of(rows)
    rejected = []
    for _ in range(10):
        y = (random.normal(size=(grid.n, 1)) + random.normal(size=(grid.n, 8))).mean(axis=1)
        x = random.normal(size=(grid.n, 50)) + random.normal(size=(grid.n, 50, 8)).mean(axis=2)
        tau = kendall(x, y, np.ones((1, grid.n)), np.ones((grid.n, grid.n), bool))[0]
        rejected.append(p_values(x, y, grid, tau, 999, random) <= 0.05)
    share = np.mean(rejected)
    assert share == pytest.approx(0.05, abs=0.03)


# --- configurations -----------------------------------------------------------------------------------------------


def test_settings_that_follow_from_others_are_no_axes():
    rows = runs(lambda p, s, r: {"m": r.random(), "generalization_gap": r.random()}, THREE, seeds=2)
    for row in rows:
        row |= {
            "steps": 9600 // row["batch_size"],
            "schedule.T_max": 9600 // row["batch_size"],
            "order_seed": row["seed"],
        }
        row |= {"start.source": f"{row['seed']:016x}@end", "run": f"{id(row):016x}"}
    ranking = rank_measures(Table.of(rows), draws=100)
    assert dict(ranking.axes) == THREE
    assert set(ranking.follows) == {"steps", "schedule.T_max"}
    assert ranking.seeds == (2, 2)
    assert ranking.missing == ""


def test_only_configurations_of_one_data_set_are_compared():
    def values(place, seed, random):
        inside = random.random()
        return {"m": inside, "generalization_gap": inside}

    rows = [row | {"data": "digits"} for row in runs(values, THREE)]
    rows += [row | {"data": "images", "data.content": "0f"} for row in runs(values, THREE, draw=1)]
    for row in rows:
        row["m"] -= 100 * (row["data"] == "images")  # across sets the order is reversed
        row["generalization_gap"] += 100 * (row["data"] == "images")
    ranking = rank_measures(Table.of(rows), draws=100)
    (record,) = ranking.measures
    assert record.tau.value == record.granulated.value == pytest.approx(1.0)
    assert record.partial.value > 0.5
    assert ranking.blocks == ("digits", "images 0f")
    assert ranking.configurations == 36
    assert ranking.missing == ""


def test_an_incomplete_grid_says_what_is_missing():
    rows = [row for row in runs(related, THREE) if (row["batch_size"], row["model.width"]) != (32, 64)]
    ranking = rank_measures(Table.of(rows), draws=100)
    assert ranking.missing.startswith("3 of 18 combinations are missing: (batch_size = 32, optimizer.lr = 0.01, ")
    assert ranking.missing in ranking.notes[0]
    assert all(record.information is None for record in ranking.measures)
    assert ranking.chance_information is None
    assert all(record.granulated is not None for record in ranking.measures)


def test_a_measure_that_some_runs_lack_is_ranked_where_it_is():
    rows = runs(related, THREE, seeds=2)
    for row in rows:
        if row["model.width"] == 64:
            row["follows"] = math.inf if row["seed"] else None
        if row["batch_size"] != 8:
            row["opposes"] = math.nan
    ranking = rank_measures(Table.of(rows), draws=100, measures=["unrelated", "opposes"])
    assert "only 6 configurations have it" in ranking.unranked["opposes"]
    with pytest.raises(Untestable, match="no measure can be ranked: follows: only 9"):
        rank_measures(Table.of(rows), draws=100, measures=["follows"])


def test_runs_without_a_finite_value_are_told():
    rows = runs(related, THREE, seeds=2)
    rows[3]["follows"], rows[5]["follows"], rows[8]["opposes"] = math.inf, math.nan, None
    notes = rank_measures(Table.of(rows), draws=100).notes
    assert notes[-1].endswith("ranked without: follows 2, opposes 1.")


# --- runs that diverged -------------------------------------------------------------------------------------------


def diverged(row):
    return {k: v for k, v in row.items() if k in (*LEVELS, "seed", "data")} | {"status": "diverged"}


def test_a_reading_stands_only_with_the_diverged_runs_put_in():
    rows = runs(related, THREE, seeds=3)
    clear = {r.name: r.reading for r in rank_measures(Table.of(rows), draws=100).measures}
    assert clear == {"follows": "predicts", "unrelated": "undecided", "opposes": "reversed"}
    few = [diverged(row) if i in (10, 30) else row for i, row in enumerate(rows)]
    ranking = rank_measures(Table.of(few), draws=100)
    assert ranking.left_out == {"diverged": 2}
    assert any("2 diverged" in note for note in ranking.notes)
    many = [diverged(row) if i % 3 == 0 and i % 2 else row for i, row in enumerate(rows)]
    lost = {r.name: r for r in rank_measures(Table.of(many), draws=100).measures}
    assert {record.reading for record in lost.values()} == {"undecided"}
    assert "more than 10% of the runs diverged" in lost["follows"].why


def test_a_weak_reading_does_not_survive_a_configuration_that_always_diverged():
    """Both ends of the measure's range are tried: which is the worse one is not known of every measure."""
    rows = runs(related, THREE)
    lost = [diverged(row) if i == 17 else row for i, row in enumerate(rows)]
    ranking = rank_measures(Table.of(lost), draws=100)
    assert "1 of 18 combinations is missing" in ranking.missing
    readings = {r.name: (r.reading, r.why) for r in ranking.measures}
    assert readings["follows"][0] in ("predicts", "undecided")
    if readings["follows"][0] == "undecided":
        assert "not with them" in readings["follows"][1]


# --- bad input ----------------------------------------------------------------------------------------------------


def test_fewer_than_twelve_configurations_are_refused_with_what_is_missing():
    rows = [row for row in runs(related, seeds=5) if (row["batch_size"], row["model.width"]) != (32, 64)]
    with pytest.raises(Untestable, match=r"at least 12 .* there are 10 .*train at least 2 more.*2 of 12 combinations"):
        rank_measures(Table.of(rows))
    with pytest.raises(Untestable, match=r"there are 0 .*left out: 50 without generalization_gap"):
        rank_measures(Table.of([row | {"generalization_gap": None} for row in rows]))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"outcome": "generalisation_gap"},
            "no outcome is called .*did you mean 'generalization_gap'",
        ),
        ({"measures": ["folows"]}, "no measure is called 'folows'.*did you mean 'follows'"),
        ({"measures": ["batch_size"]}, "no measure is called 'batch_size'"),
        ({"draws": 50}, "at least 100 draws, not 50"),
        ({"test_samples": -1}, "at least 1 sample .*not -1"),
        ({"by": ["batch_size"]}, r"alike in batch_size differ in optimizer.lr \(0.01, 0.1\): name it too"),
        ({"by": ["batch_sise"]}, "no column 'batch_sise'"),
    ],
)
def test_bad_input(settings, said):
    with pytest.raises((LookupError, ValueError), match=said):
        rank_measures(table(related), **settings)


def test_nothing_to_predict_and_nothing_to_predict_with():
    rows = runs(related)
    with pytest.raises(Untestable, match="the same for all 12 configurations"):
        rank_measures(Table.of([row | {"generalization_gap": 0.5} for row in rows]))
    with pytest.raises(Untestable, match="no measure to rank"):
        rank_measures(
            Table.of([{k: v for k, v in row.items() if k not in ("follows", "opposes", "unrelated")} for row in rows])
        )


def test_the_json_is_strict():
    rows = [row | {"optimizer.lr": row["optimizer.lr"], "data.label_noise": None} for row in runs(related)]
    found = rank_measures(Table.of(rows), draws=100)
    text = json.dumps(found.to_json(), allow_nan=False, sort_keys=True)
    back = json.loads(text)
    assert {m["name"] for m in back["measures"]} == {"follows", "opposes", "unrelated"}
    opposes = next(m for m in back["measures"] if m["name"] == "opposes")
    assert opposes["information_signed"] == -opposes["information"]
    assert opposes["tau"].keys() == {"value", "low", "high"}
