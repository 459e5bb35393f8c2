"""Batches as products read them: small ones joined, and what was made of them kept while nothing has changed."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import CellType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from landscope.curvature.batches import tensors, version_of

SPREAD = 509  # elements that are compared; a prime, so that they do not fall on one column

TRIED_BYTES = 2**26  # of graph: of a larger batch a part is tried, as what is slow may also take several times as much
SMALL = 32  # samples of a batch that is not worth taking a part of


@dataclass
class Kept:
    """What was made of groups of batches, for as long as weights, buffers, settings and batches are the same.

    Args:
        state: Copies of the network's parameters and buffers then. Versions alone would not do: what writes through
            ``.data`` leaves no trace in them.
        settings: What else the network and the loss compute with (`settings_of`).
        made: For each group its batches, their tensors' versions, copies of elements where memory is another library's,
            and what was made of them.
    """

    state: tuple[Tensor, ...] = ()
    settings: Any = None
    made: dict[Any, tuple[list[Any], list[int], list[Tensor], Any]] = field(default_factory=dict)

    def refresh(self, model: nn.Module, losses: Sequence[object]) -> None:
        """Forget everything if the network or a function that makes its loss has changed."""
        if not self.made:
            return
        now = (*model.parameters(), *model.buffers())
        same = len(now) == len(self.state) and all(map(_same, now, self.state))
        if not (same and _same(settings_of(model, losses), self.settings)):
            self.state, self.settings, self.made = (), None, {}

    def find(self, key: Any, group: list[Any]) -> Any:
        """What was made of these batches, or None."""
        if key not in self.made:
            return None
        before, versions, copies, made = self.made[key]
        if _versions(before) != versions or not all(map(torch.equal, _foreign(before), copies)):
            return None
        return made if len(before) == len(group) and all(map(_same, before, group)) else None

    def keep(self, key: Any, group: list[Any], made: Any, model: nn.Module) -> None:
        """Hold what was made of these batches with the network as it is."""
        if not self.made:
            self.state = tuple(t.detach().clone() for t in (*model.parameters(), *model.buffers()))
        self.made[key] = group, _versions(group), [t.clone() for t in _foreign(group)], made

    def settle(self, model: nn.Module, losses: Sequence[object]) -> None:
        """Note the settings after a pass: what forward passes write on their modules is no change of them."""
        self.settings = settings_of(model, losses, copies=True)


def settings_of(model: nn.Module, losses: Sequence[object], *, copies: bool = False) -> Any:
    """The plain attributes of a network's modules and of losses, and what functions close over.

    Numbers, strings, tensors and sequences and mappings of these are compared by what they are, all else by identity.

    Args:
        model: The network.
        losses: Modules, functions (also with settings bound by functools.partial) or objects.
        copies: Whether tensors are copied, so that writing on them is seen.
    """
    own = [_attributes(module, copies) for module in model.modules()]
    return own, [_settings_of_loss(loss, copies) for loss in losses]


def _settings_of_loss(loss: object, copies: bool) -> Any:
    if isinstance(loss, nn.Module):
        own = [_plain(t, copies) for t in (*loss.parameters(), *loss.buffers())]
        return [_attributes(module, copies) for module in loss.modules()], own
    if isinstance(loss, functools.partial):
        bound = _plain([*loss.args, *loss.keywords.items()], copies)
        return bound, _settings_of_loss(loss.func, copies)
    if isinstance(loss, MethodType):
        return _settings_of_loss(loss.__self__, copies)
    cells = [cell.cell_contents for cell in getattr(loss, "__closure__", None) or () if _is_filled(cell)]
    rest = getattr(loss, "__defaults__", None), getattr(loss, "__kwdefaults__", None)
    return _plain([*cells, *rest, dict(getattr(loss, "__dict__", {}))], copies)


def _is_filled(cell: CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # a variable that was not set yet
        return False


OF_MODULES = frozenset(vars(nn.Module()))  # parameters, hooks and the like; the mode is as measuring sets it


def _attributes(module: nn.Module, copies: bool) -> dict[str, Any]:
    return {name: _plain(value, copies) for name, value in vars(module).items() if name not in OF_MODULES}


def _plain(value: Any, copies: bool, depth: int = 3) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone() if copies else value
    if depth and type(value) in (dict, list, tuple):
        items = value.items() if type(value) is dict else enumerate(value)
        return {name: _plain(part, copies, depth - 1) for name, part in items}
    return value


def groups(data: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """The batches, ``size`` at a time."""
    group: list[Any] = []
    for batch in data:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def joined(group: list[Any]) -> list[Any]:
    """One batch of several pairs of tensors that fit together; else the batches as they are."""
    if len(group) == 1 or not all(_is_pair(batch) for batch in group):
        return group
    shapes = {tuple(part.shape[1:] for part in batch) for batch in group}
    if len(shapes) > 1:
        return group
    return [tuple(_in_a_row(parts) for parts in zip(*group, strict=True))]


def first_part(batch: Any) -> tuple[Any, float]:
    """A quarter of the samples of a pair of tensors, views of it, and how many times as many the whole has."""
    if not _is_pair(batch) or any(len(part) != len(batch[-1]) for part in batch) or len(batch[-1]) < SMALL:
        return batch, 1.0
    size = len(batch[-1]) // 4
    return tuple(part[:size] for part in batch), len(batch[-1]) / size


def _in_a_row(parts: tuple[Tensor, ...]) -> Tensor:
    """The tensors one after the other; without a copy where they are slices of one tensor that follow each other."""
    first, place = parts[0], parts[0].storage_offset()
    storage = first.untyped_storage().data_ptr()
    for part in parts:
        if not part.is_contiguous() or part.untyped_storage().data_ptr() != storage or part.storage_offset() != place:
            return torch.cat(parts)
        place += part.numel()
    shape = (sum(len(part) for part in parts), *first.shape[1:])
    return first.as_strided(shape, first.stride()) if first.numel() else torch.cat(parts)


def saved_bytes(make: Callable[[], Any], known: Iterable[Tensor]) -> int | None:
    """Bytes of the tensors that autograd saves while ``make`` runs, those known before left out.

    None where they cannot be seen: transforms of torch.func inside do not allow it, or there is no such graph.
    """
    apart = {t.untyped_storage().data_ptr() for t in known}
    found: dict[int, int] = {}

    def seen(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in apart:
            found[storage.data_ptr()] = storage.nbytes()
        return t

    try:
        with torch.autograd.graph.saved_tensors_hooks(seen, lambda t: t):
            make()
    except RuntimeError as error:
        if not any(reason in str(error) for reason in ("saved tensor hooks", "once_differentiable")):
            raise
        return None
    return sum(found.values())


def _foreign(group: Any) -> list[Tensor]:
    """Elements spread over tensors whose memory is NumPy's or another library's.

    What is written there is unseen by autograd's counts, and to compare all of it took a tenth of a product.
    """
    known = [t for t in tensors(group) if t.device.type == "cpu" and not t.untyped_storage().resizable()]
    return [t.view(-1)[:: max(1, t.numel() // SPREAD)] if t.is_contiguous() else t for t in known]


def _versions(batch: Any) -> list[int]:
    return [version_of(t) for t in tensors(batch)]


def _is_pair(batch: Any) -> bool:
    return isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device):
            return False
        return (a.data_ptr() == b.data_ptr() and a.stride() == b.stride()) or torch.equal(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[name], b[name]) for name in a)
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(map(_same, a, b))
    return a is b or (type(a) in (int, float, str, bool, type(None)) and type(a) is type(b) and a == b)
