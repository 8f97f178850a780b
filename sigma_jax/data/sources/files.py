"""Your own files: a Parquet, CSV or JSON lines file for each table, local or at a URL."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import ibis
import ibis.expr.types as ir

from sigma_jax.data import database
from sigma_jax.data.config import DataConfig
from sigma_jax.data.engines import spark
from sigma_jax.data.tables import TABLES, Tables
from sigma_jax.schema import VECTORS

TABLE_SUFFIXES = (".parquet", ".csv", ".jsonl")
READER_MEMORY = "1GB"  # of the DuckDB that reads files for another engine
VECTOR_SUFFIXES = (".npy", ".parquet")


def paths(config: DataConfig) -> dict[str, str]:
    """Path or URL of each table and each vector file that exists.

    Raises:
      ValueError: config.path is no folder, or items or interactions are missing.
    """
    if not config.path or not (database.is_url(config.path) or Path(config.path).is_dir()):
        raise ValueError(
            f"data.path={config.path!r} is not a folder; set --config.data.path to the folder "
            "of your items and interactions."
        )
    kinds = dict.fromkeys(TABLES, TABLE_SUFFIXES) | dict.fromkeys(VECTORS, VECTOR_SUFFIXES)
    if not config.use_id_vectors:
        del kinds["id_vectors"]
    found = {
        name: find(config.path, name, getattr(config.files, name), suffixes)
        for name, suffixes in kinds.items()
    }
    for name in ("items", "interactions"):
        if found[name] is None:
            raise ValueError(
                f"{config.path} holds no {name}.parquet, {name}.csv or {name}.jsonl; "
                f"add one of these files or set --config.data.files.{name}."
            )
    return {name: path for name, path in found.items() if path}


def read(con: ibis.BaseBackend, config: DataConfig) -> Tables:
    """The tables of the files. ValueError names a file that is missing or cannot be read."""
    found = paths(config)
    opened = {name: open_table(con, found[name]) for name in TABLES if name in found}
    return Tables(
        **{name: opened.get(name) for name in TABLES},
        **{name: found.get(name) for name in VECTORS},
        names={name: found[name] for name in opened},
        files=found,
        has_times=True,
        has_composed_searches=False,
    )


def find(folder: str, name: str, given: str, suffixes: tuple[str, ...]) -> str | None:
    """The path of a table: `given` if set, else the first NAME.SUFFIX that exists, else None.

    Raises:
      ValueError: `given` does not exist, or has another suffix.
    """
    if given:
        if not given.endswith(suffixes):
            raise ValueError(
                f"{given}: this kind of file is not supported; use {', '.join(suffixes)}."
            )
        path = given if database.is_url(given) else _join(folder, given)
        if not _exists(path):
            raise ValueError(f"{path} does not exist; check --config.data.files.{name}.")
        return path
    paths = [_join(folder, name + suffix) for suffix in suffixes]
    return next((path for path in paths if _exists(path)), None)


def open_table(con: ibis.BaseBackend, path: str) -> ir.Table:
    """The file at `path` as a table. Only its header or schema is read yet.

    Raises:
      ValueError: the file cannot be read.
    """
    if con.name == spark.NAME:
        return _open_in_spark(con, path)
    if database.is_url(path):
        database.register_url(con, path)
    with database.errors_of_file(path, "save it as UTF-8 CSV, JSON lines or Parquet"):
        if path.endswith(".parquet"):
            return con.read_parquet(path)
        if path.endswith(".csv"):
            # All columns are strings, so that an id of 007 does not become 7.
            return con.read_csv(path, all_varchar=True, header=True)
        return _read_json(con, path)


def _open_in_spark(con: ibis.BaseBackend, path: str) -> ir.Table:
    """The file at `path` as a table of Spark: Parquet directly, other files read by DuckDB."""
    if path.endswith(".parquet"):
        return spark.read_parquet(con, path)
    with reader() as duck:
        return database.hand_over(duck, open_table(duck, path), con)


@contextlib.contextmanager
def reader() -> Iterator[ibis.BaseBackend]:
    """A DuckDB that reads files for another engine, for the body of a `with`."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        database.open_database(Path(scratch), READER_MEMORY, 2) as con,
    ):
        yield con


def _read_json(con: ibis.BaseBackend, path: str) -> ir.Table:
    """A table of JSON lines.

    DuckDB would convert texts that look like a UUID, a day or a time. They stay text here, so that
    an id of 2024-1-2 does not become 2024-01-02.
    """
    kind = "newline_delimited"
    source = f"read_json('{path.replace(chr(39), 2 * chr(39))}', format='{kind}')"
    columns = {
        name: "VARCHAR" if type_name.startswith(("UUID", "DATE", "TIME")) else type_name
        for name, type_name, *_ in con.raw_sql(f"DESCRIBE SELECT * FROM {source}").fetchall()
    }
    return con.read_json(path, format=kind, columns=columns)


def _join(folder: str, name: str) -> str:
    if database.is_url(folder):
        return f"{folder.rstrip('/')}/{name}"
    return str(Path(folder) / name)


def _exists(path: str) -> bool:
    if not database.is_url(path):
        return Path(path).is_file()
    import fsspec

    try:
        filesystem, inner = fsspec.core.url_to_fs(path)
        return filesystem.exists(inner)
    except ImportError as error:
        raise ValueError(f"{path}: {error}; install that package with pip.") from error
