"""ScaNN over the items of one prefix.

ScaNN divides the items into partitions and searches some of them for a query. The number of
partitions is measured when the searcher is built: it grows until the recall is RECALL. The recall
is the share of the exact nearest items that ScaNN finds.

The measurement takes queries from the caller, or items of the prefix with noise of the same length.
The noise is needed because a model's queries lie near many items and at none of them.

Axes: n queries; I items, D dimensions, k items found.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int

from sigma_jax.data.vectors import unit_rows

HAS_SCANN = importlib.util.find_spec("scann") is not None  # scann has no wheels for some systems
RECALL = 0.98
RECALL_QUERIES = 256  # queries that measure the recall
TRAINING_ROWS = 100_000  # items that ScaNN trains its partitions on


@dataclasses.dataclass(frozen=True)
class Searcher:
    """ScaNN over the rows of one prefix, with the measured settings of a search."""

    scann: Any
    count: int  # items of a search in the measurement
    partitions: int  # partitions searched for `count` items
    all_partitions: int  # partitions of the prefix
    candidates: int  # items scored exactly for `count` items
    recall: float  # share of the exact nearest `count` items that are found
    folder: Path | None = None  # folder that it was loaded from

    @classmethod
    def build(
        cls,
        vectors: Float32[np.ndarray, "I D"],
        count: int,
        queries: Float32[np.ndarray, "n D"] | None = None,
    ) -> Searcher:
        """A searcher of `vectors`, measured on searches of `count` items.

        Args:
          queries: examples of the queries to come. None: rows of `vectors` with noise.
        """
        import scann

        size, count = len(vectors), min(count, len(vectors))
        total = max(int(np.sqrt(size)), 1)
        builder = scann.scann_ops_pybind.builder(vectors, count, "dot_product")
        builder = builder.tree(
            num_leaves=total,
            num_leaves_to_search=max(total // 50, 1),
            training_sample_size=min(size, TRAINING_ROWS),
        )
        builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2)
        searcher = builder.reorder(4 * count).build()
        rng = np.random.default_rng(0)
        if queries is None:
            noise = rng.normal(size=(RECALL_QUERIES, vectors.shape[1]))
            drawn = vectors[rng.integers(0, size, RECALL_QUERIES)]
            queries = unit_rows(drawn + noise / np.linalg.norm(noise, axis=1, keepdims=True))
        queries = np.ascontiguousarray(
            queries[rng.permutation(len(queries))[:RECALL_QUERIES]], np.float32
        )
        exact = top_rows(queries @ vectors.T, count)[0]
        partitions, candidates = max(total // 50, 1), 4 * count
        while True:
            found, _ = searcher.search_batched(queries, count, candidates, partitions)
            recall = np.mean(
                [np.isin(a, b).mean() for a, b in zip(exact, np.asarray(found), strict=True)]
            )
            if recall >= RECALL or (partitions >= total and candidates >= size):
                return cls(searcher, count, partitions, total, candidates, float(recall))
            if partitions < total:
                partitions = min(partitions + max(partitions // 2, 1), total)
            else:
                candidates = min(2 * candidates, size)

    def save(self, folder: Path) -> dict[str, float]:
        """Writes `folder`, and returns the settings that `load` needs.

        A searcher that was loaded from a folder links to the files there.
        """
        if self.folder is None:
            folder.mkdir()
            self.scann.serialize(str(folder), relative_path=True)
        else:
            shutil.copytree(self.folder, folder, copy_function=_link)
        names = ("count", "partitions", "all_partitions", "candidates", "recall")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def load(cls, folder: Path, settings: Mapping[str, Any]) -> Searcher:
        """The searcher that `save` wrote. ValueError if scann is not installed."""
        if not HAS_SCANN:
            raise ValueError(
                f"{folder} needs the package scann, which is not installed; install it, or run "
                "`sigma_jax.recommend` with --retrieval=exact."
            )
        import scann

        return cls(scann.scann_ops_pybind.load_searcher(str(folder)), **settings, folder=folder)

    def __call__(
        self, queries: Float32[np.ndarray, "n D"], count: int
    ) -> tuple[Int[np.ndarray, "n k"], Float32[np.ndarray, "n k"]]:
        """(rows, products) of all candidates of a search for `count` items, best first.

        There are at least `count` columns if the prefix has as many items. Row -1 with product -inf
        stands where ScaNN returns fewer.
        """
        factor = max(count / self.count, 1.0)  # the settings grow in proportion to the items
        candidates = min(math.ceil(factor * self.candidates), self.scann.size())
        partitions = min(math.ceil(factor * self.partitions), self.all_partitions)
        rows, products = self.scann.search_batched_parallel(
            queries, candidates, candidates, partitions
        )
        rows, products = np.asarray(rows, np.int64), np.asarray(products, np.float32)
        is_found = np.isfinite(products)
        return np.where(is_found, rows, -1), np.where(is_found, products, -np.inf)


def _link(source: str, target: str) -> None:
    """A hard link from `target` to `source`, or a copy if the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def top_rows(
    products: Float32[np.ndarray, "n I"], count: int
) -> tuple[Int[np.ndarray, "n k"], Float32[np.ndarray, "n k"]]:
    """(columns, values) of the `count` largest entries of each row, best first."""
    if count < products.shape[1]:
        rows = np.argpartition(-products, count - 1, axis=1)[:, :count]
    else:
        rows = np.broadcast_to(np.arange(products.shape[1]), products.shape)
    values = np.take_along_axis(products, rows, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(values, order, axis=1)
