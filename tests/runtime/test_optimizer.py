"""Groups learn at their own rates, norms do not decay, schedules follow their formulas."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from sigma_jax.runtime.config import OptimizerConfig
from sigma_jax.runtime.optimizer import decayed, make_optimizer, schedule

CONFIG = OptimizerConfig(
    learning_rate=0.1,
    table_learning_rate=0.01,
    weight_decay=0.0,
    warmup_steps=0,
    schedule="constant",
    clip_norm=0.0,
    b1=0.9,
    b2=0.999,
)


def changed(**fields) -> OptimizerConfig:
    return dataclasses.replace(CONFIG, **fields)


def first_update(config, params, grads, param_groups):
    optimizer = make_optimizer(config, 10, param_groups)
    return optimizer.update(grads, optimizer.init(params), params)[0]


def test_each_group_learns_at_its_own_rate():
    params = {"layer/w": jnp.ones((2, 2)), "sid_table": jnp.ones((2, 2))}
    param_groups = {"layer/w": "base", "sid_table": "table"}
    updates = first_update(CONFIG, params, params, param_groups)
    # Adam's first step is the learning rate times the gradient's sign.
    np.testing.assert_allclose(updates["layer/w"], -0.1, rtol=1e-5)
    np.testing.assert_allclose(updates["sid_table"], -0.01, rtol=1e-5)


def test_norms_and_biases_do_not_decay():
    params = {
        "layers/query": jnp.ones((2, 3, 3)),
        "layers/query_norm": jnp.ones((2, 3)),  # stacked layers: two dimensions
        "inner_bias": jnp.ones((2, 3)),
        "final": jnp.ones(3),
    }
    assert [path for path, is_decayed in decayed(params).items() if is_decayed] == ["layers/query"]
    zeros = {path: jnp.zeros_like(value) for path, value in params.items()}
    param_groups = dict.fromkeys(params, "base")
    updates = first_update(changed(weight_decay=0.5), params, zeros, param_groups)
    np.testing.assert_allclose(updates["layers/query"], -0.05, rtol=1e-6)
    assert all(not updates[path].any() for path in params if path != "layers/query")


def test_clipping_bounds_the_whole_gradient():
    params = {"a": jnp.zeros(4), "b": jnp.zeros(4)}
    grads = {"a": jnp.full(4, 300.0), "b": jnp.full(4, 400.0)}
    param_groups = dict.fromkeys(params, "base")
    optimizer = make_optimizer(changed(clip_norm=1.0), 10, param_groups)
    _, state = optimizer.update(grads, optimizer.init(params), params)
    mu = state[1].mu
    norm = np.sqrt(sum((np.asarray(value) ** 2).sum() for value in mu.values()))
    np.testing.assert_allclose(norm, 0.1, rtol=1e-5)  # (1 - b1) x clipped gradient


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25, 0]),
        ("constant", [0.5, 1, 1, 1, 1, 1, 1]),
        ("cosine", [0.5, 1, 1, 0.853553, 0.5, 0.146447, 0]),
    ],
)
def test_a_schedule_has_the_rates_of_its_formula(name, wanted):
    rate = schedule(changed(warmup_steps=2, schedule=name), 1.0, 6)
    np.testing.assert_allclose([float(rate(step)) for step in range(7)], wanted, atol=1e-6)


def test_first_step_of_a_warmup_of_one_is_the_peak():
    rate = schedule(changed(warmup_steps=1, schedule="constant"), 1.0, 6)
    assert [float(rate(step)) for step in range(3)] == [1, 1, 1]


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"optimizer.schedule='cosin' is unknown"):
        schedule(changed(schedule="cosin"), 1.0, 6)
    with pytest.raises(ValueError, match=r"warmup_steps=7 is not within 0..train.steps=6"):
        schedule(changed(warmup_steps=7), 1.0, 6)
