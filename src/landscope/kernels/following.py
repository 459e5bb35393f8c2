"""Which parameters' gradients can be had from what goes into their layers and what comes back, and getting these."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from landscope.curvature import Space
from landscope.kernels.factors import FACTORS, Factor, can_follow, contracted
from landscope.losses.trying import tried_network
from landscope.models import called

Record = dict[nn.Module, list[tuple[Tensor, Tensor]]]
Factors = Callable[[], Sequence[Factor]]
_LOOKS = {"dtype", "device", "shape", "ndim", "requires_grad", "is_cuda", "is_meta", "is_sparse", "layout", "names"}
ROOM = 2**20  # numbers of an intermediate result in the check
PROBE = 3  # samples of the trial pass: not 1, so that a layer without a dimension for samples is seen


@dataclass(frozen=True, eq=False)
class Followed:
    """How a network's parameters are followed.

    Args:
        model: The network.
        layers: The wanted parameters of each layer that is followed, by the layer's own names for them.
        rest: Names of all other wanted parameters, whose Jacobian is needed.
        rest_size: How many numbers these are.
        outputs: Outputs of the network for a sample.
        numbers: Numbers held for a sample: what goes into the layers and what comes back, for every output.
    """

    model: nn.Module
    layers: Mapping[nn.Module, frozenset[str]]
    rest: tuple[str, ...]
    rest_size: int
    outputs: int
    numbers: int


class _Watch(TorchFunctionMode):
    """Notes parameters that any function is given while their own layer does not run."""

    def __init__(self, owners: Mapping[int, nn.Module]) -> None:
        super().__init__()
        self.owners, self.running, self.elsewhere = owners, list[nn.Module](), set[int]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        looked_at = func.__name__ == "__get__" and getattr(func.__self__, "__name__", "") in _LOOKS
        for part in () if looked_at else _parts((args, kwargs or {})):
            owner = self.owners.get(id(part))
            if owner is not None and owner not in self.running:
                self.elsewhere.add(id(part))
        return func(*args, **(kwargs or {}))


def _parts(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    inside = tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, (tuple, list)) else ()
    for part in inside:
        yield from _parts(part)


def follow(space: Space, inputs: Tensor) -> Followed:
    """Decide, with a trial pass over a few samples, which parameters can be followed.

    A layer is followed if it is one of the kinds known, its parameters are its own and used nowhere else, and its
    inputs have the samples first. What is followed is then checked: a random combination of the outputs' gradients
    must have the length that the factors give it.
    """
    model, few = space.model, inputs[torch.arange(PROBE, device=inputs.device) % len(inputs)]
    wanted = {id(p): name for name, p in zip(space.names, space.parameters(), strict=True)}
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in dict.fromkeys(model.modules()):
        for name, p in module.named_parameters(recurse=False):
            places.setdefault(id(p), []).append((module, name))
    owners = {i: found[0][0] for i, found in places.items() if len(found) == 1 and can_follow(found[0][0])}
    watch = _Watch(owners)
    with watch, torch.enable_grad(), _recording(set(owners.values()), watch.running) as record:
        outputs = tried_network(partial(model, few), inputs, space.dtype)
    check_outputs(outputs, len(few))
    clean = {m for m, uses in record.items() if all(x.dim() and len(x) == len(e) == len(few) for x, e in uses)}
    layers: dict[nn.Module, set[str]] = {}
    for i in wanted:
        if i in owners and i not in watch.elsewhere and owners[i] in clean:
            layers.setdefault(owners[i], set()).add(places[i][0][1])
    chosen = {m: frozenset(names) for m, names in layers.items()}
    columns = outputs[0].numel()
    numbers = sum(x[0].numel() + (columns + 1) * e[0].numel() for m in chosen for x, e in record[m])
    if chosen and not _agree(model, chosen, few, columns):
        chosen, numbers = {}, 0
    held = {id(p) for m, names in chosen.items() for n, p in m.named_parameters(recurse=False) if n in names}
    rest = [(name, p.numel()) for name, p in zip(space.names, space.parameters(), strict=True) if id(p) not in held]
    return Followed(model, chosen, tuple(n for n, _ in rest), sum(k for _, k in rest), columns, numbers)


def check_outputs(outputs: Any, n: int) -> None:
    """Refuse outputs that are not one row a sample.

    Raises:
        TypeError: for anything but a tensor of floating-point numbers.
        ValueError: where their first dimension is not the samples'.
    """
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
        kind = f"{outputs.dtype}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise TypeError(f"a tangent kernel is of a model that returns a tensor of real numbers, not {kind}")
    if not outputs.dim() or len(outputs) != n:
        raise ValueError(
            f"the model gave outputs of shape {tuple(outputs.shape)} for {n} inputs: one row each is needed"
        )


@contextmanager
def _recording(layers: set[nn.Module], running: list[nn.Module] | None = None) -> Iterator[Record]:
    """While it runs, every use of a layer is noted: its input, and zeros added to its output that have a gradient."""
    record: Record = {}
    started, ended = partial(_started, running), partial(_ended, record, running)
    handles = [m.register_forward_pre_hook(started) for m in layers]
    handles += [m.register_forward_hook(ended, with_kwargs=True) for m in layers]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


def _started(running: list[nn.Module] | None, module: nn.Module, args: Any) -> None:
    if running is not None:
        running.append(module)


def _ended(
    record: Record, running: list[nn.Module] | None, module: nn.Module, args: Any, kwargs: Any, output: Tensor
) -> Tensor:
    if running is not None:
        running.pop()
    given = args[0] if args else kwargs["input"]
    zeros = output.new_zeros(()).expand(output.shape).requires_grad_()
    record.setdefault(module, []).append((given.detach(), zeros))
    return output + zeros


def factors_of(
    model: nn.Module, layers: Mapping[nn.Module, frozenset[str]], inputs: Tensor, along: Tensor | None = None
) -> Mapping[nn.Module, Factors]:
    """Each layer's factors for a batch, to be made when they are wanted: the patches of convolutions take room.

    Args:
        model: The network.
        layers: Which layers, and which of their parameters.
        inputs: The batch.
        along: Directions in output space ``[k, n, outputs]`` in the place of every output.
    """
    if not layers:
        return {}
    with torch.enable_grad(), _recording(set(layers)) as record:
        outputs = model(inputs)
        columns = outputs.reshape(len(inputs), -1)
        found_uses = {m: list(uses) for m, uses in record.items()}  # checkpointing calls layers again on the way back
        zeros = [e for uses in found_uses.values() for _, e in uses]
        back: list[list[Tensor]] = [[] for _ in zeros]
        directions = along if along is not None else torch.eye(columns.shape[1]).to(columns)[:, None]
        for i, direction in enumerate(directions):
            kept = i < len(directions) - 1
            scalar = (columns * direction).sum()
            found = torch.autograd.grad(scalar, zeros, retain_graph=kept, allow_unused=True)
            for of_layer, g, e in zip(back, found, zeros, strict=True):
                of_layer.append(torch.zeros_like(e).contiguous() if g is None else g)
    stacked = iter(back)
    held = {m: [(x, torch.stack(next(stacked), 1)) for x, _ in uses] for m, uses in found_uses.items()}
    return {m: partial(FACTORS[type(m)], m, uses, layers[m]) for m, uses in held.items()}


def _agree(model: nn.Module, layers: Mapping[nn.Module, frozenset[str]], few: Tensor, outputs: int) -> bool:
    """Whether the factors give a random combination of the first sample's outputs a gradient of the right length."""
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(outputs, generator=generator)
    along = torch.zeros(1, len(few), outputs)
    along[0, 0] = draw
    first = few[:1]
    names = [f"{where}.{n}".lstrip(".") for where, m in model.named_modules() for n in layers.get(m, ())]
    weights = {n: model.get_parameter(n).detach().requires_grad_() for n in names}
    with torch.enable_grad():
        outputs_there = called(model, weights, first).reshape(1, -1)
        scalar = (outputs_there * draw.to(outputs_there)).sum()
        found = torch.autograd.grad(scalar, list(weights.values()), allow_unused=True)
    expected = sum(float(g.double().square().sum()) for g in found if g is not None)
    dtype = outputs_there.dtype
    parts = factors_of(model, layers, few, along.to(outputs_there))
    got = sum(float(contracted(f, f, True, ROOM)[0, 0]) for make in parts.values() for f in make())
    return abs(got - expected) <= 1e4 * torch.finfo(dtype).eps * abs(expected)
