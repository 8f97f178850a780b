"""The teacher learns the next session from training rows only, and saves its item table."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from small_histories import (
    ITEMS,
    SHAPE,
    config,
    histories_of,
    plain_requests,
    random_users,
    save_data,
    vectors_of,
)

from sigma_jax.configs import teacher
from sigma_jax.configs.common import PRESETS
from sigma_jax.runtime.config import to_dataclass
from sigma_jax.teacher.sasrec import SasrecConfig, load_sasrec, rank_items
from sigma_jax.teacher.task import (
    REFIT,
    TeacherConfig,
    TeacherTask,
    count_windows,
    draw_rows,
    full_softmax,
    gbce_loss,
    next_session_loss,
    sampled_softmax,
    training_row,
    validation_requests,
)


def test_single_items_give_the_worked_example():
    histories = histories_of([[[7], [8], [9], [1], [2]]])
    row = training_row(histories, 0, 0, config(), np.random.default_rng(0))
    assert row["item"].tolist() == [-1] * 7 + [7, 8, 9]
    assert row["position"].tolist() == [7, 8, -1, -1, -1]
    assert row["target"].tolist() == [[8, -1], [9, -1]] + [[-1, -1]] * 3


def test_baskets_give_the_worked_example():
    histories = histories_of([[[10, 11], [12], [13, 14], [1], [2]]])
    orders, drawn = set(), set()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        row = training_row(histories, 0, 0, config(targets_per_position=1), rng)
        items = row["item"][-5:].tolist()
        assert set(items[:2]) == {10, 11} and items[2] == 12 and set(items[3:]) == {13, 14}
        assert row["position"].tolist() == [6, 7, -1, -1, -1]
        assert row["target"][0] == 12
        orders.add(tuple(items))
        drawn.add(int(row["target"][1, 0]))
    assert drawn == {13, 14} and len(orders) == 4


def test_targets_are_items_of_the_next_training_session():
    histories = histories_of(random_users(True))
    settings = config()
    first = count_windows(histories, SHAPE.history)
    rng = np.random.default_rng(0)
    seen_targets = 0
    for user in range(histories.num_users):
        start, end = histories.offsets[user], histories.valid_start[user]
        sessions = [
            histories.item[start:end][histories.session[start:end] == n]
            for n in range(histories.session[end - 1] + 1)
        ]
        for index in range(first[user + 1] - first[user]):
            row = training_row(histories, user, index, settings, rng)
            for position, targets in zip(row["position"], row["target"], strict=True):
                targets = targets[targets >= 0]
                if position < 0:
                    assert len(targets) == 0
                    continue
                seen_targets += len(targets)
                assert len(targets) > 0
                latest = row["item"][position]
                assert any(
                    latest in sessions[n] and set(targets) <= set(sessions[n + 1])
                    for n in range(len(sessions) - 1)
                )
    assert seen_targets > 50


def test_rows_are_drawn_without_repetition_and_from_their_range():
    low, high = np.array([2, 10, 30]), np.array([3, 13, 40])
    drawn = draw_rows(low, high, 4, np.random.default_rng(0))
    for row, a, b in zip(drawn, low, high, strict=True):
        rows = row[row >= 0]
        assert len(set(rows)) == len(rows) == min(4, b - a)
        assert ((a <= rows) & (rows < b)).all()


def test_batches_depend_on_seed_and_step_only(tmp_path):
    save_data(tmp_path, histories_of(random_users(True)))
    first, again = (TeacherTask(config(), tmp_path, 3).batches() for _ in range(2))
    other = TeacherTask(config(), tmp_path, 4).batches()
    for step in (5, 0, 2):
        for name, value in first[step].items():
            assert value.shape[0] == config().train.batch_size
            np.testing.assert_array_equal(value, again[step][name])
    assert any((first[5][name] != other[5][name]).any() for name in first[5])
    assert any((first[5][name] != first[6][name]).any() for name in first[5])


def test_a_host_computes_its_rows_of_a_batch(tmp_path):
    save_data(tmp_path, histories_of(random_users(True)))
    task = TeacherTask(config(), tmp_path, 3)
    full, rows = task.batches(), np.array([1, 2, task.batch_rows - 1])
    for step in (0, 7):
        for name, value in task.batches(rows)[step].items():
            np.testing.assert_array_equal(value, full[step][name][rows])


def test_held_out_rows_change_neither_batches_nor_the_new_model(tmp_path):
    histories = histories_of(random_users(True))
    item = histories.item.copy()
    for user in range(histories.num_users):
        heldout = slice(histories.valid_start[user], histories.offsets[user + 1])
        item[heldout] = (item[heldout] + 5) % ITEMS
    tasks = []
    for name, version in (("a", histories), ("b", dataclasses.replace(histories, item=item))):
        (tmp_path / name).mkdir()
        save_data(tmp_path / name, version)
        tasks.append(TeacherTask(config(), tmp_path / name, 0))
    for step in range(4):
        for a, b in zip(*(task.batches()[step].values() for task in tasks), strict=True):
            np.testing.assert_array_equal(a, b)
    a, b = (task.model(nnx.Rngs(0)).bias[...] for task in tasks)
    np.testing.assert_array_equal(a, b)


def naive_loss(table, bias, vectors, target):
    """Mean over positions of the mean over targets of -log softmax, float64."""
    losses = []
    for b in range(target.shape[0]):
        for p in range(target.shape[1]):
            wanted = [t for t in target[b, p] if t >= 0]
            if not wanted:
                continue
            logits = table.astype(np.float64) @ vectors[b, p].astype(np.float64) + bias
            log_sum = np.log(np.exp(logits).sum())
            losses.append(np.mean([log_sum - logits[t] for t in wanted]))
    return np.mean(losses)


def test_loss_equals_a_plain_loop():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(ITEMS, 8)).astype(np.float32)
    bias = rng.normal(size=ITEMS).astype(np.float32)
    vectors = rng.normal(size=(3, 4, 8)).astype(np.float32)
    target = rng.integers(-1, ITEMS, (3, 4, 2)).astype(np.int32)
    parts = full_softmax(table, bias, vectors, target)
    loss, scalars = next_session_loss(*parts, target >= 0)
    assert float(loss) == pytest.approx(naive_loss(table, bias, vectors, target), abs=1e-5)
    assert float(scalars["positions"]) == (target >= 0).any(-1).sum()
    all_items = np.arange(ITEMS, dtype=np.int32)  # every item once: no estimate
    sampled, _ = next_session_loss(
        *sampled_softmax(table, bias, vectors, target, all_items), target >= 0
    )
    assert float(sampled) == pytest.approx(float(loss), abs=1e-5)


@pytest.mark.slow
def test_sampled_loss_is_right_on_average_and_its_gradient_finite():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(ITEMS, 8)).astype(np.float32) * 0.3
    bias = np.zeros(ITEMS, np.float32)
    vectors = rng.normal(size=(2, 3, 8)).astype(np.float32)
    table, bias, vectors = map(jnp.asarray, (table, bias, vectors))
    target = np.array([[[1, 1], [2, 5], [3, -1]], [[4, 9], [-1, -1], [7, 8]]], np.int32)

    def loss(table, negatives):
        parts = sampled_softmax(table, bias, vectors, target, negatives)
        return next_session_loss(*parts, target >= 0)[0]

    draws = jnp.asarray(rng.integers(0, ITEMS, (400, 300)))
    mean = float(jax.vmap(loss, (None, 0))(table, draws).mean())
    expected = naive_loss(*map(np.asarray, (table, bias, vectors)), target)
    assert mean == pytest.approx(expected, abs=0.01)  # with fewer draws the estimate is too low
    only_targets = jnp.array([1, 1])
    assert np.isfinite(jax.grad(loss)(table, only_targets)).all()


def test_a_batch_without_targets_has_loss_zero():
    target = np.full((2, 3, 1), -1, np.int32)
    zeros = np.zeros((2, 3, 1), np.float32)
    assert float(next_session_loss(zeros, zeros, target >= 0)[0]) == 0.0


def test_training_learns_a_fixed_succession(tmp_path):
    """Item i + 1 always follows item i; after some steps it is ranked first."""
    users = [[[(start + n) % ITEMS] for n in range(9)] for start in range(ITEMS)]
    histories = histories_of(users)
    data = save_data(tmp_path, histories)
    shape = SasrecConfig(width=16, layers=1, heads=2, history=8, dropout=0.0, block="plain")
    task = TeacherTask(config(model=shape, targets_per_position=1), tmp_path, 0)
    model = task.model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, batch, key):
        def objective(model):
            return task.loss(model, {}, batch, key)

        (loss, _), grads = nnx.value_and_grad(objective, has_aux=True)(model)
        optimizer.update(model, grads)
        return loss

    before = task.report(model, {})["hit_rate_10"]
    batches = task.batches()
    for number in range(60):
        step(model, optimizer, batches[number], jax.random.key(number))
    assert task.report(model, {})["hit_rate_10"] == 1.0 > before
    requests = plain_requests(histories)
    top = rank_items(model, data.histories, requests, 1, False, None)[:-1, 0]
    assert (top == histories.item[histories.test_start]).mean() > 0.9


def test_the_artifact_holds_the_item_table_and_the_model(tmp_path):
    histories = histories_of(random_users(False))
    save_data(tmp_path, histories)
    task = TeacherTask(config(), tmp_path, 0)
    model = task.model(nnx.Rngs(0))
    task.finish(model, {}, tmp_path)
    vectors = np.load(tmp_path / "id_vectors.npy")
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, model.table[...])
    loaded = load_sasrec(tmp_path)
    assert loaded.config == SHAPE
    item = histories.item[None, :10]
    np.testing.assert_array_equal(vectors_of(loaded, item), vectors_of(model, item))
    np.testing.assert_array_equal(loaded.bias[...], model.bias[...])


def test_validation_targets_come_from_the_validation_session():
    histories = histories_of(random_users(True))
    requests = validation_requests(histories, 7, 0)
    assert len(requests) == 7
    for row in range(7):
        user = requests.user[row]
        session = slice(histories.valid_start[user], histories.test_start[user])
        assert requests.history_end[row] == histories.valid_start[user]
        assert requests.target[row] in histories.item[session]


def test_data_without_training_targets_is_refused(tmp_path):
    save_data(tmp_path, histories_of([[[1, 2], [3], [4]], [[5], [6], [7]]]))
    with pytest.raises(ValueError, match=r"two sessions.*steps=0"):
        TeacherTask(config(), tmp_path, 0)
    shape = dataclasses.replace(SHAPE, width=9)
    with pytest.raises(ValueError, match="width=9"):
        TeacherTask(config(model=shape), tmp_path, 0)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_fills_the_config(preset):
    fields = to_dataclass(TeacherConfig, teacher.stage_fields(preset))
    assert fields.model.width % fields.model.heads == 0


def test_gbce_equals_a_plain_loop():
    """A drawn item that is a target does not count."""
    rng = np.random.default_rng(3)
    table, bias = rng.normal(size=(ITEMS, 4)), rng.normal(size=ITEMS)
    vectors = rng.normal(size=(2, 3, 4))
    target = np.array([[[1, 2], [5, -1], [-1, -1]], [[7, 7], [0, 3], [9, -1]]])
    negatives = rng.integers(0, ITEMS, (2, 3, 6))
    negatives[0, 0, 0] = 2
    share, total, count = 6 / (ITEMS - 1), 0.0, 0
    beta = share * (0.75 * (1 - 1 / share) + 1 / share)
    for row, position in np.ndindex(2, 3):
        items = target[row, position]
        scores = table @ vectors[row, position] + bias
        drawn = [i for i in negatives[row, position] if i not in items]
        negative = -sum(np.log(1 - 1 / (1 + np.exp(-scores[i]))) for i in drawn)
        of_targets = [
            (-beta * np.log(1 / (1 + np.exp(-scores[i]))) + negative) / 6 for i in items if i >= 0
        ]
        if of_targets:
            total, count = total + np.mean(of_targets), count + 1
    loss, metrics = jax.jit(gbce_loss, static_argnums=5)(
        *(jnp.asarray(a, jnp.float32) for a in (table, bias, vectors)), target, negatives, 0.75
    )
    assert float(loss) == pytest.approx(total / count, rel=1e-5)
    assert float(metrics["positions"]) == count


@pytest.mark.parametrize(
    "changes", [{"loss": "gbce"}, {"model.block": "ligr"}, {"model.block": "hstu"}]
)
def test_other_settings_of_sasrec_learn_too(tmp_path, changes):
    """Items follow one another in a circle; the loss falls, and the model loads as it was saved."""
    users = [[[(start + step) % ITEMS] for step in range(8)] for start in range(ITEMS)]
    save_data(tmp_path, histories_of(users))
    block = changes.pop("model.block", "plain")
    fields = config(model=dataclasses.replace(SHAPE, block=block), sampled_negatives=8, **changes)
    task = TeacherTask(fields, tmp_path, 0)
    model = task.model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(0.02), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, batch, key):
        def loss(model):
            return task.loss(model, {}, batch, key)

        (value, _), gradient = nnx.value_and_grad(loss, has_aux=True)(model)
        optimizer.update(model, gradient)
        return value

    batches = task.batches()
    losses = [
        float(step(model, optimizer, batches[number], jax.random.key(number)))
        for number in range(60)
    ]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:5])
    task.finish(model, {}, tmp_path)
    loaded = load_sasrec(tmp_path)
    assert loaded.config.block == block
    np.testing.assert_array_equal(loaded.table[...], model.table[...])


def test_a_refit_sees_validation_rows_and_leaves_the_id_vectors(tmp_path):
    """Item 29 occurs in validation alone, and item 28 in test alone."""
    users = [[[0], [1], [user % 20], [29], [28]] for user in range(30)]
    save_data(tmp_path, histories_of(users))
    task = TeacherTask(config(refits=True), tmp_path, 0)
    refit = task.refit()
    assert TeacherTask(config(), tmp_path, 0).refit() is None

    def items(task):
        batches = [task.batches()[number] for number in range(20)]
        return {int(i) for batch in batches for i in np.unique(batch["target"])}

    assert 29 not in items(task) and 29 in items(refit) and 28 not in items(refit)
    task.finish(task.model(nnx.Rngs(0)), {}, tmp_path)
    before = (tmp_path / "id_vectors.npy").read_bytes()
    refit.finish(refit.model(nnx.Rngs(1)), {}, tmp_path)
    assert (tmp_path / "id_vectors.npy").read_bytes() == before
    tables = [load_sasrec(folder).table[...] for folder in (tmp_path, tmp_path / REFIT)]
    assert not np.array_equal(*tables)
