"""Double descent where theory puts it: random features of as many samples (positive control of Johannsen 2026)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from landscope.experiments._data import check_classes
from landscope.experiments._double_descent import (
    check_sweep,
    double_descent,
    judged,
    sweep,
)
from landscope.experiments._johannsen2026 import JOHANNSEN
from landscope.figures import Figure
from landscope.losses import squared_error
from landscope.measures.outcomes import performance
from landscope.models import random_features
from landscope.optimizers import LeastSquares
from landscope.spec import Claim, Experiment, Protocol, Recipe, call
from landscope.stats import difference, log_ratio
from landscope.types import Table

FEATURES = "model.features"
RIDGE = 0.1  # beside features of which a squared norm is about half their number


@dataclass(frozen=True)
class Sweep:
    """What is solved at one scale; everything is fixed here, before any run.

    Args:
        features: How many, ascending; the number of training samples among them, neither first nor last.
        train: Training samples.
        test: Test samples.
    """

    features: tuple[int, ...]
    train: int
    test: int

    def __post_init__(self) -> None:
        """Refuse what is no sweep, and one without the threshold."""
        check_sweep("numbers of features", self.features)
        if self.train not in self.features[1:-1]:
            raise ValueError(f"the {self.train:,} training samples lie among the numbers of features {self.features}")


SWEEPS = {
    "smoke": Sweep((10, 30, 60, 120), 60, 100),
    "laptop": Sweep((50, 100, 200, 400, 600, 800, 900, 1000, 1100, 1300, 2000, 4000), 1_000, 5_000),
    "paper": Sweep(
        (50, 100, 200, 400, 600, 800, 900, 950, 1000, 1050, 1100, 1300, 2000, 4000, 10_000), 1_000, 10_000
    ),
}  # fmt: skip


def _grid(scale: str, data: Any, seeds: Sequence[int], ridge: float) -> list[Recipe]:
    check_classes(data)
    of = SWEEPS[scale]
    return [
        Recipe(
            data=data.draw(train=of.train, valid=0, test=of.test),
            model=call(random_features, features=features),
            loss=call(squared_error),
            optimizer=call(LeastSquares, ridge=ridge),
            steps=1,
            batch_size=of.train,
            seed=seed,
        )
        for seed in seeds
        for features in of.features
    ]


def interpolating(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """The solution of the smallest norm, without a penalty."""
    return _grid(scale, data, seeds, 0.0)


def penalised(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """The same features with a ridge penalty, which takes the peak away."""
    return _grid(scale, data, seeds, RIDGE)


def claims(scale: str, data: Any) -> list[Claim]:
    """What theory says of the sweep, and what is seen of it in errors."""
    of = SWEEPS[scale]
    largest, n = of.features[-1], of.train
    few = min(of.features, key=lambda features: abs(features - n // 5))
    error: dict[str, Any] = {"value": "test_accuracy", "over": FEATURES, "worst": 1 / data.outputs}
    small = {"smallest": 0.02, "reason": "two points are far below the collapse that theory predicts at the threshold"}
    return [
        double_descent(
            f"Test error peaks where there are as many features as samples ({n:,})",
            error | {"levels": of.features, "dip": True, "peak": n},
            expectation="Supported; contradicted with the ridge penalty.",
            **small,
        ),
        Claim(
            f"The squared error on the test set peaks there too ({n:,} features against {largest:,})",
            call(log_ratio, value="test_loss", over=FEATURES, numerator=n, denominator=largest, worst="max"),
            expect="greater",
            smallest=math.log(2),
            reason="theory has it unbounded at the threshold; a factor of 2 would be another thing",
            unit="ratio",
            expectation="Supported by far; contradicted with the ridge penalty.",
        ),
        Claim(
            f"Many more features than samples test better than a fifth of them ({largest:,} against {few:,})",
            call(difference, first=largest, second=few, **error),
            expect="greater",
            unit="points",
            expectation="Supported: the second descent ends below the first.",
            **small,
        ),
    ]


def draw(results: Table, histories: Table) -> list[Figure]:
    """Errors and losses against the number of features, every run a point."""
    tables = judged(results, RUNS, FEATURES, "features")
    loss = "squared error"
    drawn = (
        sweep(tables, "test-error", "Test error against features", "test_error", "test error (%)", "features"),
        sweep(
            tables, "train-error", "Training error against features", "train_error", "training error (%)", "features"
        ),
        sweep(tables, "test-loss", "Test loss against features", "test_loss", f"test {loss}", "features", log=True),
    )
    return list(filter(None, drawn))


RUNS = {
    "published": Protocol(
        interpolating,
        holds="All models see the same samples with the labels as they are, and are the exact least-squares solution "
        "of the smallest norm: nothing depends on a learning rate or on how long was trained.",
    ),
    "ridge": Protocol(
        penalised,
        holds=f"The same samples and the same features as in the published protocol; a penalty of {RIDGE:g} on the "
        "squared norm keeps the weights from growing where features and samples are equally many, which is what makes "
        "the peak.",
    ),
}

EXPERIMENT = Experiment(
    paper=JOHANNSEN,
    title="Does the instrument find the peak where there are as many features as samples?",
    summary="The paper reports double descent; its data show none. Here it is certain: linear regression on random "
    "ReLU features has a peak of the test error where features and training samples are equally many, because the "
    "interpolating solution's norm is largest there; a penalty on the norm takes it away. Everything is solved in "
    "closed form.",
    runs=RUNS,
    seeds={"smoke": 2, "laptop": 16, "paper": 16},
    data={"smoke": "digits", "laptop": "mnist", "paper": "mnist"},
    measures=(call(performance),),
    claims=claims,
    figures=draw,
    deviations=(
        "The published protocol is not Johannsen's, who trains no such model, but that of Belkin et al. 2019 "
        "(Reconciling modern machine-learning practice and the bias-variance trade-off): minimum-norm least squares on "
        "one-hot labels. They have 10,000 images and Fourier features as well; here there are 1,000 and ReLU features.",
        "Laptop scale: up to 4,000 features (10,000), 5,000 test images drawn anew by each seed (all).",
        "Features are computed in float32, the solution in float64.",
    ),
    varied=("the random features", "training images", "test images (below paper scale)"),
    fixed=("the test set (paper scale)",),
)
