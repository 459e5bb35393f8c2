import itertools
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

from landscope.spec import Claim, Published, call
from landscope.stats import (
    Units,
    Untestable,
    Verdict,
    changed_claims,
    claims_fingerprint,
    configuration_correlation,
    decide,
    detectable,
    difference,
    holm,
    judge,
    log_ratio,
    power,
    seeds_needed,
    shown,
    shown_interval,
    sign_flip_p,
    trend,
)
from landscope.types import Table

scipy_stats: Any = scipy.stats  # whose annotations lag behind it
finite = st.floats(-50, 50, allow_nan=False).map(lambda x: round(x, 6))
samples = st.lists(finite, min_size=8, max_size=12).map(np.array).filter(lambda v: v.std() > 1e-3)


def units(values):
    return Units(tuple(range(len(values))), np.asarray(values, float))


def pairs(first, second, **more):
    """Arm a holds ``first``, arm b ``second``, one value per seed."""
    rows = [
        {"seed": seed, "arm": arm, "status": "done", "y": value} | {name: column[seed] for name, column in more.items()}
        for arm, values in (("a", first), ("b", second))
        for seed, value in enumerate(values)
    ]
    return Table.of(rows)


def claim(expect="greater", worst=None, **settings_):
    statistic = call(difference, value="y", over="arm", first="a", second="b", worst=worst)
    if settings_.get("smallest") is not None or settings_.get("margin") is not None:
        settings_.setdefault("reason", "fixed for this test")
    return Claim(settings_.pop("text", "a is more than b"), statistic, expect, **settings_)


def verdict(values, expect="greater", **settings_) -> Verdict:
    return judge([claim(expect, **settings_)], {"end": pairs(values, [0.0] * len(values))}, len(values))[0]


# --- the decision ----------------------------------------------------------------------------------------------------

# Every order of the interval's ends among null = 0 and smallest = 1.
GREATER = {
    (-2.0, -1.0): ("contradicted", "reversed"),
    (-1.0, 0.0): ("contradicted", "too small"),
    (-1.0, 0.5): ("contradicted", "too small"),
    (-1.0, 1.0): ("inconclusive", ""),
    (-1.0, 2.0): ("inconclusive", ""),
    (0.0, 0.5): ("contradicted", "too small"),
    (0.0, 2.0): ("inconclusive", ""),
    (0.2, 0.5): ("supported", "negligible"),
    (0.2, 1.0): ("supported", ""),
    (0.2, 2.0): ("supported", ""),
    (1.5, 2.0): ("supported", ""),
    (-math.inf, math.inf): ("inconclusive", ""),
}


@pytest.mark.parametrize(("interval", "expected"), [*GREATER.items()])
def test_truth_table(interval, expected):
    low, high = interval
    mirrored = (-high, -low)
    for expect in ("greater", "trend_up"):
        assert decide(expect, interval, smallest=1.0) == expected
    for expect in ("less", "trend_down"):
        assert decide(expect, mirrored, smallest=-1.0) == expected
    # Without a smallest effect nothing is too small, nor negligible.
    unsized = (
        ("inconclusive", "") if expected[1] == "too small" else (expected[0], expected[1].replace("negligible", ""))
    )
    assert decide("greater", interval) == decide("less", mirrored) == unsized
    assert decide("at_least", interval, smallest=1.0) == decide("at_most", mirrored, smallest=-1.0) == unsized
    # All of it moves along with null.
    moved = (low + 3, high + 3)
    assert decide("greater", moved, null=3.0, smallest=4.0) == expected


@pytest.mark.parametrize(
    ("interval", "inner", "word"),
    [
        ((-0.9, 0.9), (-0.8, 0.8), "supported"),
        ((-1.1, 0.9), (-0.8, 0.8), "supported"),  # two one-sided tests need the inner interval only
        ((-1.3, 0.9), (-1.1, 0.8), "inconclusive"),
        ((0.5, 1.1), (0.6, 1.0), "inconclusive"),
        ((0.9, 2.0), (1.1, 1.9), "inconclusive"),
        ((1.1, 2.0), (1.2, 1.9), "contradicted"),
        ((-2.0, -1.1), (-1.9, -1.2), "contradicted"),
        ((-2.0, 2.0), (-1.5, 1.5), "inconclusive"),
    ],
)
def test_truth_table_of_within(interval, inner, word):
    assert decide("within", interval, margin=1.0, inner=inner)[0] == word
    moved = (interval[0] + 5, interval[1] + 5), (inner[0] + 5, inner[1] + 5)
    assert decide("within", moved[0], null=5.0, margin=1.0, inner=moved[1])[0] == word


def test_within_needs_its_margin():
    with pytest.raises(ValueError, match="margin"):
        decide("within", (0.0, 1.0))


# --- other tools as oracles ------------------------------------------------------------------------------------------


@given(samples, st.sampled_from([0.9, 0.95, 0.995]), finite)
@settings(max_examples=50, deadline=None)
def test_interval_and_p_are_the_paired_t_test_of_scipy(values, level, null):
    reference = scipy_stats.ttest_1samp(values, null)
    expected = reference.confidence_interval(level)
    found = units(values)
    assert found.interval(level) == pytest.approx((expected.low, expected.high), rel=1e-10, abs=1e-10)
    assert found.p(null) == pytest.approx(reference.pvalue, rel=1e-9, abs=1e-14)
    for side in ("greater", "less"):
        one_sided = scipy_stats.ttest_1samp(values, null, alternative=side).pvalue
        assert found.p(null, side) == pytest.approx(one_sided, rel=1e-9, abs=1e-14)


@pytest.mark.parametrize("m", [1, 2, 5, 12])
def test_holm_agrees_with_statsmodels(m):
    for p in np.random.default_rng(m).beta(0.3, 3.0, size=(4, m)):
        adjusted, levels = holm(p.tolist())
        expected: Any = multipletests(p, 0.05, "holm")
        np.testing.assert_allclose(adjusted, expected[1], atol=1e-12)
        assert ((adjusted <= 0.05) == expected[0]).all()
        assert ((p <= levels) == expected[0]).all()


@pytest.mark.parametrize(("n", "effect", "alpha"), [*itertools.product((3, 8, 30), (0.1, 0.5, 1.0), (0.05, 0.005))])
def test_power_agrees_with_statsmodels(n, effect, alpha):
    assert power(n, effect, alpha) == pytest.approx(TTestPower().power(effect, n, alpha), abs=1e-10)
    assert power(n, effect, alpha, sides=1) == pytest.approx(
        TTestPower().power(effect, n, alpha, alternative="larger"), abs=1e-10
    )


def test_equivalence_agrees_with_statsmodels():
    random = np.random.default_rng(0)
    for shift in (0.0, 0.4, 0.9):
        a, b = random.normal(size=(2, 12))
        a = b + 0.5 * a + shift
        p, _, _ = ttost_paired(a, b, -1.0, 1.0)
        found = judge([claim("within", margin=1.0)], {"end": pairs(a.tolist(), b.tolist())}, 12)[0]
        assert found.p == pytest.approx(p, abs=1e-12)
        assert (found.word == "supported") == (p <= 0.05)


def test_tau_page_and_slope_agree_with_scipy_and_numpy():
    random = np.random.default_rng(1)
    values = np.round(random.normal(size=(8, 6)) + 0.3 * np.arange(6), 1)  # rounded: some are tied
    levels = [2.0**i for i in range(6)]
    rows = [{"seed": s, "dose": d, "y": float(values[s, i])} for s in range(8) for i, d in enumerate(levels)]
    found = trend(Table.of(rows[::-1]), value="y", over="dose")
    expected = [scipy_stats.kendalltau(levels, v).statistic for v in values]
    np.testing.assert_allclose(found.values, expected, atol=1e-12)
    assert found.extra["page p rising"] == pytest.approx(scipy_stats.page_trend_test(values).pvalue)
    assert found.extra["slope"] == pytest.approx(np.mean([np.polyfit(range(6), v, 1)[0] for v in values]))


def test_correlation_agrees_with_scipy_within_and_across_blocks():
    random = np.random.default_rng(2)
    x, y = np.round(random.normal(size=(2, 14)), 1)
    rows = [
        {"seed": s, "lr": i, "set": i % 2, "x": float(x[i]) + e, "y": float(y[i]) - e}
        for i in range(14)
        for s, e in enumerate((-0.01, 0.01))
    ]
    found = configuration_correlation(Table.of(rows), x="x", y="y", by=("lr",), draws=499)
    assert found.mean == pytest.approx(scipy_stats.kendalltau(x, y).statistic)
    assert found.n == 14
    # Between blocks no pair counts: shifting one block leaves everything as it was.
    blocked = configuration_correlation(Table.of(rows), x="x", y="y", by=("lr",), block="set", draws=499)
    moved = [row | {"x": row["x"] + 9 * row["set"], "y": row["y"] + 9 * row["set"]} for row in rows]
    again = configuration_correlation(Table.of(moved), x="x", y="y", by=("lr",), block="set", draws=499)
    assert blocked.mean == pytest.approx(again.mean)
    assert blocked.interval() == pytest.approx(again.interval())
    assert configuration_correlation(Table.of(moved), x="x", y="y", by=("lr",), draws=499).mean > blocked.mean + 0.2


# --- numbers known beforehand ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "p"), [(5, 0.0625), (6, 0.03125), (8, 0.0078125), (10, 0.001953125)])
def test_smallest_possible_sign_flip_p(n, p):
    assert sign_flip_p(np.arange(1.0, n + 1)) == p


def test_sign_flips_against_scipy_and_beyond_enumeration():
    values = np.random.default_rng(3).normal(size=9) + 0.4
    expected = scipy_stats.permutation_test(
        (values,), lambda v, axis: v.sum(axis=axis), permutation_type="samples", n_resamples=10**6, vectorized=True
    )
    assert sign_flip_p(values) == pytest.approx(expected.pvalue, abs=1e-12)
    long = np.random.default_rng(4).normal(size=40) + 0.3
    assert sign_flip_p(long) == pytest.approx(scipy_stats.ttest_1samp(long, 0).pvalue, abs=0.01)
    assert sign_flip_p([0.0] * 5) == 1.0


def test_table_of_seeds():
    table = [[seeds_needed(effect, 1.0, alpha) for alpha in (0.05, 0.0125)] for effect in (1.0, 2.0, 0.5)]
    assert table == [[10, 15], [5, 7], [34, 48]]
    assert seeds_needed(0.0, 1.0) is None
    assert seeds_needed(1e-4, 1.0) is None
    assert seeds_needed(1.0, 0.0) == 2


@pytest.mark.parametrize(("n", "level"), [(2, 0.95), (8, 0.995), (30, 0.95)])
def test_detectable_is_what_has_the_power(n, level):
    assert power(n, detectable(n, 3.0, level) / 3.0, 1 - level) == pytest.approx(0.8)


def test_published_lottery_tickets_cannot_tell_their_own_margin():
    # Only the paper's summary survives: three paired seeds, mean 1.147 points, 95 % interval .66 to 1.63.
    sd = (1.63 - 1.147) * math.sqrt(3) / scipy_stats.t.ppf(0.975, 2)
    found = units(1.147 + sd * np.array([-1.0, 0.0, 1.0]))
    assert found.interval() == pytest.approx((0.66, 1.63), abs=0.005)
    assert decide("at_most", found.interval(), null=1.15)[0] == "inconclusive"
    assert decide("at_most", found.interval(), null=2.0)[0] == "supported"
    assert found.p(1.15, "less") > 0.4


def test_published_batch_sizes_from_their_seeds():
    small, medium, large = [85.55, 85.19, 85.82], [84.25, 83.96, 84.29], [83.41, 83.66, 82.73]
    found = units(np.subtract(small, medium))
    assert found.mean == pytest.approx(1.35, abs=0.005)
    assert found.interval() == pytest.approx((0.96, 1.74), abs=0.005)
    assert units(np.subtract(small, large)).interval() == pytest.approx((0.30, 4.21), abs=0.005)


# --- properties ------------------------------------------------------------------------------------------------------


@given(samples, st.floats(0.1, 10), finite)
@settings(max_examples=40, deadline=None)
def test_intervals_scale_and_shift_with_the_values(values, scale, shift):
    low, high = units(values).interval()
    assert units(scale * values + shift).interval() == pytest.approx(
        (scale * low + shift, scale * high + shift), abs=1e-6
    )


@given(samples)
@settings(max_examples=30, deadline=None)
def test_less_is_the_mirror_of_greater(values):
    for smallest in (None, 2.0):
        one = verdict(values.tolist(), "greater", smallest=smallest)
        other = verdict((-values).tolist(), "less", smallest=None if smallest is None else -smallest)
        assert (one.word, one.negligible, one.seeds_needed) == (other.word, other.negligible, other.seeds_needed)
        assert one.effect is not None
        assert other.effect == pytest.approx(-one.effect)
        assert one.p_adjusted == other.p_adjusted


@given(st.lists(samples, min_size=2, max_size=6), st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_adjusted_p_and_deciding_interval_agree_in_any_order_of_rows(columns, random):
    n = min(map(len, columns))
    rows = [
        {"seed": s, "arm": arm} | {f"y{j}": float(v[s]) * (arm == "a") for j, v in enumerate(columns)}
        for s in range(n)
        for arm in ("a", "b")
    ]
    claims = [
        Claim(f"y{j}", call(difference, value=f"y{j}", over="arm", first="a", second="b"), expect)
        for j, expect in zip(range(len(columns)), itertools.cycle(("greater", "less", "at_least")), strict=False)
    ]
    found = judge(claims, {"end": Table.of(rows)}, n)
    for v in found:
        assert v.p_adjusted is not None
        assert v.holm_low is not None
        assert v.holm_high is not None
        if abs(v.p_adjusted - 0.05) > 1e-9:
            assert (v.p_adjusted <= 0.05) == (not v.holm_low <= 0 <= v.holm_high)
            assert (v.p_adjusted <= 0.05) == (v.word in ("supported", "contradicted"))
    random.shuffle(rows)
    again = judge(claims, {"end": Table.of(rows)}, n)
    assert [v.to_json() for v in again] == [v.to_json() for v in found]


@given(st.lists(st.floats(0.5, 2.0), min_size=4, max_size=4), st.floats(0.1, 9.0))
@settings(max_examples=30, deadline=None)
def test_ratios_and_trends_do_not_depend_on_the_unit_of_measurement(values, scale):
    def table(factor):
        return Table.of([{"seed": 0, "dose": d, "y": factor * v} for d, v in zip((1, 2, 4, 8), values, strict=True)])

    def ratio(t):
        return log_ratio(t, value="y", over="dose", numerator=8, denominator=1).values

    np.testing.assert_allclose(ratio(table(1.0)), ratio(table(scale)), atol=1e-9)
    flipped = log_ratio(table(1.0), value="y", over="dose", numerator=1, denominator=8).values
    np.testing.assert_allclose(ratio(table(1.0)), -flipped, atol=1e-12)


@given(st.lists(finite, min_size=12, max_size=14, unique=True), st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_correlation_interval_and_p_agree(x, seed):
    y = [v + float(e) for v, e in zip(x, np.random.default_rng(seed).normal(0, 40, len(x)), strict=True)]
    rows = [{"seed": 0, "lr": i, "x": a, "y": b} for i, (a, b) in enumerate(zip(x, y, strict=True))]
    found = configuration_correlation(Table.of(rows), x="x", y="y", by=("lr",), draws=399)
    for alpha in (0.2, 0.05, 0.01):
        low, high = found.interval(1 - alpha)
        assert (found.p() <= alpha) == (not low <= 0 <= high)


# --- tables to units -------------------------------------------------------------------------------------------------


def test_two_runs_in_one_arm_are_refused_and_told_apart():
    table = pairs([1.0], [0.0])
    twice = Table.of([*(r | {"lr": 1} for r in table.rows()), *(r | {"lr": 2} for r in table.rows())])
    with pytest.raises(ValueError, match=r"differ in lr.*where="):
        difference(twice, value="y", over="arm", first="a", second="b")
    assert difference(twice, value="y", over="arm", first="a", second="b", where=(("lr", 2),)).n == 1


def test_misspelt_columns_are_errors():
    with pytest.raises(KeyError, match="no column 'z'"):
        difference(pairs([1.0], [0.0]), value="z", over="arm", first="a", second="b")
    with pytest.raises(TypeError, match="no setting"):
        call(difference, value="y", over="arm", frist="a", second="b")


def test_statistics_are_known_by_their_public_name():
    statistic = call(difference, value="y", over="arm", first="a", second="b")
    assert statistic.target == "landscope.stats.difference"


def test_elements_of_arrays():
    table = pairs([(1.0, 5.0)], [(1.0, 2.0)])
    assert difference(table, value="y", over="arm", first="a", second="b", index=1).values.tolist() == [3.0]
    for wrong, message in ((None, "index="), (2, "no element 2")):
        with pytest.raises(ValueError, match=message):
            difference(table, value="y", over="arm", first="a", second="b", index=wrong)


def test_values_without_a_logarithm():
    with pytest.raises(Untestable, match=r"seed 1, arm = b.*no logarithm"):
        log_ratio(pairs([1.0, 1.0], [1.0, 0.0]), value="y", over="arm", numerator="a", denominator="b")
    statistic = call(log_ratio, value="y", over="arm", numerator="a", denominator="b")
    found = judge([Claim("x", statistic, "greater")], {"end": pairs([1.0] * 8, [0.0] * 8)}, 8)[0]
    assert found.word == "not testable"
    assert "no logarithm" in found.sentence


def test_a_trend_needs_three_levels():
    with pytest.raises(ValueError, match="at least 3 levels of arm"):
        trend(pairs([1.0], [2.0]), value="y", over="arm")


def test_a_trend_that_is_perfect_in_every_seed_is_supported():
    rows = [{"seed": s, "dose": d, "y": d + 0.1 * s} for s in range(8) for d in (1, 2, 4)]
    up = Claim("rises", call(trend, value="y", over="dose"), "trend_up", unit="tau")
    found = judge([up, replace(up, text="falls", expect="trend_down")], {"end": Table.of(rows)}, 8)
    assert [v.word for v in found] == ["supported", "contradicted"]
    assert found[0].effect == 1.0
    assert found[0].low is not None
    assert 0.7 < found[0].low < 1.0 == found[0].high
    assert found[0].p_exact is not None
    assert found[0].p_exact == pytest.approx(6.0**-8, rel=1e-6)  # one of 6^8 equally likely orders
    assert found[0].extra["share rising"] == 1.0


def test_pairs_that_miss_a_condition_are_left_out_and_counted():
    table = pairs([1.0, 2.0, 3.0], [0.0] * 3, fit=[1.0, 0.9, 0.999])
    found = difference(table, value="y", over="arm", first="a", second="b", given=(("fit", 0.995),))
    assert found.ids == (0, 2)
    assert "1 seed left out because a run does not reach fit 0.995" in found.note


def test_measurement_noise_is_named():
    table = Table.of([row | {"y_sem": 1.0} for row in pairs([1.0, 2.0, 3.0], [0.0] * 3).rows()])
    found = difference(table, value="y", over="arm", first="a", second="b")
    assert found.extra["measurement share"] == pytest.approx(2.0)
    assert "200% of the variance between seeds is measurement noise" in found.note


# --- judging ---------------------------------------------------------------------------------------------------------

CLEAR = [1.0, 1.3, 0.8, 1.1, 1.2, 0.9, 1.0, 1.4, 0.7, 1.1]


@pytest.mark.parametrize(
    ("expect", "settings_", "word"),
    [
        ("greater", {}, "supported"),
        ("less", {}, "contradicted"),
        ("greater", {"smallest": 5.0}, "supported"),
        ("greater", {"null": 1.0, "smallest": 5.0}, "contradicted"),
        ("greater", {"null": 1.0, "smallest": 1.1}, "inconclusive"),
        ("at_least", {"null": -0.5}, "supported"),
        ("at_most", {"null": 0.5}, "contradicted"),
        ("at_most", {"null": 1.1}, "inconclusive"),
        ("within", {"margin": 2.0}, "supported"),
        ("within", {"margin": 0.2}, "contradicted"),
        ("within", {"margin": 1.1}, "inconclusive"),
    ],
)
def test_expectations(expect, settings_, word):
    found = verdict(CLEAR, expect, **settings_)
    assert found.word == word
    assert found.negligible == (settings_ == {"smallest": 5.0})


def test_each_protocol_is_its_own_family_and_the_first_is_published():
    claims = [claim(text="one"), claim("less", text="two"), claim(text="aside", primary=False)]
    tables = {"published": pairs(CLEAR, [0.0] * 10), "equal loss": pairs([0.0] * 10, CLEAR)}
    found = judge(claims, tables, 10)
    assert [(v.control, v.word) for v in found] == [
        (None, "supported"),
        (None, "contradicted"),
        (None, "exploratory"),
        ("equal loss", "contradicted"),
        ("equal loss", "supported"),
        ("equal loss", "exploratory"),
    ]
    assert {v.family for v in found} == {2}
    assert judge(claims, tables, 10, "equal loss")[0].control == "published"
    with pytest.raises(LookupError, match="no protocol 'x'"):
        judge(claims, tables, 10, "x")


def test_few_seeds_describe():
    found = verdict([1.0, 1.1])
    assert (found.word, found.n, found.p_adjusted) == ("descriptive", 2, None)
    assert "2 seeds are too few" in found.sentence
    assert verdict([1.0]).word == "descriptive"
    assert judge([claim()], {"end": Table({})}, 2)[0].word == "not testable"


def test_few_configurations_describe():
    rows = [{"seed": s, "lr": i, "x": float(i), "y": i + 0.1 * s} for i in range(11) for s in range(2)]
    correlated = Claim("x", call(configuration_correlation, x="x", y="y", by=("lr",), draws=199), "greater", unit="tau")
    found = judge([correlated], {"end": Table.of(rows)}, 2)[0]
    assert (found.word, found.effect) == ("descriptive", 1.0)
    more = Table.of([*rows, *({"seed": s, "lr": 11, "x": 11.0, "y": 11.0} for s in range(2))])
    found = judge([correlated], {"end": more}, 2)[0]
    assert (found.word, found.n) == ("supported", 12)
    assert "12 configurations" in found.sentence
    assert judge([correlated], {"end": more}, 3)[0].reason == "12 of 36 runs are missing"


def test_only_planned_seeds_decide_and_later_ones_replicate():
    table = pairs([*CLEAR, *(-v for v in CLEAR)], [0.0] * 20)
    first = judge([claim()], {"end": table}, 10)[0]
    assert first.to_json() == verdict(CLEAR).to_json()
    assert judge([claim()], {"end": table}, 10, seeds=range(10, 20))[0].word == "contradicted"


def test_missing_runs_are_not_passed_over():
    rows = pairs(CLEAR, [0.0] * 10).rows()
    found = judge([claim()], {"end": Table.of(rows[:-3])}, 10)[0]
    assert (found.word, found.reason) == ("not testable", "3 of 20 runs are missing")
    unmeasured = Table.of([*rows[:-1], rows[-1] | {"y": None}])
    assert judge([claim()], {"end": unmeasured}, 10)[0].reason == "1 of 20 runs are missing"
    assert judge([claim()], {"end": Table.of(rows[:10])}, 10)[0].reason == "10 of 20 runs are missing"


def with_status(rows, status, *places):
    return Table.of([r | {"status": status, "y": None} if i in places else r for i, r in enumerate(rows)])


def test_diverged_runs_count_as_the_worst_and_must_not_decide():
    rows = pairs(CLEAR, [0.0] * 10).rows()
    one = with_status(rows, "diverged", 3)
    undefined = judge([claim()], {"end": one}, 10)[0]
    assert undefined.word == "not testable"
    assert "diverged" in undefined.reason
    found = judge([claim(worst="max")], {"end": one}, 10)[0]
    assert (found.word, found.without_diverged, found.n) == ("supported", "supported", 10)
    assert found.units is not None
    assert found.units.values[3] == 1.4
    assert found.units.complete is not None
    assert found.units.complete.tolist().count(False) == 1
    turned = judge([claim(worst=-40.0)], {"end": one}, 10)[0]
    assert (turned.word, turned.without_diverged) == ("inconclusive", "supported")
    assert "how diverged runs are counted" in turned.sentence
    two = judge([claim(worst="max")], {"end": with_status(rows, "diverged", 3, 4)}, 10)[0]
    assert two.word == "inconclusive"
    assert "10 %" in two.reason


def test_censored_runs_leave_their_pair_out_until_they_are_many():
    rows = pairs(CLEAR, [0.0] * 10).rows()
    found = judge([claim()], {"end": with_status(rows, "censored", 12)}, 10)[0]
    assert (found.word, found.n) == ("supported", 9)
    assert "1 seed left out because a run did not reach the step" in found.reason
    found = judge([claim()], {"end": with_status(rows, "censored", 12, 13)}, 10)[0]
    assert found.word == "not testable"
    assert "20% of the runs with arm = b never reach" in found.reason


def test_claims_that_cannot_be_tested_still_count_in_the_family():
    rows = pairs(CLEAR, [0.0] * 10).rows()
    table = Table.of([r | {"z": r["y"]} for r in rows])
    other = Claim("z", call(log_ratio, value="z", over="arm", numerator="a", denominator="b"), "greater")
    few = Claim("few", call(difference, value="z", over="arm", first="a", second="b", given=(("z", 0.0),)), "greater")
    found = judge([claim(), other], {"end": table}, 10)
    assert [v.word for v in found] == ["supported", "not testable"]
    assert found[0].p is not None
    assert found[0].p_adjusted == pytest.approx(2 * found[0].p)
    # Seeds left out by a condition may leave too few; the p value they would have is no step for others.
    table = Table.of(
        [r | {"z": (r["arm"] == "a") * (1 + 1e-6 * r["seed"]) if r["seed"] < 5 else -1.0} for r in table.rows()]
    )
    found = judge([claim(), few], {"end": table}, 10)
    assert [v.word for v in found] == ["supported", "descriptive"]
    assert found[0].p is not None
    assert found[0].p_adjusted == pytest.approx(2 * found[0].p)


def test_all_of_needs_every_part():
    good, bad, unclear = CLEAR, [-v for v in CLEAR], [v - 1 for v in CLEAR]
    table = Table.of(
        [
            {"seed": s, "arm": arm} | {k: v[s] * (arm == "a") for k, v in (("g", good), ("b", bad), ("u", unclear))}
            for s in range(10)
            for arm in "ab"
        ]
    )

    def all_of(*names):
        parts = [
            Claim(name, call(difference, value=name, over="arm", first="a", second="b"), "greater") for name in names
        ]
        return judge([Claim("every one", None, "all_of", parts=tuple(parts))], {"end": table}, 10)[0]

    assert [all_of(*n).word for n in ("gg", "gu", "gb", "ub")] == [
        "supported", "inconclusive", "contradicted", "contradicted",
    ]  # fmt: skip
    found = all_of(*"gu")
    assert found.weakest.text == "u"
    assert [part.word for part in found.parts] == ["supported", "inconclusive"]
    assert found.p is not None
    assert found.p > 0.05
    # No correction inside: the conjunction's p is its weakest part's.
    assert all_of(*"ggg").p == all_of("g").p


def test_values_without_spread_go_as_far_as_sign_flips_do():
    same = units([0.5] * 8)
    assert same.p() == 2.0**-7
    assert same.interval(1 - 2.0**-7) == (0.5, 0.5)
    assert same.interval(0.995) == (-math.inf, math.inf)
    assert verdict([0.5] * 8).word == "supported"
    assert verdict([0.0] * 8).word == "inconclusive"
    assert json.loads(json.dumps(verdict([0.5] * 3).to_json(), allow_nan=False))["low"] is None


def test_advice_and_the_papers_number():
    sized = claim(smallest=0.5, paper=Published(3.0, 1, "one run"), text="sized")
    found = judge([sized], {"end": pairs(CLEAR, [0.0] * 10), "control": pairs(CLEAR, [0.0] * 10)}, 10)
    sd = np.std(CLEAR, ddof=1)
    limit = sd * math.sqrt(9 / scipy_stats.chi2.ppf(0.2, 9))
    needed = found[0].seeds_needed
    assert needed is not None
    assert TTestPower().power(0.5 / limit, needed, 0.05) >= 0.8 > TTestPower().power(0.5 / limit, needed - 1, 0.05)
    half = scipy_stats.t.ppf(0.975, 9) * sd * math.sqrt(1 / 10 + 1)
    assert found[0].prediction == (pytest.approx(1.05 - half), pytest.approx(1.05 + half), False)
    assert found[1].prediction is None
    assert verdict(CLEAR).seeds_note == "not computed: the claim names no smallest effect of interest"


# --- words -----------------------------------------------------------------------------------------------------------


def test_shown():
    ratio, tau = claim(unit="ratio"), claim(unit="tau")
    assert (shown(ratio, math.log(11.58)), shown(ratio, -0.2), shown(ratio, 6.0)) == ("×11.6", "×0.82", "×403")
    assert shown(ratio, -math.inf) == "×0"
    assert shown_interval(claim(unit="points"), -0.0066, 0.0163) == "−0.66 to +1.63 points"
    assert shown(tau, -0.8) == "τ = −0.80"
    assert shown(claim(), -12.3456) == "−12.3"


def test_the_sentence_has_all_that_a_paper_quotes():
    found = verdict([v / 100 for v in CLEAR], unit="points", text="a beats b.", smallest=0.005)
    assert found.sentence == (
        "The claim “a beats b” is supported under the published protocol: the effect is +1.05 points over 10 seeds "
        "(95 % interval +0.89 to +1.21 points; Student’s t on one number per seed, p < 0.0001; p < 0.0001 after "
        "Holm’s correction for 1 claim), and the deciding interval +0.89 to +1.21 points lies above +0.00 points."
    )


@given(samples, st.sampled_from(["greater", "less", "at_least", "within"]), st.sampled_from(["", "points", "ratio"]))
@settings(max_examples=30, deadline=None)
def test_every_verdict_is_one_sentence_and_plain_json(values, expect, unit):
    found = verdict(values.tolist(), expect, unit=unit, margin=1.0 if expect == "within" else None)
    assert found.sentence.endswith(".")
    assert ". " not in found.sentence
    for part in (found.word, f"{found.n} seeds", "95 % interval", "Student", "p ", "Holm"):
        assert part in found.sentence
    plain = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert {"text", "protocol", "control", "effect", "low", "high", "p_adjusted", "verdict", "paper", "n"} <= set(plain)
    assert repr(found).startswith(found.word)


def test_html_is_escaped_and_small():
    found = verdict([v + 0.01 * i for i in range(6) for v in CLEAR], text="<script>alert('a')</script>" * 60)
    assert "<script>" not in found._repr_html_()
    assert len(found._repr_html_().encode()) < 20_000


def test_claims_that_change_are_named():
    claims = [claim(text="one", smallest=0.5), claim(text="two"), claim(text="three")]
    old = claims_fingerprint(claims)
    assert json.loads(json.dumps(old, allow_nan=False)) == old
    assert changed_claims(old, json.loads(json.dumps(old))) == []
    new = claims_fingerprint([replace(claims[0], smallest=0.4), claims[1], claim(text="four")])
    assert changed_claims(old, new) == ["one", "four", "three"]
    with pytest.raises(ValueError, match="same text"):
        claims_fingerprint([claims[0], claims[0]])
