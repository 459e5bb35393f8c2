"""What surrounds a network, left as it was found: wrappers, random generators, data loaders."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from landscope.models import seeded


def bare(model: nn.Module) -> nn.Module:
    """The network inside wrappers whose forward pass would talk to other processes, or compile anew in eval mode."""
    while True:
        inside = getattr(model, "_orig_mod", None)
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            inside = model.module
        if not isinstance(inside, nn.Module):
            return model
        model = inside


def is_compiled(model: nn.Module) -> bool:
    """Whether the network or a part of it was given to torch.compile."""
    return any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )


def is_sharded(model: nn.Module) -> bool:
    """Whether this process holds a part of the parameters alone (FullyShardedDataParallel, DTensors, DeepSpeed)."""
    wrapped = any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules())
    return wrapped or any(type(p).__name__ == "DTensor" or hasattr(p, "ds_id") for p in model.parameters())


@contextmanager
def random_state_kept() -> Iterator[None]:
    """The generators of Python, NumPy and PyTorch (CPU and CUDA) as they were afterwards; PyTorch's seeded inside."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with seeded(0):  # which puts PyTorch's back
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def loader_kept(data: Any, workers: dict[Any, Any] | None = None) -> Iterator[None]:
    """A DataLoader may be read inside and goes on afterwards as if it had not been: its generators and its workers.

    Args:
        data: The DataLoader; anything else is left alone.
        workers: Where persistent workers stay that were started inside, for the next time; None to end them.
    """
    generators = _generators(data)
    states = [generator.get_state() for generator in generators]
    persistent = isinstance(data, torch.utils.data.DataLoader)
    theirs = getattr(data, "_iterator", None)
    if persistent:  # those of the loop must not be started over
        data._iterator = None if workers is None else workers.get("started")
    try:
        yield
    finally:
        if persistent:
            if workers is not None:
                workers["started"] = data._iterator
            data._iterator = theirs
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def rewind(data: Any, seed: int) -> None:
    """Seed all that a loader draws from, so that it gives the same batches in the same order as last time.

    Its own generators have one seed always: which samples it gives, and in what order, is no randomness of the loss.

    Args:
        data: What is read next.
        seed: Of the global generators, from which augmentation and noise are drawn.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    for generator in _generators(data):
        generator.manual_seed(0)


def _generators(data: Any) -> list[torch.Generator]:
    """The generators of a DataLoader and its samplers, each once."""
    samplers = [getattr(data, name, None) for name in ("sampler", "batch_sampler")]
    owners = [data, *samplers, getattr(samplers[1], "sampler", None)]
    found = {id(g): g for g in (getattr(owner, "generator", None) for owner in owners)}
    return [g for g in found.values() if isinstance(g, torch.Generator)]
