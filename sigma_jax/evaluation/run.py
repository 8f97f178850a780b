"""Judges a trained workdir on its test split, beside the baselines, and shows what it says.

The same requests, the same seen items and the same metric code for every method.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Int32

from sigma_jax.baselines.covisitation import CoVisitation
from sigma_jax.baselines.own_frequent import OwnFrequent
from sigma_jax.baselines.popularity import Popularity
from sigma_jax.baselines.sasrec import SasrecBaseline
from sigma_jax.evaluation.evaluator import LENGTH, EvaluationConfig, Judged
from sigma_jax.evaluation.fusions import other_fusions
from sigma_jax.evaluation.page import collect_figures, write_report
from sigma_jax.evaluation.score import FILTERED, Results, score
from sigma_jax.evaluation.table import render_summary, render_table, write_json
from sigma_jax.generation.generator import Choice, Generator, Recommendations
from sigma_jax.recommender.trained import BEFORE_REFIT
from sigma_jax.runtime.artifacts import (
    Recipe,
    check_inputs,
    command_line,
    is_current,
    read_json,
    read_manifest,
    write_artifact,
)
from sigma_jax.runtime.config import to_dataclass
from sigma_jax.schema import TASKS, PreparedData, Requests, SemanticIds
from sigma_jax.stages import artifact_names
from sigma_jax.tasks import instructions
from sigma_jax.tasks.constraints import allowed_items
from sigma_jax.teacher.sasrec import load_sasrec

FILES = ("results.json", "table.txt", "report.html")
VERSION = 2  # of the figures: higher where the same settings give others, or more


def evaluate(config: Any, workdir: Path) -> Results:
    """Writes WORKDIR/evaluation: results.json, table.txt and report.html; prints a summary.

    Args:
      config: a config with `seed` and `evaluation`, of the run that made the workdir.

    Raises:
      ValueError: a stage's artifact is missing, or the split has no request.
    """
    settings = to_dataclass(EvaluationConfig, config.evaluation, "evaluation")
    check_inputs(workdir, "sft")
    manifests = {s: read_manifest(workdir, s) for s in artifact_names() if (workdir / s).exists()}
    inputs = {stage: manifest.fingerprint for stage, manifest in manifests.items()}
    recipe = Recipe(dataclasses.asdict(settings), inputs, config.seed)
    if is_current_evaluation(workdir, recipe):
        logging.info("evaluation: done before, %s", workdir / "evaluation")
        results = read_json(workdir / "evaluation" / "results.json")
        print(render_summary(results, workdir / "evaluation"))
        return results
    began = time.monotonic()
    results = judge(workdir, settings, config.seed)
    results["run"] = {
        "version": VERSION,
        "command": command_line(),
        "config_hash": recipe.fingerprint[:12],
        "data_hash": inputs["data"][:12],
        "seed": config.seed,
        "split": settings.split,
        "num_beams": settings.generation.num_beams,
        "sigma": results["sigma"],
        "constant_sigma": results["constant_sigma"],
        "seconds": time.monotonic() - began,
    }

    def write(folder: Path) -> dict[str, Any]:
        write_json(results, folder / "results.json")
        (folder / "table.txt").write_text(render_table(results))
        metrics_files = {
            stage: workdir / "train" / stage / "metrics.jsonl"
            for stage in artifact_names()
            if (workdir / "train" / stage / "metrics.jsonl").exists()
        }
        figures = collect_figures(
            PreparedData.load(workdir / "data"),
            SemanticIds.load(workdir / "tokenizer"),
            {stage: manifest.figures for stage, manifest in manifests.items()},
        )
        write_report(results, metrics_files, figures, folder / "report.html")
        return {"seconds": time.monotonic() - began}

    write_artifact(workdir, "evaluation", recipe, write)
    print(render_summary(results, workdir / "evaluation"))
    return results


def is_current_evaluation(workdir: Path, recipe: Recipe) -> bool:
    """Whether these very settings were judged before. Others replace the figures, never clash."""
    folder = workdir / "evaluation"
    if not all((folder / name).exists() for name in FILES):
        return False
    try:
        run = read_json(folder / "results.json").get("run", {})
        return run.get("version") == VERSION and is_current(workdir, "evaluation", recipe)
    except ValueError:
        return False


def judge(workdir: Path, settings: EvaluationConfig, seed: int) -> Results:
    """Scores of SIGMA and the baselines, and the deviation of the beam scores by task."""
    data = PreparedData.load(workdir / "data")
    ours = Judged.load(workdir, data, settings, seed)
    requests = ours.requests()
    if not len(requests):
        raise ValueError(
            f"the {settings.split} split has no requests; check the split in config.data."
        )
    logging.info("evaluation: %d requests", len(requests))
    is_refitted = (workdir / "sft" / BEFORE_REFIT).exists()
    first = Judged.load(workdir, data, settings, seed, BEFORE_REFIT) if is_refitted else ours
    constant = first.constant_sigma()
    choice = ours.choice(requests)
    choices = {"SIGMA": choice} | other_choices(ours.generator, choice, constant)
    rankings, kept = ours.both_ways(requests, choices)
    if is_refitted:
        other = {"SIGMA before refit": first.choice(requests)}
        rankings |= first.both_ways(requests, other)[0]
    is_worded = ours.phrasings is not instructions.WITHOUT_WORDS
    if is_worded:
        rankings["SIGMA, unseen wording"] = {"kept": ours.unseen_wording(requests, choice)}
    if settings.has_baselines:
        is_filtered_too = settings.has_filtered_baselines
        rankings |= baseline_rankings(workdir, data, requests, is_filtered_too, seed)
    results = score(rankings, requests, data, ours.trained.semantic_ids)
    results["deviation"] = {
        TASKS[task]: kept.deviation[requests.task == task].tolist()
        for task in np.unique(requests.task)
    }
    results["sigma"] = choice.config.sigma
    results["constant_sigma"] = constant
    if is_worded and (figures := ours.followed(requests)):
        results["followed"] = figures
    if settings.split == "valid":
        chosen = {"the prior was fitted": choice.features, "constant sigma was chosen": constant}
        results["warnings"] += [
            f"{what} on requests of this split: judge it on the test split"
            for what, value in chosen.items()
            if value is not None
        ]
    return results


def other_choices(generator: Generator, choice: Choice, constant: float | None) -> dict:
    """name -> Choice: the model without the prior of `choice`, and with other fusions."""
    found = {}
    if choice.features is not None:
        found["SIGMA without prior"] = Choice(config=generator.config)
    if constant is not None:
        found |= other_fusions(generator, constant)
    return found


def baseline_rankings(
    workdir: Path, data: PreparedData, requests: Requests, is_filtered_too: bool, seed: int
) -> Mapping[str, Mapping[str, Int32[np.ndarray, "N K"]]]:
    """Each baseline with seen items kept and left out; those restricted to the constraint too."""
    popularity = Popularity.fit(data, seed)
    baselines = {
        "Popularity": popularity,
        "Own most frequent": OwnFrequent(popularity),
        "Co-visitation": CoVisitation.fit(data, seed),
    }
    if (workdir / "teacher").exists():
        baselines["SASRec"] = SasrecBaseline(load_sasrec(workdir / "teacher"), popularity)
    allowed = allowed_items(data, requests)
    rankings = {}
    for name, baseline in baselines.items():
        for suffix, limit in (("", None), (FILTERED, allowed))[: 1 + is_filtered_too]:
            rankings[name + suffix] = {
                mode: baseline.recommend(data, requests, LENGTH, mode == "kept", limit)
                for mode in ("kept", "left_out")
            }
    return rankings


def show_recommendations(config: Any, workdir: Path, users: int = 2, count: int = 5) -> None:
    """Prints what the model recommends to a few users under three instructions."""
    settings = to_dataclass(EvaluationConfig, config.evaluation, "evaluation")
    data = PreparedData.load(workdir / "data")
    ours = Judged.load(workdir, data, settings, config.seed)
    requests = ours.requests()
    requests = requests.take(example_rows(requests, users))
    [found] = ours.lists(requests, [ours.choice(requests)], count)
    for row in range(len(requests)):
        user = data.users.table["user_id"][int(requests.user[row])].as_py()
        print(f'\nuser {user}: "{requests.instruction[row]}"')
        print(describe(found, row, data))


def example_rows(requests: Requests, users: int, each: int = 3) -> np.ndarray:
    """Rows of the first `users` users with at least `each` tasks (or of those with the most)."""
    count = np.bincount(requests.user)
    order = np.argsort(-np.minimum(count, each), kind="stable")[:users]
    return np.concatenate([np.flatnonzero(requests.user == user)[:each] for user in order])


def describe(found: Recommendations, row: int, data: PreparedData) -> str:
    """A table of one request's items: probability, prefix, cosine, text."""
    lines = [f"{'':>4}{'probability':>12}{'beam':>6}{'log P(prefix)':>15}{'cosine':>8}  item"]
    items = found.items[row]
    items = items[items >= 0]
    names = zip(data.catalogue.ids(items), data.catalogue.titles(items), strict=True)
    for rank, (item_id, title) in enumerate(names):
        lines.append(
            f"{rank + 1:>3}.{np.exp(found.log_probs[row, rank]):>12.5f}"
            f"{found.beams[row, rank] + 1:>6}{found.beam_scores[row, rank]:>15.3f}"
            f"{found.cosines[row, rank]:>8.3f}  {item_id}  {title}"
        )
    return "\n".join(lines)
