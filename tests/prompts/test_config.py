"""Settings of prompts that cannot work are refused, and the message names the field."""

import pytest
from shop_fixtures import changed_prompt

from sigma_jax.prompts.tokens import PromptTables


@pytest.mark.parametrize(
    "change, message",
    [
        ({"history_length": 0}, "prompt.layout.history_length=0; use 1 or more"),
        ({"sid_in_prompt": 0, "slot_in_prompt": False}, "leave no token for an item"),
        ({"item_query": "word"}, "prompt.layout.item_query='word' is unknown; use one of"),
        ({"sid_generated": 0, "item_query": "none"}, "leave nothing to predict"),
        ({"row_tokens": 20}, "prompt.layout.row_tokens=20; these prompts need"),
        ({"window_stride": 0}, "prompt.targets.window_stride=0; use 1 or more"),
        ({"task_weights": {"Surprise": 1.0}}, "prompt.mixture.task_weights names ['Surprise']"),
        ({"task_weights": {"Query": -1.0}}, "prompt.mixture.task_weights={'Query': -1.0}; use 0"),
        ({"wording_dropout": 1.0}, "prompt.mixture.wording_dropout=1.0; use less than 1"),
        ({"group_rows": 0}, "prompt.packing.group_rows=0; use 1 or more"),
    ],
)
def test_settings_that_cannot_work_are_refused(config, change, message):
    with pytest.raises(ValueError) as refused:
        changed_prompt(config, **change)
    assert message in str(refused.value)


def test_more_codes_than_sids_have_are_refused(config):
    with pytest.raises(ValueError, match="sid_generated=4; use 0 to 3"):
        changed_prompt(config, sid_generated=4).layout.check(3)


def test_a_tokenizer_with_more_tokens_than_the_backbone_is_refused(shop, semantic_ids, config):
    with pytest.raises(ValueError, match="the text tokenizer has"):
        PromptTables.make(shop, semantic_ids, config.layout, 100, has_instructions=True)


def test_without_instructions_only_the_next_item_is_trained(config):
    silent = changed_prompt(config, branches_per_context=0)
    assert not silent.has_instructions and not silent.has_instruction_only_contexts
    assert silent.trained_tasks == {"JustForYou": 1.0}
    assert silent.wordings["JustForYou"] == ("",)
