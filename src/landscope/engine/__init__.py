"""From a cell to its values: the only package that knows training, measuring and the store.

`work` is what a sweep's workers call: it trains one run unless that is done, then measures what is missing.
"""

from landscope.engine.measuring import find_measure, measure, measure_cell, measured, missing, snapshot
from landscope.engine.training import (
    Control,
    Interrupted,
    curve_steps,
    environment,
    load_at,
    load_data,
    sized,
    train_run,
)
from landscope.engine.work import finished, payload, work

__all__ = [
    "Control",
    "Interrupted",
    "curve_steps",
    "environment",
    "find_measure",
    "finished",
    "load_at",
    "load_data",
    "measure",
    "measure_cell",
    "measured",
    "missing",
    "payload",
    "sized",
    "snapshot",
    "train_run",
    "work",
]
