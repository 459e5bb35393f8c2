"""Normalisations of activations and weights written out, because PyTorch's own third derivatives of them are wrong.

PyTorch's second derivatives of `batch_norm` on the batch's statistics, `layer_norm` and `instance_norm` take the mean
and standard deviation that they keep as constants, so that whatever is derived from them once more is wrong, without a
warning (torch 2.13; finite differences tell). So does that of weight normalisation with the norm. Those of `group_norm`
and of evaluation mode are right.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training:
        return functional.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    _follow(input, running_mean, running_var, momentum)
    return _scaled(_normalised(input, [0, *range(2, input.dim())], eps), weight, bias).to(input.dtype)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats:
        return functional.instance_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    if running_mean is not None:  # for the statistics that it keeps
        functional.instance_norm(input.detach(), running_mean, running_var, None, None, True, momentum, eps)
    return _scaled(_normalised(input, list(range(2, input.dim())), eps), weight, bias).to(input.dtype)


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    z = _normalised(input, list(range(-len(normalized_shape), 0)), eps)
    z = z if weight is None else z * weight
    return (z if bias is None else z + bias).to(input.dtype)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    dims = list(range(v.dim())) if dim == -1 else [d for d in range(v.dim()) if d != dim]
    return g * v * torch.rsqrt(v.square().sum(dims, keepdim=dim != -1))


_WRITTEN: dict[Any, Callable[..., Tensor]] = {
    functional.batch_norm: _batch_norm,
    functional.instance_norm: _instance_norm,
    functional.layer_norm: _layer_norm,
    torch._weight_norm: _weight_norm,  # type: ignore[attr-defined]
}


def written_out(func: Any) -> Any:
    """A normalisation by elementary functions in the place of PyTorch's; any other function itself."""
    return _WRITTEN.get(func, func)


def _normalised(x: Tensor, dims: list[int], eps: float) -> Tensor:
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x  # as PyTorch's own
    centred = x - x.mean(dims, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(dims, keepdim=True) + eps)


def _scaled(z: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    shape = (1, -1, *[1] * (z.dim() - 2))
    z = z if weight is None else z * weight.view(shape)
    return z if bias is None else z + bias.view(shape)


@torch.no_grad()
def _follow(x: Tensor, mean: Tensor | None, variance: Tensor | None, momentum: float) -> None:
    """The running statistics, in place."""
    if mean is not None and variance is not None:
        x, dims = x.to(mean.dtype), [0, *range(2, x.dim())]
        mean.lerp_(x.mean(dims), momentum)
        variance.lerp_(x.var(dims), momentum)


class WrittenOut(TorchFunctionMode):
    """While it is entered, normalisations are written out."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The normalisation, or the function itself."""
        return written_out(func)(*args, **(kwargs or {}))
