"""What regularizers share: the source of random numbers, the loss, checks of settings, a pass beside the loss's own."""

import functools
import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from landscope.losses import check_mean
from landscope.models import called
from landscope.spec import Call, derive

Loss = Callable[[Tensor, Tensor], Tensor]

Batch = tuple[Shaped[Tensor, " n *shape"], Shaped[Tensor, " n *target"]]  # inputs and targets


class Draws(nn.Module):
    """A stream of generators: the n-th is a function of the seed and n alone, and n is part of the state.

    A run that is continued from ``state_dict()`` so draws what it would have drawn.

    Args:
        seed: Names the stream; None stands for torch's global generator.
        purpose: Keeps the streams of different regularizers with one seed apart.
    """

    count: Tensor
    seed: int | None
    purpose: str

    def __init__(self, seed: int | None, purpose: str) -> None:
        super().__init__()
        whole = isinstance(seed, Integral) and not isinstance(seed, bool)
        if seed is not None and (not whole or seed < 0):
            kind = ValueError if whole else TypeError
            raise kind(f"a seed is a whole number of at least 0, or None for torch's own generator, not {seed!r}")
        self.seed, self.purpose = seed, purpose
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def next(self, device: torch.device) -> torch.Generator | None:
        """The next generator; None (torch's global one) without a seed.

        Where no gradients are recorded the stream stays where it is: looking at a value changes no later step.
        """
        if self.seed is None:
            return None
        n = int(self.count) + 1
        if torch.is_grad_enabled():
            self.count += 1
        return torch.Generator(device).manual_seed(derive(self.seed, self.purpose, n))


def criterion(loss: Call | Loss | None) -> Loss:
    """A loss from what a regularizer was given: a Call that gives it, the loss itself, or None for cross-entropy.

    Raises:
        ValueError: for a torch loss that is no mean over the batch.
    """
    found = loss() if isinstance(loss, Call) else nn.functional.cross_entropy if loss is None else loss
    check_mean(found)
    return found


def check_counts(owner: str, **counts: Any) -> None:
    """Refuse settings that are no whole numbers of at least 1; None is let through.

    Raises:
        TypeError: for what is no whole number.
        ValueError: for one below 1.
    """
    for name, value in counts.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise TypeError(f"{owner} needs {name} to be a whole number of at least 1, not {value!r}")
        if value is not None and value < 1:
            raise ValueError(f"{owner} needs {name} of at least 1, not {value}")


def check_real(owner: str, **settings: Any) -> None:
    """Refuse settings that are no numbers.

    Raises:
        TypeError: for the first one.
    """
    for name, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, (Real, Tensor)):
            raise TypeError(f"{owner} needs a number for {name}, not {value!r}")


def check_sizes(owner: str, *, positive: bool = False, **settings: Any) -> None:
    """Refuse settings that are no finite numbers of at least 0 (above 0 if ``positive``).

    Raises:
        TypeError: for what is no number.
        ValueError: for one that is out of range.
    """
    check_real(owner, **settings)
    for name, value in settings.items():
        if not 0 <= value < math.inf or (positive and value == 0):
            finite = " and finite" * (value == math.inf)
            raise ValueError(f"{owner} needs {name} {'above' if positive else 'of at least'} 0{finite}, not {value}")


def check_layers(owner: str, layers: Any) -> None:
    """Refuse a choice of layers that is empty, or no tuple of names; None is let through.

    Raises:
        TypeError: for one name by itself, and for what is no name.
        ValueError: for ``()``.
    """
    if isinstance(layers, str):
        raise TypeError(f"{owner} needs layers to be a tuple of names: layers=({layers!r},), not layers={layers!r}")
    if layers is not None and not (isinstance(layers, (tuple, list)) and all(isinstance(n, str) for n in layers)):
        raise TypeError(f"{owner} needs layers to be a tuple of modules' or parameters' names, not {layers!r}")
    if layers is not None and not layers:
        raise ValueError(f"{owner}(layers=()) chooses nothing; name some modules, or None for all")


def passed(model: nn.Module, inputs: Tensor) -> Tensor:
    """The model's outputs by a pass beside the loss's own: buffers (BatchNorm's statistics) are left as they are."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    return called(model, buffers, inputs) if buffers else model(inputs)


@functools.lru_cache(maxsize=8)
def _eight_signs(dtype: torch.dtype, device: torch.device) -> Tensor:
    bits = torch.arange(256, device=device)[:, None] >> torch.arange(8, device=device) & 1
    return bits.to(dtype) * 2 - 1


def rademacher(
    shape: torch.Size | tuple[int, ...],
    generator: torch.Generator | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "..."]:
    """Independent random signs, ±1 with probability ½ each.

    64 signs are drawn as one random integer, and a table of 256 rows turns each byte into eight floating-point signs.
    That takes about a third of the time of one uniform number a sign, and nothing is drawn twice: unlike slices of one
    long table, successive probes share no randomness.

    >>> rademacher((3, 5)).abs().sum().item()
    15.0
    """
    n = torch.Size(shape).numel()
    words = torch.empty(-(-n // 64), dtype=torch.int64, device=device).random_(-(2**63), None, generator=generator)
    table = _eight_signs(dtype, words.device)
    return nn.functional.embedding(words.view(torch.uint8).int(), table).view(-1)[:n].view(shape)
