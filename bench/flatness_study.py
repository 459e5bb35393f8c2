"""``python -m bench.flatness_study``: does the flatness penalty's default end where the every-step version does?

Pairs of runs (same initialisation, split and order of batches) with the penalty on the whole batch at every step
(``every=1``), with the defaults, and without it as the positive control. Afterwards Tr(H²) of the loss over training
samples is measured with probes that all runs share. Equivalence: the 90 % interval (two one-sided t tests at 5 %) of
the mean log ratio lies within ±log 1.1, and that of the difference of test accuracies within ±1 percentage point.
``--pilot`` compares the settings among which the default was chosen, on seeds from 10,000 on and fewer images of MNIST.
It takes minutes; it is not part of ``make bench``.
"""

import argparse
import math
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscope.regularizers import flatness

Split = tuple[Tensor, Tensor, Tensor, Tensor]  # training inputs and labels, test inputs and labels
ARMS: dict[str, dict[str, object] | None] = {"every step": {"every": 1}, "none": None, "default": {}}
GRID = ((1, 0.25), (2, 0.25), (2, 1.0), (4, 1.0), (4, 0.25))  # ``every`` and ``share`` of the pilots
STRENGTHS = {"digits": 0.01, "mnist": 0.0003}  # where the penalty acts and training is stable; by seeds from 10,000 on
SETTINGS: dict[str, dict[str, Any]] = {
    "digits": {"width": 64, "size": 64, "epochs": 20, "lr": 0.003, "probes": 200},
    "mnist": {"width": 256, "size": 128, "epochs": 12, "lr": 0.003, "probes": 50},
}
TRACE, ACCURACY = math.log(1.1), 0.01


def digits(seed: int) -> Split:
    """scikit-learn's digits, 1,437 for training, 360 for testing, split by the seed."""
    from sklearn.datasets import load_digits

    inputs, targets = cast("tuple[Any, Any]", load_digits(return_X_y=True))
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    x, y = torch.tensor(inputs, dtype=torch.float32)[order] / 16, torch.tensor(targets)[order]
    return x[:1437], y[:1437], x[1437:], y[1437:]


def mnist(seed: int, *, images: int) -> Split:
    """Training images, drawn by the seed, and all test images of the MNIST that LANDSCOPE_DATA holds."""
    from landscope import data

    cache = Path(sys.prefix, "bench-data")
    found = data.find(str(Path(os.environ["LANDSCOPE_DATA"], "mnist")), cache).draw(train=images)(seed, cache)
    test = found.test
    if test is None:
        raise ValueError("this MNIST has no test images")
    return found.train.inputs.flatten(1), found.train.targets, test.inputs.flatten(1), test.targets


def run(
    split: Split,
    seed: int,
    settings: dict[str, Any] | None,
    *,
    width: int,
    size: int,
    epochs: int,
    lr: float,
    probes: int,
) -> tuple[float, float, float]:
    """Log Tr(H²), test accuracy and training loss at the end; Adam, the learning rate falling to 0 as a cosine."""
    x, y, test_x, test_y = split
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(x.shape[1], width), nn.ReLU(), nn.Linear(width, 10))
    reg = None if settings is None else flatness(seed=seed, **settings)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    order, per = torch.Generator().manual_seed(seed), len(x) // size
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * per)
    for _ in range(epochs):
        for chosen in torch.randperm(len(x), generator=order)[: per * size].view(per, size):
            outputs = model(x[chosen])
            loss = F.cross_entropy(outputs, y[chosen])
            if reg is not None:
                loss = loss + reg(model, (x[chosen], y[chosen]), outputs=outputs)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        measure, some = flatness(probes=probes), (x[:1000], y[:1000])
        drawn = measure.draw(model, some, torch.Generator().manual_seed(0))
        trace = measure.trace(model, some, drawn=drawn).item()
        accuracy = (model(test_x).argmax(1) == test_y).double().mean().item()
        return math.log(trace), accuracy, F.cross_entropy(model(x), y).item()


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean and its 90 % Student interval."""
    from scipy.stats import t

    mean, sem = statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))
    half = float(t.ppf(0.95, len(values) - 1)) * sem
    return mean, mean - half, mean + half


def compared(
    name: str, draw: Callable[[int], Split], arms: Mapping[str, dict[str, object] | None], seeds: range, strength: float
) -> None:
    """All arms of one data set and strength: a line for each seed, then one for each comparison."""
    found: dict[str, list[tuple[float, float, float]]] = {arm: [] for arm in arms}
    print(f"\n{name}, strength {strength:g}, {len(seeds)} seeds: Tr(H²), test accuracy, training loss", flush=True)
    for seed in seeds:
        split = draw(seed)
        for arm, own in arms.items():
            settings = None if own is None else {"strength": strength, **own}
            found[arm].append(run(split, seed, settings, **SETTINGS[name]))
        ends = ", ".join(f"{arm} {math.exp(r[-1][0]):.4g} {r[-1][1]:.4f} {r[-1][2]:.3g}" for arm, r in found.items())
        print(f"seed {seed}: {ends}", flush=True)
    for arm in [arm for arm in arms if arm != "every step"]:
        pairs = list(zip(found[arm], found["every step"], strict=True))
        trace = interval([a[0] - b[0] for a, b in pairs])
        accuracy = interval([a[1] - b[1] for a, b in pairs])
        same = max(map(abs, trace[1:])) < TRACE and max(map(abs, accuracy[1:])) < ACCURACY
        print(
            f"{arm:20} against every step: Tr(H²) ×{math.exp(trace[0]):.3f} "
            f"[{math.exp(trace[1]):.3f}, {math.exp(trace[2]):.3f}], accuracy {100 * accuracy[0]:+.2f} pp "
            f"[{100 * accuracy[1]:+.2f}, {100 * accuracy[2]:+.2f}]: {'equivalent' if same else 'not equivalent'}",
            flush=True,
        )


def main(arguments: Sequence[str]) -> int:
    """Compare on digits, and on MNIST where LANDSCOPE_DATA names it."""
    parser = argparse.ArgumentParser(prog="python -m bench.flatness_study", description=__doc__)
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--strengths", type=float, nargs="+", help="instead of each data set's own")
    parser.add_argument("--data", nargs="+", default=["digits", "mnist"], choices=["digits", "mnist"])
    parser.add_argument("--pilot", action="store_true", help="compare settings, on seeds that judge nothing")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    arms, first = ARMS, 0
    if options.pilot:
        grid = {f"every={every} share={share:g}": {"every": every, "share": share} for every, share in GRID}
        arms, first = {"every step": ARMS["every step"], "none": None, **grid}, 10_000
    for name in options.data:
        if name == "mnist" and not Path(os.environ.get("LANDSCOPE_DATA", ""), "mnist").is_dir():
            print("LANDSCOPE_DATA names no folder with mnist: left out")
            continue
        draw = partial(mnist, images=2000 if options.pilot else 5000) if name == "mnist" else digits
        for strength in options.strengths or [STRENGTHS[name]]:
            compared(name, draw, arms, range(first, first + options.seeds), strength)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
