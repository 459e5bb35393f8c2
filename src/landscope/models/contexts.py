"""What is done to a network for a while: other tensors, eval mode, seeded generators, plain attention; where it is."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel


def called(model: nn.Module, tensors: Mapping[str, Tensor], *inputs: Any) -> Any:
    """A network's outputs with other parameters and buffers, the network left as it is.

    `torch.func.functional_call`, and right where a module stands in the network under several names: there the former,
    restoring each name by itself, leaves the replaced tensor in the place of the parameter.

    Args:
        model: The network.
        tensors: What stands in for which parameter or buffer, by one of its names; tied ones are replaced together.
        inputs: Of its forward pass.

    Raises:
        ValueError: for a name that the network has no tensor of.
    """
    return functional_call(model, replaced(model, tensors), inputs, tie_weights=False)


def replaced(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `functional_call` needs for each module once, under one of its names: see `called`."""
    own: dict[str, Tensor] = {}
    places: dict[tuple[int, str], str] = {}  # of each module's tensors, by one name of the module
    for place, module in model.named_modules(remove_duplicate=False):
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                whole = f"{place}.{name}" if place else name
                own[whole] = tensor
                places.setdefault((id(module), name), whole)
    unknown = tensors.keys() - own.keys()
    if unknown:
        raise ValueError(f"the network has no parameter or buffer named {', '.join(sorted(unknown)[:4])}")
    given = {id(own[name]): tensor for name, tensor in tensors.items()}
    return {whole: given[id(own[whole])] for whole in places.values() if id(own[whole]) in given}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every submodule in eval mode; modes and buffers are as they were found afterwards, also after an exception.

    A forward pass may write on buffers in eval mode, too, and ``torch.nn.functional.batch_norm`` does so unseen by
    autograd's counters: contents are compared, and what nothing wrote on is not touched. A module on which it leaves
    tensors of a `torch.func` transform, such as activations for a later look, gets its own attributes back: those
    tensors are dead, and the network could not be copied. What else it leaves there, such as a cache, stays.
    """
    modes = [(module, module.training) for module in model.modules()]
    attributes = [(vars(module), dict(vars(module)), _containers(module)) for module, _ in modes]
    places = [(module, name, buffer) for module, _ in modes for name, buffer in module.named_buffers(recurse=False)]
    kept = [(*place, place[-1].detach().clone()) for place in places]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for present, before, containers in attributes:
            if any(name[0] != "_" and transformed(value) for name, value in present.items()):
                present.clear()
                present.update(before | containers)
        with torch.no_grad():
            for module, name, buffer, copy in kept:
                if getattr(module, name) is not buffer:
                    setattr(module, name, buffer)
                if buffer.layout != torch.strided or not torch.equal(buffer, copy):
                    buffer.copy_(copy)


@contextmanager
def plainly(model: nn.Module) -> Iterator[None]:
    """`evaluating`, without a graph and as if nothing surrounded it: no autocast, no inference mode."""
    device = next((p.device.type for p in model.parameters()), "cpu")
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False), evaluating(model):
        yield


def _containers(module: nn.Module) -> dict[str, Any]:
    """Copies of a module's own lists and dicts, which a forward pass may fill."""
    own = {name: value for name, value in vars(module).items() if name[0] != "_"}
    return {name: copy.copy(value) for name, value in own.items() if type(value) in (list, dict)}


def transformed(*values: Any) -> bool:
    """Whether something is a tensor of a `torch.func` transform, or holds one in lists, tuples and dicts."""
    for value in values:
        if isinstance(value, Tensor):
            found = torch.func.debug_unwrap(value) is not value
        else:
            held = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
            found = transformed(*held)
        if found:
            return True
    return False


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
