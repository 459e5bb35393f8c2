"""The same numbers by slower and more obvious ways."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


def flat_parameters(model: nn.Module) -> Tensor:
    """The trainable parameters in one vector."""
    return torch.cat([p.detach().reshape(-1) for p in model.parameters() if p.requires_grad])


def loss_of_flat(model: nn.Module, loss: Any, data: tuple[Tensor, Tensor]) -> Callable[[Tensor], Tensor]:
    """The loss of the whole set at once, as a function of the flat trainable parameters."""
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}

    def value(flat: Tensor) -> Tensor:
        weights, at = {}, 0
        for name, p in named.items():
            weights[name] = flat[at : at + p.numel()].reshape(p.shape)
            at += p.numel()
        return loss(functional_call(model, weights, (data[0],)), data[1])

    return value


def dense_hessian(model: nn.Module, loss: Any, data: tuple[Tensor, Tensor]) -> Tensor:
    """The Hessian of the mean loss in eval mode, float64, element by element through autograd."""
    double = model.to(torch.float64).eval()
    inputs = data[0].double()
    value = loss_of_flat(double, loss, (inputs, data[1]))
    found = torch.autograd.functional.hessian(value, flat_parameters(double), vectorize=True)
    if not isinstance(found, Tensor):
        raise TypeError("one flat vector has one Hessian")
    return found


class Matrix:
    """A dense symmetric matrix as an Operator that counts its products."""

    def __init__(self, a: Tensor) -> None:
        self.a, self.dim, self.dtype, self.device = a, len(a), a.dtype, a.device
        self.products = 0

    def __matmul__(self, v: Tensor) -> Tensor:
        self.products += 1 if v.dim() == 1 else v.shape[1]
        return self.a @ v


def with_spectrum(eigenvalues: Tensor, seed: int = 0) -> Tensor:
    """A dense symmetric float64 matrix with these eigenvalues and random eigenvectors."""
    n = len(eigenvalues)
    q, _ = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))
    a = (q * eigenvalues.double()) @ q.T
    return (a + a.T) / 2
