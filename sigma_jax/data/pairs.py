"""Relevance pairs of section 2.1 of SIGMA, from training rows only, with a share held out by hash.

search         query -> its most clicked items
visual         items whose visual vectors are nearest neighbours by cosine
theme          theme name -> its strongest items
co_occurrence  items of one session; of single-item sessions, items within a window of a history
"""

from __future__ import annotations

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa

from sigma_jax.data import database
from sigma_jax.data.config import PairsConfig
from sigma_jax.data.vectors import unit_rows
from sigma_jax.schema import Links, RelevancePairs

# A partner's score is count / popularity ** POPULARITY_POWER. Power 0 ranks best-sellers first for
# every item, power 1 ranks rare items first; one half is the cosine of the two items' sessions.
POPULARITY_POWER = 0.5
# Items of a session that are paired with one another; of a larger session a sample is taken, as
# the number of pairs grows with the square.
MAX_SESSION_ITEMS = 60
PAIRS_AT_ONCE = 10_000_000  # rows of the self-join held at a time
VISUAL_CELL = 50_000  # items compared with one another exactly; larger catalogues are split


def link_pairs(view: str, texts: pa.Array, links: Links, per_text: int, config: PairsConfig):
    """Pairs of texts and their first `per_text` items; None if there are none."""
    sizes = np.diff(links.offsets)
    left = np.repeat(np.arange(len(links), dtype=np.int32), sizes)
    rank = np.arange(len(left)) - np.repeat(links.offsets[:-1], sizes)
    kept = np.flatnonzero(rank < per_text)
    kept = kept[np.argsort(rank[kept], kind="stable")][: config.max_pairs]
    return make_pairs(view, left[kept], links.targets[kept], texts, config)


def make_pairs(view: str, left, right, texts: pa.Array | None, config: PairsConfig):
    """RelevancePairs sorted by left and right; None if there are none."""
    if not len(left):
        return None
    order = np.lexsort((right, left))
    left, right = left[order].astype(np.int32), right[order].astype(np.int32)
    return RelevancePairs(view, left, right, texts, is_heldout(left, right, config.heldout_share))


def is_heldout(left: np.ndarray, right: np.ndarray, share: float) -> np.ndarray:
    """A share of the pairs by a hash of both ends: the same pairs on every run and machine."""
    with np.errstate(over="ignore"):
        key = left.astype(np.uint64) * np.uint64(2**32) + right.astype(np.uint64)
        key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        key = key ^ (key >> np.uint64(31))
    return key < np.uint64(min(max(share, 0.0), 1.0) * (2**64 - 2**11))


def co_occurrence_pairs(
    con: ibis.BaseBackend, training: ir.Table, has_sessions: bool, config: PairsConfig
) -> RelevancePairs | None:
    """Per item its `per_item` best partners by count / popularity(partner) ** POPULARITY_POWER.

    The join is run over slices of the left items, so memory does not grow with the log.
    """
    frequent = training.group_by("item").agg(popularity=training.count())
    frequent = database.save(
        con, "frequent_items", frequent.filter(frequent["popularity"] >= config.min_count)
    )
    joined = training.inner_join(frequent.select("item"), "item")
    if has_sessions:
        # A fixed scramble of the item number samples large sessions without favour.
        scramble = (joined["item"].cast("int64") * 2_654_435_761) % (2**32)
        inside = ibis.window(group_by=["user", "session"], order_by=[scramble, "item"])
        sampled = joined.mutate(draw=ibis.row_number().over(inside))
        sampled = sampled.filter(sampled["draw"] < MAX_SESSION_ITEMS)
        events = database.save(con, "pair_events", sampled.select("user", "session", "item"))
        size = events.group_by("user", "session").agg(n=events.count())
        num_rows = con.to_pyarrow((size["n"] * size["n"]).sum()).as_py() or 0
    else:
        events = database.save(con, "pair_events", joined.select("user", "place", "item"))
        num_rows = 2 * config.window * database.count(con, events)
    slices = 1 + int(num_rows) // PAIRS_AT_ONCE
    for part in range(slices):
        found = _session_pairs if has_sessions else _window_pairs
        counts = found(events, slices, part, config)
        best = _best_partners(counts, frequent, config)
        if part == 0:
            best = database.save(con, "co_occurrence", best)
        else:
            con.insert("co_occurrence", best)
    return _undirected(con, con.table("co_occurrence"), config)


def _session_pairs(events: ir.Table, slices: int, part: int, config: PairsConfig) -> ir.Table:
    """left, right, count, weight of items in one session, for left items of this slice."""
    left = events.filter(events["item"] % slices == part).rename(left="item")
    right = events.view().rename(right="item")
    pairs = left.inner_join(right, ["user", "session"])
    pairs = pairs.filter(pairs["left"] != pairs["right"])
    return pairs.group_by("left", "right").agg(
        count=pairs.count(), weight=pairs.count().cast("float64")
    )


def _window_pairs(events: ir.Table, slices: int, part: int, config: PairsConfig) -> ir.Table:
    """The same within a window of a history; nearer counts more (1 / distance)."""
    order = ibis.window(group_by="user", order_by="place")
    parts = []
    for distance in range(1, config.window + 1):
        ahead = events.select(
            left="item", right=events["item"].lead(distance).over(order), distance=distance
        )
        ahead = ahead.filter(ahead["right"].notnull() & (ahead["left"] != ahead["right"]))
        parts += [ahead, ahead.select(left="right", right="left", distance="distance")]
    pairs = ibis.union(*parts)
    pairs = pairs.filter(pairs["left"] % slices == part)
    # Whole numbers add up to the same in any order of rows, fractions would not.
    weight = (2520 / pairs["distance"]).round().cast("int64").sum() / 2520.0
    return pairs.group_by("left", "right").agg(count=pairs.count(), weight=weight)


def _best_partners(counts: ir.Table, frequent: ir.Table, config: PairsConfig) -> ir.Table:
    counts = counts.filter(counts["count"] >= config.min_count)
    counts = counts.inner_join(frequent, counts["right"] == frequent["item"])
    popularity = counts["popularity"].cast("float64")
    scored = counts.mutate(score=counts["weight"] / popularity.pow(POPULARITY_POWER))
    order = [scored["score"].round(9).desc(), scored["right"]]
    rank = ibis.row_number().over(group_by=scored["left"], order_by=order)
    ranked = scored.select("left", "right", "score", "count", rank=rank)
    return ranked.filter(ranked["rank"] < config.per_item)


def _undirected(con, best: ir.Table, config: PairsConfig) -> RelevancePairs | None:
    """Each pair once, the better of its two ranks; the best `max_pairs`."""
    low, high = ibis.least(best["left"], best["right"]), ibis.greatest(best["left"], best["right"])
    both = best.select("rank", "count", low=low, high=high)
    pairs = both.group_by("low", "high").agg(rank=both["rank"].min(), count=both["count"].max())
    order = [pairs["rank"], pairs["count"].desc(), pairs["low"], pairs["high"]]
    kept = database.save(con, "co_pairs", pairs.order_by(order).limit(config.max_pairs))
    dtypes = {"low": np.int32, "high": np.int32}
    columns = database.columns(con, kept, dtypes, database.count(con, kept))
    return make_pairs("co_occurrence", columns["low"], columns["high"], None, config)


def visual_pairs(vectors: np.ndarray, config: PairsConfig, seed: int) -> RelevancePairs | None:
    """Nearest neighbours by cosine; exact up to VISUAL_CELL items, inside cells of them beyond.

    Cells keep the cost in proportion to the catalogue: items go to the nearest of a few drawn
    anchors, and a neighbour in another cell is missed.
    """
    found_left, found_right = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for cell in _cells(vectors, seed):
        rows = unit_rows(vectors[cell])
        count = min(config.per_item, len(cell) - 1)
        for start in range(0, len(cell) if count > 0 else 0, 1024):
            cosines = rows[start : start + 1024] @ rows.T
            here = np.arange(len(cosines))
            cosines[here, start + here] = -np.inf  # not its own partner
            near = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
            kept = np.take_along_axis(cosines, near, 1) >= config.min_cosine
            found_left.append(cell[start + np.repeat(here, kept.sum(1))])
            found_right.append(cell[near[kept]])
    left, right = np.concatenate(found_left), np.concatenate(found_right)
    keys = np.minimum(left, right).astype(np.int64) * len(vectors) + np.maximum(left, right)
    keys = np.unique(keys)
    if len(keys) > config.max_pairs:
        keys = np.sort(np.random.default_rng(seed).choice(keys, config.max_pairs, replace=False))
    return make_pairs("visual", keys // len(vectors), keys % len(vectors), None, config)


def _cells(vectors: np.ndarray, seed: int) -> list[np.ndarray]:
    """Groups of at most VISUAL_CELL rows that lie close to one another."""
    total = len(vectors)
    if total <= VISUAL_CELL:
        return [np.arange(total)]
    rng = np.random.default_rng(seed)
    drawn = np.sort(rng.choice(total, 2 * (1 + total // VISUAL_CELL), replace=False))
    anchors = unit_rows(vectors[drawn])
    nearest = np.empty(total, np.int32)
    for start in range(0, total, 65_536):
        nearest[start : start + 65_536] = (
            unit_rows(vectors[start : start + 65_536]) @ anchors.T
        ).argmax(1)
    order = np.argsort(nearest, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(nearest[order])) + 1)
    return [
        group[start : start + VISUAL_CELL]
        for group in groups
        for start in range(0, len(group), VISUAL_CELL)
    ]
