"""The training loop: to the bit what a plain PyTorch loop does, and interruptible anywhere."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import blobs, noisy_net, recipe, same
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import LBFGS, SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from landscope.data import Data
from landscope.losses import squared_error
from landscope.models import mlp, seeded
from landscope.spec import Recipe, call, derive
from landscope.train import advance, begin, checkpoint, evaluate, loss_below, restore, state_of
from landscope.types import Batches


def run(r: Recipe, **given: Any):
    training = begin(r, blobs(r.seed, None), **given)
    for _ in advance(training):
        pass
    return training


def by_hand(r: Recipe) -> dict[str, Tensor]:
    """What the recipe says, in a loop of twenty lines."""
    train = blobs(r.seed, None).train
    with seeded(derive(r.seed, "initialisation")):
        model = mlp((5,), 3, widths=(6, 6))
    optimizer = r.optimizer(model.parameters())
    schedule = r.schedule(optimizer) if r.schedule else None
    made, epoch = 0, 0
    order_seed = r.seed if r.order_seed is None else r.order_seed
    while made < r.steps:
        generator = torch.Generator().manual_seed(derive(order_seed, "order", epoch))
        order = torch.randperm(23, generator=generator) if r.batch_size < 23 else torch.arange(23)
        for i in range(0, 23, r.batch_size):
            if made == r.steps:
                break
            chosen = order[i : i + r.batch_size]
            optimizer.zero_grad()
            functional.cross_entropy(model(train.inputs[chosen]), train.targets[chosen]).backward()
            optimizer.step()
            if schedule:
                schedule.step()
            made += 1
        epoch += 1
    return model.state_dict()


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"schedule": call(CosineAnnealingLR, T_max=40)},
        {"batch_size": 23},
        {"batch_size": 1000},
        {"order_seed": 9},
        {"optimizer": call(Adam, lr=0.01)},
        {"batch_size": 1},
    ],
    ids=str,
)
def test_a_plain_loop_gives_the_same_weights_to_the_bit(changed: dict[str, Any]):
    r = recipe(**changed)
    training = run(r)
    assert same(dict(training.model.state_dict()), dict(by_hand(r)))
    assert (training.status, training.step, training.gradient_evaluations) == ("done", 40, 40)


def test_the_order_seed_changes_the_order_alone():
    a, b = (begin(recipe(order_seed=s), blobs(3, None)) for s in (None, 9))
    assert same(state_of(a.model), state_of(b.model))
    assert not same(state_of(run(recipe()).model), state_of(run(recipe(order_seed=9)).model))


def test_the_stopping_rule_looks_at_the_full_loss_in_eval_mode_at_every_nth_step():
    whole = {}
    r = recipe(model=call(noisy_net), steps=60)
    training = begin(r, blobs(3, None))
    for t in advance(training):
        whole[t.step] = evaluate(t.model, t.loss, t.data.train)["loss"]
        assert t.train_loss is None
    level = sorted(whole.values())[len(whole) // 3]
    first = next(s for s in range(4, 61, 4) if whole[s] < level)
    stop = call(loss_below, level=level, every=4)
    stopped = begin(recipe(model=call(noisy_net), steps=60, stop=stop), training.data)
    checked = {t.step: t.train_loss for t in advance(stopped)}
    assert (stopped.step, stopped.status) == (first, "done")
    assert checked == {s: whole[s] if s and s % 4 == 0 else None for s in range(first + 1)}


def test_a_diverging_run_is_noticed_within_ten_steps_and_advised():
    training = run(recipe(optimizer=call(SGD, lr=1e30)))
    assert training.status == "diverged"
    assert training.step <= 20
    assert "smaller learning rate" in training.reason


def test_weights_broken_by_the_very_last_step_count_as_diverged():
    training = run(recipe(optimizer=call(SGD, lr=1e38, weight_decay=1e38), steps=1))
    assert training.status == "diverged"


def double_mlp(shape: tuple[int, ...], outputs: int, /) -> nn.Module:
    return mlp(shape, outputs, widths=()).double()


def test_a_loss_that_double_precision_holds_is_no_divergence():
    x = torch.ones(4, 2, dtype=torch.float64)
    data = Data(Batches(x, torch.full((4, 1), 1e25, dtype=torch.float64)), None, None, 1, "regression")
    r = recipe(model=call(double_mlp), loss=call(squared_error), optimizer=call(SGD, lr=0.1), steps=20)
    training = begin(r, data)
    for _ in advance(training):
        pass
    assert (training.status, training.step) == ("done", 20)


def penalty(*, weight: float) -> Callable[..., Tensor]:
    def term(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return weight * sum((p.square().sum() for p in model.parameters()), torch.zeros(()))

    return term


class Counting(nn.Module):
    """A term with a state (how often it was called), random draws made outside and the use of the outputs."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def draw(self, model: nn.Module, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
        return torch.randn(len(batch[0]), 1, generator=generator)

    def forward(self, model: nn.Module, batch: tuple[Tensor, Tensor], *, outputs: Tensor, drawn: Tensor) -> Tensor:
        self.calls += 1
        return 0.01 * self.calls * (outputs * drawn).mean()


def counting() -> nn.Module:
    return Counting()


def shifted(inputs: Tensor, generator: torch.Generator, /, *, by: float) -> Tensor:
    return inputs + by * torch.rand(len(inputs), 1, generator=generator)


class Sgd(SGD):
    """An optimizer that is given the model."""

    def __init__(self, model: nn.Module, lr: float) -> None:
        super().__init__(model.parameters(), lr)


def positive(model: nn.Module, /) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.clamp_(min=0)


def test_a_regularizer_is_added_to_the_loss():
    decayed = run(recipe(optimizer=call(SGD, lr=0.1, weight_decay=0.02)))
    penalised = run(recipe(optimizer=call(SGD, lr=0.1), regularizers=(call(penalty, weight=0.01),)))
    for a, b in zip(decayed.model.parameters(), penalised.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_constraint_holds_from_the_start_and_after_every_step():
    training = begin(recipe(constraint=call(positive)), blobs(3, None))
    for t in advance(training):
        assert all(bool((p >= 0).all()) for p in t.model.parameters())


def test_a_start_state_replaces_the_initialisation():
    start = state_of(run(recipe()).model)
    training = begin(recipe(seed=8), blobs(3, None), start=start)
    assert same(state_of(training.model), start)


def test_the_global_generator_neither_decides_nor_is_touched():
    results = []
    for seed in (1, 2):
        with seeded(seed):
            before = torch.get_rng_state()
            training = begin(recipe(model=call(noisy_net)), blobs(3, None))
            for _ in advance(training):
                torch.testing.assert_close(torch.get_rng_state(), before)
            results.append(state_of(training.model))
    assert same(*results)


def late_noise() -> Callable[..., Tensor]:
    def term(model: nn.Module, batch: tuple[Tensor, Tensor], *, outputs: Tensor) -> Tensor:
        quiet = float(next(model.parameters()).detach().abs().sum()) < 6.5  # random only later on
        return torch.zeros(()) if quiet else (outputs * torch.randn_like(outputs)).mean()

    return term


def test_an_optimizer_whose_first_argument_is_the_model_is_given_it():
    assert same(
        state_of(run(recipe(optimizer=call(Sgd, lr=0.1))).model),
        state_of(run(recipe(optimizer=call(SGD, lr=0.1))).model),
    )


def test_augmentation_changes_the_batches_and_is_reproducible():
    moved = [run(recipe(augmentation=call(shifted, by=0.5))) for _ in range(2)]
    assert same(*(state_of(t.model) for t in moved))
    assert not same(state_of(moved[0].model), state_of(run(recipe()).model))
    still = run(recipe(augmentation=call(shifted, by=0.0)))
    assert same(state_of(still.model), state_of(run(recipe()).model))


def nothing() -> None:
    return None


def test_a_regularizer_that_cannot_be_called_is_refused():
    with pytest.raises(TypeError, match="gave NoneType, not a term"):
        begin(recipe(regularizers=(call(nothing),)), blobs(3, None))


def test_a_term_that_draws_only_at_some_steps_is_reproducible_too():
    states = []
    for seed in (1, 2):
        with seeded(seed):
            before = torch.get_rng_state()
            states.append(state_of(run(recipe(regularizers=(call(late_noise),))).model))
            assert torch.equal(torch.get_rng_state(), before)
    assert same(*states)
    assert not same(states[0], state_of(run(recipe()).model))


KINDS = {
    "momentum": {},
    "adam": {"optimizer": call(Adam, lr=0.01)},
    "adam cosine": {"optimizer": call(Adam, lr=0.01), "schedule": call(CosineAnnealingLR, T_max=40)},
    "lbfgs": {"optimizer": call(LBFGS, lr=0.1, max_iter=3), "batch_size": 23, "steps": 20},
    "dropout and batchnorm": {"model": call(noisy_net)},
    "a term with a state": {"regularizers": (call(counting),), "augmentation": call(shifted, by=0.5)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_going_on_from_a_checkpoint_gives_the_same_weights_to_the_bit(kind: str):
    r = recipe(**KINDS[kind])
    whole, kept = begin(r, blobs(3, None)), {}
    for t in advance(whole):
        if t.step % 10 == 0:
            kept[t.step] = checkpoint(t)
    for step, (tensors, meta) in kept.items():
        later = begin(r, blobs(3, None))
        restore(later, tensors, meta)
        for _ in advance(later):
            pass
        assert same(state_of(later.model), state_of(whole.model)), step
        assert later.gradient_evaluations == whole.gradient_evaluations
    if kind == "lbfgs":
        assert whole.gradient_evaluations > 20


def test_between_two_looks_at_the_loss_there_is_no_checkpoint():
    training = begin(recipe(), blobs(3, None))
    steps = advance(training)
    next(steps)
    next(steps)
    with pytest.raises(ValueError, match="multiple of 10 steps, not at 1"):
        checkpoint(training)


def test_evaluate_weights_every_sample_equally():
    model, train = mlp((5,), 3, widths=(4,)), blobs(3, None).train
    result = evaluate(model, functional.cross_entropy, type(train)(train.inputs, train.targets, 7))
    outputs = model(train.inputs)
    assert result["loss"] == pytest.approx(functional.cross_entropy(outputs, train.targets).item(), rel=1e-6)
    assert result["accuracy"] == (outputs.argmax(1) == train.targets).double().mean().item()
    assert math.isclose(evaluate(nn.Flatten(), functional.cross_entropy, train)["loss"], 1.5, rel_tol=1.0)


def test_what_gives_no_module_or_optimizer_is_refused():
    with pytest.raises(TypeError, match=r"not a torch\.nn\.Module"):
        begin(recipe(model=call(shapeless)), blobs(3, None))


def shapeless(shape: tuple[int, ...], outputs: int, /) -> int:
    return outputs
