"""The arms of the experiments on flatness-aware regularization: which run is which, what is compared and drawn."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from landscope.experiments._flatness_aware import DECAY
from landscope.experiments._tuning import chosen
from landscope.figures import Axis, Figure, Panel, Series, by_level, curves
from landscope.stats import Units, Untestable, difference, log_ratio, trend
from landscope.types import Table

FAMILIES = ("penalty", "GGN penalty", "weight decay", "SAM")  # each with the run without any as one of its settings
NONE = "penalty 0"
LEAST = math.log(0.9)  # a tenth less is the least that is called flatter
ALONG = ("mean_flatness", "best_accuracy", "selected_accuracy")  # of all looks, where there are several
_PENALTY = "regularizers.flatness"


def with_arms(table: Table) -> Table:
    """One row for each seed and arm: its run to the end, with ``kind``, ``dose`` and ``arm``, and what all looks say.

    ``mean_flatness`` is the mean over the looks; ``best_accuracy`` the highest test accuracy among them (selected on
    test), ``selected_accuracy`` the test accuracy at the look with the best validation accuracy, the earliest of
    equals. They are None where a look is missing, and where the end is all that was looked at.
    """
    rows = table.rows()
    often = max((row.get(f"{_PENALTY}.every") or 0 for row in rows), default=0)
    groups: dict[tuple[Any, str, float], list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["steps"]):
        groups.setdefault((row["seed"], *_kind(row, often)), []).append(row)
    whole = max(map(len, groups.values()), default=0)
    joined = []
    for (_, kind, dose), runs in groups.items():
        if runs[-1]["steps"] == runs[-1]["schedule.T_max"]:
            named = {"kind": kind, "dose": dose, "arm": f"{kind} {dose:g}"}
            joined.append(runs[-1] | named | _along(runs, whole))
    return Table.of(joined)


def _kind(row: Mapping[str, Any], often: int) -> tuple[str, float]:
    """A run's arm: its kind and how much of it."""
    if row.get("data.label_noise"):
        return "wrong labels", row["data.label_noise"]
    if row["optimizer"] == "SAM":
        return "SAM", row["optimizer.rho"]
    strength, every = row.get(f"{_PENALTY}.strength"), row.get(f"{_PENALTY}.every")
    if strength is not None and every is not None:
        which = "GGN penalty" if row[f"{_PENALTY}.matrix"] == "ggn" else "penalty"
        return (which if every == often else f"{which} every {every}"), round(strength * every, 12)
    decay = row["optimizer.weight_decay"]
    return ("penalty", 0.0) if decay == DECAY else ("weight decay", decay)


def _along(runs: Sequence[Mapping[str, Any]], whole: int) -> dict[str, float | None]:
    if whole < 2 or len(runs) < whole or any(row.get("test_accuracy") is None for row in runs):
        return dict.fromkeys(ALONG)
    chosen = max(runs, key=lambda row: row["valid_accuracy"])  # the first of equals
    return {
        "mean_flatness": float(np.mean([row["batch_flatness"] for row in runs])),
        "best_accuracy": max(row["test_accuracy"] for row in runs),
        "selected_accuracy": chosen["test_accuracy"],
    }


# --- statistics -----------------------------------------------------------------------------------------------------


def _named(table: Table, value: str, *arms: str) -> Table:
    """The table with arms, if it has those and the value."""
    found = with_arms(table)
    there = set(found["arm"]) if len(found) else set()
    missing = [arm for arm in arms if arm not in there]
    if missing:
        raise Untestable(f"there are no finished runs with {' or '.join(missing)} under this protocol")
    if value in ALONG and all(v is None for v in found[value]):
        raise Untestable("the runs of this protocol are looked at at their end alone")
    return found


def arm_difference(
    table: Table,
    /,
    *,
    value: str,
    first: str,
    second: str,
    worst: str | float | None = None,
    examples: str | None = None,
) -> Units:
    """`difference` of a value between two arms (``"penalty 0.01"``), paired within each seed.

    Raises:
        Untestable: where there are no such arms, or no looks but the last and the value is of several.
    """
    named = _named(table, value, first, second)
    return difference(named, value=value, over="arm", first=first, second=second, worst=worst, examples=examples)


def arm_ratio(table: Table, /, *, value: str, first: str, second: str, worst: str | float | None = None) -> Units:
    """`log_ratio` of a value between two arms, paired within each seed.

    Raises:
        Untestable: as `arm_difference`.
    """
    named = _named(table, value, first, second)
    return log_ratio(named, value=value, over="arm", numerator=first, denominator=second, worst=worst)


def dose_trend(table: Table, /, *, value: str, doses: tuple[float, ...], worst: str | float | None = None) -> Units:
    """`trend` of a value over the penalty's strengths, the run without it included as 0.

    Raises:
        Untestable: as `arm_difference`.
    """
    named = _named(table, value, *(f"penalty {dose:g}" for dose in doses))
    return trend(named, value=value, over="dose", levels=doses, where=(("kind", "penalty"),), worst=worst)


def arm_value(table: Table, /, *, value: str, arm: str = NONE, log: bool = False, worst: float | None = None) -> Units:
    """A value of one arm (its logarithm with ``log``), one number a seed.

    Raises:
        Untestable: where there is no such arm, or a run diverged and ``worst`` does not say what it counts for.
    """
    rows = [row for row in _named(table, value, arm).rows() if row["arm"] == arm]
    lost = [row["status"] == "diverged" for row in rows]
    if any(lost) and worst is None:
        raise Untestable(f"runs diverged, and there is no worst {value} to stand for them (worst=)")
    values = np.array([worst if gone else row[value] for gone, row in zip(lost, rows, strict=True)], np.float64)
    shared: dict[str, Any] = {"complete": ~np.array(lost, bool), "arms": 1, "found": len(rows)}
    return Units(tuple(row["seed"] for row in rows), np.log(values) if log else values, **shared)


def tuned_difference(
    table: Table,
    /,
    *,
    first: str,
    second: str,
    value: str = "test_accuracy",
    worst: str | float | None = None,
    examples: str | None = None,
) -> Units:
    """`difference` of a value between two of the `FAMILIES`, each in the setting that validation chooses in each seed.

    Every family has the run without a penalty among its settings, and as many settings as the others. Chosen is the one
    with the highest validation accuracy at the end, of equals the one with the lower validation loss.

    Raises:
        Untestable: where a family has no runs.
    """
    rows = _named(table, value, NONE).rows()
    missing = [family for family in (first, second) if family not in {r["kind"] for r in rows if r["arm"] != NONE}]
    if missing:
        raise Untestable(f"there are no finished runs with {' or '.join(missing)} under this protocol")
    best = [row for family in (first, second) for row in _tuned(rows, family)]
    return difference(
        Table.of(best), value=value, over="family", first=first, second=second, worst=worst, examples=examples
    )


def _tuned(rows: Sequence[dict[str, Any]], family: str) -> list[dict[str, Any]]:
    """For each seed the run of a family that validation chooses; without a seed that lacks one of its runs."""
    own = (row for row in rows if row["kind"] == family or row["arm"] == NONE)
    return [row | {"family": family} for row in chosen(own)]


# --- figures --------------------------------------------------------------------------------------------------------

Columns = Sequence[tuple[str, str]]  # (column, its name in the legend)


def by_dose(
    tables: Mapping[str, Table],
    name: str,
    title: str,
    columns: Columns,
    label: str,
    *,
    log: bool = False,
    times: float = 1.0,
    families: Sequence[str] = ("penalty",),
) -> Figure | None:
    """Columns against the strength, every run a point; one panel a protocol and family.

    Args:
        tables: Each protocol's finished runs, `with_arms`.
        name: The figure's file name.
        title: Its title.
        columns: What is drawn, each in a colour of its own.
        label: The vertical axis with its unit.
        log: Whether the axis is logarithmic and the mean geometric.
        times: What values are multiplied by.
        families: Which of `FAMILIES`.

    Returns:
        The figure; None where there are no values, or those of one of several families.
    """
    panels, said = [], []
    for protocol, table in tables.items():
        for family in families:
            rows = [
                row for row in table.rows() if row["kind"] == family or (row["arm"] == NONE and family != "penalty")
            ]
            doses = sorted({_place(row, family) for row in rows})
            series, ends = _series(rows, family, doses, columns, log, times)
            if not series or len(doses) < 2:
                continue
            where = protocol if len(families) == 1 else family
            ticks = (range(len(doses)), [f"{dose:g}" for dose in doses])
            panels.append(Panel(where, Axis(_DOSES[family], ticks=ticks), Axis(label, log=log), tuple(series)))
            said.append(f"{where}: {'; '.join(ends)}")
    if len(panels) < min(2, len(families)):  # one family alone is compared with nothing
        return None
    kind = "geometric means" if log else "means"
    finding = f"{_what(label)}, {kind} over seeds. {'. '.join(said)}."
    note = (
        f"Each point is one seed; lines join the {kind}, with 95 % Student t intervals. Steps across are not to scale."
    )
    return Figure(name, title, finding, tuple(panels), note)


_DOSES = {
    "penalty": "λ of the penalty",
    "GGN penalty": "λ of the penalty on the Gauss-Newton matrix",
    "weight decay": "strength of L2",
    "SAM": "radius ρ",
}


def _place(row: Mapping[str, Any], family: str) -> float:
    """Where a run stands in a family: that without a penalty has the published L2."""
    return DECAY if family == "weight decay" and row["arm"] == NONE else row["dose"]


def _series(
    rows: Sequence[Mapping[str, Any]], family: str, doses: Sequence[float], columns: Columns, log: bool, times: float
) -> tuple[list[Series], list[str]]:
    series: list[Series] = []
    ends: list[str] = []
    for slot, (column, legend) in enumerate(columns):
        there = [row for row in rows if row.get(column) is not None]
        if there:
            values = [times * row[column] for row in there]
            hover = [f"seed {row['seed']}, run {row['run']}" for row in there]
            series += by_level(
                legend, [doses.index(_place(r, family)) for r in there], values, slot, log=log, hover=hover
            )
            means, at = series[-1].y, [doses[int(x)] for x in series[-1].x]
            ends.append(
                f"{legend} " + ", ".join(f"{mean:.3g} at {dose:g}" for dose, mean in zip(at, means, strict=True))
            )
    return series, ends


def along_training(tables: Mapping[str, Table], name: str, title: str, column: str, label: str) -> Figure | None:
    """A column against the step of the looks, one colour a strength, for protocols with several looks.

    Args:
        tables: Each protocol's finished runs, one row a look.
        name: The figure's file name.
        title: Its title.
        column: What is drawn.
        label: Its name with its unit.

    Returns:
        The figure; None where no protocol has several looks.
    """
    panels, said = [], []
    for protocol, table in tables.items():
        rows = [row for row in table.rows() if row.get(column) is not None]
        often = max((row.get(f"{_PENALTY}.every") or 0 for row in table.rows()), default=0)
        arms: dict[float, dict[Any, dict[int, float]]] = {}
        for row in rows:
            kind, dose = _kind(row, often)
            if kind == "penalty":
                arms.setdefault(dose, {}).setdefault(row["seed"], {})[row["steps"]] = row[column]
        series: list[Series] = []
        for slot, (dose, seeds) in enumerate(sorted(arms.items())):
            steps = sorted(set.intersection(*(set(looks) for looks in seeds.values())))
            if len(steps) > 1:
                ys = [[looks[step] for step in steps] for looks in seeds.values()]
                series += curves(f"λ = {dose:g}", steps, ys, slot, log=True, names=list(seeds))
        if series:
            panels.append(Panel(protocol, Axis("optimizer steps"), Axis(label, log=True), tuple(series)))
            means = [s for s in series if not s.faint]
            ends = (f"{s.legend} from {s.y[0]:.3g} to {s.y[-1]:.3g}" for s in means)
            said.append(f"{protocol}: {', '.join(ends)}")
    if not panels:
        return None
    finding = f"{_what(label)} from the first look to the last, geometric means over seeds. {'; '.join(said)}."
    note = "Thin lines are seeds, thick lines their geometric means with 95 % bands."
    return Figure(name, title, finding, tuple(panels), note)


def _what(label: str) -> str:
    plain = label.partition(" (")[0]
    return plain[0].upper() + plain[1:]


_SQUARED = "(loss per squared weight)²"
# By name: title, columns with their names in the legend, vertical axis, and how it is drawn.
_DRAWN: dict[str, tuple[str, Columns, str, dict[str, Any]]] = {
    "accuracy": (
        "Test accuracy against λ",
        (
            ("test_accuracy", "at the end"),
            ("selected_accuracy", "at the epoch that validation selects"),
            ("best_accuracy", "best epoch, selected on test"),
        ),
        "test accuracy (%)",
        {"times": 100.0},
    ),
    "curvature": (
        "Tr(H²) of the training loss at the end against λ",
        (("hessian_trace_squared", "Tr(H²)"),),
        f"Tr(H²) at the end ({_SQUARED})",
        {"log": True},
    ),
    "mean-flatness": (
        "The paper's flatness against λ, measured without the penalty, too",
        (("mean_flatness", "mean over training"), ("batch_flatness", "at the end")),
        f"Tr(H²)/B of batches ({_SQUARED})",
        {"log": True},
    ),
    "achieved-loss": (
        "How far the networks were trained",
        (("train_loss", "training loss"), ("test_loss", "test loss")),
        "loss at the end (nats)",
        {"log": True},
    ),
    "other-penalties": (
        "Accuracy at the end, with each penalty's settings",
        (("test_accuracy", "test"), ("valid_accuracy", "validation")),
        "accuracy at the end (%)",
        {"times": 100.0, "families": FAMILIES},
    ),
    "other-curvatures": (
        "Tr(H²) at the end, with each penalty's settings",
        (("hessian_trace_squared", "Tr(H²)"),),
        f"Tr(H²) at the end ({_SQUARED})",
        {"log": True, "families": FAMILIES},
    ),
}


def figures(results: Table, runs: Sequence[str]) -> list[Figure]:
    """All figures, of the protocols named; other penalties those of the first alone."""
    looks = {
        name: Table.of(row for row in results.rows() if row["protocol"] == name and row["status"] == "done")
        for name in runs
    }
    looks = {name: table for name, table in looks.items() if len(table)}
    ends = {name: with_arms(table) for name, table in looks.items()}
    first = dict(list(ends.items())[:1])
    drawn = [
        by_dose(first if "families" in how else ends, name, title, columns, label, **how)
        for name, (title, columns, label, how) in _DRAWN.items()
    ]
    flatness = "The paper's flatness along training", "batch_flatness", f"Tr(H²)/B of batches ({_SQUARED})"
    drawn.append(along_training(looks, "flatness-along-training", *flatness))
    return [figure for figure in drawn if figure is not None]
