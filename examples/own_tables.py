"""Your own tables, end to end: write them, train on them, ask for recommendations.

    python examples/own_tables.py --workdir=runs/shop

The program makes up a shop of 300 items and 500 customers, and writes its tables as Parquet files
into WORKDIR/tables. Replace `write_tables` by your own tables; docs/own_data.md lists the columns.

`--preset=files` (the default) trains for some minutes. `--preset=smoke` only shows that all runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import flags

from sigma_jax import train
from sigma_jax.configs import data, sft
from sigma_jax.evaluation.run import evaluate
from sigma_jax.recommender.recommender import RecommendOptions
from sigma_jax.recommender.workdir import load_workdir
from sigma_jax.runtime import cli
from sigma_jax.runtime.config import MeshConfig
from sigma_jax.runtime.sharding import make_mesh

FLAGS = flags.FLAGS
CATEGORIES = ("tea", "coffee", "soap", "candles", "garden tools", "board games")
COLOURS = ("red", "green", "blue", "white", "black")
NUM_ITEMS, NUM_USERS, NUM_SESSIONS = 300, 500, 8
START, YEAR = 1_672_531_200, 365 * 86_400  # 2023-01-01, in seconds


def write_tables(folder: Path, seed: int = 0) -> None:
    """Writes items, interactions and searches. Every customer likes two categories."""
    rng = np.random.default_rng(seed)
    category = np.arange(NUM_ITEMS) % len(CATEGORIES)
    items = [
        {
            "item_id": f"i{item}",
            "title": f"{COLOURS[item % 5]} {CATEGORIES[category[item]]} no {item}",
            "category": CATEGORIES[category[item]],
            "price": round(float(rng.uniform(1, 50)), 2),
        }
        for item in range(NUM_ITEMS)
    ]
    interactions = []
    for user in range(NUM_USERS):
        liked = rng.choice(len(CATEGORIES), 2, replace=False)
        for session, time in enumerate(np.sort(rng.integers(START, START + YEAR, NUM_SESSIONS))):
            for _ in range(rng.integers(1, 4)):
                pool = np.flatnonzero(category == rng.choice(liked))
                item = pool[min(int(rng.geometric(0.1)) - 1, len(pool) - 1)]  # some sell better
                interactions.append(
                    {
                        "user_id": f"u{user}",
                        "item_id": f"i{item}",
                        "timestamp": int(time),
                        "session_id": f"u{user}-{session}",
                    }
                )
    searches = [
        {"query": name, "item_id": f"i{item}", "clicks": 10}
        for number, name in enumerate(CATEGORIES)
        for item in np.flatnonzero(category == number)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    tables = {"items": items, "interactions": interactions, "searches": searches}
    for name, rows in tables.items():
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")


def make_config(preset: str, tables: Path):
    """The config of `preset`, with the data settings of own tables."""
    config = sft.get_config(preset)
    with config.unlocked():
        config.data = data.data_fields("files")
        config.data.path = str(tables)
    return config


def main(argv: Sequence[str]) -> None:
    """Writes the tables, trains, evaluates and recommends."""
    workdir = Path(FLAGS.workdir)
    write_tables(workdir / "tables")
    config = make_config(FLAGS.preset, workdir / "tables")
    train.train(config, workdir, make_mesh(MeshConfig(-1, 1, 1)))
    evaluate(config, workdir)
    print((workdir / "evaluation" / "table.txt").read_text())

    opened = load_workdir(workdir)
    instructions = ("recommend something for me", "i am looking for candles")
    batch = opened.parser.parse([{"user_id": "u1", "instruction": text} for text in instructions])
    answer = opened.recommender.recommend(batch, RecommendOptions(count=5))
    for instruction, items in zip(instructions, answer.items, strict=True):
        print(f"u1, {instruction}: {', '.join(opened.data.catalogue.titles(items))}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/shop", "Folder of the artifacts.")
    flags.DEFINE_enum("preset", "files", ("files", "smoke"), "How long to train.")
    cli.run_command(main)
