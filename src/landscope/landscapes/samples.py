"""The samples that every point of a landscape is evaluated on: the same ones, read once and kept on the device."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from landscope.curvature.batches import moved, taken_apart, tensors
from landscope.curvature.problem import COUNTING, Problem
from landscope.data import interleaved, stream
from landscope.losses import check_additive, check_targets
from landscope.losses.trying import tried_loss

SHARE = 2  # data may take one part in so many of the memory budget


@final
@dataclass(frozen=True, eq=False)
class Samples:
    """A data set as it is evaluated.

    Args:
        problem: The network, the loss and how the data are read.
        held: The batches on the device; None where they are too large to be kept and are read anew each time.
        n: How much they count.
        of: How much the whole set counts, of which they are a part.
        strata: The class of each sample of a part, shape ``[n]``, or None.
        content: The SHA-256 of the samples, hexadecimal.
    """

    problem: Problem
    held: tuple[Any, ...] | None
    n: float
    of: float
    strata: Tensor | None
    content: str

    def __iter__(self) -> Iterator[Any]:
        """The batches, in the same order each time; inside `Problem.quiet`."""
        yield from self.held if self.held is not None else self.problem.batches()

    @property
    def part(self) -> bool:
        """Whether they are fewer than there are."""
        return self.n < self.of


def read(problem: Problem, samples: int | None, seed: int, batch_size: int, room: int) -> Samples:
    """Read a data set, or the part of it that is asked for, and keep it on the device where it fits.

    Args:
        problem: What is evaluated.
        samples: How many samples, drawn by the seed so that every class keeps its share; None, or no fewer than there
            are, for all.
        seed: Draws them.
        batch_size: Samples that are evaluated at a time, where the data can be cut anew.
        room: Bytes that all may take.

    Raises:
        ValueError: for an empty set, bad targets or losses (see `landscope.hessian`), a part of data of the user's own
            form, or of what can be read only as a stream.
    """
    with problem.quiet(), torch.no_grad():
        part = None if samples is None else _part(problem, samples, seed, batch_size)
        if part is not None:
            return part
        kept: list[Any] | None = []
        size, n, digest = 0, 0.0, hashlib.sha256()
        for raw in problem.read(COUNTING):
            batch = moved(raw, problem.space)
            n += _checked(problem, batch, first=not n)
            _digest(digest, batch)
            size += sum(t.numel() * t.element_size() for t in tensors(batch))
            if size > room // SHARE:
                kept = None
            if kept is not None:
                kept.append(batch)
    if not n > 0:
        raise ValueError("an empty data set: a mean loss needs at least one sample")
    held = None if kept is None else tuple(_cut(problem, kept, batch_size))
    return Samples(problem, held, n, n, None, digest.hexdigest())


def _checked(problem: Problem, batch: Any, first: bool) -> float:
    """How much a batch counts, once it has been looked at."""
    if problem.batch_loss is not None:
        return problem.total(problem.weights(), batch)[1]
    targets = taken_apart(batch)[1]
    check_targets(problem.loss, targets)  # type: ignore[arg-type]
    if first and len(targets):
        check_additive(problem.loss, *_tried(problem, batch, torch.arange(min(8, len(targets))), "first"))  # type: ignore[arg-type]
    if targets.numel() and not targets.is_floating_point():  # classes that are none
        whole = targets.long().reshape(len(targets), -1)
        _tried(problem, batch, torch.stack([whole.amin(1).argmin(), whole.amax(1).argmax()]), "lowest and highest")
    return float(len(targets))


def _tried(problem: Problem, batch: Any, rows: Tensor, which: str) -> tuple[Tensor, Tensor]:
    """The outputs and targets of a few samples, which the network and the loss take."""
    outputs, targets = problem.tried(problem.weights(), picked(batch, rows), which)
    tried_loss(problem.loss, outputs, targets, which)
    return outputs, targets


def _digest(digest: Any, batch: Any) -> None:
    for tensor in tensors(batch):
        digest.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
        digest.update(bytes_of(tensor))


def bytes_of(tensor: Tensor) -> bytes:
    """The memory of a tensor's elements, in their order; of a sparse tensor with its zeros."""
    tensor = tensor if tensor.layout == torch.strided else tensor.to_dense()
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _cut(problem: Problem, batches: list[Any], size: int) -> list[Any]:
    """Pairs of tensors cut to a size; what has another form stays as it is."""
    if problem.batch_loss is not None or not batches:
        return batches
    pairs = [taken_apart(batch) for batch in batches]
    if not all(isinstance(inputs, Tensor) for inputs, _ in pairs):
        return batches
    if len({inputs.shape[1:] for inputs, _ in pairs}) > 1:
        return batches
    inputs, targets = (torch.cat([pair[i] for pair in pairs]) if len(pairs) > 1 else pairs[0][i] for i in (0, 1))
    sizes = [len(part) for part in inputs.split(size)]
    if len(sizes) > 1 and sizes[-1] == 1:  # of which BatchNorm could take no statistics
        sizes[-2:] = [sizes[-2] + 1]
    return list(zip(inputs.split(sizes), targets.split(sizes), strict=True))


def _part(problem: Problem, samples: int, seed: int, batch_size: int) -> Samples | None:
    """A part of a set; None where it holds no more than that."""
    if problem.batch_loss is not None:
        raise ValueError(
            "samples= cannot choose from batches of your own form (batch_loss=): give the part as the data"
        )
    if samples < 2:
        raise ValueError(f"a part of at least 2 samples is needed for its standard error, not {samples}")
    targets = torch.cat([taken_apart(raw)[1].cpu() for raw in problem.read(COUNTING)])
    n = len(targets)
    if samples >= n:
        return None
    order = stream(seed, "landscape").permutation(n)
    classes = targets.dim() == 1 and not targets.is_floating_point()
    chosen = np.sort((interleaved(order, targets.numpy()) if classes else order)[:samples])
    kept, digest, start, first = [], hashlib.sha256(), 0, True
    for raw in problem.read(COUNTING):
        size = len(taken_apart(raw)[1])
        here = chosen[(chosen >= start) & (chosen < start + size)] - start
        start += size
        if len(here):
            batch = moved(picked(raw, torch.from_numpy(here)), problem.space)
            _checked(problem, batch, first)
            first = False
            _digest(digest, batch)
            kept.append(batch)
    strata = targets[torch.from_numpy(chosen)].to(problem.space.device) if classes else None
    held = tuple(_cut(problem, kept, batch_size))
    return Samples(problem, held, float(samples), float(n), strata, digest.hexdigest())


def picked(batch: Any, rows: Tensor) -> Any:
    """Some samples of a batch."""
    inputs, targets = taken_apart(batch)
    n = len(targets)

    def of(part: Any) -> Any:
        if isinstance(part, Tensor):
            return part[rows.to(part.device)] if part.dim() and len(part) == n else part
        if isinstance(part, dict):
            return {name: of(inner) for name, inner in part.items()}
        return type(part)(of(inner) for inner in part) if isinstance(part, (tuple, list)) else part

    if isinstance(batch, (tuple, list)):
        whole = (inputs,) if len(batch) == 2 else tuple(inputs)
        return (*(of(part) for part in whole), of(targets))
    return type(batch)({name: of(part) for name, part in batch.items()})
