"""Time, memory and disk of preparing generated logs, with DuckDB and with Spark.

    python -m launch.benchmarks.engines --folder=/data/engines --output=engines.json \
        --interactions 1000000 10000000 100000000 --items=1000000 --engines duckdb spark

- Users are 1/100 of the interactions. Items have a popularity by Zipf, a title and a category.
- Each preparation runs in its own process, and makes all that the preset `files` makes, with the
  counts of the reranker. Its text tokenizer is trained on 100,000 texts, as always.
- Memory is the largest sum of the resident memory of the process and its children, Java too, read
  five times a second. Disk is the largest size of the folder that it writes, read each second.
- `same` tells whether the engines wrote the same bytes.
- Rows that the same commit measured before stay in the output.
- --kills=N starts each preparation N times more. Each is killed at a random moment, and the next
  one must make the same bytes from the same folder.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from launch.benchmarks.result import write_result
from sigma_jax.provenance import provenance

CATEGORIES = 1_000
EVENTS_PER_USER = 100
ROWS_A_PIECE = 1_000_000
START, DAYS = 1_700_000_000, 365
SIZES = [1_000_000, 10_000_000, 100_000_000]


def make_tables(folder: Path, interactions: int, items: int, seed: int) -> None:
    """Writes items.parquet and interactions.parquet, a piece at a time."""
    done = folder / "done"
    if done.exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    _write_pieces(folder / "items.parquet", items, lambda rows: _item_rows(rows, rng))
    # An item of rank r is drawn with a weight of 1 / r: by the inverse of the sum of the weights.
    log = np.log(items + 1)
    users = max(interactions // EVENTS_PER_USER, 10)

    def event_rows(rows: np.ndarray) -> pa.Table:
        rank = np.minimum(np.exp(rng.random(len(rows)) * log).astype(np.int64) - 1, items - 1)
        seconds = rng.integers(0, DAYS * 86_400, len(rows))
        return pa.table(
            {
                "user_id": pa.array(rng.integers(0, users, len(rows))).cast(pa.string()),
                "item_id": pa.array(rank * 7919 % items).cast(pa.string()),
                "timestamp": START + seconds,
            }
        )

    _write_pieces(folder / "interactions.parquet", interactions, event_rows)
    done.touch()


def _item_rows(rows: np.ndarray, rng: np.random.Generator) -> pa.Table:
    words = rng.integers(0, 20_000, (len(rows), 4))
    titles = [" ".join(f"w{word}" for word in row) for row in words.tolist()]
    category = pa.array(rows % CATEGORIES).cast(pa.string())
    return pa.table(
        {
            "item_id": pa.array(rows).cast(pa.string()),
            "title": titles,
            "category": pa.compute.binary_join_element_wise("category", category, " "),
            "price": np.round(rng.random(len(rows)) * 100, 2),
        }
    )


def _write_pieces(path: Path, count: int, make) -> None:
    writer = None
    for first in range(0, count, ROWS_A_PIECE):
        table = make(np.arange(first, min(first + ROWS_A_PIECE, count)))
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
    writer.close()


def command(tables: Path, workdir: Path, engine: str, memory: str, threads: int) -> list[str]:
    """The command that prepares `tables` in `workdir`."""
    settings = {
        "path": tables,
        "engine": engine,
        "spark.master": f"local[{threads}]",
        "memory_limit": memory,
        "threads": threads,
        "counts": True,
        "text_encoder": "",
        "split.session_gap_seconds": 86_400,
    }
    flags = [f"--config.data.{name}={value}" for name, value in settings.items()]
    config = Path(__file__).parents[2] / "configs" / "sft.py"
    program = [sys.executable, "-m", "sigma_jax.prepare", f"--config={config}:files"]
    return [*program, f"--workdir={workdir}", *flags]


def run(arguments: list[str], workdir: Path, kill_after: float | None = None) -> dict:
    """Seconds, memory and disk of a process, in GB. With `kill_after` it and its children die."""
    started = time.monotonic()
    with open(workdir / "log.txt", "ab") as log:
        process = subprocess.Popen(
            arguments, stdout=log, stderr=log, start_new_session=True, cwd=Path(__file__).parents[2]
        )
    memory, disk, next_disk = 0, 0, 0.0
    while process.poll() is None:
        now = time.monotonic() - started
        memory = max(memory, resident(process.pid))
        if now >= next_disk:
            disk, next_disk = max(disk, folder_size(workdir)), now + 1
        if kill_after is not None and now > kill_after:
            os.killpg(process.pid, signal.SIGKILL)
        time.sleep(0.2)
    if process.returncode and kill_after is None:
        raise RuntimeError((workdir / "log.txt").read_text()[-2_000:])
    seconds = round(time.monotonic() - started, 1)
    return {"seconds": seconds, "memory": round(memory / 1e9, 2), "disk": round(disk / 1e9, 2)}


def resident(process: int) -> int:
    """Bytes of resident memory of a process group, without the pages of mapped files."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) != process:
                continue
            for line in (folder / "status").read_text().splitlines():
                if line.startswith("RssAnon"):
                    total += int(line.split()[1]) * 1024
        except (OSError, ValueError):  # it ended
            continue
    return total


def folder_size(folder: Path) -> int:
    """Bytes of the files in a folder that is being written."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(root, name)).st_blocks * 512
            except OSError:  # it was moved
                continue
    return total


def fingerprint(folder: Path) -> str:
    """SHA-256 of all files that the preparation wrote, without the manifest: it has the time."""
    found = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.name != "manifest.json":
            found.update(str(path.relative_to(folder)).encode())
            with open(path, "rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


def measure(args: argparse.Namespace, engine: str, interactions: int) -> dict:
    """The row of one engine and one size."""
    tables = args.folder / f"tables-{interactions}-{args.items}"
    make_tables(tables, interactions, args.items, args.seed)
    workdir = args.folder / f"{engine}-{interactions}"
    arguments = command(tables, workdir, engine, args.memory, args.threads)
    shutil.rmtree(workdir, ignore_errors=True)
    workdir.mkdir(parents=True)
    row = {"engine": engine, "interactions": interactions, "items": args.items}
    row |= run(arguments, workdir)
    row["artifact_gb"] = round(folder_size(workdir / "data") / 1e9, 2)
    row["sha256"] = fingerprint(workdir / "data")
    rng = np.random.default_rng(args.seed)
    if args.kills:
        shutil.rmtree(workdir / "data")
        moments = (rng.random(args.kills) * row["seconds"]).tolist()
        for moment in moments:
            run(arguments, workdir, kill_after=moment)
        run(arguments, workdir)
        row["killed_at"] = [round(moment, 1) for moment in moments]
        row["same_after_kills"] = fingerprint(workdir / "data") == row["sha256"]
    if not args.keep:
        shutil.rmtree(workdir)
    return row


def main() -> None:
    """Measures every engine and size, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="of tables and workdirs")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--engines", nargs="+", default=["duckdb", "spark"])
    parser.add_argument("--interactions", nargs="+", type=int, default=SIZES)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--memory", default="5GB", help="data.memory_limit")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="keep the workdirs")
    args = parser.parse_args()
    rows = earlier_rows(args.output)
    for interactions in args.interactions:
        for engine in args.engines:
            row = measure(args, engine, interactions)
            rows = [other for other in rows if key_of(other) != key_of(row)]
            alike = [other for other in rows if key_of(other)[1:] == key_of(row)[1:]]
            row["same"] = {other["sha256"] for other in alike} <= {row["sha256"]}
            rows = sorted([*rows, row], key=lambda row: (row["interactions"], row["engine"]))
            print(json.dumps(row), flush=True)
            write_result(args.output, rows)


def key_of(row: dict) -> tuple[str, int, int]:
    """(engine, interactions, items) of a row."""
    return row["engine"], row["interactions"], row["items"]


def earlier_rows(path: Path) -> list[dict]:
    """The rows of an output that this commit wrote."""
    if not path.exists():
        return []
    content = json.loads(path.read_text())
    if content["provenance"]["commit"] != provenance()["commit"]:
        return []
    rows: list[dict] = content["result"]
    return rows


if __name__ == "__main__":
    main()
