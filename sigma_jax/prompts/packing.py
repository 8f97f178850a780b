"""Records to training batches: branches are drawn, contexts packed into rows.

Batch s is a function of (records, config, seed, s) and of nothing else: record order, draws and
packing do not depend on earlier batches, on threads or on the number of processes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import grain
import numpy as np
from jaxtyping import Float, Int

from sigma_jax.data.pipeline import (
    first_fit,
    open_shards,
    shuffled_forever,
    stack_rows,
    step_batches,
)
from sigma_jax.prompts.config import PromptConfig
from sigma_jax.prompts.layout import HISTORY_TASK, Example, Plan, fit, lay_out, plan_size
from sigma_jax.prompts.records import RECORDS, Record
from sigma_jax.prompts.tokens import PromptTables
from sigma_jax.schema import TASKS, PreparedData, SemanticIds
from sigma_jax.tasks import instructions
from sigma_jax.tasks.constraints import NONE

SAMPLED_CONTEXTS = 1_000
FILL = 0.9
MOST_DRAWN = 64  # of the items that satisfy an instruction, one of which is its target
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
) -> grain.MapDataset:
    """Endless training batches from the records in `folder`; element s is the batch of step s.

    A batch is a dict of arrays with `batch_rows` rows each, or `rows` of them: token, item,
    position, segment, branch, attach [B, T], target_item, target_task, target_constraint,
    target_weight, start_position, query_position [B, N], code_position [B, N, y], and `dropped`
    [B, 3]: items of context, targets and whole contexts that found no room in that row.

    Raises:
      ValueError: there are no records, or the SIDs have fewer levels than the prompts need.
    """
    assert batch_rows % config.pack_group_rows == 0  # told by SftConfig
    tables = PromptTables.make(data, semantic_ids, config, vocab_size)
    plan = planner(config, tables)

    def pack(plans: Sequence[Plan]) -> dict[str, np.ndarray]:
        return pack_group(plans, config, tables)

    order = shuffled_forever(open_shards(folder, RECORDS), seed)
    plans = order.random_map(plan)
    # Rounding the number of groups up would exceed what len() can tell of an endless data set.
    groups = plans.batch(config.contexts_per_group, drop_remainder=True, batch_fn=pack)
    return step_batches(groups, config.pack_group_rows, batch_rows, stack_rows, rows)


def planner(config: PromptConfig, tables: PromptTables):
    """The function of a stored record and a random generator that draws its plan."""
    task_weight = np.array([config.task_weights.get(task, 0.0) for task in TASKS])
    asked = bare_tasks(config, tables)

    def plan(record: bytes, rng: np.random.Generator) -> Plan:
        if asked and rng.random() < config.bare_share:
            return draw_bare_plan(asked, config, tables, rng)
        return draw_plan(Record.from_bytes(record), config, tables, task_weight, rng)

    return plan


def contexts_that_fit(
    folder: Path,
    data: PreparedData,
    semantic_ids: SemanticIds,
    config: PromptConfig,
    vocab_size: int,
) -> int:
    """Contexts of the records in `folder` that fill a group of rows, by the mean of a sample.

    A tenth of the tokens and targets stays free, so that hardly any context has to be cut.
    """
    tables = PromptTables.make(data, semantic_ids, config, vocab_size)
    plan, source = planner(config, tables), open_shards(folder, RECORDS)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, len(source), SAMPLED_CONTEXTS)
    plans = [plan(source[int(row)], rng) for row in rows]
    sizes = np.array([(plan_size(p, tables), len(p.instruction)) for p in plans]).mean(axis=0)
    room = np.array([config.row_tokens, config.row_targets]) * config.pack_group_rows
    return max(int((FILL * room / np.maximum(sizes, 1e-9)).min()), 1)


def draw_plan(
    record: Record,
    config: PromptConfig,
    tables: PromptTables,
    task_weight: Float[np.ndarray, " tasks"],
    rng: np.random.Generator,
) -> Plan:
    """A context with branches drawn from the record's candidates.

    Instructed branches: tasks by `task_weight`, inside a task all boundaries alike, inside a
    boundary all targets alike, none twice. History supervision: boundaries and targets at random.
    """
    count = config.branches_per_context if config.shared_contexts else 1
    chosen = _draw_candidates(record, config, task_weight, count, rng)
    length = record.length
    if not config.shared_contexts and len(chosen):
        length = int(record.attach[chosen[0]])
    attach, target = _draw_history_targets(record, config, length, rng)
    words = [_draw_instruction(record, k, config, tables, rng) for k in chosen]
    attach = np.concatenate([record.attach[chosen], attach])
    # What no branch can see is not worth its tokens.
    length = int(attach.max()) if len(attach) else length
    session = record.session[:length]
    history = record.item[:length]
    if config.shuffle_sessions:
        history = history[np.lexsort((rng.random(length), session))]
    bare = len(target)
    demanded = tables.constraints.number(record.task[chosen], record.slot_value[chosen])
    return Plan(
        tables.profile(record.user)[: config.profile_tokens],
        record.favourites[: config.num_favourites],
        history,
        session,
        words + [np.zeros(0, np.int32)] * bare,
        attach.astype(np.int32),
        np.concatenate([record.target[chosen], target]).astype(np.int32),
        np.concatenate([record.task[chosen], np.full(bare, HISTORY_TASK)]).astype(np.int32),
        np.concatenate([demanded, np.full(bare, NONE)]).astype(np.int32),
        np.concatenate([np.ones(len(chosen)), np.full(bare, config.history_weight)]).astype(
            np.float32
        ),
        has_target=True,
    )


def bare_tasks(config: PromptConfig, tables: PromptTables) -> dict[str, float]:
    """Share of each task that can be asked for without a history; {} where none has words to learn.

    By its weight and by the root of what it can be asked with: more words want more practice.
    """
    if not config.bare_share or not config.has_words:
        return {}
    weights = {
        task: config.task_weights.get(task, 0.0) * len(slot_values) ** 0.5
        for task, slot_values in tables.constraints.slot_values.items()
    }
    if not any(weights.get(task) for task in instructions.SLOTS):
        return {}
    total = sum(weights.values())
    return {task: weight / total for task, weight in weights.items() if weight > 0}


def draw_bare_plan(
    asked: Mapping[str, float], config: PromptConfig, tables: PromptTables, rng: np.random.Generator
) -> Plan:
    """Instructions and nothing else, as many as a row holds.

    Tasks by their share, the slot values of a task alike, and for a target one of the items that
    satisfy it, by popularity: so what words mean is learnt from far more of them than come up in
    the sessions of a batch.
    """
    names, shares = list(asked), np.array(list(asked.values()))
    words, target, task, demanded = [], [], [], []
    room = config.row_tokens
    while len(words) < config.row_targets:
        name = names[_drawn(shares, rng)]
        slot_values = tables.constraints.slot_values[name]
        slot_value = int(slot_values[rng.integers(0, len(slot_values))])
        phrasing = int(rng.integers(len(tables.phrasings[name])))
        said = tables.instruction(name, slot_value, phrasing, config.instruction_tokens, rng)
        room -= len(said) + tables.target_width
        if room < 0:
            break
        number = TASKS.index(name)
        constraint = tables.constraints.number_of(name, slot_value)
        fitting = tables.constraints.items.of(constraint)
        items = fitting[rng.integers(0, len(fitting), MOST_DRAWN)]
        words.append(said)
        target.append(items[_drawn(1.0 + tables.popularity[items], rng)])
        task.append(number)
        demanded.append(constraint)
    none, count = np.zeros(0, np.int32), len(words)
    return Plan(
        none,
        none,
        none,
        none,
        words,
        np.zeros(count, np.int32),
        *(np.asarray(column, np.int32) for column in (target, task, demanded)),
        np.ones(count, np.float32),
        has_target=True,
    )


def _drawn(weight: Float[np.ndarray, " n"], rng: np.random.Generator) -> int:
    """A number drawn by weight: as `rng.choice`, in a fifth of its time."""
    total = (weight / weight.sum()).cumsum()
    return int((total / total[-1]).searchsorted(rng.random(), side="right"))


def _draw_candidates(
    record: Record,
    config: PromptConfig,
    task_weight: np.ndarray,
    count: int,
    rng: np.random.Generator,
) -> Int[np.ndarray, " k"]:
    """Up to `count` candidates without repetition, drawn by weight."""
    weight = candidate_weights(record, task_weight, config.cold_start_weight)
    if not len(weight):
        return np.zeros(0, np.int64)
    # The first arrivals of exponential clocks are a draw by weight without repetition.
    with np.errstate(divide="ignore"):
        arrival = rng.exponential(size=len(weight)) / weight
    order = np.argsort(arrival)[:count]
    return order[np.isfinite(arrival[order])]


def candidate_weights(
    record: Record, task_weight: Float[np.ndarray, " tasks"], cold_start_weight: float
) -> Float[np.ndarray, " K"]:
    """Weights of the record's candidates: those of a task sum to the task's weight, its boundaries
    weigh alike (without history: `cold_start_weight` of the others), as do a boundary's targets."""
    if not len(record.task):
        return np.zeros(0)
    group = record.attach.astype(np.int64) * len(TASKS) + record.task
    # Candidates come sorted by attach and task: a group is a run.
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


def _draw_instruction(
    record: Record, k: int, config: PromptConfig, tables: PromptTables, rng: np.random.Generator
) -> np.ndarray:
    task = TASKS[record.task[k]]
    phrasing = int(rng.integers(len(tables.phrasings[task])))
    slot_value, most = int(record.slot_value[k]), config.instruction_tokens
    return tables.instruction(task, slot_value, phrasing, most, rng)


def _draw_history_targets(
    record: Record, config: PromptConfig, length: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(attach, target) of history supervision at boundaries 1..length, in order of attach.

    Worked example, sessions [a b][c d e][f], two targets a boundary: after b two of c d e, after
    e the target f; of all these `history_targets` are kept at random.
    """
    session = record.session
    # First item of each item's session: a branch for the item is attached before that.
    begin = np.searchsorted(session, session)
    key = rng.random(len(session))
    order = np.lexsort((key, begin))
    rank = np.arange(len(order)) - begin[order]
    usable = (begin[order] > 0) & (begin[order] <= length) & (rank < config.targets_per_boundary)
    places = order[usable]
    if len(places) > config.history_targets:
        places = rng.permutation(places)[: config.history_targets]
        places = places[np.argsort(begin[places], kind="stable")]
    return begin[places], record.item[places]


def pack_group(
    plans: Sequence[Plan], config: PromptConfig, tables: PromptTables
) -> dict[str, np.ndarray]:
    """`plans` packed into one group of rows (see `batches` for the arrays)."""
    capacity = np.array([config.row_tokens, config.row_targets])
    sizes = np.array([(plan_size(plan, tables), len(plan.instruction)) for plan in plans])
    rows, grants = first_fit(sizes, capacity, config.pack_group_rows)
    group = Group.empty(config)
    is_whole = (grants == sizes).all(axis=1)
    for k, (plan, row) in enumerate(zip(plans, rows, strict=True)):
        is_ready = is_whole[k] and len(plan.instruction) > 0
        fitted = plan if is_ready else fit(plan, tables, *grants[k].tolist())
        if fitted is not plan:
            group.drop(row, plan, fitted)
        if fitted is not None:
            group.add(row, lay_out(fitted, tables))
    return group.arrays


@dataclasses.dataclass(frozen=True)
class Group:
    """Rows being filled. `used` and `targets` count what stands in each row already."""

    arrays: dict[str, np.ndarray]
    used: Int[np.ndarray, " R"]
    targets: Int[np.ndarray, " R"]

    @classmethod
    def empty(cls, config: PromptConfig) -> Group:
        rows, tokens, targets = config.pack_group_rows, config.row_tokens, config.row_targets
        arrays = {name: np.zeros((rows, tokens), np.int32) for name in (*TOKEN_FIELDS, "segment")}
        arrays["item"][:] = -1
        for name in ("target_item", "target_task", "start_position", "query_position"):
            arrays[name] = np.zeros((rows, targets), np.int32)
        arrays["target_constraint"] = np.full((rows, targets), NONE, np.int32)
        arrays["target_weight"] = np.zeros((rows, targets), np.float32)
        arrays["code_position"] = np.zeros((rows, targets, config.sid_generated), np.int32)
        arrays["dropped"] = np.zeros((rows, 3), np.int32)
        return cls(arrays, np.zeros(rows, np.int64), np.zeros(rows, np.int64))

    def drop(self, row: int, plan: Plan, fitted: Plan | None) -> None:
        """Counts what `fitted` lacks of `plan`; all of it where nothing was fitted."""
        sizes = [
            (len(p.history) + len(p.favourites), len(p.instruction)) if p is not None else (0, 0)
            for p in (plan, fitted)
        ]
        gone = (sizes[0][0] - sizes[1][0], sizes[0][1] - sizes[1][1], int(fitted is None))
        self.arrays["dropped"][row] += np.array(gone, np.int32)

    def add(self, row: int, example: Example) -> None:
        """Puts `example` behind what stands in `row`."""
        arrays, start = self.arrays, int(self.used[row])
        here = slice(start, start + len(example.token))
        is_branch = example.branch > 0
        offset = {"attach": start, "branch": int(self.targets[row])}
        for name in TOKEN_FIELDS:
            values = getattr(example, name)
            # Places in the row and numbers of branches go on from the contexts before; context
            # tokens keep 0 in both.
            arrays[name][row, here] = values + offset.get(name, 0) * is_branch
        arrays["segment"][row, here] = arrays["segment"][row].max(initial=0) + 1
        first = int(self.targets[row])
        there = slice(first, first + len(example.target))
        arrays["target_item"][row, there] = example.target
        arrays["target_task"][row, there] = example.task
        arrays["target_constraint"][row, there] = example.constraint
        arrays["target_weight"][row, there] = example.weight
        arrays["start_position"][row, there] = example.start_position + start
        arrays["code_position"][row, there] = example.code_position + start
        arrays["query_position"][row, there] = example.query_position + start
        self.used[row] += len(example.token)
        self.targets[row] += len(example.target)
