"""Commands that train and report: run, report, export."""

import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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
    from landscope.study import Study
    from landscope.sweep import Outcome


@app.command()
def run(
    experiment: Name,
    scale: Scale = "laptop",
    data: Data = None,
    seeds: Seeds = None,
    jobs: Jobs = None,
    runs: Runs = STORE,
    out: Annotated[Path | None, typer.Option("--out", help="Where the report goes; else into the store.")] = None,
    device: Device = "cpu",
    debug: Debug = False,
) -> None:
    """Train, measure, judge the claims, write the report.

    Only what is not trained and measured yet is done.
    Interrupt it whenever you like: the same command goes on where it stopped.
    """
    with clear_errors(debug) as check:
        from landscope import store, terminal
        from landscope import study as studies

        processes, place = jobs_of(jobs), device_of(device)
        studies.check(experiment, scale, seeds)
        store.writable(runs)
        study = begin(experiment, scale, data, runs, seeds)
        changed = studies.declare(study)
        if changed:
            print(f"Changed since they were declared, and so post hoc: {plain('; '.join(changed))}")
        outcome = terminal.execute(study, processes, place, check)
        code = _say_outcome(outcome, debug)
        if outcome.stopped is None:
            _write_report(study, out)
    if code:
        raise typer.Exit(code)


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


def _write_report(study: "Study", out: Path | None) -> None:
    from landscope import study as studies
    from landscope import terminal
    from landscope.report import to_html

    said = studies.report(study)
    terminal.print_verdicts(said)
    path = out or study.root / f"{study.name}-{study.scale}-{file_word(study.source.name)}.html"
    with terminal.progress("Writing the report …"):
        write(path, to_html(said))
    print(f"Report: {plain(str(path.resolve()))}")


@app.command()
def report(
    experiment: Name,
    scale: Scale = "laptop",
    data: Data = None,
    runs: Runs = STORE,
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts for programs instead.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="The HTML file; else into the store.")] = None,
    debug: Debug = False,
) -> None:
    """Judge what a store holds and write the report."""
    with clear_errors(debug):
        from landscope import study as studies
        from landscope.report import to_json

        existing(runs)
        study = studies.resume(experiment, scale, data, runs)
        if as_json:
            print(json.dumps(to_json(studies.report(study)), indent=2, sort_keys=True, allow_nan=False))
        else:
            _write_report(study, out)


@app.command()
def export(
    experiment: Name,
    to: Annotated[Path, typer.Option("--to", help="A folder.")],
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
        written = reports.export(studies.report(studies.resume(experiment, scale, data, runs)), to)
        print(f"{len(written)} files in {plain(str(to.resolve()))}")
