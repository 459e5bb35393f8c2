"""What is done for a study: its tasks, by which executor, and what is declared before the first."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import landscope.store as store
from landscope.engine import Group, Sizes, finished, payload, split, together
from landscope.engine import groups as executor_groups
from landscope.spec import (
    Recipe,
    Step,
    canonical,
    from_canonical,
    key,
    lineage,
    sources,
)
from landscope.stats import changed_claims, claims_fingerprint
from landscope.study.finding import Study
from landscope.sweep import Task


def groups(study: Study) -> list[Group]:
    """The study's runs, and those that they come from, by the way in which they are trained."""
    source = study.source
    return executor_groups([recipe for _, recipe in study.runs()], Sizes(source.shape, source.outputs, source.n_train))


def tasks(study: Study, costs: Mapping[str, float] | None = None, device: str = "cpu", jobs: int = 1) -> list[Task]:
    """One task a population or run, with all that is measured on it under any protocol; a shared run is in one task.

    Runs that the study's own come from (`at`) have tasks, too, which are done before.

    Args:
        study: The study.
        costs: Predicted seconds of each run, by its key.
        device: Where.
        jobs: Processes that the tasks are for: populations are split so that each has something to do.
    """
    steps, kept = _steps(study)
    owner: dict[str, str] = {}  # by run, the task that it is in
    found: list[Task] = []
    for group in groups(study):  # those that others come from stand first
        for recipes in split(group, jobs, len(steps)):
            names = [key(recipe) for recipe in recipes]
            payloads = [
                payload(recipe, steps[name], study.measures, device, kept.get(name, ()))
                for recipe, name in zip(recipes, names, strict=True)
            ]
            alone = group.executor == "solo"
            task, content = (names[0], payloads[0]) if alone else (key(names), together(payloads))
            cost = sum((costs or {}).get(name, 1.0) for name in names)
            after = dict.fromkeys(owner[s.key] for recipe in recipes for s in sources(recipe) if s.key in owner)
            found.append(Task(task, content, cost, _label(recipes), len(recipes), tuple(after)))
            owner |= dict.fromkeys(names, task)
    return found


def _steps(study: Study) -> tuple[dict[str, list[Step]], dict[str, list[Step]]]:
    """By key of each run, the steps at which it is measured, and those whose states other runs come from."""
    runs = study.runs()
    family = lineage(recipe for _, recipe in runs)
    steps: dict[str, list[Step]] = {name: [] for name in family}
    for protocol, recipe in runs:
        steps[key(recipe)].extend(study.experiment.runs[protocol].steps)
    kept: dict[str, list[Step]] = {}
    for recipe, _ in family.values():
        for state in sources(recipe):
            kept.setdefault(state.key, []).append(state.step)
    return steps, kept


def members(study: Study) -> dict[str, int]:
    """By key of each run that is trained in a population, how many are trained together with it."""
    stacked = [group for group in groups(study) if group.executor == "population"]
    parts = [part for group in stacked for part in split(group, 1, 1)]
    return {key(recipe): len(part) for part in parts for recipe in part}


def _label(recipes: Sequence[Recipe]) -> str:
    seeds = sorted({recipe.seed for recipe in recipes})
    said = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
    return f"batch {recipes[0].batch_size}, {said}" + (f" ({len(recipes)} runs)" if len(recipes) > 1 else "")


def executor_words(study: Study) -> str:
    """How a study's runs are trained, in a line."""
    counts = {"population": 0, "solo": 0}
    found = groups(study)
    for group in found:
        counts[group.executor] += len(group.recipes)
    stacked = sum(group.executor == "population" for group in found)
    parts = []
    if counts["population"]:
        kinds = "structure" if stacked == 1 else "structures"
        parts.append(f"{counts['population']} runs of {stacked} {kinds} in populations, as one program each")
    if counts["solo"]:
        why = next(group.why for group in found if group.executor == "solo")
        parts.append(f"{counts['solo']} runs alone ({why})")
    return "; ".join([*parts, "one thread a process"])


def is_finished(study: Study, task: Task) -> bool:
    """Whether the store has all that a task makes."""
    return finished(task.payload, study.root)


def missing_runs(study: Study, task: Task) -> list[str]:
    """The keys of a task's runs that the store lacks, or lacks a measure of."""
    members = task.payload.get("members", [task.payload])
    return [key(from_canonical(m["recipe"])) for m in members if not finished(m, study.root)]


def declare(study: Study) -> list[str]:
    """Write down plan and claims before the first run; returns the texts of claims that are post hoc: changed since."""
    now = claimed(study)
    executors = [group.to_json() for group in groups(study)]
    return changed(store.declare(study.root, plan_of(study), now, executors), now)


def note_sitting(study: Study, **facts: Any) -> None:
    """Note in the store what a sitting took; see `landscope.store.add_sitting`."""
    store.add_sitting(study.root, plan_of(study), facts)


def changed(declared: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The texts of claims that are not as declared; all of them where what they are judged on is not.

    A protocol or measure that is new leaves the others as they were.
    """
    same = declared["seeds"] == now["seeds"] and all(
        name in now["protocols"] and _deciding(now["protocols"][name]) == _deciding(protocol)
        for name, protocol in declared["protocols"].items()
    )
    if same and all(measure in now["measures"] for measure in declared["measures"]):
        return changed_claims(declared["claims"], now["claims"])
    return list(dict.fromkeys((*now["claims"], *declared["claims"])))


def _deciding(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """A declared protocol without what decides nothing: the executor, which is the plan's."""
    return {name: value for name, value in protocol.items() if name != "executor"}


def plan_of(study: Study) -> dict[str, Any]:
    """What identifies a study in its store: its key names the plan's folder."""
    return {"experiment": study.name, "scale": study.scale, "data": study.source.to_json()}


def claimed(study: Study) -> dict[str, Any]:
    """What decides a verdict: claims, seeds, protocols with their runs, measures."""
    protocols: dict[str, Any] = {
        name: {"steps": canonical(p.steps), "judged": canonical(p.judged), "runs": []}
        for name, p in study.experiment.runs.items()
    }
    for name, recipe in study.runs(study.planned):
        protocols[name]["runs"].append(key(recipe))
    return {
        "claims": claims_fingerprint(study.claims),
        "seeds": study.planned,
        "protocols": protocols,
        "measures": canonical(study.measures),
    }


def expected(study: Study, only: Collection[str] | None = None) -> list[tuple[Recipe, int, float]]:
    """Every run with the number of states to be measured on it and the share of its steps that it should make.

    Args:
        study: The study.
        only: Keys of the runs that are wanted; None for all.
    """
    runs = study.runs()
    found: dict[str, tuple[Recipe, set[Step], float]] = {}
    for name, (recipe, _) in lineage(recipe for _, recipe in runs).items():
        found[name] = recipe, set(), 0.0
    for name, recipe in runs:
        protocol = study.experiment.runs[name]
        _, steps, share = found[key(recipe)]
        found[key(recipe)] = (recipe, steps | set(protocol.steps), max(share, protocol.share))
    kept = found if only is None else {name: found[name] for name in found if name in only}
    # Of a run that others alone come from nobody has said that it ends early.
    return [(recipe, len(steps), share or 1.0) for recipe, steps, share in kept.values()]
