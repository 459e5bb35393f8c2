"""The Hessian as an Operator: against a dense float64 oracle, and leaving everything as it was."""

import copy
import functools
import subprocess
import sys
from typing import Any

import pytest
import torch
from cases import MADE, everything, made, points, same
from oracles import dense_hessian
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from landscope.curvature import Hessian, hessian
from landscope.losses import cross_entropy
from landscope.models import mlp, seeded
from landscope.types import Batches, Operator


def dense(h: Hessian) -> Tensor:
    return h @ torch.eye(h.dim, dtype=h.dtype)


def cut(data: tuple[Tensor, Tensor], how: str) -> Any:
    inputs, labels = data
    return {
        "pair": data,
        "ragged": Batches(inputs, labels, 7),
        "two lists": [(inputs[:20], labels[:20]), (inputs[20:], labels[20:])],
        "single samples": Batches(inputs, labels, 1),
        "DataLoader": DataLoader(TensorDataset(inputs, labels), batch_size=9),
        "shuffled": DataLoader(TensorDataset(inputs, labels), batch_size=9, shuffle=True),
    }[how]


@functools.cache
def oracle(which: str) -> Tensor:
    model, data = made(which)
    return dense_hessian(model, cross_entropy(), data)


@pytest.fixture(autouse=True)
def _forked():
    with seeded(0):
        yield


@pytest.mark.parametrize("which", MADE)
@pytest.mark.parametrize("how", ["pair", "ragged", "two lists", "single samples", "DataLoader", "shuffled"])
def test_every_sample_counts_the_same_however_the_data_are_cut(which: str, how: str):
    model, data = made(which)
    expected = oracle(which)
    model.train()
    h = hessian(model, cross_entropy(), cut(data, how))
    assert isinstance(h, Operator)
    assert h.dim == len(expected)
    some = torch.randn(h.dim, 3, dtype=torch.float64)
    torch.testing.assert_close(h @ some, expected @ some, rtol=1e-9, atol=1e-11)


def test_the_whole_matrix_is_symmetric_and_products_are_linear():
    model, data = made("mlp")
    h = hessian(model, cross_entropy(), Batches(*data, 7))
    whole = dense(h)
    torch.testing.assert_close(whole, whole.T, rtol=0, atol=1e-14)
    u, v = torch.randn(2, h.dim, dtype=torch.float64)
    torch.testing.assert_close(h @ (2 * u - 3 * v), 2 * (h @ u) - 3 * (h @ v), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(h @ torch.stack([u, v], 1), torch.stack([h @ u, h @ v], 1), rtol=0, atol=1e-15)
    assert (h @ torch.zeros(h.dim, 0, dtype=torch.float64)).shape == (h.dim, 0)


def test_float32_agrees_with_float64_in_the_global_relative_difference():
    model, data = made("cnn")
    expected = dense_hessian(copy.deepcopy(model), cross_entropy(), data)
    h = hessian(model.float(), cross_entropy(), Batches(data[0].float(), data[1], 7))
    v = torch.randn(h.dim)
    assert float((h @ v - expected @ v.double()).norm() / (expected @ v.double()).norm()) < 1e-4


def test_linear_regression_has_the_second_moment_of_its_inputs():
    x, y = torch.randn(11, 4, dtype=torch.float64), torch.randn(11, 1, dtype=torch.float64)
    h = hessian(nn.Linear(4, 1, bias=False).double(), nn.MSELoss(), Batches(x, y, 4))
    torch.testing.assert_close(dense(h), 2 * x.T @ x / 11)


def test_a_loss_that_is_linear_in_the_weights_has_no_curvature():
    x = torch.randn(6, 4)
    h = hessian(nn.Linear(4, 1), lambda outputs, targets: outputs.mean(), (x, torch.zeros(6)))
    assert not dense(h).any()


@pytest.mark.parametrize("which", MADE)
def test_nothing_is_changed(which: str):
    model, data = made(which, torch.float32)
    for p in model.parameters():
        p.grad = torch.ones_like(p) if p.requires_grad else None
    model.train()
    next(model.children()).eval()
    loader = DataLoader(TensorDataset(*data), batch_size=9, shuffle=True)
    before = everything(model)
    h = hessian(model, cross_entropy(), loader)
    _ = h @ torch.ones(h.dim)
    with torch.no_grad():
        _ = h @ torch.ones(h.dim)
    assert same(everything(model), before)


def test_nothing_is_changed_by_an_exception_either():
    model, data = made("noisy", torch.float32)
    model.train()
    before, calls = everything(model), []

    failing = False

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(torch.rand(1))
        if failing and len(calls) > 5:
            raise RuntimeError("inside the loss")
        return functional.cross_entropy(outputs, targets)

    h, failing = hessian(model, loss, Batches(*data, 7)), True
    with pytest.raises(RuntimeError, match="inside the loss"):
        _ = h @ torch.ones(h.dim)
    assert same(everything(model), before)


def frozen() -> nn.Module:
    return mlp((5,), 3, widths=(4,)).requires_grad_(False)


def mixed() -> nn.Module:
    model = mlp((5,), 3, widths=(4,))
    model[-1].double()
    return model


X, Y = points()
NET = mlp((5,), 3, widths=(4,))


@pytest.mark.parametrize(
    ("model", "loss", "data", "message"),
    [
        (NET, nn.CrossEntropyLoss(weight=torch.ones(3)), (X, Y), "divides by the weights"),
        (NET, nn.CrossEntropyLoss(reduction="sum"), (X, Y), "reduction='sum'"),
        (NET, lambda o, t: functional.cross_entropy(o, t, reduction="sum"), (X, Y), "not a plain mean over samples"),
        (NET, nn.CrossEntropyLoss(), (X, torch.full((len(X),), -100)), "some targets are -100"),
        (NET, nn.CrossEntropyLoss(), [], "empty data set"),
        (NET, nn.CrossEntropyLoss(), (X[:0], Y[:0]), "empty data set"),
        (NET, nn.CrossEntropyLoss(), iter([(X, Y)]), "read only once"),
        (NET, nn.CrossEntropyLoss(), ((x, y) for x, y in [(X, Y)]), "read only once"),
        (frozen(), nn.CrossEntropyLoss(), (X, Y), "no parameter with requires_grad"),
        (mixed(), nn.CrossEntropyLoss(), (X, Y), "several types"),
    ],
    ids=["weights", "sum", "lambda", "ignored", "[]", "no rows", "iterator", "generator", "frozen", "mixed"],
)
def test_what_has_no_exact_hessian_is_refused(model: nn.Module, loss: Any, data: Any, message: str):
    with pytest.raises(ValueError, match=message):
        hessian(model, loss, data)


@pytest.mark.parametrize(
    ("v", "message"),
    [
        (torch.ones(3), r"of shape \[43\] or \[43, k\], not \[3\]"),
        (torch.ones(43, 2, 2), r"not \[43, 2, 2\]"),
        (torch.ones(43, dtype=torch.float64), "takes a vector of torch.float32 on cpu"),
    ],
)
def test_vectors_of_another_shape_or_type_are_refused(v: Tensor, message: str):
    h = hessian(mlp((5,), 3, widths=(4,)), nn.CrossEntropyLoss(), (X, Y))
    assert h.dim == 39
    with pytest.raises(ValueError, match=message.replace("43", "39")):
        _ = h @ (v if len(v) == 3 else v[:39])


def test_a_class_label_out_of_range_is_named():
    with pytest.raises(ValueError, match=r"targets, int64 of shape \[40\], 1 to 3, with outputs \[40, 3\].* from 0 to"):
        hessian(mlp((5,), 3), nn.CrossEntropyLoss(), (torch.randn(40, 5), torch.arange(40) % 3 + 1))


def test_without_the_test_runs_type_checks_the_messages_are_ours():
    program = (
        "import torch\nfrom torch import nn\nfrom landscope.curvature import hessian\n"
        "h = hessian(nn.Linear(2, 1), nn.MSELoss(), (torch.ones(3, 2), torch.zeros(3, 1)))\n"
        "for v in (torch.tensor(1.0), torch.ones(3, dtype=torch.long)):\n"
        "    try:\n        h @ v\n    except ValueError as error:\n        print(error)\n"
    )
    wrong = {
        "h @ numpy.ones(3)": "takes a tensor, not numpy.ndarray: use torch.as_tensor",
        "hessian(net.parameters(), nn.MSELoss(), data)": "is the network itself, an nn.Module, not generator",
        "spectrum(h, top=1.5)": "top is a whole number, not 1.5",
        "spectrum(h, 1, block=0)": "block is at least 1, not 0",
        "spectrum(h, 1, probes=2.5)": "probes is a whole number, not 2.5",
        "spectrum(h, 1, rtol=math.nan)": "a relative tolerance is at least 0",
        "spectrum(h, 1, seed=None)": "a seed is a whole number, the same one for the same draws, not None",
        "spectrum(torch.eye(4))": "and a Tensor does not: take landscope.hessian",
        "trace(h, method='Hutchinson')": "one of auto, hutchinson, hutch++, xtrace, deflated, not 'Hutchinson'",
        "trace(h, products=30.5)": "products is a whole number, not 30.5",
        "block_spectra(h, {'a': slice(0, 50)})": "a contiguous, non-empty part of 0…3 is needed",
        "mlp((5,), 3, widths=8)": "widths needs a number for each hidden layer, such as (8,), not 8",
        "mlp(5, 3)": "such as (3, 32, 32) or (784,), not 5",
        "mlp((5,), 3, widths=(8.0,))": "whole numbers are needed, not 5, 3, 8.0",
        "resnet((3, 8, 8), 3, depth=8.0)": "depth: whole numbers are needed, not 8.0",
        "slow_layers(torch.optim.SGD(net.parameters(), lr=0.1), after=math.nan)": "from 0, not nan",
    }
    program += (
        "import math, numpy\nfrom landscope.layers import slow_layers\n"
        "from landscope.linalg import block_spectra, spectrum, trace\n"
        "from landscope.models import mlp, resnet\n"
        "net, data = nn.Linear(2, 1), (torch.ones(3, 2), torch.zeros(3, 1))\n"
    )
    for expression in wrong:
        program += f"try:\n    {expression}\nexcept (TypeError, ValueError) as error:\n    print(error)\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.count("takes a vector of") == 2
    for expression, message in wrong.items():
        assert message in done.stdout, expression
