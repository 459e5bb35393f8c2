"""Points evaluated chunk by chunk; finished chunks are kept, so that the same call goes on and processes can share."""

import functools
import hashlib
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from landscope.curvature.batches import taken_apart
from landscope.files import Damaged, dump, folder, publish, read_tensors, sha256, tensor_bytes
from landscope.landscapes.result import COMPUTED, MISSING, STOPPED
from landscope.landscapes.samples import bytes_of
from landscope.landscapes.ways import POINTS, Surface, evaluate, quiet

Report = Callable[[int, int], None]
DEEP = 8  # how far what a loss refers to is followed


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

    Of the network's code they know its layers and their ``forward``, not what that calls.
    """
    digest = hashlib.sha256()
    buffers = (b for b in surface.problem.space.model.buffers() if not surface.renewed)
    for tensor in (surface.origin, surface.columns, *buffers):
        digest.update(bytes_of(tensor))
    model = surface.problem.space.model
    kinds = {type(module): _said(getattr(type(module), "forward", None)) for module in model.modules()}
    own = [
        _said({name: part for name, part in vars(module).items() if name[0] != "_" and name != "training"})
        for module in model.modules()
    ]
    named = [_said(surface.problem.batch_loss or surface.problem.loss), repr(model), list(kinds.values()), own]
    parts = [s.content for s in surface.sets.values()] + [f"{s.n}/{s.of}" for s in surface.sets.values()]
    held = surface.sets["train"].held if surface.renewed else None
    cuts = [len(taken_apart(batch)[1]) for batch in held or () if surface.problem.batch_loss is None]
    settings = [named, surface.renewed, cuts, surface.cap, surface.accuracy, str(surface.columns.dtype), *parts]
    digest.update(dump(settings))
    return digest.hexdigest()[:16]


def _said(thing: Any, seen: frozenset[int] = frozenset()) -> list[Any]:
    """What tells losses and networks apart: settings, tensors, and the code of functions with what it refers to."""
    if thing is None or isinstance(thing, (bool, int, float, str, bytes)):
        return [repr(thing)]
    if isinstance(thing, Tensor):
        return [str(thing.dtype), list(thing.shape), sha256(bytes_of(thing))]
    if id(thing) in seen or len(seen) > DEEP:
        return [type(thing).__qualname__]
    seen |= {id(thing)}
    if isinstance(thing, (set, frozenset)):
        thing = sorted(thing, key=repr)
    if isinstance(thing, (tuple, list)):
        return [_said(part, seen) for part in thing]
    if isinstance(thing, dict):
        return [[str(name), _said(part, seen)] for name, part in thing.items()]
    if isinstance(thing, functools.partial):
        return ["partial", *(_said(part, seen) for part in (thing.func, thing.args, thing.keywords))]
    if isinstance(thing, types.CodeType):
        return [thing.co_code.hex(), list(thing.co_names), _said(thing.co_consts, seen)]
    if isinstance(thing, types.MethodType):
        return [_said(thing.__func__, seen), _said(thing.__self__, seen)]
    if isinstance(thing, types.FunctionType):
        cells = [_content(cell) for cell in thing.__closure__ or ()]
        given = (thing.__code__, thing.__defaults__, thing.__kwdefaults__, cells)
        return [thing.__qualname__, *(_said(part, seen) for part in given)]
    kind = type(thing)
    code = [getattr(kind, name, None) for name in ("forward", "__call__")]
    own = {} if isinstance(thing, (type, types.ModuleType)) else getattr(thing, "__dict__", {})
    kept = {
        name: part
        for name, part in own.items()
        if not name.startswith("_") or name in ("_parameters", "_buffers", "_modules")
    }
    return [getattr(thing, "__qualname__", kind.__qualname__), *(_said(x, seen) for x in (*code, kept))]


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return "nothing yet"


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
