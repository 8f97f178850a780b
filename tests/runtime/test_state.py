"""A step gives the same result in parts, and its shapes are known without weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from linear_task import LinearTask, linear_config

from sigma_jax.runtime.config import MeshConfig, TrainConfig
from sigma_jax.runtime.sharding import make_mesh, place_batch, place_tables
from sigma_jax.runtime.state import abstract_state, init_state, make_step


class Quiet(LinearTask):
    """A task without noise, so that the parts of a batch add up to the batch."""

    def loss(self, model, tables, batch, key):
        model.calls[...] += 1
        y = batch["x"] @ model.weight[...] @ model.table[...] + model.bias[...] + tables["shift"]
        return jnp.mean((y - batch["y"]) ** 2), {"first": batch["x"][:, 0].mean()}


def steps(accumulate: int, count: int = 3):
    """(the state, the metrics of each step) after `count` steps."""
    task, config, mesh = Quiet(), linear_config(), make_mesh(MeshConfig(-1, 1, 1))
    model = task.model(nnx.Rngs(0))
    state, template, optimizer = init_state(model, task.param_group, config.optimizer, 10, mesh)
    step = make_step(
        task.loss, template, optimizer, config.optimizer, 10, 0, state, accumulate=accumulate
    )
    tables, history = place_tables(task.tables(), mesh), []
    for number in range(count):
        state, metrics = step(state, tables, place_batch(task.make_batch(number), mesh))
        history.append(jax.device_get(metrics))
    return state, history


@pytest.mark.parametrize("accumulate", [2, 4])
def test_a_step_in_parts_equals_the_full_step(accumulate):
    full, expected = steps(1)
    state, history = steps(accumulate)
    for metrics, wanted in zip(history, expected, strict=True):
        assert metrics.keys() == wanted.keys()
        for name in wanted:
            np.testing.assert_allclose(metrics[name], wanted[name], rtol=1e-5, err_msg=name)
    for name, value in full.params.items():
        np.testing.assert_allclose(state.params[name], value, atol=1e-6)
    assert int(full.rest["calls"]) == 3 and int(state.rest["calls"]) == 3 * accumulate


def test_parts_that_do_not_divide_are_named():
    fields = dict(vars(linear_config().train)) | {"accumulate": 3}
    with pytest.raises(ValueError, match=r"batch_size=16 does not divide into train.accumulate=3"):
        TrainConfig(**fields)


def test_shapes_are_known_without_weights():
    task, config, mesh = LinearTask(), linear_config(), make_mesh(MeshConfig(-1, 1, 1))
    given = (task.param_group, config.optimizer, 10, mesh, True)
    real = init_state(task.model(nnx.Rngs(0)), *given)[0]
    abstract = abstract_state(nnx.eval_shape(lambda: task.model(nnx.Rngs(0))), *given)[0]
    assert jax.tree.structure(real) == jax.tree.structure(abstract)
    for value, shape in zip(jax.tree.leaves(real), jax.tree.leaves(abstract), strict=True):
        assert (value.shape, value.dtype) == (shape.shape, shape.dtype)
        assert value.sharding.is_equivalent_to(shape.sharding, value.ndim)
