"""Promises of sigma_jax/recommender/trained.py."""

import dataclasses

import jax
import numpy as np
import pytest
from shop_fixtures import changed_prompt

from sigma_jax.evaluation.evaluator import make_generator
from sigma_jax.prompts.inference import make_prompts
from sigma_jax.recommender.trained import generation_config, load_recommender, told_by, word_table
from sigma_jax.reranking.instruction import INSTRUCTION_FEATURES
from sigma_jax.schema import PreparedData
from sigma_jax.tasks.instructions import SLOTS, TRAIN_WORDINGS, slot_value_texts
from sigma_jax.tasks.requests import make_requests


@pytest.fixture(scope="module")
def loaded(trained):
    data = PreparedData.load(trained[1] / "data")
    recommender = load_recommender(trained[1], data)
    settings = generation_config(recommender.config, 4, batch_size=8)
    generator = make_generator(recommender, settings)
    requests = make_requests(data, "valid", 0, 5, 0.8, TRAIN_WORDINGS)
    return data, recommender, generator, requests


def test_an_instruction_says_the_same_whoever_asks(loaded):
    """Each row is what the prompt of somebody without a history says."""
    data, recommender, generator, requests = loaded
    words = ["show me milk", "hidden gems for me please", "show me milk"]
    asked = dataclasses.replace(requests.take(np.arange(3)), instruction=words)
    told = recommender.told(generator, asked, data)
    nobody = dataclasses.replace(asked, user=np.full(3, -1, np.int32))
    prompts = make_prompts(nobody, data, recommender.prompt_tables)
    expected = generator.told(words, prompts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), told, expected)
    queries = told.answer.queries
    np.testing.assert_array_equal(queries[0], queries[2])
    assert np.abs(queries[0] - queries[1]).max() > 1e-3


def test_a_model_that_was_never_asked_without_a_history_is_not_asked_so(loaded):
    data, recommender, generator, requests = loaded
    tables, config = recommender.prompt_tables, recommender.config
    assert told_by(generator, requests, data, tables, config).answer is not None
    never = dataclasses.replace(
        config, prompt=changed_prompt(config.prompt, instruction_only_share=0.0)
    )
    told = told_by(generator, requests, data, tables, never)
    assert told.answer is None and len(told.words) == len(requests)
    model = dataclasses.replace(config.model, has_item_head=False, has_task_head=False)
    closed = dataclasses.replace(config, model=model, constraint_weight=0.0)
    assert told_by(generator, requests, data, tables, closed).answer is None


def test_the_choice_holds_what_the_prior_weighs(loaded):
    data, recommender, generator, requests = loaded
    choice = recommender.choice(generator, requests, data)
    columns = choice.features.values.shape[-1] + choice.table.shape[-1] + len(INSTRUCTION_FEATURES)
    assert choice.weights.shape[1] == columns and choice.told is not None
    assert recommender.choice(generator, requests, data, uses_prior=False).features is None


def test_words_are_those_of_queries_categories_and_themes(loaded):
    data, recommender, _, _ = loaded
    words = recommender.words
    asked = {
        word for task in SLOTS for text in slot_value_texts(data, task) for word in text.split()
    }
    assert words.of_items.shape[1] == len(data.catalogue)
    assert "tea" in words.numbers and set(words.numbers) <= asked
    assert words.trust[words.numbers["tea"]] > 0.3
    spoken = changed_prompt(recommender.config.prompt, branches_per_context=0)
    assert word_table(data, spoken) is None
