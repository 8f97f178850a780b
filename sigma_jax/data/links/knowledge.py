"""Knowledge: what people say when they want items (the third view of section 2.1 of SIGMA).

A row of the user's table says that a text speaks of an item or of a category: "my head hurts" of
the category pain relief. `python -m sigma_jax.knowledge` writes such a table.
"""

from __future__ import annotations

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa

from sigma_jax.data import database
from sigma_jax.schema import Catalogue, Knowledge, Links


def build_knowledge(
    con: ibis.BaseBackend,
    given: ir.Table,
    items: ir.Table,
    catalogue: Catalogue,
    separator: str,
) -> tuple[Knowledge | None, int]:
    """The rows that speak of the catalogue, strongest first, and the number of the other rows.

    A row speaks of its item, or of the category whose name is the same but for capitals and blanks.
    Of a category path the last level counts, as in the catalogue.

    Args:
      given: the user's table as of `Checker.knowledge`.
      items: item, item_id: the catalogue.
      catalogue: the same, with its categories.
      separator: between the levels of a category path.
    """
    names = catalogue.categories.to_pylist()
    number = {_plain(name): index for index, name in enumerate(names)}
    rows = given.left_join(items.select("item_id", "item"), "item_id")
    rows = rows.select("source_row", "text", "category", "weight", "item", asked="item_id")
    ordered = rows.order_by(ibis.desc("weight"), "source_row")
    texts: list[str] = []
    places: list[tuple[int, int, float]] = []
    for row in database.rows(con, ordered):
        item = -1 if row["item"] is None else int(row["item"])
        if row["asked"] is not None:
            category = int(catalogue.category[item]) if item >= 0 else -1
        else:
            category = number.get(_plain(row["category"].split(separator)[-1]), -1)
        if item >= 0 or (row["asked"] is None and category >= 0):
            texts.append(row["text"])
            places.append((item, category, row["weight"]))
    dropped = database.count(con, given) - len(texts)
    if not texts:
        return None, dropped
    item, category, weight = map(np.array, zip(*places, strict=True))
    knowledge = Knowledge(
        pa.array(texts, pa.string()),
        item.astype(np.int32),
        category.astype(np.int32),
        weight.astype(np.float32),
        None,
    )
    return knowledge, dropped


def _plain(name: str) -> str:
    return " ".join(name.casefold().split())


def items_of_knowledge(knowledge: Knowledge, catalogue: Catalogue, count: int) -> Links:
    """The items that each text speaks of: one, or the `count` most popular ones of a category."""
    of_category = catalogue.items_of_categories()
    targets = [
        np.array([item], np.int32) if item >= 0 else of_category.of(category)[:count]
        for item, category in zip(knowledge.item, knowledge.category, strict=True)
    ]
    rows = np.repeat(np.arange(len(targets)), list(map(len, targets)))
    return Links.from_edges(rows, np.concatenate(targets), len(targets))
