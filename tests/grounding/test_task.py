"""Tests of the grounding stage: it learns, reports, and leaves an encoder that can be used."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from processes import environment, finish, start

from sigma_jax.configs import common
from sigma_jax.configs.grounding import get_config, stage_fields
from sigma_jax.grounding.encode import BatchEncoder, load_encoder
from sigma_jax.grounding.task import GroundingConfig, GroundingTask
from sigma_jax.models.hf import save_backbone
from sigma_jax.models.linear import INPUT_AXES, LORA_SUFFIXES
from sigma_jax.runtime.config import OptimizerConfig, to_dataclass
from sigma_jax.runtime.state import init_state, make_step
from sigma_jax.schema import load_item_vectors

STEPS = 40


@pytest.fixture(scope="module")
def mesh():
    kinds = (jax.sharding.AxisType.Auto,) * 3
    return jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor"), axis_types=kinds)


def make_config(**changes) -> GroundingConfig:
    fields = stage_fields("smoke")
    fields.optimizer = common.optimizer(1e-2, table_learning_rate=1e-2, warmup_steps=2)
    config = to_dataclass(GroundingConfig, fields)
    return dataclasses.replace(config, **changes)


def run(task, config, mesh, steps=STEPS):
    """The model after the loop of train.py without its files, and the metrics of each step."""
    state, template, optimizer = init_state(
        task.model(nnx.Rngs(0)), task.param_group, config.optimizer, steps, mesh
    )
    step = make_step(task.loss, template, optimizer, config.optimizer, steps, 0, state)
    batches, metrics = task.batches(), []
    for number in range(steps):
        state, parts = step(state, {}, batches[number])
        metrics.append({name: float(value) for name, value in parts.items()})
    return template.merge(state.params, state.rest), metrics


@pytest.mark.slow
def test_it_learns_which_items_belong_together(workdir, mesh):
    config = make_config()
    task = GroundingTask(config, workdir, 0, mesh)
    before = task.report(task.model(nnx.Rngs(0)), {})
    model, metrics = run(task, config, mesh)
    assert metrics[-1]["loss"] < 0.7 * metrics[0]["loss"]
    total = metrics[0]["contrastive"] + config.kd_weight * metrics[0]["distillation"]
    np.testing.assert_allclose(metrics[0]["loss"], total, rtol=1e-5)
    after = task.report(model, {})
    assert after["candidates"] == 48
    for view in ("search", "co_occurrence"):
        assert after[f"recall_100/{view}"] == 1  # there are 48 items
        assert before[f"recall_10/{view}"] < 0.5 < 0.7 < after[f"recall_10/{view}"]


def test_the_artifact_encodes_texts_to_the_vectors_it_holds(workdir, mesh, tmp_path):
    # 48 items: the last batch is not full.
    config = make_config(eval_batch_size=20, query_instruction="find ")
    task = GroundingTask(config, workdir, 0, mesh)
    model = task.model(nnx.Rngs(1))
    folder = tmp_path / "grounding"
    folder.mkdir()
    task.finalize_on_all_hosts(model, mesh)
    metrics = task.finish(model, {}, folder)
    assert metrics["items"] == 48 and metrics["distinct_texts"] == 47
    stored = load_item_vectors(folder / "text_vectors.npy")
    assert stored.shape == (48, 64) and stored.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(stored, axis=1), 1, rtol=1e-5)
    encoder = load_encoder(folder, batch_size=7)
    again = encoder(task.data.catalogue.texts(np.arange(48)))
    np.testing.assert_allclose(again, stored, atol=1e-5)
    texts = task.data.pairs["search"].left_texts.to_pylist()
    rows = task.table.first_row["search"] + np.arange(len(texts))
    trained = BatchEncoder(model, 8).rows(task.table, rows)
    np.testing.assert_allclose(encoder(texts, are_queries=True), trained, atol=1e-5)
    assert np.abs(encoder(texts) - trained).max() > 1e-2
    settings = json.loads((folder / "encoder.json").read_text())
    del settings["backbone"]["lora_rank"]
    (folder / "encoder.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"encoder.json is damaged or of another .*lora_rank"):
        load_encoder(folder)


def test_encoding_in_chunks_changes_neither_loss_nor_gradient(workdir, mesh):
    results = []
    for rows in (0, 8):
        config = make_config(encode_rows=rows, loss_rows=8)
        task = GroundingTask(config, workdir, 0, mesh)
        graph, params = nnx.split(task.model(nnx.Rngs(0)))

        def loss(params, batch, task=task, graph=graph):
            return task.loss(nnx.merge(graph, params), {}, batch, jax.random.key(0))[0]

        results.append(jax.jit(jax.value_and_grad(loss))(params, task.batches()[0]))
    np.testing.assert_allclose(results[1][0], results[0][0], rtol=1e-5)
    for parts, whole in zip(
        jax.tree.leaves(results[1][1]), jax.tree.leaves(results[0][1]), strict=True
    ):
        np.testing.assert_allclose(parts, whole, atol=1e-4)


def test_without_id_vectors_there_is_no_distillation(workdir, mesh):
    (workdir / "data" / "id_vectors.npy").unlink()
    task = GroundingTask(make_config(), workdir, 0, mesh)
    assert "has_id" not in task.batches()[0]
    (workdir / "teacher").mkdir()
    np.save(workdir / "teacher" / "id_vectors.npy", np.ones((48, 3), np.float32))
    assert GroundingTask(make_config(), workdir, 0).batches()[0]["id_vectors"].shape == (32, 3)
    np.save(workdir / "teacher" / "id_vectors.npy", np.ones((47, 3), np.float32))
    with pytest.raises(ValueError, match="47 ID vectors for 48 items"):
        GroundingTask(make_config(), workdir, 0)


def test_text_embeddings_have_a_learning_rate_of_their_own(workdir):
    task = GroundingTask(make_config(), workdir, 0)
    paths = [path for path, _ in nnx.to_flat_state(nnx.state(task.model(nnx.Rngs(0))))]
    groups = {path: task.param_group(path) for path in paths}
    assert groups[("backbone", "embedding")] == "table"
    assert {g for path, g in groups.items() if path[-1] != "embedding"} == {"base"}
    assert isinstance(task.config.optimizer, OptimizerConfig)


def test_with_low_rank_additions_only_they_and_the_projection_are_trained(workdir, tmp_path):
    task = GroundingTask(make_config(), workdir, 0)
    save_backbone(task.model(nnx.Rngs(0)).backbone, tmp_path / "hf")
    backbone = dataclasses.replace(
        task.config.backbone, hf_folder=str(tmp_path / "hf"), lora_rank=2, lora_alpha=4.0
    )
    added = GroundingTask(make_config(backbone=backbone), workdir, 0)
    paths = [path for path, _ in nnx.to_flat_state(nnx.state(added.model(nnx.Rngs(0))))]
    trained = {path[-1] for path in paths if added.param_group(path) != "frozen"}
    assert trained == {f"{name}{suffix}" for name in INPUT_AXES for suffix in LORA_SUFFIXES} | {
        "projection"
    }


@pytest.mark.parametrize("preset", common.PRESETS)
def test_every_preset_is_a_config(preset):
    config = to_dataclass(GroundingConfig, stage_fields(preset))
    assert config.encoder.width == 64 and config.temperature == 0.05
    assert list(get_config(preset).upstream) == ["teacher"]


EIGHT = """
import sys
from pathlib import Path
import jax, numpy as np
from flax import nnx
from sigma_jax.configs.grounding import stage_fields
from sigma_jax.grounding.task import GroundingConfig, GroundingTask
from sigma_jax.runtime.config import to_dataclass
from sigma_jax.runtime.sharding import place_batch

fields = stage_fields("smoke")
fields.encode_rows = fields.loss_rows = 16
config, losses, reports = to_dataclass(GroundingConfig, fields), [], []
for devices in (jax.devices()[:1], jax.devices()):
    kinds = (jax.sharding.AxisType.Auto,) * 3
    shape, names = (len(devices), 1, 1), ("data", "fsdp", "tensor")
    mesh = jax.make_mesh(shape, names, axis_types=kinds, devices=devices)
    task = GroundingTask(config, Path(sys.argv[1]), 0, mesh)
    graph, params = nnx.split(task.model(nnx.Rngs(0)))
    loss = jax.jit(lambda p, b: task.loss(nnx.merge(graph, p), {}, b, jax.random.key(0))[0])
    params = jax.device_put(params, jax.sharding.NamedSharding(mesh, jax.P()))
    losses.append(loss(params, place_batch(task.batches()[0], mesh)))
    reports.append(task.report(nnx.merge(graph, params), {}))
np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
assert reports[0].keys() == reports[1].keys()
"""


ENCODE = """
import sys
from pathlib import Path
import jax
from flax import nnx
from sigma_jax.configs.grounding import stage_fields
from sigma_jax.grounding.task import GroundingConfig, GroundingTask
from sigma_jax.runtime import hosts
from sigma_jax.runtime.config import MeshConfig, to_dataclass
from sigma_jax.runtime.sharding import local_mesh, make_mesh
from sigma_jax.runtime.state import init_state

hosts.start(False)
fields = stage_fields("smoke")
fields.eval_batch_size = 20
config, mesh = to_dataclass(GroundingConfig, fields), make_mesh(MeshConfig(1, -1, 1))
task = GroundingTask(config, Path(sys.argv[1]), 0, local_mesh(mesh))
model = task.model(nnx.Rngs(0))
state, template, _ = init_state(model, task.param_group, config.optimizer, 20, mesh)
task.finalize_on_all_hosts(template.merge(state.params, state.rest), mesh)
"""


@pytest.mark.slow
@pytest.mark.nightly
def test_two_processes_encode_the_catalogue_like_one(workdir):
    path = workdir / "train" / "grounding" / "text_vectors.npy"
    vectors = []
    for count in (1, 2):
        for status, _, errors in finish(start(["-c", ENCODE, workdir], count, 2)):
            assert status == 0, errors
        vectors.append(np.load(path))
        path.unlink()
    assert len(np.unique(vectors[0], axis=0)) == 47
    np.testing.assert_allclose(vectors[1], vectors[0], atol=1e-6)


@pytest.mark.slow
def test_eight_devices_give_the_loss_of_one(workdir):
    command = [sys.executable, "-c", EIGHT, str(workdir)]
    run = subprocess.run(command, env=environment(8), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
