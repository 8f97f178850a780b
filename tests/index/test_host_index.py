"""Promises of sigma_jax/index/host_index.py: search on the host, against a plain loop."""

import dataclasses

import numpy as np
import pytest
from small_index import LEAVES, D, agreement, clustered

from sigma_jax.index.candidates import SearchInputs
from sigma_jax.index.host_index import HostIndex, leaves_of_items
from sigma_jax.index.scann_searcher import RECALL
from sigma_jax.index.trie_build import build_trie


@pytest.fixture(scope="module", params=[10**9, 500], ids=["product", "scann"])
def state(request):
    """(index, vector of each item, leaf of each item); leaf 3 is small and leaf 0 is large."""
    vectors = clustered(2_000)
    rng = np.random.default_rng(1)
    leaf = rng.choice(LEAVES, 2_000, p=[0.5, 0.3, 0.19, 0.01]).astype(np.int32)
    index = HostIndex(leaf, vectors, count=10, scann_above=request.param)
    assert (request.param == 500) == (len(index.recall) == 2)
    assert all(recall >= RECALL for recall in index.recall.values())
    return index, dict(enumerate(vectors)), dict(enumerate(leaf.tolist()))


def least_recall(state) -> float:
    """The least share of the expected items that a search must find; without ScaNN all."""
    return 0.95 if state[0].recall else 1.0


def test_search_returns_the_nearest_items_of_each_leaf(state):
    assert agreement(state) >= least_recall(state)
    assert agreement(state, count=40) >= least_recall(state)


def test_search_returns_the_next_items_instead_of_excluded_ones(state):
    index = state[0]
    queries = clustered(60, 2)
    leaves = np.random.default_rng(2).integers(-1, LEAVES + 1, 60).astype(np.int32)
    found = index.search(queries, leaves, 5)[0]
    assert agreement(state, excluded=[row[row >= 0] for row in found]) >= least_recall(state)


def test_the_normaliser_counts_excluded_and_disallowed_items(state):
    """The nearest items are excluded and others disallowed; some prefixes have few items left."""
    index, vectors, leaf_of = state
    table = np.stack([vectors[item] for item in range(len(vectors))])
    leaf = np.array([leaf_of[item] for item in range(len(table))])
    queries = clustered(8, 21).reshape(2, 4, D)
    leaves = np.array([[0, 1, 2, 3], [1, 0, -1, 0]], np.int32)
    inverse_temperature = np.array([20.0, 30.0], np.float32)
    near = index.search(queries.reshape(8, D), leaves.reshape(-1), 5)[0].reshape(2, -1)
    closeness = table @ queries[0, 0]
    far = closeness < np.quantile(closeness, 0.6)  # disallows all items that ScaNN finds first
    for is_allowed in (None, np.arange(len(table)) % 50 == 0, far):
        restricted = index if is_allowed is None else index.restrict_to(is_allowed)
        inputs = SearchInputs(queries, leaves, leaves >= 0, inverse_temperature, near)
        candidates = restricted.search_beams(inputs, 10)
        found_items = candidates.nearest_of_beams(candidates.items)
        for row, beam in np.ndindex(2, 4):
            here = leaf == leaves[row, beam]
            if not here.any():
                assert candidates.log_normaliser[row, beam] == -np.inf
                assert (found_items[row, beam] < 0).all()
                continue
            products = table @ queries[row, beam]
            mass = np.log(np.exp(products[here] * inverse_temperature[row]).sum())
            assert candidates.log_normaliser[row, beam] == pytest.approx(mass, abs=0.1)
            is_left = here if is_allowed is None else here & is_allowed
            is_left[near[row][near[row] >= 0]] = False
            best = np.flatnonzero(is_left)[np.argsort(-products[is_left])][:10]
            items = found_items[row, beam]
            assert (items >= 0).sum() == len(best)
            assert len(set(items[items >= 0]) & set(best)) >= (len(best) * least_recall(state)) // 1


def test_items_are_added_removed_and_restored_with_and_without_a_rebuild(state):
    index, vectors, leaf_of = state
    new = np.arange(2_000, 2_300, dtype=np.int32)
    fresh = clustered(300, 5)
    places = np.random.default_rng(6).integers(0, LEAVES, 300).astype(np.int32)
    index.add(new, fresh, places)
    vectors |= dict(zip(new.tolist(), fresh, strict=True))
    leaf_of |= dict(zip(new.tolist(), places.tolist(), strict=True))
    assert agreement(state, seed=7) >= least_recall(state)
    removed = np.arange(0, 2_300, 9, dtype=np.int32)
    index.remove(removed)
    kept = {item: leaf for item, leaf in leaf_of.items() if item not in set(removed.tolist())}
    assert agreement((index, vectors, kept), seed=8) >= least_recall(state)
    assert bool(index.compact()) == bool(index.recall)  # without ScaNN nothing is rebuilt
    assert agreement((index, vectors, kept), seed=9) >= least_recall(state)
    restored, moved = removed[:50], np.full(50, 3, np.int32)
    index.add(restored, np.stack([vectors[int(item)] for item in restored]), moved)
    kept |= dict.fromkeys(restored.tolist(), 3)
    assert agreement((index, vectors, kept), seed=10) >= least_recall(state)
    leaf_of.clear()
    leaf_of |= kept


def test_a_restored_item_is_found_once_in_its_new_leaf():
    vectors = clustered(6)
    leaf = np.array([0, 0, 0, 1, 1, 2], np.int32)
    index = HostIndex(leaf, vectors, count=3)
    for item, place, vector in ((0, 1, vectors[3]), (5, 2, vectors[0]), (0, 1, vectors[1])):
        index.remove(np.array([item], np.int32))
        index.add(np.array([item], np.int32), vector[None], np.array([place], np.int32))
    leaves = np.array([0, 1, 2, -1], np.int32)
    found, products = index.search(np.stack([vectors[1]] * 4), leaves, 4)
    assert [sorted(row[row >= 0].tolist()) for row in found] == [[1, 2], [0, 3, 4], [5], []]
    assert found[1][0] == 0 and products[1][0] == pytest.approx(1)


def test_an_empty_index_finds_nothing_and_impossible_changes_are_errors():
    index = HostIndex(np.full(3, -1, np.int32), clustered(3))
    found, _ = index.search(np.zeros((0, D), np.float32), np.zeros(0, np.int32), 2)
    assert found.shape == (0, 2)
    assert (index.search(clustered(2), np.array([-1, 0], np.int32), 2)[0] == -1).all()
    for items in ([-1], [3]):
        with pytest.raises(ValueError, match="lie outside"):
            index.remove(np.array(items, np.int32))
    with pytest.raises(ValueError, match="negative"):
        index.add(np.array([3], np.int32), clustered(1), np.array([-1], np.int32))


def test_each_beam_gets_its_nearest_items_extra_candidates_and_normaliser(state):
    index, vectors, leaf_of = state
    table = np.stack([vectors[item] for item in range(len(vectors))])
    leaf = index._leaf  # removed items have one too: the model gives them probability
    queries = clustered(6, 11).reshape(2, 3, D)
    leaves = np.array([[0, 1, -1], [3, 0, LEAVES]], np.int32)
    inverse_temperature = np.array([5.0, 12.0], np.float32)
    kept = [item for item in leaf_of if not index._is_removed[item]]
    rng = np.random.default_rng(12)
    extra = np.stack([np.sort(rng.choice(kept, 40, replace=False)) for _ in range(2)])
    extra = extra.astype(np.int32)
    extra[:, -1] = np.iinfo(np.int32).max
    seen = np.full((2, 4), -1, np.int32)
    seen[:, :2] = extra[:, :2]
    inputs = SearchInputs(queries, leaves, leaves >= 0, inverse_temperature, seen, extra)
    found = index.search_beams(inputs, 10)
    nearest, normaliser = found.nearest_of_beams(found.items), found.log_normaliser
    near = index.search(queries.reshape(6, D), leaves.reshape(-1), 10, list(np.repeat(seen, 3, 0)))
    np.testing.assert_array_equal(nearest.reshape(6, 10), near[0])
    for row in range(2):
        for beam in range(3):
            is_here = (found.beams[row] == beam) & (found.items[row] >= 0)
            items = found.items[row][is_here]
            assert len(set(items)) == len(items) and not set(items) & set(seen[row])
            here = {i for i in extra[row, :-1] if leaf[i] == leaves[row, beam]} - set(seen[row])
            assert here <= set(items)
            got = found.cosines[row][is_here]
            np.testing.assert_allclose(got, table[items] @ queries[row, beam], atol=1e-5)
            logits = (
                table[leaf == leaves[row, beam]] @ queries[row, beam] * inverse_temperature[row]
            )
            if leaves[row, beam] < 0 or not len(logits):
                assert normaliser[row, beam] == -np.inf
                continue
            exact = np.log(np.exp(logits).sum())
            tolerance = 0.2 if int(leaves[row, beam]) in index.recall else 0.02
            assert normaliser[row, beam] == pytest.approx(exact, abs=tolerance)


def test_leaves_of_items_are_the_prefixes_in_sorted_order():
    codes = np.random.default_rng(0).integers(0, 5, (80, 2)).astype(np.int32)
    trie = build_trie(codes, 2, 5)
    leaves = leaves_of_items(trie)
    prefixes = sorted(set(map(tuple, codes.tolist())))
    assert [prefixes[leaf] for leaf in leaves] == list(map(tuple, codes.tolist()))


def test_all_items_are_compared_if_the_search_did_not_reach_far_enough():
    """The nearest items are disallowed, and the searcher misses the best of the other items."""
    vectors = clustered(400)
    index = HostIndex(np.zeros(400, np.int32), vectors, scann_above=10**9)

    class Narrow:
        """Finds the nearest and the farthest items, and none between."""

        def __call__(self, queries, count):
            products = queries @ vectors.T
            order = np.argsort(-products, axis=1)
            rows = np.concatenate([order[:, :count], order[:, -50:]], axis=1)
            return rows, np.take_along_axis(products, rows, axis=1)

    prefix = index._prefixes[0]
    index._prefixes[0] = dataclasses.replace(prefix, vectors=vectors, searcher=Narrow())
    query = vectors[:1]
    closeness = vectors @ query[0]
    is_far = closeness < np.quantile(closeness, 0.6)
    leaf = np.zeros(1, np.int32)
    for is_allowed in (np.ones(400, bool), np.arange(400) % 3 > 0, is_far):
        found = index.restrict_to(is_allowed).search(query, leaf, 10)[0][0]
        best = np.flatnonzero(is_allowed)[np.argsort(-closeness[is_allowed])][:10]
        np.testing.assert_array_equal(found, best)
