"""Does generalizing need gradient noise? Adam and full-batch descent beside small batches: Johannsen 2026, exp. 2."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from landscope.comparisons import against, learning
from landscope.experiments._gradient_noise import arm, arm_difference, arm_ratio
from landscope.experiments._johannsen2026 import JOHANNSEN, check_batches, chosen, training_samples
from landscope.figures import Figure
from landscope.losses import cross_entropy
from landscope.measures.noise import gradient_noise
from landscope.measures.outcomes import performance
from landscope.measures.sharpness import weight_perturbation
from landscope.measures.spectrum import top_eigenvalues
from landscope.models import cnn, mlp
from landscope.spec import Call, Claim, Experiment, Protocol, Published, Recipe, call, first_below, step_name
from landscope.stats import difference
from landscope.train import loss_below
from landscope.types import Table

UPDATES, SLOW = 80, 0.001  # the paper's "full-batch gradient descent", and its learning rate
LEVELS = (0.1, 0.01, 0.001)  # nats of full training loss; the verdict is at the middle one
SHARE = 0.1  # of each filter's norm: the size of the weight noise
MARGIN = 0.01


@dataclass(frozen=True)
class Arms:
    """What is trained at one scale on one data set; everything is fixed here, before any run.

    Args:
        model: The network.
        data: Sizes of the sets drawn.
        batch: The batch size of SGD.
        rate: Its learning rate.
        adam_batch: The batch size of Adam.
        few: Training samples of full-batch descent in the published protocol, and their number in a batch.
        fast: The learning rate of full batches where they get one of their own.
        epochs: Of SGD and Adam in the published protocol.
        steps: Of everyone in the controls with equal updates.
        every: Steps between looks at the training loss in the control with equal loss.
        limit: Steps after which that control gives up.
        adam_rate: The learning rate of Adam.
    """

    model: Call
    data: dict[str, Any]
    batch: int
    rate: float
    adam_batch: int
    few: int
    fast: float
    epochs: int
    steps: int
    every: int
    limit: int
    adam_rate: float = 0.001


# The paper's batches of 32 (SGD, 0.005) and 128 (Adam, 0.001), and a tenth of the data for full batches. On the 42
# times smaller digits the batches are a quarter of those. A full batch's own rate is that of the paper's batch of
# 1,024, the largest one that it calls well trained.
DIGITS = Arms(
    call(mlp, widths=(64, 64, 64)), {"train": 1197, "valid": 0, "test": 600}, 8, 0.005, 32, few=120, fast=0.08,
    epochs=40, steps=40 * 150, every=10, limit=12_000,
)  # fmt: skip
GREY_IMAGES = Arms(
    call(mlp, widths=(32, 32, 32)), {"train": 3_000, "valid": 0, "test": 5_000}, 32, 0.005, 128, few=300, fast=0.08,
    epochs=20, steps=20 * 94, every=10, limit=6_000,
)  # fmt: skip
COLOUR_IMAGES = Arms(
    call(cnn, channels=2), {"train": 400, "valid": 0, "test": 2_000}, 8, 0.005, 32, few=40, fast=0.08,
    epochs=10, steps=200, every=5, limit=500,
)  # fmt: skip
# Without a size, the test set is the whole one in its own order, the same for all seeds.
PAPER = Arms(
    call(cnn, channels=32), {"train": 50_000, "valid": 0}, 32, 0.005, 128, few=5_000, fast=0.08,
    epochs=80, steps=12_500, every=10, limit=25_000,
)  # fmt: skip
SMOKE = Arms(
    call(mlp, widths=(16,)), {"train": 256, "valid": 0, "test": 128}, 8, 0.05, 32, few=32, fast=0.4,
    epochs=4, steps=160, every=5, limit=800, adam_rate=0.01,
)  # fmt: skip


def arms(scale: str, data: Any) -> Arms:
    """The arms for a scale and data set.

    Raises:
        ValueError: for data that this experiment cannot use: without classes, images at the paper's scale, or enough
            samples for its batches.
    """
    samples = training_samples(data, {})
    small = Arms(**(vars(DIGITS) | {"data": {"train": samples}, "few": max(samples // 10, 1)}))
    of = chosen(
        scale,
        data,
        paper=PAPER,
        smoke=SMOKE,
        grey=GREY_IMAGES,
        colour=COLOUR_IMAGES,
        other=DIGITS if data.name == "digits" else small,
    )
    check_batches((of.batch, of.adam_batch, of.few), of.data["train"], data.name)
    return of


# --- runs -----------------------------------------------------------------------------------------------------------


def _recipe(of: Arms, source: Any, seed: int, size: int, rate: float, steps: int, **others: Any) -> Recipe:
    settings = {
        "data": source.draw(**of.data),
        "model": of.model,
        "loss": call(cross_entropy),
        "optimizer": call(SGD, lr=rate, momentum=0.9),
        "schedule": call(CosineAnnealingLR, T_max=steps),
        "steps": steps,
        "batch_size": size,
        "seed": seed,
    }
    return Recipe(**(settings | others))


def _trio(of: Arms, source: Any, seed: int, rate: float, steps: int, **others: Any) -> list[Recipe]:
    """Small-batch SGD, Adam, and full-batch descent at a learning rate, for as many steps each."""
    return [
        _recipe(of, source, seed, of.batch, of.rate, steps, **others),
        _adam(of, source, seed, steps, **others),
        _recipe(of, source, seed, of.data["train"], rate, steps, **others),
    ]


def _adam(of: Arms, source: Any, seed: int, steps: int, **others: Any) -> Recipe:
    return _recipe(of, source, seed, of.adam_batch, 0.0, steps, optimizer=call(Adam, lr=of.adam_rate), **others)


def _epochs(of: Arms, size: int) -> int:
    return of.epochs * math.ceil(of.data["train"] / size)


def published(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """SGD and Adam for equal epochs; full batches of a tenth of the data for 80 updates at a fifth of SGD's rate."""
    of, runs = arms(scale, data), []
    tenth = data.draw(**(of.data | {"train": of.few}))
    for seed in seeds:
        runs.append(_recipe(of, data, seed, of.batch, of.rate, _epochs(of, of.batch)))
        runs.append(_adam(of, data, seed, _epochs(of, of.adam_batch)))
        runs.append(_recipe(of, data, seed, of.few, SLOW, UPDATES, data=tenth))
    return runs


def equal_updates(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """As many updates for everyone, on all of the data; full batches with SGD's own learning rate."""
    of = arms(scale, data)
    return [run for seed in seeds for run in _trio(of, data, seed, of.rate, of.steps)]


def larger_rate(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """As many updates for everyone; full batches with the learning rate of the paper's batch of 1,024."""
    of = arms(scale, data)
    return [run for seed in seeds for run in _trio(of, data, seed, of.fast, of.steps)]


def equal_loss(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """Constant learning rates, until the full training loss is below the lowest level; full batches as above."""
    of = arms(scale, data)
    stop = call(loss_below, level=LEVELS[-1], every=of.every)
    return [run for seed in seeds for run in _trio(of, data, seed, of.fast, of.limit, schedule=None, stop=stop)]


def known_effects(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """Effects that are there: 40 % of the training labels redrawn for SGD, and 80 updates instead of many."""
    of, runs = arms(scale, data), []
    noisy, whole = data.draw(**of.data, label_noise=0.4), of.data["train"]
    for seed in seeds:
        runs.append(_recipe(of, data, seed, of.batch, of.rate, _epochs(of, of.batch)))
        runs.append(_recipe(of, data, seed, of.batch, of.rate, _epochs(of, of.batch), data=noisy))
        runs.append(_recipe(of, data, seed, whole, SLOW, UPDATES))
        runs.append(_recipe(of, data, seed, whole, of.rate, of.steps))
    return runs


# --- claims ---------------------------------------------------------------------------------------------------------


THREE_SEEDS = "three seeds of the paper's code"


def claims(scale: str, data: Any) -> list[Claim]:
    """What the paper says of Adam and of full batches, and of what they would have to do if noise were needed."""
    of = arms(scale, data)
    accuracy: dict[str, Any] = {"value": "test_accuracy", "worst": 1 / data.outputs}
    if scale == "paper":  # one test set for all seeds
        accuracy["examples"] = "test_correct"
    return [
        Claim(
            "Adam tests as well as small-batch SGD",
            call(arm_difference, first="Adam", second="small batch", **accuracy),
            expect="within",
            margin=MARGIN,
            reason="the paper's batches of 32 and 1,024 differ by 1.35 points: who is one point away is as good as "
            "neither",
            unit="points",
            paper=Published(-0.0005, 3, f"85.47 % against 85.52 %; {THREE_SEEDS}"),
            expectation="Supported on easy data, if the seeds suffice.",
        ),
        Claim(
            "Small-batch SGD tests better than full-batch gradient descent",
            call(arm_difference, first="small batch", second="full batch", **accuracy),
            expect="greater",
            smallest=0.005,
            reason="the paper's own seeds differ by about half a point at one batch size",
            unit="points",
            paper=Published(0.5281, 3, f"85.52 % against 32.71 %, at 80 updates on a tenth of the data; {THREE_SEEDS}"),
            expectation="Supported as published, where full batches are hardly trained; little or nothing is left at "
            "equal updates and at equal loss.",
        ),
        Claim(
            "Full-batch gradient descent ends sharper than small-batch SGD",
            call(arm_ratio, value="top_eigenvalue", first="full batch", second="small batch", worst="max"),
            expect="greater",
            smallest=math.log(1.5),
            reason="a ratio below 1.5 is little beside the published one of 11.6 between batches of 1,024 and 32",
            unit="ratio",
            expectation="Unclear: the paper says that noise leads to flat minima and did not measure this pair.",
        ),
        *_described(),
        *_known(of, accuracy),
    ]


def _described() -> list[Claim]:
    """What is measured besides, and decides nothing."""
    pair: dict[str, Any] = {"first": "full batch", "second": "small batch", "worst": "max"}
    shared: dict[str, Any] = {"expect": "greater", "unit": "ratio", "primary": False}
    return [
        Claim(
            f"Full-batch gradient descent loses more under noise of {SHARE:.0%} of each filter's norm (in nats)",
            call(arm_ratio, value="filter_loss_increase", index=0, **pair),
            expectation="As for the top eigenvalue, but blind to the scale of the weights.",
            **shared,
        ),
        Claim(
            "Full-batch gradient descent ends where single samples' gradients differ more",
            call(arm_ratio, value="gradient_variance", **pair),
            expectation="The trace of the gradients' covariance is what SGD is said to keep small.",
            **shared,
        ),
        Claim(
            "Full-batch gradient descent ends at a larger gradient noise scale",
            call(arm_ratio, value="gradient_noise_scale", **pair),
            expectation="Unclear: the scale grows as the gradient vanishes, which it does the further one trains.",
            **shared,
        ),
    ]


def _known(of: Arms, accuracy: dict[str, Any]) -> list[Claim]:
    """What is known to be true."""
    shared: dict[str, Any] = {
        "expect": "greater",
        "smallest": 0.02,
        "unit": "points",
        "positive": True,
    }
    clean: dict[str, Any] = {"over": "data.label_noise", "first": 0.0, "second": 0.4}
    longer: dict[str, Any] = {"over": "steps", "first": of.steps, "second": UPDATES}
    return [
        Claim(
            "Redrawing 40 % of the training labels lowers test accuracy",
            call(difference, **clean, **accuracy, where=(("batch_size", of.batch),)),
            reason="two points are far below what wrong labels are known to cost",
            **shared,
        ),
        Claim(
            f"Full-batch gradient descent tests better after {of.steps:,} updates than after {UPDATES}",
            call(difference, **longer, **accuracy, where=(("batch_size", of.data["train"]),)),
            reason="two points are far below what a network lacks that has hardly been trained",
            **shared,
        ),
    ]


# --- figures --------------------------------------------------------------------------------------------------------


def draw(results: Table, histories: Table) -> list[Figure]:
    """The experiment's figures: every arm's runs side by side, and learning curves."""
    protocols = [name for name in RUNS if not RUNS[name].positive]
    rows = [_in_percent(row) for row in results.rows() if row["status"] == "done"]
    judged = {
        name: Table.of(r for r in rows if r["protocol"] == name and r["step"] == step_name(RUNS[name].judged))
        for name in protocols
    }
    levels = {
        f"training loss {level:g}": Table.of(
            r for r in rows if r["protocol"] == "equal training loss" and r["step"] == step_name(step)
        )
        for level, step in zip(LEVELS, RUNS["equal training loss"].steps, strict=True)
    }
    names = {row["run"]: row["arm"] for row in rows}
    curves = {
        name: Table.of(
            row | {"arm": names[row["run"]]}
            for row in histories.rows()
            if row["protocol"] == name and row["run"] in names
        )
        for name in protocols
    }
    loss, sharp, error = "training loss (nats)", "top Hessian eigenvalue", "test error (%)"
    rise = f"loss added by noise of {SHARE:.0%} of each filter's norm (nats)"
    # fmt: off
    drawn = (
        against(judged, "test-error", "Test error of each arm", "test_error", error, over="arm", log=False),
        against(judged, "achieved-loss", "How far each arm was trained", "train_loss", loss, over="arm"),
        against(judged, "updates", "How many updates each arm made", "steps_made", "updates", over="arm"),
        against(levels, "equal-loss-levels", "Test error at three levels of training loss", "test_error", error,
                over="arm", log=False),
        against(judged, "sharpness", "Sharpness of each arm", "top_eigenvalue", sharp, over="arm"),
        against(judged, "noise-filter", "Weight noise scaled to each filter", "rise", rise, over="arm"),
        against(judged, "gradient-variance", "How much single samples' gradients differ", "gradient_variance",
                "trace of the gradients' covariance (squared loss per weight)", over="arm"),
        against(judged, "noise-scale", "The gradient noise scale", "gradient_noise_scale",
                "gradient noise scale (samples)", over="arm"),
        learning(curves, "learning-train", "Learning curves: training loss", "train_loss", loss, over="arm"),
        learning(curves, "learning-test", "Learning curves: test loss", "test_loss", "test loss (nats)", over="arm"),
    )
    # fmt: on
    return [figure for figure in drawn if figure is not None]


def _in_percent(row: dict[str, Any]) -> dict[str, Any]:
    accuracy, rise = row.get("test_accuracy"), row.get("filter_loss_increase")
    return row | {
        "arm": arm(row),
        "test_error": None if accuracy is None else 100 * (1 - accuracy),
        "rise": None if rise is None else rise[0],
    }


RUNS = {
    "published": Protocol(
        published,
        holds="Little. SGD and Adam see the training set equally often. Full-batch gradient descent gets a tenth of "
        f"the data, a fifth of SGD's learning rate and {UPDATES} updates, thousands fewer than SGD: it ends hardly "
        "trained, and that its gradient has no noise is the least of what sets it apart.",
    ),
    "equal number of updates": Protocol(
        equal_updates,
        holds="All data, the same number of updates with the same learning rate, schedule and momentum for full-batch "
        "gradient descent and for SGD: what differs is the noise of the gradient alone. Adam has its own rate.",
    ),
    "equal updates, larger rate": Protocol(
        larger_rate,
        holds="As many updates for everyone; full-batch gradient descent with the learning rate that the paper gave to "
        "its batch of 1,024, sixteen times that of SGD: with so large steps it trains as far as without noise it can.",
    ),
    "equal training loss": Protocol(
        equal_loss,
        holds="Every network is measured when its loss over the whole training set first falls below the same level, "
        "at a constant learning rate: none is worse merely for having been trained less. Full-batch gradient descent "
        "has the larger rate, because at SGD's own it would take tens of thousands of updates.",
        steps=tuple(first_below("train_loss", level) for level in LEVELS),
        judged=first_below("train_loss", LEVELS[1]),
        share=0.4,
    ),
    "positive control": Protocol(
        known_effects,
        holds="Small-batch SGD on clean labels against 40 % redrawn ones, and full-batch gradient descent on all data "
        f"with {UPDATES} updates against many: effects known to be there, to show that the same code would have "
        "found one.",
        positive=True,
    ),
}

MEASURES = (
    call(top_eigenvalues, k=1, rtol=0.01),
    call(weight_perturbation, kind="filter", magnitudes=(SHARE,), draws=10),
    call(gradient_noise, batch=8),
)

EXPERIMENT = Experiment(
    paper=JOHANNSEN,
    title="Does generalizing need gradient noise?",
    summary="The paper takes from full-batch gradient descent, which tested 33 % beside 86 % of small-batch SGD, that "
    "noise is at least necessary, and from Adam, which did as well, that adaptive steps do no harm. Full batches made "
    "80 updates on a tenth of the data. Here they are also given as many updates, larger steps, and training to the "
    "same loss.",
    runs=RUNS,
    seeds={"smoke": 2, "laptop": 8, "paper": 10},
    data={"smoke": "digits", "laptop": "digits", "paper": "cifar10"},
    measures=(call(performance), *MEASURES),
    measures_at={"paper": (call(performance, examples=True), *MEASURES)},
    claims=claims,
    figures=draw,
    deviations=(
        "Seeds: 8 (laptop) or 10, each with its own initialisation, batch order and (below paper scale) data split; "
        "the paper's code ran 3, where its text says 5.",
        "Full-batch gradient descent: 80 updates at .001 with momentum .9 on a tenth of the data (the paper: 5,000 of "
        "50,000 images) is the published protocol. Equal updates, larger steps and equal training loss are ours.",
        "Laptop scale, digits: an MLP 64-64-64-64-10 on 1,197 images, batches of 8 (32) and for Adam of 32 (128), "
        "40 epochs (80); 600 test images drawn anew by each seed. The paper used its convolutional network on "
        "CIFAR-10.",
        "Laptop scale, grey images (MNIST): an MLP with three hidden layers of 32 on 3,000 images, 20 epochs, batches "
        "as in the paper; colour images (CIFAR-10): the paper's network at a sixteenth of its width on 400 images, 10 "
        "epochs, batches of 8 and 32, equal updates 200.",
        "Paper scale: equal updates are 12,500 (125,040 in 80 epochs of batches of 32).",
        "Equal training loss: constant learning rates; the published protocol decays them to 0 by a cosine.",
        "Training accuracy is evaluated on the whole training set after training; the paper's is the running mean over "
        "the last epoch's batches in train mode.",
        "Sharpness and gradient noise of these arms are not in the paper. Curvature and noise are those of the whole "
        "training set that the run had (published full batches: a tenth).",
    ),
    varied=("initialisation", "order of the batches", "train/test split (below paper scale)"),
    fixed=(
        "the draws of the weight noise",
        "the start vector of Lanczos",
        "how the training set is cut for the gradient noise",
        "the test set (paper scale)",
    ),
)
