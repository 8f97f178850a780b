"""Rules of a shop, whatever the model says: pin, boost, bury, at most n items of a category.

Filters come first, then boost and bury, then at_most, then pin. Rules of one kind act in the order
of their names. Each says in the item's reasons what it did.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sigma_jax.serving.api.models import Rule

CategoryOf = Callable[[str], str]  # item id -> name of its category; "" for none
Ranked = dict[str, Any]  # an item with item_id, title, probability and reasons
# Kind of a rule -> the fields that it has.
FIELDS = {
    "pin": ("items", "place"),
    "boost": ("items", "categories", "factor"),
    "bury": ("items", "categories", "factor"),
    "at_most": ("items", "categories", "count"),
}


def check_fields(rules: Mapping[str, Rule]) -> None:
    """ValueError if a rule sets a field that rules of its kind do not have."""
    for name, rule in rules.items():
        known = FIELDS[rule.kind]
        wrong = [
            field
            for field, value in rule.model_dump(exclude_defaults=True).items()
            if field not in (*known, "kind")
        ]
        if wrong:
            raise ValueError(
                f"rule {name!r}: {rule.kind} has no {wrong[0]}; it has {', '.join(known)}."
            )


@dataclasses.dataclass(frozen=True)
class Rules:
    """The rules of a tenant, by name."""

    by_name: Mapping[str, Rule]

    def without_pins(self) -> Rules:
        """The rules that put no items in."""
        return Rules({name: rule for name, rule in self.by_name.items() if rule.kind != "pin"})

    def apply(
        self, items: Sequence[Ranked], category_of: CategoryOf, find: Callable[[str], Ranked | None]
    ) -> list[Ranked]:
        """The items in a new order, some left out, some put in.

        Args:
          find: an item of the catalogue that may be shown, by its id; None without one.
        """
        ranked = [{**item, "reasons": list(item.get("reasons", ()))} for item in items]
        for name, rule in sorted(self.by_name.items()):
            if rule.kind in ("boost", "bury"):
                ranked = _weighted(ranked, name, rule, category_of)
        for name, rule in sorted(self.by_name.items()):
            if rule.kind == "at_most":
                ranked = _limited(ranked, name, rule, category_of)
        for name, rule in sorted(self.by_name.items()):
            if rule.kind == "pin":
                ranked = _pinned(ranked, name, rule, find)
        return ranked


def _concerns(rule: Rule, item: Ranked, category_of: CategoryOf) -> bool:
    """Whether a rule names an item or its category. A rule without names concerns all items."""
    if not rule.items and not rule.categories:
        return True
    if item["item_id"] in rule.items:
        return True
    return bool(rule.categories) and category_of(item["item_id"]) in rule.categories


def _weighted(
    items: Sequence[Ranked], name: str, rule: Rule, category_of: CategoryOf
) -> list[Ranked]:
    """The items by their probability, that of concerned ones times or divided by the factor.

    Items without a probability are weighed by their place, below those with one.
    """
    factor = rule.factor if rule.kind == "boost" else 1 / rule.factor
    known = [item["probability"] for item in items if item["probability"] is not None]
    least = min(known, default=1.0)
    scored = []
    for place, item in enumerate(items):
        weight = item["probability"] if item["probability"] is not None else least / (place + 1)
        if _concerns(rule, item, category_of):
            weight *= factor
            item = {**item, "reasons": [*item["reasons"], f"{rule.kind} x{factor:g} ({name})"]}
        scored.append((-weight, place, item))
    return [item for _, _, item in sorted(scored, key=lambda one: one[:2])]


def _limited(
    items: Sequence[Ranked], name: str, rule: Rule, category_of: CategoryOf
) -> list[Ranked]:
    """The items with at most `rule.count` of each concerned category."""
    counts: Counter[str] = Counter()
    kept = []
    for item in items:
        category = category_of(item["item_id"])
        if category and _concerns(rule, item, category_of):
            counts[category] += 1
            if counts[category] > rule.count:
                continue
        kept.append(item)
    return kept


def _pinned(
    items: Sequence[Ranked], name: str, rule: Rule, find: Callable[[str], Ranked | None]
) -> list[Ranked]:
    """The items with the pinned ones from place `rule.place` on."""
    listed = {item["item_id"]: item for item in items}
    pinned = [found for one in rule.items if (found := listed.get(one) or find(one)) is not None]
    names = {item["item_id"] for item in pinned}
    kept = [item for item in items if item["item_id"] not in names]
    reason = f"pinned ({name})"
    pinned = [{**item, "reasons": [*item.get("reasons", ()), reason]} for item in pinned]
    first = rule.place - 1
    return [*kept[:first], *pinned, *kept[first:]]
