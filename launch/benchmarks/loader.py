"""Speed and memory of the batches of the stage `sft`, for catalogues and logs of any size.

    python -m launch.benchmarks.loader --workdir=runs/sft-local --output=loader.json

WORKDIR is a finished run. The data is generated: items with random SIDs, and training contexts with
the shapes of WORKDIR's. The contexts are written once and linked under many names, so that 10^8 of
them need the disk space of 10^6. The batches are those of the presets `local` and `qwen3_0p6b`.
Each size runs in its own process, on one core. The table shows:

- the seconds to open the data,
- the anonymous memory of the process after that, and its growth after all batches,
- rows per second,
- the milliseconds for a batch in the middle, as after an interruption.
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

from launch.benchmarks.result import write_result
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
PLAIN = [TASKS.index(name) for name in ("JustForYou", "Longtail", "Discover")]  # without slots


def make_data(source: PreparedData, folder: Path, items: int, rng: np.random.Generator) -> None:
    """Writes prepared data with `items` items, and with more users than are read at once."""
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
    events = 100 * USERS  # the loader never reads them: the files are sparse
    for name, kind in (("item", np.int32), ("time", np.int64), ("session", np.int32)):
        open_memmap(folder / f"history_{name}.npy", "w+", kind, (events,)).flush()
    ends = 100 * np.arange(USERS + 1, dtype=np.int64)
    for name, cuts in (("offsets", ends), ("valid_start", ends[1:]), ("test_start", ends[1:])):
        np.save(folder / f"history_{name}.npy", cuts)
    (folder / "text_tokenizer").symlink_to(source.text_tokenizer_folder.resolve())


def make_records(
    source: Path, folder: Path, items: int, samples: int, rng: np.random.Generator
) -> None:
    """Writes contexts with the shapes of those in `source`, and with random items."""
    folder.mkdir()
    templates = open_shards(source, RECORDS)
    written = min(samples, WRITTEN)

    def records():
        for number in range(written):
            template = Record.from_bytes(templates[number % len(templates)])
            item, favourites, target = (
                rng.integers(0, items, len(array), dtype=np.int32)
                for array in (template.item, template.favourites, template.target)
            )
            task = np.where(np.isin(template.task, PLAIN), template.task, CATEGORY)
            category = rng.integers(0, CATEGORIES, len(task), dtype=np.int32)
            yield dataclasses.replace(
                template,
                user=int(rng.integers(USERS)),
                item=item,
                favourites=favourites,
                target=target,
                task=task,
                slot_value=np.where(task == CATEGORY, category, -1),
            ).to_bytes()

    shards = write_shards(records(), folder, RECORDS, written)
    for copy in range(1, samples // written):
        os.link(shards[0], folder / f"{RECORDS}-{copy:05d}.arrow")


def anonymous_mb() -> float:
    """The memory of this process in MB, without mapped files, which the system can take back."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition("RssAnon:")[2].split()[0]) / 1024


def measure(place: Path, preset: str, count: int) -> dict[str, float]:
    """The metrics of `count` batches of the preset, in this process."""
    values, _ = stage_fields(get_config(preset), "sft")
    prompt = to_dataclass(SftConfig, values).prompt
    before, start = anonymous_mb(), time.perf_counter()
    data = PreparedData.load(place / "data")
    semantic_ids = SemanticIds.load(place / "tokenizer")
    vocabulary = len(load_text_tokenizer(data))
    dataset = batches(place / "records", data, semantic_ids, prompt, vocabulary, 0, ROWS)
    dataset[0]
    opened, held = time.perf_counter() - start, anonymous_mb() - before
    start = time.perf_counter()
    for step in range(1, count + 1):
        batch = dataset[step]
    seconds = time.perf_counter() - start
    rng, far = np.random.default_rng(1), []
    for _ in range(10):
        step = int(rng.integers(10**9))
        start = time.perf_counter()
        dataset[step]
        far.append(time.perf_counter() - start)
    return {
        "samples": len(open_shards(place / "records", RECORDS)),
        "opened_seconds": opened,
        "opened_mb": held,
        "grown_mb": anonymous_mb() - before - held,
        "rows_per_second": count * ROWS / seconds,
        "tokens_per_second": count * batch["token"].size / seconds,
        "far_batch_ms": 1000 * float(np.median(far)),
    }


def main() -> None:
    """Measures every size and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/sft-local"))
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--share", type=float, default=1.0, help="factor on the sizes, for a trial")
    parser.add_argument(
        "--place", type=Path, help="folder of the generated data; temporary by default"
    )
    parser.add_argument("--measure", help="PRESET: measure the data in --place and print JSON")
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
                metrics = json.loads(done.stdout.splitlines()[-1])
                report.append({"preset": preset, "items": items, **metrics})
                print(
                    f"{preset:12}{items:>12,}{metrics['samples']:>13,}"
                    + "".join(f"{metrics[name]:>17,.1f}" for name in names),
                    flush=True,
                )
    if arguments.output:
        write_result(arguments.output, report)


if __name__ == "__main__":
    main()
