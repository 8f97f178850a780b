"""Stages that start from trained weights: the tasks of training, with other starts and batches."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grain
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sparse
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float, Int32, Int64
from safetensors.numpy import load_file

from sigma_jax.data.pipeline import mixed_forever, stack_rows, step_batches
from sigma_jax.encoders.grounding_head import GroundedVectors
from sigma_jax.generation.generator import all_item_vectors
from sigma_jax.grounding.encode import load_encoder
from sigma_jax.models.network import RecommenderNetwork
from sigma_jax.models.weights import load_weights, named_parameters
from sigma_jax.prompts.packing import batches
from sigma_jax.prompts.records import NEW_RECORDS
from sigma_jax.recommender.parts import ITEM_ROWS, RERANKER, WEIGHTS, save_network
from sigma_jax.refreshing import padding
from sigma_jax.refreshing.data import append_rows, known_counts, link, new_training_rows
from sigma_jax.reranking.reranker import Reranker
from sigma_jax.runtime.task import Batch, Scalars, Tables
from sigma_jax.schema import Catalogue, SemanticIds
from sigma_jax.sft.task import SftTask
from sigma_jax.teacher.sasrec import Sasrec
from sigma_jax.teacher.task import TeacherTask


@dataclasses.dataclass(frozen=True)
class ContinuedTask:
    """A stage's task with trained weights before its first step, and with batches of its own.

    It reports nothing: a refresh is judged as a whole.
    """

    task: Any  # a Task of runtime/task.py
    start: Callable[[Any], None]  # puts the trained weights into a new model
    draw: Callable[[Int64[np.ndarray, " n"] | None], grain.MapDataset]  # as Task.batches
    write: Callable[[Any, Any, Path], dict[str, Any]]  # as Task.finish
    items: int = 0  # of the catalogue, where arrays by item are padded (padding.py)
    by_item: Mapping[str, float | None] = dataclasses.field(default_factory=dict)  # padding.pad

    @property
    def batch_rows(self) -> int:
        """Rows of every array of a global batch."""
        return self.task.batch_rows

    @property
    def epoch_steps(self) -> float:
        """Steps of one pass over the old examples."""
        return self.task.epoch_steps

    def batches(self, rows: Int64[np.ndarray, " n"] | None = None) -> grain.MapDataset:
        """Batches of new examples and of old ones; element s is that of step s."""
        return self.draw(rows)

    def model(self, rngs: nnx.Rngs) -> nnx.Module:
        """The trained model, over the items of now."""
        model = self.task.model(rngs)
        self.start(model)
        padding.pad(model, self.by_item)
        return model

    def tables(self) -> dict[str, np.ndarray]:
        """Frozen arrays that the loss reads."""
        tables: dict[str, np.ndarray] = self.task.tables()
        return padding.padded_tables(tables) if self.by_item else tables

    def param_group(self, path: tuple[str, ...]) -> str:
        """The optimizer's group of the parameter at `path`."""
        return self.task.param_group(path)

    def loss(
        self, model: nnx.Module, tables: Tables, batch: Batch, key: Any
    ) -> tuple[Float[Any, ""], Scalars]:
        """The loss of a global batch, and scalar metrics by name."""
        return self.task.loss(model, tables, batch, key)

    def report(self, model: nnx.Module, tables: Tables) -> dict[str, float]:
        """No metrics."""
        return {}

    def finalize_on_all_hosts(self, model: nnx.Module, mesh: Mesh) -> None:
        """Work with the trained model that needs the devices of all processes."""
        self.task.finalize_on_all_hosts(model, mesh)

    def refit(self) -> None:
        """None: nothing is trained after this task."""

    def finish(self, model: nnx.Module, tables: Tables, folder: Path) -> dict[str, Any]:
        """Writes the files of the artifact into `folder`; returns metrics for its manifest."""
        padding.cut(model, self.by_item, self.items)
        return self.write(model, tables, folder)


def with_new_rows(
    table: Float[np.ndarray, "I D"], neighbours: Int64[np.ndarray, "n k"]
) -> Float[np.ndarray, "I+n D"]:
    """A trained table of items with rows for new items: the mean over their neighbours' rows.

    Args:
      neighbours: rows of `table`.
    """
    if not len(neighbours):
        return table
    return np.concatenate([table, table[neighbours].mean(axis=1)]).astype(table.dtype)


def continued_teacher(
    task: TeacherTask,
    start: Path,
    neighbours: Int64[np.ndarray, "n k"],
    known: Int64[np.ndarray, " u"],
    new_share: float,
) -> ContinuedTask:
    """The stage `teacher` from the SASRec of a workdir.

    Args:
      start: the workdir.
      neighbours: of each item that it lacks, among its items.
      known: the number of each user's training rows there.
      new_share: share of the windows that hold new rows.
    """

    def put(model: Sasrec) -> None:
        stored = load_file(start / "teacher" / "weights.safetensors")
        for name, param in named_parameters(model).items():
            table = stored[name]
            if name in ("table", "bias"):
                table = with_new_rows(table, neighbours)
            param[...] = jnp.asarray(table, param.dtype)

    length, first = task.config.model.history, task.first_window
    counts = known_counts(known, task.histories)
    rows = np.maximum(task.histories.valid_start - task.histories.offsets[:-1], 0)
    has_new = (rows > counts) & (np.diff(first) > 0)
    users = np.flatnonzero(has_new)
    # A user's windows from the one of the first new row on.
    begin = first[users] + np.minimum(counts[users] // length, np.diff(first)[users] - 1)
    windows = np.concatenate(
        [np.zeros(0, np.int64)]
        + [np.arange(a, b) for a, b in zip(begin, first[users + 1], strict=True)]
    )

    def draw(rows: Int64[np.ndarray, " n"] | None) -> grain.MapDataset:
        old = grain.MapDataset.range(int(first[-1])).seed(task.seed).shuffle().repeat()
        if len(windows) and new_share:
            new = grain.MapDataset.source(windows).seed(task.seed).shuffle().repeat()
            old = mixed_forever(old, new, new_share)
        groups = old.random_map(task.training_window).batch(1, drop_remainder=True)
        return step_batches(groups, 1, task.batch_rows, stack_rows, rows)

    by_item = {"table": None, "bias": padding.NEVER}
    return ContinuedTask(task, put, draw, task.finish, task.num_items, by_item)


def continued_head(task: Any, start: Path) -> ContinuedTask:
    """The stage `grounding_head` from the head of a workdir; it draws among all pairs."""

    def put(model: nnx.Module) -> None:
        load_weights(model, start / "grounding_head" / "weights.safetensors")

    return ContinuedTask(task, put, task.batches, task.finish)


def continued_grounding(task: Any, start: Path) -> ContinuedTask:
    """The stage `grounding` from the encoder of a workdir; it draws among all pairs.

    Args:
      task: made with the encoder's backbone.
    """

    def put(model: nnx.Module) -> None:
        load_weights(model, start / "grounding" / "weights.safetensors", ("backbone",))

    return ContinuedTask(task, put, task.batches, task.finish)


@dataclasses.dataclass(frozen=True)
class SftStart:
    """The start of the stage `sft`: a trained workdir, and the rows since then."""

    workdir: Path
    neighbours: Int64[np.ndarray, "n k"]  # of each item that the workdir lacks, among its items
    known: Int64[np.ndarray, " u"]  # number of each user's training rows there
    new_share: float
    codes_before: Int32[np.ndarray, "i L"] | None  # of its items, where all codes are new

    def put(self, model: RecommenderNetwork, semantic_ids: SemanticIds) -> None:
        """Puts the trained weights, but for the backbone, into a new network."""
        stored = load_file(self.workdir / "sft" / WEIGHTS)
        for name, param in named_parameters(model, ("backbone",)).items():
            table = stored[name]
            if name.startswith(f"{ITEM_ROWS}."):
                table = with_new_rows(table, self.neighbours)
            elif self.codes_before is not None and name in ("sid_table", "code_bias"):
                shares = code_shares(self.codes_before, semantic_ids)
                table = mapped_codes(table, shares)
            param[...] = jnp.asarray(table, param.dtype)


def code_shares(
    before: Int32[np.ndarray, "i L"], semantic_ids: SemanticIds
) -> list[sparse.csr_matrix]:
    """For each level float32 [C, C]: the shares of old codes among the items of a new code.

    Worked example: the items of the new code 5 had the old codes 1, 1, 2: row 5 is 2/3 at column 1
    and 1/3 at column 2. The row of a code without known items is empty.

    Args:
      before: the old codes of the first items.
    """
    size, count = semantic_ids.codebook_size, len(before)
    shares = []
    for level in range(semantic_ids.levels):
        places = np.asarray(semantic_ids.codes)[:count, level], before[:, level]
        table = sparse.csr_matrix((np.ones(count, np.float32), places), shape=(size, size))
        total = np.maximum(np.asarray(table.sum(axis=1)).reshape(-1), 1)
        shares.append((sparse.diags(1 / total) @ table).tocsr())
    return shares


def mapped_codes(table: np.ndarray, shares: list[sparse.csr_matrix]) -> np.ndarray:
    """A table by code after all items got new codes: means over the rows of their old codes.

    Args:
      table: [L * C or more, D] (RecommenderNetwork.sid_table), or [L, C] (code_bias).
      shares: from `code_shares`.
    """
    levels, size = len(shares), shares[0].shape[0]
    is_bias = table.shape == (levels, size)
    mapped = (table.reshape(-1, 1) if is_bias else table).copy()
    for level, share in enumerate(shares):
        of_level, is_used = mapped[level * size : (level + 1) * size], np.diff(share.indptr) > 0
        of_level[is_used] = (share @ of_level)[is_used]
    return mapped.reshape(table.shape)


def continued_sft(
    task: SftTask, start: SftStart, covisits: Callable[[], sparse.csr_matrix]
) -> ContinuedTask:
    """The stage `sft` from the recommender of a workdir.

    The fitted weights of heads, reranker and calibration stay, and the counts grow.

    Args:
      task: made with the recommender's backbone; its folder of records has NEW_RECORDS.
      covisits: co-visitation counts of all training rows.
    """

    def put(model: RecommenderNetwork) -> None:
        start.put(model, task.semantic_ids)

    def draw(rows: Int64[np.ndarray, " n"] | None) -> grain.MapDataset:
        has_new = any(task.records.glob(f"{NEW_RECORDS}-*.arrow"))
        return batches(
            task.records,
            task.data,
            task.semantic_ids,
            task.prompt,
            task.vocab_size,
            task.seed,
            task.batch_rows,
            rows,
            task.pool,
            start.new_share if has_new else 0.0,
        )

    def write(model: RecommenderNetwork, tables: Tables, folder: Path) -> dict[str, Any]:
        model.backbone.fold_lora()
        save_network(model, folder)
        before = start.workdir / "sft"
        shutil.copy(before / "recommender.json", folder)
        if (before / RERANKER).exists():
            reranker, data = Reranker.load(before), task.data
            vectors = all_item_vectors(model, tables, len(data.catalogue))
            rows = new_training_rows(data.histories, start.known)
            neighbours = task.config.reranker.neighbours
            counts = reranker.tables.with_rows(data, rows, vectors, neighbours, covisits())
            dataclasses.replace(reranker, tables=counts).save(folder)
        return {}

    items = len(task.data.catalogue)
    return ContinuedTask(task, put, draw, write, items, {f"{ITEM_ROWS}.": None})


def carry_head(start: Path, workdir: Path, folder: Path, known: int) -> None:
    """Writes the untrained stage `grounding_head`: the old head, and the vectors of all items.

    Args:
      start: a workdir whose head is taken, with the vectors of its `known` items.
      workdir: has the vectors of the sentence encoder of all items.
      folder: of the artifact.
    """
    head = GroundedVectors.load(start / "grounding_head")
    assert head is not None
    head.save(folder)
    plain = np.load(workdir / "data" / "text_vectors.npy", mmap_mode="r")
    before = np.load(start / "grounding_head" / "text_vectors.npy", mmap_mode="r")
    append_rows(folder / "text_vectors.npy", before[:known], head(np.asarray(plain[known:])))


def carry_grounding(start: Path, workdir: Path, folder: Path, known: int) -> None:
    """Writes the untrained stage `grounding`: the old encoder, and the vectors of all items.

    Args:
      start: a workdir whose encoder is taken, with the vectors of its `known` items.
      workdir: has the texts of all items.
      folder: of the artifact.
    """
    for name in ("encoder.json", "weights.safetensors", "backbone"):
        link(start / "grounding" / name, folder / name)
    catalogue = Catalogue.load(workdir / "data")
    texts = catalogue.texts(np.arange(known, len(catalogue)))
    before = np.load(start / "grounding" / "text_vectors.npy", mmap_mode="r")
    new = load_encoder(folder)(texts) if texts else np.zeros((0, before.shape[1]), np.float32)
    append_rows(folder / "text_vectors.npy", before[:known], new)
