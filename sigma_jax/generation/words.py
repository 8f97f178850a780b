"""Which words of an instruction stand in the items' texts.

A model with a vocabulary of its own, trained for minutes on a few thousand searches, has met most
words of a catalogue a handful of times. What a shop's search box does needs no training: an item is
what was asked for where its text has the words that were said, the rare ones above all.

Axes: I items, W words of an item, N requests, n words of an instruction.
"""

from __future__ import annotations

import dataclasses
import json
import re
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32

from sigma_jax.generation.trie import power_of_two

MOST_OF_ITEM = 64  # words of an item's text, the first ones: titles stand first


@dataclasses.dataclass(frozen=True)
class WordTable:
    """The words of a catalogue."""

    numbers: dict[str, int]
    # log(I / items that have the word), with 0 behind the last up to a power of two: few sizes, so
    # that another catalogue does not compile again. The last place is of no word.
    rarity: Float32[np.ndarray, " V"]
    of_items: Int32[np.ndarray, "W I"]  # padded with V - 1

    @classmethod
    def make(cls, texts: Iterable[str], unsaid: Iterable[str] = ()) -> WordTable:
        """Of the items' JSON `texts`; sentences `unsaid` have words that ask for nothing."""
        ignored = {word for sentence in unsaid for word in words_of(sentence)}
        numbers: dict[str, int] = {}
        found, ends = array("i"), array("q", [0])
        for text in texts:
            kept = [word for word in item_words(text) if word not in ignored][:MOST_OF_ITEM]
            found.extend(numbers.setdefault(word, len(numbers)) for word in kept)
            ends.append(len(found))
        found, sizes = np.array(found, np.int32), np.diff(ends)
        size = power_of_two(len(numbers) + 1)
        of_items = np.full((max(sizes.max(initial=0), 1), len(sizes)), size - 1, np.int32)
        item = np.repeat(np.arange(len(sizes)), sizes)
        of_items[np.arange(len(found)) - np.array(ends)[item], item] = found
        rarity = np.zeros(size, np.float32)
        rarity[: len(numbers)] = np.log(len(sizes) / np.bincount(found, minlength=len(numbers)))
        return cls(numbers, rarity, of_items)

    def of(self, instructions: Sequence[str]) -> Int32[np.ndarray, "N n"]:
        """The words of each instruction that some item has, padded with V - 1."""
        found = [
            [self.numbers[word] for word in words_of(text) if word in self.numbers]
            for text in instructions
        ]
        size = power_of_two(max(map(len, found), default=1))
        table = np.full((len(found), size), len(self.rarity) - 1, np.int32)
        for row, words in enumerate(found):
            table[row, : len(words)] = words
        return table


def words_of(text: str) -> list[str]:
    """The distinct words of `text`, in their order.

    Worked example: "Peanut butter & peanut oil" -> ["peanut", "butter", "oil"].
    """
    return list(dict.fromkeys(re.findall(r"\w+", text.casefold())))


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
