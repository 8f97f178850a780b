"""Batches depend on seed and step alone, and packing moves contexts without changing them."""

import numpy as np
import pytest
from shop_fixtures import changed_prompt
from small_prompts import V, drawn_plans, make_batches, one_row

from sigma_jax.data.pipeline import stack_rows
from sigma_jax.prompts.layout import lay_out
from sigma_jax.prompts.packing import pack_group
from sigma_jax.prompts.sampling import training_tables


def test_batch_depends_on_seed_and_step_only(records, shop, semantic_ids, config):
    forward = make_batches(records, shop, semantic_ids, config)
    again = make_batches(records, shop, semantic_ids, config)
    ahead = [forward[step] for step in range(6)]
    for step in (5, 0, 3):
        assert_same_batch(again[step], ahead[step])
    loader = forward.to_iter_dataset()
    for step, batch in zip(range(6), loader, strict=False):
        assert_same_batch(batch, ahead[step])
    other = make_batches(records, shop, semantic_ids, config, seed=6)[0]
    assert not np.array_equal(other["token"], ahead[0]["token"])


def test_processes_together_make_the_batch(records, shop, semantic_ids, config):
    global_batches = make_batches(records, shop, semantic_ids, config, batch_rows=8)
    parts = [
        make_batches(records, shop, semantic_ids, config, batch_rows=8, rows=rows)
        for rows in np.split(np.arange(8), [1, 2, 6])
    ]
    for step in (0, 7):
        assert_same_batch(stack_rows([part[step] for part in parts]), global_batches[step])


def assert_same_batch(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert np.array_equal(one[name], other[name]), name


@pytest.mark.parametrize("row_tokens", [60, 90, 400])
def test_packing_counts_all_that_it_drops(records, shop, semantic_ids, config, row_tokens):
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


def test_rows_hold_whole_contexts_side_by_side(records, shop, semantic_ids, config):
    """A packed context equals the same context alone, moved."""
    tables, instruction_tables = training_tables(shop, semantic_ids, config, V)
    plans = [plan for _, plan in drawn_plans(records, config, tables, instruction_tables)][:3]
    row = pack_group(plans, changed_prompt(one_row(config), row_tokens=600), tables)
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


def test_a_group_may_hold_one_context(records, shop, semantic_ids, config):
    changed = changed_prompt(config, group_rows=1, contexts_per_group=1)
    batch = make_batches(records, shop, semantic_ids, changed)[10**9]
    assert batch["segment"].max(axis=1).tolist() == [1] * 4
