"""The tangent kernel of a network and its start: movement, drift, alignment, agreement with the linearised network.

Everything that compares with the start needs a snapshot that knows it (``start_state``): a run of a Recipe does, a
checkpoint of one's own does not, and then gives fewer values. Kernels are of samples chosen once by the snapshot's
seed, the same for all networks.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn

from landscope.kernels import KernelSystem, alignment, cosine, drift, infinite_ntk, linearised_outputs, ntk
from landscope.losses import squared_error
from landscope.losses.plain import one_hot
from landscope.models import ScaledLinear, device_of, evaluating
from landscope.spec import derive
from landscope.types import Batches, Snapshot

KINDS = ("input_weights", "hidden_weights", "output_weights", "biases")


def parameter_movement(snapshot: Snapshot) -> dict[str, float]:
    """How far the weights have moved from their start, and how long they were: the two parts of relative movement.

    ``relative_movement`` is ‖θ_T − θ₀‖ / ‖θ₀‖ over all trainable parameters (Johannsen 2026, section IV-F); its parts
    are ``distance_moved`` and ``start_norm``. The norm of PyTorch's initialisation grows as the root of the width.
    The same three for ``input_weights`` (the first parameter of two or more dimensions), ``output_weights`` (the last),
    ``hidden_weights`` (those between) and ``biases`` (all of one dimension, gains of normalisations included), as
    ``input_weights_distance``, ``…_start_norm`` and ``…_relative``; kinds that a network lacks, or that start at 0, are
    left out of what would divide by them. Without the start's state there are no values.

    Args:
        snapshot: The network, with its start.

    Cost: none to speak of.
    """
    if snapshot.start_state is None:
        return {}
    moved: dict[str, float] = {}
    long: dict[str, float] = {}
    for name, kind, p in _by_kind(snapshot.model):
        start = snapshot.start_state[name].to(p).double()
        for where in (kind, "all"):
            moved[where] = moved.get(where, 0.0) + float((p.detach().double() - start).square().sum())
            long[where] = long.get(where, 0.0) + float(start.square().sum())
    values: dict[str, float] = {}
    for where in moved:
        names = ("distance_moved", "start_norm", "relative_movement")
        if where != "all":
            names = tuple(f"{where}_{part}" for part in ("distance", "start_norm", "relative"))
        values |= {names[0]: math.sqrt(moved[where]), names[1]: math.sqrt(long[where])}
        if long[where] > 0:
            values[names[2]] = math.sqrt(moved[where] / long[where])
    return values


def _by_kind(model: nn.Module) -> Iterator[tuple[str, str, nn.Parameter]]:
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    weights = [name for name, p in named if p.dim() > 1]
    for name, p in named:
        if p.dim() <= 1:
            yield name, "biases", p
        elif name == weights[-1]:
            yield name, "output_weights", p
        else:
            yield name, "input_weights" if name == weights[0] else "hidden_weights", p


def tangent_kernel(snapshot: Snapshot, *, samples: int = 100) -> dict[str, float]:
    """How far the tangent kernel has moved from its start, how it fits the labels, and its distance to the limit.

    Of the kernel summed over outputs (`landscope.ntk`) on training samples:

    - ``kernel_drift`` ‖Θ_t − Θ_0‖ / ‖Θ_0‖, and its parts ``kernel_distance_moved`` and ``kernel_start_norm``;
    - ``kernel_rotation`` 1 − ⟨Θ_0, Θ_t⟩ / (‖Θ_0‖ ‖Θ_t‖), blind to a factor (Fort et al., "Deep learning versus kernel
      learning", 2020, equation 4);
    - ``kernel_alignment`` ⟨Θ, YYᵀ⟩ / (‖Θ‖ ‖YYᵀ‖) and ``kernel_alignment_centred``, with ``start_…`` of Θ_0; Y are the
      targets, classes as one-hot rows;
    - ``infinite_kernel_drift`` and ``start_infinite_kernel_drift`` ‖Θ/O − Θ_∞‖ / ‖Θ_∞‖, for a fully connected ReLU
      network in the NTK parametrisation (`landscope.models.wide_mlp`), whose limit is known.

    Norms are Frobenius norms. What needs the start is left out where it is not known.

    Args:
        snapshot: The network and its data.
        samples: How many training samples, drawn by the snapshot's seed; all if there are no more.

    Raises:
        ValueError: for fewer than 2 samples, and as `landscope.ntk`.

    Cost: two kernels, each a forward and O backward passes over the samples.
    """
    inputs, targets = _chosen(snapshot.train, samples, snapshot.seed, "kernel", device_of(snapshot.model))
    y = _rows(targets, snapshot.model, inputs)
    limit = _limit(snapshot.model, inputs)
    present = ntk(snapshot.model, inputs)
    values = _of_one("", present, y, limit)
    if snapshot.start_state is not None:
        with at_start(snapshot.model, snapshot.start_state):
            start = ntk(snapshot.model, inputs)
        values |= _of_one("start_", start, y, limit)
        moved = float((present.double() - start.double()).norm())
        sizes = [float(k.double().norm()) for k in (start, present)]
        values |= {"kernel_distance_moved": moved, "kernel_start_norm": sizes[0]}
        values |= {"kernel_drift": drift(present, start)} if sizes[0] > 0 else {}
        values |= {"kernel_rotation": max(0.0, 1 - cosine(present, start))} if min(sizes) > 0 else {}
    return values


def _of_one(prefix: str, kernel: Tensor, y: Tensor, limit: Tensor | None) -> dict[str, float]:
    values: dict[str, float] = {}
    for name, centred in (("kernel_alignment", False), ("kernel_alignment_centred", True)):
        with suppress(ValueError):  # nothing varies: targets of one class, or a network whose units are all dead
            values[prefix + name] = alignment(kernel, y, centred=centred)
    if limit is not None:
        values[f"{prefix}infinite_kernel_drift"] = drift(kernel / y.shape[1], limit)
    return values


def linearisation(snapshot: Snapshot, *, samples: int = 100) -> dict[str, float]:
    """How well the linearisation of a network around its start describes where training has taken it.

    On test samples, with f_lin = f(θ₀) + ∇f(θ₀)(θ_T − θ₀) and root mean squares over samples and outputs:

    - ``linearisation_rmse`` of f(θ_T) − f_lin, ``outputs_change`` of f(θ_T) − f(θ₀), and their ratio
      ``linearisation_error``: 0 in the lazy regime, about 1 where the linearisation says nothing;
    - ``linearisation_agreement``: the share of samples that both give the same label (where there are several outputs).

    Source: Lee et al., "Wide neural networks of any depth evolve as linear models under gradient descent", 2019.
    There are no values without the start's state or a test set, and no ratio where the outputs have not changed.

    Args:
        snapshot: The network, its start and its data.
        samples: How many test samples, drawn by the snapshot's seed; all if there are no more.

    Raises:
        ValueError: for fewer than 2 samples.

    Cost: one forward-mode pass and a forward pass over the samples.
    """
    if snapshot.start_state is None or snapshot.test is None:
        return {}
    inputs, _ = _chosen(snapshot.test, samples, snapshot.seed, "test", device_of(snapshot.model))
    first, linear = linearised_outputs(snapshot.model, snapshot.start_state, inputs)
    last = _outputs(snapshot.model, inputs)
    values = {"linearisation_rmse": _rms(last - linear), "outputs_change": _rms(last - first)}
    if values["outputs_change"] > 0:
        values["linearisation_error"] = values["linearisation_rmse"] / values["outputs_change"]
    if last.shape[1] > 1:
        values["linearisation_agreement"] = float((last.argmax(1) == linear.argmax(1)).double().mean())
    return values


def linearised_training(
    snapshot: Snapshot, *, samples: int = 100, most: int = 256, rate: float | None = None
) -> dict[str, float]:
    """How near a network that was trained on a squared loss comes to what its first kernel says of its training.

    The linearised network's own training on the whole training set is solved in closed form (`KernelSystem`), with the
    kernel of all outputs at the start, and compared on test samples. It is stopped after the network's number of steps
    of full-batch gradient descent of a learning rate, or, without one, at the time at which its training loss is that
    of the network, whatever trained this:

    - ``linear_training_rmse`` between f(θ_T) and f_t^lin, and ``linear_training_error``, that over the root mean square
      of f(θ_T) − f(θ₀); ``linear_training_time`` t (learning rate × steps), if it was found from the loss;
    - ``kernel_regression_error``: the same with t = ∞, kernel regression with Θ_0 on top of f(θ₀);
    - ``kernel_regression_accuracy``, where targets are classes.

    There are no values for another loss than `landscope.losses.squared_error`, without the start's state or a test set,
    or for more than ``most`` training samples (the kernel is a matrix of samples × outputs rows); and none at a time
    that is not there, because the network's loss was never reached or is above that at the start.

    Args:
        snapshot: The network, its start and its data.
        samples: How many test samples, drawn by the snapshot's seed; all if there are no more.
        most: The most training samples for which it is done.
        rate: The learning rate of full-batch gradient descent without momentum, or None to match the training loss.

    Raises:
        ValueError: for fewer than 2 samples, or a learning rate at which the linearised training diverges.

    Cost: two kernels of all outputs, and the eigenvectors of one of n·O rows.
    """
    start_state, test, train = snapshot.start_state, snapshot.test, snapshot.train
    if start_state is None or test is None or train.n > most or snapshot.loss is not squared_error():
        return {}
    device = device_of(snapshot.model)
    inputs, labels = _chosen(test, samples, snapshot.seed, "test", device)
    x = train.inputs.to(device)
    with at_start(snapshot.model, start_state):
        first, there = (_outputs(snapshot.model, part) for part in (x, inputs))
        kernel = ntk(snapshot.model, x, trace_outputs=False)
        cross = ntk(snapshot.model, inputs, x, trace_outputs=False)
    y = _rows(train.targets.to(device), snapshot.model, x).to(first)
    system = KernelSystem(kernel, first, y)
    last = _outputs(snapshot.model, inputs)
    changed = _rms(last - there)
    values: dict[str, float] = {}
    time = None
    if rate is None:
        time = system.time_to(float((_outputs(snapshot.model, x) - y).double().square().sum() / train.n))
        values |= {} if time is None else {"linear_training_time": time}
    if rate is not None or time is not None:
        change = system.change(cross, rate=rate, steps=snapshot.step, time=math.inf if time is None else time)
        values["linear_training_rmse"] = _rms(last - there - change)
    regression = there + system.change(cross)
    if changed > 0:
        values["kernel_regression_error"] = _rms(last - regression) / changed
        if "linear_training_rmse" in values:
            values["linear_training_error"] = values["linear_training_rmse"] / changed
    if not labels.is_floating_point() and regression.shape[1] > 1:
        values["kernel_regression_accuracy"] = float((regression.argmax(1) == labels).double().mean())
    return values


# --- what they share ------------------------------------------------------------------------------------------------


@contextmanager
def at_start(model: nn.Module, start: Mapping[str, Tensor]) -> Iterator[None]:
    """The network with its start's parameters and buffers inside; afterwards, also after an exception, as it was."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    kept = {name: t.detach().clone() for name, t in tensors.items()}
    try:
        with torch.no_grad():
            for name, t in tensors.items():
                if name in start:
                    t.copy_(start[name])
        yield
    finally:
        with torch.no_grad():
            for name, t in tensors.items():
                t.copy_(kept[name])


def _chosen(batches: Batches, samples: int, seed: int, what: str, device: torch.device) -> tuple[Tensor, Tensor]:
    if samples < 2:
        raise ValueError(f"a kernel is measured on at least 2 samples, not {samples}")
    generator = torch.Generator().manual_seed(derive(seed, what))
    chosen = torch.randperm(batches.n, generator=generator)[:samples].sort().values
    return tuple(t[chosen.to(t.device)].to(device) for t in (batches.inputs, batches.targets))  # pyright: ignore[reportReturnType]


@torch.no_grad()
def _outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    with evaluating(model):
        return model(inputs).reshape(len(inputs), -1)


def _rows(targets: Tensor, model: nn.Module, inputs: Tensor) -> Tensor:
    """Targets as rows of numbers, classes as one-hot."""
    if targets.is_floating_point():
        return targets.reshape(len(targets), -1).double()
    outputs = _outputs(model, inputs[:1]).shape[1]
    if targets.dim() == 1 and outputs > 1:
        return one_hot(targets, outputs).double()
    return targets.reshape(len(targets), -1).double()


def _limit(model: nn.Module, inputs: Tensor) -> Tensor | None:
    """The kernel that a network's own tends to as it widens, where that is known."""
    known = (nn.Flatten, nn.ReLU, ScaledLinear)
    layers = list(model.children())
    if not isinstance(model, nn.Sequential) or not all(type(m) in known for m in layers):
        return None
    scaled = [m for m in layers if isinstance(m, ScaledLinear)]
    order = [type(m) for m in layers if not isinstance(m, nn.Flatten)]
    if len(scaled) < 2 or order != ([ScaledLinear, nn.ReLU] * len(scaled))[:-1]:
        return None
    variances = {(m.weight_variance, m.bias_variance) for m in scaled}
    if len(variances) > 1:
        return None
    ((weight, bias),) = variances
    return infinite_ntk(inputs, depth=len(scaled) - 1, weight_variance=weight, bias_variance=bias)


def _rms(x: Tensor) -> float:
    return math.sqrt(float(x.double().square().mean()))
