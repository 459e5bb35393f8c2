"""What a tangent kernel predicts: the linearised network, its training by gradient descent, and kernel regression."""

import math
from collections.abc import Mapping
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscope.models import called
from landscope.models.contexts import plainly


def linearised_outputs(
    model: nn.Module, start: Mapping[str, Tensor], inputs: Tensor, /
) -> tuple[Float[Tensor, " n outputs"], Float[Tensor, " n outputs"]]:
    """Outputs of a network at its start θ₀, and those at its present θ of its linearisation around θ₀.

        f(x; θ₀)  and  f(x; θ₀) + ∇_θ f(x; θ₀) (θ − θ₀),

    in eval mode with the buffers of the start.

    Args:
        model: The network at θ; afterwards it is as it was.
        start: Parameters and buffers at the start, by name (a ``state_dict``).
        inputs: Inputs.

    Returns:
        Both outputs, flattened to one row a sample.

    Raises:
        KeyError: where ``start`` lacks a parameter.

    Cost: one forward-mode pass, about 3 forward passes.

    >>> net = nn.Linear(2, 1, bias=False)
    >>> start = {"weight": torch.zeros(1, 2)}
    >>> _ = nn.init.ones_(net.weight)
    >>> [f.item() for f in linearised_outputs(net, start, torch.tensor([[1.0, 2.0]]))]
    [0.0, 3.0]
    """
    with plainly(model):
        present = {name: p.detach() for name, p in model.named_parameters()}
        origin = {name: start[name].to(p) for name, p in present.items()}
        moved = {name: p - origin[name] for name, p in present.items()}
        buffers = {name: start[name].to(b) for name, b in model.named_buffers() if name in start}

        def outputs(weights: dict[str, Tensor]) -> Tensor:
            return called(model, weights | buffers, inputs).reshape(len(inputs), -1)

        with sdpa_kernel(SDPBackend.MATH):  # the others have no forward mode
            first, change = jvp(outputs, (origin,), (moved,))[:2]
    return first, first + change


@final
class KernelSystem:
    """Training of a linearised network on a squared loss, solved once by the kernel's eigenvectors.

    The loss is the mean over n samples of ‖f − y‖² (`landscope.losses.squared_error`), so that gradient flow is
    ḟ = −(2/n) Θ (f − Y) and a test point follows with Θ(x, X) in the place of Θ:

        f_t(x) = f₀(x) − Θ(x, X) Θ⁻¹ (I − e^{−2Θt/n}) (f₀(X) − Y),

    with (I − 2ηΘ/n)^s in the place of the exponential for s steps of full-batch gradient descent of learning rate η.
    Where Θ is singular, Θ⁻¹ (I − e^{…}) stands for its limit. Source: Lee et al., "Wide neural networks of any depth
    evolve as linear models under gradient descent", 2019, equations 8 to 11 (whose loss is half a sum).

    Args:
        kernel: Θ of the training samples: ``[n, n]`` of one output (or the mean over outputs), or the whole
            ``[n, n, O, O]``.
        start: f₀(X), ``[n, O]``.
        targets: Y, ``[n, O]``.

    Raises:
        ValueError: where the shapes do not belong together.
    """

    n: int
    whole: bool
    values: Tensor
    vectors: Tensor
    residual: Tensor

    def __init__(
        self, kernel: Float[Tensor, " n1 n2 *o"], start: Float[Tensor, " n3 o1"], targets: Float[Tensor, " n4 o2"]
    ) -> None:
        n, outputs = start.shape
        if kernel.shape not in ((n, n), (n, n, outputs, outputs)) or targets.shape != start.shape:
            raise ValueError(
                f"for {n} samples and {outputs} outputs a kernel has the shape {(n, n)} or {(n, n, outputs, outputs)}, "
                f"and targets {(n, outputs)}; these have {tuple(kernel.shape)} and {tuple(targets.shape)}"
            )
        self.n, self.whole = n, kernel.dim() == 4
        matrix = _matrix(kernel).double()
        values, self.vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
        # As matrix_rank has it: below this an eigenvalue cannot be told from 0, and its direction is not learnt.
        floor = float(values[-1]) * len(values) * torch.finfo(kernel.dtype).eps
        self.values = torch.where(values > floor, values, 0.0)
        residual = (start - targets).double()
        self.residual = self.vectors.T @ (residual.reshape(-1, 1) if self.whole else residual)

    @property
    def largest_rate(self) -> float:
        """The learning rate from which on full-batch gradient descent diverges: n / λ_max(Θ)."""
        return self.n / float(self.values[-1])

    def loss(self, time: float) -> float:
        """The training loss after gradient flow for a time (learning rate × steps)."""
        left = self._left(time)[:, None] * self.residual
        return float(left.square().sum() / self.n)

    def _left(self, time: float) -> Tensor:
        """The share of each direction's residual that is left after gradient flow for a time."""
        return torch.where(self.values > 0, torch.exp(-2 * self.values * time / self.n), 1.0)

    def time_to(self, loss: float) -> float | None:
        """The time at which gradient flow reaches a training loss; None where it starts below it, or never does."""
        if not self.loss(math.inf) < loss <= self.loss(0.0):
            return None
        low, high = 0.0, self.n / float(self.values[-1])
        while self.loss(high) > loss:
            high *= 2
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self.loss(middle) > loss else (low, middle)
        return high

    def change(
        self, cross: Float[Tensor, " m n *o"], *, time: float = math.inf, rate: float | None = None, steps: int = 0
    ) -> Float[Tensor, " m o1"]:
        """What training adds to the outputs on other samples: f_t(x) − f₀(x).

        Args:
            cross: Θ(x, X) of m other samples, in the kernel's form.
            time: Of gradient flow; infinity gives kernel regression.
            rate: The learning rate of gradient descent in the place of flow.
            steps: Its steps.

        Raises:
            ValueError: for a learning rate at which gradient descent diverges, or a negative time or steps.
        """
        if rate is not None and not 0 < rate < self.largest_rate:
            raise ValueError(
                f"gradient descent with rate={rate} diverges on this kernel: from {self.largest_rate:g} on"
            )
        if time < 0 or steps < 0:
            raise ValueError(f"training takes no negative time or steps, not {time} and {steps}")
        left = self._left(time) if rate is None else (1 - 2 * rate * self.values / self.n) ** steps
        weights = torch.where(self.values > 0, (1 - left) / self.values.clamp_min(1e-300), 0.0)
        solved = self.vectors @ (weights[:, None] * self.residual)
        found = -(_matrix(cross).double() @ solved)
        return (found.reshape(len(cross), -1) if self.whole else found).to(cross.dtype)


def _matrix(kernel: Tensor) -> Tensor:
    """A kernel ``[n, m, O, O]`` as the matrix of all outputs of all samples."""
    if kernel.dim() == 2:
        return kernel
    n, m, o, _ = kernel.shape
    return kernel.transpose(1, 2).reshape(n * o, m * o)


def alignment(kernel: Float[Tensor, " n n"], targets: Float[Tensor, " n o"], /, *, centred: bool = False) -> float:
    """How far a kernel looks like that of the targets: ⟨K, YYᵀ⟩ / (‖K‖ ‖YYᵀ‖), between −1 and 1.

    Args:
        kernel: K.
        targets: Y; classes as one-hot rows.
        centred: Whether both are centred first (K → CKC, C = I − 11ᵀ/n), which takes out what all samples share.

    Raises:
        ValueError: where one of the two is 0 throughout.

    Sources: Cristianini et al., "On kernel-target alignment", 2001, definition 1; centred, Cortes, Mohri and
    Rostamizadeh, "Algorithms for learning kernels based on centered alignment", 2012, definition 4.

    >>> targets = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    >>> round(alignment(targets @ targets.T, targets), 6)
    1.0
    """
    k, y = kernel.double(), targets.double()
    if centred:
        y = y - y.mean(0)
        k = k - k.mean(0)
        k = k - k.mean(1, keepdim=True)
    rounding = len(k) * torch.finfo(kernel.dtype).eps * float(kernel.double().norm())
    return cosine(k if float(k.norm()) > rounding else torch.zeros_like(k), y @ y.T)


def cosine(a: Float[Tensor, " n m"], b: Float[Tensor, " n m"], /) -> float:
    """⟨A, B⟩ / (‖A‖ ‖B‖) in Frobenius norms.

    Raises:
        ValueError: where one of the two is 0 throughout.
    """
    sizes = float(a.double().norm()) * float(b.double().norm())
    if sizes == 0:
        raise ValueError("a matrix of zeros has no direction")
    return float((a.double() * b.double()).sum()) / sizes


def drift(kernel: Float[Tensor, " n m *o"], start: Float[Tensor, " n m *o"], /) -> float:
    """How far a kernel has moved: ‖Θ_t − Θ_0‖_F / ‖Θ_0‖_F.

    >>> drift(torch.tensor([[3.0]]), torch.tensor([[2.0]]))
    0.5
    """
    return float((kernel.double() - start.double()).norm() / start.double().norm())
