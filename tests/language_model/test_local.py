"""Promises of sigma_jax/language_model/local.py, with small random models."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from shop_fixtures import shop_tokenizer

from sigma_jax.language_model.local import BATCH, LocalModel, generate
from sigma_jax.models import qwen3
from sigma_jax.models.hf import load_backbone

GOLDEN = Path(__file__).parents[1] / "golden"
COUNT = 6


@pytest.fixture(scope="module", params=["qwen3_tied", "llama_untied"])
def model(request):
    return load_backbone(GOLDEN / request.param, dtype="float32", param_dtype="float32")


def test_replies_are_those_of_a_loop_that_reads_everything_anew(model):
    """Rows have several lengths; without the cache and its masks each is read alone."""
    lengths = [7, 3, 5]
    rng = np.random.default_rng(0)
    chats = [rng.integers(0, model.config.vocab_size, length) for length in lengths]
    tokens = np.zeros((3, 8), np.int32)
    for row, chat in enumerate(chats):
        tokens[row, : len(chat)] = chat
    graphdef, state = nnx.split(model)
    never = jnp.array([-1])
    found = generate(
        graphdef, state, tokens, np.array(lengths), never, jax.random.key(0), COUNT, 0.0
    )
    expected = []
    for chat in chats:
        ids = list(chat)
        for _ in range(COUNT):
            mask = qwen3.causal_mask(jnp.ones((1, len(ids)), jnp.int32))
            hidden, _ = model(model.embed(jnp.array([ids])), jnp.arange(len(ids))[None], mask)
            ids.append(int(model.logits(hidden[0, -1]).argmax()))
        expected.append(ids[len(chat) :])
    np.testing.assert_array_equal(found, expected)
    # The token that comes first ends its reply, and the others go on.
    ends = jnp.array([expected[0][0]])
    ended = generate(
        graphdef, state, tokens, np.array(lengths), ends, jax.random.key(0), COUNT, 0.0
    )
    assert (np.asarray(ended[0]) == expected[0][0]).all()
    for row in (1, 2):
        stop = expected[row].index(ends[0]) if ends[0] in expected[row] else COUNT
        np.testing.assert_array_equal(ended[row, :stop], expected[row][:stop])


def test_a_folder_answers_chats_in_batches_of_any_size(tmp_path):
    folder = Path(shutil.copytree(GOLDEN / "qwen3_tied", tmp_path / "model"))
    shop_tokenizer(folder, ["what do people say"])
    chats = [[{"role": "user", "content": text}] for text in ("tea?", "what do people say?")]
    model = LocalModel(folder, COUNT, 0.0, 0)
    replies = model.ask_all(chats)
    assert len(replies) == 2 and BATCH > 2
    assert replies[0].prompt_tokens < replies[1].prompt_tokens
    assert all(0 < reply.reply_tokens <= COUNT for reply in replies)
    assert model.ask_all(chats[:1])[0] == replies[0]
    sampled = [LocalModel(folder, COUNT, 5.0, seed).ask_all(chats)[1].text for seed in (1, 2)]
    assert sampled[0] != sampled[1]


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    folder = Path(shutil.copytree(GOLDEN / "qwen3_tied", tmp_path / "model"))
    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        LocalModel(folder, COUNT, 0.0, 0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty"):
        LocalModel(tmp_path / "empty", COUNT, 0.0, 0)
