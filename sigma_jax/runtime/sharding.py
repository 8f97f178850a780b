"""The mesh of devices, and where arrays lie on it: one table from logical axes to mesh axes.

The mesh axes are "data" (replicas), "fsdp" (parameters are sharded) and "tensor" (layers are
sharded). Models name logical axes, as in `nnx.Param(value, axes=("embed", "mlp"))`, and know no
mesh. Only RULES says which mesh axis a logical axis is sharded over.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int64

from sigma_jax.runtime import hosts
from sigma_jax.runtime.config import MeshConfig

AXES = ("data", "fsdp", "tensor")
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
    "codes": None,  # about a thousand rows, read at every position
}
LARGE = 2**20  # values; smaller arrays without logical axes are replicated


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with AXES over all devices of all processes, or over `devices`.

    Raises:
      ValueError: the sizes of the axes do not multiply to the number of devices.
    """
    count = jax.device_count() if devices is None else len(devices)
    sizes = {name: getattr(config, name) for name in AXES}
    free = [name for name in AXES if sizes[name] == -1]
    given = math.prod(size for size in sizes.values() if size != -1)
    if len(free) > 1 or given < 1 or any(size < -1 for size in sizes.values()):
        raise ValueError(f"mesh={sizes}: use sizes of 1 or more, and -1 at most once.")
    if count % given or (not free and given != count):
        nearest = _nearest_sizes(sizes, count)
        flags = ", ".join(f"mesh.{name}={size}" for name, size in nearest.items())
        raise ValueError(
            f"mesh={sizes} does not fit {count} devices; the nearest that does: {flags}."
        )
    for name in free:
        sizes[name] = count // given
    kinds = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=kinds, devices=devices)


def _nearest_sizes(sizes: dict[str, int], count: int) -> dict[str, int]:
    """Sizes that fit `count` devices: "tensor" and "fsdp" at most as given, "data" takes the rest.

    Worked example, data 1, fsdp 6, tensor 4 on 16 devices: tensor 4 leaves 4, fsdp 4, data 1.
    """
    nearest = {}
    for name in ("tensor", "fsdp"):
        limit = sizes[name] if sizes[name] > 0 else count
        nearest[name] = max(size for size in range(1, limit + 1) if count % size == 0)
        count //= nearest[name]
    return {"data": count, "fsdp": nearest["fsdp"], "tensor": nearest["tensor"]}


def local_mesh(mesh: Mesh) -> Mesh:
    """`mesh` itself with one process; else this process's devices, with parameters sharded."""
    if hosts.is_alone():
        return mesh
    return make_mesh(MeshConfig(1, -1, 1), jax.local_devices())


def spec(
    shape: Sequence[int], axes: Sequence[str | None] | None, mesh: Mesh | AbstractMesh
) -> PartitionSpec:
    """The mesh axes of an array with logical `axes`, or without any (None).

    A dimension that its mesh axis does not divide is replicated. A mesh axis is used once, by the
    first dimension whose rule names it.

    Raises:
      ValueError: `axes` and `shape` differ in length, or RULES lacks a logical axis.
    """
    if axes is None:
        return _shard_largest(shape, mesh)
    if len(axes) != len(shape):
        raise ValueError(
            f"axes={tuple(axes)} do not fit shape {tuple(shape)}; name each dimension."
        )
    parts: list[str | tuple[str, ...] | None] = []
    for size, name in zip(shape, axes, strict=True):
        if name is not None and name not in RULES:
            raise ValueError(f"logical axis {name!r} has no rule; add it to runtime/sharding.py.")
        part = None if name is None else RULES[name]
        mesh_axes = part if isinstance(part, tuple) else (part,)
        fits = part is not None and size % math.prod(mesh.shape[axis] for axis in mesh_axes) == 0
        parts.append(part if fits and part not in parts else None)
    return PartitionSpec(*parts)


def _shard_largest(shape: Sequence[int], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """A large array is sharded over "fsdp" along its longest dimension that "fsdp" divides."""
    size = mesh.shape["fsdp"]
    divisible = [axis for axis in range(len(shape)) if shape[axis] % size == 0]
    if math.prod(shape) < LARGE or not divisible:
        return PartitionSpec()
    largest = max(divisible, key=lambda axis: shape[axis])
    return PartitionSpec(*("fsdp" if axis == largest else None for axis in range(largest + 1)))


def on_mesh(mesh: Mesh) -> contextlib.AbstractContextManager:
    """A context in which `constrain` and the functions below shard over `mesh`."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def constrain(array: Array, *axes: str | None) -> Array:
    """`array` sharded by its logical axes, for activations; unchanged outside of `on_mesh`.

    Without it XLA may shard a product as its weight is sharded, and gather the batch instead of the
    weight.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return array
    return jax.lax.with_sharding_constraint(array, spec(array.shape, axes, mesh))


def on_tpu() -> bool:
    """Whether the code that is traced now is for TPUs and may hold hand-written kernels.

    That is within `on_mesh`, or with one device: XLA does not shard a kernel by itself.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return jax.default_backend() == "tpu" and jax.device_count() == 1
    return mesh.abstract_device.platform == "tpu"


def is_sharded(axis: str, size: int) -> bool:
    """Whether the mesh of `on_mesh` shards `size` values of a logical axis."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and spec((size,), (axis,), mesh) != PartitionSpec(None)


def by_rows_and_heads(function: Callable, axes: Sequence[Sequence[str | None]]) -> Callable:
    """`function` run by each device on its own part of the arrays.

    It is for functions that XLA cannot shard by itself, such as a Pallas kernel. The result is
    sharded as the first array.

    Args:
      axes: the logical axes of each array.
    """

    def run(*arrays: Array) -> Array:
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty:
            return function(*arrays)
        parts = [spec(array.shape, names, mesh) for array, names in zip(arrays, axes, strict=True)]
        sharded = functools.partial(jax.shard_map, check_vma=False)
        return sharded(function, in_specs=tuple(parts), out_specs=parts[0])(*arrays)

    return run


def gathered(weights: Mapping[str, Array], axes: Mapping[str, Sequence[str | None]]) -> dict:
    """`weights` as products need them: gathered over "fsdp", still sharded over "tensor".

    Args:
      axes: the logical axes of each weight.
    """

    def without_fsdp(name: str | None) -> str | None:
        return None if name is None or RULES[name] == "fsdp" else name

    return {
        name: constrain(weight, *map(without_fsdp, axes[name])) for name, weight in weights.items()
    }


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds in full."""
    return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: along its leading axis."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def check_rows(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """ValueError unless the devices that share a batch divide its rows.

    Args:
      accumulate: parts that a step splits the batch into; each part has to divide as well.
    """
    devices = math.prod(mesh.shape[name] for name in ROWS)
    if batch_size % devices:
        raise ValueError(
            f"batch_size={batch_size} does not divide over {devices} devices; "
            f"use a multiple of {devices}."
        )
    if batch_size // accumulate % devices:
        fewer = math.gcd(batch_size // devices, accumulate)
        raise ValueError(
            f"batch_size={batch_size} in train.accumulate={accumulate} parts does not divide over "
            f"{devices} devices; use fewer parts, such as {fewer}, or a multiple of "
            f"{devices * accumulate}."
        )


def place(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """A global array with the values of `array`; each process fills its own devices."""
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


@functools.lru_cache(maxsize=16)  # called at every step
def local_batch_rows(batch_size: int, mesh: Mesh) -> Int64[np.ndarray, " n"]:
    """The rows of a global batch that lie on devices of this process, ascending."""
    parts = rows(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[part] for (part,) in parts]))


def place_batch(
    batch: Mapping[str, np.ndarray], mesh: Mesh, batch_size: int | None = None
) -> dict[str, jax.Array]:
    """A batch on the mesh, sharded by rows.

    Args:
      batch: all rows; with several processes and a `batch_size`, only `local_batch_rows`.
      batch_size: rows of the global batch.
    """
    if batch_size is None or rows(mesh).is_fully_addressable:
        return {name: place(array, rows(mesh)) for name, array in batch.items()}
    local = local_batch_rows(batch_size, mesh)

    def join(array: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            first, last, _ = index[0].indices(batch_size)
            return array[np.searchsorted(local, first) : np.searchsorted(local, last)]

        return jax.make_array_from_callback((batch_size, *array.shape[1:]), rows(mesh), part)

    return {name: join(array) for name, array in batch.items()}


def table_sharding(shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    """The sharding of a frozen array: a large one is sharded along its longest dimension."""
    return NamedSharding(mesh, _shard_largest(shape, mesh))


def place_tables(tables: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Frozen arrays on the mesh."""
    return {
        name: place(np.asarray(table), table_sharding(table.shape, mesh))
        for name, table in tables.items()
    }
