"""The order of tokens in a prompt, and which parts are dropped when a prompt is too long.

    context = [profile text][favourites text, item slots][history text, item slots]
    branch  = [instruction slot][instruction text][c_1 .. c_y][q]

The layout says whether an instruction is a slot with its sentence vector, or text, or both. An item
slot is x code tokens (levels 1..x) and the slot token. A branch sees itself and the context
up to the place where it is attached. A history-supervision branch has no instruction. The layout
may leave out either part of a slot, and the codes or the query token of a branch.

A target needs no branch of its own in two cases:
- its branch has no tokens: the last visible token of the context predicts it;
- the last code is the item query, and a history-supervision target is the next item of the
  context: its codes are there already.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Int32

from sigma_jax.models.item_encoder import INSTRUCTION
from sigma_jax.prompts.tokens import PromptTables
from sigma_jax.schema import TASKS

HISTORY_TASK = len(TASKS)  # target_task of history supervision


@dataclasses.dataclass(frozen=True)
class Plan:
    """A context and its branches before they become tokens; K branches, n items of history."""

    profile: Int32[np.ndarray, " p"]
    favourites: Int32[np.ndarray, " f"]
    history: Int32[np.ndarray, " n"]  # items, oldest first
    session: Int32[np.ndarray, " n"]  # equal for the items of one session
    instruction: list[np.ndarray]  # tokens of each branch; empty for history supervision
    instruction_row: Int32[np.ndarray, " K"]  # of the vector in its slot; -1: there is no slot
    attach: Int32[np.ndarray, " K"]  # items of the history that the branch sees, 0..n
    target: Int32[np.ndarray, " K"]  # items
    task: Int32[np.ndarray, " K"]
    constraint: Int32[np.ndarray, " K"]  # numbers of tasks/constraints.py
    has_target: bool  # False: branches end with the instruction (prompts to generate from)


@dataclasses.dataclass(frozen=True)
class Example:
    """The tokens of a plan, positions counted from its own first token; n tokens, K targets."""

    token: Int32[np.ndarray, " n"]
    item: Int32[np.ndarray, " n"]  # -1 except at slots (models/item_encoder.py)
    position: Int32[np.ndarray, " n"]
    branch: Int32[np.ndarray, " n"]  # 0 for the context
    attach: Int32[np.ndarray, " n"]  # context tokens that the branch sees
    target: Int32[np.ndarray, " K"]
    task: Int32[np.ndarray, " K"]
    constraint: Int32[np.ndarray, " K"]
    start_position: Int32[np.ndarray, " K"]  # token that predicts the target
    code_position: Int32[np.ndarray, "K y"]  # tokens that predict its codes
    query_position: Int32[np.ndarray, " K"]  # of q, or else of the last code


def branch_lengths(plan: Plan, tables: PromptTables) -> Int[np.ndarray, " K"]:
    """Tokens of each branch."""
    target_tokens = tables.layout.target_tokens if plan.has_target else 0
    return _instruction_lengths(plan) + target_tokens * ~is_next_item(plan, tables)


def _instruction_lengths(plan: Plan) -> Int[np.ndarray, " K"]:
    return np.fromiter(map(len, plan.instruction), np.int64, len(plan.instruction))


def is_next_item(plan: Plan, tables: PromptTables) -> Bool[np.ndarray, " K"]:
    """Whether the codes of each target are the next tokens of the context: it needs no branch."""
    layout = tables.layout
    if (
        not plan.has_target
        or layout.has_query_token
        or not 0 < layout.sid_generated <= layout.sid_in_prompt
    ):
        return np.zeros(len(plan.attach), bool)
    following = np.append(plan.history, -1)[plan.attach]
    return (_instruction_lengths(plan) == 0) & (plan.attach > 0) & (following == plan.target)


def _history_ends(plan: Plan, tables: PromptTables) -> Int[np.ndarray, " n+1"]:
    """Tokens of the first r items of the history and of their session marks, r = 0..n."""
    is_session_end = np.ones(len(plan.history), np.int64)
    is_session_end[:-1] = plan.session[1:] != plan.session[:-1]
    width = tables.layout.item_tokens + is_session_end * len(tables.session_end)
    return np.concatenate([[0], np.cumsum(width)])


def plan_size(plan: Plan, tables: PromptTables) -> int:
    """Tokens of context and branches."""
    context = len(plan.profile) + int(_history_ends(plan, tables)[-1])
    if len(plan.favourites):
        context += len(tables.favourites_text)
        context += len(plan.favourites) * tables.layout.item_tokens
    if len(plan.history):
        context += len(tables.history_text)
    return context + int(branch_lengths(plan, tables).sum())


def _keep_branches(plan: Plan, is_kept: Bool[np.ndarray, " K"]) -> Plan:
    names = ("attach", "target", "task", "constraint", "instruction_row")
    arrays: dict[str, Any] = {name: getattr(plan, name)[is_kept] for name in names}
    kept = [tokens for tokens, keep in zip(plan.instruction, is_kept, strict=True) if keep]
    return dataclasses.replace(plan, instruction=kept, **arrays)


def _first_branches(plan: Plan, count: int) -> Plan:
    return _keep_branches(plan, np.arange(len(plan.instruction)) < count)


def fit_plan(plan: Plan, tables: PromptTables, max_tokens: int, max_targets: int) -> Plan | None:
    """`plan` cut to `max_tokens` and `max_targets`; None if no branch can stay.

    Parts are dropped in this order, as far as needed:
    1. the oldest items of the history, with the branches that would see none of it;
    2. favourites, the least frequent first;
    3. the end of the profile;
    4. the last item, which leaves instructions without a history;
    5. branches, the last first.
    """
    if len(plan.instruction) > max_targets:
        plan = _first_branches(plan, max_targets)

    def excess() -> int:
        return plan_size(plan, tables) - max_tokens

    if excess() <= 0:
        return plan if plan.instruction else None
    if len(plan.history):
        plan = _drop_oldest(plan, tables, excess())
    if excess() > 0 and len(plan.favourites):
        dropped = min(-(-excess() // tables.layout.item_tokens), len(plan.favourites))
        favourites = plan.favourites[: len(plan.favourites) - dropped]
        plan = dataclasses.replace(plan, favourites=favourites)
    if excess() > 0:
        profile = plan.profile[: max(len(plan.profile) - excess(), 0)]
        plan = dataclasses.replace(plan, profile=profile)
    if excess() > 0 and len(plan.history):
        plan = _keep_branches(plan, _instruction_lengths(plan) > 0)
        empty: dict[str, Any] = {"history": plan.history[:0], "session": plan.session[:0]}
        plan = dataclasses.replace(plan, attach=np.zeros_like(plan.attach), **empty)
    while plan.instruction and excess() > 0:
        plan = _first_branches(plan, len(plan.instruction) - 1)
    return plan if plan.instruction else None


def _drop_oldest(plan: Plan, tables: PromptTables, excess: int) -> Plan:
    """`plan` without its d oldest items, d the least that saves `excess` tokens.

    One branch that sees history stays, so d stops before the last of them would go. Branches
    without a history (attach 0) stand before the history and stay.
    """
    length = len(plan.history)
    ends = _history_ends(plan, tables)
    lengths = branch_lengths(plan, tables) * (plan.attach > 0)
    of_branches = np.cumsum(np.bincount(plan.attach, lengths, minlength=length + 1))
    saved = ends + of_branches.astype(np.int64)  # by dropping d items, d = 0..n
    saved[length] += len(tables.history_text)
    limit = max(int(plan.attach.max()) - 1, 0) if len(plan.attach) else 0
    dropped = min(int(np.searchsorted(saved, excess)), limit)
    plan = _keep_branches(plan, (plan.attach > dropped) | (plan.attach == 0))
    attach = np.maximum(plan.attach - dropped, 0).astype(np.int32)
    return dataclasses.replace(
        plan, history=plan.history[dropped:], session=plan.session[dropped:], attach=attach
    )


def lay_out(plan: Plan, tables: PromptTables) -> Example:
    """The tokens of `plan` in order: context, then its branches.

    Worked example, x 1, y 1, no markers, history [5, 8], one history-supervision branch for 8 after
    5 and an instruction [i j] with target 9 at the end (c. codes, # slots, q query token):

        index     0  1  2  3 | 4  5 | 6 7 8  9
        token     c5 #  c8 # | c8 q | i j c9 q      history branch 1, instructed branch 2
        branch    0  0  0  0 | 1  1 | 2 2 2  2
        attach    0  0  0  0 | 2  2 | 4 4 4  4
        position  0  1  2  3 | 2  3 | 4 5 6  7
        code_position [[1], [7]]    query_position [5, 9]

    Without q there is no history branch, because item 8 is the next item of the context:

        index     0  1  2  3 | 4 5 6
        token     c5 #  c8 # | i j c9
        code_position [[1], [5]]    query_position [2, 6]
    """
    ends = _history_ends(plan, tables)
    tokens, items = [plan.profile], [np.full(len(plan.profile), -1, np.int32)]

    def add_text(text: np.ndarray) -> None:
        tokens.append(text)
        items.append(np.full(len(text), -1, np.int32))

    if len(plan.favourites):
        add_text(tables.favourites_text)
        tokens.append(tables.slots(plan.favourites).ravel())
        items.append(_slot_items(plan.favourites, tables))
    before_history = sum(map(len, tokens))
    if len(plan.history):
        add_text(tables.history_text)
        start = before_history + len(tables.history_text)
        history, history_items = _history(plan, tables, ends)
        tokens.append(history)
        items.append(history_items)
        # A branch without a history stands before the text that announces the history.
        attach = np.where(plan.attach > 0, start + ends[plan.attach], before_history)
    else:
        attach = np.full(len(plan.attach), before_history)
    return _add_branches(plan, tables, np.concatenate(tokens), np.concatenate(items), attach)


def _slot_items(items: np.ndarray, tables: PromptTables) -> np.ndarray:
    """-1 for each code token, the item for its slot: [5, 8], 1 code -> [-1, 5, -1, 8]."""
    out = np.full((len(items), tables.layout.item_tokens), -1, np.int32)
    if tables.layout.slot_in_prompt:
        out[:, -1] = items
    return out.ravel()


def _history(plan: Plan, tables: PromptTables, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and items of the history, with a mark after each session."""
    width = tables.layout.item_tokens
    if not len(tables.session_end):
        return tables.slots(plan.history).ravel(), _slot_items(plan.history, tables)
    token = np.zeros(ends[-1], np.int32)
    item = np.full(ends[-1], -1, np.int32)
    token[ends[:-1, None] + np.arange(width)] = tables.slots(plan.history)
    if tables.layout.slot_in_prompt:
        item[ends[:-1] + width - 1] = plan.history
    session_ends = ends[1:][np.diff(ends) > width]
    mark = len(tables.session_end)
    token[(session_ends - mark)[:, None] + np.arange(mark)] = tables.session_end
    return token, item


def _add_branches(
    plan: Plan, tables: PromptTables, context: np.ndarray, items: np.ndarray, attach: np.ndarray
) -> Example:
    """The context with its branches behind it.

    Args:
      context, items: tokens and items of the context.
      attach: for each branch, how many tokens of the context it sees.
    """
    count, size, codes = len(plan.instruction), len(context), tables.layout.sid_generated
    lengths = branch_lengths(plan, tables)
    ends = size + np.cumsum(lengths)
    starts = ends - lengths
    total = int(ends[-1]) if count else size
    token, item, branch, attach_of = (np.zeros(total, np.int32) for _ in range(4))
    item[:size], item[size:] = items, -1
    token[:size] = context
    branch[size:] = np.repeat(np.arange(1, count + 1), lengths)
    attach_of[size:] = np.repeat(attach, lengths)
    position = np.arange(total, dtype=np.int32)
    position[size:] += np.repeat(attach - starts, lengths).astype(np.int32)
    for start, text in zip(starts.tolist(), plan.instruction, strict=True):
        token[start : start + len(text)] = text
    has_slot = plan.instruction_row >= 0
    item[starts[has_slot]] = INSTRUCTION - plan.instruction_row[has_slot]
    target_tokens = tables.layout.target_tokens if plan.has_target else 0
    has_branch = ~is_next_item(plan, tables)
    first = np.where(has_branch, ends - target_tokens, attach)  # first token of the target
    # Without an instruction the last visible token of the context predicts the target.
    predicting = np.where(_instruction_lengths(plan) == 0, attach - 1, first - 1)
    code = first[:, None] + np.arange(codes)  # tokens c_1..c_y
    code_position = code - 1
    if codes:
        code_position[:, 0] = predicting
    if plan.has_target:
        token[code[has_branch]] = tables.codes(plan.target[has_branch], codes)
        if tables.layout.has_query_token:
            token[ends - 1] = tables.query_token
    return Example(
        token,
        item,
        position,
        branch,
        attach_of,
        plan.target,
        plan.task,
        plan.constraint,
        predicting.astype(np.int32),
        code_position.astype(np.int32),
        (first + target_tokens - 1 if target_tokens else predicting).astype(np.int32),
    )
