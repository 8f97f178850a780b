"""SASRec sees earlier items only, ranks items by its scores, and loads as it was saved."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_histories import (
    ITEMS,
    SHAPE,
    histories_of,
    plain_requests,
    random_users,
    save_data,
    vectors_of,
)

from sigma_jax.baselines.popularity import Popularity
from sigma_jax.baselines.sasrec import SasrecBaseline
from sigma_jax.schema import TASKS
from sigma_jax.tasks.constraints import allowed_items
from sigma_jax.teacher.sasrec import (
    BLOCKS,
    HstuBlock,
    Sasrec,
    history_window,
    load_sasrec,
    rank_items,
    save_sasrec,
)


@pytest.mark.parametrize("block", BLOCKS)
def test_later_items_do_not_change_earlier_vectors(block):
    model = Sasrec(dataclasses.replace(SHAPE, block=block), ITEMS, nnx.Rngs(0))
    item = np.random.default_rng(0).integers(0, ITEMS, (2, 10)).astype(np.int32)
    changed = item.copy()
    changed[:, 6:] = (changed[:, 6:] + 1) % ITEMS
    before, after = vectors_of(model, item), vectors_of(model, changed)
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert (jnp.abs(before[:, 6:] - after[:, 6:]).max(-1) > 1e-4).all()


def test_padding_is_not_seen():
    """The vectors equal those of a model whose window has the length of the history."""
    model = Sasrec(SHAPE, ITEMS, nnx.Rngs(0))
    history = np.array([[3, 4, 5, 6]], np.int32)
    short = Sasrec(dataclasses.replace(SHAPE, history=4), ITEMS, nnx.Rngs(0))
    nnx.update(short, nnx.state(model, nnx.Not(nnx.PathContains("position"))))
    short.position[...] = model.position[...][-4:]
    padded = np.concatenate([np.full((1, 6), -1, np.int32), history], 1)
    np.testing.assert_allclose(
        vectors_of(model, padded)[:, -4:], vectors_of(short, history), atol=1e-5
    )


def test_a_block_of_hstu_equals_a_plain_loop():
    """Eq. 2 to 4 of HSTU: SiLU in place of the softmax, over the visible positions, then a gate."""
    shape = dataclasses.replace(SHAPE, block="hstu")
    block = HstuBlock(shape, nnx.Rngs(0))
    rng = np.random.default_rng(1)
    block.distance[...] = jnp.asarray(rng.normal(size=block.distance.shape), jnp.float32)
    length, width, heads = 5, shape.width, shape.heads
    x = rng.normal(size=(1, length, width)).astype(np.float32)
    mask = np.tril(np.ones((1, length, length), bool))
    mask[:, :, 0] = False  # the first position is padding
    found = block(jnp.asarray(x), jnp.asarray(mask), lambda values: values)[0]

    def silu(values):
        return values / (1 + np.exp(-values))

    parts = silu(np.asarray(block.parts(block.norm(x)))[0])
    gate, query, key, value = np.split(parts, 4, axis=-1)
    size = width // heads
    mixed = np.zeros((length, width))
    for place in range(length):
        seen = [other for other in range(place + 1) if mask[0, place, other]]
        for head in range(heads):
            of_head = slice(head * size, (head + 1) * size)
            for other in seen:
                logit = query[place, of_head] @ key[other, of_head] / np.sqrt(size)
                weight = silu(logit + block.distance[...][head, place - other]) / len(seen)
                mixed[place, of_head] += weight * value[other, of_head]
    expected = x[0] + np.asarray(block.out(block.mixed_norm(mixed.astype(np.float32)) * gate))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_untrained_model_prefers_the_items_of_the_history():
    """An item scores higher with a history that holds it than with one that does not."""
    model = Sasrec(SHAPE, ITEMS, nnx.Rngs(0))
    item = np.array([[-1] * 7 + [3, 4, 5], [-1] * 7 + [6, 7, 8]], np.int32)
    scores = np.asarray(vectors_of(model, item)[:, -1] @ model.table[...].T)
    assert (scores[0, [3, 4, 5]] > scores[1, [3, 4, 5]]).all()


def test_dropout_needs_a_key():
    model = Sasrec(dataclasses.replace(SHAPE, dropout=0.5), ITEMS, nnx.Rngs(0))
    item = np.arange(10, dtype=np.int32)[None]
    np.testing.assert_array_equal(vectors_of(model, item), vectors_of(model, item))
    assert not np.allclose(vectors_of(model, item), vectors_of(model, item, jax.random.key(0)))
    other = vectors_of(model, item, jax.random.key(1))
    assert not np.allclose(other, vectors_of(model, item, jax.random.key(0)))


def test_missing_and_damaged_weights_are_named(tmp_path):
    with pytest.raises(ValueError, match="is missing; run the stage `teacher`"):
        load_sasrec(tmp_path)
    save_sasrec(Sasrec(SHAPE, ITEMS, nnx.Rngs(0)), tmp_path)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="is damaged"):
        load_sasrec(tmp_path)


@pytest.mark.parametrize("exclude_seen", [False, True])
@pytest.mark.parametrize("block", [7, 2**16])
def test_ranking_equals_sorting_all_scores(tmp_path, monkeypatch, exclude_seen, block):
    """For each block size, with and without seen items, with constraints."""
    monkeypatch.setattr("sigma_jax.teacher.sasrec.ITEMS_AT_ONCE", block)
    histories = histories_of(random_users(True))
    data = save_data(tmp_path, histories)
    model = Sasrec(SHAPE, ITEMS, nnx.Rngs(1))
    requests = plain_requests(histories)
    is_category = np.arange(len(requests)) % 2 == 1
    task = np.where(is_category, TASKS.index("Category"), 0).astype(np.int32)
    slot_value = np.where(is_category, 1, -1).astype(np.int32)
    requests = dataclasses.replace(requests, task=task, slot_value=slot_value)
    allowed = allowed_items(data, requests)
    rankings = rank_items(model, histories, requests, 12, exclude_seen, allowed)
    assert (rankings[-1] == -1).all()  # no history; the baseline fills in popular items
    for row in range(histories.num_users):
        start, stop = histories.offsets[row], requests.history_end[row]
        item = history_window(histories, start, stop, SHAPE.history, None)[0]
        scores = np.asarray(
            vectors_of(model, item[None])[0, -1] @ model.table[...].T + model.bias[...]
        )
        free = set(range(ITEMS)) if not is_category[row] else set(range(1, ITEMS, 3))
        if exclude_seen:
            free -= set(histories.item[start:stop].tolist())
        expected = np.sort(scores[sorted(free)])[::-1][:12]
        returned = rankings[row][rankings[row] >= 0]
        assert set(returned) <= free and len(returned) == len(expected)
        np.testing.assert_allclose(scores[returned], expected, atol=1e-5)
    filled = SasrecBaseline(model, Popularity.fit(data, 0)).recommend(
        data, requests, 5, exclude_seen, None
    )
    assert (filled >= 0).all()


def test_order_inside_a_basket_changes_no_recommendation():
    histories = histories_of(random_users(True))
    user = np.repeat(np.arange(histories.num_users), np.diff(histories.offsets))
    noise = np.random.default_rng(1).random(len(user))
    shuffled = np.lexsort((noise, histories.session, user))
    other = dataclasses.replace(histories, item=histories.item[shuffled])
    assert (other.item != histories.item).any()
    model = Sasrec(SHAPE, ITEMS, nnx.Rngs(1))
    requests = plain_requests(histories)
    results = [rank_items(model, h, requests, 10, False, None) for h in (histories, other)]
    np.testing.assert_array_equal(*results)


def test_rows_after_the_history_change_no_recommendation():
    histories = histories_of(random_users(True))
    item = histories.item.copy()
    for user in range(histories.num_users):
        rows = slice(histories.test_start[user], histories.offsets[user + 1])
        item[rows] = (item[rows] + 3) % ITEMS
    model = Sasrec(SHAPE, ITEMS, nnx.Rngs(1))
    requests = plain_requests(histories)
    other = dataclasses.replace(histories, item=item)
    results = [rank_items(model, h, requests, 10, False, None) for h in (histories, other)]
    np.testing.assert_array_equal(*results)
