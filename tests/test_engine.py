"""From a cell to its values: interrupted, damaged, asked for more later, and on a user's own network."""

import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CLASSES, everything, made, noisy_net, points, recipe, same
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, TensorDataset

import landscope.engine.training as engine_training
from landscope import engine, store
from landscope.losses import cross_entropy
from landscope.measures.outcomes import performance
from landscope.measures.sharpness import weight_perturbation
from landscope.models import mlp
from landscope.spec import Recipe, Step, at, call, first_below, key
from landscope.train import advance, begin, evaluate, loss_below, state_of
from landscope.types import Batches

CPU = torch.device("cpu")
MEASURES = (call(performance), call(weight_perturbation, magnitudes=(0.1,), draws=2))


class Told:
    """A control that asks to stop at the nth question."""

    def __init__(self, questions: float = float("inf")) -> None:
        self.left, self.reports = questions, []

    def report(self, status: Any, /) -> None:
        self.reports.append(status["fraction"])

    @property
    def stopping(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def do(r: Recipe, steps: Sequence[Step], root: Path, *, stops: Sequence[int] = ()) -> dict[str, Any]:
    task = engine.payload(r, steps, MEASURES)
    for questions in stops:
        engine.work(task, str(root), Told(questions))
    return engine.work(task, str(root), Told())


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes()
        for p in sorted(root.rglob("*"))
        if p.is_file() and p.name != "environment.json" and ".cache" not in p.parts
    }


RUNS = {
    "momentum cosine": recipe(schedule=call(CosineAnnealingLR, T_max=40)),
    "dropout, batchnorm, adam": recipe(model=call(noisy_net), optimizer=call(Adam, lr=0.01)),
    "stopped": recipe(stop=call(loss_below, level=0.3, every=3), steps=70),
}
STEPS = ("start", 7, 20, first_below("train_loss", 0.6), first_below("valid_loss", 0.9), "end")


@pytest.mark.parametrize("name", RUNS)
def test_interrupted_anywhere_the_store_is_the_same_to_the_byte(name: str, tmp_path: Path):
    r = RUNS[name]
    assert do(r, STEPS, tmp_path / "whole")["status"] == "done"
    whole, draw = contents(tmp_path / "whole"), random.Random(1)
    assert any(path.endswith("weights.safetensors") for path in whole)
    for i in range(3):
        stops = [draw.randrange(0, 5) for _ in range(3)]
        do(r, STEPS, tmp_path / str(i), stops=stops)
        assert contents(tmp_path / str(i)) == whole, stops


def test_a_new_measure_on_an_old_run_trains_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    r = recipe()
    engine.train_run(r, ["end"], tmp_path, CPU, Told())
    monkeypatch.setattr(engine_training, "advance", lambda training: pytest.fail("it trained"))
    assert do(r, ["end"], tmp_path)["status"] == "done"
    found = store.values(tmp_path, key(r))
    assert {measure for _, measure in found} == {key(m) for m in MEASURES}


def test_a_missing_step_is_replayed_and_the_old_states_stay(tmp_path: Path):
    r = recipe()
    engine.train_run(r, [20, "end"], tmp_path, CPU, Told())
    old = {s: store.load_state(tmp_path, key(r), s) for s in (20, 40)}
    do(r, [13], tmp_path, stops=[2, 3])
    assert store.states(tmp_path, key(r)) == (13, 20, 40)
    assert all(same(store.load_state(tmp_path, key(r), s), state) for s, state in old.items())
    training = begin(r, engine.load_data(r, tmp_path))
    for t in advance(training):
        if t.step == 13:
            assert same(state_of(t.model), store.load_state(tmp_path, key(r), 13))


def test_a_step_that_is_asked_for_after_an_interruption_is_there_in_the_end(tmp_path: Path):
    r = recipe()
    with pytest.raises(engine.Interrupted):
        engine.train_run(r, ["end"], tmp_path, CPU, Told(2))
    assert do(r, [7, first_below("train_loss", 0.9), "end"], tmp_path)["status"] == "done"
    assert {7, 40} <= set(store.states(tmp_path, key(r)))
    assert engine.finished(engine.payload(r, [7, "end"], MEASURES), tmp_path)


def test_first_below_is_what_looking_at_every_check_says(tmp_path: Path):
    r = recipe(stop=call(loss_below, level=0.2, every=3), steps=90)
    losses, states = {}, {}
    training = begin(r, engine.load_data(r, tmp_path))
    for t in advance(training):
        if t.step % 3 == 0 or t.status != "running":
            losses[t.step] = evaluate(t.model, t.loss, t.data.train)["loss"]
            states[t.step] = state_of(t.model)
    levels = (0.8, 0.5, 0.2)
    engine.train_run(r, [first_below("train_loss", level) for level in levels], tmp_path, CPU, Told())
    for level in levels:
        first = next(s for s, value in losses.items() if value < level)
        found = engine.load_at(at(r, first_below("train_loss", level)), tmp_path)
        assert same(found, states[first]), level


def test_damaged_weights_are_trained_again_to_the_same_bytes(tmp_path: Path):
    r = recipe()
    do(r, STEPS[:3], tmp_path)
    before = contents(tmp_path)
    weights = tmp_path / key(r) / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    do(r, STEPS[:3], tmp_path)
    assert contents(tmp_path) == before


def test_a_diverged_run_is_recorded_and_nothing_is_measured_on_it(tmp_path: Path):
    r = recipe(optimizer=call(SGD, lr=1e12))
    assert do(r, ["end"], tmp_path)["status"] == "diverged"
    record = store.run_record(tmp_path, key(r))
    assert record is not None
    assert "smaller learning rate" in record["reason"]
    assert store.values(tmp_path, key(r)) == {}
    assert engine.finished(engine.payload(r, ["end"], MEASURES), tmp_path)


def test_a_level_that_is_never_reached_is_no_state(tmp_path: Path):
    r, step = recipe(steps=5), first_below("train_loss", 1e-9)
    assert do(r, [step], tmp_path)["status"] == "done"
    assert engine.missing(tmp_path, at(r, step), MEASURES) == ()
    with pytest.raises(LookupError, match="never came to the step"):
        engine.load_at(at(r, step), tmp_path)


# --- a user's own network --------------------------------------------------------------------------------------------


def values_of(data: Any, **given: Any) -> dict[str, Any]:
    model, _ = made("noisy", torch.float32)
    return {k: dict(v) for k, v in engine.measured(model, cross_entropy(), train=data, **given).items()}


def close(a: Any, b: Any) -> bool:
    return all(
        torch.allclose(torch.as_tensor(a[m][n]).double(), torch.as_tensor(b[m][n]).double(), rtol=1e-3, atol=1e-5)
        for m in a
        for n in a[m]
    )


def test_a_pair_batches_and_lists_of_batches_give_the_same():
    x, y = points()
    asked = {"measures": ["performance", call(weight_perturbation, magnitudes=(0.1,), draws=2)]}
    pair = values_of((x, y), **asked)
    for data in (Batches(x, y, 7), [(x[:20], y[:20]), (x[20:], y[20:])], [x, y], DataLoader(TensorDataset(x, y), 6)):
        assert close(pair, values_of(data, **asked))


def test_a_users_network_and_generator_are_left_alone():
    model, data = made("noisy", torch.float32)
    model.train()
    before = everything(model)
    loader = DataLoader(TensorDataset(*data), batch_size=6, shuffle=True)
    table = engine.measure(model, cross_entropy(), train=loader, test=data, measures="performance")
    assert same(everything(model), before)
    assert "test_loss" in table["name"]


class Noisy(nn.Module):
    """Random even in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp((5,), CLASSES, widths=(4,))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + 0.1 * torch.randn_like(x))


def test_a_network_that_draws_in_eval_mode_is_measured_the_same_every_time():
    model, data = Noisy(), points()
    before = torch.get_rng_state()
    first, again = (engine.measured(model, cross_entropy(), train=data, measures=["performance"]) for _ in range(2))
    assert first == again
    assert torch.equal(torch.get_rng_state(), before)


def test_data_that_nothing_can_be_measured_on_are_refused():
    x, y = points()
    broken = x.clone()
    broken[17, 2] = float("nan")
    for data, error, message in (
        ((broken, y), ValueError, "train inputs hold NaN or infinity, first in row 17"),
        ([], ValueError, "the train data are empty"),
        ((x[:0], y[:0]), ValueError, "empty data set"),
        ((x, y[:5]), ValueError, "23 inputs but 5 targets"),
        ((x.numpy(), y.numpy()), TypeError, "not of ndarray"),
        (7, TypeError, "not int"),
    ):
        with pytest.raises(error, match=re.escape(message)):
            values_of(data, measures=["performance"])


def test_unknown_measures_and_wrong_losses_are_refused():
    with pytest.raises(LookupError, match="did you mean 'performance'"):
        values_of(points(), measures=["perfromance"])
    model, data = made("mlp", torch.float32)
    with pytest.raises(ValueError, match="not a plain mean over samples"):
        engine.measured(model, lambda o, t: nn.functional.cross_entropy(o, t, reduction="sum"), train=data)
    with pytest.raises(ValueError, match="nothing to measure: give the name of at least one measure"):
        engine.measured(model, cross_entropy(), train=data, measures=[])
