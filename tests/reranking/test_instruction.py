"""Promises of sigma_jax/reranking/instruction.py, against the probabilities of all items."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from small_ranker import batch, lists, make_ranker, no_features, variants
from small_recommender import CONFIG as SMALL
from small_recommender import NUM_ITEMS, WORDS, recommender

from sigma_jax.generation import prefix_scores
from sigma_jax.reranking import instruction as instruction_module
from sigma_jax.reranking.features import ItemFeatures, RankingInputs
from sigma_jax.reranking.semantic import SEMANTIC_FEATURES

NO_TEXTS = [""] * 3  # for rankers without a lexical table
CONFIG = dataclasses.replace(SMALL, num_beams=30, num_retrieved=NUM_ITEMS, sigma=1.0, batch_size=2)


@pytest.fixture(scope="module", params=[0, 2], ids=["one prefix", "prefixes of two codes"])
def rankers(request):
    """A ranker with prefixes of some depth, and one that ranks all items by one softmax."""
    model, tables = recommender(has_item_head=True)
    return [make_ranker(model, tables, depth, CONFIG) for depth in (request.param, 0)]


def naive(ranker, prompts) -> np.ndarray:
    """[N, I]: instruction_score of every item, from the log-probabilities of all items."""
    found = lists(ranker, prompts, NUM_ITEMS)
    scores = np.zeros((len(found.items), NUM_ITEMS))
    for row, items in enumerate(found.items):
        log_p = np.zeros(NUM_ITEMS)
        log_p[items] = found.log_probs[row]
        scores[row] = np.minimum(log_p - (np.exp(log_p) * log_p).sum() + 1, 0)
    return scores


def test_instruction_score_is_below_0_for_items_e_times_less_likely_than_typical(rankers):
    ranker, whole = rankers
    expected = naive(whole, batch())
    assert (expected == 0).any() and (expected < -0.5).any()
    items = np.random.default_rng(0).permuted(np.tile(np.arange(NUM_ITEMS), (3, 1)), axis=1)
    found = ranker.instruction_scores(ranker.read_instructions(NO_TEXTS, batch()), items)
    np.testing.assert_allclose(
        found[..., 0], np.take_along_axis(expected, items, axis=1), atol=1e-4
    )
    assert not found[..., 1].any()  # without words


def test_instruction_score_enters_the_ranking_with_its_weight(rankers):
    ranker, whole = rankers
    instructions = batch(seed=5)
    inputs = RankingInputs(
        features=no_features(3),
        instruction=ranker.read_instructions(NO_TEXTS, instructions),
        weights=np.array([[0.5, 0.5, 0.7, 2.0, 0.0, 0.0]], np.float32),
    )
    plain, found = variants(ranker, batch(), NUM_ITEMS, [RankingInputs(), inputs])
    expected = naive(whole, instructions)
    for row in range(3):
        log_p = np.full(NUM_ITEMS, -np.inf)
        log_p[plain.items[row]] = plain.log_probs[row]
        log_p += 0.7 * expected[row]
        log_p -= np.log(np.exp(log_p).sum())
        np.testing.assert_allclose(found.log_probs[row], np.sort(log_p)[::-1], atol=1e-3)
        assert found.items[row, 0] == log_p.argmax()
    assert (found.items != plain.items).any()


def test_the_batch_size_changes_no_instruction_score(rankers):
    ranker, _ = rankers
    model, tables = recommender(has_item_head=True)
    other = make_ranker(model, tables, 0, dataclasses.replace(CONFIG, batch_size=3))
    items = np.tile(np.arange(NUM_ITEMS), (3, 1))
    found = [
        r.instruction_scores(r.read_instructions(NO_TEXTS, batch()), items) for r in (ranker, other)
    ]
    np.testing.assert_allclose(*found, atol=1e-5)


@pytest.mark.parametrize("is_answered", [True, False])
@pytest.mark.parametrize("depth", [0, 2])
def test_lexical_match_raises_the_items_that_have_the_words(depth, is_answered):
    """It holds with and without the answer of the network. 3 requests are read in batches of 2."""
    model, tables = recommender(has_item_head=True)
    ranker = make_ranker(model, tables, depth, CONFIG, lexical=WORDS)
    texts = ["find b for me", "red number7", "surprise me"]
    instruction = ranker.read_instructions(texts, batch(seed=5) if is_answered else None)
    items = np.random.default_rng(0).permuted(np.tile(np.arange(NUM_ITEMS), (3, 1)), axis=1)
    answer, words, *_ = np.moveaxis(ranker.instruction_scores(instruction, items), -1, 0)
    assert answer.any() == is_answered
    trust = WORDS.trust[WORDS.numbers["b"]]
    np.testing.assert_allclose(words[0], np.where(items[0] % 3 == 1, 0, -trust), atol=1e-6)
    np.testing.assert_array_equal(words[1] == 0, items[1] == 7)
    np.testing.assert_array_equal(words[2], 0)
    weights = np.array([[0.0, 0.0, 0.0, 100.0, 0.0, 0.0]], np.float32)
    inputs = RankingInputs(features=no_features(3), instruction=instruction, weights=weights)
    plain, found = variants(ranker, batch(), NUM_ITEMS, [RankingInputs(), inputs])
    assert (found.items[0, : NUM_ITEMS // 3] % 3 == 1).all() and found.items[1, 0] == 7
    np.testing.assert_array_equal(found.items[2], plain.items[2])


FEATURES = ("history", "trending", "instruction_score", "lexical_match")


@pytest.mark.parametrize("retrieval", ["exact", "scann"])
@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize("feature", FEATURES)
def test_an_item_that_a_feature_raises_is_a_candidate_at_any_distance(depth, feature, retrieval):
    """The list has the same first item if 2 items are retrieved as if all 30 are.

    Items are retrieved from each prefix.
    """
    model, tables = recommender(has_item_head=True)
    rng = np.random.default_rng(3)
    items = np.sort(rng.permuted(np.tile(np.arange(NUM_ITEMS), (3, 1)), axis=1)[:, :2], axis=1)
    rows = np.arange(3, dtype=np.int32)
    features = ItemFeatures(items.astype(np.int32), np.ones((3, 2, 1), np.float32), rows)
    table = np.zeros((3, NUM_ITEMS, 1), np.float16)
    table[rows, [11, 23, 5]] = 1
    weights = np.zeros((1, len(FEATURES) + len(SEMANTIC_FEATURES)), np.float32)
    weights[0, FEATURES.index(feature)] = 300
    firsts, scores = [], []
    for retrieved, how in ((NUM_ITEMS, "exact"), (2, retrieval)):
        config = dataclasses.replace(
            CONFIG,
            num_beams=30 if depth or retrieved > 2 else 1,
            num_retrieved=retrieved,
            retrieval=how,
        )
        ranker = make_ranker(model, tables, depth, config, lexical=WORDS)
        instruction = ranker.read_instructions(["red b", "number7", "surprise me"], batch(seed=5))
        inputs = RankingInputs(
            features=features, trending=table, instruction=instruction, weights=weights
        )
        first = variants(ranker, batch(), 2, [inputs])[0].items[:, :1]
        firsts.append(first)
        scores.append(ranker.instruction_scores(instruction, first)[..., 0])
    if feature == "instruction_score":  # it prefers none of the items that fit
        np.testing.assert_allclose(*scores, atol=1e-6)
    else:
        np.testing.assert_array_equal(*firsts)


@pytest.mark.parametrize("depth", [0, 2])
def test_a_large_catalogue_is_read_in_parts(depth, monkeypatch):
    """Parts of one request and 4 of 30 items give the same results as one part."""
    model, tables = recommender(has_item_head=True)
    texts = ["find b for me", "red number7", "surprise me"]
    weights = np.array([[0.0, 0.0, 0.7, 2.0]], np.float32)
    found = []
    for entries, size in ((2**26, 2), (14, 3)):  # another size: nothing is compiled yet
        for module in (prefix_scores, instruction_module):
            monkeypatch.setattr(module, "SCORES_A_STEP", entries)
        config = dataclasses.replace(CONFIG, temperature=0.11, batch_size=size)
        ranker = make_ranker(model, tables, depth, config, lexical=WORDS)
        instruction = ranker.read_instructions(texts, batch(seed=5))
        inputs = RankingInputs(features=no_features(3), instruction=instruction, weights=weights)
        [ranked] = variants(ranker, batch(), 9, [inputs])
        found.append((instruction, ranked))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), *found)
