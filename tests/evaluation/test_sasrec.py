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
        config.evaluation.requests = 100
        config.data = trained[0].data
    results = evaluate(config, workdir)
    assert set(results["methods"]) == {"SASRec", "SASRec before refit"}
    assert results["run"]["model"] == "SASRec" and results["requests"] > 20
    before, after = (results["methods"][name] for name in ("SASRec before refit", "SASRec"))
    assert before == after and "item.HR@10" in after["exclude_seen"]["average"]
    assert not any(name.startswith("sid.") for name in after["exclude_seen"]["average"])
    names = {path.name for path in (workdir / "evaluation").iterdir()}
    assert names == {"manifest.json", "results.json", "table.txt"}
    stored = (workdir / "evaluation" / "results.json").stat().st_mtime_ns
    assert evaluate(config, workdir) == json.loads(json.dumps(results))
    assert (workdir / "evaluation" / "results.json").stat().st_mtime_ns == stored


def test_a_split_without_requests_is_said(workdir):
    path = workdir / "data" / "history_test_start.npy"
    np.save(path, np.load(workdir / "data" / "history_offsets.npy")[1:])
    with pytest.raises(ValueError, match=r"the test split has no requests; check the split"):
        compute_sasrec_results(workdir, SasrecEvaluationConfig("test", 10), 0)
