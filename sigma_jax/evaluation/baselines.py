"""The rankings of all baselines for the requests of an evaluation, and the shortcuts of its log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import scipy.sparse as sparse
from jaxtyping import Int32

from sigma_jax.baselines.popularity import Popularity
from sigma_jax.baselines.registry import (
    SLOW,
    Baseline,
    fit_baselines,
    recommend_variants,
    some_requests,
    specs,
)
from sigma_jax.baselines.sasrec import sasrec_baselines
from sigma_jax.data.vectors import item_vectors
from sigma_jax.evaluation.score import FILTERED
from sigma_jax.evaluation.shortcuts import shortcut_figures
from sigma_jax.reranking.history.covisitation import kept_counts
from sigma_jax.reranking.reranker import FeatureTables
from sigma_jax.schema import PreparedData, Requests
from sigma_jax.tasks.constraints import AllowedItems, allowed_items

LIST_LENGTH = 20  # items recommended to each request


class BaselineSettings(Protocol):
    """The settings of an evaluation that say which baselines it has."""

    @property
    def has_slow_baselines(self) -> bool:
        """Whether those of registry.SLOW are among them."""

    @property
    def has_filtered_baselines(self) -> bool:
        """Whether they are ranked among the allowed items too."""


ByMode = Mapping[str, Int32[np.ndarray, "N K"]]


def baseline_rankings(
    workdir: Path,
    data: PreparedData,
    requests: Requests,
    valid: Requests,
    seed: int,
    is_refitted: bool,
    settings: BaselineSettings,
    tables: Callable[[PreparedData], FeatureTables | None] = lambda data: None,
) -> dict[str, ByMode]:
    """`rankings[method][mode]` of the baselines, and of the SASRec in WORKDIR/teacher.

    Args:
      valid: validation requests, which baselines choose their settings on.
      is_refitted: baselines are counted again with the validation rows; rows before it too.
      settings: which baselines, and whether they are ranked a second time, among the items that a
        request allows.
      tables: as of baselines.registry.specs.
    """
    vectors = item_vectors(workdir, len(data.catalogue))

    def covisits(rows: PreparedData) -> sparse.csr_matrix | None:
        return kept_counts(workdir) if rows is data else None

    found = specs(data, vectors, seed, tables, covisits)
    if not settings.has_slow_baselines:
        found = {name: spec for name, spec in found.items() if name not in SLOW}
    baselines = fit_baselines(found, data, valid, seed, is_refitted)
    baselines |= sasrec_baselines(workdir, Popularity.fit(data, seed))
    limits: dict[str, AllowedItems | None] = {"": None}
    if settings.has_filtered_baselines:
        limits[FILTERED] = allowed_items(data, requests)
    return {
        name + suffix: by_mode
        for name, baseline in baselines.items()
        for suffix, by_mode in ranked(baseline, data, requests, limits).items()
    }


def ranked(
    baseline: Baseline,
    data: PreparedData,
    requests: Requests,
    limits: Mapping[str, AllowedItems | None],
) -> dict[str, ByMode]:
    """`lists[suffix][mode]`: with and without seen items, among the allowed items of `limits`."""
    modes = ("include_seen", "exclude_seen")
    variants = [(mode == "exclude_seen", limit) for limit in limits.values() for mode in modes]
    lists = iter(recommend_variants(baseline, data, requests, LIST_LENGTH, variants))
    return {suffix: {mode: next(lists) for mode in modes} for suffix in limits}


def shortcuts_of(
    workdir: Path, data: PreparedData, valid: Requests, seed: int
) -> Mapping[str, float]:
    """The figures of evaluation/shortcuts.py of a prepared log."""
    vectors = item_vectors(workdir, len(data.catalogue))
    features = vectors.get("text", vectors.get("id"))
    return shortcut_figures(data, features, some_requests(valid, seed), seed)
