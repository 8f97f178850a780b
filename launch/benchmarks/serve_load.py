"""Reads of the U2I index under load: how long they take, for SQLite and for Redis.

    python -m launch.benchmarks.serve_load --export=exports/demo --workdir=runs/serve_load

An index of many users is filled. Then a service answers reads at a fixed rate over loopback, from
another process. A read that begins late, because others hold up the line, counts from the time at
which it was due. The rates rise until p99 is above the limit. Redis is measured if `redis-server`
is installed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import random
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from launch.benchmarks.result import write_result
from sigma_jax.serving.stores.base import Store, StoredList, StoreError, open_store

PORT, REDIS_PORT = 8_631, 8_632
RATES = (100, 200, 400, 600, 800, 1_000, 1_200)
CONNECTIONS = 64
LIMIT_MS = 10.0
ITEMS = 10  # of a list
AT_ONCE = 10_000  # users whose lists are stored together


def main() -> None:
    """Prints a line for each store and rate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--export", type=Path, required=True)
    parser.add_argument("--workdir", type=Path, default=Path("runs/serve_load"))
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    arguments.workdir.mkdir(parents=True, exist_ok=True)
    stores = {"sqlite": contextlib.nullcontext(str(arguments.workdir / "store.db"))}
    if shutil.which("redis-server"):
        stores["redis"] = redis_server(arguments.workdir)
    result: dict[str, Any] = {"users": arguments.users}
    for name, running in stores.items():
        with running as url:
            seconds = fill(url, arguments.users)
            print(f"{name}: {arguments.users} lists stored in {seconds:.0f} s", flush=True)
            with service(arguments.export, url):
                result[name] = list(rising(arguments.users, arguments.seconds, name))
    if arguments.output:
        write_result(arguments.output, result)


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """A Redis server that writes each second's changes to a file."""
    command = ["redis-server", "--port", str(REDIS_PORT), "--bind", "127.0.0.1", "--save", ""]
    command += ["--dir", str(folder.absolute()), "--appendonly", "yes"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield f"redis://127.0.0.1:{REDIS_PORT}/0"
    finally:
        process.kill()
        process.wait()


def fill(url: str, users: int) -> float:
    """Stores a list for each user. Returns the seconds that it took."""
    store, began = opened(url), time.monotonic()
    items = tuple(
        {
            "item_id": f"item {n}",
            "title": f"a title of usual length, {n}",
            "probability": 0.1 / (n + 1),
            "prefix": n + 1,
            "cosine": 0.5,
        }
        for n in range(ITEMS)
    )
    tenant, one = store.tenant("default"), StoredList(items, time.time(), "model", "0001", 0)
    for start in range(0, users, AT_ONCE):
        names = range(start, min(start + AT_ONCE, users))
        tenant.put_lists({f"user {n}": {"home": one} for n in names}, 10**6)
    store.close()
    return time.monotonic() - began


def opened(url: str) -> Store:
    """The store, as soon as it answers."""
    for _ in range(100):
        with contextlib.suppress(StoreError):
            return open_store(url)
        time.sleep(0.1)
    return open_store(url)


@contextlib.contextmanager
def service(export: Path, url: str) -> Iterator[None]:
    """An API process over the store."""
    command = [sys.executable, "-m", "sigma_jax.serve", f"--export={export}", f"--store={url}"]
    process = subprocess.Popen([*command, "--role=api", f"--port={PORT}"])
    try:
        for _ in range(3_000):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}/readyz", timeout=5).close()
                break
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(30)


def rising(users: int, seconds: float, name: str) -> Iterator[dict[str, Any]]:
    """Measures at rising rates, until p99 is above the limit."""
    gc.disable()  # a pause of this process would count as one of the service
    asyncio.run(load(users, 50, 3.0))  # warms
    for rate in RATES:
        times, errors = asyncio.run(load(users, rate, seconds))
        p50, p99 = np.percentile(times, [50, 99])
        row = {"rate": rate, "p50_ms": float(p50), "p99_ms": float(p99), "errors": errors}
        print(
            f"{name}: {rate} reads a second for {seconds:.0f} s: p50 {p50:.1f} ms, "
            f"p99 {p99:.1f} ms, {errors} errors",
            flush=True,
        )
        yield row
        if p99 > LIMIT_MS:
            return


async def load(users: int, rate: float, seconds: float) -> tuple[np.ndarray, int]:
    """(milliseconds of each read since it was due, number of errors)."""
    count, chance = int(rate * seconds), random.Random(0)
    names = [f"user%20{chance.randrange(users)}" for _ in range(count)]
    times, errors = np.zeros(count), 0
    free: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    for _ in range(CONNECTIONS):
        free.put_nowait(await asyncio.open_connection("127.0.0.1", PORT))
    began = time.perf_counter()

    async def read(number: int) -> None:
        nonlocal errors
        due = began + number / rate
        reader, writer = await free.get()
        path = f"/v1/users/{names[number]}/recommendations"
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        body = await reader.readexactly(length)
        if b" 200 " not in head[:20] or b'"source":"index"' not in body:
            errors += 1
        times[number] = 1000 * (time.perf_counter() - due)
        free.put_nowait((reader, writer))

    tasks = []
    for number in range(count):
        delay = began + number / rate - time.perf_counter()
        if delay > 0:
            await asyncio.sleep(delay)
        tasks.append(asyncio.create_task(read(number)))
    await asyncio.gather(*tasks)
    while not free.empty():
        free.get_nowait()[1].close()
    return times, errors


if __name__ == "__main__":
    main()
