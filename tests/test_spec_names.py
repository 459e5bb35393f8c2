"""The canonical form: read back as it was, and the names in existing stores."""

import json
import math
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recipes import LOSS, RECIPE, RICH, SGD

from landscope.spec import (
    Call,
    Cell,
    at,
    call,
    canonical,
    canonical_json,
    first_below,
    from_canonical,
    key,
)

PINNED = {
    "call": "87bedda45c2d7a04",
    "call with a revision": "3408eb3838cb7d37",
    "nested call": "6aad2dfd58f0a4a0",
    "third-party call": "4615a7027e2285a3",
    "built-in call": "c2e0c8cbe20ece4b",
    "recipe": "01a6e2fa31039fb5",
    "rich recipe": "49d6f781581e54df",
    "state": "4004634e7700cb4c",
    "state at the end": "48edf10f499cc38d",
    "state below a level": "ef84fc4bdc77070b",
    "cell": "1beb1f6f273e2a8d",
    "cell of two states": "7f7d1072d120857f",
    "text": "3043bdf83544e052",
    "number": "14be4b45f18e0d8c",
}
# --- canonical form --------------------------------------------------------------------------------------------------


scalars = (
    st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.none()
)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=5)
words = st.text("abcdefg_", min_size=1, max_size=5)


# As JSON: the import hook draws random numbers, which Hypothesis does not want while it makes its examples.
def calls(inner: st.SearchStrategy) -> st.SearchStrategy:
    settings = st.dictionaries(words, inner, max_size=3)
    return st.fixed_dictionaries({"call": words, "settings": settings, "revision": st.integers(0, 3)})


steps = (
    st.integers(0, 10**6)
    | st.sampled_from(["start", "end"])
    | st.tuples(st.just("first_below"), words, st.floats(0, 9))
).map(lambda step: list(step) if isinstance(step, tuple) else step)
states = st.fixed_dictionaries({"run": st.text("0123456789abcdef", min_size=16, max_size=16), "step": steps})
lists = values.map(lambda value: json.loads(json.dumps(value)))
plain_calls = calls(lists)
any_calls = calls(lists | plain_calls | states)
recipes = st.fixed_dictionaries(
    {
        "data": any_calls,
        "model": plain_calls,
        "loss": plain_calls,
        "optimizer": plain_calls,
        "steps": st.integers(0, 10**9),
        "batch_size": st.integers(1, 10**6),
        "seed": st.integers(0, 2**40),
    },
    optional={"regularizers": st.lists(plain_calls, max_size=2), "schedule": plain_calls, "start": any_calls},
).map(lambda fields: {"recipe": fields})
cells = st.fixed_dictionaries(
    {"state": states | st.lists(states, min_size=2, max_size=3), "measures": st.lists(plain_calls, max_size=3)}
).map(lambda fields: {"cell": fields})


@given(recipes | cells | any_calls | states)
def test_everything_reads_back_as_it_was(value):
    x = from_canonical(value)
    text = canonical_json(x)
    back = from_canonical(json.loads(text))
    assert back == x
    assert type(back) is type(x)
    assert canonical_json(back) == text
    assert key(back) == key(x)
    assert text.isascii()


@given(values, values)
def test_names_are_equal_exactly_for_equal_things(a, b):
    def told_apart(x: Any) -> Any:  # Python's True == 1 is not ours
        return (tuple(map(told_apart, x)),) if isinstance(x, tuple) else (isinstance(x, bool), x)

    assert (key(a) == key(b)) == (told_apart(a) == told_apart(b))


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"call": "x"},
        {"call": "x", "settings": [], "revision": 0},
        {"recipe": {}},
        {"recipe": {"steps": 1}},
        {"recipe": canonical(RECIPE)["recipe"] | {"extra": 1}},
        {"recipe": canonical(RECIPE)["recipe"] | {"model": 7}},
        {"cell": {"state": 1, "measures": 2}},
        {"run": "abc", "step": "sideways"},
        {"run": "abc"},
        {"call": "x", "settings": {}, "revision": "one"},
    ],
)
def test_foreign_json_is_refused(value):
    with pytest.raises(ValueError, match=r"."):
        from_canonical(value)


def test_reading_imports_nothing(tmp_path):
    """A store may come from elsewhere: what it names must not run by being read."""
    (tmp_path / "canary.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    code = """
import json, sys
from landscope.spec import from_canonical, key
read = from_canonical(json.loads(sys.argv[1]))
key(read), repr(read), hash(read), read == read
"""
    value = json.dumps(
        {"call": "canary.boom", "settings": {"x": {"call": "canary.y", "settings": {}, "revision": 0}}, "revision": 0}
    )
    subprocess.run([sys.executable, "-c", code, value], check=True, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert not (tmp_path / "ran").exists()


def test_names_are_the_same_in_every_process():
    code = """
import torch
from landscope.spec import *
sgd = call(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0)
print(key(sgd), key(Cell((at("ab" * 8, 1), at("cd" * 8, "end")), (sgd,))))
"""
    seen = set()
    for seed in ("0", "1", "random"):
        env = os.environ | {"PYTHONHASHSEED": seed}
        seen.add(
            subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout
        )
    sgd = call(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0)
    assert seen == {f"{key(sgd)} {key(Cell((at('ab' * 8, 1), at('cd' * 8, 'end')), (sgd,)))}\n"}


# --- names in existing stores ----------------------------------------------------------------------------------------


def pinned_things() -> dict[str, Any]:
    return {
        "call": SGD,
        "call with a revision": Call("landscope.measures.top_eigenvalues", (("k", 1),), 2),
        "nested call": Call("a.b", (("inner", Call("c.d", (("x", (1, 2.5, "s", True)),))),)),
        "third-party call": call(torch.optim.SGD, lr=0.1, momentum=0.9),
        "built-in call": call(math.isclose, rel_tol=1e-3),
        "recipe": RECIPE,
        "rich recipe": RICH,
        "state": at(RECIPE, 100),
        "state at the end": at(RICH, "end"),
        "state below a level": at(RECIPE, first_below("train_loss", 0.01)),
        "cell": Cell(at(RECIPE, "end"), (SGD, LOSS)),
        "cell of two states": Cell((at(RECIPE, "end"), at(RICH, 0)), (LOSS,)),
        "text": "λ",
        "number": 0.1,
    }


def test_names_are_those_of_existing_stores():
    """Never change these: every run that people already have would be lost. A changed name needs a changelog entry."""
    assert {name: key(x) for name, x in pinned_things().items()} == PINNED


def test_the_canonical_form_is_readable():
    assert canonical_json(at("00ff" * 4, first_below("train_loss", 1.0))) == (
        '{"run":"00ff00ff00ff00ff","step":["first_below","train_loss",1]}'
    )
    assert canonical_json(SGD) == '{"call":"torch.optim.sgd.SGD","revision":0,"settings":{"lr":0.1}}'
