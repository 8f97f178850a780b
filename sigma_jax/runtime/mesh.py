"""The mesh of devices: data (replicas), fsdp (parameters cut up), tensor (layers cut up)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh

from sigma_jax.runtime import hosts
from sigma_jax.runtime.config import MeshConfig

AXES = ("data", "fsdp", "tensor")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices of all processes, or `devices`, as a mesh of AXES.

    Raises:
      ValueError: the axes do not multiply to the number of devices.
    """
    count = jax.device_count() if devices is None else len(devices)
    sizes = {name: getattr(config, name) for name in AXES}
    free = [name for name in AXES if sizes[name] == -1]
    given = math.prod(size for size in sizes.values() if size != -1)
    if len(free) > 1 or given < 1 or any(size < -1 for size in sizes.values()):
        raise ValueError(f"mesh={sizes}: sizes are 1 or more, and at most one is -1.")
    if count % given or (not free and given != count):
        near = ", ".join(f"mesh.{name}={size}" for name, size in _nearest(sizes, count).items())
        raise ValueError(
            f"mesh={sizes} does not fit {count} devices; the nearest that does: {near}."
        )
    for name in free:
        sizes[name] = count // given
    kinds = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=kinds, devices=devices)


def _nearest(sizes: dict[str, int], count: int) -> dict[str, int]:
    """Sizes that fit `count` devices, each at most what was asked for, and replicas of the rest.

    Worked example, data 1, fsdp 6, tensor 4 on 16 devices: tensor 4, of the other 4 fsdp 4, data 1.
    """
    near = {}
    for name in ("tensor", "fsdp"):
        most = sizes[name] if sizes[name] > 0 else count
        near[name] = max(size for size in range(1, most + 1) if count % size == 0)
        count //= near[name]
    return {"data": count, "fsdp": near["fsdp"], "tensor": near["tensor"]}


def local_mesh(mesh: Mesh) -> Mesh:
    """`mesh`, or where it belongs to several processes the devices of this one, weights cut up."""
    if hosts.is_alone():
        return mesh
    return make_mesh(MeshConfig(1, -1, 1), jax.local_devices())
