"""Promises of sigma_jax/reranking/reranker.py and fit.py."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from small_histories import histories_of, plain_data, plain_requests
from small_ranker import make_ranker, variants
from small_recommender import CONFIG, NUM_ITEMS, prompts, recommender

from sigma_jax.generation.beam import Prompts
from sigma_jax.recommender.fitting import sigmas_to_try
from sigma_jax.reranking.calibration import UNCALIBRATED, Calibration
from sigma_jax.reranking.features import RankingInputs
from sigma_jax.reranking.fit import (
    MIN_NETWORK_WEIGHT,
    MIN_TARGETS,
    fit_by_task,
    fit_reranker,
    fit_weights,
    fitted_values,
    log_loss,
    satisfies_instruction,
)
from sigma_jax.reranking.reranker import (
    FEATURES,
    FeatureTables,
    Reranker,
    RerankerConfig,
    RerankerWeights,
)
from sigma_jax.schema import DAY, TASKS, Requests
from sigma_jax.tasks.constraints import AllowedItems

REQUESTS = MIN_TARGETS + 10
GENERATION = dataclasses.replace(CONFIG, num_beams=30, num_retrieved=30, sigma=1.0, batch_size=3)


def all_satisfying(columns) -> np.ndarray:
    """`is_satisfying` of requests without a constraint."""
    return np.ones(columns[0].shape, bool)


def test_the_loss_is_that_of_the_definition_and_the_slope_is_its_gradient():
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=(7, 9, 3)), rng.normal(size=3)
    target, is_satisfying = rng.integers(0, 9, 7), rng.random((7, 9)) < 0.4
    loss, slope = log_loss(values, target, is_satisfying, weights)
    is_satisfying[np.arange(7), target] = True
    share = np.exp(values @ weights)
    share /= share.sum(axis=1, keepdims=True)
    expected = -np.log(share[np.arange(7), target]) - np.log((share * is_satisfying).sum(axis=1))
    assert loss == pytest.approx(expected.mean())
    for place in range(3):
        step = 1e-6 * np.eye(3)[place]
        ahead, behind = (
            log_loss(values, target, is_satisfying, weights + sign * step)[0] for sign in (1, -1)
        )
        assert slope[place] == pytest.approx((ahead - behind) / 2e-6, abs=1e-6)


def test_the_fit_keeps_items_that_satisfy_the_instruction_above_others():
    """A feature raises half of the targets, and as many items that do not satisfy."""
    rng = np.random.default_rng(1)
    is_satisfying = rng.random((400, 12)) < 0.3
    is_satisfying[:, 0] = True
    raised = (rng.random((400, 12)) < 0.3).astype(np.float32)
    raised[:, 0] = np.arange(400) % 2
    columns = [rng.normal(0, 0.1, (400, 12)) + is_satisfying, raised]
    target = np.zeros(400, np.int32)
    share = []
    for mask in (all_satisfying(columns), is_satisfying):
        weights = fit_weights(columns, target, mask)[1]
        p = np.exp(columns[0] * weights[0] + columns[1] * weights[1])
        share.append(((p * is_satisfying).sum(axis=1) / p.sum(axis=1)).mean())
    assert share[1] > share[0] + 0.01


def test_fitted_weights_are_those_that_the_targets_were_drawn_with():
    rng = np.random.default_rng(0)
    columns = [rng.normal(size=(4_000, 12)).astype(np.float32) for _ in range(3)]
    truth = np.array([0.8, 1.5, -2.0])
    scores = sum(w * c for w, c in zip(truth, columns, strict=True))
    target = (scores + rng.gumbel(size=scores.shape)).argmax(axis=1)
    loss, weights, plain = fit_weights(columns, target, all_satisfying(columns))
    np.testing.assert_allclose(weights, truth, atol=0.1)
    assert loss < plain
    alone = columns[0] - np.log(np.exp(columns[0]).sum(axis=1, keepdims=True))
    assert plain == pytest.approx(-alone[np.arange(4_000), target].mean(), abs=1e-2)


def fitted(repeats: bool, count: int = REQUESTS, **model_fields):
    """Weights and metrics, fitted on targets in the user's history, or on targets outside it."""
    users = [[[i % 30], [(i + 1) % 30], [(i + 2) % 30], [(i + 3) % 30]] for i in range(count)]
    histories = histories_of(users)
    requests = plain_requests(histories).take(np.arange(count))
    rng = np.random.default_rng(0)
    taken = [
        histories.item[a:b]
        for a, b in zip(histories.offsets[:-1], requests.history_end, strict=True)
    ]
    others = [np.setdiff1d(np.arange(NUM_ITEMS), items) for items in taken]
    target = [rng.choice(items) for items in (taken if repeats else others)]
    requests = dataclasses.replace(requests, target=np.array(target, np.int32))
    return fit(histories, requests, **model_fields)


def many_prompts(count: int, seed: int = 2) -> Prompts:
    """The small prompts, repeated to `count` rows."""
    batch = prompts(seed=seed).items()
    return Prompts(**{name: np.resize(table, (count, *table.shape[1:])) for name, table in batch})


def fit(histories, requests: Requests, ranker=None, instruction=None, **model_fields):
    """Weights and metrics, fitted on `requests`; the prompts are unrelated to the histories."""
    if ranker is None:
        ranker = make_ranker(*recommender(**model_fields), 1, GENERATION)
    vectors = np.random.default_rng(0).normal(size=(NUM_ITEMS, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    tables = FeatureTables.make(plain_data(histories, NUM_ITEMS), vectors, 5)
    sigmas = sigmas_to_try(GENERATION, 1, False)
    configs = [dataclasses.replace(GENERATION, sigma=sigma) for sigma in sigmas]
    plain = [RankingInputs()] * len(configs)
    answers = variants(ranker, many_prompts(len(requests)), 30 * 30, plain, configs)
    ranked = {
        sigma: (answer.items, answer.log_probs)
        for sigma, answer in zip(sigmas, answers, strict=True)
    }

    def features_of(rows, candidates):
        columns = tables.at(requests.take(rows), histories, candidates)
        if instruction is not None:
            inputs = jax.tree.map(lambda table: table[rows], instruction)
            columns += list(np.moveaxis(ranker.instruction_scores(inputs, candidates), -1, 0))
        return columns

    has_task_head = ranker.generator.has_task_head
    weights, _, metrics = fit_reranker(ranked, requests, features_of, None, has_task_head)
    return weights, metrics


@pytest.mark.slow
def test_repeat_count_has_a_positive_weight_only_if_people_repeat():
    repeating, metrics = fitted(True)
    assert repeating.of["repeat_count"][0] > 0.5
    assert (
        metrics["reranker_loss"] < metrics["network_loss"]
        and metrics["reranker_targets"] == REQUESTS
    )
    exploring, _ = fitted(False)
    assert exploring.of["repeat_count"][0] < -0.5


@pytest.mark.slow
def test_trending_has_a_positive_weight_only_if_trends_are_followed():
    """A user a day takes the first item of the user of the day before, or never takes it."""
    rng = np.random.default_rng(0)
    items = rng.permuted(np.tile(np.arange(NUM_ITEMS), (200, 1)), axis=1)[:, :4]
    histories = histories_of([[[item] for item in row] for row in items.tolist()])
    day = np.repeat(np.arange(len(items)), items.shape[1])
    histories = dataclasses.replace(histories, time=(18_000 + day) * DAY)
    requests = plain_requests(histories).take(np.arange(1, len(items)))
    again = dataclasses.replace(requests, target=items[:-1, 0].astype(np.int32))
    weights, metrics = fit(histories, again)
    assert weights.of["week"][0] > 0.5
    assert metrics["reranker_loss"] < metrics["network_loss"] - 0.2
    never = (items[:-1, 0] + rng.integers(1, NUM_ITEMS, len(items) - 1)) % NUM_ITEMS
    other, _ = fit(histories, dataclasses.replace(requests, target=never.astype(np.int32)))
    assert other.of["week"][0] < 0.1


@pytest.mark.slow
def test_instruction_score_has_a_weight_only_if_users_take_items_that_fit():
    histories = histories_of([[[i % 30], [(i + 1) % 30], [(i + 2) % 30]] for i in range(REQUESTS)])
    requests = plain_requests(histories).take(np.arange(REQUESTS))
    ranker = make_ranker(*recommender(has_item_head=True), 1, GENERATION)
    instruction = ranker.read_instructions([""] * REQUESTS, many_prompts(REQUESTS, seed=5))
    items = np.tile(np.arange(NUM_ITEMS), (REQUESTS, 1))
    is_fitting = ranker.instruction_scores(instruction, items)[..., 0] == 0
    assert 0.05 < is_fitting.mean() < 0.9
    rng = np.random.default_rng(0)
    fitting = [rng.choice(np.flatnonzero(row)) for row in is_fitting]
    random = rng.integers(0, NUM_ITEMS, REQUESTS)
    weights = []
    for target, given in ((fitting, instruction), (random, instruction), (fitting, None)):
        with_target = dataclasses.replace(requests, target=np.array(target, np.int32))
        fitted_weights, _ = fit(histories, with_target, ranker, given)
        weights.append(fitted_weights.of["instruction_score"][0])
    assert weights[0] > 0.3 and weights[1] < weights[0] / 2 and weights[2] == 0


def test_satisfies_instruction_reads_the_constraints_of_the_given_requests():
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


@pytest.mark.slow
def test_each_task_with_enough_targets_has_its_own_weights():
    """JustForYou and Query raise column 2, Discover lowers it, and Holiday has few targets."""
    rng = np.random.default_rng(0)
    task = np.repeat([0, 1, 4, 6], [100, 100, 100, MIN_TARGETS - 1])
    columns = [rng.normal(size=(len(task), 12)).astype(np.float32) for _ in range(3)]
    truth = np.where(task == 4, -2.0, 1.0)
    scores = columns[0] + truth[:, None] * columns[2]
    target = (scores + rng.gumbel(size=scores.shape)).argmax(axis=1)
    loss, common, _ = fit_weights(columns, target, all_satisfying(columns))
    by_task, losses = fit_by_task(columns, target, all_satisfying(columns), task, common)
    assert by_task.shape == (len(TASKS), 3)
    assert (by_task[[0, 1], 2] > 0.6).all() and by_task[4, 2] < -1.2
    np.testing.assert_array_equal(by_task[[2, 3, 5, 6]], np.tile(common, (4, 1)))
    assert losses.mean() < loss
    weights, metrics = fitted(True, has_task_head=True)
    # With one task only, its own weights are at least as good as common weights.
    assert metrics["reranker_loss"] <= fitted(True)[1]["reranker_loss"] + 1e-6
    assert all(len(weights.of[name]) == len(TASKS) for name in FEATURES)
    assert fitted_values(weights)["weight_repeat_count_JustForYou"] == weights.of["repeat_count"][0]


def test_a_feature_that_is_constant_in_a_task_has_no_weight_there():
    rng = np.random.default_rng(0)
    columns = [rng.normal(size=(200, 8)).astype(np.float32) for _ in range(2)]
    columns[1][100:] = -1  # equal for all items
    target = columns[1].argmax(axis=1).astype(np.int32)
    task = np.repeat([1, 3], 100).astype(np.int32)
    common = fit_weights(columns, target, all_satisfying(columns))[1]
    by_task, _ = fit_by_task(columns, target, all_satisfying(columns), task, common)
    assert by_task[1, 1] > 1 and abs(by_task[3, 1]) < 1e-9


def test_too_few_targets_give_weights_of_0():
    weights, metrics = fitted(True, count=8)
    assert weights == RerankerWeights(
        GENERATION.sigma, dict.fromkeys(FEATURES, (0.0,)), (UNCALIBRATED,)
    )
    assert metrics == {"reranker_targets": 8}


def test_a_network_that_predicts_badly_keeps_a_positive_weight():
    rng = np.random.default_rng(0)
    columns = [rng.normal(size=(200, 8)).astype(np.float32) for _ in range(3)]
    target = (columns[1] - columns[0]).argmax(axis=1)
    loss, weights, plain = fit_weights(columns, target, all_satisfying(columns))
    assert weights[0] == MIN_NETWORK_WEIGHT and weights[1] > 1 and loss < plain


def test_a_loaded_reranker_equals_the_saved_one_and_damage_is_an_error(tmp_path):
    histories = histories_of([[[1], [2], [3], [4]], [[3, 5], [2], [6], [7]]])
    vectors = np.linalg.qr(np.random.default_rng(0).normal(size=(30, 30)))[0]
    weights = RerankerWeights(
        "deviation",
        dict.fromkeys(FEATURES, (0.5, -2.0)),
        (Calibration(0.5, 2.0, 0.4, 1.0, 0.1, 0.7, 0.2, 8.0), UNCALIBRATED),
    )
    saved = Reranker(weights, FeatureTables.make(plain_data(histories), vectors, 4))
    saved.save(tmp_path)
    loaded = Reranker.load(tmp_path)
    assert loaded.weights == saved.weights
    requests = plain_requests(histories)
    before, after = (p.tables.features(requests, histories) for p in (saved, loaded))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    for name in ("embedding_neighbours.npz", "repeat_model.npz", "trends.npz"):
        whole = (tmp_path / name).read_bytes()
        damaged = whole[:60] + b"?" * 60 + whole[120:]
        for part in (b"", b"no archive", whole[: len(whole) // 2], damaged):
            (tmp_path / name).write_bytes(part)
            with pytest.raises(ValueError, match="damaged"):
                Reranker.load(tmp_path)
        (tmp_path / name).write_bytes(whole)
    (tmp_path / "reranker.json").write_text(
        json.dumps({"sigma": 1.0, "of": {"covisitation": [1.0]}})
    )
    with pytest.raises(ValueError, match="damaged"):
        Reranker.load(tmp_path)
    (tmp_path / "reranker.json").unlink()
    with pytest.raises(ValueError, match=r"reranker\.json"):
        Reranker.load(tmp_path)


@pytest.mark.parametrize("changes", [{"neighbours": -1}, {"fit_requests": 0}])
def test_an_error_names_impossible_settings(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        RerankerConfig(
            **(
                {
                    "neighbours": 5,
                    "fit_requests": 10,
                    "has_repeat_model": True,
                    "has_interactions": True,
                }
                | changes
            )
        )
