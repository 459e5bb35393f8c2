"""The neural tangent kernel of a network as it is, by inner products of layers' factors instead of Jacobians."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import jacrev, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscope.curvature import space_of
from landscope.curvature.memory import budget
from landscope.curvature.space import Selection
from landscope.kernels.factors import contracted
from landscope.kernels.following import Factors, Followed, factors_of, follow
from landscope.models import called
from landscope.models.contexts import plainly


def ntk(
    model: nn.Module,
    x1: Shaped[Tensor, " n1 *shape"],
    x2: Shaped[Tensor, " n2 *shape"] | None = None,
    /,
    *,
    trace_outputs: bool = True,
    params: Selection | Iterable[Selection] | None = None,
    memory: int | None = None,
) -> Float[Tensor, " n1 n2 *outputs"]:
    """The empirical neural tangent kernel: inner products of gradients of the network's outputs.

        Θ_ab(x, x') = ⟨∇_θ f_a(x), ∇_θ f_b(x')⟩,

    summed over all chosen parameters, in eval mode. Nothing is averaged or divided by anything.

    **Shapes.** For O outputs the whole kernel is ``[n1, n2, O, O]`` (``trace_outputs=False``), its element
    ``[i, j, a, b]`` the one above with x the i-th of x1 and x' the j-th of x2. By default it is ``[n1, n2]``, the *sum*
    over outputs Σ_a Θ_aa, which is O times their mean: for a wide network compare it, divided by O, with
    `infinite_ntk`, which is of one output. As a matrix for all outputs of all samples together:
    ``kernel.transpose(1, 2).reshape(n1 * O, n2 * O)``. Outputs of more than one dimension count as one flat row.

    **How.** The gradient of a linear layer's weight is δ hᵀ, of what goes in and what comes back, so that

        Θ_ab(x, x') = Σ_l ⟨h_l(x), h_l(x')⟩ ⟨δ_la(x), δ_lb(x')⟩ (+ δ·δ' for biases):

    no gradient is ever made. For layers at T positions (convolutions, sequences) it is a sum over T² pairs of them, or
    of whole gradients a few rows at a time, whichever is less work. So it is done for Linear, ScaledLinear, Conv1d to
    Conv3d, Embedding, BatchNorm, LayerNorm, GroupNorm and RMSNorm, used once or several times. All other parameters
    (tied ones, those of other modules, those used outside of their module) get their Jacobian, in blocks of samples
    that fit the memory. What is followed is checked against a plain gradient first.

    Args:
        model: The network; afterwards it is as it was. Each output must depend on its own sample alone.
        x1: Inputs, on the network's device.
        x2: Others; None means the same, and costs half.
        trace_outputs: Whether to sum over outputs.
        params: As in `landscope.hessian`: None for all that are trained, or names, globs, modules, parameters.
        memory: Bytes to work in beside the result and the network; None takes a quarter of what there is.

    Raises:
        ValueError: for no inputs; for BatchNorm without running statistics, whose outputs depend on other samples;
            where the outputs are not one row a sample; where one sample needs more than the memory: it says how much.
        TypeError: where the model does not return a tensor of real numbers.

    Cost: for each block of samples a forward and O backward passes, and about 2 n1 n2 O² (or O with the trace) Σ widths
    operations for linear layers. Memory: samples × outputs × Σ widths numbers, or less in several blocks.

    Sources: Jacot, Gabriel and Hongler, "Neural tangent kernel", 2018, section 4; the factors as in Novak,
    Sohl-Dickstein and Schoenholz, "Fast finite width neural tangent kernel", 2022, section 3.

    >>> net = nn.Linear(2, 3, bias=False)
    >>> x = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    >>> ntk(net, x).tolist()  # 3 x·x'
    [[15.0, 9.0], [9.0, 27.0]]
    >>> ntk(net, x, trace_outputs=False).shape
    torch.Size([2, 2, 3, 3])
    """
    _refuse_batch_statistics(model)
    space = space_of(model, params)
    with plainly(model):
        x1, x2 = _inputs(x1), None if x2 is None else _inputs(x2)
        if x2 is not None and x2.shape[1:] != x1.shape[1:]:
            raise ValueError(f"x1 and x2 are inputs of one kind, not of shape {list(x1.shape)} and {list(x2.shape)}")
        followed = follow(space, x1)
        room = budget(memory, space.device) // space.dtype.itemsize
        size = _block(followed, room, space.dtype.itemsize)
        work = _Work(followed, trace_outputs, room // 4)
        return _filled(work, x1, x2, size)


def _inputs(x: Tensor) -> Tensor:
    """Inputs, one at the least."""
    if not isinstance(x, Tensor):
        raise TypeError(f"the inputs of a kernel are a tensor of samples, not a {type(x).__name__}")
    if not x.dim() or not len(x):
        raise ValueError(f"a kernel needs at least one input on each side, and these are of shape {list(x.shape)}")
    return x.clone() if x.is_inference() else x  # autograd cannot save it


@dataclass(frozen=True, eq=False)
class _Side:
    """What is held of one block of samples."""

    layers: Sequence[Factors]
    jacobian: Tensor | None


@dataclass(frozen=True, eq=False)
class _Work:
    """How blocks are made and put together."""

    followed: Followed
    trace: bool
    room: int

    def side(self, inputs: Tensor) -> _Side:
        """What is needed of a block."""
        of = self.followed
        made = factors_of(of.model, of.layers, inputs)
        return _Side([made[m] for m in of.layers], jacobian(of.model, of.rest, inputs) if of.rest else None)

    def products(self, a: _Side, b: _Side) -> Tensor:
        """The kernel of two blocks."""
        parts = self._parts(a, b)
        total = next(parts)
        for part in parts:
            total += part
        return total

    def _parts(self, a: _Side, b: _Side) -> Iterator[Tensor]:
        for left, right in zip(a.layers, b.layers, strict=True):
            lefts = left()
            for f, g in zip(lefts, lefts if left is right else right(), strict=True):
                yield contracted(f, g, self.trace, self.room).clone()
        if a.jacobian is not None and b.jacobian is not None:
            (n1, o, _), n2 = a.jacobian.shape, len(b.jacobian)
            if self.trace:
                yield a.jacobian.flatten(1) @ b.jacobian.flatten(1).T
            else:
                whole = a.jacobian.flatten(0, 1) @ b.jacobian.flatten(0, 1).T
                yield whole.reshape(n1, o, n2, o).transpose(1, 2).contiguous()


def _block(followed: Followed, room: int, width: int) -> int:
    """How many samples a block has: two of them are held, with as much again for the passes through the network."""
    each = 4 * (followed.numbers + followed.outputs * followed.rest_size)
    if each > room:
        jacobians = followed.outputs * followed.rest_size
        what = f", {jacobians:,} numbers of it the Jacobian of {', '.join(followed.rest)}" if followed.rest else ""
        needed, given = (
            f"{b:,.0f} bytes" if b < 2**20 else f"{b / 2**20:,.1f} MiB" for b in (each * width, room * width)
        )
        raise ValueError(
            f"the kernel needs about {needed} a sample{what}, and may use {given}: "
            "allow more (memory=, in bytes) or choose fewer parameters (params=)"
        )
    return room // max(each, 1)


def _filled(work: _Work, x1: Tensor, x2: Tensor | None, size: int) -> Tensor:
    others = x1 if x2 is None else x2
    n1, n2 = len(x1), len(others)
    size = min(size, max(n1, n2))
    kept = work.side(others) if size >= n2 else None
    result: Tensor | None = None
    for i in range(0, n1, size):
        alike = x2 is None and kept is not None and n1 == n2
        left = kept if alike and kept is not None else work.side(x1[i : i + size])
        for j in range(i if x2 is None else 0, n2, size):
            same = x2 is None and i == j
            right = left if same else kept if kept is not None else work.side(others[j : j + size])
            part = work.products(left, right)
            if result is None:
                result = part.new_empty(n1, n2, *part.shape[2:])
            result[i : i + size, j : j + size] = part
            if x2 is None and i != j:
                result[j : j + size, i : i + size] = part.transpose(0, 1) if work.trace else part.transpose(0, 1).mT
    if result is None:
        raise ValueError("there are no blocks of samples")
    return result


def jacobian(model: nn.Module, names: Sequence[str], inputs: Tensor) -> Float[Tensor, " n outputs size"]:
    """The derivatives of every output by the parameters named, in one flat row each."""
    weights = {name: model.get_parameter(name).detach() for name in names}
    of_one = partial(_of_one, model)
    try:
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")  # what is not vmapped is looped over
            found = vmap(jacrev(of_one), (None, 0))(weights, inputs)
        return torch.cat([found[name].flatten(2) for name in names], 2)
    except (RuntimeError, NotImplementedError):  # not everything can be vmapped, such as recurrent layers
        return torch.stack([_rows(of_one, weights, x) for x in inputs])


def _of_one(model: nn.Module, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    return called(model, weights, x[None]).reshape(-1)


def _rows(of_one: Callable[..., Tensor], weights: dict[str, Tensor], x: Tensor) -> Tensor:
    with torch.enable_grad():
        weights = {name: w.clone().requires_grad_() for name, w in weights.items()}
        outputs, parts = of_one(weights, x), tuple(weights.values())
        rows = []
        for output in outputs:
            found = torch.autograd.grad(output, parts, retain_graph=True, allow_unused=True)
            whole = (torch.zeros_like(w) if g is None else g for g, w in zip(found, parts, strict=True))
            rows.append(torch.cat([g.reshape(-1) for g in whole]))
    return torch.stack(rows).detach()


def _refuse_batch_statistics(model: nn.Module) -> None:
    for name, m in model.named_modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is None:
            raise ValueError(
                f"{name or 'the model'} is a {type(m).__name__} without running statistics: its outputs depend on the "
                "other samples of the batch, and a kernel of two samples is not defined"
            )
