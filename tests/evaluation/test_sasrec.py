"""The SASRec of the stage teacher is evaluated alone, on the requests that SIGMA gets."""

import json
import shutil

import numpy as np
import pytest

from sigma_jax.configs import teacher
from sigma_jax.evaluation.run import evaluate
from sigma_jax.evaluation.sasrec import SasrecEvaluationConfig, compute_sasrec_results
from sigma_jax.teacher.task import REFIT


@pytest.fixture
def workdir(trained, tmp_path):
    """A copy of the trained workdir whose teacher has a refit: the same weights."""
    folder = shutil.copytree(trained[1], tmp_path / "run")
    (folder / "teacher" / REFIT).mkdir()
    shutil.copy(folder / "teacher" / "weights.safetensors", folder / "teacher" / REFIT)
    return folder


def test_it_is_evaluated_before_and_after_its_refit_and_once(trained, workdir):
    config = teacher.get_config("smoke")
    with config.unlocked():
        config.evaluation.is_evaluated = True
        config.data = trained[0].data
    results = evaluate(config, workdir)
    assert set(results["methods"]) == {"SASRec", "SASRec before refit"}
    assert results["run"]["model"] == "SASRec" and results["requests"] > 20
    assert len(results["methods"]["SASRec"]["include_seen"]["tasks"]) > 3
    before, after = (results["methods"][name] for name in ("SASRec before refit", "SASRec"))
    assert before == after and "item.HR@10" in after["exclude_seen"]["average"]
    assert not any(name.startswith("sid.") for name in after["exclude_seen"]["average"])
    names = {path.name for path in (workdir / "evaluation").iterdir()}
    assert names == {"manifest.json", "results.json", "table.txt"}
    stored = (workdir / "evaluation" / "results.json").stat().st_mtime_ns
    assert evaluate(config, workdir) == json.loads(json.dumps(results))
    assert (workdir / "evaluation" / "results.json").stat().st_mtime_ns == stored


def test_baselines_can_be_evaluated_beside_it(trained, workdir):
    """They get the requests and the refit of SASRec, and the log's shortcuts are measured."""
    settings = SasrecEvaluationConfig(True, "test", {"JustForYou": 40}, True, True, True)
    results = compute_sasrec_results(workdir, settings, 0)
    methods = set(results["methods"])
    for name in ("SASRec", "Co-visitation", "Transition graph", "Features without a network"):
        assert {name, f"{name} before refit", f"{name} + filter"} <= methods
    assert results["shortcuts"]["one_step"] > 0


def test_a_split_without_requests_is_said(workdir):
    path = workdir / "data" / "history_test_start.npy"
    np.save(path, np.load(workdir / "data" / "history_offsets.npy")[1:])
    settings = SasrecEvaluationConfig(True, "test", {"JustForYou": 10}, False, False, False)
    with pytest.raises(ValueError, match=r"the test split has no requests; check the split"):
        compute_sasrec_results(workdir, settings, 0)
