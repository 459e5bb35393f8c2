"""Do sharper networks test worse, over a grid of batch sizes and learning rates? Johannsen 2026, exp. 2 and 3."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from landscope.experiments._johannsen2026 import JOHANNSEN, check_batches, chosen, training_samples
from landscope.figures import Axis, Figure, Panel, Series, mean_interval
from landscope.losses import cross_entropy
from landscope.measures.noise import gradient_noise
from landscope.measures.outcomes import performance
from landscope.measures.sharpness import weight_perturbation
from landscope.measures.spectrum import hessian_spectrum, relative_spectrum
from landscope.models import cnn, cnn1d, mlp
from landscope.spec import Call, Claim, Experiment, Protocol, Published, Recipe, call, first_below, step_name
from landscope.stats import configuration_correlation
from landscope.train import loss_below
from landscope.types import Table

LEVELS = (0.1, 0.01, 0.001)  # nats of full training loss; the verdict is at the middle one
SHARE = 0.1  # of each filter's norm: the size of the weight noise
RATES = (0.01, 0.02, 0.04)  # the paper's for batches of 128, 256 and 512


@dataclass(frozen=True)
class Grid:
    """What is trained at one scale on one data set; everything is fixed here, before any run.

    Args:
        networks: Each with its learning rates, which go with every batch size.
        data: Sizes of the sets drawn.
        sizes: Batch sizes.
        epochs: Of the published protocol.
        limit: Steps after which the control with equal loss gives up.
        every: Steps between looks at the training loss in that control.
        stops: Levels of the training loss, in nats, at which the positive control's networks end.
    """

    networks: tuple[tuple[Call, tuple[float, ...]], ...]
    data: dict[str, Any]
    sizes: tuple[int, ...]
    epochs: int
    limit: int
    every: int
    stops: tuple[float, ...] = (0.1, 0.03, 0.01, 0.003)

    @property
    def configurations(self) -> list[tuple[Call, int, float]]:
        """Network, batch size and learning rate of each."""
        return [(model, size, rate) for model, rates in self.networks for size in self.sizes for rate in rates]

    @property
    def by(self) -> tuple[str, ...]:
        """The columns that tell configurations apart."""
        settings = {f"model.{name}" for model, _ in self.networks for name, _ in model.kwargs if name in SIZES}
        return ("model", *sorted(settings), "batch_size", "optimizer.lr")


SIZES = ("widths", "channels")
MLP = (call(mlp, widths=(32, 32, 32)), RATES)
DIGITS = Grid(
    (MLP, (call(mlp, widths=(64, 64, 64)), RATES)), {"train": 1197, "valid": 0, "test": 600}, (16, 64, 256),
    epochs=40, limit=20_000, every=10,
)  # fmt: skip
SIGNALS = Grid(
    (MLP, (call(cnn1d, channels=25), RATES)), {"train": 1_000, "valid": 0, "test": 2_000}, (16, 64, 256),
    epochs=40, limit=20_000, every=10,
)  # fmt: skip
# A Hessian product through the convolutional network takes a hundred times as long as through the MLP.
IMAGES = Grid(
    (MLP, (call(cnn, channels=2, hidden=32), RATES[::2])), {"train": 300, "valid": 0, "test": 2_000}, (16, 64, 256),
    epochs=40, limit=20_000, every=10,
)  # fmt: skip
# Without a size, the test set is the whole one in its own order, the same for all seeds.
WIDE_RATES = (0.005, 0.01, 0.04, 0.08)
PAPER = Grid(
    ((call(mlp, widths=(512, 512, 512)), WIDE_RATES), (call(cnn, channels=32), WIDE_RATES)),
    {"train": 50_000, "valid": 0}, (32, 128, 512, 1024), epochs=80, limit=250_000, every=50,
)  # fmt: skip
SMOKE = Grid(
    ((call(mlp, widths=(16,)), (0.05, 0.1)),), {"train": 256, "valid": 0, "test": 128}, (16, 64),
    epochs=4, limit=1_500, every=5, stops=(0.3, 0.1),
)  # fmt: skip


def grid(scale: str, data: Any) -> Grid:
    """The grid for a scale and data set.

    Raises:
        ValueError: for data that this experiment cannot use: without classes, images at the paper's scale, or enough
            samples for its batches.
    """
    of = chosen(
        scale,
        data,
        paper=PAPER,
        smoke=SMOKE,
        grey=IMAGES,
        colour=IMAGES,
        other={"digits": DIGITS, "mnist1d": SIGNALS}.get(data.name) or replace(DIGITS, data={}),
    )
    check_batches(of.sizes, training_samples(data, of.data), data.name)
    return of


# --- runs -----------------------------------------------------------------------------------------------------------


def _recipe(of: Grid, data: Any, seed: int, model: Call, size: int, rate: float, steps: int, **others: Any) -> Recipe:
    return Recipe(
        data=data.draw(**of.data),
        model=model,
        loss=call(cross_entropy),
        optimizer=call(SGD, lr=rate, momentum=0.9),
        steps=steps,
        batch_size=size,
        seed=seed,
        **others,
    )


def published(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """Every configuration for equal epochs, cosine decay to 0."""
    of, runs = grid(scale, data), []
    samples = training_samples(data, of.data)
    for seed in seeds:
        for model, size, rate in of.configurations:
            steps = of.epochs * -(-samples // size)
            schedule = call(CosineAnnealingLR, T_max=steps)
            runs.append(_recipe(of, data, seed, model, size, rate, steps, schedule=schedule))
    return runs


def equal_loss(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """Every configuration at a constant learning rate, until the full training loss is below the lowest level."""
    of = grid(scale, data)
    stop = call(loss_below, level=LEVELS[-1], every=of.every)
    return [_recipe(of, data, seed, *each, of.limit, stop=stop) for seed in seeds for each in of.configurations]


def known_effect(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """One network and learning rate with every batch size, stopped at four levels of the training loss."""
    of, runs = grid(scale, data), []
    model, rates = of.networks[0]
    for seed in seeds:
        for size in of.sizes:
            for level in of.stops:
                stop = call(loss_below, level=level, every=of.every)
                runs.append(_recipe(of, data, seed, model, size, rates[1], of.limit, stop=stop))
    return runs


# --- claims ---------------------------------------------------------------------------------------------------------

# By measure: what it is, its column, which element, whether it is judged.
SHARPNESS: tuple[tuple[str, str, int | None, bool], ...] = (
    ("top Hessian eigenvalue", "largest_eigenvalues", 0, True),
    ("trace of the Hessian", "hessian_trace", None, True),
    ("trace of the Hessian relative to each filter", "filter_trace", None, True),
    (f"loss added by noise of {SHARE:.0%} of each filter's norm", "filter_loss_increase", 0, True),
    ("Tr(H²)", "hessian_trace_squared", None, False),
    ("effective rank of the Hessian", "hessian_effective_rank", None, False),
    ("top Hessian eigenvalue relative to each filter", "filter_top_eigenvalue", None, False),
    ("trace of the gradients' covariance", "gradient_variance", None, False),
    ("gradient noise scale", "gradient_noise_scale", None, False),
)


def claims(scale: str, data: Any) -> list[Claim]:
    """What the paper says of flat minima, for every measure of sharpness."""
    of = grid(scale, data)
    paper = Published(-1.0, 1, "τ of two networks, seed 42: λ of 0.193 and 2.238 at 85.78 % and 84.17 %")
    correlation: dict[str, Any] = {"by": of.by, "block": "model"}
    judged: dict[str, Any] = {
        "smallest": -0.2,
        "reason": "at τ = −0.2 the claimed order holds for no more than 60 % of the pairs of configurations",
    }
    return [
        *(
            Claim(
                f"Sharper configurations test worse ({what})",
                call(configuration_correlation, x=column, index=index, y="test_accuracy", **correlation),
                expect="less",
                unit="tau",
                primary=primary,
                paper=paper if column == "largest_eigenvalues" else None,
                expectation="Supported as published, where sharpness tells how far a network was trained; unclear at "
                "equal training loss.",
                **(judged if primary else {}),
            )
            for what, column, index, primary in SHARPNESS
        ),
        Claim(
            "Configurations stopped at a higher training loss are sharper (top Hessian eigenvalue)",
            call(
                configuration_correlation,
                x="largest_eigenvalues",
                index=0,
                y="train_loss",
                by=("batch_size", "stop.level"),
            ),
            expect="greater",
            smallest=0.2,
            reason="at τ = 0.2 the known order holds for no more than 60 % of the pairs of configurations",
            unit="tau",
            positive=True,
        ),
    ]


# --- figures --------------------------------------------------------------------------------------------------------


def draw(results: Table, histories: Table) -> list[Figure]:
    """The experiment's figures: every measure against the test error, and spectra."""
    protocols = [name for name in RUNS if not RUNS[name].positive]
    judged = {
        name: [
            row
            for row in results.rows()
            if row["status"] == "done" and row["protocol"] == name and row["step"] == step_name(RUNS[name].judged)
        ]
        for name in protocols
    }
    drawn = [_scatter(judged, what, column, index) for what, column, index, _ in SHARPNESS]
    drawn += [_scatter(judged, "training loss", "train_loss", None), _spectra(judged)]
    return [figure for figure in drawn if figure is not None]


def _configurations(rows: Sequence[dict[str, Any]]) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        size = row.get("model.widths") or row.get("model.channels")
        found.setdefault((row["model"], size, row["batch_size"], row["optimizer.lr"]), []).append(row)
    return dict(sorted(found.items(), key=repr))


def _network(model: str, size: Any) -> str:
    return f"{model.upper()} {'-'.join(map(str, size)) if isinstance(size, tuple) else f'{size:g}'}"


def _scatter(judged: dict[str, list[dict[str, Any]]], what: str, column: str, index: int | None) -> Figure | None:
    """A measure against the test error, each point a configuration averaged over its seeds, one colour a network."""
    panels, said = [], []
    for protocol, rows in judged.items():
        points: dict[str, list[tuple[float, float, str]]] = {}
        for (model, size, batch, rate), own in _configurations(rows).items():
            pairs = [
                (r[column] if index is None else r[column][index], r["test_accuracy"]) for r in own if _has(r, column)
            ]
            xs = [x for x, _ in pairs]
            if pairs and min(xs) > 0:
                error = 100 * (1 - float(np.mean([y for _, y in pairs])))
                place = (float(mean_interval(xs, log=True)[0]), error, f"batch {batch}, learning rate {rate:g}")
                points.setdefault(_network(model, size), []).append(place)
        series = tuple(_points(name, found, slot) for slot, (name, found) in enumerate(points.items()))
        if series:
            panels.append(Panel(protocol, Axis(what, log=True), Axis("test error (%)"), series))
            said.append(f"{protocol}: {'; '.join(_ends(s) for s in series)}")
    if not panels:
        return None
    return Figure(
        "test-error-" + column.replace("_", "-"),
        f"Test error against the {what}",
        f"Test error at the least and the largest {what} of the configurations. {'. '.join(said)}.",
        tuple(panels),
        "Each point is a configuration of batch size and learning rate, the (horizontally geometric) mean over seeds.",
    )


def _has(row: dict[str, Any], column: str) -> bool:
    return row.get(column) is not None and row.get("test_accuracy") is not None


def _points(name: str, found: list[tuple[float, float, str]], slot: int) -> Series:
    xs, ys, hover = zip(*found, strict=True)
    return Series(name, np.array(xs), np.array(ys), mode="points", slot=slot, hover=hover)


def _ends(series: Series) -> str:
    low, high = int(series.x.argmin()), int(series.x.argmax())
    at_ends = " and ".join(f"{series.y[i]:.3g} % at {series.x[i]:.3g}" for i in (low, high))
    return f"{series.name} {at_ends}"


def _spectra(judged: dict[str, list[dict[str, Any]]]) -> Figure | None:
    """The Hessian's spectral density of one seed, by batch size at the middle learning rate, one panel a network."""
    panels, said = [], []
    for protocol, rows in judged.items():
        rows = [row for row in rows if row.get("density") is not None]
        if not rows:
            continue
        rates, seed = sorted({row["optimizer.lr"] for row in rows}), min(row["seed"] for row in rows)
        wanted = [r for r in rows if r["seed"] == seed and r["optimizer.lr"] == rates[len(rates) // 2]]
        networks: dict[str, list[Series]] = {}
        for (model, size, batch, _), own in _configurations(wanted).items():
            held = networks.setdefault(_network(model, size), [])
            held.append(_density(own[0], f"batch {batch}", len(held)))
            said.append(f"{protocol}, {_network(model, size)}, batch {batch}: {own[0]['largest_eigenvalues'][0]:.3g}")
        for name, series in networks.items():
            axes = Axis("eigenvalue (loss per squared weight)"), Axis("share of eigenvalues per unit", log=True)
            panels.append(Panel(f"{protocol}, {name}", *axes, tuple(series)))
    if not panels:
        return None
    note = "Densities by Lanczos quadrature, smoothed by a Gaussian of 1 % of each one's range, so that a single "
    note += "eigenvalue is a bump; what is below a millionth of the highest point is left out."
    finding = f"The largest eigenvalues of one seed's networks. {'; '.join(said)}."
    return Figure("spectra", "Spectra of the Hessian, by batch size", finding, tuple(panels), note)


def _density(row: dict[str, Any], name: str, slot: int) -> Series:
    density = np.array(row["density"])
    shown = np.where(density > density.max() * 1e-6, density, np.nan)
    return Series(name, np.array(row["density_grid"]), shown, slot=slot, marks=False)


RUNS = {
    "published": Protocol(
        published,
        holds="Every network sees the training set equally often. Batch size and learning rate vary independently of "
        "each other; large batches with small learning rates end at a higher training loss, and are sharper and worse "
        "for that alone.",
    ),
    "equal training loss": Protocol(
        equal_loss,
        holds="Every network is measured when its loss over the whole training set first falls below the same level, "
        "at a constant learning rate: a configuration is not sharper merely because it was left at a higher loss.",
        steps=tuple(first_below("train_loss", level) for level in LEVELS),
        judged=first_below("train_loss", LEVELS[1]),
        share=0.2,
    ),
    "positive control": Protocol(
        known_effect,
        holds="One network at one learning rate, stopped at four levels of the training loss with every batch size: "
        "that curvature falls with the loss is known, and shows that the same code would have found a correlation.",
        share=0.1,
        positive=True,
    ),
}

EXPERIMENT = Experiment(
    paper=JOHANNSEN,
    title="Do sharper networks test worse, over a grid of batch sizes and learning rates?",
    summary="The paper reads from two networks that flat minima generalize. Here a grid of batch sizes, learning rates "
    "and networks is trained, and nine measures of sharpness and gradient noise are compared with the test accuracy "
    "over configurations, each averaged over its seeds; once at equal epochs and once at equal training loss.",
    runs=RUNS,
    seeds={"smoke": 2, "laptop": 8, "paper": 10},
    data={"smoke": "digits", "laptop": "digits", "paper": "cifar10"},
    measures=(
        call(performance),
        call(hessian_spectrum, top=1, bottom=0, probes=3, steps=8, points=100),
        call(relative_spectrum, scale="filter", probes=3),
        call(weight_perturbation, kind="filter", magnitudes=(SHARE,), draws=10),
        call(gradient_noise, batch=16),
    ),
    claims=claims,
    figures=draw,
    deviations=(
        "Seeds: 8 (laptop) or 10; the paper's curvature is of one pair of networks with seed 42.",
        "Configurations: 18 (batches of 16, 64 and 256 with learning rates of .01, .02 and .04 each, and two networks; "
        "images: 15, without .02 for the convolutional one; paper scale: 32), against two in the paper, which changed "
        "batch size and learning rate together.",
        "Laptop scale, digits: MLPs 64-32-32-32-10 and 64-64-64-64-10 on 1,197 images, 40 epochs (80), 600 test images "
        "drawn anew by each seed. MNIST-1D: the first of these and its authors' convolutional network on 1,000 "
        "signals. Images (MNIST, CIFAR-10): an MLP with three hidden layers of 32, and the paper's "
        "network at a sixteenth of its width with a hidden layer of 32 (256), on 300 images, 40 epochs. The paper: "
        "its convolutional network on all of CIFAR-10.",
        "Curvature: of the loss over the whole training set, with residuals and errors; the paper: 30 power iterations "
        "on the first 1,000 training images. Trace, spectrum, filter-relative curvature and gradient noise are ours.",
        "Equal training loss: verdicts are at 0.01 nats, beside 0.1 and 0.001; at a constant learning rate (published: "
        "cosine decay).",
        "The correlation is over configurations within a kind of network (MLP, CNN), so that one kind's being both "
        "sharper and worse is not counted.",
        "Paper scale: all seeds are tested on the whole test set; correlations speak of new configurations on these "
        "images.",
    ),
    varied=("initialisation", "order of the batches", "train/test split (below paper scale)"),
    fixed=("all probes and draws of the measures", "the start vector of Lanczos", "the test set (paper scale)"),
)
