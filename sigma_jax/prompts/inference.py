"""Prompts of requests: the layout of training, one context and one instruction per prompt.

A prompt holds neither the codes nor the query token of a target: generation adds them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sigma_jax.data.sentences import Encode
from sigma_jax.prompts.layout import Plan, fit_plan, lay_out
from sigma_jax.prompts.records import favourites
from sigma_jax.prompts.tokens import PromptTables
from sigma_jax.schema import Histories, Requests
from sigma_jax.tasks import instructions
from sigma_jax.tasks.constraints import NO_CONSTRAINT

LENGTH_STEP = 32  # prompts are padded to a multiple of this: few lengths, few compilations


def assemble_prompts(
    requests: Requests,
    histories: Histories,
    tables: PromptTables,
    length: int,
    window_step: int = 1,
) -> dict[str, np.ndarray]:
    """Prompts of `requests`, one per row, padded at the end to `length` tokens.

    The context is that of training: the last `history_length` rows before the request's
    `history_end`, and favourites from the rows before these. A user without a history (user -1, or
    no row before `history_end`) gets profile and instruction alone. An instruction may be any text;
    it is cut after `instruction_tokens` tokens. The slot of an instruction holds row 0 of the
    vectors of its prompt.

    Args:
      window_step: the first row that a prompt shows moves by so many rows at a time. With 1 a
        prompt always shows the last `history_length` rows. With more it shows a few less, and
        the prompts of a growing history have a longer common beginning.

    Returns:
      a dict of token, item, position and segment, int32 [N, length] as in training batches, and of
      length, int32 [N], the tokens of each prompt. Segment is 1 for the prompt, 0 for padding.

    Raises:
      ValueError: `length` has no room for the instruction.
    """
    count = len(requests)
    arrays: dict[str, np.ndarray] = {
        name: np.zeros((count, length), np.int32) for name in ("token", "position", "segment")
    }
    arrays["item"] = np.full((count, length), -1, np.int32)
    arrays["length"] = np.zeros(count, np.int32)
    encoded = tables.instructions(requests.instruction)
    for row, instruction in enumerate(encoded):
        user, history_end = int(requests.user[row]), int(requests.history_end[row])
        plan = prompt_plan(histories, tables, user, history_end, instruction, window_step)
        fitted = fit_plan(plan, tables, length, 1)
        if fitted is None:
            raise ValueError(
                f"a prompt of {length} tokens has no room for an instruction of "
                f"{len(instruction)}; use a longer prompt."
            )
        example = lay_out(fitted, tables)
        size = len(example.token)
        for name in ("token", "item", "position"):
            arrays[name][row, :size] = getattr(example, name)
        arrays["segment"][row, :size] = 1
        arrays["length"][row] = size
    return arrays


def prompt_plan(
    histories: Histories,
    tables: PromptTables,
    user: int,
    history_end: int,
    instruction: np.ndarray,
    window_step: int = 1,
) -> Plan:
    """The plan of one prompt: the user's history before row `history_end`, then `instruction`.

    Worked example, history_length 6, window_step 4: a history of 5 or 6 rows is shown whole; one of
    7 to 10 rows without its first 4 rows; one of 11 without its first 8.
    """
    layout = tables.layout
    first = int(histories.offsets[user]) if user >= 0 else history_end
    excess = max(history_end - first - layout.history_length, 0)
    start = min(first + -(-excess // window_step) * window_step, history_end)
    history = np.asarray(histories.item[start:history_end], np.int32)
    if not len(instruction) and not len(history):
        # A model predicts from a token, so an empty prompt gets one.
        instruction = tables.tokenizer.encode([instructions.SESSION_END_TEXT], 1)[0]
    return Plan(
        tables.profile(user),
        favourites(np.asarray(histories.item[first:start]), layout.num_favourites),
        history,
        np.asarray(histories.session[start:history_end], np.int32),
        [np.asarray(instruction, np.int32)],
        np.array([0 if tables.has_slot(instruction) else -1], np.int32),
        np.array([len(history)], np.int32),
        np.array([-1], np.int32),
        np.array([-1], np.int32),
        np.array([NO_CONSTRAINT], np.int32),
        has_target=False,
    )


def make_prompts(
    requests: Requests,
    histories: Histories,
    tables: PromptTables,
    encode: Encode | None = None,
    window_step: int = 1,
) -> dict[str, Any]:
    """Prompts of `requests` as generation takes them, no longer than the longest needs.

    Args:
      encode: instructions to vectors, where the layout has a slot for them.
      window_step: see `assemble_prompts`.

    Returns:
      tokens, items, positions: int32 [N, T]; is_token: bool [N, T]; lengths: int32 [N]. With
      `encode` also instructions: float32 [N, 1, E].
    """
    longest_allowed = tables.layout.row_tokens
    prompts = assemble_prompts(requests, histories, tables, longest_allowed, window_step)
    longest = int(prompts["length"].max(initial=1))
    length = min(longest_allowed, -(-longest // LENGTH_STEP) * LENGTH_STEP)
    vectors = {} if encode is None else {"instructions": encode(requests.instruction)[:, None]}
    return {
        **vectors,
        "tokens": prompts["token"][:, :length],
        "items": prompts["item"][:, :length],
        "positions": prompts["position"][:, :length],
        "is_token": prompts["segment"][:, :length] > 0,
        "lengths": prompts["length"],
    }
