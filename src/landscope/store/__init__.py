"""The store: one folder per run, named by the run's key; its files are the truth and the only coordination.

    <run key>/spec.json               the recipe: its bytes are the canonical JSON whose hash is the folder's name
    <run key>/run.json                published last: the run is finished; SHA-256 of what belongs to it
    <run key>/history.jsonl           what was recorded while training, a line each
    <run key>/weights.safetensors     the states that were kept
    <run key>/environment.json        versions, host, seconds: the only file of a run that two machines may differ in
    <run key>/values/<cell key>.json  what was measured on one state, big arrays beside it
    <run key>/partial.safetensors     the checkpoint of a run that is not finished
    plans/<key>/                      what was planned and claimed, as it stood before the first run; in its
                                      environment.json, which may differ as a run's may, what its sittings took
    .cache, .working                  disposable

Every reader verifies what it reads. A file that fails is treated as absent by whoever can compute it anew (the same
command does), and named by `verify`. Nothing depends on locks, clocks or mtimes.
"""

from landscope.files import Damaged, StoreFull, publish
from landscope.store.cells import values, write_values
from landscope.store.database import sql, table
from landscope.store.declared import add_sitting, declare, plans, sittings
from landscope.store.tables import resolve_step, results, settings
from landscope.store.training import (
    drop_partial,
    environment,
    finish_run,
    history,
    load_partial,
    load_state,
    read_spec,
    run_record,
    runs,
    save_partial,
    states,
    write_spec,
)
from landscope.store.upkeep import clean, verify, writable

__all__ = [
    "Damaged",
    "StoreFull",
    "add_sitting",
    "clean",
    "declare",
    "drop_partial",
    "environment",
    "finish_run",
    "history",
    "load_partial",
    "load_state",
    "plans",
    "publish",
    "read_spec",
    "resolve_step",
    "results",
    "run_record",
    "runs",
    "save_partial",
    "settings",
    "sittings",
    "sql",
    "states",
    "table",
    "values",
    "verify",
    "writable",
    "write_spec",
    "write_values",
]
