"""Loss landscapes: lines, planes, rays, paths between networks, and what lies on them."""

from landscope.landscapes.axes import (
    Directions,
    axes_between,
    curvature_axes,
    gradient_axis,
    random_axes,
    trajectory_axes,
)
from landscope.landscapes.grids import interpolation, line, plane, ray
from landscope.landscapes.result import COMPUTED, INTERPOLATED, MISSING, STATUS, STOPPED, Landscape, Trajectory, load
from landscope.landscapes.settings import Settings

__all__ = [
    "COMPUTED",
    "INTERPOLATED",
    "MISSING",
    "STATUS",
    "STOPPED",
    "Directions",
    "Landscape",
    "Settings",
    "Trajectory",
    "axes_between",
    "curvature_axes",
    "gradient_axis",
    "interpolation",
    "line",
    "load",
    "plane",
    "random_axes",
    "ray",
    "trajectory_axes",
]
