"""How a chunk of points is evaluated: one after the other or many at once, decided by timing."""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.modules.batchnorm import _BatchNorm

from landscope.curvature.batches import taken_apart
from landscope.curvature.problem import Problem
from landscope.landscapes.chain import Chain, chain_of
from landscope.landscapes.samples import Samples, picked
from landscope.landscapes.scoring import Scores, has_accuracy, score

WAYS = ("loop", "vmap", "chain")
POINTS = 128  # in a chunk at the most
CACHE = 2**22  # bytes that a layer's activations in a pass of a chain should fit into
SLOW = 0.02  # seconds of a pass beyond which it is bound by arithmetic, and more of them at once gain nothing
ROUNDING = 1e-6  # by how much of the cap a loss may lie below 0: more is no rounding
AGREE = 1e-3  # by how much ways may differ, relative: more is no rounding


@final
@dataclass(frozen=True, eq=False)
class Surface:
    """A loss over a plane (or a line, …) in weight space, ready to be evaluated anywhere on it.

    Args:
        problem: The network, at the origin, and the loss.
        sets: The data sets by name, ``"train"`` first.
        columns: The directions, ``[k, dim]``.
        renewed: Whether BatchNorm's statistics are computed anew at each point; the network is then a copy.
        cap: The loss beyond which a point is left, or None.
        accuracy: Whether accuracies are wanted.
        room: Bytes that may be used.
        way: ``"auto"`` or one of `WAYS`.
        found: The way that was chosen, its points a pass, and the chain.
    """

    problem: Problem
    sets: dict[str, Samples]
    columns: Tensor
    renewed: bool = False
    cap: float | None = None
    accuracy: bool = True
    room: int = 2**30
    way: str = "auto"
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def origin(self) -> Tensor:
        """The parameters at 0."""
        if "origin" not in self.found:
            self.found["origin"] = self.problem.space.point()
        return self.found["origin"]

    def rows(self, coefficients: Tensor, name: str) -> Tensor:
        """The parameters at some points, ``[points, dim]``; for a chain those after the first layer's."""
        skip = self.found["chain"].skip if name == "chain" else 0
        return torch.addmm(self.origin[skip:], coefficients.to(self.columns), self.columns[:, skip:])


@final
@dataclass(eq=False)
class Tally:
    """What is known of the points of a pass so far.

    Args:
        loss: Sums over the samples, ``[points]``.
        right: How many are right, ``[points]``, or None.
        each: The losses of each batch's samples, of the points that are left, ``[left, samples]``.
        left: The numbers of the points that are left; None for all.
    """

    loss: Tensor
    right: Tensor | None = None
    each: list[Tensor] = field(default_factory=list)
    left: Tensor | None = None

    def take(self, scores: Scores) -> None:
        """Add a batch's scores of the points that are left."""
        if scores.right is not None and self.right is None:
            self.right = torch.zeros_like(self.loss)
        for total, part in ((self.loss, scores.loss), (self.right, scores.right)):
            if total is None or part is None:
                continue
            if self.left is None:
                total += part
            else:
                total.index_add_(0, self.left, part.double())
        if scores.each is not None:
            self.each.append(scores.each)

    def leave(self, bound: float) -> None:
        """Go on without the points whose sum lies beyond a bound."""
        among = self.loss if self.left is None else self.loss[self.left]
        kept = ~(among > bound)
        if not bool(kept.all()):
            self.left = kept.nonzero().squeeze(1) if self.left is None else self.left[kept]
            self.each = [part[kept] for part in self.each]


@contextmanager
def quiet(surface: Surface) -> Iterator[None]:
    """The network set for being evaluated; everything is as it was found afterwards, also after an exception."""
    with ExitStack() as stack:
        for samples in surface.sets.values():
            stack.enter_context(samples.problem.quiet())
        stack.enter_context(torch.no_grad())
        yield


def evaluate(surface: Surface, coefficients: Tensor) -> dict[str, Tensor]:
    """Loss and accuracy at some points; inside `quiet`.

    Args:
        surface: What is evaluated.
        coefficients: Coordinates, ``[points, k]``, float64.

    Returns:
        ``<set>_loss``, ``<set>_accuracy`` where there is one, ``<set>_loss_sem`` for a part of the samples, all
        ``[points]`` in float64; and ``stopped``, whether the loss of some set, the one above the cap, is only known to
        lie beyond it.
    """
    if surface.renewed:
        return _joined([_renewed(surface, row[None]) for row in coefficients])
    name, size = chosen(surface, coefficients)
    passes = -(-len(coefficients) // size)
    return _joined([_pass(surface, part, name) for part in coefficients.tensor_split(passes)])


def _joined(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The passes one after the other; NaN where one has nothing to say, all its points having been left before."""
    names = dict.fromkeys(name for part in parts for name in part)
    gaps = [torch.full_like(part["train_loss"], torch.nan) for part in parts]
    return {name: torch.cat([part.get(name, gap) for part, gap in zip(parts, gaps, strict=True)]) for name in names}


def _pass(surface: Surface, coefficients: Tensor, name: str) -> dict[str, Tensor]:
    """All sets at a few points."""
    rows, found, left = surface.rows(coefficients, name), {}, None
    for of, samples in surface.sets.items():
        tally = Tally(torch.zeros(len(rows), dtype=torch.float64, device=rows.device), left=left)
        _count(surface, samples, coefficients, rows, name, tally)
        found |= _means(of, samples, tally, left)
        left = tally.left
    stopped = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    if left is not None:
        stopped[:] = True
        stopped[left] = False
    return found | {"stopped": stopped}


def _count(surface: Surface, samples: Samples, coefficients: Tensor, rows: Tensor, name: str, tally: Tally) -> None:
    """Batch after batch, leaving points once their sum lies beyond the cap."""
    for batch in samples:
        left = tally.left
        if left is not None and not len(left):
            break
        where = (coefficients, rows) if left is None else (coefficients[left], rows[left])
        scores = scored(surface, samples, *where, batch, name)
        tally.take(scores)
        if surface.cap is not None:
            if bool((scores.loss < -ROUNDING * surface.cap * samples.n).any()):
                raise ValueError("cap= needs a loss that is never negative: a point could come back below the cap")
            tally.leave(surface.cap * samples.n)


def _means(of: str, samples: Samples, tally: Tally, before: Tensor | None) -> dict[str, Tensor]:
    """The means over a set: NaN at points that were left before, and what is not known of those left since."""
    found = {f"{of}_loss": _only(tally.loss / samples.n, before)}
    if tally.right is not None:
        found[f"{of}_accuracy"] = _only(tally.right / samples.n, tally.left)
    if samples.part:
        errors = torch.full_like(tally.loss, torch.nan)
        if tally.left is None or len(tally.left):
            found_errors = standard_error(torch.cat(tally.each, 1), samples.strata, samples.of)
            errors[slice(None) if tally.left is None else tally.left] = found_errors
        found[f"{of}_loss_sem"] = errors
    return found


def _only(values: Tensor, kept: Tensor | None) -> Tensor:
    """The values, NaN elsewhere."""
    if kept is None:
        return values
    found = torch.full_like(values, torch.nan)
    found[kept] = values[kept]
    return found


def standard_error(each: Tensor, strata: Tensor | None, of: float) -> Tensor:
    """The standard error of the mean loss of a stratified part, in place of that of all samples.

    √((1 − m/N) · s² / m), s² the variance within classes (m − classes degrees of freedom), each class having its share
    of the part.

    Args:
        each: The losses of the part's samples, ``[points, m]``.
        strata: Their classes, ``[m]``; None for a simple random part.
        of: N.
    """
    m, losses = each.shape[1], each.double()
    place = (
        torch.zeros(m, dtype=torch.long, device=each.device)
        if strata is None
        else strata.unique(return_inverse=True)[1]
    )
    classes = int(place.max()) + 1
    if m <= classes:
        place, classes = torch.zeros_like(place), 1
    counts = torch.bincount(place, minlength=classes).double()
    means = (
        torch.zeros(len(losses), classes, dtype=torch.float64, device=each.device).index_add_(1, place, losses) / counts
    )
    squares = (losses - means[:, place]).square().sum(1) / (m - classes)
    return (squares / m * (1 - m / of)).sqrt()


def scored(surface: Surface, samples: Samples, coefficients: Tensor, rows: Tensor, batch: Any, name: str) -> Scores:
    """One batch at some points, evaluated in one way."""
    problem = samples.problem
    if problem.batch_loss is not None:
        sums = [problem.total(problem.space.split(row), batch)[0].detach().double().reshape(()) for row in rows]
        return Scores(torch.stack(sums), None, None)
    _, targets = taken_apart(batch)
    if name == "loop":
        parts = [
            _scored(surface, samples, problem.outputs(problem.space.split(row), batch)[0][None], targets)
            for row in rows
        ]
        return _stacked(parts) if len(parts) > 1 else parts[0]
    if name == "vmap":

        def one(weights: tuple[Tensor, ...]) -> Tensor:
            return problem.outputs(weights, batch)[0]

        outputs = vmap(one)(problem.space.split_rows(rows))
    else:
        chain: Chain = surface.found["chain"]
        keep = samples.held is not None and surface.found["keep"]
        outputs = chain.outputs(
            rows, coefficients.to(rows), surface.origin, surface.columns, taken_apart(batch)[0], keep
        )
    return _scored(surface, samples, outputs, targets)


def _scored(surface: Surface, samples: Samples, outputs: Tensor, targets: Tensor) -> Scores:
    loss = samples.problem.loss
    accuracy = surface.accuracy and has_accuracy(loss, outputs[0], targets)
    return score(loss, outputs, targets, each=samples.part, accuracy=accuracy)


def _stacked(parts: Sequence[Scores]) -> Scores:
    def of(name: str) -> Any:
        tensors = [getattr(part, name) for part in parts]
        return None if tensors[0] is None else torch.cat(tensors)

    return Scores(of("loss"), of("each"), of("right"))


def chosen(surface: Surface, coefficients: Tensor) -> tuple[str, int]:
    """The way that points are evaluated in, and how many go through in a pass; found out once."""
    if "way" not in surface.found:
        samples = next(iter(surface.sets.values()))
        surface.found["way"] = _found(surface, samples, coefficients, next(iter(samples)))
    return surface.found["way"]


def _found(surface: Surface, samples: Samples, coefficients: Tensor, batch: Any) -> tuple[str, int]:
    sizes = _sizes(surface, samples, batch)
    if surface.way != "auto":
        if surface.way not in sizes:
            raise ValueError(
                f"way={surface.way!r} does not go with this network and loss: there is {', '.join(sizes)}; "
                '"auto" takes the fastest'
            )
        return surface.way, sizes[surface.way]
    if (
        len(sizes) == 1
        or len(coefficients) < 2
        or ("chain" not in sizes and _is_slow(surface, samples, coefficients, batch))
    ):
        return "loop", 1
    return fastest(surface, samples, coefficients, batch, sizes)


def _is_slow(surface: Surface, samples: Samples, coefficients: Tensor, batch: Any) -> bool:
    """Whether the arithmetic of a batch takes so long that more points at once gain nothing: found out at little cost.

    From an eighth of the batch less a single sample, whose time is what a pass costs besides; again where it is close,
    for the first time at a size prepares it.
    """
    n = len(taken_apart(batch)[1])
    rows = surface.rows(coefficients[:1], "loop")

    def seconds(count: int) -> float:
        few = picked(batch, torch.arange(count))
        begin = time.perf_counter()
        scored(surface, samples, coefficients[:1], rows, few, "loop").loss.item()
        return time.perf_counter() - begin

    def arithmetic() -> float:
        part = -(-n // 8)
        return n / part * (seconds(part) - seconds(1))

    first = arithmetic()
    return first > 4 * SLOW or (first > SLOW and arithmetic() > SLOW)


def _sizes(surface: Surface, samples: Samples, batch: Any) -> dict[str, int]:
    """The ways that there may be, and the points of a pass."""
    if samples.problem.batch_loss is not None:
        return {"loop": 1}
    inputs, targets = taken_apart(batch)
    space = samples.problem.space
    chain = chain_of(space, inputs)
    fit = max(1, surface.room // 8 // (space.dim * 8))
    sizes = {"loop": 1, "vmap": min(32, fit)}
    if chain is not None:
        surface.found["chain"] = chain
        first: Any = chain.layers[0]
        images = (1 + len(surface.columns)) * first.out_features * sum(s.n for s in surface.sets.values()) * 4
        surface.found["keep"] = images < surface.room // 4
        sizes["chain"] = min(POINTS, fit, max(1, CACHE // (4 * chain.width * max(1, len(targets)))))
    return sizes


def fastest(
    surface: Surface, samples: Samples, coefficients: Tensor, batch: Any, sizes: dict[str, int]
) -> tuple[str, int]:
    """The fastest of the ways that agree with the loop on a batch, by timing.

    Args:
        surface: What is evaluated.
        samples: Its first set.
        coefficients: Points to try.
        batch: A batch of it.
        sizes: The ways, and points of a pass.
    """
    best, least, loop = ("loop", 1), 0.0, Tensor()
    for name, size in sizes.items():
        few = coefficients[:size]
        rows = surface.rows(few, name)

        def run(name: str = name, few: Tensor = few, rows: Tensor = rows) -> Tensor:
            found = scored(surface, samples, few, rows, batch, name).loss
            return found if found.device.type == "cpu" else found.cpu()  # which waits for it

        if name == "vmap" and "chain" in sizes:
            continue  # which does the same with less ado
        begin = time.perf_counter()
        try:
            values = run()
        except (RuntimeError, NotImplementedError, ValueError):
            if name == "loop":
                raise
            continue
        seconds = (time.perf_counter() - begin) / len(few)
        if name == "loop":
            loop, least = values, seconds
            if seconds > SLOW and "chain" not in sizes:
                return best  # bound by arithmetic
        elif not _agree(values[:1], loop[:1]):
            continue
        if name == "loop" or 2 * seconds > least:  # else it is clear
            seconds = _least_seconds(run) / len(few)
        if name == "loop" or seconds < least:
            best, least = (name, size), seconds
    return best


def _least_seconds(run: Callable[[], Any], enough: float = 0.003) -> float:
    """The shortest of a few runs: one, where that takes long enough."""
    times: list[float] = []
    while len(times) < 3 and sum(times) < enough:
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times)


def _agree(a: Tensor, b: Tensor) -> bool:
    return bool(torch.isclose(a, b, rtol=AGREE, atol=AGREE * float(b.abs().nan_to_num().max()), equal_nan=True).all())


def renewable(problem: Problem) -> Problem:
    """The problem on a copy of its network, whose BatchNorm layers average over whole passes."""
    model = copy.deepcopy(problem.space.model).to(problem.space.dtype)
    for layer in model.modules():
        if isinstance(layer, _BatchNorm):
            layer.momentum = None  # the plain average, where batches do not say how much they count
    return replace(problem, space=replace(problem.space, model=model), found={})


def has_statistics(model: nn.Module) -> bool:
    """Whether a network has BatchNorm layers that hold running statistics."""
    return any(isinstance(layer, _BatchNorm) and layer.running_mean is not None for layer in model.modules())


def _renewed(surface: Surface, coefficients: Tensor) -> dict[str, Tensor]:
    """One point, with the statistics that the training samples give there."""
    samples = surface.sets["train"]
    space = samples.problem.space
    row = surface.rows(coefficients, "loop")[0]
    norms = [m for m in space.model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    for layer in norms:
        layer.reset_running_stats()
        layer.training = True
    seen = 0
    for batch in samples:
        if samples.problem.batch_loss is not None:
            samples.problem.total(space.split(row), batch)
            continue
        count = len(taken_apart(batch)[1])
        seen += count
        for layer in norms:
            layer.momentum = count / seen  # all samples count alike, however they are cut
        samples.problem.outputs(space.split(row), batch)
    for layer in norms:
        layer.training = False
    return _pass(surface, coefficients, "loop")
