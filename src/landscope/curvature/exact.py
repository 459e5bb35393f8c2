"""The trace of the Gauss-Newton matrix, exactly, from per-sample gradient norms layer by layer."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules import module as modules_of_torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from landscope.curvature.outputs import kind_of, scale_of
from landscope.curvature.problem import Problem
from landscope.curvature.space import HALVES
from landscope.layers import DropoutGeneralizationLayer, GeneralizationLayer, Residual

# Maps that are piecewise linear in their input, and linear in each of their parameter tensors, whatever the order.
PIECEWISE_LINEAR = (
    *(nn.Sequential, nn.Linear, nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d),
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardtanh, nn.Threshold, nn.ZeroPad1d, nn.ZeroPad2d, nn.ConstantPad2d),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool2d, nn.ConstantPad3d),
    *(Residual, GeneralizationLayer, DropoutGeneralizationLayer),
)


def is_piecewise_linear(problem: Problem) -> bool:
    """Whether the network is known to be piecewise linear in its input and in each parameter tensor by itself.

    That is a chain (nested `Sequential`) of the modules of ``PIECEWISE_LINEAR``, skips included, each used once,
    without tied parameters or hooks that could change what flows. Then the outputs' second derivatives along each
    single parameter vanish, so that the Hessian and the Gauss-Newton matrix have the same diagonal.
    """
    return made_of(problem, PIECEWISE_LINEAR)


def made_of(problem: Problem, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Whether the network is a chain of modules of these classes in eval mode, each with parameters used once."""
    model = problem.space.model
    modules = list(model.modules())
    used = [id(m) for m in _chain(model) if any(True for _ in m.parameters())]
    return (
        all(type(m) in kinds for m in modules)
        and not problem.frozen
        and len(used) == len(set(used))
        and _plain(model)
        and not any(isinstance(m, _BatchNorm) and m.running_mean is None for m in modules)
    )


def _chain(model: nn.Module) -> list[nn.Module]:
    children = model._modules.values() if type(model) is nn.Sequential else ()
    return [leaf for child in children if child is not None for leaf in _chain(child)] if children else [model]


def layerwise(problem: Problem) -> bool:
    """Whether every chosen parameter belongs to a layer whose per-sample gradient norms are known here."""
    space = problem.space
    plain = _plain(space.model) and all(_known(space.model.get_submodule(owner)) for owner in owners(problem))
    same_type = all(p.dtype == space.dtype and p.dtype not in HALVES for p in space.parameters())
    return plain and same_type and problem.loss is not None and not problem.frozen


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
GLOBAL_HOOKS = tuple(f"_global{name}" for name in HOOKS)


def _plain(model: nn.Module) -> bool:
    """Whether modules compute what their class says: no hooks, no forward of an instance's own, nothing tied.

    Pruning and the older weight and spectral norm make a weight in a hook, of parameters under other names.
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    return (
        len(names) == len(list(model.named_parameters()))
        and not any(getattr(modules_of_torch, name) for name in GLOBAL_HOOKS)
        and not any(getattr(m, name) for m in model.modules() for name in HOOKS)
        and not any("forward" in vars(m) for m in model.modules())
    )


def _known(module: nn.Module) -> bool:
    if set(module._parameters) != {"weight", "bias"}:
        return False
    if isinstance(module, _ConvNd):
        known = type(module) in (nn.Conv1d, nn.Conv2d, nn.Conv3d) and module.padding_mode == "zeros"
        return known and (not isinstance(module.padding, str) or module.padding == "valid")
    if isinstance(module, _BatchNorm) and (module.running_mean is None or module.running_var is None):
        return False  # it depends on the whole batch
    return type(module) in (nn.Linear, nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def gauss_newton_trace(problem: Problem) -> float | None:
    """Tr Σ_i J_iᵀ M_i J_i over this process's samples, or None where it cannot be had.

    With M_i = Σ_c s_c s_cᵀ it is Σ_i Σ_c ‖J_iᵀ s_c‖², one backward pass per column c of all samples at once: for
    cross-entropy s_c = √p_c (e_c − p), for squared error √2 e_c.

    On the first batch the layers' gradients are held against autograd's: what a network does with a layer's parameters
    besides calling it, or from sample to sample, is no part of these sums.

    Cost: one forward pass and one backward pass a class, and one backward pass of the first batch.
    """
    total = 0.0
    for number, batch in enumerate(problem.batches()):
        found = _batch_trace(problem, batch, check=not number)
        if found is None:
            return None
        total += found
    return total


def _batch_trace(problem: Problem, batch: Any, *, check: bool) -> float | None:
    weights = problem.weights()
    with watched(problem) as seen:
        outputs, targets = problem.outputs(weights, batch)
    kind = kind_of(problem.loss, outputs, targets)
    once = all(len(calls) == 1 and len(calls[0][0]) == len(outputs) for calls in seen.values())
    if kind is None or outputs.dim() != 2 or not once or set(seen) != owners(problem):
        return None
    layers = [(problem.space.model.get_submodule(owner), *calls[0]) for owner, calls in seen.items()]
    ends = [y for _, _, y in layers]
    if check and not _complete(problem, outputs, weights, layers):
        return None
    scale, classes = scale_of(problem.loss, outputs, targets), outputs.shape[1]
    p, total = outputs.detach().softmax(1), 0.0
    for c in range(classes):
        unit = torch.zeros_like(p)
        unit[:, c] = 1
        root = (
            (2 * scale) ** 0.5 * unit if kind == "squared error" else scale**0.5 * p[:, c : c + 1].sqrt() * (unit - p)
        )
        gradients = torch.autograd.grad(outputs, ends, root, retain_graph=True, materialize_grads=True)
        total += layer_norms(problem, layers, gradients)
    return total


def layer_norms(
    problem: Problem, layers: Sequence[tuple[nn.Module, Tensor, Tensor]], gradients: Sequence[Tensor]
) -> float:
    """Σ_i ‖∂/∂θ‖² over samples i, from each layer's inputs (the second of its triple) and its outputs' cotangents."""
    pairs = zip(layers, gradients, strict=True)
    return sum(_squared_norms(module, x.detach(), g, problem) for (module, x, _), g in pairs)


def _complete(
    problem: Problem, outputs: Tensor, weights: Sequence[Tensor], layers: Sequence[tuple[nn.Module, Tensor, Tensor]]
) -> bool:
    """Whether the layers, each sample by itself, are all that the outputs have of the parameters.

    A random cotangent on the first half of the samples must reach none of the others, and the gradient summed over
    the layers' samples must be autograd's.
    """
    n, ends = len(outputs), [y for _, _, y in layers]
    cotangent = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cotangent[(n + 1) // 2 :] = 0
    found = torch.autograd.grad(
        outputs, [*ends, *weights], cotangent.to(outputs), retain_graph=True, materialize_grads=True
    )
    at_ends, expected = found[: len(ends)], found[len(ends) :]
    if any(bool(g[(n + 1) // 2 :].any()) for g in at_ends):
        return False
    names, sums = {id(p): i for i, p in enumerate(problem.space.parameters())}, {}
    for (module, x, _), g in zip(layers, at_ends, strict=True):
        for name, p in module.named_parameters(recurse=False):
            if id(p) in names:
                sums[names[id(p)]] = _summed(module, name, x.detach(), g)
    eps, whole = torch.finfo(outputs.dtype).eps, torch.stack([e.norm() for e in expected]).norm().item()

    def off(i: int, e: Tensor) -> bool:  # some gradients are zero but for rounding: that of attention's keys' bias
        return (sums[i].reshape(e.shape) - e).norm().item() > eps**0.5 * e.norm().item() + 100 * eps * whole

    return not any(off(i, e) for i, e in enumerate(expected))


def _summed(module: nn.Module, name: str, x: Tensor, g: Tensor) -> Tensor:
    """The gradient of a layer's parameter, summed over the samples, from the layer's inputs and cotangents."""
    if isinstance(module, _ConvNd) and name == "weight":
        settings = [
            list(module.stride),
            padding_of(module),
            list(module.dilation),
            False,
            [0] * len(module.kernel_size),
        ]
        mask = [False, True, False]
        return torch.ops.aten.convolution_backward(g, x, module.weight, None, *settings, module.groups, mask)[1]
    if isinstance(module, nn.Linear) and name == "weight":
        return g.reshape(-1, g.shape[-1]).T @ x.reshape(-1, x.shape[-1])
    return _by_sample(module, g if name == "bias" else g * standardised(module, x)).sum(0)


def _by_sample(module: nn.Module, g: Tensor) -> Tensor:
    """Sums over each sample's positions, of what has a layer's outputs' shape: ``[n, features]``."""
    if isinstance(module, (nn.Linear, nn.LayerNorm)):
        features = g.shape[-1] if isinstance(module, nn.Linear) else torch.Size(module.normalized_shape).numel()
        return g.reshape(len(g), -1, features).sum(1)
    return g.reshape(*g.shape[:2], -1).sum(2)


def owners(problem: Problem) -> set[str]:
    """The names of the modules that own the chosen parameters."""
    return {name.rpartition(".")[0] for name in problem.space.names}


@contextmanager
def watched(problem: Problem) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """What goes into each layer with chosen parameters and what comes out, by its name, for each call inside."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def note(owner: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Sequence[Tensor], output: Tensor) -> None:
            seen.setdefault(owner, []).append((inputs[0], output))

        return hook

    model = problem.space.model
    handles = [model.get_submodule(owner).register_forward_hook(note(owner)) for owner in sorted(owners(problem))]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def chosen_parts(problem: Problem, module: nn.Module) -> set[str]:
    """Which of a module's own parameters are among the chosen ones."""
    chosen = {id(p) for p in problem.space.parameters()}
    return {name for name, p in module.named_parameters(recurse=False) if id(p) in chosen}


def _squared_norms(module: nn.Module, x: Tensor, g: Tensor, problem: Problem) -> float:
    """Σ_i ‖∂/∂(the module's chosen parameters)‖² of samples i, from its inputs and its outputs' cotangents."""
    parts, total = chosen_parts(problem, module), 0.0
    if "bias" in parts:
        total += _by_sample(module, g).double().square().sum().item()
    if "weight" not in parts:
        return total
    if isinstance(module, _ConvNd):
        return total + _convolution(module, x, g)
    if isinstance(module, nn.Linear):
        return total + _outer(x.reshape(len(x), -1, x.shape[-1]), g.reshape(len(g), -1, g.shape[-1]))
    return total + _by_sample(module, g * standardised(module, x)).double().square().sum().item()


def standardised(module: nn.Module, x: Tensor) -> Tensor:
    """What LayerNorm, or BatchNorm in eval mode, multiplies by its weights."""
    if isinstance(module, nn.LayerNorm):
        return functional.layer_norm(x, module.normalized_shape, eps=module.eps)
    if not isinstance(module, _BatchNorm) or module.running_mean is None or module.running_var is None:
        raise ValueError("BatchNorm without running statistics depends on the whole batch: it has no per-sample norms")
    sides = [1, -1, *[1] * (x.dim() - 2)]
    return (x - module.running_mean.view(sides)) * torch.rsqrt(module.running_var.view(sides) + module.eps)


def _outer(x: Tensor, g: Tensor) -> float:
    """Σ_i ‖g_iᵀ x_i‖² for x ``[n, t, c]``, g ``[n, t, o]``: with one position the product of two norms."""
    if x.shape[1] == 1:
        return (x.double().square().sum((1, 2)) * g.double().square().sum((1, 2))).sum().item()
    return (g.transpose(1, 2) @ x).double().square().sum().item()


def _convolution(module: _ConvNd, x: Tensor, g: Tensor) -> float:
    """The same for a convolution: each sample's weight gradient, as a convolution with a group for each sample."""
    n, o = g.shape[:2]
    groups, sides = module.groups, len(module.kernel_size)
    settings = [list(module.stride), padding_of(module), list(module.dilation), False, [0] * sides, n * groups]
    shape = (n * o, x.shape[1] // groups, *module.kernel_size)
    like = g.new_empty(1).expand(shape)
    wide_x, wide_g = (t.reshape(1, -1, *t.shape[2:]) for t in (x, g))
    found = torch.ops.aten.convolution_backward(wide_g, wide_x, like, None, *settings, [False, True, False])[1]
    return found.double().square().sum().item()


def padding_of(module: _ConvNd) -> list[int]:
    """The zeros at each side."""
    return [0] * len(module.kernel_size) if isinstance(module.padding, str) else list(module.padding)
