"""Tests of the backbone: from scratch, from a folder, and with a tokenizer that must match it."""

import dataclasses
import json

import numpy as np
import pytest
from flax import nnx

from sigma_jax.models.backbone import BackboneConfig, make_backbone
from sigma_jax.models.hf import save_backbone

SCRATCH = BackboneConfig(
    "", 16, 2, 2, 1, 8, 32, 1e4, 1e-6, True, True, 0.1, "float32", "float32", "none", 0, 32.0
)


@pytest.fixture
def folder(tmp_path):
    save_backbone(make_backbone(SCRATCH, 40, nnx.Rngs(3)), tmp_path / "hf")
    return tmp_path / "hf"


def write_tokenizer(folder, words):
    folder.mkdir(exist_ok=True)
    content = {"model": {"vocab": {word: i for i, word in enumerate(words)}}, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def test_from_scratch_it_has_the_sizes_of_the_config():
    config = make_backbone(SCRATCH, 40, nnx.Rngs(0)).config
    assert (config.vocab_size, config.width, config.dropout) == (40, 16, 0.1)


def test_from_a_folder_it_has_the_weights_of_the_folder_and_the_arithmetic_of_the_config(folder):
    config = dataclasses.replace(SCRATCH, hf_folder=str(folder), width=999, dtype="bfloat16")
    loaded = make_backbone(
        config, 30, nnx.Rngs(0)
    )  # fewer words than rows are allowed: tables are padded
    saved = make_backbone(SCRATCH, 40, nnx.Rngs(3))
    np.testing.assert_array_equal(loaded.embedding[...], saved.embedding[...])
    assert (loaded.config.width, loaded.config.dtype) == (16, "bfloat16")


def test_a_folder_may_be_a_name_on_the_hub(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **_: asked.append(name) or str(folder)
    )
    config = dataclasses.replace(SCRATCH, hf_folder="someone/tiny-model")
    assert make_backbone(config, 30, nnx.Rngs(0)).config.width == 16
    assert asked == ["someone/tiny-model"]


def test_a_name_that_the_hub_does_not_give_is_refused_in_one_line(monkeypatch):
    def unreachable(name, **_):
        raise OSError("no route to host\nmore lines")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    config = dataclasses.replace(SCRATCH, hf_folder="someone/tiny-model")
    message = r"backbone.hf_folder='someone/tiny-model' .* \(no route to host\); give the folder"
    with pytest.raises(ValueError, match=message):
        make_backbone(config, 30, nnx.Rngs(0))


def test_a_tokenizer_that_does_not_match_is_refused(folder, tmp_path):
    config = dataclasses.replace(SCRATCH, hf_folder=str(folder))
    with pytest.raises(ValueError, match=r"has 41 tokens but the backbone .* has 40; prepare"):
        make_backbone(config, 41, nnx.Rngs(0))
    write_tokenizer(folder, ["tea", "soap", "milk"])
    same = write_tokenizer(tmp_path / "same", ["tea", "soap"])
    other = write_tokenizer(tmp_path / "other", ["tea", "milk"])
    make_backbone(config, 2, nnx.Rngs(0), same)
    with pytest.raises(ValueError, match=r"has 'milk' as 1 but the backbone .* as 2; prepare"):
        make_backbone(config, 2, nnx.Rngs(0), other)


def test_a_large_backbone_from_random_numbers_is_said(caplog, monkeypatch):
    """A preset of a large model without its folder would train from nothing without a word."""
    monkeypatch.setattr("sigma_jax.models.backbone.LARGE", 10**9)
    make_backbone(SCRATCH, 50, nnx.Rngs(0))
    assert not caplog.text
    monkeypatch.setattr("sigma_jax.models.backbone.LARGE", 1)
    make_backbone(SCRATCH, 50, nnx.Rngs(0))
    assert "starts from random ones; give a pre-trained model as backbone.hf_folder" in caplog.text
