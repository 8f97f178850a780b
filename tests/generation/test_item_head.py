"""Promises of the item head: one distribution of three heads, and the fit of the head weights."""

import dataclasses

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
    code_log_probs,
    forward,
    item_head_vector,
    item_vectors,
    prompts,
    query_head_vector,
    recommender,
    semantic_ids,
)

from sigma_jax.data.vectors import unit_rows
from sigma_jax.generation.generator import Generator
from sigma_jax.generation.head_weights import (
    GRID,
    MIN_GAIN,
    HeadWeights,
    fit_head_weights,
    smallest_good_weight,
)
from sigma_jax.generation.prefix_scores import SummaryScorer, make_prefix_scorer
from sigma_jax.index.trie_build import build_trie
from sigma_jax.losses import LOG_ZERO
from sigma_jax.recommender.ranking import Ranker
from sigma_jax.reranking.features import ItemFeatures, RankingInputs


def naive_log_p(model, tables, batch, row, depth, temperature, item_query) -> np.ndarray:
    """[I]: log P of every item by the three heads with their weights, path by path."""
    offset = depth if item_query == "token" else depth - 1  # tokens after the prompt
    codes = semantic_ids().codes[:, :depth]
    vectors = np.asarray(item_vectors(model, tables), np.float64)
    length = int(batch["lengths"][row])
    tokens = np.zeros((NUM_ITEMS, 12), np.int32)
    items = np.full(tokens.shape, -1, np.int32)
    tokens[:, :length] = batch["tokens"][row, :length]
    items[:, :length] = batch["items"][row, :length]
    tokens[:, length : length + depth] = np.asarray(model.space.code(np.arange(depth), codes))
    if item_query == "token":
        tokens[:, length + depth] = model.space.query
    hidden = np.asarray(forward(model, tables, tokens, items))

    def head_inputs(place):
        is_seen = np.broadcast_to(np.arange(12) <= place, (NUM_ITEMS, 1, 12))
        return model, tables, hidden[:, place : place + 1], items, is_seen

    item_head_query = item_head_vector(*head_inputs(length - 1))
    code_head_weight, query_head_weight = (
        float(weight[...]) for weight in (model.code_head_weight, model.query_head_weight)
    )
    queries = item_head_query
    if depth:
        queries = item_head_query + query_head_weight * query_head_vector(
            *head_inputs(length + offset)
        )
    item_head_query, queries = (np.asarray(q[:, 0], np.float64) for q in (item_head_query, queries))
    mass = np.exp(vectors @ item_head_query[0] / temperature)
    code_log_p = [
        np.asarray(code_log_probs(model, hidden[:, length - 1 + level], level), np.float64)
        for level in range(depth)
    ]
    log_p = np.zeros(NUM_ITEMS)
    for item in range(NUM_ITEMS):
        below = np.ones(NUM_ITEMS, bool)
        for level in range(depth):
            share = np.array([mass[below & (codes[:, level] == c)].sum() for c in range(CODES)])
            shares = np.exp(code_log_p[level][item]) ** code_head_weight * share
            log_p[item] += np.log(shares[codes[item, level]] / shares.sum())
            below &= codes[:, level] == codes[item, level]
        scores = vectors @ queries[item] / temperature
        log_p[item] += scores[item] - np.log(np.exp(scores[below]).sum())
    return log_p


@pytest.mark.parametrize(
    "depth, item_query", [(0, "token"), (1, "token"), (2, "token"), (2, "code")]
)
def test_the_three_heads_make_one_distribution_over_all_items(depth, item_query):
    model, tables = recommender(has_item_head=True)
    model.code_head_weight[...], model.query_head_weight[...] = jnp.array(0.4), jnp.array(0.7)
    config = dataclasses.replace(CONFIG, num_beams=30, num_retrieved=NUM_ITEMS, sigma=1.0)
    batch = prompts()
    found = lists(make_ranker(model, tables, depth, config, item_query), small_batch(), NUM_ITEMS)
    for row in range(3):
        log_p = naive_log_p(model, tables, batch, row, depth, config.temperature, item_query)
        np.testing.assert_allclose(np.exp(log_p).sum(), 1, rtol=1e-6)
        assert sorted(found.items[row]) == list(range(NUM_ITEMS))
        np.testing.assert_allclose(found.log_probs[row], log_p[found.items[row]], atol=2e-4)


def test_the_exhaustive_ranker_ranks_all_items_by_the_item_head():
    """The three-step ranker gives the same if the code head and the query head have weight 0."""
    model, tables = recommender(has_item_head=True)
    model.code_head_weight[...], model.query_head_weight[...] = jnp.array(0.4), jnp.array(0.7)
    config = dataclasses.replace(
        CONFIG, ranker="exhaustive", num_beams=30, num_retrieved=NUM_ITEMS, sigma=1.0
    )
    generator = Generator.create(model, tables, semantic_ids(), 2, config)
    assert generator.trie.depth == 0
    found = lists(Ranker(generator), small_batch(), NUM_ITEMS)
    model.code_head_weight[...], model.query_head_weight[...] = jnp.zeros(()), jnp.zeros(())
    for row in range(3):
        log_p = naive_log_p(model, tables, prompts(), row, 2, config.temperature, "token")
        assert sorted(found.items[row]) == list(range(NUM_ITEMS))
        np.testing.assert_allclose(found.log_probs[row], log_p[found.items[row]], atol=2e-4)


def test_fitted_weights_of_0_do_not_switch_the_beams_off():
    model, tables = recommender(has_item_head=True)
    model.code_head_weight[...], model.query_head_weight[...] = jnp.zeros(()), jnp.zeros(())
    assert Generator.create(model, tables, semantic_ids(), 2, CONFIG).trie.depth == 2


@pytest.mark.parametrize("limit", [NUM_ITEMS + 2, 0])
@pytest.mark.parametrize("retrieval", ["exact", "scann"])
def test_items_in_no_beam_have_the_probability_of_the_item_head(limit, retrieval, monkeypatch):
    """Both where all items are candidates and where extra candidates join the nearest items."""
    monkeypatch.setattr("sigma_jax.generation.generator.ALL_CANDIDATES", limit)
    model, tables = recommender(has_item_head=True)
    model.code_head_weight[...], model.query_head_weight[...] = jnp.array(0.4), jnp.array(0.7)
    config = dataclasses.replace(
        CONFIG, num_beams=2, num_retrieved=3, sigma=0.7, retrieval=retrieval
    )
    seen = np.array([[4, 9, -1]] * 3, np.int32)
    extra = np.tile(np.arange(NUM_ITEMS, dtype=np.int32), (3, 1))
    inputs = RankingInputs(extra=extra, seen=seen)
    ranker = make_ranker(model, tables, 1, config)
    found = variants(ranker, small_batch(), NUM_ITEMS, [inputs])[0]
    wide = dataclasses.replace(config, num_beams=30, num_retrieved=NUM_ITEMS)
    complete = lists(make_ranker(model, tables, 1, wide), small_batch(), NUM_ITEMS)
    one_prefix = make_ranker(model, tables, 0, dataclasses.replace(wide, sigma=1.0))
    alone = lists(one_prefix, small_batch(), NUM_ITEMS)
    for row in range(3):
        items, beams = found.items[row], found.beams[row]
        items, beams = items[items >= 0], beams[items >= 0]
        assert sorted(items) == sorted(set(range(NUM_ITEMS)) - {4, 9})
        assert set(beams) == {-1, 0, 1}
        at = {name: np.full(NUM_ITEMS, np.nan) for name in ("beams", "root")}
        at["beams"][complete.items[row]] = complete.log_probs[row]
        at["root"][alone.items[row]] = alone.log_probs[row]
        expected = np.where(beams < 0, at["root"][items], at["beams"][items])
        np.testing.assert_allclose(found.log_probs[row][: len(items)], expected, atol=2e-4)
        assert (np.diff(found.log_probs[row][: len(items)]) <= 0).all()
        assert (found.beam_scores[row][: len(items)][beams < 0] == 0).all()


def test_the_exhaustive_ranker_needs_an_item_head():
    model, tables = recommender()
    config = dataclasses.replace(CONFIG, ranker="exhaustive")
    with pytest.raises(ValueError, match="has_item_head=False"):
        Generator.create(model, tables, semantic_ids(), 2, config)


def test_without_codes_one_prefix_gives_as_many_items_as_all_beams_would():
    model, tables = recommender(has_item_head=True)
    config = dataclasses.replace(CONFIG, num_beams=3, num_retrieved=4)
    ranker = make_ranker(model, tables, 0, config)
    found = lists(ranker, small_batch(), 12)
    assert (found.items >= 0).all()
    all_items = lists(ranker, small_batch(), NUM_ITEMS).items
    assert (np.sort(all_items, axis=1) == np.arange(NUM_ITEMS)).all()
    np.testing.assert_array_equal(all_items[:, :12], found.items)
    favoured = found.items[:, 11]  # the last
    features = ItemFeatures(favoured[:, None], np.full((3, 1, 1), 50.0, np.float32))
    inputs = RankingInputs(features=features, weights=np.ones((1, 1), np.float32))
    changed = dataclasses.replace(config, sigma=1.0)
    [raised] = variants(ranker, small_batch(), 1, [inputs], [changed])
    assert np.array_equal(raised.items[:, 0], favoured)


@pytest.mark.parametrize("depth, item_query", [(1, "code"), (2, "token")])
def test_head_weights_are_the_smallest_that_are_about_as_good_as_the_best(depth, item_query):
    model, tables = recommender(has_item_head=True)
    batch, targets = prompts(), np.array([3, 17, 8], np.int32)

    def log_p(code_head_weight, query_head_weight):
        HeadWeights(code_head_weight, query_head_weight, 0.0, 0.0).put_into(model)
        temperature = CONFIG.temperature
        rows = [
            naive_log_p(model, tables, batch, row, depth, temperature, item_query)[target]
            for row, target in enumerate(targets)
        ]
        return np.array(rows)

    settings = depth, item_query, CONFIG.temperature
    with_codes = {**tables, "codes": jnp.asarray(semantic_ids().codes, jnp.int32)}
    fitted = fit_head_weights(model, with_codes, batch, targets, *settings)
    np.testing.assert_allclose(fitted.log_p, log_p(fitted.code, fitted.query).mean(), rtol=1e-4)
    np.testing.assert_allclose(fitted.item_head_log_p, log_p(0.0, 0.0).mean(), rtol=1e-4)
    by_weight = (
        np.stack([log_p(weight, fitted.query) for weight in GRID]),
        np.stack([log_p(fitted.code, weight) for weight in GRID]),
    )
    for chosen, rows in zip((fitted.code, fitted.query), by_weight, strict=True):
        behind = rows[rows.mean(axis=1).argmax()] - rows
        error = np.maximum(behind.std(axis=1, ddof=1) / len(targets) ** 0.5, MIN_GAIN)
        place = np.flatnonzero(behind.mean(axis=1) <= error)[0]
        is_worth_it = behind[0].mean() - behind[place].mean() > MIN_GAIN
        assert chosen == (GRID[place] if is_worth_it else 0)


def test_a_weight_above_0_gains_more_than_chance():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, (400, 1))
    better = np.array([0.0, 0.4, 0.5, 0.1]) + noise * np.array([0.0, 1.0, 1.2, 2.0])
    assert smallest_good_weight(better - better.mean(axis=0) + [0.0, 0.01, 0.03, 0.0]) == 0
    assert smallest_good_weight(better - better.mean(axis=0) + [0.0, 0.4, 0.4, 0.1]) == 1
    assert smallest_good_weight(better - better.mean(axis=0) + [0.0, 0.2, 0.4, 0.1]) == 2
    sure = np.array([[0.0, 0.009], [0.0, 0.009]])
    assert smallest_good_weight(sure) == 0
    assert smallest_good_weight(2 * sure) == 1
    little = np.array([[0.0, 0.006, 0.011], [0.0, 0.006, 0.011]])
    assert smallest_good_weight(little) == 0


@pytest.mark.parametrize("depth", [1, 2])
def test_summaries_of_prefixes_score_about_as_all_their_items(depth):
    """Items of a prefix are near to each other; some prefixes of two codes have one item."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 6, (400, 2)).astype(np.int32)
    centres = rng.normal(size=(6, 16)), 0.6 * rng.normal(size=(6, 16))
    vectors = sum(centre[of] for centre, of in zip(centres, codes.T, strict=True))
    vectors = unit_rows(vectors + 0.2 * rng.normal(size=vectors.shape)).astype(np.float32)
    trie = build_trie(codes, depth, 6)
    rows = vectors[np.asarray(trie.sorted_items)]
    exact = make_prefix_scorer(trie, jnp.asarray(rows), 0.2)
    summary = SummaryScorer.make(exact)
    queries = unit_rows(rng.normal(size=(20, 16))).astype(np.float32)
    for found, expected in zip(
        summary.node_scores(queries), exact.node_scores(queries), strict=True
    ):
        there = np.asarray(expected) > LOG_ZERO / 2
        assert (np.asarray(found)[~there] == LOG_ZERO).all()
        np.testing.assert_allclose(np.asarray(found)[there], np.asarray(expected)[there], atol=0.4)
        share = jax.nn.softmax(found, axis=-1), jax.nn.softmax(expected, axis=-1)
        assert np.abs(share[0] - share[1]).sum(axis=-1).mean() < 0.15


def test_a_large_catalogue_has_summaries_of_its_prefixes(monkeypatch):
    """They bring the beams: the lists agree with those of the exact scores."""
    model, tables = recommender(has_item_head=True)
    config = dataclasses.replace(CONFIG, num_beams=4, num_retrieved=NUM_ITEMS, sigma=1.0)
    exact = lists(make_ranker(model, tables, 1, config), small_batch(), 10)
    monkeypatch.setattr("sigma_jax.generation.prefix_scores.EXACT_ITEMS", 8)
    ranker = make_ranker(model, tables, 1, config)
    assert isinstance(ranker.generator.prefix_scorer, SummaryScorer)
    found = lists(ranker, small_batch(), 10)
    shared = [len(set(a) & set(b)) for a, b in zip(exact.items, found.items, strict=True)]
    assert np.mean(shared) >= 8
