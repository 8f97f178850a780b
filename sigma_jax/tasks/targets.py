"""Which items of a session are targets of which task (section 2.3 of SIGMA). NumPy, no loops.

| task | a row of the target session is a target if |
|---|---|
| JustForYou | always |
| Query | a query leads to its item; once per query that has words, likewise below |
| Category | its item has a category |
| Longtail | its item is outside the head of the catalogue |
| Discover | the user never touched its category before the boundary |
| Season, Holiday | a theme of that kind, on at the row's time, has its item; once per theme |
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
    """What the tasks look up, made once per data set."""

    tasks: tuple[str, ...]  # those the data supports
    is_named: dict[str, Bool[np.ndarray, " values"]]  # task -> slot value: has it any words?
    is_longtail: Bool[np.ndarray, " I"]
    item_queries: Links | None
    item_themes: Links | None
    theme_kind: np.ndarray | None  # index into TASKS, -1 for trends
    period_key: Int64[np.ndarray, " periods"] | None  # theme and start in one number, sorted
    period_end: Int64[np.ndarray, " periods"] | None  # theme and latest end so far

    @classmethod
    def make(cls, data: PreparedData, longtail_share: float) -> TaskTables:
        """Tables of `data`; the head are the most popular items with `longtail_share` of the
        interactions, the long tail the others."""
        items = len(data.catalogue)
        tasks = tuple(task for task, reason in available_tasks(data).items() if reason is None)
        queries = data.queries.items.transpose(items) if "Query" in tasks else None
        fields = (None, None, None, None)
        if "Season" in tasks or "Holiday" in tasks:
            themes = data.themes
            kinds = {"season": TASK_INDEX["Season"], "holiday": TASK_INDEX["Holiday"]}
            theme_kind = np.array([kinds.get(kind, -1) for kind in themes.kinds.to_pylist()])
            fields = (themes.items.transpose(items), theme_kind, *_periods(themes))
        named = {
            task: np.array([text != "" for text in slot_value_texts(data, task)], bool)
            for task in SLOTS
        }
        longtail = metrics.long_tail(data.catalogue.popularity, longtail_share)
        return cls(tasks, named, longtail, queries, *fields)


def _periods(themes: Themes) -> tuple[np.ndarray, np.ndarray]:
    """Periods so that one binary search tells whether a theme is on."""
    key = _period_key(themes.period_theme, themes.period_start)
    end = _period_key(themes.period_theme, themes.period_end)
    order = np.argsort(key, kind="stable")
    # Periods of one theme may overlap: the latest end so far decides. Themes ascend, so the running
    # maximum never carries an end over to the next theme unnoticed.
    return key[order], np.maximum.accumulate(end[order])


def _period_key(theme: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Theme and time in one number that sorts as the pair does, 17,000 years around 1970."""
    era = 1 << 39
    since = np.clip(np.asarray(time, np.int64), -era, era - 1) + era
    return (np.asarray(theme, np.int64) << 40) + since


def is_active(
    tables: TaskTables, theme: Int[np.ndarray, " n"], time: Int64[np.ndarray, " n"]
) -> Bool[np.ndarray, " n"]:
    """Whether each theme is on at its time; `Themes.active` for many at once."""
    key = _period_key(theme, time)
    place = np.searchsorted(tables.period_key, key, side="right") - 1
    # An end of an earlier theme is below any key of this one, so `key < end` is enough.
    return (place >= 0) & (key < tables.period_end[np.maximum(place, 0)])


@dataclasses.dataclass(frozen=True)
class Candidates:
    """Targets of tasks: attach (the row the context ends before), task, target row, slot value."""

    attach: Int64[np.ndarray, " n"]
    task: Int64[np.ndarray, " n"]
    row: Int64[np.ndarray, " n"]
    slot_value: Int64[np.ndarray, " n"]  # query, category or theme; -1 for none

    def take(self, which: np.ndarray) -> Candidates:
        return Candidates(*(getattr(self, field.name)[which] for field in dataclasses.fields(self)))

    @classmethod
    def join(cls, parts: list[Candidates]) -> Candidates:
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def group(self) -> Int64[np.ndarray, " n"]:
        """One number per attach and task."""
        return self.attach * len(TASKS) + self.task


def first_touch(data: PreparedData, users: range) -> Int64[np.ndarray, " rows"]:
    """For the rows of `users`, the first row in which the same user has the same category."""
    offsets = data.histories.offsets
    begin, end = int(offsets[users.start]), int(offsets[users.stop])
    lengths = np.diff(offsets[users.start : users.stop + 1])
    user = np.repeat(np.arange(len(users), dtype=np.int64), lengths)
    category = data.catalogue.category[data.histories.item[begin:end]].astype(np.int64)
    key = user * (len(data.catalogue.categories) + 1) + category + 1
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    return begin + first[inverse]


def find_candidates(
    data: PreparedData,
    tables: TaskTables,
    rows: Int64[np.ndarray, " n"],
    attach: Int64[np.ndarray, " n"],
    first: Int64[np.ndarray, " n"],
) -> Candidates:
    """All targets among `rows` for contexts that end before `attach`.

    Args:
      rows: rows of Histories that may be targets.
      attach: of each, the row its context ends before; the first row of a session, at most `rows`.
      first: of each, `first_touch`.
    """
    item = np.asarray(data.histories.item[rows], np.int64)
    category = np.asarray(data.catalogue.category[item], np.int64)
    parts = []

    def add(task: str, which: np.ndarray, slot_value: np.ndarray | None = None) -> None:
        if task in tables.tasks:
            if task in tables.is_named:
                named = tables.is_named[task][slot_value]
                which, slot_value = which[named], slot_value[named]
            slot_value = np.full(len(which), -1, np.int64) if slot_value is None else slot_value
            task_of = np.full(len(which), TASK_INDEX[task], np.int64)
            parts.append(Candidates(attach[which], task_of, rows[which], slot_value))

    add("JustForYou", np.arange(len(rows)))
    known = np.flatnonzero(category >= 0)
    add("Category", known, category[known])
    add("Longtail", np.flatnonzero(tables.is_longtail[item]))
    add("Discover", np.flatnonzero((category >= 0) & (first >= attach)))
    if tables.item_queries is not None:
        add("Query", *_expand(tables.item_queries, item))
    if tables.item_themes is not None:
        which, theme = _expand(tables.item_themes, item)
        is_on = is_active(tables, theme, np.asarray(data.histories.time[rows[which]], np.int64))
        for task in ("Season", "Holiday"):
            chosen = is_on & (tables.theme_kind[theme] == TASK_INDEX[task])
            add(task, which[chosen], theme[chosen])
    return Candidates.join(parts)


def _expand(links: Links, item: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(place in `item`, target) of every link of every item.

    Worked example: links 5 -> [1, 2], item [5, 5] -> places [0, 0, 1, 1], targets [1, 2, 1, 2].
    """
    counts = (links.offsets[item + 1] - links.offsets[item]).astype(np.int64)
    place = np.repeat(np.arange(len(item)), counts)
    within = np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts)
    return place, np.asarray(links.targets[links.offsets[item][place] + within], np.int64)


def keep_few(candidates: Candidates, score: np.ndarray, most: int) -> Candidates:
    """At most `most` per attach and task, those of least `score`; sorted by attach, then task."""
    order = np.lexsort((score, candidates.group()))
    group = candidates.group()[order]
    starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]]) if len(group) else group
    rank = np.arange(len(group)) - np.repeat(starts, np.diff(np.r_[starts, len(group)]))
    return candidates.take(order[rank < most])
