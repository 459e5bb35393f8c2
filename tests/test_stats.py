"""Decisions, intervals and tests, against other tools, numbers known beforehand and their own properties."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judged import claim, finite, pairs, samples, scipy_stats, units, verdict
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

from landscope.spec import Claim, Published, call
from landscope.stats import (
    configuration_correlation,
    decide,
    detectable,
    difference,
    holm,
    judge,
    log_ratio,
    power,
    seeds_needed,
    sign_flip_p,
    trend,
)
from landscope.types import Estimate, Table

# --- one test set for all seeds ---------------------------------------------------------------------------------------


def shared_test(first, second):
    """A table in which every seed is tested on the same examples: ``first`` and ``second`` are [seeds, examples]."""
    rows = [
        {"seed": s, "arm": arm, "status": "done", "y": float(np.mean(of)), "right": tuple(of)}
        for arm, runs in (("a", first), ("b", second))
        for s, of in enumerate(runs)
    ]
    return Table.of(rows)


SHARED: dict[str, Any] = {"value": "y", "over": "arm", "first": "a", "second": "b", "examples": "right"}


def test_the_error_of_a_shared_test_set_is_added_with_welch_and_satterthwaites_freedom():
    random = np.random.default_rng(1)
    first, second = (random.random((8, 30)) < share for share in (0.9, 0.6))
    found = difference(shared_test(first, second), **SHARED)
    paired = first.astype(float) - second
    by_seed, by_example = Estimate.of(paired.mean(axis=1)), Estimate.of(paired.mean(axis=0))
    assert found.mean == pytest.approx(paired.mean())
    assert found.extra["test set error"] == pytest.approx(by_example.sem)
    both = by_seed + (by_example - by_example.mean)
    assert found.sem == pytest.approx(math.hypot(by_seed.sem, by_example.sem))
    assert found.freedom == pytest.approx(both.freedom)
    for level in (0.9, 0.95, 0.99):
        low, high = found.interval(level)
        assert (low, high) == pytest.approx(both.interval(level))
        assert found.p(low) == pytest.approx(1 - level)
        assert found.p(high, "less") == pytest.approx((1 - level) / 2)
    assert "the same 30 examples" in found.note
    without = difference(shared_test(first, second), **{**SHARED, "examples": None})
    assert (without.mean, without.added, without.freedom) == (found.mean, 0.0, 7.0)
    assert without.sem == pytest.approx(by_seed.sem)


def test_seeds_that_agree_leave_the_error_of_the_test_set():
    paired = np.tile([1.0, 0.0, 1.0, 1.0], (8, 1))
    found = difference(shared_test(paired, np.zeros((8, 4))), **SHARED)
    half = float(scipy_stats.t.ppf(0.975, 3)) * 0.25  # the standard error of (1, 0, 1, 1)
    assert found.interval() == pytest.approx((0.75 - half, 0.75 + half))
    assert found.interval(1 - 0.5**8) == (-math.inf, math.inf)  # beyond what eight equal values can show
    assert found.p(-1e9) == pytest.approx(2 * 0.5**8)
    # The same for all examples, too: then there is nothing to add.
    exact = difference(shared_test(np.ones((8, 4)), np.zeros((8, 4))), **SHARED)
    assert exact.interval() == (1.0, 1.0)
    assert exact.p(0.0) == 2 * 0.5**8


def test_a_diverged_run_has_no_examples_and_other_examples_are_refused():
    random = np.random.default_rng(2)
    first, second = (random.random((9, 40)) < share for share in (0.9, 0.6))
    rows = shared_test(first, second).rows()
    rows[0] |= {"status": "diverged", "y": None, "right": None}
    found = difference(Table.of(rows), **SHARED, worst=0.1)
    kept = difference(shared_test(first[1:], second[1:]), **SHARED)
    assert found.values[0] == pytest.approx(0.1 - second[0].mean())
    assert found.added == pytest.approx(kept.added)
    assert found.whole.interval() == pytest.approx(kept.interval())
    rows[1]["right"] = rows[1]["right"][:-1]
    with pytest.raises(ValueError, match=r"right holds \[39, 40\] numbers"):
        difference(Table.of(rows), **SHARED, worst=0.1)
    with pytest.raises(KeyError, match="no column 'wrong'"):
        difference(Table.of(rows), **{**SHARED, "examples": "wrong"}, worst=0.1)


def test_a_verdict_counts_a_shared_test_set_but_not_twice_beside_the_papers_number():
    random = np.random.default_rng(3)
    table = shared_test(*(random.random((8, 50)) < share for share in (0.9, 0.7)))
    judged: list[Any] = [
        judge(
            [Claim("better", call(difference, **{**SHARED, "examples": examples}), "greater", smallest=0.05,
                   reason="fixed for this test", paper=Published(0.2, 3, "made up"))],
            {"end": table}, 8,
        )[0]
        for examples in (None, "right")
    ]  # fmt: skip
    alone, added = judged
    assert added.low < alone.low < alone.effect == added.effect < alone.high < added.high
    assert (alone.p_exact, added.p_exact) == (0.0078125, None)
    assert added.prediction == alone.prediction  # the paper's networks were tested on the same examples
    assert added.seeds_needed is None or added.seeds_needed > alone.seeds_needed
    assert "whose sampling error is added" in added.sentence


def test_no_number_of_seeds_makes_up_for_a_small_test_set():
    assert seeds_needed(1.0, 1.0, added=0.0) == 10
    more = seeds_needed(1.0, 1.0, added=0.05)
    assert more is not None
    assert power(more, 1 / math.sqrt(1 + 0.05 * more)) >= 0.8 > power(more - 1, 1 / math.sqrt(1 + 0.05 * (more - 1)))
    assert seeds_needed(1.0, 1.0, added=0.2) is None  # at 2.2 standard errors the power never reaches 80 %


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


def test_a_configuration_that_does_not_reach_the_level_leaves_a_correlation_untested():
    rows = [{"seed": s, "lr": i, "x": i + s / 9, "y": s / 9 - i, "status": "done"} for i in range(12) for s in range(8)]
    stated = Claim("more x, less y", call(configuration_correlation, x="x", y="y", by=("lr",), draws=499), "less")

    def judged(censored: int) -> Any:
        lost = [row | {"x": None, "status": "censored"} for row in rows[:censored]]
        return judge([stated], {"at a level": Table.of(lost + rows[censored:])}, 8)[0]

    assert judged(0).word == "supported"
    assert judged(1).word == "not testable"
    assert judged(1).reason.startswith("12% of the runs with lr = 0 never reach")


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
