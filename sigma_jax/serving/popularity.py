"""Live popularity: decayed counts of events at the time of a call.

An event weighs 0.5 ** (age / half-life). Events of the service come from the store's counts by
hour, those of the training from the export. Where both count an item in the same hour, the larger
count holds: a history that a shop sent again is not counted twice.

Axes: I items, n pairs of an item and an hour.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int64

from sigma_jax.serving.engine import CatalogueSnapshot
from sigma_jax.serving.stores.base import HOUR, TenantStore

HALF_LIFE_HOURS = 24.0
LONGEST_HALF_LIFE = 168.0  # hours; stores keep counts of 60 days
HALF_LIVES = 8  # older events weigh less than 1/256 and are left out
TIE = 1e-6  # the training's popularity decides only between items with equal scores


@dataclasses.dataclass(frozen=True)
class HourlyCounts:
    """Numbers of events by hour and item; each pair stands once."""

    hour: Int64[np.ndarray, " n"]  # unix seconds // HOUR
    item: Int64[np.ndarray, " n"]
    count: Int64[np.ndarray, " n"]


def trending_scores(
    snapshot: CatalogueSnapshot, store: TenantStore, now: float, half_life_hours: float
) -> Float[np.ndarray, " I"]:
    """The decayed number of events of each item at `now`, in unix seconds.

    The training's popularity orders items without events.
    """
    last = int(now) // HOUR
    first = last - int(np.ceil(HALF_LIVES * half_life_hours))
    items = len(snapshot.version)
    live = live_counts(snapshot, store, first, last)
    trained = training_counts(snapshot, first, now)
    key = np.concatenate([one.hour * items + one.item for one in (live, trained)])
    pairs, place = np.unique(key, return_inverse=True)
    count = np.zeros(len(pairs), np.int64)
    np.maximum.at(count, place.reshape(-1), np.concatenate([live.count, trained.count]))
    # An hour's events are taken to lie in its middle, or half way into an hour that still runs.
    start = (pairs // items) * HOUR
    age = now - (start + np.minimum(start + HOUR, now)) / 2
    weight = count * 0.5 ** (np.maximum(age, 0) / (half_life_hours * HOUR))
    scores = np.bincount(pairs % items, weight, items)
    popularity = np.asarray(snapshot.version.catalogue.popularity, float)
    return scores + TIE * popularity / max(popularity.max(initial=0), 1)


def live_counts(
    snapshot: CatalogueSnapshot, store: TenantStore, first: int, last: int
) -> HourlyCounts:
    """The events of a store in the hours from `first` to `last`, with items of the catalogue."""
    index = snapshot.parser.item_index
    rows = [
        (hour, number, count)
        for hour, counts in store.event_counts(first, last).items()
        for item, count in counts.items()
        if (number := index.find(item)) is not None
    ]
    columns = np.array(rows, np.int64).reshape(-1, 3).T
    return HourlyCounts(*columns)


def training_counts(snapshot: CatalogueSnapshot, first: int, now: float) -> HourlyCounts:
    """The interactions of the training from the hour `first` on, until `now`.

    There are none for an export without a reranker: only the reranker keeps their times.
    """
    reranker = snapshot.recommender.parts.reranker
    if reranker is None:
        nothing = np.zeros(0, np.int64)
        return HourlyCounts(nothing, nothing, nothing)
    trends = reranker.tables.trends
    start, end = np.searchsorted(trends.time, [first * HOUR, int(now) + 1])
    pairs = np.stack([trends.time[start:end] // HOUR, trends.item[start:end].astype(np.int64)])
    # Exports of earlier versions have a row for each interaction.
    found, place = np.unique(pairs, axis=1, return_inverse=True)
    count = np.zeros(found.shape[1], np.int64)
    np.add.at(count, place.reshape(-1), trends.number[start:end])
    return HourlyCounts(found[0], found[1], count)
