"""Path-SGD: steepest descent in the geometry of the path norm, which no node-wise rescaling of the network changes."""

from collections.abc import Callable
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from landscope.norms import kappa
from landscope.optimizers.checking import Checking, check_clip, check_members, check_not_negative, is_count, the_same
from landscope.optimizers.named import parameters_given
from landscope.optimizers.vectors import check_dense, flat, flat_gradients, parameters_of
from landscope.optimizers.watching import Watch

FLOOR = 1e-12  # κ of a weight is at least this share of its layer's mean: a dead unit's κ is 0, and so is its gradient


def path_sgd_update(
    weights: Float[Tensor, "*s"],
    gradients: Float[Tensor, "*s"],
    kappas: Float[Tensor, "*s"],
    momenta: Float[Tensor, "*s"] | None,
    *,
    lr: float | Tensor,
    momentum: float | Tensor = 0.0,
    weight_decay: float | Tensor = 0.0,
) -> tuple[Float[Tensor, "*s"], Float[Tensor, "*s"]]:
    """A step: m ← μ·m + g/κ, w ← (1 − lr·λ)·w − lr·m: momentum on the scaled gradient, decay apart from it.

    Args:
        weights: The weights, in any shape; for many networks one row each.
        gradients: Their gradients.
        kappas: Their κ, above 0.
        momenta: What this gave the last time; None at the first step.
        lr: The learning rate; a number, or a tensor that broadcasts against the weights, as the next two.
        momentum: μ.
        weight_decay: λ.

    Returns:
        The weights and the momenta after the step.

    >>> path_sgd_update(torch.ones(1), torch.tensor([6.0]), torch.tensor([3.0]), None, lr=0.1)[0]
    tensor([0.8000])
    """
    steps = gradients / kappas
    momenta = steps if momenta is None else momentum * momenta + steps
    return weights * (1 - lr * weight_decay) - lr * momenta, momenta


def path_gradient_norm(gradients: Float[Tensor, "*m p"], kappas: Float[Tensor, "*m p"]) -> Float[Tensor, "*m"]:
    """√(Σ g²/κ), the gradient's length in this geometry; no node-wise rescaling of the network changes it.

    >>> path_gradient_norm(torch.tensor([6.0, 4.0]), torch.tensor([4.0, 1.0]))
    tensor(5.)
    """
    return (gradients.square() / kappas).sum(-1).sqrt()


def calibration(gradients: Float[Tensor, "*m p"], kappas: Float[Tensor, "*m p"]) -> Float[Tensor, "*m"]:
    """α = Σg² / Σ(g²/κ): with the learning rate α·lr the loss falls, to first order, as it does in SGD with lr.

    >>> calibration(torch.tensor([2.0, 4.0]), torch.tensor([2.0, 2.0]))
    tensor(2.)
    """
    return gradients.square().sum(-1) / path_gradient_norm(gradients, kappas).square()


@final
class PathSGD(Checking):
    """Path-SGD (Neyshabur, Salakhutdinov & Srebro 2015, section 4): w_e ← w_e − lr·g_e/κ_e, κ_e = ∂γ²/∂(w_e²).

    γ is the l2 path norm; `landscope.norms.kappa` says which networks have a κ, and the convention for BatchNorm. If
    a unit's incoming weights and bias are multiplied by c and its outgoing ones divided by it, the network after any
    number of steps computes the same function as without. Momentum acts on g/κ and weight decay apart from the
    gradient, because either done otherwise breaks that; so would clipping the gradient's ordinary norm, for which there
    is ``clip``. One gradient a step (``optimizer.gradients`` counts them), and a forward and backward pass of a single
    sample of ones every ``every`` steps.

    Args:
        model: The network itself, not its parameters.
        lr: The learning rate, of g/κ.
        momentum: On g/κ.
        weight_decay: Decoupled: w ← (1 − lr·weight_decay)·w. (The calibration leaves it alone.)
        clip: Shorten the gradient to this length in Path-SGD's own norm, √(Σ g²/κ).
        calibrate: Multiply the learning rate by α = Σg²/Σ(g²/κ) of the first step, so that ``lr`` means what it means
            for SGD there. α is not the same for a rescaled network, so its run differs.
        every: Steps between two computations of κ.
        shape: The shape of one input, without the batch dimension; None: that of the first forward pass after this.
        pool: ``"sum"`` or ``"max"``: what max-pooling does to paths, as in `landscope.norms.path_norm`.
        params: Some of the model's parameters, or groups of them with their own lr, momentum or weight_decay (the other
            settings are the same for all); None: all that are trained.

    Raises:
        TypeError: for something that is no module.
        ValueError: for settings out of range, parameters that are not the model's, or none. At a step: for a network
            that cannot be followed (naming the module), a layer whose κ are all zero or more than its type holds, a
            sparse gradient, or no input shape yet.

    >>> net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
    >>> with torch.no_grad():
    ...     _ = net[0].weight.fill_(3.0), net[2].weight.fill_(2.0)
    >>> opt = PathSGD(net, lr=0.1)
    >>> net(torch.ones(1, 1)).sum().backward()  # g is 2 and 3, κ is 4 and 9
    >>> opt.step()
    >>> [round(w.item(), 4) for w in net.parameters()]
    [2.95, 1.9667]
    """

    _model: nn.Module
    _names: dict[int, str]
    _handle: RemovableHandle | None

    def __init__(
        self,
        model: nn.Module,
        /,
        *,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        clip: float | None = None,
        calibrate: bool = False,
        every: int = 1,
        shape: tuple[int, ...] | None = None,
        pool: str = "sum",
        params: Any = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"PathSGD needs the model itself, to follow its paths, not {type(model).__name__}")
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "clip": clip, "calibrate": calibrate}
        defaults |= {"every": every, "pool": pool, "shape": shape, "scale": None, "gradients": 0}
        given = [w for w in model.parameters() if w.requires_grad] if params is None else params
        self._model = model
        super().__init__(parameters_given(given), defaults)
        self._follow(model)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_model": self._model}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_model" in state:  # load_state_dict comes here too
            self._follow(self._model)

    def kappas(self) -> dict[str, Tensor]:
        """κ by parameter name at the current weights, as the next step would use it.

        Raises:
            ValueError: as `step` does.
        """
        shape = self.param_groups[0]["shape"]
        if shape is None:
            raise ValueError(
                "PathSGD has seen no forward pass of the model, so it does not know the shape of its inputs: give "
                "shape=, for one input without the batch dimension"
            )
        found = kappa(self._model, tuple(shape), pool=self.param_groups[0]["pool"])
        means = torch.stack([values.mean() for values in found.values()])
        largest = torch.stack([values.max() for values in found.values()])
        dtypes = {name: w.dtype for name, w in self._model.named_parameters()}
        for name, mean, most in zip(found, means.tolist(), largest.tolist(), strict=True):
            if not most < torch.finfo(dtypes[name]).max:
                raise ValueError(
                    f"the path weights κ of {name!r} reach {most:.1e}, more than its type {dtypes[name]} holds: take "
                    "smaller initial weights (κ is a product of all layers' squares), or a model in float64"
                )
            if not mean > 0:
                raise ValueError(
                    f"every path weight κ of {name!r} is zero: all paths through it meet a weight of zero elsewhere (a "
                    "layer or BatchNorm factor initialised with zeros?), so Path-SGD's step is not defined; start it "
                    "elsewhere"
                )
        return {name: values.clamp_min(FLOOR * mean) for (name, values), mean in zip(found.items(), means, strict=True)}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; the closure, where given, is called once and what it gives is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        check_dense("PathSGD", parameters_of(self.param_groups))
        by_weight = self._current()
        factor = self._clipped([w for w in by_weight if w.grad is not None], by_weight)
        for group in self.param_groups:
            lr = group["lr"] * (1.0 if group["scale"] is None else group["scale"])
            decay = group["weight_decay"] * (1.0 if group["scale"] is None else 1 / group["scale"])
            for w in group["params"]:
                if w.grad is None or w not in by_weight:
                    continue
                gradient = w.grad if factor is None else w.grad * factor
                momenta = self.state[w].get("momentum_buffer")
                rates = {"lr": lr, "momentum": group["momentum"], "weight_decay": decay}
                moved, momenta = path_sgd_update(w, gradient, by_weight[w], momenta, **rates)
                w.copy_(moved)
                if group["momentum"]:
                    self.state[w]["momentum_buffer"] = momenta
        self._counted(1)
        return loss

    def _current(self) -> dict[Tensor, Tensor]:
        """κ of each parameter that is trained, as recent as ``every`` asks for, or as there being one more asks for."""
        every = self.param_groups[0]["every"]
        weights = [w for w in parameters_of(self.param_groups) if w.requires_grad]
        if self.gradients % every and all("kappa" in self.state[w] for w in weights):
            return {w: self.state[w]["kappa"] for w in weights}
        found = self.kappas()
        fresh = {w: found[self._names[id(w)]].to(w.dtype) for w in weights}
        if every > 1:
            for w in parameters_of(self.param_groups):
                self.state[w].pop("kappa", None)  # of those that are frozen now and would be old once they are not
            for w, values in fresh.items():
                self.state[w]["kappa"] = values
        return fresh

    def _clipped(self, weights: list[Tensor], by_weight: dict[Tensor, Tensor]) -> Tensor | None:
        """What gradients are multiplied by; the learning rate is calibrated on the way, at the first gradient."""
        first, clip = self.param_groups[0], self.param_groups[0]["clip"]
        calibrate = first["calibrate"] and first["scale"] is None
        if not weights or (clip is None and not calibrate):
            return None
        wide = torch.float32 if weights[0].device.type == "mps" else torch.float64  # g² / κ is far below 1 in deep nets
        gradients, kappas = flat_gradients(weights).to(wide), flat([by_weight[w] for w in weights]).to(wide)
        if calibrate and bool(gradients.any()):
            scale = calibration(gradients, kappas).item()
            for group in self.param_groups:
                group["scale"] = scale
        if clip is None:
            return None
        return (clip / (path_gradient_norm(gradients, kappas) + torch.finfo(gradients.dtype).tiny)).clamp_max(1)

    def _follow(self, model: nn.Module) -> None:
        """Take the names of a model's parameters, and the shape of one input from its next forward pass if need be."""
        self._model = model
        self._names = {id(w): name for name, w in model.named_parameters()}
        if self.param_groups[0]["shape"] is None:
            self._handle = model.register_forward_pre_hook(Watch(self._see))

    def _see(self, model: nn.Module, args: tuple[Any, ...]) -> None:
        if self._handle is not None and args and isinstance(args[0], Tensor):
            for group in self.param_groups:
                group["shape"] = tuple(args[0].shape[1:])
            self._handle.remove()
            self._handle = None

    def _check_groups(self) -> None:
        check_members("PathSGD", self.param_groups, self._model, "so they have no κ")
        self._names = {id(w): name for name, w in self._model.named_parameters()}  # it may have grown
        check_not_negative("PathSGD", self.param_groups, ("lr", "momentum", "weight_decay", "clip"))
        check_clip("PathSGD", self.param_groups)
        every, *_ = [the_same("PathSGD", self.param_groups, name) for name in ("every", "calibrate", "pool")]
        if not is_count(every, 1):
            raise ValueError(f"κ is computed every so many steps, a whole number of at least 1, not {every}")
