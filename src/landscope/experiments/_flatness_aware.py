"""What the experiments on flatness-aware regularization share: the paper, what is trained, and what is measured."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.flop_counter import FlopCounterMode

from landscope.curvature import hessian
from landscope.linalg import spectrum
from landscope.losses import Loss, cross_entropy
from landscope.measures.spectrum import SAME_BITS
from landscope.models import mlp
from landscope.optimizers import SAM
from landscope.regularizers import flatness, with_dropout
from landscope.spec import Call, Paper, Recipe, call
from landscope.types import Batches, Estimate, Snapshot

PAPER = Paper(
    "flatness_aware",
    "Flatness-Aware Regularization for Robust Generalization in Deep Neural Networks",
    "the authors of ICLR 2026 submission 21421, its long version",
    2025,
    "https://openreview.net/forum?id=f4oAYJxrgH",
)
RATE, DECAY, DROPOUT = 0.01, 5e-4, 0.3  # Adam's learning rate, L2, the share of units dropped
PROBES, EVERY = 5, 10


@dataclass(frozen=True)
class Setup:
    """What is trained at one scale on one data set; everything is fixed here, before any run.

    Args:
        data: Sizes of the sets drawn; the validation set is where everything is chosen.
        epochs: Passes over the training set.
        looks: Epochs after which the published arms are looked at; each is a run of its own, the beginning of a longer
            one.
        batch: The batch size.
        widths: Of the hidden layers.
        strengths: λ of the arms, ascending from 0.
        decays: Other L2 strengths than the published one.
        radii: SAM's.
    """

    data: dict[str, Any]
    epochs: int = 10
    looks: tuple[int, ...] = (2, 4, 6, 8, 10)
    batch: int = 128
    widths: tuple[int, ...] = (512, 256)
    strengths: tuple[float, ...] = (0.0, 0.001, 0.01, 0.1, 1.0)
    decays: tuple[float, ...] = (0.0, 1e-4, 2e-3, 1e-2)
    radii: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2)

    def __post_init__(self) -> None:
        """Refuse strengths, looks and batch sizes that make no sense."""
        wrong = [s for s in self.strengths if not 0 <= s < math.inf]
        if wrong:
            raise ValueError(
                f"λ is a finite number of at least 0, not {wrong[0]}: a negative one asks for sharp minima"
            )
        if not self.strengths or self.strengths[0] != 0 or any(b <= a for a, b in pairwise(self.strengths)):
            raise ValueError(f"the strengths ascend from 0, the arm without the penalty, not {self.strengths}")
        if not 1 <= self.batch <= self.data["train"]:
            raise ValueError(
                f"a batch holds between 1 and all {self.data['train']:,} training samples, not {self.batch:,}: "
                "give a larger data set"
            )
        if self.looks[-1:] != (self.epochs,) or self.looks[0] < 1 or any(b <= a for a, b in pairwise(self.looks)):
            raise ValueError(f"looks ascend from epoch 1 at the least to the last one, {self.epochs}, not {self.looks}")

    @property
    def per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return math.ceil(self.data["train"] / self.batch)


def penalty(strength: float, *, every: int = EVERY, matrix: str = "hessian") -> Call:
    """The penalty λ·Tr(H²)/B at every so many steps, as it stands there: not made up for by a larger weight."""
    return call(flatness, strength=strength / every, probes=PROBES, every=every, matrix=matrix)


def run(
    of: Setup,
    data: Any,
    seed: int,
    term: Call | None = None,
    *,
    decay: float = DECAY,
    rho: float | None = None,
    epochs: int | None = None,
    noise: float | None = None,
) -> Recipe:
    """One run of the paper's network.

    Args:
        of: What is trained.
        data: The data set.
        seed: The seed.
        term: The penalty, if any.
        decay: The strength of L2.
        rho: SAM's radius; None for plain Adam.
        epochs: Where it ends, of the epochs that the learning rate is decayed over; all of them if None.
        noise: The share of training labels that are redrawn.
    """
    total, settings = of.epochs * of.per_epoch, {"lr": RATE, "weight_decay": decay}
    return Recipe(
        data=data.draw(**of.data, **({} if noise is None else {"label_noise": noise})),
        model=call(with_dropout, model=call(mlp, widths=of.widths), p=DROPOUT),
        loss=call(cross_entropy),
        optimizer=call(Adam, **settings) if rho is None else call(SAM, base="adam", rho=rho, **settings),
        schedule=call(CosineAnnealingLR, T_max=total),
        steps=(epochs or of.epochs) * of.per_epoch,
        batch_size=of.batch,
        seed=seed,
        regularizers=() if term is None else (term,),
    )


def sweep(of: Setup, data: Any, seed: int, *, every: int = EVERY, looks: tuple[int, ...] | None = None) -> list[Recipe]:
    """All λ of a seed, each at every look (the end alone if None)."""
    terms = [penalty(strength, every=every) if strength else None for strength in of.strengths]
    return [run(of, data, seed, term, epochs=epochs) for term in terms for epochs in looks or (of.epochs,)]


# --- measures -------------------------------------------------------------------------------------------------------


def curvature(
    snapshot: Snapshot,
    *,
    batch: int = 128,
    probes: int = 5,
    numbers: int = 3 * 2**18,
    top: int = 9,
    rtol: float = 0.2,
    rest: int = 3,
) -> dict[str, float | Estimate]:
    """Tr(H²) of the training loss, and the paper's flatness: the mean of Tr(H²)/B over batches of B samples.

    H is the Hessian in all trained parameters, in eval mode (dropout off). Tr(H²) comes from its largest eigenvalues by
    Lanczos and random vectors outside of their eigenvectors (`landscope.linalg.spectrum`): a few eigenvalues make up
    most of it, so that this is far more exact than random vectors alone, and independent of the penalty's own code. The
    flatness of batches is estimated as the penalty does (`landscope.regularizers.flatness`). A batch's Tr(H²) lies
    above that of all samples, by the trace of the covariance of the batch's Hessian.

    Args:
        snapshot: The network and its data.
        batch: B, or all samples where there are fewer.
        probes: Directions for each batch, at least 2.
        numbers: Tr(H²) is of as many training samples as have this many input numbers together (128 at the least, all
            where there are fewer), drawn by the snapshot's seed.
        top: Eigenvalues found by Lanczos.
        rtol: How well they have to be known, residual over magnitude; what is missing is estimated with the rest.
        rest: Random vectors for the rest, at least 2.

    Returns:
        ``hessian_trace_squared``, an Estimate over the vectors; ``batch_flatness``, one over full batches (where there
        is but one, over directions); ``curvature_products``, of H with a vector.

    Raises:
        ValueError: for fewer than 2 directions or vectors, or a batch below 1.
        FloatingPointError: where the loss or its derivatives are not finite.

    Cost: 15 to 40 products, and for each direction and batch about 6 passes of each hidden layer.
    """
    if min(probes, rest) < 2 or batch < 1:
        raise ValueError(f"curvature needs probes and rest >= 2 and batch >= 1, not {probes}, {rest} and {batch}")
    train, seed = snapshot.train, snapshot.seed
    if train.n > (samples := max(128, numbers // train.inputs[0].numel())):
        some = torch.randperm(train.n, generator=torch.Generator().manual_seed(seed))[:samples].to(train.inputs.device)
        train = Batches(train.inputs[some], train.targets[some], train.size)
    operator = hessian(snapshot.model, snapshot.loss, train, mode=SAME_BITS)
    top = min(top, operator.dim - 1)
    found = spectrum(operator, top, rtol=rtol, probes=rest, steps=2, max_products=6 * top, check=False, seed=seed)
    flat = _of_batches(snapshot, min(batch, snapshot.train.n), probes)
    if found.trace_squared is None or not bool(torch.isfinite(flat).all()):
        raise FloatingPointError("Tr(H²) is NaN or infinite: are weights and data finite?")
    return {
        "hessian_trace_squared": found.trace_squared,
        "batch_flatness": Estimate.of(flat.numpy(), draws="flatness of batches"),
        "curvature_products": float(found.products),
    }


def _of_batches(snapshot: Snapshot, size: int, probes: int) -> Tensor:
    """Tr(H²)/B of each full batch of B training samples, or of one batch along each direction; float64."""
    x, y = snapshot.train.inputs, snapshot.train.targets
    generator = torch.Generator().manual_seed(snapshot.seed)
    parts = torch.randperm(len(x), generator=generator)[: len(x) // size * size].view(-1, size).to(x.device)
    term = flatness(strength=1.0, every=1, loss=snapshot.loss)
    values: list[Tensor] = []
    for part in parts:
        some = x[part], y[part]
        drawn = [term.draw(snapshot.model, some, generator) for _ in range(probes)]
        with torch.enable_grad():  # outside of chains of linear layers H is made of derivatives
            values += [term.trace(snapshot.model, some, drawn=directions).detach() for directions in drawn]
    found = torch.stack(values).double().cpu().view(len(parts), probes) / size
    return found.mean(1) if len(parts) > 1 else found[0]


def work(snapshot: Snapshot, *, batch: int = 128, probes: int = PROBES, every: int = EVERY) -> dict[str, float]:
    """What a training step costs with the penalty, in plain steps: multiplications in products of matrices.

    Counted, not timed, so that the same network always gives the same number; element-wise operations and the drawing
    of signs are not in it.

    Args:
        snapshot: The network and its data.
        batch: Samples in a batch.
        probes: Directions.
        every: Steps between penalties.

    Returns:
        ``work_of_penalty``, a step with the penalty over a plain one; ``work_of_training``, the mean over ``every``
        steps, of which one has it; ``work_plain_way`` and ``work_plain_way_of_training``, the same with the penalty
        by two plain derivatives for each direction, as the formula is read.

    Cost: one step of each kind, once a process for networks of the same layers.
    """
    layers = tuple((m.in_features, m.out_features) for m in snapshot.model.modules() if isinstance(m, nn.Linear))
    size = min(batch, snapshot.train.n)
    kind = (layers, size, probes)
    if kind not in _counted:
        model = copy.deepcopy(snapshot.model).train()
        x, y = snapshot.train.inputs[:size], snapshot.train.targets[:size]
        _counted[kind] = _steps(model, snapshot.loss, x, y, probes)
    plain, ours, naive = _counted[kind]
    return {
        "work_of_penalty": ours / plain,
        "work_of_training": 1 + (ours / plain - 1) / every,
        "work_plain_way": naive / plain,
        "work_plain_way_of_training": 1 + (naive / plain - 1) / every,
    }


_counted: dict[Any, tuple[int, int, int]] = {}


def _steps(model: nn.Module, loss: Loss, x: Tensor, y: Tensor, probes: int) -> tuple[int, int, int]:
    """Multiplications (and as many additions) of a plain step, one with the penalty, and one with it the plain way."""
    weights = [w for w in model.parameters() if w.requires_grad]
    term = flatness(strength=1.0, probes=probes, every=1, loss=loss, seed=0)

    def plain_way() -> Tensor:
        value = loss(model(x), y)
        gradient = torch.autograd.grad(value, weights, create_graph=True)
        for _ in range(probes):
            signs = [torch.ones_like(w) for w in weights]
            image = torch.autograd.grad(gradient, weights, signs, create_graph=True)
            value = value + torch.stack([h.square().sum() for h in image]).sum()
        return value

    def ours() -> Tensor:
        outputs = model(x)
        return loss(outputs, y) + term(model, (x, y), outputs=outputs)

    def count(objective: Callable[[], Tensor]) -> int:
        with FlopCounterMode(display=False) as counter:
            torch.autograd.grad(objective(), weights)
        return counter.get_total_flops()

    return count(lambda: loss(model(x), y)), count(ours), count(plain_way)
