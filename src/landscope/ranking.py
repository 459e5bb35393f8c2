"""The store as a data set: which measure orders its configurations as their generalization gap does."""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from landscope import store
from landscope.report.quantities import is_cost, quantities
from landscope.spec import from_canonical
from landscope.stats import MeasureRecord, Ranged, Ranking, candidates, rank_measures
from landscope.terminal import plain, print_table
from landscope.types import Table

DEFAULTS = {"outcome": "generalization_gap", "step": "end", "seed": "0"}
MARKS = {"predicts": "✓", "reversed": "✗", "confounded": "!", "undecided": "?"}


def measured_runs(root: Path, where: str = "", step: str = "end") -> Table:
    """A store's finished runs, a row each: settings, status and every value at a step, elements as ``name[i]``.

    A run that made all its steps without coming below the level at which it was to stop has the status ``censored``.
    Where two measures (or one with two settings) give the same name, it is preceded by the measure as one would write
    it.

    Args:
        root: The store.
        where: An SQL condition on the columns of ``runs``; empty for all.
        step: As the store's ``step`` column has it: ``end``, ``start``, a number, ``train_loss<0.01``.

    Raises:
        LookupError: where no run is there, none is selected, or none was measured at the step.
        ValueError: for a condition that is no SQL; the message is DuckDB's, with the columns there are.
    """
    # The query runs in a data base of its own that can read and write nothing else: see `store.sql`.
    chosen = f"from runs where (\n{where}\n)" if where.strip() else "from runs"
    runs = store.sql(root, f"select * {chosen}")
    if not len(runs):
        condition = f" with {where.strip()}" if where.strip() else ""
        raise LookupError(f"there is no finished run{condition} in {root}: `landscope status` says what there is")
    asked = "'" + step.replace("'", "''") + "'"
    values = store.sql(
        root,
        'select run, measure, call, name, "index", value from measured '  # noqa: S608
        f"where step = {asked} and run in (select run {chosen}) order by all",
    )
    if not len(values) and any(status != "diverged" for status in runs["status"]):
        steps = store.sql(root, f"select distinct step from measured where run in (select run {chosen}) order by 1")  # noqa: S608
        there = ", ".join(map(str, steps["step"])) or "none"
        raise LookupError(f"no run was measured at step {step!r}; the steps there are: {there}")
    named = _named(values)
    rows = [{**row, **named.get(row["run"], {})} for row in runs.rows()]
    for row in rows:
        level = row.get("stop.level")
        stopped = level is None or row["steps_made"] < row["steps"] or row.get("train_loss", -math.inf) < level
        if step == "end" and row["status"] != "diverged" and not stopped:
            row["status"] = "censored"
    return Table.of(rows)


def _named(values: Table) -> Mapping[str, dict[str, float]]:
    """By run, every value under its name."""
    givers: dict[str, set[str]] = {}
    for name, call in zip(values["name"], values["call"], strict=True):
        givers.setdefault(name, set()).add(call)
    words = {call: repr(from_canonical(json.loads(call))) for call in set(values["call"])}
    found: dict[str, dict[str, float]] = {}
    for run, call, name, index, value in zip(
        *(values[column] for column in ("run", "call", "name", "index", "value")), strict=True
    ):
        column = name if len(givers[name]) == 1 else f"{words[call]}.{name}"
        found.setdefault(run, {})[column if index is None else f"{column}[{index}]"] = value
    return found


def rank_store(
    root: Path,
    *,
    where: str = "",
    measures: Sequence[str] = (),
    outcome: str = "generalization_gap",
    by: Sequence[str] = (),
    step: str = "end",
    test_samples: int | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Ranking:
    """`landscope.stats.rank_measures` over a store's finished runs.

    Args:
        root: The store.
        where: An SQL condition on the columns of ``runs``; empty for all.
        measures: Values to rank; an array's name stands for all its elements. If empty, all single numbers.
        outcome: What is to be predicted.
        by: Which settings make a configuration; if empty, all that vary.
        step: At which the runs were measured.
        test_samples: As for `landscope.stats.rank_measures`, like what follows.
        draws: Of the bootstrap and of the permutations.
        seed: Theirs.

    Raises:
        LookupError: where there are no such runs, or no such measure or outcome.
        ValueError: for a condition that is no SQL, and for runs that nothing can be concluded from.
    """
    table = measured_runs(root, where, step)
    wanted = [column for name in measures for column in _elements(table, name)]
    if not measures:
        single = [name for name in candidates(table) if not name.endswith("]") and not is_cost(name)]
        own = quantities({name: 0.0 for name in single})
        wanted = [name for name in own if name != outcome]
    return rank_measures(
        table, outcome=outcome, measures=wanted, by=by, test_samples=test_samples, draws=draws, seed=seed
    )


def _elements(table: Table, name: str) -> list[str]:
    own = [column for column in table.columns if column.startswith(f"{name}[")]
    return [name] if name in table.columns or not own else own


def listed(names: Sequence[str] | None) -> tuple[str, ...]:
    """Names given one by one or with commas between them.

    >>> listed(["a,b", "c"])
    ('a', 'b', 'c')
    """
    return tuple(part for name in names or () for part in (p.strip() for p in name.split(",")) if part)


def command(settings: Mapping[str, Any]) -> str:
    """The command that ranks the same again, with what was not left as it is; the store is where one stands."""
    words = ["landscope", "rank"]
    for name, value in settings.items():
        text = ",".join(value) if isinstance(value, tuple) else "" if value is None else str(value)
        if text and text != DEFAULTS.get(name):
            words += [f"--{name.replace('_', '-')}", text]
    return shlex.join(words)


def print_ranking(ranking: Ranking) -> None:
    """The ranking as a table, with what a reader must know."""
    print(
        f"\nPredicting {plain(ranking.outcome)} over {ranking.configurations} configurations "
        f"({ranking.runs} runs): {plain('; '.join(_axis(n, v) for n, v in ranking.axes.items()))}"
    )
    print_table(Table.of(_row(record) for record in ranking.measures))
    for note in ranking.notes:
        print(plain(note))
    for name, why in ranking.unranked.items():
        print(plain(f"Not ranked: {name}: {why}."))
    print("τ > 0: a larger measure goes with a larger outcome. Intervals are 95 %, p is that of τ, corrected by Holm's")
    print("method; worst: the share of wrong signs in the worst environment. The page has the other coefficients.\n")


def _axis(name: str, levels: Sequence[Any]) -> str:
    return f"{name} ({len(levels)})"


def _row(record: MeasureRecord) -> dict[str, str]:
    """What fits a terminal; the page has all of it."""
    return {
        "measure": record.name,
        "along axes": _shown(record.granulated),
        "τ": f"{record.tau.value:+.2f}",
        "p": f"{record.p_holm:.2g}",
        "worst": "" if record.worst is None else f"{record.worst.error:.0%}",
        "": f"{MARKS[record.reading]} {record.reading}",
    }


def _shown(of: Ranged | None) -> str:
    return "" if of is None else f"{of.value:+.2f} [{of.low:+.2f}, {of.high:+.2f}]"
