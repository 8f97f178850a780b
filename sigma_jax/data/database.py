"""DuckDB behind Ibis: opens a database, reads files, streams results into arrays and Arrow files.

The database lies on disk beside the result and spills there. So its memory stays under the
configured limit, however long the log is.
"""

from __future__ import annotations

import contextlib
import importlib
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import duckdb
import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa

BATCH_ROWS = 100_000  # rows that are streamed together
# The package that fsspec needs for the URLs of each protocol.
_FSSPEC_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "abfs": "adlfs", "az": "adlfs"}


@contextlib.contextmanager
def open_database(folder: Path, memory_limit: str, threads: int) -> Iterator[ibis.BaseBackend]:
    """A DuckDB in `folder`, for the body of a `with`.

    The folder is created; the caller removes it.

    Raises:
      ValueError: `memory_limit` is no size or too small, or a step in the body failed. The
        message is one line.
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
            "use a size such as 2GB."
        ) from error
    con.raw_sql("SET TimeZone = 'UTC'")  # times without a zone are UTC, on every machine
    try:
        yield con
    except duckdb.Error as error:
        if is_out_of_memory(error):
            raise ValueError(
                f"data.memory_limit={memory_limit!r} is too little ({first_line(error)}); use a "
                "larger --config.data.memory_limit or fewer --config.data.threads."
            ) from error
        raise ValueError(
            f"the data cannot be prepared ({first_line(error)}); correct the tables, or run with "
            "SIGMA_TRACEBACK=1 to see which step failed."
        ) from error
    finally:
        con.disconnect()


@contextlib.contextmanager
def errors_of_file(file: str, remedy: str) -> Iterator[None]:
    """Turns an error of DuckDB in the body of a `with` into a ValueError that names `file`.

    An error for lack of memory passes unchanged: `open_database` names the limit.
    """
    try:
        yield
    except duckdb.Error as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(f"{file} cannot be read ({first_line(error)}); {remedy}.") from error


def is_out_of_memory(error: duckdb.Error) -> bool:
    """Whether DuckDB failed for lack of memory."""
    # By the text, as types vary: TransactionException at a commit, OperationalError in a stream.
    return any(words in str(error) for words in ("Out of Memory", "failed to pin block"))


def scratch_file(con: ibis.BaseBackend, suffix: str) -> Path:
    """A new path beside the spilled data of `con`, in the folder of `open_database`."""
    folder = Path(con.raw_sql("SELECT current_setting('temp_directory')").fetchone()[0])
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{uuid.uuid4().hex}.{suffix}"


def is_url(path: str) -> bool:
    """Whether `path` names a protocol, such as gs://."""
    return "://" in path


def register_url(con: ibis.BaseBackend, path: str) -> None:
    """Lets DuckDB read the URL `path` through fsspec.

    Raises:
      ValueError: the package for its protocol is not installed.
    """
    protocol = path.split("://")[0]
    import fsspec

    try:
        filesystem = fsspec.filesystem(protocol)
    except (ImportError, ValueError) as error:
        package = _FSSPEC_PACKAGES.get(protocol, "with an fsspec file system for it")
        raise ValueError(
            f"{path}: {protocol}:// needs the package {package}; install it with pip."
        ) from error
    with contextlib.suppress(duckdb.Error):  # it is registered already
        con.register_filesystem(filesystem)


def first_line(error: Exception) -> str:
    """The first line of the text of `error`, for messages of one line."""
    return str(error).strip().split("\n")[0]


def save(con: ibis.BaseBackend, name: str, table: ir.Table) -> ir.Table:
    """The table `name` of the database, which now holds the rows of `table`, computed once."""
    return con.create_table(name, table)


def from_arrow(con: ibis.BaseBackend, name: str, table: pa.Table) -> ir.Table:
    """The table `name` of the database, which now holds the rows of an Arrow table."""
    con.con.register(f"arrow_{name}", table)
    return save(con, name, con.table(f"arrow_{name}"))


def batches(con: ibis.BaseBackend, table: ir.Table) -> Iterator[pa.RecordBatch]:
    """The rows of `table`, a batch at a time. duckdb.Error if DuckDB fails on the way."""
    try:
        yield from con.to_pyarrow_batches(table, chunk_size=BATCH_ROWS)
    except (OSError, pa.ArrowException) as error:  # Arrow wraps the errors of DuckDB
        raise duckdb.OperationalError(first_line(error)) from error


def rows(con: ibis.BaseBackend, table: ir.Table) -> list[dict]:
    """The rows of a small `table` as Python objects."""
    return con.to_pyarrow(table).to_pylist()


def count(con: ibis.BaseBackend, table: ir.Table) -> int:
    """The number of rows of `table`."""
    return int(con.to_pyarrow(table.count()).as_py())


def columns(
    con: ibis.BaseBackend, table: ir.Table, dtypes: Mapping[str, Any], num_rows: int
) -> dict[str, np.ndarray]:
    """Columns of `table` as arrays of `num_rows`; memory holds one batch besides the arrays."""
    arrays = {name: np.empty(num_rows, dtype) for name, dtype in dtypes.items()}
    row = 0
    for batch in batches(con, table.select(*dtypes)):
        for name, array in arrays.items():
            array[row : row + batch.num_rows] = batch[name].to_numpy(zero_copy_only=False)
        row += batch.num_rows
    assert row == num_rows, (row, num_rows)
    return arrays


def stream_arrow(con: ibis.BaseBackend, table: ir.Table, path: Path) -> None:
    """Writes `table` as an uncompressed Arrow file, a batch at a time."""
    schema = table.schema().to_pyarrow()
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for batch in batches(con, table):
            writer.write_batch(batch.cast(schema))


def optional_import(name: str, remedy: str) -> ModuleType:
    """The module `name`. ValueError with `remedy` if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"the package {name} is not installed; {remedy}") from error
