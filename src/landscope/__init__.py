"""Landscope: why does this deep network generalize?

Measure trained networks, change how they train, test papers' claims. Names are imported on first use, so that
``import landscope`` costs next to nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from landscope.curvature import hessian as hessian
    from landscope.engine import measure as measure
    from landscope.figures import Figure as Figure
    from landscope.linalg import Eigenpairs as Eigenpairs
    from landscope.linalg import lanczos as lanczos
    from landscope.spec import Call as Call
    from landscope.spec import Cell as Cell
    from landscope.spec import Claim as Claim
    from landscope.spec import Experiment as Experiment
    from landscope.spec import Recipe as Recipe
    from landscope.spec import at as at
    from landscope.spec import call as call
    from landscope.spec import first_below as first_below
    from landscope.spec import key as key
    from landscope.stats import Verdict as Verdict
    from landscope.stats import judge as judge
    from landscope.types import Batches as Batches
    from landscope.types import Estimate as Estimate
    from landscope.types import Operator as Operator
    from landscope.types import Snapshot as Snapshot
    from landscope.types import Table as Table

__version__ = "0.1.0"

_EXPORTS = {
    "curvature": ("hessian",),
    "engine": ("measure",),
    "figures": ("Figure",),
    "linalg": ("Eigenpairs", "lanczos"),
    "spec": ("Call", "Cell", "Claim", "Experiment", "Recipe", "at", "call", "first_below", "key"),
    "stats": ("Verdict", "judge"),
    "types": ("Batches", "Estimate", "Operator", "Snapshot", "Table"),
}
_HOME = {name: module for module, names in _EXPORTS.items() for name in names}
_MODULES = ("data", "experiments", "losses", "measures", "models", "stats", "store", "train")

__all__ = [
    "Batches",
    "Call",
    "Cell",
    "Claim",
    "Eigenpairs",
    "Estimate",
    "Experiment",
    "Figure",
    "Operator",
    "Recipe",
    "Snapshot",
    "Table",
    "Verdict",
    "at",
    "call",
    "first_below",
    "hessian",
    "judge",
    "key",
    "lanczos",
    "measure",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"landscope.{_HOME[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"landscope.{name}")
    raise AttributeError(f"module 'landscope' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_MODULES})
