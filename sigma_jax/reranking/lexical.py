"""Lexical match: which words of an instruction stand in the items' texts.

A network with a vocabulary of its own, trained for minutes on a few thousand searches, has met most
words of a catalogue a handful of times. The search box of a shop needs no training: an item matches
if its text has the words of the query, the rare ones above all. Which words ask for something
follows from the data, not from the language. Let a be the queries, categories and themes that have
a word, each shared among its words ("on" is a fifth of "tomatoes hothouse on the vine"). Let b be
the wordings around them that have it, scaled to as many as there are queries. Then

    trust = a / (a + b + 1),    weight = trust * log(items / items that have it)

Words that no query, category or theme has are ignored. So are words of scripts without spaces,
except that each Chinese character is a word.

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

from sigma_jax.shapes import power_of_two

MAX_ITEM_WORDS = 64  # of an item's text, the first ones: titles stand first

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

    numbers: dict[str, int]
    trust: Float32[np.ndarray, " V"]
    weights: Float32[np.ndarray, " V"]
    of_items: Int32[np.ndarray, "W I"]  # padded with V - 1

    @classmethod
    def make(
        cls, texts: Iterable[str], asked: Iterable[str], around: Sequence[str]
    ) -> LexicalTable:
        """Of the items' JSON `texts`, where people ask for `asked` in the wordings `around`."""
        trust, weights = np.zeros((2, 1), np.float32)
        none = cls({}, trust, weights, np.zeros((1, 0), np.int32))
        return none.grown(0, texts, asked, around)

    def grown(
        self, items: int, texts: Iterable[str], asked: Iterable[str], around: Sequence[str]
    ) -> LexicalTable:
        """The table that `make` gives with `texts` behind those of the first `items` items, which
        are not read again."""
        numbers, known = dict(self.numbers), self.of_items[:, :items]
        asked = [words_of(text) for text in set(asked)]
        demands = Counter()
        for words in asked:
            demands.update(dict.fromkeys(words, 1 / max(len(words), 1)))
        fillers = Counter(word for text in around for word in words_of(text))
        found, ends = array("i"), array("q", [0])
        for text in texts:
            kept = [word for word in item_words(text) if word in demands][:MAX_ITEM_WORDS]
            found.extend(numbers.setdefault(word, len(numbers)) for word in kept)
            ends.append(len(found))
        found, sizes = np.array(found, np.int32), np.diff(ends)
        of_items = np.full(
            (max(sizes.max(initial=1), len(known)), items + len(sizes)), len(numbers), np.int32
        )
        for row, old in zip(of_items, known, strict=False):  # it may be large: one copy
            row[:items] = np.where(old == len(self.weights) - 1, len(numbers), old)
        item = np.repeat(np.arange(len(sizes)), sizes)
        of_items[np.arange(len(found)) - np.array(ends)[item], items + item] = found
        having = np.zeros(len(numbers) + 1, np.int64)
        for row in of_items:
            having += np.bincount(row, minlength=len(having))
        having = having[:-1]
        a = np.array([demands[word] for word in numbers])
        b = np.array([fillers[word] for word in numbers]) * len(asked) / max(len(around), 1)
        trust = a / (a + b + 1)
        rarity = np.log(of_items.shape[1] / having)
        trust, weights = (np.append(v, 0).astype(np.float32) for v in (trust, trust * rarity))
        return LexicalTable(numbers, trust, weights, of_items)

    def arrays(self) -> LexicalArrays:
        """The arrays on the device."""
        return LexicalArrays(*map(jnp.asarray, (self.trust, self.weights, self.of_items)))

    def word_numbers(self, instructions: Sequence[str]) -> Int32[np.ndarray, "N n"]:
        """The numbers of the words of each instruction that some item has, padded with V - 1."""
        found = [
            [self.numbers[word] for word in words_of(text) if word in self.numbers]
            for text in instructions
        ]
        size = power_of_two(max(map(len, found), default=1))  # few sizes: each is compiled
        table = np.full((len(found), size), len(self.weights) - 1, np.int32)
        for row, words in enumerate(found):
            table[row, : len(words)] = words
        return table

    def save(self, folder: Path) -> None:
        """Writes words.json and words.npz."""
        (folder / "words.json").write_text(json.dumps(list(self.numbers), ensure_ascii=False))
        arrays = {name: getattr(self, name) for name in ("trust", "weights", "of_items")}
        np.savez_compressed(folder / "words.npz", **arrays)

    @classmethod
    def load(cls, folder: Path) -> LexicalTable:
        """What `save` wrote."""
        names = json.loads((folder / "words.json").read_text())
        with np.load(folder / "words.npz") as file:
            arrays = {name: file[name] for name in ("trust", "weights", "of_items")}
        return cls({name: number for number, name in enumerate(names)}, **arrays)

    def with_capacity(self, items: int, words: int, width: int) -> LexicalTable:
        """The same in arrays for so many items, words and words of an item, or more."""
        size = (max(width, self.of_items.shape[0]), max(items, self.of_items.shape[1]))
        words = max(words, len(self.weights))
        none = len(self.weights) - 1
        of_items = np.full(size, words - 1, np.int32)
        for row, known in zip(of_items, self.of_items, strict=False):  # it may be large: one copy
            row[: len(known)] = np.where(known == none, words - 1, known)
        trust, weights = np.zeros((2, words), np.float32)
        trust[:none], weights[:none] = self.trust[:none], self.weights[:none]
        return LexicalTable(self.numbers, trust, weights, of_items)


def words_of(text: str) -> list[str]:
    """The distinct words of `text`, in their order, without case, accents and punctuation.

    Worked example: "Peanut butter & Crème of peanut" -> ["peanut", "butter", "creme", "of"].
    """
    parts = _CUT.pre_tokenize_str(_PLAIN.normalize_str(text))
    return list(dict.fromkeys(part for part, _ in parts if any(c.isalnum() for c in part)))


def item_words(text: str) -> list[str]:
    """The distinct words of the values of an item's JSON text, whatever its fields are called."""
    return words_of(" ".join(_values(json.loads(text))))


def _values(node: Any) -> Iterable[str]:
    if isinstance(node, dict):
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            yield from _values(value)
    elif node is not None:
        yield str(node)
