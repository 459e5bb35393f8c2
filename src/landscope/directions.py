"""Directions in parameter space: random, and scaled to each filter's norm."""

from collections.abc import Mapping

import torch
from torch import Tensor

Parameters = Mapping[str, Tensor]


def gaussian(like: Parameters, *, seed: int) -> dict[str, Tensor]:
    """Independent N(0, 1) numbers in the shapes of ``like``; the same for every network of these shapes.

    They are drawn on the CPU in float32, so that every device and precision gets the same.

    >>> d = gaussian({"weight": torch.zeros(2, 3)}, seed=0)
    >>> d["weight"].shape
    torch.Size([2, 3])
    """
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(p.shape, generator=generator, dtype=torch.float32).to(p) for name, p in like.items()}


def filter_normalised(direction: Parameters, weights: Parameters) -> dict[str, Tensor]:
    """``direction`` with each filter rescaled to the norm of the same filter of ``weights``.

    A filter is a slice along the first axis of a tensor with two axes or more (one unit's incoming weights, one
    output map's kernel). Biases and normalisation parameters, which have one axis, get zero (Li et al. 2018).

    >>> w = {"weight": torch.tensor([[3.0, 4.0], [0.0, 0.0]]), "bias": torch.ones(2)}
    >>> d = filter_normalised({"weight": torch.ones(2, 2), "bias": torch.ones(2)}, w)
    >>> d["weight"].norm(dim=1).tolist(), d["bias"].tolist()
    ([5.0, 0.0], [0.0, 0.0])
    """
    scaled = {}
    for name, d in direction.items():
        w = weights[name]
        if w.dim() < 2:
            scaled[name] = torch.zeros_like(w)
            continue
        ratio = w.flatten(1).norm(dim=1) / d.flatten(1).norm(dim=1).clamp_min(torch.finfo(d.dtype).tiny)
        scaled[name] = d * ratio.reshape(-1, *[1] * (w.dim() - 1))
    return scaled
