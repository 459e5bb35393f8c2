"""Where a data set comes from, without any path: what a run's specification says of it."""

import html
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from landscope.spec import Call, call, canonical, from_canonical, resolve


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

        >>> from pathlib import Path
        >>> from landscope.data import find
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
            if read.target.rpartition(".")[0] != __name__.rpartition(".")[0]:
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
