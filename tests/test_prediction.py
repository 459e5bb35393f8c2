"""Predictions of cost: their structure and sanity; how long anything takes is asserted nowhere."""

from pathlib import Path

import pytest
import torch
from cases import recipe
from torch.optim import SGD

from landscope import prediction
from landscope.measures.outcomes import performance
from landscope.prediction import Cost, predict, wall_seconds
from landscope.spec import call, key
from landscope.train import loss_below
from landscope.types import Batches


def test_runs_that_differ_in_numbers_alone_are_timed_once_and_cost_in_proportion(tmp_path: Path):
    runs = [(recipe(steps=100, seed=s, optimizer=call(SGD, lr=0.1 + s)), 1, 1.0) for s in range(3)]
    longer = recipe(steps=100_000)
    groups: list[tuple[int, int]] = []
    threads = torch.get_num_threads()
    costs = predict(
        [*runs, (longer, 4, 1.0)], (call(performance),), tmp_path, on_group=lambda i, n: groups.append((i, n))
    )
    assert groups == [(0, 1)]
    assert torch.get_num_threads() == threads
    assert set(costs) == {key(r) for r, _, _ in runs} | {key(longer)}
    first = costs[key(runs[0][0])]
    assert min(first.training, first.measuring, first.memory, first.steps) > 0
    assert all(costs[key(r)].training == first.training for r, _, _ in runs)
    assert costs[key(longer)].training > first.training
    assert costs[key(longer)].measuring == pytest.approx(4 * first.measuring)


def test_batches_larger_than_the_set_need_no_more_memory_than_the_set(tmp_path: Path):
    whole, huge = recipe(batch_size=23), recipe(batch_size=10**9)
    costs = predict([(whole, 1, 1.0), (huge, 1, 1.0)], (), tmp_path)
    assert abs(costs[key(huge)].memory - costs[key(whole)].memory) < 2**28


def test_a_pilot_that_diverges_is_timed_all_the_same(tmp_path: Path):
    r = recipe(optimizer=call(SGD, lr=1e30), stop=call(loss_below, level=0.1, every=2))
    cost = predict([(r, 1, 0.5)], (), tmp_path)[key(r)]
    assert cost.steps == 20
    assert cost.training > 0


class Clock:
    """A clock that goes on only by what is done: so many seconds for each network, and for each sample."""

    def __init__(self, fixed: float, each: float) -> None:
        self.now, self.fixed, self.each, self.seen = 0.0, fixed, each, [0]

    def perf_counter(self) -> float:
        return self.now

    def work(self, batches: Batches) -> None:
        self.now += self.fixed + self.each * batches.n
        self.seen.append(batches.n)


@pytest.mark.parametrize(
    ("fixed", "each", "n", "largest"),
    [
        (0.6, 3e-4, 1197, 512),
        (0.0, 1e-3, 50_000, 2048),
        (20.0, 0.0, 50_000, 32),
        (0.5, 0.7, 50_000, 32),
        (0.5, 0.2, 50_000, 64),
        (1e-3, 1e-5, 900, 900),
        (9, 1, 20, 20),
    ],
)
def test_what_does_not_grow_with_the_samples_is_not_multiplied_by_them(
    fixed: float, each: float, n: int, largest: int, monkeypatch: pytest.MonkeyPatch
):
    clock = Clock(fixed, each)
    monkeypatch.setattr(prediction, "time", clock)
    seconds = prediction._seconds_per_sample(clock.work, Batches(torch.zeros(n, 2), torch.zeros(n)))
    assert max(clock.seen) == largest
    assert seconds(n) == pytest.approx(fixed + each * n)
    assert seconds(10 * n) == pytest.approx(fixed + each * 10 * n)


def test_what_takes_long_is_not_done_a_third_time_to_warm_up_and_on_fewer_samples(monkeypatch: pytest.MonkeyPatch):
    clock = Clock(20.0, 0.1)
    monkeypatch.setattr(prediction, "time", clock)
    prediction._seconds_per_sample(clock.work, Batches(torch.zeros(500, 2), torch.zeros(500)))
    assert clock.seen == [0, 32, 16]


def test_the_clock_is_shared_by_the_jobs_longest_first():
    costs = {str(i): Cost(1, seconds, 0.0, 0) for i, seconds in enumerate((4.0, 3.0, 2.0, 1.0))}
    assert wall_seconds(costs, 1, start=0.0) == 10.0
    assert wall_seconds(costs, 2, start=0.0) == 5.0
    assert wall_seconds(costs, 4, start=1.0) == 5.0


def test_a_run_of_a_population_costs_its_share(tmp_path: Path):
    runs = [(recipe(steps=100, seed=s), 1, 1.0) for s in range(8)]
    costs = predict(runs, (), tmp_path, members={key(r): 8 for r, _, _ in runs})
    assert len({cost.training for cost in costs.values()}) == 1
    assert min(min(cost.training, cost.memory) for cost in costs.values()) > 0
    wild = recipe(optimizer=call(SGD, lr=1e30), stop=call(loss_below, level=0.1, every=2))
    assert predict([(wild, 1, 0.5)], (), tmp_path, members={key(wild): 4})[key(wild)].training > 0
