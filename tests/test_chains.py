"""Runs that come from other runs, and constraints: alone, in populations, in a store and in a sweep."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import made_up
import pytest
import torch
from cases import blobs, recipe, same
from test_engine import Told
from test_population import alone, curious, double_mlp, many, skipping, together
from torch import Tensor, nn
from torch.optim import SGD

import landscope.study as studies
from landscope import engine, store, sweep
from landscope.data import find
from landscope.engine import Sizes, groups
from landscope.spec import At, Call, Experiment, Protocol, Recipe, at, call, first_below, key, lineage, sources
from landscope.study import Study
from landscope.train import advance, begin, loss_below, state_of

State = Mapping[str, Tensor]


def kept(scores: State, share: float) -> dict[str, Tensor]:
    """Which weights of each matrix are among its largest."""
    return {n: t.abs() >= t.abs().flatten().quantile(1 - share) for n, t in scores.items() if t.dim() > 1}


def ticket(*, source: At, scores: At, share: float) -> dict[str, Tensor]:
    """The source's state without the weights that are small in the scores' (`At` stands for the state given)."""
    states: Any = (source, scores)
    mask = kept(states[1], share)
    return {n: t * mask[n] if n in mask else t for n, t in states[0].items()}


def masked(model: nn.Module, /, *, scores: At, share: float) -> None:
    given: Any = scores
    mask = kept(given, share)
    for name, p in model.named_parameters():
        if name in mask:
            p.mul_(mask[name])


def counted(model: nn.Module, /, *, by: float = 1.0) -> None:
    """Replaces instead of changing in place, and has a buffer that counts."""
    for p in model.parameters():
        p.data = p.data.clamp(min=-0.4 * by)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.add_(0.01)


def level(before: Recipe, origin: Recipe, share: float) -> Recipe:
    scores = at(before, "end")
    return replace(
        origin,
        start=call(ticket, source=at(origin, 10), scores=scores, share=share),
        constraint=call(masked, scores=scores, share=share),
    )


def chain(levels: int, **changed: Any) -> list[Recipe]:
    origin = recipe(**changed)
    found = [origin]
    for i in range(levels):
        found.append(level(found[-1], origin, 0.8 ** (i + 1)))
    return found


def zeros(state: State) -> list[int]:
    return [int((state[name] == 0).sum()) for name in sorted(state) if state[name].dim() > 1]


def test_a_recipe_says_what_it_comes_from_and_a_chain_is_put_in_order():
    dense, first, second = chain(2)
    assert sources(dense) == ()
    assert set(sources(second)) == {at(dense, 10), at(first, "end")}
    assert repr(sources(second)[0]) == f"at({key(first)!r}, 'end')"
    for given in ([second], [second, first, dense], [dense, second]):
        found = lineage(given)
        assert {name: place for name, (_, place) in found.items()} == {key(dense): 0, key(first): 1, key(second): 2}
        assert list(found)[-1] == key(second) or given[0] is not second
    by_key = replace(dense, start=call(ticket, source=at("0" * 16, 3), scores=at("0" * 16, "end"), share=0.5))
    assert lineage([by_key]) == {key(by_key): (by_key, 0)}


def test_a_long_chain_with_several_ways_through_it_is_walked_once():
    levels = chain(40)
    assert [place for _, place in lineage(levels[-1:]).values()] == list(range(41))


def test_what_is_set_in_pairs_or_calls_within_calls_is_found_too():
    dense = recipe()
    inner = call(ticket, source=at(dense, 10), scores=at(dense, "end"), share=0.5)
    outer = replace(dense, regularizers=(Call("x.y", (("pairs", ((0.5, at(dense, 3)), inner)),)),))
    assert sources(outer) == (at(dense, 3), at(dense, "end"), at(dense, 10))


def test_the_states_that_a_recipe_names_must_be_given():
    _, first = chain(1)
    with pytest.raises(LookupError, match=r"needs the state 'end' of the run .*: give states="):
        begin(first, blobs(3, None))


def test_a_mask_is_exact_from_the_start_and_after_every_step_and_may_be_lifted():
    dense, first = chain(1)
    origin = alone(dense)
    states = dict.fromkeys(sources(first), state_of(origin.model))
    begun = begin(first, blobs(3, None), states=states)
    wanted = zeros(state_of(begun.model))
    assert min(wanted) > 0
    for training in advance(begun):
        assert zeros(state_of(training.model)) == wanted
        assert torch.is_grad_enabled()
    free = replace(first, constraint=None)
    begun = begin(free, blobs(3, None), states=states)
    assert zeros(state_of(begun.model)) == wanted
    for _ in advance(begun):
        pass
    assert sum(zeros(state_of(begun.model))) < sum(wanted)


@pytest.mark.parametrize("model", [curious, skipping])
def test_a_constraint_is_the_same_in_a_population_whoever_else_is_there(model: Any):
    recipes = [
        recipe(data=call(many), model=call(model), seed=s, constraint=call(counted, by=1.0 + s), steps=20 + s)
        for s in range(4)
    ]
    found = together(recipes)
    for r, state in zip(recipes, found, strict=True):
        expected = state_of(alone(r).model)
        for name, t in expected.items():
            torch.testing.assert_close(state[name], t, rtol=1e-8, atol=1e-10)
    assert all(same(a, b) for a, b in zip(together(recipes[1:3]), found[1:3], strict=True))
    assert min(float(t.min()) for name, t in found[0].items() if "weight" in name) == pytest.approx(-0.4)


def test_a_member_without_a_constraint_is_no_member_of_those_with_one():
    (_, first), (_, other) = chain(1), chain(1, seed=9)
    found = groups([first, other, replace(first, constraint=None)], Sizes((5,), 3, 23))
    assert [(g.executor, len(g.recipes)) for g in found] == [("population", n) for n in (2, 2, 1)]


def work(recipes: Sequence[Recipe], kept: Mapping[str, Sequence[Any]], root: Path) -> dict[str, Any]:
    payloads = [engine.payload(r, ("end",), (), kept=kept.get(key(r), ())) for r in recipes]
    return engine.work(engine.together(payloads) if len(payloads) > 1 else payloads[0], str(root), Told())


def test_levels_of_a_chain_go_through_the_store_alone_and_together(tmp_path: Path):
    chains = [chain(2, seed=s, data=call(many), model=call(double_mlp)) for s in range(2)]
    wanted = {key(c[0]): (10, "end") for c in chains} | {key(c[1]): ("end",) for c in chains}
    for i in range(3):
        work([c[i] for c in chains], wanted, tmp_path / "together")
        for c in chains:
            work([c[i]], wanted, tmp_path / "alone")
    for c in chains:
        for i, r in enumerate(c):
            ends = [engine.load_at(at(r, "end"), tmp_path / name) for name in ("together", "alone")]
            for name, t in ends[0].items():
                torch.testing.assert_close(t, ends[1][name], rtol=1e-8, atol=1e-10)
            assert zeros(ends[0]) == zeros(ends[1])
            assert (min(zeros(ends[0])) > 0) == (i > 0)


def test_a_state_wanted_later_is_trained_again_and_is_the_same(tmp_path: Path):
    dense, first = chain(1)
    task = engine.payload(dense, ("end",), ())
    engine.work(task, str(tmp_path), Told())
    end = engine.load_at(at(dense, "end"), tmp_path)
    more = engine.payload(dense, ("end",), (), kept=(10, "end"))
    assert not engine.finished(more, tmp_path)
    with pytest.raises(LookupError, match="has no state at step"):
        work([first], {}, tmp_path)
    engine.work(more, str(tmp_path), Told())
    assert engine.finished(more, tmp_path)
    assert same(engine.load_at(at(dense, "end"), tmp_path), end)
    work([first], {}, tmp_path)


@pytest.mark.parametrize("how", ["diverged", "never"])
def test_what_comes_from_a_run_that_never_had_the_state_is_recorded_so(how: str, tmp_path: Path):
    settings: dict[str, Any] = {"optimizer": call(SGD, lr=1e12, momentum=0.9)} if how == "diverged" else {}
    dense, step = recipe(**settings), "end" if how == "diverged" else first_below("train_loss", 1e-9)
    well = recipe(seed=8)
    children = [
        replace(r, seed=r.seed + 50, start=call(ticket, source=at(r, s), scores=at(r, s), share=0.5))
        for r, s in ((dense, step), (well, "end"))
    ]
    work([dense, well], {key(well): ("end",)}, tmp_path)
    assert work(children, {}, tmp_path)["diverged"] == 1
    for r in (children[0], replace(children[0], steps=7)):
        work([r], {}, tmp_path)
        record = store.run_record(tmp_path, key(r))
        assert record is not None
        assert (record["status"], record["steps"]) == ("diverged", 0)
        assert f"the run {key(dense)}, which it comes from, {how}" in record["reason"]
    fine = store.run_record(tmp_path, key(children[1]))
    assert fine is not None
    assert fine["status"] == "done"


def pruned(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    stop = call(loss_below, level=0.9, every=5)
    return [chain(2, data=data.draw(train=40, valid=20, test=20), seed=s, stop=stop, batch_size=10)[-1] for s in seeds]


def test_a_study_trains_what_its_runs_come_from_before_them(tmp_path: Path):
    protocol = Protocol(pruned, "nothing")
    paper = made_up.experiment().paper
    experiment = Experiment(
        paper=paper,
        title="Chains",
        summary="",
        runs={"published": protocol},
        seeds={"smoke": 2},
        data={"smoke": "digits"},
        measures=(),
        claims=lambda scale, data: (),
    )
    study = Study("chains", experiment, "smoke", find("digits", tmp_path / ".cache"), tmp_path, 2)
    tasks = studies.tasks(study, jobs=2)
    place = {name: place for name, (_, place) in lineage(r for _, r in study.runs()).items()}
    assert sorted(place.values()) == [0, 0, 1, 1, 2, 2]
    assert [task.runs for task in tasks] == [2, 2, 2]
    first, second, _ = (task.key for task in tasks)
    assert [set(task.after) for task in tasks] == [set(), {first}, {first, second}]
    assert [(n, share) for _, n, share in studies.expected(study)].count((0, 1.0)) == 4
    order: list[str] = []
    outcome = sweep.sweep(
        tasks[::-1],
        "landscope.engine:work",
        root=tmp_path,
        jobs=2,
        finished=lambda task: studies.is_finished(study, task),
        on_event=lambda event: order.append(event.task.key) if event.task and event.kind == "finished" else None,
    )
    assert outcome.complete, outcome.failures
    assert order == [task.key for task in tasks]
    assert all(studies.is_finished(study, task) for task in tasks)
