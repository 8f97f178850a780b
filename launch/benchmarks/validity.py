"""Random requests over random catalogues: every returned item must be valid.

    python -m launch.benchmarks.validity --cases=100000

A case is one request with random logits, random queries and a few seen items. Catalogues have 1 to
2,000 items, 1 to 5 levels, repeated SIDs, and a random share of active items. The program prints
how many paths and items were returned. It stops at the first item or path that is not in the
catalogue, not active, already seen, or outside its path.
"""

import argparse
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from launch.benchmarks.result import write_result
from sigma_jax.generation.beam import first_state, select
from sigma_jax.index import device_index
from sigma_jax.index.candidates import SearchInputs
from sigma_jax.index.trie import leaves_of
from sigma_jax.index.trie_build import build_trie, mark_active, with_spare_capacity

REQUESTS = 250  # per catalogue
WIDTH, COUNT, SEEN = 8, 5, 3  # vector width; items per path; seen items per request
SHAPES = ((1, 3), (1, 300), (2, 16), (3, 8), (5, 4), (4, 64))  # levels, codes
BEAMS = (1, 8, 70)


@functools.partial(jax.jit, static_argnums=(3, 4))
def search(trie, index, key, size: int, beams: int, active, seen):
    """Leaves, codes, validity and items of the best paths of REQUESTS random requests."""
    state = first_state(REQUESTS)
    for level in range(trie.depth):
        key, subkey = jax.random.split(key)
        logits = 5 * jax.random.normal(subkey, (REQUESTS, state.scores.shape[1], size))
        normaliser = jax.nn.logsumexp(logits, axis=-1)
        state = select(state, logits, trie, level, beams, normaliser, active=active)
    leaves, is_valid = leaves_of(trie, state.nodes), jnp.isfinite(state.scores)
    queries = jax.random.normal(key, (REQUESTS, beams, WIDTH))
    inputs = SearchInputs(queries, leaves, is_valid, jnp.ones(REQUESTS), seen, active=active)
    candidates = device_index.search(index, inputs, COUNT)
    items = candidates.nearest_of_beams(candidates.items)
    return leaves, state.codes, is_valid, items


def check(number: int) -> tuple[int, int, int]:
    """The numbers of requests, paths and items that one catalogue returned.

    AssertionError naming the catalogue if an item or path is not valid.
    """
    rng = np.random.default_rng(number)
    levels, size = SHAPES[number % len(SHAPES)]
    beams = BEAMS[number // len(SHAPES) % len(BEAMS)]
    count = int(rng.choice([1, 2, 30, 2_000]))
    codes = rng.integers(0, size, (count, levels)).astype(np.int32)
    is_active = rng.random(count) < rng.choice([0.05, 0.5, 1.0])
    is_active[rng.integers(count)] = True
    trie = with_spare_capacity(build_trie(codes, levels, size))
    active_items = None if is_active.all() else mark_active(trie, is_active)
    index = device_index.build_device_index(
        trie, rng.normal(size=(count, WIDTH)).astype(np.float32)
    )
    seen = rng.integers(-1, count, (REQUESTS, SEEN)).astype(np.int32)
    leaves, paths, is_valid, items = map(
        np.asarray, search(trie, index, jax.random.key(number), size, beams, active_items, seen)
    )
    active = {tuple(path) for path in codes[is_active].tolist()}
    assert (is_valid.sum(axis=1) == min(beams, len(active))).all() or beams < len(active), number
    assert is_valid[:, 0].all(), f"catalogue {number}: a request got no path"
    is_item = items >= 0
    assert (items < count).all() and is_active[items[is_item]].all(), f"catalogue {number}: items"
    assert not is_item[~is_valid].any(), f"catalogue {number}: items without a path"
    row, _, _ = np.nonzero(is_item)
    assert not (items[is_item][:, None] == seen[row]).any(), f"catalogue {number}: seen items"
    is_below = (codes[items] == paths[:, :, None]).all(axis=-1)
    assert is_below[is_item].all(), f"catalogue {number}: items of other paths"
    leaves, paths = leaves[is_valid].tolist(), map(tuple, paths[is_valid].tolist())
    for leaf, path in set(zip(leaves, paths, strict=True)):
        inside = trie.sorted_items[trie.leaf_start[leaf] : trie.leaf_start[leaf + 1]]
        assert path in active, f"catalogue {number}: path {path} is not active"
        is_right = (codes[inside] == path).all() and is_active[inside].any()
        assert is_right, f"catalogue {number}: path {path} has the wrong leaf {leaf}"
    return REQUESTS, int(is_valid.sum()), int(is_item.sum())


def main() -> None:
    """Runs the cases and prints how many paths and items were returned."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    cases = paths = items = number = 0
    while cases < arguments.cases:
        counts = check(number)
        cases, paths, items = cases + counts[0], paths + counts[1], items + counts[2]
        number += 1
    print(
        f"{cases:,} requests over {number:,} catalogues: {paths:,} paths and {items:,} items, all "
        "valid"
    )
    if arguments.output:
        totals = {"requests": cases, "catalogues": number, "paths": paths, "items": items}
        write_result(arguments.output, totals)


if __name__ == "__main__":
    main()
