"""The loss as a function of the outputs: its gradient there, and that gradient's derivative along a direction."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from landscope.curvature.outputs import kind_of, scale_of
from landscope.losses.plain import as_numbers, one_hot
from landscope.models.contexts import transformed

Loss = Callable[[Tensor, Tensor], Tensor]


def derivatives(loss: Loss, outputs: Tensor, targets: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
    """The loss's gradient with respect to the outputs, and the gradient's derivative along a tangent of the outputs.

    Both have a graph, and may be differentiated again. Cross-entropy of classes and squared error are in closed form.
    All others are differentiated backwards twice: PyTorch's losses have no forward derivative that could be
    differentiated again, or (Huber's, the soft margin's) none at all.
    """
    kind, n = kind_of(loss, outputs, targets), len(outputs)
    smoothed = getattr(loss, "label_smoothing", 0) != 0
    if kind == "cross-entropy" and outputs.dim() == 2 and not smoothed:
        p = functional.softmax(outputs, 1)
        delta = (p - one_hot(targets, outputs.shape[1]).to(p.dtype)) / n
        moved = p * tangent
        return delta, (moved - p * moved.sum(1, keepdim=True)) / n
    if kind == "squared error":
        factor = 2 * scale_of(loss, outputs, targets) / n
        return factor * (outputs - as_numbers(targets, outputs)), factor * tangent
    return _by_autograd(loss, outputs, targets, tangent)


def _by_autograd(loss: Loss, outputs: Tensor, targets: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
    if transformed(outputs, targets, tangent):
        found = torch.func.vjp(torch.func.grad(lambda o: loss(o, targets)), outputs)
        return found[0], found[1](tangent.to(found[0]))[0]  # the Hessian is symmetric
    z = outputs if outputs.requires_grad else outputs.detach().requires_grad_()
    (delta,) = torch.autograd.grad(loss(z, targets), z, create_graph=True)
    if not delta.requires_grad:  # the loss is linear in the outputs
        return delta, torch.zeros_like(delta)
    along = tangent.to(delta)
    return delta, torch.autograd.grad(delta, z, along, create_graph=True, materialize_grads=True)[0]
