"""What instructions demand of an item, numbered, so that a training step can tell who satisfies it.

Numbers run over the queries, the categories and the themes of the data, and one more for the long
tail. Discover demands something else of everyone, a category new to them: NEW_CATEGORY. JustForYou
demands nothing: NONE.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Int, Int32

from sigma_jax import metrics
from sigma_jax.schema import TASKS, Links, PreparedData, Requests
from sigma_jax.tasks.instructions import available_tasks, slot_value_texts

NONE = -1
NEW_CATEGORY = -2
MOST_OF_ITEM = 64  # demands that one item is known to satisfy


@dataclasses.dataclass(frozen=True)
class Constraints:
    """The number of any demand, and the items that satisfy it."""

    first: dict[str, int]  # task -> number of its slot value 0
    # Task that the data has targets for -> the slot values with words and items.
    slot_values: dict[str, Int32[np.ndarray, " n"]]
    items: Links  # number -> items that satisfy it

    @classmethod
    def make(cls, data: PreparedData, longtail_share: float) -> Constraints:
        """Of the items of `data`; the long tail as in TargetConfig."""
        first, parts, count = {}, [], 0
        for task in CONSTRAINED_TASKS:
            if task == "Holiday" and "Season" in first:
                first[task] = first["Season"]  # both are themes
                continue
            links = items_of_slot_values(data, task)
            if links is not None:
                first[task] = count
                parts.append(links)
                count += len(links)
        tail = np.flatnonzero(metrics.long_tail(data.catalogue.popularity, longtail_share))
        first["Longtail"] = count
        parts.append(Links.from_edges(np.zeros(len(tail), np.int32), tail, 1))
        offsets = np.concatenate(
            [[0], np.cumsum(np.concatenate([np.diff(p.offsets) for p in parts]))]
        )
        missing = available_tasks(data)
        slot_values = {task: usable_slot_values(data, task) for task in first if not missing[task]}
        if not len(tail):
            slot_values.pop("Longtail", None)
        return cls(first, slot_values, Links(offsets, np.concatenate([p.targets for p in parts])))

    def by_item(self, num_items: int) -> Int32[np.ndarray, "I M"]:
        """The demands each item satisfies, padded with NONE.

        At most MOST_OF_ITEM of them, those of the most items first: an item that a thousand
        searches lead to is not known to satisfy the rarest.
        """
        sizes = np.diff(self.items.offsets)
        demands = self.items.transpose(num_items)
        item = np.repeat(np.arange(num_items), np.diff(demands.offsets))
        order = np.lexsort((-sizes[demands.targets], item))
        place = np.arange(len(item)) - demands.offsets[item]
        kept = place < MOST_OF_ITEM
        return padded(Links.from_edges(item[kept], demands.targets[order][kept], num_items))

    def number_of(self, task: str, slot_value: int) -> int:
        """The number of one demand; NONE where there is none."""
        first = NEW_CATEGORY if task == "Discover" else self.first.get(task, NONE)
        return first + max(slot_value, 0) if first >= 0 else first

    def number(
        self, task: Int[np.ndarray, " n"], slot_value: Int[np.ndarray, " n"]
    ) -> Int32[np.ndarray, " n"]:
        """The number of each task's demand with that slot value; NONE where there is none."""
        first = np.array([self.number_of(name, 0) for name in TASKS] + [NONE])[task]
        return np.where(first >= 0, first + np.maximum(slot_value, 0), first).astype(np.int32)


def usable_slot_values(data: PreparedData, task: str) -> Int32[np.ndarray, " n"]:
    """The slot values of a task that have words and items; of the long tail the one there is."""
    links = items_of_slot_values(data, task)
    if links is None:
        return np.zeros(1, np.int32)
    usable = (np.diff(links.offsets) > 0) & [text != "" for text in slot_value_texts(data, task)]
    if task in ("Season", "Holiday"):
        usable &= [kind == task.lower() for kind in data.themes.kinds.to_pylist()]
    return np.flatnonzero(usable).astype(np.int32)


def padded(links: Links) -> Int32[np.ndarray, "rows M"]:
    """The targets of each row, padded with NONE to the longest.

    Worked example: 0 -> [4, 7], 1 -> [2] gives [[4, 7], [2, -1]].
    """
    sizes = np.diff(links.offsets)
    out = np.full((len(links), max(int(sizes.max(initial=0)), 1)), NONE, np.int32)
    row = np.repeat(np.arange(len(links)), sizes)
    out[row, np.arange(len(row)) - links.offsets[row]] = links.targets
    return out


@dataclasses.dataclass(frozen=True)
class Allowed:
    """The items each request's constraint allows: those of `items.of(row[n])`; row -1 allows all.

    Requests share constraints, so each list is held once however many requests name it.
    """

    items: Links  # constraint -> items
    row: Int32[np.ndarray, " N"]  # constraint of each request, -1 for none

    @classmethod
    def from_lists(cls, lists: list[np.ndarray], row: Int32[np.ndarray, " N"]) -> Allowed:
        """With the items of each constraint as a list."""
        rows = np.repeat(np.arange(len(lists)), [len(items) for items in lists])
        targets = np.concatenate(lists) if lists else np.zeros(0, np.int32)
        return cls(Links.from_edges(rows, targets, len(lists)), row)

    def of(self, request: int) -> Int32[np.ndarray, " n"] | None:
        """The items request number `request` may get; None where it may get any."""
        return None if self.row[request] < 0 else self.items.of(self.row[request])


def allowed_items(data: PreparedData, requests: Requests) -> Allowed:
    """Which items satisfy each request: items of its query, category, season or holiday.

    JustForYou, Longtail and Discover constrain no item, nor does a request without slot value.
    """
    is_bound = np.isin(requests.task, [TASKS.index(name) for name in CONSTRAINED_TASKS])
    bound = np.flatnonzero(is_bound & (requests.slot_value >= 0))
    keys = np.stack([requests.task[bound], requests.slot_value[bound]], 1)
    distinct, inverse = np.unique(keys.reshape(-1, 2), axis=0, return_inverse=True)
    links = {task: items_of_slot_values(data, TASKS[task]) for task in np.unique(distinct[:, 0])}
    lists = [links[task].of(slot_value) for task, slot_value in distinct]
    row = np.full(len(requests), -1, np.int32)
    row[bound] = inverse.reshape(-1)
    return Allowed.from_lists(lists, row)


def items_of_slot_values(data: PreparedData, task: str) -> Links | None:
    """The items that satisfy each slot value of a task; None where the data has none."""
    match task:
        case "Category":
            known = np.flatnonzero(data.catalogue.category >= 0)
            count = len(data.catalogue.categories)
            return Links.from_edges(data.catalogue.category[known], known, count)
        case "Query":
            return data.queries.items if data.queries is not None else None
        case "Season" | "Holiday":
            return data.themes.items if data.themes is not None else None
    return None


CONSTRAINED_TASKS = ("Query", "Category", "Season", "Holiday")
