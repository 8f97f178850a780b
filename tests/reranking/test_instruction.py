"""What an instruction says by itself, against the probabilities of all items."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from small_recommender import NUM_ITEMS, WORDS, prompts, recommender, semantic_ids

from sigma_jax.generation import prefix_scores as evidence
from sigma_jax.generation.config import GenerationConfig
from sigma_jax.generation.generator import Choice, Generator
from sigma_jax.reranking import instruction as told_module
from sigma_jax.reranking.features import ItemFeatures

SAID = [""] * 3  # to a generator without words
CONFIG = GenerationConfig(30, NUM_ITEMS, 0.1, 1.0, 0.05, "exact", "fused", 2, (), 0.0, "exact")


@pytest.fixture(scope="module", params=[0, 2], ids=["one prefix", "prefixes of two codes"])
def generators(request):
    """One of some depth, and one that ranks all items by one softmax."""
    model, tables = recommender(has_item_head=True)
    return [Generator.create(model, tables, semantic_ids(), d, CONFIG) for d in (request.param, 0)]


def naive(generator, batch) -> np.ndarray:
    """[N, I] from the log-probabilities of every item."""
    found = generator(batch, NUM_ITEMS)
    told = np.zeros((len(found.items), NUM_ITEMS))
    for row, items in enumerate(found.items):
        log_p = np.zeros(NUM_ITEMS)
        log_p[items] = found.log_probs[row]
        told[row] = np.minimum(log_p - (np.exp(log_p) * log_p).sum() + 1, 0)
    return told


def test_told_is_what_falls_behind_a_typical_item_by_more_than_e(generators):
    generator, whole = generators
    batch = prompts()
    expected = naive(whole, batch)
    assert (expected == 0).any() and (expected < -0.5).any()
    items = np.random.default_rng(0).permuted(np.tile(np.arange(NUM_ITEMS), (3, 1)), axis=1)
    found = generator.told_at(generator.told(SAID, batch), items)
    np.testing.assert_allclose(
        found[..., 0], np.take_along_axis(expected, items, axis=1), atol=1e-4
    )
    assert not found[..., 1].any()  # it knows no words


def test_told_weighs_in_the_ranking_by_its_weight(generators):
    generator, whole = generators
    batch, instructions = prompts(), prompts(seed=5)
    spoken = generator.told(SAID, instructions)
    none = ItemFeatures(np.zeros((3, 1), np.int32), np.zeros((3, 1, 2), np.float32))
    weights = np.array([[0.5, 0.5, 0.7, 2.0]], np.float32)
    [plain, found] = generator.variants(
        batch, NUM_ITEMS, [Choice(), Choice(None, none, weights, told=spoken)]
    )
    wanted = naive(whole, instructions)
    for row in range(3):
        log_p = np.full(NUM_ITEMS, -np.inf)
        log_p[plain.items[row]] = plain.log_probs[row]
        log_p += 0.7 * wanted[row]
        log_p -= np.log(np.exp(log_p).sum())
        np.testing.assert_allclose(found.log_probs[row], np.sort(log_p)[::-1], atol=1e-3)
        assert found.items[row, 0] == log_p.argmax()
    assert (found.items != plain.items).any()


def test_a_batch_that_is_not_full_changes_nothing(generators):
    generator, _ = generators
    model, tables = recommender(has_item_head=True)
    config = dataclasses.replace(CONFIG, batch_size=3)
    other = Generator.create(model, tables, semantic_ids(), 0, config)
    items = np.tile(np.arange(NUM_ITEMS), (3, 1))
    found = [g.told_at(g.told(SAID, prompts()), items) for g in (generator, other)]
    np.testing.assert_allclose(*found, atol=1e-5)


@pytest.mark.parametrize("is_answered", [True, False])
@pytest.mark.parametrize("depth", [0, 2])
def test_words_lift_the_items_that_have_them(depth, is_answered):
    """Whether or not the model answers the instruction; a batch of 2 for 3 requests."""
    model, tables = recommender(has_item_head=True)
    generator = Generator.create(model, tables, semantic_ids(), depth, CONFIG, words=WORDS)
    said = ["find b for me", "red number7", "surprise me"]
    spoken = generator.told(said, prompts(seed=5) if is_answered else None)
    items = np.random.default_rng(0).permuted(np.tile(np.arange(NUM_ITEMS), (3, 1)), axis=1)
    answer, words = np.moveaxis(generator.told_at(spoken, items), -1, 0)
    assert answer.any() == is_answered
    trust = WORDS.trust[WORDS.numbers["b"]]
    np.testing.assert_allclose(words[0], np.where(items[0] % 3 == 1, 0, -trust), atol=1e-6)
    np.testing.assert_array_equal(words[1] == 0, items[1] == 7)
    np.testing.assert_array_equal(words[2], 0)
    none = ItemFeatures(np.zeros((3, 1), np.int32), np.zeros((3, 1, 2), np.float32))
    weights = np.array([[0.0, 0.0, 0.0, 100.0]], np.float32)
    [plain, found] = generator.variants(
        prompts(), NUM_ITEMS, [Choice(), Choice(None, none, weights, told=spoken)]
    )
    assert (found.items[0, : NUM_ITEMS // 3] % 3 == 1).all() and found.items[1, 0] == 7
    np.testing.assert_array_equal(found.items[2], plain.items[2])


LIFTS = ("values", "trends", "answer", "words")


@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize("lift", LIFTS)
def test_what_lifts_an_item_brings_it_in_where_only_the_nearest_are_searched(depth, lift):
    """The host looks for 2 items of 30, or of each prefix, and finds what the device finds."""
    model, tables = recommender(has_item_head=True)
    rng, beams = np.random.default_rng(3), 30 if depth else 1
    items = np.sort(rng.permuted(np.tile(np.arange(NUM_ITEMS), (3, 1)), axis=1)[:, :2], axis=1)
    rows = np.arange(3, dtype=np.int32)
    features = ItemFeatures(items.astype(np.int32), np.ones((3, 2, 1), np.float32), rows)
    table = np.zeros((3, NUM_ITEMS, 1), np.float16)
    table[rows, [11, 23, 5]] = 1
    weights = np.zeros((1, len(LIFTS)), np.float32)
    weights[0, LIFTS.index(lift)] = 300
    firsts, answers = [], []
    for how in ("exact", "scann"):
        config = dataclasses.replace(CONFIG, num_beams=beams, num_retrieved=2, retrieval=how)
        generator = Generator.create(model, tables, semantic_ids(), depth, config, words=WORDS)
        said = generator.told(["red b", "number7", "surprise me"], prompts(seed=5))
        choice = Choice(None, features, weights, table=table, told=said)
        first = generator.variants(prompts(), 2, [choice])[0].items[:, :1]
        firsts.append(first)
        answers.append(generator.told_at(said, first)[..., 0])
    if lift == "answer":  # of all that is asked for it prefers nothing
        np.testing.assert_allclose(*answers, atol=1e-6)
    else:
        np.testing.assert_array_equal(*firsts)


@pytest.mark.parametrize("depth", [0, 2])
def test_a_large_catalogue_is_read_in_parts(depth, monkeypatch):
    """A part is of one request and 4 items of 30; what is found is the same."""
    model, tables = recommender(has_item_head=True)
    batch, said = prompts(), ["find b for me", "red number7", "surprise me"]
    none = ItemFeatures(np.zeros((3, 1), np.int32), np.zeros((3, 1, 2), np.float32))
    weights = np.array([[0.0, 0.0, 0.7, 2.0]], np.float32)
    found = []
    for entries, size in ((2**26, 2), (14, 3)):  # another size: nothing is compiled yet
        for module in (evidence, told_module):
            monkeypatch.setattr(module, "ENTRIES", entries)
        config = dataclasses.replace(CONFIG, temperature=0.11, batch_size=size)
        generator = Generator.create(model, tables, semantic_ids(), depth, config, words=WORDS)
        spoken = generator.told(said, prompts(seed=5))
        [ranked] = generator.variants(batch, 9, [Choice(None, none, weights, told=spoken)])
        found.append((spoken, ranked))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), *found)
