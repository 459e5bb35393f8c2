"""What is to be measured, and whether it can be: told before anything heavy is imported."""

import importlib.util
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import landscope.measures as all_measures
from landscope.data.finding import check_name
from landscope.files import check_place

LOSSES = ("cross_entropy", "squared_error")
PICKLE = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")
LFS_POINTER = b"version "
LARGEST_HEADER = 100 * 2**20


@dataclass(frozen=True)
class Wanted:
    """What is to be measured, on what, and where the results go: the options of ``landscope measure``.

    Args:
        checkpoint: A safetensors file with the state dict.
        factory: ``package.module:factory``, which returns the module.
        data: A data set's name or folder.
        loss: ``"cross_entropy"`` or ``"squared_error"``.
        measures: Names of measures or topics; none means all.
        seed: Draws the data split.
        train: Training samples, None for the data set's own.
        out: The page; None: beside the checkpoint.
        json: A file for the values, ``"-"`` for standard output, None for neither.
        cache: Where decoded data are kept.
        device: Where to compute.
    """

    checkpoint: Path
    factory: str
    data: str
    loss: str = "cross_entropy"
    measures: Sequence[str] = ()
    seed: int = 0
    train: int | None = None
    out: Path | None = None
    json: str | None = None
    cache: Path = Path("runs/.cache")
    device: str = "cpu"

    @property
    def command(self) -> str:
        """What measures this again."""
        words = ["landscope", "measure", self.checkpoint.name, "--model", self.factory, "--data", self.data]
        words += ["--loss", self.loss, "--seed", str(self.seed)]
        words += ["--train", str(self.train)] if self.train is not None else []
        return shlex.join([*words, *(["--measures", ",".join(self.measures)] if self.measures else [])])

    @property
    def page(self) -> Path:
        """Where the page goes."""
        return self.out or self.checkpoint.with_suffix(".html")

    def check(self) -> None:
        """Refuse what cannot be measured or written, as far as it shows without PyTorch: in a moment.

        Raises:
            FileNotFoundError, ValueError: for the checkpoint, see `check_file`, and options out of range.
            LookupError, ImportError: for a data set, measure or module that does not exist.
        """
        if self.loss not in LOSSES:
            raise ValueError(f"--loss is {' or '.join(LOSSES)}, not {self.loss!r}")
        for option, value, least in (("--train", self.train, 1), ("--seed", self.seed, 0)):
            if value is not None and value < least:
                raise ValueError(f"{option} is at least {least}, not {value}")
        all_measures.expanded(self.measures)
        check_file(self.checkpoint)
        check_factory(self.factory)
        check_name(self.data)
        check_place("--out", self.page, "an HTML file")
        if self.json not in (None, "-"):
            check_place("--json", Path(self.json), "a JSON file, or -,")  # type: ignore[arg-type]


def listed(measures: Sequence[str] | None) -> list[str]:
    """The names that ``--measures``, repeated or separated by commas, gives; none where it is not given.

    >>> listed(["spectrum, performance", "sam_sharpness"]), listed(None)
    (['spectrum', 'performance', 'sam_sharpness'], [])
    """
    names = [name.strip() for item in measures or () for name in item.split(",") if name.strip()]
    if measures and not names:
        raise ValueError("--measures names none: give measures or topics, or leave it out to take all")
    return names


def check_file(path: Path) -> None:
    """Refuse what cannot be a safetensors file, by its first bytes.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: for a pickle checkpoint, a pointer of Git LFS, or a damaged file.
    """
    if not os.path.lexists(path):
        raise FileNotFoundError(f"there is no checkpoint {path}")
    if not path.is_file():  # a folder, a pipe or a device, which might never end
        raise ValueError(f"{path} is not a regular file; a checkpoint is a safetensors file")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
    if start.startswith(PICKLE):
        raise ValueError(
            f"{path} is a pickle checkpoint (torch.save), which can run any code when it is read, and is refused: "
            "save it anew with safetensors.torch.save_model(model, 'network.safetensors') where you trust it"
        )
    if start == LFS_POINTER:
        raise ValueError(f"{path} is only a pointer of Git LFS, not the checkpoint: fetch it (git lfs pull)")
    header = int.from_bytes(start, "little")
    if len(start) < 8 or header > min(size - 8, LARGEST_HEADER):
        raise ValueError(f"{path} is not a safetensors file, or it was cut off: save it with safetensors.torch")


def check_factory(factory: str) -> tuple[str, str]:
    """The module and the name in it that ``package.module:factory`` stands for; the working directory is importable.

    Nothing is imported: whether the name is there shows when the module is.

    Raises:
        ValueError: for a name of another form.
        ImportError: where there is no such module or package.
    """
    module_name, _, name = factory.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), *name.split("."))):
        raise ValueError(f"--model takes package.module:factory, such as network:make, not {factory!r}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # last, so that a file called types.py or random.py shadows nothing
    package = module_name.partition(".")[0]
    if package not in sys.modules and importlib.util.find_spec(package) is None:
        raise ImportError(missing_module(factory, package))
    return module_name, name


def missing_module(factory: str, missing: str | None) -> str:
    """What to say where a module that ``--model`` needs does not exist."""
    module_name = factory.partition(":")[0]
    plainly = f"; write {module_name.removesuffix('.py')}:…, without .py" if module_name.endswith(".py") else ""
    return f"--model {factory}: cannot import {missing!r} (from {Path.cwd()}, or installed){plainly}"
