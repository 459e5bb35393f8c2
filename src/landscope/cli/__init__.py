"""The command line. Everything heavy is imported where it is used, so that help and completion answer at once."""

import io
import sys
from typing import Annotated

import typer

from landscope.cli import looking, running, yours, yours_landscape  # noqa: F401 - they add commands in this order
from landscope.cli.shared import app

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):  # a terminal without our letters shows question marks, and goes on
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    app()


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from importlib.metadata import version as of

        print(f"landscope {of('landscope')}")
        raise typer.Exit
