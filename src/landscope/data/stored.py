"""Data sets that are read: images that `find` has decoded, and scikit-learn's small tables."""

import functools
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from landscope.data.cache import cached, held
from landscope.data.sets import Data, batches, gathered, interleaved, stratified_split, stream, with_label_noise
from landscope.types import Batches

if TYPE_CHECKING:
    from torch import Tensor


def images(
    seed: int,
    cache: Path | None,
    /,
    *,
    content: str,
    train: int | None = None,
    valid: int = 0,
    test: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    label_noise: float = 0.0,
) -> Data:
    """Images that `find` has decoded: inputs ``[n, channels, h, w]``, (pixel / 255 - mean) / std channel by channel.

    The seed draws all subsets, stratified (`stratified_split`, also for what "smaller" and "larger" sets share).
    Training and validation images are disjoint and come from the training split, test images from the test split;
    where there is none, test images are held out of the training split too, a fifth of it by default.

    Args:
        seed: Draws subsets and label noise.
        cache: The folder that `find` decoded into.
        content: Which data set: `Source.content`.
        train: Training images; None takes all that the others leave.
        valid: Validation images.
        test: Test images; None takes the whole test split, in its order.
        mean: For each channel, on the scale from 0 to 1; None computes it over the training images drawn.
        std: Likewise, over all their pixels (divided by n; 1 for a constant channel).
        label_noise: Fraction of training labels redrawn, see `with_label_noise`.

    Raises:
        FileNotFoundError: where the decoded images are not in the cache, or damaged there.
        ValueError: for sizes that there are not enough images for, or a normalisation that does not fit.
    """
    if cache is None:
        raise ValueError("images are read from a cache: call images(seed, cache, content=...) with find's cache folder")
    tensors, meta = held(cached(Path(cache), content))
    outputs, labels = int(meta["outputs"]), tensors["train_labels"].numpy()
    where, n_test = "test", 0
    if "test_labels" not in tensors:
        where, n_test = "train", len(labels) // 5 if test is None else test
    chosen = stratified_split(seed, labels, train=train, valid=valid, test=n_test)
    if where == "test":
        chosen = (*chosen[:2], _of_test(seed, tensors["test_labels"].numpy(), test))
    noisy = with_label_noise(seed, labels[chosen[0]], chosen[0], fraction=label_noise, classes=outputs)
    scale = _normalisation(tensors["train_inputs"], chosen[0], mean, std)
    sets = []
    for split, places in zip(("train", "train", where), chosen, strict=True):
        targets = tensors[f"{split}_labels"].numpy()[places] if sets else noisy
        sets.append(_normalised(tensors[f"{split}_inputs"], places, targets, *scale))
    return gathered(*sets, outputs=outputs, task="classification")


def _of_test(seed: int, labels: np.ndarray, size: int | None) -> np.ndarray:
    if size is None:
        return np.arange(len(labels))
    if not 0 <= size <= len(labels):
        raise ValueError(f"cannot draw test={size:,} images: the test split has {len(labels):,}")
    return interleaved(stream(seed, "test images").permutation(len(labels)), labels)[:size]


def _normalisation(
    pixels: "Tensor", places: np.ndarray, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> tuple[np.ndarray, np.ndarray]:
    channels = pixels.shape[1]
    if (mean is None) != (std is None):
        raise ValueError("give both mean and std, or neither")
    if mean is not None and std is not None:
        if len(mean) != channels or len(std) != channels or min(std) <= 0:
            raise ValueError(
                f"mean and std need {channels} values, one for each channel, and every std lies above 0; "
                f"not {mean} and {std}"
            )
        return np.asarray(mean), np.asarray(std)
    counts = np.zeros((channels, 256), dtype=np.int64)  # sums over counts of byte values are exact
    source = pixels.numpy()
    for some in np.array_split(places, -(-len(places) // 4096)):
        drawn = source[some]
        for channel in range(channels):
            counts[channel] += np.bincount(drawn[:, channel].ravel(), minlength=256)
    level = np.arange(256) / 255
    average = counts @ level / counts.sum(1)
    sd = np.sqrt((counts * (level - average[:, None]) ** 2).sum(1) / counts.sum(1))
    return average, np.where(sd > 0, sd, 1.0)


def _normalised(
    pixels: "Tensor", places: np.ndarray, targets: np.ndarray, mean: np.ndarray, std: np.ndarray
) -> Batches | None:
    import torch

    if not len(places):
        return None
    inputs = pixels[torch.from_numpy(places)].to(torch.float32)
    shift, scale = (torch.from_numpy(255 * v).to(torch.float32)[:, None, None] for v in (mean, std))
    return Batches(inputs.sub_(shift).div_(scale), torch.from_numpy(targets.astype(np.int64)))


def digits(
    seed: int,
    cache: Path | None = None,
    /,
    *,
    train: int | None = None,
    valid: int = 180,
    test: int = 360,
    label_noise: float = 0.0,
) -> Data:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey levels from 0 to 16, flattened and divided by 16.

    The seed redraws the whole stratified split (`stratified_split`); no statistics of the data enter the inputs.

    Args:
        seed: Draws split and label noise.
        cache: Not used.
        train: Training samples; None takes all that the others leave: 1,257 with the defaults.
        valid: Validation samples.
        test: Test samples.
        label_noise: Fraction of training labels redrawn, see `with_label_noise`.

    >>> digits(0)
    Data for classification: 1,257 training, 180 validation, 360 test samples of shape (64,), 10 outputs
    """
    inputs, labels = _digits()
    parts = stratified_split(seed, labels, train=train, valid=valid, test=test)
    return _tabular(seed, inputs / 16, labels, parts, label_noise, outputs=10)


@functools.lru_cache(maxsize=1)
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """What `load_digits` gives, read from scikit-learn's file: importing scikit-learn costs every process seconds."""
    found = importlib.util.find_spec("sklearn")
    path = Path((found and found.origin) or "").parent / "datasets" / "data" / "digits.csv.gz"
    if not path.is_file():  # it lies elsewhere in this version
        from sklearn.datasets import load_digits

        inputs, labels = (np.asarray(part) for part in load_digits(return_X_y=True))
        return inputs, labels
    table = np.loadtxt(path, delimiter=",")
    return table[:, :-1], table[:, -1].astype(np.int64)


def breast_cancer(
    seed: int,
    cache: Path | None = None,
    /,
    *,
    train: int | None = None,
    valid: int = 57,
    test: int = 114,
    label_noise: float = 0.0,
) -> Data:
    """The Wisconsin breast cancer set: 569 tumours (0 malignant, 1 benign), 30 measurements, from scikit-learn.

    Every measurement is standardised by mean and standard deviation (divided by n) of the training samples.

    Args:
        seed: Draws split and label noise.
        cache: Not used.
        train: Training samples; None takes all that the others leave: 398 with the defaults.
        valid: Validation samples.
        test: Test samples.
        label_noise: Fraction of training labels redrawn, see `with_label_noise`.

    >>> breast_cancer(0)
    Data for classification: 398 training, 57 validation, 114 test samples of shape (30,), 2 outputs
    """
    from sklearn.datasets import load_breast_cancer

    inputs, labels = (np.asarray(part) for part in load_breast_cancer(return_X_y=True))
    parts = stratified_split(seed, labels, train=train, valid=valid, test=test)
    sd = inputs[parts[0]].std(0)
    standard = (inputs - inputs[parts[0]].mean(0)) / np.where(sd > 0, sd, 1.0)
    return _tabular(seed, standard, labels, parts, label_noise, outputs=2)


def _tabular(
    seed: int, inputs: np.ndarray, labels: np.ndarray, parts: tuple[np.ndarray, ...], label_noise: float, outputs: int
) -> Data:
    noisy = with_label_noise(seed, labels[parts[0]], parts[0], fraction=label_noise, classes=outputs)
    train, valid, test = (batches(inputs[part], labels[part]) for part in parts)
    return gathered(train and batches(inputs[parts[0]], noisy), valid, test, outputs=outputs, task="classification")
