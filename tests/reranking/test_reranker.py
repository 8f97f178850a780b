"""Promises of sigma_jax/reranking/reranker.py."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from small_histories import histories_of, plain_data, plain_requests
from small_recommender import NUM_ITEMS, prompts, recommender, semantic_ids

from sigma_jax.generation.config import GenerationConfig
from sigma_jax.generation.generator import Generator
from sigma_jax.reranking.fit import (
    LEAST_TARGETS,
    LEAST_TRUST,
    fit_by_task,
    fit_reranker,
    fit_weights,
    log_loss,
    satisfies_instruction,
)
from sigma_jax.reranking.reranker import FEATURES, Counts, Reranker, RerankerConfig, RerankerWeights
from sigma_jax.schema import DAY, TASKS, Requests
from sigma_jax.tasks.constraints import AllowedItems

REQUESTS = LEAST_TARGETS + 10
GENERATION = GenerationConfig(30, 30, 0.1, 1.0, 0.05, "exact", "fused", 3, (), 0.0, "exact")


def anything(columns) -> np.ndarray:
    """Requests that ask for nothing in particular."""
    return np.ones(columns[0].shape, bool)


def test_the_slope_is_that_of_the_loss_by_definition():
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=(7, 9, 3)), rng.normal(size=3)
    target, is_asked = rng.integers(0, 9, 7), rng.random((7, 9)) < 0.4
    loss, slope = log_loss(values, target, is_asked, weights)
    is_asked[np.arange(7), target] = True
    share = np.exp(values @ weights)
    share /= share.sum(axis=1, keepdims=True)
    expected = -np.log(share[np.arange(7), target]) - np.log((share * is_asked).sum(axis=1))
    assert loss == pytest.approx(expected.mean())
    for place in range(3):
        step = 1e-6 * np.eye(3)[place]
        ahead, behind = (
            log_loss(values, target, is_asked, weights + sign * step)[0] for sign in (1, -1)
        )
        assert slope[place] == pytest.approx((ahead - behind) / 2e-6, abs=1e-6)


def test_what_was_asked_for_holds_against_what_lifts_targets():
    """Half of the targets are lifted by a feature that lifts as much what nobody asked for."""
    rng = np.random.default_rng(1)
    is_asked = rng.random((400, 12)) < 0.3
    is_asked[:, 0] = True
    lifted = (rng.random((400, 12)) < 0.3).astype(np.float32)
    lifted[:, 0] = np.arange(400) % 2
    columns = [rng.normal(0, 0.1, (400, 12)) + is_asked, lifted]
    target = np.zeros(400, np.int32)
    share = []
    for mask in (anything(columns), is_asked):
        weights = fit_weights(columns, target, mask)[1]
        p = np.exp(columns[0] * weights[0] + columns[1] * weights[1])
        share.append(((p * is_asked).sum(axis=1) / p.sum(axis=1)).mean())
    assert share[1] > share[0] + 0.01


def test_fitted_weights_are_those_the_targets_were_drawn_with():
    rng = np.random.default_rng(0)
    columns = [rng.normal(size=(4_000, 12)).astype(np.float32) for _ in range(3)]
    truth = np.array([0.8, 1.5, -2.0])
    scores = sum(w * c for w, c in zip(truth, columns, strict=True))
    target = (scores + rng.gumbel(size=scores.shape)).argmax(axis=1)
    loss, weights, plain = fit_weights(columns, target, anything(columns))
    np.testing.assert_allclose(weights, truth, atol=0.1)
    assert loss < plain
    alone = columns[0] - np.log(np.exp(columns[0]).sum(axis=1, keepdims=True))
    assert plain == pytest.approx(-alone[np.arange(4_000), target].mean(), abs=1e-2)


def fitted(repeats: bool, count: int = REQUESTS, **model_fields):
    """A prior fitted where every target is, or is not, of the user's own items."""
    users = [[[i % 30], [(i + 1) % 30], [(i + 2) % 30], [(i + 3) % 30]] for i in range(count)]
    histories = histories_of(users)
    requests = plain_requests(histories).take(np.arange(count))
    rng = np.random.default_rng(0)
    own = [
        histories.item[a:b]
        for a, b in zip(histories.offsets[:-1], requests.history_end, strict=True)
    ]
    others = [np.setdiff1d(np.arange(NUM_ITEMS), items) for items in own]
    target = [rng.choice(items) for items in (own if repeats else others)]
    requests = dataclasses.replace(requests, target=np.array(target, np.int32))
    return fit(histories, requests, **model_fields)


def many_prompts(count: int, seed: int = 2) -> dict[str, np.ndarray]:
    batch = prompts(seed=seed).items()
    return {name: np.resize(table, (count, *table.shape[1:])) for name, table in batch}


def fit(histories, requests: Requests, generator=None, told=None, **model_fields):
    """A prior fitted on `requests`, whose prompts have nothing to do with them."""
    if generator is None:
        model, tables = recommender(**model_fields)
        generator = Generator.create(model, tables, semantic_ids(), 1, GENERATION)
    vectors = np.random.default_rng(0).normal(size=(NUM_ITEMS, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    counts = Counts.make(plain_data(histories, NUM_ITEMS), vectors, 5)
    return fit_reranker(generator, many_prompts(len(requests)), requests, histories, counts, told)


def test_repeats_are_wanted_only_where_people_repeat():
    wanted, figures = fitted(True)
    assert wanted.weights.of["repeat_count"][0] > 0.5
    assert figures["prior_loss"] < figures["model_loss"] and figures["prior_targets"] == REQUESTS
    unwanted, _ = fitted(False)
    assert unwanted.weights.of["repeat_count"][0] < -0.5


def test_what_was_taken_lately_is_wanted_only_where_it_is_taken_again():
    """A user a day; each takes what the one of the day before took first, or never does."""
    rng = np.random.default_rng(0)
    items = rng.permuted(np.tile(np.arange(NUM_ITEMS), (200, 1)), axis=1)[:, :4]
    histories = histories_of([[[item] for item in row] for row in items.tolist()])
    day = np.repeat(np.arange(len(items)), items.shape[1])
    histories = dataclasses.replace(histories, time=(18_000 + day) * DAY)
    requests = plain_requests(histories).take(np.arange(1, len(items)))
    again = dataclasses.replace(requests, target=items[:-1, 0].astype(np.int32))
    prior, figures = fit(histories, again)
    assert prior.weights.of["week"][0] > 0.5
    assert figures["prior_loss"] < figures["model_loss"] - 0.2
    never = (items[:-1, 0] + rng.integers(1, NUM_ITEMS, len(items) - 1)) % NUM_ITEMS
    other, _ = fit(histories, dataclasses.replace(requests, target=never.astype(np.int32)))
    assert other.weights.of["week"][0] < 0.1


def test_what_instructions_say_counts_only_where_it_is_taken():
    histories = histories_of([[[i % 30], [(i + 1) % 30], [(i + 2) % 30]] for i in range(REQUESTS)])
    requests = plain_requests(histories).take(np.arange(REQUESTS))
    model, tables = recommender(has_item_head=True)
    generator = Generator.create(model, tables, semantic_ids(), 1, GENERATION)
    told = generator.told([""] * REQUESTS, many_prompts(REQUESTS, seed=5))
    every = np.tile(np.arange(NUM_ITEMS), (REQUESTS, 1))
    is_asked = generator.told_at(told, every)[..., 0] == 0
    assert 0.05 < is_asked.mean() < 0.9
    rng = np.random.default_rng(0)
    wanted = [rng.choice(np.flatnonzero(row)) for row in is_asked]
    of_any = rng.integers(0, NUM_ITEMS, REQUESTS)
    weights = []
    for target, given in ((wanted, told), (of_any, told), (wanted, None)):
        aimed = dataclasses.replace(requests, target=np.array(target, np.int32))
        weights.append(
            fit(histories, aimed, generator, given)[0].weights.of["instruction_score"][0]
        )
    assert weights[0] > 0.3 and weights[1] < weights[0] / 2 and weights[2] == 0


def test_what_is_asked_for_is_found_by_the_number_of_the_request():
    lists = [np.array([1, 2]), np.array([5])]
    allowed = AllowedItems.from_lists(lists, np.array([1, -1, 0], np.int32))
    candidates = np.array([[1, 5, 7], [1, 5, 7], [1, 5, 7]])
    found = satisfies_instruction(allowed, np.array([2, 0, 1]), candidates)
    np.testing.assert_array_equal(found, [[1, 0, 0], [0, 1, 0], [1, 1, 1]])
    assert satisfies_instruction(None, np.array([2, 0, 1]), candidates).all()


def test_a_target_far_behind_has_a_finite_loss():
    values = np.array([[[0.0, 0.0], [-800.0, 1.0]]])
    loss, slope = log_loss(values, np.array([1]), np.zeros((1, 2), bool), np.array([1.0, 0.0]))
    assert loss == pytest.approx(1_600) and np.isfinite(slope).all()


def test_each_task_has_weights_of_its_own_where_it_has_targets():
    """JustForYou and Query want what users had, Discover what they had not, Holiday is rare."""
    rng = np.random.default_rng(0)
    task = np.repeat([0, 1, 4, 6], [100, 100, 100, LEAST_TARGETS - 1])
    columns = [rng.normal(size=(len(task), 12)).astype(np.float32) for _ in range(3)]
    own = np.where(task == 4, -2.0, 1.0)
    scores = columns[0] + own[:, None] * columns[2]
    target = (scores + rng.gumbel(size=scores.shape)).argmax(axis=1)
    loss, common, _ = fit_weights(columns, target, anything(columns))
    by_task, losses = fit_by_task(columns, target, anything(columns), task, common)
    assert by_task.shape == (len(TASKS), 3)
    assert (by_task[[0, 1], 2] > 0.6).all() and by_task[4, 2] < -1.2
    np.testing.assert_array_equal(by_task[[2, 3, 5, 6]], np.tile(common, (4, 1)))
    assert losses.mean() < loss
    prior, figures = fitted(True, has_task_head=True)
    # Of one task alone its weights are at least as good as all tasks', whichever sigma is best.
    assert figures["prior_loss"] <= fitted(True)[1]["prior_loss"] + 1e-6
    assert all(len(prior.weights.of[name]) == len(TASKS) for name in FEATURES)
    assert figures["prior_own_JustForYou"] == prior.weights.of["repeat_count"][0]


def test_what_tells_nothing_of_a_task_has_no_weight_there():
    rng = np.random.default_rng(0)
    columns = [rng.normal(size=(200, 8)).astype(np.float32) for _ in range(2)]
    columns[1][100:] = -1  # the same of all items
    target = columns[1].argmax(axis=1).astype(np.int32)
    task = np.repeat([1, 3], 100).astype(np.int32)
    common = fit_weights(columns, target, anything(columns))[1]
    by_task, _ = fit_by_task(columns, target, anything(columns), task, common)
    assert by_task[1, 1] > 1 and abs(by_task[3, 1]) < 1e-9


def test_too_few_targets_leave_the_model_alone():
    prior, figures = fitted(True, count=8)
    assert prior.weights == RerankerWeights(GENERATION.sigma, dict.fromkeys(FEATURES, (0.0,)))
    assert figures == {"prior_targets": 8}


def test_a_model_without_knowledge_keeps_a_positive_weight():
    rng = np.random.default_rng(0)
    columns = [rng.normal(size=(200, 8)).astype(np.float32) for _ in range(3)]
    target = (columns[1] - columns[0]).argmax(axis=1)
    loss, weights, plain = fit_weights(columns, target, anything(columns))
    assert weights[0] == LEAST_TRUST and weights[1] > 1 and loss < plain


def test_saved_prior_is_the_same(tmp_path):
    histories = histories_of([[[1], [2], [3], [4]], [[3, 5], [2], [6], [7]]])
    vectors = np.linalg.qr(np.random.default_rng(0).normal(size=(30, 30)))[0]
    weights = RerankerWeights("deviation", dict.fromkeys(FEATURES, (0.5, -2.0)))
    prior = Reranker(weights, Counts.make(plain_data(histories), vectors, 4))
    prior.save(tmp_path)
    loaded = Reranker.load(tmp_path)
    assert loaded.weights == prior.weights
    requests = plain_requests(histories)
    mine, other = (p.counts.features(requests, histories) for p in (prior, loaded))
    jax.tree.map(np.testing.assert_array_equal, mine, other)
    for name in ("near.npz", "trends.npz"):
        whole = (tmp_path / name).read_bytes()
        spoilt = whole[:60] + b"?" * 60 + whole[120:]
        for part in (b"", b"no archive", whole[: len(whole) // 2], spoilt):
            (tmp_path / name).write_bytes(part)
            with pytest.raises(ValueError, match="damaged"):
                Reranker.load(tmp_path)
        (tmp_path / name).write_bytes(whole)
    (tmp_path / "prior.json").write_text(json.dumps({"sigma": 1.0, "of": {"covisitation": [1.0]}}))
    with pytest.raises(ValueError, match="damaged"):
        Reranker.load(tmp_path)
    (tmp_path / "prior.json").unlink()
    with pytest.raises(ValueError, match=r"prior\.json"):
        Reranker.load(tmp_path)


@pytest.mark.parametrize("changes", [{"neighbours": -1}, {"fit_requests": 0}])
def test_impossible_settings_are_named(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        RerankerConfig(**({"neighbours": 5, "fit_requests": 10} | changes))
