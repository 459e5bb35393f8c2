"""Local entropy, Entropy-SGD's objective, as a term of the loss."""

from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor, nn

from landscope.models import called
from landscope.models.contexts import transformed
from landscope.regularizers.draws import Batch, Draws, Loss, check_counts, check_real, check_sizes, criterion
from landscope.regularizers.flatness import chosen
from landscope.regularizers.replacing import Replacing
from landscope.spec import Call


def local_entropy(
    *,
    gamma: float = 0.03,
    steps: int = 20,
    lr: float = 0.1,
    noise: float = 1e-4,
    averaging: float = 0.75,
    strength: float = 1.0,
    loss: Call | Loss | None = None,
    seed: int | None = None,
) -> "LocalEntropy":
    """The negative local entropy F(w) = −log ∫ exp(−L(w') − (γ/2)‖w − w'‖²) dw' (Chaudhari et al. 2017, eq. 3).

    Its gradient is γ(w − ⟨w'⟩), ⟨⟩ over the density under the integral, estimated by ``steps`` of Langevin dynamics
    from w: w' ← w' − η'(∇L(w') + γ(w' − w)) + ε√(2η')·N(0, 1), ⟨w'⟩ ← α⟨w'⟩ + (1 − α)w'. With ε = 1 the noise is that
    of the density itself; ε = 1e-4 (the paper's code) is nearly a minimisation. At strength 1
    ``loss + reg(model, batch)`` has exactly the gradient γ(w − ⟨w'⟩), and so has ``reg.objective(model, batch)``, which
    computes no more than that.

    Differences to the optimizer `EntropySGD`: all inner steps are on the one batch, without momentum, and any
    optimizer may follow. Its learning rate has to be about 1/γ times an ordinary one, as the gradient is of size γ.

    Args:
        gamma: γ: large values look at a small neighbourhood.
        steps: Inner steps.
        lr: η'.
        noise: ε.
        averaging: α, the old average's weight: 0.75 in the paper's code; its algorithm 1 gives 0.75 to the new w'.
        strength: s in (1 − s)·L + s·F.
        loss: ``call(function)`` that gives ``loss(outputs, targets)``, or that function; cross-entropy if None.
        seed: Of the noise where no trainer draws it; None draws from torch's global generator.

    Raises:
        ValueError: for γ or lr not above 0, fewer than 1 step, noise or strength below 0, infinite ones,
            averaging outside [0, 1).
        TypeError: for steps that are no whole number, and others that are none.

    Cost: ``steps`` gradients, and as many normal numbers for each weight.
    """
    check_sizes("local_entropy", positive=True, gamma=gamma, lr=lr)
    check_counts("local_entropy", steps=steps)
    check_sizes("local_entropy", noise=noise, strength=strength)
    check_real("local_entropy", averaging=averaging)
    if not 0 <= averaging < 1:
        raise ValueError(f"local_entropy needs averaging in [0, 1), not {averaging}")
    return LocalEntropy((gamma, steps, lr, noise, averaging), strength, criterion(loss), seed)


@final
class LocalEntropy(Replacing):
    """The term of `local_entropy`.

    Its value, which is known up to a constant only, is the mean loss of the inner steps; its gradient is F's.
    """

    stackable: tuple[str, ...] = ("gamma", "lr", "noise", "averaging", "strength")

    def __init__(
        self, chain: tuple[float, int, float, float, float], strength: float, loss: Loss, seed: int | None
    ) -> None:
        super().__init__(strength, loss, Draws(seed, "entropy"))
        self.gamma: float
        self.steps: int
        self.lr: float
        self.noise: float
        self.averaging: float
        self.gamma, self.steps, self.lr, self.noise, self.averaging = chain

    def draw(self, model: nn.Module, batch: Batch, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        """Standard normal numbers of one step, for ``drawn=``: ``[steps, *shape]`` for each parameter."""
        return tuple(
            torch.randn((self.steps, *w.shape), dtype=w.dtype, device=w.device, generator=generator)
            for w in chosen(model, None).values()
        )

    def _other(self, model: nn.Module, batch: Batch, drawn: Sequence[Tensor] | None, *, alone: bool = False) -> Tensor:
        """A scalar with the gradient γ(w − ⟨w'⟩) and the value of the inner losses' mean."""
        if drawn is None:
            drawn = self.draw(model, batch, self.draws.next(batch[0].device))
        weights = chosen(model, None)
        center = {name: w.detach() for name, w in weights.items()}
        gradient = _gradient(model, batch, self.loss, functional=transformed(*weights.values()))
        point, mean = dict(center), {name: w.clone() for name, w in center.items()}
        values = []
        for i in range(self.steps):
            value, slopes = gradient(point, alone and i == 0)
            values.append(value.detach())
            for (name, w), z in zip(center.items(), drawn, strict=True):
                slope = slopes[name] + self.gamma * (point[name] - w)
                point[name] = point[name] - self.lr * slope + self.noise * (2 * self.lr) ** 0.5 * z[i]
                mean[name] = self.averaging * mean[name] + (1 - self.averaging) * point[name]
        pulls = [(self.gamma * (center[name] - mean[name]) * (w - center[name])).sum() for name, w in weights.items()]
        return torch.stack(pulls).sum() + torch.stack(values).mean()


Gradient = Callable[[dict[str, Tensor], bool], tuple[Tensor, dict[str, Tensor]]]


def _gradient(model: nn.Module, batch: Batch, loss: Loss, *, functional: bool) -> Gradient:
    """The loss and its gradient as a function of the weights, and of whether buffers are moved, without a graph."""

    def value(point: dict[str, Tensor], moves: bool = False) -> Tensor:
        buffers = {} if moves else {name: buffer.clone() for name, buffer in model.named_buffers()}
        return loss(called(model, {**buffers, **point}, batch[0]), batch[1])

    def nested(point: dict[str, Tensor], moves: bool) -> tuple[Tensor, dict[str, Tensor]]:
        slopes, at = torch.func.grad_and_value(value)(point)
        return at, {name: slope.detach() for name, slope in slopes.items()}

    def plain(point: dict[str, Tensor], moves: bool) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.enable_grad():
            leaves = {name: w.detach().requires_grad_() for name, w in point.items()}
            at = value(leaves, moves)
            slopes = torch.autograd.grad(at, list(leaves.values()), materialize_grads=True)
        return at, dict(zip(leaves, slopes, strict=True))

    return nested if functional else plain
