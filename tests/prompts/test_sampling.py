"""Draws follow their weights, and an instruction's target satisfies it."""

import dataclasses

import numpy as np
import pytest
from shop_fixtures import changed_prompt
from small_prompts import V, make_batches, one_row, without_shuffle

from sigma_jax.data.pipeline import open_shards, stack_rows
from sigma_jax.prompts.layout import fit_plan, plan_size
from sigma_jax.prompts.packing import pack_group
from sigma_jax.prompts.records import RECORDS, Record
from sigma_jax.prompts.sampling import (
    contexts_that_fit,
    draw_instruction_only_plan,
    instruction_only_tasks,
    plan_sampler,
    target_weights,
    training_tables,
)
from sigma_jax.schema import TASKS
from sigma_jax.tasks.instructions import slot_value_texts


def test_contexts_that_fit_fill_the_rows_and_few_are_dropped(records, shop, semantic_ids, config):
    config = changed_prompt(
        config, row_tokens=320, row_targets=40, group_rows=8, contexts_per_group=0
    )
    count = contexts_that_fit(records, shop, semantic_ids, config, V)
    config = changed_prompt(config, contexts_per_group=count)
    data = make_batches(records, shop, semantic_ids, config, batch_rows=8)
    used, targets, dropped = 0.0, 0.0, 0
    for step in range(12):
        batch = data[step]
        used += (batch["segment"] > 0).mean() / 12
        targets += (batch["target_weight"] > 0).mean() / 12
        dropped += batch["dropped"][:, 2].sum()
    assert 0.75 < max(used, targets) <= 1.0
    assert dropped < 0.02 * 12 * count


def test_task_mixture_follows_its_weights(records, shop, semantic_ids, config):
    weights = {"JustForYou": 3.0, "Category": 1.0}
    changed = changed_prompt(
        config, task_weights=weights, branches_per_context=1, history_targets=0
    )
    data = make_batches(records, shop, semantic_ids, changed, batch_rows=64)
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
    config = without_shuffle(config, instruction_only_share=0.5)
    tables, instruction_tables = training_tables(shop, semantic_ids, config, V)
    shares = instruction_only_tasks(config, instruction_tables)
    assert sum(shares.values()) == pytest.approx(1.0)
    tail = {"Longtail": instruction_tables.constraints.slot_values["Longtail"]}
    without_slots = dataclasses.replace(instruction_tables.constraints, slot_values=tail)
    changed = dataclasses.replace(instruction_tables, constraints=without_slots)
    assert instruction_only_tasks(config, changed) == {}
    assert set(shares) == {"Query", "Category", "Season", "Holiday", "Longtail"}
    seen = set()
    for seed in range(20):
        plan = draw_instruction_only_plan(
            shares, config, instruction_tables, np.random.default_rng(seed)
        )
        assert plan_size(plan, tables) <= config.layout.row_tokens
        assert fit_plan(plan, tables, config.layout.row_tokens, config.packing.row_targets) is plan
        assert not len(plan.history) and not plan.attach.any()
        for tokens, task, target, number in zip(
            plan.instruction, plan.task, plan.target, plan.constraint, strict=True
        ):
            seen.add(TASKS[task])
            assert target in instruction_tables.constraints.items.of(number)
            instruction = tables.tokenizer.tokenizer.decode(tokens)
            first = instruction_tables.constraints.first_number[TASKS[task]]
            texts = slot_value_texts(shop, TASKS[task]) or [""]
            assert texts[number - first] in instruction
        group = pack_group([plan], one_row(config), tables)
        query_position = int(group["query_position"][0, 0])
        tokens = group["token"][0, : query_position + 1].tolist()
        assert tokens[: len(plan.instruction[0])] == plan.instruction[0].tolist()
        assert len(tokens) == len(plan.instruction[0]) + config.layout.target_tokens
    assert {"Query", "Category"} <= seen
    source = open_shards(records, RECORDS)
    sample = plan_sampler(config, tables, instruction_tables)
    plans = [sample(source[n], np.random.default_rng(n)) for n in range(len(source))]
    assert 0.3 < np.mean([not plan.attach.any() for plan in plans]) < 0.75
