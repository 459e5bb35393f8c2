"""Masks and rewinding: networks with most of their weights at zero, and runs that begin from them.

A mask is a boolean tensor, True where a weight is kept. Prunable are a state's floating-point tensors with two axes or
more (the weights of linear and convolutional layers); biases and normalisation are never pruned. A pruned weight is
exactly 0 in a pruned state and a kept one never is, so that a state holds its own mask: `keep_zeros` reads it there.

A ticket of Frankle & Carbin, "The lottery ticket hypothesis" (2019), is a Recipe that begins from another's weights::

    replace(dense, start=call(prune_and_rewind, source=at(dense, "start"), scores=at(dense, "end"), density=0.1),
            constraint=call(keep_zeros))
"""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from landscope.spec import derive

State = Mapping[str, Tensor]
Masks = dict[str, Tensor]
SCOPES = ("global", "layer")
MOST_LEVELS = 1000
_PRUNED = "_pruned"  # what is pruned is held beside its weight, as a buffer that is no part of the network's state


def prunable(state: State, *, skip: Sequence[str] = ()) -> list[str]:
    """The names of a state's prunable tensors, sorted: a state that was read from a file is in no order of its own.

    Args:
        state: Parameters and buffers by name.
        skip: Names of tensors, or of modules with all that they hold, that are left whole.

    Raises:
        LookupError: for a name in ``skip`` that the state does not have.
        ValueError: where nothing is prunable.

    >>> prunable(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1)).state_dict(), skip=["2"])
    ['0.weight']
    """
    for name in skip:
        if not any(_within(held, name) for held in state):
            raise LookupError(f"skip names {name!r}, which the network does not have; it has {', '.join(state)}")
    wide = [name for name, t in state.items() if t.is_floating_point() and t.dim() >= 2]
    found = sorted(name for name in wide if not any(_within(name, skipped) for skipped in skip))
    if not found:
        raise ValueError(f"nothing to prune: none of {', '.join(state) or 'no tensors'} is a weight with two axes")
    return found


def _within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def magnitude_masks(
    scores: State,
    *,
    density: float | None = None,
    fraction: float | None = None,
    scope: str = "global",
    skip: Sequence[str] = (),
) -> Masks:
    """Masks that keep the largest weights by magnitude.

    Of n prunable weights ⌈density·n⌉ are kept, or ⌈(1 − fraction)·m⌉ of the m that are not zero yet: at least the
    density asked for, exactly. Numbers are read as they are written in decimals, so that 0.07 of 100 weights are 7.
    Of equal magnitudes the one that comes first is kept, by the tensor's name and then row by row.

    Args:
        scores: The state that is judged, parameters and buffers by name.
        density: The share of all prunable weights that is kept, in (0, 1].
        fraction: The share of the remaining weights that is taken off, in [0, 1); give one of the two.
        scope: ``"global"``: one threshold for all weights. ``"layer"``: the same share of every tensor.
        skip: What is left whole, as for `prunable`; it counts in no share.

    Returns:
        By name of the prunable tensors, masks of their shapes, on their device.

    Raises:
        ValueError: for a share out of range or none, an unknown scope, scores that are not finite, more weights asked
            for than are left, or a layer that would lose all of its weights: the network would no longer depend on its
            inputs.

    >>> masks = magnitude_masks({"weight": torch.tensor([[0.5, -3.0], [2.0, -0.5]])}, density=0.75)
    >>> masks["weight"].int().tolist()
    [[1, 1], [1, 0]]
    """
    _check(density, fraction, scope)
    names = prunable(scores, skip=skip)
    for name in names:
        if not bool(torch.isfinite(scores[name]).all()):
            raise ValueError(f"{name} is not finite: weights without a magnitude cannot be put in order")
    groups = [names] if scope == "global" else [[name] for name in names]
    masks = {name: mask for group in groups for name, mask in _largest(scores, group, density, fraction).items()}
    empty = [name for name, mask in masks.items() if not bool(mask.any())]
    if empty:
        left = sum(int(mask.sum()) for mask in masks.values())
        raise ValueError(
            f"{', '.join(empty)} would be pruned to nothing ({left} weights are kept in all), and the outputs would no "
            'longer depend on the inputs: keep more weights, prune with scope="layer", or skip these layers'
        )
    return masks


def _check(density: float | None, fraction: float | None, scope: str) -> None:
    if (density is None) == (fraction is None):
        raise ValueError(f"give density or fraction, one of them, not density={density} and fraction={fraction}")
    if density is not None and not 0 < density <= 1:
        raise ValueError(f"density is the share of weights that is kept, in (0, 1], not {density}")
    if fraction is not None and not 0 <= fraction < 1:
        raise ValueError(f"fraction is the share of the remaining weights that is pruned, in [0, 1), not {fraction}")
    if scope not in SCOPES:
        raise ValueError(f"scope is one of {', '.join(SCOPES)}, not {scope!r}")


def _largest(scores: State, names: Sequence[str], density: float | None, fraction: float | None) -> Masks:
    sizes = [scores[name].numel() for name in names]
    flat = torch.cat([scores[name].detach().reshape(-1).abs() for name in names])
    total, left = sum(sizes), int((flat > 0).sum())
    if density is not None:
        kept = math.ceil(Fraction(str(density)) * total)
        if kept > left:
            raise ValueError(
                f"a density of {density} needs {kept} of {total} weights, but only {left} of these scores are not "
                "zero: the scores come from a network that was pruned further"
            )
    else:
        kept = math.ceil((1 - Fraction(str(fraction))) * left)
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[torch.sort(flat, descending=True, stable=True).indices[:kept]] = True
    parts = torch.split(mask, sizes)
    return {name: part.reshape(scores[name].shape) for name, part in zip(names, parts, strict=True)}


def shuffled_masks(masks: Mapping[str, Tensor], *, seed: int) -> Masks:
    """Random masks of equal layer-wise density: each mask's elements in a random order.

    Each order is drawn on the CPU, by the seed and the tensor's name.

    >>> mask = torch.tensor([[True, False, False], [False, False, True]])
    >>> int(shuffled_masks({"weight": mask}, seed=0)["weight"].sum())
    2
    """
    return {name: _shuffled(mask, derive(seed, "mask", name)) for name, mask in masks.items()}


def _shuffled(mask: Tensor, seed: int) -> Tensor:
    order = torch.randperm(mask.numel(), generator=torch.Generator().manual_seed(seed))
    return mask.reshape(-1)[order.to(mask.device)].reshape(mask.shape)


@torch.no_grad()
def masked(state: State, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of a state in which a weight is exactly 0 if, and only if, its mask says so.

    A kept weight that is 0 by chance becomes the smallest normal number of its type instead.

    Raises:
        LookupError: for a mask whose tensor the state does not have.
        ValueError: for a mask of another shape, or that is not of bools.
    """
    found = {name: t.detach().clone() for name, t in state.items()}
    for name, mask in masks.items():
        if name not in found:
            raise LookupError(f"there is a mask for {name}, which the state does not have: {', '.join(found)}")
        if mask.shape != found[name].shape:
            raise ValueError(f"{name} has the shape {list(found[name].shape)}, its mask {list(mask.shape)}")
        if mask.dtype != torch.bool:
            raise ValueError(f"a mask says of each weight whether it is kept, in bools; that of {name} is {mask.dtype}")
        found[name] = _with_mask(found[name], mask.to(found[name].device))
    return found


def _with_mask(w: Shaped[Tensor, " *shape"], kept: Shaped[Tensor, " *shape"]) -> Shaped[Tensor, " *shape"]:
    tiny = torch.full_like(w, torch.finfo(w.dtype).tiny)
    return torch.where(kept, torch.where(w == 0, tiny, w), torch.zeros_like(w))


def prune_and_rewind(
    *,
    source: State,
    scores: State,
    density: float | None = None,
    fraction: float | None = None,
    scope: str = "global",
    skip: tuple[str, ...] = (),
    shuffle: int | None = None,
) -> dict[str, Tensor]:
    """A Recipe's start: the weights of one state, pruned by the magnitudes of another (see `magnitude_masks`).

    With ``source`` a network's own initialisation it is a lottery ticket; an early step of its training, rewinding;
    another initialisation, the control of the same mask with new weights; ``scores`` itself, fine-tuning. Biases,
    normalisation and its statistics are the source's and stay free. Give the Recipe ``constraint=call(keep_zeros)``.

    Args:
        source: The state that the weights are taken from: in a Recipe ``at(run, "start")`` or another step.
        scores: The state whose magnitudes decide: in a Recipe ``at(run, "end")``. Of a pruned network, its zeros are
            pruned first, so that masks are nested from level to level.
        density: The share of all prunable weights that is kept.
        fraction: The share of the remaining weights that is pruned.
        scope: ``"global"`` or ``"layer"``.
        skip: What is left whole.
        shuffle: Seed of random masks of the same layer-wise density (`shuffled_masks`); None: the masks themselves.

    Raises:
        LookupError: where ``source`` lacks a tensor that is pruned.
        ValueError: as `magnitude_masks` does, or where the states' shapes differ.

    >>> state = {"weight": torch.tensor([[1.0, 2.0]])}
    >>> prune_and_rewind(source=state, scores={"weight": torch.tensor([[-4.0, 3.0]])}, density=0.5)["weight"].tolist()
    [[1.0, 0.0]]
    """
    masks = magnitude_masks(scores, density=density, fraction=fraction, scope=scope, skip=skip)
    return masked(source, masks if shuffle is None else shuffled_masks(masks, seed=shuffle))


@torch.no_grad()
def keep_zeros(model: nn.Module, /) -> None:
    """A Recipe's constraint: weights that are zero at the first call are set to exactly 0 by every later one.

    A constraint is applied before the first step and after every one, so that the zeros are those of the state that
    the run begins from, and neither momentum nor weight decay brings a pruned weight back. The masks of the network's
    prunable parameters are held in non-persistent buffers beside them, which the network's state does not contain; a
    copy of the network has them too. Call it by hand after ``optimizer.step()`` in a loop of your own.

    A network that has no zeros is left as it is.
    """
    for module in model.modules():
        for name, w in list(module.named_parameters(recurse=False)):
            if w.dim() < 2 or not w.is_floating_point():
                continue
            pruned = dict(module.named_buffers(recurse=False)).get(f"{name}{_PRUNED}")
            if pruned is None:
                pruned = w.detach() == 0
                module.register_buffer(f"{name}{_PRUNED}", pruned, persistent=False)
            w.masked_fill_(pruned, 0)


def densities(*, fraction: float = 0.2, until: float = 0.03) -> tuple[float, ...]:
    """The densities of iterative pruning: (1 − fraction)^k for k = 1, 2, … until one is below ``until``.

    Each is rounded to six decimals, so that it is written the same everywhere.

    Raises:
        ValueError: for a share outside (0, 1), or a schedule without end (more than 1,000 levels), or one that ends at
            a density of 0.

    >>> densities(until=0.5)
    (0.8, 0.64, 0.512, 0.4096)
    """
    for name, value in (("fraction", fraction), ("until", until)):
        if not 0 < value < 1:
            raise ValueError(f"{name} lies between 0 and 1, not {value}")
    levels = math.floor(math.log(until) / math.log1p(-fraction)) + 1
    if levels > MOST_LEVELS:
        raise ValueError(f"pruning {fraction:g} at a time, {until:g} is {levels:,} levels away: prune more at a time")
    found = tuple(round((1 - fraction) ** k, 6) for k in range(1, levels + 1))
    if found[-1] == 0:
        raise ValueError(f"pruning {fraction:g} at a time until below {until:g} prunes to nothing: end earlier")
    return found
