"""Losses: each function returns ``loss(outputs, targets) -> scalar``, the mean over the samples of a batch."""

from collections.abc import Callable

from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]


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

    Class indices are taken as one-hot vectors.

    >>> squared_error()(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0]])).item()
    5.0
    """
    return _squared_error


def _squared_error(outputs: Float[Tensor, " n c"], targets: Shaped[Tensor, " n *c"]) -> Float[Tensor, ""]:
    if not targets.is_floating_point():
        targets = functional.one_hot(targets, outputs.shape[1])
    return (outputs - targets.reshape(outputs.shape)).square().sum(1).mean()


def check_mean(loss: Loss) -> None:
    """Refuse a loss of which a data set's mean is not the mean of its batches' means.

    Raises:
        ValueError: for a torch loss with a reduction other than "mean" or with class weights.
    """
    if not isinstance(loss, nn.Module):
        return
    name = type(loss).__name__
    reduction = getattr(loss, "reduction", "mean")
    if reduction != "mean":
        raise ValueError(
            f"{name}(reduction={reduction!r}): Landscope weights every sample equally and needs the mean over a batch; "
            "use reduction='mean'"
        )
    if getattr(loss, "weight", None) is not None:
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
    if ignored is not None and not targets.is_floating_point() and bool((targets == ignored).any()):
        raise ValueError(
            f"some targets are {ignored}, which {type(loss).__name__} ignores: its mean is not over the samples; "
            "leave those samples out of the data"
        )
