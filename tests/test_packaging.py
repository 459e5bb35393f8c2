"""What an installed Landscope promises before it computes anything: quick starts, types, the files of a project."""

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

HEAVY = ("torch", "scipy", "sklearn", "datasets", "matplotlib", "plotly", "pandas")


def imported(*arguments: str) -> set[str]:
    """The top-level packages that a Python process with these arguments imports."""
    done = subprocess.run([sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout
    names = re.findall(r"^import time:\s+\d+ \|\s+\d+ \|\s*(\S+)$", done.stderr, re.MULTILINE)
    assert "landscope" in names, "importtime listed nothing of Landscope: the test looks at the wrong output"
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["list"], ["run", "--help"]], ids=" ".join)
def test_the_command_line_starts_without_heavy_libraries(arguments):
    assert imported("-m", "landscope", *arguments).isdisjoint(HEAVY)


def test_importing_landscope_alone_imports_nothing_heavy():
    """So that it adds nothing to PyTorch's own import time that a user could notice."""
    assert imported("-c", "import landscope").isdisjoint(HEAVY)


def test_estimates_and_specifications_do_without_heavy_libraries():
    assert imported("-c", "import landscope.types, landscope.spec").isdisjoint(HEAVY)


def test_every_public_name_can_be_imported_and_is_no_module():
    """A lazy export named like a module would turn into that module as soon as something imports it."""
    code = """
import importlib.util, json, types, landscope
modules = [n for n in landscope.__all__ if importlib.util.find_spec("landscope." + n)]
values = {n: type(getattr(landscope, n)).__name__ for n in getattr(landscope, "__all__", ())}
print(json.dumps([modules, values]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules, values = json.loads(done.stdout)
    assert modules == []
    assert values, "landscope.__all__ names nothing"
    assert "module" not in values.values()


def test_the_version_is_one(root):
    done = subprocess.run([sys.executable, "-m", "landscope", "--version"], capture_output=True, text=True, check=True)
    assert version("landscope") in done.stdout
    assert f'version = "{version("landscope")}"' in (root / "pyproject.toml").read_text(encoding="utf-8")
    assert f"version: {version('landscope')}\n" in (root / "CITATION.cff").read_text(encoding="utf-8")


def test_type_checkers_may_read_the_package(root):
    assert (root / "src/landscope/py.typed").is_file()


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("LICENSE", ["MIT License", "The Landscope developers"]),
        ("CITATION.cff", ["cff-version: 1.2.0", "The Landscope developers"]),
        ("SECURITY.md", ["--model", "checkpoint", "data folder", "store", "private vulnerability reporting"]),
        ("CONTRIBUTING.md", ["make test", "make check"]),
        ("CODE_OF_CONDUCT.md", ["SECURITY.md"]),
        ("CHANGELOG.md", ["## [Unreleased]"]),
        ("README.md", ["make demo", "landscope measure"]),
    ],
)
def test_the_project_has_the_pages_that_people_look_for(root, file, words):
    text = (root / file).read_text(encoding="utf-8")
    assert [word for word in words if word not in text] == []


def test_contributing_fits_on_a_page(root):
    assert len((root / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) <= 60


def test_constraints_can_be_met_on_other_machines(root: Path):
    """No local versions (``+cpu``), no files of one machine, no CUDA libraries, no torchvision."""
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.!]*", line)] == []
    names = {line.partition("==")[0].lower() for line in lines}
    assert not [name for name in names if name.startswith(("nvidia", "triton", "torchvision", "landscope"))]


def test_every_dependency_is_pinned(root: Path):
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [
        re.match(r"[A-Za-z0-9._-]+", line) for line in project["dependencies"] + project["optional-dependencies"]["dev"]
    ]
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (root / "constraints.txt").read_text().splitlines()
    }
    assert [m[0] for m in asked if m and m[0].lower().replace("_", "-") not in pinned] == []
