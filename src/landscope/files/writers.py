"""Names of processes, so that it is known of whoever wrote a file whether they still run."""

import functools
import hashlib
import os
import socket
from pathlib import Path


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
