"""Explanations: the steps of a request's own computation, which lead to its probabilities."""

import dataclasses
import itertools

import numpy as np
import pytest
from scipy.special import logsumexp

from sigma_jax.recommender.parts import RecommenderParts
from sigma_jax.recommender.recommender import Recommender, RecommendOptions
from sigma_jax.reranking.interactions import Interactions
from sigma_jax.reranking.reranker import FEATURES, HISTORY_FEATURES
from sigma_jax.reranking.trending import TRENDING_FEATURES
from sigma_jax.schema import PreparedData, RequestBatch
from sigma_jax.tasks.instructions import TRAIN_WORDINGS
from sigma_jax.tasks.requests import make_requests

COUNT = 6
USER = len(HISTORY_FEATURES) + len(TRENDING_FEATURES)


def some_interactions(tasks: int) -> Interactions:
    """A network over the features with random weights."""
    rng = np.random.default_rng(3)
    inputs, hidden = 1 + USER, 4

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    ones = np.ones(tasks, np.float32)
    return Interactions(
        draw(inputs),
        np.full(inputs, 2, np.float32),
        draw(inputs, hidden),
        draw(tasks, hidden),
        draw(hidden),
        draw(hidden),
        ones,
    )


@pytest.fixture(scope="module")
def asked(trained):
    """A recommender with random weights of all features, interactions, and requests."""
    data = PreparedData.load(trained[1] / "data")
    parts = RecommenderParts.of_workdir(trained[1], data)
    generation = dataclasses.replace(parts.spec.generation, num_beams=3, batch_size=8)
    reranker = parts.reranker
    tasks = len(reranker.weights.calibration)
    rng = np.random.default_rng(2)
    weights = {name: tuple(rng.normal(size=tasks)) for name in FEATURES}
    reranker = dataclasses.replace(
        reranker,
        weights=dataclasses.replace(reranker.weights, of=weights),
        interactions=some_interactions(tasks),
    )
    requests = make_requests(data, "valid", 0, 5, 0.8, TRAIN_WORDINGS)
    return Recommender(parts, generation).with_reranker(reranker), RequestBatch.of(requests, data)


@pytest.fixture(scope="module")
def found(asked):
    recommender, batch = asked
    return recommender.recommend(batch, RecommendOptions(COUNT, explains=True))


def test_an_explanation_changes_no_answer_and_is_made_only_when_asked_for(asked, found):
    recommender, batch = asked
    plain = recommender.recommend(batch, RecommendOptions(COUNT))
    assert plain.explanations is None and found.explanations is not None
    np.testing.assert_array_equal(plain.items, found.items)
    np.testing.assert_allclose(plain.log_probs, found.log_probs, atol=1e-6)


def test_contributions_sum_to_the_score_up_to_a_constant_of_the_request(found):
    steps = found.explanations.of_items
    rest = steps.summed - steps.network - (steps.values * steps.weights).sum(axis=-1)
    assert np.abs(steps.values * steps.weights).sum(axis=-1).std() > 0.1
    np.testing.assert_allclose(rest, rest[:, :1].repeat(COUNT, axis=1), atol=1e-4)


def test_values_are_those_of_the_features(asked, found):
    recommender, batch = asked
    tables = recommender.parts.reranker.tables
    of_user = np.stack(tables.at(batch.requests, batch.histories, found.items), axis=-1)
    inputs = recommender.read_instructions(batch.requests.instruction)
    of_instruction = recommender.instruction_scores(inputs, found.items)
    expected = np.concatenate([of_user, of_instruction], axis=-1)
    assert (np.abs(expected).max(axis=(0, 1)) > 0).sum() > USER // 2
    np.testing.assert_allclose(found.explanations.of_items.values, expected, atol=1e-4)


def test_a_typical_item_is_the_mean_of_all_candidates_by_the_network(asked):
    """With a list of the whole catalogue every candidate is in the list."""
    recommender, batch = asked
    count = len(recommender.parts.semantic_ids.codes)
    found = recommender.recommend(batch, RecommendOptions(count, explains=True))
    steps = found.explanations.of_items
    share = np.where(found.items >= 0, np.exp(steps.network), 0.0)
    share /= share.sum(axis=1, keepdims=True)
    expected = np.einsum("BN,BNF->BF", share, steps.values * steps.weights)
    np.testing.assert_allclose(steps.typical[:, 0], expected, atol=1e-3)


def test_interactions_lead_from_the_sum_to_the_rank(asked, found):
    """The part of a feature is the addition with it less that with its mean in its place."""
    recommender, _ = asked
    steps, interactions = found.explanations.of_items, recommender.parts.reranker.interactions
    inputs = np.concatenate([steps.network[..., None], steps.values[..., :USER]], axis=-1)
    added = np.asarray(interactions.added(inputs, found.tasks))
    rest = steps.ranked - steps.summed - added
    np.testing.assert_allclose(rest, rest[:, :1].repeat(COUNT, axis=1), atol=1e-4)
    for feature in range(USER):
        without = inputs.copy()
        without[..., 1 + feature] = interactions.mean[1 + feature]
        part = added - np.asarray(interactions.added(without, found.tasks))
        np.testing.assert_allclose(steps.interactions[..., feature], part, atol=1e-4)
    assert np.abs(steps.interactions[..., :USER]).max() > 0.01
    assert not steps.interactions[..., USER:].any()


def test_prefixes_are_those_of_the_items(asked, found):
    recommender, _ = asked
    steps, depth = found.explanations.of_items, recommender.spec.depth
    codes = np.asarray(recommender.parts.semantic_ids.codes)[found.items][..., :depth]
    in_beam = found.beams >= 0
    assert in_beam.any()
    np.testing.assert_array_equal(steps.codes[in_beam], codes[in_beam])
    assert (steps.codes[~in_beam] == -1).all()
    scores = found.explanations.scores
    assert (np.diff(scores, axis=1) <= 0).all()
    rows, places = np.nonzero(in_beam)
    beams = found.beams[rows, places]
    np.testing.assert_allclose(found.beam_scores[rows, places], scores[rows, beams], atol=1e-6)
    # Items of one prefix share its probability.
    assert (logsumexp(steps.network, axis=1) <= 1e-4).all()


def test_lists_of_several_things_are_explained_item_by_item(asked):
    """The lists of two things take turns, so every second item has the constant of one request."""
    recommender, batch = asked
    names = recommender.parts.wishes.catalogue.categories.to_pylist()
    texts = (f"{one} and {other}" for one, other in itertools.combinations(names, 2))
    text = next(one for one in texts if len(recommender.parts.wishes.read(one).things) == 2)
    one = batch.take(np.array([0]))
    one = dataclasses.replace(one, requests=dataclasses.replace(one.requests, instruction=[text]))
    found = recommender.recommend(one, RecommendOptions(COUNT, explains=True))
    plain = recommender.recommend(one, RecommendOptions(COUNT))
    np.testing.assert_array_equal(found.items, plain.items)
    steps = found.explanations.of_items
    [rest] = steps.summed - steps.network - (steps.values * steps.weights).sum(axis=-1)
    np.testing.assert_allclose(rest[2:], rest[:-2], atol=1e-4)
    assert abs(rest[0] - rest[1]) > 1e-3
