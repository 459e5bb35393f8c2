"""Directions through a network's weights, as columns in one order: random, of curvature, of a trajectory, between."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from landscope.curvature import Space, hessian, space_of
from landscope.curvature.making import Data, Loss
from landscope.curvature.problem import BatchLoss
from landscope.curvature.restoring import bare
from landscope.directions import orthogonalised, principal_directions, random_directions
from landscope.linalg import spectrum

State = Mapping[str, Tensor] | nn.Module
ALL = "*"  # frozen parameters, too


@final
@dataclass(frozen=True, eq=False)
class Directions:
    """Directions in the space of all of a network's parameters, and how they were made.

    Args:
        columns: One a column, in the order of ``model.named_parameters()``, shape ``[dim, k]``.
        labels: What each is, with the unit of a step of 1.
        statement: How they were made, for the reader of a picture.
    """

    columns: Float[Tensor, " dim k"]
    labels: tuple[str, ...]
    statement: str

    def __post_init__(self) -> None:
        """Refuse columns that lead nowhere."""
        if len(self.labels) != self.columns.shape[1]:
            raise ValueError(f"{self.columns.shape[1]} directions but {len(self.labels)} labels")
        for label, column in zip(self.labels, self.columns.T, strict=True):
            if not bool(torch.isfinite(column).all()):
                raise ValueError(f"the direction {label!r} holds NaN or infinity")
            if not bool(column.any()):
                raise ValueError(
                    f"the direction {label!r} has length 0 (dead filters, no gradient, twice one checkpoint?): "
                    "every point along it would be the same network"
                )

    def __len__(self) -> int:
        """How many there are."""
        return self.columns.shape[1]

    @property
    def lengths(self) -> Float[Tensor, " k"]:
        """The length of each: the distance in weights that a step of 1 goes."""
        return self.columns.double().norm(dim=0)

    @property
    def largest_cosine(self) -> float:
        """The largest |cosine| between two of them; 0 for one."""
        unit = self.columns.double() / self.lengths
        return float((unit.T @ unit).fill_diagonal_(0).abs().max())


def space(model: nn.Module, dtype: torch.dtype | None = None) -> Space:
    """The space of all parameters of a network, frozen ones included."""
    return space_of(bare(model), ALL, dtype)


def random_axes(
    model: nn.Module,
    *,
    count: int = 2,
    normalisation: str = "filter",
    biases: bool = False,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> Directions:
    """Random directions, orthogonal and scaled to the network's weights; biases and BatchNorm parameters stay.

    Args:
        model: The network.
        count: How many.
        normalisation: ``"filter"``, ``"layer"``, ``"model"`` or ``"none"``, as in
            `landscope.directions.random_directions`.
        biases: Whether tensors with one axis (biases, BatchNorm's parameters) move, too.
        seed: For the draws, the same for every type.
        dtype: The directions' type; needed where the parameters are of several, else their own.

    Raises:
        ValueError: as `landscope.directions.random_directions` does.
    """
    of = space(model, dtype)
    weights = {name: p.detach().to(of.dtype) for name, p in zip(of.names, of.parameters(), strict=True)}
    drawn = random_directions(weights, count=count, normalisation=normalisation, biases=biases, seed=seed)
    columns = torch.stack([of.flat(d[name] for name in of.names) for d in drawn], 1)
    scaled = f"scaled to each {normalisation}'s norm" if normalisation != "none" else "as drawn, not scaled"
    still = (
        "biases and BatchNorm parameters move, each as one filter"
        if biases
        else ("biases and BatchNorm parameters (all tensors with one axis) stay where they are")
    )
    many = "a Gaussian direction" if count == 1 else f"{count} Gaussian directions made orthogonal"
    return Directions(
        columns,
        tuple(f"random direction {j + 1}, {_unit(normalisation)}" for j in range(count)),
        f"{many}, seed {seed}, {scaled}; {still}{_dead(weights, normalisation)}",
    )


def _unit(normalisation: str) -> str:
    return "standard deviations" if normalisation == "none" else f"{normalisation} norms"


def _dead(weights: Mapping[str, Tensor], normalisation: str) -> str:
    if normalisation == "none":
        return ""
    rows = [w.flatten(1) if normalisation == "filter" else w.reshape(1, -1) for w in weights.values() if w.dim() > 1]
    dead = sum(int((~row.any(1)).sum()) for row in rows)
    return f"; {dead} of {sum(map(len, rows))} {normalisation}s are 0 and do not move" if dead else ""


def curvature_axes(
    model: nn.Module,
    loss: Loss | None,
    data: Data,
    /,
    *,
    which: Sequence[int] = (1, 2),
    scale: float | int = 1.0,
    batch_loss: BatchLoss | None = None,
    max_products: int = 300,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> Directions:
    """Eigenvectors of the Hessian of the mean loss, of length ``scale``.

    Args:
        model: The network.
        loss: ``loss(outputs, targets)``, the mean over a batch; None where ``batch_loss`` is given.
        data: As in `landscope.hessian`.
        which: The eigenvalues' numbers from the top, 1 is the largest; with a minus from the bottom, −1 is the least.
        scale: Each direction's length.
        batch_loss: As in `landscope.hessian`.
        max_products: Hessian products at the most.
        seed: Where the search starts.
        dtype: As in `random_axes`; it is calculated in, too.

    Raises:
        ValueError: for eigenvectors numbered 0 or twice, and as `landscope.hessian` and `landscope.spectrum` do.

    Cost: 20 to 40 Hessian products for a few well separated ones.
    """
    if not which or 0 in which or len(set(which)) < len(which):
        raise ValueError(f"eigenvectors are numbered 1, 2, … from the top and −1, −2, … from the bottom, not {which}")
    trained = [name for name, p in bare(model).named_parameters() if p.requires_grad]
    matrix = hessian(model, loss, data, batch_loss=batch_loss, dtype=dtype)
    top, bottom = max(0, *which), max(0, *(-w for w in which))
    found = spectrum(matrix, top, bottom, density=False, max_products=max_products, seed=seed)
    places = [w - 1 if w > 0 else top + bottom + w for w in which]
    of, columns = space(model, dtype), []
    for place in places:
        parts = dict(zip(trained, matrix.problem.space.split(found.eigenvectors[:, place]), strict=True))
        still = {name: torch.zeros(shape) for name, shape in zip(of.names, of.shapes, strict=True)}
        columns.append(of.flat({**still, **parts}[name].to(of.device, of.dtype) for name in of.names))
    values = [f"{float(found.eigenvalues[p]):.6g}{'' if found.converged[p] else ' (not converged)'}" for p in places]
    return Directions(
        orthogonalised(torch.stack(columns, 1)) * scale,
        tuple(f"Hessian eigenvector of λ = {value}" for value in values),
        f"eigenvectors {', '.join(map(str, which))} of the Hessian, of length {scale:g}; "
        f"eigenvalues {', '.join(values)}, {found.products} products",
    )


def gradient_axis(
    model: nn.Module,
    loss: Loss | None,
    data: Data,
    /,
    *,
    scale: float | int = 1.0,
    batch_loss: BatchLoss | None = None,
    dtype: torch.dtype | None = None,
) -> Directions:
    """The direction of steepest ascent: the gradient of the mean loss, scaled to length ``scale``.

    Args:
        model: The network.
        loss: As in `curvature_axes`.
        data: As in `landscope.hessian`.
        scale: The direction's length.
        batch_loss: As in `landscope.hessian`.
        dtype: As in `curvature_axes`.

    Raises:
        ValueError: where the gradient is 0, and as `landscope.hessian` does.

    Cost: two passes over the data.
    """
    problem = hessian(model, loss, data, batch_loss=batch_loss, dtype=dtype).problem
    total: list[Tensor] = []
    with problem.quiet():
        weights = problem.weights()
        for batch in problem.batches():
            parts = torch.autograd.grad(problem.total(weights, batch)[0], weights, allow_unused=True)
            found = [torch.zeros_like(w) if g is None else g for g, w in zip(parts, weights, strict=True)]
            total = found if not total else [a + b for a, b in zip(total, found, strict=True)]
    of = space(model, dtype)
    trained = dict(zip(problem.space.names, total, strict=True))
    parts = (trained.get(name, torch.zeros(shape)) for name, shape in zip(of.names, of.shapes, strict=True))
    column = of.flat(part.to(of.device, of.dtype) for part in parts)
    if not bool(column.any()):
        raise ValueError("the gradient of the mean loss is 0: there is no direction of steepest ascent")
    unit = column / column.double().norm().to(column)
    return Directions(
        (unit * scale)[:, None],
        ("along the gradient, distance in weights",),
        f"the gradient of the mean training loss, scaled to length {scale:g}",
    )


def trajectory_axes(
    model: nn.Module, states: Iterable[State], /, *, count: int = 2, dtype: torch.dtype | None = None
) -> Directions:
    """The principal directions of checkpoints, of length 1: coordinates are distances in weights.

    Args:
        model: The network; the plane goes through its own weights.
        states: State dicts (or networks) of a trajectory, in order.
        count: How many directions.
        dtype: As in `random_axes`.

    Raises:
        ValueError: for fewer than ``count + 1`` different checkpoints, or such as do not fit the network.
    """
    of = space(model, dtype)
    points = [point_of(of, state, f"checkpoint {i + 1}") for i, state in enumerate(states)]
    if len(points) < count + 1:
        raise ValueError(
            f"{len(points)} checkpoint{'' if len(points) == 1 else 's'} cannot span the {count} principal directions "
            f"of a trajectory: give at least {count + 1} that differ, or take random directions or eigenvectors"
        )
    columns, shares = principal_directions(torch.stack(points), count=count)
    said = ", ".join(f"{float(share):.1%}" for share in shares[:count])
    return Directions(
        orthogonalised(columns),
        tuple(f"principal direction {j + 1} ({float(shares[j]):.1%}), distance in weights" for j in range(count)),
        f"principal directions of {len(points)} checkpoints, which hold {said} of their variance; length 1",
    )


def axes_between(model: nn.Module, states: Sequence[State], /, *, dtype: torch.dtype | None = None) -> Directions:
    """Directions from a network to others: 1 along the first is the first; of the next, what is orthogonal to it.

    Args:
        model: The network at the origin.
        states: State dicts (or networks) of one or two others.
        dtype: As in `random_axes`.

    Raises:
        ValueError: for networks of other shapes, the same network twice, or three on one line.
    """
    of = space(model, dtype)
    columns = torch.stack([point_of(of, s, f"checkpoint {i + 1}") - of.point() for i, s in enumerate(states)], 1)
    labels = ["towards checkpoint 1", *(f"towards checkpoint {j}, less the others" for j in range(2, len(states) + 1))]
    if len(states) == 1:
        return Directions(columns, tuple(labels), "from one checkpoint to another")
    statement = (
        f"from one checkpoint to {len(states)} others, made orthogonal in this order, of the lengths of the ways"
    )
    return Directions(orthogonalised(columns), tuple(labels), statement)


def named_state(state: State) -> Mapping[str, Tensor]:
    """Parameters and buffers by name, of a state dict or a network."""
    return bare(state).state_dict() if isinstance(state, nn.Module) else state


def point_of(of: Space, state: State, what: str) -> Float[Tensor, " dim"]:
    """A checkpoint as a vector.

    Raises:
        ValueError: where parameters are missing, of another shape or not finite; the message names them.
    """
    held: Mapping[str, Any] = named_state(state)
    missing = [name for name in of.names if name not in held]
    if missing:
        raise ValueError(f"{what} lacks {', '.join(missing[:4])}: it is of another network")
    wrong = [
        f"{name} {list(held[name].shape)} instead of {list(shape)}"
        for name, shape in zip(of.names, of.shapes, strict=True)
        if held[name].shape != shape
    ]
    if wrong:
        raise ValueError(
            f"{what} is of another shape than the network: {', '.join(wrong[:4])}; they lie in no one space"
        )
    bad = [name for name in of.names if not bool(torch.isfinite(held[name]).all())]
    if bad:
        raise ValueError(f"{what} holds NaN or infinity in {', '.join(bad[:4])}: it has no place among others")
    return of.flat(held[name].detach().to(of.device, of.dtype) for name in of.names)
