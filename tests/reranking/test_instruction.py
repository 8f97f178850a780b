"""What an instruction says by itself, against the probabilities of all items."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from small_ranker import batch, lists, no_features, ranker, variants
from small_recommender import CONFIG as SMALL
from small_recommender import NUM_ITEMS, WORDS, recommender

from sigma_jax.generation import prefix_scores as evidence
from sigma_jax.reranking import instruction as told_module
from sigma_jax.reranking.features import ItemFeatures, RankingInputs

SAID = [""] * 3  # to a generator without words
CONFIG = dataclasses.replace(SMALL, num_beams=30, num_retrieved=NUM_ITEMS, sigma=1.0, batch_size=2)


@pytest.fixture(scope="module", params=[0, 2], ids=["one prefix", "prefixes of two codes"])
def rankers(request):
    """One of some depth, and one that ranks all items by one softmax."""
    model, tables = recommender(has_item_head=True)
    return [ranker(model, tables, depth, CONFIG) for depth in (request.param, 0)]


def naive(made, asked) -> np.ndarray:
    """[N, I] from the log-probabilities of every item."""
    found = lists(made, asked, NUM_ITEMS)
    told = np.zeros((len(found.items), NUM_ITEMS))
    for row, items in enumerate(found.items):
        log_p = np.zeros(NUM_ITEMS)
        log_p[items] = found.log_probs[row]
        told[row] = np.minimum(log_p - (np.exp(log_p) * log_p).sum() + 1, 0)
    return told


def test_told_is_what_falls_behind_a_typical_item_by_more_than_e(rankers):
    made, whole = rankers
    expected = naive(whole, batch())
    assert (expected == 0).any() and (expected < -0.5).any()
    items = np.random.default_rng(0).permuted(np.tile(np.arange(NUM_ITEMS), (3, 1)), axis=1)
    found = made.instruction_scores(made.read_instructions(SAID, batch()), items)
    np.testing.assert_allclose(
        found[..., 0], np.take_along_axis(expected, items, axis=1), atol=1e-4
    )
    assert not found[..., 1].any()  # it knows no words


def test_told_weighs_in_the_ranking_by_its_weight(rankers):
    made, whole = rankers
    instructions = batch(seed=5)
    inputs = RankingInputs(
        features=no_features(3),
        instruction=made.read_instructions(SAID, instructions),
        weights=np.array([[0.5, 0.5, 0.7, 2.0]], np.float32),
    )
    plain, found = variants(made, batch(), NUM_ITEMS, [RankingInputs(), inputs])
    wanted = naive(whole, instructions)
    for row in range(3):
        log_p = np.full(NUM_ITEMS, -np.inf)
        log_p[plain.items[row]] = plain.log_probs[row]
        log_p += 0.7 * wanted[row]
        log_p -= np.log(np.exp(log_p).sum())
        np.testing.assert_allclose(found.log_probs[row], np.sort(log_p)[::-1], atol=1e-3)
        assert found.items[row, 0] == log_p.argmax()
    assert (found.items != plain.items).any()


def test_a_batch_that_is_not_full_changes_nothing(rankers):
    made, _ = rankers
    model, tables = recommender(has_item_head=True)
    other = ranker(model, tables, 0, dataclasses.replace(CONFIG, batch_size=3))
    items = np.tile(np.arange(NUM_ITEMS), (3, 1))
    found = [r.instruction_scores(r.read_instructions(SAID, batch()), items) for r in (made, other)]
    np.testing.assert_allclose(*found, atol=1e-5)


@pytest.mark.parametrize("is_answered", [True, False])
@pytest.mark.parametrize("depth", [0, 2])
def test_words_lift_the_items_that_have_them(depth, is_answered):
    """Whether or not the model answers the instruction; a batch of 2 for 3 requests."""
    model, tables = recommender(has_item_head=True)
    made = ranker(model, tables, depth, CONFIG, lexical=WORDS)
    said = ["find b for me", "red number7", "surprise me"]
    spoken = made.read_instructions(said, batch(seed=5) if is_answered else None)
    items = np.random.default_rng(0).permuted(np.tile(np.arange(NUM_ITEMS), (3, 1)), axis=1)
    answer, words = np.moveaxis(made.instruction_scores(spoken, items), -1, 0)
    assert answer.any() == is_answered
    trust = WORDS.trust[WORDS.numbers["b"]]
    np.testing.assert_allclose(words[0], np.where(items[0] % 3 == 1, 0, -trust), atol=1e-6)
    np.testing.assert_array_equal(words[1] == 0, items[1] == 7)
    np.testing.assert_array_equal(words[2], 0)
    weights = np.array([[0.0, 0.0, 0.0, 100.0]], np.float32)
    inputs = RankingInputs(features=no_features(3), instruction=spoken, weights=weights)
    plain, found = variants(made, batch(), NUM_ITEMS, [RankingInputs(), inputs])
    assert (found.items[0, : NUM_ITEMS // 3] % 3 == 1).all() and found.items[1, 0] == 7
    np.testing.assert_array_equal(found.items[2], plain.items[2])


FEATURES = ("history", "trending", "instruction_score", "lexical_match")


@pytest.mark.parametrize("retrieval", ["exact", "scann"])
@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize("feature", FEATURES)
def test_an_item_that_a_feature_raises_is_a_candidate_however_far_it_lies(
    depth, feature, retrieval
):
    """2 items of 30, or of each prefix, are searched; the first item is that of all 30."""
    model, tables = recommender(has_item_head=True)
    rng = np.random.default_rng(3)
    items = np.sort(rng.permuted(np.tile(np.arange(NUM_ITEMS), (3, 1)), axis=1)[:, :2], axis=1)
    rows = np.arange(3, dtype=np.int32)
    features = ItemFeatures(items.astype(np.int32), np.ones((3, 2, 1), np.float32), rows)
    table = np.zeros((3, NUM_ITEMS, 1), np.float16)
    table[rows, [11, 23, 5]] = 1
    weights = np.zeros((1, len(FEATURES)), np.float32)
    weights[0, FEATURES.index(feature)] = 300
    firsts, scores = [], []
    for retrieved, how in ((NUM_ITEMS, "exact"), (2, retrieval)):
        config = dataclasses.replace(
            CONFIG,
            num_beams=30 if depth or retrieved > 2 else 1,
            num_retrieved=retrieved,
            retrieval=how,
        )
        made = ranker(model, tables, depth, config, lexical=WORDS)
        said = made.read_instructions(["red b", "number7", "surprise me"], batch(seed=5))
        inputs = RankingInputs(features=features, trending=table, instruction=said, weights=weights)
        first = variants(made, batch(), 2, [inputs])[0].items[:, :1]
        firsts.append(first)
        scores.append(made.instruction_scores(said, first)[..., 0])
    if feature == "instruction_score":  # it prefers nothing among the items that fit
        np.testing.assert_allclose(*scores, atol=1e-6)
    else:
        np.testing.assert_array_equal(*firsts)


@pytest.mark.parametrize("depth", [0, 2])
def test_a_large_catalogue_is_read_in_parts(depth, monkeypatch):
    """A part is of one request and 4 items of 30; what is found is the same."""
    model, tables = recommender(has_item_head=True)
    said = ["find b for me", "red number7", "surprise me"]
    weights = np.array([[0.0, 0.0, 0.7, 2.0]], np.float32)
    found = []
    for entries, size in ((2**26, 2), (14, 3)):  # another size: nothing is compiled yet
        for module in (evidence, told_module):
            monkeypatch.setattr(module, "SCORES_A_STEP", entries)
        config = dataclasses.replace(CONFIG, temperature=0.11, batch_size=size)
        made = ranker(model, tables, depth, config, lexical=WORDS)
        spoken = made.read_instructions(said, batch(seed=5))
        inputs = RankingInputs(features=no_features(3), instruction=spoken, weights=weights)
        [ranked] = variants(made, batch(), 9, [inputs])
        found.append((spoken, ranked))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), *found)
