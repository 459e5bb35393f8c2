"""Entropy-SGD: descent on the local entropy, whose gradient a few steps of Langevin dynamics estimate."""

from collections.abc import Callable
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from landscope.optimizers.checking import Checking, check_not_negative, is_count, the_same
from landscope.optimizers.named import parameters_given
from landscope.optimizers.vectors import check_dense, parameters_of
from landscope.spec import derive

AVERAGING = {"code": 0.25, "paper": 0.75}  # the newest iterate's share of the average, as published


def langevin_step(
    iterates: Float[Tensor, "*s"],
    averages: Float[Tensor, "*s"],
    momenta: Float[Tensor, "*s"],
    gradients: Float[Tensor, "*s"],
    anchors: Float[Tensor, "*s"],
    normals: Float[Tensor, "*s"],
    *,
    lr: float | Tensor,
    gamma: float | Tensor,
    noise: float | Tensor,
    averaging: float | Tensor,
    momentum: float | Tensor = 0.0,
    nesterov: bool = True,
    weight_decay: float | Tensor = 0.0,
) -> tuple[Float[Tensor, "*s"], Float[Tensor, "*s"], Float[Tensor, "*s"]]:
    """One inner step of Entropy-SGD (Chaudhari et al. 2017, algorithm 1).

    x' ← x' − lr·(∇f(x') − γ·(x − x')) + noise·√(2·lr)·N(0, 1), then μ ← (1 − a)·μ + a·x'.

    Args:
        iterates: x', in any shape; for many networks one row each.
        averages: μ.
        momenta: Of ∇f + weight_decay·x', zeros at the first inner step.
        gradients: ∇f(x').
        anchors: x, the weights at which the local entropy's gradient is estimated.
        normals: Independent N(0, 1) numbers; not looked at where the noise is 0.
        lr: The inner learning rate; a number or a tensor that broadcasts, as the following.
        gamma: The pull towards x.
        noise: Its temperature is the square of this.
        averaging: a, the newest iterate's share of the average.
        momentum: Of the gradient.
        nesterov: In Nesterov's form.
        weight_decay: λ, coupled.

    Returns:
        Iterates, averages and momenta after the step.
    """
    steps = gradients if _off(weight_decay) else _plus(gradients, weight_decay, iterates)
    if not _off(momentum):
        momenta = _plus(steps, momentum, momenta)
        steps = _plus(steps, momentum, momenta) if nesterov else momenta
    iterates = _plus(_towards(iterates, anchors, lr * gamma), -lr, steps)
    if not _off(noise):
        iterates = _plus(iterates, noise * (2 * lr) ** 0.5, normals)
    return iterates, _towards(averages, iterates, averaging), momenta


def _off(setting: float | Tensor) -> bool:
    return isinstance(setting, (int, float)) and setting == 0


def _plus(x: Tensor, factor: float | Tensor, y: Tensor) -> Tensor:
    """``x + factor·y`` in one pass."""
    return x.addcmul(y, factor.to(x)) if isinstance(factor, Tensor) else x.add(y, alpha=factor)


def _towards(x: Tensor, y: Tensor, share: float | Tensor) -> Tensor:
    """``(1 − share)·x + share·y`` in one pass."""
    return x.lerp(y, share.to(x) if isinstance(share, Tensor) else share)


def momentum_step(
    weights: Float[Tensor, "*s"],
    directions: Float[Tensor, "*s"],
    momenta: Float[Tensor, "*s"] | None,
    *,
    lr: float | Tensor,
    momentum: float | Tensor,
    nesterov: bool,
    weight_decay: float | Tensor,
) -> tuple[Float[Tensor, "*s"], Float[Tensor, "*s"]]:
    """The outer step, SGD with the direction x − μ in the gradient's place; the weights and momenta after it."""
    steps = directions + weight_decay * weights
    momenta = steps if momenta is None else momentum * momenta + steps
    steps = steps + momentum * momenta if nesterov else momenta
    return weights - lr * steps, momenta


@final
class EntropySGD(Checking):
    """Entropy-SGD (Chaudhari et al. 2017): SGD on the local entropy −log ∫ exp(−f(x') − γ/2·‖x − x'‖²) dx'.

    Its gradient γ·(x − ⟨x'⟩) is estimated by ``inner_steps`` steps of Langevin dynamics from x, with the average μ of
    the iterates for ⟨x'⟩; then x ← x − lr·(x − μ), γ being part of lr. A step takes ``inner_steps`` gradients, as many
    calls of the closure (one for ``inner_steps=0``, which is SGD); ``optimizer.gradients`` counts them. Compare with
    other optimizers at equal gradients, not at equal steps. BatchNorm's statistics see the inner iterates: before
    evaluating, run `torch.optim.swa_utils.update_bn` over the training data, as the authors do.

    Args:
        params: Parameters, (name, parameter) pairs or groups; ``inner_steps`` is the same for all.
        lr: The outer learning rate.
        inner_steps: L, Langevin steps a step.
        gamma: The scope γ at the first step.
        scoping: γ grows with the step t as γ·(1 + scoping)^t.
        noise: ε; the noise added to an iterate has standard deviation ε·√(2·inner_lr), as in the authors' code. For the
            paper's √inner_lr·ε divide by √2.
        inner_lr: The inner learning rate.
        averaging: The newest iterate's share of the average: ``"code"`` (0.25), ``"paper"`` (0.75), or a number.
        momentum: Of both loops; the inner one starts anew at each step.
        nesterov: Momentum in Nesterov's form, in both loops.
        weight_decay: Coupled, in both loops.
        seed: The noise is a function of this and the step; None: drawn from PyTorch's global generator, like dropout.
            Groups of the same seed draw one after the other, each of another one its own.

    Raises:
        ValueError: for settings out of range, no parameters, an exhausted generator, or a step without a closure.

    >>> w = torch.tensor([1.0], requires_grad=True)
    >>> opt = EntropySGD([w], lr=1.0, inner_steps=1, gamma=0.0, noise=0.0, inner_lr=0.5, averaging="paper")
    >>> def closure():
    ...     opt.zero_grad()
    ...     loss = (w * w).sum() / 2
    ...     loss.backward()
    ...     return loss
    >>> _ = opt.step(closure)  # x' = 0.5, μ = 0.25 + 0.75·0.5
    >>> w.item(), opt.gradients
    (0.625, 1)
    """

    def __init__(
        self,
        params: Any,
        /,
        *,
        lr: float,
        inner_steps: int = 20,
        gamma: float = 1e-4,
        scoping: float = 1e-3,
        noise: float = 1e-4,
        inner_lr: float = 0.1,
        averaging: str | float = "code",
        momentum: float = 0.0,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        seed: int | None = None,
    ) -> None:
        numbers = {"lr": lr, "gamma": gamma, "scoping": scoping, "noise": noise, "inner_lr": inner_lr}
        defaults = numbers | {"averaging": averaging, "momentum": momentum, "nesterov": nesterov}
        defaults |= {"weight_decay": weight_decay, "inner_steps": inner_steps, "seed": seed, "t": 0, "gradients": 0}
        super().__init__(parameters_given(params), defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of ``inner_steps`` gradients.

        Args:
            closure: Clears the gradients, computes the loss, its gradient, and returns the loss.

        Returns:
            What the closure gave first, at the weights themselves.
        """
        if closure is None:
            raise ValueError("EntropySGD computes several gradients a step: call step(closure)")
        anchors = {w: w.clone() for w in parameters_of(self.param_groups)}
        averages = {w: x.clone() for w, x in anchors.items()}
        momenta = {w: torch.zeros_like(w) for w in anchors}
        steps, losses = the_same("EntropySGD", self.param_groups, "inner_steps"), []
        try:
            for number in range(max(1, steps)):
                with torch.enable_grad():
                    losses.append(closure())
                check_dense("EntropySGD", list(anchors))
                if steps:
                    self._inner(number, anchors, averages, momenta)
        finally:
            for w, x in anchors.items():
                w.copy_(x)
        self._outer(averages if steps else None)
        for group in self.param_groups:
            group["t"] = self.param_groups[0]["t"] if group is not self.param_groups[0] else group["t"] + 1
        self._counted(max(1, steps))
        return losses[0]

    def _check_groups(self) -> None:
        names = ("lr", "gamma", "scoping", "noise", "inner_lr", "momentum", "weight_decay")
        check_not_negative("EntropySGD", self.param_groups, names)
        if not is_count(steps := the_same("EntropySGD", self.param_groups, "inner_steps"), 0):
            raise ValueError(f"EntropySGD makes inner_steps >= 0 Langevin steps, a whole number, not {steps}")
        for group in self.param_groups:
            share: Any = AVERAGING.get(group["averaging"], group["averaging"])
            group["averaging"] = share
            if isinstance(share, str):
                raise ValueError(f'averaging is "code", "paper" or a number between 0 and 1, not {share!r}')
            if not 0 < share <= 1:
                raise ValueError(f"the newest iterate's share of the average lies between 0 and 1, not at {share}")

    def _inner(
        self, number: int, anchors: dict[Tensor, Tensor], averages: dict[Tensor, Tensor], momenta: dict[Tensor, Tensor]
    ) -> None:
        t = self.param_groups[0]["t"]
        generators: dict[tuple[torch.device, int], torch.Generator] = {}
        for group in self.param_groups:
            settings = {name: group[name] for name in ("noise", "averaging", "momentum", "nesterov", "weight_decay")}
            settings |= {"lr": group["inner_lr"], "gamma": group["gamma"] * (1 + group["scoping"]) ** t}
            for w in group["params"]:
                generator = None
                if group["seed"] is not None:
                    key = w.device, derive(group["seed"], "langevin", t, number)
                    if key not in generators:
                        generators[key] = torch.Generator(w.device).manual_seed(key[1])
                    generator = generators[key]
                if w.grad is None:
                    continue
                normals = w.new_empty(w.shape)
                if group["noise"]:
                    normals.normal_(generator=generator)
                moved = langevin_step(w, averages[w], momenta[w], w.grad, anchors[w], normals, **settings)
                averages[w], momenta[w] = moved[1:]
                w.copy_(moved[0])

    def _outer(self, averages: dict[Tensor, Tensor] | None) -> None:
        for group in self.param_groups:
            settings = {name: group[name] for name in ("lr", "momentum", "nesterov", "weight_decay")}
            for w in group["params"]:
                if w.grad is None:
                    continue
                direction = w.grad if averages is None else w - averages[w]
                moved, momenta = momentum_step(w, direction, self.state[w].get("momentum_buffer"), **settings)
                w.copy_(moved)
                if group["momentum"]:
                    self.state[w]["momentum_buffer"] = momenta
