"""Hessian-vector products, leading eigenpairs, traces and peak memory, beside PyHessian, curvlinops and eigenthings."""

import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench import peers, workloads
from bench.harness import Contender, Goal, Row, Timing, attempted, interleaved, reason, row_of
from bench.workloads import Batches

GRADIENTS = "gradients"
TOLERANCE = 1e-3  # of eigenpairs: residual over eigenvalue
TOP = 5


def ours_product(model: nn.Module, batches: Batches, **settings: Any) -> peers.Product:
    """Landscope's."""
    from landscope.curvature import hessian

    op = hessian(model, workloads.LOSS, batches, **settings)
    return lambda columns: op @ columns


# Products


def mlp_case() -> tuple[nn.Module, Batches]:
    """MLP 3072-256-10, 2,048 samples in batches of 256."""
    torch.manual_seed(0)
    return workloads.mlp().eval(), workloads.cut(*workloads.generated(2048), 256)


def resnet_case() -> tuple[nn.Module, Batches]:
    """ResNet-20, 256 samples in batches of 128, eval mode; its running statistics are those of the data."""
    torch.manual_seed(0)
    model, batches = workloads.resnet20(), workloads.cut(*workloads.generated(256), 128)
    with torch.no_grad():
        for x, _ in batches * 3:
            model(x)
    return model.eval(), batches


def products(
    title: str,
    model: nn.Module,
    batches: Batches,
    *,
    goal: Goal,
    alone: tuple[int, float],
    together: tuple[int, float],
    again: bool = True,
) -> Iterator[Row]:
    """One column, eight columns a column, and the better of the two, which has the goal.

    Args:
        title: Of the case.
        model: The network.
        batches: The data.
        goal: Of the better one.
        alone: Rounds and seconds at one column.
        together: Rounds and seconds at eight.
        again: Whether tools without a block product are timed at eight columns, too.
    """
    unit, vectors = workloads.gradient(model, batches), _columns(model, 8)
    makers = {"ours": ours_product} | {peers.named(name): make for name, make in peers.PRODUCTS.items()}
    made = {name: _made(make, model, batches) for name, make in makers.items()}
    one = interleaved({n: Contender(partial(p, vectors[:, :1])) for n, p in made.items()}, unit, **_rounds(alone))
    single = row_of(f"{title}: product, 1 column", GRADIENTS, one, notes=_accuracy(model, batches, one, vectors[:, :1]))
    yield single
    block = peers.named("curvlinops")
    chosen = {n: p for n, p in made.items() if again or n in ("ours", block)}
    warm = {block: partial(made[block], vectors[:, :1])}  # long enough without more
    timed = interleaved(
        {n: Contender(partial(p, vectors), warm.get(n)) for n, p in chosen.items()}, unit, **_rounds(together)
    )
    for timing in timed.values():
        timing.units = [u / 8 for u in timing.units]
    eight = row_of(f"{title}: product, 8 columns, a column", GRADIENTS, timed)
    if not again:
        others = {n: v for n, v in single.peers.items() if n not in eight.peers}
        note = "PyHessian and hessian-eigenthings multiply columns one by one: their figure is that of 1 column"
        eight = Row(
            eight.case, eight.unit, eight.ours, {**eight.peers, **others}, notes=[note], left_out=eight.left_out
        )
    yield eight
    yield _better(f"{title}: product, the better of 1 and 8 columns", single, eight, goal)


def _columns(model: nn.Module, k: int) -> Tensor:
    return torch.randn(workloads.size(model), k, generator=torch.Generator().manual_seed(0))


def _rounds(given: tuple[int, float]) -> dict[str, Any]:
    return {"repeats": given[0], "seconds": given[1]}


def _made(make: Callable[[nn.Module, Batches], peers.Product], model: nn.Module, batches: Batches) -> peers.Product:
    """A product; a tool that cannot even be set up fails when it is used, where that is reported."""
    try:
        return make(model, batches)
    except Exception as error:
        return partial(_raise, error)


def _raise(error: Exception, columns: Tensor) -> Tensor:
    raise error


def _accuracy(model: nn.Module, batches: Batches, timings: dict[str, Timing], v: Tensor) -> list[str]:
    exact = workloads.Reference(model, batches) @ v
    found = {n: (t.result.double() - exact).norm().item() / exact.norm().item() for n, t in _good(timings).items()}
    return [f"error against float64, over its norm: {', '.join(f'{n} {e:.1g}' for n, e in found.items())}"]


def _good(timings: dict[str, Timing]) -> dict[str, Timing]:
    return {name: timing for name, timing in timings.items() if timing.failed is None}


def _better(case: str, one: Row, eight: Row, goal: Goal) -> Row:
    def least(*values: float | None) -> float | None:
        return min((value for value in values if value is not None), default=None)

    both = {name: least(one.peers.get(name), eight.peers.get(name)) for name in {**one.peers, **eight.peers}}
    failed = {name: why for name, why in {**one.left_out, **eight.left_out}.items() if both.get(name) is None}
    return Row(case, GRADIENTS, least(one.ours, eight.ours), both, goal, failed)


def mlp_products() -> Iterator[Row]:
    """Products on the MLP."""
    goal = Goal(at_most=0.7, ratio_at_least=2)
    yield from products("MLP", *mlp_case(), goal=goal, alone=(9, 12), together=(5, 15))


def resnet_products() -> Iterator[Row]:
    """Products on ResNet-20 as they come, then compiled."""
    model, batches = resnet_case()
    rows = products(
        "ResNet-20",
        model,
        batches,
        goal=Goal(at_most=2, ratio_at_least=2),
        alone=(3, 30),
        together=(2, 45),
        again=False,
    )
    rows = list(rows)
    yield from rows
    yield compiled(model, batches, rows[-1])


def compiled(model: nn.Module, batches: Batches, eager: Row) -> Row:
    """Our product, compiled; peers as before, because none of them compiles by itself."""
    vectors, start = _columns(model, 8), time.perf_counter()
    product = _made(partial(ours_product, mode="compiled forward over reverse"), model, batches)
    name = "ResNet-20: product compiled, 1 column"
    took: list[float] = []

    def first() -> None:
        product(vectors[:, :1])
        took.append(time.perf_counter() - start)

    runs = {"ours": Contender(partial(product, vectors[:, :1]), first)}
    unit = workloads.gradient(model, batches)
    timed = interleaved(runs, unit, repeats=3, seconds=20)["ours"]
    notes = [f"compiling and the first product took {took[0]:.0f} s; peers are those of the row before"] if took else []
    left_out = dict(eager.left_out) | ({"ours": timed.failed} if timed.failed else {})
    goal = Goal(at_most=1.5, ratio_at_least=2)
    return Row(name, GRADIENTS, timed.median, eager.peers, goal, left_out, notes)


# Eigenpairs


@cache
def trained_case(activation: type[nn.Module]) -> tuple[nn.Sequential, Batches, str]:
    """The MLP after 15 epochs on 10,000 images, and 2,048 of them in batches of 256."""
    (inputs, targets), what = workloads.images(10_000)
    model = workloads.trained(activation, inputs, targets)
    return model, workloads.cut(inputs[:2048], targets[:2048], 256), what


def our_pairs(model: nn.Module, batches: Batches, spent: dict[bool, int], check: bool) -> peers.Pairs:
    """Landscope's leading pairs; notes the number of products. ``check``: look for overlooked copies, as by default."""
    from landscope.curvature import hessian
    from landscope.linalg import spectrum

    op = hessian(model, workloads.LOSS, batches)
    found = spectrum(op, TOP, rtol=TOLERANCE, density=False, check=check)
    spent[check] = found.products
    return found.eigenvalues.numpy(), found.eigenvectors


def eigenpairs() -> Iterator[Row]:
    """The top 5 eigenpairs of the trained MLP: time from the network to the pairs, everything included."""
    model, batches, what = trained_case(nn.ReLU)
    spent: dict[bool, int] = {}
    things, hessian, curvlinops = (peers.named(n) for n in ("hessian-eigenthings", "PyHessian", "curvlinops"))
    steps = _fewest_steps(model, batches)
    told, checked = f"{things}, told {steps} steps", "ours, with its check"
    runs: dict[str, Callable[[], peers.Pairs]] = {
        "ours": lambda: our_pairs(model, batches, spent, check=False),
        checked: lambda: our_pairs(model, batches, spent, check=True),
        f"{curvlinops} + eigsh(tol={TOLERANCE:g})": lambda: peers.eigsh_pairs(model, batches, TOP, TOLERANCE),
        hessian: lambda: peers.pyhessian_pairs(model, batches, TOP),
        things: lambda: peers.eigenthings_pairs(model, batches, TOP),
        f"{things}, 40 steps": lambda: peers.eigenthings_pairs(model, batches, TOP, max_iter=40),
        f"{things}, doubled until converged": lambda: peers.eigenthings_doubled(model, batches, TOP, TOLERANCE),
        told: lambda: peers.eigenthings_pairs(model, batches, TOP, max_iter=steps),
    }
    nothing = Contender(lambda: None).run  # the products above have warmed all of it up
    contenders = {n: Contender(r, None if n == "ours" else nothing) for n, r in runs.items()}
    timed = interleaved(contenders, workloads.gradient(model, batches), repeats=3, seconds=60)
    whole, goal = timed.pop(checked), Goal(at_most=28, ratio_at_least=4)
    row = row_of(f"MLP trained: top {TOP} eigenpairs", GRADIENTS, timed, goal)
    checks, inaccurate = _checked(model, batches, timed)
    left_out = {**row.left_out, **inaccurate}
    left_out.setdefault(told, "the fewest steps that suffice, which only the answer tells")
    notes = [f"on {what}, after 15 epochs; ours took {spent.get(False, '?')} products", *checks]
    yield Row(row.case, row.unit, row.ours, row.peers, goal, left_out, notes)
    note = f"{spent.get(True, '?')} products; no other tool looks for copies of the eigenvalues that it has overlooked"
    case = f"MLP trained: top {TOP} eigenpairs, and a look for overlooked ones (our default)"
    found = row_of(case, GRADIENTS, {**timed, "ours": whole}, goal, [note])
    yield Row(case, row.unit, found.ours, row.peers, goal, {**left_out, **found.left_out}, found.notes)
    yield _accuracy_row(timed["ours"], model, batches)


def _fewest_steps(model: nn.Module, batches: Batches) -> int:
    reference = workloads.Reference(model, batches)
    for steps in (12, 15, 18, 22, 26, 32):
        try:
            pairs = peers.eigenthings_pairs(model, batches, TOP, max_iter=steps)
        except Exception:
            break
        if reference.residuals(*pairs).max() <= TOLERANCE:
            return steps
    return 40


def _checked(model: nn.Module, batches: Batches, timed: dict[str, Timing]) -> tuple[list[str], dict[str, str]]:
    """A line on each tool's true accuracy, and those that are not at the tolerance."""
    reference = workloads.Reference(model, batches)
    exact = reference.largest(TOP)
    notes, inaccurate = [f"eigenvalues, float64: {', '.join(f'{v:.5g}' for v in exact)}"], {}
    for name, timing in _good(timed).items():
        values, vectors = timing.result
        residual = reference.residuals(values, vectors).max()
        wrong = np.abs(np.sort(values)[::-1] / exact - 1).max()
        notes.append(f"{name}: largest true residual {residual:.1g}, largest error of an eigenvalue {wrong:.1g}")
        if residual > TOLERANCE and name != "ours":
            inaccurate[name] = f"less accurate than asked for: residual {residual:.1g} instead of {TOLERANCE:g}"
    return notes, inaccurate


def _accuracy_row(timing: Timing, model: nn.Module, batches: Batches) -> Row:
    case, unit = f"MLP trained: top {TOP} eigenpairs, true residual", "of the eigenvalue, the worst pair, in float64"
    if timing.failed is not None:
        return Row(case, unit, None, goal=Goal(at_most=TOLERANCE), left_out={"ours": timing.failed})
    return Row(case, unit, workloads.Reference(model, batches).residuals(*timing.result).max(), goal=Goal(TOLERANCE))


# Traces

WITHIN, CONFIDENCE = 0.01, 0.95
PROBES = 96


def traces() -> Iterator[Row]:
    """The trace to 1 % at 95 %: exact on the ReLU network, by probes on a network that is not piecewise linear."""
    yield from exact_trace()
    yield smooth_trace()
    yield from normalised_traces()


def exact_trace() -> Iterator[Row]:
    """Tr(H) where it equals Tr(GGN): time and error."""
    from landscope.curvature import hessian

    model, batches, _ = trained_case(nn.ReLU)

    def run() -> float | None:
        return hessian(model, workloads.LOSS, batches).exact_trace()

    timed = interleaved({"ours": Contender(run)}, workloads.gradient(model, batches), repeats=5, seconds=20)
    found, exact = timed["ours"].result, workloads.closed_trace(model, batches)
    if found is None and timed["ours"].failed is None:
        timed["ours"].failed = "no exact trace"
    error = None if found is None else abs(found / exact - 1)
    note = f"closed form in float64 {exact:.6g}" + (f", ours {found:.6g}" if found is not None else "")
    yield row_of("MLP trained: trace, exact", GRADIENTS, timed, notes=[note])
    yield Row(
        "MLP trained: trace, exact, relative error", "of the closed form", error, goal=Goal(at_most=1e-4),
        left_out={"ours": timed["ours"].failed} if timed["ours"].failed else {},
    )  # fmt: skip


def smooth_trace() -> Row:
    """Time to 1 % at 95 % on a tanh network, where Tr(H) is not Tr(GGN)."""
    from landscope.curvature import hessian
    from landscope.linalg import trace

    model, batches, _ = trained_case(nn.Tanh)
    exact = workloads.closed_trace(model, batches)
    op = hessian(model, workloads.LOSS, batches)
    plain, spread, _ = _hutchinson(op)

    def run() -> float:
        return trace(hessian(model, workloads.LOSS, batches), rtol=WITHIN, confidence=CONFIDENCE).mean

    columns = _columns(model, 8)
    runs = {"ours": Contender(run), "eight columns": Contender(lambda: op @ columns)}
    timed = interleaved(runs, workloads.gradient(model, batches), repeats=5, seconds=20)
    product = timed.pop("eight columns").median
    notes = [f"a probe varies by {spread:.1%} of the trace ({PROBES} probes): plain Hutchinson needs {plain:.0f}"]
    if timed["ours"].failed is None:
        notes.append(f"ours {timed['ours'].result:.6g}, closed form in float64 {exact:.6g}")
    peer = {"plain Hutchinson with our products": None if product is None else plain * product / 8}
    row = row_of("MLP tanh, trained: trace to 1 % at 95 %", GRADIENTS, timed, notes=notes)
    return Row(row.case, row.unit, row.ours, peer, Goal(ratio_at_least=2.5), row.left_out, row.notes)


def normalised() -> tuple[nn.Sequential, Batches, str]:
    """The tanh network with LayerNorm, of which neither Tr(H) nor a closed form is known."""
    (inputs, targets), what = workloads.images(10_000)
    model = workloads.trained(nn.Tanh, inputs, targets, norm=True)
    return model, workloads.cut(inputs[:2048], targets[:2048], 256), what


def normalised_traces() -> Iterator[Row]:
    """Time to 1 % at 95 % behind LayerNorm; and products where nothing but these may be used."""
    from landscope.curvature import hessian
    from landscope.linalg import trace

    model, batches, _ = normalised()
    op = hessian(model, workloads.LOSS, batches)
    plain, spread, exact = _hutchinson(op)
    before = op.products
    fewest = trace(op, rtol=WITHIN, confidence=CONFIDENCE, method="deflated")
    fewest, error = op.products - before, fewest.mean / exact - 1

    def run() -> tuple[float, int]:
        found = trace(hessian(model, workloads.LOSS, batches), rtol=WITHIN, confidence=CONFIDENCE)
        return found.mean, found.n

    columns = _columns(model, 8)
    runs = {"ours": Contender(run), "eight columns": Contender(lambda: op @ columns)}
    timed = interleaved(runs, workloads.gradient(model, batches), repeats=3, seconds=20)
    product = timed.pop("eight columns").median
    notes = [f"plain Hutchinson: a probe varies by {spread:.1%} of the trace ({PROBES} probes): it needs {plain:.0f}"]
    if timed["ours"].failed is None:
        mean, samples = timed["ours"].result
        notes.append(f"ours by {samples} samples of its own, from the {PROBES} probes: {mean / exact - 1:+.2%}")
    peer = {"plain Hutchinson with our products": None if product is None else plain * product / 8}
    case, goal = "MLP tanh with LayerNorm, trained: trace to 1 % at 95 %", Goal(ratio_at_least=2.5)
    row = row_of(case, GRADIENTS, timed, notes=notes)
    yield Row(case, GRADIENTS, row.ours, peer, goal, row.left_out, row.notes)
    notes = [f"ours from the {PROBES} probes: {error:+.2%}", _pyhessian_trace(model, batches, exact)]
    yield Row(f"{case}, by products alone", "products", fewest, {"plain Hutchinson": plain}, goal, {}, notes)


def _hutchinson(op: Any) -> tuple[float, float, float]:
    """Rademacher probes that plain Hutchinson needs by the normal approximation, one's relative spread, their mean."""
    generator, samples = torch.Generator().manual_seed(5), []
    for _ in range(PROBES // 8):
        v = torch.randint(2, (op.dim, 8), generator=generator).to(op.dtype) * 2 - 1
        samples += (v * (op @ v)).double().sum(0).tolist()
    mean = statistics.fmean(samples)
    spread = statistics.stdev(samples) / abs(mean)
    needed = math.ceil((statistics.NormalDist().inv_cdf(0.5 + CONFIDENCE / 2) * spread / WITHIN) ** 2)
    return needed, spread, mean


def _pyhessian_trace(model: nn.Module, batches: Batches, exact: float) -> str:
    try:
        torch.manual_seed(0)
        samples = peers.pyhessian(model, batches).trace(maxIter=20)
    except Exception as error:
        return f"PyHessian's trace(): {reason(error)}"
    return (
        f"{peers.named('PyHessian')}'s trace() of at most 20 probes stopped after {len(samples)}, "
        f"{np.mean(samples) / exact - 1:+.1%} off; it gives no error bar"
    )


def rows() -> Iterator[Row]:
    """All rows of this benchmark."""
    peers.findable()
    warnings.simplefilter("ignore")
    yield from attempted(mlp_products, resnet_products, eigenpairs, traces)
