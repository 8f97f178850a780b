"""Training batches: contexts packed into rows.

Batch s is a function of (records, config, seed, s) alone: the order of records, draws and packing
do not depend on earlier batches, on threads or on the number of processes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import grain
import numpy as np
from jaxtyping import Int

from sigma_jax.data.pipeline import (
    first_fit,
    mixed_forever,
    open_shards,
    shuffled_forever,
    stack_rows,
    step_batches,
)
from sigma_jax.prompts.config import PromptConfig
from sigma_jax.prompts.instruction_pool import InstructionPool
from sigma_jax.prompts.layout import Example, Plan, fit_plan, lay_out, plan_size
from sigma_jax.prompts.records import NEW_RECORDS, RECORDS
from sigma_jax.prompts.sampling import plan_sampler, training_tables
from sigma_jax.prompts.tokens import PromptTables
from sigma_jax.schema import PreparedData, SemanticIds
from sigma_jax.tasks.constraints import NO_CONSTRAINT

TOKEN_FIELDS = ("token", "item", "position", "branch", "attach")


def batches(
    folder: Path,
    data: PreparedData,
    semantic_ids: SemanticIds,
    config: PromptConfig,
    vocab_size: int,
    seed: int,
    batch_rows: int,
    rows: Int[np.ndarray, " n"] | None = None,
    pool: InstructionPool | None = None,
    new_share: float = 0.0,
) -> grain.MapDataset:
    """Endless training batches from the records in `folder`; element s is the batch of step s.

    A batch is a dict of arrays, [B, T] by token and [B, N] by target:

    - token, item, position, segment, branch, attach: int32 [B, T], see Example. Segment numbers
      the contexts of a row from 1; 0 is padding.
    - target_item, target_task, target_constraint, start_position, query_position: int32 [B, N].
    - target_weight: float32 [B, N], 1 for a target, 0 for padding.
    - code_position: int32 [B, N, y].
    - dropped: int32 [B, 3], items of the context, targets and contexts without room in the row.

    Args:
      batch_rows: B of the global batch.
      rows: the rows of it to make; all of them by default.
      pool: the instructions, where the model reads their sentence vectors.
      new_share: of the contexts that are drawn from NEW_RECORDS of `folder` instead.

    Raises:
      ValueError: there are no records, or the SIDs have fewer levels than the prompts need.
    """
    packing = config.packing
    assert batch_rows % packing.group_rows == 0  # SftConfig checks it
    tables, instruction_tables = training_tables(data, semantic_ids, config, vocab_size, pool)
    sample = plan_sampler(config, tables, instruction_tables)

    def pack(plans: Sequence[Plan]) -> dict[str, np.ndarray]:
        return pack_group(plans, config, tables)

    order = shuffled_forever(open_shards(folder, RECORDS), seed)
    if new_share:
        new = shuffled_forever(open_shards(folder, NEW_RECORDS), seed)
        order = mixed_forever(order, new, new_share)
    plans = order.random_map(sample)
    # The length of an endless data set is near the largest integer, so it must not be rounded up.
    groups = plans.batch(packing.contexts_per_group, drop_remainder=True, batch_fn=pack)
    return step_batches(groups, packing.group_rows, batch_rows, stack_rows, rows)


def pack_group(
    plans: Sequence[Plan], config: PromptConfig, tables: PromptTables
) -> dict[str, np.ndarray]:
    """The arrays of one group of rows (see `batches`), filled with `plans`."""
    capacity = np.array([config.layout.row_tokens, config.packing.row_targets])
    sizes = np.array([(plan_size(plan, tables), len(plan.instruction)) for plan in plans])
    rows, grants = first_fit(sizes, capacity, config.packing.group_rows)
    group = Group.empty(config)
    fits = (grants == sizes).all(axis=1)
    for k, (plan, row) in enumerate(zip(plans, rows, strict=True)):
        is_ready = fits[k] and len(plan.instruction) > 0
        fitted = plan if is_ready else fit_plan(plan, tables, *grants[k].tolist())
        if fitted is not plan:
            group.count_dropped(row, plan, fitted)
        if fitted is not None:
            group.add(row, lay_out(fitted, tables))
    return group.arrays


@dataclasses.dataclass(frozen=True)
class Group:
    """Rows being filled."""

    arrays: dict[str, np.ndarray]
    used_tokens: Int[np.ndarray, " R"]  # of each row
    used_targets: Int[np.ndarray, " R"]

    @classmethod
    def empty(cls, config: PromptConfig) -> Group:
        """Rows without any context."""
        rows, tokens = config.packing.group_rows, config.layout.row_tokens
        targets = config.packing.row_targets
        arrays = {name: np.zeros((rows, tokens), np.int32) for name in (*TOKEN_FIELDS, "segment")}
        arrays["item"][:] = -1
        for name in ("target_item", "target_task", "start_position", "query_position"):
            arrays[name] = np.zeros((rows, targets), np.int32)
        arrays["target_constraint"] = np.full((rows, targets), NO_CONSTRAINT, np.int32)
        arrays["target_weight"] = np.zeros((rows, targets), np.float32)
        arrays["code_position"] = np.zeros((rows, targets, config.layout.sid_generated), np.int32)
        arrays["dropped"] = np.zeros((rows, 3), np.int32)
        return cls(arrays, np.zeros(rows, np.int64), np.zeros(rows, np.int64))

    def count_dropped(self, row: int, plan: Plan, fitted: Plan | None) -> None:
        """Adds to `dropped` the parts of `plan` that `fitted` lacks; None lacks all of them."""
        sizes = [
            (len(p.history) + len(p.favourites), len(p.instruction)) if p is not None else (0, 0)
            for p in (plan, fitted)
        ]
        dropped = (sizes[0][0] - sizes[1][0], sizes[0][1] - sizes[1][1], int(fitted is None))
        self.arrays["dropped"][row] += np.array(dropped, np.int32)

    def add(self, row: int, example: Example) -> None:
        """Puts `example` behind the contexts of `row`."""
        arrays, start, first = self.arrays, int(self.used_tokens[row]), int(self.used_targets[row])
        tokens = slice(start, start + len(example.token))
        is_branch = example.branch > 0
        # Places in the row and numbers of branches go on from the contexts before; context tokens
        # keep 0 in both.
        offset = {"attach": start, "branch": first}
        for name in TOKEN_FIELDS:
            values = getattr(example, name)
            arrays[name][row, tokens] = values + offset.get(name, 0) * is_branch
        arrays["segment"][row, tokens] = arrays["segment"][row].max(initial=0) + 1
        targets = slice(first, first + len(example.target))
        arrays["target_item"][row, targets] = example.target
        arrays["target_task"][row, targets] = example.task
        arrays["target_constraint"][row, targets] = example.constraint
        arrays["target_weight"][row, targets] = 1.0
        arrays["start_position"][row, targets] = example.start_position + start
        arrays["code_position"][row, targets] = example.code_position + start
        arrays["query_position"][row, targets] = example.query_position + start
        self.used_tokens[row] += len(example.token)
        self.used_targets[row] += len(example.target)
