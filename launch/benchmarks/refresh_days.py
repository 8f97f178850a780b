"""Days in a row: a refresh each day, against a training from the start each day.

    python -m launch.benchmarks.refresh_days --folder=runs/refresh_days

The data is Complete Journey by time. A first training sees all days before --first. Then each day
its rows, and the items that were bought 20 times by its end, come to the refresh; another training
starts anew with all rows up to its end. All recommenders, also the first one, answer the same
requests: those of the next day, with the whole history before it.

It needs the extra `demo`. A killed benchmark continues where it was. Each training and each refresh
runs in a process of its own. The time of a training is that of its data and its stages; the time of
a refresh includes its judgement.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ml_collections import ConfigDict

from launch.benchmarks.result import write_result
from sigma_jax import refresh, train
from sigma_jax.configs import data as data_configs
from sigma_jax.configs import refresh as refresh_configs
from sigma_jax.configs import sft
from sigma_jax.data import database
from sigma_jax.data.config import DataConfig
from sigma_jax.data.sources import complete_journey
from sigma_jax.recommender.parts import RecommenderParts
from sigma_jax.recommender.recommender import Recommender, RecommendOptions
from sigma_jax.refreshing.data import grown_histories
from sigma_jax.refreshing.judge import TOP, Comparison, compare, known_part
from sigma_jax.refreshing.lineage import Lineage
from sigma_jax.refreshing.rows import LogSettings, NewItems, read_rows
from sigma_jax.runtime.artifacts import read_manifest
from sigma_jax.runtime.config import MeshConfig, to_dataclass
from sigma_jax.runtime.files import read_json, write_json
from sigma_jax.runtime.sharding import make_mesh
from sigma_jax.schema import PreparedData, RequestBatch, Requests, Users
from sigma_jax.stages import STAGES
from sigma_jax.tasks.requests import sample_requests

MIN_COUNT = 20  # purchases of an item before it is part of the catalogue, as in the demo
REQUESTS = {"JustForYou": 1_000} | dict.fromkeys(
    ("Query", "Category", "Longtail", "Discover", "Season", "Holiday"), 300
)
LIMITS = {"memory_limit": "2GB", "threads": 2}
NO_ITEMS = {name: pa.array([], pa.string()) for name in ("item_id", "text", "title", "category")}


def main() -> None:
    """Runs all days, or one part of them, and prints the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument(
        "--first", type=datetime.date.fromisoformat, default=datetime.date(2017, 12, 4)
    )
    parser.add_argument("--days", type=int, default=7)
    parser.add_argument(
        "--preset", default="local", help="of configs/sft.py and configs/refresh.py"
    )
    parser.add_argument("--output", type=Path)
    parser.add_argument("--part", default="", help="train:DAY or refresh:DAY alone")
    arguments = parser.parse_args()
    days = Days(arguments.folder, arguments.first, arguments.preset)
    if arguments.part:
        name, _, day = arguments.part.partition(":")
        (days.train if name == "train" else days.refresh)(int(day))
        return
    days.write_tables(arguments.days)
    found = []
    run_part(arguments, "train:0")
    for day in range(1, arguments.days + 1):
        for name in ("refresh", "train"):
            run_part(arguments, f"{name}:{day}")
        found.append(days.result(day))
        print(line(found[-1]), flush=True)
    print(summary(found))
    if arguments.output:
        write_result(arguments.output, {"preset": arguments.preset, "days": found})


def run_part(arguments: argparse.Namespace, part: str) -> None:
    """Runs one part in a process of its own. CalledProcessError if it fails."""
    words = [f"--folder={arguments.folder}", f"--first={arguments.first}"]
    words += [f"--preset={arguments.preset}", f"--part={part}"]
    subprocess.run([sys.executable, "-m", "launch.benchmarks.refresh_days", *words], check=True)


@dataclasses.dataclass(frozen=True)
class Days:
    """The folder of the benchmark. Day 0 is all days before the first."""

    folder: Path
    first: datetime.date
    preset: str

    def end(self, day: int) -> datetime.datetime:
        """The time at which a day is over."""
        date = self.first + datetime.timedelta(days=day)
        return datetime.datetime.combine(date, datetime.time())

    def tables(self, day: int) -> Path:
        """The folder with all rows up to the end of a day."""
        return self.folder / "tables" / str(day)

    def new(self, day: int) -> Path:
        """The folder with the rows of a day, and its new items."""
        return self.folder / "new" / str(day)

    def trained(self, day: int) -> Path:
        """The workdir of the training with all rows up to the end of a day."""
        return self.folder / "trained" / str(day)

    @property
    def base(self) -> Path:
        """The workdir that is refreshed. Its first training is that of day 0."""
        return self.trained(0)

    def write_tables(self, count: int) -> None:
        """Writes the tables of all days as Parquet, unless they are there."""
        if (self.folder / "tables.json").exists():
            return
        fields = to_dataclass(DataConfig, data_configs.data_fields("local"))
        with database.open_database(self.folder / "database", **LIMITS) as con:
            source = complete_journey.read(con, fields)
            log = con.create_table("log", source.interactions)
            for day in range(count + 2):
                items = source.items.semi_join(frequent(log, self.end(day)), "item_id")
                folder = self.tables(day)
                save(con, items, folder / "items.parquet")
                save(con, before(log, self.end(day)), folder / "interactions.parquet")
                for name in ("users", "searches", "themes"):
                    save(con, getattr(source, name), folder / f"{name}.parquet")
                if day:
                    known = frequent(log, self.end(day - 1))
                    save(con, items.anti_join(known, "item_id"), self.new(day) / "items.parquet")
                    rows = before(log, self.end(day))
                    rows = rows.filter(rows["timestamp"] >= ibis.literal(self.end(day - 1)))
                    save(con, rows, self.new(day) / "interactions.parquet")
        write_json(self.folder / "tables.json", {"days": count})

    def config(self, day: int) -> ConfigDict:
        """The config of the training up to a day."""
        config = sft.get_config(self.preset).unlock()
        text = config.data.text
        config.data = data_configs.data_fields("files")
        config.data.text = text
        config.data.path = str(self.tables(day))
        config.data.unknown_items = "drop"
        return config

    def train(self, day: int) -> None:
        """Trains from the start with all rows up to the end of a day."""
        train.train(self.config(day), self.trained(day), make_mesh(MeshConfig(-1, 1, 1)))

    def refresh(self, day: int) -> None:
        """Refreshes with the rows of a day."""
        config = refresh_configs.get_config(self.preset).unlock()
        config.unknown_items = "drop"
        items = self.new(day) / "items.parquet"
        has_items = len(pq.read_table(items)) > 0
        files = refresh.NewFiles(
            str(self.new(day) / "interactions.parquet"), str(items) if has_items else ""
        )
        if Lineage(self.base).finished[-1] < f"{day:04d}":
            refresh.refresh(config, self.base, files)

    def result(self, day: int) -> dict[str, Any]:
        """Qualities and times of a day; computed once."""
        path = self.folder / f"result-{day}.json"
        if not path.exists():
            lineage = Lineage(self.base)
            refreshed = lineage.folder(f"{day:04d}")
            judgement = read_manifest(refreshed, "judgement").metrics
            running = next(
                name
                for name in reversed(lineage.finished)
                if name <= refreshed.name and lineage.is_accepted(name)
            )
            found = compare_days(self, day, refreshed, lineage.folder(running))
            seconds = [judgement["seconds"], training_seconds(self.trained(day))]
            names = ("refresh_seconds", "training_seconds")
            found |= dict(zip(names, seconds, strict=True))
            found["is_accepted"] = judgement["is_accepted"]
            write_json(path, {"day": day, "date": str(self.end(day - 1).date()), **found})
        return read_json(path)


def before(log: ibis.Table, end: datetime.datetime) -> ibis.Table:
    """The rows of the log before `end`."""
    return log.filter(log["timestamp"] < ibis.literal(end))


def frequent(log: ibis.Table, end: datetime.datetime) -> ibis.Table:
    """item_id of the items with MIN_COUNT rows before `end`."""
    rows = before(log, end)
    counts = rows.group_by("item_id").agg(rows=rows.count())
    return counts.filter(counts["rows"] >= MIN_COUNT).select("item_id")


def save(con: ibis.BaseBackend, table: ibis.Table, path: Path) -> None:
    """Writes a table as Parquet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    con.to_parquet(table, path)


def training_seconds(workdir: Path) -> float:
    """The time of the data and of all stages of a training."""
    names = ("data", *STAGES)
    manifests = [read_manifest(workdir, name) for name in names if (workdir / name).exists()]
    return sum(manifest.metrics["seconds"] for manifest in manifests)


def compare_days(days: Days, day: int, newest: Path, running: Path) -> dict[str, Any]:
    """The running recommender against the trained one, and the first one too, on the next day.

    Args:
      newest: the workdir of the day's refresh, which has all rows.
      running: that of the recommender that answers after the day.
    """
    next_rows = str(days.new(day + 1) / "interactions.parquet")
    of_training = grown_batch(days.trained(day), next_rows)
    of_refresh = grown_batch(newest, next_rows)
    data = PreparedData.load(days.trained(day) / "data")
    parts = RecommenderParts.of_workdir(days.trained(day), data)
    spec = parts.spec
    asked = sample_requests(
        of_training, "test", 0, REQUESTS, spec.longtail_share, spec.wordings, is_random=True
    )
    trained = lists_of(parts, RequestBatch.of(asked, of_training))
    del parts
    number = {name: row for row, name in enumerate(ids_of(of_training))}
    mapped = np.array([number.get(name, -2) for name in ids_of(of_refresh)])
    batch = RequestBatch.of(translated(asked, of_training, of_refresh), of_refresh)
    found = {}
    for name, workdir in (("refresh", running), ("first", days.base)):
        known = PreparedData.load(workdir / "data")
        parts = RecommenderParts.of_workdir(workdir, known)
        items = lists_of(parts, known_part(batch, len(known.catalogue)))
        lists = np.where(items >= 0, mapped[np.maximum(items, 0)], -1)
        found[name] = dataclasses.asdict(compare(asked, lists, trained)[0])
    return found


def lists_of(parts: RecommenderParts, batch: RequestBatch) -> np.ndarray:
    """int32 [N, TOP]: the recommended items of each request."""
    recommender = Recommender(parts, parts.spec.generation)
    return recommender.recommend(batch, RecommendOptions(TOP)).items


def ids_of(data: PreparedData) -> list[str]:
    """The item_id of each item."""
    return data.catalogue.table["item_id"].to_pylist()


def grown_batch(workdir: Path, path: str) -> PreparedData:
    """The data of a workdir with the rows at `path` as test targets of all their users."""
    data = PreparedData.load(workdir / "data")
    log = LogSettings.of(read_manifest(workdir, "data"))
    none = NewItems(pa.table(NO_ITEMS), np.zeros(0, np.int64), 0, 0)
    with (
        tempfile.TemporaryDirectory() as scratch,
        database.open_database(Path(scratch), **LIMITS) as con,
    ):
        new = read_rows(con, path, none, data, log, "drop", "drop")
    histories = grown_histories(data.histories, new, 1.0, 0)
    ids = [*data.users.table["user_id"].to_pylist(), *new.user_ids]
    profiles = [*data.users.table["profile"].to_pylist(), *[""] * len(new.user_ids)]
    users = Users(pa.table({"user_id": ids, "profile": profiles}))
    return dataclasses.replace(data, histories=histories, users=users)


def translated(asked: Requests, data: PreparedData, other: PreparedData) -> Requests:
    """Requests for the test targets of `data`, in the numbers of `other`.

    A history may differ by the rows of items from before they were part of the catalogue.
    """
    number = {name: row for row, name in enumerate(other.users.table["user_id"].to_pylist())}
    names = data.users.table["user_id"].to_pylist()
    user = np.array([number[names[row]] for row in asked.user], np.int32)
    return dataclasses.replace(asked, user=user, history_end=other.histories.test_start[user])


def line(found: dict[str, Any]) -> str:
    """A day in a line."""
    refreshed = Comparison(**found["refresh"])
    return (
        f"{found['date']}: NDCG@10 refreshed {refreshed.ndcg:.4f}, trained anew "
        f"{refreshed.ndcg_before:.4f} (difference {refreshed.difference:+.4f} ± "
        f"{refreshed.error:.4f}), first training {found['first']['ndcg']:.4f}; "
        f"{found['refresh_seconds']:.0f} s and {found['training_seconds']:.0f} s"
    )


def summary(found: list[dict[str, Any]]) -> str:
    """All days in a line."""
    good = sum(not Comparison(**day["refresh"]).is_worse for day in found)
    share = max(day["refresh_seconds"] / day["training_seconds"] for day in found)
    return (
        f"within a standard error or better on {good} of {len(found)} days; a refresh takes at "
        f"most {share:.3f} of a training"
    )


if __name__ == "__main__":
    main()
