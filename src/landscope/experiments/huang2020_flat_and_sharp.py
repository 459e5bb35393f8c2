"""Are minima that generalize flat, and their margins wide? Huang et al. 2020, Figures 3 and 6, on the swiss roll."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

from landscope.experiments._huang2020 import (
    HUANG,
    TRAIN,
    WIDTHS,
    check_set,
    on_roll,
    poisoned_roll,
    square,
    surfaces,
)
from landscope.figures import Axis, Figure, Panel, Series, by_level, contour, curves
from landscope.measures.boundary import input_margins
from landscope.measures.maps import classes_of, decision_map, loss_plane
from landscope.measures.outcomes import performance
from landscope.measures.parts import on_first, performance_of_parts
from landscope.measures.sharpness import weight_perturbation
from landscope.spec import Call, Claim, Experiment, Protocol, Recipe, call
from landscope.stats import Units, difference, log_ratio, trend
from landscope.train import loss_below
from landscope.types import Table

FITS = 0.995  # "All networks achieve above 99.5% training accuracy"
LEVEL = 0.01  # nats: the training loss of the control
SHARES = (0.005, 0.01, 0.02, 0.05, 0.1)  # of each filter's norm
JUDGED = 2  # the one of them that the claims are about: in pilots half a poisoned network's way to chance or less
SPAN = 18.0  # of the code's pictures
REACH, FARTHEST = 0.1, 0.05  # of a surface and of a perturbed boundary, in filter norms
CLEAR, NOISY = 0.0, 1.5  # standard deviations of the points' noise in the positive control; else 0.5


@dataclass(frozen=True)
class Setup:
    """What is trained and measured at one scale; everything is fixed here, before any run.

    Args:
        widths: Of the hidden layers.
        poison: Poison points beside 200 clean ones, ascending from 0, as many as are drawn.
        most: The most that any run of the paper's swiss roll has here: one batch size holds all, and Figure 5's
            networks are the same runs.
        judged: How many of them the poisoned arm of the claims has.
        equal: Those of the control with equal losses.
        steps: Of every run, full batches.
        schedule: Of the learning rate.
        known: Steps of the positive control.
        points: Of a class map, along each input.
        plane: Of a surface, along each direction.
        draws: Perturbations of one size.
    """

    widths: tuple[int, ...]
    poison: tuple[int, ...]
    most: int
    judged: int
    equal: tuple[int, ...]
    steps: int
    schedule: Call
    known: int = 10_000
    points: int = 121
    plane: int = 25
    draws: int = 20


LEVELS, EQUAL = (0, 20, 40, 60, 80), (0, 20, 60)
SCALES = {
    "smoke": Setup(
        (16, 8), (0, 10), 10, 10, (0, 10), 150, call(CosineAnnealingLR, T_max=300), 150, points=41, plane=9, draws=4
    ),
    "laptop": Setup(WIDTHS, LEVELS, 200, 60, EQUAL, 40_000, call(CosineAnnealingLR, T_max=40_000)),
    "paper": Setup(
        WIDTHS, LEVELS, 200, 60, EQUAL, 800_000, call(MultiStepLR, milestones=(3_000, 5_961, 300_000), gamma=0.1),
        points=301, plane=51, draws=100,
    ),
}  # fmt: skip


# --- runs -----------------------------------------------------------------------------------------------------------


def _run(of: Setup, poison: int, seed: int, noise: float = 0.5) -> Recipe:
    own: dict[str, Any] = {"widths": of.widths, "steps": of.steps, "schedule": of.schedule, "most": of.most}
    return on_roll(poison, seed, noise=noise, **own)


def _until(recipe: Recipe) -> Recipe:
    return replace(recipe, stop=call(loss_below, level=LEVEL, every=1))


def published(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """Every amount of poison, trained for the same number of steps."""
    check_set(data, "swiss_roll")
    of = SCALES[scale]
    return [_run(of, poison, seed) for seed in seeds for poison in of.poison]


def equal_loss(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """Some amounts of poison, each until the loss of all that it is trained on is below one level."""
    check_set(data, "swiss_roll")
    of = SCALES[scale]
    return [_until(_run(of, poison, seed)) for seed in seeds for poison in of.equal]


def known_effect(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """No poison, and points that lie on the spirals, or far beside them."""
    check_set(data, "swiss_roll")
    of = SCALES[scale]
    short = {"steps": of.known, "schedule": call(CosineAnnealingLR, T_max=of.known)}
    return [replace(_run(of, 0, seed, noise), **short) for seed in seeds for noise in (CLEAR, NOISY)]


# --- claims ---------------------------------------------------------------------------------------------------------


def trend_over_poison(table: Table, /, *, value: str, index: int | None = None) -> Units:
    """Each seed's Kendall tau of a value with the amount of poison (`landscope.stats.trend`), where all networks fit.

    Without three amounts of poison there is no trend, and no unit.

    Args:
        table: One protocol's results.
        value: The column.
        index: Which element of it.
    """
    if len(set(table["data.poison"])) < 3:
        return Units((), np.zeros(0), note="a trend needs three amounts of poison")
    given = (("first_train_accuracy", FITS),)
    return trend(table, value=value, over="data.poison", index=index, worst="max", given=given)


def claims(scale: str, data: Any) -> list[Claim]:
    """What the paper says of its Figures 3 and 6, and what this instrument must see."""
    check_set(data, "swiss_roll")
    of = SCALES[scale]
    fits: dict[str, Any] = {"over": "data.poison", "given": (("first_train_accuracy", FITS),)}
    ratio: dict[str, Any] = {"numerator": of.judged, "denominator": 0, **fits}
    return [
        Claim(
            "The median margin of the training points is smaller at a poisoned minimum",
            call(log_ratio, value="margin_median", worst="max", **ratio),
            expect="less",
            smallest=-math.log(2),
            reason="a margin that is not even halved is not 'almost zero'",
            unit="ratio",
            expectation="Supported: one is said to be wide, the other almost zero.",
        ),
        Claim(
            "The more poison, and with it the wider the generalization gap, the smaller the median margin",
            call(trend_over_poison, value="margin_median"),
            expect="trend_down",
            smallest=-0.5,
            reason="at tau = -0.5 three quarters of all pairs of levels are in order",
            unit="tau",
            expectation="Supported: the margin 'decreases until the training points sit on islands'.",
        ),
        *_stability(of, fits, ratio),
        *_described(ratio),
        Claim(
            f"Points beside the spirals (noise {NOISY:g}) have smaller margins than points on them",
            call(log_ratio, value="margin_median", over="data.noise", numerator=NOISY, denominator=CLEAR, worst="max"),
            expect="less",
            unit="ratio",
            positive=True,
        ),
    ]


def _stability(of: Setup, fits: dict[str, Any], ratio: dict[str, Any]) -> list[Claim]:
    """What noise on the weights does, and how the boundary looks that it moves."""
    tenth = f"{SHARES[JUDGED]:.0%} of each filter's norm"
    return [
        Claim(
            f"The training loss rises more around a poisoned minimum, under noise of {tenth}",
            call(log_ratio, value="filter_loss_increase", index=JUDGED, worst="min", **ratio),
            expect="greater",
            smallest=math.log(2),
            reason="less than twice the rise is not 'dramatically sharper'",
            unit="ratio",
            expectation="Supported.",
        ),
        Claim(
            f"A minimum without poison keeps more of its training accuracy, under noise of {tenth}",
            call(difference, value="filter_accuracy", index=JUDGED, first=0, second=of.judged, worst="min", **fits),
            expect="greater",
            smallest=0.02,
            reason="two points are 4 of 200 training points: fewer would not be 'most training points are unstable'",
            unit="points",
            expectation="Supported.",
        ),
        Claim(
            "A poisoned minimum's decision boundary has more islands: regions of one class in the square of inputs",
            call(log_ratio, value="map_regions", index=WIGGLES // 2, worst="min", **ratio),
            expect="greater",
            smallest=math.log(2),
            reason="two spirals make two regions at least; twice as many are few islands",
            unit="ratio",
            expectation="Supported: most points are said to lie on islands or peninsulas; peninsulas are no regions.",
        ),
    ]


def _described(ratio: dict[str, Any]) -> list[Claim]:
    """What is measured besides, and decides nothing."""
    down: dict[str, Any] = {"expect": "trend_down", "unit": "tau", "primary": False}
    return [
        Claim(
            "A poisoned minimum's decision boundary is longer",
            call(log_ratio, value="map_boundary_length", index=WIGGLES // 2, worst="min", **ratio),
            expect="greater",
            unit="ratio",
            primary=False,
            expectation="Supported: each class encroaches into the other's area.",
        ),
        Claim(
            "The more poison, the lower the test accuracy",
            call(trend_over_poison, value="test_accuracy"),
            expectation="Supported: poison is what widens the gap.",
            **down,
        ),
        Claim(
            f"The more poison, the less training accuracy is kept, under noise of {SHARES[JUDGED]:.0%}",
            call(trend_over_poison, value="filter_accuracy", index=JUDGED),
            expectation="As the margin.",
            **down,
        ),
    ]


# --- figures --------------------------------------------------------------------------------------------------------

WIGGLES = 5  # frames of the class map


def draw(results: Table, histories: Table) -> list[Figure]:
    """Figures 3 and 6 of one seed, and margins and perturbations of all."""
    rows = [row for row in results.rows() if row["status"] == "done" and row.get("margin_median") is not None]
    tables = {name: Table.of(r for r in rows if r["protocol"] == name) for name in RUNS if not RUNS[name].positive}
    tables = {name: table for name, table in tables.items() if len(table)}
    own = [row for row in rows if row["protocol"] == "published"]
    first = min((row["seed"] for row in own), default=0)
    shown = sorted((row for row in own if row["seed"] == first), key=lambda row: row["data.poison"])
    drawn: list[Figure | None] = []
    if shown:
        pair = [shown[0], *shown[-1:]]
        drawn += [_boundaries(shown), _wiggle(pair), surfaces([(_named(row), row) for row in pair], "surfaces")]
    for column, title, label, log in (
        ("margin_median", "Margins over the amount of poison", "median margin (input space)", True),
        ("test_accuracy", "Test accuracy over the amount of poison", "test accuracy", False),
    ):
        drawn.append(_over_poison(tables, column, title, label, log))
    return [figure for figure in (*drawn, _perturbed(tables)) if figure is not None]


def _named(row: dict[str, Any]) -> str:
    gap = row["first_train_accuracy"] - row["test_accuracy"]
    return f"{row['data.poison']} poison points, gap {gap:.0%}"


def _boundary(row: dict[str, Any], frame: int) -> tuple[np.ndarray, np.ndarray]:
    axis = np.linspace(-row["map_span"], row["map_span"], int(row["map_points"]))
    codes = np.array(row["map_codes"]).reshape(len(row["map_offsets"]), -1)
    return contour(axis, axis, classes_of(codes[frame], len(axis)), 0.5)


def _samples(row: dict[str, Any]) -> tuple[Series, ...]:
    """The clean training points, which are drawn anew: nothing about them is stored."""
    train = poisoned_roll(row["seed"], None, train=TRAIN, noise=row["data.noise"]).train
    places, targets = train.inputs.numpy(), train.targets.numpy()
    return tuple(
        Series(f"training points, class {c}", *places[targets == c].T, mode="points", slot=c, faint=True)
        for c in (0, 1)
    )


def _boundaries(shown: Sequence[dict[str, Any]]) -> Figure:
    """Figure 6: the boundary at every amount of poison."""
    x, y = square("input 1", SPAN), square("input 2", SPAN)
    panels = []
    for row in shown:
        line = Series("decision boundary", *_boundary(row, WIGGLES // 2), slot=2, marks=False)
        panels.append(Panel(_named(row), x, y, (*_samples(row), line)))
    said = [f"{_named(row)}: {row['map_regions'][WIGGLES // 2]:.0f} regions, median margin {row['margin_median']:.3g}"
            for row in shown]  # fmt: skip
    note = "The gap is training less test accuracy, the training set being its 200 clean points, which are shown."
    finding = f"Decision boundaries of seed {shown[0]['seed']}. {'; '.join(said)}."
    return Figure("boundaries", "Decision boundaries over the generalization gap", finding, tuple(panels), note)


def _wiggle(pair: Sequence[dict[str, Any]]) -> Figure:
    """Figure 3's animation as lines: the boundary at each of some perturbations along one direction."""
    panels, said = [], []
    for row in pair:
        lines = []
        for slot, i in ((0, 0), (1, WIGGLES - 1), (2, WIGGLES // 2)):
            name = f"at {row['map_offsets'][i]:+.3g} filter norms" if i != WIGGLES // 2 else "not perturbed"
            lines.append(Series(name, *_boundary(row, i), slot=slot, marks=False))
        panels.append(Panel(_named(row), square("input 1", SPAN), square("input 2", SPAN), tuple(lines)))
        scores = ", ".join(f"{score:.1%}" for score in row["map_train_accuracy"])
        said.append(f"{_named(row)}: {scores} of the training points")
    ends = f"{pair[0]['map_offsets'][0]:+.3g} to {pair[0]['map_offsets'][-1]:+.3g}"
    finding = f"Boundaries under a perturbation of {ends} filter norms. {'; '.join(said)}."
    note = "One random direction, each filter's part with the filter's norm; biases stay."
    return Figure("wiggle", "Decision boundaries under perturbation", finding, tuple(panels), note)


def _over_poison(tables: dict[str, Table], column: str, title: str, label: str, log: bool) -> Figure | None:
    """A column over the amount of poison: every network, and means over seeds."""
    panels, said = [], []
    for slot, (protocol, table) in enumerate(tables.items()):
        hover = [f"seed {row['seed']}, run {row['run']}" for row in table.rows()]
        series = by_level(protocol, table["data.poison"], table[column], slot, log=log, hover=hover)
        panels.append(Panel(protocol, Axis("poison points"), Axis(label, log=log), series))
        ends = [f"{series[-1].y[i]:.3g} at {series[-1].x[i]:g} poison points" for i in (0, -1)]
        said.append(f"{protocol}: {' and '.join(ends)}")
    if not panels:
        return None
    finding = f"{label[0].upper()}{label[1:]}, {'geometric ' if log else ''}means over seeds. {'; '.join(said)}."
    note = "Each point is one network; lines join means, with 95 % Student t intervals."
    return Figure(column.replace("_", "-"), title, finding, tuple(panels), note)


def _perturbed(tables: dict[str, Table]) -> Figure | None:
    """Training accuracy over the size of the perturbation, of the least and the most poison."""
    panels, said = [], []
    for protocol, table in tables.items():
        ends = sorted(set(table["data.poison"]))
        series: list[Series] = []
        for slot, poison in enumerate(dict.fromkeys((ends[0], ends[-1]))):
            rows = [row for row in table.where(**{"data.poison": poison}).rows() if row.get("filter_accuracy")]
            if rows:
                kept = [[100 * score for score in row["filter_accuracy"]] for row in rows]
                names = [row["seed"] for row in rows]
                series += curves(f"{poison} poison points", rows[0]["filter_magnitudes"], kept, slot, names=names)
                at = np.mean([row[min(JUDGED, len(row) - 1)] for row in kept])
                said.append(f"{protocol}, {poison} poison points: {at:.1f} % at {SHARES[JUDGED]:.0%}")
        if series:
            size = Axis("noise (share of each filter's norm)", log=True)
            panels.append(Panel(protocol, size, Axis("training accuracy (%)"), tuple(series)))
    if not panels:
        return None
    finding = f"Training accuracy under noise on the weights, means over seeds. {'; '.join(said)}."
    note = "Each network's mean over the same random directions; bands are 95 % Student t intervals over seeds."
    return Figure("perturbation", "What perturbation leaves of the training accuracy", finding, tuple(panels), note)


RUNS = {
    "published": Protocol(
        published,
        holds="Every network is trained for the same number of steps with the same settings, on the same clean points "
        "and on more or fewer poison points, which are labelled wrongly.",
    ),
    "equal training loss": Protocol(
        equal_loss,
        holds=f"Each network is stopped at the first step after which the loss of all that it is trained on is below "
        f"{LEVEL:g}: what is compared are minima of one depth, whatever the number of steps.",
        share=0.4,
    ),
    "positive control": Protocol(
        known_effect,
        holds="No poison, but clean points that lie on the spirals, or with three times the noise: then points of both "
        "classes lie side by side, and no boundary between them can keep away from either.",
        positive=True,
    ),
}


def measures(of: Setup) -> tuple[Call, ...]:
    """What is measured at a scale, of the 200 clean points alone."""
    noise = call(weight_perturbation, kind="filter", magnitudes=SHARES, draws=of.draws)
    classes = call(decision_map, points=of.points, span=SPAN, frames=WIGGLES, reach=FARTHEST)
    own = (call(input_margins), noise, classes, call(loss_plane, points=of.plane, reach=REACH))
    clean = tuple(call(on_first, measure=measure, samples=TRAIN) for measure in own)
    return (call(performance), call(performance_of_parts, train=TRAIN), *clean)


EXPERIMENT = Experiment(
    paper=HUANG,
    title="Are minima that generalize flat, and their margins wide?",
    summary="Networks are trained on the swiss roll beside more or fewer wrongly labelled points, so that all fit the "
    "clean training points and generalize more or less badly. Of each, the distances from the training points to the "
    "decision boundary are measured, the islands that it leaves, and what noise on the weights, in units of each "
    "filter's norm, does to training loss and accuracy.",
    runs=RUNS,
    seeds={"smoke": 2, "laptop": 12, "paper": 12},
    data=dict.fromkeys(SCALES, "swiss_roll"),
    measures=measures(SCALES["laptop"]),
    measures_at={scale: measures(SCALES[scale]) for scale in ("smoke", "paper")},
    claims=claims,
    figures=draw,
    deviations=(
        "Poison: the paper's code draws fresh poison points every epoch, and doubles their share after 10,936 epochs "
        "up to one a clean point; here they are drawn once, and their number stays.",
        "Levels: five, from none to 0.4 poison points a clean one (β = 0 to 0.286); those of the paper's Figure 6 are "
        "not in its text or code. The claims' poisoned arm has 0.3 (β = 0.231). With the 0.8 of the code's own "
        "poisoned run pilots fitted 98.5 and 99 % of the clean points after 15,000 steps, with 0.4 100 and 99 % after "
        "20,000: more poison makes wider gaps, and fewer networks that fit.",
        "Optimizer: full-batch Adam, as in the code (the text says regular SGD), without its clipping of gradients to "
        "a norm of 8. One learning rate, 0.0057945, for all, where the code has 0.012548 without poison.",
        "Steps: 40,000 at laptop scale (the code's default; its README says 800,000), with cosine decay instead of "
        "tenfold falls at 3,000, 5,961 and 300,000 steps, which the paper scale has.",
        "Outputs: two logits and softmax, where the code has one and a sigmoid.",
        "Margins, islands, the boundary's length and the loss under noise are measured here, with definitions fixed "
        "beforehand; the paper shows pictures. Pictures have 121 by 121 points (301 at paper scale) of the code's "
        "500 by 500.",
        f"Surfaces: 25 by 25 points of [-{REACH:g}, {REACH:g}] filter norms, as contours; range and resolution of the "
        "paper's are unknown, its code has lines alone.",
        f"Animation: perturbations up to {FARTHEST:g} filter norms in one picture, where the paper's film has 101, "
        "up to 0.25, at which poisoned networks of the pilots classify half of the points rightly: chance; "
        "`write_boundaries` makes the film of any stored network.",
        "Test set: 2,000 points, where the code has 200.",
        "Seeds: 12, each with its own points, poison and initialisation; the paper's share their data.",
    ),
    varied=("initialisation", "training points", "poison points", "test points"),
    fixed=("the perturbations and planes", "the order of the batches (there is one)"),
)
