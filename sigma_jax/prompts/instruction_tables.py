"""Instructions of training as tokens, and the items that satisfy them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int32, Int64

from sigma_jax.prompts.config import PromptConfig
from sigma_jax.prompts.instruction_pool import InstructionPool
from sigma_jax.prompts.tokens import PromptTables
from sigma_jax.schema import Links, PreparedData
from sigma_jax.tasks import instructions
from sigma_jax.tasks.constraints import Constraints


@dataclasses.dataclass(frozen=True)
class InstructionTables:
    """Wordings and slot values as tokens, and the items that satisfy each slot value."""

    constraints: Constraints
    popularity: Int64[np.ndarray, " I"]  # training rows of each item
    # Task -> its wordings, each as the tokens before the slot and those after it.
    wordings: dict[str, list[tuple[np.ndarray, np.ndarray]]]
    slot_values: dict[str, Links]  # task -> slot value -> tokens, with the space before it
    vocab_size: int  # V: text tokens
    max_tokens: int  # a longer instruction is cut
    wording_dropout: float
    pool: InstructionPool | None  # where the model reads sentence vectors
    pool_tokens: list[np.ndarray]  # of each instruction of the pool, with the slot of its vector

    @classmethod
    def make(
        cls,
        data: PreparedData,
        tables: PromptTables,
        config: PromptConfig,
        pool: InstructionPool | None = None,
        wordings: Mapping[str, tuple[str, ...]] = instructions.TRAIN_WORDINGS,
    ) -> InstructionTables:
        """The tables for the queries, categories and themes of `data`."""
        max_tokens, tokenizer = config.layout.instruction_tokens, tables.tokenizer

        def encode_split(task: str, wording: str) -> tuple[np.ndarray, np.ndarray]:
            before, after = tokenizer.encode(instructions.split_at_slot(task, wording), max_tokens)
            return before, after

        values = {task: instructions.slot_value_texts(data, task) for task in instructions.SLOTS}
        return cls(
            Constraints.make(data, config.longtail_share),
            np.asarray(data.catalogue.popularity),
            {task: [encode_split(task, text) for text in wordings[task]] for task in wordings},
            {
                task: tokenizer.table([f" {text}" for text in texts], max_tokens)
                for task, texts in values.items()
            },
            tables.vocab_size,
            max_tokens,
            config.mixture.wording_dropout,
            pool,
            [] if pool is None else tables.instructions(pool.texts.to_pylist()),
        )

    def draw(
        self, task: str, slot_value: int, rng: np.random.Generator
    ) -> tuple[Int32[np.ndarray, " n"], int]:
        """A random instruction: its tokens, and the row of its vector in the pool, or -1.

        Args:
          slot_value: number of the query, category or theme; tasks without a slot do not read it.
        """
        if self.pool is None:
            wording = int(rng.integers(len(self.wordings[task])))
            return self.tokens(task, slot_value, wording, rng), -1
        rows = self.pool.rows(task, slot_value if task in instructions.SLOTS else 0)
        row = rows[int(rng.integers(len(rows)))]
        return self.pool_tokens[row], row

    def tokens(
        self,
        task: str,
        slot_value: int,
        wording: int,
        rng: np.random.Generator | None = None,
    ) -> Int32[np.ndarray, " n"]:
        """Tokens of wording number `wording` of `task`, its slot filled with `slot_value`.

        With `rng`, as in training, a share `wording_dropout` of the tokens around the slot changes:
        half of them are left out, half become random tokens. So a model also understands wordings
        of which it knows some words only. A wording that would lose all its tokens keeps them.

        Args:
          slot_value: number of the query, category or theme; tasks without a slot do not read it.
        """
        before, after = self.wordings[task][wording]
        if rng is not None and self.wording_dropout:
            words = np.concatenate([before, after])
            chance = rng.random(len(words)) / self.wording_dropout
            random_tokens = rng.integers(0, self.vocab_size, len(words), np.int32)
            words = np.where(chance < 1, random_tokens, words)  # those under 0.5 are left out
            is_kept, slot = chance >= 0.5, len(before)
            if is_kept.any():
                before, after = words[:slot][is_kept[:slot]], words[slot:][is_kept[slot:]]
        if task not in instructions.SLOTS:
            return before[: self.max_tokens]
        joined = np.concatenate([before, self.slot_values[task].of(slot_value), after])
        return joined[: self.max_tokens]
