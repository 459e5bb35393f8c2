"""Trying a network and a loss on a few of a user's samples, so that what does not fit is said in words."""

from typing import Any

import torch
from torch import Tensor, nn

from landscope.losses.trying import tried_loss, tried_network
from landscope.models import device_of
from landscope.types import Batches


@torch.no_grad()
def tried(model: nn.Module, loss: Any, batches: Batches, name: str) -> tuple[Tensor, Tensor]:
    """The outputs for a set's first batch, and its targets; the model is in eval mode.

    Where targets are whole numbers the loss is also tried on the lowest and the highest: classes that are none.

    Raises:
        ValueError: where the network does not take the inputs, or the loss the outputs with the targets.
    """
    inputs, targets = next(iter(batches))
    result = _outputs(model, inputs, name), targets.to(device_of(model))
    tried_loss(loss, *result, name)
    if batches.targets.dim() == 1 and not batches.targets.is_floating_point() and batches.n > len(targets):
        ends = torch.stack([batches.targets.argmin(), batches.targets.argmax()])
        outputs = _outputs(model, batches.inputs[ends.to(batches.inputs.device)], name)
        tried_loss(loss, outputs, batches.targets[ends].to(outputs.device), name)
    return result


def _outputs(model: nn.Module, inputs: Tensor, name: str) -> Any:
    weights = next((p.dtype for p in model.parameters() if p.is_floating_point()), inputs.dtype)
    return tried_network(lambda: model(inputs.to(device_of(model))), inputs, weights, name)
