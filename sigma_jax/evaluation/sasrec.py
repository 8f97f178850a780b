"""Evaluates the SASRec of a stage `teacher` alone: a row of a suite, such as gSASRec.

It gets the requests that SIGMA gets, and is scored by the same code. Baselines that are not trained
can be evaluated beside it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from sigma_jax.baselines.popularity import Popularity
from sigma_jax.baselines.sasrec import sasrec_baselines
from sigma_jax.evaluation.baselines import baseline_rankings, ranked, shortcuts_of
from sigma_jax.evaluation.evaluator import EvaluationConfig, check_requests
from sigma_jax.evaluation.score import Results, score
from sigma_jax.runtime.config import to_dataclass
from sigma_jax.schema import PreparedData
from sigma_jax.stages import find_stage
from sigma_jax.tasks.instructions import TRAIN_WORDINGS
from sigma_jax.tasks.requests import sample_requests
from sigma_jax.teacher.task import REFIT

LONGTAIL_SHARE = 0.8  # of the head, as in the presets of the stage sft


@dataclasses.dataclass(frozen=True)
class SasrecEvaluationConfig:
    """Settings of the evaluation of a SASRec."""

    is_evaluated: bool  # False: the stage is trained and not evaluated
    split: str  # "test"; "valid" while settings are being chosen
    requests: dict[str, int]  # task -> maximum number of requests
    # As of EvaluationConfig.
    has_baselines: bool
    has_slow_baselines: bool
    has_filtered_baselines: bool

    def __post_init__(self):
        check_requests(self.requests)


def evaluation_settings(config: Any) -> EvaluationConfig | SasrecEvaluationConfig:
    """The settings `config.evaluation`, of a recommender or of a SASRec by `config.stage`."""
    is_recommender = find_stage(config.stage).is_recommender
    kind: Any = EvaluationConfig if is_recommender else SasrecEvaluationConfig
    return to_dataclass(kind, config.evaluation, "evaluation")


def compute_sasrec_results(workdir: Path, settings: SasrecEvaluationConfig, seed: int) -> Results:
    """Results of the SASRec in WORKDIR/teacher, and of the one before its refit.

    ValueError if the split has no requests.
    """
    data = PreparedData.load(workdir / "data")
    requests, valid = (
        sample_requests(
            data,
            split,
            seed,
            settings.requests,
            LONGTAIL_SHARE,
            TRAIN_WORDINGS,
            is_random=True,
        )
        for split in (settings.split, "valid")
    )
    if not len(requests):
        raise ValueError(
            f"the {settings.split} split has no requests; check the split in config.data."
        )
    if not settings.has_baselines:
        alone = sasrec_baselines(workdir, Popularity.fit(data, seed))
        rankings = {
            name: ranked(one, data, requests, {"": None})[""] for name, one in alone.items()
        }
        return score(rankings, requests, data, None)
    is_refitted = (workdir / "teacher" / REFIT).exists()
    rankings = baseline_rankings(workdir, data, requests, valid, seed, is_refitted, settings)
    results = score(rankings, requests, data, None)
    if settings.has_slow_baselines:
        results["shortcuts"] = shortcuts_of(workdir, data, valid, seed)
    return results
