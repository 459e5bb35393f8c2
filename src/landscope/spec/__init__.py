"""What is to be done, as data: calls not yet made, recipes of runs, cells of measuring, experiments and their claims.

A recipe holds everything that determines a run's weights and nothing else, so its key, a hash of its canonical JSON,
is the run's name in the store. Device, workers and logging are not part of it.
"""

from landscope.spec.calls import (
    OURS,
    At,
    Call,
    Step,
    at,
    call,
    canonical,
    canonical_json,
    derive,
    first_below,
    key,
    resolve,
    step_name,
)
from landscope.spec.chains import lineage, sources
from landscope.spec.experiments import EXPECTATIONS, Claim, Experiment, Grid, Paper, Protocol, Published, planned
from landscope.spec.recipes import Cell, Recipe, from_canonical

__all__ = [
    "EXPECTATIONS",
    "OURS",
    "At",
    "Call",
    "Cell",
    "Claim",
    "Experiment",
    "Grid",
    "Paper",
    "Protocol",
    "Published",
    "Recipe",
    "Step",
    "at",
    "call",
    "canonical",
    "canonical_json",
    "derive",
    "first_below",
    "from_canonical",
    "key",
    "lineage",
    "planned",
    "resolve",
    "sources",
    "step_name",
]
