"""Tests of the backbone: parity with transformers by golden files, masks, cache and training."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_recommender import backbone_config

from sigma_jax.models import attention, qwen3
from sigma_jax.models.attention import KVCache
from sigma_jax.models.config import LoraConfig
from sigma_jax.models.hf import load_backbone
from sigma_jax.models.qwen3 import Qwen3

GOLDEN = Path(__file__).parents[1] / "golden"
MODELS = ("qwen3_tied", "qwen3_untied", "llama_tied", "llama_untied")
CONFIG = backbone_config(
    vocab_size=23, width=12, num_heads=4, num_kv_heads=2, head_dim=6, mlp_width=16
)


@pytest.fixture(scope="module", params=MODELS)
def golden(request):
    """Model, golden arrays and the weights of layer 0."""
    folder = GOLDEN / request.param
    model = load_backbone(folder, dtype="float32", param_dtype="float32")
    weights = {name: np.asarray(weight[...])[0] for name, weight in model.layers.items()}
    return model, dict(np.load(folder / "golden.npz")), weights


@functools.cache
def made(config):
    """A model, initialised in one compiled program, which is faster than array by array."""
    graph = nnx.split(nnx.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0))))[0]
    return nnx.merge(graph, jax.jit(lambda: nnx.state(Qwen3(config, rngs=nnx.Rngs(0))))())


# Compiled whole: operation by operation they would compile hundreds of small programs.
causal_mask = jax.jit(qwen3.causal_mask)
layer_attention = jax.jit(attention.attention, static_argnums=0)
layer_block = jax.jit(qwen3.block, static_argnums=0)
rotary_angles = jax.jit(attention.rotary_angles, static_argnums=(1, 2))


@jax.jit
def forward(model, tokens, positions, mask, cache=None):
    return model(model.embed(tokens), positions, mask, cache)


@jax.jit
def logits(model, hidden):
    return model.logits(hidden)


@pytest.fixture(scope="module")
def model():
    return made(CONFIG)


def close(actual, expected, where=Ellipsis, atol=1e-5):
    np.testing.assert_allclose(np.asarray(actual)[where], expected[where], rtol=1e-5, atol=atol)


def counted(segment):
    """Positions that start at 0 in every segment."""
    segment = np.asarray(segment)
    positions = np.zeros_like(segment)
    for row, column in np.argwhere(segment > 0):
        positions[row, column] = (segment[row, :column] == segment[row, column]).sum()
    return positions


def hidden_of(model, tokens, segment):
    tokens, segment = np.array(tokens), np.array(segment)
    mask = causal_mask(segment)
    return np.asarray(forward(model, tokens, counted(segment), mask)[0])


# --- parity with transformers, of each module and of the model


def test_norm_equals_transformers(golden):
    model, arrays, weights = golden
    actual = attention.rms_norm(arrays["norm_in"], weights["attention_norm"], model.config.norm_eps)
    close(actual, arrays["norm_out"])


def test_rotary_equals_transformers(golden):
    model, arrays, _ = golden
    config = model.config
    cos, sin = rotary_angles(arrays["positions"], config.head_dim, config.rope_theta)
    half = config.head_dim // 2
    close(cos[:, :, 0], arrays["cos"][..., :half])
    close(sin[:, :, 0], arrays["sin"][..., half:])


def rotary_and_mask(model, arrays):
    config = model.config
    mask = causal_mask(jnp.array(arrays["is_token"], jnp.int32))
    return rotary_angles(arrays["positions"], config.head_dim, config.rope_theta), mask


def test_attention_equals_transformers(golden):
    model, arrays, weights = golden
    rotary, mask = rotary_and_mask(model, arrays)
    x = jnp.array(arrays["attention_in"])
    actual, _ = layer_attention(model.config, weights, x, rotary, mask, None, 0)
    close(actual, arrays["attention_out"], where=arrays["is_token"])


def test_mlp_equals_transformers(golden):
    _, arrays, weights = golden
    close(qwen3.swiglu(weights, jnp.array(arrays["mlp_in"])), arrays["mlp_out"])


def test_layer_equals_transformers(golden):
    model, arrays, weights = golden
    rotary, mask = rotary_and_mask(model, arrays)
    x = jnp.array(arrays["layer_in"])
    actual, _ = layer_block(model.config, weights, x, rotary, mask, None, 0, None)
    close(actual, arrays["layer_out"], where=arrays["is_token"])


def test_hidden_states_and_logits_equal_transformers(golden):
    model, arrays, _ = golden
    _, mask = rotary_and_mask(model, arrays)
    hidden, _ = forward(model, arrays["tokens"], arrays["positions"], mask)
    close(hidden, arrays["hidden"], where=arrays["is_token"], atol=1e-4)
    close(logits(model, hidden), arrays["logits"], where=arrays["is_token"], atol=1e-4)
    assert logits(model, hidden).dtype == jnp.float32


def test_attend_equals_plain_loop():
    keys = jax.random.split(jax.random.key(0), 4)
    B, T, S, N, K, H = 2, 3, 5, 4, 2, 6
    q = jax.random.normal(keys[0], (B, T, N, H))
    k, v = (jax.random.normal(key, (B, S, K, H)) for key in keys[1:3])
    mask = jax.random.bernoulli(keys[3], 0.6, (B, T, S)).at[1, 1].set(False)
    actual = attention.attend(q, k, v, mask)
    expected = np.zeros((B, T, N, H))
    for b, t, n in np.ndindex(B, T, N):
        seen = np.flatnonzero(mask[b, t])
        if len(seen):
            kept = np.asarray(k[b, seen, n // (N // K)], np.float64)
            scores = kept @ np.asarray(q[b, t, n], np.float64) / np.sqrt(H)
            share = np.exp(scores - scores.max())
            share /= share.sum()
            expected[b, t, n] = share @ np.asarray(v[b, seen, n // (N // K)], np.float64)
    close(actual, expected)


# --- masks


def test_causal_mask_golden():
    actual = causal_mask(jnp.array([[0, 1, 1, 2, 2]]))[0].astype(int)
    expected = [[0, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]
    np.testing.assert_array_equal(actual, expected)


def test_branch_mask_equals_its_formula():
    rng = np.random.default_rng(0)
    segment, branch = rng.integers(0, 3, (2, 9)), rng.integers(0, 3, (2, 9))
    attach = np.where(branch > 0, rng.integers(0, 9, (2, 9)), 0)
    actual = jax.jit(qwen3.branch_mask)(segment, branch, attach)
    for b, i, j in np.ndindex(2, 9, 9):
        sees = segment[b, i] == segment[b, j] > 0 and j <= i
        sees &= branch[b, i] == branch[b, j] or (branch[b, j] == 0 and j < attach[b, i])
        assert actual[b, i, j] == sees


def test_padding_on_either_side_changes_nothing(model):
    tokens = [[5, 6, 7, 8]]
    plain = hidden_of(model, tokens, [[1, 1, 1, 1]])
    left = hidden_of(model, [[1, 2, 5, 6, 7, 8]], [[0, 0, 1, 1, 1, 1]])
    right = hidden_of(model, [[5, 6, 7, 8, 3]], [[1, 1, 1, 1, 0]])
    close(left[:, 2:], plain)
    close(right[:, :4], plain)


def test_packed_segments_equal_separate_rows(model):
    packed = hidden_of(model, [[1, 2, 3, 4, 5, 6, 7, 0]], [[1, 1, 1, 2, 2, 3, 3, 0]])
    for start, end in ((0, 3), (3, 5), (5, 7)):
        alone = hidden_of(model, [list(range(start + 1, end + 1))], [[1] * (end - start)])
        close(packed[:, start:end], alone)


def test_branches_equal_separate_sequences(model):
    # Context 1 2 3 4; branch 1 (10 11) after 1 2 3 4; branch 2 (12 13 14) after 1 2; padding.
    tokens = np.array([[1, 2, 3, 4, 10, 11, 12, 13, 14, 0]])
    segment = np.array([[1, 1, 1, 1, 1, 1, 1, 1, 1, 0]])
    branch = np.array([[0, 0, 0, 0, 1, 1, 2, 2, 2, 0]])
    attach = np.array([[0, 0, 0, 0, 4, 4, 2, 2, 2, 0]])
    positions = np.array([[0, 1, 2, 3, 4, 5, 2, 3, 4, 0]])
    mask = jax.jit(qwen3.branch_mask)(segment, branch, attach)
    together, _ = forward(model, tokens, positions, mask)
    first = hidden_of(model, [[1, 2, 3, 4, 10, 11]], [[1] * 6])
    second = hidden_of(model, [[1, 2, 12, 13, 14]], [[1] * 5])
    close(together[:, :6], first)
    close(together[:, 6:9], second[:, 2:])


def test_rows_that_see_no_token_and_their_gradients_are_finite(model):
    graph, params = nnx.split(model)

    def total(params, embeddings):
        hidden, _ = nnx.merge(graph, params)(embeddings, jnp.zeros((1, 4), int), mask)
        return hidden.sum()

    mask = jnp.zeros((1, 4, 4), bool).at[0, 2, 1].set(True)
    embeddings = model.embed(jnp.array([[1, 2, 3, 4]]))
    both = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
    value, gradients = both(params, embeddings)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((value, gradients)))


# --- cache

SEGMENT = [[0, 0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1]]
TOKENS = [[0, 0, 4, 5, 6, 7, 8, 9], [1, 2, 3, 4, 5, 6, 7, 8]]


@pytest.mark.parametrize("chunks", [(8,), (5, 3), (1, 4, 1, 2), (1,) * 8])
def test_cache_in_chunks_equals_no_cache(model, chunks):
    segment, tokens = np.array(SEGMENT), np.array(TOKENS)
    mask = np.asarray(causal_mask(segment))
    cache, start, parts = KVCache.empty(CONFIG, 2, 11), 0, []
    for chunk in chunks:
        rows = slice(start, start + chunk)
        positions = counted(segment)[:, rows]
        hidden, cache = forward(
            model, tokens[:, rows], positions, mask[:, rows, : rows.stop], cache
        )
        parts.append(hidden)
        start += chunk
    assert int(cache.length) == 8
    close(np.concatenate(parts, axis=1), hidden_of(model, TOKENS, SEGMENT))


def test_extended_cache_continues_the_same_text(model):
    segment, tokens = np.array(SEGMENT), np.array(TOKENS)
    mask, positions = np.asarray(causal_mask(segment)), counted(segment)
    cache = KVCache.empty(CONFIG, 2, 5)
    _, cache = forward(model, tokens[:, :5], positions[:, :5], mask[:, :5, :5], cache)
    cache = cache.extended(8)
    hidden, cache = forward(model, tokens[:, 5:], positions[:, 5:], mask[:, 5:], cache)
    close(hidden, hidden_of(model, TOKENS, SEGMENT)[:, 5:])


def test_beams_share_one_prompt_by_their_masks(model):
    # The prompt is 1 2 3; each step adds one token of each of two beams to one row of the cache.
    prompt, beams = np.array([[1, 2, 3]]), [[10, 12], [11, 13]]
    size = 7
    masks = np.zeros((2, 1, 2, size), bool)
    for step in range(2):
        for beam in range(2):
            masks[step, 0, beam, :3] = True
            masks[step, 0, beam, [3 + 2 * past + beam for past in range(step + 1)]] = True
    mask = causal_mask(np.ones((1, 3), np.int32))
    cache = KVCache.empty(CONFIG, 1, size)
    _, cache = forward(model, prompt, np.arange(3)[None], mask, cache)
    for step in range(2):
        positions, tokens = np.full((1, 2), 3 + step), np.array([beams[step]])
        hidden, cache = forward(model, tokens, positions, masks[step], cache)
    for beam in range(2):
        alone = hidden_of(model, [[1, 2, 3, beams[0][beam], beams[1][beam]]], [[1] * 5])
        close(hidden[:, beam], alone[:, -1])


def test_cache_keeps_its_dtype(model):
    cache = KVCache.empty(CONFIG, 1, 4, "bfloat16")
    mask, positions = np.ones((1, 1, 1), bool), np.zeros((1, 1), int)
    hidden, cache = forward(model, np.array([[3]]), positions, mask, cache)
    assert cache.keys.dtype == jnp.bfloat16 and hidden.dtype == jnp.float32
    assert int(cache.length) == 1
    assert bool((cache.keys[:, :, 0] != 0).all()) and bool((cache.keys[:, :, 1:] == 0).all())


def test_full_cache_refuses_more_rows(model):
    cache = KVCache.empty(CONFIG, 1, 3)
    tokens, mask = np.array([[1, 2]]), np.ones((1, 2, 3), bool)
    _, cache = forward(model, tokens, np.array([[0, 1]]), mask, cache)
    with pytest.raises(ValueError, match=r"2 new rows after 2 .* cache of 3; .*extended\(4\)"):
        model(model.embed(tokens), np.array([[2, 3]]), mask, cache)
    with pytest.raises(ValueError, match="size=2 is below the cache's 3 rows"):
        cache.extended(2)


# --- training


@functools.cache
def loss_and_gradients_of(config):
    """A compiled function of a key of dropout, or None."""
    graph, params = nnx.split(made(config))
    tokens, mask = np.array(TOKENS), causal_mask(np.array(SEGMENT))

    def loss(params, key):
        model = nnx.merge(graph, params)
        hidden, _ = model(model.embed(tokens), counted(SEGMENT), mask, key=key)
        return (model.logits(hidden) ** 2).mean()

    return functools.partial(jax.jit(jax.value_and_grad(loss)), params)


def loss_and_gradients(config, key=None):
    return loss_and_gradients_of(config)(key)


@pytest.mark.parametrize("remat", ["layer", "attention", "light"])
@pytest.mark.parametrize("lora", [None, pytest.param(LoraConfig(2, 8.0), marks=pytest.mark.slow)])
def test_recomputing_layers_changes_no_gradient(remat, lora):
    plain = loss_and_gradients(dataclasses.replace(CONFIG, lora=lora))
    again = loss_and_gradients(dataclasses.replace(CONFIG, lora=lora, remat=remat))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("remat", "again"), [("none", 0), ("light", 2), ("attention", 7), ("layer", 8)]
)
def test_remat_recomputes_the_products_that_it_names(remat, again):
    """A layer has nine products: seven with weights and, without a kernel, two of attention.

    Each runs once forward and twice backward. No gradient needs the result of the last product.
    """
    config = dataclasses.replace(CONFIG, remat=remat)
    graph, params = nnx.split(made(config))

    def loss(params):
        model = nnx.merge(graph, params)
        mask = qwen3.causal_mask(jnp.array(SEGMENT))
        return model(model.embed(jnp.array(TOKENS)), counted(SEGMENT), mask)[0].sum()

    text = str(jax.make_jaxpr(jax.grad(loss))(params))
    assert text.count("dot_general[") == 9 + 18 + again


def test_scanned_layers_equal_a_loop(model):
    mask = causal_mask(np.array(SEGMENT))
    rotary = rotary_angles(counted(SEGMENT), CONFIG.head_dim, CONFIG.rope_theta)
    x = model.embed(np.array(TOKENS))
    for layer in range(CONFIG.num_layers):
        weights = {name: np.asarray(weight[...])[layer] for name, weight in model.layers.items()}
        x, _ = layer_block(CONFIG, weights, x, rotary, mask, None, layer, None)
    x = attention.rms_norm(x, model.final_norm[...], CONFIG.norm_eps)
    close(x, hidden_of(model, TOKENS, SEGMENT))


@pytest.mark.parametrize("remat", ["none", "layer", "attention", "light"])
def test_dropout_acts_only_with_a_key_and_repeats_with_it(remat):
    config = dataclasses.replace(CONFIG, dropout=0.5, remat=remat)
    assert loss_and_gradients(config)[0] == loss_and_gradients(CONFIG)[0]
    first, again, other = (
        loss_and_gradients(config, jax.random.key(seed))[0] for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_dropout_keeps_the_mean_and_drops_its_share():
    x = jnp.ones((1, 100, 100))
    dropped = qwen3.drop(x, 0.25, jax.random.key(0))
    assert abs(float(dropped.mean()) - 1) < 0.02
    assert abs(float((dropped == 0).mean()) - 0.25) < 0.02


def test_bfloat16_computes_near_float32_with_logits_in_float32():
    narrow = dataclasses.replace(CONFIG, dtype="bfloat16", param_dtype="bfloat16")
    model, narrow = made(CONFIG), made(narrow)
    mask, positions, tokens = causal_mask(np.array(SEGMENT)), counted(SEGMENT), np.array(TOKENS)
    wide = logits(model, forward(model, tokens, positions, mask)[0])
    hidden, _ = forward(narrow, tokens, positions, mask)
    assert hidden.dtype == jnp.bfloat16 and logits(narrow, hidden).dtype == jnp.float32
    assert np.abs(np.asarray(logits(narrow, hidden)) - np.asarray(wide)).max() < 0.1


def test_program_does_not_grow_with_depth():
    def lines(num_layers):
        config = dataclasses.replace(CONFIG, num_layers=num_layers)
        graph, params = nnx.split(nnx.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0))))

        def run(params, tokens):
            model = nnx.merge(graph, params)
            mask = qwen3.causal_mask(jnp.ones_like(tokens))
            return model(model.embed(tokens), jnp.zeros_like(tokens), mask)[0]

        tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
        return jax.jit(run).lower(params, tokens).as_text().count("\n")

    assert lines(2) == lines(20)


def test_every_parameter_names_all_its_axes():
    names = {"layers", "vocab", "embed", "mlp", "heads", "kv_heads", "head_dim"}
    model = made(dataclasses.replace(CONFIG, is_tied=False))
    axes = qwen3.logical_axes(model)
    params = nnx.to_flat_state(nnx.state(model, nnx.Param))
    assert {path for path, _ in params} == axes.keys()
    for path, param in params:
        assert len(axes[path]) == param.ndim and set(axes[path]) <= names
    assert set().union(*axes.values()) == names


def test_ids_outside_the_text_table_are_clipped(model):
    rows = model.embed(jnp.array([[-1, 0, 22, 23, 9999]]))[0]
    np.testing.assert_array_equal(rows, model.embedding[...][jnp.array([0, 0, 22, 22, 22])])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_kv_heads": 3}, "num_heads=4 .* num_kv_heads=3"),
        ({"head_dim": 5}, "head_dim=5"),
        ({"num_layers": 0}, "num_layers=0"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"rope_theta": 0.0}, "rope_theta=0.0"),
        ({"dtype": "int8"}, "dtype='int8' is unknown; use one of float32"),
        ({"remat": "all"}, "remat='all'"),
        ({"has_qk_norm": False, "width": 14}, "width=14 is no multiple of num_heads=4"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)
