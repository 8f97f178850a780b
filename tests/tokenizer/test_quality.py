"""Tests of the quality measures of semantic IDs."""

import collections

import numpy as np

from sigma_jax.tokenizer import quality


def test_use_and_perplexity_of_known_codes():
    codes = np.int32([[0, 1], [1, 1], [2, 1], [3, 1]])
    used, perplexity = quality.code_use(codes, 8)
    assert used.tolist() == [4, 1]
    np.testing.assert_allclose(perplexity, [4, 1])


def test_perplexity_of_equally_used_codes_is_their_number():
    counts = np.array([[5, 5, 5, 5], [9, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(quality.perplexities(counts), [4, 1, 1])


def test_prefix_sizes_equal_a_counter():
    codes = np.random.default_rng(0).integers(0, 3, (60, 4))
    for depth, sizes in enumerate(quality.prefix_sizes(codes), 1):
        expected = collections.Counter(tuple(row[:depth]) for row in codes.tolist())
        assert sorted(sizes.tolist()) == sorted(expected.values())


def test_collision_histogram_counts_sids_by_items():
    sizes = np.array([1, 1, 3, 10, 40])
    assert quality.collision_histogram(sizes) == {"1": 2, "3": 1, "10 or more": 2}


def test_neighbour_share_equals_a_plain_loop():
    rng = np.random.default_rng(0)
    vectors, codes = rng.normal(size=(40, 5)), rng.integers(0, 3, 40)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = np.array([3, 17, 39])
    hits = 0
    for row in queries:
        nearest = [i for i in np.argsort(-(unit @ unit[row])) if i != row][:10]
        hits += sum(codes[i] == codes[row] for i in nearest)
    assert quality.neighbour_share(vectors, codes, queries) == hits / 30
    assert quality.neighbour_share(vectors[:1], codes[:1], np.array([0])) == 1.0
