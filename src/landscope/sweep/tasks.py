"""What a sweep is given and what it gives back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Task:
    """Something to do.

    Args:
        key: Its name, hexadecimal.
        payload: What ``work`` is given.
        cost: Predicted seconds.
        label: What it is called.
        runs: How many runs it is.
        after: Keys of the tasks that must be done before.
    """

    key: str
    payload: Mapping[str, Any]
    cost: float = 1.0
    label: str = ""
    runs: int = 1
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Event:
    """What happened, for a progress display.

    Args:
        kind: "started", "progress", "finished", "skipped" (it was done already), "waiting" (another process is doing
            it), "retried" (its worker died), "failed", "stopping".
        task: Which task; None for "stopping".
        status: What the worker reported or returned, or ``{"error": …}``.
        done: Runs of tasks that need no more work.
        total: Runs of all tasks.
        cost_done: Predicted seconds of what is done; a running task counts with the ``"fraction"`` that it reported.
        cost_total: Predicted seconds of all tasks.
    """

    kind: str
    task: Task | None
    status: Mapping[str, Any]
    done: int
    total: int
    cost_done: float
    cost_total: float


@dataclass(frozen=True)
class Failure:
    """A task that could not be done.

    Args:
        task: Which.
        kind: "exception", "died" (its process ended, twice), "timeout" or "full" (no space left).
        error: What happened, in a line.
        advice: What to do.
        detail: The traceback, or the last output of the process.
    """

    task: Task
    kind: str
    error: str
    advice: str
    detail: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a sweep ended.

    Args:
        statuses: What ``work`` returned, by key of the tasks done now.
        skipped: Keys of the tasks that were done already, or by another process meanwhile.
        failures: The tasks that could not be done.
        remaining: Keys of the tasks not done because the sweep was stopped.
        stopped: None, "SIGINT", "SIGTERM", "SIGHUP", "full" (no space left) or "start" (no worker starts).
        message: One line for the user where the sweep was stopped, else "".
        cpu_seconds: Processor time of the workers, up to their last task's end.
    """

    statuses: Mapping[str, Mapping[str, Any]]
    skipped: tuple[str, ...]
    failures: tuple[Failure, ...]
    remaining: tuple[str, ...]
    stopped: str | None = None
    message: str = ""
    cpu_seconds: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether every task is done."""
        return not self.failures and not self.remaining


def weights_of(tasks: Sequence[Task]) -> dict[str, float]:
    """By key, a task's cost with that of the costliest chain of tasks that come after it.

    Raises:
        ValueError: where tasks come after one another in a circle, or after one that is not there.
    """
    followers: dict[str, list[str]] = {task.key: [] for task in tasks}
    for task in tasks:
        for before in task.after:
            if before not in followers:
                raise ValueError(f"the task {task.key} comes after {before}, which is not among the tasks")
            followers[before].append(task.key)
    costs, found = {task.key: task.cost for task in tasks}, dict[str, float]()
    while len(found) < len(costs):
        left = [name for name in costs if name not in found and all(f in found for f in followers[name])]
        if not left:
            raise ValueError("these tasks come after one another in a circle")
        found |= {name: costs[name] + max((found[f] for f in followers[name]), default=0.0) for name in left}
    return found
