"""Shards keep their records, hosts share a batch, packing never overfills a bin."""

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigma_jax.data.pipeline import (
    first_fit,
    mixed_forever,
    open_shards,
    shuffled_forever,
    step_batches,
    write_shards,
)


def test_shards_keep_records_and_their_order(tmp_path):
    records = [bytes([number]) * number for number in range(25)]
    paths = write_shards(iter(records), tmp_path, "records", 10)
    assert [path.name for path in paths] == [f"records-0000{n}.arrow" for n in range(3)]
    source = open_shards(tmp_path, "records")
    assert [source[number] for number in range(len(source))] == records


def test_shards_have_the_same_bytes_each_time(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        write_shards((b"x" * n for n in range(50)), folder, "records", 20)
    for path in folders[0].iterdir():
        assert path.read_bytes() == (folders[1] / path.name).read_bytes()


def test_missing_shards_are_named(tmp_path):
    with pytest.raises(ValueError, match="holds no records-"):
        open_shards(tmp_path, "records")


def test_a_mixture_has_its_share_of_new_elements_and_reads_both_in_order():
    old, new = shuffled_forever(range(20), 7), shuffled_forever(range(100, 103), 7)
    mixed = mixed_forever(old, new, 0.25)
    drawn = [mixed[number] for number in range(40)]
    assert [value for value in drawn if value < 100] == [old[number] for number in range(30)]
    assert [value for value in drawn if value >= 100] == [new[number] for number in range(10)]
    assert mixed[33] == drawn[33]
    assert mixed_forever(old, new, 1.0)[5] == new[5]


def test_each_pass_holds_every_record_once_in_another_order():
    order = shuffled_forever(range(20), 7)
    passes = [[order[20 * number + index] for index in range(20)] for number in range(3)]
    assert all(sorted(records) == list(range(20)) for records in passes)
    assert passes[0] != passes[1] != passes[2]
    assert [shuffled_forever(range(20), 7)[index] for index in (33, 5)] == [
        passes[1][13],
        passes[0][5],
    ]
    with pytest.raises(ValueError, match="no training record"):
        shuffled_forever([], 7)


def numbered(rows):
    """The groups `rows`, of two rows each, one under another."""
    return {"x": np.concatenate([[2 * row, 2 * row + 1] for row in rows])}


@pytest.mark.parametrize("ends", [[8], [4, 8], [2, 3, 8], [1, 2, 3, 4, 5, 6, 7, 8]])
def test_the_rows_of_all_processes_make_up_the_batch(ends):
    groups = grain.MapDataset.source(range(100)).repeat()
    parts = np.split(np.arange(8), ends[:-1])
    shares = [step_batches(groups, 2, 8, numbered, rows) for rows in parts]
    full = step_batches(groups, 2, 8, numbered)
    for step in (0, 3, 30):
        wanted = [2 * ((4 * step + group) % 100) + row for group in range(4) for row in (0, 1)]
        assert full[step]["x"].tolist() == wanted
        assert np.concatenate([share[step]["x"] for share in shares]).tolist() == wanted


def test_only_groups_with_a_wanted_row_are_computed():
    computed = []
    groups = grain.MapDataset.source(range(100))
    groups = groups.map(lambda number: computed.append(number) or number)
    rows = step_batches(groups, 2, 8, numbered, np.array([2, 3, 6]))[1]["x"]
    assert rows.tolist() == [10, 11, 14] and computed == [5, 7]


def test_first_fit_packs_the_worked_example():
    bins, grants = first_fit(np.array([[6], [7], [4], [5]]), np.array([10]), 2)
    assert bins.tolist() == [1, 0, 1, 0]
    assert grants[:, 0].tolist() == [6, 7, 4, 3]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 6)), min_size=1, max_size=12),
    st.integers(1, 4),
)
def test_first_fit_overfills_no_bin_and_shortens_only_pieces_that_fit_nowhere(sizes, rows):
    sizes, capacity = np.array(sizes), np.array([20, 8])
    bins, grants = first_fit(sizes, capacity, rows)
    wanted = np.minimum(sizes, capacity)
    assert (grants <= wanted).all()
    used = np.stack([grants[bins == row].sum(axis=0) for row in range(rows)])
    assert (used <= capacity).all()
    for piece in np.flatnonzero((grants < wanted).any(axis=1)):
        # A shortened piece fits in no bin at full size, even without the space it was granted.
        others = used.copy()
        others[bins[piece]] -= grants[piece]
        assert not (others + wanted[piece] <= capacity).all(axis=1).any()
