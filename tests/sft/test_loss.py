"""The loss of stage 3 against plain float64 loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_task import make_task, model_fields, placed

from sigma_jax.models.network import ALL_ITEMS
from sigma_jax.prompts.layout import HISTORY_TASK
from sigma_jax.sft.loss import (
    draw_places,
    hidden_states,
    mask_of,
    satisfies,
    shared_negatives,
    with_item_vectors,
    with_targets,
)
from sigma_jax.sft.task import SftTask
from sigma_jax.tasks.constraints import NEW_CATEGORY

PAPER_MODEL = {"has_item_head": False, "has_task_head": False}


@pytest.fixture(scope="module")
def paper(trained) -> SftTask:
    """Eq. 4 and Eq. 5 as in the paper, without item head and task head."""
    return make_task(trained, model=model_fields(trained, **PAPER_MODEL))


@pytest.fixture(scope="module")
def paper_model(paper):
    return paper.model(nnx.Rngs(0))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def naive_query(model, head, hidden, row_items, seen, vectors) -> np.ndarray:
    """The query of a head, with its pointer over the items of the row that it sees."""
    scale, no_item, gain = np.asarray(model.pointer_scale[...], np.float64)
    pointer = unit(hidden @ np.asarray(model.pointer_head[...]))
    weights, pointed = [np.exp(no_item)], np.zeros(vectors.shape[1])
    for place in np.flatnonzero(seen & (row_items >= 0)):
        weight = np.exp(scale * vectors[row_items[place]] @ pointer)
        weights.append(weight)
        pointed += weight * vectors[row_items[place]]
    return unit(unit(hidden @ np.asarray(head[...])) + gain * pointed / sum(weights))


def naive_losses(task, model, tables, batch) -> tuple[float, float]:
    """Eq. 4 and Eq. 5, target by target, in float64."""
    hidden = np.asarray(hidden_states(model, tables, batch), np.float64)
    table = np.asarray(model.sid_table[...], np.float64)
    bias = np.asarray(model.code_bias[...], np.float64)
    levels, codes = task.config.prompt.layout.sid_generated, task.semantic_ids.codes
    items = np.arange(len(codes))
    mask = np.asarray(mask_of(batch))
    vectors = np.asarray(model.item_vectors(jnp.asarray(items), tables), np.float64)
    size = task.semantic_ids.codebook_size
    ntp, infonce, total = 0.0, 0.0, 0.0
    weight = np.asarray(batch["target_weight"])
    for row, place in zip(*np.nonzero(weight), strict=True):
        target = int(batch["target_item"][row, place])
        for level in range(levels):
            h = hidden[row, batch["code_position"][row, place, level]]
            logits = table[level * size : (level + 1) * size] @ h + bias[level]
            ntp -= weight[row, place] * log_softmax(logits)[codes[target, level]] / levels
        position = batch["query_position"][row, place]
        h = naive_query(
            model,
            model.query_head,
            hidden[row, position],
            batch["item"][row],
            mask[row, position],
            vectors,
        )
        cosines = vectors @ h / task.config.temperature
        shares = (codes[:, :levels] == codes[target, :levels]).all(axis=1)
        known = np.asarray(task.data.catalogue.popularity) > 0  # other items are no negatives
        shares &= known | (items == target)
        pool = cosines[shares]  # the target is one of them
        infonce -= weight[row, place] * (cosines[target] - np.log(np.exp(pool).sum()))
        total += weight[row, place]
    return ntp / total, infonce / total


def naive_item_head_loss(task, model, tables, batch) -> float:
    """InfoNCE of the item head against all other items, target by target, in float64."""
    hidden = np.asarray(hidden_states(model, tables, batch), np.float64)
    mask, weight = np.asarray(mask_of(batch)), np.asarray(batch["target_weight"])
    vectors = np.asarray(model.item_vectors(jnp.arange(len(task.data.catalogue)), tables))
    vectors, total = vectors.astype(np.float64), 0.0
    for row, place in zip(*np.nonzero(weight), strict=True):
        seen = row, batch["start_position"][row, place]
        items = batch["item"][row]
        query = naive_query(model, model.item_head, hidden[seen], items, mask[seen], vectors)
        scores = vectors @ query / task.config.temperature
        target = int(batch["target_item"][row, place])
        known = np.asarray(task.data.catalogue.popularity) > 0
        known[target] = True
        likelihood = scores[target] - np.log(np.exp(scores[known]).sum())
        total -= weight[row, place] * likelihood
    return total / weight.sum()


@pytest.mark.slow
def test_the_item_head_has_a_loss_of_its_own_beside_eq_4_and_eq_5(task, model):
    tables, batch = placed(task.tables()), placed(task.batches()[0])
    loss, metrics = jax.jit(task.loss)(model, tables, batch, jax.random.key(0))
    host = jax.device_get(batch)
    ntp, infonce = naive_losses(task, model, tables, host)
    item_head = naive_item_head_loss(task, model, tables, host)
    np.testing.assert_allclose(metrics["ntp_loss"], ntp, rtol=1e-5)
    np.testing.assert_allclose(metrics["infonce_loss"], infonce, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(metrics["item_head_loss"], item_head, rtol=1e-5)
    np.testing.assert_allclose(loss, ntp + infonce + item_head + metrics["task_loss"], rtol=1e-5)


def test_loss_is_eq_4_plus_eq_5_over_items_of_the_targets_prefix(paper, paper_model):
    task, model = paper, paper_model
    tables = placed(task.tables())
    batch = placed(task.batches()[0])
    assert (np.asarray(batch["target_task"]) == HISTORY_TASK).any()
    loss, metrics = jax.jit(task.loss)(model, tables, batch, jax.random.key(0))
    ntp, infonce = naive_losses(task, model, tables, jax.device_get(batch))
    np.testing.assert_allclose(metrics["ntp_loss"], ntp, rtol=1e-5)
    np.testing.assert_allclose(metrics["infonce_loss"], infonce, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(loss, ntp + infonce, rtol=1e-5)


def test_the_weights_of_both_losses_count(trained, task, model):
    weighted = make_task(trained, ntp_weight=0.5, infonce_weight=2.0)
    arguments = model, placed(task.tables()), placed(task.batches()[0]), jax.random.key(0)
    loss, metrics = jax.jit(weighted.loss)(*arguments)
    expected = 0.5 * metrics["ntp_loss"] + 2 * metrics["infonce_loss"] + metrics["item_head_loss"]
    expected += metrics["task_loss"]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_negatives_are_different_places_and_all_where_they_fit():
    size = jnp.array([1, 3, 8, 9, 40])
    for seed in range(20):
        places, is_real = draw_places(jax.random.key(seed), size, 8)
        for row, count in enumerate(size.tolist()):
            chosen = np.asarray(places[row])[np.asarray(is_real[row])]
            assert len(set(chosen.tolist())) == len(chosen) == min(count, 8)
            assert chosen.min() >= 0 and chosen.max() < count


def test_shared_negatives_of_the_whole_catalogue_give_the_same_loss(trained, paper, paper_model):
    """Eq. 5 as printed (drawn once, masked by prefix) against negatives drawn by prefix."""
    fields = model_fields(trained, **PAPER_MODEL)
    shared = make_task(trained, model=fields, negatives_per_target=0, num_negatives=1_000)
    tables, batch = placed(paper.tables()), placed(paper.batches()[0])
    arguments = paper_model, tables, batch, jax.random.key(0)
    of_own, of_batch = (jax.jit(t.loss)(*arguments)[1]["infonce_loss"] for t in (paper, shared))
    np.testing.assert_allclose(of_own, of_batch, rtol=1e-5)


def test_items_are_encoded_once_where_that_is_less_work_and_the_loss_is_the_same(trained, model):
    few = make_task(trained, num_negatives=40)
    tables, batch = placed(few.tables()), placed(few.batches()[0])
    items = len(few.data.catalogue)
    # Each target has its vector and those of its own negatives, and is read by the item head.
    per_target = few.config.negatives_per_target + 2
    enough = -(-(items - 40) // per_target)
    for targets, devices, is_whole in (
        (enough, 1, True),
        (enough - 1, 1, False),
        (enough, 2, False),
        (2 * enough, 2, True),
    ):
        mesh = jax.sharding.AbstractMesh((devices,), ("data",))
        with jax.sharding.use_abstract_mesh(mesh):
            found = with_item_vectors(few.config, model, tables, targets)
        assert (ALL_ITEMS in found) == is_whole, (targets, devices)

    def loss_and_slopes(tables):
        def loss(model):
            return few.loss(model, tables, batch, jax.random.key(0))[0]

        return jax.jit(nnx.value_and_grad(loss))(model)

    assert batch["target_item"].size >= enough
    once = loss_and_slopes(tables)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sigma_jax.sft.loss.with_item_vectors", lambda config, model, given, n: given)
        anew = loss_and_slopes(tables)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), once, anew)


@pytest.mark.slow
def test_targets_of_a_batch_are_negatives_of_one_another(trained, model):
    few = make_task(trained, num_negatives=4, batch_negatives=30)
    tables, batch = placed(few.tables()), placed(few.batches()[0])
    targets, weights = (batch[k].reshape(-1) for k in ("target_item", "target_weight"))
    shared = shared_negatives(few.config, model, tables, targets, jax.random.key(0))
    more, corrections = with_targets(few.config, tables, shared, targets, weights)
    assert more.items[:4].tolist() == shared.items.tolist()
    usable = np.flatnonzero((weights > 0) & ~tables["is_cold"][targets])
    assert 30 < len(usable) < len(targets)
    np.testing.assert_array_equal(more.known[4:], more.items[4:])
    chosen = usable[np.arange(30) * len(usable) // 30]
    np.testing.assert_array_equal(more.items[4:], targets[chosen])
    row = few.prompt.packing.row_targets
    assert set(chosen // row) == set(usable // row)  # every row of the batch has a part in it
    vectors = model.item_vectors(more.items, tables)
    np.testing.assert_allclose(more.vectors, vectors, atol=1e-6)
    shares = np.asarray(few.data.catalogue.popularity) / np.sum(few.data.catalogue.popularity)
    expected = 4 / len(shares) + 30 * shares
    for found, items in zip(corrections, (targets, more.items), strict=True):
        np.testing.assert_allclose(found, -np.log(1 - np.exp(-expected[items])), rtol=1e-3)
    loss = jax.jit(few.loss)(model, tables, batch, jax.random.key(0))[1]["item_head_loss"]
    alone = make_task(trained, num_negatives=4)
    assert loss > jax.jit(alone.loss)(model, tables, batch, jax.random.key(0))[1]["item_head_loss"]
    of_all = make_task(trained, batch_negatives=30)
    same = shared_negatives(of_all.config, model, tables, targets, jax.random.key(0))
    assert with_targets(of_all.config, tables, same, targets, weights) == (same, None)


def test_items_nobody_had_in_training_are_no_negatives(task, model):
    tables, batch = placed(task.tables()), placed(task.batches()[0])
    popularity = np.asarray(task.data.catalogue.popularity)
    assert 0 < (popularity == 0).sum() < len(popularity)
    assert sorted(np.asarray(tables["by_prefix"]).tolist()) == np.flatnonzero(popularity).tolist()
    nobody = {"is_cold": jnp.ones_like(tables["is_cold"])}
    usual, metrics = (
        jax.jit(task.loss)(model, tables | more, batch, jax.random.key(0))[1]
        for more in ({}, nobody)
    )
    assert usual["item_head_loss"] > 0.1
    assert abs(metrics["item_head_loss"]) < 1e-6


def test_targets_that_satisfy_an_instruction_train_the_item_head(trained, task):
    asking = make_task(trained, constraint_weight=2.0)
    tables, batch = placed(asking.tables()), placed(asking.batches()[0])
    numbers = np.asarray(batch["target_constraint"])
    satisfied = np.asarray(tables["constraints"])[np.asarray(batch["target_item"])]
    is_bound = numbers >= 0  # what is new depends on who asks, see below
    assert is_bound.any() and not is_bound[np.asarray(batch["target_task"]) == HISTORY_TASK].any()
    assert (satisfied == numbers[..., None]).any(axis=-1)[is_bound].all()
    arguments = asking.model(nnx.Rngs(0)), tables, batch, jax.random.key(0)
    loss, metrics = jax.jit(asking.loss)(*arguments)
    plain, _ = jax.jit(task.loss)(*arguments)
    assert metrics["item_head_constraint_loss"] > 0
    np.testing.assert_allclose(loss, plain + 2 * metrics["item_head_constraint_loss"], rtol=1e-5)


def test_a_new_category_is_one_that_nothing_visible_has(trained):
    asking = make_task(trained, constraint_weight=2.0)
    tables, batch = placed(asking.tables()), placed(asking.batches()[0])
    places = np.flatnonzero(np.asarray(batch["target_constraint"]) == NEW_CATEGORY)
    assert len(places) > 1
    items = np.arange(0, len(asking.data.catalogue), 2)
    found = np.asarray(satisfies(tables, batch, jnp.asarray(items), jnp.asarray(places)))
    category, mask = asking.data.catalogue.category, np.asarray(mask_of(batch))
    shown, starts = np.asarray(batch["item"]), np.asarray(batch["start_position"])
    for place, new in zip(places, found, strict=True):
        row, column = divmod(place, starts.shape[1])
        visible = shown[row][mask[row, starts[row, column]] & (shown[row] >= 0)]
        expected = (category[items] >= 0) & ~np.isin(category[items], category[visible])
        assert new.tolist() == expected.tolist()
    assert 0 < found.mean() < 1


@pytest.mark.slow
def test_the_task_of_an_instruction_is_learnt_beside_the_items(trained, task):
    reading = make_task(trained, model=model_fields(trained, has_task_head=True))
    silent = make_task(trained, model=model_fields(trained, has_task_head=False))
    tables, batch = placed(task.tables()), placed(task.batches()[0])
    model, plain = reading.model(nnx.Rngs(0)), silent.model(nnx.Rngs(0))
    rng = np.random.default_rng(0)
    head = rng.normal(0, 1, model.task_head.shape).astype(np.float32)
    model.task_head[...] = jnp.asarray(head)
    loss, metrics = jax.jit(reading.loss)(model, tables, batch, jax.random.key(0))
    without, _ = jax.jit(silent.loss)(plain, tables, batch, jax.random.key(0))
    hidden = np.asarray(hidden_states(model, tables, batch), np.float64)
    host, total, right, count = jax.device_get(batch), 0.0, 0.0, 0.0
    for row, place in zip(*np.nonzero(host["target_weight"]), strict=True):
        if host["target_task"][row, place] == HISTORY_TASK:
            continue
        logits = hidden[row, host["start_position"][row, place]] @ head
        right_task = host["target_task"][row, place]
        total -= logits[right_task] - np.log(np.exp(logits).sum())
        right += logits.argmax() == right_task
        count += 1
    np.testing.assert_allclose(metrics["task_loss"], total / count, rtol=1e-5)
    np.testing.assert_allclose(metrics["task_accuracy"], right / count, rtol=1e-5)
    np.testing.assert_allclose(loss, without + total / count, rtol=1e-4)
    slopes = jax.jit(jax.grad(lambda m, *rest: reading.loss(m, *rest)[1]["task_loss"]))(
        model, tables, batch, jax.random.key(0)
    )
    trained_by_it = {
        path[0] for path, slope in nnx.to_flat_state(nnx.state(slopes)) if slope[...].any()
    }
    assert trained_by_it == {"task_head"}
