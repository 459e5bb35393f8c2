"""Do a tenth of the weights do as well as all, and because of where they began? Johannsen 2026, experiment 4."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from landscope.experiments._johannsen2026 import JOHANNSEN, chosen
from landscope.experiments._lottery import arm_difference, arm_ratio, by_density, on_the_line, to_dense, with_arms
from landscope.figures import Figure
from landscope.losses import cross_entropy
from landscope.measures.connectivity import between, halfway, linear_connectivity
from landscope.measures.outcomes import performance
from landscope.measures.sharpness import average_case_sharpness
from landscope.measures.sparsity import weight_density
from landscope.models import cnn, mlp
from landscope.pruning import densities, keep_zeros, prune_and_rewind
from landscope.spec import At, Call, Claim, Experiment, Protocol, Published, Recipe, at, call
from landscope.types import Table

ONE_SHOT = (0.7, 0.5, 0.3, 0.2, 0.1, 0.05)
JUDGED = 0.1  # the density that the paper's numbers are about
PAPERS_MARGIN, MARGINS = 0.0115, (0.01, 0.02)
OTHER_SEED = 100  # what the paper's code adds to a seed for another initialisation
RADIUS = 0.1


@dataclass(frozen=True)
class Setup:
    """What is trained at one scale on one data set; everything is fixed here, before any run.

    Args:
        model: The dense network's function.
        sizes: Its settings.
        data: Sizes of the sets drawn.
        optimizer: Of every run.
        batch: The batch size.
        steps: Of every run: a ticket is trained for as long as the dense network.
        one_shot: Densities of the published protocol.
        fraction: What iterative pruning takes off the weights that are left, at each level.
        until: Where it ends.
        scope: "global" or "layer": what the weights' magnitudes are compared over.
    """

    model: Any
    sizes: dict[str, Any]
    data: dict[str, Any]
    optimizer: Call
    batch: int
    steps: int
    one_shot: tuple[float, ...] = ONE_SHOT
    fraction: float = 0.2
    until: float = 0.03
    scope: str = "global"

    def __post_init__(self) -> None:
        """Refuse densities that are none, or of which none is judged."""
        wrong = [d for d in self.one_shot if not 0 < d < 1]
        if wrong:
            raise ValueError(f"densities lie between 0 and 1 (1 is the dense network), not {wrong}")
        if JUDGED not in self.one_shot:
            raise ValueError(f"the density {JUDGED}, which is judged, is not among {self.one_shot}")
        densities(fraction=self.fraction, until=self.until)

    def network(self, **sizes: Any) -> Call:
        """The dense network, or one of other sizes."""
        return call(self.model, **(self.sizes | sizes))


_SGD = functools.partial(call, SGD, momentum=0.9)
# LeNet-300-100 with five times the paper's rate: 6 epochs then come to 99 % of training accuracy (the paper: 100).
GREY_IMAGES = Setup(
    mlp, {"widths": (300, 100)}, {"train": 10_000, "valid": 0, "test": 4_000}, _SGD(lr=0.05), batch=128, steps=6 * 79
)
COLOUR_IMAGES = Setup(
    cnn, {"channels": 8}, {"train": 2_000, "valid": 0, "test": 2_000}, _SGD(lr=0.01), batch=32, steps=630
)
# As in the notebook of MNIST-1D's authors: Adam at 0.02, batches of 100, each layer pruned by itself.
SIGNALS = Setup(
    mlp, {"widths": (300, 300)}, {"train": 4_000, "valid": 0, "test": 4_000}, call(Adam, lr=0.02), batch=100,
    steps=1_000, scope="layer",
)  # fmt: skip
DIGITS = Setup(mlp, {"widths": (64, 64)}, {"train": 1197, "valid": 0, "test": 600}, _SGD(lr=0.05), batch=32, steps=600)
PAPER = Setup(cnn, {"channels": 32}, {"train": 50_000, "valid": 0}, _SGD(lr=0.01), batch=128, steps=60 * 391)
SMOKE = Setup(
    mlp, {"widths": (32, 16)}, {"train": 256, "valid": 0, "test": 256}, _SGD(lr=0.1), batch=32, steps=40,
    one_shot=(0.5, 0.1), fraction=0.7, until=0.1,
)  # fmt: skip


def setup(scale: str, data: Any) -> Setup:
    """What is trained for a scale and data set.

    Raises:
        ValueError: for data that this experiment cannot use.
    """
    whole = data.name == "digits" or len(data.shape) == 3
    sets = {"digits": DIGITS, "mnist1d": SIGNALS}
    return chosen(
        scale,
        data,
        paper=PAPER,
        smoke=SMOKE if whole else replace(SMOKE, data={}),
        grey=GREY_IMAGES,
        colour=COLOUR_IMAGES,
        other=sets.get(data.name) or replace(DIGITS, data={}),
    )


# --- runs -----------------------------------------------------------------------------------------------------------


def _dense(of: Setup, data: Any, seed: int) -> Recipe:
    return Recipe(
        data=data.draw(**of.data),
        model=of.network(),
        loss=call(cross_entropy),
        optimizer=of.optimizer,
        schedule=call(CosineAnnealingLR, T_max=of.steps),
        steps=of.steps,
        batch_size=of.batch,
        seed=seed,
    )


def _ticket(of: Setup, dense: Recipe, scores: At, density: float, source: At | None = None, **more: Any) -> Recipe:
    """A run that begins from pruned weights: the dense network's own initialisation, if not another ``source``."""
    begins = call(
        prune_and_rewind, source=source or at(dense, "start"), scores=scores, density=density, scope=of.scope, **more
    )
    return replace(dense, start=begins, constraint=call(keep_zeros))


def _controls(of: Setup, data: Any, dense: Recipe, scores: At, density: float) -> dict[str, Recipe]:
    """What a ticket is compared with: other weights, another mask, another network, no rewinding."""
    other = replace(dense, seed=dense.seed + OTHER_SEED, steps=0, schedule=None)  # nothing but an initialisation
    return {
        "reinitialised": _ticket(of, dense, scores, density, source=at(other, "start")),
        "random mask": _ticket(of, dense, scores, density, shuffle=dense.seed),
        "small dense": replace(dense, model=_small(of, data.shape, data.outputs, density)),
        "fine-tuned": _ticket(of, dense, scores, density, source=scores),
    }


def _pair(recipe: Recipe) -> list[Recipe]:
    """The same run with its batches in another order, and the line between the two."""
    twin = replace(recipe, order_seed=recipe.seed + OTHER_SEED)
    begins = call(halfway, first=at(recipe, "end"), second=at(twin, "end"))
    model = call(between, of=recipe.model)
    return [twin, replace(recipe, model=model, start=begins, constraint=None, steps=0, schedule=None)]


def _small(of: Setup, shape: tuple[int, ...], outputs: int, density: float) -> Call:
    """The smallest dense network of the same shape that has at least as many parameters as a ticket has left."""
    dense = _counts(of.network(), shape, outputs)
    wanted = sum(dense) - dense[0] + density * dense[0]
    (name, full), *_ = of.sizes.items()

    def scaled(share: float) -> Call:
        sizes = tuple(max(1, round(share * w)) for w in (full if isinstance(full, tuple) else (full,)))
        return of.network(**{name: sizes if isinstance(full, tuple) else sizes[0]})

    steps = max(full) if isinstance(full, tuple) else full
    for k in range(1, steps):
        if sum(_counts(scaled(k / steps), shape, outputs)) >= wanted:
            return scaled(k / steps)
    return of.network()


@functools.lru_cache(maxsize=4096)
def _counts(model: Call, shape: tuple[int, ...], outputs: int) -> tuple[int, int]:
    """How many prunable parameters a network has, and how many others."""
    with torch.device("meta"):
        parameters = list(model(shape, outputs).parameters())
    wide = sum(p.numel() for p in parameters if p.dim() >= 2)
    return wide, sum(p.numel() for p in parameters) - wide


def one_shot(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """The trained network pruned at once to each density and reset to its initialisation; all controls at 10 %."""
    of, runs = setup(scale, data), []
    for seed in seeds:
        dense = _dense(of, data, seed)
        end = at(dense, "end")
        tickets = {density: _ticket(of, dense, end, density) for density in of.one_shot}
        runs += [dense, *tickets.values(), *_controls(of, data, dense, end, JUDGED).values()]
        runs += [*_pair(dense), *_pair(tickets[JUDGED])]
    return runs


def _chain(of: Setup, dense: Recipe) -> list[tuple[float, At, Recipe]]:
    """Density, what is judged and ticket of every level: each judges the trained network of the level before."""
    found, scores = [], at(dense, "end")
    for density in densities(fraction=of.fraction, until=of.until):
        ticket = _ticket(of, dense, scores, density)
        found.append((density, scores, ticket))
        scores = at(ticket, "end")
    return found


def iterative(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """Level by level a share of the weights that are left, reset each time; controls near 10 % and at the end."""
    of, runs = setup(scale, data), []
    for seed in seeds:
        dense = _dense(of, data, seed)
        levels = _chain(of, dense)
        runs += [dense, *_pair(dense), *(ticket for _, _, ticket in levels)]
        judged = min(levels, key=lambda level: abs(math.log(level[0] / JUDGED)))
        for density, scores, ticket in dict.fromkeys((judged, levels[-1])):
            runs += [*_controls(of, data, dense, scores, density).values(), *_pair(ticket)]
    return list(dict.fromkeys(runs))  # small networks of two levels may be the same


def known_effect(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """The sparsest iterative ticket, and a random mask of its densities; the other protocols have these runs, too."""
    of, runs = setup(scale, data), []
    for seed in seeds:
        dense = _dense(of, data, seed)
        density, scores, ticket = _chain(of, dense)[-1]
        runs += [dense, ticket, _controls(of, data, dense, scores, density)["random mask"]]
    return runs


# --- claims ---------------------------------------------------------------------------------------------------------

THREE_SEEDS = "three seeds of the paper's code"


def claims(scale: str, data: Any) -> list[Claim]:
    """What the paper says, of the arms that this scale has."""
    of = setup(scale, data)
    last = densities(fraction=of.fraction, until=of.until)[-1]
    accuracy: dict[str, Any] = {"value": "test_accuracy", "worst": 1 / data.outputs}
    if scale == "paper":  # one test set for all seeds
        accuracy["examples"] = "test_correct"

    def of_tickets(second: str, density: float = JUDGED) -> Call:
        return call(arm_difference, first="ticket", second=second, density=density, **accuracy)

    half_a_point = "the paper's own seeds differ by about half a point at one density"
    papers_own = "the margin in the paper's words: what it observed, so that its own data cannot say whether it is kept"
    loss = Published(-0.01147, 3, f"83.72 % against 84.87 %; {THREE_SEEDS}, interval 0.66 to 1.63 points below")
    kept = [
        Claim(
            f"A tenth of the weights tests at most {100 * margin:.3g} points below the dense network",
            of_tickets("dense"),
            expect="at_least",
            null=-margin,
            margin=margin,
            reason=papers_own if margin == PAPERS_MARGIN else "a margin set beforehand, from no one's data",
            unit="points",
            paper=loss,
            expectation="Easily kept on easy data.",
        )
        for margin in (PAPERS_MARGIN, *MARGINS)
    ]
    beaten = [
        Claim(
            f"A ticket of a tenth of the weights beats {what}",
            of_tickets(second),
            expect="greater",
            smallest=0.005,
            reason=half_a_point,
            unit="points",
            paper=paper,
            expectation=expectation,
        )
        for second, what, paper, expectation in (
            (
                "reinitialised",
                "the same mask with another initialisation",
                Published(0.028, 3, f"83.72 % against 80.92 %; {THREE_SEEDS}, interval 1.94 to 3.66 points"),
                "Supported, and smaller where the mask alone says much (an image's margin, a signal's neighbourhood).",
            ),
            ("random mask", "a random mask of the same layer-wise densities", None, "Supported."),
            ("small dense", "a dense network of its size", None, "Unclear: the paper has no such control."),
        )
    ]
    described: dict[str, Any] = {"expect": "less", "primary": False}
    return [
        *kept,
        *beaten,
        Claim(
            "Rewinding to the initialisation tests no better than training on from the trained weights",
            of_tickets("fine-tuned"),
            unit="points",
            expectation="Fine-tuning has twice the training behind it.",
            **described,
        ),
        Claim(
            "A ticket of a tenth of the weights ends flatter than the dense network",
            call(
                arm_ratio,
                value="weight_average_sharpness",
                index=0,
                first="ticket",
                second="dense",
                density=JUDGED,
                worst="max",
            ),
            unit="ratio",
            expectation="Unclear: noise in proportion to each weight leaves pruned weights alone.",
            **described,
        ),
        Claim(
            "Halfway between two runs of a ticket less is lost than between two of the dense network",
            call(arm_difference, value="test_error_midpoint_rise", first="line", second="dense line", density=JUDGED),
            unit="points",
            expectation="Where tickets match the dense network, their runs are said to lie in one valley.",
            **described,
        ),
        Claim(
            f"A ticket of {last:.1%} of the weights beats a random mask of the same layer-wise densities",
            of_tickets("random mask", last),
            expect="greater",
            smallest=0.02,
            reason="two points are far below what random cuts of this depth are known to cost",
            unit="points",
            positive=True,
        ),
    ]


# --- figures --------------------------------------------------------------------------------------------------------


def draw(results: Table, histories: Table) -> list[Figure]:
    """The experiment's figures, from the results at the end of every run."""
    tables = {}
    for name in (name for name in RUNS if not RUNS[name].positive):
        rows = [_in_percent(row) for row in results.rows() if row["protocol"] == name and row["status"] == "done"]
        if rows:
            tables[name] = with_arms(Table.of(rows))
    # fmt: off
    drawn = (
        by_density(tables, "accuracy", "Test accuracy against density", "test_percent", "test accuracy (%)"),
        to_dense(tables, [100 * margin for margin in (PAPERS_MARGIN, *MARGINS)]),
        by_density(tables, "achieved-loss", "How far each network was trained", "train_loss", "training loss (nats)",
                   log=True),
        by_density(tables, "sharpness", "Sharpness relative to the weights against density", "weight_average_sharpness",
                   f"rise of the loss under noise of {RADIUS:.0%} of each weight (nats)", log=True, index=0),
        on_the_line(tables, "line-error", "Test error on the line between two runs from one start", "line_test_error",
                    "test error (%)"),
        on_the_line(tables, "line-loss", "Training loss on the line between two runs from one start",
                    "line_train_loss", "training loss (nats)"),
    )
    # fmt: on
    return [figure for figure in drawn if figure is not None]


def _in_percent(row: dict[str, Any]) -> dict[str, Any]:
    accuracy, line = row.get("test_accuracy"), row.get("line_test_accuracy")
    return row | {
        "test_percent": None if accuracy is None else 100 * accuracy,
        "line_test_error": None if line is None else tuple(100 * (1 - a) for a in line),
    }


RUNS = {
    "published": Protocol(
        one_shot,
        holds="Every network is trained for the same number of steps with the same settings. The dense network is "
        "pruned once, straight to each density, and reset to the weights it began with. Whatever a ticket is compared "
        "with has the same number of weights (the small dense network: of parameters).",
    ),
    "iterative with rewinding": Protocol(
        iterative,
        holds="As published, but the weights are taken away in levels of 20 %, and each level judges the weights that "
        "the level before has come to after training from the same initialisation: what the paper's text says. A "
        "ticket has so many times the training behind its mask.",
    ),
    "positive control": Protocol(
        known_effect,
        holds="The sparsest ticket against random masks with as many weights in every layer: an effect known to be "
        "there, to show that the same code would have found one.",
        positive=True,
    ),
}

MEASURES = (
    call(weight_density),
    call(average_case_sharpness, scale="weight", radii=(RADIUS,), draws=5),
    call(linear_connectivity),
)

EXPERIMENT = Experiment(
    paper=JOHANNSEN,
    title="Do a tenth of the weights do as well as all of them, and because of where they began?",
    summary="Networks are trained, their smallest weights set to zero, and what is left is trained again from where it "
    "began. The tickets so found are compared with the dense network, and at equal size with other weights, other "
    "masks, a small dense network and training on without rewinding; once as the paper's code prunes, at one stroke, "
    "and once as its text says, level by level.",
    runs=RUNS,
    seeds={"smoke": 2, "laptop": 8, "paper": 10},
    data={"smoke": "digits", "laptop": "mnist1d", "paper": "cifar10"},
    measures=(call(performance), *MEASURES),
    measures_at={"paper": (call(performance, examples=True), *MEASURES)},
    claims=claims,
    figures=draw,
    deviations=(
        "Seeds: 8 (laptop) or 10, each with its own initialisation, batch order and (below paper scale) data; the "
        "paper's code ran 3, where its text says 5.",
        "Pruning: at one stroke to 70, 50, 30, 20, 10 and 5 % of the weights is what the paper's code did and the "
        "published protocol here; its abstract and text say iterative magnitude pruning, which is the second protocol "
        "(20 % a level, 16 levels to 2.8 %; the level nearest to a tenth has 10.7 %).",
        "Controls: the same mask with another initialisation (seed + 100) is the paper's, at 10 % alone; random masks "
        "of the same layer-wise densities, dense small networks of as many parameters and fine-tuning are ours, as is "
        "every control of iterative pruning.",
        "Which weights: those with two axes or more, as in the paper; ⌈density × weights⌉ of them are kept, ties "
        "broken by place, where the paper takes a quantile. On MNIST-1D every layer is pruned to the same density, as "
        "its authors did.",
        "Masks: enforced after every step, so that pruned weights are exactly zero; the paper masks gradients, too, "
        "which leaves momentum without them. Here the momentum of a pruned weight exists and moves nothing.",
        "Laptop scale, MNIST-1D: an MLP 40-300-300-10 on 4,000 signals, Adam at 0.02 with cosine decay, batches of "
        "100, 1,000 steps; its authors' notebook has a network with a skip and 500 units, 1,501 steps without decay, "
        "prunes biases, too, and follows a linear schedule of 100 levels.",
        "Laptop scale, grey images (MNIST): LeNet-300-100 on 10,000 images, 6 epochs at a learning rate of 0.05; "
        "colour images: the paper's network at a quarter of its width on 2,000 images, 10 epochs. The paper: its "
        "convolutional network on all of CIFAR-10, 60 epochs at 0.01.",
        "Training accuracy is evaluated on the whole training set after training; the paper's is the running mean over "
        "the last epoch's batches in train mode.",
        "Sharpness and linear connectivity are not in the paper. Sharpness is the rise of the loss under noise in "
        "proportion to each weight, which leaves pruned weights at zero: on the weights that are there.",
    ),
    varied=("initialisation", "order of the batches", "data (below paper scale)", "random masks"),
    fixed=("the draws of the weight noise", "the test set (paper scale)"),
)
