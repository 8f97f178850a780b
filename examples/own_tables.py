"""Your own tables, end to end: write them, train on them, ask for recommendations.

    python examples/own_tables.py --workdir=runs/shop

The program makes up a shop of 300 items and 500 customers, and writes its tables as Parquet files
into WORKDIR/tables. Replace `write_tables` by your own tables; docs/own_data.md lists the columns.

The training takes some minutes. `--quick` trains for ten steps, to see that all runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import flags

import sigma_jax
from sigma_jax.runtime import cli

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


STAGES = (
    "upstream.teacher.",
    "upstream.grounding.",
    "upstream.grounding_head.",
    "upstream.tokenizer.",
    "",
)


def main(argv: Sequence[str]) -> None:
    """Writes the tables, trains, evaluates and recommends."""
    workdir = Path(FLAGS.workdir)
    write_tables(workdir / "tables")
    fields = {"data.path": str(workdir / "tables")}
    if FLAGS.quick:
        for stage in STAGES:
            fields |= {f"{stage}train.steps": 10, f"{stage}optimizer.warmup_steps": 2}
        fields |= {"reranker.fit_requests": 30, "evaluation.requests.JustForYou": 100}
    config = sigma_jax.load_config("configs/sft.py:files", fields)
    recommender = sigma_jax.train_recommender(config, workdir)
    sigma_jax.evaluate_recommender(config, workdir)
    print((workdir / "evaluation" / "table.txt").read_text())

    for instruction in ("recommend something for me", "i am looking for candles"):
        [answer] = recommender.recommend([{"user_id": "u1", "instruction": instruction}], count=5)
        print(f"u1, {instruction}: {', '.join(item['title'] for item in answer['items'])}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/shop", "Folder of the artifacts.")
    flags.DEFINE_bool("quick", False, "Train each stage for ten steps.")
    cli.run_command(main)
