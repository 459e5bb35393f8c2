"""Small tables, claims and verdicts with answers known beforehand."""

from typing import Any

import numpy as np
import scipy.stats
from hypothesis import strategies as st

from landscope.spec import Claim, call
from landscope.stats import (
    Units,
    Verdict,
    difference,
    judge,
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
