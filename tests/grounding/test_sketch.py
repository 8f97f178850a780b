"""What preflight compiles is what training runs: the same shapes, labels and loss."""

import dataclasses

import jax
import pytest
from flax import nnx

from configs.grounding import stage_fields
from sigma_jax.grounding.sketch import sketch
from sigma_jax.grounding.task import GroundingConfig, GroundingTask
from sigma_jax.models.sizes import Sizes
from sigma_jax.runtime.config import to_dataclass
from sigma_jax.runtime.state import take_apart


def shapes(arrays) -> dict:
    return {name: (tuple(array.shape), str(array.dtype)) for name, array in arrays.items()}


@pytest.mark.parametrize("kd_weight", [0.0, 1.0])
def test_shapes_are_those_of_a_training(workdir, kd_weight):
    config = to_dataclass(GroundingConfig, stage_fields("smoke"))
    task = GroundingTask(dataclasses.replace(config, kd_weight=kd_weight), workdir, 0)
    config = dataclasses.replace(task.config, max_tokens=task.table.length)
    model, batch = task.model(nnx.Rngs(0)), task.batches()[0]
    vectors = {"id": task.data.id_vectors.shape[1]}
    found = sketch(config, model.backbone.config, Sizes(len(task.data.catalogue), vectors, 4, 8, 6))
    assert shapes(found.batch) == shapes(batch) and not found.tables
    template, params, rest = take_apart(model, task.label)
    other, sketched, others = take_apart(found.model, found.label)
    assert shapes(sketched) == shapes(params) and shapes(others) == shapes(rest)
    assert other.labels == template.labels
    parts = jax.eval_shape(found.loss, model, {}, batch, jax.random.key(0))[1]
    assert ("distillation" in parts) == bool(kd_weight)
