"""What all commands share: the application, options, errors in a line, and what is checked before anything begins."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from landscope.terminal import plain

if TYPE_CHECKING:
    from landscope.study import Study

app: typer.Typer = typer.Typer(
    help="Why does this network generalize? Measure trained networks and test papers' claims.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Runs = Annotated[Path, typer.Option("--runs", help="The store: a folder that runs are kept in.")]
Scale = Annotated[str, typer.Option("--scale", help="smoke (seconds), laptop (minutes) or paper.")]
Data = Annotated[str | None, typer.Option("--data", help="A data set's name or folder; else the experiment's own.")]
Name = Annotated[str, typer.Argument(metavar="EXPERIMENT", help="Its name; `landscope list` has them.")]
Device = Annotated[str, typer.Option("--device", help="Where to compute: cpu, cuda, cuda:1 …")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
Jobs = Annotated[int | None, typer.Option("--jobs", help="Processes, one thread each; else one for each core.")]
Seeds = Annotated[
    int | None,
    typer.Option("--seeds", help="Seeds to run. Verdicts use the planned ones; more are judged alone, as replication."),
]

STORE = Path("runs")
FAILED, WRONG, INTERRUPTED = 1, 2, 130
KEPT = "what is finished is kept, and the same command goes on from there"


@contextmanager
def clear_errors(debug: bool, kept: str = KEPT) -> Iterator[Callable[[], None]]:
    """What the user can mend becomes one line and exit code 2; --debug shows its traceback.

    Gives a function that raises KeyboardInterrupt where there has been one that some library swallowed. ``kept`` is
    what is said to be there after an interruption.
    """
    seen: list[int] = []

    def interrupted(number: int, _: object) -> None:
        seen.append(number)
        if len(seen) > 1:
            os._exit(INTERRUPTED)
        raise KeyboardInterrupt

    def check() -> None:
        if seen:
            raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # ignored, as in the background of a script, it stays ignored
        signal.signal(signal.SIGINT, interrupted)
    try:
        yield check
    except BrokenPipeError:
        raise  # whoever read what is printed has gone: there is nobody to tell
    except KeyboardInterrupt:
        say_error(f"interrupted; {kept}")
        raise typer.Exit(INTERRUPTED) from None
    except (ValueError, LookupError, TypeError, OSError, ImportError, ArithmeticError) as error:
        if debug:
            raise
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        say_error(text or type(error).__name__)
        raise typer.Exit(WRONG) from None
    finally:
        if signal.getsignal(signal.SIGINT) is interrupted:
            signal.signal(signal.SIGINT, before)


def say_error(text: str) -> None:
    """One line on the error stream, in the name of the command."""
    print(f"landscope: {plain(text)}", file=sys.stderr)


def begin(experiment: str, scale: str, data: str | None, runs: Path, seeds: int | None) -> "Study":
    """A study of an experiment, begun."""
    from landscope import study as studies

    return studies.begin(experiment, scale, data, runs, seeds)


def existing(runs: Path) -> None:
    """Refuse a store that is not there."""
    if not runs.is_dir():
        raise LookupError(f"there is no store at {runs}: run an experiment first, or name its folder with --runs")


def device_of(name: str) -> str:
    """The device's name, if there is one here: found out before anything is written."""
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, ValueError, NotImplementedError) as error:
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise ValueError(f"--device {name} cannot be used here: there is {', '.join(there)}") from error
    return name


def jobs_of(jobs: int | None) -> int:
    """How many processes: what was asked for, else one for each core."""
    if jobs is not None and jobs < 1:
        raise ValueError(f"at least one process is needed, not --jobs {jobs}")
    with suppress(AttributeError):
        return jobs or len(os.sched_getaffinity(0))
    return jobs or os.cpu_count() or 1


def write(path: Path, text: str) -> None:
    """Write a page whole or not at all."""
    from landscope.store import publish

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        publish(path, text.encode())
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise OSError(f"the report could not be written to {path} ({why}): name another place with --out") from error


def file_word(name: str) -> str:
    """A name as a part of a file's name."""
    return "".join(c if (c.isalnum() and c.isascii()) or c in "-_" else "-" for c in name)[:60] or "data"
