"""Targets of the tasks in a session (section 2.3 of SIGMA). NumPy, without loops over rows.

| task | a row of the target session is a target if |
|---|---|
| JustForYou | always |
| Query | a query leads to its item; once per query that has a text |
| Category | its item has a category that has a text |
| Longtail | its item is outside the head of the catalogue |
| Discover | the user never took an item of its category before the session |
| Season, Holiday | a theme of that kind, active at the row's time, has its item; once per theme |
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Int, Int64

from sigma_jax import metrics
from sigma_jax.schema import TASKS, Links, PreparedData, Themes
from sigma_jax.tasks.instructions import SLOTS, available_tasks, slot_value_texts

TASK_INDEX = {task: index for index, task in enumerate(TASKS)}


@dataclasses.dataclass(frozen=True)
class TaskTables:
    """Look-up tables of the tasks, made once per data set."""

    tasks: tuple[str, ...]  # those with targets in the data
    has_text: dict[str, Bool[np.ndarray, " values"]]  # task -> slot value: has it a text?
    is_longtail: Bool[np.ndarray, " I"]
    item_queries: Links | None
    item_themes: Links | None
    theme_task: np.ndarray | None  # place in TASKS, -1 for trends
    period_key: Int64[np.ndarray, " periods"] | None  # theme and start in one number, sorted
    period_end: Int64[np.ndarray, " periods"] | None  # theme and the latest end up to this row

    @classmethod
    def make(cls, data: PreparedData, longtail_share: float) -> TaskTables:
        """The tables of `data`.

        Args:
          longtail_share: as in TargetConfig.
        """
        items = len(data.catalogue)
        tasks = tuple(task for task, reason in available_tasks(data).items() if reason is None)
        queries = data.queries.items.transpose(items) if "Query" in tasks else None
        theme_fields = (None, None, None, None)
        if "Season" in tasks or "Holiday" in tasks:
            themes = data.themes
            kinds = {"season": TASK_INDEX["Season"], "holiday": TASK_INDEX["Holiday"]}
            theme_task = np.array([kinds.get(kind, -1) for kind in themes.kinds.to_pylist()])
            theme_fields = (themes.items.transpose(items), theme_task, *_periods(themes))
        has_text = {
            task: np.array([text != "" for text in slot_value_texts(data, task)], bool)
            for task in SLOTS
        }
        is_longtail = metrics.long_tail(data.catalogue.popularity, longtail_share)
        return cls(tasks, has_text, is_longtail, queries, *theme_fields)


def _periods(themes: Themes) -> tuple[np.ndarray, np.ndarray]:
    """`period_key` and `period_end`, so that one binary search finds whether a theme is active."""
    key = _period_key(themes.period_theme, themes.period_start)
    end = _period_key(themes.period_theme, themes.period_end)
    order = np.argsort(key, kind="stable")
    # Periods of one theme may overlap, so the latest end so far decides. Themes ascend: the running
    # maximum of one theme is below every key of the next.
    return key[order], np.maximum.accumulate(end[order])


def _period_key(theme: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Theme and time in one number that sorts as the pair does, 17,000 years around 1970."""
    era = 1 << 39
    since = np.clip(np.asarray(time, np.int64), -era, era - 1) + era
    return (np.asarray(theme, np.int64) << 40) + since


def is_active(
    tables: TaskTables, theme: Int[np.ndarray, " n"], time: Int64[np.ndarray, " n"]
) -> Bool[np.ndarray, " n"]:
    """Whether each theme is active at its time, as `Themes.active` says for one time."""
    key = _period_key(theme, time)
    place = np.searchsorted(tables.period_key, key, side="right") - 1
    # An end of an earlier theme is below every key of this one, so `key < end` is enough.
    return (place >= 0) & (key < tables.period_end[np.maximum(place, 0)])


@dataclasses.dataclass(frozen=True)
class Targets:
    """Targets as rows of the histories, each for one task and one end of the history."""

    history_end: Int64[np.ndarray, " n"]  # the context ends before this row
    task: Int64[np.ndarray, " n"]  # place in TASKS
    row: Int64[np.ndarray, " n"]  # the target's row
    slot_value: Int64[np.ndarray, " n"]  # query, category or theme; -1 for none

    def take(self, which: np.ndarray) -> Targets:
        """The targets that an index or mask names."""
        return Targets(*(getattr(self, field.name)[which] for field in dataclasses.fields(self)))

    @classmethod
    def join(cls, parts: list[Targets]) -> Targets:
        """All targets of `parts`, in order."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def group(self) -> Int64[np.ndarray, " n"]:
        """One number per end of the history and task."""
        return self.history_end * len(TASKS) + self.task


def first_rows_in_category(data: PreparedData, users: range) -> Int64[np.ndarray, " rows"]:
    """For each row of `users`: the first row in which that user has an item of its category."""
    offsets = data.histories.offsets
    begin, end = int(offsets[users.start]), int(offsets[users.stop])
    lengths = np.diff(offsets[users.start : users.stop + 1])
    user = np.repeat(np.arange(len(users), dtype=np.int64), lengths)
    category = data.catalogue.category[data.histories.item[begin:end]].astype(np.int64)
    key = user * (len(data.catalogue.categories) + 1) + category + 1
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    return begin + first[inverse]


def find_targets(
    data: PreparedData,
    tables: TaskTables,
    rows: Int64[np.ndarray, " n"],
    history_end: Int64[np.ndarray, " n"],
    first_in_category: Int64[np.ndarray, " n"],
) -> Targets:
    """All targets among `rows` for contexts that end before `history_end`.

    Args:
      rows: rows of Histories that may be targets.
      history_end: of each, the row its context ends before: the first of a session, at most `rows`.
      first_in_category: of each, from `first_rows_in_category`.
    """
    item = np.asarray(data.histories.item[rows], np.int64)
    category = np.asarray(data.catalogue.category[item], np.int64)
    parts = []

    def add(task: str, which: np.ndarray, slot_value: np.ndarray | None = None) -> None:
        """Appends `rows[which]` as targets of `task`, except those whose slot value has no text."""
        if task in tables.tasks:
            if task in tables.has_text:
                has_text = tables.has_text[task][slot_value]
                which, slot_value = which[has_text], slot_value[has_text]
            slot_value = np.full(len(which), -1, np.int64) if slot_value is None else slot_value
            task_of = np.full(len(which), TASK_INDEX[task], np.int64)
            parts.append(Targets(history_end[which], task_of, rows[which], slot_value))

    add("JustForYou", np.arange(len(rows)))
    has_category = np.flatnonzero(category >= 0)
    add("Category", has_category, category[has_category])
    add("Longtail", np.flatnonzero(tables.is_longtail[item]))
    add("Discover", np.flatnonzero((category >= 0) & (first_in_category >= history_end)))
    if tables.item_queries is not None:
        add("Query", *_expand(tables.item_queries, item))
    if tables.item_themes is not None:
        which, theme = _expand(tables.item_themes, item)
        is_on = is_active(tables, theme, np.asarray(data.histories.time[rows[which]], np.int64))
        for task in ("Season", "Holiday"):
            chosen = is_on & (tables.theme_task[theme] == TASK_INDEX[task])
            add(task, which[chosen], theme[chosen])
    return Targets.join(parts)


def _expand(links: Links, item: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(place in `item`, linked target) for every link of every item.

    Worked example: links 5 -> [1, 2], item [5, 5] -> places [0, 0, 1, 1], targets [1, 2, 1, 2].
    """
    counts = (links.offsets[item + 1] - links.offsets[item]).astype(np.int64)
    place = np.repeat(np.arange(len(item)), counts)
    within = np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts)
    return place, np.asarray(links.targets[links.offsets[item][place] + within], np.int64)


def keep_per_group(targets: Targets, score: np.ndarray, count: int) -> Targets:
    """At most `count` targets per end of the history and task: those of lowest `score`.

    Sorted by end of the history, then task.
    """
    order = np.lexsort((score, targets.group()))
    group = targets.group()[order]
    starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]]) if len(group) else group
    rank = np.arange(len(group)) - np.repeat(starts, np.diff(np.r_[starts, len(group)]))
    return targets.take(order[rank < count])
