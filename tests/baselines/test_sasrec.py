"""SASRec looks at the past only, learns the next session, and is kept whole on disk."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from configs import teacher
from configs.common import PRESETS
from sigma_jax.baselines.candidates import allowed_items
from sigma_jax.baselines.popularity import Popularity
from sigma_jax.baselines.sasrec import (
    Sasrec,
    SasrecBaseline,
    SasrecConfig,
    load_sasrec,
    rank_windows,
    save_sasrec,
    window,
)
from sigma_jax.baselines.task import (
    TeacherConfig,
    TeacherTask,
    count_windows,
    draw_lines,
    full_softmax,
    next_session_loss,
    sampled_softmax,
    training_row,
    validation_requests,
)
from sigma_jax.runtime.config import to_dataclass
from sigma_jax.schema import TASKS, Catalogue, Histories, PreparedData, Requests, Users

pa = pytest.importorskip("pyarrow")
ITEMS = 30
SHAPE = SasrecConfig(width=8, layers=2, heads=2, history=10, dropout=0.0)


def histories_of(users: list[list[list[int]]]) -> Histories:
    """Users as sessions of items; the last session is the test, the one before validation."""
    item = [i for user in users for session in user for i in session]
    session = [n for user in users for n, items in enumerate(user) for _ in items]
    sizes = [[len(items) for items in user] for user in users]
    offsets = np.concatenate([[0], np.cumsum([sum(s) for s in sizes])])
    test = np.array([end - s[-1] for end, s in zip(offsets[1:], sizes, strict=True)])
    valid = np.array([start - s[-2] for start, s in zip(test, sizes, strict=True)])
    session = np.array(session, np.int32)
    return Histories(
        np.array(item, np.int32), session.astype(np.int64), session, offsets, valid, test
    )


def random_users(baskets: bool, users: int = 12) -> list[list[list[int]]]:
    rng = np.random.default_rng(0)
    sizes = [rng.integers(1, 5, rng.integers(4, 12)) if baskets else np.ones(8, int)] * users
    return [[rng.integers(0, ITEMS, size).tolist() for size in s] for s in sizes]


def save_data(folder, histories: Histories) -> PreparedData:
    names = [str(item) for item in range(ITEMS)]
    table = pa.table({"item_id": names, "text": names, "title": names})
    popularity = np.bincount(histories.item, minlength=ITEMS)
    category = (np.arange(ITEMS) % 3).astype(np.int32)
    (folder / "data").mkdir()
    Catalogue(table, category, pa.array(list("abc")), popularity).save(folder / "data")
    histories.save(folder / "data")
    ids = [str(user) for user in range(histories.num_users)]
    Users(pa.table({"user_id": ids, "profile": ids})).save(folder / "data")
    return PreparedData.load(folder / "data")


def config(**changes) -> TeacherConfig:
    fields = to_dataclass(TeacherConfig, teacher.stage_fields("smoke"))
    changes = {"model": SHAPE, "loss_positions": 5, "targets_per_position": 2} | changes
    return dataclasses.replace(fields, **changes)


def plain_requests(histories: Histories, cut=None) -> Requests:
    users = np.append(np.arange(histories.num_users), -1).astype(np.int32)
    cut = np.append(histories.test_start if cut is None else cut, 0)
    empty = np.full(len(users), -1, np.int32)
    return Requests(users, cut, np.zeros_like(users), empty, empty, [""] * len(users))


@nnx.jit
def vectors_of(model: Sasrec, item, key=None):
    return model(item, key)


def test_later_items_do_not_change_earlier_vectors():
    model = Sasrec(SHAPE, ITEMS, nnx.Rngs(0))
    item = np.random.default_rng(0).integers(0, ITEMS, (2, 10)).astype(np.int32)
    changed = item.copy()
    changed[:, 6:] = (changed[:, 6:] + 1) % ITEMS
    before, after = vectors_of(model, item), vectors_of(model, changed)
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert (jnp.abs(before[:, 6:] - after[:, 6:]).max(-1) > 1e-4).all()


def test_padding_is_not_seen():
    """Equality with a model whose window is just as long as the history."""
    model = Sasrec(SHAPE, ITEMS, nnx.Rngs(0))
    history = np.array([[3, 4, 5, 6]], np.int32)
    short = Sasrec(dataclasses.replace(SHAPE, history=4), ITEMS, nnx.Rngs(0))
    nnx.update(short, nnx.state(model, nnx.Not(nnx.PathContains("position"))))
    short.position[...] = model.position[...][-4:]
    padded = np.concatenate([np.full((1, 6), -1, np.int32), history], 1)
    np.testing.assert_allclose(
        vectors_of(model, padded)[:, -4:], vectors_of(short, history), atol=1e-5
    )


def test_history_speaks_before_any_training():
    """Untrained, an item of the history scores above the same item without it."""
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


def test_worked_example_of_single_items():
    histories = histories_of([[[7], [8], [9], [1], [2]]])
    row = training_row(histories, 0, 0, config(), np.random.default_rng(0))
    assert row["item"].tolist() == [-1] * 7 + [7, 8, 9]
    assert row["position"].tolist() == [7, 8, -1, -1, -1]
    assert row["target"].tolist() == [[8, -1], [9, -1]] + [[-1, -1]] * 3


def test_worked_example_of_baskets():
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


def test_targets_always_lie_in_the_next_session_of_the_training_part():
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
        for place in range(first[user + 1] - first[user]):
            row = training_row(histories, user, place, settings, rng)
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


def test_lines_are_drawn_without_repetition_and_from_their_range():
    low, high = np.array([2, 10, 30]), np.array([3, 13, 40])
    drawn = draw_lines(low, high, 4, np.random.default_rng(0))
    for row, a, b in zip(drawn, low, high, strict=True):
        lines = row[row >= 0]
        assert len(set(lines)) == len(lines) == min(4, b - a)
        assert ((a <= lines) & (lines < b)).all()


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


def test_heldout_rows_change_neither_batches_nor_start(tmp_path):
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


def test_loss_equals_plain_loop():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(ITEMS, 8)).astype(np.float32)
    bias = rng.normal(size=ITEMS).astype(np.float32)
    vectors = rng.normal(size=(3, 4, 8)).astype(np.float32)
    target = rng.integers(-1, ITEMS, (3, 4, 2)).astype(np.int32)
    parts = full_softmax(table, bias, vectors, target)
    loss, figures = next_session_loss(*parts, target >= 0)
    assert float(loss) == pytest.approx(naive_loss(table, bias, vectors, target), abs=1e-5)
    assert float(figures["positions"]) == (target >= 0).any(-1).sum()
    everything = np.arange(ITEMS, dtype=np.int32)  # all items drawn once: nothing is estimated
    sampled, _ = next_session_loss(
        *sampled_softmax(table, bias, vectors, target, everything), target >= 0
    )
    assert float(sampled) == pytest.approx(float(loss), abs=1e-5)


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
    assert mean == pytest.approx(expected, abs=0.01)  # fewer draws estimate too low
    only_targets = jnp.array([1, 1])
    assert np.isfinite(jax.grad(loss)(table, only_targets)).all()


def test_a_batch_without_targets_has_loss_zero():
    target = np.full((2, 3, 1), -1, np.int32)
    zeros = np.zeros((2, 3, 1), np.float32)
    assert float(next_session_loss(zeros, zeros, target >= 0)[0]) == 0.0


def test_training_learns_a_fixed_succession(tmp_path):
    """Item i is always followed by i+1: after some steps it leads the list."""
    users = [[[(start + n) % ITEMS] for n in range(9)] for start in range(ITEMS)]
    histories = histories_of(users)
    data = save_data(tmp_path, histories)
    shape = SasrecConfig(width=16, layers=1, heads=2, history=8, dropout=0.0)
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
    top = rank_windows(model, data.histories, requests, 1, True, None)[:-1, 0]
    assert (top == histories.item[histories.test_start]).mean() > 0.9


def test_artifact_holds_the_table_and_the_model(tmp_path):
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


def test_missing_and_damaged_weights_are_named(tmp_path):
    with pytest.raises(ValueError, match="is missing; run the stage `teacher`"):
        load_sasrec(tmp_path)
    save_sasrec(Sasrec(SHAPE, ITEMS, nnx.Rngs(0)), tmp_path)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="is damaged"):
        load_sasrec(tmp_path)


@pytest.mark.parametrize("keep_seen", [True, False])
@pytest.mark.parametrize("block", [7, 2**16])
def test_ranking_equals_sorting_all_scores(tmp_path, monkeypatch, keep_seen, block):
    """Whatever the block of items, also with seen items left out and constraints."""
    monkeypatch.setattr("sigma_jax.baselines.sasrec.ITEMS_A_STEP", block)
    histories = histories_of(random_users(True))
    data = save_data(tmp_path, histories)
    model = Sasrec(SHAPE, ITEMS, nnx.Rngs(1))
    requests = plain_requests(histories)
    is_category = np.arange(len(requests)) % 2 == 1
    task = np.where(is_category, TASKS.index("Category"), 0).astype(np.int32)
    argument = np.where(is_category, 1, -1).astype(np.int32)
    requests = dataclasses.replace(requests, task=task, argument=argument)
    allowed = allowed_items(data, requests)
    rankings = rank_windows(model, histories, requests, 12, keep_seen, allowed)
    assert (rankings[-1] == -1).all()  # no history; the baseline fills with popularity
    for row in range(histories.num_users):
        start, stop = histories.offsets[row], requests.cut[row]
        item = window(histories, start, stop, SHAPE.history, None)[0]
        scores = np.asarray(
            vectors_of(model, item[None])[0, -1] @ model.table[...].T + model.bias[...]
        )
        free = set(range(ITEMS)) if not is_category[row] else set(range(1, ITEMS, 3))
        if not keep_seen:
            free -= set(histories.item[start:stop].tolist())
        expected = np.sort(scores[sorted(free)])[::-1][:12]
        returned = rankings[row][rankings[row] >= 0]
        assert set(returned) <= free and len(returned) == len(expected)
        np.testing.assert_allclose(scores[returned], expected, atol=1e-5)
    filled = SasrecBaseline(model, Popularity.fit(data, 0)).recommend(
        data, requests, 5, keep_seen, None
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
    results = [rank_windows(model, h, requests, 10, True, None) for h in (histories, other)]
    np.testing.assert_array_equal(*results)


def test_rows_after_the_cut_change_no_recommendation():
    histories = histories_of(random_users(True))
    item = histories.item.copy()
    for user in range(histories.num_users):
        rows = slice(histories.test_start[user], histories.offsets[user + 1])
        item[rows] = (item[rows] + 3) % ITEMS
    model = Sasrec(SHAPE, ITEMS, nnx.Rngs(1))
    requests = plain_requests(histories)
    other = dataclasses.replace(histories, item=item)
    results = [rank_windows(model, h, requests, 10, True, None) for h in (histories, other)]
    np.testing.assert_array_equal(*results)


def test_validation_targets_come_from_the_validation_session():
    histories = histories_of(random_users(True))
    requests = validation_requests(histories, 7, 0)
    assert len(requests) == 7
    for row in range(7):
        user = requests.user[row]
        session = slice(histories.valid_start[user], histories.test_start[user])
        assert requests.cut[row] == histories.valid_start[user]
        assert requests.target[row] in histories.item[session]


def test_nothing_to_learn_is_an_error_that_says_so(tmp_path):
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
