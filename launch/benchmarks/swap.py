"""A catalogue that changes under load: does any answer fail, or mix two versions?

    python -m launch.benchmarks.swap --export=exports/demo --users=users.jsonl

Threads ask an export's copy while `sigma_jax.catalogue add` gives it one per cent of new items
(those it has, under other ids) and the process takes them up. Afterwards every request is answered
once more by the version that answered it, alone: another list is a mixed one. Each user is answered
once before the clock starts, so that all programs are compiled; those compiled later are counted,
by whether a request had to wait for them.
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

import jax
import numpy as np

from sigma_jax.serving.engine import Answering, Living
from sigma_jax.serving.requests import Asked, read_users

COMPILED = "/jax/core/compile/backend_compile_duration"
COUNT = 10
SETTLED = 100  # requests answered before items are added, and again by the new version


@dataclasses.dataclass(frozen=True)
class Answer:
    """One request's."""

    number: int
    by: Answering
    items: list[int] | None  # None: it failed
    seconds: float


class Load:
    """Threads that ask one request at a time, each when the one before is answered."""

    def __init__(self, living: Living, asked: list[Asked]):
        self.answers: list[Answer] = []
        self.is_over = threading.Event()
        self._living, self._asked, self._numbers = living, asked, itertools.count()

    def run(self) -> None:
        """Asks until it is over."""
        while not self.is_over.is_set():
            number = next(self._numbers)
            start, by = time.perf_counter(), self._living.now
            try:
                found = by.recommend(self._asked[number % len(self._asked)], COUNT)
                items = found.items[0].tolist()
            except Exception as error:  # whatever it is: it is a failed answer
                print(f"request {number}: {error!r}")
                items = None
            self.answers.append(Answer(number, by, items, time.perf_counter() - start))


def new_items(answering: Answering, share: float, path: Path) -> int:
    """Writes so many of the version's items under other ids; their number."""
    catalogue = answering.version.catalogue
    rows = np.linspace(0, len(catalogue) - 1, max(int(share * len(catalogue)), 1)).astype(int)
    known = zip(rows, catalogue.titles(rows), map(json.loads, catalogue.texts(rows)), strict=True)
    lines = [
        json.dumps({"title": title, **text, "item_id": f"new-{n}"}) for n, title, text in known
    ]
    path.write_text("\n".join(lines) + "\n")
    return len(lines)


def wait_for(load: Load, answers: int) -> None:
    """Until so many are there."""
    while len(load.answers) < answers:
        time.sleep(0.01)


def measure(arguments: argparse.Namespace, folder: Path) -> dict:
    """Figures of one run over the export in `folder`."""
    living = Living(folder)
    first = living.now
    asked = list(read_users(str(arguments.users), first.reading, 1))[: arguments.requests]
    for one in asked:
        first.recommend(one, COUNT)
    load = Load(living, asked)
    threads = [threading.Thread(target=load.run, daemon=True) for _ in range(arguments.threads)]
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **more: event == COMPILED and compiled.append(threading.get_ident())
    )
    items = new_items(first, arguments.share, folder.parent / "new.jsonl")
    for thread in threads:
        thread.start()
    wait_for(load, SETTLED)
    words = ["add", f"--export={folder}", f"--items={folder.parent / 'new.jsonl'}"]
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "sigma_jax.catalogue", *words], check=True)
    added = time.perf_counter()
    living.refresh()
    refreshed = time.perf_counter()
    wait_for(load, max(arguments.requests, len(load.answers) + SETTLED))
    load.is_over.set()
    for thread in threads:
        thread.join()
    counted = tuple(compiled)  # without those of the check below
    waited = sum(ident in {thread.ident for thread in threads} for ident in counted)
    mixed = sum(
        answer.items is not None
        and answer.by.recommend(asked[answer.number % len(asked)], COUNT).items[0].tolist()
        != answer.items
        for answer in load.answers
    )
    ms = np.array([1000 * answer.seconds for answer in load.answers])
    return {
        "requests": len(load.answers),
        "failed": sum(answer.items is None for answer in load.answers),
        "mixed": mixed,
        "by_new_version": sum(answer.by is not first for answer in load.answers),
        "items": len(first.version),
        "new_items": items,
        "add_seconds": added - start,
        "refresh_seconds": refreshed - added,
        "compiled_for_requests": waited,
        "compiled_elsewhere": len(counted) - waited,
        "ms_median": float(np.median(ms)),
        "ms_most": float(ms.max()),
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--export", type=Path, required=True)
    parser.add_argument("--users", type=Path, required=True)
    parser.add_argument("--share", type=float, default=0.01)
    parser.add_argument("--requests", type=int, default=1_000, help="at least")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "export"
        shutil.copytree(arguments.export, folder)
        found = measure(arguments, folder)
    for name, value in found.items():
        print(f"{name:24}{value:>12,.1f}" if isinstance(value, float) else f"{name:24}{value:>12,}")
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=1))
    if found["failed"] or found["mixed"]:
        sys.exit("an answer failed or was mixed")


if __name__ == "__main__":
    main()
