"""Vectors of sentence encoders equal those of sentence-transformers; bad folders are named.

golden/make_encoder_golden.py made the folders encoder_* and their vectors.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from processes import environment
from safetensors.numpy import load_file, save_file

from sigma_jax.encoders import sentence_encoder
from sigma_jax.encoders.sentence_encoder import (
    SentenceEncoder,
    batch_size,
    batches,
    padded_count,
)

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = ("encoder_bert", "encoder_dense", "encoder_roberta", "encoder_qwen3")
TEXTS = ["green tea", "Soap for the cat", "", "candle " * 30, "unknown words here", "red"]


@pytest.fixture
def folder(tmp_path):
    """A copy of the BERT folder, for a test to damage."""
    return Path(shutil.copytree(GOLDEN / "encoder_bert", tmp_path / "model"))


def change(path: Path, **fields) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_an_encoder_needs_no_head(tmp_path):
    """The config says that the head is not tied, and no file has one: it is an encoder's folder."""
    folder = Path(shutil.copytree(GOLDEN / "encoder_qwen3", tmp_path / "model"))
    tensors = {
        name if name.startswith("model.") else f"model.{name}": tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
        if name != "lm_head.weight"
    }
    save_file(tensors, folder / "model.safetensors")
    change(folder / "config.json", tie_word_embeddings=False)
    found = SentenceEncoder.load(folder).encode_items(TEXTS)
    wanted = SentenceEncoder.load(GOLDEN / "encoder_qwen3").encode_items(TEXTS)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("name", NAMES)
def test_vectors_are_those_of_sentence_transformers(name):
    """Pooling, dense layers, prompts, cut texts and lower case are read from the folder."""
    encoder, expected = SentenceEncoder.load(GOLDEN / name), np.load(GOLDEN / name / "vectors.npz")
    for prompt in expected.files:
        found = encoder.encode(TEXTS, "" if prompt == "plain" else prompt)
        np.testing.assert_allclose(found, expected[prompt], atol=1e-5)
    assert encoder.width == expected["plain"].shape[1]


def test_queries_and_items_get_the_prompts_of_the_model(folder):
    plain = SentenceEncoder.load(folder)
    np.testing.assert_array_equal(plain.encode_queries(TEXTS), plain.encode(TEXTS))
    prompts = {"query": "search query: ", "passage": "a text: "}
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    encoder = SentenceEncoder.load(folder)
    for found, prompt in ((encoder.encode_queries, "query"), (encoder.encode_items, "passage")):
        texts = [prompts[prompt] + text for text in TEXTS]
        np.testing.assert_array_equal(found(TEXTS), plain.encode(texts))


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["replicated", "sharded"])
def test_four_devices_give_the_vectors_of_one(weights):
    script = Path(__file__).with_name("sharded_encoder.py")
    words = [sys.executable, script, GOLDEN / "encoder_bert", weights]
    run = subprocess.run(words, env=environment(4), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_order_and_number_of_texts_change_no_vector(monkeypatch):
    monkeypatch.setattr(sentence_encoder, "BATCH_TOKENS", 32)
    encoder = SentenceEncoder.load(GOLDEN / "encoder_bert")
    texts = [f"{word} tea " * (number % 7) for number, word in enumerate(TEXTS * 4)]
    together = encoder.encode(texts)
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert encoder.encode([]).shape == (0, together.shape[1])


def test_batches_hold_texts_of_like_length(monkeypatch):
    monkeypatch.setattr(sentence_encoder, "BATCH_TOKENS", 16)
    lengths = [3, 9, 200, 8, 8, 5]
    order = np.argsort(lengths, kind="stable")[::-1]
    found = batches(order, lengths)
    assert [batch.tolist() for batch in found] == [[2], [1], [4, 3], [5, 0]]
    assert batch_size(8) == 2 and batch_size(10**6) == 1


def test_few_texts_are_read_in_a_small_batch():
    full = batch_size(8)
    assert [padded_count(n, 8) for n in (1, 2, 8, 9, full)] == [1, 8, 8, full, full]
    longest = 4_096
    assert batch_size(longest) == 1 and padded_count(1, longest) == 1


def test_equal_texts_are_encoded_once(folder, monkeypatch):
    encoder = SentenceEncoder.load(folder)
    encoded, plain = [], encoder._vectors
    monkeypatch.setattr(encoder, "_vectors", lambda rows: encoded.extend(rows) or plain(rows))
    vectors = encoder.encode(["tea", "milk", "tea"])
    assert len(encoded) == 2
    np.testing.assert_array_equal(vectors[0], vectors[2])
    assert not np.array_equal(vectors[0], vectors[1])


def test_a_plain_folder_is_pooled_by_the_mean(folder, tmp_path):
    plain = tmp_path / "plain"
    plain.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, plain)
    found = SentenceEncoder.load(plain).encode(TEXTS)
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, np.load(folder / "vectors.npz")["plain"], atol=1e-5)


def test_names_of_older_folders_are_read(folder):
    """LayerNorm.gamma and beta, the prefix "bert.", and one field for each pooling."""
    path = folder / "model.safetensors"
    tensors = {
        "bert."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value
        for name, value in load_file(path).items()
    }
    save_file(tensors, path)
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False})
    )
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 16}))
    found = SentenceEncoder.load(folder).encode(TEXTS)
    np.testing.assert_allclose(found, np.load(folder / "vectors.npz")["plain"], atol=1e-5)


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        ("config.json", {"model_type": "t5"}, r"model_type='t5' is not supported"),
        ("config.json", {"hidden_act": "sine"}, r"hidden_act='sine' is not supported"),
        ("config.json", {"num_attention_heads": 5}, r"hidden_size=12 is no multiple of"),
        ("config.json", {"hidden_size": 0}, r"hidden_size=0 is not a size"),
        (
            "config.json",
            {"intermediate_size": 9},
            r"intermediate.dense.weight has shape",
        ),
        ("config.json", {"position_embedding_type": "relative_key"}, r"='relative_key' is not sup"),
        ("1_Pooling/config.json", {"pooling_mode": "median"}, r"pooling \['median'\] is not supp"),
        ("1_Pooling/config.json", {"pooling_mode": ["cls", "max"]}, r"pooling \['cls', 'max'\]"),
    ],
)
def test_unsupported_folders_are_named(folder, file, fields, message):
    change(folder / file, **fields)
    with pytest.raises(ValueError, match=message):
        SentenceEncoder.load(folder)


def test_incomplete_folders_are_named(folder):
    with pytest.raises(ValueError, match=r"nowhere/config.json is missing"):
        SentenceEncoder.load(folder / "nowhere")
    (folder / "tokenizer.json").rename(folder / "hidden.json")
    with pytest.raises(ValueError, match=r"has no tokenizer.json"):
        SentenceEncoder.load(folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer.json is damaged"):
        SentenceEncoder.load(folder)
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "sentence_transformers.models.LSTM"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match=r"type 'sentence_transformers.models.LSTM' is not supp"):
        SentenceEncoder.load(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("encoder.layer.1.output.dense.bias")
    save_file(tensors, folder / "model.safetensors")
    (folder / "modules.json").unlink()
    with pytest.raises(ValueError, match=r"no tensor encoder.layer.1.output.dense.bias"):
        SentenceEncoder.load(folder)
