"""Semantic features: cosines with texts and with the mean text of a group."""

import numpy as np
import pytest

from sigma_jax.data.vectors import unit_rows
from sigma_jax.reranking.semantic import SemanticArrays

ITEMS, WIDTH = 12, 6


@pytest.fixture(scope="module")
def texts():
    return np.random.default_rng(0).normal(size=(ITEMS, WIDTH)).astype(np.float32)


@pytest.mark.parametrize("count", [2, ITEMS])
def test_features_are_cosines_with_the_text_and_with_the_group(texts, count):
    group = np.array([0, 0, 1, 1, 1, -1, 2, 2, 2, 2, -1, 0])
    rng = np.random.default_rng(1)
    queries = unit_rows(rng.normal(size=(3, WIDTH)))
    items = rng.permuted(np.tile(np.arange(ITEMS), (3, 1)), axis=1)[:, :count].astype(np.int32)
    found = np.asarray(SemanticArrays.make(texts, group).scores(queries, items))
    unit = unit_rows(texts)
    means = {g: unit_rows(unit[group == g].sum(0)[None])[0] for g in set(group.tolist())}
    for row in range(3):
        for place, item in enumerate(items[row]):
            expected = [queries[row] @ unit[item], queries[row] @ means[group[item]]]
            np.testing.assert_allclose(found[row, place], expected, atol=1e-5)


def test_item_minus_1_gets_scores_and_items_without_group_share_one(texts):
    arrays = SemanticArrays.make(texts, np.full(ITEMS, -1))
    found = np.asarray(arrays.scores(unit_rows(texts[:1]), np.array([[-1, 3]], np.int32)))
    assert np.isfinite(found).all()
    assert found[0, 0, 1] == found[0, 1, 1]
