"""Constraints that instructions put on items, numbered so that a training step can test them.

A number stands for one query, one category, one theme, or the long tail. Two constraints have no
list of items. Discover asks for a category that is new to the user (NEW_CATEGORY). JustForYou asks
for nothing (NO_CONSTRAINT).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Int, Int32

from sigma_jax import metrics
from sigma_jax.schema import TASKS, Links, PreparedData, Requests
from sigma_jax.tasks.instructions import SLOTS, available_tasks, slot_value_texts

NO_CONSTRAINT = -1
NEW_CATEGORY = -2
MAX_CONSTRAINTS_PER_ITEM = 64


@dataclasses.dataclass(frozen=True)
class Constraints:
    """The constraints of a data set: their numbers, and the items that satisfy each."""

    first_number: dict[str, int]  # task -> number of its slot value 0
    # Task with targets in the data -> its slot values that have both a text and items.
    slot_values: dict[str, Int32[np.ndarray, " n"]]
    items: Links  # number -> items that satisfy it

    @classmethod
    def make(cls, data: PreparedData, longtail_share: float) -> Constraints:
        """The constraints of the queries, categories, themes and the long tail of `data`.

        Args:
          longtail_share: as in TargetConfig.
        """
        first_number, parts, count = {}, [], 0
        for task in SLOTS:
            if task == "Holiday" and "Season" in first_number:
                first_number[task] = first_number["Season"]  # both are themes
                continue
            links = items_of_slot_values(data, task)
            if links is not None:
                first_number[task] = count
                parts.append(links)
                count += len(links)
        tail = np.flatnonzero(metrics.long_tail(data.catalogue.popularity, longtail_share))
        first_number["Longtail"] = count
        parts.append(Links.from_edges(np.zeros(len(tail), np.int32), tail, 1))
        sizes = np.concatenate([np.diff(part.offsets) for part in parts])
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        reasons = available_tasks(data)
        slot_values = {
            task: usable_slot_values(data, task) for task in first_number if not reasons[task]
        }
        if not len(tail):
            slot_values.pop("Longtail", None)
        items = Links(offsets, np.concatenate([part.targets for part in parts]))
        return cls(first_number, slot_values, items)

    def by_item(self, num_items: int) -> Int32[np.ndarray, "I M"]:
        """Numbers of the constraints that each item satisfies, padded with NO_CONSTRAINT.

        An item keeps at most MAX_CONSTRAINTS_PER_ITEM of them, those with the most items first. So
        an item that a thousand searches lead to does not count as satisfying the rarest of them.
        """
        sizes = np.diff(self.items.offsets)
        constraints = self.items.transpose(num_items)
        item = np.repeat(np.arange(num_items), np.diff(constraints.offsets))
        order = np.lexsort((-sizes[constraints.targets], item))
        rank = np.arange(len(item)) - constraints.offsets[item]
        is_kept = rank < MAX_CONSTRAINTS_PER_ITEM
        kept = Links.from_edges(item[is_kept], constraints.targets[order][is_kept], num_items)
        return pad_rows(kept)

    def number(self, task: str, slot_value: int) -> int:
        """The number of one constraint; NO_CONSTRAINT if the task has none."""
        first = NEW_CATEGORY if task == "Discover" else self.first_number.get(task, NO_CONSTRAINT)
        return first + max(slot_value, 0) if first >= 0 else first

    def numbers(
        self, task: Int[np.ndarray, " n"], slot_value: Int[np.ndarray, " n"]
    ) -> Int32[np.ndarray, " n"]:
        """`number` of many tasks (their place in TASKS) and slot values."""
        first = np.array([self.number(name, 0) for name in TASKS] + [NO_CONSTRAINT])[task]
        return np.where(first >= 0, first + np.maximum(slot_value, 0), first).astype(np.int32)


def usable_slot_values(data: PreparedData, task: str) -> Int32[np.ndarray, " n"]:
    """The slot values of `task` that have both a text and items; [0] for a task without a slot."""
    if task not in SLOTS:
        return np.zeros(1, np.int32)
    links = items_of_slot_values(data, task)
    if links is None:
        return np.zeros(0, np.int32)
    usable = (np.diff(links.offsets) > 0) & [text != "" for text in slot_value_texts(data, task)]
    if task in ("Season", "Holiday"):
        usable &= [kind == task.lower() for kind in data.themes.kinds.to_pylist()]
    return np.flatnonzero(usable).astype(np.int32)


def pad_rows(links: Links) -> Int32[np.ndarray, "rows M"]:
    """The targets of each row, padded with NO_CONSTRAINT to the longest.

    Worked example: 0 -> [4, 7], 1 -> [2] gives [[4, 7], [2, -1]].
    """
    sizes = np.diff(links.offsets)
    rows = np.full((len(links), max(int(sizes.max(initial=0)), 1)), NO_CONSTRAINT, np.int32)
    row = np.repeat(np.arange(len(links)), sizes)
    rows[row, np.arange(len(row)) - links.offsets[row]] = links.targets
    return rows


@dataclasses.dataclass(frozen=True)
class AllowedItems:
    """The items that satisfy each request: `items.of(row[n])` for request n, all for row -1.

    Requests share rows, so that the items of a constraint are held once.
    """

    items: Links  # row -> items
    row: Int32[np.ndarray, " N"]  # of each request; -1: every item is allowed

    @classmethod
    def from_lists(cls, lists: list[np.ndarray], row: Int32[np.ndarray, " N"]) -> AllowedItems:
        """Allowed items from one array of items per row."""
        rows = np.repeat(np.arange(len(lists)), [len(items) for items in lists])
        targets = np.concatenate(lists) if lists else np.zeros(0, np.int32)
        return cls(Links.from_edges(rows, targets, len(lists)), row)

    def of(self, request: int | np.integer) -> Int32[np.ndarray, " n"] | None:
        """The items allowed for request number `request`; None if all are."""
        return None if self.row[request] < 0 else self.items.of(self.row[request])


def allowed_items(data: PreparedData, requests: Requests) -> AllowedItems:
    """The items that satisfy each request's query, category, season or holiday.

    All items are allowed for JustForYou, Longtail and Discover, and for requests without a slot
    value.
    """
    has_slot = np.isin(requests.task, [TASKS.index(name) for name in SLOTS])
    constrained = np.flatnonzero(has_slot & (requests.slot_value >= 0))
    keys = np.stack([requests.task[constrained], requests.slot_value[constrained]], 1)
    distinct, inverse = np.unique(keys.reshape(-1, 2), axis=0, return_inverse=True)
    links = {task: items_of_slot_values(data, TASKS[task]) for task in np.unique(distinct[:, 0])}
    lists = [links[task].of(slot_value) for task, slot_value in distinct]
    row = np.full(len(requests), -1, np.int32)
    row[constrained] = inverse.reshape(-1)
    return AllowedItems.from_lists(lists, row)


def items_of_slot_values(data: PreparedData, task: str) -> Links | None:
    """Slot value of `task` -> the items that satisfy it; None if the data has no slot values."""
    match task:
        case "Category":
            has_category = np.flatnonzero(data.catalogue.category >= 0)
            count = len(data.catalogue.categories)
            return Links.from_edges(data.catalogue.category[has_category], has_category, count)
        case "Query":
            return data.queries.items if data.queries is not None else None
        case "Season" | "Holiday":
            return data.themes.items if data.themes is not None else None
    return None
