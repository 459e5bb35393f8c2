"""Where a network's weights are: few numbers that keep the distances between networks."""

import torch
from torch import Tensor

from landscope.spec import derive
from landscope.types import Snapshot


def projected_weights(snapshot: Snapshot, *, dimensions: int | None = None) -> dict[str, Tensor]:
    """The weights of a network and of its start, projected at random to a few dimensions, for maps of many networks.

    P w / √k with P of independent N(0, 1) numbers, k × n, the same for all networks of one shape: squared distances
    are kept in expectation, with a relative standard deviation of √(2/k) (Johnson and Lindenstrauss 1984). Parameters
    with one axis are left out.

    Args:
        snapshot: The network, with its start.
        dimensions: k; None for no values.

    Returns:
        ``projected_weights`` and, where the start is known, ``projected_start``, each of shape ``[k]``.

    Raises:
        ValueError: for fewer than 1 dimension.

    Cost: k·n numbers drawn.
    """
    if dimensions is None:
        return {}
    if dimensions < 1:
        raise ValueError(f"weights are projected to at least 1 dimension, not {dimensions}")
    kept = [name for name, p in snapshot.model.named_parameters() if p.dim() > 1]
    found: dict[str, Tensor] = {}
    for name, state in (("projected_weights", snapshot.state), ("projected_start", snapshot.start_state)):
        if state is None or not kept:
            continue
        flat = torch.cat([state[part].detach().cpu().double().reshape(-1) for part in kept])
        generator = torch.Generator().manual_seed(derive(snapshot.seed, "projection"))
        rows = [torch.randn(len(flat), generator=generator, dtype=torch.float64) @ flat for _ in range(dimensions)]
        found[name] = torch.stack(rows) / dimensions**0.5
    return found
