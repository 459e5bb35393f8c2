"""Peak memory of Hessian-vector products and of a spectrum run, each in a process of its own."""

import json
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from bench import peers, workloads
from bench.bench_curvature import TOP, mlp_case, ours_product, resnet_case
from bench.harness import Goal, Row, Timing, attempted, reason, row_of
from bench.memory import growth, peak_of
from bench.workloads import Batches

MODULE = "bench.bench_curvature_memory"
MEBIBYTE = 2**20


def network_and_data(network: str) -> tuple[nn.Module, Batches]:
    """The cases by name; of ResNet-20's two batches the first, as tools go from one to the next."""
    model, batches = {"mlp": mlp_case, "resnet": resnet_case}[network]()
    return model, batches[:1] if network == "resnet" else batches


BASIS = {"mlp": 40, "resnet": 16}
PROBES, STEPS = 2, 24  # of the density, whose vectors are stored as well


def spectrum_run(model: nn.Module, batches: Batches) -> Any:
    """A spectrum run that fills its basis; on the small budget it need not converge."""
    from landscope.curvature import hessian
    from landscope.linalg import spectrum

    small = any(isinstance(m, nn.Conv2d) for m in model.modules())
    settings: dict[str, Any] = {"max_products": 6, "basis": BASIS["resnet"]} if small else {"basis": BASIS["mlp"]}
    op = hessian(model, workloads.LOSS, batches)
    return spectrum(op, 2 if small else TOP, density=not small, probes=PROBES, steps=STEPS, **settings)


def peaks() -> Iterator[Row]:
    """Peak memory over what model and data take, each in a process of its own."""
    for network, title in (("mlp", "MLP"), ("resnet", "ResNet-20")):
        unit = peak_of(MODULE, network, "gradient", "0")
        worth = f"a gradient's worth is {unit / MEBIBYTE:.0f} MiB"
        yield _peak(f"{title}: peak memory, 1 column", network, unit, 1, Goal(at_most=3), worth)
        yield _peak(f"{title}: peak memory, 8 columns", network, unit, 8, Goal(), worth)
        yield _spectrum_peak(title, network, unit, worth)
    yield _within_budget()


def _peak(title: str, network: str, unit: int, columns: int, goal: Goal, worth: str) -> Row:
    tools = ("ours", "curvlinops") if columns > 1 else ("ours", *peers.PRODUCTS)  # the others go column by column
    timings = {name: _measured(network, name, columns, unit) for name in tools}
    named = {name if name == "ours" else peers.named(name): timing for name, timing in timings.items()}
    return row_of(title, "gradient's worth", named, goal, [worth])


def _measured(network: str, tool: str, columns: int, unit: int) -> Timing:
    try:
        return Timing(units=[peak_of(MODULE, network, tool, str(columns)) / unit])
    except Exception as error:
        return Timing(failed=reason(error))


def _spectrum_peak(title: str, network: str, unit: int, worth: str) -> Row:
    model, _ = network_and_data(network)
    pairs, chain = (TOP, STEPS) if network == "mlp" else (2, 0)  # the chains come one after the other
    stored = (BASIS[network] + pairs + chain) * workloads.size(model) * 4
    found = _measured(network, "spectrum", 0, unit)
    ours = None if found.median is None else found.median - stored / unit
    note = f"{worth}; the stored vectors, {stored / MEBIBYTE:.0f} MiB, are taken off"
    case = f"{title}: peak memory of a spectrum run, over its stored vectors"
    return Row(case, "gradient's worth", ours, goal=Goal(at_most=3), notes=[note], left_out=_why(found))


BUDGET, MANY = 64 * MEBIBYTE, 64  # bytes; columns, which without a limit would take several times as much


def _within_budget() -> Row:
    """What many columns take over one column and over the vectors themselves, in units of the budget given."""
    case, unit = f"MLP: peak memory, {MANY} columns on a budget, over 1 column's", "budgets"
    network, dim = "mlp", workloads.size(mlp_case()[0])
    vectors = 2 * (MANY - 1) * dim * 4  # rows that go in, rows that come out
    try:
        one = peak_of(MODULE, network, "ours", "1")
        more = peak_of(MODULE, network, "ours", str(MANY), str(BUDGET)) - one
    except Exception as error:
        return Row(case, unit, None, goal=Goal(at_most=1), left_out={"ours": reason(error)})
    note = f"memory={BUDGET // MEBIBYTE} MiB; taken off: the vectors in and out, {vectors / MEBIBYTE:.0f} MiB"
    return Row(case, unit, max(more - vectors, 0) / BUDGET, goal=Goal(at_most=1), notes=[note])


def _why(timing: Timing) -> dict[str, str]:
    return {"ours": timing.failed} if timing.failed else {}


def rows() -> Iterator[Row]:
    """All rows of this benchmark."""
    peers.findable()
    yield from attempted(peaks)


def main(network: str, tool: str, columns: int, budget: int | None = None) -> int:
    """What a product (``gradient``, ``spectrum``, ``ours``, or a peer) takes over what model and data occupy.

    Args:
        network: A name of `network_and_data`.
        tool: What is run.
        columns: Of the product.
        budget: What our operator is told to keep to, bytes.
    """
    warnings.simplefilter("ignore")
    peers.findable()
    model, batches = network_and_data(network)
    # One pass before starts the libraries' threads and buffers, which are nobody's own.
    few = [(x[:8], y[:8]) for x, y in batches[:1]]
    workloads.gradient(model, few)()
    if tool == "gradient":
        return growth(workloads.gradient(model, batches))
    ours = partial(ours_product, memory=budget)
    make = peers.PRODUCTS.get(tool, ours)
    v = torch.randn(workloads.size(model), max(columns, 1), generator=torch.Generator().manual_seed(0))
    make(model, few)(v)  # likewise for second derivatives
    if tool == "spectrum":
        return growth(lambda: spectrum_run(model, batches))
    product = make(model, batches)
    return growth(lambda: product(v))


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))))
