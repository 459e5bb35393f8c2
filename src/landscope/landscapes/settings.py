"""What every landscape may be told, and a surface that is ready to be evaluated."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import torch
from torch import nn

from landscope.curvature import space_of
from landscope.curvature.batches import check_readable, is_batch
from landscope.curvature.making import Data, Loss
from landscope.curvature.memory import budget
from landscope.curvature.problem import BatchLoss, Problem
from landscope.curvature.restoring import bare
from landscope.curvature.space import check_network
from landscope.landscapes.axes import ALL, Directions
from landscope.landscapes.samples import Samples, read
from landscope.landscapes.ways import WAYS, Surface, has_statistics, renewable
from landscope.losses import check_mean
from landscope.models.checks import check_whole

STATISTICS = ("frozen", "recomputed")
RENEWED = "computed anew at every point, averages over the training samples"


class Settings(TypedDict, total=False):
    """The settings that all landscapes share.

    Args:
        samples: Evaluate on so many samples of each set, drawn with every class's share and the same at all points:
            losses get standard errors. A test set of no more than that is taken whole. None (the default): on all.
        seed: Draws these samples.
        batchnorm: ``"frozen"``: BatchNorm's running statistics are those of the network at the origin, everywhere.
            ``"recomputed"``: at each point they are computed anew, as averages over the batches of training samples.
            Left out: recomputed between checkpoints, frozen around one.
        cap: Leave a point once its loss on one set is known to lie beyond this: losses above it are lower bounds,
            those up to it exact, and what was not reached is NaN. For losses that are never negative.
        refine: Begin with every fourth point and compute those between only where interpolating the loss would be off
            by more than this, relative; the others are interpolated (and marked). None (the default): compute all.
        accuracy: Whether to take accuracies where there are some (True).
        batch_size: Samples that are evaluated at a time (1024).
        way: ``"auto"`` (the fastest by timing), ``"loop"``, ``"vmap"`` or ``"chain"``. Values differ by rounding alone.
        batch_loss: As in `landscope.hessian`, with ``loss`` None.
        dtype: The floating-point type to calculate in; left out: the parameters' own.
        memory: Bytes that may be used; left out: a quarter of what there is.
        folder: Keep finished chunks there; the same call goes on from them.
        shard: ``(i, n)``: compute every n-th chunk alone, beginning with the i-th (from 0), into ``folder``; n
            processes share the work, and a call without it puts their chunks together.
        progress: ``progress(done, points)``, called after every chunk.
    """

    samples: int | None
    seed: int
    batchnorm: str
    cap: float | None
    refine: float | None
    accuracy: bool
    batch_size: int
    way: str
    batch_loss: BatchLoss | None
    dtype: torch.dtype | None
    memory: int | None
    folder: Path | str | None
    shard: tuple[int, int] | None
    progress: Callable[[int, int], None] | None


def surface_of(
    model: nn.Module,
    loss: Loss | None,
    train: Data,
    test: Data | None,
    directions: Directions,
    settings: Settings,
    statistics: str = "frozen",
) -> Surface:
    """Check everything, read the data, and make a surface.

    Args:
        model: The network at the origin.
        loss: ``loss(outputs, targets)``, the mean over a batch, or None.
        train: Training data as in `landscope.hessian`.
        test: Test data, or None.
        directions: The directions.
        settings: The settings.
        statistics: What BatchNorm's statistics are unless the settings say.

    Raises:
        TypeError: for what is no network, and settings that there are not.
        ValueError: for settings out of range, directions of another network, and bad data.
    """
    _check(settings)
    problem = _problem(model, loss, train, settings)
    if directions.columns.shape[0] != problem.space.dim:
        raise ValueError(
            f"the directions have {directions.columns.shape[0]:,} numbers and the network {problem.space.dim:,} "
            "parameters: they belong to another network (all parameters count, frozen ones too)"
        )
    renewed = settings.get("batchnorm", statistics) == "recomputed" and has_statistics(problem.space.model)
    if renewed:
        problem = renewable(problem)
    room = budget(settings.get("memory"), problem.space.device)
    sets = {"train": _read(problem, settings, room)}
    samples, n = settings.get("samples"), round(sets["train"].n)
    if samples is not None and samples > n:
        raise ValueError(f"samples={samples}, but the training set holds {n:,}: leave it out to take all of them")
    if test is not None:
        other = Problem(problem.space, loss, settings.get("batch_loss"), _batches(test))  # type: ignore[arg-type]
        sets["test"] = _read(other, settings, room)
    columns = directions.columns.T.to(problem.space.device, problem.space.dtype).contiguous()
    return Surface(
        problem,
        sets,
        columns,
        renewed,
        settings.get("cap"),
        settings.get("accuracy", True),
        room,
        settings.get("way", "auto"),
    )


def _check(settings: Settings) -> None:
    unknown = sorted(set(settings) - set(Settings.__annotations__))
    if unknown:
        raise TypeError(f"there is no setting {', '.join(unknown)}; there are {', '.join(Settings.__annotations__)}")
    if settings.get("batchnorm", "frozen") not in STATISTICS:
        raise ValueError(f"batchnorm is {' or '.join(STATISTICS)}, not {settings.get('batchnorm')!r}")
    if settings.get("way", "auto") not in ("auto", *WAYS):
        raise ValueError(f"way is one of auto, {', '.join(WAYS)}, not {settings.get('way')!r}")
    check_whole("batch_size, samples and shard", *_whole(settings))
    if settings.get("batch_size", 1) < 1:
        raise ValueError(f"a batch needs at least one sample, not batch_size={settings.get('batch_size')}")
    for name in ("cap", "refine"):
        value = settings.get(name)
        if value is not None and not 0 < value < math.inf:  # type: ignore[operator]
            raise ValueError(f"{name} is a finite number above 0, not {value}")
    shard = settings.get("shard")
    if shard is not None and not 0 <= shard[0] < shard[1]:
        raise ValueError(f"shard=(i, n) means part i of n, from 0 to n − 1, not {shard}")
    if shard is not None and settings.get("folder") is None:
        raise ValueError("a shard's chunks are put together from a folder: give folder=, the same for all shards")
    if shard is not None and settings.get("refine") is not None:
        raise ValueError("which points refine= needs is known only once coarser ones are: it does not go with shard=")


def _whole(settings: Settings) -> list[object]:
    """The settings that are whole numbers, where they are given."""
    given = [settings.get("batch_size"), settings.get("samples"), *(settings.get("shard") or ())]
    return [value for value in given if value is not None]


def _problem(model: nn.Module, loss: Loss | None, data: Data, settings: Settings) -> Problem:
    if not isinstance(model, nn.Module):
        raise TypeError(f"the first argument is the network itself, an nn.Module, not {type(model).__name__}")
    batch_loss = settings.get("batch_loss")
    if (loss is None) == (batch_loss is None):
        raise ValueError(
            "give either loss, a function (outputs, targets) -> mean over the batch, or loss=None and batch_loss=, a "
            "function (model, batch) -> (sum of the loss, count)"
        )
    if loss is not None:
        check_mean(loss)
    inner = bare(model)
    check_network(inner)
    return Problem(space_of(inner, ALL, settings.get("dtype")), loss, batch_loss, _batches(data))  # type: ignore[arg-type]


def _batches(data: Data) -> Data:
    check_readable(data)
    return [data] if is_batch(data) else data  # type: ignore[return-value]


def _read(problem: Problem, settings: Settings, room: int) -> Samples:
    samples, seed = settings.get("samples"), settings.get("seed", 0)
    return read(problem, samples, seed, settings.get("batch_size", 1024), room)


def facts_of(surface: Surface, directions: Directions, settings: Settings) -> dict[str, str]:
    """What was done, in words."""
    cosine = f"; largest cosine between two {directions.largest_cosine:.2g}" if len(directions) > 1 else ""
    lengths = ", ".join(f"{float(length):.4g}" for length in directions.lengths)
    facts = {
        "directions": f"{directions.statement}; lengths {lengths}{cosine}",
        "parameters": f"{surface.problem.space.dim:,}, {str(surface.problem.space.dtype).removeprefix('torch.')}",
        "BatchNorm statistics": _statistics(surface),
    }
    for name, samples in surface.sets.items():
        n, of = round(samples.n), round(samples.of)
        part = f"{n:,} of {of:,}, stratified, drawn by seed {settings.get('seed', 0)}, the same at every point"
        whole = f"all {n:,}" + (", for there are no more: no standard error" if settings.get("samples") else "")
        facts[f"{name} samples"] = part if samples.part else whole
        facts[f"{name} content"] = samples.content[:16]
    if surface.cap is not None:
        facts["cap"] = (
            f"a point is left once a loss is known to lie beyond {surface.cap:g}: losses above that are at least what "
            "they are given as, those up to it exact"
        )
    if settings.get("refine") is not None:
        facts["refined"] = f"where interpolation would be off by more than {settings.get('refine'):.2g} of the loss"
    return facts


def _statistics(surface: Surface) -> str:
    if not has_statistics(surface.problem.space.model):
        return "the network has none"
    if surface.renewed:
        return RENEWED
    return "frozen: those of the network at the origin"
