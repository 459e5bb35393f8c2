"""Image files into arrays: Parquet files with encoded pictures and whole-number labels, read once and checked.

Files may come from anywhere, so nothing in them is trusted: only pictures kept inside a file are read (never a path or
an address), only common formats are tried, and sizes are checked before anything is unpacked.
"""

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Progress = Callable[[int, int], None]
_MOST_BYTES = 8 * 2**30
_MOST_CLASSES = 2**16


def decoded(
    splits: Mapping[str, list[Path]], folder: Path, progress: Progress | None = None
) -> tuple[dict[str, np.ndarray], int]:
    """Every image and label of a data set.

    Grey images give one channel, all others three (palettes and CMYK become RGB, transparency is left out); a set with
    both gets three. Classes are as many as the files declare (ClassLabel), else 0 to the largest training label.

    Args:
        splits: The Parquet files of ``"train"`` and, where there is one, ``"test"``, in order.
        folder: What their names are relative to, in messages.
        progress: Called with (images decoded, images in all).

    Returns:
        ``{split}_inputs``, uint8 ``[n, channels, height, width]``, and ``{split}_labels``, int64 ``[n]``; and how many
        classes there are.

    Raises:
        ValueError: for damaged files, missing, unreadable or unequally large images and labels out of range; the
            message names file or row.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    opened = {}
    for split, paths in splits.items():
        for path in paths:
            try:
                opened.setdefault(split, []).append((path.relative_to(folder), pq.ParquetFile(path)))
            except (pa.ArrowException, OSError) as error:
                raise ValueError(f"{path} is no readable Parquet file ({_first_line(error)}): get it again") from error
    total = sum(file.metadata.num_rows for of in opened.values() for _, file in of)
    pictures, labels, declared = {}, {}, {}
    for split, of in opened.items():
        pictures[split], labels[split] = [], []
        for path, file in of:
            image, label, declared[split] = _columns(file.schema_arrow, path)
            try:
                for batch in file.iter_batches(1024, columns=[image, label]):
                    row = sum(len(some) for some in labels[split])
                    labels[split].append(_whole(batch.column(label), split, row))
                    _add_pictures(pictures, split, batch.column(image), path, total)
                    if progress is not None:
                        progress(sum(map(len, pictures.values())), total)
            except (pa.ArrowException, OSError) as error:
                raise ValueError(f"{path} is damaged ({_first_line(error)}): get it again") from error
        if not pictures[split]:
            raise ValueError(f"the {split} split in {folder} is empty: at least one image is needed")
    joined = {split: np.concatenate(some) for split, some in labels.items()}
    outputs = declared["train"] or _classes(joined["train"])
    for split, found in joined.items():
        _check_labels(split, found, outputs, declared["train"])
    colour = any(picture.ndim == 3 for of in pictures.values() for picture in of)
    tensors = {f"{split}_inputs": _stacked(of, colour) for split, of in pictures.items()}
    return tensors | {f"{split}_labels": found for split, found in joined.items()}, outputs


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _columns(schema: Any, path: Path) -> tuple[str, str, int | None]:
    """The columns of images and labels, and how many classes the file declares (None where it does not)."""
    import pyarrow as pa

    def binary(kind: Any) -> bool:
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    def of_bytes(kind: Any) -> bool:
        return pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and binary(kind.field("bytes").type)

    image = _chosen([f.name for f in schema if of_bytes(f.type) or binary(f.type)], ("image", "img"), "images", path)
    label = _chosen(
        [f.name for f in schema if pa.types.is_integer(f.type)], ("label", "labels", "fine_label"), "labels", path
    )
    return image, label, _declared(schema, label, path)


def _declared(schema: Any, label: str, path: Path) -> int | None:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except KeyError:
        return None
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{str(path)!r}: its description of the columns cannot be read ({_first_line(error)})"
        ) from error
    feature = features.get(label) if isinstance(features, dict) else None
    if not isinstance(feature, dict) or feature.get("_type") != "ClassLabel":
        return None
    classes = feature.get("num_classes") or len(feature.get("names") or ())
    if not isinstance(classes, int) or classes < 1:
        raise ValueError(f"{str(path)!r} declares {classes!r} classes for {label!r}: expected one or more")
    return classes


def _chosen(candidates: list[str], preferred: tuple[str, ...], what: str, path: Path) -> str:
    for name in preferred:
        if name in candidates:
            return name
    if len(candidates) != 1:
        has = f"several that may be: {candidates}" if candidates else "none"
        raise ValueError(f"{str(path)!r} needs one column of {what}, called {' or '.join(preferred)}; it has {has}")
    return candidates[0]


def _whole(column: Any, split: str, first: int) -> np.ndarray:
    if column.null_count:
        row = first + int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise ValueError(f"the label in row {row} (from 0) of the {split} split is missing: every image needs one")
    return column.to_numpy(zero_copy_only=False).astype(np.int64)


def _classes(labels: np.ndarray) -> int:
    row = int(labels.argmax())
    if labels[row] >= _MOST_CLASSES:
        raise ValueError(
            f"the label in row {row} (from 0) of the train split is {labels[row]:,}: labels are class numbers from 0, "
            "so renumber them"
        )
    return max(int(labels[row]), 0) + 1


def _check_labels(split: str, labels: np.ndarray, outputs: int, declared: int | None) -> None:
    wrong = np.flatnonzero((labels < 0) | (labels >= outputs))
    if len(wrong):
        because = "as the data set declares" if declared else "because the largest training label is the last class"
        raise ValueError(
            f"the label in row {wrong[0]} (from 0) of the {split} split is {labels[wrong[0]]}; expected 0 to "
            f"{outputs - 1}, {because}: correct it or take the row out (-1 often marks images without a label)"
        )


def _add_pictures(pictures: dict[str, list[np.ndarray]], split: str, column: Any, path: Path, total: int) -> None:
    import pyarrow as pa

    before = len(pictures[split])
    first = next((of[0] for of in pictures.values() if of), None)
    stored = column.field("bytes") if pa.types.is_struct(column.type) else column
    for i, data in enumerate(stored.to_pylist()):
        try:
            picture = _pixels(data, total, None if first is None else first.shape[1::-1])
        except Exception as error:  # damaged files make the decoder raise almost anything
            raise ValueError(
                f"the image in row {before + i} (from 0) of the {split} split, in {str(path)!r}, cannot be used: "
                f"{_first_line(error)}"
            ) from error
        first = picture if first is None else first
        pictures[split].append(picture)


def _pixels(data: bytes | None, total: int, size: tuple[int, ...] | None) -> np.ndarray:
    """One image, uint8 ``[h, w]`` (grey) or ``[h, w, 3]``; its size is checked before anything is unpacked."""
    from PIL import Image

    if not data:
        raise ValueError("it is missing (only images kept inside the file are read, not paths)")
    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")) as picture:
        width, height = picture.size
        if size is not None and (width, height) != size:
            raise ValueError(
                f"it measures {width} x {height} pixels, the first one {size[0]} x {size[1]}: "
                "networks here take images of one size, so resize or crop them all first"
            )
        if 3 * width * height * total > _MOST_BYTES:
            raise ValueError(
                f"{total:,} images of {width} x {height} pixels do not fit into memory: make them smaller or fewer"
            )
        if picture.mode in ("1", "L", "LA"):
            return np.asarray(picture.convert("L"))
        if picture.mode in ("RGB", "RGBX", "RGBA", "P", "PA", "CMYK", "YCbCr"):
            # Palettes with transparency have to pass through RGBA; transparency is then left out.
            through = picture.convert("RGBA") if picture.mode in ("P", "PA") else picture
            return np.asarray(through.convert("RGB"))
        raise ValueError(f"it is of mode {picture.mode}: convert it to 8 bits a channel, grey or RGB, first")


def _stacked(pictures: list[np.ndarray], colour: bool) -> np.ndarray:
    """``[n, channels, h, w]``; where one image of the set has colour, grey ones get three equal channels."""
    height, width = pictures[0].shape[:2]
    stacked = np.empty((len(pictures), 3 if colour else 1, height, width), dtype=np.uint8)
    for into, picture in zip(stacked, pictures, strict=True):
        into[:] = picture.transpose(2, 0, 1) if picture.ndim == 3 else picture
    return stacked
