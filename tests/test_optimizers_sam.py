"""SAM, ASAM and GSAM against their formulas by hand; BatchNorm, clipping, autocast and gradient scaling."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from landscope.optimizers import ASAM, GSAM, SAM, asam_perturbation, gsam_direction, sam_perturbation

LR = 0.1


def network(*norms: nn.Module) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), *norms, nn.ReLU(), nn.Linear(4, 2)).double()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return 3 * torch.randn(8, 3, generator=generator, dtype=torch.float64), torch.arange(8) % 2


def loss_of(net: nn.Module, weights: dict[str, Tensor]) -> Tensor:
    inputs, targets = batch()
    return nn.functional.cross_entropy(functional_call(net, weights, (inputs,)), targets)


def gradient(net: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    leaves = {name: w.detach().requires_grad_() for name, w in weights.items()}
    return dict(zip(leaves, torch.autograd.grad(loss_of(net, leaves), list(leaves.values())), strict=True))


def closure_of(net: nn.Module, opt: torch.optim.Optimizer) -> Callable[[], Tensor]:
    inputs, targets = batch()

    def closure() -> Tensor:
        opt.zero_grad()
        loss = nn.functional.cross_entropy(net(inputs), targets)
        loss.backward()
        return loss

    return closure


def length(tensors: dict[str, Tensor]) -> Tensor:
    return torch.stack([t.square().sum() for t in tensors.values()]).sum().sqrt()


def by_hand(
    net: nn.Module, scale: Callable[[str, Tensor], Tensor], rho: float, alpha: float = 0.0
) -> dict[str, Tensor]:
    """The weights after one step, tensor by tensor from the papers' formulas."""
    w = {name: p.detach().clone() for name, p in net.named_parameters()}
    g = gradient(net, w)
    t = {name: scale(name, x) for name, x in w.items()}
    norm = length({name: t[name] * g[name] for name in g})
    seen = gradient(net, {name: w[name] + rho * t[name] ** 2 * g[name] / norm for name in w})
    dot = torch.stack([(g[name] * seen[name]).sum() for name in g]).sum()
    orthogonal = {name: g[name] - dot / length(seen) ** 2 * seen[name] for name in g}
    return {name: w[name] - LR * (seen[name] - alpha * orthogonal[name]) for name in w}


def one(name: str, w: Tensor) -> Tensor:
    return torch.ones_like(w)


CASES: dict[str, tuple[Callable[[Any], Any], Callable[[str, Tensor], Tensor], float, float]] = {
    "SAM": (lambda net: SAM(net.parameters(), lr=LR, rho=0.3), one, 0.3, 0.0),
    "ASAM, matrices": (
        lambda net: ASAM(net.parameters(), lr=LR, rho=0.3),
        lambda name, w: w.abs() + 0.01 if w.dim() > 1 else torch.ones_like(w),
        *(0.3, 0.0),
    ),
    "ASAM, by name": (
        lambda net: ASAM(net.named_parameters(), lr=LR, rho=0.3, eta=0.05, scope="weights"),
        lambda name, w: w.abs() + 0.05 if "weight" in name else torch.ones_like(w),
        *(0.3, 0.0),
    ),
    "ASAM, all": (
        lambda net: ASAM(net.parameters(), lr=LR, rho=0.3, eta=0.0, scope="all"),
        lambda name, w: w.abs(),
        *(0.3, 0.0),
    ),
    "GSAM": (lambda net: GSAM(net.parameters(), lr=LR, rho=0.3, alpha=0.4), one, 0.3, 0.4),
    "GSAM, adaptive": (
        lambda net: GSAM(net.parameters(), lr=LR, rho=0.3, alpha=0.4, scope="all"),
        lambda name, w: w.abs(),
        *(0.3, 0.4),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_the_papers_formula(case):
    make, scale, rho, alpha = CASES[case]
    net = network(nn.BatchNorm1d(4))
    expected = by_hand(network(nn.BatchNorm1d(4)), scale, rho, alpha)
    opt = make(net)
    opt.step(closure_of(net, opt))
    torch.testing.assert_close({n: w.detach() for n, w in net.named_parameters()}, expected)


def test_many_networks_at_once_are_stepped_as_each_alone():
    g, w = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    rho = torch.tensor([[0.1], [0.2], [0.3]], dtype=torch.float64)
    scaled = torch.tensor([True, True, False, True, False])
    for member in range(3):
        alone: tuple[Tensor, Tensor] = g[member], w[member]
        one_rho = rho[member].item()
        torch.testing.assert_close(sam_perturbation(g, rho=rho)[member], sam_perturbation(alone[0], rho=one_rho))
        torch.testing.assert_close(
            asam_perturbation(g, w, scaled, rho=rho, eta=0.1)[member],
            asam_perturbation(*alone, scaled, rho=one_rho, eta=0.1),
        )
        torch.testing.assert_close(gsam_direction(g, w, alpha=rho)[member], gsam_direction(*alone, alpha=one_rho))


def test_perturbations_have_the_radius_in_their_own_norm():
    g, w = torch.randn(7, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    assert sam_perturbation(g, rho=0.3).norm().item() == pytest.approx(0.3)
    step = asam_perturbation(g, w, None, rho=0.3, eta=0.1) / (w.abs() + 0.1)
    assert step.norm().item() == pytest.approx(0.3)
    assert not sam_perturbation(torch.zeros(3), rho=0.3).any()


def test_gsam_leaves_the_perturbed_loss_to_first_order_and_raises_the_other():
    first, second = torch.randn(9, dtype=torch.float64), torch.randn(9, dtype=torch.float64)
    added = gsam_direction(first, second, alpha=0.4) - second
    assert (added @ second).item() == pytest.approx(0, abs=1e-12)
    assert (added @ first).item() < 0


class Counting(nn.Module):
    """A layer of a user's own that keeps a buffer, and replaces another."""

    seen: Tensor
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        self.mean = 0.5 * self.mean + 0.5 * x.detach().mean(0)
        return x


@pytest.mark.parametrize("make", [SAM, ASAM, GSAM])
@pytest.mark.parametrize("way", ["closure", "perturbed"])
@pytest.mark.parametrize(
    "norm", [lambda: nn.BatchNorm1d(4), lambda: nn.BatchNorm1d(4, momentum=None), Counting], ids=["0.1", "mean", "own"]
)
def test_statistics_are_touched_once_a_step(make, way, norm):
    net, twin = network(norm()), network(norm())
    opt = make(net.parameters(), lr=LR, rho=1.0)
    closure = closure_of(net, opt)
    for number in range(3):
        twin.load_state_dict(net.state_dict())
        twin(batch()[0])
        if way == "closure":
            opt.step(closure)
        else:
            closure()
            with opt.perturbed():
                closure()
            opt.step()
        buffers = dict(twin.named_buffers())
        assert all(torch.equal(b, buffers[n]) for n, b in net.named_buffers()), number
    assert any(b.any() for b in net.buffers())
    assert not torch.nn.modules.module._global_forward_pre_hooks


@pytest.mark.filterwarnings("ignore:Using `torch.compile:UserWarning")  # it calls global hooks once more
@pytest.mark.parametrize("way", ["around", "inside", "a part"])
def test_statistics_of_compiled_networks_are_touched_once_a_step(way):
    net, twin = network(nn.BatchNorm1d(4)), network(nn.BatchNorm1d(4))
    called: Any = net
    if way == "around":
        called = torch.compile(net, backend="eager")
    elif way == "inside":
        net.compile(backend="eager")
    else:
        part: Any = torch.compile(nn.Sequential(net[0], net[1]), backend="eager")
        called = nn.Sequential(part, net[2], net[3])
    opt = SAM(net.parameters(), lr=LR, rho=1.0)
    closure = closure_of(called, opt)
    for number in range(2):
        twin.load_state_dict(net.state_dict())
        twin(batch()[0])
        opt.step(closure)
        assert all(torch.equal(b, dict(twin.named_buffers())[n]) for n, b in net.named_buffers()), number
    torch._dynamo.reset()  # pyright: ignore[reportPrivateImportUsage]


def test_the_second_pass_normalises_by_the_batch():
    # Not by running statistics: the step equals the one by hand, which is in training mode throughout (see CASES).
    net = network(nn.BatchNorm1d(4))
    opt = SAM(net.parameters(), lr=LR, rho=0.3)
    modes = []
    net[1].register_forward_pre_hook(lambda module, args: modes.append(module.training))
    opt.step(closure_of(net, opt))
    assert modes == [True, True]


def test_weights_and_statistics_come_back_after_an_exception():
    net = network(nn.BatchNorm1d(4))
    opt = SAM(net.parameters(), lr=LR, rho=1.0)
    closure_of(net, opt)()
    before = {n: t.clone() for n, t in net.state_dict().items()}

    def failing() -> None:
        with opt.perturbed():
            net(batch()[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        failing()
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    with pytest.raises(ValueError, match="needs two gradients"):
        opt.step()


def test_gradients_are_clipped_before_the_step():
    for way in ("setting", "by hand", "in the closure"):
        net = network()
        opt = SAM(net.parameters(), lr=LR, rho=0.1, clip=0.01 if way == "setting" else None)
        closure = closure_of(net, opt)
        before = torch.cat([w.detach().flatten() for w in net.parameters()])

        def clipping(closure: Callable[[], Tensor] = closure, net: nn.Module = net) -> Tensor:
            loss = closure()
            nn.utils.clip_grad_norm_(net.parameters(), 0.01)
            return loss

        if way == "by hand":
            closure()
            with opt.perturbed():
                closure()
            nn.utils.clip_grad_norm_(net.parameters(), 0.01)
            opt.step()
        else:
            opt.step(closure if way == "setting" else clipping)
        moved = torch.cat([w.detach().flatten() for w in net.parameters()]) - before
        assert moved.norm().item() == pytest.approx(LR * 0.01, rel=1e-3)


@pytest.mark.parametrize("make", [SAM, ASAM, GSAM])
def test_a_gradient_scaler_changes_nothing(make):
    ends = []
    for scaled in (False, True):
        net = network(nn.BatchNorm1d(4)).float()
        opt = make(net.parameters(), lr=LR, momentum=0.9)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)  # pyright: ignore[reportPrivateImportUsage]
        inputs, targets = batch()

        def backward(net: nn.Module = net, scaler: Any = scaler, inputs: Tensor = inputs, targets: Tensor = targets):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = nn.functional.cross_entropy(net(inputs.float()), targets)
            scaler.scale(loss).backward()

        for _ in range(3):
            opt.zero_grad()
            backward()
            with opt.perturbed(scale=scaler.get_scale()):
                opt.zero_grad()
                backward()
            scaler.step(opt)
            scaler.update()
        ends.append([w.detach() for w in net.parameters()])
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-7)
    assert ends[0][0].dtype == torch.float32


def test_a_step_that_a_scaler_skips_leaves_the_weights():
    net = network().float()
    opt = SAM(net.parameters(), lr=LR)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)  # pyright: ignore[reportPrivateImportUsage]
    before = [w.detach().clone() for w in net.parameters()]
    for w in net.parameters():
        w.grad = torch.full_like(w, float("inf"))
    scaler.scale(torch.zeros(()))
    with opt.perturbed(scale=scaler.get_scale()):
        opt.zero_grad()
        scaler.scale(net(batch()[0].float()).sum()).backward()
    scaler.step(opt)
    assert all(torch.equal(w, old) for w, old in zip(net.parameters(), before, strict=True))
    assert opt.gradients == 0
    opt.zero_grad()
    net(batch()[0].float()).sum().backward()
    with pytest.raises(ValueError, match="needs two gradients a step"):  # the skipped step's first is gone
        opt.step()


def test_groups_have_radii_of_their_own():
    net = network()
    layers = [net[0], net[2]]
    opt = SAM([{"params": layers[0].parameters(), "rho": 0.0}, {"params": layers[1].parameters()}], lr=LR, rho=0.3)
    w = {name: p.detach().clone() for name, p in net.named_parameters()}
    g = gradient(net, w)
    seen = gradient(net, {n: w[n] + (0.3 if n.startswith("2") else 0.0) * g[n] / length(g) for n in w})
    opt.step(closure_of(net, opt))
    torch.testing.assert_close({n: p.detach() for n, p in net.named_parameters()}, {n: w[n] - LR * seen[n] for n in w})


def test_what_groups_and_states_say_counts():
    net = network()
    w = {name: p.detach().clone() for name, p in net.named_parameters()}
    scales = {n: w[n].abs() + 0.01 if n != "0.bias" else torch.ones_like(w[n]) for n in w}  # by by_hand's argument
    expected = by_hand(network(), lambda name, x: scales[name], 0.3)
    groups = [{"params": net[0].parameters()}, {"params": net[2].parameters(), "scope": "all"}]
    opt = ASAM(groups, lr=LR, rho=0.3)
    opt.step(closure_of(net, opt))
    torch.testing.assert_close({n: p.detach() for n, p in net.named_parameters()}, expected)

    net = network()
    opt = GSAM(net.parameters(), lr=1.0, rho=0.1, alpha=0.0)
    saved = GSAM(network().parameters(), lr=LR, rho=0.3, scope="all", clip=0.01)
    opt.load_state_dict(saved.state_dict())
    expected = by_hand(net, lambda name, x: x.abs(), 0.3, alpha=0.4)
    far = length({n: expected[n] - w[n] for n in w})
    opt.step(closure_of(net, opt))
    short = {n: w[n] + (expected[n] - w[n]) * LR * 0.01 / far for n in w}
    torch.testing.assert_close({n: p.detach() for n, p in net.named_parameters()}, short, rtol=0, atol=1e-8)


@pytest.mark.parametrize("make", [SAM, ASAM, GSAM])
def test_maximizing_is_minimizing_the_negative(make):
    ends = []
    for sign in (1, -1):
        net, (inputs, targets) = network(), batch()
        opt = make(net.parameters(), lr=LR, rho=0.3, maximize=sign < 0)

        def closure(net: nn.Module = net, opt: Any = opt, sign: int = sign, x: Tensor = inputs, y: Tensor = targets):
            opt.zero_grad()
            loss = sign * nn.functional.cross_entropy(net(x), y)
            loss.backward()
            return loss

        for _ in range(3):
            opt.step(closure)
        ends.append([w.detach() for w in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_gsams_radius_follows_the_learning_rate():
    net = network()
    opt = GSAM(net.parameters(), lr=LR, rho=0.5, rho_min=0.1)
    closure = closure_of(net, opt)
    for lr, rho in ((LR, 0.5), (LR / 2, 0.3), (0.0, 0.1)):
        opt.param_groups[0]["lr"] = lr
        closure()
        before = torch.cat([w.detach().flatten() for w in net.parameters()])
        with opt.perturbed():
            inside = torch.cat([w.detach().flatten() for w in net.parameters()])
        assert (inside - before).norm().item() == pytest.approx(rho)


def test_without_a_radius_it_is_the_base_optimizer():
    ends = []
    for make in (
        lambda net: SAM(net.parameters(), base="adam", rho=0.0, lr=LR),
        lambda net: torch.optim.Adam(net.parameters(), lr=LR),
    ):
        net = network()
        opt: Any = make(net)
        for _ in range(5):
            opt.step(closure_of(net, opt))
        ends.append([w.detach() for w in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_parameters_without_a_gradient_are_left_out():
    net = network()
    idle = nn.Parameter(torch.ones(3, dtype=torch.float64))
    opt = GSAM([*net.parameters(), idle], lr=LR)
    opt.step(closure_of(net, opt))
    assert idle.grad is None
    assert torch.equal(idle.detach(), torch.ones(3, dtype=torch.float64))
