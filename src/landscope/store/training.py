"""A run's own files: its recipe, its mid-run checkpoint, and what it leaves when it is finished."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from landscope.files import (
    Damaged,
    dump,
    folder,
    load,
    publish,
    read,
    read_sealed,
    read_tensors,
    seal,
    sha256,
    tensor_bytes,
)
from landscope.spec import Recipe, canonical_json, from_canonical

KEY = re.compile(r"[0-9a-f]{16}")
_PARTIAL = "partial.safetensors"


def run_folder(root: Path, run: str) -> Path:
    """The folder of a run, which may not exist; refuses every name that is no key."""
    if not KEY.fullmatch(run):
        raise ValueError(f"a run's name in the store is 16 hexadecimal digits, not {run!r}")
    return root / run


def or_none(reader: Any, path: Path) -> Any:
    """What ``reader`` reads; None where there is no such file or it is damaged."""
    try:
        return reader(path)
    except (FileNotFoundError, NotADirectoryError, Damaged):
        return None


def runs(root: Path) -> list[str]:
    """The keys of all runs that were ever begun, sorted."""
    try:
        with os.scandir(root) as entries:
            return sorted(e.name for e in entries if KEY.fullmatch(e.name) and e.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []


def write_spec(root: Path, recipe: Recipe) -> str:
    """Begin a run: make its folder and write its recipe, unless that has been done. Returns the run's key.

    Raises:
        StoreFull, OSError: where it cannot be written.
        ValueError: where the run's folder is a link.
    """
    data = canonical_json(recipe).encode()
    name = sha256(data)[:16]
    path = folder(root, name) / "spec.json"
    if or_none(read, path) != data:
        publish(path, data)
    return name


def read_spec(root: Path, run: str) -> Recipe:
    """The recipe of a run.

    Raises:
        FileNotFoundError: where there is no such run.
        Damaged: where the file is not the one that gave the run its name.
    """
    path = run_folder(root, run) / "spec.json"
    data = read(path)
    if sha256(data)[:16] != run:
        raise Damaged(path, "does not hash to the name of its run")
    found = from_canonical(load(data))
    if not isinstance(found, Recipe):
        raise Damaged(path, "is not a recipe")
    return found


def finish_run(
    root: Path,
    run: str,
    *,
    record: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    states: Mapping[int, Mapping[str, Any]],
    environment: Mapping[str, Any],
) -> None:
    """Publish a run's results, and last of all the record that makes it finished; drop its mid-run checkpoint.

    Args:
        root: The store.
        run: The run's key; `write_spec` has been called.
        record: ``status`` ("done" or "diverged"), ``steps`` made, ``gradient_evaluations``, for a diverged run
            ``reason`` and ``advice``; all of it follows from the recipe (no seconds, no host).
        history: Rows, each with ``"step"`` and whatever was recorded there (numbers, NaN included).
        states: By step, parameters and buffers by name.
        environment: Versions, host, seconds.

    Raises:
        StoreFull, OSError: where something cannot be written; the run is then not finished.
    """
    if record.get("status") not in ("done", "diverged") or not isinstance(record.get("steps"), int):
        raise ValueError(f'a run\'s record has a status ("done" or "diverged") and its steps, not {dict(record)!r}')
    run_folder(root, run)
    path = folder(root, run)
    named = {f"{step}/{name}": tensor for step, state in states.items() for name, tensor in state.items()}
    parts = {
        "history.jsonl": b"".join(dump(row) + b"\n" for row in history),
        "weights.safetensors": tensor_bytes(named, {"run": run}),
    }
    for name, data in parts.items():
        publish(path / name, data)
    publish(path / "environment.json", seal(environment))
    content = dict(record) | {
        "run": run,
        "states": sorted(states),
        "files": {name: {"bytes": len(data), "sha256": sha256(data)} for name, data in parts.items()},
    }
    publish(path / "run.json", seal(content))
    drop_partial(root, run)


def run_record(root: Path, run: str) -> dict[str, Any] | None:
    """A finished run's record: what `finish_run` was given, with ``states`` (the steps kept) and ``files``.

    None where the run is not finished or its record is damaged. The files that it names are verified when they are
    read (`history`, `load_state`): a run whose weights are lost is still a finished run as long as nobody needs them.
    """
    content = or_none(read_sealed, run_folder(root, run) / "run.json")
    # A sealed record of another run, copied here, is no record of this one.
    return content if isinstance(content, dict) and content.get("run") == run else None


def environment(root: Path, run: str) -> dict[str, Any] | None:
    """Versions, host and seconds of a finished run; None where they are not known."""
    return or_none(read_sealed, run_folder(root, run) / "environment.json")


def belonging(root: Path, run: str, name: str) -> bytes:
    """The bytes of a finished run's file, verified against the run's record."""
    path = run_folder(root, run) / name
    record = run_record(root, run)
    if record is None:
        raise LookupError(f"the run {run} is not finished in {root}: train it first")
    try:
        data = read(path)
    except FileNotFoundError:
        raise Damaged(path, "is missing") from None
    if sha256(data) != record["files"][name]["sha256"]:
        raise Damaged(path, "is not the file that its run.json describes")
    return data


def history(root: Path, run: str) -> list[dict[str, Any]]:
    """The rows recorded while training.

    Raises:
        LookupError: where the run is not finished.
        Damaged: where the file is missing or not the one that was written; training again restores it.
    """
    return [load(line) for line in belonging(root, run, "history.jsonl").splitlines()]


def states(root: Path, run: str) -> tuple[int, ...]:
    """The steps whose state a finished run has kept; none where it is not finished."""
    record = run_record(root, run)
    return tuple(record["states"]) if record else ()


def load_state(root: Path, run: str, step: int, *, numpy: bool = False) -> dict[str, Any]:
    """Parameters and buffers of a finished run at a step, as CPU tensors (or NumPy arrays).

    Raises:
        LookupError: where the run is not finished or this step was not kept.
        Damaged: where the file is missing or not the one that was written; training again restores it.
    """
    kept = states(root, run)
    if step not in kept:
        raise LookupError(
            f"the run {run} in {root} has no state at step {step}; it has {', '.join(map(str, kept)) or 'none'}"
        )
    belonging(root, run, "weights.safetensors")
    return read_tensors(run_folder(root, run) / "weights.safetensors", numpy=numpy, prefix=f"{step}/")[0]


# --- a run that is not finished -----------------------------------------------------------------------------------


def save_partial(root: Path, run: str, tensors: Mapping[str, Any], meta: Any) -> None:
    """Keep a run's mid-run checkpoint, in place of the one before: tensors by name, and anything that JSON can hold.

    Raises:
        StoreFull, OSError: where it cannot be written; the one before is then still there.
    """
    run_folder(root, run)
    publish(folder(root, run) / _PARTIAL, tensor_bytes(tensors, {"run": run, "meta": meta}))


def load_partial(root: Path, run: str, *, numpy: bool = False) -> tuple[dict[str, Any], Any] | None:
    """The tensors and the meta of `save_partial`; None where there is no checkpoint or it is damaged: start over."""
    found = or_none(lambda path: read_tensors(path, numpy=numpy), run_folder(root, run) / _PARTIAL)
    if found is None or found[1].get("run") != run:
        return None
    return found[0], found[1]["meta"]


def drop_partial(root: Path, run: str) -> None:
    """Remove a run's mid-run checkpoint, if there is one."""
    (run_folder(root, run) / _PARTIAL).unlink(missing_ok=True)
