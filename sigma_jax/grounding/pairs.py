"""Batches of relevance pairs of all views; a batch depends on (seed, step) only."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import grain
import numpy as np
from absl import logging
from jaxtyping import Float32, Int32, Int64

from sigma_jax.schema import VIEWS, PreparedData, RelevancePairs, load_item_vectors

Batch = dict[str, np.ndarray]
FOREVER = 2**40  # number of steps of the dataset; no run is that long


class TextTable(Protocol):
    """All texts as inputs of a model: first those of the items, then the left texts of views."""

    @property
    def key(self) -> Int32[np.ndarray, " texts"]:
        """The key of each text; equal texts share one."""

    @property
    def first_row(self) -> dict[str, int]:
        """View -> row of its first left text."""

    def inputs(self, rows: Int64[np.ndarray, " B"]) -> Batch:
        """Arrays [B, ...] for the texts `rows`."""


def id_vectors_of(data: PreparedData, workdir: Path) -> Float32[np.ndarray, "I D"] | None:
    """The ID vectors of the data or of the stage `teacher`; None, which is logged, without any.

    ValueError if they are of another number of items.
    """
    teacher = workdir / "teacher" / "id_vectors.npy"
    vectors = data.id_vectors
    if vectors is None and teacher.exists():
        vectors = load_item_vectors(teacher)
    if vectors is None:
        logging.warning(
            "grounding: no distillation (Eq. 3), because neither the data nor a teacher has ID "
            "vectors"
        )
    elif len(vectors) != len(data.catalogue):
        raise ValueError(
            f"there are {len(vectors)} ID vectors for {len(data.catalogue)} items; "
            "run the teacher or `sigma_jax.prepare` again."
        )
    return vectors


def check_mixture(views: Mapping[str, float]) -> None:
    """ValueError if a weight is negative, a name is no view, or all weights are 0."""
    for view, weight in views.items():
        if view not in VIEWS:
            raise ValueError(f"mixture.{view} is no view; use names out of {', '.join(VIEWS)}.")
        if not weight >= 0:
            raise ValueError(f"mixture.{view}={weight}; use 0 to leave a view out, or more.")
    if not any(views.values()):
        raise ValueError(f"mixture={dict(views)} has no weight above 0; give one view a weight.")


def mixture(views: Mapping[str, float], data: PreparedData) -> dict[str, float]:
    """View -> share of the training pairs; the shares sum to 1.

    Views without weight or without training pairs are left out. ValueError if none remains.
    """
    usable = {
        view: weight
        for view, weight in views.items()
        if weight > 0 and view in data.pairs and not data.pairs[view].is_heldout.all()
    }
    if not usable:
        remedy = "give a weight to a view of the data"
        if not data.pairs:  # such as a catalogue of one item, or a log of one item
            remedy = (
                "name a sentence encoder with --config.data.text_encoder and prepare the data "
                "again: it needs no pairs"
            )
        raise ValueError(
            f"no relevance pairs to train on: the data have views {sorted(data.pairs)} but mixture "
            f"has weights for {sorted(view for view in views if views[view] > 0)}; {remedy}."
        )
    total = sum(usable.values())
    return {view: weight / total for view, weight in usable.items()}


def left_rows(pairs: RelevancePairs, table: TextTable, chosen: np.ndarray) -> np.ndarray:
    """Rows of `table` of the left sides of the `chosen` pairs."""
    offset = table.first_row.get(pairs.view, 0) if pairs.left_texts is not None else 0
    return pairs.left[chosen].astype(np.int64) + offset


@dataclasses.dataclass(frozen=True)
class PairBatches:
    """Batches of B = `pairs` pairs: 2B rows, first the left sides, then the right sides."""

    data: PreparedData
    table: TextTable
    shares: dict[str, float]
    id_vectors: Float32[np.ndarray, "I D"] | None
    pairs: int
    seed: int

    @property
    def epoch_steps(self) -> float:
        """Number of steps that draw as many pairs as the views have."""
        return sum(len(self.data.pairs[view].right) for view in self.shares) / self.pairs

    def dataset(self, rows: Int64[np.ndarray, " n"] | None = None) -> grain.MapDataset:
        """Element s is the batch of step s, or `rows` of it."""
        return grain.MapDataset.range(FOREVER).map(lambda step: self.batch(step, rows))

    def draw(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """View (its number in VIEWS), left row and right row of each of the B pairs of a step.

        Pairs are drawn with replacement: first a view by its share, then one of its pairs
        uniformly. A held-out pair is redrawn, so no list of the other pairs is needed.
        """
        random = np.random.default_rng([self.seed, step])
        names = list(self.shares)
        views = random.choice(len(names), self.pairs, p=list(self.shares.values()))
        left, right = np.zeros((2, self.pairs), np.int64)
        for number, name in enumerate(names):
            slots = np.flatnonzero(views == number)
            source = self.data.pairs[name]
            chosen = random.integers(0, len(source.right), len(slots))
            while (heldout := np.flatnonzero(source.is_heldout[chosen])).size:
                chosen[heldout] = random.integers(0, len(source.right), len(heldout))
            left[slots], right[slots] = left_rows(source, self.table, chosen), source.right[chosen]
        return np.array([VIEWS.index(name) for name in names], np.int32)[views], left, right

    def batch(self, step: int, rows: Int64[np.ndarray, " n"] | None = None) -> Batch:
        """The batch of a step, or `rows` of it.

        Arrays: those of `TextTable.inputs`, key and view [2B]; with ID vectors also id_vectors
        [2B, D] and has_id [2B]. Equal texts have one key. A row without ID vector (a query, a
        theme, an item whose vector is zero) has zeros.
        """
        view, left, right = self.draw(int(step))
        view, texts = np.concatenate([view, view]), np.concatenate([left, right])
        if rows is not None:
            view, texts = view[rows], texts[rows]
        batch = {
            **self.table.inputs(texts),
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
    pairs: RelevancePairs, table: TextTable, count: int, seed: int
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Left rows and right items of at most `count` held-out pairs, drawn by `seed`."""
    chosen = np.flatnonzero(pairs.is_heldout)
    if len(chosen) > count:
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, count, replace=False))
    return left_rows(pairs, table, chosen), pairs.right[chosen].astype(np.int64)
