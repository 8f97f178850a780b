"""Token ids of prompts: text, codes, slots and the query token.

All token ids lie in one space: text 0..V-1, code c of level l at V + l*C + c, the item slot at
V + L*C, the query token at V + L*C + 1, the instruction slot at V + L*C + 2. prompts/layout.py puts
them in order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int, Int32

from sigma_jax.prompts.config import PromptLayout
from sigma_jax.schema import Links, PreparedData, SemanticIds, Users
from sigma_jax.tasks import instructions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# No token of a usual tokenizer spells more characters. A longer text is cut before it is tokenised,
# so that a text of a megabyte costs no more than one of a kilobyte.
CHARACTERS_PER_TOKEN = 32


def load_text_tokenizer(data: PreparedData) -> PreTrainedTokenizerBase:
    """The Hugging Face tokenizer of the data. ValueError if its folder is missing or damaged."""
    from transformers import AutoTokenizer  # takes more than a second

    folder = data.text_tokenizer_folder
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # tokenizers raises plain Exceptions
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(
            f"{folder} is missing or damaged ({reason}); delete {data.folder} and run again."
        ) from error


class PromptTokenizer:
    """Texts to token ids by the data's Hugging Face tokenizer, without special tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int):
        if len(tokenizer) > vocab_size:
            raise ValueError(
                f"the text tokenizer has {len(tokenizer)} tokens, but the backbone's table has "
                f"{vocab_size} rows; use the backbone's own tokenizer."
            )
        self.tokenizer = tokenizer

    @classmethod
    def load(cls, data: PreparedData, vocab_size: int) -> PromptTokenizer:
        """The tokenizer in the folder of `data`, for a text table of `vocab_size` rows.

        Raises:
          ValueError: the folder is missing or damaged, or the tokenizer has more tokens than rows.
        """
        return cls(load_text_tokenizer(data), vocab_size)

    def encode(self, texts: Sequence[str], max_tokens: int) -> list[Int32[np.ndarray, " n"]]:
        """The first `max_tokens` tokens of each text. Only the start of a very long text is read.

        A text is cut after CHARACTERS_PER_TOKEN * max_tokens characters.
        """
        if not len(texts):
            return []
        starts = [text[: CHARACTERS_PER_TOKEN * max_tokens] for text in texts]
        ids = self.tokenizer(starts, add_special_tokens=False)["input_ids"]
        return [np.asarray(row[:max_tokens], np.int32) for row in ids]

    def table(self, texts: Sequence[str], max_tokens: int) -> Links:
        """The tokens of each text (see `encode`), as rows of one sparse table."""
        rows = self.encode(texts, max_tokens)
        offsets = np.cumsum([0] + [len(row) for row in rows]).astype(np.int64)
        return Links(offsets, np.concatenate([*rows, np.zeros(0, np.int32)]).astype(np.int32))


@dataclasses.dataclass(frozen=True)
class PromptTables:
    """All that turns a history and an instruction into tokens: profiles, fixed texts, codes."""

    semantic_ids: SemanticIds
    vocab_size: int
    layout: PromptLayout
    tokenizer: PromptTokenizer
    profiles: Links  # distinct profiles -> tokens
    profile_of: Int32[np.ndarray, " U"]  # user -> row of `profiles`
    favourites_text: Int32[np.ndarray, " n"]
    history_text: Int32[np.ndarray, " n"]
    session_end: Int32[np.ndarray, " n"]  # empty if sessions are not marked

    @classmethod
    def make(
        cls,
        data: PreparedData,
        semantic_ids: SemanticIds,
        layout: PromptLayout,
        vocab_size: int,
        has_instructions: bool,
    ) -> PromptTables:
        """The tables for the users and items of `data`.

        Args:
          has_instructions: whether the model is trained with instructions. Without them no text
            stands before the history.

        Raises:
          ValueError: the tokenizer has more than `vocab_size` tokens, there is not one SID per
            item, or SIDs have fewer codes than the layout needs.
        """
        layout.check(semantic_ids.levels)
        if len(semantic_ids.codes) != len(data.catalogue):
            raise ValueError(
                f"there are {len(semantic_ids.codes)} semantic IDs for {len(data.catalogue)} items;"
                " run the tokenizer stage again."
            )
        tokenizer = PromptTokenizer.load(data, vocab_size)
        max_tokens = layout.instruction_tokens
        history_text = instructions.HISTORY_TEXT if has_instructions else ""
        fixed = [instructions.FAVOURITES_TEXT, history_text]
        session_end = np.zeros(0, np.int32)
        if layout.session_marker:
            session_end = tokenizer.encode([instructions.SESSION_END_TEXT], max_tokens)[0]
        return cls(
            semantic_ids,
            vocab_size,
            layout,
            tokenizer,
            *_profiles(data.users, tokenizer, layout),
            *tokenizer.encode(fixed, max_tokens),
            session_end=session_end,
        )

    def with_users(self, users: Users) -> PromptTables:
        """These tables with the profiles of other users."""
        profiles, profile_of = _profiles(users, self.tokenizer, self.layout)
        return dataclasses.replace(self, profiles=profiles, profile_of=profile_of)

    @property
    def slot_token(self) -> int:
        """Token id of the item slot."""
        return self.vocab_size + self.semantic_ids.levels * self.semantic_ids.codebook_size

    @property
    def query_token(self) -> int:
        """Token id that asks for an item after its codes."""
        return self.slot_token + 1

    @property
    def instruction_token(self) -> int:
        """Token id of the instruction slot."""
        return self.query_token + 1

    def instructions(self, texts: Sequence[str]) -> list[Int32[np.ndarray, " n"]]:
        """The tokens of instructions: a slot for the vector, the text, or both. None for ""."""
        layout, tokens = self.layout, [np.zeros(0, np.int32)] * len(texts)
        if layout.has_instruction_tokens:
            tokens = self.tokenizer.encode(texts, layout.instruction_tokens)
        if not layout.has_instruction_vectors:
            return tokens
        slot = np.array([self.instruction_token], np.int32)
        return [
            np.concatenate([slot, of_text]) if text else of_text
            for text, of_text in zip(texts, tokens, strict=True)
        ]

    def has_slot(self, instruction: Int32[np.ndarray, " n"]) -> bool:
        """Whether the tokens of an instruction begin with a slot for its vector."""
        return len(instruction) > 0 and int(instruction[0]) == self.instruction_token

    def codes(self, items: Int[np.ndarray, " n"], levels: int) -> Int32[np.ndarray, "n levels"]:
        """Token ids of the first `levels` codes of `items`."""
        first = self.vocab_size + np.arange(levels) * self.semantic_ids.codebook_size
        return (self.semantic_ids.codes[items, :levels] + first).astype(np.int32)

    def slots(self, items: Int[np.ndarray, " n"]) -> Int32[np.ndarray, "n tokens"]:
        """Token ids of `items` as they stand in a prompt: codes, then the slot token."""
        tokens = np.full((len(items), self.layout.item_tokens), self.slot_token, np.int32)
        codes = self.layout.sid_in_prompt
        tokens[:, :codes] = self.codes(items, codes)
        return tokens

    def profile(self, user: int) -> Int32[np.ndarray, " n"]:
        """Tokens of the user's profile, at most `profile_tokens`; none for user -1."""
        return self.profiles.of(self.profile_of[user]) if user >= 0 else np.zeros(0, np.int32)


def _profiles(
    users: Users, tokenizer: PromptTokenizer, layout: PromptLayout
) -> tuple[Links, Int32[np.ndarray, " U"]]:
    """Tokens of the distinct profiles, and the profile number of each user."""
    distinct = users.table["profile"].combine_chunks().dictionary_encode()
    texts = [text or "" for text in distinct.dictionary.to_pylist()]
    profile_of = distinct.indices.to_numpy(zero_copy_only=False).astype(np.int32)
    return tokenizer.table(texts, layout.profile_tokens), profile_of
