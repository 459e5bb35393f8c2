"""Leaving a training as it was found: weights, buffers, gradients, modes, random generators."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from landscope.curvature.restoring import is_sharded, random_state_kept
from landscope.models import device_of, evaluating

Forward = Callable[[Any, Tensor], Tensor]


class Adapted(nn.Module):
    """A network of which a function gives the outputs."""

    model: nn.Module
    function: Forward

    def __init__(self, model: nn.Module, function: Forward) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, inputs: Tensor) -> Tensor:
        """The function's outputs for a batch of inputs."""
        return self.function(self.model, inputs)


def refuse_sharded(model: nn.Module) -> None:
    """Refuse parameters of which this process holds a part.

    Raises:
        ValueError: for modules under FullyShardedDataParallel and parameters that are DTensors or DeepSpeed's (ZeRO-3).
    """
    if is_sharded(model):
        raise ValueError(
            f"the parameters of this {type(model).__name__} are spread over several processes (FSDP, ZeRO-3, tensor "
            "parallel), and a monitor measures in one: save a checkpoint with the full state and measure that"
        )


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Whatever happens inside, also an exception: the network, its gradients and the generators are as before.

    Inside, the network is in eval mode without gradients of its own, autograd is on and autocast off.
    """
    with torch.inference_mode(False), random_state_kept(), evaluating(model):
        owners = [(module, dict(module._parameters), dict(module._buffers)) for module in model.modules()]
        parameters, buffers = list(model.parameters()), list(model.buffers())
        gradients = [(p, p.grad, p.requires_grad) for p in parameters]
        tensors = [(t, t.data, t.detach().clone()) for t in (*parameters, *buffers)]
        try:
            for p in parameters:
                p.grad = None  # a measure's own backward pass would add to it
            with torch.enable_grad(), torch.autocast(device_of(model).type, enabled=False):
                yield
        finally:
            for module, own_parameters, own_buffers in owners:
                _refill(module._parameters, own_parameters)
                _refill(module._buffers, own_buffers)
            for tensor, storage, content in tensors:
                if tensor.data_ptr() != storage.data_ptr() or tensor.device != storage.device:
                    tensor.data = storage
                tensor.data.copy_(content)  # past autograd's counters: a graph of the training stays valid
            for p, gradient, wanted in gradients:
                p.requires_grad_(wanted)
                p.grad = gradient


def _refill(own: dict[str, Any], before: dict[str, Any]) -> None:
    own.clear()
    own.update(before)
