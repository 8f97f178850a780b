"""A catalogue update under load: no request may fail or get items of two versions.

    python -m launch.benchmarks.swap --export=exports/demo --users=users.jsonl

Threads send requests to an engine over a copy of the export. Meanwhile `sigma_jax.catalogue add`
adds one per cent of new items, which are known items under new ids, and the engine loads the new
version.

Afterwards each request is answered again by the version that answered it, without load. A different
list counts as mixed. All users are answered once before the measurement, so that all programs are
compiled. Later compilations are counted, apart if a request waited for them.
"""

import argparse
import dataclasses
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from launch.benchmarks.result import write_result
from sigma_jax.recommender.recommender import RecommendOptions
from sigma_jax.recommender.requests import file_rows
from sigma_jax.serving.engine import CatalogueSnapshot, RecommendationEngine

COMPILED = "/jax/core/compile/backend_compile_duration"
OPTIONS = RecommendOptions(count=10)
SETTLED = 100  # requests answered before items are added, and after the new version is loaded


@dataclasses.dataclass(frozen=True)
class Answer:
    """The result of one request."""

    number: int
    snapshot: CatalogueSnapshot  # the version that answered it
    items: list[int] | None  # None: the request failed
    seconds: float


class Load:
    """The load of threads that call `run`: each sends its next request after an answer."""

    def __init__(self, engine: RecommendationEngine, rows: list[dict[str, Any]]):
        self.answers: list[Answer] = []
        self.is_over = threading.Event()
        self._engine, self._rows, self._numbers = engine, rows, itertools.count()

    def run(self) -> None:
        """Sends requests until `is_over` is set."""
        while not self.is_over.is_set():
            number = next(self._numbers)
            snapshot = self._engine.current
            start = time.perf_counter()
            try:
                items = answer(snapshot, self._rows[number % len(self._rows)])
            except Exception as error:  # any error counts as a failed request
                print(f"request {number}: {error!r}")
                items = None
            self.answers.append(Answer(number, snapshot, items, time.perf_counter() - start))


def answer(snapshot: CatalogueSnapshot, row: dict[str, Any]) -> list[int]:
    """The items that a version recommends for a row of the users' file."""
    return snapshot.recommend(snapshot.parser.parse([row]), OPTIONS).items[0].tolist()


def new_items(snapshot: CatalogueSnapshot, share: float, path: Path) -> int:
    """The number of items written to `path`: the `share` of the version's items, under new ids."""
    catalogue = snapshot.version.catalogue
    rows = np.linspace(0, len(catalogue) - 1, max(int(share * len(catalogue)), 1)).astype(int)
    known = zip(rows, catalogue.titles(rows), map(json.loads, catalogue.texts(rows)), strict=True)
    lines = [
        json.dumps({"title": title, **text, "item_id": f"new-{n}"}) for n, title, text in known
    ]
    path.write_text("\n".join(lines) + "\n")
    return len(lines)


def wait_for(load: Load, answers: int) -> None:
    """Returns when `load` has the given number of answers."""
    while len(load.answers) < answers:
        time.sleep(0.01)


def measure(arguments: argparse.Namespace, folder: Path) -> dict:
    """Measurements of one update of the export in `folder`."""
    engine = RecommendationEngine(folder)
    first = engine.current
    rows = list(itertools.islice(file_rows(arguments.users), arguments.requests))
    for row in rows:
        engine.recommend([row], OPTIONS)
    load = Load(engine, rows)
    threads = [threading.Thread(target=load.run, daemon=True) for _ in range(arguments.threads)]
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **more: event == COMPILED and compiled.append(threading.get_ident())
    )
    items = new_items(first, arguments.share, folder.parent / "new.jsonl")
    for thread in threads:
        thread.start()
    wait_for(load, SETTLED)
    flags = ["add", f"--export={folder}", f"--items={folder.parent / 'new.jsonl'}"]
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "sigma_jax.catalogue", *flags], check=True)
    added = time.perf_counter()
    engine.refresh()
    refreshed = time.perf_counter()
    wait_for(load, max(arguments.requests, len(load.answers) + SETTLED))
    load.is_over.set()
    for thread in threads:
        thread.join()
    counted = tuple(compiled)  # before the check below compiles more programs
    waited = sum(ident in {thread.ident for thread in threads} for ident in counted)
    mixed = sum(
        given.items is not None
        and given.items != answer(given.snapshot, rows[given.number % len(rows)])
        for given in load.answers
    )
    ms = np.array([1000 * given.seconds for given in load.answers])
    return {
        "requests": len(load.answers),
        "failed": sum(given.items is None for given in load.answers),
        "mixed": mixed,
        "by_new_version": sum(given.snapshot is not first for given in load.answers),
        "items": len(first.version),
        "new_items": items,
        "add_seconds": added - start,
        "refresh_seconds": refreshed - added,
        "compiled_for_requests": waited,
        "compiled_elsewhere": len(counted) - waited,
        "ms_median": float(np.median(ms)),
        "ms_max": float(ms.max()),
    }


def main() -> None:
    """Measures one update and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--export", type=Path, required=True)
    parser.add_argument("--users", type=Path, required=True)
    parser.add_argument("--share", type=float, default=0.01)
    parser.add_argument("--requests", type=int, default=1_000, help="minimum number of requests")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "export"
        shutil.copytree(arguments.export, folder)
        results = measure(arguments, folder)
    for name, value in results.items():
        print(f"{name:24}{value:>12,.1f}" if isinstance(value, float) else f"{name:24}{value:>12,}")
    if arguments.output:
        write_result(arguments.output, results)
    if results["failed"] or results["mixed"]:
        sys.exit(f"{results['failed']} requests failed and {results['mixed']} mixed two versions")


if __name__ == "__main__":
    main()
