"""Item vectors: checks those of the user, puts them in catalogue order, joins several kinds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
from jaxtyping import Float, Float32

from sigma_jax.data import database
from sigma_jax.data.readers import open_table
from sigma_jax.data.tables import as_id
from sigma_jax.schema import load_item_vectors

ROWS_AT_ONCE = 65_536
# Kind -> files in a workdir, of which the first that exists is read. Vectors of the user replace
# those of a stage; those of a sentence encoder stand in data/ too, and are read with their head.
VECTOR_FILES = {
    "text": (
        "grounding_head/text_vectors.npy",
        "data/text_vectors.npy",
        "grounding/text_vectors.npy",
    ),
    "id": ("data/id_vectors.npy", "teacher/id_vectors.npy"),
    "image": ("data/visual_vectors.npy",),
}


def item_vectors(workdir: Path, count: int | None = None) -> dict[str, Float32[np.ndarray, "I D"]]:
    """The item vectors in `workdir`, by kind ("text", "id", "image"), memory-mapped.

    The vectors of the user replace those of a stage.

    Args:
      workdir: of a run.
      count: number of items; None takes that of the first vectors.

    Raises:
      ValueError: a stage's folder has no vectors, or some vectors have another number of items,
        which means that they belong to another catalogue.
    """
    found = {}
    for name, files in VECTOR_FILES.items():
        for path in (workdir / file for file in files):
            # A stage that left its folder made the vectors; data/ has them for some sources only.
            is_there = path.exists() if path.parent.name == "data" else path.parent.exists()
            if is_there:
                found[name] = load_item_vectors(path)
                break
    for name, rows in found.items():
        count = len(rows) if count is None else count
        if len(rows) != count:
            raise ValueError(
                f"{workdir} has {len(rows)} {name} vectors for {count} items; "
                "delete the folder of the stage that made them and run that stage again."
            )
    return found


def unit_rows(vectors: Float[np.ndarray, "N D"]) -> Float32[np.ndarray, "N D"]:
    """`vectors` in float32, scaled to length 1. A zero vector stays zero.

    This is for the host; `losses.unit` is for the device.
    """
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


@dataclasses.dataclass(frozen=True)
class JoinedVectors:
    """Several tables of item vectors, joined along the width: an array that is read in pieces.

    Each row of each table is scaled to length 1 first.
    """

    tables: tuple[Float[np.ndarray, "I D"], ...]

    ndim = 2

    @property
    def shape(self) -> tuple[int, int]:
        """The number of items, and the sum of the widths."""
        return len(self.tables[0]), sum(table.shape[1] for table in self.tables)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows) -> Float32[np.ndarray, "n D"]:
        return np.concatenate([unit_rows(table[rows]) for table in self.tables], axis=1)


def join_vectors(
    tables: Mapping[str, Float[np.ndarray, "I D"]],
) -> Float[np.ndarray, "I D"] | JoinedVectors | None:
    """One table for all kinds: the only table unchanged, several joined, None if there is none."""
    if len(tables) <= 1:
        return next(iter(tables.values()), None)
    return JoinedVectors(tuple(tables.values()))


def save_vectors(
    con: ibis.BaseBackend, path: str, all_items: ir.Table, items: ir.Table, target: Path
) -> int:
    """Writes the user's vectors to `target`, float32 [I, D], in catalogue order. Returns D.

    Args:
      con: the database of the tables.
      path: .npy in row order of `all_items`, or Parquet with item_id.
      all_items: the items of the source.
      items: item, item_id, source_row of the items of the catalogue.
      target: the .npy to write.

    Raises:
      ValueError: the file or a row of it is wrong; the message names it.
    """
    if path.endswith(".npy"):
        return _from_npy(con, path, all_items, items, target)
    return _from_parquet(con, path, items, target)


def _from_npy(
    con: ibis.BaseBackend, path: str, all_items: ir.Table, items: ir.Table, target: Path
) -> int:
    """Writes vectors of a .npy whose row i belongs to row i of `all_items`."""
    array = load_npy(path)
    total = database.count(con, all_items)
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.number):
        raise ValueError(
            f"{path}: shape {array.shape}, type {array.dtype}; save numbers of shape "
            "[items, width]."
        )
    if len(array) != total:
        raise ValueError(
            f"{path}: {len(array)} vectors for {total} items; save one for each row of items."
        )
    for start in range(0, total, ROWS_AT_ONCE):
        _check_finite(path, array[start : start + ROWS_AT_ONCE], start)
    count = database.count(con, items)
    kept = database.columns(con, items.order_by("item"), {"source_row": np.int64}, count)
    out = np.lib.format.open_memmap(target, "w+", np.float32, (count, array.shape[1]))
    for start in range(0, count, ROWS_AT_ONCE):
        out[start : start + ROWS_AT_ONCE] = array[kept["source_row"][start : start + ROWS_AT_ONCE]]
    out.flush()
    return array.shape[1]


def load_npy(path: str) -> np.ndarray:
    """The array of a local file (memory-mapped) or of a URL. ValueError if it cannot be read."""
    try:
        if database.is_url(path):
            import fsspec

            with fsspec.open(path) as file:
                return np.load(file, allow_pickle=False)
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        message = database.first_line(error)
        raise ValueError(f"{path} cannot be read ({message}); save it with numpy.save.") from error


def _from_parquet(con: ibis.BaseBackend, path: str, items: ir.Table, target: Path) -> int:
    """Writes vectors of a Parquet: column item_id, and one list column or D number columns."""
    table = open_table(con, path).table
    if "item_id" not in table.columns:
        raise ValueError(f"{path}: column 'item_id' is missing; add it next to the vectors.")
    table = as_id(table, "item_id")
    lists = [name for name in table.columns if table[name].type().is_array()]
    if lists:
        vector = table[lists[0]].cast("array<float32>")
    else:
        numbers = [
            name
            for name in table.columns
            if table[name].type().is_numeric() and name != "source_row"
        ]
        if not numbers:
            raise ValueError(f"{path}: no column holds vectors; add a list column 'vector'.")
        vector = ibis.array([table[name].cast("float32") for name in numbers])
    table = database.save(con, target.stem, table.select("item_id", vector=vector))
    repeated = table.group_by("item_id").agg(n=table.count())
    repeated = database.rows(con, repeated.filter(repeated["n"] > 1).order_by("item_id").limit(1))
    if repeated:
        raise ValueError(
            f"{path}: item_id={repeated[0]['item_id']!r} has {repeated[0]['n']} vectors; keep one."
        )
    missing = items.anti_join(table, "item_id").order_by("item")
    num_missing = database.count(con, missing)
    if num_missing:
        first = database.rows(con, missing.select("item_id").limit(1))[0]["item_id"]
        raise ValueError(
            f"{path}: item_id={first!r} and {num_missing - 1} more items have no vector; add them."
        )
    joined = items.select("item", "item_id").inner_join(table, "item_id").order_by("item")
    return _write_lists(con, path, joined, database.count(con, items), target)


def _write_lists(
    con: ibis.BaseBackend, path: str, joined: ir.Table, count: int, target: Path
) -> int:
    """Writes the lists of column vector, in the order of `joined`. Returns their width."""
    out = None
    row = 0
    for ids, vectors in _list_batches(con, joined):
        width = len(vectors[0]) if vectors[0].is_valid else 0
        out = (
            np.lib.format.open_memmap(target, "w+", np.float32, (count, width))
            if out is None
            else out
        )
        lengths = pa.compute.list_value_length(vectors).to_numpy(zero_copy_only=False)
        wrong = np.flatnonzero(~(lengths == out.shape[1]))
        if len(wrong) or not out.shape[1]:
            bad = int(wrong[0]) if len(wrong) else 0
            raise ValueError(
                f"{path}: item_id={ids[bad].as_py()!r} has a vector of {lengths[bad]} numbers, "
                f"others have {out.shape[1]}; save all with the same width."
            )
        piece = vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(ids), -1)
        wrong = np.flatnonzero(~np.isfinite(piece).all(1))
        if len(wrong):
            raise ValueError(
                f"{path}: item_id={ids[int(wrong[0])].as_py()!r} has a vector with NaN or "
                "infinity; replace it."
            )
        out[row : row + len(ids)] = piece
        row += len(ids)
    out.flush()
    return out.shape[1]


def _list_batches(con: ibis.BaseBackend, joined: ir.Table) -> Iterator[tuple[pa.Array, pa.Array]]:
    """item_id and vector of the rows of `joined`, a batch at a time, without empty batches."""
    for batch in database.batches(con, joined.select("item_id", "vector")):
        if batch.num_rows:
            yield batch["item_id"], batch["vector"]


def _check_finite(path: str, piece: np.ndarray, start: int) -> None:
    """ValueError for the first row of `piece` with NaN or infinity; row 0 is row `start`."""
    wrong = np.flatnonzero(~np.isfinite(piece).all(1))
    if len(wrong):
        raise ValueError(
            f"{path}: row {start + int(wrong[0]) + 1}: the vector has NaN or infinity; replace it."
        )
