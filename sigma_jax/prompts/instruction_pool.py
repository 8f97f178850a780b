"""The instructions of training with their sentence vectors, made once and drawn from.

Encoding every drawn instruction would take longer than the training. So each query, category and
theme gets a few sentences (tasks/composition.py), which are encoded before the first step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64

from sigma_jax.data.sentences import Encode, save_in_pieces
from sigma_jax.prompts.config import PromptConfig
from sigma_jax.schema import TASKS, PreparedData, read_arrow, read_npy, write_arrow
from sigma_jax.tasks.composition import composed_instructions
from sigma_jax.tasks.instructions import slot_value_texts


@dataclasses.dataclass(frozen=True)
class InstructionPool:
    """P instructions, those of one task and slot value in a row."""

    texts: pa.Array
    vectors: Float32[np.ndarray, "P E"]  # unit length
    offsets: Int64[np.ndarray, " G+1"]  # of the G pairs of a task and a slot value
    place: Mapping[tuple[int, int], int]  # task and slot value -> number of the pair

    def rows(self, task: str, slot_value: int) -> range:
        """The instructions of a task and a slot value; slot value 0 where the task has no slot."""
        number = self.place[TASKS.index(task), slot_value]
        return range(int(self.offsets[number]), int(self.offsets[number + 1]))

    @property
    def group(self) -> Int64[np.ndarray, " P"]:
        """The number of the pair of each instruction: those of one pair ask for the same."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    @property
    def task(self) -> Int64[np.ndarray, " P"]:
        """The place of the task of each instruction in TASKS."""
        return np.array([task for task, _ in self.place], np.int64)[self.group]

    def things(self, data: PreparedData) -> list[str]:
        """The query, category or theme of each of the G pairs; "" for a task without slots."""
        texts = [slot_value_texts(data, task) for task in TASKS]
        return [texts[task][value] if texts[task] else "" for task, value in self.place]

    @classmethod
    def load(cls, folder: Path) -> InstructionPool:
        """The pool that `write_pool` wrote. ValueError if a file is missing or damaged."""
        table = read_arrow(folder / "instructions.arrow")
        pairs = read_npy(folder / "pairs.npy", 2)
        place = {(int(task), int(value)): n for n, (task, value, _) in enumerate(pairs)}
        offsets = np.concatenate([[0], np.cumsum(pairs[:, 2])]).astype(np.int64)
        vectors = read_npy(folder / "vectors.npy", 2)
        return cls(table["text"].combine_chunks(), vectors, offsets, place)


def pool_settings(config: PromptConfig) -> dict[str, Any]:
    """The settings that decide the content of a pool."""
    return {
        "wordings": {task: list(texts) for task, texts in config.wordings.items()},
        "mixture.instruction_variants": config.mixture.instruction_variants,
        "mixture.wording_dropout": config.mixture.wording_dropout,
    }


def write_pool(
    data: PreparedData, config: PromptConfig, encode: Encode, folder: Path, seed: int
) -> dict[str, int]:
    """Writes the pool of `data` into `folder`. Returns {"instructions": their number}."""
    texts: list[str] = []
    pairs: list[tuple[int, int, int]] = []
    mixture = config.mixture
    for task, slot_value, sentences in composed_instructions(
        data, config.wordings, mixture.instruction_variants, mixture.wording_dropout, seed
    ):
        texts += sentences
        pairs.append((task, slot_value, len(sentences)))
    np.save(folder / "pairs.npy", np.array(pairs, np.int32).reshape(-1, 3))
    write_arrow(pa.table({"text": pa.array(texts, pa.string())}), folder / "instructions.arrow")

    def encode_rows(rows: range) -> Float32[np.ndarray, "n E"]:
        return encode(texts[rows.start : rows.stop])

    save_in_pieces(encode_rows, len(texts), folder / "vectors.npy", "instructions")
    return {"instructions": len(texts)}
