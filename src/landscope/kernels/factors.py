"""Layers' gradients for each sample and output, as factors: from what goes into a layer and what comes back to it.

The gradient of an output by a linear layer's weight is an outer product, by a convolution's a sum of T of them, one a
position. Inner products of such gradients need the factors alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from landscope.models import ScaledLinear


@dataclass(frozen=True, eq=False)
class Outer:
    """Gradients Σ_t right[t] ⊗ left[t] of a weight, in G groups.

    Args:
        left: Shape ``[n, G, T, p]``; whole numbers ``[n, G, T]`` stand for unit vectors, −1 for 0.
        right: Shape ``[n, O, G, T, q]``.
    """

    left: Tensor
    right: Tensor


@dataclass(frozen=True, eq=False)
class Small:
    """Gradients of few parameters themselves, shape ``[n, O, size]``."""

    gradients: Tensor


Factor = Outer | Small
Use = tuple[Tensor, Tensor]  # what went into a layer [n, ...], what came back [n, O, ...]


def _linear(m: nn.Linear | ScaledLinear, uses: Sequence[Use], wanted: frozenset[str]) -> list[Factor]:
    scale, bias_scale = (m.weight_scale, m.bias_scale) if isinstance(m, ScaledLinear) else (1.0, 1.0)
    left = torch.cat([x.reshape(len(x), 1, -1, x.shape[-1]) for x, _ in uses], 2)
    right = torch.cat([g.reshape(*g.shape[:2], 1, -1, g.shape[-1]) for _, g in uses], 3)
    found: list[Factor] = [Outer(left * scale if scale != 1.0 else left, right)] if "weight" in wanted else []
    return found + ([Small(right.sum((2, 3)) * bias_scale)] if "bias" in wanted else [])


def _convolution(m: Any, uses: Sequence[Use], wanted: frozenset[str]) -> list[Factor]:
    left = [_patches(m, x) for x, _ in uses] if "weight" in wanted else []
    right = torch.cat([g.reshape(*g.shape[:2], m.groups, -1, g[0, 0, 0].numel()) for _, g in uses], 4).transpose(3, 4)
    found: list[Factor] = [Outer(torch.cat(left, 2), right)] if left else []
    return found + ([Small(right.sum(3).flatten(2))] if "bias" in wanted else [])


def _patches(m: Any, x: Tensor) -> Tensor:
    """What each output position of a convolution sees, ``[n, groups, positions, channels · kernel]``."""
    pads = m._reversed_padding_repeated_twice  # PyTorch's own, with padding="same" spelt out
    x = functional.pad(x, pads, "constant" if m.padding_mode == "zeros" else m.padding_mode)
    sides = len(m.kernel_size)
    for i, (size, step, apart) in enumerate(zip(m.kernel_size, m.stride, m.dilation, strict=True)):
        x = x.unfold(2 + i, apart * (size - 1) + 1, step)[..., ::apart]
    x = x.flatten(2, 1 + sides).flatten(3)  # [n, channels, positions, kernel]
    n, channels, positions, kernel = x.shape
    grouped = x.reshape(n, m.groups, channels // m.groups, positions, kernel).transpose(2, 3)
    return grouped.reshape(n, m.groups, positions, -1)


def _embedding(m: nn.Embedding, uses: Sequence[Use], wanted: frozenset[str]) -> list[Factor]:
    left = torch.cat([x.reshape(len(x), 1, -1) for x, _ in uses], 2)
    if m.padding_idx is not None:
        left = torch.where(left == m.padding_idx, -1, left)
    return [Outer(left, torch.cat([g.reshape(*g.shape[:2], 1, -1, g.shape[-1]) for _, g in uses], 3))]


def _per_channel(normalised: Callable[[Any, Tensor], Tensor]) -> Callable[..., list[Factor]]:
    def factors(m: Any, uses: Sequence[Use], wanted: frozenset[str]) -> list[Factor]:
        gain, shift = [], []
        for x, g in uses:
            g = g.reshape(*g.shape[:3], -1)
            gain.append((g * normalised(m, x).reshape(len(x), 1, *g.shape[2:])).sum(3))
            shift.append(g.sum(3))
        return _affine(gain, shift, wanted)

    return factors


def _per_place(normalised: Callable[[Any, Tensor], Tensor]) -> Callable[..., list[Factor]]:
    def factors(m: Any, uses: Sequence[Use], wanted: frozenset[str]) -> list[Factor]:
        gain, shift = [], []
        size = m.weight.numel()
        for x, g in uses:
            g = g.reshape(*g.shape[:2], -1, size)
            gain.append((g * normalised(m, x).reshape(len(x), 1, -1, size)).sum(2))
            shift.append(g.sum(2))
        return _affine(gain, shift, wanted)

    return factors


def _affine(gain: list[Tensor], shift: list[Tensor], wanted: frozenset[str]) -> list[Factor]:
    sums = {"weight": gain, "bias": shift}
    return [Small(torch.stack(sums[name]).sum(0)) for name in ("weight", "bias") if name in wanted]


def _running(m: Any, x: Tensor) -> Tensor:
    shape = (1, -1, *[1] * (x.dim() - 2))
    return (x - m.running_mean.view(shape)) * (m.running_var + m.eps).rsqrt().view(shape)


_batchnorm = _per_channel(_running)

FACTORS: dict[type[nn.Module], Callable[..., list[Factor]]] = {
    nn.Linear: _linear,
    ScaledLinear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.Embedding: _embedding,
    nn.BatchNorm1d: _batchnorm,
    nn.BatchNorm2d: _batchnorm,
    nn.BatchNorm3d: _batchnorm,
    nn.GroupNorm: _per_channel(lambda m, x: functional.group_norm(x, m.num_groups, None, None, m.eps)),
    nn.LayerNorm: _per_place(lambda m, x: functional.layer_norm(x, m.normalized_shape, None, None, m.eps)),
    nn.RMSNorm: _per_place(lambda m, x: functional.rms_norm(x, m.normalized_shape, None, m.eps)),
}


def can_follow(m: nn.Module) -> bool:
    """Whether a layer's gradients are known as factors: a layer of these very kinds, with nothing hung on it."""
    if type(m) not in FACTORS or m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m):
        return False
    return not (isinstance(m, nn.Embedding) and (m.max_norm is not None or m.scale_grad_by_freq or m.sparse))


# --- inner products -------------------------------------------------------------------------------------------------


def contracted(a: Factor, b: Factor, trace: bool, room: int) -> Tensor:
    """Inner products of gradients: ``[n1, n2]`` summed over outputs, or ``[n1, n2, O, O]``.

    Args:
        a: Of n1 samples.
        b: Of n2 samples, the same layer.
        trace: Whether to sum over outputs.
        room: Numbers that an intermediate result may hold; a single sample's, or a single row's, are never divided.
    """
    if isinstance(a, Small) and isinstance(b, Small):
        return _products(a.gradients, b.gradients, trace)
    if not (isinstance(a, Outer) and isinstance(b, Outer)):
        raise TypeError("the factors are of different layers")
    positions, q = a.right.shape[3:]
    if a.left.dim() == 3:
        return _by_positions(a, b, trace, room)
    p = a.left.shape[3]
    # What each pair of samples costs: T² products of left and of right factors, or one of whole gradients.
    return (_by_positions if positions**2 * (p + q) <= p * q else _by_gradients)(a, b, trace, room)


def _products(g1: Tensor, g2: Tensor, trace: bool) -> Tensor:
    """Of gradients ``[n, O, size]``."""
    (n1, o, _), n2 = g1.shape, len(g2)
    if trace:
        return g1.flatten(1) @ g2.flatten(1).T
    return (g1.flatten(0, 1) @ g2.flatten(0, 1).T).reshape(n1, o, n2, o).transpose(1, 2)


def _by_gradients(a: Outer, b: Outer, trace: bool, room: int) -> Tensor:
    """Whole gradients, of as many rows of the weight at once as there is room for."""
    n, outputs, groups, _, q = a.right.shape
    p = a.left.shape[3]
    rows = max(1, min(q, room // max(1, (n + len(b.left)) * outputs * p)))
    total: Tensor | None = None
    for g in range(groups):
        for start in range(0, q, rows):
            whole = [
                torch.einsum("notq,ntp->noqp", f.right[:, :, g, :, start : start + rows], f.left[:, g]).flatten(2)
                for f in (a, b)
            ]
            part = _products(whole[0], whole[1], trace)
            total = part if total is None else total + part
    return _there(total)


def _by_positions(a: Outer, b: Outer, trace: bool, room: int) -> Tensor:
    """Products of the factors at all pairs of positions, of as many samples at once as there is room for."""
    n1, outputs, groups, positions, _ = a.right.shape
    n2, pairs = len(b.right), 1 if trace else outputs**2
    step = max(1, min(n1, room // max(1, n2 * b.right.shape[3] * positions * (1 + pairs))))
    parts = []
    for start in range(0, n1, step):
        total: Tensor | None = None
        for g in range(groups):
            lefts = _left_products(a.left[start : start + step, g], b.left[:, g], a.right.dtype)
            right1, right2 = a.right[start : start + step, :, g], b.right[:, :, g]
            if trace:  # outputs and rows of the weight are one dimension
                whole = [r.transpose(1, 2).flatten(2) for r in (right1, right2)]
                part = (_left_products(whole[0], whole[1], a.right.dtype) * lefts).sum((1, 3))
            else:
                rights = right1.flatten(0, 2) @ right2.flatten(0, 2).T
                rights = rights.reshape(len(right1), outputs, positions, n2, outputs, -1)
                part = (rights * lefts[:, None, :, :, None]).sum((2, 5)).transpose(1, 2)
            total = part if total is None else total + part
        parts.append(_there(total))
    return torch.cat(parts)


def _left_products(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """``[n1, T, n2, T']`` of vectors ``[n, T, p]``, or of the unit vectors that whole numbers ``[n, T]`` stand for."""
    if a.dim() == 2:
        equal = (a[:, :, None, None] == b[None, None]) & (a >= 0)[:, :, None, None]
        return equal.to(dtype)
    return (a.flatten(0, 1) @ b.flatten(0, 1).T).reshape(*a.shape[:2], *b.shape[:2])


def _there(total: Tensor | None) -> Tensor:
    if total is None:
        raise ValueError("a layer without groups or rows has no gradients")
    return total
