"""One run for every spectral number: extreme eigenpairs, and from further probes the density and its functionals."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from landscope.linalg.checkpoints import Checkpoint, krylov_content, restore_krylov, stored
from landscope.linalg.density import Density, Function, absolute_bounds, density_of, estimated, functional
from landscope.linalg.extremes import Search, Wanted, chosen_block
from landscope.linalg.krylov import Krylov
from landscope.linalg.probes import Deflation, Probe, probe_chains
from landscope.linalg.progress import Report, Watch
from landscope.linalg.requests import check_operator, check_seed, check_whole
from landscope.types import Estimate, Operator

PAIRS = ("eigenvalues", "eigenvectors", "residuals", "converged")
STATE = ("checking", "chain", "finished", "history")


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Extreme eigenpairs of a symmetric operator, and what its whole spectrum is like.

    Args:
        eigenvalues: The ``top`` largest in descending order, then the ``bottom`` smallest in descending order, so that
            the last one is the smallest of all; shape ``[k]``, float64, k = top + bottom.
        eigenvectors: Unit columns in that order, shape ``[dim, k]``.
        residuals: ‖A v − λ v‖ of each pair, shape ``[k]``: some eigenvalue of A lies within this distance of λ. A is
            the operator as it multiplies: a float32 product through a deep network is itself off by some 1e-5 of its
            length, which no residual can show. Where that matters make the operator with ``dtype=torch.float64``.
        converged: Whether each residual is at most ``rtol·|λ|``, or what rounding leaves of the largest magnitude
            (10 eps times it), shape ``[k]``.
        products: Products of A with a vector, all told.
        bottom_count: How many of the pairs are at the lower end.
        density: The spectral density, or None if it was not asked for; so are the rest.
        trace: Tr(A).
        trace_squared: Tr(A²), the squared Frobenius norm.
        absolute_trace: Tr|A|, the nuclear norm.
        effective_rank: (Tr|A|)² / Tr(A²): how many eigenvalues of equal magnitude would give both.
        functionals: Tr f(A) of the functions asked for.
    """

    eigenvalues: Float[Tensor, " k"]
    eigenvectors: Float[Tensor, " dim k"]
    residuals: Float[Tensor, " k"]
    converged: Bool[Tensor, " k"]
    products: int
    bottom_count: int = 0
    density: Density | None = None
    trace: Estimate | None = None
    trace_squared: Estimate | None = None
    absolute_trace: Estimate | None = None
    effective_rank: Estimate | None = None
    functionals: Mapping[str, Estimate] = field(default_factory=dict)

    @property
    def top(self) -> Float[Tensor, " t"]:
        """The largest eigenvalues, descending."""
        return self.eigenvalues[: len(self.eigenvalues) - self.bottom_count]

    @property
    def bottom(self) -> Float[Tensor, " b"]:
        """The smallest eigenvalues, ascending: the most negative one first."""
        return self.eigenvalues[len(self.eigenvalues) - self.bottom_count :].flip(0)

    def __repr__(self) -> str:
        """The eigenvalues and the traces, a line each."""
        marks = ["" if good else " (not converged)" for good in self.converged.tolist()]
        pairs = zip(self.eigenvalues.tolist(), self.residuals.tolist(), marks, strict=True)
        lines = [f"Spectrum by {self.products} products"]
        lines += [f"  {value:.6g} within {residual:.1g}{mark}" for value, residual, mark in pairs]
        for name in ("trace", "trace_squared", "absolute_trace", "effective_rank"):
            if getattr(self, name) is not None:
                lines.append(f"  {name} {getattr(self, name)!r}")
        return "\n".join(lines + [f"  {name} {value!r}" for name, value in self.functionals.items()])


def spectrum(
    op: Operator,
    top: int = 5,
    bottom: int = 0,
    *,
    rtol: float = 1e-3,
    density: bool = True,
    probes: int = 6,
    steps: int = 24,
    max_products: int = 300,
    block: int | None = None,
    basis: int | None = None,
    check: bool = True,
    seed: int = 0,
    progress: Report | bool | None = None,
    checkpoint: Path | str | None = None,
    basis_device: torch.device | str | None = None,
    functionals: Mapping[str, Function] | None = None,
) -> Spectrum:
    """Extreme eigenpairs with residual bounds, spectral density, traces and functionals of a symmetric operator.

    **Eigenpairs**: block Lanczos with thick restart (Wu and Simon 2000) and orthogonality kept to working precision, so
    that no converged eigenvalue comes up twice (Paige's ghosts). Convergence is read from the projected matrix, at no
    further product. "Largest" is algebraic: a large negative eigenvalue belongs to the lower end. A Krylov space of
    ``block`` columns holds at most that many copies of a multiple eigenvalue, so when all pairs have converged a random
    direction outside of them is followed for up to half as many products again (8 at least), or until the probability
    of having overlooked one is at most 1 % (see `extremes.missed`); what it finds takes its place. ``check=False``
    leaves this out, as other tools do. For a multiplicity known to be m, ``block=m`` is surer.

    **Density and traces** (``density=True``): A is split by the orthonormal Ritz vectors U that have nearly converged.
    Their part is exact: Tr(UᵀAU), ‖AU‖². The rest comes from ``probes`` fresh random vectors w, uniform on the sphere
    of U's complement, and ``steps`` steps of Lanczos from each, unrestarted: wᵀAw and ‖Aw‖² give Tr(A) and Tr(A²)
    without bias, the Gauss quadrature of the tridiagonal matrix (Golub and Welsch 1969) gives the density, Tr|A| and
    other functionals. Their errors are the spread over the probes (Student t), and for functionals the quadrature's own
    error, judged by three quarters of the steps.

    Args:
        op: The operator A.
        top: How many of the largest eigenvalues.
        bottom: How many of the smallest.
        rtol: Residual over the eigenvalue's magnitude at which a pair counts as converged.
        density: Whether to make the density and what follows from it.
        probes: Random vectors for it; at least 2.
        steps: Lanczos steps from each; the density resolves about 1/steps of the bulk's width.
        max_products: Products for the eigenpairs at the most. The density adds ``probes · steps``.
        block: Columns of a product. None: 1 on a CPU; on other devices by timing the operator, so that the last bits
            may depend on the machine's load. The same seed and block give the same bits.
        basis: The most vectors held; None: about 2 (top + bottom) + 24.
        check: Whether to look for overlooked copies of the eigenvalues found.
        seed: For all random vectors.
        progress: A callback that is given a Progress after each product, or True for a line on standard error.
        checkpoint: A safetensors file that holds the run when it is interrupted, and every half minute. The same call
            goes on from it, with the same bits as if it had never stopped. A finished run leaves it there.
        basis_device: Where the basis is kept, such as ``"cpu"``; the operator's device if None.
        functionals: Functions f of eigenvalues by name: Tr f(A) is estimated for each.

    Returns:
        A Spectrum.

    Raises:
        ValueError: for more pairs than dim, a budget, a block or a basis too small, a negative tolerance,
            an operator that is not symmetric, or a checkpoint of another run.
        TypeError: for an ``op`` that is no Operator, and counts or seeds that are no whole numbers.
        FloatingPointError: where the operator returns NaN or infinity.

    Cost: for five well separated pairs about 20 to 40 products, the check included, and ``probes · steps`` for the
    density. Memory: the basis. λ_max and Tr(A²) of a Hessian over a *subsample* of the data are biased upwards
    (Jensen), whatever the number of probes: see `data_error` and `trace_squared_minibatch`.

    >>> class Diagonal:
    ...     dim, dtype, device = 3, torch.float64, torch.device("cpu")
    ...     def __matmul__(self, v):
    ...         return (torch.tensor([[1.0], [5.0], [-9.0]], dtype=v.dtype) * v.reshape(3, -1)).reshape(v.shape)
    >>> found = spectrum(Diagonal(), top=1, bottom=1)
    >>> [round(value, 6) for value in found.eigenvalues.tolist()]
    [5.0, -9.0]
    >>> round(found.trace.mean, 6), round(found.trace_squared.mean, 6)
    (-3.0, 107.0)
    """
    check_operator(op)
    check_seed(seed)
    check_whole(1, block=1 if block is None else block)
    if not rtol >= 0:
        raise ValueError(f"a relative tolerance is at least 0, which asks for all that rounding allows, not {rtol}")
    _check_request(op, top, bottom, max_products, probes, steps, density)
    size, timed = (block, 0) if block is not None else chosen_block(op, seed)
    wanted = Wanted(top, bottom, rtol, max_products, min(size, op.dim), steps if density else 0, check)
    capacity = min(op.dim, basis if basis is not None else _room(wanted))
    if capacity < min(op.dim, wanted.count + 2 * wanted.block + 3):
        raise ValueError(
            f"a basis of {capacity} vectors is too small for {wanted.count} pairs: give basis={_room(wanted)}"
        )
    run = _Run(Search(Krylov(op, capacity, seed, basis_device), wanted), probes if density else 0, steps, seed)
    run.search.krylov.products += timed
    return run.result(Watch(progress), checkpoint, functionals or {})


def _check_request(
    op: Operator, top: int, bottom: int, max_products: int, probes: int, steps: int, density: bool
) -> None:
    check_whole(0, top=top, bottom=bottom, max_products=max_products)
    k = top + bottom
    if not 1 <= k <= op.dim:
        raise ValueError(f"between 1 and dim = {op.dim} eigenpairs can be had, not {k} (top={top}, bottom={bottom})")
    if max_products < k:
        raise ValueError(f"{k} eigenpairs need max_products >= {k}, not {max_products}")
    if density:
        check_whole(2, probes=probes, steps=steps)  # fewer have no error bar


def _room(wanted: Wanted) -> int:
    return max(
        2 * wanted.count + 24, wanted.least + wanted.count + 2 * wanted.block + 8, 6 * wanted.block + wanted.count
    )


class _Run:
    """The whole computation, with what a checkpoint holds of it."""

    def __init__(self, search: Search, probes: int, steps: int, seed: int) -> None:
        self.search, self.count, self.steps, self.seed = search, probes, steps, seed
        self.pairs: dict[str, Tensor] = {}
        self.probes: list[Probe] = []

    def result(self, watch: Watch, path: Path | str | None, functions: Mapping[str, Function]) -> Spectrum:
        """Compute what is not there yet."""
        krylov = self.search.krylov
        before = stored(path, self._identity())
        if before is not None:
            if missing := sorted({*STATE} - {*before[1].get("search", {})}):
                raise ValueError(
                    f"the checkpoint {path} is of another version of Landscope: it lacks {', '.join(missing)}, which "
                    "this one needs to go on; remove it, or give another path, and the run starts anew"
                )
            self._restore(*before)
        checkpoint = Checkpoint(path, self._content)
        watch.begin(krylov.products)
        try:
            if not self.pairs:
                self.search.run(watch, checkpoint)
                self._take_pairs()
            self._probe(watch, checkpoint)
        finally:
            checkpoint.write()
        values, vectors, residuals, converged = (self.pairs[name] for name in PAIRS)
        found = Spectrum(values, vectors, residuals, converged.bool(), krylov.products, self.search.wanted.bottom)
        return self._with_density(found, functions) if self.count else found

    def _take_pairs(self) -> None:
        """The wanted pairs; then the basis is cut back to what the probes are to be deflated by."""
        search, krylov = self.search, self.search.krylov
        ritz = krylov.ritz()
        wanted = search.indices(ritz)
        high = wanted[search.wanted.bottom :][::-1]
        order = high + wanted[: search.wanted.bottom][::-1]
        residuals = ritz.residuals[order]
        rounding = residuals.new_full(residuals.shape, krylov.rounding(ritz.scale) / 10)
        self.pairs = {
            "eigenvalues": ritz.values[order],
            "eigenvectors": krylov.vectors(ritz.vectors[:, order]),
            "residuals": torch.hypot(residuals, rounding),
            "converged": (residuals <= search.tolerance(ritz)[order]).to(torch.uint8),
        }
        if self.count:
            krylov.restart(ritz, search.near(ritz)[-(krylov.op.dim - 1) :] if krylov.op.dim > 1 else [])

    def _deflation(self) -> Deflation:
        krylov = self.search.krylov
        values, u = krylov.h[krylov.done, krylov.done], len(krylov.done)  # a restart put them first: a view, no copy
        return Deflation(krylov.rows[:u], values, krylov.h[krylov.pending][:, krylov.done].norm(dim=0))

    def _probe(self, watch: Watch, checkpoint: Checkpoint) -> None:
        """The chains that are still missing, ``block`` at a time."""
        krylov, deflation = self.search.krylov, self._deflation()
        while len(self.probes) < self.count:
            first = len(self.probes)
            names = [
                (self.seed, "probe", self.count, i)
                for i in range(first, min(first + self.search.wanted.block, self.count))
            ]
            end = krylov.products + (self.count - first) * self.steps
            before = krylov.products
            try:
                self.probes += probe_chains(
                    krylov, deflation, names, self.steps, lambda end=end: watch.tell("density", krylov.products, end)
                )
            except BaseException:
                krylov.products = before  # these chains will be made again
                raise
            checkpoint.offer(krylov.products)

    def _with_density(self, found: Spectrum, functions: Mapping[str, Function]) -> Spectrum:
        """Everything that follows from the probes."""
        deflation, probes, dim = self._deflation(), self.probes, self.search.krylov.op.dim
        draws = f"spectrum probes {self.seed}, {self.count}, {dim}"
        scale = dim - len(deflation.values)
        squares = deflation.values.square() + deflation.residuals.square()
        trace_squared = estimated(squares.sum().item(), [scale * p.square for p in probes], 0.0, draws)
        extra, rough = absolute_bounds(deflation)
        absolute = functional(deflation, probes, dim, torch.abs, draws, rough, extra)
        return replace(
            found,
            density=density_of(deflation, probes, dim),
            trace=estimated(deflation.values.sum().item(), [scale * p.alpha[0].item() for p in probes], 0.0, draws),
            trace_squared=trace_squared,
            absolute_trace=absolute,
            effective_rank=_effective_rank(absolute, trace_squared),
            functionals={n: functional(deflation, probes, dim, f, draws) for n, f in functions.items()},
        )

    def _identity(self) -> dict[str, Any]:
        krylov, wanted = self.search.krylov, self.search.wanted
        return asdict(wanted) | {
            "dim": krylov.op.dim,
            "dtype": str(krylov.op.dtype),
            "basis": krylov.capacity,
            "probes": self.count,
            "steps": self.steps,
            "seed": self.seed,
        }

    def _content(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, meta = krylov_content(self.search.krylov)
        search = {name: getattr(self.search, name) for name in STATE}
        tensors |= {f"pairs.{name}": tensor for name, tensor in self.pairs.items()}
        for i, probe in enumerate(self.probes):
            tensors |= {f"probe.{i}.alpha": probe.alpha, f"probe.{i}.beta": probe.beta}
        squares = [[probe.square, probe.exhausted] for probe in self.probes]
        return tensors, {"identity": self._identity(), "krylov": meta, "search": search, "probes": squares}

    def _restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        restore_krylov(self.search.krylov, tensors, meta["krylov"])
        for name in STATE:
            setattr(self.search, name, meta["search"][name])
        self.pairs = {name: tensors[f"pairs.{name}"] for name in PAIRS if f"pairs.{name}" in tensors}
        if self.pairs:
            self.pairs["eigenvectors"] = self.pairs["eigenvectors"].to(self.search.krylov.rows)
        self.probes = [
            Probe(tensors[f"probe.{i}.alpha"], tensors[f"probe.{i}.beta"], square, exhausted)
            for i, (square, exhausted) in enumerate(meta["probes"])
        ]


def _effective_rank(absolute: Estimate, squared: Estimate) -> Estimate | None:
    """(Tr|A|)² / Tr(A²) by the jackknife, and the quadrature's error to first order."""
    if squared.mean <= 0:
        return None  # the zero operator
    if absolute.samples is None or squared.samples is None:  # one of them is exact; to first order
        return (
            Estimate(absolute.mean**2 / squared.mean)
            if absolute.sem == squared.sem == 0
            else _product(absolute, squared)
        )
    ratio = absolute * absolute / squared
    quadrature = math.sqrt(max(absolute.sem**2 - Estimate.of(absolute.samples).sem ** 2, 0.0))
    systematic = 2 * absolute.mean / squared.mean * quadrature
    return Estimate(ratio.mean, math.hypot(ratio.sem, systematic), ratio.n, ratio.samples, ratio.draws)


def _product(absolute: Estimate, squared: Estimate) -> Estimate:
    mean = absolute.mean**2 / squared.mean
    relative = 2 * absolute.sem / absolute.mean + squared.sem / squared.mean
    return Estimate(mean, mean * relative, max(absolute.n, squared.n), df=max(absolute.freedom, squared.freedom))
