"""Lexical match: words of an instruction that stand in the items' texts.

A network that starts with a new vocabulary trains on a few thousand searches. It sees most words of
a catalogue a handful of times. The search box of a shop needs no training: an item matches if its
text has the words of the query, and rare words count most.

The data tell which words ask for something. Slot values are the queries, categories and themes that
instructions name. For each word:

- a counts the slot values that have the word. A slot value is shared among its words: "on" has a
  fifth of "tomatoes hothouse on the vine".
- b counts the texts around the slots that have the word, scaled to the number of slot values.

    trust = a / (a + b + 1),    weight = trust * log(items / items that have the word)

Words of no slot value are ignored. Text is split at spaces and punctuation, and each Chinese
character is a word. Other scripts without spaces do not match.

Axes: I items, W words of an item, N requests, n words of an instruction, V words.
"""

from __future__ import annotations

import dataclasses
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32
from tokenizers import normalizers, pre_tokenizers

from sigma_jax.shapes import few_sizes

LEAST_WORDS = 8  # size of the arrays of an instruction's words, at least
MAX_ITEM_WORDS = 64  # words of an item: the first ones, since titles stand first

_PLAIN = normalizers.Sequence([normalizers.NFKC(), normalizers.BertNormalizer()])
_CUT = pre_tokenizers.BertPreTokenizer()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LexicalArrays:
    """The arrays of a LexicalTable, on the device."""

    trust: Float32[Array, " V"]
    weights: Float32[Array, " V"]
    of_items: Int32[Array, "W I"]


@dataclasses.dataclass(frozen=True)
class LexicalTable:
    """The words of a catalogue; the last of the V words stands for no word and weighs nothing."""

    numbers: dict[str, int]  # the number of each word
    trust: Float32[np.ndarray, " V"]
    weights: Float32[np.ndarray, " V"]
    of_items: Int32[np.ndarray, "W I"]  # words of each item, padded with V - 1

    @classmethod
    def make(
        cls, texts: Iterable[str], slot_values: Iterable[str], around: Sequence[str]
    ) -> LexicalTable:
        """The table of all items.

        Args:
          texts: the JSON text of each item.
          slot_values: the queries, categories and themes that instructions name.
          around: the texts around the slots of all wordings.
        """
        trust, weights = np.zeros((2, 1), np.float32)
        empty = cls({}, trust, weights, np.zeros((1, 0), np.int32))
        return empty.extended(0, texts, slot_values, around)

    def extended(
        self, items: int, texts: Iterable[str], slot_values: Iterable[str], around: Sequence[str]
    ) -> LexicalTable:
        """The table of the first `items` items and of new ones behind them.

        It equals the table that `make` gives for all of them, but reads new texts only.

        Args:
          texts: the JSON text of each new item.
          slot_values, around: as in `make`.
        """
        numbers, before = dict(self.numbers), self.of_items[:, :items]
        slot_values = [words_of(text) for text in set(slot_values)]
        slot_counts = Counter()
        for words in slot_values:
            slot_counts.update(dict.fromkeys(words, 1 / max(len(words), 1)))
        around_counts = Counter(word for text in around for word in words_of(text))
        words_of_new, ends = array("i"), array("q", [0])
        for text in texts:
            kept = [word for word in item_words(text) if word in slot_counts][:MAX_ITEM_WORDS]
            words_of_new.extend(numbers.setdefault(word, len(numbers)) for word in kept)
            ends.append(len(words_of_new))
        words_of_new, sizes = np.array(words_of_new, np.int32), np.diff(ends)
        of_items = np.full(
            (max(sizes.max(initial=1), len(before)), items + len(sizes)), len(numbers), np.int32
        )
        for row, old in zip(of_items, before, strict=False):  # it may be large: one copy
            row[:items] = np.where(old == len(self.weights) - 1, len(numbers), old)
        item = np.repeat(np.arange(len(sizes)), sizes)
        of_items[np.arange(len(words_of_new)) - np.array(ends)[item], items + item] = words_of_new
        having = np.zeros(len(numbers) + 1, np.int64)
        for row in of_items:
            having += np.bincount(row, minlength=len(having))
        having = having[:-1]
        a = np.array([slot_counts[word] for word in numbers])
        b = (
            np.array([around_counts[word] for word in numbers])
            * len(slot_values)
            / max(len(around), 1)
        )
        trust = a / (a + b + 1)
        rarity = np.log(of_items.shape[1] / having)
        trust, weights = (np.append(v, 0).astype(np.float32) for v in (trust, trust * rarity))
        return LexicalTable(numbers, trust, weights, of_items)

    def arrays(self) -> LexicalArrays:
        """The arrays on the device."""
        return LexicalArrays(*map(jnp.asarray, (self.trust, self.weights, self.of_items)))

    def word_numbers(self, instructions: Sequence[str]) -> Int32[np.ndarray, "N n"]:
        """The numbers of those words of each instruction that the table has, padded with V - 1."""
        numbers = [
            [self.numbers[word] for word in words_of(text) if word in self.numbers]
            for text in instructions
        ]
        size = few_sizes(max(map(len, numbers), default=0), LEAST_WORDS)
        table = np.full((len(numbers), size), len(self.weights) - 1, np.int32)
        for row, words in enumerate(numbers):
            table[row, : len(words)] = words
        return table

    def save(self, folder: Path) -> None:
        """Writes words.json and words.npz."""
        (folder / "words.json").write_text(json.dumps(list(self.numbers), ensure_ascii=False))
        arrays = {name: getattr(self, name) for name in ("trust", "weights", "of_items")}
        np.savez_compressed(folder / "words.npz", **arrays)

    @classmethod
    def load(cls, folder: Path) -> LexicalTable:
        """The table that `save` wrote."""
        names = json.loads((folder / "words.json").read_text())
        with np.load(folder / "words.npz") as file:
            arrays = {name: file[name] for name in ("trust", "weights", "of_items")}
        return cls({name: number for number, name in enumerate(names)}, **arrays)

    def with_capacity(self, items: int, words: int, width: int) -> LexicalTable:
        """The table in arrays that hold `items` items, `words` words and `width` words of an item.

        Arrays that are larger already keep their size.
        """
        size = (max(width, self.of_items.shape[0]), max(items, self.of_items.shape[1]))
        words = max(words, len(self.weights))
        no_word = len(self.weights) - 1
        of_items = np.full(size, words - 1, np.int32)
        for row, old in zip(of_items, self.of_items, strict=False):  # it may be large: one copy
            row[: len(old)] = np.where(old == no_word, words - 1, old)
        trust, weights = np.zeros((2, words), np.float32)
        trust[:no_word], weights[:no_word] = self.trust[:no_word], self.weights[:no_word]
        return LexicalTable(self.numbers, trust, weights, of_items)


def words_of(text: str) -> list[str]:
    """The distinct words of `text` in their order, without case, accents and punctuation.

    Worked example: "Peanut butter & Crème of peanut" -> ["peanut", "butter", "creme", "of"].
    """
    parts = _CUT.pre_tokenize_str(_PLAIN.normalize_str(text))
    return list(dict.fromkeys(part for part, _ in parts if any(c.isalnum() for c in part)))


def item_words(text: str) -> list[str]:
    """The distinct words of the values of an item's JSON text; field names do not count."""
    return words_of(" ".join(_values(json.loads(text))))


def _values(node: Any) -> Iterable[str]:
    """All values of a JSON node, as text."""
    if isinstance(node, dict):
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            yield from _values(value)
    elif node is not None:
        yield str(node)
