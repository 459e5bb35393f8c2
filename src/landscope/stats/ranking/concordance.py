"""How well the order of one quantity over configurations agrees with that of another: over all pairs, along each axis,
and given others; vectorised over measures and bootstrap draws.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int

from landscope.stats.ranking.configurations import Edges

CHUNK = 4_000_000  # numbers held at once


def resampled(
    values: Float[np.ndarray, " n s k"], counts: Int[np.ndarray, " n"], draws: int, random: np.random.Generator
) -> Iterator[Float[np.ndarray, " n k"]]:
    """Each configuration's mean over seeds drawn again with replacement, ``draws`` times.

    Args:
        values: By configuration, seed and quantity; what lies beyond a configuration's own seeds is not read.
        counts: How many seeds each configuration has.
        draws: How often.
        random: Where the draws come from.
    """
    n, most, _ = values.shape
    mine = np.arange(most)[None] < counts[:, None]
    for _ in range(draws):
        weights = np.zeros((n, most))
        drawn = (random.random((n, most)) * counts[:, None]).astype(np.int64)
        np.add.at(weights, (np.arange(n)[:, None], drawn), mine)
        yield np.einsum("ns,nsk->nk", weights / counts[:, None], values)


def multinomial(
    blocks: Int[np.ndarray, " n"], draws: int, random: np.random.Generator
) -> Float[np.ndarray, " draws n"]:
    """How often each configuration is in each bootstrap draw: as many are drawn of each block as it has."""
    weights = np.zeros((draws, blocks.size))
    for block in np.unique(blocks):
        members = np.flatnonzero(blocks == block)
        weights[:, members] = random.multinomial(members.size, np.full(members.size, 1 / members.size), draws)
    return weights


def kendall(
    x: Float[np.ndarray, " n m"],
    y: Float[np.ndarray, " n"],
    weights: Float[np.ndarray, " draws n"],
    same: Bool[np.ndarray, " n n"],
) -> Float[np.ndarray, " draws m"]:
    """Kendall's tau-b of each column of ``x`` with ``y``, a configuration counting ``weights`` times.

    Pairs that are tied in the one or the other say nothing; so do a configuration and its own copy. Only pairs that
    are the ``same`` (of one block) count. 0 where all pairs are tied.

    >>> x = np.array([[1.0, 4.0], [2.0, 3.0], [3.0, 2.0], [4.0, 1.0]])
    >>> kendall(x, x[:, 0], np.ones((1, 4)), np.ones((4, 4), bool)).tolist()
    [[1.0, -1.0]]
    """
    n, m = x.shape
    w = weights.astype(np.float32)
    ours = (_signs(y) * same).astype(np.int8)
    found = np.empty((len(weights), m))
    untied_y = _quadratic(w, np.abs(ours).astype(np.float32))
    off = same & ~np.eye(n, dtype=bool)
    untied = _quadratic(w, off.astype(np.float32))
    for start in range(0, m, size := max(1, CHUNK // max(n * n, 1))):
        for j, column in enumerate(x.T[start : start + size], start):
            theirs = _signs(column)
            tied = np.unique(column).size < n
            both = _quadratic(w, (np.abs(theirs) * same).astype(np.float32)) if tied else untied
            agree = _quadratic(w, (theirs * ours).astype(np.float32))
            found[:, j] = agree / np.sqrt(np.maximum(both * untied_y, 1e-300))
    return found


def _signs(x: np.ndarray) -> np.ndarray:
    above = (x[:, None] > x[None]).view(np.int8)
    return above - above.T


def _quadratic(w: np.ndarray, a: np.ndarray) -> np.ndarray:
    """W a w for each row w of the weights; sums of whole numbers below 2^24, exact in float32."""
    return ((w @ a) * w).sum(axis=1, dtype=np.float64)


def signs_along(x: Float[np.ndarray, " n m"], y: Float[np.ndarray, " n"], edges: Edges) -> Float[np.ndarray, " e m"]:
    """sign(Δx) sign(Δy) of every edge: 1 where measure and outcome agree, 0 where either is tied."""
    return np.sign(x[edges.high] - x[edges.low]) * np.sign(y[edges.high] - y[edges.low])[:, None]


def granulated(
    signs: Float[np.ndarray, " e m"], edges: Edges, weights: Float[np.ndarray, " draws n"], axes: int
) -> Float[np.ndarray, " draws axes m"]:
    """Kendall's tau along each axis: the mean of the signs over pairs that differ in that axis alone; NaN without any.

    On a complete grid it is the mean over all lines along the axis of each line's tau, with ties counting 0:
    psi_i of Jiang et al. (2020, arXiv 1912.02178, section 3); their granulated coefficient is its mean over axes.
    """
    found = np.full((len(weights), axes, signs.shape[1]), np.nan)
    on = edges.axis[edges.environment] if edges.environment.size else np.zeros(0, int)
    for axis in range(axes):
        mine = on == axis
        pairs = weights[:, edges.low[mine]] * weights[:, edges.high[mine]]
        total = pairs.sum(axis=1)
        there = total > 0
        found[there, axis] = (pairs[there] @ signs[mine]) / total[there, None]
    return found


def weighted_ranks(x: Float[np.ndarray, " n k"], weights: Float[np.ndarray, " d n"]) -> Float[np.ndarray, " d n k"]:
    """The rank of every entry in its column, mean ranks for ties, where entry i is there ``weights`` times.

    >>> weighted_ranks(np.array([[5.0], [7.0], [7.0]]), np.ones((1, 3)))[0, :, 0].tolist()
    [1.0, 2.5, 2.5]
    """
    found = np.empty((len(weights), *x.shape))
    for j, column in enumerate(x.T):
        _, code = np.unique(column, return_inverse=True)
        order = np.argsort(code, kind="stable")
        starts = np.flatnonzero(np.diff(code[order], prepend=-1))
        held = np.add.reduceat(weights[:, order], starts, axis=1)
        found[:, :, j] = (held.cumsum(axis=1) - (held - 1) / 2)[:, code]
    return found


def partial(
    x: Float[np.ndarray, " n m"],
    y: Float[np.ndarray, " n"],
    given: Float[np.ndarray, " n k"],
    weights: Float[np.ndarray, " d n"],
) -> Float[np.ndarray, " d m"]:
    """Spearman's correlation of each column of ``x`` with ``y`` given others: of what regression on ``given`` leaves.

    All are ranked, ``x`` and ``y`` regressed on the ranks of ``given`` and a constant by least squares, and the
    residuals correlated; a configuration counts ``weights`` times. NaN where nothing is left: where a column is a
    function of the others, up to rounding.

    >>> x = np.array([[1.0], [2.0], [3.0], [4.0], [5.0], [6.0]])
    >>> given = np.array([[1.0], [0.0], [1.0], [0.0], [1.0], [0.0]])
    >>> partial(x, -x[:, 0], given, np.ones((1, 6))).round(6).tolist()
    [[-1.0]]
    """
    m = x.shape[1]
    ranks = weighted_ranks(np.concatenate([x, y[:, None], given], axis=1), weights)
    w = weights[:, :, None]
    ranks -= (w * ranks).sum(axis=1, keepdims=True) / w.sum(axis=1, keepdims=True)
    ranks *= np.sqrt(w)
    lengths = np.sqrt(np.square(ranks).sum(axis=1, keepdims=True))
    ranks /= np.where(lengths > 0, lengths, 1)
    gram = ranks.transpose(0, 2, 1) @ ranks
    cross = gram[:, : m + 1, m + 1 :]
    explained = cross @ np.linalg.pinv(gram[:, m + 1 :, m + 1 :], rcond=1e-10, hermitian=True)
    left = gram[:, : m + 1, m] - (explained * cross[:, m : m + 1]).sum(axis=2)
    own = gram[:, range(m + 1), range(m + 1)] - (explained * cross).sum(axis=2)
    known = own > 1e-9
    scale = np.sqrt(np.where(known, own, 1))
    found = np.clip(left[:, :m] / (scale[:, :m] * scale[:, m:]), -1, 1)
    return np.where(known[:, :m] & known[:, m:], found, np.nan)


def permuted(
    x: Float[np.ndarray, " n"],
    y: Float[np.ndarray, " n"],
    blocks: Int[np.ndarray, " n"],
    draws: int,
    random: np.random.Generator,
) -> Float[np.ndarray, " draws"]:
    """Kendall's tau-b where there is no relation: ``x`` exchanged between the configurations of each block."""
    same = blocks[:, None] == blocks[None]
    above = (y[:, None] > y[None]) & same
    below = above.T
    theirs = _signs(x) * same
    untied = np.sqrt(np.abs(theirs).sum(dtype=np.float64) * 2 * above.sum())
    order = np.unique(x, return_inverse=True)[1].astype(np.int32)
    members = [np.flatnonzero(blocks == block) for block in np.unique(blocks)]
    found = np.empty(draws)
    for i in range(draws):
        shuffled = order.copy()
        for at in members:
            shuffled[at] = random.permutation(order[at])
        larger = shuffled[:, None] > shuffled[None]
        found[i] = 2 * (np.count_nonzero(larger & above) - np.count_nonzero(larger & below))
    return found / max(untied, 1e-300)
