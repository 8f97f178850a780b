"""A stage with three parameters and one counter, for tests of the training loop.

    python tests/linear_task.py FOLDER STEPS DIE_AT [term]

The command trains it in FOLDER and prints the bytes of its parameters. Before step DIE_AT (0:
never) it sends itself SIGKILL, or with `term` SIGTERM. FOLDER/batches.txt lists its batches.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from pathlib import Path
from unittest import mock

import grain
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sigma_jax.runtime import hosts
from sigma_jax.runtime.artifacts import Recipe
from sigma_jax.runtime.config import MeshConfig, OptimizerConfig, TrainConfig
from sigma_jax.runtime.process import Stopped

ROWS, WIDTH = 16, 8


@dataclasses.dataclass(frozen=True)
class LinearConfig:
    """The config of the linear stage."""

    optimizer: OptimizerConfig
    train: TrainConfig


def linear_config(steps: int = 10, **train) -> LinearConfig:
    """A config with a log line every step and a checkpoint every five."""
    optimizer = OptimizerConfig(0.1, 0.01, 0.01, 2, "cosine", 1.0, 0.9, 0.999)
    fields = {"steps": steps, "epochs": 0.0, "batch_size": ROWS, "log_every": 1, "eval_every": 0}
    fields |= {"checkpoint_every": 5, "keep_checkpoints": 2, "average_over": 0.0}
    fields |= {"patience": 0, "keep_best": "", "accumulate": 1}
    return LinearConfig(optimizer, TrainConfig(**{**fields, **train}))


class Linear(nnx.Module):
    """y = x W T + b with W trained, T a table, b frozen, and a counter of forward passes."""

    def __init__(self, rngs: nnx.Rngs):
        normal = jax.random.normal
        self.weight = nnx.Param(normal(rngs.params(), (WIDTH, WIDTH)), axes=("embed", "mlp"))
        self.table = nnx.Param(normal(rngs.params(), (WIDTH, 4)), axes=("codes", None))
        self.bias = nnx.Param(jnp.ones(4))
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))
        self.rngs = nnx.Rngs(3)


class LinearTask:
    """Regression onto a fixed linear map."""

    batch_rows = ROWS
    epoch_steps = 4.0

    def __init__(self, seed: int = 0, seen: list | None = None):
        self.seed, self.seen = seed, seen

    def make_batch(self, step: int) -> dict[str, np.ndarray]:
        random = np.random.default_rng((self.seed, step))
        x = random.normal(size=(ROWS, WIDTH)).astype(np.float32)
        return {"x": x, "y": x[:, :4] * 3 - 1, "step": np.full(ROWS, step, np.int32)}

    def batches(self, rows: np.ndarray | None = None) -> grain.MapDataset:
        def local_batch(step: int) -> dict[str, np.ndarray]:
            return {name: array[rows] for name, array in self.make_batch(step).items()}

        rows = np.arange(ROWS) if rows is None else rows
        return grain.MapDataset.range(10**6).map(local_batch)

    def model(self, rngs: nnx.Rngs) -> Linear:
        return Linear(rngs)

    def tables(self) -> dict[str, np.ndarray]:
        return {"shift": np.full((4,), 0.5, np.float32)}

    def param_group(self, path: tuple[str, ...]) -> str:
        return {"weight": "base", "table": "table", "bias": "frozen"}[path[-1]]

    def loss(self, model, tables, batch, key):
        model.calls[...] += 1
        noise = 0.01 * jax.random.normal(key, batch["y"].shape)
        y = batch["x"] @ model.weight[...] @ model.table[...] + model.bias[...] + tables["shift"]
        error = jnp.mean((y + noise - batch["y"]) ** 2)
        return error, {"mean_step": jnp.mean(batch["step"].astype(jnp.float32))}

    def report(self, model, tables) -> dict[str, float]:
        return {"calls": float(model.calls[...])}

    def finalize_on_all_hosts(self, model, mesh) -> None:
        pass

    def refit(self) -> None:
        return None

    def finish(self, model, tables, folder: Path) -> dict[str, int]:
        return {"calls": int(model.calls[...])}


def recipe(seed: int = 0) -> Recipe:
    return Recipe({"width": WIDTH}, {}, seed)


def run(folder: Path, steps: int, die_at: int = 0, how: str = "kill", **train) -> nnx.Module:
    """Trains in `folder` over all devices and lists the batches in FOLDER/batches.txt."""
    from sigma_jax.runtime import fit as loop
    from sigma_jax.runtime.sharding import make_mesh

    numbered_batches = loop.numbered_batches

    def watched_batches(*args):
        for done, batch in numbered_batches(*args):
            if die_at and done == die_at + 1 and hosts.is_first():
                if how == "term":
                    os.kill(os.getpid(), signal.SIGTERM)
                else:
                    die(folder, die_at)
            total = float(jnp.sum(batch["x"]))
            if hosts.is_first():
                with open(folder / "batches.txt", "a") as file:
                    file.write(f"{done - 1} {total.hex()}\n")
            yield done, batch

    folder.mkdir(parents=True, exist_ok=True)
    mesh = make_mesh(MeshConfig(-1, 1, 1))
    config = linear_config(steps, **train)
    with mock.patch.object(loop, "numbered_batches", watched_batches):
        return loop.fit(LinearTask(), config, recipe(), folder, mesh, 0, "linear")[0]


def die(folder: Path, step: int) -> None:
    """Sends SIGKILL; after step 6 it first waits for the checkpoint of step 5 to be on disk."""
    deadline = time.monotonic() + 60
    while step > 6 and not (folder / "checkpoints" / "5").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    hosts.start(False)
    try:
        model = run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
    except Stopped as stopped:
        print(stopped)
        sys.exit(0)
    if model is None:  # only the first process has the model
        sys.exit(0)
    for leaf in jax.tree.leaves(nnx.to_pure_dict(nnx.state(model, nnx.Param))):
        print(np.asarray(leaf).tobytes().hex())
    print(int(model.calls[...]))
