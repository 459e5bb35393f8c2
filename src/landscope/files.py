"""Files that are whole or absent: published in one step, sealed with their own SHA-256, never trusted unverified.

A file is written under a private temporary name, fsynced, renamed over its target, and the folder is fsynced, so that
a crash, a lost connection or a full disk leaves the old file or the new one. Nothing here uses locks, clocks or mtimes.
"""

import errno
import functools
import hashlib
import json
import math
import os
import re
import secrets
import socket
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TEMPORARY = re.compile(r"\.([0-9a-f]{8}-[0-9a-f]{8}-[0-9a-f]{8}-\d+-\d+)-[0-9a-f]{8}\.tmp")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_HEAD, _MIDDLE, _TAIL = b'{"content":', b',"sha256":"', b'"}\n'
_UNSEALED = "0" * 64


class Damaged(ValueError):
    """A file that is not what was once written: torn, rotten, edited or exchanged. ``path`` names it."""

    def __init__(self, path: Path | str, what: str) -> None:
        self.path = Path(path)
        super().__init__(
            f"{path} {what}: it is not used; give the same command again to compute it anew, or restore it from a copy"
        )


class StoreFull(OSError):
    """No space, or no quota, was left for a file: ``path`` and ``bytes`` say for which."""

    def __init__(self, number: int, path: Path | str, size: int) -> None:
        self.path, self.bytes = Path(path), size
        super().__init__(
            number,
            f"no space left for the {size:,} bytes of {path} ({os.strerror(number)}): free some space or move the "
            "store, then give the same command again; nothing already computed is lost",
        )

    def __str__(self) -> str:
        return str(self.strerror)


# --- who writes ---------------------------------------------------------------------------------------------------


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@functools.cache
def _place() -> str:
    """This machine, its boot and its process namespace: where a process id means something."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:  # no /proc: the process id has to do
        boot = namespace = ""
    return "-".join(_digest(text) for text in (socket.gethostname(), boot, namespace))


def _started(pid: int) -> int | None:
    """The start of a process in clock ticks since boot; None where it does not run; 0 where that is unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except OSError:
            pass
        return 0
    return None if fields[0] in "ZX" else int(fields[19])


def process_name(pid: int | None = None) -> str:
    """A name for a process of this machine (by default this one) that no other process has had or will have."""
    pid = os.getpid() if pid is None else pid
    return f"{_place()}-{pid}-{_started(pid) or 0}"


def alive(name: str) -> bool | None:
    """Whether the process called ``name`` (see `process_name`) still runs; None where that is not known here."""
    parts, here = name.split("-"), _place().split("-")
    if len(parts) != 5 or parts[0] != here[0]:
        return None
    if parts[1] != here[1]:
        return False  # the machine has been started anew since
    if parts[2] != here[2]:
        return None  # another container of this machine
    started = _started(int(parts[3]))
    return started is not None and started == int(parts[4])


# --- writing ------------------------------------------------------------------------------------------------------


def publish(path: Path, data: bytes, *, replace: bool = True) -> bool:
    """Write a file so that after a crash at any moment it is whole or absent.

    Args:
        path: Where; its folder exists. A link of that name is replaced, never followed.
        data: Its bytes.
        replace: Whether a file that is already there is replaced.

    Returns:
        True; False where ``replace`` is False and the file was already there.

    Raises:
        StoreFull: where there is no space or quota left.
        OSError: for every other failure; the message names path and bytes. No temporary file is left.
    """
    for last in (False, False, True):
        temporary = path.parent / f".{process_name()}-{secrets.token_hex(4)}.tmp"
        try:
            _write_synced(temporary, data)
            published = _rename(temporary, path, data) if replace else _link(temporary, path)
            _sync_folder(path.parent)
            return published
        except OSError as error:
            _discard(temporary)
            # On a network a handle may go stale, and a temporary may be taken for a dead writer's.
            if not last and error.errno in (errno.ENOENT, errno.ESTALE) and path.parent.is_dir():
                continue
            raise _explained(error, path, len(data)) from error
        except BaseException:
            _discard(temporary)
            raise
    return False


def _write_synced(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        rest = memoryview(data)
        while len(rest):
            rest = rest[os.write(handle, rest) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def _rename(temporary: Path, path: Path, data: bytes) -> bool:
    try:
        os.replace(temporary, path)
    except OSError as error:
        # NFS repeats a request whose answer was lost; the second one finds that the first has done the work.
        if error.errno not in (errno.ENOENT, errno.ESTALE) or not _holds(path, data):
            raise
    return True


def _link(temporary: Path, path: Path) -> bool:
    try:
        os.link(temporary, path, follow_symlinks=False)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            raise
        if path.exists():  # a file system without links: the race is as short as it can be
            return False
        os.replace(temporary, path)
        return True
    finally:
        _discard(temporary)
    return True


def _holds(path: Path, data: bytes) -> bool:
    try:
        return read(path) == data
    except (OSError, Damaged):
        return False


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems sync no folders
            raise
    finally:
        os.close(handle)


def _discard(path: Path) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass


def _explained(error: OSError, path: Path, size: int) -> OSError:
    if isinstance(error, StoreFull):
        return error
    if error.errno in _FULL:
        return StoreFull(error.errno, path, size)
    return type(error)(
        error.errno,
        f"could not write {size:,} bytes ({error.strerror}); see that the folder exists and may be written to, "
        "then give the same command again",
        str(path),
    )


def folder(root: Path, *parts: str) -> Path:
    """The folder ``root/parts…``, made where it is missing and synced.

    Raises:
        ValueError: for a part that is a link or no plain name: nothing is ever written outside the store.
        OSError: where it cannot be made.
    """
    path = root
    _make(path, parents=True)
    for part in parts:
        if part in ("", ".", "..") or "/" in part or "\0" in part:
            raise ValueError(f"{part!r} is no name for a folder of the store {root}")
        path = path / part
        if path.is_symlink():
            raise ValueError(
                f"{path} is a link: put the folder itself there, because a store never writes outside itself"
            )
        _make(path)
    return path


def _make(path: Path, parents: bool = False) -> None:
    if path.is_dir():
        return
    try:
        path.mkdir(parents=parents, exist_ok=True)
        _sync_folder(path.parent)
    except OSError as error:
        raise _explained(error, path, 0) from error


# --- reading ------------------------------------------------------------------------------------------------------


def read(path: Path) -> bytes:
    """The bytes of a plain file.

    Raises:
        FileNotFoundError: where there is none.
        Damaged: where the name is a link, a device or anything else that is no plain file.
    """
    for last in (False, False, True):
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise Damaged(path, "is a link, not a file") from None
            if error.errno == errno.ESTALE and not last:
                continue
            raise
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise Damaged(path, "is no plain file")
        with open(handle, "rb") as file:
            return file.read()
    raise AssertionError  # the last attempt returns or raises


def sha256(data: bytes) -> str:
    """The SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def dump(content: Any) -> bytes:
    """Deterministic JSON; numbers that JSON has no form for are kept as ``{"float": "nan"}``."""
    text = json.dumps(_encoded(content), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def load(data: bytes | str) -> Any:
    """What `dump` was given (tuples come back as lists)."""
    return json.loads(data, object_hook=_decoded)


def _encoded(x: Any) -> Any:
    if isinstance(x, Mapping):
        return {str(k): _encoded(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [_encoded(item) for item in x]
    if callable(getattr(x, "item", None)) and getattr(x, "ndim", None) == 0:
        x = x.item()
    if isinstance(x, float) and not math.isfinite(x):
        return {"float": "nan" if math.isnan(x) else "inf" if x > 0 else "-inf"}
    return x


def _decoded(x: dict[str, Any]) -> Any:
    if len(x) == 1 and x.get("float") in ("nan", "inf", "-inf"):
        return float(x["float"])
    return x


def seal(content: Any) -> bytes:
    """The bytes of a sealed file: ``{"content": …, "sha256": of the content's bytes}``.

    >>> unseal("x.json", seal({"a": 1}))
    {'a': 1}
    """
    data = dump(content)
    return _HEAD + data + _MIDDLE + sha256(data).encode() + _TAIL


def unseal(path: Path | str, data: bytes) -> Any:
    """The content of a sealed file (``path`` is for the message).

    Raises:
        Damaged: where a single bit differs from what was written.
    """
    end = len(data) - len(_TAIL) - 64
    content = data[len(_HEAD) : max(end - len(_MIDDLE), 0)]
    if data != _HEAD + content + _MIDDLE + sha256(content).encode() + _TAIL:
        raise Damaged(path, "does not have the content that it was sealed with")
    return load(content)


def read_sealed(path: Path) -> Any:
    """The content of a sealed file.

    Raises:
        FileNotFoundError: where there is none.
        Damaged: where it is not what was written.
    """
    return unseal(path, read(path))


# --- tensors ------------------------------------------------------------------------------------------------------


def tensor_bytes(tensors: Mapping[str, Any], meta: Any = None) -> bytes:
    """Tensors (PyTorch's, or NumPy arrays) as the bytes of a safetensors file that holds its own SHA-256, and ``meta``.

    The bytes follow from the names, values and ``meta`` alone.
    """
    note = {"landscope": json.dumps({"sha256": _UNSEALED, "meta": dump(meta).decode()})}
    if all(type(tensor).__module__ == "numpy" for tensor in tensors.values()):
        import numpy as np
        from safetensors.numpy import save

        data = save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, note)
    else:
        from safetensors.torch import save as save_torch

        # A copy each: tied weights share memory, which the format does not allow.
        owned = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        data = save_torch(owned, note)
    return data.replace(_UNSEALED.encode(), sha256(data).encode(), 1)


def read_tensors(path: Path, *, numpy: bool = False, prefix: str = "") -> tuple[dict[str, Any], Any]:
    """The tensors (as NumPy arrays if asked for) whose names begin with ``prefix`` (which is cut off), and the meta.

    Raises:
        FileNotFoundError: where there is no such file.
        Damaged: where it is not what was written.
    """
    data = read(path)
    meta = tensor_meta(path, data)
    if numpy:
        from safetensors.numpy import load as load_tensors
    else:
        from safetensors.torch import load as load_tensors
    found = load_tensors(data)
    return {name[len(prefix) :]: tensor for name, tensor in found.items() if name.startswith(prefix)}, meta


def tensor_meta(path: Path, data: bytes) -> Any:
    """The meta of a file made by `tensor_bytes`, after its SHA-256 has been verified.

    Raises:
        Damaged: where it is not what was written.
    """
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        note = json.loads(header["__metadata__"]["landscope"])
        sealed = note["sha256"].encode("ascii")
        at = data.index(sealed, 8)
        whole = sha256(data[:at] + _UNSEALED.encode() + data[at + 64 :]).encode() == sealed
        meta = load(note["meta"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Damaged(path, "is not the tensor file that was written") from None
    if not whole:
        raise Damaged(path, "does not have the content that it was sealed with")
    return meta
