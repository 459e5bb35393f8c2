"""Penalties on the weights alone: spectral norms and their product, path norms, weight decay."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from landscope import norms
from landscope.norms import spectral
from landscope.regularizers.draws import Batch, check_counts, check_layers, check_real, check_sizes
from landscope.regularizers.flatness import chosen

WARM_UP = 30  # steps of power iteration at the first call; later ones go on from there
FORMS = ("log", "product")


def spectral_norm(
    *, strength: float = 0.01, conv: str = "reshape", steps: int = 1, layers: tuple[str, ...] | None = None
) -> "Spectral":
    """The penalty (λ/2) Σ_l σ(W_l)² (Yoshida & Miyato 2017, eq. 4), σ the largest singular value of each weight.

    σ = uᵀWv with singular vectors that are kept from call to call and improved by ``steps`` of power iteration each
    time (30 at the first call); the gradient is λσ uvᵀ. This shrinks the norms, unlike `torch.nn.utils`' spectral
    normalisation, which divides by them.

    Args:
        strength: λ.
        conv: ``"reshape"``: a kernel as a matrix [out, in·kernel], as in the paper; ``"exact"``: the convolution as a
            map of its whole input, with its own stride and padding (input sizes are read from the first batch).
        steps: Of power iteration a call.
        layers: Names of linear or convolutional layers; all of them if None.

    Raises:
        ValueError: for a strength below 0 or infinite, fewer than 1 step, an unknown convention.
        TypeError: for settings that are no numbers.

    Cost: two products with each weight (of one input) a step, and their gradient.

    >>> layer = nn.Linear(2, 2)
    >>> with torch.no_grad():
    ...     _ = layer.weight.copy_(torch.diag(torch.tensor([3.0, 1.0])))
    >>> reg = spectral_norm(strength=2.0)
    >>> round(reg(layer, (torch.zeros(1, 2), torch.zeros(1))).item(), 4)
    9.0
    """
    _check("spectral_norm", strength, steps, conv, layers)
    return Spectral(strength, "sum", conv, steps, layers, False)


def spectral_product(
    *,
    strength: float = 0.01,
    form: str = "log",
    conv: str = "exact",
    steps: int = 1,
    layers: tuple[str, ...] | None = None,
    batchnorm: bool = True,
) -> "Spectral":
    """The penalty λ Σ_l log σ_l² or λ Π_l σ_l² (Taborsky & Hansen 2021, eq. 5).

    The paper bounds the largest eigenvalue of the pulled-back output metric by C·Π σ_l². Its σ_l, called the largest
    eigenvalue of W, has to be the largest *singular value* (W is not square), and C = 1 will do for 1-Lipschitz
    activations. Across skip connections the product is no bound.

    Args:
        strength: λ.
        form: ``"log"``: the gradient of each layer is 2λ uvᵀ/σ, whatever the others' size. ``"product"``: eq. 5 itself,
            whose gradient vanishes or explodes with depth.
        conv: As in `spectral_norm`; ``"exact"`` makes it the bound's norm.
        steps: Of power iteration a call.
        layers: Names of the layers in the product; all linear and convolutional ones if None.
        batchnorm: Whether each BatchNorm counts as a layer too, with σ = max_c |γ_c|/√(running variance + ε).

    Raises:
        ValueError: for a strength below 0 or infinite, fewer than 1 step, an unknown form or convention.
        TypeError: for settings that are no numbers.

    Cost: that of `spectral_norm`; an exact step is a forward and a backward pass of one input.

    >>> model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1))
    >>> with torch.no_grad():
    ...     _ = model[0].weight.fill_(2.0), model[2].weight.fill_(-3.0)
    >>> reg = spectral_product(strength=1.0, form="product")
    >>> round(reg(model, (torch.zeros(1, 1), torch.zeros(1))).item(), 3)
    36.0
    """
    if form not in FORMS:
        raise ValueError(f"spectral_product has the forms {' and '.join(map(repr, FORMS))}, not {form!r}")
    _check("spectral_product", strength, steps, conv, layers)
    return Spectral(strength, form, conv, steps, layers, batchnorm)


class Spectral(nn.Module):
    """The penalty of `spectral_norm` and `spectral_product`; its state are the singular vectors of the layers."""

    stackable: bool = False  # a member's vectors are written during the forward pass
    anchor: Tensor

    def __init__(
        self, strength: float, form: str, conv: str, steps: int, layers: tuple[str, ...] | None, batchnorm: bool
    ) -> None:
        super().__init__()
        self.strength: float = strength
        self.form: str = form
        self.exact: bool = conv == "exact"
        self.steps: int = steps
        self.layers: tuple[str, ...] | None = layers
        self.batchnorm: bool = batchnorm
        self.sizes: tuple[tuple[int, ...], dict[str, tuple[int, ...]]] | None = None
        self.register_buffer("anchor", torch.empty(0), persistent=False)  # says on which device the module is

    def forward(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """The penalty; the improved vectors are kept where gradients are recorded, so that logging changes no run.

        Raises:
            LookupError: for ``layers`` that are no linear or convolutional layers of the model.
            ValueError: for a model without such layers.
        """
        squares = [(s * s) for s in self.values(model, batch).values()]
        if self.form == "sum":
            return self.strength / 2 * torch.stack(squares).sum()
        if self.form == "log":
            return self.strength * torch.stack(squares).log().sum()
        return self.strength * math.prod(squares[1:], start=squares[0])

    def values(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """σ of each layer by name, with its graph."""
        layers = self._layers(model)
        shapes = self._shapes(model, batch[0]) if self.exact else {}
        found = {name: self._value(name, layer, shapes.get(name)) for name, layer in layers.items()}
        if self.batchnorm:
            found |= {name: _factor(m) for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
        return found

    def _value(self, name: str, layer: nn.Module, shape: tuple[int, ...] | None) -> Tensor:
        key = _key(name)
        apply, kept = spectral.as_map(layer, shape), self._buffers.get(key)
        fresh = kept is None or kept.shape != torch.Size(spectral.domain(layer, shape))
        v = spectral.start(layer, shape) if fresh or kept is None else kept
        u, v = spectral.power_iteration(apply, v, WARM_UP if fresh else self.steps)
        if torch.is_grad_enabled():
            self.register_buffer(key, v)
        return (u * apply(v)).sum()

    def _layers(self, model: nn.Module) -> dict[str, nn.Module]:
        layers = spectral.weight_layers(model)
        if not layers:
            raise ValueError("the model has no linear or convolutional layers, so there are no spectral norms")
        unknown = [name for name in self.layers or () if name not in layers]
        if unknown:
            raise LookupError(
                f"the model has no linear or convolutional layer called {unknown[0]!r}; it has {', '.join(layers)}"
            )
        return layers if self.layers is None else {name: layers[name] for name in self.layers}

    def _shapes(self, model: nn.Module, inputs: Tensor) -> dict[str, tuple[int, ...]]:
        shape = tuple(inputs.shape[1:])
        if self.sizes is None or self.sizes[0] != shape:
            self.sizes = shape, spectral.input_shapes(model, inputs)
        return self.sizes[1]

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name, vector in state_dict.items():  # the vectors exist after the first call only
            if name.startswith(f"{prefix}vector:"):
                self.register_buffer(name.removeprefix(prefix), torch.empty_like(vector, device=self.anchor.device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _key(layer: str) -> str:
    """A buffer's name, which may hold no dots."""
    return f"vector:{layer.replace('.', ':')}"


def _factor(module: _BatchNorm) -> Tensor:
    """The norm of a BatchNorm on its running statistics."""
    variance = module.running_var
    if variance is None:
        raise ValueError("a BatchNorm without running statistics has no norm: use batchnorm=False")
    scale = torch.rsqrt(variance + module.eps)
    return (scale if module.weight is None else module.weight.abs() * scale).max()


def _check(owner: str, strength: float, steps: int, conv: str, layers: tuple[str, ...] | None) -> None:
    check_sizes(owner, strength=strength)
    check_counts(owner, steps=steps)
    check_layers(owner, layers)
    spectral.check_convention(conv)


def path_norm(*, strength: float = 1e-4, p: float = 2.0, log: bool = False) -> "PathNorm":
    """The penalty λ γ_p^p = λ Σ over paths Π |w_e|^p (Neyshabur, Tomioka & Srebro 2015), or λ log γ_p^p.

    No node-wise rescaling of the weights changes it. Conventions (biases, pooling, BatchNorm) are those of
    `landscope.norms.path_norm`, which computes it by one forward pass of one input of ones.

    Args:
        strength: λ.
        p: The exponent, above 0; 2 is Path-SGD's.
        log: Whether to take the logarithm, whose gradient does not grow with depth.

    Raises:
        ValueError: for a strength below 0, p not above 0, infinite ones.
        TypeError: for settings that are no numbers.

    Cost: a forward and a backward pass of one input.

    >>> net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
    >>> with torch.no_grad():
    ...     _ = net[0].weight.copy_(torch.tensor([[3.0, -4.0]])), net[2].weight.fill_(2.0)
    >>> round(path_norm(strength=1.0)(net, (torch.zeros(1, 2), torch.zeros(1))).item(), 3)
    100.0
    """
    check_sizes("path_norm", strength=strength)
    check_sizes("path_norm", positive=True, p=p)
    return PathNorm(strength, p, log)


class PathNorm(nn.Module):
    """The penalty of `path_norm`."""

    stackable: tuple[str, ...] = ("strength",)

    def __init__(self, strength: float, p: float, log: bool) -> None:
        super().__init__()
        self.strength: float = strength
        self.p: float = p
        self.log: bool = log

    def forward(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """The penalty; where all paths are cut (γ = 0), its gradient is 0, and the logarithm that of the least number.

        Raises:
            ValueError: for a network that cannot be followed, naming the module.
        """
        paths = norms.path_sum(model, tuple(batch[0].shape[1:]), p=self.p)
        return self.strength * (paths.clamp_min(torch.finfo(paths.dtype).tiny).log() if self.log else paths)


def weight_decay(*, strength: float = 1e-4, layers: tuple[str, ...] | None = None) -> "WeightDecay":
    """The penalty (λ/2) Σ w² over all trained parameters: coupled weight decay, as an optimizer's ``weight_decay``.

    Its gradient λw passes through the optimizer's momentum and preconditioner; `decoupled_weight_decay` does not.

    Args:
        strength: λ.
        layers: Names of modules or parameters; all that are trained if None (biases and BatchNorm's included).

    Raises:
        ValueError: for a strength below 0 or infinite.
        TypeError: for settings that are no numbers.

    >>> layer = nn.Linear(1, 1)
    >>> with torch.no_grad():
    ...     _ = layer.weight.fill_(3.0), layer.bias.fill_(4.0)
    >>> weight_decay(strength=0.1)(layer, (torch.zeros(1, 1), torch.zeros(1))).item()
    1.25
    """
    check_sizes("weight_decay", strength=strength)
    check_layers("weight_decay", layers)
    return WeightDecay(strength, layers)


class WeightDecay(nn.Module):
    """The penalty of `weight_decay`."""

    stackable: tuple[str, ...] = ("strength",)

    def __init__(self, strength: float, layers: tuple[str, ...] | None) -> None:
        super().__init__()
        self.strength: float = strength
        self.layers: tuple[str, ...] | None = layers

    def forward(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """The penalty.

        Raises:
            LookupError: for ``layers`` that the model does not have.
        """
        squares = [w.square().sum() for w in chosen(model, self.layers).values()]
        return self.strength / 2 * torch.stack(squares).sum()


@torch.no_grad()
def decoupled_weight_decay(model: nn.Module, /, *, rate: float, layers: tuple[str, ...] | None = None) -> None:
    """Decoupled weight decay (Loshchilov & Hutter 2019), in place: w ← (1 − rate)·w for all trained parameters.

    Call it after ``optimizer.step()``, or give it as a Recipe's ``constraint``. ``rate`` is what a step takes off:
    AdamW's is learning rate times its ``weight_decay``.

    Args:
        model: The network.
        rate: The share taken off a step, in [0, 1].
        layers: Names of modules or parameters; all that are trained if None.

    Raises:
        ValueError: for a rate outside [0, 1].
        TypeError: for settings that are no numbers.
        LookupError: for ``layers`` that the model does not have.
    """
    check_real("decoupled_weight_decay", rate=rate)
    if not 0 <= rate <= 1:
        raise ValueError(f"a step of weight decay takes off a share in [0, 1] of the weights, not {rate}")
    check_layers("decoupled_weight_decay", layers)
    for w in chosen(model, layers).values():
        w.mul_(1 - rate)
