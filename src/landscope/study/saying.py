"""What came out of a study, and what it says."""

import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import landscope.store as store
from landscope.prediction import duration
from landscope.report import Report
from landscope.spec import (
    Claim,
    Protocol,
    key,
    step_name,
)
from landscope.stats import Verdict, judge
from landscope.study.doing import changed, claimed, executor_words, plan_of
from landscope.study.finding import Study
from landscope.types import Table


def results(study: Study) -> Table:
    """Everything measured so far: one row per protocol, run and step."""
    steps = {name: protocol.steps for name, protocol in study.experiment.runs.items()}
    return store.results(study.root, study.runs(), steps, study.measures)


def histories(study: Study) -> Table:
    """The learning curves: one row per protocol, run and recorded step."""
    rows: list[dict[str, Any]] = []
    for protocol, recipe in study.runs(study.planned):
        try:
            history = store.history(study.root, key(recipe))
        except (LookupError, store.Damaged):
            continue
        shared = {"protocol": protocol, "run": key(recipe), "seed": recipe.seed, "batch_size": recipe.batch_size}
        rows += [shared | {"optimizer": recipe.optimizer.name} | row for row in history]
    return Table.of(rows)


def verdicts(study: Study, table: Table, seeds: Sequence[int] | None = None) -> list[Verdict]:
    """The verdicts on all claims under all protocols, of the planned seeds or of ``seeds`` (a replication)."""
    judged = judged_tables(study, table)
    found: list[Verdict] = []
    for positive in (False, True):
        claims = [claim for claim in study.claims if claim.positive is positive]
        kept = {name: judged[name] for name, p in study.experiment.runs.items() if p.positive is positive}
        if claims and kept:
            found += judge(claims, kept, study.planned, seeds=seeds)
            for name in kept:
                others = _at_other_steps(study, table, name, claims, seeds)
                found = [
                    replace(v, other_steps=others.get(v.claim.text, {})) if v.protocol == name else v for v in found
                ]
    # Positive controls are judged like a published protocol of their own, but are none.
    return [replace(v, control=v.protocol) if v.claim.positive else v for v in found]


def _at_other_steps(
    study: Study, table: Table, name: str, claims: Sequence[Claim], seeds: Sequence[int] | None
) -> dict[str, dict[str, Verdict]]:
    """By claim and step: the verdicts at the steps that a protocol measures and does not decide by."""
    protocol = study.experiment.runs[name]
    found: dict[str, dict[str, Verdict]] = {}
    for step in protocol.steps:
        if step != protocol.judged and len(table):
            there = table.where(protocol=name, step=step_name(step))
            for verdict in judge(claims, {name: there}, study.planned, seeds=seeds):
                found.setdefault(verdict.claim.text, {})[step_name(step)] = verdict
    return found


def judged_tables(study: Study, table: Table) -> dict[str, Table]:
    """By protocol, the results at the step that decides."""

    def at_judged(name: str, protocol: Protocol) -> Table:
        return table.where(protocol=name, step=step_name(protocol.judged)) if len(table) else table

    return {name: at_judged(name, protocol) for name, protocol in study.experiment.runs.items()}


def report(study: Study) -> Report:
    """All that a report says, gathered from the store."""
    table = results(study)
    first = table.where(seed=list(range(study.planned))) if len(table) else table
    later = range(study.planned, study.seeds)
    declared = next((p["claims"] for p in store.plans(study.root) if p["key"] == key(plan_of(study))), None)
    post_hoc = changed(declared, claimed(study)) if declared else []
    runs: dict[str, list[str]] = {name: [] for name in study.experiment.runs}
    for protocol, recipe in study.runs(max(study.seeds, study.planned)):  # with fewer, the rest is missing
        runs[protocol].append(key(recipe))
    return Report(
        name=study.name,
        experiment=study.experiment,
        scale=study.scale,
        data=study.source.name,
        seeds=study.planned,
        verdicts=verdicts(study, table),
        tables=compared(study, judged_tables(study, first)),
        figures=study.experiment.figures(first, histories(study)) if len(first) else (),
        runs=runs,
        counts={name: _counts(keys, table, name) for name, keys in runs.items()},
        command=study.command(),
        environment=_environment(study, runs),
        plan={"data": repr(study.source), "fingerprint": _fingerprint(study), "executor": executor_words(study)},
        post_hoc=post_hoc,
        replication=verdicts(study, table, later) if len(later) else (),
        replication_seeds=f"seeds {later.start} to {later.stop - 1}" if len(later) else "",
        version=importlib.metadata.version("landscope"),
    )


def compared(study: Study, tables: Mapping[str, Table]) -> dict[str, Table]:
    """The tables without the runs that no claim of the sweep compares (arms that stand beside it)."""
    settings = [dict(c.statistic.kwargs) for c in study.claims if c.statistic is not None and c.primary]
    sweep = next((kwargs for kwargs in settings if kwargs.get("levels")), None)
    if sweep is None:
        return dict(tables)
    kept = dict(sweep.get("where", ())) | {sweep["over"]: list(sweep["levels"])}
    return {name: table.where(**kept) if set(kept) <= set(table.columns) else table for name, table in tables.items()}


def _counts(keys: Iterable[str], table: Table, protocol: str) -> dict[str, int]:
    rows = table.where(protocol=protocol).rows() if len(table) else []
    planned_runs = list(dict.fromkeys(keys))
    kinds = {status: {row["run"] for row in rows if row["status"] == status} for status in ("diverged", "censored")}
    found = {row["run"] for row in rows}
    return {
        "planned": len(planned_runs),
        "done": len(found),
        "diverged": len(kinds["diverged"]),
        "censored": len(kinds["censored"]),
        "missing": len(planned_runs) - len(found),
    }


def _environment(study: Study, runs: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The environment of the runs: one value where all agree, else all of them; and what they took."""
    found: dict[str, set[str]] = {}
    noted = [
        store.environment(study.root, name) for name in dict.fromkeys(run for keys in runs.values() for run in keys)
    ]
    made = [facts for facts in noted if facts is not None]
    for facts in made:
        for what, value in facts.items():
            if not what.endswith("_seconds"):
                found.setdefault(what, set()).add(str(value))
    training = sum((facts.get("training_seconds", 0.0) for facts in made), 0.0)
    return {what: ", ".join(sorted(values)) for what, values in found.items()} | _took(study, len(made), training)


def _took(study: Study, made: int, training: float) -> dict[str, str]:
    """What the runs took, in words; one that was killed has left no note, and an old store has none."""
    if not made:
        return {}
    found = {"training alone": f"{duration(training)} of one thread, {made:,} networks"}
    sittings = store.sittings(study.root, plan_of(study))
    if not sittings:
        return found
    wall, cpu = (sum(sitting[name] for sitting in sittings) for name in ("seconds", "cpu_seconds"))
    processes = " or ".join(dict.fromkeys(str(sitting["processes"]) for sitting in sittings))
    of = "" if len(sittings) == 1 else f" in {len(sittings)} sittings"
    noted = sum(sitting["runs"] for sitting in sittings)
    few = f" (for {noted:,} networks; of the others it was not noted)" if noted < made else ""
    first = sittings[0]
    return found | {
        "wall time": f"{duration(wall)} with {processes} process{'es' * (processes != '1')}{of}{few}",
        "processor time": f"{duration(cpu)}, measuring included",
        "predicted": f"{duration(first['predicted_seconds'])}, before the {'first ' if of else ''}sitting",
    }


def _fingerprint(study: Study) -> str:
    """What tells the data from others of their name: the hash of their files, or what makes them."""
    made = f"none: made by {study.source.call.name} (revision {study.source.call.revision}) from each run's seed"
    return study.source.content or made
