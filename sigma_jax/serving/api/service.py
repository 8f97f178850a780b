"""What a service answers for one tenant: lists of the index, requests at once, popular items."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from absl import logging
from jaxtyping import Bool

from sigma_jax.recommender.recommender import RecommendOptions
from sigma_jax.runtime.process import share_of_maps
from sigma_jax.serving.api.models import (
    Answer,
    Ask,
    Beam,
    Explanation,
    Item,
    Rule,
    Seen,
    Tree,
)
from sigma_jax.serving.api.rules import Ranked, Rules, check_fields
from sigma_jax.serving.api.tree import tree_of
from sigma_jax.serving.engine import MOST_MAPS, CatalogueSnapshot, RecommendationEngine
from sigma_jax.serving.experiments.assignment import read_experiments
from sigma_jax.serving.load import BeamChooser, FewerBeams, Load
from sigma_jax.serving.nearline import REPORT, request_row
from sigma_jax.serving.popularity import trending_scores
from sigma_jax.serving.stores.base import Event, StoredList, StoreError, TenantStore

COMPUTED = 100  # items of a computed list, of which filters leave some; one number, one program
POPULAR = 1_000  # most popular items that stand in for a list
NAMED = 5  # unknown names that an error lists at most
FRESH_SECONDS = 1.0  # states and rules are read again after it; changes by this process at once
EVENTS = 1_000  # newest events of a user that requests read
FILLED_UP = "filled up: popular"  # reason of an item that a list did not have
MOST_CATEGORIES = 64  # choices of categories whose popular items are kept
RULE = "rule"  # kind of documents
TRENDING_SECONDS = 60.0  # trending items are computed again after it
MOST_HALF_LIVES = 16  # whose trending items are kept
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
    # Rules of the user's arms, beside those of the shop or in their place.
    rules: Mapping[str, Rule] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, ask: Ask) -> Filters:
        """The filters of a request."""
        exclude = frozenset(ask.exclude)
        return cls(ask.count, frozenset(ask.categories), exclude, ask.seen, ask.explain)


@dataclasses.dataclass(frozen=True)
class Read:
    """A read of a user's list."""

    user_id: str
    name: str  # of the list
    filters: Filters


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
        fewer_beams: rules for times of high load. Empty: requests always get all beams.
        """
        self.engine, self.store, self.clock = engine, store, clock
        self.chooser = BeamChooser(fewer_beams)
        self.is_warmed_up = False  # whether `warm_rest` has ended
        self._lock = threading.Lock()
        self._read_at, self._is_read = -np.inf, False
        self._hidden: frozenset[str] = frozenset()
        self._rules = Rules({})
        self.list_names: frozenset[str] = frozenset()  # as known; empty where no worker reports
        # Of one model and version, which are read once in a while.
        self._popular: tuple[tuple[str, str], dict[frozenset[str], list[Ranked]]] = (("", ""), {})
        self._categories: tuple[tuple[str, str], dict[str, int]] = (("", ""), {})
        # Half-life -> (model and version, when, items).
        self._trending: dict[float, tuple[tuple[str, str], float, list[Ranked]]] = {}
        self._tree: Tree | None = None

    def at(self, snapshot: CatalogueSnapshot) -> TenantService:
        """The service as `snapshot` answers."""
        other = copy.copy(self)
        other.engine = self.engine.at(snapshot)
        other.chooser = BeamChooser()  # times of another version say nothing about this one
        return other

    def recommendations_of(self, reads: Sequence[Read]) -> list[Answer | Exception]:
        """The answers to reads of the index, whose lists are read together.

        Where the store does not answer, those who may see all items get the most popular ones.
        Others get StoreError: nobody knows what they had. A filter that cannot be gets ValueError.
        """
        try:
            lists = self.store.lists_of([(read.user_id, read.name) for read in reads])
        except StoreError as error:
            text = "service: popular items instead of lists: %s"
            logging.log_every_n_seconds(logging.WARNING, text, 1.0, error)
            lists = [None] * len(reads)
        answers: list[Answer | Exception] = []
        for read, stored in zip(reads, lists, strict=True):
            try:
                answers.append(self._indexed(read, stored))
            except (StoreError, ValueError) as error:
                answers.append(error)
        return answers

    def _indexed(self, read: Read, stored: StoredList | None) -> Answer:
        """The answer from a list of the index; the most popular items without one."""
        if stored is None:
            return self.popular(read.user_id, read.filters)
        return self._answer(read.user_id, "", "index", stored.items, read.filters, stored)

    def compute(
        self,
        asks: Sequence[Ask],
        filters: Sequence[Filters] | None = None,
        options: RecommendOptions = RecommendOptions(COMPUTED),
        load: Load = Load(),
    ) -> list[Answer | ValueError]:
        """The answers to requests, computed now; an error where one cannot be answered.

        One version answers all of them, even if another is put in place meanwhile.

        Args:
          filters: of each request; None: those that it names.
        """
        self._settings()  # so that they are kept for the next call too
        filters = [Filters.of(ask) for ask in asks] if filters is None else filters
        options = dataclasses.replace(options, explains=any(ask.explain for ask in asks))
        service, began = self.at(self.engine.current), time.monotonic()
        if options.generation is not None:  # settings of an arm have programs of their own
            return service._compute(asks, filters, options)
        share = self.chooser.share(len(asks), load)
        options = dataclasses.replace(options, beam_share=share)
        answers = service._compute(asks, filters, options)
        self.chooser.took(len(asks), share, time.monotonic() - began)
        return answers

    def _compute(
        self, asks: Sequence[Ask], filters: Sequence[Filters], options: RecommendOptions
    ) -> list[Answer | ValueError]:
        rows = [self._row(ask) for ask in asks]
        hidden, _ = self._settings()
        groups: dict[frozenset[str], list[int]] = {}  # one mask for all requests of a group
        for number, one in enumerate(filters):
            groups.setdefault(one.categories, []).append(number)
        found: dict[int, dict[str, Any] | ValueError] = {}
        for categories, numbers in groups.items():
            some = [rows[number] for number in numbers]
            if categories:
                computed = self._answer_each_in(categories, some, options, hidden)
            else:
                computed = self.engine.answer_each(some, options, hidden)
            found |= zip(numbers, computed, strict=True)
        num_beams = self.engine.num_beams(options.beam_share)
        answers: list[Answer | ValueError] = []
        for number, (ask, kept) in enumerate(zip(asks, filters, strict=True)):
            made = found[number]
            if isinstance(made, ValueError):
                answers.append(made)
                continue
            answer = self._answer(ask.user_id, made["instruction"], "computed", made["items"], kept)
            answer.num_beams = num_beams
            if ask.explain:
                answer.beams = [Beam(**beam) for beam in made.get("beams", ())]
            answers.append(answer)
        return answers

    def _row(self, ask: Ask) -> dict[str, Any]:
        """A request as a row of a users' file, with the user's history and profile."""
        events: list[Event] = []
        profile = None
        if ask.user_id:
            events, _ = self.store.events(ask.user_id, EVENTS)
            profile = self.store.user(ask.user_id)
        now = int(self.clock())
        row = request_row(self.engine, ask.user_id or "anyone", profile or {}, events, now)
        return row | {"instruction": ask.instruction}

    def _answer_each_in(
        self,
        categories: frozenset[str],
        rows: Sequence[dict[str, Any]],
        options: RecommendOptions,
        hidden: frozenset[str],
    ) -> list[dict[str, Any] | ValueError]:
        """RecommendationEngine.answer_each with the items of some categories alone."""
        snapshot = self.engine.current
        try:
            is_allowed = self._in_categories(snapshot, categories)
            shown = snapshot.without(hidden)
            is_allowed = is_allowed if shown is None else is_allowed & shown
            if not (is_allowed & snapshot.version.is_active).any():
                return [{"instruction": row["instruction"], "items": []} for row in rows]
            batch = snapshot.parser.parse(rows)
            return list(snapshot.rows(batch, snapshot.recommend(batch, options, is_allowed)))
        except ValueError as error:
            if len(rows) == 1:
                return [error]
        one_by_one = (self._answer_each_in(categories, [row], options, hidden) for row in rows)
        return [answer for answers in one_by_one for answer in answers]

    def popular(self, user_id: str, filters: Filters) -> Answer:
        """The items with most interactions in the training."""
        items = self._popular_items(filters.categories)
        return self._answer(user_id, "", "popular", items, filters)

    def trending(self, half_life_hours: float, filters: Filters) -> Answer:
        """The items with most events lately; older events weigh less (serving/popularity.py)."""
        now, snapshot = time.monotonic(), self.engine.current
        made_by = snapshot.model, snapshot.name
        known, at, items = self._trending.get(half_life_hours, (("", ""), -np.inf, []))
        if known != made_by or now - at > TRENDING_SECONDS:
            scores = trending_scores(snapshot, self.store, self.clock(), half_life_hours)
            items = self._items(snapshot, best_active(snapshot, scores))
            if len(self._trending) >= MOST_HALF_LIVES:
                self._trending.clear()
            self._trending[half_life_hours] = (made_by, now, items)
        return self._answer("", "", "trending", items, filters)

    def tree(self) -> Tree:
        """The SID prefixes of the active version, as far as a page can draw them."""
        snapshot, tree = self.engine.current, self._tree
        if tree is None or (tree.model, tree.version) != (snapshot.model, snapshot.name):
            self._tree = tree = tree_of(snapshot)
        return tree

    def similar(self, item_id: str, filters: Filters) -> Answer:
        """The items whose vectors are nearest to that of an item. KeyError for an unknown one.

        Pins put nothing into it: a pinned item need not be like this one.
        """
        snapshot = self.engine.current
        number = snapshot.parser.item_index.find(item_id)
        if number is None:
            raise KeyError(item_id)
        version = snapshot.version
        vectors = np.asarray(version.fused[: len(version)], np.float32)
        is_allowed = version.is_active
        if filters.categories:
            is_allowed = is_allowed & self._in_categories(snapshot, filters.categories)
        cosines = np.where(is_allowed[: len(version)], vectors @ vectors[number], -np.inf)
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

    def value_of(self, item_id: str, column: str) -> str:
        """The value of an item in a column of its text, such as brand; "" for none."""
        number = self.engine.current.parser.item_index.find(item_id)
        if number is None:
            return ""
        [text] = self.engine.current.version.catalogue.texts(np.array([number]))
        value = orjson.loads(text).get(column)
        return "" if value is None else str(value)

    def knows(self, item_id: str) -> bool:
        """Whether the catalogue has an item, be it removed."""
        return self.engine.current.parser.item_index.find(item_id) is not None

    def check_rules(self, rules: Mapping[str, Rule]) -> None:
        """ValueError if a rule has a wrong field, or an unknown item, category or column."""
        check_fields(rules)
        categories = self._category_numbers(self.engine.current)
        columns = self.engine.current.parser.text.columns
        for name, rule in rules.items():
            if rule.column and rule.column not in columns:
                raise ValueError(
                    f"rule {name!r}: items have no column {rule.column!r}; "
                    f"use one of {', '.join(columns)}, or leave it out for the category."
                )
            unknown = [item for item in rule.items if not self.knows(item)]
            unknown += [one for one in rule.categories if one not in categories]
            if unknown:
                raise ValueError(
                    f"rule {name!r}: the catalogue does not have "
                    f"{', '.join(map(repr, unknown[:NAMED]))}, "
                    f"{len(unknown)} unknown of {len(rule.items) + len(rule.categories)} names."
                )

    def title_of(self, item_id: str) -> str:
        """The title of an item; "" for an unknown one."""
        snapshot = self.engine.current
        number = snapshot.parser.item_index.find(item_id)
        return "" if number is None else snapshot.version.catalogue.titles(np.array([number]))[0]

    def warm(self) -> None:
        """Answers a made-up request of no user and one of a user with a full history.

        Later requests like them find their programs loaded.
        """
        longest = self.engine.current.recommender.spec.layout.history_length
        self._warm_instructions(1)
        for events in (0, longest):
            self._warm_history(events)

    def warm_rest(self, sizes: Sequence[int], stop: threading.Event) -> None:
        """Answers made-up requests of all lengths, and with fewer beams, until `stop` is set.

        Programs depend on the length of a prompt and of an instruction, on whether the instruction
        is novel, and on the number of requests that are computed together. An instruction that
        names several things is computed as several requests. Requests that come meanwhile are
        answered between the made-up ones.

        Args:
          sizes: of batches, ascending.
        """
        longest = self.engine.current.recommender.spec.layout.history_length
        steps: list[Callable[[], None]] = [
            functools.partial(self._warm_instructions, words) for words in range(2, WARM_WORDS + 1)
        ]
        steps += [functools.partial(self._warm_history, n, 1, True) for n in (0, longest)]
        steps += [
            functools.partial(self._warm_history, events, size)
            for size in sizes
            for events in range(0, longest + WARM_STEP, WARM_STEP)
        ]
        for step in steps:
            if stop.is_set():
                return
            if share_of_maps() > MOST_MAPS:
                logging.warning(
                    "service: this process has many programs; rare ones are loaded when they are "
                    "needed. A larger vm.max_map_count (sysctl) lets it hold all."
                )
                self.is_warmed_up = True
                return
            step()
        self.warm_fewer_beams((sizes[-1], sizes[0]), stop)
        self.is_warmed_up = not stop.is_set()

    def _warm_instructions(self, words: int) -> None:
        """Reads a sentence of so many words."""
        encoder = self.engine.current.recommender.parts.encoder
        if encoder is not None:
            encoder.encoder.encode_queries(["word " * words])

    def warm_fewer_beams(self, sizes: Sequence[int], stop: threading.Event) -> None:
        """Compiles the programs of smaller shares of the beams, until `stop` is set.

        A share may be used for batches of a size when all its programs are compiled. Those of all
        beams are compiled already: `warm_rest` calls this at its end.

        Args:
          sizes: of batches. Batches of other sizes always get all beams.
        """
        if not self.chooser.rules:
            return
        longest = self.engine.current.recommender.spec.layout.history_length
        for size in sizes:
            for share in (1.0, *(rule.share for rule in self.chooser.rules)):
                options = RecommendOptions(COMPUTED, beam_share=share)
                for events in range(0, longest + WARM_STEP, WARM_STEP) if share < 1 else ():
                    for rows in self._warm_rows(events, size):
                        if stop.is_set():
                            return
                        self.engine.answer_each(rows, options)
                began = time.monotonic()
                # The longest prompts, without compiling.
                self.engine.answer_each(self._warm_rows(longest, size)[1], options)
                self.chooser.took(size, share, time.monotonic() - began)

    def _warm_history(self, events: int, size: int = 1, explains: bool = False) -> None:
        """Answers `size` users at once, who have so many events."""
        for rows in self._warm_rows(events, size):
            self.engine.answer_each(rows, RecommendOptions(COMPUTED, explains=explains))

    def _warm_rows(self, events: int, size: int) -> list[list[dict[str, Any]]]:
        """Batches of `size` requests of users with so many events.

        One batch has no instructions, one has novel ones, and one asks for less.
        """
        popular = [item["item_id"] for item in self._popular_items()]
        history = [{"item_id": item, "timestamp": 1 + n} for n, item in enumerate(popular[:events])]
        names = self.engine.current.version.catalogue.categories.to_pylist() or ["anything"]
        return [
            [
                {
                    "user_id": "anyone",
                    "history": history,
                    "instruction": form.format(names[n % len(names)]),
                }
                for n in range(size)
            ]
            for form in ("", "something like {} on a rainy day", "{} without warmth")
        ]

    def forget_settings(self) -> None:
        """Reads states and rules again at the next request: they have changed."""
        with self._lock:
            self._read_at = -np.inf

    def _settings(self) -> tuple[frozenset[str], Rules]:
        """(ids of items that are not shown now, the rules), at most FRESH_SECONDS old.

        Where the store does not answer, the last known ones. StoreError if there are none.
        """
        now = time.monotonic()
        with self._lock:
            if now - self._read_at > FRESH_SECONDS:
                try:
                    self._read_settings()
                except StoreError as error:
                    if not self._is_read:
                        raise
                    logging.warning("service: hidden items and rules stay as they were: %s", error)
                self._read_at, self._is_read = now, True
            return self._hidden, self._rules

    def _read_settings(self) -> None:
        states, rules, at = self.store.states(), self.store.documents(RULE), time.time()
        reports = self.store.documents(REPORT).values()
        experiments = read_experiments(self.store).values()
        self._hidden = frozenset(item for item, state in states.items() if not state.is_shown(at))
        self._rules = Rules({name: Rule(**fields) for name, fields in rules.items()})
        names = {name for report in reports for name in report.get("list_names", ())}
        if names:
            names |= {name for one in experiments for arm in one.arms for name in arm.lists}
        self.list_names = frozenset(names)

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
        may_show = self._may_show(user_id, filters, hidden)
        left_out = hidden | filters.exclude
        if filters.explain:  # explanations say the place before rules and filters
            items = [{**item, "place": place} for place, item in enumerate(items, 1)]
        kept = [item for item in items if item["item_id"] not in left_out]
        current = self.engine.current
        made_by = (current.model, current.name)
        if stored is not None and (stored.model, stored.version) != made_by:
            made_by = (stored.model, stored.version)
            kept = [item for item in kept if self.is_offered(item["item_id"])]
        if may_show is not None:
            kept = [item for item in kept if may_show(item["item_id"])]
        is_narrow = filters.categories or (source != "similar" and (filters.exclude or may_show))
        if is_narrow and source != "popular":
            kept = self._filled_up(kept, filters, left_out, may_show)
        ranked: Sequence[Mapping[str, Any]] = kept
        if filters.rules:
            rules = Rules({**rules.by_name, **filters.rules})
        if source == "similar":
            rules = rules.without_pins()
        if rules.by_name:

            def find(item_id: str) -> Ranked | None:
                if item_id in left_out or (may_show is not None and not may_show(item_id)):
                    return None
                return self.shown_item(item_id)

            ranked = rules.apply(
                [dict(item) for item in kept], self.category_of, self.value_of, find
            )
        return Answer(
            user_id=user_id,
            instruction=instruction,
            source=source,  # type: ignore[arg-type]
            version=made_by[1],
            model=made_by[0],
            age_seconds=max(time.time() - stored.made, 0.0) if stored else 0.0,
            arms=dict(stored.arms) if stored else {},
            items=[shown(item, filters.explain) for item in ranked[: filters.count]],
        )

    def _may_show(
        self, user_id: str, filters: Filters, hidden: frozenset[str]
    ) -> Callable[[str], bool] | None:
        """Whether `categories` and `seen` leave an item, by its id; None if they leave all.

        ValueError for an unknown category.
        """
        if filters.categories:
            self._numbers_of(self.engine.current, filters.categories)
        is_own = filters.seen == "own"
        own = self.store.seen_items(user_id) if filters.seen != "show" and user_id else None
        if own is None and not filters.categories:
            return None

        def may_show(item_id: str) -> bool:
            if own is not None and (item_id in own) != is_own:
                return False
            return not filters.categories or self.category_of(item_id) in filters.categories

        return may_show

    def _filled_up(
        self,
        kept: list[Mapping[str, Any]],
        filters: Filters,
        left_out: frozenset[str],
        may_show: Callable[[str], bool] | None,
    ) -> list[Mapping[str, Any]]:
        """A list with too few items that the filters leave, and behind it the most popular ones."""
        if len(kept) >= filters.count:
            return kept
        known = left_out | {item["item_id"] for item in kept}
        more = (
            {**item, "reasons": [FILLED_UP]}
            for item in self._popular_items(filters.categories)
            if item["item_id"] not in known and (may_show is None or may_show(item["item_id"]))
        )
        return [*kept, *itertools.islice(more, COMPUTED - len(kept))]

    def _popular_items(self, categories: frozenset[str] = frozenset()) -> list[Ranked]:
        """The most popular items of some categories; none: of all. ValueError for unknown ones."""
        snapshot = self.engine.current
        made_by, lists = self._popular
        if made_by != (snapshot.model, snapshot.name) or len(lists) > MOST_CATEGORIES:
            made_by, lists = self._popular = (snapshot.model, snapshot.name), {}
        if categories not in lists:
            popularity = np.asarray(snapshot.version.catalogue.popularity)
            is_allowed = self._in_categories(snapshot, categories) if categories else None
            lists[categories] = self._items(snapshot, best_active(snapshot, popularity, is_allowed))
        return lists[categories]

    def _category_numbers(self, snapshot: CatalogueSnapshot) -> dict[str, int]:
        """The number of each category by its name."""
        made_by, numbers = self._categories
        if made_by != (snapshot.model, snapshot.name):
            names = snapshot.version.catalogue.categories.to_pylist()
            numbers = {name: number for number, name in enumerate(names)}
            self._categories = (snapshot.model, snapshot.name), numbers
        return numbers

    def _numbers_of(self, snapshot: CatalogueSnapshot, names: Iterable[str]) -> list[int]:
        """The numbers of some categories. ValueError names one that is unknown, and near ones."""
        known = self._category_numbers(snapshot)
        if unknown := sorted(set(names) - known.keys()):
            near = difflib.get_close_matches(unknown[0], known, NAMED, 0.0)
            raise ValueError(
                f"the catalogue has no category {unknown[0]!r}; near names are "
                f"{', '.join(map(repr, near)) or 'none'}. GET /v1/categories lists all."
            )
        return [known[name] for name in names]

    def _in_categories(
        self, snapshot: CatalogueSnapshot, names: Iterable[str]
    ) -> Bool[np.ndarray, " I"]:
        """Whether each item is of one of some categories. ValueError as in `_numbers_of`."""
        numbers = self._numbers_of(snapshot, names)
        found = np.zeros(len(snapshot.version.is_active), bool)
        category = np.asarray(snapshot.version.catalogue.category)
        found[: len(category)] = np.isin(category, numbers)
        return found

    def _items(self, snapshot: CatalogueSnapshot, numbers: np.ndarray) -> list[Ranked]:
        """Items by number, without a probability."""
        catalogue = snapshot.version.catalogue
        pairs = zip(catalogue.ids(numbers), catalogue.titles(numbers), strict=True)
        return [{"item_id": one, "title": title, "probability": None} for one, title in pairs]


def best_active(
    snapshot: CatalogueSnapshot,
    scores: np.ndarray,
    is_allowed: Bool[np.ndarray, " I"] | None = None,
) -> np.ndarray:
    """The numbers of the POPULAR best active items by their scores [I], best first.

    Args:
      is_allowed: False for further items to leave out. None: there are none.
    """
    order = np.argsort(-scores, kind="stable")
    is_active = snapshot.version.is_active
    is_active = is_active if is_allowed is None else is_active & is_allowed
    return order[is_active[order]][:POPULAR]


def shown(item: Mapping[str, Any], explains: bool) -> Item:
    """An item of an answer, with its reasons if they are asked for."""
    probability = item["probability"]
    if probability is not None:
        probability = round(float(probability), 6)
    reasons = list(item.get("reasons", ()))
    details = {name: item[name] for name in ("prefix", "cosine") if item.get(name) is not None}
    steps = item.get("explanation")
    explanation = Explanation(place=item["place"], **steps) if explains and steps else None
    return Item(
        item_id=item["item_id"],
        title=item["title"],
        probability=probability,
        reasons=reasons if explains else [],
        details=details if explains else {},
        explanation=explanation,
    )
