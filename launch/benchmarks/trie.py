"""Constrained beam search against STATIC's reference implementation, on random semantic IDs.

    python -m launch.benchmarks.trie --reference=FOLDER --output=trie.json

FOLDER is a checkout of github.com/youtube/static-constraint-decoding; without one only this
package is measured. Both search with the reference's stand-in model (uniform random logits); the
reference looks at as many tokens a beam as there are beams, so that its answers are exact too.
"model" is the stand-in alone with the sum that makes its logits probabilities, which both need:
on a CPU drawing the logits takes most of a search. The last lines are ratios, ours to theirs, with
the model and without it.
"""

import argparse
import functools
import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sigma_jax.generation.beam import BeamState, first_state, select
from sigma_jax.index.trie import Trie
from sigma_jax.index.trie_build import build_trie

LEVELS, CODES = 8, 2048
BATCH, BEAMS = 2, 70


@functools.partial(jax.jit, static_argnums=0)
def search(model: Callable, trie: Trie, key: jax.Array) -> BeamState:
    """The best prefixes under a stand-in model that draws its logits."""
    state, tokens = first_state(BATCH), jnp.zeros((BATCH, 1), jnp.int32)
    for level in range(LEVELS):
        logits, key = model(tokens, key)
        logits = logits.reshape(BATCH, -1, CODES)
        normaliser = jax.nn.logsumexp(logits, axis=-1)
        state = select(state, logits, trie, level, BEAMS, log_normaliser=normaliser)
        tokens = state.codes[:, :, -1].reshape(-1, 1)
    return state


@functools.partial(jax.jit, static_argnums=0)
def model_alone(model: Callable, key: jax.Array) -> jax.Array:
    """What the stand-in draws for a search, and its sums."""
    total = jnp.zeros(())
    for level in range(LEVELS):
        rows = BATCH * (BEAMS if level else 1)
        logits, key = model(jnp.zeros((rows, 1), jnp.int32), key)
        total += jax.nn.logsumexp(logits, axis=-1).sum()
    return total


class Drawn:
    """The stand-in where there is no reference: logits uniform in 0..1."""

    def __call__(self, tokens: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits [rows, 1, CODES] and the next key."""
        key, subkey = jax.random.split(key)
        return jax.random.uniform(subkey, (len(tokens), 1, CODES)), key


def size_of(arrays) -> int:
    """Bytes of all arrays."""
    return sum(np.asarray(array).nbytes for array in jax.tree.leaves(arrays))


def timed(functions: list[Callable], rounds: int) -> list[float]:
    """Median milliseconds of each, one after the other in each round."""
    times = [[] for _ in functions]
    for number in range(-1, rounds):
        for of_function, function in zip(times, functions, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(function(jax.random.key(number + 1)))
            if number >= 0:  # the first compiles
                of_function.append(1000 * (time.perf_counter() - start))
    return [float(np.median(of_function)) for of_function in times]


def reference_of(folder: Path | None):
    """The reference's builder, search and stand-in model."""
    if folder is None:
        return None, None, Drawn()
    sys.path.insert(0, str(folder))
    decoding = importlib.import_module("static_decoding.decoding_jax")
    builder = importlib.import_module("static_decoding.csr_utils").build_static_index
    return builder, decoding.sparse_transition_jax, decoding.RandomModel(CODES)


def measure(codes: np.ndarray, folder: Path | None, rounds: int) -> dict[str, float]:
    """Figures of one corpus; seconds to build, bytes, milliseconds of a search."""
    builder, their_search, model = reference_of(folder)
    start = time.perf_counter()
    trie = build_trie(codes, LEVELS, CODES)
    figures = {"items": len(codes), "build": time.perf_counter() - start, "bytes": size_of(trie)}
    trie = jax.device_put(trie)
    functions = [
        lambda key: search(model, trie, key),
        lambda key: model_alone(model, key),
    ]
    if builder is not None:
        start = time.perf_counter()
        index = builder(codes[np.lexsort(codes.T[::-1])], CODES, dense_lookup_layers=2)
        figures["their_build"] = time.perf_counter() - start
        packed, pointers, branches, *dense = index
        figures["their_bytes"] = size_of((packed, pointers, dense))
        tables = jax.device_put((packed, pointers, *dense))
        settings = (BATCH, BEAMS, BEAMS, 0, LEVELS, CODES, branches)
        functions.append(lambda key: their_search(model, key, *settings, *tables, d_dense=2))
    times = timed(functions, rounds)
    figures |= dict(zip(("search", "model", "their_search"), times, strict=False))
    found = np.asarray(functions[0](jax.random.key(7)).codes)
    known = np.unique(codes, axis=0)
    assert all((known == row).all(axis=1).any() for row in found.reshape(-1, LEVELS)[::20])
    if builder is not None:
        theirs = np.asarray(functions[2](jax.random.key(7)))
        figures["is_equal"] = bool((found == theirs).all())
        for name in ("build", "bytes", "search"):
            figures[f"{name}_ratio"] = figures[name] / figures[f"their_{name}"]
        own, their = (figures[name] - figures["model"] for name in ("search", "their_search"))
        figures["search_without_model_ratio"] = own / their
    return figures


def main() -> None:
    """Measures each size and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1e5, 1e6, 1e7])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rows = []
    for size in arguments.sizes:
        codes = np.random.default_rng(0).integers(0, CODES, (int(size), LEVELS), np.int32)
        rows.append(measure(codes, arguments.reference, arguments.rounds))
        for name, value in rows[-1].items():
            print(
                f"{name:>26} {value:,.3f}" if isinstance(value, float) else f"{name:>26} {value:,}"
            )
        print(flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
