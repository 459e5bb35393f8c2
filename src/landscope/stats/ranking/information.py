"""What a measure's order tells of the outcome's where settings are known, and where it fails worst."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from landscope.stats.ranking.configurations import Configurations, Edges

LEAST_EFFECTIVE = 12  # pairs, in effect, that an environment needs (Dziugaite et al.)


def conditioning_sets(of: Configurations) -> list[tuple[int, ...]]:
    """The sets of at most two axes that leave at least one free: given all of them, nothing would be left to tell."""
    axes = range(of.places.shape[1])
    return [s for k in range(min(2, len(axes) - 1) + 1) for s in itertools.combinations(axes, k)]


def conditional_information(
    x: Float[np.ndarray, " n m"], y: Float[np.ndarray, " n"], of: Configurations
) -> tuple[Float[np.ndarray, " m"], list[tuple[int, ...]]]:
    r"""The least normalised information that a measure's order gives of the outcome's, given settings.

    Over ordered pairs of configurations of one block, with V = [x > x'] and G = [y > y'], and for a set S of axes with
    the values U that the two have on them,

        K = min over S of  mean_U I(V; G | U) / mean_U H(G | U),    |S| <= 2

    (Jiang et al. 2020, section 3, with the uniform mean over the values U of their competition's code). Between 0 and
    1, and blind to the sign: a measure that always says the opposite scores 1. Pairs tied in y are left out; a pair
    tied in x counts half each way. Where few pairs share their values it is positive by chance.

    Returns:
        K of each column and the set at which it is least, as indices of axes. NaN where all y are tied.

    Cost: of order n² (n m + the number of groups) operations.
    """
    sets = conditioning_sets(of)
    groups = [_groups(of, s) for s in sets]
    member = np.concatenate(groups, axis=1).astype(np.float32)
    same = of.blocks[:, None] == of.blocks[None]
    above = ((y[:, None] > y[None]) & same).astype(np.float32)
    total = _counts(above, member, groups)
    least = np.full(x.shape[1], np.nan)
    chosen: list[tuple[int, ...]] = [()] * x.shape[1]
    for j, column in enumerate(x.T):
        order = np.sign(column[:, None] - column[None])
        agree = _counts(((order + 1) / 2).astype(np.float32) * above, member, groups)
        for s, a, t in zip(sets, agree, total, strict=True):
            value = _normalised(a, t)
            if not value >= least[j]:
                least[j], chosen[j] = value, s
    return least, chosen


def _groups(of: Configurations, s: Sequence[int]) -> np.ndarray:
    """Which configurations have which values on the axes of S, and are of which block: shape ``[n, groups]``."""
    own = np.column_stack([of.blocks, *(of.places[:, k] for k in s)])
    code = np.unique(own, axis=0, return_inverse=True)[1].reshape(-1)
    return code[:, None] == np.arange(code.max() + 1)[None]


def _counts(pairs: np.ndarray, member: np.ndarray, groups: Sequence[np.ndarray]) -> list[np.ndarray]:
    """How many pairs lie between each two groups, for every grouping."""
    half = pairs @ member
    ends = np.cumsum([0, *(g.shape[1] for g in groups)])
    return [g.T.astype(np.float64) @ half[:, a:b] for g, a, b in zip(groups, ends[:-1], ends[1:], strict=True)]


def _normalised(agree: np.ndarray, total: np.ndarray) -> float:
    """From the pairs with G = 1 of each cell, and those of them with V = 1; a cell's mirror image has those with 0."""
    table = np.stack([np.stack([agree, total - agree]), np.stack([total.T - agree.T, agree.T])])  # [G, V, cells]
    pairs = table.sum(axis=(0, 1))
    table = table[:, :, pairs > 0] / pairs[pairs > 0]
    h_g, h_v, h_both = _entropy(table.sum(axis=1)), _entropy(table.sum(axis=0)), _entropy(table.reshape(4, -1))
    uncertain = h_g.mean() if h_g.size else 0.0
    return float(max((h_g + h_v - h_both).mean() / uncertain, 0.0)) if uncertain > 1e-12 else math.nan


def _entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(np.where(p > 0, p, 1))).sum(axis=0)


# --- environments -------------------------------------------------------------------------------------------------


def trust(difference: Float[np.ndarray, " e"], samples: int) -> Float[np.ndarray, " e"]:
    """How much a difference of two outcomes measured on ``samples`` test samples each is to be believed.

    (w - 1/2)_+ with w = max(0, 1 - 2 exp(-2 n (|Δ| / 2)²))²: by Hoeffding's inequality w bounds the probability that
    both outcomes lie within |Δ| / 2 of what they estimate, and so that the sign is right (Dziugaite et al. 2020,
    arXiv 2010.11924). For outcomes that are means of numbers between 0 and 1, as accuracies.

    >>> trust(np.array([0.0, 0.02, 0.04]), 10_000).round(3).tolist()
    [0.0, 0.032, 0.499]
    """
    sure = np.square(np.maximum(0.0, 1 - 2 * np.exp(-2 * samples * np.square(difference / 2))))
    return np.maximum(sure - 0.5, 0.0)


def effective(weights: Float[np.ndarray, " e"], edges: Edges) -> Float[np.ndarray, " environments"]:
    """The effective number of pairs of every environment: (sum of weights)² / sum of their squares."""
    kinds = len(edges.environments)
    total = np.bincount(edges.environment, weights, kinds)
    squared = np.bincount(edges.environment, np.square(weights), kinds)
    return np.square(total) / np.where(squared > 0, squared, 1)


def sign_errors(
    signs: Float[np.ndarray, " e m"], weights: Float[np.ndarray, " e"], edges: Edges
) -> Float[np.ndarray, " environments m"]:
    """The share of wrong signs in every environment, a tie counting half; NaN where no pair has a weight.

    An environment is all pairs of configurations that have two given levels of one axis and are alike in all others;
    the error is the weighted mean of (1 - sign(Δx) sign(Δy)) / 2 (Dziugaite et al. 2020).
    """
    kinds = len(edges.environments)
    total = np.bincount(edges.environment, weights, kinds)
    wrong = [np.bincount(edges.environment, weights * (1 - s) / 2, kinds) for s in signs.T]
    sums = np.stack(wrong, axis=1) if wrong else np.zeros((kinds, 0))
    return np.where(total[:, None] > 0, sums / np.where(total > 0, total, 1)[:, None], np.nan)
