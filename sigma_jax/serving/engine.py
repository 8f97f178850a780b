"""An export that answers: requests in, recommendations out.

`Answering` holds one version of the catalogue; `Living` the active one, and exchanges it for
another while requests are under way: each is answered by one version from its first step to its
last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool

from sigma_jax.generation.config import GenerationConfig
from sigma_jax.generation.generator import Generator, Recommendations
from sigma_jax.histories import request_times, seen_items
from sigma_jax.index.trie import Subset
from sigma_jax.recommender.trained import TrainedRecommender, generation_config
from sigma_jax.schema import PreparedData, Requests
from sigma_jax.serving.bundle import Bundle, nobody, read_state
from sigma_jax.serving.catalogue_version import Version
from sigma_jax.serving.requests import Asked, ItemNumbers, Reading, asked_of
from sigma_jax.serving.results import rows_of
from sigma_jax.shapes import power_of_two

SIZE_OF_BATCH = 32


@dataclasses.dataclass(frozen=True)
class Answering:
    """One version of an export, ready to recommend."""

    name: str
    version: Version
    trained: TrainedRecommender
    generator: Generator
    active: Subset
    data: PreparedData  # of nobody yet
    reading: Reading

    @classmethod
    def of(
        cls,
        bundle: Bundle,
        name: str = "",
        instruction: str = "",
        generation: GenerationConfig | None = None,
        beams: int = 32,
        retrieval: str = "",
        mesh: Mesh | None = None,
    ) -> Answering:
        """The version `name`, or the active one.

        `generation` in place of the settings of training with `beams`, and with `retrieval`: "" is
        "scann" where the export has such an index, else "exact". ValueError where the export is
        damaged. `mesh`: whose devices have the item vectors that are compared in equal parts; None:
        one has them all.
        """
        name = name or bundle.state()["active"]
        retrieval = generation.retrieval if generation is not None else retrieval
        version = bundle.version(name, with_index=retrieval != "exact")
        trained = bundle.recommender(version)
        if generation is None:
            generation = generation_config(trained.config, beams, SIZE_OF_BATCH)
            retrieval = retrieval or ("exact" if version.index is None else "scann")
            generation = dataclasses.replace(generation, retrieval=retrieval)
        generator = Generator(
            trained.model,
            trained.tables,
            version.trie,
            generation,
            trained.config.prompt.layout.item_query,
            trained.words,
            np.asarray(version.fused),
            mesh=mesh,
            host=version.index,
        )
        return cls(
            name,
            version,
            trained,
            generator,
            generator.subset(version.is_active),
            nobody(bundle.folder / "model", version),
            _reading(bundle, version, trained, instruction),
        )

    def recommend(
        self,
        asked: Asked,
        count: int,
        keeps_seen: bool = True,
        is_allowed: Bool[np.ndarray, " I"] | None = None,
    ) -> Recommendations:
        """The best `count` items for each request, NumPy arrays; removed ones never. Fewer columns
        where the catalogue has fewer items.

        Args:
          keeps_seen: whether items of the history may come again.
          is_allowed: further items that may not come, such as those out of stock, are False.
            ValueError where nothing is left.
        """
        data = dataclasses.replace(self.data, histories=asked.histories, users=asked.users)
        tables = self.trained.prompt_tables.with_users(asked.users)
        trained = dataclasses.replace(self.trained, prompt_tables=tables)
        active = self.active
        if is_allowed is not None:
            active = self.generator.subset(self.version.is_active & is_allowed)
        count = min(count, power_of_two(len(self.version.catalogue)))

        def answer(requests: Requests) -> Recommendations:
            seen = None if keeps_seen else seen_items(asked.histories, requests)
            choice = trained.choice(self.generator, requests, data, seen=seen)
            choice = self.generator.for_lists(choice, count)
            [found] = self.generator.variants(
                trained.prompts(requests, data), count, [choice], active
            )
            return found

        if trained.prior is None:
            return answer(asked.requests)
        times = request_times(asked.histories, asked.requests)
        parts = trained.prior.counts.trends.together(times)
        found = [answer(asked.requests.take(rows)) for rows in parts]
        places = np.argsort(np.concatenate(parts))
        return jax.tree.map(lambda *values: np.concatenate(values)[places], *found)


def _reading(
    bundle: Bundle, version: Version, trained: TrainedRecommender, instruction: str
) -> Reading:
    """How rows of users are understood; `instruction` where they have none."""
    now = 0
    if trained.prior is not None:
        now = int(trained.prior.counts.trends.time.max(initial=0))
    return Reading(
        ItemNumbers(version.catalogue),
        bundle.text,
        trained.config.prompt.has_instructions,
        instruction,
        now,
        bundle.items["has_sessions"],
        bundle.items["session_gap"],
    )


class Living:
    """The active version of an export in a process that goes on answering.

    `refresh` loads what has become active and puts it in place in one step. An answer of
    `recommend` is made by the version that was there when it began; who uses `now` takes it once
    for reading and answering, for another version may have other numbers. No request waits for a
    program to be compiled for the new version: it answers the like of what was asked last before
    it takes over.
    """

    def __init__(
        self,
        folder: Path,
        instruction: str = "",
        generation: GenerationConfig | None = None,
        beams: int = 32,
        retrieval: str = "",
        mesh: Mesh | None = None,
    ):
        """`instruction` of requests that have none; the others as in Answering.of."""
        self._folder, self._settings = folder, (instruction, generation, beams, retrieval, mesh)
        self._refreshing = threading.Lock()
        self._last: dict[int, _Request] = {}  # by the batch they make
        self.now = Answering.of(Bundle.open(folder), "", *self._settings)

    def recommend(
        self, rows: Sequence[Mapping[str, Any]], count: int = 10, keeps_seen: bool = True
    ) -> list[dict[str, Any]]:
        """What `sigma_jax.recommend` writes for such rows of a users' file (serving/requests.py),
        read
        and answered by one version. ValueError as in read_users."""
        if not rows:
            return []
        request = _Request(tuple(map(dict, rows)), count, keeps_seen)
        answer = request.by(self.now)
        few = dataclasses.replace(request, rows=request.rows[:SIZE_OF_BATCH])
        self._last[power_of_two(len(few.rows))] = few
        return answer

    def refresh(self) -> bool:
        """Takes the active version where it is another one; whether it was."""
        with self._refreshing:
            name = read_state(self._folder)["active"]
            if name == self.now.name:
                return False
            new = Answering.of(Bundle.open(self._folder), name, *self._settings)
            for request in tuple(self._last.values()):
                with contextlib.suppress(ValueError):  # an older version may lack what it names
                    request.by(new)
            self.now = new
            return True


@dataclasses.dataclass(frozen=True)
class _Request:
    """The arguments of `Living.recommend`."""

    rows: tuple[dict[str, Any], ...]
    count: int
    keeps_seen: bool

    def by(self, version: Answering) -> list[dict[str, Any]]:
        """Its answer."""
        asked = asked_of(list(enumerate(map(dict, self.rows), 1)), version.reading, "requests")
        found = version.recommend(asked, self.count, self.keeps_seen)
        return rows_of(asked, found, version.version.catalogue, version.name)
