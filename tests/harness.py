"""A sweep without PyTorch: small cells that sleep and write real files through the store, to be killed and starved.

``python harness.py ROOT [--cells 50] [--jobs 2] [--sleep 0.02] [--fault none]`` is the command that the fault tests
run, end in every way, and run again. It prints one JSON line at its end and exits 0 (done), 1 (a cell failed, no
space left) or 3 (stopped by a signal).
"""

import argparse
import ctypes
import functools
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from landscope import store
from landscope.spec import Call, Cell, Recipe, at, call, key
from landscope.sweep import Control, Event, Task, sweep
from landscope.types import Estimate

MEASURE = call(math.isclose, rel_tol=1e-3)
PARTS = 5  # a cell checkpoints after each of its parts


def recipe(index: int) -> Recipe:
    optimizer = Call("torch.optim.SGD", (("lr", 0.01 * (1 + index % 3)),))
    model = Call("tests.model", (("widths", (8, 8)),))
    return Recipe(Call("tests.data"), model, Call("tests.loss"), optimizer, 100, 2 ** (index % 4), index)


def truth(index: int) -> dict[str, Any]:
    """What a cell of this recipe measures, computed straight away."""
    draw = np.random.default_rng(index)
    return {
        "top": Estimate.of(draw.normal(size=7), draws="probes"),
        "trace": float(draw.normal()),
        "undefined": float("nan"),
        "spectrum": draw.normal(size=20).astype(np.float32),
        "map": draw.normal(size=(40, 40)) if index % 5 == 0 else np.arange(3),
    }


def cell(recipe: Recipe) -> Cell:
    return Cell(at(recipe, 100), (MEASURE,))


def finished(root: Path, recipe: Recipe) -> bool:
    """Whether the store has it all, readable: what an engine asks, too."""
    run = key(recipe)
    return store.run_record(root, run) is not None and (100, key(MEASURE)) in store.values(root, run)


def work(payload: Mapping[str, Any], root: str, control: Control) -> dict[str, Any]:
    index, folder = payload["index"], Path(root)
    _log(payload, index)
    if index == payload.get("at", 3):
        _misbehave(payload.get("fault", "none"), folder)
    own = recipe(index)
    run = store.write_spec(folder, own)
    done, weights = 0, np.zeros(50)
    found = store.load_partial(folder, run, numpy=True)
    if found is not None:
        done, weights = found[1]["done"], found[0]["weights"]
    for part in range(done, PARTS):
        time.sleep(payload["sleep"] / PARTS)
        weights = weights + np.random.default_rng((index, part)).normal(size=50)
        control.report({"fraction": (part + 1) / PARTS})
        store.save_partial(folder, run, {"weights": weights}, {"done": part + 1})
        if control.stopping:
            return {"stopped": True}
    rows = [{"step": s, "train_loss": 1.0 / (1 + s)} for s in range(0, 101, 10)]
    record = {"status": "done", "steps": 100, "gradient_evaluations": 100 * own.batch_size}
    states = {0: {"w": np.zeros(50)}, 100: {"w": weights}}
    store.finish_run(folder, run, record=record, history=rows, states=states, environment={"host": "any"})
    store.write_values(folder, cell(own), {key(MEASURE): truth(index)})
    if "torch" in sys.modules:
        raise RuntimeError("the store-only harness has imported torch")
    return {"status": "done"}


def _log(payload: Mapping[str, Any], index: int) -> None:
    """Count who computes what, where the test asks for it."""
    if payload.get("log"):
        with open(payload["log"], "a") as file:
            file.write(f"{index}\n")


def _misbehave(fault: str, root: Path) -> None:
    if fault == "segfault":
        ctypes.string_at(0)
    elif fault == "exit":
        os._exit(7)
    elif fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "raise":
        raise LookupError("no such thing\nas this")
    elif fault == "memory":
        raise MemoryError
    elif fault == "hang":
        time.sleep(1000)
    elif fault == "print":
        for _ in range(200):
            print("x" * 100_000)
    elif fault == "fork":
        if os.fork() == 0:
            time.sleep(0.05)  # then goes on as if it were the worker
    elif fault == "daemon":
        if os.fork() == 0:
            time.sleep(1000)
    elif fault == "closes":
        os.close(1)
    elif fault == "deaf":
        os.closerange(3, 256)
        time.sleep(1000)
    elif fault == "once" and not (root / "died-once").exists():
        (root / "died-once").touch()
        os._exit(9)
    elif fault == "sysexit":
        sys.exit(3)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("--cells", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--sleep", type=float, default=0.02)
    parser.add_argument("--fault", default="none")
    parser.add_argument("--timeout", type=float)
    parser.add_argument("--log")
    parser.add_argument("--events", action="store_true")
    parser.add_argument("--patch", choices=("none", "flock", "replace"), default="none")
    given = parser.parse_args()
    _patch(given.patch)
    tasks = [
        Task(
            key(recipe(i)), {"index": i, "sleep": given.sleep, "fault": given.fault, "log": given.log}, 1.0, f"cell {i}"
        )
        for i in range(given.cells)
    ]
    by_key = {task.key: recipe(task.payload["index"]) for task in tasks}
    outcome = sweep(
        tasks,
        "harness:work",
        root=given.root,
        jobs=given.jobs,
        finished=lambda task: finished(given.root, by_key[task.key]),
        on_event=_print if given.events else None,
        timeout=given.timeout,
    )
    print(
        json.dumps(
            {
                "done": len(outcome.statuses),
                "skipped": len(outcome.skipped),
                "failures": [[f.task.label, f.kind, f.error, f.advice] for f in outcome.failures],
                "remaining": len(outcome.remaining),
                "stopped": outcome.stopped,
                "message": outcome.message,
                "torch": "torch" in sys.modules,
            }
        )
    )
    if outcome.failures or outcome.stopped == "full":
        return 1
    return 3 if outcome.stopped else 0


def _print(event: Event) -> None:
    about = {"kind": event.kind, "pid": event.status.get("pid"), "done": event.done, "cost": event.cost_done}
    print(json.dumps(about), flush=True)


def _patch(which: str) -> None:
    if which == "flock":  # a file system whose locks always succeed
        import fcntl

        fcntl.flock = lambda *_: None
        fcntl.lockf = lambda *_: None
    elif which == "replace":  # a network file system that loses the answer
        real = os.replace

        def acts_and_fails(source: Any, target: Any) -> None:
            real(source, target)
            raise FileNotFoundError(2, "No such file or directory", str(source))

        os.replace = acts_and_fails  # type: ignore[assignment]


# --- for the tests ------------------------------------------------------------------------------------------------


def command(root: Path, *options: object) -> list[str]:
    """The harness as a command of the real interpreter (``python3`` may be a wrapper)."""
    return [sys.executable, __file__, str(root), *map(str, options)]


def run(root: Path, *options: object, **settings: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command(root, *options), capture_output=True, text=True, timeout=120, check=False, **settings)


def told(finished: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    """The JSON line at the end of the harness's output."""
    assert finished.stdout, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


def content(root: Path) -> dict[str, bytes]:
    """Every file of the store by its name."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file() or p.is_symlink()}


def need(tool: str) -> str:
    """The path of a tool; without it the test is skipped, and in CI it fails, so that a green run has run it."""
    import shutil

    import pytest  # not in the workers

    found = shutil.which(tool)
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{tool} is not installed")
    return found


@functools.cache
def mounts() -> bool:
    """Whether a private tmpfs can be mounted here."""
    script = "d=$(mktemp -d) && mount -t tmpfs -o size=64k none $d && rmdir --ignore-fail-on-non-empty $d; umount $d"
    return (
        os.geteuid() == 0 and subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True).returncode == 0
    )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit(main())
