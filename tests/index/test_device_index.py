"""Promises of sigma_jax/index/device_index.py: exact search inside prefixes on the device."""

import dataclasses

import jax
import numpy as np
import pytest

from sigma_jax.generation import fusion
from sigma_jax.index import device_index
from sigma_jax.index.candidates import SearchInputs, padded_width
from sigma_jax.index.device_index import build_device_index
from sigma_jax.index.leaf_blocks import BLOCK_SIZES, LeafBlocks
from sigma_jax.index.trie_build import build_trie, mark_active
from sigma_jax.shapes import power_of_two

ITEMS, CODES, D = 60, 5, 8
_search = jax.jit(device_index.search, static_argnums=2)


def search(index, queries, leaves, is_valid, count, factor, excluded=None):
    """Items and cosines [B, M, R] of every beam, and the log normaliser [B, M]."""
    found = _search(index, SearchInputs(queries, leaves, is_valid, factor, excluded), count)
    nearest = (found.nearest_of_beams(values) for values in (found.items, found.cosines))
    return (*nearest, found.log_normaliser)


@pytest.fixture
def world():
    """(codes, vectors, queries, leaves, is_valid) with ties and invalid beams."""
    rng = np.random.default_rng(0)
    codes = rng.choice(CODES, (ITEMS, 2), p=[0.6, 0.2, 0.1, 0.06, 0.04]).astype(np.int32)
    vectors = rng.normal(size=(ITEMS, D)).astype(np.float32)
    vectors[7], vectors[3] = vectors[5], vectors[5]  # exact ties
    codes[[3, 5, 7], 0] = 0
    queries = rng.normal(size=(3, 4, D)).astype(np.float32)
    queries[0, 0] = vectors[5]
    queries /= np.linalg.norm(queries, axis=-1, keepdims=True)
    queries[1, 1] *= 1.5  # a longer query gives larger values
    leaves = np.int32([[0, 1, 2, 3], [4, 0, 1, -1], [2, 3, 4, 0]])
    leaves[0, 0] = 0
    is_valid = np.ones((3, 4), bool)
    is_valid[2, 3] = False
    return codes, vectors, queries, leaves, is_valid


def naive(world, inverse_temperature, excluded):
    """{(b, m): (ranked items, product by item, log normaliser)} in float64, by a plain loop."""
    codes, vectors, queries, leaves, is_valid = world
    prefixes = sorted(set(codes[:, 0].tolist()))
    out = {}
    for b, m in np.ndindex(leaves.shape):
        if not is_valid[b, m] or leaves[b, m] < 0:
            continue
        inside = np.flatnonzero(codes[:, 0] == prefixes[leaves[b, m]])
        q, v = np.float64(queries[b, m]), np.float64(vectors[inside])
        cosines = v @ q / np.linalg.norm(v, axis=1)
        normaliser = np.log(np.exp(cosines * inverse_temperature[b]).sum())
        cosine_of = dict(zip(inside.tolist(), cosines, strict=True))
        ranked = sorted(inside.tolist(), key=lambda i: (-round(cosine_of[i], 6), i))
        out[b, m] = [i for i in ranked if i not in excluded[b]], cosine_of, normaliser
    return out


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("chunk", [1, 7, 128])
@pytest.mark.parametrize("excluded", [None, np.int32([[5, -1], [0, 1], [-1, -1]])])
def test_search_equals_a_float64_loop(world, depth, chunk, excluded):
    codes, vectors, queries, leaves, is_valid = world
    if depth == 0:  # one prefix for all items
        codes, leaves = np.zeros_like(codes), np.minimum(leaves, 0)
        world = codes, vectors, queries, leaves, is_valid
    index = build_device_index(build_trie(codes, depth, CODES), vectors, chunk)
    inverse_temperature, count = np.float32([0.0, 4.0, 30.0]), 10
    items, cosines, normaliser = search(
        index, queries, leaves, is_valid, count, inverse_temperature, excluded
    )
    excluded_sets = [set(row.tolist()) for row in excluded] if excluded is not None else [set()] * 3
    expected = naive(world, inverse_temperature, excluded_sets)
    for b, m in np.ndindex(leaves.shape):
        ranked, cosine_of, expected_normaliser = expected.get((b, m), ([], {}, -np.inf))
        best = ranked[:count]
        assert items[b, m].tolist() == best + [-1] * (count - len(best))
        np.testing.assert_allclose(normaliser[b, m], expected_normaliser, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(
            cosines[b, m][: len(best)], [cosine_of[i] for i in best], atol=1e-5
        )
        assert np.isneginf(cosines[b, m][len(best) :]).all()


def test_probabilities_of_all_items_of_a_prefix_sum_to_that_of_the_beam(world):
    codes, vectors, queries, leaves, is_valid = world
    is_valid = is_valid & (leaves >= 0)
    index = build_device_index(build_trie(codes, 1, CODES), vectors)
    beam_scores = np.where(is_valid, -np.arange(4, dtype=np.float32) - 0.5, -np.inf)
    factor = fusion.inverse_temperature(beam_scores, is_valid, 0.05, "deviation", 1e-3)
    items, cosines, normaliser = search(index, queries, leaves, is_valid, ITEMS, factor)
    log_prob = fusion.fuse(beam_scores, is_valid, cosines, items >= 0, normaliser, factor)
    np.testing.assert_allclose(np.exp(log_prob).sum(-1), np.exp(beam_scores), rtol=1e-4)


def test_the_exact_normaliser_is_the_retrieved_one_if_all_items_are_retrieved(world):
    codes, vectors, queries, leaves, is_valid = world
    index = build_device_index(build_trie(codes, 1, CODES), vectors)
    factor = np.float32([3.0, 20.0, 1.0])
    items, cosines, normaliser = search(index, queries, leaves, is_valid, ITEMS, factor)
    retrieved = fusion.retrieved_log_normaliser(cosines, items >= 0, factor)
    np.testing.assert_allclose(normaliser, retrieved, rtol=1e-5, atol=1e-5)


def test_a_request_without_a_valid_beam_gets_no_items(world):
    codes, vectors, queries, leaves, is_valid = world
    index = build_device_index(build_trie(codes, 1, CODES), vectors)
    found = search(index, queries, leaves, np.zeros_like(is_valid), 3, np.ones(3, np.float32))
    assert (found[0] == -1).all() and np.isneginf(found[1]).all() and np.isneginf(found[2]).all()


def test_zero_vectors_give_no_nan():
    index = build_device_index(
        build_trie(np.zeros((2, 1), np.int32), 1, 1), np.zeros((2, D), np.float32)
    )
    items, cosines, _ = search(
        index,
        np.zeros((1, 1, D), np.float32),
        np.zeros((1, 1), np.int32),
        np.ones((1, 1), bool),
        2,
        np.ones(1, np.float32),
    )
    assert items.tolist() == [[[0, 1]]] and cosines.tolist() == [[[0.0, 0.0]]]


def test_an_error_names_a_wrong_number_of_vectors():
    trie = build_trie(np.zeros((4, 1), np.int32), 1, 1)
    with pytest.raises(ValueError, match="3 item vectors for 4 items"):
        build_device_index(trie, np.ones((3, D), np.float32))


@pytest.mark.parametrize("depth", [0, 1])
def test_extra_candidates_join_the_nearest_items_once_with_their_beam(world, depth):
    codes, vectors, queries, leaves, is_valid = world
    if depth == 0:
        leaves, queries, is_valid = (
            np.zeros((3, 1), np.int32),
            queries[:, :1],
            np.ones((3, 1), bool),
        )
    trie = build_trie(codes, depth, CODES)
    index = build_device_index(trie, vectors)
    excluded = np.int32([[5, -1], [0, 1], [-1, -1]])
    extra = np.tile(
        np.arange(-4, ITEMS + 4, dtype=np.int32), (3, 1)
    )  # some ids are not in the catalogue
    extra[:, :4] = 7  # repeats
    is_active = np.arange(ITEMS) % 3 > 0
    inputs = SearchInputs(
        queries,
        leaves,
        is_valid,
        np.ones(3, np.float32),
        excluded,
        extra,
        None,
        mark_active(trie, is_active),
    )
    found = jax.tree.map(np.asarray, _search(index, inputs, 2))
    prefixes = sorted(set(codes[:, 0].tolist()))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for row in range(3):
        items = found.items[row][found.items[row] >= 0]
        beams = found.beams[row][found.items[row] >= 0]
        allowed = set(np.flatnonzero(is_active)) - set(excluded[row].tolist())
        searched = {prefixes[leaf] for leaf in leaves[row][is_valid[row] & (leaves[row] >= 0)]}
        expected = {i for i in allowed if depth == 0 or codes[i, 0] in searched}
        assert set(items) == expected and len(items) == len(expected)
        for item, beam, cosine in zip(
            items, beams, found.cosines[row][found.items[row] >= 0], strict=True
        ):
            assert depth == 0 or codes[item, 0] == prefixes[leaves[row, beam]]
            assert cosine == pytest.approx(float(unit[item] @ queries[row, beam]), abs=1e-5)


def test_the_items_nearest_to_the_extra_queries_are_candidates(world):
    codes, vectors, queries, leaves, is_valid = world
    index = build_device_index(build_trie(codes, 1, CODES), vectors)
    plain = SearchInputs(queries, leaves, is_valid, np.ones(3, np.float32))
    others = np.random.default_rng(1).normal(size=(3, D)).astype(np.float32)
    at_others = dataclasses.replace(
        plain, queries=np.broadcast_to(others[:, None], queries.shape).copy()
    )
    extra = np.asarray(_search(index, at_others, 3).items)
    found = _search(index, dataclasses.replace(plain, extra_queries=others), 3)
    items = np.asarray(found.items)
    for row in range(3):
        assert set(extra[row]) <= set(items[row]) | {-1}
    np.testing.assert_array_equal(
        found.nearest_of_beams(items).reshape(3, -1), np.asarray(_search(index, plain, 3).items)
    )


def test_arrays_of_extra_candidates_have_few_widths_and_are_at_most_half_empty():
    widths = [padded_width(size) for size in range(20_000)]
    assert all(width >= size for size, width in enumerate(widths))
    assert len(set(widths)) == 8
    assert all(width < 2 * size for size, width in enumerate(widths) if width > 1_024)


@pytest.mark.parametrize("depth", [1, 2])
def test_all_items_have_the_products_and_normalisers_of_a_product_with_every_query(world, depth):
    codes, vectors, queries, leaves, is_valid = world
    index = build_device_index(build_trie(codes, depth, CODES), vectors)
    plain = dataclasses.replace(index, blocks=None)
    active = jax.tree.map(jax.numpy.asarray, mark_active(build_trie(codes, depth, CODES), FLAGS))
    for root in (None, np.float32([1.0, 2.0, 3.0])):
        for more in ({}, {"excluded": np.int32([[5, -1], [0, 1], [-1, -1]])}, {"active": active}):
            inputs = SearchInputs(
                queries, leaves, is_valid, np.float32([1, 2, 3]), root_log_normaliser=root, **more
            )
            found = jax.jit(device_index.all_candidates)(index, inputs)
            expected = jax.jit(device_index.all_candidates)(plain, inputs)
            np.testing.assert_array_equal(found.items, expected.items)
            np.testing.assert_array_equal(found.beams, expected.beams)
            np.testing.assert_allclose(found.cosines, expected.cosines, atol=1e-6)
            np.testing.assert_allclose(found.log_normaliser, expected.log_normaliser, atol=1e-5)


FLAGS = np.arange(ITEMS) % 3 > 0


def test_blocks_hold_every_item_once_and_little_else():
    """Leaves of very different sizes: the padding is at most what one block size needs."""
    rng = np.random.default_rng(0)
    for sizes in ([1] * 40, [500, 1, 1, 0, 3], rng.integers(0, 90, 30), [7]):
        start = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
        vectors = rng.normal(size=(int(start[-1]) + 5, 4)).astype(np.float32)
        blocks = LeafBlocks.make(vectors, start)
        table = np.asarray(blocks.vectors).reshape(-1, 4)
        place = np.asarray(blocks.place)[: start[-1]]
        assert len(set(place.tolist())) == len(place)
        np.testing.assert_array_equal(table[place], vectors[: start[-1]])
        leaf = np.asarray(blocks.leaf)[place // blocks.vectors.shape[1]]
        np.testing.assert_array_equal(leaf, np.repeat(np.arange(len(sizes)), sizes))
        for rows in BLOCK_SIZES:
            padded = power_of_two(sum(-(-int(size) // rows) for size in sizes)) * rows
            assert len(table) <= padded
