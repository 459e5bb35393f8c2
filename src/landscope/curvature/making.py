"""The Hessian, the Gauss-Newton matrix and the Fisher matrix of a network's mean loss: how they are made."""

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from landscope.curvature.batches import check_readable, is_batch
from landscope.curvature.exact import is_piecewise_linear, layerwise
from landscope.curvature.memory import budget
from landscope.curvature.modes import MODES, ONE_BY_ONE, Mode
from landscope.curvature.operators import AUTO, Curvature, State
from landscope.curvature.outputs import Middle, empirical, loss_hessian, monte_carlo
from landscope.curvature.problem import BatchLoss, BatchOutputs, Problem, count
from landscope.curvature.products import gauss_newton
from landscope.curvature.restoring import bare
from landscope.curvature.sampled import trace_samples
from landscope.curvature.space import Selection, check_network, space_of
from landscope.losses import check_mean
from landscope.spec import derive

Data = Iterable[Any] | tuple[Tensor, Tensor] | Mapping[str, Any] | Tensor
Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True, eq=False, repr=False)
class Hessian(Curvature):
    """The Hessian of a mean loss: an Operator. Make it with `hessian`."""

    title: ClassVar[str] = "Hessian"

    def _modes(self, index: int) -> Mapping[str, Mode]:
        return MODES

    def exact_trace(self) -> float | None:
        """Tr(H) = Tr(G), G the Gauss-Newton matrix, where the network is known to be piecewise linear; else None.

        Second derivatives of the outputs along a single parameter vanish there, so that H and G have one diagonal
        (off it they differ). Known are chains of linear layers, convolutions, ReLUs, BatchNorm in eval mode and
        pooling without tied parameters, with cross-entropy or the squared error.

        Cost: one forward pass and one backward pass a class.
        """
        return self._trace(is_piecewise_linear(self.problem))

    def sample_trace(self, count: int, seed: int = 0, first: int = 0) -> list[float] | None:
        """Independent unbiased samples of Tr(H), far closer to it than vᵀHv; None where they cannot be had.

        Tr(G) of the Gauss-Newton matrix is exact; for the rest (what activations, normalisation and attention bend)
        there are random signs for each unit of each sample, instead of one for each weight. Behind one fully connected
        layer of tanh, GELU or the like there is no randomness left. Known are networks whose chosen parameters are
        those of linear layers, convolutions, LayerNorm and BatchNorm in eval mode, each called once, with whatever
        else between them that keeps samples apart, with cross-entropy or the squared error: on the first batch the
        gradient by layers is held against autograd's.

        Args:
            count: How many samples.
            seed: For the signs.
            first: The number of the first sample: sample i of a seed is the same however many are asked for.

        Cost: that of `exact_trace`, two forward passes, and one or two backward passes a sample.
        """
        rank = torch.distributed.get_rank(self.group) if self.group is not None else 0
        found = None
        if layerwise(self.problem):
            with self.problem.quiet(), suppress(NotImplementedError, RuntimeError):  # no second derivative
                seeds = [derive(seed, "signs", rank, i) for i in range(first, first + count)]
                found = trace_samples(self.problem, seeds)
        return self._shared([math.nan] * count if found is None else found)


@dataclass(frozen=True, eq=False, repr=False)
class GaussNewton(Curvature):
    """Jᵀ M J over a network's outputs, M the loss's Hessian there: an Operator. Make it with `ggn`."""

    title: ClassVar[str] = "Gauss-Newton matrix"
    modes: ClassVar[tuple[str, str]] = (ONE_BY_ONE, "batched columns")

    def _modes(self, index: int) -> Mapping[str, Mode]:
        middle = partial(self._middle, index=index)
        return {
            name: Mode(partial(gauss_newton, middle=middle, batched=name != ONE_BY_ONE), True) for name in self.modes
        }

    def exact_trace(self) -> float | None:
        """The trace by per-sample gradient norms of each layer; None for layers or losses not known here.

        Cost: one forward pass and one backward pass a class.
        """
        return self._trace(True)

    def _middle(self, outputs: Tensor, targets: Tensor, index: int) -> Middle:
        return loss_hessian(self.problem.loss, outputs, targets)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False, repr=False)
class Fisher(GaussNewton):
    """Jᵀ M J over a network's outputs, M of outer products of gradients there: an Operator. Make it with `fisher`.

    Args:
        kind: ``"empirical"`` or ``"monte_carlo"``.
        seed: Draws the targets.
        draws: Targets for each sample.
    """

    kind: str = "empirical"
    seed: int = 0
    draws: int = 1

    title: ClassVar[str] = "Fisher matrix"
    joins: ClassVar[bool] = False  # what is drawn belongs to a batch

    def exact_trace(self) -> None:
        """None: the closed form is the Gauss-Newton matrix's."""
        return None

    def _middle(self, outputs: Tensor, targets: Tensor, index: int) -> Middle:
        if self.kind == "empirical":
            return empirical(self.problem.loss, outputs, targets)  # type: ignore[arg-type]
        before = self.problem.found.setdefault(("targets", index), targets.clone())
        if not torch.equal(before, targets):
            raise ValueError(
                "the batches came in another order than before, and the drawn targets belong to the samples' places: "
                "give the data in a fixed order (a DataLoader with shuffle=False, a list of batches)"
            )
        rank = torch.distributed.get_rank(self.group) if self.group is not None else 0
        seed = derive(self.seed, "targets", rank, index)
        return monte_carlo(self.problem.loss, outputs, targets, seed, self.draws)  # type: ignore[arg-type]


def hessian(
    model: nn.Module,
    loss: Loss | None,
    data: Data,
    *,
    params: Selection | Iterable[Selection] | None = None,
    batch_loss: BatchLoss | None = None,
    mode: str = AUTO,
    planned: int | None = None,
    dtype: torch.dtype | None = None,
    batchnorm: str = "eval",
    memory: int | None = None,
    group: Any = None,
) -> Hessian:
    """The Hessian of the mean loss over a data set, with respect to a network's parameters.

    H = (1/n) Σ_i ∇²_θ loss(model(x_i; θ), y_i): every sample counts the same, whatever its batch, a ragged last batch
    included. With ``batch_loss`` it is the sum of the losses over the sum of the counts, padded tokens left out.

    During a product the network is in eval mode, dropout included, autocast is off, and attention is made of plain
    matrix products (the fused kernels have no second derivative). Modes, buffers, gradients, random generators (those
    of a DataLoader, of Python and of NumPy, too) and a DataLoader's workers are as found afterwards, also after an
    exception. Wrappers (DistributedDataParallel, DataParallel, torch.compile) are taken off.

    Args:
        model: The network.
        loss: ``loss(outputs, targets)``, the mean over a batch; None where ``batch_loss`` is given.
        data: A pair of tensors (inputs, targets), or any re-iterable of batches (Batches, a DataLoader whose content
            does not change). A batch is (inputs, targets), several inputs followed by targets, or a mapping with
            ``labels``, whose other parts are passed to the network by name; with ``batch_loss`` anything.
        params: None for all trainable parameters; or names, globs over names, submodules, parameters (`space_of`).
        batch_loss: ``batch_loss(model, batch) -> (sum of the loss over the batch, count)``, for batches of any
            structure and for means over something else than samples.
        mode: ``"auto"``: the fastest on one batch of those that give the numbers of the plain double backward pass
            (timed once a process for networks alike); or one of `MODES`, where the same bits are wanted in every run.
            Where the loss has no second derivative, central differences are taken, with a warning.
        planned: How many columns will be multiplied in all: compiling is considered only where that repays it.
        dtype: The type to calculate in; None for the parameters' own, float32 for half precision.
        batchnorm: ``"eval"``: BatchNorm uses its running statistics. ``"frozen"``: it normalises by each batch's own
            statistics, through which the derivatives go, as in training, and the running ones stay as they are; the
            matrix then depends on how the data are cut into batches. Dropout is off in both.
        memory: Bytes that a block product may use besides its vectors; None for a quarter of what there is (of a GPU
            what is free, of a container its limit). Graphs of batches are kept from one product to the next in up to
            half of it, for as long as H lives: ``H.forget()`` frees them.
        group: A torch.distributed process group; each process gives its share of the data, one all-reduce sums a
            block product.

    Returns:
        An Operator on flat vectors, in the order of ``model.named_parameters()``.

    Raises:
        ValueError: for an empty data set, no parameters or parameters of several types, a loss that is not the plain
            mean (tried on the first batch), data that can be read only once, and, at the first product, a loss that
            differs between two passes over the data, or parameters that it reads past the model it is given.

    Cost: one forward pass over the data at once. A product takes one forward pass and about three gradients' worth of
    time a batch, less where the batch's graph is kept; the first one with a single column and the first block take
    besides the time of trying the modes on one batch, two to five products of it each, unless ``mode`` is named.

    The mean of (w·x)² over x = 1, 2 has the second derivative (1² + 2²)·2/2 = 5:

    >>> net = nn.Linear(1, 1, bias=False)
    >>> H = hessian(net, nn.MSELoss(), (torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1)))
    >>> (H @ torch.ones(1)).item()
    5.0
    """
    problem = _problem(model, loss, data, params, batch_loss, dtype, batchnorm)
    _check_mode(mode, MODES)
    room = budget(memory, problem.space.device)
    samples, state = _counted(problem, group)
    return Hessian(problem, samples, room, state, mode, planned, group)


def ggn(
    model: nn.Module,
    loss: Loss,
    data: Data,
    *,
    params: Selection | Iterable[Selection] | None = None,
    batch_outputs: BatchOutputs | None = None,
    mode: str = AUTO,
    dtype: torch.dtype | None = None,
    batchnorm: str = "eval",
    memory: int | None = None,
    group: Any = None,
) -> GaussNewton:
    """The generalised Gauss-Newton matrix of the mean loss over a data set.

    G = (1/n) Σ_i J_iᵀ ∇²_f loss(f_i, y_i) J_i, with f_i = model(x_i; θ) and J_i = ∂f_i/∂θ (Schraudolph 2002): positive
    semi-definite where the loss is convex in the outputs. The loss's Hessian is in closed form for cross-entropy and
    squared error, by autograd at the outputs for others.

    Args:
        model: The network; its outputs are a tensor, or an object with ``logits``.
        loss: ``loss(outputs, targets)``, the mean over a batch.
        data: As in `hessian`.
        params: As in `hessian`.
        batch_outputs: ``batch_outputs(model, batch) -> (outputs [n, c], targets [n], mask [n] or None)``, for batches
            of any structure; the rows where the mask is True count, such as the tokens that are no padding.
        mode: ``"auto"``, ``"one column at a time"`` or ``"batched columns"``.
        dtype: As in `hessian`.
        batchnorm: As in `hessian`.
        memory: As in `hessian`.
        group: As in `hessian`.

    Raises:
        ValueError: as `hessian` does.

    Cost of a product: three backward passes a batch, two of them where its graph is kept; of the first besides two
    forward passes and the trials of modes.

    For a linear network and the squared error it is the Hessian:

    >>> net = nn.Linear(1, 1, bias=False)
    >>> (ggn(net, nn.MSELoss(), (torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1))) @ torch.ones(1)).item()
    5.0
    """
    problem = _problem(model, loss, data, params, None, dtype, batchnorm, batch_outputs)
    _check_mode(mode, GaussNewton.modes)
    room = budget(memory, problem.space.device)
    samples, state = _counted(problem, group)
    return GaussNewton(problem, samples, room, state, mode, group=group)


def fisher(
    model: nn.Module,
    loss: Loss,
    data: Data,
    *,
    kind: str = "empirical",
    seed: int = 0,
    draws: int = 1,
    params: Selection | Iterable[Selection] | None = None,
    batch_outputs: BatchOutputs | None = None,
    mode: str = AUTO,
    dtype: torch.dtype | None = None,
    batchnorm: str = "eval",
    memory: int | None = None,
    group: Any = None,
) -> Fisher:
    """The Fisher matrix of a network's prediction over a data set, empirical or by Monte-Carlo draws.

    F = (1/n) Σ_i g_i g_iᵀ. Empirical: g_i is the gradient of sample i's loss at its own target; this is the second
    moment of the gradients, no Fisher information, and vanishes where the data are fitted (Kunstner et al. 2019).
    Monte-Carlo: targets are drawn from the network's prediction, the same ones in every product, and the mean over
    ``draws`` is unbiased for the Fisher information, which for cross-entropy and squared error is `ggn`'s matrix.

    Args:
        model: The network; its outputs are a tensor, or an object with ``logits``.
        loss: ``loss(outputs, targets)``, the mean over a batch.
        data: As in `hessian`.
        kind: ``"empirical"`` or ``"monte_carlo"``.
        seed: Draws the targets.
        draws: Targets drawn for each sample.
        params: As in `hessian`.
        batch_outputs: As in `ggn`; each row that counts is a sample.
        mode: As in `ggn`.
        dtype: As in `hessian`.
        batchnorm: ``"eval"`` only for gradients of single samples to be meant; as in `hessian`.
        memory: As in `hessian`.
        group: As in `hessian`.

    Raises:
        ValueError: for another kind, draws below 1, a loss without a likelihood to draw from, Monte-Carlo draws over
            batches that come in another order each time, and as `hessian` does.

    Cost of a product: as of `ggn`'s.

    Residuals 1 and 2 at inputs 1 and 2 have the gradients 2 and 8, whose squares are 34 in the mean:

    >>> net = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.ones_(net.weight)
    >>> (fisher(net, nn.MSELoss(), (torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1))) @ torch.ones(1)).item()
    34.0
    """
    if kind not in ("empirical", "monte_carlo"):
        raise ValueError(f'kind is "empirical" or "monte_carlo", not {kind!r}')
    if draws < 1:
        raise ValueError(f"each sample needs at least 1 drawn target, not {draws}")
    problem = _problem(model, loss, data, params, None, dtype, batchnorm, batch_outputs)
    _check_mode(mode, Fisher.modes)
    room = budget(memory, problem.space.device)
    samples, state = _counted(problem, group)
    return Fisher(problem, samples, room, state, mode, group=group, kind=kind, seed=seed, draws=draws)


def _check_mode(mode: str, modes: Iterable[str]) -> None:
    if mode not in (AUTO, *modes):
        raise ValueError(f"mode is one of {', '.join((AUTO, *modes))}, not {mode!r}")


def _problem(
    model: nn.Module,
    loss: Loss | None,
    data: Data,
    params: Selection | Iterable[Selection] | None,
    batch_loss: BatchLoss | None,
    dtype: torch.dtype | None,
    batchnorm: str,
    batch_outputs: BatchOutputs | None = None,
) -> Problem:
    if not isinstance(model, nn.Module):
        raise TypeError(f"the first argument is the network itself, an nn.Module, not {type(model).__name__}")
    if (loss is None) == (batch_loss is None):
        raise ValueError(
            "give either loss, a function (outputs, targets) -> mean over the batch, or loss=None and batch_loss=, a "
            "function (model, batch) -> (sum of the loss, count)"
        )
    if batchnorm not in ("eval", "frozen"):
        raise ValueError(f'batchnorm is "eval" or "frozen", not {batchnorm!r}')
    if loss is not None:
        check_mean(loss)
    check_readable(data)
    inner = bare(model)
    check_network(inner)
    batches = [data] if is_batch(data) else data
    space = space_of(inner, params, dtype)
    return Problem(space, loss, batch_loss, batches, batchnorm == "frozen", batch_outputs)  # type: ignore[arg-type]


def _counted(problem: Problem, group: Any) -> tuple[float, State]:
    found = count(problem)
    samples = found.samples
    if group is not None:
        whole = torch.tensor(samples, dtype=torch.float64, device=problem.space.device)
        torch.distributed.all_reduce(whole, group=group)
        samples = whole.item()
    if not samples > 0:
        raise ValueError("an empty data set: a mean loss needs at least one sample")
    return samples, State(found.value)
