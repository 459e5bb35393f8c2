"""Proximal backpropagation: implicit instead of explicit gradient steps on the weights of hidden layers."""

from collections.abc import Callable
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from landscope.optimizers.checking import check_members, check_not_negative, is_count
from landscope.optimizers.named import parameters_given
from landscope.optimizers.watching import Watch
from landscope.optimizers.wrapping import Wrapping

Layer = nn.Linear | nn.Conv1d | nn.Conv2d


def proximal_direction(
    rows: Float[Tensor, "*g n d"], gradients: Float[Tensor, "*g o d"], *, tau: float
) -> Float[Tensor, "*g o d"]:
    """D = G·(AᵀA + I/τ)⁻¹: by how much an implicit step of size τ changes a layer's weights.

    W − D minimises ½‖A·Wᵀ − (Z − δ)‖² + ‖W − W_now‖²/(2τ), where Z = A·W_nowᵀ are the layer's outputs and δ the loss's
    gradient at them, so that G = δᵀA is the ordinary gradient (Frerix et al. 2018, section 3). For τ → 0 it is τ·G.

    Args:
        rows: A: what the layer's outputs are linear in, a row for each sample (and place, in a convolution).
        gradients: G, a row for each output.
        tau: The step size τ.

    Cost: a Cholesky factor of a d×d matrix.

    >>> proximal_direction(torch.tensor([[2.0]]), torch.tensor([[5.0]]), tau=1.0)
    tensor([[1.]])
    """
    gram = rows.mT @ rows
    gram.diagonal(dim1=-2, dim2=-1).add_(1 / tau)
    return torch.cholesky_solve(gradients.mT, torch.linalg.cholesky(gram)).mT


def proximal_direction_cg(
    rows: Float[Tensor, "*g n d"], gradients: Float[Tensor, "*g o d"], *, tau: float, iterations: int, together: bool
) -> Float[Tensor, "*g o d"]:
    """`proximal_direction` by conjugate gradients from D = 0, that is from the weights as they are.

    Args:
        rows: A.
        gradients: G.
        tau: The step size τ.
        iterations: How many; d of them are exact but for rounding.
        together: One step length for all outputs (one system of all weights), instead of one for each.

    Cost: two products with A an iteration.
    """
    axes = tuple(range(gradients.dim())) if together else (-1,)
    found, residual = torch.zeros_like(gradients), gradients
    towards, length = residual, residual.square().sum(axes, keepdim=True)
    for _ in range(iterations):
        image = (towards @ rows.mT) @ rows + towards / tau
        curvature = (towards * image).sum(axes, keepdim=True)
        step = torch.where(curvature > 0, length / curvature, 0)  # nothing is left to do where it is 0
        found, residual = found + step * towards, residual - step * image
        shorter = residual.square().sum(axes, keepdim=True)
        towards = residual + torch.where(length > 0, shorter / length, 0) * towards
        length = shorter
    return found


@final
class ProxProp(Wrapping):
    """Proximal backpropagation (Frerix, Möllenhoff, Moeller & Cremers 2018), by PyTorch's backward pass.

    A layer's gradient G is replaced by the change of an implicit step, D = G·(AᵀA + I/τ)⁻¹ with A its inputs of this
    batch (a column of ones for the bias; patches for a convolution), and a base optimizer takes D for a gradient. D
    depends on the loss's scale: as in the authors' code the gradient is that of the mean over the batch, and A has a
    row for each sample. The last layer and all that is neither linear nor a 1-D or 2-D convolution takes explicit
    steps. One gradient a step (``optimizer.gradients`` counts them), and the solution of one system a layer.

    A layer's inputs are recorded when a backward pass reaches it, from one step (or `zero_grad`) to the next: several
    batches add up, as their gradients do.

    Args:
        model: The network itself, not its parameters.
        base: The optimizer that makes the step, by name (`NAMES`) or as a class of PyTorch's.
        tau: The step size τ of implicit steps.
        iterations: Conjugate gradient iterations; None: solve exactly (a d×d matrix for d inputs of a unit).
        layers: The names of the layers with implicit steps; None: all linear and convolutional ones but the last.
        params: Some of the model's parameters, or groups of them (a layer has the ``tau`` and ``iterations`` of the
            group that its weights are in, and an explicit step if they are in none); None: all that are trained.
        settings: The base optimizer's: ``lr``, …

    Raises:
        TypeError: for something that is no module.
        ValueError: for tau <= 0, iterations < 1, no layer to step on or one that cannot be (naming it), no
            parameters or others than the model's. At a step: where a layer has a gradient that no backward
            pass brought.
    """

    _model: nn.Module
    _inputs: dict[nn.Module, list[Tensor]]

    def __init__(
        self,
        model: nn.Module,
        /,
        *,
        base: str | type[torch.optim.Optimizer] = "adam",
        tau: float = 1.0,
        iterations: int | None = 10,
        layers: tuple[str, ...] | None = None,
        params: Any = None,
        **settings: Any,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"ProxProp needs the model itself, to see its layers' inputs, not {type(model).__name__}")
        self._model = model
        given = [w for w in model.parameters() if w.requires_grad] if params is None else params
        super().__init__(parameters_given(given), base, {"tau": tau, "iterations": iterations}, settings)
        self._inputs = {layer: [] for layer in _layers(model, layers)}
        self._watch()

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_model": self._model, "_inputs": self._inputs}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_inputs" in state:  # load_state_dict comes here too
            self._watch()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; the closure, where given, is called once and what it gives is returned."""
        loss = None
        if closure is not None:
            self._forget()
            with torch.enable_grad():
                loss = closure()
        groups = {w: group for group in self.param_groups for w in group["params"]}
        for layer, inputs in self._inputs.items():
            group = groups.get(layer.weight)  # pyright: ignore[reportArgumentType]
            if group is not None:
                self._replace(layer, inputs, tau=group["tau"], iterations=group["iterations"])
        self._forget()
        self.base.step()
        self._counted(1)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, and forget the inputs that they came from."""
        self._forget()
        super().zero_grad(set_to_none)

    def _watch(self) -> None:
        for layer in self._inputs:
            layer.register_forward_hook(Watch(self._see))

    def _see(self, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if layer in self._inputs and output.requires_grad:
            _record(self._inputs[layer], args[0].detach(), output)

    def _forget(self) -> None:
        for inputs in getattr(self, "_inputs", {}).values():
            inputs.clear()

    def _check_groups(self) -> None:
        check_members("ProxProp", self.param_groups, self._model, "so it sees no layer that they are in")
        check_not_negative("ProxProp", self.param_groups, ("lr", "tau"))
        for group in self.param_groups:
            tau, iterations = group["tau"], group["iterations"]
            if not tau > 0:
                raise ValueError(f"ProxProp needs a step size tau above 0, not {tau}")
            if iterations is not None and not is_count(iterations, 1):
                raise ValueError(
                    f"ProxProp makes at least 1 conjugate gradient iteration (None: exact), a whole number, not "
                    f"{iterations}"
                )

    def _replace(self, layer: Any, inputs: list[Tensor], *, tau: float, iterations: int | None) -> None:
        """The implicit step's change in place of a layer's gradient."""
        weight: Tensor = layer.weight
        bias: Tensor | None = layer.bias
        if weight.grad is None:
            return
        if not inputs:
            raise ValueError(
                f"ProxProp has a gradient but no input of a {type(layer).__name__} with weights {tuple(weight.shape)}: "
                "the gradient has to come from a forward and backward pass after the optimizer was made; what was "
                "compiled before that (this network or one like it) runs without the hooks that see inputs: call "
                "torch.compiler.reset() once the optimizer is made, and it is compiled anew with them"
            )
        groups = getattr(layer, "groups", 1)
        rows = torch.cat([_rows(layer, x.to(weight.dtype)) for x in inputs], -2)
        gradients = weight.grad.reshape(groups, weight.shape[0] // groups, -1)
        offsets = None if bias is None else bias.grad
        if offsets is not None:
            rows = torch.cat([rows, rows.new_ones(*rows.shape[:-1], 1)], -1)
            gradients = torch.cat([gradients, offsets.reshape(groups, -1, 1)], -1)
        if iterations is None:
            found = proximal_direction(rows, gradients, tau=tau)
        else:
            together = not isinstance(layer, nn.Linear)
            found = proximal_direction_cg(rows, gradients, tau=tau, iterations=iterations, together=together)
        if offsets is not None:
            offsets.copy_(found[..., -1].reshape(offsets.shape))
            found = found[..., :-1]
        weight.grad.copy_(found.reshape(weight.shape))


def _record(inputs: list[Tensor], x: Tensor, output: Tensor) -> None:
    """Keep a layer's input once a gradient reaches its output, once for any number of backward passes."""
    waiting = [x]

    def reached(gradient: Tensor) -> None:
        if waiting:
            inputs.append(waiting.pop())

    output.register_hook(reached)


def _layers(model: nn.Module, names: tuple[str, ...] | None) -> list[Layer]:
    """The layers that take implicit steps."""
    known = dict(model.named_modules())
    if names is None:
        found = [m for m in known.values() if isinstance(m, Layer) and m.weight.requires_grad][:-1]
        if not found:
            raise ValueError("ProxProp takes implicit steps on all linear and convolutional layers but the last: none")
        return found
    chosen = []
    for name in names:
        layer = known.get(name)
        if not isinstance(layer, Layer):
            what = "there is none of this name" if layer is None else f"it is a {type(layer).__name__}"
            raise ValueError(f"ProxProp takes implicit steps on Linear, Conv1d and Conv2d; for {name!r} {what}")
        chosen.append(layer)
    return chosen


def _rows(layer: Layer, x: Tensor) -> Tensor:
    """A layer's input as the matrix in which its outputs are linear, [groups, samples and places, inputs of a unit]."""
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    padding: list[int] = []
    for axis in reversed(range(x.dim() - 2)):
        size = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
        sides = {"valid": (0, 0), "same": (size // 2, size - size // 2)}
        padding += sides[layer.padding] if isinstance(layer.padding, str) else (layer.padding[axis],) * 2
    x = F.pad(x, padding, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)
    kernel, stride, dilation = layer.kernel_size, layer.stride, layer.dilation
    if isinstance(layer, nn.Conv1d):
        x, kernel, stride, dilation = x[:, :, None], (1, *kernel), (1, *stride), (1, *dilation)
    patches = F.unfold(x, kernel, dilation=dilation, stride=stride)  # [n, channels · kernel, places]
    return patches.reshape(len(x), layer.groups, -1, patches.shape[-1]).permute(1, 0, 3, 2).flatten(1, 2)
