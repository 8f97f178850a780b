"""Benchmark suites: their commands, their tables, and that their settings are settings."""

import dataclasses
import sys
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags
from tiny_suite import tiny_suite, write_results

from sigma_jax import benchmark, train
from sigma_jax.benchmarking import suite as suites
from sigma_jax.benchmarking.suite import Run
from sigma_jax.runtime.config import MeshConfig
from sigma_jax.runtime.mesh import make_mesh

ROOT = Path(__file__).parents[2]
SUITES = sorted(p for p in (ROOT / "configs" / "benchmark").glob("*.py") if "__" not in p.name)


def test_rows_are_means_and_deviations_over_seeds(tmp_path):
    suite = tiny_suite()
    popularity = {"Popularity": {"exclude_seen": {"tasks": {}, "average": {}}}}
    write_results(tmp_path, Run("A", "SIGMA", 0), 0.20, **popularity)
    write_results(tmp_path, Run("A", "SIGMA", 1), 0.24)
    write_results(tmp_path, Run("A", "GR(ID)", 0), 0.15)
    rows = {row.method: row for row in suites.collect(suite, tmp_path, "A", "exclude_seen", "item")}
    assert list(rows) == ["SIGMA", "GR(ID)"]
    assert rows["SIGMA"].mean("Recall@10") == pytest.approx(0.22)
    assert rows["SIGMA"].deviation("Recall@10") == pytest.approx(0.02 * 2**0.5)
    text = suites.render(suite, tmp_path)
    assert "22.00 ± 2.83" in text and "(1 of 2 seeds)" in text
    assert "A/GR(ID)/1: not run" in text and "A/SIGMA/0: c0ffee da7a 7 python -m x" in text
    assert "published: TIGER" in text and "6.48" in text
    assert "WARNING" not in text
    assert suites.as_json(suite, tmp_path)["A"]["exclude_seen"]["item"]["SIGMA"]["Recall@10"] == [
        0.20,
        0.24,
    ]


def test_figures_that_no_ranking_has_are_told(tmp_path):
    write_results(tmp_path, Run("A", "SIGMA", 0), 0.20, ndcg_gain=0.09)
    assert "WARNING: SIGMA, run 0: N@10 - N@5" in suites.render(tiny_suite(), tmp_path)


def test_baselines_come_from_the_method_that_judges_them(tmp_path):
    write_results(tmp_path, Run("A", "GR(ID)", 0), 0.15, method="Popularity")
    assert not suites.collect(tiny_suite(), tmp_path, "A", "exclude_seen", "item")
    write_results(tmp_path, Run("A", "SIGMA", 0), 0.15, method="Popularity")
    [row] = suites.collect(tiny_suite(), tmp_path, "A", "exclude_seen", "item")
    assert row.method == "Popularity"


def test_runs_have_folders_and_commands_of_their_own(tmp_path):
    suite = tiny_suite()
    runs = suites.planned(suite)
    assert [run.name for run in runs] == ["A/SIGMA/0", "A/GR(ID)/0", "A/SIGMA/1", "A/GR(ID)/1"]
    assert len({run.workdir(tmp_path) for run in runs}) == 4
    words = suites.arguments(suite, runs[3], "/data", Path("w"), Path("p"))
    assert words[:3] == ["--config=configs/sft.py:smoke", "--workdir=w", "--artifacts=p"]
    assert {"--config.data.path=/data/A", "--config.prompt.sid_generated=0"} <= set(words)
    assert {"--config.seed=1", "--config.evaluation.has_baselines=False"} <= set(words)
    assert [run.name for run in benchmark.chosen(runs, ["A/GR"])] == ["A/GR(ID)/0", "A/GR(ID)/1"]
    with pytest.raises(ValueError, match=r"--runs=B is no run of this suite; did you mean"):
        benchmark.chosen(runs, ["B"])


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_every_run_of_every_suite_is_a_config_that_can_be_trained(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    suite = benchmark.load_suite(str(path))
    mesh = make_mesh(MeshConfig(-1, 1, 1))
    for run in suites.planned(dataclasses.replace(suite, seeds=suite.seeds[:1])):
        values = flags.FlagValues()
        holder = config_flags.DEFINE_config_file("config", flag_values=values)
        flags.DEFINE_string("workdir", "", "", flag_values=values)
        flags.DEFINE_string("artifacts", "", "", flag_values=values)
        words = ["x", *suites.arguments(suite, run, "DATA", Path("w"), Path("p"))]
        monkeypatch.setattr(sys, "argv", words)  # where ml_collections looks for the fields
        values(words)
        config = holder.value
        assert config.seed == run.seed
        train.check_config(config, mesh)


def test_a_suite_that_is_none_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"--suite=.*smok.py does not exist; did you mean"):
        benchmark.load_suite(str(ROOT / "configs" / "benchmark" / "smok.py"))
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ValueError, match=r"has no get_suite"):
        benchmark.load_suite(str(tmp_path / "empty.py"))
    with pytest.raises(ValueError, match=r"suite.seeds is empty"):
        tiny_suite(seeds=())
