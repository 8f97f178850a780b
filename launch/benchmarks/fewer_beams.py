"""Fewer beams under load: HR@10 and time by the share of the beams that a request gets.

    python -m launch.benchmarks.fewer_beams --workdir=runs/sft-local

Quality: HR@10 of validation requests with instructions. Time: whole answers of 100 items as the
service computes them, one request at a time and 32 together, in alternation. CPU time counts the
work of all cores, so other processes change it little.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from launch.benchmarks.result import write_result
from sigma_jax import metrics
from sigma_jax.recommender.recommender import Recommender, RecommendOptions
from sigma_jax.recommender.workdir import OpenWorkdir, load_workdir
from sigma_jax.schema import RequestBatch
from sigma_jax.serving.api.context import REQUESTS_AT_ONCE
from sigma_jax.serving.api.service import COMPUTED
from sigma_jax.tasks import instructions
from sigma_jax.tasks.requests import sample_requests

SHARES = (1.0, 0.5, 0.25, 0.125)
TASKS = ("JustForYou", "Query", "Category")


def main() -> None:
    """Prints a line for each share."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=1_000, help="of each task")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    opened = load_workdir(arguments.workdir)
    batch = requests_of(opened, arguments.requests)
    times = {size: measured(opened, batch, size, arguments.rounds) for size in SIZES}
    result = []
    for share in SHARES:
        recommender = opened.recommender.at_load(share)
        row: dict[str, Any] = {"share": share, "beams": recommender.generator.config.num_beams}
        row |= quality(recommender, batch)
        for size, name in SIZES.items():
            wall, cpu = times[size][share]
            row |= {f"ms{name}": 1000 * wall, f"cpu_ms{name}": 1000 * cpu}
        print(" ".join(f"{key}={value:.4g}" for key, value in row.items()), flush=True)
        result.append(row)
    if arguments.output:
        write_result(arguments.output, result)


PARTS = 4  # batches that are measured in turn
SIZES = {1: "_alone", REQUESTS_AT_ONCE: ""}  # requests computed together -> end of a field's name


def requests_of(opened: OpenWorkdir, count: int) -> RequestBatch:
    """At most `count` validation requests of each of TASKS, in random order."""
    requests = sample_requests(
        opened.data,
        "valid",
        0,
        dict.fromkeys(TASKS, count),
        opened.recommender.spec.longtail_share,
        instructions.TRAIN_WORDINGS,
        is_random=True,
    )
    order = np.random.default_rng(0).permutation(len(requests))
    return RequestBatch.of(requests.take(order), opened.data)


def quality(recommender: Recommender, batch: RequestBatch) -> dict[str, float]:
    """HR@10 and its standard error."""
    answer = recommender.recommend(batch, RecommendOptions(10))
    hits = metrics.hits(metrics.item_ranks(answer.items, batch.requests.target), 10)
    return {"hr_10": float(hits.mean()), "error": float(metrics.standard_error(hits))}


def measured(
    opened: OpenWorkdir, batch: RequestBatch, size: int, rounds: int
) -> dict[float, tuple[float, float]]:
    """Share -> (seconds, CPU seconds) of a request among `size` that are computed together."""
    parts = parts_of(batch, size)
    seconds: dict[float, list[tuple[float, float]]] = {share: [] for share in SHARES}
    for number in range(-len(parts), rounds):
        # The first answer to a batch reads its texts and users, which later ones find at hand.
        opened.recommender.recommend(parts[number % len(parts)], RecommendOptions(COMPUTED))
        for share in SHARES:
            options = RecommendOptions(COMPUTED, beam_share=share)
            began, cpu = time.perf_counter(), time.process_time()
            opened.recommender.recommend(parts[number % len(parts)], options)
            if number >= 0:  # the first round of each part compiles
                taken = time.perf_counter() - began, time.process_time() - cpu
                seconds[share].append(taken)
    return {share: tuple(np.median(taken, axis=0) / size) for share, taken in seconds.items()}


def parts_of(batch: RequestBatch, size: int) -> list[RequestBatch]:
    """PARTS different batches of `size` requests."""
    rows = np.arange(PARTS * size) % len(batch.requests)
    return [batch.take(some) for some in rows.reshape(PARTS, size)]


if __name__ == "__main__":
    main()
