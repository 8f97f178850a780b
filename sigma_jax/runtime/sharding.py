"""Where arrays lie on the mesh: one table of rules from logical axes to mesh axes.

Models name logical axes (`nnx.Param(value, axes=("embed", "mlp"))`) and know no mesh; this file
alone says what they mean.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int64

ROWS = ("data", "fsdp")  # the leading axis of a batch
RULES: Mapping[str, str | tuple[str, ...] | None] = {
    "rows": ROWS,
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "items": "fsdp",
    "head_dim": None,
    "rank": None,  # of low-rank additions
    "layers": None,  # scanned: each device holds its part of every layer
    "codes": None,  # a thousand rows or so, read at every position
}
LARGE = 2**20  # values; smaller arrays without logical axes are kept whole on every device


def spec(
    shape: Sequence[int], axes: Sequence[str | None] | None, mesh: Mesh | AbstractMesh
) -> PartitionSpec:
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
    parts: list[str | tuple[str, ...] | None] = []
    for size, name in zip(shape, axes, strict=True):
        if name is not None and name not in RULES:
            raise ValueError(f"logical axis {name!r} has no rule; add it to runtime/sharding.py.")
        part = None if name is None else RULES[name]
        own = part if isinstance(part, tuple) else (part,)
        fits = part is not None and size % math.prod(mesh.shape[axis] for axis in own) == 0
        parts.append(part if fits and part not in parts else None)
    return PartitionSpec(*parts)


def on_mesh(mesh: Mesh) -> contextlib.AbstractContextManager:
    """What is traced within is cut up over `mesh` where the functions below say so."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def constrain(array: Array, *axes: str | None) -> Array:
    """`array` laid out by its logical axes as `spec` says; unchanged outside of `on_mesh`. For
    activations: without it XLA may cut a product where a weight is cut, and gather the batch
    instead of the weight.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return array
    return jax.lax.with_sharding_constraint(array, spec(array.shape, axes, mesh))


def on_tpu() -> bool:
    """Whether what is traced now is for TPUs and may hold kernels: within `on_mesh`, or where there
    is one device, for XLA cuts up no kernel by itself."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return jax.default_backend() == "tpu" and jax.device_count() == 1
    return mesh.abstract_device.platform == "tpu"


def is_cut(axis: str, size: int) -> bool:
    """Whether the mesh of `on_mesh` cuts up `size` of a logical axis into equal parts."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and spec((size,), (axis,), mesh) != PartitionSpec(None)


def by_rows_and_heads(function: Callable, axes: Sequence[Sequence[str | None]]) -> Callable:
    """`function` of arrays of these logical axes, each device on its own part; what it gives lies
    as the first does. For what XLA cannot cut up by itself, such as a Pallas kernel."""

    def run(*arrays: Array) -> Array:
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty:
            return function(*arrays)
        parts = [spec(array.shape, own, mesh) for array, own in zip(arrays, axes, strict=True)]
        place = functools.partial(jax.shard_map, check_vma=False)
        return place(function, in_specs=tuple(parts), out_specs=parts[0])(*arrays)

    return run


def gathered(weights: Mapping[str, Array], axes: Mapping[str, Sequence[str | None]]) -> dict:
    """`weights` of these logical axes as products take them: whole along "fsdp", which cuts up
    what is stored, and cut along "tensor" alone."""

    def whole(name: str | None) -> str | None:
        return None if name is None or RULES[name] == "fsdp" else name

    return {name: constrain(weight, *map(whole, axes[name])) for name, weight in weights.items()}


def _largest(shape: Sequence[int], mesh: Mesh | AbstractMesh) -> PartitionSpec:
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


def check_rows(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """ValueError if `batch_size` rows in so many parts do not divide over the devices that share a
    batch."""
    parts = math.prod(mesh.shape[name] for name in ROWS)
    if batch_size % parts:
        raise ValueError(
            f"batch_size={batch_size} does not divide over {parts} devices; "
            f"use a multiple of {parts}."
        )
    if batch_size // accumulate % parts:
        raise ValueError(
            f"batch_size={batch_size} in train.accumulate={accumulate} parts does not divide over "
            f"{parts} devices; use fewer parts, such as {math.gcd(batch_size // parts, accumulate)}"
            f", or a multiple of {parts * accumulate}."
        )


def place(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """A global array; each process gives the parts of its own devices out of `array`."""
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


@functools.lru_cache(maxsize=16)  # asked for at every step
def local_batch_rows(batch_size: int, mesh: Mesh) -> Int64[np.ndarray, " n"]:
    """The rows of a batch of all processes that lie on devices of this one, ascending."""
    parts = rows(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[part] for (part,) in parts]))


def place_batch(
    batch: Mapping[str, np.ndarray], mesh: Mesh, batch_size: int | None = None
) -> dict[str, jax.Array]:
    """A batch on the mesh, cut by rows; of all processes' `batch_size` rows, where given, each
    brings its `local_batch_rows`."""
    if batch_size is None or rows(mesh).is_fully_addressable:
        return {name: place(array, rows(mesh)) for name, array in batch.items()}
    own = local_batch_rows(batch_size, mesh)

    def joined(array: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            first, last, _ = index[0].indices(batch_size)
            return array[np.searchsorted(own, first) : np.searchsorted(own, last)]

        return jax.make_array_from_callback((batch_size, *array.shape[1:]), rows(mesh), part)

    return {name: joined(array) for name, array in batch.items()}


def table_sharding(shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    """Of a frozen array: a large one is cut along its longest dimension."""
    return NamedSharding(mesh, _largest(shape, mesh))


def place_tables(tables: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Frozen arrays on the mesh."""
    return {
        name: place(np.asarray(table), table_sharding(table.shape, mesh))
        for name, table in tables.items()
    }
