"""Checks rankers whose item vectors lie on several devices; test_sharded.py runs it on eight."""

import dataclasses
import functools

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from small_ranker import batch, lists, variants
from small_recommender import (
    CODES,
    CONFIG,
    NUM_ITEMS,
    WORDS,
    recommender,
    semantic_ids,
)

from sigma_jax.generation.generator import Generator
from sigma_jax.index.trie_build import build_trie
from sigma_jax.recommender.ranking import Ranker
from sigma_jax.reranking.features import ItemFeatures, RankingInputs

assert jax.device_count() == 8
AUTO = (AxisType.Auto,) * 2
# The arrays of the trie hold 32 items. Six devices need more rows, and some rows have no item.
MESHES = (
    jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=AUTO),
    jax.make_mesh((2, 3), ("data", "fsdp"), axis_types=AUTO, devices=jax.devices()[:6]),
)


def check(depth: int, has_item_head: bool, mesh) -> None:
    """Lists from several devices equal those from one device.

    30 items: on 8 devices each has 4 and the last has 2; on 6 devices each has 6 and the last none.
    """
    model, tables = recommender(has_item_head=has_item_head)
    config = dataclasses.replace(CONFIG, num_beams=30, num_retrieved=4)
    trie = build_trie(semantic_ids().codes, depth, CODES)
    one, many = (
        Ranker(Generator(model, tables, trie, config, "token", mesh=m), WORDS) for m in (None, mesh)
    )
    rows = {shard.data.shape[0] for shard in many.generator.index.vectors.addressable_shards}
    assert rows == {-(-len(trie.sorted_items) // mesh.size)}, rows
    rng = np.random.default_rng(0)
    items = np.sort(rng.permuted(np.tile(np.arange(NUM_ITEMS), (3, 1)), axis=1)[:, :8], axis=1)
    features = ItemFeatures(items.astype(np.int32), rng.normal(0, 3, (3, 8, 1)).astype(np.float32))
    seen = np.array([[1, 2, -1], [3, -1, -1], [-1, -1, -1]], np.int32)
    features = dataclasses.replace(features, row=np.array([1, 0, 1], np.int32))
    table = rng.normal(0, 3, (2, NUM_ITEMS, 1)).astype(np.float32)
    texts = ["find b for me", "red number7", "surprise me"]
    on_one, on_many = (
        ranker.read_instructions(texts, batch(seed=5) if has_item_head else None)
        for ranker in (one, many)
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), on_many, on_one)
    inputs = [
        RankingInputs(),
        RankingInputs(
            seen=seen,
            features=features,
            trending=table,
            instruction=on_one,
            weights=np.array([[1.0, 0.5, 2.0, 5.0, 0.0, 0.0]], np.float32),
        ),
    ]
    is_active = rng.random(NUM_ITEMS) < 0.5
    for is_restricted in (False, True):
        expected, found = (
            variants(
                ranker,
                batch(),
                20,
                inputs,
                active=ranker.generator.mark_active(is_active) if is_restricted else None,
            )
            for ranker in (one, many)
        )
        for left, right in zip(expected, found, strict=True):
            np.testing.assert_array_equal(right.items, left.items)
            np.testing.assert_allclose(right.log_probs, left.log_probs, atol=1e-5)


def check_model_on_all() -> None:
    """Lists are equal if the network and tables are on all devices, and the index is on one.

    This is so in training.
    """
    model, tables = recommender(has_item_head=True)
    trie = build_trie(semantic_ids().codes, 1, CODES)
    expected = lists(Ranker(Generator(model, tables, trie, CONFIG, "token")), batch(), 5)
    whole = NamedSharding(MESHES[0], PartitionSpec())
    graphdef, state = nnx.split(model)
    placed, tables = jax.device_put((state, tables), whole)
    many = Ranker(Generator(nnx.merge(graphdef, placed), tables, trie, CONFIG, "token"))
    np.testing.assert_array_equal(lists(many, batch(), 5).items, expected.items)


check_model_on_all()
for case in ((0, True), (1, False), (2, True)):
    for mesh in MESHES:
        check(*case, mesh)
