"""Hints in ``.working`` of who does which task, for several drivers on one store; nothing goes wrong where one lies."""

import os
import secrets
from contextlib import suppress
from pathlib import Path

from landscope.files import alive, folder, process_name, read


def claim(root: Path, key: str, *, last_resort: bool) -> bool:
    """Whether this process should do the task ``key``: no other process that is known to live says that it does.

    A hint of another machine is heeded until nothing else is left to do. A wrong answer costs time, not truth.
    """
    mine = process_name()
    for _ in range(2):
        try:
            if _hint(root, key, mine):
                return True
            holder = read(root / ".working" / key).decode("ascii", "replace")
        except (OSError, ValueError):
            return True  # hints cannot be written or read here
        lives = alive(holder)
        if holder == mine:
            return True
        if lives or (lives is None and not last_resort):
            return False
        release(root, key)
    return True


def release(root: Path, key: str) -> None:
    """Take back the hint that somebody does the task ``key``."""
    with suppress(OSError):
        (root / ".working" / key).unlink()


def _hint(root: Path, name: str, mine: str) -> bool:
    """Say that this process does the task ``name``; False where somebody says so already."""
    path = folder(root, ".working")
    temporary = path / f".{mine}-{secrets.token_hex(4)}.tmp"
    try:
        temporary.write_text(mine)
        os.link(temporary, path / name)  # appears with its content, or not at all
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True
