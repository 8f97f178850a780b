"""Incremental inference: the cost of five new behaviours, the price of a window that moves rarely.

    python -m launch.benchmarks.incremental --workdir=runs/sft-local

Cost: prompts of 500 behaviours, computed from the beginning and with kept keys and values
(generation/contexts.py), up to the beams. The networks are that of the workdir with a longer
history, and a larger one with random weights. Their answers mean nothing, but both ways must give
the same ones.

Price: HR@10 of JustForYou on validation requests, with a window that moves by one row, and by more.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from launch.benchmarks.result import write_result
from sigma_jax import metrics
from sigma_jax.data.vectors import item_vectors
from sigma_jax.generation.beam import Beams, Prompts
from sigma_jax.generation.contexts import ContextCache
from sigma_jax.generation.generator import Generator
from sigma_jax.prompts.inference import make_prompts
from sigma_jax.prompts.tokens import PromptTables
from sigma_jax.recommender.build import build_network
from sigma_jax.recommender.recommender import Recommender, RecommendOptions
from sigma_jax.recommender.workdir import OpenWorkdir, load_workdir
from sigma_jax.schema import RequestBatch, Requests
from sigma_jax.tasks import instructions
from sigma_jax.tasks.requests import sample_requests

HISTORY, NEW, USERS, ROUNDS = 500, 5, 32, 5
LARGE = {
    "width": 512,
    "num_layers": 8,
    "num_heads": 8,
    "num_kv_heads": 4,
    "head_dim": 64,
    "mlp_width": 1_536,
}
STEPS = (1, 8, 16, 32)
VALIDATION = 2_000


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    opened = load_workdir(arguments.workdir)
    generator = opened.recommender.generator
    result = {
        "cost": cost(opened, generator, "the workdir's network"),
        "cost_large": cost(opened, larger(opened, arguments.workdir), "a larger network"),
        "price": price(opened),
    }
    if arguments.output:
        write_result(arguments.output, result)


def larger(opened: OpenWorkdir, workdir: Path) -> Generator:
    """A generator with a larger network, whose weights are random."""
    parts, data = opened.recommender.parts, opened.data
    backbone = dataclasses.replace(parts.spec.backbone, hf_folder="", **LARGE)
    vectors = item_vectors(workdir, len(data.catalogue))
    network = build_network(
        backbone, parts.spec.network, data, parts.semantic_ids, vectors, nnx.Rngs(0)
    )
    generation = opened.recommender.generator.config
    return Generator.create(
        network,
        parts.tables,
        parts.semantic_ids,
        parts.spec.depth,
        generation,
        parts.spec.layout.item_query,
    )


def cost(opened: OpenWorkdir, generator: Generator, name: str) -> dict[str, float]:
    """Seconds and computed columns of a user, both ways."""
    parts = opened.recommender.parts
    layout = dataclasses.replace(
        parts.spec.layout, history_length=HISTORY + 64, row_tokens=4 * HISTORY
    )
    tables = PromptTables.make(
        opened.data, parts.semantic_ids, layout, parts.network.space.vocab_size, True
    )
    histories = opened.data.histories
    sizes = np.diff(histories.offsets)
    users = np.flatnonzero(sizes > HISTORY + NEW)[:USERS].astype(np.int32)
    names = [str(user) for user in users]

    def prompts(size: int) -> Prompts:
        ends = histories.offsets[users] + size
        none = np.full(len(users), -1, np.int32)
        texts = [instructions.TRAIN_WORDINGS["JustForYou"][0]] * len(users)
        requests = Requests(users, ends, none, none, none, texts)
        return Prompts(**make_prompts(requests, histories, tables, parts.instruction_vectors, 64))

    before, after = prompts(HISTORY), prompts(HISTORY + NEW)
    whole, kept = [], []
    columns = {"whole": int(after.lengths.sum()), "kept": 0}
    for number in range(ROUNDS + 1):
        contexts = ContextCache(2**34)
        contexts.beams(generator, before, names)
        computed = contexts.new_columns
        began = time.perf_counter()
        found = jax.block_until_ready(contexts.beams(generator, after, names))
        middle = time.perf_counter()
        expected = jax.block_until_ready(generator.beams(after))
        if number:  # the first round compiles
            kept.append(middle - began)
            whole.append(time.perf_counter() - middle)
        columns["kept"] = contexts.new_columns - computed
    check_equal(found, expected)
    result = {
        "users": len(users),
        "seconds_whole": float(np.median(whole)) / len(users),
        "seconds_kept": float(np.median(kept)) / len(users),
        "columns_whole": columns["whole"] / len(users),
        "columns_kept": columns["kept"] / len(users),
    }
    print(
        f"{name}: {HISTORY} behaviours and {NEW} new ones, a user: from the beginning "
        f"{result['columns_whole']:.0f} tokens, {1000 * result['seconds_whole']:.1f} ms; with kept "
        f"keys {result['columns_kept']:.0f} tokens, {1000 * result['seconds_kept']:.1f} ms; "
        f"ratios {result['columns_whole'] / result['columns_kept']:.1f} and "
        f"{result['seconds_whole'] / result['seconds_kept']:.1f}"
    )
    return result


def check_equal(found: Beams, expected: Beams) -> None:
    """AssertionError if the beams of both ways differ."""
    np.testing.assert_allclose(found.scores, expected.scores, atol=2e-3)
    is_same = np.asarray(found.leaves == expected.leaves).mean()
    assert is_same > 0.99, f"{is_same:.3f} of the beams are the same"


def price(opened: OpenWorkdir) -> list[dict[str, Any]]:
    """HR@10 by the step of the window."""
    data, recommender, rows = opened.data, opened.recommender, []
    requests = sample_requests(
        data,
        "valid",
        0,
        {"JustForYou": VALIDATION},
        recommender.spec.longtail_share,
        instructions.TRAIN_WORDINGS,
        is_random=True,
    )
    for step in STEPS:
        other = Recommender(
            recommender.parts,
            recommender.generator.config,
            recommender.generator.trie,
            window_step=step,
        )
        answer = other.recommend(RequestBatch.of(requests, data), RecommendOptions(10))
        hits = metrics.hits(metrics.item_ranks(answer.items, requests.target), 10)
        rows.append(
            {"step": step, "hr_10": float(hits.mean()), "error": metrics.standard_error(hits)}
        )
        print(f"window moves by {step:2}: HR@10 {100 * hits.mean():.2f}", flush=True)
    return rows


if __name__ == "__main__":
    main()
