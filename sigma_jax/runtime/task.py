"""The protocol between a stage and the training loop: all that `train.py` calls of a stage.

A stage is a class with these hooks, made as `StageTask(config, workdir, seed, mesh)`; `mesh` holds
the devices of this process. Every task has every hook, also those with nothing to do.
`sigma_jax/stages.py` has the table of stages.

The order of the calls of one training:

    tables, model                    once, at the start
    batches, loss                    every step
    report                           at every `train.eval_every` steps and at the end
    finalize_on_all_hosts            after the last step, on all processes
    refit                            next; the task that it returns is trained in the same way
    finish                           at the end, on the first process
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import grain
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int64

Tables = Mapping[str, Array]
Batch = Mapping[str, Array]
Scalars = dict[str, Float[Array, ""]]


class Task(Protocol):
    """One stage of training: its batches, model, loss, reports and artifact."""

    @property
    def batch_rows(self) -> int:
        """Rows of every array of a global batch; the devices that share a batch divide it."""

    @property
    def epoch_steps(self) -> float:
        """Steps in which every training example comes once; 0 where there are none."""

    def batches(self, rows: Int64[np.ndarray, " n"] | None = None) -> grain.MapDataset:
        """Element s is the batch of step s: a dict of arrays [batch_rows, ...].

        The batch depends on the seed and s only, so that a run resumes exactly.

        Args:
          rows: only these rows of the batch, ascending: those that lie on this host.
        """

    def model(self, rngs: nnx.Rngs) -> nnx.Module:
        """The model before its first step."""

    def tables(self) -> dict[str, np.ndarray]:
        """Frozen arrays that `loss` and `report` read; large ones are sharded over the mesh."""

    def param_group(self, path: tuple[str, ...]) -> str:
        """The optimizer's group of the parameter at `path`: "base", "table" or "frozen".

        Each group has a learning rate of its own: `optimizer.learning_rate` for "base",
        `optimizer.table_learning_rate` for "table". A frozen parameter is not trained.
        """

    def loss(
        self, model: nnx.Module, tables: Tables, batch: Batch, key: Array
    ) -> tuple[Float[Array, ""], Scalars]:
        """The loss of a global batch, and scalar metrics by name; traced by `jax.jit`.

        Args:
          batch: the arrays of `batches`, sharded by rows.
          key: of this step; it depends on the seed and the step only.
        """

    def report(self, model: nnx.Module, tables: Tables) -> dict[str, float]:
        """Metrics on held-out data; {} where there is none. The first process alone calls it."""

    def finalize_on_all_hosts(self, model: nnx.Module, mesh: Mesh) -> None:
        """Work with the trained model that needs the devices of all processes.

        Args:
          model: on `mesh`, sharded as it was trained.
          mesh: the devices of all processes.
        """

    def refit(self) -> Task | None:
        """The task to train after this one, on more rows; None where this one is the last."""

    def finish(self, model: nnx.Module, tables: Tables, folder: Path) -> dict[str, Any]:
        """Writes the files of the artifact into `folder`; returns metrics for its manifest.

        The first process alone calls it. A task from `refit` finds the files of the first task in
        `folder` and replaces them.
        """
