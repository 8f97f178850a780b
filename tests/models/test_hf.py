"""Tests of Hugging Face folders: reading, writing, and refusals by name."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from sigma_jax.models import qwen3
from sigma_jax.models.hf import load_backbone, save_backbone

GOLDEN = Path(__file__).parents[1] / "golden"
MODELS = ("qwen3_tied", "qwen3_untied", "llama_tied", "llama_untied")
FLOAT32 = {"dtype": "float32", "param_dtype": "float32"}


@pytest.fixture
def folder(tmp_path):
    """A copy of the tied Qwen3 golden folder, for a test to damage."""
    return Path(shutil.copytree(GOLDEN / "qwen3_tied", tmp_path / "model"))


def change_config(folder, drop=(), **fields):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: v for name, v in config.items() if name not in drop}))


def change_tensors(folder, drop=(), **tensors):
    path = folder / "model.safetensors"
    kept = {name: v for name, v in load_file(path).items() if name not in drop}
    save_file(kept | tensors, path)


def params_of(model):
    return {path: np.asarray(p[...]) for path, p in nnx.to_flat_state(nnx.state(model, nnx.Param))}


def assert_same(a, b):
    a, b = params_of(a), params_of(b)
    assert a.keys() == b.keys()
    for path in a:
        assert a[path].dtype == b[path].dtype
        np.testing.assert_array_equal(a[path], b[path])


# --- reading and writing


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shard_bytes", [10**9, 3000])
def test_saved_folder_loads_as_the_same_model(tmp_path, name, shard_bytes):
    model = load_backbone(GOLDEN / name, **FLOAT32)
    save_backbone(model, tmp_path, shard_bytes=shard_bytes)
    again = load_backbone(tmp_path, **FLOAT32)
    assert again.config == model.config
    assert_same(model, again)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_bytes == 3000)


@pytest.mark.parametrize("name", MODELS)
def test_saved_tensors_are_those_of_transformers(tmp_path, name):
    save_backbone(load_backbone(GOLDEN / name, **FLOAT32), tmp_path)
    ours, theirs = load_file(tmp_path / "model.safetensors"), {}
    for file in (GOLDEN / name).glob("*.safetensors"):
        theirs |= load_file(file)
    assert ours.keys() == theirs.keys()
    for tensor, values in theirs.items():
        np.testing.assert_array_equal(ours[tensor], values)


def test_saving_again_leaves_no_file_of_the_former_model(tmp_path):
    save_backbone(load_backbone(GOLDEN / "qwen3_untied", **FLOAT32), tmp_path, shard_bytes=3000)
    model = load_backbone(GOLDEN / "llama_tied", **FLOAT32)
    save_backbone(model, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    assert_same(model, load_backbone(tmp_path, **FLOAT32))


def test_shards_are_not_larger_than_shard_bytes(tmp_path):
    save_backbone(load_backbone(GOLDEN / "qwen3_tied", **FLOAT32), tmp_path, shard_bytes=3000)
    for file in tmp_path.glob("*.safetensors"):
        with safe_open(file, "numpy") as reader:
            assert sum(reader.get_tensor(name).nbytes for name in reader.keys()) <= 3000
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    model = load_backbone(GOLDEN / "qwen3_tied", **FLOAT32)
    assert index["metadata"]["total_size"] == sum(p.nbytes for p in params_of(model).values())


@pytest.mark.parametrize("stored", [jnp.bfloat16, np.float16])
@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16", "float16"])
def test_16_bit_files_are_read_as_rounded_values(folder, stored, param_dtype):
    tensors = {n: v.astype(stored) for n, v in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    model = load_backbone(folder, dtype="float32", param_dtype=param_dtype)
    expected = tensors["model.embed_tokens.weight"].astype(param_dtype)
    np.testing.assert_array_equal(model.embedding[...], expected)
    assert model.embed(jnp.array([[1]])).dtype == jnp.float32


def test_16_bit_weights_come_back_bit_for_bit(tmp_path):
    model = load_backbone(GOLDEN / "qwen3_tied", dtype="bfloat16", param_dtype="bfloat16")
    save_backbone(model, tmp_path)
    with safe_open(tmp_path / "model.safetensors", "numpy") as reader:
        assert reader.get_slice("model.norm.weight").get_dtype() == "BF16"
    assert_same(model, load_backbone(tmp_path, dtype="bfloat16", param_dtype="bfloat16"))


def test_each_weight_is_placed_with_its_axes():
    placed = []

    def place(array, axes):
        placed.append((array.shape, axes))
        return jax.device_put(array)

    model = load_backbone(GOLDEN / "qwen3_tied", **FLOAT32, place=place)
    axes = qwen3.logical_axes(model)
    shapes = {path: values.shape for path, values in params_of(model).items()}
    assert sorted(placed) == sorted((shapes[path], axes[path]) for path in axes)


def test_settings_of_the_run_are_kept():
    settings = {"dtype": "bfloat16", "param_dtype": "float32", "remat": "layer", "dropout": 0.1}
    config = load_backbone(GOLDEN / "qwen3_tied", **settings).config
    assert {name: getattr(config, name) for name in settings} == settings


# --- variants of folders


def test_rotary_base_is_read_from_old_and_new_folders(folder):
    assert load_backbone(folder, **FLOAT32).config.rope_theta == 1e6
    change_config(folder, drop=["rope_parameters"], rope_theta=12345.0, rope_scaling=None)
    assert load_backbone(folder, **FLOAT32).config.rope_theta == 12345.0
    change_config(folder, drop=["rope_theta"])
    assert load_backbone(folder, **FLOAT32).config.rope_theta == 10000.0


def test_a_llama_folder_without_newer_fields_gets_the_defaults_of_transformers(tmp_path):
    model = load_backbone(GOLDEN / "llama_tied", **FLOAT32)
    config = dataclasses.replace(model.config, num_kv_heads=3, head_dim=4)
    params = jax.jit(lambda: nnx.state(qwen3.Qwen3(config, rngs=nnx.Rngs(0))))()
    graph = nnx.graphdef(nnx.eval_shape(lambda: qwen3.Qwen3(config, rngs=nnx.Rngs(0))))
    save_backbone(nnx.merge(graph, params), tmp_path)
    change_config(tmp_path, drop=["num_key_value_heads", "head_dim"])
    assert load_backbone(tmp_path, **FLOAT32).config == config


def test_folder_of_a_bare_model_is_read(folder):
    tensors = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("model."): values for name, values in tensors.items()}
    save_file(bare, folder / "model.safetensors")
    assert_same(load_backbone(folder, **FLOAT32), load_backbone(GOLDEN / "qwen3_tied", **FLOAT32))


def test_tied_table_stored_twice_is_read_once(folder):
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    change_tensors(folder, **{"lm_head.weight": embedding})
    assert_same(load_backbone(folder, **FLOAT32), load_backbone(GOLDEN / "qwen3_tied", **FLOAT32))


# --- refusals, by name

REFUSED_CONFIGS = [
    ({"model_type": "mistral"}, "model_type='mistral' is not supported; use qwen3 or llama"),
    ({"model_type": "qwen3_moe"}, "model_type='qwen3_moe'"),
    ({"model_type": None}, "model_type=None"),
    ({"attention_bias": True}, "attention_bias=True"),
    ({"mlp_bias": True}, "mlp_bias=True"),
    ({"use_sliding_window": True}, "use_sliding_window=True"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "layer 1 is 'sliding_attention'"),
    ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
    ({"quantization_config": {"bits": 4}}, "quantization_config="),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_parameters of type 'yarn'"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling of type 'linear'"),
    ({"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling of type 'llama3'"),
    ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "of type 'full_attention'"),
    ({"rope_parameters": {"rope_theta": -1.0}}, "rope_theta=-1.0"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
    ({"hidden_size": None}, "hidden_size=None is not a size"),
    ({"vocab_size": "19"}, "vocab_size='19' is not a size"),
    ({"rms_norm_eps": "small"}, "rms_norm_eps='small'"),
    ({"num_attention_heads": 3}, "config.json: num_heads=3 does not divide"),
    ({"tie_word_embeddings": False}, "no tensor lm_head.weight although .* is false"),
    ({"hidden_size": 12}, r"embed_tokens.weight has shape \[19, 10\], config.json says \[19, 12\]"),
    ({"num_hidden_layers": 3}, "no tensor model.layers.2"),
    ({"num_hidden_layers": 1}, "tensor model.layers.1.* has no place"),
    ({"model_type": "llama", "hidden_size": 12}, "tensor model.layers.0.self_attn.k_norm.weight"),
]


def refused(folder, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_backbone(folder, **FLOAT32)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("fields", "message"), REFUSED_CONFIGS)
def test_config_that_cannot_be_expressed_is_refused(folder, fields, message):
    change_config(folder, **fields)
    refused(folder, message)


def test_missing_and_damaged_files_are_refused(folder, tmp_path):
    refused(tmp_path / "nowhere", "nowhere/config.json is missing")
    weights = (folder / "model.safetensors").read_bytes()
    for damaged in (b"", b"not a model at all", weights[:100], weights[:-7]):
        (folder / "model.safetensors").write_bytes(damaged)
        refused(folder, "model.safetensors is damaged")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    refused(folder, "has no model.safetensors")
    (folder / "config.json").write_text("{")
    refused(folder, "config.json is damaged")
    (folder / "config.json").write_text("[]")
    refused(folder, "config.json holds no JSON object")


def test_tensors_that_do_not_fit_are_refused(folder):
    norm = {"model.norm.weight": np.ones(10, np.float32)}
    change_tensors(folder, **{"model.layers.0.self_attn.q_proj.bias": np.ones(24, np.float32)})
    refused(folder, "q_proj.bias has no place")
    change_tensors(folder, drop=["model.layers.0.self_attn.q_proj.bias", "model.norm.weight"])
    refused(folder, "no tensor model.norm.weight")
    change_tensors(folder, **{"model.norm.weight": np.ones(10, np.int8)})
    refused(folder, "model.norm.weight is of type I8; use one of F32, F16, BF16")
    change_tensors(folder, **{"model.norm.weight": np.full(10, np.nan, np.float32)})
    refused(folder, "model.norm.weight has values that are not finite")
    change_tensors(folder, **norm)
    load_backbone(folder, **FLOAT32)


def test_values_too_large_for_the_weights_type_are_refused(folder):
    change_tensors(folder, **{"model.norm.weight": np.full(10, 1e6, np.float32)})
    with pytest.raises(ValueError, match="not finite in float16"):
        load_backbone(folder, dtype="float32", param_dtype="float16")


def test_head_is_never_tied_against_the_file(folder):
    other = np.ones((19, 10), np.float32)
    change_tensors(folder, **{"lm_head.weight": other})
    refused(folder, "lm_head.weight differs from the embedding although .* is true")
    change_config(folder, tie_word_embeddings=False)
    np.testing.assert_array_equal(load_backbone(folder, **FLOAT32).head[...], other)


def test_damaged_indexes_are_refused(tmp_path):
    folder = Path(shutil.copytree(GOLDEN / "qwen3_untied", tmp_path / "model"))
    next(folder.glob("model-00002-*")).unlink()
    refused(folder, "model-00002-of-00003.safetensors is missing")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "../secret"}}))
    refused(folder, "lm_head.weight is in '../secret'; name a file of the folder")
    index.write_text("{}")
    refused(folder, "has no weight_map")


def test_index_that_names_a_tensor_its_shard_lacks_is_refused(tmp_path):
    folder = Path(shutil.copytree(GOLDEN / "qwen3_untied", tmp_path / "model"))
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    files = sorted(set(content["weight_map"].values()))
    content["weight_map"]["model.norm.weight"] = next(
        file for file in files if file != content["weight_map"]["model.norm.weight"]
    )
    index.write_text(json.dumps(content))
    refused(folder, "model.norm.weight is damaged")
