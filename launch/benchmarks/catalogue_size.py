"""Three steps against the exhaustive ranker, by the size of the catalogue.

    python -m launch.benchmarks.catalogue_size --output=catalogue_size.json

Both rank the items of generated catalogues for the same queries, in turns. The three steps score
the prefixes, search the best of them, and fuse both. The exhaustive ranker is one softmax over all
items. The network that makes the queries is the same for both and is left out. The items lie around
random centres, which are the prefixes; a prefix has about 250 items. Queries lie between a few
items of one or two centres. "found" is the share of the exhaustive first ten that the three steps
find. The last column is the time of the three steps divided by that of the exhaustive ranker.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from launch.benchmarks.result import write_result
from sigma_jax.data.vectors import unit_rows
from sigma_jax.generation import fusion
from sigma_jax.generation.beam import first_state, select
from sigma_jax.generation.prefix_scores import make_prefix_scorer
from sigma_jax.index.candidates import SearchInputs
from sigma_jax.index.device_index import build_device_index, search
from sigma_jax.index.trie import leaves_of
from sigma_jax.index.trie_build import build_trie

WIDTH, QUERIES, COUNT, TEMPERATURE = 64, 8, 10, 0.05
BEAMS, RETRIEVED = 32, 20
ITEMS_OF_PREFIX = 250
PIECE = 1_000_000  # items that are drawn at a time


def catalogue(size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Item vectors, unit length, and the prefix of each: a centre, with noise as long as it."""
    prefixes = max(size // ITEMS_OF_PREFIX, 1)
    centres = unit_rows(rng.normal(size=(prefixes, WIDTH))).astype(np.float32)
    prefix = rng.integers(0, prefixes, size).astype(np.int32)
    vectors = np.empty((size, WIDTH), np.float32)
    for start in range(0, size, PIECE):
        of_piece = prefix[start : start + PIECE]
        noise = rng.standard_normal((len(of_piece), WIDTH), np.float32) / WIDTH**0.5
        vectors[start : start + PIECE] = unit_rows(centres[of_piece] + noise)
    return vectors, prefix


def queries_of(vectors: np.ndarray, prefix: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Queries between three items: two of one prefix and one of another, with noise."""
    found = []
    for _ in range(QUERIES):
        first = np.flatnonzero(prefix == prefix[rng.integers(len(prefix))])
        items = [*rng.choice(first, 2), rng.integers(len(prefix))]
        found.append(vectors[items].sum(axis=0) + rng.normal(size=WIDTH) * 0.3 / WIDTH**0.5)
    return unit_rows(np.stack(found)).astype(np.float32)


def measure(size: int, rounds: int) -> dict[str, Any]:
    """Seconds of both rankers for a batch of queries, and the share found by the three steps."""
    rng = np.random.default_rng(size)
    vectors, prefix = catalogue(size, rng)
    queries = queries_of(vectors, prefix, rng)
    by_prefix = build_trie(prefix[:, None], 1, int(prefix.max()) + 1)
    index = build_device_index(by_prefix, vectors)
    scorer = make_prefix_scorer(by_prefix, index.vectors, TEMPERATURE)
    trie = jax.tree.map(jnp.asarray, by_prefix)
    codes = int(prefix.max()) + 1
    factor = jnp.full(QUERIES, 1 / TEMPERATURE)

    @jax.jit
    def three_step(queries, scorer, trie, index):
        scores = scorer.node_scores(queries)[0]
        no_codes = jnp.zeros((QUERIES, 1, codes))
        state = select(first_state(QUERIES), no_codes, trie, 0, BEAMS, None, scores)
        leaves, is_valid = leaves_of(trie, state.nodes), jnp.isfinite(state.scores)
        of_beams = jnp.broadcast_to(queries[:, None], (QUERIES, BEAMS, WIDTH))
        inputs = SearchInputs(of_beams, leaves, is_valid, factor)
        candidates = search(index, inputs, RETRIEVED)
        log_p = fusion.fuse_candidates(
            candidates, state.scores, is_valid, factor, "exact", "adaptive"
        )
        return fusion.merge(candidates.items, log_p, COUNT)[:2]

    @jax.jit
    def exhaustive(queries, index):
        logits = index.all_products(queries) * factor[:, None]
        log_p, rows = jax.lax.top_k(jax.nn.log_softmax(logits, axis=-1), COUNT)
        return index.sorted_items[rows], log_p

    ways = {
        "three_step": lambda: three_step(queries, scorer, trie, index),
        "exhaustive": lambda: exhaustive(queries, index),
    }
    lists = {name: jax.block_until_ready(way()) for name, way in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            jax.block_until_ready(way())
            times[name].append(time.perf_counter() - start)
    three, all_items = (np.asarray(lists[name][0]) for name in ways)
    found = [np.isin(a, b).mean() for a, b in zip(all_items, three, strict=True)]
    ms = {name: 1000 * float(np.median(part)) / QUERIES for name, part in times.items()}
    return {
        "items": size,
        "prefixes": codes,
        "found": float(np.mean(found)),
        **ms,
        "ratio": ms["three_step"] / ms["exhaustive"],
    }


def main() -> None:
    """Measures each size and prints one line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=float, nargs="+", default=[1e4, 1e5, 1e6, 1e7])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rows = []
    print(f"{'items':>10}{'prefixes':>10}{'found':>8}{'3 steps ms':>12}{'all ms':>10}  ratio")
    for size in arguments.sizes:
        rows.append(row := measure(int(size), arguments.rounds))
        print(
            f"{row['items']:>10}{row['prefixes']:>10}{row['found']:>8.3f}"
            f"{row['three_step']:>12.2f}{row['exhaustive']:>10.2f}{row['ratio']:>7.3f}",
            flush=True,
        )
    if arguments.output:
        write_result(arguments.output, rows)


if __name__ == "__main__":
    main()
