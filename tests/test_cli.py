"""The command line as a user meets it, at smoke scale: in a process of its own where the process is what is tested."""

import csv
import functools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import commands
import pytest
from commands import SMOKE, content, facts, good, here, landscope, refused, run_folders

from landscope import render

SUBCOMMANDS = ("list", "plan", "run", "status", "report", "sql", "export", "rank", "measure", "landscape")
FIELDS = {"text", "effect", "low", "high", "p_adjusted", "verdict", "paper", "n", "control"}
WORDS = {"supported", "contradicted", "inconclusive", "not testable", "descriptive", "exploratory"}
HEAVY = ("torch", "scipy", "sklearn", "datasets", "matplotlib", "plotly")


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """Shared: read it, copy it, never change it."""
    return commands.shared_store(tmp_path_factory)


@pytest.fixture(scope="session")
def reported(tmp_path_factory):
    """The shared store's report for programs, as text."""
    return commands.shared_facts(tmp_path_factory)


@pytest.fixture
def own(store, tmp_path):
    """A copy of one's own."""
    return Path(shutil.copytree(store, tmp_path / "runs"))


@pytest.fixture
def undrawn(monkeypatch):
    """Pages without the drawings for print, which take most of a page's time: the shared store's page has them all."""
    monkeypatch.setattr(render, "svg", lambda figure: f"<svg><title>{figure.name}</title></svg>")


# --- start-up -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["list"], ["status", "--runs", "STORE"], ["run", "--help"]], ids=" ".join
)
def test_what_only_looks_imports_nothing_heavy(words, store):
    words = [str(store) if word == "STORE" else word for word in words]
    script = (
        "import sys, atexit\n"
        f"atexit.register(lambda: print('heavy:', *[m for m in {HEAVY!r} if m in sys.modules]))\n"
        f"sys.argv = ['landscope', *{words!r}]\n"
        "from landscope.cli import main\nmain()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].strip() == "heavy:"


def test_sql_does_not_import_torch(store):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "landscope", "sql", "select 1", "--runs", str(store)],
        capture_output=True,
        text=True,
        check=False,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 0
    assert "duckdb" in imported
    assert "torch" not in imported


@pytest.mark.parametrize("words", [(), *((name,) for name in SUBCOMMANDS)])
def test_help_fits_a_narrow_terminal(words):
    said = good(*words, "--help")
    assert max(map(len, said.splitlines())) <= 80
    assert not re.search(r"\w\.\.\.", said)  # a description cut off says nothing
    assert not words or "--debug" in said or words == ("list",)


def test_version_and_list():
    assert good("--version").startswith("landscope 0.")
    said = good("list")
    assert max(map(len, said.splitlines())) <= 80
    for name in ("johannsen2026_batch_size", "top_eigenvalues", "digits", "cifar10"):
        assert f"  {name} " in said


# --- run, report, export, status, sql -----------------------------------------------------------------------------


def test_a_run_says_verdicts_and_where_the_report_is(store):
    said = (store.parent / "smoke.txt").read_text()
    assert "equal lr/batch ratio" in said
    assert "Positive controls" in said
    page = Path(said.strip().splitlines()[-1].removeprefix("Report: "))
    assert page.is_relative_to(store)
    assert "Smaller batches end flatter" in page.read_text()
    assert all(len(line) <= 80 for line in said.splitlines() if not line.startswith("Report: "))


def test_running_again_trains_nothing_and_changes_nothing(own, undrawn):
    before = content(own, machine=True)
    said = here("run", *SMOKE, "--runs", own)
    assert content(own, machine=True) == before
    assert "Smaller batches end flatter" in said


def test_the_report_for_programs(reported):
    said = json.loads(reported)
    assert (said["experiment"], said["scale"], said["data"]) == (commands.NAME, "smoke", "digits")
    assert said["claims"]
    for claim in said["claims"]:
        assert claim.keys() >= FIELDS
        assert claim["verdict"] in WORDS
        assert claim["effect"] is None or claim["low"] <= claim["effect"] <= claim["high"]
    published = [claim for claim in said["claims"] if claim["control"] is None]
    assert all(claim["n"] in (0, 2, 3) for claim in said["claims"])
    assert published[0]["paper"]["n"] == 1
    assert "Traceback" not in json.dumps(said)


def test_the_reports_of_one_store_are_the_same_bytes(store, reported):
    assert good("report", *SMOKE, "--runs", store, "--json") == reported
    assert str(store) not in reported


def test_positive_controls_are_judged_under_their_own_protocol_alone(reported):
    for claim in json.loads(reported)["claims"]:
        assert claim["text"].startswith("Positive control") == (claim["protocol"] == "positive control")
        assert claim["control"] == (None if claim["protocol"] == "published" else claim["protocol"])


def test_export_writes_figures_and_tables(store, reported, tmp_path, monkeypatch):
    """Every third figure is drawn, for each takes seconds; the shared store's page has them all."""
    names = [figure["name"] for figure in json.loads(reported)["figures"]]

    def some(draw, start, figure, *settings):
        return draw(figure, *settings) if figure.name in names[::3] else start + figure.title.encode()

    monkeypatch.setattr(render, "pdf", functools.partial(some, render.pdf, b"%PDF"))
    monkeypatch.setattr(render, "png", functools.partial(some, render.png, b"\x89PNG"))
    said = here("export", *SMOKE, "--runs", store, "--to", tmp_path / "out")
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert said.startswith(f"{len(files)} files in ")
    assert len(names[::3]) >= 3
    assert {path.stem for path in files if path.suffix == ".png"} > set(names)
    starts = {".pdf": b"%PDF", ".png": b"\x89PNG"}
    assert {path.suffix for path in files} == {".pdf", ".png", ".csv", ".tex"}
    for path in files:
        data = path.read_bytes()
        assert data.startswith(starts.get(path.suffix, b""))
        assert len(data) > 20
    with (tmp_path / "out/tables/verdicts.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["protocol"] for row in rows} > {"published", "equal training loss"}
    told = {(c["text"], c["protocol"]): c for c in json.loads(reported)["claims"]}
    ratio = next(r for r in rows if r["unit"] == "ratio" and r["effect"] and (r["claim"], r["protocol"]) in told)
    assert math.log(float(ratio["effect"])) == pytest.approx(told[ratio["claim"], ratio["protocol"]]["effect"])


def test_status_counts_and_sql_asks(store):
    said = good("status", "--runs", store)
    assert "26 runs (26 done)" in said
    assert "26 of 26 planned runs trained" in said
    assert "every file is what was written" in good("status", "--runs", store, "--verify")
    said = good("sql", "select count(distinct run) as networks from runs where batch_size = 8", "--runs", store)
    assert "networks" in said
    assert said.split()[-1] == "6"  # two seeds under the published protocol (its ratio control too), loss and steps


def test_verify_names_a_damaged_file(own):
    damaged = next(run_folders(own)[0].glob("values/*.json"))
    data = damaged.read_bytes()
    damaged.write_bytes(data.replace(b"1", b"2", 1))
    refused(landscope("status", "--runs", own, "--verify"), damaged.name, code=1)


def test_plan_predicts_and_trains_nothing(tmp_path):
    said = here("plan", *SMOKE, "--runs", tmp_path / "runs", "--jobs", 2)
    assert "26 networks, 0 of them finished" in said
    assert "Predicted for what is left" in said
    assert "GiB" in said
    assert not list(tmp_path.glob("runs/*/spec.json"))
    assert not list(tmp_path.glob("runs/plans"))


def test_plan_of_what_is_done(store):
    assert "Nothing is left to do" in here("plan", *SMOKE, "--runs", store)


# --- stopping and going on ----------------------------------------------------------------------------------------


def interrupted(store: Path, *options: object, when: Callable[[], bool]) -> str:
    """Send Ctrl-C to the whole process group of a run once ``when`` holds; what it printed."""
    process = subprocess.Popen(
        commands.command("run", *SMOKE, "--runs", store, *options),
        env=commands.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    with process:
        while not when() and process.poll() is None:
            time.sleep(0.02)
        assert process.poll() is None, process.communicate()
        os.killpg(process.pid, signal.SIGINT)
        began = time.monotonic()
        said, complained = process.communicate(timeout=60)
    assert process.returncode == 130, said + complained
    assert time.monotonic() - began < 30  # five seconds on a quiet machine
    assert "same command" in complained
    assert "Traceback" not in complained
    return said


def test_one_process_makes_the_same_bytes_as_two_and_an_interrupted_run_too(store, reported, own, undrawn):
    """The store was made by two processes; here some runs are made again by one, interrupted in between."""
    for run in run_folders(own)[::4]:
        shutil.rmtree(run)
    known = len(run_folders(own))
    said = interrupted(own, "--jobs", 1, when=lambda: len(run_folders(own)) > known)
    assert "Report:" not in said
    here("run", *SMOKE, "--runs", own, "--jobs", 1)
    assert content(own) == content(store)
    assert facts(own) == json.loads(reported)


def test_an_interruption_before_the_first_run_is_no_traceback(tmp_path):
    interrupted(tmp_path / "runs", when=(tmp_path / "runs/plans").exists)


# --- seeds --------------------------------------------------------------------------------------------------------


def test_more_seeds_than_planned_are_a_replication_of_their_own(reported, own, undrawn):
    before = json.loads(reported)
    assert before["replication"] == []
    said = here("run", *SMOKE, "--runs", own, "--seeds", 3, "--out", own / "r.html")
    assert "Replication, judged alone: seeds 2 to 2" in said
    after = facts(own)
    assert after["claims"] == before["claims"]
    assert after["seeds"] == 2
    ids = {i for claim in after["replication"] for i in (claim["units"] or {"ids": ()})["ids"] if isinstance(i, int)}
    assert ids == {2}
    assert "--seeds 3" in after["command"]


def test_fewer_seeds_than_planned_leave_the_verdicts_open(own, undrawn):
    for run in run_folders(own):
        if json.loads((run / "spec.json").read_bytes())["recipe"]["seed"] == 1:
            shutil.rmtree(run)
    said = here("run", *SMOKE, "--runs", own, "--seeds", 1, "--out", own / "r.html")
    assert "missing" in said
    after = facts(own)
    primary = [claim for claim in after["claims"] if "configurations" not in claim["text"]]
    assert {claim["verdict"] for claim in primary} == {"not testable"}
    reasons = [claim["reason"] for claim in primary if "no logarithm" not in claim["reason"]]
    assert len(reasons) > len(primary) / 2
    assert all("missing" in reason for reason in reasons)
    assert after["counts"]["published"]["missing"] == 3


# --- your own network ---------------------------------------------------------------------------------------------


@pytest.fixture
def network(tmp_path):
    """A folder with a factory and a checkpoint that fits it, and files named like the standard library's."""
    import torch
    from safetensors.torch import save_file

    (tmp_path / "network.py").write_text(commands.NETWORK)
    for name in ("random", "json", "token", "queue"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('a file of the user shadows the standard library')")
    torch.manual_seed(1)
    layer = torch.nn.Linear(64, 10)
    save_file({"0.weight": layer.weight.data, "0.bias": layer.bias.data}, tmp_path / "network.safetensors")
    return tmp_path


def test_measure_a_network_of_ones_own(network):
    said = good(
        "measure", "network.safetensors", "--model", "network:make", "--data", "digits",
        "--measures", "performance, top_eigenvalues", "--train", 300, cwd=network,
    )  # fmt: skip
    assert "train_accuracy" in said
    assert "top_eigenvalue" in said
    assert "weight_perturbation" not in said
    page = (network / "network.html").read_text()
    assert "landscope measure network.safetensors --model network:make --data digits" in page
    assert "650" in page  # parameters


def test_the_installed_command_is_not_shadowed_either(network):
    for name in ("types", "typing", "enum"):
        (network / f"{name}.py").write_text("raise RuntimeError('a file of the user shadows the standard library')")
    script = Path(sys.executable).parent / "landscope"
    if not script.exists():
        pytest.skip("the command is not installed beside this interpreter")
    words = ["measure", "network.safetensors", "--model", "network:make", "--data", "digits", "--measures"]
    done = subprocess.run(
        [str(script), *words, "performance"], cwd=network, env=commands.environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
