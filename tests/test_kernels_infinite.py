"""Infinitely wide networks: the closed form against finite widths, quadrature and identities; and what they predict."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from landscope.kernels import KernelSystem, alignment, cosine, drift, infinite_ntk, linearised_outputs, nngp, ntk
from landscope.losses import squared_error
from landscope.models import ScaledLinear, mlp, seeded, wide_mlp


@pytest.fixture(autouse=True)
def _forked():
    with seeded(0):
        yield


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the closed form ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("weight", "bias"), [(2.0, 0.0), (1.5, 0.4)])
def test_one_layer_is_the_expectation_over_two_gaussians(weight: float, bias: float):
    x = drawn(2, 5)
    first = weight * x @ x.T / 5 + bias
    density = stats.multivariate_normal(np.zeros(2), first.numpy()).pdf  # pyright: ignore[reportArgumentType]

    def mean(of: Any) -> float:
        return integrate.dblquad(lambda v, u: of(u, v) * density((u, v)), 0, 12, 0, 12, epsabs=1e-7)[0]

    expected = weight * mean(lambda u, v: u * v) + bias  # both are active on the positive quadrant alone
    slopes = weight * mean(lambda u, v: 1.0)
    setting = {"depth": 1, "weight_variance": weight, "bias_variance": bias}
    assert nngp(x, **setting)[0, 1].item() == pytest.approx(expected, abs=1e-5)
    assert infinite_ntk(x, **setting)[0, 1].item() == pytest.approx(expected + slopes * first[0, 1].item(), abs=1e-5)


def test_on_the_diagonal_the_kernels_are_what_the_recursion_says():
    x = drawn(4, 7)
    variance = 2 * x.square().mean(1)
    for depth in (1, 2, 5):
        torch.testing.assert_close(nngp(x, depth=depth).diagonal(), variance)
        torch.testing.assert_close(infinite_ntk(x, depth=depth).diagonal(), (depth + 1) * variance)


def test_inputs_of_zeros_and_opposite_ones_and_float32():
    x = torch.tensor([[0.0, 0.0], [1.0, 2.0], [-1.0, -2.0], [1.0, 2.0]], dtype=torch.float64)
    found = infinite_ntk(x, depth=3)
    assert torch.isfinite(found).all()
    assert not found[0].any()
    assert found[1, 3] == found[1, 1]
    assert torch.linalg.eigvalsh(found)[0] > -1e-12
    single = infinite_ntk(x.float(), depth=3)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), found, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(infinite_ntk(x, x[:2], depth=3), found[:, :2])
    images = drawn(3, 1, 2, 2)
    torch.testing.assert_close(infinite_ntk(images, depth=2), infinite_ntk(images.flatten(1), depth=2))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"depth": 0}, "at least 1 hidden layer"),
        ({"depth": -2}, "at least 1 hidden layer"),
        ({"depth": 2, "weight_variance": 0.0}, "weight_variance is above 0"),
        ({"depth": 2, "bias_variance": -0.1}, "bias_variance at least 0"),
        ({"depth": 2, "weight_variance": math.nan}, "weight_variance is above 0"),
    ],
)
def test_impossible_networks_are_refused(wrong: dict[str, Any], message: str):
    for kernel in (infinite_ntk, nngp):
        with pytest.raises(ValueError, match=message):
            kernel(drawn(2, 3), **wrong)
    if "depth" not in wrong or wrong["depth"] < 1:
        with pytest.raises(ValueError, match="at least 1"):
            wide_mlp((3,), 2, width=4, depth=wrong["depth"])
    else:
        with pytest.raises(ValueError, match=message):
            wide_mlp((3,), 2, width=4, parametrisation="ntk", **wrong)


def test_sizes_and_parametrisations_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="the same number of values, not 3 and 4"):
        infinite_ntk(drawn(2, 3), drawn(2, 4), depth=1)
    for width in (0, -8):
        with pytest.raises(ValueError, match="sizes of at least 1"):
            wide_mlp((3,), 2, width=width)
    with pytest.raises(ValueError, match="parametrisation is one of 'standard', 'ntk', not 'mup'"):
        wide_mlp((3,), 2, width=4, parametrisation="mup")
    with pytest.raises(ValueError, match="sizes of at least 1"):
        ScaledLinear(3, 0)


# --- finite widths --------------------------------------------------------------------------------------------------


def one_pair(width: int, draws: int, x: Tensor) -> Tensor:
    """The kernel of two inputs of ``draws`` networks, two hidden layers and one output: ``[draws]``."""
    nets = [wide_mlp((x.shape[1],), 1, width=width, depth=2, parametrisation="ntk").double() for _ in range(draws)]
    weights, _ = stack_module_state(nets)  # pyright: ignore[reportArgumentType]
    base = nets[0]

    def kernel(own: dict[str, Tensor]) -> Tensor:
        def outputs(w: dict[str, Tensor], i: int) -> Tensor:
            return functional_call(base, w, (x[i : i + 1],)).sum()

        first, second = (torch.func.grad(outputs)(own, i) for i in (0, 1))
        return torch.stack([(first[name] * second[name]).sum() for name in own]).sum()

    return vmap(kernel, chunk_size=8)({name: w.detach() for name, w in weights.items()})


COSINE = 0.15348548  # of two inputs of mean square 1, at which the infinite kernel of two hidden layers is 1.696
# Of 60 draws: mean, its standard error, standard deviation.
FIGURES = {128: (1.723, 0.053, 0.41), 512: (1.694, 0.029, 0.23), 1024: (1.691, 0.017, 0.13)}


def test_finite_networks_scatter_around_the_infinite_one_as_one_over_the_root_of_the_width():
    x = 2 * torch.tensor([[1, 0, 0, 0], [COSINE, math.sqrt(1 - COSINE**2), 0, 0]], dtype=torch.float64)
    infinite = infinite_ntk(x, depth=2)[0, 1].item()
    assert infinite == pytest.approx(1.696, abs=1e-6)
    spread = {}
    for width, (mean, sem, sd) in FIGURES.items():
        found = one_pair(width, 60, x)
        spread[width] = found.std().item()
        own = spread[width] / math.sqrt(60)
        assert abs(found.mean().item() - infinite) < 4 * own
        assert abs(found.mean().item() - mean) < 4 * math.hypot(own, sem)
        assert abs(math.log(spread[width] / sd)) < 4 / math.sqrt(60)  # each is known to 1 / √(2 · 60)
    for wide in (512, 1024):
        assert abs(math.log(spread[128] / spread[wide]) - 0.5 * math.log(wide / 128)) < 4 / math.sqrt(60)


def test_the_layers_way_agrees_with_gradients_on_one_of_these_networks_and_with_the_limit():
    x = drawn(6, 10)
    net = wide_mlp((10,), 3, width=1024, depth=2, parametrisation="ntk", bias_variance=0.1).double()
    found = ntk(net, x) / 3  # the mean over outputs
    expected = infinite_ntk(x, depth=2, bias_variance=0.1)
    assert drift(found, expected) < 0.2
    assert cosine(found, expected) > 0.99


def test_the_standard_parametrisation_is_the_plain_network_to_the_bit():
    nets = []
    for make in (lambda: wide_mlp((5,), 2, width=4), lambda: mlp((5,), 2, widths=(4, 4, 4))):
        with seeded(3):
            nets.append(make().state_dict())
    assert nets[0].keys() == nets[1].keys()
    assert all(torch.equal(nets[0][name], nets[1][name]) for name in nets[0])


def test_at_initialisation_the_outputs_have_the_limits_covariance():
    x = drawn(2, 6).float()
    nets = [wide_mlp((6,), 8, width=128, depth=2, parametrisation="ntk", bias_variance=0.2) for _ in range(150)]
    with torch.no_grad():
        outputs = torch.stack([net(x) for net in nets]).double()  # [draws, 2, 8]
    product = (outputs[:, 0] * outputs[:, 1]).mean(1)
    sem = product.std().item() / math.sqrt(len(nets))
    assert abs(product.mean().item() - nngp(x, depth=2, bias_variance=0.2)[0, 1].item()) < 4 * sem


# --- what a kernel predicts -----------------------------------------------------------------------------------------


def linear_case() -> tuple[nn.Linear, Tensor, Tensor, Tensor]:
    net = nn.Linear(6, 3).double()
    return net, drawn(5, 6), drawn(5, 3, seed=1), drawn(4, 6, seed=2)


@pytest.mark.parametrize("whole", [True, False])
def test_a_linear_network_trains_just_as_its_kernel_says(whole: bool):
    net, x, y, other = linear_case()
    start, there = net(x).detach(), net(other).detach()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return ntk(net, a, b, trace_outputs=False) if whole else ntk(net, a, b) / 3

    system = KernelSystem(kernel(x, x), start, y)
    rate, cross = 0.9 * system.largest_rate, kernel(other, x)
    predicted = {steps: there + system.change(cross, rate=rate, steps=steps) for steps in (0, 1, 20)}
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    for step in range(21):
        if step in predicted:
            torch.testing.assert_close(net(other).detach(), predicted[step])
        optimizer.zero_grad()
        squared_error()(net(x), y).backward()
        optimizer.step()
    # Kernel regression is the solution that lies nearest to the start.
    design = torch.cat([x, torch.ones(5, 1, dtype=torch.float64)], 1)
    solution = torch.linalg.pinv(design) @ (y - start)
    expected = there + torch.cat([other, torch.ones(4, 1, dtype=torch.float64)], 1) @ solution
    torch.testing.assert_close(there + system.change(cross), expected)


def test_flow_is_the_limit_of_small_steps_and_its_time_is_found_from_the_loss():
    net, x, y, other = linear_case()
    system = KernelSystem(ntk(net, x, trace_outputs=False), net(x).detach(), y)
    cross, time = ntk(net, other, x, trace_outputs=False), 1.7
    fine = system.change(cross, rate=time / 200_000, steps=200_000)
    torch.testing.assert_close(system.change(cross, time=time), fine, rtol=1e-4, atol=1e-5)
    assert system.loss(0.0) == pytest.approx(squared_error()(net(x), y).item())
    assert system.time_to(system.loss(time)) == pytest.approx(time)
    assert system.time_to(2 * system.loss(0.0)) is None
    assert system.time_to(0.0) is None


def test_directions_in_which_the_kernel_is_0_are_not_learnt():
    net, x, y, other = linear_case()
    twice, targets = torch.cat([x, x]), torch.cat([y, y + 1])  # equal inputs, unequal targets: a singular kernel
    system = KernelSystem(ntk(net, twice) / 3, net(twice).detach(), targets)
    found = net(twice).detach() + system.change(ntk(net, twice, twice) / 3)
    torch.testing.assert_close(found, torch.cat([y, y]) + 0.5)
    assert system.loss(math.inf) == pytest.approx(3 * 0.25)
    assert system.time_to(3 * 0.2) is None
    assert torch.isfinite(system.change(ntk(net, other, twice) / 3)).all()


def test_what_a_system_cannot_do_is_refused():
    net, x, y, _ = linear_case()
    kernel = ntk(net, x, trace_outputs=False)
    system = KernelSystem(kernel, y, y)
    with pytest.raises(ValueError, match=r"diverges on this kernel: from [\d.e-]+ on"):
        system.change(kernel, rate=1.01 * system.largest_rate, steps=3)
    with pytest.raises(ValueError, match="no negative time"):
        system.change(kernel, time=-1.0)
    with pytest.raises(ValueError, match=r"these have \(5, 5\) and \(5, 2\)"):
        KernelSystem(ntk(net, x), y, y[:, :2])
    with pytest.raises(ValueError, match=r"\(4, 4\)"):
        KernelSystem(ntk(net, x[:4]), y, y)


def test_the_linearisation_is_exact_for_a_linear_network_and_of_second_order_for_others():
    net, x, _, _ = linear_case()
    for model, exact in (
        (net, True),
        (nn.Sequential(net, nn.Tanh(), nn.BatchNorm1d(3), nn.Linear(3, 2)).double(), False),
    ):
        start = {name: t.clone() for name, t in model.state_dict().items()}
        model.eval()
        first, errors = model(x).detach(), []
        directions = [torch.randn_like(p) for p in model.parameters()]
        for size in (1e-2, 1e-3):
            with torch.no_grad():
                for (name, p), direction in zip(model.named_parameters(), directions, strict=True):
                    p.copy_(start[name] + size * direction)
            model.train()
            found, linear = linearised_outputs(model, start, x)
            assert model.training
            model.eval()
            torch.testing.assert_close(found, first)
            errors.append((model(x) - linear).norm().item())
        assert errors[0] < 1e-13 if exact else errors[0] / errors[1] == pytest.approx(100, rel=0.1)


def test_alignment_is_the_cosine_with_the_targets_kernel():
    k = drawn(6, 6)
    k, y = k @ k.T, drawn(6, 2, seed=1)
    assert alignment(k, y) == pytest.approx(((k * (y @ y.T)).sum() / k.norm() / (y @ y.T).norm()).item())
    centre = torch.eye(6, dtype=torch.float64) - 1 / 6
    shifted = alignment(k, y, centred=True)
    assert shifted == pytest.approx(cosine(centre @ k @ centre, centre @ (y @ y.T) @ centre))
    assert shifted == pytest.approx(alignment(k + 5, y, centred=True))
    with pytest.raises(ValueError, match="no direction"):
        alignment(k, torch.ones(6, 1), centred=True)


@pytest.mark.docs
def test_the_pages_code_runs_and_gives_the_shapes_and_sizes_that_it_tells_of(root: Path, capsys: Any):
    page = (root / "docs/kernels.md").read_text(encoding="utf-8")
    shapes, predictions = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for source in (shapes, predictions):
        found: dict[str, Any] = {}
        exec(compile(source, "kernels.md", "exec"), found)  # noqa: S102 - our own page
        if source is shapes:
            assert (found["kernel"].shape, found["whole"].shape) == ((20, 20), (20, 20, 10, 10))
            assert found["off"] < 0.15
        else:
            assert found["off"][1024] < 0.1 < found["off"][16]
    assert "width 1024" in capsys.readouterr().out
