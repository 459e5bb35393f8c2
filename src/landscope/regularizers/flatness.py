"""The flatness penalty Tr(H²)/B: exact gradients of an unbiased estimate from a few probes."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from landscope.losses import check_targets
from landscope.models.contexts import transformed
from landscope.regularizers import chain, folds, products
from landscope.regularizers.bilinear import Watch
from landscope.regularizers.draws import Batch, Draws, check_counts, check_layers, check_real, check_sizes, criterion
from landscope.spec import Call

MATRICES = ("hessian", "ggn")
EVERY = 2  # of five settings the cheapest that pilots found to end where every step does: docs/methods/flatness.md
FEWEST = 4  # samples of a share: two for each of its halves


def flatness(
    *,
    strength: float = 0.01,
    probes: int = 1,
    every: int = EVERY,
    spread: bool = False,
    share: float = 1.0,
    matrix: str = "hessian",
    layers: tuple[str, ...] | None = None,
    unbiased: bool = False,
    loss: Call | Callable[[Tensor, Tensor], Tensor] | None = None,
    seed: int | None = None,
) -> "Flatness":
    """The penalty λ·Tr(H²)/B of a batch (eq. 1 of the flatness-aware paper); call it: ``loss + reg(model, batch)``.

    H is the Hessian of the batch's mean loss and B the batch's size. Tr(H²) = E‖Hv‖² over directions v of mean 0 and
    covariance 1 (Hutchinson); ‖Hv‖² is differentiated exactly.

    Directions and images are folded to few rows (`landscope.regularizers.folds`), which keeps the estimate unbiased.
    **Linear layers with activations in between** (ReLU, leaky ReLU, tanh, sigmoid, softplus) are done in closed form:
    see `landscope.regularizers.chain`. Given ``outputs=``, what the forward pass kept is read from its graph, and one
    backward pass serves loss and penalty. All other networks make a forward pass in which linear and convolutional
    layers have cheap derivatives (`landscope.regularizers.bilinear`); `objective` makes it the loss's own.

    With a ``share`` below 1 two halves a and b of that share of the batch are taken, k and l of its n samples. The sum

        (1 − (k + l)/2n) u_a·u_b + (k|u_a|² + l|u_b|²)/2n,        u_a = H_a v, u_b = H_b v,

    has expectation Tr(H²) of the *whole* batch over the choice of samples (BatchNorm in training mode apart, which has
    other statistics in each half). One draw of it may be negative.

    A batch's Tr(H²) is above that of the whole data set, by the trace of the covariance of the batch's Hessian.
    ``unbiased`` takes u_a·u_b alone, with expectation Tr(H²) of the distribution the samples come from, whatever the
    batch's size.

    Dropout is off for the penalty; BatchNorm is as the model's mode says, its running statistics left alone.

    Args:
        strength: λ.
        probes: Directions v, averaged.
        every: The penalty is computed at the 1st, (every + 1)-th, … step.
        spread: What happens in between. False: nothing, and the penalty counts ``every`` times where it is computed.
            True: its gradient is kept and added at each of the ``every`` steps, which an adaptive optimizer does not
            mistake for bursts, but an old gradient may throw a run off where the penalty outweighs the loss. Neither
            ends exactly where ``every=1`` does, and the farther off the stronger the penalty is (figures in
            docs/methods/flatness.md).
        share: Of the batch's samples that are looked at, chosen at random at each step, at least 4. The estimate is
            still unbiased for the whole batch's Tr(H²): see above. 1 is H of the whole batch itself.
        matrix: ``"hessian"``, or ``"ggn"``: the generalised Gauss-Newton matrix JᵀMJ, M the loss's Hessian in the
            outputs.
        layers: Names of modules or parameters; H is taken in their parameters alone. All that are trained, if None.
        unbiased: Whether two halves of the batch are taken.
        loss: ``call(function)`` that gives ``loss(outputs, targets)``, or that function; the mean over the batch.
            Cross-entropy if None.
        seed: Of the directions where no trainer draws them; None draws from torch's global generator.

    Raises:
        ValueError: for a strength below 0 or infinite, fewer than 1 probe or step, a share outside (0, 1], an unknown
            matrix, a loss that is no mean over the batch.
        TypeError: for numbers of probes or steps that are not whole, a strength or share that is no number.

    Cost: of the samples looked at, 12 passes of each hidden layer against the 3 of a plain step, and some of 16 rows.
    Figures for whole networks are in docs/methods/flatness.md.

    H of (w·x)², one sample x = (1, 2), is 2xxᵀ whatever w, so Tr(H²) = 4‖x‖⁴ = 100, the mean over all signs v:

    >>> from landscope.losses import squared_error
    >>> from landscope.spec import call
    >>> reg = flatness(strength=1.0, every=1, probes=2, loss=call(squared_error))
    >>> model, batch = nn.Linear(2, 1, bias=False), (torch.tensor([[1.0, 2.0]]), torch.zeros(1, 1))
    >>> round(reg(model, batch, drawn=(torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, -1.0]]))).item(), 3)
    100.0
    """
    check_counts("flatness", probes=probes, every=every)
    check_sizes("flatness", strength=strength)
    check_real("flatness", share=share)
    if matrix not in MATRICES:
        raise ValueError(f"flatness knows the matrices {' and '.join(map(repr, MATRICES))}, not {matrix!r}")
    if not 0 < share <= 1:
        raise ValueError(f"flatness looks at a share in (0, 1] of each batch, not {share}")
    check_layers("flatness", layers)
    budget = probes, every, share
    return Flatness(strength, budget, spread, matrix == "ggn", layers, unbiased, criterion(loss), seed)


class Flatness(nn.Module):
    """The penalty of `flatness`, which makes it.

    Its state is where in the cycle of ``every`` steps it stands and, where the gradient is spread, that gradient.
    """

    step: Tensor
    value: Tensor

    def __init__(
        self,
        strength: float,
        budget: tuple[int, int, float],
        spread: bool,
        ggn: bool,
        layers: tuple[str, ...] | None,
        halves: bool,
        loss: Callable[[Tensor, Tensor], Tensor],
        seed: int | None,
    ) -> None:
        super().__init__()
        self.strength: float = strength
        self.probes: int
        self.every: int
        self.share: float
        self.probes, self.every, self.share = budget
        self.spread: bool = spread and self.every > 1
        # The gradient that is kept is written during the forward pass, which no population can.
        self.stackable: tuple[str, ...] | bool = ("strength",) if not self.spread else False
        self.ggn: bool = ggn
        self.layers: tuple[str, ...] | None = layers
        self.halves: bool = halves
        self.loss: Callable[[Tensor, Tensor], Tensor] = loss
        self.draws: Draws = Draws(seed, "flatness")
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def draw(self, model: nn.Module, batch: Batch, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        """The directions of one optimizer step, for ``drawn=``; an empty tuple at the steps without the penalty.

        Below them, where not all of the batch is looked at, the samples that are.

        Each call is one step of the cycle of ``every`` steps. An optimizer that takes several gradients a step (SAM)
        is so given the penalty in all of them or none.
        """
        turn = int(self.step) % self.every
        self.step += 1
        if turn:
            return ()
        model = products.unwrapped(model)
        drawn, n = folds.draw(model, chosen(model, self.layers), self.probes, generator), len(batch[0])
        some = self._some(n)
        if some == n:
            return drawn
        return *drawn, torch.randperm(n, generator=generator, device=batch[0].device)[:some]

    def forward(
        self,
        model: nn.Module,
        batch: Batch,
        *,
        outputs: Tensor | None = None,
        drawn: Sequence[Tensor] | None = None,
        made: tuple[Watch, Tensor] | None = None,
    ) -> Float[Tensor, ""]:
        """The penalty λ·Tr(H²)/B.

        At the steps at which it is not computed: with ``spread`` the last value, with the last gradient, else 0 (and
        ``every`` times the penalty at the others). Where no gradients are recorded it is the value alone, and neither
        the cycle of steps nor the gradient that is kept changes: logging it leaves a run as it is.

        Args:
            model: The network; its parameters' ``.grad`` are not touched.
            batch: Inputs and targets, the loss's batch of this step.
            outputs: The network's outputs on the batch with their graph, where they are already computed.
            drawn: What `draw` gave; drawn here if None.
            made: The loss's own pass as `objective` makes it, watched.

        Raises:
            LookupError: for ``layers`` that the model does not have.
            ValueError: for a batch without samples, of fewer than 2 where ``unbiased``, or with targets that the loss
                leaves out of its mean.
            RuntimeError: with ``spread`` inside a `torch.func` transform.
        """
        if not torch.is_grad_enabled():
            return self._seen(model, batch, outputs, drawn)
        drawn = self._drawn(model, batch) if drawn is None else drawn
        if not drawn:
            return self._kept(products.unwrapped(model))
        penalty = self._penalty(model, batch, outputs, drawn, made)
        if not self.spread:
            return self.strength * self.every * penalty
        self._keep(products.unwrapped(model), self.strength * penalty)
        return self._kept(products.unwrapped(model))

    def _seen(
        self, model: nn.Module, batch: Batch, outputs: Tensor | None, drawn: Sequence[Tensor] | None
    ) -> Float[Tensor, ""]:
        """What the step would give, without a gradient and without making the step."""
        with torch.inference_mode(False), torch.no_grad():
            if drawn is None:
                step = int(self.step)
                drawn = self._drawn(model, batch)
                self.step.fill_(step)
            if not drawn:
                return self._kept(products.unwrapped(model)).detach()
            batch = _recordable(batch[0]), _recordable(batch[1])
            with torch.enable_grad():  # H is made of derivatives, whatever the mode outside
                penalty = self._penalty(model, batch, outputs, tuple(map(_recordable, drawn)))
        return self.strength * (1 if self.spread else self.every) * penalty.detach()

    def _drawn(self, model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
        due = int(self.step) % self.every == 0
        return self.draw(model, batch, self.draws.next(batch[0].device) if due else None)

    def _penalty(
        self,
        model: nn.Module,
        batch: Batch,
        outputs: Tensor | None,
        drawn: Sequence[Tensor],
        made: tuple[Watch, Tensor] | None = None,
    ) -> Float[Tensor, ""]:
        """The estimate of Tr(H²)/B."""
        if not len(batch[0]):
            raise ValueError("flatness needs a batch of at least 1 sample, not an empty one: leave it out")
        if self.halves and len(batch[0]) < 2:
            raise ValueError("flatness(unbiased=True) cuts a batch into two halves: it needs at least 2 samples, not 1")
        return self.trace(model, batch, outputs=outputs, drawn=drawn, made=made) / len(batch[0])

    def _keep(self, model: nn.Module, penalty: Tensor) -> None:
        weights = chosen(model, None)
        if transformed(penalty, *weights.values()):
            raise RuntimeError(
                "flatness keeps a gradient, which no torch.func transform can: set spread=False or every=1"
            )
        if not penalty.requires_grad:  # the loss is quadratic
            found = tuple(torch.zeros_like(w) for w in weights.values())
        else:
            # The graph is kept because the loss may share it.
            found = torch.autograd.grad(penalty, list(weights.values()), retain_graph=True, materialize_grads=True)
        self.register_buffer("value", penalty.detach())
        for name, gradient in zip(weights, found, strict=True):
            self.register_buffer(_key(name), gradient)

    def _kept(self, model: nn.Module) -> Tensor:
        """The value and gradient that are kept, as a scalar whose derivative is that gradient; 0 where none are."""
        if "value" not in self._buffers:
            return next(model.parameters()).new_zeros(())
        weights = chosen(model, None)
        unknown = [name for name in weights if _key(name) not in self._buffers]
        if unknown:
            raise LookupError(
                f"the gradient that flatness keeps has no part for {unknown[0]!r}: make one regularizer for each model"
            )
        return _Linear.apply(self.value, *(self._buffers[_key(name)] for name in weights), *weights.values())

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name, kept in state_dict.items():  # they exist after the first call only
            if name == f"{prefix}value" or name.startswith(f"{prefix}gradient:"):
                self.register_buffer(name.removeprefix(prefix), torch.empty_like(kept, device=self.step.device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def objective(
        self,
        model: nn.Module,
        batch: Batch,
        *,
        drawn: Sequence[Tensor] | None = None,
    ) -> Float[Tensor, ""]:
        """The loss plus the penalty, with one forward pass and one graph: the cheapest way to have both."""
        if drawn is None and torch.is_grad_enabled():
            drawn = self._drawn(model, batch)
        weights, made = chosen(products.unwrapped(model), self.layers), None
        if drawn and self._one_pass(model, weights, batch):
            parts = list(folds.parts(model, weights, drawn))
            made = products.watched(model, weights, parts, lambda: model(batch[0]))
        outputs = model(batch[0]) if made is None else made[1]
        return self.loss(outputs, batch[1]) + self(model, batch, outputs=outputs, drawn=drawn, made=made)

    def _one_pass(self, model: nn.Module, weights: products.Weights, batch: Batch) -> bool:
        """Whether the loss's own forward pass can be the penalty's, layers being replaced in it."""
        whole = len(self._cuts(len(batch[0]))[0]) == 1 and not products.drops(model) and torch.is_grad_enabled()
        known = whole and not products.compiled(model) and products.watchable(weights, batch[0])
        return known and chain.chain_of(model, weights, dims=batch[0].dim()) is None

    def trace(
        self,
        model: nn.Module,
        batch: Batch,
        *,
        outputs: Tensor | None = None,
        drawn: Sequence[Tensor],
        made: tuple[Watch, Tensor] | None = None,
    ) -> Float[Tensor, ""]:
        """The estimate of Tr(H²) of a batch itself, from given directions, with its graph."""
        if not transformed(batch[1]):
            check_targets(self.loss, batch[1])
        inner = products.unwrapped(model)
        if products.compiled(model):  # a compiled forward pass has a graph that cannot be differentiated twice
            model, outputs = inner, None
        weights, (rows, counts) = chosen(model, self.layers), self._cuts(len(batch[0]))
        taken = None
        if self._some(len(batch[0])) < len(batch[0]):
            *drawn, taken = drawn
            batch = batch[0].index_select(0, taken), batch[1].index_select(0, taken)
        parts = list(folds.parts(model, weights, drawn))
        layers = chain.chain_of(model, weights, dims=batch[0].dim())
        if layers is None:
            some = [(batch[0][r], batch[1][r]) if len(rows) > 1 else batch for r in rows]
            each = [products.images(model, weights, b, self.loss, parts, ggn=self.ggn, made=made) for b in some]
        else:
            each = self._chained(model, layers, batch, outputs, parts, rows, taken)
        found = []
        for i in range(len(parts)):
            u = torch.stack([torch.cat([part.flatten() for part in images[i]]) for images in each])
            found.append((u.new_tensor(counts) * (u @ u.T)).sum())
        return torch.stack(found).mean()

    def _some(self, n: int) -> int:
        """How many samples are looked at."""
        return min(n, max(FEWEST, round(self.share * n)))

    def _cuts(self, n: int) -> tuple[list[slice], list[list[float]]]:
        """The ranges of samples that are looked at, and what the products of their images count.

        With D the mean of Tr(H_i²) over single samples and O that of Tr(H_i H_j) over pairs, Tr(H²) of n samples is
        O·(1 − 1/n) + D/n. Two halves of k and l samples have E u_a·u_b = O and E|u_a|² = O·(1 − 1/k) + D/k.
        """
        some = self._some(n)
        if some == n and not self.halves:
            return [slice(0, n)], [[1.0]]
        rows = [slice(0, some // 2), slice(some // 2, some)]
        if self.halves:
            return rows, [[0.0, 0.5], [0.5, 0.0]]
        first, second = (r.stop - r.start for r in rows)
        across = (1 - some / (2 * n)) / 2
        return rows, [[first / (2 * n), across], [across, second / (2 * n)]]

    def _chained(
        self,
        model: nn.Module,
        layers: tuple[chain.Layer, ...],
        batch: Batch,
        outputs: Tensor | None,
        parts: products.Parts,
        rows: Sequence[slice],
        taken: Tensor | None,
    ) -> list[list[list[Tensor]]]:
        """For each range of samples and probe the images; the outputs are of more samples than those taken."""
        inputs, targets = batch
        seen = None if outputs is None else chain.found_in(layers, outputs)
        if seen is None or outputs is None:
            with products.uncompiled(model):
                seen, outputs = chain.forward(layers, inputs)
        elif taken is not None:
            seen, outputs = [h.index_select(0, taken) for h in seen], outputs.index_select(0, taken)
        of = chain.shared(layers, seen, outputs)
        found = [chain.images(of, targets, self.loss, each, rows, ggn=self.ggn) for each in parts]
        return [[list(images[i].values()) for images in found] for i in range(len(rows))]


class _Linear(torch.autograd.Function):
    """A given value with a given gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *gradient_and_weights: Tensor) -> Tensor:
        ctx.gradient = gradient_and_weights[: len(gradient_and_weights) // 2]
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (g,) = grad_outputs
        # A pass over memory as large as the weights is a good part of a plain step; 1 is what the loss itself has.
        one = g.device.type == "cpu" and g.item() == 1
        return None, *[None] * len(ctx.gradient), *(part if one else g * part for part in ctx.gradient)


def _recordable(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of one that was made in inference mode, which autograd refuses."""
    return tensor.clone() if tensor.is_inference() else tensor


def _key(parameter: str) -> str:
    """A buffer's name, which may hold no dots."""
    return f"gradient:{parameter.replace('.', ':')}"


def chosen(model: nn.Module, layers: tuple[str, ...] | None) -> Mapping[str, Tensor]:
    """The trained parameters by name, of the modules or parameters that are named, or all.

    Raises:
        LookupError: for a name that the model does not have, or that has no trained parameters.
        ValueError: for a model without trained parameters.
    """
    trained = {name: w for name, w in model.named_parameters() if w.requires_grad}
    if not trained:
        raise ValueError("the model has no parameters that are trained: give one with some of requires_grad=True")
    if layers is None:
        return trained
    found: set[str] = set()
    for layer in layers:
        inside = {name for name in trained if name == layer or name.startswith(f"{layer}.") or not layer}
        if not inside:
            known = sorted({name.rpartition(".")[0] for name in trained})
            near = difflib.get_close_matches(layer, [*known, *trained], n=1)
            meant = f" (did you mean {near[0]!r}?)" if near else ""
            raise LookupError(
                f"the model has no trained parameters in a module called {layer!r}{meant}; it has {', '.join(known)}"
            )
        found |= inside
    return {name: w for name, w in trained.items() if name in found}
