"""What Huang et al.'s comparisons with a linear model share (Figure 2): networks, arms, what is compared and drawn."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from landscope.experiments._data import check_classes
from landscope.experiments._tuning import chosen
from landscope.figures import Axis, Figure, Panel, Series
from landscope.models.checks import check_sizes
from landscope.spec import Call, Claim, Protocol, call
from landscope.stats import Units, Untestable, difference
from landscope.types import Table

LINEAR = "linear model"
FITTED = 0.995  # training accuracy: all but one in 200
FAR = 0.05
FAR_BECAUSE = "the paper's gap is 43 points: with less than about a tenth of it nobody would say 'far better'"
WRONG_LABELS = 0.4

# --- networks -------------------------------------------------------------------------------------------------------


def small_vgg(
    shape: tuple[int, ...], outputs: int, /, *, channels: int = 16, stages: int = 3, shrink: int = 1
) -> nn.Sequential:
    """A network in VGG's manner for images or signals that are small, or of which there are few.

    Each stage is a convolution of width 3, BatchNorm, ReLU and max-pooling by 2; the first has ``channels`` maps, every
    further one twice as many. A linear layer follows.

    Args:
        shape: (channels, height, width) of one image, or (length,) of one signal.
        outputs: Classes.
        channels: Maps of the first stage.
        stages: How many.
        shrink: By how much inputs are shrunk first, by means of neighbours.

    Raises:
        ValueError: for inputs that are neither, or too small to be pooled so often.

    >>> sum(p.numel() for p in small_vgg((40,), 10).parameters())
    11274
    """
    check_sizes(shape, outputs, channels, stages, shrink)
    signal = len(shape) == 1
    into, *size = (1, *shape) if signal else shape
    if len(size) not in (1, 2) or min(size) < shrink * 2**stages:
        raise ValueError(
            f"small_vgg takes images (channels, height, width) or signals (length,), at least {shrink * 2**stages} "
            f"long on every side, not {shape}"
        )
    convolution, norm, most, mean = (
        (nn.Conv1d, nn.BatchNorm1d, nn.MaxPool1d, nn.AvgPool1d)
        if signal
        else (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d)
    )
    layers: list[nn.Module] = [nn.Unflatten(1, (1, *size))] if signal else []
    layers += [mean(shrink)] if shrink > 1 else []
    for stage in range(stages):
        maps = channels * 2**stage
        layers += [convolution(into, maps, 3, padding=1), norm(maps), nn.ReLU(), most(2)]
        into = maps
    left = math.prod(side // shrink // 2**stages for side in size)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(into * left, outputs))


def shrunk(shape: tuple[int, ...], outputs: int, /, *, model: Call, by: int = 2) -> nn.Sequential:
    """Another network on smaller copies of its images, the means of neighbouring pixels.

    Args:
        shape: (channels, height, width) of one image.
        outputs: Classes.
        model: The network: called with the small images' shape and ``outputs``.
        by: By how much smaller each side is.

    Raises:
        ValueError: for inputs that are no images, or smaller than that.
    """
    check_sizes(shape, outputs, by)
    if len(shape) != 3 or min(shape[1:]) < by:
        raise ValueError(f"shrunk takes images (channels, height, width) of at least {by} pixels a side, not {shape}")
    small = (shape[0], shape[1] // by, shape[2] // by)
    return nn.Sequential(nn.AvgPool2d(by), model(small, outputs))


def no_subnormal_gradients(*, strength: float = 1e-30) -> Callable[..., Tensor]:
    """A Recipe's regularizer that changes nothing but time: ``strength`` times the sum of the outputs.

    The linear model's features are long and its outputs soon hundreds apart, so that gradients of cross-entropy are
    subnormal numbers (below 1e-38) for many classes, which processors multiply several times slower. This adds
    ``strength`` to each.

    Args:
        strength: Far below what any gradient that matters is, and far above subnormal.
    """

    def term(model: nn.Module, batch: tuple[Tensor, Tensor], /, *, outputs: Tensor) -> Tensor:
        return strength * outputs.sum()

    return term


def check_data(scale: str, data: Any, sizes: Mapping[str, Any]) -> None:
    """Refuse data that neither network nor linear model can be trained on.

    Raises:
        ValueError: for data without classes, no signals or images (images alone at the paper's scale), or too few.
    """
    check_classes(data)
    image, signal = len(data.shape) == 3, data.name == "mnist1d"
    if not image and (scale == "paper" or not signal):
        wanted = "cifar10" if scale == "paper" else "mnist1d, or images such as cifar10"
        raise ValueError(f"the paper's networks are convolutional, and {data.name} holds no images: give {wanted}")
    needed = sizes["train"] + sizes["valid"]
    if needed > data.n_train and not signal:
        raise ValueError(
            f"this scale trains on {sizes['train']:,} samples and validates on {sizes['valid']:,}, and {data.name} has "
            f"{data.n_train:,}: give a larger set"
        )


# --- arms and statistics --------------------------------------------------------------------------------------------


def arm(row: Mapping[str, Any]) -> str:
    """What trained a run: ``"linear model"``, or for networks the optimizer (SGD by its kind of momentum)."""
    if row["model"] == "pairwise_linear":
        return LINEAR
    if row["optimizer"] == "SGD" and row.get("optimizer.momentum"):
        return "Nesterov" if row.get("optimizer.nesterov") else "momentum"
    return "AMSGrad" if row.get("optimizer.amsgrad") else row["optimizer"]


def tuned(table: Table, name: str, *, noise: float = 0.0, fitted: bool = False) -> list[dict[str, Any]]:
    """An arm's run in the setting that validation chooses, seed by seed (`_tuning.chosen`).

    Args:
        table: One protocol's results.
        name: The arm.
        noise: The share of training labels that was redrawn.
        fitted: Choose among runs that fit the training set alone, where a seed has any.

    Returns:
        The rows, with ``arm``, and ``fits``: the training accuracy, or 1 where nothing is asked of it.

    Raises:
        Untestable: where there is no such arm.
    """
    rows = [row for row in table.rows() if arm(row) == name and row["data.label_noise"] == noise]
    if not rows:
        raise Untestable(f"there are no finished runs of the arm {name!r} under this protocol")
    best = chosen(rows, first=_fits if fitted else None)
    return [row | {"arm": name, "fits": row["train_accuracy"] if fitted else 1.0} for row in best]


def _fits(row: Mapping[str, Any]) -> bool:
    return row["status"] != "diverged" and (row["train_accuracy"] or 0.0) >= FITTED


def tuned_difference(
    table: Table,
    /,
    *,
    first: str,
    second: str,
    value: str = "test_accuracy",
    fitted: tuple[str, ...] = (LINEAR,),
    noise: float = 0.0,
    other: float | None = None,
    worst: str | float | None = None,
    examples: str | None = None,
) -> Units:
    """`difference` of a value between two arms, each in the setting that validation chooses in each seed.

    Args:
        table: One protocol's results.
        first: The one arm.
        second: The other.
        value: What is compared.
        fitted: Arms that have to fit the training set: chosen among their runs that do, and a pair whose run does not
            is left out and counted.
        noise: The share of training labels that was redrawn.
        other: That of the second arm, where it is another one.
        worst: What stands for a diverged run.
        examples: As for `difference`.

    Raises:
        Untestable: where an arm has no runs.
    """
    one = tuned(table, first, noise=noise, fitted=first in fitted)
    two = tuned(table, second, noise=noise if other is None else other, fitted=second in fitted)
    rows = [row | {"side": side} for side, arm_rows in (("first", one), ("second", two)) for row in arm_rows]
    given = (("fits", FITTED),)
    over: dict[str, Any] = {"over": "side", "first": "first", "second": "second", "given": given}
    return difference(Table.of(rows), value=value, worst=worst, examples=examples, **over)


def least_lead(table: Table, /, *, names: tuple[str, ...], worst: float | None = None) -> Units:
    """The smallest lead of several arms over the linear model, fitted or not, all as validation chooses them.

    Args:
        table: One protocol's results.
        names: The arms.
        worst: The test accuracy that stands for a diverged run.

    Raises:
        Untestable: where an arm has no runs.
    """
    leads = [tuned_difference(table, first=name, second=LINEAR, fitted=(), worst=worst) for name in names]
    by_seed = [dict(zip(units.ids, units.values, strict=True)) for units in leads]
    seeds = sorted(set.intersection(*map(set, by_seed)))
    values = np.array([min(lead[seed] for lead in by_seed) for seed in seeds])
    return Units(tuple(seeds), values, arms=2 * len(names), found=sum(units.found for units in leads))


def accuracy_of(table: Table, /, *, name: str, value: str, fitted: bool = False) -> Units:
    """An arm's accuracy in the setting that validation chooses, one number a seed; a diverged run's is 0.

    Args:
        table: One protocol's results.
        name: The arm.
        value: The accuracy.
        fitted: As for `tuned`.

    Raises:
        Untestable: where the arm has no runs.
    """
    rows = tuned(table, name, fitted=fitted)
    values = np.array([0.0 if row["status"] == "diverged" else row[value] for row in rows])
    return Units(tuple(row["seed"] for row in rows), values, bounds=(0.0, 1.0), arms=1, found=len(rows))


# --- positive controls ----------------------------------------------------------------------------------------------


def known(network: str) -> list[Claim]:
    """What is known to be true of a network and the linear model, whatever else: answers that the code must find."""
    arms: dict[str, Any] = {"first": network, "fitted": ()}
    return [
        Claim(
            "With all training labels redrawn network and linear model test alike, at chance",
            call(tuned_difference, second=LINEAR, noise=1.0, **arms),
            "within",
            margin=0.02,
            reason="there is nothing to learn: two points are far below what would be called better",
            unit="points",
            positive=True,
        ),
        Claim(
            f"Redrawing {WRONG_LABELS:.0%} of the training labels costs the network test accuracy",
            call(tuned_difference, second=network, other=WRONG_LABELS, **arms),
            "greater",
            smallest=0.02,
            reason="two points are far below what so many wrong labels are known to cost",
            unit="points",
            positive=True,
        ),
    ]


# --- figures --------------------------------------------------------------------------------------------------------


def figures(results: Table, runs: Mapping[str, Protocol], called: Mapping[str, str] | None = None) -> list[Figure]:
    """Accuracies of every arm in the settings that validation chooses, and the learning rates that it chooses.

    Args:
        results: Of all protocols.
        runs: The protocols; positive controls are not drawn.
        called: Other names for arms.
    """
    tables: dict[str, Table] = {}
    for protocol in (name for name in runs if not runs[name].positive):
        own = Table.of(row for row in results.rows() if row["protocol"] == protocol and row["status"] == "done")
        rows = [row for name in sorted(set(map(arm, own.rows()))) for row in tuned(own, name, fitted=name == LINEAR)]
        tables[protocol] = Table.of(
            _in_percent(row) | {"arm": (called or {}).get(row["arm"], row["arm"])} for row in rows
        )
    drawn = (
        _by_arm(tables, "test", "Test accuracy", "test_percent", "test accuracy (%)"),
        _by_arm(tables, "fit", "How well the training set is fitted", "train_percent", "training accuracy (%)"),
        _by_arm(tables, "rates", "Learning rates that validation chooses", "rate", "learning rate", log=True),
    )
    return [figure for figure in drawn if figure is not None]


def _by_arm(
    tables: Mapping[str, Table], name: str, title: str, column: str, label: str, *, log: bool = False
) -> Figure | None:
    """A column of every arm, one below the other: their names are too long and too many to stand side by side."""
    panels, said = [], []
    for slot, (protocol, table) in enumerate(tables.items()):
        rows = table.rows()
        names = sorted({row["arm"] for row in rows}, reverse=True)
        if not names:
            continue
        values = np.array([row[column] for row in rows], np.float64)
        places = np.array([names.index(row["arm"]) for row in rows], np.float64)
        hover = tuple(f"seed {row['seed']}, run {row['run']}" for row in rows)
        axis = Axis("arm", ticks=(range(len(names)), names), limits=(-0.5, len(names) - 0.5))
        series = Series("seeds", values, places, mode="points", slot=slot, hover=hover)
        panels.append(Panel(protocol, Axis(label, log=log), axis, (series,)))
        middle = (f"{np.median(values[places == place]):.3g} of {each}" for place, each in enumerate(names))
        said.append(f"{protocol}: {', '.join(reversed(list(middle)))}")
    if not panels:
        return None
    return Figure(name, title, f"{title}, medians over seeds. {'; '.join(said)}.", tuple(panels), "Points are seeds.")


def _in_percent(row: Mapping[str, Any]) -> dict[str, Any]:
    shares = {f"{part}_percent": 100 * row[f"{part}_accuracy"] for part in ("train", "test")}
    return {**row, **shares, "rate": row.get("optimizer.inner_lr") or row["optimizer.lr"]}
