"""A language model in a Hugging Face folder, answered by our own backbone.

Axes: B chats, T tokens of the longest chat, V rows of the text table.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Int32, PRNGKeyArray

from sigma_jax.language_model.endpoint import Reply
from sigma_jax.models.attention import KVCache
from sigma_jax.models.folders import read_folder_json
from sigma_jax.models.hf import load_backbone
from sigma_jax.models.qwen3 import causal_mask
from sigma_jax.shapes import power_of_two

BATCH = 8  # chats answered at once
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
NEVER = -1  # no token: a model without end tokens answers to the longest reply


class LocalModel:
    """Asks the model in a folder (ask.Model)."""

    batch_size = BATCH

    def __init__(self, folder: Path, max_tokens: int, temperature: float, seed: int):
        """The model and the tokenizer in `folder`. ValueError if they cannot be read."""
        from transformers import AutoTokenizer

        if not any((folder / name).exists() for name in TOKENIZER_FILES):
            raise ValueError(f"{folder} has no tokenizer.json; save its tokenizer there.")
        self._tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        model = load_backbone(folder, dtype="float32", param_dtype="float32")
        self._graphdef, self._state = nnx.split(model)
        self.name = folder.name
        self._max_tokens, self._temperature = max_tokens, temperature
        self._key = jax.random.key(seed)
        self._ends = np.array(sorted(self._end_tokens(folder)) or [NEVER], np.int32)

    def _end_tokens(self, folder: Path) -> set[int]:
        """The tokens that end a reply, of the tokenizer and of both configs."""
        found: set[int] = {self._tokenizer.eos_token_id}
        for name in ("config.json", "generation_config.json"):
            if (folder / name).exists():
                given = read_folder_json(folder / name).get("eos_token_id")
                found |= set(given if isinstance(given, list) else [given])
        return {int(token) for token in found if token is not None}

    def ask_all(self, chats: Sequence[list[dict[str, str]]]) -> list[Reply]:
        """The replies to some chats, at most BATCH of them.

        The order of the chats decides the random numbers: one chat alone may get another reply.
        """
        texts = [self._text(messages) for messages in chats]
        tokens = [self._tokenizer.encode(text, add_special_tokens=False) for text in texts]
        lengths = np.array([*map(len, tokens)] + [1] * (BATCH - len(tokens)), np.int32)
        rows = np.zeros((BATCH, power_of_two(int(lengths.max()))), np.int32)
        for row, ids in enumerate(tokens):
            rows[row, : len(ids)] = ids
        key = jax.random.fold_in(self._key, int(lengths.sum()))
        found = np.asarray(
            generate(
                self._graphdef,
                self._state,
                jnp.asarray(rows),
                jnp.asarray(lengths),
                jnp.asarray(self._ends),
                key,
                self._max_tokens,
                self._temperature,
            )
        )
        replies = []
        for ids, answer in zip(tokens, found, strict=False):
            ends = np.flatnonzero(np.isin(answer, self._ends))
            answer = answer[: ends[0]] if len(ends) else answer
            text = self._tokenizer.decode(answer.tolist(), skip_special_tokens=True)
            replies.append(Reply(text, len(ids), len(answer)))
        return replies

    def _text(self, messages: list[dict[str, str]]) -> str:
        if self._tokenizer.chat_template:
            return self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        return "\n\n".join([*(message["content"] for message in messages), ""])


@functools.partial(jax.jit, static_argnums=(0, 6, 7))
def generate(
    graphdef,
    state,
    tokens: Int32[Array, "B T"],
    lengths: Int32[Array, " B"],
    ends: Int32[Array, " n"],
    key: PRNGKeyArray,
    count: int,
    temperature: float,
) -> Int32[Array, "B count"]:
    """The tokens that follow each chat; an end token fills a reply up.

    Args:
      tokens: of the chats, padded on the right.
      lengths: tokens of each chat.
      ends: tokens that end a reply, at least one.
      key: of the random numbers; unused with temperature 0, which takes the likeliest token.
    """
    model = nnx.merge(graphdef, state)
    batch, width = tokens.shape
    cache = KVCache.empty(model.config, batch, width + count)
    positions = jnp.broadcast_to(jnp.arange(width), tokens.shape)
    mask = causal_mask((positions < lengths[:, None]).astype(jnp.int32))
    hidden, cache = model(model.embed(tokens), positions, mask, cache)
    last = hidden[jnp.arange(batch), lengths - 1]
    rows = jnp.arange(width + count)

    def chosen(hidden, key) -> Int32[Array, " B"]:
        logits = model.logits(hidden)
        if temperature == 0:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return jax.random.categorical(key, logits / temperature).astype(jnp.int32)

    def is_done(token) -> Bool[Array, " B"]:
        return (token[:, None] == ends).any(axis=1)

    def goes_on(carry):
        step, _, done, _, _ = carry
        return (step < count) & ~done.all()

    def step(carry):
        number, hidden, done, cache, found = carry
        token = chosen(hidden, jax.random.fold_in(key, number))
        token = jnp.where(done, ends[0], token)
        found = found.at[:, number].set(token)
        is_prompt = rows[None] < lengths[:, None]
        is_reply = (rows[None] >= width) & (rows[None] <= width + number)
        seen = (is_prompt | is_reply)[:, None]
        hidden, cache = model(model.embed(token[:, None]), (lengths + number)[:, None], seen, cache)
        return number + 1, hidden[:, 0], done | is_done(token), cache, found

    found = jnp.full((batch, count), ends[0], jnp.int32)
    # A row without a chat has length 1 and is not waited for.
    done = lengths <= 1
    return jax.lax.while_loop(goes_on, step, (0, last, done, cache, found))[-1]
