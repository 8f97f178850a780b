"""One version of a catalogue in an export: everything that belongs to items.

    items.arrow categories.arrow item_category.npy item_popularity.npy    what they are
    semantic_ids.npy codebook_size.npy                                    their SIDs
    vectors_KIND.npy        pre-trained vectors (text, id, image), as far as there are any
    rows_KIND.npy           rows of the tables the model has trained, and its own
    fused.npy               the model's item vectors, unit length
    is_active.npy           False: removed; still known where a history has it
    trie.json trie_*.npy    over all of them, with room for more
    words.json words.npz    words that instructions ask for, where they are read
    embedding_neighbours.npz                which lie near which, where counts are used
    index/                  ScaNN inside prefixes, where it was asked for (index/host_index.py)
    version.json            what is here, with sizes and hashes

A version is never changed. Rows keep their number in all versions made from one another.
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
    vectors: dict[str, Float32[np.ndarray, "I D"]]  # by kind
    rows: dict[str, Float32[np.ndarray, "I D"]]  # by kind
    fused: Float32[np.ndarray, "I D"]
    is_active: Bool[np.ndarray, " I"]
    trie: Trie
    lexical: LexicalTable | None
    embedding_neighbours: sparse.csr_matrix | None
    index: HostIndex | None = None

    def __len__(self) -> int:
        return len(self.catalogue)

    @property
    def room(self) -> int:
        """Items that fit into arrays of the shapes this version has."""
        return len(self.trie.sorted_items)

    def save(self, folder: Path) -> None:
        """Writes all but version.json into `folder`, which is there."""
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
        """What `save` wrote, arrays memory-mapped. ValueError where it is damaged, or its index
        needs what is not installed."""
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
        """The same, its index as the items are now; nothing to do where there is none."""
        if self.index is None:
            return self
        index = self.index.copy()
        index.follow(self.leaves, np.asarray(self.fused), self.is_active)
        return dataclasses.replace(self, index=index)

    @property
    def leaves(self) -> Int32[np.ndarray, " I"]:
        """The leaf of the trie that each item is in."""
        return leaves_of_items(self.trie)
