"""The evaluator of a trained recommender: it draws the requests and ranks items for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from sigma_jax.evaluation.fusions import best_constant, fuses
from sigma_jax.evaluation.instruction_following import (
    instruction_following,
    request_variants,
)
from sigma_jax.generation.config import GenerationConfig
from sigma_jax.generation.generator import Choice, Generator, Recommendations
from sigma_jax.histories import seen_items
from sigma_jax.recommender.trained import TrainedRecommender, load_recommender
from sigma_jax.runtime.config import check_least
from sigma_jax.schema import TASKS, PreparedData, Requests
from sigma_jax.tasks import instructions
from sigma_jax.tasks.requests import make_requests

LIST_LENGTH = 20  # items recommended to each request


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Settings of an evaluation: which requests and methods, and how SIGMA generates."""

    split: str  # "test"; "valid" while settings are being chosen
    requests: dict[str, int]  # task -> maximum number of requests
    generation: GenerationConfig
    # Rank with the fitted reranker, and with the sigma that was fitted together with it
    # (sigma_jax/reranking/reranker.py).
    uses_reranker: bool
    has_baselines: bool  # evaluate the methods of sigma_jax/baselines too
    # Evaluate each baseline a second time, restricted to the items that the instruction allows.
    has_filtered_baselines: bool
    # Requests of each task for the check that lists follow the instruction; 0: no check.
    instruction_following_requests: int

    def __post_init__(self):
        if unknown := set(self.requests) - set(TASKS):
            raise ValueError(
                f"evaluation.requests names {sorted(unknown)}; known are {', '.join(TASKS)}."
            )
        if min(self.requests.values(), default=0) < 0:
            raise ValueError(f"evaluation.requests={self.requests}; use 0 or more.")
        check_least(0, self, "instruction_following_requests", group="evaluation.")


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """A trained recommender with the data and settings of its evaluation."""

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
    ) -> Evaluator:
        """The evaluator of the model in WORKDIR/sft, or in its subfolder `part`, such as
        BEFORE_REFIT."""
        trained = load_recommender(workdir, data, part)
        generator = make_generator(trained, settings.generation)
        return cls(trained, generator, data, settings, seed)

    @property
    def phrasings(self) -> Mapping[str, tuple[str, ...]]:
        """The instruction phrasings of the training, by task."""
        return self.trained.config.prompt.phrasings

    def requests(
        self, split: str = "", phrasings: Mapping[str, tuple[str, ...]] | None = None
    ) -> Requests:
        """Requests drawn by the seed, at most `settings.requests[task]` for each task.

        Args:
          split: the split to draw from; the split of the settings by default.
          phrasings: phrasings of the instructions by task; those of the training by default. They
            change the instructions only: users, times and targets stay the same.
        """
        share = self.trained.config.prompt.longtail_share
        max_requests = self.settings.requests
        requests = make_requests(
            self.data,
            split or self.settings.split,
            self.seed,
            max(max_requests.values(), default=0),
            share,
            phrasings or self.phrasings,
        )
        rng = np.random.default_rng(self.seed)
        rows = []
        for number, task in enumerate(TASKS):
            task_rows = np.flatnonzero(requests.task == number)
            rows.append(np.sort(rng.permutation(task_rows)[: max_requests.get(task, 0)]))
        return requests.take(np.concatenate(rows))

    def choice(self, requests: Requests) -> Choice:
        """How the model ranks for `requests`, seen items included."""
        return self.trained.choice(self.generator, requests, self.data, self.settings.uses_reranker)

    def lists(
        self, requests: Requests, choices: Sequence[Choice], count: int = LIST_LENGTH
    ) -> list[Recommendations]:
        """The recommendations for `requests` under each of `choices`."""
        prompts = self.trained.prompts(requests, self.data)
        return self.generator.variants(prompts, count, choices)

    def rankings_by_mode(
        self, requests: Requests, choices: Mapping[str, Choice]
    ) -> tuple[dict[str, dict[str, Int32[np.ndarray, "N K"]]], Recommendations]:
        """Rankings of each choice with seen items included and excluded, as
        `rankings[name][mode]`, and the full recommendations of the first choice."""
        seen = seen_items(self.data.histories, requests)
        variants = [dataclasses.replace(c, seen=s) for c in choices.values() for s in (None, seen)]
        recommendations = self.lists(requests, variants)
        rankings = {
            name: {
                "include_seen": recommendations[2 * number].items,
                "exclude_seen": recommendations[2 * number + 1].items,
            }
            for number, name in enumerate(choices)
        }
        return rankings, recommendations[0]

    def unseen_wording(self, requests: Requests, choice: Choice) -> Int32[np.ndarray, "N K"]:
        """Rankings for `requests`, which `requests()` returned, in wordings unseen in training."""
        unseen = self.requests(phrasings=instructions.HELDOUT_PHRASINGS)
        assert np.array_equal(unseen.target, requests.target)
        # Both ask for the same users at the same times; only the instructions differ.
        scores = choice.told
        if scores is not None:
            scores = self.trained.told(self.generator, unseen, self.data)
        return self.lists(unseen, [dataclasses.replace(choice, told=scores)])[0].items

    def instruction_following(self, requests: Requests) -> dict[str, Any]:
        """Metrics of evaluation/instruction_following.py; {} where no instruction is checked."""
        limit = self.settings.instruction_following_requests
        variants = request_variants(requests, self.data, limit, self.phrasings) if limit else {}
        lists = {
            name: self.lists(variant, [self.choice(variant)])[0].items
            for name, (_, variant) in variants.items()
        }
        return instruction_following(lists, variants, self.data) if variants else {}

    def constant_sigma(self) -> float | None:
        """The constant that replaces Eq. 11's sigma best on validation requests; None where
        nothing is fused.

        Call it for a model that was not trained on validation rows.
        """
        valid = self.requests("valid") if fuses(self.generator) else ()
        if not len(valid):
            return None
        seen = seen_items(self.data.histories, valid)
        return best_constant(self.generator, self.trained.prompts(valid, self.data), valid, seen)


def make_generator(trained: TrainedRecommender, config: GenerationConfig) -> Generator:
    """The generator of a trained recommender, over all items of the catalogue."""
    return Generator.create(
        trained.model,
        trained.tables,
        trained.semantic_ids,
        trained.config.prompt.layout.sid_generated,
        config,
        trained.config.prompt.layout.item_query,
        trained.words,
    )
