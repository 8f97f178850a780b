"""Sources of tables, one file each: `paths` names its files, `read` returns its tables."""

from __future__ import annotations

import dataclasses

import ibis

from sigma_jax.data import database
from sigma_jax.data.config import DataConfig
from sigma_jax.data.engines import spark
from sigma_jax.data.sources import amazon, complete_journey, files
from sigma_jax.data.tables import TABLES, Tables


def paths(config: DataConfig) -> dict[str, str]:
    """The files that config.source reads, by their use. ValueError if a required one is missing."""
    match config.source:
        case "files":
            return files.paths(config)
        case "amazon":
            found = {kind: str(path) for kind, path in amazon.paths(config).items()}
        case _:
            found = complete_journey.paths()
    return found | _knowledge_path(config)


def read(con: ibis.BaseBackend, config: DataConfig) -> Tables:
    """The tables of config.source, not checked yet. ValueError names a file that is bad."""
    match config.source:
        case "files":
            return files.read(con, config)
        case _ if con.name == spark.NAME:
            with files.reader() as reader:
                return _handed_over(reader, read(reader, config), con)
        case "amazon":
            tables = amazon.read(con, config)
        case _:
            tables = complete_journey.read(con, config)
    path = _knowledge_path(config)
    if not path:
        return tables
    return dataclasses.replace(
        tables,
        knowledge=files.open_table(con, path["knowledge"]),
        names=tables.names | path,
        files=tables.files | path,
    )


def _handed_over(reader: ibis.BaseBackend, tables: Tables, con: ibis.BaseBackend) -> Tables:
    """`tables` of the DuckDB `reader` as tables of Spark."""
    given = {name: getattr(tables, name) for name in TABLES}
    return dataclasses.replace(
        tables,
        **{
            name: database.hand_over(reader, table, con)
            for name, table in given.items()
            if table is not None
        },
    )


def _knowledge_path(config: DataConfig) -> dict[str, str]:
    """The table of knowledge that the user adds to a public data set; {} without one."""
    if not config.files.knowledge:
        return {}
    path = files.find(config.path, "knowledge", config.files.knowledge, files.TABLE_SUFFIXES)
    return {"knowledge": str(path)}
