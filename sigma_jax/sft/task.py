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
from jaxtyping import Array, Float

from sigma_jax import metrics
from sigma_jax.generation.generate import GenerationConfig, Generator
from sigma_jax.losses import next_token_loss, prefix_infonce, weighted_mean
from sigma_jax.models.backbone import HOW, BackboneConfig, make_backbone
from sigma_jax.models.hf import read_config, save_backbone
from sigma_jax.models.item_encoder import TABLES
from sigma_jax.models.qwen3 import branch_mask
from sigma_jax.models.recommender import Recommender, RecommenderConfig, TokenSpace
from sigma_jax.models.weights import load_weights, save_weights
from sigma_jax.runtime.artifacts import Recipe, is_current, plain, read_json, write_artifact
from sigma_jax.runtime.config import OptimizerConfig, TrainConfig, to_dataclass
from sigma_jax.schema import TASKS, PreparedData, Requests, SemanticIds, load_item_vectors
from sigma_jax.sft.assemble import batches
from sigma_jax.sft.layout import HISTORY_TASK
from sigma_jax.sft.prompt import PromptConfig, PromptTables, load_text_tokenizer
from sigma_jax.sft.records import write_records
from sigma_jax.sft.requests import assemble_prompts, make_requests

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


@dataclasses.dataclass(frozen=True)
class SftConfig:
    """Everything about stage 3."""

    optimizer: OptimizerConfig
    train: TrainConfig
    backbone: BackboneConfig
    starts_from_grounding: bool  # the backbone of stage 1 instead of `backbone`'s own start
    model: RecommenderConfig
    prompt: PromptConfig
    temperature: float  # tau of Eq. 5
    num_negatives: int  # drawn once a step for the whole batch (Eq. 5); 100,000 in the paper
    uses_prefix_condition: bool  # negatives share the target's SID prefix (Eq. 5)
    ntp_weight: float  # of Eq. 4
    infonce_weight: float  # of Eq. 5
    label_smoothing: float  # of Eq. 4
    report_requests: int  # validation requests a task, while training
    report_beams: int

    def __post_init__(self):
        for name, least in (("num_negatives", 1), ("report_requests", 0), ("report_beams", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}; use {least} or more.")
        for name in ("ntp_weight", "infonce_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}; use 0 or more.")
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature}; use more than 0, such as 0.05.")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing={self.label_smoothing}; use 0 <= it < 1.")
        if unknown := set(self.model.item_encoder.inputs) - set(TABLES):
            raise ValueError(
                f"model.item_encoder.inputs names {sorted(unknown)}; known are {', '.join(TABLES)}."
            )


class SftTask:
    """Stage 3 as `train.py` sees it."""

    def __init__(self, config: SftConfig, workdir: Path, seed: int, mesh: Mesh | None = None):
        self.config, self.workdir, self.seed = config, workdir, seed
        self.data = PreparedData.load(workdir / "data")
        self.semantic_ids = SemanticIds.load(workdir / "tokenizer")
        config.prompt.check(self.semantic_ids.levels)
        self.vectors = item_vectors(self.data, workdir)
        self.vocab_size = backbone_source(config, workdir, self.data)[1]
        self.records = write_record_shards(self.data, config.prompt, workdir, seed)

    @property
    def batch_rows(self) -> int:
        """Rows of the global batch."""
        return self.config.train.batch_size

    def batches(self) -> grain.MapDataset:
        """Element s is this process's part of the batch of step s."""
        return batches(
            self.records,
            self.data,
            self.semantic_ids,
            self.config.prompt,
            self.vocab_size,
            self.seed,
            self.batch_rows,
            jax.process_index(),
            jax.process_count(),
        )

    def model(self, rngs: nnx.Rngs) -> Recommender:
        """The recommender before its first step."""
        return make_recommender(
            self.config, self.workdir, self.data, self.semantic_ids, self.vectors, rngs
        )

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
        ntp, code_figures = self.code_loss(model, tables, batch, hidden)
        infonce, item_figures = self.item_loss(model, tables, batch, hidden, negative_key)
        loss = self.config.ntp_weight * ntp + self.config.infonce_weight * infonce
        figures = {
            "ntp_loss": ntp,
            "infonce_loss": infonce,
            "targets": (batch["target_weight"] > 0).sum(),
            "dropped_items": batch["dropped"][:, 0].sum(),
            "dropped_targets": batch["dropped"][:, 1].sum(),
            **{f"code_{name}": value for name, value in code_figures.items()},
            **{f"item_{name}": value for name, value in item_figures.items()},
        }
        return loss, figures

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
        """Eq. 5: InfoNCE against negatives drawn once for the batch."""
        num_items = tables["codes"].shape[0]
        if self.config.num_negatives >= num_items:
            negatives = jnp.arange(num_items)
        else:
            negatives = jax.random.randint(key, (self.config.num_negatives,), 0, num_items)
        queries = model.query(_rows_at(hidden, batch["query_position"]))
        targets = batch["target_item"].reshape(-1)
        return prefix_infonce(
            queries.reshape(-1, queries.shape[-1]),
            model.item_vectors(targets, tables),
            targets,
            jnp.take(tables["prefix"], targets),
            model.item_vectors(negatives, tables),
            negatives,
            jnp.take(tables["prefix"], negatives),
            self.config.temperature,
            batch["target_weight"].reshape(-1),
            self.config.uses_prefix_condition,
        )

    def report(self, model: Recommender, tables: Mapping[str, Array]) -> dict[str, float]:
        """HR@10 at item and SID level on validation requests, by task and on average."""
        if not self.config.report_requests:
            return {}
        prompt = self.config.prompt
        requests = make_requests(
            self.data, "valid", self.seed, self.config.report_requests, prompt.longtail_share
        )
        if not len(requests):
            return {}
        generation = generation_config(self.config, self.config.report_beams, batch_size=32)
        generator = Generator.create(
            model, tables, self.semantic_ids, prompt.sid_generated, generation
        )
        prompt_tables = PromptTables.make(self.data, self.semantic_ids, prompt, self.vocab_size)
        found = generator(prompts_of(requests, self.data, prompt_tables, prompt), 10, None)
        return hit_rates(found.items, requests, self.semantic_ids)

    def finish(self, model: Recommender, tables: Mapping[str, Array], folder: Path) -> dict:
        """Writes the weights, the backbone as a Hugging Face folder, and the config."""
        save_weights(model, folder / "weights.safetensors", without="backbone")
        save_backbone(model.backbone, folder / "backbone")
        (folder / "config.json").write_text(json.dumps(plain(self.config), indent=1))
        return {}


def generation_config(config: SftConfig, num_beams: int, batch_size: int) -> GenerationConfig:
    """Generation as Eq. 6-11 have it, at the temperature of training."""
    return GenerationConfig(
        num_beams=num_beams,
        num_retrieved=20,
        temperature=config.temperature,
        sigma="deviation",
        sigma_floor=0.1,
        normaliser="exact",
        ranking="fused",
        batch_size=batch_size,
    )


@dataclasses.dataclass(frozen=True)
class TrainedRecommender:
    """A finished stage 3 with what it takes to prompt it."""

    config: SftConfig
    model: Recommender
    tables: dict[str, np.ndarray]
    semantic_ids: SemanticIds
    prompt_tables: PromptTables

    def prompts(self, requests: Requests, data: PreparedData) -> dict[str, np.ndarray]:
        """Prompts of `requests` as the generator takes them."""
        return prompts_of(requests, data, self.prompt_tables, self.config.prompt)


def load_recommender(workdir: Path, data: PreparedData) -> TrainedRecommender:
    """The recommender in WORKDIR/sft. ValueError where a file is missing or does not fit."""
    folder = workdir / "sft"
    config = to_dataclass(SftConfig, read_json(folder / "config.json"))
    semantic_ids = SemanticIds.load(workdir / "tokenizer")
    vectors = item_vectors(data, workdir)
    stored = dataclasses.replace(config.backbone, hf_folder=str(folder / "backbone"))
    stored_config = dataclasses.replace(config, backbone=stored, starts_from_grounding=False)
    model = make_recommender(stored_config, workdir, data, semantic_ids, vectors, nnx.Rngs(0))
    load_weights(model, folder / "weights.safetensors", without="backbone")
    return TrainedRecommender(
        config,
        model,
        frozen_tables(config, vectors, semantic_ids),
        semantic_ids,
        PromptTables.make(data, semantic_ids, config.prompt, model.space.vocab_size),
    )


def item_vectors(data: PreparedData, workdir: Path) -> dict[str, np.ndarray]:
    """The pre-trained item vectors there are: id (given, or the teacher's), text, image."""
    vectors = {"text": load_item_vectors(workdir / "grounding" / "text_vectors.npy")}
    if data.id_vectors is not None:
        vectors["id"] = data.id_vectors
    elif (workdir / "teacher" / "id_vectors.npy").exists():
        vectors["id"] = load_item_vectors(workdir / "teacher" / "id_vectors.npy")
    if data.visual_vectors is not None:
        vectors["image"] = data.visual_vectors
    for name, rows in vectors.items():
        if len(rows) != len(data.catalogue):
            raise ValueError(
                f"{workdir} has {len(rows)} {name} vectors for {len(data.catalogue)} items; "
                "delete the folder of the stage that made them and run again."
            )
    return vectors


def backbone_source(
    config: SftConfig, workdir: Path, data: PreparedData
) -> tuple[BackboneConfig, int]:
    """Where the backbone comes from, and V: the rows of its text table."""
    backbone = config.backbone
    if config.starts_from_grounding:
        folder = workdir / "grounding" / "backbone"
        backbone = dataclasses.replace(backbone, hf_folder=str(folder))
    if backbone.hf_folder:
        how = {name: getattr(backbone, name) for name in HOW}
        return backbone, read_config(backbone.hf_folder, **how).vocab_size
    return backbone, len(load_text_tokenizer(data))


def make_recommender(
    config: SftConfig,
    workdir: Path,
    data: PreparedData,
    semantic_ids: SemanticIds,
    vectors: Mapping[str, np.ndarray],
    rngs: nnx.Rngs,
) -> Recommender:
    """A recommender over `vectors`; its backbone as `config` says."""
    source, vocab_size = backbone_source(config, workdir, data)
    backbone = make_backbone(source, vocab_size, rngs, data.text_tokenizer_folder)
    space = TokenSpace(backbone.config.vocab_size, semantic_ids.levels, semantic_ids.codebook_size)
    return Recommender(config.model, backbone, space, vectors, rngs=rngs)


def frozen_tables(
    config: SftConfig, vectors: Mapping[str, np.ndarray], semantic_ids: SemanticIds
) -> dict[str, np.ndarray]:
    """Arrays by item that the model reads and does not train."""
    encoder = config.model.item_encoder
    tables = {
        name: np.asarray(vectors[name], np.float32)
        for name in TABLES
        if name in vectors and name in encoder.inputs and name not in encoder.trainable
    }
    codes = np.asarray(semantic_ids.codes, np.int32)
    prefix = np.unique(codes[:, : config.prompt.sid_generated], axis=0, return_inverse=True)[1]
    return {**tables, "codes": codes, "prefix": prefix.reshape(-1).astype(np.int32)}


def write_record_shards(data: PreparedData, prompt: PromptConfig, workdir: Path, seed: int) -> Path:
    """WORKDIR/records: the training contexts, made where they are missing or of other settings."""
    settings = {name: getattr(prompt, name) for name in RECORD_FIELDS}
    inputs = {"data": read_json(data.folder / "manifest.json")["fingerprint"]}
    recipe = Recipe(settings, inputs, seed)
    if not is_current(workdir, "records", recipe):
        write_artifact(
            workdir, "records", recipe, lambda folder: write_records(data, prompt, folder, seed)
        )
    return workdir / "records"


def hidden_states(model: Recommender, tables, batch, key=None) -> Float[Array, "B T D"]:
    """Of contexts and branches, each branch seeing its context and itself."""
    mask = branch_mask(batch["segment"], batch["branch"], batch["attach"])
    hidden, _ = model(batch["token"], batch["item"], batch["position"], mask, tables, key=key)
    return hidden


def prompts_of(
    requests: Requests, data: PreparedData, tables: PromptTables, config: PromptConfig
) -> dict[str, np.ndarray]:
    """Prompts of `requests` with the field names of the generator, cut to the longest."""
    prompts = assemble_prompts(requests, data, tables, config, config.row_tokens)
    # Few distinct lengths, so that other requests do not compile another program.
    longest = int(prompts["length"].max(initial=1))
    length = min(config.row_tokens, -(-longest // 32) * 32)
    return {
        "tokens": prompts["token"][:, :length],
        "items": prompts["item"][:, :length],
        "positions": prompts["position"][:, :length],
        "is_token": prompts["segment"][:, :length] > 0,
        "lengths": prompts["length"],
    }


def hit_rates(items: np.ndarray, requests: Requests, semantic_ids: SemanticIds) -> dict[str, float]:
    """HR@10 by task, and averaged over tasks, at item and at SID level."""
    found = {}
    for level, ranks in (
        ("item", metrics.item_ranks(items, requests.target)),
        ("sid", metrics.sid_ranks(items, requests.target, semantic_ids.codes)),
    ):
        hits = metrics.hits(ranks, 10)
        by_task = {
            TASKS[task]: float(hits[requests.task == task].mean())
            for task in np.unique(requests.task)
        }
        found |= {f"hr10_{level}_{task}": value for task, value in by_task.items()}
        found[f"hr10_{level}"] = float(np.mean(list(by_task.values())))
    return found


def _rows_at(hidden: Float[Array, "B T D"], positions: Array) -> Float[Array, "B ... D"]:
    """Hidden states at `positions` [B, ...] of each row."""
    flat = positions.reshape(positions.shape[0], -1, 1)
    picked = jnp.take_along_axis(hidden, flat, axis=1)
    return picked.reshape(*positions.shape, hidden.shape[-1])
