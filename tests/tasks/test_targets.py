"""Targets satisfy the definition of their task, compared with loops over the rows."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigma_jax.hashing import splitmix64
from sigma_jax.schema import TASKS, Links, Themes
from sigma_jax.tasks.targets import (
    TaskTables,
    _periods,
    find_targets,
    first_rows_in_category,
    is_active,
    keep_per_group,
)


def naive_targets(shop, tables, user, history_end, row):
    """(task, slot value) of one target row, from the definitions."""
    histories, catalogue = shop.histories, shop.catalogue
    item, time = int(histories.item[row]), int(histories.time[row])
    category = int(catalogue.category[item])
    found = {("JustForYou", -1)}
    queries = [q for q in range(len(shop.queries.items)) if item in shop.queries.items.of(q)]
    found |= {("Query", q) for q in queries}
    if category >= 0:
        found.add(("Category", category))
        before = catalogue.category[histories.before(user, history_end)]
        if category not in before:
            found.add(("Discover", -1))
    if tables.is_longtail[item]:
        found.add(("Longtail", -1))
    for theme in shop.themes.active(time):
        kind = shop.themes.kinds[int(theme)].as_py()
        if item in shop.themes.items.of(theme) and kind != "trend":
            found.add((kind.capitalize(), int(theme)))
    return found


@pytest.mark.parametrize("ahead", [0, 1])
def test_targets_are_those_of_the_definitions(shop, ahead):
    """For all rows, from the start of their own session or of the one before."""
    tables = TaskTables.make(shop, 0.8)
    histories = shop.histories
    rows, history_end, users = [], [], []
    for user in range(histories.num_users):
        first, last = histories.offsets[user], histories.offsets[user + 1]
        for row in range(first, last):
            number = histories.session[row] - ahead
            if number >= 0:
                session = np.searchsorted(histories.session[first:last], number)
                rows.append(row)
                history_end.append(first + session)
                users.append(user)
    rows, history_end = np.array(rows), np.array(history_end)
    first = first_rows_in_category(shop, range(histories.num_users))[rows]
    got = find_targets(shop, tables, rows, history_end, first)
    # Links may name an item twice under one query: sets on both sides.
    found = set(zip(got.history_end, got.row, got.task, got.slot_value, strict=True))
    expected = {
        (end, row, TASKS.index(task), slot_value)
        for end, row, user in zip(history_end, rows, users, strict=True)
        for task, slot_value in naive_targets(shop, tables, user, end, row)
    }
    assert found == expected
    assert {task for _, _, task, _ in found} == set(range(7))


def test_a_slot_value_without_a_text_is_no_target(shop):
    """No instruction could name it."""
    names = shop.catalogue.categories.to_pylist()
    names[2] = " "
    catalogue = dataclasses.replace(shop.catalogue, categories=pa.array(names))
    blank = dataclasses.replace(shop, catalogue=catalogue)
    rows = np.arange(len(shop.histories.item))
    task = TASKS.index("Category")
    for data, has_two in ((shop, True), (blank, False)):
        got = find_targets(data, TaskTables.make(data, 0.8), rows, rows, rows)
        slot_values = got.slot_value[got.task == task].tolist()
        assert (2 in slot_values) == has_two and {0, 1, 3, 4, 5} <= set(slot_values)


@settings(deadline=None)
@given(st.lists(st.integers(-5, 300), min_size=1, max_size=20), st.integers(0, 1000))
def test_is_active_agrees_with_themes_active(times, seed):
    rng = np.random.default_rng(seed)
    themes = Periods(rng)
    tables = themes.tables()
    for time in times:
        expected = [theme in themes.active(time) for theme in range(4)]
        got = is_active(tables, np.arange(4), np.full(4, time))
        assert got.tolist() == expected


class Periods:
    """Random periods, overlapping ones of the same theme among them."""

    def __init__(self, rng):
        self.theme = rng.integers(0, 4, 6)
        self.start = rng.integers(0, 250, 6)
        self.end = self.start + rng.integers(1, 80, 6)
        self.end[rng.random(6) < 0.1] = np.iinfo(np.int64).max  # without end

    def active(self, time):
        return set(self.theme[(self.start <= time) & (time < self.end)].tolist())

    def tables(self):
        links = Links(np.zeros(5, np.int64), np.zeros(0, np.int32))
        themes = Themes(None, None, links, self.theme, self.start, self.end)
        return TaskTables((), {}, None, None, None, None, *_periods(themes))


def test_keep_per_group_keeps_so_many_per_history_end_and_task(shop):
    tables = TaskTables.make(shop, 0.8)
    rows = np.arange(50)
    got = find_targets(shop, tables, rows, rows // 10 * 10, rows)
    kept = keep_per_group(got, splitmix64(1, got.row, got.slot_value), 2)
    assert np.bincount(kept.group()).max() == 2
    assert set(kept.group()) == set(got.group())
    assert (np.diff(kept.group()) >= 0).all()
    # The kept ones do not depend on the order of the targets.
    reordered = got.take(np.arange(len(got.row))[::-1])
    again = keep_per_group(reordered, splitmix64(1, reordered.row, reordered.slot_value), 2)
    for field in dataclasses.fields(kept):
        assert np.array_equal(getattr(kept, field.name), getattr(again, field.name))
