"""Landscope: why does this deep network generalize?

Measure trained networks, change how they train, test papers' claims. Names are imported on first use, so that
``import landscope`` costs next to nothing.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

# Intel's MKL, PyTorch's matrix products on x86, otherwise rounds by where in memory operands lie, on some processors:
# a member of a population would not come out the same to the bit in every company. Read at the process's first product;
# no cost that could be measured.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

if TYPE_CHECKING:
    from landscope.curvature import fisher as fisher
    from landscope.curvature import flatten as flatten
    from landscope.curvature import ggn as ggn
    from landscope.curvature import hessian as hessian
    from landscope.engine import measure as measure
    from landscope.figures import Figure as Figure
    from landscope.kernels import infinite_ntk as infinite_ntk
    from landscope.kernels import ntk as ntk
    from landscope.landscapes import Directions as Directions
    from landscope.landscapes import Landscape as Landscape
    from landscope.landscapes import interpolation as interpolation
    from landscope.landscapes import line as line
    from landscope.landscapes import plane as plane
    from landscope.landscapes import ray as ray
    from landscope.linalg import BlockSpectrum as BlockSpectrum
    from landscope.linalg import Density as Density
    from landscope.linalg import Diagonal as Diagonal
    from landscope.linalg import Progress as Progress
    from landscope.linalg import Spectrum as Spectrum
    from landscope.linalg import absolute_trace as absolute_trace
    from landscope.linalg import block_spectra as block_spectra
    from landscope.linalg import data_error as data_error
    from landscope.linalg import diagonal as diagonal
    from landscope.linalg import log_determinant as log_determinant
    from landscope.linalg import spectrum as spectrum
    from landscope.linalg import trace as trace
    from landscope.linalg import trace_squared as trace_squared
    from landscope.linalg import trace_squared_minibatch as trace_squared_minibatch
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
    from landscope.tracking import Monitor as Monitor
    from landscope.tracking import lightning_callback as lightning_callback
    from landscope.tracking import monitor as monitor
    from landscope.tracking import trainer_callback as trainer_callback
    from landscope.types import Batches as Batches
    from landscope.types import Estimate as Estimate
    from landscope.types import Operator as Operator
    from landscope.types import Snapshot as Snapshot
    from landscope.types import Table as Table

__version__ = "0.1.0"

_EXPORTS = {
    "curvature": ("fisher", "flatten", "ggn", "hessian"),
    "engine": ("measure",),
    "figures": ("Figure",),
    "kernels": ("infinite_ntk", "ntk"),
    "landscapes": ("Directions", "Landscape", "interpolation", "line", "plane", "ray"),
    "linalg": (
        "BlockSpectrum",
        "Density",
        "Diagonal",
        "Progress",
        "Spectrum",
        "absolute_trace",
        "block_spectra",
        "data_error",
        "diagonal",
        "log_determinant",
        "spectrum",
        "trace",
        "trace_squared",
        "trace_squared_minibatch",
    ),
    "spec": ("Call", "Cell", "Claim", "Experiment", "Recipe", "at", "call", "first_below", "key"),
    "stats": ("Verdict", "judge"),
    "tracking": ("Monitor", "lightning_callback", "monitor", "trainer_callback"),
    "types": ("Batches", "Estimate", "Operator", "Snapshot", "Table"),
}
_HOME = {name: module for module, names in _EXPORTS.items() for name in names}
_MODULES = (
    *(
        "curvature",
        "data",
        "experiments",
        "kernels",
        "landscapes",
        "layers",
        "linalg",
        "losses",
        "measures",
        "models",
        "norms",
        "optimizers",
    ),
    *("population", "pruning", "ranking", "regularizers", "report", "stats", "store", "tracking", "train"),
)

__all__ = [
    "Batches",
    "BlockSpectrum",
    "Call",
    "Cell",
    "Claim",
    "Density",
    "Diagonal",
    "Directions",
    "Estimate",
    "Experiment",
    "Figure",
    "Landscape",
    "Monitor",
    "Operator",
    "Progress",
    "Recipe",
    "Snapshot",
    "Spectrum",
    "Table",
    "Verdict",
    "absolute_trace",
    "at",
    "block_spectra",
    "call",
    "data_error",
    "diagonal",
    "first_below",
    "fisher",
    "flatten",
    "ggn",
    "hessian",
    "infinite_ntk",
    "interpolation",
    "judge",
    "key",
    "lightning_callback",
    "line",
    "log_determinant",
    "measure",
    "monitor",
    "ntk",
    "plane",
    "ray",
    "spectrum",
    "trace",
    "trace_squared",
    "trace_squared_minibatch",
    "trainer_callback",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"landscope.{_HOME[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"landscope.{name}")
    raise AttributeError(f"module 'landscope' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_MODULES})
