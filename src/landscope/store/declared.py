"""What was planned and claimed before the first run, written once and never overwritten; and what it took."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from landscope.files import folder, publish, read_sealed, seal
from landscope.spec import key
from landscope.store.training import KEY, or_none


def declare(
    root: Path, plan: Mapping[str, Any], claims: Mapping[str, Any], executors: Sequence[Any] = ()
) -> dict[str, Any]:
    """Write down a plan and its claims, unless that has been done; return the claims as they were written first.

    Args:
        root: The store.
        plan: What is trained and measured, as canonical JSON values; its key names the folder, so it must hold what
            identifies the experiment and nothing that may be edited afterwards.
        claims: What is claimed of it, as JSON values.
        executors: By which executor which runs are trained, as JSON values: written beside the plan, no part of its
            name.

    Returns:
        The claims of the first declaration: where they differ from ``claims``, these are post hoc.

    Raises:
        Damaged: where the first declaration is no longer what was written. It cannot be computed anew: restore it
            from a copy, or remove its folder, which declares the claims anew.
        StoreFull, OSError: where it cannot be written.
    """
    path = folder(root, "plans", key(plan))
    publish_once(path / "plan.json", dict(plan) | ({"executors": list(executors)} if executors else {}))
    publish_once(path / "claims.json", claims)
    return read_sealed(path / "claims.json")


def publish_once(path: Path, content: Mapping[str, Any]) -> None:
    """Seal ``content`` in a file, unless there is one: of several processes at once, one writes."""
    if not path.exists():
        publish(path, seal(content), replace=False)


def add_sitting(root: Path, plan: Mapping[str, Any], sitting: Mapping[str, Any]) -> None:
    """Note what one sitting of a plan took: when it began, its seconds, its processes. No result depends on it.

    Of two processes that end at the same moment one may not be noted: times are not worth a lock.

    Args:
        root: The store.
        plan: As given to `declare`.
        sitting: JSON values.

    Raises:
        StoreFull, OSError: where it cannot be written.
    """
    path = folder(root, "plans", key(plan)) / "environment.json"
    publish(path, seal({"sittings": [*sittings(root, plan), dict(sitting)]}))


def sittings(root: Path, plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was noted of the sittings of a plan, in order; those that were killed have left no note."""
    found = or_none(read_sealed, root / "plans" / key(plan) / "environment.json")
    return found["sittings"] if found else []


def plan_folders(root: Path) -> list[Path]:
    """The folders of all plans, sorted."""
    try:
        with os.scandir(root / "plans") as entries:
            return sorted(Path(e.path) for e in entries if KEY.fullmatch(e.name) and e.is_dir(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return []


def plans(root: Path) -> list[dict[str, Any]]:
    """All plans with their claims: ``{"key": …, "plan": …, "claims": …}`` each; claims are None where not yet written.

    Raises:
        Damaged: where one is no longer what was written.
    """
    found = []
    for path in plan_folders(root):
        if (path / "plan.json").exists():
            claims = read_sealed(path / "claims.json") if (path / "claims.json").exists() else None
            found.append({"key": path.name, "plan": read_sealed(path / "plan.json"), "claims": claims})
    return found
