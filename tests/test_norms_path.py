"""Path norms and κ against paths counted one by one, against second derivatives, and what cannot be followed."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from landscope.norms import kappa, path_norm


class Residual(nn.Module):
    """A stem, a branch scaled by a constant that is added to the stream, concatenation, pooling and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 3, padding=1)
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1, bias=False)
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x + self.second(F.relu(self.first(x))) / 2**0.5
        x = torch.cat([x, F.leaky_relu(x)], 1)
        return self.head(torch.flatten(self.pool(x).mean((2, 3)), 1))


def perturb(bn: Any) -> None:
    for tensor in (bn.weight, bn.bias, bn.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(bn.running_var, 0.5, 2)


def bn_net() -> nn.Sequential:
    net = nn.Sequential(
        *(nn.Conv2d(2, 3, 3, bias=True), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.AvgPool2d(2), nn.Flatten()),
        *(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 2)),
    )
    for module in net:
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            perturb(module)
    return net


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (3,)),
    "residual": (Residual, (1, 4, 4)),
    "batchnorm": (bn_net, (2, 4, 4)),
}


def made(name: str) -> tuple[Any, tuple[int, ...]]:
    torch.manual_seed(0)
    maker, shape = NETWORKS[name]
    return maker().double(), shape


def paths_of(net: nn.Sequential) -> list[list[tuple[str, tuple[int, ...]]]]:
    """Every path of an MLP as the weights on it: from an input, or from a bias."""
    names = [name for name, module in net.named_children() if isinstance(module, nn.Linear)]
    layers: list[Any] = [net.get_submodule(name) for name in names]
    sizes: list[int] = [layers[0].in_features, *(layer.out_features for layer in layers)]
    found = []
    for start in range(len(names) + 1):  # at the inputs, or at the bias of a layer
        free = sizes if start == 0 else sizes[start:]
        for units in itertools.product(*map(range, free)):
            edges = [] if start == 0 else [(f"{names[start - 1]}.bias", (units[0],))]
            crossed = names if start == 0 else names[start:]
            edges += [(f"{name}.weight", (units[i + 1], units[i])) for i, name in enumerate(crossed)]
            found.append(edges)
    return found


@pytest.mark.parametrize("p", [1.0, 2.0, 1.5])
def test_the_path_norm_of_an_mlp_is_the_sum_over_its_paths(p):
    net, shape = made("mlp")
    weights = {name: w.detach() for name, w in net.named_parameters()}
    total = 0.0
    for edges in paths_of(net):
        product = 1.0
        for name, place in edges:
            product *= abs(weights[name][place].item()) ** p
        total += product
    torch.testing.assert_close(path_norm(net, shape, p=p).item(), total ** (1 / p), rtol=1e-13, atol=0)


def test_kappa_of_an_mlp_is_the_sum_over_the_paths_through_a_weight():
    net, shape = made("mlp")
    weights = {name: w.detach() for name, w in net.named_parameters()}
    expected = {name: torch.zeros_like(w) for name, w in weights.items()}
    for edges in paths_of(net):
        for name, place in edges:
            others = [weights[n][q].item() ** 2 for n, q in edges if n != name]
            expected[name][place] += torch.tensor(others, dtype=torch.float64).prod()
    torch.testing.assert_close(kappa(net, shape), expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("pool", ["sum", "max"])
def test_kappa_is_half_the_second_derivative_of_the_squared_path_norm(name, pool):
    net, shape = made(name)
    found = kappa(net, shape, pool=pool)
    squared = path_norm(net, shape, pool=pool, batchnorm="diagonal") ** 2
    parameters = dict(net.named_parameters())
    firsts = torch.autograd.grad(squared, list(parameters.values()), create_graph=True)
    for (name, w), first in zip(parameters.items(), firsts, strict=True):
        for place in itertools.islice(itertools.product(*map(range, w.shape)), 0, None, 3):
            second = torch.autograd.grad(first[place], w, retain_graph=True)[0][place]
            torch.testing.assert_close(found[name][place], second / 2, rtol=1e-12, atol=1e-14)


def test_the_path_norm_is_the_output_for_ones_where_all_weights_are_positive():
    # p = 1 and no minus sign: every unit is linear on ones, so the ordinary forward pass sums the same paths.
    net, shape = made("residual")
    with torch.no_grad():
        for w in net.parameters():
            w.abs_()
        net.pool = nn.Identity()
        expected = net(torch.ones(1, *shape, dtype=torch.float64)).sum()
    torch.testing.assert_close(path_norm(net, shape, p=1.0), expected)


def test_batchnorm_is_folded_into_the_layer_before_it():
    net, shape = made("batchnorm")
    conv, bn = net[0], net[1]
    folded = torch.nn.utils.fuse_conv_bn_eval(conv.eval(), bn.eval())
    linear = torch.nn.utils.fuse_linear_bn_eval(net[5].eval(), net[6].eval())
    twin = nn.Sequential(folded, net[2], net[3], net[4], linear, net[7], net[9])
    torch.testing.assert_close(path_norm(net, shape), path_norm(twin, shape))
    torch.testing.assert_close(path_norm(net, shape, p=1.0), path_norm(twin, shape, p=1.0))


def test_a_batchnorm_that_follows_no_layer_is_a_layer_of_its_own():
    torch.manual_seed(0)
    bn: Any = nn.BatchNorm1d(3).double()
    perturb(bn)
    scale = bn.weight / (bn.running_var + bn.eps).sqrt()
    expected = (scale.square() + (bn.bias - scale * bn.running_mean).square()).sum().sqrt()
    torch.testing.assert_close(path_norm(nn.Sequential(nn.ReLU(), bn), (3,)), expected)


@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool2d(2),
        nn.AvgPool2d(3, stride=2, padding=1),
        nn.AdaptiveAvgPool2d(3),
        nn.AdaptiveAvgPool2d((1, 5)),
        nn.MaxPool2d(2),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.MaxPool2d(2, stride=3, ceil_mode=True),
        nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
        nn.AdaptiveMaxPool2d(3),
    ],
    ids=repr,
)
@pytest.mark.parametrize("p", [1.0, 2.0])
def test_pooling_counts_the_inputs_of_each_window(pool, p):
    # The weights of a pooling are read off its Jacobian: of an average as they are, of a maximum whether there is one.
    layer = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.ones_(layer.weight)
    net = nn.Sequential(layer, pool).double()
    reach = torch.zeros(())
    for place in range(49):
        x = torch.zeros(49, dtype=torch.float64)
        x[place] = 1
        y = pool(x.reshape(1, 1, 7, 7)).abs()
        reach = reach + (y if "Avg" in type(pool).__name__ else (y > 0).double()).pow(p).sum()
    torch.testing.assert_close(path_norm(net, (1, 7, 7), p=p) ** p, reach.double())


def test_only_the_largest_input_of_a_window_counts_if_told_so():
    layer = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.constant_(layer.weight, 3)
    net = nn.Sequential(layer, nn.MaxPool2d(2)).double()
    assert path_norm(net, (1, 4, 4), pool="max").item() == pytest.approx(6)
    assert path_norm(net, (1, 4, 4), pool="sum").item() == pytest.approx(12)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_is_left_as_it_was(name):
    net, shape = made(name)
    next(net.children()).eval()
    modes = [m.training for m in net.modules()]
    before = {n: t.clone() for n, t in net.state_dict().items()}
    kappa(net, shape)
    path_norm(net, shape)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes
    assert all(w.grad is None for w in net.parameters())


def test_the_path_norm_has_a_gradient_for_each_member_of_a_stack():
    net, shape = made("batchnorm")
    net.eval()
    weights = {n: torch.stack([w.detach(), 2 * w.detach()]) for n, w in net.named_parameters()}

    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self) -> Tensor:
            return path_norm(self.net, shape)

    outer = Norm()

    def norm(w: dict[str, Tensor]) -> Tensor:
        return functional_call(outer, {f"net.{n}": x for n, x in w.items()}, ())

    stacked = vmap(grad(norm))(weights)
    for member in range(2):
        alone = grad(norm)({n: w[member] for n, w in weights.items()})
        torch.testing.assert_close({n: g[member] for n, g in stacked.items()}, alone)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.relu(self.layer(x)))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) * x


class Padded(nn.Module):
    """Ways to write the same operations: concatenated zeros, sums with a factor, in place, by methods and operators."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight.T * self.scale
        y = torch.cat([y, y.new_zeros(len(y), 1)], 1)
        y = F.pad(y.clamp(min=0), (1, 0))
        y += 0.5 * y
        z = torch.add(y, y, alpha=2).sub(1.0)
        return (3 * z.narrow(1, 1, 3) / 2).unsqueeze(-1).amax(2).transpose(0, 1).sum(0, keepdim=True)


def test_operations_may_be_written_in_any_way():
    torch.manual_seed(0)
    net = Padded().double()
    w, s = net.weight.detach(), net.scale.detach()
    # p = 1: |x·w·s|·1.5·(1 + 2), minus 1 in each of three places, times 3/2.
    expected = ((w.abs().sum(1) * s.abs()).sum() * 1.5 * 3 + 3) * 1.5
    torch.testing.assert_close(path_norm(net, (2,), p=1.0), expected)
    # p = 2: the square of each factor, and y + y/2 are two edges.
    squared = ((w.square().sum(1) * s.square()).sum() * (1 + 0.25) * (1 + 4) + 3) * 9 / 4
    torch.testing.assert_close(path_norm(net, (2,)) ** 2, squared)
    torch.testing.assert_close(kappa(net, (2,))["scale"], w.square().sum(1) * 1.25 * 5 * 9 / 4)


class Idle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.Tanh()), r"module '1' \(Tanh\) cannot be followed: it applies tanh"),
        (nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.LayerNorm(2))), r"'1\.0' \(LayerNorm\).*layer_norm"),
        (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False)), r"'1' \(BatchNorm1d\).*batch"),
        (nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))), "'0.*computes a weight from"),
        (Gated(), r"the model \(Gated\.forward\).*both come from the input"),
        (Tied(), "'layer.weight' is used 2 times"),
        (Idle(), "'idle.weight' lies on no path"),
        (nn.ReLU(), "no parameters"),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, nn.Module) else "",
)
def test_what_cannot_be_followed_is_named(net, message):
    with pytest.raises(ValueError, match=message):
        kappa(net, (2,))


def test_settings_out_of_range_are_refused():
    net, shape = made("mlp")
    with pytest.raises(ValueError, match="above 0, not 0"):
        path_norm(net, shape, p=0.0)
    with pytest.raises(ValueError, match="finite exponent p above 0, not inf"):
        path_norm(net, shape, p=math.inf)
    with pytest.raises(ValueError, match="'mean'"):
        path_norm(net, shape, pool="mean")
    with pytest.raises(ValueError, match="'fold'"):
        path_norm(net, shape, batchnorm="fold")
    with torch.no_grad():
        next(net.parameters()).fill_(float("inf"))
    with pytest.raises(ValueError, match="not finite"):
        kappa(net, shape)
