"""From tables to units, from units to verdicts, from verdicts to words."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judged import claim, pairs, samples, scipy_stats, units, verdict
from statsmodels.stats.power import TTestPower

from landscope.spec import Claim, Published, call
from landscope.stats import (
    Untestable,
    changed_claims,
    claims_fingerprint,
    configuration_correlation,
    difference,
    judge,
    log_ratio,
    shown,
    shown_interval,
    trend,
)
from landscope.types import Table

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
    assert "up to 100% of the variance between seeds is measurement noise" in found.note


def test_measurement_noise_is_that_of_the_element_compared():
    numbers = {"a": ((1.0, 0.0), (2.0, 9.0), (3.0, 0.0)), "b": ((0.0, 5.0),) * 3}
    rows = [
        {"seed": s, "arm": arm, "y": y, "y_sem": (0.2, 7.0)} for arm, ys in numbers.items() for s, y in enumerate(ys)
    ]
    for index in (0, -2):
        found = difference(Table.of(rows), value="y", over="arm", first="a", second="b", index=index)
        assert found.values.tolist() == [1.0, 2.0, 3.0]
        assert found.extra["measurement share"] == pytest.approx(2 * 0.2**2)
        assert found.note == ""


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


def test_a_conjunction_that_is_only_explored_says_so():
    part = claim("greater", text="a part")
    whole = Claim("every one", None, "all_of", parts=(part, part), primary=False)
    (found,) = judge([whole], {"end": pairs(np.arange(10.0), np.zeros(10))}, 10)
    assert found.word == "exploratory"
    assert found.reason == "the claim is not among the primary ones"


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
