"""Long runs: interrupted and resumed bit for bit, restarted in a small basis, told of; and densities."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import Matrix, with_spectrum
from torch import Tensor

from landscope.files import publish, read_tensors, tensor_bytes
from landscope.linalg import Progress, Spectrum, spectrum
from landscope.linalg.extremes import chosen_block, missed, timed_block

VALUES = torch.cat([torch.linspace(-2, 3, 140).double(), torch.linspace(10, 50, 10).double()])


class Interrupted(Matrix):
    """Stops the run at one product, as Ctrl-C would."""

    at = -1

    def __matmul__(self, v: Tensor) -> Tensor:
        if self.products == self.at:
            raise KeyboardInterrupt
        return super().__matmul__(v)


def same(a: Spectrum, b: Spectrum) -> bool:
    tensors = all(torch.equal(getattr(a, n), getattr(b, n)) for n in ("eigenvalues", "eigenvectors", "residuals"))
    return tensors and (a.trace, a.absolute_trace, a.products) == (b.trace, b.absolute_trace, b.products)


@pytest.mark.parametrize("at", [1, 9, 23, 40, 61, 110])
def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path: Path, at: int):
    a = with_spectrum(VALUES)
    settings: dict[str, Any] = {"top": 3, "bottom": 2, "probes": 4, "steps": 12, "basis": 28}
    whole = spectrum(Matrix(a), **settings)
    op = Interrupted(a)
    op.at = at
    with pytest.raises(KeyboardInterrupt):
        spectrum(op, checkpoint=tmp_path / "run.safetensors", **settings)
    resumed = spectrum(Matrix(a), checkpoint=tmp_path / "run.safetensors", **settings)
    assert same(resumed, whole)
    again = Matrix(a)
    assert same(spectrum(again, checkpoint=tmp_path / "run.safetensors", **settings), whole)
    assert again.products <= 1  # the finished run needs one, to see that the operator is the same


def test_a_checkpoint_of_another_run_or_operator_is_refused(tmp_path: Path):
    path = tmp_path / "run.safetensors"
    spectrum(Matrix(with_spectrum(VALUES)), checkpoint=path, density=False)
    with pytest.raises(ValueError, match="another run"):
        spectrum(Matrix(with_spectrum(VALUES)), checkpoint=path, density=False, seed=1)
    with pytest.raises(ValueError, match="another operator"):
        spectrum(Matrix(with_spectrum(VALUES, 1)), checkpoint=path, density=False)


def test_a_checkpoint_of_another_version_is_refused_by_name(tmp_path: Path):
    path = tmp_path / "run.safetensors"
    spectrum(Matrix(with_spectrum(VALUES)), checkpoint=path, density=False)
    tensors, meta = read_tensors(path)
    meta["search"]["steps"] = meta["search"].pop("chain")  # as it once was
    publish(path, tensor_bytes(tensors, meta))
    with pytest.raises(ValueError, match="is of another version of Landscope: it lacks chain"):
        spectrum(Matrix(with_spectrum(VALUES)), checkpoint=path, density=False)


@pytest.mark.parametrize("block", [1, 3])
def test_a_small_basis_restarts_and_finds_both_ends(block: int):
    op = Matrix(with_spectrum(VALUES))
    found = spectrum(op, 4, 3, rtol=1e-6, density=False, block=block, basis=24, max_products=2000)
    order = VALUES.sort(descending=True).values
    torch.testing.assert_close(found.eigenvalues, torch.cat([order[:4], order[-3:]]), rtol=1e-8, atol=0)
    assert found.converged.all()
    assert found.bottom.tolist() == sorted(found.bottom.tolist())
    assert op.products == found.products


def test_largest_is_not_largest_in_magnitude_and_nothing_comes_twice():
    """Power iteration takes the magnitude; without reorthogonalisation converged values come up again as ghosts."""
    values = torch.cat([torch.linspace(0, 1, 300).double(), torch.tensor([-1000.0, 500.0, 40.0, 30.0]).double()])
    found = spectrum(Matrix(with_spectrum(values)), 5, rtol=1e-9, density=False, max_products=1000)
    assert found.eigenvalues[:3].tolist() == pytest.approx([500.0, 40.0, 30.0])
    assert found.eigenvalues[3:].tolist() == pytest.approx([1.0, 1 - 1 / 299], abs=1e-8)


def test_an_operator_that_is_not_symmetric_is_refused():
    a = torch.randn(40, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="not symmetric"):
        spectrum(Matrix(a))


def test_a_hundred_thousand_dimensions_with_a_known_spectrum():
    n = 100_000
    values = torch.linspace(-0.5, 1.5, n)
    values[::20_000] = torch.tensor([20.0, 12.0, 9.0, 7.0, -4.0])

    class Big:
        dim, dtype, device = n, torch.float32, torch.device("cpu")

        def __matmul__(self, v: Tensor) -> Tensor:
            return (values[:, None] * v.reshape(n, -1)).reshape(v.shape)

    found = spectrum(Big(), 4, 1, probes=4, steps=12)
    assert found.eigenvalues.tolist() == pytest.approx([20.0, 12.0, 9.0, 7.0, -4.0], rel=1e-4)
    assert found.converged.all()
    exact = values.double()
    for estimate, truth in (
        (found.trace, exact.sum()),
        (found.trace_squared, exact.square().sum()),
        (found.absolute_trace, exact.abs().sum()),
    ):
        assert estimate is not None
        assert abs(estimate.mean - float(truth)) < 5 * estimate.sem + 1e-3 * float(truth)
        assert estimate.sem < 0.02 * float(truth)


def test_the_density_is_that_of_the_eigenvalues():
    """All squared first components, not all components squared; weights sum to one."""
    found = spectrum(Matrix(with_spectrum(VALUES)), probes=20, steps=30).density
    assert found is not None
    share = len(found.outliers) / found.dim
    torch.testing.assert_close(found.weights.sum(1), torch.full((20,), 1 - share, dtype=torch.float64))
    grid = found.grid(300)
    curve = found.on(grid, sigma=0.5)
    exact = torch.exp(-((grid[:, None] - VALUES) ** 2) / 0.5).sum(1) / (len(VALUES) * 0.5 * (2 * torch.pi) ** 0.5)
    assert (curve.mean - exact).abs().max() < 0.1 * exact.max()
    assert bool((curve.low <= curve.mean).all() and (curve.mean <= curve.high).all())
    cdf = found.cdf(grid)
    assert cdf.mean[-1] == pytest.approx(1.0)
    assert (cdf.mean - (VALUES <= grid[:, None]).double().mean(1)).abs().max() < 0.1
    assert len(found.grid(200, symlog=True)) > 50


def test_progress_is_told_and_the_global_generator_left_alone():
    told: list[Progress] = []
    before = torch.get_rng_state()
    found = spectrum(Matrix(with_spectrum(VALUES)), probes=3, steps=5, progress=told.append)
    assert torch.equal(torch.get_rng_state(), before)
    assert told[-1].products == found.products == told[-1].expected
    assert {p.phase for p in told} == {"eigenpairs", "density"}
    assert all(p.left >= 0 for p in told)
    assert "products" in str(told[0])


@pytest.mark.parametrize(("per_column", "best"), [(1.0, 1), (0.02, 8)])
def test_the_block_is_chosen_by_what_products_cost(per_column: float, best: int):
    now = [0.0]

    class Costly(Matrix):
        def __matmul__(self, v: Tensor) -> Tensor:
            now[0] += 1 + per_column * (1 if v.dim() == 1 else v.shape[1])
            return super().__matmul__(v)

    op = Costly(with_spectrum(VALUES))
    assert timed_block(op, 0, lambda: now[0]) == (best, op.products)


def test_processes_of_a_group_take_one_block_size_without_timing():
    op: Any = Matrix(torch.empty(3, 3, device="meta"))
    op.group = object()
    assert chosen_block(op, 0) == (1, 0)


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_the_bound_on_an_overlooked_eigenvalue_is_chebyshevs_on_a_mass(steps: int):
    """1/Σ p_j² is the largest mass that any measure with these Lanczos coefficients has from a level on."""
    generator = torch.Generator().manual_seed(steps)
    for _ in range(20):
        nodes = torch.randn(30, generator=generator).double().sort().values
        mass = torch.rand(30, generator=generator).double() ** 4
        mass /= mass.sum()
        alpha, beta = coefficients(nodes, mass, steps)
        top = torch.linalg.eigvalsh(torch.diag(alpha) + torch.diag(beta[:-1], 1) + torch.diag(beta[:-1], -1))[-1]
        for level in (top + 0.01, top + 0.3, nodes[-1], nodes[-1] + 1):
            bound = missed(10**9, alpha.tolist(), beta.tolist(), level.item())
            if level > top and bound < 1:
                assert mass[nodes >= level].sum() <= bound**2 * math.pi / 2 / 10**9 * (1 + 1e-9)
        assert missed(1, alpha.tolist(), beta.tolist(), top.item() - 0.01) == 1.0


def coefficients(nodes: Tensor, mass: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Lanczos by hand on diag(nodes) from the square roots of the masses."""
    q, rows, alpha, beta = mass.sqrt(), [], [], []
    for _ in range(steps):
        rows.append(q)
        image = nodes * q
        alpha.append(image @ q)
        for row in rows * 2:
            image = image - (image @ row) * row
        beta.append(image.norm())
        q = image / beta[-1]
    return torch.stack(alpha), torch.stack(beta)


def test_copies_of_the_largest_eigenvalues_are_overlooked_no_more_often_than_said():
    values = torch.cat([torch.linspace(-0.1, 0.1, 200).double(), torch.tensor([3.0, 3.0, 2.0, 2.0]).double()])
    op = Matrix(torch.diag(values))
    found = [spectrum(op, 2, density=False, seed=seed) for seed in range(60)]
    # Binomial(60, 0.01) is above 4 with probability 0.0003.
    assert sum(f.eigenvalues[1].item() < 2.5 for f in found) <= 4
    alone = [spectrum(op, 2, density=False, check=False, seed=seed) for seed in range(10)]
    assert all(f.eigenvalues[1].item() < 2.5 for f in alone)
    spent = [sum(f.products for f in some) / len(some) for some in (found, alone)]
    assert spent[0] < spent[1] + 16  # the second run of the copy, and the look itself


@pytest.mark.parametrize(
    ("settings", "message"), [({"probes": 1}, "probes is at least 2"), ({"basis": 6}, "too small")]
)
def test_impossible_requests_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        spectrum(Matrix(with_spectrum(VALUES)), **settings)
