"""Instruction following: metrics of lists with an instruction, and of the same users without one.

Four variants of the evaluated requests are ranked:

    instruction       the request as it is
    no instruction    a JustForYou instruction for the same user at the same time
    out of season     Season and Holiday only: a theme of the same kind that is not active
    combined          Season and Holiday only: the theme and its most frequent category

Each list of ten items gets these metrics, as estimates {"mean", "error", "n"} (score.py):

    constraint@10      share of items that satisfy the constraint, or all constraints if combined
    popularity@10      mean popularity percentile: share of the catalogue with fewer interactions
    new_category@10    share of items from categories that the user's history lacks
    overlap@10         share of items that the list without instruction contains too
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float64, Int32

from sigma_jax import metrics
from sigma_jax.evaluation.score import TOP, mean_with_error
from sigma_jax.histories import history_ranges, request_times
from sigma_jax.schema import TASKS, PreparedData, Requests
from sigma_jax.tasks import instructions
from sigma_jax.tasks.constraints import AllowedItems, allowed_items

THEMED = ("Season", "Holiday")  # tasks whose slot is a theme
COMBINED_WORDING = "something for {theme} under the category {category}"
INSTRUCTION, NO_INSTRUCTION = "instruction", "no instruction"
OUT_OF_SEASON, COMBINED = "out of season", "combined"

Wordings = Mapping[str, tuple[str, ...]]
Variant = tuple[Int32[np.ndarray, " n"], Requests]  # rows of the evaluated requests; new requests


def request_variants(
    requests: Requests, data: PreparedData, max_per_task: int, wordings: Wordings
) -> dict[str, Variant]:
    """Variant -> the rows of `requests` that it is made from, and the requests to rank.

    Variants without a request are omitted.

    Args:
      requests: the evaluated requests; those of JustForYou are not used.
      max_per_task: at most this many requests of each task are used.
      wordings: of the instructions, by task.
    """
    tasks = [number for number, task in enumerate(TASKS) if task != "JustForYou"]
    rows = np.concatenate(
        [np.flatnonzero(requests.task == number)[:max_per_task] for number in tasks]
    )
    chosen = requests.take(rows)
    texts = wordings["JustForYou"]
    plain = [texts[row % len(texts)] for row in range(len(chosen))]
    variants = {
        INSTRUCTION: (rows, chosen),
        NO_INSTRUCTION: (rows, dataclasses.replace(chosen, instruction=plain)),
    }
    is_themed = np.isin(chosen.task, [TASKS.index(task) for task in THEMED])
    themed = np.flatnonzero(is_themed & (chosen.slot_value >= 0))
    if data.themes is not None and len(themed):
        usable, changed = out_of_season(chosen.take(themed), data, wordings)
        variants[OUT_OF_SEASON] = (rows[themed[usable]], changed)
        usable, changed = combined(chosen.take(themed), data)
        variants[COMBINED] = (rows[themed[usable]], changed)
    return {name: variant for name, variant in variants.items() if len(variant[0])}


def out_of_season(
    requests: Requests, data: PreparedData, wordings: Wordings
) -> tuple[Bool[np.ndarray, " N"], Requests]:
    """True for each themed request with an inactive theme of its kind; requests for that theme."""
    times = request_times(data.histories, requests)
    themes = zip(requests.slot_value, times, strict=True)
    other = np.array([inactive_theme(int(theme), int(t), data) for theme, t in themes], np.int32)
    usable = other >= 0
    changed = requests.take(np.flatnonzero(usable))
    names = {task: instructions.slot_value_texts(data, task) for task in THEMED}
    texts = [
        instructions.render(TASKS[task], names[TASKS[task]][theme], wordings[TASKS[task]][0])
        for task, theme in zip(changed.task, other[usable], strict=True)
    ]
    return usable, dataclasses.replace(changed, slot_value=other[usable], instruction=texts)


def combined(requests: Requests, data: PreparedData) -> tuple[Bool[np.ndarray, " N"], Requests]:
    """True for each themed request whose theme has a category; requests for both."""
    category = np.array([main_category(theme, data) for theme in requests.slot_value], np.int32)
    usable = category >= 0
    changed = requests.take(np.flatnonzero(usable))
    names = {task: instructions.slot_value_texts(data, task) for task in (*THEMED, "Category")}
    texts = [
        COMBINED_WORDING.format(theme=names[TASKS[task]][theme], category=names["Category"][main])
        for task, theme, main in zip(
            changed.task, changed.slot_value, category[usable], strict=True
        )
    ]
    return usable, dataclasses.replace(changed, instruction=texts)


def inactive_theme(theme: int, time: int, data: PreparedData) -> int:
    """The next theme of the same kind that has items and is not active at `time`; -1 if none."""
    themes = data.themes
    active = set(themes.active(time).tolist())
    kinds = themes.kinds.to_pylist()
    count = len(kinds)
    for step in range(1, count):
        other = (theme + step) % count
        if kinds[other] == kinds[theme] and other not in active and len(themes.items.of(other)):
            return other
    return -1


def main_category(theme: int, data: PreparedData) -> int:
    """The most frequent category among the theme's items; -1 if no item has a category."""
    categories = data.catalogue.category[data.themes.items.of(int(theme))]
    categories = categories[categories >= 0]
    return int(np.bincount(categories).argmax()) if len(categories) else -1


def items_of_combined(requests: Requests, data: PreparedData) -> AllowedItems:
    """The items of each request's theme that belong to the theme's `main_category`."""
    themes = np.unique(requests.slot_value)
    lists = []
    for theme in themes:
        items = data.themes.items.of(int(theme))
        lists.append(items[data.catalogue.category[items] == main_category(theme, data)])
    row = np.searchsorted(themes, requests.slot_value).astype(np.int32)
    return AllowedItems.from_lists(lists, row)


def instruction_following(
    lists: Mapping[str, Int32[np.ndarray, "n K"]],
    variants: Mapping[str, Variant],
    data: PreparedData,
) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """task -> variant -> metric -> estimate.

    Args:
      lists: variant -> ranked items of its requests, best first, -1 for no item.
      variants: the result of `request_variants`.
    """
    popularity = popularity_percentiles(np.asarray(data.catalogue.popularity))
    place_of = {int(row): place for place, row in enumerate(variants[NO_INSTRUCTION][0])}
    results: dict[str, dict] = {}
    for name, (rows, requests) in variants.items():
        first = np.asarray(lists[name])[:, :TOP]
        plain = np.asarray(lists[NO_INSTRUCTION])[[place_of[int(row)] for row in rows], :TOP]
        # Lists without instruction are compared with the constraint that was not mentioned.
        is_combined = name == COMBINED
        allowed = (
            items_of_combined(requests, data) if is_combined else allowed_items(data, requests)
        )
        values = {
            f"constraint@{TOP}": metrics.satisfied(first, allowed.items, allowed.row),
            f"popularity@{TOP}": mean_over(first, popularity),
            f"new_category@{TOP}": new_category_share(first, requests, data),
            f"overlap@{TOP}": overlap(first, plain),
        }
        for number, task in enumerate(TASKS):
            of_task = requests.task == number
            if of_task.any():
                estimates = {
                    key: mean_with_error(column[of_task]) for key, column in values.items()
                }
                applicable = {key: value for key, value in estimates.items() if value["n"]}
                results.setdefault(task, {})[name] = applicable
    return results


def popularity_percentiles(popularity: np.ndarray) -> Float64[np.ndarray, " I"]:
    """Share of the catalogue with fewer interactions than each item."""
    return np.searchsorted(np.sort(popularity), popularity) / max(len(popularity), 1)


def mean_over(lists: Int32[np.ndarray, "n K"], values: np.ndarray) -> Float64[np.ndarray, " n"]:
    """Mean of `values` over the items of each list; 0 for an empty list."""
    is_item = lists >= 0
    picked = np.where(is_item, values[np.maximum(lists, 0)], 0.0)
    return picked.sum(axis=1) / np.maximum(is_item.sum(axis=1), 1)


def new_category_share(
    lists: Int32[np.ndarray, "n K"], requests: Requests, data: PreparedData
) -> Float64[np.ndarray, " n"]:
    """Share of each list's items that have a category which the user's history lacks."""
    category = np.asarray(data.catalogue.category)
    share = np.zeros(len(lists))
    for row, (start, end) in enumerate(zip(*history_ranges(data.histories, requests), strict=True)):
        items = lists[row][lists[row] >= 0]
        known = np.unique(category[data.histories.item[start:end]])
        is_new = (category[items] >= 0) & ~np.isin(category[items], known)
        share[row] = is_new.sum() / max(len(items), 1)
    return share


def overlap(
    lists: Int32[np.ndarray, "n K"], others: Int32[np.ndarray, "n K"]
) -> Float64[np.ndarray, " n"]:
    """Share of each list's items that the other list of the same row contains too."""
    is_shared: Bool[np.ndarray, "n K"] = (lists[:, :, None] == others[:, None, :]).any(axis=2)
    is_item = lists >= 0
    return (is_shared & is_item).sum(axis=1) / np.maximum(is_item.sum(axis=1), 1)
