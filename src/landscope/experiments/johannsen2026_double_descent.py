"""Does the test error of wider networks peak at the interpolation threshold? Johannsen 2026, experiment 1, MLP."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from landscope.experiments._data import check_classes
from landscope.experiments._double_descent import (
    check_sweep,
    curves,
    double_descent,
    judged,
    no_rise,
    sweep,
)
from landscope.experiments._johannsen2026 import JOHANNSEN
from landscope.figures import Figure
from landscope.losses import cross_entropy
from landscope.measures.outcomes import performance
from landscope.measures.sharpness import weight_perturbation
from landscope.measures.spectrum import top_eigenvalues
from landscope.models import mlp
from landscope.spec import Call, Claim, Experiment, Protocol, Published, Recipe, call, first_below
from landscope.stats import difference, trend
from landscope.train import loss_below
from landscope.types import Table

WIDTH = "model.widths"
LEVELS = (0.1, 0.01, 0.001)  # nats of full training loss; the verdict is at the middle one
MAGNITUDES = (0.02, 0.05, 0.1, 0.2)
JUDGED_SHARE = 0.1
# Test accuracy (%) of the paper's two seeds, by width.
ACCURACIES = {32: (95.33, 95.42), 256: (96.48, 96.85), 512: (96.90, 96.99), 1024: (96.70, 96.95)}


@dataclass(frozen=True)
class Sweep:
    """What is trained at one scale on one data set; everything is fixed here, before any run.

    Args:
        widths: Of the three hidden layers, ascending.
        threshold: The width that the paper calls the interpolation threshold, or what stands for it.
        fitting: The smallest width that can be expected to fit its training set.
        data: Sizes of the sets drawn.
        epochs: Of the published protocol.
        limit: Epochs after which the control with equal loss gives up.
        every: Steps between looks at the training loss in that control.
        batch: The batch size.
    """

    widths: tuple[int, ...]
    threshold: int
    fitting: int
    data: dict[str, Any]
    epochs: int = 60
    limit: int = 100
    every: int = 8
    batch: int = 128

    def __post_init__(self) -> None:
        """Refuse what is no sweep, and a threshold at its end."""
        check_sweep("widths", self.widths)
        if self.threshold not in self.widths[:-1]:
            raise ValueError(f"the threshold is one of the widths {self.widths} but the last, not {self.threshold}")


SMOKE = Sweep((4, 8, 16, 32), 8, 8, {"train": 128, "valid": 0, "test": 100}, epochs=4, limit=200, every=4, batch=32)
DIGITS = Sweep((4, 8, 16, 32, 64, 128, 256), 32, 16, {"train": 1_000, "valid": 0, "test": 400}, every=4, batch=32)
IMAGES = Sweep((4, 8, 16, 32, 64, 128, 256), 32, 16, {"train": 2_000, "valid": 0, "test": 4_000})
PAPER = Sweep((8, 16, 32, 64, 128, 256, 512, 1024), 32, 16, {"train": 10_000, "valid": 0}, limit=200)


def sizes(scale: str, data: Any) -> Sweep:
    """The sweep for a scale and data set.

    Raises:
        ValueError: for data without classes.
    """
    check_classes(data)
    if scale == "paper":
        return PAPER
    if scale == "smoke":
        return SMOKE
    return IMAGES if len(data.shape) == 3 else DIGITS


def _recipe(of: Sweep, data: Any, seed: int, width: int, epochs: int, **others: Any) -> Recipe:
    drawn = data.draw(**of.data)
    return Recipe(
        data=drawn,
        model=call(mlp, widths=(width,) * 3),
        loss=call(cross_entropy),
        optimizer=call(SGD, lr=0.05, momentum=0.9),
        steps=epochs * math.ceil(of.data["train"] / of.batch),
        batch_size=of.batch,
        seed=seed,
        **others,
    )


def published(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """Equal epochs and learning rate for every width, cosine decay to 0."""
    of = sizes(scale, data)
    schedule = call(CosineAnnealingLR, T_max=of.epochs * math.ceil(of.data["train"] / of.batch))
    return [_recipe(of, data, seed, width, of.epochs, schedule=schedule) for seed in seeds for width in of.widths]


def equal_loss(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """The same learning rate, constant, until the full training loss is below the lowest level.

    Widths that cannot be expected to reach it are left out: the paper's of 8 had 97 % training accuracy at the end.
    """
    of = sizes(scale, data)
    stop = call(loss_below, level=LEVELS[-1], every=of.every)
    return [
        _recipe(of, data, seed, width, of.limit, stop=stop)
        for seed in seeds
        for width in of.widths
        if width >= of.fitting
    ]


def claims(scale: str, data: Any) -> list[Claim]:
    """What the paper says of the sweep, at the widths of this scale."""
    of = sizes(scale, data)
    smallest, seeds_differ = 0.005, "the paper's own two seeds differ by up to half a point at one width"
    accuracy: dict[str, Any] = {"value": "test_accuracy", "over": WIDTH, "worst": 1 / data.outputs}
    return [
        double_descent(
            "Test error peaks as the network grows wider, and falls again (double descent)",
            accuracy | {"dip": True},
            smallest=smallest,
            reason=seeds_differ,
            expectation="Contradicted: the paper's own accuracies rise from width to width, without a peak.",
        ),
        no_rise(
            "A wider network is nowhere more than half a point worse than the best of the smaller ones",
            accuracy | {"dip": True},
            smallest=smallest,
            reason=seeds_differ,
            expectation="Supported: clean labels on easy images.",
        ),
        _beyond(of, accuracy | ({"examples": "test_correct"} if scale == "paper" else {}), smallest, seeds_differ),
        Claim(
            "Test accuracy rises with the width",
            call(trend, **accuracy),
            expect="trend_up",
            smallest=0.2,
            reason="at τ = 0.2 the claimed order holds for no more than 60 % of the pairs of widths",
            unit="tau",
            paper=Published(0.91, 2, "τ of the paper's test accuracies over eight widths, each the mean of two seeds"),
            expectation="Supported.",
        ),
        *_sharpness(),
    ]


def _beyond(of: Sweep, accuracy: dict[str, Any], smallest: float, reason: str) -> Claim:
    """The paper's own words: beyond the threshold the accuracy continues to rise."""
    largest, threshold = of.widths[-1], of.threshold
    paper = None
    if largest in ACCURACIES and threshold in ACCURACIES:
        ends = [sum(ACCURACIES[width]) / 200 for width in (largest, threshold)]
        source = (
            f"{100 * ends[0]:.2f} % at width {largest}, {100 * ends[1]:.2f} % at {threshold}; 10,000 images, 60 epochs"
        )
        paper = Published(ends[0] - ends[1], 2, source)
    return Claim(
        f"Beyond the interpolation threshold test accuracy continues to rise (width {largest} against {threshold})",
        call(difference, first=(largest,) * 3, second=(threshold,) * 3, **accuracy),
        expect="greater",
        smallest=smallest,
        reason=reason,
        unit="points",
        paper=paper,
        expectation="Supported; it is no second descent, because nothing rose before it.",
    )


def _sharpness() -> list[Claim]:
    """The paper's guess that wider networks have more flat minima, measured along the sweep."""
    measured = (
        ("top Hessian eigenvalue", "top_eigenvalue", None),
        (f"loss added by noise of {JUDGED_SHARE:.0%} of each filter's norm", "filter_loss_increase", JUDGED_SHARE),
    )
    return [
        Claim(
            f"Wider networks end flatter ({what})",
            call(trend, value=value, over=WIDTH, worst="max", index=None if at is None else MAGNITUDES.index(at)),
            expect="trend_down",
            smallest=-0.2,
            reason="at τ = −0.2 the claimed order holds for no more than 60 % of the pairs of widths",
            unit="tau",
            expectation="Supported as published, where wide networks end at a smaller loss; unclear at equal loss.",
        )
        for what, value, at in measured
    ]


def draw(results: Table, histories: Table) -> list[Figure]:
    """Errors, losses and sharpness against the width, every run a point, and learning curves."""
    rows = [_at_share(row) for row in results.rows()]
    tables = judged(Table.of(rows), RUNS, WIDTH, "width")
    loss, sharp = "training loss (nats)", "top Hessian eigenvalue"
    noise = f"loss added by noise of {JUDGED_SHARE:.0%} of each filter's norm (nats)"
    drawn = (
        sweep(tables, "test-error", "Test error against width", "test_error", "test error (%)", "width"),
        sweep(tables, "train-error", "Training error against width", "train_error", "training error (%)", "width"),
        sweep(tables, "train-loss", "Training loss against width", "train_loss", loss, "width", log=True),
        sweep(tables, "sharpness", "Sharpness against width", "top_eigenvalue", sharp, "width", log=True),
        sweep(tables, "noise-filter", "Weight noise against width", "noise", noise, "width", log=True),
    )
    return [*filter(None, drawn), *curves(results, histories, WIDTH, "width", list(RUNS))]


def _at_share(row: dict[str, Any]) -> dict[str, Any]:
    found = row.get("filter_loss_increase")
    return row | {"noise": None if found is None else found[MAGNITUDES.index(JUDGED_SHARE)]}


RUNS = {
    "published": Protocol(
        published,
        holds="Every width sees the training set equally often with the same learning rate. Narrow networks end at a "
        "higher training loss than wide ones, which makes them sharper whatever the width does.",
    ),
    "equal training loss": Protocol(
        equal_loss,
        holds="Every width from 16 up is measured when its loss over the whole training set first falls below the same "
        "level, at a constant learning rate. No network is sharper merely because it was left at a higher "
        "loss; wide ones get there in fewer steps.",
        steps=tuple(first_below("train_loss", level) for level in LEVELS),
        judged=first_below("train_loss", LEVELS[1]),
        share=0.6,
    ),
}

MEASURES: tuple[Call, ...] = (
    call(performance),
    call(top_eigenvalues, k=1),
    call(weight_perturbation, kind="filter", magnitudes=MAGNITUDES, draws=5),
)

EXPERIMENT = Experiment(
    paper=JOHANNSEN,
    title="Does test error peak at the interpolation threshold as networks grow wider?",
    summary="Fully connected networks of growing width are trained on clean labels as the paper did. Its text reports "
    "double descent; its own accuracies rise from width to width. One half of the seeds chooses where a peak might be, "
    "the other measures its height. Sharpness is measured along the sweep. That the same statistic finds double "
    "descent where there is one is shown by johannsen2026_double_descent_noise and johannsen2026_double_descent_"
    "features.",
    runs=RUNS,
    seeds={"smoke": 2, "laptop": 16, "paper": 16},
    data={"smoke": "digits", "laptop": "mnist", "paper": "mnist"},
    measures=MEASURES,
    measures_at={"paper": (call(performance, examples=True), *MEASURES[1:])},
    claims=claims,
    figures=draw,
    deviations=(
        "Seeds: 16, of which 8 choose the place of a peak and 8 measure it; all 16 are used where nothing is chosen. "
        "The paper's code ran 2 (its text says 5). Each draws its own training subset; the paper's was one subset.",
        "Laptop scale: 2,000 training images (10,000), widths 4 to 256 (8 to 1,024), 4,000 test images drawn anew by "
        "each seed (10,000, the same for all). On sets that are no images: 1,000 samples, batches of 32 (128).",
        "The threshold of 32, the smallest width at which the paper's networks fit 10,000 images, is kept for 2,000.",
        "Images are standardised by mean and standard deviation of the training subset; the paper takes .1307 and "
        ".3081 for all of MNIST.",
        "Training accuracy is evaluated on the whole training set after training; the paper's is the running mean over "
        "the last epoch's batches in train mode.",
        "Sharpness along the sweep is guessed at in the paper's discussion, and measured here. Equal training loss: "
        "the learning rate is constant (published: cosine decay to 0), the smallest widths are left out.",
        "Paper scale: all seeds are tested on the whole test set. Its sampling error is added to the difference of two "
        "widths; trends and heights of peaks speak of new seeds on these images.",
    ),
    varied=("initialisation", "order of the batches", "training subset", "test subset (below paper scale)"),
    fixed=("the draws of the weight noise", "the start vector of Lanczos", "the test set (paper scale)"),
)
