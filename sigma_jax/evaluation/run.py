"""Evaluates a trained workdir and the baselines on the test split, and prints examples.

All methods get the same requests and the same seen items, and are scored by the same code.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from sigma_jax.baselines.sasrec import BEFORE_REFIT as ROW_BEFORE
from sigma_jax.evaluation.baselines import ByMode, baseline_rankings, shortcuts_of
from sigma_jax.evaluation.calibration import calibration
from sigma_jax.evaluation.evaluator import EvaluationConfig, Evaluator
from sigma_jax.evaluation.fusions import other_fusions
from sigma_jax.evaluation.page import collect_report_data, write_report
from sigma_jax.evaluation.sasrec import compute_sasrec_results, evaluation_settings
from sigma_jax.evaluation.score import Results, score
from sigma_jax.evaluation.table import render_summary, render_table, write_json
from sigma_jax.provenance import provenance
from sigma_jax.recommender.parts import BEFORE_REFIT
from sigma_jax.recommender.ranking import Recommendations
from sigma_jax.recommender.recommender import RecommendOptions
from sigma_jax.recommender.results import text_table
from sigma_jax.reranking.reranker import FeatureTables
from sigma_jax.runtime.artifacts import (
    Recipe,
    check_inputs,
    is_current,
    read_manifest,
    write_artifact,
)
from sigma_jax.runtime.config import to_dataclass
from sigma_jax.runtime.files import read_json
from sigma_jax.schema import TASKS, PreparedData, Requests, SemanticIds
from sigma_jax.stages import artifact_names

SIGMA = "SIGMA"  # the name of a recommender in results
FILES = ("results.json", "table.txt", "report.html")
RANKER_FACTS = ("ranker", "num_beams", "sigma", "constant_sigma")  # of results, kept with the run
VERSION = 6  # of results.json; raise it when the same settings give other results or keys


def evaluate(config: Any, workdir: Path) -> Results:
    """Results of the workdir; writes WORKDIR/evaluation and prints a summary.

    The folder gets results.json, table.txt and report.html. It is reused if it was made by the
    same settings from the same artifacts.

    Args:
      config: a config with `stage`, `seed` and `evaluation`, of the run that made the workdir.

    Raises:
      ValueError: a stage's artifact is missing, or the split has no request.
    """
    settings = evaluation_settings(config)
    check_inputs(workdir, config.stage)
    manifests = {s: read_manifest(workdir, s) for s in artifact_names() if (workdir / s).exists()}
    inputs = {stage: manifest.fingerprint for stage, manifest in manifests.items()}
    recipe = Recipe(dataclasses.asdict(settings), inputs, config.seed)
    if is_current_evaluation(workdir, recipe):
        logging.info("evaluation: already done, %s", workdir / "evaluation")
        results = read_json(workdir / "evaluation" / "results.json")
    else:
        began = time.monotonic()
        if isinstance(settings, EvaluationConfig):
            model, results = SIGMA, compute_results(workdir, settings, config.seed)
        else:
            model, results = "SASRec", compute_sasrec_results(workdir, settings, config.seed)
        results["run"] = {
            "version": VERSION,
            "model": model,
            **provenance(),
            "config_hash": recipe.fingerprint[:12],
            "data_hash": inputs["data"][:12],
            "seed": config.seed,
            "split": settings.split,
            **{name: results[name] for name in RANKER_FACTS if name in results},
            "seconds": time.monotonic() - began,
        }
        stage_metrics = {stage: manifest.metrics for stage, manifest in manifests.items()}
        write_evaluation(results, workdir, recipe, stage_metrics)
    print(render_summary(results, workdir / "evaluation"))
    return results


def write_evaluation(
    results: Results, workdir: Path, recipe: Recipe, stage_metrics: Mapping[str, Any]
) -> None:
    """Writes the artifact WORKDIR/evaluation with FILES; a SASRec alone gets no report.

    Args:
      stage_metrics: stage -> metrics of its manifest, for the report.
    """

    def write(folder: Path) -> dict[str, Any]:
        write_json(results, folder / "results.json")
        (folder / "table.txt").write_text(render_table(results))
        if results["run"]["model"] != SIGMA:
            return {"seconds": results["run"]["seconds"]}  # the report is about a recommender
        metrics_files = {
            stage: workdir / "train" / stage / "metrics.jsonl"
            for stage in artifact_names()
            if (workdir / "train" / stage / "metrics.jsonl").exists()
        }
        report_data = collect_report_data(
            PreparedData.load(workdir / "data"),
            SemanticIds.load(workdir / "tokenizer"),
            stage_metrics,
        )
        write_report(results, metrics_files, report_data, folder / "report.html")
        return {"seconds": results["run"]["seconds"]}

    write_artifact(workdir, "evaluation", recipe, write)


def is_current_evaluation(workdir: Path, recipe: Recipe) -> bool:
    """Whether WORKDIR/evaluation holds the results of exactly `recipe`; if not, it is replaced."""
    folder = workdir / "evaluation"
    try:
        run = read_json(folder / "results.json").get("run", {})
        names = FILES if run.get("model") == SIGMA else FILES[:2]
        if not all((folder / name).exists() for name in names):
            return False
        return run.get("version") == VERSION and is_current(workdir, "evaluation", recipe)
    except ValueError:
        return False


def compute_results(workdir: Path, settings: EvaluationConfig, seed: int) -> Results:
    """Results of SIGMA and the baselines: the metrics of score.score, and further entries.

    They are the deviation of the beam scores by task, the calibration, the ranker, the sigma in
    use, the best constant sigma, and the metrics of instruction following.

    Raises:
      ValueError: the split has no requests.
    """
    data = PreparedData.load(workdir / "data")
    evaluator = Evaluator.load(workdir, data, settings, seed)
    requests = evaluator.requests()
    if not len(requests):
        raise ValueError(
            f"the {settings.split} split has no requests; check the split in config.data."
        )
    numbers = ", ".join(
        f"{task} {(requests.task == TASKS.index(task)).sum()}" for task in settings.requests
    )
    logging.info("evaluation: %d requests (%s)", len(requests), numbers)
    is_refitted = (workdir / "sft" / BEFORE_REFIT).exists()
    before_refit = evaluator
    if is_refitted:
        before_refit = Evaluator.load(workdir, data, settings, seed, BEFORE_REFIT)
    constant = before_refit.constant_sigma()
    rankings, recommendations = model_rankings(evaluator, before_refit, requests, constant)
    if settings.has_baselines:
        logging.info("evaluation: baselines")
        rankings |= baseline_rankings(
            workdir,
            data,
            requests,
            before_refit.requests("valid"),
            seed,
            is_refitted,
            settings,
            lambda rows: tables_of(before_refit if rows is data else evaluator),
        )
    results = score(rankings, requests, data, evaluator.recommender.parts.semantic_ids)
    results["deviation"] = {
        TASKS[task]: recommendations.deviation[requests.task == task].tolist()
        for task in np.unique(requests.task)
    }
    results["calibration"] = calibration(recommendations, requests)
    if settings.has_baselines and settings.has_slow_baselines:
        results["shortcuts"] = shortcuts_of(workdir, data, evaluator.requests("valid"), seed)
    results["ranker"] = settings.generation.ranker
    results["num_beams"] = settings.generation.num_beams
    results["sigma"] = evaluator.recommender.sigma(evaluator.options)
    results["constant_sigma"] = constant
    has_instructions = evaluator.recommender.spec.has_instructions
    if has_instructions and (by_task := evaluator.instruction_following(requests)):
        results["instruction_following"] = by_task
    if settings.split == "valid":
        results["warnings"] += validation_warnings(evaluator, constant)
    return results


def model_rankings(
    evaluator: Evaluator, before_refit: Evaluator, requests: Requests, constant: float | None
) -> tuple[dict[str, ByMode], Recommendations]:
    """`rankings[method][mode]` of the model, and its recommendations with seen items.

    Args:
      before_refit: of the model before its refit; the same as `evaluator` without a refit.
      constant: the best constant sigma; None if nothing is fused.
    """
    methods = {SIGMA: evaluator.options} | other_methods(evaluator, constant)
    rankings, recommendations = evaluator.rankings_by_mode(requests, methods)
    if before_refit is not evaluator:
        methods = {SIGMA: before_refit.options} | without_reranker(before_refit)
        of_first = before_refit.rankings_by_mode(requests, methods)[0]
        rankings |= {f"{name}{ROW_BEFORE}": by_mode for name, by_mode in of_first.items()}
    if evaluator.recommender.spec.has_instructions:
        unseen = evaluator.unseen_wording(requests)
        rankings[f"{SIGMA}, unseen wording"] = {"include_seen": unseen}
    return rankings, recommendations


def tables_of(evaluator: Evaluator) -> FeatureTables | None:
    """The counts of the evaluator's reranker; None without one."""
    reranker = evaluator.recommender.parts.reranker
    return reranker.tables if reranker else None


def validation_warnings(evaluator: Evaluator, constant: float | None) -> list[str]:
    """Warnings for an evaluation on the split that settings were fitted on."""
    reranker = evaluator.recommender.parts.reranker
    fitted = {
        "the reranker was fitted": evaluator.settings.uses_reranker and reranker is not None,
        "constant sigma was chosen": constant is not None,
        "settings of baselines were chosen": evaluator.settings.has_baselines,
    }
    return [
        f"{event} on requests of this split; evaluate it on the test split"
        for event, happened in fitted.items()
        if happened
    ]


def other_methods(evaluator: Evaluator, constant: float | None) -> dict[str, RecommendOptions]:
    """Method name -> how it ranks: the model without its reranker, and with other fusions."""
    methods = without_reranker(evaluator)
    if constant is not None:
        methods |= other_fusions(evaluator.options, constant)
    return methods


def without_reranker(evaluator: Evaluator) -> dict[str, RecommendOptions]:
    """ "SIGMA without reranker" and how it ranks; {} where there is no reranker."""
    options = evaluator.options
    if not options.reranks or evaluator.recommender.parts.reranker is None:
        return {}
    return {"SIGMA without reranker": dataclasses.replace(options, reranks=False)}


def show_recommendations(config: Any, workdir: Path, users: int = 2, count: int = 5) -> None:
    """Prints the recommendations to a few users under three instructions each."""
    settings = to_dataclass(EvaluationConfig, config.evaluation, "evaluation")
    data = PreparedData.load(workdir / "data")
    evaluator = Evaluator.load(workdir, data, settings, config.seed)
    requests = evaluator.requests()
    shown = example_rows(requests, users)
    # A whole batch: the evaluation has compiled its programs.
    rows = np.concatenate([shown, np.arange(len(requests))])[: settings.generation.batch_size]
    requests = requests.take(rows)
    options = dataclasses.replace(evaluator.options, count=count)
    [recommendations] = evaluator.lists(requests, [options])
    for row in range(len(shown)):
        user = data.users.table["user_id"][int(requests.user[row])].as_py()
        print(f'\nuser {user}: "{requests.instruction[row]}"')
        print(text_table(recommendations, row, data.catalogue))


def example_rows(requests: Requests, users: int, per_user: int = 3) -> np.ndarray:
    """Rows of the first `users` users with at least `per_user` requests, `per_user` rows each.

    If too few users have that many, users with the most requests follow.
    """
    count = np.bincount(requests.user)
    order = np.argsort(-np.minimum(count, per_user), kind="stable")[:users]
    return np.concatenate([np.flatnonzero(requests.user == user)[:per_user] for user in order])
