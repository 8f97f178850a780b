"""Batches of stage 3 from a catalogue and a log of any size: how fast, and in how much memory.

    python -m launch.benchmarks.loader --workdir=runs/sft-local --output=loader.json

Data is generated: items with random SIDs, and training contexts with the shapes of WORKDIR's (a
finished run), written once and linked under many names, so that 10^8 of them need the disk of
10^6. Each size runs in a process of its own: seconds to open all of it, memory of the process
that is not of files (which the system can take back) after that and after all batches, rows a
second on one core, and milliseconds for a batch somewhere in the middle, as after an interruption.
Batches are those of the presets `local` and `qwen3_0p6b`.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.lib.format import open_memmap

from sigma_jax.configs.sft import get_config
from sigma_jax.data.pipeline import open_shards, write_shards
from sigma_jax.prompts.packing import batches
from sigma_jax.prompts.records import RECORDS, Record
from sigma_jax.prompts.tokens import load_text_tokenizer
from sigma_jax.runtime.config import to_dataclass
from sigma_jax.schema import TASKS, Catalogue, PreparedData, SemanticIds, Users
from sigma_jax.sft.config import SftConfig
from sigma_jax.stages import stage_fields

SIZES = ((100_000, 1_000_000), (10_000_000, 100_000_000))  # items, samples
WRITTEN, CATEGORIES, USERS, ROWS = 1_000_000, 1_000, 1_000_000, 64
PRESETS = ("local", "qwen3_0p6b")
CATEGORY = TASKS.index("Category")
PLAIN = [TASKS.index(name) for name in ("JustForYou", "Longtail", "Discover")]  # need no tables


def make_data(source: PreparedData, folder: Path, items: int, rng: np.random.Generator) -> None:
    """A prepared folder of so many items, and of more users than are read at once."""
    folder.mkdir(parents=True)
    words = pa.array(["thing"]).take(pa.array(np.zeros(items, np.int8)))
    table = pa.table({"item_id": words, "text": words, "title": words})
    category = rng.integers(0, CATEGORIES, items, dtype=np.int32)
    names = pa.array([f"category {number}" for number in range(CATEGORIES)])
    popularity = (items / np.arange(1, items + 1)).astype(np.int64)
    Catalogue(table, category, names, popularity).save(folder)
    profiles = pa.array(["age 30-39", "age 40-49"]).take(pa.array(np.arange(USERS) % 2))
    ids = pa.array(["user"]).take(pa.array(np.zeros(USERS, np.int8)))
    Users(pa.table({"user_id": ids, "profile": profiles})).save(folder)
    events = 100 * USERS  # never read by the loader: holes in the files
    for name, kind in (("item", np.int32), ("time", np.int64), ("session", np.int32)):
        open_memmap(folder / f"history_{name}.npy", "w+", kind, (events,)).flush()
    ends = 100 * np.arange(USERS + 1, dtype=np.int64)
    for name, cuts in (("offsets", ends), ("valid_start", ends[1:]), ("test_start", ends[1:])):
        np.save(folder / f"history_{name}.npy", cuts)
    (folder / "text_tokenizer").symlink_to(source.text_tokenizer_folder.resolve())


def make_records(
    source: Path, folder: Path, items: int, samples: int, rng: np.random.Generator
) -> None:
    """Contexts with the shapes of those in `source`, over other items."""
    folder.mkdir()
    known = open_shards(source, RECORDS)
    written = min(samples, WRITTEN)

    def drawn():
        for number in range(written):
            found = Record.from_bytes(known[number % len(known)])
            item, favourites, target = (
                rng.integers(0, items, len(array), dtype=np.int32)
                for array in (found.item, found.favourites, found.target)
            )
            task = np.where(np.isin(found.task, PLAIN), found.task, CATEGORY)
            demand = rng.integers(0, CATEGORIES, len(task), dtype=np.int32)
            yield dataclasses.replace(
                found,
                user=int(rng.integers(USERS)),
                item=item,
                favourites=favourites,
                target=target,
                task=task,
                slot_value=np.where(task == CATEGORY, demand, -1),
            ).to_bytes()

    shards = write_shards(drawn(), folder, RECORDS, written)
    for copy in range(1, samples // written):
        os.link(shards[0], folder / f"{RECORDS}-{copy:05d}.arrow")


def own_mb() -> float:
    """Memory of this process that is not of files."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition("RssAnon:")[2].split()[0]) / 1024


def measure(place: Path, preset: str, count: int) -> dict[str, float]:
    """Figures of `count` batches of the preset, in this process."""
    values, _ = stage_fields(get_config(preset), "sft")
    prompt = to_dataclass(SftConfig, values).prompt
    before, began = own_mb(), time.perf_counter()
    data = PreparedData.load(place / "data")
    semantic_ids = SemanticIds.load(place / "tokenizer")
    vocabulary = len(load_text_tokenizer(data))
    made = batches(place / "records", data, semantic_ids, prompt, vocabulary, 0, ROWS)
    made[0]
    opened, held = time.perf_counter() - began, own_mb() - before
    began = time.perf_counter()
    for step in range(1, count + 1):
        batch = made[step]
    seconds = time.perf_counter() - began
    rng, far = np.random.default_rng(1), []
    for _ in range(10):
        step = int(rng.integers(10**9))
        began = time.perf_counter()
        made[step]
        far.append(time.perf_counter() - began)
    return {
        "samples": len(open_shards(place / "records", RECORDS)),
        "opened_seconds": opened,
        "opened_mb": held,
        "grown_mb": own_mb() - before - held,
        "rows_per_second": count * ROWS / seconds,
        "tokens_per_second": count * batch["token"].size / seconds,
        "far_batch_ms": 1000 * float(np.median(far)),
    }


def main() -> None:
    """Measures every size and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/sft-local"))
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--share", type=float, default=1.0, help="of the sizes, to try it out")
    parser.add_argument("--place", type=Path, help="of the generated data; temporary if not given")
    parser.add_argument("--measure", help="PRESET: measure what lies in --place and print JSON")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.place, arguments.measure, arguments.batches)))
        return
    report = []
    names = ("opened_seconds", "opened_mb", "grown_mb", "rows_per_second", "far_batch_ms")
    print(f"{'preset':12}{'items':>12}{'samples':>13}" + "".join(f"{n:>17}" for n in names))
    with tempfile.TemporaryDirectory(dir=arguments.place) as folder:
        for items, samples in SIZES:
            items, samples = int(items * arguments.share), int(samples * arguments.share)
            place, rng = Path(folder) / str(items), np.random.default_rng(0)
            make_data(PreparedData.load(arguments.workdir / "data"), place / "data", items, rng)
            codes = rng.integers(0, 256, (items, 4), dtype=np.int32)
            (place / "tokenizer").mkdir()
            SemanticIds(codes, 256).save(place / "tokenizer")
            make_records(arguments.workdir / "records", place / "records", items, samples, rng)
            for preset in PRESETS:
                words = [f"--measure={preset}", f"--place={place}"]
                words += [f"--batches={arguments.batches}"]
                command = [sys.executable, "-m", "launch.benchmarks.loader", *words]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                found = json.loads(done.stdout.splitlines()[-1])
                report.append({"preset": preset, "items": items, **found})
                print(
                    f"{preset:12}{items:>12,}{found['samples']:>13,}"
                    + "".join(f"{found[name]:>17,.1f}" for name in names),
                    flush=True,
                )
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
