"""The command for a network of one's own: measure."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from landscope.cli.shared import STORE, Debug, Device, Runs, app, clear_errors, device_of
from landscope.terminal import plain


@app.command()
def measure(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A state dict in a safetensors file.")],
    model: Annotated[str, typer.Option("--model", help="package.module:factory, which returns the module. It is run.")],
    data: Annotated[str, typer.Option("--data", help="A data set's name or folder.")],
    loss: Annotated[str, typer.Option("--loss", help="cross_entropy or squared_error.")] = "cross_entropy",
    measures: Annotated[
        list[str] | None,
        typer.Option("--measures", help="Measures or topics, such as spectrum,sharpness (or repeat); else all."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Draws the data split: the one used in training.")] = 0,
    train: Annotated[int | None, typer.Option("--train", help="Training samples; else the data set's own.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The HTML report; else beside the checkpoint.")] = None,
    as_json: Annotated[str | None, typer.Option("--json", help="A file for all values; - prints them instead.")] = None,
    runs: Runs = STORE,
    device: Device = "cpu",
    debug: Debug = False,
) -> None:
    """Measure a network of your own."""
    with clear_errors(debug, "nothing is written before all measures are taken, and the same command begins anew"):
        from landscope import own

        names = own.listed(measures)
        wanted = own.Wanted(checkpoint, model, data, loss, names, seed, train, out, as_json, runs / ".cache", device)
        wanted.check()  # before PyTorch is imported
        device_of(device)
        path = own.measure_checkpoint(wanted)
        # What is asked for as JSON on standard output stands there alone.
        print(f"Report: {plain(str(path.resolve()))}", file=sys.stderr if as_json == "-" else sys.stdout)
