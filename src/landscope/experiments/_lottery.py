"""The arms of the experiments on lottery tickets: which run is which, and what is compared and drawn."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from landscope.figures import Axis, Figure, Panel, Series, by_level, curves, horizontal
from landscope.stats import Units, Untestable, difference, log_ratio
from landscope.types import Table

KINDS = ("dense", "ticket", "reinitialised", "random mask", "small dense", "fine-tuned")
NEAR = math.log(1.3)  # a ticket stands for a density within this factor
SHARE = "weights left (share)"


def with_arms(table: Table) -> Table:
    """The results with the columns ``kind`` (of `KINDS`, or ``"line"``), ``twin`` and ``density``, for every run.

    A run's density is that of its masks; of a dense small network, that of the ticket whose size it has.
    """
    rows = table.rows()
    kinds = {row["run"]: _kind(row, rows) for row in rows}
    left = {row["start.density"]: row["nonzero_parameters"] for row in rows if _counted(row, kinds, "ticket")}
    by_size = {
        _size(row): min(left, key=lambda d, own=row: abs(math.log(left[d] / own["nonzero_parameters"])))
        for row in rows
        if left and _counted(row, kinds, "small dense")
    }
    densities: dict[str, float | None] = {}
    for row in rows:
        whole = kinds[row["run"]] == "dense"
        densities[row["run"]] = row.get("start.density") or (1.0 if whole else by_size.get(_size(row)))
    named = []
    for row in rows:
        first = str(row.get("start.first") or "").partition("@")[0]  # of a line, the run at its one end
        own = {"kind": kinds[row["run"]], "density": densities.get(first or row["run"])}
        named.append(row | own | {"twin": row.get("order_seed") is not None})
    return Table.of(named)


def _counted(row: dict[str, Any], kinds: dict[str, str], kind: str) -> bool:
    return kinds[row["run"]] == kind and row.get("nonzero_parameters") is not None


def _size(row: dict[str, Any]) -> int:
    return sum(row.get("model.widths") or (row.get("model.channels") or 0,))


def _kind(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    source = str(row.get("start.source") or "")
    if row.get("start.first") is not None:
        return "line"
    if not source:
        return "dense" if _size(row) == max(_size(r) for r in rows if r.get("start") is None) else "small dense"
    if row.get("start.shuffle") is not None:
        return "random mask"
    if source.endswith("@end"):
        return "fine-tuned"
    # A ticket has the weights that its scores come from; a chain's first level judges the network that it began as.
    own = {r["run"] for r in rows if r.get("start") is None}
    return "ticket" if source.partition("@")[0] in own else "reinitialised"


def _nearest(levels: Sequence[float], density: float) -> float:
    return min(levels, key=lambda level: abs(math.log(level / density)))


def _arms(table: Table, first: str, second: str, density: float) -> tuple[Table, str, str]:
    """The results with a column ``arm``, and the two that are compared at the tickets' density nearest to one."""
    table["start"]  # a table without tickets has no such column, and is not what this is for
    rows = with_arms(table).rows()
    levels = sorted({row["density"] for row in rows if row["kind"] == "ticket"})
    at = _nearest(levels, density) if levels else math.nan
    if not levels or abs(math.log(at / density)) > NEAR:
        raise Untestable(f"there is no ticket with about {density:.3g} of the weights")
    named = [row | {"arm": f"{row['kind']} {row['density']}"} for row in rows if not row["twin"]]
    whole = {"dense": "dense 1.0", "dense line": "line 1.0"}
    one, other = (whole.get(kind, f"{kind} {at}") for kind in (first, second))
    return Table.of(named), one, other


def arm_difference(
    table: Table,
    /,
    *,
    value: str,
    first: str,
    second: str,
    density: float,
    worst: str | float | None = None,
    examples: str | None = None,
) -> Units:
    """`difference` of a value between two kinds of network (`KINDS`) at a density, paired within each seed.

    Raises:
        Untestable: where there is no ticket of about that density.
    """
    named, one, other = _arms(table, first, second, density)
    return difference(named, value=value, over="arm", first=one, second=other, worst=worst, examples=examples)


def arm_ratio(
    table: Table,
    /,
    *,
    value: str,
    first: str,
    second: str,
    density: float,
    worst: str | float | None = None,
    index: int,
) -> Units:
    """`log_ratio` of a value between two kinds of network at a density, paired within each seed.

    Raises:
        Untestable: where there is no ticket of about that density.
    """
    named, one, other = _arms(table, first, second, density)
    return log_ratio(named, value=value, over="arm", numerator=one, denominator=other, worst=worst, index=index)


# --- figures -------------------------------------------------------------------------------------------------------


def by_density(
    tables: dict[str, Table], name: str, title: str, column: str, label: str, *, log: bool = False, index: int = -1
) -> Figure | None:
    """A column against the density, one colour a kind of network, one panel a protocol; every run is a point.

    Args:
        tables: Each protocol's finished runs, `with_arms`.
        name: The figure's file name.
        title: Its title.
        column: What is drawn.
        label: Its name with its unit.
        log: Whether the axis is logarithmic and the mean geometric.
        index: Which element, where the column holds several numbers.

    Returns:
        The figure; None where no protocol has values.
    """
    panels, said = [], []
    for protocol, table in tables.items():
        series: list[Series] = []
        for slot, kind in enumerate(KINDS):
            rows = _drawn(table, kind, column)
            if rows:
                values = [v[index] if isinstance(v := row[column], tuple) else v for row in rows]
                hover = [f"seed {row['seed']}, run {row['run']}" for row in rows]
                series += by_level(kind, [row["density"] for row in rows], values, slot, log=log, hover=hover)
        if not series:
            continue
        panels.append(Panel(protocol, _densities(table), Axis(label, log=log), tuple(series)))
        said.append(f"{protocol}: {_ends(series)}")
    if not panels:
        return None
    kind_of = "geometric means" if log else "means"
    finding = f"{_what(label)} by density, {kind_of} over seeds. {'; '.join(said)}."
    note = (
        f"Each point is one seed; lines join the {kind_of}, with 95 % Student t intervals. Small dense networks stand "
    )
    return Figure(name, title, finding, tuple(panels), note + "at the density of the ticket whose size they have.")


def _drawn(table: Table, kind: str, column: str) -> list[dict[str, Any]]:
    if column not in table.columns:
        return []
    there = (row for row in table.rows() if row[column] is not None and row["density"] is not None)
    return [row for row in there if row["kind"] == kind and not row["twin"]]


def _densities(table: Table) -> Axis:
    held = sorted({row["density"] for row in table.rows() if row["density"] is not None})
    shown = [held[-1]]
    for density in reversed(held[:-1]):  # texts that do not overlap
        if math.log(shown[-1] / density) > 0.55:
            shown.append(density)
    return Axis(SHARE, log=True, ticks=(shown, [f"{100 * d:.3g} %" for d in shown]))


def _ends(series: Sequence[Series]) -> str:
    means = [s for s in series if not s.faint]
    return ", ".join(f"{s.legend} {s.y[0]:.3g} at {100 * s.x[0]:.3g} %" for s in means)


def _what(label: str) -> str:
    plain = label.partition(" (")[0]
    return plain[0].upper() + plain[1:]


def to_dense(tables: dict[str, Table], margins: Sequence[float]) -> Figure | None:
    """Test accuracy of tickets less that of the dense network of the same seed, against the density.

    Args:
        tables: Each protocol's finished runs, `with_arms`.
        margins: Of non-inferiority, in points; they are drawn below 0.

    Returns:
        The figure; None where no protocol has pairs.
    """
    panels, said = [], []
    for protocol, table in tables.items():
        dense = {row["seed"]: row["test_accuracy"] for row in _drawn(table, "dense", "test_accuracy")}
        rows = [row for row in _drawn(table, "ticket", "test_accuracy") if row["seed"] in dense]
        if not rows:
            continue
        densities, values = zip(
            *((r["density"], 100 * (r["test_accuracy"] - dense[r["seed"]])) for r in rows), strict=True
        )
        points, mean = by_level("ticket less dense", densities, values, 1, hover=[f"seed {r['seed']}" for r in rows])
        ends = (min(densities), max(densities))
        lines = [horizontal(f"−{margin:g} points", -margin, ends) for margin in margins]
        label = Axis("test accuracy, ticket less dense (points)")
        panels.append(Panel(protocol, _densities(table), label, (points, mean, *lines)))
        said.append(f"{protocol}: {mean.y[0]:+.2f} points at {100 * mean.x[0]:.3g} %")
    if not panels:
        return None
    finding = f"Test accuracy of tickets less that of the dense network of the same seed. {'; '.join(said)}."
    note = "Each point is one seed; the line joins the means, with 95 % Student t intervals. Grey: the margins judged."
    return Figure("ticket-less-dense", "What pruning costs", finding, tuple(panels), note)


def on_the_line(tables: dict[str, Table], name: str, title: str, column: str, label: str) -> Figure | None:
    """A column of `linear_connectivity` along the line between two runs from one start, one colour a density.

    Args:
        tables: Each protocol's finished runs, `with_arms`.
        name: The figure's file name.
        title: Its title.
        column: What is drawn, an array over the line's positions.
        label: Its name with its unit.

    Returns:
        The figure; None where no protocol has lines.
    """
    panels, said = [], []
    for protocol, table in tables.items():
        rows = _drawn(table, "line", column)
        series: list[Series] = []
        for slot, density in enumerate(sorted({row["density"] for row in rows}, reverse=True)):
            own = [row for row in rows if row["density"] == density]
            ys, seeds = np.array([row[column] for row in own]), [row["seed"] for row in own]
            series += curves(f"{100 * density:.3g} % of weights", own[0]["line_positions"], ys, slot, names=seeds)
        if series:
            panels.append(Panel(protocol, Axis("position between the two runs"), Axis(label), tuple(series)))
            means = [s for s in series if not s.faint]
            said.append(f"{protocol}: " + ", ".join(f"{s.y[len(s.y) // 2]:.3g} for {s.legend}" for s in means))
    if not panels:
        return None
    finding = f"{_what(label)} halfway between two runs from one start, mean over seeds. {'; '.join(said)}."
    note = "The two runs differ in the order of their batches alone. Thin lines are seeds, thick lines their means."
    return Figure(name, title, finding, tuple(panels), note)
