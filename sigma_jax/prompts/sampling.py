"""Plans of training contexts, drawn at random: targets, wordings, and their mixture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from sigma_jax.data.pipeline import open_shards
from sigma_jax.prompts.config import PromptConfig
from sigma_jax.prompts.instruction_pool import InstructionPool
from sigma_jax.prompts.instruction_tables import InstructionTables
from sigma_jax.prompts.layout import HISTORY_TASK, Plan, plan_size
from sigma_jax.prompts.records import RECORDS, Record
from sigma_jax.prompts.tokens import PromptTables
from sigma_jax.schema import TASKS, PreparedData, SemanticIds
from sigma_jax.tasks.constraints import NO_CONSTRAINT
from sigma_jax.tasks.instructions import SLOTS

SAMPLED_CONTEXTS = 1_000
FILLED_SHARE = 0.9  # of the tokens and targets of a group
ITEM_DRAWS = 64  # items drawn among those that satisfy an instruction; one becomes its target


def training_tables(
    data: PreparedData,
    semantic_ids: SemanticIds,
    config: PromptConfig,
    vocab_size: int,
    pool: InstructionPool | None = None,
) -> tuple[PromptTables, InstructionTables]:
    """The tables that training contexts of `data` are made from.

    Args:
      pool: the instructions, where the model reads their sentence vectors.

    Raises:
      ValueError: as `PromptTables.make`.
    """
    has_instructions = config.has_instructions
    tables = PromptTables.make(data, semantic_ids, config.layout, vocab_size, has_instructions)
    return tables, InstructionTables.make(data, tables, config, pool)


def plan_sampler(
    config: PromptConfig, tables: PromptTables, instruction_tables: InstructionTables
) -> Callable[[bytes, np.random.Generator], Plan]:
    """A function of a stored record and a random generator that draws a plan.

    A share of the plans, `instruction_only_share`, does not read the record.
    """
    task_weight = np.array([config.mixture.task_weights.get(task, 0.0) for task in TASKS])
    task_shares = instruction_only_tasks(config, instruction_tables)

    def sample(record: bytes, rng: np.random.Generator) -> Plan:
        if task_shares and rng.random() < config.mixture.instruction_only_share:
            return draw_instruction_only_plan(task_shares, config, instruction_tables, rng)
        return draw_plan(
            Record.from_bytes(record), config, tables, instruction_tables, task_weight, rng
        )

    return sample


def contexts_that_fit(
    folder: Path,
    data: PreparedData,
    semantic_ids: SemanticIds,
    config: PromptConfig,
    vocab_size: int,
    pool: InstructionPool | None = None,
) -> int:
    """The number of contexts that fill a group of rows, by the mean size of a sample.

    A tenth of the tokens and targets stays free, so that hardly any context has to be cut.

    Args:
      folder: holds the records.
      pool: as in `training_tables`.
    """
    tables, instruction_tables = training_tables(data, semantic_ids, config, vocab_size, pool)
    sample, source = plan_sampler(config, tables, instruction_tables), open_shards(folder, RECORDS)
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, len(source), SAMPLED_CONTEXTS)
    plans = [sample(source[int(number)], rng) for number in numbers]
    sizes = np.array([(plan_size(plan, tables), len(plan.instruction)) for plan in plans])
    packing = config.packing
    capacity = np.array([config.layout.row_tokens, packing.row_targets]) * packing.group_rows
    return max(int((FILLED_SHARE * capacity / np.maximum(sizes.mean(axis=0), 1e-9)).min()), 1)


def draw_plan(
    record: Record,
    config: PromptConfig,
    tables: PromptTables,
    instruction_tables: InstructionTables,
    task_weight: Float[np.ndarray, " tasks"],
    rng: np.random.Generator,
) -> Plan:
    """A context with branches drawn from the targets of `record`.

    Instructed branches are drawn by `target_weights`, without repetition. The boundaries and
    targets of history supervision are drawn uniformly.

    Args:
      task_weight: of each task in TASKS.
    """
    chosen = _draw_targets(record, config, task_weight, rng)
    history_attach, history_target = _draw_history_targets(record, config, rng)
    drawn = [
        instruction_tables.draw(TASKS[record.task[k]], int(record.slot_value[k]), rng)
        for k in chosen
    ]
    attach = np.concatenate([record.attach[chosen], history_attach])
    # Items that no branch sees are left out.
    length = int(attach.max()) if len(attach) else record.length
    session = record.session[:length]
    history = record.item[:length]
    if config.mixture.shuffle_sessions:
        history = history[np.lexsort((rng.random(length), session))]
    count = len(history_target)
    constraint = instruction_tables.constraints.numbers(
        record.task[chosen], record.slot_value[chosen]
    )
    return Plan(
        tables.profile(record.user),
        record.favourites[: config.layout.num_favourites],
        history,
        session,
        [tokens for tokens, _ in drawn] + [np.zeros(0, np.int32)] * count,
        np.array([row for _, row in drawn] + [-1] * count, np.int32),
        attach.astype(np.int32),
        np.concatenate([record.target[chosen], history_target]).astype(np.int32),
        np.concatenate([record.task[chosen], np.full(count, HISTORY_TASK)]).astype(np.int32),
        np.concatenate([constraint, np.full(count, NO_CONSTRAINT)]).astype(np.int32),
        has_target=True,
    )


def target_weights(
    record: Record, task_weight: Float[np.ndarray, " tasks"], cold_start_weight: float
) -> Float[np.ndarray, " K"]:
    """Weights of the record's targets.

    The targets of a task together have the task's weight. Its boundaries share it equally, but a
    boundary without a history has `cold_start_weight` times the weight of another. The targets of a
    boundary have equal weights.
    """
    if not len(record.task):
        return np.zeros(0)
    group = record.attach.astype(np.int64) * len(TASKS) + record.task
    # Targets are sorted by attach and task, so a group is a run.
    starts = np.flatnonzero(np.concatenate([[True], group[1:] != group[:-1]]))
    sizes = np.diff(starts, append=len(group))
    weight = np.where(record.attach == 0, cold_start_weight, 1.0) / np.repeat(sizes, sizes)
    total = np.bincount(record.task, weight, minlength=len(TASKS))
    return np.divide(
        weight * task_weight[record.task],
        total[record.task],
        out=np.zeros_like(weight),
        where=total[record.task] > 0,
    )


def _draw_targets(
    record: Record,
    config: PromptConfig,
    task_weight: np.ndarray,
    rng: np.random.Generator,
) -> Int[np.ndarray, " k"]:
    """Numbers of up to `branches_per_context` targets of `record`, by weight, none twice."""
    weight = target_weights(record, task_weight, config.targets.cold_start_weight)
    if not len(weight):
        return np.zeros(0, np.int64)
    # The first arrivals of exponential clocks are a draw by weight without repetition.
    with np.errstate(divide="ignore"):
        arrival = rng.exponential(size=len(weight)) / weight
    order = np.argsort(arrival)[: config.mixture.branches_per_context]
    return order[np.isfinite(arrival[order])]


def _draw_history_targets(
    record: Record, config: PromptConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(attach, target) of history supervision at boundaries 1..length, sorted by attach.

    Worked example, sessions [a b][c d e][f], two targets a boundary: after b two of c d e, after
    e the target f; of all these `history_targets` are kept at random.
    """
    session = record.session
    # First item of each item's session: a branch for the item is attached before that.
    begin = np.searchsorted(session, session)
    key = rng.random(len(session))
    order = np.lexsort((key, begin))
    rank = np.arange(len(order)) - begin[order]
    targets = config.targets
    is_inside = (begin[order] > 0) & (begin[order] <= record.length)
    places = order[is_inside & (rank < targets.history_targets_per_boundary)]
    if len(places) > targets.history_targets:
        places = rng.permutation(places)[: targets.history_targets]
        places = places[np.argsort(begin[places], kind="stable")]
    return begin[places], record.item[places]


def instruction_only_tasks(
    config: PromptConfig, instruction_tables: InstructionTables
) -> dict[str, float]:
    """Share of each task among instructions without a history; {} if no task has a slot to fill.

    The share of a task is proportional to its weight times the square root of the number of its
    slot values. More slot values need more examples.
    """
    if not config.has_instruction_only_contexts:
        return {}
    weights = {
        task: config.mixture.task_weights.get(task, 0.0) * len(slot_values) ** 0.5
        for task, slot_values in instruction_tables.constraints.slot_values.items()
    }
    if not any(weights.get(task) for task in SLOTS):
        return {}
    total = sum(weights.values())
    return {task: weight / total for task, weight in weights.items() if weight > 0}


def draw_instruction_only_plan(
    task_shares: Mapping[str, float],
    config: PromptConfig,
    instruction_tables: InstructionTables,
    rng: np.random.Generator,
) -> Plan:
    """As many instructions as a row holds, without a history.

    A task is drawn by its share, and one of its slot values uniformly. The target is drawn by
    popularity among the items that satisfy the instruction. So the model learns the meaning of far
    more words than occur in the sessions of a batch.
    """
    names, shares = list(task_shares), np.array(list(task_shares.values()))
    constraints = instruction_tables.constraints
    instruction, row, target, task, constraint = [], [], [], [], []
    free_tokens = config.layout.row_tokens
    while len(instruction) < config.packing.row_targets:
        name = names[_draw(shares, rng)]
        slot_values = constraints.slot_values[name]
        slot_value = int(slot_values[rng.integers(0, len(slot_values))])
        tokens, row_of_vector = instruction_tables.draw(name, slot_value, rng)
        free_tokens -= len(tokens) + config.layout.target_tokens
        if free_tokens < 0:
            break
        number = constraints.number(name, slot_value)
        satisfying = constraints.items.of(number)
        items = satisfying[rng.integers(0, len(satisfying), ITEM_DRAWS)]
        instruction.append(tokens)
        row.append(row_of_vector)
        target.append(items[_draw(1.0 + instruction_tables.popularity[items], rng)])
        task.append(TASKS.index(name))
        constraint.append(number)
    none = np.zeros(0, np.int32)
    columns: Any = (np.asarray(column, np.int32) for column in (target, task, constraint))
    return Plan(
        none,
        none,
        none,
        none,
        instruction,
        np.array(row, np.int32),
        np.zeros(len(instruction), np.int32),
        *columns,
        has_target=True,
    )


def _draw(weight: Float[np.ndarray, " n"], rng: np.random.Generator) -> int:
    """An index drawn by weight, equal to `rng.choice` in a fifth of its time."""
    total = (weight / weight.sum()).cumsum()
    return int((total / total[-1]).searchsorted(rng.random(), side="right"))
