"""Linear and convolutional layers whose derivatives of any order are passes of the same layer.

A layer z = h·W is one trilinear form ⟨δ, h·W⟩: its derivatives are h·W, δ·W (back to the inputs) and δ·h (to the
weight), and the derivatives of these three are the same three again. Autograd's own second derivative of a convolution
is built otherwise, and takes several times as long.

A watched weight also has two places, ω and β, of few rows and zero: the layer acts as with W + Sᵀω + Aᵀβ. The gradients
of ω and β are so S and A times the gradient of W, at the price of few rows.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from landscope.regularizers.folds import Part
from landscope.regularizers.normalising import written_out

CONVOLUTIONS: tuple[Callable[..., Tensor], ...] = (torch.conv1d, torch.conv2d, torch.conv3d)


class Linear:
    """Products with a matrix, over the last dimension."""

    def forward(self, h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """h·W + b."""
        return functional.linear(h, weight, bias)

    def back(self, delta: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        """δ·W, of the inputs' shape."""
        return delta @ weight

    def outer(self, delta: Tensor, h: Tensor, shape: torch.Size) -> Tensor:
        """δ·h, of the weight's shape."""
        return delta.flatten(0, -2).T @ h.flatten(0, -2)

    def total(self, delta: Tensor) -> Tensor:
        """The gradient of the bias."""
        return delta.flatten(0, -2).sum(0)

    def fold(self, delta: Tensor, onto: Tensor) -> Tensor:
        """δ of few outputs."""
        return delta @ onto.T


class Convolution:
    """Convolutions with given strides, paddings and dilations, in groups."""

    def __init__(self, stride: list[int], padding: list[int], dilation: list[int], groups: int) -> None:
        self.settings: tuple[Any, ...] = (stride, padding, dilation, False, [0] * len(stride), groups)

    def forward(self, h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """h·W + b."""
        return torch.convolution(h, weight, bias, *self.settings)

    def back(self, delta: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        """δ·W, of the inputs' shape."""
        like, mask = delta.new_empty(shape), [True, False, False]
        return torch.ops.aten.convolution_backward(delta, like, weight, None, *self.settings, mask)[0]

    def outer(self, delta: Tensor, h: Tensor, shape: torch.Size) -> Tensor:
        """δ·h, of the weight's shape."""
        like, mask = delta.new_empty(shape), [False, True, False]
        return torch.ops.aten.convolution_backward(delta, h, like, None, *self.settings, mask)[1]

    def total(self, delta: Tensor) -> Tensor:
        """The gradient of the bias."""
        return delta.flatten(2).sum((0, 2))

    def fold(self, delta: Tensor, onto: Tensor) -> Tensor:
        """δ of few outputs."""
        return (onto @ delta.flatten(2)).view(len(delta), len(onto), *delta.shape[2:])


class Weight:
    """A weight that is watched.

    Args:
        watch: Says which gradients are wanted.
        like: The weight; None for one that is not folded, whose own gradient is wanted always.
        part: The present probe's part.
    """

    def __init__(self, watch: "Watch | None", like: Tensor | None, part: Part | None) -> None:
        self.watch: Watch | None = watch
        self.part: Part | None = part
        rows = None if like is None or part is None else torch.zeros_like(part.rows)
        self.omega: Tensor | None = None if rows is None else rows.requires_grad_()
        self.beta: Tensor | None = None if rows is None else torch.zeros_like(rows).requires_grad_()

    def wants(self, what: str) -> bool:
        """Whether the gradient of ``weight``, ``omega`` or ``beta`` is wanted."""
        if self.watch is None:
            return what == "weight"
        return self.watch.wanted == what


Form = Linear | Convolution
_FREE = Weight(None, None, None)


class _Product(Function):
    """h·(W + Sᵀω + Aᵀβ) + b at ω = β = 0."""

    @staticmethod
    def forward(
        ctx: Any,
        form: Form,
        of: Weight,
        h: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        omega: Tensor | None,
        beta: Tensor | None,
    ) -> Tensor:
        ctx.form, ctx.of = form, of
        ctx.save_for_backward(h, weight, omega)
        return form.forward(h, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (delta,), (h, weight, omega) = grad_outputs, ctx.saved_tensors
        form, of, needed = ctx.form, ctx.of, ctx.needs_input_grad[2:]
        back = _Back.apply(form, of, delta, weight, omega, h.shape) if needed[0] else None
        own = _Outer.apply(form, delta, h, weight.shape) if needed[1] and of.wants("weight") else None
        bias = form.total(delta) if needed[2] else None
        onto = into = None
        if omega is not None and of.wants("omega"):
            onto = _Outer.apply(form, form.fold(delta, of.part.onto), h, omega.shape)
        if omega is not None and of.wants("beta"):
            into = _Outer.apply(form, form.fold(delta, of.part.into), h, omega.shape)
        return None, None, back, own, bias, onto, into


class _Back(Function):
    """δ·(W + Sᵀω) at ω = 0."""

    @staticmethod
    def forward(
        ctx: Any, form: Form, of: Weight, delta: Tensor, weight: Tensor, omega: Tensor | None, shape: torch.Size
    ) -> Tensor:
        ctx.form, ctx.of = form, of
        ctx.save_for_backward(delta, weight, omega)
        return form.back(delta, weight, shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (g,), (delta, weight, omega) = grad_outputs, ctx.saved_tensors
        form, of, needed = ctx.form, ctx.of, ctx.needs_input_grad[2:]
        along = _Product.apply(form, of, g, weight, None, None, None) if needed[0] else None
        own = _Outer.apply(form, delta, g, weight.shape) if needed[1] and of.wants("weight") else None
        onto = None
        if omega is not None and of.wants("omega"):
            onto = _Outer.apply(form, form.fold(delta, of.part.onto), g, omega.shape)
        return None, None, along, own, onto, None


class _Outer(Function):
    """δ·h."""

    @staticmethod
    def forward(ctx: Any, form: Form, delta: Tensor, h: Tensor, shape: torch.Size) -> Tensor:
        ctx.form = form
        ctx.save_for_backward(delta, h)
        return form.outer(delta, h, shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (g,), (delta, h), needed = grad_outputs, ctx.saved_tensors, ctx.needs_input_grad[1:]
        along = _Product.apply(ctx.form, _FREE, h, g, None, None, None) if needed[0] else None
        back = _Back.apply(ctx.form, _FREE, delta, g, None, h.shape) if needed[1] else None
        return None, along, back, None


class Watch(TorchFunctionMode):
    """While it is entered, linear and convolutional layers are computed by these functions.

    Args:
        weights: The chosen parameters by name.
        parts: The first probe's parts.
    """

    def __init__(self, weights: Mapping[str, Tensor], parts: Mapping[str, Part]) -> None:
        super().__init__()
        self.wanted: str = "beta"
        self.leaves: dict[str, Tensor] = dict(weights)
        self._names: dict[int, str] = {id(w): n for n, w in weights.items() if parts[n].into is not None}
        self._folded: dict[str, Weight] = {n: Weight(self, weights[n], parts[n]) for n in self._names.values()}
        self._seen: set[str] = set()
        self._strange: bool = False

    @property
    def complete(self) -> bool:
        """Whether each folded weight was met, and in layers alone."""
        return not self._strange and self._seen >= set(self._folded)

    def probe(self, parts: Mapping[str, Part]) -> None:
        """The next probe's parts."""
        for name, weight in self._folded.items():
            weight.part = parts[name]

    def leaves_of(self, what: str) -> tuple[Tensor, ...]:
        """The tensors whose gradients stand for the parameters': ``omega`` or ``beta`` where they are folded."""
        return tuple(getattr(self._folded[n], what) if n in self._folded else w for n, w in self.leaves.items())

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The layer's product, or the function itself."""
        given = _layer(func, args, kwargs or {})
        if given is not None:
            form, h, weight, bias = given
            name = self._names.get(id(weight))
            of = _FREE if name is None else self._folded[name]
            self._seen |= {name} if name is not None else set()
            return _Product.apply(form, of, h, weight, bias, of.omega, of.beta)
        read = getattr(func, "__name__", "") == "__get__"  # a shape, a device
        if not read and any(id(a) in self._names for a in (*args, *(kwargs or {}).values())):
            self._strange = True
        return written_out(func)(*args, **(kwargs or {}))


def _layer(func: Any, args: Any, kwargs: Any) -> tuple[Form, Tensor, Tensor, Tensor | None] | None:
    """The form of a layer's call with its inputs, weight and bias; None if it is something else."""
    if func is functional.linear and len(args) + len(kwargs.keys() & {"bias"}) == 3 and args[0].dim() > 1:
        return Linear(), args[0], args[1], args[2] if len(args) > 2 else kwargs["bias"]
    if func in CONVOLUTIONS and len(args) == 7 and not kwargs and args[0].dim() == args[1].dim():
        h, weight, bias, stride, padding, dilation, groups = args
        if not isinstance(padding, str):
            return Convolution(list(stride), list(padding), list(dilation), groups), h, weight, bias
    return None
