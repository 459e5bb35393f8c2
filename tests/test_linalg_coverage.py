"""Do 95 % intervals hold the truth at least 93 % of the time, at the default budgets? 1,000 replicates each."""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from checks import unchecked
from oracles import Matrix, with_spectrum
from torch import Tensor

from landscope.linalg import BlockSpectrum, Spectrum, block_spectra, spectra, splits, trace, traces
from landscope.linalg.checkpoints import Checkpoint
from landscope.linalg.extremes import Search, Wanted
from landscope.linalg.krylov import Krylov
from landscope.linalg.probes import Deflation, Probe, outside_sphere, probe_chains
from landscope.linalg.progress import Watch
from landscope.linalg.spectra import PAIRS, _Run
from landscope.linalg.splits import Moment, Split, krylov_basis, nothing, sketched, split_by
from landscope.linalg.traces import PRODUCTS, _mean
from landscope.measures.spectrum import per_layer_curvature
from landscope.types import Estimate

N, REPLICATES, LEAST = 200, 1000, 0.93
BULK = torch.randn(N - 10, generator=torch.Generator().manual_seed(0)).double()
SPECTRA = {
    "ten outliers": torch.cat([BULK.abs(), torch.linspace(20, 100, 10).double()]),
    "indefinite": torch.cat([2 * BULK, torch.linspace(-60, 100, 10).double()]),
    "rank-deficient": torch.cat([torch.linspace(1, 5, 80).double(), torch.zeros(120).double()]),
}


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small matrices on one thread, types unchecked; random numbers from one stream, not a seed for each vector."""
    generator = torch.Generator().manual_seed(0)

    def probes(self: Split, which: Sequence[int], *_: Any) -> Tensor:
        v = torch.randn(len(which), self.op.dim, generator=generator, dtype=torch.float64)
        return v if len(self.rows) else v.sign()

    monkeypatch.setattr(Split, "_probes", probes)
    monkeypatch.setattr(traces, "gaussian", lambda n, _, dtype: torch.randn(n, generator=generator, dtype=dtype))
    monkeypatch.setattr(traces, "derive", lambda *_: 0)
    monkeypatch.setattr(splits, "COLUMNS", 4000)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with unchecked():
        yield
    torch.set_num_threads(threads)


def covered(estimates: list[Estimate], truth: float) -> float:
    """The share of the 95 % intervals that hold the truth; exact estimates are no part of it."""
    inexact = [e for e in estimates if e.sem > 0]
    assert len(inexact) >= 0.99 * REPLICATES
    return sum(low <= truth <= high for low, high in (e.interval() for e in inexact)) / len(inexact)


SPLITS = {
    "hutchinson": lambda op, seed: nothing(op),
    "hutch++": lambda op, seed: sketched(op, PRODUCTS // 3, seed),
    "deflated": lambda op, seed: split_by(krylov_basis(op, PRODUCTS // 3, lambda _: True, seed)),  # the matrix differs
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("method", SPLITS)
def test_traces_by_the_default_budget(method: str, name: str):
    values = SPECTRA[name]
    estimates: dict[Moment, list[Estimate]] = {1: [], 2: []}
    for seed in range(10):  # 100 sets of probes for each of 10 deflations, matrices and all
        split: Split = SPLITS[method](Matrix(with_spectrum(values, seed)), seed)
        probes = PRODUCTS - split.products
        for moment, into in estimates.items():
            if (method, moment) == ("hutch++", 2):
                continue  # refused: it would cover less
            samples = split.samples(moment, 0, 100 * probes)
            into += [_mean(samples[i * probes : (i + 1) * probes], None) for i in range(100)]
    for moment, found in ((m, e) for m, e in estimates.items() if e):
        truth = float((values**moment).sum())
        share = covered(found, truth)
        print(method, name, moment, share)
        assert share >= LEAST
        centre = torch.tensor([e.mean for e in found])
        assert abs(centre.mean() - truth) < 4 * centre.std() / REPLICATES**0.5, "the estimates are biased"


@pytest.mark.parametrize("name", SPECTRA)
def test_xtrace_by_the_default_budget(name: str):
    op = Matrix(with_spectrum(SPECTRA[name]))
    estimates = [trace(op, method="xtrace", seed=seed) for seed in range(REPLICATES)]
    truth = float(SPECTRA[name].sum())
    share = covered(estimates, truth)
    print(name, share)
    assert share >= LEAST
    centre = torch.tensor([e.mean for e in estimates])
    assert abs(centre.mean() - truth) < 4 * centre.std() / REPLICATES**0.5, "the estimates are biased"


@pytest.mark.parametrize("name", ["ten outliers", "indefinite"])
def test_blocks_at_the_defaults_of_the_measure(name: str):
    defaults = {n: p.default for n, p in inspect.signature(per_layer_curvature).parameters.items() if n != "snapshot"}
    values = SPECTRA[name]
    a = with_spectrum(values)
    found: list[BlockSpectrum] = []
    for seed in range(20):  # 50 equal blocks side by side, each with random vectors of its own
        op, places = Repeated(a, 50 * N), {str(i): slice(i * N, i * N + N) for i in range(50)}
        found += block_spectra(op, places, columns=50, seed=seed, **defaults).values()
    for moment, estimates in ((1, [b.trace for b in found]), (2, [b.trace_squared for b in found])):
        share = covered(estimates, float((values**moment).sum()))
        print(name, moment, share)
        assert share >= LEAST


class Repeated:
    """One matrix again and again along the diagonal."""

    def __init__(self, a: Tensor, dim: int) -> None:
        self.a, self.dim, self.dtype, self.device = a, dim, a.dtype, a.device

    def __matmul__(self, v: Tensor) -> Tensor:
        return (self.a @ v.reshape(-1, len(self.a), v.shape[-1])).reshape(v.shape)


def deflated_run(op: Matrix, seed: int) -> tuple[_Run, Spectrum]:
    """A run of `spectrum` at its defaults up to its probes, and what it has found by then."""
    run = _Run(Search(Krylov(op, 48, seed), Wanted(5, 0, 1e-3, 300, 1, 24)), 6, 24, seed)
    run.search.run(Watch(None), Checkpoint(None, run._content))
    run._take_pairs()
    values, vectors, residuals, converged = (run.pairs[name] for name in PAIRS)
    return run, Spectrum(values, vectors, residuals, converged.bool(), op.products)


def many_chains(a: Tensor, deflation: Deflation, starts: Tensor, steps: int) -> list[Probe]:
    """`probe_chains` for hundreds of probes at once: Lanczos with full reorthogonalisation, in a batch."""
    outside = torch.eye(len(a), dtype=a.dtype) - deflation.rows.T @ deflation.rows
    compressed = outside @ a @ outside
    square = (starts @ a).square().sum(1)
    basis = starts.new_empty(len(starts), steps, starts.shape[1])
    basis[:, 0] = starts
    alphas, betas = [], []
    for m in range(steps):
        images, so_far = basis[:, m] @ compressed, basis[:, : m + 1]
        alphas.append((images * basis[:, m]).sum(1))
        for _ in range(2):
            images = images - ((so_far @ images[:, :, None]).mT @ so_far)[:, 0]
        if m + 1 < steps:
            betas.append(images.norm(dim=1))
            basis[:, m + 1] = images / betas[-1][:, None]
    alpha, beta = torch.stack(alphas, 1), torch.stack(betas, 1)
    return [Probe(x, y, s) for x, y, s in zip(alpha, beta, square.tolist(), strict=True)]


@pytest.mark.parametrize("name", SPECTRA)
def test_everything_that_a_spectrum_gives_by_default(name: str, monkeypatch: pytest.MonkeyPatch):
    values = SPECTRA[name]
    monkeypatch.setattr(spectra, "density_of", lambda *_: None)  # none is drawn up
    truths = {
        "trace": values.sum(),
        "trace_squared": values.square().sum(),
        "absolute_trace": values.abs().sum(),
        "effective_rank": values.abs().sum() ** 2 / values.square().sum(),
    }
    estimates: dict[str, list[Estimate]] = {what: [] for what in truths}
    for seed in range(10):  # 100 sets of probes for each of 10 runs
        op = Matrix(with_spectrum(values, seed))
        run, found = deflated_run(op, seed)
        deflation = run._deflation()
        monkeypatch.setattr(run, "_deflation", lambda deflation=deflation: deflation)
        starts = torch.randn(600, N, generator=torch.Generator().manual_seed(seed), dtype=op.dtype)
        starts = starts - (starts @ deflation.rows.T) @ deflation.rows
        starts = starts / starts.norm(dim=1, keepdim=True)
        starts[0] = outside_sphere(N, deflation.rows, op.dtype, seed, "c", 0)
        probes = many_chains(op.a, deflation, starts, 24)
        real = probe_chains(run.search.krylov, deflation, [(seed, "c", 0)], 24, lambda: None)[0]
        torch.testing.assert_close(probes[0].alpha[:12], real.alpha[:12])
        for i in range(100):
            run.probes = probes[6 * i : 6 * i + 6]
            whole = run._with_density(found, {})
            for what, into in estimates.items():
                into.append(getattr(whole, what))
    shares = {what: covered(estimates[what], float(truth)) for what, truth in truths.items()}
    print(name, shares)
    assert min(shares.values()) >= LEAST, shares
