"""New items in an export, without training.

The frozen encoder turns texts into vectors, and the frozen codebooks turn vectors into SIDs. A
missing vector, or a missing row of a trained table, is a mean over neighbours: the NEIGHBOURS items
with the nearest vectors. The reranker has no counts of a new item, only its
embedding neighbours.

Axes: I items of the version before, n new items, k neighbours.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sparse
from jaxtyping import Float32, Int64

from sigma_jax.data import database, sentences, text
from sigma_jax.data.config import TextConfig
from sigma_jax.data.sources.added import PLAIN, AddedFiles
from sigma_jax.data.tables import Checker, Tables, as_text
from sigma_jax.data.vectors import join_vectors, unit_rows
from sigma_jax.encoders.instructions import encoder_in
from sigma_jax.generation.generator import all_item_vectors
from sigma_jax.grounding.encode import load_encoder
from sigma_jax.index.scann_searcher import top_rows
from sigma_jax.index.trie_build import build_trie, with_spare_capacity
from sigma_jax.recommender.parts import words_of_items
from sigma_jax.reranking.history.covisitation import strongest_entries
from sigma_jax.reranking.history.embedding_neighbours import nearest_items
from sigma_jax.schema import Catalogue, SemanticIds
from sigma_jax.serving.bundle import Bundle, lexical_with_capacity
from sigma_jax.serving.catalogue_version import Version
from sigma_jax.tokenizer.assign import load_tokenizer

NEIGHBOURS = 10
MEMORY = "1GB"  # of the database that reads the file of items
MAX_COSINES = 2**24  # entries of [n, I] in memory at once


def read_items(path: str, bundle: Bundle) -> pa.Table:
    """item_id, text, title and category of the items in a file, in its order.

    A text holds the columns that texts of the training hold, in their order and types.

    Raises:
      ValueError: a row breaks a rule of the items table, such as a repeated id, or the file has
        none of the columns.
    """
    return read_items_as(path, bundle.text, bundle.items["are_numbers"])


def read_items_as(
    path: str,
    config: TextConfig,
    are_numbers: Mapping[str, bool],
    added: AddedFiles = PLAIN,
) -> pa.Table:
    """`read_items` for items whose texts have the columns `are_numbers`.

    Args:
      config: how columns become text.
      are_numbers: the columns in the texts, and whether each holds only numbers.
      added: how the file becomes a table.
    """
    with _checked(path, config.max_chars, added) as (con, items):
        for name in (config.title_column, config.category_column):
            if name and name not in items.columns:
                raise ValueError(
                    f"{path}: column {name!r} is missing (found: {', '.join(items.columns)}); add "
                    "it, since the items of the export have it."
                )
        if are_numbers.keys() != {"id"} and not are_numbers.keys() & set(items.columns):
            raise ValueError(
                f"{path} has none of the columns {', '.join(are_numbers)}, which item texts are "
                "made of; add them."
            )
        kinds = {}
        for name, is_number in are_numbers.items():
            if name not in items.columns:
                kinds[name] = ibis.null("string")
            elif is_number and not items[name].type().is_numeric():
                kinds[name] = items[name].cast("string").try_cast("float64")
            elif not is_number and items[name].type().is_numeric():
                kinds[name] = as_text(items[name])
        items = items.mutate(**kinds)
        texts = database.save(con, "texts", text.item_texts(items, config)).order_by("source_row")
        return con.to_pyarrow(texts.select("item_id", "text", "title", "category"))


def read_ids(path: str) -> list[str]:
    """The item_id of each row of a file. ValueError as in `read_items`."""
    with _checked(path, 1) as (con, items):
        ids = items.order_by("source_row").select("item_id")
        return con.to_pyarrow(ids)["item_id"].to_pylist()


@contextlib.contextmanager
def _checked(path: str, max_chars: int, added: AddedFiles = PLAIN):
    """(a database, the checked rows of a file of items in it)."""
    with database.open_reader(MEMORY) as con:
        opened = added.open(con, "items", path)
        tables = Tables(
            items=opened.table,
            interactions=opened.table,
            names={"items": opened.name},
            files={},
            has_times=False,
            has_composed_searches=False,
            parts={"items": opened.sizes},
        )
        yield con, Checker(con, tables, "error", max_chars).items()


def add_items(
    bundle: Bundle, before: Version, items: pa.Table, given: Mapping[str, np.ndarray]
) -> Version:
    """The version `before` with new `items` (read_items) behind its own.

    Args:
      given: vectors of the new items by kind, in their order.

    Raises:
      ValueError: an id exists already, active or removed, or no vectors are known: `given` has
        none and there is no encoder.
    """
    _check_new(before, items)
    version, start = _with_item_tables(bundle, before, items, given), len(before)
    parts = bundle.parts(version)
    if before.lexical is not None:
        known, texts = (before.lexical, start), bundle.items["slot_value_texts"]
        lexical = words_of_items(version.catalogue, texts, parts.spec, known)
        lexical = lexical_with_capacity(lexical, version.capacity, before.lexical)
        version = dataclasses.replace(version, lexical=lexical)
    new_fused = all_item_vectors(parts.network, parts.tables, len(version), first=start)
    fused = np.concatenate([before.fused, new_fused])
    if before.embedding_neighbours is not None:
        count = parts.spec.neighbours
        version = dataclasses.replace(
            version,
            embedding_neighbours=extended_neighbours(
                before.embedding_neighbours, fused, start, count
            ),
        )
    return dataclasses.replace(version, fused=fused)


def _with_item_tables(
    bundle: Bundle, before: Version, items: pa.Table, given: Mapping[str, np.ndarray]
) -> Version:
    """The version with the new items in its catalogue, vectors, SIDs and trie.

    Its words, fused vectors and embedding neighbours are still those of `before`.
    """
    vectors, neighbours = _vectors_of(bundle, before, items, given)
    codes = _codes_of(bundle, vectors)
    semantic_ids = SemanticIds(
        np.concatenate([before.semantic_ids.codes, codes]), before.semantic_ids.codebook_size
    )
    rows = {
        name: np.concatenate([table, _new_rows(bundle, name, table, vectors, neighbours)])
        for name, table in before.rows.items()
    }
    vectors = {name: np.concatenate([before.vectors[name], new]) for name, new in vectors.items()}
    trie = build_trie(
        semantic_ids.codes,
        before.trie.depth,
        semantic_ids.codebook_size,
        before.trie,
    )
    return dataclasses.replace(
        before,
        catalogue=joined_catalogue(before.catalogue, items),
        semantic_ids=semantic_ids,
        vectors=vectors,
        rows=rows,
        is_active=np.concatenate([before.is_active, np.ones(items.num_rows, bool)]),
        trie=with_spare_capacity(trie, before.trie),
    )


def set_active(before: Version, ids: list[str], is_active: bool) -> Version:
    """The version `before` with the items `ids` restored (`is_active`) or removed.

    ValueError if an id is unknown or in that state already, or if no active item is left.
    """
    known = before.catalogue.table["item_id"]
    rows = pc.index_in(pa.array(ids, known.type), value_set=known).to_pylist()
    flags = np.array(before.is_active)
    for name, row in zip(ids, rows, strict=True):
        if row is None or flags[row] == is_active:
            state = "was not removed from" if is_active else "is not in"
            raise ValueError(f"item {name!r} {state} the catalogue; check the file.")
        flags[row] = is_active
    if not flags.any():
        raise ValueError("the file removes every item of the catalogue; leave one at least.")
    return dataclasses.replace(before, is_active=flags)


def _check_new(before: Version, items: pa.Table) -> None:
    """ValueError if an item has an id that `before` knows."""
    known = before.catalogue.table["item_id"]
    is_known = pc.is_in(items["item_id"].cast(known.type), value_set=known)
    row = pc.index(is_known, True).as_py()
    if row >= 0:
        name = items["item_id"][row].as_py()
        raise ValueError(
            f"row {row + 1}: item_id={name!r} is in the catalogue already; give a changed item "
            "another id, or bring back a removed item with `restore`."
        )


def joined_catalogue(before: Catalogue, items: pa.Table) -> Catalogue:
    """The catalogue with the new items, whose popularity is 0."""
    names = before.categories.to_pylist()
    number = {name: row for row, name in enumerate(names)}
    category = []
    for name in items["category"].to_pylist():
        category.append(-1 if name is None else number.setdefault(name, len(number)))
    new = items.select(["item_id", "text", "title"]).cast(
        pa.schema([before.table.schema.field(name) for name in ("item_id", "text", "title")])
    )
    table = before.table.select(["item_id", "text", "title"])
    return Catalogue(
        pa.concat_tables([table, new]).combine_chunks(),
        np.concatenate([before.category, np.array(category, np.int32)]),
        pa.array(list(number), pa.string()),
        np.concatenate([before.popularity, np.zeros(items.num_rows, np.int64)]),
    )


def _vectors_of(
    bundle: Bundle, before: Version, items: pa.Table, given: Mapping[str, np.ndarray]
) -> tuple[dict[str, Float32[np.ndarray, "n D"]], Int64[np.ndarray, "n k"]]:
    """Vectors of the new items, of each kind that old items have, and their old neighbours."""
    known = {}
    for name, vectors in given.items():
        if name not in before.vectors:
            raise ValueError(f"{name} vectors are given, but the export has none; leave them out.")
        shape = (items.num_rows, before.vectors[name].shape[1])
        if vectors.shape != shape:
            raise ValueError(
                f"{name} vectors have shape {vectors.shape}; the new items need {shape}."
            )
        if not np.isfinite(vectors).all():
            raise ValueError(f"{name} vectors are not finite; make them again.")
        known[name] = np.asarray(vectors, np.float32)
    if "text" in before.vectors and "text" not in known:
        known["text"] = text_encoder(bundle, before)(items)
    if not known:
        raise ValueError(
            f"new items need {' or '.join(before.vectors)} vectors, since the export has no text "
            "vectors; give their .npy."
        )
    kind = "text" if "text" in known else next(iter(known))
    neighbours = nearest_rows(known[kind], before.vectors[kind])
    for name, table in before.vectors.items():
        if name not in known:
            known[name] = np.asarray(table, np.float32)[neighbours].mean(axis=1)
    return {name: known[name] for name in before.vectors}, neighbours


def text_encoder(
    bundle: Bundle, before: Version
) -> Callable[[pa.Table], Float32[np.ndarray, "n D"]]:
    """Items (see `read_items`) to text vectors, as in the training.

    ValueError if the export has no encoder.
    """
    folder = bundle.model_folder
    if (folder / "encoder").exists():
        encode_texts = load_encoder(folder / "encoder")
        return lambda items: encode_texts(items["text"].to_pylist())
    encoder = encoder_in(folder)
    if encoder is None:
        raise ValueError(
            "the training got its text vectors from a file; give those of the new items as "
            "--text_vectors."
        )
    encode = encoder.encoder.encode_items
    has_categories = len(before.catalogue.categories) > 0

    def vectors(items: pa.Table) -> Float32[np.ndarray, "n D"]:
        columns = {name: items[name].to_pylist() for name in ("text", "title", "category")}
        categories = columns["category"] if has_categories else None
        plain = sentences.text_vectors(encode, columns["text"], columns["title"], categories)
        return encoder.grounded(plain)

    return vectors


def nearest_rows(
    vectors: Float32[np.ndarray, "n D"], table: Float32[np.ndarray, "I D"]
) -> Int64[np.ndarray, "n k"]:
    """The rows of `table` nearest to each vector by cosine, at most NEIGHBOURS."""
    count = min(NEIGHBOURS, len(table))
    table = unit_rows(table)
    step = max(MAX_COSINES // len(table), 1)
    parts = [
        top_rows(unit_rows(vectors[start : start + step]) @ table.T, count)[0]
        for start in range(0, len(vectors), step)
    ]
    return np.concatenate(parts)


def _codes_of(bundle: Bundle, vectors: Mapping[str, np.ndarray]) -> np.ndarray:
    """The SIDs of new items by the frozen codebooks, one row each."""
    tokenizer = load_tokenizer(bundle.model_folder / "tokenizer")
    inputs = {name: vectors[name] for name in bundle.items["tokenizer_inputs"] if name in vectors}
    return tokenizer.assign(join_vectors(inputs))


def _new_rows(
    bundle: Bundle,
    name: str,
    table: Float32[np.ndarray, "I D"],
    vectors: Mapping[str, Float32[np.ndarray, "n D"]],
    neighbours: Int64[np.ndarray, "n k"],
) -> Float32[np.ndarray, "n D"]:
    """Rows of a trained table: for texts their start before training, else means of neighbours."""
    if name == "text":
        return unit_rows(vectors["text"] - np.array(bundle.items["text_mean"], np.float32))
    return np.asarray(table, np.float32)[neighbours].mean(axis=1)


def extended_neighbours(
    before: sparse.csr_matrix, fused: Float32[np.ndarray, "I+n D"], start: int, count: int
) -> sparse.csr_matrix:
    """The embedding neighbours of all items, the strongest `count` of each.

    Lists of old items do not hold new items, so each new pair enters both lists.

    Args:
      before: the neighbours of the first `start` items.
    """
    total = len(fused)
    new, known = nearest_items(np.asarray(fused), count, start), before.copy()
    known.resize((total, total))
    of_old = new.T.tocsr()
    of_old.resize((start, total))  # new items have each other already
    of_old.resize((total, total))
    return strongest_entries((known + new + of_old).tocsr(), count)
