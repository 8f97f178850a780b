"""Stage 3 as shapes, for a look ahead without data (runtime/preflight.py)."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from sigma_jax.models.item_encoder import OWN
from sigma_jax.models.qwen3 import Qwen3, Qwen3Config
from sigma_jax.models.recommender import Recommender, TokenSpace
from sigma_jax.models.sizes import Sizes
from sigma_jax.runtime.preflight import Sketch, backbone_flops
from sigma_jax.sft.assemble import Group
from sigma_jax.sft.config import SftConfig
from sigma_jax.sft.constraints import MOST_OF_ITEM
from sigma_jax.sft.loss import recommender_loss
from sigma_jax.sft.task import label


def sketch(config: SftConfig, backbone: Qwen3Config, sizes: Sizes) -> Sketch:
    """What SftTask trains over a catalogue of such `sizes`."""
    prompt, rows = config.prompt, config.train.batch_size
    vectors = {name: (sizes.items, width) for name, width in sizes.vectors.items()}
    vectors[OWN] = (sizes.items, config.model.item_encoder.fused_width)
    space = TokenSpace(backbone.vocab_size, sizes.levels, sizes.codebook_size)
    model = nnx.eval_shape(
        lambda: Recommender(
            config.model,
            Qwen3(backbone, rngs=nnx.Rngs(0)),
            space,
            vectors,
            rngs=nnx.Rngs(0),
        )
    )
    batch = {
        name: jax.ShapeDtypeStruct((rows, *array.shape[1:]), array.dtype)
        for name, array in Group.empty(prompt).arrays.items()
    }
    contexts = prompt.contexts_per_group or prompt.pack_group_rows
    return Sketch(
        model,
        functools.partial(label, config),
        functools.partial(recommender_loss, config),
        _tables(config, sizes, vectors),
        batch,
        rows // prompt.pack_group_rows * contexts,
        rows * prompt.row_tokens,
        backbone_flops(backbone, prompt.row_tokens),
    )


def _tables(
    config: SftConfig, sizes: Sizes, vectors: Mapping[str, tuple[int, int]]
) -> dict[str, jax.ShapeDtypeStruct]:
    """What SftTask.tables gives, over item vectors of such shapes."""
    encoder, prompt, items = config.model.item_encoder, config.prompt, sizes.items

    def whole(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    prefixes = min(sizes.codebook_size**prompt.sid_generated, items)
    tables = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32)
        for name, shape in vectors.items()
        if name in encoder.inputs and name not in encoder.trainable
    } | {
        "codes": whole(items, sizes.levels),
        "prefix": whole(items),
        "is_cold": jax.ShapeDtypeStruct((items,), jnp.bool_),
        "prefix_start": whole(prefixes + 1),
        "by_prefix": whole(items),
    }
    if config.batch_negatives:
        tables["popularity"] = jax.ShapeDtypeStruct((items,), jnp.float32)
    if config.constraint_weight and prompt.has_words:
        tables["constraints"] = whole(items, MOST_OF_ITEM)
        tables["category"] = whole(items)
        tables["category_sizes"] = whole(sizes.categories)
    return tables
