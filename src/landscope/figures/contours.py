"""Lines of equal height on a grid, as one series of points with gaps."""

import numpy as np

from landscope.figures.slots import Number


def contour(x: np.ndarray, y: np.ndarray, z: np.ndarray, level: Number) -> tuple[np.ndarray, np.ndarray]:
    """Where a function on a grid has a value, as lines one after the other with NaN between them.

    Each cell is cut into two triangles, in which the function is taken to be linear: the lines are unambiguous, and
    each closes, or ends at the edge of the grid or at a value that is not finite.

    Args:
        x: The grid's first coordinates, ascending, shape ``[n]``.
        y: Its second ones, shape ``[m]``.
        z: The function, ``z[i, j]`` at ``(x[i], y[j])``; a value that equals the level counts as above it.
        level: The height.

    Returns:
        First and second coordinates, of one length; empty where the level is nowhere crossed.

    Raises:
        ValueError: for shapes that do not fit.

    >>> along, across = contour(np.arange(2.0), np.arange(2.0), np.array([[0.0, 0.0], [1.0, 1.0]]), 0.25)
    >>> along.tolist(), sorted(across.tolist())
    ([0.25, 0.25, 0.25], [0.0, 0.25, 1.0])
    """
    if z.shape != (len(x), len(y)):
        raise ValueError(f"a grid of {len(x)} by {len(y)} points has as many values, not {z.shape}")
    place, flat = np.arange(z.size).reshape(z.shape), z.reshape(-1).astype(float)
    a, b, c, d = (part.reshape(-1) for part in (place[:-1, :-1], place[1:, :-1], place[:-1, 1:], place[1:, 1:]))
    triangles = np.concatenate([np.stack([a, b, d], 1), np.stack([a, c, d], 1)])
    triangles = triangles[np.isfinite(flat[triangles]).all(1)]
    edges = np.stack([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [0, 2]]], 1)  # [triangles, 3, 2]
    above = flat >= level
    crossed = above[edges[..., 0]] != above[edges[..., 1]]  # two edges of a triangle or none
    ends, which = np.unique(edges[crossed], axis=0, return_inverse=True)
    path = np.array(_chained(which.reshape(-1, 2).tolist()), dtype=int)
    low, high = ends[:, 0], ends[:, 1]
    share = (level - flat[low]) / (flat[high] - flat[low])
    points = []
    for axis, start, end in ((x, low // len(y), high // len(y)), (y, low % len(y), high % len(y))):
        values = np.asarray(axis, float)
        points.append(np.append(values[start] + share * (values[end] - values[start]), np.nan)[path])
    return points[0], points[1]


def _chained(segments: list[list[int]]) -> list[int]:
    """Segments between numbered points, put end to end; −1 between one line and the next."""
    beside: dict[int, list[int]] = {}
    for first, second in segments:
        beside.setdefault(first, []).append(second)
        beside.setdefault(second, []).append(first)
    path: list[int] = []
    for start in sorted(beside, key=lambda point: len(beside[point])):  # open ends come before closed lines
        if not beside[start]:
            continue
        path += [start] if not path else [-1, start]
        while beside[path[-1]]:
            here = path[-1]
            there = beside[here].pop()
            beside[there].remove(here)
            path.append(there)
    return path
