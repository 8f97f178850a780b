"""Batches of a stage on the mesh, from any step on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grain
import jax
from jax.sharding import Mesh

from sigma_jax.runtime import hosts, sharding

READ = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)


def numbered_batches(
    task: Any, start: int, steps: int, mesh: Mesh
) -> Iterator[tuple[int, dict[str, jax.Array]]]:
    """(steps done after it, batch) from step `start` on; what came before is not read again."""
    if start >= steps:
        return
    rows = None if hosts.is_alone() else sharding.local_batch_rows(task.batch_rows, mesh)
    iterator = iter(task.batches(rows).to_iter_dataset(READ))
    iterator.set_state({"next_index": start})
    for step in range(start, steps):
        batch = next(iterator, None)
        if batch is None:
            raise ValueError(f"the data holds {step} batches, train.steps={steps}; lower it.")
        yield step + 1, sharding.place_batch(batch, mesh, task.batch_rows)
