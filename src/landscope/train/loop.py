"""The loop: steps, the stopping rule, divergence."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from landscope.losses import Loss, looked_at
from landscope.models import device_of, evaluating, seeded
from landscope.spec import derive
from landscope.train.beginning import Training, constrain, draws, takes_outputs
from landscope.types import Batches

CHECK_DIVERGENCE = 10  # steps between looks at the accumulated loss; each look waits for the device


def loss_below(training_loss: float, /, *, level: float, every: int) -> bool:
    """A recipe's stopping rule: the loss over the whole training set, in eval mode, is below ``level``.

    It is checked every ``every`` steps: steps, not epochs, and the same for all runs that are compared, because runs
    that are checked rarely overshoot the level.
    """
    if every < 1:
        raise ValueError(f"the training loss is checked every so many steps, at least 1, not {every}")
    return training_loss < level


def advance(training: Training) -> Iterator[Training]:
    """Yields ``training`` as it stands, then after every step until it is done or has diverged.

    The order of the batches is a permutation of the samples drawn for each epoch from the recipe's seed and the
    epoch's number; the last batch of an epoch may be smaller. A run whose loss is NaN or infinite stops as diverged,
    within 10 steps, and so does one whose last step leaves weights or buffers that are not finite.
    """
    recipe = training.recipe
    stop = recipe.stop.bind() if recipe.stop else None
    every = recipe.stop["every"] if recipe.stop else 0
    take_step = _stepper(training)
    so_far: Tensor | float = 0.0  # in the loss's own type
    training.model.train()
    if training.step >= recipe.steps:
        training.status = "done"
    yield training
    while training.status == "running":
        so_far = take_step() + so_far
        training.step += 1
        last = training.step == recipe.steps
        if training.step % CHECK_DIVERGENCE == 0 or last:
            if not math.isfinite(float(so_far)):
                diverge(training)
            so_far = 0.0
        training.train_loss = None
        if stop and training.status == "running" and (training.step % every == 0 or last):
            training.train_loss = evaluate(training.model, training.loss, training.data.train, accuracy=False)["loss"]
            if not math.isfinite(training.train_loss):
                diverge(training)
            elif stop(training.train_loss):
                training.status = "done"
        if last and training.status == "running":
            training.status = "done"
        if training.status == "done" and not _finite(training.model):  # the last step itself may have broken it
            diverge(training)
        yield training


def diverge(training: Training) -> None:
    """Record that a run's loss or weights are no longer finite."""
    training.status = "diverged"
    training.reason = (
        f"the training loss or the weights were NaN or infinite by step {training.step}: "
        "try a smaller learning rate, warm-up or gradient clipping"
    )


def _finite(model: nn.Module) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in model.state_dict().values() if t.is_floating_point())


def _batch_source(training: Training) -> Callable[[int], tuple[Tensor, Tensor]]:
    """A function from the step to its batch."""
    recipe, train = training.recipe, training.data.train
    per_epoch = math.ceil(train.n / recipe.batch_size)
    if per_epoch == 1:
        return lambda step: (train.inputs, train.targets)
    order_seed = recipe.seed if recipe.order_seed is None else recipe.order_seed

    @functools.lru_cache(maxsize=1)
    def order(epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(derive(order_seed, "order", epoch))
        return torch.randperm(train.n, generator=generator).to(train.inputs.device)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        epoch, place = divmod(step, per_epoch)
        chosen = order(epoch)[place * recipe.batch_size : (place + 1) * recipe.batch_size]
        return train.inputs[chosen], train.targets[chosen]

    return batch


_QUIET = {
    *(nn.Sequential, nn.Flatten, nn.Identity, nn.Linear, nn.Conv1d, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d),
    *(nn.LayerNorm, nn.GroupNorm, nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.Sigmoid, nn.MaxPool2d, nn.AvgPool2d),
}


def _draws_nothing(training: Training) -> bool:
    """Whether a step is known to draw no random numbers; if in doubt it is seeded, which changes nothing but time."""
    recipe, layers = training.recipe, list(training.model.modules())
    known = recipe.loss.target.startswith("landscope.losses.") and recipe.optimizer.target.startswith("torch.optim.")
    hooked = any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)
    return known and not recipe.regularizers and not hooked and all(type(layer) in _QUIET for layer in layers)


def _stepper(training: Training) -> Callable[[], Tensor]:
    """A function that makes one optimizer step and returns the batch's loss."""
    recipe, model, optimizer = training.recipe, training.model, training.optimizer
    make_step: Callable[[Callable[[], Tensor]], Any] = optimizer.step  # pyright: ignore[reportAssignmentType]
    batch = _batch_source(training)
    terms = training.regularizers
    wants = [takes_outputs(term) for term in terms]
    augment = recipe.augmentation.bind() if recipe.augmentation else None
    quiet = _draws_nothing(training)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def take_step() -> Tensor:
        inputs, targets = batch(training.step)
        if augment:
            generator = torch.Generator(inputs.device)
            inputs = augment(inputs, generator.manual_seed(derive(recipe.seed, "augmentation", training.step)))
        given = draws(recipe, terms, model, (inputs, targets), training.step)
        losses: list[Tensor] = []

        def closure() -> Tensor:
            for p in parameters:  # optimizer.zero_grad() without its bookkeeping
                p.grad = None
            outputs = model(inputs)
            value = training.loss(outputs, targets)
            for term, own, wanted in zip(terms, given, wants, strict=True):
                value = value + term(model, (inputs, targets), **(own | {"outputs": outputs} if wanted else own))
            value.backward()
            training.gradient_evaluations += 1
            losses.append(value.detach())
            return value

        if quiet:
            make_step(closure)
        else:
            with seeded(derive(recipe.seed, "forward", training.step)):  # for dropout and its like
                make_step(closure)
        if training.schedule is not None:
            training.schedule.step()
        constrain(training)
        return losses[0]

    return take_step


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loss: Loss,
    batches: Batches,
    *,
    accuracy: bool = True,
    seen: Callable[[Tensor, Tensor], Any] | None = None,
) -> dict[str, float]:
    """The mean loss over all samples (eval mode), and the accuracy where targets are class indices.

    Both are exact sample-weighted means: batches of different sizes count by their samples. ``accuracy`` False leaves
    the accuracy out, which the frequent checks of a stopping rule do not need. ``seen`` is shown each batch's outputs
    and targets, for what else is to be known of them without another pass.

    Returns:
        ``{"loss": …, "accuracy": …}``; accuracy is a share between 0 and 1.
    """
    device = device_of(model)
    total, correct, classes = 0.0, 0, accuracy and not batches.targets.is_floating_point()
    with evaluating(model):
        for inputs, targets in batches:
            inputs, targets = inputs.to(device), targets.to(device)
            outputs = model(inputs)
            total += looked_at(loss, outputs, targets) * len(inputs)
            if seen is not None:
                seen(outputs, targets)
            if classes:
                correct += int((outputs.argmax(1) == targets).sum())
    result = {"loss": total / batches.n}
    if classes:
        result["accuracy"] = correct / batches.n
    return result
