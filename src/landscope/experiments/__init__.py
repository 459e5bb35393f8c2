"""Experiments: one file is one experiment of one paper, and a new file is all that a new one needs.

A file is named ``<first author><year>_<topic>.py`` (``<method>_<topic>.py`` where the authors are not known), its
docstring's first line describes it, and it defines ``EXPERIMENT``.
"""

import ast
import difflib
import importlib
from importlib import resources

from landscope.spec import Experiment


def names() -> dict[str, str]:
    """Every experiment by name, with its docstring's first line; nothing is imported."""
    files = sorted(resources.files(__name__).iterdir(), key=lambda file: file.name)
    return {
        file.name.removesuffix(".py"): (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition(
            "\n"
        )[0]
        for file in files
        if file.name.endswith(".py") and not file.name.startswith("_")
    }


def load(name: str) -> Experiment:
    """The experiment of that name.

    Raises:
        LookupError: where there is none; the message suggests the nearest.
    """
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known) or 'none'}"
        raise LookupError(f"no experiment is called {name!r}: {hint}")
    experiment = importlib.import_module(f"{__name__}.{name}").EXPERIMENT
    if not isinstance(experiment, Experiment):
        raise TypeError(f"{name}.EXPERIMENT is a {type(experiment).__name__}, not an Experiment")
    return experiment
