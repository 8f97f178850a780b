"""Shards keep their records, shares make up the batch, packing overfills no bin."""

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigma_jax.data.pipeline import (
    first_fit,
    open_shards,
    shuffled_forever,
    step_batches,
    write_shards,
)


def test_shards_keep_records_and_their_order(tmp_path):
    records = [bytes([number]) * number for number in range(25)]
    paths = write_shards(iter(records), tmp_path, "things", 10)
    assert [path.name for path in paths] == [f"things-0000{n}.arrow" for n in range(3)]
    source = open_shards(tmp_path, "things")
    assert [source[number] for number in range(len(source))] == records


def test_shards_have_the_same_bytes_each_time(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        write_shards((b"x" * n for n in range(50)), folder, "things", 20)
    for path in folders[0].iterdir():
        assert path.read_bytes() == (folders[1] / path.name).read_bytes()


def test_missing_shards_are_named(tmp_path):
    with pytest.raises(ValueError, match="holds no things"):
        open_shards(tmp_path, "things")


def test_each_pass_holds_every_record_once_in_another_order():
    order = shuffled_forever(range(20), 7)
    passes = [[order[20 * turn + place] for place in range(20)] for turn in range(3)]
    assert all(sorted(one) == list(range(20)) for one in passes)
    assert passes[0] != passes[1] != passes[2]
    assert [shuffled_forever(range(20), 7)[place] for place in (33, 5)] == [
        passes[1][13],
        passes[0][5],
    ]
    with pytest.raises(ValueError, match="no training record"):
        shuffled_forever([], 7)


def numbered(rows):
    """Groups of two rows, one under another."""
    return {"x": np.concatenate([[2 * row, 2 * row + 1] for row in rows])}


@pytest.mark.parametrize("cuts", [[8], [4, 8], [2, 3, 8], [1, 2, 3, 4, 5, 6, 7, 8]])
def test_rows_of_processes_make_up_the_step(cuts):
    groups = grain.MapDataset.source(range(100)).repeat()
    parts = np.split(np.arange(8), cuts[:-1])
    shares = [step_batches(groups, 2, 8, numbered, rows) for rows in parts]
    whole = step_batches(groups, 2, 8, numbered)
    for step in (0, 3, 30):
        wanted = [2 * ((4 * step + place) % 100) + row for place in range(4) for row in (0, 1)]
        assert whole[step]["x"].tolist() == wanted
        assert np.concatenate([share[step]["x"] for share in shares]).tolist() == wanted


def test_only_groups_with_a_row_that_is_asked_for_are_made():
    made = []
    groups = grain.MapDataset.source(range(100)).map(lambda number: made.append(number) or number)
    rows = step_batches(groups, 2, 8, numbered, np.array([2, 3, 6]))[1]["x"]
    assert rows.tolist() == [10, 11, 14] and made == [5, 7]


def test_first_fit_worked_example():
    bins, grants = first_fit(np.array([[6], [7], [4], [5]]), np.array([10]), 2)
    assert bins.tolist() == [1, 0, 1, 0]
    assert grants[:, 0].tolist() == [6, 7, 4, 3]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 6)), min_size=1, max_size=12),
    st.integers(1, 4),
)
def test_first_fit_overfills_no_bin_and_shortens_only_what_it_must(sizes, rows):
    sizes, capacity = np.array(sizes), np.array([20, 8])
    bins, grants = first_fit(sizes, capacity, rows)
    wanted = np.minimum(sizes, capacity)
    assert (grants <= wanted).all()
    used = np.stack([grants[bins == row].sum(axis=0) for row in range(rows)])
    assert (used <= capacity).all()
    for thing in np.flatnonzero((grants < wanted).any(axis=1)):
        # A shortened thing would fit whole in no bin, even with its own grant given back.
        back = used.copy()
        back[bins[thing]] -= grants[thing]
        assert not (back + wanted[thing] <= capacity).all(axis=1).any()
