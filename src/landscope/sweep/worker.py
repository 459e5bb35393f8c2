"""The worker: a process that does what its driver says, and ends when its driver does."""

import ctypes
import errno
import faulthandler
import importlib
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

_FULL = (errno.ENOSPC, errno.EDQUOT)


class Control:
    """What ``work`` may say to the driver and hear from it."""

    def __init__(self, pipe: int) -> None:
        self._pipe, self._pid = pipe, os.getpid()
        self._stopping = threading.Event()
        self._saying = threading.Lock()
        self._reported = 0.0

    @property
    def stopping(self) -> bool:
        """Whether to write a checkpoint and return ``{"stopped": True}`` soon: look at it after every step."""
        return self._stopping.is_set()

    def report(self, status: Mapping[str, Any]) -> None:
        """Show progress: any small JSON values, of which ``"fraction"`` (0 to 1) is what is done of the task.

        Call it as often as you like: at most ten a second are sent.
        """
        now = time.monotonic()
        if now >= self._reported + 0.1:
            self._reported = now
            self._say({"report": dict(status)})

    def _say(self, message: Mapping[str, Any]) -> None:
        rest = memoryview(json.dumps(message).encode() + b"\n")
        if os.getpid() == self._pid:  # a process that work has forked has no say
            with self._saying:
                while len(rest):
                    rest = rest[os.write(self._pipe, rest) :]


def serve(hear: int, say: int, driver: int) -> None:
    """A worker's life: do what comes through the pipe ``hear`` until it is told to stop or its driver is gone."""
    control = Control(say)
    given: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()

    def stop(*_: object) -> None:
        control._stopping.set()
        given.put(None)

    for number in (signal.SIGINT, signal.SIGHUP):  # a terminal sends them to everybody; the driver decides
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    _die_with(driver)
    faulthandler.enable()
    for pipe in (hear, say):
        os.set_inheritable(pipe, False)

    def listen() -> None:
        with open(hear, "rb") as messages:
            for line in messages:
                message = json.loads(line)
                stop() if "stop" in message else given.put(message)
        os._exit(0)  # the driver is gone

    threading.Thread(target=listen, daemon=True).start()
    ready = False
    while not control.stopping:
        message = given.get()
        if message is not None:
            if not ready:
                ready = True
                with suppress(Exception):  # the task says what is wrong with it
                    importlib.import_module(message["work"].partition(":")[0])
                control._say({"ready": os.getpid()})
            control._say(_done(message, control) | {"leaving": control.stopping, "cpu": time.process_time()})
            if os.getpid() != control._pid:  # work has forked, and this is the other one
                break
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(0)  # the listening thread would keep an orderly end waiting


def _die_with(driver: int) -> None:
    """Have the kernel end this process when the driver dies, even inside native code; elsewhere the pipe's end does."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != driver:
        os._exit(0)


def _done(message: Mapping[str, Any], control: Control) -> dict[str, Any]:
    """Do one task; what it raised is data."""
    try:
        module, _, name = message["work"].partition(":")
        status = getattr(importlib.import_module(module), name)(message["payload"], message["root"], control)
        json.dumps(status)
        return {"done": dict(status)}
    except BaseException as error:  # an exit is that task's, too
        full = _no_space(error)
        kind, told = ("full", str(full)) if full else ("exception", f"{type(error).__name__}: {error}")
        return {
            "failed": {
                "kind": kind,
                "error": " ".join(told.split())[:1000],
                "advice": _advice(error, kind),
                "detail": traceback.format_exc()[-20_000:],
            }
        }


def _no_space(error: BaseException | None) -> OSError | None:
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return error
        error = error.__cause__ or error.__context__
    return None


def _advice(error: BaseException, kind: str) -> str:
    if kind == "full":
        return "free some space, then give the same command again"
    if isinstance(error, MemoryError):
        return "out of memory: give fewer --jobs, or a smaller model or batch; the other tasks were not affected"
    return "--debug shows where; the other tasks were not affected, and the same command tries this one again"
