"""A landscape as data: axes, values, directions, and what was done."""

import html
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from landscope.files import Damaged, publish, read_tensors, tensor_bytes
from landscope.landscapes.axes import Directions

COMPUTED, STOPPED, INTERPOLATED, MISSING = range(4)
STATUS = ("computed", "left beyond the cap: a loss above it is at least this", "interpolated", "not computed yet")


@final
@dataclass(frozen=True, eq=False)
class Trajectory:
    """Checkpoints beside a landscape: where they project to, how far off they lie, and what their loss really is.

    Args:
        name: What it is.
        names: Of the checkpoints (steps, files).
        coordinates: Where each projects to on the landscape's axes, ``[m, k]``; beside a curve t of its nearest point.
        off_plane: The distance of each from its projection, in weights, ``[m]``.
        distance: The distance of each from the origin, ``[m]``.
        true: What each network's own values are, by name as in `Landscape.values`, ``[m]``; with its own BatchNorm
            statistics.
        on_plane: The values of the landscape at the projections, evaluated there.
    """

    name: str
    names: tuple[str, ...]
    coordinates: np.ndarray
    off_plane: np.ndarray
    distance: np.ndarray
    true: Mapping[str, np.ndarray]
    on_plane: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        """How many checkpoints there are."""
        return len(self.names)

    def rows(self) -> list[dict[str, float | str]]:
        """A row for each checkpoint."""
        return [
            {
                "checkpoint": self.names[i],
                **{f"coordinate {j + 1}": float(c) for j, c in enumerate(self.coordinates[i])},
                "off_plane": float(self.off_plane[i]),
                "distance": float(self.distance[i]),
                **{f"true {name}": float(v[i]) for name, v in self.true.items()},
                **{f"on_plane {name}": float(v[i]) for name, v in self.on_plane.items()},
            }
            for i in range(len(self))
        ]


@final
@dataclass(frozen=True, eq=False)
class Landscape:
    """Loss and accuracy along directions in weight space.

    Args:
        kind: ``"plane"``, ``"line"``, ``"ray"``, ``"interpolation"`` or ``"curve"``.
        axes: The coordinates along each axis, ascending, float64.
        labels: What each axis is, with its unit.
        values: ``train_loss``, ``test_accuracy``, ``train_loss_sem`` …, each of shape ``[len(axis) for axis in axes]``.
            NaN and infinity are what was found there; NaN where nothing was computed.
        status: How each point came about, the same shape: its place in `STATUS`. A point is left (``STOPPED``) once the
            loss of one set is known to lie beyond the cap: that loss is at least its value, and the set's accuracy and
            sets that come after it are NaN. Losses up to the cap are exact, those of the training set there, too.
        directions: The directions, without which the picture cannot be made again; a step of 1 on an axis of a plane or
            line goes once along its direction. A curve's points are combinations of them.
        facts: What was done, in words.
        trajectories: Checkpoints beside it.
        origin: Stands for the network at 0 of the axes (`landscope.landscapes.grids.origin_of`); empty: not known.
    """

    kind: str
    axes: tuple[np.ndarray, ...]
    labels: tuple[str, ...]
    values: Mapping[str, np.ndarray]
    status: np.ndarray
    directions: Directions
    facts: Mapping[str, str]
    trajectories: tuple[Trajectory, ...] = field(default=())
    origin: str = ""

    def __post_init__(self) -> None:
        """Check that the parts belong together."""
        shape = tuple(len(axis) for axis in self.axes)
        wrong = {name: v.shape for name, v in (*self.values.items(), ("status", self.status)) if v.shape != shape}
        if wrong or len(self.labels) != len(self.axes):
            raise ValueError(f"axes of {shape} points with {len(self.labels)} labels, but {wrong or 'other labels'}")

    @property
    def shape(self) -> tuple[int, ...]:
        """The points along each axis."""
        return self.status.shape

    def count(self, status: int) -> int:
        """How many points came about so."""
        return int((self.status == status).sum())

    def not_finite(self, name: str = "train_loss") -> int:
        """How many of the points that were computed are NaN or infinite."""
        return int((~np.isfinite(self.values[name]) & (self.status == COMPUTED)).sum())

    def with_trajectory(self, trajectory: Trajectory) -> "Landscape":
        """The same with one more trajectory."""
        return replace(self, trajectories=(*self.trajectories, trajectory))

    def __repr__(self) -> str:
        """What it is, in a line."""
        loss = self.values["train_loss"]
        finite = loss[np.isfinite(loss)]
        span = f"training loss {finite.min():.4g} to {finite.max():.4g}" if finite.size else "no finite loss"
        return f"Landscape: {self.kind} of {'×'.join(map(str, self.shape))} points, {span}{_counted(self)}"

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in self.facts.items())
        return f"<figure><figcaption>{html.escape(repr(self))}</figcaption><table>{rows}</table></figure>"

    def save(self, path: Path | str) -> Path:
        """Write all of it as one safetensors file, which `load` reads; the directions are in it."""
        arrays: dict[str, np.ndarray] = {f"value/{name}": v for name, v in self.values.items()}
        arrays |= {f"axis/{i}": axis for i, axis in enumerate(self.axes)} | {"status": self.status}
        arrays["columns"] = self.directions.columns.detach().cpu().numpy()
        for i, t in enumerate(self.trajectories):
            arrays |= {f"path/{i}/{n}": getattr(t, n) for n in ("coordinates", "off_plane", "distance")}
            for part in ("true", "on_plane"):
                arrays |= {f"path/{i}/{part}/{name}": v for name, v in getattr(t, part).items()}
        meta = {
            "kind": self.kind,
            "origin": self.origin,
            "labels": self.labels,
            "facts": dict(self.facts),
            "directions": {"labels": self.directions.labels, "statement": self.directions.statement},
            "trajectories": [{"name": t.name, "names": t.names} for t in self.trajectories],
        }
        publish(Path(path), tensor_bytes(arrays, meta))
        return Path(path)


def _counted(landscape: Landscape) -> str:
    counts = {"not finite": landscape.not_finite()}
    words = {STOPPED: "left beyond the cap", INTERPOLATED: "interpolated", MISSING: "missing"}
    counts |= {word: landscape.count(status) for status, word in words.items()}
    return "".join(f", {count} {what}" for what, count in counts.items() if count)


def load(path: Path | str) -> Landscape:
    """Read what `Landscape.save` has written.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: for another file, or where it is not what was written.
    """
    try:
        return _landscape(*read_tensors(Path(path), numpy=True))
    except (Damaged, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not, or no longer, what Landscape.save has written, and load reads nothing else"
        ) from error


def _landscape(arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> Landscape:
    def under(prefix: str) -> dict[str, np.ndarray]:
        return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}

    made, axes = meta["directions"], under("axis/")
    return Landscape(
        meta["kind"],
        tuple(axes[str(i)] for i in range(len(axes))),
        tuple(meta["labels"]),
        under("value/"),
        arrays["status"],
        Directions(torch.from_numpy(arrays["columns"]), tuple(made["labels"]), made["statement"]),
        meta["facts"],
        tuple(_trajectory(one, under(f"path/{i}/")) for i, one in enumerate(meta["trajectories"])),
        meta.get("origin", ""),
    )


def _trajectory(meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Trajectory:
    true, on_plane = (
        {name.removeprefix(part): array for name, array in arrays.items() if name.startswith(part)}
        for part in ("true/", "on_plane/")
    )
    places = arrays["coordinates"], arrays["off_plane"], arrays["distance"]
    return Trajectory(meta["name"], tuple(meta["names"]), *places, true, on_plane)


def to_npz(landscape: Landscape) -> dict[str, np.ndarray]:
    """The arrays of an NPZ file: axes, values, status, directions, trajectories by number; nothing is pickled.

    The rest is JSON text under ``facts``, the names of trajectories and of their checkpoints in order among it.
    """
    found = {f"axis_{i}": axis for i, axis in enumerate(landscape.axes)} | dict(landscape.values)
    found |= {"status": landscape.status, "directions": landscape.directions.columns.detach().cpu().numpy()}
    for i, t in enumerate(landscape.trajectories):
        found |= {f"trajectory {i}: {n}": getattr(t, n) for n in ("coordinates", "off_plane", "distance")}
        for part in ("true", "on_plane"):
            found |= {f"trajectory {i}: {part} {n}": v for n, v in getattr(t, part).items()}
    paths = [{"name": t.name, "checkpoints": t.names} for t in landscape.trajectories]
    facts = {"kind": landscape.kind, "labels": landscape.labels, "status": STATUS, "trajectories": paths}
    facts |= landscape.facts
    return found | {"facts": np.array(json.dumps(facts, ensure_ascii=False))}
