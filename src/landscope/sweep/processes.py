"""Worker processes as the driver sees them: started, told something, heard, ended; and what to say of one that died."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from landscope.sweep.tasks import Failure, Task

_SINGLE = ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "VECLIB_MAXIMUM", "BLIS")  # …_NUM_THREADS: one thread a worker
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from landscope.sweep.worker import serve; serve(*map(int, sys.argv[2:]))"
)


@dataclass
class Worker:
    """A worker process as the driver sees it."""

    process: "subprocess.Popen[bytes]"
    said: int  # pipes: its messages, what it prints, and what it is told
    output: int
    told: int
    ready: bool = False
    leaving: bool = False
    task: Task | None = None
    since: float = 0.0
    fraction: float = 0.0
    buffer: bytes = b""
    printed: bytes = b""
    cpu: float = 0.0  # seconds, as it last said


def start() -> Worker:
    """A new worker process, which is not yet ready."""
    pipes = [os.pipe() for _ in range(3)]
    (said, say), (output, printing), (hear, told) = pipes
    settings = {f"{name}_NUM_THREADS": "1" for name in _SINGLE} | {"PYTHONHASHSEED": "0"}
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    # Blocked until the worker has its own handlers: a Ctrl-C while it imports is the driver's to deal with.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and code
            [sys.executable, "-c", _START, json.dumps(sys.path), str(hear), str(say), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=printing,
            stderr=printing,
            env=os.environ | settings,
            pass_fds=(hear, say),
            process_group=0,
        )
    except OSError:
        for pipe in (said, output, told):
            os.close(pipe)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for pipe in (say, printing, hear):
            os.close(pipe)
    for pipe in (said, output):
        os.set_blocking(pipe, False)
    return Worker(process, said, output, told)


@contextmanager
def pool() -> Iterator[list[Worker]]:
    """Where a sweep leaves its idle workers for the next, so that imports are paid once; they are ended with it."""
    kept: list[Worker] = []
    try:
        yield kept
    finally:
        for worker in kept:
            end(worker)


def send(worker: Worker, message: Mapping[str, Any]) -> None:
    """Tell a worker something; one that has died hears nothing, and that is no error here."""
    rest = memoryview(json.dumps(message).encode() + b"\n")
    with suppress(BrokenPipeError):
        while len(rest):
            rest = rest[os.write(worker.told, rest) :]


def available(pipe: int) -> bytes | None:
    """What can be read from a pipe now: None where there is nothing yet, empty bytes at its end."""
    data = b""
    while len(data) < 1 << 20:
        try:
            part = os.read(pipe, 1 << 16)
        except BlockingIOError:
            return data or None
        if not part:
            return data  # the end is met again at the next call
        data += part
    return data


def end(worker: Worker) -> None:
    """End a worker's process, with whatever processes it has started, and close its pipes."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(worker.process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):  # a process that the kernel does not let go
        worker.process.wait(1.0)
    for pipe in (worker.said, worker.output, worker.told):
        os.close(pipe)


def died(task: Task, worker: Worker) -> Failure:
    """The failure of a task whose worker's process has ended, with what the system says of it."""
    code = worker.process.returncode
    printed = worker.printed.decode("utf-8", "replace").strip()
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        error = f"its process was ended by {name}"
        advice = {
            "SIGKILL": "most often this is the system out of memory: give fewer --jobs, or a smaller model or batch",
            "SIGSEGV": "a crash in native code: see the last output with --debug",
            "SIGTERM": "somebody ended it: give the same command again",
        }.get(name, "see the last output with --debug")
    else:
        error = f"its process ended with exit code {code}"
        advice = "the model, loss or data code ended the process: see the last output with --debug"
    if printed and not worker.ready:
        error += f" before it began: {printed.splitlines()[-1][:300]}"
    return Failure(task, "died", error, f"{advice}; the other tasks were not affected", printed)


def hung(task: Task, timeout: float) -> Failure:
    """The failure of a task that was not done after ``timeout`` seconds."""
    advice = "give a longer --timeout if it only needs more time; the other tasks were not affected"
    return Failure(task, "timeout", f"it was not done after {timeout:g} seconds", advice)
