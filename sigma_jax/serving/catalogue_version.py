"""One version of the catalogue of an export: all files that belong to items.

    items.arrow categories.arrow item_category.npy item_popularity.npy    the catalogue
    semantic_ids.npy codebook_size.npy    the SIDs
    vectors_KIND.npy            pre-trained vectors of the kinds that exist: text, id, image
    rows_KIND.npy               rows of the trained tables of items
    fused.npy                   the model's item vectors, unit length
    is_active.npy               False for a removed item, which histories may still hold
    trie.json trie_*.npy        the trie over all items, with capacity for more
    words.json words.npz        words that instructions ask for, where instructions are read
    embedding_neighbours.npz    nearest items of each item, where there is a reranker
    index/                      ScaNN inside prefixes, with --retrieval=scann (index/host_index.py)
    version.json                the manifest, with sizes and hashes

A version never changes. An item keeps its number in all later versions.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import scipy.sparse as sparse
from jaxtyping import Bool, Float32, Int32

from sigma_jax.index.host_index import HostIndex, leaves_of_items
from sigma_jax.index.trie import Trie
from sigma_jax.models.item_encoder import TABLES
from sigma_jax.reranking.lexical import LexicalTable
from sigma_jax.schema import Catalogue, SemanticIds, read_npy


@dataclasses.dataclass(frozen=True)
class Version:
    """The items of an export, as one version has them."""

    catalogue: Catalogue
    semantic_ids: SemanticIds
    vectors: dict[str, Float32[np.ndarray, "I D"]]  # pre-trained, by kind
    rows: dict[str, Float32[np.ndarray, "I D"]]  # of the trained tables, by kind
    fused: Float32[np.ndarray, "I D"]  # the model's item vectors, unit length
    is_active: Bool[np.ndarray, " I"]
    trie: Trie
    lexical: LexicalTable | None
    embedding_neighbours: sparse.csr_matrix | None
    index: HostIndex | None = None

    def __len__(self) -> int:
        return len(self.catalogue)

    @property
    def capacity(self) -> int:
        """The number of items that fit into arrays of the sizes of this version."""
        return len(self.trie.sorted_items)

    def save(self, folder: Path) -> None:
        """Writes all files but version.json into `folder`, which exists."""
        self.catalogue.save(folder)
        self.semantic_ids.save(folder)
        for prefix, tables in (("vectors", self.vectors), ("rows", self.rows)):
            for name, table in tables.items():
                np.save(folder / f"{prefix}_{name}.npy", np.asarray(table, np.float32))
        np.save(folder / "fused.npy", np.asarray(self.fused, np.float32))
        np.save(folder / "is_active.npy", self.is_active)
        self.trie.save(folder)
        if self.lexical is not None:
            self.lexical.save(folder)
        if self.embedding_neighbours is not None:
            sparse.save_npz(folder / "embedding_neighbours.npz", self.embedding_neighbours)
        if self.index is not None:
            self.index.save(folder / "index")

    @classmethod
    def load(cls, folder: Path, with_index: bool = True) -> Version:
        """The version that `save` wrote, with memory-mapped arrays.

        ValueError if it is damaged, or if its index needs ScaNN, which is not installed.
        """
        tables = {
            prefix: {
                name: read_npy(folder / f"{prefix}_{name}.npy", 2)
                for name in TABLES
                if (folder / f"{prefix}_{name}.npy").exists()
            }
            for prefix in ("vectors", "rows")
        }
        fused = read_npy(folder / "fused.npy", 2)
        is_active = np.array(read_npy(folder / "is_active.npy", 1))
        index = None
        if with_index and (folder / "index").exists():
            index = HostIndex.load(folder / "index", fused, is_active)
        return cls(
            Catalogue.load(folder),
            SemanticIds.load(folder),
            tables["vectors"],
            tables["rows"],
            fused,
            is_active,
            Trie.load(folder),
            LexicalTable.load(folder) if (folder / "words.json").exists() else None,
            sparse.load_npz(folder / "embedding_neighbours.npz")
            if (folder / "embedding_neighbours.npz").exists()
            else None,
            index,
        )

    def indexed(self) -> Version:
        """The version with an index of its current items, where it has an index."""
        if self.index is None:
            return self
        index = self.index.copy()
        index.update_to(self.leaves, np.asarray(self.fused), self.is_active)
        return dataclasses.replace(self, index=index)

    @property
    def leaves(self) -> Int32[np.ndarray, " I"]:
        """The leaf of the trie that holds each item."""
        return leaves_of_items(self.trie)
