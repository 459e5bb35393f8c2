"""Noise as terms of the loss: on inputs, activations, weights, gradients and labels.

``loss + reg(model, batch)`` with strength 1 is the loss under noise itself: the term is the loss with noise minus the
loss without. ``reg.objective(model, batch)`` is the same sum without computing what cancels.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from landscope.models import called, evaluating
from landscope.regularizers.draws import Batch, Draws, Loss, check_layers, check_real, check_sizes, criterion, passed
from landscope.regularizers.flatness import chosen
from landscope.regularizers.products import uncompiled, unwrapped
from landscope.regularizers.replacing import Replacing
from landscope.spec import Call

ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Mish)


def input_noise(
    *, sd: float = 0.1, strength: float = 1.0, loss: Call | Loss | None = None, seed: int | None = None
) -> "Noise":
    """The loss with inputs x + ξ, ξ ~ N(0, sd²), in a share ``strength`` of the objective.

    To second order in sd it adds ½ sd² Tr ∇²_x L (Bishop 1995: Tikhonov regularisation at a good fit).

    Args:
        sd: Standard deviation, in the units of the inputs.
        strength: s in (1 − s)·L(x) + s·L(x + ξ); 1 is training with noise.
        loss: ``call(function)`` that gives ``loss(outputs, targets)``, or that function; cross-entropy if None.
        seed: Of the noise where no trainer draws it; None draws from torch's global generator.

    Raises:
        ValueError: for an sd or strength below 0 or infinite.
        TypeError: for settings that are no numbers.

    Cost: one more forward and backward pass; none with ``objective`` at strength 1.
    """
    return Noise("inputs", sd, strength, loss, seed)


def activation_noise(
    *,
    sd: float = 0.1,
    layers: tuple[str, ...] | None = None,
    strength: float = 1.0,
    loss: Call | Loss | None = None,
    seed: int | None = None,
) -> "Noise":
    """The loss with N(0, sd²) added to the outputs of some modules, in a share ``strength`` of the objective.

    Args:
        sd: Standard deviation, in the units of the activations.
        layers: Names of modules (of those inside `torch.compile`); every activation module (ReLU and its like) if None.
        strength: As in `input_noise`.
        loss: As in `input_noise`.
        seed: As in `input_noise`.

    Raises:
        ValueError: for an sd or strength below 0 or infinite.
        TypeError: for settings that are no numbers.

    Cost: that of `input_noise`, and a forward pass of one sample where the batch's shape is new.
    """
    return Noise("activations", sd, strength, loss, seed, layers)


def weight_noise(
    *,
    sd: float = 0.01,
    relative: bool = False,
    layers: tuple[str, ...] | None = None,
    strength: float = 1.0,
    loss: Call | Loss | None = None,
    seed: int | None = None,
) -> "Noise":
    """The loss at w + ξ, in a share ``strength`` of the objective; to second order in sd it adds ½ sd² Tr H.

    BatchNorm's running statistics are not moved by the pass with noise.

    Args:
        sd: Standard deviation of ξ; of ξ/|w| where ``relative``.
        relative: Whether the noise of each weight is proportional to its size.
        layers: Names of modules or parameters; all that are trained if None.
        strength: As in `input_noise`.
        loss: As in `input_noise`.
        seed: As in `input_noise`.

    Raises:
        ValueError: for an sd or strength below 0 or infinite.
        TypeError: for settings that are no numbers.

    Cost: that of `input_noise`, and a normal number for each weight: more than a plain step for wide layers.
    """
    return Noise("relative weights" if relative else "weights", sd, strength, loss, seed, layers)


@final
class Noise(Replacing):
    """The term of `input_noise`, `activation_noise` and `weight_noise`."""

    stackable: tuple[str, ...] = ("sd", "strength")

    def __init__(
        self,
        where: str,
        sd: float,
        strength: float,
        loss: Call | Loss | None,
        seed: int | None,
        layers: tuple[str, ...] | None = None,
    ) -> None:
        check_sizes("noise", sd=sd, strength=strength)
        check_layers("noise", layers)
        super().__init__(strength, criterion(loss), Draws(seed, where))
        self.where: str = where
        self.sd: float = sd
        self.layers: tuple[str, ...] | None = layers
        self.sizes: dict[tuple[int, ...], dict[str, tuple[int, ...]]] = {}

    def draw(self, model: nn.Module, batch: Batch, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        """Standard normal numbers for one step, for ``drawn=``."""
        if self.where == "inputs":
            return (_normal(batch[0], batch[0].shape, generator),)
        if self.where == "activations":
            shapes = self._shapes(model, batch[0]).values()
            like = next(model.parameters(), batch[0])
            return tuple(_normal(like, (len(batch[0]), *shape), generator) for shape in shapes)
        return tuple(_normal(w, w.shape, generator) for w in chosen(model, self.layers).values())

    def _other(self, model: nn.Module, batch: Batch, drawn: Sequence[Tensor] | None, *, alone: bool = False) -> Tensor:
        inputs, targets = batch
        if drawn is None:
            drawn = self.draw(model, batch, self.draws.next(inputs.device))
        buffers = {} if alone else {name: buffer.clone() for name, buffer in model.named_buffers()}
        if self.where == "inputs":
            return self.loss(called(model, buffers, inputs + self.sd * drawn[0]), targets)
        if self.where == "activations":
            names = list(self._shapes(model, inputs))
            with _added(model, {name: self.sd * d for name, d in zip(names, drawn, strict=True)}):
                return self.loss(called(model, buffers, inputs), targets)
        weights = {}
        for (name, w), d in zip(chosen(model, self.layers).items(), drawn, strict=True):
            weights[name] = w + self.sd * (w.abs() * d if self.where == "relative weights" else d)
        return self.loss(called(model, {**buffers, **weights}, inputs), targets)

    def _shapes(self, model: nn.Module, inputs: Tensor) -> dict[str, tuple[int, ...]]:
        """The shapes of what the chosen modules put out, without the batch dimension, in the order of the names."""
        key = tuple(inputs.shape[1:])
        if key not in self.sizes:
            names = _modules(model, self.layers)
            self.sizes[key] = _output_shapes(model, names, inputs, named=self.layers is not None)
        return self.sizes[key]


def _modules(model: nn.Module, layers: tuple[str, ...] | None) -> list[str]:
    names = dict(unwrapped(model).named_modules())
    if layers is None:
        found = [name for name, module in names.items() if isinstance(module, ACTIVATIONS)]
        if not found:
            raise LookupError(
                "the model has no activation modules (ReLU and its like): name the layers to put noise on"
            )
        return found
    unknown = [name for name in layers if name not in names]
    if unknown:
        raise LookupError(f"the model has no module called {unknown[0]!r}; it has {', '.join(filter(None, names))}")
    return list(layers)


@torch.no_grad()
def _output_shapes(model: nn.Module, names: list[str], inputs: Tensor, *, named: bool) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    modules = dict(unwrapped(model).named_modules())

    def note(name: str) -> Any:
        return lambda module, given, output: found.__setitem__(name, tuple(output.shape[1:]))

    handles = [modules[name].register_forward_hook(note(name)) for name in names]
    try:
        with evaluating(model), uncompiled(model):
            model(inputs[:1])
    finally:
        for handle in handles:
            handle.remove()
    missed = [name for name in names if name not in found]
    if missed and (named or not found):
        raise LookupError(
            f"a forward pass does not call the module {missed[0]!r}, so there is no output to put noise on: "
            "name other layers"
        )
    return {name: found[name] for name in names if name in found}


@contextmanager
def _added(model: nn.Module, noise: dict[str, Tensor]) -> Iterator[None]:
    """Inside, the named modules' outputs have noise added; compiled ones run as written, whose graphs see no hooks."""
    modules = dict(unwrapped(model).named_modules())

    def adding(extra: Tensor) -> Any:
        return lambda module, given, output: output + extra

    handles = [modules[name].register_forward_hook(adding(extra)) for name, extra in noise.items()]
    try:
        with uncompiled(model):
            yield
    finally:
        for handle in handles:
            handle.remove()


def gradient_noise(
    *, sd: float = 0.01, decay: float = 0.55, layers: tuple[str, ...] | None = None, seed: int | None = None
) -> "GradientNoise":
    """Adds ξ ~ N(0, sd²/(1 + t)^decay) to the gradient at step t (Neelakantan et al. 2015, eq. 1).

    The term is Σ ξ·(w − w₀) with w₀ the weights as they stand: its value is 0 and its gradient exactly ξ. With
    decay 0 the noise stays as it is.

    Args:
        sd: Standard deviation at the first step; the paper's η is sd².
        decay: The exponent; 0.55 in the paper.
        layers: Names of modules or parameters; all that are trained if None.
        seed: Of the noise where no trainer draws it; None draws from torch's global generator.

    Raises:
        ValueError: for an sd or decay below 0 or infinite.
        TypeError: for settings that are no numbers.

    Cost: a normal number for each weight.
    """
    check_sizes("gradient_noise", sd=sd, decay=decay)
    check_layers("gradient_noise", layers)
    return GradientNoise(sd, decay, layers, seed)


class GradientNoise(nn.Module):
    """The term of `gradient_noise`; its state is the step."""

    stackable: tuple[str, ...] = ("sd",)
    step: Tensor

    def __init__(self, sd: float, decay: float, layers: tuple[str, ...] | None, seed: int | None) -> None:
        super().__init__()
        self.sd: float = sd
        self.decay: float = decay
        self.layers: tuple[str, ...] | None = layers
        self.draws: Draws = Draws(seed, "gradients")
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def draw(self, model: nn.Module, batch: Batch, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        """Normal numbers for one step, for ``drawn=``, with the step's share of sd; each call is one step."""
        share = (1 + int(self.step)) ** (-self.decay / 2)
        self.step += 1
        return tuple(share * _normal(w, w.shape, generator) for w in chosen(model, self.layers).values())

    def forward(self, model: nn.Module, batch: Batch, *, drawn: Sequence[Tensor] | None = None) -> Float[Tensor, ""]:
        """0, with the noise as its gradient.

        Raises:
            LookupError: for ``layers`` that the model does not have.
        """
        if drawn is None:
            step = self.step.clone()
            drawn = self.draw(model, batch, self.draws.next(batch[0].device))
            if not torch.is_grad_enabled():  # a look at the value is no step
                self.step.copy_(step)
        weights = chosen(model, self.layers).values()
        return self.sd * torch.stack([((w - w.detach()) * d).sum() for w, d in zip(weights, drawn, strict=True)]).sum()


def label_noise(
    *, p: float = 0.1, strength: float = 1.0, loss: Call | Loss | None = None, seed: int | None = None
) -> "LabelNoise":
    """The loss with labels drawn anew at every step: with probability p a label is replaced by a uniform one.

    A replaced label may be the true one, so that p(K − 1)/K of them are wrong. For cross-entropy the mean over the
    noise is label smoothing with p. (Labels that are wrong throughout training are the data's: see `landscope.data`.)

    Args:
        p: The share of labels replaced, in [0, 1].
        strength: s in (1 − s)·L(y) + s·L(ỹ).
        loss: As in `input_noise`.
        seed: As in `input_noise`.

    Raises:
        ValueError: for p outside [0, 1] or a strength below 0 or infinite.
        TypeError: for settings that are no numbers.

    Cost: the loss of the outputs, once more.
    """
    check_real("label_noise", p=p)
    if not 0 <= p <= 1:
        raise ValueError(f"label noise replaces a share p in [0, 1] of the labels, not {p}")
    check_sizes("label_noise", strength=strength)
    return LabelNoise(p, strength, loss, seed)


class LabelNoise(nn.Module):
    """The term of `label_noise`."""

    stackable: tuple[str, ...] = ("p", "strength")

    def __init__(self, p: float, strength: float, loss: Call | Loss | None, seed: int | None) -> None:
        super().__init__()
        self.p: float = p
        self.strength: float = strength
        self.loss: Loss = criterion(loss)
        self.draws: Draws = Draws(seed, "labels")

    def draw(self, model: nn.Module, batch: Batch, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Two uniform numbers a sample, for ``drawn=``: whether its label is replaced (below p), and by which class."""
        options: dict[str, Any] = {"dtype": torch.float64, "generator": generator, "device": batch[0].device}
        if batch[0].device.type == "mps":
            options["dtype"] = torch.float32
        return torch.rand(len(batch[0]), **options), torch.rand(len(batch[0]), **options)

    def forward(
        self,
        model: nn.Module,
        batch: Batch,
        *,
        outputs: Tensor | None = None,
        drawn: Sequence[Tensor] | None = None,
    ) -> Float[Tensor, ""]:
        """The term, strength · (loss with the noisy labels − loss with the given ones).

        Raises:
            TypeError: for targets that are no class indices.
        """
        inputs, targets = batch
        if targets.is_floating_point() or targets.dim() != 1:
            raise TypeError(
                f"label noise replaces class indices [n], not {targets.dtype} of shape {list(targets.shape)}"
            )
        made: Tensor = passed(model, inputs) if outputs is None else outputs
        drawn = self.draw(model, batch, self.draws.next(inputs.device)) if drawn is None else drawn
        classes = made.shape[1]
        other = (drawn[1] * classes).long().clamp_max(classes - 1).to(targets.dtype)
        noisy = torch.where(drawn[0] < self.p, other, targets)
        return self.strength * (self.loss(made, noisy) - self.loss(made, targets))


def _normal(like: Tensor, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    dtype = like.dtype if like.is_floating_point() else torch.float32
    return torch.randn(shape, dtype=dtype, device=like.device, generator=generator)
