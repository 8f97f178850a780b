"""The evaluator of a trained recommender: it draws the requests and ranks items for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from sigma_jax.evaluation.baselines import LIST_LENGTH
from sigma_jax.evaluation.fusions import best_constant, fuses
from sigma_jax.evaluation.instruction_following import (
    instruction_following,
    request_variants,
)
from sigma_jax.generation.config import GenerationConfig
from sigma_jax.recommender.parts import RecommenderParts
from sigma_jax.recommender.ranking import Recommendations
from sigma_jax.recommender.recommender import Recommender, RecommendOptions
from sigma_jax.runtime.config import check_at_least
from sigma_jax.schema import TASKS, PreparedData, RequestBatch, Requests
from sigma_jax.tasks import instructions
from sigma_jax.tasks.requests import sample_requests


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
    # Also those that take minutes where sessions hold many items, and the shortcuts of the log
    # (baselines.registry.SLOW, evaluation/shortcuts.py). Suites do.
    has_slow_baselines: bool
    # Evaluate other fusions of prefixes and items than APF too (evaluation/fusions.py).
    has_other_fusions: bool
    # Evaluate each baseline a second time, restricted to the items that the instruction allows.
    has_filtered_baselines: bool
    # Requests of each task for the check that lists follow the instruction; 0: no check.
    instruction_following_requests: int

    def __post_init__(self):
        check_requests(self.requests)
        check_at_least(0, self, "instruction_following_requests", group="evaluation.")


def check_requests(requests: Mapping[str, int]) -> None:
    """ValueError if `requests` names an unknown task, or a number below 0."""
    if unknown := set(requests) - set(TASKS):
        raise ValueError(
            f"evaluation.requests names {sorted(unknown)}; known are {', '.join(TASKS)}."
        )
    if min(requests.values(), default=0) < 0:
        raise ValueError(f"evaluation.requests={dict(requests)}; use 0 or more.")


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """A trained recommender with the data and settings of its evaluation."""

    recommender: Recommender
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
        """The evaluator of the model in WORKDIR/sft.

        Args:
          part: a subfolder of WORKDIR/sft that holds the model, such as BEFORE_REFIT.
        """
        parts = RecommenderParts.of_workdir(workdir, data, part)
        return cls(Recommender(parts, settings.generation), data, settings, seed)

    @property
    def options(self) -> RecommendOptions:
        """How the model ranks by the settings, seen items included."""
        generation = self.recommender.generator.config
        return RecommendOptions(
            LIST_LENGTH, reranks=self.settings.uses_reranker, generation=generation
        )

    @property
    def wordings(self) -> Mapping[str, tuple[str, ...]]:
        """The instruction wordings of the training, by task."""
        return self.recommender.spec.wordings

    def requests(
        self, split: str = "", wordings: Mapping[str, tuple[str, ...]] | None = None
    ) -> Requests:
        """Requests drawn by the seed, at most `settings.requests[task]` for each task.

        Args:
          split: the split to draw from; the split of the settings by default.
          wordings: of the instructions, by task; those of the training by default. They
            change the instructions only: users, times and targets stay the same.
        """
        return sample_requests(
            self.data,
            split or self.settings.split,
            self.seed,
            self.settings.requests,
            self.recommender.spec.longtail_share,
            wordings or self.wordings,
            is_random=True,
        )

    def lists(
        self, requests: Requests, variants: Sequence[RecommendOptions]
    ) -> list[Recommendations]:
        """The recommendations for `requests` under each of `variants`."""
        return self.recommender.recommend_variants(RequestBatch.of(requests, self.data), variants)

    def rankings_by_mode(
        self, requests: Requests, methods: Mapping[str, RecommendOptions]
    ) -> tuple[dict[str, Mapping[str, Int32[np.ndarray, "N K"]]], Recommendations]:
        """`rankings[name][mode]` of each method, and the recommendations of the first method.

        The modes are "include_seen" and "exclude_seen". The recommendations include seen items.
        """
        variants = [
            dataclasses.replace(options, exclude_seen=exclude_seen)
            for options in methods.values()
            for exclude_seen in (False, True)
        ]
        recommendations = self.lists(requests, variants)
        rankings: dict[str, Mapping[str, Int32[np.ndarray, "N K"]]] = {
            name: {
                "include_seen": recommendations[2 * number].items,
                "exclude_seen": recommendations[2 * number + 1].items,
            }
            for number, name in enumerate(methods)
        }
        return rankings, recommendations[0]

    def unseen_wording(self, requests: Requests) -> Int32[np.ndarray, "N K"]:
        """Rankings for `requests`, which `requests()` returned, in wordings unseen in training."""
        unseen = self.requests(wordings=instructions.HELDOUT_WORDINGS)
        assert np.array_equal(unseen.target, requests.target)
        return self.lists(unseen, [self.options])[0].items

    def instruction_following(self, requests: Requests) -> dict[str, Any]:
        """Metrics of evaluation/instruction_following.py; {} where no instruction is checked."""
        limit = self.settings.instruction_following_requests
        variants = request_variants(requests, self.data, limit, self.wordings) if limit else {}
        lists = {
            name: self.lists(variant, [self.options])[0].items
            for name, (_, variant) in variants.items()
        }
        return instruction_following(lists, variants, self.data) if variants else {}

    def constant_sigma(self) -> float | None:
        """The constant sigma of Eq. 11 with the highest NDCG on validation requests.

        None where other fusions are not evaluated. Call it for a model that was not trained on
        validation rows.
        """
        if not (self.settings.has_other_fusions and fuses(self.recommender)):
            return None
        valid = self.requests("valid")
        if not len(valid):
            return None
        return best_constant(self.recommender, RequestBatch.of(valid, self.data))
