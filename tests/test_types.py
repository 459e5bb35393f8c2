"""Estimates against SciPy's tests, batches, tables, and what notebooks show."""

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from landscope.types import Batches, Estimate, Snapshot, Table

HOSTILE = "<script>alert(1)</script> & \"quoted\" 'too'"


def draws(seed: int, n: int, mean: float = 0.0, sd: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, sd, n)


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
@pytest.mark.parametrize("n", [2, 5, 20])
def test_the_interval_is_students(n, level):
    x = draws(n, n)
    expected = scipy.stats.ttest_1samp(x, 0.0).confidence_interval(level)
    assert Estimate.of(x).interval(level) == pytest.approx((expected.low, expected.high), rel=1e-12)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_independent_differences_are_welchs(seed):
    x, y = draws(seed, 7, 1.0, 0.3), draws(seed + 10, 12, 0.5, 2.0)
    difference = Estimate.of(x) - Estimate.of(y)
    expected: Any = scipy.stats.ttest_ind(x, y, equal_var=False)
    assert difference.freedom == pytest.approx(expected.df, rel=1e-12)
    low, high = expected.confidence_interval(0.95)
    assert difference.interval() == pytest.approx((low, high), rel=1e-12)
    assert difference.mean / difference.sem == pytest.approx(expected.statistic, rel=1e-12)
    assert (Estimate.of(x) + Estimate.of(y)).sem == pytest.approx(difference.sem, rel=1e-12)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_shared_draws_are_paired(seed):
    x = draws(seed, 9)
    y = x + draws(seed + 10, 9, 0.2, 0.1)
    difference = Estimate.of(x, "probes") - Estimate.of(y, "probes")
    expected = scipy.stats.ttest_rel(x, y).confidence_interval(0.95)
    assert difference.interval() == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert difference.samples == pytest.approx(x - y, abs=1e-12)


def jackknife(function, *columns: np.ndarray) -> tuple[float, float]:
    """Plug-in estimate and standard error by leaving one sample out, written as in the textbook."""
    n = len(columns[0])
    left_out = np.array([function(*(np.delete(c, i).mean() for c in columns)) for i in range(n)])
    spread = math.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum())
    return function(*(c.mean() for c in columns)), spread


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: a / b,
        lambda a, b: a * b,
        lambda a, b: (a - b) / b,  # percent of the base: the denominator stands in the numerator, too
        lambda a, b: (a - 1.0) / (2.0 * b),  # constants must not lose the draws
        lambda a, b: 1.0 / (a * b) - 3.0,
    ],
    ids=["ratio", "product", "relative difference", "with constants", "chained"],
)
def test_formulas_over_shared_draws_are_the_jackknife_of_the_whole(function):
    x, y = draws(1, 10, 5.0), draws(2, 10, 8.0)
    result = function(Estimate.of(x, "d"), Estimate.of(y, "d"))
    assert (result.mean, result.sem) == pytest.approx(jackknife(function, x, y), rel=1e-9)
    assert result.draws == "d"


def test_constants_shift_and_scale_exactly():
    x = draws(1, 6)
    e = Estimate.of(x, "d")
    assert (3 - 2 * e + 1).sem == pytest.approx(2 * e.sem, rel=1e-12)
    assert (e / 4).interval() == pytest.approx(tuple(v / 4 for v in e.interval()), rel=1e-12)
    assert (-e).mean == -e.mean
    assert (np.float64(2) * e).mean == pytest.approx(2 * e.mean)
    summary = Estimate(2.0, 0.1, 5)
    assert (10 * summary).interval() == pytest.approx(tuple(10 * v for v in summary.interval()), rel=1e-12)


def test_the_delta_method_for_independent_ratios():
    a, b = Estimate(10.0, 0.1, 50), Estimate(4.0, 0.02, 50)
    assert (a / b).sem == pytest.approx(2.5 * math.hypot(0.1 / 10, 0.02 / 4), rel=1e-12)
    assert (a * b).sem == pytest.approx(math.sqrt((4 * 0.1) ** 2 + (10 * 0.02) ** 2 + (0.1 * 0.02) ** 2), rel=1e-12)


def test_a_product_of_two_zeros_is_not_exact():
    product = Estimate(0.0, 1.0, 10) * Estimate(0.0, 1.0, 10)
    assert product.sem == 1.0


def test_shared_draws_without_samples_are_refused():
    known, summary = Estimate.of([1.0, 2.0, 3.0], "d"), Estimate(2.0, 0.5, 3, draws="d")
    for combine in (lambda: known - summary, lambda: summary / known, lambda: (summary * 2.0) - known):
        with pytest.raises(ValueError, match="not independent"):
            combine()


def test_draws_are_remembered_through_mixtures():
    a, b, c = (Estimate.of(draws(i, 5), name) for i, name in enumerate("abb"))
    mixed = a + b
    with pytest.raises(ValueError, match="share the draws 'b'"):
        _ = mixed - c
    assert (mixed - Estimate.of(draws(9, 5), "other")).sem > mixed.sem


def test_an_unknown_error_leaves_no_interval():
    unknown, known = Estimate(1.0, 0.1), Estimate.of(draws(1, 10))
    with pytest.raises(ValueError, match="no interval"):
        (unknown + known).interval()


def test_exact_numbers():
    assert Estimate(2.0).interval() == (2.0, 2.0)
    assert repr(Estimate(2.0) * Estimate(3.0)) == "6 (exact)"
    assert "exact" not in repr(Estimate.of([1.0, 1.0, 1.0])), "equal samples are not an exact value"


@pytest.mark.parametrize(
    "make",
    [
        lambda: Estimate.of([1.0]),
        lambda: Estimate.of([1.0, math.nan]),
        lambda: Estimate(1.0, -1.0),
        lambda: Estimate(1.0, math.nan),
        lambda: Estimate(1.0, 1.0, 3, np.ones(2)),
        lambda: Estimate(1.0, 1.0, 3).interval(1.0),
        lambda: Estimate(1.0, 0.1, 3) / 0.0,
        lambda: 1.0 / Estimate.of([0.0, 1.0, -1.0], "d"),
        lambda: 1.0 / Estimate.of([0.0, 0.0, 3.0], "d"),
    ],
)
def test_what_is_no_estimate_is_refused(make):
    with pytest.raises(ValueError, match=r"\w+ \w+"):
        make()


def test_samples_are_a_copy():
    x = np.array([1.0, 2.0, 3.0])
    e = Estimate.of(x)
    x[:] = 0
    assert e.samples is not None
    assert e.samples.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("name", "make", "truth"),
    [
        ("mean", lambda x, y: Estimate.of(x), 5.0),
        ("difference", lambda x, y: Estimate.of(x) - Estimate.of(y), 1.0),
        ("paired difference", lambda x, y: Estimate.of(x, "d") - Estimate.of(y, "d"), 1.0),
        ("ratio", lambda x, y: Estimate.of(x) / Estimate.of(y), 1.25),
        ("paired ratio", lambda x, y: Estimate.of(x, "d") / Estimate.of(y, "d"), 1.25),
        ("product", lambda x, y: Estimate.of(x) * Estimate.of(y), 20.0),
    ],
)
def test_intervals_cover(name, make, truth):
    """1,000 data sets of 8 samples: a true 95 % is met within three standard errors of the simulation."""
    rng = np.random.default_rng(1)
    low, high = zip(*(make(rng.normal(5, 0.5, 8), rng.normal(4, 0.4, 8)).interval() for _ in range(1000)), strict=True)
    covered = np.mean((np.array(low) <= truth) & (truth <= np.array(high)))
    assert covered == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 1000)), name


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20))
def test_any_samples_give_an_interval_around_their_mean(samples):
    e = Estimate.of(samples)
    low, high = e.interval()
    assert low <= e.mean <= high
    assert e.mean == pytest.approx(float(np.mean(samples)))


# --- batches -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "size", "sizes"), [(5, 2, [2, 2, 1]), (4, 2, [2, 2]), (3, 10, [3]), (1, 1, [1])])
def test_batches_hold_every_sample_once_in_order(n, size, sizes):
    batches = Batches(torch.arange(n).float()[:, None], torch.arange(n), size)
    for _ in range(2):
        seen = list(batches)
        assert [len(x) for x, _ in seen] == sizes
        assert torch.equal(torch.cat([y for _, y in seen]), torch.arange(n))
        assert torch.equal(torch.cat([x for x, _ in seen])[:, 0], torch.arange(n).float())
    assert len(batches) == len(sizes)
    assert batches.n == n


@pytest.mark.parametrize(
    ("inputs", "targets", "size", "message"),
    [(2, 3, 1, "2 inputs but 3 targets"), (0, 0, 1, "empty"), (2, 2, 0, "at least one sample")],
)
def test_batches_refuse_what_cannot_be_measured_on(inputs, targets, size, message):
    with pytest.raises(ValueError, match=message):
        Batches(torch.zeros(inputs, 1), torch.zeros(targets), size)


def test_batches_describe_themselves_without_printing_the_data():
    assert (
        repr(Batches(torch.zeros(3000, 3, 8, 8), torch.zeros(3000)))
        == "Batches of 3,000 samples (3×8×8), 2,048 at a time"
    )


# --- tables --------------------------------------------------------------------------------------------------------


def test_tables_fill_select_and_list():
    table = Table.of([{"a": 1, "b": "x"}, {"a": 2}, {"a": 1, "c": 0.5}])
    assert len(table) == 3
    assert table["b"] == ("x", None, None)
    assert table.where(a=1).rows() == [{"a": 1, "b": "x", "c": None}, {"a": 1, "b": None, "c": 0.5}]
    assert len(table.where(a={1, 2}, c=None)) == 2
    assert table.where(a=3).rows() == []
    assert table.distinct("a") == [1, 2]
    assert table.distinct("b") == ["x"]
    assert Table.of([]).rows() == []
    assert Table.of(table.rows()).columns == table.columns


def test_tables_refuse_unknown_and_unequal_columns():
    with pytest.raises(KeyError, match="no column 'lr'; there are a"):
        Table.of([{"a": 1}]).where(lr=1)
    with pytest.raises(ValueError, match="of one length"):
        Table({"a": (1,), "b": ()})


# --- notebooks -----------------------------------------------------------------------------------------------------


def snapshot() -> Snapshot:
    hostile = type(HOSTILE, (torch.nn.Linear,), {})
    data = Batches(torch.zeros(3, 2), torch.zeros(3))
    return Snapshot(hostile(2, 1), {}, None, None, data, None, None, 1200, 0)


@pytest.mark.parametrize(
    "shown",
    [
        Estimate.of(draws(1, 100), HOSTILE),
        Estimate(1.0),
        Estimate(1.0, 0.5),
        snapshot(),
        Table.of([{HOSTILE: HOSTILE, "x": 1.5}] * 3),
        Table.of([{f"{HOSTILE * 20}{i}": "&" * 1000 for i in range(100)}] * 1000),
        Table.of([{f"λ{i}": "λ" * 1000 for i in range(25)}] * 40),
        Table.of([]),
    ],
    ids=["estimate", "exact", "unknown", "snapshot", "table", "huge table", "wide characters", "no table"],
)
def test_notebooks_show_escaped_and_short_html(shown):
    page = shown._repr_html_()
    assert "<script" not in page
    assert len(page.encode()) <= 20_000
    assert repr(shown)


def test_a_cut_table_says_so():
    page = Table.of([{str(i): i for i in range(50)}] * 100)._repr_html_()
    assert "30 of 100 rows" in page
    assert "20 of 50 columns" in page
    assert "caption" not in Table.of([{"a": 1}])._repr_html_()


def test_a_snapshot_says_what_it_is():
    assert "(3 parameters) at step 1,200, 3 training samples" in repr(snapshot())
