"""S·Hv of any network with its graph, so that it can be differentiated once more: by autograd, or in `torch.func`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from landscope.curvature.restoring import is_compiled
from landscope.models import called
from landscope.models.contexts import differentiable_attention, transformed
from landscope.regularizers.bilinear import Watch
from landscope.regularizers.folds import Part
from landscope.regularizers.normalising import WrittenOut
from landscope.regularizers.outputs import Loss, derivatives

Weights = Mapping[str, Tensor]
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside `torch.compile` and DistributedDataParallel, whose own passes are differentiated once only."""
    while True:
        if isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        elif isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        else:
            return model


def compiled(model: nn.Module) -> bool:
    """Whether a forward pass of the model, or of a module in it, is a compiled or a distributed one."""
    return unwrapped(model) is not model or is_compiled(model)


def watchable(weights: Weights, inputs: Tensor) -> bool:
    """Whether layers can be watched: outside of `torch.func` transforms and of autocast."""
    return not transformed(*weights.values()) and not torch.is_autocast_enabled(inputs.device.type)


def drops(model: nn.Module) -> bool:
    """Whether a forward pass of the model as it stands draws dropout masks."""
    return any(isinstance(m, DROPOUTS) and m.training and m.p > 0 for m in model.modules())


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Dropout off inside; every module as it was found afterwards."""
    active = [m for m in model.modules() if isinstance(m, DROPOUTS) and m.training]
    try:
        for module in active:
            module.training = False
        yield
    finally:
        for module in active:
            module.training = True


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Modules that were compiled run as they are written inside, with hooks and derivatives of any order."""
    with ExitStack() as stack:
        if is_compiled(model):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def outputs_of(model: nn.Module, weights: Weights, inputs: Tensor) -> Tensor:
    """The network's outputs without dropout, buffers left as they are."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}  # BatchNorm writes on these instead
    with without_dropout(model), uncompiled(model), differentiable_attention(), WrittenOut():
        return called(model, {**buffers, **weights}, inputs)


Parts = Sequence[Mapping[str, Part]]


def watched(model: nn.Module, weights: Weights, parts: Parts, run: Callable[[], Tensor]) -> tuple[Watch, Tensor]:
    """The outputs of a forward pass whose layers have cheap derivatives of any order, and what watches these."""
    watch = Watch(weights, parts[0])
    with uncompiled(model), differentiable_attention(), watch:
        return watch, run()


def images(
    model: nn.Module,
    weights: Weights,
    batch: tuple[Tensor, Tensor],
    loss: Loss,
    parts: Parts,
    *,
    ggn: bool,
    made: tuple[Watch, Tensor] | None = None,
) -> list[tuple[Tensor, ...]]:
    """S·Hv (or S·Gv) of a batch in the chosen weights for each probe, with their graph.

    Args:
        model: The network.
        weights: The chosen parameters by name, as the model holds them.
        batch: Inputs and targets.
        loss: The mean over a batch.
        parts: For each probe the parameters' parts.
        ggn: Whether to leave out the outputs' second derivatives.
        made: What `watched` gave for a forward pass without dropout; made here if None.
    """
    if watchable(weights, batch[0]):
        watch, outputs = made or watched(model, weights, parts, lambda: outputs_of(model, weights, batch[0]))
        found = []
        if watch.complete:
            found = [_watched_image(watch, outputs, batch[1], loss, each, ggn) for each in parts]
        watch.wanted = "weight"  # for the backward pass that follows
        if watch.complete:
            return found
    product = _functional(model, weights, batch, loss, ggn)
    return [
        tuple(each[n].image(u) for n, u in zip(weights, product([each[n].direction() for n in weights]), strict=True))
        for each in parts
    ]


def _watched_image(
    watch: Watch, outputs: Tensor, targets: Tensor, loss: Loss, parts: Mapping[str, Part], ggn: bool
) -> tuple[Tensor, ...]:
    """S·Hv of one probe: the gradient's A-part first, then the S-part of the gradient of its product with B."""
    options: dict[str, Any] = {"create_graph": True, "materialize_grads": True}
    watch.probe(parts)
    watch.wanted = "beta"
    into, onto, v = watch.leaves_of("beta"), watch.leaves_of("omega"), [parts[n].rows for n in watch.leaves]
    cotangent = torch.zeros_like(outputs, requires_grad=True) if ggn else None
    gradient = torch.autograd.grad(outputs if ggn else loss(outputs, targets), into, cotangent, **options)
    taken = [i for i, g in enumerate(gradient) if g.requires_grad]
    if not taken:  # the loss is linear in the parameters
        return tuple(torch.zeros_like(w) for w in onto)
    some, along = [gradient[i] for i in taken], [v[i] for i in taken]
    watch.wanted = "nothing" if ggn else "omega"
    if cotangent is None:
        return torch.autograd.grad(some, onto, along, **options)
    (tangent,) = torch.autograd.grad(some, cotangent, along, **options)
    watch.wanted = "omega"
    return torch.autograd.grad(outputs, onto, derivatives(loss, outputs, targets, tangent)[1], **options)


def _functional(
    model: nn.Module, weights: Weights, batch: tuple[Tensor, Tensor], loss: Loss, ggn: bool
) -> Callable[[Sequence[Tensor]], tuple[Tensor, ...]]:
    """The product with H (or G) by `torch.func`, whose transforms may be nested in others."""
    inputs, targets = batch
    names = list(weights)

    def forward(*parts: Tensor) -> Tensor:
        return outputs_of(model, dict(zip(names, parts, strict=True)), inputs)

    def value(*parts: Tensor) -> Tensor:
        return loss(forward(*parts), targets)

    point = tuple(weights.values())

    def product(v: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if not ggn:
            # H is symmetric; PyTorch's losses have no forward derivative that could be differentiated again
            gradient = torch.func.grad(value, argnums=tuple(range(len(names))))
            return torch.func.vjp(gradient, *point)[1](tuple(v))
        moved = torch.func.jvp(forward, point, tuple(v))
        return torch.func.vjp(forward, *point)[1](derivatives(loss, moved[0], targets, moved[1])[1])

    return product
