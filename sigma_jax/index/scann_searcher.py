"""ScaNN over the items of one prefix.

How far it looks is not configured but measured when it is built: it looks into more of its
partitions until it finds RECALL of what a product finds. The queries for that are given, or items
of the prefix with as much noise: a model's queries lie near many items and at none.

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

HAS_SCANN = importlib.util.find_spec("scann") is not None  # it has no wheels for some systems
RECALL = 0.98
SAMPLE = 256  # queries that recall is measured with
TRAINING_ROWS = 100_000


@dataclasses.dataclass(frozen=True)
class Searcher:
    """ScaNN over the rows of one prefix, and how far it has to look."""

    scann: Any
    count: int  # items asked for, when it was measured
    partitions: int  # it looks into for so many, of
    all_partitions: int
    candidates: int  # that are scored exactly
    recall: float  # measured
    folder: Path | None = None  # where it is stored

    @classmethod
    def build(
        cls,
        vectors: Float32[np.ndarray, "I D"],
        count: int,
        queries: Float32[np.ndarray, "n D"] | None = None,
    ) -> Searcher:
        """Over `vectors`, for searches of about `count` items by such `queries`."""
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
            noise = rng.normal(size=(SAMPLE, vectors.shape[1]))
            drawn = vectors[rng.integers(0, size, SAMPLE)]
            queries = unit_rows(drawn + noise / np.linalg.norm(noise, axis=1, keepdims=True))
        queries = np.ascontiguousarray(queries[rng.permutation(len(queries))[:SAMPLE]], np.float32)
        exact = top_rows(queries @ vectors.T, count)[0]
        looked, candidates = max(total // 50, 1), 4 * count
        while True:
            found, _ = searcher.search_batched(queries, count, candidates, looked)
            recall = np.mean(
                [np.isin(a, b).mean() for a, b in zip(exact, np.asarray(found), strict=True)]
            )
            if recall >= RECALL or (looked >= total and candidates >= size):
                return cls(searcher, count, looked, total, candidates, float(recall))
            if looked < total:
                looked = min(looked + max(looked // 2, 1), total)
            else:
                candidates = min(2 * candidates, size)

    def save(self, folder: Path) -> dict[str, float]:
        """Writes `folder`; returns the settings that `load` needs."""
        if self.folder is None:
            folder.mkdir()
            self.scann.serialize(str(folder), relative_path=True)
        else:
            shutil.copytree(self.folder, folder, copy_function=_link)
        names = ("count", "partitions", "all_partitions", "candidates", "recall")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def load(cls, folder: Path, settings: Mapping[str, Any]) -> Searcher:
        """What `save` wrote. ValueError where scann is not installed."""
        if not HAS_SCANN:
            raise ValueError(
                f"{folder} needs scann, which is not installed here; install it, or recommend "
                "with `sigma_jax.recommend --retrieval=exact`."
            )
        import scann

        return cls(scann.scann_ops_pybind.load_searcher(str(folder)), **settings, folder=folder)

    def __call__(
        self, queries: Float32[np.ndarray, "n D"], count: int
    ) -> tuple[Int[np.ndarray, "n k"], Float32[np.ndarray, "n k"]]:
        """Rows and products, best first, of all that it compares exactly to find `count`; -1 where
        ScaNN gives none."""
        more = max(count / self.count, 1.0)  # times as far for as many times more
        candidates = min(math.ceil(more * self.candidates), self.scann.size())
        partitions = min(math.ceil(more * self.partitions), self.all_partitions)
        rows, products = self.scann.search_batched_parallel(
            queries, candidates, candidates, partitions
        )
        rows, products = np.asarray(rows, np.int64), np.asarray(products, np.float32)
        is_found = np.isfinite(products)
        return np.where(is_found, rows, -1), np.where(is_found, products, -np.inf)


def _link(source: str, target: str) -> None:
    """The same file under another name, or a copy where that cannot be."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def top_rows(
    products: Float32[np.ndarray, "n I"], count: int
) -> tuple[Int[np.ndarray, "n k"], Float32[np.ndarray, "n k"]]:
    """Columns and values of the `count` largest of each row, best first."""
    if count < products.shape[1]:
        rows = np.argpartition(-products, count - 1, axis=1)[:, :count]
    else:
        rows = np.broadcast_to(np.arange(products.shape[1]), products.shape)
    values = np.take_along_axis(products, rows, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(values, order, axis=1)
