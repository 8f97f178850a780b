"""Padding for new items changes no loss, and no artifact has it."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sigma_jax.models.weights import named_parameters
from sigma_jax.refreshing import padding
from sigma_jax.refreshing.continued import ContinuedTask
from sigma_jax.refreshing.stages import Refresh, continue_sft, continue_teacher

SETTINGS = SimpleNamespace(
    rate_share=0.2, new_share=0.5, rebuilds_codebooks=False, steps={"sft": 1, "teacher": 1}
)


@pytest.mark.parametrize(
    "count, size", [(0, 0), (15, 15), (17, 18), (60, 60), (62, 64), (12_984, 13_312)]
)
def test_tables_of_near_lengths_get_one_length(count, size):
    table = np.arange(2 * count).reshape(count, 2)
    found = padding.padded(table)
    assert found.shape == (size, 2)
    np.testing.assert_array_equal(found[:count], table)
    assert (found[count:] == table[-1:]).all()
    assert (padding.padded(table, 7)[count:] == 7).all()


def continued(stage: str, workdir) -> ContinuedTask:
    """The stage of a refresh without new rows."""
    refresh = Refresh(workdir, workdir, SETTINGS, 0)
    make = {"sft": continue_sft, "teacher": continue_teacher}[stage]
    return make(refresh, refresh.fields(stage, 1))


@pytest.mark.parametrize("stage", ["teacher", "sft"])
def test_padding_changes_no_loss_and_is_cut_off(trained, monkeypatch, stage):
    task = continued(stage, trained[1])
    assert task.by_item and task.items == 60
    [batch] = list(task.task.batches()[:1])
    batch = jax.tree.map(jnp.asarray, batch)
    found = []
    for added in (0, 5):
        monkeypatch.setattr(padding, "in_eighths", lambda count, added=added: count + added)
        model, tables = task.model(nnx.Rngs(0)), jax.tree.map(jnp.asarray, task.tables())
        names = [n for n in named_parameters(model) if n.startswith(tuple(task.by_item))]
        assert names and all(len(named_parameters(model)[n][...]) == 60 + added for n in names)
        loss, metrics = nnx.jit(task.loss)(model, tables, batch, jax.random.key(0))
        found.append(
            {"loss": float(loss)} | {name: float(value) for name, value in metrics.items()}
        )
    assert found[0]["loss"] > 0
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    written = dataclasses.replace(task, write=lambda model, tables, folder: dict(model=model))
    model = written.finish(model, tables, trained[1])["model"]
    for name, param in named_parameters(task.task.model(nnx.Rngs(0))).items():
        assert named_parameters(model)[name].shape == param.shape


def test_an_added_item_is_never_a_negative(trained, monkeypatch):
    monkeypatch.setattr(padding, "in_eighths", lambda count: count + 5)
    tables = continued("sft", trained[1]).tables()
    assert len(tables["codes"]) == 65
    assert tables["is_cold"][60:].all()
    assert tables["by_prefix"].max() < 60
    assert (tables["prefix_start"][-5:] == tables["prefix_start"][-6]).all()
