"""The README's own network, done as a reader would: copied, run, measured from the command line."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def python_blocks() -> dict[str, str]:
    """The Python examples by the file name in their first line."""
    blocks = re.findall(r"```python\n# (\S+)\n(.*?)```", README, re.DOTALL)
    return dict(blocks)


def commands() -> list[str]:
    return re.findall(r"^landscope .*$", README, re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the README's files stand and train.py has run."""
    path = tmp_path_factory.mktemp("reader")
    for name, code in python_blocks().items():
        (path / name).write_text(code, encoding="utf-8")
    done = subprocess.run([sys.executable, "train.py"], cwd=path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (path / "printed.txt").write_text(done.stdout)
    return path


def test_example_measures_a_network(folder: Path) -> None:
    printed = (folder / "printed.txt").read_text()
    assert "top_eigenvalue" in printed
    assert "each within" in printed
    assert (folder / "mynet.safetensors").exists()


def test_measure_command_gives_the_same_eigenvalue(folder: Path) -> None:
    (command,) = [c for c in commands() if c.startswith("landscope measure")]
    words = [sys.executable, "-m", *command.split(), "--runs", "store"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert (folder / "mynet.html").stat().st_size > 10_000
    value = re.search(r"top_eigenvalue\s+([\d.]+)", done.stdout)
    assert value is not None, done.stdout
    from_python = re.search(r"'name': 'top_eigenvalue', 'value': ([\d.]+)", (folder / "printed.txt").read_text())
    assert from_python is not None
    assert float(value[1]) == pytest.approx(float(from_python[1]), rel=1e-4)


def test_commands_exist() -> None:
    import typer

    from landscope.cli import app

    known = set(typer.main.get_command(app).commands)  # pyright: ignore[reportAttributeAccessIssue]
    assert {command.split()[1] for command in commands()} <= known
