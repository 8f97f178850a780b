"""Whether instructions are followed: what a list shows when asked for it, beside the list the same
user gets at the same moment when asked for nothing (JustForYou).

Four sets of requests stand for the users and moments that the evaluation judges:

    asked          the instruction as it is
    unasked        a JustForYou wording in its place
    out of season  Season and Holiday: another theme of the kind, which is not on at the moment
    combined       Season and Holiday: the theme, and a category that has items of it

Figures {"mean", "error", "n"} of the first ten items:

    fits           share that satisfies what was asked for (all of it, for two demands)
    popularity     mean share of the catalogue that is taken less often than the item
    new category   share of categories that the user's history does not have
    overlap        share that the unasked list has too
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float64, Int32

from sigma_jax import metrics
from sigma_jax.evaluation.score import LIST, summary_of
from sigma_jax.histories import history_ranges, request_times
from sigma_jax.schema import TASKS, PreparedData, Requests
from sigma_jax.tasks import instructions
from sigma_jax.tasks.constraints import Allowed, allowed_items

THEMED = ("Season", "Holiday")
COMBINED = "something for {theme} under the category {category}"
UNASKED, OUT_OF_SEASON, BOTH = "unasked", "out of season", "combined"


def request_variants(
    requests: Requests, data: PreparedData, most: int, phrasings: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[Int32[np.ndarray, " n"], Requests]]:
    """set -> the rows of `requests` it stands for, at most `most` a task, and its own requests.

    Without a set that would be empty.
    """
    tasks = [number for number, task in enumerate(TASKS) if task != "JustForYou"]
    rows = np.concatenate([np.flatnonzero(requests.task == number)[:most] for number in tasks])
    asked = requests.take(rows)
    words = phrasings["JustForYou"]
    spoken = [words[row % len(words)] for row in range(len(asked))]
    unasked = dataclasses.replace(asked, instruction=spoken)
    found = {"asked": (rows, asked), UNASKED: (rows, unasked)}
    is_themed = np.isin(asked.task, [TASKS.index(task) for task in THEMED]) & (
        asked.slot_value >= 0
    )
    themed = np.flatnonzero(is_themed)
    if data.themes is None or not len(themed):
        return found if len(asked) else {}
    times = request_times(data.histories, asked)
    other = [theme_not_on(int(asked.slot_value[row]), int(times[row]), data) for row in themed]
    other = np.array(other, np.int32)
    usable = other >= 0
    out = asked.take(themed[usable])
    names = {task: instructions.slot_value_texts(data, task) for task in THEMED}
    spoken = [
        instructions.render(TASKS[task], names[TASKS[task]][theme], phrasings[TASKS[task]][0])
        for task, theme in zip(out.task, other[usable], strict=True)
    ]
    out = dataclasses.replace(out, slot_value=other[usable], instruction=spoken)
    found[OUT_OF_SEASON] = (rows[themed[usable]], out)
    category = np.array([category_of(asked.slot_value[row], data) for row in themed], np.int32)
    usable = category >= 0
    both = asked.take(themed[usable])
    categories = instructions.slot_value_texts(data, "Category")
    spoken = [
        COMBINED.format(theme=names[TASKS[task]][theme], category=categories[chosen])
        for task, theme, chosen in zip(both.task, both.slot_value, category[usable], strict=True)
    ]
    found[BOTH] = (rows[themed[usable]], dataclasses.replace(both, instruction=spoken))
    return {name: found[name] for name in found if len(found[name][0])}


def theme_not_on(asked: int, time: int, data: PreparedData) -> int:
    """A theme of the kind of theme `asked` that is not on at `time`; -1 where there is none."""
    themes = data.themes
    on = set(themes.active(time).tolist())
    kinds = themes.kinds.to_pylist()
    count = len(kinds)
    for step in range(1, count):
        theme = (asked + step) % count
        if kinds[theme] == kinds[asked] and theme not in on and len(themes.items.of(theme)):
            return theme
    return -1


def category_of(theme: int, data: PreparedData) -> int:
    """The category that most items of the theme have; -1 where none has one."""
    found = data.catalogue.category[data.themes.items.of(int(theme))]
    found = found[found >= 0]
    return int(np.bincount(found).argmax()) if len(found) else -1


def both_allowed(requests: Requests, data: PreparedData) -> Allowed:
    """The items of each request's theme that are of its `category_of`."""
    themes = np.unique(requests.slot_value)
    lists = []
    for theme in themes:
        items = data.themes.items.of(int(theme))
        lists.append(items[data.catalogue.category[items] == category_of(theme, data)])
    row = np.searchsorted(themes, requests.slot_value).astype(np.int32)
    return Allowed.from_lists(lists, row)


def instruction_following(
    lists: Mapping[str, Int32[np.ndarray, "n K"]],
    sets: Mapping[str, tuple[np.ndarray, Requests]],
    data: PreparedData,
) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """task -> set -> figure, of the lists that each of `request_variants` got."""
    asked_rows = sets["asked"][0]
    popularity = popularity_ranks(np.asarray(data.catalogue.popularity))
    unasked_of = {int(row): place for place, row in enumerate(asked_rows)}
    results: dict[str, dict] = {}
    for name, (rows, requests) in sets.items():
        top = np.asarray(lists[name])[:, :LIST]
        # An unasked list is held against what it was not asked for.
        allowed = both_allowed(requests, data) if name == BOTH else allowed_items(data, requests)
        plain = np.asarray(lists[UNASKED])[[unasked_of[int(row)] for row in rows], :LIST]
        values = {
            "fits": metrics.satisfied(top, allowed.items, allowed.row),
            "popularity": mean_over(top, popularity),
            "new category": new_categories(top, requests, data),
            "overlap": overlap(top, plain),
        }
        for number, task in enumerate(TASKS):
            here = requests.task == number
            if here.any():
                figures = {key: summary_of(column[here]) for key, column in values.items()}
                shown = {key: figure for key, figure in figures.items() if figure["n"]}
                results.setdefault(task, {})[name] = shown
    return results


def popularity_ranks(popularity: np.ndarray) -> Float64[np.ndarray, " I"]:
    """Share of the catalogue that is taken less often than each item."""
    return np.searchsorted(np.sort(popularity), popularity) / max(len(popularity), 1)


def mean_over(top: Int32[np.ndarray, "n K"], values: np.ndarray) -> Float64[np.ndarray, " n"]:
    """Mean of `values` over each list's items; 0 for an empty list."""
    is_item = top >= 0
    picked = np.where(is_item, values[np.maximum(top, 0)], 0.0)
    return picked.sum(axis=1) / np.maximum(is_item.sum(axis=1), 1)


def new_categories(
    top: Int32[np.ndarray, "n K"], requests: Requests, data: PreparedData
) -> Float64[np.ndarray, " n"]:
    """Share of each list's items whose category is known and not in the user's history."""
    category = np.asarray(data.catalogue.category)
    share = np.zeros(len(top))
    for row, (a, b) in enumerate(zip(*history_ranges(data.histories, requests), strict=True)):
        items = top[row][top[row] >= 0]
        known = np.unique(category[data.histories.item[a:b]])
        is_new = (category[items] >= 0) & ~np.isin(category[items], known)
        share[row] = is_new.sum() / max(len(items), 1)
    return share


def overlap(
    top: Int32[np.ndarray, "n K"], other: Int32[np.ndarray, "n K"]
) -> Float64[np.ndarray, " n"]:
    """Share of each list that the other has too."""
    same: Bool[np.ndarray, "n K"] = (top[:, :, None] == other[:, None, :]).any(axis=2) & (top >= 0)
    return same.sum(axis=1) / np.maximum((top >= 0).sum(axis=1), 1)
