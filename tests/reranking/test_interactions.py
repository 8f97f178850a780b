"""Promises of sigma_jax/reranking/interactions.py."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from small_ranker import batch, make_ranker, variants
from small_recommender import CONFIG, NUM_ITEMS, recommender

from sigma_jax.recommender.ranking import rank
from sigma_jax.reranking import interactions
from sigma_jax.reranking.features import ItemFeatures, RankingInputs
from sigma_jax.reranking.history.relations import PADDING
from sigma_jax.reranking.interactions import (
    DEPTH,
    MIN_EXAMPLES,
    Interactions,
    best_of_sum,
    fit_interactions,
)

CANDIDATES = 20


@pytest.fixture(autouse=True, scope="module")
def all_steps():
    """As many steps as a real fit has; conftest.py takes fewer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interactions, "STEPS", 1_000)
        interactions._train.clear_cache()
        yield
    interactions._train.clear_cache()


def examples(count: int, seed: int = 0, swapped: float = 0.0, has_interaction: bool = True):
    """Requests whose targets are drawn by column 0, and by the product of the columns 1 and 2.

    Args:
      swapped: the share of requests of a second task, where the product counts the other way.
    """
    rng = np.random.default_rng(seed)
    columns = [rng.normal(size=(count, CANDIDATES)).astype(np.float32) for _ in range(3)]
    task = (rng.random(count) < swapped).astype(int)
    product = columns[1] * columns[2] * has_interaction
    truth = columns[0] + 2 * np.where(task == 1, -1, 1)[:, None] * product
    target = (truth + rng.gumbel(size=truth.shape)).argmax(axis=1).astype(np.int32)
    everything = np.ones(truth.shape, bool)
    return best_of_sum(columns, columns[0], target, everything, np.eye(2)[task])


def added(network: Interactions, of) -> np.ndarray:
    """The additions of the network in the requests of some examples."""
    return np.asarray(network.added(of.inputs, of.shares))


def share_first(of, scores: np.ndarray) -> float:
    """The share of requests whose target is first."""
    return (scores.argmax(axis=1) == of.target).mean()


def test_an_interaction_that_no_sum_can_express_is_learned():
    network, metrics = fit_interactions(examples(1_500, swapped=0.5), np.ones(2))
    assert metrics["interactions_loss"] < metrics["interactions_loss_without"] - 0.3
    new = examples(500, seed=1, swapped=0.5)
    with_network = share_first(new, new.scores + added(network, new))
    assert with_network > share_first(new, new.scores) + 0.15
    # The network knows the task: with the other one it says the opposite.
    other = new._replace(shares=new.shares[:, ::-1])
    assert share_first(new, new.scores + added(network, other)) < with_network - 0.15


def test_there_is_no_network_where_it_does_not_help_or_targets_are_few():
    network, metrics = fit_interactions(examples(600, has_interaction=False), np.ones(2))
    assert network is None and set(metrics) == {"interactions_loss_without", "interactions_loss"}
    assert fit_interactions(examples(MIN_EXAMPLES - 1), np.ones(2)) == (None, {})


def test_items_that_satisfy_the_instruction_stay_above_others():
    """Targets follow a product of two columns. A third one tells the items that satisfy."""
    rng = np.random.default_rng(0)
    columns = [rng.normal(size=(1_000, CANDIDATES)).astype(np.float32) for _ in range(3)]
    product = columns[1] * columns[2]
    target = (2 * product + rng.gumbel(size=product.shape)).argmax(axis=1).astype(np.int32)
    is_satisfying = columns[0] > 1
    shares = []
    for satisfying in (np.ones_like(is_satisfying), is_satisfying):
        given = best_of_sum(columns, 0 * columns[0], target, satisfying, np.ones((1_000, 1)))
        network, _ = fit_interactions(given, np.ones(1))
        best = np.argsort(-added(network, given), axis=1)[:, :3]
        kept = np.take_along_axis(given.inputs[..., 0] > 1, best, axis=1)
        shares.append(kept.mean())
    assert shares[1] > shares[0] + 0.1


def test_best_of_sum_keeps_requests_whose_target_is_among_the_best():
    scores = -np.arange(3 * (DEPTH + 5), dtype=np.float32).reshape(3, -1)
    scores[2, 3:] = -np.inf  # few candidates
    target = np.array([DEPTH - 1, DEPTH, 1], np.int32)
    nothing = np.zeros(scores.shape, bool)
    kept = best_of_sum([scores, 2 * scores], scores, target, nothing, np.eye(3))
    np.testing.assert_array_equal(kept.target, [DEPTH - 1, 1])
    np.testing.assert_array_equal(kept.shares, [[1, 0, 0], [0, 0, 1]])
    np.testing.assert_array_equal(kept.inputs[..., 1], 2 * kept.scores)
    np.testing.assert_array_equal(kept.is_satisfying.sum(axis=1), [1, 1])  # the target itself
    assert kept.scores.shape == (2, DEPTH) and np.isfinite(kept.scores[1]).sum() == 3


def network_of(inputs: int) -> Interactions:
    """A network of random values with two tasks, of which the second is twice as strong."""
    rng = np.random.default_rng(3)
    shapes = [(inputs,), (inputs,), (inputs, 16), (2, 16), (16,), (16,)]
    values = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    values[1] = np.abs(values[1]) + 1
    return Interactions(*values, np.array([1.0, 2.0], np.float32))


def test_lists_get_the_addition_of_their_features_and_keep_their_total():
    network = network_of(4)
    features = ItemFeatures(
        np.array([[2, 5, PADDING], [7, PADDING, PADDING]], np.int32),
        np.arange(12, dtype=np.float16).reshape(2, 3, 2),
        np.array([1, 0], np.int32),
    )
    trending = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 1)), jnp.float16)
    inputs = RankingInputs(features=features, trending=trending, interactions=network)
    items = np.array([[5, 3, 2], [7, 0, -1]], np.int32)
    log_probs = np.log(np.array([[0.3, 0.2, 0.1], [0.5, 0.4, 0.0]], np.float32) + 1e-30)
    log_probs[1, 2] = -np.inf
    of_network = np.log(np.array([[0.2, 0.2, 0.2], [0.6, 0.1, 0.1]], np.float32))
    shares = np.array([[0.25, 0.75], [1.0, 0.0]], np.float32)
    found = np.asarray(inputs.with_interactions(items, log_probs, of_network, shares))
    values = np.zeros((2, 3, 4), np.float32)
    values[..., 0] = of_network
    values[0, 0, 1:3], values[0, 2, 1:3], values[1, 0, 1:3] = [2, 3], [0, 1], [6, 7]
    values[0, :, 3], values[1, :2, 3] = trending[1, [5, 3, 2], 0], trending[0, [7, 0], 0]
    expected = np.exp(log_probs + np.asarray(network.added(values, shares)))
    expected *= np.exp(log_probs).sum(axis=1, keepdims=True) / expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.exp(found), expected, rtol=1e-4, atol=1e-7)
    assert found[1, 2] == -np.inf


def test_a_novel_instruction_gets_nothing_and_strength_scales_a_task():
    network = network_of(3)
    inputs = np.random.default_rng(0).normal(size=(1, 5, 3)).astype(np.float32)
    novel = network.added(inputs, np.array([[0.0, 0.0, 1.0]], np.float32))
    np.testing.assert_array_equal(novel, 0)
    plain = dataclasses.replace(network, strength=np.ones(2, np.float32))
    second = np.array([[0.0, 1.0, 0.0]], np.float32)
    np.testing.assert_allclose(
        network.added(inputs, second), 2 * plain.added(inputs, second), rtol=1e-6
    )


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_an_extreme_input_is_bounded(scale):
    network = network_of(3)
    far = np.full((1, 1, 3), scale * 100, np.float32)
    same = network.added(far, np.eye(2, dtype=np.float32)[:1])
    np.testing.assert_allclose(same, network.added(2 * far, np.eye(2, dtype=np.float32)[:1]))


@pytest.mark.parametrize("depth", [5, 60])
def test_the_best_items_of_the_sum_are_ranked_anew(monkeypatch, depth):
    """By hand: the sum ranks; then the network ranks its first items, however short the list is."""
    monkeypatch.setattr("sigma_jax.recommender.ranking.DEPTH", depth)
    rank.clear_cache()
    ranker = make_ranker(*recommender(has_item_head=True), 0, CONFIG)
    rng = np.random.default_rng(0)
    items = np.tile(np.arange(NUM_ITEMS, dtype=np.int32), (3, 1))
    values = rng.random((3, NUM_ITEMS, 2)).astype(np.float32)
    weights = np.array([[0.5, -0.3]], np.float32)
    network = dataclasses.replace(network_of(3), of_task=np.zeros((1, 16), np.float32))
    network = dataclasses.replace(network, strength=np.ones(1, np.float32))
    plain = RankingInputs(features=ItemFeatures(items, values), weights=weights)
    inputs = [RankingInputs(), plain, dataclasses.replace(plain, interactions=network)]
    alone, by_sum, _ = variants(ranker, batch(), NUM_ITEMS, inputs)
    count = min(depth, NUM_ITEMS)
    best = by_sum.items[:, :count]
    log_p = np.array(
        [dict(zip(*row, strict=True)) for row in zip(alone.items, alone.log_probs, strict=True)]
    )
    of_network = np.array([[row[i] for i in of] for row, of in zip(log_p, best, strict=True)])
    taken = np.take_along_axis(values, best[..., None], axis=1)
    read = np.concatenate([of_network[..., None], taken], axis=-1).astype(np.float32)
    scores = by_sum.log_probs[:, :count] + network.added(read, np.ones((3, 1), np.float32))
    expected = np.take_along_axis(best, np.argsort(-np.asarray(scores), axis=1), axis=1)
    [found] = variants(ranker, batch(), 4, inputs[2:])
    np.testing.assert_array_equal(found.items, expected[:, :4])
    assert (found.items != by_sum.items[:, :4]).any()
    rank.clear_cache()
