"""Evaluates the SASRec of a stage `teacher` alone: a row of a suite, such as gSASRec.

It gets the JustForYou requests that SIGMA gets, and is scored by the same code.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from sigma_jax.baselines.popularity import Popularity
from sigma_jax.baselines.sasrec import SasrecBaseline, sasrec_baselines
from sigma_jax.evaluation.evaluator import LIST_LENGTH, EvaluationConfig
from sigma_jax.evaluation.score import Results, score
from sigma_jax.runtime.config import check_at_least, to_dataclass
from sigma_jax.schema import PreparedData, Requests
from sigma_jax.stages import find_stage
from sigma_jax.tasks.instructions import TRAIN_WORDINGS
from sigma_jax.tasks.requests import sample_requests

LONGTAIL_SHARE = 0.8  # of requests of another task, which are not drawn here


@dataclasses.dataclass(frozen=True)
class SasrecEvaluationConfig:
    """Settings of the evaluation of a SASRec."""

    split: str  # "test"; "valid" while settings are being chosen
    requests: int  # most requests; 0: no evaluation

    def __post_init__(self):
        check_at_least(0, self, "requests", group="evaluation.")


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
    requests = sample_requests(
        data,
        settings.split,
        seed,
        {"JustForYou": settings.requests},
        LONGTAIL_SHARE,
        TRAIN_WORDINGS,
        is_random=True,
    )
    if not len(requests):
        raise ValueError(
            f"the {settings.split} split has no requests; check the split in config.data."
        )
    baselines = sasrec_baselines(workdir, Popularity.fit(data, seed))
    rankings = {name: both_modes(one, data, requests) for name, one in baselines.items()}
    return score(rankings, requests, data, None)


def both_modes(
    baseline: SasrecBaseline, data: PreparedData, requests: Requests
) -> dict[str, Int32[np.ndarray, "N K"]]:
    """mode -> lists with and without seen items."""
    return {
        mode: baseline.recommend(data, requests, LIST_LENGTH, mode == "exclude_seen", None)
        for mode in ("include_seen", "exclude_seen")
    }
