"""How many of a network's weights are there."""

import torch
from torch import Tensor

from landscope.types import Snapshot


def weight_density(snapshot: Snapshot) -> dict[str, float | Tensor]:
    """How many prunable weights are not exactly zero, and whether any that began at zero has moved.

    Prunable are the parameters with two axes or more (see `landscope.pruning`); a network without any has no
    values.

    Returns:
        ``weight_density``, the share of prunable weights that are not zero, in [0, 1]; ``layer_densities``, that of
        each tensor, in the network's order, shape ``[tensors]``; ``nonzero_parameters``, how many parameters of any
        kind are not zero; and, where the initial state is known, ``revived_weights``, how many prunable weights were
        zero there and no longer are: 0 under a mask that is enforced.

    Cost: none.
    """
    parameters = {name: p.detach() for name, p in snapshot.model.named_parameters()}
    wide = {name: p for name, p in parameters.items() if p.dim() >= 2 and p.is_floating_point()}
    if not wide:
        return {}
    kept = [int(torch.count_nonzero(w)) for w in wide.values()]
    sizes = [w.numel() for w in wide.values()]
    values: dict[str, float | Tensor] = {
        "weight_density": sum(kept) / sum(sizes),
        "layer_densities": torch.tensor(kept, dtype=torch.float64) / torch.tensor(sizes, dtype=torch.float64),
        "nonzero_parameters": float(sum(int(torch.count_nonzero(p)) for p in parameters.values())),
    }
    if snapshot.start_state is not None:
        start = snapshot.start_state
        moved = (int(((start[n].to(w.device) == 0) & (w != 0)).sum()) for n, w in wide.items() if n in start)
        values["revived_weights"] = float(sum(moved))
    return values
