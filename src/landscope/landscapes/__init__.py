"""Loss landscapes: lines, planes, rays, paths between networks, and what lies on them."""

from landscope.landscapes.axes import (
    Directions,
    axes_between,
    curvature_axes,
    gradient_axis,
    random_axes,
    trajectory_axes,
)
from landscope.landscapes.boundaries import Boundaries, decision_boundaries, embedding, weights_of, wiggle
from landscope.landscapes.curves import curve
from landscope.landscapes.grids import interpolation, line, plane, ray
from landscope.landscapes.result import COMPUTED, INTERPOLATED, MISSING, STATUS, STOPPED, Landscape, Trajectory, load
from landscope.landscapes.settings import Settings
from landscope.landscapes.trajectories import coordinates, trajectory

__all__ = [
    "COMPUTED",
    "INTERPOLATED",
    "MISSING",
    "STATUS",
    "STOPPED",
    "Boundaries",
    "Directions",
    "Landscape",
    "Settings",
    "Trajectory",
    "axes_between",
    "coordinates",
    "curvature_axes",
    "curve",
    "decision_boundaries",
    "embedding",
    "gradient_axis",
    "interpolation",
    "line",
    "load",
    "plane",
    "random_axes",
    "ray",
    "trajectory",
    "trajectory_axes",
    "weights_of",
    "wiggle",
]
