"""Tables whose columns have other names: --config.data.columns.item_id=article_id."""

from __future__ import annotations

import dataclasses

import ibis.expr.types as ir

from sigma_jax.data.config import ColumnsConfig
from sigma_jax.data.tables import Tables
from sigma_jax.runtime.config import did_you_mean

_SHARED = ("item_id", "user_id", "timestamp", "event", "session_id", "query", "clicks")
_GROUPS = ("items", "interactions", "users", "searches")


def rename_columns(tables: Tables, config: ColumnsConfig) -> Tables:
    """`tables` with the columns that `config` names under our names.

    A column that has our name already leaves the table if another one takes its place.

    Raises:
      ValueError: no table, or not the table of the group, has a column that `config` names.
    """
    shared = {name: getattr(config, name) for name in _SHARED if getattr(config, name)}
    taken: set[str] = set()
    renamed = {}
    for table_name in _GROUPS:
        table = getattr(tables, table_name)
        own = {
            ours: theirs
            for ours, theirs in dataclasses.asdict(getattr(config, table_name)).items()
            if theirs
        }
        if table is None:
            if own:
                raise ValueError(
                    f"data.columns.{table_name} is set, but there is no table {table_name}; add "
                    "its file, or remove the setting."
                )
            continue
        for ours, theirs in own.items():
            if theirs not in table.columns:
                raise ValueError(_missing(f"{table_name}.{ours}", theirs, table_name, tables))
        found = {ours: theirs for ours, theirs in shared.items() if theirs in table.columns}
        taken |= found.keys()
        renamed[table_name] = _renamed(table, found | own)
    for ours, theirs in shared.items():
        if ours not in taken:
            raise ValueError(_missing(ours, theirs, "interactions", tables))
    return dataclasses.replace(tables, **renamed)


def _renamed(table: ir.Table, names: dict[str, str]) -> ir.Table:
    """`table` with the columns `names` (ours -> theirs) under our names, in their places."""
    if not names:
        return table
    columns = {}
    for column in table.columns:
        ours = [ours for ours, theirs in names.items() if theirs == column]
        if not ours and column not in names:
            ours = [column]
        columns |= {name: table[column] for name in ours}
    return table.select(**columns)


def _missing(field: str, theirs: str, table_name: str, tables: Tables) -> str:
    columns = getattr(tables, table_name).columns
    return (
        f"{tables.names[table_name]}: no column {theirs!r} (found: {', '.join(columns)}), which "
        f"--config.data.columns.{field} names; {did_you_mean(theirs, columns)}"
    )
