"""Parity tests of the backbone with transformers; skipped without torch.

The greedy text of SmolLM2-135M is compared if SIGMA_SMOLLM2 names its folder.
"""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_recommender import backbone_config

from sigma_jax.models import qwen3
from sigma_jax.models.attention import KVCache
from sigma_jax.models.hf import load_backbone, save_backbone
from sigma_jax.models.qwen3 import Qwen3

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
SMOLLM2 = os.environ.get("SIGMA_SMOLLM2")
PROMPTS = (
    "The capital of France is",
    "To bake bread, you need",
    "Once upon a time, there was a",
)
QWEN3 = backbone_config(
    vocab_size=31,
    width=24,
    num_layers=3,
    num_heads=6,
    num_kv_heads=2,
    head_dim=10,
    mlp_width=20,
    rope_theta=1e6,
)


def transformers_logits(folder, tokens, is_token, positions):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        output = model(
            input_ids=torch.tensor(tokens),
            attention_mask=torch.tensor(is_token),
            position_ids=torch.tensor(positions),
        )
    return output.logits.numpy()


@pytest.mark.parametrize("shard_bytes", [10**9, 5000])
@pytest.mark.parametrize("rope_theta", [500.0, 1e4, 1e6])
@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("has_qk_norm", [True, False])
def test_transformers_reads_our_folder_and_agrees(
    tmp_path, has_qk_norm, is_tied, rope_theta, shard_bytes
):
    changes = {"has_qk_norm": has_qk_norm, "is_tied": is_tied, "rope_theta": rope_theta}
    model = Qwen3(dataclasses.replace(QWEN3, **changes), rngs=nnx.Rngs(0))
    save_backbone(model, tmp_path, shard_bytes=shard_bytes)
    rng = np.random.default_rng(0)
    tokens, is_token = rng.integers(0, 31, (3, 9)), np.ones((3, 9), np.int64)
    is_token[0, :4], is_token[1, 6:] = 0, 0
    positions = np.maximum(np.cumsum(is_token, axis=1) - 1, 0)
    mask = qwen3.causal_mask(jnp.array(is_token, jnp.int32))
    hidden, _ = model(model.embed(jnp.array(tokens)), jnp.array(positions), mask)
    expected = transformers_logits(tmp_path, tokens, is_token, positions)
    keep = is_token.astype(bool)
    np.testing.assert_allclose(model.logits(hidden)[keep], expected[keep], rtol=0, atol=1e-4)


def greedy(model, tokens, count):
    """`count` tokens after `tokens`, and the logits of the prompt."""
    graph, params = nnx.split(model)

    @jax.jit
    def step(params, tokens, positions, mask, cache):
        model = nnx.merge(graph, params)
        hidden, cache = model(model.embed(tokens), positions, mask, cache)
        return model.logits(hidden), cache

    size = len(tokens) + count
    cache = KVCache.empty(model.config, 1, size)
    time = np.arange(size)
    logits, cache = step(
        params,
        jnp.array([tokens]),
        jnp.array([time[: len(tokens)]]),
        jnp.array((time <= time[: len(tokens), None])[None]),
        cache,
    )
    prompt_logits, generated = logits[0], [int(logits[0, -1].argmax())]
    for now in range(len(tokens), size - 1):
        mask = jnp.array((time <= now)[None, None])
        logits, cache = step(params, jnp.array([generated[-1:]]), jnp.array([[now]]), mask, cache)
        generated.append(int(logits[0, 0].argmax()))
    return generated, np.asarray(prompt_logits)


@pytest.mark.skipif(not SMOLLM2, reason="SIGMA_SMOLLM2 names no folder of SmolLM2-135M")
@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_of_smollm2_equals_transformers(prompt):
    model = load_backbone(SMOLLM2, dtype="float32", param_dtype="float32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(SMOLLM2)
    other = transformers.AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype=torch.float32).eval()
    tokens = tokenizer(prompt)["input_ids"]
    generated, logits = greedy(model, tokens, 24)
    with torch.no_grad():
        prompt_ids = torch.tensor([tokens])
        text = other.generate(prompt_ids, max_new_tokens=24, do_sample=False)
        expected = other(prompt_ids).logits[0].numpy()
    print(f"\n{prompt!r}: {tokenizer.decode(generated)!r} {np.abs(logits - expected).max():.2e}")
    expected_text = text[0, len(tokens) :].tolist()  # shorter if the model ends it
    assert len(expected_text) > 4 and generated[: len(expected_text)] == expected_text
    # Rounding in 30 layers, on logits of size 20, gives a relative error of 1e-5.
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()
