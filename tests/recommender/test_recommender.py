"""Promises of sigma_jax/recommender/recommender.py."""

import dataclasses

import jax
import numpy as np
import pytest

from sigma_jax.recommender.parts import RecommenderParts, lexical_table
from sigma_jax.recommender.recommender import Recommender, RecommendOptions
from sigma_jax.schema import PreparedData, RequestBatch
from sigma_jax.tasks.instructions import SLOTS, TRAIN_WORDINGS, slot_value_texts
from sigma_jax.tasks.requests import make_requests


@pytest.fixture(scope="module")
def loaded(trained):
    """The data, a recommender of the small training, and some validation requests."""
    data = PreparedData.load(trained[1] / "data")
    parts = RecommenderParts.of_workdir(trained[1], data)
    generation = dataclasses.replace(parts.spec.generation, num_beams=4, batch_size=8)
    requests = make_requests(data, "valid", 0, 5, 0.8, TRAIN_WORDINGS)
    return data, Recommender(parts, generation), RequestBatch.of(requests, data)


def with_spec(recommender: Recommender, **changes) -> Recommender:
    """The recommender as if it had been trained otherwise."""
    spec = dataclasses.replace(recommender.spec, **changes)
    parts = dataclasses.replace(recommender.parts, spec=spec)
    return Recommender(parts, recommender.generator.config)


def test_an_instruction_is_read_alike_whoever_gives_it(loaded):
    _, recommender, _ = loaded
    texts = ["show me milk", "hidden gems for me please", "show me milk"]
    read = recommender.read_instructions(texts)
    first = recommender.read_instructions(texts[:1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[:1], b, atol=1e-5), read, first)
    queries = read.answer.queries
    np.testing.assert_array_equal(queries[0], queries[2])
    assert np.abs(queries[0] - queries[1]).max() > 1e-3


def test_a_network_that_never_saw_an_instruction_alone_does_not_answer_one(loaded):
    _, recommender, batch = loaded
    texts = batch.requests.instruction
    assert recommender.read_instructions(texts).answer is not None
    read = with_spec(recommender, has_instruction_only_contexts=False).read_instructions(texts)
    assert read.answer is None and len(read.words) == len(texts)


def test_one_answer_for_each_variant_equals_the_answers_one_by_one(loaded):
    _, recommender, batch = loaded
    variants = [
        RecommendOptions(7),
        RecommendOptions(7, exclude_seen=True),
        RecommendOptions(7, reranks=False),
    ]
    together = recommender.recommend_variants(batch, variants)
    assert len({answer.items.tobytes() for answer in together}) == 3
    for answer, options in zip(together, variants, strict=True):
        alone = recommender.recommend(batch, options)
        np.testing.assert_array_equal(answer.items, alone.items)
        np.testing.assert_allclose(answer.log_probs, alone.log_probs, atol=1e-5)


def test_the_order_of_requests_does_not_matter(loaded):
    _, recommender, batch = loaded
    order = np.random.default_rng(0).permutation(len(batch))
    items = recommender.recommend(batch).items
    np.testing.assert_array_equal(recommender.recommend(batch.take(order)).items, items[order])


def test_items_that_are_not_allowed_are_never_recommended(loaded):
    data, recommender, batch = loaded
    is_allowed = np.arange(len(data.catalogue)) % 2 == 0
    items = recommender.recommend(batch, RecommendOptions(5), is_allowed).items
    assert (items >= 0).all() and is_allowed[items].all()


def test_words_are_those_of_queries_categories_and_themes(loaded):
    data, recommender, _ = loaded
    lexical = recommender.parts.lexical
    texts = (text for task in SLOTS for text in slot_value_texts(data, task))
    words = {word for text in texts for word in text.split()}
    assert lexical.of_items.shape[1] == len(data.catalogue)
    assert "tea" in lexical.numbers and set(lexical.numbers) <= words
    assert lexical.trust[lexical.numbers["tea"]] > 0.3
    assert (
        lexical_table(data, dataclasses.replace(recommender.spec, has_instructions=False)) is None
    )
