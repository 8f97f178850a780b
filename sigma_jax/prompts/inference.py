"""TODO."""

from __future__ import annotations

import numpy as np

from sigma_jax.prompts.config import PromptConfig
from sigma_jax.prompts.layout import Plan, fit, lay_out
from sigma_jax.prompts.records import favourites
from sigma_jax.prompts.tokens import PromptTables
from sigma_jax.schema import PreparedData, Requests
from sigma_jax.tasks import instructions
from sigma_jax.tasks.constraints import NONE


def assemble_prompts(
    requests: Requests,
    data: PreparedData,
    tables: PromptTables,
    config: PromptConfig,
    length: int,
) -> dict[str, np.ndarray]:
    """The prompts of `requests`, one a row, padded at the end.

    The context is what training would show at that cut: the last `history_length` rows before it,
    and favourites from the rows before these. A user without history (user -1, or nothing before
    the cut) gets profile and instruction alone. An instruction may be any text: it is cut at
    `instruction_tokens`.

    Returns:
      token, item, position, segment: int32 [N, length], as in training batches, segment 1 for the
      prompt and 0 for padding; `length`: int32 [N], tokens of each prompt.

    Raises:
      ValueError: `length` has no room for the instruction.
    """
    count = len(requests)
    out = {name: np.zeros((count, length), np.int32) for name in ("token", "position", "segment")}
    out["item"] = np.full((count, length), -1, np.int32)
    out["length"] = np.zeros(count, np.int32)
    spoken = tables.encoder.encode(requests.instruction, config.instruction_tokens)
    for row, instruction in enumerate(spoken):
        user, history_end = int(requests.user[row]), int(requests.history_end[row])
        plan = fit(
            prompt_plan(data, tables, config, user, history_end, instruction), tables, length, 1
        )
        if plan is None:
            raise ValueError(
                f"a prompt of {length} tokens has no room for an instruction of "
                f"{len(instruction)}; use a longer prompt."
            )
        example = lay_out(plan, tables)
        size = len(example.token)
        for name in ("token", "item", "position"):
            out[name][row, :size] = getattr(example, name)
        out["segment"][row, :size] = 1
        out["length"][row] = size
    return out


def prompt_plan(
    data: PreparedData,
    tables: PromptTables,
    config: PromptConfig,
    user: int,
    history_end: int,
    instruction: np.ndarray,
) -> Plan:
    """The plan of one prompt: `user`'s history before row `cut`, then `instruction`."""
    histories = data.histories
    first = int(histories.offsets[user]) if user >= 0 else history_end
    start = max(first, history_end - config.history_length)
    history = np.asarray(histories.item[start:history_end], np.int32)
    if not len(instruction) and not len(history):
        # Something must be predicted from even if nothing was said and nothing is known.
        instruction = tables.encoder.encode([instructions.SESSION_END_TEXT], 1)[0]
    return Plan(
        tables.profile(user)[: config.profile_tokens],
        favourites(np.asarray(histories.item[first:start]), config.num_favourites),
        history,
        np.asarray(histories.session[start:history_end], np.int32),
        [np.asarray(instruction, np.int32)],
        np.array([len(history)], np.int32),
        np.array([-1], np.int32),
        np.array([-1], np.int32),
        np.array([NONE], np.int32),
        np.ones(1, np.float32),
        has_target=False,
    )


def prompts_of(
    requests: Requests, data: PreparedData, tables: PromptTables, config: PromptConfig
) -> dict[str, np.ndarray]:
    """Prompts of `requests` with the field names of the generator, cut to the longest."""
    prompts = assemble_prompts(requests, data, tables, config, config.row_tokens)
    # Few distinct lengths, so that other requests do not compile another program.
    longest = int(prompts["length"].max(initial=1))
    length = min(config.row_tokens, -(-longest // 32) * 32)
    return {
        "tokens": prompts["token"][:, :length],
        "items": prompts["item"][:, :length],
        "positions": prompts["position"][:, :length],
        "is_token": prompts["segment"][:, :length] > 0,
        "lengths": prompts["length"],
    }
