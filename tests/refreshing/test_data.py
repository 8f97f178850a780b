"""Histories that grow: nothing known moves, and all but the judged rows are training rows."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from small_histories import ITEMS, histories_of, plain_data, random_users

from sigma_jax.histories import training_rows
from sigma_jax.refreshing.continued import code_shares, mapped_codes
from sigma_jax.refreshing.data import (
    grown_histories,
    known_counts,
    new_training_rows,
    training_counts,
    write_data,
)
from sigma_jax.refreshing.rows import NewRows
from sigma_jax.reranking.history.covisitation import count_covisits
from sigma_jax.reranking.reranker import FeatureTables
from sigma_jax.schema import DAY, PreparedData, SemanticIds

COLUMNS = ("item_id", "text", "title", "category")


def new_rows(users, items=(), user_ids=(), day=100) -> NewRows:
    """Rows (user, item, session, time after the day's start), sorted."""
    rows = np.array(users).T
    table = pa.table({name: pa.array(list(items), pa.string()) for name in COLUMNS})
    counts = {"rows": len(users)}
    return NewRows(
        list(user_ids),
        table,
        rows[0].astype(np.int32),
        rows[1].astype(np.int32),
        day * DAY + rows[3].astype(np.int64),
        rows[2].astype(np.int32),
        counts,
    )


def test_new_rows_stand_behind_those_of_their_user():
    """Users [1][2][3] and [4 7][9][4]; user 1 gets [5 6][8], and a new user gets [2]."""
    before = histories_of([[[1], [2], [3]], [[4, 7], [9], [4]]])
    new = new_rows([(1, 5, 0, 0), (1, 6, 0, 0), (1, 8, 1, DAY), (2, 2, 0, DAY)], user_ids=["new"])
    grown = grown_histories(before, new, 1.0, 0)
    assert grown.item.tolist() == [1, 2, 3, 4, 7, 9, 4, 5, 6, 8, 2]
    assert grown.session.tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 3, 4, 0]
    assert grown.offsets.tolist() == [0, 3, 10, 11]
    # All users of the newest day are judged: user 0 has no row then and keeps no target.
    assert grown.valid_start.tolist() == [3, 9, 10] and grown.test_start.tolist() == [3, 9, 10]
    assert len(grown.valid_users()) == 0 and grown.test_users().tolist() == [1, 2]


def test_a_share_of_the_newest_day_is_judged_and_at_least_one_user():
    before = histories_of(random_users(True, 200))
    new = new_rows([(user, 5, 0, 0) for user in range(200)])
    counts = [len(grown_histories(before, new, share, 0).test_users()) for share in (0.0, 0.3, 1)]
    assert counts[0] == 1 and 30 < counts[1] < 90 and counts[2] == 200
    other = grown_histories(before, dataclasses.replace(new, time=new.time + DAY), 0.3, 0)
    assert set(other.test_users()) != set(grown_histories(before, new, 0.3, 0).test_users())


@pytest.fixture(scope="module", params=[False, True], ids=["lines", "baskets"])
def grown(request, tmp_path_factory):
    """(data before, data with new rows and two new items) as a refresh writes them."""
    histories = histories_of(random_users(request.param))
    before = dataclasses.replace(plain_data(histories), folder=tmp_path_factory.mktemp("before"))
    counts = np.bincount(histories.item[training_rows(histories)], minlength=ITEMS)
    before = dataclasses.replace(
        before, catalogue=dataclasses.replace(before.catalogue, popularity=counts)
    )
    rng = np.random.default_rng(5)
    rows = sorted(
        (user, item, session, session)
        for user in range(13)
        for session in range(user % 4)
        for item in rng.choice(ITEMS + 2, 1 + 2 * request.param, replace=False).tolist()
    )
    new = new_rows(rows, ["n0", "n1"], ["new"])
    folder = tmp_path_factory.mktemp("after")
    (before.folder / "counts" / "training").mkdir(parents=True)  # as of data.counts=True
    metrics = {
        "items_in_source": 1,
        "notes": [],
        "interactions_in_source": 1,
        "sentence_encoder": "",
    }
    card = {"first_time": 0, "dropped_rows": {}, "pairs": {}, "unavailable": {}}
    card |= {"unmatched_knowledge": 0, "items_with_truncated_text": 0}
    card |= {"sessions_hold_several_items": request.param}
    write_data(before, new, {}, metrics | card, {}, 0.5, 0, folder)
    return before, PreparedData.load(folder)


def test_numbers_of_items_users_and_categories_stay(grown):
    before, after = grown
    assert after.catalogue.table["item_id"].to_pylist()[-2:] == ["n0", "n1"]
    assert after.catalogue.table[: len(before.catalogue)].equals(
        before.catalogue.table.select(["item_id", "text", "title"])
    )
    assert after.catalogue.categories.to_pylist() == ["a", "b", "c", "n0", "n1"]
    assert after.users.table["user_id"].to_pylist()[-2:] == ["11", "new"]
    for user in range(before.histories.num_users):
        old, new = before.histories, after.histories
        known = old.item[old.offsets[user] : old.offsets[user + 1]]
        start = new.offsets[user]
        assert new.item[start : start + len(known)].tolist() == known.tolist()


def test_counts_that_grow_equal_counts_of_all_rows(grown):
    """Popularity, co-visitation, trending and EASE: the old log is not counted again."""
    before, after = grown
    assert after.counts is None  # those of the log before do not hold
    known, items = training_counts(before.histories), len(after.catalogue)
    rows = new_training_rows(after.histories, known)
    assert 0 < len(rows) < len(training_rows(after.histories))
    counted = np.bincount(after.histories.item[training_rows(after.histories)], minlength=items)
    np.testing.assert_array_equal(after.catalogue.popularity, counted)
    covisits = count_covisits(before.histories, len(before.catalogue))
    covisits.resize((items, items))
    added = count_covisits(after.histories, items, known_counts(known, after.histories))
    assert added.nnz
    every = count_covisits(after.histories, items)
    np.testing.assert_allclose((covisits + added).toarray(), every.toarray(), rtol=1e-5)
    vectors = np.random.default_rng(0).normal(size=(items, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    made = FeatureTables.make(before, vectors[: len(before.catalogue)], 5, False)
    grown_tables = made.with_rows(after, rows, vectors, 5, (covisits + added).tocsr())
    wanted = FeatureTables.make(after, vectors, 5, False)
    for name in ("ease", "embedding_neighbours", "covisitation", "reverse_covisitation"):
        found = getattr(grown_tables.relations, name).toarray()
        np.testing.assert_allclose(found, getattr(wanted.relations, name).toarray(), rtol=1e-4)
    np.testing.assert_array_equal(grown_tables.repeats.popularity, wanted.repeats.popularity)
    for name in ("item", "time", "number"):  # by hour, as when all rows are counted
        found = getattr(grown_tables.trends, name)
        np.testing.assert_array_equal(found, getattr(wanted.trends, name))


def test_rows_of_rebuilt_codes_are_means_over_their_items_old_codes():
    """Items with the old codes 1 1 2 0 get the new codes 2 2 2 1; the new code 0 has no items."""
    before = np.array([[1], [1], [2], [0]], np.int32)
    after = SemanticIds(np.array([[2], [2], [2], [1], [0]], np.int32), 3)
    shares = code_shares(before, after)
    table = np.array([[0.0, 1], [3, 3], [6, 0], [9, 9]])  # the last row is of no code
    expected = [[0, 1], [0, 1], [4, 2], [9, 9]]
    np.testing.assert_allclose(mapped_codes(table, shares), expected)
    np.testing.assert_allclose(mapped_codes(table[:3, 0].reshape(1, 3), shares), [[0, 0, 4]])
