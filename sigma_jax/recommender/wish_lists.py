"""Lists for wishes: unwanted items are left out, and the lists of several things take turns.

Axes: N requests, R lists (one for each thing of a request), n items of a list, k items wanted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import Int

from sigma_jax.recommender.explanations import Explanations
from sigma_jax.recommender.ranking import Recommendations
from sigma_jax.recommender.wishes import Wish, WishReader
from sigma_jax.schema import RequestBatch

# A list from which items are left out is this much longer at first, and at least so long.
LONGER, AT_LEAST = 8, 100
OF_ITEMS = ("items", "log_probs", "beam_scores", "beams", "cosines")  # fields of each item
NOTHING = {"items": -1, "beams": -1}  # of a place without an item; others: -inf

Recommend = Callable[[RequestBatch, int], Recommendations]  # requests and the length of a list


def recommend_wishes(
    batch: RequestBatch, reader: WishReader, recommend: Recommend, count: int, num_items: int
) -> Recommendations:
    """The lists of `recommend` for requests whose instructions are taken apart where needed.

    Args:
      count: items of a list.
      num_items: of the catalogue.
    """
    texts = batch.requests.instruction
    wishes = {text: reader.read(text) for text in dict.fromkeys(texts)}
    is_plain = np.array([wishes[text] == Wish((text,)) for text in texts], bool)
    if is_plain.all():
        return recommend(batch, count)
    order = np.argsort(~is_plain, kind="stable")  # plain ones first
    plain, special = np.split(order, [int(is_plain.sum())])
    found = [recommend(batch.take(plain), count)] if len(plain) else []
    of_special = [wishes[texts[row]] for row in special.tolist()]
    found.append(_of_wishes(batch.take(special), of_special, reader, recommend, count, num_items))
    place = np.argsort(order)
    return jax.tree.map(lambda *parts: np.concatenate(parts)[place], *found)


def _of_wishes(
    batch: RequestBatch,
    wishes: Sequence[Wish],
    reader: WishReader,
    recommend: Recommend,
    count: int,
    num_items: int,
) -> Recommendations:
    """The lists of requests with a wish each."""
    owner = np.repeat(np.arange(len(wishes)), [len(wish.things) for wish in wishes])
    asked = batch.take(owner)
    things = [thing for wish in wishes for thing in wish.things]
    asked = dataclasses.replace(
        asked, requests=dataclasses.replace(asked.requests, instruction=things)
    )
    length = count
    if any(wish.is_filtered for wish in wishes):
        length = max(min(max(LONGER * count, AT_LEAST), num_items), count)
    answer = recommend(asked, length)
    wanted = [
        np.flatnonzero((items >= 0) & ~reader.is_unwanted(wishes[int(number)], items))
        for number, items in zip(owner, answer.items, strict=True)
    ]
    first = np.searchsorted(owner, np.arange(len(wishes)))  # list of each request's first thing
    rows, columns = np.tile(first[:, None], (1, count)), np.full((len(wishes), count), -1)
    for number in range(len(wishes)):
        lists = np.flatnonzero(owner == number)
        picked = in_turns([(row, answer.items[row], wanted[row]) for row in lists], count)
        for place, (row, column) in enumerate(picked):
            rows[number, place], columns[number, place] = row, column
    return _picked(answer, first, rows, columns)


def _picked(
    answer: Recommendations,
    first: Int[np.ndarray, " N"],
    rows: Int[np.ndarray, "N k"],
    columns: Int[np.ndarray, "N k"],
) -> Recommendations:
    """The items at some places of lists; what a request has once is that of its first thing.

    Args:
      first: the list of each request's first thing.
      rows: the list of each item.
      columns: the place in this list; -1 for no item.
    """
    fields = {}
    for field in dataclasses.fields(Recommendations):
        values = getattr(answer, field.name)
        if field.name == "explanations":
            continue
        if field.name not in OF_ITEMS:
            fields[field.name] = values[first]
            continue
        nothing = NOTHING.get(field.name, -np.inf)
        found = np.where(columns >= 0, values[rows, columns], nothing)
        fields[field.name] = found.astype(values.dtype)
    explanations = answer.explanations
    if explanations is not None:
        explanations = Explanations(
            jax.tree.map(lambda values: values[rows, columns], explanations.of_items),
            explanations.codes[first],
            explanations.scores[first],
        )
    return Recommendations(**fields, explanations=explanations)


def in_turns(
    lists: Sequence[tuple[int, np.ndarray, np.ndarray]], count: int
) -> list[tuple[int, int]]:
    """The places (list, column) of at most `count` distinct items; the lists take turns.

    Worked example, lists 0: [7, 8], 1: [7, 9]: items 7, 9, 8, so places (0, 0), (1, 1), (0, 1).

    Args:
      lists: number, items and wanted columns of each list, best first.
    """
    waiting = [(number, items, iter(columns)) for number, items, columns in lists]
    picked: list[tuple[int, int]] = []
    taken: set[int] = set()
    while waiting and len(picked) < count:
        number, items, columns = waiting.pop(0)
        column = next((c for c in columns if int(items[c]) not in taken), None)
        if column is not None:
            taken.add(int(items[column]))
            picked.append((number, int(column)))
            waiting.append((number, items, columns))
    return picked
