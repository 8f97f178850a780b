"""TODO."""

from __future__ import annotations

import dataclasses

from sigma_jax.runtime.config import check_least
from sigma_jax.schema import TASKS
from sigma_jax.tasks import instructions

ITEM_QUERIES = ("token", "code", "none")


FIXED_TEXT = 30  # tokens, at most, of what announces favourites and history


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """What a prompt holds, which targets a training context carries, and how contexts fill rows."""

    sid_in_prompt: int  # x: code tokens of each item, 0..L
    slot_in_prompt: bool  # after these the item slot, which carries the fused vector
    sid_generated: int  # y: code tokens generated, 0..L
    # What asks for the item: a "token" of its own after the codes, the last "code" itself, or
    # "none": then all items of the codes are alike, as in GR(SID).
    item_query: str
    history_length: int  # items of the history in a prompt
    num_favourites: int  # the user's most frequent items before the history; 0: none
    session_marker: bool  # a line break token after each session
    shuffle_sessions: bool  # lines of a session in another order each time (training)
    profile_tokens: int  # a longer profile is cut
    instruction_tokens: int  # a longer instruction is cut
    window_stride: int  # items between the ends of a user's training windows
    lookahead_sessions: int  # 1: targets from the next session only; 2: else from the one after
    candidates_per_boundary: int  # targets kept per session boundary and task
    longtail_share: float  # the head is the items that make up this share of interactions
    records_per_shard: int
    task_weights: dict[str, float]  # mixture of the instructed tasks; 0 or absent: not trained
    cold_start_weight: float  # of targets without any history, relative to others; 0: none
    bare_share: float  # of the contexts: no history, but as many instructions as fill a row
    # Share of an instruction's own tokens that training leaves out (half) or exchanges (half).
    wording_dropout: float
    shared_contexts: bool  # off: one instruction a context
    branches_per_context: int  # instructed targets
    history_targets: int  # history-supervision targets a context; 0: off
    targets_per_boundary: int  # of these, at one session boundary
    history_weight: float  # target_weight of history supervision; instructed targets have 1
    row_tokens: int  # T
    row_targets: int  # N
    pack_group_rows: int  # contexts are packed in groups of this many rows ...
    contexts_per_group: int  # ... which get this many contexts; 0: as many as they can hold

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if field.type == "int":
                least = 0 if field.name in _MAY_BE_ZERO else 1
                check_least(least, self, field.name, group="prompt.")
        shares = ("bare_share", "wording_dropout")
        check_least(0, self, "cold_start_weight", "history_weight", *shares, group="prompt.")
        for name in shares:
            if getattr(self, name) >= 1:
                raise ValueError(f"prompt.{name}={getattr(self, name)}; use less than 1.")
        unknown = set(self.task_weights) - set(TASKS)
        if unknown:
            raise ValueError(
                f"prompt.task_weights names {sorted(unknown)}; known are {', '.join(TASKS)}."
            )
        if any(weight < 0 for weight in self.task_weights.values()):
            raise ValueError(f"prompt.task_weights={self.task_weights}; use 0 or more.")
        if not self.sid_in_prompt and not self.slot_in_prompt:
            raise ValueError(
                "prompt.sid_in_prompt=0 and prompt.slot_in_prompt=False leave no token for an "
                "item; change one of them."
            )
        if self.item_query not in ITEM_QUERIES:
            raise ValueError(
                f"prompt.item_query={self.item_query!r} is unknown; use one of {ITEM_QUERIES}."
            )
        if not self.sid_generated and not self.generates_item:
            raise ValueError(
                'prompt.sid_generated=0 and prompt.item_query="none" leave nothing to predict; '
                "change one of them."
            )
        # One branch and one item must fit even if all else is given up.
        words = self.instruction_tokens + FIXED_TEXT if self.has_words else 0
        least = words + self.sid_in_prompt + self.slot_in_prompt + self.sid_generated + 1
        if self.row_tokens < least:
            raise ValueError(
                f"prompt.row_tokens={self.row_tokens}; these prompts need {least} or more."
            )

    def check(self, levels: int) -> None:
        """ValueError naming the field if the settings cannot work with SIDs of `levels` codes."""
        for name in ("sid_in_prompt", "sid_generated"):
            if getattr(self, name) > levels:
                raise ValueError(f"prompt.{name}={getattr(self, name)}; use 0 to {levels}.")

    @property
    def has_words(self) -> bool:
        """Whether anything is asked for; without, prompts are histories and nothing else."""
        return self.branches_per_context > 0

    @property
    def asked_tasks(self) -> dict[str, float]:
        """The tasks a model so trained can be asked for, with their weights."""
        if not self.has_words:
            return {"JustForYou": 1.0}
        return {task: weight for task, weight in self.task_weights.items() if weight > 0}

    @property
    def phrasings(self) -> dict[str, tuple[str, ...]]:
        """How requests are worded: as in training."""
        return instructions.TRAIN_PHRASINGS if self.has_words else instructions.WITHOUT_WORDS

    @property
    def generates_item(self) -> bool:
        """Whether items are told apart beyond their codes."""
        return self.item_query != "none"

    @property
    def has_query_token(self) -> bool:
        """Whether a token after codes asks for an item."""
        return self.item_query == "token" and self.sid_generated > 0


_MAY_BE_ZERO = (
    "num_favourites",
    "history_targets",
    "profile_tokens",
    "branches_per_context",
    "sid_in_prompt",
    "sid_generated",
    "contexts_per_group",
)
