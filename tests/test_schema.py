"""Artifacts load as they were saved, memory-mapped; damaged files are named."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from sigma_jax.schema import (
    VIEWS,
    Histories,
    Links,
    PreparedData,
    Queries,
    RelevancePairs,
    SemanticIds,
    Themes,
    read_arrow,
    read_npy,
)


def test_links_have_the_worked_example():
    links = Links.from_edges(np.array([0, 2, 0]), np.array([4, 4, 7]), 3)
    assert links.offsets.tolist() == [0, 2, 2, 3]
    assert links.targets.tolist() == [4, 7, 4]
    assert len(links) == 3 and links.of(1).tolist() == []
    assert links.transpose(8).of(4).tolist() == [0, 2]


def test_histories_know_the_end_of_a_session_and_the_users_with_targets():
    arrays = {
        "item": np.arange(6, dtype=np.int32),
        "time": np.zeros(6, np.int64),
        "session": np.array([0, 0, 1, 2, 2, 0], np.int32),
        "offsets": np.array([0, 5, 6]),
        "valid_start": np.array([2, 6]),
        "test_start": np.array([3, 6]),
    }
    histories = Histories(**arrays)
    assert histories.session_end(0, 0) == 2
    assert histories.session_end(3, 0) == 5
    assert histories.session_end(6, 1) == 6
    assert histories.before(0, 3).tolist() == [0, 1, 2]
    assert histories.valid_users().tolist() == histories.test_users().tolist() == [0]
    only_test = dataclasses.replace(histories, valid_start=np.array([3, 6]))
    assert only_test.valid_users().tolist() == [] and only_test.test_users().tolist() == [0]


def test_with_validation_only_the_rows_before_the_test_session_are_training(prepared):
    before, after = prepared.histories, prepared.with_validation().histories
    np.testing.assert_array_equal(after.valid_start, before.test_start)
    np.testing.assert_array_equal(after.test_start, before.test_start)
    users = before.test_users()
    assert len(users) > 20 and (after.valid_start[users] < after.offsets[users + 1]).all()
    assert (after.valid_start[users] > before.valid_start[users]).all()
    assert not len(after.valid_users()) and len(before.valid_users()) == len(users)
    for name in ("item", "time", "session", "offsets"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    counts = np.zeros(len(prepared.catalogue), int)
    for user in range(before.num_users):
        np.add.at(counts, before.item[before.offsets[user] : before.test_start[user]], 1)
    added = prepared.with_validation().catalogue.popularity
    np.testing.assert_array_equal(added, counts)
    assert (
        (added - prepared.catalogue.popularity).min()
        == 0
        < added.sum() - (prepared.catalogue.popularity.sum())
    )


def test_artifacts_load_as_they_were_saved(tmp_path):
    links = Links.from_edges(np.array([0, 0]), np.array([5, 3]), 1)
    queries = Queries(pa.array(["tea"]), links)
    period = np.array([0], np.int32), np.array([10]), np.array([20])
    themes = Themes(pa.array(["Easter"]), pa.array(["holiday"]), links, *period)
    ends = np.array([1, 2], np.int32), np.array([3, 4], np.int32)
    view = RelevancePairs("theme", *ends, pa.array(["a", "b", "c"]), np.array([True, False]))
    codes = SemanticIds(np.array([[0, 1], [2, 3]], np.int32), 4)
    for part in (queries, themes, view, codes):
        part.save(tmp_path)
    loaded = Queries.load(tmp_path), Themes.load(tmp_path), RelevancePairs.load(tmp_path, "theme")
    assert loaded[0].texts == queries.texts and loaded[0].items.of(0).tolist() == [5, 3]
    assert loaded[1].active(10).tolist() == [0] and loaded[1].active(20).tolist() == []
    assert loaded[2].left_texts == view.left_texts
    np.testing.assert_array_equal(loaded[2].is_heldout, view.is_heldout)
    assert SemanticIds.load(tmp_path).levels == 2
    assert SemanticIds.load(tmp_path).codebook_size == 4


def test_prepared_data_is_memory_mapped(prepared):
    histories = prepared.histories
    assert all(
        isinstance(getattr(histories, f.name), np.memmap) for f in dataclasses.fields(histories)
    )
    assert isinstance(prepared.id_vectors, np.memmap)
    before = pa.total_allocated_bytes()
    table = read_arrow(prepared.folder / "items.arrow")
    assert table.num_rows == len(prepared.catalogue)
    assert pa.total_allocated_bytes() - before < 4096


def test_queries_and_themes_are_none_without_files(tmp_path):
    assert Queries.load(tmp_path) is None
    assert Themes.load(tmp_path) is None


def test_unknown_user_is_named(prepared):
    assert prepared.users.row("u05") == 5
    with pytest.raises(ValueError, match=r"user 'nobody' is not in the data; check --user, or"):
        prepared.users.row("nobody")


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"x.npy is missing; delete its folder and run"):
        read_npy(tmp_path / "x.npy", 1)
    with pytest.raises(ValueError, match=r"x.arrow is missing; delete its folder and run"):
        read_arrow(tmp_path / "x.arrow")
    for name, read in (("y.npy", lambda p: read_npy(p, 1)), ("y.arrow", read_arrow)):
        (tmp_path / name).write_bytes(b"no such format")
        with pytest.raises(ValueError, match=rf"{name} is damaged .* delete its folder and run"):
            read(tmp_path / name)
    np.save(tmp_path / "z.npy", np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"z.npy has shape \(2, 2\); expected 1 dimensions"):
        read_npy(tmp_path / "z.npy", 1)


def test_all_of_prepared_data_loads(prepared):
    loaded = PreparedData.load(prepared.folder)
    assert len(loaded.catalogue) == 60
    assert loaded.catalogue.ids(np.array([7])) == ["i007"]
    assert set(loaded.pairs) == set(VIEWS)
    assert len(loaded.knowledge.texts) == 7 and loaded.knowledge.vectors is None
