"""Builds a recommender network from the artifacts of the earlier stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flax import nnx

from sigma_jax.models.backbone import COMPUTE_FIELDS, BackboneConfig, make_backbone
from sigma_jax.models.hf import read_config
from sigma_jax.models.item_encoder import ID_EMBEDDING, TABLES
from sigma_jax.models.network import NetworkConfig, RecommenderNetwork, TokenSpace
from sigma_jax.prompts.tokens import load_text_tokenizer
from sigma_jax.schema import PreparedData, SemanticIds


def grounded_backbone(backbone: BackboneConfig, workdir: Path) -> BackboneConfig:
    """`backbone` with the weights of the stage `grounding` where that stage was trained."""
    folder = workdir / "grounding" / "backbone"
    return dataclasses.replace(backbone, hf_folder=str(folder)) if folder.exists() else backbone


def text_vocabulary(backbone: BackboneConfig, data: PreparedData) -> int:
    """V: the rows of the backbone's text table."""
    if not backbone.hf_folder:
        return len(load_text_tokenizer(data))
    return read_config(
        backbone.folder, **{name: getattr(backbone, name) for name in COMPUTE_FIELDS}
    ).vocab_size


def build_network(
    backbone: BackboneConfig,
    network: NetworkConfig,
    data: PreparedData,
    semantic_ids: SemanticIds,
    vectors: Mapping[str, np.ndarray | tuple[int, int]],
    rngs: nnx.Rngs,
) -> RecommenderNetwork:
    """A network over the items of `data`. Only its backbone may have trained weights.

    Args:
      vectors: pre-trained item vectors by kind, or their shapes if values are loaded later.
    """
    vocab_size = text_vocabulary(backbone, data)
    model = make_backbone(backbone, vocab_size, rngs, data.text_tokenizer_folder)
    space = TokenSpace(model.config.vocab_size, semantic_ids.levels, semantic_ids.codebook_size)
    id_embedding = {ID_EMBEDDING: (len(data.catalogue), network.item_encoder.fused_width)}
    return RecommenderNetwork(network, model, space, {**id_embedding, **vectors}, rngs=rngs)


def frozen_tables(
    network: NetworkConfig,
    depth: int,
    vectors: Mapping[str, np.ndarray | tuple[int, int]],
    semantic_ids: SemanticIds,
) -> dict[str, np.ndarray]:
    """Arrays by item that the network reads and does not train: vectors, codes and prefixes.

    Args:
      depth: codes of a prefix.
    """
    encoder = network.item_encoder
    tables = {
        name: np.asarray(vectors[name], np.float32)
        for name in TABLES
        if name in vectors and name in encoder.inputs and name not in encoder.trainable
    }
    codes = np.asarray(semantic_ids.codes, np.int32)
    prefix = np.unique(codes[:, :depth], axis=0, return_inverse=True)[1]
    return {**tables, "codes": codes, "prefix": prefix.reshape(-1).astype(np.int32)}
