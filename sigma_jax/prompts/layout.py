"""The layout of a prompt, and what gives way when one is too long.

    context = [profile text][favourites text, item slots][history text, item slots]
    branch  = [instruction text][c_1 .. c_y][q]

An item slot is x code tokens (levels 1..x) and the slot token itself. Branches see the context up
to where they are attached, and themselves. A history-supervision branch has no instruction.
Either part of a slot, and the codes or the query token of a branch, may be left out by the config.
A branch without any token is a target of the context's own last token. So is, where the last code
asks for the item, history supervision whose target stands next in the context: its codes stand
there already.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Int, Int32

from sigma_jax.prompts.tokens import PromptTables
from sigma_jax.schema import TASKS

HISTORY_TASK = len(TASKS)  # target_task of history supervision


@dataclasses.dataclass(frozen=True)
class Plan:
    """A context and its branches before they are laid out; K branches, n items of history."""

    profile: Int32[np.ndarray, " p"]
    favourites: Int32[np.ndarray, " f"]
    history: Int32[np.ndarray, " n"]  # items, oldest first
    session: Int32[np.ndarray, " n"]  # equal for the items of one session
    instruction: list[np.ndarray]  # tokens of each branch; empty for history supervision
    attach: Int32[np.ndarray, " K"]  # items of the history that the branch sees, 0..n
    target: Int32[np.ndarray, " K"]  # items
    task: Int32[np.ndarray, " K"]
    constraint: Int32[np.ndarray, " K"]  # what is demanded of items (tasks/constraints.py)
    has_target: bool  # False: branches end with the instruction (prompts to generate from)


@dataclasses.dataclass(frozen=True)
class Example:
    """A plan laid out, positions counted from its own first token; n tokens, K targets."""

    token: Int32[np.ndarray, " n"]
    item: Int32[np.ndarray, " n"]
    position: Int32[np.ndarray, " n"]
    branch: Int32[np.ndarray, " n"]
    attach: Int32[np.ndarray, " n"]
    target: Int32[np.ndarray, " K"]
    task: Int32[np.ndarray, " K"]
    constraint: Int32[np.ndarray, " K"]
    start_position: Int32[np.ndarray, " K"]  # where the target is predicted from
    code_position: Int32[np.ndarray, "K y"]  # where each of its codes is predicted
    query_position: Int32[np.ndarray, " K"]  # of q, or else of the last code


def branch_lengths(plan: Plan, tables: PromptTables) -> Int[np.ndarray, " K"]:
    """Tokens of each branch."""
    tail = tables.layout.target_tokens if plan.has_target else 0
    return _words(plan) + tail * ~stands_next(plan, tables)


def _words(plan: Plan) -> Int[np.ndarray, " K"]:
    return np.fromiter(map(len, plan.instruction), np.int64, len(plan.instruction))


def stands_next(plan: Plan, tables: PromptTables) -> Bool[np.ndarray, " K"]:
    """Which targets need no branch: the codes asked for come next in the context as it is."""
    layout = tables.layout
    if (
        not plan.has_target
        or layout.has_query_token
        or not 0 < layout.sid_generated <= layout.sid_in_prompt
    ):
        return np.zeros(len(plan.attach), bool)
    following = np.append(plan.history, -1)[plan.attach]
    return (_words(plan) == 0) & (plan.attach > 0) & (following == plan.target)


def _ends(plan: Plan, tables: PromptTables) -> Int[np.ndarray, " n+1"]:
    """Tokens of the first r items of the history and the ends of their sessions, r = 0..n."""
    is_end = np.ones(len(plan.history), np.int64)
    is_end[:-1] = plan.session[1:] != plan.session[:-1]
    width = tables.layout.item_tokens + is_end * len(tables.session_end)
    return np.concatenate([[0], np.cumsum(width)])


def plan_size(plan: Plan, tables: PromptTables) -> int:
    """Tokens of the whole plan."""
    context = len(plan.profile) + int(_ends(plan, tables)[-1])
    if len(plan.favourites):
        context += len(tables.favourites_text)
        context += len(plan.favourites) * tables.layout.item_tokens
    if len(plan.history):
        context += len(tables.history_text)
    return context + int(branch_lengths(plan, tables).sum())


def _keep(plan: Plan, kept: Bool[np.ndarray, " K"]) -> Plan:
    names = ("attach", "target", "task", "constraint")
    arrays = {name: getattr(plan, name)[kept] for name in names}
    chosen = [tokens for tokens, keep in zip(plan.instruction, kept, strict=True) if keep]
    return dataclasses.replace(plan, instruction=chosen, **arrays)


def fit(plan: Plan, tables: PromptTables, most_tokens: int, most_targets: int) -> Plan | None:
    """`plan` shortened to at most `most_tokens` and `most_targets`; None if no branch can stay.

    The oldest items of the history go first, and with them the branches that would see none of
    it; then favourites, the least frequent first; then the end of the profile; then the last item,
    which leaves instructions that see no history; then branches.
    """
    if len(plan.instruction) > most_targets:
        plan = _keep(plan, np.arange(len(plan.instruction)) < most_targets)
    excess = plan_size(plan, tables) - most_tokens
    if excess <= 0:
        return plan if plan.instruction else None
    if len(plan.history):
        plan = _drop_oldest(plan, tables, excess)
        excess = plan_size(plan, tables) - most_tokens
    if excess > 0 and len(plan.favourites):
        gone = min(-(-excess // tables.layout.item_tokens), len(plan.favourites))
        kept = plan.favourites[: len(plan.favourites) - gone]
        plan = dataclasses.replace(plan, favourites=kept)
        excess = plan_size(plan, tables) - most_tokens
    if excess > 0:
        kept = plan.profile[: max(len(plan.profile) - excess, 0)]
        plan = dataclasses.replace(plan, profile=kept)
        excess = plan_size(plan, tables) - most_tokens
    if excess > 0 and len(plan.history):
        plan = _keep(plan, np.array([len(words) > 0 for words in plan.instruction], bool))
        empty = {"history": plan.history[:0], "session": plan.session[:0]}
        plan = dataclasses.replace(plan, attach=np.zeros_like(plan.attach), **empty)
    while plan.instruction and plan_size(plan, tables) > most_tokens:
        plan = _keep(plan, np.arange(len(plan.instruction)) < len(plan.instruction) - 1)
    return plan if plan.instruction else None


def _drop_oldest(plan: Plan, tables: PromptTables, excess: int) -> Plan:
    """`plan` without its d oldest items, d the least that saves `excess` tokens and keeps a branch.

    Branches without any history (attach 0) stand before it and stay.
    """
    length = len(plan.history)
    ends = _ends(plan, tables)
    lengths = branch_lengths(plan, tables) * (plan.attach > 0)
    gone = np.cumsum(np.bincount(plan.attach, lengths, minlength=length + 1)).astype(np.int64)
    saved = ends + gone  # by dropping d items, d = 0..n
    saved[length] += len(tables.history_text)
    # Beyond this the last branch that sees history would go.
    limit = max(int(plan.attach.max()) - 1, 0) if len(plan.attach) else 0
    drop = min(int(np.searchsorted(saved, excess)), limit)
    plan = _keep(plan, (plan.attach > drop) | (plan.attach == 0))
    attach = np.maximum(plan.attach - drop, 0).astype(np.int32)
    return dataclasses.replace(
        plan, history=plan.history[drop:], session=plan.session[drop:], attach=attach
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

    Without q the history branch goes, as item 8 stands next in the context:

        index     0  1  2  3 | 4 5 6
        token     c5 #  c8 # | i j c9
        code_position [[1], [5]]    query_position [2, 6]
    """
    ends = _ends(plan, tables)
    parts, items = [plan.profile], [np.full(len(plan.profile), -1, np.int32)]

    def add_text(text: np.ndarray) -> None:
        parts.append(text)
        items.append(np.full(len(text), -1, np.int32))

    if len(plan.favourites):
        add_text(tables.favourites_text)
        parts.append(tables.slots(plan.favourites).ravel())
        items.append(_slot_items(plan.favourites, tables))
    before_history = sum(map(len, parts))
    if len(plan.history):
        add_text(tables.history_text)
        start = before_history + len(tables.history_text)
        history, history_items = _history(plan, tables, ends)
        parts.append(history)
        items.append(history_items)
        # A branch without history stands before the words that announce it.
        cuts = np.where(plan.attach > 0, start + ends[plan.attach], before_history)
    else:
        cuts = np.full(len(plan.attach), before_history)
    context = np.concatenate(parts)
    return _add_branches(plan, tables, context, np.concatenate(items), cuts)


def _slot_items(items: np.ndarray, tables: PromptTables) -> np.ndarray:
    """-1 for each code token, the item for its slot: [5, 8], 1 code -> [-1, 5, -1, 8]."""
    out = np.full((len(items), tables.layout.item_tokens), -1, np.int32)
    if tables.layout.slot_in_prompt:
        out[:, -1] = items
    return out.ravel()


def _history(plan: Plan, tables: PromptTables, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and items of the history, with the marks after its sessions."""
    width = tables.layout.item_tokens
    if not len(tables.session_end):
        return tables.slots(plan.history).ravel(), _slot_items(plan.history, tables)
    token = np.zeros(ends[-1], np.int32)
    item = np.full(ends[-1], -1, np.int32)
    token[ends[:-1, None] + np.arange(width)] = tables.slots(plan.history)
    if tables.layout.slot_in_prompt:
        item[ends[:-1] + width - 1] = plan.history
    closed = ends[1:][np.diff(ends) > width]
    mark = len(tables.session_end)
    token[(closed - mark)[:, None] + np.arange(mark)] = tables.session_end
    return token, item


def _add_branches(
    plan: Plan, tables: PromptTables, context: np.ndarray, items: np.ndarray, cuts: np.ndarray
) -> Example:
    count, size, codes = len(plan.instruction), len(context), tables.layout.sid_generated
    lengths = branch_lengths(plan, tables)
    finish = size + np.cumsum(lengths)
    begin = finish - lengths
    total = int(finish[-1]) if count else size
    token, item, branch, attach = (np.zeros(total, np.int32) for _ in range(4))
    item[:size], item[size:] = items, -1
    token[:size] = context
    branch[size:] = np.repeat(np.arange(1, count + 1), lengths)
    attach[size:] = np.repeat(cuts, lengths)
    position = np.arange(total, dtype=np.int32)
    position[size:] += np.repeat(cuts - begin, lengths).astype(np.int32)
    for start, text in zip(begin.tolist(), plan.instruction, strict=True):
        token[start : start + len(text)] = text
    tail = tables.layout.target_tokens if plan.has_target else 0
    is_own = ~stands_next(plan, tables)
    first = np.where(is_own, finish - tail, cuts)  # the row after the instruction
    # Without an instruction the last token of the context predicts the target.
    predicting = np.where(_words(plan) == 0, cuts - 1, first - 1)
    code = first[:, None] + np.arange(codes)  # rows of c_1..c_y
    code_position = code - 1
    if codes:
        code_position[:, 0] = predicting
    if plan.has_target:
        token[code[is_own]] = tables.codes(plan.target[is_own], codes)
        if tables.layout.has_query_token:
            token[finish - 1] = tables.query_token
    return Example(
        token,
        item,
        position,
        branch,
        attach,
        plan.target,
        plan.task,
        plan.constraint,
        predicting.astype(np.int32),
        code_position.astype(np.int32),
        (first + tail - 1 if tail else predicting).astype(np.int32),
    )
