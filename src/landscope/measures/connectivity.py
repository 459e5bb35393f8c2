"""Whether two networks lie in one valley: the loss on the straight line between them.

A measure looks at one state of one run. A pair of runs becomes one by `halfway`: a run of no steps whose network,
`between`, is the one in the middle and holds both ends::

    replace(dense, steps=0, model=call(between, of=dense.model),
            start=call(halfway, first=at(one, "end"), second=at(other, "end")))
"""

import copy
from collections.abc import Mapping
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from landscope.models import device_of, evaluating
from landscope.spec import Call
from landscope.train import evaluate
from landscope.types import Batches, Snapshot

ENDS = ("first", "second")


@final
class Between(nn.Module):
    """A network that holds two others of its kind as buffers: the ends of a line on which it lies.

    Args:
        net: The network; its outputs are this one's. As it is made, both ends are where it is.
    """

    net: nn.Module

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        for end in ENDS:
            for name, t in net.state_dict().items():
                self.register_buffer(_place(end, name), t.detach().clone())

    def forward(self, inputs: Float[Tensor, " n *shape"]) -> Float[Tensor, " n *outputs"]:
        """The outputs of the network in the middle."""
        return self.net(inputs)

    def end(self, which: str) -> dict[str, Tensor]:
        """The state of the ``"first"`` or ``"second"`` network.

        Raises:
            LookupError: for another name.
        """
        if which not in ENDS:
            raise LookupError(f"a line has the ends {' and '.join(ENDS)}, not {which!r}")
        held = dict(self.named_buffers(recurse=False))
        return {name: held[_place(which, name)] for name in self.net.state_dict()}


def _place(end: str, name: str) -> str:
    return f"{end}/{name.replace('.', '/')}"


def between(shape: tuple[int, ...], outputs: int, /, *, of: Call) -> Between:
    """A Recipe's model: the network that ``of`` gives, with room for two ends. Its state is `halfway`'s to give."""
    return Between(of(shape, outputs))


def halfway(*, first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A Recipe's start for `between`: the mean of two states, and both of them.

    Whole numbers (a BatchNorm's count of batches) are the first's.

    Raises:
        ValueError: for states of networks of different kinds.

    >>> state = halfway(first={"bias": torch.tensor([1.0])}, second={"bias": torch.tensor([3.0])})
    >>> {name: t.item() for name, t in state.items()}
    {'net.bias': 2.0, 'first/bias': 1.0, 'second/bias': 3.0}
    """
    differ = sorted(
        name for name in {*first, *second} if name not in first or name not in second or _unlike(first, second, name)
    )
    if differ:
        raise ValueError(f"there is no line between networks of different kinds: they differ in {', '.join(differ)}")
    state = {f"net.{name}": t for name, t in _mixed(first, second, 0.5).items()}
    for end, held in zip(ENDS, (first, second), strict=True):
        state |= {_place(end, name): t.detach().clone() for name, t in held.items()}
    return state


def _unlike(first: Mapping[str, Tensor], second: Mapping[str, Tensor], name: str) -> bool:
    return first[name].shape != second[name].shape or first[name].dtype != second[name].dtype


def _mixed(first: Mapping[str, Tensor], second: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """(1 − share) · first + share · second, exact at both ends and where the two are equal."""
    return {
        name: torch.lerp(a.detach(), second[name].to(a.device), share) if a.is_floating_point() else a.detach().clone()
        for name, a in first.items()
    }


def linear_connectivity(snapshot: Snapshot, *, points: int = 11, renewed: bool = True) -> dict[str, float | Tensor]:
    """Loss and accuracy on the straight line between two networks, and the barrier on it (for a `Between` network).

    At t in [0, 1] the parameters are (1 − t)·θ₁ + t·θ₂, and the barrier is max over t of L(t) less (L(0) + L(1)) / 2:
    the instability of Frankle et al., "Linear mode connectivity and the lottery ticket hypothesis" (2020), section 2,
    which takes 30 points and the error. It is never negative, however the ends were chosen; the rise at the midpoint,
    L(½) − (L(0) + L(1)) / 2, may be either, and is what a claim should be about. Any other network has no values.

    BatchNorm's running mean and variance are those of no network on the line, where mixed: with ``renewed`` they are
    computed anew at every point, both ends included, as plain averages over one pass through the training set in its
    evaluation batches; else they are mixed like the weights.

    Args:
        snapshot: The network, a `Between`, and its data.
        points: Points on the line, both ends included and at equal distances; odd, so that the midpoint is one.
        renewed: Whether the statistics of normalisation are computed anew.

    Returns:
        ``line_positions``; ``line_train_loss``, ``line_train_accuracy`` and the same of the test set, shape
        ``[points]``; for each of these ``<set>_loss_barrier`` and ``<set>_loss_midpoint_rise`` (nats),
        ``<set>_error_barrier`` and ``<set>_error_midpoint_rise`` (shares); ``line_length`` ‖θ₂ − θ₁‖.

    Raises:
        ValueError: for fewer than 3 points, or an even number.

    Cost: a forward pass over training and test set for each point, and with BatchNorm another over the training set.
    """
    if points < 3 or points % 2 == 0:
        raise ValueError(f"points is an odd number of at least 3, so that the midpoint is among them, not {points}")
    model = snapshot.model
    if not isinstance(model, Between):
        return {}
    first, second = (model.end(end) for end in ENDS)
    positions = torch.linspace(0, 1, points, dtype=torch.float64)
    net, sets = copy.deepcopy(model.net), {"train": snapshot.train, "test": snapshot.test}
    found: dict[str, list[float]] = {}
    for share in positions.tolist():
        net.load_state_dict(_mixed(first, second, share))
        if renewed:
            _renew(net, snapshot.train)
        for name, batches in sets.items():
            score = evaluate(net, snapshot.loss, batches) if batches is not None else {}
            for kind, value in score.items():
                found.setdefault(f"{name}_{kind}", []).append(value)
    values: dict[str, float | Tensor] = {"line_positions": positions}
    for name, line in found.items():
        values |= _barrier(name, torch.tensor(line, dtype=torch.float64))
    squares = (float((second[n] - a).double().square().sum()) for n, a in first.items() if n in dict(_weights(net)))
    return values | {"line_length": sum(squares) ** 0.5}


def _weights(net: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(net.named_parameters(remove_duplicate=False))


def _barrier(name: str, line: Float[Tensor, " points"]) -> dict[str, float | Tensor]:
    """A line with its barrier and the rise at its midpoint; of an accuracy those of the error."""
    height = 1 - line if name.endswith("_accuracy") else line
    level = float(height[0] + height[-1]) / 2
    what = name.replace("_accuracy", "_error")
    return {
        f"line_{name}": line,
        f"{what}_barrier": float(height.max()) - level,
        f"{what}_midpoint_rise": float(height[len(height) // 2]) - level,
    }


@torch.no_grad()
def _renew(net: nn.Module, batches: Batches) -> None:
    """Compute the running statistics of a network's BatchNorm layers anew, as plain averages over the batches."""
    norms = [layer for layer in net.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    if not norms:
        return
    momenta, device = [layer.momentum for layer in norms], device_of(net)
    with evaluating(net):
        for layer in norms:
            layer.reset_running_stats()
            layer.momentum = None  # the plain average
            layer.train()
        for inputs, _ in batches:
            net(inputs.to(device))
        renewed = [buffer.clone() for layer in norms for buffer in layer.buffers()]
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
    for buffer, content in zip((b for layer in norms for b in layer.buffers()), renewed, strict=True):
        buffer.copy_(content)  # the contents that were found are back: what was computed anew stays on purpose
