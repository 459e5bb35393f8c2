"""What was measured: one file per cell, exact to the bit, with long arrays beside it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from landscope.files import Damaged, folder, publish, read, read_sealed, read_tensors, seal, sha256, tensor_bytes
from landscope.spec import At, Cell, canonical, from_canonical, key
from landscope.store.training import KEY, run_folder
from landscope.types import Estimate

SMALL = 1000  # numbers; a longer array goes beside the JSON


def write_values(root: Path, cell: Cell, values: Mapping[str, Mapping[str, Any]]) -> str:
    """Publish what was measured on a cell: one file (and one beside it for long arrays). Returns the cell's key.

    Args:
        root: The store.
        cell: The state (of several, the first one's run keeps the file) and its measures.
        values: By measure key (``key(call)``), what the measure returned: floats, Estimates, tensors or arrays by
            name.

    Raises:
        ValueError: where ``values`` are not those of the cell's measures, or of a type that cannot be kept.
        StoreFull, OSError: where it cannot be written.
    """
    calls = {key(measure): measure for measure in cell.measures}
    if set(values) != set(calls):
        raise ValueError(f"the cell measures {sorted(calls)}, but values were given for {sorted(values)}")
    first = cell.state if isinstance(cell.state, At) else cell.state[0]
    name = key(cell)
    path = folder(root, run_folder(root, first.key).name, "values")
    long: dict[str, np.ndarray] = {}
    content: dict[str, Any] = {
        "cell": name,
        "state": canonical(cell.state),
        "values": {
            k: {
                "call": canonical(calls[k]),
                "values": {n: _kept(v, f"{k}/{n}", long) for n, v in values[k].items()},
            }
            for k in sorted(calls)
        },
    }
    if long:
        data = tensor_bytes(long, {"cell": name})
        publish(path / f"{name}.safetensors", data)
        content["sha256"] = sha256(data)
    publish(path / f"{name}.json", seal(content))
    return name


def _kept(value: Any, name: str, long: dict[str, np.ndarray]) -> Any:
    """A value in the form of the file; numbers beyond `SMALL` go to ``long``."""
    if isinstance(value, Estimate):
        samples = None if value.samples is None else _kept_array(value.samples, name, long)
        plain = {"mean": float(value.mean), "sem": float(value.sem), "n": int(value.n)}
        df = None if value.df is None else float(value.df)
        return {"estimate": plain | {"df": df, "draws": value.draws, "samples": samples}}
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = (value.float() if str(value.dtype) in ("torch.bfloat16", "torch.float16") else value).numpy()
    if isinstance(value, (bool, int, float)) or getattr(value, "ndim", None) == 0:
        return float(value)
    if isinstance(value, (np.ndarray, list, tuple)):
        return _kept_array(np.asarray(value), name, long)
    raise ValueError(f"{name}: a measure returns numbers, Estimates and arrays by name, not {type(value).__name__}")


def _kept_array(array: np.ndarray, name: str, long: dict[str, np.ndarray]) -> Any:
    if array.dtype.kind not in "fiub":
        raise ValueError(
            f"{name}: an array of {array.dtype} cannot be kept; give real numbers (of complex ones, both parts)"
        )
    if array.size > SMALL:
        long[name] = array
        return {"long": name}
    flat = [float(x) if array.dtype.kind == "f" else int(x) for x in array.reshape(-1)]
    return {"array": flat, "dtype": str(array.dtype), "shape": list(array.shape)}


def restored(value: Any, long: Mapping[str, np.ndarray]) -> Any:
    """A value out of the form of a cell's file."""
    if not isinstance(value, dict):
        return value
    if "long" in value:
        return long[value["long"]]
    if "array" in value:
        return np.array(value["array"], dtype=value["dtype"]).reshape(value["shape"])
    plain = dict(value["estimate"])
    samples = plain.pop("samples")
    return Estimate(**plain, samples=None if samples is None else restored(samples, long))


def cell_files(root: Path, run: str) -> list[Path]:
    """The files of all cells measured on a run, sorted."""
    try:
        with os.scandir(run_folder(root, run) / "values") as entries:
            names = sorted(entry.name for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [root / run / "values" / name for name in names if KEY.fullmatch(name.removesuffix(".json"))]


def cell_content(path: Path) -> dict[str, Any]:
    """A cell's file, verified; raises Damaged."""
    content = read_sealed(path)
    state = content.get("state")
    first = state[0] if isinstance(state, list) else state
    # Sealed, but of another cell or run: a copied file must not speak for this one.
    if content.get("cell") != path.stem or first.get("run") != path.parent.parent.name:
        raise Damaged(path, "belongs to another cell or run")
    return content


def cell_arrays(path: Path, content: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The long arrays beside a cell's file, verified; raises Damaged."""
    if "sha256" not in content:
        return {}
    beside = path.with_suffix(".safetensors")
    try:
        data = read(beside)
    except FileNotFoundError:
        raise Damaged(beside, "is missing") from None
    if sha256(data) != content["sha256"]:
        raise Damaged(beside, f"is not the file that {path.name} describes")
    return read_tensors(beside, numpy=True)[0]


def values(root: Path, run: str) -> dict[tuple[Any, str], dict[str, Any]]:
    """All that was measured on a run.

    Returns:
        By (step, measure key), what the measure returned: floats, Estimates and NumPy arrays by name. The step is as
        the cell named it: a number, ``"start"``, ``"end"`` or a `first_below` tuple; of a cell on several states, the
        tuple of their (run, step). A damaged file counts as absent.
    """
    found: dict[tuple[Any, str], dict[str, Any]] = {}
    for path in cell_files(root, run):
        try:
            content = cell_content(path)
            long = cell_arrays(path, content)
        except (Damaged, FileNotFoundError):
            continue
        state = content["state"]
        step = (
            tuple((s["run"], from_canonical(s["step"])) for s in state)
            if isinstance(state, list)
            else from_canonical(state["step"])
        )
        for name, part in content["values"].items():
            found.setdefault((step, name), {n: restored(v, long) for n, v in part["values"].items()})
    return found
