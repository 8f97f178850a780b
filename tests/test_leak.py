"""No artifact of a training depends on test targets, and a leak is found."""

import json
import shutil

import numpy as np
import pytest
from tiny_run import tiny_run

from launch import leak
from sigma_jax import prepare
from sigma_jax.configs import sft
from sigma_jax.data import splits
from sigma_jax.prepare import prepare_workdir
from sigma_jax.schema import Histories


def prepared_twice(config, folder, monkeypatch) -> list[str]:
    """The files of two prepared workdirs that differ, the second with permuted test targets."""
    prepare_workdir(config, folder / "given")
    monkeypatch.setattr(prepare, "split_log", leak.permuted_split(0))
    prepare_workdir(config, folder / "permuted")
    return list(leak.differences(folder / "given", folder / "permuted"))


def amazon_config(folder):
    """The preset `amazon` over forty users of a made-up log without times."""
    rng = np.random.default_rng(0)
    users = {str(n): rng.integers(0, 30, rng.integers(3, 9)).tolist() for n in range(40)}
    items = {str(n): {"title": f"thing {n}", "categories": "A,B"} for n in range(30)}
    (folder / "Made").mkdir(parents=True)
    (folder / "Made" / "Made.inter.json").write_text(json.dumps(users))
    (folder / "Made" / "Made.item.json").write_text(json.dumps(items))
    config = sft.get_config("amazon")
    with config.unlocked():
        config.data.path = str(folder / "Made")
        config.data.text_tokenizer.vocab_size = 400
    return config


@pytest.mark.slow
def test_permuted_test_targets_change_no_prepared_file(tables_folder, tmp_path, monkeypatch):
    assert prepared_twice(tiny_run(tables_folder), tmp_path, monkeypatch) == []
    before, after = (Histories.load(tmp_path / n / "data") for n in ("given", "permuted"))
    assert not np.array_equal(before.item, after.item)


def test_permuted_test_targets_change_no_prepared_file_of_amazon(tmp_path, monkeypatch):
    assert prepared_twice(amazon_config(tmp_path / "raw"), tmp_path, monkeypatch) == []
    before, after = (Histories.load(tmp_path / n / "data") for n in ("given", "permuted"))
    assert not np.array_equal(before.item, after.item)


@pytest.mark.slow
def test_a_leak_is_found(tables_folder, tmp_path, monkeypatch):
    """Counts of all rows as training rows change popularity and pairs."""
    monkeypatch.setattr(splits, "training_events", lambda events, counts: events)
    found = prepared_twice(tiny_run(tables_folder), tmp_path, monkeypatch)
    assert {"data/item_popularity.npy", "data/pairs_co_occurrence.arrow"} <= set(found)


@pytest.mark.slow
def test_permuted_test_targets_change_no_artifact_of_a_training(trained, tables_folder, tmp_path):
    """All stages; the first training is the one that tests share."""
    shutil.copytree(trained[1], tmp_path / "given")
    assert leak.find_leaks(tiny_run(tables_folder), tmp_path) == []
