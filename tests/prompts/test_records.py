"""Records hold training rows alone, cover them all, and do not depend on the run."""

import dataclasses

import numpy as np
import pytest
from shop_fixtures import changed_prompt

from sigma_jax.data.pipeline import open_shards
from sigma_jax.histories import user_chunks
from sigma_jax.prompts.records import (
    RECORDS,
    Record,
    _windows,
    favourites,
    iterate_records,
    write_records,
)
from sigma_jax.schema import DAY, TASKS
from sigma_jax.tasks.targets import TaskTables


def all_records(shop, config, **changes):
    config = changed_prompt(config, **changes)
    return list(
        iterate_records(shop, config, TaskTables.make(shop, config.targets.longtail_share), 3)
    )


def test_windows_worked_example(config):
    config = changed_prompt(config, history_length=4, window_stride=3)
    assert _windows(np.array([0, 2, 3, 5, 6]), 0, config) == [(2, 6), (0, 3)]
    assert _windows(np.array([0, 5]), 0, config) == [(1, 5), (0, 0)]
    assert _windows(np.array([7]), 7, config) == [(7, 7)]
    assert _windows(np.array([], np.int64), 7, config) == []
    config = changed_prompt(config, cold_start_weight=0.0)
    assert _windows(np.array([7]), 7, config) == []


def test_favourites_worked_example():
    assert favourites(np.array([4, 7, 4, 9], np.int32), 5).tolist() == [4, 9, 7]
    assert favourites(np.array([4, 7, 4, 9], np.int32), 1).tolist() == [4]
    assert favourites(np.array([], np.int32), 3).tolist() == []


def test_records_survive_their_bytes(shop, config):
    for record in all_records(shop, config):
        read = Record.from_bytes(record.to_bytes())
        for field in dataclasses.fields(Record):
            one, other = getattr(record, field.name), getattr(read, field.name)
            assert np.array_equal(one, other), field.name


def test_windows_are_short_and_training_only(shop, config):
    """A window and the session after it are consecutive training rows."""
    histories = shop.histories
    for record in all_records(shop, config):
        assert record.length <= config.layout.history_length
        first, last = histories.offsets[record.user], histories.valid_start[record.user]
        rows = histories.item[first:last]
        starts = [
            s
            for s in range(len(rows) - len(record.item) + 1)
            if np.array_equal(rows[s : s + len(record.item)], record.item)
        ]
        assert starts
        assert len(record.item) > record.length
        assert (np.diff(record.session) >= 0).all() and record.session[0] == 0
        # The window ends where a session does.
        if record.length:
            assert record.session[record.length] > record.session[record.length - 1]


def test_every_training_session_is_a_target_of_every_user(shop, config):
    """Strides no longer than windows leave no boundary out."""
    histories = shop.histories
    expected = set()
    for user in range(histories.num_users):
        first, last = histories.offsets[user], histories.valid_start[user]
        for number in np.unique(histories.session[first:last]):
            expected.add((user, int(number)))
    got = set()
    for record in all_records(shop, config, cold_start_weight=1.0):
        base = histories.session[_row_of(shop, record)]
        got |= {(record.user, int(base + record.session[a])) for a in record.attach}
    assert got == expected


def _row_of(shop, record):
    """A row of the histories where the record's items and sessions stand."""
    histories = shop.histories
    size = len(record.item)
    for row in range(histories.offsets[record.user], histories.valid_start[record.user]):
        session = histories.session[row : row + size]
        if np.array_equal(histories.item[row : row + size], record.item) and np.array_equal(
            session - session[0], record.session
        ):
            return row
    raise AssertionError


def test_targets_come_from_the_next_session(shop, config):
    for record in all_records(shop, config):
        for attach, target in zip(record.attach, record.target, strict=True):
            assert target in record.item[record.session == record.session[attach]]


def test_held_out_rows_change_no_record(shop, config):
    """Rows from the validation session on can change without changing a record."""
    histories = shop.histories
    user = np.repeat(np.arange(histories.num_users), np.diff(histories.offsets))
    is_held_out = np.arange(len(user)) >= histories.valid_start[user]
    assert is_held_out.any()
    item = np.where(is_held_out, (histories.item + 1) % 40, histories.item).astype(np.int32)
    time = np.where(is_held_out, histories.time + 40 * DAY, histories.time)
    changed = dataclasses.replace(histories, item=item, time=time)
    records = all_records(shop, config)
    again = all_records(dataclasses.replace(shop, histories=changed), config)
    assert [r.to_bytes() for r in again] == [r.to_bytes() for r in records]


def test_a_larger_test_session_of_one_user_changes_no_record(shop, config):
    """Rows are added at the end of the first user, so all later rows move."""
    histories, end = shop.histories, int(shop.histories.offsets[1])
    added = 3
    longer = {
        name: np.insert(getattr(histories, name), end, [getattr(histories, name)[end - 1]] * added)
        for name in ("item", "time", "session")
    }
    moved = {
        "offsets": np.where(np.arange(len(histories.offsets)) > 0, histories.offsets + added, 0),
        "valid_start": histories.valid_start + added * (np.arange(histories.num_users) > 0),
        "test_start": histories.test_start + added * (np.arange(histories.num_users) > 0),
    }
    assert histories.test_start[0] < end  # the first user has a test session
    other = dataclasses.replace(shop, histories=dataclasses.replace(histories, **longer, **moved))
    changes = {"task_targets_per_boundary": 1}  # most targets are drawn, not all kept
    before, after = (all_records(data, config, **changes) for data in (shop, other))
    assert [record.to_bytes() for record in before] == [record.to_bytes() for record in after]


def test_without_cold_start_every_target_has_a_history(shop, config):
    assert any((record.attach == 0).any() for record in all_records(shop, config))
    assert all(
        (record.attach > 0).all() for record in all_records(shop, config, cold_start_weight=0.0)
    )


def test_chunks_change_nothing(shop, config, monkeypatch):
    expected = [record.to_bytes() for record in all_records(shop, config)]
    monkeypatch.setattr("sigma_jax.prompts.records.CHUNK_ROWS", 17)
    assert [record.to_bytes() for record in all_records(shop, config)] == expected


def test_user_chunks_cover_all_users():
    offsets = np.array([0, 5, 5, 40, 42, 42])
    for rows in (1, 6, 100):
        chunks = list(user_chunks(offsets, rows))
        assert [user for chunk in chunks for user in chunk] == list(range(5))
        assert all(
            len(chunk) == 1 or offsets[chunk.stop] - offsets[chunk.start] <= rows
            for chunk in chunks
        )


def test_written_twice_the_bytes_are_the_same(shop, config, tmp_path, monkeypatch):
    monkeypatch.setattr("sigma_jax.prompts.records.RECORDS_PER_SHARD", 16)
    counts = []
    for name in "ab":
        (tmp_path / name).mkdir()
        counts.append(write_records(shop, config, tmp_path / name, seed=3))
    files = sorted((tmp_path / "a").iterdir())
    assert len(files) > 1
    for path in files:
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert counts[0] == counts[1]
    assert counts[0]["contexts"] == len(open_shards(tmp_path / "a", RECORDS))
    assert all(counts[0][f"targets.{task}"] > 0 for task in TASKS)


def test_data_without_training_rows_are_refused(shop, config, tmp_path):
    histories = dataclasses.replace(shop.histories, valid_start=shop.histories.offsets[:-1])
    with pytest.raises(ValueError, match="no user has two training sessions"):
        write_records(dataclasses.replace(shop, histories=histories), config, tmp_path, 0)


def test_records_of_new_rows_have_new_targets_alone_and_miss_none(shop, config):
    """Half of each user's training sessions are known; users 0 to 4 have no new one."""
    histories, known = shop.histories, np.zeros(shop.histories.num_users, np.int64)
    for user in range(histories.num_users):
        first, end = int(histories.offsets[user]), int(histories.valid_start[user])
        sessions = histories.session[first:end]
        is_old = sessions < (sessions[-1] + 1 if user < 5 else sessions[-1] // 2)
        known[user] = is_old.sum()
    tables = TaskTables.make(shop, config.targets.longtail_share)
    new = list(iterate_records(shop, config, tables, 3, known))
    assert new and min(record.user for record in new) == 5

    def targets(records, least) -> set:
        """(user, row of the target's session, task, target) behind `least` rows of the user."""
        found = set()
        for record in records:
            first, end = (int(a[record.user]) for a in (histories.offsets, histories.valid_start))
            # The window's place: its last session is the one after the history.
            starts = [
                start
                for start in range(first, end - len(record.item) + 1)
                if (histories.item[start : start + len(record.item)] == record.item).all()
            ]
            for attach, task, item in zip(record.attach, record.task, record.target, strict=True):
                row = starts[-1] + int(attach)
                if row >= first + least[record.user]:
                    found.add((record.user, row, int(task), int(item)))
        return found

    every = all_records(shop, config)
    assert targets(new, known) == targets(every, known)
    assert targets(new, known) == targets(new, np.zeros_like(known))
    nothing = histories.valid_start - histories.offsets[:-1]
    assert not list(iterate_records(shop, config, tables, 3, nothing))
