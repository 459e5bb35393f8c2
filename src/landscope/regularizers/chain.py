"""Tr(H²) and its gradient in closed form for chains of linear layers: one backward pass for loss and penalty.

Along a direction v with parts V_l, c_l, for layers z_l = h_{l-1} W_lᵀ + b_l, h_l = φ(z_l) and the loss's derivatives
δ_l with respect to z_l, the directional derivatives (dots) are

    ż_l = h_{l-1} V_lᵀ + ḣ_{l-1} W_lᵀ + c_l,          ḣ_l = φ'(z_l) ż_l,
    δ̇_l = (δ̇_{l+1} W_{l+1} + δ_{l+1} V_{l+1}) φ'(z_l) + (δ_{l+1} W_{l+1}) φ''(z_l) ż_l,
    (Hv)_{W_l} = δ̇_lᵀ h_{l-1} + δ_lᵀ ḣ_{l-1},          (Hv)_{b_l} = Σ δ̇_l.

A direction V = AᵀB of few different rows makes h V the product of h Bᵀ with A, and S (Hv)_W needs δSᵀ and δ̇Sᵀ alone
(`landscope.regularizers.folds`). So only products with the weights themselves are of full size.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from landscope.regularizers.folds import Part
from landscope.regularizers.outputs import Loss, derivatives


class Activation(NamedTuple):
    """An activation's first two derivatives as functions of its *output*; a second derivative that is 0 is None."""

    slope: Callable[[Tensor], Tensor]
    bend: Callable[[Tensor], Tensor] | None
    node: str  # what autograd calls its backward


def _leaky(slope: float) -> Activation:
    return Activation(lambda h: torch.where(h > 0, 1.0, slope).to(h.dtype), None, "LeakyReluBackward0")


_RELU = Activation(lambda h: (h > 0).to(h.dtype), None, "ReluBackward0")
_TANH = Activation(lambda h: 1 - h * h, lambda h: -2 * h * (1 - h * h), "TanhBackward0")
_SIGMOID = Activation(lambda h: h * (1 - h), lambda h: h * (1 - h) * (1 - 2 * h), "SigmoidBackward0")
_SOFTPLUS = Activation(lambda h: -torch.expm1(-h), lambda h: torch.exp(-h) * -torch.expm1(-h), "SoftplusBackward0")


def _activation(module: nn.Module) -> Activation | None:
    """The activation of a module, or None where its derivatives are not known here."""
    if type(module) is nn.LeakyReLU and module.negative_slope > 0:
        return _leaky(module.negative_slope)
    if type(module) is nn.Softplus and module.beta == 1:
        return _SOFTPLUS
    return {nn.ReLU: _RELU, nn.Tanh: _TANH, nn.Sigmoid: _SIGMOID}.get(type(module))  # type: ignore[arg-type]


class Layer(NamedTuple):
    """A linear layer of a chain.

    Args:
        linear: The module.
        module: The activation's module, None after the last layer.
        activation: Its derivatives.
        weight: The weight's name if it is among the parameters of H, else None.
        bias: The bias's.
    """

    linear: nn.Linear
    module: nn.Module | None
    activation: Activation | None
    weight: str | None
    bias: str | None


def chain_of(model: nn.Module, chosen: Mapping[str, Tensor], *, dims: int = 2) -> tuple[Layer, ...] | None:
    """The layers of a model that is linear layers with activations in between, on flattened inputs; else None.

    Dropout is passed over: the penalty is taken without it.

    Args:
        model: The network.
        chosen: The parameters that H is taken in, by name.
        dims: How many dimensions the inputs have; if more than 2, they have to be flattened before the first layer.
    """
    flat = list(_flattened("", model))
    seen = {name: module for name, module in flat if not _passes(module)}
    held = [id(w) for module in seen.values() for w in module._parameters.values() if w is not None]
    if len(set(held)) < len(held) or any(_hooked(m) for _, m in flat):  # tied weights: the derivatives are sums
        return None
    first = itertools.takewhile(lambda module: type(module) is not nn.Linear, (module for _, module in flat))
    if dims > 2 and not any(type(module) is nn.Flatten for module in first):
        return None
    parts, layers = list(seen.items()), []
    for i in range(0, len(parts), 2):
        name, linear = parts[i]
        module = parts[i + 1][1] if i + 1 < len(parts) else None
        activation = None if module is None else _activation(module)
        if type(linear) is not nn.Linear or (module is not None and activation is None):
            return None
        prefix = f"{name}." if name else ""
        weight, bias = (own if own in chosen else None for own in (f"{prefix}weight", f"{prefix}bias"))
        layers.append(Layer(linear, module, activation, weight, bias))
    return tuple(layers) if layers and layers[-1].module is None else None


def _flattened(prefix: str, module: nn.Module) -> Any:
    if type(module) is nn.Sequential and not _hooked(module):
        for name, child in module._modules.items():  # named_children() leaves out a module that comes again
            yield from _flattened(f"{prefix}.{name}" if prefix else name, child)
    else:
        yield prefix, module


def _passes(module: nn.Module) -> bool:
    flatten = type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1)
    return flatten or type(module) in (nn.Identity, nn.Dropout)


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def forward(layers: Sequence[Layer], inputs: Tensor) -> tuple[list[Tensor], Tensor]:
    """The inputs of every linear layer, and the outputs."""
    h, seen = inputs.flatten(1), []
    for layer in layers:
        seen.append(h)
        z = functional.linear(h, layer.linear.weight, layer.linear.bias)
        h = z if layer.module is None else layer.module(z)
    return seen, h


def found_in(layers: Sequence[Layer], outputs: Tensor) -> list[Tensor] | None:
    """The inputs of every linear layer, read from the graph of outputs already computed; None if it is another graph.

    Each is what autograd kept for the layer's own backward pass, with its place in the graph, so that nothing is
    computed twice and the backward passes of loss and penalty are one.
    """
    seen, node = [], outputs.grad_fn
    for i in range(len(layers) - 1, -1, -1):
        layer = layers[i]
        h = _input_of(node, layer.linear)
        if h is None:
            return None
        seen.insert(0, h)
        if i:
            below = layers[i - 1].activation
            if below is None or h.grad_fn is None or h.grad_fn.name() != below.node:
                return None
            node = h.grad_fn.next_functions[0][0]
    return seen


def _input_of(node: Any, linear: nn.Linear) -> Tensor | None:
    """The matrix that a node of the graph multiplied by a layer's weight, if that is what it did."""
    names = {"AddmmBackward0": (2, "_saved_mat1"), "MmBackward0": (1, "_saved_self")}
    if node is None or node.name() not in names:
        return None
    place, name = names[node.name()]
    if (linear.bias is None) == (node.name() == "AddmmBackward0"):
        return None
    transposed = node.next_functions[place][0]
    if transposed is None or transposed.name() != "TBackward0":
        return None
    leaf = transposed.next_functions[0][0]
    h = getattr(node, name)
    same = getattr(leaf, "variable", None) is linear.weight and h is not None and h.dim() == 2
    return h if same else None


class Pass(NamedTuple):
    """What all probes of a batch share.

    Args:
        layers: The chain.
        inputs: Of every linear layer, the batch's in the first place.
        outputs: Of the last.
        slopes: φ' of every hidden layer.
    """

    layers: tuple[Layer, ...]
    inputs: list[Tensor]
    outputs: Tensor
    slopes: list[Tensor]


def shared(layers: tuple[Layer, ...], inputs: list[Tensor], outputs: Tensor) -> Pass:
    """What all probes of a batch share."""
    slopes = [layer.activation.slope(h) for layer, h in zip(layers, inputs[1:], strict=False) if layer.activation]
    return Pass(layers, inputs, outputs, slopes)


Image = dict[str, Tensor]


def images(
    of: Pass, targets: Tensor, loss: Loss, parts: Mapping[str, Part], rows: Sequence[slice], *, ggn: bool
) -> list[Image]:
    """S·Hv (or S·Gv) by the parameters' names for one probe, of each of some ranges of the samples by itself."""
    tangents: list[Tensor | None] = [None]  # ḣ of every layer's input
    turns: list[Tensor | None] = []  # ż
    for i, (layer, h) in enumerate(zip(of.layers, of.inputs, strict=True)):
        turns.append(_tangent(layer, h, tangents[-1], parts))
        if i < len(of.slopes):
            tangents.append(None if turns[i] is None else of.slopes[i] * turns[i])  # type: ignore[operator]
    last = turns[-1] if turns[-1] is not None else torch.zeros_like(of.outputs)
    delta, moved = derivatives(loss, of.outputs, targets, last)
    found: list[Image] = [{} for _ in rows]
    lowest = min(i for i, layer in enumerate(of.layers) if layer.weight or layer.bias)
    for i in range(len(of.layers) - 1, lowest - 1, -1):
        layer = of.layers[i]
        pairs = [(moved, of.inputs[i])]
        if not ggn and tangents[i] is not None:
            pairs.append((delta, tangents[i]))  # type: ignore[arg-type]
        _add_images(found, layer, pairs, parts, rows)
        if i > lowest:
            delta, moved = _below(of, i, delta, moved, turns[i - 1], parts, ggn)
    return found


def _tangent(layer: Layer, h: Tensor, along: Tensor | None, parts: Mapping[str, Part]) -> Tensor | None:
    """ż of a layer; None where it is 0."""
    z = None if along is None else along @ layer.linear.weight.T
    if layer.weight is not None:
        v = parts[layer.weight]
        z = _added(z, h, v.rows.T) if v.into is None else _added(z, h @ v.rows.T, v.into)
    if layer.bias is not None:
        c = parts[layer.bias].rows
        return c.expand(len(h), -1) if z is None else z + c
    return z


def _added(to: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    return a @ b if to is None else torch.addmm(to, a, b)


def _below(
    of: Pass, i: int, delta: Tensor, moved: Tensor, turn: Tensor | None, parts: Mapping[str, Part], ggn: bool
) -> tuple[Tensor, Tensor]:
    """δ and δ̇ of the layer below layer i."""
    layer, slope, activation = of.layers[i], of.slopes[i - 1], of.layers[i - 1].activation
    through = moved @ layer.linear.weight
    if ggn:
        return delta, through * slope
    epsilon = delta @ layer.linear.weight
    if layer.weight is not None:
        v = parts[layer.weight]
        through = _added(through, delta if v.into is None else delta @ v.into.T, v.rows)
    below = through * slope
    if activation is not None and activation.bend is not None and turn is not None:
        below = below + epsilon * activation.bend(of.inputs[i]) * turn
    return epsilon * slope, below


def _add_images(
    found: list[Image],
    layer: Layer,
    pairs: Sequence[tuple[Tensor, Tensor]],
    parts: Mapping[str, Part],
    rows: Sequence[slice],
) -> None:
    """A layer's parts of S·Hv, Σ leftᵀ right of the pairs; the mean of a range of samples is that of the range."""
    for image, some in zip(found, rows, strict=True):
        scale = len(pairs[0][0]) / len(pairs[0][0][some])
        if layer.weight is not None:
            onto, total = parts[layer.weight].onto, None
            for left, right in pairs:
                few = left[some] if onto is None else left[some] @ onto.T
                total = _added(total, few.T, right[some])
            image[layer.weight] = scale * total if scale != 1 and total is not None else total  # type: ignore[assignment]
        if layer.bias is not None:
            image[layer.bias] = scale * pairs[0][0][some].sum(0)
