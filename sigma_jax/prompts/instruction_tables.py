"""Instructions of training as tokens, and the items that satisfy them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int32, Int64

from sigma_jax.prompts.config import PromptConfig
from sigma_jax.prompts.tokens import PromptTokenizer
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

    @classmethod
    def make(
        cls,
        data: PreparedData,
        tokenizer: PromptTokenizer,
        config: PromptConfig,
        vocab_size: int,
        wordings: Mapping[str, tuple[str, ...]] = instructions.TRAIN_WORDINGS,
    ) -> InstructionTables:
        """The tables for the queries, categories and themes of `data`."""
        max_tokens = config.layout.instruction_tokens

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
            vocab_size,
            max_tokens,
            config.mixture.wording_dropout,
        )

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
