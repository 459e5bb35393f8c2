"""Finding data sets: by a name of their own, in a folder, or on the Hugging Face hub."""

import contextlib
import difflib
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscope import files
from landscope.data.cache import cached, read
from landscope.data.decoding import Progress, decoded
from landscope.data.generated import mnist1d, noisy_polynomial, rings, swiss_roll, two_scales
from landscope.data.sources import Source
from landscope.data.stored import breast_cancer, digits, images
from landscope.spec import call

if TYPE_CHECKING:
    from torch import Tensor


HUB = {
    "mnist": "ylecun/mnist",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "svhn": "ufldl-stanford/svhn/cropped_digits",
}
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_EXPECTED = (
    "expected Parquet files as the Hugging Face hub holds them, train-00000-of-00001.parquet and "
    "test-00000-of-00001.parquet, with a column of images (bytes and path) and a column of whole-number labels"
)


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
        (
            "linear regression on features of two scales",
            Source("two_scales", call(two_scales), (50,), 1, "regression", 200, 2000),
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
    check_name(name_or_folder)
    return _from_hub(name_or_folder, HUB.get(name_or_folder, name_or_folder), cache, progress)


def check_name(name_or_folder: str) -> None:
    """Refuse what is neither a name of `names`, a folder, nor spelled like a set on the hub; nothing is read.

    Raises:
        LookupError: for a name that stands for nothing, with the nearest that does.
        ValueError: for a file.
    """
    if name_or_folder in names() or os.path.isdir(name_or_folder):
        return
    if os.path.lexists(name_or_folder):
        raise ValueError(f"{name_or_folder!r} is no folder: give the folder that holds the data set; {_EXPECTED}")
    if not _HUB_NAME.fullmatch(name_or_folder):
        raise LookupError(_unknown(name_or_folder))


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name.lower(), [*names(), *HUB.values()], n=1, cutoff=0.6)
    return (
        f"{name!r} is neither a folder here nor a data set that is known"
        + (f"; did you mean {near[0]!r}?" if near else ".")
        + f" Known: {', '.join(names())}; or give a folder, or a hub name as owner/name"
    )


def _from_hub(name: str, hub: str, cache: Path, progress: Progress | None) -> Source:
    place = files.folder(cache, "data")
    try:
        remembered = files.read_sealed(place / "hub.json")
        return _source(name, remembered[hub], read(cached(cache, remembered[hub])))
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


def content_of(folder: Path) -> str:
    """The `Source.content` of a folder, by its files' bytes alone: a renamed copy has the same. Nothing is decoded.

    Raises:
        ValueError: where the folder holds no data set.
        OSError: where files cannot be read.
    """
    return _content(_splits(folder)[0])


def _content(splits: Mapping[str, list[Path]]) -> str:
    digest = hashlib.sha256(b"landscope images 1\n")
    for split, paths in splits.items():
        for path in paths:
            digest.update(f"{split} {_file_hash(path)}\n".encode())
    return digest.hexdigest()[:16]


def _found(name: str, folder: Path, cache: Path, progress: Progress | None) -> Source:
    if not any(next(folder.glob(pattern), None) for pattern in ("*.parquet", "*/*.parquet", "*/*/*.parquet")):
        raise ValueError(f"the folder {str(folder)!r} holds no data set: {_EXPECTED}")
    splits, note = _splits(folder)
    content = _content(splits)
    with contextlib.suppress(FileNotFoundError, files.Damaged):
        return _source(name, content, read(cached(cache, content)), note)
    tensors, outputs = decoded(splits, folder, progress)
    files.folder(cache, "data")
    files.publish(
        cached(cache, content), files.tensor_bytes(tensors, {"content": content, "outputs": outputs, "note": note})
    )
    return _source(name, content, read(cached(cache, content)), note)


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
