"""What training batches promise: no branch sees its target, order depends on (seed, step) only."""

import dataclasses

import numpy as np
import pytest
from shop_fixtures import changed_prompt

from sigma_jax.data.pipeline import open_shards, stack_rows
from sigma_jax.prompts.inference import assemble_prompts
from sigma_jax.prompts.layout import (
    HISTORY_TASK,
    Plan,
    branch_lengths,
    fit_plan,
    lay_out,
    plan_size,
)
from sigma_jax.prompts.packing import batches, pack_group
from sigma_jax.prompts.records import RECORDS, Record
from sigma_jax.prompts.sampling import (
    contexts_that_fit,
    draw_instruction_only_plan,
    draw_plan,
    instruction_only_tasks,
    plan_sampler,
    target_weights,
    training_tables,
)
from sigma_jax.schema import TASKS, Requests
from sigma_jax.tasks.instructions import slot_value_texts

V = 450  # more than the tokenizer has
WEIGHT = np.ones(len(TASKS))


def make(folder, shop, semantic_ids, config, **changes):
    arguments = {"seed": 5, "batch_rows": 4, **changes}
    return batches(folder, shop, semantic_ids, config, V, **arguments)


def visible(batch, row, index):
    """Indices that the token at `index` sees: the mask of branches, spelt out."""
    segment, branch, attach = (batch[name][row] for name in ("segment", "branch", "attach"))
    return [
        j
        for j in range(index + 1)
        if segment[j] == segment[index] > 0
        and (branch[j] == branch[index] or (branch[j] == 0 and j < attach[index]))
    ]


def plain(config, **changes):
    return changed_prompt(config, shuffle_sessions=False, **changes)


def drawn_plans(records, config, tables, instruction_tables, seed=0):
    """(record, plan) of every record."""
    source = open_shards(records, RECORDS)
    for number in range(len(source)):
        record = Record.from_bytes(source[number])
        rng = np.random.default_rng((seed, number))
        yield record, draw_plan(record, config, tables, instruction_tables, WEIGHT, rng)


def end_row(shop, record, attach):
    """The row of the histories before which a context of `attach` items of `record` ends."""
    histories = shop.histories
    first, last = histories.offsets[record.user], histories.valid_start[record.user]
    for start in range(first, last - len(record.item) + 1):
        same = np.array_equal(histories.item[start : start + len(record.item)], record.item)
        sessions = histories.session[start : start + len(record.item)]
        if same and np.array_equal(sessions - sessions[0], record.session):
            return start + attach
    raise AssertionError("the record is no part of the training rows")


ID_ONLY = {"sid_in_prompt": 0, "sid_generated": 0}
SID_ONLY = {
    "sid_in_prompt": 3,
    "slot_in_prompt": False,
    "sid_generated": 3,
    "item_query": "none",
}


NO_QUERY_TOKEN = {"item_query": "code"}


@pytest.mark.parametrize(
    "shared, parts",
    [(True, {}), (False, {}), (1, ID_ONLY), (1, SID_ONLY), (1, NO_QUERY_TOKEN)],
)
def test_each_branch_with_its_context_is_the_prompt_of_that_cut(
    records, shop, semantic_ids, config, shared, parts
):
    """Token by token, position by position, where the window begins at the same row."""
    changes = {} if shared else {"branches_per_context": 1, "history_targets": 0}
    config = plain(config, num_favourites=0, history_length=100, **changes, **parts)
    tables, instruction_tables = training_tables(shop, semantic_ids, config, V)
    compared = [0, 0]
    for record, plan in drawn_plans(records, config, tables, instruction_tables):
        group = pack_group([plan], config_one(config), tables)
        start = end_row(shop, record, 0)
        if start != shop.histories.offsets[record.user]:
            continue  # the request's prompt would begin earlier than the window
        for k in np.flatnonzero(group["target_weight"][0]):
            is_bare = group["target_task"][0, k] == HISTORY_TASK
            query = group["query_position"][0, k]
            seen = visible(group, 0, query)
            codes = config.layout.sid_generated
            attach = int(plan.attach[k])
            text = "" if is_bare else tables.tokenizer.tokenizer.decode(plan.instruction[k])
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
            compared[int(is_bare)] += 1
    assert min(compared) > 20 or not shared


def test_without_a_query_token_history_supervision_needs_no_branch(shop, semantic_ids, config):
    """The worked example of `lay_out`, and a target that does not stand next."""
    config = plain(config, session_marker=False, sid_in_prompt=1, sid_generated=1, **NO_QUERY_TOKEN)
    tables = dataclasses.replace(
        training_tables(shop, semantic_ids, config, V)[0], history_text=np.zeros(0, np.int32)
    )
    words, bare = np.array([7, 9], np.int32), np.zeros(0, np.int32)
    numbers = np.zeros(3, np.int32)
    plan = Plan(
        profile=bare,
        favourites=bare,
        history=np.array([5, 8], np.int32),
        session=np.array([0, 1], np.int32),
        instruction=[bare, bare, words],
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


def config_one(config):
    """One context in one row with room for all."""
    return changed_prompt(
        config, row_tokens=400, row_targets=20, group_rows=1, contexts_per_group=1
    )


def test_favourites_and_window_are_those_of_the_prompt(records, shop, semantic_ids, config):
    """A branch at the end of its window equals a prompt made for its end, favourites too."""
    config = plain(config, history_targets=0, branches_per_context=1)
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
    """What a target's tokens see are items of the rows before its boundary, and nothing more."""
    tables, instruction_tables = training_tables(shop, semantic_ids, config, V)
    histories, checked = shop.histories, 0
    for record, plan in drawn_plans(records, config, tables, instruction_tables):
        group = pack_group([plan], config_one(config), tables)
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
            # The target is in the session that starts at the boundary.
            end = histories.session_end(history_end, record.user)
            assert group["target_item"][0, k] in histories.item[history_end:end]
            assert end <= histories.valid_start[record.user]
            checked += 1
    assert checked > 100


def test_history_branches_predict_from_the_last_context_token(records, shop, semantic_ids, config):
    tables, instruction_tables = training_tables(shop, semantic_ids, config, V)
    seen = 0
    for _, plan in drawn_plans(records, config, tables, instruction_tables):
        group = pack_group([plan], config_one(config), tables)
        for k in np.flatnonzero(group["target_task"][0] == HISTORY_TASK):
            codes, query = group["code_position"][0, k], group["query_position"][0, k]
            assert codes[0] == group["attach"][0, query] - 1
            assert group["branch"][0, codes[0]] == 0
            assert codes[1:].tolist() == list(range(query - config.layout.sid_generated, query - 1))
            assert group["position"][0, query] == codes[0] + config.layout.sid_generated + 1
            assert group["target_weight"][0, k] == 1
            seen += 1
    assert seen > 20


def test_batch_depends_on_seed_and_step_only(records, shop, semantic_ids, config):
    forward = make(records, shop, semantic_ids, config)
    again = make(records, shop, semantic_ids, config)
    ahead = [forward[step] for step in range(6)]
    for step in (5, 0, 3):
        assert_same(again[step], ahead[step])
    loader = forward.to_iter_dataset()
    for step, batch in zip(range(6), loader, strict=False):
        assert_same(batch, ahead[step])
    other = make(records, shop, semantic_ids, config, seed=6)[0]
    assert not np.array_equal(other["token"], ahead[0]["token"])


def test_processes_together_make_the_batch(records, shop, semantic_ids, config):
    whole = make(records, shop, semantic_ids, config, batch_rows=8)
    parts = [
        make(records, shop, semantic_ids, config, batch_rows=8, rows=rows)
        for rows in np.split(np.arange(8), [1, 2, 6])
    ]
    for step in (0, 7):
        assert_same(stack_rows([part[step] for part in parts]), whole[step])


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert np.array_equal(one[name], other[name]), name


@pytest.mark.parametrize("row_tokens", [60, 90, 400])
def test_packing_loses_nothing_uncounted(records, shop, semantic_ids, config, row_tokens):
    config = changed_prompt(
        config, row_tokens=row_tokens, row_targets=row_tokens // 10, contexts_per_group=5
    )
    tables, instruction_tables = training_tables(shop, semantic_ids, config, V)
    plans = [plan for _, plan in drawn_plans(records, config, tables, instruction_tables)]
    lost = 0
    for begin in range(0, len(plans) - 5, 5):
        group = pack_group(plans[begin : begin + 5], config, tables)
        chosen = plans[begin : begin + 5]
        dropped = group["dropped"].sum(axis=0)
        items = sum(len(plan.history) + len(plan.favourites) for plan in chosen)
        assert (group["item"] >= 0).sum() == items - dropped[0]
        targets = sum(len(plan.attach) for plan in chosen)
        assert (group["target_weight"] > 0).sum() == targets - dropped[1]
        assert sum(row.max() for row in group["segment"]) == 5 - dropped[2]
        lost += dropped[0]
    assert (lost > 0) == (row_tokens < 400)


def test_as_many_contexts_as_fit_fill_the_rows_and_lose_little(records, shop, semantic_ids, config):
    config = changed_prompt(
        config, row_tokens=320, row_targets=40, group_rows=8, contexts_per_group=0
    )
    count = contexts_that_fit(records, shop, semantic_ids, config, V)
    config = changed_prompt(config, contexts_per_group=count)
    data = make(records, shop, semantic_ids, config, batch_rows=8)
    used, targets, dropped = 0.0, 0.0, 0
    for step in range(12):
        batch = data[step]
        used += (batch["segment"] > 0).mean() / 12
        targets += (batch["target_weight"] > 0).mean() / 12
        dropped += batch["dropped"][:, 2].sum()
    assert 0.75 < max(used, targets) <= 1.0
    assert dropped < 0.02 * 12 * count


def test_rows_hold_whole_contexts_side_by_side(records, shop, semantic_ids, config):
    """A packed context equals the same context alone, moved."""
    tables, instruction_tables = training_tables(shop, semantic_ids, config, V)
    plans = [plan for _, plan in drawn_plans(records, config, tables, instruction_tables)][:3]
    row = pack_group(plans, changed_prompt(config_one(config), row_tokens=600), tables)
    for plan in plans:
        example = lay_out(plan, tables)
        starts = [
            i
            for i in range(600 - len(example.token))
            if np.array_equal(row["token"][0, i : i + len(example.token)], example.token)
            and np.array_equal(row["position"][0, i : i + len(example.token)], example.position)
        ]
        assert len(starts) == 1
        places = slice(starts[0], starts[0] + len(example.token))
        assert len(set(row["segment"][0, places])) == 1
        branched = example.branch > 0
        assert np.array_equal(row["attach"][0, places], (example.attach + starts[0]) * branched)


def test_task_mixture_follows_its_weights(records, shop, semantic_ids, config):
    weights = {"JustForYou": 3.0, "Category": 1.0}
    changed = changed_prompt(
        config, task_weights=weights, branches_per_context=1, history_targets=0
    )
    data = make(records, shop, semantic_ids, changed, batch_rows=64)
    batch = stack_rows([data[step] for step in range(8)])
    tasks = batch["target_task"][batch["target_weight"] > 0]
    count = np.bincount(tasks, minlength=8)
    assert count[[1, 3, 4, 5, 6, 7]].sum() == 0
    assert 0.68 < count[0] / count.sum() < 0.82


def test_target_weights_worked_example():
    record = Record(
        0, 2, *[np.zeros(0, np.int32)] * 3, np.array([1, 1, 2]), np.array([0, 0, 0]), *[None] * 2
    )
    weight = np.zeros(7)
    weight[0] = 2.0
    assert np.allclose(target_weights(record, weight, 1.0), [0.5, 0.5, 1.0])


def test_instructions_without_a_history_fill_rows_and_are_satisfied(
    records, shop, semantic_ids, config
):
    config = plain(config, instruction_only_share=0.5)
    tables, instruction_tables = training_tables(shop, semantic_ids, config, V)
    asked = instruction_only_tasks(config, instruction_tables)
    assert sum(asked.values()) == pytest.approx(1.0)
    tail = {"Longtail": instruction_tables.constraints.slot_values["Longtail"]}
    silent = dataclasses.replace(instruction_tables.constraints, slot_values=tail)
    assert (
        instruction_only_tasks(config, dataclasses.replace(instruction_tables, constraints=silent))
        == {}
    )
    assert set(asked) == {"Query", "Category", "Season", "Holiday", "Longtail"}
    seen = set()
    for seed in range(20):
        plan = draw_instruction_only_plan(
            asked, config, instruction_tables, np.random.default_rng(seed)
        )
        assert plan_size(plan, tables) <= config.layout.row_tokens
        assert fit_plan(plan, tables, config.layout.row_tokens, config.packing.row_targets) is plan
        assert not len(plan.history) and not plan.attach.any()
        for words, task, target, demand in zip(
            plan.instruction, plan.task, plan.target, plan.constraint, strict=True
        ):
            seen.add(TASKS[task])
            assert target in instruction_tables.constraints.items.of(demand)
            said = tables.tokenizer.tokenizer.decode(words)
            first = instruction_tables.constraints.first_number[TASKS[task]]
            texts = slot_value_texts(shop, TASKS[task]) or [""]
            assert said.endswith(texts[demand - first]) or texts[demand - first] in said
        group = pack_group([plan], config_one(config), tables)
        place = int(group["query_position"][0, 0])
        tokens = group["token"][0, : place + 1].tolist()
        assert tokens[: len(plan.instruction[0])] == plan.instruction[0].tolist()
        assert len(tokens) == len(plan.instruction[0]) + config.layout.target_tokens
    assert {"Query", "Category"} <= seen
    source, plan_of = (
        open_shards(records, RECORDS),
        plan_sampler(config, tables, instruction_tables),
    )
    plans = [plan_of(source[n], np.random.default_rng(n)) for n in range(len(source))]
    assert 0.3 < np.mean([not plan.attach.any() for plan in plans]) < 0.75


def test_one_context_a_row(records, shop, semantic_ids, config):
    changed = changed_prompt(config, group_rows=1, contexts_per_group=1)
    batch = make(records, shop, semantic_ids, changed)[10**9]
    assert batch["segment"].max(axis=1).tolist() == [1] * 4


def test_settings_that_cannot_work_are_refused(shop, semantic_ids, config):
    for change, message in (
        ({"sid_generated": 4}, "sid_generated=4; use 0 to 3"),
        ({"history_length": 0}, "history_length=0; use 1 or more"),
        ({"row_tokens": 20}, "row_tokens=20"),
        ({"task_weights": {"Surprise": 1.0}}, "Surprise"),
    ):
        with pytest.raises(ValueError, match=message):
            training_tables(shop, semantic_ids, changed_prompt(config, **change), V)
    with pytest.raises(ValueError, match="the text tokenizer has"):
        training_tables(shop, semantic_ids, config, 100)
