"""Data sets by name or folder, as tensors held in memory: images, scikit-learn's small sets, generated ones.

A data set is named by what is in it: image files are hashed, decoded once and kept under their content's hash in a
cache, so that a run's specification holds no path and any process that shares the cache finds the same pixels.
"""

from typing import TYPE_CHECKING, Any

from landscope.data.decoding import Progress
from landscope.data.finding import HUB, content_of, find, names
from landscope.data.generated import (
    mnist1d,
    noisy_polynomial,
    polynomial,
    rings,
    swiss_roll,
    swiss_roll_points,
    two_scales,
)
from landscope.data.sets import Data, interleaved, stratified_split, stream, with_label_noise
from landscope.data.sources import Source
from landscope.data.stored import breast_cancer, digits, images

if TYPE_CHECKING:
    from landscope.data.augmentation import crop_and_flip, normalise

__all__ = [
    "HUB",
    "Data",
    "Progress",
    "Source",
    "breast_cancer",
    "content_of",
    "crop_and_flip",
    "digits",
    "find",
    "images",
    "interleaved",
    "mnist1d",
    "names",
    "noisy_polynomial",
    "normalise",
    "polynomial",
    "rings",
    "stratified_split",
    "stream",
    "swiss_roll",
    "swiss_roll_points",
    "two_scales",
    "with_label_noise",
]


def __getattr__(name: str) -> Any:
    if name in ("crop_and_flip", "normalise"):  # on use: they import PyTorch
        from landscope.data import augmentation

        return getattr(augmentation, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
