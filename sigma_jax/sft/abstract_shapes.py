"""Stage `sft` as abstract shapes: preflight compiles it without data or devices."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from sigma_jax.generation.beam import Prompts
from sigma_jax.generation.config import GenerationConfig
from sigma_jax.generation.generator import (
    inverse_temperature_of,
    limit_retrieved,
    prefix_depth,
    ranks_all_items,
    search_beams,
)
from sigma_jax.generation.prefix_scores import PrefixScorer, Scorer, make_prefix_scorer
from sigma_jax.index.candidates import SearchInputs
from sigma_jax.index.device_index import DeviceIndex, all_candidates, build_device_index, search
from sigma_jax.index.trie import Trie
from sigma_jax.index.trie_build import build_trie
from sigma_jax.models.config import Qwen3Config
from sigma_jax.models.item_encoder import ID_EMBEDDING
from sigma_jax.models.network import RecommenderNetwork, TokenSpace
from sigma_jax.models.qwen3 import Qwen3
from sigma_jax.prompts.packing import Group
from sigma_jax.recommender.ranking import rank
from sigma_jax.reranking.features import RankingInputs
from sigma_jax.runtime.preflight.estimate import (
    AbstractStage,
    CatalogueSizes,
    Inference,
    backbone_flops,
    replicated_shapes,
)
from sigma_jax.sft.config import SftConfig
from sigma_jax.sft.loss import recommender_loss
from sigma_jax.sft.task import param_group
from sigma_jax.tasks.constraints import MAX_CONSTRAINTS_PER_ITEM

COUNT = 10  # items recommended


def abstract_stage(
    config: SftConfig, backbone: Qwen3Config, sizes: CatalogueSizes
) -> AbstractStage:
    """The training step of SftTask, over a catalogue of `sizes`."""
    prompt, rows = config.prompt, config.train.batch_size
    batch = {
        name: jax.ShapeDtypeStruct((rows, *array.shape[1:]), array.dtype)
        for name, array in Group.empty(prompt).arrays.items()
    }
    contexts = prompt.packing.contexts_per_group or prompt.packing.group_rows
    return AbstractStage(
        _model(config, backbone, sizes),
        functools.partial(param_group, config),
        functools.partial(recommender_loss, config),
        _tables(config, sizes),
        batch,
        rows // prompt.packing.group_rows * contexts,
        rows * prompt.layout.row_tokens,
        backbone_flops(backbone, prompt.layout.row_tokens),
    )


def inference(
    config: SftConfig,
    generation: GenerationConfig,
    backbone: Qwen3Config,
    sizes: CatalogueSizes,
    mesh: Mesh,
) -> Inference:
    """The answer to a batch of the longest prompts: beams, candidates and a list of COUNT items.

    The reranker is left out. Codes are drawn at random, so that prefixes have similar sizes.

    Args:
      mesh: one device.
    """
    layout = config.prompt.layout
    backbone = dataclasses.replace(backbone, param_dtype=backbone.dtype, lora=None)
    network = _model(config, backbone, sizes)
    depth = prefix_depth(network, layout.sid_generated, generation)
    graph, state = nnx.split(network)
    trie, index, scorer = _catalogue(config, depth, generation.temperature, sizes)
    longest = int(np.diff(trie.leaf_start).max())
    ranked = limit_retrieved(generation, depth, longest, COUNT)
    tables = _tables(config, sizes)
    requests, length = generation.batch_size, layout.row_tokens
    settings = generation.widths(depth), generation.margin, layout.item_query, None, mesh

    def run(state, tables, trie, scorer, index, prompts):
        if isinstance(scorer, PrefixScorer):
            scorer = dataclasses.replace(scorer, vectors=index.vectors)
        beams = search_beams(graph, state, tables, trie, scorer, prompts, *settings)
        inverse_temperature = inverse_temperature_of(beams, ranked)
        found, root = beams.with_root(inverse_temperature, ranked.temperature)
        places = found.queries, found.leaves, found.is_valid
        inputs = SearchInputs(*places, inverse_temperature, root_log_normaliser=root)
        if ranks_all_items(index, ranked, scorer is not None):
            candidates = all_candidates(index, inputs)
        else:
            candidates = search(index, inputs, ranked.num_retrieved)
        return rank(index, beams, candidates, RankingInputs(), ranked, COUNT)

    arguments = (
        state,
        {name: tables[name] for name in (*_frozen(config, sizes), "codes", "prefix")},
        trie,
        scorer,
        index,
        _prompts(requests, length),
    )
    tokens_of_beams = sum(generation.widths(depth)) + generation.num_beams * layout.has_query_token
    return Inference(
        run,
        replicated_shapes(arguments, mesh),
        "requests",
        requests,
        backbone_flops(backbone, length) / 3 * requests * (length + tokens_of_beams),
        -(-longest // index.chunk),
    )


def _prompts(requests: int, length: int) -> Prompts:
    """Shapes of some prompts of `length` tokens."""
    rows = jax.ShapeDtypeStruct((requests, length), jnp.int32)
    is_token = jax.ShapeDtypeStruct((requests, length), jnp.bool_)
    return Prompts(rows, rows, rows, is_token, jax.ShapeDtypeStruct((requests,), jnp.int32))


def _catalogue(
    config: SftConfig, depth: int, temperature: float, sizes: CatalogueSizes
) -> tuple[Trie, DeviceIndex, Scorer | None]:
    """The trie, index and scorer of random codes; the index has the shape of the item vectors."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, sizes.codebook_size, (sizes.items, max(depth, 1)), np.int32)
    trie = build_trie(codes, depth, sizes.codebook_size)
    index, scorer = build_device_index(trie, np.ones((sizes.items, 1), np.float32)), None
    if config.model.has_item_head:
        scorer = make_prefix_scorer(trie, index.vectors, temperature)
    width = config.model.item_encoder.fused_width
    fused = jax.ShapeDtypeStruct((len(index.vectors), width), jnp.float32)
    if isinstance(scorer, PrefixScorer):
        scorer = dataclasses.replace(scorer, vectors=None)
    elif scorer is not None:
        wide = [jax.ShapeDtypeStruct((len(mean), width), jnp.float32) for mean in scorer.means]
        scorer = dataclasses.replace(scorer, means=wide, variances=wide)
    blocks = index.blocks
    if blocks is not None:
        shape = (*blocks.vectors.shape[:2], width)
        blocks = dataclasses.replace(blocks, vectors=jax.ShapeDtypeStruct(shape, jnp.float32))
    return trie, dataclasses.replace(index, vectors=fused, blocks=blocks), scorer


def _model(config: SftConfig, backbone: Qwen3Config, sizes: CatalogueSizes) -> RecommenderNetwork:
    vectors = {name: (sizes.items, width) for name, width in sizes.vectors.items()}
    vectors[ID_EMBEDDING] = (sizes.items, config.model.item_encoder.fused_width)
    space = TokenSpace(backbone.vocab_size, sizes.levels, sizes.codebook_size)

    def make() -> RecommenderNetwork:
        qwen3 = Qwen3(backbone, rngs=nnx.Rngs(0))
        return RecommenderNetwork(config.model, qwen3, space, vectors, rngs=nnx.Rngs(0))

    return nnx.eval_shape(make)


def _frozen(config: SftConfig, sizes: CatalogueSizes) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the item vectors that stay frozen."""
    encoder = config.model.item_encoder
    return {
        name: jax.ShapeDtypeStruct((sizes.items, width), jnp.float32)
        for name, width in sizes.vectors.items()
        if name in encoder.inputs and name not in encoder.trainable
    }


def _tables(config: SftConfig, sizes: CatalogueSizes) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of SftTask.tables."""
    prompt, items = config.prompt, sizes.items

    def integers(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    prefixes = min(sizes.codebook_size**prompt.layout.sid_generated, items)
    tables = _frozen(config, sizes) | {
        "codes": integers(items, sizes.levels),
        "prefix": integers(items),
        "is_cold": jax.ShapeDtypeStruct((items,), jnp.bool_),
        "prefix_start": integers(prefixes + 1),
        "by_prefix": integers(items),
    }
    if config.batch_negatives:
        tables["popularity"] = jax.ShapeDtypeStruct((items,), jnp.float32)
    if config.constraint_weight and prompt.has_instructions:
        tables["constraints"] = integers(items, MAX_CONSTRAINTS_PER_ITEM)
        tables["category"] = integers(items)
        tables["category_sizes"] = integers(sizes.categories)
    return tables
