"""Instructions of training: tokens of a wording joined to those of its slot value."""

import numpy as np
import pytest
from shop_fixtures import changed_prompt

from sigma_jax.prompts.tokens import PromptTokenizer
from sigma_jax.prompts.wordings import InstructionTables
from sigma_jax.schema import TASKS
from sigma_jax.tasks.instructions import (
    HELDOUT_PHRASINGS,
    TRAIN_PHRASINGS,
    render,
    slot_value_texts,
)

V = 450  # more than the tokenizer has


@pytest.fixture(scope="module")
def tokenizer(shop):
    return PromptTokenizer.load(shop, V)


def test_joined_tokens_are_those_of_the_rendered_sentence(shop, tokenizer, config):
    """A request's sentence becomes the same tokens as the instruction of training."""
    config = changed_prompt(config, instruction_tokens=60)
    for phrasings in (TRAIN_PHRASINGS, HELDOUT_PHRASINGS):
        wordings = InstructionTables.make(shop, tokenizer, config, V, phrasings)
        for task in TASKS:
            slot_values = slot_value_texts(shop, task) or [None]
            for number, phrasing in enumerate(phrasings[task]):
                for slot_value, text in enumerate(slot_values):
                    sentence = render(task, text, phrasing)
                    expected = tokenizer.encode([sentence], 60)[0]
                    joined = wordings.tokens(task, slot_value, number)
                    assert joined.tolist() == expected.tolist(), sentence


def test_dropout_touches_the_wording_and_never_the_argument(shop, tokenizer, config):
    dropping = changed_prompt(config, wording_dropout=0.5, instruction_tokens=60)
    wordings = InstructionTables.make(shop, tokenizer, dropping, V)
    rng, left_out, exchanged, count = np.random.default_rng(0), [], [], 0
    for number in range(200):
        phrasing = number % len(TRAIN_PHRASINGS["Category"])
        complete = wordings.tokens("Category", 1, phrasing)
        changed = wordings.tokens("Category", 1, phrasing, rng)
        value, text = wordings.slot_values["Category"].of(1).tolist(), changed.tolist()
        assert any(text[i : i + len(value)] == value for i in range(len(text)))
        left_out.append(len(complete) - len(changed))
        exchanged.append(sum(token not in complete for token in changed))
        count += len(complete) - len(value)
        assert len(wordings.tokens("Discover", -1, phrasing, rng))
    for changes in (left_out, exchanged):  # a quarter of the wording each
        assert min(changes) == 0 and 0.2 < sum(changes) / count < 0.3
