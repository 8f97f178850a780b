"""Tests of the stage grounding_head: it learns what the encoder lacks, and keeps what it has."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx

from sigma_jax.configs import common
from sigma_jax.configs.grounding_head import stage_fields
from sigma_jax.encoders.grounding_head import GroundedVectors, HeadConfig
from sigma_jax.grounding import head_task
from sigma_jax.grounding.head_task import GroundingHeadConfig, GroundingHeadTask
from sigma_jax.runtime.config import to_dataclass
from sigma_jax.runtime.state import init_state, make_step
from sigma_jax.schema import load_item_vectors

WIDTH, STEPS = 24, 80
NOUNS = ("tea", "soap", "bread", "milk", "paper", "rice")  # the queries of conftest.py
GROUPS, ITEMS = len(NOUNS), 48


class Encoder:
    """Queries to vectors in which the noun is one direction among much else."""

    def __init__(self):
        random = np.random.default_rng(5)
        self.nouns = random.normal(size=(GROUPS, WIDTH)).astype(np.float32)
        self.calls = []

    def encode_queries(self, texts):
        self.calls.append(list(texts))
        return np.stack([self.nouns[NOUNS.index(text)] for text in texts])

    def items(self):
        other = np.random.default_rng(6).normal(size=(ITEMS, WIDTH)) * 2
        vectors = (self.nouns[np.arange(ITEMS) % GROUPS] + other).astype(np.float32)
        vectors[47] = vectors[5]  # has the same text
        return vectors


@pytest.fixture
def encoder(workdir, monkeypatch):
    encoder = Encoder()
    np.save(workdir / "data" / "text_vectors.npy", encoder.items())
    (workdir / "data" / "manifest.json").write_text(json.dumps({"fingerprint": "one"}))
    monkeypatch.setattr(head_task, "plain_encoder_of", lambda folder: encoder)
    return encoder


def make_config(**changes) -> GroundingHeadConfig:
    fields = stage_fields("smoke")
    fields.optimizer = common.optimizer(1e-2, warmup_steps=2)
    config = to_dataclass(GroundingHeadConfig, fields)
    return dataclasses.replace(config, head=HeadConfig(8, 32, 1.0), **changes)


def run(task, config):
    kinds = (jax.sharding.AxisType.Auto,) * 3
    mesh = jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor"), axis_types=kinds)
    state, template, optimizer = init_state(
        task.model(nnx.Rngs(0)), task.param_group, config.optimizer, STEPS, mesh
    )
    step = make_step(task.loss, template, optimizer, config.optimizer, STEPS, 0, state)
    batches, metrics = task.batches(), []
    for number in range(STEPS):
        state, parts = step(state, {}, batches[number])
        metrics.append({name: float(value) for name, value in parts.items()})
    return template.merge(state.params, state.rest), metrics


def test_it_learns_what_the_encoder_lacks_and_keeps_what_it_has(workdir, encoder, tmp_path):
    config = make_config()
    task = GroundingHeadTask(config, workdir, 0)
    model, metrics = run(task, config)
    first, last = metrics[0], metrics[-1]
    total = first["contrastive"] + config.kd_weight * first["distillation"]
    np.testing.assert_allclose(first["loss"], total, rtol=1e-5)
    assert last["loss"] < 0.8 * first["loss"]
    report = task.report(model, {})
    assert report["candidates"] == ITEMS
    for view in ("search", "co_occurrence"):
        assert report[f"recall_10/{view}"] > 0.1 + report[f"encoder_recall_10/{view}"]

    folder = tmp_path / "grounding_head"
    folder.mkdir()
    assert task.finish(model, {}, folder)["items"] == ITEMS
    stored = load_item_vectors(folder / "text_vectors.npy")
    plain = encoder.items() / np.linalg.norm(encoder.items(), axis=1, keepdims=True)
    np.testing.assert_allclose(stored[:, :WIDTH] * np.sqrt(2), plain, atol=1e-6)
    np.testing.assert_allclose(GroundedVectors.load(folder)(encoder.items()), stored, atol=1e-6)


def test_batches_hold_the_vectors_of_both_sides(workdir, encoder):
    task = GroundingHeadTask(make_config(), workdir, 0)
    batch = task.batches()[3]
    _, left, right = task.pairs.draw(3)
    rows = np.concatenate([left, right])
    raw = np.concatenate([encoder.items(), encoder.nouns])  # items, then the queries
    expected = raw[rows] / np.linalg.norm(raw[rows], axis=1, keepdims=True)
    np.testing.assert_allclose(batch["vector"], expected, atol=1e-6)
    assert set(batch) == {"vector", "key", "view", "id_vectors", "has_id"}
    np.testing.assert_array_equal(batch["has_id"], rows < ITEMS)
    np.testing.assert_array_equal(
        task.batches(np.array([1, 4]))[3]["vector"], batch["vector"][[1, 4]]
    )
    assert task.table.key[47] == task.table.key[5] and len(set(task.table.key)) == len(raw) - 1


def test_left_texts_are_encoded_once(workdir, encoder):
    first = GroundingHeadTask(make_config(), workdir, 0)
    again = GroundingHeadTask(make_config(), workdir, 0)
    assert encoder.calls == [list(NOUNS)]
    np.testing.assert_array_equal(first.table.left, again.table.left)
    (workdir / "data" / "manifest.json").write_text(json.dumps({"fingerprint": "two"}))
    GroundingHeadTask(make_config(), workdir, 0)
    assert len(encoder.calls) == 2


def test_without_distillation_no_id_vectors_are_read(workdir, encoder):
    task = GroundingHeadTask(make_config(kd_weight=0.0), workdir, 0)
    assert "id_vectors" not in task.batches()[0]
    with pytest.raises(ValueError, match=r"train.accumulate=2 would separate"):
        make_config(train=dataclasses.replace(make_config().train, accumulate=2))
