"""Sources of tables, one file each: `paths` names its files, `read` returns its tables."""

from __future__ import annotations

import dataclasses

import ibis

from sigma_jax.data import database, readers
from sigma_jax.data.config import DataConfig
from sigma_jax.data.engines import spark
from sigma_jax.data.sources import amazon, complete_journey, files, mapped, renamed
from sigma_jax.data.tables import TABLES, Tables


def paths(config: DataConfig) -> dict[str, str]:
    """The files that config.source reads, by their use. ValueError if a required one is missing."""
    match config.source:
        case "files":
            return mapped.paths(config) if mapped.find_mapping(config) else files.paths(config)
        case "amazon":
            found = {kind: str(path) for kind, path in amazon.paths(config).items()}
        case _:
            found = complete_journey.paths()
    return found | _knowledge_path(config)


def read(con: ibis.BaseBackend, config: DataConfig) -> Tables:
    """The tables of config.source, not checked yet. ValueError names a file that is bad."""
    match config.source:
        case "files":
            return renamed.rename_columns(_read_files(con, config), config.columns)
        case _ if con.name == spark.NAME:
            with database.open_reader() as reader:
                return _handed_over(reader, read(reader, config), con)
        case "amazon":
            tables = amazon.read(con, config)
        case _:
            tables = complete_journey.read(con, config)
    path = _knowledge_path(config)
    if not path:
        return tables
    opened = readers.open_table(con, path["knowledge"])
    return dataclasses.replace(
        tables,
        knowledge=opened.table,
        notes=tables.notes + opened.notes,
        names=tables.names | path,
        files=tables.files | path,
    )


def _read_files(con: ibis.BaseBackend, config: DataConfig) -> Tables:
    """The tables of your own files: as a mapping file says, or under their usual names."""
    if not mapped.find_mapping(config):
        return files.read(con, config)
    if con.name != spark.NAME:
        return mapped.read(con, config)
    with database.open_reader() as reader:  # a mapping needs functions of DuckDB
        return _handed_over(reader, mapped.read(reader, config), con)


def _handed_over(reader: ibis.BaseBackend, tables: Tables, con: ibis.BaseBackend) -> Tables:
    """`tables` of the DuckDB `reader` as tables of Spark."""
    given = {name: getattr(tables, name) for name in TABLES}
    return dataclasses.replace(
        tables,
        **{
            name: database.hand_over(reader, table, con, tables.names[name])
            for name, table in given.items()
            if table is not None
        },
    )


def _knowledge_path(config: DataConfig) -> dict[str, str]:
    """The table of knowledge that the user adds to a public data set; {} without one."""
    if not config.files.knowledge:
        return {}
    path = readers.find(config.path, "knowledge", config.files.knowledge, readers.TABLE_SUFFIXES)
    return {"knowledge": str(path)}
