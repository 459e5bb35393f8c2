"""Commands that look: list, plan, status, sql, rank."""

import json
import shutil
import sys
import textwrap
from collections.abc import Collection, Mapping
from pathlib import Path
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
    file_word,
    jobs_of,
    say_error,
    write,
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


@app.command()
def rank(
    runs: Runs = STORE,
    where: Annotated[
        str, typer.Option("--where", help="Which runs: an SQL condition, such as \"optimizer = 'SGD'\".")
    ] = "",
    measures: Annotated[
        list[str] | None, typer.Option("--measures", help="Measured values, with commas (or repeat); else all.")
    ] = None,
    outcome: Annotated[
        str, typer.Option("--outcome", help="What to predict: generalization_gap, test_loss …")
    ] = "generalization_gap",
    by: Annotated[
        list[str] | None, typer.Option("--by", help="Settings that make a configuration; else all that vary.")
    ] = None,
    step: Annotated[str, typer.Option("--step", help="At which runs were measured.")] = "end",
    test_samples: Annotated[
        int | None,
        typer.Option("--test-samples", help="Behind a configuration's outcome; 0 counts all pairs alike."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the bootstrap.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts for programs instead.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="The HTML page; else into the store.")] = None,
    debug: Debug = False,
) -> None:
    """Rank measures by how well they predict an outcome.

    Over all finished runs of a store; the unit is the configuration, averaged over its seeds.
    """
    with clear_errors(debug, "the same command begins anew"):
        from landscope import ranking, terminal

        existing(runs)
        if out is not None:
            from landscope.files import check_place

            check_place("--out", out, "an HTML file")
        settings = {"where": where, "outcome": outcome, "step": step, "test_samples": test_samples, "seed": seed}
        names = {"measures": ranking.listed(measures), "by": ranking.listed(by)}
        with terminal.progress("Ranking …"):
            found = ranking.rank_store(runs, **names, **settings)
        if as_json:
            print(json.dumps(found.to_json(), indent=2, sort_keys=True, allow_nan=False))
        else:
            ranking.print_ranking(found)
        if out is None and as_json:
            return
        from landscope.report import ranking_html

        path = out or runs / f"rank-{file_word(outcome)}.html"
        write(path, ranking_html(found, command=ranking.command(names | settings)))
        print(f"Report: {plain(str(path.resolve()))}", file=sys.stderr if as_json else sys.stdout)
