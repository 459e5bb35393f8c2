"""Double descent along training, where theory has it, and with wrong labels (positive control of Johannsen 2026)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.optim import SGD, Adam

from landscope.experiments._double_descent import check_sweep, double_descent, judged, no_rise, sweep
from landscope.experiments._johannsen2026 import JOHANNSEN
from landscope.figures import Figure
from landscope.losses import cross_entropy, squared_error
from landscope.measures.outcomes import performance
from landscope.models import mlp, resnet18
from landscope.spec import Call, Claim, Experiment, Protocol, Recipe, call
from landscope.types import Table

NOISE = 0.2  # of the labels, where there are classes


@dataclass(frozen=True)
class Arms:
    """What is trained at one scale on one data set; everything is fixed here, before any run.

    Args:
        model: The network.
        loss: The loss.
        optimizer: The optimizer, at a constant learning rate: a shorter run is the beginning of a longer one.
        batch: The batch size; 0 for full batches.
        epochs: Lengths of training, ascending.
        data: Sizes of the sets drawn.
        double: What the data need for a second descent.
        single: What takes it away.
    """

    model: Call
    loss: Call
    optimizer: Call
    batch: int
    epochs: tuple[int, ...]
    data: dict[str, Any]
    double: dict[str, Any]
    single: dict[str, Any]

    def __post_init__(self) -> None:
        """Refuse what is no sweep."""
        check_sweep("epochs", self.epochs)


REGRESSION = Arms(
    call(mlp, widths=()), call(squared_error), call(SGD, lr=0.05), 0, tuple(2**k for k in range(14)),
    {"train": 200, "valid": 0, "test": 2_000}, {"scale": 0.1}, {"scale": 1.0},
)  # fmt: skip
NETWORK = Arms(
    call(mlp, widths=(177, 177)), call(cross_entropy), call(Adam, lr=1e-3), 100, tuple(2**k for k in range(9)),
    {"train": 4_000, "valid": 0, "test": 4_000}, {"label_noise": NOISE}, {"label_noise": 0.0},
)  # fmt: skip
PAPER = Arms(
    call(resnet18, order="pre"), call(cross_entropy), call(Adam, lr=1e-4), 128, tuple(2**k for k in range(13)),
    {"train": 50_000, "valid": 0}, {"label_noise": NOISE}, {"label_noise": 0.0},
)  # fmt: skip


def arms(scale: str, data: Any) -> Arms:
    """The arms for a scale and data set.

    Raises:
        ValueError: for data that this experiment cannot use.
    """
    if scale == "paper":
        if len(data.shape) != 3 or data.task != "classification":
            raise ValueError(f"this scale's network is convolutional, and {data.name} holds no images: give cifar10")
        return PAPER
    if data.task != "classification" and data.name != "two_scales":
        raise ValueError(f"this experiment takes two_scales or a set with classes, and {data.name} is neither")
    of = NETWORK if data.task == "classification" else REGRESSION
    if scale == "smoke":
        sizes = {"train": 50, "valid": 0, "test": 100}
        return Arms(of.model, of.loss, of.optimizer, of.batch, of.epochs[:7:2], sizes, of.double, of.single)
    return of


def _grid(scale: str, data: Any, seeds: Sequence[int], double: bool) -> list[Recipe]:
    of = arms(scale, data)
    train, batch = of.data["train"], of.batch or of.data["train"]
    return [
        Recipe(
            data=data.draw(**of.data, **(of.double if double else of.single)),
            model=of.model,
            loss=of.loss,
            optimizer=of.optimizer,
            steps=epochs * math.ceil(train / batch),
            batch_size=batch,
            seed=seed,
        )
        for seed in seeds
        for epochs in of.epochs
    ]


def two_descents(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """Features of two scales, or 20 % of the labels redrawn: runs of growing length from one start."""
    return _grid(scale, data, seeds, True)


def one_descent(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """Features of one scale, or clean labels."""
    return _grid(scale, data, seeds, False)


def claims(scale: str, data: Any) -> list[Claim]:
    """What is expected along training."""
    if data.task == "classification":
        value: dict[str, Any] = {"value": "test_accuracy", "dip": True, "worst": 1 / data.outputs}
        small: dict[str, Any] = {
            "smallest": 0.01,
            "reason": "one point is about the sampling error of the test set",
        }
    else:
        value = {"value": "test_loss", "log": True, "worst": "max"}
        small = {
            "smallest": math.log(1.05),
            "reason": "theory has factors of 1.2 to 1.5 at these sizes",
            "unit": "ratio",
        }
    whole = value | {"over": "steps"}
    found = double_descent(
        "Test error falls, rises to a peak and falls again along training",
        whole,
        expectation="Supported for features of two scales, contradicted for one scale. With classes unclear: a second "
        "descent has been published for large networks and long training.",
        **small,
    )
    small = {name: of for name, of in small.items() if name != "unit"}
    rise = no_rise(
        "Longer training never raises the test error by more than the smallest effect of interest",
        whole,
        unit=found.unit,
        expectation="Contradicted under both protocols: overfitting comes before any second descent.",
        **small,
    )
    return [found, rise]


def draw(results: Table, histories: Table) -> list[Figure]:
    """Losses and errors against the length of training, every run a point."""
    tables = judged(results, RUNS, "steps", "steps")
    drawn = (
        sweep(tables, "test-error", "Test error along training", "test_error", "test error (%)", "steps"),
        sweep(tables, "train-error", "Training error along training", "train_error", "training error (%)", "steps"),
        sweep(tables, "test-loss", "Test loss along training", "test_loss", "test loss", "steps", log=True),
        sweep(tables, "train-loss", "Training loss along training", "train_loss", "training loss", "steps", log=True),
    )
    return list(filter(None, drawn))


RUNS = {
    "published": Protocol(
        two_descents,
        holds="Runs of different length start from the same weights, see the same batches and keep the same learning "
        "rate, so that each is the beginning of the next longer one: what differs is when training stops.",
    ),
    "one scale or clean labels": Protocol(
        one_descent,
        holds="As the published protocol, with all features on one scale (or, where there are classes, clean labels), "
        "so that nothing is left to be learned late.",
    ),
}

EXPERIMENT = Experiment(
    paper=JOHANNSEN,
    title="Does the instrument find double descent along training?",
    summary="The paper quotes double descent along training and measures none. Here gradient descent learns linear "
    "regression on features of two scales, where theory has it: the test error falls, rises while the fast features "
    "are overfitted, and falls again as the slow ones are learned. With --data mnist1d a network learns wrong labels.",
    runs=RUNS,
    seeds={"smoke": 2, "laptop": 16, "paper": 16},
    data={"smoke": "two_scales", "laptop": "two_scales", "paper": "cifar10"},
    measures=(call(performance),),
    claims=claims,
    figures=draw,
    deviations=(
        "The published protocol is not Johannsen's, who measures nothing along training: at laptop scale it is the "
        "linear model of Heckel & Yilmaz 2021, with sizes of ours (40 fast and 10 slow features, 200 samples, noise of "
        "variance 5); at paper scale that of Nakkiran et al. 2019 (ResNet-18 with pre-activation, 20 % wrong labels, "
        "Adam with learning rate 1e-4, 4,096 epochs for 4,000).",
        "Each length of training is a run of its own from the same start, at twice the cost of one long run.",
        "On sets with classes, laptop scale: two hidden layers of 177, Adam with learning rate 1e-3, batches of 100, "
        "up to 256 epochs.",
    ),
    varied=(
        "initialisation",
        "order of the batches",
        "samples of the training set",
        "samples of the test set (below paper scale)",
        "true weights or wrong labels",
    ),
    fixed=("the test set (paper scale)",),
)
