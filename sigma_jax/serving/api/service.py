"""What a service answers for one tenant: lists of the index, requests at once, popular items."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sigma_jax.recommender.recommender import RecommendOptions
from sigma_jax.serving.api.models import Answer, Ask, Item, Rule, Seen
from sigma_jax.serving.api.rules import Ranked, Rules
from sigma_jax.serving.engine import CatalogueSnapshot, RecommendationEngine
from sigma_jax.serving.load import BeamChooser, FewerBeams, Load
from sigma_jax.serving.nearline import request_row
from sigma_jax.serving.stores.base import StoredList, TenantStore

COMPUTED = 100  # items of a computed list, of which filters leave some; one number, one program
POPULAR = 1_000  # most popular items that stand in for a list
FRESH_SECONDS = 1.0  # states and rules are read again after it; changes by this process at once
EVENTS = 1_000  # newest events of a user that requests and `seen` read
RULE = "rule"  # kind of documents
WARM_WORDS = 20  # of the longest sentence that a service warms up with
WARM_STEP = 8  # events between two histories that a service warms up with


@dataclasses.dataclass(frozen=True)
class Filters:
    """What an answer may hold."""

    count: int
    categories: frozenset[str] = frozenset()  # none: all
    exclude: frozenset[str] = frozenset()  # item ids
    seen: Seen = "show"
    explain: bool = False

    @classmethod
    def of(cls, ask: Ask) -> Filters:
        """The filters of a request."""
        exclude = frozenset(ask.exclude)
        return cls(ask.count, frozenset(ask.categories), exclude, ask.seen, ask.explain)


class TenantService:
    """One tenant: an export, and rows in a store. All methods may run in several threads."""

    def __init__(
        self,
        engine: RecommendationEngine,
        store: TenantStore,
        clock: Callable[[], float] = time.time,
        fewer_beams: Sequence[FewerBeams] = (),
    ):
        """Args:
        clock: the time of requests, in unix seconds; a replay of a log has one of its own.
        fewer_beams: rules for times of high load. None: requests always get all beams.
        """
        self.engine, self.store, self.clock = engine, store, clock
        self.chooser = BeamChooser(fewer_beams)
        self._lock = threading.Lock()
        self._read_at = -np.inf
        self._hidden: frozenset[str] = frozenset()
        self._rules = Rules({})
        self._popular: tuple[str, list[Ranked]] = ("", [])

    def recommendations(self, user_id: str, name: str, filters: Filters) -> Answer:
        """A list of the index; the most popular items for users without one."""
        stored = self.store.list_of(user_id, name)
        if stored is None:
            return self.popular(user_id, filters)
        return self._answer(user_id, "", "index", stored.items, filters, stored)

    def compute(self, asks: Sequence[Ask], load: Load = Load()) -> list[Answer | ValueError]:
        """The answers to requests, computed now; an error where one cannot be answered."""
        began, now = time.monotonic(), int(self.clock())
        share = self.chooser.share(len(asks), load)
        rows = []
        for ask in asks:
            user = ask.user_id or "anyone"
            events, profile = [], None
            if ask.user_id:
                events, _ = self.store.events(ask.user_id, EVENTS)
                profile = self.store.user(ask.user_id)
            row = request_row(self.engine, user, profile or {}, events, now)
            rows.append(row | {"instruction": ask.instruction})
        hidden, _ = self._settings()
        options = RecommendOptions(COMPUTED, beam_share=share)
        found = self.engine.answer_each(rows, options, hidden)
        beams = self.engine.beams(share)
        self.chooser.took(len(asks), share, time.monotonic() - began)
        answers: list[Answer | ValueError] = []
        for ask, one in zip(asks, found, strict=True):
            if isinstance(one, ValueError):
                answers.append(one)
                continue
            filters = Filters.of(ask)
            made = self._answer(ask.user_id, one["instruction"], "computed", one["items"], filters)
            answers.append(made.model_copy(update={"beams": beams}))
        return answers

    def popular(self, user_id: str, filters: Filters) -> Answer:
        """The items with most interactions in the training."""
        return self._answer(user_id, "", "popular", self._popular_items(), filters)

    def similar(self, item_id: str, filters: Filters) -> Answer:
        """The items whose vectors are nearest to that of an item. KeyError for an unknown one."""
        snapshot = self.engine.current
        number = snapshot.parser.item_index.find(item_id)
        if number is None:
            raise KeyError(item_id)
        version = snapshot.version
        vectors = np.asarray(version.fused[: len(version)], np.float32)
        cosines = np.where(version.is_active[: len(version)], vectors @ vectors[number], -np.inf)
        cosines[number] = -np.inf
        count = min(COMPUTED, len(cosines))
        best = np.argpartition(-cosines, count - 1)[:count]
        best = best[np.argsort(-cosines[best], kind="stable")]
        items = self._items(snapshot, best[np.isfinite(cosines[best])])
        return self._answer("", "", "similar", items, filters)

    def shown_item(self, item_id: str) -> Ranked | None:
        """An item of the catalogue that may be shown; None without one."""
        snapshot = self.engine.current
        number = snapshot.parser.item_index.find(item_id)
        hidden, _ = self._settings()
        if number is None or item_id in hidden or not self.is_offered(item_id):
            return None
        return self._items(snapshot, np.array([number]))[0]

    def is_offered(self, item_id: str) -> bool:
        """Whether the catalogue has an item, and it is not removed."""
        snapshot = self.engine.current
        number = snapshot.parser.item_index.find(item_id)
        return number is not None and bool(snapshot.version.is_active[number])

    def category_of(self, item_id: str) -> str:
        """The category of an item; "" for none."""
        catalogue = self.engine.current.version.catalogue
        number = self.engine.current.parser.item_index.find(item_id)
        category = -1 if number is None else int(catalogue.category[number])
        return "" if category < 0 else str(catalogue.categories[category].as_py())

    def title_of(self, item_id: str) -> str:
        """The title of an item; "" for an unknown one."""
        snapshot = self.engine.current
        number = snapshot.parser.item_index.find(item_id)
        return "" if number is None else snapshot.version.catalogue.titles(np.array([number]))[0]

    def warm(self) -> None:
        """Answers made-up requests, so that later ones find their programs compiled.

        Programs depend on the length of a prompt and of an instruction, and on whether the
        instruction is novel.
        """
        encoder = self.engine.current.recommender.parts.encoder
        if encoder is not None:
            for words in range(1, WARM_WORDS + 1):
                encoder.encoder.encode_queries(["word " * words])
        for row in self._warm_rows():
            self.engine.answer_each([row], RecommendOptions(COMPUTED))

    def warm_fewer_beams(self, sizes: Sequence[int]) -> Iterator[None]:
        """Compiles the programs of all shares of the beams, one at each step of the iteration.

        A share may be used for batches of a size when all its programs are compiled.

        Args:
          sizes: of batches. Batches of other sizes always get all beams.
        """
        for size in sizes:
            for share in (1.0, *(rule.share for rule in self.chooser.rules)):
                options, rows = RecommendOptions(COMPUTED, beam_share=share), []
                for row in self._warm_rows():
                    rows = [row] * size
                    self.engine.answer_each(rows, options)
                    yield
                began = time.monotonic()
                self.engine.answer_each(rows, options)  # the longest prompts, without compiling
                self.chooser.took(size, share, time.monotonic() - began)

    def _warm_rows(self) -> Iterator[dict[str, Any]]:
        """Requests whose prompts have all lengths, with a novel instruction and with another."""
        popular = [item["item_id"] for item in self._popular_items()]
        categories = self.engine.current.version.catalogue.categories.to_pylist()
        instructions = (
            ["", f"something like {categories[0]} on a rainy day"] if categories else [""]
        )
        longest = self.engine.current.recommender.spec.layout.history_length
        for events in range(0, longest + WARM_STEP, WARM_STEP):
            history = [
                {"item_id": item, "timestamp": 1 + n} for n, item in enumerate(popular[:events])
            ]
            for instruction in instructions:
                yield {"user_id": "anyone", "history": history, "instruction": instruction}

    def forget_settings(self) -> None:
        """Reads states and rules again at the next request: they have changed."""
        with self._lock:
            self._read_at = -np.inf

    def _settings(self) -> tuple[frozenset[str], Rules]:
        """(ids of items that are not shown now, the rules), at most FRESH_SECONDS old."""
        now = time.monotonic()
        with self._lock:
            if now - self._read_at > FRESH_SECONDS:
                states, at = self.store.states(), time.time()
                self._hidden = frozenset(
                    item for item, state in states.items() if not state.is_shown(at)
                )
                rules = self.store.documents(RULE)
                self._rules = Rules({name: Rule(**fields) for name, fields in rules.items()})
                self._read_at = now
            return self._hidden, self._rules

    def _answer(
        self,
        user_id: str,
        instruction: str,
        source: str,
        items: Sequence[Mapping[str, Any]],
        filters: Filters,
        stored: StoredList | None = None,
    ) -> Answer:
        """The answer with the items that the filters and rules leave."""
        hidden, rules = self._settings()
        left_out = hidden | filters.exclude
        kept = [item for item in items if item["item_id"] not in left_out]
        if stored is not None and stored.version != self.engine.current.name:
            kept = [item for item in kept if self.is_offered(item["item_id"])]
        if filters.categories:
            kept = [i for i in kept if self.category_of(i["item_id"]) in filters.categories]
        if filters.seen != "show" and user_id:
            own = {event.item_id for event in self.store.events(user_id, EVENTS)[0]}
            kept = [i for i in kept if (i["item_id"] in own) == (filters.seen == "own")]
        ranked: Sequence[Mapping[str, Any]] = kept
        if rules.by_name:
            ranked = rules.apply([dict(item) for item in kept], self.category_of, self.shown_item)
        return Answer(
            user_id=user_id,
            instruction=instruction,
            source=source,  # type: ignore[arg-type]
            version=stored.version if stored else self.engine.current.name,
            age_seconds=max(time.time() - stored.made, 0.0) if stored else 0.0,
            items=[shown(item, filters.explain) for item in ranked[: filters.count]],
        )

    def _popular_items(self) -> list[Ranked]:
        snapshot = self.engine.current
        name, items = self._popular
        if name != snapshot.name:
            popularity = np.asarray(snapshot.version.catalogue.popularity)
            order = np.argsort(-popularity, kind="stable")
            order = order[snapshot.version.is_active[order]][:POPULAR]
            items = self._items(snapshot, order)
            self._popular = (snapshot.name, items)
        return items

    def _items(self, snapshot: CatalogueSnapshot, numbers: np.ndarray) -> list[Ranked]:
        """Items by number, without a probability."""
        catalogue = snapshot.version.catalogue
        pairs = zip(catalogue.ids(numbers), catalogue.titles(numbers), strict=True)
        return [{"item_id": one, "title": title, "probability": None} for one, title in pairs]


def shown(item: Mapping[str, Any], explains: bool) -> Item:
    """An item of an answer, with its reasons if they are asked for."""
    probability = item["probability"]
    if probability is not None:
        probability = round(float(probability), 6)
    reasons = list(item.get("reasons", ()))
    details = {name: item[name] for name in ("prefix", "cosine") if item.get(name) is not None}
    return Item(
        item_id=item["item_id"],
        title=item["title"],
        probability=probability,
        reasons=reasons if explains else [],
        details=details if explains else {},
    )
