"""The mesh of devices: data (replicas), fsdp (parameters cut up), tensor (layers cut up)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh

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
        raise ValueError(
            f"mesh={sizes} does not fit {count} devices; "
            f"set mesh.data=-1 and let fsdp * tensor divide {count}."
        )
    for name in free:
        sizes[name] = count // given
    kinds = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=kinds, devices=devices)
