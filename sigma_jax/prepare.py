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
import pyarrow as pa
from absl import flags, logging
from ml_collections import ConfigDict

from sigma_jax.data import card, database, pairs, queries, sentences, splits, text, themes, vectors
from sigma_jax.data.config import DataConfig
from sigma_jax.data.sources import amazon, complete_journey, files
from sigma_jax.data.tables import Checker, Tables
from sigma_jax.runtime import artifacts, cli
from sigma_jax.runtime.artifacts import UNSHARED, Manifest, Pool, Recipe
from sigma_jax.runtime.config import to_dataclass
from sigma_jax.runtime.files import plain
from sigma_jax.runtime.lock import locked
from sigma_jax.schema import (
    VECTORS,
    Catalogue,
    PreparedData,
    Queries,
    RelevancePairs,
    Themes,
    read_arrow,
)
from sigma_jax.tasks.instructions import all_sentences, available_tasks

FLAGS = flags.FLAGS
SCRATCH = ".database"
# Not part of what the data is made of: files are known by their content, machines differ.
MACHINE_FIELDS = ("path", "files", "memory_limit", "threads")


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
    profiles = None if raw_users is None else text.user_texts(raw_users, config.text)
    users = splits.number_users(con, interactions, profiles)
    events, has_sessions = _events(con, tables, config, interactions, items, users)
    cuts = database.save(con, "cuts", splits.user_cuts(con, events, config.split))
    if config.split.cold_share:
        cold = draw_cold(con, items, config.split.cold_share, seed)
        events, cuts = splits.without_cold(con, events, cuts, cold)
        if searches is not None and not tables.has_composed_searches:
            searches = searches.filter(searches["item_id"].notin(cold["item_id"]))
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
    widths = _save_vectors(con, tables, raw_items, items, folder)
    widths |= _encode_texts(config, catalogue, folder)
    found_pairs = _pairs(
        con, config, seed, folder, training, has_sessions, found_queries, found_themes, widths
    )
    for view in found_pairs.values():
        view.save(folder)
    tokenizer = text.save_tokenizer(
        folder / "text_tokenizer",
        config.text_tokenizer,
        _all_texts(con, items, users, found_queries, found_themes, extra_texts),
    )
    figures = {
        "source": config.source,
        "files": card.checksums(tables.files),
        **card.counts(con, catalogue, histories, interactions, item_texts, has_sessions),
        "dropped_rows": checker.dropped,
        "split": {"kind": config.split.kind, **card.split_figures(histories)},
        "texts": card.count_texts(catalogue),
        "queries": len(found_queries.texts) if found_queries else 0,
        "themes": theme_figures,
        "vectors": widths,
        "pairs": {name: card.pair_figures(view, catalogue) for name, view in found_pairs.items()},
        "text_tokenizer": tokenizer,
        "without_data": {
            # What stage 3 will leave out; the tables often tell the reason more exactly.
            **{
                task: why for task, why in available_tasks(PreparedData.load(folder)).items() if why
            },
            **card.without_data(tables, found_queries, found_themes, found_pairs, catalogue),
        },
    }
    return figures


def prepare_workdir(config: ConfigDict, workdir: Path, pool: Pool = UNSHARED) -> Manifest:
    """Makes WORKDIR/data of config.data where it is missing; its manifest either way.

    ValueError if it is there, made of other tables or with other settings.
    """
    data = to_dataclass(DataConfig, config.data, "data")
    sentences = all_sentences()
    settings = plain(data)
    settings = {name: value for name, value in settings.items() if name not in MACHINE_FIELDS}
    inputs = card.checksums(source_files(data))
    inputs["instructions"] = hashlib.sha256("\n".join(sentences).encode()).hexdigest()
    recipe = Recipe({"data": settings}, inputs, config.seed)
    pool.take(workdir, "data", recipe)
    if artifacts.is_current(workdir, "data", recipe):
        logging.info("data: done before, %s", workdir / "data")
        return artifacts.read_manifest(workdir, "data")
    logging.info("data: preparing %s", data.path or data.source)
    manifest = artifacts.write_artifact(
        workdir, "data", recipe, lambda folder: prepare(data, config.seed, folder, sentences)
    )
    log_card(manifest.metrics)
    pool.give(workdir, "data", recipe)
    return manifest


def log_card(figures: dict[str, Any]) -> None:
    """The data card in a few lines; all of it is in the manifest."""
    logging.info(
        "data: %d items, %d users, %d interactions in %d sessions, %d test targets, in %s s",
        *(figures[name] for name in ("items", "users", "interactions", "sessions")),
        figures["split"]["users_with_test_target"],
        figures["seconds"],
    )
    for table, number in figures["dropped_rows"].items():
        logging.warning("data: %d rows of %s left out, their item_id is unknown", number, table)
    if figures["items_with_cut_text"]:
        logging.warning("data: the text of %d items was cut", figures["items_with_cut_text"])
    for view, found in figures["pairs"].items():
        left, right = found["examples"][0]
        logging.info("data: %d %s pairs, such as %r - %r", found["count"], view, left, right)
    for name, why in figures["without_data"].items():
        logging.info("data: without %s, since %s", name, why)


def source_files(config: DataConfig) -> dict[str, str]:
    """The files config.source will read, by what they are used as.

    ValueError if one that is needed is missing.
    """
    match config.source:
        case "files":
            return files.paths(config)
        case "amazon":
            return {kind: str(path) for kind, path in amazon.paths(config).items()}
        case _:
            return complete_journey.paths()


def read_source(con: ibis.BaseBackend, config: DataConfig) -> Tables:
    """The tables of config.source."""
    match config.source:
        case "files":
            return files.read(con, config)
        case "amazon":
            return amazon.read(con, config)
        case _:
            return complete_journey.read(con, config)


def draw_cold(con, items: ir.Table, share: float, seed: int) -> ir.Table:
    """item, item_id of a share of the items, at least one, drawn by the seed."""
    count = database.count(con, items)
    drawn = np.random.default_rng(seed).permutation(count)[: max(int(share * count), 1)]
    numbers = database.from_arrow(con, "cold", pa.table({"item": drawn.astype(np.int32)}))
    return items.inner_join(numbers, "item").select("item", "item_id")


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


def _save_vectors(con, tables: Tables, raw_items, items, folder: Path) -> dict[str, int]:
    """Writes the vectors the source has; the width of each."""
    found = {name: getattr(tables, name) for name in VECTORS}
    return {
        name: vectors.save_vectors(con, path, raw_items, items, folder / f"{name}.npy")
        for name, path in found.items()
        if path
    }


def _encode_texts(config: DataConfig, catalogue: Catalogue, folder: Path) -> dict[str, int]:
    """Writes the vectors of the encoder that the config names; their width."""
    if not config.text_encoder:
        return {}
    if (folder / "text_vectors.npy").exists():
        raise ValueError(
            f"data.text_encoder={config.text_encoder!r}, but the source brings text vectors; "
            "leave one of them out."
        )
    encode = sentences.load_encoder(config.text_encoder)
    return {"text_vectors": sentences.save_text_vectors(encode, catalogue, folder)}


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
    con, items, users, found_queries: Queries | None, found_themes: Themes | None, extra
) -> Iterator[str]:
    """What the text tokenizer is trained on."""
    texts = items.order_by("item").select("text").limit(text.MAX_TOKENIZER_TEXTS)
    profiles = users.filter(users["profile"] != "").order_by("user").select(text="profile")
    for table in (texts, profiles.limit(text.MAX_TOKENIZER_TEXTS)):
        for batch in database.batches(con, table):
            yield from batch["text"].to_pylist()
    for part in (found_queries and found_queries.texts, found_themes and found_themes.names):
        if part is not None:
            yield from part[: text.MAX_TOKENIZER_TEXTS].to_pylist()
    yield from extra


def main(argv: Sequence[str]) -> None:
    """The command."""
    del argv
    workdir = Path(FLAGS.workdir) if FLAGS.workdir else cli.default_workdir()
    with locked(workdir):
        prepare_workdir(FLAGS.config, workdir)


if __name__ == "__main__":
    cli.define_config()
    flags.DEFINE_string("workdir", None, "Where artifacts go; runs/STAGE-PRESET if not given.")
    cli.run_command(main)
