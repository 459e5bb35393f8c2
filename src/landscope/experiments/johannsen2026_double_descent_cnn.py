"""Does a network that never trained make a peak of the test error? Johannsen 2026, experiment 1, CNN."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from landscope.experiments._data import check_classes
from landscope.experiments._double_descent import (
    check_sweep,
    curves,
    double_descent,
    judged,
    sweep,
)
from landscope.experiments._johannsen2026 import JOHANNSEN
from landscope.figures import Figure
from landscope.losses import cross_entropy
from landscope.measures.outcomes import performance
from landscope.models import cnn, cnn1d
from landscope.spec import Claim, Experiment, Protocol, Published, Recipe, call
from landscope.stats import difference, peak_height, trend
from landscope.types import Table

CHANNELS = "model.channels"
THRESHOLD = 8  # the channels at which the paper sees its peak
TRAINED = 0.2  # the training accuracy below which a network of ten classes has not trained: chance is 0.1
# Test accuracy (%) of the paper's two seeds, by channels; the second network of 8 never trained (training: 9.84 %).
ACCURACIES = {
    4: (34.61, 31.13), 8: (45.12, 10.04), 16: (58.44, 53.80),
    32: (65.69, 65.87), 64: (70.18, 69.25), 96: (72.34, 71.74),
}  # fmt: skip


@dataclass(frozen=True)
class Sweep:
    """What is trained at one scale; everything is fixed here, before any run.

    Args:
        channels: Of the first stage, ascending, `THRESHOLD` among them.
        data: Sizes of the sets drawn.
        batch: The batch size.
        epochs: Passes over the training set.
    """

    channels: tuple[int, ...]
    data: dict[str, Any]
    batch: int
    epochs: int

    def __post_init__(self) -> None:
        """Refuse what is no sweep, and one without the paper's threshold."""
        check_sweep("channels", self.channels)
        if THRESHOLD not in self.channels[1:-1]:
            raise ValueError(f"the paper's threshold of {THRESHOLD} channels lies among the channels {self.channels}")


SWEEPS = {
    "smoke": Sweep((4, 8, 12), {"train": 100, "valid": 0, "test": 100}, 16, 3),
    "laptop": Sweep((4, 8, 16), {"train": 1_000, "valid": 0, "test": 2_000}, 32, 24),
    "paper": Sweep((4, 8, 16, 32, 64, 96), {"train": 50_000, "valid": 0}, 128, 60),
}


def _grid(scale: str, data: Any, seeds: Sequence[int], rate: float, batchnorm: bool) -> list[Recipe]:
    of, image = SWEEPS[scale], len(data.shape) == 3
    check_classes(data)
    if scale == "paper" and not image:
        raise ValueError(f"the paper's network is for images, and {data.name} holds none: give cifar10")
    steps = of.epochs * math.ceil(of.data["train"] / of.batch)
    return [
        Recipe(
            data=data.draw(**of.data),
            model=call(cnn, channels=channels, batchnorm=batchnorm) if image else call(cnn1d, channels=channels),
            loss=call(cross_entropy),
            optimizer=call(SGD, lr=rate, momentum=0.9),
            schedule=call(CosineAnnealingLR, T_max=steps),
            steps=steps,
            batch_size=of.batch,
            seed=seed,
        )
        for seed in seeds
        for channels in of.channels
    ]


def published(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """As the paper's code: no BatchNorm, learning rate 0.1."""
    return _grid(scale, data, seeds, 0.1, batchnorm=False)


def as_written(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """As the paper's text: BatchNorm, learning rate 0.01."""
    return _grid(scale, data, seeds, 0.01, batchnorm=True)


def claims(scale: str, data: Any) -> list[Claim]:
    """What the paper says of the sweep, at the channels of this scale."""
    of = SWEEPS[scale]
    largest = of.channels[-1]
    accuracy: dict[str, Any] = {"value": "test_accuracy", "over": CHANNELS, "worst": 1 / data.outputs}
    small: dict[str, Any] = {"smallest": 0.02, "reason": "the paper's two seeds differ by two to five points below 32"}
    peak = accuracy | {"levels": of.channels, "dip": True, "peak": THRESHOLD}
    rise, fall = _published(4, THRESHOLD), _published(largest, THRESHOLD)
    return [
        double_descent(
            "Test error peaks at 8 channels, near the interpolation threshold, then falls",
            peak,
            expectation="Depends on how many of the networks of 8 channels never train.",
            rise=rise,
            fall=fall,
            **small,
        ),
        Claim(
            "Among networks that trained (training accuracy of 20 % or more) those of 8 channels test worse than of 4",
            call(peak_height, above="smaller", **peak, given=(("train_accuracy", TRAINED),)),
            expect="greater",
            unit="points",
            primary=False,
            expectation="Contradicted: it is the runs that never trained that make the peak.",
        ),
        Claim(
            f"As capacity grows further test accuracy improves ({largest} channels against {THRESHOLD})",
            call(difference, first=largest, second=THRESHOLD, **accuracy),
            expect="greater",
            unit="points",
            paper=fall,
            expectation="Supported.",
            **small,
        ),
        Claim(
            "Test accuracy rises with the channels",
            call(trend, levels=of.channels, **accuracy),
            expect="trend_up",
            smallest=0.2,
            reason="at τ = 0.2 the claimed order holds for no more than 60 % of the pairs of sizes",
            unit="tau",
            paper=Published(0.87, 2, "τ of the paper's test accuracies over six sizes, each the mean of two seeds"),
            expectation="Supported where networks train.",
        ),
    ]


def _published(better: int, worse: int) -> Published | None:
    """By how much one size of the paper's networks tests better than another."""
    if better not in ACCURACIES:
        return None
    first, second = (sum(ACCURACIES[size]) / 200 for size in (better, worse))
    source = (
        f"{100 * first:.2f} % at {better} channels, {100 * second:.2f} % at {worse}, the mean of 45.12 % and 10.04 %"
    )
    return Published(first - second, 2, source)


def draw(results: Table, histories: Table) -> list[Figure]:
    """Errors against the channels, every run a point, and learning curves; how many runs never trained is said."""
    tables = judged(results, RUNS, CHANNELS, "channels")
    said = " ".join(
        f"{name}: {sum(r['train_accuracy'] < TRAINED for r in table.rows())} of {len(table)} networks never trained."
        for name, table in tables.items()
        if len(table)
    )
    drawn = (
        sweep(tables, "test-error", "Test error against channels", "test_error", "test error (%)", "channels"),
        sweep(
            tables, "train-error", "Training error against channels", "train_error", "training error (%)", "channels"
        ),
        sweep(
            tables, "train-loss", "Training loss against channels", "train_loss", "training loss", "channels", log=True
        ),
    )
    told = [replace(figure, finding=f"{figure.finding} {said}") for figure in drawn if figure is not None]
    return [*told, *curves(results, histories, CHANNELS, "channels", list(RUNS))]


RUNS = {
    "published": Protocol(
        published,
        holds="Every network sees the training set equally often with the same learning rate of 0.1, without "
        "BatchNorm. At this rate some networks never leave chance: they stay in, as they did in the paper's means.",
    ),
    "as the text says": Protocol(
        as_written,
        holds="Equal epochs, with BatchNorm after every convolution and a learning rate of 0.01: what the paper says "
        "that it did, where all networks can be expected to train. The means then compare sizes, not failures.",
    ),
}

EXPERIMENT = Experiment(
    paper=JOHANNSEN,
    title="Does the test error of convolutional networks peak at the interpolation threshold?",
    summary="Convolutional networks of growing width are trained as the paper's code did, without BatchNorm at a "
    "learning rate of 0.1, and as its text says. The paper's peak at 8 channels is the mean of one network that "
    "trained and one that never did. Its place is fixed beforehand, so that all seeds measure its height.",
    runs=RUNS,
    seeds={"smoke": 2, "laptop": 8, "paper": 8},
    data={"smoke": "mnist1d", "laptop": "cifar10", "paper": "cifar10"},
    measures=(call(performance),),
    claims=claims,
    figures=draw,
    deviations=(
        "Seeds: 8; the paper's code ran 2 (its text says 5). None is left out for not having trained; a claim apart, "
        "which decides nothing, is about those that did.",
        "Laptop scale: 4, 8 and 16 channels (4 to 96), 1,000 training images that each seed draws anew (50,000), "
        "batches of 32 (128) at the published learning rate, four times the paper's for its batch, 24 epochs (60), "
        "2,000 test images drawn anew (10,000).",
        "Images are standardised by mean and standard deviation of the training subset; the paper's constants are "
        "those of the whole set.",
        "Smoke scale and other sets without images (MNIST-1D): three convolutions along the signal, without BatchNorm "
        "under either protocol.",
        "Training accuracy is evaluated on the whole training set after training; the paper's is the running mean over "
        "the last epoch's batches in train mode.",
        "Paper scale: all seeds are tested on the whole test set, whose sampling error is not added.",
    ),
    varied=("initialisation", "order of the batches", "training subset and test subset (below paper scale)"),
    fixed=("the training and the test set (paper scale)",),
)
