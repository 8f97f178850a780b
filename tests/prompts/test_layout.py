"""A branch with its context is the prompt of a request, and no branch sees its target."""

import dataclasses

import numpy as np
import pytest
from small_prompts import V, drawn_plans, end_row, one_row, visible, without_shuffle

from sigma_jax.prompts.inference import assemble_prompts
from sigma_jax.prompts.layout import HISTORY_TASK, Plan, branch_lengths, lay_out, plan_size
from sigma_jax.prompts.packing import pack_group
from sigma_jax.prompts.sampling import training_tables
from sigma_jax.schema import Requests

ID_ONLY = {"sid_in_prompt": 0, "sid_generated": 0}
SID_ONLY = {
    "sid_in_prompt": 3,
    "slot_in_prompt": False,
    "sid_generated": 3,
    "item_query": "none",
}


NO_QUERY_TOKEN = {"item_query": "code"}


@pytest.mark.parametrize(
    "has_many_branches, parts",
    [(True, {}), (False, {}), (True, ID_ONLY), (True, SID_ONLY), (True, NO_QUERY_TOKEN)],
)
def test_each_branch_with_its_context_is_the_prompt_of_its_request(
    records, shop, semantic_ids, config, has_many_branches, parts
):
    """Equal tokens and positions, for windows that begin at the user's first row."""
    changes = {} if has_many_branches else {"branches_per_context": 1, "history_targets": 0}
    config = without_shuffle(config, num_favourites=0, history_length=100, **changes, **parts)
    tables, instruction_tables = training_tables(shop, semantic_ids, config, V)
    compared = [0, 0]
    for record, plan in drawn_plans(records, config, tables, instruction_tables):
        group = pack_group([plan], one_row(config), tables)
        start = end_row(shop, record, 0)
        if start != shop.histories.offsets[record.user]:
            continue  # the request's prompt would begin earlier than the window
        for k in np.flatnonzero(group["target_weight"][0]):
            is_history = group["target_task"][0, k] == HISTORY_TASK
            query = group["query_position"][0, k]
            seen = visible(group, 0, query)
            codes = config.layout.sid_generated
            attach = int(plan.attach[k])
            text = "" if is_history else tables.tokenizer.tokenizer.decode(plan.instruction[k])
            one = np.array([0])
            request = Requests(np.array([record.user]), one + start + attach, one, one, one, [text])
            prompt = assemble_prompts(request, shop.histories, tables, 200)
            size = int(prompt["length"][0])
            has_query = config.layout.has_query_token
            assert len(seen) == size + codes + has_query
            for name in ("token", "item", "position"):
                got = group[name][0, seen]
                assert np.array_equal(got[:size], prompt[name][0, :size]), name
            code = tables.codes(group["target_item"][0, [k]], codes)[0]
            query_token = [tables.query_token] * has_query
            assert group["token"][0, seen[size:]].tolist() == [*code, *query_token]
            assert group["start_position"][0, k] == seen[size - 1]
            assert np.array_equal(group["position"][0, seen], np.arange(len(seen)))
            assert group["code_position"][0, k].tolist() == seen[size - 1 : size - 1 + len(code)]
            compared[int(is_history)] += 1
    assert min(compared) > 20 or not has_many_branches


def test_without_a_query_token_history_supervision_needs_no_branch(shop, semantic_ids, config):
    """The worked example of `lay_out`, and a target that is not the next item."""
    config = without_shuffle(
        config, session_marker=False, sid_in_prompt=1, sid_generated=1, **NO_QUERY_TOKEN
    )
    tables = dataclasses.replace(
        training_tables(shop, semantic_ids, config, V)[0], history_text=np.zeros(0, np.int32)
    )
    words, none = np.array([7, 9], np.int32), np.zeros(0, np.int32)
    numbers = np.zeros(3, np.int32)
    plan = Plan(
        profile=none,
        favourites=none,
        history=np.array([5, 8], np.int32),
        session=np.array([0, 1], np.int32),
        instruction=[none, none, words],
        instruction_row=np.full(3, -1, np.int32),
        attach=np.array([1, 1, 2], np.int32),
        target=np.array([8, 6, 4], np.int32),
        task=numbers,
        constraint=numbers,
        has_target=True,
    )
    assert branch_lengths(plan, tables).tolist() == [0, 1, 3]
    assert plan_size(plan, tables) == 8
    example = lay_out(plan, tables)
    c5, c8, c6, c4 = tables.codes(np.array([5, 8, 6, 4]), 1)[:, 0]
    slot = tables.slot_token
    assert example.token.tolist() == [c5, slot, c8, slot, c6, 7, 9, c4]
    assert example.branch.tolist() == [0, 0, 0, 0, 2, 3, 3, 3]
    assert example.attach.tolist() == [0, 0, 0, 0, 2, 4, 4, 4]
    assert example.position.tolist() == [0, 1, 2, 3, 2, 4, 5, 6]
    assert example.start_position.tolist() == [1, 1, 6]
    assert example.code_position.tolist() == [[1], [1], [6]]
    assert example.query_position.tolist() == [2, 4, 7]


def test_favourites_and_window_are_those_of_the_prompt(records, shop, semantic_ids, config):
    """A branch at the end of its window equals the prompt of a request made there."""
    config = without_shuffle(config, history_targets=0, branches_per_context=1)
    tables, instruction_tables = training_tables(shop, semantic_ids, config, V)
    with_favourites = 0
    for record, plan in drawn_plans(records, config, tables, instruction_tables):
        if not len(plan.attach) or plan.attach[0] != record.length:
            continue
        history_end = end_row(shop, record, record.length)
        text = tables.tokenizer.tokenizer.decode(plan.instruction[0])
        one = np.array([0])
        request = Requests(np.array([record.user]), np.array([history_end]), one, one, one, [text])
        prompt = assemble_prompts(request, shop.histories, tables, 200)
        example, size = lay_out(plan, tables), prompt["length"][0]
        assert size == len(example.token) - config.layout.sid_generated - 1
        for name in ("token", "item", "position"):
            assert np.array_equal(getattr(example, name)[:size], prompt[name][0, :size])
        with_favourites += len(plan.favourites) > 0
    assert with_favourites > 3


def test_no_branch_sees_its_target_session_or_a_later_row(records, shop, semantic_ids, config):
    """A target's tokens see the items of the rows before its session, and no others."""
    tables, instruction_tables = training_tables(shop, semantic_ids, config, V)
    histories, checked = shop.histories, 0
    for record, plan in drawn_plans(records, config, tables, instruction_tables):
        group = pack_group([plan], one_row(config), tables)
        begin = end_row(shop, record, 0)
        for k in np.flatnonzero(group["target_weight"][0]):
            items = group["item"][0, visible(group, 0, group["query_position"][0, k])]
            items = items[items >= 0]
            history_end = begin + int(plan.attach[k])
            known = histories.item[histories.offsets[record.user] : history_end]
            shown = histories.item[begin:history_end]
            favourite = len(plan.favourites)
            assert sorted(items[favourite:]) == sorted(shown)
            assert set(items[:favourite]) <= set(known[: begin - histories.offsets[record.user]])
            # The target is in the session that starts at the end of the history.
            end = histories.session_end(history_end, record.user)
            assert group["target_item"][0, k] in histories.item[history_end:end]
            assert end <= histories.valid_start[record.user]
            checked += 1
    assert checked > 100


def test_history_branches_predict_from_the_last_context_token(records, shop, semantic_ids, config):
    tables, instruction_tables = training_tables(shop, semantic_ids, config, V)
    seen = 0
    for _, plan in drawn_plans(records, config, tables, instruction_tables):
        group = pack_group([plan], one_row(config), tables)
        for k in np.flatnonzero(group["target_task"][0] == HISTORY_TASK):
            codes, query = group["code_position"][0, k], group["query_position"][0, k]
            assert codes[0] == group["attach"][0, query] - 1
            assert group["branch"][0, codes[0]] == 0
            assert codes[1:].tolist() == list(range(query - config.layout.sid_generated, query - 1))
            assert group["position"][0, query] == codes[0] + config.layout.sid_generated + 1
            assert group["target_weight"][0, k] == 1
            seen += 1
    assert seen > 20
