"""The update rules of torch's own optimizers as functions of tensors, for one network or for many at once.

``update(theta, gradient, state, step, settings)`` makes one step in place. ``theta`` and ``gradient`` are of one shape:
``[P]``, or ``[members, P]`` with all parameters of each member in a row. A setting is a float, or a float64 tensor
``[members, 1]`` with one value a member; an option is a bool. ``state`` is a dictionary, empty before the first step,
which the rule fills with tensors whose first dimension is the members'; ``step`` counts from 1. The gradient may be
overwritten. Settings that are the float 0 leave their operation out.

Each equals its optimizer in ``torch.optim`` (PyTorch 2.13's single-tensor form) up to rounding; the cost is a few
passes over ``theta``.

>>> theta = torch.tensor([[1.0], [1.0]], dtype=torch.float64)
>>> rates = torch.tensor([[0.5], [0.25]], dtype=torch.float64)
>>> UPDATES["torch.optim.sgd.SGD"](theta, torch.ones_like(theta), {}, 1, {"lr": rates})
>>> theta
tensor([[0.5000],
        [0.7500]], dtype=torch.float64)
"""

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

State = MutableMapping[str, Tensor]
Settings = Mapping[str, Any]  # floats, tensors [members, 1], bools, pairs of floats or tensors (betas)
Update = Callable[[Tensor, Tensor, State, int, Settings], None]


def sgd(theta: Tensor, gradient: Tensor, state: State, step: int, settings: Settings) -> None:
    """Stochastic gradient descent with momentum, dampening, Nesterov's form and coupled weight decay."""
    gradient = _decayed(theta, gradient, settings)
    momentum = settings.get("momentum", 0.0)
    if not _off(momentum):
        if "momentum" not in state:
            state["momentum"] = gradient.clone()
        else:  # one expression, so that a member without dampening has the same bits beside one with it
            dampening = settings.get("dampening", 0.0)  # which torch leaves out where there is no momentum
            taken = gradient if _off(dampening) else gradient * _like(1 - dampening * (momentum != 0), theta)
            torch.addcmul(taken, state["momentum"], _like(momentum, theta), out=state["momentum"])
        if settings.get("nesterov"):
            gradient = gradient.addcmul_(state["momentum"], _like(momentum, theta))
        else:
            gradient = state["momentum"]
    theta.addcmul_(gradient, _like(settings["lr"], theta), value=-1)


def adam(theta: Tensor, gradient: Tensor, state: State, step: int, settings: Settings) -> None:
    """Adam and AMSGrad (``amsgrad``), with coupled weight decay or AdamW's (``decoupled_weight_decay``)."""
    lr, (beta1, beta2) = settings["lr"], settings["betas"]
    decay = settings.get("weight_decay", 0.0)
    if settings.get("decoupled_weight_decay"):
        gradient = gradient.neg_() if settings.get("maximize") else gradient
        if not _off(decay):
            theta.mul_(_like(1 - lr * decay, theta))
    else:
        gradient = _decayed(theta, gradient, settings)
    first, second = _zeros(state, theta, "first"), _zeros(state, theta, "second")
    first.lerp_(gradient, _like(1 - beta1, theta))
    second.mul_(_like(beta2, theta)).addcmul_(gradient.mul_(gradient), _like(1 - beta2, theta))
    if settings.get("amsgrad"):
        second = torch.maximum(_zeros(state, theta, "largest"), second, out=state["largest"])
    correction = (1 - beta2**step) ** 0.5
    torch.sqrt(second, out=gradient).div_(_like(correction, theta)).add_(_like(settings["eps"], theta))
    torch.div(first, gradient, out=gradient)
    theta.addcmul_(gradient, _like(lr / (1 - beta1**step), theta), value=-1)


def adamw(theta: Tensor, gradient: Tensor, state: State, step: int, settings: Settings) -> None:
    """AdamW; in the settings of PyTorch before 2.7 nothing says that its weight decay is decoupled."""
    adam(theta, gradient, state, step, {**settings, "decoupled_weight_decay": True})


def adamax(theta: Tensor, gradient: Tensor, state: State, step: int, settings: Settings) -> None:
    """Adam with the largest instead of the mean square gradient."""
    beta1, beta2 = settings["betas"]
    gradient = _decayed(theta, gradient, settings)
    first, largest = _zeros(state, theta, "first"), _zeros(state, theta, "largest")
    first.lerp_(gradient, _like(1 - beta1, theta))
    gradient.abs_().add_(_like(settings["eps"], theta))
    torch.maximum(largest.mul_(_like(beta2, theta)), gradient, out=largest)
    torch.div(first, largest, out=gradient)
    theta.addcmul_(gradient, _like(settings["lr"] / (1 - beta1**step), theta), value=-1)


def adadelta(theta: Tensor, gradient: Tensor, state: State, step: int, settings: Settings) -> None:
    """Adadelta: the step is scaled by the running mean of earlier steps."""
    rho, eps = settings["rho"], _like(settings["eps"], theta)
    keep, take = _like(rho, theta), _like(1 - rho, theta)
    gradient = _decayed(theta, gradient, settings)
    squares, steps = _zeros(state, theta, "squares"), _zeros(state, theta, "steps")
    squares.mul_(keep).addcmul_(gradient.square(), take)
    delta = (steps + eps).sqrt_().div_((squares + eps).sqrt_()).mul_(gradient)
    steps.mul_(keep).addcmul_(delta.square(), take)
    theta.addcmul_(delta, _like(settings["lr"], theta), value=-1)


def adagrad(theta: Tensor, gradient: Tensor, state: State, step: int, settings: Settings) -> None:
    """Adagrad: the step is divided by the root of the sum of squared gradients."""
    gradient = _decayed(theta, gradient, settings)
    if "sum" not in state:
        start = settings.get("initial_accumulator_value", 0.0)
        state["sum"] = torch.zeros_like(theta).add_(_like(start, theta))
    state["sum"].addcmul_(gradient, gradient)
    rate = settings["lr"] / (1 + (step - 1) * settings.get("lr_decay", 0.0))
    gradient.div_(state["sum"].sqrt().add_(_like(settings["eps"], theta)))
    theta.addcmul_(gradient, _like(rate, theta), value=-1)


def asgd(theta: Tensor, gradient: Tensor, state: State, step: int, settings: Settings) -> None:
    """Averaged gradient descent: ``state["average"]`` is the mean of the iterates after ``t0``."""
    lr, decay = settings["lr"], settings["lambd"]
    gradient = _decayed(theta, gradient, settings)
    if "rate" not in state:
        rows = theta[..., :1].double()
        state["rate"] = _single(torch.ones_like(rows) * lr)
        state["weight"] = torch.ones_like(rows)
        state["average"] = torch.zeros_like(theta)
    theta.mul_(_like(1 - decay * state["rate"], theta))
    theta.addcmul_(gradient, _like(state["rate"], theta), value=-1)
    state["average"].add_((theta - state["average"]).mul_(_like(state["weight"], theta)))
    state["rate"].copy_(_single(torch.as_tensor(lr / (1 + decay * lr * step) ** settings["alpha"])))
    state["weight"].copy_(_single(1 / torch.clamp(torch.as_tensor(step - settings["t0"]).double(), min=1)))


def rmsprop(theta: Tensor, gradient: Tensor, state: State, step: int, settings: Settings) -> None:
    """RMSprop, centred or not, with or without momentum."""
    alpha = settings["alpha"]
    gradient = _decayed(theta, gradient, settings)
    squares = _zeros(state, theta, "squares")
    squares.mul_(_like(alpha, theta)).addcmul_(gradient.square(), _like(1 - alpha, theta))
    root = squares.sqrt() if not settings.get("centered") else None
    if root is None:
        mean = _zeros(state, theta, "mean").lerp_(gradient, _like(1 - alpha, theta))
        root = squares.addcmul(mean, mean, value=-1).sqrt_()
    gradient.div_(root.add_(_like(settings["eps"], theta)))
    momentum = settings.get("momentum", 0.0)
    if not _off(momentum):
        held = _zeros(state, theta, "momentum")
        gradient = torch.addcmul(gradient, held, _like(momentum, theta), out=held)
    theta.addcmul_(gradient, _like(settings["lr"], theta), value=-1)


UPDATES: Mapping[str, Update] = {
    "torch.optim.sgd.SGD": sgd,
    "torch.optim.adam.Adam": adam,
    "torch.optim.adamw.AdamW": adamw,
    "torch.optim.adamax.Adamax": adamax,
    "torch.optim.adadelta.Adadelta": adadelta,
    "torch.optim.adagrad.Adagrad": adagrad,
    "torch.optim.asgd.ASGD": asgd,
    "torch.optim.rmsprop.RMSprop": rmsprop,
}


def _single(value: Tensor) -> Tensor:
    """Rounded as torch's ASGD rounds it, which keeps its rate and weight in single precision."""
    return value.float().double()


def _off(value: Any) -> bool:
    return isinstance(value, (int, float)) and value == 0


def _like(value: Any, theta: Tensor) -> Tensor:
    """A setting as a tensor that operations on ``theta`` take: its arithmetic was in float64 until here."""
    return torch.as_tensor(value, dtype=theta.dtype, device=theta.device)


def _zeros(state: State, theta: Tensor, name: str) -> Tensor:
    if name not in state:
        state[name] = torch.zeros_like(theta)
    return state[name]


def _decayed(theta: Tensor, gradient: Tensor, settings: Settings) -> Tensor:
    """The gradient (in place), turned round where the objective is maximised, plus the coupled weight decay."""
    if settings.get("maximize"):
        gradient.neg_()
    decay = settings.get("weight_decay", 0.0)
    return gradient if _off(decay) else gradient.addcmul_(theta, _like(decay, theta))
