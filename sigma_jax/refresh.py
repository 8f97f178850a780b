"""Brings a trained recommender up to date with new rows.

    python -m sigma_jax.refresh --workdir=runs/demo --interactions=today.parquet \\
        --items=new_items.jsonl --export=exports/demo

The new rows are checked and put behind the known ones; the old log is not read. Each stage starts
from its old weights and is trained for a few steps on new rows and a replay of old ones. New items
get semantic IDs from the frozen codebooks. The result is a workdir of its own,
WORKDIR/refresh/NUMBER. It is judged against the running recommender on rows of the newest day that
neither has seen. With --export it becomes a new version, which is active unless it is worse.

The same command again continues a killed refresh, and does nothing after a finished one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from absl import flags, logging
from ml_collections import ConfigDict

from sigma_jax.data import card, database
from sigma_jax.data.sources.added import AddedFiles
from sigma_jax.data.vectors import load_npy
from sigma_jax.refreshing.codes import Drift
from sigma_jax.refreshing.config import RefreshConfig
from sigma_jax.refreshing.data import write_data
from sigma_jax.refreshing.judge import judge
from sigma_jax.refreshing.lineage import FIRST, JUDGEMENT, Lineage
from sigma_jax.refreshing.rows import LogSettings, NewItems, NoNewRowsError, read_rows
from sigma_jax.refreshing.stages import Refresh, run_stages
from sigma_jax.reranking.history.covisitation import COUNTS
from sigma_jax.runtime import artifacts, cli
from sigma_jax.runtime.artifacts import Recipe, check_inputs, read_manifest, write_artifact
from sigma_jax.runtime.config import MeshConfig, to_dataclass
from sigma_jax.runtime.files import read_json, write_json
from sigma_jax.runtime.process import keep_freed_memory, locked
from sigma_jax.runtime.sharding import make_mesh
from sigma_jax.runtime.writer import clock
from sigma_jax.schema import VECTORS, PreparedData
from sigma_jax.serving.bundle import Bundle, add_model, text_columns
from sigma_jax.serving.catalogue_update import read_items_as
from sigma_jax.train import run_stage

FLAGS = flags.FLAGS
CONFIG = "configs/refresh.py"
SCRATCH = ".database"
RUN_FIELDS = ("mesh",)  # of the config, beside those of RefreshConfig
PUBLISHED = "published.json"  # of a refresh: {export: version}
COLUMNS = ("item_id", "text", "title", "category")  # of new items


@dataclasses.dataclass(frozen=True)
class NewFiles:
    """The files of a refresh, by path."""

    interactions: str
    items: str = ""  # "": there are no new items
    vectors: Mapping[str, str] = dataclasses.field(default_factory=dict)  # by a name of VECTORS

    @property
    def paths(self) -> dict[str, str]:
        """The path of each file by its use."""
        items = {"items": self.items} if self.items else {}
        return {"interactions": self.interactions, **items, **self.vectors}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A finished refresh."""

    name: str
    workdir: Path
    judgement: dict[str, Any]  # metrics of the artifact JUDGEMENT
    version: str  # of the export; "" without an export

    @property
    def lines(self) -> list[str]:
        """Lines about the refresh for people."""
        rows = read_manifest(self.workdir, "data").metrics["refresh"]
        facts = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in rows.items())
        found = self.judgement
        lines = [
            f"refresh {self.name}: {facts}",
            f"NDCG@10 {found['ndcg']:.4f}, before {found['ndcg_before']:.4f}; difference "
            f"{found['difference']:+.4f} with standard error {found['error']:.4f}, on "
            f"{found['requests']} requests of the newest day",
        ]
        if drift := read_manifest(self.workdir, "tokenizer").metrics.get("drift"):
            lines += Drift(**drift).lines
        verdict = (
            "accepted" if found["is_accepted"] else "not accepted: worse by more than the error"
        )
        place = f"; version {self.version} of the export" if self.version else ""
        return [*lines, f"{verdict}: {self.workdir}{place}"]


def define_flags() -> None:
    """Defines the flags of this command."""
    cli.define_config()
    flags.DEFINE_string("workdir", None, "Folder of the first training.", required=True)
    flags.DEFINE_string("interactions", None, "The new rows.", required=True)
    flags.DEFINE_string("items", "", "Items that the catalogue may lack; others are skipped.")
    flags.DEFINE_string("export", "", "Folder of the export that answers; it gets a new version.")
    flags.DEFINE_string("start", "", "The refresh to start from, such as 0002, or 0000.")
    flags.DEFINE_bool("activate", True, "Whether an accepted version is active at once.")
    for name in VECTORS:
        flags.DEFINE_string(
            name, "", "Vectors of the new items: a .npy, a row for each of --items."
        )


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    del argv
    keep_freed_memory()
    cli.use_compilation_cache()
    given = {name: getattr(FLAGS, name) for name in VECTORS if getattr(FLAGS, name)}
    try:
        outcome = refresh(
            FLAGS.config,
            Path(FLAGS.workdir),
            NewFiles(FLAGS.interactions, FLAGS.items, given),
            Path(FLAGS.export) if FLAGS.export else None,
            FLAGS.start,
            FLAGS.activate,
        )
    except NoNewRowsError as nothing:  # a quiet day is no failure of a job
        print(nothing)
        return
    print("\n".join(outcome.lines))


def refresh(
    config: ConfigDict,
    workdir: Path,
    files: NewFiles,
    export: Path | None = None,
    start: str = "",
    activates: bool = True,
) -> Outcome:
    """Refreshes the recommender of a workdir with new rows, and judges the result.

    Args:
      config: of configs/refresh.py.
      workdir: of the first training.
      export: gets a new version.
      start: name of the refresh whose recommender runs; "" finds it (Lineage.running).
      activates: False leaves an accepted version inactive.

    Raises:
      NoNewRowsError: there is nothing new.
      ValueError: the workdir is not trained, a row is wrong, or the newest day has nobody to judge
        by.
    """
    fields = {name: value for name, value in config.items() if name not in RUN_FIELDS}
    settings = to_dataclass(RefreshConfig, fields)
    mesh = make_mesh(to_dataclass(MeshConfig, config.mesh, "mesh"))
    check_inputs(workdir, "sft")
    lineage = Lineage(workdir)
    added = added_files(lineage, settings)
    sums = card.checksums(added.paths(files.paths))
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(workdir))
        bundle = None
        if export is not None:
            stack.enter_context(locked(export))
            bundle = Bundle.open(export)
        name = already_done(lineage, sums, settings) or lineage.next_name
        folder = lineage.folder(name)
        if name not in lineage.finished:
            began = time.monotonic()
            running = lineage.running(bundle, start)
            write_new_data(lineage, folder, files, added, sums, settings, bundle)
            seed = read_manifest(workdir, "data").seed
            at_work = Refresh(lineage.folder(running), folder, settings, seed)
            run_stages(at_work, functools.partial(run_stage, mesh=mesh))
            write_judgement(at_work, running, began)
        outcome = Outcome(name, folder, read_manifest(folder, JUDGEMENT).metrics, "")
        if bundle is not None:
            outcome = with_version(outcome, bundle, activates)
        remove_old_counts(lineage, name)
    return outcome


def already_done(lineage: Lineage, sums: Mapping[str, str], settings: RefreshConfig) -> str:
    """The newest refresh if it was made from the same files; "" otherwise."""
    name = lineage.newest
    if name == FIRST:
        return ""
    made = read_manifest(lineage.folder(name), "data")
    is_same = sums == {use: made.inputs.get(use) for use in sums}
    return name if is_same and made.config["refresh"] == data_settings(settings) else ""


def data_settings(settings: RefreshConfig) -> dict[str, Any]:
    """The settings that decide the content of the new data."""
    names = ("judge_share", "late_rows", "unknown_items", "uses_mapping")
    fields = {name: getattr(settings, name) for name in names}
    return fields | {"columns": dataclasses.asdict(settings.columns)}


def added_files(lineage: Lineage, settings: RefreshConfig) -> AddedFiles:
    """How new files become tables: as those of the first preparation, which kept its mapping."""
    if not settings.uses_mapping:
        return AddedFiles(columns=settings.columns)
    separator = LogSettings.of(read_manifest(lineage.workdir, "data")).text.category_separator
    return AddedFiles.of(lineage.workdir / "data", settings.columns, separator)


def write_new_data(
    lineage: Lineage,
    folder: Path,
    files: NewFiles,
    added: AddedFiles,
    sums: Mapping[str, str],
    settings: RefreshConfig,
    bundle: Bundle | None,
) -> None:
    """Writes FOLDER/data: the newest data of the lineage with the new rows behind it.

    Args:
      added: how `files` become tables.
      sums: checksums of `files`, and of those that are joined.
    """
    newest = lineage.folder(lineage.newest)
    made = read_manifest(newest, "data")
    before, log = PreparedData.load(newest / "data"), LogSettings.of(made)
    if not made.metrics["last_time"]:
        raise ValueError(f"{newest} has no times, so no row is new; train again with all rows.")
    items, given = new_items(files, before, log, bundle, added)
    ids = hashlib.sha256("\n".join(items.items["item_id"].to_pylist()).encode()).hexdigest()
    recipe = Recipe(
        {"data": made.config["data"], "refresh": data_settings(settings)},
        {"before": made.fingerprint, **sums, "new_item_ids": ids},
        made.seed,
    )
    if artifacts.is_current(folder, "data", recipe):
        logging.info("data: %s is complete", folder / "data")
        return

    def write(into: Path) -> dict[str, Any]:
        began = time.monotonic()
        scratch = into / SCRATCH
        with database.open_database(scratch, settings.memory_limit, settings.threads) as con:
            policies = settings.late_rows, settings.unknown_items, added
            rows = read_rows(con, files.interactions, items, before, log, *policies)
        shutil.rmtree(scratch, ignore_errors=True)
        share = settings.judge_share
        found = write_data(before, rows, given, made.metrics, sums, share, made.seed, into)
        return {**found, "seconds": round(time.monotonic() - began, 1)}

    manifest = write_artifact(folder, "data", recipe, write)
    logging.info("data: %s", manifest.metrics["refresh"])


def new_items(
    files: NewFiles,
    before: PreparedData,
    log: LogSettings,
    bundle: Bundle | None,
    added: AddedFiles,
) -> tuple[NewItems, dict[str, np.ndarray]]:
    """The items that the catalogue lacks, and the vectors given for them.

    They are those of the active version of the export, and then those of the file.

    Args:
      added: how the file becomes a table.
    """
    parts = []
    if bundle is not None:  # `sigma_jax.catalogue add` put them there
        parts.append(items_of_export(bundle, before))
    if files.items:
        columns = text_columns(before.catalogue)
        text = dataclasses.replace(log.text, columns=tuple(columns))
        parts.append(read_items_as(files.items, text, columns, added).select(COLUMNS))
    if not parts:
        none = pa.table({name: pa.array([], pa.string()) for name in COLUMNS})
        return NewItems(none, np.zeros(0, np.int64), 0, 0), {}
    strings = pa.schema([(name, pa.string()) for name in COLUMNS])
    of_file = NewItems.of(parts[-1].cast(strings), before.catalogue)
    if len(parts) == 1:
        return of_file, vectors_of(files, of_file)
    of_export = parts[0].cast(strings)
    is_double = pc.is_in(of_file.items["item_id"], value_set=of_export["item_id"].combine_chunks())
    kept = pc.invert(is_double)
    places = of_file.places[kept.to_numpy()]
    if files.vectors and of_export.num_rows:
        raise ValueError(
            f"the export has {of_export.num_rows} items that the data lacks, which have no row in "
            "the given vectors; put these items into --items and refresh without --export first."
        )
    table = pa.concat_tables([of_export, of_file.items.filter(kept)])
    items = NewItems(table, places, of_file.known, of_file.changed)
    return items, vectors_of(files, items)


def items_of_export(bundle: Bundle, before: PreparedData) -> pa.Table:
    """The items of the active version that `before` lacks, with COLUMNS."""
    catalogue = bundle.version(with_index=False).catalogue
    known = before.catalogue.table["item_id"].combine_chunks()
    is_new = pc.invert(pc.is_in(catalogue.table["item_id"], value_set=known))
    rows = np.flatnonzero(is_new.to_numpy())
    names = catalogue.categories.to_pylist()
    numbers = np.asarray(catalogue.category)[rows].tolist()
    category = [names[number] if number >= 0 else None for number in numbers]
    table = catalogue.table.take(rows).select(COLUMNS[:3])
    return table.append_column("category", pa.array(category, pa.string()))


def vectors_of(files: NewFiles, items: NewItems) -> dict[str, np.ndarray]:
    """The given vectors of the new items, by the names of VECTORS."""
    return {
        name: np.asarray(load_npy(path)[items.places], np.float32)
        for name, path in files.vectors.items()
    }


def write_judgement(at_work: Refresh, running: str, began: float) -> None:
    """Judges the refresh against the running recommender and writes its artifact JUDGEMENT."""
    requests = dict(at_work.settings.judge_requests)
    stages = {"sft": at_work.workdir, "running": at_work.start}
    inputs = {name: read_manifest(folder, "sft").fingerprint for name, folder in stages.items()}
    recipe = Recipe({"judge_requests": requests}, inputs, at_work.seed)

    def write(folder: Path) -> dict[str, Any]:
        comparison, tasks = judge(at_work.workdir, at_work.start, requests, at_work.seed)
        return {
            **dataclasses.asdict(comparison),
            "is_accepted": not comparison.is_worse,
            "tasks": tasks,
            "running": running,
            "seconds": time.monotonic() - began,
        }

    found = write_artifact(at_work.workdir, JUDGEMENT, recipe, write).metrics
    logging.info("refresh: judged after %s", clock(found["seconds"]))


def with_version(outcome: Outcome, bundle: Bundle, activates: bool) -> Outcome:
    """The outcome with its version in the export, which is activated if the refresh is accepted.

    Later calls activate nothing: someone may have rolled the version back.
    """
    found = outcome.judgement
    comment = f"refresh {outcome.name}, NDCG@10 {found['difference']:+.4f} ± {found['error']:.4f}"
    version = add_model(bundle, outcome.workdir, comment)
    record, place = outcome.workdir / PUBLISHED, str(bundle.folder.resolve())
    published = read_json(record) if record.exists() else {}
    if place not in published:
        if activates and found["is_accepted"]:
            bundle.activate(version)
        write_json(record, {**published, place: version})
    return dataclasses.replace(outcome, version=version)


def remove_old_counts(lineage: Lineage, name: str) -> None:
    """Deletes the counts of refreshes before an accepted one: no later refresh adds to them.

    After a rollback they are counted from the histories again.
    """
    if lineage.is_accepted(name):
        for older in lineage.finished:
            if older < name and older != FIRST:
                shutil.rmtree(lineage.folder(older) / COUNTS, ignore_errors=True)


if __name__ == "__main__":
    define_flags()
    cli.run_command(main, CONFIG)
