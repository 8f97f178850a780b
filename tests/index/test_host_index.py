"""Search on the host against comparing everything."""

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
    """An index, and the same as dicts; leaf 3 is small, leaf 0 large."""
    vectors = clustered(2_000)
    rng = np.random.default_rng(1)
    leaf = rng.choice(LEAVES, 2_000, p=[0.5, 0.3, 0.19, 0.01]).astype(np.int32)
    index = HostIndex(leaf, vectors, count=10, scann_above=request.param)
    assert (request.param == 500) == (len(index.recall) == 2)
    assert all(recall >= RECALL for recall in index.recall.values())
    return index, dict(enumerate(vectors)), dict(enumerate(leaf.tolist()))


def least(state) -> float:
    return 0.95 if state[0].recall else 1.0


def test_the_nearest_of_each_leaf_are_found(state):
    assert agreement(state) >= least(state)
    assert agreement(state, count=40) >= least(state)


def test_what_is_excluded_does_not_come_and_others_move_up(state):
    index = state[0]
    queries = clustered(60, 2)
    leaves = np.random.default_rng(2).integers(-1, LEAVES + 1, 60).astype(np.int32)
    found = index.search(queries, leaves, 5)[0]
    assert agreement(state, excluded=[row[row >= 0] for row in found]) >= least(state)


def test_the_denominator_counts_what_may_not_come(state):
    """The nearest items are seen, others not allowed; some prefixes have almost none left."""
    index, vectors, leaf_of = state
    table = np.stack([vectors[item] for item in range(len(vectors))])
    leaf = np.array([leaf_of[item] for item in range(len(table))])
    queries = clustered(8, 21).reshape(2, 4, D)
    leaves = np.array([[0, 1, 2, 3], [1, 0, -1, 0]], np.int32)
    sharpness = np.array([20.0, 30.0], np.float32)
    near = index.search(queries.reshape(8, D), leaves.reshape(-1), 5)[0].reshape(2, -1)
    closeness = table @ queries[0, 0]
    far = closeness < np.quantile(closeness, 0.6)  # all that ScaNN finds first may not come
    for is_allowed in (None, np.arange(len(table)) % 50 == 0, far):
        shown = index if is_allowed is None else index.restrict_to(is_allowed)
        inputs = SearchInputs(queries, leaves, leaves >= 0, sharpness, near)
        candidates = shown.search_beams(inputs, 10)
        found_items = candidates.nearest_of_beams(candidates.items)
        for row, beam in np.ndindex(2, 4):
            here = leaf == leaves[row, beam]
            if not here.any():
                assert candidates.log_normaliser[row, beam] == -np.inf
                assert (found_items[row, beam] < 0).all()
                continue
            products = table @ queries[row, beam]
            mass = np.log(np.exp(products[here] * sharpness[row]).sum())
            assert candidates.log_normaliser[row, beam] == pytest.approx(mass, abs=0.1)
            may_come = here if is_allowed is None else here & is_allowed
            may_come[near[row][near[row] >= 0]] = False
            best = np.flatnonzero(may_come)[np.argsort(-products[may_come])][:10]
            items = found_items[row, beam]
            assert (items >= 0).sum() == len(best)
            assert len(set(items[items >= 0]) & set(best)) >= (len(best) * least(state)) // 1


def test_items_come_go_and_come_back_without_and_with_a_rebuild(state):
    index, vectors, leaf_of = state
    new = np.arange(2_000, 2_300, dtype=np.int32)
    fresh = clustered(300, 5)
    places = np.random.default_rng(6).integers(0, LEAVES, 300).astype(np.int32)
    index.add(new, fresh, places)
    vectors |= dict(zip(new.tolist(), fresh, strict=True))
    leaf_of |= dict(zip(new.tolist(), places.tolist(), strict=True))
    assert agreement(state, seed=7) >= least(state)
    gone = np.arange(0, 2_300, 9, dtype=np.int32)
    index.remove(gone)
    kept = {item: leaf for item, leaf in leaf_of.items() if item not in set(gone.tolist())}
    assert agreement((index, vectors, kept), seed=8) >= least(state)
    assert bool(index.compact()) == bool(index.recall)  # a product needs nothing
    assert agreement((index, vectors, kept), seed=9) >= least(state)
    back, moved = gone[:50], np.full(50, 3, np.int32)
    index.add(back, np.stack([vectors[int(item)] for item in back]), moved)
    kept |= dict.fromkeys(back.tolist(), 3)
    assert agreement((index, vectors, kept), seed=10) >= least(state)
    leaf_of.clear()
    leaf_of |= kept


def test_an_item_that_comes_back_is_found_once_and_where_it_is_now():
    vectors = clustered(6)
    leaf = np.array([0, 0, 0, 1, 1, 2], np.int32)
    index = HostIndex(leaf, vectors, count=3)
    for item, place, vector in ((0, 1, vectors[3]), (5, 2, vectors[0]), (0, 1, vectors[1])):
        index.remove(np.array([item], np.int32))
        index.add(np.array([item], np.int32), vector[None], np.array([place], np.int32))
    every = np.array([0, 1, 2, -1], np.int32)
    found, products = index.search(np.stack([vectors[1]] * 4), every, 4)
    assert [sorted(row[row >= 0].tolist()) for row in found] == [[1, 2], [0, 3, 4], [5], []]
    assert found[1][0] == 0 and products[1][0] == pytest.approx(1)


def test_nothing_is_searched_and_nothing_unknown_removed():
    index = HostIndex(np.full(3, -1, np.int32), clustered(3))
    found, _ = index.search(np.zeros((0, D), np.float32), np.zeros(0, np.int32), 2)
    assert found.shape == (0, 2)
    assert (index.search(clustered(2), np.array([-1, 0], np.int32), 2)[0] == -1).all()
    for items in ([-1], [3]):
        with pytest.raises(ValueError, match="lie outside"):
            index.remove(np.array(items, np.int32))
    with pytest.raises(ValueError, match="negative"):
        index.add(np.array([3], np.int32), clustered(1), np.array([-1], np.int32))


def test_beams_get_items_what_is_listed_and_the_denominator(state):
    index, vectors, leaf_of = state
    table = np.stack([vectors[item] for item in range(len(vectors))])
    leaf = index._leaf  # of removed items too: the model gives them probability
    queries = clustered(6, 11).reshape(2, 3, D)
    leaves = np.array([[0, 1, -1], [3, 0, LEAVES]], np.int32)
    sharpness = np.array([5.0, 12.0], np.float32)
    kept = [item for item in leaf_of if not index._is_removed[item]]
    rng = np.random.default_rng(12)
    listed = np.stack([np.sort(rng.choice(kept, 40, replace=False)) for _ in range(2)])
    listed = listed.astype(np.int32)
    listed[:, -1] = np.iinfo(np.int32).max
    seen = np.full((2, 4), -1, np.int32)
    seen[:, :2] = listed[:, :2]
    inputs = SearchInputs(queries, leaves, leaves >= 0, sharpness, seen, listed)
    found = index.search_beams(inputs, 10)
    nearest, normaliser = found.nearest_of_beams(found.items), found.log_normaliser
    near = index.search(queries.reshape(6, D), leaves.reshape(-1), 10, list(np.repeat(seen, 3, 0)))
    np.testing.assert_array_equal(nearest.reshape(6, 10), near[0])
    for row in range(2):
        for beam in range(3):
            is_here = (found.beams[row] == beam) & (found.items[row] >= 0)
            items = found.items[row][is_here]
            assert len(set(items)) == len(items) and not set(items) & set(seen[row])
            here = {i for i in listed[row, :-1] if leaf[i] == leaves[row, beam]} - set(seen[row])
            assert here <= set(items)
            got = found.cosines[row][is_here]
            np.testing.assert_allclose(got, table[items] @ queries[row, beam], atol=1e-5)
            logits = table[leaf == leaves[row, beam]] @ queries[row, beam] * sharpness[row]
            if leaves[row, beam] < 0 or not len(logits):
                assert normaliser[row, beam] == -np.inf
                continue
            exact = np.log(np.exp(logits).sum())
            room = 0.2 if int(leaves[row, beam]) in index.recall else 0.02
            assert normaliser[row, beam] == pytest.approx(exact, abs=room)


def test_leaves_of_a_trie():
    codes = np.random.default_rng(0).integers(0, 5, (80, 2)).astype(np.int32)
    trie = build_trie(codes, 2, 5)
    leaves = leaves_of_items(trie)
    prefixes = sorted(set(map(tuple, codes.tolist())))
    assert [prefixes[leaf] for leaf in leaves] == list(map(tuple, codes.tolist()))


def test_what_lies_further_than_was_searched_for_is_looked_for_among_all():
    """The nearest may not come, and what was compared beside them is not the best of the rest."""
    vectors = clustered(400)
    index = HostIndex(np.zeros(400, np.int32), vectors, scann_above=10**9)

    class Narrow:
        """Finds the nearest, and the farthest beside them."""

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
