"""Small networks, losses and data that several tests share, and functions that recipes may name."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

from landscope.data import Data
from landscope.losses import cross_entropy
from landscope.models import cnn, mlp
from landscope.spec import Recipe, call, derive
from landscope.types import Batches, Snapshot

torch.set_num_threads(1)  # as runs train; on nets of this size more threads only wait for each other

CLASSES, FEATURES, SAMPLES = 3, 5, 23


def points(n: int = SAMPLES, features: int = FEATURES, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random inputs and labels that depend on them."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, features, generator=generator)
    labels = (inputs @ torch.randn(features, CLASSES, generator=generator)).argmax(1)
    return inputs, labels


def blobs(seed: int, cache: Path | None, /) -> Data:
    """A data set for recipes: 23 training, 9 validation and 11 test samples."""
    inputs, labels = points(43, seed=derive(seed, "blobs") % 1000)
    train, valid, test = (Batches(inputs[a:b], labels[a:b]) for a, b in ((0, 23), (23, 32), (32, 43)))
    return Data(train, valid, test, CLASSES, "classification")


class Tied(nn.Module):
    """One matrix used twice, a frozen one, and a parameter that the output does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(FEATURES, FEATURES, bias=False)
        self.outer = nn.Linear(FEATURES, FEATURES, bias=False)
        self.outer.weight = self.inner.weight
        self.head = nn.Linear(FEATURES, CLASSES)
        self.head.weight.requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.outer(torch.tanh(self.inner(x)))))


def noisy_net(shape: tuple[int, ...], outputs: int, /) -> nn.Sequential:
    """BatchNorm and Dropout in one network."""
    (features,) = shape
    return nn.Sequential(
        nn.Linear(features, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, outputs), nn.Dropout(0.1)
    )


def made(which: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A network with data that fit it; BatchNorm has seen some batches."""
    torch.manual_seed(7)  # the caller forks the generator
    inputs, labels = points()
    if which == "cnn":
        inputs = torch.randn(SAMPLES, 1, 8, 8)
        model: nn.Module = cnn((1, 8, 8), CLASSES, channels=1, hidden=3)
    else:
        model = {
            "mlp": lambda: mlp((FEATURES,), CLASSES, widths=(4, 4)),
            "tied": Tied,
            "noisy": lambda: noisy_net((FEATURES,), CLASSES),
        }[which]()
    model.train()
    for _ in range(3):
        model(inputs + torch.randn_like(inputs))
    return model.to(dtype), (inputs.to(dtype), labels)


MADE = ("mlp", "cnn", "tied", "noisy")


def snapshot_of(
    model: nn.Module, data: tuple[Tensor, Tensor], *, size: int = 12, seed: int = 5, **sets: Any
) -> Snapshot:
    """A snapshot at step 0 with cross-entropy, the data in ragged batches and as test set, too."""
    model.eval()
    given = {"train": Batches(*data, size), "valid": None, "test": Batches(*data, size)} | sets
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return Snapshot(model, model.state_dict(), state, cross_entropy(), step=0, seed=seed, **given)


def recipe(**changed: Any) -> Recipe:
    """A short run of an MLP on `blobs`, batches of 5 (the last of an epoch has 3)."""
    settings: dict[str, Any] = {
        "data": call(blobs),
        "model": call(mlp, widths=(6, 6)),
        "loss": call(cross_entropy),
        "optimizer": call(SGD, lr=0.1, momentum=0.9),
        "steps": 40,
        "batch_size": 5,
        "seed": 3,
    }
    return Recipe(**(settings | changed))


def everything(model: nn.Module) -> dict[str, Any]:
    """All of a network that nothing may change: weights, buffers, gradients, modes, and the global generator."""
    return {
        "state": {n: t.clone() for n, t in model.state_dict().items()},
        "identity": {n: id(p) for n, p in model.named_parameters()},
        "gradients": {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()},
        "trained": {n: p.requires_grad for n, p in model.named_parameters()},
        "modes": {n: m.training for n, m in model.named_modules()},
        "random": torch.get_rng_state(),
    }


def same(a: Any, b: Any) -> bool:
    """Equality to the bit of nested mappings and sequences that hold tensors; NaN equals NaN."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a.nan_to_num(77.0), b.nan_to_num(77.0))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b or (a != a and b != b)
