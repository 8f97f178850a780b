"""Methods as settings of one model, trained and evaluated: GR(SID), no instructions.

GR(ID) is trained and evaluated by configs/benchmark/smoke.py, which .ci/run runs.
"""

import json
import shutil

import numpy as np
import pytest
from tiny_run import tiny_run

from sigma_jax import train
from sigma_jax.configs import common
from sigma_jax.evaluation.run import evaluate
from sigma_jax.recommender.parts import RecommenderParts
from sigma_jax.runtime.config import MeshConfig
from sigma_jax.runtime.sharding import make_mesh
from sigma_jax.schema import PreparedData

GR_SID = common.GR_SID | {"prompt.layout.sid_in_prompt": 3, "prompt.layout.sid_generated": 3}
WITHOUT_INSTRUCTIONS = {
    "prompt.mixture.branches_per_context": 0,
    "model.has_task_head": False,
    "prompt.packing.contexts_per_group": 0,
    "model.item_encoder.inputs": ("id_embedding",),
    "model.item_encoder.trainable": ("id_embedding",),
    "train.steps": 0,
    "train.epochs": 1.0,
    "train.eval_every": 4,
    "train.keep_best": "ndcg10_item",
    "optimizer.warmup_steps": 1,
}


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize(
    "changes",
    [GR_SID, WITHOUT_INSTRUCTIONS],
    ids=["sid", "without instructions"],
)
def test_settings_make_methods(trained, tables_folder, tmp_path, changes):
    workdir = shutil.copytree(trained[1], tmp_path / "run")
    for name in ("sft", "train/sft", "records"):
        shutil.rmtree(workdir / name)
    config = tiny_run(tables_folder, **changes, **{"evaluation.has_baselines": False})
    train.train(config, workdir, make_mesh(MeshConfig(-1, 1, 1)))
    evaluate(config, workdir)
    results = json.loads((workdir / "evaluation" / "results.json").read_text())
    methods = results["methods"]
    assert "SIGMA" in methods and "Popularity" not in methods
    has_instructions = changes is not WITHOUT_INSTRUCTIONS
    assert ("SIGMA, unseen wording" in methods) == has_instructions
    assert not results["warnings"]
    data = PreparedData.load(workdir / "data")
    network = RecommenderParts.of_workdir(workdir, data).network
    assert hasattr(network, "item_head") == (changes is not GR_SID)
    if changes is WITHOUT_INSTRUCTIONS:
        rows = np.asarray(network.item_encoder.trained["id_embedding"][...])
        assert network.item_encoder.names == ("id_embedding",)
        # Training changed the rows, which had unit length at the start.
        assert not np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
        metrics = json.loads((workdir / "sft" / "manifest.json").read_text())["metrics"]
        assert metrics["kept_step"] <= metrics["steps"]
