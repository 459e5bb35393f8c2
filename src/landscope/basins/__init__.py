"""The volume of the basin around a minimum, in logarithms: rays to where the loss first crosses a level.

`first_crossings` finds where, `basin_volumes` makes volumes of it, with any of the preconditioners, and `loss_along`
gives the loss of a network at many points at once. What a `Volume` says of itself is what it takes to judge it.
"""

from landscope.basins.crossings import Along, Crossings, first_crossings, starting_radius
from landscope.basins.networks import loss_along
from landscope.basins.preconditioning import (
    Preconditioner,
    filter_norms,
    identity,
    inverse_root,
    inverse_root_low_rank,
    scaled,
    whitening,
)
from landscope.basins.prior import log_radial_mass
from landscope.basins.volumes import Volume, basin_volumes, best_preconditioner, log_unit_ball

__all__ = [
    "Along",
    "Crossings",
    "Preconditioner",
    "Volume",
    "basin_volumes",
    "best_preconditioner",
    "filter_norms",
    "first_crossings",
    "identity",
    "inverse_root",
    "inverse_root_low_rank",
    "log_radial_mass",
    "log_unit_ball",
    "loss_along",
    "scaled",
    "starting_radius",
    "whitening",
]
