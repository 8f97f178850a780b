"""SIGMA's recommender: hybrid item tokens in, SID logits and item queries out.

A prompt is text, SID codes and item slots in one row of ids (section 2.2 of SIGMA). Text ids
keep the tokenizer's vocabulary; after it stands a table of its own:

    V + l * C + c    code c of level l
    V + L * C        the item slot, to which UpProj(MLP(v_ID, v_text, v_img)) is added
    V + L * C + 1    the query token q
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from sigma_jax.losses import unit
from sigma_jax.models.attention import KVCache
from sigma_jax.models.item_encoder import ItemEncoder, ItemEncoderConfig
from sigma_jax.models.qwen3 import Qwen3
from sigma_jax.schema import TASKS

Tables = Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class TokenSpace:
    """Where each kind of token stands in the one id space."""

    vocab_size: int  # V, of the text table
    levels: int  # L
    codebook_size: int  # C

    def code(self, level, code):
        """Id of `code` of `level` (0-based); arrays broadcast."""
        return self.vocab_size + level * self.codebook_size + code

    @property
    def item_slot(self) -> int:
        return self.vocab_size + self.levels * self.codebook_size

    @property
    def query(self) -> int:
        return self.item_slot + 1

    @property
    def table_size(self) -> int:
        """Rows of the table after the vocabulary."""
        return self.levels * self.codebook_size + 2


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """What stands around the backbone."""

    item_encoder: ItemEncoderConfig
    uses_full_vocabulary: bool  # SID logits over text and all codes (the paper's letter)
    copies_history: bool  # the query may point at items of the prompt (False: the paper's letter)
    # A third head scores items before any code is chosen; its scores enter codes and prefixes, so
    # that both steps rank by one distribution over items (False: the paper's letter).
    has_item_head: bool
    # A head that tells which task an instruction is of, whatever its words: what counts say beside
    # the model weighs differently for each (reranking/reranker.py). False: the paper's letter.
    has_task_head: bool


class RecommenderNetwork(nnx.Module):
    """A backbone with SID table, item encoder and the two heads of section 2.3 of SIGMA."""

    def __init__(
        self,
        config: NetworkConfig,
        backbone: Qwen3,
        space: TokenSpace,
        vectors: Mapping[str, Float[Array, "I D"] | tuple[int, int]],
        *,
        rngs: nnx.Rngs,
    ):
        width = backbone.config.width
        fused = config.item_encoder.fused_width
        self.config = config
        self.space = space
        self.backbone = backbone
        self.item_encoder = ItemEncoder(config.item_encoder, vectors, rngs=rngs)
        # As large as the text embeddings it stands beside, measured rather than assumed.
        text_scale = jnp.std(backbone.embed(jnp.arange(min(space.vocab_size, 1024))[None]))
        table = jax.random.normal(rngs.params(), (space.table_size, width))
        self.sid_table = nnx.Param(text_scale * table, axes=("codes", "embed"))
        self.code_bias = nnx.Param(jnp.zeros((space.levels, space.codebook_size)))
        # A query starts as the way back from a slot: an item that attention copies from the prompt
        # is at once near itself among the candidates (the same idea as `align_attention`).
        up = nnx.initializers.orthogonal()(rngs.params(), (fused, width))
        self.up_projection = nnx.Param(text_scale * up, axes=(None, "embed"))
        self.query_head = nnx.Param(up.T, axes=("embed", None))
        if config.has_item_head:
            self.item_head = nnx.Param(up.T, axes=("embed", None))
            # How much codes and queries add to it; fitted after training
            # (generation/head_weights.py).
            self.code_head_weight = nnx.Param(jnp.array(0.2))
            self.query_head_weight = nnx.Param(jnp.array(0.1))
        if config.has_task_head:
            self.task_head = nnx.Param(jnp.zeros((width, len(TASKS))), axes=("embed", None))
        if config.copies_history:
            self.pointer_head = nnx.Param(up.T, axes=("embed", None))
            self.pointer_scale = nnx.Param(jnp.array([10.0, 0.0, 1.0]))

    @property
    def has_head_weights(self) -> bool:
        """Whether codes, or the query after them, have a say beside the item head. On the host."""
        if not self.config.has_item_head:
            return True
        return bool(self.code_head_weight[...] > 0) or bool(self.query_head_weight[...] > 0)

    def embed(
        self, tokens: Int[Array, "B T"], items: Int[Array, "B T"], tables: Tables
    ) -> Float[Array, "B T D"]:
        """Embeddings of text, codes, slots and query tokens; `items` is -1 off the slots."""
        is_text = tokens < self.space.vocab_size
        text = self.backbone.embed(jnp.where(is_text, tokens, 0))
        rows = jnp.where(is_text, 0, tokens - self.space.vocab_size)
        own = jnp.take(self.sid_table[...], rows, axis=0)
        # q says "the item that follows this code": it carries the code before it, so that it can
        # look for items of the prefix at once instead of looking for its own prefix first.
        before = jnp.pad(own, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        own = own + jnp.where((tokens == self.space.query)[..., None], before, 0)
        # Rows of fused vectors have any length; the slot wants one the backbone can rely on.
        fused = unit(self.item_encoder(jnp.maximum(items, 0), tables)) * self._root_fused
        slot = jnp.where((items >= 0)[..., None], fused @ self.up_projection[...], 0)
        return jnp.where(is_text[..., None], text, (own + slot).astype(text.dtype))

    def start_codes(
        self, codes: Int[Array, "n L"], items: Int[Array, " n"], tables: Tables
    ) -> None:
        """Starts each code at the mean slot of those of `items` that have it; `codes` are theirs.

        So a code is from the first step on like the items it stands for, and unlike others.
        """
        slots = self.item_vectors(items, tables) @ self.up_projection[...]
        rows = self.space.code(jnp.arange(codes.shape[1]), codes) - self.space.vocab_size
        table = self.sid_table[...]
        total = jnp.zeros_like(table).at[rows].add(slots[:, None].astype(table.dtype))
        length = jnp.linalg.norm(table, axis=1, keepdims=True)
        is_used = jnp.any(total != 0, axis=1, keepdims=True)
        self.sid_table[...] = jnp.where(is_used, unit(total) * length, table)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        items: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        mask: Bool[Array, "B T S"],
        tables: Tables,
        cache: KVCache | None = None,
        key: jax.Array | None = None,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """Hidden states after the final norm; with a cache, also the cache extended by T."""
        return self.backbone(self.embed(tokens, items, tables), positions, mask, cache, key=key)

    def code_logits(
        self, hidden: Float[Array, "... y D"], first: int = 0
    ) -> Float[Array, "... y C"]:
        """Logits of the codes of levels first, first + 1, ... over that level's codes, float32.

        With `uses_full_vocabulary` they run over text ids and the whole table instead.
        """
        levels = hidden.shape[-2]
        hidden = hidden.astype(jnp.float32)  # softmax over codes: bfloat16 loses close calls
        table = self.sid_table[...].astype(jnp.float32)
        codes = self.space.levels * self.space.codebook_size
        bias = self.code_bias[...]
        if self.config.uses_full_vocabulary:
            own = hidden @ table.T
            own = own.at[..., :codes].add(bias.reshape(-1))
            return jnp.concatenate([self.backbone.logits(hidden), own], axis=-1)
        shape = (self.space.levels, self.space.codebook_size, -1)
        by_level = table[:codes].reshape(shape)[first : first + levels]
        return jnp.einsum("...LD,LCD->...LC", hidden, by_level) + bias[first : first + levels]

    def code_labels(self, codes: Int[Array, "... y"]) -> Int[Array, "... y"]:
        """Column of `code_logits` for each code, levels 0..y-1 in the last axis."""
        if not self.config.uses_full_vocabulary:
            return codes
        return self.space.code(jnp.arange(codes.shape[-1]), codes)

    def code_log_probs(self, hidden: Float[Array, "... D"], level: int) -> Float[Array, "... C"]:
        """Log-probabilities of the codes of one level: the terms of Eq. 7 of SIGMA."""
        logits = self.code_logits(hidden[..., None, :], level)[..., 0, :]
        log_probs = jax.nn.log_softmax(logits, axis=-1)
        if not self.config.uses_full_vocabulary:
            return log_probs
        start = self.space.code(level, 0)
        return log_probs[..., start : start + self.space.codebook_size]

    def task_logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... tasks"]:
        """Logits of TASKS at the last token of instructions, float32."""
        return hidden.astype(jnp.float32) @ self.task_head[...]

    def item_head_vector(
        self,
        hidden: Float[Array, "B N D"],
        items: Int[Array, "B T"],
        is_seen: Bool[Array, "B N T"],
        tables: Tables,
    ) -> Float[Array, "B N D"]:
        """What is looked for before any code is chosen, in the space of fused items, unit length.

        Args:
          hidden: at the N positions that predict the first code.
          items: the row's items at their slots, else -1.
          is_seen: which positions of the row each of the N sees.
        """
        hidden = hidden.astype(jnp.float32)
        return self._pointing(unit(hidden @ self.item_head[...]), hidden, items, is_seen, tables)

    def query_head_vector(
        self,
        hidden: Float[Array, "B N D"],
        items: Int[Array, "B T"],
        is_seen: Bool[Array, "B N T"],
        tables: Tables,
    ) -> Float[Array, "B N D"]:
        """The query token's hidden state in the space of fused items (h of Eq. 5), unit length.

        Args:
          hidden: of N query tokens.
          items, is_seen: as in `item_head_vector`.
        """
        hidden = hidden.astype(jnp.float32)
        return self._pointing(unit(hidden @ self.query_head[...]), hidden, items, is_seen, tables)

    def _pointing(self, query, hidden, items, is_seen, tables) -> Float[Array, "B N D"]:
        """`query`, and with `copies_history` what it points at: it attends to the items of the
        prompt in their own space and adds what it finds, or nothing where none is near. Repeating a
        certain item of the history takes a language model of few layers thousands of steps to
        learn otherwise.
        """
        if not self.config.copies_history:
            return query
        sharpness, nothing, gain = self.pointer_scale[...]
        vectors = self.item_vectors(jnp.maximum(items, 0), tables)
        pointer = unit(hidden @ self.pointer_head[...])
        near = sharpness * jnp.einsum("BND,BTD->BNT", pointer, vectors)
        near = jnp.where(is_seen & (items >= 0)[:, None], near, -jnp.inf)
        # One more candidate, of vector 0: a prompt without items gives it all the weight.
        near = jnp.pad(near, ((0, 0), (0, 0), (0, 1)), constant_values=0.0)
        near = near.at[..., -1].set(nothing)
        found = jnp.einsum("BNT,BTD->BND", jax.nn.softmax(near, axis=-1)[..., :-1], vectors)
        return unit(query + gain * found)

    def item_vectors(self, items: Int[Array, " *n"], tables: Tables) -> Float[Array, "... D"]:
        """Fused vectors of `items`, unit length (the fused v of Eq. 5)."""
        return unit(self.item_encoder(items, tables))

    @property
    def _root_fused(self) -> float:
        return self.config.item_encoder.fused_width**0.5
