"""What is done to a network for a while: eval mode, seeded generators, plain attention; and where it is."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every submodule in eval mode; modes and buffers are as they were found afterwards, also after an exception.

    A forward pass may write on buffers in eval mode, too, and ``torch.nn.functional.batch_norm`` does so unseen by
    autograd's counters: contents are compared, and what nothing wrote on is not touched.
    """
    modes = [(module, module.training) for module in model.modules()]
    places = [(module, name, buffer) for module, _ in modes for name, buffer in module.named_buffers(recurse=False)]
    kept = [(*place, place[-1].detach().clone()) for place in places]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for module, name, buffer, copy in kept:
                if getattr(module, name) is not buffer:
                    setattr(module, name, buffer)
                if buffer.layout != torch.strided or not torch.equal(buffer, copy):
                    buffer.copy_(copy)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """PyTorch's global generators seeded inside; as they were found afterwards, also after an exception."""
    # Not torch.manual_seed: where CUDA was never used, that formats a stack trace, at a third of a millisecond a call.
    generators = [torch.default_generator, *(torch.cuda.default_generators if torch.cuda.is_initialized() else ())]
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


@contextmanager
def differentiable_attention() -> Iterator[None]:
    """Attention by plain matrix products: the fused kernels have no second derivative."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def device_of(model: nn.Module) -> torch.device:
    """Where a network's first parameter is; the CPU for one without parameters."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))
