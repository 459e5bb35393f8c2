"""What the flatness penalty draws: directions of few different rows, and sums of few rows of what H makes of them.

For a weight W of shape [out, …] with more than RANK rows, A and S are RANK×out matrices of disjoint groups of rows with
random signs, and B is RANK rows of random signs. Then V = AᵀB has mean 0 and E vvᵀ = 1, and E SᵀS = 1, so that

    E ‖S H v‖² = E ‖H v‖² = Tr(H²),

while S·(δᵀh) = (δSᵀ)ᵀh and h Vᵀ = (h Bᵀ)A meet RANK rows instead of all. All other parameters have signs of their own
and are not summed.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from landscope.regularizers.draws import rademacher

RANK = 16  # relative variance beyond Hutchinson's own is at most 2/RANK for each of A and S
FOLDED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Part(NamedTuple):
    """One parameter's part of a direction.

    Args:
        rows: B, or the direction itself where it is not folded.
        into: A, or None.
        onto: S, or None.
    """

    rows: Tensor
    into: Tensor | None = None
    onto: Tensor | None = None

    def direction(self) -> Tensor:
        """V = AᵀB."""
        return self.rows if self.into is None else _times(self.into.T, self.rows)

    def image(self, of: Tensor) -> Tensor:
        """S·(a gradient)."""
        return of if self.onto is None else _times(self.onto, of)


def _times(matrix: Tensor, rows: Tensor) -> Tensor:
    return (matrix @ rows.flatten(1)).unflatten(1, rows.shape[1:])


def _rows(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, int]:
    """The weights that are folded, and how many rows they have."""
    layers = {
        f"{name}.weight" if name else "weight": getattr(module, "groups", 1)
        for name, module in model.named_modules(remove_duplicate=False)
        if type(module) in FOLDED
    }
    return {name: len(w) for name, w in weights.items() if layers.get(name) == 1 and len(w) > RANK}


def draw(
    model: nn.Module, weights: Mapping[str, Tensor], probes: int, generator: torch.Generator | None
) -> tuple[Tensor, ...]:
    """For each probe and parameter its signs: of B, A and S where it is folded."""
    rows, found = _rows(model, weights), []
    for _ in range(probes):
        for name, w in weights.items():
            shapes = [(RANK, *w.shape[1:]), (len(w),), (len(w),)] if name in rows else [tuple(w.shape)]
            found += [rademacher(shape, generator, dtype=w.dtype, device=w.device) for shape in shapes]
    return tuple(found)


def parts(model: nn.Module, weights: Mapping[str, Tensor], drawn: Sequence[Tensor]) -> Iterator[dict[str, Part]]:
    """What was drawn, probe by probe, by the parameters' names."""
    rows, left = _rows(model, weights), iter(drawn)
    for _ in range(len(drawn) // (len(weights) + 2 * len(rows))):
        found = {}
        for name in weights:
            b = next(left)
            found[name] = Part(b, *(_folding(next(left)) for _ in range(2))) if name in rows else Part(b)
        yield found


def _folding(signs: Tensor) -> Tensor:
    return _groups(signs.shape[-1], signs.dtype, signs.device) * signs


@functools.lru_cache(maxsize=32)
def _groups(rows: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Which row is in which of the RANK groups."""
    own = torch.arange(rows, device=device) * RANK // rows
    return (own == torch.arange(RANK, device=device)[:, None]).to(dtype)
