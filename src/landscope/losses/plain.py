"""Cross-entropy and squared error, and the refusal of losses that are no plain mean over samples."""

import functools
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]
_MEANS_OF_WEIGHTED = (  # their weights multiply elements, and the mean is over all of these
    *(nn.BCELoss, nn.BCEWithLogitsLoss),
    *(functional.binary_cross_entropy, functional.binary_cross_entropy_with_logits),
)
FEW_CLASSES = 32
_MEANS = ("mean", "batchmean")  # KLDivLoss calls the mean over samples "batchmean"


def cross_entropy() -> Loss:
    """The mean over samples of −log softmax(outputs)[target], in nats; targets are class indices.

    >>> import math
    >>> loss = cross_entropy()(torch.zeros(5, 4), torch.tensor([0, 1, 2, 3, 0]))
    >>> math.isclose(loss.item(), math.log(4), rel_tol=1e-6)
    True
    """
    return functional.cross_entropy


def squared_error() -> Loss:
    """The mean over samples of the squared distance ‖outputs − target‖², summed over outputs.

    Integers in one dimension, ``[n]``, are class indices and taken as one-hot vectors where there is more than one
    output; all other integers are numbers: one-hot vectors themselves, or what one output is to be.

    >>> squared_error()(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0]])).item()
    5.0
    >>> squared_error()(torch.tensor([[0.0, 0.5]]), torch.tensor([1])).item()
    0.25
    >>> squared_error()(torch.tensor([[3.0], [5.0]]), torch.tensor([3, 5])).item()
    0.0
    """
    return _squared_error


def _squared_error(outputs: Float[Tensor, " n c"], targets: Shaped[Tensor, " n *c"]) -> Float[Tensor, ""]:
    return (outputs - as_numbers(targets, outputs)).square().sum(1).mean()


def as_numbers(targets: Shaped[Tensor, " n *c"], outputs: Float[Tensor, " n *k"]) -> Float[Tensor, " n *k"]:
    """What outputs are compared with by the squared error: targets of their shape, class indices as one-hot vectors.

    Raises:
        ValueError: for targets that are neither numbers for each of the outputs nor class indices.
    """
    if not targets.is_floating_point():
        if targets.dim() == 1 and outputs.dim() == 2 and outputs.shape[1] > 1:
            targets = one_hot(targets, outputs.shape[1])
        targets = targets.to(outputs.dtype)
    if targets.numel() != outputs.numel():
        raise ValueError(
            f"squared_error needs a target for each of the outputs {list(outputs.shape)}, or class indices (integers, "
            f"[{len(outputs)}]), not {list(targets.shape)} of {targets.dtype}"
        )
    return targets.reshape(outputs.shape)


def one_hot(targets: Shaped[Tensor, " n"], classes: int) -> Bool[Tensor, " n classes"]:
    """Class indices as one-hot vectors; unlike torch's function it can be vmapped.

    Raises:
        ValueError: for an index that is none of the classes (outside of transforms and compiled code).
    """
    check_inside(targets, f"class indices from 0 to {classes - 1}", lambda y: (y >= 0) & (y < classes))
    return targets[:, None] == torch.arange(classes, device=targets.device)


@torch.no_grad()
def check_inside(targets: Tensor, what: str, inside: Callable[[Tensor], Tensor]) -> None:
    """Refuse targets outside of a loss's domain, wherever they can be looked at.

    They cannot inside `torch.func` transforms of them, in compiled code and on the meta device: nothing is checked
    there.

    Args:
        targets: A batch's targets.
        what: What they have to be.
        inside: Whether they are: of each number, or of each sample.

    Raises:
        ValueError: for the first one that is not.
    """
    if torch.compiler.is_compiling() or torch.func.debug_unwrap(targets) is not targets or targets.is_meta:
        return
    found = inside(targets)
    if not bool(found.all()):
        first = tuple((~found).nonzero()[0].tolist())
        raise ValueError(f"targets have to be {what}; that of sample {first[0]} is {targets[first].tolist()}")


@torch.no_grad()
def looked_at(loss: Loss, outputs: Tensor, targets: Tensor) -> float:
    """The loss of outputs that are only looked at: ``loss(outputs, targets)`` up to rounding, sometimes faster.

    On a CPU the softmax of a few classes costs several times less where the samples, not the classes, lie side by
    side in memory.

    >>> outputs, targets = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1])
    >>> abs(looked_at(cross_entropy(), outputs, targets) - cross_entropy()(outputs, targets).item()) < 1e-6
    True
    """
    few = outputs.dim() == 2 and outputs.shape[1] <= FEW_CLASSES < len(outputs) and targets.dim() == 1
    if not (few and loss is functional.cross_entropy and outputs.device.type == "cpu"):
        return loss(outputs, targets).item()
    if targets.is_floating_point() or bool((targets < 0).any()):  # those that are left out of the mean
        return loss(outputs, targets).item()
    return -torch.log_softmax(outputs.t().contiguous(), 0).gather(0, targets.unsqueeze(0)).mean().item()


def check_mean(loss: Loss) -> None:
    """Refuse a loss of which a data set's mean is not the mean of its batches' means, as far as its settings tell.

    Raises:
        ValueError: for a torch loss (a module, or a function with settings bound by functools.partial) with a
            reduction other than the mean or with class weights.
    """
    if isinstance(loss, nn.Module):
        name, settings = type(loss).__name__, {n: getattr(loss, n, None) for n in ("reduction", "weight")}
    elif isinstance(loss, functools.partial):
        name, settings = getattr(loss.func, "__name__", repr(loss.func)), loss.keywords
    else:
        return
    reduction = settings.get("reduction") or "mean"
    if reduction not in _MEANS:
        raise ValueError(
            f"{name}(reduction={reduction!r}): Landscope weights every sample equally and needs the mean over a batch; "
            "use reduction='mean'"
        )
    kind = loss.func if isinstance(loss, functools.partial) else type(loss)
    if settings.get("weight") is not None and kind not in _MEANS_OF_WEIGHTED:
        raise ValueError(
            f"{name}(weight=…) divides by the weights of the batch, so that batches of one size count differently; "
            "give a function that multiplies each sample's loss by its weight and takes the plain mean"
        )


def check_targets(loss: Loss, targets: Tensor) -> None:
    """Refuse targets that a loss would leave out of its mean.

    Raises:
        ValueError: where a target equals the loss's ``ignore_index``.
    """
    ignored = getattr(loss, "ignore_index", None) if isinstance(loss, nn.Module) else None
    if isinstance(loss, functools.partial):
        ignored = loss.keywords.get("ignore_index")
    if loss is functional.cross_entropy or (isinstance(loss, functools.partial) and ignored is None):
        ignored = -100  # what torch's functions leave out unless told otherwise
    if ignored is not None and not targets.is_floating_point() and bool((targets == ignored).any()):
        name = getattr(loss, "__name__", type(loss).__name__)
        raise ValueError(
            f"some targets are {ignored}, which {name} ignores: its mean is not over the samples; "
            "leave those samples out of the data"
        )


@torch.no_grad()
def check_additive(loss: Loss, outputs: Tensor, targets: Tensor) -> None:
    """Refuse a loss that on these outputs is not the plain mean over samples, whatever function it is.

    A third of the batch and the rest must give, weighted by their samples, what the whole gives. Sums, class weights
    and ignored targets do not, unless both parts happen to hold the same share of them.

    Raises:
        ValueError: where they do not, or where the loss is no scalar.
    """
    n, outputs = len(targets), outputs.detach()
    whole = loss(outputs, targets)
    if whole.numel() != 1:
        raise ValueError(
            f"the loss gives {list(whole.shape)} values for a batch of {n}; it has to give one, the mean over the batch"
        )
    if n < 2:
        return
    cut = max(1, n // 3)
    parts = (cut * loss(outputs[:cut], targets[:cut]) + (n - cut) * loss(outputs[cut:], targets[cut:])) / n
    tolerance = torch.finfo(whole.dtype).eps ** 0.5 * whole.abs() + torch.finfo(whole.dtype).tiny
    difference = (whole - parts).abs()
    if bool(torch.isfinite(difference)) and bool(difference > tolerance):
        raise ValueError(
            f"the loss of a batch of {n} is {whole.item():.6g}, but its parts of {cut} and {n - cut} samples give "
            f"{parts.item():.6g} together: it is not a plain mean over samples (a sum, class weights or ignored "
            "targets?), so the loss over a data set would depend on how it is cut into batches; "
            "give a loss that is the mean over the batch"
        )
