"""Generalization layers (Taborsky and Hansen, "Generalization by design", 2021), and how they are trained.

A generalization layer adds nodes between two layers of a network and keeps what flows through them small: by a skip
around them whose weight ν shrinks while their own weights learn slowly (section 3.1), or by dropping them at random
(section 3.2). Both are ordinary modules; `insert` puts one into a network that exists already.

>>> from torch import nn
>>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
>>> insert(net, "1", GeneralizationLayer(8))
>>> optimizer = torch.optim.SGD(parameter_groups(net), lr=0.1)  # then: slow_layers(optimizer, after=…) every step,
>>> anneal_skips(net, step=500, steps=1000)  # and this one as training goes on
>>> round(net[1][1].nu.item(), 4)
0.4375
"""

import difflib
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.lr_scheduler import ChainedScheduler, LRScheduler, MultiplicativeLR

from landscope.spec import Call

MARK = "generalization"  # a parameter group's key: whether it holds the weights of generalization layers


@final
class Residual(nn.Module):
    """``branch(x) + shortcut(x)``.

    Args:
        branch: What is added to the shortcut.
        shortcut: The identity unless given; its outputs have the branch's shape.

    >>> Residual(nn.Identity())(torch.ones(1, 2))
    tensor([[2., 2.]])
    """

    branch: nn.Module
    shortcut: nn.Module

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = nn.Identity() if shortcut is None else shortcut

    def forward(self, x: Float[Tensor, " n *shape"]) -> Float[Tensor, " n *outputs"]:
        """The sum of both ways."""
        return self.branch(x) + self.shortcut(x)


@final
class GeneralizationLayer(nn.Module):
    """Added nodes with a ν-weighted skip around them: ``W₂ relu(W₁ x) + ν W_s x`` (section 3.1, Fig. 3).

    It has as many nodes as inputs. The skip is the identity where inputs and outputs have the same size, else a linear
    projection without bias (a 1×1 convolution). No activation follows: the layer's outputs are the next layer's
    pre-activations, as in Fig. 3; put a ReLU behind it where the next module does not bring its own.

    ν is a buffer: it is saved with the model and is no parameter. `anneal_skips` sets it while training.

    Choices where the paper is silent: biases everywhere but in the projection; for convolutions, 3×3 kernels and no
    BatchNorm, the stride in the second one.

    Args:
        inputs: Nodes of the layer before (features, or maps of a convolution).
        outputs: Nodes of the layer after; None means as many.
        convolution: Whether inputs are maps ``[n, inputs, h, w]`` rather than features ``[n, inputs]``.
        nodes: Added nodes; None means as many as inputs.
        stride: Of the second convolution and of the projection.
        batchnorm: Whether each convolution (or linear map) is followed by BatchNorm and has no bias.
        nu: The skip's weight at the start.

    Raises:
        ValueError: for sizes below 1, a negative ν, or a stride without convolutions.

    >>> layer = GeneralizationLayer(16, 32, convolution=True, stride=2)
    >>> layer(torch.zeros(1, 16, 8, 8)).shape
    torch.Size([1, 32, 4, 4])
    """

    block: nn.Sequential
    skip: nn.Module
    nu: Tensor
    annealed: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int | None = None,
        *,
        convolution: bool = False,
        nodes: int | None = None,
        stride: int = 1,
        batchnorm: bool = False,
        nu: float = 1.0,
    ) -> None:
        super().__init__()
        outputs, nodes = inputs if outputs is None else outputs, inputs if nodes is None else nodes
        _check_sizes(inputs, outputs, nodes, stride, convolution)
        _check_nu(nu)
        first = _affine(inputs, nodes, convolution=convolution, batchnorm=batchnorm)
        second = _affine(nodes, outputs, convolution=convolution, batchnorm=batchnorm, stride=stride)
        self.block = nn.Sequential(*first, nn.ReLU(), *second)
        if inputs == outputs and stride == 1:
            self.skip = nn.Identity()
        elif convolution:
            self.skip = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        else:
            self.skip = nn.Linear(inputs, outputs, bias=False)
        self.register_buffer("nu", torch.tensor(float(nu)))
        self.register_buffer("annealed", torch.zeros((), dtype=torch.int64))  # calls of `annealed_skips`

    def forward(self, x: Float[Tensor, " n *shape"]) -> Float[Tensor, " n *outputs"]:
        """The block's outputs plus ν times the skip's."""
        return self.block(x) + self.nu * self.skip(x)

    def extra_repr(self) -> str:
        """The skip's weight, for printing."""
        return f"nu={self.nu.item():.4g}" if self.nu.device.type != "meta" else ""


@final
class DropoutGeneralizationLayer(nn.Module):
    """Added nodes, each dropped with probability p, without a skip (section 3.2, Fig. 5).

    ``relu(W₂ dropout(relu(W₁ x)))``: the dropout acts on the added nodes alone, whatever else the network drops. In
    eval mode nothing is dropped. Place it after an encoder (section 5).

    With convolutions and 64 maps it is two 3×3 convolutions 64→64 with BatchNorm, 73,984 parameters, which explains
    the paper's 0.3M and 0.93M parameters and its two extra layers (Table 1); the paper does not give the sizes.
    The paper drops a node "for one particular batch"; here each sample of a batch has its own draws, as PyTorch's
    dropout does.

    Args:
        inputs: Nodes of the layer before (features, or maps of a convolution).
        outputs: Nodes of the layer after; None means as many.
        p: The probability that a node is dropped. (A node of a convolution is one place in one map.)
        convolution: Whether inputs are maps ``[n, inputs, h, w]`` rather than features ``[n, inputs]``.
        nodes: Added nodes; None means as many as inputs.
        stride: Of the second convolution.
        batchnorm: Whether each map is followed by BatchNorm and has no bias; None means where there are convolutions.

    Raises:
        ValueError: for sizes below 1, p outside [0, 1], or a stride without convolutions.

    >>> sum(w.numel() for w in DropoutGeneralizationLayer(64, p=0.75, convolution=True).parameters())
    73984
    """

    block: nn.Sequential

    def __init__(
        self,
        inputs: int,
        outputs: int | None = None,
        *,
        p: float = 0.5,
        convolution: bool = False,
        nodes: int | None = None,
        stride: int = 1,
        batchnorm: bool | None = None,
    ) -> None:
        super().__init__()
        outputs, nodes = inputs if outputs is None else outputs, inputs if nodes is None else nodes
        _check_sizes(inputs, outputs, nodes, stride, convolution)
        if not 0 <= p <= 1:
            raise ValueError(f"p is the probability that a node is dropped, between 0 and 1, not {p}")
        batchnorm = convolution if batchnorm is None else batchnorm
        first = _affine(inputs, nodes, convolution=convolution, batchnorm=batchnorm)
        second = _affine(nodes, outputs, convolution=convolution, batchnorm=batchnorm, stride=stride)
        self.block = nn.Sequential(*first, nn.ReLU(), nn.Dropout(p), *second, nn.ReLU())

    def forward(self, x: Float[Tensor, " n *shape"]) -> Float[Tensor, " n *outputs"]:
        """What the added nodes make of the inputs."""
        return self.block(x)


def _affine(inputs: int, outputs: int, *, convolution: bool, batchnorm: bool, stride: int = 1) -> list[nn.Module]:
    if convolution:
        layer: nn.Module = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=not batchnorm)
        return [layer, nn.BatchNorm2d(outputs)] if batchnorm else [layer]
    layer = nn.Linear(inputs, outputs, bias=not batchnorm)
    return [layer, nn.BatchNorm1d(outputs)] if batchnorm else [layer]


def _check_sizes(inputs: int, outputs: int, nodes: int, stride: int, convolution: bool) -> None:
    if min(inputs, outputs, nodes, stride) < 1:
        raise ValueError(
            f"a generalization layer has at least 1 input, output and node, and a stride from 1, "
            f"not {inputs}, {outputs}, {nodes} and {stride}"
        )
    if stride != 1 and not convolution:
        raise ValueError(f"stride={stride} is for convolutions: give convolution=True, or no stride")


def _check_nu(nu: float) -> None:
    if not 0 <= nu < float("inf"):
        raise ValueError(f"ν, the weight of a skip, is a number from 0, not {nu}")


def insert(model: nn.Module, place: str, layer: nn.Module, *, where: str = "after") -> None:
    """Puts a layer into a network at a named place; the network is changed.

    The module at ``place`` becomes ``nn.Sequential(module, layer)``, so that its own parameters' names gain a ``.0``.
    The layer is moved to the device and floating-point type of the network. Transformer encoders around the place lose
    their fast path in eval mode, which reads weights past the modules that hold them.

    Args:
        model: The network.
        place: A submodule's name, as ``model.named_modules()`` has it.
        layer: Any module that takes what flows there.
        where: ``"after"`` the module, ``"before"`` it, or ``"instead"`` of it.

    Raises:
        LookupError: where the network has no such submodule.
        ValueError: for another ``where``, the network itself, a module that the network uses under other names too, or
            a part of nn.MultiheadAttention, which reads its parts' weights itself.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> insert(net, "0", nn.Linear(4, 4))
    >>> [name for name, _ in net.named_parameters()]
    ['0.1.weight', '0.1.bias', '1.weight', '1.bias']
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    if not place:
        raise ValueError("a place is the name of a submodule; around the whole network use nn.Sequential(model, layer)")
    if place not in modules:
        near = difflib.get_close_matches(place, modules, n=3, cutoff=0.5)
        known = ", ".join(near or [name for name in modules if name][:12])
        raise LookupError(f"the network has no submodule {place!r}; it has {known}")
    others = [name for name, module in modules.items() if module is modules[place] and name != place]
    if others:
        raise ValueError(
            f"the module {place!r} is also {others[0]!r}: what is put in there would come twice, or at one of both only"
        )
    parts = place.split(".")
    around = [modules[".".join(parts[:n])] for n in range(len(parts))]
    if any(isinstance(module, nn.MultiheadAttention) for module in around):
        raise ValueError(f"{place!r} is a part of nn.MultiheadAttention, which takes its weights without calling it")
    there = modules[place]
    orders = {"after": (there, layer), "before": (layer, there), "instead": (layer,)}
    if where not in orders:
        raise ValueError(f"where is one of {', '.join(orders)}, not {where!r}")
    like = next((t for t in itertools.chain(model.parameters(), model.buffers()) if t.is_floating_point()), None)
    if like is not None:
        layer.to(like.device, like.dtype)
    layer.train(there.training)
    for module in around:
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0  # what PyTorch goes by
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
    parent, _, name = place.rpartition(".")
    chosen = orders[where]
    setattr(model.get_submodule(parent), name, nn.Sequential(*chosen) if len(chosen) > 1 else layer)


def skip_weight(step: int, *, steps: int, start: float = 1.0, floor: float = 0.1, reached: float = 0.8) -> float:
    """ν after ``step`` optimizer steps: linear from ``start`` to ``floor``, which it has from then on.

    It is reached after the share ``reached`` of all ``steps`` (section 4.1.1: "for the last 20 % of the training
    period"). For a given epoch, as in Fig. 7, give the steps until then and ``reached=1``.

    Raises:
        ValueError: for no steps, a negative ν, or a share outside (0, 1].

    >>> [round(skip_weight(t, steps=100), 4) for t in (0, 40, 80, 100)]
    [1.0, 0.55, 0.1, 0.1]
    """
    if steps < 1 or not 0 < reached <= 1:
        raise ValueError(f"ν needs at least 1 step and a share of them above 0 and up to 1, not {steps} and {reached}")
    _check_nu(start)
    _check_nu(floor)
    return start + (floor - start) * min(max(step, 0) / (reached * steps), 1.0)


@torch.no_grad()
def anneal_skips(
    model: nn.Module, *, step: int, steps: int, start: float = 1.0, floor: float = 0.1, reached: float = 0.8
) -> None:
    """Sets ν of every `GeneralizationLayer` in a network to what `skip_weight` gives after ``step`` steps.

    Raises:
        ValueError: where the network has no such layer, and as `skip_weight` does.
    """
    nu = skip_weight(step, steps=steps, start=start, floor=floor, reached=reached)
    for layer in _found(model):
        layer.nu.fill_(nu)


@torch.no_grad()
def annealed_skips(
    model: nn.Module, /, *, steps: int, start: float = 1.0, floor: float = 0.1, reached: float = 0.8
) -> None:
    """A Recipe's constraint: the t-th call (from 0) sets ν of every `GeneralizationLayer` to ``skip_weight(t)``.

    A constraint is applied before the first step and after every one, so that t is the number of steps made. Each
    layer counts in its buffer ``annealed``, which is saved with the model: a run that is resumed goes on where it was.
    So does a new run that begins from another run's weights (``start=``); to anneal anew there, set ``annealed`` to 0.

    Raises:
        ValueError: where the network has no such layer, and as `skip_weight` does.
    """
    skip_weight(0, steps=steps, start=start, floor=floor, reached=reached)  # its checks
    for layer in _found(model):
        share = (layer.annealed / (reached * steps)).clamp(max=1).to(layer.nu)
        layer.nu.copy_(start + (floor - start) * share)
        layer.annealed.add_(1)


def _found(model: nn.Module) -> list[GeneralizationLayer]:
    layers = [module for module in model.modules() if isinstance(module, GeneralizationLayer)]
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no GeneralizationLayer: put one in with insert(model, place, layer)"
        )
    return layers


def parameter_groups(model: nn.Module, *, lr: float | None = None, factor: float = 1.0) -> list[dict[str, Any]]:
    """A network's trainable parameters in two groups for any optimizer: all others, and generalization layers' own.

    Each group has the key ``"generalization"`` (False, True), by which `slow_layers` knows it.

    Args:
        model: The network.
        lr: The learning rate; with None the optimizer's own, for both groups.
        factor: The second group's learning rate in units of ``lr``, for a regime that holds from the first step on
            (Fig. 7: 0.1); after some epochs instead, leave it at 1 and use `slow_layers`.

    Raises:
        ValueError: where the network has no `GeneralizationLayer`, or for a factor without ``lr``.

    >>> net = nn.Sequential(GeneralizationLayer(3), nn.Linear(3, 2))
    >>> [(sum(p.numel() for p in group["params"]), group["lr"]) for group in parameter_groups(net, lr=1.0, factor=0.1)]
    [(8, 1.0), (24, 0.1)]
    """
    if lr is None and factor != 1:
        raise ValueError(f"factor={factor} multiplies the learning rate: give lr too")
    slow = {id(p) for layer in _found(model) for p in layer.parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if (id(p) in slow) == marked], MARK: marked} for marked in (False, True)
    ]
    if lr is not None:
        for group, rate in zip(groups, (lr, lr * factor), strict=True):
            group["lr"] = rate
    return [group for group in groups if group["params"]]


def grouped(model: nn.Module, /, *, optimizer: Call) -> torch.optim.Optimizer:
    """A Recipe's optimizer: another one, with generalization layers' weights in a group of their own.

    ``optimizer=call(grouped, optimizer=call(SGD, lr=0.1)), schedule=call(slow_layers, after=…)``.
    """
    return optimizer(parameter_groups(model))


def slow_layers(
    optimizer: torch.optim.Optimizer, /, *, after: int, factor: float = 0.1, schedule: Call | None = None
) -> LRScheduler:
    """A learning-rate schedule: generalization layers' weights learn ``factor`` times as fast from a step on.

    "10 times lower learning rates of generalization layer weights were used after initial 20 epochs" (section 4.1.1).
    Step it after every optimizer step.

    Args:
        optimizer: Made with `parameter_groups`.
        after: Optimizer steps until then (20 times the batches of an epoch); 0 means from the first step on.
        factor: By which the learning rate is multiplied there.
        schedule: Another schedule for all groups beside it, called with the optimizer; one that changes the rate it
            finds step by step (PyTorch's StepLR, MultiStepLR, ExponentialLR, CosineAnnealingLR; not LambdaLR).

    Raises:
        ValueError: where no group of the optimizer is marked, or for an ``after`` or ``factor`` below 0 or not finite.
    """
    if not (0 <= after < float("inf") and 0 <= factor < float("inf")):
        raise ValueError(f"after is a number of steps from 0 and factor a number from 0, not {after} and {factor}")
    if not any(group.get(MARK) for group in optimizer.param_groups):
        raise ValueError(
            f"no parameter group has the mark {MARK!r}: give the optimizer parameter_groups(model) instead of the "
            "parameters"
        )
    if after == 0:
        for group in optimizer.param_groups:
            group["lr"] *= factor if group.get(MARK) else 1.0
            group["initial_lr"] = group["lr"]
    at = [after if group.get(MARK) else -1 for group in optimizer.param_groups]
    changes: list[Callable[[int], float]] = [partial(_once, at=step, factor=factor) for step in at]
    first = MultiplicativeLR(optimizer, changes)
    return first if schedule is None else ChainedScheduler([first, schedule(optimizer)])


def _once(step: int, *, at: int, factor: float) -> float:
    return factor if step == at else 1.0
