"""What can be wrong with a file."""

import os
from pathlib import Path


class Damaged(ValueError):
    """A file that is not what was once written: torn, rotten, edited or exchanged. ``path`` names it."""

    def __init__(self, path: Path | str, what: str) -> None:
        self.path: Path = Path(path)
        super().__init__(
            f"{path} {what}: it is not used; give the same command again to compute it anew, or restore it from a copy"
        )


class StoreFull(OSError):
    """No space, or no quota, was left for a file: ``path`` and ``bytes`` say for which."""

    def __init__(self, number: int, path: Path | str, size: int) -> None:
        self.path: Path = Path(path)
        self.bytes: int = size
        super().__init__(
            number,
            f"no space left for the {size:,} bytes of {path} ({os.strerror(number)}): free some space or move the "
            "store, then give the same command again; nothing already computed is lost",
        )

    def __str__(self) -> str:
        return str(self.strerror)
