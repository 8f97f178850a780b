"""Sources of tables, one file each: `paths` names its files, `read` returns its tables."""

from __future__ import annotations

import dataclasses

import ibis

from sigma_jax.data import readers
from sigma_jax.data.config import DataConfig
from sigma_jax.data.sources import amazon, complete_journey, files, mapped, renamed
from sigma_jax.data.tables import Tables


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
            read_tables = mapped.read if mapped.find_mapping(config) else files.read
            return renamed.rename_columns(read_tables(con, config), config.columns)
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


def _knowledge_path(config: DataConfig) -> dict[str, str]:
    """The table of knowledge that the user adds to a public data set; {} without one."""
    if not config.files.knowledge:
        return {}
    path = readers.find(config.path, "knowledge", config.files.knowledge, readers.TABLE_SUFFIXES)
    return {"knowledge": str(path)}
