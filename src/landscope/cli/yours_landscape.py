"""The command that draws the loss around networks of one's own: landscape."""

from pathlib import Path
from typing import Annotated, Any

import typer

from landscope.cli.shared import STORE, Debug, Device, Runs, app, clear_errors, device_of
from landscope.terminal import plain


@app.command()
def landscape(
    checkpoints: Annotated[
        list[Path], typer.Argument(metavar="CHECKPOINT…", help="State dicts in safetensors files, in order.")
    ],
    model: Annotated[str, typer.Option("--model", help="package.module:factory, which returns the module. It is run.")],
    data: Annotated[str, typer.Option("--data", help="A data set's name or folder.")],
    plane: Annotated[
        str, typer.Option("--plane", help="random, eigen, pca (of the checkpoints) or between.")
    ] = "random",
    loss: Annotated[str, typer.Option("--loss", help="cross_entropy or squared_error.")] = "cross_entropy",
    normalisation: Annotated[str, typer.Option("--normalisation", help="filter, layer, model or none.")] = "filter",
    span: Annotated[
        tuple[float, float] | None, typer.Option("--span", help="Range of both axes; else −1 1, or the checkpoints'.")
    ] = None,
    points: Annotated[int, typer.Option("--points", help="Points along each axis.")] = 51,
    samples: Annotated[
        int | None, typer.Option("--samples", help="A fixed stratified part of each set; else all.")
    ] = None,
    cap: Annotated[float | None, typer.Option("--cap", help="Leave points whose loss lies beyond this.")] = None,
    refine: Annotated[
        float | None, typer.Option("--refine", help="From coarse to fine, to this relative error.")
    ] = None,
    batchnorm: Annotated[str | None, typer.Option("--batchnorm", help="frozen or recomputed at each point.")] = None,
    shard: Annotated[
        str | None, typer.Option("--shard", help="i/n: part i of n alone, from 0; files once all are done.")
    ] = None,
    draw: Annotated[int, typer.Option("--draw", help="The seed of random directions.")] = 0,
    seed: Annotated[int, typer.Option("--seed", help="Draws the data split: the one used in training.")] = 0,
    train: Annotated[int | None, typer.Option("--train", help="Training samples; else the data set's own.")] = None,
    out: Annotated[
        list[Path] | None,
        typer.Option("--out", help="A file: .html, .svg, .pdf, .png, .csv, .vtk, .npz, .safetensors; may be repeated."),
    ] = None,
    runs: Runs = STORE,
    device: Device = "cpu",
    debug: Debug = False,
) -> None:
    """Draw the loss landscape of your own networks."""
    with clear_errors(debug):
        settings: dict[str, Any] = {"samples": samples, "seed": seed, "cap": cap, "refine": refine}
        settings |= {"folder": runs / ".cache" / "landscapes", "shard": _shard(shard)}
        settings |= {} if batchnorm is None else {"batchnorm": batchnorm}
        from landscope.own import landscapes

        asked = landscapes.Asked(
            checkpoints, model, data, plane, loss, normalisation, span, points, seed, draw, train, settings,
            out or [], runs / ".cache", device_of(device),
        )  # fmt: skip
        landscapes.check(asked)
        for path in landscapes.draw_landscape(asked):
            print(f"Written: {plain(str(path.resolve()))}")


def _shard(text: str | None) -> tuple[int, int] | None:
    """The two numbers of ``i/n``.

    >>> _shard("1/4"), _shard(None)
    ((1, 4), None)
    """
    if text is None:
        return None
    parts = text.split("/")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise ValueError(f"--shard is i/n, such as 0/4, not {text!r}")
    return int(parts[0]), int(parts[1])
