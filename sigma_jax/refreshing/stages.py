"""Runs the stages of a refresh: each starts from the weights of a trained workdir."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sparse
from absl import logging
from jaxtyping import Float32, Int64

from sigma_jax.data.sentences import Encode
from sigma_jax.encoders.instructions import HEAD, encoder_of_workdir
from sigma_jax.prompts.instruction_pool import InstructionPool, pool_settings, write_pool
from sigma_jax.prompts.records import RECORDS, record_settings, write_records
from sigma_jax.recommender.parts import BEFORE_REFIT, RERANKER, RERANKER_METRIC
from sigma_jax.refreshing import continued
from sigma_jax.refreshing.codes import MAP, codebook_map, write_codes
from sigma_jax.refreshing.config import RefreshConfig
from sigma_jax.refreshing.data import known_counts, link, neighbours_of, training_counts
from sigma_jax.reranking.history.covisitation import (
    COUNTS,
    COVISITS_FILE,
    count_covisits,
    write_counts,
)
from sigma_jax.runtime import artifacts
from sigma_jax.runtime.artifacts import Recipe, read_manifest, write_artifact
from sigma_jax.runtime.config import to_dataclass
from sigma_jax.schema import VECTORS, PreparedData, SemanticIds
from sigma_jax.sft.task import POOL, SftTask
from sigma_jax.stages import find_stage, stages_before, task_classes

LOOP = {"log_every": 10, "eval_every": 0, "checkpoint_every": 100, "keep_checkpoints": 1}

# (stage, its task when it is called, its fields, recipe, workdir) -> trains and writes it.
RunStage = Callable[[str, Callable[[], Any], Any, Recipe, Path], None]


@dataclasses.dataclass(frozen=True)
class Refresh:
    """A refresh at work: its workdir with the new data, and the workdir that it starts from."""

    start: Path
    workdir: Path
    settings: RefreshConfig
    seed: int

    @functools.cached_property
    def data(self) -> PreparedData:
        """The new data."""
        return PreparedData.load(self.workdir / "data")

    @functools.cached_property
    def data_before(self) -> PreparedData:
        """The data of `start`."""
        return PreparedData.load(self.start / "data")

    @property
    def known(self) -> Int64[np.ndarray, " u"]:
        """The number of training rows of each user that the recommender of `start` saw."""
        data = self.data_before
        if (self.start / "sft" / BEFORE_REFIT).exists():
            data = data.with_validation()
        return training_counts(data.histories)

    @property
    def known_items(self) -> int:
        """The number of items of `start`."""
        return len(self.data_before.catalogue)

    @functools.cached_property
    def neighbours(self) -> Int64[np.ndarray, "n k"]:
        """Items of `start` near each new item (data.neighbours_of)."""
        known, before = self.known_items, self.data_before
        new = np.arange(known, len(self.data.catalogue))
        vectors = {
            name: (np.asarray(table[known:]), table[:known])
            for name in VECTORS
            if (table := getattr(self.data, name)) is not None
        }
        return neighbours_of(self.data.catalogue.texts(new), vectors, before)

    def steps(self, stage: str) -> int:
        """The number of steps of a stage. ValueError if the settings have none."""
        if stage not in self.settings.steps:
            raise ValueError(f"steps has no stage {stage!r}; set --config.steps.{stage}.")
        return self.settings.steps[stage]

    def recipe(self, stage: str, **changes: Any) -> Recipe:
        """The recipe of a stage: its settings of the first training, and those of the refresh."""
        start = read_manifest(self.start, stage)
        names = ("data", *stages_before(stage))
        inputs = {
            name: read_manifest(self.workdir, name).fingerprint
            for name in names
            if (self.workdir / name).exists()
        }
        config = {**start.config, "refresh": {"start": start.fingerprint, **changes}}
        return Recipe(config, inputs, self.seed, find_stage(stage).finish_fields)

    def fields(self, stage: str, steps: int) -> Any:
        """The settings of a stage's first training, changed for `steps` steps from its weights."""
        config = dict(read_manifest(self.start, stage).config)
        config.pop("refresh", None)
        fields = to_dataclass(
            task_classes(stage)[0], config | {"train": config["train"] | LOOP}, stage
        )
        changes: dict[str, Any] = {
            "train": dataclasses.replace(
                fields.train, steps=steps, epochs=0.0, patience=0, keep_best=""
            ),
            "optimizer": dataclasses.replace(
                fields.optimizer,
                learning_rate=fields.optimizer.learning_rate * self.settings.rate_share,
                table_learning_rate=fields.optimizer.table_learning_rate * self.settings.rate_share,
                warmup_steps=min(fields.optimizer.warmup_steps, steps // 4),
            ),
        }
        if hasattr(fields, "refits"):
            changes["refits"] = False
        backbone = self.start / stage / "backbone"
        if backbone.exists():
            changes["backbone"] = dataclasses.replace(fields.backbone, hf_folder=str(backbone))
        if hasattr(fields, "starts_from_grounding"):
            changes["starts_from_grounding"] = False
        return dataclasses.replace(fields, **changes)


def run_stages(refresh: Refresh, run: RunStage) -> None:
    """Runs the stages that the start has, in order; finished ones are skipped.

    Args:
      run: trains a stage and writes its artifact (train.run_stage).
    """
    if (refresh.start / "teacher").exists():
        _run(refresh, run, "teacher", continue_teacher)
    for stage, continue_stage, carry in (
        ("grounding", continue_grounding, continued.carry_grounding),
        (HEAD, continue_head, continued.carry_head),
    ):
        if not (refresh.start / stage).exists():
            continue
        if refresh.steps(stage):
            _run(refresh, run, stage, continue_stage)
        else:
            _write(refresh, stage, functools.partial(carry_vectors, refresh, carry), steps=0)
    if refresh.settings.rebuilds_codebooks:
        fields = refresh.fields("tokenizer", 0)
        config = read_manifest(refresh.start, "tokenizer").config["train"]
        train = dataclasses.replace(fields.train, steps=config["steps"], epochs=config["epochs"])
        fields = dataclasses.replace(fields, train=train)
        recipe = refresh.recipe("tokenizer", rebuilds_codebooks=True)
        task = functools.partial(rebuilt_tokenizer, refresh, fields)
        if not artifacts.is_current(refresh.workdir, "tokenizer", recipe):
            run("tokenizer", task, fields, recipe, refresh.workdir)
    else:
        _write(refresh, "tokenizer", lambda folder: frozen_codes(refresh, folder))
    has_reranker = (refresh.start / "sft" / RERANKER).exists()
    if has_reranker:
        add_counts(refresh)
    _write_records(refresh)
    if (refresh.start / POOL).exists():
        _write_pool(refresh)
    _run(refresh, run, "sft", continue_sft)


def _run(
    refresh: Refresh,
    run: RunStage,
    stage: str,
    make_task: Callable[[Refresh, Any], continued.ContinuedTask],
) -> None:
    """Trains a stage by its settings, unless it is there."""
    steps = refresh.steps(stage)
    shares = {"rate_share": refresh.settings.rate_share, "new_share": refresh.settings.new_share}
    recipe = refresh.recipe(stage, steps=steps, **shares)
    if artifacts.is_current(refresh.workdir, stage, recipe):
        logging.info("%s: skipped, %s is up to date", stage, refresh.workdir / stage)
        return
    fields = refresh.fields(stage, steps)
    run(stage, functools.partial(make_task, refresh, fields), fields, recipe, refresh.workdir)


def _write(
    refresh: Refresh, stage: str, write: Callable[[Path], dict[str, Any]], **changes: Any
) -> None:
    """Writes a stage that is not trained, unless it is there."""
    recipe = refresh.recipe(stage, **changes)
    if not artifacts.is_current(refresh.workdir, stage, recipe):
        before = read_manifest(refresh.start, stage).metrics
        write_artifact(refresh.workdir, stage, recipe, lambda folder: {**before, **write(folder)})


def continue_teacher(refresh: Refresh, fields: Any) -> continued.ContinuedTask:
    """The stage `teacher` from the weights of the start."""
    task = task_classes("teacher")[1](fields, refresh.workdir, refresh.seed)
    return continued.continued_teacher(
        task,
        refresh.start,
        refresh.neighbours,
        training_counts(refresh.data_before.histories),
        refresh.settings.new_share,
    )


def continue_grounding(refresh: Refresh, fields: Any) -> continued.ContinuedTask:
    """The stage `grounding` from the weights of the start."""
    task = task_classes("grounding")[1](fields, refresh.workdir, refresh.seed)
    return continued.continued_grounding(task, refresh.start)


def continue_head(refresh: Refresh, fields: Any) -> continued.ContinuedTask:
    """The stage `grounding_head` from the weights of the start."""
    task = task_classes(HEAD)[1](fields, refresh.workdir, refresh.seed)
    return continued.continued_head(task, refresh.start)


def carry_vectors(
    refresh: Refresh, carry: Callable[[Path, Path, Path, int], None], folder: Path
) -> dict[str, Any]:
    """Writes a stage that makes text vectors with its old weights, by `carry`; returns metrics."""
    carry(refresh.start, refresh.workdir, folder, refresh.known_items)
    return {"items": len(refresh.data.catalogue)}


def frozen_codes(refresh: Refresh, folder: Path) -> dict[str, Any]:
    """Writes the SIDs of all items by the frozen codebooks; returns the drift."""
    inputs = tuple(read_manifest(refresh.start, "tokenizer").config["inputs"])
    return write_codes(
        refresh.start, refresh.workdir, inputs, refresh.known_items, refresh.seed, folder
    )


def rebuilt_tokenizer(refresh: Refresh, fields: Any) -> continued.ContinuedTask:
    """The stage `tokenizer` from the start of a training; it writes the map of codes too."""
    task = task_classes("tokenizer")[1](fields, refresh.workdir, refresh.seed)

    def write(model: Any, tables: Any, folder: Path) -> dict[str, Any]:
        metrics = task.finish(model, tables, folder)
        before, after = SemanticIds.load(refresh.start / "tokenizer"), SemanticIds.load(folder)
        codes = np.asarray(before.codes), np.asarray(after.codes)
        np.save(folder / MAP, codebook_map(*codes, after.codebook_size))
        return metrics

    return continued.ContinuedTask(task, lambda model: None, task.batches, write)


def continue_sft(refresh: Refresh, fields: Any) -> continued.ContinuedTask:
    """The stage `sft` from the weights of the start."""
    task = SftTask(fields, refresh.workdir, refresh.seed)
    before = None
    if refresh.settings.rebuilds_codebooks:
        before = np.asarray(SemanticIds.load(refresh.start / "tokenizer").codes)
    start = continued.SftStart(
        refresh.start, refresh.neighbours, refresh.known, refresh.settings.new_share, before
    )
    metrics = read_manifest(refresh.start, "sft").metrics
    kept = {RERANKER_METRIC: metrics[RERANKER_METRIC]} if RERANKER_METRIC in metrics else {}
    counts = refresh.workdir / COUNTS / COVISITS_FILE
    sft = continued.continued_sft(task, start, lambda: sparse.load_npz(counts))

    def write(model: Any, tables: Any, folder: Path) -> dict[str, Any]:
        return sft.write(model, tables, folder) | kept

    return dataclasses.replace(sft, write=write)


def add_counts(refresh: Refresh) -> None:
    """Writes the artifact COUNTS: those of the start, with those of the new training rows.

    They are counted from the histories where the start has none of all its training rows: after a
    refit.
    """

    def count() -> sparse.csr_matrix:
        histories, items = refresh.data.histories, len(refresh.data.catalogue)
        before = refresh.start / COUNTS / COVISITS_FILE
        if not before.exists() or (refresh.start / "sft" / BEFORE_REFIT).exists():
            return count_covisits(histories, items)
        counts = sparse.load_npz(before)
        counts.resize((items, items))
        known = known_counts(refresh.known, histories)
        return (counts + count_covisits(histories, items, known)).tocsr()

    write_counts(refresh.workdir, refresh.seed, count)


def _write_records(refresh: Refresh) -> None:
    """Writes the training records: the shards of the start, and those of the new rows."""
    prompt = refresh.fields("sft", 0).prompt
    data = read_manifest(refresh.workdir, "data").fingerprint
    recipe = Recipe(record_settings(prompt), {"data": data}, refresh.seed)
    if artifacts.is_current(refresh.workdir, "records", recipe):
        return
    before = refresh.start / "records"
    if (refresh.start / "sft" / BEFORE_REFIT).exists():
        before = refresh.start / "records-refit"

    def write(folder: Path) -> dict[str, Any]:
        for number, path in enumerate(sorted(before.glob("*.arrow"))):
            link(path, folder / f"{RECORDS}-{number:05d}.arrow")
        known = known_counts(refresh.known, refresh.data.histories)
        return write_records(refresh.data, prompt, folder, refresh.seed, known)

    write_artifact(refresh.workdir, "records", recipe, write)


def _write_pool(refresh: Refresh) -> None:
    """Writes the instructions of training, where the encoder is that of the start.

    Only sentences that the start lacks are encoded, such as those of a new category.
    """
    has_head = (refresh.start / HEAD).exists()
    if has_head and refresh.steps(HEAD):
        return  # all vectors change; the stage sft makes them
    names = ("data", HEAD) if has_head else ("data",)
    inputs = {name: read_manifest(refresh.workdir, name).fingerprint for name in names}
    prompt = refresh.fields("sft", 0).prompt
    recipe = Recipe(pool_settings(prompt), inputs, refresh.seed)
    if artifacts.is_current(refresh.workdir, POOL, recipe):
        return
    pool, encoder = InstructionPool.load(refresh.start / POOL), encoder_of_workdir(refresh.workdir)
    assert encoder is not None
    encode = reusing(pool, encoder)
    write_artifact(
        refresh.workdir,
        POOL,
        recipe,
        lambda folder: write_pool(refresh.data, prompt, encode, folder, refresh.seed),
    )


def reusing(pool: InstructionPool, encode: Encode) -> Encode:
    """The function `encode`, with the vectors of the sentences that `pool` has."""
    place = {text: row for row, text in enumerate(pool.texts.to_pylist())}

    def vectors(texts: Sequence[str]) -> Float32[np.ndarray, "N D"]:
        rows = np.array([place.get(text, -1) for text in texts], np.int64)
        found = np.array(pool.vectors[np.maximum(rows, 0)], np.float32)
        if (rows < 0).any():
            found[rows < 0] = encode([text for text in texts if text not in place])
        return found

    return vectors
