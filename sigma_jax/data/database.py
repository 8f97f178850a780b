"""DuckDB behind Ibis: opening it, reading files, streaming results into arrays and Arrow files.

Tables live in an on-disk database beside the result and spill there, so memory stays under the
configured limit whatever the size of the log.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from pathlib import Path

import duckdb
import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa

BATCH_ROWS = 100_000
# duckdb reads these itself; others go through fsspec, which needs the package named here.
_FSSPEC_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "abfs": "adlfs", "az": "adlfs"}


@contextlib.contextmanager
def open_database(folder: Path, memory_limit: str, threads: int):
    """A DuckDB in `folder`, which is made and left to the caller to remove.

    Raises:
      ValueError: DuckDB failed, here or in the body: memory_limit is no size or too little, or a
        step met a value it cannot use. One line.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        con = ibis.duckdb.connect(
            folder / "tables.duckdb",
            memory_limit=memory_limit,
            threads=threads,
            temp_directory=str(folder / "spill"),
        )
    except duckdb.ParserException as error:
        raise ValueError(
            f"data.memory_limit={memory_limit!r} is no size ({first_line(error)}); "
            "give one such as 2GB."
        ) from error
    con.raw_sql("SET TimeZone = 'UTC'")  # times without a zone are UTC, on every machine
    try:
        yield con
    except duckdb.Error as error:
        if _is_out_of_memory(error):
            raise ValueError(
                f"data.memory_limit={memory_limit!r} is too little ({first_line(error)}); give a "
                "larger --config.data.memory_limit, or fewer --config.data.threads."
            ) from error
        raise ValueError(
            f"the data cannot be prepared ({first_line(error)}); correct the tables, or see with "
            "SIGMA_TRACEBACK=1 which step it was."
        ) from error
    finally:
        con.disconnect()


@contextlib.contextmanager
def reading(file: str, remedy: str):
    """What DuckDB says of `file` in the body, as ValueError; out of memory is not its fault."""
    try:
        yield
    except duckdb.Error as error:
        if _is_out_of_memory(error):
            raise
        raise ValueError(f"{file} cannot be read ({first_line(error)}); {remedy}.") from error


def _is_out_of_memory(error: duckdb.Error) -> bool:
    # By its text: at a commit it is a TransactionException, while streaming an OperationalError.
    return any(words in str(error) for words in ("Out of Memory", "failed to pin block"))


def is_url(path: str) -> bool:
    return "://" in path


def register_url(con: ibis.BaseBackend, path: str) -> None:
    """Lets DuckDB read `path` through fsspec. ValueError where a package is missing."""
    protocol = path.split("://")[0]
    import fsspec

    try:
        filesystem = fsspec.filesystem(protocol)
    except (ImportError, ValueError) as error:
        package = _FSSPEC_PACKAGES.get(protocol, "an fsspec file system")
        raise ValueError(f"{path}: {protocol}:// needs {package}; pip install it.") from error
    with contextlib.suppress(duckdb.Error):  # registered already
        con.register_filesystem(filesystem)


def first_line(error: Exception) -> str:
    """The first line of an error's text, for one-line messages."""
    return str(error).strip().split("\n")[0]


def save(con: ibis.BaseBackend, name: str, table: ir.Table) -> ir.Table:
    """Computes `table` once and keeps it in the database as `name`."""
    return con.create_table(name, table)


def from_arrow(con: ibis.BaseBackend, name: str, table: pa.Table) -> ir.Table:
    """An Arrow table as a table of the database."""
    con.con.register(f"arrow_{name}", table)
    return save(con, name, con.table(f"arrow_{name}"))


def batches(con: ibis.BaseBackend, table: ir.Table) -> Iterator[pa.RecordBatch]:
    """The rows of `table`, a batch at a time. duckdb.Error where DuckDB fails on the way."""
    try:
        yield from con.to_pyarrow_batches(table, chunk_size=BATCH_ROWS)
    except (OSError, pa.ArrowException) as error:  # how Arrow passes on what DuckDB says
        raise duckdb.OperationalError(first_line(error)) from error


def rows(con: ibis.BaseBackend, table: ir.Table) -> list[dict]:
    """The rows of a small `table`."""
    return con.to_pyarrow(table).to_pylist()


def count(con: ibis.BaseBackend, table: ir.Table) -> int:
    return int(con.to_pyarrow(table.count()).as_py())


def columns(
    con: ibis.BaseBackend, table: ir.Table, dtypes: dict[str, type], num_rows: int
) -> dict[str, np.ndarray]:
    """Columns of `table` as arrays of `dtypes`; only one batch is held besides the arrays."""
    arrays = {name: np.empty(num_rows, dtype) for name, dtype in dtypes.items()}
    row = 0
    for batch in batches(con, table.select(*dtypes)):
        for name, array in arrays.items():
            array[row : row + batch.num_rows] = batch[name].to_numpy(zero_copy_only=False)
        row += batch.num_rows
    assert row == num_rows, (row, num_rows)
    return arrays


def stream_arrow(con: ibis.BaseBackend, table: ir.Table, path: Path) -> None:
    """Writes `table` as an uncompressed Arrow file, a batch at a time (see schema.write_arrow)."""
    schema = table.schema().to_pyarrow()
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for batch in batches(con, table):
            writer.write_batch(batch.cast(schema))


def optional_import(name: str, remedy: str):
    """The module `name`. ValueError with `remedy` if it isn't installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"the package {name} is not installed; {remedy}") from error
