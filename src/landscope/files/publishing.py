"""Plain files, written whole or not at all."""

import errno
import os
import re
import secrets
import stat
import tempfile
from pathlib import Path

from landscope.files.errors import Damaged, StoreFull
from landscope.files.writers import process_name

TEMPORARY = re.compile(r"\.([0-9a-f]{8}-[0-9a-f]{8}-[0-9a-f]{8}-\d+-\d+)-[0-9a-f]{8}\.tmp")
_FULL = (errno.ENOSPC, errno.EDQUOT)


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


def check_place(option: str, path: Path, what: str) -> None:
    """Refuse a file that could not be written after everything has been computed."""
    parent = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if path.is_dir() or not parent.is_dir():
        raise ValueError(f"{option} {path} is no place for a file: name {what} in a folder")
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise ValueError(
            f"{option} {path} cannot be written, there is no writing in {parent} ({error.strerror}): "
            f"name {what} in another folder"
        ) from error
