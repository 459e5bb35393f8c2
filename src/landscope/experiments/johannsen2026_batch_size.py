"""Do small batches end in flatter minima that generalize better? Johannsen 2026, experiments 2 and 3."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from landscope.comparisons import against, along, configurations, learning
from landscope.experiments._johannsen2026 import JOHANNSEN, check_batches, chosen, training_samples
from landscope.figures import Figure
from landscope.losses import cross_entropy
from landscope.measures.outcomes import performance
from landscope.measures.sharpness import PUBLISHED_MAGNITUDES, weight_perturbation
from landscope.measures.spectrum import top_eigenvalues
from landscope.models import cnn, mlp
from landscope.spec import Call, Claim, Experiment, Protocol, Published, Recipe, call, first_below, step_name
from landscope.stats import configuration_correlation, difference, log_ratio, trend
from landscope.train import loss_below
from landscope.types import Table

LEVELS = (0.1, 0.01, 0.001)  # nats of full training loss; the verdict is at the middle one
FILTER_MAGNITUDES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
JUDGED_SIGMA = 0.01  # the middle of the published magnitudes that the paper prints
JUDGED_SHARE = 0.1
FULL_BATCH = 5_000  # the paper's "full-batch gradient descent": on a tenth of the data


@dataclass(frozen=True)
class Arms:
    """What is trained at one scale on one data set; everything is fixed here, before any run.

    Args:
        model: The network.
        data: Sizes of the sets drawn.
        sizes: Batch sizes, ascending.
        rates: The published protocol's learning rate of each.
        pair: The two batch sizes that the paper's curvature numbers compare.
        epochs: Of the published protocol.
        steps: Of the control with equal steps.
        every: Steps between looks at the training loss in the control with equal loss.
        limit: Epochs after which that control gives up.
    """

    model: Call
    data: dict[str, Any]
    sizes: tuple[int, ...]
    rates: tuple[float, ...]
    pair: tuple[int, int]
    epochs: int
    steps: int
    every: int
    limit: int


# The learning rates that the paper's code used for batches of 32, 128, 512 and 1024; on the 42 times smaller digits the
# batches are a quarter of those, with the same rates, so that the smallest and largest differ by the same factor of 32.
DIGITS = Arms(
    call(mlp, widths=(64, 64, 64)), {"train": 1197, "valid": 200, "test": 400},
    (8, 32, 128, 256), (0.005, 0.01, 0.04, 0.08), (8, 256), epochs=40, steps=1000, every=2, limit=240,
)  # fmt: skip
GREY_IMAGES = Arms(
    call(mlp, widths=(32, 32, 32)), {"train": 10_000, "valid": 2_000, "test": 5_000},
    (32, 128, 512, 1024), (0.005, 0.01, 0.04, 0.08), (32, 1024), epochs=40, steps=2000, every=4, limit=120,
)  # fmt: skip
COLOUR_IMAGES = Arms(
    call(mlp, widths=(64, 64, 64)), {"train": 2_000, "valid": 1_000, "test": 2_000},
    (16, 64, 256, 512), (0.005, 0.01, 0.04, 0.08), (16, 512), epochs=40, steps=600, every=4, limit=300,
)  # fmt: skip
# Without a size, the test set is the whole one in its own order, the same for all seeds: its sampling error is then
# told from the differences image by image.
PAPER = Arms(
    call(cnn, channels=32), {"train": 50_000, "valid": 0},
    (32, 64, 128, 256, 512, 1024, 2048), (0.005, 0.0075, 0.01, 0.02, 0.04, 0.08, 0.1), (32, 1024),
    epochs=80, steps=12_500, every=10, limit=160,
)  # fmt: skip
SMOKE = Arms(
    call(mlp, widths=(16,)), {"train": 256, "valid": 64, "test": 128},
    (8, 32, 128), (0.05, 0.1, 0.2), (8, 128), epochs=6, steps=40, every=1, limit=150,
)  # fmt: skip


def arms(scale: str, data: Any) -> Arms:
    """The arms for a scale and data set.

    Raises:
        ValueError: for data that this experiment cannot use: without classes, images at the paper's scale, or enough
            samples for its batches.
    """
    of = chosen(
        scale,
        data,
        paper=PAPER,
        smoke=SMOKE,
        grey=GREY_IMAGES,
        colour=COLOUR_IMAGES,
        other=DIGITS if data.name == "digits" else replace(DIGITS, data={}),  # other small sets: their own split
    )
    check_batches(of.sizes, training_samples(data, of.data), data.name)
    return of


def _recipe(
    of: Arms, source: Any, seed: int, size: int, steps: int, rate: float, decay: bool = True, **others: Any
) -> Recipe:
    settings = {
        "data": source.draw(**of.data),
        "model": of.model,
        "loss": call(cross_entropy),
        "optimizer": call(SGD, lr=rate, momentum=0.9),
        "schedule": call(CosineAnnealingLR, T_max=steps) if decay else None,
        "steps": steps,
        "batch_size": size,
        "seed": seed,
    }
    return Recipe(**(settings | others))


def _epochs(of: Arms, data: Any, size: int, epochs: int) -> int:
    return epochs * math.ceil(training_samples(data, of.data) / size)


def published(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """Equal epochs; each batch size with the learning rate that the paper's code used, cosine decay to 0."""
    of = arms(scale, data)
    runs = [
        _recipe(of, data, seed, size, _epochs(of, data, size, of.epochs), rate)
        for seed in seeds
        for size, rate in zip(of.sizes, of.rates, strict=True)
    ]
    if scale == "paper":
        for seed in seeds:
            steps = _epochs(of, data, 128, of.epochs)
            runs.append(_recipe(of, data, seed, 128, steps, 0.0, optimizer=call(Adam, lr=0.001)))
            subset = data.draw(**(of.data | {"train": FULL_BATCH}))
            runs.append(_recipe(of, data, seed, FULL_BATCH, of.epochs, 0.001, data=subset))  # 80 updates
    return runs


def equal_loss(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """The published learning rates, constant, until the full training loss is below the lowest level."""
    of = arms(scale, data)
    stop = call(loss_below, level=LEVELS[-1], every=of.every)
    return [
        _recipe(of, data, seed, size, _epochs(of, data, size, of.limit), rate, decay=False, stop=stop)
        for seed in seeds
        for size, rate in zip(of.sizes, of.rates, strict=True)
    ]


def equal_ratio(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """Equal epochs; the learning rate proportional to the batch size, from the smallest one's published rate."""
    of = arms(scale, data)
    return [
        _recipe(of, data, seed, size, _epochs(of, data, size, of.epochs), of.rates[0] * size / of.sizes[0])
        for seed in seeds
        for size in of.sizes
    ]


def equal_steps(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """The published learning rates with cosine decay, the same number of optimizer steps for every batch size."""
    of = arms(scale, data)
    return [
        _recipe(of, data, seed, size, of.steps, rate)
        for seed in seeds
        for size, rate in zip(of.sizes, of.rates, strict=True)
    ]


def known_effects(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """Effects that are there: 40 % of the training labels redrawn, and training stopped at a hundred times the loss.

    Both at the second batch size; the clean and the longest runs are those of the other protocols.
    """
    of = arms(scale, data)
    size, rate, steps = of.sizes[1], of.rates[1], _epochs(of, data, of.sizes[1], of.epochs)
    noisy = data.draw(**of.data, label_noise=0.4)
    stops = [call(loss_below, level=level, every=of.every) for level in (LEVELS[0], LEVELS[-1])]
    limit = _epochs(of, data, size, of.limit)
    return [
        recipe
        for seed in seeds
        for recipe in (
            _recipe(of, data, seed, size, steps, rate),
            _recipe(of, data, seed, size, steps, rate, data=noisy),
            *(_recipe(of, data, seed, size, limit, rate, decay=False, stop=stop) for stop in stops),
        )
    ]


def claims(scale: str, data: Any) -> list[Claim]:
    """What the paper says, of the pair and the batch sizes that this scale has."""
    of = arms(scale, data)
    small, large = of.pair
    compared: dict[str, Any] = {"over": "batch_size", "where": (("optimizer", "SGD"),)}
    half_again = "a ratio below 1.5 is little beside the published one of 11.6"
    one_pair = "one pair of runs, seed 42: batch 32 against 1,024"
    clean = {"over": "data.label_noise", "first": 0.0, "second": 0.4, "where": (("stop.level", None),)}
    swept: dict[str, Any] = {}
    shared_test: dict[str, Any] = {}
    if scale == "paper":  # there are more arms than the batch sizes, and one test set for all seeds
        swept = {"where": (("optimizer", "SGD"), ("data.train", of.data["train"]))}
        shared_test = {"examples": "test_correct"}
    early = {"over": "stop.level", "numerator": LEVELS[0], "denominator": LEVELS[-1]}
    return [
        Claim(
            f"Smaller batches end flatter (batch {large} against {small})",
            call(
                log_ratio,
                value="top_eigenvalue",
                numerator=large,
                denominator=small,
                worst="max",
                **compared,
            ),
            expect="greater",
            smallest=math.log(1.5),
            reason=half_again,
            unit="ratio",
            paper=Published(math.log(11.58), 1, f"λ 2.238 against 0.193 on the first 1,000 images; {one_pair}"),
            expectation="Supported as published, because the large batch is left at a higher loss; much smaller at "
            "equal loss, and reversed where the learning rate grows with the batch.",
        ),
        Claim(
            f"Smaller batches test better (batch {small} against {large})",
            call(
                difference,
                value="test_accuracy",
                first=small,
                second=large,
                worst=1 / data.outputs,
                **shared_test,
                **compared,
            ),
            expect="greater",
            smallest=0.005,
            reason="the paper's own seeds differ by about half a point at one batch size",
            unit="points",
            paper=Published(0.0161, 1, f"85.78 % against 84.17 %; {one_pair}; three other seeds give 1.35 points"),
            expectation="A small effect, if any, on easy data.",
        ),
        Claim(
            "Test accuracy falls with batch size",
            call(
                trend,
                value="test_accuracy",
                levels=of.sizes,
                worst=1 / data.outputs,
                **compared,
            ),
            expect="trend_down",
            smallest=-0.2,
            reason="at τ = −0.2 the claimed order holds for no more than 60 % of the pairs of batch sizes",
            unit="tau",
            paper=Published(-0.81, 3, "τ of the paper's test accuracies over seven batch sizes, each of three seeds"),
            expectation="Follows the pair above.",
        ),
        Claim(
            f"Large-batch solutions lose more under weight noise (in % of their loss, σ = {JUDGED_SIGMA})",
            call(
                log_ratio,
                value="absolute_loss_increase_percent",
                index=PUBLISHED_MAGNITUDES.index(JUDGED_SIGMA),
                numerator=large,
                denominator=small,
                worst="max",
                **compared,
            ),
            expect="greater",
            smallest=math.log(1.5),
            reason=half_again,
            unit="ratio",
            paper=Published(math.log(1931.9 / 158.2), 1, f"+1,932 % against +158 % at σ = 0.01; {one_pair}"),
            expectation="Unclear: a percentage of the loss flatters whoever has the larger loss.",
        ),
        Claim(
            f"Large-batch solutions lose more under noise of {JUDGED_SHARE:.0%} of each filter's norm (in nats)",
            call(
                log_ratio,
                value="filter_loss_increase",
                index=FILTER_MAGNITUDES.index(JUDGED_SHARE),
                numerator=large,
                denominator=small,
                worst="max",
                **compared,
            ),
            expect="greater",
            smallest=math.log(1.5),
            reason=half_again,
            unit="ratio",
            expectation="The control of the measure: blind to the scale of the weights, not divided by the loss.",
        ),
        Claim(
            "Sharper configurations test worse",
            call(
                configuration_correlation,
                x="top_eigenvalue",
                y="test_accuracy",
                by=("batch_size", "optimizer", "optimizer.lr"),
                **swept,
            ),
            expect="less",
            unit="tau",
            primary=False,
            expectation="A sweep over batch sizes has too few configurations to be judged; it is drawn.",
        ),
        Claim(
            "Redrawing 40 % of the training labels lowers test accuracy",
            call(difference, value="test_accuracy", worst=1 / data.outputs, **shared_test, **clean),
            expect="greater",
            smallest=0.02,
            reason="two points are far below what wrong labels are known to cost",
            unit="points",
            positive=True,
        ),
        Claim(
            f"Stopping at a training loss of {LEVELS[0]} instead of {LEVELS[-1]} leaves networks sharper",
            call(log_ratio, value="top_eigenvalue", worst="max", **early),
            expect="greater",
            smallest=math.log(1.5),
            reason=half_again,
            unit="ratio",
            positive=True,
        ),
    ]


# --- figures -------------------------------------------------------------------------------------------------------


def draw(results: Table, histories: Table) -> list[Figure]:
    """The experiment's figures, from the results at every measured step and the learning curves."""
    protocols = [name for name in RUNS if not RUNS[name].positive]
    rows = [_with_error(row) for row in results.rows() if _swept(row) and row["status"] == "done"]
    judged = {
        name: Table.of(row for row in rows if row["protocol"] == name and row["step"] == step_name(RUNS[name].judged))
        for name in protocols
    }
    levels = {
        f"training loss {level:g}": Table.of(
            row
            for row in rows
            if row["protocol"] == "equal training loss" and row["step"] == step_name(first_below("train_loss", level))
        )
        for level in LEVELS
    }
    curves = {name: Table.of(r for r in histories.rows() if r["protocol"] == name and _swept(r)) for name in protocols}
    sharpness, sigma, share = (
        "top Hessian eigenvalue",
        f"σ = {JUDGED_SIGMA}",
        f"{JUDGED_SHARE:.0%} of each filter's norm",
    )
    gap, loss = "generalization gap (points of accuracy)", "training loss (nats)"
    # fmt: off
    drawn = (
        against(judged, "achieved-loss", "How far each protocol has trained its networks", "train_loss", loss),
        against(judged, "sharpness", "Sharpness against batch size", "top_eigenvalue", sharpness),
        against(judged, "test-error", "Test error against batch size", "test_error", "test error (%)", log=False),
        against(levels, "equal-loss-levels", "Sharpness at three levels of training loss", "top_eigenvalue", sharpness),
        configurations(judged, "gap", "Sharpness against the gap", "top_eigenvalue", sharpness, "gap_points", gap),
        along(judged, "noise-percent", "Weight noise as published: the loss it adds, in percent", "absolute_magnitudes",
              "noise σ on every parameter", "absolute_loss_increase_percent", "increase of the loss (% of it)",
              index=PUBLISHED_MAGNITUDES.index(JUDGED_SIGMA), where=sigma),
        along(judged, "noise-filter", "Weight noise scaled to each filter: the loss it adds", "filter_magnitudes",
              "noise as a share of each filter's norm", "filter_loss_increase", "increase of the loss (nats)",
              index=FILTER_MAGNITUDES.index(JUDGED_SHARE), where=share),
        along(judged, "noise-flipped", "Weight noise scaled to each filter: the labels it flips", "filter_magnitudes",
              "noise as a share of each filter's norm", "filter_flipped", "share of flipped labels",
              index=FILTER_MAGNITUDES.index(JUDGED_SHARE), where=share, log=False),
        learning(curves, "learning-train", "Learning curves: training loss", "train_loss", "training loss (nats)"),
        learning(curves, "learning-test", "Learning curves: test loss", "test_loss", "test loss (nats)"),
    )
    # fmt: on
    return [figure for figure in drawn if figure is not None]


def _swept(row: dict[str, Any]) -> bool:
    """Whether a run is of the sweep over batch sizes: not Adam's, nor full-batch descent on a tenth of the data."""
    return row["optimizer"] == "SGD" and row["batch_size"] != FULL_BATCH


def _with_error(row: dict[str, Any]) -> dict[str, Any]:
    accuracy, gap = row.get("test_accuracy"), row.get("generalization_gap")
    return row | {
        "test_error": None if accuracy is None else 100 * (1 - accuracy),
        "gap_points": None if gap is None else 100 * gap,
    }


RUNS = {
    "published": Protocol(
        published,
        holds="Every network sees the training set equally often (equal epochs). Small batches make many more steps, "
        "so the networks stop at different training losses: what differs is not the batch size alone.",
    ),
    "equal training loss": Protocol(
        equal_loss,
        holds="Every network is measured when its loss over the whole training set first falls below the same level, "
        "however many steps that takes. Curvature falls with the loss that is left; here none is sharper merely for "
        "having been trained less. The learning rate is constant, without the published cosine decay, so "
        "that large batches are measured at a larger one than small batches.",
        steps=tuple(first_below("train_loss", level) for level in LEVELS),
        judged=first_below("train_loss", LEVELS[1]),
        share=0.4,
    ),
    "equal lr/batch ratio": Protocol(
        equal_ratio,
        holds="The learning rate grows in proportion to the batch size, at equal epochs, so that the noise of the "
        "gradient steps is about equally strong for all. What is left is the batch size without its noise: if noise is "
        "how the batch size acts, as the paper holds, "
        "no effect is expected here.",
    ),
    "equal number of steps": Protocol(
        equal_steps,
        holds="Every network makes the same number of optimizer steps with the published learning rates, so large "
        "batches see more samples. With so few steps the smallest batch is left undertrained, which mirrors the "
        "imbalance of the published protocol: compare the training losses before reading a reversal.",
    ),
    "positive control": Protocol(
        known_effects,
        holds="One batch size. Clean labels against 40 % redrawn ones, and training stopped early against late: "
        "effects known to be there, to show that the same code would have found one.",
        share=0.4,
        positive=True,
    ),
}

CURVATURE = (
    call(top_eigenvalues, k=1),
    call(weight_perturbation, kind="absolute", draws=10),
    call(weight_perturbation, kind="filter", magnitudes=FILTER_MAGNITUDES, draws=10),
)

EXPERIMENT = Experiment(
    paper=JOHANNSEN,
    title="Do small batches end in flatter minima that generalize better?",
    summary="Networks are trained with small and large batches, and their sharpness (the top eigenvalue of the Hessian "
    "of the training loss, and the loss under weight noise) and test accuracy are compared: as the paper did, and with "
    "three things held equal in turn that the paper let vary.",
    runs=RUNS,
    seeds={"smoke": 2, "laptop": 8, "paper": 10},
    data={"smoke": "digits", "laptop": "digits", "paper": "cifar10"},
    measures=(call(performance), *CURVATURE),
    measures_at={"paper": (call(performance, examples=True), *CURVATURE)},
    claims=claims,
    figures=draw,
    deviations=(
        "Seeds: 8 (laptop) or 10, each with its own initialisation, batch order and (below paper scale) data split; "
        "the paper's code ran 3 for test accuracy and 1 (seed 42) for curvature, where its text says 5.",
        "Learning rates: those of the paper's code (.005 .0075 .01 .02 .04 .08 .1 for batches of 32 to 2,048), "
        "which is the published protocol; its text says that they were scaled linearly, which is the control with "
        "equal lr/batch ratio.",
        "Curvature: of the loss over the whole training set, by Lanczos to a residual of 0.1 %, largest algebraic "
        "eigenvalue; the paper used the first 1,000 training images and 30 power iterations (largest magnitude, no "
        "residual).",
        "Perturbation: 10 draws, the same for all networks, on the whole training set; the paper took 5 draws, "
        "different for the two networks, on the first 5,000 images. The control scales the noise to each filter and "
        "counts nats.",
        "Laptop scale, digits: an MLP 64-64-64-64-10 on 1,197 images, batches of 8, 32, 128, 256 in the place of 32, "
        "128, 512, 1,024 of 50,000, with the same learning rates, for 40 epochs (80); 400 test images drawn anew by "
        "each seed. The paper used its convolutional network on CIFAR-10.",
        "Laptop scale, grey images (MNIST): an MLP with three hidden layers of 32 on 10,000 images, 40 epochs; colour "
        "images (CIFAR-10): three hidden layers of 64 on 2,000 images, 40 epochs, batches of 16 to 512. A "
        "convolutional network is trained at paper scale, and beside the MLP in johannsen2026_sharpness_grid.",
        "Training accuracy is evaluated on the whole training set after training; the paper's is the running mean over "
        "the last epoch's batches in train mode.",
        "Equal training loss: the learning rate is constant; the published protocol decays it to 0 by a cosine.",
        "Laptop scale: the ratio of learning rate to batch size is four times the paper's on digits; the large batch "
        "ends without fitting its training set (a loss near 0.1, against 1e-4 in the paper).",
        "A validation set is drawn below paper scale, though nothing is chosen on it; the paper has none.",
    ),
    varied=("initialisation", "order of the batches", "train/validation/test split (below paper scale)"),
    fixed=("the draws of the weight noise", "the start vector of Lanczos", "the test set (paper scale)"),
)
