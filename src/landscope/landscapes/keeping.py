"""Points evaluated chunk by chunk; finished chunks are kept, so that the same call goes on and processes can share."""

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import nn

from landscope.files import Damaged, dump, folder, publish, read_tensors, sha256, tensor_bytes
from landscope.landscapes.result import COMPUTED, MISSING, STOPPED
from landscope.landscapes.ways import POINTS, Surface, evaluate, quiet

Report = Callable[[int, int], None]


@final
@dataclass(frozen=True)
class Keeper:
    """Where finished chunks are.

    Args:
        folder: A folder, or None to keep nothing.
        key: The surface's: of everything that its values depend on.
        shard: Which chunks are computed, ``(i, n)``: those whose number leaves i when divided by n.
    """

    folder: Path | None = None
    key: str = ""
    shard: tuple[int, int] = (0, 1)

    def place(self, coefficients: np.ndarray) -> Path | None:
        """A chunk's file."""
        name = f"{self.key}-{sha256(coefficients.tobytes())[:16]}.safetensors"
        return None if self.folder is None else self.folder / name


def keeper_of(surface: Surface, where: Path | str | None, shard: tuple[int, int] | None) -> Keeper:
    """A keeper in a folder, which is made where it is missing."""
    if where is None:
        return Keeper()
    return Keeper(folder(Path(where)), surface_key(surface), shard or (0, 1))


def surface_key(surface: Surface) -> str:
    """16 hexadecimal digits that stand for weights, buffers, directions, samples, loss and what is done with them.

    Of the network's code they know its layers alone: a folder of chunks is for one version of a network's code.
    """
    digest = hashlib.sha256()
    buffers = (b for b in surface.problem.space.model.buffers() if not surface.renewed)
    for tensor in (surface.origin, surface.columns, *buffers):
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    named = [*_said(surface.problem.batch_loss or surface.problem.loss), repr(surface.problem.space.model)]
    parts = [s.content for s in surface.sets.values()] + [f"{s.n}/{s.of}" for s in surface.sets.values()]
    settings = [named, surface.renewed, surface.cap, surface.accuracy, str(surface.columns.dtype), *parts]
    digest.update(dump(settings))
    return digest.hexdigest()[:16]


def _said(loss: Any) -> list[str]:
    """What tells losses apart: a module's settings, a function's code and the plain values that it has closed over."""
    if isinstance(loss, functools.partial):
        return [*_said(loss.func), repr(loss.args), repr(sorted(loss.keywords.items()))]
    if isinstance(loss, nn.Module):
        return [type(loss).__qualname__, repr(sorted((k, v) for k, v in vars(loss).items() if not k.startswith("_")))]
    code = getattr(loss, "__code__", None)
    if code is None:
        return [getattr(loss, "name", ""), type(loss).__qualname__]
    cells = [cell.cell_contents for cell in getattr(loss, "__closure__", None) or ()]
    plain = [repr(v) for v in (*code.co_consts, *cells) if isinstance(v, (bool, int, float, str))]
    return [loss.__qualname__, code.co_code.hex(), *plain]


def computed(
    surface: Surface, coefficients: np.ndarray, keeper: Keeper, report: Report | None = None
) -> dict[str, np.ndarray]:
    """The values at some points, ``[points]`` each, and their ``status``; those of other shards are missing.

    Args:
        surface: What is evaluated.
        coefficients: Coordinates, ``[points, k]``.
        keeper: Where finished chunks are, and which ones to compute.
        report: Told how many points are done.
    """
    n = len(coefficients)
    chunks = [np.ascontiguousarray(coefficients[i : i + POINTS]) for i in range(0, n, POINTS)]
    found: list[dict[str, np.ndarray] | None] = []
    with quiet(surface):
        for number, chunk in enumerate(chunks):
            place = keeper.place(chunk)
            values = _kept(place)
            if values is None and number % keeper.shard[1] == keeper.shard[0]:
                values = _evaluated(surface, chunk)
                if place is not None:
                    publish(place, tensor_bytes(values, {"surface": keeper.key}))
            found.append(values)
            if report is not None:
                report(min(n, (number + 1) * POINTS), n)
    names = {name for values in found if values is not None for name in values} | {"train_loss", "status"}
    names = sorted(names, key=lambda name: (not name.startswith("train"), "loss" not in name, name))
    return {name: np.concatenate([_of(v, name, len(c)) for v, c in zip(found, chunks, strict=True)]) for name in names}


def _evaluated(surface: Surface, chunk: np.ndarray) -> dict[str, np.ndarray]:
    values = evaluate(surface, torch.from_numpy(chunk).to(surface.columns.device))
    stopped = values.pop("stopped").cpu().numpy()
    found = {name: tensor.cpu().numpy() for name, tensor in values.items()}
    return found | {"status": np.where(stopped, STOPPED, COMPUTED).astype(np.uint8)}


def _kept(place: Path | None) -> dict[str, np.ndarray] | None:
    if place is None:
        return None
    try:
        return read_tensors(place, numpy=True)[0]
    except (FileNotFoundError, Damaged):  # computed anew, and replaced
        return None


def _of(values: dict[str, np.ndarray] | None, name: str, n: int) -> np.ndarray:
    if values is not None and name in values:
        return values[name]
    return np.full(n, MISSING, dtype=np.uint8) if name == "status" else np.full(n, np.nan)
