"""From coarse to fine: points are computed where interpolation would not do."""

from collections.abc import Callable

import numpy as np

from landscope.landscapes.result import INTERPOLATED

Compute = Callable[[np.ndarray], dict[str, np.ndarray]]  # places [m, axes] -> values [m] by name, and their status
COARSEST, LEAST = 4, 9  # every so many-th point first; axes shorter than that have no coarse grid
FLOOR = 1e-3  # of the median loss: below it differences of the logarithm are of no interest


def refined(compute: Compute, shape: tuple[int, ...], tolerance: float, cap: float | None) -> dict[str, np.ndarray]:
    """Values on a grid, computed at every fourth point, and between where the loss bends; else interpolated.

    A cell of the grid is refined where at one of its corners the logarithm of the training loss is off the straight
    line between its neighbours by more than 4 · tolerance: linear interpolation half-way is then off by a quarter of
    that. A cell with a corner where some value is not finite, or a loss lies beyond the cap and is known no further, is
    refined; one all of whose corners have training losses beyond the cap is not. What is narrower than four points of
    the grid and shows at none of them is not found.

    Args:
        compute: Evaluates points, given by their places on the axes.
        shape: The grid's, one or two axes.
        tolerance: The error of an interpolated loss, relative.
        cap: The loss beyond which nothing is of interest, or None.
    """
    stride = COARSEST if min(shape) >= LEAST else 1
    ticks = [_ticks(n, stride) for n in shape]
    found: dict[str, np.ndarray] = {}
    _fill(found, compute, _places(ticks), shape)
    while stride > 1:
        here = {name: values[np.ix_(*ticks)] for name, values in found.items() if name != "status"}
        bent = _bent(here, ticks, tolerance, np.inf if cap is None else cap)
        stride //= 2
        finer = [_ticks(n, stride) for n in shape]
        wanted = _inside(bent, ticks, finer)
        for name in found:
            if name != "status":
                found[name][np.ix_(*finer)] = _interpolated(found[name], ticks, finer, name.endswith("_loss"))
        known = found["status"][np.ix_(*finer)] != INTERPOLATED
        places = _places(finer).reshape(*known.shape, len(shape))
        _fill(found, compute, places[wanted & ~known], shape)
        ticks = finer
    return found


def _ticks(n: int, stride: int) -> np.ndarray:
    return np.unique([*range(0, n, stride), n - 1])


def _places(ticks: list[np.ndarray]) -> np.ndarray:
    return np.stack(np.meshgrid(*ticks, indexing="ij"), -1).reshape(-1, len(ticks))


def _fill(found: dict[str, np.ndarray], compute: Compute, places: np.ndarray, shape: tuple[int, ...]) -> None:
    if not len(places):
        return
    values = compute(places)
    for name, array in values.items():
        blank = np.full(shape, INTERPOLATED, np.uint8) if name == "status" else np.full(shape, np.nan)
        found.setdefault(name, blank)[tuple(places.T)] = array


def _height(loss: np.ndarray) -> np.ndarray:
    """The logarithm of the loss; where it may be negative, the loss in units of its spread."""
    finite = loss[np.isfinite(loss)]
    if not finite.size:
        return loss
    if finite.min() < 0:
        return loss / (np.abs(finite).mean() or 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(loss + FLOOR * np.median(finite))


def _bent(values: dict[str, np.ndarray], ticks: list[np.ndarray], tolerance: float, cap: float) -> np.ndarray:
    """Which cells between the ticks are to be refined."""
    height = _height(values["train_loss"])
    off = np.zeros_like(height)
    with np.errstate(invalid="ignore"):
        for axis, t in enumerate(ticks):
            h = np.moveaxis(height, axis, 0)
            share = ((t[1:-1] - t[:-2]) / (t[2:] - t[:-2])).reshape(-1, *[1] * (h.ndim - 1))
            line = h[:-2] * (1 - share) + h[2:] * share
            inner = np.moveaxis(off, axis, 0)[1:-1]
            np.maximum(inner, np.abs(h[1:-1] - line), out=inner)
    flagged = ~(off <= 4 * tolerance) | ~np.isfinite(height)  # NaN counts as bent
    for name, array in values.items():
        flagged |= ~np.isfinite(array) | (array > cap if name.endswith("_loss") else False)
    return _any_corner(flagged) & _any_corner(~(values["train_loss"] > cap))


def _any_corner(nodes: np.ndarray) -> np.ndarray:
    for axis in range(nodes.ndim):
        n = nodes.shape[axis]
        nodes = nodes.take(range(n - 1), axis) | nodes.take(range(1, n), axis)
    return nodes


def _inside(bent: np.ndarray, ticks: list[np.ndarray], finer: list[np.ndarray]) -> np.ndarray:
    """Which finer nodes lie in (or on the edge of) a bent cell."""
    found = np.zeros(tuple(map(len, finer)), bool)
    for cell in np.argwhere(bent):
        spans = [
            slice(int(np.searchsorted(f, t[c])), int(np.searchsorted(f, t[c + 1])) + 1)
            for f, t, c in zip(finer, ticks, cell, strict=True)
        ]
        found[tuple(spans)] = True
    return found


def _interpolated(values: np.ndarray, ticks: list[np.ndarray], finer: list[np.ndarray], log: bool) -> np.ndarray:
    """Linear between the ticks along each axis, of the logarithm where all is above 0."""
    array = values[np.ix_(*ticks)]
    finite = array[np.isfinite(array)]
    log = log and bool(finite.size) and bool(finite.min() > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        array = np.log(array) if log else array
        for axis, (t, f) in enumerate(zip(ticks, finer, strict=True)):
            rows = np.moveaxis(array, axis, -1)
            made = np.stack([np.interp(f, t, row) for row in rows.reshape(-1, len(t))])
            array = np.moveaxis(made.reshape(*rows.shape[:-1], len(f)), -1, axis)
        return np.exp(array) if log else array
