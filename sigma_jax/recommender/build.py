"""A recommender put together from what the earlier stages left: vectors, SIDs, backbone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flax import nnx

from sigma_jax.models.backbone import COMPUTE_FIELDS, BackboneConfig, make_backbone
from sigma_jax.models.hf import read_config
from sigma_jax.models.item_encoder import OWN, TABLES
from sigma_jax.models.network import RecommenderNetwork, TokenSpace
from sigma_jax.prompts.tokens import load_text_tokenizer
from sigma_jax.schema import PreparedData, SemanticIds
from sigma_jax.sft.config import SftConfig


def backbone_source(
    config: SftConfig, workdir: Path, data: PreparedData
) -> tuple[BackboneConfig, int]:
    """Where the backbone comes from, and V: the rows of its text table."""
    backbone = config.backbone
    if config.starts_from_grounding and (workdir / "grounding").exists():
        folder = workdir / "grounding" / "backbone"
        backbone = dataclasses.replace(backbone, hf_folder=str(folder))
    if backbone.hf_folder:
        how = {name: getattr(backbone, name) for name in COMPUTE_FIELDS}
        return backbone, read_config(backbone.hf_folder, **how).vocab_size
    return backbone, len(load_text_tokenizer(data))


def make_recommender(
    config: SftConfig,
    workdir: Path,
    data: PreparedData,
    semantic_ids: SemanticIds,
    vectors: Mapping[str, np.ndarray],
    rngs: nnx.Rngs,
) -> RecommenderNetwork:
    """A recommender over `vectors`; its backbone as `config` says."""
    source, vocab_size = backbone_source(config, workdir, data)
    backbone = make_backbone(source, vocab_size, rngs, data.text_tokenizer_folder)
    space = TokenSpace(backbone.config.vocab_size, semantic_ids.levels, semantic_ids.codebook_size)
    own = {OWN: (len(data.catalogue), config.model.item_encoder.fused_width)}
    return RecommenderNetwork(config.model, backbone, space, {**own, **vectors}, rngs=rngs)


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
    prefix = np.unique(codes[:, : config.prompt.layout.sid_generated], axis=0, return_inverse=True)[
        1
    ]
    prefix = prefix.reshape(-1).astype(np.int32)
    return {**tables, "codes": codes, "prefix": prefix}
