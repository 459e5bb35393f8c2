"""Double descent in width where it is known to be: MNIST-1D with wrong labels (control of Johannsen 2026)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.optim import SGD

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
from landscope.models import mlp
from landscope.spec import Claim, Experiment, Protocol, Published, Recipe, call
from landscope.types import Table

NOISE = 0.15
WIDTH = "model.widths"
# Test error (%) of the published single run, 15 % of the labels redrawn.
CURVE = {9: 48.97, 16: 47.24, 21: 50.84, 36: 52.80, 47: 54.05, 61: 54.02, 104: 50.23, 177: 47.88, 300: 45.47}
SOURCE = "one run without a seed, 15 % of 4,000 labels redrawn, in the notebook of the MNIST-1D repository"


@dataclass(frozen=True)
class Sweep:
    """What is trained at one scale; everything is fixed here, before any run.

    Args:
        widths: Of both hidden layers, ascending.
        train: Training samples.
        test: Test samples.
        epochs: Passes over the training set.
    """

    widths: tuple[int, ...]
    train: int
    test: int
    epochs: int

    def __post_init__(self) -> None:
        """Refuse what is no sweep."""
        check_sweep("widths", self.widths)


SWEEPS = {
    "smoke": Sweep((2, 8, 32), 200, 200, 4),
    "laptop": Sweep((4, 9, 16, 27, 47, 61, 104, 177), 4_000, 4_000, 500),
    "paper": Sweep(
        (2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 47, 61, 80, 104, 135, 177, 230, 300), 4_000, 12_000, 500
    ),
}  # fmt: skip
BATCH = 100


def _grid(scale: str, data: Any, seeds: Sequence[int], noise: float) -> list[Recipe]:
    check_classes(data)
    of = SWEEPS[scale]
    return [
        Recipe(
            data=data.draw(train=of.train, valid=0, test=of.test, label_noise=noise),
            model=call(mlp, widths=(width, width)),
            loss=call(cross_entropy),
            optimizer=call(SGD, lr=0.01, momentum=0.9),
            steps=of.epochs * -(-of.train // BATCH),
            batch_size=BATCH,
            seed=seed,
        )
        for seed in seeds
        for width in of.widths
    ]


def wrong_labels(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """15 % of the training labels redrawn."""
    return _grid(scale, data, seeds, NOISE)


def clean_labels(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """The same with the labels as they are."""
    return _grid(scale, data, seeds, 0.0)


def claims(scale: str, data: Any) -> list[Claim]:
    """What the published curve shows, at the widths of this scale."""
    of = SWEEPS[scale]
    largest = of.widths[-1]
    a_point = "two points are a third of the published height, and twice the sampling error of a test set of 4,000"
    whole: dict[str, Any] = {
        "value": "test_accuracy",
        "over": WIDTH,
        "levels": tuple((width, width) for width in of.widths),
        "dip": True,
        "worst": 1 / data.outputs,
    }
    fixed: dict[str, Any] = {"smallest": 0.02, "reason": a_point}
    published = {
        "rise": Published((CURVE[47] - CURVE[16]) / 100, 1, f"54.05 % at width 47 above 47.24 % at 16; {SOURCE}"),
        "fall": Published(
            (CURVE[47] - CURVE[largest]) / 100, 1, f"54.05 % at width 47, {CURVE[largest]} % at {largest}; {SOURCE}"
        )
        if largest in CURVE
        else None,
    }
    return [
        double_descent(
            "Test error falls, rises to a peak and falls again as the network grows wider",
            whole,
            expectation="Supported with wrong labels, contradicted with clean ones.",
            **fixed,
            **published,
        ),
        double_descent(
            "The peak stands where the training error first falls below 5 % (the interpolation threshold)",
            whole | {"threshold": ("train_accuracy", 0.95)},
            expectation="Supported with wrong labels; the published peak has 5.5 % training error.",
            **fixed,
        ),
        no_rise(
            "A wider network is nowhere more than two points worse than the best of the smaller ones",
            whole,
            expectation="Contradicted with wrong labels, supported with clean ones.",
            **fixed,
        ),
    ]


def draw(results: Table, histories: Table) -> list[Figure]:
    """Errors against the width, every run a point, and learning curves of some widths."""
    tables = judged(results, RUNS, WIDTH, "width")
    drawn = (
        sweep(tables, "test-error", "Test error against width", "test_error", "test error (%)", "width"),
        sweep(tables, "train-error", "Training error against width", "train_error", "training error (%)", "width"),
        sweep(
            tables, "train-loss", "Training loss against width", "train_loss", "training loss (nats)", "width", log=True
        ),
    )
    return [*filter(None, drawn), *curves(results, histories, WIDTH, "width", list(RUNS))]


RUNS = {
    "published": Protocol(
        wrong_labels,
        holds="All widths see the same 4,000 samples, of which the same 15 % have redrawn labels, equally often, with "
        "the same constant learning rate. Narrow networks cannot fit the wrong labels, wide ones fit all of them: the "
        "training error differs, and is drawn.",
    ),
    "clean labels": Protocol(
        clean_labels,
        holds="The same samples, order and initial weights as in the published protocol; only the labels are as they "
        "should be. What is left of a peak here is not due to wrong labels.",
    ),
}

EXPERIMENT = Experiment(
    paper=JOHANNSEN,
    title="Does the instrument find double descent where it is known to be?",
    summary="The paper reports double descent with clean labels; its data show none. Here networks of growing width "
    "learn MNIST-1D with 15 % of the labels redrawn, for which a peak of the test error at the interpolation threshold "
    "has been published, and with clean labels, for which none has. One half of the seeds chooses the peak's place, "
    "the other measures its height.",
    runs=RUNS,
    seeds={"smoke": 2, "laptop": 16, "paper": 16},
    data={"smoke": "mnist1d", "laptop": "mnist1d", "paper": "mnist1d"},
    measures=(call(performance),),
    claims=claims,
    figures=draw,
    deviations=(
        "The published protocol is not Johannsen's but the one of the MNIST-1D repository's notebook on double "
        "descent (two hidden layers of one width, 19 widths from 2 to 300, SGD with learning rate .01 and momentum .9, "
        "batches of 100, 500 epochs); Johannsen's text has no label noise anywhere.",
        "Seeds: 16, of which 8 choose the peak's place and 8 measure; the published curve is one run without a seed.",
        "Test set: 4,000 samples (laptop), 12,000 (paper scale) as published, drawn anew by each seed.",
        "Laptop scale: 8 of the 19 widths, up to 177 (300).",
        "Training, validation and test samples are separate draws of the generator; the published sets are a split of "
        "one draw of 16,000.",
    ),
    varied=("initialisation", "order of the batches", "samples of the training and the test set", "wrong labels"),
)
