"""Volumes of basins: ellipsoids and quadratics whose volume is known, and what must not happen in silence."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from cases import everything, made, same, snapshot_of
from scipy.integrate import quad
from torch import Tensor, nn
from torch.nn import functional

from landscope.basins import (
    basin_volumes,
    best_preconditioner,
    filter_norms,
    first_crossings,
    identity,
    inverse_root,
    inverse_root_low_rank,
    log_radial_mass,
    log_unit_ball,
    loss_along,
    scaled,
    whitening,
)
from landscope.basins.networks import _Any, _Chain
from landscope.basins.volumes import check_cutoffs
from landscope.curvature import hessian
from landscope.data import swiss_roll
from landscope.linalg import Spectrum
from landscope.losses import cross_entropy, squared_error
from landscope.measures.volume import basin_volume
from landscope.models import mlp, seeded
from landscope.types import Batches, Snapshot


def quadratic(matrix, least=0.0):
    """½ xᵀ H x above a least value, along rays."""
    return lambda directions: lambda t: least + 0.5 * t**2 * ((directions @ matrix) * directions).sum(1)


def exact_log_volume(matrix, height):
    """ln V of ½ xᵀ H x < height: ω_n (2·height)^(n/2) det(H)^(−½)."""
    n = len(matrix)
    return log_unit_ball(n) + n / 2 * math.log(2 * height) - 0.5 * float(torch.linalg.slogdet(matrix).logabsdet)


def spd(n, spread, seed=0):
    """A symmetric matrix with eigenvalues from 1 to exp(spread)."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    return q @ torch.diag(torch.linspace(0, spread, n, dtype=torch.float64).exp()) @ q.T


def exact_pairs(matrix, k):
    values, vectors = torch.linalg.eigh(matrix)
    n = len(values)
    top = torch.arange(n - 1, n - 1 - k, -1)
    return Spectrum(values[top], vectors[:, top], torch.zeros(k), torch.ones(k, dtype=torch.bool), 0)


# --- volumes that are known -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_papers_estimator_gives_the_area_of_an_ellipse(seed):
    H = torch.diag(torch.tensor([1.0, 4.0, 2.0]).double())
    (found,) = basin_volumes(quadratic(H), torch.zeros(3).double(), identity(), cutoffs=[0.5], rays=1000, seed=seed)
    share = (found.log_volumes - exact_log_volume(H, 0.5)).exp()
    assert abs(share.mean() - 1) < 4 * share.std() / math.sqrt(1000)
    assert found.log_volume == pytest.approx(share.mean().log().item() + exact_log_volume(H, 0.5))
    assert found.effective_rays == pytest.approx((share.sum() ** 2 / share.square().sum()).item())


def preconditioners(H):
    values, vectors = torch.linalg.eigh(H)
    n = len(H)
    return {
        "full": whitening(values, vectors, damping=0.0),
        "all pairs": inverse_root_low_rank(exact_pairs(H, n - 1), H.diagonal() + 1e-9, damping=1e-3),
        "low rank": inverse_root_low_rank(exact_pairs(H, 3), H.diagonal(), damping=0.1),
        "diagonal": inverse_root(H.diagonal(), damping=0.01),
        "scaled": scaled(torch.linspace(0.5, 2, n)),
        "identity": identity(),
    }


@pytest.mark.parametrize("kind", ["full", "low rank", "diagonal", "scaled", "identity"])
def test_every_preconditioner_gives_the_same_volume(kind):
    H = spd(6, 1.5)
    P = preconditioners(H)[kind]
    (found,) = basin_volumes(quadratic(H), torch.zeros(6).double(), P, cutoffs=[2.0], rays=4000, seed=4)
    share = (found.log_volumes - exact_log_volume(H, 2.0)).exp()
    assert abs(share.mean() - 1) < 4 * share.std() / math.sqrt(4000) + 1e-6


@pytest.mark.parametrize("kind", list(preconditioners(spd(4, 1.0))))
def test_a_preconditioners_determinant_is_its_own(kind):
    P = preconditioners(spd(7, 3.0))[kind]
    rows = P.apply(torch.eye(7, dtype=torch.float64))
    assert float(torch.linalg.slogdet(rows).logabsdet) == pytest.approx(P.log_det, abs=1e-9)


def test_the_inverse_square_root_of_a_low_rank_and_a_diagonal_is_one():
    H = spd(7, 3.0)
    pairs, d = exact_pairs(H, 3), H.diagonal()
    P = inverse_root_low_rank(pairs, d, damping=0.1)
    U, top = pairs.eigenvectors, pairs.eigenvalues
    D = (d - U.square() @ top).clamp(min=0) + 0.1 * d.mean()
    rows = P.apply(torch.eye(7, dtype=torch.float64))  # row i is P e_i
    torch.testing.assert_close(rows.T @ rows, torch.linalg.inv(torch.diag(D) + U @ torch.diag(top) @ U.T))


def test_the_exact_root_of_a_bowl_leaves_no_spread_and_without_it_one_ray_is_low_by_half_n_log_am_over_gm():
    """In 400 dimensions: gap = (n/2) ln(AM / GM) of the eigenvalues, at a typical ray."""
    n, spread = 400, 3.0
    values = torch.linspace(0, spread, n, dtype=torch.float64).exp()
    H = torch.diag(values)
    exact, centre = exact_log_volume(H, 0.1), torch.zeros(n).double()
    (found,) = basin_volumes(quadratic(H), centre, inverse_root(values, damping=0.0), cutoffs=[0.1], rays=64)
    assert found.log_volume == pytest.approx(exact, abs=n * 1e-7)
    assert found.spread < n * 1e-7
    assert found.effective_rays == pytest.approx(64, rel=1e-6)
    (naive,) = basin_volumes(quadratic(H), centre, identity(), cutoffs=[0.1], rays=64)
    gap = n / 2 * float(values.mean().log() - values.log().mean())
    participation = float(values.sum() ** 2 / values.square().sum())
    assert gap > 70
    assert exact - naive.mean_log_volume.mean == pytest.approx(gap, rel=0.05)
    assert naive.spread == pytest.approx(n / math.sqrt(2 * participation) * math.sqrt(1 - participation / n), rel=0.35)
    assert naive.lower_bound() < exact


def test_the_swiss_roll_networks_own_hessian_made_definite_gives_the_volume_of_its_quadratic():
    """A ReLU minimum's Hessian is degenerate: ½ xᵀ(H + μ1)x has a volume, and P = (H + μ1)^(−½) finds it exactly."""
    with seeded(0):
        net = mlp((2,), 2, widths=(8, 6))
    data = swiss_roll(10_000, train=40, test=0).train
    data = Batches(data.inputs / 10, data.targets)
    weights = [name for name, p in net.named_parameters() if p.dim() > 1]
    H = hessian(net, cross_entropy(), data, params=weights, dtype=torch.float64).dense()
    n, shift = len(H), 0.05 - float(torch.linalg.eigvalsh(H)[0])
    bowl = (H + H.T) / 2 + shift * torch.eye(n, dtype=torch.float64)
    exact = exact_log_volume(bowl, 0.1)
    values, vectors = torch.linalg.eigh(bowl)
    centre = torch.zeros(n).double()
    (best,) = basin_volumes(quadratic(bowl), centre, whitening(values, vectors, damping=0.0), cutoffs=[0.1], rays=32)
    assert best.log_volume == pytest.approx(exact, abs=1e-4)
    assert best.effective_rays == pytest.approx(32, rel=1e-6)
    for P in (identity(), inverse_root(bowl.diagonal(), damping=0.0)):
        (other,) = basin_volumes(quadratic(bowl), centre, P, cutoffs=[0.1], rays=256)
        assert other.lower_bound(0.01) < exact
        assert other.mean_log_volume.mean < exact
    candidates = [inverse_root_low_rank(exact_pairs(bowl, 5), bowl.diagonal(), damping=e) for e in (1e-3, 1e-1, 10.0)]
    chosen = best_preconditioner(quadratic(bowl), centre, candidates, cutoff=0.1, seed=5)
    heights = [
        basin_volumes(quadratic(bowl), centre, P, cutoffs=[0.1], rays=64, seed=5)[0].mean_log_volume.mean
        for P in candidates
    ]
    assert candidates.index(chosen) == int(np.argmax(heights))


# --- the Gaussian prior ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "radius", "inner"), [(1, 2.0, 0.5), (2, 0.3, -4.0), (7, 5.0, 3.0), (60, 3.0, -6.0)])
def test_the_radial_mass_is_the_integral(n, radius, inner):
    sigma, shift = 0.7, 0.0

    def log_integrand(x):
        return (n - 1) * math.log(x) - x**2 / (2 * sigma**2) - x * inner / sigma**2

    shift = max(log_integrand(x) for x in np.linspace(1e-6, radius, 2000))
    exact, _ = quad(lambda x: math.exp(log_integrand(x) - shift) if x else float(n == 1), 0, radius, epsabs=1e-13)
    end, tilt = (torch.tensor([a], dtype=torch.float64) for a in (radius, inner))
    found = log_radial_mass(end, tilt, n, sigma)
    assert found.item() == pytest.approx(math.log(exact) + shift, abs=1e-8)


@pytest.mark.parametrize("kind", ["identity", "scaled"])
def test_a_ball_around_any_point_holds_the_priors_mass_of_it(kind):
    """Of N(0, σ²1) in n dimensions, ‖x − θ‖ < R holds P(χ'²_n(‖θ‖²/σ²) < R²/σ²)."""
    from scipy.stats import ncx2

    n, sigma, radius = 5, 0.8, 1.3
    centre = torch.linspace(0.1, 0.6, n).double()
    P = preconditioners(spd(n, 1.0))[kind]
    (found,) = basin_volumes(quadratic(2 * torch.eye(n).double()), centre, P, cutoffs=[radius**2], rays=4000, seed=1)
    exact = ncx2.cdf(radius**2 / sigma**2, n, float(centre.square().sum()) / sigma**2)
    share = (found.log_prior_masses(sigma) - math.log(exact)).exp()
    assert abs(share.mean() - 1) < 4 * share.std() / math.sqrt(4000)
    assert found.log_prior_mass(sigma) == pytest.approx(math.log(share.mean() * exact))
    few = (share.sum().square() / share.square().sum()).item()
    assert found.prior_effective_rays(sigma) == pytest.approx(few)
    assert f"effective rays {few:.3g}" in found.described(sigma).splitlines()[-1]
    assert "prior" not in str(found)


# --- crossings ------------------------------------------------------------------------------------------------------


def test_the_first_crossing_is_found_where_there_are_several_and_in_few_evaluations():
    def waves(directions):
        return lambda t: torch.sin(t * directions[:, 0]).square()

    directions = torch.linspace(0.01, 50, 40).double()[:, None]
    far = torch.full((40,), 1e4).double()
    found = first_crossings(waves, directions, [0.25, 0.5], start=1e-3, farthest=far)
    for level, log_radii in zip((0.25, 0.5), found.log_radii, strict=True):
        exact = torch.arcsin(torch.tensor(level).sqrt()) / directions[:, 0]
        assert (log_radii - exact.log()).abs().max() < 1e-7
    assert not found.censored.any()


def test_narrowing_takes_a_third_of_the_evaluations_of_bisection():
    bowl = quadratic(spd(5, 2.0))
    directions = torch.randn(200, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    far = torch.full((200,), 1e3).double()
    coarse, fine = (
        first_crossings(bowl, directions, [1.0], start=0.05, farthest=far, tolerance=eps) for eps in (0.1, 1e-9)
    )
    assert (fine.passes - coarse.passes) / 200 < math.log2(0.1 / 1e-9) / 3 + 1
    exact = -0.5 * (0.5 * ((directions @ spd(5, 2.0)) * directions).sum(1)).log()
    assert (fine.log_radii[0] - exact).abs().max() < 1e-9
    assert (coarse.log_radii[0] - exact).abs().max() < 0.1


def test_a_start_that_is_too_far_out_is_halved_inwards():
    found = first_crossings(
        quadratic(torch.eye(2).double()), torch.eye(2).double(), [0.5], start=1e6, farthest=torch.full((2,), 1e9)
    )
    assert found.log_radii.abs().max() < 1e-7


def test_values_that_are_not_numbers_lie_outside():
    def broken(directions):
        return lambda t: torch.where(t < 3, t / 100, torch.tensor(math.nan).double())

    found = first_crossings(broken, torch.ones(3, 1).double(), [1.0], start=0.1, farthest=torch.full((3,), 50.0))
    assert (found.log_radii - math.log(3)).abs().max() < 1e-6
    assert not found.censored.any()


def test_a_jump_at_the_centre_is_told():
    def jump(directions):
        return lambda t: (t > 0).double()

    with pytest.raises(ArithmeticError, match="it jumps there"):
        first_crossings(jump, torch.ones(1, 1).double(), [0.5], start=1.0, farthest=torch.tensor([2.0]))


# --- bad input ------------------------------------------------------------------------------------------------------


def test_rays_that_never_cross_are_counted_and_kept_with_the_radius_they_were_followed_to():
    """A basin that is open in one coordinate: rays near that axis do not cross."""
    H = torch.diag(torch.tensor([1.0, 1e-12]).double())
    centre = torch.tensor([3.0, 4.0]).double()
    (found,) = basin_volumes(quadratic(H), centre, identity(), cutoffs=[0.5], rays=400, reach=2.0)
    many = int(found.censored.sum())
    assert 0 < many < 400
    assert found.radii[found.censored].tolist() == pytest.approx([10.0] * many)
    assert len(found.log_volumes) == 400
    assert f"{many} censored (a lower bound)" in str(found)
    direct = (found.log_volumes.exp().mean().log()).item()
    assert found.log_volume == pytest.approx(direct)


def test_a_cutoff_that_is_not_above_the_centres_loss_is_refused_and_explained():
    bowl, centre = quadratic(torch.eye(2).double(), least=0.7), torch.zeros(2).double()
    for cutoff in (0.5, 0.7):
        with pytest.raises(ValueError, match=r"is not above the loss at the centre, 0\.7.*train further"):
            basin_volumes(bowl, centre, identity(), cutoffs=[0.9, cutoff], rays=4)
    with pytest.raises(ValueError, match="at least one, not"):
        check_cutoffs([], 0.0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rays": 1}, "at least 2"),
        ({"reach": 0.0}, "finite reach"),
        ({"reach": math.inf}, "not reach=inf"),
        ({"growth": 1.0}, "factor above 1"),
        ({"tolerance": 0.0}, "relative width"),
        ({"cutoffs": [math.nan]}, "levels of the loss"),
    ],
)
def test_impossible_settings_of_a_volume_are_refused(wrong: dict[str, Any], message):
    given: dict[str, Any] = {"cutoffs": [1.0], "rays": 4} | wrong
    with pytest.raises(ValueError, match=message):
        basin_volumes(quadratic(torch.eye(2).double()), torch.zeros(2).double(), identity(), **given)


def test_a_centre_without_a_loss_and_maps_without_an_inverse_are_refused():
    with pytest.raises(ValueError, match="no basin around it"):
        basin_volumes(lambda d: lambda t: t + math.nan, torch.zeros(2).double(), identity(), cutoffs=[1.0])
    with pytest.raises(ValueError, match="1 of 3 scales are not positive"):
        inverse_root(torch.tensor([1.0, 0.0, 2.0]), damping=0.0)
    with pytest.raises(ValueError, match="a share of the mean"):
        inverse_root(torch.ones(2), damping=-1.0)
    with pytest.raises(ValueError, match=r"1 filters of w are zero \(the first is 1\)"):
        filter_norms({"w": torch.tensor([[1.0, 1.0], [0.0, 0.0]])})
    with pytest.raises(ValueError, match="no preconditioners"):
        best_preconditioner(quadratic(torch.eye(2).double()), torch.zeros(2).double(), [], cutoff=1.0)


def evaluator(along: Any) -> Any:
    return along.__self__


# --- networks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["mlp", "cnn", "noisy", "tied"])
@pytest.mark.parametrize("tensors", ["weights", "all"])
def test_the_loss_along_rays_is_the_moved_networks(which, tensors):
    with seeded(0):
        model, (x, y) = made(which)
    model.eval()
    names = [n for n, p in model.named_parameters() if p.requires_grad and (tensors == "all" or p.dim() > 1)]
    known = dict(model.named_parameters())
    before = everything(model)
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(3, sum(known[n].numel() for n in names), generator=generator, dtype=torch.float64)
    t = torch.tensor([0.0, 0.1, 0.7]).double()
    along = loss_along(model, cross_entropy(), Batches(x, y, 10), names)
    assert isinstance(evaluator(along), _Chain if which == "mlp" else _Any)
    losses = along(directions)(t)
    assert same(everything(model), before)
    for i in range(3):
        at = 0
        for name in names:
            size = known[name].numel()
            step = t[i] * directions[i, at : at + size].reshape(known[name].shape)
            known[name].data.copy_(before["state"][name] + step)
            at += size
        with torch.no_grad():
            assert losses[i].item() == pytest.approx(cross_entropy()(model(x), y).item(), rel=1e-10)


def test_networks_that_cannot_be_batched_go_point_by_point_and_agree():
    class Branching(nn.Module):
        def __init__(self, branch):
            super().__init__()
            self.layer, self.branch = nn.Linear(5, 3).double(), branch

        def forward(self, x):
            y = self.layer(x)
            return -y if self.branch and float(y.sum()) > 1e9 else y

    _, (x, y) = made("mlp")
    plain, branching = Branching(False), Branching(True)
    branching.load_state_dict(plain.state_dict())
    directions, t = torch.randn(4, 15, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    found = [loss_along(m, squared_error(), Batches(x, y, 9), ["layer.weight"]) for m in (plain, branching)]
    torch.testing.assert_close(*(along(directions)(t) for along in found))
    assert [vars(evaluator(along))["batched"] for along in found] == [True, False]
    with pytest.raises(LookupError, match="no parameters elsewhere"):
        loss_along(plain, squared_error(), Batches(x, y), ["elsewhere"])


def looking(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss that `torch.func.vmap` does not take."""
    return functional.cross_entropy(outputs, targets) * (2.0 if outputs.sum().item() > 1e9 else 1.0)


def everywhere(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs.flatten(0, 1), targets.repeat_interleave(outputs.shape[1]))


@pytest.mark.parametrize(("loss", "shape"), [(looking, (5,)), (everywhere, (2, 5))])
def test_a_chain_with_a_loss_or_inputs_of_another_kind_goes_the_plain_way(loss: Any, shape: tuple[int, ...]):
    x, y = torch.randn(9, *shape, dtype=torch.float64), torch.arange(9) % 3
    last = nn.Linear(4, 3)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), last).double()
    along = loss_along(model, loss, Batches(x, y), ["2.weight"])
    assert isinstance(evaluator(along), _Any)
    direction, before = torch.randn(1, 12, dtype=torch.float64), last.weight.detach().clone()
    found = along(direction)(torch.ones(1))
    with torch.no_grad():
        last.weight.copy_(before + direction.view(3, 4))
    torch.testing.assert_close(found, loss(model(x), y).detach()[None])


def test_data_in_half_precision_have_volumes():
    with seeded(0):
        model, (x, y) = made("mlp")
    snapshot = snapshot_of(model.bfloat16(), (x.bfloat16(), y))
    found = basin_volume(snapshot, cutoffs=(5.0,), absolute=True, rays=8)
    assert torch.isfinite(torch.as_tensor(found["identity_log_volume"])).all()


@pytest.fixture(scope="module")
def low() -> Snapshot:
    """A small network at a low loss."""
    with seeded(3):
        model, data = made("mlp")
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(300):
            optimizer.zero_grad()
            cross_entropy()(model(data[0]), data[1]).backward()
            optimizer.step()
    return snapshot_of(model, data)


@pytest.mark.parametrize("kind", ["identity", "filter", "diagonal", "low_rank", "full"])
def test_the_measure_says_everything_about_each_cutoff(kind, low):
    settings: dict[str, Any] = {"cutoffs": (0.2, 0.05), "rays": 20, "dampings": (0.01, 1.0)}
    values: dict[str, Any] = basin_volume(low, preconditioner=kind, **settings)
    values = {name.removeprefix(f"{kind}_"): value for name, value in values.items()}
    n = sum(p.numel() for p in low.model.parameters() if p.dim() > 1)
    assert values["coordinates"] == n
    assert values["cutoffs"].tolist() == [0.05, 0.2]
    for name in ("log_volume", "mean_log_volume", "radius_mean", "log_prior_mass"):
        assert values[name][0] < values[name][1], name
    assert bool((values["mean_log_volume"] <= values["log_volume"]).all())
    assert bool(((values["effective_rays"] >= 1 - 1e-9) & (values["effective_rays"] <= 20 + 1e-9)).all())
    torch.testing.assert_close(values["log10_volume"] * math.log(10), values["log_volume"])
    assert values["rounding"] == pytest.approx(n * 1e-7)
    assert (values["damping"] > 0) == (kind in ("diagonal", "low_rank", "full"))


def test_cutoffs_are_heights_or_levels_and_a_basin_that_is_not_there_is_told(low):
    snapshot = low
    loss = cross_entropy()(snapshot.model(snapshot.train.inputs), snapshot.train.targets).item()
    heights: dict[str, Any] = basin_volume(snapshot, cutoffs=(0.1,))
    levels: dict[str, Any] = basin_volume(snapshot, cutoffs=(loss / 2, loss + 0.1), absolute=True)
    assert levels["identity_cutoff_heights"].tolist() == pytest.approx([-loss / 2, 0.1])
    assert math.isnan(levels["identity_log_volume"][0])
    assert levels["identity_log_volume"][1].item() == pytest.approx(heights["identity_log_volume"].item(), abs=1e-6)
    none: dict[str, Any] = basin_volume(snapshot, cutoffs=(loss / 2,), absolute=True)
    assert none["identity_log_volume"].isnan().all()
    assert "identity_passes" not in none
    assert basin_volume(snapshot_of(nn.Flatten(), (torch.ones(4, 3), torch.zeros(4).long()))) == {}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"preconditioner": "hessian"}, "one of identity, filter"),
        ({"tensors": "biases"}, "weights or all"),
        ({"cutoffs": (0.0,)}, "positive heights"),
        ({"cutoffs": (), "absolute": True}, "levels of the loss"),
        ({"samples": 0}, "at least 1"),
    ],
)
def test_impossible_settings_of_the_measure_are_refused(wrong: dict[str, Any], message):
    with pytest.raises(ValueError, match=message):
        basin_volume(snapshot_of(*made("mlp")), **wrong)


def test_a_full_hessian_of_a_large_network_is_refused():
    model = mlp((5,), 3, widths=(900, 2))
    with pytest.raises(ValueError, match="low_rank"):
        basin_volume(snapshot_of(model, made("mlp", torch.float32)[1]), preconditioner="full", rays=2)


def test_a_module_under_two_names_moves_as_one_and_stays_whole():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.out = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.a(self.a(x).relu()))

    once, named = Twice(), Twice()
    named.load_state_dict(once.state_dict())
    named.b = named.a
    chain = nn.Sequential(once.a, nn.ReLU(), once.a, once.out)
    x, y = torch.randn(7, 3), torch.randint(2, (7,))
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(4, sum(p.numel() for p in once.parameters()), generator=generator).double()
    found = [
        loss_along(net, functional.cross_entropy, Batches(x, y), [name for name, _ in net.named_parameters()])(
            directions
        )(torch.ones(4))
        for net in (once, named, chain)
    ]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])
    assert isinstance(named.a.weight, nn.Parameter)
    named(x)
