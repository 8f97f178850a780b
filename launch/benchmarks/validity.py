"""Many random requests over random catalogues: is everything that comes back there, and allowed?

    python -m launch.benchmarks.validity --cases=100000

Each case is a request with random logits and queries over a catalogue with repeated SIDs, of 1 to
2,000 items and 1 to 5 levels, of which a random share is active, and some items have been seen.
Prints how many paths and items came back, and stops at the first that is not in the catalogue, not
active, seen, or not of its path.
"""

import argparse
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sigma_jax.generation.beam import first_state, select
from sigma_jax.index import device_index as retrieval
from sigma_jax.index.trie import leaves_of
from sigma_jax.index.trie_build import build_trie, subset, with_room

REQUESTS = 250  # of one catalogue
WIDTH, COUNT, SEEN = 8, 5, 3  # of vectors; items of a path; items a request has seen
SHAPES = ((1, 3), (1, 300), (2, 16), (3, 8), (5, 4), (4, 64))  # levels, codes
BEAMS = (1, 8, 70)


@functools.partial(jax.jit, static_argnums=(3, 4))
def search(trie, index, key, size: int, beams: int, active, seen):
    """Leaves, codes and items of the best paths of REQUESTS requests drawn at random."""
    state = first_state(REQUESTS)
    for level in range(trie.depth):
        key, subkey = jax.random.split(key)
        logits = 5 * jax.random.normal(subkey, (REQUESTS, state.scores.shape[1], size))
        normaliser = jax.nn.logsumexp(logits, axis=-1)
        state = select(state, logits, trie, level, beams, normaliser, subset=active)
    leaves, is_valid = leaves_of(trie, state.nodes), jnp.isfinite(state.scores)
    queries = jax.random.normal(key, (REQUESTS, beams, WIDTH))
    sharpness = jnp.ones(REQUESTS)
    items, _, _ = retrieval.search(
        index, queries, leaves, is_valid, COUNT, sharpness, seen, None, active
    )
    return leaves, state.codes, is_valid, items


def check(number: int) -> tuple[int, int, int]:
    """One catalogue: requests, paths and items that came back. AssertionError names what was
    wrong."""
    rng = np.random.default_rng(number)
    levels, size = SHAPES[number % len(SHAPES)]
    beams = BEAMS[number // len(SHAPES) % len(BEAMS)]
    count = int(rng.choice([1, 2, 30, 2_000]))
    codes = rng.integers(0, size, (count, levels)).astype(np.int32)
    is_active = rng.random(count) < rng.choice([0.05, 0.5, 1.0])
    is_active[rng.integers(count)] = True
    trie = with_room(build_trie(codes, levels, size))
    chosen = None if is_active.all() else subset(trie, is_active)
    index = retrieval.build_index(trie, rng.normal(size=(count, WIDTH)).astype(np.float32))
    seen = rng.integers(-1, count, (REQUESTS, SEEN)).astype(np.int32)
    found, paths, is_valid, items = map(
        np.asarray, search(trie, index, jax.random.key(number), size, beams, chosen, seen)
    )
    active = {tuple(path) for path in codes[is_active].tolist()}
    assert (is_valid.sum(axis=1) == min(beams, len(active))).all() or beams < len(active), number
    assert is_valid[:, 0].all(), f"catalogue {number}: a request got nothing"
    is_item = items >= 0
    assert (items < count).all() and is_active[items[is_item]].all(), f"catalogue {number}: items"
    assert not is_item[~is_valid].any(), f"catalogue {number}: items of no path"
    row, _, _ = np.nonzero(is_item)
    assert not (items[is_item][:, None] == seen[row]).any(), f"catalogue {number}: seen items"
    of_path = (codes[items] == paths[:, :, None]).all(axis=-1)
    assert of_path[is_item].all(), f"catalogue {number}: items of other paths"
    found, paths = found[is_valid].tolist(), map(tuple, paths[is_valid].tolist())
    for leaf, path in set(zip(found, paths, strict=True)):
        inside = trie.sorted_items[trie.leaf_start[leaf] : trie.leaf_start[leaf + 1]]
        where = f"catalogue {number}: {path}"
        assert path in active, f"{where} is not there"
        is_right = (codes[inside] == path).all() and is_active[inside].any()
        assert is_right, f"{where} is another leaf"
    return REQUESTS, int(is_valid.sum()), int(is_item.sum())


def main() -> None:
    """Runs the cases and prints what came back."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    cases = paths = items = number = 0
    while cases < arguments.cases:
        found = check(number)
        cases, paths, items = cases + found[0], paths + found[1], items + found[2]
        number += 1
    print(
        f"{cases:,} requests over {number:,} catalogues: {paths:,} paths and {items:,} items, all "
        "of them active"
    )
    if arguments.output:
        counted = {"requests": cases, "catalogues": number, "paths": paths, "items": items}
        arguments.output.write_text(json.dumps(counted, indent=1))


if __name__ == "__main__":
    main()
