"""ProxProp against the minimisation problem it solves, its limits, and which batches it has seen."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from landscope.optimizers import ProxProp, proximal_direction, proximal_direction_cg

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(4, 3), (4,)),
    "linear without bias": (lambda: nn.Linear(4, 3, bias=False), (4,)),
    "linear on a sequence": (lambda: nn.Linear(4, 3), (5, 4)),
    "conv2d": (lambda: nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0)), (2, 5, 4)),
    "conv2d without bias, dilated": (lambda: nn.Conv2d(2, 3, 2, dilation=2, bias=False), (2, 5, 5)),
    "conv2d in groups": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding="same"), (4, 4, 4)),
    "conv2d of even size, same": (lambda: nn.Conv2d(2, 3, 2, padding="same"), (2, 4, 4)),
    "conv2d, circular": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 4, 4)),
    "conv2d, valid": (lambda: nn.Conv2d(2, 3, 3, padding="valid"), (2, 4, 4)),
    "conv1d": (lambda: nn.Conv1d(2, 3, 3, stride=2, padding=1), (2, 7)),
}


def problem(name: str) -> tuple[Any, Any, Tensor, Callable[[Tensor], Tensor]]:
    torch.manual_seed(0)
    maker, shape = LAYERS[name]
    layer = maker().double()
    net = nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.LazyLinear(2, dtype=torch.float64))
    inputs = torch.randn(6, *shape, dtype=torch.float64)
    net(inputs)
    targets = torch.arange(6) % 2
    return net, layer, inputs, lambda outputs: nn.functional.cross_entropy(outputs, targets)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("iterations", [None, 200])
def test_a_step_minimises_the_proximal_problem(name, iterations):
    # ½‖A·w − (z − δ)‖² + ‖w − w_now‖²/(2τ), the layer's matrix A by automatic differentiation, by least squares.
    tau = 0.7
    net, layer, inputs, loss_of = problem(name)
    now = {n: w.detach().clone() for n, w in layer.named_parameters()}
    z = layer(inputs).detach().requires_grad_()
    (delta,) = torch.autograd.grad(loss_of(net[1:](z)), z)
    jacobian = jacrev(lambda w: functional_call(layer, w, (inputs,)))(now)
    a = torch.cat([j.reshape(z.numel(), -1) for j in jacobian.values()], 1)
    w_now = torch.cat([w.flatten() for w in now.values()])
    rows = torch.cat([a, torch.eye(len(w_now), dtype=a.dtype) / tau**0.5])
    goal = torch.cat([a @ w_now - delta.flatten(), w_now / tau**0.5])
    expected = torch.linalg.lstsq(rows, goal[:, None]).solution.flatten()
    opt = ProxProp(net, base="sgd", lr=1.0, tau=tau, iterations=iterations, layers=("0",))
    loss_of(net(inputs)).backward()
    opt.step()
    found = torch.cat([w.detach().flatten() for w in layer.parameters()])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_conjugate_gradients_become_exact():
    torch.manual_seed(0)
    rows, gradients = torch.randn(2, 9, 5, dtype=torch.float64), torch.randn(2, 3, 5, dtype=torch.float64)
    exact = proximal_direction(rows, gradients, tau=2.0)
    errors = {
        together: [
            (proximal_direction_cg(rows, gradients, tau=2.0, iterations=k, together=together) - exact).norm().item()
            for k in (1, 3, 5, 40)
        ]
        for together in (False, True)
    }
    for found in errors.values():
        assert found[0] > found[1] > found[2]
        assert found[3] < 1e-12
    assert errors[False][2] < 1e-12  # as many iterations as unknowns
    assert errors[True][2] > 1e-6  # one system of 30 unknowns
    torch.testing.assert_close(
        proximal_direction_cg(rows, torch.zeros_like(gradients), tau=2.0, iterations=3, together=False),
        torch.zeros_like(gradients),
    )


def test_a_small_step_size_gives_the_gradient():
    torch.manual_seed(0)
    rows, gradients = torch.randn(9, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    for direction in (
        proximal_direction(rows, gradients, tau=1e-9),
        proximal_direction_cg(rows, gradients, tau=1e-9, iterations=2, together=True),
    ):
        torch.testing.assert_close(direction / 1e-9, gradients, rtol=1e-6, atol=1e-9)


def test_it_is_a_descent_direction_whatever_the_step_size():
    torch.manual_seed(0)
    rows, gradients = torch.randn(4, 9, dtype=torch.float64), torch.randn(3, 9, dtype=torch.float64)
    for tau in (1e-3, 1.0, 1e6):
        assert (proximal_direction(rows, gradients, tau=tau) * gradients).sum() > 0


def network() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)).double()


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64), torch.arange(6) % 2


def test_the_last_layer_takes_an_explicit_step():
    net, (inputs, targets) = network(), batch()
    opt = ProxProp(net, base="sgd", lr=0.1)
    before = [w.detach().clone() for w in net.parameters()]
    nn.functional.cross_entropy(net(inputs), targets).backward()
    gradients = [w.grad.clone() for w in net.parameters()]
    opt.step()
    explicit = [
        torch.allclose(w.detach(), old - 0.1 * g) for w, old, g in zip(net.parameters(), before, gradients, strict=True)
    ]
    assert explicit == [False] * 4 + [True] * 2


def ends(*ways: Callable[[Any, ProxProp, Tensor, Tensor], None]) -> list[list[Tensor]]:
    found = []
    for way in ways:
        net, (inputs, targets) = network(), batch()
        opt = ProxProp(net, base="sgd", lr=0.5, iterations=None)
        way(net, opt, inputs, targets)
        opt.step()
        found.append([w.detach() for w in net.parameters()])
    return found


def plainly(net: Any, opt: ProxProp, inputs: Tensor, targets: Tensor) -> None:
    opt.zero_grad()
    nn.functional.cross_entropy(net(inputs), targets).backward()


def cleared_late(net: Any, opt: ProxProp, inputs: Tensor, targets: Tensor) -> None:
    loss = nn.functional.cross_entropy(net(inputs), targets)
    opt.zero_grad()
    loss.backward()


def with_other_passes(net: Any, opt: ProxProp, inputs: Tensor, targets: Tensor) -> None:
    net(3 * inputs)  # never differentiated
    with torch.no_grad():
        net(2 * inputs)
    net(5 * inputs).sum().backward()  # differentiated, but cleared
    opt.zero_grad()
    outputs = net(inputs)
    loss = nn.functional.cross_entropy(outputs, targets)
    torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)  # a second pass through the same forward
    loss.backward()


def in_halves(net: Any, opt: ProxProp, inputs: Tensor, targets: Tensor) -> None:
    for half in (slice(3), slice(3, 6)):
        (nn.functional.cross_entropy(net(inputs[half]), targets[half]) / 2).backward()


@pytest.mark.parametrize("way", [cleared_late, with_other_passes, in_halves])
def test_only_batches_that_the_gradient_comes_from_count(way):
    torch.testing.assert_close(*ends(plainly, way))


def test_a_layer_has_the_settings_of_its_group_or_of_a_state():
    found = {}
    for name in ("weak", "strong", "groups", "state"):
        net, (inputs, targets) = network(), batch()
        settings = {"weak": {"tau": 0.3, "iterations": None}, "strong": {"tau": 5.0, "iterations": 2}}
        if name == "groups":
            groups = [
                {"params": net[0].parameters(), **settings["weak"]},
                {"params": net[2].parameters(), **settings["strong"]},
            ]
            opt = ProxProp(net, base="sgd", lr=0.5, params=groups)
        else:
            opt = ProxProp(net, base="sgd", lr=0.5, **settings.get(name, {}))
        if name == "state":
            opt.load_state_dict(ProxProp(network(), base="sgd", lr=0.5, **settings["weak"]).state_dict())
        plainly(net, opt, inputs, targets)
        opt.step()
        found[name] = [[w.detach() for w in net[i].parameters()] for i in (0, 2, 4)]
    torch.testing.assert_close(found["groups"][:2], [found["weak"][0], found["strong"][1]])
    torch.testing.assert_close(found["state"], found["weak"])
    assert not torch.allclose(found["weak"][0][0], found["strong"][0][0])


def test_layers_that_are_in_no_group_keep_their_gradients():
    net, (inputs, targets) = network(), batch()
    opt = ProxProp(net, base="sgd", lr=0.5, params=list(net[0].parameters()))
    plainly(net, opt, inputs, targets)
    before = net[2].weight.grad.clone()
    opt.step()
    assert torch.equal(net[2].weight.grad, before)


def test_a_gradient_from_elsewhere_is_refused():
    net, (inputs, targets) = network(), batch()
    loss = nn.functional.cross_entropy(net(inputs), targets)
    opt = ProxProp(net)  # made after the forward pass
    loss.backward()
    with pytest.raises(ValueError, match=r"no input of a Linear with weights \(5, 4\).*torch\.compiler\.reset\(\)"):
        opt.step()


@pytest.mark.filterwarnings("ignore::UserWarning")  # the compiler traces the checks of types that tests add
def test_a_network_compiled_before_is_refused_until_it_is_compiled_anew():
    expected = ends(plainly)[0]
    net, (inputs, targets) = network(), batch()
    compiled = torch.compile(net, backend="eager")
    compiled(inputs)
    opt = ProxProp(net, base="sgd", lr=0.5, iterations=None)
    plainly(compiled, opt, inputs, targets)
    with pytest.raises(ValueError, match=r"call torch\.compiler\.reset\(\) once the optimizer is made"):
        opt.step()
    torch.compiler.reset()
    plainly(compiled, opt, inputs, targets)
    opt.step()
    torch.compiler.reset()
    torch.testing.assert_close([w.detach() for w in net.parameters()], expected)


def test_it_needs_the_model():
    with pytest.raises(TypeError, match="needs the model itself"):
        inspect.unwrap(ProxProp.__init__)(object.__new__(ProxProp), network().parameters())


def test_an_optimizer_that_is_gone_records_nothing():
    net, (inputs, targets) = network(), batch()
    opt = ProxProp(net)
    twin = ProxProp(net)
    plainly(net, twin, inputs, targets)
    assert [len(found) for found in opt._inputs.values()] == [1, 1]
    del opt
    plainly(net, twin, inputs, targets)
    twin.step()
    assert [len(found) for found in twin._inputs.values()] == [0, 0]
