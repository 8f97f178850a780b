"""Does a training see test targets? Trains twice, the second time on other test targets.

    python -m launch.leak --config=configs/sft.py:smoke --workdir=runs/leak

In the rows from each user's test session on, a random permutation of the catalogue exchanges the
items. Nothing else changes. So every artifact of a training has to be the same, byte for byte. The
command trains WORKDIR/given and WORKDIR/permuted, and names each file that differs. Its status is 1
if there is any. These files may differ:

- data/history_item.npy in the rows that were changed;
- data/card.md, which shows examples of test targets;
- manifest.json: its metrics are compared, without seconds and memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
from absl import flags
from ml_collections import ConfigDict

from sigma_jax import prepare, train
from sigma_jax.data import database
from sigma_jax.runtime import cli
from sigma_jax.runtime.artifacts import read_manifest
from sigma_jax.runtime.config import MeshConfig, to_dataclass
from sigma_jax.runtime.process import locked
from sigma_jax.runtime.sharding import make_mesh
from sigma_jax.schema import Histories
from sigma_jax.stages import artifact_names

FLAGS = flags.FLAGS
MEASURED = ("seconds", "encode_seconds", "peak_memory_mb")  # of a run, not of its result
LOOKED_AT = ("manifest.json", "card.md", "history_item.npy")  # compared apart, or not at all


def define_flags() -> None:
    """Defines the flags of the command."""
    cli.define_config()
    flags.DEFINE_string("workdir", None, "The folder of both trainings.", required=True)


def main(argv: Sequence[str]) -> None:
    """Trains twice, and prints what differs."""
    workdir = Path(FLAGS.workdir)
    with locked(workdir):
        differing = find_leaks(FLAGS.config, workdir)
    if differing:
        raise ValueError(f"permuted test targets changed {', '.join(differing)}.")
    print("No artifact of the training depends on the test targets.")


def find_leaks(config: ConfigDict, workdir: Path) -> list[str]:
    """The files of a training that permuted test targets change."""
    mesh = make_mesh(to_dataclass(MeshConfig, config.mesh, "mesh"))
    train.train(config, workdir / "given", mesh)
    with mock.patch.object(prepare, "split_log", permuted_split(config.seed)):
        train.train(config, workdir / "permuted", mesh)
    return list(differences(workdir / "given", workdir / "permuted"))


def permuted_split(seed: int) -> Any:
    """`prepare.split_log` with the items of the test rows exchanged by a permutation."""
    original = prepare.split_log

    def split_log(con, *arguments):
        items, events, row_counts, has_sessions = original(con, *arguments)
        counts = row_counts.select("user", "test_rows")
        joined = events.inner_join(counts, "user").order_by("user", "place")
        table: pa.Table = con.to_pyarrow(joined)
        item, place, test = (table[name].to_numpy() for name in ("item", "place", "test_rows"))
        rows = np.flatnonzero(place >= test)
        item = item.copy()
        known = np.unique(item)
        exchanged = np.random.default_rng([seed, 9]).permutation(known)
        item[rows] = exchanged[np.searchsorted(known, item[rows])]
        changed = table.drop_columns(["item", "test_rows"]).append_column("item", pa.array(item))
        return items, as_events(con, changed, events), row_counts, has_sessions

    return split_log


def as_events(con: Any, changed: pa.Table, events: ir.Table) -> ir.Table:
    """The changed rows as a table with the columns and types of `events`."""
    table = database.from_arrow(con, "permuted_events", changed)
    return table.select(*events.columns).cast(dict(events.schema().items()))


def differences(given: Path, permuted: Path) -> Iterator[str]:
    """The files of the first workdir that differ in the second, or that only one has."""
    for name in artifact_names():
        folders = [workdir / name for workdir in (given, permuted)]
        files = [
            {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
            for folder in folders
        ]
        yield from (f"{name}/{file}" for file in sorted(files[0] ^ files[1]))
        for file in sorted(files[0] & files[1]):
            if Path(file).name not in LOOKED_AT:
                if (folders[0] / file).read_bytes() != (folders[1] / file).read_bytes():
                    yield f"{name}/{file}"
        if folders[0].exists() and metrics_of(given, name) != metrics_of(permuted, name):
            yield f"{name}/manifest.json"
    if training_items(given) != training_items(permuted):
        yield "data/history_item.npy"


def metrics_of(workdir: Path, stage: str) -> dict[str, Any]:
    """The metrics of a stage's manifest that are no measurements; for `data`, none."""
    if stage == "data":
        return {}  # the data card counts test targets
    metrics = read_manifest(workdir, stage).metrics
    return {name: value for name, value in metrics.items() if name not in MEASURED}


def training_items(workdir: Path) -> list[list[int]]:
    """The items of each user before the test session."""
    histories = Histories.load(workdir / "data")
    return [
        histories.before(user, histories.test_start[user]).tolist()
        for user in range(histories.num_users)
    ]


if __name__ == "__main__":
    define_flags()
    cli.run_command(main)
