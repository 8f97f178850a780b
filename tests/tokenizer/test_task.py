"""Tests of the stage `tokenizer`, its config and its artifact."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from sigma_jax.configs import common
from sigma_jax.configs import tokenizer as tokenizer_config
from sigma_jax.runtime.config import MeshConfig, to_dataclass
from sigma_jax.runtime.sharding import make_mesh
from sigma_jax.runtime.state import init_state, make_step
from sigma_jax.schema import SemanticIds
from sigma_jax.tokenizer.assign import load_tokenizer
from sigma_jax.tokenizer.task import TokenizerConfig, TokenizerTask

SMOKE = to_dataclass(TokenizerConfig, tokenizer_config.stage_fields("smoke"))
TINY = dataclasses.replace(
    SMOKE,
    model=dataclasses.replace(
        SMOKE.model, levels=3, codebook_size=8, latent_size=6, hidden_sizes=(8,)
    ),
    encode_rows=64,  # not a divisor of the items
)


def clustered(items: int, width: int = 8) -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(12, width))
    vectors = centres[rng.integers(0, 12, items)] + 0.3 * rng.normal(size=(items, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def make_task(folder: Path, vectors: np.ndarray, config: TokenizerConfig = TINY, seed: int = 3):
    (folder / "grounding").mkdir(parents=True)
    np.save(folder / "grounding" / "text_vectors.npy", vectors)
    return TokenizerTask(config, folder, seed)


def train(task: TokenizerTask, steps: int):
    """The model and the losses of `steps` steps, by the loop of train.py without its files."""
    mesh = make_mesh(MeshConfig(data=-1, fsdp=1, tensor=1))
    optimizer = task.config.optimizer
    state, template, update = init_state(
        task.model(nnx.Rngs(task.seed)), task.param_group, optimizer, 20, mesh
    )
    step = make_step(task.loss, template, update, optimizer, 20, task.seed, state)
    batches, losses = task.batches(), []
    for number in range(steps):
        state, metrics = step(state, {}, batches[number])
        losses.append(float(metrics["loss"]))
    return template.merge(state.params, state.rest), losses


@pytest.mark.parametrize("method", ["rqvae", "kmeans"])
def test_the_artifact_has_sids_and_a_tokenizer_that_gives_the_same_sids(tmp_path, method):
    vectors = clustered(150)
    task = make_task(tmp_path, vectors, dataclasses.replace(TINY, method=method))
    model, losses = train(task, 10)
    assert np.isfinite(losses).all()
    out = tmp_path / "out"
    out.mkdir()
    metrics = task.finish(model, {}, out)
    sids = SemanticIds.load(out)
    assert sids.codes.shape == (150, 3) and sids.codebook_size == 8
    assert np.load(out / "codebooks.npy").shape == (3, 8, 6 if method == "rqvae" else 8)
    tokenizer = load_tokenizer(out)
    np.testing.assert_array_equal(tokenizer.assign(vectors), sids.codes)
    np.testing.assert_array_equal(tokenizer.assign(vectors[7:8]), sids.codes[7:8])
    histogram = metrics["collision_histogram"]
    assert sum(histogram.values()) == len(np.unique(sids.codes, axis=0))
    assert metrics["largest_prefix_1"] == np.bincount(sids.codes[:, 0]).max()
    json.dumps(metrics)
    assert 0 < metrics["relative_mse"] < 0.6 and metrics["neighbour_share"] > 1 / 8


def test_sids_are_a_function_of_the_seed(tmp_path):
    vectors, codes = clustered(80), []
    for run, seed in enumerate((3, 3, 4)):
        task = make_task(tmp_path / str(run), vectors, seed=seed)
        codes.append(np.asarray(train(task, 5)[0].assign(vectors)))
    np.testing.assert_array_equal(codes[0], codes[1])
    assert (codes[0] != codes[2]).any()


def test_batches_depend_on_seed_and_step_only(tmp_path):
    vectors = clustered(30)
    task, twin = make_task(tmp_path / "a", vectors), make_task(tmp_path / "b", vectors)
    forward = [task.batches()[step]["vectors"] for step in range(3)]
    backward = [twin.batches()[step]["vectors"] for step in (2, 1, 0)][::-1]
    np.testing.assert_array_equal(forward, backward)
    assert forward[0].shape == (TINY.train.batch_size, 8)
    assert (forward[0] != forward[1]).any()
    some_rows = task.batches(np.array([3, 5]))[1]["vectors"]
    np.testing.assert_array_equal(some_rows, forward[1][[3, 5]])


def test_training_lowers_the_loss_of_a_narrow_latent(tmp_path):
    config = dataclasses.replace(
        TINY, model=dataclasses.replace(TINY.model, latent_size=2, commitment=0.05)
    )
    config = dataclasses.replace(
        config, optimizer=dataclasses.replace(TINY.optimizer, learning_rate=1e-2)
    )
    _, losses = train(make_task(tmp_path, clustered(150), config), 20)
    assert np.mean(losses[-4:]) < 0.95 * np.mean(losses[:4])


@pytest.mark.parametrize("items", [1, 2, 5])
def test_fewer_items_than_codes_work(tmp_path, items):
    config = dataclasses.replace(TINY, min_code_use=1.0)
    task = make_task(tmp_path, clustered(items), config)
    model, _ = train(task, 2)
    task.report(model, {})
    out = tmp_path / "out"
    out.mkdir()
    task.finish(model, {}, out)
    assert len(np.unique(SemanticIds.load(out).codes, axis=0)) == items


def test_collapse_stops_the_run_with_a_remedy(tmp_path):
    config = dataclasses.replace(TINY, min_code_use=0.5)
    task = make_task(tmp_path, clustered(100), config)
    model = task.model(nnx.Rngs(0))
    model.encoder.linear[...] = jax.numpy.zeros_like(model.encoder.linear[...])
    with pytest.raises(ValueError, match=r"level 1 .* uses 1 of 8 .*method='kmeans'"):
        task.finish(model, {}, tmp_path)
    assert not (tmp_path / "semantic_ids.npy").exists()


def test_new_vectors_must_fit_the_tokenizer(tmp_path):
    task = make_task(tmp_path, clustered(50))
    out = tmp_path / "out"
    out.mkdir()
    task.finish(task.model(nnx.Rngs(0)), {}, out)
    tokenizer = load_tokenizer(out)
    with pytest.raises(ValueError, match="vectors of 8 values"):
        tokenizer.assign(np.zeros((2, 5), np.float32))
    with pytest.raises(ValueError, match="item vector 1 is not finite"):
        tokenizer.assign(np.float32([[0] * 8, [np.nan] * 8]))
    (out / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer\.json is damaged"):
        load_tokenizer(out)


def test_missing_or_broken_input_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"inputs=\('text',\) but .* has vectors of \[\]"):
        TokenizerTask(TINY, tmp_path, 0)
    with pytest.raises(ValueError, match="have no items"):
        make_task(tmp_path / "empty", np.zeros((0, 8), np.float32))
    task = make_task(tmp_path / "nan", np.full((4, 8), np.nan, np.float32))
    with pytest.raises(ValueError, match="not finite"):
        task.model(nnx.Rngs(0))


@pytest.mark.parametrize("preset", common.PRESETS)
def test_every_preset_fits_the_task(preset):
    config = to_dataclass(TokenizerConfig, tokenizer_config.stage_fields(preset))
    if preset.startswith("qwen3"):  # the paper: 256 x 4
        assert (config.model.codebook_size, config.model.levels) == (256, 4)
    assert config.optimizer.warmup_steps <= config.train.steps
