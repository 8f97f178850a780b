"""Generic Grain plumbing: shards of records, batches by (seed, step), first-fit packing.

What a batch holds depends on the seed and the step alone: not on the step before it, on threads
or on the number of processes. So a run is resumed by asking for the next step.
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
HELD = 4_096  # records at a time while writing, and in one Arrow batch


def write_shards(
    records: Iterable[bytes], folder: Path, name: str, records_per_shard: int
) -> list[Path]:
    """Writes `records` in order to `folder/name-00000.arrow` and so on; returns the paths.

    Holds HELD records at a time. No records, no file.
    """
    records, paths, room = iter(records), [], 0
    with contextlib.ExitStack() as shard:
        while held := list(itertools.islice(records, min(HELD, room or records_per_shard))):
            if not room:
                shard.close()
                paths.append(folder / f"{name}-{len(paths):05d}.arrow")
                writer = shard.enter_context(pa.ipc.new_file(str(paths[-1]), SCHEMA))
                room = records_per_shard
            writer.write_batch(pa.record_batch([pa.array(held, pa.binary())], SCHEMA))
            room -= len(held)
    return paths


class Shards:
    """Records in Arrow files, memory-mapped, by number: what was not read takes no memory."""

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
        place = int(np.searchsorted(self._ends, number, side="right"))
        batch = self._batches[place]
        return batch[int(number) - int(self._ends[place]) + len(batch)].as_py()


def open_shards(folder: Path, name: str) -> Shards:
    """The records that `write_shards` wrote, by number. ValueError if there are none."""
    paths = sorted(folder.glob(f"{name}-*.arrow"))
    if not paths:
        raise ValueError(
            f"{folder} holds no {name}-*.arrow; delete the folder and run its stage again."
        )
    try:
        return Shards(paths)
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or ["cut short"])[0][:200]
        raise ValueError(
            f"{folder}/{name}-*.arrow is damaged ({reason}); delete {folder} and run again."
        ) from error


def shuffled_forever(source: Sequence, seed: int) -> grain.MapDataset:
    """The records of `source`, endlessly, in an order drawn anew for each pass over them.

    Element i is a function of (seed, i). ValueError if the source is empty.
    """
    if len(source) == 0:
        raise ValueError("there is no training record; the data needs users with two sessions.")
    return grain.MapDataset.source(source).seed(seed % 2**32).shuffle().repeat()


def step_batches(
    groups: grain.MapDataset,
    group_rows: int,
    batch_rows: int,
    combine: Callable[[list], dict[str, np.ndarray]],
    rows: Int[np.ndarray, " n"] | None = None,
) -> grain.MapDataset:
    """A dataset whose element s is the batch of step s, or only its `rows` (ascending).

    A batch is made of groups of `group_rows` rows, and step s owns groups s*g .. (s+1)*g; only
    those that hold one of `rows` are made, so hosts share the work. `combine` puts groups under
    one another. Worked example, groups of 2 rows, batches of 8, rows [2 3 6]: at step 1 groups 5
    and 7 are combined, and of these four rows the first three are given.
    """
    assert batch_rows % group_rows == 0
    rows = np.arange(batch_rows) if rows is None else rows
    wanted = np.unique(rows // group_rows)
    place = np.searchsorted(wanted, rows // group_rows) * group_rows + rows % group_rows
    is_all = len(place) == len(wanted) * group_rows
    groups_per_step = batch_rows // group_rows

    def batch(step: int) -> dict[str, np.ndarray]:
        first = step * groups_per_step
        made = combine([groups[first + int(number)] for number in wanted])
        return made if is_all else {name: array[place] for name, array in made.items()}

    return grain.MapDataset.range(len(groups) // groups_per_step).map(batch)


def stack_rows(groups: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Groups of rows one under another."""
    return {name: np.concatenate([group[name] for group in groups]) for name in groups[0]}


def first_fit(
    sizes: Int[np.ndarray, "K R"], capacity: Int[np.ndarray, " R"], rows: int
) -> tuple[Int32[np.ndarray, " K"], Int64[np.ndarray, "K R"]]:
    """Packs K things into `rows` bins of `capacity` by first-fit decreasing.

    Sizes have R parts, say tokens and targets; the first part gives the order. A thing larger than
    a bin counts as large as a bin. One that fits nowhere goes where most of the first part is free
    and is granted what is free there: its maker must shorten it, or give it up.

    Worked example, one part, capacity 10, two bins: sizes 6 7 4 5 -> bins 1 0 1 0 with grants
    6 7 4 3: the 5 fits nowhere and has to do with 3.

    Returns:
      The bin of each thing and the size granted to it, at most `sizes`.
    """
    wanted = np.minimum(sizes, capacity)
    free = np.tile(np.asarray(capacity, np.int64), (rows, 1))
    bins = np.zeros(len(sizes), np.int32)
    grants = np.zeros(wanted.shape, np.int64)
    leftover = []
    for thing in np.argsort(-wanted[:, 0], kind="stable"):
        fits = np.flatnonzero((free >= wanted[thing]).all(axis=1))
        if not len(fits):
            leftover.append(thing)
            continue
        bins[thing] = fits[0]
        grants[thing] = wanted[thing]
        free[fits[0]] -= wanted[thing]
    for thing in leftover:
        bins[thing] = np.argmax(free[:, 0])
        grants[thing] = np.minimum(wanted[thing], free[bins[thing]])
        free[bins[thing]] -= grants[thing]
    return bins, grants
