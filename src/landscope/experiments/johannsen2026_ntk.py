"""Do wider networks train more lazily, as their tangent kernel says? Johannsen 2026, experiment 5."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from landscope.comparisons import against, learning
from landscope.experiments._data import check_classes
from landscope.experiments._johannsen2026 import JOHANNSEN
from landscope.figures import Figure
from landscope.losses import cross_entropy, squared_error
from landscope.measures.kernel import linearisation, linearised_training, parameter_movement, tangent_kernel
from landscope.measures.outcomes import performance
from landscope.models import wide_mlp
from landscope.spec import Call, Claim, Experiment, Protocol, Published, Recipe, call
from landscope.stats import difference, exponent
from landscope.types import Table

BATCH, RATE, EPOCHS, DEPTH = 128, 0.01, 30, 3  # of the paper's code
PUBLISHED_WIDTHS = tuple(2**k for k in range(5, 13))
PUBLISHED_MOVEMENT = (0.9356, 0.6861, 0.4899, 0.3485, 0.2477, 0.1743, 0.1212, 0.0831)
FEW = 128  # training samples of the lazy protocols: their kernel of all outputs is then a matrix of 1,280 rows


@dataclass(frozen=True)
class Arms:
    """What is trained at one scale on one data set; everything is fixed here, before any run.

    Args:
        data: Sizes of the sets drawn, for the published protocol.
        widths: Of the published protocol.
        lazy_widths: Of the protocols with full-batch gradient descent.
        few: Training samples of these.
        steps: Of these.
        rate: The learning rate in the NTK parametrisation.
        rate_times_width: The learning rate in the standard parametrisation, times the width.
        epochs: Of the published protocol.
    """

    data: dict[str, Any]
    widths: tuple[int, ...]
    lazy_widths: tuple[int, ...]
    few: int = FEW
    steps: int = 400
    rate: float = 0.05
    rate_times_width: float = 10.0
    epochs: int = EPOCHS


# Found on seed 10,000: the epochs after which digits are fitted, and rates that lie, at every width, below those at
# which gradient descent on the first kernel diverges.
DIGITS = Arms(
    {"train": 1197, "valid": 200, "test": 400}, (32, 64, 128, 256, 512), (64, 128, 256, 512, 1024),
    rate=0.2, rate_times_width=20.0, epochs=240,
)  # fmt: skip
IMAGES = Arms(
    {"train": 5_000, "valid": 1_000, "test": 2_000}, (32, 64, 128, 256, 512), (64, 128, 256, 512, 1024),
)  # fmt: skip
# Without a size, the test set is the whole one in its own order, the same for all seeds.
PAPER = Arms({"train": 5_000, "valid": 0}, PUBLISHED_WIDTHS, (64, 128, 256, 512, 1024, 2048, 4096))
SMOKE = Arms(
    {"train": 256, "valid": 64, "test": 64}, (8, 16, 32), (8, 16, 32), few=32, steps=40, rate=0.1,
    rate_times_width=5.0, epochs=4,
)  # fmt: skip


def arms(scale: str, data: Any) -> Arms:
    """The arms for a scale and data set.

    Raises:
        ValueError: for data without classes, without images at the paper's scale, or with too few samples.
    """
    check_classes(data)
    image = len(data.shape) == 3
    if scale == "paper" and not image:
        raise ValueError(f"the paper's images are MNIST's, and {data.name} holds no images: give mnist")
    small = DIGITS if data.name == "digits" else replace(IMAGES, data={}, widths=DIGITS.widths)
    of = {"paper": PAPER, "smoke": SMOKE}.get(scale, IMAGES if image else small)
    wanted = of.data.get("train", of.few) + (of.data.get("valid") or 0)
    if wanted > data.n_train + (0 if image else data.n_test):
        raise ValueError(f"{data.name} has {data.n_train:,} samples to train on, and this scale draws {wanted:,}")
    return of


def _recipe(of: Arms, seed: int, **settings: Any) -> Recipe:
    return Recipe(**({"loss": call(squared_error), "steps": of.steps, "batch_size": of.few, "seed": seed} | settings))


def published(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """PyTorch's initialisation, cross-entropy, batches of 128, momentum, cosine decay to 0, equal epochs."""
    of = arms(scale, data)
    drawn = data.draw(**of.data)
    train = dict(drawn.kwargs).get("train") or data.n_train - (dict(drawn.kwargs).get("valid") or 0)
    steps = of.epochs * math.ceil(train / BATCH)
    settings = {
        "data": drawn,
        "loss": call(cross_entropy),
        "optimizer": call(SGD, lr=RATE, momentum=0.9),
        "schedule": call(CosineAnnealingLR, T_max=steps),
        "steps": steps,
        "batch_size": BATCH,
    }
    return [_recipe(of, seed, model=_model(width, "standard"), **settings) for seed in seeds for width in of.widths]


def ntk_parametrisation(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """The NTK parametrisation, squared loss, full-batch gradient descent of one learning rate, equal steps."""
    of = arms(scale, data)
    return [
        _recipe(of, seed, data=_few(of, data), model=_model(w, "ntk"), optimizer=call(SGD, lr=of.rate))
        for seed in seeds
        for w in of.lazy_widths
    ]


def rate_over_width(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """The standard parametrisation with a learning rate ∝ 1 / width; all else as in the NTK parametrisation."""
    of = arms(scale, data)
    rate = of.rate_times_width
    return [
        _recipe(of, seed, data=_few(of, data), model=_model(w, "standard"), optimizer=call(SGD, lr=rate / w))
        for seed in seeds
        for w in of.lazy_widths
    ]


def _model(width: int, parametrisation: str) -> Call:
    return call(wide_mlp, width=width, depth=DEPTH, parametrisation=parametrisation)


def _few(of: Arms, data: Any) -> Call:
    return data.draw(**(of.data | {"train": of.few}))


def published_exponent(*, of: str) -> float:
    """The log-log slope against the width of what the paper's per-seed table gives.

    Args:
        of: ``"relative"`` movement as printed, or ``"distance"``: that times the root mean square norm of PyTorch's
            initialisation of 784-w-w-w-10, whose weights and biases have the variance 1 / (3 fan-in).
    """
    places, logs = [], []
    for width, movement in zip(PUBLISHED_WIDTHS, PUBLISHED_MOVEMENT, strict=True):
        into = (784, width, width, width)
        square = sum((a + 1) * b / (3 * a) for a, b in zip(into, (width, width, width, 10), strict=True))
        places.append(math.log(width))
        logs.append(math.log(movement * (math.sqrt(square) if of == "distance" else 1.0)))
    mean, level = sum(places) / len(places), sum(logs) / len(logs)
    products = sum((x - mean) * (y - level) for x, y in zip(places, logs, strict=True))
    return products / sum((x - mean) ** 2 for x in places)


def claims(scale: str, data: Any) -> list[Claim]:
    """What the paper says of its movements, and what the lazy regime would show."""
    of = arms(scale, data)
    falls: dict[str, Any] = {"expect": "less", "smallest": -0.1, "unit": "exponent"}
    little = "an exponent above −0.1 is less than a fifth off for ten times the width"
    table = "log-log slope over widths 32 to 4,096 of the paper's table, two seeds each"

    def power(value: str) -> Call:
        return call(exponent, value=value, over="model.width", worst="max")

    lazy = (
        Claim(
            "The drift falls at least as fast as 1/√width (to within 0.1)",
            power("kernel_drift"),
            "at_most",
            null=-0.4,
            unit="exponent",
        ),
        Claim("It falls no faster than 1/width (to within 0.1)", power("kernel_drift"), "at_least", null=-1.1,
              unit="exponent"),
    )  # fmt: skip
    return [
        Claim(
            "Relative parameter movement falls with width",
            power("relative_movement"),
            reason=little,
            paper=Published(published_exponent(of="relative"), 2, table),
            expectation="Supported, because the norm of the initialisation grows with the width.",
            **falls,
        ),
        Claim(
            "The distance that the parameters move falls with width",
            power("distance_moved"),
            reason=little,
            paper=Published(
                published_exponent(of="distance"), 2, f"{table}, times the norm of PyTorch's initialisation: 5.3 to 5.7"
            ),
            expectation="Contradicted as published: the distance hardly depends on the width. Towards 1/√width with a "
            "learning rate ∝ 1/width, if that is lazy. In the NTK parametrisation it does not fall: weights are longer "
            "there by the root of the width, and their distance stays of one size.",
            **falls,
        ),
        Claim(
            "The tangent kernel drifts less, the wider the network",
            power("kernel_drift"),
            reason=little,
            expectation="Supported in the NTK parametrisation, with an exponent between −1/2 and −1. Unclear in "
            "PyTorch's, whose small signals at the start leave the kernel much to grow, and with cross-entropy.",
            **falls,
        ),
        Claim(
            "Wider networks end nearer to their linearisation (test images, relative to how far the outputs moved)",
            power("linearisation_error"),
            reason=little,
            expectation="As the drift of the kernel.",
            **falls,
        ),
        Claim(
            f"Wider networks test better (width {_ends(of)[1]} against {_ends(of)[0]})",
            call(
                difference,
                value="test_accuracy",
                over="model.width",
                first=_ends(of)[1],
                second=_ends(of)[0],
                worst=1 / data.outputs,
                **({"examples": "test_correct"} if scale == "paper" else {}),
            ),
            expect="greater",
            smallest=0.005,
            reason="half a point is what seeds of one width differ by",
            unit="points",
            paper=_published_gain(of),
            expectation="A small gain, if any.",
        ),
        Claim(
            "At the start, the kernel comes near its infinite-width limit",
            power("start_infinite_kernel_drift"),
            positive=True,
            reason=little,
            expectation="An exponent of −1/2.",
            **falls,
        ),
        Claim(
            "In the NTK parametrisation hidden weights move less, the wider the network",
            power("hidden_weights_relative"),
            positive=True,
            reason=little,
            expectation="An exponent of −1.",
            **falls,
        ),
        Claim(
            "In the NTK parametrisation the kernel drifts at a rate between 1/√width and 1/width",
            None,
            "all_of",
            positive=True,
            parts=lazy,
            expectation="1/√width is the proven bound, 1/width what is usually found.",
        ),
    ]


def _ends(of: Arms) -> tuple[int, int]:
    """The smallest and the largest width that all protocols have."""
    shared = sorted(set(of.widths) & set(of.lazy_widths))
    return shared[0], shared[-1]


def _published_gain(of: Arms) -> Published | None:
    """The paper's gain in test accuracy between the two widths of the claim."""
    known = dict(zip(PUBLISHED_WIDTHS, (91.6, 92.6, 92.9, 93.1, 93.3, 93.5, 93.6, 93.9), strict=True))
    small, large = _ends(of)
    if small not in known or large not in known:
        return None
    source = f"{known[large]} % against {known[small]} %, two seeds each, MNIST"
    return Published((known[large] - known[small]) / 100, 2, source)


# --- figures -------------------------------------------------------------------------------------------------------


def draw(results: Table, histories: Table) -> list[Figure]:
    """The experiment's figures, from the results and the learning curves."""
    protocols = [name for name in RUNS if not RUNS[name].positive]
    rows = [_with_error(row) for row in results.rows() if row["status"] == "done"]
    of = {name: Table.of(row for row in rows if row["protocol"] == name) for name in protocols}
    squared = {name: of[name] for name in protocols[1:]}
    curves = {name: Table.of(r for r in histories.rows() if r["protocol"] == name) for name in protocols}
    over: dict[str, Any] = {"over": "model.width"}
    # fmt: off
    drawn = (
        against(of, "relative-movement", "Relative parameter movement", "relative_movement",
                "‖θ_T − θ₀‖ / ‖θ₀‖", **over),
        against(of, "distance", "Its numerator: how far the parameters move", "distance_moved", "‖θ_T − θ₀‖", **over),
        against(of, "start-norm", "Its denominator: how long they are at the start", "start_norm", "‖θ₀‖", **over),
        against(of, "hidden-movement", "Relative movement of the hidden weights", "hidden_weights_relative",
                "‖W_T − W₀‖ / ‖W₀‖", **over),
        against(of, "kernel-drift", "How far the tangent kernel drifts", "kernel_drift", "‖Θ_T − Θ₀‖ / ‖Θ₀‖", **over),
        against(of, "kernel-rotation", "How far it turns", "kernel_rotation", "1 − cosine of Θ_T and Θ₀", **over),
        against(of, "kernel-alignment", "How well the trained kernel fits the labels", "kernel_alignment_centred",
                "centred kernel-target alignment", log=False, **over),
        against(of, "linearisation-error", "Distance to the linearisation at the start", "linearisation_error",
                "root mean square over the outputs' change", **over),
        against(squared, "linear-training", "Distance to the linearised network's own training",
                "linear_training_error", "root mean square over the outputs' change", **over),
        against(squared, "kernel-regression", "Distance to kernel regression", "kernel_regression_error",
                "root mean square over the outputs' change", **over),
        against(of, "infinite-kernel", "Distance to the infinite-width kernel at the start",
                "start_infinite_kernel_drift", "‖Θ₀ / O − Θ_∞‖ / ‖Θ_∞‖", **over),
        against(of, "test-error", "Test error", "test_error", "test error (%)", log=False, **over),
        learning(curves, "learning-train", "Learning curves", "train_loss", "training loss", **over),
    )
    # fmt: on
    return [figure for figure in drawn if figure is not None]


def _with_error(row: dict[str, Any]) -> dict[str, Any]:
    accuracy = row.get("test_accuracy")
    return row | {"test_error": None if accuracy is None else 100 * (1 - accuracy)}


RUNS = {
    "published": Protocol(
        published,
        holds="Every network is trained for equally many epochs with the same learning rate, in PyTorch's "
        "parametrisation and on the cross-entropy. In it wide networks start with longer weights, and one learning "
        "rate is not the same step for all: the outputs of a wide network move further at it.",
    ),
    "NTK parametrisation": Protocol(
        ntk_parametrisation,
        holds="Every network makes the same number of full-batch gradient steps of the same learning rate on the "
        "squared loss, with the scale of the weights taken out of them, so that a step moves the outputs of all "
        "widths alike. This is the setting of the theorems: what is not lazy here is so because the width is finite.",
    ),
    "learning rate ∝ 1/width": Protocol(
        rate_over_width,
        holds="PyTorch's parametrisation and initialisation, with a learning rate that falls as one over the width, so "
        "that a step moves the outputs of all widths about alike; full batches, squared loss, equal steps. It "
        "separates the parametrisation from what the published protocol does otherwise.",
    ),
    "positive control": Protocol(
        ntk_parametrisation,
        holds="The networks of the NTK parametrisation once more, with what theory says must be found in them: to show "
        "that the same code does see weights and kernels that stand still.",
        positive=True,
    ),
}

KERNELS = (
    call(parameter_movement),
    call(tangent_kernel, samples=100),
    call(linearisation, samples=200),
    call(linearised_training, samples=100, most=FEW),
)

EXPERIMENT = Experiment(
    paper=JOHANNSEN,
    title="Do wider networks train more lazily, as their tangent kernel says?",
    summary="MLPs of growing width are trained as the paper did, and in two ways in which the theory of the neural "
    "tangent kernel applies. Measured are how far the weights move (numerator and denominator apart), how far the "
    "kernel drifts, and how near the trained network comes to its linearisation, to that one's training, and to kernel "
    "regression: the kernel that the paper's title for this experiment names and its code does not compute.",
    runs=RUNS,
    seeds={"smoke": 2, "laptop": 8, "paper": 10},
    data={"smoke": "digits", "laptop": "digits", "paper": "mnist"},
    measures=(call(performance), *KERNELS),
    measures_at={"paper": (call(performance, examples=True), *KERNELS)},
    claims=claims,
    figures=draw,
    deviations=(
        "Seeds: 8 (laptop) or 10, each with its own initialisation, batch order and data; the paper's code ran 2.",
        "Training images: 5,000 drawn anew by each seed; the paper took the first 5,000 of MNIST. Digits, at laptop "
        "scale: 1,197 of 1,797, inputs 64 (784), 240 epochs (30), after which they are fitted as MNIST is after 30.",
        "Widths: 32 to 512 at laptop scale (64 to 1,024 in the other protocols); the paper's are 32 to 4,096, as at "
        "paper scale.",
        "Movement is reported in three parts, ‖θ_T − θ₀‖, ‖θ₀‖ and their ratio; the paper prints the ratio alone.",
        "Kernels, linearisation and kernel regression are computed on 100 training samples and 200 or 100 test "
        "samples, chosen once for all networks of a seed; the paper computes no kernel.",
        "The protocols other than the published one (squared loss, full batches of 128 samples, 400 steps) are ours.",
        "Training accuracy is evaluated after training; the paper's is the running mean over the last epoch.",
        "A validation set is drawn below paper scale, though nothing is chosen on it; the paper has none.",
    ),
    varied=("initialisation", "order of the batches", "training images", "test images (below paper scale)"),
    fixed=("which of the samples kernels are taken on", "the test set (paper scale)"),
)
