"""Benchmark suites: runs, commands, and that every run of every suite can be trained."""

import dataclasses
import sys
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags
from tiny_suite import tiny_suite

from sigma_jax import benchmark, train
from sigma_jax.benchmarking.suite import Method, Source, planned_runs, train_arguments
from sigma_jax.runtime.config import MeshConfig
from sigma_jax.runtime.sharding import make_mesh

ROOT = Path(__file__).parents[2]
SUITES = sorted(p for p in (ROOT / "configs" / "benchmark").glob("*.py") if "__" not in p.name)


def test_every_run_has_its_own_folder_and_command(tmp_path):
    suite = tiny_suite()
    runs = planned_runs(suite)
    assert [run.name for run in runs] == ["A/SIGMA/0", "A/GR(ID)/0", "A/SIGMA/1", "A/GR(ID)/1"]
    assert len({run.workdir(tmp_path) for run in runs}) == 4
    arguments = train_arguments(suite, runs[3], "/data", Path("w"), Path("p"))
    assert arguments[:3] == ["--config=configs/sft.py:smoke", "--workdir=w", "--artifacts=p"]
    assert {"--config.data.path=/data/A", "--config.prompt.layout.sid_generated=0"} <= set(
        arguments
    )
    assert {"--config.seed=1", "--config.evaluation.has_baselines=False"} <= set(arguments)
    assert [run.name for run in benchmark.select_runs(runs, ["A/GR"])] == [
        "A/GR(ID)/0",
        "A/GR(ID)/1",
    ]
    with pytest.raises(ValueError, match=r"--runs=B matches no run of this suite; did you mean"):
        benchmark.select_runs(runs, ["B"])


def test_a_method_of_the_stage_teacher_trains_and_evaluates_sasrec_alone():
    """It gets the fields of the data, and no field of SIGMA."""
    fields = {"data.path": "{data}/A", "data.split.kind": "by_time", "model.copies_history": True}
    fields["upstream.teacher.refits"] = True
    suite = tiny_suite(
        data={"A": Source("configs/sft.py:smoke", fields)},
        methods={"gSASRec": Method({"loss": "gbce"}, False, "teacher")},
    )
    arguments = train_arguments(suite, planned_runs(suite)[1], "/data", Path("w"), Path("p"))
    assert arguments == [
        *("--config=configs/teacher.py:smoke", "--workdir=w", "--artifacts=p"),
        *("--config.data.path=/data/A", "--config.data.split.kind=by_time"),
        "--config.refits=True",
        *("--config.evaluation.is_evaluated=True", "--config.loss=gbce"),
        "--config.evaluation.has_baselines=False",
        *("--config.evaluation.has_slow_baselines=False", "--config.seed=1"),
    ]
    with pytest.raises(ValueError, match=r"stage='tokenizer' is no stage of a method"):
        Method({}, False, "tokenizer")


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_every_run_of_every_suite_is_a_config_that_can_be_trained(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    suite = benchmark.load_suite(str(path))
    mesh = make_mesh(MeshConfig(-1, 1, 1))
    for run in planned_runs(dataclasses.replace(suite, seeds=suite.seeds[:1])):
        values = flags.FlagValues()
        holder = config_flags.DEFINE_config_file("config", flag_values=values)
        flags.DEFINE_string("workdir", "", "", flag_values=values)
        flags.DEFINE_string("artifacts", "", "", flag_values=values)
        argv = ["x", *train_arguments(suite, run, "DATA", Path("w"), Path("p"))]
        monkeypatch.setattr(sys, "argv", argv)  # ml_collections reads the fields from there
        values(argv)
        config = holder.value
        assert config.seed == run.seed
        train.check_config(config, mesh)


def test_an_invalid_suite_is_refused_with_a_remedy(tmp_path):
    with pytest.raises(ValueError, match=r"--suite=.*smok.py does not exist; did you mean"):
        benchmark.load_suite(str(ROOT / "configs" / "benchmark" / "smok.py"))
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ValueError, match=r"has no get_suite"):
        benchmark.load_suite(str(tmp_path / "empty.py"))
    with pytest.raises(ValueError, match=r"suite.seeds is empty"):
        tiny_suite(seeds=())
