"""Shapes and types are checked at run time in every test: the hook stands before anything of Landscope is imported."""

import gc
import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

install_import_hook("landscope", "beartype.beartype")


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
