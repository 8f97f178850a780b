"""The data of a refresh: prepared data with new rows behind the known ones.

Nothing of the first log is read again. Numbers of users, items, queries, categories and themes
stay; new users, items and categories get the numbers that follow.

All rows become training rows, but for the judged ones: a share of the users who have rows on the
newest day keep their rows of that day as a test target.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Int64

from sigma_jax.data import card
from sigma_jax.data.sentences import text_vectors
from sigma_jax.encoders.find import load_encoder
from sigma_jax.grounding.encode import load_encoder as load_text_encoder
from sigma_jax.hashing import splitmix64
from sigma_jax.histories import rows_of_ranges
from sigma_jax.refreshing.rows import NewRows
from sigma_jax.schema import (
    DAY,
    VECTORS,
    Catalogue,
    Histories,
    PreparedData,
    Users,
)
from sigma_jax.serving.catalogue_update import NEIGHBOURS, joined_catalogue, nearest_rows

# And the files of catalogue, histories, users and vectors. Counts of the log before do not hold.
REPLACED = ("manifest.json", card.FILE, "counts")
LAST = 2.0**64  # above every hash


def write_data(
    before: PreparedData,
    new: NewRows,
    given: Mapping[str, Float32[np.ndarray, "n D"]],
    metrics: Mapping[str, Any],
    files: Mapping[str, str],
    judge_share: float,
    seed: int,
    folder: Path,
) -> dict[str, Any]:
    """Writes `before` with the new rows into `folder`, and returns the data card.

    Args:
      given: vectors of the new items by the names of VECTORS, in the order of `new.items`.
      metrics: the data card of `before`.
      files: checksums of the new files by use.
      judge_share: as in RefreshConfig.

    Raises:
      ValueError: given vectors have another shape, or are not finite.
    """
    histories = grown_histories(before.histories, new, judge_share, seed)
    histories.save(folder)
    catalogue = joined_catalogue(before.catalogue, new.items)
    rows = new_training_rows(histories, training_counts(before.histories))
    counts = np.bincount(histories.item[rows], minlength=len(catalogue))
    catalogue = dataclasses.replace(catalogue, popularity=catalogue.popularity + counts)
    catalogue.save(folder)
    ids = pa.array(new.user_ids, before.users.table["user_id"].type)
    users = pa.table({"user_id": ids, "profile": pa.array([""] * len(ids), pa.string())})
    known = before.users.table.select(["user_id", "profile"]).cast(users.schema)
    Users(pa.concat_tables([known, users]).combine_chunks()).save(folder)
    _save_vectors(before, new.items, given, metrics["sentence_encoder"], folder)
    for path in before.folder.iterdir():  # queries, themes, pairs, knowledge, tokenizer
        if path.name not in REPLACED and not (folder / path.name).exists():
            link(path, folder / path.name)
    data_card = _card(metrics, histories, catalogue, new, files)
    (folder / card.FILE).write_text(card.render(data_card), encoding="utf-8")
    return data_card


def grown_histories(before: Histories, new: NewRows, judge_share: float, seed: int) -> Histories:
    """The histories with the new rows behind those of their users.

    Worked example: user 0 has rows a b (b is the test target) and gets c on the newest day. Judged,
    the rows are a b c with both starts at c; otherwise both starts are behind c.
    """
    count = before.num_users + len(new.user_ids)
    known = np.zeros(count, np.int64)
    known[: before.num_users] = np.diff(before.offsets)
    added = np.bincount(new.user, minlength=count)
    offsets = np.zeros(count + 1, np.int64)
    np.cumsum(known + added, out=offsets[1:])
    old_rows = rows_of_ranges(offsets[:-1], offsets[:-1] + known)
    new_rows = rows_of_ranges(offsets[:-1] + known, offsets[1:])
    next_session = np.zeros(count, np.int64)
    has_rows = np.flatnonzero(known)
    next_session[has_rows] = before.session[before.offsets[has_rows + 1] - 1] + 1
    session = new.session + next_session[new.user]

    def joined(old: np.ndarray, later: np.ndarray) -> np.ndarray:
        together = np.empty(offsets[-1], old.dtype)
        together[old_rows], together[new_rows] = old, later
        return together

    time = joined(before.time, new.time)
    start = np.where(
        judged_users(new, count, judge_share, seed),
        offsets[1:] - np.bincount(new.user[is_of_newest_day(new)], minlength=count),
        offsets[1:],
    )
    return Histories(
        joined(before.item, new.item),
        time,
        joined(before.session, session),
        offsets,
        valid_start=start,
        test_start=start,
    )


def is_of_newest_day(new: NewRows) -> Bool[np.ndarray, " n"]:
    """Whether each new row is of the last day (UTC) that has any."""
    return new.time // DAY == new.time.max() // DAY


def judged_users(new: NewRows, count: int, share: float, seed: int) -> Bool[np.ndarray, " U"]:
    """Whether each of `count` users judges the refresh: a share of the newest day's, at least one.

    A hash of user and day chooses them, so that others judge the next day.
    """
    present = np.unique(new.user[is_of_newest_day(new)])
    day = int(new.time.max() // DAY)
    place = splitmix64(seed, present, np.full(len(present), day)).astype(np.float64)
    is_judged = np.zeros(count, bool)
    is_judged[present[(place < share * LAST) | (place == place.min())]] = True
    return is_judged


def training_counts(histories: Histories) -> Int64[np.ndarray, " U"]:
    """The number of training rows of each user."""
    return np.asarray(histories.valid_start) - np.asarray(histories.offsets[:-1])


def known_counts(known: Int64[np.ndarray, " u"], histories: Histories) -> Int64[np.ndarray, " U"]:
    """`training_counts` of earlier histories, with 0 for the users who came later."""
    counts = np.zeros(histories.num_users, np.int64)
    counts[: len(known)] = known
    return counts


def new_training_rows(
    histories: Histories, known: Int64[np.ndarray, " u"]
) -> Int64[np.ndarray, " n"]:
    """The training rows behind the first `known` ones of each user; later users have none known."""
    return rows_of_ranges(
        histories.offsets[:-1] + known_counts(known, histories), histories.valid_start
    )


def link(path: Path, target: Path) -> None:
    """Puts a file or folder at `target` too: by hard links, or copies on another file system."""

    def one(source: str, copy: str) -> None:
        try:
            os.link(source, copy)
        except OSError:
            shutil.copy2(source, copy)

    if path.is_dir():
        shutil.copytree(path, target, copy_function=one)
    else:
        one(str(path), str(target))


def _save_vectors(
    before: PreparedData,
    items: pa.Table,
    given: Mapping[str, Float32[np.ndarray, "n D"]],
    encoder: str,
    folder: Path,
) -> None:
    """Writes the item vectors that `before` has, with those of the new items behind them.

    Vectors that are not given are those of the sentence encoder, or the mean over neighbours.
    """
    tables = {name: getattr(before, name) for name in VECTORS}
    tables = {name: table for name, table in tables.items() if table is not None}
    if unknown := sorted(set(given) - set(tables)):
        raise ValueError(f"{unknown[0]} are given, but the first data has none; leave them out.")
    known: dict[str, np.ndarray] = dict(given)
    for name, table in given.items():
        wanted = (items.num_rows, tables[name].shape[1])
        if table.shape != wanted or not np.isfinite(table).all():
            raise ValueError(
                f"{name} of the new items have shape {table.shape} or are not finite; give finite "
                f"numbers of shape {wanted}."
            )
    if items.num_rows and encoder and "text_vectors" not in known:
        known["text_vectors"] = encoded_items(load_encoder(encoder).encode_items, items, before)
    vectors = {name: (new, tables[name]) for name, new in known.items()}
    near = neighbours_of(items["text"].to_pylist(), vectors, before)
    for name, table in tables.items():
        new = known[name] if name in known else table[near].mean(axis=1).astype(np.float32)
        append_rows(folder / f"{name}.npy", table, new)


def neighbours_of(
    texts: Sequence[str],
    vectors: Mapping[str, tuple[Float32[np.ndarray, "n D"], Float32[np.ndarray, "I D"]]],
    before: PreparedData,
) -> Int64[np.ndarray, "n k"]:
    """Known items near each of n new ones.

    They are near by text vectors; else by the encoder of the stage `grounding`; else by any
    vectors. Without vectors they are the most popular items.

    Args:
      texts: of the new items.
      vectors: (of the new items, of the known ones) by the names of VECTORS.
      before: the known data, in a trained workdir.
    """
    count = min(NEIGHBOURS, len(before.catalogue))
    if not len(texts):
        return np.zeros((0, count), np.int64)
    grounding = before.folder.parent / "grounding"
    if "text_vectors" in vectors:
        return nearest_rows(*vectors["text_vectors"])
    if grounding.exists():
        of_known = np.load(grounding / "text_vectors.npy", mmap_mode="r")
        return nearest_rows(load_text_encoder(grounding)(list(texts)), of_known)
    for pair in vectors.values():
        return nearest_rows(*pair)
    popular = np.argsort(-np.asarray(before.catalogue.popularity), kind="stable")
    return np.tile(popular[:count], (len(texts), 1))


def encoded_items(
    encode: Callable[..., np.ndarray], items: pa.Table, before: PreparedData
) -> Float32[np.ndarray, "n D"]:
    """The text vectors of new items by the sentence encoder, as the preparation makes them."""
    columns = {name: items[name].to_pylist() for name in ("text", "title", "category")}
    categories = columns["category"] if len(before.catalogue.categories) else None
    return text_vectors(encode, columns["text"], columns["title"], categories)


def append_rows(path: Path, table: np.ndarray, new: np.ndarray) -> None:
    """Writes a table of float32 with further rows, a piece at a time."""
    shape = (len(table) + len(new), table.shape[1])
    out = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    for start in range(0, len(table), 65_536):
        out[start : start + 65_536][: len(table) - start] = table[start : start + 65_536]
    out[len(table) :] = new
    out.flush()


def _card(
    metrics: Mapping[str, Any],
    histories: Histories,
    catalogue: Catalogue,
    new: NewRows,
    files: Mapping[str, str],
) -> dict[str, Any]:
    """The data card of `metrics` with the new sizes, files and counts of the refresh."""
    return {
        **metrics,
        **card.log_statistics(catalogue, histories),
        "files": dict(files),
        "items_in_source": metrics["items_in_source"] + new.items.num_rows,
        "interactions_in_source": metrics["interactions_in_source"] + new.counts["rows"],
        "items_with_text": card.count_texts(catalogue),
        "split": {"kind": "newest day", **card.split_statistics(histories)},
        "refresh": new.counts,
    }
