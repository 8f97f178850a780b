"""Tables whose columns have other names: --config.data.columns.item_id=article_id."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

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
    shared = _shared(config)
    taken: set[str] = set()
    renamed = {}
    for table_name in _GROUPS:
        table = getattr(tables, table_name)
        own = _own(config, table_name)
        if table is None:
            if own:
                raise ValueError(
                    f"data.columns.{table_name} is set, but there is no table {table_name}; add "
                    "its file, or remove the setting."
                )
            continue
        taken |= {ours for ours, theirs in shared.items() if theirs in table.columns}
        renamed[table_name] = rename_table(table, config, table_name, tables.names[table_name])
    for ours, theirs in shared.items():
        if ours not in taken:
            columns = tables.interactions.columns
            raise ValueError(_missing(ours, theirs, columns, tables.names["interactions"]))
    return dataclasses.replace(tables, **renamed)


def rename_table(table: ir.Table, config: ColumnsConfig, group: str, path: str) -> ir.Table:
    """`table` with the columns that `config` names for a group, such as "items", as ours.

    Args:
      path: of its file, for errors.

    Raises:
      ValueError: the table lacks a column of the group. One of a shared name may be missing.
    """
    own = _own(config, group)
    for ours, theirs in own.items():
        if theirs not in table.columns:
            raise ValueError(_missing(f"{group}.{ours}", theirs, table.columns, path))
    found = {ours: theirs for ours, theirs in _shared(config).items() if theirs in table.columns}
    return _renamed(table, found | own)


def _shared(config: ColumnsConfig) -> dict[str, str]:
    return {name: getattr(config, name) for name in _SHARED if getattr(config, name)}


def _own(config: ColumnsConfig, group: str) -> dict[str, str]:
    fields = dataclasses.asdict(getattr(config, group))
    return {ours: theirs for ours, theirs in fields.items() if theirs}


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


def _missing(field: str, theirs: str, columns: Sequence[str], path: str) -> str:
    return (
        f"{path}: no column {theirs!r} (found: {', '.join(columns)}), which the setting "
        f"columns.{field} names; {did_you_mean(theirs, columns)}"
    )
