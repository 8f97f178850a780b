"""Evaluation of a workdir: other fusions, the choice of the constant, and reuse of results."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sigma_jax.evaluation import evaluator, run
from sigma_jax.evaluation.evaluator import EvaluationConfig
from sigma_jax.evaluation.fusions import SIGMA_CONSTANTS
from sigma_jax.evaluation.run import compute_results, evaluate
from sigma_jax.evaluation.score import score
from sigma_jax.evaluation.table import render_table
from sigma_jax.recommender.parts import BEFORE_REFIT, WEIGHTS
from sigma_jax.runtime.config import to_dataclass
from sigma_jax.schema import PreparedData

FUSIONS = {
    f"SIGMA without reranker, {name}"
    for name in ("sigma of Eq. 11", "constant sigma", "first prefix")
}


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    """(config, an evaluated workdir, its results)."""
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(trained[1], folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "score", lambda *arguments: scored(folder, *arguments))
        return trained[0], folder, evaluate(trained[0], folder)


SCORED = {}  # workdir -> (rankings, requests) of its evaluation


def scored(folder: Path, rankings, requests, *rest):
    """Scores the rankings, and keeps them in SCORED."""
    SCORED[folder] = rankings, requests
    return score(rankings, requests, *rest)


def set_head_weights(folder: Path, code: float, query: float) -> None:
    """Replaces the weights of the code head and the query head in a trained `folder`."""
    weights = load_file(folder / WEIGHTS)
    for name, value in (("code_head_weight", code), ("query_head_weight", query)):
        weights[name] = np.full_like(weights[name], value)
    save_file(weights, folder / WEIGHTS)


@pytest.fixture
def workdir(trained, tmp_path) -> Path:
    """A copy of the trained workdir whose heads have weights, so that the three steps differ."""
    folder = shutil.copytree(trained[1], tmp_path / "run")
    set_head_weights(folder / "sft", 0.5, 0.5)
    return folder


def settings(trained, ranker="three_step", **changes) -> EvaluationConfig:
    """The settings of the trained workdir without baselines; `changes` replace fields."""
    fields = trained[0].evaluation.to_dict()
    fields["generation"]["ranker"] = ranker
    fields |= {"has_baselines": False, "instruction_following_requests": 0}
    fields |= {"has_other_fusions": True}
    return to_dataclass(EvaluationConfig, fields | changes)


@pytest.mark.slow
def test_the_three_step_ranker_is_evaluated_with_other_fusions(trained, workdir):
    results = compute_results(workdir, settings(trained), 0)
    assert set(results["methods"]) >= FUSIONS
    assert results["constant_sigma"] in SIGMA_CONSTANTS
    hits = {
        name: results["methods"][name]["include_seen"]["average"]["item.HR@20"]["mean"]
        for name in FUSIONS
    }
    assert len(set(hits.values())) > 1  # the fusions rank differently
    results["run"] = {"split": "test", "command": "", "config_hash": "", "data_hash": "", "seed": 0}
    assert "constant sigma" in render_table(results | {"run": results["run"] | {"num_beams": 4}})


@pytest.mark.slow
def test_the_exhaustive_ranker_has_nothing_to_fuse(trained, workdir):
    results = compute_results(workdir, settings(trained, "exhaustive"), 0)
    assert results["ranker"] == "exhaustive"
    assert not FUSIONS & set(results["methods"]) and results["constant_sigma"] is None


@pytest.mark.slow
def test_the_constant_is_chosen_with_the_model_before_its_refit(trained, workdir, monkeypatch):
    before = workdir / "sft" / BEFORE_REFIT
    shutil.copytree(workdir / "sft", before)
    set_head_weights(before, 0.25, 0.75)
    chosen_by = []

    def best_constant(recommender, batch):
        chosen_by.append(float(recommender.parts.network.code_head_weight[...]))
        return 0.7

    monkeypatch.setattr(evaluator, "best_constant", best_constant)
    assert compute_results(workdir, settings(trained), 0)["constant_sigma"] == 0.7
    assert chosen_by == [0.25]


@pytest.mark.slow
def test_settings_that_were_fitted_on_the_evaluated_split_give_warnings(trained, workdir):
    warnings = compute_results(workdir, settings(trained, split="valid"), 0)["warnings"]
    assert any("constant sigma was chosen on requests of this split" in w for w in warnings)
    assert any("reranker was fitted on requests of this split" in w for w in warnings)


@pytest.mark.slow
def test_results_of_another_version_are_replaced(evaluated, tmp_path, monkeypatch):
    config, folder, results = evaluated
    workdir, computed = shutil.copytree(folder, tmp_path / "run"), []

    def compute(*arguments):
        computed.append(arguments)
        return {name: value for name, value in results.items() if name != "run"}

    monkeypatch.setattr(run, "compute_results", compute)
    first = evaluate(config, workdir)["run"]
    assert not computed
    monkeypatch.setattr(run, "VERSION", run.VERSION + 1)
    again = evaluate(config, workdir)["run"]
    assert len(computed) == 1 and again["version"] == first["version"] + 1
    path = workdir / "evaluation" / "results.json"
    assert json.loads(path.read_text())["run"] == again
    assert again["config_hash"] == first["config_hash"]


def test_evaluate_writes_results_table_and_page(evaluated):
    _, workdir, results = evaluated
    names = {path.name for path in (workdir / "evaluation").iterdir()}
    assert names == {"manifest.json", "results.json", "table.txt", "report.html"}
    assert results["run"]["split"] == "test" and len(results["run"]["data_hash"]) == 12
    assert "SIGMA" in (workdir / "evaluation" / "table.txt").read_text()
    assert {"SIGMA", "SIGMA without reranker", "SIGMA, unseen wording"} < set(results["methods"])


def test_the_requests_are_those_of_the_test_split(evaluated):
    """Each history ends before the user's test session, and the target is of that session."""
    _, workdir, results = evaluated
    _, requests = SCORED[workdir]
    histories = PreparedData.load(workdir / "data").histories
    assert results["requests"] == len(requests) > 40
    for user, end, target in zip(requests.user, requests.history_end, requests.target, strict=True):
        assert histories.offsets[user] < end == histories.test_start[user]
        assert target in histories.item[end : histories.session_end(end, user)]


def test_no_list_without_seen_items_has_one(evaluated):
    """It holds for SIGMA and all baselines. Lists with seen items do have some."""
    _, workdir, _ = evaluated
    rankings, requests = SCORED[workdir]
    histories = PreparedData.load(workdir / "data").histories
    seen = [
        set(histories.before(user, end).tolist())
        for user, end in zip(requests.user, requests.history_end, strict=True)
    ]
    assert {"SIGMA", "SASRec", "Popularity", "Co-visitation", "Item kNN on texts"} < set(rankings)
    for name, by_mode in rankings.items():
        counts = {
            mode: sum(len(of_user & set(row)) for of_user, row in zip(seen, lists, strict=True))
            for mode, lists in by_mode.items()
        }
        assert counts["include_seen"] > 0, name
        assert counts.get("exclude_seen", 0) == 0, name


@pytest.mark.slow
def test_evaluate_reuses_its_results_until_settings_change(evaluated, capsys):
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
