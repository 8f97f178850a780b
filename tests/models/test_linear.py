"""Tests of low-rank additions: zero at the start, folded before saving, and trained alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sigma_jax.configs.sft import get_config
from sigma_jax.models.attention import _matrices
from sigma_jax.models.backbone import make_backbone
from sigma_jax.models.config import LoraConfig
from sigma_jax.models.hf import load_backbone, save_backbone
from sigma_jax.models.linear import INPUT_AXES, LORA_SUFFIXES, project
from sigma_jax.models.qwen3 import Qwen3, causal_mask
from sigma_jax.runtime.config import MeshConfig
from sigma_jax.runtime.sharding import make_mesh
from sigma_jax.train import check_config
from tests.models.test_backbone import SCRATCH
from tests.small_recommender import backbone_config

LORA = LoraConfig(3, 6.0)
TOKENS = jnp.array([[1, 2, 3, 4], [5, 6, 0, 0]])
MASK = causal_mask(jnp.array([[1, 1, 1, 1], [1, 1, 0, 0]]))


def hidden(model):
    positions = jnp.broadcast_to(jnp.arange(4), TOKENS.shape)
    return model(model.embed(TOKENS), positions, MASK)[0]


def with_additions(model):
    """`model` with additions that are not zero."""
    for number, name in enumerate(INPUT_AXES):
        weight = model.layers[name + "_b"]
        weight[...] = 0.1 * jax.random.normal(jax.random.key(number), weight.shape)
    return model


@pytest.fixture
def model():
    model = Qwen3(backbone_config(), rngs=nnx.Rngs(0))
    model.add_lora(LORA, nnx.Rngs(1))
    return model


def test_additions_change_nothing_at_the_start(model):
    plain = Qwen3(backbone_config(), rngs=nnx.Rngs(0))
    np.testing.assert_allclose(hidden(model), hidden(plain), atol=1e-5)
    assert all(jnp.any(model.layers[name + "_a"][...] != 0) for name in INPUT_AXES)


def test_a_model_with_additions_equals_the_model_of_the_summed_weights(model):
    with_additions(model)
    summed = Qwen3(backbone_config(), rngs=nnx.Rngs(0))
    for name, inputs in INPUT_AXES.items():
        a, b = (model.layers[name + suffix][...] for suffix in LORA_SUFFIXES)
        letters = "pq"[:inputs]
        added = 2.0 * jnp.einsum(f"n{letters}r,nr...->n{letters}...", a, b)  # alpha / rank
        summed.layers[name][...] += added
    actual = hidden(model)
    np.testing.assert_allclose(actual, hidden(summed), atol=2e-5)
    model.fold_lora()
    for name, weight in model.layers.items():
        np.testing.assert_allclose(weight[...], summed.layers[name][...], atol=1e-6)
    assert model.config == summed.config and model.layers.keys() == summed.layers.keys()
    model.fold_lora()  # does nothing
    np.testing.assert_allclose(hidden(model), actual, atol=2e-5)
    assert np.abs(actual - hidden(Qwen3(backbone_config(), rngs=nnx.Rngs(0)))).max() > 0.05


def test_additions_are_folded_before_a_model_is_saved(model, tmp_path):
    with pytest.raises(ValueError, match=r"low-rank additions; call fold_lora"):
        save_backbone(with_additions(model), tmp_path)
    model.fold_lora()
    save_backbone(model, tmp_path, shard_bytes=3000)
    loaded = load_backbone(tmp_path, dtype="float32", param_dtype="float32")
    np.testing.assert_allclose(hidden(loaded), hidden(model), atol=2e-5)


def test_additions_to_a_folder_s_weights_are_float32(tmp_path):
    save_backbone(make_backbone(SCRATCH, 40, nnx.Rngs(3)), tmp_path)
    how = {"lora_rank": 2, "lora_alpha": 8.0, "param_dtype": "bfloat16"}
    config = dataclasses.replace(SCRATCH, hf_folder=str(tmp_path), **how)
    model = make_backbone(config, 40, nnx.Rngs(0))
    assert model.config.lora == LoraConfig(2, 8.0)
    assert model.layers["out"].dtype == jnp.bfloat16
    assert model.layers["out_a"].shape == (2, 2, 8, 2)
    assert model.layers["out_a"].dtype == jnp.float32
    serving = make_backbone(config.trained(tmp_path), 40, nnx.Rngs(0))
    assert serving.config.lora is None and serving.layers["out"].dtype == jnp.float32


def test_a_trained_backbone_is_loaded_in_the_type_of_its_products(tmp_path):
    save_backbone(make_backbone(SCRATCH, 40, nnx.Rngs(3)), tmp_path)
    config = dataclasses.replace(SCRATCH, dtype="bfloat16").trained(tmp_path)
    assert make_backbone(config, 40, nnx.Rngs(0)).layers["out"].dtype == jnp.bfloat16


def test_additions_without_a_folder_are_refused():
    config = dataclasses.replace(SCRATCH, lora_rank=2)
    with pytest.raises(
        ValueError, match=r"lora_rank=2 trains additions .* give backbone.hf_folder"
    ):
        make_backbone(config, 40, nnx.Rngs(0))
    mesh = make_mesh(MeshConfig(1, -1, 1))
    with pytest.raises(ValueError, match=r"stage grounding .*backbone\.lora_rank=32 trains"):
        check_config(get_config("qwen3_4b_lora"), mesh)
    with pytest.raises(ValueError, match="lora_rank=-1 is not a rank"):
        dataclasses.replace(SCRATCH, lora_rank=-1)
    with pytest.raises(ValueError, match=r"lora_alpha=0\.0 is not a factor"):
        dataclasses.replace(SCRATCH, lora_rank=2, lora_alpha=0.0)


def test_products_with_flat_heads_are_the_same(model):
    """The TPU kernels take flat heads."""
    weights = {name: weight[...][0] for name, weight in with_additions(model).layers.items()}
    flat = _matrices(weights)
    x = jax.random.normal(jax.random.key(0), (2, 3, 16))
    for name in ("query", "key", "value"):
        expected = project(x, weights, name, LORA).reshape(2, 3, -1)
        np.testing.assert_allclose(project(x, flat, name, LORA), expected, atol=1e-5)
    mixed = jax.random.normal(jax.random.key(1), (2, 3, 2, 8))
    expected = project(mixed, weights, "out", LORA, 2)
    actual = project(mixed.reshape(2, 3, -1), flat, "out", LORA)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_all_additions_have_gradients(model):
    graph, state = nnx.split(with_additions(model))
    flat = dict(nnx.to_flat_state(state))
    trained = {path: leaf for path, leaf in flat.items() if path[-1].endswith(LORA_SUFFIXES)}
    assert len(trained) == 2 * len(INPUT_AXES)

    def loss(trained):
        merged = nnx.merge(graph, nnx.from_flat_state([*{**flat, **trained}.items()]))
        return (hidden(merged) ** 3).sum()

    gradients = jax.grad(loss)(trained)
    assert all(jnp.abs(leaf[...]).max() > 0 for leaf in gradients.values())
