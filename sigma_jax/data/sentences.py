"""Vectors of item texts by a pre-trained sentence encoder.

An item is read in three ways: all its values, title and category, and the category alone. Its
vector is the mean of the three. What people ask for is more often a kind of thing than a product:
without the category alone, a sentence finds items that share a word with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from absl import logging
from jaxtyping import Float32

from sigma_jax.data.vectors import unit_rows
from sigma_jax.schema import Catalogue

ROWS_AT_ONCE = 16_384  # their texts are held in memory

Encode = Callable[[Sequence[str]], Float32[np.ndarray, "N D"]]


def save_text_vectors(encode: Encode, catalogue: Catalogue, folder: Path) -> int:
    """Writes FOLDER/text_vectors.npy, float32 [I, D], a piece at a time. Returns D."""

    def encode_items(rows: range) -> Float32[np.ndarray, "n D"]:
        return item_text_vectors(encode, catalogue, np.arange(rows.start, rows.stop))

    return save_in_pieces(encode_items, len(catalogue), folder / "text_vectors.npy", "texts")


def save_in_pieces(
    encode_rows: Callable[[range], Float32[np.ndarray, "n D"]], count: int, path: Path, what: str
) -> int:
    """Writes the vectors of `count` rows, at least one, as float32 [count, D]. Returns D.

    Args:
      encode_rows: the vectors of some rows.
      what: the rows, as the log names them.
    """
    out = None
    for start in range(0, count, ROWS_AT_ONCE):
        rows = range(start, min(start + ROWS_AT_ONCE, count))
        vectors = encode_rows(rows)
        if out is None:
            shape = (count, vectors.shape[1])
            out = np.lib.format.open_memmap(path, "w+", np.float32, shape)
        out[rows.start : rows.stop] = vectors
        logging.info("%d of %d %s encoded", rows.stop, count, what)
    out.flush()
    return out.shape[1]


def item_text_vectors(
    encode: Encode, catalogue: Catalogue, items: np.ndarray
) -> Float32[np.ndarray, "n D"]:
    """The text vectors of some items, unit length."""
    names = catalogue.categories.to_pylist()
    numbers = np.asarray(catalogue.category)[items].tolist()
    rows = catalogue.table.take(items)
    return text_vectors(
        encode,
        rows["text"].to_pylist(),
        rows["title"].to_pylist(),
        [names[number] if number >= 0 else None for number in numbers] if names else None,
    )


def text_vectors(
    encode: Encode,
    texts: Sequence[str],
    titles: Sequence[str],
    categories: Sequence[str | None] | None,
) -> Float32[np.ndarray, "n D"]:
    """The text vectors of items, unit length.

    Args:
      encode: texts to vectors.
      texts: the JSON text of each item.
      titles: of each item.
      categories: of each item, None where it has none; None for a catalogue without categories.
    """
    readings = [list(map(sentence, texts))]
    if categories is not None:
        pairs = list(zip(titles, categories, strict=True))
        readings.append([", ".join(filter(None, pair)) for pair in pairs])
        readings.append([category or title for title, category in pairs])
    vectors = encode([text for reading in readings for text in reading])
    return unit_rows(unit_rows(vectors).reshape(len(readings), len(texts), -1).sum(axis=0))


def sentence(text: str) -> str:
    """The values of a JSON text, as sentence encoders expect them.

    Worked example: {"title": "Soap", "price": 2} -> "Soap. 2".
    """
    return ". ".join(str(value) for value in json.loads(text).values())
