"""Directions in parameter space: random, scaled to the weights' norms, orthogonal, principal."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from landscope.spec import derive

Parameters = Mapping[str, Tensor]
NORMALISATIONS = ("filter", "layer", "model", "none")


def gaussian(like: Parameters, *, seed: int) -> dict[str, Tensor]:
    """Independent N(0, 1) numbers in the shapes of ``like``; the same for every network of these shapes.

    They are drawn on the CPU in float32, so that every device and precision gets the same.

    >>> d = gaussian({"weight": torch.zeros(2, 3)}, seed=0)
    >>> d["weight"].shape
    torch.Size([2, 3])
    """
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(p.shape, generator=generator, dtype=torch.float32).to(p) for name, p in like.items()}


def filter_normalised(direction: Parameters, weights: Parameters) -> dict[str, Tensor]:
    """``direction`` with each filter rescaled to the norm of the same filter of ``weights``.

    A filter is a slice along the first axis of a tensor with two axes or more (one unit's incoming weights, one
    output map's kernel). Biases and normalisation parameters, which have one axis, get zero (Li et al. 2018).

    >>> w = {"weight": torch.tensor([[3.0, 4.0], [0.0, 0.0]]), "bias": torch.ones(2)}
    >>> d = filter_normalised({"weight": torch.ones(2, 2), "bias": torch.ones(2)}, w)
    >>> d["weight"].norm(dim=1).tolist(), d["bias"].tolist()
    ([5.0, 0.0], [0.0, 0.0])
    """
    scaled = {}
    for name, d in direction.items():
        w = weights[name]
        if w.dim() < 2:
            scaled[name] = torch.zeros_like(w)
            continue
        ratio = w.flatten(1).norm(dim=1) / d.flatten(1).norm(dim=1).clamp_min(torch.finfo(d.dtype).tiny)
        scaled[name] = d * ratio.reshape(-1, *[1] * (w.dim() - 1))
    return scaled


SCALES = ("none", "weight", "filter")
SINKHORN_STEPS = 1000


def relative_scales(weights: Parameters, kind: str) -> dict[str, Tensor]:
    """What each parameter is measured by, so that a perturbation is relative to the network's own weights.

    In a ReLU network a unit's incoming weights may be multiplied and its outgoing ones divided by any factor without
    a change of the function (Dinh et al. 2017). ``"weight"`` and ``"filter"`` scale along with the weights under that,
    each weight by its own factor: what is measured in these units is unmoved. A filter's norm alone is not enough: a
    unit's outgoing weights lie in other units' filters.

    Args:
        weights: The parameters by name.
        kind: ``"none"``: 1. ``"weight"``: |w| of each weight (Kwon et al. 2021, without their constant for biases).
            ``"filter"``: for a tensor with two axes or more, √(a_o·b_i) for output o and input i, with a and b such
            that the weights so divided have mean square 1 in each output's filter and in each input's; |w| for one
            axis. (Row and column scales as in Tsuzuku et al. 2020; balancing them is our choice. Grouped convolutions
            with several inputs a group share one b for all groups.)

    Raises:
        ValueError: for another kind.

    >>> w = {"weight": torch.tensor([[1.0, 2.0], [10.0, 20.0]]), "bias": torch.tensor([-3.0, 0.0])}
    >>> relative_scales(w, "filter")["weight"]
    tensor([[ 1.,  2.],
            [10., 20.]])
    >>> relative_scales(w, "weight")["bias"].tolist()
    [3.0, 0.0]
    """
    if kind not in SCALES:
        raise ValueError(f"a scale is one of {', '.join(SCALES)}, not {kind!r}")
    if kind == "none":
        return {name: torch.ones_like(w) for name, w in weights.items()}
    filters = {name for name, w in weights.items() if kind == "filter" and w.dim() > 1}
    return {name: _balanced(w.detach()) if name in filters else w.detach().abs() for name, w in weights.items()}


def _balanced(w: Tensor) -> Tensor:
    """√(a_o·b_i) by Sinkhorn's iteration on the mean squares; 0 for a filter of zeros."""
    squares = w.double().flatten(2).square().mean(2) if w.dim() > 2 else w.double().square()
    rows, columns = squares.sum(1) > 0, squares.sum(0) > 0
    alive = squares[rows][:, columns]
    a, b = (alive.new_ones(n) for n in alive.shape)
    for _ in range(SINKHORN_STEPS if alive.numel() else 0):
        before, a = a, (alive / b).mean(1)
        b = (alive / a[:, None]).mean(0)
        if bool(((a / before - 1).abs() < 1e-13).all()):
            break
    scales = torch.zeros_like(squares)
    scales[rows.nonzero(), columns.nonzero().T] = (a[:, None] * b).sqrt()
    return scales.reshape(*scales.shape, *[1] * (w.dim() - 2)).expand(w.shape).to(w)


def random_directions(
    weights: Parameters, *, count: int = 2, normalisation: str = "filter", biases: bool = False, seed: int = 0
) -> list[dict[str, Tensor]]:
    """Orthogonal Gaussian directions in the shapes of ``weights``, scaled to their norms.

    Filter by filter (layer by layer, or as a whole) the draws are made orthogonal to one another and scaled to the
    norm of the same filter (layer, network) of the weights, so that both hold exactly: ⟨d_i, d_j⟩ = 0, and every filter
    of every direction has its weights' norm. Where a filter holds fewer weights than there are directions, these are
    made orthogonal as a whole, and norms there are off. (Li et al., "Visualizing the loss landscape of neural nets",
    2018, section 4; they leave the directions as they fall.)

    Args:
        weights: The parameters by name.
        count: How many directions.
        normalisation: ``"filter"``: slices along the first axis of tensors with two axes or more; ``"layer"``: whole
            tensors; ``"model"``: all that moves together; ``"none"``: N(0, 1) in every weight, as drawn.
        biases: Whether tensors with one axis (biases, parameters of BatchNorm) move, too, each as one filter; else
            they get zero.
        seed: For the draws, which are the same for every network of these shapes.

    Raises:
        ValueError: for another normalisation, less than one direction, directions that are zero throughout (all
            weights that would move are 0, or there are none), or more of them than weights.

    >>> w = {"weight": torch.tensor([[3.0, 4.0], [0.0, 0.0]]), "bias": torch.ones(2)}
    >>> a, b = random_directions(w)
    >>> round(a["weight"].norm().item(), 4), a["bias"].tolist(), abs((a["weight"] * b["weight"]).sum().item()) < 1e-5
    (5.0, [0.0, 0.0], True)
    """
    if normalisation not in NORMALISATIONS:
        raise ValueError(f"a normalisation is one of {', '.join(NORMALISATIONS)}, not {normalisation!r}")
    if count < 1:
        raise ValueError(f"at least one direction is needed, not {count}")
    drawn = [gaussian(weights, seed=derive(seed, "direction", j)) for j in range(count)]
    moving = [name for name, w in weights.items() if w.numel() and (biases or w.dim() > 1)]
    if not moving:
        raise ValueError("every parameter has one axis, and these stay where they are: let them move with biases=True")
    blocks = [[name] for name in moving] if normalisation in ("filter", "layer") else [moving]
    exact = True
    for names in blocks:
        of = torch.cat([_filters(weights[name], normalisation == "filter") for name in names], 1)
        parts = torch.stack(
            [torch.cat([_filters(d[name], normalisation == "filter") for name in names], 1) for d in drawn]
        )
        room = of.shape[1] >= count
        exact = exact and room
        parts = _apart(parts, of.norm(dim=1) if normalisation != "none" else None, room)
        for d, made in zip(drawn, parts, strict=True):
            pieces = made.split([weights[name].numel() // len(made) for name in names], 1)
            d.update(
                {n: piece.reshape(weights[n].shape).to(weights[n]) for n, piece in zip(names, pieces, strict=True)}
            )
    for d in drawn:
        d.update({name: torch.zeros_like(w) for name, w in weights.items() if name not in moving})
    _check_lengths(drawn)
    return drawn if exact else _orthogonal(drawn, weights)


def _filters(tensor: Tensor, apart: bool) -> Tensor:
    """A row for each filter; one for the whole tensor where they are not apart, or it has one axis."""
    flat = tensor.detach().double()
    return flat.flatten(1) if apart and tensor.dim() > 1 else flat.reshape(1, -1)


def _apart(parts: Tensor, norms: Tensor | None, room: bool) -> Tensor:
    """Filters ``[directions, filters, weights]`` orthogonal where there is room for it, of the norms given."""
    lengths = parts.norm(dim=2) if norms is None else norms.expand(parts.shape[:2])
    made: list[Tensor] = []
    for rows in parts:
        for _ in range(2 if room else 0):  # once leaves what rounding leaves
            for other in made:
                rows = rows - (rows * other).sum(1, keepdim=True) * other
        made.append(rows / rows.norm(dim=1, keepdim=True))
    return torch.stack(made) * lengths[:, :, None]


def _check_lengths(directions: Sequence[Parameters]) -> None:
    for i, direction in enumerate(directions):
        if not any(bool(d.any()) for d in direction.values()):
            raise ValueError(
                f"direction {i + 1} is zero throughout: the weights whose norms it is scaled to are all 0; take "
                'normalisation="none" (--normalisation none), or biases=True where the biases are not'
            )


def _orthogonal(directions: Sequence[Parameters], like: Parameters) -> list[dict[str, Tensor]]:
    columns = orthogonalised(torch.stack([torch.cat([t.reshape(-1) for t in d.values()]) for d in directions], 1))
    sizes = [t.numel() for t in directions[0].values()]
    return [
        {name: part.view(like[name].shape) for name, part in zip(directions[0], column.split(sizes), strict=True)}
        for column in columns.T
    ]


def orthogonalised(columns: Float[Tensor, " n k"]) -> Float[Tensor, " n k"]:
    """Each column less its parts along those before it, at the length that it had.

    Twice, in float64: ⟨a, b⟩ is 0 up to the rounding of the columns' own type.

    Raises:
        ValueError: for a column that is zero, or that those before it make up.

    >>> orthogonalised(torch.tensor([[1.0, 3.0], [0.0, 4.0]]))
    tensor([[1., 0.],
            [0., 5.]])
    """
    made: list[Tensor] = []
    for number, column in enumerate(columns.double().T):
        length, rest = column.norm(), column
        if not length > 0:
            raise ValueError(f"direction {number + 1} has length 0: a direction needs a length above 0")
        for _ in range(2):
            for other in made:
                rest = rest - (other @ rest) * other
        if rest.norm() <= 1e-6 * length:
            raise ValueError(
                f"direction {number + 1} is a combination of those before it: {number + 1} directions need that many "
                "dimensions (checkpoints on one line, or the same one twice?)"
            )
        made.append(rest / rest.norm())
    return (torch.stack(made, 1) * columns.double().norm(dim=0)).to(columns)


def principal_directions(
    points: Float[Tensor, " m n"], *, count: int = 2
) -> tuple[Float[Tensor, " n count"], Float[Tensor, " r"]]:
    """The unit directions along which points vary most, and the share of the variance along each that there is.

    Eigenvectors of (1/m) Σ (x − x̄)(x − x̄)ᵀ, from the m × m matrix of inner products, in float64. The sign is such
    that the last point lies on the positive side of the mean.

    Args:
        points: One point a row.
        count: How many directions.

    Returns:
        The directions, and all shares of the variance in descending order.

    Raises:
        ValueError: for fewer than ``count + 1`` points, or points that do not vary in that many directions.

    >>> directions, shares = principal_directions(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), count=1)
    >>> directions.T, shares
    (tensor([[0.6000, 0.8000]]), tensor([1.], dtype=torch.float64))
    """
    if len(points) < count + 1:
        raise ValueError(
            f"{count} principal directions need at least {count + 1} different points (checkpoints), not {len(points)}"
        )
    centred = points.double() - points.double().mean(0)
    values, vectors = torch.linalg.eigh(centred @ centred.T)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    if not values[count - 1] > 1e-10 * values[0] or not values[0] > 0:
        raise ValueError(
            f"the {len(points)} points (checkpoints) do not vary in {count} directions: they lie on a line, or are all "
            "the same"
        )
    found = centred.T @ vectors[:, :count]
    found = found / found.norm(dim=0)
    found = found * torch.where(centred[-1] @ found < 0, -1.0, 1.0)
    return found.to(points), (values / values.sum())[: len(points) - 1]
