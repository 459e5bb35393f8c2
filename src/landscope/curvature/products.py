"""Products with the curvature of one batch: each function returns its loss and a map of rows ``[k, dim]``."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.utils.checkpoint import CheckpointError

from landscope.curvature.layers import Rewritten
from landscope.curvature.problem import Problem

Product = Callable[[Tensor], Tensor]  # rows [k, dim] -> rows [k, dim]
NO_GRAPH = (
    "the loss does not depend on the chosen parameters as far as autograd sees (detached, made under no_grad, or of "
    "NumPy?): there is nothing to differentiate"
)
Made = tuple[Callable[[], float], Product]  # the loss's sum over the batch, and the product


def loss_and_gradient(
    problem: Problem, weights: tuple[Tensor, ...], batch: Any
) -> tuple[float, float, tuple[Tensor, ...]]:
    """The loss's sum over a batch, what it counts, its gradient; also where the backward pass runs the network again.

    Activation checkpointing does: it has to find these weights in the network then.
    """

    def found() -> tuple[float, float, tuple[Tensor, ...]]:
        value, count = problem.total(weights, batch)
        if not value.requires_grad:  # no parameter has a say in it
            return value.item(), count, tuple(torch.zeros_like(w) for w in weights)
        return value.item(), count, torch.autograd.grad(value, weights, materialize_grads=True)

    return problem.within(weights, found)


def double_backward(problem: Problem, weights: tuple[Tensor, ...], batch: Any, *, batched: bool) -> Made:
    """The Hessian of the sum over a batch: one gradient with its graph, one derivative of it a column.

    Args:
        problem: The loss.
        weights: Leaves that hold the parameters.
        batch: The batch.
        batched: Whether the columns go through the second backward pass together.
    """
    value, count = problem.total(weights, batch)
    _check_leaves(problem, weights, value)
    if not value.requires_grad:
        if count:
            raise ValueError(NO_GRAPH)
        return value.item, torch.zeros_like  # a batch of nothing but padding
    gradient = torch.autograd.grad(value, weights, create_graph=True, materialize_grads=True)
    check_differentiable(gradient)
    sum_of_loss = value.detach()
    return sum_of_loss.item, pulled(problem, gradient, weights, batched)


def _check_leaves(problem: Problem, weights: Sequence[Tensor], value: Tensor) -> None:
    """Refuse a loss that reads the network's own parameters past the function that is differentiated."""
    named = {id(p): name for name, p in problem.space.model.named_parameters()}
    for w in weights:
        named.pop(id(w), None)
    waiting = [] if value.grad_fn is None else [value.grad_fn]
    seen, found = set(waiting), set()
    while waiting:
        node = waiting.pop()
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) in named:
            found.add(named[id(leaf)])
        for below, _ in node.next_functions:
            if below is not None and below not in seen:
                seen.add(below)
                waiting.append(below)
    if found:
        raise ValueError(
            f"the loss depends on the model's {', '.join(sorted(found))} not through the model that it is given, so "
            "that derivatives would miss it (weight decay over a list of parameters made outside?): "
            "use batch_loss= and take the parameters of the model that it is called with"
        )


def check_differentiable(gradient: Sequence[Tensor]) -> None:
    """Refuse a gradient that autograd would differentiate to zeros without a word: what is differentiable only once."""
    if any(g.is_sparse for g in gradient):
        raise ValueError("a layer gives sparse gradients, of which there is no second derivative: use sparse=False")
    waiting = [g.grad_fn for g in gradient if g.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if node.name().endswith("autograd::Error"):
            raise RuntimeError(
                "a part of the network or the loss is marked once_differentiable, so that the loss has no second "
                'derivative: use mode="auto" or "central differences"'
            )
        for below, _ in node.next_functions:
            if below is not None and below not in seen:
                seen.add(below)
                waiting.append(below)


def rewritten(problem: Problem, weights: tuple[Tensor, ...], batch: Any, *, batched: bool) -> Made:
    """`double_backward` with the layers of `landscope.curvature.layers`."""
    with Rewritten():
        return double_backward(problem, weights, batch, batched=batched)


def forward_over_reverse(
    problem: Problem, weights: tuple[Tensor, ...], batch: Any, *, batched: bool, compiled: bool = False
) -> Made:
    """The directional derivative of the gradient, by forward mode."""
    point = tuple(w.detach() for w in weights)

    def directional(point: tuple[Tensor, ...], tangents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        gradient = torch.func.grad(lambda w: problem.total(w, batch)[0])
        return torch.func.jvp(gradient, (point,), (tangents,))[1]

    function = torch.compile(directional) if compiled else directional

    def product(rows: Tensor) -> Tensor:
        if batched and len(rows) > 1:
            parts = problem.space.split_rows(rows)
            return _side_by_side(torch.func.vmap(lambda v: directional(point, v))(parts), weights, len(rows))
        found = (function(point, tuple(part.clone() for part in problem.space.split(row))) for row in rows)
        return torch.stack([problem.space.flat(parts) for parts in found])

    return lambda: _value(problem, point, batch), product


def differences(problem: Problem, weights: tuple[Tensor, ...], batch: Any) -> Made:
    """Central differences of the gradient: an approximation, for losses without a second derivative.

    H v ≈ ‖v‖ (g(θ + εv/‖v‖) − g(θ − εv/‖v‖)) / 2ε with ε = eps^⅓ (1 + ‖θ‖), eps the type's precision: v is normalised,
    so that the step does not depend on its length. Relative error about eps^⅔ where the third derivative is moderate.
    """
    space = problem.space
    center = space.flat(w.detach() for w in weights)
    step = torch.finfo(space.dtype).eps ** (1 / 3) * (1 + center.norm().item())

    def gradient(at: Tensor) -> Tensor:
        moved = tuple(part.detach().requires_grad_() for part in space.split(at))
        return space.flat(loss_and_gradient(problem, moved, batch)[2])

    def one(row: Tensor) -> Tensor:
        length = row.norm().item()
        if not length:
            return torch.zeros_like(row)
        shift = row * (step / length)
        return (gradient(center + shift) - gradient(center - shift)) * (length / (2 * step))

    return lambda: _value(problem, weights, batch), lambda rows: torch.stack([one(row) for row in rows])


def _value(problem: Problem, weights: tuple[Tensor, ...], batch: Any) -> float:
    with torch.no_grad():
        return problem.total(weights, batch)[0].item()


def pulled(problem: Problem, values: tuple[Tensor, ...], by: tuple[Tensor, ...], batched: bool) -> Product:
    """Rows of cotangents of ``values`` to rows of cotangents of ``by``; the graph stays."""
    taken = [i for i, value in enumerate(values) if value.requires_grad]
    space = problem.space
    kept = [get_gradient_edge(values[i]) for i in taken]  # the values themselves need not be held

    def product(rows: Tensor) -> Tensor:
        if not taken:  # the loss is linear in the parameters
            return torch.zeros_like(rows)
        options: dict[str, Any] = {"retain_graph": True, "materialize_grads": True}
        if batched and len(rows) > 1:
            parts = space.split_rows(rows)
            options = {"retain_graph": True, "allow_unused": True}
            found = torch.func.vmap(lambda v: _found(torch.autograd.grad(kept, by, v, **options), by))(
                [parts[i] for i in taken]
            )
            return _side_by_side(found, by, len(rows))
        products = torch.empty_like(rows)
        for row, to in zip(rows, products, strict=True):
            parts = space.split(row)
            found = torch.autograd.grad(kept, by, [parts[i] for i in taken], **options)
            torch.cat([part.reshape(-1) for part in found], out=to)
        return products

    return product


def gauss_newton(
    problem: Problem,
    weights: tuple[Tensor, ...],
    batch: Any,
    middle: Callable[[Tensor, Tensor], Callable[[Tensor], Tensor]],
    *,
    batched: bool,
) -> Made:
    """Jᵀ M J of a batch, J the outputs' Jacobian and M = ``middle(outputs, targets)``.

    J v is the derivative of Jᵀ u with respect to u, so that reverse mode is all that is needed.
    """
    try:
        with Rewritten():
            outputs, targets, cotangent, pullback = _pullback(problem, weights, batch)
    except CheckpointError:  # what the backward pass runs again would not be rewritten
        outputs, targets, cotangent, pullback = _pullback(problem, weights, batch)
    if not len(outputs):  # a batch of nothing but padding
        return float, torch.zeros_like
    apply = middle(outputs, targets)
    space, taken = problem.space, [i for i, part in enumerate(pullback) if part.requires_grad]
    options: dict[str, Any] = {"retain_graph": True, "materialize_grads": True}

    def one(row: Tensor) -> Tensor:
        parts = space.split(row)
        (tangent,) = torch.autograd.grad([pullback[i] for i in taken], cotangent, [parts[i] for i in taken], **options)
        found = torch.autograd.grad(outputs, weights, apply(tangent[None])[0], **options)
        return space.flat(found)

    def product(rows: Tensor) -> Tensor:
        if not taken:
            return torch.zeros_like(rows)
        if not batched or len(rows) == 1:
            return torch.stack([one(row) for row in rows])
        parts = space.split_rows(rows)
        chosen = [parts[i] for i in taken]
        options = {"retain_graph": True, "allow_unused": True}

        def forward(v: list[Tensor]) -> Tensor:
            return torch.autograd.grad([pullback[i] for i in taken], cotangent, v, **options)[0]

        def backward(u: Tensor) -> tuple[Tensor, ...]:
            return _found(torch.autograd.grad(outputs, weights, u, **options), weights)

        found = torch.func.vmap(backward)(apply(torch.func.vmap(forward)(chosen)))
        return _side_by_side(found, weights, len(rows))

    def value() -> float:
        with torch.no_grad():
            return (problem.loss(outputs.detach(), targets) * len(targets)).item()  # type: ignore[misc]

    return value, product


def _pullback(
    problem: Problem, weights: tuple[Tensor, ...], batch: Any
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
    """Outputs, targets, a cotangent u of the outputs, and Jᵀ u with its graph."""
    outputs, targets = problem.outputs(weights, batch)
    cotangent = torch.zeros_like(outputs, requires_grad=True)
    if not outputs.requires_grad:
        raise ValueError(NO_GRAPH)
    pullback = torch.autograd.grad(outputs, weights, cotangent, create_graph=True, materialize_grads=True)
    return outputs, targets, cotangent, pullback


def _found(parts: Sequence[Tensor | None], like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(torch.zeros_like(w) if part is None else part for part, w in zip(parts, like, strict=True))


def _side_by_side(found: Sequence[Tensor], by: Sequence[Tensor], k: int) -> Tensor:
    """Rows ``[k, dim]`` of parts ``[k, *shape]``; what nothing depends on comes as zeros without the k."""
    whole = (
        part if part.dim() > like.dim() else part.expand(k, *part.shape) for part, like in zip(found, by, strict=True)
    )
    return torch.cat([part.reshape(k, -1) for part in whole], 1)
