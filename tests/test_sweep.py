"""The sweep: order, failures as values, hints, signals, and the same files whatever the number of processes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
import pytest
from harness import content, finished, recipe, told

from landscope.files import process_name
from landscope.spec import key
from landscope.sweep import Control, Event, Outcome, Task, pool, sweep


def task(index: int, cost: float = 1.0, **payload: Any) -> Task:
    return Task(key(recipe(index)), {"index": index, "sleep": 0.0} | payload, cost, f"cell {index}")


def done(root: Path, tasks: list[Task], **settings: Any) -> tuple[Outcome, list[Event]]:
    """A sweep of the harness's cells in this process."""
    events: list[Event] = []
    recipes = {t.key: recipe(t.payload["index"]) for t in tasks}
    settings = {"jobs": 2, "finished": lambda t: finished(root, recipes[t.key]), "on_event": events.append} | settings
    return sweep(tasks, settings.pop("work", "harness:work"), root=root, **settings), events


def names(events: list[Event], kind: str) -> list[str]:
    return [event.task.label for event in events if event.kind == kind and event.task is not None]


def environment(payload: Mapping[str, Any], root: str, control: Control) -> dict[str, Any]:
    """Work that tells where it runs."""
    sys.stdout.write("printed\n")
    wanted = [signal.getsignal(n) is signal.SIG_IGN for n in (signal.SIGINT, signal.SIGHUP)]
    threads = {name: value for name, value in os.environ.items() if name.endswith("_NUM_THREADS")}
    masked = sorted(signal.pthread_sigmask(signal.SIG_BLOCK, []))
    return {"pid": os.getpid(), "ignored": wanted, "threads": threads, "masked": masked, "stdin": sys.stdin.read()}


def unserialisable(payload: Mapping[str, Any], root: str, control: Control) -> Any:
    return {"set": {1}}


def waits(payload: Mapping[str, Any], root: str, control: Control) -> dict[str, Any]:
    """Work that stops when it is asked to."""
    deadline = time.monotonic() + 30
    Path(root, f"began-{payload['index']}").touch()
    while not control.stopping and time.monotonic() < deadline:
        control.report({"fraction": 0.25, "step": 3})
        time.sleep(0.01)
    return {"stopped": control.stopping}


def test_the_costly_start_first_and_every_cost_is_counted(tmp_path: Path) -> None:
    costs = [1.0, 5.0, 2.0, 5.0]
    outcome, events = done(tmp_path, [task(i, cost) for i, cost in enumerate(costs)], jobs=1)
    assert names(events, "started") == ["cell 1", "cell 3", "cell 2", "cell 0"]
    assert [e.cost_done for e in events if e.kind == "finished"] == [5.0, 10.0, 12.0, 13.0]
    assert {(e.total, e.cost_total) for e in events} == {(4, 13.0)}
    assert outcome.complete
    assert outcome.statuses == {key(recipe(i)): {"status": "done"} for i in range(4)}
    again, events = done(tmp_path, [task(i) for i in range(4)])
    assert (len(again.skipped), again.statuses, Counter(e.kind for e in events)) == (4, {}, Counter(skipped=4))


def test_what_comes_after_others_waits_for_them_and_fails_with_them(tmp_path: Path) -> None:
    first, second, third = (task(i, cost) for i, cost in enumerate((1.0, 9.0, 2.0)))
    third = replace(third, after=(first.key,))
    outcome, events = done(tmp_path / "well", [third, second, first], jobs=1)
    assert outcome.complete
    assert names(events, "finished") == ["cell 1", "cell 0", "cell 2"]
    broken = replace(first, payload={"index": 0})
    last = replace(task(3), after=(third.key, second.key))
    outcome, events = done(tmp_path / "broken", [last, third, second, broken], jobs=2)
    assert sorted(names(events, "failed")) == ["cell 0", "cell 2", "cell 3"]
    assert {f.task.label: f.error for f in outcome.failures}["cell 3"] == "it comes after cell 2, which failed"
    assert not outcome.remaining


def test_tasks_in_a_circle_or_after_none_are_refused(tmp_path: Path) -> None:
    one, other = task(0), task(1)
    for after, message in ((other.key, "in a circle"), ("abcdef", "after abcdef, which is not among the tasks")):
        with pytest.raises(ValueError, match=message):
            done(tmp_path, [replace(one, after=(after,)), replace(other, after=(one.key,))])


def test_one_process_and_two_write_the_same_files(tmp_path: Path) -> None:
    for jobs in (1, 2):
        outcome, _ = done(tmp_path / str(jobs), [task(i) for i in range(12)], jobs=jobs)
        assert outcome.complete
    assert content(tmp_path / "1") == content(tmp_path / "2")
    assert len(content(tmp_path / "1")) == 12 * 6 + 3, "five a run, one a cell, a long array for every fifth"


def test_a_pool_serves_one_sweep_after_another_and_ends_with_them(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"jobs": 1, "work": "test_sweep:environment", "finished": lambda _: False}
    with pool() as workers:
        first, _ = done(tmp_path, [task(0)], workers=workers, **settings)
        (worker,) = workers
        assert worker.process.poll() is None
        second, _ = done(tmp_path, [task(1)], workers=workers, **settings)
        assert first.statuses[key(recipe(0))]["pid"] == second.statuses[key(recipe(1))]["pid"] == worker.process.pid
        assert first.cpu_seconds > 0
        assert 0 <= second.cpu_seconds < first.cpu_seconds, "the imports are paid once"
        worker.process.kill()  # one that has died meanwhile is replaced
        third, _ = done(tmp_path, [task(2)], workers=workers, **settings)
        assert third.complete
        (other,) = workers
        assert other.process.pid != worker.process.pid
    assert other.process.poll() is not None


def test_a_worker_computes_in_one_thread_and_leaves_signals_to_the_driver(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    outcome, _ = done(tmp_path, [task(0), task(1)], jobs=1, work="test_sweep:environment", finished=lambda _: False)
    first, second = outcome.statuses.values()
    assert first == second, "both in one process"
    assert first["pid"] != os.getpid()
    assert {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"} <= set(first["threads"])
    assert set(first["threads"].values()) == {"1"}
    assert first["ignored"] == [True, True]
    assert not {signal.SIGINT, signal.SIGTERM, signal.SIGHUP} & set(first["masked"])
    assert first["stdin"] == ""
    assert capfd.readouterr() == ("", "")


FAULTS = {
    "segfault": ("died", "SIGSEGV"),
    "exit": ("died", "exit code 7"),
    "kill": ("died", "SIGKILL.*--jobs"),
    "deaf": ("died", "SIGKILL"),
    "raise": ("exception", "LookupError: no such thing as this"),
    "memory": ("exception", "out of memory.*--jobs"),
    "sysexit": ("exception", "SystemExit"),
    "hang": ("timeout", "--timeout"),
}


def test_every_fault_is_a_value_and_the_others_finish(tmp_path: Path) -> None:
    tasks = [task(i, fault=fault, at=i) for i, fault in enumerate([*FAULTS, "none", "none", "none"])]
    outcome, events = done(tmp_path, tasks, timeout=3.0)
    failures = {failure.task.payload["fault"]: failure for failure in outcome.failures}
    assert set(failures) == set(FAULTS)
    for fault, (kind, words) in FAULTS.items():
        text = f"{failures[fault].error}: {failures[fault].advice}"
        assert failures[fault].kind == kind
        assert re.search(words, text), text
        assert "\n" not in text
        assert "the other tasks were not affected" in text
    assert "Segmentation fault" in failures["segfault"].detail
    assert "Traceback" in failures["raise"].detail
    assert len(outcome.statuses) == 3
    assert outcome.remaining == ()
    assert not outcome.complete
    assert sorted(names(events, "failed")) == [f"cell {i}" for i in range(8)]
    assert sorted(names(events, "retried")) == [f"cell {i}" for i in range(4)], "those that died, once"
    mended, _ = done(tmp_path, [task(i) for i in range(len(tasks))])
    assert (len(mended.statuses), mended.complete) == (8, True)


def test_what_a_worker_survives_changes_nothing(tmp_path: Path) -> None:
    faults = ["once", "print", "fork", "daemon", "closes", "none"]
    outcome, events = done(tmp_path / "store", [task(i, fault=fault, at=i) for i, fault in enumerate(faults)])
    assert outcome.complete
    assert names(events, "retried") == ["cell 0"]
    done(tmp_path / "plain", [task(i) for i in range(len(faults))])
    assert content(tmp_path / "plain") == {k: v for k, v in content(tmp_path / "store").items() if k != "died-once"}


def test_work_that_does_not_exist_or_answers_nonsense_is_a_failure(tmp_path: Path) -> None:
    for work, words in (
        ("nowhere:work", "nowhere"),
        ("harness:nothing", "nothing"),
        ("test_sweep:unserialisable", "JSON"),
    ):
        outcome, _ = done(tmp_path, [task(0)], work=work)
        assert words in outcome.failures[0].error


def test_a_sweep_that_cannot_start_workers_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("landscope.sweep.processes._START", "raise RuntimeError('no torch here')")
    outcome, _ = done(tmp_path, [task(i) for i in range(5)], jobs=1)
    assert outcome.stopped == "start"
    assert "no torch here" in outcome.message
    assert len(outcome.failures) == 1
    assert len(outcome.remaining) == 4


def test_wrong_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="jobs=0"):
        done(tmp_path, [task(0)], jobs=0)
    with pytest.raises(ValueError, match="hexadecimal"):
        sweep([Task("../x", {})], "a:b", root=tmp_path, jobs=1, finished=lambda _: True)
    with pytest.raises(ValueError, match="two different tasks"):
        done(tmp_path, [task(0), Task(key(recipe(0)), {"index": 1})])
    outcome, _ = done(tmp_path, [task(0), task(0)])
    assert len(outcome.statuses) == 1


def test_an_error_of_the_caller_ends_the_workers_and_restores_the_handlers(tmp_path: Path) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    pids: list[int] = []

    def fails(event: Event) -> None:
        pids.append(event.status["pid"])
        raise LookupError("in the display")

    with pytest.raises(LookupError, match="in the display"):
        done(tmp_path, [task(0, sleep=30.0)], on_event=fails)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
    assert not Path(f"/proc/{pids[0]}").exists()
    assert not (tmp_path / ".working").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_asks_the_workers_to_stop(tmp_path: Path, number: signal.Signals) -> None:
    seen: list[Event] = []

    def interrupt(event: Event) -> None:
        seen.append(event)
        if event.kind == "progress" and all((tmp_path / f"began-{i}").exists() for i in (0, 1)):
            os.kill(os.getpid(), number)

    outcome, _ = done(
        tmp_path, [task(i) for i in range(5)], work="test_sweep:waits", finished=lambda _: False, on_event=interrupt
    )
    assert outcome.stopped == number.name
    assert "same command" in outcome.message
    assert len(outcome.remaining) == 5
    assert outcome.failures == ()
    fractions = {event.cost_done for event in seen if event.kind == "progress"}
    assert fractions <= {0.25, 0.5}, "a quarter of one or of both"


def test_a_worker_that_is_told_to_stop_by_somebody_else_is_replaced(tmp_path: Path) -> None:
    ended: list[int] = []
    events: list[Event] = []

    def end_the_first(event: Event) -> None:
        events.append(event)
        if event.kind == "started":
            ended.append(event.status["pid"])
        if event.kind == "progress":
            os.kill(ended[0] if len(ended) == 1 else os.getpid(), signal.SIGTERM)

    outcome, _ = done(
        tmp_path, [task(0)], jobs=1, work="test_sweep:waits", finished=lambda _: False, on_event=end_the_first
    )
    assert outcome.stopped == "SIGTERM"
    assert len(set(ended)) == 2


def _hint(root: Path, index: int, holder: str) -> Path:
    (root / ".working").mkdir(parents=True, exist_ok=True)
    path = root / ".working" / key(recipe(index))
    path.write_text(holder)
    return path


def test_a_task_of_a_living_process_is_awaited(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    _hint(tmp_path, 0, process_name(other.pid))
    seen: list[Event] = []

    def end_the_other(event: Event) -> None:
        seen.append(event)
        if event.kind == "finished" and event.done == 2:
            other.kill()
            other.communicate()

    outcome, _ = done(tmp_path, [task(0, 9.0), task(1), task(2)], on_event=end_the_other)
    assert names(seen, "waiting") == ["cell 0"]
    assert set(names(seen, "started")[:2]) == {"cell 1", "cell 2"}
    assert names(seen, "started")[2:] == ["cell 0"], "taken over when its process was dead"
    assert outcome.complete
    assert not (tmp_path / ".working").exists()


def test_a_task_that_another_process_finishes_is_not_done_again(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    _hint(tmp_path, 0, process_name(other.pid))

    def finish_it(event: Event) -> None:
        if event.kind == "finished":
            harness.work({"index": 0, "sleep": 0.0}, str(tmp_path), Control(os.open(os.devnull, os.O_WRONLY)))

    work, harness_torch = "harness:work", sys.modules.pop("torch", None)
    try:
        outcome, _ = done(tmp_path, [task(0, 9.0), task(1)], on_event=finish_it, work=work)
    finally:
        if harness_torch is not None:
            sys.modules["torch"] = harness_torch
        other.kill()
        other.communicate()
    assert outcome.skipped == (key(recipe(0)),)
    assert len(outcome.statuses) == 1


@pytest.mark.parametrize("holder", ["dead", "elsewhere", "", "nonsense"])
def test_a_hint_that_lies_costs_nothing_but_order(tmp_path: Path, holder: str) -> None:
    parts = process_name().split("-")
    text = {"dead": "-".join([*parts[:4], "1"]), "elsewhere": "-".join(["0" * 8, *parts[1:]])}.get(holder, holder)
    _hint(tmp_path, 0, text)
    outcome, events = done(tmp_path, [task(0, 9.0), task(1)], jobs=1)
    assert outcome.complete
    assert names(events, "started") == (["cell 0", "cell 1"] if holder == "dead" else ["cell 1", "cell 0"])


def test_a_linked_folder_of_hints_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / ".working").symlink_to(tmp_path / "outside")
    outcome, _ = done(tmp_path / "store", [task(0)])
    assert outcome.complete
    assert content(tmp_path / "outside") == {}


def test_the_harness_needs_no_torch(tmp_path: Path) -> None:
    answer = harness.run(tmp_path, "--cells", 2)
    assert answer.returncode == 0, answer.stderr
    assert told(answer) == {
        "done": 2, "skipped": 0, "failures": [], "remaining": 0, "stopped": None, "message": "", "torch": False
    }  # fmt: skip
    assert json.dumps(content(tmp_path), default=bytes.hex).count("partial") == 0
