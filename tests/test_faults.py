"""Faults from outside, on the real command of the store-only harness: kills, signals, full disks, several drivers.

"Same" means that every file of the store equals, byte for byte, that of a run that nothing happened to.
"""

import functools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import harness
import pytest
from harness import command, content, mounts, need, run, told

CELLS = 8
SMALL = ("--cells", CELLS, "--sleep", 0.05)


@functools.cache
def _reference(*options: object) -> "tuple[dict[str, bytes], float]":
    """What an undisturbed run writes, and how many seconds it takes."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        assert run(Path(folder, "store"), *options).returncode == 0
        return content(Path(folder, "store")), time.monotonic() - began


def _started(root: Path, *options: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command(root, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def _workers(root: Path) -> list[int]:
    """Processes whose command line or environment is that of a worker of this test's driver."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "environ").read_bytes()
            except OSError:
                continue
            if f"LANDSCOPE_TEST={root}".encode() in words.split(b"\0"):
                found.append(int(entry.name))
    return found


def _settled_same(root: Path, *options: object) -> None:
    """One more time the same command, no flag: it exits 0 and the store is the same."""
    again = run(root, *options)
    assert again.returncode == 0, again.stderr
    assert content(root) == _reference(*options)[0]


# --- kills and signals --------------------------------------------------------------------------------------------


def _kills(root: Path, times: int, *options: object) -> None:
    _, seconds = _reference(*options)
    draw = random.Random(times)
    for index in range(times):
        store = root / str(index)
        driver = _started(store, *options)
        time.sleep(draw.uniform(0, seconds))
        os.killpg(driver.pid, signal.SIGKILL)
        driver.communicate()
        _settled_same(store, *options)
        shutil.rmtree(store)


def test_killed_at_any_time_the_same_command_continues(tmp_path: Path) -> None:
    _kills(tmp_path, 6, *SMALL)


@pytest.mark.soak
def test_killed_two_hundred_times(tmp_path: Path) -> None:
    _kills(tmp_path, 200)


def _interrupted(root: Path, number: signal.Signals, twice: bool, after: float, *options: object) -> None:
    environment = os.environ | {"LANDSCOPE_TEST": str(root)}
    driver = subprocess.Popen(
        command(root, *options), stdout=subprocess.PIPE, text=True, start_new_session=True, env=environment
    )
    time.sleep(after)
    began = time.monotonic()
    os.killpg(driver.pid, number)
    if twice:
        time.sleep(0.05)
        os.killpg(driver.pid, number)
    driver.communicate(timeout=20)
    seconds = time.monotonic() - began
    assert seconds < 5 + 5, "the bar is 5 s; a busy machine is given as much again"
    deadline = time.monotonic() + 5
    while (left := _workers(root)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


SIGNALS = [(signal.SIGINT, False), (signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGHUP, False)]


@pytest.mark.parametrize(("number", "twice"), SIGNALS)
def test_stopped_by_a_signal_the_same_command_continues(tmp_path: Path, number: signal.Signals, twice: bool) -> None:
    _interrupted(tmp_path / "store", number, twice, _reference(*SMALL)[1] * 0.6, *SMALL)
    _settled_same(tmp_path / "store", *SMALL)


@pytest.mark.soak
@pytest.mark.parametrize("index", range(50))
def test_stopped_at_any_time(tmp_path: Path, index: int) -> None:
    draw = random.Random(index)
    number = draw.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    _interrupted(tmp_path / "store", number, draw.random() < 0.5, draw.uniform(0, _reference()[1]))
    _settled_same(tmp_path / "store")


def test_a_stopped_task_keeps_what_it_has(tmp_path: Path) -> None:
    options = ("--cells", 1, "--sleep", 5, "--events")
    driver = _started(tmp_path, *options)
    assert driver.stdout is not None
    for line in driver.stdout:
        if json.loads(line)["kind"] == "progress":
            break
    driver.send_signal(signal.SIGTERM)
    out, _ = driver.communicate(timeout=20)
    assert driver.returncode == 3
    assert json.loads(out.splitlines()[-1])["stopped"] == "SIGTERM"
    own = harness.recipe(0)
    found = harness.store.load_partial(tmp_path, harness.key(own), numpy=True)
    assert found is not None
    assert found[1]["done"] >= 1


def test_workers_die_with_their_driver(tmp_path: Path) -> None:
    environment = os.environ | {"LANDSCOPE_TEST": str(tmp_path)}
    driver = subprocess.Popen(
        command(tmp_path, "--cells", 4, "--sleep", 60, "--events"),
        stdout=subprocess.PIPE, text=True, start_new_session=True, env=environment,
    )  # fmt: skip
    assert driver.stdout is not None
    driver.stdout.readline()
    assert len(_workers(tmp_path)) >= 2
    driver.kill()
    driver.communicate()
    deadline = time.monotonic() + 5
    while _workers(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _workers(tmp_path) == []


# --- system calls -------------------------------------------------------------------------------------------------


def _traced(folder: Path, calls: str, *words: str) -> list[list[str]]:
    """The system calls of the harness, a list for each of its processes and threads."""
    folder.mkdir()
    tracing = [need("strace"), "-ff", "-y", "-qq", "-s", "512", "-e", f"trace={calls}", "-e", "signal=none"]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    answer = subprocess.run(
        [*tracing, "-o", str(folder / "log"), *words], capture_output=True, text=True, check=False, env=environment
    )
    assert answer.returncode == 0, answer.stderr
    return [log.read_text(errors="replace").splitlines() for log in sorted(folder.iterdir())]


def _steps(lines: list[str], root: Path) -> dict[str, list[list[str]]]:
    """What happened, in order, to each file that a process published: a list for each time."""
    temporary: dict[str, list[str]] = {}
    published: dict[str, list[list[str]]] = {}
    for line in lines:
        used = re.match(r"(write|fsync)\(\d+<([^>]+)>.* = \d+$", line)
        renamed = re.match(
            r'(?:rename|link)\w*\((?:AT_FDCWD[^,]*, )?"([^"]+)", (?:AT_FDCWD[^,]*, )?"([^"]+)".* = 0$', line
        )
        if used and Path(used[2]).is_dir():
            for path, times in published.items():
                if str(Path(path).parent) == used[2] and times[-1][-1] == "rename":
                    times[-1].append("fsync folder")
        elif used:
            temporary.setdefault(used[2], []).append(used[1])
        elif renamed and renamed[1].startswith(str(root)) and "/.working/" not in renamed[1]:
            published.setdefault(renamed[2], []).append([*dict.fromkeys(temporary.pop(renamed[1])), "rename"])
    return published


def test_every_file_is_synced_before_and_after_it_appears(tmp_path: Path) -> None:
    root = tmp_path / "store"
    logs = _traced(tmp_path / "logs", "write,fsync,rename,renameat,renameat2,link,linkat", *command(root, "--cells", 6))
    published = [(path, steps) for log in logs for path, times in _steps(log, root).items() for steps in times]
    assert set(content(root)) <= {str(Path(path).relative_to(root)) for path, _ in published}
    assert len(published) >= 6 * (5 + 1 + harness.PARTS)
    assert [entry for entry in published if entry[1] != ["write", "fsync", "rename", "fsync folder"]] == []


ONE = ("--cells", 3, "--sleep", 0, "--jobs", 1)


def _moments(tmp_path: Path, call: str) -> list[int]:
    """At which of a process's calls the store is concerned (most others belong to the start of Python)."""
    logs = _traced(tmp_path / f"logs-{call}", call, *command(tmp_path / "traced", *ONE))
    return sorted({i for log in logs for i, line in enumerate(log, 1) if f"{tmp_path}/traced" in line})


def _at_a_call(root: Path, call: str, when: int, action: str) -> "subprocess.CompletedProcess[str]":
    """The harness with a fault at the ``when``-th such call of each of its processes."""
    tracing = [need("strace"), "-f", "-qq", "-o", os.devnull, "-e", f"trace={call}"]
    tracing += ["-e", f"inject={call}:{action}:when={when}"]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [*tracing, *command(root, *ONE, "--events")], capture_output=True, text=True, check=False, env=environment
    )


def _killed_at(tmp_path: Path, call: str, every: bool) -> None:
    moments = _moments(tmp_path, call)
    assert moments
    met = []
    for when in moments if every else moments[len(moments) // 2 :][:1]:
        root = tmp_path / str(when)
        answer = _at_a_call(root, call, when, "signal=KILL")
        met.append(answer.returncode != 0 or "retried" in answer.stdout)
        _settled_same(root, *ONE)
        shutil.rmtree(root)
    assert any(met)


@pytest.mark.parametrize("call", ["openat", "write", "rename", "fsync"])
def test_killed_at_a_system_call(tmp_path: Path, call: str) -> None:
    _killed_at(tmp_path, call, every=False)


@pytest.mark.soak
@pytest.mark.parametrize("call", ["openat", "write", "rename", "fsync", "unlink", "mkdir", "link"])
def test_killed_at_every_system_call(tmp_path: Path, call: str) -> None:
    _killed_at(tmp_path, call, every=True)


DISK_ERRORS = [("fsync", "EIO"), ("fsync", "ENOSPC"), ("rename", "EIO"), ("rename", "EDQUOT")]


@pytest.mark.parametrize(("call", "error"), DISK_ERRORS)
@pytest.mark.parametrize(
    "when", [6, pytest.param(11, marks=pytest.mark.soak), pytest.param(12, marks=pytest.mark.soak)]
)
def test_an_error_of_the_disk_is_told_and_loses_nothing(tmp_path: Path, call: str, error: str, when: int) -> None:
    root = tmp_path / "store"
    answer = _at_a_call(root, call, when, f"error={error}")
    assert answer.returncode == 1, answer.stderr
    (failure,) = told(answer)["failures"]
    assert str(root) in failure[2]
    assert "bytes" in failure[2]
    assert (failure[1] == "full") == (error != "EIO")
    assert [path for path in content(root) if path.endswith(".tmp")] == []
    _settled_same(root, *ONE)


# --- disks --------------------------------------------------------------------------------------------------------

_DISK = """
set -e
mount -t tmpfs -o size={size} none {disk}
{first} || true
mount -o remount,size=64m {disk}
find {disk} -name '.*.tmp' | sed 's/^/left /'
{second} || true
cp -r {disk}/store {copy}
"""


def _disk_full(tmp_path: Path, size: int, *options: object) -> str:
    """The harness on a disk of ``size`` bytes, then again on a large one; returns how the first one ended."""
    disk, copy = tmp_path / f"disk{size}", tmp_path / f"copy{size}"
    disk.mkdir()
    words = " ".join(map(str, command(disk / "store", *options)))
    script = _DISK.format(size=size, disk=disk, first=words, second=words, copy=copy)
    answer = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, check=True)
    first, *left, second = answer.stdout.splitlines()
    assert left == [], "no temporary is left"
    assert json.loads(second)["remaining"] == 0, answer.stderr
    assert content(copy) == _reference(*options)[0]
    ended = json.loads(first)
    if ended["stopped"] is None:
        assert ended["failures"] == []
        return "done"
    assert ended["stopped"] == "full", answer.stderr
    assert re.search(rf"no space left for the [\d,]+ bytes of {disk}/store", ended["message"])
    assert ended["done"] <= json.loads(second)["skipped"], "nothing that was done is lost"
    return "full"


def _needed(*options: object) -> int:
    page = 4096
    return sum(-(-len(data) // page) * page for data in _reference(*options)[0].values())


@pytest.mark.skipif(not mounts(), reason="mounting a small disk needs the rights of an administrator")
def test_a_full_disk_is_told_and_loses_nothing(tmp_path: Path) -> None:
    options = ("--cells", 8, "--sleep", 0)
    sizes = [65536, _needed(*options) // 2, 64 * _needed(*options)]
    assert [_disk_full(tmp_path, size, *options) for size in sizes] == ["full", "full", "done"]


@pytest.mark.soak
@pytest.mark.skipif(not mounts(), reason="mounting a small disk needs the rights of an administrator")
def test_sixty_sizes_of_disk(tmp_path: Path) -> None:
    options = ("--cells", 20, "--sleep", 0)
    most = int(_needed(*options) * 1.2)
    ended = Counter(_disk_full(tmp_path, size, *options) for size in range(65536, most, (most - 65536) // 60))
    assert ended["full"] > 20


@pytest.mark.skipif(not mounts(), reason="a read-only mount needs the rights of an administrator")
def test_a_store_that_may_only_be_read_is_read(tmp_path: Path) -> None:
    root = tmp_path / "store"
    run(root, "--cells", 2, "--sleep", 0)
    code = (
        "from pathlib import Path; from landscope import store; r = Path(__import__('sys').argv[1])\n"
        "assert len(store.sql(r, 'select * from results')) > 0 and store.verify(r) == [] and store.runs(r)\n"
        "try: store.writable(r)\n"
        "except OSError as error: print(error)"
    )
    script = f'mount --bind {root} {root} && mount -o remount,ro,bind {root} && exec {sys.executable} -c "$1" {root}'
    answer = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "-", code], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    assert "cannot be written to (Read-only file system): choose another folder with --runs" in answer.stdout
    assert not (root / ".cache").exists()


# --- several drivers, networks, clocks ----------------------------------------------------------------------------


def _together(tmp_path: Path, drivers: int, *options: object, patch: str = "none") -> Counter[str]:
    root, log = tmp_path / "store", tmp_path / "log"
    log.touch()
    started = [_started(root, *options, "--log", log, "--patch", patch) for _ in range(drivers)]
    for driver in started:
        _, errors = driver.communicate(timeout=120)
        assert driver.returncode == 0, errors
    assert content(root) == _reference(*options)[0]
    return Counter(log.read_text().split())


@pytest.mark.parametrize(("drivers", "patch"), [(2, "none"), (4, "flock")])
def test_several_drivers_share_the_work(tmp_path: Path, drivers: int, patch: str) -> None:
    computed = _together(tmp_path, drivers, *SMALL, patch=patch)
    assert set(computed) == {str(index) for index in range(CELLS)}
    assert sum(computed.values()) - CELLS <= 2 * drivers, "one duplicate per worker slot at the most"


@pytest.mark.soak
@pytest.mark.parametrize("drivers", [2, 4, 8])
@pytest.mark.parametrize("repetition", range(20))
def test_many_drivers(tmp_path: Path, drivers: int, repetition: int) -> None:
    computed = _together(tmp_path, drivers, patch=("none", "flock")[repetition % 2])
    assert sum(computed.values()) - 50 <= 2 * drivers


def test_a_driver_takes_over_what_a_killed_one_held(tmp_path: Path) -> None:
    root = tmp_path / "store"
    first = _started(root, *SMALL)
    second = _started(root, *SMALL)
    time.sleep(_reference(*SMALL)[1] * 0.6)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    _, errors = second.communicate(timeout=60)
    assert second.returncode == 0, errors
    _settled_same(root, *SMALL)


def test_a_network_that_loses_answers(tmp_path: Path) -> None:
    answer = run(tmp_path / "store", *SMALL, "--patch", "replace")
    assert answer.returncode == 0, answer.stderr
    assert content(tmp_path / "store") == _reference(*SMALL)[0]


@pytest.mark.parametrize("shift", ["-2d", "+2d"])
def test_clocks_and_times_of_files_do_not_matter(tmp_path: Path, shift: str) -> None:
    root = tmp_path / "store"
    driver = _started(root, *SMALL)
    time.sleep(_reference(*SMALL)[1] * 0.6)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.communicate()
    for path in root.rglob("*"):
        os.utime(path, (4e9, 4e9))
    wrapped = [need("faketime"), "-f", shift, *command(root, *SMALL)]
    answer = subprocess.run(wrapped, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert content(root) == _reference(*SMALL)[0]


# --- names --------------------------------------------------------------------------------------------------------


def test_nothing_is_made_outside_the_store(tmp_path: Path) -> None:
    root = tmp_path / "store"
    calls = "open,creat,openat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat"
    logs = _traced(tmp_path / "logs", calls, *command(root, "--cells", 3))
    lines = [line for log in logs for line in log if "= -1" not in line]
    making = [line for line in lines if "O_CREAT" in line or not line.startswith("open")]
    outside = [line for line in making if str(root) not in line]
    assert len(making) > 50
    assert outside == []
