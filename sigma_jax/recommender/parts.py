"""A trained network with the tables and settings that it needs; its files.

FOLDER, such as WORKDIR/sft or EXPORT/model, holds:

    recommender.json         the spec
    weights.safetensors      the network without its backbone
    backbone/                a Hugging Face folder
    reranker.json, *.npz     the reranker, where there is one
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float32, Int32

from sigma_jax.data.vectors import item_vectors
from sigma_jax.encoders.instructions import InstructionEncoder, encoder_of_workdir
from sigma_jax.models.hf import save_backbone
from sigma_jax.models.network import RecommenderNetwork
from sigma_jax.models.weights import load_weights, save_weights
from sigma_jax.prompts.tokens import PromptTables
from sigma_jax.recommender.build import build_network, frozen_tables
from sigma_jax.recommender.spec import RecommenderSpec
from sigma_jax.recommender.wishes import WishReader
from sigma_jax.reranking.lexical import LexicalTable
from sigma_jax.reranking.reranker import Reranker
from sigma_jax.runtime.artifacts import read_manifest
from sigma_jax.schema import Catalogue, PreparedData, SemanticIds, Users
from sigma_jax.tasks import instructions

WEIGHTS = "weights.safetensors"
RERANKER = "reranker.json"
RERANKER_METRIC = "reranker_targets"  # in the manifest of a stage that fitted a reranker
ITEM_ROWS = "item_encoder.trained"  # the parameters that belong to items
TEXTS = 10_000  # item texts held in Python at a time
BEFORE_REFIT = "before_refit"  # folder of the weights before the refit


@dataclasses.dataclass(frozen=True)
class RecommenderParts:
    """A trained network, and all that is needed to prompt it and to rerank its candidates."""

    spec: RecommenderSpec
    network: RecommenderNetwork
    tables: Mapping[str, np.ndarray]  # frozen_tables
    semantic_ids: SemanticIds
    prompt_tables: PromptTables
    users: Users  # whose profiles the prompt tables hold
    reranker: Reranker | None
    lexical: LexicalTable | None  # where instructions are read word by word
    encoder: InstructionEncoder | None  # where sentence vectors of instructions are read
    group: Int32[np.ndarray, " I"] | None  # of each item, for reranking/semantic.py
    # Vectors of what people say, and the group that each speaks of.
    knowledge: tuple[Float32[np.ndarray, "K E"], Int32[np.ndarray, " K"]] | None = None
    wishes: WishReader | None = None  # where instructions are taken apart

    @classmethod
    def load(
        cls,
        folder: Path,
        spec: RecommenderSpec,
        data: PreparedData,
        semantic_ids: SemanticIds,
        vectors: Mapping[str, np.ndarray | tuple[int, int]],
        reranker: Reranker | None,
        lexical: LexicalTable | None,
        encoder: InstructionEncoder | None,
        item_rows: Mapping[str, Float32[np.ndarray, "I D"]] | None = None,
    ) -> RecommenderParts:
        """The network in `folder`, over the items of `data`.

        Args:
          vectors: pre-trained item vectors by kind.
          encoder: of the text vectors; None if they are not made by one.
          item_rows: trained tables of items by kind, where they are not part of the weights.
        """
        backbone = spec.backbone.trained(folder / "backbone")
        network = build_network(backbone, spec.network, data, semantic_ids, vectors, nnx.Rngs(0))
        apart = ("backbone", *([ITEM_ROWS] if item_rows is not None else []))
        load_weights(network, folder / WEIGHTS, apart)
        for name, table in (item_rows or {}).items():
            network.item_encoder.trained[name][...] = jnp.asarray(table)
        return cls(
            spec,
            network,
            frozen_tables(spec.network, spec.depth, vectors, semantic_ids),
            semantic_ids,
            PromptTables.make(
                data, semantic_ids, spec.layout, network.space.vocab_size, spec.has_instructions
            ),
            data.users,
            reranker,
            lexical,
            encoder,
            item_groups(data.catalogue, semantic_ids),
            knowledge_of_groups(data, semantic_ids, encoder),
            wish_reader(data.catalogue, spec, reranker, encoder),
        )

    @classmethod
    def of_workdir(cls, workdir: Path, data: PreparedData, part: str = "") -> RecommenderParts:
        """The recommender in WORKDIR/sft, or in a folder of it, such as BEFORE_REFIT.

        ValueError where a file is missing or does not fit.
        """
        folder = workdir / "sft" / part
        remedy = f"delete {folder} and {workdir / 'train' / 'sft'} and train again"
        spec = RecommenderSpec.load(folder, remedy)
        has_reranker = RERANKER_METRIC in read_manifest(workdir, "sft").metrics
        return cls.load(
            folder,
            spec,
            data,
            SemanticIds.load(workdir / "tokenizer"),
            item_vectors(workdir, len(data.catalogue)),
            Reranker.load(folder) if has_reranker else None,
            lexical_table(data, spec) if has_reranker else None,
            encoder_of_workdir(workdir) if spec.has_instructions else None,
        )

    @property
    def instruction_vectors(self) -> InstructionEncoder | None:
        """The encoder, where the network reads sentence vectors."""
        return self.encoder if self.spec.layout.has_instruction_vectors else None


def save_network(network: RecommenderNetwork, folder: Path) -> None:
    """Writes the weights into `folder`, the backbone as a Hugging Face folder."""
    save_weights(network, folder / WEIGHTS, without=("backbone",))
    save_backbone(network.backbone, folder / "backbone")


def item_groups(catalogue: Catalogue, semantic_ids: SemanticIds) -> Int32[np.ndarray, " I"]:
    """The category of each item, or its first code where the catalogue has no categories."""
    category = np.asarray(catalogue.category)
    return category if (category >= 0).any() else np.asarray(semantic_ids.codes)[:, 0]


def knowledge_of_groups(
    data: PreparedData, semantic_ids: SemanticIds, encoder: InstructionEncoder | None
) -> tuple[Float32[np.ndarray, "K E"], Int32[np.ndarray, " K"]] | None:
    """Vectors of what people say and the group that each speaks of; None without such vectors."""
    knowledge = data.knowledge
    if knowledge is None or knowledge.vectors is None or encoder is None:
        return None
    of_items = item_groups(data.catalogue, semantic_ids)[np.maximum(knowledge.item, 0)]
    vectors = encoder.grounded(knowledge.vectors)
    return vectors, np.where(knowledge.item >= 0, of_items, knowledge.category)


def wish_reader(
    catalogue: Catalogue,
    spec: RecommenderSpec,
    reranker: Reranker | None,
    encoder: InstructionEncoder | None,
) -> WishReader | None:
    """The reader of wishes; None for a network without instructions."""
    if not spec.has_instructions:
        return None
    novelty = None if reranker is None else reranker.novelty
    things = () if novelty is None else novelty.things
    return WishReader(catalogue, things, instructions.around_slots(spec.wordings), encoder)


def lexical_table(data: PreparedData, spec: RecommenderSpec) -> LexicalTable | None:
    """The words of the items that instructions ask for; None without instructions."""
    if not spec.has_instructions:
        return None
    return words_of_items(data.catalogue, instruction_texts(data), spec)


def instruction_texts(data: PreparedData) -> list[str]:
    """The queries, categories and themes of the data, which instructions may ask for."""
    return [
        text for task in instructions.SLOTS for text in instructions.slot_value_texts(data, task)
    ]


def words_of_items(
    catalogue: Catalogue,
    slot_values: Sequence[str],
    spec: RecommenderSpec,
    before: tuple[LexicalTable, int] | None = None,
) -> LexicalTable:
    """The words of the items of `catalogue` that the texts `slot_values` hold.

    Args:
      slot_values: queries, categories and themes that instructions may ask for.
      before: the table of the first items, and their number.
    """
    items = np.arange(before[1] if before is not None else 0, len(catalogue))
    parts = (items[start : start + TEXTS] for start in range(0, len(items), TEXTS))
    texts = itertools.chain.from_iterable(map(catalogue.texts, parts))
    around = instructions.around_slots(spec.wordings)
    if before is None:
        return LexicalTable.make(texts, slot_values, around)
    return before[0].extended(before[1], texts, slot_values, around)
