"""Data sets by name or folder, as tensors held in memory: images, scikit-learn's small sets, generated ones.

A data set is named by what is in it: image files are hashed, decoded once and kept under their content's hash in a
cache, so that a run's specification holds no path and any process that shares the cache finds the same pixels.
"""

import contextlib
import difflib
import functools
import hashlib
import html
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from landscope import files
from landscope.decoding import Progress, decoded
from landscope.generated import Data as Data
from landscope.generated import batches, gathered, interleaved, stratified_split, with_label_noise
from landscope.generated import mnist1d as mnist1d
from landscope.generated import noisy_polynomial as noisy_polynomial
from landscope.generated import polynomial as polynomial
from landscope.generated import rings as rings
from landscope.generated import stream as stream
from landscope.generated import swiss_roll as swiss_roll
from landscope.generated import swiss_roll_points as swiss_roll_points
from landscope.spec import Call, call, canonical, from_canonical, resolve
from landscope.types import Batches

if TYPE_CHECKING:
    from torch import Tensor

HUB = {
    "mnist": "ylecun/mnist",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "svhn": "ufldl-stanford/svhn/cropped_digits",
}
_CONTENT = re.compile(r"[0-9a-f]{16}")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_EXPECTED = (
    "expected Parquet files as the Hugging Face hub holds them, train-00000-of-00001.parquet and "
    "test-00000-of-00001.parquet, with a column of images (bytes and path) and a column of whole-number labels"
)


@dataclass(frozen=True)
class Source:
    """A data set that has been found.

    Args:
        name: What it is called, for people.
        call: Draws it: ``call(seed, cache) -> Data``. It holds no path.
        shape: The shape of one input.
        outputs: The number of classes, or of values to be predicted.
        task: ``"classification"`` or ``"regression"``.
        n_train: How many samples training and validation sets are drawn from (for generated sets: their default sum).
        n_test: How many test samples there are (by default).
        content: The hash of its files, 16 hexadecimal digits; None for sets that need no files.
        note: What was decided about it and has to be said, such as a test set taken from the training images.
    """

    name: str
    call: Call
    shape: tuple[int, ...]
    outputs: int
    task: str
    n_train: int
    n_test: int
    content: str | None = None
    note: str = ""

    def draw(self, **settings: Any) -> Call:
        """The call with more settings bound: sizes (train, valid, test), label_noise and so on.

        >>> find("digits", Path("cache")).draw(train=500, label_noise=0.1)
        digits(label_noise=0.1, test=360, train=500, valid=180)
        """
        return call(resolve(self.call.target), **(dict(self.call.kwargs) | settings))

    def to_json(self) -> dict[str, Any]:
        """JSON values that `from_json` reads."""
        return asdict(self) | {"call": canonical(self.call), "shape": list(self.shape)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Source":
        """The source that `to_json` was given."""
        try:
            read = from_canonical(value["call"])
            # A store may come from elsewhere: what it names must not run, imported or reached through a module.
            if read.target.rpartition(".")[0] not in (__name__, mnist1d.__module__):
                raise ValueError(f"not a data source of Landscope's: {read.target!r}")
            bound = call(resolve(read.target), **dict(read.kwargs))  # JSON does not tell 1.0 from 1, annotations do
            return cls(**(dict(value) | {"call": bound, "shape": tuple(value["shape"])}))
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not a data source of Landscope's: {error}") from error

    def __repr__(self) -> str:
        """Name, sizes and shape."""
        note = f" ({self.note})" if self.note else ""
        return (
            f"{self.name}: {self.n_train:,} training and {self.n_test:,} test samples of shape {self.shape}, "
            f"{self.outputs} {'classes' if self.task == 'classification' else 'outputs'}{note}"
        )

    def _repr_html_(self) -> str:
        return f"<code>{html.escape(repr(self))}</code>"


# --- finding ------------------------------------------------------------------------------------------------------


def _embedded() -> dict[str, tuple[str, Source]]:
    sets = (
        ("scikit-learn's 1,797 digits, 8x8", Source("digits", call(digits), (64,), 10, "classification", 1437, 360)),
        (
            "569 tumours, 30 measurements, benign or malignant",
            Source("breast_cancer", call(breast_cancer), (30,), 2, "classification", 455, 114),
        ),
        ("40 values a sample, 10 classes", Source("mnist1d", call(mnist1d), (40,), 10, "classification", 5000, 1000)),
        ("two noisy spirals", Source("swiss_roll", call(swiss_roll), (2,), 2, "classification", 200, 200)),
        (
            "two exact spirals; the validation set is the poison set of Huang et al.'s Figure 1",
            Source(
                "minefield",
                call(swiss_roll, variant="minefield", noise=0.0, train=132, valid=134, test=134),
                *((2,), 2, "classification", 266, 134),
            ),
        ),
        (
            "rings that leave no margin",
            Source("rings", call(rings, test=1300), (2,), 2, "classification", 130, 1300),
        ),
        (
            "a quadratic or piecewise cubic function with noise",
            Source("noisy_polynomial", call(noisy_polynomial), (1,), 1, "regression", 200, 100),
        ),
    )
    return {source.name: (line, source) for line, source in sets}


def names() -> dict[str, str]:
    """The data sets that have a name of their own, with one line each; any other is a folder or a hub name."""
    own = {name: line for name, (line, _) in _embedded().items()}
    return own | {name: f"{hub} on the Hugging Face hub, or a folder with it" for name, hub in HUB.items()}


def find(name_or_folder: str, cache: Path, *, progress: Progress | None = None) -> Source:
    """Find a data set, hash its files, and decode them into the cache unless they are there already.

    A name of `names` comes first, then an existing folder (which never asks the network), then the Hugging Face hub:
    ``owner/name``, or ``owner/name/folder`` where the set comes in several configurations. What a hub name stood for is
    remembered in the cache, so that it is asked for once. Nothing is written into the folder or the home folder.

    Args:
        name_or_folder: As given by the user.
        cache: Decoded images are kept in ``cache/data/<content>.safetensors``.
        progress: Called with (images decoded, images in all) every thousand or so.

    Raises:
        LookupError: for a name that stands for nothing, with the nearest that does.
        ValueError: for a folder or file that is no image data set, naming file and row.
        OSError: where files cannot be read, or the hub not be reached.
    """
    known = _embedded().get(name_or_folder)
    if known is not None:
        return known[1]
    if os.path.isdir(name_or_folder):
        folder = Path(name_or_folder)
        return _found(folder.resolve().name or str(folder), folder, cache, progress)
    if os.path.lexists(name_or_folder):
        raise ValueError(f"{name_or_folder!r} is no folder: give the folder that holds the data set; {_EXPECTED}")
    hub = HUB.get(name_or_folder, name_or_folder)
    if not _HUB_NAME.fullmatch(hub):
        raise LookupError(_unknown(name_or_folder))
    return _from_hub(name_or_folder, hub, cache, progress)


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name.lower(), [*names(), *HUB.values()], n=1, cutoff=0.6)
    return (
        f"{name!r} is neither a folder here nor a data set that is known"
        + (f"; did you mean {near[0]!r}?" if near else "")
        + f" Known: {', '.join(names())}; or give a folder, or a hub name as owner/name"
    )


def _from_hub(name: str, hub: str, cache: Path, progress: Progress | None) -> Source:
    place = files.folder(cache, "data")
    try:
        remembered = files.read_sealed(place / "hub.json")
        return _source(name, remembered[hub], _read(_file(cache, remembered[hub])))
    except (FileNotFoundError, files.Damaged, KeyError, TypeError):
        remembered = {}
    with tempfile.TemporaryDirectory(prefix=".download-", dir=place) as temporary:
        _download(hub, Path(temporary))
        source = _found(name, Path(temporary), cache, progress)
    try:
        remembered = files.read_sealed(place / "hub.json")
    except (FileNotFoundError, files.Damaged):
        remembered = {}
    files.publish(place / "hub.json", files.seal(remembered | {hub: source.content}))
    return source


def _download(hub: str, folder: Path) -> None:
    owner, name, *inside = hub.split("/")
    patterns = [f"{inside[0]}/*.parquet"] if inside else ["*.parquet"]
    with _quietly():
        from huggingface_hub import snapshot_download

        try:
            # Sets that are not kept as Parquet have been converted by the hub, on a branch of its own.
            for revision in (None, "refs/convert/parquet"):
                snapshot_download(
                    f"{owner}/{name}", repo_type="dataset", revision=revision, local_dir=folder, allow_patterns=patterns
                )
                if next(folder.rglob("*.parquet"), None):
                    return
        except Exception as error:  # the hub's own errors are many: not found, gated, offline, time-out
            near = difflib.get_close_matches(hub, HUB.values(), n=1, cutoff=0.6)
            raise ConnectionError(
                f"{hub!r} could not be had from the Hugging Face hub ({type(error).__name__}): check the name"
                + (f" (did you mean {near[0]!r}?)" if near and near[0] != hub else "")
                + " and the network, or give a folder that holds the data set"
            ) from error
    raise ValueError(f"{hub!r} on the Hugging Face hub holds no Parquet files; {_EXPECTED}")


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """No telemetry, progress bars or further caches, for libraries that read these settings as they are imported."""
    settings = ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_XET")
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(dict.fromkeys(settings, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _found(name: str, folder: Path, cache: Path, progress: Progress | None) -> Source:
    if not any(next(folder.glob(pattern), None) for pattern in ("*.parquet", "*/*.parquet", "*/*/*.parquet")):
        raise ValueError(f"the folder {str(folder)!r} holds no data set: {_EXPECTED}")
    splits, note = _splits(folder)
    digest = hashlib.sha256(b"landscope images 1\n")
    for split, paths in splits.items():
        for path in paths:
            digest.update(f"{split} {_file_hash(path)}\n".encode())
    content = digest.hexdigest()[:16]
    with contextlib.suppress(FileNotFoundError, files.Damaged):
        return _source(name, content, _read(_file(cache, content)), note)
    tensors, outputs = decoded(splits, folder, progress)
    files.folder(cache, "data")
    files.publish(
        _file(cache, content), files.tensor_bytes(tensors, {"content": content, "outputs": outputs, "note": note})
    )
    return _source(name, content, _read(_file(cache, content)), note)


def _splits(folder: Path) -> tuple[dict[str, list[Path]], str]:
    """The files of the training and test splits, as the hub's own rules on file names have it."""
    with _quietly():
        from datasets.data_files import EmptyDatasetError, get_data_patterns, resolve_pattern

    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary) / "source"  # a plain name: the rules are globs, which the user's name may upset
        base.symlink_to(folder.resolve(), target_is_directory=True)
        found: dict[str, set[Path]] = {}
        with contextlib.suppress(EmptyDatasetError):
            for split, patterns in get_data_patterns(str(base)).items():
                for pattern in patterns:
                    with contextlib.suppress(FileNotFoundError):  # a split has several, most match nothing
                        for path in resolve_pattern(pattern, str(base), allowed_extensions=[".parquet"]):
                            found.setdefault(str(split), set()).add(folder / Path(path).relative_to(base))
    splits = {split: sorted(paths) for split, paths in found.items()}
    if not splits.get("train"):
        raise ValueError(f"the folder {str(folder)!r} has no training split; {_EXPECTED}")
    if "test" in splits:
        left = [split for split in splits if split not in ("train", "test")]
        note = f"not used: the split {', '.join(left)}" if left else ""
        return {split: splits[split] for split in ("train", "test")}, note
    if "validation" in splits:
        return {"train": splits["train"], "test": splits["validation"]}, "the validation split serves as test set"
    return {"train": splits["train"]}, "no test split: a fifth of the training images, drawn by the seed, is held out"


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            raise ValueError(
                f"{path} is only a pointer of Git LFS, not the data: fetch it (git lfs pull) and give the folder again"
            )
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- the cache ----------------------------------------------------------------------------------------------------


def _file(cache: Path, content: str) -> Path:
    if not _CONTENT.fullmatch(content):
        raise ValueError(f"content is the 16 hexadecimal digits that name a decoded data set, not {content!r}")
    return cache / "data" / f"{content}.safetensors"


def _read(path: Path) -> tuple[dict[str, "Tensor"], Mapping[str, Any]]:
    tensors, meta = files.read_tensors(path)
    if meta.get("content") != path.stem:
        raise files.Damaged(path, "holds another data set than its name says")
    return tensors, meta


@functools.lru_cache(maxsize=2)
def _held(path: Path) -> tuple[dict[str, "Tensor"], Mapping[str, Any]]:
    try:
        return _read(path)
    except (FileNotFoundError, files.Damaged) as error:
        what = "not in the cache" if isinstance(error, FileNotFoundError) else "damaged in the cache"
        raise FileNotFoundError(
            f"the decoded images {path.stem} are {what} ({path}): "
            "give --data FOLDER (or its hub name) again, and they are decoded anew"
        ) from error


def _source(
    name: str, content: str, held: tuple[dict[str, "Tensor"], Mapping[str, Any]], note: str | None = None
) -> Source:
    tensors, meta = held
    said = str(meta["note"]) if note is None else note
    n, n_test = len(tensors["train_labels"]), len(tensors.get("test_labels", ()))
    if not n_test:
        n, n_test = n - n // 5, n // 5
    shape = tuple(tensors["train_inputs"].shape[1:])
    bound = call(images, content=content)
    return Source(name, bound, shape, meta["outputs"], "classification", n, n_test, content, said)


# --- drawing ------------------------------------------------------------------------------------------------------


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
    held, meta = _held(_file(Path(cache), content))
    outputs, labels = int(meta["outputs"]), held["train_labels"].numpy()
    where, n_test = "test", 0
    if "test_labels" not in held:
        where, n_test = "train", len(labels) // 5 if test is None else test
    chosen = stratified_split(seed, labels, train=train, valid=valid, test=n_test)
    if where == "test":
        chosen = (*chosen[:2], _of_test(seed, held["test_labels"].numpy(), test))
    noisy = with_label_noise(seed, labels[chosen[0]], chosen[0], fraction=label_noise, classes=outputs)
    scale = _normalisation(held["train_inputs"], chosen[0], mean, std)
    sets = []
    for split, places in zip(("train", "train", where), chosen, strict=True):
        targets = held[f"{split}_labels"].numpy()[places] if sets else noisy
        sets.append(_normalised(held[f"{split}_inputs"], places, targets, *scale))
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
    from sklearn.datasets import load_digits

    inputs, labels = (np.asarray(part) for part in load_digits(return_X_y=True))
    parts = stratified_split(seed, labels, train=train, valid=valid, test=test)
    return _tabular(seed, inputs / 16, labels, parts, label_noise, outputs=10)


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
