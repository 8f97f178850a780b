"""Engines behind Ibis: opens one, saves tables in it, streams results into arrays and files.

A database of DuckDB lies on disk beside the result and spills there. So its memory stays under the
configured limit, however long the log is.
"""

from __future__ import annotations

import contextlib
import importlib
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import duckdb
import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sigma_jax.data.config import DataConfig
from sigma_jax.data.engines import spark

READER_MEMORY = "1GB"  # of the DuckDB that reads files for another engine
BATCH_ROWS = 100_000  # rows that are streamed together
# The package that fsspec needs for the URLs of each protocol.
_FSSPEC_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "abfs": "adlfs", "az": "adlfs"}


@ibis.udf.scalar.builtin(name="json_extract_string")
def json_text(value: dt.JSON, path: str) -> str:
    """The value at `path`, strings without their quotes. The database computes it."""


@contextlib.contextmanager
def open_engine(config: DataConfig, folder: Path) -> Iterator[ibis.BaseBackend]:
    """The engine of `config`, for the body of a `with`; its tables lie in `folder`.

    The folder is created; the caller removes it.

    Raises:
      ValueError: the engine cannot be opened, or a step in the body failed. One line says why.
    """
    if config.engine == "duckdb":
        with open_database(folder, config.memory_limit, config.threads) as con:
            yield con
        return
    folder.mkdir(parents=True, exist_ok=True)
    tables = config.spark.folder or str(folder.resolve() / "spark")
    with spark.open_spark(tables, config.spark.master, config.memory_limit, config.threads) as con:
        yield con


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


def numbered(con: ibis.BaseBackend, table: ir.Table, file: str) -> ir.Table:
    """`table` with its rows numbered from 0 as source_row, in the order of the source.

    A table that was opened by Spark has these numbers: there, rows have no order.

    Raises:
      ValueError: `table` has a column of that name already. It names `file`.
    """
    if con.name == spark.NAME:
        return table
    check_names(table.columns, file)
    # A column of JSON lines with values of several types arrives as JSON; its text is taken.
    mixed = [column for column in table.columns if table[column].type().is_json()]
    table = table.mutate(**{column: json_text(table[column], "$") for column in mixed})
    return table.mutate(source_row=ibis.row_number().cast("int64"))


def check_names(names: Iterable[str], file: str) -> None:
    """ValueError if one of the columns `names` of `file` is source_row."""
    if spark.ROW in names:
        raise ValueError(
            f"{file}: a column has the name 'source_row', which numbers the rows here; rename it."
        )


@contextlib.contextmanager
def open_reader(memory_limit: str = READER_MEMORY) -> Iterator[ibis.BaseBackend]:
    """A DuckDB in a temporary folder, for the body of a `with`."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        open_database(Path(scratch), memory_limit, 2) as con,
    ):
        yield con


def hand_over(
    reader: ibis.BaseBackend, table: ir.Table, con: ibis.BaseBackend, file: str
) -> ir.Table:
    """`table` of the DuckDB `reader` as a table of Spark, through a Parquet file.

    Raises:
      ValueError: `table` cannot be read, or has a column source_row. It names `file`.
    """
    rows = numbered(reader, table, file)
    columns = {}
    for name in rows.columns:
        kind = rows[name].type()
        if kind.is_uuid() or kind.is_time() or kind.is_interval():  # Spark does not read these
            columns[name] = rows[name].cast("string")
        elif kind.is_timestamp() and kind.scale == 9:
            columns[name] = rows[name].cast(dt.Timestamp(timezone=kind.timezone, scale=6))
    path = spark.new_path(con, "parquet")
    if is_url(path):
        register_url(reader, path)
    with errors_of_file(file, "save it as UTF-8 CSV, JSON lines or Parquet"):
        reader.to_parquet(rows.mutate(**columns), path)
    return spark.read_parquet(con, path, has_numbers=True)


def save(con: ibis.BaseBackend, name: str, table: ir.Table) -> ir.Table:
    """The table `name` of the database, which now holds the rows of `table`, computed once."""
    return con.create_table(name, table)


def from_arrow(
    con: ibis.BaseBackend, name: str, table: pa.Table | pa.RecordBatchReader
) -> ir.Table:
    """The table `name` of the database, which now holds the rows of Arrow; DuckDB takes readers."""
    if con.name == spark.NAME:
        return spark.from_arrow(con, name, table)
    con.con.register(f"arrow_{name}", table)
    return save(con, name, con.table(f"arrow_{name}"))


def batches(con: ibis.BaseBackend, table: ir.Table) -> Iterator[pa.RecordBatch]:
    """The rows of `table`, a batch at a time. duckdb.Error if DuckDB fails on the way."""
    if con.name == spark.NAME:
        yield from spark.batches(con, table, BATCH_ROWS)
        return
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
    con: ibis.BaseBackend,
    table: ir.Table,
    dtypes: Mapping[str, Any],
    num_rows: int,
    folder: Path | None = None,
) -> dict[str, np.ndarray]:
    """Columns of `table` as arrays of `num_rows`; memory holds one batch besides the arrays.

    With a `folder` the arrays are files in it, memory-mapped.
    """

    def new_array(name: str, dtype: Any) -> np.ndarray:
        if folder is None or not num_rows:  # an empty file cannot be mapped
            return np.empty(num_rows, dtype)
        return np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, (num_rows,))

    arrays = {name: new_array(name, dtype) for name, dtype in dtypes.items()}
    row = 0
    for batch in batches(con, table.select(*dtypes)):
        for name, array in arrays.items():
            array[row : row + batch.num_rows] = batch[name].to_numpy(zero_copy_only=False)
        row += batch.num_rows
    assert row == num_rows, (row, num_rows)
    return arrays


def stream_arrow(con: ibis.BaseBackend, table: ir.Table, path: Path) -> None:
    """Writes `table` as an uncompressed Arrow file, in batches of BATCH_ROWS."""
    schema = table.schema().to_pyarrow()
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for batch in _equal_batches(batches(con, table), schema):
            writer.write_batch(batch)


def stream_parquet(
    con: ibis.BaseBackend, table: ir.Table, folder: Path, name: str, rows: int, part: int = 0
) -> int:
    """Writes `table` to FOLDER/NAME-00000.parquet and so on, about `rows` in each; at least one.

    Args:
      part: the number of the first file.

    Returns:
      The number of the file behind the last.
    """
    schema = table.schema().to_pyarrow()

    def new_file() -> pq.ParquetWriter:
        path = folder / f"{name}-{part:05d}.parquet"
        return pq.ParquetWriter(path, schema, compression="zstd")

    writer, free = new_file(), rows
    try:
        for batch in _equal_batches(batches(con, table), schema):
            if free <= 0:
                writer.close()
                part += 1
                writer, free = new_file(), rows
            writer.write_batch(batch)
            free -= batch.num_rows
    finally:
        writer.close()
    return part + 1


def _equal_batches(given: Iterator[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The rows of `given` in batches of BATCH_ROWS, so that a file is the same with each engine."""
    waiting, rows = [], 0
    for batch in given:
        waiting.append(batch.cast(schema))
        rows += batch.num_rows
        if rows >= BATCH_ROWS:
            table = pa.Table.from_batches(waiting).combine_chunks()
            whole = rows // BATCH_ROWS * BATCH_ROWS
            for first in range(0, whole, BATCH_ROWS):
                yield _copied(table.slice(first, BATCH_ROWS))
            waiting, rows = table.slice(whole).to_batches(), rows - whole
    if rows:
        yield _copied(pa.Table.from_batches(waiting))


def _copied(table: pa.Table) -> pa.RecordBatch:
    """The rows of `table` without the rest of a larger table, which a file would keep a part of."""
    [batch] = table.take(np.arange(len(table))).combine_chunks().to_batches()
    return batch


def optional_import(name: str, remedy: str) -> ModuleType:
    """The module `name`. ValueError with `remedy` if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"the package {name} is not installed; {remedy}") from error
