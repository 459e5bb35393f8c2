"""The real command, in a process of its own or in this one, and one small store that all tests of it share."""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checks import unchecked
from typer.testing import CliRunner

NAME = "johannsen2026_batch_size"
SMOKE = (NAME, "--scale", "smoke")
Done = subprocess.CompletedProcess[str]
NETWORK = """
import torch
def make():
    return torch.nn.Sequential(torch.nn.Linear(64, 10))
"""


def environment() -> dict[str, str]:
    return os.environ | {"COLUMNS": "80", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "landscope", *map(str, words)]


def landscope(*words: object, cwd: Path | None = None, timeout: float = 600) -> Done:
    """Run a command to its end."""
    return subprocess.run(
        command(*words), cwd=cwd, env=environment(), capture_output=True, text=True, timeout=timeout, check=False
    )


def good(*words: object, cwd: Path | None = None) -> str:
    """What a command that must succeed prints."""
    done = landscope(*words, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def here(*words: object) -> str:
    """What a command that must succeed prints, run in this process: the start of PyTorch takes longer than most."""
    from landscope.cli import app

    with unchecked():  # as in a process of its own
        result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "80", "NO_COLOR": "1"})
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def facts(store: Path) -> dict[str, Any]:
    """The report for programs."""
    return json.loads(here("report", *SMOKE, "--runs", store, "--json"))


def refused(done: Done, *said: str, code: int = 2) -> str:
    """Check that a command was refused in our words, in one line, and return that line."""
    assert done.returncode == code, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert "Traceback" not in done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("landscope: ")
    for part in said:
        assert part in lines[0]
    return lines[0]


def content(root: Path, *, machine: bool = False) -> dict[str, bytes]:
    """Every file of a store that two machines should agree on (with ``machine``: every file)."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
        and (machine or path.name != "environment.json")
        and path.suffix != ".html"
        and ".cache" not in path.parts
    }


def run_folders(root: Path) -> list[Path]:
    return sorted(path.parent for path in root.glob("*/spec.json"))


def _once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], str]) -> Path:
    """A file with what ``make`` says of the folder it is given: made once a session, by the first process that asks."""
    base = factory.getbasetemp()
    base = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    with (base / "smoke.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (base / name).exists():
            said = make(base / "smoke-store")
            (base / name).write_text(said)
    return base / name


def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke store, and beside it in smoke.txt what the command that made it said."""
    # two processes: the tests compare it with what one makes
    said = _once(tmp_path_factory, "smoke.txt", lambda store: good("run", *SMOKE, "--runs", store, "--jobs", 2))
    return said.parent / "smoke-store"


def shared_facts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The smoke store's report for programs, by a process of its own."""
    shared_store(tmp_path_factory)
    file = _once(tmp_path_factory, "facts.json", lambda store: good("report", *SMOKE, "--runs", store, "--json"))
    return file.read_text()
