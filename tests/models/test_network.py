"""Tests of the recommender network: item tokens, heads, and weights on disk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_recommender import (
    CODES,
    LEVELS,
    NUM_ITEMS,
    VOCABULARY,
    code_log_probs,
    item_vectors,
    prompts,
    query_head_vector,
    recommender,
)

from sigma_jax.models.item_encoder import ItemEncoder, ItemEncoderConfig
from sigma_jax.models.network import TokenSpace
from sigma_jax.models.weights import load_weights, save_weights


@jax.jit
def embed(model, tokens, items, tables):
    return model.embed(tokens, items, tables)


def test_token_space_is_without_holes_or_overlap():
    space = TokenSpace(VOCABULARY, LEVELS, CODES)
    ids = [space.code(level, code) for level in range(LEVELS) for code in range(CODES)]
    ids += [space.item_slot, space.query, space.instruction]
    assert ids == list(range(VOCABULARY, VOCABULARY + space.table_size))


def test_an_item_is_its_slot_plus_its_projected_fused_vector():
    model, tables = recommender()
    space = model.space
    tokens = jnp.array([[3, space.code(1, 2), space.item_slot]])
    items = jnp.array([[-1, -1, 7]])
    embedded = np.asarray(embed(model, tokens, items, tables))[0]
    table = np.asarray(model.sid_table[...])
    np.testing.assert_allclose(embedded[0], model.backbone.embed(tokens[:, :1])[0, 0], atol=1e-6)
    np.testing.assert_allclose(embedded[1], table[CODES + 2], atol=1e-6)
    fused = np.asarray(item_vectors(model, tables))[7] * 12**0.5
    expected = table[LEVELS * CODES] + fused @ np.asarray(model.up_projection[...])
    np.testing.assert_allclose(embedded[2], expected, atol=1e-5)


@pytest.mark.parametrize("full", [False, True])
def test_code_log_probs_are_log_softmax_over_the_level_or_the_full_vocabulary(full):
    model, _ = recommender(full_vocabulary=full)
    model.code_bias[...] = jnp.arange(LEVELS * CODES, dtype=jnp.float32).reshape(LEVELS, CODES) / 9
    hidden = jax.random.normal(jax.random.key(0), (4, 16))
    table = np.asarray(model.sid_table[...], np.float64)
    sid_logits = np.asarray(hidden, np.float64) @ table.T
    sid_logits[:, : LEVELS * CODES] += np.asarray(model.code_bias[...]).reshape(-1)
    text = np.asarray(model.backbone.logits(hidden), np.float64)
    for level in range(LEVELS):
        logits = sid_logits[:, level * CODES : (level + 1) * CODES]
        pool = np.concatenate([text, sid_logits], axis=1) if full else logits
        expected = logits - np.log(np.exp(pool).sum(axis=1, keepdims=True))
        np.testing.assert_allclose(code_log_probs(model, hidden, level), expected, atol=1e-5)
        labels = model.code_labels(jnp.arange(CODES)[:, None].repeat(LEVELS, 1))[:, level]
        columns = model.code_logits(hidden[:, None].repeat(LEVELS, 1))[:, level]
        np.testing.assert_allclose(columns[:, labels], logits, atol=1e-5)


def test_frozen_vectors_get_no_gradient_and_trained_ones_do():
    model, tables = recommender(trainable=("id",))
    del tables["id"]

    def score(model, tables):
        return model.item_vectors(jnp.array([3]), tables).sum()

    grads = nnx.grad(score)(model, tables)
    moved = np.asarray(grads["item_encoder"]["trained"]["id"][...])
    assert np.abs(moved[3]).max() > 0 and np.abs(np.delete(moved, 3, axis=0)).max() == 0
    assert "text" not in grads["item_encoder"]["trained"]


def test_an_item_encoder_without_its_tables_names_those_of_the_data():
    config = ItemEncoderConfig(4, 4, ("image",), (), True)
    with pytest.raises(ValueError, match=r"inputs=\('image',\) but the data have \['text'\]"):
        ItemEncoder(config, {"text": np.ones((3, 2), np.float32)}, rngs=nnx.Rngs(0))


def test_without_a_linear_path_a_fused_vector_is_that_of_the_mlp():
    model, tables = recommender(has_linear_path=False)
    encoder = model.item_encoder
    assert not hasattr(encoder, "linear")
    x = np.concatenate(
        [table[:5] / np.linalg.norm(table[:5], axis=1, keepdims=True) for table in tables.values()],
        axis=1,
    )
    hidden = jax.nn.gelu(x @ encoder.inner[...] + encoder.inner_bias[...])
    found = encoder(jnp.arange(5), tables)
    np.testing.assert_allclose(found, hidden @ encoder.outer[...], atol=1e-5)
    both = recommender()[0].item_encoder
    rest = np.asarray(both(jnp.arange(5), tables)) - x @ np.asarray(both.linear[...])
    hidden = jax.nn.gelu(x @ both.inner[...] + both.inner_bias[...])
    np.testing.assert_allclose(rest, hidden @ both.outer[...], atol=1e-5)


def test_a_query_token_that_reads_no_code_has_one_embedding_after_any_code():
    """With the switch it is the embedding of the token plus that of the code before it."""
    for reads_code in (True, False):
        model, tables = recommender(query_reads_code=reads_code)
        space, items = model.space, jnp.full((2, 2), -1)
        tokens = jnp.array([[space.code(0, code), space.query] for code in (0, 1)])
        embedded = np.asarray(model.embed(tokens, items, tables))
        added = embedded[:, 0] if reads_code else 0
        own = np.asarray(model.embed(tokens[:, 1:], items[:, 1:], tables))[:, 0]
        np.testing.assert_allclose(embedded[:, 1], own + added, atol=1e-5)


def test_weights_come_back_and_others_are_refused(tmp_path):
    model, _ = recommender(trainable=("id",))
    save_weights(model, tmp_path / "w.safetensors", without=("backbone",))
    other, _ = recommender(trainable=("id",))
    other.query_head[...] = other.query_head[...] + 1
    load_weights(other, tmp_path / "w.safetensors", without=("backbone",))
    np.testing.assert_array_equal(other.query_head[...], model.query_head[...])
    other_kind, _ = recommender()
    with pytest.raises(ValueError, match=r"the same parameters: 'item_encoder.trained.id'"):
        load_weights(other_kind, tmp_path / "w.safetensors", without=("backbone",))
    (tmp_path / "w.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"w.safetensors cannot be read"):
        load_weights(other, tmp_path / "w.safetensors", without=("backbone",))


def test_padding_after_a_prompt_changes_nothing():
    model, tables = recommender()
    batch = prompts(lengths=(5,), length=5)
    longer = prompts(lengths=(5,), length=9)
    longer["tokens"][:, :5], longer["items"][:, :5] = batch["tokens"], batch["items"]
    hidden = []
    for prompt in (batch, longer):
        size = prompt["tokens"].shape[1]
        is_token = prompt["is_token"]
        mask = np.tril(np.ones((size, size), bool)) & is_token[:, None] & is_token[:, :, None]
        fields = (prompt[name] for name in ("tokens", "items", "positions"))
        out, _ = jax.jit(lambda model, *inputs: model(*inputs))(model, *fields, mask, tables)
        hidden.append(np.asarray(out)[:, :5])
    np.testing.assert_allclose(hidden[0], hidden[1], atol=1e-5)
    assert NUM_ITEMS > batch["items"].max()


def test_a_query_without_items_to_see_points_at_nothing():
    model, tables = recommender()
    hidden = jax.random.normal(jax.random.key(3), (2, 3, 16))
    items = np.array([[4, -1, -1, 4], [-1, -1, -1, -1]])
    nothing, everything = (
        np.asarray(query_head_vector(model, tables, hidden, items, np.full((2, 3, 4), is_seen)))
        for is_seen in (False, True)
    )
    plain, _ = recommender(copies_history=False)
    plain.query_head[...] = model.query_head[...]
    expected = query_head_vector(plain, tables, hidden, items, np.ones((2, 3, 4), bool))
    np.testing.assert_allclose(nothing, expected, atol=1e-6)
    np.testing.assert_allclose(everything[1], expected[1], atol=1e-6)
    # A visible item moves the query towards itself.
    vector = np.asarray(item_vectors(model, tables))[4]
    assert ((everything[0] - nothing[0]) @ vector > 0).all()


def test_codes_start_at_the_mean_slot_of_their_items():
    model, tables = recommender()
    codes, items = np.array([[0, 2, 1], [0, 3, 1], [4, 3, 1]]), np.array([5, 6, 7])
    before = np.asarray(model.sid_table[...])
    slots = np.asarray(item_vectors(model, tables))[items] @ np.asarray(model.up_projection[...])
    model.start_codes(jnp.asarray(codes), jnp.asarray(items), tables)
    after = np.asarray(model.sid_table[...])
    for row, members in ((0, [0, 1]), (4, [2]), (CODES + 3, [1, 2]), (2 * CODES + 1, [0, 1, 2])):
        mean = slots[members].mean(axis=0)
        np.testing.assert_allclose(
            after[row] / np.linalg.norm(after[row]), mean / np.linalg.norm(mean), atol=1e-5
        )
        np.testing.assert_allclose(
            np.linalg.norm(after[row]), np.linalg.norm(before[row]), rtol=1e-5
        )
    np.testing.assert_array_equal(after[1], before[1])  # no item has code 1 of level 0


def test_the_query_token_carries_the_code_before_it():
    model, tables = recommender()
    tokens = jnp.array([[2, model.space.code(0, 3), model.space.query]])
    embedded = np.asarray(embed(model, tokens, np.full((1, 3), -1), tables))[0]
    query = np.asarray(model.sid_table[...])[model.space.query - VOCABULARY]
    np.testing.assert_allclose(embedded[2], query + embedded[1], atol=1e-6)


def test_an_instruction_slot_is_read_as_an_item_with_that_text_alone():
    """Shared vectors and vectors of each prompt give the same; other slots do not change."""
    model, tables = recommender()
    rng = np.random.default_rng(4)
    vectors = rng.normal(size=(3, 8)).astype(np.float32)
    tokens = jnp.array([[3, model.space.instruction, model.space.item_slot]] * 2)
    items = jnp.array([[-1, -2, 7], [-1, -4, 7]])
    found = embed(model, tokens, items, {**tables, "instructions": vectors})
    each = np.stack([vectors, vectors])
    np.testing.assert_allclose(
        found, embed(model, tokens, items, {**tables, "instructions": each}), atol=1e-6
    )
    without = embed(model, tokens, jnp.array([[-1, -1, 7]] * 2), tables)
    np.testing.assert_allclose(found[:, [0, 2]], without[:, [0, 2]], atol=1e-6)
    only_text = {"id": 0 * tables["id"], "text": np.pad(vectors, ((0, 27), (0, 0)))}
    as_item = model.item_vectors(jnp.array([0, 2]), only_text)
    scale = model.config.item_encoder.fused_width**0.5
    expected = without[:, 1] + scale * as_item @ model.up_projection[...]
    np.testing.assert_allclose(found[:, 1], expected, atol=1e-5)
