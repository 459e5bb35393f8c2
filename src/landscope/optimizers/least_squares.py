"""Linear regression on fixed features, solved in one step."""

from collections.abc import Callable
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from landscope.optimizers.checking import check_not_negative
from landscope.optimizers.watching import Watch


def least_squares(
    features: Float[Tensor, " n f"], targets: Float[Tensor, " n o"], *, ridge: float = 0.0
) -> Float[Tensor, " o f"]:
    """The W of the smallest norm among those that minimise ‖features·Wᵀ − targets‖² / n + ridge·‖W‖².

    With the singular values s of the features, W = targetsᵀ·U·diag(s / (s² + n·ridge))·Vᵀ, in float64; values up to
    max(n, f)·2⁻⁵²·s_max count as 0.

    Args:
        features: Φ, a row for each sample.
        targets: Y, likewise.
        ridge: The penalty's strength.

    Cost: a singular value decomposition of an n×f matrix.

    >>> least_squares(torch.tensor([[1.0, 1.0]]), torch.tensor([[3.0]])).round(decimals=6)
    tensor([[1.5000, 1.5000]])
    """
    u, s, vt = torch.linalg.svd(features.double(), full_matrices=False)
    n, f = features.shape
    kept = s > max(n, f) * torch.finfo(torch.float64).eps * s.max()
    inverse = torch.where(kept, s / (s.square() + n * ridge), 0)
    return ((targets.double().T @ u) * inverse @ vt).to(features.dtype)


@final
class LeastSquares(torch.optim.Optimizer):
    """One step to the least-squares solution of a network's last layer; the layers before it stay as they are.

    The last layer's weights become those of `least_squares` on its inputs of this batch: the interpolating solution of
    the smallest norm where there are more features than samples. The targets are read off the gradient of the loss at
    the outputs, so the loss has to be `losses.squared_error`, and the batch the whole training set: give a Recipe
    ``steps=1`` and a ``batch_size`` of the training samples or more. A second step changes nothing.

    Args:
        model: The network; its last trained layer is a ``nn.Linear`` without bias, the only one that is trained.
        ridge: Strength of a penalty ridge·‖W‖² beside the mean squared error.

    Raises:
        TypeError: for something that is no module.
        ValueError: for another last layer, other trained parameters, or ridge < 0. At a step: where the loss is not the
            squared error, or no backward pass has reached the layer.
    """

    _seen: dict[str, Tensor]

    def __init__(self, model: nn.Module, /, *, ridge: float = 0.0) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"LeastSquares needs the model itself, to see its features, not {type(model).__name__}")
        last = ([m for m in model.modules() if isinstance(m, nn.Linear)] or [None])[-1]
        if last is None or last.bias is not None or not last.weight.requires_grad:
            raise ValueError("LeastSquares solves for a last layer that is a trained nn.Linear without bias")
        others = [name for name, w in model.named_parameters() if w.requires_grad and w is not last.weight]
        if others:
            raise ValueError(f"LeastSquares trains the last layer alone: freeze {', '.join(others)}")
        super().__init__([last.weight], {"ridge": ridge})
        check_not_negative("LeastSquares", self.param_groups, ["ridge"])
        self._seen = {}
        last.register_forward_hook(Watch(self._see))

    def _see(self, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if output.requires_grad:
            self._seen = {"features": args[0].detach(), "outputs": output.detach()}
            output.register_hook(lambda gradient: self._seen.update(gradient=gradient.detach()))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Solve; the closure, which computes loss and gradient, is called once and what it gives is returned."""
        if closure is None:
            raise ValueError("LeastSquares needs a closure that computes the loss and calls its backward()")
        with torch.enable_grad():
            loss = closure()
        if "gradient" not in self._seen:
            raise ValueError("LeastSquares has no gradient at the outputs: the closure has to call loss.backward()")
        (group,) = self.param_groups
        features, outputs = self._seen["features"], self._seen["outputs"]
        residuals = -self._seen["gradient"] * len(outputs) / 2  # of the mean of ‖outputs − target‖²
        if not torch.isclose(residuals.square().sum() / len(outputs), torch.as_tensor(loss).detach(), rtol=1e-3):
            raise ValueError(
                "LeastSquares minimises losses.squared_error; this loss has another value for its gradient"
            )
        group["params"][0].copy_(least_squares(features, outputs + residuals, ridge=group["ridge"]))
        self._seen = {}
        return loss
