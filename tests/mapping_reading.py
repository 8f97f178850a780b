"""Reads the tables of a folder as `prepare` does, and returns their rows."""

import tempfile
from pathlib import Path

from conftest import tiny_config

from sigma_jax.data import database, sources
from sigma_jax.data.tables import Checker


def read_tables(folder: Path, scratch: Path, /, **changes) -> dict[str, list[dict]]:
    """Rows of items, interactions and users in their order, checked."""
    config = tiny_config(folder, **changes)
    database_folder = Path(tempfile.mkdtemp(dir=scratch))
    with database.open_database(database_folder, "500MB", 1) as con:
        checker = Checker(con, sources.read(con, config), "error", 1000)
        items = checker.items()
        found = {"items": items, "users": checker.users()}
        found["interactions"] = checker.interactions(items, config.events)
        return {
            name: [
                {key: value for key, value in row.items() if key != "source_row"}
                for row in database.rows(con, table.order_by("source_row"))
            ]
            for name, table in found.items()
            if table is not None
        }
