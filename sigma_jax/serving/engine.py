"""A recommendation engine: answers requests by an export and reloads it while requests run.

A `CatalogueSnapshot` is one version of an export, ready to answer. A `RecommendationEngine` holds
the active version and replaces it while requests run, by another version or by another export. One
version answers a request from its first step to its last.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import shutil
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Bool

from sigma_jax.generation.config import GenerationConfig
from sigma_jax.generation.contexts import ContextCache, ContextFiles
from sigma_jax.recommender.parts import RecommenderParts
from sigma_jax.recommender.ranking import Recommendations
from sigma_jax.recommender.recommender import Recommender, RecommendOptions
from sigma_jax.recommender.requests import DEFAULT_INSTRUCTION, ItemIndex, RequestParser
from sigma_jax.recommender.results import rows_of
from sigma_jax.runtime.process import let_programs_go, share_of_maps
from sigma_jax.schema import RequestBatch
from sigma_jax.serving.bundle import Bundle, read_state
from sigma_jax.serving.catalogue_version import Version
from sigma_jax.shapes import power_of_two

MOST_RECENT = 64  # requests that warm a version, of different kinds
SPILL_SECONDS = 86_400.0  # files of a version that gets no new ones are kept so long
# Share of the process's memory maps from which on no more programs are loaded ahead of requests.
MOST_MAPS = 0.6
HISTORY_STEP = 8  # events: histories of about one length need one program


@dataclasses.dataclass(frozen=True)
class SnapshotSettings:
    """How an export is opened."""

    default_instruction: str = DEFAULT_INSTRUCTION  # for requests without one
    generation: GenerationConfig | None = None  # in place of the export's own settings
    beams: int = 0  # beams of the export's own settings; 0: as many as they have
    # "exact" or "scann"; "" is "scann" where the export has such an index, else "exact".
    retrieval: str = ""
    mesh: Mesh | None = None  # devices with equal parts of the item vectors; None: one has all
    # Memory for keys and values of users' prompts (generation/contexts.py); 0 keeps none.
    kept_bytes: int = 0
    spill: Path | None = None  # folder for contexts that memory has no room for
    spill_bytes: int = 2**33  # of its files, for each version
    window_step: int = 1  # of prompts; more than 1 lets a growing history keep its beginning

    def contexts(self, name: str) -> ContextCache | None:
        """Kept contexts for one version of one model, by name; None without memory for them."""
        if not self.kept_bytes:
            return None
        files = None
        if self.spill is not None:
            files = ContextFiles(self.spill / name, self.spill_bytes)
            for folder in self.spill.iterdir():  # of versions that no process uses any more
                if folder.name != name and time.time() - folder.stat().st_mtime > SPILL_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)
        return ContextCache(self.kept_bytes, files)

    def generation_of(self, parts: RecommenderParts, version: Version) -> GenerationConfig:
        """The settings of generation for a version.

        ValueError if they name a ranker that the export was not made for.
        """
        config = self.generation
        if config is None:
            retrieval = self.retrieval or ("exact" if version.index is None else "scann")
            beams = self.beams or parts.spec.generation.num_beams
            config = dataclasses.replace(
                parts.spec.generation, num_beams=beams, retrieval=retrieval
            )
        if parts.spec.depth and (config.ranker == "three_step") != (version.trie.depth > 0):
            raise ValueError(
                f'generation.ranker="{config.ranker}", but the export was made for another ranker; '
                "train or export with this ranker, or use the export's own."
            )
        return config


@dataclasses.dataclass(frozen=True)
class CatalogueSnapshot:
    """One version of an export, ready to recommend."""

    name: str
    version: Version
    recommender: Recommender
    parser: RequestParser
    folder: Path  # of the export
    model: str  # fingerprint of the training
    event_kinds: frozenset[str] = frozenset()  # that the training read (data.events); none: all

    @classmethod
    def load(
        cls, bundle: Bundle, name: str = "", settings: SnapshotSettings = SnapshotSettings()
    ) -> CatalogueSnapshot:
        """The version `name`, or the active one. ValueError if the export is damaged."""
        name = name or bundle.state()["active"]
        bundle = bundle.at(name)
        given = settings.generation
        retrieval = given.retrieval if given is not None else settings.retrieval
        version = bundle.version(name, with_index=retrieval != "exact")
        parts = bundle.parts(version)
        model = str(bundle.fingerprints["sft"])
        recommender = Recommender(
            parts,
            settings.generation_of(parts, version),
            version.trie,
            np.asarray(version.fused),
            version.is_active,
            version.index,
            settings.mesh,
            settings.contexts(f"{model[:16]}-{name}"),
            settings.window_step,
        )
        parser = _parser(bundle, version, parts, settings.default_instruction)
        kinds = frozenset(bundle.items.get("event_kinds", ()))
        return cls(name, version, recommender, parser, bundle.folder, model, kinds)

    def is_of(self, folder: Path, name: str) -> bool:
        """Whether it is the version `name` of the export in `folder`."""
        return (self.folder.absolute(), self.name) == (folder.absolute(), name)

    def recommend(
        self,
        batch: RequestBatch,
        options: RecommendOptions = RecommendOptions(),
        is_allowed: Bool[np.ndarray, " I"] | None = None,
    ) -> Recommendations:
        """The answer of `Recommender.recommend`, with fewer columns if the catalogue is small."""
        count = min(options.count, power_of_two(len(self.version.catalogue)))
        options = dataclasses.replace(options, count=count)
        return self.recommender.recommend(batch, options, is_allowed)

    def without(self, hidden: Collection[str]) -> Bool[np.ndarray, " I"] | None:
        """Whether each item is none of `hidden` (item ids); None if the catalogue has none."""
        numbers = [n for name in hidden if (n := self.parser.item_index.find(name)) is not None]
        if not numbers:
            return None
        is_allowed = np.ones(len(self.version.is_active), bool)
        is_allowed[numbers] = False
        return is_allowed

    def rows(self, batch: RequestBatch, recommended: Recommendations) -> list[dict[str, Any]]:
        """The answers as rows of a file (recommender/results.py)."""
        return rows_of(batch, recommended, self.version.catalogue, self.name)


def _parser(
    bundle: Bundle, version: Version, parts: RecommenderParts, default_instruction: str
) -> RequestParser:
    """The parser of requests to a version."""
    now = 0
    if parts.reranker is not None:
        now = int(parts.reranker.tables.trends.time.max(initial=0))
    return RequestParser(
        ItemIndex(version.catalogue),
        bundle.text,
        parts.spec.has_instructions,
        default_instruction,
        now,
        bundle.items["has_sessions"],
        bundle.items["session_gap"],
        known=None,
    )


class RecommendationEngine:
    """Answers requests by the active version of an export, and loads others meanwhile.

    `refresh` loads a version and puts it in place in one step. No request waits for a compilation:
    a version answers recent requests before it goes live. Code that uses `current` must read it
    once for parsing and answering, since item numbers differ between versions.

    The version that answered before stays loaded, so that going back takes no time.
    """

    current: CatalogueSnapshot  # the version that answers now

    def __init__(self, folder: Path, settings: SnapshotSettings = SnapshotSettings()):
        self._settings = settings
        self._loading = threading.Lock()
        self._recent: dict[Any, _Request] = {}  # requests of each kind that compiles a program
        self._other: CatalogueSnapshot | None = None  # loaded besides
        self.current = CatalogueSnapshot.load(Bundle.open(folder), "", settings)

    @property
    def folder(self) -> Path:
        """The export that answers now."""
        return self.current.folder

    def at(self, snapshot: CatalogueSnapshot) -> RecommendationEngine:
        """An engine that answers by `snapshot`, whatever is put in place here."""
        other = copy.copy(self)
        other.current = snapshot
        return other

    def recommend(
        self,
        rows: Sequence[Mapping[str, Any]],
        options: RecommendOptions = RecommendOptions(),
        hidden: Collection[str] = (),
    ) -> list[dict[str, Any]]:
        """The answers to rows of a users' file, as the command `sigma_jax.recommend` writes them.

        Each has besides the field `model`, the fingerprint of the model that answered. One version
        parses and answers all rows. ValueError as in RequestParser.parse.

        Args:
          hidden: ids of items to leave out, such as those out of stock.
        """
        if not rows:
            return []
        request = _Request(tuple(map(dict, rows)), options, frozenset(hidden))
        snapshot = self.current
        answer = request.answered_by(snapshot)
        first = request.first(snapshot.recommender.generator.config.batch_size)
        self._recent.pop(first.kind, None)
        self._recent[first.kind] = first
        for old in list(self._recent)[:-MOST_RECENT]:
            self._recent.pop(old, None)
        return answer

    def answer_each(
        self,
        rows: Sequence[Mapping[str, Any]],
        options: RecommendOptions = RecommendOptions(),
        hidden: Collection[str] = (),
    ) -> list[dict[str, Any] | ValueError]:
        """`recommend`, with the error in place of the answer for a row that cannot be answered."""
        try:
            return list(self.recommend(rows, options, hidden))
        except ValueError as error:
            if len(rows) == 1:
                return [error]
        return [answer for row in rows for answer in self.answer_each([row], options, hidden)]

    def num_beams(self, share: float = 1.0) -> int:
        """The number of beams that a `share` of them leaves; 0 where no prefix is searched."""
        generator = self.current.recommender.generator
        return generator.config.under_load(share).num_beams if generator.trie.depth else 0

    def refresh(self, folder: Path | None = None) -> bool:
        """Puts the active version of an export in place; False if it is in place already.

        Args:
          folder: of the export. None: the export that answers now.
        """
        with self._loading:
            folder = folder or self.folder
            name = read_state(folder)["active"]
            if self.current.is_of(folder, name):
                return False
            self.current, self._other = self._loaded(folder, name), self.current
            if self._other.recommender.contexts is not None:
                self._other.recommender.contexts.forget()  # their memory is for the active version
            return True

    def loaded(self, folder: Path | None = None, name: str = "") -> CatalogueSnapshot:
        """A version, which is loaded beside the one that answers and answers recent requests.

        At most one version is kept besides.

        Args:
          folder: of the export. None: the export that answers now.
          name: of the version; "" for the active one of the export.

        Raises:
          ValueError: the export or the version is missing or damaged.
        """
        with self._loading:
            folder = folder or self.folder
            found = self._loaded(folder, name or read_state(folder)["active"])
            if found is not self.current:
                self._other = found
            return found

    def _loaded(self, folder: Path, name: str) -> CatalogueSnapshot:
        for known in (self.current, self._other):
            if known is not None and known.is_of(folder, name):
                return known
        self._other = None  # two versions fit into memory, three may not
        new = CatalogueSnapshot.load(Bundle.open(folder), name, self._settings)
        if share_of_maps() > MOST_MAPS:
            logging.warning("engine: programs of earlier versions are let go, others load again")
            let_programs_go()
        for request in tuple(self._recent.values()):
            if share_of_maps() > MOST_MAPS:  # the others load when they are needed
                break
            with contextlib.suppress(ValueError):  # another version may lack its items
                request.answered_by(new)
        return new


@dataclasses.dataclass(frozen=True)
class _Request:
    """The arguments of `RecommendationEngine.recommend`."""

    rows: tuple[dict[str, Any], ...]
    options: RecommendOptions
    hidden: frozenset[str]

    @property
    def kind(self) -> tuple[Any, ...]:
        """Requests of different kinds may need different programs: by numbers and lengths."""
        longest = max(len(row.get("history") or ()) for row in self.rows)
        words = max(len(str(row.get("instruction", "")).split()) for row in self.rows)
        lengths = (len(self.rows), longest // HISTORY_STEP + 1, words)
        return (*map(power_of_two, lengths), self.options)

    def first(self, count: int) -> _Request:
        """The request with the first `count` rows."""
        return dataclasses.replace(self, rows=self.rows[:count])

    def answered_by(self, snapshot: CatalogueSnapshot) -> list[dict[str, Any]]:
        batch = snapshot.parser.parse(self.rows)
        is_allowed = snapshot.without(self.hidden)
        rows = snapshot.rows(batch, snapshot.recommend(batch, self.options, is_allowed))
        return [row | {"model": snapshot.model} for row in rows]
