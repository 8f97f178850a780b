"""TPU chips and slices, and their devices as the compiler of `libtpu` describes them.

`libtpu` (`pip install "jax[tpu]"`) compiles for a described slice on any Linux machine.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Sequence

import jax

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of TPU with its maker's figures; rates are per second."""

    flops: float  # in bfloat16
    memory: float  # bytes
    memory_rate: float  # bytes
    link_rate: float  # bytes that a chip exchanges with its neighbours
    clock: float  # cycles; `flops` divided by the operations of the matrix units in one cycle


CHIPS = {
    "v4": Chip(137.5e12, 16 * GIB, 0.614e12, 150e9, 1.05e9),  # a core; JAX sees two cores a chip
    "v5e": Chip(197e12, 16 * GIB, 0.819e12, 200e9, 1.5e9),
    "v5p": Chip(459e12, 95 * GIB, 2.765e12, 600e9, 1.75e9),
    "v6e": Chip(918e12, 32 * GIB, 1.64e12, 448e9, 1.75e9),
}
# The names under which slices are rented; v4 and v5p count cores, of which a chip has two.
SLICES = {
    "v5e-4": "v5e:2x2",
    "v5e-8": "v5e:2x4",
    "v5e-16": "v5e:4x4",
    "v5e-32": "v5e:4x8",
    "v5e-64": "v5e:8x8",
    "v5e-256": "v5e:16x16",
    "v6e-4": "v6e:2x2",
    "v6e-8": "v6e:2x4",
    "v6e-16": "v6e:4x4",
    "v6e-64": "v6e:8x8",
    "v6e-256": "v6e:16x16",
    "v5p-8": "v5p:2x2x1",
    "v5p-16": "v5p:2x2x2",
    "v5p-32": "v5p:2x2x4",
    "v5p-64": "v5p:2x4x4",
    "v4-8": "v4:2x2x1",
    "v4-32": "v4:2x2x4",
}


def topology_of(name: str) -> tuple[str, Chip, Sequence[jax.Device]]:
    """(full name, kind of chip, devices) of a slice such as "v5e-16" or "v5e:4x4".

    Raises:
      ValueError: there is no such slice, or libtpu is not installed.
    """
    full_name = SLICES.get(name, name)
    kind = full_name.partition(":")[0]
    nearest = difflib.get_close_matches(name, [*SLICES, *SLICES.values()], 1, 0.0)[0]
    if kind not in CHIPS or not re.fullmatch(r"\w+:\d+(x\d+)+", full_name):
        raise ValueError(f"--topology={name} is unknown; did you mean {nearest}?")
    # libtpu must not query a metadata server, and other processes may have it loaded too.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")
    from jax.experimental import topologies

    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=full_name)
    except Exception as error:
        if "INVALID_ARGUMENT" in str(error):
            raise ValueError(
                f"--topology={name} does not exist; did you mean {nearest}?"
            ) from error
        raise ValueError(
            f"the TPU compiler is not available ({str(error).splitlines()[0]}); "
            'pip install "jax[tpu]", on Linux.'
        ) from error
    return full_name, CHIPS[kind], topology.devices
