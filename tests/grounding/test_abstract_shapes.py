"""Tests that preflight compiles what training runs: equal shapes, parameter groups and loss."""

import dataclasses

import jax
import pytest
from flax import nnx

from sigma_jax.configs.grounding import stage_fields
from sigma_jax.grounding import encode
from sigma_jax.grounding.abstract_shapes import abstract_stage, inference
from sigma_jax.grounding.task import GroundingConfig, GroundingTask
from sigma_jax.runtime.config import MeshConfig, to_dataclass
from sigma_jax.runtime.preflight.estimate import CatalogueSizes
from sigma_jax.runtime.sharding import make_mesh
from sigma_jax.runtime.state import split_model


def shapes(arrays) -> dict:
    return {name: (tuple(array.shape), str(array.dtype)) for name, array in arrays.items()}


@pytest.mark.parametrize("kd_weight", [0.0, 1.0])
def test_shapes_are_those_of_a_training(workdir, kd_weight):
    config = to_dataclass(GroundingConfig, stage_fields("smoke"))
    task = GroundingTask(dataclasses.replace(config, kd_weight=kd_weight), workdir, 0)
    config = dataclasses.replace(task.config, max_tokens=task.table.length)
    model, batch = task.model(nnx.Rngs(0)), task.batches()[0]
    vectors = {"id": task.data.id_vectors.shape[1]}
    stage = abstract_stage(
        config, model.backbone.config, CatalogueSizes(len(task.data.catalogue), vectors, 4, 8, 6)
    )
    assert shapes(stage.batch) == shapes(batch) and not stage.tables
    template, params, rest = split_model(model, task.param_group)
    abstract, abstract_params, abstract_rest = split_model(stage.model, stage.param_group)
    assert shapes(abstract_params) == shapes(params) and shapes(abstract_rest) == shapes(rest)
    assert abstract.param_groups == template.param_groups
    parts = jax.eval_shape(stage.loss, model, {}, batch, jax.random.key(0))[1]
    assert ("distillation" in parts) == bool(kd_weight)


def test_inference_has_the_arrays_of_an_encoder(workdir, monkeypatch):
    calls, vectors_of = [], encode.vectors_of
    mesh = make_mesh(MeshConfig(-1, 1, 1))

    def spy(*arguments, **named):
        calls.append((*arguments[1:], named["tokens"], named["lengths"]))
        return vectors_of(*arguments, **named)

    monkeypatch.setattr(encode, "vectors_of", spy)
    config = to_dataclass(GroundingConfig, stage_fields("smoke"))
    task = GroundingTask(dataclasses.replace(config, eval_batch_size=20), workdir, 0, mesh)
    model = task.model(nnx.Rngs(0))
    task.finalize_on_all_hosts(model, mesh)
    config = dataclasses.replace(task.config, max_tokens=task.table.length)
    abstract = inference(config, model.backbone.config, mesh)
    assert len(calls) == -(-48 // abstract.examples)
    for arguments in calls:
        expected = [(leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(arguments)]
        actual = [(leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(abstract.arguments)]
        assert actual == expected
    assert jax.eval_shape(abstract.run, *abstract.arguments).shape == (abstract.examples, 64)
