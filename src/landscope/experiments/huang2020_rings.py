"""Is a boundary without margin found where it is the simple one? Huang et al. 2020, Figure 8: concentric rings."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch.optim import SGD, Adam

from landscope.data import rings
from landscope.experiments._huang2020 import HUANG, check_set, resumed
from landscope.figures import REFERENCE, Axis, Figure, Panel, Series
from landscope.losses import cross_entropy
from landscope.measures.boundary import SLACK, circular_boundary, input_margins
from landscope.measures.outcomes import performance
from landscope.measures.volume import basin_volume
from landscope.models import mlp
from landscope.spec import Call, Claim, Experiment, Protocol, Published, Recipe, at, call
from landscope.stats import Units
from landscope.types import Table

PINCHED, WIDE = 0.001, 0.4  # gaps; the paper does not say that of its wide rings
POINTS, DENSE = 130, 1_300  # of the published rings, and of those that a circle is taught with
SELDOM = 0.25  # a share of seeds below which a boundary counts as not found
CUTOFF = 0.1


@dataclass(frozen=True)
class Setup:
    """What is trained and measured at one scale; everything is fixed here, before any run.

    Args:
        widths: Of the hidden layers.
        steps: Of every run, full batches of 130.
        gaps: By which a circle is taught on dense rings, one after another, down to the pinched one.
        stage: Steps of each of these.
        last: Steps on the published points thereafter.
        rays: Directions of a volume.
    """

    widths: tuple[int, ...]
    steps: int
    gaps: tuple[float, ...]
    stage: int
    last: int
    rays: int


GAPS = (0.1, 0.03, 0.01, 0.003, PINCHED)
SCALES = {
    "smoke": Setup((16, 16), 60, (0.1, PINCHED), 30, 10, 10),
    "laptop": Setup((100,) * 9, 10_000, GAPS, 2_000, 500, 200),
    "paper": Setup((100,) * 9, 10_000, GAPS, 10_000, 500, 3_000),
}

# --- runs -----------------------------------------------------------------------------------------------------------

ADAM = call(Adam, lr=1e-3)


def _run(of: Setup, gap: float, seed: int, optimizer: Call = ADAM) -> Recipe:
    return Recipe(
        data=call(rings, gap=gap, train=POINTS),
        model=call(mlp, widths=of.widths),
        loss=call(cross_entropy),
        optimizer=optimizer,
        steps=of.steps,
        batch_size=POINTS,
        seed=seed,
    )


def _circle(of: Setup, seed: int) -> Recipe:
    """A network led to the circle: on ever narrower dense rings, at last on the published points."""
    stage: Recipe | None = None
    for gap in of.gaps:
        dense = replace(_run(of, gap, seed), data=call(rings, gap=gap, train=DENSE), steps=of.stage)
        stage = dense if stage is None else replace(dense, start=call(resumed, source=at(stage, "end")))
    last = replace(_run(of, PINCHED, seed), steps=of.last)
    return last if stage is None else replace(last, start=call(resumed, source=at(stage, "end")))


def published(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """The pinched rings: what training finds, and a circle that it is led to."""
    check_set(data, "rings")
    of = SCALES[scale]
    return [recipe for seed in seeds for recipe in (_run(of, PINCHED, seed), _circle(of, seed))]


def in_words(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """The pinched rings by SGD, as the text says."""
    check_set(data, "rings")
    return [_run(SCALES[scale], PINCHED, seed, call(SGD, lr=0.01, momentum=0.9)) for seed in seeds]


def wide(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """The rings with a wide gap, where the circle has a margin."""
    check_set(data, "rings")
    return [_run(SCALES[scale], WIDE, seed) for seed in seeds]


# --- statistics -----------------------------------------------------------------------------------------------------


def _found(table: Table, taught: bool = False) -> dict[Any, dict[str, Any]]:
    """By seed, the run that began anew, or the one that was led to the circle."""
    return {row["seed"]: row for row in table.rows() if (row.get("start") is not None) == taught}


def _fits(row: dict[str, Any]) -> bool:
    return row["status"] == "done" and row["train_accuracy"] == 1.0


def _units(rows: dict[Any, dict[str, Any]], values: dict[Any, float], **more: Any) -> Units:
    left = len(rows) - len(values)
    note = f"{left} of {len(rows)} networks do not fit all training points, and are left out" if left else ""
    seeds = sorted(values)
    array = np.array([values[seed] for seed in seeds])
    return Units(tuple(seeds), array, note=note, arms=1, found=len(rows), **more)


def circular_share(table: Table, /) -> Units:
    """Whether the boundary that each network found is circular, 1 or 0 (`circular_boundary`).

    Networks that do not fit all training points found no boundary, and are left out and counted.

    Args:
        table: One protocol's results.
    """
    rows = _found(table)
    return _units(rows, {s: row["circular"] for s, row in rows.items() if _fits(row)}, bounds=(0.0, 1.0))


def margin_over_circle(table: Table, /) -> Units:
    """The median margin of class 0, the more numerous inner ring, over half the gap, as ln.

    No circle in the gap leaves any of its points, and the pinched ones beside it, more than half the gap on average.

    Args:
        table: One protocol's results.
    """
    rows = _found(table)
    fit = {s: row for s, row in rows.items() if _fits(row)}
    return _units(rows, {s: math.log(row["margin_median_class_0"] / (row["data.gap"] / 2)) for s, row in fit.items()})


def taught_less_found(table: Table, /, *, value: str) -> Units:
    """The network that was led to a circle less the one of the same seed that was not; of networks that both fit.

    Args:
        table: One protocol's results.
        value: ``"radius"``: E[ln r] of the basin; ``"margin"``: ln of the median margin of class 0.
    """
    found, taught = _found(table), _found(table, taught=True)
    pairs = {s: (taught[s], found[s]) for s in found if s in taught and _fits(found[s]) and _fits(taught[s])}

    def number(row: dict[str, Any]) -> float:
        if value == "margin":
            return math.log(row["margin_median_class_0"])
        return float(row["identity_mean_log_radius"][0])

    return _units(found, {s: number(one) - number(other) for s, (one, other) in pairs.items()})


# --- claims ---------------------------------------------------------------------------------------------------------


def claims(scale: str, data: Any) -> list[Claim]:
    """What the paper says of its Figure 8."""
    check_set(data, "rings")
    described: dict[str, Any] = {"expect": "less", "unit": "ratio", "primary": False}
    return [
        Claim(
            "Where the gap is pinched, the circular boundary is not found",
            call(circular_share),
            expect="at_most",
            null=SELDOM,
            margin=SELDOM,
            reason="a boundary that fewer than one network in four comes to is not what training finds",
            unit="points",
            paper=Published(0.0, 2, "Figures 8b and 8c: two networks of random seeds, neither with a circle"),
            expectation="Supported.",
        ),
        Claim(
            "Where the gap is pinched, the boundary keeps away from the many points of the inner ring",
            call(margin_over_circle),
            expect="greater",
            smallest=math.log(10),
            reason="a boundary ten times as far away as the circle's is one that 'cherry-picks' the few points beyond",
            unit="ratio",
            expectation="Supported: peninsulas to the ten pinched points, and wide margins elsewhere.",
        ),
        Claim(
            "A network led to the circle lies in a narrower basin than what training finds",
            call(taught_less_found, value="radius"),
            expectation="Supported, if a network can be led to it at all.",
            **described,
        ),
        Claim(
            "A network led to the circle has a smaller margin at the inner ring than what training finds",
            call(taught_less_found, value="margin"),
            expectation="Supported, if a network can be led to it at all.",
            **described,
        ),
        Claim(
            "Where the gap is wide, the circular boundary is found by most networks",
            call(circular_share),
            expect="at_least",
            null=0.5,
            unit="points",
            positive=True,
        ),
    ]


# --- figures --------------------------------------------------------------------------------------------------------

ARMS = (
    ("published", False, "pinched", 0),
    ("as the text says", False, "pinched, SGD", 3),
    ("published", True, "led to the circle", 1),
    ("positive control", False, "wide gap", 2),
)


def draw(results: Table, histories: Table) -> list[Figure]:
    """How far every boundary is from a circle, and margins beside the radius of the basin."""
    arms = []
    for protocol, taught, name, slot in ARMS:
        own = Table.of(row for row in results.rows() if row["protocol"] == protocol)
        rows = [row for row in _found(own, taught).values() if len(own) and _fits(row)]
        if rows:
            arms.append((name, slot, rows))
    if not arms:
        return []
    return [figure for figure in (_circles(arms), _margins(arms)) if figure is not None]


def _circles(arms: Sequence[tuple[str, int, list[dict[str, Any]]]]) -> Figure:
    series, said = [], []
    for name, slot, rows in arms:
        inner, outer = (np.array([row[f"{end}_radius"] for row in rows]) for end in ("inner", "outer"))
        hover = tuple(f"seed {row['seed']}, run {row['run']}" for row in rows)
        series.append(Series(name, inner, outer, mode="points", slot=slot, hover=hover))
        said.append(f"{name}: {sum(row['circular'] for row in rows):.0f} of {len(rows)} circular")
    ends = np.array([0.3, 0.95])
    series.append(Series("perfect circles", ends, ends, slot=REFERENCE))
    axes = Axis("radius within which all is class 0"), Axis("radius outside which all is class 1")
    note = (
        f"On 200 angles. Circular: inside at least 0.4 - {SLACK:g}, outside at most 0.4 + gap + {SLACK:g}. "
        "Networks that do not fit all training points are left out."
    )
    finding = f"Boundaries of networks that fit all training points. {'; '.join(said)}."
    panel = Panel("rings", *axes, tuple(series))
    return Figure("circles", "How far boundaries are from circles", finding, (panel,), note)


def _margins(arms: Sequence[tuple[str, int, list[dict[str, Any]]]]) -> Figure | None:
    series, said = [], []
    for name, slot, rows in arms:
        there = [row for row in rows if math.isfinite(row["identity_radius_mean"][0])]
        margin = np.array([row["margin_median_class_0"] for row in there])
        radius = np.array([row["identity_radius_mean"][0] for row in there])
        if len(there):
            series.append(Series(name, np.where(margin > 0, margin, np.nan), radius, mode="points", slot=slot))
            said.append(f"{name}: {np.median(margin):.3g} and {np.median(radius):.3g}")
    axes = Axis("median margin of class 0 (input space)", log=True), Axis("mean radius of the basin", log=True)
    if not series:
        return None
    finding = f"Median margin and radius of the basin below {CUTOFF:g} nats. {'; '.join(said)}."
    panel = Panel("rings", *axes, tuple(series))
    return Figure("margins", "Margins and basins", finding, (panel,), "Each point is one network.")


RUNS = {
    "published": Protocol(
        published,
        holds="Every network sees the same 130 points for as many steps. Beside it stands one that is led to the "
        "circle, over ever narrower rings of ten times as many points, before it is trained on those 130.",
    ),
    "as the text says": Protocol(
        in_words,
        holds="The same 130 points, network and number of steps, but SGD with momentum (0.01, 0.9) instead of Adam.",
    ),
    "positive control": Protocol(
        wide,
        holds=f"As published, but with a gap of {WIDE:g} between the inner rings: the circle has a margin, and the "
        "same test of circles must find it.",
        positive=True,
    ),
}


def measures(of: Setup) -> tuple[Call, ...]:
    """What is measured at a scale."""
    volume = call(basin_volume, cutoffs=(CUTOFF,), absolute=True, rays=of.rays)
    return call(performance), call(circular_boundary), call(input_margins), volume


EXPERIMENT = Experiment(
    paper=HUANG,
    title="Is a boundary without margin found where it is the simple one?",
    summary="Of two concentric rings the outer has ten points that come within 0.001 of the inner. A circle between "
    "them has next to no margin. What training finds is compared with a circle, by a definition fixed beforehand, and "
    "with a network that is led to the circle.",
    runs=RUNS,
    seeds={"smoke": 2, "laptop": 10, "paper": 10},
    data=dict.fromkeys(SCALES, "rings"),
    measures=measures(SCALES["laptop"]),
    measures_at={scale: measures(SCALES[scale]) for scale in ("smoke", "paper")},
    claims=claims,
    figures=draw,
    deviations=(
        "Circular is defined here, beforehand: on 200 angles, all points within some radius are of one class and all "
        f"outside of the other, up to a slack of {SLACK:g} beyond the gap. The paper shows pictures.",
        f"The wide gap: {WIDE:g}; the paper does not say that of its Figure 8a.",
        "Seeds: 10, each another initialisation; the paper shows three networks.",
        "Optimizer: full-batch Adam at 0.001 for 10,000 steps, as in the code; the text says SGD, which is the second "
        "protocol.",
        "The circle: a network led to it over dense rings whose gap is narrowed in five stages; the paper has none.",
        "Margins, volumes and the share of circles are not in the paper.",
    ),
    varied=("initialisation",),
    fixed=("the points: nothing about them is random", "the rays"),
)
