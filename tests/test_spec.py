"""Identity: what is one recipe, what are two, and the literal names that existing stores rely on."""

import functools
import json
import math
import os
import subprocess
import sys
import types
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from landscope.spec import (
    At,
    Call,
    Cell,
    Claim,
    Experiment,
    Paper,
    Protocol,
    Recipe,
    at,
    call,
    canonical,
    canonical_json,
    derive,
    first_below,
    from_canonical,
    key,
    planned,
    resolve,
    step_name,
)

DATA = Call("landscope.data.digits", (("train", 100),))
MODEL = Call("landscope.models.mlp", (("widths", (64, 64)),))
LOSS = Call("landscope.losses.cross_entropy")
SGD = Call("torch.optim.sgd.SGD", (("lr", 0.1),))
RECIPE = Recipe(DATA, MODEL, LOSS, SGD, steps=100, batch_size=8, seed=0)
RICH = replace(
    RECIPE,
    regularizers=(Call("landscope.regularizers.flatness", (("weight", 0.1),), 2),),
    schedule=Call("torch.optim.lr_scheduler.StepLR", (("step_size", 10),)),
    order_seed=3,
    stop=Call("landscope.train.loss_below", (("every", 5), ("level", 0.01))),
    start=Call("landscope.pruning.rewind", (("source", at(RECIPE, 0)), ("scores", at(RECIPE, "end")))),
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


# --- a module of "ours", so that defaults, revisions and annotations can be tried ------------------------------------


def _measure(
    snapshot, /, *, k: int = 1, radius: float = 1.0, noise: float | None = None, kinds: tuple[float, ...] = ()
):
    return k, radius, noise, kinds


def _required(*, level: float, on: bool = False):
    return level, on


@pytest.fixture
def ours(monkeypatch):
    """Puts functions into a module of Landscope's own, under their public names."""
    module = types.ModuleType("landscope.example")
    monkeypatch.setitem(sys.modules, module.__name__, module)

    def put(function, name: str | None = None):
        copy = types.FunctionType(function.__code__, function.__globals__, name or function.__name__.strip("_"))
        copy.__kwdefaults__, copy.__annotations__ = function.__kwdefaults__, function.__annotations__
        copy.__module__, copy.__qualname__ = module.__name__, copy.__name__
        setattr(module, copy.__name__, copy)
        return copy

    return put


# --- calls -----------------------------------------------------------------------------------------------------------


def test_our_defaults_are_part_of_a_call(ours):
    assert call(ours(_measure)) == Call("landscope.example.measure", (("k", 1), ("kinds", ()), ("radius", 1.0)))


def test_a_changed_default_is_a_changed_key(ours):
    before = key(call(ours(_measure)))

    def measure(snapshot, /, *, k: int = 2, radius: float = 1.0, noise: float | None = None, kinds: tuple = ()):
        return k

    assert key(call(ours(measure))) != before
    assert key(call(ours(measure), k=1)) == before


def test_a_new_setting_that_is_off_leaves_the_key(ours):
    before = key(call(ours(_measure)))

    def measure(snapshot, /, *, k=1, radius=1.0, noise=None, kinds=(), smoothing=None):
        return smoothing

    assert key(call(ours(measure))) == before


def test_none_means_off_and_stays_off(ours):
    def measure(snapshot, /, *, noise: float | None = 0.5):
        return noise

    function = ours(measure)
    assert call(function, noise=None) == Call("landscope.example.measure", ())
    assert call(function, noise=None)("snapshot") is None, "the default must not come back"
    assert call(function)("snapshot") == 0.5


def test_a_call_read_again_after_a_setting_was_added_leaves_it_off(ours):
    ours(_measure)
    assert Call("landscope.example.measure", (("k", 3), ("radius", 1.0), ("kinds", ())))(None) == (3, 1.0, None, ())


def test_what_cannot_be_off_is_not_switched_off(ours):
    with pytest.raises(TypeError, match=r"measure\(k\) cannot be off"):
        call(ours(_measure), k=None)


def test_a_raised_revision_is_a_changed_key(ours):
    function = ours(_measure)
    before = key(call(function))
    function.revision = 1
    assert key(call(function)) != before


@pytest.mark.parametrize("one", [1, 1.0, np.int64(1), np.float32(1), torch.tensor(1.0)])
def test_one_is_one_whatever_its_type(ours, one):
    function = ours(_measure)
    assert call(function, radius=one, k=one) == call(function)
    assert key(call(function, radius=one, k=one, kinds=[one])) == key(call(function, kinds=(1,)))
    assert type(call(function, radius=one)["radius"]) is float
    assert type(call(function, k=one)["k"]) is int
    assert key(call(torch.optim.SGD, lr=one)) == key(call(torch.optim.SGD, lr=1.0))


def test_whole_numbers_and_flags_are_kept_apart(ours):
    with pytest.raises(TypeError, match=r"whole number, not 1\.5"):
        call(ours(_measure), k=1.5)
    with pytest.raises(TypeError, match="takes a number, not True"):
        call(ours(_measure), radius=True)
    assert call(ours(_required), level=1, on=1)["on"] is True


@given(st.integers(-(10**25), 10**25))
def test_equal_numbers_have_equal_names(n):
    if float(n) == n:
        assert key(float(n)) == key(n)
    assert key(-0.0) == key(0)
    assert key(n) != key(n + 1)


def test_the_order_of_settings_does_not_matter(ours):
    function = ours(_measure)
    assert call(function, k=2, radius=3.0) == call(function, radius=3.0, k=2)
    assert key(Call("a.b", (("x", 1), ("y", 2)))) == key(Call("a.b", (("y", 2), ("x", 1))))


def test_settings_are_checked_when_they_are_bound(ours):
    with pytest.raises(TypeError, match=r"no setting 'raduis' \(did you mean 'radius'\?\)"):
        call(ours(_measure), raduis=1.0)
    with pytest.raises(TypeError, match="no setting 'snapshot'"):
        call(ours(_measure), snapshot=1.0)
    with pytest.raises(TypeError, match="needs the setting 'level'"):
        call(ours(_required))
    with pytest.raises(TypeError, match="no setting 'momentun'"):
        call(torch.optim.SGD, lr=0.1, momentun=0.9)


@pytest.mark.parametrize("value", [math.nan, math.inf, np.float64("nan"), (1.0, -math.inf)])
def test_numbers_without_a_name_are_refused(ours, value):
    with pytest.raises(ValueError, match="no canonical form"):
        call(ours(_measure), kinds=value)


@pytest.mark.parametrize("value", [{"a": 1}, {1, 2}, object(), np.zeros(2), b"x", print, 1j])
def test_values_without_a_name_are_refused(ours, value):
    with pytest.raises(TypeError, match="cannot be part of a key"):
        call(ours(_measure), kinds=value)


def _closure():
    def inner():
        return 0

    return inner


def _main():
    return 0


_main.__module__ = "__main__"


def _renamed():
    return 0


_renamed.__qualname__ = "pinned_things"  # as a decorator leaves it: the name leads to something else


@pytest.mark.parametrize(
    "function",
    [lambda: 0, _closure(), _main, _renamed, functools.partial(math.isclose), "text".upper, RECIPE.__hash__],
    ids=["lambda", "closure", "main", "renamed", "partial", "method of a built-in", "method"],
)
def test_functions_that_no_other_process_could_find_are_refused(function):
    with pytest.raises(ValueError, match="top level of a module"):
        call(function)


def test_other_libraries_keep_just_what_is_given():
    assert call(torch.optim.SGD, lr=0.1).kwargs == (("lr", 0.1),)
    assert call(torch.optim.SGD, lr=0.1, foreach=None) == call(torch.optim.SGD, lr=0.1)
    assert call(math.isclose).kwargs == ()


def test_another_librarys_none_is_kept_where_it_is_not_the_default():
    bound = call(json.dumps, ensure_ascii=None, indent=None)
    assert bound.kwargs == (("ensure_ascii", None),)
    assert from_canonical(json.loads(canonical_json(bound))) == bound


def test_calling_passes_settings_and_what_the_engine_replaces(ours):
    bound = call(ours(_measure), k=2)
    assert bound("snapshot") == (2, 1.0, None, ())
    assert bound.bind(radius=9.0)("snapshot") == (2, 9.0, None, ())
    assert call(math.isclose, rel_tol=0.5)(1.0, 1.4)
    assert bound["k"] == 2
    assert bound.name == "measure"
    assert repr(bound) == "measure(k=2, kinds=(), radius=1.0)"


def test_unknown_names_are_told_from_broken_modules(monkeypatch, tmp_path):
    assert resolve("math.isclose") is math.isclose
    for missing in ("nowhere.at.all", "math.nothing", "landscope.nothing.here"):
        with pytest.raises(LookupError, match="nothing importable is called"):
            resolve(missing)
    (tmp_path / "broken_module.py").write_text("import broken_mod\n")  # its name begins with what it lacks
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="'broken_mod'"):
        resolve("broken_module.function")


# --- recipes, states, cells ------------------------------------------------------------------------------------------


def test_every_field_of_a_recipe_is_part_of_its_key():
    changed = {
        "data": Call("landscope.data.digits", (("train", 101),)),
        "model": Call("landscope.models.mlp", (("widths", (64, 65)),)),
        "loss": Call("landscope.losses.squared_error"),
        "optimizer": Call("torch.optim.sgd.SGD", (("lr", 0.1), ("momentum", 0.9))),
        "steps": 101,
        "batch_size": 16,
        "seed": 1,
        "regularizers": (LOSS,),
        "order_seed": 0,
        "schedule": LOSS,
        "stop": LOSS,
        "start": LOSS,
        "constraint": LOSS,
    }
    keys = [key(RECIPE), *(key(replace(RECIPE, **{name: value})) for name, value in changed.items())]
    assert len(set(keys)) == len(keys)
    assert set(changed) == set(vars(RECIPE))


def test_fields_that_are_off_are_not_hashed():
    assert "schedule" not in canonical_json(RECIPE)
    assert key(replace(RECIPE, regularizers=())) == key(RECIPE)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", -1),
        ("batch_size", 0),
        ("seed", -1),
        ("seed", True),
        ("steps", 1.5),
        ("steps", "ten"),
        ("order_seed", -1),
    ],
)
def test_impossible_recipes_are_refused(field, value):
    # Where the type is wrong, too, the import hook of the tests speaks before our own message.
    with pytest.raises((ValueError, TypeError), match=f"a Recipe's {field} is a whole number of at least|Type-check"):
        replace(RECIPE, **{field: value})


def test_a_state_is_hashed_as_its_runs_key_and_step():
    assert canonical(at(RECIPE, 5)) == {"run": key(RECIPE), "step": 5}
    assert at(RECIPE, 5) == at(key(RECIPE), 5)
    assert hash(at(RECIPE, 5)) == hash(at(key(RECIPE), 5))
    assert at(RECIPE, 5) != at(RECIPE, 6)
    assert key(at(RECIPE, "end")) != key(at(RECIPE, "start"))
    child = replace(RECIPE, start=Call("x.y", (("source", at(RECIPE, 0)),)))
    assert key(child) == key(replace(RECIPE, start=Call("x.y", (("source", at(key(RECIPE), 0)),))))


def test_a_chain_of_runs_is_named_in_linear_time():
    """Forty levels with two references each: hashed once per way through, this would take 2^40 hashes."""
    recipe = RECIPE
    for _ in range(40):
        start = Call("x.prune", (("scores", at(recipe, "end")), ("source", at(recipe, 0))))
        recipe = replace(RECIPE, start=start)
    assert len(key(recipe)) == 16
    assert hash(recipe)


@pytest.mark.parametrize(
    "step", [-1, True, 1.0, "last", ("first_below", "x"), ("below", "x", 1.0), ("first_below", "x", math.nan)]
)
def test_impossible_steps_are_refused(step):
    with pytest.raises((ValueError, TypeError), match=r"a step is a number|Type-check"):
        at(RECIPE, step)


def test_steps_have_distinct_names():
    steps = [0, 120, "start", "end", first_below("train_loss", 0.01), first_below("train_loss", 0.010000001)]
    assert [step_name(s) for s in steps[:5]] == ["0", "120", "start", "end", "train_loss<0.01"]
    assert len({step_name(s) for s in steps}) == len(steps)


def test_the_order_of_measures_does_not_name_another_cell():
    a, b = Call("landscope.measures.a"), Call("landscope.measures.b")
    assert Cell(at(RECIPE, 1), (a, b)) == Cell(at(RECIPE, 1), (b, a))
    assert key(Cell((at(RECIPE, 1), at(RECIPE, 2)), (a,))) != key(Cell((at(RECIPE, 2), at(RECIPE, 1)), (a,)))


def test_derived_seeds_differ_by_purpose_and_fit_a_generator():
    seeds = {derive(0, "order", 1), derive(0, "order", 2), derive(1, "order", 1), derive(0, "init")}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)


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


# --- claims and experiments ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed",
    [
        {"expect": "bigger"},
        {"expect": "within"},
        {"expect": "within", "margin": 0.0},
        {"expect": "all_of"},
        {"statistic": None},
        {"smallest": -0.1, "reason": "why"},
        {"smallest": 0.1},
        {"expect": "less", "smallest": 0.1, "reason": "why"},
        {"expect": "trend_up", "smallest": 0.0, "reason": "why"},
    ],
)
def test_claims_that_cannot_be_judged_are_refused(changed):
    with pytest.raises(ValueError, match="flatter"):
        Claim(**({"text": "flatter", "statistic": LOSS, "expect": "greater"} | changed))


def _grid(scale, data, seeds):
    return [replace(RECIPE, seed=seed) for seed in seeds]


def test_a_protocol_is_judged_at_a_step_that_it_measures():
    with pytest.raises(ValueError, match="not among the measured"):
        Protocol(_grid, "epochs", steps=(10,), judged="end")


def test_planned_lists_shared_recipes_under_each_protocol():
    experiment = Experiment(
        paper=Paper("key", "title", "authors", 2026, "https://example.org"),
        title="?",
        summary="",
        runs={"published": Protocol(_grid, "epochs"), "control": Protocol(_grid, "loss")},
        seeds={"smoke": 2},
        data={"smoke": "digits"},
        measures=(),
        claims=lambda *_: (),
        figures=lambda table, scale: [],
    )
    plan = planned(experiment, "smoke", None, range(2))
    assert [(name, recipe.seed) for name, recipe in plan] == [
        ("published", 0),
        ("published", 1),
        ("control", 0),
        ("control", 1),
    ]
    assert len({key(recipe) for _, recipe in plan}) == 2


def test_equal_states_are_one_in_a_set():
    assert len({at(RECIPE, 1), at(key(RECIPE), 1), At(RECIPE, 1)}) == 1


def test_a_data_source_read_from_a_store_imports_nothing_foreign(tmp_path, monkeypatch):
    from landscope.data import Source, find

    (tmp_path / "canary.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("digits", "mnist1d"):
        value = find(name, tmp_path).to_json()
        assert Source.from_json(value).to_json() == value
    for target in ("canary.boom", "os.system", "landscope.dataset.x", "landscope.data.os.system"):
        with pytest.raises(ValueError, match="not a data source"):
            Source.from_json(value | {"call": value["call"] | {"call": target}})
    assert not (tmp_path / "ran").exists()
