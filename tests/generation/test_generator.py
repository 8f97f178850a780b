"""Promises of three-step generation, against scores of single paths and items without a cache."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_ranker import batch as small_batch
from small_ranker import lists, make_ranker, variants
from small_recommender import (
    CODES,
    CONFIG,
    NUM_ITEMS,
    WORDS,
    code_log_probs,
    forward,
    item_vectors,
    prompts,
    query_head_vector,
    recommender,
    semantic_ids,
)

from sigma_jax.generation import generator as generator_module
from sigma_jax.generation.beam import Prompts, beam_search
from sigma_jax.generation.generator import Generator
from sigma_jax.index.trie_build import build_trie
from sigma_jax.recommender.ranking import Ranker
from sigma_jax.reranking.features import ItemFeatures, RankingInputs
from sigma_jax.schema import TASKS


def score_paths(model, tables, batch, row, paths) -> dict:
    """{path: (log-probability, query)} after prompt `row`; each path is read as its own row."""
    length, depth = batch["lengths"][row], len(paths[0])
    tokens = np.zeros((NUM_ITEMS, 12), np.int32)
    items = np.full(tokens.shape, -1, np.int32)
    tokens[:, :length] = batch["tokens"][row, :length]
    items[:, :length] = batch["items"][row, :length]
    for place, path in enumerate(paths):
        tokens[place, length : length + depth] = [
            model.space.code(level, code) for level, code in enumerate(path)
        ]
    last = length + depth
    tokens[:, last] = model.space.query
    hidden = np.asarray(forward(model, tables, tokens, items))
    is_seen = np.broadcast_to(np.arange(12) <= last, (NUM_ITEMS, 1, 12))
    queries = query_head_vector(model, tables, hidden[:, last : last + 1], items, is_seen)
    queries = np.asarray(queries[:, 0], np.float64)
    scores = np.zeros(NUM_ITEMS)
    for level in range(depth):
        log_probs = np.asarray(code_log_probs(model, hidden[:, length - 1 + level], level))
        for place, path in enumerate(paths):
            scores[place] += log_probs[place, path[level]]
    return {path: (scores[place], queries[place]) for place, path in enumerate(paths)}


@pytest.mark.parametrize("depth, num_beams, full", [(1, 3, False), (2, 4, False), (3, 30, True)])
def test_beams_are_the_best_paths_of_the_trie_with_exact_scores(depth, num_beams, full):
    model, tables = recommender(full_vocabulary=full)
    sids = semantic_ids()
    trie = build_trie(sids.codes, depth, CODES)
    batch = prompts()
    beams = jax.jit(beam_search, static_argnums=4)(
        model, tables, Prompts(**jax.tree.map(jnp.asarray, batch)), trie, (num_beams,) * depth
    )
    paths = sorted({tuple(map(int, code)) for code in sids.codes[:, :depth]})
    for row in range(3):
        scored = score_paths(model, tables, batch, row, paths)
        found = [tuple(map(int, codes)) for codes in np.asarray(beams.codes[row])]
        valid = np.asarray(beams.is_valid[row])
        assert valid.sum() == min(num_beams, len(paths))
        assert set(itertools.compress(found, valid)) <= set(paths)
        for rank in np.flatnonzero(valid):
            score, query = scored[found[rank]]
            np.testing.assert_allclose(beams.scores[row, rank], score, atol=1e-4)
            np.testing.assert_allclose(beams.queries[row, rank], query, atol=1e-4)
        if num_beams >= len(paths) or depth == 1:
            best = sorted((score for score, _ in scored.values()), reverse=True)
            np.testing.assert_allclose(beams.scores[row][valid], best[: valid.sum()], atol=1e-4)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("normaliser", ["exact", "retrieved"])
def test_items_and_their_probabilities_equal_brute_force(depth, normaliser):
    model, tables = recommender()
    sids = semantic_ids()
    config = dataclasses.replace(CONFIG, num_beams=30, normaliser=normaliser)
    batch = prompts()
    found = lists(make_ranker(model, tables, depth, config), small_batch(), NUM_ITEMS)
    vectors = np.asarray(item_vectors(model, tables), np.float64)
    paths = sorted({tuple(map(int, code)) for code in sids.codes[:, :depth]})
    for row in range(3):
        scored = score_paths(model, tables, batch, row, paths)
        sigma = max(np.std([score for score, _ in scored.values()]), config.sigma_floor)
        expected = {}
        for path, (score, query) in scored.items():
            members = np.flatnonzero((sids.codes[:, :depth] == path).all(axis=1))
            logits = vectors[members] @ query * sigma / config.temperature
            kept = np.argsort(-logits, kind="stable")[: config.num_retrieved]
            pool = logits if normaliser == "exact" else logits[kept]
            for place in kept:
                expected[members[place]] = score + logits[place] - np.log(np.exp(pool).sum())
        items = found.items[row][found.items[row] >= 0]
        assert sorted(items) == sorted(expected)
        np.testing.assert_allclose(found.sigma[row], sigma, atol=1e-4)
        np.testing.assert_allclose(
            found.log_probs[row][: len(items)], [expected[item] for item in items], atol=2e-4
        )
        assert (np.diff(found.log_probs[row][: len(items)]) <= 1e-6).all()


def test_seen_items_are_left_out_and_the_next_items_move_up():
    model, tables = recommender()
    ranker = make_ranker(model, tables, 1, CONFIG)
    included = lists(ranker, small_batch(), 10)
    seen = np.concatenate([included.items[:, :3], np.full((3, 2), -1)], axis=1)
    excluded = lists(ranker, small_batch(), 10, seen)
    for row in range(3):
        assert not set(excluded.items[row]) & set(included.items[row, :3])
        assert set(included.items[row, 3:6]) <= set(excluded.items[row])


@pytest.mark.slow
def test_early_beams_and_a_margin_drop_less_likely_paths():
    """Paths of the beams that stay keep their exact scores."""
    model, tables = recommender()
    sids, batch = semantic_ids(), prompts()
    config = dataclasses.replace(CONFIG, num_beams=30, num_retrieved=1)

    def beams_of(**changes):
        chosen = dataclasses.replace(config, **changes)
        found = _search(model, tables, sids, batch, chosen, 3)
        return [
            {
                tuple(codes): score
                for codes, score, ok in zip(*map(np.asarray, row), strict=True)
                if ok
            }
            for row in zip(found.codes, found.scores, found.is_valid, strict=True)
        ]

    all_beams, few_beams = beams_of(), beams_of(early_beams=(2, 3))
    for wide, narrow in zip(all_beams, few_beams, strict=True):
        firsts = {path[0] for path in narrow}
        assert len(firsts) <= 2 and 0 < len(narrow) < len(wide)
        for path, score in narrow.items():
            assert score == pytest.approx(wide[path], abs=1e-4)
    for wide, near in zip(all_beams, beams_of(beam_margin=2.0), strict=True):
        best = max(wide.values())
        assert set(near) <= {path for path, score in wide.items() if score >= best - 2.0 - 1e-4}
        assert max(near.values()) == pytest.approx(best, abs=1e-4)
    assert config.under_load(0.5).num_beams == 8 and config.under_load(0.01).num_beams == 1
    with pytest.raises(ValueError, match="give 2 widths, or none"):
        dataclasses.replace(config, early_beams=(4,)).widths(3)


def test_under_load_fewer_beams_search_fewer_prefixes():
    model, tables = recommender()
    config = dataclasses.replace(CONFIG, num_beams=5, num_retrieved=NUM_ITEMS)
    generator = Generator.create(model, tables, semantic_ids(), 1, config)
    full, reduced = (
        lists(Ranker(g), small_batch(), NUM_ITEMS) for g in (generator, generator.at_load(0.4))
    )
    assert generator.at_load(1.0).config == config
    for row in range(3):
        kept = full.items[row][full.beams[row] < 2]
        found = reduced.items[row][reduced.items[row] >= 0]
        assert sorted(found) == sorted(kept) and len(found) < NUM_ITEMS


def _search(model, tables, sids, batch, config, depth):
    trie = build_trie(sids.codes, depth, CODES)
    arrays = Prompts(**jax.tree.map(jnp.asarray, batch))
    search = jax.jit(beam_search, static_argnums=(4, 5), static_argnames="margin")
    return search(model, tables, arrays, trie, config.widths(depth), "token", margin=config.margin)


@pytest.mark.parametrize("depth, has_item_head", [(0, True), (1, False), (2, True), (3, False)])
def test_active_items_keep_their_order_and_probabilities(depth, has_item_head):
    model, tables = recommender(has_item_head=has_item_head)
    config = dataclasses.replace(CONFIG, num_beams=30, num_retrieved=NUM_ITEMS, sigma=1.0)
    ranker = make_ranker(model, tables, depth, config)
    all_items = lists(ranker, small_batch(), NUM_ITEMS)
    is_active = np.random.default_rng(depth).random(NUM_ITEMS) < 0.4
    active = ranker.generator.mark_active(is_active)
    [found] = variants(ranker, small_batch(), NUM_ITEMS, [RankingInputs()], active=active)
    for row in range(3):
        kept = is_active[all_items.items[row]]
        count = int(is_active.sum())
        assert kept.sum() == count and (found.items[row][count:] == -1).all()
        np.testing.assert_array_equal(found.items[row][:count], all_items.items[row][kept])
        np.testing.assert_allclose(
            found.log_probs[row][:count], all_items.log_probs[row][kept], atol=1e-4
        )


def test_features_multiply_probabilities_and_add_candidates():
    model, tables = recommender()
    config = dataclasses.replace(CONFIG, num_beams=30, num_retrieved=NUM_ITEMS, sigma=1.0)
    ranker = make_ranker(model, tables, 1, config)
    plain = lists(ranker, small_batch(), NUM_ITEMS)
    rng = np.random.default_rng(0)
    listed = [np.sort(rng.choice(NUM_ITEMS, 8, replace=False)) for _ in range(3)]
    items = np.full((3, 16), np.iinfo(np.int32).max, np.int32)
    items[:, :8] = listed
    values = np.where(np.arange(16) < 8, rng.normal(0, 3, (3, 16)), 0).astype(np.float32)
    few = dataclasses.replace(config, num_retrieved=2)
    inputs = RankingInputs(
        features=ItemFeatures(items, values[..., None] / 2), weights=np.array([[2.0]], np.float32)
    )
    scored, short = variants(ranker, small_batch(), NUM_ITEMS, [inputs] * 2, [config, few])
    codes = semantic_ids().codes[:, 0]
    for row in range(3):
        model_alone = np.zeros(NUM_ITEMS)
        model_alone[plain.items[row]] = np.exp(plain.log_probs[row].astype(np.float64))
        prob = model_alone.copy()
        prob[listed[row]] *= np.exp(values[row, :8].astype(np.float64))
        prob /= prob.sum()
        assert (scored.items[row] == np.argsort(-prob)).all()
        np.testing.assert_allclose(
            scored.log_probs[row], np.log(prob[scored.items[row]]), atol=1e-4
        )
        nearest = {
            item
            for c in set(codes)
            for item in sorted(np.flatnonzero(codes == c), key=lambda item: -model_alone[item])[:2]
        }
        candidates = nearest | set(listed[row].tolist())
        found = short.items[row][short.items[row] >= 0]
        assert set(found) == candidates and len(found) == len(candidates)
        order = sorted(candidates, key=lambda item: -prob[item])
        np.testing.assert_array_equal(found, order)


@pytest.mark.parametrize("depth, has_item_head", [(0, True), (1, False), (2, True)])
def test_the_host_retrieves_the_same_items_as_the_device(depth, has_item_head):
    model, tables = recommender(has_item_head=has_item_head)
    config = dataclasses.replace(CONFIG, num_beams=30, num_retrieved=NUM_ITEMS)
    rng = np.random.default_rng(0)
    items = np.sort(rng.permuted(np.tile(np.arange(NUM_ITEMS), (3, 1)), axis=1)[:, :8], axis=1)
    features = ItemFeatures(items.astype(np.int32), rng.normal(0, 3, (3, 8, 1)).astype(np.float32))
    seen = np.array([[1, 2, -1], [3, -1, -1], [-1, -1, -1]], np.int32)
    weights = np.array([[1.0]], np.float32)
    inputs = [
        RankingInputs(),
        RankingInputs(seen=seen),
        RankingInputs(features=features, weights=weights),
    ]
    device, host = (
        make_ranker(model, tables, depth, dataclasses.replace(config, retrieval=how))
        for how in ("exact", "scann")
    )
    both = [variants(ranker, small_batch(), 20, inputs) for ranker in (device, host)]
    for expected, found in zip(*both, strict=True):
        np.testing.assert_array_equal(found.items, expected.items)
        np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-4)
    is_active = rng.random(NUM_ITEMS) < 0.5
    both = [
        variants(ranker, small_batch(), 20, inputs, active=ranker.generator.mark_active(is_active))
        for ranker in (device, host)
    ]
    for expected, found in zip(*both, strict=True):
        np.testing.assert_array_equal(found.items, expected.items)
    for how in ("exact", "scann"):
        few = dataclasses.replace(config, num_beams=1, num_retrieved=2, retrieval=how)
        few = few if not depth else dataclasses.replace(few, num_beams=30)
        [short] = variants(
            make_ranker(model, tables, depth, few), small_batch(), NUM_ITEMS, inputs[2:]
        )
        for row in range(3):  # items with features are candidates at any distance
            assert set(items[row]) <= set(short.items[row])


@pytest.mark.slow
def test_a_large_catalogue_is_searched_and_gives_the_lists_of_a_small_one(monkeypatch):
    """In a small one every item is a candidate; in a large one the nearest and the extra items."""
    model, tables = recommender(has_item_head=True)
    config = dataclasses.replace(CONFIG, num_beams=1, num_retrieved=NUM_ITEMS)
    rng = np.random.default_rng(5)
    items = np.sort(rng.permuted(np.tile(np.arange(NUM_ITEMS), (3, 1)), axis=1)[:, :8], axis=1)
    features = ItemFeatures(
        items.astype(np.int32), rng.normal(0, 3, (3, 8, 1)).astype(np.float32), np.arange(3)
    )
    ranker = make_ranker(model, tables, 0, config, lexical=WORDS)
    reranked = RankingInputs(
        seen=np.array([[1, 2, -1], [3, -1, -1], [-1, -1, -1]], np.int32),
        features=features,
        instruction=ranker.read_instructions(["red b", "number7", ""], small_batch(seed=5)),
        trending=rng.normal(0, 1, (3, NUM_ITEMS, 1)).astype(np.float16),
        weights=np.array([[1.0, 0.5, 0.7, 2.0, 0.0, 0.0]], np.float32),
    )
    inputs = [RankingInputs(), RankingInputs(seen=reranked.seen), reranked]
    active = ranker.generator.mark_active(rng.random(NUM_ITEMS) < 0.6)
    answers = []
    for limit in (NUM_ITEMS + 2, 0):  # the arrays hold 32 items
        monkeypatch.setattr(generator_module, "ALL_CANDIDATES", limit)
        assert ranker.generator.ranks_all_items(config) == (limit > 0)
        answers.append(
            variants(ranker, small_batch(), NUM_ITEMS, inputs)
            + variants(ranker, small_batch(), 5, inputs, active=active)
        )
    for small, large in zip(*answers, strict=True):
        np.testing.assert_array_equal(small.items, large.items)
        np.testing.assert_allclose(small.log_probs, large.log_probs, atol=1e-4)
        np.testing.assert_allclose(small.cosines, large.cosines, atol=1e-5)


def test_feature_weights_are_those_of_the_task_that_the_network_reads():
    model, tables = recommender(has_item_head=True, has_task_head=True)
    head = np.random.default_rng(0).normal(0, 0.5, model.task_head.shape)
    model.task_head[...] = jnp.asarray(head, jnp.float32)
    config = dataclasses.replace(CONFIG, num_beams=30, num_retrieved=NUM_ITEMS, sigma=1.0)
    ranker = make_ranker(model, tables, 0, config)
    batch = prompts()
    plain = lists(ranker, small_batch(), NUM_ITEMS)
    rng = np.random.default_rng(1)
    values = rng.normal(0, 1, (3, NUM_ITEMS, 2)).astype(np.float32)
    items = np.tile(np.arange(NUM_ITEMS, dtype=np.int32), (3, 1))
    weights = rng.normal(0, 2, (len(TASKS), 8)).astype(np.float32)
    table = rng.normal(size=(4, NUM_ITEMS, 2)).astype(np.float16)  # requests share it
    rows = np.array([3, 0, 3], np.int32)
    instruction = ranker.read_instructions([""] * 3, small_batch(seed=7))
    instruction_scores = ranker.instruction_scores(instruction, items)[..., 0]
    by_row = RankingInputs(features=ItemFeatures(items, values, rows), weights=weights)
    alone = RankingInputs(features=ItemFeatures(items, values), weights=weights[:, :2])
    shared = dataclasses.replace(by_row, trending=table)
    inputs = [alone, shared, dataclasses.replace(shared, instruction=instruction)]
    alone, shared, instructed = variants(ranker, small_batch(), NUM_ITEMS, inputs)
    hidden = forward(model, tables, batch["tokens"], batch["items"])
    for row in range(3):
        logits = np.asarray(hidden[row, batch["lengths"][row] - 1]) @ head
        shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        assert 0.2 < shares.max() < 0.999
        log_p = np.zeros(NUM_ITEMS)
        log_p[plain.items[row]] = plain.log_probs[row]
        log_p += values[row] @ (shares @ weights[:, :2])
        of_table = table[rows[row]] @ (shares @ weights[:, 2:4])
        of_all = of_table + instruction_scores[row] * (shares @ weights[:, 4])
        for found, added in ((alone, 0), (shared, of_table), (instructed, of_all)):
            expected = log_p + added
            expected -= np.log(np.exp(expected).sum())
            np.testing.assert_allclose(found.log_probs[row], np.sort(expected)[::-1], atol=1e-3)
            np.testing.assert_array_equal(found.items[row][:3], np.argsort(-expected)[:3])


@pytest.mark.parametrize(
    "total, batch_size, sizes",
    [(1, 32, [1]), (3, 32, [4]), (20, 32, [32]), (20, 24, [24]), (33, 32, [32, 32])],
)
def test_few_requests_are_read_in_a_small_batch(total, batch_size, sizes):
    model, tables = recommender()
    config = dataclasses.replace(CONFIG, batch_size=batch_size)
    ranker = make_ranker(model, tables, 1, config)
    batch_sizes = []

    def read(rows):
        batch_sizes.append(len(rows))
        return rows

    np.testing.assert_array_equal(ranker._by_batch(total, read), np.arange(total))
    assert batch_sizes == sizes


@pytest.mark.parametrize("depth", [0, 2])
def test_a_million_beams_and_items_fit_into_memory_and_return_all_items(depth):
    model, tables = recommender(has_item_head=True)
    large = dataclasses.replace(CONFIG, num_beams=10**6, num_retrieved=10**6)
    ranker = make_ranker(model, tables, depth, large)
    found = lists(ranker, small_batch(), NUM_ITEMS + 5)
    assert (np.sort(found.items[:, :NUM_ITEMS], axis=1) == np.arange(NUM_ITEMS)).all()
    assert (found.items[:, NUM_ITEMS:] == -1).all()


def test_the_batch_size_changes_no_list():
    model, tables = recommender()
    config = dataclasses.replace(CONFIG, batch_size=3)
    one, other = (
        lists(make_ranker(model, tables, 2, c), small_batch(), 5) for c in (CONFIG, config)
    )
    np.testing.assert_array_equal(one.items, other.items)
    np.testing.assert_allclose(one.log_probs, other.log_probs, atol=1e-5)


def test_without_an_item_query_all_items_of_a_prefix_are_equally_likely():
    model, tables = recommender()
    sids = semantic_ids()
    config = dataclasses.replace(CONFIG, num_beams=30, num_retrieved=NUM_ITEMS)
    ranker = make_ranker(model, tables, 3, config, item_query="none")
    found = lists(ranker, small_batch(), NUM_ITEMS)
    _, inverse, sizes = np.unique(sids.codes, axis=0, return_inverse=True, return_counts=True)
    for row in range(3):
        expected = found.beam_scores[row] - np.log(sizes[inverse.reshape(-1)[found.items[row]]])
        np.testing.assert_allclose(found.log_probs[row], expected, atol=1e-4)
