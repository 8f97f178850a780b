"""The tree of a catalogue's SID prefixes, as a page can draw it: its top levels, with labels."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int, Int64

from sigma_jax.schema import Catalogue
from sigma_jax.serving.api.models import Prefix, Tree
from sigma_jax.serving.engine import CatalogueSnapshot

MOST_PREFIXES = 600  # that are drawn; deeper levels show only the paths of beams
MOST_NUMBERS = 2**22  # of a level's codes, which are counted in an array of this size
CHUNK = 2**20  # items at a time: codes are memory-mapped


def tree_of(snapshot: CatalogueSnapshot) -> Tree:
    """The prefixes of the first levels that are small enough to draw, by their codes."""
    version = snapshot.version
    depth, size = version.trie.depth, version.semantic_ids.codebook_size
    prefixes: list[Prefix] = []
    for level in range(1, depth + 1):
        if size**level > MOST_NUMBERS:
            break
        numbers = _prefix_numbers(version.semantic_ids.codes, version.is_active, level, size)
        present = np.unique(numbers[numbers >= 0])
        if len(prefixes) + len(present) > MOST_PREFIXES:
            break
        prefixes += _prefixes(numbers, present, level, size, version.catalogue)
    return Tree(
        version=snapshot.name,
        model=snapshot.model,
        depth=depth,
        items=int(version.is_active.sum()),
        prefixes=prefixes,
    )


def _prefix_numbers(
    codes: Int[np.ndarray, "I L"], is_active: Bool[np.ndarray, " I"], level: int, size: int
) -> Int64[np.ndarray, " I"]:
    """The prefix of each item as one number, its codes as digits; -1 for an item that is away."""
    numbers = np.full(len(codes), -1, np.int64)
    for start in range(0, len(codes), CHUNK):
        rows = slice(start, start + CHUNK)
        found = np.zeros(len(codes[rows]), np.int64)
        for column in range(level):
            found = found * size + codes[rows, column]
        numbers[rows] = np.where(is_active[rows], found, -1)
    return numbers


def _prefixes(
    numbers: Int64[np.ndarray, " I"],
    present: Int64[np.ndarray, " P"],
    level: int,
    size: int,
    catalogue: Catalogue,
) -> list[Prefix]:
    """The prefixes of a level with their number of items, and the label of most of them."""
    rows = np.flatnonzero(numbers >= 0)
    place = np.searchsorted(present, numbers[rows])
    counts = np.bincount(place, minlength=len(present))
    labels = _labels(rows, place, catalogue)
    return [
        Prefix(
            codes=[number // size**power % size for power in reversed(range(level))],
            items=count,
            label=label,
        )
        for number, count, label in zip(present.tolist(), counts.tolist(), labels, strict=True)
    ]


def _labels(
    rows: Int64[np.ndarray, " n"], place: Int64[np.ndarray, " n"], catalogue: Catalogue
) -> list[str]:
    """The category of most items of each prefix, or the title of the most popular item."""
    category = np.asarray(catalogue.category)[rows]
    names = catalogue.categories.to_pylist()
    popularity = np.asarray(catalogue.popularity)[rows]
    labels = []
    order = np.argsort(place, kind="stable")
    for items in np.split(order, np.flatnonzero(np.diff(place[order])) + 1):
        known = category[items][category[items] >= 0]
        if len(known):
            labels.append(str(names[np.bincount(known).argmax()]))
        else:
            best = rows[items[popularity[items].argmax()]]
            labels.append(catalogue.titles(np.array([best]))[0])
    return labels
