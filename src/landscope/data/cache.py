"""Decoded images in the cache: one file for each data set, named by the hash of what it was decoded from."""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscope import files

if TYPE_CHECKING:
    from torch import Tensor


_CONTENT = re.compile(r"[0-9a-f]{16}")


def cached(cache: Path, content: str) -> Path:
    """The file of a decoded data set, there or not."""
    if not _CONTENT.fullmatch(content):
        raise ValueError(f"content is the 16 hexadecimal digits that name a decoded data set, not {content!r}")
    return cache / "data" / f"{content}.safetensors"


def read(path: Path) -> tuple[dict[str, "Tensor"], Mapping[str, Any]]:
    """The tensors and what is said of them: content, outputs, note.

    Raises:
        FileNotFoundError: where there is no such file.
        Damaged: where it does not hold what its name says.
    """
    tensors, meta = files.read_tensors(path)
    if meta.get("content") != path.stem:
        raise files.Damaged(path, "holds another data set than its name says")
    return tensors, meta


@functools.lru_cache(maxsize=2)
def held(path: Path) -> tuple[dict[str, "Tensor"], Mapping[str, Any]]:
    """As `read`, held in memory for the runs to come, with advice where it fails."""
    try:
        return read(path)
    except (FileNotFoundError, files.Damaged) as error:
        what = "not in the cache" if isinstance(error, FileNotFoundError) else "damaged in the cache"
        raise FileNotFoundError(
            f"the decoded images {path.stem} are {what} ({path}): "
            "give --data FOLDER (or its hub name) again, and they are decoded anew"
        ) from error
