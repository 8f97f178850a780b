"""SIGMA's network: prompts of text and item tokens in, code logits and query vectors out.

A prompt is one row of ids for text, SID codes and item slots (section 2.2 of SIGMA). Text ids keep
the tokenizer's vocabulary. The ids after it belong to a separate table:

    V + l * C + c    code c of level l
    V + L * C        the item slot, to which UpProj(MLP(v_ID, v_text, v_img)) is added
    V + L * C + 1    the query token q
    V + L * C + 2    the instruction slot, which carries a sentence vector as if it were an item's

Three heads score items:
    code head     logits of the codes of a SID, level by level (Eq. 4 and 7 of SIGMA)
    query head    a vector compared with the items of a SID prefix (h of Eq. 5)
    item head     a vector compared with all items, before any code (not in the paper)
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
ALL_ITEMS = "item_vectors"  # of Tables: fused vectors of all items, computed once


@dataclasses.dataclass(frozen=True)
class TokenSpace:
    """Ids of text tokens, SID codes, slots and the query token in one id space."""

    vocab_size: int  # V, of the text table
    levels: int  # L
    codebook_size: int  # C

    def code(self, level, code):
        """Id of code number `code` of level number `level`, both from 0; arrays broadcast."""
        return self.vocab_size + level * self.codebook_size + code

    @property
    def item_slot(self) -> int:
        """Id of the item slot."""
        return self.vocab_size + self.levels * self.codebook_size

    @property
    def query(self) -> int:
        """Id of the query token."""
        return self.item_slot + 1

    @property
    def instruction(self) -> int:
        """Id of the instruction slot."""
        return self.query + 1

    @property
    def table_size(self) -> int:
        """Rows of the table after the vocabulary."""
        return self.levels * self.codebook_size + 3


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """Switches of the parts around the backbone. The paper has none of the optional heads."""

    item_encoder: ItemEncoderConfig
    # True: code logits over the text vocabulary and all codes, as in the paper. False: over the
    # codes of one level.
    uses_full_vocabulary: bool
    # The query token also gets the embedding of the code before it. Paper: False.
    query_reads_code: bool
    # The query and item heads add a vector that points at items of the prompt. Paper: False.
    copies_history: bool
    # A third head scores all items before any code. Its scores enter the code and the query head,
    # so that both steps rank by one distribution over items. Paper: False.
    has_item_head: bool
    # A head that classifies the task of an instruction, whatever its wording. Each task has its own
    # reranking weights (reranking/reranker.py). Paper: False.
    has_task_head: bool


class RecommenderNetwork(nnx.Module):
    """A backbone with a table of SID tokens, an item encoder, and the heads listed above.

    Sections 2.2 and 2.3 of SIGMA. `vectors` gives the tables of pre-trained item vectors, or their
    shapes (`ItemEncoder`).
    """

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
        # The SID table starts at the scale of the text embeddings, which is measured.
        text_scale = jnp.std(backbone.embed(jnp.arange(min(space.vocab_size, 1024))[None]))
        table = jax.random.normal(rngs.params(), (space.table_size, width))
        self.sid_table = nnx.Param(text_scale * table, axes=("codes", "embed"))
        self.code_bias = nnx.Param(jnp.zeros((space.levels, space.codebook_size)))
        # Heads start as the transpose of the slot's projection: an item that attention copies from
        # the prompt is then near its own vector from the first step (cf. `align_attention`).
        up = nnx.initializers.orthogonal()(rngs.params(), (fused, width))
        self.up_projection = nnx.Param(text_scale * up, axes=(None, "embed"))
        self.query_head = nnx.Param(up.T, axes=("embed", None))
        if config.has_item_head:
            self.item_head = nnx.Param(up.T, axes=("embed", None))
            # Weights of the code head and the query head beside the item head. They are fitted on
            # validation requests after training (generation/head_weights.py).
            self.code_head_weight = nnx.Param(jnp.array(0.2))
            self.query_head_weight = nnx.Param(jnp.array(0.1))
        if config.has_task_head:
            self.task_head = nnx.Param(jnp.zeros((width, len(TASKS))), axes=("embed", None))
        if config.copies_history:
            self.pointer_head = nnx.Param(up.T, axes=("embed", None))
            self.pointer_scale = nnx.Param(jnp.array([10.0, 0.0, 1.0]))

    @property
    def has_head_weights(self) -> bool:
        """False if the code head and the query head both have weight 0. Reads device arrays."""
        if not self.config.has_item_head:
            return True
        return bool(self.code_head_weight[...] > 0) or bool(self.query_head_weight[...] > 0)

    def embed(
        self, tokens: Int[Array, "B T"], items: Int[Array, "B T"], tables: Tables
    ) -> Float[Array, "B T D"]:
        """Embeddings of text, codes, slots and query tokens; `items` is -1 outside the slots.

        An instruction slot has a number of models/item_encoder.py (INSTRUCTION).
        """
        is_text = tokens < self.space.vocab_size
        text = self.backbone.embed(jnp.where(is_text, tokens, 0))
        rows = jnp.where(is_text, 0, tokens - self.space.vocab_size)
        sid = jnp.take(self.sid_table[...], rows, axis=0)
        if self.config.query_reads_code:
            # q means "the item after this code". With the embedding of the code before it, it need
            # not first find its own prefix by attention.
            previous = jnp.pad(sid, ((0, 0), (1, 0), (0, 0)))[:, :-1]
            sid = sid + jnp.where((tokens == self.space.query)[..., None], previous, 0)
        # Fused vectors have any length; the backbone gets slots of one length.
        fused = unit(self.item_encoder.of_prompt(items, tables)) * self._root_fused
        slot = jnp.where((items != -1)[..., None], fused @ self.up_projection[...], 0)
        return jnp.where(is_text[..., None], text, (sid + slot).astype(text.dtype))

    def start_codes(
        self, codes: Int[Array, "n L"], items: Int[Array, " n"], tables: Tables
    ) -> None:
        """Sets each code's embedding to the direction of the mean slot of the items with that code.

        So a code resembles its items, and not others, from the first step. Codes without items keep
        their random start.

        Args:
          codes: the SIDs of `items`.
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
        """Hidden states after the final norm, and the cache extended by T rows if one is given.

        Args:
          items: the items at the item slots, else -1.
          positions, mask, cache, key: see `Qwen3`.
        """
        return self.backbone(self.embed(tokens, items, tables), positions, mask, cache, key=key)

    def code_logits(
        self, hidden: Float[Array, "... y D"], first: int = 0
    ) -> Float[Array, "... y C"]:
        """Logits over the codes of levels first, first + 1, ..., float32.

        `hidden` has one state for each of these y levels. With `uses_full_vocabulary` the last axis
        is the text vocabulary followed by the whole SID table.
        """
        levels = hidden.shape[-2]
        hidden = hidden.astype(jnp.float32)  # bfloat16 would swap codes with close logits
        table = self.sid_table[...].astype(jnp.float32)
        codes = self.space.levels * self.space.codebook_size
        bias = self.code_bias[...]
        if self.config.uses_full_vocabulary:
            sid_logits = hidden @ table.T
            sid_logits = sid_logits.at[..., :codes].add(bias.reshape(-1))
            return jnp.concatenate([self.backbone.logits(hidden), sid_logits], axis=-1)
        shape = (self.space.levels, self.space.codebook_size, -1)
        by_level = table[:codes].reshape(shape)[first : first + levels]
        return jnp.einsum("...LD,LCD->...LC", hidden, by_level) + bias[first : first + levels]

    def code_labels(self, codes: Int[Array, "... y"]) -> Int[Array, "... y"]:
        """The column of `code_logits` of each code; the last axis has levels 0..y-1."""
        if not self.config.uses_full_vocabulary:
            return codes
        return self.space.code(jnp.arange(codes.shape[-1]), codes)

    def code_log_probs(self, hidden: Float[Array, "... D"], level: int) -> Float[Array, "... C"]:
        """Log-probability of each code of one level: the terms of Eq. 7 of SIGMA."""
        logits = self.code_logits(hidden[..., None, :], level)[..., 0, :]
        log_probs = jax.nn.log_softmax(logits, axis=-1)
        if not self.config.uses_full_vocabulary:
            return log_probs
        start = self.space.code(level, 0)
        return log_probs[..., start : start + self.space.codebook_size]

    def task_logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... tasks"]:
        """Logits over TASKS, float32; `hidden` is taken at the last token of an instruction."""
        return hidden.astype(jnp.float32) @ self.task_head[...]

    def item_head_vector(
        self,
        hidden: Float[Array, "B N D"],
        items: Int[Array, "B T"],
        is_seen: Bool[Array, "B N T"],
        tables: Tables,
    ) -> Float[Array, "B N D"]:
        """Unit vector of the item head, whose products with `item_vectors` score all items.

        Args:
          hidden: states at the N positions that predict the first code.
          items: the row's items at the item slots, else -1.
          is_seen: the positions of the row that each of the N positions sees.
        """
        hidden = hidden.astype(jnp.float32)
        query = unit(hidden @ self.item_head[...])
        return self._with_pointer(query, hidden, items, is_seen, tables)

    def query_head_vector(
        self,
        hidden: Float[Array, "B N D"],
        items: Int[Array, "B T"],
        is_seen: Bool[Array, "B N T"],
        tables: Tables,
    ) -> Float[Array, "B N D"]:
        """Unit vector of the query head: h of Eq. 5, compared with the items of a SID prefix.

        Args:
          hidden: states of N query tokens.
          items, is_seen: as in `item_head_vector`.
        """
        hidden = hidden.astype(jnp.float32)
        query = unit(hidden @ self.query_head[...])
        return self._with_pointer(query, hidden, items, is_seen, tables)

    def _with_pointer(self, query, hidden, items, is_seen, tables) -> Float[Array, "B N D"]:
        """`query`; with `copies_history`, plus an attention-weighted mean of the prompt's slots.

        Without it a language model of few layers takes thousands of steps to learn to repeat an
        item of the history. An instruction slot points at the items whose texts are like it.
        """
        if not self.config.copies_history:
            return query
        inverse_temperature, null_logit, weight = self.pointer_scale[...]
        vectors = unit(self.item_encoder.of_prompt(items, tables))
        pointer = unit(hidden @ self.pointer_head[...])
        logits = inverse_temperature * jnp.einsum("BND,BTD->BNT", pointer, vectors)
        logits = jnp.where(is_seen & (items != -1)[:, None], logits, -jnp.inf)
        # One more column that points at nothing: it has all the weight in a prompt without items.
        logits = jnp.pad(logits, ((0, 0), (0, 0), (0, 1)), constant_values=0.0)
        logits = logits.at[..., -1].set(null_logit)
        shares = jax.nn.softmax(logits, axis=-1)[..., :-1]
        pointed_at = jnp.einsum("BNT,BTD->BND", shares, vectors)
        return unit(query + weight * pointed_at)

    def item_vectors(self, items: Int[Array, " *n"], tables: Tables) -> Float[Array, "... D"]:
        """Fused vectors of `items` at unit length (the fused v of Eq. 5).

        They are computed, or taken from tables[ALL_ITEMS] where it is given.
        """
        if ALL_ITEMS in tables:
            return jnp.take(tables[ALL_ITEMS], items, axis=0)
        return unit(self.item_encoder(items, tables))

    @property
    def _root_fused(self) -> float:
        return self.config.item_encoder.fused_width**0.5
