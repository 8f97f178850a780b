"""Stage 3: instructions to recommendations (section 2.3 of SIGMA).

What `train.py` asks of a stage, for the recommender: batches of contexts with branches, the model,
the loss Eq. 4 + Eq. 5, and hit rates on validation requests while it trains.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from sigma_jax.data.pipeline import open_shards
from sigma_jax.data.vectors import item_vectors
from sigma_jax.generation.generate import Generator
from sigma_jax.losses import (
    Candidates,
    JointTargets,
    joint_loss,
    next_token_loss,
    own_negatives_infonce,
    prefix_infonce,
    weighted_mean,
)
from sigma_jax.models.hf import save_backbone
from sigma_jax.models.qwen3 import branch_mask
from sigma_jax.models.recommender import Recommender
from sigma_jax.models.weights import save_weights
from sigma_jax.runtime.artifacts import Recipe, is_current, plain, read_json, write_artifact
from sigma_jax.schema import TASKS, PreparedData, Requests, SemanticIds
from sigma_jax.sft.assemble import batches, contexts_that_fit
from sigma_jax.sft.build import backbone_source, frozen_tables, make_recommender
from sigma_jax.sft.config import SftConfig
from sigma_jax.sft.layout import HISTORY_TASK
from sigma_jax.sft.prior import fit_prior, training_ties
from sigma_jax.sft.prompt import PromptConfig, PromptTables
from sigma_jax.sft.records import RECORDS, write_records
from sigma_jax.sft.requests import make_requests
from sigma_jax.sft.trained import generation_config, hit_rates, prompts_of

RECORD_FIELDS = (  # of PromptConfig: those that decide what the records hold
    "history_length",
    "num_favourites",
    "window_stride",
    "lookahead_sessions",
    "candidates_per_boundary",
    "longtail_share",
    "cold_start_weight",
    "records_per_shard",
)

FIT_BEAMS = 32  # when the prior is fitted


class SftTask:
    """Stage 3 as `train.py` sees it."""

    def __init__(self, config: SftConfig, workdir: Path, seed: int, mesh: Mesh | None = None):
        self.config, self.workdir, self.seed = config, workdir, seed
        self.data = PreparedData.load(workdir / "data")
        self.semantic_ids = SemanticIds.load(workdir / "tokenizer")
        config.prompt.check(self.semantic_ids.levels)
        self.vectors = item_vectors(workdir, len(self.data.catalogue))
        self.vocab_size = backbone_source(config, workdir, self.data)[1]
        self.records = write_record_shards(self.data, config.prompt, workdir, seed)
        self.prompt = config.prompt
        if not config.prompt.contexts_per_group:
            most = contexts_that_fit(
                self.records, self.data, self.semantic_ids, config.prompt, self.vocab_size
            )
            self.prompt = dataclasses.replace(config.prompt, contexts_per_group=most)

    @property
    def batch_rows(self) -> int:
        """Rows of the global batch."""
        return self.config.train.batch_size

    def batches(self) -> grain.MapDataset:
        """Element s is the batch of step s, all of it on every process."""
        return batches(
            self.records,
            self.data,
            self.semantic_ids,
            self.prompt,
            self.vocab_size,
            self.seed,
            self.batch_rows,
        )

    @property
    def epoch_steps(self) -> float:
        """Steps in which every context comes once."""
        groups = self.batch_rows // self.prompt.pack_group_rows
        return len(open_shards(self.records, RECORDS)) / (groups * self.prompt.contexts_per_group)

    def model(self, rngs: nnx.Rngs) -> Recommender:
        """The recommender before its first step."""
        model = make_recommender(
            self.config, self.workdir, self.data, self.semantic_ids, self.vectors, rngs
        )
        # A sample of the catalogue suffices for means.
        rows = np.arange(0, len(self.data.catalogue), 1 + len(self.data.catalogue) // 20_000)
        codes = np.asarray(self.semantic_ids.codes)[rows]
        model.start_codes(jnp.asarray(codes), jnp.asarray(rows), self.tables())
        return model

    def tables(self) -> dict[str, np.ndarray]:
        """Frozen item vectors, the codes of all items, and their prefix's number."""
        return frozen_tables(self.config, self.vectors, self.semantic_ids)

    def label(self, path: tuple[str, ...]) -> str:
        """Group of the optimizer: SID table, code bias and trained vectors are tables."""
        if path[0] == "sid_table" and self.config.model.is_sid_table_frozen:
            return "frozen"
        is_table = path[0] in ("sid_table", "code_bias") or path[:2] == ("item_encoder", "trained")
        return "table" if is_table else "base"

    def loss(
        self, model: Recommender, tables: Mapping[str, Array], batch: Mapping[str, Array], key
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Eq. 4 + Eq. 5 of SIGMA over all targets of the batch."""
        dropout_key, negative_key = jax.random.split(key)
        hidden = hidden_states(model, tables, batch, dropout_key)
        losses = self.joint_loss if self.config.model.has_open_query else self.separate_losses
        ntp, infonce, more = losses(model, tables, batch, hidden, negative_key)
        loss = self.config.ntp_weight * ntp + self.config.infonce_weight * infonce
        figures = {
            "ntp_loss": ntp,
            "infonce_loss": infonce,
            "targets": (batch["target_weight"] > 0).sum(),
            "dropped_items": batch["dropped"][:, 0].sum(),
            "dropped_targets": batch["dropped"][:, 1].sum(),
            **more,
        }
        return loss, figures

    def joint_loss(self, model: Recommender, tables, batch, hidden, key):
        """Eq. 4 and 5 over one set of item scores (losses.joint_loss)."""
        prompt = self.config.prompt
        start, end = batch["start_position"], batch["query_position"]
        mask = mask_of(batch)

        def seen_from(positions):
            return jnp.take_along_axis(mask, positions[..., None], axis=1)

        opened = model.open_query(_rows_at(hidden, start), batch["item"], seen_from(start), tables)
        queries = opened
        if prompt.has_query_token:
            at_queries = _rows_at(hidden, end)
            queries = model.query(at_queries, batch["item"], seen_from(end), tables, opened)
        size = model.space.codebook_size
        logits = jnp.zeros((*start.shape, 0, size))
        if prompt.sid_generated:
            logits = model.code_logits(_rows_at(hidden, batch["code_position"]))
        num_items = tables["codes"].shape[0]
        candidates = self.candidates(num_items, key)
        vectors = model.item_vectors(candidates, tables)
        items = batch["target_item"].reshape(-1)
        codes = tables["codes"][:, : prompt.sid_generated]
        of_targets = (
            jnp.take(vectors, items, axis=0)
            if len(candidates) == num_items
            else model.item_vectors(items, tables)
        )
        targets = JointTargets(
            items=items,
            codes=jnp.take(codes, items, axis=0),
            vectors=of_targets,
            open_queries=opened.reshape(-1, opened.shape[-1]),
            code_logits=logits.reshape(items.size, *logits.shape[2:]),
            queries=queries.reshape(-1, queries.shape[-1]),
        )
        return joint_loss(
            targets,
            Candidates(candidates, jnp.take(codes, candidates, axis=0), vectors),
            num_items,
            self.config.temperature,
            batch["target_weight"].reshape(-1),
            self.config.label_smoothing,
            self.config.uses_prefix_condition,
        )

    def candidates(self, num_items: int, key) -> Int[Array, " N"]:
        """All items, or `num_negatives` of them drawn for the batch."""
        if self.config.num_negatives >= num_items:
            return jnp.arange(num_items)
        return jax.random.randint(key, (self.config.num_negatives,), 0, num_items)

    def separate_losses(self, model: Recommender, tables, batch, hidden, key):
        """Eq. 4 and Eq. 5 as the paper has them, each over scores of its own."""
        ntp, code_figures = self.code_loss(model, tables, batch, hidden)
        infonce, item_figures = jnp.zeros(()), {}
        if self.config.prompt.generates_item:
            infonce, item_figures = self.item_loss(model, tables, batch, hidden, key)
        figures = {f"code_{name}": value for name, value in code_figures.items()}
        return ntp, infonce, figures | {f"item_{k}": value for k, value in item_figures.items()}

    def code_loss(self, model: Recommender, tables, batch, hidden: Float[Array, "B T D"]):
        """Eq. 4: next-token loss over the y codes of each target."""
        levels = self.config.prompt.sid_generated
        at_codes = _rows_at(hidden, batch["code_position"])
        logits = model.code_logits(at_codes)
        codes = jnp.take(tables["codes"], batch["target_item"], axis=0)[..., :levels]
        weights = batch["target_weight"]
        loss, figures = next_token_loss(
            logits, model.code_labels(codes), weights, self.config.label_smoothing
        )
        # The same by kind of target: history supervision is not what users ask for.
        is_instructed = batch["target_task"] != HISTORY_TASK
        is_right = (logits.argmax(axis=-1) == model.code_labels(codes)).all(axis=-1)
        figures["accuracy_instructed"] = weighted_mean(is_right, weights * is_instructed)
        return loss, figures

    def item_loss(self, model: Recommender, tables, batch, hidden, key):
        """Eq. 5: InfoNCE against items of the target's prefix."""
        positions = batch["query_position"]
        is_seen = jnp.take_along_axis(mask_of(batch), positions[..., None], axis=1)
        queries = model.query(_rows_at(hidden, positions), batch["item"], is_seen, tables)
        queries = queries.reshape(-1, queries.shape[-1])
        targets = batch["target_item"].reshape(-1)
        weights = batch["target_weight"].reshape(-1)
        if self.config.negatives_per_target and self.config.uses_prefix_condition:
            return self.own_negatives_loss(model, tables, queries, targets, weights, key)
        negatives = self.candidates(tables["codes"].shape[0], key)
        return prefix_infonce(
            queries,
            model.item_vectors(targets, tables),
            targets,
            jnp.take(tables["prefix"], targets),
            model.item_vectors(negatives, tables),
            negatives,
            jnp.take(tables["prefix"], negatives),
            self.config.temperature,
            weights,
            self.config.uses_prefix_condition,
        )

    def own_negatives_loss(self, model: Recommender, tables, queries, targets, weights, key):
        """Eq. 5 with negatives drawn for each target from its own prefix.

        What is drawn for the whole batch mostly has other prefixes and is masked: of 4,096 items
        16 remain where a prefix holds 52 of 13,343. These all count, at less cost.
        """
        prefix = jnp.take(tables["prefix"], targets)
        start = jnp.take(tables["prefix_start"], prefix)
        size = jnp.take(tables["prefix_start"], prefix + 1) - start
        places, is_item = draw_places(key, size, self.config.negatives_per_target)
        negatives = jnp.take(tables["by_prefix"], start[:, None] + places)
        num_items = tables["codes"].shape[0]
        if num_items <= negatives.size:  # each item once is cheaper than each drawing
            vectors = model.item_vectors(jnp.arange(num_items), tables)
            of_targets, of_negatives = (jnp.take(vectors, i, axis=0) for i in (targets, negatives))
        else:
            of_targets, of_negatives = (model.item_vectors(i, tables) for i in (targets, negatives))
        is_negative = is_item & (negatives != targets[:, None])
        return own_negatives_infonce(
            queries,
            of_targets,
            of_negatives,
            is_negative,
            size - 1,
            self.config.temperature,
            weights,
        )

    def report(self, model: Recommender, tables: Mapping[str, Array]) -> dict[str, float]:
        """HR@10 at item and SID level on validation requests, by task and on average."""
        if not self.config.report_requests:
            return {}
        most = dict.fromkeys(self.config.prompt.asked_tasks, self.config.report_requests)
        requests, prompts = self.validation(most)
        if not len(requests):
            return {}
        found = self.generator(model, tables, self.config.report_beams)(prompts, 10, None)
        return hit_rates(found.items, requests, self.semantic_ids)

    def validation(self, most: Mapping[str, int]) -> tuple[Requests, dict[str, np.ndarray]]:
        """At most so many validation requests of each task, and their prompts."""
        prompt = self.config.prompt
        requests = make_requests(
            self.data,
            "valid",
            self.seed,
            max(most.values()),
            prompt.longtail_share,
            prompt.phrasings,
        )
        of_task = [np.flatnonzero(requests.task == number) for number in range(len(TASKS))]
        rows = [here[: most.get(task, 0)] for here, task in zip(of_task, TASKS, strict=True)]
        requests = requests.take(np.concatenate(rows))
        if not len(requests):
            return requests, {}
        tables = PromptTables.make(self.data, self.semantic_ids, prompt, self.vocab_size)
        return requests, prompts_of(requests, self.data, tables, prompt)

    def generator(self, model: Recommender, tables: Mapping[str, Array], beams: int) -> Generator:
        """Over the whole catalogue, as trained."""
        config = generation_config(self.config, beams, batch_size=32)
        depth = self.config.prompt.sid_generated
        return Generator.create(
            model, tables, self.semantic_ids, depth, config, self.config.prompt.generates_item
        )

    def fit_prior(self, model: Recommender, tables: Mapping[str, Array], folder: Path) -> dict:
        """Fits and writes what counts say beside the model, on requests mixed as in training."""
        weights = self.config.prompt.asked_tasks
        if not self.config.prior.neighbours or not weights:
            return {}
        share = self.config.prior.fit_requests / max(weights.values())
        most = {task: int(share * weight) for task, weight in weights.items()}
        requests, prompts = self.validation(most)
        if not len(requests):
            return {}
        ties = training_ties(self.data, self.config.prior.neighbours, self.seed)
        generator = self.generator(model, tables, FIT_BEAMS)
        prior, figures = fit_prior(generator, prompts, requests, self.data.histories, ties)
        prior.save(folder)
        return figures

    def finish(self, model: Recommender, tables: Mapping[str, Array], folder: Path) -> dict:
        """Writes the weights, the backbone as a Hugging Face folder, the config and the prior."""
        save_weights(model, folder / "weights.safetensors", without="backbone")
        save_backbone(model.backbone, folder / "backbone")
        (folder / "config.json").write_text(json.dumps(plain(self.config), indent=1))
        return self.fit_prior(model, tables, folder)


def hidden_states(model: Recommender, tables, batch, key=None) -> Float[Array, "B T D"]:
    """Of contexts and branches, each branch seeing its context and itself."""
    hidden, _ = model(
        batch["token"], batch["item"], batch["position"], mask_of(batch), tables, key=key
    )
    return hidden


def mask_of(batch: Mapping[str, Array]) -> Bool[Array, "B T T"]:
    """Which positions of its row each position sees."""
    return branch_mask(batch["segment"], batch["branch"], batch["attach"])


def draw_places(
    key: jax.Array, size: Int[Array, " Q"], count: int
) -> tuple[Int[Array, "Q R"], Bool[Array, "Q R"]]:
    """`count` different places of 0..size-1 for each row, and which of them are real.

    All of them where they fit; otherwise one at random from each of `count` equal stretches.
    """
    size = size[:, None]

    def stretch_start(number):
        return number * (size // count) + number * (size % count) // count

    low, high = (stretch_start(jnp.arange(count) + end) for end in (0, 1))
    share = jax.random.uniform(key, low.shape)
    drawn = low + jnp.minimum((share * (high - low)).astype(jnp.int32), high - low - 1)
    fits, steps = size <= count, jnp.broadcast_to(jnp.arange(count), low.shape)
    return jnp.where(fits, jnp.minimum(steps, size - 1), drawn), ~fits | (steps < size)


def write_record_shards(data: PreparedData, prompt: PromptConfig, workdir: Path, seed: int) -> Path:
    """WORKDIR/records: the training contexts, made where they are missing.

    ValueError if they were made with other settings.
    """
    settings = {name: getattr(prompt, name) for name in RECORD_FIELDS}
    inputs = {"data": read_json(data.folder / "manifest.json")["fingerprint"]}
    recipe = Recipe(settings, inputs, seed)
    if not is_current(workdir, "records", recipe):
        write_artifact(
            workdir, "records", recipe, lambda folder: write_records(data, prompt, folder, seed)
        )
    return workdir / "records"


def _rows_at(hidden: Float[Array, "B T D"], positions: Array) -> Float[Array, "B ... D"]:
    """Hidden states at `positions` [B, ...] of each row."""
    flat = positions.reshape(positions.shape[0], -1, 1)
    picked = jnp.take_along_axis(hidden, flat, axis=1)
    return picked.reshape(*positions.shape, hidden.shape[-1])
