"""The simulations that decide a rule, repeated with fixed seeds; bounds are four Monte Carlo standard errors wide."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.stats
from checks import unchecked
from scipy.special import stdtr, stdtrit

from landscope.spec import Claim, call
from landscope.stats import (
    Units,
    configuration_correlation,
    difference,
    judge,
    log_ratio,
    power,
    sd_limit,
    seeds_needed,
    trend,
)
from landscope.types import Table

kendalltau: Any = scipy.stats.kendalltau


@pytest.fixture(autouse=True)
def _quickly():
    with unchecked():
        yield


def error(share, n):
    """Four Monte Carlo standard errors of a share."""
    return 4 * math.sqrt(share * (1 - share) / n)


def covered(values, truth):
    intervals = np.array([Units(tuple(range(len(v))), v).interval() for v in values])
    return float(np.mean((intervals[:, 0] <= truth) & (truth <= intervals[:, 1])))


@pytest.mark.parametrize(("n", "expected"), [(5, 0.82), (8, 0.88), (10, 0.89)])
def test_why_there_is_no_percentile_bootstrap_below_20(n, expected):
    random, replicates = np.random.default_rng(n), 1500
    values = random.normal(size=(replicates, n))
    means = np.stack([v[random.integers(n, size=(599, n))].mean(axis=1) for v in values])
    low, high = np.quantile(means, (0.025, 0.975), axis=1)
    share = np.mean((low <= 0) & (high >= 0))
    assert share == pytest.approx(expected, abs=error(expected, replicates) + 0.015)
    assert covered(values, 0.0) == pytest.approx(0.95, abs=error(0.95, replicates))


@pytest.mark.parametrize(("interaction", "most"), [(0.0, 0.95), (0.5, 0.97)])
def test_intervals_cover_new_test_examples_only_with_their_sampling_error(interaction, most):
    """Seeds and examples both deviate, from a truth of 0; what is left of each pair of them is counted twice."""
    random, replicates, n, m = np.random.default_rng(20), 1200, 10, 60
    columns = {"seed": (*range(n), *range(n)), "arm": ("a",) * n + ("b",) * n}
    held = np.zeros(2)
    for _ in range(replicates):
        paired = 0.1 * random.normal(size=(n, 1)) + 0.5 * random.normal(size=m)
        paired = paired + interaction * random.normal(size=(n, m))
        right = (*map(tuple, paired.tolist()), *[(0.0,) * m] * n)
        table = Table({**columns, "right": right, "y": (*paired.mean(axis=1).tolist(), *[0.0] * n)})
        units = difference(table, value="y", over="arm", first="a", second="b", examples="right")
        for i, counted in enumerate((units, replace(units, added=0.0))):
            low, high = counted.interval()
            held[i] += low <= 0 <= high
    with_error, without = held / replicates
    assert 0.95 - error(0.95, replicates) <= with_error <= most + error(most, replicates)
    assert without < 0.8


def two_modes(random, size):
    return random.normal(size=size) + 4.0 * (random.random(size) < 0.2) - 0.8


@pytest.mark.parametrize("n", [5, 8, 10, 20])
def test_student_intervals_cover(n):
    random, replicates = np.random.default_rng(100 + n), 1000
    for draw, least in (
        (lambda: random.normal(size=(replicates, n)), 0.95),
        (lambda: random.standard_t(3, size=(replicates, n)), 0.95),
        (lambda: two_modes(random, (replicates, n)), 0.90),
    ):
        assert covered(draw(), 0.0) >= least - error(least, replicates)
    skewed = np.exp(0.75 * random.normal(size=(replicates, n)))
    assert covered(np.log(skewed), 0.0) == pytest.approx(0.95, abs=error(0.95, replicates))
    # This is why ratios are judged as logarithms.
    assert covered(skewed, math.exp(0.75**2 / 2)) < 0.92


def test_prediction_interval_covers_a_paper_that_ran_the_same():
    random, replicates, n, k = np.random.default_rng(3), 1000, 10, 3
    ours, theirs = random.normal(size=(replicates, n)), random.normal(size=(replicates, k)).mean(axis=1)
    claim = Claim("x", call(difference, value="y", over="arm", first=1, second=0), "greater")
    inside = 0
    for values, paper in zip(ours, theirs, strict=True):
        inside += bool(predicted(claim, values, float(paper), k)[2])
    assert inside / replicates == pytest.approx(0.95, abs=error(0.95, replicates))


def predicted(claim, values, paper, k):
    from landscope.spec import Published
    from landscope.stats.judging import _prediction

    found = _prediction(
        replace(claim, paper=Published(paper, k, "simulated")), Units(tuple(range(len(values))), values)
    )
    assert found is not None
    return found


def configurations(random, n, seeds, rho=0.0, noise=0.3):
    z = random.normal(size=(n, 2))
    x, y = z[:, 0], rho * z[:, 0] + math.sqrt(1 - rho**2) * z[:, 1]
    place = np.repeat(np.arange(n), seeds)
    return Table(
        {
            "seed": tuple(np.tile(np.arange(seeds), n).tolist()),
            "lr": tuple(place.tolist()),
            "x": tuple((x[place] + noise * random.normal(size=n * seeds)).tolist()),
            "y": tuple((y[place] + noise * random.normal(size=n * seeds)).tolist()),
        }
    )


def test_pooling_runs_finds_relations_that_are_not_there_and_configurations_do_not():
    random, replicates = np.random.default_rng(4), 400
    pooled = [
        kendalltau(t["x"], t["y"]).pvalue < 0.05 for t in (configurations(random, 5, 8) for _ in range(replicates))
    ]
    assert np.mean(pooled) == pytest.approx(0.42, abs=error(0.42, replicates))
    rejected = held = 0
    for _ in range(replicates):
        units = configuration_correlation(configurations(random, 12, 4), x="x", y="y", by=("lr",), draws=399)
        rejected += units.p() <= 0.05
        low, high = units.interval()
        held += low <= 0 <= high
    assert rejected / replicates <= 0.05 + error(0.05, replicates)
    assert held == replicates - rejected


def test_correlation_intervals_cover():
    random, replicates, rho = np.random.default_rng(5), 1000, 0.7
    truth, inside = 2 / math.pi * math.asin(rho), 0
    for _ in range(replicates):
        low, high = configuration_correlation(
            configurations(random, 12, 4, rho, 0.2), x="x", y="y", by=("lr",), draws=199
        ).interval()
        inside += low <= truth <= high
    assert inside / replicates >= 0.94


def test_looking_again_and_again_finds_something():
    random, replicates = np.random.default_rng(6), 4000
    values = random.normal(size=(replicates, 30))
    looks = np.zeros((replicates, 5), bool)
    for i, n in enumerate((5, 8, 12, 20, 30)):
        seen = values[:, :n]
        t = seen.mean(axis=1) / (seen.std(axis=1, ddof=1) / math.sqrt(n))
        looks[:, i] = np.abs(t) > stdtrit(n - 1, 0.975)
    assert looks.any(axis=1).mean() == pytest.approx(0.16, abs=error(0.16, replicates))
    assert looks[:, 0].mean() == pytest.approx(0.05, abs=error(0.05, replicates))


def experiment(values, shift=0.0):
    """A table in which each of m measures of arm a exceeds arm b's by ``shift`` and noise: ``values`` is [2, n, m]."""
    n = values.shape[1]
    columns = {
        f"m{j}": tuple((values[0, :, j] + shift).tolist() + values[1, :, j].tolist()) for j in range(values.shape[2])
    }
    return Table({"seed": (*range(n), *range(n)), "arm": ("a",) * n + ("b",) * n, **columns})


FAMILY = [
    Claim(f"measure {j}", call(difference, value=f"m{j}", over="arm", first="a", second="b"), expect)
    for j, expect in enumerate(("greater", "less", "at_least", "at_most", "greater") * 2)
]


def share_of_families_in_error(distribution, replicates, n=8):
    random = np.random.default_rng(len(distribution))
    size, wrong = (2, n, len(FAMILY)), 0
    draw = {
        "normal": lambda: random.normal(size=size),
        "lognormal": lambda: np.exp(0.75 * random.normal(size=size)),
        "t3": lambda: random.standard_t(3, size=size),
        "two modes": lambda: two_modes(random, size),
    }[distribution]
    for _ in range(replicates):
        wrong += any(v.word in ("supported", "contradicted") for v in judge(FAMILY, {"end": experiment(draw())}, n))
    return wrong / replicates


DISTRIBUTIONS = ("normal", "lognormal", "t3", "two modes")


def test_families_without_any_effect_err_in_one_of_twenty():
    share = np.mean([share_of_families_in_error(distribution, 100) for distribution in DISTRIBUTIONS])
    assert share <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


@pytest.mark.soak
@pytest.mark.parametrize("n", [8, 20])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_families_without_any_effect_err_in_one_of_twenty_at_length(distribution, n):
    assert share_of_families_in_error(distribution, 2000, n) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)


def test_calling_effects_too_small_errs_in_one_of_twenty_families():
    claims = [
        Claim(f"measure {j}", call(difference, value=f"m{j}", over="arm", first="a", second="b"), "greater",
              smallest=1.5, reason="simulated")
        for j in range(5)
    ]  # fmt: skip
    random, replicates, wrong = np.random.default_rng(8), 60, 0
    for _ in range(replicates):
        values = random.normal(size=(2, 10, 5))
        wrong += any(
            v.reason.startswith("the effect is too small") for v in judge(claims, {"end": experiment(values, 1.5)}, 10)
        )
    assert wrong / replicates <= 0.05 + error(0.05, replicates)


def test_trends_of_few_levels_keep_their_level():
    random, replicates, n = np.random.default_rng(9), 400, 8
    rejected = 0
    for _ in range(replicates):
        values = random.normal(size=(n, 4))
        table = Table(
            {
                "seed": tuple(np.repeat(np.arange(n), 4).tolist()),
                "dose": (1, 2, 4, 8) * n,
                "y": tuple(values.reshape(-1).tolist()),
            }
        )
        rejected += trend(table, value="y", over="dose").p() <= 0.05
    assert rejected / replicates <= 0.05 + error(0.05, replicates)


def test_log_ratios_cover_the_ratio_of_skewed_arms():
    random, replicates, n, inside = np.random.default_rng(10), 400, 8, 0
    for _ in range(replicates):
        values = np.exp(0.75 * random.normal(size=(2, n, 1))) * np.array([3.0, 1.0])[:, None, None]
        units = log_ratio(experiment(values), value="m0", over="arm", numerator="a", denominator="b")
        low, high = units.interval()
        inside += low <= math.log(3) <= high
    assert inside / replicates == pytest.approx(0.95, abs=error(0.95, replicates))


def test_advised_seeds_suffice_in_four_cases_of_five():
    random, replicates, n = np.random.default_rng(11), 400, 8
    sds = random.normal(size=(replicates, n)).std(axis=1, ddof=1)
    advised = [seeds_needed(1.0, sd_limit(float(sd), n)) or math.inf for sd in sds]
    naive = [seeds_needed(1.0, float(sd)) or math.inf for sd in sds]
    enough = seeds_needed(1.0, 1.0)
    assert enough is not None
    assert power(enough, 1.0) >= 0.8 > power(enough - 1, 1.0)
    assert np.mean(np.array(advised) >= enough) >= 0.8 - error(0.8, replicates)
    assert np.mean(np.array(naive) >= enough) < 0.7


def test_power_is_the_share_of_experiments_that_see_the_effect():
    random, replicates, n = np.random.default_rng(12), 4000, 10
    values = random.normal(size=(replicates, n)) + 1.0
    t = values.mean(axis=1) / values.std(axis=1, ddof=1) * math.sqrt(n)
    seen = np.mean(2 * stdtr(n - 1, -np.abs(t)) < 0.05)
    assert seen == pytest.approx(power(n, 1.0), abs=error(0.8, replicates))
