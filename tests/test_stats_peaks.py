"""Peaks: places chosen on one half of the units, heights measured on the other, and no peaks found in noise."""

from typing import Any

import numpy as np
import pytest

from landscope.spec import Claim, call
from landscope.stats import Units, Untestable, judge, peak_height
from landscope.types import Table

WIDTHS = (2, 4, 8, 16, 32)
CURVE = np.array([0.8, 0.3, 0.5, 0.6, 0.2])  # a first descent, a peak at 16, a second descent


def curves(values, **more) -> Table:
    """A table of ``values [seeds, widths]``."""
    rows = [
        {"seed": s, "width": w, "status": "done", "error": float(values[s, i])}
        | {name: float(column[s, i]) for name, column in more.items()}
        for s in range(len(values))
        for i, w in enumerate(WIDTHS)
    ]
    return Table.of(rows)


def height(table: Table, above: str = "smaller", **settings: Any) -> Units:
    named: dict[str, Any] = {"value": "error", "over": "width", "above": above} | settings
    return peak_height(table, **named)


def test_the_choice_is_made_by_one_half_and_the_heights_are_the_others():
    random = np.random.default_rng(0)
    values = CURVE + 0.01 * random.standard_normal((6, 5))
    rise, fall = height(curves(values)), height(curves(values), "largest")
    assert rise.ids == fall.ids == (1, 3, 5)
    assert rise.values == pytest.approx(values[1::2, 3] - values[1::2, 1])
    assert fall.values == pytest.approx(values[1::2, 3] - values[1::2, 4])
    assert rise.extra == {"peak": 16.0, "valley": 4.0}
    assert fall.extra == {"peak": 16.0, "largest": 32.0}
    assert "chosen on the other 3 seeds" in rise.note
    assert (rise.arms, rise.found) == (5, 30)  # all runs are needed, those that choose too


def test_what_the_measuring_half_looks_like_does_not_move_the_peak():
    values = np.tile(CURVE, (4, 1))
    values[1::2] = values[1::2, ::-1]
    assert height(curves(values)).values == pytest.approx([values[1, 3] - values[1, 1]] * 2)


def test_a_dip_of_the_accuracy_is_a_peak_of_the_error():
    random = np.random.default_rng(1)
    values = CURVE + 0.05 * random.standard_normal((6, 5))
    turned = curves(values, accuracy=1 - values)
    for above in ("smaller", "largest"):
        dip = height(turned, above, value="accuracy", dip=True)
        assert dip.values == pytest.approx(height(turned, above).values)


def test_places_fixed_beforehand_leave_all_units_to_measure():
    values = np.tile(CURVE, (4, 1))
    both = height(curves(values), peak=8, valley=4)
    assert both.ids == (0, 1, 2, 3)
    assert both.values == pytest.approx([0.2] * 4)
    assert "fixed beforehand" in both.note
    assert height(curves(values), "largest", peak=8).values == pytest.approx([0.3] * 4)
    assert height(curves(values), peak=4).values == pytest.approx([-0.5] * 4)  # only one level lies before it
    assert height(curves(values), peak=8).ids == (1, 3)  # which of the two before it is the lowest is a choice
    assert height(curves(values), valley=8).extra == {"peak": 16.0, "valley": 8.0}


def test_the_interpolation_threshold_fixes_the_peak():
    fitted = np.tile([0.3, 0.7, 0.96, 0.99, 1.0], (4, 1))
    table = curves(np.tile(CURVE, (4, 1)), fitted=fitted, never=0 * fitted, late=fitted * [1, 1, 0, 0, 1])
    found = height(table, "largest", threshold=("fitted", 0.95))
    assert (found.ids, found.extra["peak"]) == ((0, 1, 2, 3), 8.0)
    for column in ("never", "late"):
        with pytest.raises(Untestable, match=r"does not reach 0\.95 before the last level of width"):
            height(table, "largest", threshold=(column, 0.95))


def test_a_run_that_diverged_stays_with_the_worst_outcome_and_is_marked():
    rows = curves(np.tile(CURVE, (4, 1))).rows()
    rows = [r | {"status": "diverged", "error": None} if (r["seed"], r["width"]) == (1, 16) else r for r in rows]
    found = height(Table.of(rows), worst=0.9)
    assert found.values == pytest.approx([0.6, 0.3])
    assert found.whole_marks.tolist() == [False, True]
    assert found.diverged == {"width = 16": 0.25}
    with pytest.raises(Untestable, match="runs diverged"):
        height(Table.of(rows))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"above": "first"}, "above is one of smaller, largest"),
        ({"peak": 8, "threshold": ("error", 0.1)}, "not by both"),
        ({"peak": 9}, "width = 9 is none of the levels: 2, 4, 8, 16, 32"),
        ({"peak": 2}, "between the first and the last level of width, not at 2"),
        ({"peak": 32}, "not at 32"),
        ({"peak": 8, "valley": 8}, "leaves no level for a peak"),
        ({"valley": 16}, "leaves no level for a peak"),
        ({"levels": (2, 4)}, "at least 3 levels of width, not 2"),
    ],
)
def test_impossible_peaks_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        height(curves(np.tile(CURVE, (4, 1))), **settings)


def test_few_units_measure_nothing_and_none_is_no_error():
    assert height(curves(CURVE[None])).n == 0  # the only one has chosen
    assert height(curves(CURVE[None]), peak=16, valley=4).n == 1
    assert height(curves(CURVE[None]).where(seed=7)).n == 0


def double_descent(**settings: Any) -> Claim:
    parts = tuple(
        Claim(above, call(peak_height, value="error", over="width", above=above, **settings), "greater")
        for above in ("smaller", "largest")
    )
    return Claim("double descent", None, "all_of", parts=parts)


def test_curves_of_noise_have_no_peak_and_naive_ones_always():
    """Rule 12: the largest less the smallest mean of the same seeds is a peak by construction."""
    random, rounds, peaks, naive = np.random.default_rng(2), 120, 0, 0
    for _ in range(rounds):
        values = random.standard_normal((16, 5))
        table, means = curves(values), values.mean(axis=0)
        tall = Units(tuple(range(16)), values[:, means.argmax()] - values[:, means.argmin()])
        peaks += all(height(table, above).p(0.0, "greater") <= 0.025 for above in ("smaller", "largest"))
        naive += tall.p(0.0, "greater") <= 0.025
    assert peaks / rounds <= 0.025  # each of two tests rejects with 2.5 %, and both must
    assert naive / rounds > 0.25


def test_a_true_peak_is_supported_and_a_monotone_curve_contradicted():
    random = np.random.default_rng(3)
    noise = 0.05 * random.standard_normal((16, 5))
    words = [
        judge([double_descent()], {"end": curves(curve + noise)}, 16)[0].word for curve in (CURVE, np.sort(CURVE)[::-1])
    ]
    assert words == ["supported", "contradicted"]


def test_a_missing_run_of_the_choosing_half_is_missed():
    rows = [r for r in curves(np.tile(CURVE, (16, 1))).rows() if (r["seed"], r["width"]) != (0, 2)]
    found = judge([double_descent()], {"end": Table.of(rows)}, 16)[0]
    assert found.word == "not testable"
    assert "1 of 80 runs are missing" in found.reason


def test_heights_of_logarithms_are_ratios():
    found = height(curves(np.tile(CURVE, (4, 1))), log=True)
    assert found.values == pytest.approx([np.log(2.0)] * 2)
    with pytest.raises(Untestable, match="has no logarithm"):
        height(curves(np.tile(CURVE - 0.2, (4, 1))), log=True)
