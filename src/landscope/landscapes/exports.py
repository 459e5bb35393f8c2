"""Landscapes as files for other programs: CSV, VTK for ParaView, NPZ."""

import csv
import io
import math

import numpy as np

from landscope.landscapes.result import MISSING, STATUS, Landscape, to_npz


def csv_text(landscape: Landscape) -> str:
    """One row for each point: coordinates, values, and how it came about; NaN and infinity as ``nan`` and ``inf``.

    Trajectories are not in it: their checkpoints are no points of the grid (`Trajectory.rows` has them).
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*landscape.labels, *landscape.values, "status"])
    grids = np.meshgrid(*landscape.axes, indexing="ij")
    columns = [grid.reshape(-1) for grid in (*grids, *landscape.values.values())]
    for i, status in enumerate(landscape.status.reshape(-1)):
        writer.writerow([*(repr(float(column[i])) for column in columns), STATUS[status]])
    return buffer.getvalue()


def vtk_text(
    landscape: Landscape, name: str = "train_loss", *, log: bool = True, cap: float | int | None = None
) -> str:
    """A plane as a legacy VTK structured grid, for ParaView: the surface of some values, with all of them on it.

    The height is the value, or its decimal logarithm, scaled so that the surface is half as high as the plane is wide.
    VTK has no gaps: where there is no finite value, or it lies beyond the cap, the height is that of the highest point
    and ``status`` or the value itself tells.

    Args:
        landscape: A plane.
        name: Which values make the surface.
        log: Whether the height is the logarithm of a loss, where all of it lies above 0.
        cap: The value above which the surface is cut off; None for the landscape's largest finite one.

    Raises:
        ValueError: for anything but a plane, values that there are not, and a cap without a logarithm.
    """
    if len(landscape.axes) != 2:
        raise ValueError(f"VTK holds surfaces, and a {landscape.kind} is none: write it as .csv or .npz")
    a, b = landscape.axes
    heights = height(landscape, name, log=log, cap=cap)
    finite = heights[np.isfinite(heights)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    wide = max(a[-1] - a[0], b[-1] - b[0])
    z = np.nan_to_num((heights - low) * (0.5 * wide / ((high - low) or 1.0)), nan=0.5 * wide)
    n = landscape.status.size
    lines = [
        "# vtk DataFile Version 3.0",
        f"Landscope: {name.replace('_', ' ')} on a plane",
        "ASCII",
        "DATASET STRUCTURED_GRID",
    ]
    lines += [f"DIMENSIONS {len(a)} {len(b)} 1", f"POINTS {n} double"]
    # VTK counts the first axis fastest.
    heights = z.tolist()
    lines += [f"{x!r} {y!r} {heights[i][j]!r}" for j, y in enumerate(b.tolist()) for i, x in enumerate(a.tolist())]
    lines.append(f"POINT_DATA {n}")
    for name, values in landscape.values.items():
        lines += [f"SCALARS {name} double 1", "LOOKUP_TABLE default"]
        lines += [repr(value) for value in values.T.reshape(-1).tolist()]
    lines += ["SCALARS status int 1", "LOOKUP_TABLE default"]
    lines += [str(int(value)) for value in landscape.status.T.reshape(-1)]
    return "\n".join(lines) + "\n"


def npz_bytes(landscape: Landscape) -> bytes:
    """An NPZ file of axes, values, directions, trajectories and facts, which ``numpy.load`` reads without pickle."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **to_npz(landscape))  # type: ignore[arg-type]
    return buffer.getvalue()


def height(
    landscape: Landscape, name: str = "train_loss", *, log: bool = True, cap: float | int | None = None
) -> np.ndarray:
    """What is drawn: values cut off at a cap, decimal logarithms of losses above 0; NaN where there is none.

    Args:
        landscape: A plane or a line.
        name: Which values.
        log: Whether to take the logarithm.
        cap: The largest value drawn, infinite ones included; None: the largest finite one.

    Raises:
        ValueError: for values that there are not, and a cap without a logarithm where one is taken.
    """
    if name not in landscape.values:
        raise ValueError(f"the landscape has no values {name!r}; it has {', '.join(landscape.values)}")
    if cap is not None and not math.isfinite(cap):
        raise ValueError(f"cap={cap:g} is no height to draw up to: give a finite one, or leave it out")
    if cap is not None and not cap > 0 and is_log(landscape, name, log):
        raise ValueError(f"cap={cap:g} has no logarithm: give a cap above 0, or log=False")
    values = landscape.values[name]
    top = cap if cap is not None else float(np.nanmax(np.where(np.isfinite(values), values, np.nan), initial=-np.inf))
    drawn = np.where(np.isfinite(values), np.minimum(values, top), np.nan)
    drawn = np.where(values == np.inf, np.nan if cap is None else top, drawn)
    return np.log10(drawn) if is_log(landscape, name, log) else drawn


def is_log(landscape: Landscape, name: str = "train_loss", log: bool = True) -> bool:
    """Whether the logarithm is taken: it was asked for, of a loss, all of whose finite values lie above 0."""
    values = landscape.values[name]
    finite = values[np.isfinite(values)]
    return log and name.endswith("_loss") and bool(finite.size) and bool(finite.min() > 0)


def emptiness(landscape: Landscape, name: str = "train_loss") -> str:
    """Why nothing can be drawn of some values; empty where something can."""
    if np.isfinite(landscape.values[name]).any():
        return ""
    if landscape.count(MISSING) == landscape.status.size:
        return (
            f"none of the {landscape.status.size} points is computed yet: there is nothing to draw before the shards "
            "are put together, by the same call without shard="
        )
    return f"no point of the landscape has a finite {name.replace('_', ' ')}: there is nothing to draw"
