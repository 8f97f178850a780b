"""What prompts are made of: their settings, their text in tokens, the code tokens of items.

All token ids live in one space: text 0..V-1, code c of level l at V + l*C + c, the item slot at
V + L*C, the query token at V + L*C + 1. The layout of a prompt is in prompts/layout.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int32, Int64
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sigma_jax.prompts.config import PromptConfig
from sigma_jax.schema import Links, PreparedData, SemanticIds, Users
from sigma_jax.tasks import instructions
from sigma_jax.tasks.constraints import Constraints

# No token of a usual tokenizer spells more characters: a longer text is cut before it is tokenised,
# so that a text of a megabyte costs no more than a long one.
CHARACTERS_PER_TOKEN = 32


def load_text_tokenizer(data: PreparedData) -> PreTrainedTokenizerBase:
    """The data's tokenizer. ValueError if its folder is missing or damaged."""
    folder = data.text_tokenizer_folder
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # tokenizers raises plain Exceptions
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(
            f"{folder} is missing or damaged ({reason}); delete {data.folder} and run again."
        ) from error


class TextEncoder:
    """Texts to token ids by the data's Hugging Face tokenizer, without special tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int):
        if len(tokenizer) > vocab_size:
            raise ValueError(
                f"the text tokenizer has {len(tokenizer)} tokens, the backbone's table "
                f"{vocab_size}; use the backbone's own tokenizer."
            )
        self.tokenizer = tokenizer

    @classmethod
    def load(cls, data: PreparedData, vocab_size: int) -> TextEncoder:
        return cls(load_text_tokenizer(data), vocab_size)

    def encode(self, texts: Sequence[str], most: int) -> list[Int32[np.ndarray, " n"]]:
        """The first `most` tokens of each text; of a very long text only the start is looked at."""
        if not len(texts):
            return []
        cut = [text[: CHARACTERS_PER_TOKEN * most] for text in texts]
        ids = self.tokenizer(cut, add_special_tokens=False)["input_ids"]
        return [np.asarray(row[:most], np.int32) for row in ids]

    def table(self, texts: Sequence[str], most: int) -> Links:
        """The same as CSR, row by row."""
        rows = self.encode(texts, most)
        offsets = np.cumsum([0] + [len(row) for row in rows]).astype(np.int64)
        return Links(offsets, np.concatenate([*rows, np.zeros(0, np.int32)]).astype(np.int32))


@dataclasses.dataclass(frozen=True)
class PromptTables:
    """Text pieces tokenised once, and the code tokens of the items."""

    semantic_ids: SemanticIds
    vocab_size: int
    config: PromptConfig
    constraints: Constraints
    popularity: Int64[np.ndarray, " I"]
    encoder: TextEncoder
    profiles: Links  # distinct profiles -> tokens
    profile_of: Int32[np.ndarray, " U"]  # user -> row of `profiles`
    slot_values: dict[str, Links]  # task -> slot value -> tokens, with the space before it
    phrasings: dict[str, list[tuple[np.ndarray, np.ndarray]]]  # task -> (before, after) the slot
    favourites_text: Int32[np.ndarray, " n"]
    history_text: Int32[np.ndarray, " n"]
    session_end: Int32[np.ndarray, " n"]  # empty where sessions are not marked

    @classmethod
    def make(
        cls,
        data: PreparedData,
        semantic_ids: SemanticIds,
        config: PromptConfig,
        vocab_size: int,
        phrasings: dict[str, tuple[str, ...]] = instructions.TRAIN_PHRASINGS,
    ) -> PromptTables:
        """Tokenises what prompts of `data` may hold.

        Raises:
          ValueError: the tokenizer is larger than `vocab_size`, or SIDs and items differ in number.
        """
        config.check(semantic_ids.levels)
        if len(semantic_ids.codes) != len(data.catalogue):
            raise ValueError(
                f"there are {len(semantic_ids.codes)} semantic IDs for {len(data.catalogue)} items;"
                " run the tokenizer stage again."
            )
        encoder = TextEncoder.load(data, vocab_size)
        most = config.instruction_tokens

        def pieces(task: str, phrasing: str) -> tuple[np.ndarray, np.ndarray]:
            return tuple(encoder.encode(instructions.split(task, phrasing), most))

        before_history = instructions.HISTORY_TEXT if config.has_words else ""
        fixed = (instructions.FAVOURITES_TEXT, before_history)
        marker = instructions.SESSION_END_TEXT
        return cls(
            semantic_ids,
            vocab_size,
            config,
            Constraints.make(data, config.longtail_share),
            np.asarray(data.catalogue.popularity),
            encoder,
            *_profiles(data.users, encoder, config),
            {
                task: encoder.table(
                    [f" {text}" for text in instructions.slot_value_texts(data, task)], most
                )
                for task in instructions.SLOTS
            },
            {task: [pieces(task, text) for text in phrasings[task]] for task in phrasings},
            *encoder.encode(fixed, most),
            encoder.encode([marker], most)[0] if config.session_marker else np.zeros(0, np.int32),
        )

    def with_users(self, users: Users) -> PromptTables:
        """The same for other users."""
        profiles, profile_of = _profiles(users, self.encoder, self.config)
        return dataclasses.replace(self, profiles=profiles, profile_of=profile_of)

    @property
    def slot_token(self) -> int:
        return self.vocab_size + self.semantic_ids.levels * self.semantic_ids.codebook_size

    @property
    def query_token(self) -> int:
        return self.slot_token + 1

    def codes(self, items: Int[np.ndarray, " n"], levels: int) -> Int32[np.ndarray, "n levels"]:
        """Token ids of the first `levels` codes of `items`."""
        first = self.vocab_size + np.arange(levels) * self.semantic_ids.codebook_size
        return (self.semantic_ids.codes[items, :levels] + first).astype(np.int32)

    @property
    def item_width(self) -> int:
        """Tokens of an item in a prompt."""
        return self.config.sid_in_prompt + self.config.slot_in_prompt

    @property
    def target_width(self) -> int:
        """Tokens of a target: its codes, and the query token."""
        return self.config.sid_generated + self.config.has_query_token

    def slots(self, items: Int[np.ndarray, " n"]) -> Int32[np.ndarray, "n width"]:
        """Token ids of `items` as they stand in a prompt: codes, then the slot token."""
        tokens = np.full((len(items), self.item_width), self.slot_token, np.int32)
        codes = self.config.sid_in_prompt
        tokens[:, :codes] = self.codes(items, codes)
        return tokens

    def profile(self, user: int) -> Int32[np.ndarray, " n"]:
        """Tokens of the user's profile; none for user -1."""
        return self.profiles.of(self.profile_of[user]) if user >= 0 else np.zeros(0, np.int32)

    def instruction(
        self,
        task: str,
        slot_value: int,
        phrasing: int,
        most: int,
        rng: np.random.Generator | None = None,
    ) -> Int32[np.ndarray, " n"]:
        """The first `most` tokens of phrasing number `phrasing` of `task` with `slot_value`.

        With `rng`, as in training, a share of the tokens around the slot value is left out or, as
        often, another of the vocabulary: so other wordings, of which some words are known, are
        understood too. A wording that would lose all of them keeps them.
        """
        before, after = self.phrasings[task][phrasing]
        if rng is not None and self.config.wording_dropout:
            words = np.concatenate([before, after])
            chance = rng.random(len(words)) / self.config.wording_dropout
            unknown = rng.integers(0, self.vocab_size, len(words), np.int32)
            words = np.where(chance < 1, unknown, words)  # under 0.5 they are left out
            is_kept, first = chance >= 0.5, len(before)
            if is_kept.any():
                before, after = words[:first][is_kept[:first]], words[first:][is_kept[first:]]
        if task not in instructions.SLOTS:
            return before[:most]
        return np.concatenate([before, self.slot_values[task].of(slot_value), after])[:most]


def _profiles(
    users: Users, encoder: TextEncoder, config: PromptConfig
) -> tuple[Links, Int32[np.ndarray, " U"]]:
    """Tokens of the distinct profiles, and which of them each user has."""
    distinct = users.table["profile"].combine_chunks().dictionary_encode()
    texts = [text or "" for text in distinct.dictionary.to_pylist()]
    profile_of = distinct.indices.to_numpy(zero_copy_only=False).astype(np.int32)
    return encoder.table(texts, config.profile_tokens), profile_of
