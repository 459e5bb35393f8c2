"""A made-up experiment whose numbers look like a real one's: what the tests of figures and reports share."""

import dataclasses
import math
from typing import Any

import numpy as np

from landscope import figures, stats
from landscope.figures import Axis, Figure, Panel, Series
from landscope.report import Report
from landscope.spec import Claim, Experiment, Paper, Protocol, Published, call
from landscope.types import Table

SIZES = (8, 32, 128, 512)
# by protocol: exponents of batch / 8 for sharpness, training loss, steps and learning rate; points of accuracy lost
PROTOCOLS = {
    "published": (0.55, 0.9, -1.0, 0.0, 0.006),
    "equal training loss": (0.12, 0.0, -0.6, 0.0, 0.002),
    "equal lr/batch ratio": (-0.18, 0.25, -1.0, 1.0, 0.0005),
    "equal number of steps": (0.02, 0.05, 0.0, 0.0, 0.001),
}
HOLDS = {
    "published": "Every arm sees the training set equally often (80 epochs) with the learning rates the paper used.",
    "equal training loss": "Every arm trains until the loss over the whole training set is below 0.01, however long.",
    "equal lr/batch ratio": "As published, but the learning rate grows in proportion to the batch size.",
    "equal number of steps": "Every arm makes the same number of weight updates; large batches see more samples.",
}


def grid(scale: str, data: Any, seeds: Any) -> tuple[Any, ...]:
    """No recipes: nothing is trained here."""
    return ()


def draw(results: Table, histories: Table) -> tuple[Figure, ...]:
    """No figures of its own: see `drawn`."""
    return ()


def claims(scale: str = "laptop", data: Any = None) -> tuple[Claim, ...]:
    """What is claimed of the protocols."""
    flat = call(stats.log_ratio, value="top_eigenvalue", over="batch_size", numerator=512, denominator=8)
    better = call(stats.difference, value="test_accuracy", over="batch_size", first=8, second=512)
    fragile = call(stats.log_ratio, value="perturbed_loss", over="batch_size", numerator=512, denominator=8)
    falls = call(stats.trend, value="test_accuracy", over="batch_size")
    return (
        Claim(
            "Smaller batches end in flatter minima",
            flat,
            "greater",
            smallest=math.log(1.5),
            reason="Half as sharp again is where perturbed accuracy begins to differ visibly.",
            unit="ratio",
            paper=Published(math.log(11.58), 1, "section V-C, one pair of runs, seed 42"),
            expectation="Supported as published, much smaller at equal training loss.",
        ),
        Claim(
            "Smaller batches test better",
            better,
            "greater",
            smallest=0.005,
            reason="Half a point is about what another seed changes.",
            unit="points",
            paper=Published(0.0161, 1, "abstract; the same pair of runs"),
            expectation="Supported as published.",
        ),
        Claim("Test accuracy falls with batch size", falls, "trend_down", unit="tau", expectation="Probably."),
        Claim(
            "Large-batch solutions lose more when their weights are perturbed",
            fragile,
            "greater",
            smallest=math.log(1.25),
            reason="A quarter more is what two measurements of one network differ by.",
            unit="ratio",
            paper=Published(math.log(2.21), 1, "figure 4, sigma = 0.002: 52.3 % of the base loss against 23.6 %"),
        ),
    )


POSITIVE = Claim(
    "Twice the learning rate halves the steps to a loss of 0.01",
    call(stats.log_ratio, value="steps_made", over="batch_size", numerator=512, denominator=8),
    "less",
    unit="ratio",
    positive=True,
)


def experiment(**changed: Any) -> Experiment:
    """The experiment."""
    given: dict[str, Any] = {
        "paper": Paper(
            "johannsen2026", "Implicit regularization of gradient descent", "Johannsen", 2026, "https://arxiv.org/abs/1"
        ),
        "title": "Do small batches find flatter minima that generalize better?",
        "summary": "One network is trained with four batch sizes and ten seeds; sharpness and accuracy are compared.",
        "runs": {name: Protocol(grid, HOLDS[name]) for name in PROTOCOLS}
        | {"positive control": Protocol(grid, "Nothing but the learning rate differs.", positive=True)},
        "seeds": {"laptop": 10},
        "data": {"laptop": "digits"},
        "measures": (),
        "claims": claims,
        "figures": draw,
        "deviations": (
            "Network: the paper trains a convolutional network with 815,018 parameters; this scale a small MLP.",
            "Seeds: the paper says 5 (table VI) and ran 3 (its code); here 10.",
        ),
        "varied": ("initialisation", "order of the samples", "train/test split"),
        "fixed": ("the architecture",),
    }
    return Experiment(**(given | changed))


def tables(seeds: int = 10) -> dict[str, Table]:
    """By protocol, one row for each seed and batch size."""
    random = np.random.default_rng(1)
    found = {}
    for protocol, (sharp, loss, steps, rate, lost) in PROTOCOLS.items():
        rows = []
        for seed in range(seeds):
            level = random.normal(0, 0.2)
            for size in SIZES:
                doublings = math.log2(size / 8)
                rows.append(
                    {
                        "protocol": protocol,
                        "step": "end",
                        "run": f"{seed:04x}{size:04x}{len(found):08x}",
                        "status": "done",
                        "seed": seed,
                        "batch_size": size,
                        "steps_made": round(12000 * (size / 8) ** steps),
                        "gradient_evaluations": round(12000 * (size / 8) ** (steps + 1)),
                        "optimizer.lr": 0.005 * (size / 8) ** rate,
                        "train_loss": 0.009 * (size / 8) ** loss * math.exp(random.normal(0, 0.03)),
                        "top_eigenvalue": 0.7 * (size / 8) ** sharp * math.exp(level + random.normal(0, 0.25)),
                        "perturbed_loss": 0.02 * (size / 8) ** (sharp / 2) * math.exp(random.normal(0, 0.4)),
                        "test_accuracy": 0.975 - lost * doublings / 2 + random.normal(0, 0.003),
                    }
                )
        found[protocol] = Table.of(rows)
    return found


def drawn(results: dict[str, Table], seeds: int = 10) -> tuple[Figure, ...]:
    """Learning curves and two measures by batch size, as an experiment would draw them."""
    random = np.random.default_rng(2)
    epochs = np.arange(1, 41)
    lines: list[Series] = []
    for k, size in enumerate(SIZES):
        noise = random.normal(0, 0.12, (seeds, len(epochs))).cumsum(axis=1) * 0.3
        lines += figures.curves(f"batch {size}", epochs, np.exp(-epochs / (6 + 5 * k) + noise), k, log=True)
    ticks = (SIZES, tuple(str(size) for size in SIZES))
    sharpness: list[Series] = []
    accuracy: list[Series] = []
    for k, (name, table) in enumerate(results.items()):
        sharpness += figures.by_level(name, table["batch_size"], table["top_eigenvalue"], k, log=True)
        accuracy += figures.by_level(name, table["batch_size"], table["test_accuracy"], k)
    return (
        Figure(
            "learning-curves",
            "Training loss",
            f"After 40 epochs batch 8 is at loss 0.001, batch 512 still at 0.15 (geometric means of {seeds} seeds).",
            (Panel("published", Axis("epoch"), Axis("training loss (nats)", log=True), tuple(lines)),),
            "Bold: mean over seeds with its pointwise 95 % band. Pale: each seed.",
        ),
        Figure(
            "by-batch-size",
            "Sharpness and test accuracy against batch size",
            "As published batch 512 is 9.8 times as sharp as batch 8; at equal training loss 1.6 times.",
            (
                Panel(
                    "Sharpness",
                    Axis("batch size", log=True, ticks=ticks),
                    Axis("top Hessian eigenvalue of the training loss", log=True),
                    tuple(sharpness),
                ),
                Panel(
                    "Test accuracy",
                    Axis("batch size", log=True, ticks=ticks),
                    Axis("test accuracy"),
                    (*accuracy, figures.horizontal("paper, batch 32", 0.96, (8, 512))),
                ),
            ),
        ),
    )


def report(seeds: int = 10, **changed: Any) -> Report:
    """The report on it; ``changed`` replaces fields."""
    results = tables(seeds)
    judged = stats.judge(claims(), results, seeds)
    known = stats.judge((POSITIVE,), {"positive control": results["published"]}, seeds)
    judged += [dataclasses.replace(v, control=v.protocol) for v in known]
    given: dict[str, Any] = {
        "name": "johannsen2026_batch_size",
        "experiment": experiment(),
        "scale": "laptop",
        "data": "digits",
        "seeds": seeds,
        "verdicts": judged,
        "tables": results,
        "figures": drawn(results, seeds),
        "runs": {name: tuple(table["run"]) for name, table in results.items()},
        "counts": {n: {"planned": 4 * seeds, "done": 4 * seeds, "diverged": 0, "censored": 0} for n in results},
        "command": "landscope run johannsen2026_batch_size --scale laptop --data digits --seeds 10 --jobs 2",
        "environment": {"landscope": "0.1.0", "torch": "2.13.0", "processor": "2 cores", "system": "Linux"},
        "plan": {"executor": "solo", "loss checked every": "20 steps"},
        "version": "0.1.0",
    }
    return Report(**(given | changed))
