"""Padding of arrays by item, while a refresh trains.

A program is compiled for the shapes of its arrays, and most days bring new items. With padding the
catalogues of many days have the same shapes, so a refresh finds the compiled programs of the day
before. The added rows are no items: none is a target or a negative, and the artifact lacks them.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx

from sigma_jax.models.weights import named_parameters
from sigma_jax.shapes import in_eighths

# Values of the added rows, by table. Others get copies of the last row: real values, so that no
# arithmetic on them fails.
FILLS = {"is_cold": True, "popularity": 0, "category_sizes": 0}
NEVER = -1e3  # a bias with which an item has no probability


def padded(table: np.ndarray, fill: float | None = None) -> np.ndarray:
    """`table` with more rows, in few sizes; they are `fill`, or copies of the last row."""
    added = in_eighths(len(table)) - len(table)
    if not added:
        return table
    width = [(0, added)] + [(0, 0)] * (table.ndim - 1)
    if fill is None:
        return np.pad(table, width, mode="edge")
    return np.pad(table, width, constant_values=np.asarray(fill, table.dtype))


def padded_tables(tables: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All tables of a loss, each with more rows."""
    return {name: padded(np.asarray(table), FILLS.get(name)) for name, table in tables.items()}


def pad(model: nnx.Module, by_item: Mapping[str, float | None]) -> None:
    """Adds rows to the parameters by item, in place.

    Args:
      by_item: the first part of their names -> the value of the rows; None copies the last row.
    """
    for name, param in named_parameters(model).items():
        for start, fill in by_item.items():
            if name.startswith(start):
                param.set_value(jnp.asarray(padded(np.asarray(param[...]), fill)))


def cut(model: nnx.Module, by_item: Mapping[str, float | None], items: int) -> None:
    """Removes the rows that `pad` added, in place.

    Args:
      items: rows that stay.
    """
    for name, param in named_parameters(model).items():
        if name.startswith(tuple(by_item)):
            param.set_value(param[...][:items])
