"""Does a penalty on Tr(H²) help on the breast-cancer set, with scaled features? The paper's long version."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from landscope.experiments._flatness_aware import EVERY, PAPER, Setup, curvature, run, sweep, work
from landscope.experiments._penalties import LEAST, NONE, arm_difference, arm_ratio, arm_value, figures
from landscope.figures import Figure
from landscope.measures.outcomes import performance
from landscope.spec import Call, Claim, Experiment, Protocol, Published, Recipe, call
from landscope.types import Table

TUMOURS = Setup({"train": 285, "valid": 114, "test": 170}, strengths=(0.0, 0.001, 0.01))
SMOKE = replace(TUMOURS, epochs=4, looks=(4,), widths=(16, 8))
MAJORITY = 357 / 569  # benign
BEST, WRONG_LABELS = 0.01, 0.4
TABLE = "long version's table, 55.6 and 58.6 %, means of 3 runs; a network that always says benign has 62.7 %"


def setup(scale: str, data: Any) -> Setup:
    """What is trained at a scale.

    Raises:
        ValueError: for other data.
    """
    if data.name != "breast_cancer":
        raise ValueError(f"this experiment is about breast_cancer, not {data.name}: flatness_aware_lambda takes others")
    return SMOKE if scale == "smoke" else TUMOURS


def unscaled(shape: tuple[int, ...], outputs: int, /, *, model: Call) -> nn.Module:
    """A Recipe's model for standardised measurements: the network behind a fixed layer that takes the scaling back.

    The measurements' means and standard deviations are those of all 569 tumours; the data set is standardised by the
    training samples drawn, so that what comes out is about the measurements as they are.
    """
    from sklearn.datasets import load_breast_cancer

    inputs = torch.as_tensor(load_breast_cancer(return_X_y=True)[0], dtype=torch.get_default_dtype())
    back = nn.Linear(shape[0], shape[0])
    with torch.no_grad():
        back.weight.copy_(torch.diag(inputs.std(0, correction=0)))
        back.bias.copy_(inputs.mean(0))
    return nn.Sequential(back.requires_grad_(False), model(shape, outputs))


# --- runs -----------------------------------------------------------------------------------------------------------


def published(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """The paper's three λ on scaled measurements, looked at along training."""
    of = setup(scale, data)
    return [recipe for seed in seeds for recipe in sweep(of, data, seed, looks=of.looks)]


def every_step(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """The same with the penalty in the loss of every batch."""
    of = setup(scale, data)
    return [recipe for seed in seeds for recipe in sweep(of, data, seed, every=1)]


def as_they_are(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """The same as published on measurements that are not scaled."""
    of = setup(scale, data)
    plain = [recipe for seed in seeds for recipe in sweep(of, data, seed)]
    return [replace(recipe, model=call(unscaled, model=recipe.model)) for recipe in plain]


def known_effects(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """The plain network, and with 40 % of its training labels redrawn."""
    of = setup(scale, data)
    return [run(of, data, seed, noise=noise) for seed in seeds for noise in (None, WRONG_LABELS)]


# --- claims ---------------------------------------------------------------------------------------------------------


def claims(scale: str, data: Any) -> list[Claim]:
    """What the paper says of these data, and what is known of them."""
    return [*_papers(f"penalty {BEST:g}", 1 - MAJORITY), *_known(f"wrong labels {WRONG_LABELS:g}", 1 - MAJORITY)]


def _papers(best: str, worst: float) -> list[Claim]:
    return [
        Claim(
            f"λ = {BEST} tests better than no penalty",
            call(arm_difference, value="test_accuracy", first=best, second=NONE, worst=worst),
            "greater",
            smallest=0.005,
            reason="half a point is a sixth of the published gain, and about one tumour of the test set",
            unit="points",
            paper=Published(0.586 - 0.556, 3, TABLE),
            expectation="Too small: on scaled measurements there is little left to gain.",
        ),
        Claim(
            f"λ = {BEST} ends with a lower Tr(H²) than no penalty",
            call(arm_ratio, value="hessian_trace_squared", first=best, second=NONE, worst="max"),
            "less",
            smallest=LEAST,
            reason="a tenth less is the least that one would call flatter",
            unit="ratio",
            expectation="Unclear: in 30 steps the penalty is computed three times.",
        ),
        Claim(
            "Without a penalty the network tests worse than the majority class (62.7 %)",
            call(arm_value, value="test_accuracy", worst=worst),
            "less",
            null=MAJORITY,
            unit="points",
            paper=Published(0.556, 3, TABLE),
            primary=False,
        ),
        Claim(
            f"Training with the penalty at every {EVERY}th step takes 11.6 times the work",
            call(arm_value, value="work_of_training", log=True),
            "at_least",
            null=math.log(11.6),
            unit="ratio",
            paper=Published(math.log(164 / 14), 3, "162 to 166 s against 14 s in the long version: seconds, not work"),
            primary=False,
        ),
    ]


def _known(wrong: str, worst: float) -> list[Claim]:
    return [
        Claim(
            "On scaled measurements the network tests better than the majority class (62.7 %)",
            call(arm_value, value="test_accuracy", worst=worst),
            "greater",
            null=MAJORITY,
            smallest=0.8,
            reason="linear models of these data are known to be right for more than nine tumours in ten",
            unit="points",
            positive=True,
        ),
        Claim(
            f"Redrawing {WRONG_LABELS:.0%} of the training labels costs test accuracy",
            call(arm_difference, value="test_accuracy", first=NONE, second=wrong, worst=worst),
            "greater",
            smallest=0.005,
            reason="half a point is far below what so many wrong labels are known to cost",
            unit="points",
            positive=True,
        ),
        Claim(
            f"Redrawing {WRONG_LABELS:.0%} of the training labels leaves the network where Tr(H²) is higher",
            call(arm_ratio, value="hessian_trace_squared", first=wrong, second=NONE, worst="max"),
            "greater",
            smallest=math.log(2),
            reason="30 steps do not fit wrong labels, and this loss's Hessian vanishes only where labels are fitted",
            unit="ratio",
            positive=True,
        ),
    ]


def draw(results: Table, histories: Table) -> list[Figure]:
    """The experiment's figures."""
    return figures(results, [name for name in RUNS if not RUNS[name].positive])


RUNS = {
    "published": Protocol(
        published,
        holds="All arms have the same network and settings and see the same batches for the same number of steps; the "
        "penalty is computed at every 10th step. All measurements are scaled to mean 0 and standard deviation 1.",
    ),
    "at every step": Protocol(
        every_step,
        holds="As published, but the penalty is in the loss of every batch: with 3 batches in an epoch, every 10th "
        "step comes to three penalties in all.",
    ),
    "measurements as they are": Protocol(
        as_they_are,
        holds="As published, but a fixed first layer takes the scaling back, so that areas of up to 4,254 stand beside "
        "smoothnesses of 0.1: what the paper probably did, whose baseline is below the majority class.",
    ),
    "positive control": Protocol(
        known_effects,
        holds="Effects that are known to be there: the plain network learns these data, and wrong labels cost "
        "accuracy and leave a larger Hessian.",
        positive=True,
    ),
}

EXPERIMENT = Experiment(
    paper=PAPER,
    title="Does penalising Tr(H²) help on the breast-cancer set, once its measurements are scaled?",
    summary="The long version reports 55.6, 55.9 and 58.6 % for λ = 0, 0.001 and 0.01 on 569 tumours, of which 62.7 % "
    "are benign: its networks do worse than always saying benign. The same λ are compared here on scaled measurements, "
    "on measurements as they are, and with the penalty at every step.",
    runs=RUNS,
    seeds={"smoke": 2, "laptop": 16, "paper": 16},
    data=dict.fromkeys(("smoke", "laptop", "paper"), "breast_cancer"),
    measures=(call(performance), call(curvature), call(work)),
    measures_at={"smoke": (call(performance), call(curvature, probes=2, top=2, rest=2), call(work))},
    claims=claims,
    figures=draw,
    deviations=(
        "Measurements: scaled by mean and standard deviation of the training samples. The paper does not say; its "
        "baseline suggests that they were not, which is a control here.",
        "The network and its training are those of the paper's CIFAR-100 experiment (512 and 256 units, 30 % dropout, "
        "Adam at 0.01 with cosine decay, batches of 128, L2 5e-4, 10 epochs); what was used on these data is "
        "not known. With 3 steps an epoch the penalty at every 10th step is computed 3 times; at every step 30 times.",
        "285 tumours for training, 114 for validation and 170 for testing, drawn anew by each seed; the paper's split "
        "is not known.",
        "Flatness at λ = 0 is measured, by Tr(H²) of the training loss at the end.",
        "Cost: products of matrices counted in units of a plain step; the paper's 12 are ratios of seconds.",
        "Seeds: 16; the paper: 3 runs, with ±0.24 points beside each accuracy.",
    ),
    varied=(
        "initialisation",
        "order of the batches",
        "dropout masks",
        "directions of the penalty",
        "samples of all three sets",
        "wrong labels",
    ),
    fixed=("the directions of the measures",),
)
