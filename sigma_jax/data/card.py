"""The data card: counts, checksums, examples, and what this data cannot serve."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow.compute as pc

from sigma_jax.data import database
from sigma_jax.data.tables import Tables
from sigma_jax.schema import Catalogue, Histories, Queries, RelevancePairs, Themes


def checksums(files: Mapping[str, str]) -> dict[str, str]:
    """SHA-256 of each file or URL, by what it is used as, such as items: two may share a name."""
    return {use: checksum(path) for use, path in files.items()}


def checksum(name: str) -> str:
    """SHA-256 of a file or URL, read in pieces."""
    import fsspec

    with fsspec.open(name, "rb") if database.is_url(name) else open(name, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def counts(
    con: ibis.BaseBackend,
    catalogue: Catalogue,
    histories: Histories,
    interactions: ir.Table,
    item_texts: ir.Table,
    has_sessions: bool,
) -> dict[str, Any]:
    """Sizes, density and times of what was prepared."""
    num_events, num_users = len(histories.item), histories.num_users
    sizes = np.diff(histories.offsets)
    last = histories.offsets[1:][sizes > 0] - 1
    num_sessions = int((histories.session[last] + 1).sum()) if len(last) else 0
    cut = item_texts.filter(item_texts["num_cut"] > 0)
    return {
        "items": len(catalogue),
        "items_in_source": database.count(con, item_texts),
        "items_without_training_rows": int((catalogue.popularity == 0).sum()),
        "users": num_users,
        "users_without_history": int((sizes == 0).sum()),
        "lines_in_source": database.count(con, interactions),
        "interactions": num_events,
        "sessions": num_sessions,
        "interactions_per_user": round(num_events / max(num_users, 1), 2),
        "interactions_per_session": round(num_events / max(num_sessions, 1), 2),
        "sessions_hold_several_items": has_sessions,
        "density": float(f"{num_events / max(num_users * len(catalogue), 1):.3g}"),
        "first_time": int(histories.time.min()),
        "last_time": int(histories.time.max()),
        "categories": len(catalogue.categories),
        "items_with_cut_text": database.count(con, cut),
    }


def split_figures(histories: Histories) -> dict[str, int]:
    """How many rows are training and how many users have each target."""
    return {
        "training_rows": int((histories.valid_start - histories.offsets[:-1]).sum()),
        "users_with_validation_target": len(histories.valid_users()),
        "users_with_test_target": len(histories.test_users()),
    }


def pair_figures(view: RelevancePairs, catalogue: Catalogue) -> dict[str, Any]:
    """Count, held-out count and three examples, evenly spread."""
    rows = np.linspace(0, len(view.left) - 1, min(3, len(view.left))).astype(np.int64)
    left = view.left[rows]
    if view.left_texts is None:
        texts = catalogue.titles(left)
    else:
        texts = view.left_texts.take(left).to_pylist()
    right = catalogue.titles(view.right[rows])
    return {
        "count": len(view.left),
        "heldout": int(view.is_heldout.sum()),
        "examples": [list(pair) for pair in zip(texts, right, strict=True)],
    }


def without_data(
    tables: Tables,
    found_queries: Queries | None,
    found_themes: Themes | None,
    found_pairs: dict[str, RelevancePairs],
    catalogue: Catalogue,
) -> dict[str, str]:
    """Tasks and views this data cannot serve, with the reason."""
    kinds = set(found_themes.kinds.to_pylist()) if found_themes else set()
    missing = {}
    no_search = "there is no table of searches"
    if tables.searches is not None:
        no_search = "no search with clicks stands before its user's targets"
    if not found_queries:
        missing["Query"] = no_search
    if not len(catalogue.categories):
        missing["Category"] = "items have no category column"
    why = "no theme of this kind has items" if tables.has_times else "interactions have no times"
    for task in ("Season", "Holiday"):
        if task.lower() not in kinds:
            missing[task] = why
    reasons = {
        "search": no_search,
        "visual": "there are no visual vectors",
        "theme": "no theme has items",
        "co_occurrence": "no two items come together data.pairs.min_count times",
    }
    views = {f"{view} pairs": why for view, why in reasons.items() if view not in found_pairs}
    return missing | views


def count_texts(catalogue: Catalogue) -> int:
    """Items of which more is known than their id."""
    bare = pc.binary_join_element_wise('{"id": "', catalogue.table["item_id"], '"}', "")
    return int(pc.sum(pc.not_equal(catalogue.table["text"], bare)).as_py() or 0)
