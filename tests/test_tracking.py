"""The monitor in a plain loop: training is untouched, the budget holds, failures stay inside, everything is kept."""

import hashlib
import json
import logging
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

from landscope.report import write_table
from landscope.spec import call
from landscope.tracking import Monitor, monitor
from landscope.tracking.monitoring import check_functions
from landscope.types import Batches, Estimate, Snapshot

loss = functional.cross_entropy


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def network() -> Any:
    """Dropout, BatchNorm and a buffer of its own."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


def samples(n: int = 48) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 5, generator=generator), torch.randint(0, 3, (n,), generator=generator)


def fingerprint(model: nn.Module) -> str:
    content = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        content.update(name.encode() + tensor.detach().cpu().numpy().tobytes())
    return content.hexdigest()


def draws() -> list[float]:
    return [random.random(), float(np.random.random()), float(torch.rand(()))]


def norm(snapshot: Snapshot) -> dict[str, float]:
    return {"norm": float(sum(p.detach().square().sum() for p in snapshot.model.parameters())) ** 0.5}


def vandal(snapshot: Snapshot) -> dict[str, float]:
    """Does to the network and the generators whatever a measure must not, and fails at the end."""
    model = snapshot.model
    draws()
    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)
    inputs, targets = next(iter(snapshot.train))
    snapshot.loss(model(inputs), targets).backward()
    model.train()
    model(inputs)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)
    first = next(module for module in model.modules() if isinstance(module, nn.Linear))
    first.weight.data = torch.zeros(1, 1)
    first.bias = nn.Parameter(torch.zeros(8))
    for p in model.parameters():
        p.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean = torch.full((8,), math.nan)
    raise RuntimeError("the vandal is done")


def train(
    watch_with: dict | None, steps: int = 50, watch_loader: bool = True
) -> tuple[str, list[float], Monitor | None]:
    """50 steps with momentum; the same loader trains and is measured on."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    data = TensorDataset(*samples())
    loader = DataLoader(data, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(3), drop_last=True)
    torch.manual_seed(4)
    np.random.seed(4)
    random.seed(4)
    watch = None
    if watch_with is not None:
        watch = monitor(model, loss, train=loader if watch_loader else samples(), **watch_with)
    drawn, step = [], 0
    while step < steps:
        for inputs, targets in loader:
            drawn += draws()
            noise = drawn[-1] + drawn[-2] + drawn[-3]
            optimizer.zero_grad()
            loss(model(inputs + 0.01 * noise), targets).backward()
            optimizer.step()
            step += 1
            if watch is not None:
                watch.step()
            if step == steps:
                break
    return fingerprint(model), drawn, watch


ALONE_AND_WATCHED = """
import json, sys
sys.path.insert(0, sys.argv[1])
from test_tracking import norm, train, vandal
def told(watch_with, **settings):
    weights, drawn, watch = train(watch_with, **settings)
    return [weights, drawn, [] if watch is None else [watch.failed, watch.history.rows()]]
some = {"measures": ["performance", norm, vandal], "every": 7, "budget": None}
curvature = {"measures": "top_eigenvalues", "every": 25, "budget": None}
print(json.dumps({
    "alone": told(None), "shorter": told(None, steps=49), "loader": told(some),
    "tensors": told(some, watch_loader=False), "curvature": told(curvature, watch_loader=False)
}))
"""


def test_weights_and_random_draws_are_the_same_with_and_without():
    # In a process of its own: the checks of types in these tests draw from Python's generator themselves.
    words = [sys.executable, "-c", ALONE_AND_WATCHED, str(Path(__file__).parent)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    weights, drawn, _ = told["alone"]
    assert told["shorter"][0] != weights  # or the comparison could not fail
    for name, failed in (("loader", 7), ("tensors", 7), ("curvature", 0)):
        assert told[name][0] == weights, name
        assert told[name][1] == drawn, name
        assert told[name][2][0] == failed
    rows = told["tensors"][2][1]
    assert [row["step"] for row in rows if row["name"] == "norm"] == [7, 14, 21, 28, 35, 42, 49]
    assert len([row for row in told["curvature"][2][1] if row["name"] == "top_eigenvalue"]) == 2


def test_everything_is_as_it_was(caplog):
    model, (inputs, targets) = network(), samples()
    model[1].eval()  # a mode that is not the whole network's
    model[0].bias.requires_grad_(False)
    watch = monitor(model, loss, train=(inputs, targets), measures=[vandal], every=1, budget=None)
    loss(model(inputs), targets).backward()
    parameters = list(model.parameters())
    gradients = [p.grad for p in parameters]
    contents = [None if g is None else g.clone() for g in gradients]
    modes, flags = [m.training for m in model.modules()], [p.requires_grad for p in parameters]
    buffers, before = list(model.buffers()), fingerprint(model)
    watch.step()
    assert watch.failed == 1
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert all(a is b for a, b in zip(buffers, model.buffers(), strict=True))
    assert all(p.grad is g for p, g in zip(parameters, gradients, strict=True))
    assert all(g is None or c is None or torch.equal(g, c) for g, c in zip(gradients, contents, strict=True))
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in parameters] == flags
    assert fingerprint(model) == before


def test_a_graph_of_the_training_can_still_be_used_afterwards(caplog):
    def shifts(snapshot: Snapshot) -> dict[str, float]:
        for p in snapshot.model.parameters():
            p.data.add_(1.0)
        raise RuntimeError("before it could shift them back")

    model, (inputs, targets) = network(), samples()
    watch = monitor(model, loss, train=(inputs, targets), measures=[shifts, "performance"], every=1, budget=None)
    value = loss(model(inputs), targets)
    expected = torch.autograd.grad(value, model[0].weight, retain_graph=True)[0]
    watch.step()
    assert watch.failed == 1
    assert torch.equal(torch.autograd.grad(value, model[0].weight)[0], expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_measures_differentiate_in_full_precision_wherever_they_are_called(mode):
    def slope(snapshot: Snapshot) -> dict[str, float]:
        inputs, targets = snapshot.train.inputs, snapshot.train.targets
        gradients = torch.autograd.grad(snapshot.loss(snapshot.model(inputs), targets), [*snapshot.model.parameters()])
        return {"slope": float(torch.cat([g.reshape(-1) for g in gradients]).norm())}

    model = network()
    watch = monitor(model, loss, train=samples(), measures=slope, every=1, budget=None)
    plainly = watch.step()["slope/slope"]
    with mode():
        assert watch.step()["slope/slope"] == plainly
    assert watch.failed == 0


def test_reading_a_loader_leaves_its_generators_and_its_running_workers_alone():
    generator = torch.Generator().manual_seed(5)
    sampler = SubsetRandomSampler(range(20), generator=generator)
    loader = DataLoader(TensorDataset(*samples()), batch_size=4, sampler=sampler, generator=generator)
    before = generator.get_state()
    watch = monitor(network(), loss, train=loader, measures=norm)
    assert torch.equal(generator.get_state(), before)
    assert watch.step() == {}

    persistent = DataLoader(TensorDataset(*samples()), batch_size=4, num_workers=1, persistent_workers=True)
    running = iter(persistent)
    first = next(running)
    monitor(network(), loss, train=persistent, measures=norm)
    rest = list(running)
    assert torch.equal(torch.cat([first[0], *(x for x, _ in rest)]), samples()[0])
    assert persistent._iterator is running


# --- failures --------------------------------------------------------------------------------------------------------


def fails(snapshot: Snapshot) -> dict[str, float]:
    raise ValueError("no number today")


def test_a_failing_measure_is_told_once_kept_each_time_and_stops_nothing(caplog):
    watch = monitor(network(), loss, train=samples(), measures=[fails, norm], every=1, budget=None)
    with caplog.at_level(logging.WARNING):
        values = [watch.step() for _ in range(3)]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "fails failed at step 1: ValueError: no number today" in caplog.text
    assert all("norm/norm" in v for v in values)
    table = watch.history.where(measure="fails")
    assert table["error"] == ("ValueError: no number today",) * 3
    assert table["step"] == (1, 2, 3)
    assert table["value"] == (None,) * 3
    assert watch.failed == 3


@pytest.mark.parametrize("wrong", [None, 3, {"x": "text"}, {"x": Estimate(1.0), "y": object()}, {1: 2.0}])
def test_a_measure_that_returns_nonsense_is_a_failure_too(wrong, caplog):
    def odd(snapshot):
        return wrong

    watch = monitor(network(), loss, train=samples(), measures=[odd, norm], every=1, budget=None)
    assert "norm/norm" in watch.step()
    assert watch.failed == 1


def test_a_logger_that_fails_stops_nothing(caplog):
    def log(values, step):
        raise ConnectionError("the server is away")

    watch = monitor(network(), loss, train=samples(), measures=norm, every=1, budget=None, log=log)
    assert [bool(watch.step()) for _ in range(2)] == [True, True]
    assert len(caplog.records) == 1
    assert watch.history.where(measure="log")["error"] == ("ConnectionError: the server is away",) * 2


def test_an_interrupt_passes_and_leaves_the_network_as_it_was():
    def interrupted(snapshot):
        with torch.no_grad():
            next(snapshot.model.parameters()).zero_()
        raise KeyboardInterrupt

    model = network()
    before = fingerprint(model)
    watch = monitor(model, loss, train=samples(), measures=interrupted, every=1)
    with pytest.raises(KeyboardInterrupt):
        watch.step()
    assert fingerprint(model) == before
    assert model.training


# --- the budget ------------------------------------------------------------------------------------------------------


def costly(clock: Clock, seconds: list[float]):
    """A measure that takes these seconds, one after the other, the last again and again."""

    def measure(snapshot: Snapshot) -> dict[str, float]:
        clock.now += seconds.pop(0) if len(seconds) > 1 else seconds[0]
        return {"x": 1.0}

    return measure


def run(watch: Monitor, clock: Clock, steps: int, seconds: float = 1.0) -> list[int]:
    """Steps of training that take these seconds; those at which something was measured."""
    measured = []
    for _ in range(steps):
        clock.now += seconds
        if watch.step():
            measured.append(watch.steps)
    return measured


def test_within_the_budget_and_says_what_was_skipped():
    clock = Clock()
    watch = monitor(network(), loss, train=samples(), measures=costly(clock, [1.0]), every=10, budget=0.05, clock=clock)
    # The first costs 1 s at step 10. The clock starts at the first step, so that step s is after s - 1 seconds of
    # training: the k-th measurement is affordable from k / 0.05 seconds on, at step 20 k + 1, and due at 20 k + 10.
    assert run(watch, clock, 205) == [10, 50, 70, 90, 110, 130, 150, 170, 190]
    assert watch.taken == 9
    assert watch.skipped == 20 - 9
    assert watch.training == pytest.approx(204)
    assert watch.measuring == pytest.approx(9)
    assert watch.share == pytest.approx(9 / 204)
    assert "9 measurements, 11 skipped to stay within 0.05" in repr(watch)
    assert set(watch.history["seconds"]) == {1.0}


def test_the_share_never_exceeds_the_budget_once_the_first_is_paid_for():
    clock, draw = Clock(), random.Random(0)
    watch = monitor(network(), loss, train=samples(), measures=costly(clock, [0.5]), every=3, budget=0.1, clock=clock)
    watch.measure_now()  # whose time does not count, but makes the cost known
    assert watch.measuring == 0
    for _ in range(300):
        run(watch, clock, 1, draw.uniform(0.1, 1.0))
        assert watch.measuring <= 0.1 * watch.training
    assert watch.taken > 20
    assert watch.skipped > 20
    assert watch.taken - 1 + watch.skipped == 100


def test_a_dear_measurement_is_paid_for_and_forgotten():
    clock = Clock()
    measure = costly(clock, [10.0, 0.1])
    watch = monitor(network(), loss, train=samples(), measures=measure, every=1, budget=0.5, clock=clock)
    measured = run(watch, clock, 100)
    # 10 s at step 1; the next is expected to cost 10 s again: from 40 s of training on. So do two more, then 0.1 s.
    assert measured[:2] == [1, 41]
    assert measured[-20:] == list(range(81, 101))
    assert watch.share <= 0.5


def test_without_a_budget_each_one_due_is_taken():
    clock = Clock()
    watch = monitor(network(), loss, train=samples(), measures=costly(clock, [99.0]), every=4, budget=None, clock=clock)
    assert run(watch, clock, 12) == [4, 8, 12]
    assert watch.skipped == 0
    assert "skipped" not in repr(watch)


def test_time_of_logging_and_of_failures_counts_and_pauses_do_not(caplog):
    clock = Clock()

    def slow(values, step):
        clock.now += 2.0

    def fails_slowly(snapshot):
        clock.now += 3.0
        raise ValueError

    watch = monitor(network(), loss, train=samples(), measures=fails_slowly, every=1, budget=9.0, log=slow, clock=clock)
    run(watch, clock, 1)
    assert watch.measuring == pytest.approx(5.0)
    watch.pause()
    clock.now += 1000.0  # a night between two cells of a notebook
    run(watch, clock, 3)
    assert watch.training == pytest.approx(2.0)


def test_steps_may_be_given_and_leap():
    watch = monitor(network(), loss, train=samples(), measures=norm, every=5, budget=None)
    measured = [step for step in (101, 103, 105, 105, 107, 111, 126, 127) if watch.step(step)]
    assert measured == [105, 111, 126]
    assert watch.history["step"] == (105, 111, 126)
    resumed = monitor(network(), loss, train=samples(), measures=norm, every=5, budget=None)
    resumed.begin(20)
    assert [step for step in (20, 20, 21, 25, 25) if resumed.step(step)] == [25]
    fresh = monitor(network(), loss, train=samples(), measures=norm, every=5, budget=None)
    assert [step for step in (0, 0, 1, 5) if fresh.step(step)] == [5]


# --- what is logged and kept -----------------------------------------------------------------------------------------


def several(snapshot: Snapshot, *, scale: float = 1.0) -> dict[str, float | Estimate | Tensor]:
    return {
        "exact": scale,
        "estimate": Estimate.of([1.0, 2.0, 3.0]),
        "pair": torch.tensor([4.0, 5.0]),
        "long": torch.arange(100.0),
        "moved": float(
            sum((a - snapshot.start_state[n]).abs().sum() for n, a in snapshot.state.items())  # pyright: ignore
        ),
        "at": float(snapshot.step),
    }


def test_what_is_logged_is_what_is_kept():
    logged = []
    watch = monitor(
        network(),
        loss,
        train=Batches(*samples(), 7),
        measures=[several],
        every=2,
        budget=None,
        log=lambda values, step: logged.append((step, values)),
    )
    watch.measure_now()
    watch.step()
    with torch.no_grad():
        next(iter(watch.model.parameters())).add_(1.0)
    assert watch.step() == logged[1][1]
    assert [step for step, _ in logged] == [0, 2]
    values = logged[1][1]
    assert values["several/exact"] == 1
    assert values["several/estimate"] == 2
    assert values["several/estimate_sem"] == pytest.approx(1 / math.sqrt(3))
    assert (values["several/pair/0"], values["several/pair/1"]) == (4, 5)
    assert values["several/moved"] == pytest.approx(40)  # the 8 × 5 weights
    assert values["several/at"] == 2
    assert not any("long" in name for name in values)
    assert {"landscope/seconds", "landscope/share", "landscope/skipped"} <= set(values)
    assert all(isinstance(value, float) for value in values.values())
    table = watch.history.where(step=2)
    assert len(table) == 4 + 2 + 100
    assert table.where(name="estimate")["n"] == (3,)
    assert table.where(name="long[99]")["value"] == (99.0,)


def test_one_measure_with_several_settings_has_several_names():
    measures = [call(_scaled, scale=1.0), call(_scaled, scale=2.0)]
    watch = monitor(network(), loss, train=samples(), measures=measures, every=1, budget=None)
    values = watch.step()
    assert values["_scaled/exact"] == 1
    assert values["_scaled_scale_2.0/exact"] == 2
    assert watch.history.distinct("measure") == ["_scaled", "_scaled(scale=2.0)"]


def test_the_history_exports(tmp_path, caplog):
    import pyarrow.parquet as pq

    watch = monitor(network(), loss, train=samples(), measures=[norm, fails], every=1, budget=None)
    watch.step()
    for name in ("history.csv", "history.parquet", "history.tex"):
        write_table(watch.history, tmp_path / name)
    assert (tmp_path / "history.csv").read_text().splitlines()[0] == "step,measure,name,value,sem,n,seconds,error"
    assert pq.read_table(tmp_path / "history.parquet").to_pylist() == watch.history.rows()
    assert "no number today" in (tmp_path / "history.tex").read_text()
    with pytest.raises(ValueError, match=r"csv, .parquet or .tex"):
        write_table(watch.history, tmp_path / "history.xlsx")


def test_tensorboard_reads_what_was_logged(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        watch = monitor(
            network(),
            loss,
            train=samples(),
            measures=norm,
            every=2,
            budget=None,
            log=lambda values, step: [writer.add_scalar(name, value, step) for name, value in values.items()],
        )
        for _ in range(4):
            watch.step()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("norm/norm")] == [2, 4]
    assert events.Scalars("norm/norm")[0].value == pytest.approx(watch.history["value"][0], rel=1e-6)


# --- what is refused, before the training begins ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"measures": "top_eigenvalue"}, LookupError, "did you mean 'top_eigenvalues'"),
        ({"measures": []}, ValueError, "nothing to measure"),
        ({"measures": [norm, norm]}, ValueError, "given twice"),
        ({"measures": ["performance", "performance"]}, ValueError, "performance is given twice"),
        ({"every": 0}, ValueError, "at least 1, not 0"),
        ({"budget": 0.0}, ValueError, "above 0"),
        ({"budget": math.nan}, ValueError, "above 0"),
        ({"train": (torch.zeros(0, 5), torch.zeros(0))}, ValueError, "empty"),
        ({"train": (torch.full((4, 5), math.nan), torch.zeros(4))}, ValueError, "NaN"),
        ({"train": None}, ValueError, "no training data"),
    ],
)
def test_wrong_settings_are_refused_at_once(settings, error, message):
    with pytest.raises(error, match=message):
        monitor(network(), loss, **({"train": samples(), "measures": norm} | settings))


def test_what_cannot_be_called_is_refused():  # from outside the tests' type checks, which come first
    check_functions(log=print, forward=None)
    with pytest.raises(TypeError, match=r"log is a function, such as wandb.log, or None, not 'wandb'"):
        check_functions(log="wandb")


def test_a_loss_that_is_no_mean_is_refused_and_the_network_left_alone():
    model = network()
    with pytest.raises(ValueError, match="plain mean"):
        monitor(model, lambda o, t: loss(o, t, reduction="sum"), train=samples(), measures=norm)
    assert model.training


def test_sharded_parameters_are_refused():
    class FullyShardedDataParallel(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

    with pytest.raises(ValueError, match="spread over several processes"):
        monitor(nn.Sequential(FullyShardedDataParallel()), loss, train=samples(), measures=norm)
    deepspeeds: Any = network()
    next(deepspeeds.parameters()).ds_id = 0  # which ZeRO-3 gives to the parameters that it spreads
    with pytest.raises(ValueError, match="spread over several processes"):
        monitor(deepspeeds, loss, train=samples(), measures=norm)


def test_wrappers_are_looked_through_and_outputs_may_be_made_from_the_network():
    model = network()
    compiled: Any = torch.compile(model, backend="eager")
    watch = monitor(compiled, loss, train=samples(), measures="performance", every=1, budget=None)
    assert watch.model is model

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = model

    other = monitor(
        Named(),
        loss,
        train=samples(),
        measures="performance",
        every=1,
        budget=None,
        forward=lambda module, x: module.network(x),
    )
    assert other.step()["performance/train_loss"] == watch.step()["performance/train_loss"]


def _scaled(snapshot: Snapshot, *, scale: float) -> dict[str, float]:
    return {"exact": scale}
