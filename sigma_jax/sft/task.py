"""Stage `sft`: instructions to recommendations (section 2.3 of SIGMA).

`SftTask` implements the Task protocol (runtime/task.py) for the recommender: batches of contexts
with branches, the network, the loss Eq. 4 + Eq. 5, reports of hit rates on validation requests, and
the reranker after training.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Int64

from sigma_jax import metrics
from sigma_jax.data.pipeline import open_shards
from sigma_jax.data.vectors import item_vectors
from sigma_jax.encoders.instructions import HEAD, InstructionEncoder, encoder_of_workdir
from sigma_jax.generation.generator import all_item_vectors
from sigma_jax.generation.head_weights import (
    HEAD_WEIGHTS,
    HeadWeights,
    fit_head_weights,
)
from sigma_jax.models.network import RecommenderNetwork
from sigma_jax.models.weights import copy_weights
from sigma_jax.prompts.config import PromptConfig
from sigma_jax.prompts.inference import make_prompts
from sigma_jax.prompts.instruction_pool import InstructionPool, pool_settings, write_pool
from sigma_jax.prompts.packing import batches
from sigma_jax.prompts.records import RECORDS, record_settings, write_records
from sigma_jax.prompts.sampling import contexts_that_fit
from sigma_jax.prompts.tokens import PromptTables
from sigma_jax.recommender.build import (
    build_network,
    frozen_tables,
    grounded_backbone,
    text_vocabulary,
)
from sigma_jax.recommender.fitting import CALIBRATION_REQUESTS, fit_reranker_of, judges_of
from sigma_jax.recommender.parts import (
    BEFORE_REFIT,
    RERANKER,
    WEIGHTS,
    RecommenderParts,
    item_groups,
    knowledge_of_groups,
    lexical_table,
    save_network,
)
from sigma_jax.recommender.recommender import Recommender
from sigma_jax.reranking.history.covisitation import count_once
from sigma_jax.reranking.lexical import LexicalTable
from sigma_jax.reranking.novelty import Novelty
from sigma_jax.reranking.reranker import FeatureTables, Reranker
from sigma_jax.runtime import hosts
from sigma_jax.runtime.artifacts import Recipe, is_current, read_manifest, write_artifact
from sigma_jax.schema import TASKS, PreparedData, RequestBatch, Requests, SemanticIds
from sigma_jax.sft.config import SftConfig
from sigma_jax.sft.loss import recommender_loss
from sigma_jax.sft.negatives import negative_tables
from sigma_jax.tasks.constraints import Constraints, allowed_items
from sigma_jax.tasks.requests import sample_requests

HEAD_REQUESTS = 1_500  # at most, that two numbers are fitted on
POOL = "instructions"  # artifact: the instructions of training with their sentence vectors


class SftTask:
    """The stage `sft`, as a Task that `train.py` trains."""

    def __init__(
        self,
        config: SftConfig,
        workdir: Path,
        seed: int,
        mesh: Mesh | None = None,
        has_validation_rows: bool = False,
    ):
        """The stage over the artifacts in `workdir`; it writes the training records if needed.

        Args:
          has_validation_rows: train on validation targets too (`refit`).

        Raises:
          ValueError: an artifact is missing or damaged, or does not fit the config.
        """
        self.config, self.workdir, self.seed = config, workdir, seed
        self.is_refit = has_validation_rows
        self.data = PreparedData.load(workdir / "data")
        if has_validation_rows:
            self.data = self.data.with_validation()
        self.semantic_ids = SemanticIds.load(workdir / "tokenizer")
        config.prompt.layout.check(self.semantic_ids.levels)
        self.vectors = item_vectors(workdir, len(self.data.catalogue))
        self.encoder = self._instruction_encoder()
        if self.encoder is None and config.prompt.layout.has_instruction_vectors:
            config = config.with_layout(instruction="tokens")
            self.config = config
        self.backbone = config.backbone
        if config.starts_from_grounding:
            self.backbone = grounded_backbone(config.backbone, workdir)
        self.vocab_size = text_vocabulary(self.backbone, self.data)
        self.records = write_record_shards(
            self.data, config.prompt, workdir, seed, has_validation_rows
        )
        self.pool = self._instruction_pool()
        self.prompt = config.prompt
        if not config.prompt.packing.contexts_per_group:
            contexts = contexts_that_fit(
                self.records,
                self.data,
                self.semantic_ids,
                config.prompt,
                self.vocab_size,
                self.pool,
            )
            packing = dataclasses.replace(config.prompt.packing, contexts_per_group=contexts)
            self.prompt = dataclasses.replace(config.prompt, packing=packing)

    def _instruction_encoder(self) -> InstructionEncoder | None:
        """The encoder of the data; None if it has none, or the model reads no instructions."""
        if not self.config.prompt.has_instructions:
            return None
        encoder = encoder_of_workdir(self.workdir)
        if encoder is None and self.config.prompt.layout.has_instruction_vectors:
            logging.info("sft: instructions are read as tokens: the data has no sentence encoder")
        return encoder

    def _instruction_pool(self) -> InstructionPool | None:
        """The instructions of training, where their sentence vectors are read."""
        prompt = self.config.prompt
        if self.encoder is None or not prompt.layout.has_instruction_vectors:
            return None

        def write(folder: Path) -> dict[str, int]:
            return write_pool(self.data, prompt, self.encoder, folder, self.seed)

        needs = ("data",) if self.encoder.head is None else ("data", HEAD)
        settings = pool_settings(prompt)
        folder = make_side_artifact(self.workdir, POOL, settings, needs, self.seed, write)
        return InstructionPool.load(folder)

    @property
    def batch_rows(self) -> int:
        """Rows of a batch over all hosts."""
        return self.config.train.batch_size

    def batches(self, rows: Int64[np.ndarray, " n"] | None = None) -> grain.MapDataset:
        """The batches of training: element s is the batch of step s, or some `rows` of it."""
        return batches(
            self.records,
            self.data,
            self.semantic_ids,
            self.prompt,
            self.vocab_size,
            self.seed,
            self.batch_rows,
            rows,
            self.pool,
        )

    @property
    def epoch_steps(self) -> float:
        """Steps of one pass over all contexts."""
        packing = self.prompt.packing
        groups = self.batch_rows // packing.group_rows
        return len(open_shards(self.records, RECORDS)) / (groups * packing.contexts_per_group)

    def model(self, rngs: nnx.Rngs) -> RecommenderNetwork:
        """The network before its first step."""
        model = build_network(
            self.backbone, self.config.model, self.data, self.semantic_ids, self.vectors, rngs
        )
        if not self.config.starts_codes_at_items:
            return model
        # Means over a sample of the catalogue suffice.
        rows = np.arange(0, len(self.data.catalogue), 1 + len(self.data.catalogue) // 20_000)
        codes = np.asarray(self.semantic_ids.codes)[rows]
        tables = self.frozen_tables()
        model.start_codes(jnp.asarray(codes), jnp.asarray(rows), tables)
        return model

    def frozen_tables(self) -> dict[str, np.ndarray]:
        """Arrays by item that the network reads and does not train."""
        depth = self.config.prompt.layout.sid_generated
        return frozen_tables(self.config.model, depth, self.vectors, self.semantic_ids)

    def tables(self) -> dict[str, np.ndarray]:
        """The frozen tables, and the tables that only the loss reads.

        The latter are the tables of negatives, the popularity, and the constraints that each item
        satisfies.
        """
        tables = self.frozen_tables()
        if self.pool is not None:
            tables["instructions"] = np.asarray(self.pool.vectors)
        popularity = np.asarray(self.data.catalogue.popularity)
        is_cold = (popularity == 0) & (not self.config.has_cold_negatives)
        tables |= negative_tables(tables["prefix"], is_cold)
        if self.config.batch_negatives:
            share = popularity / max(popularity.sum(), 1)
            tables["popularity"] = share.astype(np.float32)  # about that of the targets
        if self.config.constraint_weight and self.config.prompt.has_instructions:
            catalogue = self.data.catalogue
            constraints = Constraints.make(self.data, self.config.prompt.longtail_share)
            tables["constraints"] = constraints.by_item(len(catalogue))
            tables["category"] = category = np.asarray(catalogue.category, np.int32)
            tables["category_sizes"] = np.bincount(
                category[category >= 0], minlength=len(catalogue.categories)
            )
        return tables

    def param_group(self, path: tuple[str, ...]) -> str:
        """The optimizer's group of the parameter at `path`."""
        return param_group(self.config, path)

    def loss(
        self,
        model: RecommenderNetwork,
        tables: Mapping[str, Array],
        batch: Mapping[str, Array],
        key,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Eq. 4 + Eq. 5 of SIGMA over all targets of the batch (sft/loss.py)."""
        return recommender_loss(self.config, model, tables, batch, key)

    def report(self, model: RecommenderNetwork, tables: Mapping[str, Array]) -> dict[str, float]:
        """HR@10 at item and SID level on validation requests, by task and averaged over tasks."""
        if not self.config.report_requests:
            return {}
        batch = self.validation(
            dict.fromkeys(self.config.prompt.trained_tasks, self.config.report_requests)
        )
        if not len(batch):
            return {}
        generation = dataclasses.replace(self.config.generation, num_beams=self.config.report_beams)
        if generation.ranker == "three_step":
            self.fit_head_weights(model, tables, batch)
        recommender = Recommender(self.parts(model, tables), generation)
        answer = recommender.recommend(batch)
        return hit_rates(answer.items, batch.requests, self.semantic_ids)

    def parts(
        self,
        network: RecommenderNetwork,
        tables: Mapping[str, Array],
        reranker: Reranker | None = None,
        lexical: LexicalTable | None = None,
    ) -> RecommenderParts:
        """The parts of a recommender with the network in training."""
        return RecommenderParts(
            self.config.spec,
            network,
            tables,
            self.semantic_ids,
            self.prompt_tables,
            self.data.users,
            reranker,
            lexical,
            self.encoder,
            item_groups(self.data.catalogue, self.semantic_ids),
            knowledge_of_groups(self.data, self.semantic_ids, self.encoder),
        )

    @functools.cached_property
    def prompt_tables(self) -> PromptTables:
        """The tokenized texts of prompts."""
        prompt = self.config.prompt
        return PromptTables.make(
            self.data, self.semantic_ids, prompt.layout, self.vocab_size, prompt.has_instructions
        )

    def fit_head_weights(
        self, model: RecommenderNetwork, tables: Mapping[str, Array], batch: RequestBatch
    ) -> HeadWeights | None:
        """The head weights under which the targets are likeliest, which are put into `model`.

        None for a network without an item head or without codes.
        """
        prompt = self.config.prompt
        if not self.config.model.has_item_head or not prompt.layout.sid_generated:
            return None
        step = -(-len(batch) // HEAD_REQUESTS)
        batch = batch.take(np.arange(0, len(batch), step))
        fitted = fit_head_weights(
            model,
            tables,
            make_prompts(
                batch.requests,
                batch.histories,
                self.prompt_tables,
                self.encoder if prompt.layout.has_instruction_vectors else None,
            ),
            batch.requests.target,
            prompt.layout.sid_generated,
            prompt.layout.item_query,
            self.config.temperature,
        )
        fitted.put_into(model)
        return fitted

    def validation(self, max_requests: Mapping[str, int]) -> RequestBatch:
        """Validation requests, at most `max_requests[task]` of each task."""
        prompt = self.config.prompt
        requests = sample_requests(
            self.data,
            "valid",
            self.seed,
            max_requests,
            prompt.longtail_share,
            prompt.wordings,
            is_random=False,
        )
        return RequestBatch.of(requests, self.data)

    def fit_requests(self, more: int = 0) -> RequestBatch:
        """Validation requests in the task mixture of training, for fitting; `more` of each task."""
        weights = self.config.prompt.trained_tasks
        share = self.config.reranker.fit_requests / max(weights.values())
        return self.validation(
            {task: int(share * weight) + more for task, weight in weights.items()}
        )

    def fit_reranker(
        self, model: RecommenderNetwork, tables: Mapping[str, Array], batch: RequestBatch
    ) -> tuple[Reranker, dict[str, float]]:
        """The reranker for the configured ranker, and metrics of the fit."""
        lexical = lexical_table(self.data, self.config.spec)
        recommender = Recommender(
            self.parts(model, tables, lexical=lexical), self.config.generation
        )
        novelty = None
        if self.pool is not None:
            texts, vectors = self.pool.texts.to_pylist(), np.asarray(self.pool.vectors)
            novelty = Novelty.fit(
                texts,
                vectors,
                self.pool.group,
                self.pool.task,
                self.pool.things(self.data),
                self.seed,
            )
        allowed = allowed_items(self.data, batch.requests)
        features = self.feature_tables(model, tables)
        has_interactions = self.config.reranker.has_interactions
        more = min(CALIBRATION_REQUESTS, self.config.reranker.fit_requests)
        judges = judges_of(self.fit_requests(more), batch.requests)
        return fit_reranker_of(
            recommender, batch, judges, features, allowed, novelty, has_interactions
        )

    def feature_tables(
        self, model: RecommenderNetwork, tables: Mapping[str, Array]
    ) -> FeatureTables:
        """The counts of the training rows, and neighbours by the model's item vectors."""
        vectors = all_item_vectors(model, tables, len(self.data.catalogue))
        reranker = self.config.reranker
        covisits = None
        if self.data.counts is None and not self.config.refits:  # a refit counts other rows
            covisits = count_once(self.workdir, self.data, self.seed)
        return FeatureTables.make(
            self.data, vectors, reranker.neighbours, reranker.has_repeat_model, covisits
        )

    def refit(self) -> SftTask | None:
        """The task that trains on validation targets too; None if the config does not refit."""
        if not self.config.refits:
            return None
        config = dataclasses.replace(self.config, report_requests=0)  # no request is unseen now
        return SftTask(config, self.workdir, self.seed, has_validation_rows=True)

    def finalize_on_all_hosts(self, model: RecommenderNetwork, mesh: Mesh) -> None:
        """Does nothing: one process finishes the stage."""

    def finish(self, model: RecommenderNetwork, tables: Mapping[str, Array], folder: Path) -> dict:
        """Fits head weights and reranker, and writes the recommender (recommender/parts.py).

        Returns metrics of the fits. A refit replaces the network and the counts in `folder`, and
        moves the old ones to the subfolder BEFORE_REFIT. Fitted weights are kept, because the refit
        trains on the requests that they were fitted on.
        """
        model.backbone.fold_lora()  # the fits need the weights that are saved
        if self.is_refit:
            self.replace_weights(model, tables, folder)
            return {}
        fitted = {}
        batch = self.fit_requests() if self.config.prompt.trained_tasks else None
        if batch is not None and len(batch):
            logging.info("sft: fitting head weights and reranker on %d requests", len(batch))
            head_weights = self.fit_head_weights(model, tables, batch)
            if self.config.reranker.neighbours:
                reranker, fitted = self.fit_reranker(model, tables, batch)
                reranker.save(folder)
            fitted |= head_weights.metrics if head_weights is not None else {}
        save_network(model, folder)
        self.config.spec.save(folder)
        return fitted

    def replace_weights(
        self, model: RecommenderNetwork, tables: Mapping[str, Array], folder: Path
    ) -> None:
        """Replaces the network and the counts in `folder`; the old ones go to BEFORE_REFIT."""
        shutil.copytree(folder, folder / BEFORE_REFIT)
        if self.config.model.has_item_head:
            copy_weights(model, folder / WEIGHTS, HEAD_WEIGHTS)
        save_network(model, folder)
        if (folder / RERANKER).exists():
            reranker = Reranker.load(folder)
            counts = self.feature_tables(model, tables)
            dataclasses.replace(reranker, tables=counts).save(folder)


def hit_rates(
    items: Int[np.ndarray, "N K"], requests: Requests, semantic_ids: SemanticIds
) -> dict[str, float]:
    """HR@10 by task and averaged over tasks, and NDCG@10, at item and SID level."""
    rates = {}
    for level, ranks in (
        ("item", metrics.item_ranks(items, requests.target)),
        ("sid", metrics.sid_ranks(items, requests.target, semantic_ids.codes)),
    ):
        hits = metrics.hits(ranks, 10)
        by_task = {
            TASKS[task]: float(hits[requests.task == task].mean())
            for task in np.unique(requests.task)
        }
        rates |= {f"hr10_{level}_{task}": value for task, value in by_task.items()}
        rates[f"hr10_{level}"] = float(np.mean(list(by_task.values())))
        rates[f"ndcg10_{level}"] = float(metrics.ndcg(ranks, 10).mean())
    return rates


def param_group(config: SftConfig, path: tuple[str, ...]) -> str:
    """The optimizer's group of the parameter at `path`: "table", "base" or "frozen".

    Tables are the SID table, the code bias and trained item vectors.
    """
    if path[0] in HEAD_WEIGHTS or config.backbone.is_frozen(path):
        return "frozen"
    is_table = path[0] in ("sid_table", "code_bias") or path[:2] == ("item_encoder", "trained")
    return "table" if is_table else "base"


def write_record_shards(
    data: PreparedData, prompt: PromptConfig, workdir: Path, seed: int, has_validation_rows: bool
) -> Path:
    """The folder of the training records, which are written if they are missing.

    It is WORKDIR/records, or WORKDIR/records-refit with validation rows. ValueError if the folder
    holds records of other settings.
    """
    name = "records-refit" if has_validation_rows else "records"

    def write(folder: Path) -> dict[str, int]:
        return write_records(data, prompt, folder, seed)

    settings = record_settings(prompt)
    return make_side_artifact(workdir, name, settings, ("data",), seed, write)


def make_side_artifact(
    workdir: Path,
    name: str,
    settings: Mapping[str, Any],
    needs: Sequence[str],
    seed: int,
    write: Callable[[Path], dict[str, int]],
) -> Path:
    """The folder WORKDIR/NAME, which the first process writes if it is missing.

    ValueError if the folder holds an artifact of other settings.

    Args:
      settings: those that decide its content, besides the seed and the artifacts that it needs.
      needs: the artifacts that it is made from, such as "data".
      write: fills a folder, and returns metrics of the manifest.
    """
    inputs = {name: read_manifest(workdir, name).fingerprint for name in needs}
    recipe = Recipe(settings, inputs, seed)

    def make() -> None:
        if not is_current(workdir, name, recipe):
            write_artifact(workdir, name, recipe, write)

    hosts.by_first(make)
    return workdir / name
