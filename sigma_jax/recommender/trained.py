"""A finished stage 3: loaded, prompted, judged."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float32

from sigma_jax import metrics
from sigma_jax.data.vectors import item_vectors
from sigma_jax.generation.config import GenerationConfig
from sigma_jax.generation.generator import Choice, Generator
from sigma_jax.models.network import RecommenderNetwork
from sigma_jax.models.weights import load_weights
from sigma_jax.prompts.config import PromptConfig
from sigma_jax.prompts.inference import prompts_of
from sigma_jax.prompts.tokens import PromptTables
from sigma_jax.recommender.build import frozen_tables, make_recommender
from sigma_jax.reranking.instruction import Told
from sigma_jax.reranking.lexical import WordTable
from sigma_jax.reranking.reranker import Prior
from sigma_jax.runtime.artifacts import read_manifest
from sigma_jax.runtime.config import to_dataclass
from sigma_jax.runtime.files import read_json
from sigma_jax.schema import TASKS, Catalogue, PreparedData, Requests, SemanticIds
from sigma_jax.sft.config import SftConfig
from sigma_jax.tasks import instructions

WEIGHTS = "weights.safetensors"
ITEM_ROWS = "item_encoder.trained"  # the parameters that belong to items
TEXTS = 10_000  # of items, in Python at a time
BEFORE_REFIT = "before_refit"  # in the stage's folder: what it was before it was refitted


def generation_config(config: SftConfig, num_beams: int, batch_size: int) -> GenerationConfig:
    """Generation as Eq. 6-11 have it, at the temperature of training."""
    return GenerationConfig(
        num_beams=num_beams,
        num_retrieved=20,
        temperature=config.temperature,
        sigma="deviation",
        sigma_floor=1.0,  # as flat as trained at most: Eq. 5 is Eq. 11 with sigma 1
        normaliser="exact",
        ranking="fused",
        batch_size=batch_size,
        early_beams=(),
        beam_margin=0.0,
        retrieval="exact",
    )


@dataclasses.dataclass(frozen=True)
class TrainedRecommender:
    """A finished stage 3 with what it takes to prompt it."""

    config: SftConfig
    model: RecommenderNetwork
    tables: dict[str, np.ndarray]
    semantic_ids: SemanticIds
    prompt_tables: PromptTables
    prior: Prior | None
    words: WordTable | None

    def prompts(self, requests: Requests, data: PreparedData) -> dict[str, np.ndarray]:
        """Prompts of `requests` as the generator takes them."""
        return prompts_of(requests, data, self.prompt_tables)

    def choice(
        self,
        generator: Generator,
        requests: Requests,
        data: PreparedData,
        uses_prior: bool = True,
        seen: np.ndarray | None = None,
    ) -> Choice:
        """How `generator` is to rank for `requests`: with the prior where there is one."""
        if not uses_prior or self.prior is None:
            return Choice(seen, config=generator.config)
        told = self.told(generator, requests, data)
        return self.prior.choice(generator.config, requests, data.histories, told, seen)

    def told(self, generator: Generator, requests: Requests, data: PreparedData) -> Told | None:
        """What the instructions of `requests` say by themselves (told_by)."""
        return told_by(generator, requests, data, self.prompt_tables, self.config)


def load_recommender(workdir: Path, data: PreparedData, part: str = "") -> TrainedRecommender:
    """The recommender in WORKDIR/sft, or in a folder of it, such as BEFORE_REFIT.

    ValueError where a file is missing or does not fit.
    """
    folder = workdir / "sft" / part
    remedy = f"delete {folder} and {workdir / 'train' / 'sft'} and train again"
    has_prior = "prior_targets" in read_manifest(workdir, "sft").metrics
    config = read_config(folder, remedy)
    return assemble(
        folder,
        config,
        data,
        SemanticIds.load(workdir / "tokenizer"),
        item_vectors(workdir, len(data.catalogue)),
        Prior.load(folder) if has_prior else None,
        word_table(data, config.prompt) if has_prior else None,
    )


def read_config(folder: Path, remedy: str) -> SftConfig:
    """The config in the folder of a finished stage 3. ValueError if it is missing or damaged."""
    path = folder / "config.json"
    try:
        return to_dataclass(SftConfig, read_json(path))
    except ValueError as error:
        raise ValueError(f"{path} is damaged or of another version ({error}); {remedy}.") from error


def assemble(
    folder: Path,
    config: SftConfig,
    data: PreparedData,
    semantic_ids: SemanticIds,
    vectors: Mapping[str, np.ndarray],
    prior: Prior | None,
    words: WordTable | None,
    rows: Mapping[str, Float32[np.ndarray, "I D"]] | None = None,
) -> TrainedRecommender:
    """A recommender of the weights and the backbone in `folder`, for these items.

    `rows`: the trained tables of items, by kind, where they are no part of the weights.
    """
    stored = config.backbone.trained(folder / "backbone")
    stored_config = dataclasses.replace(config, backbone=stored, starts_from_grounding=False)
    model = make_recommender(stored_config, folder, data, semantic_ids, vectors, nnx.Rngs(0))
    load_weights(model, folder / WEIGHTS, ("backbone", *([ITEM_ROWS] if rows is not None else [])))
    for name, table in (rows or {}).items():
        model.item_encoder.trained[name][...] = jnp.asarray(table)
    return TrainedRecommender(
        config,
        model,
        frozen_tables(config, vectors, semantic_ids),
        semantic_ids,
        PromptTables.make(
            data,
            semantic_ids,
            config.prompt.layout,
            model.space.vocab_size,
            config.prompt.has_instructions,
        ),
        prior,
        words,
    )


def word_table(data: PreparedData, config: PromptConfig) -> WordTable | None:
    """The words of the items that instructions ask for; None where nothing is asked for."""
    if not config.has_instructions:
        return None
    return words_of_items(data.catalogue, asked_texts(data), config)


def asked_texts(data: PreparedData) -> list[str]:
    """What instructions may ask for: the queries, categories and themes of the data."""
    return [
        text for task in instructions.SLOTS for text in instructions.slot_value_texts(data, task)
    ]


def words_of_items(
    catalogue: Catalogue,
    asked: Sequence[str],
    config: PromptConfig,
    before: tuple[WordTable, int] | None = None,
) -> WordTable:
    """The words of the items of `catalogue` that `asked` texts hold.

    `before`: those of its first items, and how many these are.
    """
    items = np.arange(before[1] if before is not None else 0, len(catalogue))
    parts = (items[start : start + TEXTS] for start in range(0, len(items), TEXTS))
    texts = itertools.chain.from_iterable(map(catalogue.texts, parts))
    around = instructions.around_slots(config.phrasings)
    if before is None:
        return WordTable.make(texts, asked, around)
    return before[0].grown(before[1], texts, asked, around)


def told_by(
    generator: Generator,
    requests: Requests,
    data: PreparedData,
    tables: PromptTables,
    config: SftConfig,
) -> Told | None:
    """What the instructions of `requests` say by themselves, NumPy arrays.

    Without the model's answer where no context of training was an instruction alone; None where the
    generator has no words either.
    """
    prompt = config.prompt
    can_answer = config.model.has_item_head and prompt.has_instruction_only_contexts
    if not can_answer and generator.words is None:
        return None
    spoken, place = np.unique(np.array(requests.instruction, object), return_inverse=True)
    nobody = np.full(len(spoken), -1, np.int32)
    start = np.zeros(len(spoken), np.int64)
    bare = Requests(nobody, start, nobody, nobody, nobody, list(spoken))
    told = generator.told(list(spoken), prompts_of(bare, data, tables) if can_answer else None)
    return jax.tree.map(lambda rows: rows[place.reshape(-1)], told)


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
        found[f"ndcg10_{level}"] = float(metrics.ndcg(ranks, 10).mean())
    return found
