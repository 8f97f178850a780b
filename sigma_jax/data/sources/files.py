"""Your own files: a table is a Parquet, CSV or JSON file or a folder of them, local or at a URL."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import ibis

from sigma_jax.data import database, readers
from sigma_jax.data.config import DataConfig
from sigma_jax.data.readers.paths import similar
from sigma_jax.data.tables import TABLES, Tables
from sigma_jax.schema import VECTORS

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
    found = usual_paths(config)
    for name in ("items", "interactions"):
        if found[name] is None:
            there = similar(config.path, name)
            raise ValueError(
                f"{config.path} holds no {name}.parquet, {name}.csv or {name}.jsonl"
                f"{f' (but {there[0]})' if there else ''}; "
                f"add one of these files or set --config.data.files.{name}."
            )
    return {name: path for name, path in found.items() if path}


def usual_paths(config: DataConfig, others: Collection[str] = ()) -> dict[str, str | None]:
    """Path or URL of each table and vector file, given or under its usual name; None: no such file.

    Args:
      others: tables that come from elsewhere, and are not looked for.
    """
    kinds = dict.fromkeys(TABLES, readers.TABLE_SUFFIXES) | dict.fromkeys(VECTORS, VECTOR_SUFFIXES)
    if not config.use_id_vectors:
        del kinds["id_vectors"]
    return {
        name: readers.find(config.path, name, getattr(config.files, name), suffixes)
        for name, suffixes in kinds.items()
        if name not in others
    }


def read(con: ibis.BaseBackend, config: DataConfig) -> Tables:
    """The tables of the files. ValueError names a file that is missing or cannot be read."""
    found = paths(config)
    opened = {name: readers.open_table(con, found[name]) for name in TABLES if name in found}
    notes = [note for table in opened.values() for note in table.notes]
    for name in opened:
        if not getattr(config.files, name):
            others = readers.candidates(config.path, name, readers.TABLE_SUFFIXES)[1:]
            notes += [f"{other} is not read, because {found[name]} is" for other in others]
    return Tables(
        **{name: opened[name].table if name in opened else None for name in TABLES},
        **{name: found.get(name) for name in VECTORS},
        names={name: found[name] for name in opened},
        files=found,
        has_times=True,
        has_composed_searches=False,
        parts={name: table.sizes for name, table in opened.items()},
        notes=tuple(notes),
    )
