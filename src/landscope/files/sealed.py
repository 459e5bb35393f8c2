"""Files that hold their own SHA-256: JSON and tensors."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from landscope.files.errors import Damaged
from landscope.files.publishing import read

_HEAD, _MIDDLE, _TAIL = b'{"content":', b',"sha256":"', b'"}\n'
_UNSEALED = "0" * 64


def sha256(data: bytes) -> str:
    """The SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def dump(content: Any) -> bytes:
    """Deterministic JSON; numbers that JSON has no form for are kept as ``{"float": "nan"}``."""
    text = json.dumps(_encoded(content), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def load(data: bytes | str) -> Any:
    """What `dump` was given (tuples come back as lists)."""
    return json.loads(data, object_hook=_decoded)


def _encoded(x: Any) -> Any:
    if isinstance(x, Mapping):
        return {str(k): _encoded(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [_encoded(item) for item in x]
    if callable(getattr(x, "item", None)) and getattr(x, "ndim", None) == 0:
        x = x.item()
    if isinstance(x, float) and not math.isfinite(x):
        return {"float": "nan" if math.isnan(x) else "inf" if x > 0 else "-inf"}
    return x


def _decoded(x: dict[str, Any]) -> Any:
    if len(x) == 1 and x.get("float") in ("nan", "inf", "-inf"):
        return float(x["float"])
    return x


def seal(content: Any) -> bytes:
    """The bytes of a sealed file: ``{"content": …, "sha256": of the content's bytes}``.

    >>> unseal("x.json", seal({"a": 1}))
    {'a': 1}
    """
    data = dump(content)
    return _HEAD + data + _MIDDLE + sha256(data).encode() + _TAIL


def unseal(path: Path | str, data: bytes) -> Any:
    """The content of a sealed file (``path`` is for the message).

    Raises:
        Damaged: where a single bit differs from what was written.
    """
    end = len(data) - len(_TAIL) - 64
    content = data[len(_HEAD) : max(end - len(_MIDDLE), 0)]
    if data != _HEAD + content + _MIDDLE + sha256(content).encode() + _TAIL:
        raise Damaged(path, "does not have the content that it was sealed with")
    return load(content)


def read_sealed(path: Path) -> Any:
    """The content of a sealed file.

    Raises:
        FileNotFoundError: where there is none.
        Damaged: where it is not what was written.
    """
    return unseal(path, read(path))


def tensor_bytes(tensors: Mapping[str, Any], meta: Any = None) -> bytes:
    """Tensors (PyTorch's, or NumPy arrays) as the bytes of a safetensors file that holds its own SHA-256, and ``meta``.

    The bytes follow from the names, values and ``meta`` alone.
    """
    note = {"landscope": json.dumps({"sha256": _UNSEALED, "meta": dump(meta).decode()})}
    if all(type(tensor).__module__ == "numpy" for tensor in tensors.values()):
        import numpy as np
        from safetensors.numpy import save

        data = save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, note)
    else:
        from safetensors.torch import save as save_torch

        # A copy each: tied weights share memory, which the format does not allow.
        owned = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        data = save_torch(owned, note)
    return data.replace(_UNSEALED.encode(), sha256(data).encode(), 1)


def read_tensors(path: Path, *, numpy: bool = False, prefix: str = "") -> tuple[dict[str, Any], Any]:
    """The tensors (as NumPy arrays if asked for) whose names begin with ``prefix`` (which is cut off), and the meta.

    Raises:
        FileNotFoundError: where there is no such file.
        Damaged: where it is not what was written.
    """
    data = read(path)
    meta = tensor_meta(path, data)
    if numpy:
        from safetensors.numpy import load as load_tensors
    else:
        from safetensors.torch import load as load_tensors
    found = load_tensors(data)
    return {name[len(prefix) :]: tensor for name, tensor in found.items() if name.startswith(prefix)}, meta


def tensor_meta(path: Path, data: bytes) -> Any:
    """The meta of a file made by `tensor_bytes`, after its SHA-256 has been verified.

    Raises:
        Damaged: where it is not what was written.
    """
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        note = json.loads(header["__metadata__"]["landscope"])
        sealed = note["sha256"].encode("ascii")
        at = data.index(sealed, 8)
        whole = sha256(data[:at] + _UNSEALED.encode() + data[at + 64 :]).encode() == sealed
        meta = load(note["meta"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Damaged(path, "is not the tensor file that was written") from None
    if not whole:
        raise Damaged(path, "does not have the content that it was sealed with")
    return meta
