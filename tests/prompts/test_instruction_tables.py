"""Instructions of training: tokens of a wording joined to those of its slot value."""

import numpy as np
import pytest
from shop_fixtures import changed_prompt

from sigma_jax.prompts.instruction_tables import InstructionTables
from sigma_jax.prompts.tokens import PromptTables
from sigma_jax.schema import TASKS
from sigma_jax.tasks.instructions import (
    HELDOUT_WORDINGS,
    TRAIN_WORDINGS,
    render,
    slot_value_texts,
)

V = 450  # more than the tokenizer has


@pytest.fixture(scope="module")
def prompt_tables(shop, semantic_ids, config):
    return PromptTables.make(shop, semantic_ids, config.layout, V, True)


def test_joined_tokens_are_those_of_the_rendered_sentence(shop, prompt_tables, config):
    """A request's sentence becomes the same tokens as the instruction of training."""
    config = changed_prompt(config, instruction_tokens=60)
    for wordings in (TRAIN_WORDINGS, HELDOUT_WORDINGS):
        tables = InstructionTables.make(shop, prompt_tables, config, wordings=wordings)
        for task in TASKS:
            slot_values = slot_value_texts(shop, task) or [None]
            for number, wording in enumerate(wordings[task]):
                for slot_value, text in enumerate(slot_values):
                    sentence = render(task, text, wording)
                    expected = prompt_tables.tokenizer.encode([sentence], 60)[0]
                    joined = tables.tokens(task, slot_value, number)
                    assert joined.tolist() == expected.tolist(), sentence


def test_dropout_touches_the_wording_and_never_the_argument(shop, prompt_tables, config):
    dropping = changed_prompt(config, wording_dropout=0.5, instruction_tokens=60)
    tables = InstructionTables.make(shop, prompt_tables, dropping)
    rng, left_out, exchanged, count = np.random.default_rng(0), [], [], 0
    for number in range(200):
        wording = number % len(TRAIN_WORDINGS["Category"])
        complete = tables.tokens("Category", 1, wording)
        changed = tables.tokens("Category", 1, wording, rng)
        value, text = tables.slot_values["Category"].of(1).tolist(), changed.tolist()
        assert any(text[i : i + len(value)] == value for i in range(len(text)))
        left_out.append(len(complete) - len(changed))
        exchanged.append(sum(token not in complete for token in changed))
        count += len(complete) - len(value)
        assert len(tables.tokens("Discover", -1, wording, rng))
    for changes in (left_out, exchanged):  # a quarter of the wording each
        assert min(changes) == 0 and 0.2 < sum(changes) / count < 0.3
