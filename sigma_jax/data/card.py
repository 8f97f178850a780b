"""The data card: sizes, checksums and examples of the data, and the tasks it has no data for."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Mapping
from typing import Any

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow.compute as pc
from absl import logging

from sigma_jax.data import database, readers
from sigma_jax.data.tables import Tables
from sigma_jax.schema import Catalogue, Histories, Queries, RelevancePairs, Themes

FILE = "card.md"


def checksums(files: Mapping[str, str]) -> dict[str, str]:
    """SHA-256 of each file or URL, by its use, such as `items`: two files may share a name."""
    return {use: checksum(path) for use, path in files.items()}


def checksum(name: str) -> str:
    """SHA-256 of a file or URL, which is read in pieces; of a folder, that of its parts."""
    import fsspec

    if (files := readers.files_of(name)) != [name]:
        # With the names of folders: those of partitions are columns.
        start = name.split("*")[0]
        content = "".join(f"{file.removeprefix(start)} {checksum(file)} " for file in files)
        return hashlib.sha256(content.encode()).hexdigest()
    with fsspec.open(name, "rb") if database.is_url(name) else open(name, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_statistics(
    con: ibis.BaseBackend,
    catalogue: Catalogue,
    histories: Histories,
    interactions: ir.Table,
    item_texts: ir.Table,
    has_sessions: bool,
) -> dict[str, Any]:
    """Sizes, density and times of the prepared data.

    Args:
      con: the database of `interactions` and `item_texts`.
      catalogue: the prepared items.
      histories: the prepared interactions.
      interactions: the interactions of the source.
      item_texts: the items of the source, with column num_truncated.
      has_sessions: whether a session can hold several interactions.
    """
    truncated = item_texts.filter(item_texts["num_truncated"] > 0)
    return {
        **log_statistics(catalogue, histories),
        "items_in_source": database.count(con, item_texts),
        "interactions_in_source": database.count(con, interactions),
        "sessions_hold_several_items": has_sessions,
        "items_with_truncated_text": database.count(con, truncated),
    }


def log_statistics(catalogue: Catalogue, histories: Histories) -> dict[str, Any]:
    """The sizes of the prepared items and interactions."""
    num_events, num_users = len(histories.item), histories.num_users
    sizes = np.diff(histories.offsets)
    last = histories.offsets[1:][sizes > 0] - 1
    num_sessions = int((histories.session[last] + 1).sum()) if len(last) else 0
    return {
        "items": len(catalogue),
        "items_without_training_rows": int((catalogue.popularity == 0).sum()),
        "users": num_users,
        "users_without_history": int((sizes == 0).sum()),
        "interactions": num_events,
        "sessions": num_sessions,
        "interactions_per_user": round(num_events / max(num_users, 1), 2),
        "interactions_per_session": round(num_events / max(num_sessions, 1), 2),
        "density": float(f"{num_events / max(num_users * len(catalogue), 1):.3g}"),
        "first_time": int(histories.time.min()),
        "last_time": int(histories.time.max()),
        "categories": len(catalogue.categories),
    }


def split_statistics(histories: Histories) -> dict[str, int]:
    """The number of training rows, and of users with each target."""
    return {
        "training_rows": int((histories.valid_start - histories.offsets[:-1]).sum()),
        "users_with_validation_target": len(histories.valid_users()),
        "users_with_test_target": len(histories.test_users()),
    }


def pair_statistics(view: RelevancePairs, catalogue: Catalogue) -> dict[str, Any]:
    """The number of pairs, of held-out pairs, and at most three examples, evenly spread."""
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


def unavailable(
    tables: Tables,
    queries: Queries | None,
    themes: Themes | None,
    pairs: Mapping[str, RelevancePairs],
    catalogue: Catalogue,
) -> dict[str, str]:
    """The tasks and the views of pairs that this data does not support, each with the reason.

    Worked example: without a table of searches {"Query": "there is no table of searches", "search
    pairs": "there is no table of searches"}.
    """
    kinds = set(themes.kinds.to_pylist()) if themes else set()
    reasons = {}
    no_search = "there is no table of searches"
    if tables.searches is not None:
        no_search = "every search has no clicks or comes after its user's first target"
    if not queries:
        reasons["Query"] = no_search
    if not len(catalogue.categories):
        reasons["Category"] = "items have no category column"
    no_theme = "no theme of this kind has items"
    if not tables.has_times:
        no_theme = "interactions have no times"
    for task in ("Season", "Holiday"):
        if task.lower() not in kinds:
            reasons[task] = no_theme
    no_pairs = {
        "search": no_search,
        "visual": "there are no visual vectors",
        "theme": "no theme has items",
        "co_occurrence": "no two items come together data.pairs.min_count times",
        "knowledge": "there is no table of knowledge",
    }
    return reasons | {
        f"{view} pairs": reason for view, reason in no_pairs.items() if view not in pairs
    }


def count_texts(catalogue: Catalogue) -> int:
    """The number of items whose text holds more than their id."""
    id_only = pc.binary_join_element_wise('{"id": "', catalogue.table["item_id"], '"}', "")
    return int(pc.sum(pc.not_equal(catalogue.table["text"], id_only)).as_py() or 0)


def warnings(data_card: Mapping[str, Any]) -> list[str]:
    """A line for each property of the data that may surprise its user, with the remedy."""
    found = list(data_card["notes"])
    found += [
        f"{number} rows of {table} have an unknown item_id and were dropped"
        for table, number in data_card["dropped_rows"].items()
    ]
    if number := data_card["unmatched_knowledge"]:
        found.append(
            f"{number} rows of knowledge speak of an item or a category that the catalogue does "
            "not have, and were dropped"
        )
    if number := data_card["items_with_truncated_text"]:
        found.append(
            f"the text of {number} items was truncated; "
            "raise --config.data.text.max_chars to keep it"
        )
    is_by_session = data_card["split"]["kind"] != "leave_one_out"
    if is_by_session and not data_card["sessions_hold_several_items"]:
        found.append(
            "every interaction is a session of its own; if people take several items at once, "
            "give interactions a session_id or set --config.data.split.session_gap_seconds=1800"
        )
    return found


def render(data_card: Mapping[str, Any]) -> str:
    """The data card as a Markdown page."""
    sizes = {name: value for name, value in data_card.items() if not _is_group(value)}
    for name in ("first_time", "last_time"):
        sizes[name] = datetime.datetime.fromtimestamp(sizes[name], datetime.UTC).date()
    parts = [
        "# Data card",
        _table(sizes),
        "## Split",
        _table(data_card["split"]),
        "## Pairs",
        _table(
            {
                f"{view}: {' - '.join(statistics['examples'][0])}": statistics["count"]
                for view, statistics in data_card["pairs"].items()
            }
        ),
        "## Not available",
        _table(data_card["unavailable"]),
        "## Warnings",
        "\n".join(f"- {warning}" for warning in warnings(data_card)) or "None.",
        "## Files, by SHA-256",
        _table(data_card["files"]),
        "`manifest.json` has more: `metrics` holds themes, vectors and the text tokenizer too.",
    ]
    return "\n\n".join(parts) + "\n"


def _is_group(value: Any) -> bool:
    return isinstance(value, Mapping | list)


def _table(rows: Mapping[str, Any]) -> str:
    """A Markdown table of names and values."""
    if not rows:
        return "None."
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *(" ".join(line.split()) for line in lines)])


def log_card(data_card: dict[str, Any]) -> None:
    """Logs the data card in a few lines; FILE shows more, and the manifest holds all of it."""
    logging.info(
        "data: %d items, %d users, %d interactions in %d sessions, %d test targets, in %s s",
        *(data_card[name] for name in ("items", "users", "interactions", "sessions")),
        data_card["split"]["users_with_test_target"],
        data_card["seconds"],
    )
    for warning in warnings(data_card):
        logging.warning("data: %s", warning)
    for view, statistics in data_card["pairs"].items():
        left, right = statistics["examples"][0]
        logging.info("data: %d %s pairs, such as %r - %r", statistics["count"], view, left, right)
    for name, reason in data_card["unavailable"].items():
        logging.info("data: no %s, because %s", name, reason)
