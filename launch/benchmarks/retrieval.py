"""Search for items inside a prefix: ScaNN against an exact search, on clustered random vectors.

    python -m launch.benchmarks.retrieval --output=retrieval.json

Both searches answer the same queries in one process, in turns. The exact search is a product of all
queries with all items (BLAS, all cores) and a partial sort. Queries come from the clusters of the
items: like a model's queries, they are near many items and equal to none. The last column is
ScaNN's time divided by the exact search's time.
"""

import argparse
import itertools
import time
from pathlib import Path

import numpy as np

from launch.benchmarks.result import write_result
from sigma_jax.data.vectors import unit_rows
from sigma_jax.index.scann_searcher import Searcher, top_rows

DIMENSIONS, COUNT, SAMPLE = 128, 50, 256


def clustered(rng: np.random.Generator, centres: np.ndarray, count: int) -> np.ndarray:
    """Random unit vectors around `centres`, with noise about as long as a centre."""
    noise = rng.normal(size=(count, centres.shape[1])).astype(np.float32)
    return unit_rows(centres[rng.integers(0, len(centres), count)] + noise / noise.shape[1] ** 0.5)


def measure(size: int, num_queries: int, rounds: int) -> dict[str, float]:
    """Measurements for a prefix of `size` items.

    They are seconds to build the index, milliseconds per query for batches of `num_queries`, and
    the recall of SAMPLE queries. Other queries were used to tune ScaNN.
    """
    rng = np.random.default_rng(0)
    centres = unit_rows(rng.normal(size=(max(size // 200, 1), DIMENSIONS)))
    vectors, queries, tuning = (clustered(rng, centres, n) for n in (size, SAMPLE, SAMPLE))
    start = time.perf_counter()
    searcher = Searcher.build(vectors, COUNT, tuning)
    build = time.perf_counter() - start
    times = {"scann": [], "exact": []}
    for _ in range(rounds):
        start = time.perf_counter()
        searcher(queries[:num_queries], COUNT)
        middle = time.perf_counter()
        top_rows(queries[:num_queries] @ vectors.T, COUNT)
        times["scann"].append(middle - start)
        times["exact"].append(time.perf_counter() - middle)
    approximate = searcher(queries, COUNT)[0][:, :COUNT]
    exact = top_rows(queries @ vectors.T, COUNT)[0]
    recall = np.mean([np.isin(a, b).mean() for a, b in zip(exact, approximate, strict=True)])
    ms = {name: 1000 * float(np.median(values)) / num_queries for name, values in times.items()}
    return {
        "items": size,
        "queries": num_queries,
        "build": build,
        "partitions": searcher.partitions,
        "recall": float(recall),
        **ms,
        "ratio": ms["scann"] / ms["exact"],
    }


def main() -> None:
    """Measures each size with each number of queries and prints one line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = [1e3, 2e3, 5e3, 1e4, 2e4, 4e4, 1e5, 4e5]
    parser.add_argument("--sizes", type=float, nargs="+", default=sizes)
    parser.add_argument("--queries", type=int, nargs="+", default=[8, 256])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rows = []
    widths = {"items": 8, "queries": 9, "build s": 9, "recall": 8, "ScaNN ms": 10, "exact ms": 10}
    print("".join(f"{name:>{width}}" for name, width in widths.items()) + "  ratio")
    for size, num_queries in itertools.product(arguments.sizes, arguments.queries):
        rows.append(row := measure(int(size), num_queries, arguments.rounds))
        print(
            f"{row['items']:>8}{row['queries']:>9}{row['build']:>9.1f}{row['recall']:>8.3f}"
            f"{row['scann']:>10.3f}{row['exact']:>10.3f}{row['ratio']:>7.2f}",
            flush=True,
        )
    if arguments.output:
        write_result(arguments.output, rows)


if __name__ == "__main__":
    main()
