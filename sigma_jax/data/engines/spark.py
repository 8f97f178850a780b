"""Spark behind Ibis: a session, tables on shared storage, and results as Parquet parts.

Results never pass through the driver as a whole: Spark writes them as parts, and this process reads
one piece of a part at a time. A cluster and this process must therefore reach the same folder.
"""

from __future__ import annotations

import contextlib
import math
import urllib.parse
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

NAME = "pyspark"  # of the backend in Ibis
REMOTE = "sc://"  # a URL of Spark Connect
ROW = "source_row"
_UNITS = {"KB": 2**10, "MB": 2**20, "GB": 2**30, "TB": 2**40}


@contextlib.contextmanager
def open_spark(
    folder: str, master: str, memory_limit: str, threads: int
) -> Iterator[ibis.BaseBackend]:
    """A connection to Spark, for the body of a `with`. Its tables lie in a new folder in `folder`.

    A session that runs already is used and left running. The new folder is removed at the end.

    Args:
      folder: a folder or URL that Spark and this process reach.
      master: a master, such as local[2] or yarn, or a URL of Spark Connect, such as sc://host.
      memory_limit: of the JVM of a local master, such as "2GB".
      threads: parts of a local shuffle for each are four.

    Raises:
      ValueError: Spark cannot be reached, or a step in the body failed. The message is one line.
    """
    session, is_own = _session(folder, master, memory_limit, threads)
    database = f"sigma_{uuid.uuid4().hex}"
    location = f"{folder.rstrip('/')}/{database}"
    try:
        with _one_line(master):
            session.sql(f"CREATE DATABASE {database} LOCATION '{location}'")
            session.sql(f"USE {database}")
            yield ibis.pyspark.connect(session)
    finally:
        with contextlib.suppress(Exception):  # an error of the body is the one to show
            session.sql("USE default")
            session.sql(f"DROP DATABASE IF EXISTS {database} CASCADE")
            filesystem, inner = fsspec.core.url_to_fs(location)
            if filesystem.exists(inner):
                filesystem.rm(inner, recursive=True)
            if is_own:
                session.stop()


def _session(
    folder: str, master: str, memory_limit: str, threads: int
) -> tuple[SparkSession, bool]:
    """The session of `master`, and whether it was made here."""
    try:
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise ValueError(
            "data.engine='spark' needs the package pyspark; install it with "
            "pip install 'sigma_jax[spark]'."
        ) from error
    settings: dict[str, Any] = {
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.ansi.enabled": "true",  # an overflow is an error, as in DuckDB
        "spark.sql.legacy.parquet.nanosAsLong": "true",  # whole numbers are read as nanoseconds
    }
    # A larger limit is sorted by all machines; the first rows would need an array of its size.
    settings["spark.sql.execution.topKSortFallbackThreshold"] = "100000"
    try:
        active = SparkSession.getActiveSession()
        if active is not None:
            session = active
        elif master.startswith(REMOTE):
            session = SparkSession.builder.remote(master).getOrCreate()
        else:
            builder = SparkSession.builder.master(master).appName("sigma_jax")
            for name, value in _local_settings(folder, memory_limit, threads).items():
                builder = builder.config(name, value) if master.startswith("local") else builder
            session = builder.getOrCreate()
            session.sparkContext.setLogLevel("ERROR")
        for name, value in settings.items():
            session.conf.set(name, value)
    except (PySparkException, OSError, RuntimeError, ImportError) as error:
        raise ValueError(
            f"data.spark.master={master!r} cannot be reached ({_first_line(error)}); check the "
            "address, and that Java 17 or later is installed."
        ) from error
    return session, active is None


def _local_settings(folder: str, memory_limit: str, threads: int) -> dict[str, str]:
    """Settings of a Spark inside this machine; a cluster has its own."""
    return {
        "spark.driver.memory": f"{size_in_bytes(memory_limit) // 2**20}m",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.local.dir": str(Path(folder).parent / "spill"),
        "spark.sql.warehouse.dir": str(Path(folder).parent / "warehouse"),
        "spark.sql.catalogImplementation": "in-memory",
        "spark.sql.shuffle.partitions": str(4 * threads),
    }


def size_in_bytes(text: str) -> int:
    """The bytes of a size such as 2GB. ValueError for other texts."""
    number, unit = text[:-2].strip(), text[-2:].upper()
    if unit not in _UNITS or not number.replace(".", "", 1).isdigit():
        raise ValueError(f"data.memory_limit={text!r} is no size; use a size such as 2GB.")
    return math.ceil(float(number) * _UNITS[unit])


@contextlib.contextmanager
def _one_line(master: str) -> Iterator[None]:
    """Turns an error of Spark in the body of a `with` into a ValueError of one line."""
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    try:
        yield
    except (PySparkException, Py4JError) as error:
        text = str(error)
        if "OutOfMemoryError" in text:
            raise ValueError(
                f"data.memory_limit is too little for Spark ({_first_line(error)}); use a larger "
                "--config.data.memory_limit."
            ) from error
        raise ValueError(
            f"the data cannot be prepared by Spark at {master} ({_first_line(error)}); correct "
            "the tables, or run with SIGMA_TRACEBACK=1 to see which step failed."
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300]


def from_arrow(con: ibis.BaseBackend, name: str, table: pa.Table) -> ir.Table:
    """The table `name` of Spark, which now holds the rows of an Arrow table."""
    con._session.createDataFrame(table).write.saveAsTable(name)
    return con.table(name)


def read_parquet(
    con: ibis.BaseBackend, *paths: str, nanoseconds: Sequence[str] = (), has_numbers: bool = False
) -> ir.Table:
    """The rows of Parquet files, of folders or of globs, with their number as source_row.

    Numbers count on from file to file, in the order of the paths.

    Args:
      nanoseconds: the columns of times in nanoseconds, which Spark reads as whole numbers.
      has_numbers: the file has the column source_row already.
    """
    from pyspark.sql import functions as f

    rows = con._session.read.parquet(*paths)
    for name in nanoseconds:
        column = "`" + name.replace("`", "``") + "`"
        rows = rows.withColumn(name, f.expr(f"timestamp_micros({column} div 1000)"))
    view = f"parquet_{uuid.uuid4().hex}"
    (rows if has_numbers else _numbered(con, rows)).createOrReplaceTempView(view)
    return con.table(view)


def _numbered(con: ibis.BaseBackend, rows: DataFrame) -> DataFrame:
    from pyspark.sql import functions as f

    rows = rows.drop(ROW)
    rows = rows.select("*", f.col("_metadata.file_path"), f.col("_metadata.row_index").alias(ROW))
    sizes = {row["file_path"]: row["count"] for row in rows.groupBy("file_path").count().collect()}
    first, total = [], 0
    for file in sorted(sizes, key=urllib.parse.unquote):
        first.append((file, total))
        total += sizes[file]
    if len(first) > 1:
        offsets = con._session.createDataFrame(first, "file_path string, first_row bigint")
        rows = rows.join(f.broadcast(offsets), "file_path")
        rows = rows.withColumn(ROW, f.col(ROW) + f.col("first_row")).drop("first_row")
    return rows.drop("file_path")


def batches(con: ibis.BaseBackend, table: ir.Table, rows: int) -> Iterator[pa.RecordBatch]:
    """The rows of `table` in its order, at most `rows` at a time. Spark writes them as parts."""
    folder = new_path(con, "result")
    con._session.sql(con.compile(table)).write.parquet(folder)
    filesystem, inner = fsspec.core.url_to_fs(folder)
    try:
        # Spark numbers its parts in the order of the rows.
        for part in sorted(filesystem.glob(f"{inner}/part-*.parquet")):
            with filesystem.open(part, "rb") as file:
                yield from pq.ParquetFile(file).iter_batches(rows)
    finally:
        filesystem.rm(inner, recursive=True)


def new_path(con: ibis.BaseBackend, suffix: str) -> str:
    """A path in the folder of the tables of `con` that nothing has yet."""
    described = con._session.sql(f"DESCRIBE DATABASE EXTENDED {con.current_database}").collect()
    [location] = [row[1] for row in described if row[0] == "Location"]
    folder = location.removeprefix("file:")
    if "://" not in folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
    return f"{folder}/{uuid.uuid4().hex}.{suffix}"
