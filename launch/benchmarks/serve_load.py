"""Reads of the U2I index under load: how long they take, for SQLite and for Redis.

    python -m launch.benchmarks.serve_load --export=exports/demo --workdir=runs/serve_load

An index of many users is filled. Then a service answers reads at a fixed rate over loopback, from
another process. A read that begins late, because others hold up the line, counts from the time at
which it was due. The rates rise until p99 is above the limit; --rate measures one. `sent late` says
how much of a time is the reader's own: from when a read was due until it was sent. Redis is
measured if `redis-server` is installed.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import gc
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from launch.benchmarks.processes import (
    check_warm,
    free_port,
    redis_command,
    serve_command,
    wait_until,
)
from launch.benchmarks.result import write_result
from sigma_jax.serving.stores.base import StoredList, open_store

START_SECONDS = 300.0  # of a process
RATES = (500, 1_000, 1_500, 2_000, 3_000, 4_000)
CONNECTIONS = 64
LIMIT_MS = 10.0
ANSWER_SECONDS = 60.0  # for reads that still wait at the end
LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
AT_ONCE = 10_000  # users whose lists are stored together


def main() -> None:
    """Prints a line for each store and rate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--export", type=Path, required=True)
    parser.add_argument("--workdir", type=Path, default=Path("runs/serve_load"))
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rate", type=int, help="reads a second; default: rising rates")
    parser.add_argument("--items", type=int, default=10, help="of a list")
    parser.add_argument("--stores", nargs="+", choices=("sqlite", "redis"))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    arguments.workdir.mkdir(parents=True, exist_ok=True)
    stores: dict[str, contextlib.AbstractContextManager[str]] = {}
    stores["sqlite"] = contextlib.nullcontext(str(arguments.workdir / "store.db"))
    if shutil.which("redis-server"):
        stores["redis"] = redis_server(arguments.workdir)
    rates = RATES if arguments.rate is None else (arguments.rate,)
    result: dict[str, Any] = {"users": arguments.users, "items": arguments.items}
    for name in arguments.stores or stores:
        with stores[name] as url:
            seconds = fill(url, arguments.users, arguments.items)
            print(f"{name}: {arguments.users} lists stored in {seconds:.0f} s", flush=True)
            with service(arguments.export, url) as port:
                result[name] = list(rising(port, arguments.users, arguments.seconds, rates, name))
    if arguments.output:
        write_result(arguments.output, result)


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """The URL of a Redis server that writes each second's changes to a file."""
    port = free_port()
    process = subprocess.Popen(redis_command(folder, port), stdout=subprocess.DEVNULL)
    url = f"redis://127.0.0.1:{port}/0"
    try:
        wait_until(lambda: open_store(url).close(), process, START_SECONDS)
        yield url
    finally:
        process.kill()
        process.wait()


def sample_items(count: int) -> tuple[dict[str, Any], ...]:
    """Items of a list, as a worker stores them."""
    return tuple(
        {
            "item_id": f"item {n:07d}",
            "title": f"a title of usual length, {n}",
            "probability": 0.1 / (n + 1),
            "prefix": n + 1,
            "cosine": 0.5,
        }
        for n in range(count)
    )


def fill(url: str, users: int, count: int) -> float:
    """Stores a list of `count` items for each user. Returns the seconds that it took."""
    store, began = open_store(url), time.monotonic()
    tenant = store.tenant("default")
    one = StoredList(sample_items(count), time.time(), "model", "0001", 0)
    for start in range(0, users, AT_ONCE):
        names = range(start, min(start + AT_ONCE, users))
        tenant.put_lists({f"user {n}": {"home": one} for n in names}, 10**6)
    store.close()
    return time.monotonic() - began


@contextlib.contextmanager
def service(export: Path, url: str) -> Iterator[int]:
    """The port of an API process over the store, whose programs are all loaded."""
    port = free_port()
    process = subprocess.Popen(serve_command(export, url, "--role=api", f"--port={port}"))
    try:
        wait_until(lambda: check_warm(port), process, START_SECONDS)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def rising(
    port: int, users: int, seconds: float, rates: Sequence[int], name: str
) -> Iterator[dict[str, Any]]:
    """Measures at rising rates, until p99 is above the limit."""
    gc.disable()  # a pause of this process would count as one of the service
    uvloop.run(load(port, users, 50, 3.0))  # warms
    for rate in rates:
        times, sent, errors = uvloop.run(load(port, users, rate, seconds))
        p50, p99 = np.percentile(times, [50, 99])
        row = {"rate": rate, "p50_ms": float(p50), "p99_ms": float(p99), "errors": errors}
        row |= {"seconds": seconds, "sent_late_p99_ms": float(np.percentile(sent, 99))}
        print(
            f"{name}: {rate} reads a second for {seconds:.0f} s: p50 {p50:.1f} ms, "
            f"p99 {p99:.1f} ms, {errors} errors; p99 sent late {row['sent_late_p99_ms']:.1f} ms",
            flush=True,
        )
        yield row
        if p99 > LIMIT_MS:
            return


class Reader(asyncio.Protocol):
    """A connection that sends one read at a time and notes when its answer has come."""

    def __init__(self, on_answer: Callable[[Reader, int, bool], None]):
        """Args:
        on_answer: gets the connection, the number of the read, and whether it came from the index.
        """
        self._on_answer, self._received, self._number = on_answer, b"", 0
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def read(self, number: int, request: bytes) -> None:
        """Sends a read."""
        self._received, self._number = b"", number
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if found and len(body) >= int(LENGTH.search(head)[1]):
            is_listed = b" 200 " in head[:20] and b'"source":"index"' in body
            self._on_answer(self, self._number, is_listed)

    def close(self) -> None:
        """Ends the connection."""
        self._transport.close()


async def load(
    port: int, users: int, rate: float, seconds: float
) -> tuple[np.ndarray, np.ndarray, int]:
    """(milliseconds of each read since it was due, until it was sent, number of errors)."""
    count, chance = int(rate * seconds), random.Random(0)
    path = "/v1/users/user%20{}/recommendations"
    line = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"
    requests = [line.format(chance.randrange(users)).encode() for _ in range(count)]
    times, sent, errors, answered = np.full(count, np.inf), np.zeros(count), 0, 0
    # In turn: the service closes a connection that nobody uses for seconds.
    free: collections.deque[Reader] = collections.deque()
    waiting: collections.deque[int] = collections.deque()
    everything, clock = asyncio.Event(), time.perf_counter

    def send(reader: Reader, number: int) -> None:
        sent[number] = 1000 * (clock() - began - number / rate)
        reader.read(number, requests[number])

    def note(reader: Reader, number: int, is_listed: bool) -> None:
        nonlocal errors, answered
        times[number] = 1000 * (clock() - began - number / rate)
        errors, answered = errors + (not is_listed), answered + 1
        if waiting:
            send(reader, waiting.popleft())
        else:
            free.append(reader)
        if answered == count:
            everything.set()

    loop = asyncio.get_running_loop()
    for _ in range(CONNECTIONS):
        _, reader = await loop.create_connection(lambda: Reader(note), "127.0.0.1", port)
        free.append(reader)
    began = clock()
    for number in range(count):
        if (delay := began + number / rate - clock()) > 0:
            await asyncio.sleep(delay)
        elif number % 32 == 0:
            await asyncio.sleep(0)  # lets answers in
        if free:
            send(free.popleft(), number)
        else:
            waiting.append(number)
    await asyncio.wait_for(everything.wait(), ANSWER_SECONDS)
    for reader in free:
        reader.close()
    return times, sent, errors


if __name__ == "__main__":
    main()
