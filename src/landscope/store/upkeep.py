"""Looking after a store: is every file what was written, may it be written to, and what dead processes left behind."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from landscope.files import TEMPORARY, Damaged, alive, publish, read, read_sealed, tensor_meta
from landscope.store.cells import cell_arrays, cell_content, cell_files
from landscope.store.declared import plan_folders
from landscope.store.training import belonging, drop_partial, read_spec, run_record, runs


def verify(root: Path) -> list[Damaged]:
    """Every damaged file of the store (``.path`` names it, the message says what to do); every byte is read."""
    return [damage for check in _checks(root) if (damage := _damage(check)) is not None]


def _damage(check: Callable[[], Any]) -> Damaged | None:
    try:
        check()
    except Damaged as damage:
        return damage
    except (FileNotFoundError, LookupError):  # not written yet
        pass
    return None


def _checks(root: Path) -> Iterator[Callable[[], Any]]:
    for run in runs(root):
        path = root / run
        yield lambda run=run: read_spec(root, run)
        yield lambda path=path, run=run: _own_record(path / "run.json", run)
        yield lambda path=path: read_sealed(path / "environment.json")
        if run_record(root, run) is not None:
            yield lambda run=run: belonging(root, run, "history.jsonl")
            yield lambda run=run: belonging(root, run, "weights.safetensors")
        yield lambda path=path: _partial(path / "partial.safetensors")
        for file in cell_files(root, run):
            yield lambda file=file: cell_arrays(file, cell_content(file))
    for path in plan_folders(root):
        yield lambda path=path: read_sealed(path / "plan.json")
        yield lambda path=path: read_sealed(path / "claims.json")
        yield lambda path=path: read_sealed(path / "environment.json")


def _own_record(path: Path, run: str) -> None:
    content = read_sealed(path)
    if not isinstance(content, dict) or content.get("run") != run:
        raise Damaged(path, "is the record of another run")


def _partial(path: Path) -> None:
    tensor_meta(path, read(path))


def writable(root: Path) -> None:
    """See that files can be published in the store, by publishing one (an administrator ignores permissions).

    Raises:
        OSError: where they cannot; the message says what to do.
    """
    probe = root / f".probe-{os.getpid()}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        publish(probe, b"")
        probe.unlink()
    except OSError as error:
        raise OSError(
            error.errno,
            f"the store {root} cannot be written to ({os.strerror(error.errno or 0)}): choose another folder with "
            "--runs; "
            "reading it (status, report, sql, export) needs no writing",
        ) from error


def clean(root: Path) -> None:
    """Remove what dead processes of this machine left: temporaries, hints, checkpoints of runs that are finished.

    Files of processes that are alive, or of other machines, stay. A file that cannot be removed is left alone.
    """
    folders = [root, root / ".cache", root / ".working", *plan_folders(root)]
    for run in runs(root):
        folders += [root / run, root / run / "values"]
        if (root / run / "partial.safetensors").exists() and run_record(root, run) is not None:
            drop_partial(root, run)
    for path in folders:
        for name in _names(path):
            match = TEMPORARY.fullmatch(name)
            if match and alive(match[1]) is False:
                _remove(path / name)
    for name in _names(root / ".working"):
        if alive(_text(root / ".working" / name)) is False:
            _remove(root / ".working" / name)


def _names(path: Path) -> list[str]:
    if path.is_symlink():
        return []
    try:
        return os.listdir(path)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _text(path: Path) -> str:
    try:
        return read(path).decode("ascii", "replace")
    except (OSError, Damaged):
        return ""


def _remove(path: Path) -> None:
    try:
        path.unlink()
    except OSError:
        pass
