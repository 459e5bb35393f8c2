"""Path norms, and κ: how much each weight's square counts in them, which is what Path-SGD divides gradients by."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from landscope.models import called
from landscope.norms.following import BATCHNORMS, POOLS, CannotFollow, Paths

FOLLOWED = (
    "linear and convolutional layers, BatchNorm with running statistics, ReLU and leaky ReLU, dropout, max- and "
    "average-pooling, sums, concatenations and reshapes"
)


def path_norm(
    model: nn.Module,
    shape: tuple[int, ...],
    /,
    *,
    p: float = 2.0,
    pool: str = "sum",
    batchnorm: str = "folded",
    dtype: torch.dtype | None = None,
) -> Float[Tensor, ""]:
    """γ_p(w) = (Σ over paths from an input or bias to an output of ∏ |w_e|^p)^{1/p}.

    One forward pass of one input of ones on |w|^p, whatever the network's graph (Neyshabur, Tomioka & Srebro 2015,
    section 4; residual nets, convolutions and pooling as in Gonon et al. 2024). It is the least product of the layers'
    (p, ∞) group norms over all node-wise rescalings of the weights, and no such rescaling changes it. Differentiable in
    the weights, and inside `torch.func` transforms. The network is left as it was.

    Conventions. A bias is a weight from a unit that is always 1, so it starts paths of its own. A skip is an edge of
    weight 1, a constant factor c one of weight c. Average-pooling over k inputs has weights 1/k, so k^{-p} in the sum.
    Dropout is off.

    Args:
        model: The network, in any mode.
        shape: The shape of one input, without the batch dimension.
        p: The exponent, finite and above 0; 1 and 2 are usual.
        pool: What max-pooling does: ``"sum"``: each input of a window is a path (Gonon et al. 2024; an upper bound on
            what the maximum lets through). ``"max"``: only the window's largest γ^p.
        batchnorm: ``"folded"``: BatchNorm on running statistics is joined with a linear or convolutional layer right
            before it, w' = s·w and b' = β + s(b − μ) with s = γ/√(σ² + ε); elsewhere it is a layer of its own.
            ``"diagonal"``: as `kappa` takes it.
        dtype: What to compute in; the parameters' own by default.

    Returns:
        A scalar. Its p-th power is homogeneous of degree p in each layer's weights and biases together.

    Raises:
        ValueError: for a network that cannot be followed, naming the module, or a setting out of its range.

    Cost: one forward pass of one sample.

    >>> net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
    >>> with torch.no_grad():
    ...     _ = net[0].weight.copy_(torch.tensor([[3.0, -4.0]])), net[2].weight.fill_(2.0)
    >>> path_norm(net, (2,)).item(), path_norm(net, (2,), p=1.0).item()
    (10.0, 14.0)
    """
    return path_sum(model, shape, p=p, pool=pool, batchnorm=batchnorm, dtype=dtype) ** (1 / p)


def path_sum(
    model: nn.Module,
    shape: tuple[int, ...],
    /,
    *,
    p: float = 2.0,
    pool: str = "sum",
    batchnorm: str = "folded",
    dtype: torch.dtype | None = None,
) -> Float[Tensor, ""]:
    """γ_p^p, the sum over paths itself: `path_norm` before the root, whose gradient is infinite where γ = 0.

    Args, errors and cost are those of `path_norm`.

    >>> net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
    >>> with torch.no_grad():
    ...     _ = net[0].weight.copy_(torch.tensor([[3.0, -4.0]])), net[2].weight.fill_(2.0)
    >>> path_sum(net, (2,)).item()
    100.0
    """
    if not 0 < p < float("inf"):
        raise ValueError(f"a path norm needs a finite exponent p above 0, not {p}")
    sums = _outputs(model, shape, Paths(float(p), {}, pool, batchnorm), dict(model.named_parameters()), dtype)
    return sums.sum()


def kappa(
    model: nn.Module, shape: tuple[int, ...], /, *, pool: str = "sum", dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """κ_e = ∂γ²/∂(w_e²), with γ the l2 path norm, for every parameter that is trained.

    κ of an edge is the sum over the paths through it of the product of the *other* edges' squares: γ² of what comes
    into its start times γ² of what leaves its end. It is half the second derivative of γ² (Neyshabur, Salakhutdinov &
    Srebro 2015, section 4). Weights shared by a convolution count once on each path, so the sum is exact there too,
    and in residual nets, whose skips are edges of weight 1.

    BatchNorm, which that paper does not treat, is a layer of its own on its current running statistics: the factor
    γ_c²/(σ_c² + ε), κ for γ_c as for any weight, β_c a path from a unit that is always 1. The running mean is left out
    (it would be a path of weight γ_c·μ_c/σ_c, and γ² would no longer be linear in γ_c²).

    Args:
        model: The network, in any mode; left as it was.
        shape: The shape of one input, without the batch dimension.
        pool: ``"sum"`` or ``"max"``, as in `path_norm`.
        dtype: What to compute in; float64 by default (float32 on devices that lack it).

    Returns:
        κ by parameter name, each in the shape of its parameter.

    Raises:
        ValueError: for a network that cannot be followed (which module), whose parameter lies on no path or occurs
            twice on one (recurrent nets, tied layers: κ is not defined by this formula), or whose κ is not finite.

    Cost: one forward and backward pass of one sample.

    >>> net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
    >>> with torch.no_grad():
    ...     _ = net[0].weight.copy_(torch.tensor([[3.0, -4.0]])), net[2].weight.fill_(2.0)
    >>> {name: k.tolist() for name, k in kappa(net, (2,)).items()}
    {'0.weight': [[4.0, 4.0]], '2.weight': [[25.0]]}
    """
    parameters = dict(model.named_parameters())
    trained = [name for name, w in parameters.items() if w.requires_grad]
    if not trained:
        raise ValueError("the model has no parameters that are trained, so there is nothing to compute κ for")
    device = parameters[trained[0]].device
    dtype = dtype or (torch.float32 if device.type == "mps" else torch.float64)
    with torch.enable_grad():
        squares = {
            name: w.detach().to(dtype, copy=True).square_().requires_grad_(name in trained)
            for name, w in parameters.items()
        }
        mode = Paths(2.0, squares, pool, "diagonal")
        total = _outputs(model, shape, mode, squares, dtype).sum()
        wanted = [squares[name] for name in trained]
        found = torch.autograd.grad(total, wanted, allow_unused=True) if total.requires_grad else [None] * len(wanted)
    result = {}
    for name, value in zip(trained, found, strict=True):
        if value is None:
            raise ValueError(
                f"the parameter {name!r} lies on no path from the input to the output: freeze or remove it"
            )
        if mode.uses[name] > 1:
            raise ValueError(
                f"the parameter {name!r} is used {mode.uses[name]} times in one forward pass (recurrent or tied): "
                "κ is the sum over paths that meet a weight once; use another optimizer for this model"
            )
        result[name] = value
    sums = torch.stack([value.sum() for value in result.values()])  # of what is not negative: quicker than isfinite
    if not bool(sums.isfinite().all()):
        name = next(name for name, total in zip(result, sums.tolist(), strict=True) if not math.isfinite(total))
        raise ValueError(f"κ of {name!r} is not finite: the weights are NaN, infinite or far too large")
    return result


def _outputs(
    model: nn.Module, shape: tuple[int, ...], mode: Paths, weights: Mapping[str, Tensor], dtype: torch.dtype | None
) -> Tensor:
    """The network's outputs on paths, for one input of ones."""
    if mode.pool not in POOLS or mode.batchnorm not in BATCHNORMS:
        raise ValueError(f"pool is one of {POOLS} and batchnorm of {BATCHNORMS}, not {mode.pool!r}, {mode.batchnorm!r}")
    first = next(iter(weights.values()), None)
    if first is None:
        raise ValueError("the model has no parameters, so its paths have no weights")
    dtype = dtype or first.dtype
    state: dict[str, Any] = {n: w if w.dtype == dtype else w.to(dtype) for n, w in weights.items()}
    state |= {n: b.to(dtype) if b.is_floating_point() else b for n, b in model.named_buffers()}
    ones = torch.ones(1, *shape, dtype=dtype, device=first.device)
    mode.start(ones)
    try:
        with _evaluating(model), torch.autocast(first.device.type, enabled=False), mode:
            outputs = called(model, state, ones)
    except CannotFollow as error:
        raise ValueError(
            f"the paths of {_where(model, error)} cannot be followed: it {error}. What can be followed: {FOLLOWED}"
        ) from None
    except RuntimeError as error:
        raise ValueError(
            f"the network fails on one input of shape={tuple(shape)} ({error}): give the shape of one of its inputs, "
            "without the batch dimension"
        ) from error
    if not isinstance(outputs, Tensor) or not mode.arrived(outputs):
        raise ValueError(
            f"the model's output ({type(outputs).__name__}) is no tensor reached from its input by operations that can "
            f"be followed: {FOLLOWED}"
        )
    return outputs


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Every submodule in eval mode, and as it was found afterwards: a BatchNorm counts its batches otherwise."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def _where(model: nn.Module, error: BaseException) -> str:
    """The innermost of the model's modules in whose forward pass an error was raised."""
    names = {id(module): name for name, module in model.named_modules()}
    found, trace = model, error.__traceback__
    while trace is not None:
        inside = trace.tb_frame.f_locals.get("self")
        found = inside if isinstance(inside, nn.Module) and id(inside) in names else found
        trace = trace.tb_next
    name = names[id(found)]
    return f"module {name!r} ({type(found).__name__})" if name else f"the model ({type(found).__name__}.forward)"
