"""Batches of relevance pairs over all views, by (seed, step) alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import grain
import numpy as np
from jaxtyping import Float32, Int64

from sigma_jax.grounding.texts import TokenTable
from sigma_jax.schema import VIEWS, PreparedData, RelevancePairs

Batch = dict[str, np.ndarray]
FOREVER = 2**40  # steps; nobody gets there


def check_mixture(views: Mapping[str, float]) -> None:
    """ValueError if a weight is negative or names no view, or all are 0."""
    for view, weight in views.items():
        if view not in VIEWS:
            raise ValueError(f"mixture.{view} is no view; use {', '.join(VIEWS)}.")
        if not weight >= 0:
            raise ValueError(f"mixture.{view}={weight}; use 0 to leave a view out, or more.")
    if not any(views.values()):
        raise ValueError(f"mixture={dict(views)} weighs no view; give one a weight above 0.")


def mixture(views: Mapping[str, float], data: PreparedData) -> dict[str, float]:
    """Share of each view that has training pairs and a weight, summing to 1.

    ValueError if the data has no training pairs of those views.
    """
    usable = {
        view: weight
        for view, weight in views.items()
        if weight > 0 and view in data.pairs and not data.pairs[view].is_heldout.all()
    }
    if not usable:
        raise ValueError(
            f"no relevance pairs to train on: the data has {sorted(data.pairs)}, mixture asks for "
            f"{sorted(view for view in views if views[view] > 0)}; weigh a view that exists."
        )
    total = sum(usable.values())
    return {view: weight / total for view, weight in usable.items()}


def left_rows(pairs: RelevancePairs, table: TokenTable, chosen: np.ndarray) -> np.ndarray:
    """Rows of `table` for the left sides of the `chosen` pairs."""
    offset = table.first_row.get(pairs.view, 0) if pairs.left_texts is not None else 0
    return pairs.left[chosen].astype(np.int64) + offset


@dataclasses.dataclass(frozen=True)
class PairBatches:
    """What a batch of `pairs` pairs is made of; left sides first, then right sides (2B rows)."""

    data: PreparedData
    table: TokenTable
    shares: dict[str, float]
    id_vectors: Float32[np.ndarray, "I D"] | None
    pairs: int
    seed: int

    def dataset(self, rows: Int64[np.ndarray, " n"] | None = None) -> grain.MapDataset:
        """Element s is the batch of step s, whatever was read before, or `rows` of it."""
        return grain.MapDataset.range(FOREVER).map(lambda step: self.batch(step, rows))

    def draw(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Number of the view (in VIEWS), left and right rows of the B pairs of a step.

        Drawn with replacement, a view by its share and a pair of it evenly; held-out pairs are
        drawn again, which needs no list of the others.
        """
        random = np.random.default_rng([self.seed, step])
        names = list(self.shares)
        views = random.choice(len(names), self.pairs, p=list(self.shares.values()))
        left, right = np.zeros((2, self.pairs), np.int64)
        for number, name in enumerate(names):
            slots = np.flatnonzero(views == number)
            source = self.data.pairs[name]
            chosen = random.integers(0, len(source.right), len(slots))
            while (again := np.flatnonzero(source.is_heldout[chosen])).size:
                chosen[again] = random.integers(0, len(source.right), len(again))
            left[slots], right[slots] = left_rows(source, self.table, chosen), source.right[chosen]
        return np.array([VIEWS.index(name) for name in names], np.int32)[views], left, right

    def batch(self, step: int, rows: Int64[np.ndarray, " n"] | None = None) -> Batch:
        """tokens [2B, T], length, key, view [2B]; id_vectors [2B, D], has_id [2B] if there are;
        or `rows` of these.

        Equal texts have one key. A row without ID vector (a query, a theme, an item whose vector
        is zero) has zeros.
        """
        view, left, right = self.draw(int(step))
        view, texts = np.concatenate([view, view]), np.concatenate([left, right])
        if rows is not None:
            view, texts = view[rows], texts[rows]
        tokens, lengths = self.table.batch(texts)
        batch = {
            "tokens": tokens,
            "length": lengths,
            "key": np.asarray(self.table.key[texts]),
            "view": view,
        }
        if self.id_vectors is not None:
            is_item = texts < len(self.data.catalogue)
            vectors = np.asarray(self.id_vectors[np.where(is_item, texts, 0)], np.float32)
            batch["id_vectors"] = np.where(is_item[:, None], vectors, 0)
            batch["has_id"] = batch["id_vectors"].any(axis=1)
        return batch


def held_out(
    pairs: RelevancePairs, table: TokenTable, count: int, seed: int
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """At most `count` held-out pairs, the same for a seed: left rows and right items."""
    chosen = np.flatnonzero(pairs.is_heldout)
    if len(chosen) > count:
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, count, replace=False))
    return left_rows(pairs, table, chosen), pairs.right[chosen].astype(np.int64)
