"""Parquet: numbers and times keep their types; texts in bytes are decoded, nested values are JSON.

The index that pandas writes as a column is not read.
"""

from __future__ import annotations

import re

import ibis
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sigma_jax.data import database
from sigma_jax.data.readers.bytes import check_kind
from sigma_jax.data.readers.part import Part, as_text_sql, literal_path, name_of

_INDEX = re.compile(r"__index_level_\d+__|Unnamed: \d+")
_UNITS = {"s": 10**6, "ms": 10**3}  # in microseconds, which DuckDB counts
REMEDY = "save it as Parquet again, complete"


def read(con: ibis.BaseBackend, path: str) -> Part:
    """The file at `path`. ValueError if it is damaged, or columns differ in case only."""
    file = literal_path(path)
    if not database.is_url(path):
        with open(path, "rb") as start:
            head = start.read(64)
        if not head.startswith(b"PAR1"):
            check_kind(path, head)
    with database.errors_of_file(path, REMEDY):
        (num_rows,) = con.raw_sql(
            f"SELECT sum(num_rows)::BIGINT FROM parquet_file_metadata({file})"
        ).fetchone()
        source = "read_parquet({files}, hive_partitioning = false)"
        described = con.raw_sql(f"DESCRIBE SELECT * FROM {source.format(files=file)}").fetchall()
    _check_names(con, path)
    columns, notes = [], []
    for name, kind, *_ in described:
        if _INDEX.fullmatch(name):
            notes.append(f"{path}: column {name!r} is the index of pandas and is not read")
            continue
        columns.append((name, *_expression(con, path, source.format(files=file), name, kind)))
    return Part(path, path, num_rows, source, tuple(columns), tuple(notes))


def _expression(
    con: ibis.BaseBackend, path: str, source: str, name: str, kind: str
) -> tuple[str, str]:
    """The type that a column is read as, and its expression."""
    column = name_of(name)
    if kind == "BLOB":
        with database.errors_of_file(path, REMEDY):
            is_wrong = f"{column} IS NOT NULL AND try(decode({column})) IS NULL"
            query = f"SELECT bool_or({is_wrong}) FROM {source}"
            (is_binary,) = con.raw_sql(query).fetchone()
        return ("BLOB", column) if is_binary else ("VARCHAR", f"decode({column})")
    scalar = kind.rstrip("[]0123456789")
    if scalar.startswith(("STRUCT", "MAP", "UNION")):
        return "VARCHAR", as_text_sql(column, kind)
    return kind, column


def _check_names(con: ibis.BaseBackend, path: str) -> None:
    """ValueError for columns that differ in case only: DuckDB would rename one."""
    rows = con.raw_sql(
        f"SELECT name, num_children FROM parquet_schema({literal_path(path)})"
    ).fetchall()
    seen: dict[str, str] = {}
    place = 1
    while place < len(rows):
        name = rows[place][0]
        if name.lower() in seen:
            raise ValueError(
                f"{path}: the columns {seen[name.lower()]!r} and {name!r} are the same or differ "
                "in case only; rename or remove one."
            )
        seen[name.lower()] = name
        open_nodes = 1
        while open_nodes:  # skips the column with all that is nested in it
            open_nodes += (rows[place][1] or 0) - 1
            place += 1


def check_times(path: str) -> None:
    """ValueError that names the first time of a file that is too large for DuckDB, if there is one.

    Other files are passed over. This is for the message about a file that cannot be read.
    """
    if database.is_url(path) or not path.lower().endswith(".parquet"):
        return
    try:
        file = pq.ParquetFile(path)
        times = [field for field in file.schema_arrow if pa.types.is_timestamp(field.type)]
    except (OSError, pa.ArrowException):
        return
    for field in times:
        largest = (2**63 - 1) // _UNITS.get(field.type.unit, 1)
        first_row = 0
        for batch in file.iter_batches(columns=[field.name]):
            number = batch[0].view(pa.int64())
            is_large = pc.or_(pc.greater(number, largest), pc.less(number, -largest))
            place = pc.index(is_large, True).as_py()
            if place >= 0:
                raise ValueError(
                    f"{path}: row {first_row + place + 1}: {field.name}={number[place].as_py()} "
                    f"({field.type.unit} since 1970) is not a time; delete the row or leave the "
                    "value empty."
                )
            first_row += batch.num_rows
