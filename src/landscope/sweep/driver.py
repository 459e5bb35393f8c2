"""The driver: it chooses tasks, keeps worker processes alive, and never does the work itself."""

import collections
import json
import re
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from landscope.store import clean
from landscope.sweep.hints import claim, release
from landscope.sweep.processes import Worker, available, died, end, hung, send, start
from landscope.sweep.tasks import Event, Failure, Outcome, Task, weights_of

_TICK = 0.1  # seconds between looks at what no pipe announces: signals, timeouts, other drivers


def sweep(
    tasks: Sequence[Task],
    work: str,
    *,
    root: Path,
    jobs: int,
    finished: Callable[[Task], bool],
    on_event: Callable[[Event], None] | None = None,
    grace: float = 4.0,
    timeout: float | None = None,
    workers: list[Worker] | None = None,
) -> Outcome:
    """Do the tasks that are not finished, in ``jobs`` processes; failures are values in the outcome.

    SIGINT, SIGTERM and SIGHUP ask the workers to stop (``control.stopping``) and end those that have not after
    ``grace`` seconds; a second signal ends them at once. The caller's handlers are restored.

    Args:
        tasks: In any order; the most costly start first.
        work: ``"module:function"`` (see the module's description), importable in a fresh process.
        root: The store.
        jobs: Worker processes, each with one computing thread.
        finished: Whether the store has all that a task makes; it may only read.
        on_event: Called in this process and thread.
        grace: Seconds that a worker has for a checkpoint.
        timeout: Seconds after which a task is taken to hang; None waits for ever.
        workers: A `pool`, whose workers are used, and in which those that are idle at the end are left; None ends them.

    Raises:
        ValueError: for a task whose key is not hexadecimal, two different tasks of one key, or ``jobs`` below 1.
    """
    if jobs < 1:
        raise ValueError(f"a sweep needs at least one process, not jobs={jobs}")
    unique: dict[str, Task] = {}
    for task in tasks:
        if not re.fullmatch(r"[0-9a-f]{1,64}", task.key):
            raise ValueError(f"a task's key is hexadecimal, not {task.key!r}")
        if unique.setdefault(task.key, task).payload != task.payload:
            raise ValueError(f"two different tasks have the key {task.key}")
    driver = _Driver(list(unique.values()), work, root, jobs, finished, on_event or (lambda _: None), timeout, workers)
    with _signals(driver.signals):
        try:
            driver.run(grace)
        finally:
            driver.close()
    if driver.stopped is None:
        clean(root)
    return driver.outcome()


@contextmanager
def _signals(received: "collections.deque[str]") -> Iterator[None]:
    """Note SIGINT, SIGTERM and SIGHUP while the sweep lasts; only a main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {}
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name)
        if name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN:
            continue  # nohup
        before[number] = signal.signal(number, lambda n, _: received.append(signal.Signals(n).name))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class _Driver:
    tasks: list[Task]
    work: str
    root: Path
    jobs: int
    finished: Callable[[Task], bool]
    on_event: Callable[[Event], None]
    timeout: float | None
    pool: list[Worker] | None = None
    signals: "collections.deque[str]" = field(default_factory=collections.deque)
    pending: "collections.deque[Task]" = field(default_factory=collections.deque)
    waiting: list[Task] = field(default_factory=list)  # for tasks that they come after
    postponed: list[Task] = field(default_factory=list)  # another driver is at them
    looked: float = 0.0
    settled: float = 0.0
    total: float = 0.0
    workers: list[Worker] = field(default_factory=list)
    deaths: "collections.Counter[str]" = field(default_factory=collections.Counter)
    stillborn: int = 0
    statuses: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    stopped: str | None = None
    message: str = ""
    cpu: float = 0.0
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)

    def run(self, grace: float) -> None:
        self.total = sum(task.cost for task in self.tasks)
        weights = weights_of(self.tasks)
        for task in sorted(self.tasks, key=lambda task: -weights[task.key]):  # stable: equal costs keep their order
            self._skip(task) if self.finished(task) else self.pending.append(task)
        while self.pool:
            self._employ(self.pool.pop())
        deadline = None
        while self._open() if self.stopped is None else self._busy():
            if self.signals and self.stopped is None:
                self._stop(self.signals.popleft(), "the same command continues where this one stopped")
            if self.stopped is None:
                self._assign()
            elif deadline is None:
                deadline = time.monotonic() + grace
            elif self.signals or time.monotonic() > deadline:
                return  # close() ends them
            for event, _ in self.selector.select(_TICK):
                event.data()
            self._look_after()

    def _open(self) -> bool:
        return bool(self.pending or self.waiting or self.postponed or self._busy())

    def _busy(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.task is not None]

    def outcome(self) -> Outcome:
        settled = {*self.statuses, *self.skipped, *(failure.task.key for failure in self.failures)}
        remaining = tuple(task.key for task in self.tasks if task.key not in settled)
        failures, skipped = tuple(self.failures), tuple(self.skipped)
        return Outcome(self.statuses, skipped, failures, remaining, self.stopped, self.message, self.cpu)

    # choosing

    def _assign(self) -> None:
        while True:
            idle = [w for w in self.workers if w.task is None and not w.leaving]
            if not idle and len(self.workers) >= self.jobs:
                return
            task = self._next()
            if task is None:
                return
            try:
                worker = idle[0] if idle else self._hire()
            except OSError:  # no further process can be started
                self._release(task)
                if not self.workers:
                    raise
                self.jobs = len(self.workers)
                self.pending.appendleft(task)
                return
            self._give(worker, task)

    def _next(self) -> Task | None:
        self.pending.extendleft(reversed(self.waiting))
        self.waiting.clear()
        while self.pending:
            task = self.pending.popleft()
            if self.finished(task):
                self._skip(task)
            elif not self._ready(task):
                pass
            elif claim(self.root, task.key, last_resort=False):
                return task
            else:
                self.postponed.append(task)
                self._tell("waiting", task)
        if time.monotonic() < self.looked + 2 * _TICK:
            return None
        self.looked = time.monotonic()
        for task in list(self.postponed):
            if self.finished(task):
                self.postponed.remove(task)
                self._skip(task)
            elif claim(self.root, task.key, last_resort=True):
                self.postponed.remove(task)
                return task
        return None

    def _ready(self, task: Task) -> bool:
        """Whether all that a task comes after is done; else it waits, or fails where some of that has failed."""
        if not task.after:
            return True
        failed = next((failure.task for failure in self.failures if failure.task.key in task.after), None)
        if failed is not None:
            error = f"it comes after {failed.label or failed.key}, which failed"
            self._fail(Failure(task, "exception", error, "see there; the same command tries both again"))
            return False
        undone = {t.key for t in self.tasks}.difference(self.statuses, self.skipped)
        if undone.isdisjoint(task.after):
            return True
        self.waiting.append(task)
        return False

    def _release(self, task: Task) -> None:
        release(self.root, task.key)

    # workers

    def _hire(self) -> Worker:
        return self._employ(start())

    def _employ(self, worker: Worker) -> Worker:
        for pipe, handle in ((worker.said, self._hear), (worker.output, self._overhear)):
            self.selector.register(pipe, selectors.EVENT_READ, lambda w=worker, h=handle: h(w))
        self.workers.append(worker)
        return worker

    def _give(self, worker: Worker, task: Task) -> None:
        worker.task, worker.since, worker.fraction = task, time.monotonic(), 0.0
        send(worker, {"work": self.work, "payload": dict(task.payload), "root": str(self.root)})
        self._tell("started", task, {"pid": worker.process.pid})

    def _overhear(self, worker: Worker) -> None:
        """Keep the end of what a worker prints: if it dies, the reason is there."""
        data = available(worker.output)
        if data == b"":
            self.selector.unregister(worker.output)
        worker.printed = (worker.printed + (data or b""))[-8000:]

    def _hear(self, worker: Worker) -> None:
        data = available(worker.said)
        if data is None:
            return
        if data == b"":
            self.selector.unregister(worker.said)
            try:
                worker.process.wait(1.0)
            except subprocess.TimeoutExpired:  # it has closed the pipe and lives on: nothing more will be heard of it
                worker.process.kill()
            return
        *lines, worker.buffer = (worker.buffer + data).split(b"\n")
        for line in lines:
            self._understand(worker, json.loads(line))

    def _understand(self, worker: Worker, message: dict[str, Any]) -> None:
        worker.leaving = worker.leaving or bool(message.get("leaving"))
        task = worker.task
        if "ready" in message:
            worker.ready, self.stillborn = True, 0
            worker.since = time.monotonic()  # imports are no part of the task
        elif task is None:
            pass
        elif "report" in message:
            worker.fraction = min(max(float(message["report"].get("fraction", worker.fraction)), 0.0), 1.0)
            self._tell("progress", task, message["report"])
        else:
            worker.task = None
            self.cpu += message["cpu"] - worker.cpu
            worker.cpu = message["cpu"]
            self._release(task)
            if "failed" in message:
                self._fail(Failure(task, **message["failed"]))
            elif message["done"].get("stopped"):
                if self.stopped is None:  # someone else's signal to that worker alone
                    self.pending.append(task)
            else:
                self.statuses[task.key] = message["done"]
                self.settled += task.cost
                self._tell("finished", task, message["done"])

    def _look_after(self) -> None:
        for worker in list(self.workers):
            late = self.timeout is not None and worker.task and time.monotonic() > worker.since + self.timeout
            if late and worker.task and self.stopped is None:
                task, worker.task = worker.task, None
                self._release(task)
                self._dismiss(worker)
                self._fail(hung(task, self.timeout or 0.0))
            elif worker.process.poll() is not None:
                self._bury(worker)

    def _bury(self, worker: Worker) -> None:
        """A worker's process has ended: hear its last words, and do its task again, once."""
        for pipe, handle in ((worker.said, self._hear), (worker.output, self._overhear)):
            if pipe in self.selector.get_map():
                handle(worker)
        task, worker.task = worker.task, None
        self._dismiss(worker)
        if not worker.ready:
            self.stillborn += 1
        if task is None:
            return
        self._release(task)
        self.deaths[task.key] += 1
        if self.stopped is not None:
            return
        failure = died(task, worker)
        if worker.ready and self.deaths[task.key] < 2:
            self.pending.append(task)
            self._tell("retried", task, {"error": failure.error})
        elif worker.ready:
            self._fail(failure)
        elif self.stillborn < 3:
            self.deaths[task.key] -= 1
            self.pending.appendleft(task)
        else:
            self._fail(failure)
            self._stop("start", f"worker processes cannot be started: {failure.error}")

    def _dismiss(self, worker: Worker) -> None:
        self._part(worker)
        end(worker)

    def _part(self, worker: Worker) -> None:
        for pipe in (worker.said, worker.output):
            if pipe in self.selector.get_map():
                self.selector.unregister(pipe)
        self.workers.remove(worker)

    # ending

    def _stop(self, reason: str, message: str) -> None:
        self.stopped, self.message = reason, message
        for worker in self._busy():
            send(worker, {"stop": True})
        self._tell("stopping", None, {"reason": reason, "message": message})

    def _fail(self, failure: Failure) -> None:
        self.failures.append(failure)
        self.settled += failure.task.cost
        self._tell("failed", failure.task, {"error": failure.error, "advice": failure.advice})
        if failure.kind == "full" and self.stopped is None:
            self._stop("full", failure.error)

    def _skip(self, task: Task) -> None:
        self.skipped.append(task.key)
        self.settled += task.cost
        self._tell("skipped", task)

    def _tell(self, kind: str, task: Task | None, status: Mapping[str, Any] | None = None) -> None:
        running = sum(w.task.cost * w.fraction for w in self._busy() if w.task)
        settled = {*self.statuses, *self.skipped, *(failure.task.key for failure in self.failures)}
        done, total = (sum(t.runs for t in self.tasks if t.key in k) for k in (settled, {t.key for t in self.tasks}))
        self.on_event(Event(kind, task, status or {}, done, total, self.settled + running, self.total))

    def close(self) -> None:
        for worker in list(self.workers):
            if worker.task is not None:
                self._release(worker.task)
            if self.pool is not None and worker.task is None and not worker.leaving:
                self._part(worker)
                self.pool.append(worker)
            else:
                self._dismiss(worker)
        self.selector.close()
        with suppress(OSError):
            (self.root / ".working").rmdir()  # only where no other driver is at work
