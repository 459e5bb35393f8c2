"""A store with a run in it, and whether two values are the same."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from harness import MEASURE, cell, recipe, truth

from landscope import store
from landscope.spec import Call, key
from landscope.types import Estimate

OTHER = Call("landscope.measures.flatness", (("samples", 3),))
RECORD = {"status": "done", "steps": 100, "gradient_evaluations": 800}
ROWS = [
    {"step": 0, "learning_rate": 0.1},
    {"step": 20, "train_loss": 0.5},
    {"step": 40, "train_loss": math.nan},
    {"step": 60, "train_loss": 0.05, "gradient_evaluations": 480},
    {"step": 80, "train_loss": 0.04},
]


def made(root: Path, index: int = 0, *, record: dict[str, Any] = RECORD, measured: bool = True) -> str:
    """A finished run, with its values at step 100."""
    own = recipe(index)
    run = store.write_spec(root, own)
    weights = {"w": np.random.default_rng(index).normal(size=30)}
    rows = [*ROWS, {"step": 100, "seed": index}]
    environment = {"seconds": 1.5}
    states = {0: weights, 100: weights}
    store.finish_run(root, run, record=record, history=rows, states=states, environment=environment)
    if measured:
        store.write_values(root, cell(own), {key(MEASURE): truth(index)})
    return run


def same(a: Any, b: Any) -> bool:
    """Equal to the bit, NaN included."""
    if isinstance(a, Estimate):
        fields = (a.mean, a.sem, a.n, a.draws, a.df) == (b.mean, b.sem, b.n, b.draws, b.df)
        if a.samples is None or b.samples is None:
            return fields and a.samples is b.samples
        return fields and same(a.samples, b.samples)
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
