"""Instructions of training as people would type them, for models that read sentence vectors.

A model that only sees a few wordings learns these wordings. So each query, category and theme is
put into several sentences: wordings of its task and everyday sentences (CARRIERS), with words left
out, words exchanged and typing errors. The sentences name no thing themselves, so they serve any
catalogue.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from sigma_jax.hashing import splitmix64
from sigma_jax.schema import TASKS, PreparedData
from sigma_jax.tasks.constraints import usable_slot_values
from sigma_jax.tasks.instructions import (
    NAMING,
    SLOTS,
    around_slots,
    clean,
    render,
    slot_value_texts,
    split_at_slot,
)

THING = "{thing}"
# What people say around a thing that they want.
CARRIERS = (
    "{thing}",
    "{thing} please",
    "{thing} for tonight",
    "{thing} for the weekend",
    "{thing} for two",
    "{thing} for my guests",
    "{thing} would be nice",
    "some {thing}",
    "any {thing} left?",
    "we are out of {thing}",
    "we ran out of {thing} this morning",
    "do you sell {thing}?",
    "do you have anything with {thing}",
    "i feel like {thing}",
    "i forgot {thing} last time",
    "i would love {thing}",
    "i have no {thing} at home",
    "i am thinking about {thing}",
    "my family wants {thing}",
    "my friend asked me for {thing}",
    "something with {thing}",
    "something like {thing}",
    "time for {thing}",
    "time to get {thing} again",
    "what about {thing}?",
    "what is the best {thing}?",
    "where is the {thing}?",
    "let us have {thing}",
    "put {thing} on the list",
    "how about {thing} today",
)
TYPING_ERRORS = 0.1  # share of the sentences with one
SHORT = 4  # words of at most so many letters have no typing errors


def composed_instructions(
    data: PreparedData,
    wordings: Mapping[str, Sequence[str]],
    variants: int,
    word_dropout: float,
    seed: int,
) -> Iterator[tuple[int, int, list[str]]]:
    """(task, slot value, sentences) for each task and each slot value that has items.

    A task without slots has one entry, with slot value 0 and all its wordings: each as it stands,
    and `variants` times with changed words. A theme has all wordings of its task too. A category
    has its `variants` strongest texts of the knowledge too.

    Args:
      wordings: task -> wordings.
      variants: sentences of a slot value.
      word_dropout: share of the words around a slot that is left out (half) or exchanged (half).
      seed: the sentences of a slot value depend on it, on the task and on the slot value only.
    """
    around = sorted({word for text in around_slots(wordings) for word in text.split()})
    for task, name in enumerate(TASKS):
        texts = slot_value_texts(data, name)
        for value in usable_slot_values(data, name).tolist():
            rng = np.random.default_rng(int(splitmix64(seed, task, value)))
            if name in SLOTS:
                sentences = _sentences(name, wordings[name], variants, rng)
                sentences = [_typed(s, texts[value], around, word_dropout, rng) for s in sentences]
                if name not in NAMING:  # there are few themes: each has all its wordings
                    plain = [render(name, texts[value], wording) for wording in wordings[name]]
                    sentences = plain + sentences
                if name == "Category" and data.knowledge is not None:
                    sentences += data.knowledge.of_category(value)[:variants]
            else:
                changed = [
                    _changed_words(wording, around, word_dropout, rng)
                    for wording in wordings[name]
                    for _ in range(variants)
                ]
                sentences = [*wordings[name], *changed]
            yield task, value, list(dict.fromkeys(sentences))


def _sentences(
    task: str, wordings: Sequence[str], count: int, rng: np.random.Generator
) -> list[tuple[str, str]]:
    """The words before and after the thing in `count` sentences, half of them of the task."""
    of_task = rng.permutation(len(wordings))[: -(-count // 2)]
    chosen = [split_at_slot(task, wordings[number]) for number in of_task]
    if task in NAMING:
        others = rng.permutation(len(CARRIERS))[: count - len(chosen)]
        chosen += [_split(CARRIERS[number]) for number in others]
    else:
        others = rng.integers(0, len(wordings), count - len(chosen))
        chosen += [split_at_slot(task, wordings[number]) for number in others]
    return chosen


def _split(carrier: str) -> tuple[str, str]:
    before, after = carrier.split(THING)
    return before.strip(), after


def _typed(
    sentence: tuple[str, str],
    thing: str,
    around: Sequence[str],
    word_dropout: float,
    rng: np.random.Generator,
) -> str:
    """The sentence with `thing` in it, and with changes."""
    before, after = (_changed_words(part, around, word_dropout, rng) for part in sentence)
    words = thing.split()
    if len(words) > 1 and rng.random() < word_dropout:
        words.pop(int(rng.integers(len(words))))
    typed = clean(" ".join([before, " ".join(words), after])).replace(" ?", "?")
    return with_typing_error(typed, rng) if rng.random() < TYPING_ERRORS else typed


def _changed_words(text: str, around: Sequence[str], share: float, rng: np.random.Generator) -> str:
    """`text` with a share of its words left out (half) or replaced by one of `around` (half)."""
    chance = rng.random(len(words := text.split()))
    kept = [
        around[int(rng.integers(len(around)))] if draw < share else word
        for word, draw in zip(words, chance, strict=True)
        if draw >= share / 2
    ]
    return " ".join(kept) or text


def with_typing_error(text: str, rng: np.random.Generator) -> str:
    """`text` with two letters of a long word exchanged, or one left out or doubled."""
    places = [
        place + offset
        for place, word in _words_with_places(text)
        if len(word) > SHORT
        for offset in range(1, len(word) - 1)  # the first letter is seldom wrong
    ]
    if not places:
        return text
    place = places[int(rng.integers(len(places)))]
    kind = rng.integers(3)
    if kind == 0:
        return text[:place] + text[place + 1] + text[place] + text[place + 2 :]
    return text[:place] + text[place] * (2 if kind == 1 else 0) + text[place + 1 :]


def _words_with_places(text: str) -> Iterator[tuple[int, str]]:
    place = 0
    for word in text.split(" "):
        yield place, word
        place += len(word) + 1
