"""From checkpoints to a landscape: the plane, the trajectory on it, and the files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from landscope import landscapes, losses
from landscope.data import find
from landscope.directions import NORMALISATIONS
from landscope.engine import sized
from landscope.files import check_place
from landscope.landscapes import MISSING, Directions, Landscape, Settings
from landscope.own.checkpoints import build, load_checkpoint, load_into
from landscope.own.wanted import LOSSES
from landscope.render import write_landscape
from landscope.render.pages import ENDINGS
from landscope.terminal import plain, progress

PLANES = ("random", "eigen", "pca", "between")
MARGIN = 0.25  # of the trajectory's extent, on each side


@dataclass(frozen=True)
class Asked:
    """What is to be drawn: the options of ``landscope landscape``.

    Args:
        checkpoints: Safetensors files with state dicts, in order; the plane goes through the last one.
        factory: ``package.module:factory``, which returns the module.
        data: A data set's name or folder.
        plane: One of `PLANES`.
        loss: ``"cross_entropy"`` or ``"squared_error"``.
        normalisation: Of random directions.
        span: The range along both axes; None for −1 to 1, or the trajectory with a margin.
        points: Points along each axis.
        seed: Draws the data split.
        draw: The seed of random directions.
        train: Training samples, None for the data set's own.
        settings: Those of `landscope.landscapes.Settings`.
        out: Files to write, once no point is missing; none: a page beside the last checkpoint.
        cache: Where decoded data are kept.
        device: Where to compute.
    """

    checkpoints: Sequence[Path]
    factory: str
    data: str
    plane: str
    loss: str
    normalisation: str
    span: tuple[float, float] | None
    points: int
    seed: int
    draw: int
    train: int | None
    settings: Mapping[str, Any]
    out: Sequence[Path]
    cache: Path
    device: str

    @property
    def files(self) -> list[Path]:
        """What is to be written."""
        return list(self.out) or [self.checkpoints[-1].with_suffix(".landscape.html")]


def draw_landscape(asked: Asked) -> list[Path]:
    """Compute the landscape, say what it shows, write the files; returns their paths, none while points are missing.

    Raises:
        FileNotFoundError, ValueError, LookupError, ImportError: for what is not there or does not fit, in words.
    """
    states = [load_checkpoint(path) for path in asked.checkpoints]
    model = build(asked.factory)
    for path, state in zip(asked.checkpoints[:-1], states, strict=False):
        load_into(model, state, path)  # told before anything is computed
    load_into(model, states[-1], asked.checkpoints[-1])
    model.to(asked.device).eval()
    source = find(asked.data, asked.cache)
    drawn = sized(source.draw(**({} if asked.train is None else {"train": asked.train}))(asked.seed, asked.cache))
    loss, sets = getattr(losses, asked.loss)(), (drawn.train, drawn.test)
    settings = Settings(**asked.settings)  # type: ignore[typeddict-item]
    with progress() as say:
        settings["progress"] = lambda done, of: say(f"Points: {done:,} of {of:,} …")
        made = _landscape(asked, model, states, loss, sets, settings)
    print(plain(repr(made)))
    for name, fact in made.facts.items():
        print(plain(f"{name}: {fact}"))
    missing = made.count(MISSING)
    if missing:
        print(
            plain(
                f"Nothing is written yet: {missing:,} of {made.status.size:,} points are left to other shards. What is "
                f"computed is kept in {settings.get('folder')}; once all shards are done, the same command without "
                f"--shard puts them together and writes {', '.join(map(str, asked.files))}"
            )
        )
        return []
    for path in asked.files:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_landscape(made, path, cap=settings.get("cap"))
    return asked.files


def _landscape(
    asked: Asked, model: nn.Module, states: Sequence[Mapping[str, Tensor]], loss: Any, sets: Any, settings: Settings
) -> Landscape:
    train, test = sets
    span, points = asked.span, asked.points
    if asked.plane == "between" and len(states) == 2:
        ends: Any = {} if span is None else {"span": span}
        return landscapes.interpolation(
            model, states[0], states[1], loss, train, test, points=points, **ends, **settings
        )
    directions = _directions(asked, model, states, loss, train)
    ranges: Any = span or (-1.0, 1.0)
    if asked.plane in ("pca", "between"):
        if span is None:
            places = landscapes.coordinates(model, directions, states)[0]
            ranges = tuple(_around(places[:, j]) for j in range(2))
        settings = Settings(batchnorm="recomputed") | settings
    made = landscapes.plane(model, loss, train, test, directions=directions, span=ranges, points=points, **settings)
    if len(states) == 1 or made.count(MISSING):
        return made
    names = [path.stem for path in asked.checkpoints]
    return landscapes.trajectory(made, model, states, loss, train, test, name="checkpoints", names=names, **settings)


def _directions(
    asked: Asked, model: nn.Module, states: Sequence[Mapping[str, Tensor]], loss: Any, train: Any
) -> Directions:
    made: Mapping[str, Callable[[], Directions]] = {
        "random": lambda: landscapes.random_axes(model, normalisation=asked.normalisation, seed=asked.draw),
        "eigen": lambda: landscapes.curvature_axes(model, loss, train),
        "pca": lambda: landscapes.trajectory_axes(model, states),
        "between": lambda: _between(model, states),
    }
    return made[asked.plane]()


def _between(model: nn.Module, states: Sequence[Mapping[str, Tensor]]) -> Directions:
    if len(states) != 3:
        raise ValueError(
            f"--plane between goes through 2 checkpoints (a line) or 3 (a plane), not {len(states)}: "
            "take --plane pca for more"
        )
    return landscapes.axes_between(model, states[:2])


def _around(places: np.ndarray) -> tuple[float, float]:
    low, high = float(places.min()), float(places.max())
    margin = MARGIN * (high - low) or 1.0
    return low - margin, high + margin


def check(asked: Asked) -> None:
    """Refuse what cannot be drawn as far as it shows at once.

    Raises:
        ValueError: for options out of range.
    """
    if asked.plane not in PLANES:
        raise ValueError(f"--plane is one of {', '.join(PLANES)}, not {asked.plane!r}")
    if asked.loss not in LOSSES:
        raise ValueError(f"--loss is {' or '.join(LOSSES)}, not {asked.loss!r}")
    if asked.normalisation not in NORMALISATIONS:
        raise ValueError(f"--normalisation is one of {', '.join(NORMALISATIONS)}, not {asked.normalisation!r}")
    for path in asked.files:
        _check_file(path, line=asked.plane == "between" and len(asked.checkpoints) == 2)
    if asked.plane == "between" and len(asked.checkpoints) not in (2, 3):
        raise ValueError(
            f"--plane between goes through 2 checkpoints (a line) or 3 (a plane), not {len(asked.checkpoints)}"
        )
    if asked.plane == "pca" and len(asked.checkpoints) < 3:
        raise ValueError(
            f"--plane pca needs at least 3 checkpoints of a trajectory, not {len(asked.checkpoints)}: "
            "take --plane random or eigen for one"
        )


def _check_file(path: Path, line: bool) -> None:
    endings = [ending for ending in ENDINGS if not (line and ending == "vtk")]
    if path.suffix.removeprefix(".") not in endings:
        what = "a line" if line else "a plane"
        raise ValueError(f"--out {path}: {what} is written as {', '.join(endings)}; end the file's name so")
    check_place("--out", path, "a file")
