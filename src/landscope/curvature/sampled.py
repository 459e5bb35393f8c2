"""Samples of a Hessian's trace: signs for each unit of each sample, not for each weight.

Σ_i loss_i has the Hessian G + R, G the Gauss-Newton matrix, whose trace is known exactly (`gauss_newton_trace`), and R
that of F = Σ_i r_i·f_i, with f_i the outputs of sample i and r_i = ∂loss/∂f_i held fixed. A layer z = W x + b is linear
in its parameters, so that Σ ∂²F/∂W_jk² = ‖x‖² Σ_j ∂²F/∂z_j², and Tr(R) = E δᵀ(∂²F/∂z²)δ, where δ is what independent
signs for W and b, others for each sample, make of z. As samples do not mix, one product with ∂²F/∂z² serves all of them
and all layers; over n samples the noise averages out like 1/√n. None is left where each output of a layer bends by
itself, as before an activation behind which all is linear.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from landscope.curvature.exact import chosen_parts, gauss_newton_trace, padding_of, standardised, watched
from landscope.curvature.problem import Problem
from landscope.curvature.products import check_differentiable
from landscope.spec import derive


def trace_samples(problem: Problem, seeds: Sequence[int]) -> list[float] | None:
    """Independent samples of Tr(H) summed over this process's data, one for each seed; None where not known.

    Cost: that of `gauss_newton_trace`, one forward and two backward passes, and one or two backward passes a sample.
    """
    known = gauss_newton_trace(problem)
    if known is None:
        return None
    found = [known] * len(seeds)
    for number, batch in enumerate(problem.batches()):
        for i, value in enumerate(_batch_samples(problem, batch, [derive(seed, number) for seed in seeds])):
            found[i] += value
    return found


def _batch_samples(problem: Problem, batch: Any, seeds: Sequence[int]) -> list[float]:
    with watched(problem) as seen:
        outputs, targets = problem.outputs(problem.weights(), batch)
    layers = [(problem.space.model.get_submodule(owner), *calls[0]) for owner, calls in seen.items()]
    value, ends = problem.loss(outputs, targets) * len(targets), [z for _, _, z in layers]  # type: ignore[misc]
    (slope,) = torch.autograd.grad(value, outputs, retain_graph=True, materialize_grads=True)
    gradient = torch.autograd.grad(outputs, ends, slope.detach(), create_graph=True, materialize_grads=True)
    bent = [i for i, g in enumerate(gradient) if g.requires_grad]
    if not bent:
        return [0.0] * len(seeds)
    check_differentiable([gradient[i] for i in bent])
    found = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        shifts = [_shift(problem, module, x.detach(), z, generator) for module, x, z in layers]
        images = torch.autograd.grad(
            [gradient[i] for i in bent],
            ends,
            [shifts[i] for i in bent],
            retain_graph=True,
            materialize_grads=True,
        )
        found.append(sum((s * h).sum(dtype=torch.float64).item() for s, h in zip(shifts, images, strict=True)))
    return found


def _shift(problem: Problem, module: nn.Module, x: Tensor, z: Tensor, generator: torch.Generator) -> Tensor:
    """What random signs for a layer's chosen parameters, others for each sample, make of its outputs.

    Where a parameter acts on one output of a sample alone, one sign does for all that act on the same: that leaves the
    expectation as it is and takes noise. Over several positions the signs of a matrix are products of a row's and a
    column's.
    """

    def signs(*shape: int) -> Tensor:
        return (torch.randint(2, shape, generator=generator, dtype=torch.int8) * 2 - 1).to(z)

    parts, n = chosen_parts(problem, module), len(x)
    weight, bias = float("weight" in parts), float("bias" in parts)
    if isinstance(module, nn.Linear):
        if z.dim() == 2:
            return signs(*z.shape) * (weight * x.square().sum(1, keepdim=True) + bias).sqrt()
        middle = [1] * (z.dim() - 2)
        along = (x * signs(n, *middle, x.shape[-1])).sum(-1, keepdim=True)
        return weight * along * signs(n, *middle, z.shape[-1]) + bias * signs(n, *middle, z.shape[-1])
    if isinstance(module, _ConvNd):
        return weight * _convolved(module, x, signs) + bias * signs(*z.shape[:2], *[1] * (z.dim() - 2))
    y = standardised(module, x)
    own = (1, *module.normalized_shape) if isinstance(module, nn.LayerNorm) else (z.shape[1], *[1] * (z.dim() - 2))
    own = (*[1] * (z.dim() - 1 - len(own)), *own) if isinstance(module, nn.LayerNorm) else own
    if z[0].numel() == torch.Size(own).numel():
        return signs(*z.shape) * (weight * y.square() + bias).sqrt()
    return weight * y * signs(n, *own) + bias * signs(n, *own)


def _convolved(module: _ConvNd, x: Tensor, signs: Any) -> Tensor:
    """A convolution of each sample with a kernel of its own for each group, times a sign for each channel."""
    n, groups, inner = len(x), module.groups, module.weight.shape[1:]
    convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[len(module.kernel_size) - 1]
    wide, kernels = x.reshape(1, -1, *x.shape[2:]), signs(n * groups, *inner)
    settings: dict[str, Any] = {"stride": module.stride, "padding": padding_of(module), "dilation": module.dilation}
    found = convolve(wide, kernels, groups=n * groups, **settings)
    places = found.shape[2:]
    found = found.reshape(n, groups, 1, *places) * signs(n, groups, module.out_channels // groups, *[1] * len(places))
    return found.reshape(n, -1, *places)
