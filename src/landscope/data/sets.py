"""What all data sets share: the sets of one run, random streams, splits and label noise.

Everything random comes from `stream`, one stream for each purpose, so that a changed size or noise level leaves the
draws for every other purpose as they were.
"""

import functools
import hashlib
import heapq
import html
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from landscope.types import Batches

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Data:
    """The sets that a run is trained, tuned and tested on, held in memory.

    Args:
        train: The training set.
        valid: The validation set, or None: everything that is chosen is chosen on it.
        test: The test set, or None.
        outputs: The number of classes, or of values to be predicted.
        task: ``"classification"`` (targets int64, shape ``[n]``) or ``"regression"`` (float32, ``[n, outputs]``).
    """

    train: Batches
    valid: Batches | None
    test: Batches | None
    outputs: int
    task: str

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return tuple(self.train.inputs.shape[1:])

    def to(self, device: "torch.device | str") -> "Data":
        """The same sets on another device."""
        valid, test = (part.to(device) if part is not None else None for part in (self.valid, self.test))
        return Data(self.train.to(device), valid, test, self.outputs, self.task)

    def __repr__(self) -> str:
        """Sizes and shapes."""
        parts = (("training", self.train), ("validation", self.valid), ("test", self.test))
        sizes = ", ".join(f"{part.n:,} {name}" for name, part in parts if part is not None)
        return f"Data for {self.task}: {sizes} samples of shape {self.shape}, {self.outputs} outputs"

    def _repr_html_(self) -> str:
        return f"<code>{html.escape(repr(self))}</code>"


def stream(seed: int, purpose: str) -> np.random.Generator:
    """The random numbers for one purpose: independent of those of every other purpose and seed.

    PCG64 on ``SeedSequence(seed, spawn_key=w)``, w = the eight 32-bit words (little-endian) of the purpose's SHA-256.

    >>> bool((stream(0, "noise").random(3) == stream(0, "noise").random(5)[:3]).all())
    True
    """
    if seed < 0:
        raise ValueError(f"a seed is a whole number from 0, not {seed}")
    words = np.frombuffer(hashlib.sha256(purpose.encode()).digest(), dtype="<u4")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=tuple(int(w) for w in words))))


def interleaved(indices: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The same indices, each class's in the order given, arranged so that every stretch from either end is stratified.

    Among the first m (and among the last m) every class differs from its share, m times its part of the whole, by less
    than 1 sample. The arrangement depends on the class counts alone (Tijdeman, "The chairman assignment problem",
    Discrete Mathematics 32, 1980: every class takes its turn after its release and by its deadline).

    Args:
        indices: Shape ``[n]``, positions in ``labels``.
        labels: Shape ``[N]``, class indices.

    >>> interleaved(np.arange(6), np.array([0, 0, 0, 0, 1, 1]))
    array([0, 4, 1, 2, 5, 3])
    """
    _, which, counts = np.unique(labels[indices], return_inverse=True, return_counts=True)
    arranged = np.empty_like(indices)
    arranged[np.argsort(_turns(tuple(counts.tolist())), kind="stable")] = indices[np.argsort(which, kind="stable")]
    return arranged


@functools.lru_cache(maxsize=16)
def _turns(counts: tuple[int, ...]) -> np.ndarray:
    total, scale = sum(counts), max(2 * len(counts) - 2, 1)
    kind = np.repeat(np.arange(len(counts)), counts)
    turn = np.concatenate([np.arange(count) for count in counts]) if counts else np.zeros(0, int)
    size = np.asarray(counts, dtype=np.int64)[kind]
    release = -(-(turn * scale + 1) * total // (scale * size))
    deadline = ((turn + 1) * scale - 1) / size
    coming, ready, turns = np.argsort(release, kind="stable").tolist(), [], []
    place = 0
    for now in range(1, total + 1):
        while place < total and release[coming[place]] <= now:
            heapq.heappush(ready, (deadline[coming[place]], coming[place]))
            place += 1
        turns.append(kind[heapq.heappop(ready)[1]])
    return np.asarray(turns, dtype=np.int64)


def stratified_split(
    seed: int, labels: np.ndarray, *, train: int | None, valid: int, test: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Disjoint training, validation and test indices, all redrawn by the seed.

    Each set holds every class to within one sample of its share of what the set is drawn from: the test set of all
    samples, the other two of those that are not test samples. With the same seed a smaller training (validation) set
    is the beginning (the end) of a larger one, and the sizes of these two do not affect each other.

    Args:
        seed: Draws the split.
        labels: Shape ``[n]``.
        train: Training samples; None takes all that the others leave.
        valid: Validation samples.
        test: Test samples.

    Raises:
        ValueError: for sizes that cannot be drawn.
    """
    n = len(labels)
    train = n - valid - test if train is None else train
    if valid < 0 or test < 0 or train < 1 or train + valid + test > n:
        raise ValueError(
            f"cannot draw {train:,} training, {valid:,} validation and {test:,} test samples from {n:,}: "
            f"give sizes from 0 (training from 1) that add up to at most {n:,}"
        )
    order = interleaved(stream(seed, "split").permutation(n), labels)
    rest = interleaved(order[: n - test], labels)
    return rest[:train], rest[len(rest) - valid :], order[n - test :]


def with_label_noise(seed: int, labels: np.ndarray, places: np.ndarray, *, fraction: float, classes: int) -> np.ndarray:
    """The labels with round(fraction * n) of them, chosen by the seed, redrawn uniformly over *all* classes.

    A redrawn label is the old one with probability 1 / classes, so that ``fraction * (1 - 1 / classes)`` of them are
    wrong in expectation; ``fraction=1`` gives random labels. A sample's draws depend on its place alone, and what is
    redrawn at one fraction is redrawn alike at every larger one.

    Args:
        seed: Draws which labels are redrawn, and the new ones.
        labels: Shape ``[n]``.
        places: Shape ``[n]``: where each sample stands in the set that it was drawn from.
        fraction: From 0 to 1.
        classes: The number of classes.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"label_noise is the fraction of labels to redraw, from 0 to 1, not {fraction}")
    if fraction == 0 or not len(labels):
        return labels
    rng, most = stream(seed, "label noise"), int(places.max()) + 1
    draws = rng.random((most, 2))[places]  # a row for each place: more places leave the earlier rows as they are
    chosen = np.argsort(draws[:, 0], kind="stable")[: round(fraction * len(labels))]
    noisy = labels.copy()
    noisy[chosen] = np.minimum((draws[chosen, 1] * classes).astype(labels.dtype), classes - 1)
    return noisy


def batches(inputs: np.ndarray, targets: np.ndarray) -> Batches | None:
    """Arrays as tensors ready for a network (float32; int64 for class indices); None where there are no samples."""
    import torch

    if not len(inputs):
        return None
    kind = np.int64 if targets.ndim == 1 else np.float32
    return Batches(
        torch.from_numpy(np.array(inputs, dtype=np.float32, order="C")),
        torch.from_numpy(np.array(targets, dtype=kind, order="C")),
    )


def gathered(train: Batches | None, valid: Batches | None, test: Batches | None, *, outputs: int, task: str) -> Data:
    """The sets as Data; a training set is needed."""
    if train is None:
        raise ValueError("a training set needs at least one sample: give train=1 or more")
    return Data(train, valid, test, outputs, task)


def check_sizes(**sizes: int) -> None:
    """Refuse sizes below 0, and an empty training set."""
    wrong = {name: size for name, size in sizes.items() if size < (name == "train")}
    if wrong:
        raise ValueError(f"sizes are whole numbers from 0 (train from 1), not {wrong}")
