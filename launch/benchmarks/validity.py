"""Many random requests over random catalogues: is everything that comes back there, and allowed?

    python launch/benchmarks/validity.py --cases=100000

Each case is a request with random logits over a catalogue with repeated SIDs, of 1 to 2,000 items
and 1 to 5 levels, of which a random share is active. Prints how many came back, and stops at the
first that is not in the catalogue or not active.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np

from sigma_jax.generation.beam import first_state, select
from sigma_jax.generation.trie import leaves_of
from sigma_jax.generation.trie_build import build_trie, subset, with_room

REQUESTS = 250  # of one catalogue
SHAPES = ((1, 3), (1, 300), (2, 16), (3, 8), (5, 4), (4, 64))  # levels, codes
BEAMS = (1, 8, 70)


@functools.partial(jax.jit, static_argnums=(2, 3))
def search(trie, key, size: int, beams: int, active):
    """Leaves and codes of the best paths of REQUESTS requests with logits drawn at random."""
    state = first_state(REQUESTS)
    for level in range(trie.depth):
        key, subkey = jax.random.split(key)
        logits = 5 * jax.random.normal(subkey, (REQUESTS, state.scores.shape[1], size))
        normaliser = jax.nn.logsumexp(logits, axis=-1)
        state = select(state, logits, trie, level, beams, normaliser, subset=active)
    return leaves_of(trie, state.nodes), state.codes, jnp.isfinite(state.scores)


def check(number: int) -> tuple[int, int]:
    """One catalogue: requests, and paths that came back. AssertionError names what was wrong."""
    rng = np.random.default_rng(number)
    levels, size = SHAPES[number % len(SHAPES)]
    beams = BEAMS[number // len(SHAPES) % len(BEAMS)]
    count = int(rng.choice([1, 2, 30, 2_000]))
    codes = rng.integers(0, size, (count, levels)).astype(np.int32)
    is_active = rng.random(count) < rng.choice([0.05, 0.5, 1.0])
    is_active[rng.integers(count)] = True
    trie = with_room(build_trie(codes, levels, size))
    chosen = None if is_active.all() else subset(trie, is_active)
    found, paths, is_valid = map(
        np.asarray, search(trie, jax.random.key(number), size, beams, chosen)
    )
    active = {tuple(path) for path in codes[is_active].tolist()}
    assert (is_valid.sum(axis=1) == min(beams, len(active))).all() or beams < len(active), number
    assert is_valid[:, 0].all(), f"catalogue {number}: a request got nothing"
    found, paths = found[is_valid].tolist(), map(tuple, paths[is_valid].tolist())
    for leaf, path in set(zip(found, paths, strict=True)):
        items = trie.sorted_items[trie.leaf_start[leaf] : trie.leaf_start[leaf + 1]]
        where = f"catalogue {number}: {path}"
        assert path in active, f"{where} is not there"
        assert (codes[items] == path).all() and is_active[items].any(), f"{where} is another leaf"
    return REQUESTS, int(is_valid.sum())


def main() -> None:
    """Runs the cases and prints what came back."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100_000)
    arguments = parser.parse_args()
    cases = paths = number = 0
    while cases < arguments.cases:
        more, found = check(number)
        cases, paths, number = cases + more, paths + found, number + 1
    print(f"{cases:,} requests over {number:,} catalogues: {paths:,} paths, all of them active")


if __name__ == "__main__":
    main()
