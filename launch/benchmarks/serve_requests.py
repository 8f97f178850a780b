"""Instructions that a service computes at once, and the time from an event to a new list.

    python -m launch.benchmarks.serve_requests --export=exports/demo --workdir=runs/sft-local

A service with a worker gets the histories of some users of the trained workdir. Then another
process asks it for instructions that nobody trained on (wishes.jsonl):

- one after another: the times of an answer;
- by several callers at once: answers a second, and the mean size of a batch.

At last users get one event each, at random times. A list counts as new when it was made after the
event. The time is until a reader sees it; the period of the worker is a part of it.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import random
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from launch.benchmarks.processes import check_warm, free_port, serve_command, wait_until
from launch.benchmarks.result import write_result
from sigma_jax.schema import PreparedData
from sigma_jax.serving.client import Client, ServiceError

START_SECONDS = 600.0  # until all programs are loaded
SENTENCES = Path(__file__).with_name("wishes.jsonl")
DEADLINE_MS = 60_000
WARM = 20  # requests that are not measured
POLL_SECONDS = 0.02


def main() -> None:
    """Prints the times, and writes them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--export", type=Path, required=True)
    parser.add_argument("--workdir", type=Path, required=True, help="of the training")
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--events", type=int, default=200)
    parser.add_argument("--period", type=float, default=2.0, help="seconds, of the worker")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    sentences = [json.loads(line)["instruction"] for line in SENTENCES.read_text().splitlines()]
    with service(arguments.export, arguments.period) as client:
        users, items = send_histories(client, arguments.workdir, arguments.users)
        wait_for_queue(client)
        result = {"one_at_a_time": one_at_a_time(client, users, sentences, arguments.requests)}
        result["at_once"] = at_once(client, users, sentences, arguments.requests, arguments.callers)
        result["event_to_list"] = event_to_list(client, users, items, arguments.events)
        result["event_to_list"]["period"] = arguments.period
    for name, figures in result.items():
        print(name, {key: round(value, 1) for key, value in figures.items()})
    if arguments.output:
        write_result(arguments.output, result)


@contextmanager
def service(export: Path, period: float) -> Iterator[Client]:
    """A service with a worker, whose programs are all loaded."""
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        flags = f"--port={port}", f"--period={period}"
        process = subprocess.Popen(serve_command(export, f"{folder}/store.db", *flags))
        try:
            wait_until(lambda: check_warm(port), process, START_SECONDS)
            client = Client(f"http://127.0.0.1:{port}", timeout=120.0)
            yield client
        finally:
            process.terminate()
            process.wait(60)


def send_histories(client: Client, workdir: Path, count: int) -> tuple[list[str], list[str]]:
    """Sends the histories of the first users. Returns (their ids, ids of popular items)."""
    data = PreparedData.load(workdir / "data")
    ids, histories = data.catalogue.table["item_id"].to_pylist(), data.histories
    names = data.users.table["user_id"].to_pylist()[:count]
    for number, name in enumerate(names):
        own = slice(histories.offsets[number], histories.offsets[number + 1])
        columns = (histories.item[own], histories.time[own], histories.session[own])
        rows = zip(*(column.tolist() for column in columns), strict=True)
        client.add_many_events(
            {"user_id": name, "item_id": ids[item], "timestamp": when, "session_id": str(session)}
            for item, when, session in rows
        )
    popular = np.argsort(-np.asarray(data.catalogue.popularity), kind="stable")[:500]
    return names, [ids[item] for item in popular]


def wait_for_queue(client: Client) -> None:
    """Returns when no user waits for a list."""
    while not re.search(r"sigma_queue_size\{[^}]*\} 0\.0", client.metrics()):
        time.sleep(0.5)


def ask(client: Client, user: str, sentence: str) -> float:
    """Milliseconds of an answer. RuntimeError if it was not computed."""
    began = time.perf_counter()
    answer = client.ask(user, sentence, deadline_ms=DEADLINE_MS)
    if answer["source"] != "computed":
        raise RuntimeError(f"the answer to {sentence!r} is of the kind {answer['source']!r}.")
    return 1000 * (time.perf_counter() - began)


def one_at_a_time(
    client: Client, users: Sequence[str], sentences: Sequence[str], count: int
) -> dict[str, float]:
    """Percentiles of the times of an answer, in milliseconds."""
    chance = random.Random(0)
    pairs = [(chance.choice(users), chance.choice(sentences)) for _ in range(WARM + count)]
    times = [ask(client, *pair) for pair in pairs][WARM:]
    p50, p99 = np.percentile(times, [50, 99])
    return {"requests": count, "p50_ms": float(p50), "p99_ms": float(p99), "max_ms": max(times)}


def at_once(
    client: Client, users: Sequence[str], sentences: Sequence[str], count: int, callers: int
) -> dict[str, float]:
    """Answers a second of several callers, and the mean size of their batches."""
    chance = random.Random(1)
    pairs = [(chance.choice(users), chance.choice(sentences)) for _ in range(count)]
    with concurrent.futures.ThreadPoolExecutor(callers) as pool:
        list(pool.map(lambda pair: ask(client, *pair), pairs[: 2 * callers]))  # warms
        before, began = batches(client), time.perf_counter()
        times = list(pool.map(lambda pair: ask(client, *pair), pairs))
        seconds = time.perf_counter() - began
    sizes, number = (after - old for after, old in zip(batches(client), before, strict=True))
    p50, p99 = np.percentile(times, [50, 99])
    figures = {"callers": callers, "requests_a_second": count / seconds}
    return figures | {"p50_ms": float(p50), "p99_ms": float(p99), "mean_batch": sizes / number}


def batches(client: Client) -> tuple[float, float]:
    """(requests in batches, batches) since the start of the service."""
    text = client.metrics()
    names = ("sigma_compute_batch_requests_sum", "sigma_compute_batch_requests_count")
    found = [re.search(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE) for name in names]
    return tuple(float(one[1]) if one else 0.0 for one in found)  # type: ignore[return-value]


def event_to_list(
    client: Client, users: Sequence[str], items: Sequence[str], count: int
) -> dict[str, float]:
    """Percentiles of the seconds from an event to the first read of a list made after it."""
    chance, waiting, times = random.Random(2), dict[str, float](), list[float]()
    due = iter(chance.sample(list(users), min(count, len(users))))
    is_sent = False
    while not is_sent or waiting:
        if not is_sent and chance.random() < 0.2:
            user = next(due, None)
            is_sent = user is None
            if user is not None:
                event = {
                    "user_id": user,
                    "item_id": chance.choice(items),
                    "event_id": f"new {user}",
                }
                client.add_events([event])
                waiting[user] = time.time()
        for user, since in list(waiting.items()):
            if is_new(client, user, since):
                times.append(time.time() - since)
                del waiting[user]
        time.sleep(POLL_SECONDS)
    p50, p95 = np.percentile(times, [50, 95])
    return {"events": len(times), "p50_s": float(p50), "p95_s": float(p95), "max_s": max(times)}


def is_new(client: Client, user: str, since: float) -> bool:
    """Whether a user's list was made after `since`, in unix seconds."""
    try:
        answer: Any = client.recommendations(user, count=1)
    except ServiceError:
        return False
    return answer["source"] == "index" and time.time() - answer["age_seconds"] > since


if __name__ == "__main__":
    main()
