"""Promises of sigma_jax/sft/trained.py."""

import dataclasses

import jax
import numpy as np
import pytest

from sigma_jax.generation.generate import Generator
from sigma_jax.schema import PreparedData
from sigma_jax.sft.instructions import TRAIN_PHRASINGS
from sigma_jax.sft.requests import make_requests
from sigma_jax.sft.trained import generation_config, load_recommender, prompts_of, told_by


@pytest.fixture(scope="module")
def loaded(trained):
    data = PreparedData.load(trained[1] / "data")
    recommender = load_recommender(trained[1], data)
    generator = Generator.create(
        recommender.model,
        recommender.tables,
        recommender.semantic_ids,
        recommender.config.prompt.sid_generated,
        generation_config(recommender.config, 4, batch_size=8),
        recommender.config.prompt.item_query,
    )
    requests = make_requests(data, "valid", 0, 5, 0.8, TRAIN_PHRASINGS)
    return data, recommender, generator, requests


def test_an_instruction_says_the_same_whoever_asks(loaded):
    """Each row is what the prompt of somebody without a history says."""
    data, recommender, generator, requests = loaded
    words = ["show me milk", "hidden gems for me please", "show me milk"]
    asked = dataclasses.replace(requests.take(np.arange(3)), instruction=words)
    told = recommender.told(generator, asked, data)
    nobody = dataclasses.replace(asked, user=np.full(3, -1, np.int32))
    prompts = prompts_of(nobody, data, recommender.prompt_tables, recommender.config.prompt)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), told, generator.told(prompts)
    )
    np.testing.assert_array_equal(told.queries[0], told.queries[2])
    assert np.abs(told.queries[0] - told.queries[1]).max() > 1e-3


def test_a_model_that_was_never_asked_without_a_history_is_not_asked_so(loaded):
    data, recommender, generator, requests = loaded
    tables, config = recommender.prompt_tables, recommender.config
    assert told_by(generator, requests, data, tables, config) is not None
    never = dataclasses.replace(config, prompt=dataclasses.replace(config.prompt, bare_share=0.0))
    assert told_by(generator, requests, data, tables, never) is None
    model = dataclasses.replace(config.model, has_open_query=False, reads_task=False)
    closed = dataclasses.replace(config, model=model, constraint_weight=0.0)
    assert told_by(generator, requests, data, tables, closed) is None


def test_the_choice_holds_what_the_prior_weighs(loaded):
    data, recommender, generator, requests = loaded
    choice = recommender.choice(generator, requests, data)
    columns = choice.features.values.shape[-1] + choice.table.shape[-1] + 1
    assert choice.weights.shape[1] == columns and choice.told is not None
    assert recommender.choice(generator, requests, data, uses_prior=False).features is None
