"""What experiments draw again and again: every seed with mean and interval, and reference lines."""

import math
from collections.abc import Sequence

import numpy as np

from landscope.figures.figure import Series
from landscope.figures.slots import REFERENCE, Number


def mean_interval(
    values: Sequence[Number] | np.ndarray, *, log: bool = False, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over the first axis with its Student t interval, each of the shape of one row.

    Args:
        values: Shape ``[n, ...]``, one row per seed. Rows that are NaN throughout (diverged) are left out; elsewhere a
            NaN makes the mean NaN, because the mean of those that remain would be of another population.
        log: Whether to take mean and interval of the logarithms (a geometric mean): for log axes. A value that is not
            above 0 then makes the mean NaN.
        confidence: The level of the interval; its ends are NaN where n is 1.

    >>> mean, low, high = mean_interval([1.0, 2.0, 3.0])
    >>> f"{mean:.2f} {low:.2f} {high:.2f}"
    '2.00 -0.48 4.48'
    """
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence level lies between 0 and 1, not {confidence}")
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 0 or not len(array):
        raise ValueError(f"values are of shape [n, ...] with n of at least 1, not {array.shape}")
    kept = array[~np.isnan(array.reshape(len(array), -1)).all(axis=1)]
    if not len(kept):
        nothing = np.full(array.shape[1:], np.nan)
        return nothing, nothing, nothing
    if log:
        kept = np.log(np.where(kept > 0, kept, np.nan))
    mean, n = kept.mean(axis=0), len(kept)
    half = np.full(np.shape(mean), np.nan)
    if n > 1:
        from scipy.special import stdtrit

        half = stdtrit(n - 1, 0.5 + confidence / 2) * kept.std(axis=0, ddof=1) / math.sqrt(n)
    ends = (mean, mean - half, mean + half)
    shown = [np.asarray(np.exp(end) if log else end) for end in ends]
    return shown[0], shown[1], shown[2]


def curves(
    name: str,
    x: Sequence[Number] | np.ndarray,
    ys: Sequence[Sequence[Number]] | np.ndarray,
    slot: int = 0,
    *,
    log: bool = False,
    confidence: float = 0.95,
    names: Sequence[object] | None = None,
) -> tuple[Series, ...]:
    """Curves of several seeds: each one faint, their mean with a pointwise t band on top.

    Args:
        name: What the curves are of (an arm: ``"batch 8"``).
        x: Shape ``[points]``, shared by all seeds.
        ys: Shape ``[seeds, points]``; NaN where a seed has no value.
        slot: Colour and marker.
        log: For a log y axis: geometric mean, and values that are not above 0 are left out.
        confidence: The level of the band, at each point.
        names: A name for each seed; 0, 1, … if not given.

    Returns:
        The single curves, then the mean. One seed is a plain line without a band.
    """
    array = np.atleast_2d(np.asarray(ys, dtype=np.float64))
    if log:
        array = np.where(array > 0, array, np.nan)
    labels = [str(n) for n in (names if names is not None else range(len(array)))]
    if len(labels) != len(array):
        raise ValueError(f"{name!r}: {len(array)} curves but {len(labels)} names")
    if len(array) == 1:
        return (Series(name, np.asarray(x), array[0], slot=slot),)
    mean, low, high = mean_interval(array, log=log, confidence=confidence)
    single = tuple(
        Series(f"{name}, seed {label}", np.asarray(x), y, slot=slot, group=name, faint=True)
        for label, y in zip(labels, array, strict=True)
    )
    return (*single, Series(f"{name}, mean", np.asarray(x), mean, low, high, slot=slot, group=name))


def by_level(
    name: str,
    level: Sequence[Number] | np.ndarray,
    value: Sequence[Number] | np.ndarray,
    slot: int = 0,
    *,
    log: bool = False,
    confidence: float = 0.95,
    hover: Sequence[str] | None = None,
) -> tuple[Series, Series]:
    """Every seed's value against a numeric level, and the mean at each level with its t interval.

    Args:
        name: What is measured (``"published"``).
        level: Shape ``[n]``: the level of each run (its batch size).
        value: Shape ``[n]``: its value; NaN where there is none.
        slot: Colour and marker.
        log: For a log y axis: geometric mean, and values that are not above 0 are left out.
        confidence: The level of the interval of the mean.
        hover: A text for every run (its seed and key).

    Returns:
        The points, then the means joined by a line.
    """
    levels, values = np.asarray(level, dtype=np.float64), np.asarray(value, dtype=np.float64)
    if log:
        values = np.where(values > 0, values, np.nan)
    different = np.unique(levels[np.isfinite(levels)])
    summary = [mean_interval(values[levels == at], log=log, confidence=confidence) for at in different]
    mean, low, high = (np.array([float(s[i]) for s in summary]) for i in range(3))
    texts = None if hover is None else tuple(hover)
    points = Series(f"{name}, each seed", levels, values, mode="points", slot=slot, group=name, faint=True, hover=texts)
    return points, Series(f"{name}, mean", different, mean, low, high, "line+points", slot, group=name)


def horizontal(name: str, y: Number, x: tuple[Number, Number]) -> Series:
    """A horizontal reference line (a threshold, a published number) from ``x[0]`` to ``x[1]``."""
    return Series(name, np.array(x), np.array([y, y]), slot=REFERENCE)


def vertical(name: str, x: Number, y: tuple[Number, Number]) -> Series:
    """A vertical reference line from ``y[0]`` to ``y[1]``."""
    return Series(name, np.array([x, x]), np.array(y), slot=REFERENCE)
