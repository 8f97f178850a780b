"""A recommender that is small enough for brute force: network, prompts, SIDs and words."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sigma_jax.generation.config import GenerationConfig
from sigma_jax.models.config import Qwen3Config
from sigma_jax.models.item_encoder import ItemEncoderConfig
from sigma_jax.models.network import NetworkConfig, RecommenderNetwork, TokenSpace
from sigma_jax.models.qwen3 import Qwen3, causal_mask
from sigma_jax.reranking.lexical import LexicalTable
from sigma_jax.schema import SemanticIds

NUM_ITEMS, LEVELS, CODES, VOCABULARY = 30, 3, 5, 16
CONFIG = GenerationConfig(
    ranker="three_step",
    num_beams=4,
    num_retrieved=6,
    temperature=0.1,
    sigma="deviation",
    sigma_floor=0.05,
    normaliser="exact",
    fusion="adaptive",
    batch_size=2,
    early_beams=(),
    beam_margin=0.0,
    retrieval="exact",
)

WORDS = LexicalTable.make(
    [json.dumps({"title": f"red {'abc'[n % 3]} number{n}"}) for n in range(NUM_ITEMS)],
    ["red a", "b", *(f"number{n}" for n in range(NUM_ITEMS))],
    ["find for me"],
)


def backbone_config(**changes) -> Qwen3Config:
    """The config of a tiny backbone, with `changes`."""
    fields = dict(
        vocab_size=VOCABULARY,
        width=16,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        mlp_width=24,
        rope_theta=10000.0,
        norm_eps=1e-6,
        is_tied=True,
        has_qk_norm=True,
        dropout=0.0,
        dtype="float32",
        param_dtype="float32",
        remat="none",
    )
    return Qwen3Config(**(fields | changes))


def semantic_ids(seed: int = 0, num_items: int = NUM_ITEMS) -> SemanticIds:
    """Random SIDs."""
    rng = np.random.default_rng(seed)
    return SemanticIds(rng.integers(0, CODES, (num_items, LEVELS)).astype(np.int32), CODES)


def recommender(
    trainable=(),
    full_vocabulary=False,
    copies_history=True,
    has_item_head=False,
    has_task_head=False,
    query_reads_code=True,
    has_linear_path=True,
) -> tuple[RecommenderNetwork, dict]:
    """(network, frozen tables). Equal arguments give equal, independent networks."""
    heads = (copies_history, has_item_head, has_task_head)
    graphdef, state, tables = _parts(
        tuple(trainable), has_linear_path, full_vocabulary, query_reads_code, *heads
    )
    return nnx.merge(graphdef, state), dict(tables)


@functools.cache
def _parts(trainable, has_linear_path, *switches) -> tuple:
    """(graphdef, state, tables) of `recommender`; making a network compiles many programs."""
    rng = np.random.default_rng(1)
    tables = {
        "id": rng.normal(size=(NUM_ITEMS, 6)).astype(np.float32),
        "text": rng.normal(size=(NUM_ITEMS, 8)).astype(np.float32),
    }
    encoder = ItemEncoderConfig(12, 16, ("id", "text", "image"), trainable, has_linear_path)
    config = NetworkConfig(encoder, *switches)
    rngs = nnx.Rngs(0)
    backbone = Qwen3(backbone_config(), rngs=rngs)
    space = TokenSpace(VOCABULARY, LEVELS, CODES)
    model = RecommenderNetwork(config, backbone, space, tables, rngs=rngs)
    model.sid_table[...] = 4 * model.sid_table[...]  # codes lie far apart: no near ties
    return *nnx.split(model), tables


def prompts(lengths=(7, 4, 1), length=8, seed=2) -> dict[str, np.ndarray]:
    """The fields of `Prompts`: random text, codes and slots, padded on the right."""
    rng = np.random.default_rng(seed)
    space = TokenSpace(VOCABULARY, LEVELS, CODES)
    tokens = rng.integers(0, space.item_slot, (len(lengths), length)).astype(np.int32)
    items = np.full(tokens.shape, -1, np.int32)
    tokens[:, 1::3] = space.item_slot
    items[:, 1::3] = rng.integers(0, NUM_ITEMS, items[:, 1::3].shape)
    is_token = np.arange(length) < np.array(lengths)[:, None]
    return {
        "tokens": np.where(is_token, tokens, 0).astype(np.int32),
        "items": np.where(is_token, items, -1).astype(np.int32),
        "positions": np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape).copy(),
        "is_token": is_token,
        "lengths": np.array(lengths, np.int32),
    }


@jax.jit
def forward(model, tables, tokens, items):
    """Hidden states of causal rows. Tokens beyond the end of a row are not seen before it."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return model(tokens, items, positions, causal_mask(jnp.ones_like(tokens)), tables)[0]


@jax.jit
def item_vectors(model, tables):
    """Fused vectors of all items."""
    return model.item_vectors(jnp.arange(NUM_ITEMS), tables)


@jax.jit
def item_head_vector(model, tables, hidden, items, is_seen):
    """`RecommenderNetwork.item_head_vector`, compiled."""
    return model.item_head_vector(hidden, items, is_seen, tables)


@jax.jit
def query_head_vector(model, tables, hidden, items, is_seen):
    """`RecommenderNetwork.query_head_vector`, compiled."""
    return model.query_head_vector(hidden, items, is_seen, tables)


@functools.partial(jax.jit, static_argnums=2)
def code_log_probs(model, hidden, level):
    """`RecommenderNetwork.code_log_probs`, compiled."""
    return model.code_log_probs(hidden, level)
