"""Semantic features: cosines with texts and with the nearest text of a group, compared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sigma_jax.data.vectors import unit_rows
from sigma_jax.reranking.semantic import TEXTS_OF_GROUP, SemanticArrays, distant_rows

ITEMS, WIDTH = 12, 6


@pytest.fixture(scope="module")
def texts():
    return np.random.default_rng(0).normal(size=(ITEMS, WIDTH)).astype(np.float32)


@pytest.mark.parametrize("rank", [3, 10])
@pytest.mark.parametrize("count", [2, ITEMS])
def test_features_are_relative_to_the_nearest_groups(texts, count, rank, monkeypatch):
    """There are four groups with that of the items without one: fewer than 10."""
    monkeypatch.setattr("sigma_jax.reranking.semantic.RANK", rank)
    group = np.array([0, 0, 1, 1, 1, -1, 2, 2, 2, 2, -1, 0])
    rng = np.random.default_rng(1)
    queries = unit_rows(rng.normal(size=(3, WIDTH)))
    items = rng.permuted(np.tile(np.arange(ITEMS), (3, 1)), axis=1)[:, :count].astype(np.int32)
    found = np.asarray(SemanticArrays.make(texts, group).scores(queries, items))
    unit = unit_rows(texts)
    for row in range(3):
        cosine = unit @ queries[row]
        of_group = {g: cosine[group == g].max() for g in (-1, 0, 1, 2)}
        nearest = sorted(of_group.values(), reverse=True)
        largest, last = nearest[0], nearest[min(rank, 4) - 1]
        for place, item in enumerate(items[row]):
            relative = [
                (c - largest) / (largest - last) for c in (cosine[item], of_group[group[item]])
            ]
            expected = [relative[0] - relative[1], relative[1]]
            np.testing.assert_allclose(found[row, place], expected, atol=1e-4)


@pytest.mark.parametrize("groups", [2, 3, 9, 12])
def test_a_shop_of_few_categories_hears_what_is_asked(groups):
    """Every item has a category, so the group of items without one has no texts."""
    rng = np.random.default_rng(3)
    centres = unit_rows(rng.normal(size=(groups, 16)))
    group = np.repeat(np.arange(groups), 4)
    vectors = unit_rows(centres[group] + 0.1 * rng.normal(size=(len(group), 16)))
    items = np.tile(np.arange(len(group), dtype=np.int32), (groups, 1))
    found = np.asarray(SemanticArrays.make(vectors, group).scores(centres, items))[..., 1]
    for asked in range(groups):
        np.testing.assert_allclose(found[asked, group == asked], 0, atol=1e-5)
        assert (found[asked, group != asked] < -0.01).all()


def test_items_without_text_change_no_other_score():
    """An export holds empty places for items to come."""
    rng = np.random.default_rng(4)
    vectors = unit_rows(rng.normal(size=(12, 16)))
    group = np.repeat(np.arange(3), 4)
    empty = np.zeros((8, 16), vectors.dtype)
    padded = SemanticArrays.make(
        np.concatenate([vectors, empty]), np.concatenate([group, np.full(8, -1)])
    )
    items = np.tile(np.arange(12, dtype=np.int32), (3, 1))
    expected = np.asarray(SemanticArrays.make(vectors, group).scores(vectors[::4], items))
    np.testing.assert_allclose(padded.scores(vectors[::4], items), expected, atol=1e-6)
    assert np.abs(expected).max() > 0.1
    assert np.isfinite(padded.scores(vectors[::4], np.full((3, 2), 15, np.int32))).all()
    nothing = SemanticArrays.make(np.zeros((4, 16), np.float32), np.array([0, 1, 1, -1]))
    assert np.isfinite(nothing.scores(vectors[:1], np.arange(4)[None])).all()


def test_item_minus_1_gets_scores_and_items_without_group_share_one(texts):
    arrays = SemanticArrays.make(texts, np.full(ITEMS, -1))
    found = np.asarray(arrays.scores(unit_rows(texts[:1]), np.array([[-1, 3]], np.int32)))
    assert np.isfinite(found).all()
    assert found[0, 0, 1] == found[0, 1, 1]


def test_what_people_say_stands_for_its_group(texts, monkeypatch):
    """The strongest texts of knowledge count like texts of the group's items."""
    monkeypatch.setattr("sigma_jax.reranking.semantic.TEXTS_OF_KNOWLEDGE", 2)
    group = np.array([0, 0, 1, 1, 1, -1, 2, 2, 2, 2, -1, 0])
    said = unit_rows(np.random.default_rng(4).normal(size=(4, WIDTH)))
    knowledge = said, np.array([2, 0, 2, 2])
    arrays = SemanticArrays.make(texts, group, knowledge)
    assert (np.diff(arrays.group_of_text) >= 0).all()
    items = np.array([[6, 0]] * 4, np.int32)  # of groups 2 and 0
    of_group = np.asarray(arrays.scores(said, items))[..., 1]
    np.testing.assert_allclose(of_group[[0, 2], 0], 0, atol=1e-5)  # the nearest group
    np.testing.assert_allclose(of_group[1, 1], 0, atol=1e-5)
    assert of_group[3, 0] < -0.01  # the third of group 2 is left out
    plain = np.asarray(SemanticArrays.make(texts, group).scores(said, items))[..., 1]
    assert (plain[0, 0] < -0.01) and (plain[2, 0] < -0.01)


def test_the_texts_of_a_large_group_are_unlike_one_another():
    """Every item of a group is near to one of its texts, and equal texts count once."""
    rng = np.random.default_rng(2)
    centres = unit_rows(rng.normal(size=(TEXTS_OF_GROUP, WIDTH)))
    vectors = unit_rows(np.repeat(centres, 30, axis=0) + 0.01 * rng.normal(size=(480, WIDTH)))
    chosen = distant_rows(vectors, TEXTS_OF_GROUP)
    assert sorted(chosen // 30) == list(range(TEXTS_OF_GROUP))
    assert len(distant_rows(np.repeat(centres[:3], 5, axis=0), TEXTS_OF_GROUP)) == 3
    arrays = SemanticArrays.make(vectors, np.zeros(480, int))
    assert (np.asarray(arrays.group_of_text) == 1).sum() == TEXTS_OF_GROUP


def test_a_few_more_items_and_groups_leave_the_sizes():
    """Else a catalogue with one more item would need new programs."""
    rng = np.random.default_rng(3)
    vectors, group = unit_rows(rng.normal(size=(300, WIDTH))), np.repeat(np.arange(30), 10)
    arrays = [
        SemanticArrays.make(vectors[:n], np.where(np.arange(n) < 290, group[:n], last))
        for n, last in ((290, 0), (291, 7), (292, 30))
    ]
    assert len({one.texts.shape for one in arrays}) == len({one.num_groups for one in arrays}) == 1


def test_groups_of_many_sizes_need_no_program_each(caplog):
    group = np.repeat(np.arange(24), np.arange(1, 25))
    vectors = jnp.asarray(np.random.default_rng(0).normal(size=(len(group), 4)), jnp.float32)
    with jax.log_compiles(), caplog.at_level("WARNING", logger="jax"):
        SemanticArrays.make(vectors, group)
    compiled = [one for one in caplog.messages if one.startswith("Compiling")]
    assert len(compiled) < 24
