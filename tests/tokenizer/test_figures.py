"""Promises of sigma_jax/tokenizer/figures.py."""

import collections

import numpy as np

from sigma_jax.tokenizer import figures


def test_use_and_perplexity_of_known_codes():
    codes = np.int32([[0, 1], [1, 1], [2, 1], [3, 1]])
    used, perplexity = figures.code_use(codes, 8)
    assert used.tolist() == [4, 1]
    np.testing.assert_allclose(perplexity, [4, 1])


def test_prefix_sizes_equal_a_counter():
    codes = np.random.default_rng(0).integers(0, 3, (60, 4))
    for depth, sizes in enumerate(figures.prefix_sizes(codes), 1):
        want = collections.Counter(tuple(row[:depth]) for row in codes.tolist())
        assert sorted(sizes.tolist()) == sorted(want.values())


def test_collision_histogram_counts_sids_by_items():
    sizes = np.array([1, 1, 3, 10, 40])
    assert figures.collision_histogram(sizes) == {"1": 2, "3": 1, "10 or more": 2}


def test_neighbour_share_equals_a_plain_loop():
    rng = np.random.default_rng(0)
    vectors, codes = rng.normal(size=(40, 5)), rng.integers(0, 3, 40)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = np.array([3, 17, 39])
    hits = 0
    for row in queries:
        near = [i for i in np.argsort(-(unit @ unit[row])) if i != row][:10]
        hits += sum(codes[i] == codes[row] for i in near)
    assert figures.neighbour_share(vectors, codes, queries) == hits / 30
    assert figures.neighbour_share(vectors[:1], codes[:1], np.array([0])) == 1.0
