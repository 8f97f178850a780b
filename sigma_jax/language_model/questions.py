"""Questions to a language model about a catalogue, and how its replies are read.

| question | its reply becomes |
|---|---|
| what do people say who want things of a category? | texts that speak of the category |
| which kinds of things does a season or a festival call for? | its name, for each category named |

Only the catalogue is in the questions, so they serve any shop.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from sigma_jax.schema import PreparedData

TITLES = 5  # of the most popular items of a category, which show what it holds
CATEGORIES_AT_ONCE = 200  # that a question about a theme lists
MAX_CHARS = 200  # of a text; a longer one is no sentence that a person says
SYSTEM = "You help a shop to understand its customers. You answer in JSON only."
SAYINGS = """A category of our shop is called "{category}". Some of its items: {titles}.
Write {count} short, different sentences of customers who need things of this category. They tell a
need, a problem, a plan or an occasion in everyday words. They do not name the category or an item.
Answer with a JSON list of strings."""
CALLED_FOR = """These are categories of our shop:
{categories}
Which of them do people buy from for "{theme}" much more than at other times?
Answer with a JSON list of at most {count} names out of this list."""


@dataclasses.dataclass(frozen=True)
class Question:
    """One question; the theme is None where it asks what people say."""

    prompt: str
    categories: tuple[str, ...]  # one, or those that the question lists
    theme: str | None
    count: int  # most texts of a reply

    @property
    def messages(self) -> list[dict[str, str]]:
        """The question as a chat."""
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": self.prompt}]

    def rows(self, reply: str) -> list[dict[str, Any]]:
        """Rows of the table `knowledge`; [] for a reply that is nonsense."""
        if self.theme is None:
            return [
                {"text": text, "category": self.categories[0]}
                for text in texts_of(reply, self.categories[0])[: self.count]
            ]
        names = {name.casefold(): name for name in self.categories}
        named = [names.get(text.casefold()) for text in texts_of(reply)]
        found = dict.fromkeys(name for name in named if name)
        return [{"text": self.theme, "category": name} for name in list(found)[: self.count]]


def questions_of(data: PreparedData, count: int) -> Iterator[Question]:
    """The questions about the categories and themes of `data`, always in the same order.

    Args:
      count: texts of a category, and categories of a theme.
    """
    catalogue = data.catalogue
    names = catalogue.categories.to_pylist()
    items = catalogue.items_of_categories()
    for number, name in enumerate(names):
        titles = "; ".join(catalogue.titles(items.of(number)[:TITLES]))
        prompt = SAYINGS.format(category=name, titles=titles, count=count)
        yield Question(prompt, (name,), None, count)
    themes = data.themes.names.to_pylist() if data.themes is not None else []
    for theme in themes:
        for start in range(0, len(names), CATEGORIES_AT_ONCE):
            part = tuple(names[start : start + CATEGORIES_AT_ONCE])
            prompt = CALLED_FOR.format(categories="\n".join(part), theme=theme, count=count)
            yield Question(prompt, part, theme, count)


def texts_of(reply: str, forbidden: str = "") -> list[str]:
    """The texts of a reply: a JSON list of strings, or else one text a line.

    Args:
      forbidden: a text that is only this says nothing, and is left out.
    """
    texts = [" ".join(text.split()) for text in _json_strings(reply) or _lines(reply)]
    kept = (text for text in texts if text.casefold() != forbidden.casefold())
    return list(dict.fromkeys(text for text in kept if _is_sentence(text)))


def _json_strings(reply: str) -> list[str]:
    """The strings of the first JSON list in a reply; [] if there is none."""
    start, end = reply.find("["), reply.rfind("]")
    try:
        found = json.loads(reply[start : end + 1]) if 0 <= start < end else []
    except ValueError:
        return []
    return [text for text in found if isinstance(text, str)]


def _lines(reply: str) -> list[str]:
    """The lines of a reply without the numbers, dots and quotes that models put around texts."""
    lines = [re.sub(r"^\s*(?:[-*•]|\d+[.)])\s*", "", line) for line in reply.splitlines()]
    return [line.strip().strip("\"'“”,").strip() for line in lines]


def _is_sentence(text: str) -> bool:
    """Whether a person may say it: some letters, not too long, and no brackets of a program."""
    return (
        2 < len(text) <= MAX_CHARS
        and any(c.isalpha() for c in text)
        and not set("{}[]<>`") & set(text)
        and text.isprintable()
    )


def distinct(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without those that are equal to one before."""
    first: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        first.setdefault((row["text"].casefold(), row["category"]), row)
    return list(first.values())
