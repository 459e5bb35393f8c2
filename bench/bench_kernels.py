"""Tangent kernels: memory and time against the contraction of whole Jacobians by torch.func."""

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from bench.harness import Contender, Goal, Row, Timing, attempted, interleaved, reason, row_of
from bench.memory import growth, peak_of

MODULE = "bench.bench_kernels"
MEBIBYTE = 2**20
INPUTS, OUTPUTS = 784, 10
FITTING, SAMPLES = 256, 50  # a width and samples whose Jacobian fits: 500 rows of 335,000 numbers, 0.6 GiB
WIDE, MANY = 4096, 200
PEER = "torch.func jacrev"


def case(width: int, samples: int) -> tuple[nn.Module, Tensor]:
    """The network of Johannsen 2026 with three hidden layers, and inputs."""
    from landscope.models import wide_mlp

    generator = torch.Generator().manual_seed(0)
    return wide_mlp((INPUTS,), OUTPUTS, width=width), torch.randn(samples, INPUTS, generator=generator)


def ours(model: nn.Module, x: Tensor, trace: bool) -> Tensor:
    """Our kernel."""
    from landscope.kernels import ntk

    return ntk(model, x, trace_outputs=trace)


def by_jacobians(model: nn.Module, x: Tensor, trace: bool) -> Tensor:
    """The kernel as PyTorch's tutorial on it makes it."""
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def single(w: dict[str, Tensor], one: Tensor) -> Tensor:
        return functional_call(model, w, (one[None],))[0]

    rows = [j.flatten(2) for j in vmap(jacrev(single), (None, 0))(weights, x).values()]
    rule = "naf,maf->nm" if trace else "naf,mbf->nmab"
    return torch.stack([torch.einsum(rule, j, j) for j in rows]).sum(0)


TOOLS: dict[str, Callable[..., Tensor]] = {"ours": ours, PEER: by_jacobians}


def times() -> Iterator[Row]:
    """Where both fit."""
    model, x = case(FITTING, SAMPLES)
    for trace, what in ((True, "summed over outputs"), (False, "of all outputs")):
        runs = {name: Contender(lambda t=tool, k=trace: t(model, x, k)) for name, tool in TOOLS.items()}
        found = interleaved(runs, lambda: model(x), repeats=3)
        yield row_of(
            f"kernel {what}: MLP 784-3×{FITTING}-10, {SAMPLES} samples",
            "forward passes",
            {name: Timing(units=t.units, failed=t.failed) for name, t in found.items()},
            Goal(ratio_at_least=1),
        )


def memories() -> Iterator[Row]:
    """Peak memory where both fit, and of the wide network, whose Jacobian would take 274 GiB."""
    unit = MEBIBYTE
    found = {name: _measured(name, FITTING, SAMPLES, unit) for name in TOOLS}
    title = f"peak memory, kernel of all outputs: MLP 784-3×{FITTING}-10, {SAMPLES} samples"
    yield row_of(title, "MiB", found, Goal(ratio_at_least=3))
    wide = _measured("ours", WIDE, MANY, unit)
    model, _ = case(WIDE, 1)
    jacobian = MANY * OUTPUTS * sum(p.numel() for p in model.parameters()) * 4 / 2**30
    note = f"over network and data; the Jacobian would take {jacobian:,.0f} GiB"
    left_out = {"ours": wide.failed} if wide.failed else {}
    title = f"peak memory, kernel of all outputs: MLP 784-3×{WIDE}-10, {MANY} samples"
    yield Row(title, "MiB", wide.median, goal=Goal(at_most=2048), notes=[note], left_out=left_out)


def _measured(tool: str, width: int, samples: int, unit: int) -> Timing:
    try:
        return Timing(units=[peak_of(MODULE, tool, str(width), str(samples)) / unit])
    except Exception as error:
        return Timing(failed=reason(error))


def rows() -> Iterator[Row]:
    """All rows of this benchmark."""
    yield from attempted(memories, times)


def main(tool: str, width: int, samples: int) -> Any:
    """What a tool's kernel of all outputs takes over what model and data occupy, bytes."""
    warnings.simplefilter("ignore")
    model, x = case(width, samples)
    small, few = case(4, 2)
    TOOLS[tool](small, few, False)  # starts the libraries' threads and buffers
    return growth(lambda: TOOLS[tool](model, x, False))


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
