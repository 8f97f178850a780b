"""A workdir is judged: where codes are searched, with which model the constant is chosen, when
figures of another version are of no use."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from sigma_jax.evaluation import evaluator, run
from sigma_jax.evaluation.evaluator import EvaluationConfig
from sigma_jax.evaluation.fusions import SIGMA_CONSTANTS
from sigma_jax.evaluation.run import compute_results, evaluate
from sigma_jax.evaluation.table import render_table
from sigma_jax.recommender.trained import BEFORE_REFIT, WEIGHTS
from sigma_jax.runtime.config import to_dataclass

FUSIONS = {
    f"SIGMA without reranker, {name}"
    for name in ("sigma of Eq. 11", "constant sigma", "first prefix")
}


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    """(config, a workdir of its own, what evaluate returned)."""
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(trained[1], folder)
    return trained[0], folder, evaluate(trained[0], folder)


def set_gains(folder: Path, code: float, query: float) -> None:
    """Those of a finished stage 3."""
    weights = load_file(folder / WEIGHTS)
    for name, value in (("code_head_weight", code), ("query_head_weight", query)):
        weights[name] = np.full_like(weights[name], value)
    save_file(weights, folder / WEIGHTS)


@pytest.fixture
def workdir(trained, tmp_path) -> Path:
    """A copy of the trained workdir that searches codes."""
    folder = shutil.copytree(trained[1], tmp_path / "run")
    set_gains(folder / "sft", 0.5, 0.5)
    return folder


def settings(trained, **changes) -> EvaluationConfig:
    fields = trained[0].evaluation.to_dict() | {
        "has_baselines": False,
        "instruction_following_requests": 0,
    }
    return to_dataclass(EvaluationConfig, fields | changes)


def test_a_model_that_searches_codes_is_judged_with_other_fusions(trained, workdir):
    results = compute_results(workdir, settings(trained), 0)
    assert set(results["methods"]) >= FUSIONS
    assert results["constant_sigma"] in SIGMA_CONSTANTS
    hits = {
        name: results["methods"][name]["include_seen"]["average"]["item.HR@20"]["mean"]
        for name in FUSIONS
    }
    assert len(set(hits.values())) > 1  # they are ways of their own
    results["run"] = {"split": "test", "command": "", "config_hash": "", "data_hash": "", "seed": 0}
    assert "constant sigma" in render_table(results | {"run": results["run"] | {"num_beams": 4}})


def test_a_model_without_codes_has_nothing_to_fuse(trained, workdir):
    set_gains(workdir / "sft", 0.0, 0.0)
    results = compute_results(workdir, settings(trained), 0)
    assert not FUSIONS & set(results["methods"]) and results["constant_sigma"] is None


def test_the_constant_is_chosen_with_the_model_before_its_refit(trained, workdir, monkeypatch):
    before = workdir / "sft" / BEFORE_REFIT
    shutil.copytree(workdir / "sft", before)
    set_gains(before, 0.25, 0.75)
    chosen_by = []

    def best_constant(generator, *_):
        model = nnx.merge(generator.graphdef, generator.state)
        chosen_by.append(float(model.code_head_weight[...]))
        return 0.7

    monkeypatch.setattr(evaluator, "best_constant", best_constant)
    assert compute_results(workdir, settings(trained), 0)["constant_sigma"] == 0.7
    assert chosen_by == [0.25]


def test_what_was_chosen_on_the_judged_split_is_told(trained, workdir):
    warnings = compute_results(workdir, settings(trained, split="valid"), 0)["warnings"]
    assert any("constant sigma was chosen on requests of this split" in w for w in warnings)
    assert any("reranker was fitted on requests of this split" in w for w in warnings)


def test_figures_of_another_version_are_made_again(trained, workdir, monkeypatch):
    config = trained[0].copy_and_resolve_references()
    with config.unlocked():
        config.evaluation.has_baselines, config.evaluation.instruction_following_requests = False, 0
    path = workdir / "evaluation" / "results.json"
    first = evaluate(config, workdir)["run"]
    written = path.stat().st_mtime_ns
    assert evaluate(config, workdir)["run"] == first and path.stat().st_mtime_ns == written
    monkeypatch.setattr(run, "VERSION", run.VERSION + 1)
    again = evaluate(config, workdir)["run"]
    assert again["version"] == first["version"] + 1
    assert json.loads(path.read_text())["run"] == again
    assert again["config_hash"] == first["config_hash"]


def test_evaluate_writes_figures_table_and_page(evaluated):
    _, workdir, results = evaluated
    names = {path.name for path in (workdir / "evaluation").iterdir()}
    assert names == {"manifest.json", "results.json", "table.txt", "report.html"}
    assert results["run"]["split"] == "test" and len(results["run"]["data_hash"]) == 12
    assert "SIGMA" in (workdir / "evaluation" / "table.txt").read_text()
    assert {"SIGMA", "SIGMA without reranker", "SIGMA, unseen wording"} < set(results["methods"])


def test_evaluate_again_prints_the_same_and_other_settings_replace_it(evaluated, capsys):
    config, workdir, results = evaluated
    path = workdir / "evaluation" / "results.json"
    before = path.stat().st_mtime_ns
    assert evaluate(config, workdir).keys() == results.keys()
    assert path.stat().st_mtime_ns == before
    assert capsys.readouterr().out.strip()
    other = config.copy_and_resolve_references()
    with other.unlocked():
        other.evaluation.has_filtered_baselines = False
    assert evaluate(other, workdir)["run"]["config_hash"] != results["run"]["config_hash"]
    assert path.stat().st_mtime_ns > before
    assert "Popularity + filter" in str(results) and "+ filter" not in path.read_text()
