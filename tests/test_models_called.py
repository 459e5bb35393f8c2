"""Networks with a module under two names, or a tensor twice in one module: everything that calls them with other
weights gives what it gives for the same network written with one name, and leaves the network as it is."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from landscope.curvature import hessian
from landscope.kernels import linearised_outputs, ntk
from landscope.measures.sharpness import weight_perturbation
from landscope.models import called
from landscope.regularizers import flatness, local_entropy, weight_noise
from landscope.types import Batches, Snapshot


class Net(nn.Module):
    """Two equal layers with BatchNorm between, of one name or two; the last has a bias that its weight's row is."""

    def __init__(self, names: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.norm, self.last = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.last.bias = self.first.bias
        if names == 2:
            self.again, self.renorm, self.last.offset = self.first, self.norm, self.first.bias

    def forward(self, x: Tensor) -> Tensor:
        again, norm = (self.again, self.renorm) if hasattr(self, "again") else (self.first, self.norm)
        offset: Any = getattr(self.last, "offset", self.first.bias)
        h = norm(torch.tanh(again(self.norm(torch.tanh(self.first(x))))))
        return functional.linear(h, self.last.weight, offset)


def _data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(12, 4, generator=generator), torch.arange(12) % 4


def _perturbed(net: nn.Module) -> Tensor:
    snapshot = Snapshot(net, {}, None, functional.cross_entropy, Batches(*_data()), None, None, 0, 3)
    return weight_perturbation(snapshot, draws=2)["absolute_loss"]


def _linearised(net: nn.Module) -> Tensor:
    start = {name: p.detach() + 0.1 for name, p in net.named_parameters()}
    return linearised_outputs(net, start, _data()[0])[1]


def _gradient_of(made: Callable[[], Any]) -> Callable[[nn.Module], Tensor]:
    def gradient(net: nn.Module) -> Tensor:
        net.train()
        term = made()
        parameters = list(net.parameters())
        return torch.cat([g.flatten() for g in torch.autograd.grad(term(net, _data()), parameters)])

    return gradient


CALLERS: dict[str, Callable[[nn.Module], Tensor]] = {
    "called": lambda net: called(net.eval(), {n: p + 0.1 for n, p in net.named_parameters()}, _data()[0]),
    "hessian": lambda net: hessian(net, nn.CrossEntropyLoss(), _data()) @ torch.ones(44),
    "ntk": lambda net: ntk(net.eval(), _data()[0]),
    "linearised": _linearised,
    "weight_perturbation": _perturbed,
    "noise on weights": _gradient_of(lambda: weight_noise(sd=0.1, seed=0)),
    "local_entropy": _gradient_of(lambda: local_entropy(seed=0, noise=0.1)),
    "flatness": _gradient_of(lambda: flatness(probes=2, every=1, seed=0)),
}


@pytest.mark.parametrize("caller", CALLERS)
def test_a_module_under_two_names_is_called_as_under_one_and_stays_as_it_is(caller: str):
    net, plain = Net(2), Net(1)
    before = [(module, dict(module._parameters), dict(module._buffers)) for module in net.modules()]
    content = {name: t.clone() for name, t in net.state_dict().items()}

    found, expected = CALLERS[caller](net), CALLERS[caller](plain)

    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for module, parameters, buffers in before:
        assert all(module._parameters[name] is p for name, p in parameters.items())
        assert all(module._buffers[name] is b for name, b in buffers.items())
    for name, t in net.state_dict().items():
        torch.testing.assert_close(t, content[name])


def test_a_name_that_the_network_does_not_have_is_refused():
    with pytest.raises(ValueError, match="no parameter or buffer named weigth"):
        called(nn.Linear(2, 2), {"weigth": torch.zeros(2, 2)}, torch.zeros(1, 2))
