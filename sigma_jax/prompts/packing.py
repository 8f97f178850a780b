"""Records to training batches: branches are drawn, contexts packed into rows.

Batch s is a function of (records, config, seed, s) and of nothing else: record order, draws and
packing do not depend on earlier batches, on threads or on the number of processes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import grain
import numpy as np
from jaxtyping import Float, Int, Int32

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
from sigma_jax.prompts.wordings import InstructionTables
from sigma_jax.schema import TASKS, PreparedData, SemanticIds
from sigma_jax.tasks import instructions
from sigma_jax.tasks.constraints import NONE

SAMPLED_CONTEXTS = 1_000
FILL = 0.9
SATISFYING_ITEMS_DRAWN = 64  # of an instruction; one of them becomes its target
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
    packing = config.packing
    assert batch_rows % packing.group_rows == 0  # SftConfig checks it
    tables, wordings = training_tables(data, semantic_ids, config, vocab_size)
    plan = planner(config, tables, wordings)

    def pack(plans: Sequence[Plan]) -> dict[str, np.ndarray]:
        return pack_group(plans, config, tables)

    order = shuffled_forever(open_shards(folder, RECORDS), seed)
    plans = order.random_map(plan)
    # Rounding the number of groups up would exceed what len() can tell of an endless data set.
    groups = plans.batch(packing.contexts_per_group, drop_remainder=True, batch_fn=pack)
    return step_batches(groups, packing.group_rows, batch_rows, stack_rows, rows)


def training_tables(
    data: PreparedData, semantic_ids: SemanticIds, config: PromptConfig, vocab_size: int
) -> tuple[PromptTables, InstructionTables]:
    """The tables that training contexts of `data` are made from."""
    has_instructions = config.has_instructions
    tables = PromptTables.make(data, semantic_ids, config.layout, vocab_size, has_instructions)
    return tables, InstructionTables.make(data, tables.tokenizer, config, vocab_size)


def planner(
    config: PromptConfig, tables: PromptTables, wordings: InstructionTables
) -> Callable[[bytes, np.random.Generator], Plan]:
    """The function of a stored record and a random generator that draws its plan."""
    task_weight = np.array([config.mixture.task_weights.get(task, 0.0) for task in TASKS])
    task_shares = instruction_only_tasks(config, wordings)

    def plan(record: bytes, rng: np.random.Generator) -> Plan:
        if task_shares and rng.random() < config.mixture.instruction_only_share:
            return draw_instruction_only_plan(task_shares, config, wordings, rng)
        return draw_plan(Record.from_bytes(record), config, tables, wordings, task_weight, rng)

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
    tables, wordings = training_tables(data, semantic_ids, config, vocab_size)
    plan, source = planner(config, tables, wordings), open_shards(folder, RECORDS)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, len(source), SAMPLED_CONTEXTS)
    plans = [plan(source[int(row)], rng) for row in rows]
    sizes = np.array([(plan_size(p, tables), len(p.instruction)) for p in plans]).mean(axis=0)
    packing = config.packing
    room = np.array([config.layout.row_tokens, packing.row_targets]) * packing.group_rows
    return max(int((FILL * room / np.maximum(sizes, 1e-9)).min()), 1)


def draw_plan(
    record: Record,
    config: PromptConfig,
    tables: PromptTables,
    wordings: InstructionTables,
    task_weight: Float[np.ndarray, " tasks"],
    rng: np.random.Generator,
) -> Plan:
    """A context with branches drawn from the targets of `record`.

    Instructed branches: tasks by `task_weight`, the boundaries of a task alike, the targets of a
    boundary alike, none twice. History supervision: boundaries and targets at random.
    """
    chosen = _draw_candidates(record, config, task_weight, rng)
    history_attach, history_target = _draw_history_targets(record, config, rng)
    instruction = [_draw_instruction(record, k, wordings, rng) for k in chosen]
    attach = np.concatenate([record.attach[chosen], history_attach])
    # An item that no branch can see is not worth its tokens.
    length = int(attach.max()) if len(attach) else record.length
    session = record.session[:length]
    history = record.item[:length]
    if config.mixture.shuffle_sessions:
        history = history[np.lexsort((rng.random(length), session))]
    count = len(history_target)
    constraint = wordings.constraints.number(record.task[chosen], record.slot_value[chosen])
    return Plan(
        tables.profile(record.user),
        record.favourites[: config.layout.num_favourites],
        history,
        session,
        instruction + [np.zeros(0, np.int32)] * count,
        attach.astype(np.int32),
        np.concatenate([record.target[chosen], history_target]).astype(np.int32),
        np.concatenate([record.task[chosen], np.full(count, HISTORY_TASK)]).astype(np.int32),
        np.concatenate([constraint, np.full(count, NONE)]).astype(np.int32),
        has_target=True,
    )


def instruction_only_tasks(config: PromptConfig, wordings: InstructionTables) -> dict[str, float]:
    """Share of each task among instructions without a history; {} if none has a slot to fill.

    A task counts by its weight times the root of the number of its slot values: more words need
    more practice.
    """
    if not config.has_instruction_only_contexts:
        return {}
    weights = {
        task: config.mixture.task_weights.get(task, 0.0) * len(slot_values) ** 0.5
        for task, slot_values in wordings.constraints.slot_values.items()
    }
    if not any(weights.get(task) for task in instructions.SLOTS):
        return {}
    total = sum(weights.values())
    return {task: weight / total for task, weight in weights.items() if weight > 0}


def draw_instruction_only_plan(
    task_shares: Mapping[str, float],
    config: PromptConfig,
    wordings: InstructionTables,
    rng: np.random.Generator,
) -> Plan:
    """As many instructions as a row holds, without a history.

    Tasks are drawn by their share, the slot values of a task alike, and the target by popularity
    among the items that satisfy the instruction. So the model learns the meaning of far more words
    than come up in the sessions of a batch.
    """
    names, shares = list(task_shares), np.array(list(task_shares.values()))
    instruction, target, task, constraint = [], [], [], []
    room = config.layout.row_tokens
    while len(instruction) < config.packing.row_targets:
        name = names[_drawn(shares, rng)]
        slot_values = wordings.constraints.slot_values[name]
        slot_value = int(slot_values[rng.integers(0, len(slot_values))])
        phrasing = int(rng.integers(len(wordings.phrasings[name])))
        tokens = wordings.tokens(name, slot_value, phrasing, rng)
        room -= len(tokens) + config.layout.target_tokens
        if room < 0:
            break
        number = wordings.constraints.number_of(name, slot_value)
        satisfying = wordings.constraints.items.of(number)
        items = satisfying[rng.integers(0, len(satisfying), SATISFYING_ITEMS_DRAWN)]
        instruction.append(tokens)
        target.append(items[_drawn(1.0 + wordings.popularity[items], rng)])
        task.append(TASKS.index(name))
        constraint.append(number)
    none = np.zeros(0, np.int32)
    return Plan(
        none,
        none,
        none,
        none,
        instruction,
        np.zeros(len(instruction), np.int32),
        *(np.asarray(column, np.int32) for column in (target, task, constraint)),
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
    rng: np.random.Generator,
) -> Int[np.ndarray, " k"]:
    """Numbers of up to `branches_per_context` targets of `record`, by weight, none twice."""
    weight = candidate_weights(record, task_weight, config.targets.cold_start_weight)
    if not len(weight):
        return np.zeros(0, np.int64)
    # The first arrivals of exponential clocks are a draw by weight without repetition.
    with np.errstate(divide="ignore"):
        arrival = rng.exponential(size=len(weight)) / weight
    order = np.argsort(arrival)[: config.mixture.branches_per_context]
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
    record: Record, k: int, wordings: InstructionTables, rng: np.random.Generator
) -> Int32[np.ndarray, " n"]:
    """Tokens of a random wording of the record's target number `k`."""
    task = TASKS[record.task[k]]
    phrasing = int(rng.integers(len(wordings.phrasings[task])))
    return wordings.tokens(task, int(record.slot_value[k]), phrasing, rng)


def _draw_history_targets(
    record: Record, config: PromptConfig, rng: np.random.Generator
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
    targets = config.targets
    is_inside = (begin[order] > 0) & (begin[order] <= record.length)
    places = order[is_inside & (rank < targets.history_targets_per_boundary)]
    if len(places) > targets.history_targets:
        places = rng.permutation(places)[: targets.history_targets]
        places = places[np.argsort(begin[places], kind="stable")]
    return begin[places], record.item[places]


def pack_group(
    plans: Sequence[Plan], config: PromptConfig, tables: PromptTables
) -> dict[str, np.ndarray]:
    """`plans` packed into one group of rows (see `batches` for the arrays)."""
    capacity = np.array([config.layout.row_tokens, config.packing.row_targets])
    sizes = np.array([(plan_size(plan, tables), len(plan.instruction)) for plan in plans])
    rows, grants = first_fit(sizes, capacity, config.packing.group_rows)
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
        rows, tokens = config.packing.group_rows, config.layout.row_tokens
        targets = config.packing.row_targets
        arrays = {name: np.zeros((rows, tokens), np.int32) for name in (*TOKEN_FIELDS, "segment")}
        arrays["item"][:] = -1
        for name in ("target_item", "target_task", "start_position", "query_position"):
            arrays[name] = np.zeros((rows, targets), np.int32)
        arrays["target_constraint"] = np.full((rows, targets), NONE, np.int32)
        arrays["target_weight"] = np.zeros((rows, targets), np.float32)
        arrays["code_position"] = np.zeros((rows, targets, config.layout.sid_generated), np.int32)
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
        arrays["target_weight"][row, there] = 1.0
        arrays["start_position"][row, there] = example.start_position + start
        arrays["code_position"][row, there] = example.code_position + start
        arrays["query_position"][row, there] = example.query_position + start
        self.used[row] += len(example.token)
        self.targets[row] += len(example.target)
