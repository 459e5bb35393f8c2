"""Sharpness: what a perturbation of the weights does to the loss."""

import math

import torch
from torch import Tensor, nn

from landscope.directions import filter_normalised, gaussian
from landscope.linalg.progress import Watch
from landscope.losses import looked_at
from landscope.measures._objective import Objective, objective
from landscope.measures._search import Highest, ascend, first_rise, highest_in_box
from landscope.models import called, device_of, evaluating
from landscope.spec import derive
from landscope.types import Snapshot

PUBLISHED_MAGNITUDES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05)


def weight_perturbation(
    snapshot: Snapshot,
    *,
    kind: str = "absolute",
    magnitudes: tuple[float, ...] = PUBLISHED_MAGNITUDES,
    draws: int = 20,
) -> dict[str, Tensor]:
    """Training loss, accuracy and flipped labels when the weights are perturbed at random, over magnitudes.

    For draw d and magnitude m the parameters are θ + m·δ_d, with δ_d one Gaussian vector for all magnitudes and all
    networks of one architecture. The training set is evaluated whole, in eval mode.

    Args:
        snapshot: The network and its data.
        kind: ``"absolute"``: δ is N(0, 1) on every parameter, biases and normalisation included (Johannsen 2026,
            experiment 3). ``"filter"``: δ is rescaled so that each filter's noise has the norm of the filter's
            weights, and is zero on biases and normalisation parameters (Li et al. 2018), so that networks that
            differ only in the scale of their weights are treated alike.
        magnitudes: The standard deviations (absolute), or shares of each filter's norm (filter).
        draws: Random directions, at least 2.

    Returns:
        With the prefix ``absolute_`` or ``filter_``, each of shape ``[magnitudes]``: ``loss``, ``loss_increase``
        (perturbed less base loss), ``loss_increase_percent`` (of the base loss; infinite where that is 0), and, where
        targets are classes, ``accuracy`` and ``flipped`` (the
        share of training samples whose predicted label changes), all means over draws, each with its standard error
        over draws under ``…_sem``; and ``magnitudes``.

    Raises:
        ValueError: for an unknown kind, fewer than 2 draws, or magnitudes that are not positive.

    Cost: magnitudes × draws + 1 forward passes over the training set.
    """
    if kind not in ("absolute", "filter"):
        raise ValueError(f'kind is "absolute" or "filter", not {kind!r}')
    if draws < 2:
        raise ValueError(f"a standard error over draws needs at least 2 of them, not {draws}")
    if not magnitudes or min(magnitudes) <= 0:
        raise ValueError(f"magnitudes are positive numbers, not {magnitudes}")
    model = snapshot.model
    weights = {name: p.detach() for name, p in model.named_parameters()}
    base_loss, labels, base_correct = _predictions(snapshot, weights)
    results = torch.zeros(len(magnitudes), draws, 4, dtype=torch.float64)  # loss, increase, accuracy, flipped
    watch = Watch(None)
    for d in range(draws):
        watch.tell("draws", d, draws)
        direction = gaussian(weights, seed=derive(snapshot.seed, "perturbation", d))
        if kind == "filter":
            direction = filter_normalised(direction, weights)
        for i, magnitude in enumerate(magnitudes):
            moved = {name: w + magnitude * direction[name] for name, w in weights.items()}
            loss, predicted, correct = _predictions(snapshot, moved)
            flipped = (predicted != labels).double().mean().item()
            results[i, d] = torch.tensor([loss, loss - base_loss, correct, flipped], dtype=torch.float64)
    values = {"magnitudes": torch.tensor(magnitudes, dtype=torch.float64)}
    columns = {"loss": results[:, :, 0], "loss_increase": results[:, :, 1]}
    columns["loss_increase_percent"] = 100 * results[:, :, 1] / base_loss
    if not math.isnan(base_correct):
        columns |= {"accuracy": results[:, :, 2], "flipped": results[:, :, 3]}
    for name, column in columns.items():
        values[name] = column.mean(1)
        values[f"{name}_sem"] = column.std(1) / math.sqrt(draws)
    return {f"{kind}_{name}": value for name, value in values.items()}


@torch.no_grad()
def _predictions(snapshot: Snapshot, weights: dict[str, Tensor]) -> tuple[float, Tensor, float]:
    """Mean loss, predicted labels ``[n]`` (none for regression) and accuracy (NaN there) on the training set."""
    model: nn.Module = snapshot.model
    total, predicted, correct = 0.0, [], 0
    classes = not snapshot.train.targets.is_floating_point()
    device = device_of(model)
    with evaluating(model):
        for inputs, targets in snapshot.train:
            inputs, targets = inputs.to(device), targets.to(device)
            outputs = called(model, weights, inputs)
            total += looked_at(snapshot.loss, outputs, targets) * len(inputs)
            if classes:
                predicted.append(outputs.argmax(1))
                correct += int((predicted[-1] == targets).sum())
    n = snapshot.train.n
    return total / n, torch.cat(predicted) if classes else torch.zeros(0), correct / n if classes else math.nan


def sam_sharpness(
    snapshot: Snapshot, *, radius: float = 0.05, batch: int | None = None, samples: int | None = None
) -> dict[str, float]:
    """The rise of the training loss by one ascent step along its gradient, as in sharpness-aware minimisation.

    L(θ + ρ·g/‖g‖) − L(θ) with g = ∇L(θ), all trainable parameters in one vector, in eval mode (Foret et al. 2021,
    arXiv:2010.01412). The step maximises the loss within ‖ε‖₂ <= ρ to first order in ε; near a minimum, where g is
    small, it is not the maximum (`worst_case_sharpness`). It moves when units are rescaled.

    Args:
        snapshot: The network and its data.
        radius: ρ, the step's length.
        batch: Their m: each batch of m samples takes a step of its own, and the mean rise over batches (weighted by
            samples) is returned. None: one step for the whole set.
        samples: None for the whole training set; else that many, drawn by the snapshot's seed.

    Returns:
        ``sam_sharpness``; with ``samples``, also ``sam_sharpness_data_sem``, the standard error that leaving out the
        other samples brings (the step being made for these very samples raises the value besides).

    Raises:
        ValueError: for a radius that is not positive, or more samples than there are.

    Cost: one gradient and one forward pass over the training set.
    """
    _check("radius", (radius,))
    whole, watch = objective(snapshot, samples, batch=batch), Watch(None)
    if batch is None:
        watch.tell("gradient", 0, 2)
        base, step = _ascent_step(whole, radius)
        watch.tell("loss at the step's end", 1, 2)
        values = {"sam_sharpness": whole.loss(step) - base}
        error = math.nan if samples is None else whole.data_sem(step)
    else:
        parts, risen = list(whole.each()), []
        for done, (_, part) in enumerate(parts):
            watch.tell("steps", done, len(parts))
            base, step = _ascent_step(part, radius)
            risen.append(part.loss(step) - base)
        rises = torch.tensor(risen, dtype=torch.float64)
        shares = torch.tensor([share for share, _ in parts], dtype=torch.float64)
        values, error = {"sam_sharpness": float(rises @ shares)}, whole.spread(rises, shares)
    return values if samples is None else values | {"sam_sharpness_data_sem": error}


def worst_case_sharpness(
    snapshot: Snapshot,
    *,
    scale: str = "weight",
    l2: tuple[float, ...] = (0.25, 0.5, 1.0),
    linf: tuple[float, ...] = (0.0005, 0.001, 0.002),
    steps: int = 10,
    normalise_logits: bool = False,
    samples: int | None = None,
) -> dict[str, float | Tensor]:
    """The largest rise of the training loss that an ascent finds within a ball, over the ball's radius.

    max L(θ + s∘z) − L(θ) over ‖z‖_p <= ρ for p = 2 and ∞, in eval mode. With s = |θ| it is adaptive sharpness (Kwon et
    al. 2021, arXiv:2102.11600; Andriushchenko et al. 2023, arXiv:2302.07011), which does not move when the units of a
    ReLU network are rescaled; nor does our ascent, which is one in z. The first step is ASAM's, and the value a lower
    bound of the maximum; near a minimum it tends to ½ρ²λ_max(SHS), S = diag(s), for p = 2 and ρ → 0.

    Andriushchenko et al. find that it follows training settings such as the learning rate rather than generalization:
    compare networks that share those.

    Args:
        snapshot: The network and its data.
        scale: s: ``"weight"``, ``"filter"`` or ``"none"`` (`landscope.directions.relative_scales`).
        l2: The radii ρ for p = 2, ascending; none leaves it out. Kwon et al. train CIFAR-10 with 0.5, CIFAR-100 with 1.
        linf: The radii for p = ∞: with ``"weight"``, by what share of itself each weight may change.
        steps: Steps of projected gradient ascent for each radius, each going on from the last radius's result.
        normalise_logits: Whether a sample's outputs are centred and divided by their norm, so that the outputs' scale
            has no say (Andriushchenko et al.).
        samples: None for the whole training set; else that many, drawn by the snapshot's seed (they take 1,024).

    Returns:
        ``<scale>_l2_sharpness`` and ``<scale>_linf_sharpness``, each ``[radii]`` and never falling, with the radii
        under ``…_radii``; with ``samples``, under ``…_data_sem`` the standard errors that leaving out the other
        samples brings at the points found (found for these very samples, they overstate the rise besides).

    Raises:
        ValueError: for an unknown scale, no step, radii that are not positive and ascending, or too many samples.

    Cost: steps × radii + 1 gradients over the training set for each p.
    """
    if steps < 1:
        raise ValueError(f"an ascent makes at least 1 step, not {steps}")
    of = objective(snapshot, samples, normalise_logits=normalise_logits)
    scales = of.scales(scale)
    values: dict[str, float | Tensor] = {}
    for norm, radii in (("l2", l2), ("linf", linf)):
        if not radii:
            continue
        _check(norm, radii)
        found = ascend(of, scales, norm, radii, steps, snapshot.seed)
        values |= _curve(f"{scale}_{norm}_sharpness", "radii", radii, found, of, samples)
    return values


def average_case_sharpness(
    snapshot: Snapshot,
    *,
    scale: str = "weight",
    radii: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4),
    draws: int = 10,
    samples: int | None = None,
) -> dict[str, Tensor]:
    """The mean rise of the training loss under Gaussian noise relative to the weights, over the noise's size.

    E L(θ + ρ·s∘ξ) − L(θ), ξ ~ N(0, 1) for every trainable parameter, in eval mode; s = |θ| is the average-case adaptive
    sharpness of Andriushchenko et al. 2023 (arXiv:2302.07011). For ρ → 0 it is ½ρ²·Tr(SHS), S = diag(s). Each draw
    is taken with both signs, (L(θ + u) + L(θ − u))/2 − L(θ), which rids it of the gradient's part.

    Args:
        snapshot: The network and its data.
        scale: s: ``"weight"``, ``"filter"`` or ``"none"`` (`landscope.directions.relative_scales`).
        radii: ρ. Theirs for a ResNet-18 on CIFAR-10 are these.
        draws: Pairs of directions ±ξ, at least 2; the same for all radii.
        samples: None for the whole training set; else that many, drawn by the snapshot's seed.

    Returns:
        ``<scale>_average_sharpness`` ``[radii]``, its standard error over draws under ``…_sem`` and the radii under
        ``…_radii``; with ``samples``, under ``…_data_sem`` the standard error of leaving out the other samples (of
        the draws at hand; the two errors are of different kinds and not combined).

    Raises:
        ValueError: for an unknown scale, fewer than 2 draws, radii that are not positive, or too many samples.

    Cost: 2 × draws × radii + 1 forward passes over the training set.
    """
    _check("radii", radii)
    if draws < 2:
        raise ValueError(f"a standard error over draws needs at least 2 of them, not {draws}")
    of = objective(snapshot, samples)
    scales, (base, shares) = of.scales(scale), of.losses(of.start)
    rises = torch.zeros(len(radii), draws, len(base), dtype=torch.float64)
    like = dict(zip(of.space.names, of.space.split(of.start), strict=True))
    watch = Watch(None)
    for d in range(draws):
        watch.tell("draws", d, draws)
        noise = scales * of.space.flat(gaussian(like, seed=derive(snapshot.seed, "average", d)).values())
        for i, radius in enumerate(radii):
            both = [of.losses(of.start + sign * radius * noise)[0] for sign in (1, -1)]
            rises[i, d] = (both[0] + both[1]) / 2 - base
    name, over_draws = f"{scale}_average_sharpness", rises @ shares
    values = {name: over_draws.mean(1), f"{name}_sem": over_draws.std(1) / math.sqrt(draws)}
    if samples is not None:
        errors = [of.spread(parts, shares) for parts in rises.mean(1)]
        values[f"{name}_data_sem"] = torch.tensor(errors, dtype=torch.float64)
    return values | {f"{name}_radii": torch.tensor(radii, dtype=torch.float64)}


def keskar_sharpness(
    snapshot: Snapshot,
    *,
    epsilons: tuple[float, ...] = (0.0005, 0.001),
    directions: int | None = None,
    iterations: int = 10,
    samples: int | None = None,
) -> dict[str, float | Tensor]:
    """Keskar et al.'s ε-sharpness: the largest relative rise of the training loss within a small box, in percent.

    100·(max_{z∈C} L(θ + A z) − L(θ)) / (1 + L(θ)) over the box |z_i| <= ε(|(A⁺θ)_i| + 1), in eval mode, the maximum
    sought by L-BFGS-B (Keskar et al. 2017, arXiv:1609.04836, metric 2.1). It moves when units are rescaled, and with
    the 1 in its box it is blind to the scale of weights far below 1.

    Args:
        snapshot: The network and its data.
        epsilons: ε; both of these are theirs.
        directions: None: A is the identity, the box is around all parameters. A number p: A has p columns of
            independent N(0, 1) numbers (theirs: 100), drawn by the snapshot's seed.
        iterations: Of L-BFGS-B, each at least one gradient; theirs are 10. The highest point met counts.
        samples: None for the whole training set; else that many, drawn by the snapshot's seed.

    Returns:
        ``keskar_sharpness`` ``[epsilons]``, a lower bound of the maximum, and ``keskar_sharpness_epsilons``; with
        ``samples``, ``keskar_sharpness_data_sem``: what leaving out the other samples brings to the rise at the
        points found, relative to the same 1 + L(θ).

    Raises:
        ValueError: for ε or numbers that are not positive, or too many samples.
        FloatingPointError: where the loss in the box is not finite.

    Cost: iterations to twice as many gradients for each ε; memory dim × 20 float64, and dim × p.
    """
    _check("epsilons", epsilons)
    for name, given in (("directions", directions), ("iterations", iterations)):
        if given is not None and given < 1:
            raise ValueError(f"{name} is at least 1, not {given}")
    of = objective(snapshot, samples)
    basis, centre = None, of.start
    if directions is not None:
        seeds = [derive(snapshot.seed, "subspace", j) for j in range(directions)]
        basis = torch.stack([gaussian({"": of.start}, seed=seed)[""] for seed in seeds], 1)
        centre = torch.linalg.lstsq(basis, of.start[:, None]).solution[:, 0]
    box = centre.abs().double().cpu().numpy() + 1.0
    found = [highest_in_box(of, basis, e * box, iterations, snapshot.seed) for e in epsilons]
    values = _curve("keskar_sharpness", "epsilons", epsilons, found, of, samples)
    share = 100 / (1 + of.loss(of.start))
    return {name: value if name.endswith("epsilons") else value * share for name, value in values.items()}


def critical_sharpness(
    snapshot: Snapshot, *, rtol: float = 0.01, first_step: float = 1.0, samples: int | None = None
) -> dict[str, float]:
    """2 over the learning rate at which a gradient step no longer lowers the training loss; by forward passes alone.

    λ_c = 2/η_c, η_c = inf{η > 0: L(θ − η·g) > L(θ)}, g = ∇L(θ), in eval mode (Kalra et al. 2026, arXiv:2601.16979, for
    the direction of gradient descent). On a quadratic it is gᵀHg/gᵀg, see `gradient_curvature`, and so at most λ_max.

    The search finds one η beyond which the loss is above its start, the first where it falls and rises once along g.
    Where the network is so converged that the fall is below rounding, what it finds is rounding.

    Args:
        snapshot: The network and its data.
        rtol: How close η_c is determined, relative to itself.
        first_step: The first η tried; one near η_c saves passes.
        samples: None for the whole training set; else that many, drawn by the snapshot's seed.

    Returns:
        ``critical_sharpness`` and ``critical_learning_rate``; NaN where the gradient is 0, 0 and infinite where the
        loss never rises; ``critical_passes``, how many forward passes over the training set it took.

    Raises:
        ValueError: for numbers that are not positive, or too many samples.

    Cost: one gradient and about 5 forward passes over the training set (3 for a quadratic).
    """
    _check("rtol", (rtol,))
    _check("first_step", (first_step,))
    of = objective(snapshot, samples)
    base, g = of.gradient(of.start)
    slope = float(g.double().square().sum())
    if slope == 0:
        return {"critical_sharpness": math.nan, "critical_learning_rate": math.nan, "critical_passes": 0.0}
    step, passes = first_rise(lambda eta: of.loss(of.start - eta * g), base, slope, rtol, first_step)
    return {"critical_sharpness": 2 / step, "critical_learning_rate": step, "critical_passes": float(passes)}


def _ascent_step(of: Objective, radius: float) -> tuple[float, Tensor]:
    """The loss at θ, and the point at a distance along its gradient."""
    base, g = of.gradient(of.start)
    return base, of.start + radius * g / g.norm().clamp_min(torch.finfo(g.dtype).tiny)


def _check(name: str, numbers: tuple[float, ...]) -> None:
    if not numbers or not all(0 < x < math.inf for x in numbers) or list(numbers) != sorted(numbers):
        raise ValueError(f"{name} takes positive numbers in ascending order, not {numbers}")


def _curve(
    name: str, over: str, at: tuple[float, ...], found: list[Highest], of: Objective, samples: int | None
) -> dict[str, float | Tensor]:
    """What was found at each radius, with its data error where only some samples were looked at."""
    columns = {name: [highest.increase for highest in found], f"{name}_{over}": list(at)}
    if samples is not None:
        columns[f"{name}_data_sem"] = [of.data_sem(highest.point) for highest in found]
    return {column: torch.tensor(numbers, dtype=torch.float64) for column, numbers in columns.items()}
