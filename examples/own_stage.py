"""A stage of your own: item vectors by matrix factorisation, trained by the loop of sigma_jax.

    python examples/own_stage.py --workdir=runs/sft-smoke

The stage `factors` reads WORKDIR/data and writes WORKDIR/factors/item_vectors.npy. The loop gives
it all that other stages have: checkpoints, exact resumption, sharding, metrics, a manifest. The
method is BPR (Rendle et al. 2009): an item that a user had scores higher than a random item.

Run the command twice: the second run finds the artifact and trains nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

from sigma_jax import train
from sigma_jax.configs import common, data
from sigma_jax.data.pipeline import stack_rows, step_batches
from sigma_jax.histories import training_rows
from sigma_jax.runtime import cli
from sigma_jax.runtime.config import MeshConfig, OptimizerConfig, TrainConfig
from sigma_jax.runtime.sharding import make_mesh
from sigma_jax.schema import PreparedData
from sigma_jax.stages import STAGES, Stage

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class FactorsConfig:
    """Settings of the stage; every field is set in `get_config`."""

    optimizer: OptimizerConfig
    train: TrainConfig
    width: int  # of a vector
    report_rows: int  # held-out interactions in a report


def get_config(preset: str = "smoke"):
    """The stage's fields, and those of the run and its data, as a file of configs/ returns them."""
    fields = common.select(
        preset,
        {
            "optimizer": common.optimizer(3e-2, table_learning_rate=3e-2, weight_decay=0.0),
            "train": common.train(200, 512),
            "width": 32,
            "report_rows": 2_000,
        },
        {},
    )
    return common.run_config("factors", preset, fields, data.data_fields(preset), {}).lock()


class Factors(nnx.Module):
    """A vector for each user and item. The score of a pair is the product of its vectors."""

    def __init__(self, num_users: int, num_items: int, width: int, rngs: nnx.Rngs):
        def table(rows: int) -> nnx.Param:
            values = 0.1 * jax.random.normal(rngs.params(), (rows, width))
            return nnx.Param(values, axes=("items", None))  # sharded by row

        self.users, self.items = table(num_users), table(num_items)

    def scores(self, users: jax.Array, items: jax.Array) -> jax.Array:
        """Scores of pairs, shape of `users` and `items`."""
        return jnp.sum(self.users[...][users] * self.items[...][items], axis=-1)


class FactorsTask:
    """The hooks that the loop calls (sigma_jax/runtime/task.py describes each)."""

    def __init__(self, config: FactorsConfig, workdir: Path, seed: int, mesh=None):
        self.config, self.seed = config, seed
        prepared = PreparedData.load(workdir / "data")
        histories = prepared.histories
        self.num_users, self.num_items = histories.num_users, len(prepared.catalogue)
        user_of_row = np.repeat(np.arange(self.num_users), np.diff(histories.offsets))
        self.rows = training_rows(histories)
        self.user = user_of_row[self.rows].astype(np.int32)
        self.item = np.asarray(histories.item)[self.rows]
        # The first item of each validation session.
        self.held_out_users = histories.valid_users()[: config.report_rows]
        self.held_out_items = np.asarray(histories.item)[histories.valid_start[self.held_out_users]]

    @property
    def batch_rows(self) -> int:
        return self.config.train.batch_size

    @property
    def epoch_steps(self) -> float:
        return len(self.rows) / self.batch_rows

    def batches(self, rows: np.ndarray | None = None) -> grain.MapDataset:
        """user, item and a random other item, each [batch_rows]. A row depends on seed and step."""
        source = grain.MapDataset.range(len(self.rows)).seed(self.seed).shuffle().repeat()
        return step_batches(source.random_map(self._row), 1, self.batch_rows, stack_rows, rows)

    def _row(self, number: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        other = rng.integers(self.num_items, size=1, dtype=np.int32)
        taken = slice(number, number + 1)
        return {"user": self.user[taken], "item": self.item[taken], "other": other}

    def model(self, rngs: nnx.Rngs) -> Factors:
        return Factors(self.num_users, self.num_items, self.config.width, rngs)

    def tables(self) -> dict[str, np.ndarray]:
        return {}

    def param_group(self, path: tuple[str, ...]) -> str:
        return "table"

    def loss(self, model, tables, batch, key):
        margin = model.scores(batch["user"], batch["item"])
        margin -= model.scores(batch["user"], batch["other"])
        return jax.nn.softplus(-margin).mean(), {"accuracy": jnp.mean(margin > 0)}

    def report(self, model, tables) -> dict[str, float]:
        """Share of held-out items that score higher than a random item."""
        if not len(self.held_out_users):
            return {}
        other = np.random.default_rng(self.seed).integers(
            self.num_items, size=len(self.held_out_items)
        )
        margin = model.scores(self.held_out_users, self.held_out_items)
        margin -= model.scores(self.held_out_users, other)
        return {"auc": float(jnp.mean(margin > 0))}

    def finalize_on_all_hosts(self, model, mesh) -> None:
        pass

    def refit(self) -> None:
        return None

    def finish(self, model, tables, folder: Path) -> dict[str, float]:
        np.save(folder / "item_vectors.npy", np.asarray(model.items[...], np.float32))
        return {"items": self.num_items}


STAGES["factors"] = Stage(needs=(), classes=lambda: (FactorsConfig, FactorsTask))


def main(argv: Sequence[str]) -> None:
    """Trains the stage in --workdir."""
    workdir = Path(FLAGS.workdir)
    train.train(get_config(FLAGS.preset), workdir, make_mesh(MeshConfig(-1, 1, 1)))
    vectors = np.load(workdir / "factors" / "item_vectors.npy")
    print(f"{workdir}/factors: {len(vectors)} item vectors of width {vectors.shape[1]}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/factors", "Folder of the artifacts.")
    flags.DEFINE_enum("preset", "smoke", common.PRESETS, "Which data to prepare.")
    cli.run_command(main)
