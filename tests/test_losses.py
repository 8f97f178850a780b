"""Tests of Eq. 1-5 against plain float64 loops, and of chunked against unchunked losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sigma_jax import losses

TAU = 0.05


def cosine(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return a @ b / np.sqrt((a @ a) * (b @ b))


def naive_p(vectors, i, is_column, tau):
    weights = [
        np.exp(cosine(vectors[i], vectors[k]) / tau) if is_column(i, k) else 0.0
        for k in range(len(vectors))
    ]
    return np.array(weights) / sum(weights)


def is_kept(keys, i, j):
    """Whether column j is in the denominator of anchor i, by the docstring of the loss."""
    half = len(keys) // 2
    partner = lambda k: (k + half) % len(keys)  # noqa: E731
    if j == i:
        return False
    if j == partner(i):
        return True
    return keys[j] not in (keys[i], keys[partner(i)]) and keys[partner(j)] != keys[i]


def pair_batch(seed=0, pairs=7, width=8):
    rng = np.random.default_rng(seed)
    keys = rng.integers(0, 9, 2 * pairs).astype(np.int32)
    by_key = rng.normal(size=(9, width)).astype(np.float32)
    vectors = by_key[keys] + 0.1 * rng.normal(size=(2 * pairs, width)).astype(np.float32)
    return vectors, keys


@pytest.mark.parametrize("has_keys", [False, True])
def test_eq1_and_eq2_equal_a_float64_loop(has_keys):
    vectors, keys = pair_batch()
    rule = (lambda i, j: is_kept(keys, i, j)) if has_keys else (lambda i, j: i != j)
    want = np.stack([naive_p(vectors, i, rule, TAU) for i in range(14)])
    given = keys if has_keys else None
    want_loss = -np.mean([np.log(want[i, (i + 7) % 14]) for i in range(14)])
    loss, accuracy = losses.contrastive_loss(jnp.asarray(vectors), TAU, given)
    np.testing.assert_allclose(loss, want_loss, rtol=1e-5)
    want_first = np.mean([want[i].argmax() == (i + 7) % 14 for i in range(14)])
    np.testing.assert_allclose(accuracy, want_first, rtol=1e-6)


def test_masking_follows_the_worked_example():
    q, a, b, c = range(4)
    keys = np.array([q, q, c, a, b, a])  # (q, a) (q, b) (c, a)
    is_column = np.array([[is_kept(keys, i, j) for j in range(6)] for i in range(6)])
    np.testing.assert_array_equal(is_column[0], [False, False, True, True, False, False])
    # Anchor c: its positive a (row 5) is a column, the other a (row 3) is masked.
    np.testing.assert_array_equal(is_column[2], [True, True, False, False, True, True])
    # All cosines are 0: each anchor's P is uniform over its columns.
    loss, _ = losses.contrastive_loss(jnp.eye(6), TAU, jnp.asarray(keys))
    np.testing.assert_allclose(loss, np.log(is_column.sum(axis=1)).mean(), rtol=1e-6)


@pytest.mark.parametrize("has_keys", [False, True])
def test_eq3_equals_a_float64_loop_and_leaves_rows_without_id_out(has_keys):
    text, keys = pair_batch()
    ids = np.random.default_rng(1).normal(size=(14, 5)).astype(np.float32) * 3
    has_id = np.random.default_rng(2).random(14) < 0.7
    ids[~has_id] = np.nan_to_num(0.0)

    def rule(i, j):
        return i != j and has_id[j] and not (has_keys and keys[j] == keys[i])

    total = 0.0
    for i in np.flatnonzero(has_id):
        p, q = naive_p(ids, i, rule, 0.1), naive_p(text, i, rule, TAU)
        total += sum(p[j] * np.log(p[j] / q[j]) for j in range(14) if p[j] > 0)
    got = losses.distillation_loss(
        jnp.asarray(text), jnp.asarray(ids), TAU, 0.1, has_id, keys if has_keys else None
    )
    np.testing.assert_allclose(got, total / has_id.sum(), rtol=1e-5)
    assert total > 0


def test_eq3_gives_id_vectors_no_gradient():
    text, _ = pair_batch()
    every = jnp.ones(14, bool)
    by_ids = jax.grad(lambda ids: losses.distillation_loss(text, ids, TAU, TAU, every))
    assert not np.any(by_ids(jnp.asarray(text[:, :3])))


def test_eq4_equals_a_float64_loop():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 4, 5)).astype(np.float32) * 4
    codes = rng.integers(0, 5, (2, 3, 4))
    weights = np.array([[1, 0, 2], [0.5, 1, 0]], np.float32)
    codes[0, 1] = -1  # no target at this position
    total = 0.0
    for b, n in np.argwhere(weights > 0):
        exact = logits[b, n].astype(np.float64)
        terms = [exact[t, codes[b, n, t]] - np.log(np.exp(exact[t]).sum()) for t in range(4)]
        total -= weights[b, n] * np.mean(terms)
    loss, metrics = losses.next_token_loss(jnp.asarray(logits), codes, weights)
    np.testing.assert_allclose(loss, total / weights.sum(), rtol=1e-5)
    is_right = logits.argmax(-1) == codes
    np.testing.assert_allclose(
        metrics["accuracy_2"], (is_right[..., 1] * weights).sum() / weights.sum(), rtol=1e-5
    )
    np.testing.assert_allclose(
        metrics["accuracy"], (is_right.all(-1) * weights).sum() / weights.sum(), rtol=1e-5
    )


def test_label_smoothing_is_a_mixture_with_the_uniform_distribution():
    logits, codes, weights = jnp.array([[[2.0, 0.0, -1.0]]]), jnp.array([[0]]), jnp.ones(1)
    log_p = np.log(np.exp([2.0, 0, -1]) / np.exp([2.0, 0, -1]).sum())
    loss, _ = losses.next_token_loss(logits, codes, weights, label_smoothing=0.3)
    np.testing.assert_allclose(loss, -(0.7 * log_p[0] + 0.1 * log_p.sum()), rtol=1e-5)


def infonce_batch(seed=0, queries=11, negatives=30):
    rng = np.random.default_rng(seed)
    prefix_of = rng.integers(0, 3, 20).astype(np.int32)
    items = rng.integers(0, 20, queries + negatives).astype(np.int32)
    items[-1] = -1  # padding
    vectors = rng.normal(size=(2 * queries + negatives, 6)).astype(np.float32)
    target, drawn = items[:queries], items[queries:]
    return {
        "queries": vectors[:queries],
        "target_vectors": vectors[queries : 2 * queries],
        "target_items": target,
        "target_prefix": prefix_of[target],
        "negative_vectors": vectors[2 * queries :],
        "negative_items": drawn,
        "negative_prefix": prefix_of[drawn],
        "temperature": 0.2,
        "weights": rng.random(queries).astype(np.float32) * (rng.random(queries) < 0.8),
    }


@pytest.mark.parametrize("use_prefix_condition", [True, False])
def test_eq5_equals_a_float64_loop(use_prefix_condition):
    batch = infonce_batch()
    total, first, seen, contested = 0.0, 0.0, 0.0, 0.0
    for q, weight in enumerate(batch["weights"]):
        positive = cosine(batch["queries"][q], batch["target_vectors"][q]) / 0.2
        logits, drawn = [], set()
        for n, item in enumerate(batch["negative_items"]):
            has_prefix = batch["negative_prefix"][n] == batch["target_prefix"][q]
            if item < 0 or item in drawn or item == batch["target_items"][q]:
                continue
            if use_prefix_condition and not has_prefix:
                continue
            drawn.add(item)
            logits.append(cosine(batch["queries"][q], batch["negative_vectors"][n]) / 0.2)
        total -= weight * (positive - np.log(np.exp([positive, *logits]).sum()))
        seen += weight * len(logits)
        contested += weight * bool(logits)
        first += weight * (bool(logits) and positive > max(logits))
    loss, metrics = losses.prefix_infonce(**batch, use_prefix_condition=use_prefix_condition)
    np.testing.assert_allclose(loss, total / batch["weights"].sum(), rtol=1e-5)
    np.testing.assert_allclose(metrics["negatives"], seen / batch["weights"].sum(), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], first / contested, rtol=1e-5)


CONSTRAINED_INPUTS = (
    "queries",
    "target_vectors",
    "target_items",
    "negative_vectors",
    "negative_items",
    "temperature",
    "weights",
)


def test_constraints_equal_a_float64_loop():
    batch, rng = infonce_batch(), np.random.default_rng(5)
    queries, negatives = len(batch["weights"]), len(batch["negative_items"])
    constraint = np.where(np.arange(queries) % 3 == 0, -1, np.arange(queries) % 4).astype(np.int32)
    constraints_of = rng.integers(-1, 4, (20, 2)).astype(np.int32)  # that each item satisfies
    by_negative = constraints_of[batch["negative_items"]]
    total, share, constrained_weight = 0.0, 0.0, 0.0
    for q, weight in enumerate(batch["weights"]):
        if constraint[q] < 0:
            continue
        vector_of = {batch["target_items"][q]: batch["target_vectors"][q]}
        for n, item in enumerate(batch["negative_items"]):
            if item >= 0:
                vector_of.setdefault(item, batch["negative_vectors"][n])
        mass = {i: np.exp(cosine(batch["queries"][q], v) / 0.2) for i, v in vector_of.items()}
        satisfying = [
            value
            for item, value in mass.items()
            if item == batch["target_items"][q] or constraint[q] in constraints_of[item]
        ]
        violating = sum(mass.values()) - sum(satisfying)
        total -= weight * np.mean([np.log(value / (value + violating)) for value in satisfying])
        share += weight * sum(satisfying) / sum(mass.values())
        constrained_weight += weight
    shared = {name.replace("negative_", "other_"): batch[name] for name in CONSTRAINED_INPUTS}

    def satisfies(rows):
        return (by_negative == jnp.asarray(constraint)[rows, None, None]).any(axis=-1)

    for size in (2, 100):
        loss, satisfied = losses.constraint_loss(
            **shared, has_constraint=constraint >= 0, satisfies=satisfies, chunk_size=size
        )
        np.testing.assert_allclose(loss, total / batch["weights"].sum(), rtol=1e-5)
        np.testing.assert_allclose(satisfied, share / constrained_weight, rtol=1e-5)
    assert negatives > 1
    assert 0 < share < constrained_weight


def test_corrections_are_added_to_the_logits():
    batch, rng = infonce_batch(), np.random.default_rng(8)
    queries, negatives = len(batch["weights"]), len(batch["negative_items"])
    corrections = rng.normal(size=queries), rng.normal(size=negatives)
    total = 0.0
    for q, weight in enumerate(batch["weights"]):
        positive = cosine(batch["queries"][q], batch["target_vectors"][q]) / 0.2 + corrections[0][q]
        logits = {}
        for n, item in enumerate(batch["negative_items"]):
            if item >= 0 and item != batch["target_items"][q]:
                logit = cosine(batch["queries"][q], batch["negative_vectors"][n]) / 0.2
                logits.setdefault(item, logit + corrections[1][n])
        total -= weight * (positive - np.log(np.exp([positive, *logits.values()]).sum()))
    loss, _ = losses.prefix_infonce(**batch, use_prefix_condition=False, corrections=corrections)
    np.testing.assert_allclose(loss, total / batch["weights"].sum(), rtol=1e-5)


def test_a_corrected_sample_stands_for_all_items():
    """The mean sum of e^logit over sets drawn by popularity is the sum over all items."""
    rng = np.random.default_rng(1)
    logits, popularity = rng.normal(size=30), rng.dirichlet(np.full(30, 0.3))
    expected = 12 * popularity + 6 / 30
    drawn = np.concatenate(
        [rng.choice(30, (20_000, 12), p=popularity), rng.integers(0, 30, (20_000, 6))], axis=1
    )
    is_in = (drawn[..., None] == np.arange(30)).any(axis=1)
    corrected = np.exp(logits + np.asarray(losses.sampling_correction(jnp.asarray(expected))))
    np.testing.assert_allclose(
        (is_in * corrected).sum(axis=1).mean(), np.exp(logits).sum(), rtol=0.03
    )


def test_repeated_draws_count_once():
    batch = infonce_batch()
    twice = dict(batch)
    for name in ("negative_vectors", "negative_items", "negative_prefix"):
        twice[name] = np.concatenate([batch[name], batch[name]])
    np.testing.assert_allclose(
        losses.prefix_infonce(**batch)[0], losses.prefix_infonce(**twice)[0], rtol=1e-6
    )


@pytest.mark.parametrize("chunk_size", [1, 5])
def test_chunks_change_neither_values_nor_gradients(chunk_size):
    vectors, keys = pair_batch()
    ids, has_id = jnp.asarray(pair_batch(seed=3)[0]), jnp.arange(14) % 3 > 0
    batch = infonce_batch()

    def contrast(v, size):
        return losses.contrastive_loss(v, TAU, keys, size)[0]

    def distil(v, size):
        return losses.distillation_loss(v, ids, TAU, TAU, has_id, keys, size)

    def infonce(v, size):
        return losses.prefix_infonce(**{**batch, "negative_vectors": v}, chunk_size=size)[0]

    constraint = np.resize([-1, 2, -1, 0, 1, -1], len(batch["weights"]))
    shared = {name.replace("negative_", "other_"): batch[name] for name in CONSTRAINED_INPUTS}

    def satisfies(rows):
        return batch["negative_items"] % 3 == jnp.asarray(constraint)[rows, None]

    def constrained(v, size):
        given = {**shared, "other_vectors": v, "has_constraint": constraint >= 0}
        return losses.constraint_loss(**given, satisfies=satisfies, chunk_size=size)[0]

    cases = [(contrast, vectors), (distil, vectors)]
    cases += [(infonce, batch["negative_vectors"]), (constrained, batch["negative_vectors"])]
    for loss, at in cases:
        step = jax.jit(jax.value_and_grad(loss), static_argnums=1)
        whole = step(jnp.asarray(at), 100)
        parts = step(jnp.asarray(at), chunk_size)
        np.testing.assert_allclose(parts[0], whole[0], rtol=1e-6)
        np.testing.assert_allclose(parts[1], whole[1], atol=1e-5)


def test_no_intermediate_holds_all_rows_by_all_candidates():
    def loss(v):
        ids = losses.distillation_loss(v, v[:, :4], TAU, TAU, jnp.ones(512, bool), None, 64)
        return losses.contrastive_loss(v, TAU, jnp.arange(512), 64)[0] + ids

    lowered = jax.jit(jax.grad(loss)).lower(jnp.ones((512, 8)))
    assert lowered.compile().memory_analysis().temp_size_in_bytes < 512 * 512 * 4


def step(loss):
    return jax.jit(jax.value_and_grad(loss))


def finite(tree):
    return all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_edge_cases_have_finite_gradients(dtype):
    one_pair = jnp.asarray(pair_batch()[0][:2], dtype)
    for keys in (None, jnp.array([3, 3])):
        loss, grad = step(lambda v, k=keys: losses.contrastive_loss(v, TAU, k)[0])(one_pair)
        assert loss == 0 and finite(grad) and loss.dtype == jnp.float32
    nowhere = jnp.zeros(2, bool)
    distil = lambda v, has: losses.distillation_loss(v, v, TAU, TAU, has)  # noqa: E731
    for has_id in (nowhere, jnp.array([True, False]), ~nowhere):
        loss, grad = step(distil)(one_pair, has_id)
        assert loss == 0 and finite(grad)
    zeros = jnp.zeros((4, 8), dtype)
    assert finite(step(lambda v: losses.contrastive_loss(v, TAU)[0])(zeros))

    batch = infonce_batch()
    alone = {**batch, "negative_prefix": np.full(30, 99)}
    unweighted = {**batch, "weights": np.zeros(11)}
    for case in (alone, unweighted):
        vectors = {n: jnp.asarray(case[n], dtype) for n in ("queries", "negative_vectors")}
        loss, grad = step(lambda v, c=case: losses.prefix_infonce(**{**c, **v})[0])(vectors)
        assert loss == 0 and finite(grad)
    logits = jnp.zeros((1, 2, 3), dtype)
    nothing = jnp.zeros((1, 2), int), jnp.zeros(1)
    loss, grad = step(lambda x: losses.next_token_loss(x, *nothing)[0])(logits)
    assert loss == 0 and finite(grad)


def test_bfloat16_vectors_are_compared_in_float32():
    vectors, keys = pair_batch()
    rounded = jnp.asarray(vectors, jnp.bfloat16)
    np.testing.assert_allclose(
        losses.contrastive_loss(rounded, TAU, keys)[0],
        losses.contrastive_loss(rounded.astype(jnp.float32), TAU, keys)[0],
        rtol=1e-6,
    )


def test_an_odd_number_of_rows_is_no_batch_of_pairs():
    with pytest.raises(ValueError, match="3 vectors are no batch of pairs"):
        losses.contrastive_loss(jnp.ones((3, 2)), TAU)


@pytest.mark.parametrize("num_negatives", [5, 12])
def test_negatives_drawn_for_a_target_stand_for_all_they_were_drawn_from(num_negatives):
    """Eq. 5 with each drawn negative counted num_negatives / drawn times, by a float64 loop."""
    rng = np.random.default_rng(0)
    queries, targets = rng.normal(size=(2, 6, 8))
    negatives = rng.normal(size=(6, 5, 8))
    is_negative = rng.random((6, 5)) < 0.7
    is_negative[2] = False
    weights = rng.random(6)
    loss, metrics = losses.per_target_infonce(
        *(jnp.asarray(a, jnp.float32) for a in (queries, targets, negatives)),
        jnp.asarray(is_negative),
        jnp.full(6, num_negatives),
        0.1,
        jnp.asarray(weights, jnp.float32),
    )

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    total = 0.0
    for q in range(6):
        positive = np.exp(cosine(queries[q], targets[q]) / 0.1)
        drawn = [np.exp(cosine(queries[q], v) / 0.1) for v in negatives[q][is_negative[q]]]
        others = sum(drawn) * num_negatives / len(drawn) if drawn else 0.0
        total -= weights[q] * np.log(positive / (positive + others))
    np.testing.assert_allclose(loss, total / weights.sum(), rtol=1e-5)
    np.testing.assert_allclose(
        metrics["negatives"], (is_negative.sum(axis=1) * weights).sum() / weights.sum(), rtol=1e-5
    )
