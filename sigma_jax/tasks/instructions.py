"""Wordings of the seven tasks of section 2.3 of SIGMA, and the values of their slots.

A slot ({query}, {category}, {theme}) follows a space, and ends the wording or is followed by a
space. So the words around a slot and the words in it can be tokenised apart and joined.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from sigma_jax.schema import TASKS, PreparedData

SLOTS = {"Query": "{query}", "Category": "{category}", "Season": "{theme}", "Holiday": "{theme}"}
NAMING = ("Query", "Category")  # tasks whose instructions name a thing

TRAIN_WORDINGS: dict[str, tuple[str, ...]] = {
    "JustForYou": (
        "recommend something for me",
        "what should i buy next?",
        "pick the items i will want next",
        "show me what fits my taste",
        "choose the next items for this customer",
        "surprise me with things i will like",
        "what goes well with what i bought?",
        "anything else for my basket?",
        "what would you suggest to me?",
        "more of what i enjoy",
        "make me a list of items i would love",
        "give me ideas for my next order",
        "what do people like me buy?",
        "items that match my history",
        "choose for me",
        "what am i likely to want now?",
    ),
    "Query": (
        "i am looking for {query}",
        "find {query} for me",
        "search: {query}",
        "where can i get {query} that suits me?",
        "show results for {query}",
        "i need {query}",
        "please get {query}",
        "can you show me {query} i would like?",
        "which {query} should i take?",
        "get me {query}",
        "i want to buy {query} today",
        "what {query} is there?",
        "i could use {query} now",
        "help me choose {query}",
        "anything like {query} in stock?",
        "best {query} for me",
    ),
    "Category": (
        "recommend something in the category {category}",
        "only show items of the category {category}",
        "i want to browse {category}",
        "what is good in {category} for me?",
        "something from {category} please",
        "my next purchase in {category}",
        "show me {category}",
        "which {category} would i enjoy?",
        "pick {category} for me",
        "i would like {category} next",
        "help me choose in {category}",
        "nothing but {category} this time",
        "what should i get from {category}",
        "let me see {category} that fits me",
        "more {category} for me",
        "find me {category} i will like",
    ),
    "Longtail": (
        "show me niche items few people buy",
        "recommend something off the beaten track",
        "which lesser known items would i like?",
        "hidden gems for me please",
        "nothing everyone buys, something rare",
        "find unusual items that suit me",
        "something most people do not know",
        "show me what hardly anyone buys",
        "i like rare things",
        "no bestsellers please",
        "what is overlooked but right for me?",
        "surprise me with little known items",
        "i am tired of the popular stuff",
        "the less common choice for me",
        "which seldom bought items fit me?",
        "find me an insider tip",
    ),
    "Discover": (
        "help me discover something new",
        "recommend from a category i never bought from",
        "what have i not tried yet?",
        "show me things outside my usual choices",
        "widen my horizon with new kinds of items",
        "i want to try a new kind of item",
        "what kinds of things do i miss?",
        "take me somewhere new",
        "something different from what i usually get",
        "show me categories i have never tried",
        "i am bored of my usual items",
        "what could i try for the first time?",
        "lead me to an unknown aisle",
        "a change from my habits please",
        "which new category would suit me?",
        "introduce me to something i never had",
    ),
    "Season": (
        "recommend items for {theme}",
        "what do i need this {theme} season?",
        "get me ready for the season: {theme}",
        "it is {theme} now, what suits me?",
        "seasonal picks for {theme} please",
        "the best things to buy in {theme}",
        "what sells well in {theme} for people like me?",
        "my {theme} shopping list",
        "ideas for {theme}",
        "show me typical {theme} items",
        "what does one need in {theme} ?",
        "the {theme} season is here, help me choose",
        "find what i want in {theme}",
        "things for {theme} please",
        "pick my {theme} items",
        "stock me up for {theme}",
    ),
    "Holiday": (
        "recommend items for {theme}",
        "what do i need to celebrate {theme} this year?",
        "i am shopping for the holiday {theme}",
        "what should i buy with {theme} coming up?",
        "festive picks for {theme} please",
        "help me prepare for {theme}",
        "soon it is {theme} and i need help",
        "my shopping list for {theme}",
        "what do people buy for {theme} ?",
        "ideas for {theme}",
        "everything i need for {theme}",
        "show me typical {theme} items",
        "we celebrate {theme} at home, what do we need?",
        "find treats for {theme}",
        "pick something for {theme}",
        "what is missing for our {theme} ?",
    ),
}

# Never trained, so that evaluation measures whether instructions are understood.
HELDOUT_WORDINGS: dict[str, tuple[str, ...]] = {
    "JustForYou": ("what else would i like?", "suggest items made for me"),
    "Query": ("do you have {query} for someone like me?", "please look up {query}"),
    "Category": ("suggest a few items from {category}", "i am interested in {category} today"),
    "Longtail": ("recommend rare finds for me", "what would i like that is not popular?"),
    "Discover": ("suggest a kind of item i have not bought before", "something new to me please"),
    "Season": (
        "suggest things that go with {theme}",
        "what is worth getting for {theme} now?",
    ),
    "Holiday": ("suggest things that go with {theme}", "what should i get before {theme} begins?"),
}

# For a model trained on histories alone: an empty instruction asks for the next item.
WITHOUT_INSTRUCTIONS = TRAIN_WORDINGS | {"JustForYou": ("",)}

# Text between the parts of a prompt (prompts/tokens.py).
FAVOURITES_TEXT = "\nbought most often: "
HISTORY_TEXT = "\nbought lately: "
SESSION_END_TEXT = "\n"


def clean(text: str) -> str:
    """`text` as a person would type it: lower case, single spaces.

    Worked example: "  FROZEN   Pizza " -> "frozen pizza".
    """
    return re.sub(r"\s+", " ", text).strip().lower()


def slot_value_texts(data: PreparedData, task: str) -> list[str]:
    """The text of each slot value of `task` as a person would type it; [] for tasks without a slot.

    A slot value is a number: of a query, category or theme of `data`.
    """
    source = {
        "Query": data.queries.texts if data.queries is not None else None,
        "Category": data.catalogue.categories,
        "Season": data.themes.names if data.themes is not None else None,
        "Holiday": data.themes.names if data.themes is not None else None,
    }.get(task)
    return [clean(text or "") for text in source.to_pylist()] if source else []


def trained_wordings(has_instructions: bool) -> dict[str, tuple[str, ...]]:
    """The trained wordings of each task; without instructions, JustForYou has the empty wording."""
    return TRAIN_WORDINGS if has_instructions else WITHOUT_INSTRUCTIONS


def render(task: str, slot_value_text: str | None, wording: str) -> str:
    """The instruction: `wording` of `task` with its slot filled.

    Raises:
      ValueError: the task has a slot and there is no text for it.
    """
    if task not in SLOTS:
        return wording
    if not slot_value_text:
        raise ValueError(f"task {task} needs a {SLOTS[task][1:-1]}; name one.")
    return wording.replace(SLOTS[task], clean(slot_value_text))


def split_at_slot(task: str, wording: str) -> tuple[str, str]:
    """The words before the slot, without the space before it, and the words after the slot.

    Worked example: "find {query} for me" -> ("find", " for me").
    """
    if task not in SLOTS:
        return wording, ""
    before, after = wording.split(SLOTS[task])
    return before.removesuffix(" "), after


def all_sentences() -> list[str]:
    """Every fixed text of prompts, to train a text tokenizer on."""
    fixed = [FAVOURITES_TEXT, HISTORY_TEXT, SESSION_END_TEXT]
    return fixed + around_slots(TRAIN_WORDINGS) + around_slots(HELDOUT_WORDINGS)


def around_slots(wordings: Mapping[str, Sequence[str]]) -> list[str]:
    """Each wording of each task without its slot."""
    return [" ".join(split_at_slot(task, wording)) for task in TASKS for wording in wordings[task]]


def available_tasks(data: PreparedData) -> dict[str, str | None]:
    """Task -> None if `data` has targets for it, otherwise the reason why not."""
    catalogue, themes = data.catalogue, data.themes
    has_categories = len(catalogue.categories) > 1 and bool((catalogue.category >= 0).any())
    no_category = None if has_categories else "the items have fewer than two categories"
    has_queries = data.queries is not None and len(data.queries.items.targets) > 0
    kinds = set()  # of themes with both dates and items
    if themes is not None:
        has_items = np.diff(themes.items.offsets) > 0
        dated = np.unique(themes.period_theme)
        kinds = {themes.kinds[int(theme)].as_py() for theme in dated if has_items[theme]}
    popularity = np.asarray(catalogue.popularity)
    is_flat = len(popularity) == 0 or popularity.max() == popularity.min()
    return {
        "JustForYou": None,
        "Query": None if has_queries else "the data has no searches",
        "Category": no_category,
        "Longtail": "all items are equally popular" if is_flat else None,
        "Discover": no_category,
        "Season": None if "season" in kinds else "no theme of kind season has dates and items",
        "Holiday": None if "holiday" in kinds else "no theme of kind holiday has dates and items",
    }
