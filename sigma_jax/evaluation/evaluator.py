"""A trained recommender under judgement: its requests, and what it recommends to them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from sigma_jax.evaluation.fusions import best_constant, fuses
from sigma_jax.evaluation.instruction_following import followed, followed_requests
from sigma_jax.generation.config import GenerationConfig
from sigma_jax.generation.generator import Choice, Generator, Recommendations
from sigma_jax.histories import seen_items
from sigma_jax.recommender.trained import TrainedRecommender, load_recommender
from sigma_jax.runtime.config import check_least
from sigma_jax.schema import TASKS, PreparedData, Requests
from sigma_jax.tasks import instructions
from sigma_jax.tasks.requests import make_requests

LENGTH = 20  # of a list: items a request


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is judged, and how SIGMA generates."""

    split: str  # "test", or "valid" while settings are chosen
    requests: dict[str, int]  # task -> at most this many requests
    generation: GenerationConfig
    uses_prior: (
        bool  # what counts say, with the sigma fitted beside it (sigma_jax/reranking/reranker.py)
    )
    has_baselines: bool  # the methods of sigma_jax/baselines beside SIGMA
    has_filtered_baselines: bool  # also the baselines restricted to what an instruction allows
    followed_requests: int  # of each task, to see whether instructions are followed; 0: not looked

    def __post_init__(self):
        if unknown := set(self.requests) - set(TASKS):
            raise ValueError(
                f"evaluation.requests names {sorted(unknown)}; known are {', '.join(TASKS)}."
            )
        if min(self.requests.values(), default=0) < 0:
            raise ValueError(f"evaluation.requests={self.requests}; use 0 or more.")
        check_least(0, self, "followed_requests", group="evaluation.")


@dataclasses.dataclass(frozen=True)
class Judged:
    """A trained recommender and all that its lists are made from."""

    trained: TrainedRecommender
    generator: Generator
    data: PreparedData
    settings: EvaluationConfig
    seed: int

    @classmethod
    def load(
        cls,
        workdir: Path,
        data: PreparedData,
        settings: EvaluationConfig,
        seed: int,
        part: str = "",
    ) -> Judged:
        """What WORKDIR/sft holds, or a folder of it, such as BEFORE_REFIT."""
        trained = load_recommender(workdir, data, part)
        generator = make_generator(trained, settings.generation)
        return cls(trained, generator, data, settings, seed)

    @property
    def phrasings(self) -> Mapping[str, tuple[str, ...]]:
        """Of the instructions it was trained on."""
        return self.trained.config.prompt.phrasings

    def requests(
        self, split: str = "", phrasings: Mapping[str, tuple[str, ...]] | None = None
    ) -> Requests:
        """At most so many requests a task as the settings say, drawn by the seed; of their split,
        if no other is given.

        Other phrasings of the instructions leave all else as it is.
        """
        share = self.trained.config.prompt.longtail_share
        wanted = self.settings.requests
        requests = make_requests(
            self.data,
            split or self.settings.split,
            self.seed,
            max(wanted.values(), default=0),
            share,
            phrasings or self.phrasings,
        )
        rng = np.random.default_rng(self.seed)
        rows = []
        for number, task in enumerate(TASKS):
            here = np.flatnonzero(requests.task == number)
            rows.append(np.sort(rng.permutation(here)[: wanted.get(task, 0)]))
        return requests.take(np.concatenate(rows))

    def choice(self, requests: Requests) -> Choice:
        """How it ranks for `requests`, seen items kept."""
        return self.trained.choice(self.generator, requests, self.data, self.settings.uses_prior)

    def lists(
        self, requests: Requests, choices: Sequence[Choice], count: int = LENGTH
    ) -> list[Recommendations]:
        """What each of `choices` recommends to `requests`."""
        prompts = self.trained.prompts(requests, self.data)
        return self.generator.variants(prompts, count, choices)

    def both_ways(
        self, requests: Requests, choices: Mapping[str, Choice]
    ) -> tuple[dict[str, dict[str, Int32[np.ndarray, "N K"]]], Recommendations]:
        """Rankings of each choice with seen items kept and left out, and all that the first
        gave."""
        seen = seen_items(self.data.histories, requests)
        each = [dataclasses.replace(c, seen=s) for c in choices.values() for s in (None, seen)]
        found = self.lists(requests, each)
        rankings = {
            name: {"kept": found[2 * number].items, "left_out": found[2 * number + 1].items}
            for number, name in enumerate(choices)
        }
        return rankings, found[0]

    def unseen_wording(self, requests: Requests, choice: Choice) -> Int32[np.ndarray, "N K"]:
        """The lists for `requests` (those of `requests()`) in wordings never trained on."""
        unseen = self.requests(phrasings=instructions.HELDOUT_PHRASINGS)
        assert np.array_equal(unseen.target, requests.target)
        # All but the words is that of the same users at the same time.
        told = choice.told
        if told is not None:
            told = self.trained.told(self.generator, unseen, self.data)
        return self.lists(unseen, [dataclasses.replace(choice, told=told)])[0].items

    def followed(self, requests: Requests) -> dict[str, Any]:
        """Whether instructions are followed (evaluation/instruction_following.py); {} where none
        is judged."""
        most = self.settings.followed_requests
        sets = followed_requests(requests, self.data, most, self.phrasings) if most else {}
        lists = {
            name: self.lists(asked, [self.choice(asked)])[0].items
            for name, (_, asked) in sets.items()
        }
        return followed(lists, sets, self.data) if sets else {}

    def constant_sigma(self) -> float | None:
        """The best constant in place of Eq. 11's sigma, by validation; None where nothing is
        fused.

        To be asked of a model that no validation row has trained.
        """
        valid = self.requests("valid") if fuses(self.generator) else ()
        if not len(valid):
            return None
        seen = seen_items(self.data.histories, valid)
        return best_constant(self.generator, self.trained.prompts(valid, self.data), valid, seen)


def make_generator(trained: TrainedRecommender, config: GenerationConfig) -> Generator:
    """A generator over the whole catalogue."""
    return Generator.create(
        trained.model,
        trained.tables,
        trained.semantic_ids,
        trained.config.prompt.sid_generated,
        config,
        trained.config.prompt.item_query,
        trained.words,
    )
