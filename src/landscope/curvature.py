"""Curvature matrices of a loss as Operators over a network's parameters; knows no algorithm."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from landscope.losses import check_additive, check_mean, check_targets
from landscope.models import evaluating, seeded

Data = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Hessian:
    """The Hessian of a mean loss: an Operator. Make it with `hessian`."""

    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    data: Data
    parameters: tuple[nn.Parameter, ...]
    samples: int
    dim: int = field(init=False)
    dtype: torch.dtype = field(init=False)
    device: torch.device = field(init=False)

    def __post_init__(self) -> None:
        """Read the space's size and type off the parameters."""
        object.__setattr__(self, "dim", sum(p.numel() for p in self.parameters))
        object.__setattr__(self, "dtype", self.parameters[0].dtype)
        object.__setattr__(self, "device", self.parameters[0].device)

    def __matmul__(self, v: Float[Tensor, " dim *k"]) -> Float[Tensor, " dim *k"]:
        """H v by double backward: one gradient with its graph a batch, one derivative of it a column.

        Raises:
            ValueError: where v is not of shape ``[dim]`` or ``[dim, k]``, or not of the operator's type and device.
        """
        if v.dim() not in (1, 2) or v.shape[0] != self.dim:
            raise ValueError(
                f"a product with this Hessian takes a vector of shape [{self.dim}] or [{self.dim}, k], "
                f"not {list(v.shape)}"
            )
        if v.dtype != self.dtype or v.device != self.device:
            raise ValueError(
                f"a product with this Hessian takes a vector of {self.dtype} on {self.device}, as the parameters are, "
                f"not of {v.dtype} on {v.device}: use v.to(H.device, H.dtype)"
            )
        columns = v if v.dim() == 2 else v.unsqueeze(1)
        result = torch.zeros_like(columns)
        # A DataLoader draws from the global generator whenever it is read; with one seed it reads the same each time.
        with evaluating(self.model), seeded(0), torch.enable_grad():
            for inputs, targets in self.data:
                result += (len(inputs) / self.samples) * self._batch_product(inputs, targets, columns)
        return result.reshape(v.shape)

    def _batch_product(self, inputs: Tensor, targets: Tensor, columns: Tensor) -> Tensor:
        value = self.loss(self.model(inputs.to(self.device)), targets.to(self.device))
        gradient = torch.autograd.grad(value, self.parameters, create_graph=True, materialize_grads=True)
        flat = torch.cat([g.reshape(-1) for g in gradient])
        products = torch.zeros_like(columns)
        if not flat.requires_grad:  # the loss is linear in the parameters
            return products
        k = columns.shape[1]
        for i in range(k):
            parts = torch.autograd.grad(
                flat, self.parameters, columns[:, i], retain_graph=i < k - 1, materialize_grads=True
            )
            products[:, i] = torch.cat([p.reshape(-1) for p in parts])
        return products


def hessian(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    data: Data | tuple[Tensor, Tensor],
) -> Hessian:
    """The Hessian of the mean loss over a data set, with respect to all trainable parameters.

    H = (1/n) Σ_i ∇²_θ loss(model(x_i; θ), y_i): every sample counts the same, whatever its batch, a ragged last batch
    included. The network is in eval mode during a product, and afterwards as it was found.

    Args:
        model: The network.
        loss: ``loss(outputs, targets)``, the mean over a batch.
        data: A pair of tensors (inputs, targets), or any re-iterable of such batches (Batches, a DataLoader whose
            content does not change).

    Returns:
        An Operator on flat vectors, in the order of ``model.parameters()``.

    Raises:
        ValueError: for an empty data set, a model without trainable parameters or with parameters of several types, a
            loss that is not the plain mean (tried on the first batch), or data that can be read only once.

    Cost of a product: one forward pass and about three gradients' worth of time a batch.

    The mean of (w·x)² over x = 1, 2 has the second derivative (1² + 2²)·2/2 = 5:

    >>> net = nn.Linear(1, 1, bias=False)
    >>> H = hessian(net, nn.MSELoss(), (torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1)))
    >>> (H @ torch.ones(1)).item()
    5.0
    """
    check_mean(loss)
    batches: Data = [(data[0], data[1])] if _is_pair(data) else data  # type: ignore[list-item]
    if isinstance(batches, Iterator):
        raise ValueError(
            "the data can be read only once (an iterator or generator); every product reads them anew: "
            "give a list of batches, a DataLoader, or the pair of tensors"
        )
    parameters = tuple(p for p in model.parameters() if p.requires_grad)
    if not parameters:
        raise ValueError("the model has no parameter with requires_grad: there is nothing to differentiate by")
    if len({(p.dtype, p.device) for p in parameters}) > 1:
        raise ValueError("the model's parameters are of several types or devices; one flat vector needs a single one")
    samples = 0
    with evaluating(model), seeded(0):
        for inputs, targets in batches:
            check_targets(loss, targets)
            if not samples and len(inputs):
                with torch.no_grad():
                    device = parameters[0].device
                    check_additive(loss, model(inputs.to(device)), targets.to(device))
            samples += len(inputs)
    if not samples:
        raise ValueError("an empty data set: a mean loss needs at least one sample")
    return Hessian(model, loss, batches, parameters, samples)


def _is_pair(data: object) -> bool:
    return isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)
