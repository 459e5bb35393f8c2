"""What is shown in the terminal: plans, progress, verdicts, tables. Rich is imported on use."""

import textwrap
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from landscope.prediction import Cost
    from landscope.report import Report
    from landscope.spec import Recipe
    from landscope.stats import Verdict
    from landscope.study import Study
    from landscope.sweep import Event, Outcome, Worker

MARKS = {"supported": "✓", "contradicted": "✗", "inconclusive": "?", "not testable": "–"}
STYLES = {"supported": "green", "contradicted": "red", "inconclusive": "yellow"}


def plain(text: str) -> str:
    r"""``text`` on one line, without control characters: what came from elsewhere must not steer the terminal.

    >>> plain("red\x1b[31m\nalert")
    'red\\x1b[31m alert'
    """
    spaced = " ".join(text.split())
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in spaced)


def _console() -> "Console":
    from rich.console import Console

    return Console(highlight=False, markup=False, soft_wrap=False)


def print_table(table: Any) -> None:
    """A `Table` of results."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD)
    for name in table.columns:
        shown.add_column(Text(plain(str(name))), overflow="fold")  # a name cut short is no name
    for row in table.rows():
        shown.add_row(*(Text(plain(_text(value))) for value in row.values()))
    _console().print(shown)


def _text(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


# --- plan ----------------------------------------------------------------------------------------------------------


def show_plan(study: "Study", jobs: int, device: str) -> None:
    """What would be done, what could be detected, and what it would cost."""
    from landscope import study as studies
    from landscope.prediction import duration, wall_seconds
    from landscope.stats import detectable

    costs = _predicted(study, device)
    tasks = studies.tasks(study)
    runs = sum(task.runs for task in tasks)
    todo = {name for task in tasks for name in studies.missing_runs(study, task)}
    print(f"{study.name}, scale {study.scale}: {plain(study.experiment.title)}")
    print(plain(f"Data: {study.source}"))
    primary = [claim for claim in study.claims if claim.primary and not claim.positive]
    level = 1 - 0.05 / max(1, len(primary))
    print(
        f"Seeds: {study.seeds} ({study.planned} decide). {len(primary)} claims are corrected for; with "
        + (
            f"{study.planned} seeds an effect of {detectable(study.planned, 1.0, level):.2f} standard deviations "
            "between seeds is detected with 80 % power."
            if study.planned > 1
            else "one seed nothing can be detected."
        )
    )
    print(f"Runs: {runs} networks, {runs - len(todo)} of them finished.")
    print(plain(f"Executor: {studies.executor_words(study)}."))
    _print_protocols(study, costs)
    left = {name: cost for name, cost in costs.items() if name in todo}
    if not left:
        print("Nothing is left to do.")
        return
    seconds, memory = wall_seconds(left, jobs), max(cost.memory for cost in left.values())
    print(
        f"Predicted for what is left: {duration(seconds)} with {jobs} processes on this machine ({device}), "
        f"{memory / 2**30:.1f} GiB of memory for each at the most."
    )


def _print_protocols(study: "Study", costs: "dict[str, Cost]") -> None:
    """One row for the networks of a protocol that are trained alike from a like beginning; below, what differs."""
    from landscope.types import Table

    alike: dict[tuple[Any, ...], list[Recipe]] = {}
    runs = study.runs(1)
    for protocol, recipe in runs:
        alike.setdefault((("protocol", protocol), *_training(recipe)), []).append(recipe)
    print_table(Table.of(dict(row) | _each(recipes, costs) for row, recipes in alike.items()))
    notes = _differing(runs)
    for note in ["What else differs between the networks of a seed:", *notes] if notes else ():
        indent = "  " if note in notes else ""
        print(textwrap.fill(plain(note), _console().width, initial_indent=indent, subsequent_indent=2 * indent))


def _training(recipe: "Recipe") -> tuple[tuple[str, Any], ...]:
    """How a network is trained, and how it begins: what a row of the plan says."""
    optimizer = f"{recipe.optimizer.name} {dict(recipe.optimizer.kwargs).get('lr', '')}".strip()
    begins = f", {recipe.start.name.replace('_', ' ')}" if recipe.start is not None else ""
    return (
        ("batch", recipe.batch_size),
        ("optimizer", optimizer + begins),
        ("steps", f"{recipe.steps:,}" if recipe.stop is None else f"up to {recipe.steps:,}"),
    )


def _each(recipes: "Sequence[Recipe]", costs: "Mapping[str, Cost]") -> dict[str, Any]:
    """How many networks a seed has of a kind, and what each costs."""
    from landscope.prediction import duration
    from landscope.spec import key

    found = [costs[key(recipe)] for recipe in recipes]

    def range_of(values: Iterable[float]) -> str:
        ordered = sorted(values)
        return " to ".join(dict.fromkeys(duration(end) for end in (ordered[0], ordered[-1])))

    return {
        "networks": len(recipes),
        "training, each": range_of(cost.training for cost in found),
        "measuring, each": range_of(cost.measuring for cost in found),
    }


def _differing(runs: "Sequence[tuple[str, Recipe]]") -> list[str]:
    """By protocol, the settings that have several values among a seed's runs and that their rows do not say."""
    from landscope.store import settings

    shown = {"optimizer", "optimizer.lr", "steps", "order_seed", "start", "schedule.T_max"}
    found: dict[str, dict[str, dict[str, None]]] = {}  # setting, protocol, values
    for protocol, recipe in runs:
        for name, value in settings(recipe).items():
            if name not in shown and "@" not in _text(value):  # not the states of other runs
                found.setdefault(name, {}).setdefault(protocol, {})[_text(value)] = None
    several = {name: of for name, of in found.items() if len({value for values in of.values() for value in values}) > 1}
    said: dict[str, list[str]] = {}
    for name, of in several.items():
        for protocol, values in of.items():
            said.setdefault(protocol, []).append(f"{name} {', '.join(values)}")
    return [
        f"{protocol}: {'; '.join(said[protocol])}" for protocol in dict.fromkeys(p for p, _ in runs) if protocol in said
    ]


def _predicted(study: "Study", device: str, only: Collection[str] | None = None) -> "dict[str, Cost]":
    from landscope import study as studies
    from landscope.prediction import predict

    with progress("Timing a few steps …") as say:

        def on_group(done: int, groups: int) -> None:
            say(f"Timing a few steps: {done + 1} of {groups} kinds of run …")

        expected, members = studies.expected(study, only), studies.members(study)
        return predict(expected, study.measures, study.root, device, on_group, members)


@contextmanager
def progress(text: str = "") -> Iterator[Callable[[str], None]]:
    """A line that says what is being done, on the terminal alone; inside, call what it gives to change the line."""
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(plain(text))) as status:
        yield lambda new: status.update(Text(plain(new)))


# --- run -----------------------------------------------------------------------------------------------------------


def execute(
    study: "Study", jobs: int, device: str, check: Callable[[], None], workers: "list[Worker] | None" = None
) -> "Outcome":
    """Do what is left of a study, with a progress bar and the time left, and note in the store what it took.

    Args:
        study: The study.
        jobs: Worker processes.
        device: Where.
        check: Called before it begins.
        workers: Of the sweep before, for this one and the next (see `landscope.sweep.pool`).
    """
    from landscope import study as studies
    from landscope.prediction import wall_seconds
    from landscope.sweep import sweep

    tasks = studies.tasks(study, device=device, jobs=jobs)
    todo = {name for task in tasks for name in studies.missing_runs(study, task)}
    costs = _predicted(study, device, todo) if todo else {}
    if todo:
        tasks = studies.tasks(study, {name: cost.seconds for name, cost in costs.items()}, device, jobs)
    check()
    began, started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.monotonic()
    with _bar(sum(task.runs for task in tasks), jobs, shown=bool(todo)) as on_event:
        outcome = sweep(
            tasks,
            "landscope.engine:work",
            root=study.root,
            jobs=jobs,
            finished=lambda task: studies.is_finished(study, task),
            on_event=on_event,
            workers=workers,
        )
    if outcome.cpu_seconds:
        with suppress(OSError):  # a disk that is full: the outcome says so
            studies.note_sitting(
                study,
                began=began,
                seconds=round(time.monotonic() - started, 3),
                cpu_seconds=round(outcome.cpu_seconds, 3),
                predicted_seconds=round(wall_seconds(costs, jobs), 3),
                runs=sum(task.runs for task in tasks if task.key in outcome.statuses),
                processes=jobs,
                device=device,
            )
    return outcome


@contextmanager
def _bar(runs: int, jobs: int, shown: bool) -> "Iterator[Callable[[Event], None]]":
    """A progress bar with the time left; inside, call what it gives with every event."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    from landscope.prediction import duration

    began = said = time.monotonic()
    console = Console(stderr=True, highlight=False)
    columns = (BarColumn(), TextColumn("{task.completed:.0%}"), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console, disable=not shown) as bar:
        line = bar.add_task(f"{runs} runs", total=1.0)

        def on_event(event: "Event") -> None:
            nonlocal said
            share = event.cost_done / event.cost_total if event.cost_total else 1.0
            spent = time.monotonic() - began
            left = _time_left(spent, event.cost_done, event.cost_total, jobs)
            text = f"{event.done} of {event.total} runs, {duration(spent)} so far, {left}"
            bar.update(line, completed=share, description=text)
            if not console.is_terminal and time.monotonic() - said > 15:  # a log gets a line now and then
                said = time.monotonic()
                print(text, flush=True)

        yield on_event


def _time_left(spent: float, done: float, total: float, jobs: int) -> str:
    """By the prediction at first, and more and more by the speed seen since."""
    from landscope.prediction import duration

    if total <= done:
        return "finishing"
    predicted = (total - done) / jobs
    trust = min(1.0, done / (0.2 * total))
    seen = spent * (total - done) / done if done > 0 else predicted
    return f"about {duration(max(1.0, trust * seen + (1 - trust) * predicted))} left"


# --- verdicts ------------------------------------------------------------------------------------------------------


def print_verdicts(report: "Report") -> None:
    """The verdicts: under each claim the paper's number, then a line for the published protocol and each control."""
    for positive in (False, True):
        verdicts = [v for v in report.verdicts if v.claim.positive is positive]
        if not verdicts:
            continue
        print("\nPositive controls" if positive else f"\n{report.experiment.title}")
        _print_claims(verdicts, report.post_hoc)
    if report.replication:
        print(f"\nReplication, judged alone: {plain(report.replication_seeds)}")
        _print_claims([v for v in report.replication if not v.claim.positive], ())
    print()
    for protocol, counts in report.counts.items():
        if counts.get("diverged") or counts.get("missing"):
            kinds = [f"{counts[kind]} {kind}" for kind in ("diverged", "missing") if counts.get(kind)]
            print(plain(f"{protocol}: {' and '.join(kinds)} of {counts['planned']} runs"))
    if any(counts.get("missing") for counts in report.counts.values()):
        print("Not all planned runs are finished: `landscope run` goes on with them.")
    print("Intervals are those that decide, corrected for the number of claims.\n")


def _print_claims(verdicts: "Sequence[Verdict]", post_hoc: Collection[str]) -> None:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    from landscope.stats import shown

    console = _console()
    for text in dict.fromkeys(v.claim.text for v in verdicts):
        mine = [v for v in verdicts if v.claim.text == text]
        claim = mine[0].claim
        note = " (post hoc: changed since it was declared)" if text in post_hoc else ""
        console.print(Text(f"\n{plain(text)}{note}", style="bold"))
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
        if claim.paper:
            table.add_row("  paper", "", shown(claim, claim.paper.value), "", f"n = {claim.paper.n}")
        for verdict in mine:
            table.add_row(f"  {plain(verdict.protocol)}", *_verdict_cells(verdict))
        console.print(table)
        for verdict in mine:
            if verdict.effect is None or verdict.word == "not testable":  # then the word alone leaves the reader asking
                console.print(Padding(f"{plain(verdict.protocol)}: {plain(verdict.reason)}", (0, 0, 0, 4)), style="dim")
            if verdict.agreement:
                said = f"{plain(verdict.protocol)}: {plain(verdict.agreement)}"
                console.print(Padding(said, (0, 0, 0, 4)), style="dim")


def _verdict_cells(verdict: "Verdict") -> "tuple[Text, str, str, str]":
    """Word, effect, deciding interval and number of units."""
    from rich.text import Text

    from landscope.stats import shown, shown_interval

    kind = f": {verdict.why}" if verdict.word == "contradicted" and verdict.why else ""
    word = Text(f"{MARKS.get(verdict.word, '·')} {verdict.word}{kind}", style=STYLES.get(verdict.word, "dim"))
    if verdict.effect is None or verdict.word == "not testable":  # an effect among those that came there is no effect
        return word, "", "", ""
    low, high = verdict.holm_low, verdict.holm_high
    if low is None or high is None:
        low, high = verdict.low, verdict.high
    held = "" if low is None or high is None else shown_interval(verdict.claim, low, high).removesuffix(" points")
    return word, shown(verdict.claim, verdict.effect), held, f"n = {verdict.n}"
