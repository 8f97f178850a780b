"""Relevance pairs for the stage `grounding` (section 2.1 of SIGMA), from training rows only.

| view | pairs |
|---|---|
| search | a query and its most clicked items |
| visual | items whose visual vectors are nearest neighbours by cosine |
| theme | the name of a theme and its strongest items |
| knowledge | a text of the table `knowledge` and its items, or the most popular of its category |
| co_occurrence | items of one session; with single-item sessions, neighbours in a history |

A hash of both ends holds out a share of the pairs: the same pairs on every run and machine.
"""

from __future__ import annotations

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa

from sigma_jax.data import database
from sigma_jax.data.config import PairsConfig
from sigma_jax.data.engines import spark
from sigma_jax.data.vectors import unit_rows
from sigma_jax.hashing import mix64
from sigma_jax.schema import Links, RelevancePairs

# A larger session is sampled: its number of pairs grows with the square of its items.
MAX_SESSION_ITEMS = 60
PAIRS_AT_ONCE = 50_000_000  # rows of the self-join that DuckDB counts at a time
VISUAL_CELL = 50_000  # items that are compared with one another; a larger catalogue is split


def link_pairs(
    view: str, texts: pa.Array, links: Links, per_text: int, config: PairsConfig
) -> RelevancePairs | None:
    """Pairs of each text with its first `per_text` items; None if there are none.

    Args:
      view: "search", "theme" or "knowledge".
      texts: queries, names of themes, or knowledge; string.
      links: text -> items, strongest first.
      per_text: most items of a text.
      config: max_pairs keeps the strongest items of every text before it drops any text.
    """
    sizes = np.diff(links.offsets)
    left = np.repeat(np.arange(len(links), dtype=np.int32), sizes)
    rank = np.arange(len(left)) - np.repeat(links.offsets[:-1], sizes)
    kept = np.flatnonzero(rank < per_text)
    kept = kept[np.argsort(rank[kept], kind="stable")][: config.max_pairs]
    return make_pairs(view, left[kept], links.targets[kept], texts, config)


def make_pairs(
    view: str, left: np.ndarray, right: np.ndarray, texts: pa.Array | None, config: PairsConfig
) -> RelevancePairs | None:
    """The pairs (left[k], right[k]), sorted by left and right; None if there are none."""
    if not len(left):
        return None
    order = np.lexsort((right, left))
    left, right = left[order].astype(np.int32), right[order].astype(np.int32)
    return RelevancePairs(view, left, right, texts, is_heldout(left, right, config.heldout_share))


def is_heldout(left: np.ndarray, right: np.ndarray, share: float) -> np.ndarray:
    """Whether each pair (left[k], right[k]) is held out, by a hash of both ends."""
    key = mix64(left.astype(np.uint64) * np.uint64(2**32) + right.astype(np.uint64))
    return key < np.uint64(min(max(share, 0.0), 1.0) * (2**64 - 2**11))


def co_occurrence_pairs(
    con: ibis.BaseBackend, training: ir.Table, has_sessions: bool, config: PairsConfig
) -> RelevancePairs | None:
    """The `per_item` best partners of each item, by count / sqrt(popularity).

    Without the root, best-sellers come first for every item; with the popularity itself, rare items
    do. With the root the order is that of the cosine of the items' sessions.

    In DuckDB the self-join runs over slices of the left items: memory does not grow with the log.

    Args:
      con: the database of `training`; tables are added to it.
      training: user, session, item, place of the training rows.
      has_sessions: True pairs the items of a session; False those within a window of a history.
      config: limits of the pairs.
    """
    frequent = training.group_by("item").agg(popularity=training.count())
    frequent = database.save(
        con, "frequent_items", frequent.filter(frequent["popularity"] >= config.min_count)
    )
    joined = training.inner_join(frequent.select("item"), "item")
    if has_sessions:
        # A fixed hash of the item number takes a fair sample of a large session.
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
        events = database.save(con, "neighbours", _neighbours(events, config))
    # Spark spreads the groups over its machines by itself.
    slices = 1 if con.name == spark.NAME else 1 + int(num_rows) // PAIRS_AT_ONCE
    for part in range(slices):
        count_pairs = _session_pairs if has_sessions else _window_pairs
        counts = count_pairs(events, slices, part)
        best = _best_partners(counts, frequent, config)
        if part == 0:
            best = database.save(con, "co_occurrence", best)
        else:
            con.insert("co_occurrence", best)
    return _undirected(con, con.table("co_occurrence"), config)


def _session_pairs(events: ir.Table, slices: int, part: int) -> ir.Table:
    """left, right, count and weight of the items that share a session, for one slice of left."""
    left = events.filter(events["item"] % slices == part).rename(left="item")
    right = events.view().rename(right="item")
    pairs = left.inner_join(right, ["user", "session"])
    pairs = pairs.filter(pairs["left"] != pairs["right"])
    return pairs.group_by("left", "right").agg(
        count=pairs.count(), weight=pairs.count().cast("float64")
    )


def _neighbours(events: ir.Table, config: PairsConfig) -> ir.Table:
    """left, right and distance of the different items within a window of a history, one way."""
    order = ibis.window(group_by="user", order_by="place")
    parts = []
    for distance in range(1, config.window + 1):
        ahead = events.select(
            left="item",
            right=events["item"].lead(distance).over(order),
            distance=ibis.literal(distance, "int32"),
        )
        parts.append(ahead.filter(ahead["right"].notnull() & (ahead["left"] != ahead["right"])))
    return ibis.union(*parts) if len(parts) > 1 else parts[0]


def _window_pairs(neighbours: ir.Table, slices: int, part: int) -> ir.Table:
    """left, right, count and weight of neighbours, both ways; a pair weighs 1 / distance."""
    back = neighbours.select(left="right", right="left", distance="distance")
    pairs = neighbours.union(back)
    pairs = pairs.filter(pairs["left"] % slices == part)
    # A sum of whole numbers is the same in any order of rows; a sum of fractions is not.
    whole = (2520 / pairs["distance"]).round().cast("int64").sum()
    weight = whole.cast("float64") / 2520.0
    return pairs.group_by("left", "right").agg(count=pairs.count(), weight=weight)


def _best_partners(counts: ir.Table, frequent: ir.Table, config: PairsConfig) -> ir.Table:
    """left, right, score, count and rank of the best `per_item` partners of each left item."""
    counts = counts.filter(counts["count"] >= config.min_count)
    counts = counts.inner_join(frequent, counts["right"] == frequent["item"])
    popularity = counts["popularity"].cast("float64")
    # A square root is exact to the last bit in every engine; other powers are not.
    scored = counts.mutate(score=counts["weight"] / popularity.sqrt())
    order = [(scored["score"] * 1e9).floor().desc(), scored["right"]]
    rank = ibis.row_number().over(group_by=scored["left"], order_by=order)
    ranked = scored.select("left", "right", "score", "count", rank=rank)
    return ranked.filter(ranked["rank"] < config.per_item)


def _undirected(
    con: ibis.BaseBackend, best: ir.Table, config: PairsConfig
) -> RelevancePairs | None:
    """Each pair once, with the better of its two ranks; of these the best `max_pairs`."""
    low, high = ibis.least(best["left"], best["right"]), ibis.greatest(best["left"], best["right"])
    both = best.select("rank", "count", low=low, high=high)
    pairs = both.group_by("low", "high").agg(rank=both["rank"].min(), count=both["count"].max())
    kept = database.save(con, "co_pairs", pairs)
    number = database.count(con, kept)
    if number > config.max_pairs:
        order = [kept["rank"], kept["count"].desc(), kept["low"], kept["high"]]
        kept = database.save(con, "best_co_pairs", kept.order_by(order).limit(config.max_pairs))
        number = config.max_pairs
    dtypes = {"low": np.int32, "high": np.int32}
    columns = database.columns(con, kept, dtypes, number)
    return make_pairs("co_occurrence", columns["low"], columns["high"], None, config)


def visual_pairs(vectors: np.ndarray, config: PairsConfig, seed: int) -> RelevancePairs | None:
    """Pairs of nearest neighbours by cosine; None if no cosine reaches `min_cosine`.

    Up to VISUAL_CELL items the search is exact. A larger catalogue is split into cells, so the cost
    grows with the catalogue and not with its square. A neighbour in another cell is missed.

    Args:
      vectors: [I, D], visual vectors.
      config: limits of the pairs.
      seed: of the cells, and of the sample if there are more than `max_pairs`.
    """
    lefts, rights = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for cell in _cells(vectors, seed):
        rows = unit_rows(vectors[cell])
        count = min(config.per_item, len(cell) - 1)
        for start in range(0, len(cell) if count > 0 else 0, 1024):
            cosines = rows[start : start + 1024] @ rows.T
            row = np.arange(len(cosines))
            cosines[row, start + row] = -np.inf  # an item is not its own partner
            nearest = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
            kept = np.take_along_axis(cosines, nearest, 1) >= config.min_cosine
            lefts.append(cell[start + np.repeat(row, kept.sum(1))])
            rights.append(cell[nearest[kept]])
    left, right = np.concatenate(lefts), np.concatenate(rights)
    keys = np.minimum(left, right).astype(np.int64) * len(vectors) + np.maximum(left, right)
    keys = np.unique(keys)
    if len(keys) > config.max_pairs:
        keys = np.sort(np.random.default_rng(seed).choice(keys, config.max_pairs, replace=False))
    return make_pairs("visual", keys // len(vectors), keys % len(vectors), None, config)


def _cells(vectors: np.ndarray, seed: int) -> list[np.ndarray]:
    """Groups of at most VISUAL_CELL similar rows: a row joins the nearest of a few drawn rows."""
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
