"""Generic input pipeline (Grain): shards of records, batches by (seed, step), first-fit packing.

A batch depends on the seed and the step only: not on the step before it, on threads or on the
number of processes. So a run resumes at any step.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import grain
import numpy as np
import pyarrow as pa
from jaxtyping import Int, Int32, Int64

SCHEMA = pa.schema([("record", pa.binary())])
RECORDS_PER_BATCH = 4_096  # of Arrow; so many records are held in memory while writing


def write_shards(
    records: Iterable[bytes], folder: Path, name: str, records_per_shard: int
) -> list[Path]:
    """Writes `records` in order to FOLDER/NAME-00000.arrow and so on. Returns the paths.

    Without records it writes no file.
    """
    records, paths, free = iter(records), [], 0  # free: records that still fit in the open shard
    with contextlib.ExitStack() as shard:
        while batch := list(
            itertools.islice(records, min(RECORDS_PER_BATCH, free or records_per_shard))
        ):
            if not free:
                shard.close()
                paths.append(folder / f"{name}-{len(paths):05d}.arrow")
                writer = shard.enter_context(pa.ipc.new_file(str(paths[-1]), SCHEMA))
                free = records_per_shard
            writer.write_batch(pa.record_batch([pa.array(batch, pa.binary())], SCHEMA))
            free -= len(batch)
    return paths


class Shards:
    """The records of memory-mapped Arrow files, by number. Only a read record takes memory."""

    def __init__(self, paths: Sequence[Path]):
        self._batches = []
        for path in paths:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
            self._batches += [batch.column(0) for batch in batches]
        self._ends = np.cumsum([len(batch) for batch in self._batches])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, number: int) -> bytes:
        index = int(np.searchsorted(self._ends, number, side="right"))
        batch = self._batches[index]
        return batch[int(number) - int(self._ends[index]) + len(batch)].as_py()


def open_shards(folder: Path, name: str) -> Shards:
    """The records that `write_shards` wrote as `name` in `folder`.

    Raises:
      ValueError: there is no such file, or a file is damaged.
    """
    paths = sorted(folder.glob(f"{name}-*.arrow"))
    if not paths:
        raise ValueError(
            f"{folder} holds no {name}-*.arrow; delete the folder and run its stage again."
        )
    try:
        return Shards(paths)
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or ["truncated"])[0][:200]
        raise ValueError(
            f"{folder}/{name}-*.arrow is damaged ({reason}); delete {folder} and run its stage "
            "again."
        ) from error


def shuffled_forever(source: Sequence | Shards, seed: int) -> grain.MapDataset:
    """An endless dataset of the records of `source`, in a new random order at each pass.

    Element i is a function of (seed, i).

    Raises:
      ValueError: `source` is empty.
    """
    if len(source) == 0:
        raise ValueError(
            "there is no training record; the data needs users with two sessions in training."
        )
    return grain.MapDataset.source(source).seed(seed % 2**32).shuffle().repeat()


def mixed_forever(
    old: grain.MapDataset, new: grain.MapDataset, new_share: float
) -> grain.MapDataset:
    """An endless dataset of elements of `new`, evenly among those of `old`.

    Element i is a function of (the two datasets, i). Each of the two is read in its order.

    Args:
      new_share: of the elements that are from `new`; 1 leaves out `old`.
    """
    if new_share >= 1:
        return new
    return grain.MapDataset.mix([old, new], [1 - new_share, new_share])


def step_batches(
    groups: grain.MapDataset,
    group_rows: int,
    batch_rows: int,
    combine: Callable[[list], dict[str, np.ndarray]],
    rows: Int[np.ndarray, " n"] | None = None,
) -> grain.MapDataset:
    """A dataset whose element s is the batch of step s, or only some rows of it.

    A batch has g = batch_rows / group_rows groups; step s has the groups s*g to (s+1)*g - 1.
    Only groups that hold one of `rows` are computed, so that hosts share the work.

    Worked example: groups of 2 rows, batches of 8, rows [2 3 6]. At step 1 groups 5 and 7 are
    combined, and the first three of their four rows are returned.

    Args:
      groups: the groups, endless or one pass.
      group_rows: rows of a group.
      batch_rows: rows of a batch; a multiple of group_rows.
      combine: puts a list of groups one under another; `stack_rows` does if a group is a dict.
      rows: rows of the batch to return, ascending; None: all.
    """
    assert batch_rows % group_rows == 0
    rows = np.arange(batch_rows) if rows is None else rows
    wanted = np.unique(rows // group_rows)
    index = np.searchsorted(wanted, rows // group_rows) * group_rows + rows % group_rows
    is_all = len(index) == len(wanted) * group_rows
    groups_per_step = batch_rows // group_rows

    def batch(step: int) -> dict[str, np.ndarray]:
        first = step * groups_per_step
        combined = combine([groups[first + int(number)] for number in wanted])
        return combined if is_all else {name: array[index] for name, array in combined.items()}

    return grain.MapDataset.range(len(groups) // groups_per_step).map(batch)


def stack_rows(groups: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The rows of `groups`, one group under another."""
    return {name: np.concatenate([group[name] for group in groups]) for name in groups[0]}


def first_fit(
    sizes: Int[np.ndarray, "K R"], capacity: Int[np.ndarray, " R"], rows: int
) -> tuple[Int32[np.ndarray, " K"], Int64[np.ndarray, "K R"]]:
    """Packs K pieces into `rows` bins by first-fit decreasing.

    - A size has R parts, such as tokens and targets; the first part decides the order.
    - A piece larger than a bin counts as large as a bin.
    - A piece that fits nowhere goes to the bin with most free space in the first part. It is
      granted that space only; the caller must shorten or drop it.

    Worked example: one part, capacity 10, two bins, sizes 6 7 4 5. The bins are 1 0 1 0 and the
    grants are 6 7 4 3: the piece of size 5 fits nowhere and is granted 3.

    Args:
      sizes: of each piece, by part.
      capacity: of a bin, by part.
      rows: number of bins.

    Returns:
      The bin of each piece and the size granted to it, at most its size.
    """
    wanted = np.minimum(sizes, capacity)
    free = np.tile(np.asarray(capacity, np.int64), (rows, 1))
    bins = np.zeros(len(sizes), np.int32)
    grants = np.zeros(wanted.shape, np.int64)
    leftover = []
    for piece in np.argsort(-wanted[:, 0], kind="stable"):
        fits = np.flatnonzero((free >= wanted[piece]).all(axis=1))
        if not len(fits):
            leftover.append(piece)
            continue
        bins[piece] = fits[0]
        grants[piece] = wanted[piece]
        free[fits[0]] -= wanted[piece]
    for piece in leftover:
        bins[piece] = np.argmax(free[:, 0])
        grants[piece] = np.minimum(wanted[piece], free[bins[piece]])
        free[bins[piece]] -= grants[piece]
    return bins, grants
