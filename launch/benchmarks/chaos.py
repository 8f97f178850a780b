"""Worker, API and Redis are killed in turn under load: is an event lost, or a user left stale?

    python -m launch.benchmarks.chaos --export=exports/demo --store=redis --kills=20

Another process sends numbered events, each until it is acknowledged, and reads lists meanwhile. The
parts are killed with SIGKILL and started again, one after another. In the end every acknowledged
event must be in the store once, and every user's list must know the user's newest event. Calls may
fail only between the kill of the API or of the store and the moment when it answers again; while
the worker is dead no call may fail. With --store=sqlite there is no server to kill.

`--fsync` is Redis's appendfsync. A killed Redis has passed its writes to the system before it
answered, so `everysec` loses nothing here; a loss of power may cost it the last second. `always`
loses nothing then either.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import http.client
import json
import multiprocessing
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from launch.benchmarks.processes import (
    free_port,
    get,
    redis_command,
    serve_command,
    wait_until,
)
from launch.benchmarks.result import write_result
from sigma_jax.schema import Catalogue
from sigma_jax.serving.bundle import Bundle
from sigma_jax.serving.nearline import HOME, REPORT
from sigma_jax.serving.stores.base import MOST_EVENTS, Store, StoreError, open_store

TENANT = "default"
USERS, WRITERS = 64, 4
ANSWER_SECONDS, RETRY_SECONDS, PAUSE_SECONDS = 10.0, 0.05, 0.05
GRACE_SECONDS = 1.0  # after a part answers again: calls that began before may still fail
START_SECONDS = 300.0  # of a part
LEASE_SECONDS = 10.0
FIRST = 1_700_000_000  # time of the first event, unix seconds


@dataclasses.dataclass(frozen=True)
class Report:
    """The kills of a run, and its losses."""

    kills: dict[str, int]  # by part
    down_seconds: dict[str, float]  # by part, of all kills
    acknowledged: int  # events
    reads: int
    errors_while_down: int
    errors_otherwise: list[str]
    lost: list[str]  # ids of acknowledged events that the store lacks
    twice: list[str]  # ids of events that the store has twice
    stale: list[str]  # users whose list lacks the newest event
    waiting: int  # users in the queue at the end

    @property
    def is_good(self) -> bool:
        """Whether nothing was lost, and calls failed only while a part was down."""
        faults = (self.errors_otherwise, self.lost, self.twice, self.stale, self.waiting)
        return self.acknowledged > 0 and not any(faults)


class Part:
    """A process of the service that is killed and started again."""

    def __init__(self, name: str, command: Sequence[str], check: Callable[[int], Any]):
        """Args:
        check: gets the process id; raises OSError or StoreError until the process answers.
        """
        self.name, self._command, self._check = name, command, check
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it, and waits until it answers. Errors as in `wait_until`."""
        process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        self._process = process
        wait_until(lambda: self._check(process.pid), process, START_SECONDS)

    def kill(self) -> None:
        """Ends it at once."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()


def main() -> None:
    """Prints what was found; exit status 1 if anything is lost, stale, or failed without need."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--export", type=Path, required=True)
    parser.add_argument("--store", choices=("redis", "sqlite"), default="redis")
    parser.add_argument("--fsync", choices=("always", "everysec"), default="always")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=3.0, help="of load before each kill")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = run(
            arguments.export,
            Path(folder),
            arguments.store,
            arguments.kills,
            arguments.seconds,
            arguments.fsync,
        )
    for field in dataclasses.fields(report):
        value = getattr(report, field.name)
        if isinstance(value, list):
            value = f"{len(value)} {value[:5] or ''}"
        print(f"{field.name.replace('_', ' ')}: {value}", flush=True)
    if arguments.output:
        write_result(arguments.output, {"store": arguments.store, **dataclasses.asdict(report)})
    sys.exit(not report.is_good)


def run(
    export: Path, folder: Path, store: str, kills: int, seconds: float, fsync: str = "always"
) -> Report:
    """Kills the parts in turn under load, and looks for what was lost."""
    port, redis_port = free_port(), free_port()
    url = str(folder / "store.db")
    parts = []
    if store == "redis":
        url = f"redis://127.0.0.1:{redis_port}/0"
        command = redis_command(folder, redis_port, fsync)
        parts.append(Part("redis", command, lambda _: check_store(url)))
    serve = serve_command(export, url, "--period=0.2", f"--lease={LEASE_SECONDS}")
    api, worker = [*serve, "--role=api", f"--port={port}"], [*serve, "--role=worker"]
    parts.append(Part("api", api, lambda _: get(port, "/readyz")))
    parts.append(Part("worker", worker, lambda pid: check_worker(url, pid)))
    bundle = Bundle.open(export)
    catalogue = Catalogue.load(export / "catalogue" / bundle.state()["active"])
    items = catalogue.table["item_id"].to_pylist()
    down: list[tuple[str, float, float]] = []
    with contextlib.ExitStack() as running:
        for part in parts:
            running.callback(part.kill)
            part.start()
        with sending(port, items, folder / "calls.json"):
            for number in range(kills):
                time.sleep(seconds)
                part, began = parts[number % len(parts)], time.time()
                part.kill()
                part.start()
                down.append((part.name, began, time.time()))
                took = down[-1][2] - began
                print(f"{number + 1}: killed {part.name}, down {took:.1f} s", flush=True)
            time.sleep(seconds)
        calls = json.loads((folder / "calls.json").read_text())
        found = open_store(url)
        wait_for_lists(found)
        report = judged(found, calls, down)
        found.close()
    return report


def check_store(url: str) -> None:
    """StoreError if the store at `url` cannot be read and written."""
    store = open_store(url)
    why = store.check()
    store.close()
    if why:
        raise StoreError(why)


def check_worker(url: str, pid: int) -> None:
    """StoreError if the worker of a process has not reported yet."""
    store = open_store(url)
    reports = store.tenant(TENANT).documents(REPORT)
    store.close()
    if not any(name.endswith(f"-{pid}") for name in reports):
        raise StoreError(f"worker {pid} has not reported")


@contextlib.contextmanager
def sending(port: int, items: Sequence[str], path: Path) -> Iterator[None]:
    """Another process sends events and reads lists. In the end `path` holds all its calls."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    process = context.Process(target=send_all, args=(port, items, path, stop))
    process.start()
    try:
        yield
    finally:
        stop.set()
        process.join()
    if process.exitcode:
        raise RuntimeError(f"the sending process ended with status {process.exitcode}.")


def send_all(port: int, items: Sequence[str], path: Path, stop: Any) -> None:
    """Sends events by several threads until `stop` is set; writes all calls into `path`."""
    calls: dict[str, list[Any]] = {"acknowledged": [], "reads": [], "errors": []}
    threads = [
        threading.Thread(target=send, args=(port, items, writer, calls, stop))
        for writer in range(WRITERS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    path.write_text(json.dumps(calls))


def send(port: int, items: Sequence[str], writer: int, calls: dict[str, Any], stop: Any) -> None:
    """Sends every event of one writer until it is acknowledged, and reads a list after each."""
    number = writer
    while not stop.is_set() and number < USERS * MOST_EVENTS:
        user, name = f"user-{number % USERS}", f"event-{number}"
        event = {"user_id": user, "item_id": items[number % len(items)], "event_id": name}
        body = json.dumps({"events": [event | {"timestamp": FIRST + number}]})
        # An event that was sent is sent until it is acknowledged, also after `stop`.
        while (error := call(port, "POST", "/v1/events", body)) is not None:
            calls["errors"].append((*error, f"event {number}"))
            time.sleep(RETRY_SECONDS)
        calls["acknowledged"].append(name)
        error = call(port, "GET", f"/v1/users/{user}/recommendations")
        if error is None:
            calls["reads"].append(user)
        else:
            calls["errors"].append((*error, f"read of {user}"))
        number += WRITERS
        time.sleep(PAUSE_SECONDS)


def call(port: int, method: str, path: str, body: str = "") -> tuple[float, float, str] | None:
    """None if the answer's status is 200; otherwise (when it began, when it ended, why)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
    began = time.time()
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read().decode()
        return None if answer.status == 200 else (began, time.time(), f"{answer.status} {text}")
    except (OSError, http.client.HTTPException) as error:
        return began, time.time(), repr(error)
    finally:
        connection.close()


def wait_for_lists(store: Store) -> None:
    """Waits until no user waits, at most for some leases."""
    until = time.monotonic() + START_SECONDS + 3 * LEASE_SECONDS
    while time.monotonic() < until and store.tenant(TENANT).queue().size:
        time.sleep(0.2)


def judged(store: Store, calls: dict[str, Any], down: Sequence[tuple[str, float, float]]) -> Report:
    """The report of a run: all calls of the sender, and (part, killed, up again)."""
    tenant, stored, stale = store.tenant(TENANT), Counter[str](), []
    for user in (f"user-{number}" for number in range(USERS)):
        events, newest = tenant.events(user, MOST_EVENTS)
        stored.update(event.event_id for event in events)
        found = tenant.list_of(user, HOME)
        if newest and (found is None or found.newest < newest):
            stale.append(user)
    excused = [(began, ended + GRACE_SECONDS) for name, began, ended in down if name != "worker"]
    otherwise = [
        f"{what}: {why}"
        for began, ended, why, what in calls["errors"]
        if not any(first <= ended and began <= last for first, last in excused)
    ]
    seconds: dict[str, float] = {}
    for name, began, ended in down:
        seconds[name] = seconds.get(name, 0.0) + ended - began
    return Report(
        kills=dict(Counter(name for name, _, _ in down)),
        down_seconds={name: round(value, 1) for name, value in seconds.items()},
        acknowledged=len(calls["acknowledged"]),
        reads=len(calls["reads"]),
        errors_while_down=len(calls["errors"]) - len(otherwise),
        errors_otherwise=otherwise,
        lost=[name for name in calls["acknowledged"] if not stored[name]],
        twice=[name for name, count in stored.items() if count > 1],
        stale=stale,
        waiting=tenant.queue().size,
    )


if __name__ == "__main__":
    main()
