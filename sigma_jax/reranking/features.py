"""Reranking features of candidates, and their weighted sum.

Three kinds of features score an item of a request:

- features of the user's history, sparse: a request lists the items that have any (`ItemFeatures`);
- trending features: a table of all items, shared by the requests of a day;
- instruction features: how well the item fits the instruction (instruction.py).

Axes: B requests, N candidates of a request, S items with history features, F history features,
G trending features, H instruction features, T rows of the trending table.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float16, Float32, Int32

from sigma_jax.generation.generator import take_rows
from sigma_jax.index.candidates import find_sorted, padded_width
from sigma_jax.reranking.instruction import (
    INSTRUCTION_FEATURES,
    InstructionInputs,
    InstructionScorer,
)
from sigma_jax.reranking.interactions import Interactions
from sigma_jax.reranking.lexical import LexicalArrays
from sigma_jax.reranking.semantic import SemanticArrays


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ItemFeatures:
    """History features of the listed items of each request; other items have 0 in all features."""

    items: Int32[Array, "B S"]  # ascending, none twice; padded with the largest int32
    values: Float16[Array, "B S F"]
    row: Int32[Array, " B"] | None = None  # row of the trending table for the request's day


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RankingInputs:
    """All inputs but the beams that rank the candidates of some requests; None leaves one out.

    On the host it holds NumPy arrays of any number of requests. `of_rows` takes a batch of them.
    """

    seen: Int32[Array, "B S"] | None = None  # items that are left out, padded with -1
    extra: Int32[Array, "B L"] | None = None  # extra candidates, padded with -1
    features: ItemFeatures | None = None
    instruction: InstructionInputs | None = None
    trending: Float16[Array, "T I G"] | None = None  # shared by the requests
    lexical: LexicalArrays | None = None  # shared by the requests
    semantic: SemanticArrays | None = None  # shared by the requests
    weights: Float32[Array, "tasks F+G+H"] | None = None  # of the features, by Beams.tasks
    interactions: Interactions | None = None  # of log p and the features; None: none
    calibration: Float32[Array, "tasks 8"] | None = None  # of probabilities; None: none
    # Log-likelihood of each task, besides that of the network (Beams.tasks).
    task_scores: Float32[Array, "B tasks"] | None = None
    # Whether each instruction is novel, if `weights` has a last row for novel ones (novelty.py).
    is_novel: Bool[Array, " B"] | None = None

    def of_rows(self, rows: Int32[Array, " b"]) -> RankingInputs:
        """The inputs of some requests, on the device.

        `extra` is as wide as these requests need. One request of an evaluation may have 4,000 extra
        candidates where most have 1,500.
        """
        names = ("seen", "features", "instruction", "task_scores", "is_novel")
        parts = {name: take_rows(getattr(self, name), rows) for name in names}
        if self.extra is not None:
            extra = self.extra[rows]
            width = padded_width(int((extra >= 0).sum(axis=1).max(initial=0)))
            parts["extra"] = jnp.asarray(extra[:, :width])
        return dataclasses.replace(self, **parts)

    def shares(self, tasks: Float32[Array, "B t"]) -> Float32[Array, "B tasks"]:
        """The share of each row of `weights` in each request; a novel one has the last row.

        Args:
          tasks: probability that the instruction is of each task (Beams.tasks).
        """
        if self.task_scores is not None:
            tasks = jax.nn.softmax(jnp.log(tasks + 1e-9) + self.task_scores, axis=-1)
        if self.is_novel is None:
            return tasks
        novel = self.is_novel[:, None].astype(tasks.dtype)
        return jnp.concatenate([tasks * (1 - novel), novel], axis=1)

    def scores(
        self,
        items: Int32[Array, "B N"],
        products: Float[Array, "B N"] | None,
        shares: Float32[Array, "B tasks"],
    ) -> Float32[Array, "B N"]:
        """The weighted features of each candidate; any value for item -1.

        Args:
          products: products of the instruction's query (InstructionAnswer.queries) and the unit
            vectors of the items; None without such a query.
          shares: from `shares`.
        """
        weights = shares @ self.weights
        width = self.features.values.shape[-1]
        of_history = weights[..., :width]
        listed = jnp.einsum("BSF,BF->BS", self.features.values.astype(jnp.float32), of_history)
        places, is_listed = find_sorted(items, self.features.items)
        total = jnp.where(is_listed, jnp.take_along_axis(listed, places, axis=1), 0.0)
        if self.trending is not None:
            of_trending = weights[..., width : width + self.trending.shape[-1]]
            rows = jnp.broadcast_to(self.features.row[:, None], items.shape)
            shared = self.trending.at[rows, jnp.maximum(items, 0)].get(mode="clip")
            total += jnp.einsum("BNG,BG->BN", shared.astype(jnp.float32), of_trending)
        if self.instruction is not None:
            of_instruction = weights[..., -len(INSTRUCTION_FEATURES) :]
            values = self.instruction_values(items, products)
            total += jnp.einsum("BNH,BH->BN", values, of_instruction)
        return total

    def with_interactions(
        self,
        items: Int32[Array, "B n"],
        log_probs: Float32[Array, "B n"],
        of_network: Float32[Array, "B n"],
        shares: Float32[Array, "B tasks"],
    ) -> Float32[Array, "B n"]:
        """`log_probs` with what the interactions add; their total stays.

        Args:
          items: the best items of each request by the sum, -1 where there is none.
          log_probs: of these items by the sum.
          of_network: of these items by the network alone.
          shares: from `shares`.
        """
        inputs = jnp.concatenate([of_network[..., None], self.user_values(items)], axis=-1)
        added = self.interactions.added(inputs, shares)
        scored = jnp.where(jnp.isfinite(log_probs), log_probs + added, -jnp.inf)
        before, after = (
            jax.nn.logsumexp(part, axis=-1, keepdims=True) for part in (log_probs, scored)
        )
        return jnp.where(jnp.isfinite(scored), scored + before - after, -jnp.inf)

    def user_values(self, items: Int32[Array, "B n"]) -> Float32[Array, "B n F+G"]:
        """The history and trending features of some items; any value for item -1."""
        places, is_listed = find_sorted(items, self.features.items)
        of_history = jnp.take_along_axis(self.features.values, places[..., None], axis=1)
        parts = [jnp.where(is_listed[..., None], of_history, 0.0)]
        if self.trending is not None:
            rows = jnp.broadcast_to(self.features.row[:, None], items.shape)
            parts.append(self.trending.at[rows, jnp.maximum(items, 0)].get(mode="clip"))
        return jnp.concatenate([part.astype(jnp.float32) for part in parts], axis=-1)

    def instruction_values(
        self, items: Int32[Array, "B n"], products: Float[Array, "B n"] | None
    ) -> Float32[Array, "B n H"]:
        """INSTRUCTION_FEATURES of some items; 0 without an instruction.

        Args:
          products: as in `scores`.
        """
        if self.instruction is None:
            return jnp.zeros((*items.shape, len(INSTRUCTION_FEATURES)), jnp.float32)
        scorer = InstructionScorer.make(self.instruction, self.lexical, self.semantic)
        return scorer.scores(items, products)


def add_scores(
    log_prob: Float32[Array, "B N"], scores: Float32[Array, "B N"]
) -> Float32[Array, "B N"]:
    """Log-probability of each candidate: proportional to p * exp(score), normalised over all items.

    The scores of other items are not known, so each gets the lowest score of the candidates. A
    score that all items share changes nothing.
    """
    is_item = jnp.isfinite(log_prob)
    least = jnp.min(scores, axis=-1, keepdims=True, initial=jnp.inf, where=is_item)
    least = jnp.where(jnp.isfinite(least), least, 0.0)
    total = jax.nn.logsumexp(log_prob, axis=-1, keepdims=True)
    rest = jnp.log1p(-jnp.minimum(jnp.exp(total), 1 - jnp.finfo(jnp.float32).eps))
    scored = log_prob + scores
    total = jnp.logaddexp(rest + least, jax.nn.logsumexp(scored, axis=-1, keepdims=True))
    return scored - total
