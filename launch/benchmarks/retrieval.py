"""Items inside a prefix: ScaNN against an exact search, on clustered random vectors.

    python -m launch.benchmarks.retrieval --output=retrieval.json

Both answer the same queries in the same process, one after the other in each round: the exact
search is one product of all queries with all items (BLAS, all cores) and a partial sort. Queries
are items with as much noise, as a model's are: near many items, at none. The last column is the
ratio of times, ScaNN's to the exact one's.
"""

import argparse
import itertools
import json
import time
from pathlib import Path

import numpy as np

from sigma_jax.data.vectors import unit_rows
from sigma_jax.index.scann_searcher import Searcher, top_rows

DIMENSIONS, COUNT, SAMPLE = 128, 50, 256


def clustered(rng: np.random.Generator, centres: np.ndarray, count: int) -> np.ndarray:
    """Unit vectors about `centres`, as far from them as these are long."""
    noise = rng.normal(size=(count, centres.shape[1])).astype(np.float32)
    return unit_rows(centres[rng.integers(0, len(centres), count)] + noise / noise.shape[1] ** 0.5)


def measure(size: int, asked: int, rounds: int) -> dict[str, float]:
    """Figures of one prefix: seconds to build, milliseconds a query where so many are asked at
    once, recall of SAMPLE other queries than those it was tuned with."""
    rng = np.random.default_rng(0)
    centres = unit_rows(rng.normal(size=(max(size // 200, 1), DIMENSIONS)))
    vectors, queries, tuning = (clustered(rng, centres, n) for n in (size, SAMPLE, SAMPLE))
    start = time.perf_counter()
    searcher = Searcher.build(vectors, COUNT, tuning)
    build = time.perf_counter() - start
    times = {"scann": [], "exact": []}
    for _ in range(rounds):
        start = time.perf_counter()
        searcher(queries[:asked], COUNT)
        middle = time.perf_counter()
        top_rows(queries[:asked] @ vectors.T, COUNT)
        times["scann"].append(middle - start)
        times["exact"].append(time.perf_counter() - middle)
    found = searcher(queries, COUNT)[0][:, :COUNT]
    exact = top_rows(queries @ vectors.T, COUNT)[0]
    recall = np.mean([np.isin(a, b).mean() for a, b in zip(exact, found, strict=True)])
    ms = {name: 1000 * float(np.median(values)) / asked for name, values in times.items()}
    return {
        "items": size,
        "queries": asked,
        "build": build,
        "partitions": searcher.partitions,
        "recall": float(recall),
        **ms,
        "ratio": ms["scann"] / ms["exact"],
    }


def main() -> None:
    """Measures each size and prints a table."""
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
    for size, asked in itertools.product(arguments.sizes, arguments.queries):
        rows.append(row := measure(int(size), asked, arguments.rounds))
        print(
            f"{row['items']:>8}{row['queries']:>9}{row['build']:>9.1f}{row['recall']:>8.3f}"
            f"{row['scann']:>10.3f}{row['exact']:>10.3f}{row['ratio']:>7.2f}",
            flush=True,
        )
    if arguments.output:
        arguments.output.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
