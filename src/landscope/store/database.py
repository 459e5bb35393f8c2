"""Everything that was measured as two tables that SQL can be asked of, with a disposable copy in ``.cache``."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from landscope.files import Damaged, folder, publish, read, read_sealed, seal, sha256
from landscope.spec import canonical_json, from_canonical, step_name
from landscope.store.cells import SMALL, cell_arrays, cell_content, cell_files, restored
from landscope.store.tables import settings
from landscope.store.training import read_spec, run_record, runs
from landscope.types import Estimate, Table

if TYPE_CHECKING:
    import pyarrow

_FORM = 1  # raised when the columns change
_VALUE_COLUMNS = ("run", "step", "measure", "call", "name", "index", "value", "sem", "n")


def table(root: Path) -> Table:
    """Every value of every finished run, one number a row.

    Columns: run (key), step, measure (its name), call (its canonical JSON), name, index (of an array's element, else
    None), value, sem (None where it has none), n (samples behind it). Arrays of more than 1,000 numbers are left out:
    `values` has them.
    """
    found = _tables(root)["measured"]
    return Table({name: tuple(found.column(name).to_pylist()) for name in found.column_names})


def sql(root: Path, query: str) -> Table:
    """Ask the store: DuckDB over ``runs`` (a row a run: key, status, settings), ``measured`` (see `table`) and
    ``results`` (both joined by run).

    The data base is in memory and locked: a query reads and writes no file, loads no extension, opens no connection.

    Raises:
        ValueError: where the query fails; the message is DuckDB's, with the columns there are.
    """
    import duckdb

    database = duckdb.connect(":memory:", config={"autoinstall_known_extensions": "false", "temp_directory": ""})
    try:
        for name, data in _tables(root).items():
            database.register(f"given_{name}", data)
            database.execute(f"create table {name} as select * from given_{name}")  # noqa: S608 - our own two names
            database.unregister(f"given_{name}")
        database.execute("create view results as select * from measured join runs using (run)")
        for setting in ("python_enable_replacements=false", "enable_external_access=false", "lock_configuration=true"):
            database.execute(f"set {setting}")
        try:
            answer = database.execute(query)
            if answer is None:
                raise ValueError(
                    'the query is empty: give one such as "select name, avg(value) from results group by name"'
                )
            names = [column[0] for column in answer.description or ()]
            rows = answer.fetchall() if names else []
        except duckdb.Error as error:
            raise ValueError(_failed(database, error)) from error
    finally:
        database.close()
    unique = [name if name not in names[:i] else f"{name}_{i}" for i, name in enumerate(names)]
    return Table({name: tuple(row[i] for row in rows) for i, name in enumerate(unique)})


def _failed(database: Any, error: Exception) -> str:
    import duckdb

    columns = {}
    for name in ("runs", "measured"):
        try:
            described = database.execute(f"select * from {name} limit 0").description  # noqa: S608 - our own two names
        except duckdb.Error:  # the query has dropped it; what it worked on was a copy
            return f"the query failed: {str(error).splitlines()[0]}"
        columns[name] = ", ".join(f'"{column[0]}"' if "." in column[0] else column[0] for column in described)
    first = str(error).splitlines()[0]
    return f"the query failed: {first}; there are runs({columns['runs']}), measured({columns['measured']}) and results"


# --- the copy -----------------------------------------------------------------------------------------------------


def _tables(root: Path) -> "dict[str, pyarrow.Table]":
    """The two tables, out of the copy while the store's file list is that of the copy."""
    listing = sha256(json.dumps([_FORM, list(_listing(root))]).encode())
    try:
        return {name: _copied(root, name, listing) for name in ("runs", "measured")}
    except (Damaged, OSError, LookupError, TypeError):
        pass
    made = {"runs": _runs_table(root), "measured": _measured_table(root)}
    try:
        for name, data in made.items():
            _copy(root, name, listing, data)
    except (OSError, ValueError):  # a store that may only be read is read without a copy
        pass
    return made


def _listing(root: Path) -> Iterator[tuple[str, int]]:
    """Names and sizes of all files that the tables are made of."""
    for run in runs(root):
        for path in (root / run / "spec.json", root / run / "run.json", *cell_files(root, run)):
            try:
                yield f"{run}/{path.name}", os.lstat(path).st_size
            except FileNotFoundError:
                continue


def _copied(root: Path, name: str, listing: str) -> "pyarrow.Table":
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = root / ".cache" / f"{name}.parquet"
    note = read_sealed(path.with_suffix(".json"))
    data = read(path)
    if note["listing"] != listing or note["sha256"] != sha256(data):
        raise Damaged(path, "is out of date")
    return pq.read_table(pa.BufferReader(data))


def _copy(root: Path, name: str, listing: str, data: "pyarrow.Table") -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(data, sink)
    content = sink.getvalue().to_pybytes()
    path = folder(root, ".cache") / f"{name}.parquet"
    publish(path, content)
    publish(path.with_suffix(".json"), seal({"listing": listing, "sha256": sha256(content)}))


def _runs_table(root: Path) -> "pyarrow.Table":
    rows = []
    for run in runs(root):
        record = run_record(root, run)
        if record is None:
            continue
        try:
            recipe = read_spec(root, run)
        except (Damaged, FileNotFoundError, ValueError):
            continue
        made = {"steps_made": record["steps"], "gradient_evaluations": record.get("gradient_evaluations")}
        own = {"run": run, "status": record["status"], "seed": recipe.seed, "batch_size": recipe.batch_size}
        rows.append(own | made | settings(recipe))
    given = Table.of(rows) if rows else Table({"run": (), "status": (), "seed": (), "batch_size": ()})
    return _arrow({name: list(given[name]) for name in given.columns})


def _measured_table(root: Path) -> "pyarrow.Table":
    import pyarrow as pa

    columns: dict[str, list[Any]] = {name: [] for name in _VALUE_COLUMNS}
    known: dict[str, tuple[str, str]] = {}  # a measure's name and canonical JSON, by its key
    for run in runs(root):
        if run_record(root, run) is None:
            continue
        seen: set[tuple[str, str]] = set()
        for path in cell_files(root, run):
            try:
                content = cell_content(path)
                long = cell_arrays(path, content)
            except (Damaged, FileNotFoundError):
                continue
            step = _step_text(content["state"])
            for measure, part in content["values"].items():
                if (step, measure) in seen:
                    continue
                seen.add((step, measure))
                if measure not in known:
                    known[measure] = from_canonical(part["call"]).name, canonical_json(part["call"])
                for name, kept in part["values"].items():
                    for numbers in _numbers(restored(kept, long)):
                        row = (run, step, *known[measure], name, *numbers)
                        for column, entry in zip(columns.values(), row, strict=True):
                            column.append(entry)
    text, whole, real = pa.string(), pa.int64(), pa.float64()
    kinds = (text, text, text, text, text, whole, real, real, whole)
    return pa.table({name: pa.array(columns[name], kind) for name, kind in zip(_VALUE_COLUMNS, kinds, strict=True)})


def _step_text(state: Any) -> str:
    return canonical_json(state) if isinstance(state, list) else step_name(from_canonical(state["step"]))


def _numbers(value: Any) -> Iterator[tuple[int | None, float, float | None, int | None]]:
    if isinstance(value, Estimate):
        yield None, float(value.mean), float(value.sem), int(value.n)
    elif isinstance(value, np.ndarray):
        if value.size <= SMALL:
            for i, number in enumerate(value.reshape(-1)):
                yield i, float(number), None, None
    else:
        yield None, float(value), None, None


def _arrow(columns: dict[str, list[Any]]) -> "pyarrow.Table":
    """Columns of one kind each: whole numbers, numbers, truth values, and text for all others."""
    import pyarrow as pa

    made = {}
    for name, column in columns.items():
        kinds = {type(entry) for entry in column if entry is not None}
        if kinds and not kinds <= {int, float} and kinds != {bool}:
            column = [entry if entry is None or isinstance(entry, str) else json.dumps(entry) for entry in column]
        if kinds == {int, float}:
            column = [None if entry is None else float(entry) for entry in column]
        made[name] = pa.array(column, None if kinds else pa.string())
    return pa.table(made)
