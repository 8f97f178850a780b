"""Constrained beam search against STATIC's reference implementation, on random semantic IDs.

    python -m launch.benchmarks.trie --reference=FOLDER --output=trie.json

FOLDER is a checkout of github.com/youtube/static-constraint-decoding. Without it only this package
is measured. Both search with the reference's stand-in model, which draws uniform random logits. The
reference considers as many tokens per beam as there are beams, so that its results are exact too.

"model" is the time of the stand-in model with the log-sum-exp of its logits. Both searches need it,
and on a CPU it takes most of their time. The ratios are ours divided by theirs, with and without
the model's time.
"""

import argparse
import functools
import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from launch.benchmarks.result import write_result
from sigma_jax.generation.beam import BeamState, first_state, select
from sigma_jax.index.trie import Trie
from sigma_jax.index.trie_build import build_trie

LEVELS, CODES = 8, 2048
BATCH, BEAMS = 2, 70


@functools.partial(jax.jit, static_argnums=0)
def search(model: Callable, trie: Trie, key: jax.Array) -> BeamState:
    """The best prefixes in the trie under `model`."""
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
    """The sum over all log-normalisers of one search, to time the model without the search."""
    total = jnp.zeros(())
    for level in range(LEVELS):
        rows = BATCH * (BEAMS if level else 1)
        logits, key = model(jnp.zeros((rows, 1), jnp.int32), key)
        total += jax.nn.logsumexp(logits, axis=-1).sum()
    return total


class RandomModel:
    """A stand-in model like the reference's: logits are uniform in 0..1."""

    def __call__(self, tokens: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits [rows, 1, CODES], and the next key."""
        key, subkey = jax.random.split(key)
        return jax.random.uniform(subkey, (len(tokens), 1, CODES)), key


def size_of(arrays) -> int:
    """Bytes of all arrays of a tree."""
    return sum(np.asarray(array).nbytes for array in jax.tree.leaves(arrays))


def timed(functions: list[Callable], rounds: int) -> list[float]:
    """Median milliseconds of each function; the functions take turns in each round."""
    times = [[] for _ in functions]
    for number in range(-1, rounds):
        for durations, function in zip(times, functions, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(function(jax.random.key(number + 1)))
            if number >= 0:  # the first round compiles
                durations.append(1000 * (time.perf_counter() - start))
    return [float(np.median(durations)) for durations in times]


def reference_of(folder: Path | None):
    """The reference's builder, search and stand-in model; (None, None, our model) without it."""
    if folder is None:
        return None, None, RandomModel()
    sys.path.insert(0, str(folder))
    decoding = importlib.import_module("static_decoding.decoding_jax")
    builder = importlib.import_module("static_decoding.csr_utils").build_static_index
    return builder, decoding.sparse_transition_jax, decoding.RandomModel(CODES)


def measure(codes: np.ndarray, folder: Path | None, rounds: int) -> dict[str, float]:
    """Seconds to build the trie, its bytes, and milliseconds of a search, of both packages."""
    builder, their_search, model = reference_of(folder)
    start = time.perf_counter()
    trie = build_trie(codes, LEVELS, CODES)
    row = {"items": len(codes), "build": time.perf_counter() - start, "bytes": size_of(trie)}
    trie = jax.device_put(trie)
    functions = [
        lambda key: search(model, trie, key),
        lambda key: model_alone(model, key),
    ]
    if builder is not None:
        start = time.perf_counter()
        index = builder(codes[np.lexsort(codes.T[::-1])], CODES, dense_lookup_layers=2)
        row["their_build"] = time.perf_counter() - start
        packed, pointers, branches, *dense = index
        row["their_bytes"] = size_of((packed, pointers, dense))
        tables = jax.device_put((packed, pointers, *dense))
        settings = (BATCH, BEAMS, BEAMS, 0, LEVELS, CODES, branches)
        functions.append(lambda key: their_search(model, key, *settings, *tables, d_dense=2))
    times = timed(functions, rounds)
    row |= dict(zip(("search", "model", "their_search"), times, strict=False))
    paths = np.asarray(functions[0](jax.random.key(7)).codes)
    valid = np.unique(codes, axis=0)
    assert all((valid == path).all(axis=1).any() for path in paths.reshape(-1, LEVELS)[::20])
    if builder is not None:
        theirs = np.asarray(functions[2](jax.random.key(7)))
        row["is_equal"] = bool((paths == theirs).all())
        for name in ("build", "bytes", "search"):
            row[f"{name}_ratio"] = row[name] / row[f"their_{name}"]
        ours, their = (row[name] - row["model"] for name in ("search", "their_search"))
        row["search_without_model_ratio"] = ours / their
    return row


def main() -> None:
    """Measures each number of items and prints the results."""
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
        write_result(arguments.output, rows)


if __name__ == "__main__":
    main()
