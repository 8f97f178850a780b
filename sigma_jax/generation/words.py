"""Which words of an instruction stand in the items' texts.

A model with a vocabulary of its own, trained for minutes on a few thousand searches, has met most
words of a catalogue a handful of times. What a shop's search box does needs no training: an item is
what was asked for where its text has the words that were said, the rare ones above all. Not every
word asks for something, and which do is not a matter of language but of the data: with a the
queries, categories and themes that have a word, each divided among its words ("on" is a fifth of
"tomatoes hothouse on the vine"), and b the wordings around them that have it, if there were as many
of these,

    trust = a / (a + b + 1),    weight = trust * log(items / items that have it)

A word that only items have is not read. Nor are words of scripts without spaces, but for Chinese
characters, each of which is one.

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

import numpy as np
from jaxtyping import Float32, Int32
from tokenizers import normalizers, pre_tokenizers

from sigma_jax.generation.trie import power_of_two

NONE = np.int32(-1)
MOST_OF_ITEM = 64  # words of an item's text, the first ones: titles stand first

_PLAIN = normalizers.Sequence([normalizers.NFKC(), normalizers.BertNormalizer()])
_CUT = pre_tokenizers.BertPreTokenizer()


@dataclasses.dataclass(frozen=True)
class WordTable:
    """The words of a catalogue; the last of V stands for none and weighs nothing."""

    numbers: dict[str, int]
    trust: Float32[np.ndarray, " V"]
    weights: Float32[np.ndarray, " V"]
    of_items: Int32[np.ndarray, "W I"]  # padded with V - 1

    @classmethod
    def make(cls, texts: Iterable[str], asked: Iterable[str], around: Sequence[str]) -> WordTable:
        """Of the items' JSON `texts`, where people ask for `asked` in the wordings `around`."""
        return cls._over({}, np.zeros((1, 0), np.int32), texts, asked, around)

    def grown(
        self, items: int, texts: Iterable[str], asked: Iterable[str], around: Sequence[str]
    ) -> WordTable:
        """The table that `make` gives with `texts` behind those of the first `items` items, which
        are not read again."""
        known = np.where(self.of_items == len(self.weights) - 1, NONE, self.of_items)[:, :items]
        return self._over(dict(self.numbers), known, texts, asked, around)

    @classmethod
    def _over(
        cls,
        numbers: dict[str, int],
        known: Int32[np.ndarray, "W I"],
        texts: Iterable[str],
        asked: Iterable[str],
        around: Sequence[str],
    ) -> WordTable:
        """`known` words of the first items, padded with NONE, and those of `texts`."""
        asked = [words_of(text) for text in set(asked)]
        demands = Counter()
        for words in asked:
            demands.update(dict.fromkeys(words, 1 / max(len(words), 1)))
        fillers = Counter(word for text in around for word in words_of(text))
        found, ends = array("i"), array("q", [0])
        for text in texts:
            kept = [word for word in item_words(text) if word in demands][:MOST_OF_ITEM]
            found.extend(numbers.setdefault(word, len(numbers)) for word in kept)
            ends.append(len(found))
        found, sizes = np.array(found, np.int32), np.diff(ends)
        items = known.shape[1] + len(sizes)
        of_items = np.full((max(sizes.max(initial=1), len(known)), items), NONE)
        of_items[: len(known), : known.shape[1]] = known
        item = np.repeat(np.arange(len(sizes)), sizes)
        of_items[np.arange(len(found)) - np.array(ends)[item], known.shape[1] + item] = found
        having = np.bincount(of_items[of_items >= 0], minlength=len(numbers))
        a = np.array([demands[word] for word in numbers])
        b = np.array([fillers[word] for word in numbers]) * len(asked) / max(len(around), 1)
        trust = a / (a + b + 1)
        rarity = np.log(items / having)
        trust, weights = (np.append(v, 0).astype(np.float32) for v in (trust, trust * rarity))
        return cls(numbers, trust, weights, np.where(of_items < 0, len(numbers), of_items))

    def of(self, instructions: Sequence[str]) -> Int32[np.ndarray, "N n"]:
        """The words of each instruction that some item has, padded with V - 1."""
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
    def load(cls, folder: Path) -> WordTable:
        """What `save` wrote."""
        names = json.loads((folder / "words.json").read_text())
        with np.load(folder / "words.npz") as file:
            arrays = {name: file[name] for name in ("trust", "weights", "of_items")}
        return cls({name: number for number, name in enumerate(names)}, **arrays)

    def with_room(self, items: int, words: int, width: int) -> WordTable:
        """The same in arrays for so many items, words and words of an item, or more."""
        size = (max(width, self.of_items.shape[0]), max(items, self.of_items.shape[1]))
        words = max(words, len(self.weights))
        none = len(self.weights) - 1
        of_items = np.full(size, words - 1, np.int32)
        known = np.where(self.of_items == none, words - 1, self.of_items)
        of_items[: known.shape[0], : known.shape[1]] = known
        trust, weights = np.zeros((2, words), np.float32)
        trust[:none], weights[:none] = self.trust[:none], self.weights[:none]
        return WordTable(self.numbers, trust, weights, of_items)


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
