"""Shapes and types are checked at run time in every test: the hook stands before anything of Landscope is imported."""

import gc
import importlib
import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

install_import_hook("landscope", "beartype.beartype")


SOURCE = Path(__file__).parent.parent / "src"


def pytest_collection(session: pytest.Session) -> None:
    """Import files with doctests as users do: pytest would put a module in the place of a function of its name."""
    if session.config.getoption("dist", "no") != "no":
        return  # the process that gives the others their tests
    given = [(session.config.invocation_params.dir / word.partition("::")[0]).resolve() for word in session.config.args]
    inside = [path for path in given if path.is_relative_to(SOURCE)]
    for file in sorted({file for path in inside for file in ([path] if path.is_file() else path.rglob("*.py"))}):
        parts = file.relative_to(SOURCE).with_suffix("").parts
        if parts[-1] != "__main__":
            importlib.import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))


def pytest_collection_finish() -> None:
    """What the imports made stays: collecting garbage need not look through a million objects each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with ``mnist/`` and ``cifar10/`` that LANDSCOPE_DATA names."""
    named = os.environ.get("LANDSCOPE_DATA")
    if not named:
        pytest.skip("LANDSCOPE_DATA is not set: it names the folder that holds mnist/ and cifar10/")
    folder = Path(named)
    if not folder.is_dir():
        pytest.fail(f"LANDSCOPE_DATA={named} is no folder")
    return folder


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return Path(__file__).parent.parent
