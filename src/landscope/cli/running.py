"""Commands that train and report: run, report, export."""

import json
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landscope import terminal
from landscope.cli.shared import (
    FAILED,
    STORE,
    Data,
    Debug,
    Device,
    Jobs,
    Name,
    Runs,
    Scale,
    Seeds,
    app,
    begin,
    clear_errors,
    device_of,
    existing,
    file_word,
    jobs_of,
    say_error,
    write,
)
from landscope.terminal import plain

if TYPE_CHECKING:
    from landscope.report import Report
    from landscope.sweep import Outcome, Worker


@app.command()
def run(
    experiment: Annotated[
        str | None, typer.Argument(metavar="EXPERIMENT", help="Its name; `landscope list` has them.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Run all experiments, one after another, each on its own data.")
    ] = False,
    scale: Scale = "laptop",
    data: Data = None,
    seeds: Seeds = None,
    jobs: Jobs = None,
    runs: Runs = STORE,
    out: Annotated[
        Path | None, typer.Option("--out", help="The report, HTML or (ending in .md) text; else into the store.")
    ] = None,
    device: Device = "cpu",
    debug: Debug = False,
) -> None:
    """Train, measure, judge the claims, write the report.

    Only what is not trained and measured yet is done.
    Interrupt it whenever you like: the same command goes on where it stopped.
    """
    with clear_errors(debug) as check:
        from landscope import store
        from landscope import study as studies

        begun = Begun(scale, runs, seeds, jobs_of(jobs), device_of(device), debug, check)
        if out is not None:
            from landscope.files import check_place

            check_place("--out", out, "a file")
        if experiment is not None and not every:
            studies.check(experiment, scale, seeds)
            store.writable(runs)
            code, said = _run(experiment, begun, data)
            if said is not None:
                terminal.print_verdicts(said)
                _write_report(said, out or _page_of(said, runs))
        else:
            _check_all(experiment, every, data, out)
            store.writable(runs)
            code = _run_all(begun)
    if code:
        raise typer.Exit(code)


@dataclass(frozen=True)
class Begun:
    """What all experiments of one command share: the options of `run`."""

    scale: str
    runs: Path
    seeds: int | None
    jobs: int
    device: str
    debug: bool
    check: Callable[[], None]


def _run(
    experiment: str, begun: Begun, data: str | None, workers: "list[Worker] | None" = None
) -> "tuple[int, Report | None]":
    """Do what is left of an experiment: the exit code, and what is to be said where nothing has stopped it."""
    from landscope import study as studies

    study = begin(experiment, begun.scale, data, begun.runs, begun.seeds)
    changed = studies.declare(study)
    if changed:
        print(f"Changed since they were declared, and so post hoc: {plain('; '.join(changed))}")
    outcome = terminal.execute(study, begun.jobs, begun.device, begun.check, workers)
    return _say_outcome(outcome, begun.debug), studies.report(study) if outcome.stopped is None else None


def _check_all(experiment: str | None, every: bool, data: str | None, out: Path | None) -> None:
    """Refuse what makes no sense with --all, and neither a name nor --all."""
    if not every:
        raise ValueError("name an experiment (`landscope list` has them), or give --all")
    if experiment is not None:
        raise ValueError(f"--all runs every experiment: leave {experiment!r} or --all out")
    for option, value in (("--data", data), ("--out", out)):
        if value is not None:
            raise ValueError(f"{option} {value} is for one experiment: with --all each has its own")


def _run_all(begun: Begun) -> int:
    """Every experiment that has the scale, whatever becomes of the others; a table in the end, and the exit code."""
    from landscope import experiments
    from landscope import study as studies
    from landscope.prediction import duration
    from landscope.sweep import pool
    from landscope.types import Table

    names = list(experiments.names())
    studies.check(names[0], begun.scale, begun.seeds)  # a scale that is misspelt fails once
    rows, codes = [], []
    with pool() as workers:
        for name in names:
            print(f"\n{name}", flush=True)
            started = time.monotonic()
            code, row = _one_of_all(name, begun, workers)
            rows.append({"experiment": name, "time": duration(time.monotonic() - started)} | row)
            codes.append(code)
            if code > 128:
                break
    terminal.print_table(Table.of(rows))
    stopped = next((code for code in codes if code > 128), 0)
    return stopped or (FAILED if any(codes) else 0)


def _one_of_all(name: str, begun: Begun, workers: "list[Worker]") -> tuple[int, dict[str, Any]]:
    """One of all experiments: the exit code, and its row of the table."""
    from landscope.report import headline

    try:
        code, said = _run(name, begun, None, workers)
        if said is None:
            return code, {"networks": None, "claims as published": "stopped"}
        print(plain(headline(said.verdicts)))
        _write_report(said, _page_of(said, begun.runs))
    except Exception as error:  # the others are run all the same
        if begun.debug:
            traceback.print_exc()
        say_error(f"{name}: {error or type(error).__name__}")
        return FAILED, {"networks": None, "claims as published": f"failed: {type(error).__name__}"}
    words = [v.word for v in said.verdicts if v.control is None and v.claim.primary]
    tally = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))
    return code, {
        "networks": len({run for keys in said.runs.values() for run in keys}),
        "claims as published": tally if code == 0 else f"incomplete: {tally}",
    }


def _say_outcome(outcome: "Outcome", debug: bool) -> int:
    if outcome.message:
        say_error(outcome.message)
    for failure in outcome.failures:
        say_error(f"{failure.task.label}: {failure.error}; {failure.advice}")
        if debug:
            print(failure.detail, file=sys.stderr)
    diverged = sum(status.get("diverged", 0) for status in outcome.statuses.values())
    if diverged:
        print(f"{diverged} runs diverged; the report says how they count.")
    if outcome.stopped is not None and outcome.stopped.startswith("SIG"):
        return 128 + signal.Signals[outcome.stopped]
    return 0 if outcome.complete else FAILED


def _page_of(said: "Report", runs: Path) -> Path:
    return runs / f"{said.name}-{said.scale}-{file_word(said.data)}.html"


def _write_report(said: "Report", path: Path) -> None:
    with terminal.progress("Writing the report …"):
        _write_page(said, path)
    print(f"Report: {plain(str(path.resolve()))}")


def _write_page(said: "Report", path: Path) -> None:
    """The report as a page; as text, where the file's name ends so, in which other data sets' sections stay."""
    from landscope.report import to_html, to_markdown

    if path.suffix == ".md":
        write(path, to_markdown(said, path.read_text(encoding="utf-8") if path.exists() else ""))
    else:
        write(path, to_html(said))


@app.command()
def report(
    experiment: Name,
    scale: Scale = "laptop",
    data: Data = None,
    runs: Runs = STORE,
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts for programs instead.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="The file, HTML or (ending in .md) text; else into the store.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Judge what a store holds and write the report."""
    with clear_errors(debug):
        from landscope import study as studies
        from landscope.report import to_json

        existing(runs)
        said = studies.report(studies.resume(experiment, scale, data, runs))
        if as_json:
            print(json.dumps(to_json(said), indent=2, sort_keys=True, allow_nan=False))
        else:
            terminal.print_verdicts(said)
            _write_report(said, out or _page_of(said, runs))


@app.command()
def export(
    experiment: Name,
    to: Annotated[Path, typer.Option("--to", help="A folder; or a file ending in .md, for all tables as text.")],
    scale: Scale = "laptop",
    data: Data = None,
    runs: Runs = STORE,
    debug: Debug = False,
) -> None:
    """Write each figure as PDF and PNG, each table as CSV and LaTeX."""
    with clear_errors(debug):
        from landscope import report as reports
        from landscope import study as studies

        existing(runs)
        said = studies.report(studies.resume(experiment, scale, data, runs))
        if to.suffix == ".md":
            _write_page(said, to)
            print(f"Record: {plain(str(to.resolve()))}")
            return
        written = reports.export(said, to)
        print(f"{len(written)} files in {plain(str(to.resolve()))}")
