"""Figures that set protocols side by side: one panel a protocol, one colour an arm, all seeds drawn."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from landscope.figures import Axis, Figure, Panel, Series, by_level, curves, mean_interval
from landscope.types import Table

Tables = Mapping[str, Table]


def against(
    tables: Tables,
    name: str,
    title: str,
    column: str,
    label: str,
    *,
    over: str = "batch_size",
    log: bool = True,
) -> Figure | None:
    """A column against the level of the arms: every seed's point, and the mean at each level.

    Args:
        tables: Each protocol's runs, one row a run.
        name: The figure's file name.
        title: The figure's title.
        column: What is drawn.
        label: Its name with its unit.
        over: The column that tells the arms apart: numbers, or names, which stand side by side.
        log: Whether the axis is logarithmic and the mean geometric.

    Returns:
        The figure; None where no protocol has values.
    """
    panels, said = [], []
    places: dict[Any, int] = {x: place for place, x in enumerate(_levels(tables, over)) if isinstance(x, str)}
    names = {place: level for level, place in places.items()}
    for i, (protocol, table) in enumerate(tables.items()):
        rows = _having(table, column, over)
        if not rows:
            continue
        hover = [f"seed {row['seed']}, run {row['run']}" for row in rows]
        levels: list[Any] = [places.get(row[over], row[over]) for row in rows]
        values = [row[column] for row in rows]
        series = by_level(protocol, levels, values, i, log=log, hover=hover)
        panels.append(Panel(protocol, _level_axis(tables, over), Axis(label, log=log), series))
        mean = series[-1]
        named = [names.get(x) or f"{_word(over)} {x:g}" for x in mean.x]
        said.append(f"{protocol}: {_ends(mean.y, named, every=bool(names))}")
    if not panels:
        return None
    low, high = zip(*(panel.limits()[1] for panel in panels), strict=True)
    shared = Axis(label, log=log, limits=(min(low), max(high)))
    kind = "geometric mean" if log else "mean"
    return Figure(
        name,
        title,
        f"{_what(label)}, {kind} over seeds. {'; '.join(said)}.",
        tuple(Panel(panel.title, panel.x, shared, panel.series) for panel in panels),
        f"Each point is one seed; the line joins the {kind}s, with 95 % Student t intervals.",
    )


def along(
    tables: Tables,
    name: str,
    title: str,
    x: str,
    x_label: str,
    column: str,
    label: str,
    *,
    index: int,
    where: str,
    over: str = "batch_size",
    log: bool = True,
) -> Figure | None:
    """Columns that hold arrays: one curve a run, one colour an arm.

    Args:
        tables: Each protocol's runs.
        name: The figure's file name.
        title: The figure's title.
        x: The column of the horizontal positions, the same for all runs.
        x_label: Its name with its unit.
        column: The column of the curves.
        label: Its name with its unit.
        index: The position that the finding quotes.
        where: That position in words.
        over: The column that tells the arms apart.
        log: Whether the vertical axis is logarithmic and the mean geometric.

    Returns:
        The figure; None where no protocol has values.
    """
    panels, said = [], []
    for protocol, table in tables.items():
        series: list[Series] = []
        for i, (level, rows) in enumerate(_by_arm(_having(table, column, over), over)):
            seeds, ys = [row["seed"] for row in rows], [row[column] for row in rows]
            series += curves(_arm(over, level), rows[0][x], ys, i, log=log, names=seeds)
        if series:
            panels.append(Panel(protocol, Axis(x_label, log=True), Axis(label, log=log), tuple(series)))
            means = [s for s in series if not s.faint]
            said.append(f"{protocol}: {_ends([s.y[index] for s in means], [s.legend for s in means])}")
    if not panels:
        return None
    kind = "geometric mean" if log else "mean"
    return Figure(
        name,
        title,
        f"{_what(label)} at {where}, {kind} over seeds. {'; '.join(said)}.",
        tuple(panels),
        f"Thin lines are seeds, each the mean over the same random draws; thick lines their {kind}s with 95 % bands.",
    )


def configurations(
    tables: Tables, name: str, title: str, x: str, x_label: str, y: str, y_label: str, *, over: str = "batch_size"
) -> Figure | None:
    """One measure against another, each point a configuration averaged over its seeds (x geometrically).

    Returns:
        The figure; None where no protocol has both.
    """
    series = []
    for i, (protocol, table) in enumerate(tables.items()):
        points = [
            (
                float(mean_interval([row[x] for row in rows], log=True)[0]),
                float(np.mean([row[y] for row in rows])),
                _arm(over, level),
            )
            for level, rows in _by_arm([r for r in _having(table, x, over) if r.get(y) is not None], over)
        ]
        if points:
            xs, ys, hover = zip(*points, strict=True)
            series.append(Series(protocol, np.array(xs), np.array(ys), mode="points", slot=i, hover=hover))
    if not series:
        return None
    count = sum(len(s.x) for s in series)
    said = [
        f"{s.name}: {s.x.min():.3g} with {s.y[s.x.argmin()]:.3g}, {s.x.max():.3g} with {s.y[s.x.argmax()]:.3g}"
        for s in series
    ]
    finding = f"{_what(x_label)} of {count} configurations, with the {y_label} at either end. {'; '.join(said)}."
    note = (
        "Each point is a configuration, the mean over its seeds. Fewer than 12 of a kind describe and decide nothing."
    )
    return Figure(name, title, finding, (Panel("", Axis(x_label, log=True), Axis(y_label), tuple(series)),), note)


def learning(
    tables: Tables, name: str, title: str, column: str, label: str, *, over: str = "batch_size"
) -> Figure | None:
    """A column of the learning curves against the step, as far as all seeds of an arm go.

    Args:
        tables: Each protocol's curves, one row a run and step.
        name: The figure's file name.
        title: The figure's title.
        column: What is drawn.
        label: Its name with its unit.
        over: The column that tells the arms apart.

    Returns:
        The figure; None where no protocol has values.
    """
    panels, said = [], []
    for protocol, table in tables.items():
        series: list[Series] = []
        for i, (level, rows) in enumerate(_by_arm([r for r in _having(table, column, over) if r["step"] > 0], over)):
            by_seed: dict[Any, dict[int, float]] = {}
            for row in rows:
                by_seed.setdefault(row["seed"], {})[row["step"]] = row[column]
            steps = sorted(set.intersection(*(set(points) for points in by_seed.values())))
            if steps:
                ys = [[points[step] for step in steps] for points in by_seed.values()]
                series += curves(_arm(over, level), np.array(steps), ys, i, log=True, names=list(by_seed))
        if series:
            panels.append(Panel(protocol, Axis("optimizer steps", log=True), Axis(label, log=True), tuple(series)))
            means = [s for s in series if not s.faint]
            said.append(f"{protocol}: {_ends([s.y[-1] for s in means], [s.legend for s in means])}")
    if not panels:
        return None
    finding = f"{_what(label)} at the last step that all seeds have, geometric mean over seeds. {'; '.join(said)}."
    note = "Thin lines are seeds, thick lines their geometric means with 95 % bands, as far as every seed goes."
    return Figure(name, title, finding, tuple(panels), note)


def _having(table: Table, column: str, over: str) -> list[dict[str, Any]]:
    if column not in table.columns or over not in table.columns:
        return []
    return [row for row in table.rows() if row[column] is not None and row[over] is not None]


def _by_arm(rows: Sequence[dict[str, Any]], over: str) -> list[tuple[Any, list[dict[str, Any]]]]:
    return [(level, [row for row in rows if row[over] == level]) for level in sorted({row[over] for row in rows})]


def _levels(tables: Tables, over: str) -> list[Any]:
    rows = [row for table in tables.values() if over in table.columns for row in table.rows()]
    return sorted({row[over] for row in rows if row[over] is not None})


def _level_axis(tables: Tables, over: str) -> Axis:
    levels = _levels(tables, over)
    if levels and isinstance(levels[0], str):
        return Axis(over, ticks=(range(len(levels)), levels), limits=(-0.5, len(levels) - 0.5))
    return Axis(over.replace("_", " "), log=True, ticks=(levels, [f"{level:,}" for level in levels]))


def _arm(over: str, level: Any) -> str:
    return level if isinstance(level, str) else f"{_word(over)} {level:,}"


def _word(over: str) -> str:
    return over.removesuffix("_size").replace("_", " ")


def _what(label: str) -> str:
    plain = label.partition(" (")[0]
    return plain[0].upper() + plain[1:]


def _ends(values: Sequence[float] | np.ndarray, names: Sequence[str], *, every: bool = False) -> str:
    """The first and last value in words, or every one."""
    return ", ".join(f"{_said(values[i])} at {names[i]}" for i in (range(len(names)) if every else (0, -1)))


def _said(value: float) -> str:
    """A mean in words; a geometric one is undefined where a seed's value is not above 0."""
    return f"{value:.3g}" if np.isfinite(value) else "no mean (a seed is not above 0)"
