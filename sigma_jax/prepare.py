"""From a user's tables to WORKDIR/data: what every stage reads.

    python -m sigma_jax.prepare --config=configs/sft.py --workdir=runs/demo

Popularity, clicks, lifts and co-occurrence are counted over training rows alone: those before each
user's validation target.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import numpy as np

from sigma_jax.data import database, pairs, queries, splits, text, themes, vectors
from sigma_jax.data.config import DataConfig
from sigma_jax.data.sources import amazon, complete_journey, files
from sigma_jax.data.tables import Checker, Tables
from sigma_jax.schema import (
    Catalogue,
    Histories,
    PreparedData,
    Queries,
    RelevancePairs,
    Themes,
    Users,
    read_arrow,
)

SCRATCH = ".database"


def prepare(
    config: DataConfig, seed: int, folder: Path, extra_texts: Sequence[str] = ()
) -> dict[str, Any]:
    """Writes every file of schema.PreparedData into `folder`; the data card as nested dict.

    Args:
      config: where the tables are and how they are used.
      seed: of what is drawn (visual cells and pairs beyond their cap).
      folder: is there; a database is made in it and removed again.
      extra_texts: sentences the text tokenizer should know, such as instructions.

    Raises:
      ValueError: the tables break a rule of data/tables.py; one line says which and where.
    """
    started = time.monotonic()
    scratch = folder / SCRATCH
    try:
        with database.open_database(scratch, config.memory_limit, config.threads) as con:
            figures = _prepare(con, config, seed, folder, extra_texts)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    figures["seconds"] = round(time.monotonic() - started, 1)
    return figures


def _prepare(con, config: DataConfig, seed: int, folder: Path, extra_texts) -> dict[str, Any]:
    tables = read_source(con, config)
    checker = Checker(con, tables, config.unknown_items, config.text.max_chars)
    raw_items = checker.items()
    raw_users = checker.users()
    interactions = checker.interactions(raw_items, config.events)
    searches = checker.searches(raw_items)
    given_themes = checker.themes(raw_items)

    item_texts = database.save(con, "item_texts", text.item_texts(raw_items, config.text))
    items = splits.number_items(con, item_texts, interactions, config.min_item_count)
    profiles = None
    if raw_users is not None:
        profiles = text.user_texts(raw_users, config.text)
    users = splits.number_users(con, interactions, profiles)
    events, has_sessions = _events(con, tables, config, interactions, items, users)
    cuts = database.save(con, "cuts", splits.user_cuts(con, events, config.split))
    training = splits.training_events(con, events, cuts)
    num_users = database.count(con, users)

    histories = splits.build_histories(con, events, cuts, num_users)
    histories.save(folder)
    catalogue = save_catalogue(con, items, training, folder)
    table = users.order_by("user").select("user_id", "profile")
    database.stream_arrow(con, table, folder / "users.arrow")

    found_queries = _queries(con, tables, config, searches, items, users, training, histories)
    found_themes, theme_figures = themes.build_themes(
        con, given_themes, items, training, config.themes, tables.has_times
    )
    for part in (found_queries, found_themes):
        if part is not None:
            part.save(folder)
    widths = {}
    for name in ("id_vectors", "visual_vectors"):
        if path := getattr(tables, name):
            target = folder / f"{name}.npy"
            widths[name] = vectors.save_vectors(con, path, raw_items, items, target)
    found_pairs = _pairs(
        con, config, seed, folder, training, has_sessions, found_queries, found_themes, widths
    )
    for view in found_pairs.values():
        view.save(folder)
    tokenizer = text.save_tokenizer(
        folder / "text_tokenizer",
        config.text_tokenizer,
        _all_texts(con, items, users, found_queries, found_themes, extra_texts, config),
    )
    figures = {
        "source": config.source,
        "files": {name: checksum(name) for name in tables.files},
        **_counts(con, catalogue, histories, interactions, item_texts, has_sessions),
        "dropped_rows": checker.dropped,
        "split": {"kind": config.split.kind, **_split_figures(histories)},
        "queries": len(found_queries.texts) if found_queries else 0,
        "themes": theme_figures,
        "vectors": widths,
        "pairs": {name: _pair_figures(view, catalogue) for name, view in found_pairs.items()},
        "text_tokenizer": tokenizer,
        "without_data": _without_data(tables, found_queries, found_themes, found_pairs, catalogue),
    }
    return figures


def read_source(con: ibis.BaseBackend, config: DataConfig) -> Tables:
    """The tables of config.source."""
    match config.source:
        case "files":
            return files.read(con, config)
        case "amazon":
            return amazon.read(con, config)
        case _:
            return complete_journey.read(con, config)


def _events(con, tables: Tables, config: DataConfig, interactions, items, users):
    """The numbered events in the database, and whether sessions can hold several."""
    if config.split.kind == "by_time" and not tables.has_times:
        raise ValueError(
            f"data.split.kind='by_time' needs times, which {tables.names['interactions']} lacks; "
            "use leave_one_out."
        )
    by_id = bool(con.to_pyarrow(interactions["session_id"].notnull().any()).as_py())
    numbered = splits.number_events(con, interactions, items, users, by_id)
    events, has_sessions = splits.with_sessions(con, numbered, config.split)
    return database.save(con, "events", events), has_sessions


def save_catalogue(
    con: ibis.BaseBackend, items: ir.Table, training: ir.Table, folder: Path
) -> Catalogue:
    """Writes the catalogue; texts go from the database to the file a batch at a time."""
    ordered = items.order_by("item").select("item_id", "text", "title")
    texts = folder / SCRATCH / "items.arrow"
    database.stream_arrow(con, ordered, texts)
    named = items.filter(items["category"].notnull())
    names = named.group_by("category").agg(n=named.count())
    number = ibis.row_number().over(order_by=names["category"]).cast("int32")
    names = database.save(con, "categories", names.mutate(number=number))
    sold = training.group_by("item").agg(popularity=training.count())
    rows = items.left_join(names.select("category", "number"), "category")
    rows = rows.select("item", "number").left_join(sold, "item")
    rows = rows.select("item", "number", "popularity").order_by("item")
    filled = rows.mutate(
        category=rows["number"].fill_null(-1), popularity=rows["popularity"].fill_null(0)
    )
    dtypes = {"category": np.int32, "popularity": np.int64}
    columns = database.columns(con, filled, dtypes, database.count(con, items))
    categories = con.to_pyarrow(names.order_by("number").select("category"))["category"]
    catalogue = Catalogue(read_arrow(texts), categories=categories.combine_chunks(), **columns)
    catalogue.save(folder)
    return Catalogue.load(folder)


def _queries(con, tables, config, searches, items, users, training, histories) -> Queries | None:
    if searches is None and config.queries_from_categories:
        clicks = queries.clicks_by_popularity(queries.category_queries(items), items, training)
    elif searches is None:
        return None
    elif tables.has_composed_searches:
        clicks = queries.clicks_by_popularity(searches, items, training)
    else:
        latest = None
        if config.split.kind == "by_time":
            latest, _ = splits.time_cuts(con, con.table("events"), config.split)
        cut_times = splits.target_times(con, histories)
        clicks = queries.clicks_of_searches(searches, users, cut_times, latest)
    return queries.build_queries(con, clicks, items)


def _pairs(
    con, config, seed, folder, training, has_sessions, found_queries, found_themes, widths
) -> dict[str, RelevancePairs]:
    settings = config.pairs
    found = {}
    if found_queries:
        found["search"] = pairs.link_pairs(
            "search", found_queries.texts, found_queries.items, settings.per_query, settings
        )
    if "visual_vectors" in widths:
        visual = np.load(folder / "visual_vectors.npy", mmap_mode="r")
        found["visual"] = pairs.visual_pairs(visual, settings, seed)
    if found_themes:
        found["theme"] = pairs.link_pairs(
            "theme", found_themes.names, found_themes.items, settings.per_theme, settings
        )
    found["co_occurrence"] = pairs.co_occurrence_pairs(con, training, has_sessions, settings)
    return {view: part for view, part in found.items() if part is not None}


def _all_texts(
    con, items, users, found_queries: Queries | None, found_themes: Themes | None, extra, config
) -> Iterator[str]:
    """What the text tokenizer is trained on."""
    texts = items.order_by("item").select("text").limit(config.text_tokenizer.max_texts)
    profiles = users.filter(users["profile"] != "").order_by("user").select(text="profile")
    for table in (texts, profiles.limit(config.text_tokenizer.max_texts)):
        for batch in database.batches(con, table):
            yield from batch["text"].to_pylist()
    for part in (found_queries and found_queries.texts, found_themes and found_themes.names):
        if part is not None:
            yield from part[: config.text_tokenizer.max_texts].to_pylist()
    yield from extra


def checksum(name: str) -> str:
    """SHA-256 of a file or URL, read in pieces."""
    import fsspec

    with fsspec.open(name, "rb") if database.is_url(name) else open(name, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _counts(
    con, catalogue: Catalogue, histories: Histories, interactions, item_texts, has_sessions
) -> dict[str, Any]:
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


def _split_figures(histories: Histories) -> dict[str, int]:
    return {
        "training_rows": int((histories.valid_start - histories.offsets[:-1]).sum()),
        "users_with_validation_target": len(histories.valid_users()),
        "users_with_test_target": len(histories.test_users()),
    }


def _pair_figures(view: RelevancePairs, catalogue: Catalogue) -> dict[str, Any]:
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


def _without_data(tables, found_queries, found_themes, found_pairs, catalogue) -> dict[str, str]:
    """Tasks and views this data cannot serve, with the reason."""
    kinds = set(found_themes.kinds.to_pylist()) if found_themes else set()
    missing = {}
    if not found_queries:
        missing["Query"] = "there is no table of searches"
    if not len(catalogue.categories):
        missing["Category"] = "items have no category column"
    why = "no theme of this kind has items" if tables.has_times else "interactions have no times"
    for task in ("Season", "Holiday"):
        if task.lower() not in kinds:
            missing[task] = why
    reasons = {
        "search": "there is no table of searches",
        "visual": "there are no visual vectors",
        "theme": "no theme has items",
        "co_occurrence": "no two items come together data.pairs.min_count times",
    }
    views = {f"{view} pairs": why for view, why in reasons.items() if view not in found_pairs}
    return missing | views
