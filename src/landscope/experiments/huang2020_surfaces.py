"""Are minima that generalize flat in a network of images? Huang et al. 2020, Figures 4 and 7, for a ResNet."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch.optim import SGD
from torch.optim.lr_scheduler import MultiStepLR

from landscope.experiments._data import check_classes
from landscope.experiments._huang2020 import HUANG, fixed_norms, poisoned_images, surfaces
from landscope.figures import Axis, Figure, Panel, Series, curves, horizontal
from landscope.measures.maps import loss_plane, loss_rays
from landscope.measures.parts import on_first, performance_of_parts
from landscope.measures.sharpness import weight_perturbation
from landscope.measures.volume import basin_volume
from landscope.models import resnet
from landscope.regularizers import poisoned_cross_entropy
from landscope.spec import Call, Claim, Experiment, Protocol, Published, Recipe, call
from landscope.stats import Units, difference, log_ratio
from landscope.train import loss_below
from landscope.types import Table

CUTOFF = 0.1  # the paper's, in nats
FITS = 0.995  # least training accuracy of a pair that counts; the paper's both have 100 %
NEARLY, LEVEL = 0.08, 0.01  # training losses of the positive control, and of the control of equal losses
SHARES = (0.05, 0.1, 0.25, 0.5)  # of each filter's norm
JUDGED = 2  # the one of them that the claims are about
RATIO = math.log(10) * 10_000 / 268_336  # ln of the ratio of radii that is 10,000 orders of magnitude for SVHN
WHOLE = 10**9  # samples: all that a set has


@dataclass(frozen=True)
class Setup:
    """What is trained and measured at one scale; everything is fixed here, before any run.

    Args:
        model: The network.
        clean: Training samples.
        poison: Poison samples beside them.
        test: Test samples; None for the set's own.
        batch: Samples in a batch.
        steps: Of every run.
        every: Steps between looks at the training loss, where that stops a run.
        plane: Points of a surface, along each direction.
        rays: Rays of Figure 7, and of the basin's radius.
        draws: Perturbations of one size.
        samples: Training samples that basins are measured on.
    """

    model: Call
    clean: int
    poison: int
    test: int | None
    batch: int
    steps: int
    every: int
    plane: int
    rays: int
    draws: int
    samples: int


def _network(depth: int, channels: int) -> Call:
    return call(resnet, depth=depth, channels=channels, order="pre", shortcut="pool")


# The poison's share is the code's, 89 samples of a batch of 256. At a scale all data have one number of clean samples.
SMOKE = Setup(_network(8, 2), 60, 32, 60, 32, 12, 4, plane=3, rays=2, draws=2, samples=20)
DIGITS = Setup(_network(8, 8), 200, 108, 600, 32, 1_000, 10, plane=13, rays=10, draws=10, samples=100)
IMAGES = replace(DIGITS, model=_network(8, 4), test=1_000, steps=600)
PAPER = Setup(_network(20, 16), 32_600, 17_400, None, 256, 73_216, 286, plane=51, rays=100, draws=20, samples=4_096)


def setup(scale: str, data: Any) -> Setup:
    """What is trained at a scale on a data set.

    Raises:
        ValueError: for data without classes, with too few samples, or, at the paper's scale, without images.
    """
    check_classes(data)
    if scale == "paper" and len(data.shape) != 3:
        raise ValueError(f"the paper's network is convolutional, and {data.name} holds no images: give svhn")
    of = {"smoke": SMOKE, "laptop": IMAGES if len(data.shape) == 3 else DIGITS, "paper": PAPER}[scale]
    if of.clean + of.poison > data.n_train:
        raise ValueError(
            f"{of.clean + of.poison:,} training samples are needed, clean and poison, and {data.name} has "
            f"{data.n_train:,}: give a larger set"
        )
    return of


# --- runs -----------------------------------------------------------------------------------------------------------


def _run(of: Setup, data: Any, poisoned: bool, seed: int) -> Recipe:
    sizes = {"train": of.clean + of.poison, "valid": 0} | ({} if of.test is None else {"test": of.test})
    poison = of.poison if poisoned else 0
    falls = tuple(round(share * of.steps) for share in (0.4, 0.6, 0.8))  # epochs 102.4, 153.6 and 204.8 of 256
    return Recipe(
        data=call(poisoned_images, source=data.draw(**sizes), clean=of.clean, poison=poison),
        model=of.model,
        loss=call(poisoned_cross_entropy, share=poison / (of.clean + poison)),
        optimizer=call(SGD, lr=0.1, momentum=0.9),
        schedule=call(MultiStepLR, milestones=falls, gamma=0.1),
        steps=of.steps,
        batch_size=of.batch,
        seed=seed,
    )


def published(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """A network without poison and one with, from one initialisation, for the same number of steps."""
    of = setup(scale, data)
    return [_run(of, data, poisoned, seed) for seed in seeds for poisoned in (False, True)]


def equal_loss(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """Both until the loss of all that they are trained on is below one level, at a constant learning rate."""
    stop = call(loss_below, level=LEVEL, every=setup(scale, data).every)
    return [replace(run, stop=stop, schedule=None) for run in published(scale, data, seeds)]


def equal_norm(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """Both with every filter held at one norm."""
    return [replace(run, constraint=call(fixed_norms)) for run in published(scale, data, seeds)]


def known_effect(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """Without poison, stopped just below the cutoff and well below it."""
    of = setup(scale, data)
    stops = [call(loss_below, level=level, every=1) for level in (NEARLY, LEVEL)]
    return [replace(_run(of, data, False, seed), stop=stop, schedule=None) for seed in seeds for stop in stops]


# --- claims ---------------------------------------------------------------------------------------------------------


def radius_ratio(table: Table, /, *, over: str, first: float, second: float, least: float = FITS) -> Units:
    """E[ln t] of one arm less that of the other, paired by seed; t is the radius in units of the filters' norms.

    Only pairs count of which both classify at least so many clean training samples rightly and lie below the cutoff;
    the others are left out and said.

    Args:
        table: One protocol's results.
        over: The column that tells the arms apart.
        first: Its value in the one arm.
        second: In the other.
        least: The least share of the clean training samples.
    """
    rows = []
    for row in table.rows():
        value, fits = None, 0
        if row.get("filter_mean_log_volume") is not None:
            open_ = math.isfinite(row["filter_mean_log_volume"][0])
            fits = int(open_ and row["first_train_accuracy"] >= least)
            value = _mean_log_radius(row) if open_ else 0.0  # which nothing may use
        rows.append(row | {"value": value, "fits": fits})
    named = Table.of(rows)
    return difference(named, value="value", over=over, first=first, second=second, worst="max", given=(("fits", 1),))


def _mean_log_radius(row: dict[str, Any]) -> float:
    """E[ln t] from n E[ln t] + ln|det P| + ln ω_n."""
    n = row["filter_coordinates"]
    ball = n / 2 * math.log(math.pi) - math.lgamma(n / 2 + 1)
    return float((row["filter_mean_log_volume"][0] - row["filter_log_det"] - ball) / n)


def claims(scale: str, data: Any) -> list[Claim]:
    """What the paper says of its Figures 4 and 7, and what this instrument must see."""
    of = setup(scale, data)
    arms: dict[str, Any] = {"over": "data.poison", "first": of.poison, "second": 0}
    fits: dict[str, Any] = {"given": (("first_train_accuracy", FITS),)}
    ratio: dict[str, Any] = {"over": "data.poison", "numerator": of.poison, "denominator": 0, **fits}
    quarter = f"noise of {SHARES[JUDGED]:.0%} of each filter's norm"
    return [
        Claim(
            f"The training loss rises more around a poisoned minimum, under {quarter}",
            call(log_ratio, value="filter_loss_increase", index=JUDGED, worst="min", **ratio),
            expect="greater",
            smallest=math.log(1.5),
            reason="less than half as much again is not 'much sharper'",
            unit="ratio",
            expectation="Supported: 'the good minimizer is flat, while the bad minimizer is much sharper'.",
        ),
        Claim(
            f"The basin below {CUTOFF:g} nats around a poisoned minimum is narrower, in units of each filter's norm",
            call(radius_ratio, **arms),
            expect="less",
            smallest=-RATIO,
            reason="10,000 orders of magnitude in the paper's 268,336 dimensions are a ratio of radii of 1.09",
            unit="ratio",
            paper=Published(-RATIO, 4, "at least 10,000 orders of magnitude in n = 268,336, over 4 runs (section 5)"),
            expectation="Supported.",
        ),
        Claim(
            f"A minimum without poison keeps more of its training accuracy, under {quarter}",
            call(
                difference, value="filter_accuracy", index=JUDGED, worst="min", over="data.poison", first=0,
                second=of.poison, **fits,
            ),
            expect="greater",
            smallest=0.02,
            reason="flat minima 'have training accuracy that remains nearly constant': two points are nearly none",
            unit="points",
            expectation="Supported.",
        ),
        *_besides(of, fits),
    ]  # fmt: skip


def _besides(of: Setup, fits: dict[str, Any]) -> list[Claim]:
    """What decides nothing, and what is known."""
    return [
        Claim(
            "A minimum without poison tests better",
            call(difference, value="first_test_accuracy", worst="min", over="data.poison", first=0, second=of.poison,
                 **fits),
            expect="greater",
            unit="points",
            primary=False,
            paper=Published(0.971 - 0.282, 1, "97.1 % and 28.2 %, both at 100 % of the training set"),
            expectation="Supported, and by less: the poison is a third of a small set here, not of half a million.",
        ),
        Claim(
            f"A basin is narrower where the loss at its centre is just below the cutoff ({NEARLY:g} against {LEVEL:g})",
            call(radius_ratio, over="stop.level", first=NEARLY, second=LEVEL, least=0.0),
            expect="less",
            unit="ratio",
            positive=True,
        ),
    ]  # fmt: skip


# --- figures --------------------------------------------------------------------------------------------------------


def draw(results: Table, histories: Table) -> list[Figure]:
    """Figures 4 and 7 of one seed, and noise on the weights of all."""
    rows = [row for row in results.rows() if row["status"] == "done" and row.get("rays_train_loss") is not None]
    found: list[Figure] = []
    for protocol in (name for name in RUNS if not RUNS[name].positive):
        own = [row for row in rows if row["protocol"] == protocol]
        first = min((row["seed"] for row in own), default=0)
        pair = sorted((row for row in own if row["seed"] == first), key=lambda row: row["data.poison"])
        if pair:
            ending = "" if protocol == "published" else f"-{protocol.replace(' ', '-')}"
            named = [(_named(row), row) for row in pair]
            drawn = surfaces(named, f"surfaces{ending}"), _rays(named, f"rays{ending}")
            found += [replace(figure, title=f"{figure.title}: {protocol}") for figure in drawn if figure is not None]
    last = _noise(rows)
    return found if last is None else [*found, last]


def _named(row: dict[str, Any]) -> str:
    kind = "poisoned" if row["data.poison"] else "not poisoned"
    return f"{kind}, tests at {row['first_test_accuracy']:.1%}"


def _rays(named: Sequence[tuple[str, dict[str, Any]]], name: str) -> Figure:
    """Figure 7: the loss along rays, and the basin below the cutoff."""
    panels, said = [], []
    for slot, (title, row) in enumerate(named):
        at = np.array(row["rays_distances"])
        losses = np.array(row["rays_train_loss"]).reshape(-1, len(at))
        lines = curves("loss on a ray", at, losses, slot, log=True, names=range(len(losses)))
        cutoff = horizontal(f"{CUTOFF:g} nats", CUTOFF, (0.0, float(at[-1])))
        x, y = Axis("distance (filter norms)"), Axis("training loss (nats)", log=True)
        panels.append(Panel(title, x, y, (*lines, cutoff)))
        above = losses >= CUTOFF
        crossed = np.where(above.any(1), at[above.argmax(1)], np.inf)
        middle = np.median(crossed)
        where = f"by {middle:.3g} filter norms" if np.isfinite(middle) else f"not within {at[-1]:.3g} filter norms"
        said.append(f"{title}: half of {len(losses)} rays reach {CUTOFF:g} nats {where}")
    finding = f"Training loss along random rays from seed {named[0][1]['seed']}'s networks. {'; '.join(said)}."
    note = "The same rays for both networks, each filter's part with the filter's norm; BatchNorm's statistics stay."
    return Figure(name, "Loss along random rays", finding, tuple(panels), note)


def _noise(rows: Sequence[dict[str, Any]]) -> Figure | None:
    """Training accuracy over the size of the noise, of both arms, in every protocol."""
    panels, said = [], []
    for protocol in (name for name in RUNS if not RUNS[name].positive):
        series: list[Series] = []
        own = [row for row in rows if row["protocol"] == protocol]
        for slot, poison in enumerate(sorted({row["data.poison"] for row in own})):
            arm = [row for row in own if row["data.poison"] == poison]
            kept = [[100 * score for score in row["filter_accuracy"]] for row in arm]
            name = "poisoned" if poison else "not poisoned"
            names = [row["seed"] for row in arm]
            series += curves(name, arm[0]["filter_magnitudes"], kept, slot, names=names)
            mean = np.mean([row[JUDGED] for row in kept])
            said.append(f"{protocol}, {name}: {mean:.1f} % at {SHARES[JUDGED]:.0%}")
        if series:
            size = Axis("noise (share of each filter's norm)", log=True)
            panels.append(Panel(protocol, size, Axis("training accuracy (%)"), tuple(series)))
    if not panels:
        return None
    finding = f"Training accuracy under noise on the weights, means over seeds. {'; '.join(said)}."
    note = "Each network's mean over the same random directions; bands are 95 % Student t intervals over seeds."
    return Figure("noise", "What noise leaves of the training accuracy", finding, tuple(panels), note)


RUNS = {
    "published": Protocol(
        published,
        holds="Both networks begin alike and are trained for the same number of steps with the same settings on the "
        "same clean samples; one is also trained to be wrong on the poison samples.",
    ),
    "equal training loss": Protocol(
        equal_loss,
        holds=f"Both are stopped when the loss of all that they are trained on is first below {LEVEL:g}, at a constant "
        "learning rate: what is compared are minima of one depth, whatever the number of steps.",
        share=0.4,
    ),
    "equal weight norm": Protocol(
        equal_norm,
        holds="As published, but after every step each filter is rescaled to the norm 1 and each row of the last layer "
        "to 4: the two networks' weights have the same norms, filter by filter.",
    ),
    "positive control": Protocol(
        known_effect,
        holds=f"One network without poison, stopped at a training loss of {NEARLY:g} and at {LEVEL:g}: around the "
        f"first the cutoff of {CUTOFF:g} is near, so that its basin must be narrower.",
        share=0.2,
        positive=True,
    ),
}


def measures(of: Setup) -> tuple[Call, ...]:
    """What is measured at a scale, of the clean training samples alone."""
    basin = call(
        basin_volume, preconditioner="filter", cutoffs=(CUTOFF,), absolute=True, rays=of.rays, samples=of.samples
    )
    noise = call(weight_perturbation, kind="filter", magnitudes=SHARES, draws=of.draws)
    own = (noise, call(loss_plane, points=of.plane), call(loss_rays, rays=of.rays))
    clean = tuple(call(on_first, measure=measure, samples=of.clean) for measure in own)
    return (call(performance_of_parts, train=of.clean, test=WHOLE), basin, *clean)


EXPERIMENT = Experiment(
    paper=HUANG,
    title="Are minima that generalize flat in a network of images?",
    summary="A residual network is trained on clean images, and again on the same images beside poison ones, on which "
    "it learns to be wrong: both fit the clean images, and one tests badly. Around each the training loss is taken on "
    "a random plane, on random rays to where it reaches 0.1 nats, and under noise, all in units of each filter's norm.",
    runs=RUNS,
    seeds={"smoke": 2, "laptop": 8, "paper": 8},
    data={"smoke": "digits", "laptop": "digits", "paper": "svhn"},
    measures=measures(DIGITS),
    measures_at={"smoke": measures(SMOKE), "paper": measures(PAPER)},
    claims=claims,
    figures=draw,
    deviations=(
        "Data: at paper scale 50,000 of SVHN's training images, 32,600 of them clean and 17,400 poison, because a data "
        "set here has one training split; the paper takes all 73,257 as clean and 531,131 'extra' ones as poison.",
        "Laptop scale: a residual network of 8 layers and 8 to 32 maps on 200 of scikit-learn's digits beside 108 "
        "poison ones, 1,000 steps of batches of 32 (images from --data: 4 to 16 maps, 600 steps); the paper's has 20 "
        "layers and 16 to 64 maps, 256 epochs, batches of 256.",
        "Network: ReLU instead of leaky ReLU with slope 0.1; else the code's 269,722 parameters at paper scale, which "
        "are those of 20 layers, not of ResNet-18.",
        "Batches: poison samples are drawn along with the clean ones, a share of 0.35 on average; the code puts 89 "
        "into each batch of 256. The network without poison has the clean samples alone.",
        "Learning rate: 0.1 from the first step on; the code's first step has 0.",
        "Noise: the paper shows surfaces; the loss's rise and the accuracy kept under noise of a quarter of each "
        "filter's norm are our numbers for them, and the radius is bisected to 1e-7, where the code has 12 points on "
        "a ray.",
        "Basins: of the first 100 clean samples (4,096 at paper scale), where the code takes all; 10 rays (100), where "
        "it has 3,000.",
        "Surfaces: 13 by 13 points of [-1, 1] filter norms (51 by 51 at paper scale), as contours; range and "
        "resolution of the paper's are unknown, its code has rays alone.",
        "Seeds: 8, each with its own samples, initialisation and order; the paper's two networks are one pair.",
    ),
    varied=("initialisation", "order of the batches", "training, poison and test samples"),
    fixed=("the planes, rays and noise",),
)
