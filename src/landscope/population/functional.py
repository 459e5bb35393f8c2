"""Gradients of many networks of any kind at once, by torch.func: `vmap` of `grad` of `functional_call`."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import has_torch_function_unary

from landscope.models import evaluating
from landscope.population.layers import several
from landscope.population.layout import Layout
from landscope.train import takes_outputs

NET, TERMS = "net.", "terms."
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class _Objective(nn.Module):
    """The training objective as a module, so that the states of network and regularizers are replaced alike."""

    net: nn.Module
    terms: nn.ModuleDict

    def __init__(self, net: nn.Module, loss: Callable[..., Tensor], terms: Sequence[Callable[..., Tensor]]) -> None:
        super().__init__()
        self.net = net
        self.terms = nn.ModuleDict({str(i): term for i, term in enumerate(terms) if isinstance(term, nn.Module)})
        self._loss, self._all = loss, list(terms)
        self._wants = [takes_outputs(term) for term in terms]

    def forward(self, inputs: Tensor, targets: Tensor, own: Sequence[Mapping[str, Any]], changed: Any) -> Any:
        outputs = self.net(inputs)
        value = self._loss(outputs, targets)
        for term, given, settings, wants in zip(self._all, own, changed, self._wants, strict=True):
            if settings:
                term = copy.copy(term)
                for name, setting in settings.items():
                    object.__setattr__(term, name, setting)
            more = dict(given) | ({"outputs": outputs} if wants else {})
            value = value + term(self.net, (inputs, targets), **more)
        return value


class _Norm(nn.Module):
    """BatchNorm in plain operations: torch's, under vmap, gives bits that depend on how many members there are."""

    def __init__(self, of: _BatchNorm, name: str) -> None:
        super().__init__()
        self._name = name
        self._parameters, self._buffers = of._parameters, of._buffers
        self._eps, self._momentum = of.eps, of.momentum

    def forward(self, x: Tensor) -> Tensor:
        over, shape = [0, *range(2, x.dim())], (1, -1, *[1] * (x.dim() - 2))
        held, parameters = self._buffers, self._parameters
        running, spread, count = (held.get(n) for n in ("running_mean", "running_var", "num_batches_tracked"))
        weight, bias = parameters.get("weight"), parameters.get("bias")
        if self.training or running is None or spread is None or count is None:
            n = several(x.numel() // x.shape[1], self._name)
            mean = x.mean(over)
            centred = x - mean.view(shape)
            variance = centred.square().mean(over)
            if self.training and running is not None and spread is not None and count is not None:
                seen = count + 1
                share = 1 / seen.to(x.dtype) if self._momentum is None else self._momentum
                held["running_mean"] = running + share * (mean.detach() - running)
                held["running_var"] = spread + share * (variance.detach() * (n / (n - 1)) - spread)
                held["num_batches_tracked"] = seen
        elif has_torch_function_unary(x):  # under a mode that reads torch's own functions, as the path norm does
            return functional.batch_norm(x, running, spread, weight, bias, eps=self._eps)
        else:
            centred, variance = x - running.view(shape), spread
        y = centred * (variance + self._eps).rsqrt().view(shape)
        return y if weight is None or bias is None else y * weight.view(shape) + bias.view(shape)


def _with_plain_norms(model: nn.Module, prefix: str = "") -> nn.Module:
    for name, child in list(model.named_children()):
        if isinstance(child, _BatchNorm) and type(child) in _NORMS:
            setattr(model, name, _Norm(child, f"{prefix}{name}"))
        else:
            _with_plain_norms(child, f"{prefix}{name}.")
    return model


class Functional:
    """Gradients and losses of many networks of one structure.

    Args:
        model: One of them.
        layout: Where the parameters lie.
        loss: The loss of one member.
        terms: The regularizers of one member.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        loss: Callable[[Tensor, Tensor], Tensor],
        terms: Sequence[Callable[..., Tensor]] = (),
    ) -> None:
        self._model, self._layout, self._loss = _with_plain_norms(copy.deepcopy(model)), layout, loss
        self._objective = _Objective(self._model, loss, terms)

    def forget(self) -> None:
        """Nothing is kept between calls."""

    def gradient(
        self,
        rows: Tensor,
        buffers: dict[str, Tensor],
        batch: tuple[Tensor, Tensor],
        out: Tensor,
        update: bool = True,
        drawn: Sequence[Mapping[str, Any]] = (),
        changed: Sequence[Mapping[str, Tensor]] = (),
    ) -> Tensor:
        """The objective of each member on its batch, ``[members]``; its gradient goes to its row of ``out``.

        Args:
            rows: All parameters, ``[members, width]``.
            buffers: Of the network and of the regularizers by name, ``[members, ...]``, changed where ``update``.
            batch: Inputs ``[members, batch, ...]`` and targets ``[members, batch, ...]``.
            out: The gradients, ``[members, width]``.
            update: Whether buffers are updated.
            drawn: For each regularizer what it is given beside the batch.
            changed: For each regularizer its settings that differ between the members, ``[members]``.
        """

        def one(
            parameters: dict[str, Tensor], held: dict[str, Tensor], x: Tensor, y: Tensor, own: Any, own_set: Any
        ) -> Any:
            state = parameters | held
            value = functional_call(self._objective, state, (x, y, own, own_set))
            return value, {name: state[name] for name in held}

        self._model.train()
        held = {name: t.clone() for name, t in buffers.items()}
        parameters = {NET + name: t for name, t in self._layout.views(rows).items()}
        each = vmap(grad_and_value(one, has_aux=True), in_dims=(0, 0, 0, 0, 0, 0), randomness="error")
        gradients, (losses, after) = each(parameters, held, *batch, list(drawn), list(changed))
        if update:
            buffers.update(after)
        parts = [gradients[NET + name].reshape(len(rows), -1) for name in self._layout.names]
        rest = rows.new_zeros(len(rows), self._layout.width - self._layout.used)
        torch.cat([*parts, rest], 1, out=out)
        return losses

    @torch.no_grad()
    def evaluate(
        self, rows: Tensor, buffers: dict[str, Tensor], batch: tuple[Tensor, Tensor], accuracy: bool
    ) -> tuple[Tensor, Tensor | None, None]:
        """The summed loss of each member in eval mode, and how many samples it gets right, ``[members]`` each."""

        def one(parameters: dict[str, Tensor], held: dict[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            outputs = functional_call(self._model, parameters | held, (x,))
            return outputs, self._loss(outputs, y)

        held = {n.removeprefix(NET): t for n, t in buffers.items() if n.startswith(NET)}
        with evaluating(self._model):
            outputs, losses = vmap(one)(self._layout.views(rows), held, *batch)
        right = (outputs.argmax(2) == batch[1]).sum(1) if accuracy else None
        return losses * batch[0].shape[1], right, None
