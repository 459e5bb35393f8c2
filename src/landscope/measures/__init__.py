"""Measures of trained networks: one public function is one measure; files by topic.

A measure is ``measure(snapshot, *, settings) -> {name: float, Estimate or Tensor}``. It is found by being there: a new
one is a new function in one of these files, or a new file.
"""

import ast
import difflib
import functools
import importlib
from collections.abc import Iterable
from importlib import resources
from typing import Any


def names() -> dict[str, str]:
    """Every measure by name, with its docstring's first line; nothing is imported."""
    return {name: line for name, (_, line) in _found().items()}


def topics() -> dict[str, tuple[str, ...]]:
    """The measures of every topic (file), by name; nothing is imported."""
    found: dict[str, tuple[str, ...]] = {}
    for name, (topic, _) in _found().items():
        found[topic] = (*found.get(topic, ()), name)
    return found


def expanded(wanted: Iterable[str]) -> list[str]:
    """The measures that these names of measures and topics stand for, each once; nothing is imported.

    Raises:
        LookupError: for a name that is neither; the message suggests the nearest, or lists all.
    """
    by_topic, known = topics(), names()
    chosen: dict[str, None] = {}
    for name in wanted:
        if name not in by_topic and name not in known:
            near = difflib.get_close_matches(name, sorted({*by_topic, *known}), 1)
            listed = "; ".join(f"{topic} ({', '.join(sorted(held))})" for topic, held in sorted(by_topic.items()))
            hint = f"did you mean {near[0]!r}?" if near else f"the topics, and the measures of each, are {listed}"
            raise LookupError(f"no measure or topic is called {name!r}: {hint}")
        chosen |= dict.fromkeys(by_topic.get(name, (name,)))
    return list(chosen)


def _found() -> dict[str, tuple[str, str]]:
    """Name → (topic, first line), read from the source."""
    found: dict[str, tuple[str, str]] = {}
    for file in sorted(resources.files(__name__).iterdir(), key=lambda f: f.name):
        if not file.name.endswith(".py") or file.name.startswith("_"):
            continue
        topic = file.name.removesuffix(".py")
        found |= {name: (topic, line) for name, line in _defined(file.read_text(encoding="utf-8"))}
    return found


@functools.cache  # a run asks once for each measure of each network, and parsing takes longer than some measures
def _defined(source: str) -> tuple[tuple[str, str], ...]:
    """The measures in a file's source: name and first line."""
    functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    return tuple(
        (node.name, (ast.get_docstring(node) or "").partition("\n")[0])
        for node in functions
        if [a.arg for a in (*node.args.posonlyargs, *node.args.args)[:1]] == ["snapshot"] and node.name[0] != "_"
    )


def __getattr__(name: str) -> Any:
    if name.startswith("_") or (topic := _found().get(name)) is None:
        raise AttributeError(f"no measure is called {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{topic[0]}")
    except Exception as error:
        raise ImportError(
            f"measures/{topic[0]}.py, where {name} is, cannot be imported: {type(error).__name__}: {error}"
        ) from error
    return getattr(module, name)
