"""Files that are whole or absent: published in one step, sealed with their own SHA-256, never trusted unverified.

A file is written under a private temporary name, fsynced, renamed over its target, and the folder is fsynced, so that
a crash, a lost connection or a full disk leaves the old file or the new one. Nothing here uses locks, clocks or mtimes.
"""

from landscope.files.errors import Damaged, StoreFull
from landscope.files.publishing import TEMPORARY, check_place, folder, publish, read
from landscope.files.sealed import (
    dump,
    load,
    read_sealed,
    read_tensors,
    seal,
    sha256,
    tensor_bytes,
    tensor_meta,
    unseal,
)
from landscope.files.writers import alive, process_name

__all__ = [
    "TEMPORARY",
    "Damaged",
    "StoreFull",
    "alive",
    "check_place",
    "dump",
    "folder",
    "load",
    "process_name",
    "publish",
    "read",
    "read_sealed",
    "read_tensors",
    "seal",
    "sha256",
    "tensor_bytes",
    "tensor_meta",
    "unseal",
]
