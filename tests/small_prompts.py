"""Plans, rows and batches of the small shop's records."""

import numpy as np
from shop_fixtures import changed_prompt

from sigma_jax.data.pipeline import open_shards
from sigma_jax.prompts.packing import batches
from sigma_jax.prompts.records import RECORDS, Record
from sigma_jax.prompts.sampling import draw_plan
from sigma_jax.schema import TASKS

V = 450  # vocabulary size, larger than the tokenizer's
EQUAL_WEIGHTS = np.ones(len(TASKS))


def make_batches(folder, shop, semantic_ids, config, **changes):
    """The batches of the records in `folder`."""
    arguments = {"seed": 5, "batch_rows": 4, **changes}
    return batches(folder, shop, semantic_ids, config, V, **arguments)


def visible(batch, row, index):
    """Indices of the tokens that the token at `index` sees, by a plain loop."""
    segment, branch, attach = (batch[name][row] for name in ("segment", "branch", "attach"))
    return [
        j
        for j in range(index + 1)
        if segment[j] == segment[index] > 0
        and (branch[j] == branch[index] or (branch[j] == 0 and j < attach[index]))
    ]


def without_shuffle(config, **changes):
    """The prompt config without shuffled sessions, with `changes`."""
    return changed_prompt(config, shuffle_sessions=False, **changes)


def one_row(config):
    """The prompt config with one context in each row, and rows that hold all of it."""
    return changed_prompt(
        config, row_tokens=400, row_targets=20, group_rows=1, contexts_per_group=1
    )


def drawn_plans(records, config, tables, instruction_tables, seed=0):
    """(record, plan) of every record."""
    source = open_shards(records, RECORDS)
    for number in range(len(source)):
        record = Record.from_bytes(source[number])
        rng = np.random.default_rng((seed, number))
        yield record, draw_plan(record, config, tables, instruction_tables, EQUAL_WEIGHTS, rng)


def end_row(shop, record, attach):
    """The row of the histories that follows a context of `attach` items of `record`."""
    histories = shop.histories
    first, last = histories.offsets[record.user], histories.valid_start[record.user]
    for start in range(first, last - len(record.item) + 1):
        same = np.array_equal(histories.item[start : start + len(record.item)], record.item)
        sessions = histories.session[start : start + len(record.item)]
        if same and np.array_equal(sessions - sessions[0], record.session):
            return start + attach
    raise AssertionError("the record is no part of the training rows")
