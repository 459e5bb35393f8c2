"""Commands that look: list, plan, status, sql, rank."""

import shutil
import sys
import textwrap
from collections.abc import Collection, Mapping
from typing import Annotated, Any

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
    jobs_of,
    say_error,
)
from landscope.terminal import plain


@app.command("list")
def list_() -> None:
    """List experiments, measures and data sets, with one line each."""
    from landscope import data, experiments, measures

    width = max(60, shutil.get_terminal_size().columns)
    for title, known in (
        ("Experiments", experiments.names()),
        ("Measures", measures.names()),
        ("Data sets (or any folder, or name on the Hugging Face hub)", data.names()),
    ):
        print(f"{title}:")
        for name, line in known.items():
            print(textwrap.fill(f"  {name:<26} {line}", width, subsequent_indent=" " * 29))
        print()


@app.command()
def plan(
    experiment: Name,
    scale: Scale = "laptop",
    data: Data = None,
    seeds: Seeds = None,
    jobs: Jobs = None,
    runs: Runs = STORE,
    device: Device = "cpu",
    debug: Debug = False,
) -> None:
    """Predict what a run would train, detect and cost.

    Nothing is trained but a few steps, which are timed to predict seconds and memory on this machine.
    """
    with clear_errors(debug):
        from landscope import terminal

        processes, place = jobs_of(jobs), device_of(device)
        terminal.show_plan(begin(experiment, scale, data, runs, seeds), processes, place)


@app.command()
def status(
    runs: Runs = STORE,
    verify: Annotated[bool, typer.Option("--verify", help="Read every byte and name damaged files.")] = False,
    debug: Debug = False,
) -> None:
    """Say what a store holds."""
    with clear_errors(debug):
        from landscope import store

        existing(runs)
        keys = store.runs(runs)
        records = [store.run_record(runs, key) for key in keys]
        kinds = ["not finished" if record is None else record["status"] for record in records]
        counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
        print(f"{plain(str(runs))}: {len(keys)} runs" + (f" ({counts})" if counts else ""))
        finished = {key for key, record in zip(keys, records, strict=True) if record is not None}
        for found in store.plans(runs):
            print(plain(f"  {_planned(found, finished)}"))
        if verify:
            damaged = store.verify(runs)
            for damage in damaged:
                say_error(str(damage))
            if damaged:
                raise typer.Exit(FAILED)
            print("every file is what was written")


def _planned(found: Mapping[str, Any], finished: Collection[str]) -> str:
    of, claims = found["plan"], found["claims"] or {}
    protocols = claims.get("protocols", {}).values()
    runs = {run for protocol in protocols for run in protocol["runs"]}
    count = f": {len(runs.intersection(finished))} of {len(runs)} planned runs trained" if runs else ""
    return f"{of['experiment']}, scale {of['scale']}, data {of['data']['name']}{count}"


@app.command()
def sql(
    query: Annotated[str, typer.Argument(metavar="QUERY", help='Such as "select name, value from results limit 9".')],
    runs: Runs = STORE,
    debug: Debug = False,
) -> None:
    """Query all measured values with SQL.

    DuckDB, locked to this store; CSV where the output is not a terminal.
    """
    with clear_errors(debug):
        from landscope import store, terminal

        existing(runs)
        found = store.sql(runs, query)
        if sys.stdout.isatty():
            terminal.print_table(found)
        else:  # for another program: nothing is cut to a width
            from landscope.report import to_csv

            typer.echo(to_csv(found), nl=False)
