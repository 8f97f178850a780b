"""Beam search with the prompt's keys and values stored once per user, or copied for each beam.

    python -m launch.benchmarks.beams --output=beams.json

Both programs search the same trie under the same random model. They must find the same paths with
the same scores. The table shows, per user:

    shared, copied          bytes that the compiler allocates, without arguments and results
    beam_kv                 bytes of the keys and values of the beams' own tokens
    shared_ms, copied_ms    median time of the runs, which alternate
"""

import argparse
import dataclasses
import functools
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from launch.benchmarks.result import write_result
from sigma_jax.generation.beam import BeamState, Prompts, beam_search, first_state, select
from sigma_jax.index.trie import Trie
from sigma_jax.index.trie_build import build_trie
from sigma_jax.models.attention import KVCache
from sigma_jax.models.config import Qwen3Config
from sigma_jax.models.item_encoder import ItemEncoderConfig
from sigma_jax.models.network import NetworkConfig, RecommenderNetwork, TokenSpace
from sigma_jax.models.qwen3 import Qwen3, causal_mask

DEPTH, CODES, ITEMS, VOCABULARY = 3, 256, 20_000, 1_000
BACKBONE = Qwen3Config(
    vocab_size=VOCABULARY,
    width=256,
    num_layers=4,
    num_heads=8,
    num_kv_heads=4,
    head_dim=32,
    mlp_width=512,
    rope_theta=10_000.0,
    norm_eps=1e-6,
    is_tied=True,
    has_qk_norm=True,
    dropout=0.0,
    dtype="float32",
    param_dtype="float32",
    remat="none",
)


def make(history: int, users: int) -> tuple[RecommenderNetwork, dict, Trie, Prompts]:
    """A random model, its tables, a random trie, and prompts of `history` tokens for `users`."""
    rng = np.random.default_rng(0)
    tables = {"id": jnp.asarray(rng.normal(size=(ITEMS, 64)), jnp.float32)}
    encoder = ItemEncoderConfig(64, 64, ("id",), (), True)
    config = NetworkConfig(encoder, False, True, False, False, False)
    space = TokenSpace(VOCABULARY, DEPTH, CODES)
    model = RecommenderNetwork(
        config, Qwen3(BACKBONE, rngs=nnx.Rngs(0)), space, tables, rngs=nnx.Rngs(1)
    )
    codes = rng.integers(0, CODES, (ITEMS, DEPTH)).astype(np.int32)
    tokens = rng.integers(0, VOCABULARY, (users, history)).astype(np.int32)
    prompts = Prompts(
        tokens=jnp.asarray(tokens),
        items=jnp.full(tokens.shape, -1),
        positions=jnp.broadcast_to(jnp.arange(history), tokens.shape),
        is_token=jnp.ones(tokens.shape, bool),
        lengths=jnp.full(users, history),
    )
    return model, tables, jax.device_put(build_trie(codes, DEPTH, CODES)), prompts


def shared(
    graphdef, state, tables: dict, prompts: Prompts, trie: Trie, beams: int
) -> tuple[jax.Array, jax.Array]:
    """Codes and scores by the package's own beam search."""
    model = nnx.merge(graphdef, state)
    result = beam_search(model, tables, prompts, trie, (beams,) * DEPTH, "none")
    return result.codes, result.scores


def copied(
    graphdef, state, tables: dict, prompts: Prompts, trie: Trie, beams: int
) -> tuple[jax.Array, jax.Array]:
    """Codes and scores with one row per beam, which includes the prompt's keys and values."""
    model = nnx.merge(graphdef, state)
    users, length = prompts.tokens.shape
    cache = KVCache.empty(BACKBONE, users, length + DEPTH)
    mask = causal_mask(prompts.is_token.astype(jnp.int32))
    hidden, cache = model(
        prompts.tokens, prompts.items, prompts.positions, mask, tables, cache=cache
    )
    hidden = hidden[:, -1:]
    beam_state: BeamState = first_state(users)
    row = jnp.arange(users)[:, None]
    for level in range(DEPTH):
        parents = beam_state.scores.shape[1]
        # `select` tracks ancestors. With the identity as ancestors it returns each beam's parent.
        before = dataclasses.replace(
            beam_state,
            ancestors=jnp.broadcast_to(jnp.eye(parents, dtype=bool), (users, parents, parents)),
        )
        beam_state = select(before, model.code_log_probs(hidden, level), trie, level, beams)
        if level == DEPTH - 1:
            break
        source = (row * parents + beam_state.ancestors.argmax(axis=-1)).reshape(-1)
        cache = KVCache(cache.keys[:, source], cache.values[:, source], cache.length)
        tokens = jnp.where(
            jnp.isfinite(beam_state.scores), model.space.code(level, beam_state.codes[..., -1]), 0
        ).reshape(-1, 1)
        hidden, cache = model(
            tokens,
            jnp.full(tokens.shape, -1),
            jnp.full(tokens.shape, length + level),
            jnp.ones((len(tokens), 1, length + level + 1), bool),
            tables,
            cache=cache,
        )
        hidden = hidden.reshape(users, beams, -1)
    return beam_state.codes, beam_state.scores


def measure(history: int, users: int, beams: int, rounds: int) -> dict[str, float]:
    """Bytes and milliseconds per user of both programs, and their ratios.

    AssertionError if the two programs find different paths or scores.
    """
    model, tables, trie, prompts = make(history, users)
    graphdef, state = nnx.split(model)
    token_bytes = 2 * BACKBONE.num_layers * BACKBONE.num_kv_heads * BACKBONE.head_dim * 4
    row = {"history": history, "beams": beams, "beam_kv": token_bytes * beams * (DEPTH - 1)}
    programs, times = {}, {"shared": [], "copied": []}
    for name, function in (("shared", shared), ("copied", copied)):
        jitted = jax.jit(functools.partial(function, graphdef), static_argnums=4)
        program = jitted.lower(state, tables, prompts, trie, beams).compile()
        row[name] = program.memory_analysis().temp_size_in_bytes / users
        programs[name] = program
    results = {}
    for number in range(rounds + 1):
        for name, program in programs.items():
            start = time.perf_counter()
            results[name] = jax.block_until_ready(program(state, tables, prompts, trie))
            if number:  # the first round warms up
                times[name].append(1000 * (time.perf_counter() - start) / users)
    row |= {f"{name}_ms": float(np.median(values)) for name, values in times.items()}
    shared_result, copied_result = (jax.device_get(results[n]) for n in ("shared", "copied"))
    np.testing.assert_array_equal(shared_result[0], copied_result[0])
    np.testing.assert_allclose(shared_result[1], copied_result[1], atol=1e-3)
    row["memory_ratio"] = row["copied"] / row["shared"]
    row["time_ratio"] = row["copied_ms"] / row["shared_ms"]
    return row


def main() -> None:
    """Measures each number of beams and prints one line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--history", type=int, default=512)
    parser.add_argument("--users", type=int, default=4)
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    names = ("beams", "beam_kv", "shared", "copied", "memory_ratio", "shared_ms", "copied_ms")
    print("".join(f"{name:>14}" for name in (*names, "time_ratio")) + "    bytes and ms per user")
    rows = []
    for beams in arguments.beams:
        row = measure(arguments.history, arguments.users, beams, arguments.rounds)
        rows.append(row)
        print("".join(f"{row[name]:>14,.2f}" for name in (*names, "time_ratio")), flush=True)
    if arguments.output:
        write_result(arguments.output, rows)


if __name__ == "__main__":
    main()
