"""Clustered vectors in leaves, and the expected result of a search."""

import numpy as np

D, LEAVES = 16, 4
CENTRES = np.random.default_rng(99).normal(size=(20, D))


def clustered(count: int, seed: int = 0) -> np.ndarray:
    """[count, D]: vectors around CENTRES, unit length."""
    rng = np.random.default_rng(seed)
    vectors = CENTRES[rng.integers(0, 20, count)] + rng.normal(size=(count, D)) / 3
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def brute(vectors: dict, leaf_of: dict, query, leaf, count, excluded=()):
    """The `count` items of `leaf` nearest to `query`, best first, by a plain loop."""
    scored = [
        (float(vectors[item] @ query), item)
        for item, place in leaf_of.items()
        if place == leaf and item not in excluded
    ]
    return [item for _, item in sorted(scored, key=lambda entry: -entry[0])[:count]]


def agreement(state, count=10, excluded=None, seed=2) -> float:
    """Share of the expected items that a search of 60 queries finds.

    It asserts that all returned items are in the leaf and not excluded, with the right products.
    """
    index, vectors, leaf_of = state
    queries = clustered(60, seed)
    leaves = np.random.default_rng(seed).integers(-1, LEAVES + 1, 60).astype(np.int32)
    found, products = index.search(queries, leaves, count, excluded)
    shares = []
    for row, leaf in enumerate(leaves):
        out = set(excluded[row]) if excluded is not None else ()
        expected = brute(vectors, leaf_of, queries[row], leaf, count, out)
        items = found[row][found[row] >= 0].tolist()
        assert len(items) == len(expected) and len(set(items)) == len(items)
        assert all(leaf_of[item] == leaf and item not in out for item in items)
        np.testing.assert_allclose(
            products[row][: len(items)], [vectors[item] @ queries[row] for item in items], atol=1e-5
        )
        assert (np.diff(products[row][: len(items)]) <= 0).all()
        assert (products[row][len(items) :] == -np.inf).all()
        if expected:
            shares.append(len(set(items) & set(expected)) / len(expected))
    return float(np.mean(shares))
