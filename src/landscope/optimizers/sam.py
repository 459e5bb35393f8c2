"""Sharpness-aware minimisation: SAM, ASAM and GSAM, two gradients a step."""

import abc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from landscope.optimizers.ascents import asam_perturbation, gsam_direction, sam_perturbation
from landscope.optimizers.checking import check_clip, check_not_negative, the_same
from landscope.optimizers.vectors import check_dense, flat, flat_gradients, parameters_of, parts, spread
from landscope.optimizers.wrapping import Wrapping

SCOPES = ("matrices", "weights", "all")


class TwoGradients(Wrapping, abc.ABC):
    """What SAM, ASAM and GSAM share: a gradient at w, a second one at w + ε, and a base step with what both give."""

    _first: Tensor | None
    _away: bool = False  # whether the weights are at w + ε

    def __init__(
        self, params: Any, base: str | type[torch.optim.Optimizer], defaults: dict[str, Any], settings: dict[str, Any]
    ) -> None:
        super().__init__(params, base, defaults, settings)
        self._first = None

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_first": self._first}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step, of two gradients.

        Args:
            closure: Clears the gradients, computes the loss, its gradient, and returns the loss. It is called twice:
                at w and at w + ε, the second time with buffers (BatchNorm's statistics) put back afterwards. Without
                it, `perturbed` must have been used since the last step.

        Returns:
            What the closure gave at w, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
            with self.perturbed(), torch.enable_grad():
                closure()
        if self._first is None:
            raise ValueError(
                f"{type(self).__name__} needs two gradients a step: call step(closure), or compute the second "
                "one inside `with optimizer.perturbed():` before step()"
            )
        self._combine(self._first)
        self._first = None
        if (clip := the_same(type(self).__name__, self.param_groups, "clip")) is not None:
            nn.utils.clip_grad_norm_(parameters_of(self.param_groups), clip)
        self.base.step()
        self._counted(2)
        return loss

    @contextmanager
    def perturbed(self, *, scale: float = 1.0) -> Iterator[None]:
        """The weights at w + ε inside, from the gradients found at entry; at w again afterwards, bit for bit.

        Buffers of the modules called inside (BatchNorm's running statistics) are put back too, so that they count each
        batch once. A compiled module is seen (``torch.compile(model)``, ``model.compile()``), one called by a compiled
        function is not: compile the module. For loops that need to do something between both gradients or before the
        step: clip, unscale.

        Args:
            scale: What the gradients are multiplied by, `scaler.get_scale()` where a gradient scaler is used.
        """
        weights = parameters_of(self.param_groups)
        check_dense(type(self).__name__, weights)
        with torch.no_grad():
            kept = [w.clone() for w in weights]
            self._first = flat_gradients(weights)
            if scale != 1:
                self._first /= scale
            for w, step in parts(self._perturbation(self._first, weights), weights):
                w.add_(step)
        self._away = True
        try:
            with _buffers_kept():
                yield
        except BaseException:
            self._first = None
            raise
        finally:
            self._away = False
            with torch.no_grad():
                for w, old in zip(weights, kept, strict=True):
                    w.copy_(old)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients; at w also the first one of a step that was not made (a gradient scaler skips some)."""
        if not self._away:
            self._first = None
        super().zero_grad(set_to_none)

    def _check_groups(self) -> None:
        owner, names = type(self).__name__, ("lr", "rho", "eta", "clip", "rho_min", "alpha", "lr_max", "lr_min")
        check_not_negative(owner, self.param_groups, names)
        check_clip(owner, self.param_groups)
        _check_scope(self.param_groups)

    def _radii(self) -> list[float]:
        """ρ of each group, negative where the base maximizes: the worst point nearby is then the lowest."""
        return [-_radius(group) if group.get("maximize") else _radius(group) for group in self.param_groups]

    @abc.abstractmethod
    def _perturbation(self, gradients: Tensor, weights: list[Tensor]) -> Tensor:
        """ε, flat."""

    @abc.abstractmethod
    def _combine(self, first: Tensor) -> None:
        """Put the step's direction where the gradients at w + ε are."""


@contextmanager
def _buffers_kept() -> Iterator[None]:
    """The buffers of every module that is called inside are afterwards what they were before.

    So are those of the modules in it, because a compiled module is called as a whole and its parts without hooks.
    """
    kept: dict[tuple[nn.Module, str], tuple[Tensor, Tensor]] = {}
    seen: set[nn.Module] = set()

    def keep(module: nn.Module, args: Any) -> None:
        if module in seen:
            return
        for part in module.modules():
            if part.training and part not in seen:
                seen.add(part)
                for name, buffer in part.named_buffers(recurse=False):
                    kept[part, name] = buffer, buffer.detach().clone()

    handle = register_module_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()
        with torch.no_grad():
            for (module, name), (buffer, old) in kept.items():
                setattr(module, name, buffer.copy_(old))


@final
class SAM(TwoGradients):
    """Sharpness-aware minimisation (Foret et al. 2021): a base step with the gradient at w + ρ·g/‖g‖.

    The norm is over all parameters of all groups. Two gradients a step; ``optimizer.gradients`` counts them.

    Args:
        params: Parameters, (name, parameter) pairs or groups; a group may have its own ``rho`` and base settings (where
            it has ``maximize`` the radius leads downhill).
        base: The optimizer that makes the step, by name (`NAMES`) or as a class of PyTorch's.
        rho: The radius; the paper takes 0.05 for CIFAR-10 and 0.1 for CIFAR-100.
        clip: Clip the second gradient to this norm before the step.
        settings: The base optimizer's: ``lr``, ``momentum``, …

    Raises:
        TypeError: for a base that is neither a name nor a class.
        ValueError: for settings out of range, no parameters, an exhausted generator, or a base that computes gradients
            itself (L-BFGS, SAM).

    >>> w = torch.tensor([3.0, 4.0], requires_grad=True)
    >>> opt = SAM([w], rho=0.5, lr=0.1)
    >>> def closure():
    ...     opt.zero_grad()
    ...     loss = (w * w).sum() / 2
    ...     loss.backward()
    ...     return loss
    >>> opt.step(closure).item(), w.tolist(), opt.gradients
    (12.5, [2.6700000762939453, 3.559999942779541], 2)
    """

    def __init__(
        self,
        params: Any,
        /,
        *,
        base: str | type[torch.optim.Optimizer] = "sgd",
        rho: float = 0.05,
        clip: float | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(params, base, {"rho": rho, "clip": clip}, settings)

    def _perturbation(self, gradients: Tensor, weights: list[Tensor]) -> Tensor:
        return sam_perturbation(gradients, rho=spread(self.param_groups, self._radii()))

    def _combine(self, first: Tensor) -> None:
        pass


@final
class ASAM(TwoGradients):
    """Adaptive SAM (Kwon et al. 2021): SAM in a ball that stretches with the weights, ε = ρ·T²g/‖T g‖, T = |w| + η.

    Two gradients a step; ``optimizer.gradients`` counts them.

    Args:
        params: Parameters, (name, parameter) pairs or groups.
        base: The optimizer that makes the step, by name (`NAMES`) or as a class of PyTorch's.
        rho: The radius in units of T; the authors' code takes 0.5 for CIFAR-10 and 1.0 for CIFAR-100.
        eta: Keeps T away from zero.
        scope: Which parameters have T = |w| + η, the others T = 1. ``"matrices"``: those of two axes or more.
            ``"weights"``: those with *weight* in their name, as the authors' code does, BatchNorm's factors among them;
            needs `model.named_parameters()`. ``"all"``: every one, as another code does, with ``eta=0`` and rho 2.
        clip: Clip the second gradient to this norm before the step.
        settings: The base optimizer's: ``lr``, ``momentum``, …

    Raises:
        TypeError, ValueError: as `SAM`; for another scope, or ``"weights"`` without names.
    """

    def __init__(
        self,
        params: Any,
        /,
        *,
        base: str | type[torch.optim.Optimizer] = "sgd",
        rho: float = 0.5,
        eta: float = 0.01,
        scope: str = "matrices",
        clip: float | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(params, base, {"rho": rho, "eta": eta, "scope": scope, "clip": clip}, settings)

    def _perturbation(self, gradients: Tensor, weights: list[Tensor]) -> Tensor:
        return _adaptive(self.param_groups, gradients, weights, self._radii())

    def _combine(self, first: Tensor) -> None:
        pass


@final
class GSAM(TwoGradients):
    """Surrogate-gap minimisation (Zhuang et al. 2022): a base step along g_p − α·g_⊥.

    g_p is the gradient at w + ε, g_⊥ the part of the gradient at w that is orthogonal to it. The radius follows the
    learning rate: ρ_t = ρ_min + (ρ − ρ_min)·(lr_t − lr_min)/(lr_max − lr_min). Two gradients a step;
    ``optimizer.gradients`` counts them. After a step the parameters' ``grad`` hold its direction.

    Args:
        params: Parameters, (name, parameter) pairs or groups.
        base: The optimizer that makes the step, by name (`NAMES`) or as a class of PyTorch's.
        rho: The radius at the largest learning rate.
        rho_min: The radius at the smallest; None: rho throughout.
        alpha: The share of g_⊥; 0 is SAM.
        lr_max: The largest learning rate; None: each group's at the start.
        lr_min: The smallest.
        scope: None: SAM's ball; ``"matrices"``, ``"weights"`` or ``"all"``: ASAM's.
        eta: As in `ASAM`.
        clip: Clip the direction to this norm before the step.
        settings: The base optimizer's: ``lr``, ``momentum``, …

    Raises:
        TypeError, ValueError: as `ASAM`; for a rho_min with no range of learning rates.
    """

    def __init__(
        self,
        params: Any,
        /,
        *,
        base: str | type[torch.optim.Optimizer] = "sgd",
        rho: float = 0.05,
        rho_min: float | None = None,
        alpha: float = 0.4,
        lr_max: float | None = None,
        lr_min: float = 0.0,
        scope: str | None = None,
        eta: float = 0.0,
        clip: float | None = None,
        **settings: Any,
    ) -> None:
        defaults = {"rho": rho, "rho_min": rho_min, "alpha": alpha, "lr_max": lr_max, "lr_min": lr_min}
        super().__init__(params, base, defaults | {"scope": scope, "eta": eta, "clip": clip}, settings)

    def _check_groups(self) -> None:
        super()._check_groups()
        for group in self.param_groups:
            if group["lr_max"] is None:
                group["lr_max"] = group["lr"]
            _radius(group)

    def _perturbation(self, gradients: Tensor, weights: list[Tensor]) -> Tensor:
        if all(group["scope"] is None for group in self.param_groups):
            return sam_perturbation(gradients, rho=spread(self.param_groups, self._radii()))
        return _adaptive(self.param_groups, gradients, weights, self._radii())

    def _combine(self, first: Tensor) -> None:
        weights = parameters_of(self.param_groups)
        alpha = spread(self.param_groups, [group["alpha"] for group in self.param_groups])
        for w, direction in parts(gsam_direction(first, flat_gradients(weights), alpha=alpha), weights):
            if w.grad is not None:
                w.grad.copy_(direction)


def _radius(group: dict[str, Any]) -> float:
    """A group's radius, in GSAM that which belongs to its learning rate."""
    if group.get("rho_min") is None or group["lr"] == group["lr_max"]:
        return group["rho"]
    if not group["lr_max"] > group["lr_min"]:
        raise ValueError(
            f"rho follows the learning rate from lr_max down to lr_min, not from {group['lr_max']} to {group['lr_min']}"
        )
    share = (group["lr"] - group["lr_min"]) / (group["lr_max"] - group["lr_min"])
    return group["rho_min"] + (group["rho"] - group["rho_min"]) * share


def _adaptive(groups: list[dict[str, Any]], gradients: Tensor, weights: list[Tensor], rhos: list[float]) -> Tensor:
    which = [_scaled(group, n) for group in groups for n in range(len(group["params"]))]
    scaled = None
    if not all(which):
        scaled = torch.cat(
            [torch.full((w.numel(),), one, device=w.device) for w, one in zip(weights, which, strict=True)]
        )
    eta = spread(groups, [group["eta"] for group in groups])
    return asam_perturbation(gradients, flat(weights), scaled, rho=spread(groups, rhos), eta=eta)


def _scaled(group: dict[str, Any], n: int) -> bool:
    if group["scope"] == "weights":
        return "weight" in group["param_names"][n]
    return group["scope"] == "all" or (group["scope"] == "matrices" and group["params"][n].dim() > 1)


def _check_scope(groups: list[dict[str, Any]]) -> None:
    """The scopes of all groups: none in SAM, perhaps none (None) in GSAM."""
    for group in groups:
        scope = group.get("scope")
        if scope is not None and scope not in SCOPES:
            raise ValueError(f"scope is one of {', '.join(SCOPES)}, not {scope!r}")
        if scope == "weights" and "param_names" not in group:
            raise ValueError(
                'scope "weights" goes by the parameters\' names: give model.named_parameters(), or take scope '
                '"matrices"'
            )
