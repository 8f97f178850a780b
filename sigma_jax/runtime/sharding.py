"""Where arrays lie on the mesh: one table of rules from logical axes to mesh axes.

Models name logical axes (`nnx.Param(value, axes=("embed", "mlp"))`) and know no mesh; this file
alone says what they mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

RULES: Mapping[str, str | None] = {
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "items": "fsdp",
    "head_dim": None,
    "layers": None,  # scanned: each device holds its part of every layer
    "codes": None,  # a thousand rows or so, read at every position
}
ROWS = ("data", "fsdp")  # the leading axis of a batch
LARGE = 2**20  # values; smaller arrays without logical axes are kept whole on every device


def spec(shape: Sequence[int], axes: Sequence[str | None] | None, mesh: Mesh) -> PartitionSpec:
    """Mesh axes of an array with logical `axes`, or without any (None).

    A dimension that its mesh axis does not divide stays whole, and a mesh axis is used once, by
    the first dimension that asks for it. ValueError for a logical axis that RULES does not have.
    """
    if axes is None:
        return _largest(shape, mesh)
    if len(axes) != len(shape):
        raise ValueError(
            f"axes={tuple(axes)} do not fit shape {tuple(shape)}; name each dimension."
        )
    parts: list[str | None] = []
    for size, name in zip(shape, axes, strict=True):
        if name is not None and name not in RULES:
            raise ValueError(f"logical axis {name!r} has no rule; add it to runtime/sharding.py.")
        part = None if name is None else RULES[name]
        fits = part is not None and part not in parts and size % mesh.shape[part] == 0
        parts.append(part if fits else None)
    return PartitionSpec(*parts)


def _largest(shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    size = mesh.shape["fsdp"]
    divisible = [axis for axis in range(len(shape)) if shape[axis] % size == 0]
    if math.prod(shape) < LARGE or not divisible:
        return PartitionSpec()
    largest = max(divisible, key=lambda axis: shape[axis])
    return PartitionSpec(*("fsdp" if axis == largest else None for axis in range(largest + 1)))


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh) -> NamedSharding:
    """Cut along the leading axis: batches."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def check_rows(batch_size: int, mesh: Mesh) -> None:
    """ValueError if `batch_size` rows do not divide over the devices that share a batch."""
    parts = math.prod(mesh.shape[name] for name in ROWS)
    if batch_size % parts:
        raise ValueError(
            f"batch_size={batch_size} does not divide over {parts} devices; "
            f"use a multiple of {parts}."
        )


def place(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """A global array; each process gives the parts of its own devices out of `array`."""
    if jax.process_count() == 1:
        return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def place_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """A batch of all rows on the mesh, cut by rows."""
    return {name: place(array, rows(mesh)) for name, array in batch.items()}


def place_tables(tables: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Frozen arrays on the mesh: large ones cut along their longest dimension."""
    return {
        name: place(np.asarray(table), NamedSharding(mesh, _largest(table.shape, mesh)))
        for name, table in tables.items()
    }
